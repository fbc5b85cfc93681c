/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Unit tests of the fault bdev, mostly over a malloc bdev: each kind of fault,
 * what ends held requests, latencies, and the life of a bdev over another.
 */
#include "harness.h"

#include "bdev/bdev_backend.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NAME "EE_base"

static void create_base(const char *name)
{
	struct bdev_malloc_opts opts = { .name = name, .num_blocks = 2048, .block_size = 512,
					 .numa_node = -1 };
	struct harness_result hr;

	bdev_malloc_create(&opts, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), 0);
}

static int create_error(const char *base, const char *name)
{
	struct bdev_fault_opts opts = { .kind = BDEV_FAULT_ERROR, .base = base, .name = name };
	struct harness_result hr;

	bdev_fault_create(&opts, harness_result_init(&hr));
	return harness_result(&hr);
}

static void inject(const char *name, unsigned int type, enum bdev_fault_mode mode, uint64_t count)
{
	struct bdev_fault_injection inj = { .type = type, .mode = mode, .count = count };
	struct harness_result hr;

	bdev_fault_inject(name, &inj, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), 0);
}

static void start(struct harness_user *user)
{
	create_base("base");
	assert_int_equal(create_error("base", NULL), 0);
	harness_open(user, NAME, 0);
}

static void finish(struct harness_user *user)
{
	harness_close(user);
	assert_int_equal(harness_delete(NAME), 0);
	assert_int_equal(harness_delete("base"), 0);
}

static void nothing(void *arg)
{
	(void)arg;
}

/* A request that stays with the caller; the backend has it when this returns. */
static struct harness_io *begin(struct harness_user *user, enum bdev_io_type type,
				struct harness_io *hio, struct iovec *iov)
{
	memset(hio, 0, sizeof(*hio));
	hio->io.type = (uint8_t)type;
	hio->io.iov = iov;
	hio->io.iovcnt = iov ? 1 : 0;
	hio->io.length = iov ? iov->iov_len : 0;
	harness_io_start(hio, user);
	harness_on_reactor(reactor_index(user->ch->reactor), nothing, NULL);
	return hio;
}

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static void test_passes_on(void **state)
{
	unsigned char *out = harness_pages(65536), *in = harness_pages(65536);
	struct harness_user user;
	const struct bdev *bdev;

	(void)state;
	start(&user);
	bdev = user.desc.bdev;
	assert_int_equal(bdev_size(bdev), 2048 * 512);
	assert_int_equal(bdev->block_size, 512);
	assert_string_equal(bdev->ops->product_name, "Error Injection Disk");
	assert_string_equal(bdev_fault_get_opts(bdev)->base, "base");
	harness_fill(out, 65536, 1);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 4096, out, 65536), 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 4096, in, 65536), 0);
	assert_memory_equal(in, out, 65536);
	assert_int_equal(harness_range(&user, BDEV_FLUSH, 0, 0, 0), 0);
	assert_int_equal(harness_range(&user, BDEV_WRITE_ZEROES, 4096, 512, 0), 0);
	assert_int_equal(harness_range(&user, BDEV_DISCARD, 4096, 512, 0), 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 2048 * 512, in, 512), -EINVAL);
	finish(&user);
	free(out);
	free(in);
}

static void test_creation(void **state)
{
	struct bdev_fault_opts opts = { .kind = BDEV_FAULT_DELAY, .base = "base" };
	struct bdev_desc desc = { .bdev = NULL };
	struct harness_result hr;
	struct harness_user user;
	char name[BDEV_NAME_MAX + 50];

	(void)state;
	assert_int_equal(create_error("nope", NULL), -ENODEV);
	create_base("base");
	bdev_fault_create(&opts, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), -EINVAL);	/* a delay bdev needs a name */
	assert_int_equal(create_error("base", "base"), -EEXIST);
	memset(name, 'x', sizeof(name));
	name[sizeof(name) - 1] = '\0';
	assert_int_equal(create_error("base", name), -EINVAL);
	harness_open(&user, "base", 0);
	assert_int_equal(create_error("base", NULL), -EPERM);
	harness_close(&user);
	assert_int_equal(create_error("base", NULL), 0);
	/* Claimed: nobody else may use or delete the base, or wrap it again. */
	assert_int_equal(bdev_open("base", false, &desc), -EPERM);
	assert_int_equal(create_error("base", "second"), -EPERM);
	assert_true(harness_delete("base") < 0);
	assert_int_equal(harness_delete(NAME), 0);
	assert_int_equal(harness_delete("base"), 0);
}

static void test_failures(void **state)
{
	unsigned char buf[512];
	struct harness_user user;

	(void)state;
	start(&user);
	inject(NAME, BDEV_READ, BDEV_FAULT_FAIL, 2);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, buf, 512), 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), -EIO);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), -EIO);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), 0);
	inject(NAME, BDEV_IO_TYPES, BDEV_FAULT_NOMEM, 3);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, buf, 512), -ENOMEM);
	assert_int_equal(harness_range(&user, BDEV_FLUSH, 0, 0, 0), -ENOMEM);
	assert_int_equal(harness_range(&user, BDEV_DISCARD, 0, 512, 0), -ENOMEM);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, buf, 512), 0);
	inject(NAME, BDEV_WRITE, BDEV_FAULT_FAIL, 1000);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, buf, 512), -EIO);
	inject(NAME, BDEV_WRITE, BDEV_FAULT_CLEAR, 0);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, buf, 512), 0);
	inject(NAME, BDEV_FLUSH, BDEV_FAULT_FAIL, 1);
	inject(NAME, BDEV_IO_TYPES, BDEV_FAULT_CLEAR, 0);
	assert_int_equal(harness_range(&user, BDEV_FLUSH, 0, 0, 0), 0);
	finish(&user);
}

static void test_bad_orders(void **state)
{
	struct bdev_fault_injection inj = { .type = BDEV_IO_TYPES + 1, .mode = BDEV_FAULT_FAIL };
	struct harness_result hr;

	(void)state;
	create_base("base");
	assert_int_equal(create_error("base", NULL), 0);
	bdev_fault_inject(NAME, &inj, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), -EINVAL);
	inj.type = BDEV_READ;
	inj.mode = (enum bdev_fault_mode)77;
	bdev_fault_inject(NAME, &inj, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), -EINVAL);
	bdev_fault_inject("base", &inj, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), -ENODEV);
	bdev_fault_inject("nope", &inj, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), -ENODEV);
	bdev_fault_set_latency(NAME, "avg_read", 1, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), -ENODEV);
	assert_int_equal(harness_delete(NAME), 0);
	assert_int_equal(harness_delete("base"), 0);
}

static void test_held_until_cleared(void **state)
{
	struct harness_io read, write, flush;
	unsigned char buf[1024];
	struct iovec iov[2] = { { buf, 512 }, { buf + 512, 512 } };
	struct harness_user user;

	(void)state;
	start(&user);
	inject(NAME, BDEV_IO_TYPES, BDEV_FAULT_PENDING, 3);
	begin(&user, BDEV_READ, &read, &iov[0]);
	begin(&user, BDEV_WRITE, &write, &iov[1]);
	begin(&user, BDEV_FLUSH, &flush, NULL);
	harness_sleep(20);
	assert_false(read.done || write.done || flush.done);
	assert_int_equal(bdev_channel_inflight(user.ch), 3);
	/* The rule is used up: the next one passes. */
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), 0);
	inject(NAME, BDEV_WRITE, BDEV_FAULT_CLEAR, 0);
	assert_int_equal(harness_io_wait(&write), -EIO);
	assert_false(read.done || flush.done);
	inject(NAME, BDEV_IO_TYPES, BDEV_FAULT_CLEAR, 0);
	assert_int_equal(harness_io_wait(&read), -EIO);
	assert_int_equal(harness_io_wait(&flush), -EIO);
	assert_int_equal(bdev_channel_inflight(user.ch), 0);
	finish(&user);
}

static void test_held_until_cancelled(void **state)
{
	unsigned char buf[512];
	struct iovec iov = { buf, 512 };
	struct harness_user user;
	struct harness_io io;

	(void)state;
	start(&user);
	inject(NAME, BDEV_READ, BDEV_FAULT_PENDING, 2);
	begin(&user, BDEV_READ, &io, &iov);
	harness_sleep(5);
	assert_false(io.done);
	harness_cancel(&user);
	assert_int_equal(harness_io_wait(&io), -ECANCELED);
	/* A user that has not heard of it yet: its requests are not held either. */
	begin(&user, BDEV_READ, &io, &iov);
	assert_int_equal(harness_io_wait(&io), -ECANCELED);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), 0);
	finish(&user);
}

static void test_held_until_deleted(void **state)
{
	unsigned char buf[512];
	struct iovec iov = { buf, 512 };
	struct harness_result del;
	struct harness_user user;
	struct harness_io io;

	(void)state;
	start(&user);
	inject(NAME, BDEV_READ, BDEV_FAULT_PENDING, 1);
	begin(&user, BDEV_READ, &io, &iov);
	harness_sleep(5);
	bdev_delete(NAME, &bdev_error_ops, harness_result_init(&del));
	assert_int_equal(user.removes, 1);
	assert_int_equal(harness_io_wait(&io), -ECANCELED);
	assert_false(del.done);
	harness_close(&user);
	assert_int_equal(harness_result(&del), 0);
	assert_int_equal(harness_delete("base"), 0);
}

/* Clearing while the bdev goes away: the answer comes, then the end. */
static void test_deleted_while_clearing(void **state)
{
	struct bdev_fault_injection inj = { .type = BDEV_IO_TYPES, .mode = BDEV_FAULT_CLEAR };
	struct harness_result clear, del;

	(void)state;
	create_base("base");
	assert_int_equal(create_error("base", NULL), 0);
	bdev_fault_inject(NAME, &inj, harness_result_init(&clear));
	bdev_delete(NAME, NULL, harness_result_init(&del));
	assert_int_equal(harness_result(&del), 0);
	assert_true(clear.done);
	assert_int_equal(harness_delete("base"), 0);
}

static void test_corruption(void **state)
{
	struct bdev_fault_injection inj = { .type = BDEV_READ, .mode = BDEV_FAULT_CORRUPT,
					    .count = 1, .corrupt_offset = 700 };
	unsigned char *out = harness_pages(4096), *in = harness_pages(4096);
	struct harness_result hr;
	struct harness_user user;
	struct iovec iov[2];

	(void)state;
	start(&user);
	harness_fill(out, 4096, 2);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, out, 4096), 0);
	bdev_fault_inject(NAME, &inj, harness_result_init(&hr));
	iov[0] = (struct iovec){ in, 512 };
	iov[1] = (struct iovec){ in + 512, 3584 };
	assert_int_equal(harness_iov(&user, BDEV_READ, 0, iov, 2), 0);
	assert_int_equal(in[700], out[700] ^ 0xff);
	in[700] ^= 0xff;
	assert_memory_equal(in, out, 4096);
	/* A write: what is stored is wrong, the writer's buffer is not. */
	inj.type = BDEV_WRITE;
	inj.corrupt_value = 0x10;
	bdev_fault_inject(NAME, &inj, harness_result_init(&hr));
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, out, 4096), 0);
	assert_memory_equal(in, out, 4096);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, in, 4096), 0);
	assert_int_equal(in[700], out[700] ^ 0x10);
	/* A byte behind the end of the request: nothing happens. */
	inj.corrupt_offset = 4096;
	inj.type = BDEV_READ;
	bdev_fault_inject(NAME, &inj, harness_result_init(&hr));
	in[700] = out[700];
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, out, 4096), 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, in, 4096), 0);
	assert_memory_equal(in, out, 4096);
	finish(&user);
	free(out);
	free(in);
}

static void test_queue_depth(void **state)
{
	struct bdev_fault_injection inj = { .type = BDEV_WRITE, .mode = BDEV_FAULT_FAIL,
					    .count = 5, .queue_depth = 1 };
	unsigned char buf[1024];
	struct iovec iov = { buf + 512, 512 };
	struct harness_result hr;
	struct harness_user user;
	struct harness_io held;

	(void)state;
	start(&user);
	bdev_fault_inject(NAME, &inj, harness_result_init(&hr));
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, buf, 512), 0);
	inject(NAME, BDEV_READ, BDEV_FAULT_PENDING, 1);
	begin(&user, BDEV_READ, &held, &iov);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, buf, 512), -EIO);
	harness_cancel(&user);
	assert_int_equal(harness_io_wait(&held), -ECANCELED);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, buf, 512), 0);
	finish(&user);
}

static void set_latency(const char *which, uint64_t us, int expect)
{
	struct harness_result hr;

	bdev_fault_set_latency("slow", which, us, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), expect);
}

static void test_latency(void **state)
{
	struct bdev_fault_opts opts = { .kind = BDEV_FAULT_DELAY, .base = "base", .name = "slow",
					.avg_read_us = 20000 };
	unsigned char buf[512];
	struct iovec iov = { buf, 512 };
	unsigned int slow = 0;
	struct harness_result hr;
	struct harness_user user;
	struct harness_io io;
	uint64_t t0;

	(void)state;
	create_base("base");
	bdev_fault_create(&opts, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), 0);
	assert_string_equal(hr.res.bdev->ops->module, "delay");
	harness_open(&user, "slow", 0);
	t0 = now_us();
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), 0);
	assert_true(now_us() - t0 >= 20000);
	/* One write in a hundred, and exactly one. */
	set_latency("p99_write", 20000, 0);
	assert_int_equal(bdev_fault_get_opts(user.desc.bdev)->p99_write_us, 20000);
	for (int i = 0; i < 100; i++) {
		begin(&user, BDEV_WRITE, &io, &iov);
		assert_int_equal(harness_io_wait(&io), 0);
	}
	{
		struct bdev_stats stats;

		bdev_get_stats(user.desc.bdev, &stats);
		slow = counter_read(&stats.latency[BDEV_WRITE].max) >= tsc_hz() / 51;
		assert_int_equal(slow, 1);
		/* All of it, less that one: far less than a second slow one. */
		assert_true(counter_read(&stats.latency[BDEV_WRITE].ticks) -
			    counter_read(&stats.latency[BDEV_WRITE].max) < tsc_hz() / 51);
	}
	/* A minute, cut short. */
	set_latency("avg_read", 60000000, 0);
	begin(&user, BDEV_READ, &io, &iov);
	harness_sleep(10);
	assert_false(io.done);
	harness_cancel(&user);
	assert_int_equal(harness_io_wait(&io), -ECANCELED);
	set_latency("avg_read", 0, 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), 0);
	set_latency("median", 0, -EINVAL);
	harness_close(&user);
	assert_int_equal(harness_delete("slow"), 0);
	assert_int_equal(harness_delete("base"), 0);
}

/* Over another fault bdev: cancelling reaches the bottom. */
static void test_stacked(void **state)
{
	unsigned char buf[512];
	struct iovec iov = { buf, 512 };
	struct harness_user user;
	struct harness_io io;

	(void)state;
	create_base("base");
	assert_int_equal(create_error("base", NULL), 0);
	assert_int_equal(create_error(NAME, "top"), 0);
	harness_open(&user, "top", 0);
	inject(NAME, BDEV_READ, BDEV_FAULT_PENDING, 1);
	begin(&user, BDEV_READ, &io, &iov);
	harness_sleep(5);
	assert_false(io.done);
	harness_cancel(&user);
	assert_int_equal(harness_io_wait(&io), -ECANCELED);
	harness_close(&user);
	assert_true(harness_delete(NAME) < 0);
	assert_int_equal(harness_delete("top"), 0);
	assert_int_equal(harness_delete(NAME), 0);
	assert_int_equal(harness_delete("base"), 0);
}

static void test_resize(void **state)
{
	struct bdev_null_opts opts = { .name = "base", .num_blocks = 8, .block_size = 512 };
	struct harness_result hr;
	struct harness_user user;

	(void)state;
	bdev_null_create(&opts, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), 0);
	assert_int_equal(create_error("base", NULL), 0);
	harness_open(&user, NAME, 0);
	bdev_null_resize("base", 16384, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), 0);
	assert_int_equal(user.resizes, 1);
	assert_int_equal(bdev_size(user.desc.bdev), 16384);
	assert_int_equal(harness_range(&user, BDEV_DISCARD, 8192, 8192, 0), 0);
	finish(&user);
}

/* Held requests on two reactors; one CLEAR ends both. */
static void test_two_reactors(void **state)
{
	unsigned char buf[1024];
	struct iovec iov[2] = { { buf, 512 }, { buf + 512, 512 } };
	struct harness_user user[2];
	struct harness_io io[2];

	(void)state;
	if (reactor_count() < 2)
		harness_skip("needs two cores");
	create_base("base");
	assert_int_equal(create_error("base", NULL), 0);
	inject(NAME, BDEV_READ, BDEV_FAULT_PENDING, 2);
	for (unsigned int i = 0; i < 2; i++) {
		harness_open(&user[i], NAME, i);
		begin(&user[i], BDEV_READ, &io[i], &iov[i]);
	}
	harness_sleep(5);
	assert_false(io[0].done || io[1].done);
	inject(NAME, BDEV_READ, BDEV_FAULT_CLEAR, 0);
	assert_int_equal(harness_io_wait(&io[0]), -EIO);
	assert_int_equal(harness_io_wait(&io[1]), -EIO);
	harness_close(&user[0]);
	finish(&user[1]);
}

static void test_out_of_memory(void **state)
{
	unsigned char buf[512];
	struct harness_user user;
	unsigned int n = 0;

	(void)state;
	create_base("base");
	for (;;) {
		int rc;

		harness_fail_alloc(++n);
		rc = create_error("base", NULL);
		if (!harness_fail_reached())
			break;
		assert_int_equal(rc, -ENOMEM);
		assert_null(bdev_find(NAME));
		assert_false(bdev_find("base")->claimed);
		assert_true(n < 50);
	}
	assert_true(n > 2);
	harness_fail_alloc(0);
	/* Neither the base's channel nor ours. */
	for (n = 1; n <= 2; n++) {
		struct bdev_desc desc = { .event = NULL };

		assert_int_equal(bdev_open(NAME, false, &desc), 0);
		harness_fail_alloc(n);
		assert_null(bdev_channel_get(&desc, reactor_by_index(0)));
		assert_true(harness_fail_reached());
		bdev_close(&desc);
	}
	harness_fail_alloc(0);
	harness_open(&user, NAME, 0);
	harness_sleep(5);
	harness_fail_alloc(1);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), -ENOMEM);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, 512), 0);
	inject(NAME, BDEV_WRITE, BDEV_FAULT_CORRUPT, 1);
	harness_fail_alloc(1);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, buf, 512), -ENOMEM);
	harness_fail_alloc(0);
	finish(&user);
}

/* At exit everything goes at once, the base and what lies over it. */
static void test_delete_all(void **state)
{
	unsigned char buf[512];
	struct iovec iov = { buf, 512 };
	static struct harness_user user;
	struct harness_io io;

	(void)state;
	start(&user);
	user.close_on_remove = true;
	inject(NAME, BDEV_READ, BDEV_FAULT_PENDING, 1);
	begin(&user, BDEV_READ, &io, &iov);
	harness_sleep(5);
	harness_stop();
	assert_int_equal(user.removes, 1);
	assert_int_equal(io.status, -ECANCELED);
	harness_start(2, 20);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_passes_on),
		cmocka_unit_test(test_creation),
		cmocka_unit_test(test_failures),
		cmocka_unit_test(test_bad_orders),
		cmocka_unit_test(test_held_until_cleared),
		cmocka_unit_test(test_held_until_cancelled),
		cmocka_unit_test(test_held_until_deleted),
		cmocka_unit_test(test_deleted_while_clearing),
		cmocka_unit_test(test_corruption),
		cmocka_unit_test(test_queue_depth),
		cmocka_unit_test(test_latency),
		cmocka_unit_test(test_stacked),
		cmocka_unit_test(test_resize),
		cmocka_unit_test(test_two_reactors),
		cmocka_unit_test(test_out_of_memory),
		cmocka_unit_test(test_delete_all),
	};

	return harness_main("bdev_fault", tests, ARRAY_SIZE(tests), harness_setup_two,
			    harness_teardown);
}
