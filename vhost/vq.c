/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A running virtqueue: a poller on one reactor that pops requests, and the end
 * of each request. Made and freed by the control thread; between vq_start() and
 * session_vq_stopped() everything in it is the reactor's.
 *
 * Every popped head is in exactly one of two states: its request is busy and
 * counted in inflight_now, or it has ended. What ends in one pass is shown to the
 * driver together, by the deferred vq_publish(): its used entries, one store that makes
 * all of them visible, at most one call. Until then its slot stays busy.
 *
 * A broken vq stays like that until the front end stops it: requests in flight end
 * normally, nothing new is looked at. How it starts and stops is in vq_life.c.
 */
#include "vhost/vhost_internal.h"

#include "reactor/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BATCH 32
#define BATCH_SHARED 16u	/* while others are busy on the same reactor */
#define COALESCING_INTERVAL_MS 10
#define LONG_IOVS (VRING_CHAIN_MAX + 64)
#define STRAY_KICKS 1000	/* in a second */

/* Room for a long chain; kept by the vq once it has been needed. */
struct long_iov {
	struct long_iov *next;
	struct iovec iov[LONG_IOVS];
};

/* ------- calling the guest ------- */

void vq_call_now(struct vq *vq)
{
	if (vq->call)
		reactor_signal_send(vq->call);
	vq->next_call = reactor_now() + vq->call_delay;
}

void vq_call_timer_fired(struct timer *t)
{
	struct vq *vq = container_of(t, struct vq, call_timer);

	reactor_assert();
	vq_call_now(vq);
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
	vq_call_now(vq);
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

void vq_free_iovs(struct vq *vq)
{
	while (vq->long_iovs) {
		struct long_iov *next = vq->long_iovs->next;

		free(vq->long_iovs);
		vq->long_iovs = next;
	}
}

REACTOR_ONLY static void show_packed(struct vq *vq, unsigned int n)
{
	if (vq->fl)
		inflight_push_packed(vq->fl, &vq->vring, vq->ended, n);
	else
		packed_push(&vq->vring, vq->ended, n);
}

REACTOR_ONLY static void show_split(struct vq *vq, unsigned int n)
{
	if (vq->fl)
		inflight_show(vq->fl, vq->ended, n);
	for (unsigned int i = 0; i < n; i++)
		vring_push(&vq->vring, vq->ended[i].head, vq->ended[i].len);
	vring_show(&vq->vring);
	if (vq->fl)
		inflight_shown(vq->fl, vq->ended, n, vq->vring.used_idx);
}

/* Publish what has ended; true: call the guest. */
REACTOR_ONLY static bool vq_show(struct vq *vq)
{
	unsigned int n = vq->ended_count;

	if (n == 0)
		return false;
	/* All of it before the fence of *_wants_call(), whose wait hides it: 4 % on null. */
	if (vq->vring.packed)
		show_packed(vq, n);
	else
		show_split(vq, n);
	for (unsigned int i = 0; i < n; i++)
		vq_req(vq, vq->ended[i].head)->busy = false;
	vq->ended_count = 0;
	return vq->vring.packed ? packed_wants_call(&vq->vring) : vring_wants_call(&vq->vring);
}

void vq_show_now(struct vq *vq)
{
	if (vq_show(vq))
		vq_notify(vq);
}

void vq_complete(struct vq *vq, struct blk_req *req)
{
	/* Not more than num: a slot is busy until its end has been shown. */
	if (likely(!vq->detached))
		vq->ended[vq->ended_count++] =
			(struct used_entry){ req->used_len, req->head, req->count };
	if (unlikely(req->iov != req->inline_iov))
		vq_release_iov(vq, req);
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
	if (!vq->stopping && !vq->paused)
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

void vq_resubmit(struct vq *vq)
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

unsigned int vq_poll(struct poller *p)
{
	struct vq *vq = container_of(p, struct vq, poller);

	if (vring_empty(&vq->vring))
		return 0;
	reactor_assert();
	return vq_serve(vq);
}

bool vq_arm(struct poller *p)
{
	struct vq *vq = container_of(p, struct vq, poller);

	reactor_assert();
	/* Its ring is not looked at until the pages have come, so no kick would tell of it. */
	if (vq->fetching)
		return true;
	vq->stray_kicks = 0;
	if (vq->no_kick || !reactor_watch_works(vq->kick_watch) || vring_enable_kick(&vq->vring))
		return true;
	if (vq->inflight_now == 0 && vq->ended_count == 0) {
		vq_reqs_release(vq);
		vq_free_iovs(vq);
	}
	return false;
}

void vq_disarm(struct poller *p)
{
	struct vq *vq = container_of(p, struct vq, poller);

	vring_disable_kick(&vq->vring);
}

/*
 * A driver that was told not to kick, and does so all the same, makes the kernel tell
 * us of each: on a reactor that polls, its kicks are heard no more.
 */
void vq_kicked(void *arg)
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

void vq_publish(struct defer *d)
{
	struct vq *vq = container_of(d, struct vq, publish);

	reactor_assert();
	if (likely(!vq->detached) && vq_show(vq))
		vq_notify(vq);
	counter_set(&vq->inflight, vq->inflight_now);
	if (unlikely(vq->stopping) && vq->inflight_now == 0 && !vq->fetching)
		vq_idle(vq);
}
