/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reactors: pollers that come and go under the walk, the stages of deferred
 * work, timers, visits, and above all sleeping: no message and no event may be
 * lost between a reactor that dozes off and threads that want something of it.
 * Each test starts reactors with the poll time it needs. Watches and signals are
 * test_reactor_fd.c's.
 *
 * What runs on a reactor records; the main thread judges, because a failed
 * assertion jumps and must not jump between threads.
 */
#include "harness.h"

#include "reactor/reactor.h"

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STRESS 2000u
#else
#define STRESS 6000u
#endif

/* A reactor that never sleeps loses no wake-up, but takes the cores from the testers. */
static unsigned int rounds(void)
{
	return reactors_poll_us() == REACTOR_POLL_ALWAYS ? STRESS / 20 : STRESS;
}

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

static int start_short_poll(void **state)
{
	(void)state;
	harness_start(2, 5);
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

/* ------- pollers ------- */

struct walk {
	struct poller a, b, c;
	unsigned int a_runs, b_runs, c_runs, each;
	unsigned int a_alone;	/* runs of a after b and c went */
};

static unsigned int poll_a(struct poller *p)
{
	struct walk *w = container_of(p, struct walk, a);

	w->a_runs++;
	if (w->a_runs == 3) {
		/* The next of the walk under way, and the one after it. */
		reactor_poller_del(&w->b);
		reactor_poller_del(&w->c);
	}
	if (w->a_runs > 3)
		w->a_alone++;
	return 1;
}

static unsigned int poll_b(struct poller *p)
{
	container_of(p, struct walk, b)->b_runs++;
	return 0;
}

static unsigned int poll_c(struct poller *p)
{
	struct walk *w = container_of(p, struct walk, c);

	w->c_runs++;
	/* Itself, and back again at the end of the list. */
	reactor_poller_del(p);
	reactor_poller_add(p);
	return 0;
}

static void walk_start(void *arg)
{
	struct walk *w = arg;

	w->a.poll = poll_a;
	w->b.poll = poll_b;
	w->c.poll = poll_c;
	reactor_poller_add(&w->a);
	reactor_poller_add(&w->b);
	reactor_poller_add(&w->c);
}

static void count_poller(struct poller *p, void *arg)
{
	struct walk *w = arg;

	if (p == &w->a || p == &w->b || p == &w->c)
		w->each++;
}

static void walk_look(void *arg)
{
	reactor_poller_each(count_poller, arg);
}

static void walk_stop(void *arg)
{
	reactor_poller_del(&((struct walk *)arg)->a);
}

static bool walked(void *arg)
{
	return counter_read(&((struct walk *)arg)->a.runs) > 100;
}

static void test_pollers(void **state)
{
	struct walk w = { 0 };

	(void)state;
	harness_on_reactor(0, walk_start, &w);
	harness_wait_until(walked, &w);
	harness_on_reactor(0, walk_look, &w);
	harness_on_reactor(0, walk_stop, &w);
	assert_int_equal(w.b_runs, 2);
	assert_int_equal(w.each, 1);
	assert_true(w.a_alone > 10);
	assert_true(w.c_runs >= 2);
	assert_int_equal(counter_read(&w.a.runs), w.a_runs);
	assert_int_equal(counter_read(&w.a.busy), w.a_runs);
	assert_int_equal(counter_read(&w.b.busy), 0);
}

/* ------- deferred work ------- */

struct order {
	struct defer complete[2], publish[2], nested;
	char text[16];
	unsigned int len;
	uint64_t pass[16];
};

static void note(struct order *o, char c)
{
	o->pass[o->len] = reactor_now();
	o->text[o->len++] = c;
}

static struct order order;

static void run_a(struct defer *d)
{
	(void)d;
	note(&order, 'a');
	/* From inside the stage: not in this round of it. */
	reactor_defer(DEFER_COMPLETE, &order.nested);
	/* A later stage of this round. */
	reactor_defer(DEFER_PUBLISH, &order.publish[1]);
}

static void run_b(struct defer *d)
{
	(void)d;
	note(&order, 'b');
}

static void run_p(struct defer *d)
{
	(void)d;
	note(&order, 'p');
}

static void run_q(struct defer *d)
{
	(void)d;
	note(&order, 'q');
}

static void run_n(struct defer *d)
{
	(void)d;
	note(&order, 'n');
}

static void defer_all(void *arg)
{
	(void)arg;
	order.complete[0].fn = run_a;
	order.complete[1].fn = run_b;
	order.publish[0].fn = run_p;
	order.publish[1].fn = run_q;
	order.nested.fn = run_n;
	reactor_defer(DEFER_PUBLISH, &order.publish[0]);
	reactor_defer(DEFER_COMPLETE, &order.complete[0]);
	reactor_defer(DEFER_COMPLETE, &order.complete[1]);
	/* Queued already: once is enough. */
	reactor_defer(DEFER_COMPLETE, &order.complete[0]);
}

static void test_defers(void **state)
{
	(void)state;
	memset(&order, 0, sizeof(order));
	harness_on_reactor(0, defer_all, NULL);
	harness_on_reactor(0, nothing, NULL);
	harness_on_reactor(0, nothing, NULL);
	assert_string_equal(order.text, "abpqn");
	assert_int_equal(order.pass[0], order.pass[3]);
	assert_true(order.pass[4] > order.pass[3]);
}

/* ------- timers ------- */

static struct {
	struct timer t[5];
	char text[16];
	unsigned int len;
	uint64_t started, fired[16];
	_Atomic bool over;
} timers;

static void timer_fired(struct timer *t)
{
	unsigned int i = (unsigned int)(t - timers.t);

	timers.fired[timers.len] = tsc_now() - timers.started;
	timers.text[timers.len++] = (char)('0' + i);
	if (i == 1)
		/* Its neighbour, due at the same time as itself or later. */
		reactor_timer_stop(&timers.t[2]);
	if (i == 3 && timers.len < 8)
		reactor_timer_start(t, 500);
	else if (i == 3)
		atomic_store(&timers.over, true);
}

static void timers_start(void *arg)
{
	(void)arg;
	memset(&timers, 0, sizeof(timers));
	for (int i = 0; i < 5; i++)
		timers.t[i].fn = timer_fired;
	timers.started = reactor_now();	/* what delays count from */
	reactor_timer_start(&timers.t[3], 30000);
	reactor_timer_start(&timers.t[0], 10000);
	reactor_timer_start(&timers.t[2], 15000);
	reactor_timer_start(&timers.t[1], 15000);
	/* Moved, both ways. */
	reactor_timer_start(&timers.t[2], 20000);
	reactor_timer_start(&timers.t[4], 100);
	reactor_timer_start(&timers.t[4], 5000);
	/* Stopped twice, which is nothing. */
	reactor_timer_stop(&timers.t[4]);
	reactor_timer_stop(&timers.t[4]);
	reactor_timer_start(&timers.t[4], 1);
}

static bool timers_over(void *arg)
{
	(void)arg;
	return atomic_load(&timers.over);
}

static void test_timers(void **state)
{
	static const uint64_t due_us[] = { 1, 10000, 15000, 30000, 30500 };

	(void)state;
	harness_on_reactor(0, timers_start, NULL);
	harness_wait_until(timers_over, NULL);
	assert_string_equal(timers.text, "40133333");
	/* Never early; how late is the machine's affair. */
	for (size_t i = 0; i < ARRAY_SIZE(due_us); i++)
		assert_true((double)timers.fired[i] / (double)tsc_hz() * 1e6 >=
			    (double)due_us[i] * 0.99);
}

static void restart_at_once(struct timer *t)
{
	timers.fired[timers.len] = reactor_now();
	if (++timers.len < 8)
		reactor_timer_start(t, 0);
	else
		atomic_store(&timers.over, true);
}

static void restart_start(void *arg)
{
	(void)arg;
	memset(&timers, 0, sizeof(timers));
	timers.t[0].fn = restart_at_once;
	reactor_timer_start(&timers.t[0], 0);
}

/* A delay of nothing is a later pass, not an endless one. */
static void test_timer_restart_at_once(void **state)
{
	(void)state;
	harness_on_reactor(0, restart_start, NULL);
	harness_wait_until(timers_over, NULL);
	for (int i = 1; i < 8; i++)
		assert_true(timers.fired[i] > timers.fired[i - 1]);
}

/* ------- messages to a sleeper ------- */

struct pinger {
	struct msg msg;
	sem_t answered;
	struct reactor *to;
	unsigned int seed, count;
	unsigned int lost;
};

static void pong(struct msg *msg)
{
	sem_post(&container_of(msg, struct pinger, msg)->answered);
}

/* Waits of all lengths around the time a reactor takes to fall asleep. */
static void dither(unsigned int *seed)
{
	*seed = *seed * 1103515245u + 12345u;
	for (unsigned int spin = (*seed >> 16) % 600; spin > 0; spin--)
		cpu_relax();
	if ((*seed >> 8) % 32 == 0)
		sched_yield();
}

static bool sem_wait_long(sem_t *sem)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 10;
	while (sem_timedwait(sem, &until) < 0) {
		if (errno != EINTR)
			return false;
	}
	return true;
}

static void *ping(void *arg)
{
	struct pinger *p = arg;

	for (unsigned int i = 0; i < p->count; i++) {
		p->msg.fn = pong;
		reactor_post(p->to, &p->msg);
		if (!sem_wait_long(&p->answered)) {
			p->lost++;
			break;
		}
		dither(&p->seed);
	}
	return NULL;
}

static void test_message_stress(void **state)
{
	struct pinger p[4] = { { .count = 0 } };
	pthread_t threads[4];

	(void)state;
	for (unsigned int i = 0; i < 4; i++) {
		sem_init(&p[i].answered, 0, 0);
		p[i].to = reactor_by_index(i % reactor_count());
		p[i].seed = i + 1;
		p[i].count = rounds();
		assert_int_equal(pthread_create(&threads[i], NULL, ping, &p[i]), 0);
	}
	for (unsigned int i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
		sem_destroy(&p[i].answered);
	}
	for (unsigned int i = 0; i < 4; i++)
		assert_int_equal(p[i].lost, 0);
}

/* ------- a queue with notifications, as a virtqueue is one ------- */

struct queue {
	struct poller poller;
	struct fd_watch *watch;
	int fd;
	_Atomic uint32_t avail, seen;	/* producer's, poller's */
	_Atomic bool notify;
	unsigned int arms;
	unsigned int writes, lost, seed;
};

static unsigned int queue_poll(struct poller *p)
{
	struct queue *q = container_of(p, struct queue, poller);
	uint32_t avail = atomic_load_explicit(&q->avail, memory_order_acquire);
	uint32_t n = avail - atomic_load_explicit(&q->seen, memory_order_relaxed);

	atomic_store_explicit(&q->seen, avail, memory_order_release);
	return n;
}

static bool queue_arm(struct poller *p)
{
	struct queue *q = container_of(p, struct queue, poller);

	q->arms++;
	atomic_store(&q->notify, true);
	return atomic_load(&q->avail) != atomic_load(&q->seen);
}

static void queue_disarm(struct poller *p)
{
	atomic_store_explicit(&container_of(p, struct queue, poller)->notify, false,
			      memory_order_relaxed);
}

static void queue_notified(void *arg)
{
	struct queue *q = arg;

	reactor_poller_unpark(&q->poller);
}

static void queue_start(void *arg)
{
	struct queue *q = arg;

	q->poller.poll = queue_poll;
	q->poller.arm = queue_arm;
	q->poller.disarm = queue_disarm;
	if (reactor_watch_start(q->fd, queue_notified, q, &q->watch) < 0)
		q->lost++;
	reactor_poller_add(&q->poller);
}

static void queue_stop(void *arg)
{
	struct queue *q = arg;

	reactor_poller_del(&q->poller);
	reactor_watch_stop(q->watch);
	/* As promised: at once. */
	close(q->fd);
}

static bool queue_drained(struct queue *q)
{
	uint64_t limit = tsc_now() + 10 * tsc_hz();

	while (atomic_load(&q->seen) != atomic_load(&q->avail)) {
		if (tsc_now() > limit)
			return false;
		sched_yield();
	}
	return true;
}

static void *produce(void *arg)
{
	struct queue *q = arg;
	uint64_t one = 1;

	for (unsigned int i = 0; i < rounds(); i++) {
		atomic_fetch_add(&q->avail, 1);
		if (atomic_load(&q->notify)) {
			if (write(q->fd, &one, sizeof(one)) != sizeof(one))
				q->lost++;
			q->writes++;
		}
		if (i % 4 == 0 && !queue_drained(q)) {
			q->lost++;
			break;
		}
		dither(&q->seed);
	}
	return NULL;
}

static void test_notify_stress(void **state)
{
	struct queue q[2] = { { .lost = 0 } };
	unsigned int count = MIN(reactor_count(), 2u);
	pthread_t threads[2];

	(void)state;
	for (unsigned int i = 0; i < count; i++) {
		q[i].fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		q[i].seed = i + 77;
		harness_on_reactor(i, queue_start, &q[i]);
		assert_int_equal(pthread_create(&threads[i], NULL, produce, &q[i]), 0);
	}
	for (unsigned int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	for (unsigned int i = 0; i < count; i++) {
		harness_on_reactor(i, queue_stop, &q[i]);
		assert_int_equal(q[i].lost, 0);
		if (reactors_poll_us() != REACTOR_POLL_ALWAYS)
			assert_true(q[i].arms > 0 && q[i].writes > 0);
	}
}

/* ------- parking ------- */

struct parking {
	struct queue *q;
	bool parked, shared;
	uint64_t runs;
};

static void parking_look(void *arg)
{
	struct parking *p = arg;

	p->parked = p->q->poller.parked;
	p->runs = counter_read(&p->q->poller.runs);
	p->shared = reactor_is_shared();
}

static bool is_parked(void *arg)
{
	harness_on_reactor(0, parking_look, arg);
	return ((struct parking *)arg)->parked;
}

static bool is_seen(void *arg)
{
	const struct queue *q = ((struct parking *)arg)->q;

	return atomic_load(&q->seen) == atomic_load(&q->avail);
}

static void queue_open(struct queue *q, const void *group)
{
	*q = (struct queue){ .fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
	q->poller.group = group;
	harness_on_reactor(0, queue_start, q);
}

static void test_parks(void **state)
{
	struct queue q;
	struct parking p = { .q = &q };
	uint64_t one = 1, runs;

	(void)state;
	queue_open(&q, NULL);
	for (unsigned int i = 0; i < 20; i++) {
		harness_wait_until(is_parked, &p);
		assert_true(atomic_load(&q.notify));
		runs = p.runs;
		harness_sleep(5);
		harness_on_reactor(0, parking_look, &p);
		assert_int_equal(p.runs, runs);
		atomic_fetch_add(&q.avail, 1);
		assert_int_equal(write(q.fd, &one, sizeof(one)), sizeof(one));
		harness_wait_until(is_seen, &p);
	}
	harness_wait_until(is_parked, &p);
	assert_int_equal(q.poller.missed, 0);
	harness_on_reactor(0, queue_stop, &q);
}

/* One that does not notify is served while the reactor is awake, and in the end not parked. */
static void test_missed_notifications(void **state)
{
	struct queue q;
	struct parking p = { .q = &q };

	(void)state;
	queue_open(&q, NULL);
	for (unsigned int i = 0; i < 8; i++) {
		harness_wait_until(is_parked, &p);
		atomic_fetch_add(&q.avail, 1);
		harness_wait_until(is_seen, &p);
	}
	harness_sleep(50);
	assert_false(is_parked(&p));
	assert_false(atomic_load(&q.notify));
	harness_on_reactor(0, queue_stop, &q);
}

/* Two groups, until the queues of one are idle. */
static void test_shared(void **state)
{
	int a, b;
	struct queue q[3];
	struct parking p[3] = { { .q = &q[0] }, { .q = &q[1] }, { .q = &q[2] } };
	uint64_t one = 1;

	(void)state;
	for (int i = 0; i < 3; i++) {
		queue_open(&q[i], i < 2 ? &a : &b);
		harness_wait_until(is_parked, &p[i]);
	}
	assert_false(p[2].shared);
	for (int i = 0; i < 3; i++) {
		/* Idle ones are parked again: until it has been seen among the busy ones. */
		do {
			for (int j = 0; j <= i; j++) {
				atomic_fetch_add(&q[j].avail, 1);
				assert_int_equal(write(q[j].fd, &one, sizeof(one)), sizeof(one));
			}
			harness_on_reactor(0, parking_look, &p[i]);
			assert_true(i == 2 || !p[i].shared);
		} while (p[i].parked || p[i].shared != (i == 2));
	}
	for (int i = 0; i < 3; i++)
		harness_on_reactor(0, queue_stop, &q[i]);
}

/* ------- sleeping ------- */

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

static void test_sleeps(void **state)
{
	struct reactor_times before, after;
	struct timespec t0, t1;
	double cpu;

	(void)state;
	harness_wait_until(all_asleep, NULL);
	reactor_get_times(reactor_by_index(0), &before);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t0);
	nap_ms(200);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t1);
	cpu = (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) / 1e9;
	assert_true(cpu < 0.05);
	harness_on_reactor(0, nothing, NULL);
	harness_on_reactor(0, nothing, NULL);
	reactor_get_times(reactor_by_index(0), &after);
	/* Sleep is idle time. */
	assert_true(after.idle - before.idle > tsc_hz() / 1000 * 190);
	assert_true(after.busy > before.busy);
}

static void test_never_sleeps(void **state)
{
	struct reactor_times before, after;

	(void)state;
	reactor_get_times(reactor_by_index(0), &before);
	nap_ms(50);
	assert_false(all_asleep(NULL));
	reactor_get_times(reactor_by_index(0), &after);
	assert_true(after.idle > before.idle);
	assert_false(after.asleep);
}

static unsigned int poll_nothing(struct poller *p)
{
	(void)p;
	return 0;
}

static void add_poller(void *arg)
{
	reactor_poller_add(arg);
}

static void del_poller(void *arg)
{
	reactor_poller_del(arg);
}

static bool none_asleep(void *arg)
{
	struct reactor_times times;

	(void)arg;
	for (unsigned int i = 0; i < reactor_count(); i++) {
		reactor_get_times(reactor_by_index(i), &times);
		if (times.asleep)
			return false;
	}
	return true;
}

/* Only a reactor that has nothing to poll makes room, and it still takes messages. */
static void test_yields(void **state)
{
	static struct poller idle = { .name = "idle", .poll = poll_nothing };
	struct reactor_times times;

	(void)state;
	harness_on_reactor(0, add_poller, &idle);
	reactors_yield(true);
	do {
		reactor_get_times(reactor_by_index(1), &times);
	} while (!times.asleep);
	nap_ms(20);
	reactor_get_times(reactor_by_index(0), &times);
	assert_false(times.asleep);
	harness_on_reactor(0, del_poller, &idle);
	harness_wait_until(all_asleep, NULL);
	harness_on_reactor(1, nothing, NULL);
	reactors_yield(false);
	harness_wait_until(none_asleep, NULL);
	nap_ms(20);
	assert_true(none_asleep(NULL));
}

/* ------- visits, identity, starting ------- */

struct visitor {
	struct reactor_visit visit;
	struct reactor *seen[8];
	unsigned int count;
	bool on_control, done;
};

static void visit_one(struct reactor_visit *v)
{
	struct visitor *vis = container_of(v, struct visitor, visit);

	vis->seen[vis->count++] = reactor_current();
}

static void visit_done(struct reactor_visit *v)
{
	struct visitor *vis = container_of(v, struct visitor, visit);

	vis->on_control = control_is_current() && !reactor_current();
	vis->done = true;
	harness_wake();
}

static void test_visit(void **state)
{
	struct visitor vis = { .visit = { .fn = visit_one, .done = visit_done } };

	(void)state;
	for (int round = 0; round < 3; round++) {
		vis.count = 0;
		vis.done = false;
		reactor_visit_all(&vis.visit);
		harness_wait(&vis.done);
		assert_true(vis.on_control);
		assert_int_equal(vis.count, reactor_count());
		for (unsigned int i = 0; i < vis.count; i++)
			assert_ptr_equal(vis.seen[i], reactor_by_index(i));
	}
}

static void where_am_i(void *arg)
{
	*(int *)arg = sched_getcpu();
}

static void test_identity(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < reactor_count(); i++) {
		struct reactor *r = reactor_by_index(i);
		int cpu = -1;

		assert_int_equal(reactor_index(r), i);
		assert_ptr_equal(reactor_by_cpu(reactor_cpu(r)), r);
		assert_true(cpumask_has(reactors_mask(), reactor_cpu(r)));
		assert_true(reactor_tid(r) > 0 && reactor_tid(r) != getpid());
		harness_on_reactor(i, where_am_i, &cpu);
		assert_int_equal(cpu, reactor_cpu(r));
	}
	assert_null(reactor_by_index(reactor_count()));
	assert_null(reactor_by_cpu(CPUMASK_MAX));
	assert_null(reactor_by_cpu(CPUMASK_MAX - 1));
	assert_null(reactor_current());
}

static void test_refused_masks(void **state)
{
	struct reactor_config config = { .poll_us = 0 };

	(void)state;
	assert_int_equal(reactors_start(&config), -EINVAL);
	cpumask_set(&config.mask, 0);
	cpumask_set(&config.mask, CPUMASK_MAX - 1);
	assert_int_equal(reactors_start(&config), -ENODEV);
	assert_int_equal(reactor_count(), 0);
}

/* Start with the n-th allocation failing, until it succeeds. */
static void test_start_without_memory(void **state)
{
	struct reactor_config config = { .poll_us = 0 };
	unsigned int n;
	int rc = 0;

	(void)state;
	cpumask_set(&config.mask, (unsigned int)sched_getcpu());
	for (n = 1; n < 20; n++) {
		harness_fail_alloc(n);
		rc = reactors_start(&config);
		if (!harness_fail_reached())
			break;
		/* Registered files can be done without. */
		if (rc == 0)
			reactors_stop();
		else
			assert_int_equal(rc, -ENOMEM);
		assert_int_equal(reactor_count(), 0);
	}
	harness_fail_alloc(0);
	assert_int_equal(rc, 0);
	assert_in_range(n, 4, 19);
	reactors_stop();
}

int main(void)
{
#define IN_MODE(test, mode) cmocka_unit_test_setup_teardown(test, mode, harness_teardown)
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused_masks),
		cmocka_unit_test(test_start_without_memory),
		IN_MODE(test_pollers, start_interrupt),
		IN_MODE(test_pollers, start_poll_always),
		IN_MODE(test_defers, start_interrupt),
		IN_MODE(test_timers, start_interrupt),
		IN_MODE(test_timers, start_poll_always),
		IN_MODE(test_timer_restart_at_once, start_interrupt),
		IN_MODE(test_message_stress, start_interrupt),
		IN_MODE(test_message_stress, start_short_poll),
		IN_MODE(test_message_stress, start_poll_always),
		IN_MODE(test_notify_stress, start_interrupt),
		IN_MODE(test_notify_stress, start_short_poll),
		IN_MODE(test_notify_stress, start_poll_always),
		IN_MODE(test_parks, start_poll_always),
		IN_MODE(test_parks, start_interrupt),
		IN_MODE(test_missed_notifications, start_poll_always),
		IN_MODE(test_shared, start_poll_always),
		IN_MODE(test_sleeps, start_interrupt),
		IN_MODE(test_sleeps, start_short_poll),
		IN_MODE(test_never_sleeps, start_poll_always),
		IN_MODE(test_yields, start_poll_always),
		IN_MODE(test_visit, start_interrupt),
		IN_MODE(test_identity, start_short_poll),
	};

	return harness_main("reactor", tests, ARRAY_SIZE(tests), NULL, NULL);
}
