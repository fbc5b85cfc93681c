/* SPDX-License-Identifier: BSD-3-Clause */
/* What vring.c and vring_packed.c share. Owned by the reactor that polls the queue. */
#ifndef SPINDLE_VRING_INTERNAL_H
#define SPINDLE_VRING_INTERNAL_H

#include "vhost/vring.h"

/* Flags of a descriptor of either kind. */
#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4

int packed_init(struct vring *vr, const struct vring_params *params);
bool packed_enable_kick(struct vring *vr);
void packed_disable_kick(struct vring *vr);

/* An indirect table anywhere but whole and aligned in the region of the last look, or NULL. */
const void *vring_table_slow(struct vring *vr, uint64_t gpa, uint32_t len);

/* The indirect table of len bytes at gpa, len / 16 descriptors. */
static inline enum vring_fault vring_table(struct vring *vr, uint64_t gpa, uint32_t len,
					   const void **table)
{
	const struct mem_span *span = vr->hint;
	uint64_t offset = gpa - span->gpa;

	if (unlikely(len == 0 || len % 16))
		return VRING_INDIRECT;
	if (unlikely(len / 16 > VRING_CHAIN_MAX))
		return VRING_LOOP;
	if (unlikely(!vr->indirect)) {
		if (!vr->indirect_paged)
			return VRING_INDIRECT;
		if (!pages_present_gpa(vr->mem, gpa, len, vr->fetch))
			return VRING_MISSING;
	}
	/* Its words must load whole. */
	if (unlikely(offset >= span->size || len > span->size - offset ||
		     (((uintptr_t)span->hva + offset) & 7)))
		*table = vring_table_slow(vr, gpa, len);
	else
		*table = span->hva + offset;
	return likely(*table) ? VRING_OK : VRING_ADDRESS;
}

static inline void vring_chain_init(struct vring_chain *c)
{
	c->out = c->in = 0;
	c->out_bytes = c->in_bytes = 0;
}

/* Append one buffer that is anything but plain: a fault, or in several regions. */
enum vring_fault vring_add_slow(struct vring *vr, uint64_t gpa, uint32_t len, uint16_t flags,
				struct vring_chain *c);

/* Append one buffer. */
static inline enum vring_fault vring_add_buffer(struct vring *vr, uint64_t gpa, uint32_t len,
						uint16_t flags, struct vring_chain *c)
{
	const struct mem_span *span = vr->hint;
	uint64_t offset = gpa - span->gpa;
	unsigned int used = c->out + c->in;

	/* A length of 0 wraps, and is refused by the slow one. */
	if (unlikely(offset >= span->size || (uint64_t)len - 1 >= span->size - offset ||
		     used == c->cap))
		return vring_add_slow(vr, gpa, len, flags, c);
	c->iov[used].iov_base = span->hva + offset;
	c->iov[used].iov_len = len;
	if (flags & DESC_WRITE) {
		c->in++;
		c->in_bytes += len;
		return VRING_OK;
	}
	c->out++;
	c->out_bytes += len;
	return unlikely(c->in > 0) ? VRING_ORDER : VRING_OK;
}

#endif
