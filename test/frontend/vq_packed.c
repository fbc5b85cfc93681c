/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver's side of a packed virtqueue (VIRTIO 1.2, section 2.8), behind the same functions as
 * the split one: see vq.c for what is trusted and what is not.
 *
 * One ring of descriptors: vq->desc_gpa. A descriptor is available when its AVAIL flag equals our
 * wrap counter and its USED flag does not, and used when both equal the device's. The driver's and
 * the device's event suppression are at vq->avail_gpa and vq->used_gpa, 4 bytes each.
 *
 * A request is named by a buffer id, which is taken from the same free list that split rings take
 * heads from. Its number counts; the descriptors it occupies follow each other from vq->avail_idx,
 * and vq->num_free counts the places nobody uses. Only the last descriptor of a chain carries the
 * id: the others' are filled with what must not be believed.
 *
 * Publishing. The flags of the first descriptor of what is not yet published are held back; all
 * behind it may be complete, as the device cannot pass it. fe_publish releases them.
 */
#include <errno.h>
#include <string.h>

#include "vq.h"

#define WRONG_ID 0xfffeu

static struct vring_packed_desc *ring(const struct fe_vq *vq)
{
	return (struct vring_packed_desc *)(void *)vq->desc;
}

static struct vring_packed_desc_event *driver_event(const struct fe_vq *vq)
{
	return (struct vring_packed_desc_event *)(void *)vq->avail;
}

static const struct vring_packed_desc_event *device_event(const struct fe_vq *vq)
{
	return (const struct vring_packed_desc_event *)(const void *)vq->used;
}

uint16_t fe_vq_avail_bits(bool wrap)
{
	return (uint16_t)(wrap ? 1u << VRING_PACKED_DESC_F_AVAIL : 1u << VRING_PACKED_DESC_F_USED);
}

void fe_packed_reset(struct fe_vq *vq)
{
	vq->avail_wrap = vq->used_wrap = true;
	vq->base = FE_PACKED_START;
	vq->held = false;
	vq->added = 0;
}

void fe_vq_set_packed(struct fe_vq *vq, uint32_t pos, uint64_t addr, uint32_t len, uint16_t id,
		      uint16_t flags)
{
	struct vring_packed_desc *d = &ring(vq)[pos % vq->size];

	d->addr = addr;
	d->len = len;
	d->id = id;
	__atomic_store_n(&d->flags, flags, __ATOMIC_RELEASE);
}

void fe_vq_get_packed(const struct fe_vq *vq, uint32_t pos, struct vring_packed_desc *out)
{
	const struct vring_packed_desc *d = &ring(vq)[pos % vq->size];

	out->flags = __atomic_load_n(&d->flags, __ATOMIC_ACQUIRE);
	out->addr = d->addr;
	out->len = d->len;
	out->id = d->id;
}

void fe_vq_set_driver_event(struct fe_vq *vq, uint16_t off_wrap, uint16_t flags)
{
	__atomic_store_n(&driver_event(vq)->off_wrap, off_wrap, __ATOMIC_RELEASE);
	__atomic_store_n(&driver_event(vq)->flags, flags, __ATOMIC_RELEASE);
}

uint32_t fe_vq_device_event(const struct fe_vq *vq)
{
	uint16_t flags = __atomic_load_n(&device_event(vq)->flags, __ATOMIC_ACQUIRE);

	return (uint32_t)flags << 16 |
	       __atomic_load_n(&device_event(vq)->off_wrap, __ATOMIC_ACQUIRE);
}

/* ---- making available ---- */

static void step_avail(struct fe_vq *vq, unsigned int count)
{
	unsigned int next = vq->avail_idx + count;

	if (next >= vq->size) {
		next -= vq->size;
		vq->avail_wrap = !vq->avail_wrap;
	}
	vq->avail_idx = (uint16_t)next;
}

/* One descriptor at avail_idx; the first of a batch waits for fe_packed_publish. */
static void put(struct fe_vq *vq, uint64_t addr, uint32_t len, uint16_t id, uint16_t flags)
{
	struct vring_packed_desc *d = &ring(vq)[vq->avail_idx];

	flags = (uint16_t)(flags | fe_vq_avail_bits(vq->avail_wrap));
	d->addr = addr;
	d->len = len;
	d->id = id;
	if (vq->held) {
		d->flags = flags;
	} else {
		vq->held = true;
		vq->held_at = vq->avail_idx;
		vq->held_flags = flags;
	}
	step_avail(vq, 1);
}

static int put_indirect(struct fe_vq *vq, uint16_t id, const struct fe_seg *segs, unsigned int num,
			uint64_t table_gpa)
{
	if (table_gpa == FE_NO_GPA)
		table_gpa = fe_vq_table(vq, &vq->slots[id], num);
	if (table_gpa == FE_NO_GPA)
		return -ENOSPC;
	for (unsigned int i = 0; i < num; i++) {
		struct vring_packed_desc d = {
			.addr = segs[i].gpa, .len = segs[i].len, .id = WRONG_ID,
			.flags = (segs[i].flags & FE_SEG_WRITE) ? VRING_DESC_F_WRITE : 0,
		};
		int rc = fe_mem_write(vq->fe, table_gpa + 16u * i, &d, sizeof(d));

		if (rc < 0)
			return rc;
	}
	put(vq, table_gpa, 16u * num, id, VRING_DESC_F_INDIRECT);
	return 0;
}

int fe_packed_add(struct fe_vq *vq, uint16_t id, const struct fe_seg *segs, unsigned int num,
	       bool indirect, uint64_t table_gpa)
{
	if (indirect) {
		int rc = put_indirect(vq, id, segs, num, table_gpa);

		if (rc < 0)
			return rc;
		num = 1;
	} else {
		for (unsigned int i = 0; i < num; i++) {
			bool last = i + 1 == num;
			uint16_t flags = (segs[i].flags & FE_SEG_WRITE) ? VRING_DESC_F_WRITE : 0;

			put(vq, segs[i].gpa, segs[i].len, last ? id : WRONG_ID,
			    (uint16_t)(flags | (last ? 0 : VRING_DESC_F_NEXT)));
		}
	}
	vq->slots[id].num_desc = (uint16_t)num;
	vq->free_head = vq->next_free[id];
	vq->num_free = (uint16_t)(vq->num_free - num);
	vq->added = (uint16_t)(vq->added + num);
	return 0;
}

void fe_packed_publish(struct fe_vq *vq)
{
	if (vq->held)
		__atomic_store_n(&ring(vq)[vq->held_at].flags, vq->held_flags, __ATOMIC_RELEASE);
	vq->held = false;
}

bool fe_packed_wants_kick(struct fe_vq *vq)
{
	uint32_t event = fe_vq_device_event(vq);
	uint16_t added = vq->added;
	int at = event & 0x7fff;

	vq->added = 0;
	switch (event >> 16 & 3) {
	case VRING_PACKED_EVENT_FLAG_ENABLE:
		return true;
	case VRING_PACKED_EVENT_FLAG_DESC:
		if (!vq->event_idx)
			return true;
		if ((event >> 15 & 1) != vq->avail_wrap)
			at -= vq->size;
		return (uint16_t)(vq->avail_idx - at - 1) < added;
	default:
		return false;
	}
}

/* ---- completions ---- */

bool fe_packed_ready(const struct fe_vq *vq)
{
	uint16_t flags = __atomic_load_n(&ring(vq)[vq->last_used].flags, __ATOMIC_ACQUIRE);
	bool avail = flags >> VRING_PACKED_DESC_F_AVAIL & 1;
	bool used = flags >> VRING_PACKED_DESC_F_USED & 1;

	return avail == used && used == vq->used_wrap;
}

void fe_packed_look(const struct fe_vq *vq, uint32_t *id, uint32_t *len)
{
	*id = ring(vq)[vq->last_used].id;
	*len = ring(vq)[vq->last_used].len;
}

void fe_packed_seen(struct fe_vq *vq, uint16_t count)
{
	unsigned int next = (unsigned int)vq->last_used + count;

	if (next >= vq->size) {
		next -= vq->size;
		vq->used_wrap = !vq->used_wrap;
	}
	vq->last_used = (uint16_t)next;
}

void fe_packed_give_back(struct fe_vq *vq, uint16_t id)
{
	struct fe_slot *slot = &vq->slots[id];

	slot->busy = false;
	vq->in_flight--;
	vq->num_free = (uint16_t)(vq->num_free + slot->num_desc);
	vq->next_free[id] = vq->free_head;
	vq->free_head = id;
}

void fe_packed_ask_call(struct fe_vq *vq)
{
	if (vq->event_idx)
		fe_vq_set_driver_event(vq, (uint16_t)(vq->last_used | vq->used_wrap << 15),
				       VRING_PACKED_EVENT_FLAG_DESC);
	else
		fe_vq_set_driver_event(vq, 0, VRING_PACKED_EVENT_FLAG_ENABLE);
}
