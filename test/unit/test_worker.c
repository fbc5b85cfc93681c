/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The worker pool: a call that hangs delays no other, the pool grows as far as
 * it must and no further, and what hangs at the end is counted and left.
 */
#include "harness.h"

#include "reactor/worker.h"

#include <semaphore.h>
#include <string.h>
#include <time.h>

#define MANY 1000

static int setup(void **state)
{
	(void)state;
	assert_int_equal(control_init(), 0);
	return workers_start();
}

static int teardown(void **state)
{
	unsigned int left = workers_stop(10000);

	(void)state;
	control_fini();
	return left ? -1 : 0;
}

struct work {
	struct job job;
	sem_t *gate;		/* waits here, NULL: nowhere */
	unsigned int *done_count, stop_at;
	bool ran, on_worker, done_on_control;
};

static void work_run(struct job *job)
{
	struct work *w = container_of(job, struct work, job);

	w->on_worker = !control_is_current();
	if (w->gate) {
		while (sem_wait(w->gate) < 0)
			;
	}
	w->ran = true;
}

static void work_done(struct job *job)
{
	struct work *w = container_of(job, struct work, job);

	w->done_on_control = control_is_current() && w->ran;
	if (++*w->done_count == w->stop_at)
		control_stop();
}

static void submit(struct work *w, sem_t *gate, unsigned int *count, unsigned int stop_at)
{
	*w = (struct work){ .job = { .run = work_run, .done = work_done }, .gate = gate,
			    .done_count = count, .stop_at = stop_at };
	worker_submit(&w->job);
}

static void stop_timer(struct control_timer *t)
{
	(void)t;
	control_stop();
}

static void run_for(uint64_t ms)
{
	struct control_timer t = { .fn = stop_timer };

	control_timer_start(&t, ms);
	control_run();
	control_timer_stop(&t);
}

static void run_until(const unsigned int *count, unsigned int want)
{
	for (int i = 0; i < 10000 && *count < want; i++)
		run_for(1);
	assert_int_equal(*count, want);
}

static void test_one(void **state)
{
	unsigned int count = 0;
	struct work w;

	(void)state;
	submit(&w, NULL, &count, 0);
	assert_false(w.done_on_control);	/* never from inside submit */
	run_until(&count, 1);
	assert_true(w.ran && w.on_worker && w.done_on_control);
}

/* 20 calls hang; one after another, those behind them come back at once. */
static void test_hung_jobs(void **state)
{
	unsigned int hung_count = 0, count = 0;
	static struct work hung[20], quick[20];
	sem_t gate;

	(void)state;
	sem_init(&gate, 0, 0);
	for (unsigned int i = 0; i < 20; i++) {
		submit(&hung[i], &gate, &hung_count, 0);
		submit(&quick[i], NULL, &count, 0);
		run_until(&count, i + 1);
	}
	assert_int_equal(hung_count, 0);
	for (int i = 0; i < 20; i++)
		sem_post(&gate);
	run_until(&hung_count, 20);
	sem_destroy(&gate);
}

/* All threads hang: the rest waits, and comes when one is free again. */
static void test_full(void **state)
{
	static struct work hung[WORKERS_MAX], quick[MANY];
	unsigned int hung_count = 0, count = 0;
	sem_t gate;

	(void)state;
	sem_init(&gate, 0, 0);
	for (int i = 0; i < WORKERS_MAX; i++)
		submit(&hung[i], &gate, &hung_count, 0);
	for (int i = 0; i < MANY; i++)
		submit(&quick[i], NULL, &count, 0);
	run_for(50);
	assert_int_equal(count, 0);
	sem_post(&gate);
	run_until(&count, MANY);
	run_until(&hung_count, 1);
	for (int i = 1; i < WORKERS_MAX; i++)
		sem_post(&gate);
	run_until(&hung_count, WORKERS_MAX);
	sem_destroy(&gate);
	for (int i = 0; i < MANY; i++)
		assert_true(quick[i].done_on_control);
}

struct again {
	struct job job;
	unsigned int left;
};

static void again_run(struct job *job)
{
	(void)job;
}

/* The job is the caller's again in done: also to submit it once more. */
static void again_done(struct job *job)
{
	struct again *a = container_of(job, struct again, job);

	if (--a->left > 0)
		worker_submit(job);
	else
		control_stop();
}

static void test_submit_from_done(void **state)
{
	struct again a = { .job = { .run = again_run, .done = again_done }, .left = 500 };

	(void)state;
	worker_submit(&a.job);
	control_run();
	assert_int_equal(a.left, 0);
}

static void test_stop_counts_what_hangs(void **state)
{
	unsigned int count = 0;
	static struct work hung[3];
	struct timespec t0, t1;
	double ms;
	sem_t gate;

	(void)state;
	sem_init(&gate, 0, 0);
	for (int i = 0; i < 3; i++)
		submit(&hung[i], &gate, &count, 0);
	clock_gettime(CLOCK_MONOTONIC, &t0);
	assert_int_equal(workers_stop(100), 3);
	clock_gettime(CLOCK_MONOTONIC, &t1);
	ms = (double)(t1.tv_sec - t0.tv_sec) * 1e3 + (double)(t1.tv_nsec - t0.tv_nsec) / 1e6;
	assert_true(ms >= 99 && ms < 5000);
	for (int i = 0; i < 3; i++)
		sem_post(&gate);
	/* Now they end, and their results are still delivered. */
	run_until(&count, 3);
	assert_int_equal(workers_stop(10000), 0);
	sem_destroy(&gate);
}

/* Work that comes in after the end, memory to unmap say, is still done. */
static void test_submit_after_stop(void **state)
{
	unsigned int count = 0;
	struct work w;

	(void)state;
	assert_int_equal(workers_stop(10000), 0);
	submit(&w, NULL, &count, 0);
	run_until(&count, 1);
	assert_int_equal(workers_stop(10000), 0);
}

int main(void)
{
#define WITH_POOL(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
	static const struct CMUnitTest tests[] = {
		WITH_POOL(test_one),
		WITH_POOL(test_hung_jobs),
		WITH_POOL(test_full),
		WITH_POOL(test_submit_from_done),
		WITH_POOL(test_stop_counts_what_hangs),
		WITH_POOL(test_submit_after_stop),
	};

	return harness_main("worker", tests, ARRAY_SIZE(tests), NULL, NULL);
}
