/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Unit tests of the file backend over loop devices and mounted file systems.
 * They need root; each that cannot have its device says so and is skipped.
 */
#include "file_util.h"

#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

static char mounted[64];

/* Also after a failure. */
static int unmount(void **state)
{
	(void)state;
	if (mounted[0])
		umount2(mounted, MNT_DETACH);
	mounted[0] = '\0';
	return 0;
}

/*
 * A loop device over a new file, and its fd, or -1 with the reason printed. It
 * goes when the last fd is closed, so also when the test dies.
 */
static int loop_attach(char dev[32], const char *backing, uint32_t block_size, bool readonly)
{
	struct loop_config config = { .block_size = block_size };
	int ctl = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	int fd = open(backing, O_RDWR | O_CLOEXEC), loop = -1, n;

	config.fd = (uint32_t)fd;
	config.info.lo_flags = LO_FLAGS_AUTOCLEAR | (readonly ? LO_FLAGS_READ_ONLY : 0);
	for (int tries = 0; ctl >= 0 && fd >= 0 && tries < 10 && loop < 0; tries++) {
		n = ioctl(ctl, LOOP_CTL_GET_FREE);
		if (n < 0)
			break;
		snprintf(dev, 32, "/dev/loop%d", n);
		loop = open(dev, O_RDWR | O_CLOEXEC);
		if (loop >= 0 && ioctl(loop, LOOP_CONFIGURE, &config) < 0) {
			close(loop);
			loop = -1;	/* somebody was faster */
		}
	}
	if (loop < 0)
		harness_skip_reason("no loop device: %m");
	if (ctl >= 0)
		close(ctl);
	if (fd >= 0)
		close(fd);
	return loop;
}

static void test_block_device(void **state)
{
	unsigned char *out = harness_pages(MIB), *in = harness_pages(MIB);
	struct harness_result hr;
	struct harness_user user;
	char dev[32];
	int loop;

	(void)state;
	loop = loop_attach(dev, harness_file("disk", 16 * MIB), 512, false);
	if (loop < 0)
		skip();
	assert_int_equal(create("l0", dev, &hr), 0);
	assert_int_equal(hr.res.bdev->block_size, 512);
	assert_int_equal(bdev_size(hr.res.bdev), 16 * MIB);
	assert_true(hr.res.bdev->discard_granularity > 0);
	assert_true(bdev_supports(hr.res.bdev, BDEV_DISCARD));
	harness_open(&user, "l0", 0);
	harness_fill(out, MIB, 6);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, MIB, out, MIB), 0);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 3 * MIB, out + 1, MIB / 2), 0);
	assert_int_equal(harness_range(&user, BDEV_FLUSH, 0, 0, 0), 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, MIB, in, MIB), 0);
	assert_memory_equal(in, out, MIB);
	assert_int_equal(harness_rw(&user, BDEV_READ, 3 * MIB, in + 1, MIB / 2), 0);
	assert_memory_equal(in + 1, out + 1, MIB / 2);
	zero_kinds(&user);
	/* Discarded space is given back by the file under the loop device. */
	assert_int_equal(harness_range(&user, BDEV_WRITE_ZEROES, 0, 16 * MIB, BDEV_IO_NO_UNMAP), 0);
	assert_int_equal(harness_range(&user, BDEV_DISCARD, 0, 16 * MIB, 0), 0);
	assert_true(file_allocated(harness_path("disk")) <= MIB);
	finish(&user);
	close(loop);
	free(out);
	free(in);
}

/* Discards side by side, in the old kernels' way too, by a worker. */
static void test_many_discards(void **state)
{
	enum { COUNT = 64 };
	struct harness_io *io = aligned_alloc(64, COUNT * sizeof(*io));
	struct harness_result hr;
	struct harness_user user;
	char dev[32];
	int loop;

	(void)state;
	loop = loop_attach(dev, harness_file("disk", 16 * MIB), 512, false);
	if (loop < 0)
		skip();
	assert_int_equal(create("l0", dev, &hr), 0);
	harness_open(&user, "l0", 0);
	for (int round = 0; round < 2; round++) {
		memset(io, 0, COUNT * sizeof(*io));
		for (unsigned int i = 0; i < COUNT; i++) {
			io[i].io = (struct bdev_io){ .type = BDEV_DISCARD, .offset = i * 128 * KIB,
						     .length = 64 * KIB };
			harness_io_start(&io[i], &user);
		}
		for (unsigned int i = 0; i < COUNT; i++)
			assert_int_equal(harness_io_wait(&io[i]), 0);
		atomic_fetch_or(&file_of(hr.res.bdev)->cannot, FILE_NO_DISCARD_CMD);
	}
	finish(&user);
	close(loop);
	free(io);
}

static void test_4k_device(void **state)
{
	struct bdev_file_opts opts = { .name = "l0", .block_size = 512 };
	struct harness_result hr;
	struct harness_user user;
	char dev[32];
	int loop;

	(void)state;
	loop = loop_attach(dev, harness_file("disk", 8 * MIB), 4096, false);
	if (loop < 0)
		skip();
	opts.filename = dev;
	assert_int_equal(create_opts(&opts, &hr), -EINVAL);
	assert_non_null(strstr(hr.res.reason, "blocks of 4096 bytes"));
	opts.block_size = 0;
	assert_int_equal(create_opts(&opts, &hr), 0);
	assert_int_equal(hr.res.bdev->block_size, 4096);
	harness_open(&user, "l0", 0);
	zero_kinds(&user);
	finish(&user);
	close(loop);
}

static void test_readonly_device(void **state)
{
	struct bdev_file_opts opts = { .name = "l0" };
	struct harness_result hr;
	char dev[32];
	int loop;

	(void)state;
	loop = loop_attach(dev, harness_file("disk", 8 * MIB), 512, true);
	if (loop < 0)
		skip();
	opts.filename = dev;
	assert_true(create_opts(&opts, &hr) < 0);
	assert_true(hr.res.status == -EROFS || hr.res.status == -EACCES);
	assert_non_null(strstr(hr.res.reason, "cannot be opened for writing"));
	opts.readonly = true;
	assert_int_equal(create_opts(&opts, &hr), 0);
	assert_int_equal(harness_delete("l0"), 0);
	close(loop);
}

/* A file system whose O_DIRECT wants 4096 under a bdev of 512: through the page cache. */
static void test_small_blocks_on_4k(void **state)
{
	struct bdev_file_opts opts = { .name = "f0", .block_size = 512 };
	char dev[32], mnt[64], path[128], cmd[256];
	unsigned char *buf = harness_pages(4096), *in = harness_pages(4096);
	struct harness_result hr;
	struct harness_user user;
	int fd, loop;

	(void)state;
	loop = loop_attach(dev, harness_file("disk", 64 * MIB), 4096, false);
	if (loop < 0)
		skip();
	snprintf(cmd, sizeof(cmd), "PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q %s >/dev/null 2>&1",
		 dev);
	strcpy(mnt, harness_path("mnt"));
	assert_int_equal(mkdir(mnt, 0700), 0);
	if (system(cmd) != 0 || mount(dev, mnt, "ext4", 0, "") < 0) {
		close(loop);
		harness_skip("cannot make and mount an ext4");
	}
	strcpy(mounted, mnt);
	snprintf(path, sizeof(path), "%s/img", mnt);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 8 * MIB), 0);
	close(fd);
	opts.filename = path;
	for (opts.block_size = 512; opts.block_size <= 4096; opts.block_size *= 8) {
		uint32_t bs = opts.block_size;

		assert_int_equal(create_opts(&opts, &hr), 0);
		harness_open(&user, "f0", 0);
		harness_fill(buf, 4096, bs);
		assert_int_equal(harness_rw(&user, BDEV_WRITE, bs, buf, bs), 0);
		assert_int_equal(harness_rw(&user, BDEV_READ, bs, in, bs), 0);
		assert_memory_equal(in, buf, bs);
		zero_kinds(&user);
		finish(&user);
	}
	assert_int_equal(umount(mnt), 0);
	mounted[0] = '\0';
	close(loop);
	free(buf);
	free(in);
}

static void test_no_space(void **state)
{
	char mnt[64], path[128];
	unsigned char *buf = harness_pages(2 * MIB);
	struct harness_result hr;
	struct harness_user user;
	int fd;

	(void)state;
	strcpy(mnt, harness_path("full"));
	assert_int_equal(mkdir(mnt, 0700), 0);
	if (mount("none", mnt, "tmpfs", 0, "size=1m") < 0)
		harness_skip("cannot mount a small tmpfs: %m");
	strcpy(mounted, mnt);
	snprintf(path, sizeof(path), "%s/img", mnt);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 8 * MIB), 0);
	close(fd);
	assert_int_equal(create("f0", path, &hr), 0);
	harness_open(&user, "f0", 0);
	memset(buf, 1, 2 * MIB);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, buf, 2 * MIB), -ENOSPC);
	assert_int_equal(harness_range(&user, BDEV_WRITE_ZEROES, 0, 2 * MIB, BDEV_IO_NO_UNMAP),
			 -ENOSPC);
	assert_int_equal(harness_range(&user, BDEV_DISCARD, 0, 8 * MIB, 0), 0);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, MIB, buf, MIB / 2), 0);
	finish(&user);
	assert_int_equal(umount(mnt), 0);
	mounted[0] = '\0';
	free(buf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_block_device),
		cmocka_unit_test(test_many_discards),
		cmocka_unit_test(test_4k_device),
		cmocka_unit_test(test_readonly_device),
		cmocka_unit_test_teardown(test_small_blocks_on_4k, unmount),
		cmocka_unit_test_teardown(test_no_space, unmount),
	};

	return harness_main("bdev_file_device", tests, ARRAY_SIZE(tests), harness_setup,
			    harness_teardown);
}
