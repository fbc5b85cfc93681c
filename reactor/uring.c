/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A reactor's io_uring: file I/O, the eventfds it sleeps on, the eventfds it
 * signals. Every SQE's user_data is a struct uring_op, or NULL for one whose
 * result nobody wants (a cancellation).
 *
 * The ring is made on the reactor's thread, which alone submits: SINGLE_ISSUER
 * and DEFER_TASKRUN let the kernel do completion work when we ask for it and
 * not by interrupting us. Older kernels get the plain flags. With sqpoll a thread of
 * the kernel takes the SQEs instead: cheaper for the reactor by its system calls, dearer
 * by most of a core for that thread.
 *
 * A watch or signal that is stopped while the kernel still holds its SQE stays
 * allocated (`dead`) until the last completion has come, and frees itself.
 */
#include "reactor/reactor_internal.h"

#include "reactor/log.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SQ_ENTRIES 1024
#define CQ_ENTRIES 4096
#define FILES_MAX 4096
#define EARLY_MIN 2
#define SINGLE_MAX 8
#define IOWQ_WORKERS 256
#define GRACE_US 100000
#define DRAIN_TRIES 200	/* milliseconds, at exit */
#define SQPOLL_IDLE_MS 50	/* without work, until the kernel's thread sleeps */

struct fd_watch {
	struct uring_op op;
	int fd;
	bool armed;	/* the kernel holds the poll request */
	bool dead;
	bool works;
	unsigned int single;	/* events in a row that ended the poll request */
	void (*fn)(void *arg);
	void *arg;
};

struct fd_signal {
	struct uring_op op;
	int fd;
	bool busy;	/* the kernel holds the write */
	bool again;	/* signalled meanwhile */
	bool dead;	/* freed by its owner; frees itself when all is written */
	bool own_fd;	/* fd is a duplicate of ours */
	struct defer retry;	/* the ring was full */
	struct timer grace;	/* dead: how long a write may hang */
};

static const uint64_t one = 1;

/* ------- submitting and reaping ------- */

/* 4k random reads and writes at QD32: 5 % more (docs/performance.md). */
void reactor_submit_early(void)
{
	struct reactor *r = reactor_current();
	unsigned int ready = io_uring_sq_ready(&r->ring);

	if (ready >= EARLY_MIN && ready >= r->ops - r->watches - ready)
		io_uring_submit(&r->ring);
}

/* And the kernel has looked up the fds of what is submitted: they may be closed now. */
REACTOR_ONLY static void submit_all(struct reactor *r)
{
	int rc = io_uring_submit(&r->ring);

	/*
	 * Its thread takes them; again, as that may just have gone to sleep. It is dead only
	 * when we are about to be.
	 */
	while (unlikely(r->sqpoll && rc != -EOWNERDEAD && io_uring_sq_ready(&r->ring) > 0)) {
		sched_yield();
		rc = io_uring_submit(&r->ring);
	}
}

struct io_uring_sqe *reactor_sqe(struct uring_op *op)
{
	struct reactor *r = reactor_current();
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);

	if (unlikely(!sqe)) {
		submit_all(r);
		sqe = io_uring_get_sqe(&r->ring);
		if (!sqe)
			return NULL;
	}
	r->ops++;
	/* The prep helpers leave user_data alone. */
	io_uring_sqe_set_data(sqe, op);
	return sqe;
}

unsigned int uring_reap(struct reactor *r)
{
	struct io_uring_cqe *cqe;
	unsigned int head, n = 0;
	unsigned int flags = IO_URING_READ_ONCE(*r->ring.sq.kflags);

	if (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW))
		io_uring_get_events(&r->ring);
	io_uring_for_each_cqe(&r->ring, head, cqe) {
		struct uring_op *op = io_uring_cqe_get_data(cqe);

		n++;
		if (!(cqe->flags & IORING_CQE_F_MORE))
			r->ops--;
		if (op)
			op->done(op, cqe->res, cqe->flags);
	}
	if (n)
		io_uring_cq_advance(&r->ring, n);
	return n;
}

void uring_submit(struct reactor *r)
{
	if (io_uring_sq_ready(&r->ring) == 0)
		return;
	/*
	 * -EBUSY and -EAGAIN leave the rest in the ring for the next pass, after
	 * completions have been reaped.
	 */
	if (r->ring_deferred)
		io_uring_submit_and_get_events(&r->ring);
	else
		io_uring_submit(&r->ring);
}

void uring_sleep(struct reactor *r, uint64_t wait_ns)
{
	struct __kernel_timespec ts = {
		.tv_sec = (int64_t)(wait_ns / 1000000000),
		.tv_nsec = (int64_t)(wait_ns % 1000000000),
	};
	struct io_uring_cqe *cqe;

	if (wait_ns == UINT64_MAX)
		io_uring_submit_and_wait(&r->ring, 1);
	else
		io_uring_submit_and_wait_timeout(&r->ring, &cqe, 1, &ts, NULL);
}

/* ------- registered files ------- */

int reactor_file_register(int fd)
{
	struct reactor *r = reactor_current();

	if (!r->files_used)
		return -ENOSYS;
	for (int word = 0; word < FILES_MAX / 64; word++) {
		int slot, rc;

		if (r->files_used[word] == UINT64_MAX)
			continue;
		slot = word * 64 + __builtin_ctzll(~r->files_used[word]);
		rc = io_uring_register_files_update(&r->ring, (unsigned)slot, &fd, 1);
		if (rc < 0)
			return rc;
		r->files_used[word] |= 1ull << (slot % 64);
		return slot;
	}
	return -ENFILE;
}

void reactor_file_unregister(int index)
{
	struct reactor *r = reactor_current();
	int none = -1;

	if (index < 0)
		return;
	io_uring_register_files_update(&r->ring, (unsigned)index, &none, 1);
	r->files_used[index / 64] &= ~(1ull << (index % 64));
}

/* ------- watches ------- */

REACTOR_ONLY static void watch_arm(struct fd_watch *w)
{
	struct io_uring_sqe *sqe = reactor_sqe(&w->op);

	/* A ring that takes nothing more will be reaped before any sleep. */
	if (!sqe) {
		w->works = false;
		return;
	}
	io_uring_prep_poll_multishot(sqe, w->fd, POLLIN);
	w->armed = true;
	reactor_current()->watches++;
}

/*
 * The kernel may end a multishot request when its queue is full. What is always ready,
 * such as a file, ends it each time: to wait for that is no waiting.
 */
REACTOR_ONLY static void watch_go_on(struct fd_watch *w, int res)
{
	/* Nobody is left at the other end of a pipe: no event will ever come. */
	if (res < 0 || (res & (POLLNVAL | POLLHUP | POLLERR)))
		w->works = false;
	else if (w->armed)
		w->single = 0;
	else if (++w->single > SINGLE_MAX)
		w->works = false;
	else
		watch_arm(w);
}

static void watch_event(struct uring_op *op, int res, uint32_t cqe_flags)
{
	struct fd_watch *w = container_of(op, struct fd_watch, op);

	reactor_assert();
	if (!(cqe_flags & IORING_CQE_F_MORE)) {
		w->armed = false;
		reactor_current()->watches--;
	}
	if (w->dead) {
		if (!w->armed) {
			reactor_current()->ring_held--;
			free(w);
		}
		return;
	}
	watch_go_on(w, res);
	/* May stop, and free, w. */
	w->fn(w->arg);
}

REACTOR_ONLY static struct fd_watch *watch_new(int fd, void (*fn)(void *arg), void *arg)
{
	struct fd_watch *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	w->op.done = watch_event;
	w->fd = fd;
	w->fn = fn;
	w->arg = arg;
	w->works = true;
	watch_arm(w);
	return w;
}

int reactor_watch_start(int fd, void (*fn)(void *arg), void *arg, struct fd_watch **watch)
{
	*watch = watch_new(fd, fn, arg);
	return *watch ? 0 : -ENOMEM;
}

void reactor_watch_stop(struct fd_watch *w)
{
	struct io_uring_sqe *sqe;

	if (!w)
		return;
	if (!w->armed) {
		free(w);
		return;
	}
	w->dead = true;
	reactor_current()->ring_held++;
	sqe = reactor_sqe(NULL);
	if (sqe) {
		io_uring_prep_cancel(sqe, &w->op, 0);
		io_uring_sqe_set_data(sqe, NULL);
	}
	/* The kernel must have looked the fd up before the caller closes it. */
	submit_all(reactor_current());
}

bool uring_can_wake(struct reactor *r)
{
	struct fd_watch *w = r->wake_watch;

	if (!w->armed) {
		w->works = true;
		watch_arm(w);
	}
	return w->armed && w->works;
}

bool reactor_watch_works(const struct fd_watch *w)
{
	return !w || w->works;
}

/* ------- signals ------- */

REACTOR_ONLY static void signal_write(struct fd_signal *s)
{
	struct io_uring_sqe *sqe = reactor_sqe(&s->op);

	if (!sqe) {
		reactor_defer(DEFER_PUBLISH, &s->retry);
		return;
	}
	io_uring_prep_write(sqe, s->fd, &one, sizeof(one), (__u64)-1);
	s->busy = true;
	s->again = false;
}

static void signal_release(struct fd_signal *s)
{
	reactor_assert();
	reactor_timer_stop(&s->grace);
	if (s->own_fd)
		close(s->fd);
	reactor_current()->ring_held--;
	free(s);
}

static void signal_done(struct uring_op *op, int res, uint32_t cqe_flags)
{
	struct fd_signal *s = container_of(op, struct fd_signal, op);

	reactor_assert();
	(void)cqe_flags;
	s->busy = false;
	/* EAGAIN: the counter is full, so the other side has its wake-up. */
	if (s->again && res != -ECANCELED)
		signal_write(s);
	else if (s->dead)
		signal_release(s);
}

static void signal_retry(struct defer *d)
{
	reactor_assert();
	signal_write(container_of(d, struct fd_signal, retry));
}

/* The other side does not read: end the write that hangs. */
static void signal_grace_over(struct timer *t)
{
	struct fd_signal *s = container_of(t, struct fd_signal, grace);
	struct io_uring_sqe *sqe;

	reactor_assert();
	sqe = reactor_sqe(NULL);
	if (sqe) {
		s->again = false;
		io_uring_prep_cancel(sqe, &s->op, 0);
		io_uring_sqe_set_data(sqe, NULL);
	} else {
		reactor_timer_start(t, GRACE_US);
	}
}

struct fd_signal *reactor_signal_create(int fd)
{
	struct fd_signal *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->op.done = signal_done;
	s->retry.fn = signal_retry;
	s->grace.fn = signal_grace_over;
	s->fd = fd;
	return s;
}

void reactor_signal_send(struct fd_signal *s)
{
	if (s->busy)
		s->again = true;
	else if (!s->retry.queued)
		signal_write(s);
}

void reactor_signal_free(struct fd_signal *s)
{
	if (!s)
		return;
	if (!s->busy && !s->retry.queued) {
		free(s);
		return;
	}
	/*
	 * What was sent must arrive, though the caller closes the fd now: let the
	 * kernel look up the fd of what is queued, and keep one for what is not.
	 */
	submit_all(reactor_current());
	s->fd = fcntl(s->fd, F_DUPFD_CLOEXEC, 0);
	s->own_fd = s->fd >= 0;
	s->again &= s->own_fd;
	s->dead = true;
	reactor_current()->ring_held++;
	reactor_timer_start(&s->grace, GRACE_US);
}

/* ------- start and stop ------- */

static int ring_setup_sqpoll(struct reactor *r)
{
	struct io_uring_params params = {
		.flags = IORING_SETUP_SQPOLL | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
		.cq_entries = CQ_ENTRIES,
		.sq_thread_idle = SQPOLL_IDLE_MS,
	};
	int rc;

	if (r->sqpoll_cpu >= 0) {
		params.flags |= IORING_SETUP_SQ_AFF;
		params.sq_thread_cpu = (unsigned int)r->sqpoll_cpu;
	}
	rc = io_uring_queue_init_params(SQ_ENTRIES, &r->ring, &params);
	/* Before Linux 5.11 that thread knows registered files alone: each of ours would fail. */
	if (rc == 0 && !(params.features & IORING_FEAT_SQPOLL_NONFIXED)) {
		io_uring_queue_exit(&r->ring);
		rc = -EOPNOTSUPP;
	}
	return rc;
}

static int ring_setup(struct reactor *r)
{
	static const unsigned int tries[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		0,
	};
	int rc = -EINVAL;

	for (size_t i = 0; i < ARRAY_SIZE(tries) && rc == -EINVAL; i++) {
		struct io_uring_params params = {
			.flags = tries[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
			.cq_entries = CQ_ENTRIES,
		};

		memset(&r->ring, 0, sizeof(r->ring));
		rc = io_uring_queue_init_params(SQ_ENTRIES, &r->ring, &params);
		r->ring_deferred = tries[i] & IORING_SETUP_DEFER_TASKRUN;
	}
	return rc;
}

static void wake_event(void *arg)
{
	struct reactor *r = arg;
	uint64_t count;

	/* Our own eventfd, which never blocks. */
	if (read(r->wake_fd, &count, sizeof(count)) < 0)
		return;
}

int uring_init(struct reactor *r)
{
	int rc = r->sqpoll ? ring_setup_sqpoll(r) : ring_setup(r);

	reactor_assert();
	if (rc < 0) {
		log_error("core %u: no io_uring: %s%s", r->cpu, strerror(-rc),
			  rc == -EPERM || rc == -ENOSYS ?
			  " (see sysctl kernel.io_uring_disabled and seccomp)" : "");
		return rc;
	}
	/* Calls that hang, on one file system, must leave workers for the other disks. */
	io_uring_register_iowq_max_workers(&r->ring, (unsigned int[]){ IOWQ_WORKERS, 0 });
	io_uring_ring_dontfork(&r->ring);
	/* Saves the look-up of the ring's file at each call; older kernels do without. */
	io_uring_register_ring_fd(&r->ring);
	if (io_uring_register_files_sparse(&r->ring, FILES_MAX) == 0)
		r->files_used = calloc(FILES_MAX / 64, sizeof(uint64_t));
	r->wake_watch = watch_new(r->wake_fd, wake_event, r);
	if (!r->wake_watch) {
		uring_fini(r);
		return -ENOMEM;
	}
	return 0;
}

/* Let what was stopped with the kernel still holding it come back. */
REACTOR_ONLY static void uring_drain(struct reactor *r)
{
	struct __kernel_timespec ms = { .tv_nsec = 1000000 };
	struct io_uring_cqe *cqe;

	for (int i = 0; i < DRAIN_TRIES && r->ring_held; i++) {
		io_uring_submit_and_wait_timeout(&r->ring, &cqe, 1, &ms, NULL);
		uring_reap(r);
		r->now = tsc_now();
		reactor_run_timers(r);
	}
}

void uring_fini(struct reactor *r)
{
	reactor_assert();
	uring_drain(r);
	free(r->wake_watch);
	r->wake_watch = NULL;
	io_uring_queue_exit(&r->ring);
	free(r->files_used);
	r->files_used = NULL;
}
