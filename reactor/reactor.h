/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reactors: one pinned thread per core of the mask. Each pass drains the
 * inbox, runs the pollers, reaps the reactor's io_uring, runs the deferred work
 * and submits to the io_uring all that has come up, in one call. With nothing
 * to do for long enough (never, by default) a reactor sleeps in its io_uring;
 * file completions, watched eventfds, messages and timers wake it.
 *
 * Objects: a poller, timer, defer or watch belongs to the one reactor it was
 * added on, and only that reactor's thread touches it.
 */
#ifndef SPINDLE_REACTOR_H
#define SPINDLE_REACTOR_H

#include "reactor/base.h"
#include "reactor/cpumask.h"
#include "reactor/inbox.h"

struct io_uring;
struct io_uring_sqe;
struct reactor;

/* How long without work before a reactor sleeps, in microseconds. */
#define REACTOR_POLL_ALWAYS UINT64_MAX

struct reactor_config {
	struct cpumask mask;
	uint64_t poll_us;	/* 0: interrupt mode; REACTOR_POLL_ALWAYS: never sleep */
	bool lock_cores;	/* guard each core with /var/tmp/spdk_cpu_lock_NNN */
	bool sqpoll;		/* a thread of the kernel submits each reactor's io_uring */
	struct cpumask sqpoll_cpus;	/* where these run, in turn; empty: anywhere */
};

/*
 * Start one reactor per core of the mask and wait until each is running.
 * Control thread, once. -EINVAL for an empty mask, -ENODEV for a core that is
 * absent or not allowed to us, -EBUSY for a core another target holds, -errno
 * else; the reason, with the core's number, has been logged.
 */
int reactors_start(const struct reactor_config *config);
/* Stop and join all; their pollers must be gone. Control thread. */
void reactors_stop(void);
/* Whether two targets on one core are kept apart; both at run time, control. */
int reactors_lock_cores(void);
void reactors_unlock_cores(void);

unsigned int reactor_count(void);
struct reactor *reactor_by_index(unsigned int index);	/* 0 .. count - 1 */
struct reactor *reactor_by_cpu(unsigned int cpu);	/* NULL when not in the mask */
const struct cpumask *reactors_mask(void);
uint64_t reactors_poll_us(void);
/*
 * While on, a reactor that has no poller sleeps instead of polling: two processes
 * that share their cores must not take them from each other. Any thread.
 */
void reactors_yield(bool on);

unsigned int reactor_index(const struct reactor *r);
unsigned int reactor_cpu(const struct reactor *r);
int reactor_numa_node(const struct reactor *r);
/* The NUMA node that all reactors are on, -1 when they are on several. */
int reactors_numa_node(void);
pid_t reactor_tid(const struct reactor *r);

/* The calling thread's reactor, NULL elsewhere. */
struct reactor *reactor_current(void);
void reactor_assert(void) ASSERTS_ROLE(role_reactor);

/*
 * Give msg to r: its fn runs on r's thread, in a later pass. Any thread, also
 * r itself; never fails, never blocks.
 */
void reactor_post(struct reactor *r, struct msg *msg);

/* Busy and idle time since start, in tsc ticks; any thread. */
struct reactor_times {
	uint64_t busy, idle;
	bool asleep;
};
void reactor_get_times(const struct reactor *r, struct reactor_times *times);

/* tsc at the start of the present pass: the clock of the I/O path. */
uint64_t reactor_now(void) REACTOR_ONLY;

/* ------- pollers ------- */

/*
 * poll returns how much it did, 0 for nothing. A poller that has done nothing for
 * some ten milliseconds, and each before the reactor sleeps, is parked: it costs
 * nothing until it is notified. arm: ask for notifications, full barrier, look
 * again; true when there is work after all (or none can be notified), and it goes
 * on being polled. disarm undoes arm, also after that. Who is notified calls
 * reactor_poller_unpark(). Should a notification not come, work is found all the
 * same while the reactor is awake, if late; a poller to which that happens again and
 * again is parked no more.
 *
 * arm and disarm may be NULL: the poller is not parked, and has nothing to do while
 * the reactor has nothing else to do.
 */
struct poller {
	struct list node;
	const char *name;
	unsigned int (*poll)(struct poller *p);
	bool (*arm)(struct poller *p);
	void (*disarm)(struct poller *p);
	const void *group;		/* whose work it is: see reactor_is_shared() */
	counter64 runs, busy;
	/* The reactor's. */
	uint64_t seen;			/* busy at the last sweep */
	unsigned int missed;		/* notifications in a row that did not come */
	bool parked;
};
void reactor_poller_add(struct poller *p) REACTOR_ONLY;
/* Also from inside any poller's poll. */
void reactor_poller_del(struct poller *p) REACTOR_ONLY;
/* It has been notified; also one that is not parked. */
void reactor_poller_unpark(struct poller *p) REACTOR_ONLY;
/*
 * Whether pollers of more than one group are busy here, so that each must leave the
 * core to the others after a little work. May be some milliseconds late in saying no.
 */
bool reactor_is_shared(void) REACTOR_ONLY;
/* For statistics: calls fn for each poller of this reactor, polled or parked. */
void reactor_poller_each(void (*fn)(struct poller *p, void *arg), void *arg) REACTOR_ONLY;

/* ------- deferred work: once, later in this pass (or the next) ------- */

/*
 * DEFER_COMPLETE runs before DEFER_PUBLISH, so that all completions of a pass
 * share one publication. DEFER_BULK comes last, when all that is done has been
 * published and submitted: for long work, a little a pass, that is to hold up nobody.
 * A defer already queued is not queued twice.
 */
enum defer_stage { DEFER_COMPLETE, DEFER_PUBLISH, DEFER_BULK, DEFER_STAGES };
struct defer {
	struct defer *next;
	void (*fn)(struct defer *d);
	bool queued;
};
void reactor_defer(enum defer_stage stage, struct defer *d) REACTOR_ONLY;

/* ------- timers ------- */

struct timer {
	struct list node;
	uint64_t deadline;	/* tsc */
	void (*fn)(struct timer *t);
};
/* A zeroed or stopped timer fires once, `us` microseconds from now. */
void reactor_timer_start(struct timer *t, uint64_t us) REACTOR_ONLY;
/* Nothing happens when it is not running. */
void reactor_timer_stop(struct timer *t) REACTOR_ONLY;

/* ------- io_uring ------- */

/* user_data of every SQE on a reactor's ring points at one of these. */
struct uring_op {
	void (*done)(struct uring_op *op, int res, uint32_t cqe_flags);
};
/*
 * A free SQE, submitted at the end of the pass; the caller prepares it and
 * sets its data to a uring_op. NULL only when the kernel takes no more until
 * completions are reaped: try again in the next pass.
 */
struct io_uring_sqe *reactor_sqe(struct uring_op *op) REACTOR_ONLY;
/*
 * Before the SQE of a request that a disk cannot merge with the one before it:
 * submits those at once that are more than the kernel has in flight from us (and
 * two or more). The kernel needs about 1 us to prepare a request and shows a disk a
 * batch only as a whole: an idle disk would wait for all of it. A busy one costs
 * no further call.
 */
void reactor_submit_early(void) REACTOR_ONLY;
/* Index for IOSQE_FIXED_FILE, or -errno: use the plain fd then. */
int reactor_file_register(int fd) REACTOR_ONLY;
void reactor_file_unregister(int index) REACTOR_ONLY;

/*
 * Have fn called on the reactor's thread when there was an event on fd (an eventfd),
 * asleep or not; -errno. It is called, too, when the watch turns out not to work.
 * Nothing is read from fd, which may be a stranger's. After stop the fd may be closed
 * at once, and fn is not called again. stop takes NULL.
 */
struct fd_watch;
int reactor_watch_start(int fd, void (*fn)(void *arg), void *arg,
			struct fd_watch **watch) REACTOR_ONLY;
void reactor_watch_stop(struct fd_watch *watch) REACTOR_ONLY;
/* False when fd turned out to be one that cannot be waited for. */
bool reactor_watch_works(const struct fd_watch *watch) REACTOR_ONLY;

/*
 * Signal an eventfd that belongs to a stranger, who may have made writing to it
 * block: the write goes through the ring with the rest of the pass, one at a
 * time, and signals meanwhile are merged into one that follows. After free the
 * fd may be closed at once. NULL: out of memory; free takes NULL.
 */
struct fd_signal;
struct fd_signal *reactor_signal_create(int fd) REACTOR_ONLY;
void reactor_signal_send(struct fd_signal *s) REACTOR_ONLY;
void reactor_signal_free(struct fd_signal *s) REACTOR_ONLY;

/* ------- visiting every reactor ------- */

/*
 * fn on each reactor's thread in turn, then done on the control thread. The
 * visit is owned by the caller again when done is called.
 */
struct reactor_visit {
	struct msg msg;
	unsigned int index;
	void (*fn)(struct reactor_visit *v);
	void (*done)(struct reactor_visit *v);
};
void reactor_visit_all(struct reactor_visit *v) CONTROL_ONLY;

#endif
