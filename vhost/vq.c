/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A running virtqueue: a poller on one reactor that pops requests, and the end
 * of each request. Made and freed by the control thread; between vq_start() and
 * session_vq_stopped() everything in it is the reactor's.
 *
 * Every popped head is in exactly one of two states: its request is busy and
 * counted in inflight_now, or it has been pushed to the used ring. Completions of
 * one pass are pushed as they come and published together by the deferred
 * vq_publish(): one store of the used index, at most one call. In packed rings even
 * the pushing waits for vq_publish(), for the driver sees used entries in the order of
 * their places and is shown all by one store; and because no request may be taken
 * between the steps by which the in-flight region notes the end of some.
 *
 * A vq that stops pops no more, waits until inflight_now is 0 and the last used
 * entry is published, and reports. One that is abandoned (abandon.c) reports twice:
 * that it does not touch the rings any more, and that its requests have ended. A
 * broken vq stays like that until the front end stops it: requests in flight end
 * normally, nothing new is looked at.
 */
#include "vhost/vhost_internal.h"

#include "reactor/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BATCH 32
#define BATCH_SHARED 16u	/* while others are busy on the same reactor */
#define COALESCING_INTERVAL_MS 10
#define SETTLE_AGAIN_US 50000
#define LONG_IOVS (VRING_CHAIN_MAX + 64)
#define STRAY_KICKS 1000	/* in a second */

/* Room for a long chain; kept by the vq once it has been needed. */
struct long_iov {
	struct long_iov *next;
	struct iovec iov[LONG_IOVS];
};

/* ------- calling the guest ------- */

REACTOR_ONLY static void call_now(struct vq *vq)
{
	if (vq->call)
		reactor_signal_send(vq->call);
	vq->next_call = reactor_now() + vq->call_delay;
}

static void call_timer_fired(struct timer *t)
{
	struct vq *vq = container_of(t, struct vq, call_timer);

	reactor_assert();
	call_now(vq);
}

/*
 * Coalescing: above coalescing_iops requests a second, measured over intervals,
 * calls are at least coalescing_us times the relative excess apart.
 */
REACTOR_ONLY static void coalescing_measure(struct vq *vq, uint64_t now)
{
	uint64_t interval = tsc_hz() / 1000 * COALESCING_INTERVAL_MS;
	uint64_t elapsed = now - vq->interval_start, done, threshold;

	if (elapsed < interval)
		return;
	done = counter_read(&vq->requests) - vq->interval_count;
	threshold = (uint64_t)((double)vq->coalescing_iops * (double)elapsed / (double)tsc_hz());
	vq->call_delay = 0;
	if (threshold > 0 && done > threshold)
		vq->call_delay = (uint64_t)((double)vq->coalescing_us * (double)tsc_hz() / 1e6 *
					    (double)(done - threshold) / (double)threshold);
	vq->interval_start = now;
	vq->interval_count = counter_read(&vq->requests);
}

REACTOR_ONLY static void vq_notify(struct vq *vq)
{
	uint64_t now = reactor_now();

	if (likely(!vq->coalescing_us)) {
		if (vq->call)
			reactor_signal_send(vq->call);
		return;
	}
	coalescing_measure(vq, now);
	if (vq->call_delay && now < vq->next_call) {
		if (!vq->call_timer.node.next)
			reactor_timer_start(&vq->call_timer,
					    (vq->next_call - now) * 1000000 / tsc_hz() + 1);
		return;
	}
	call_now(vq);
}

/* ------- requests ------- */

bool vq_grow_iov(struct vring_chain *chain, unsigned int used)
{
	struct blk_req *req = container_of(chain, struct blk_req, chain);
	struct vq *vq = req->vq;
	struct long_iov *more = vq->long_iovs;

	if (req->iov != req->inline_iov)
		return false;
	if (more)
		vq->long_iovs = more->next;
	else
		more = malloc(sizeof(*more));
	if (!more)
		return false;
	memcpy(more->iov, req->inline_iov, used * sizeof(struct iovec));
	req->iov = chain->iov = more->iov;
	chain->cap = LONG_IOVS;
	return true;
}

void vq_release_iov(struct vq *vq, struct blk_req *req)
{
	struct long_iov *more;

	if (req->iov == req->inline_iov)
		return;
	more = container_of(req->iov, struct long_iov, iov);
	req->iov = req->inline_iov;
	more->next = vq->long_iovs;
	vq->long_iovs = more;
}

REACTOR_ONLY static bool show_packed(struct vq *vq)
{
	unsigned int n = vq->ended_count;

	if (n == 0)
		return false;
	if (vq->fl)
		inflight_push_packed(vq->fl, &vq->vring, vq->ended, n);
	else
		packed_push(&vq->vring, vq->ended, n);
	for (unsigned int i = 0; i < n; i++)
		vq_req(vq, vq->ended[i].head)->busy = false;
	vq->ended_count = 0;
	return packed_publish(&vq->vring);
}

/* Publish what has ended; true: call the guest. */
REACTOR_ONLY static bool vq_show(struct vq *vq)
{
	bool call;

	if (vq->vring.packed)
		return show_packed(vq);
	if (!vq->fl)
		return vring_publish(&vq->vring);
	inflight_publish(vq->fl);
	call = vring_publish(&vq->vring);
	inflight_published(vq->fl, &vq->vring);
	return call;
}

/* Only a driver that reuses what it was not given back fills a batch up. */
COLD REACTOR_ONLY static void vq_show_early(struct vq *vq)
{
	if (vq_show(vq))
		vq_notify(vq);
}

REACTOR_ONLY static inline void vq_push(struct vq *vq, const struct blk_req *req)
{
	if (vq->vring.packed) {
		/* Not more than num: an id is busy until its end has been shown. */
		vq->ended[vq->ended_count++] =
			(struct used_entry){ req->used_len, req->head, req->count };
		return;
	}
	if (vq->fl) {
		if (unlikely(vq->fl->batch_count == vq->fl->num))
			vq_show_early(vq);
		inflight_used(vq->fl, req->head);
	}
	vring_push(&vq->vring, req->head, req->used_len);
}

void vq_complete(struct vq *vq, struct blk_req *req)
{
	if (likely(!vq->detached))
		vq_push(vq, req);
	if (unlikely(req->iov != req->inline_iov))
		vq_release_iov(vq, req);
	/* Until show_packed(): the in-flight region knows its entries by this id. */
	req->busy = vq->vring.packed;
	vq->inflight_now--;
	reactor_defer(DEFER_PUBLISH, &vq->publish);
}

void vq_break(struct vq *vq, enum vring_fault fault, uint16_t head)
{
	struct fd_signal *err;

	if (vq->broken)
		return;
	vq->broken = true;
	/* One that stops may still be resubmitting: see vq_fetched(). */
	if (!vq->stopping)
		reactor_poller_del(&vq->poller);
	log_limited(LOG_ERROR, vq->limit, "%s: %s (descriptor %u, avail %u, used %u); "
		    "the queue is broken until the driver resets it", vq->name,
		    vring_fault_text(fault), head, vq->vring.last_avail, vq->vring.used_idx);
	if (vq->err_fd < 0)
		return;
	err = reactor_signal_create(vq->err_fd);
	if (err)
		reactor_signal_send(err);
	reactor_signal_free(err);
}

/*
 * Map a request and, if it is a packed ring's, note it. Its header is read later, by
 * blk_start(): meanwhile others of the batch are mapped.
 */
REACTOR_ONLY static inline enum vring_fault vq_map(struct vq *vq, struct blk_req *req,
						   const struct vring_head *head,
						   bool again)
{
	enum vring_fault fault = req ? VRING_HEAD_BUSY : VRING_NO_MEMORY;

	if (likely(req && !req->busy)) {
		fault = blk_map(vq, req, head);
		if (likely(fault == VRING_OK)) {
			if (vq->vring.packed && vq->fl && !again)
				inflight_take_packed(vq->fl, head);
			req->busy = true;
			req->count = head->count;
			vq->inflight_now++;
			return VRING_OK;
		}
		/* From a packed ring it has not been noted; from a split one: forget_rest(). */
		if (vq->fl && again && fault != VRING_MISSING)
			inflight_forget(vq->fl, head->id);
		vq_release_iov(vq, req);
	}
	return fault;
}

enum vring_fault vq_begin(struct vq *vq, const struct vring_head *head, bool again)
{
	struct blk_req *req = vq_slot(vq, head->id);
	enum vring_fault fault = vq_map(vq, req, head, again);

	if (likely(fault == VRING_OK))
		blk_start(vq, req);
	return fault;
}

/* False: the queue is broken. */
REACTOR_ONLY static inline bool map_or_break(struct vq *vq, struct blk_req *req,
					     const struct vring_head *head)
{
	enum vring_fault fault = vq_map(vq, req, head, false);

	if (likely(fault == VRING_OK))
		return true;
	vq_break(vq, fault, head->id);
	return false;
}

/* The queue is broken: these were noted as in flight, and will never begin. */
COLD REACTOR_ONLY static void forget_rest(struct vq *vq, const uint16_t *heads, unsigned int count)
{
	for (unsigned int i = 0; vq->fl && i < count; i++) {
		const struct blk_req *req = vq_slot(vq, heads[i]);

		if (!req || !req->busy)
			inflight_forget(vq->fl, heads[i]);
	}
}

REACTOR_ONLY static inline unsigned int batch_max(void)
{
	return reactor_is_shared() ? BATCH_SHARED : BATCH;
}

REACTOR_ONLY static unsigned int serve_split(struct vq *vq)
{
	struct blk_req *reqs[BATCH];
	uint16_t heads[BATCH];
	int n = vring_pop(&vq->vring, heads, batch_max()), mapped = 0;

	if (unlikely(n < 0)) {
		vq_break(vq, (enum vring_fault)-n, 0);
		return 0;
	}
	for (int i = 0; i < n; i++) {
		const struct blk_req *req = reqs[i] = vq_slot(vq, heads[i]);

		vring_prefetch(&vq->vring, heads[i]);
		__builtin_prefetch(req);
		/* Here, and not when it begins: among loads that miss the store costs more. */
		if (vq->fl && likely(req && !req->busy))
			inflight_take(vq->fl, heads[i], (uint16_t)i);
	}
	if (vq->fl)
		inflight_taken(vq->fl, (unsigned int)n);
	for (int i = 0; i < n; i++)
		vring_prefetch_second(&vq->vring, heads[i]);
	for (; mapped < n; mapped++) {
		struct vring_head head = { .id = heads[mapped] };

		if (unlikely(!map_or_break(vq, reqs[mapped], &head))) {
			forget_rest(vq, heads + mapped, (unsigned int)(n - mapped));
			break;
		}
	}
	for (int i = 0; i < mapped; i++)
		blk_start(vq, reqs[i]);
	return (unsigned int)n;
}

REACTOR_ONLY static unsigned int serve_packed(struct vq *vq)
{
	struct blk_req *reqs[BATCH];
	struct vring_head heads[BATCH];
	int n = packed_pop(&vq->vring, heads, batch_max(), vq->descs), mapped = 0;

	if (unlikely(n < 0)) {
		vq_break(vq, (enum vring_fault)-n, 0);
		return 0;
	}
	for (int i = 0; i < n; i++) {
		reqs[i] = vq_slot(vq, heads[i].id);
		__builtin_prefetch(reqs[i]);
		vring_prefetch_buffer(&vq->vring, heads[i].descs->addr);
	}
	while (mapped < n && likely(map_or_break(vq, reqs[mapped], &heads[mapped])))
		mapped++;
	for (int i = 0; i < mapped; i++)
		blk_start(vq, reqs[i]);
	return (unsigned int)n;
}

REACTOR_ONLY static unsigned int vq_serve(struct vq *vq)
{
	unsigned int n = vq->vring.packed ? serve_packed(vq) : serve_split(vq);

	counter_add(&vq->requests, (uint64_t)n);
	counter_set(&vq->inflight, vq->inflight_now);
	return n;
}

/* What a back end before us had in flight, in the order in which it took them. */
REACTOR_ONLY static void vq_resubmit(struct vq *vq)
{
	struct inflight *fl = vq->fl;

	if (!fl || fl->again_count == 0)
		return;
	if (vq->again_done == 0)
		log_info("%s: resubmitting %u requests that were in flight", vq->name,
			 fl->again_count);
	for (; vq->again_done < fl->again_count; vq->again_done++) {
		struct inflight_head *h = &fl->again[vq->again_done];
		enum vring_fault fault;

		if (fl->packed)
			inflight_descs(fl, h, vq->descs);
		fault = vq_begin(vq, &h->head, true);
		if (fault == VRING_MISSING) {
			vq_fetch(vq, true);
			return;
		}
		if (fault != VRING_OK) {
			vq_break(vq, fault, h->head.id);
			break;
		}
	}
	counter_add(&vq->requests, fl->again_count);
	counter_set(&vq->inflight, vq->inflight_now);
	fl->again_count = 0;
}

static unsigned int vq_poll(struct poller *p)
{
	struct vq *vq = container_of(p, struct vq, poller);

	if (vring_empty(&vq->vring))
		return 0;
	reactor_assert();
	return vq_serve(vq);
}

static bool vq_arm(struct poller *p)
{
	struct vq *vq = container_of(p, struct vq, poller);

	reactor_assert();
	/* Its ring is not looked at until the pages have come, so no kick would tell of it. */
	if (vq->fetching)
		return true;
	vq->stray_kicks = 0;
	if (vq->no_kick || !reactor_watch_works(vq->kick_watch) || vring_enable_kick(&vq->vring))
		return true;
	if (vq->inflight_now == 0 && vq->ended_count == 0)
		vq_reqs_release(vq);
	return false;
}

static void vq_disarm(struct poller *p)
{
	struct vq *vq = container_of(p, struct vq, poller);

	vring_disable_kick(&vq->vring);
}

/*
 * A driver that was told not to kick, and does so all the same, makes the kernel tell
 * us of each: on a reactor that polls, its kicks are heard no more.
 */
static void vq_kicked(void *arg)
{
	struct vq *vq = arg;
	bool parked = vq->poller.parked;

	reactor_assert();
	reactor_poller_unpark(&vq->poller);
	if (parked || vq->no_kick || reactors_poll_us() != REACTOR_POLL_ALWAYS)
		return;
	if (reactor_now() - vq->stray_since > tsc_hz()) {
		vq->stray_since = reactor_now();
		vq->stray_kicks = 0;
	}
	if (++vq->stray_kicks <= STRAY_KICKS)
		return;
	vq->no_kick = true;
	reactor_watch_stop(vq->kick_watch);
	vq->kick_watch = NULL;
}

/* ------- start, stop, update: on the reactor ------- */

static void stopped_msg(struct msg *msg)
{
	struct vq *vq = container_of(msg, struct vq, msg);

	control_assert();
	if (vq->abandoned.next)
		abandoned_ended(vq);
	else
		session_vq_stopped(vq->owner);
}

/* Before stopped_msg(): messages of one sender keep their order. */
static void left_msg(struct msg *msg)
{
	struct vq *vq = container_of(msg, struct vq, left_msg);

	control_assert();
	session_vq_abandoned(vq->owner);
}

/* The front end's fds are not ours from here on. */
REACTOR_ONLY static void let_go_of_fds(struct vq *vq)
{
	if (vq->call_timer.node.next) {
		reactor_timer_stop(&vq->call_timer);
		call_now(vq);
	}
	reactor_signal_free(vq->call);
	reactor_watch_stop(vq->kick_watch);
	vq->call = NULL;
	vq->kick_watch = NULL;
}

REACTOR_ONLY static void vq_report_stopped(struct vq *vq)
{
	let_go_of_fds(vq);
	vq_reqs_release(vq);
	reqs_leave();
	vq->msg.fn = stopped_msg;
	control_post(&vq->msg);
}

static void flush_done(struct bdev_io *io, int err)
{
	struct vq *vq = container_of(io, struct vq, flush);

	reactor_assert();
	if (err)
		log_limited(LOG_ERROR, vq->limit, "%s: cannot write back what is cached: %s", vq->name,
			    strerror(-err));
	vq_report_stopped(vq);
}

/*
 * Stopping, and the last request has ended. The guest may go on at another target:
 * what is cached in this process must be on the storage before it does.
 */
REACTOR_ONLY static void vq_idle(struct vq *vq)
{
	if (!vq->own_cache || vq->flushed) {
		vq_report_stopped(vq);
		return;
	}
	vq->flushed = true;
	vq->flush.ch = vq->ch;
	vq->flush.type = BDEV_FLUSH;
	vq->flush.done = flush_done;
	bdev_submit(&vq->flush);
}

static void vq_publish(struct defer *d)
{
	struct vq *vq = container_of(d, struct vq, publish);

	reactor_assert();
	if (likely(!vq->detached) && vq_show(vq))
		vq_notify(vq);
	counter_set(&vq->inflight, vq->inflight_now);
	if (unlikely(vq->stopping) && vq->inflight_now == 0 && !vq->fetching)
		vq_idle(vq);
}

/* Serve the ring. */
REACTOR_ONLY static void vq_go(struct vq *vq)
{
	reactor_poller_add(&vq->poller);
	/*
	 * A back end before us may have published used entries and died before its
	 * call; and requests that were kicked for may not have been seen.
	 */
	if (vq->call)
		reactor_signal_send(vq->call);
	vq_resubmit(vq);
}

/* Stopped meanwhile. What it owes the guest is still done, unless another is to do it. */
REACTOR_ONLY static bool settle_is_idle(const struct vq *vq)
{
	return vq->stopping && (vq->detached || vq->fl->again_count == 0);
}

REACTOR_ONLY static void settle_submit(struct vq *vq)
{
	vq->inflight_now++;
	bdev_submit(&vq->flush);
}

static void settle_again(struct timer *t)
{
	struct vq *vq = container_of(t, struct vq, settle_timer);

	reactor_assert();
	settle_submit(vq);
}

static void settle_done(struct bdev_io *io, int err)
{
	struct vq *vq = container_of(io, struct vq, flush);

	reactor_assert();
	vq->inflight_now--;
	/*
	 * Another client keeps the lock, say: what it may have under way is not known. One
	 * that is fenced does no harm, and its guest had better hear of it.
	 */
	if (err && err != -ESHUTDOWN && !settle_is_idle(vq)) {
		log_limited(LOG_WARNING, vq->limit, "%s: cannot tell whether others' requests have "
			    "ended: %s: asking again", vq->name, strerror(-err));
		reactor_timer_start(&vq->settle_timer, SETTLE_AGAIN_US);
		return;
	}
	vq->settle = false;
	counter_set(&vq->settling, 0);
	if (!vq->stopping) {
		vq_go(vq);
		return;
	}
	if (!vq->detached)
		vq_resubmit(vq);
	if (vq->inflight_now == 0 && !vq->publish.queued && !vq->fetching)
		vq_idle(vq);
}

/*
 * What others left under way on this storage must have ended before the first request:
 * what is done again comes after it, and what is read is not older.
 */
REACTOR_ONLY static void vq_settle(struct vq *vq)
{
	counter_set(&vq->settling, 1);
	vq->settle_timer.fn = settle_again;
	vq->flush.ch = vq->ch;
	vq->flush.type = BDEV_FLUSH;
	vq->flush.done = settle_done;
	settle_submit(vq);
}

static void start_msg(struct msg *msg)
{
	struct vq *vq = container_of(msg, struct vq, start);

	reactor_assert();
	reqs_bring(vq->brought);
	vq->brought = NULL;
	if (vq->call_fd >= 0)
		vq->call = reactor_signal_create(vq->call_fd);
	if (vq->kick_fd < 0 ||
	    reactor_watch_start(vq->kick_fd, vq_kicked, vq, &vq->kick_watch) < 0)
		vq->no_kick = true;
	vq->interval_start = reactor_now();
	vring_disable_kick(&vq->vring);
	if (vq->settle)
		vq_settle(vq);
	else
		vq_go(vq);
}

/*
 * What has ended is told to the guest now; nothing is from here on. What is in flight,
 * or cached, goes on without its ring.
 */
REACTOR_ONLY static void vq_abandon(struct vq *vq)
{
	if (vq->publish.queued && vq_show(vq))
		vq_notify(vq);
	vq->detached = true;
	let_go_of_fds(vq);
	if (vq->inflight_now == 0 && !vq->own_cache)
		return;
	vq->left_msg.fn = left_msg;
	control_post(&vq->left_msg);
}

static void stop_msg(struct msg *msg)
{
	struct vq *vq = container_of(msg, struct vq, msg);

	reactor_assert();
	vq->stopping = true;
	vq->detached = vq->stop_how != VQ_DRAIN;
	if (!vq->broken && !vq->settle)
		reactor_poller_del(&vq->poller);
	if (vq->stop_how == VQ_ABANDON)
		vq_abandon(vq);
	if (vq->settle_timer.node.next) {
		if (!settle_is_idle(vq))
			return;
		reactor_timer_stop(&vq->settle_timer);
		counter_set(&vq->settling, 0);
	}
	if (vq->inflight_now == 0 && !vq->publish.queued && !vq->fetching)
		vq_idle(vq);
}

void vq_fetched(struct vq *vq)
{
	vq->fetching = false;
	/* A stop waits for what was in flight before us, unless nobody is left to be told. */
	if (!vq->broken && !vq->fetch->lost && !vq->detached)
		vq_resubmit(vq);
	if (vq->stopping && vq->inflight_now == 0 && !vq->publish.queued && !vq->fetching)
		vq_idle(vq);
}

static void updated_msg(struct msg *msg)
{
	struct vq *vq = container_of(msg, struct vq, msg);

	control_assert();
	if (vq->update.mem != vq->mem) {
		guest_mem_put(vq->mem);
		vq->mem = vq->update.mem;
	}
	guest_mem_put(vq->log_mem);
	vq->log_mem = vq->update.log_mem;
	session_vq_updated(vq->owner);
}

static void measured_msg(struct msg *msg)
{
	struct vq *vq = container_of(msg, struct vq, measure);

	control_assert();
	session_vq_measured(vq->owner);
}

static void measure_msg(struct msg *msg)
{
	struct vq *vq = container_of(msg, struct vq, measure);
	uint64_t now, oldest;

	reactor_assert();
	now = oldest = reactor_now();
	/* Between two passes: what is busy is with the bdev. */
	for (uint32_t i = 0; vq->inflight_now && i < vq->num; i++) {
		const struct req_chunk *c = vq->chunks[i / REQ_CHUNK];
		const struct blk_req *req = c ? &c->reqs[i % REQ_CHUNK] : NULL;

		if (req && req->busy && req->io.submit_tsc < oldest)
			oldest = req->io.submit_tsc;
	}
	vq->oldest_us = (uint64_t)((double)(now - oldest) * 1e6 / (double)tsc_hz());
	vq->measure.fn = measured_msg;
	control_post(&vq->measure);
}

static void set_log(struct vq *vq, const struct vq_update *u)
{
	vq->log = u->log;
	vq->vring.log = u->log_mem ? &vq->log : NULL;
	vq->vring.log_used = u->log_used;
}

/* Queues that find all of their memory there know nothing of pages. */
static void set_mem(struct vq *vq, const struct guest_mem *mem)
{
	bool paged = mem->paged && vq->fetch;
	bool indirect = vq->vring.indirect || vq->vring.indirect_paged;

	vq->vring.mem = mem;
	vq->vring.hint = &mem->spans[0];
	vq->vring.fetch = paged ? vq->fetch : NULL;
	vq->vring.indirect = indirect && !paged;
	vq->vring.indirect_paged = indirect && paged;
	vq->poller.poll = paged ? vq_poll_paged : vq_poll;
}

static void update_msg(struct msg *msg)
{
	struct vq *vq = container_of(msg, struct vq, msg);
	struct vq_update *u = &vq->update;

	reactor_assert();
	set_mem(vq, u->mem);
	vq->writethrough = u->writethrough;
	vq->coalescing_us = u->coalescing_us;
	vq->coalescing_iops = u->coalescing_iops;
	vq->err_fd = u->err_fd;
	set_log(vq, u);
	if (!u->coalescing_us)
		vq->call_delay = 0;
	reactor_signal_free(vq->call);
	vq->call = u->call_fd >= 0 ? reactor_signal_create(u->call_fd) : NULL;
	/* A call between the old fd and the new may have been lost: call again. */
	if (vq->call)
		reactor_signal_send(vq->call);
	vq->msg.fn = updated_msg;
	control_post(&vq->msg);
}

/* ------- control's side ------- */

void vq_start(struct vq *vq)
{
	controller_reactor_load(vq->reactor, 1);
	vq->start.fn = start_msg;
	reactor_post(vq->reactor, &vq->start);
}

void vq_stop(struct vq *vq, enum vq_stop how)
{
	page_fetch_cancel(vq->fetch);
	vq->stop_how = how;
	vq->msg.fn = stop_msg;
	reactor_post(vq->reactor, &vq->msg);
}

void vq_update(struct vq *vq)
{
	vq->msg.fn = update_msg;
	reactor_post(vq->reactor, &vq->msg);
}

void vq_measure(struct vq *vq)
{
	vq->measure.fn = measure_msg;
	reactor_post(vq->reactor, &vq->measure);
}

CONTROL_ONLY static int tracking_create(struct vq *vq, const struct vq_params *p)
{
	int rc;

	if (vq->vring.packed) {
		vq->ended = calloc(p->ring.num, sizeof(vq->ended[0]));
		vq->descs = calloc(p->ring.num + 1, sizeof(vq->descs[0]));
		if (!vq->ended || !vq->descs)
			return -ENOMEM;
	}
	if (!p->inflight_mem)
		return 0;
	vq->inflight_mem = guest_mem_get(p->inflight_mem);
	rc = inflight_create(p->inflight, p->inflight_num, &vq->vring, &vq->fl);
	return rc == -EINVAL ? -EBADMSG : rc;
}

static int paging_create(struct vq *vq, const struct guest_mem *mem)
{
	if (!mem->paged)
		return 0;
	vq->fetch = calloc(1, sizeof(*vq->fetch));
	if (!vq->fetch)
		return -ENOMEM;
	vq->fetch->owner = vq;
	set_mem(vq, mem);
	return 0;
}

static int reqs_create(struct vq *vq, uint32_t num)
{
	vq->num = num;
	vq->chunks = calloc((num + REQ_CHUNK - 1) / REQ_CHUNK, sizeof(struct req_chunk *));
	vq->brought = req_chunk_new(vq->reactor);
	return vq->chunks && vq->brought ? 0 : -ENOMEM;
}

int vq_create(const struct vq_params *p, struct vq **out)
{
	struct vq *vq = aligned_alloc(CACHE_LINE, sizeof(*vq));
	int rc;

	if (!vq)
		return -ENOMEM;
	memset(vq, 0, sizeof(*vq));
	vq->owner = p->owner;
	vq->limit = &p->owner->session->controller->limit;
	vq->reactor = p->reactor;
	vq->mem = guest_mem_get(p->mem);
	vq->writethrough = p->update.writethrough;
	vq->coalescing_us = p->update.coalescing_us;
	vq->coalescing_iops = p->update.coalescing_iops;
	vq->call_fd = p->update.call_fd;
	vq->err_fd = p->update.err_fd;
	vq->kick_fd = p->kick_fd;
	vq->features = p->features;
	vq->readonly = p->readonly;
	vq->generation = p->generation;
	vq->poller = (struct poller){ .name = vq->name, .poll = vq_poll, .arm = vq_arm,
				      .disarm = vq_disarm, .group = p->owner->session };
	vq->publish.fn = vq_publish;
	vq->call_timer.fn = call_timer_fired;
	snprintf(vq->name, sizeof(vq->name), "%s.q%u", p->name, p->owner->index);
	rc = vring_init(&vq->vring, &p->ring);
	if (rc < 0)
		goto fail;
	vq->log_mem = p->update.log_mem ? guest_mem_get(p->update.log_mem) : NULL;
	set_log(vq, &p->update);
	rc = paging_create(vq, p->mem);
	if (rc < 0)
		goto fail;
	if (p->desc && p->desc->bdev) {
		vq->ch = bdev_channel_get(p->desc, p->reactor);
		if (!vq->ch) {
			rc = -errno;
			goto fail;
		}
		vq->write_cache = p->desc->bdev->write_cache;
		vq->own_cache = bdev_has_own_cache(p->desc->bdev);
	}
	/* Not before the storage is ours: another back end may still write the region. */
	rc = tracking_create(vq, p);
	vq->settle = vq->fl && !vq->fl->fresh && !p->settled && vq->ch &&
		bdev_settles(bdev_channel_bdev(vq->ch));
	if (rc == 0)
		rc = reqs_create(vq, p->ring.num);
	if (rc < 0)
		goto fail;
	*out = vq;
	return 0;
fail:
	vq_free(vq);
	return rc;
}

void vq_free(struct vq *vq)
{
	if (!vq)
		return;
	while (vq->long_iovs) {
		struct long_iov *next = vq->long_iovs->next;

		free(vq->long_iovs);
		vq->long_iovs = next;
	}
	req_chunk_free(vq->brought, vq->reactor);
	free(vq->chunks);
	bdev_channel_put(vq->ch);
	guest_mem_put(vq->mem);
	guest_mem_put(vq->inflight_mem);
	guest_mem_put(vq->log_mem);
	inflight_free(vq->fl);
	free(vq->ended);
	free(vq->descs);
	free(vq->fetch);
	free(vq);
}
