/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * RBD disks: requests, creation, deletion, resizing, health.
 *
 * Requests go from the reactor straight into librbd's asynchronous calls, on the
 * guest's own buffers. librbd completes them on threads of its own; there the
 * request is only posted home. librbd clips writes at the end of an image
 * without a word, so the bounds are ours to check: bdev_submit() does.
 *
 * Nothing that blocks runs on control or a reactor. An open that takes longer
 * than its timeout is answered with -ETIMEDOUT and abandoned: when its worker
 * comes back, the image is closed again. Requests have no time limit unless
 * io_timeout asks for one, which is given to librados, since only librados can
 * end a request without touching its buffers later.
 *
 * Deleting waits for requests, which a stalled cluster may hold for ever. The
 * answer does not: after ANSWER_MS it is given, and the rest goes on behind it.
 */
#include "bdev/bdev_rbd.h"

#include "reactor/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEALTH_MS 1000
#define STALL_US 5000000u
/* How long, and how often, to ask again for a lock that its owner will not share. */
#define REFUSED_US 5000000u
#define REFUSED_AGAIN_US 50000u

struct rbd_channel {
	rbd_image_t image;
	struct rbd_bdev *rb;
	struct list inflight;		/* struct rbd_io.node, oldest first */
	struct timer again;		/* runs while any of them has been refused */
	counter64 oldest;	/* its submit_tsc, 0: none; read by control */
};

struct rbd_io {
	struct list node;
	rbd_completion_t comp;		/* NULL: refused, to be issued again */
};
_Static_assert(sizeof(struct rbd_io) <= sizeof(((struct bdev_io *)NULL)->scratch),
	       "struct rbd_io lives in the scratch of a request");

static struct list images = LIST_INIT(images);
static struct control_timer health_timer;
static struct log_limit io_limit;

static struct rbd_io *rbd_io_of(struct bdev_io *io)
{
	return (struct rbd_io *)(void *)io->scratch;
}

/* ------- requests: on the reactor ------- */

static void oldest_update(struct rbd_channel *rc)
{
	uint64_t oldest = 0;

	if (!list_empty(&rc->inflight)) {
		struct rbd_io *rio = list_first(&rc->inflight, struct rbd_io, node);

		oldest = container_of(rio, struct bdev_io, scratch)->submit_tsc;
	}
	counter_set(&rc->oldest, oldest);
}

static void rbd_io_end(struct rbd_channel *rc, struct bdev_io *io)
{
	struct rbd_io *rio = rbd_io_of(io);
	bool first = rc->inflight.next == &rio->node;

	list_del(&rio->node);
	if (first)
		oldest_update(rc);
}

/*
 * Another client that has the image's exclusive lock and keeps it answers "read-only
 * file system". Mostly that is a command line tool which is through in a moment (rbd
 * trash mv, say): no reason to fail a guest's write.
 */
COLD REACTOR_ONLY static bool rbd_refused(struct rbd_channel *rc, struct bdev_io *io)
{
	if (io->status != -EROFS || io->ch->bdev->readonly ||
	    atomic_load_explicit(&io->ch->bdev->removing, memory_order_relaxed) ||
	    tsc_now() - io->submit_tsc > (uint64_t)REFUSED_US * (tsc_hz() / 1000000))
		return false;
	rbd_io_of(io)->comp = NULL;
	if (!rc->again.node.next) {
		log_limited(LOG_WARNING, &io_limit, "%s: another client keeps the image's "
			    "exclusive lock: asking again", rc->rb->bdev.name);
		reactor_timer_start(&rc->again, REFUSED_AGAIN_US);
	}
	return true;
}

COLD REACTOR_ONLY static void rbd_failed(struct rbd_channel *rc, struct bdev_io *io)
{
	if (io->status == -ESHUTDOWN)
		atomic_store_explicit(&rc->rb->fenced, true, memory_order_relaxed);
	log_limited(LOG_ERROR, &io_limit, "%s: request of type %u at %llu failed: %s",
		    rc->rb->bdev.name, io->type, (unsigned long long)io->offset,
		    strerror(-io->status));
}

static void rbd_io_home(struct msg *msg)
{
	struct bdev_io *io = container_of(msg, struct bdev_io, msg);
	struct rbd_channel *rc = bdev_channel_ctx(io->ch);

	reactor_assert();
	if (unlikely(io->status)) {
		if (rbd_refused(rc, io))
			return;
		rbd_failed(rc, io);
	}
	rbd_io_end(rc, io);
	if (unlikely(!atomic_load_explicit(&rc->rb->had_lock, memory_order_relaxed)) &&
	    io->type != BDEV_READ && io->status == 0)
		atomic_store_explicit(&rc->rb->had_lock, true, memory_order_relaxed);
	bdev_io_done(io, io->status);
}

/* On one of librbd's threads: only send it home. */
static void rbd_io_complete(rbd_completion_t comp, void *arg)
{
	struct bdev_io *io = arg;
	ssize_t ret = rbd_aio_get_return_value(comp);

	rbd_aio_release(comp);
	if (ret >= 0 && io->type == BDEV_READ)
		io->status = (uint64_t)ret == io->length ? 0 : -EIO;
	else
		io->status = ret < 0 ? (int)ret : 0;
	io->msg.fn = rbd_io_home;
	reactor_post(io->ch->reactor, &io->msg);
}

static int rbd_issue(rbd_image_t image, struct bdev_io *io, rbd_completion_t comp)
{
	switch (io->type) {
	case BDEV_READ:
		if (io->iovcnt == 1)
			return rbd_aio_read(image, io->offset, io->length, io->iov->iov_base, comp);
		return rbd_aio_readv(image, io->iov, (int)io->iovcnt, io->offset, comp);
	case BDEV_WRITE:
		if (io->iovcnt == 1)
			return rbd_aio_write(image, io->offset, io->length, io->iov->iov_base,
					     comp);
		return rbd_aio_writev(image, io->iov, (int)io->iovcnt, io->offset, comp);
	case BDEV_FLUSH:
		return rbd_aio_flush(image, comp);
	case BDEV_DISCARD:
		return rbd_aio_discard(image, io->offset, io->length, comp);
	case BDEV_WRITE_ZEROES:
		return rbd_aio_write_zeroes(image, io->offset, io->length, comp,
					    io->flags & BDEV_IO_NO_UNMAP ?
					    RBD_WRITE_ZEROES_FLAG_THICK_PROVISION : 0, 0);
	default:
		return -EOPNOTSUPP;
	}
}

/* Give it, which is in the list, to librbd. */
REACTOR_ONLY static void rbd_start(struct rbd_channel *rc, struct bdev_io *io)
{
	struct rbd_io *rio = rbd_io_of(io);
	int status = rbd_aio_create_completion(io, rbd_io_complete, &rio->comp);

	if (likely(status >= 0)) {
		status = rbd_issue(rc->image, io, rio->comp);
		if (likely(status >= 0))
			return;
		rbd_aio_release(rio->comp);
	}
	rbd_io_end(rc, io);
	bdev_io_done_later(io, status);
}

static void rbd_submit(struct bdev_io *io)
{
	struct rbd_channel *rc = bdev_channel_ctx(io->ch);
	bool first = list_empty(&rc->inflight);

	reactor_assert();
	list_add_tail(&rc->inflight, &rbd_io_of(io)->node);
	if (first)
		counter_set(&rc->oldest, io->submit_tsc);
	rbd_start(rc, io);
}

static void rbd_again(struct timer *t)
{
	struct rbd_channel *rc = container_of(t, struct rbd_channel, again);
	struct rbd_io *rio, *tmp;

	reactor_assert();
	list_for_each_safe(rio, tmp, &rc->inflight, node) {
		if (!rio->comp)
			rbd_start(rc, container_of(rio, struct bdev_io, scratch));
	}
}

static int rbd_channel_open(struct bdev_channel *ch)
{
	struct rbd_channel *rc = bdev_channel_ctx(ch);

	rc->rb = rbd_of(ch->bdev);
	rc->image = rc->rb->image;
	list_init(&rc->inflight);
	rc->again.fn = rbd_again;
	return 0;
}

/* ------- what is cached for reading ------- */

static void close_if_idle(struct rbd_bdev *rb) CONTROL_ONLY;

static void forget_run(struct job *job)
{
	rbd_image_forget(container_of(job, struct rbd_bdev, forget_job));
}

static void forget_done(struct job *job)
{
	struct rbd_bdev *rb = container_of(job, struct rbd_bdev, forget_job);

	control_assert();
	rb->forgetting = false;
	if (rb->closing)
		close_if_idle(rb);
	else
		bdev_ready(&rb->bdev);
}

static bool must_forget(const struct rbd_bdev *rb)
{
	return rb->cached && !rb->closing && !rb->bdev.removing && !rb->opts.snapshot;
}

CONTROL_ONLY static void forget_cache(struct rbd_bdev *rb)
{
	if (!must_forget(rb) || rb->forgetting)
		return;
	rb->forgetting = true;
	rb->forget_job.run = forget_run;
	rb->forget_job.done = forget_done;
	worker_submit(&rb->forget_job);
}

/* Whoever used the image is gone, but for channels on their way out. */
static bool is_left(const struct rbd_bdev *rb)
{
	unsigned int leaving = 0;

	for (const struct list *at = rb->bdev.closing.next; at != &rb->bdev.closing; at = at->next)
		leaving++;
	return leaving > 0 && leaving == rb->users;
}

static int rbd_channel_prepare(struct bdev_channel *ch)
{
	struct rbd_bdev *rb = rbd_of(ch->bdev);

	/* Also a guest that comes back at once, to requests that it left here, say. */
	if (rb->forgetting || (must_forget(rb) && is_left(rb)))
		return -EAGAIN;
	if (rb->users++ == 0)
		atomic_store(&rb->had_lock, false);
	return 0;
}

/*
 * The guest may go on at another target, and come back when it has written there.
 * Without the exclusive lock nobody tells librbd of that. During a takeover the rings
 * stop only to go on with what there is, here or in the successor.
 */
static void rbd_channel_unprepare(struct bdev_channel *ch)
{
	struct rbd_bdev *rb = rbd_of(ch->bdev);

	control_assert();
	if (--rb->users == 0 && !bdev_is_shared())
		forget_cache(rb);
}

static bool rbd_handover_busy(struct bdev *bdev)
{
	return rbd_of(bdev)->forgetting;
}

/* Front ends may have left meanwhile. */
static void rbd_handover_end(struct bdev *bdev)
{
	struct rbd_bdev *rb = rbd_of(bdev);

	control_assert();
	if (rb->users == 0)
		forget_cache(rb);
}

/* ------- size ------- */

CONTROL_ONLY static void size_look(struct rbd_bdev *rb);

static void size_run(struct job *job)
{
	rbd_image_look(container_of(job, struct rbd_bdev, size_job));
}

static void size_done(struct job *job)
{
	struct rbd_bdev *rb = container_of(job, struct rbd_bdev, size_job);
	struct bdev_result *res = rb->resize_res;
	int status = rb->status;
	uint64_t size;

	control_assert();
	rb->size_running = false;
	rb->resize_res = NULL;
	if (status < 0 && !res)
		log_warning("%s: %s", rb->bdev.name, rb->reason);
	if (status == 0 && !rb->closing) {
		size = rb->new_size - rb->new_size % rb->bdev.block_size;
		if (size < bdev_size(&rb->bdev))
			log_warning("%s: the image has shrunk: requests beyond its new end fail",
				    rb->bdev.name);
		bdev_resized(&rb->bdev, size);
	}
	if (res)
		bdev_result_done(res, status, NULL, status < 0 ? "%s" : NULL, rb->reason);
	if (rb->closing && rb->next_res)
		bdev_result_done(rb->next_res, -ECANCELED, NULL, "%s is being deleted", rb->bdev.name);
	if (rb->closing)
		close_if_idle(rb);
	else if (rb->size_again)
		size_look(rb);
}

static void size_look(struct rbd_bdev *rb)
{
	if (rb->size_running) {
		rb->size_again = true;
		return;
	}
	rb->size_again = false;
	rb->resize_res = rb->next_res;
	rb->resize_to = rb->next_to;
	rb->next_res = NULL;
	rb->next_to = 0;
	rb->size_running = true;
	rb->size_job.run = size_run;
	rb->size_job.done = size_done;
	worker_submit(&rb->size_job);
}

static void notified(struct msg *msg)
{
	struct rbd_bdev *rb = container_of(msg, struct rbd_bdev, notified);

	control_assert();
	atomic_store(&rb->notify_posted, false);
	/* Our own mark on the image notifies us before the open is through. */
	if (!rb->live)
		rb->size_again = true;
	else if (!rb->closing)
		size_look(rb);
}

void rbd_image_changed(void *arg)
{
	struct rbd_bdev *rb = arg;

	/* One message at a time; it comes before the close, which ends the watch. */
	if (atomic_exchange(&rb->notify_posted, true))
		return;
	rb->notified.fn = notified;
	control_post(&rb->notified);
}

void bdev_rbd_resize(const char *name, uint64_t size, bool allow_shrink, struct bdev_result *res)
{
	struct bdev *bdev = bdev_find(name);
	struct rbd_bdev *rb;

	if (!bdev || bdev->ops != &bdev_rbd_ops) {
		bdev_result_done(res, -ENODEV, NULL, "there is no rbd bdev named '%.100s'", name);
		return;
	}
	rb = rbd_of(bdev);
	if (size == 0 || (size < bdev_size(bdev) && !allow_shrink)) {
		bdev_result_done(res, -EINVAL, NULL,
				 "%.100s has %llu bytes: a shrink to %llu needs allow_shrink", name,
				 (unsigned long long)bdev_size(bdev), (unsigned long long)size);
		return;
	}
	if (rb->resize_res || rb->next_res) {
		bdev_result_done(res, -EBUSY, NULL, "%.100s is being resized", name);
		return;
	}
	rb->next_res = res;
	rb->next_to = size;
	size_look(rb);
}

/* ------- health ------- */

static uint64_t oldest_us(const struct bdev *bdev)
{
	uint64_t now = tsc_now(), oldest = 0;

	for (unsigned int i = 0; i < reactor_count(); i++) {
		struct rbd_channel *rc;

		if (!bdev->channels[i])
			continue;
		rc = bdev_channel_ctx(bdev->channels[i]);
		if (counter_read(&rc->oldest) && (!oldest || counter_read(&rc->oldest) < oldest))
			oldest = counter_read(&rc->oldest);
	}
	if (!oldest || oldest > now)
		return 0;
	return (uint64_t)((double)(now - oldest) * 1e6 / (double)tsc_hz());
}

CONTROL_ONLY static void stall_look(struct rbd_bdev *rb)
{
	uint64_t age = oldest_us(&rb->bdev);
	bool stalled = age >= STALL_US;

	if (stalled == rb->stalled)
		return;
	rb->stalled = stalled;
	if (stalled)
		log_warning("%s: stalled: the oldest request has waited for %llu s",
			    rb->bdev.name, (unsigned long long)(age / 1000000));
	else
		log_notice("%s: recovered", rb->bdev.name);
	bdev_note(&rb->bdev, stalled ? BDEV_NOTE_STALLED : BDEV_NOTE_RECOVERED);
}

static void health_look(struct control_timer *t)
{
	struct rbd_bdev *rb;

	control_assert();
	list_for_each(rb, &images, all) {
		stall_look(rb);
		if (!atomic_load_explicit(&rb->fenced, memory_order_relaxed))
			continue;
		rbd_conn_died(rb->conn);
		if (!rb->fence_noted)
			bdev_note(&rb->bdev, BDEV_NOTE_FENCED);
		rb->fence_noted = true;
	}
	if (!list_empty(&images))
		control_timer_start(t, HEALTH_MS);
}

void bdev_rbd_get_health(const struct bdev *bdev, struct bdev_rbd_health *health)
{
	const struct rbd_bdev *rb = rbd_of((struct bdev *)(uintptr_t)bdev);

	health->oldest_us = oldest_us(bdev);
	health->stalled = health->oldest_us >= STALL_US;
	health->fenced = atomic_load_explicit(&rb->fenced, memory_order_relaxed);
}

bool bdev_rbd_any_stuck(uint64_t us)
{
	struct rbd_bdev *rb;

	list_for_each(rb, &images, all) {
		if (oldest_us(&rb->bdev) > us)
			return true;
	}
	return false;
}

/* ------- creation ------- */

CONTROL_ONLY static void rbd_free(struct rbd_bdev *rb)
{
	if (rb->conn)
		rbd_conn_put(rb->conn);
	bdev_rbd_opts_free(&rb->opts);
	free(rb);
}

CONTROL_ONLY static void answer(struct rbd_bdev *rb, int status, const char *reason)
{
	struct bdev_result *res = rb->res;

	control_timer_stop(&rb->timeout);
	rb->res = NULL;
	if (res)
		bdev_result_done(res, status, status ? NULL : &rb->bdev, status ? "%s" : NULL,
				 reason);
}

static void close_run(struct job *job)
{
	rbd_image_close(container_of(job, struct rbd_bdev, job));
}

static void abandoned_closed(struct job *job)
{
	control_assert();
	rbd_free(container_of(job, struct rbd_bdev, job));
}

CONTROL_ONLY static void abandon(struct rbd_bdev *rb)
{
	rb->job.run = close_run;
	rb->job.done = abandoned_closed;
	worker_submit(&rb->job);
}

static void open_run(struct job *job)
{
	rbd_image_open(container_of(job, struct rbd_bdev, job));
}

static void open_done(struct job *job)
{
	struct rbd_bdev *rb = container_of(job, struct rbd_bdev, job);

	control_assert();
	if (rb->status == 0 && rb->res)
		rb->status = bdev_register(&rb->bdev, rb->opts.name, "Ceph", rb->opts.uuid,
					   rb->reason);
	if (rb->status < 0 || !rb->res) {
		answer(rb, rb->status, rb->reason);
		abandon(rb);
		return;
	}
	rb->live = true;
	list_add_tail(&images, &rb->all);
	health_timer.fn = health_look;
	control_timer_start(&health_timer, HEALTH_MS);
	answer(rb, 0, "");
	if (rb->size_again)
		size_look(rb);
}

static void conn_done(struct rbd_wait *w)
{
	struct rbd_bdev *rb = container_of(w, struct rbd_bdev, wait);

	control_assert();
	rb->conn = w->conn;
	if (rb->conn->status < 0) {
		answer(rb, rb->conn->status, rb->conn->reason);
		rbd_free(rb);
		return;
	}
	rb->job.run = open_run;
	rb->job.done = open_done;
	worker_submit(&rb->job);
}

static void create_timeout(struct control_timer *t)
{
	struct rbd_bdev *rb = container_of(t, struct rbd_bdev, timeout);
	char reason[BDEV_REASON_MAX];
	struct rbd_conn *conn = rb->wait.conn;
	const char *hosts = "";
	bool connecting = !rb->conn;

	control_assert();
	if (atomic_load_explicit(&conn->has_hosts, memory_order_acquire))
		hosts = conn->hosts;
	snprintf(reason, sizeof(reason), "%s image %s/%s took longer than %u ms%s%s",
		 connecting ? "connecting to the cluster of" : "opening", rb->opts.pool,
		 rb->opts.image, rb->opts.timeout_ms, hosts[0] ? "; monitors " : "", hosts);
	if (connecting) {
		rbd_conn_cancel(&rb->wait);
		rb->conn = conn;
	}
	answer(rb, -ETIMEDOUT, reason);
	/* Opening: open_done() finds nobody to answer and closes. */
	if (connecting)
		rbd_free(rb);
}

/* Cache mode and time limits are options of the client: part of its access. */
static int apply_modes(struct bdev_rbd_opts *o)
{
	struct bdev_rbd_access *a = &o->access;
	char seconds[32];
	int rc = 0;

	switch (o->cache) {
	case BDEV_RBD_CACHE_NONE:
		rc = rbd_access_add_option(a, "rbd_cache", "false");
		break;
	case BDEV_RBD_CACHE_WRITETHROUGH:
		rc = rbd_access_add_option(a, "rbd_cache", "true");
		if (rc == 0)
			rc = rbd_access_add_option(a, "rbd_cache_max_dirty", "0");
		break;
	case BDEV_RBD_CACHE_WRITEBACK:
		rc = rbd_access_add_option(a, "rbd_cache", "true");
		break;
	default:
		break;
	}
	if (rc == 0 && o->io_timeout_ms) {
		snprintf(seconds, sizeof(seconds), "%u", (o->io_timeout_ms + 999) / 1000);
		rc = rbd_access_add_option(a, "rados_osd_op_timeout", seconds);
	}
	return rc;
}

CONTROL_ONLY static int check_create(const struct bdev_rbd_opts *o, char reason[BDEV_REASON_MAX])
{
	if (!o->pool || !o->image || !o->pool[0] || !o->image[0]) {
		snprintf(reason, BDEV_REASON_MAX, "a pool and an image must be named");
		return -EINVAL;
	}
	if (o->io_timeout_ms && o->cache != BDEV_RBD_CACHE_NONE) {
		snprintf(reason, BDEV_REASON_MAX, "io_timeout needs cache none: with a cache, writes "
			 "that timed out would be reported as done");
		return -EINVAL;
	}
	if (o->cluster && (o->cache || o->io_timeout_ms)) {
		snprintf(reason, BDEV_REASON_MAX, "cache and io_timeout are set where the cluster is "
			 "registered (rbd_cache, rados_osd_op_timeout)");
		return -EINVAL;
	}
	return bdev_check_name(o->name, reason);
}

void bdev_rbd_create(const struct bdev_rbd_opts *opts, struct bdev_result *res)
{
	char reason[BDEV_REASON_MAX] = "";
	int rc = check_create(opts, reason);
	struct bdev_rbd_access access;
	struct rbd_bdev *rb = NULL;

	if (rc < 0) {
		bdev_result_done(res, rc, NULL, "%s", reason);
		return;
	}
	rb = calloc(1, sizeof(*rb));
	if (!rb || bdev_rbd_opts_copy(opts, &rb->opts) < 0) {
		free(rb);
		bdev_result_done(res, -ENOMEM, NULL, NULL);
		return;
	}
	rb->bdev.ops = &bdev_rbd_ops;
	rb->bdev.supported = (1u << BDEV_IO_TYPES) - 1;
	rb->res = res;
	if (!rb->opts.timeout_ms)
		rb->opts.timeout_ms = BDEV_RBD_TIMEOUT_MS;
	rb->timeout.fn = create_timeout;
	control_timer_start(&rb->timeout, rb->opts.timeout_ms);
	rb->wait.done = conn_done;
	/* What the modes add is for the connection, not for the saved configuration. */
	rc = rbd_access_copy(&rb->opts.access, &access);
	if (rc == 0) {
		struct bdev_rbd_opts modes = rb->opts;

		modes.access = access;
		rc = apply_modes(&modes);
		if (rc == 0)
			rc = rbd_conn_get(&modes.access, rb->opts.cluster, &rb->wait);
		rbd_access_free(&modes.access);
	}
	if (rc < 0) {
		snprintf(reason, sizeof(reason), rc == -ENOENT ?
			 "no cluster '%.100s' is registered" : "out of memory", rb->opts.cluster);
		answer(rb, rc, reason);
		rbd_free(rb);
	}
}

const struct bdev_rbd_opts *bdev_rbd_get_opts(const struct bdev *bdev)
{
	return &rbd_of((struct bdev *)(uintptr_t)bdev)->opts;
}

/* ------- deletion ------- */

static void destroy_closed(struct job *job)
{
	struct rbd_bdev *rb = container_of(job, struct rbd_bdev, job);

	control_assert();
	bdev_destroyed(&rb->bdev);
	rbd_free(rb);
}

static void close_if_idle(struct rbd_bdev *rb)
{
	if (rb->size_running || rb->forgetting)
		return;
	rb->job.run = close_run;
	rb->job.done = destroy_closed;
	worker_submit(&rb->job);
}

static void rbd_destroy(struct bdev *bdev)
{
	struct rbd_bdev *rb = rbd_of(bdev);

	control_assert();
	list_del(&rb->all);
	rb->closing = true;
	close_if_idle(rb);
}

static int rbd_handover(struct bdev *bdev, int fds[BDEV_HANDOVER_FDS])
{
	(void)fds;
	if (!rbd_of(bdev)->opts.exclusive)
		return 0;
	log_warning("%s: cannot be handed over: this process holds the exclusive lock of its image "
		    "and two cannot have it at a time", bdev->name);
	return -EOPNOTSUPP;
}

/*
 * The lock goes to another client when all requests that were issued under it have
 * ended and the cache has been written back. A write that waits for the lock itself is
 * under nobody's: done later, it would take the lock from the next owner and land on
 * what that has written. So the lock must have been ours, and nobody asks for it
 * meanwhile, nor may librbd hold requests back before they get to the lock.
 */
static bool rbd_keeps_order(struct bdev *bdev)
{
	const struct rbd_bdev *rb = rbd_of(bdev);

	return rb->locking && (rb->opts.exclusive ||
			       (atomic_load(&rb->had_lock) && !atomic_load(&rb->throttled)));
}

/* librbd asks for the lock before it flushes. Reads do without, so they have to be held back. */
static bool rbd_settles(struct bdev *bdev)
{
	const struct rbd_bdev *rb = rbd_of(bdev);

	return rb->locking && !rb->opts.exclusive;
}

const struct bdev_ops bdev_rbd_ops = {
	.module = "rbd",
	.product_name = "Ceph Rbd Disk",
	.channel_size = sizeof(struct rbd_channel),
	.own_cache = true,
	.channel_prepare = rbd_channel_prepare,
	.channel_unprepare = rbd_channel_unprepare,
	.channel_open = rbd_channel_open,
	.submit = rbd_submit,
	.keeps_order = rbd_keeps_order,
	.settles = rbd_settles,
	.handover = rbd_handover,
	.handover_busy = rbd_handover_busy,
	.handover_end = rbd_handover_end,
	.destroy = rbd_destroy,
};
