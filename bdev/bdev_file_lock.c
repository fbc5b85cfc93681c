/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Image locks, byte for byte those of QEMU (file.locking), so that we and any
 * QEMU tool keep each other off one image.
 *
 * A user of an image has permissions: read, write, write-unchanged, resize,
 * numbered 0 to 3. It locks byte 100 + i for each that it uses and 200 + i for
 * each that it does not share with others; always with shared locks, so taking
 * one never conflicts. Then it asks, with F_OFD_GETLK for an exclusive lock,
 * whether anybody else holds 200 + i for what it uses or 100 + i for what it
 * does not share. Locking before asking lets two that start at once both
 * refuse, but never both go on.
 *
 * These are open-file-description locks: they belong to our fd, so two opens
 * within this process conflict like two processes do.
 */
#include "bdev/bdev_file.h"

#include "reactor/log.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOCK_TRIES 20
#define LOCK_PAUSE_US 50000
#define USED_BASE 100
#define UNSHARED_BASE 200
#define PERM_READ 0x1u
#define PERM_WRITE 0x2u
#define PERM_RESIZE 0x8u
#define PERMS 4

static const char *const perm_name[PERMS] = { "reading", "writing", "rewriting", "resizing" };

static int lock_op(int fd, int cmd, short type, int first, int count, struct flock *out)
{
	struct flock fl = {
		.l_type = type, .l_whence = SEEK_SET, .l_start = first, .l_len = count,
	};

	if (fcntl(fd, cmd, &fl) < 0)
		return -errno;
	if (out)
		*out = fl;
	return 0;
}

/* Whether the fdinfo file has a lock on this byte; its lines name no other file's locks. */
static bool fdinfo_has_lock(const char *path, int byte)
{
	FILE *f = fopen(path, "re");
	char line[256];
	bool found = false;

	if (!f)
		return false;
	while (!found && fgets(line, sizeof(line), f)) {
		unsigned long long start, end;

		if (strncmp(line, "lock:", 5) == 0 &&
		    sscanf(line, "lock: %*s %*s %*s %*s %*s %*s %llu %llu", &start, &end) == 2)
			found = start <= (unsigned)byte && (unsigned)byte <= end;
	}
	fclose(f);
	return found;
}

/* Whether process pid holds that byte of our file, by an fd other than ours. */
static bool process_holds(const struct file_bdev *fb, const struct stat *ours, long pid, int byte)
{
	char path[64];
	struct dirent *e;
	bool found = false;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%ld/fd", pid);
	dir = opendir(path);
	if (!dir)
		return false;
	while (!found && (e = readdir(dir))) {
		char *end;
		long fd = strtol(e->d_name, &end, 10);
		struct stat st;

		if (*end || end == e->d_name || (pid == getpid() && fd == fb->fd))
			continue;
		snprintf(path, sizeof(path), "/proc/%ld/fd/%ld", pid, fd);
		if (stat(path, &st) < 0 || st.st_dev != ours->st_dev || st.st_ino != ours->st_ino)
			continue;
		snprintf(path, sizeof(path), "/proc/%ld/fdinfo/%ld", pid, fd);
		found = fdinfo_has_lock(path, byte);
	}
	closedir(dir);
	return found;
}

/* The kernel does not tell who holds an OFD lock, /proc does; 0 when it does not either. */
static long find_holder(const struct file_bdev *fb, int byte)
{
	struct dirent *e;
	struct stat st;
	long found = 0;
	DIR *dir;

	if (fstat(fb->fd, &st) < 0)
		return 0;
	if (process_holds(fb, &st, getpid(), byte))
		return getpid();
	dir = opendir("/proc");
	if (!dir)
		return 0;
	while (!found && (e = readdir(dir))) {
		char *end;
		long pid = strtol(e->d_name, &end, 10);

		if (!*end && end != e->d_name && pid > 0 && pid != getpid() &&
		    process_holds(fb, &st, pid, byte))
			found = pid;
	}
	closedir(dir);
	return found;
}

static void process_name(long pid, char name[32])
{
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%ld/comm", pid);
	f = fopen(path, "re");
	if (!f || !fgets(name, 32, f))
		snprintf(name, 32, "?");
	else
		name[strcspn(name, "\n")] = '\0';
	if (f)
		fclose(f);
}

static int refuse(struct file_bdev *fb, int byte, const struct flock *fl)
{
	long pid = fl->l_pid > 0 || fb->quick ? fl->l_pid : find_holder(fb, byte);
	bool unshared = byte >= UNSHARED_BASE;
	char who[80], name[32];

	fb->lock_holder = pid;
	if (pid == getpid()) {
		snprintf(who, sizeof(who), "another bdev of this target");
	} else if (pid > 0) {
		process_name(pid, name);
		snprintf(who, sizeof(who), "another process, %ld (%s)", pid, name);
	} else {
		snprintf(who, sizeof(who), "another process");
	}
	return file_fail(fb, -EBUSY, "is locked by %s (QEMU image lock, byte %d): it %s %s", who,
			 byte, unshared ? "does not share" : "uses the image for",
			 perm_name[byte % 100]);
}

static int test_bytes(struct file_bdev *fb, int base, unsigned int perms)
{
	for (int i = 0; i < PERMS; i++) {
		struct flock fl = { .l_type = F_UNLCK };
		int rc;

		if (!(perms & (1u << i)))
			continue;
		rc = lock_op(fb->fd, F_OFD_GETLK, F_WRLCK, base + i, 1, &fl);
		if (rc < 0)
			return file_fail(fb, rc, "cannot test image lock %d: %s", base + i,
					 strerror(-rc));
		if (fl.l_type != F_UNLCK)
			return refuse(fb, base + i, &fl);
	}
	return 0;
}

static int take_bytes(struct file_bdev *fb, int base, unsigned int perms)
{
	for (int i = 0; i < PERMS; i++) {
		struct flock fl = { .l_pid = 0 };
		int rc;

		if (!(perms & (1u << i)))
			continue;
		rc = lock_op(fb->fd, F_OFD_SETLK, F_RDLCK, base + i, 1, NULL);
		/* Only an exclusive lock is in the way of ours; QEMU takes none. */
		if (rc == -EAGAIN || rc == -EACCES) {
			lock_op(fb->fd, F_OFD_GETLK, F_RDLCK, base + i, 1, &fl);
			return refuse(fb, base + i, &fl);
		}
		if (rc < 0)
			return rc;
	}
	return 0;
}

static int lock_once(struct file_bdev *fb)
{
	unsigned int used = PERM_READ | (fb->opts.readonly ? 0 : PERM_WRITE);
	unsigned int unshared = PERM_WRITE | PERM_RESIZE;
	int rc;

	rc = take_bytes(fb, USED_BASE, used);
	if (rc == 0)
		rc = take_bytes(fb, UNSHARED_BASE, unshared);
	if (rc == -EOPNOTSUPP || rc == -ENOSYS || rc == -EINVAL) {
		log_notice("%s: its file system has no locks; other users will not be noticed",
			   fb->opts.filename);
		return 0;
	}
	if (rc < 0 && rc != -EBUSY)
		return file_fail(fb, rc, "cannot take image locks: %s", strerror(-rc));
	if (rc == 0)
		rc = test_bytes(fb, UNSHARED_BASE, used);
	if (rc == 0)
		rc = test_bytes(fb, USED_BASE, unshared);
	if (rc < 0)
		file_unlock(fb->fd);
	return rc;
}

/*
 * A process that was killed keeps its locks until the kernel has torn down its
 * io_uring, some time after it is gone. So a lock that nobody is seen to hold gets
 * a second to go away: a crashed target can be started again at once.
 */
int file_lock(struct file_bdev *fb)
{
	int rc = lock_once(fb);

	for (int i = 0; i < LOCK_TRIES && rc == -EBUSY && fb->lock_holder <= 0; i++) {
		usleep(LOCK_PAUSE_US);
		rc = lock_once(fb);
	}
	return rc;
}

void file_unlock(int fd)
{
	lock_op(fd, F_OFD_SETLK, F_UNLCK, USED_BASE, PERMS, NULL);
	lock_op(fd, F_OFD_SETLK, F_UNLCK, UNSHARED_BASE, PERMS, NULL);
}

/* ------- lock_in_use ------- */

/*
 * Where the file lies on another machine, a call about its locks may wait for that
 * one. So a worker makes it, while rings that want to start are told to try again;
 * none gets a channel before the locks are ours, and they are dropped after the last
 * channel has gone. What nobody has come for when it is taken, is dropped again.
 */
static void take_run(struct job *job)
{
	struct file_bdev *fb = container_of(job, struct file_bdev, lock_job);

	fb->lock_status = lock_once(fb);
}

static void drop_run(struct job *job)
{
	file_unlock(container_of(job, struct file_bdev, lock_job)->fd);
}

static bool lock_ended(struct file_bdev *fb)
{
	fb->lock_busy = false;
	if (fb->dying)
		file_destroy(&fb->bdev);
	return !fb->dying;
}

static void drop_done(struct job *job)
{
	control_assert();
	lock_ended(container_of(job, struct file_bdev, lock_job));
}

CONTROL_ONLY static void lock_submit(struct file_bdev *fb, void (*run)(struct job *job),
				     void (*done)(struct job *job))
{
	fb->lock_busy = true;
	fb->lock_job.run = run;
	fb->lock_job.done = done;
	worker_submit(&fb->lock_job);
}

CONTROL_ONLY static void lock_drop(struct file_bdev *fb)
{
	/* Another process goes on with them. */
	if (bdev_is_shared())
		return;
	fb->locked = false;
	lock_submit(fb, drop_run, drop_done);
}

static void take_done(struct job *job)
{
	struct file_bdev *fb = container_of(job, struct file_bdev, lock_job);

	control_assert();
	fb->locked = fb->lock_status == 0;
	if (!lock_ended(fb) || !fb->locked)
		return;
	bdev_ready(&fb->bdev);
	if (fb->users == 0)
		lock_drop(fb);
}

int file_channel_prepare(struct bdev_channel *ch)
{
	struct file_bdev *fb = file_of(ch->bdev);
	int rc;

	control_assert();
	if (!fb->opts.lock_in_use || fb->opts.no_lock)
		return 0;
	if (fb->locked) {
		if (fb->users++ == 0)
			log_info("%s: in use, locked", fb->bdev.name);
		return 0;
	}
	if (fb->lock_busy)
		return -EAGAIN;
	rc = fb->lock_status;
	if (rc < 0 && rc != -EBUSY) {
		fb->lock_status = 0;
		return rc;
	}
	/* Looking through /proc for a holder takes too long to be done again and again. */
	fb->quick = true;
	lock_submit(fb, take_run, take_done);
	return rc < 0 ? rc : -EAGAIN;
}

void file_channel_unprepare(struct bdev_channel *ch)
{
	struct file_bdev *fb = file_of(ch->bdev);

	control_assert();
	if (!fb->opts.lock_in_use || fb->opts.no_lock || --fb->users > 0)
		return;
	lock_drop(fb);
	log_info("%s: not in use, not locked", fb->bdev.name);
}

/* One that fails to take the locks drops what it had, which is the successor's as well. */
bool file_handover_busy(struct bdev *bdev)
{
	return file_of(bdev)->lock_busy;
}

/* Readers share, so their locks order nothing; reads may be into memory that is shared too. */
bool file_keeps_order(struct bdev *bdev)
{
	const struct file_bdev *fb = file_of(bdev);

	return fb->local && !fb->opts.no_lock && !fb->opts.readonly;
}

void file_handover_end(struct bdev *bdev)
{
	struct file_bdev *fb = file_of(bdev);

	control_assert();
	if (!fb->opts.lock_in_use || fb->opts.no_lock || fb->users > 0 || fb->lock_busy)
		return;
	/* Those of the other process, too: the open file is one. */
	lock_drop(fb);
}
