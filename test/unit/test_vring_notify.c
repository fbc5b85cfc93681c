/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Virtqueues' two questions, "kick me?" and "call you?": all their arithmetic,
 * with the event index and without, and both sides as threads that sleep
 * whenever the answers allow it: no wake-up may be lost.
 */
#include "ring.h"

#include <pthread.h>
#include <semaphore.h>
#include <time.h>

/* ------- calls and kicks ------- */

static uint16_t *used_event(void)
{
	return &g.avail[2 + g.params.num];
}

static uint16_t *avail_event(void)
{
	return &g.used[2 + 4 * g.params.num];
}

static void test_call_event_idx(void **state)
{
	(void)state;
	/* Every used_event around an update of every length, and around the wrap. */
	for (unsigned int base = 65520; base < 65536 + 16; base++) {
		for (unsigned int n = 1; n <= NUM; n++) {
			for (int event = -12; event < 12; event++) {
				uint16_t old = (uint16_t)base, new = (uint16_t)(base + n);
				uint16_t wanted = (uint16_t)((int)base + event);
				bool crossed = event >= 0 && event < (int)n;

				ring(NUM, old, true);
				/* The first publication always calls. */
				assert_true(publish(&g.vr));
				*used_event() = wanted;
				for (unsigned int i = 0; i < n; i++)
					vring_push(&g.vr, 0, 1);
				assert_int_equal(publish(&g.vr), crossed);
				assert_int_equal(g.used[1], new);
				/* Nothing new: no call. */
				assert_false(publish(&g.vr));
			}
		}
	}
}

static void test_call_flags(void **state)
{
	(void)state;
	ring(NUM, 0, false);
	*used_event() = 12345;	/* means nothing now */
	for (int i = 0; i < 4; i++) {
		g.avail[0] = i % 2 ? 1 : 0;
		vring_push(&g.vr, 0, 1);
		assert_int_equal(publish(&g.vr), i % 2 == 0);
	}
	g.avail[0] = 0xfffe;	/* only bit 0 counts */
	assert_true(publish(&g.vr));
}

static void test_kick_flags(void **state)
{
	uint16_t head;

	(void)state;
	ring(NUM, 65535, false);
	*avail_event() = 7;
	vring_disable_kick(&g.vr);
	assert_int_equal(g.used[0], 1);
	assert_false(vring_enable_kick(&g.vr));
	assert_int_equal(g.used[0], 0);
	make_avail(0);
	/* It came before we asked: look again. */
	assert_true(vring_enable_kick(&g.vr));
	assert_int_equal(vring_pop(&g.vr, &head, 1), 1);
	assert_false(vring_enable_kick(&g.vr));
	assert_int_equal(*avail_event(), 7);
}

static bool driver_kicks(uint16_t old, uint16_t new)
{
	uint16_t event = __atomic_load_n(avail_event(), __ATOMIC_RELAXED);

	return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

static void test_kick_event_idx(void **state)
{
	uint16_t heads[NUM];

	(void)state;
	for (unsigned int base = 65530; base < 65536 + 6; base++) {
		ring(NUM, (uint16_t)base, true);
		g.used[0] = 0;
		vring_disable_kick(&g.vr);
		/* Polled: a driver that adds up to a full ring does not kick. */
		for (unsigned int n = 1; n <= NUM; n++)
			assert_false(driver_kicks((uint16_t)base, (uint16_t)(base + n)));
		assert_false(vring_enable_kick(&g.vr));
		for (unsigned int n = 1; n <= NUM; n++)
			assert_true(driver_kicks((uint16_t)base, (uint16_t)(base + n)));
		make_avail(1);
		assert_true(vring_enable_kick(&g.vr));
		assert_int_equal(vring_pop(&g.vr, heads, NUM), 1);
		vring_disable_kick(&g.vr);
		assert_false(driver_kicks((uint16_t)(base + 1), (uint16_t)(base + 2)));
		assert_false(vring_enable_kick(&g.vr));
		assert_true(driver_kicks((uint16_t)(base + 1), (uint16_t)(base + 2)));
		assert_int_equal(g.used[0], 0);
	}
}

/* ------- driver and device as two threads that sleep whenever they may ------- */

static struct {
	sem_t kick, call;
	unsigned int count, kicks, calls;
	_Atomic bool lost;
	bool event_idx;
} race;

static bool wait_sem(sem_t *sem)
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

static void *device(void *arg)
{
	uint16_t heads[NUM];
	unsigned int done = 0;

	(void)arg;
	while (done < race.count) {
		int n = vring_pop(&g.vr, heads, NUM);

		if (n > 0) {
			for (int i = 0; i < n; i++)
				vring_push(&g.vr, heads[i], 1);
			if (publish(&g.vr)) {
				race.calls++;
				sem_post(&race.call);
			}
			done += (unsigned int)n;
			continue;
		}
		if (!vring_enable_kick(&g.vr) && !wait_sem(&race.kick)) {
			atomic_store(&race.lost, true);
			sem_post(&race.call);
			break;
		}
		vring_disable_kick(&g.vr);
	}
	return NULL;
}

/* seq_cst throughout in place of a driver's full barriers: TSan follows these. */
static void *driver(void *arg)
{
	_Atomic uint16_t *avail_idx = (_Atomic uint16_t *)&g.avail[1];
	_Atomic uint16_t *used_idx = (_Atomic uint16_t *)&g.used[1];
	_Atomic uint16_t *event = (_Atomic uint16_t *)used_event();
	uint16_t idx = 65530, seen = 65530;
	unsigned int sent = 0;

	(void)arg;
	while (sent < race.count && !atomic_load(&race.lost)) {
		unsigned int n = MIN(1 + sent % 3, race.count - sent);
		uint16_t old = idx;
		bool kick;

		for (unsigned int i = 0; i < n; i++)
			__atomic_store_n(&g.avail[2 + idx++ % NUM], (uint16_t)i, __ATOMIC_RELAXED);
		atomic_exchange(avail_idx, idx);
		kick = race.event_idx ?
			(uint16_t)(idx - __atomic_load_n(avail_event(), __ATOMIC_SEQ_CST) - 1) <
			(uint16_t)(idx - old) :
			!(__atomic_load_n(&g.used[0], __ATOMIC_SEQ_CST) & 1);
		if (kick) {
			race.kicks++;
			sem_post(&race.kick);
		}
		sent += n;
		/* Wait for all of it: asleep between "call me at" and the call. */
		while (seen != idx && !atomic_load(&race.lost)) {
			seen = atomic_load(used_idx);
			if (seen == idx)
				break;
			if (race.event_idx)
				atomic_exchange(event, seen);
			if (atomic_load(used_idx) == seen && !wait_sem(&race.call))
				atomic_store(&race.lost, true);
		}
	}
	return NULL;
}

static void run_race(bool event_idx)
{
	pthread_t threads[2];

	ring(NUM, 65530, event_idx);
	memset(&race, 0, sizeof(race));
	sem_init(&race.kick, 0, 0);
	sem_init(&race.call, 0, 0);
	race.count = 20000;
	race.event_idx = event_idx;
	vring_disable_kick(&g.vr);
	assert_int_equal(pthread_create(&threads[0], NULL, device, NULL), 0);
	assert_int_equal(pthread_create(&threads[1], NULL, driver, NULL), 0);
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	sem_destroy(&race.kick);
	sem_destroy(&race.call);
	assert_false(race.lost);
	assert_true(race.kicks > 0 && race.calls > 0);
}

static void test_race_event_idx(void **state)
{
	(void)state;
	run_race(true);
}

static void test_race_flags(void **state)
{
	(void)state;
	run_race(false);
}

int main(void)
{
#define ON_MEMORY(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
	static const struct CMUnitTest tests[] = {
		ON_MEMORY(test_call_event_idx),
		ON_MEMORY(test_call_flags),
		ON_MEMORY(test_kick_flags),
		ON_MEMORY(test_kick_event_idx),
		ON_MEMORY(test_race_event_idx),
		ON_MEMORY(test_race_flags),
	};

	return harness_main("vring_notify", tests, ARRAY_SIZE(tests), NULL, NULL);
}
