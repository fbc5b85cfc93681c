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

/* An indirect table at gpa, whole and aligned, and how many descriptors it has. */
enum vring_fault vring_table(struct vring *vr, uint64_t gpa, uint32_t len, const void **table,
			     unsigned int *size);

/* Append one buffer, which may lie in several regions. */
static inline enum vring_fault vring_add_buffer(struct vring *vr, uint64_t gpa, uint32_t len,
						uint16_t flags, struct vring_chain *c)
{
	unsigned int used = c->out + c->in;
	uint64_t left = len;

	if (unlikely(len == 0))
		return VRING_ZERO_LENGTH;
	if (unlikely(gpa + len < gpa))
		return VRING_ADDRESS;
	if (unlikely(!(flags & DESC_WRITE) && c->in > 0))
		return VRING_ORDER;
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
	if (flags & DESC_WRITE) {
		c->in = used - c->out;
		c->in_bytes += len;
	} else {
		c->out = used;
		c->out_bytes += len;
	}
	return VRING_OK;
}

#endif
