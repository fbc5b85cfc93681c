/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Packed virtqueues (VIRTIO 1.2, section 2.8): one ring of descriptors that both
 * sides write. The driver marks a descriptor available, the device a used one, by
 * two flag bits whose meaning turns round with each lap: the wrap counters.
 *
 * A request occupies consecutive descriptors; the last of them names its buffer
 * id. Its used entry is written over the place of the oldest descriptors, in the
 * order of completion, and skips as many places as the request had. A driver
 * cannot have more descriptors available than the ring has places: `room` counts,
 * and one that does is broken, so nothing here ever laps itself.
 *
 * Barriers. Flags of a request's first descriptor are loaded before all else of it
 * (acquire): the driver stores them last. Of the used entries of a batch, which the
 * driver looks at in order, the first's flags are stored last (release), so that one
 * store shows them all. The driver's event area is looked at after the used flags
 * are visible, and the flags of the next descriptor after our event area is: both
 * need a full fence.
 */
#include "vhost/vring_internal.h"

#include <string.h>

#define EVENT_ENABLE 0
#define EVENT_DISABLE 1
#define EVENT_DESC 2
#define OFF_MASK 0x7fffu

int packed_init(struct vring *vr, const struct vring_params *p)
{
	uint16_t avail = p->base & OFF_MASK, used = p->base >> 16 & OFF_MASK;

	vr->packed = guest_mem_from_uva(p->mem, p->desc_uva, 16ull * p->num);
	vr->driver_event = guest_mem_from_uva(p->mem, p->avail_uva, sizeof(*vr->driver_event));
	vr->device_event = guest_mem_from_uva(p->mem, p->used_uva, sizeof(*vr->device_event));
	if (!vr->packed || !vr->driver_event || !vr->device_event)
		return -EFAULT;
	if (((uintptr_t)vr->packed & 15) || ((uintptr_t)vr->driver_event & 3) ||
	    ((uintptr_t)vr->device_event & 3))
		return -EINVAL;
	if (avail >= p->num || used >= p->num)
		return -EINVAL;
	vr->last_avail = avail;
	vr->avail_wrap = p->base >> 15 & 1;
	vr->used_idx = used;
	vr->used_wrap = p->base >> 31;
	/* A ring that starts between the two has requests in flight. */
	vr->room = vr->num;
	return 0;
}

typedef uint64_t half __attribute__((may_alias));

/* Copied once, in two loads: what is checked is what is used. */
static inline void desc_load(struct vring_desc_packed *to, const struct vring_desc_packed *from)
{
	const half *halves = (const half *)from;
	uint64_t copy[2];

	/* With the flags first. */
	copy[1] = __atomic_load_n(&halves[1], __ATOMIC_ACQUIRE);
	copy[0] = __atomic_load_n(&halves[0], __ATOMIC_RELAXED);
	memcpy(to, copy, sizeof(copy));
}

static inline void advance(const struct vring *vr, uint16_t *pos, bool *wrap, unsigned int count)
{
	unsigned int to = *pos + count;

	*wrap ^= to >= vr->num;
	*pos = (uint16_t)(to & vr->mask);
}

/* The request that starts at last_avail, whose first descriptor has been copied. */
static inline enum vring_fault copy_rest(const struct vring *vr, struct vring_desc_packed *to,
					 struct vring_head *head)
{
	const struct vring_desc_packed *last = to;
	unsigned int at = vr->last_avail;
	uint16_t count = 1;

	if (unlikely(vr->room == 0))
		return VRING_AVAIL_JUMP;
	while (last->flags & DESC_NEXT) {
		if (unlikely(count >= vr->room))
			return VRING_LOOP;
		at = (at + 1) & vr->mask;
		desc_load(&to[count], &vr->packed[at]);
		last = &to[count++];
	}
	head->id = last->id;
	head->count = count;
	head->descs = to;
	return likely(head->id < vr->num) ? VRING_OK : VRING_HEAD_RANGE;
}

int packed_pop(struct vring *vr, struct vring_head *heads, unsigned int max,
	       struct vring_desc_packed *descs)
{
	unsigned int n = 0;

	while (n < max) {
		enum vring_fault fault;

		desc_load(descs, &vr->packed[vr->last_avail]);
		if (!packed_is_avail(descs->flags, vr->avail_wrap))
			break;
		fault = copy_rest(vr, descs, &heads[n]);
		if (unlikely(fault))
			return n ? (int)n : -(int)fault;
		vr->room = (uint16_t)(vr->room - heads[n].count);
		advance(vr, &vr->last_avail, &vr->avail_wrap, heads[n].count);
		descs += heads[n].count;
		n++;
	}
	return (int)n;
}

static enum vring_fault map_indirect(struct vring *vr, const struct vring_desc_packed *d,
				     struct vring_chain *c)
{
	const struct vring_desc_packed *table;
	const void *at;
	enum vring_fault fault = vring_table(vr, d->addr, d->len, &at);

	if (unlikely(fault))
		return fault;
	table = at;
	for (unsigned int i = 0; i < d->len / 16; i++) {
		struct vring_desc_packed in;

		desc_load(&in, &table[i]);
		/* In such a table, all but WRITE is reserved. */
		if (unlikely(in.flags & DESC_INDIRECT))
			return VRING_INDIRECT;
		fault = vring_add_buffer(vr, in.addr, in.len, in.flags, c);
		if (unlikely(fault))
			return fault;
	}
	return VRING_OK;
}

enum vring_fault packed_map(struct vring *vr, const struct vring_head *head,
			    struct vring_chain *c)
{
	vring_chain_init(c);
	for (uint16_t i = 0; i < head->count; i++) {
		const struct vring_desc_packed *d = &head->descs[i];
		enum vring_fault fault;

		if (d->flags & DESC_INDIRECT) {
			/* It is the whole request. */
			if (unlikely(head->count != 1))
				return VRING_INDIRECT;
			return map_indirect(vr, d, c);
		}
		fault = vring_add_buffer(vr, d->addr, d->len, d->flags, c);
		if (unlikely(fault))
			return fault;
	}
	return VRING_OK;
}

static inline void log_desc(const struct vring *vr, const struct vring_desc_packed *d)
{
	if (unlikely(vr->log && vr->log_used != DIRTY_LOG_NONE))
		dirty_log_hva(vr->log, vr->mem, d, sizeof(*d));
}

void packed_push(struct vring *vr, const struct used_entry *entries, unsigned int n)
{
	struct vring_desc_packed *first = &vr->packed[vr->used_idx];
	uint16_t first_flags = vr->used_wrap ? PACKED_AVAIL | PACKED_USED : 0;

	for (unsigned int i = 0; i < n; i++) {
		const struct used_entry *e = &entries[i];
		struct vring_desc_packed *d = &vr->packed[vr->used_idx];

		d->id = e->head;
		d->len = e->len;
		if (i > 0) {
			__atomic_store_n(&d->flags, vr->used_wrap ? PACKED_AVAIL | PACKED_USED : 0,
					 __ATOMIC_RELAXED);
			log_desc(vr, d);
		}
		advance(vr, &vr->used_idx, &vr->used_wrap, e->count);
		vr->room = (uint16_t)(vr->room + e->count);
		vr->fresh = (uint16_t)MIN(vr->fresh + e->count, UINT16_MAX);
	}
	__atomic_store_n(&first->flags, first_flags, __ATOMIC_RELEASE);
	log_desc(vr, first);
}

void packed_take_back(const struct vring *vr, uint16_t from, bool from_wrap, uint16_t to,
		      bool to_wrap)
{
	unsigned int left = (to - from) & vr->mask;

	if (left == 0 && from_wrap != to_wrap)
		left = vr->num;
	for (; left > 0; left--) {
		struct vring_desc_packed *d = &vr->packed[from];
		uint16_t flags = from_wrap ? PACKED_AVAIL : PACKED_USED;

		/* Others are as their driver wrote them: the middle of a request has no used entry. */
		if (!packed_is_avail(packed_flags(d), from_wrap)) {
			__atomic_store_n(&d->flags, flags, __ATOMIC_RELEASE);
			log_desc(vr, d);
		}
		advance(vr, &from, &from_wrap, 1);
	}
}

bool packed_wants_call(struct vring *vr)
{
	uint16_t flags, off_wrap, fresh = vr->fresh;
	int event;

	vr->fresh = 0;
	if (fresh == 0)
		return false;
	/* Ordered after the used flags: the driver looks at those after stating its wish. */
	atomic_thread_fence(memory_order_seq_cst);
	flags = atomic_load_explicit(&vr->driver_event->flags, memory_order_relaxed) & 3;
	if (flags != EVENT_DESC || !vr->event_idx)
		return flags != EVENT_DISABLE;
	/* Whether the place it names is among those just used: none further back than fresh. */
	off_wrap = atomic_load_explicit(&vr->driver_event->off_wrap, memory_order_relaxed);
	event = off_wrap & OFF_MASK;
	if ((off_wrap >> 15) != vr->used_wrap)
		event -= vr->num;
	return vr->used_idx - event - 1 >= 0 && vr->used_idx - event - 1 < fresh;
}

static void set_event(struct vring *vr, uint16_t flags)
{
	atomic_store_explicit(&vr->device_event->flags, flags, memory_order_relaxed);
	if (unlikely(vr->log))
		vring_log_used(vr, 0, sizeof(*vr->device_event));
}

bool packed_enable_kick(struct vring *vr)
{
	if (vr->event_idx) {
		atomic_store_explicit(&vr->device_event->off_wrap,
				      (uint16_t)(vr->last_avail | vr->avail_wrap << 15),
				      memory_order_relaxed);
		atomic_thread_fence(memory_order_release);
		set_event(vr, EVENT_DESC);
	} else {
		set_event(vr, EVENT_ENABLE);
	}
	atomic_thread_fence(memory_order_seq_cst);
	return !vring_empty(vr);
}

void packed_disable_kick(struct vring *vr)
{
	set_event(vr, EVENT_DISABLE);
}
