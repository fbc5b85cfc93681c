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
 * Barriers. Flags are loaded before the rest of a descriptor (acquire) and stored
 * after it (release). The driver's event area is looked at after the used flags
 * are visible, and the flags of the next descriptor after our event area is: both
 * need a full fence.
 */
#include "vhost/vring_internal.h"

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

static inline uint16_t after(const struct vring *vr, uint16_t pos, uint16_t count)
{
	return (uint16_t)(pos + count) & vr->mask;
}

/* The end of the request that starts at last_avail. */
static inline enum vring_fault find_end(const struct vring *vr, struct packed_head *head)
{
	const struct vring_desc_packed *d = &vr->packed[vr->last_avail];
	uint16_t count = 1;

	while (__atomic_load_n(&d->flags, __ATOMIC_ACQUIRE) & DESC_NEXT) {
		if (unlikely(count >= vr->room))
			return VRING_LOOP;
		d = &vr->packed[after(vr, vr->last_avail, count++)];
	}
	head->id = __atomic_load_n(&d->id, __ATOMIC_RELAXED);
	head->first = vr->last_avail;
	head->count = count;
	if (unlikely(head->id >= vr->num))
		return VRING_HEAD_RANGE;
	return count > vr->room ? VRING_AVAIL_JUMP : VRING_OK;
}

int packed_pop(struct vring *vr, struct packed_head *heads, unsigned int max)
{
	unsigned int n = 0;

	while (n < max) {
		/* The flags of the first descriptor are the last that the driver writes. */
		uint16_t flags = __atomic_load_n(&vr->packed[vr->last_avail].flags,
						 __ATOMIC_ACQUIRE);
		enum vring_fault fault;

		if (!packed_is_avail(flags, vr->avail_wrap))
			break;
		fault = find_end(vr, &heads[n]);
		if (unlikely(fault))
			return n ? (int)n : -(int)fault;
		vr->room = (uint16_t)(vr->room - heads[n].count);
		vr->last_avail = after(vr, vr->last_avail, heads[n].count);
		if (vr->last_avail < heads[n].first || heads[n].count == vr->num)
			vr->avail_wrap = !vr->avail_wrap;
		n++;
	}
	return (int)n;
}

static inline struct vring_desc_packed desc_load(const struct vring_desc_packed *d)
{
	struct vring_desc_packed copy;

	copy.addr = __atomic_load_n(&d->addr, __ATOMIC_RELAXED);
	copy.len = __atomic_load_n(&d->len, __ATOMIC_RELAXED);
	copy.id = 0;
	copy.flags = __atomic_load_n(&d->flags, __ATOMIC_RELAXED);
	return copy;
}

static enum vring_fault map_indirect(struct vring *vr, const struct vring_desc_packed *d,
				     struct vring_chain *c)
{
	const struct vring_desc_packed *table;
	const void *at;
	unsigned int size;
	enum vring_fault fault = vring_table(vr, d->addr, d->len, &at, &size);

	if (unlikely(fault))
		return fault;
	table = at;
	for (unsigned int i = 0; i < size; i++) {
		struct vring_desc_packed in = desc_load(&table[i]);

		/* In such a table, all but WRITE is reserved. */
		if (unlikely(in.flags & DESC_INDIRECT))
			return VRING_INDIRECT;
		fault = vring_add_buffer(vr, in.addr, in.len, in.flags, c);
		if (unlikely(fault))
			return fault;
	}
	return VRING_OK;
}

enum vring_fault packed_map(struct vring *vr, const struct vring_desc_packed *table,
			    const struct packed_head *head, struct vring_chain *c)
{
	c->out = c->in = 0;
	c->out_bytes = c->in_bytes = 0;
	for (uint16_t i = 0; i < head->count; i++) {
		struct vring_desc_packed d = desc_load(table ? &table[i] :
						       &vr->packed[after(vr, head->first, i)]);
		enum vring_fault fault;

		if (d.flags & DESC_INDIRECT) {
			/* The whole request; NEXT may have changed since we looked for its end. */
			if (unlikely(head->count != 1 || (d.flags & DESC_NEXT)))
				return VRING_INDIRECT;
			return map_indirect(vr, &d, c);
		}
		fault = vring_add_buffer(vr, d.addr, d.len, d.flags, c);
		if (unlikely(fault))
			return fault;
	}
	return VRING_OK;
}

void packed_push(struct vring *vr, uint16_t id, uint16_t count, uint32_t len)
{
	struct vring_desc_packed *d = &vr->packed[vr->used_idx];
	uint16_t old = vr->used_idx;

	d->id = id;
	d->len = len;
	__atomic_store_n(&d->flags, vr->used_wrap ? PACKED_AVAIL | PACKED_USED : 0,
			 __ATOMIC_RELEASE);
	if (unlikely(vr->log && vr->log_used != DIRTY_LOG_NONE))
		dirty_log_hva(vr->log, vr->mem, d, sizeof(*d));
	vr->used_idx = after(vr, old, count);
	if (vr->used_idx < old || count == vr->num)
		vr->used_wrap = !vr->used_wrap;
	vr->room = (uint16_t)(vr->room + count);
	vr->fresh = (uint16_t)MIN(vr->fresh + count, UINT16_MAX);
}

bool packed_publish(struct vring *vr)
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
