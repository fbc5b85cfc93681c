/* SPDX-License-Identifier: BSD-3-Clause */
/* What vq.c and vq_packed.c share: the packed ring's part of the functions in frontend.h. */
#ifndef FE_VQ_H
#define FE_VQ_H

#include "frontend.h"

/* An indirect table of this slot's own with room for num; FE_NO_GPA when memory is full. */
uint64_t fe_vq_table(struct fe_vq *vq, struct fe_slot *slot, unsigned int num);

void fe_packed_reset(struct fe_vq *vq);
/* Write a request's descriptors; the id comes off the free list. */
int fe_packed_add(struct fe_vq *vq, uint16_t id, const struct fe_seg *segs, unsigned int num,
	       bool indirect, uint64_t table_gpa);
void fe_packed_publish(struct fe_vq *vq);
/* Whether the device wants to hear of what was added since it was last asked. */
bool fe_packed_wants_kick(struct fe_vq *vq);
bool fe_packed_ready(const struct fe_vq *vq);
/* The used descriptor that is next, once fe_packed_ready(). */
void fe_packed_look(const struct fe_vq *vq, uint32_t *id, uint32_t *len);
/* It was that of a request of `count` descriptors. */
void fe_packed_seen(struct fe_vq *vq, uint16_t count);
void fe_packed_give_back(struct fe_vq *vq, uint16_t id);
void fe_packed_ask_call(struct fe_vq *vq);

#endif
