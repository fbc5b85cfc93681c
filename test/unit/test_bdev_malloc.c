/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Unit tests of the malloc bdev: its requests, its answers to impossible
 * orders, and that nothing is left behind when memory runs out.
 */
#include "harness.h"

#include "bdev/bdev_backend.h"
#include "bdev/stream.h"
#include "hugepages/hugepages.h"

#include <stdlib.h>
#include <string.h>

#define MIB (1024u * 1024u)

static int create(const char *name, uint64_t num_blocks, uint32_t block_size,
		  struct harness_result *hr)
{
	struct bdev_malloc_opts opts = {
		.name = name, .num_blocks = num_blocks, .block_size = block_size, .numa_node = -1,
	};

	bdev_malloc_create(&opts, harness_result_init(hr));
	return harness_result(hr);
}

static size_t bytes_mapped(void)
{
	struct huge_stats stats;

	huge_get_stats(&stats);
	return stats.huge_bytes + stats.normal_bytes;
}

static void test_read_write(void **state)
{
	unsigned char *out = harness_pages(2 * MIB), *in = harness_pages(2 * MIB);
	struct harness_result hr;
	struct harness_user user;

	(void)state;
	assert_int_equal(create("m0", 8192, 512, &hr), 0);
	assert_int_equal(bdev_size(hr.res.bdev), 4 * MIB);
	assert_false(hr.res.bdev->write_cache);
	assert_string_equal(hr.res.bdev->ops->product_name, "Malloc disk");
	assert_int_equal(bdev_malloc_get_opts(hr.res.bdev)->num_blocks, 8192);
	harness_open(&user, "m0", 0);
	memset(in, 0xee, 2 * MIB);
	assert_int_equal(harness_rw(&user, BDEV_READ, 0, in, 2 * MIB), 0);
	memset(out, 0, 2 * MIB);
	assert_memory_equal(in, out, 2 * MIB);	/* new disks are zero */
	harness_fill(out, 2 * MIB, 1);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, MIB, out, 2 * MIB), 0);
	assert_int_equal(harness_range(&user, BDEV_FLUSH, 0, 0, 0), 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, MIB, in, 2 * MIB), 0);
	assert_memory_equal(in, out, 2 * MIB);
	/* The last block, and past it. */
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 4 * MIB - 512, out, 512), 0);
	assert_int_equal(harness_rw(&user, BDEV_WRITE, 4 * MIB - 512, out, 1024), -EINVAL);
	assert_int_equal(harness_rw(&user, BDEV_READ, UINT64_MAX - 511, out, 512), -EINVAL);
	assert_int_equal(harness_rw(&user, BDEV_READ, 100, out, 512), -EINVAL);
	harness_close(&user);
	assert_int_equal(harness_delete("m0"), 0);
	assert_int_equal(bytes_mapped(), 0);
	free(out);
	free(in);
}

static void test_many_buffers(void **state)
{
	unsigned char *out = harness_pages(64 * 1024), *in = harness_pages(64 * 1024);
	struct harness_result hr;
	struct harness_user user;
	struct iovec iov[64];

	(void)state;
	assert_int_equal(create("m0", 1024, 4096, &hr), 0);
	harness_open(&user, "m0", 0);
	harness_fill(out, 64 * 1024, 2);
	/* Buffers of odd sizes: 1, 2047, 1, 2047, ... */
	for (unsigned int i = 0, at = 0; i < 64; i++) {
		iov[i].iov_base = out + at;
		iov[i].iov_len = i % 2 ? 2047 : 1;
		at += (unsigned)iov[i].iov_len;
	}
	assert_int_equal(harness_iov(&user, BDEV_WRITE, 8192, iov, 64), 0);
	for (unsigned int i = 0; i < 64; i++)
		iov[i].iov_base = in + ((unsigned char *)iov[i].iov_base - out);
	assert_int_equal(harness_iov(&user, BDEV_READ, 8192, iov, 64), 0);
	assert_memory_equal(in, out, 64 * 1024);
	harness_close(&user);
	assert_int_equal(harness_delete("m0"), 0);
	free(out);
	free(in);
}

static void test_zeroes(void **state)
{
	unsigned char *buf = harness_pages(MIB), *zero = harness_pages(MIB);
	static const struct { enum bdev_io_type type; uint8_t flags; } kinds[] = {
		{ BDEV_DISCARD, 0 }, { BDEV_WRITE_ZEROES, 0 },
		{ BDEV_WRITE_ZEROES, BDEV_IO_NO_UNMAP },
	};
	struct harness_result hr;
	struct harness_user user;

	(void)state;
	memset(zero, 0, MIB);
	assert_int_equal(create("m0", 2048, 512, &hr), 0);
	harness_open(&user, "m0", 0);
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		memset(buf, 0x77, MIB);
		assert_int_equal(harness_rw(&user, BDEV_WRITE, 0, buf, MIB), 0);
		assert_int_equal(harness_range(&user, kinds[i].type, 512, MIB - 1024,
					       kinds[i].flags), 0);
		assert_int_equal(harness_rw(&user, BDEV_READ, 0, buf, MIB), 0);
		assert_int_equal(buf[511], 0x77);
		assert_memory_equal(buf + 512, zero, MIB - 1024);
		assert_int_equal(buf[MIB - 512], 0x77);
		assert_int_equal(harness_range(&user, kinds[i].type, 512, MIB, 0), -EINVAL);
	}
	harness_close(&user);
	assert_int_equal(harness_delete("m0"), 0);
	free(buf);
	free(zero);
}

static void test_refusals(void **state)
{
	struct bdev_malloc_opts bad_node = { .name = "m1", .num_blocks = 8, .block_size = 512,
					     .numa_node = 4000 };
	struct bdev_malloc_opts bad_uuid = { .name = "m1", .uuid = "no", .num_blocks = 8,
					     .block_size = 512, .numa_node = -1 };
	struct harness_result hr;

	(void)state;
	assert_int_equal(create("m1", 0, 512, &hr), -EINVAL);
	assert_int_equal(create("m1", 8, 100, &hr), -EINVAL);
	assert_int_equal(create("m1", 8, 0, &hr), -EINVAL);
	assert_int_equal(create("", 8, 512, &hr), -EINVAL);
	assert_int_equal(create("m1", UINT64_MAX / 256, 512, &hr), -EINVAL);
	/* 8 TiB is more than this machine has. */
	assert_int_equal(create("m1", 2147483648, 4096, &hr), -ENOMEM);
	assert_non_null(strstr(hr.res.reason, "8796093022208 bytes"));
	bdev_malloc_create(&bad_node, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), -EINVAL);
	assert_true(hr.res.reason[0]);
	bdev_malloc_create(&bad_uuid, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), -EINVAL);
	assert_non_null(strstr(hr.res.reason, "UUID"));
	assert_null(bdev_find("m1"));
	assert_int_equal(bytes_mapped(), 0);
}

static void test_names(void **state)
{
	struct harness_result hr, racing[2];
	struct bdev_malloc_opts same = { .name = "same", .num_blocks = 8, .block_size = 512,
					 .numa_node = -1 };

	(void)state;
	assert_int_equal(create(NULL, 8, 512, &hr), 0);
	assert_string_equal(hr.res.bdev->name, "Malloc0");
	assert_int_equal(create(NULL, 8, 512, &hr), 0);
	assert_string_equal(hr.res.bdev->name, "Malloc1");
	assert_int_equal(create("Malloc1", 8, 512, &hr), -EEXIST);
	assert_non_null(strstr(hr.res.reason, "Malloc1"));
	/* Two at once: the name is free when both start, and taken when the second ends. */
	bdev_malloc_create(&same, harness_result_init(&racing[0]));
	bdev_malloc_create(&same, harness_result_init(&racing[1]));
	assert_int_equal(harness_result(&racing[0]) + harness_result(&racing[1]), -EEXIST);
	assert_int_equal(harness_delete("same"), 0);
	assert_int_equal(harness_delete("Malloc0"), 0);
	assert_int_equal(harness_delete("Malloc1"), 0);
	assert_int_equal(harness_delete("Malloc1"), -ENODEV);
	assert_int_equal(bytes_mapped(), 0);
}

static void test_out_of_memory(void **state)
{
	struct harness_result hr;
	unsigned int n = 0;

	(void)state;
	for (;;) {
		int rc;

		harness_fail_alloc(++n);
		rc = create("m0", 64, 512, &hr);
		if (!harness_fail_reached()) {
			assert_int_equal(rc, 0);
			break;
		}
		/* An allocation may be one that can be done without. */
		if (rc == 0)
			assert_int_equal(harness_delete("m0"), 0);
		else
			assert_int_equal(rc, -ENOMEM);
		assert_null(bdev_find("m0"));
		assert_int_equal(bytes_mapped(), 0);
		assert_true(n < 50);
	}
	harness_fail_alloc(0);
	assert_true(n > 2);
	assert_int_equal(harness_delete("m0"), 0);
}

/* ------- not at the cost of others ------- */

static unsigned int poll_nothing(struct poller *p)
{
	(void)p;
	return 0;
}

static struct poller pollers[2] = {
	{ .name = "one", .poll = poll_nothing, .group = &pollers[0] },
	{ .name = "other", .poll = poll_nothing, .group = &pollers[1] },
};

static void pollers_add(void *arg)
{
	(void)arg;
	for (int i = 0; i < 2; i++)
		reactor_poller_add(&pollers[i]);
}

static void pollers_del(void *arg)
{
	(void)arg;
	for (int i = 0; i < 2; i++)
		reactor_poller_del(&pollers[i]);
}

static void look_shared(void *arg)
{
	*(bool *)arg = reactor_is_shared();
}

static bool is_shared(void *arg)
{
	harness_on_reactor(0, look_shared, arg);
	return *(bool *)arg;
}

/* Beside others a request takes a pass for every 8 KiB, and what came before goes before. */
static void test_shares(void **state)
{
	unsigned char *out = harness_pages(MIB), *in = harness_pages(MIB);
	struct iovec iov = { out, MIB }, back = { in, MIB }, part = { out, 4096 };
	struct harness_io first = { .io.iov = &iov }, second = { .io.iov = &part };
	struct harness_io third = { .io.iov = &back };
	struct harness_result hr;
	struct harness_user user;
	uint64_t runs;
	bool shared;

	(void)state;
	assert_int_equal(create("m0", 4096, 512, &hr), 0);
	harness_open(&user, "m0", 0);
	harness_fill(out, MIB, 3);
	harness_on_reactor(0, pollers_add, NULL);
	harness_wait_until(is_shared, &shared);
	first.io.type = second.io.type = BDEV_WRITE;
	third.io.type = BDEV_READ;
	first.io.length = third.io.length = MIB;
	second.io.length = second.io.offset = 4096;
	first.io.iovcnt = second.io.iovcnt = third.io.iovcnt = 1;
	runs = counter_read(&pollers[0].runs);
	harness_io_start(&first, &user);
	harness_io_start(&second, &user);
	harness_io_start(&third, &user);
	assert_int_equal(harness_io_wait(&first), 0);
	assert_int_equal(harness_io_wait(&second), 0);
	assert_int_equal(harness_io_wait(&third), 0);
	assert_true(counter_read(&pollers[0].runs) - runs >= 2 * MIB / (8 * 1024));
	memcpy(out + 4096, out, 4096);
	assert_memory_equal(in, out, MIB);
	assert_int_equal(harness_range(&user, BDEV_WRITE_ZEROES, 0, 2 * MIB, 0), 0);
	assert_int_equal(harness_rw(&user, BDEV_READ, MIB / 2, in, MIB), 0);
	memset(out, 0, MIB);
	assert_memory_equal(in, out, MIB);
	harness_on_reactor(0, pollers_del, NULL);
	harness_close(&user);
	assert_int_equal(harness_delete("m0"), 0);
	free(out);
	free(in);
}

/* Whether it pays on this CPU or not. */
static void test_stream(void **state)
{
	char *out = harness_pages(8192), *in = harness_pages(8192), zeroes[64] = { 0 };

	(void)state;
	harness_fill(out, 8192, 1);
	for (size_t skew = 0; skew < 64; skew += 7) {
		memset(in, 0, 8192);
		stream_copy(in + 64, out + skew, 4096);
		stream_end();
		assert_memory_equal(in + 64, out + skew, 4096);
		assert_memory_equal(in, zeroes, 64);
		assert_memory_equal(in + 64 + 4096, zeroes, 64);
	}
	free(out);
	free(in);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_read_write),
		cmocka_unit_test(test_many_buffers),
		cmocka_unit_test(test_zeroes),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_out_of_memory),
		cmocka_unit_test(test_shares),
		cmocka_unit_test(test_stream),
	};

	return harness_main("bdev_malloc", tests, ARRAY_SIZE(tests), harness_setup,
			    harness_teardown);
}
