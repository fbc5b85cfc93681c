/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Unit tests of the file backend over real files and tmpfs: data through every
 * path (direct, bounced, split, by hand), locks within one process, growth and
 * shrinking, and every reason for a refusal.
 */
#include "file_util.h"

#include <sys/mman.h>
#include <sys/statfs.h>

/* A bdev on a new file of that size, opened. */
static void start(struct harness_user *user, const char *name, uint64_t size)
{
	struct harness_result hr;

	if (create(name, harness_file(name, size), &hr) < 0)
		fail_msg("%s", hr.res.reason);
	harness_open(user, name, 0);
}

static void file_bytes(const char *path, uint64_t offset, void *buf, size_t len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, buf, len, (off_t)offset), len);
	close(fd);
}

/* ------- data ------- */

static void test_read_write(void **state)
{
	unsigned char *out = harness_pages(2 * MIB), *in = harness_pages(2 * MIB);
	struct harness_user user;
	struct iovec iov[4];

	(void)state;
	start(&user, "f0", 16 * MIB + 100);
	assert_int_equal(bdev_size(user.desc.bdev), 16 * MIB);
	assert_int_equal(user.desc.bdev->block_size, 512);
	assert_true(user.desc.bdev->write_cache);
	assert_string_equal(user.desc.bdev->ops->product_name, "URING bdev");
	harness_fill(out, 2 * MIB, 1);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, MIB, out, 2 * MIB), 0);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 16 * MIB - 512, out, 512), 0);
	assert_int_equal(harness_range(&user, BDEV_FLUSH, 0, 0, 0), 0);
	file_bytes(harness_path("f0"), MIB, in, 2 * MIB);
	assert_memory_equal(in, out, 2 * MIB);
	for (unsigned int i = 0; i < 4; i++)
		iov[i] = (struct iovec){ in + (3 - i) * 512 * KIB, 512 * KIB };
	assert_int_equal(harness_iov(&user, BDEV_READ, MIB, iov, 4), 0);
	for (unsigned int i = 0; i < 4; i++)
		assert_memory_equal(iov[i].iov_base, out + i * 512 * KIB, 512 * KIB);
	assert_int_equal(harness_rw(&user, BDEV_READ, 16 * MIB - 512, in, 512), 0);
	assert_memory_equal(in, out, 512);
	assert_int_equal(harness_rw(&user, BDEV_READ, 16 * MIB - 512, in, 1024), -EINVAL);
	assert_int_equal(harness_rw(&user, BDEV_READ, 1, in, 512), -EINVAL);
	finish(&user);
	free(out);
	free(in);
}

/* More buffers than one system call takes. */
static void test_many_buffers(void **state)
{
	enum { COUNT = 2500 };
	unsigned char *out = harness_pages(COUNT * 1024), *in = harness_pages(COUNT * 1024);
	struct iovec *iov = calloc(COUNT, sizeof(*iov));
	struct harness_user user;

	(void)state;
	start(&user, "f0", 8 * MIB);
	harness_fill(out, COUNT * 512, 3);
	for (unsigned int i = 0; i < COUNT; i++)
		iov[i] = (struct iovec){ out + i * 512, 512 };
	assert_int_equal(harness_iov(&user, BDEV_WRITE, 4096, iov, COUNT), 0);
	for (unsigned int i = 0; i < COUNT; i++)
		iov[i].iov_base = in + i * 1024;
	assert_int_equal(harness_iov(&user, BDEV_READ, 4096, iov, COUNT), 0);
	for (unsigned int i = 0; i < COUNT; i++)
		assert_memory_equal(in + i * 1024, out + i * 512, 512);
	finish(&user);
	free(iov);
	free(out);
	free(in);
}

/* Addresses and lengths that O_DIRECT refuses, in requests larger than a bounce buffer. */
static void test_unaligned(void **state)
{
	unsigned char *out = harness_pages(2 * MIB), *in = harness_pages(2 * MIB);
	struct harness_user user;
	struct iovec iov[3];

	(void)state;
	start(&user, "f0", 8 * MIB);
	harness_fill(out, 2 * MIB, 4);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 512, out + 1, MIB), 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 512, in + 3, MIB), 0);
	assert_memory_equal(in + 3, out + 1, MIB);
	assert_int_equal(harness_rw(&user, BDEV_READ, 512, in, MIB), 0);
	assert_memory_equal(in, out + 1, MIB);
	/* 100 + 300 KiB + what makes it whole blocks. */
	iov[0] = (struct iovec){ out, 100 };
	iov[1] = (struct iovec){ out + 100, 300 * KIB };
	iov[2] = (struct iovec){ out + 100 + 300 * KIB, 412 };
	assert_int_equal(harness_iov(&user, BDEV_WRITE, 4 * MIB, iov, 3), 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 4 * MIB, in, 300 * KIB + 512), 0);
	assert_memory_equal(in, out, 300 * KIB + 512);
	for (unsigned int i = 0; i < 3; i++)
		iov[i].iov_base = in + MIB + ((unsigned char *)iov[i].iov_base - out);
	assert_int_equal(harness_iov(&user, BDEV_READ, 4 * MIB, iov, 3), 0);
	assert_memory_equal(in + MIB, out, 300 * KIB + 512);
	finish(&user);
	free(out);
	free(in);
}

/* More bounced requests at once than there are bounce buffers. */
static void test_many_unaligned(void **state)
{
	enum { COUNT = 100, SIZE = 64 * 1024 };
	unsigned char *mem = harness_pages(COUNT * SIZE + 4096), *in = harness_pages(SIZE);
	struct harness_io *io = aligned_alloc(64, COUNT * sizeof(*io));
	struct iovec iov[COUNT];
	struct harness_user user;

	(void)state;
	start(&user, "f0", COUNT * SIZE);
	harness_fill(mem, COUNT * SIZE + 4096, 5);
	memset(io, 0, COUNT * sizeof(*io));
	for (unsigned int i = 0; i < COUNT; i++) {
		iov[i] = (struct iovec){ mem + i * SIZE + 1, SIZE };
		io[i].io = (struct bdev_io){
			.type = BDEV_WRITE, .offset = i * SIZE, .length = SIZE,
			.iov = &iov[i], .iovcnt = 1,
		};
		harness_io_start(&io[i], &user);
	}
	for (unsigned int i = 0; i < COUNT; i++)
		assert_int_equal(harness_io_wait(&io[i]), 0);
	for (unsigned int i = 0; i < COUNT; i++) {
		file_bytes(harness_path("f0"), i * SIZE, in, SIZE);
		assert_memory_equal(in, mem + i * SIZE + 1, SIZE);
	}
	assert_int_equal(bdev_channel_inflight(user.ch), 0);
	finish(&user);
	free(io);
	free(mem);
	free(in);
}

/* More requests at once than a ring has entries, from two reactors where there are two. */
static void test_deep_queue(void **state)
{
	enum { COUNT = 6000 };
	struct harness_io *io = aligned_alloc(64, COUNT * sizeof(*io));
	unsigned char *mem = harness_pages(COUNT * 512), *in = harness_pages(COUNT * 512);
	struct iovec *iov = calloc(COUNT, sizeof(*iov));
	struct harness_user user[2];

	(void)state;
	start(&user[0], "f0", COUNT * 512);
	harness_open(&user[1], "f0", reactor_count() - 1);
	harness_fill(mem, COUNT * 512, 7);
	memset(io, 0, COUNT * sizeof(*io));
	for (int pass = 0; pass < 2; pass++) {
		unsigned char *from = pass ? in : mem;

		for (unsigned int i = 0; i < COUNT; i++) {
			iov[i] = (struct iovec){ from + i * 512, 512 };
			io[i].io = (struct bdev_io){
				.type = pass ? BDEV_READ : BDEV_WRITE, .offset = i * 512,
				.length = 512, .iov = &iov[i], .iovcnt = 1,
			};
			harness_io_start(&io[i], &user[i % 2]);
		}
		for (unsigned int i = 0; i < COUNT; i++)
			assert_int_equal(harness_io_wait(&io[i]), 0);
	}
	assert_memory_equal(in, mem, COUNT * 512);
	harness_close(&user[1]);
	finish(&user[0]);
	free(iov);
	free(io);
	free(mem);
	free(in);
}

/* The same 64 MiB again and again in one address range. */
static void *folded_memory(size_t len)
{
	int fd = memfd_create("folded", MFD_CLOEXEC);
	char *p = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	assert_true(p != MAP_FAILED && fd >= 0);
	assert_int_equal(ftruncate(fd, 64 * MIB), 0);
	for (size_t at = 0; at < len; at += 64 * MIB) {
		size_t n = MIN(len - at, (size_t)64 * MIB);

		assert_ptr_equal(mmap(p + at, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
				      fd, 0), p + at);
	}
	close(fd);
	return p;
}

/* More bytes than one system call does: as one buffer, and as many. */
static void test_huge_requests(void **state)
{
	const size_t len = (2048ull + 64) * MIB;
	unsigned char *mem = folded_memory(len), mark[512];
	struct harness_user user;
	struct iovec iov[33];

	(void)state;
	start(&user, "f0", len + MIB);
	memset(mark, 0x5a, sizeof(mark));
	/* The last block of the request, which ends at byte `len`. */
	assert_int_equal(harness_rw(&user, BDEV_WRITE, len - 512, mark, 512), 0);
	memset(mem, 0xff, MIB);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, mem, len), 0);
	assert_memory_equal(mem + len - 512, mark, 512);
	assert_int_equal(mem[0], 0);
	memset(mem, 0xff, 64 * MIB);
	for (unsigned int i = 0; i < 33; i++)
		iov[i] = (struct iovec){ mem + (size_t)i * 64 * MIB, 64 * MIB };
	assert_int_equal(harness_iov(&user, BDEV_READ, 0, iov, 33), 0);
	assert_memory_equal(mem + len - 512, mark, 512);
	assert_int_equal(mem[0], 0);
	munmap(mem, len);
	finish(&user);
}

/* ------- discard and zeroes ------- */

static void test_zeroes(void **state)
{
	struct harness_user user;
	uint64_t full;

	(void)state;
	start(&user, "f0", 8 * MIB);
	assert_true(user.desc.bdev->discard_granularity >= 512);
	zero_kinds(&user);
	/* Zeroes that keep their space keep it, the others give it back. */
	assert_int_equal(harness_range(&user, BDEV_WRITE_ZEROES, 0, 8 * MIB, BDEV_IO_NO_UNMAP), 0);
	assert_int_equal(harness_range(&user, BDEV_FLUSH, 0, 0, 0), 0);
	full = file_allocated(harness_path("f0"));
	assert_true(full >= 8 * MIB);
	assert_int_equal(harness_range(&user, BDEV_DISCARD, 0, 4 * MIB, 0), 0);
	assert_true(file_allocated(harness_path("f0")) <= full - 3 * MIB);
	assert_int_equal(harness_range(&user, BDEV_WRITE_ZEROES, 4 * MIB, 4 * MIB, 0), 0);
	assert_true(file_allocated(harness_path("f0")) <= MIB);
	finish(&user);
}

/* Ranges as large as a guest can name. */
static void test_huge_ranges(void **state)
{
	const uint64_t len = 0xffffffffull * 512;
	struct harness_user user;

	(void)state;
	start(&user, "f0", len + 512);
	assert_int_equal(harness_range(&user, BDEV_DISCARD, 512, len, 0), 0);
	assert_int_equal(harness_range(&user, BDEV_WRITE_ZEROES, 512, len, 0), 0);
	assert_int_equal(harness_range(&user, BDEV_DISCARD, 1024, len, 0), -EINVAL);
	finish(&user);
}

/* tmpfs has no ZERO_RANGE: zeroes that keep their space are written by hand. */
static void test_tmpfs(void **state)
{
	char path[] = "/dev/shm/sp.XXXXXX";
	struct harness_result hr;
	struct harness_user user;
	struct statfs fs;
	int fd;

	(void)state;
	if (statfs("/dev/shm", &fs) < 0 || fs.f_type != 0x01021994 || (fd = mkstemp(path)) < 0) {
		harness_skip("/dev/shm is no writable tmpfs");
		return;
	}
	assert_int_equal(ftruncate(fd, 8 * MIB), 0);
	close(fd);
	assert_int_equal(create("t0", path, &hr), 0);
	harness_open(&user, "t0", 0);
	zero_kinds(&user);
	zero_kinds(&user);	/* now it is remembered */
	finish(&user);
	unlink(path);
}

/* ------- refusals ------- */

static void test_refusals(void **state)
{
	char path[200], reason[BDEV_REASON_MAX];
	struct harness_result hr;
	struct stat st;

	(void)state;
	assert_int_equal(create("f0", "/nonexistent/file", &hr), -ENOENT);
	assert_string_equal(hr.res.reason,
			    "/nonexistent/file: cannot be opened: No such file or directory");
	assert_int_equal(create("f0", "/tmp", &hr), -EISDIR);
	assert_int_equal(create("f0", "/dev/null", &hr), -EINVAL);
	assert_non_null(strstr(hr.res.reason, "neither a regular file nor a block device"));
	assert_int_equal(mkfifo(harness_path("fifo"), 0600), 0);
	assert_int_equal(create("f0", harness_path("fifo"), &hr), -EINVAL);
	strcpy(path, harness_file("empty", 0));
	assert_int_equal(create("f0", path, &hr), -EINVAL);
	snprintf(reason, sizeof(reason), "%s: is smaller than one block of 512 bytes", path);
	assert_string_equal(hr.res.reason, reason);
	assert_int_equal(create("f0", harness_file("small", 511), &hr), -EINVAL);
	assert_int_equal(create("", path, &hr), -EINVAL);
	assert_int_equal(create(NULL, path, &hr), -EINVAL);
	assert_int_equal(create("f0", NULL, &hr), -EINVAL);
	assert_int_equal(create("f0", "", &hr), -EINVAL);
	struct bdev_file_opts opts = { .name = "f0", .filename = harness_file("ok", MIB),
				       .block_size = 100 };

	assert_int_equal(create_opts(&opts, &hr), -EINVAL);
	opts.block_size = 0;
	opts.uuid = "nonsense";
	assert_int_equal(create_opts(&opts, &hr), -EINVAL);
	assert_null(bdev_find("f0"));
	/* That one failed after the file was open and locked: nothing of it is left. */
	opts.uuid = NULL;
	assert_int_equal(create_opts(&opts, &hr), 0);
	assert_int_equal(create_opts(&opts, &hr), -EEXIST);
	assert_int_equal(harness_delete("f0"), 0);
	assert_int_equal(stat(harness_path("ok"), &st), 0);
}

static void test_long_path(void **state)
{
	struct harness_result hr;
	char path[3000];

	(void)state;
	strcpy(path, "/tmp");
	while (strlen(path) < 2900)
		strcat(path, "/./././././././.");
	strcat(path, "/nonexistent");
	assert_int_equal(create("f0", path, &hr), -ENOENT);
	assert_non_null(strstr(hr.res.reason,
			       "/nonexistent: cannot be opened: No such file or directory"));
}

static void test_readonly(void **state)
{
	struct bdev_file_opts opts = { .kind = BDEV_FILE_AIO, .name = "f0", .readonly = true,
				       .block_size = 4096 };
	unsigned char *buf = harness_pages(4096);
	struct harness_result hr;
	struct harness_user user;

	(void)state;
	opts.filename = harness_file("f0", MIB);
	assert_int_equal(chmod(opts.filename, 0400), 0);
	assert_int_equal(create_opts(&opts, &hr), 0);
	assert_string_equal(hr.res.bdev->ops->product_name, "AIO disk");
	assert_true(bdev_file_get_opts(hr.res.bdev)->readonly);
	assert_string_equal(bdev_file_get_opts(hr.res.bdev)->filename, harness_path("f0"));
	assert_int_equal(hr.res.bdev->block_size, 4096);
	harness_open(&user, "f0", 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 4096), 0);
	assert_int_equal(harness_range(&user, BDEV_FLUSH, 0, 0, 0), 0);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, buf, 4096), -EROFS);
	assert_int_equal(harness_range(&user, BDEV_DISCARD, 0, 4096, 0), -EROFS);
	assert_int_equal(harness_range(&user, BDEV_WRITE_ZEROES, 0, 4096, 0), -EROFS);
	assert_int_equal(harness_rw(&user, BDEV_READ, 512, buf, 4096), -EINVAL);
	finish(&user);
	free(buf);
}

/* ------- locks ------- */

static void test_locks(void **state)
{
	struct bdev_file_opts rw = { .name = "rw", .kind = BDEV_FILE_AIO };
	struct bdev_file_opts rw2 = { .name = "rw2", .kind = BDEV_FILE_URING };
	struct bdev_file_opts ro = { .name = "ro", .readonly = true };
	struct bdev_file_opts ro2 = { .name = "ro2", .readonly = true };
	struct bdev_file_opts nolock = { .name = "nolock", .no_lock = true };
	struct harness_result hr;
	char path[64];

	(void)state;
	strcpy(path, harness_file("img", MIB));
	rw.filename = rw2.filename = ro.filename = ro2.filename = nolock.filename = path;
	assert_int_equal(create_opts(&rw, &hr), 0);
	assert_int_equal(create_opts(&rw2, &hr), -EBUSY);
	assert_ptr_equal(strstr(hr.res.reason, path), hr.res.reason);
	assert_non_null(strstr(hr.res.reason, "is locked by another bdev of this target"));
	assert_non_null(strstr(hr.res.reason, "byte 201"));
	assert_int_equal(create_opts(&ro, &hr), -EBUSY);
	assert_int_equal(create_opts(&nolock, &hr), 0);
	assert_int_equal(harness_delete("nolock"), 0);
	assert_int_equal(create_opts(&rw2, &hr), -EBUSY);
	assert_int_equal(harness_delete("rw"), 0);
	/* Readers share, and keep writers out. */
	assert_int_equal(create_opts(&ro, &hr), 0);
	assert_int_equal(create_opts(&ro2, &hr), 0);
	assert_int_equal(create_opts(&rw, &hr), -EBUSY);
	assert_int_equal(harness_delete("ro"), 0);
	assert_int_equal(create_opts(&rw, &hr), -EBUSY);
	assert_int_equal(harness_delete("ro2"), 0);
	assert_int_equal(create_opts(&rw, &hr), 0);
	assert_int_equal(harness_delete("rw"), 0);
}

/* The lock goes with the bdev at once, also when a ring had the file registered. */
static void test_lock_is_freed(void **state)
{
	struct harness_result hr;
	struct harness_user user;
	char path[64], buf[512] __attribute__((aligned(512)));

	(void)state;
	strcpy(path, harness_file("img", MIB));
	for (int i = 0; i < 20; i++) {
		assert_int_equal(create("f0", path, &hr), 0);
		harness_open(&user, "f0", 0);
		assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), 0);
		bdev_channel_put(user.ch);
		bdev_close(&user.desc);
		assert_int_equal(harness_delete("f0"), 0);
	}
}

/* A user that takes its channel as soon as it can be had, as a ring does. */
struct late_user {
	struct bdev_desc desc;
	struct bdev_channel *ch;
	int error;	/* of the last try without a channel */
	bool keen;	/* tries when it is told to */
};

static void late_try(struct late_user *user)
{
	user->ch = bdev_channel_get(&user->desc, reactor_by_index(0));
	user->error = user->ch ? 0 : errno;
}

static void late_event(struct bdev_desc *desc, enum bdev_event event)
{
	struct late_user *user = container_of(desc, struct late_user, desc);

	if (event == BDEV_EVENT_READY && user->keen && !user->ch)
		late_try(user);
}

static void late_open(struct late_user *user, const char *name, bool keen)
{
	*user = (struct late_user){ .desc.event = late_event, .keen = keen };
	assert_int_equal(bdev_open(name, false, &user->desc), 0);
	late_try(user);
	/* A worker is asked: control does not wait. EBUSY: what it found for an earlier user. */
	assert_true(user->error == EAGAIN || user->error == EBUSY);
	assert_true(file_of(user->desc.bdev)->lock_busy);
}

static bool late_has(void *arg)
{
	return ((struct late_user *)arg)->ch;
}

static bool late_gets(void *arg)
{
	struct late_user *user = arg;

	if (!user->ch)
		late_try(user);
	return user->ch;
}

static bool late_refused(void *arg)
{
	assert_false(late_gets(arg));
	return ((struct late_user *)arg)->error == EBUSY;
}

static bool late_unlocked(void *arg)
{
	const struct file_bdev *fb = file_of(((struct late_user *)arg)->desc.bdev);

	return !fb->locked && !fb->lock_busy;
}

static void test_lock_in_use(void **state)
{
	struct bdev_file_opts one = { .name = "one", .lock_in_use = true };
	struct bdev_file_opts two = { .name = "two", .lock_in_use = true };
	struct late_user a, b;
	struct harness_result hr;
	char path[64];

	(void)state;
	strcpy(path, harness_file("img", MIB));
	one.filename = two.filename = path;
	assert_int_equal(create_opts(&one, &hr), 0);
	assert_int_equal(create_opts(&two, &hr), 0);
	late_open(&a, "one", true);
	harness_wait_until(late_has, &a);
	late_open(&b, "two", true);
	harness_wait_until(late_refused, &b);
	/* It comes when the other has put its last channel. */
	bdev_channel_put(a.ch);
	harness_wait_until(late_gets, &b);
	bdev_channel_put(b.ch);
	/* One that has no use for it any more does not keep it. */
	b.ch = NULL;
	b.keen = false;
	harness_wait_until(late_unlocked, &b);
	late_try(&b);
	a.ch = NULL;
	harness_wait_until(late_gets, &a);
	bdev_channel_put(a.ch);
	bdev_close(&a.desc);
	bdev_close(&b.desc);
	/* Deleted while it is taken. */
	late_open(&b, "two", false);
	bdev_close(&b.desc);
	assert_int_equal(harness_delete("two"), 0);
	assert_int_equal(harness_delete("one"), 0);
}

/* ------- size changes ------- */

static int rescan(const char *name, struct harness_result *hr)
{
	bdev_file_rescan(name, &bdev_uring_ops, harness_result_init(hr));
	return harness_result(hr);
}

static void test_rescan(void **state)
{
	unsigned char *buf = harness_pages(4096);
	struct harness_result hr;
	struct harness_user user;
	char path[64];

	(void)state;
	start(&user, "f0", MIB);
	strcpy(path, harness_path("f0"));
	assert_int_equal(rescan("f0", &hr), 0);
	assert_int_equal(user.resizes, 0);
	assert_int_equal(truncate(path, 2 * MIB + 511), 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, MIB, buf, 512), -EINVAL);
	assert_int_equal(rescan("f0", &hr), 0);
	assert_int_equal(user.resizes, 1);
	assert_int_equal(bdev_size(user.desc.bdev), 2 * MIB);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 2 * MIB - 4096, buf, 4096), 0);
	/* Cut off behind our back: an error, not old or invented data. */
	assert_int_equal(truncate(path, MIB), 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 2 * MIB - 4096, buf, 4096), -EIO);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 4096), 0);
	assert_int_equal(rescan("f0", &hr), 0);
	assert_int_equal(user.resizes, 2);
	assert_int_equal(bdev_size(user.desc.bdev), MIB);
	assert_int_equal(harness_rw(&user, BDEV_READ, 2 * MIB - 4096, buf, 4096), -EINVAL);
	assert_int_equal(truncate(path, 100), 0);
	assert_int_equal(rescan("f0", &hr), -EINVAL);
	assert_int_equal(bdev_size(user.desc.bdev), MIB);
	assert_int_equal(rescan("nope", &hr), -ENODEV);
	bdev_file_rescan("f0", &bdev_aio_ops, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), -ENODEV);
	finish(&user);
	free(buf);
}

static void test_delete_during_rescan(void **state)
{
	struct harness_result scan[3], del, hr;

	(void)state;
	assert_int_equal(create("f0", harness_file("f0", MIB), &hr), 0);
	for (int i = 0; i < 3; i++)
		bdev_file_rescan("f0", &bdev_uring_ops, harness_result_init(&scan[i]));
	bdev_delete("f0", NULL, harness_result_init(&del));
	assert_int_equal(harness_result(&del), 0);
	for (int i = 0; i < 3; i++)
		assert_int_equal(harness_result(&scan[i]), -ENODEV);
}

static void test_out_of_memory(void **state)
{
	char path[64], buf[1024] __attribute__((aligned(512)));
	struct harness_result hr;
	struct harness_user user;
	unsigned int n = 0;

	(void)state;
	strcpy(path, harness_file("f0", MIB));
	for (;;) {
		int rc;

		harness_fail_alloc(++n);
		rc = create("f0", path, &hr);
		if (!harness_fail_reached())
			break;
		assert_int_equal(rc, -ENOMEM);
		assert_null(bdev_find("f0"));
		assert_true(n < 50);
	}
	harness_fail_alloc(0);
	assert_true(n > 1);
	harness_open(&user, "f0", 0);
	harness_sleep(5);
	/* Without any bounce buffer a request fails; the next one finds memory again. */
	harness_fail_alloc(1);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf + 1, 512), -ENOMEM);
	assert_true(harness_fail_reached());
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf + 1, 512), 0);
	harness_fail_alloc(1);
	bdev_file_rescan("f0", &bdev_uring_ops, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), -ENOMEM);
	harness_fail_alloc(0);
	finish(&user);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_read_write),
		cmocka_unit_test(test_many_buffers),
		cmocka_unit_test(test_unaligned),
		cmocka_unit_test(test_many_unaligned),
		cmocka_unit_test(test_deep_queue),
		cmocka_unit_test(test_huge_requests),
		cmocka_unit_test(test_zeroes),
		cmocka_unit_test(test_huge_ranges),
		cmocka_unit_test(test_tmpfs),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_long_path),
		cmocka_unit_test(test_readonly),
		cmocka_unit_test(test_locks),
		cmocka_unit_test(test_lock_is_freed),
		cmocka_unit_test(test_lock_in_use),
		cmocka_unit_test(test_rescan),
		cmocka_unit_test(test_delete_during_rescan),
		cmocka_unit_test(test_out_of_memory),
	};

	return harness_main("bdev_file", tests, ARRAY_SIZE(tests), harness_setup_two,
			    harness_teardown);
}
