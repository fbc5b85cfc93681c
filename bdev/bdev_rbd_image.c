/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The calls to librbd that block: opening, closing, sizes. They run on a worker,
 * to which the rbd_bdev belongs meanwhile, and leave a sentence in rb->reason
 * when they fail.
 *
 * The exclusive lock. librbd takes it by itself at the first write and hands it
 * over when another client asks; `exclusive` takes it at once and keeps it. A
 * target that was killed leaves its lock behind, and librbd would wait half a
 * minute for the dead owner. So each writable open leaves its mark in the
 * image's metadata: boot id and pid namespace, process, its start time, and the
 * address of its RADOS client. An owner that one of our marks names, of this
 * boot, whose process is gone, is dead for certain: its lock is broken, and it is
 * blocklisted, before we go on. Any other owner is left alone.
 *
 * Several processes may have an image open (a migration, a takeover that failed),
 * and any of them may have the lock: their marks stand side by side, the latest
 * last. The dead that had no lock are blocklisted as well: with the lock feature
 * they have no writes under way, but those that were killed have a watch, which
 * would hold up each notification for seconds; without that feature, a late write
 * of theirs must not land on one of ours.
 */
#include "bdev/bdev_rbd.h"

#include "reactor/log.h"

#include <rbd/features.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARK_KEY "spindle.owner"
#define MARK_MAX 256
#define MARKS_KEPT 8
#define MARKS_MAX (MARKS_KEPT * MARK_MAX)
#define PLACE_MAX 96
#define OWNERS_MAX 4
#define WATCHERS_MAX 32
#define OPTIONS_MAX 256

int rbd_fail(struct rbd_bdev *rb, int status, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(rb->reason, sizeof(rb->reason), fmt, ap);
	va_end(ap);
	return status;
}

/* ------- our mark ------- */

static void read_line(const char *path, char *buf, size_t size)
{
	FILE *f = fopen(path, "re");

	buf[0] = '\0';
	if (!f)
		return;
	if (!fgets(buf, (int)size, f))
		buf[0] = '\0';
	fclose(f);
	buf[strcspn(buf, "\n")] = '\0';
}

/* When the process started, in the kernel's ticks; 0: there is none. */
static unsigned long long start_time(int pid)
{
	char path[64], line[1024], *p;
	unsigned long long t = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	read_line(path, line, sizeof(line));
	/* Field 22; the second, in parentheses, may have blanks. */
	p = strrchr(line, ')');
	for (int field = 2; p && field < 22; field++) {
		p = strchr(p, ' ');
		if (p)
			p++;
	}
	if (p)
		t = strtoull(p, NULL, 10);
	return t;
}

/*
 * Processes are told apart by pid only inside one pid namespace of one boot: a
 * neighbouring container has the same boot id and other pids.
 */
static void read_place(char place[PLACE_MAX])
{
	char boot[64];
	struct stat st;

	read_line("/proc/sys/kernel/random/boot_id", boot, sizeof(boot));
	if (stat("/proc/self/ns/pid", &st) < 0)
		st.st_ino = 0;
	snprintf(place, PLACE_MAX, "%s/%llu", boot, (unsigned long long)st.st_ino);
}

static int make_mark(struct rbd_bdev *rb, char mark[MARK_MAX])
{
	char place[PLACE_MAX], *addrs = NULL;
	int rc = rados_getaddrs(rb->conn->rados, &addrs);

	if (rc < 0)
		return rc;
	read_place(place);
	snprintf(mark, MARK_MAX, "%s %d %llu %s", place, (int)getpid(), start_time(getpid()), addrs);
	rados_buffer_free(addrs);
	return 0;
}

/* All marks, "; " between them; what cannot be read is as good as none. */
static void read_marks(struct rbd_bdev *rb, char marks[MARKS_MAX])
{
	size_t len = MARKS_MAX;

	if (rbd_metadata_get(rb->image, MARK_KEY, marks, &len) < 0)
		marks[0] = '\0';
}

/* The mark behind this one, NULL: it is the last. */
static const char *next_mark(const char *mark)
{
	mark = strchr(mark, ';');
	return mark ? mark + 1 + strspn(mark + 1, " ") : NULL;
}

/* Whether a mark is of a process of this boot that is gone; addrs: its client's. */
static bool mark_is_dead(const char *mark, char addrs[MARK_MAX])
{
	char place[PLACE_MAX], theirs[PLACE_MAX];
	unsigned long long started;
	int pid;

	if (sscanf(mark, "%95s %d %llu %255[^; ]", theirs, &pid, &started, addrs) != 4)
		return false;
	read_place(place);
	return !strcmp(place, theirs) && (start_time(pid) == 0 || start_time(pid) != started);
}

/* "127.0.0.1:0/123" is inside "[v2:127.0.0.1:0/123,...]", and not inside ".../1234]" */
static bool addrs_have(const char *addrs, const char *addr)
{
	const char *at = strstr(addrs, addr);

	return at && addr[0] && (at == addrs || strchr(":[,", at[-1])) &&
	       strchr(",]", at[strlen(addr)]);
}

/* Whether one of the marks is of the dead, with this address. */
static bool owner_is_dead(const char *marks, const char *owner)
{
	char addrs[MARK_MAX];

	for (const char *mark = marks; mark; mark = next_mark(mark)) {
		if (mark_is_dead(mark, addrs) && addrs_have(addrs, owner))
			return true;
	}
	return false;
}

/* Ours behind those of others that may yet count. */
static int leave_mark(struct rbd_bdev *rb, const char *marks)
{
	char mark[MARK_MAX], addrs[MARK_MAX], text[MARKS_MAX + MARK_MAX];
	const char *keep[MARKS_KEPT];
	size_t count = 0, len = 0;
	int rc = make_mark(rb, mark);

	if (rc < 0)
		return rc;
	for (const char *m = marks; m && m[0]; m = next_mark(m)) {
		/* An older one of this very client says the same. */
		if (mark_is_dead(m, addrs) || !strncmp(m, mark, strlen(mark)))
			continue;
		if (count == MARKS_KEPT - 1)
			memmove(keep, keep + 1, --count * sizeof(*keep));
		keep[count++] = m;
	}
	for (size_t i = 0; i < count; i++)
		len += (size_t)snprintf(text + len, sizeof(text) - len, "%.*s; ",
					(int)MIN(strcspn(keep[i], ";"), (size_t)MARK_MAX - 3), keep[i]);
	snprintf(text + len, sizeof(text) - len, "%s", mark);
	return rbd_metadata_set(rb->image, MARK_KEY, text);
}

/* ------- the exclusive lock ------- */

static int break_lock(struct rbd_bdev *rb, rbd_lock_mode_t mode, const char *owner)
{
	int rc = rbd_lock_break(rb->image, mode, owner);

	if (rc < 0 && rc != -ENOENT)
		return rbd_fail(rb, rc, "cannot break the lock that our dead predecessor %s holds "
				"on image %s: %s", owner, rb->opts.image, strerror(-rc));
	log_notice("image %s: broke the lock of our dead predecessor %s", rb->opts.image, owner);
	return 0;
}

/* 0 when nobody holds it, or only the dead did; broken: who, who is fenced by that. */
static int check_owners(struct rbd_bdev *rb, const char *marks, char broken[MARK_MAX])
{
	size_t count = OWNERS_MAX;
	char *owners[OWNERS_MAX];
	rbd_lock_mode_t mode;
	int rc = rbd_lock_get_owners(rb->image, &mode, owners, &count);

	if (rc == -ENOENT || (rc == 0 && count == 0))
		return 0;
	if (rc < 0)
		return rbd_fail(rb, rc, "cannot read the locks of image %s: %s", rb->opts.image,
				strerror(-rc));
	for (size_t i = 0; i < count && rc == 0; i++) {
		if (owner_is_dead(marks, owners[i])) {
			rc = break_lock(rb, mode, owners[i]);
			snprintf(broken, MARK_MAX, "%s", owners[i]);
		} else if (rb->opts.exclusive) {
			rc = rbd_fail(rb, -EBUSY, "image %s is locked by another client, %s",
				      rb->opts.image, owners[i]);
		}
	}
	rbd_lock_get_owners_cleanup(owners, count);
	return rc;
}

static bool is_watching(struct rbd_bdev *rb, const char *addrs)
{
	rbd_image_watcher_t watchers[WATCHERS_MAX];
	size_t count = WATCHERS_MAX;
	bool found = false;

	/* More than there is room for: who knows. */
	if (rbd_watchers_list(rb->image, watchers, &count) < 0)
		return true;
	for (size_t i = 0; i < count; i++)
		found |= addrs_have(addrs, watchers[i].addr);
	rbd_watchers_list_cleanup(watchers, count);
	return found;
}

/* Blocklist one client: from here on no request of its is executed before one of ours. */
static void fence(struct rbd_bdev *rb, char *addrs)
{
	char *addr = addrs + strspn(addrs, "[");
	int rc;

	/* Any of its addresses names it, without the protocol. */
	addr[strcspn(addr, ",]")] = '\0';
	if (addr[0] == 'v' && addr[1] && addr[2] == ':')
		addr += 3;
	rc = rados_blocklist_add(rb->conn->rados, addr, 0);
	/* Our requests tell the OSDs of it that have not heard yet. */
	if (rc == 0)
		rc = rados_wait_for_latest_osdmap(rb->conn->rados);
	if (rc < 0)
		log_warning("image %s: cannot fence our dead predecessor %s: %s: writes of its that "
			    "are still on their way may land", rb->opts.image, addr, strerror(-rc));
	else
		log_notice("image %s: fenced our dead predecessor %s", rb->opts.image, addr);
}

/* The dead, but for one who is fenced already, and who closed the image if there is a lock. */
static void fence_dead(struct rbd_bdev *rb, const char *marks, const char *broken, bool locking)
{
	char addrs[MARK_MAX];

	for (const char *mark = marks; mark; mark = next_mark(mark)) {
		if (mark_is_dead(mark, addrs) && !addrs_have(addrs, broken) &&
		    (!locking || is_watching(rb, addrs)))
			fence(rb, addrs);
	}
}

static int take_lock(struct rbd_bdev *rb)
{
	char marks[MARKS_MAX], broken[MARK_MAX] = "";
	uint64_t features = 0;
	bool locking;
	int rc = 0;

	if (rb->opts.readonly || rb->opts.snapshot)
		return 0;
	rbd_get_features(rb->image, &features);
	locking = rb->locking = features & RBD_FEATURE_EXCLUSIVE_LOCK;
	if (!locking && rb->opts.exclusive)
		return rbd_fail(rb, -ENOTSUP, "image %s has no exclusive-lock feature",
				rb->opts.image);
	read_marks(rb, marks);
	if (locking)
		rc = check_owners(rb, marks, broken);
	if (rc < 0)
		return rc;
	fence_dead(rb, marks, broken, locking);
	if (rb->opts.exclusive) {
		rc = rbd_lock_acquire(rb->image, RBD_LOCK_MODE_EXCLUSIVE);
		if (rc < 0)
			return rbd_fail(rb, rc, "cannot take the exclusive lock of image %s: %s",
					rb->opts.image, strerror(-rc));
	}
	rc = leave_mark(rb, marks);
	if (rc < 0)
		log_warning("image %s: cannot leave our mark: %s; if we are killed, our lock will "
			    "hold up the next opener", rb->opts.image, strerror(-rc));
	return 0;
}

/* ------- geometry ------- */

static uint64_t conf_number(struct rbd_bdev *rb, const char *key, uint64_t otherwise)
{
	char value[64];

	if (rados_conf_get(rb->conn->rados, key, value, sizeof(value)) < 0)
		return otherwise;
	return strtoull(value, NULL, 10);
}

static bool is_throttle(const char *name, const char *value)
{
	size_t len = strlen(name);

	return !strncmp(name, "rbd_qos_", 8) && len > 6 && !strcmp(name + len - 6, "_limit") &&
	       strtoull(value, NULL, 10) > 0;
}

/*
 * Whether librbd caches, whether what is written may be in its cache alone, and whether
 * it holds requests back. Options kept with the image or its pool count as well.
 */
static void read_options(struct rbd_bdev *rb, bool *cached, bool *is_volatile)
{
	rbd_config_option_t options[OPTIONS_MAX];
	int count = OPTIONS_MAX;
	bool throttled = false;

	*cached = *is_volatile = true;
	/* Not known: the guest is told to flush. */
	if (rbd_config_image_list(rb->image, options, &count) < 0) {
		atomic_store(&rb->throttled, true);
		return;
	}
	for (int i = 0; i < count; i++) {
		const char *name = options[i].name, *value = options[i].value;

		if (!strcmp(name, "rbd_cache"))
			*cached = !strcmp(value, "true");
		else if (!strcmp(name, "rbd_cache_max_dirty"))
			*is_volatile &= strtoull(value, NULL, 10) > 0;
		else if (!strcmp(name, "rbd_cache_policy"))
			*is_volatile &= strcmp(value, "writethrough") != 0;
		throttled |= is_throttle(name, value);
	}
	atomic_store(&rb->throttled, throttled);
	*is_volatile &= *cached;
	rbd_config_image_list_cleanup(options, count);
}

static int read_geometry(struct rbd_bdev *rb)
{
	struct bdev *bdev = &rb->bdev;
	uint64_t unit = 0, count = 0, granularity;
	rbd_image_info_t info;
	bool is_volatile;
	int rc = rbd_stat(rb->image, &info, sizeof(info));

	if (rc < 0)
		return rbd_fail(rb, rc, "cannot read the header of image %s: %s", rb->opts.image,
				strerror(-rc));
	bdev->block_size = rb->opts.block_size ? rb->opts.block_size : 512;
	atomic_store(&bdev->size, info.size - info.size % MAX(bdev->block_size, 1u));
	bdev->physical_block_size = MAX(4096u, bdev->block_size);
	rbd_get_stripe_unit(rb->image, &unit);
	rbd_get_stripe_count(rb->image, &count);
	/* A whole stripe keeps all its objects busy. */
	bdev->optimal_io_size = (uint32_t)MIN(count > 1 ? unit * count : info.obj_size,
					      (uint64_t)1 << 30);
	granularity = conf_number(rb, "rbd_discard_granularity_bytes", 65536);
	granularity = MAX(granularity, (uint64_t)bdev->block_size);
	granularity = MIN(granularity, info.obj_size);
	bdev->discard_granularity = (uint32_t)granularity;
	bdev->readonly = rb->opts.readonly || rb->opts.snapshot;
	read_options(rb, &rb->cached, &is_volatile);
	bdev->write_cache = !bdev->readonly && is_volatile;
	return 0;
}

/* ------- open and close ------- */

static int open_ioctx(struct rbd_bdev *rb)
{
	int rc = rados_ioctx_create(rb->conn->rados, rb->opts.pool, &rb->ioctx);

	if (rc < 0) {
		rb->ioctx = NULL;
		return rbd_fail(rb, rc, rc == -ENOENT ? "there is no pool '%s'%s%s" :
				"cannot use pool '%s'%s%s", rb->opts.pool,
				rc == -ENOENT ? "" : ": ", rc == -ENOENT ? "" : strerror(-rc));
	}
	if (rb->opts.ns)
		rados_ioctx_set_namespace(rb->ioctx, rb->opts.ns);
	return 0;
}

static int open_image(struct rbd_bdev *rb)
{
	const struct bdev_rbd_opts *o = &rb->opts;
	bool ro = o->readonly || o->snapshot;
	int rc = open_ioctx(rb);

	if (rc < 0)
		return rc;
	rc = ro ? rbd_open_read_only(rb->ioctx, o->image, &rb->image, o->snapshot) :
		  rbd_open(rb->ioctx, o->image, &rb->image, NULL);
	if (rc < 0) {
		rb->image = NULL;
		if (rc == -ENOENT)
			return rbd_fail(rb, rc, "there is no image '%s%s%s' in pool '%s'", o->image,
					o->snapshot ? "@" : "", o->snapshot ? o->snapshot : "",
					o->pool);
		return rbd_fail(rb, rc, "cannot open image '%s/%s': %s", o->pool, o->image,
				strerror(-rc));
	}
	rc = read_geometry(rb);
	if (rc == 0)
		rc = take_lock(rb);
	if (rc < 0)
		return rc;
	rc = rbd_update_watch(rb->image, &rb->watch, rbd_image_changed, rb);
	rb->watching = rc == 0;
	if (rc < 0)
		log_notice("image %s: a resize by others will not be noticed: %s", o->image,
			   strerror(-rc));
	return 0;
}

void rbd_image_open(struct rbd_bdev *rb)
{
	rb->status = open_image(rb);
	if (rb->status < 0)
		rbd_image_close(rb);
}

void rbd_image_close(struct rbd_bdev *rb)
{
	if (rb->watching)
		rbd_update_unwatch(rb->image, rb->watch);
	rb->watching = false;
	if (rb->image)
		rbd_close(rb->image);
	rb->image = NULL;
	if (rb->ioctx)
		rados_ioctx_destroy(rb->ioctx);
	rb->ioctx = NULL;
}

void rbd_image_forget(struct rbd_bdev *rb)
{
	int rc = rbd_invalidate_cache(rb->image);

	if (rc < 0)
		log_warning("image %s: cannot empty its cache: %s: if another client writes to it now, "
			    "old data may be read here", rb->opts.image, strerror(-rc));
}

/* librbd calls it when it trims, whether there is one or not. */
static int no_progress(uint64_t offset, uint64_t total, void *arg)
{
	(void)offset;
	(void)total;
	(void)arg;
	return 0;
}

void rbd_image_look(struct rbd_bdev *rb)
{
	bool cached, is_volatile;
	int rc = 0;

	if (rb->resize_to) {
		rc = rbd_resize2(rb->image, rb->resize_to, true, no_progress, NULL);
		if (rc < 0)
			rbd_fail(rb, rc, "cannot resize image %s: %s", rb->opts.image,
				 strerror(-rc));
	}
	if (rc == 0) {
		rc = rbd_get_size(rb->image, &rb->new_size);
		if (rc < 0)
			rbd_fail(rb, rc, "cannot read the size of image %s: %s", rb->opts.image,
				 strerror(-rc));
	}
	/* What the guest has been told of the cache stays; librbd throttles from now on. */
	read_options(rb, &cached, &is_volatile);
	rb->status = rc;
}
