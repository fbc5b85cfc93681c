/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The load generator's hot path over packed rings. A request's descriptors are copied into the
 * ring each time, as used entries overwrite them; the first of a batch becomes available last, by
 * packed_publish(), and with it all of the batch.
 */
#ifndef BENCH_PACKED_H
#define BENCH_PACKED_H

#include "load.h"

static inline struct vring_packed_desc *packed_ring(const struct bench_queue *q)
{
	return (struct vring_packed_desc *)(void *)q->vq->desc;
}

/* What stands in the ring for this request: three descriptors, or one that names a table. */
static inline void packed_build(struct slot *s, const struct fe_seg segs[3],
				struct vring_packed_desc *table, uint64_t table_gpa)
{
	struct vring_packed_desc *d = table ? table : s->d;

	for (int i = 0; i < 3; i++)
		d[i] = (struct vring_packed_desc){
			segs[i].gpa, segs[i].len, s->head,
			(uint16_t)((!table && i < 2 ? VRING_DESC_F_NEXT : 0) |
				   (segs[i].flags ? VRING_DESC_F_WRITE : 0)),
		};
	s->data_flags = &d[1].flags;
	s->num = 3;
	if (!table)
		return;
	s->num = 1;
	s->d[0] = (struct vring_packed_desc){ table_gpa, 48, s->head, VRING_DESC_F_INDIRECT };
}

static inline void packed_put(struct bench_queue *q, const struct slot *s)
{
	for (unsigned int i = 0; i < s->num; i++) {
		struct vring_packed_desc *d = &packed_ring(q)[q->at];
		uint16_t flags = (uint16_t)(s->d[i].flags | (q->wrap ?
			1u << VRING_PACKED_DESC_F_AVAIL : 1u << VRING_PACKED_DESC_F_USED));

		d->addr = s->d[i].addr;
		d->len = s->d[i].len;
		d->id = s->d[i].id;
		if (q->held) {
			d->flags = flags;
		} else {
			q->held = true;
			q->held_at = q->at;
			q->held_flags = flags;
		}
		if (++q->at == q->vq->size) {
			q->at = 0;
			q->wrap = !q->wrap;
		}
	}
	q->added = (uint16_t)(q->added + s->num < q->vq->size ? q->added + s->num : q->vq->size);
}

static inline void packed_publish(struct bench_queue *q)
{
	if (q->held)
		__atomic_store_n(&packed_ring(q)[q->held_at].flags, q->held_flags,
				 __ATOMIC_RELEASE);
	q->held = false;
}

static inline bool packed_wants_kick(const struct bench_queue *q)
{
	uint32_t event = fe_vq_device_event(q->vq);
	int at = event & 0x7fff;

	if (event >> 16 != VRING_PACKED_EVENT_FLAG_DESC)
		return event >> 16 != VRING_PACKED_EVENT_FLAG_DISABLE;
	if ((event >> 15 & 1) != q->wrap)
		at -= q->vq->size;
	return (uint16_t)(q->at - at - 1) < q->added;
}

static inline bool packed_ready(const struct bench_queue *q)
{
	uint16_t flags = __atomic_load_n(&packed_ring(q)[q->used_at].flags, __ATOMIC_ACQUIRE);
	bool used = flags >> VRING_PACKED_DESC_F_USED & 1;

	return used == (flags >> VRING_PACKED_DESC_F_AVAIL & 1) && used == q->used_wrap;
}

/* The request of the next used descriptor; NULL when its id is none of `count`. */
static inline struct slot *packed_take(struct bench_queue *q, uint32_t count)
{
	uint16_t id = packed_ring(q)[q->used_at].id;

	if (id >= count)
		return NULL;
	q->used_at = (uint16_t)(q->used_at + q->slots[id].num);
	if (q->used_at >= q->vq->size) {
		q->used_at = (uint16_t)(q->used_at - q->vq->size);
		q->used_wrap = !q->used_wrap;
	}
	return &q->slots[id];
}

static inline void packed_want_calls(struct bench_queue *q, bool on)
{
	if (!on)
		fe_vq_set_driver_event(q->vq, 0, VRING_PACKED_EVENT_FLAG_DISABLE);
	else if (q->vq->event_idx)
		fe_vq_set_driver_event(q->vq, (uint16_t)(q->used_at | q->used_wrap << 15),
				       VRING_PACKED_EVENT_FLAG_DESC);
	else
		fe_vq_set_driver_event(q->vq, 0, VRING_PACKED_EVENT_FLAG_ENABLE);
}

#endif
