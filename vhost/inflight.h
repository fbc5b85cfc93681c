/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The in-flight region (vhost-user, "Inflight I/O tracking"): memory shared with the
 * front end in which the requests of each queue are noted from the moment they are
 * taken to the moment their used entry is visible. It outlives this process: the
 * next back end finds in it what it has to do once more. The layout is the
 * specification's and never changes.
 *
 * While a queue runs, its region is only written. It is read once, when the queue
 * starts, and nothing in it is believed: a region that makes no sense is refused.
 *
 * Made and freed by the control thread; owned by the queue's reactor in between.
 */
#ifndef SPINDLE_INFLIGHT_H
#define SPINDLE_INFLIGHT_H

#include "reactor/base.h"
#include "vhost/vring.h"

/* In front of a split ring's entries. */
struct inflight_split {
	uint64_t features;
	uint16_t version;
	uint16_t desc_num;
	uint16_t last_batch_head;
	uint16_t used_idx;
	struct inflight_split_desc {
		uint8_t inflight;
		uint8_t padding[5];
		uint16_t next;
		uint64_t counter;
	} desc[];
};

struct inflight_packed {
	uint64_t features;
	uint16_t version;
	uint16_t desc_num;
	uint16_t free_head, old_free_head;
	uint16_t used_idx, old_used_idx;
	uint8_t used_wrap, old_used_wrap;
	uint8_t padding[7];
	struct inflight_packed_desc {
		uint8_t inflight;
		uint8_t padding;
		uint16_t next;
		uint16_t last;
		uint16_t num;
		uint64_t counter;
		uint16_t id;
		uint16_t flags;
		uint32_t len;
		uint64_t addr;
	} desc[] __attribute__((aligned(8)));
};

/* One to do again. */
struct inflight_head {
	struct vring_head head;		/* descs: see inflight_descs() */
	uint64_t counter;
	uint16_t entry;			/* packed: where its descriptors are in the region */
};

struct inflight {
	struct inflight_split *split;	/* one of the two */
	struct inflight_packed *packed;
	uint16_t num;			/* entries of the region */
	uint64_t counter;		/* of the next request */
	/* What was found in flight, in the order it was taken; gone once resubmitted. */
	struct inflight_head *again;
	unsigned int again_count;
	bool fresh;			/* nobody has served this driver's ring before */
	uint16_t last;			/* split: of the last batch that has ended */
	/* Packed: our own copy of the entries' links; by id, the request's entries. */
	uint16_t free_head;
	uint16_t *next;
	struct {
		uint16_t first, last;
	} *of_id;
};

/* Bytes of one queue's part of the region. */
uint64_t inflight_size(uint32_t queue_size, bool packed);

/*
 * Start tracking vr, which has just been made, in the region at mem, of
 * queue_size entries. What the last back end left is repaired, vr is put where it
 * has to go on, and its requests are in fl->again. -EINVAL: the region makes no
 * sense; -ENOMEM.
 */
int inflight_create(void *mem, uint32_t queue_size, struct vring *vr, struct inflight **out)
	CONTROL_ONLY;
void inflight_free(struct inflight *fl) CONTROL_ONLY;
/*
 * Whether a queue's part has requests marked as in flight. Only a hint: of the last
 * batch, some may be marked though their used entries are visible.
 */
bool inflight_has_any(const void *mem, uint32_t queue_size, bool packed) CONTROL_ONLY;
/* Packed: copy the descriptors of one to be resubmitted to table, for its head. */
void inflight_descs(const struct inflight *fl, struct inflight_head *head,
		    struct vring_desc_packed *table);

/* An entry of a split ring as one store: no kill comes in between. */
typedef uint64_t inflight_vec __attribute__((vector_size(16), aligned(8), may_alias));

/* Split: a request has been taken, the nth of a batch; inflight_taken() ends the batch. */
static inline void inflight_take(struct inflight *fl, uint16_t head, uint16_t nth)
{
	*(inflight_vec *)(void *)&fl->split->desc[head] =
		(inflight_vec){ 1 /* inflight */, fl->counter + nth };
}
static inline void inflight_taken(struct inflight *fl, unsigned int count)
{
	fl->counter += count;
}
/* Packed: the same. */
void inflight_take_packed(struct inflight *fl, const struct vring_head *head);

/* It made no sense and will never end: its driver has to reset the queue. */
void inflight_forget(struct inflight *fl, uint16_t id);

/* Split: the used index is about to move over these, n >= 1. */
static inline void inflight_show(struct inflight *fl, const struct used_entry *entries,
				 unsigned int n)
{
	struct inflight_split *r = fl->split;
	uint16_t last = fl->last;

	for (unsigned int i = 0; i < n; i++) {
		r->desc[entries[i].head].next = last;
		last = entries[i].head;
	}
	fl->last = last;
	__atomic_store_n(&r->last_batch_head, last, __ATOMIC_RELEASE);
}
/* Split: it has, and is there now. */
static inline void inflight_shown(struct inflight *fl, const struct used_entry *entries,
				  unsigned int n, uint16_t used_idx)
{
	struct inflight_split *r = fl->split;

	for (unsigned int i = 0; i < n; i++)
		__atomic_store_n(&r->desc[entries[i].head].inflight, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&r->used_idx, used_idx, __ATOMIC_RELEASE);
}
/* Packed: write these used entries, and note them. */
void inflight_push_packed(struct inflight *fl, struct vring *vr, const struct used_entry *entries,
			  unsigned int n);

#endif
