/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Opening a file or block device and learning its geometry: size, block sizes,
 * what O_DIRECT asks of buffers, what discard and the write cache are like.
 * Everything here may block and so runs on a worker, which owns the file_bdev
 * meanwhile. Each refusal leaves a sentence in fb->reason that starts with the
 * path, and nothing open.
 *
 * O_DIRECT is wanted because the guest has a page cache of its own. It is given
 * up, with a notice, where the file system has none or wants larger alignment
 * than the bdev's block size: that would take a read-modify-write, which cannot
 * be atomic against the guest's other requests.
 */
#include "bdev/bdev_file.h"

#include "reactor/log.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Older headers lack the two fields of statx(2) that Linux 6.1 brought. */
#ifdef STATX_DIOALIGN
#define HAVE_DIOALIGN 1
#else
#define HAVE_DIOALIGN 0
#endif

#define PROBE_ALIGN_MAX 4096
#define PATH_SHOWN 120

int file_fail(struct file_bdev *fb, int status, const char *fmt, ...)
{
	const char *path = fb->opts.filename;
	size_t len = strlen(path);
	bool cut = len > PATH_SHOWN;
	va_list ap;
	int n;

	/* Of a long path the end says more. */
	n = snprintf(fb->reason, sizeof(fb->reason), "%s%s: ", cut ? "..." : "",
		     cut ? path + len - PATH_SHOWN : path);
	va_start(ap, fmt);
	vsnprintf(fb->reason + n, sizeof(fb->reason) - (size_t)n, fmt, ap);
	va_end(ap);
	return status;
}

/* An attribute of the device's queue, which a partition has in its parent; false: unknown. */
static bool queue_text(dev_t dev, const char *name, char *buf, size_t size)
{
	static const char *const where[] = { "queue", "../queue" };

	for (size_t i = 0; i < ARRAY_SIZE(where); i++) {
		char path[128];
		bool ok;
		FILE *f;

		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s/%s", major(dev), minor(dev),
			 where[i], name);
		f = fopen(path, "re");
		if (!f)
			continue;
		ok = fgets(buf, (int)size, f);
		fclose(f);
		if (ok) {
			buf[strcspn(buf, "\n")] = '\0';
			return true;
		}
	}
	return false;
}

static uint64_t queue_number(dev_t dev, const char *name)
{
	char buf[64];

	return queue_text(dev, name, buf, sizeof(buf)) ? strtoull(buf, NULL, 10) : 0;
}

static bool is_power_of_2(uint64_t v)
{
	return v && !(v & (v - 1));
}

/* ------- opening ------- */

static int open_failed(struct file_bdev *fb, int rc)
{
	bool no_write = rc == -EACCES || rc == -EROFS || rc == -EPERM || rc == -ETXTBSY;

	if (!fb->opts.readonly && no_write)
		return file_fail(fb, rc, "cannot be opened for writing: %s", strerror(-rc));
	return file_fail(fb, rc, "cannot be opened: %s", strerror(-rc));
}

static int check_kind(struct file_bdev *fb, const struct stat *st)
{
	if (S_ISREG(st->st_mode) || S_ISBLK(st->st_mode))
		return 0;
	return file_fail(fb, S_ISDIR(st->st_mode) ? -EISDIR : -EINVAL,
			 "is neither a regular file nor a block device");
}

static int open_fd(struct file_bdev *fb, struct stat *st)
{
	int flags = (fb->opts.readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY;
	int rc;

	/* Before the open, which would hang on a fifo; and after, for what was really opened. */
	if (stat(fb->opts.filename, st) < 0)
		return open_failed(fb, -errno);
	rc = check_kind(fb, st);
	if (rc < 0)
		return rc;
	fb->direct = true;
	fb->fd = open(fb->opts.filename, flags | O_DIRECT);
	if (fb->fd < 0 && errno == EINVAL) {
		log_notice("%s: its file system has no O_DIRECT; I/O goes through the page cache",
			   fb->opts.filename);
		fb->direct = false;
		fb->fd = open(fb->opts.filename, flags);
	}
	if (fb->fd < 0 || fstat(fb->fd, st) < 0)
		return open_failed(fb, -errno);
	fb->is_block = S_ISBLK(st->st_mode);
	return check_kind(fb, st);
}

static bool same_file(const struct stat *a, const struct stat *b)
{
	/* A device node may have been made anew, in another place: the device counts. */
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev;
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/*
 * Goes on with a predecessor's open file, which has its locks with it and, if it
 * had to give up O_DIRECT, that as well.
 */
static int adopt_fd(struct file_bdev *fb, struct stat *st)
{
	int flags = fcntl(fb->fd, F_GETFL);
	struct stat path;

	if (fstat(fb->fd, st) < 0 || flags < 0)
		return file_fail(fb, -errno, "cannot be taken over: %s", strerror(errno));
	if (stat(fb->opts.filename, &path) < 0)
		return open_failed(fb, -errno);
	if (!same_file(&path, st))
		return file_fail(fb, -ESTALE, "is another file now than the one handed over");
	if ((flags & O_ACCMODE) != (fb->opts.readonly ? O_RDONLY : O_RDWR))
		return file_fail(fb, -EINVAL, "was not opened for %s by the process before",
				 fb->opts.readonly ? "reading only" : "writing");
	fb->direct = flags & O_DIRECT;
	fb->is_block = S_ISBLK(st->st_mode);
	return check_kind(fb, st);
}

/*
 * Whether it lies in a file system that only this host can have mounted. What several
 * hosts reach (block devices, NFS and the like) may have locks that not all of them see.
 */
static bool is_local(const struct file_bdev *fb)
{
	static const unsigned long local[] = {
		EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, F2FS_SUPER_MAGIC, TMPFS_MAGIC,
	};
	struct statfs fs;

	if (fb->is_block || fstatfs(fb->fd, &fs) < 0)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(local); i++) {
		if ((unsigned long)fs.f_type == local[i])
			return true;
	}
	return false;
}

/* ------- geometry ------- */

int file_read_size(const struct file_bdev *fb, uint64_t *size)
{
	uint64_t bytes;
	struct stat st;

	if (fb->is_block) {
		if (ioctl(fb->fd, BLKGETSIZE64, &bytes) < 0)
			return -errno;
	} else {
		if (fstat(fb->fd, &st) < 0)
			return -errno;
		bytes = (uint64_t)st.st_size;
	}
	*size = bytes - bytes % fb->bdev.block_size;
	return 0;
}

static int block_geometry(struct file_bdev *fb, dev_t dev)
{
	struct bdev *bdev = &fb->bdev;
	int logical = 0, ro = 0;
	unsigned int physical = 0;
	char cache[32];

	if (ioctl(fb->fd, BLKSSZGET, &logical) < 0 || ioctl(fb->fd, BLKPBSZGET, &physical) < 0)
		return file_fail(fb, -errno, "cannot read the device's block size: %s",
				 strerror(errno));
	if (!fb->opts.readonly && ioctl(fb->fd, BLKROGET, &ro) == 0 && ro)
		return file_fail(fb, -EROFS, "cannot be opened for writing: the device is read-only");
	if (!bdev->block_size)
		bdev->block_size = (uint32_t)logical;
	if (bdev->block_size < (uint32_t)logical ||
	    (bdev->block_size != 512 && bdev->block_size != 4096))
		return file_fail(fb, -EINVAL,
				 "the device has blocks of %d bytes, a block size of %u cannot be had",
				 logical, bdev->block_size);
	bdev->physical_block_size = physical;
	bdev->optimal_io_size = (uint32_t)queue_number(dev, "optimal_io_size");
	bdev->write_cache = !(queue_text(dev, "write_cache", cache, sizeof(cache)) &&
			      strcmp(cache, "write through") == 0);
	if (queue_number(dev, "discard_max_bytes")) {
		bdev->supported |= 1u << BDEV_DISCARD;
		bdev->discard_granularity =
			MAX((uint32_t)queue_number(dev, "discard_granularity"), bdev->block_size);
	}
	return 0;
}

static void regular_geometry(struct file_bdev *fb, const struct stat *st)
{
	struct bdev *bdev = &fb->bdev;
	uint32_t preferred = (uint32_t)MIN((uint64_t)st->st_blksize, (uint64_t)1 << 30);

	if (!bdev->block_size)
		bdev->block_size = 512;
	if (!is_power_of_2(preferred))
		preferred = bdev->block_size;
	bdev->physical_block_size = MIN(preferred, 4096u);
	/* Below that st_blksize is the page size and says nothing about the storage. */
	bdev->optimal_io_size = preferred > 4096 ? preferred : 0;
	bdev->write_cache = true;
	bdev->supported |= 1u << BDEV_DISCARD;
	bdev->discard_granularity = MIN(preferred, 4096u);
}

/* ------- O_DIRECT ------- */

static void go_buffered(struct file_bdev *fb, const char *why)
{
	int flags = fcntl(fb->fd, F_GETFL);

	if (flags < 0 || fcntl(fb->fd, F_SETFL, flags & ~O_DIRECT) < 0)
		log_warning("%s: cannot switch O_DIRECT off: %m", fb->opts.filename);
	log_notice("%s: %s; I/O goes through the page cache", fb->opts.filename, why);
	fb->direct = false;
}

/* Ask by reading: 512 or 4096, or 0 when no alignment will do. */
static uint32_t probe_alignment(const struct file_bdev *fb)
{
	uint32_t found = 0;
	char *buf = aligned_alloc(PROBE_ALIGN_MAX, 2 * PROBE_ALIGN_MAX);

	if (!buf)
		return PROBE_ALIGN_MAX;
	for (uint32_t align = 512; align <= PROBE_ALIGN_MAX && !found; align *= 8) {
		/* At an offset and address that are aligned so much, and no more. */
		if (pread(fb->fd, buf + align, align, align) >= 0 || errno != EINVAL)
			found = align;
	}
	free(buf);
	return found;
}

/* What the kernel says; false when it does not say. */
static bool stated_alignment(const struct file_bdev *fb, uint32_t *mem, uint32_t *len)
{
#if HAVE_DIOALIGN
	struct statx stx;

	if (statx(fb->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
	    (stx.stx_mask & STATX_DIOALIGN)) {
		*mem = stx.stx_dio_mem_align;
		*len = stx.stx_dio_offset_align;
		return true;
	}
#else
	(void)fb;
	(void)mem;
	(void)len;
#endif
	return false;
}

static void set_alignment(struct file_bdev *fb)
{
	uint32_t mem = 0, len = 0;

	if (!fb->direct)
		return;
	if (!stated_alignment(fb, &mem, &len))
		mem = len = probe_alignment(fb);
	if (!is_power_of_2(mem) || !is_power_of_2(len)) {
		go_buffered(fb, "this file cannot do O_DIRECT");
	} else if (len > fb->bdev.block_size || mem > PROBE_ALIGN_MAX) {
		go_buffered(fb, "its file system wants larger blocks for O_DIRECT");
	} else {
		fb->mem_mask = mem - 1;
		fb->len_mask = len - 1;
	}
}

/* ------- all of it ------- */

static int open_all(struct file_bdev *fb)
{
	struct bdev *bdev = &fb->bdev;
	bool adopted = fb->fd >= 0;
	uint64_t size = 0;
	struct stat st;
	int rc;

	rc = adopted ? adopt_fd(fb, &st) : open_fd(fb, &st);
	if (rc < 0)
		return rc;
	if (!adopted && !fb->opts.no_lock && !fb->opts.lock_in_use) {
		rc = file_lock(fb);
		if (rc < 0)
			return rc;
	}
	fb->local = is_local(fb);
	bdev->block_size = fb->opts.block_size;
	bdev->readonly = fb->opts.readonly;
	bdev->supported = 1u << BDEV_READ | 1u << BDEV_WRITE | 1u << BDEV_FLUSH |
			  1u << BDEV_WRITE_ZEROES;
	if (fb->is_block) {
		rc = block_geometry(fb, st.st_rdev);
		if (rc < 0)
			return rc;
	} else {
		regular_geometry(fb, &st);
	}
	if (!is_power_of_2(bdev->physical_block_size))
		bdev->physical_block_size = bdev->block_size;
	bdev->physical_block_size = MAX(bdev->physical_block_size, bdev->block_size);
	rc = file_read_size(fb, &size);
	if (rc < 0)
		return file_fail(fb, rc, "cannot read its size: %s", strerror(-rc));
	if (size == 0)
		return file_fail(fb, -EINVAL, "is smaller than one block of %u bytes",
				 bdev->block_size);
	atomic_store(&bdev->size, size);
	set_alignment(fb);
	return 0;
}

int file_open(struct file_bdev *fb)
{
	int rc = open_all(fb);

	if (rc < 0)
		file_close(fb);
	return rc;
}

void file_close(struct file_bdev *fb)
{
	if (fb->fd < 0)
		return;
	/*
	 * Explicitly: a ring that had the file registered may hold on to it for
	 * a moment longer, and the locks with it.
	 */
	if (!fb->opts.no_lock && !bdev_is_shared())
		file_unlock(fb->fd);
	close(fb->fd);
	fb->fd = -1;
}
