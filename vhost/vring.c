/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Split virtqueues.
 *
 * Barriers. The guest fills descriptors and the avail ring, then stores the
 * avail index (release); we load it with acquire. We fill used entries and store
 * the used index; the guest loads it with acquire. Two places need more, a store
 * that is ordered before a later load of another word: publishing the used index
 * before looking whether the guest wants a call (it does the mirror image before
 * it sleeps), and asking for kicks before looking at the avail index again. Both
 * use sequentially consistent accesses, on x86 one xchg.
 */
#include "vhost/vring.h"

#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4
#define NO_INTERRUPT 1
#define NO_NOTIFY 1

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian in place");

/* An indirect table that lies in more than one region is gathered here. */
static _Thread_local struct vring_desc_split gathered[VRING_CHAIN_MAX];

const char *vring_fault_text(enum vring_fault fault)
{
	static const char *const texts[VRING_FAULTS] = {
		[VRING_OK] = "no fault",
		[VRING_AVAIL_JUMP] = "avail index jumped by more than the queue size",
		[VRING_HEAD_RANGE] = "avail ring names a descriptor beyond the queue",
		[VRING_HEAD_BUSY] = "descriptor made available again while in use",
		[VRING_NEXT_RANGE] = "descriptor's next is beyond its table",
		[VRING_LOOP] = "descriptor chain has a loop or is too long",
		[VRING_INDIRECT] = "bad indirect descriptor",
		[VRING_ZERO_LENGTH] = "descriptor of zero length",
		[VRING_ADDRESS] = "descriptor outside the guest's memory",
		[VRING_ORDER] = "readable descriptor after a writable one",
		[VRING_NO_STATUS] = "request without a writable status byte",
		[VRING_NO_MEMORY] = "out of memory for a long descriptor chain",
	};

	return texts[fault];
}

int vring_init(struct vring *vr, const struct vring_params *p)
{
	uint16_t *avail, *used;

	if (p->num == 0 || p->num > VRING_SIZE_MAX || (p->num & (p->num - 1)))
		return -EINVAL;
	*vr = (struct vring){ 0 };
	vr->desc = guest_mem_from_uva(p->mem, p->desc_uva, 16ull * p->num);
	/* flags, idx, the ring, and the event word behind it */
	avail = guest_mem_from_uva(p->mem, p->avail_uva, 6 + 2ull * p->num);
	used = guest_mem_from_uva(p->mem, p->used_uva, 6 + 8ull * p->num);
	if (!vr->desc || !avail || !used)
		return -EFAULT;
	/* Ours must be aligned, whatever the front end's own addresses are. */
	if (((uintptr_t)vr->desc & 7) || ((uintptr_t)avail & 1) || ((uintptr_t)used & 3))
		return -EINVAL;
	vr->num = (uint16_t)p->num;
	vr->mask = (uint16_t)(p->num - 1);
	vr->avail_flags = (_Atomic uint16_t *)&avail[0];
	vr->avail_idx = (_Atomic uint16_t *)&avail[1];
	vr->avail_ring = &avail[2];
	vr->used_event = (_Atomic uint16_t *)&avail[2 + p->num];
	vr->used_flags = (_Atomic uint16_t *)&used[0];
	vr->used_idx_ptr = (_Atomic uint16_t *)&used[1];
	vr->used_ring = (void *)&used[2];
	vr->avail_event = (_Atomic uint16_t *)(void *)&vr->used_ring[p->num];
	vr->mem = p->mem;
	vr->hint = &p->mem->spans[0];
	vr->event_idx = p->event_idx;
	vr->indirect = p->indirect;
	vr->last_avail = p->base;
	vr->used_idx = atomic_load_explicit(vr->used_idx_ptr, memory_order_relaxed);
	return 0;
}

int vring_pop(struct vring *vr, uint16_t *heads, unsigned int max)
{
	/* Pairs with the guest's release: the entries up to idx are complete. */
	uint16_t idx = atomic_load_explicit(vr->avail_idx, memory_order_acquire);
	unsigned int n = (uint16_t)(idx - vr->last_avail);

	if (unlikely(n > vr->num))
		return -VRING_AVAIL_JUMP;
	n = MIN(n, max);
	for (unsigned int i = 0; i < n; i++) {
		uint16_t head = __atomic_load_n(&vr->avail_ring[vr->last_avail & vr->mask],
						__ATOMIC_RELAXED);

		if (unlikely(head >= vr->num))
			return i ? (int)i : -VRING_HEAD_RANGE;
		heads[i] = head;
		vr->last_avail++;
	}
	return (int)n;
}

/* One descriptor, copied in one go: what is checked is what is used. */
static inline struct vring_desc_split desc_load(const struct vring_desc_split *d)
{
	struct vring_desc_split copy;

	copy.addr = __atomic_load_n(&d->addr, __ATOMIC_RELAXED);
	copy.len = __atomic_load_n(&d->len, __ATOMIC_RELAXED);
	copy.flags = __atomic_load_n(&d->flags, __ATOMIC_RELAXED);
	copy.next = __atomic_load_n(&d->next, __ATOMIC_RELAXED);
	return copy;
}

COLD static const struct vring_desc_split *gather_table(struct vring *vr, uint64_t gpa,
							uint64_t len)
{
	uint8_t *to = (uint8_t *)gathered;

	while (len > 0) {
		uint64_t n;
		const uint8_t *from = guest_mem_translate(vr->mem, &vr->hint, gpa, len, &n);

		if (!from)
			return NULL;
		for (uint64_t i = 0; i < n; i++)
			*to++ = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
		gpa += n;
		len -= n;
	}
	return gathered;
}

static enum vring_fault enter_table(struct vring *vr, const struct vring_desc_split *d,
				    const struct vring_desc_split **table, unsigned int *size)
{
	uint64_t contiguous;

	if (!vr->indirect || (d->flags & DESC_NEXT) || d->len == 0 || d->len % 16)
		return VRING_INDIRECT;
	if (d->len / 16 > VRING_CHAIN_MAX)
		return VRING_LOOP;
	*size = d->len / 16;
	*table = guest_mem_translate(vr->mem, &vr->hint, d->addr, d->len, &contiguous);
	if (!*table)
		return VRING_ADDRESS;
	/* An unaligned table is copied as well: its words must load whole. */
	if (unlikely(contiguous < d->len || ((uintptr_t)*table & 7))) {
		*table = gather_table(vr, d->addr, d->len);
		if (!*table)
			return VRING_ADDRESS;
	}
	return VRING_OK;
}

/* Append one buffer, which may lie in several regions. */
static inline enum vring_fault add_buffer(struct vring *vr, const struct vring_desc_split *d,
					  struct vring_chain *c)
{
	unsigned int used = c->out + c->in;
	uint64_t gpa = d->addr, left = d->len;

	while (left > 0) {
		uint64_t n;
		void *hva = guest_mem_translate(vr->mem, &vr->hint, gpa, left, &n);

		if (unlikely(!hva))
			return VRING_ADDRESS;
		if (unlikely(used == c->cap)) {
			if (!c->grow || !c->grow(c, used))
				return used >= VRING_CHAIN_MAX ? VRING_LOOP : VRING_NO_MEMORY;
		}
		c->iov[used].iov_base = hva;
		c->iov[used].iov_len = n;
		used++;
		gpa += n;
		left -= n;
	}
	if (d->flags & DESC_WRITE) {
		c->in = used - c->out;
		c->in_bytes += d->len;
	} else {
		c->out = used;
		c->out_bytes += d->len;
	}
	return VRING_OK;
}

enum vring_fault vring_map(struct vring *vr, uint16_t head, struct vring_chain *c)
{
	const struct vring_desc_split *table = vr->desc;
	unsigned int size = vr->num, left = vr->num, next = head;
	enum vring_fault fault;
	bool inside = false;	/* an indirect table */

	c->out = c->in = 0;
	c->out_bytes = c->in_bytes = 0;
	for (;;) {
		struct vring_desc_split d;

		if (unlikely(next >= size))
			return VRING_NEXT_RANGE;
		if (unlikely(left-- == 0))
			return VRING_LOOP;
		d = desc_load(&table[next]);
		if (d.flags & DESC_INDIRECT) {
			/* Not by the table's address: a guest may point one at the ring itself. */
			if (unlikely(inside))
				return VRING_INDIRECT;
			inside = true;
			fault = enter_table(vr, &d, &table, &size);
			if (unlikely(fault))
				return fault;
			left = size;
			next = 0;
			continue;
		}
		if (unlikely(d.len == 0))
			return VRING_ZERO_LENGTH;
		if (unlikely(d.addr + d.len < d.addr))
			return VRING_ADDRESS;
		if (unlikely(!(d.flags & DESC_WRITE) && c->in > 0))
			return VRING_ORDER;
		fault = add_buffer(vr, &d, c);
		if (unlikely(fault))
			return fault;
		if (!(d.flags & DESC_NEXT))
			return VRING_OK;
		next = d.next;
	}
}

bool vring_publish(struct vring *vr)
{
	uint16_t old = vr->signalled, new = vr->used_idx;
	bool valid = vr->signalled_valid;

	/*
	 * Release for the entries, and ordered before the look at the guest's
	 * wish: it re-reads the used index after stating that wish.
	 */
	atomic_store_explicit(vr->used_idx_ptr, new, memory_order_seq_cst);
	if (!vr->event_idx)
		return !(atomic_load_explicit(vr->avail_flags, memory_order_seq_cst) &
			 NO_INTERRUPT);
	vr->signalled = new;
	vr->signalled_valid = true;
	if (unlikely(!valid))
		return true;
	uint16_t event = atomic_load_explicit(vr->used_event, memory_order_seq_cst);

	return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

bool vring_enable_kick(struct vring *vr)
{
	if (vr->event_idx)
		atomic_store_explicit(vr->avail_event, vr->last_avail, memory_order_seq_cst);
	else
		atomic_store_explicit(vr->used_flags, 0, memory_order_seq_cst);
	return atomic_load_explicit(vr->avail_idx, memory_order_seq_cst) != vr->last_avail;
}

void vring_disable_kick(struct vring *vr)
{
	/* An event index just behind us is crossed once in 65536 requests. */
	if (vr->event_idx)
		atomic_store_explicit(vr->avail_event, (uint16_t)(vr->last_avail - 1),
				      memory_order_relaxed);
	else
		atomic_store_explicit(vr->used_flags, NO_NOTIFY, memory_order_relaxed);
}
