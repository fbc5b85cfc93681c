/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The control loop: fds that are deleted while their event lies in the batch at
 * hand, timers that start and stop each other, and messages from other threads.
 */
#include "harness.h"

#include "reactor/control.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int setup(void **state)
{
	(void)state;
	return control_init();
}

static int teardown(void **state)
{
	(void)state;
	control_fini();
	return 0;
}

/* ------- fds ------- */

#define FDS 8
struct watched {
	struct control_fd cf;
	struct watched **all;	/* FDS of them */
	unsigned int *calls;
};

/* The first to be called ends all others, frees them, and itself. */
static void first_ends_all(struct control_fd *cf, uint32_t events)
{
	struct watched *me = container_of(cf, struct watched, cf);
	struct watched **all = me->all;

	assert_true(events & EPOLLIN);
	(*me->calls)++;
	for (int i = 0; i < FDS; i++) {
		struct watched *w = all[i];

		control_fd_del(&w->cf);
		close(w->cf.fd);
		memset(w, 0xdd, sizeof(*w));
		free(w);
	}
	control_stop();
}

static void test_deleted_in_batch(void **state)
{
	struct watched *all[FDS];
	unsigned int calls = 0;

	(void)state;
	for (int i = 0; i < FDS; i++) {
		all[i] = calloc(1, sizeof(*all[i]));
		all[i]->cf.fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
		all[i]->cf.fn = first_ends_all;
		all[i]->all = all;
		all[i]->calls = &calls;
		assert_int_equal(control_fd_add(&all[i]->cf, EPOLLIN), 0);
	}
	control_run();
	assert_int_equal(calls, 1);
}

struct swapped {
	struct control_fd cf, next;
	unsigned int old_calls, new_calls;
};

static void next_event(struct control_fd *cf, uint32_t events)
{
	(void)events;
	container_of(cf, struct swapped, next)->new_calls++;
	control_stop();
}

/* Closes itself; the new fd most likely gets the same number. */
static void swap_event(struct control_fd *cf, uint32_t events)
{
	struct swapped *s = container_of(cf, struct swapped, cf);

	(void)events;
	s->old_calls++;
	control_fd_del(cf);
	close(cf->fd);
	s->next.fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
	s->next.fn = next_event;
	assert_int_equal(control_fd_add(&s->next, EPOLLIN), 0);
}

static void test_number_reused(void **state)
{
	struct swapped s = { .cf = { .fd = eventfd(1, EFD_CLOEXEC), .fn = swap_event } };

	(void)state;
	assert_int_equal(control_fd_add(&s.cf, EPOLLIN), 0);
	control_run();
	assert_int_equal(s.old_calls, 1);
	assert_int_equal(s.new_calls, 1);
	control_fd_del(&s.next);
	close(s.next.fd);
}

struct modes {
	struct control_fd cf;
	unsigned int calls;
	uint32_t last;
};

static void mode_event(struct control_fd *cf, uint32_t events)
{
	struct modes *m = container_of(cf, struct modes, cf);

	m->calls++;
	m->last = events;
}

static void stop_timer(struct control_timer *t)
{
	(void)t;
	control_stop();
}

/* control_run() for so long; its stop flag is spent by control_init() alone. */
static void run_for(uint64_t ms)
{
	struct control_timer t = { .fn = stop_timer };

	control_timer_start(&t, ms);
	control_run();
	control_timer_stop(&t);
}

static void test_mod(void **state)
{
	struct modes m = { .cf.fn = mode_event };
	int ends[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	assert_int_equal(write(ends[1], "x", 1), 1);
	m.cf.fd = ends[0];
	assert_int_equal(control_fd_add(&m.cf, 0), 0);
	assert_int_equal(control_fd_add(&m.cf, 0), -EEXIST);
	run_for(10);
	assert_int_equal(m.calls, 0);
	assert_int_equal(control_fd_mod(&m.cf, EPOLLIN), 0);
	run_for(10);
	assert_true(m.calls > 0);
	assert_int_equal(m.last, EPOLLIN);
	assert_int_equal(control_fd_mod(&m.cf, EPOLLOUT), 0);
	run_for(10);
	assert_int_equal(m.last, EPOLLOUT);
	/* Hang-up is told even to those who asked for nothing. */
	assert_int_equal(control_fd_mod(&m.cf, 0), 0);
	m.calls = 0;
	run_for(10);
	assert_int_equal(m.calls, 0);
	close(ends[1]);
	run_for(10);
	assert_true(m.last & EPOLLHUP);
	control_fd_del(&m.cf);
	m.calls = 0;
	run_for(10);
	assert_int_equal(m.calls, 0);
	assert_int_equal(control_fd_mod(&m.cf, EPOLLIN), -ENOENT);
	close(ends[0]);
	m.cf.fd = -1;
	assert_int_equal(control_fd_add(&m.cf, EPOLLIN), -EBADF);
}

/* More ready fds than one batch holds: all get their turn. */
static void test_many_ready(void **state)
{
	enum { MANY = 200 };
	static struct modes m[MANY];

	(void)state;
	for (int i = 0; i < MANY; i++) {
		m[i] = (struct modes){ .cf = { .fn = mode_event,
					       .fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK) } };
		assert_int_equal(control_fd_add(&m[i].cf, EPOLLIN), 0);
	}
	run_for(50);
	for (int i = 0; i < MANY; i++) {
		assert_true(m[i].calls > 0);
		control_fd_del(&m[i].cf);
		close(m[i].cf.fd);
	}
}

/* ------- timers ------- */

static struct {
	struct control_timer t[5];
	char text[16];
	unsigned int len;
	struct timespec start;
	double at[16];
} timers;

static void timer_fired(struct control_timer *t)
{
	unsigned int i = (unsigned int)(t - timers.t);
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	timers.at[timers.len] = (double)(now.tv_sec - timers.start.tv_sec) * 1e3 +
		(double)(now.tv_nsec - timers.start.tv_nsec) / 1e6;
	timers.text[timers.len++] = (char)('0' + i);
	if (i == 1)
		control_timer_stop(&timers.t[2]);
	if (i == 3) {
		if (timers.len < 8)
			control_timer_start(t, timers.len % 2 ? 0 : 3);
		else
			control_stop();
	}
}

static void test_timers(void **state)
{
	static const double due[] = { 0, 10, 15, 30 };

	(void)state;
	memset(&timers, 0, sizeof(timers));
	for (int i = 0; i < 5; i++)
		timers.t[i].fn = timer_fired;
	clock_gettime(CLOCK_MONOTONIC, &timers.start);
	control_timer_start(&timers.t[3], 30);
	control_timer_start(&timers.t[0], 10);
	control_timer_start(&timers.t[2], 15);
	control_timer_start(&timers.t[1], 15);
	control_timer_start(&timers.t[2], 20);
	control_timer_start(&timers.t[4], 5);
	control_timer_stop(&timers.t[4]);
	control_timer_stop(&timers.t[4]);
	control_timer_start(&timers.t[4], 0);
	control_run();
	assert_string_equal(timers.text, "40133333");
	for (size_t i = 0; i < ARRAY_SIZE(due); i++)
		assert_true(timers.at[i] >= due[i]);
}

/* ------- messages ------- */

static struct {
	unsigned int left;
	bool elsewhere;
} posted;

static void message(struct msg *msg)
{
	posted.elsewhere |= !control_is_current();
	free(msg);
	if (--posted.left == 0)
		control_stop();
}

static void *poster(void *arg)
{
	unsigned int count = *(unsigned int *)arg;

	for (unsigned int i = 0; i < count; i++) {
		struct msg *m = calloc(1, sizeof(*m));

		m->fn = message;
		control_post(m);
		if (i % 16 == 0)
			sched_yield();
	}
	return NULL;
}

static void test_messages(void **state)
{
	unsigned int count = 10000;
	pthread_t threads[3];

	(void)state;
	posted.left = 3 * count;
	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, poster, &count), 0);
	control_run();
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(posted.left, 0);
	assert_false(posted.elsewhere);
	assert_true(control_is_current());
}

struct chain {
	struct msg msg;
	unsigned int left;
};

static void chain_message(struct msg *msg)
{
	struct chain *c = container_of(msg, struct chain, msg);

	if (c->left-- > 0)
		control_post(msg);
	else
		control_stop();
}

/* A message that posts itself starves neither timers nor fds. */
static void test_message_chain(void **state)
{
	struct modes m = { .cf = { .fn = mode_event, .fd = eventfd(1, EFD_CLOEXEC) } };
	struct chain c = { .msg.fn = chain_message, .left = 1000 };
	struct control_timer t = { .fn = timer_fired };

	(void)state;
	memset(&timers, 0, sizeof(timers));
	assert_int_equal(control_fd_add(&m.cf, EPOLLIN), 0);
	timers.t[4].fn = timer_fired;
	control_timer_start(&timers.t[4], 0);
	control_post(&c.msg);
	control_run();
	assert_true(m.calls >= 500);
	assert_int_equal(timers.len, 1);
	control_fd_del(&m.cf);
	control_timer_stop(&t);
	close(m.cf.fd);
}

static void test_times(void **state)
{
	uint64_t busy, idle, busy2, idle2;

	(void)state;
	control_get_times(&busy, &idle);
	run_for(50);
	control_get_times(&busy2, &idle2);
	assert_true(idle2 - idle > tsc_hz() / 1000 * 30);
	assert_true(busy2 >= busy);
}

static void freed_at_end(struct msg *msg)
{
	free(msg);
}

/* Messages that arrive after the loop has ended are still run. */
static void test_fini_runs_messages(void **state)
{
	struct msg *m = calloc(1, sizeof(*m));

	(void)state;
	m->fn = freed_at_end;
	control_post(m);	/* LeakSanitizer would tell */
}

int main(void)
{
#define WITH_LOOP(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
	static const struct CMUnitTest tests[] = {
		WITH_LOOP(test_deleted_in_batch),
		WITH_LOOP(test_number_reused),
		WITH_LOOP(test_mod),
		WITH_LOOP(test_many_ready),
		WITH_LOOP(test_timers),
		WITH_LOOP(test_messages),
		WITH_LOOP(test_message_chain),
		WITH_LOOP(test_times),
		WITH_LOOP(test_fini_runs_messages),
	};

	return harness_main("control", tests, ARRAY_SIZE(tests), NULL, NULL);
}
