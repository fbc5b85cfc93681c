/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A queue whose guest's memory may have holes (vhost/postcopy.h). Its poller takes one
 * request at a time. One that is not all there, with the tables it is described in, is left
 * in the ring; what it lacks is fetched, and what the next ones lack with it, and nothing
 * more is begun until that has come. The rings themselves are there before the queue starts.
 *
 * The check is made on what vring_map() has found, before anything of it is touched, so a
 * driver that rewrites its descriptors meanwhile wins nothing.
 */
#include "vhost/vhost_internal.h"

#define BATCH 32
#define LOOK_AHEAD 32

/* ------- to control and back ------- */

static void fetched_msg(struct msg *msg)
{
	struct page_fetch *f = container_of(msg, struct page_fetch, msg);

	reactor_assert();
	page_fetch_clear(f);
	vq_fetched(f->owner);
}

static void fetch_done(struct page_fetch *f)
{
	struct vq *vq = f->owner;

	f->msg.fn = fetched_msg;
	reactor_post(vq->reactor, &f->msg);
}

static void fetch_msg(struct msg *msg)
{
	struct page_fetch *f = container_of(msg, struct page_fetch, msg);
	struct vq *vq = f->owner;

	control_assert();
	page_fetch_send(vq->owner->session, f);
}

void vq_fetch(struct vq *vq, bool must)
{
	struct page_fetch *f = vq->fetch;

	vq->fetching = true;
	f->must = must;
	f->done = fetch_done;
	f->msg.fn = fetch_msg;
	control_post(&f->msg);
}

/* ------- serving ------- */

/* One head: 1, 0 for none, or the negated fault. */
static int pop_one(struct vring *vr, struct vring_head *head, struct vring_desc_packed *descs)
{
	if (vr->packed)
		return packed_pop(vr, head, 1, descs);
	*head = (struct vring_head){ 0 };
	return vring_pop(vr, &head->id, 1);
}

/* What the requests behind the first lack: fetched with it, many at a time. */
REACTOR_ONLY static void look_ahead(const struct vq *vq)
{
	static _Thread_local struct iovec iov[VRING_CHAIN_MAX + 64];
	struct vring peek = vq->vring;
	struct vring_head head;

	for (unsigned int i = 0; i < LOOK_AHEAD && pop_one(&peek, &head, vq->descs) > 0; i++) {
		struct vring_chain c = { .iov = iov, .cap = ARRAY_SIZE(iov) };
		enum vring_fault fault = peek.packed ? packed_map(&peek, &head, &c) :
						       vring_map(&peek, head.id, &c);

		if (fault == VRING_OK && !vring_chain_too_long(&c))
			pages_present_iov(peek.mem, iov, c.out + c.in, peek.fetch);
		else if (fault != VRING_MISSING)
			return;
	}
}

/* False: no more for now. */
REACTOR_ONLY static bool serve_one(struct vq *vq)
{
	bool note = vq->fl && !vq->vring.packed;
	struct vring before = vq->vring;
	struct vring_head head;
	const struct blk_req *req;
	enum vring_fault fault;
	int n = pop_one(&vq->vring, &head, vq->descs);

	if (n < 0)
		vq_break(vq, (enum vring_fault)-n, 0);
	if (n <= 0)
		return false;
	req = vq_slot(vq, head.id);
	note = note && req && !req->busy;
	if (note) {
		inflight_take(vq->fl, head.id, 0);
		inflight_taken(vq->fl, 1);
	}
	fault = vq_begin(vq, &head, false);
	if (fault == VRING_OK)
		return true;
	if (note)
		inflight_forget(vq->fl, head.id);
	if (fault == VRING_MISSING) {
		vq->vring = before;
		look_ahead(vq);
		vq_fetch(vq, false);
	} else {
		vq_break(vq, fault, head.id);
	}
	return false;
}

unsigned int vq_poll_paged(struct poller *p)
{
	struct vq *vq = container_of(p, struct vq, poller);
	unsigned int n = 0;

	reactor_assert();
	if (vq->fetching)
		return 0;
	while (n < BATCH && !vring_empty(&vq->vring) && serve_one(vq))
		n++;
	counter_add(&vq->requests, n);
	counter_set(&vq->inflight, vq->inflight_now);
	return n;
}
