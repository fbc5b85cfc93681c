/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What reactor.c, poller.c, uring.c and corelock.c share; nobody else includes it.
 */
#ifndef SPINDLE_REACTOR_INTERNAL_H
#define SPINDLE_REACTOR_INTERNAL_H

#include "reactor/control.h"
#include "reactor/reactor.h"

#include <liburing.h>
#include <pthread.h>

/*
 * Owned by its thread but for the last group. Allocated before the thread
 * starts and freed after it was joined.
 */
struct reactor {
	/* Owner only, every pass. */
	uint64_t now;			/* tsc at the start of the pass */
	struct list pollers;		/* those that are polled */
	struct list *cursor;		/* next poller of the walk under way */
	struct list parked;		/* those that wait to be notified */
	uint64_t sweep_at;		/* tsc: when to look next which are idle */
	bool shared;			/* more than one group is polled */
	struct list timers;		/* by deadline */
	struct defer *defer_first[DEFER_STAGES], **defer_last[DEFER_STAGES];
	uint64_t poll_ticks;		/* without work for so long: sleep */
	struct io_uring ring;
	bool ring_deferred;		/* completions need a system call to appear */
	bool sqpoll;			/* a thread of the kernel takes what is submitted */
	int sqpoll_cpu;			/* its core, -1: any */
	unsigned int ops;		/* SQEs taken whose last completion is to come */
	unsigned int watches;		/* of those, watches: they give no disk anything to do */
	unsigned int ring_held;		/* stopped watches and signals the kernel still has */
	struct fd_watch *wake_watch;
	uint64_t *files_used;		/* bitmap of registered-file slots */
	/* Written by the owner, read by anyone. */
	CACHE_ALIGNED counter64 busy, idle;
	counter64 asleep_since;		/* tsc, 0: awake */
	/* Read-mostly. */
	CACHE_ALIGNED unsigned int cpu, index;
	int node;
	pid_t tid;
	int wake_fd;
	pthread_t thread;
	/* Written by others. */
	CACHE_ALIGNED struct inbox inbox;
	_Atomic bool asleep;
	_Atomic bool stop;
};

/* Those that are due at r->now; how many. */
unsigned int reactor_run_timers(struct reactor *r) REACTOR_ONLY;

/* Call each that is polled; how much they did. */
unsigned int pollers_run(struct reactor *r) REACTOR_ONLY;
/* Park those that have been idle since the last sweep; how much was found to do. */
unsigned int pollers_sweep(struct reactor *r) REACTOR_ONLY;
/* Park all that can be notified; false when there is work, or one that must be polled. */
bool pollers_park(struct reactor *r) REACTOR_ONLY;

/* On the reactor's own thread. */
int uring_init(struct reactor *r);
void uring_fini(struct reactor *r);
/* Completions at hand: calls their ops; how many. */
unsigned int uring_reap(struct reactor *r);
void uring_submit(struct reactor *r);
/* Whether messages can end a sleep; if not, tries to mend that. */
bool uring_can_wake(struct reactor *r) REACTOR_ONLY;
/* Wait for a completion, wait_ns at most (UINT64_MAX: without limit). */
void uring_sleep(struct reactor *r, uint64_t wait_ns);

#endif
