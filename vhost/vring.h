/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Virtqueues in guest memory, device side (VIRTIO 1.2, sections 2.7 and 2.8). All
 * in a ring but what we write ourselves is written by the guest while we look:
 * each word is read once into a local and checked there.
 *
 * One struct serves both kinds of ring. What differs has a function for each: a
 * split ring names a request by its head descriptor, which stays in its table; a
 * packed one by a buffer id, beside the place and number of its descriptors.
 *
 * Owned by the reactor that polls the queue. Nothing here logs; a broken ring is
 * reported as an enum vring_fault, for the caller to act on.
 */
#ifndef SPINDLE_VRING_H
#define SPINDLE_VRING_H

#include "reactor/base.h"
#include "vhost/dirty_log.h"
#include "vhost/guest_mem.h"
#include "vhost/pages.h"

#include <sys/uio.h>

/* Feature bits (VIRTIO 1.2, section 6). */
#define VRING_F_INDIRECT_DESC 28
#define VRING_F_EVENT_IDX 29
#define VRING_F_PACKED 34

#define VRING_SIZE_MAX 1024	/* entries: what QEMU allows */
/* Data segments, plus a header and status cut to bytes. */
#define VRING_CHAIN_MAX (1024 + 17)

enum vring_fault {
	VRING_OK,
	VRING_AVAIL_JUMP,	/* avail index ahead of us by more than the ring's size */
	VRING_HEAD_RANGE,	/* head beyond the ring */
	VRING_HEAD_BUSY,	/* head made available again before it was used */
	VRING_NEXT_RANGE,	/* next beyond its table */
	VRING_LOOP,		/* more descriptors than the table has, or than we take; too long */
	VRING_INDIRECT,		/* table empty, of odd length, nested, chained or not negotiated */
	VRING_ZERO_LENGTH,
	VRING_ADDRESS,		/* outside the guest's memory, or wrapping */
	VRING_ORDER,		/* readable after writable */
	VRING_NO_STATUS,	/* no writable byte to answer in */
	VRING_NO_MEMORY,	/* ours: no room for a long chain */
	VRING_MISSING,		/* postcopy: pages of it are missing; vring.fetch has them */
	VRING_FAULTS
};
const char *vring_fault_text(enum vring_fault fault);

struct vring_desc_split {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

struct vring_desc_packed {
	uint64_t addr;
	uint32_t len;
	uint16_t id;
	uint16_t flags;
};

/* Event suppression of a packed ring. */
struct vring_event {
	_Atomic uint16_t off_wrap, flags;
};

struct vring {
	/* Read-mostly. */
	struct vring_desc_packed *packed;	/* NULL: a split ring */
	struct vring_event *driver_event;	/* when to call */
	struct vring_event *device_event;	/* when to kick */
	struct vring_desc_split *desc;
	_Atomic uint16_t *avail_idx;
	const uint16_t *avail_ring;
	_Atomic uint16_t *used_event;	/* behind the avail ring: when to call */
	struct vring_used_elem_split {
		uint32_t id, len;
	} *used_ring;
	_Atomic uint16_t *used_idx_ptr;
	_Atomic uint16_t *avail_event;	/* behind the used ring: when to kick */
	_Atomic uint16_t *avail_flags, *used_flags;
	const struct guest_mem *mem;
	const struct mem_span *hint;
	const struct dirty_log *log;	/* NULL: what we write is not logged */
	uint64_t log_used;	/* guest address of the used ring; DIRTY_LOG_NONE: not logged */
	struct page_fetch *fetch;	/* NULL: no page of mem is missing */
	uint16_t num, mask;
	bool event_idx, indirect;
	bool indirect_paged;	/* instead of indirect, while fetch is set: saves a look at that */
	/* Ours. */
	uint16_t last_avail;	/* next avail entry to look at */
	uint16_t used_idx;	/* next used entry to write; published by vring_show() */
	bool avail_wrap, used_wrap;	/* packed: wrap counters of both */
	uint16_t room;		/* packed: descriptors that may be made available */
	uint16_t signalled;	/* used index at the last call */
	uint16_t fresh;		/* packed: descriptors used since the last call */
	bool signalled_valid;
};

struct vring_params {
	const struct guest_mem *mem;
	uint64_t desc_uva, avail_uva, used_uva;	/* front-end addresses */
	uint32_t num;				/* power of two, <= VRING_SIZE_MAX */
	uint32_t base;				/* as vring_base() told it */
	bool event_idx, indirect, packed;
};
/* -EFAULT: a part lies outside the memory; -EINVAL: misaligned or bad size. */
int vring_init(struct vring *vr, const struct vring_params *params);

/* Where the entries of a split used ring start: behind flags and idx. */
#define USED_RING 4u

/* Log a write of `len` bytes at `offset` in the used ring (packed: the device's event area). */
static inline void vring_log_used(const struct vring *vr, uint64_t offset, uint64_t len)
{
	if (vr->log_used != DIRTY_LOG_NONE)
		dirty_log_range(vr->log, vr->log_used + offset, len);
}

/*
 * Where the ring stands, in vhost-user's terms: the next avail entry of a split
 * ring; of a packed one the next avail and used places with their wrap counters.
 */
uint32_t vring_base(const struct vring *vr);

#define PACKED_AVAIL (1u << 7)
#define PACKED_USED (1u << 15)

/* Whether a descriptor with these flags is available in the lap of this wrap counter. */
static inline bool packed_is_avail(uint16_t flags, bool wrap)
{
	return !(flags & PACKED_AVAIL) != wrap && !(flags & PACKED_USED) == wrap;
}

static inline uint16_t packed_flags(const struct vring_desc_packed *d)
{
	return __atomic_load_n(&d->flags, __ATOMIC_RELAXED);
}

/* One load and one compare. */
static inline bool vring_empty(const struct vring *vr)
{
	if (vr->packed)
		return !packed_is_avail(packed_flags(&vr->packed[vr->last_avail]), vr->avail_wrap);
	return atomic_load_explicit(vr->avail_idx, memory_order_relaxed) == vr->last_avail;
}

/*
 * Split: take at most max heads, in order. The number, or the negated fault; heads
 * before a bad one are delivered first.
 */
int vring_pop(struct vring *vr, uint16_t *heads, unsigned int max);

/*
 * The buffers of one head, in our addresses: out readable ones, then in
 * writable ones. The caller sets iov, cap and grow; when cap is used up, grow
 * must provide room for VRING_CHAIN_MAX or more, with the first `used` entries
 * copied, and returns false if it cannot.
 */
struct vring_chain {
	struct iovec *iov;
	unsigned int cap;
	unsigned int out, in;
	uint64_t out_bytes, in_bytes;
	bool (*grow)(struct vring_chain *chain, unsigned int used);
};
enum vring_fault vring_map(struct vring *vr, uint16_t head, struct vring_chain *chain);

/* "Drivers MUST NOT add a descriptor chain longer than 2^32 bytes in total" (2.7.5.2). */
static inline bool vring_chain_too_long(const struct vring_chain *chain)
{
	return chain->out_bytes + chain->in_bytes > UINT64_C(1) << 32;
}

/* A request that has ended; count: packed. */
struct used_entry {
	uint32_t len;
	uint16_t head, count;
};

/* A request: its head descriptor; packed: its buffer id, and copies of its descriptors. */
struct vring_head {
	uint16_t id, count;
	const struct vring_desc_packed *descs;
};
/*
 * Packed: as vring_pop(). Every descriptor is read here, once, and copied to descs,
 * which has room for one more than the ring has and holds them until the next call.
 */
int packed_pop(struct vring *vr, struct vring_head *heads, unsigned int max,
	       struct vring_desc_packed *descs);
/* Packed: as vring_map(). */
enum vring_fault packed_map(struct vring *vr, const struct vring_head *head,
			    struct vring_chain *chain);
/* Packed: write the used entries of n >= 1 requests; the guest sees them all at once. */
void packed_push(struct vring *vr, const struct used_entry *entries, unsigned int n);
/*
 * Packed: of used entries that the driver has not seen, since the first at from was not
 * written any more, none is left marked as used. Up to the place to, at most a lap further.
 */
void packed_take_back(const struct vring *vr, uint16_t from, bool from_wrap, uint16_t to,
		      bool to_wrap);

static inline void vring_prefetch(const struct vring *vr, uint16_t head)
{
	__builtin_prefetch(&vr->desc[head]);
}

/* What a request's first descriptor points at: its header, or a table. */
static inline void vring_prefetch_buffer(const struct vring *vr, uint64_t gpa)
{
	uint64_t offset = gpa - vr->hint->gpa;

	if (likely(offset < vr->hint->size))
		__builtin_prefetch(vr->hint->hva + offset);
}
static inline void vring_prefetch_second(const struct vring *vr, uint16_t head)
{
	vring_prefetch_buffer(vr, __atomic_load_n(&vr->desc[head].addr, __ATOMIC_RELAXED));
}

/* Split: write a used entry; the guest sees it after vring_show(). */
static inline void vring_push(struct vring *vr, uint16_t head, uint32_t len)
{
	unsigned int i = vr->used_idx++ & vr->mask;
	struct vring_used_elem_split *elem = &vr->used_ring[i];

	elem->id = head;
	elem->len = len;
	if (unlikely(vr->log))
		vring_log_used(vr, USED_RING + i * sizeof(*elem), sizeof(*elem));
}

/* Split: show the guest what was pushed. */
static inline void vring_show(struct vring *vr)
{
	/* Release: the entries are complete. */
	atomic_store_explicit(vr->used_idx_ptr, vr->used_idx, memory_order_release);
	if (unlikely(vr->log))
		vring_log_used(vr, 2, sizeof(vr->used_idx));
}
/* And then: true when it wants to be called. */
bool vring_wants_call(struct vring *vr);
/* Packed: the same, of what packed_push() has shown. */
bool packed_wants_call(struct vring *vr);

/* Ask to be kicked; true when there is work already. */
bool vring_enable_kick(struct vring *vr);
void vring_disable_kick(struct vring *vr);

#endif
