/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Split virtqueues, and what both kinds of ring share.
 *
 * Barriers. The guest fills descriptors and the avail ring, then stores the
 * avail index (release); we load it with acquire. We fill used entries and store
 * the used index; the guest loads it with acquire. Two places need more, a store
 * that is ordered before a later load of another word: publishing the used index
 * before looking whether the guest wants a call (it does the mirror image before
 * it sleeps), and asking for kicks before looking at the avail index again. The
 * first is a fence in vring_wants_call(), so that what is noted in between does not
 * wait for the guest's cache line; the second uses sequentially consistent accesses.
 */
#include "vhost/vring_internal.h"

#define NO_INTERRUPT 1
#define NO_NOTIFY 1

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian in place");

/* An indirect table that lies in more than one region is gathered here. */
static _Thread_local struct vring_desc_split gathered[VRING_CHAIN_MAX];
_Static_assert(sizeof(struct vring_desc_split) == sizeof(struct vring_desc_packed),
	       "one room for both kinds of table");

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
		[VRING_MISSING] = "request in memory that is missing",
	};

	return texts[fault];
}

static int split_init(struct vring *vr, const struct vring_params *p)
{
	uint16_t *avail, *used;

	vr->desc = guest_mem_from_uva(p->mem, p->desc_uva, 16ull * p->num);
	/* flags, idx, the ring, and the event word behind it */
	avail = guest_mem_from_uva(p->mem, p->avail_uva, 6 + 2ull * p->num);
	used = guest_mem_from_uva(p->mem, p->used_uva, 6 + 8ull * p->num);
	if (!vr->desc || !avail || !used)
		return -EFAULT;
	/* Ours must be aligned, whatever the front end's own addresses are. */
	if (((uintptr_t)vr->desc & 7) || ((uintptr_t)avail & 1) || ((uintptr_t)used & 3))
		return -EINVAL;
	vr->avail_flags = (_Atomic uint16_t *)&avail[0];
	vr->avail_idx = (_Atomic uint16_t *)&avail[1];
	vr->avail_ring = &avail[2];
	vr->used_event = (_Atomic uint16_t *)&avail[2 + p->num];
	vr->used_flags = (_Atomic uint16_t *)&used[0];
	vr->used_idx_ptr = (_Atomic uint16_t *)&used[1];
	vr->used_ring = (void *)&used[2];
	vr->avail_event = (_Atomic uint16_t *)(void *)&vr->used_ring[p->num];
	vr->last_avail = (uint16_t)p->base;
	vr->used_idx = atomic_load_explicit(vr->used_idx_ptr, memory_order_relaxed);
	return 0;
}

int vring_init(struct vring *vr, const struct vring_params *p)
{
	if (p->num == 0 || p->num > VRING_SIZE_MAX || (p->num & (p->num - 1)))
		return -EINVAL;
	*vr = (struct vring){
		.num = (uint16_t)p->num,
		.mask = (uint16_t)(p->num - 1),
		.mem = p->mem,
		.hint = &p->mem->spans[0],
		.log_used = DIRTY_LOG_NONE,
		.event_idx = p->event_idx,
		.indirect = p->indirect,
	};
	return p->packed ? packed_init(vr, p) : split_init(vr, p);
}

uint32_t vring_base(const struct vring *vr)
{
	if (!vr->packed)
		return vr->last_avail;
	return vr->last_avail | (uint32_t)vr->avail_wrap << 15 | (uint32_t)vr->used_idx << 16 |
	       (uint32_t)vr->used_wrap << 31;
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

typedef uint64_t half __attribute__((may_alias));

/* One descriptor, copied once, in two loads: what is checked is what is used. */
static inline struct vring_desc_split desc_load(const struct vring_desc_split *d)
{
	const half *halves = (const half *)d;
	uint64_t rest = __atomic_load_n(&halves[1], __ATOMIC_RELAXED);

	return (struct vring_desc_split){
		.addr = __atomic_load_n(&halves[0], __ATOMIC_RELAXED),
		.len = (uint32_t)rest,
		.flags = (uint16_t)(rest >> 32),
		.next = (uint16_t)(rest >> 48),
	};
}

const void *vring_table_slow(struct vring *vr, uint64_t gpa, uint32_t len)
{
	uint8_t *to = (uint8_t *)gathered;
	uint64_t left = len, n;
	const uint8_t *from = guest_mem_translate(vr->mem, &vr->hint, gpa, left, &n);

	if (from && n == left && ((uintptr_t)from & 7) == 0)
		return from;
	/* Across regions, or at an odd address: copied. */
	while (left > 0) {
		from = guest_mem_translate(vr->mem, &vr->hint, gpa, left, &n);
		if (!from)
			return NULL;
		for (uint64_t i = 0; i < n; i++)
			*to++ = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
		gpa += n;
		left -= n;
	}
	return gathered;
}

enum vring_fault vring_add_slow(struct vring *vr, uint64_t gpa, uint32_t len, uint16_t flags,
				struct vring_chain *c)
{
	unsigned int used = c->out + c->in;
	uint64_t left = len;

	if (len == 0)
		return VRING_ZERO_LENGTH;
	if (gpa + len < gpa)
		return VRING_ADDRESS;
	if (!(flags & DESC_WRITE) && c->in > 0)
		return VRING_ORDER;
	while (left > 0) {
		uint64_t n;
		void *hva = guest_mem_translate(vr->mem, &vr->hint, gpa, left, &n);

		if (!hva)
			return VRING_ADDRESS;
		if (used == c->cap && (!c->grow || !c->grow(c, used)))
			return used >= VRING_CHAIN_MAX ? VRING_LOOP : VRING_NO_MEMORY;
		c->iov[used].iov_base = hva;
		c->iov[used].iov_len = n;
		used++;
		gpa += n;
		left -= n;
	}
	if (flags & DESC_WRITE) {
		c->in = used - c->out;
		c->in_bytes += len;
	} else {
		c->out = used;
		c->out_bytes += len;
	}
	return VRING_OK;
}

enum vring_fault vring_map(struct vring *vr, uint16_t head, struct vring_chain *c)
{
	const struct vring_desc_split *table = vr->desc;
	unsigned int size = vr->num, left = vr->num, next = head;
	const void *indirect;
	enum vring_fault fault;
	bool inside = false;	/* an indirect table */

	vring_chain_init(c);
	for (;;) {
		struct vring_desc_split d;

		if (unlikely(next >= size))
			return VRING_NEXT_RANGE;
		if (unlikely(left-- == 0))
			return VRING_LOOP;
		d = desc_load(&table[next]);
		if (d.flags & DESC_INDIRECT) {
			/* Not by the table's address: a guest may point one at the ring itself. */
			if (unlikely(inside || (d.flags & DESC_NEXT)))
				return VRING_INDIRECT;
			inside = true;
			fault = vring_table(vr, d.addr, d.len, &indirect);
			if (unlikely(fault))
				return fault;
			table = indirect;
			left = size = d.len / 16;
			next = 0;
			continue;
		}
		fault = vring_add_buffer(vr, d.addr, d.len, d.flags, c);
		if (unlikely(fault))
			return fault;
		if (!(d.flags & DESC_NEXT))
			return VRING_OK;
		next = d.next;
	}
}

bool vring_wants_call(struct vring *vr)
{
	uint16_t old = vr->signalled, new = vr->used_idx, event;
	bool valid = vr->signalled_valid;

	/* The guest re-reads the used index after stating its wish. */
	atomic_thread_fence(memory_order_seq_cst);
	if (!vr->event_idx)
		return !(atomic_load_explicit(vr->avail_flags, memory_order_relaxed) &
			 NO_INTERRUPT);
	vr->signalled = new;
	vr->signalled_valid = true;
	if (unlikely(!valid))
		return true;
	event = atomic_load_explicit(vr->used_event, memory_order_relaxed);
	return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

static void log_kick(const struct vring *vr)
{
	if (unlikely(vr->log))
		vring_log_used(vr, vr->event_idx ? USED_RING + 8ull * vr->num : 0,
			       sizeof(uint16_t));
}

bool vring_enable_kick(struct vring *vr)
{
	if (vr->packed)
		return packed_enable_kick(vr);
	if (vr->event_idx)
		atomic_store_explicit(vr->avail_event, vr->last_avail, memory_order_seq_cst);
	else
		atomic_store_explicit(vr->used_flags, 0, memory_order_seq_cst);
	log_kick(vr);
	return atomic_load_explicit(vr->avail_idx, memory_order_seq_cst) != vr->last_avail;
}

void vring_disable_kick(struct vring *vr)
{
	if (vr->packed) {
		packed_disable_kick(vr);
		return;
	}
	/* An event index just behind us is crossed once in 65536 requests. */
	if (vr->event_idx)
		atomic_store_explicit(vr->avail_event, (uint16_t)(vr->last_avail - 1),
				      memory_order_relaxed);
	else
		atomic_store_explicit(vr->used_flags, NO_NOTIFY, memory_order_relaxed);
	log_kick(vr);
}
