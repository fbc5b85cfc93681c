/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A lock-free inbox: many senders, one owner. Messages are embedded in what
 * they carry, so posting cannot fail and allocates nothing. Senders push on a
 * stack; the owner takes all of it at once and turns it round, so the messages
 * of one sender arrive in the order they were posted.
 *
 * A message belongs to the inbox from post until its fn is called; fn owns it
 * again and may post it elsewhere at once.
 */
#ifndef SPINDLE_INBOX_H
#define SPINDLE_INBOX_H

#include "reactor/base.h"

struct msg {
	struct msg *next;
	void (*fn)(struct msg *msg);
};

struct inbox {
	_Atomic(struct msg *) head;
};

/*
 * Any thread. True when the inbox was empty: only then may the owner be asleep
 * on this account. The release pairs with the acquire in inbox_take().
 */
static inline bool inbox_push(struct inbox *in, struct msg *m)
{
	struct msg *old = atomic_load_explicit(&in->head, memory_order_relaxed);

	do {
		m->next = old;
	} while (!atomic_compare_exchange_weak_explicit(&in->head, &old, m, memory_order_seq_cst,
							memory_order_relaxed));
	return old == NULL;
}

/* The cheap look of a polling owner: one relaxed load. */
static inline bool inbox_empty(const struct inbox *in)
{
	return atomic_load_explicit(&in->head, memory_order_relaxed) == NULL;
}

/* Owner only: everything posted so far, oldest first. */
static inline struct msg *inbox_take(struct inbox *in)
{
	struct msg *m = atomic_exchange_explicit(&in->head, NULL, memory_order_acquire);
	struct msg *first = NULL;

	while (m) {
		struct msg *next = m->next;

		m->next = first;
		first = m;
		m = next;
	}
	return first;
}

#endif
