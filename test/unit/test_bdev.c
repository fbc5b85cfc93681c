/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The block layer between users and backends, over a backend that does as it is
 * told: ends requests later, from a foreign thread or never, has no resources
 * for a while, refuses channels. What the backends do with the data is tested
 * beside each of them.
 */
#include "harness.h"

#include "bdev/bdev_backend.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ------- the backend ------- */

enum how { LATER, FOREIGN, HOLD };

struct puppet {
	struct bdev bdev;
	enum how how;
	int prepare_rc, open_rc, status;
	_Atomic unsigned int waits;	/* so many submits find no resources */
	_Atomic unsigned int submits, cancels;
	unsigned int prepares, unprepares;
	_Atomic unsigned int opens, closes;
};

static unsigned int destroyed;

/* Per channel: requests held back until cancel. */
struct held {
	struct bdev_io *first;
};

static struct puppet *puppet_of(struct bdev_channel *ch)
{
	return container_of(ch->bdev, struct puppet, bdev);
}

static int puppet_prepare(struct bdev_channel *ch)
{
	struct puppet *p = puppet_of(ch);

	p->prepares++;
	return p->prepare_rc;
}

static void puppet_unprepare(struct bdev_channel *ch)
{
	puppet_of(ch)->unprepares++;
}

static int puppet_open(struct bdev_channel *ch)
{
	atomic_fetch_add(&puppet_of(ch)->opens, 1);
	return puppet_of(ch)->open_rc;
}

static void puppet_close(struct bdev_channel *ch)
{
	atomic_fetch_add(&puppet_of(ch)->closes, 1);
}

/* Threads that may still look at the reactor they have sent a request home to. */
static atomic_int strangers;

static void *stranger(void *arg)
{
	struct bdev_io *io = arg;

	bdev_io_done_foreign(io, puppet_of(io->ch)->status);
	atomic_fetch_sub(&strangers, 1);
	return NULL;
}

static int teardown(void **state)
{
	while (atomic_load(&strangers) > 0)
		usleep(1000);
	return harness_teardown(state);
}

static void puppet_submit(struct bdev_io *io)
{
	struct puppet *p = puppet_of(io->ch);
	struct held *held = bdev_channel_ctx(io->ch);
	pthread_attr_t attr;
	pthread_t thread;

	reactor_assert();
	atomic_fetch_add(&p->submits, 1);
	if (atomic_load(&p->waits) > 0) {
		atomic_fetch_sub(&p->waits, 1);
		bdev_io_wait(io);
		return;
	}
	switch (p->how) {
	case LATER:
		bdev_io_done_later(io, p->status);
		break;
	case FOREIGN:
		pthread_attr_init(&attr);
		pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
		atomic_fetch_add(&strangers, 1);
		if (pthread_create(&thread, &attr, stranger, io)) {
			atomic_fetch_sub(&strangers, 1);
			bdev_io_done_later(io, -EAGAIN);
		}
		pthread_attr_destroy(&attr);
		break;
	case HOLD:
		io->next = held->first;
		held->first = io;
		break;
	}
}

static void puppet_cancel(struct bdev_channel *ch)
{
	struct held *held = bdev_channel_ctx(ch);

	reactor_assert();
	atomic_fetch_add(&puppet_of(ch)->cancels, 1);
	while (held->first) {
		struct bdev_io *io = held->first;

		held->first = io->next;
		bdev_io_done(io, -ECANCELED);
	}
}

static void puppet_destroy(struct bdev *bdev)
{
	control_assert();
	destroyed++;
	bdev_destroyed(bdev);
	free(container_of(bdev, struct puppet, bdev));
}

static const struct bdev_ops puppet_ops = {
	.module = "puppet",
	.product_name = "Puppet disk",
	.channel_size = sizeof(struct held),
	.channel_prepare = puppet_prepare,
	.channel_unprepare = puppet_unprepare,
	.channel_open = puppet_open,
	.channel_close = puppet_close,
	.submit = puppet_submit,
	.cancel = puppet_cancel,
	.destroy = puppet_destroy,
};

static struct puppet *puppet_new(void)
{
	struct puppet *p = calloc(1, sizeof(*p));

	assert_non_null(p);
	p->bdev.ops = &puppet_ops;
	p->bdev.size = 1 << 20;
	p->bdev.block_size = 512;
	p->bdev.physical_block_size = 4096;
	p->bdev.supported = (1u << BDEV_IO_TYPES) - 1;
	return p;
}

static struct puppet *puppet_make(const char *name)
{
	struct puppet *p = puppet_new();
	char reason[BDEV_REASON_MAX] = "";

	assert_int_equal(bdev_register(&p->bdev, name, "Puppet", NULL, reason), 0);
	return p;
}

/* ------- names ------- */

#define UUID "01234567-89ab-cdef-0123-456789ABCDEF"

static void check_register(const char *name, const char *uuid, int rc)
{
	struct puppet *p = puppet_new();
	char reason[BDEV_REASON_MAX] = "";

	assert_int_equal(bdev_register(&p->bdev, name, "Puppet", uuid, reason), rc);
	assert_int_not_equal(reason[0], 0);
	free(p);
}

static void test_names(void **state)
{
	char reason[BDEV_REASON_MAX], longest[BDEV_NAME_MAX + 1];
	struct puppet *p0 = puppet_make(NULL), *p1, *p2;

	(void)state;
	assert_string_equal(p0->bdev.name, "Puppet0");
	p2 = puppet_make("Puppet2");
	p1 = puppet_make(NULL);
	assert_string_equal(p1->bdev.name, "Puppet1");
	assert_ptr_equal(bdev_find("Puppet2"), &p2->bdev);
	assert_ptr_equal(bdev_find(p2->bdev.uuid), &p2->bdev);
	assert_null(bdev_find("puppet2"));
	assert_null(bdev_find(""));
	/* In the order they were made. */
	assert_ptr_equal(bdev_next(NULL), &p0->bdev);
	assert_ptr_equal(bdev_next(&p0->bdev), &p2->bdev);
	assert_ptr_equal(bdev_next(&p2->bdev), &p1->bdev);
	assert_null(bdev_next(&p1->bdev));
	check_register("Puppet0", NULL, -EEXIST);
	check_register("", NULL, -EINVAL);
	check_register(p0->bdev.uuid, NULL, -EEXIST);
	memset(longest, 'x', BDEV_NAME_MAX);
	longest[BDEV_NAME_MAX] = '\0';
	check_register(longest, NULL, -EINVAL);
	longest[BDEV_NAME_MAX - 1] = '\0';
	assert_int_equal(bdev_check_name(longest, reason), 0);
	puppet_make(longest);
	assert_int_equal(bdev_check_name(longest, reason), -EEXIST);
	assert_int_equal(bdev_check_name(NULL, reason), 0);
	/* A gap is filled. */
	assert_int_equal(harness_delete("Puppet0"), 0);
	assert_string_equal(puppet_make(NULL)->bdev.name, "Puppet0");
	for (struct bdev *b = bdev_next(NULL); b; b = bdev_next(NULL))
		assert_int_equal(harness_delete(b->name), 0);
}

static void test_uuids(void **state)
{
	static const char *const bad[] = {
		"", "x", "01234567-89ab-cdef-0123-456789abcde", "01234567-89ab-cdef-0123-456789abcdeg",
		"01234567-89ab-cdef-0123-456789abcdef0", "0123456789abcdef0123456789abcdef",
		"01234567_89ab-cdef-0123-456789abcdef", "{1234567-89ab-cdef-0123-456789abcdef",
		"01234567-89ab-cdef-0123456789-abcdef",
	};
	struct puppet *p = puppet_new(), *q = puppet_make("q"), *r = puppet_make("r");
	char reason[BDEV_REASON_MAX];

	(void)state;
	assert_int_equal(strlen(q->bdev.uuid), 36);
	assert_int_equal(q->bdev.uuid[14], '4');
	assert_string_not_equal(q->bdev.uuid, r->bdev.uuid);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		check_register("p", bad[i], -EINVAL);
	assert_int_equal(bdev_register(&p->bdev, "p", NULL, UUID, reason), 0);
	assert_string_equal(p->bdev.uuid, UUID);
	assert_ptr_equal(bdev_find("01234567-89AB-CDEF-0123-456789abcdef"), &p->bdev);
	check_register("s", "01234567-89ab-cdef-0123-456789abcdef", -EEXIST);
	assert_int_equal(harness_delete(UUID), 0);
	assert_null(bdev_find(UUID));
	assert_int_equal(harness_delete("q"), 0);
	assert_int_equal(harness_delete("r"), 0);
}

static void test_geometry(void **state)
{
	static const struct {
		uint64_t size;
		uint32_t block, physical;
		int rc;
	} cases[] = {
		{ 4096, 512, 512, 0 }, { 4096, 4096, 4096, 0 }, { 512, 512, 65536, 0 },
		{ INT64_MAX - 511, 512, 512, 0 }, { 0, 512, 512, -EINVAL },
		{ 512, 4096, 4096, -EINVAL }, { 513, 512, 512, -EINVAL },
		{ 1ull << 63, 512, 512, -EINVAL }, { UINT64_MAX - 511, 512, 512, -EINVAL },
		{ 4096, 0, 512, -EINVAL }, { 4096, 1024, 4096, -EINVAL },
		{ 4096, 4096, 512, -EINVAL }, { 4096, 512, 1000, -EINVAL },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct puppet *p = puppet_new();
		char reason[BDEV_REASON_MAX];

		p->bdev.size = cases[i].size;
		p->bdev.block_size = cases[i].block;
		p->bdev.physical_block_size = cases[i].physical;
		assert_int_equal(bdev_register(&p->bdev, "p", NULL, NULL, reason), cases[i].rc);
		if (cases[i].rc == 0)
			assert_int_equal(harness_delete("p"), 0);
		else
			free(p);
	}
}

/* ------- descriptors and channels ------- */

static void no_event(struct bdev_desc *desc, enum bdev_event event)
{
	(void)desc;
	(void)event;
}

static void test_open_and_claim(void **state)
{
	struct bdev_desc a = { .event = no_event }, b = { .event = no_event };
	struct harness_result hr;

	(void)state;
	puppet_make("p");
	assert_int_equal(bdev_open("q", false, &a), -ENODEV);
	assert_null(a.bdev);
	assert_int_equal(bdev_open("p", false, &a), 0);
	assert_int_equal(bdev_open("p", false, &b), 0);
	bdev_close(&b);
	assert_null(b.bdev);
	/* Alone or not at all. */
	assert_int_equal(bdev_open("p", true, &b), -EPERM);
	bdev_close(&a);
	assert_int_equal(bdev_open("p", true, &a), 0);
	assert_int_equal(bdev_open("p", false, &b), -EPERM);
	assert_int_equal(bdev_open("p", true, &b), -EPERM);
	assert_int_equal(harness_delete("p"), -EBUSY);
	bdev_close(&a);
	assert_int_equal(bdev_open("p", false, &b), 0);
	bdev_close(&b);
	/* Delete of one module's only. */
	bdev_delete("p", &bdev_null_ops, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), -ENODEV);
	assert_non_null(strstr(hr.res.reason, "null"));
	bdev_delete("p", &puppet_ops, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), 0);
	assert_int_equal(harness_delete("p"), -ENODEV);
}

static bool channels_gone(void *arg)
{
	return ((struct bdev *)arg)->channel_count == 0;
}

static void test_channels(void **state)
{
	struct bdev_desc d = { .event = no_event };
	struct puppet *p = puppet_make("p");
	struct bdev_channel *ch;

	(void)state;
	assert_int_equal(bdev_open("p", false, &d), 0);
	ch = bdev_channel_get(&d, reactor_by_index(0));
	assert_non_null(ch);
	assert_ptr_equal(bdev_channel_get(&d, reactor_by_index(0)), ch);
	assert_ptr_equal(bdev_channel_bdev(ch), &p->bdev);
	if (reactor_count() > 1) {
		struct bdev_channel *other = bdev_channel_get(&d, reactor_by_index(1));

		assert_ptr_not_equal(other, ch);
		bdev_channel_put(other);
	}
	bdev_channel_put(ch);
	assert_ptr_equal(p->bdev.channels[0], ch);
	bdev_channel_put(ch);
	assert_null(p->bdev.channels[0]);
	bdev_channel_put(NULL);
	harness_wait_until(channels_gone, &p->bdev);
	assert_int_equal(p->opens, MIN(reactor_count(), 2u));
	assert_int_equal(p->closes, p->opens);
	assert_int_equal(p->prepares, p->opens);
	assert_int_equal(p->unprepares, p->opens);
	/* Put before it has opened, and again before that one has closed. */
	for (int i = 0; i < 100; i++)
		bdev_channel_put(bdev_channel_get(&d, reactor_by_index(0)));
	harness_wait_until(channels_gone, &p->bdev);
	assert_int_equal(p->opens, p->closes);
	assert_int_equal(p->unprepares, p->prepares);
	bdev_close(&d);
	assert_int_equal(harness_delete("p"), 0);
}

static void test_channel_refused(void **state)
{
	struct bdev_desc d = { .event = no_event };
	struct puppet *p = puppet_make("p");
	struct harness_user user;
	char buf[512];

	(void)state;
	assert_int_equal(bdev_open("p", false, &d), 0);
	p->prepare_rc = -EMFILE;
	assert_null(bdev_channel_get(&d, reactor_by_index(0)));
	assert_int_equal(p->bdev.channel_count, 0);
	bdev_close(&d);
	/* One that fails on the reactor answers for its requests. */
	p->prepare_rc = 0;
	p->open_rc = -ENXIO;
	harness_open(&user, "p", 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), -ENXIO);
	assert_int_equal(harness_range(&user, BDEV_FLUSH, 0, 0, 0), -ENXIO);
	harness_cancel(&user);
	harness_close(&user);
	assert_int_equal(p->submits, 0);
	assert_int_equal(p->closes, 0);
	assert_int_equal(p->cancels, 0);
	assert_int_equal(harness_delete("p"), 0);
}

/* ------- requests ------- */

static void test_checks(void **state)
{
	static const uint64_t size = 1 << 20;
	struct puppet *p = puppet_make("p");
	struct harness_user user;
	char buf[1024];

	(void)state;
	p->bdev.supported &= ~(1u << BDEV_DISCARD);
	harness_open(&user, "p", 0);
#define IS(type, off, len, rc) assert_int_equal(harness_range(&user, type, off, len, 0), rc)
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), 0);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, size - 1024, buf, 1024), 0);
	IS(BDEV_WRITE_ZEROES, 0, size, 0);
	IS(BDEV_FLUSH, 0, 0, 0);
	assert_int_equal(p->submits, 4);
	IS(BDEV_READ, 0, 0, -EINVAL);
	IS(BDEV_READ, 1, 512, -EINVAL);
	IS(BDEV_READ, 0, 511, -EINVAL);
	IS(BDEV_READ, size, 512, -EINVAL);
	IS(BDEV_WRITE, size - 512, 1024, -EINVAL);
	IS(BDEV_WRITE, UINT64_MAX - 511, 512, -EINVAL);
	IS(BDEV_WRITE, 512, UINT64_MAX - 511, -EINVAL);
	IS(BDEV_WRITE_ZEROES, 0, size + 512, -EINVAL);
	IS(BDEV_DISCARD, 0, 512, -EOPNOTSUPP);
	IS(BDEV_IO_TYPES, 0, 512, -EOPNOTSUPP);
	assert_int_equal(p->submits, 4);
	assert_int_equal(bdev_channel_inflight(user.ch), 0);
	harness_close(&user);
	assert_int_equal(harness_delete("p"), 0);

	p = puppet_make("p");
	p->bdev.readonly = true;
	p->bdev.block_size = 4096;
	p->bdev.supported &= ~(1u << BDEV_DISCARD);
	harness_open(&user, "p", 0);
	IS(BDEV_READ, 4096, 4096, 0);
	IS(BDEV_READ, 512, 4096, -EINVAL);
	IS(BDEV_READ, 0, 512, -EINVAL);
	IS(BDEV_FLUSH, 0, 0, 0);
	IS(BDEV_WRITE, 0, 4096, -EROFS);
	IS(BDEV_WRITE_ZEROES, 0, 4096, -EROFS);
	IS(BDEV_DISCARD, 0, 4096, -EOPNOTSUPP);
	assert_int_equal(p->submits, 2);
	harness_close(&user);
	assert_int_equal(harness_delete("p"), 0);
}

static void test_wait_retries(void **state)
{
	struct puppet *p = puppet_make("p");
	struct harness_io hio[8] = { { .done = false } };
	struct harness_user user;

	(void)state;
	harness_open(&user, "p", 0);
	atomic_store(&p->waits, 1000);
	for (int i = 0; i < 8; i++) {
		hio[i].io = (struct bdev_io){ .type = BDEV_WRITE_ZEROES, .length = 512 };
		harness_io_start(&hio[i], &user);
	}
	for (int i = 0; i < 8; i++)
		assert_int_equal(harness_io_wait(&hio[i]), 0);
	assert_int_equal(p->waits, 0);
	assert_int_equal(p->submits, 1008);
	assert_int_equal(bdev_channel_inflight(user.ch), 0);
	harness_close(&user);
	assert_int_equal(harness_delete("p"), 0);
}

static void test_foreign(void **state)
{
	struct puppet *p = puppet_make("p");
	struct harness_io hio[16] = { { .done = false } };
	struct harness_user user;

	(void)state;
	harness_open(&user, "p", reactor_count() - 1);
	p->how = FOREIGN;
	p->status = -EIO;
	for (int i = 0; i < 16; i++) {
		hio[i].io = (struct bdev_io){ .type = BDEV_DISCARD, .length = 512 };
		harness_io_start(&hio[i], &user);
	}
	/* done() asserts that it is on a reactor. */
	for (int i = 0; i < 16; i++)
		assert_int_equal(harness_io_wait(&hio[i]), -EIO);
	harness_close(&user);
	assert_int_equal(harness_delete("p"), 0);
}

/* ------- removal ------- */

static void test_remove_with_user(void **state)
{
	struct puppet *p = puppet_make("p"), *again;
	struct harness_user user;
	struct harness_result hr;
	char buf[512];

	(void)state;
	destroyed = 0;
	harness_open(&user, "p", 0);
	bdev_delete("p", NULL, harness_result_init(&hr));
	assert_int_equal(user.removes, 1);
	/* Out of the name space at once; the name is free. */
	assert_null(bdev_find("p"));
	again = puppet_make("p");
	assert_ptr_not_equal(again, p);
	/* The user may still work, and is in no hurry: the answer does not wait. */
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), 0);
	assert_int_equal(destroyed, 0);
	assert_int_equal(harness_result(&hr), 0);
	assert_int_equal(destroyed, 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), 0);
	harness_close(&user);
	assert_int_equal(destroyed, 1);
	assert_int_equal(harness_delete("p"), 0);
	assert_int_equal(destroyed, 2);
}

static void test_remove_user_closes(void **state)
{
	struct harness_user users[3];
	struct harness_result hr;

	(void)state;
	destroyed = 0;
	puppet_make("p");
	for (int i = 0; i < 3; i++) {
		harness_open(&users[i], "p", 0);
		users[i].close_on_remove = true;
	}
	bdev_delete("p", NULL, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), 0);
	assert_int_equal(destroyed, 1);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(users[i].removes, 1);
		assert_null(users[i].desc.bdev);
	}
}

/* Requests that would never end are cancelled; the user closes after that. */
static void test_remove_with_io(void **state)
{
	struct puppet *p = puppet_make("p");
	struct harness_io hio[4] = { { .done = false } };
	struct harness_user user;
	struct harness_result hr;

	(void)state;
	destroyed = 0;
	harness_open(&user, "p", 0);
	p->how = HOLD;
	for (int i = 0; i < 4; i++) {
		hio[i].io = (struct bdev_io){ .type = BDEV_DISCARD, .length = 512 };
		harness_io_start(&hio[i], &user);
	}
	harness_sleep(5);
	assert_int_equal(bdev_channel_inflight(user.ch), 4);
	bdev_delete("p", NULL, harness_result_init(&hr));
	for (int i = 0; i < 4; i++)
		assert_int_equal(harness_io_wait(&hio[i]), -ECANCELED);
	harness_close(&user);
	assert_int_equal(harness_result(&hr), 0);
	assert_int_equal(destroyed, 1);
}

static bool delete_all_called;

static void all_gone(void)
{
	delete_all_called = true;
	harness_wake();
}

static void test_delete_all(void **state)
{
	struct bdev_desc base = { .event = no_event };
	struct harness_user user;

	(void)state;
	destroyed = 0;
	delete_all_called = false;
	bdev_delete_all(all_gone);
	assert_true(delete_all_called);
	puppet_make("a");
	puppet_make("b");
	puppet_make("c");
	assert_int_equal(bdev_open("a", true, &base), 0);
	harness_open(&user, "b", 0);
	user.close_on_remove = true;
	delete_all_called = false;
	bdev_delete_all(all_gone);
	assert_null(bdev_next(NULL));
	assert_false(delete_all_called);
	bdev_close(&base);
	harness_wait(&delete_all_called);
	assert_int_equal(destroyed, 3);
}

static void test_resize(void **state)
{
	struct puppet *p = puppet_make("p");
	struct harness_user user;

	(void)state;
	harness_open(&user, "p", 0);
	bdev_resized(&p->bdev, 1 << 20);
	assert_int_equal(user.resizes, 0);
	bdev_resized(&p->bdev, 2 << 20);
	assert_int_equal(user.resizes, 1);
	assert_int_equal(harness_range(&user, BDEV_DISCARD, (2 << 20) - 512, 512, 0), 0);
	bdev_resized(&p->bdev, 1 << 20);
	assert_int_equal(user.resizes, 2);
	assert_int_equal(harness_range(&user, BDEV_DISCARD, (2 << 20) - 512, 512, 0), -EINVAL);
	harness_close(&user);
	assert_int_equal(harness_delete("p"), 0);
}

/* ------- statistics ------- */

static void reset(struct bdev *bdev, bool maxmin_only)
{
	struct harness_result hr;

	bdev_reset_stats(bdev, maxmin_only, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), 0);
}

static void test_stats(void **state)
{
	struct puppet *p = puppet_make("p");
	struct harness_user users[2];
	unsigned int last = reactor_count() - 1;
	struct bdev_stats st;
	char buf[1024];

	(void)state;
	bdev_get_stats(&p->bdev, &st);
	assert_int_equal(st.ops[BDEV_READ], 0);
	assert_true(st.latency[BDEV_READ].min == UINT64_MAX);
	assert_false(bdev_get_channel_stats(&p->bdev, 0, &st));
	harness_open(&users[0], "p", 0);
	harness_open(&users[1], "p", last);
	for (int i = 0; i < 10; i++) {
		assert_int_equal(harness_rw(&users[i % 2], BDEV_READ, 0, buf, 1024), 0);
		assert_int_equal(harness_rw(&users[i % 2], BDEV_READ, 1, buf, 512), -EINVAL);
	}
	p->status = -EIO;
	assert_int_equal(harness_rw(&users[0], BDEV_WRITE, 0, buf, 512), -EIO);
	p->status = 0;
	bdev_get_stats(&p->bdev, &st);
	assert_int_equal(st.ops[BDEV_READ], 10);
	assert_int_equal(st.bytes[BDEV_READ], 10240);
	assert_int_equal(st.errors[BDEV_READ], 10);
	assert_int_equal(st.ops[BDEV_WRITE], 0);
	assert_int_equal(st.errors[BDEV_WRITE], 1);
	assert_true(st.latency[BDEV_READ].min <= st.latency[BDEV_READ].max);
	assert_true(st.latency[BDEV_READ].ticks >= st.latency[BDEV_READ].max);
	assert_true(bdev_get_channel_stats(&p->bdev, 0, &st));
	assert_int_equal(st.ops[BDEV_READ], last ? 5 : 10);
	/* Channels that go leave their counts behind. */
	harness_close(&users[1]);
	bdev_get_stats(&p->bdev, &st);
	assert_int_equal(st.ops[BDEV_READ], 10);
	/* Extremes only, then all. */
	reset(NULL, true);
	bdev_get_stats(&p->bdev, &st);
	assert_int_equal(st.ops[BDEV_READ], 10);
	assert_int_equal(st.latency[BDEV_READ].max, 0);
	assert_true(st.latency[BDEV_READ].min == UINT64_MAX);
	reset(&p->bdev, false);
	bdev_get_stats(&p->bdev, &st);
	assert_int_equal(st.ops[BDEV_READ] + st.errors[BDEV_READ] + st.bytes[BDEV_READ], 0);
	assert_int_equal(st.errors[BDEV_WRITE], 0);
	harness_close(&users[0]);
	assert_int_equal(harness_delete("p"), 0);
}

/* A reset holds channels of a bdev that goes meanwhile. */
static void test_reset_and_delete(void **state)
{
	struct harness_result reset_hr, delete_hr;
	struct harness_user user;
	struct puppet *p;

	(void)state;
	destroyed = 0;
	p = puppet_make("p");
	puppet_make("q");
	harness_open(&user, "p", 0);
	user.close_on_remove = true;
	bdev_reset_stats(&p->bdev, false, harness_result_init(&reset_hr));
	bdev_delete("p", NULL, harness_result_init(&delete_hr));
	assert_int_equal(harness_result(&reset_hr), 0);
	assert_int_equal(harness_result(&delete_hr), 0);
	assert_int_equal(destroyed, 1);
	reset(NULL, false);
	assert_int_equal(harness_delete("q"), 0);
}

/* ------- memory runs out ------- */

static void test_out_of_memory(void **state)
{
	unsigned int n;

	(void)state;
	for (n = 1; n < 20; n++) {
		struct bdev_desc d = { .event = no_event };
		struct bdev_channel *ch = NULL;
		struct harness_result hr;
		struct puppet *p = puppet_new();
		char reason[BDEV_REASON_MAX];
		bool failed = false;
		int rc;

		harness_fail_alloc(n);
		rc = bdev_register(&p->bdev, "p", NULL, NULL, reason);
		if (rc < 0) {
			assert_int_equal(rc, -ENOMEM);
			assert_null(bdev_find("p"));
			free(p);
			continue;
		}
		assert_int_equal(bdev_open("p", false, &d), 0);
		ch = bdev_channel_get(&d, reactor_by_index(0));
		failed = !ch;
		bdev_reset_stats(NULL, false, harness_result_init(&hr));
		rc = harness_result(&hr);
		assert_true(rc == 0 || (rc == -ENOMEM && !failed));
		failed |= rc < 0;
		harness_fail_alloc(0);
		bdev_channel_put(ch);
		bdev_close(&d);
		assert_int_equal(harness_delete("p"), 0);
		if (!failed)
			break;
	}
	assert_int_equal(n, 4);
}

/* ------- iovecs ------- */

static void test_iovecs(void **state)
{
	char pieces[3][4] = { "abcd", "efgh", "ijkl" }, buf[16];
	struct iovec iov[] = { { pieces[0], 4 }, { pieces[1], 0 }, { pieces[1], 4 },
			       { pieces[2], 4 } };

	(void)state;
	for (uint64_t skip = 0; skip <= 12; skip++) {
		for (size_t len = 0; len <= 12 - skip; len++) {
			memset(buf, '.', sizeof(buf));
			bdev_iov_to_buf(iov, 4, skip, buf, len);
			assert_memory_equal(buf, &"abcdefghijkl"[skip], len);
			assert_int_equal(buf[len], '.');
			memset(pieces, '-', sizeof(pieces));
			bdev_buf_to_iov(&"abcdefghijkl"[skip], iov, 4, skip, len);
			for (size_t i = 0; i < 12; i++)
				assert_int_equal(((char *)pieces)[i],
						 i >= skip && i < skip + len ? 'a' + (int)i : '-');
			memcpy(pieces, "abcdefghijkl", 12);
		}
	}
	/* More than there is: what there is. */
	memset(buf, '.', sizeof(buf));
	bdev_iov_to_buf(iov, 4, 10, buf, sizeof(buf));
	assert_memory_equal(buf, "kl..............", 16);
	bdev_iov_to_buf(iov, 4, 100, buf, sizeof(buf));
	assert_memory_equal(buf, "kl..............", 16);
	bdev_iov_to_buf(iov, 0, 0, buf, 1);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_uuids),
		cmocka_unit_test(test_geometry),
		cmocka_unit_test(test_open_and_claim),
		cmocka_unit_test(test_channels),
		cmocka_unit_test(test_channel_refused),
		cmocka_unit_test(test_checks),
		cmocka_unit_test(test_wait_retries),
		cmocka_unit_test(test_foreign),
		cmocka_unit_test(test_remove_with_user),
		cmocka_unit_test(test_remove_user_closes),
		cmocka_unit_test(test_remove_with_io),
		cmocka_unit_test(test_delete_all),
		cmocka_unit_test(test_resize),
		cmocka_unit_test(test_stats),
		cmocka_unit_test(test_reset_and_delete),
		cmocka_unit_test(test_out_of_memory),
		cmocka_unit_test(test_iovecs),
	};

	return harness_main("bdev", tests, ARRAY_SIZE(tests), harness_setup_two, teardown);
}
