/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Unit tests of handing bdevs over. Predecessor and successor are one process
 * here: the fds are duplicated, which is what SCM_RIGHTS does, then the first
 * bdev goes and a second of its name takes them. Strangers to an image's locks
 * are file_lock() and bdevs of other names.
 */
#include "file_util.h"

#include "hugepages/hugepages.h"

#include <dirent.h>
#include <linux/loop.h>
#include <sys/ioctl.h>

static const struct huge_config default_config = { false, 0, NULL };

/* Also after a failure. */
static int end(void **state)
{
	(void)state;
	bdev_adopt_clear();
	bdev_handover_end();
	return huge_init(&default_config);
}

static size_t open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	size_t n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static size_t bytes_mapped(void)
{
	struct huge_stats stats;

	huge_get_stats(&stats);
	return stats.huge_bytes + stats.normal_bytes;
}

/* As the fd arrives in the successor. */
static int hand_over(const char *name)
{
	int fds[BDEV_HANDOVER_FDS], fd;

	assert_int_equal(bdev_handover(bdev_find(name), fds), 1);
	fd = fcntl(fds[0], F_DUPFD_CLOEXEC, 0);
	assert_true(fd >= 0);
	return fd;
}

static int new_fd(void)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static int malloc_create(const char *name, uint64_t size, struct harness_result *hr)
{
	struct bdev_malloc_opts opts = { .name = name, .num_blocks = size / 512,
					 .block_size = 512, .numa_node = -1 };

	bdev_malloc_create(&opts, harness_result_init(hr));
	return harness_result(hr);
}

/* ------- offers ------- */

static void test_offers(void **state)
{
	int fds[BDEV_HANDOVER_FDS + 1], got[BDEV_HANDOVER_FDS];
	char long_name[BDEV_NAME_MAX + 1];
	size_t before = open_fds();

	(void)state;
	memset(long_name, 'n', BDEV_NAME_MAX);
	long_name[BDEV_NAME_MAX] = '\0';
	for (unsigned int i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = new_fd();
	assert_int_equal(bdev_adopt_offer("a", fds, ARRAY_SIZE(fds)), -EINVAL);
	assert_int_equal(open_fds(), before);
	fds[0] = new_fd();
	assert_int_equal(bdev_adopt_offer("", fds, 1), -EINVAL);
	fds[0] = new_fd();
	assert_int_equal(bdev_adopt_offer(long_name, fds, 1), -EINVAL);
	assert_int_equal(bdev_adopt_offer("a", fds, 0), -EINVAL);
	fds[0] = new_fd();
	harness_fail_alloc(1);
	assert_int_equal(bdev_adopt_offer("a", fds, 1), -ENOMEM);
	harness_fail_alloc(0);
	assert_int_equal(open_fds(), before);
	assert_false(bdev_is_shared());

	fds[0] = new_fd();
	fds[1] = new_fd();
	assert_int_equal(bdev_adopt_offer("a", fds, 2), 0);
	assert_true(bdev_is_shared());
	fds[0] = new_fd();
	assert_int_equal(bdev_adopt_offer("a", fds, 1), -EEXIST);
	fds[0] = new_fd();
	assert_int_equal(bdev_adopt_offer("b", fds, 1), 0);
	assert_int_equal(open_fds(), before + 3);
	assert_int_equal(bdev_adopt_take(NULL, got), 0);
	assert_int_equal(bdev_adopt_take("c", got), 0);
	assert_int_equal(bdev_adopt_take("a", got), 2);
	assert_int_equal(bdev_adopt_take("a", got), 0);
	close(got[0]);
	close(got[1]);
	assert_int_equal(bdev_adopt_clear(), 1);
	assert_int_equal(bdev_adopt_clear(), 0);
	assert_int_equal(open_fds(), before);
	assert_true(bdev_is_shared());
	bdev_handover_end();
	assert_false(bdev_is_shared());
}

/* What is made anew from its configuration. */
static void test_nothing_to_hand_over(void **state)
{
	struct bdev_null_opts null = { .name = "n0", .num_blocks = 64, .block_size = 512 };
	struct bdev_fault_opts fault = { .kind = BDEV_FAULT_ERROR, .base = "n0" };
	int fds[BDEV_HANDOVER_FDS];
	struct harness_result hr;

	(void)state;
	bdev_null_create(&null, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), 0);
	bdev_fault_create(&fault, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), 0);
	assert_int_equal(bdev_handover(bdev_find("n0"), fds), 0);
	assert_int_equal(bdev_handover(bdev_find("EE_n0"), fds), 0);
	/* All the same: what they do when their rings stop may depend on it. */
	assert_true(bdev_is_shared());
	bdev_handover_end();
	assert_false(bdev_is_shared());
	assert_int_equal(harness_delete("EE_n0"), 0);
	assert_int_equal(harness_delete("n0"), 0);
}

/* ------- caches ------- */

/* A backend that counts its flushes; a file's cache is the system's, and none of them. */
static _Atomic unsigned int flushes;
static _Atomic int flush_status;

static void cached_submit(struct bdev_io *io)
{
	if (io->type == BDEV_FLUSH)
		atomic_fetch_add(&flushes, 1);
	bdev_io_done_later(io, io->type == BDEV_FLUSH ? flush_status : 0);
}

static void cached_destroy(struct bdev *bdev)
{
	bdev_destroyed(bdev);
}

static const struct bdev_ops cached_ops = {
	.module = "cached", .product_name = "Cached disk", .own_cache = true,
	.submit = cached_submit, .destroy = cached_destroy,
};

static void cached_register(struct bdev *bdev, const char *name, bool write_cache)
{
	char reason[BDEV_REASON_MAX];

	*bdev = (struct bdev){ .ops = &cached_ops, .block_size = 512, .physical_block_size = 512,
			       .supported = (1u << BDEV_IO_TYPES) - 1,
			       .write_cache = write_cache };
	atomic_store(&bdev->size, MIB);
	assert_int_equal(bdev_register(bdev, name, NULL, NULL, reason), 0);
}

static int flush(struct harness_result *hr)
{
	bdev_handover_flush(harness_result_init(hr));
	return harness_result(hr);
}

static void test_flush(void **state)
{
	struct bdev_fault_opts fault = { .kind = BDEV_FAULT_ERROR, .base = "c1" };
	static struct bdev c0, c1, c2;
	struct harness_result hr;

	(void)state;
	assert_int_equal(flush(&hr), 0);
	assert_int_equal(create("f0", harness_file("img", MIB), &hr), 0);
	cached_register(&c0, "c0", true);
	cached_register(&c1, "c1", true);
	cached_register(&c2, "c2", false);
	bdev_fault_create(&fault, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), 0);
	assert_int_equal(flush(&hr), 0);
	assert_int_equal(flushes, 2);	/* c0, and c1 below its claimer */
	assert_true(c1.claimed);
	atomic_store(&flush_status, -EIO);
	assert_int_equal(flush(&hr), -EIO);
	assert_non_null(strstr(hr.res.reason, "c0: cannot be flushed"));
	atomic_store(&flush_status, 0);
	for (unsigned int n = 1;; n++) {
		int rc;

		harness_fail_alloc(n);
		rc = flush(&hr);
		if (!harness_fail_reached())
			break;
		assert_int_equal(rc, -ENOMEM);
		assert_true(n < 50);
	}
	harness_fail_alloc(0);
	assert_int_equal(harness_delete("EE_c1"), 0);
	assert_int_equal(harness_delete("c0"), 0);
	assert_int_equal(harness_delete("c1"), 0);
	assert_int_equal(harness_delete("c2"), 0);
	assert_int_equal(harness_delete("f0"), 0);
	unlink(harness_path("img"));
}

/* ------- malloc ------- */

static void malloc_survives(void)
{
	unsigned char *out = harness_pages(8 * MIB), *in = harness_pages(8 * MIB);
	size_t before = open_fds();
	struct harness_result hr;
	struct harness_user user;
	int fd;

	assert_int_equal(malloc_create("m0", 8 * MIB, &hr), 0);
	harness_open(&user, "m0", 0);
	harness_fill(out, 8 * MIB, 1);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, out, 8 * MIB), 0);
	fd = hand_over("m0");
	/* The predecessor goes on until its rings stop. */
	harness_fill(out + MIB, 4096, 2);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, MIB, out + MIB, 4096), 0);
	harness_close(&user);
	assert_int_equal(harness_delete("m0"), 0);
	assert_int_equal(bytes_mapped(), 0);

	assert_int_equal(bdev_adopt_offer("m0", &fd, 1), 0);
	assert_int_equal(malloc_create("m1", MIB, &hr), 0);
	assert_int_equal(malloc_create("m0", 8 * MIB, &hr), 0);
	assert_int_equal(bdev_adopt_clear(), 0);
	harness_open(&user, "m0", 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, in, 8 * MIB), 0);
	assert_memory_equal(in, out, 8 * MIB);
	harness_close(&user);
	/* And on to the next. */
	fd = hand_over("m0");
	assert_int_equal(harness_delete("m0"), 0);
	assert_int_equal(bdev_adopt_offer("m0", &fd, 1), 0);
	assert_int_equal(malloc_create("m0", 8 * MIB, &hr), 0);
	harness_open(&user, "m0", 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, MIB, in, 4096), 0);
	assert_memory_equal(in, out + MIB, 4096);
	harness_close(&user);
	assert_int_equal(harness_delete("m0"), 0);
	assert_int_equal(harness_delete("m1"), 0);
	assert_int_equal(bytes_mapped(), 0);
	assert_int_equal(open_fds(), before);
	free(out);
	free(in);
}

static void test_memory(void **state)
{
	(void)state;
	malloc_survives();
}

static void test_memory_normal_pages(void **state)
{
	struct huge_config normal = { true, 0, NULL };

	(void)state;
	assert_int_equal(huge_init(&normal), 0);
	malloc_survives();
}

static void test_memory_refusals(void **state)
{
	struct huge_config low = { false, 4 * MIB, NULL };
	size_t before = open_fds();
	struct harness_result hr;
	int fd, dup;

	(void)state;
	assert_int_equal(malloc_create("m0", 8 * MIB, &hr), 0);
	fd = hand_over("m0");
	assert_int_equal(harness_delete("m0"), 0);
	dup = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	/* Of another size; then, past the limit; then, no memory at all. */
	assert_int_equal(bdev_adopt_offer("m0", &dup, 1), 0);
	assert_int_equal(malloc_create("m0", 16 * MIB, &hr), -EINVAL);
	assert_non_null(strstr(hr.res.reason, "something else"));
	assert_int_equal(huge_init(&low), 0);
	dup = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	assert_int_equal(bdev_adopt_offer("m0", &dup, 1), 0);
	assert_int_equal(malloc_create("m0", 8 * MIB, &hr), -ENOMEM);
	assert_int_equal(huge_init(&default_config), 0);
	dup = new_fd();
	assert_int_equal(bdev_adopt_offer("m0", &dup, 1), 0);
	assert_int_equal(malloc_create("m0", 8 * MIB, &hr), -EINVAL);
	/* A name that is refused leaves the offer for the one that it is for. */
	assert_int_equal(bdev_adopt_offer("m0", &fd, 1), 0);
	assert_int_equal(malloc_create("m0", 0, &hr), -EINVAL);
	assert_int_equal(bdev_adopt_clear(), 1);
	assert_int_equal(bytes_mapped(), 0);
	assert_int_equal(open_fds(), before);
}

/* ------- files ------- */

/* Whether someone else could have the image; by -EBUSY. */
static int third_opener(const char *path)
{
	struct harness_result hr;
	int rc = create("third", path, &hr);

	if (rc == 0)
		assert_int_equal(harness_delete("third"), 0);
	return rc;
}

static void test_file(void **state)
{
	unsigned char *out = harness_pages(MIB), *in = harness_pages(MIB);
	char path[64];
	struct harness_result hr;
	struct harness_user user;
	bool direct;
	int fd;

	(void)state;
	strcpy(path, harness_file("img", 4 * MIB));
	assert_int_equal(create("f0", path, &hr), 0);
	direct = file_of(hr.res.bdev)->direct;
	harness_open(&user, "f0", 0);
	harness_fill(out, MIB, 1);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, MIB, out, MIB), 0);
	fd = hand_over("f0");
	assert_int_equal(third_opener(path), -EBUSY);
	harness_close(&user);
	assert_int_equal(harness_delete("f0"), 0);
	/* Between the two. */
	assert_int_equal(third_opener(path), -EBUSY);
	assert_int_equal(truncate(path, 8 * MIB), 0);
	assert_int_equal(bdev_adopt_offer("f0", &fd, 1), 0);
	if (create("f0", path, &hr) < 0)
		fail_msg("%s", hr.res.reason);
	assert_int_equal(bdev_adopt_clear(), 0);
	bdev_handover_end();
	assert_int_equal(file_of(hr.res.bdev)->fd, fd);
	assert_int_equal(file_of(hr.res.bdev)->direct, direct);
	assert_int_equal(bdev_size(hr.res.bdev), 8 * MIB);
	assert_int_equal(third_opener(path), -EBUSY);
	assert_int_equal(create("third", path, &hr), -EBUSY);
	assert_non_null(strstr(hr.res.reason, "another bdev of this target"));
	harness_open(&user, "f0", 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, MIB, in, MIB), 0);
	assert_memory_equal(in, out, MIB);
	/* Misaligned too: O_DIRECT's masks were learned again. */
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 7 * MIB, out + 1, MIB / 2), 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 7 * MIB, in + 3, MIB / 2), 0);
	assert_memory_equal(in + 3, out + 1, MIB / 2);
	assert_int_equal(truncate(path, 16 * MIB), 0);
	bdev_file_rescan("f0", &bdev_uring_ops, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), 0);
	assert_int_equal(bdev_size(user.desc.bdev), 16 * MIB);
	harness_close(&user);
	/* The only owner now: the lock goes with the bdev. */
	assert_int_equal(harness_delete("f0"), 0);
	assert_int_equal(third_opener(path), 0);
	unlink(path);
	free(out);
	free(in);
}

/* The takeover fails: the successor's end leaves the predecessor its lock. */
static void test_file_stays(void **state)
{
	char path[64];
	struct harness_result hr;
	int fd;

	(void)state;
	strcpy(path, harness_file("img", MIB));
	assert_int_equal(create("f0", path, &hr), 0);
	/* The successor's bdev cannot have that name here as long as the first has it. */
	fd = hand_over("f0");
	assert_int_equal(bdev_adopt_offer("f1", &fd, 1), 0);
	assert_int_equal(create("f1", path, &hr), 0);
	assert_int_equal(harness_delete("f1"), 0);
	assert_int_equal(third_opener(path), -EBUSY);
	/* Nor does one that was never taken, or could not be. */
	fd = hand_over("f0");
	assert_int_equal(bdev_adopt_offer("f1", &fd, 1), 0);
	bdev_adopt_clear();
	fd = hand_over("f0");
	assert_int_equal(bdev_adopt_offer("f1", &fd, 1), 0);
	assert_int_equal(create("f1", harness_file("other", MIB), &hr), -ESTALE);
	assert_int_equal(third_opener(path), -EBUSY);
	bdev_handover_end();
	assert_int_equal(harness_delete("f0"), 0);
	assert_int_equal(third_opener(path), 0);
	unlink(path);
	unlink(harness_path("other"));
}

static void test_file_readonly(void **state)
{
	char path[64], buf[512] __attribute__((aligned(512))) = "";
	struct bdev_file_opts ro = { .name = "f0", .filename = path, .readonly = true };
	struct bdev_file_opts rw = { .name = "f0", .filename = path };
	struct harness_result hr;
	struct harness_user user;
	int fd, dup;

	(void)state;
	strcpy(path, harness_file("img", MIB));
	assert_int_equal(create_opts(&ro, &hr), 0);
	fd = hand_over("f0");
	assert_int_equal(harness_delete("f0"), 0);
	dup = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	assert_int_equal(bdev_adopt_offer("f0", &dup, 1), 0);
	assert_int_equal(create_opts(&rw, &hr), -EINVAL);
	assert_non_null(strstr(hr.res.reason, "not opened for writing"));
	assert_int_equal(bdev_adopt_offer("f0", &fd, 1), 0);
	assert_int_equal(create_opts(&ro, &hr), 0);
	assert_true(hr.res.bdev->readonly);
	/* Readers share an image, and keep writers off. */
	assert_int_equal(third_opener(path), -EBUSY);
	harness_open(&user, "f0", 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), 0);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, buf, 512), -EROFS);
	finish(&user);
	unlink(path);
}

/* The path was replaced, or is gone, since the predecessor opened it. */
static void test_file_replaced(void **state)
{
	size_t before = open_fds();
	char path[64];
	struct harness_result hr;
	int fd, dup;

	(void)state;
	strcpy(path, harness_file("img", MIB));
	assert_int_equal(create("f0", path, &hr), 0);
	fd = hand_over("f0");
	assert_int_equal(harness_delete("f0"), 0);
	unlink(path);
	dup = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	assert_int_equal(bdev_adopt_offer("f0", &dup, 1), 0);
	assert_int_equal(create("f0", path, &hr), -ENOENT);
	harness_file("img", MIB);
	assert_int_equal(bdev_adopt_offer("f0", &fd, 1), 0);
	assert_int_equal(create("f0", path, &hr), -ESTALE);
	assert_non_null(strstr(hr.res.reason, "another file now"));
	assert_int_equal(open_fds(), before);
	unlink(path);
}

/* A block device, by another node of the same device. */
static void test_device(void **state)
{
	struct loop_config config = { .block_size = 4096 };
	char dev[32], node[64];
	struct harness_result hr;
	struct harness_user user;
	void *buf = harness_pages(4096);
	int ctl = open("/dev/loop-control", O_RDWR | O_CLOEXEC), loop, fd;
	struct stat st;

	(void)state;
	if (ctl < 0)
		harness_skip("no loop device: %m");
	config.fd = (uint32_t)open(harness_file("disk", 8 * MIB), O_RDWR | O_CLOEXEC);
	config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
	snprintf(dev, sizeof(dev), "/dev/loop%d", ioctl(ctl, LOOP_CTL_GET_FREE));
	loop = open(dev, O_RDWR | O_CLOEXEC);
	if (loop < 0 || ioctl(loop, LOOP_CONFIGURE, &config) < 0)
		harness_skip("no loop device: %m");
	close((int)config.fd);
	close(ctl);
	assert_int_equal(fstat(loop, &st), 0);
	assert_int_equal(create("f0", dev, &hr), 0);
	fd = hand_over("f0");
	assert_int_equal(harness_delete("f0"), 0);
	strcpy(node, harness_path("node"));
	if (mknod(node, S_IFBLK | 0600, st.st_rdev) < 0)
		harness_skip("no device nodes here: %m");
	assert_int_equal(bdev_adopt_offer("f0", &fd, 1), 0);
	if (create("f0", node, &hr) < 0)
		fail_msg("%s", hr.res.reason);
	assert_int_equal(hr.res.bdev->block_size, 4096);
	assert_int_equal(bdev_size(hr.res.bdev), 8 * MIB);
	assert_int_equal(third_opener(dev), -EBUSY);
	harness_open(&user, "f0", 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 4096, buf, 4096), 0);
	finish(&user);
	unlink(node);
	unlink(harness_path("disk"));
	close(loop);
	free(buf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_offers, end),
		cmocka_unit_test_teardown(test_nothing_to_hand_over, end),
		cmocka_unit_test_teardown(test_flush, end),
		cmocka_unit_test_teardown(test_memory, end),
		cmocka_unit_test_teardown(test_memory_normal_pages, end),
		cmocka_unit_test_teardown(test_memory_refusals, end),
		cmocka_unit_test_teardown(test_file, end),
		cmocka_unit_test_teardown(test_file_stays, end),
		cmocka_unit_test_teardown(test_file_readonly, end),
		cmocka_unit_test_teardown(test_file_replaced, end),
		cmocka_unit_test_teardown(test_device, end),
	};

	return harness_main("bdev_handover", tests, ARRAY_SIZE(tests), harness_setup,
			    harness_teardown);
}
