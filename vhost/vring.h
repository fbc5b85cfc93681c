/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Virtqueues in guest memory, device side (VIRTIO 1.2, section 2.7). Everything
 * in a ring but our own used index is written by the guest while we look: each
 * word is read once into a local and checked there.
 *
 * Owned by the reactor that polls the queue. Nothing here logs; a broken ring is
 * reported as an enum vring_fault, for the caller to act on.
 */
#ifndef SPINDLE_VRING_H
#define SPINDLE_VRING_H

#include "reactor/base.h"
#include "vhost/guest_mem.h"

#include <sys/uio.h>

/* Feature bits (VIRTIO 1.2, section 6). */
#define VRING_F_INDIRECT_DESC 28
#define VRING_F_EVENT_IDX 29

#define VRING_SIZE_MAX 1024	/* entries: what QEMU allows */
/* Data segments, plus a header and status cut to bytes. */
#define VRING_CHAIN_MAX (1024 + 17)

enum vring_fault {
	VRING_OK,
	VRING_AVAIL_JUMP,	/* avail index ahead of us by more than the ring's size */
	VRING_HEAD_RANGE,	/* head beyond the ring */
	VRING_HEAD_BUSY,	/* head made available again before it was used */
	VRING_NEXT_RANGE,	/* next beyond its table */
	VRING_LOOP,		/* more descriptors than the table has, or than we take */
	VRING_INDIRECT,		/* table empty, of odd length, nested, chained or not negotiated */
	VRING_ZERO_LENGTH,
	VRING_ADDRESS,		/* outside the guest's memory, or wrapping */
	VRING_ORDER,		/* readable after writable */
	VRING_NO_STATUS,	/* no writable byte to answer in */
	VRING_NO_MEMORY,	/* ours: no room for a long chain */
	VRING_FAULTS
};
const char *vring_fault_text(enum vring_fault fault);

struct vring_desc_split {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

struct vring {
	/* Read-mostly. */
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
	uint16_t num, mask;
	bool event_idx, indirect;
	/* Ours. */
	uint16_t last_avail;	/* next avail entry to look at */
	uint16_t used_idx;	/* next used entry to write; published by vring_publish() */
	uint16_t signalled;	/* used index at the last call */
	bool signalled_valid;
};

struct vring_params {
	const struct guest_mem *mem;
	uint64_t desc_uva, avail_uva, used_uva;	/* front-end addresses */
	uint32_t num;				/* power of two, <= VRING_SIZE_MAX */
	uint16_t base;				/* next avail entry */
	bool event_idx, indirect;
};
/* -EFAULT: a part lies outside the memory; -EINVAL: misaligned or bad size. */
int vring_init(struct vring *vr, const struct vring_params *params);

/* One load and one compare. */
static inline bool vring_empty(const struct vring *vr)
{
	return atomic_load_explicit(vr->avail_idx, memory_order_relaxed) == vr->last_avail;
}

/*
 * Take at most max heads, in order. The number, or the negated fault; heads
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

static inline void vring_prefetch(const struct vring *vr, uint16_t head)
{
	__builtin_prefetch(&vr->desc[head]);
}

/* Write a used entry; the guest sees it after vring_publish(). */
static inline void vring_push(struct vring *vr, uint16_t head, uint32_t len)
{
	struct vring_used_elem_split *elem = &vr->used_ring[vr->used_idx++ & vr->mask];

	elem->id = head;
	elem->len = len;
}

/* Publish what was pushed; true when the guest wants to be called. */
bool vring_publish(struct vring *vr);

/* Ask to be kicked; true when there is work already. */
bool vring_enable_kick(struct vring *vr);
void vring_disable_kick(struct vring *vr);

#endif
