/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The life of a virtqueue: made by control, started, updated and stopped by messages to
 * its reactor, freed by control. What it does meanwhile is in vq.c.
 *
 * A vq that stops pops no more, waits until inflight_now is 0 and the last used
 * entry is published, and reports. One that is abandoned (abandon.c) reports twice:
 * that it does not touch the rings any more, and that its requests have ended. A drain
 * under way can be raised to either (vq_stop_raise()): that message may cross the report,
 * so the vq is gone only when both have come. One that
 * goes on where another back end left off first waits for what that has under way, where
 * the storage can tell (vq_settle()).
 */
#include "vhost/vhost_internal.h"

#include "reactor/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SETTLE_AGAIN_US 50000

/* ------- on the reactor ------- */

/* No message of it is under way any more. */
CONTROL_ONLY static void vq_stopped(struct vq *vq)
{
	if (vq->abandoned.next)
		abandoned_ended(vq);
	else
		session_vq_stopped(vq->owner);
}

/* A raise that it has crossed is still on its way, in the vq. */
static void stopped_msg(struct msg *msg)
{
	struct vq *vq = container_of(msg, struct vq, msg);

	control_assert();
	vq->over = true;
	if (!vq->raising)
		vq_stopped(vq);
}

static void raised_msg(struct msg *msg)
{
	struct vq *vq = container_of(msg, struct vq, raise);

	control_assert();
	vq->raising = false;
	if (vq->over)
		vq_stopped(vq);
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
		vq_call_now(vq);
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
	vq->reported = true;
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
 * A flush of ours would ask for the lock. Where the next owner of the ring has that, it
 * has had the cache written back; and while we take it away again, writes of that owner
 * wait without a lock: were they abandoned now, they would land on newer ones.
 */
REACTOR_ONLY static bool vq_writes_back(const struct vq *vq)
{
	return vq->own_cache && !(vq->detached && vq->lock_writes_back);
}

void vq_idle(struct vq *vq)
{
	if (!vq_writes_back(vq) || vq->flushed) {
		vq_report_stopped(vq);
		return;
	}
	vq->flushed = true;
	vq->flush.ch = vq->ch;
	vq->flush.type = BDEV_FLUSH;
	vq->flush.done = flush_done;
	bdev_submit(&vq->flush);
}

/* Serve the ring. */
REACTOR_ONLY static void vq_go(struct vq *vq)
{
	if (!vq->paused)
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
	vq->settle_since = reactor_now();
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
	if (vq->publish.queued)
		vq_show_now(vq);
	vq->detached = true;
	let_go_of_fds(vq);
	if (vq->inflight_now == 0 && !vq->flushed && !vq_writes_back(vq))
		return;
	vq->left_msg.fn = left_msg;
	control_post(&vq->left_msg);
}

/* It stops: what becomes of its requests. */
REACTOR_ONLY static void vq_end(struct vq *vq, enum vq_stop how)
{
	vq->detached = how != VQ_DRAIN;
	if (how == VQ_ABANDON)
		vq_abandon(vq);
	if (vq->settle_timer.node.next) {
		if (!settle_is_idle(vq))
			return;
		reactor_timer_stop(&vq->settle_timer);
		counter_set(&vq->settling, 0);
	}
	if (vq->inflight_now == 0 && !vq->publish.queued && !vq->fetching && !vq->flushed)
		vq_idle(vq);
}

static void stop_msg(struct msg *msg)
{
	struct vq *vq = container_of(msg, struct vq, msg);

	reactor_assert();
	vq->stopping = true;
	if (!vq->broken && !vq->settle && !vq->paused)
		reactor_poller_del(&vq->poller);
	vq_end(vq, vq->stop_how);
}

static void raise_msg(struct msg *msg)
{
	struct vq *vq = container_of(msg, struct vq, raise);

	reactor_assert();
	if (!vq->reported)
		vq_end(vq, vq->raise_how);
	vq->raise.fn = raised_msg;
	control_post(&vq->raise);
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
	/* One that settles has no request yet: a stop waits for its flush, and for what it owes. */
	if (vq->settle && (vq->inflight_now || vq->fl->again_count))
		oldest = vq->settle_since;
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

REACTOR_ONLY static void set_paused(struct vq *vq, bool paused)
{
	if (vq->paused == paused)
		return;
	vq->paused = paused;
	if (vq->broken || vq->settle)
		return;
	if (paused) {
		reactor_poller_del(&vq->poller);
		return;
	}
	/* It may have been parked. */
	vring_disable_kick(&vq->vring);
	reactor_poller_add(&vq->poller);
}

static void update_msg(struct msg *msg)
{
	struct vq *vq = container_of(msg, struct vq, msg);
	struct vq_update *u = &vq->update;

	reactor_assert();
	set_mem(vq, u->mem);
	set_paused(vq, u->paused);
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

void vq_stop_raise(struct vq *vq, enum vq_stop how)
{
	if (vq->stop_how != VQ_DRAIN || vq->raise_how != VQ_DRAIN || how == VQ_DRAIN)
		return;
	vq->raise_how = how;
	vq->raising = true;
	vq->raise.fn = raise_msg;
	reactor_post(vq->reactor, &vq->raise);
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

	vq->ended = calloc(p->ring.num, sizeof(vq->ended[0]));
	if (vq->vring.packed)
		vq->descs = calloc(p->ring.num + 1, sizeof(vq->descs[0]));
	if (!vq->ended || (vq->vring.packed && !vq->descs))
		return -ENOMEM;
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
	vq->paused = p->update.paused;
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
	vq->call_timer.fn = vq_call_timer_fired;
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
	vq->lock_writes_back = vq->fl && vq->ch && bdev_settles(bdev_channel_bdev(vq->ch));
	vq->settle = vq->lock_writes_back && !vq->fl->fresh && !p->settled;
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
	vq_free_iovs(vq);
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
