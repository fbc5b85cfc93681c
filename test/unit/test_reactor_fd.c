/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A reactor and other people's file descriptors: watches that wake it, for
 * eventfds, pipes and things that cannot be waited for, and signals that must
 * neither block it nor get lost, whatever the stranger has done to the fd. And when
 * the reactor hands requests over before its pass ends.
 */
#include "harness.h"

#include "reactor/reactor.h"

#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static int start_poll_always(void **state)
{
	(void)state;
	harness_start(2, REACTOR_POLL_ALWAYS);
	return 0;
}

static int start_interrupt(void **state)
{
	(void)state;
	harness_start(2, 0);
	return 0;
}

static void nothing(void *arg)
{
	(void)arg;
}

static void nap_ms(long ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&ts, NULL);
}

static bool all_asleep(void *arg)
{
	struct reactor_times times;

	(void)arg;
	for (unsigned int i = 0; i < reactor_count(); i++) {
		reactor_get_times(reactor_by_index(i), &times);
		if (!times.asleep)
			return false;
	}
	return true;
}

/* ------- watches ------- */

struct watching {
	struct fd_watch *watch;
	int fd, rc;
	bool works;
	unsigned int events;
};

static void watch_event(void *arg)
{
	struct watching *w = arg;

	w->events++;
}

static void watch_start(void *arg)
{
	struct watching *w = arg;

	w->rc = reactor_watch_start(w->fd, watch_event, w, &w->watch);
}

static void watch_look(void *arg)
{
	struct watching *w = arg;

	w->works = reactor_watch_works(w->watch);
}

static void watch_stop_close(void *arg)
{
	struct watching *w = arg;

	reactor_watch_stop(w->watch);
	close(w->fd);
}

static void test_watch_kinds(void **state)
{
	int ends[2];
	struct watching ev = { .fd = eventfd(0, EFD_CLOEXEC) };
	struct watching ready = { .fd = eventfd(1, EFD_CLOEXEC) };
	struct watching file = { .fd = memfd_create("no event", MFD_CLOEXEC) };
	struct watching hup;
	struct reactor_times times;

	(void)state;
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	close(ends[1]);
	hup = (struct watching){ .fd = ends[0] };
	harness_on_reactor(0, watch_start, &ev);
	harness_on_reactor(0, watch_start, &ready);
	harness_on_reactor(0, watch_start, &file);
	harness_on_reactor(0, watch_start, &hup);
	assert_int_equal(ev.rc | ready.rc | file.rc | hup.rc, 0);
	harness_sleep(20);
	harness_on_reactor(0, watch_look, &ev);
	harness_on_reactor(0, watch_look, &file);
	assert_true(ev.works);
	/* A file has no events: whoever relies on it must poll. */
	assert_false(file.works);
	/* A ready eventfd that nobody reads, and a dead pipe, keep nobody awake. */
	harness_wait_until(all_asleep, NULL);
	reactor_get_times(reactor_by_index(0), &times);
	assert_true(times.asleep);
	harness_on_reactor(0, watch_stop_close, &ev);
	harness_on_reactor(0, watch_stop_close, &ready);
	harness_on_reactor(0, watch_stop_close, &file);
	harness_on_reactor(0, watch_stop_close, &hup);
}

static void *kick_loop(void *arg)
{
	_Atomic int *fd = arg;
	uint64_t one = 1;
	int now;

	while ((now = atomic_load(fd)) >= 0) {
		if (write(now, &one, sizeof(one)) < 0)
			break;
	}
	return NULL;
}

/* Start and stop under fire; the fd is closed and its number reused at once. */
static void test_watch_churn(void **state)
{
	int keep = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	_Atomic int target = keep;
	pthread_t thread;

	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, kick_loop, &target), 0);
	for (int i = 0; i < 200; i++) {
		struct watching w = { .fd = dup(keep) };

		harness_on_reactor(0, watch_start, &w);
		assert_int_equal(w.rc, 0);
		if (i % 3 == 0)
			harness_on_reactor(0, nothing, NULL);
		harness_on_reactor(0, watch_look, &w);
		assert_true(w.works);
		harness_on_reactor(0, watch_stop_close, &w);
	}
	atomic_store(&target, -1);
	pthread_join(thread, NULL);
	close(keep);
}

/* ------- signals ------- */

struct signalling {
	struct fd_signal *s;
	int fd;
	unsigned int times;
};

static void signal_create(void *arg)
{
	struct signalling *s = arg;

	s->s = reactor_signal_create(s->fd);
}

static void signal_send_many(void *arg)
{
	struct signalling *s = arg;

	for (unsigned int i = 0; i < s->times; i++)
		reactor_signal_send(s->s);
}

static void signal_free_close(void *arg)
{
	struct signalling *s = arg;

	reactor_signal_free(s->s);
	close(s->fd);
}

static uint64_t eventfd_count(int fd)
{
	uint64_t count = 0;

	return read(fd, &count, sizeof(count)) == sizeof(count) ? count : 0;
}

static bool event_pending(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, 0) == 1;
}

struct counted {
	int fd;
	uint64_t sum, want;
};

static bool counted_enough(void *arg)
{
	struct counted *c = arg;

	c->sum += eventfd_count(c->fd);
	return c->sum >= c->want;
}

static void test_signals(void **state)
{
	struct signalling s = { .fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
	int mine = dup(s.fd);
	struct counted c = { .fd = mine, .want = 1 };

	(void)state;
	harness_on_reactor(0, signal_create, &s);
	assert_non_null(s.s);
	s.times = 1;
	harness_on_reactor(0, signal_send_many, &s);
	harness_wait_until(counted_enough, &c);
	/* A thousand in one pass are merged: one now, one for those meanwhile. */
	s.times = 1000;
	harness_on_reactor(0, signal_send_many, &s);
	c = (struct counted){ .fd = mine, .want = 1 };
	harness_wait_until(counted_enough, &c);
	harness_sleep(10);
	assert_in_range(c.sum + eventfd_count(mine), 1, 2);
	harness_on_reactor(0, signal_free_close, &s);
	close(mine);
}

static void signal_last(void *arg)
{
	signal_send_many(arg);
	signal_free_close(arg);
}

/*
 * A signal on the heels of another, then free and close: it must arrive, or a
 * guest waits for its last request for ever.
 */
static void last_signal_arrives(int flags)
{
	for (int i = 0; i < 100; i++) {
		struct signalling s = { .fd = eventfd(0, EFD_CLOEXEC | flags), .times = 1 };
		int mine = dup(s.fd);
		struct counted c = { .fd = mine, .want = 1 };

		harness_on_reactor(0, signal_create, &s);
		harness_on_reactor(0, signal_send_many, &s);
		while (!event_pending(mine))
			sched_yield();
		assert_int_equal(eventfd_count(mine), 1);
		harness_on_reactor(0, signal_last, &s);
		for (int k = 0; k < 500 && !event_pending(mine); k++)
			nap_ms(1);
		assert_true(event_pending(mine));
		harness_wait_until(counted_enough, &c);
		close(mine);
	}
}

static void test_last_signal(void **state)
{
	(void)state;
	last_signal_arrives(EFD_NONBLOCK);
}

static void test_last_signal_blocking_fd(void **state)
{
	(void)state;
	last_signal_arrives(0);
}

static void test_signal_that_blocks(void **state)
{
	struct signalling s = { .fd = eventfd(0, EFD_CLOEXEC), .times = 3 };
	int mine = dup(s.fd);
	uint64_t full = UINT64_MAX - 1;

	(void)state;
	/* The stranger has filled the counter: writing to it blocks. */
	assert_int_equal(write(mine, &full, sizeof(full)), sizeof(full));
	harness_on_reactor(0, signal_create, &s);
	harness_on_reactor(0, signal_send_many, &s);
	/* The reactor does not care. */
	for (int i = 0; i < 10; i++)
		harness_on_reactor(0, nothing, NULL);
	assert_true(eventfd_count(mine) == full);
	harness_sleep(10);
	/* The write that waited went through, and the merged one after it. */
	assert_in_range(eventfd_count(mine), 1, 2);
	assert_int_equal(write(mine, &full, sizeof(full)), sizeof(full));
	harness_on_reactor(0, signal_send_many, &s);
	harness_on_reactor(0, signal_free_close, &s);
	harness_on_reactor(0, nothing, NULL);
	harness_sleep(10);
	close(mine);
}

/* ------- submitting before the end of the pass ------- */

#define EARLY_OPS 32

struct early {
	struct uring_op op;
	int counter, empty;		/* an eventfd, a pipe's reading end */
	unsigned int writes, reads;	/* to take */
	unsigned int began[EARLY_OPS];	/* writes the kernel had done when the n-th was taken */
	_Atomic unsigned int ended;
	char bytes[EARLY_OPS];
};

static struct early early;

static void early_done(struct uring_op *op, int res, uint32_t cqe_flags)
{
	struct early *e = container_of(op, struct early, op);

	(void)cqe_flags;
	e->ended += res > 0;
}

static void early_take(void *arg)
{
	static const uint64_t one = 1;
	struct early *e = arg;
	unsigned int total = 0;
	uint64_t count;

	for (unsigned int i = 0; i < e->reads; i++)
		io_uring_prep_read(reactor_sqe(&e->op), e->empty, &e->bytes[i], 1, 0);
	for (unsigned int i = 0; i < e->writes; i++) {
		reactor_submit_early();
		if (read(e->counter, &count, sizeof(count)) == sizeof(count))
			total += (unsigned int)count;
		e->began[i] = total;
		io_uring_prep_write(reactor_sqe(&e->op), e->counter, &one, sizeof(one), 0);
	}
}

static bool early_over(void *arg)
{
	const unsigned int *count = arg;

	return early.ended == *count;
}

static void test_submit_early(void **state)
{
	unsigned int all = EARLY_OPS;
	uint64_t count;
	int ends[2];

	(void)state;
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	early = (struct early){ .op.done = early_done, .empty = ends[0], .writes = EARLY_OPS,
				.counter = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
	/* Idle: two go at once, then as many as have gone; twice, for the count comes home. */
	for (unsigned int round = 0; round < 2; round++) {
		early.ended = 0;
		harness_on_reactor(0, early_take, &early);
		harness_wait_until(early_over, &all);
		for (unsigned int i = 0, want = 0; i < EARLY_OPS; i++) {
			if (i == 2 || (i > 2 && i == 2 * want))
				want = i;
			assert_int_equal(early.began[i], want);
		}
		assert_int_equal(read(early.counter, &count, sizeof(count)), sizeof(count));
	}
	/* Busy with reads that wait: 8 writes stay together. */
	early.ended = 0;
	early.reads = EARLY_OPS - 8;
	early.writes = 0;
	harness_on_reactor(0, early_take, &early);
	early.reads = 0;
	early.writes = 8;
	harness_on_reactor(0, early_take, &early);
	for (unsigned int i = 0; i < 8; i++)
		assert_int_equal(early.began[i], 0);
	assert_int_equal(write(ends[1], early.bytes, EARLY_OPS - 8), EARLY_OPS - 8);
	harness_wait_until(early_over, &all);
	close(ends[0]);
	close(ends[1]);
	close(early.counter);
}

static void free_null(void *arg)
{
	struct watching *w = arg;

	reactor_signal_free(NULL);
	reactor_watch_stop(NULL);
	w->works = reactor_watch_works(NULL);
}

static void test_null(void **state)
{
	struct watching w = { .fd = -1 };

	(void)state;
	harness_on_reactor(0, free_null, &w);
	assert_true(w.works);
}

int main(void)
{
#define IN_MODE(test, mode) cmocka_unit_test_setup_teardown(test, mode, harness_teardown)
	static const struct CMUnitTest tests[] = {
		IN_MODE(test_watch_kinds, start_interrupt),
		IN_MODE(test_watch_churn, start_interrupt),
		IN_MODE(test_signals, start_interrupt),
		IN_MODE(test_signals, start_poll_always),
		IN_MODE(test_last_signal, start_interrupt),
		IN_MODE(test_last_signal, start_poll_always),
		IN_MODE(test_last_signal_blocking_fd, start_interrupt),
		IN_MODE(test_last_signal_blocking_fd, start_poll_always),
		IN_MODE(test_signal_that_blocks, start_interrupt),
		IN_MODE(test_submit_early, start_interrupt),
		IN_MODE(test_submit_early, start_poll_always),
		IN_MODE(test_null, start_interrupt),
	};

	return harness_main("reactor_fd", tests, ARRAY_SIZE(tests), NULL, NULL);
}
