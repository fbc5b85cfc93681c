/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The inbox: order, emptiness, messages that are posted again from inside their
 * own fn, and many senders against one owner. Under SAN=thread the last one is
 * the proof that pushing and taking are ordered.
 */
#include "harness.h"

#include "reactor/inbox.h"

#include <pthread.h>
#include <sched.h>

#define SENDERS 3u
#define PER_SENDER 20000u

struct item {
	struct msg msg;
	unsigned int sender, number;
};

static void nothing(struct msg *msg)
{
	(void)msg;
}

static void test_order(void **state)
{
	struct inbox in = { NULL };
	struct msg m[4];
	struct msg *first;

	(void)state;
	assert_true(inbox_empty(&in));
	assert_null(inbox_take(&in));
	for (int i = 0; i < 4; i++) {
		m[i].fn = nothing;
		/* Only the first finds it empty: only then must the owner be woken. */
		assert_int_equal(inbox_push(&in, &m[i]), i == 0);
	}
	assert_false(inbox_empty(&in));
	first = inbox_take(&in);
	for (int i = 0; i < 4; i++, first = first->next)
		assert_ptr_equal(first, &m[i]);
	assert_null(first);
	assert_true(inbox_empty(&in));
	assert_true(inbox_push(&in, &m[2]));
	first = inbox_take(&in);
	assert_ptr_equal(first, &m[2]);
	assert_null(first->next);
}

static struct inbox again;
static unsigned int runs;

static void post_again(struct msg *msg)
{
	if (++runs < 10)
		inbox_push(&again, msg);
}

static void test_post_from_inside(void **state)
{
	struct msg m = { .fn = post_again };

	(void)state;
	inbox_push(&again, &m);
	while (!inbox_empty(&again)) {
		struct msg *got = inbox_take(&again);

		assert_null(got->next);
		got->fn(got);
	}
	assert_int_equal(runs, 10);
}

static struct inbox shared;
static struct item items[SENDERS][PER_SENDER];

static void *sender(void *arg)
{
	struct item *mine = arg;

	for (unsigned int i = 0; i < PER_SENDER; i++) {
		mine[i].number = i;
		mine[i].msg.fn = nothing;
		inbox_push(&shared, &mine[i].msg);
		if (i % 64 == 0)
			sched_yield();
	}
	return NULL;
}

static void test_many_senders(void **state)
{
	unsigned int next[SENDERS] = { 0 }, total = 0;
	pthread_t threads[SENDERS];

	(void)state;
	for (unsigned int s = 0; s < SENDERS; s++) {
		for (unsigned int i = 0; i < PER_SENDER; i++)
			items[s][i].sender = s;
		assert_int_equal(pthread_create(&threads[s], NULL, sender, items[s]), 0);
	}
	while (total < SENDERS * PER_SENDER) {
		struct msg *m = inbox_take(&shared);

		if (!m)
			sched_yield();
		while (m) {
			struct item *item = container_of(m, struct item, msg);

			m = m->next;
			assert_int_equal(item->number, next[item->sender]);
			next[item->sender]++;
			total++;
		}
	}
	for (unsigned int s = 0; s < SENDERS; s++)
		pthread_join(threads[s], NULL);
	assert_true(inbox_empty(&shared));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_post_from_inside),
		cmocka_unit_test(test_many_senders),
	};

	return harness_main("inbox", tests, ARRAY_SIZE(tests), NULL, NULL);
}
