/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Room for requests. A queue's slots are indexed by head, as many as the ring has
 * places, but few of them are in use at a time, and of an idle queue none. So they
 * come in chunks of neighbouring heads, out of a stack that all queues of a reactor
 * share: a queue takes a chunk when the first of its heads is made available, and
 * gives back what it has when it is parked. The stack's top is also what is in the
 * cache.
 *
 * Each queue that starts brings a chunk along, which control has allocated. What is
 * wanted beyond that is allocated here, on the reactor, once: what comes back stays,
 * KEEP of them, until the reactor has no queue any more.
 *
 * Owned by the reactor's thread; between req_chunk_new() and reqs_bring() by control.
 */
#include "vhost/vhost_internal.h"

#include "hugepages/hugepages.h"

#include <stdlib.h>
#include <string.h>

#define KEEP 64u	/* half a MiB */

static _Thread_local struct {
	struct req_chunk *first;
	unsigned int count;
	unsigned int queues;
} spare;

struct req_chunk *req_chunk_new(const struct reactor *r)
{
	return huge_pool_alloc(sizeof(struct req_chunk), reactor_numa_node(r));
}

void req_chunk_free(struct req_chunk *c, const struct reactor *r)
{
	if (c && c->heap)
		free(c);
	else if (c)
		huge_pool_free(c, sizeof(*c), reactor_numa_node(r));
}

static void spare_push(struct req_chunk *c)
{
	c->next = spare.first;
	spare.first = c;
	spare.count++;
}

/* No huge pages, or no more than the limit allows: a running queue must go on. */
COLD static struct req_chunk *chunk_more(void)
{
	struct req_chunk *c = req_chunk_new(reactor_current());

	if (c)
		return c;
	c = aligned_alloc(CACHE_LINE, sizeof(*c));
	if (!c)
		return NULL;
	memset(c, 0, sizeof(*c));
	c->heap = true;
	return c;
}

struct blk_req *vq_slot_slow(struct vq *vq, uint16_t head)
{
	struct req_chunk *c = spare.first;

	if (likely(c)) {
		spare.first = c->next;
		spare.count--;
	} else {
		c = chunk_more();
		if (!c)
			return NULL;
	}
	for (unsigned int i = 0; i < REQ_CHUNK; i++) {
		struct blk_req *req = &c->reqs[i];

		req->vq = vq;
		req->head = (uint16_t)((head & ~(REQ_CHUNK - 1)) + i);
		req->iov = req->inline_iov;
		req->io.ch = vq->ch;
		req->chain.grow = vq_grow_iov;
	}
	vq->chunks[head / REQ_CHUNK] = c;
	vq->chunk_count++;
	return &c->reqs[head % REQ_CHUNK];
}

/* Requests that ended unseen by the front end may have left it set. */
static void chunk_clear(struct req_chunk *c)
{
	for (unsigned int i = 0; i < REQ_CHUNK; i++)
		c->reqs[i].busy = false;
}

void vq_reqs_release(struct vq *vq)
{
	for (uint32_t i = 0; vq->chunk_count > 0; i++) {
		struct req_chunk *c = vq->chunks[i];

		if (!c)
			continue;
		vq->chunks[i] = NULL;
		vq->chunk_count--;
		if (unlikely(vq->detached))
			chunk_clear(c);
		if (spare.count < KEEP + spare.queues)
			spare_push(c);
		else
			req_chunk_free(c, vq->reactor);
	}
}

void reqs_bring(struct req_chunk *c)
{
	spare.queues++;
	spare_push(c);
}

void reqs_leave(void)
{
	const struct reactor *r = reactor_current();

	spare.queues--;
	/* What it brought, and when the last one goes, everything. */
	while (spare.first && (spare.queues == 0 || spare.count > KEEP + spare.queues)) {
		struct req_chunk *c = spare.first;

		spare.first = c->next;
		spare.count--;
		req_chunk_free(c, r);
	}
}
