/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Unit tests of hugepages/. Most run the same with and without free huge pages; those that need
 * one kind say so when they skip. Tests that change the process-wide configuration put it back.
 * The normal-page tests keep to sizes that any machine has.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "hugepages/hugepages.h"
#include "test/unit/harness.h"

#define MIB ((size_t)1 << 20)
#define GIB ((size_t)1 << 30)

static const struct huge_config no_config = { false, 0, NULL };

static size_t
meminfo(const char *key)
{
	char line[128];
	size_t value = 0, n = strlen(key);
	FILE *f = fopen("/proc/meminfo", "r");

	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (!strncmp(line, key, n) && line[n] == ':')
			value = strtoul(line + n + 1, NULL, 10);
	}
	fclose(f);
	return value;
}

static size_t
free_2m_pages(void)
{
	size_t n = meminfo("HugePages_Free"), reserved = meminfo("HugePages_Rsvd");

	return meminfo("Hugepagesize") == 2048 && n > reserved ? n - reserved : 0;
}

static int
reset_config(void **state)
{
	(void)state;
	return huge_init(&no_config);
}

static bool
all_zero(const void *p, size_t len)
{
	const unsigned char *c = p;

	return !len || (!c[0] && !memcmp(c, c + 1, len - 1));
}

static void
assert_nothing_mapped(void)
{
	struct huge_stats stats;

	huge_get_stats(&stats);
	assert_int_equal(stats.huge_bytes, 0);
	assert_int_equal(stats.normal_bytes, 0);
}

static void
test_alloc_and_free(void **state)
{
	struct huge_area area;
	struct huge_stats stats;

	(void)state;
	assert_int_equal(huge_alloc(3 * MIB + 5, -1, &area), 0);
	assert_non_null(area.addr);
	assert_true(area.len >= 3 * MIB + 5);
	assert_int_equal(area.len % area.page_size, 0);
	assert_int_equal((uintptr_t)area.addr % (2 * MIB), 0);
	assert_true(all_zero(area.addr, area.len));
	huge_get_stats(&stats);
	assert_int_equal(stats.huge_bytes + stats.normal_bytes, area.len);
	memset(area.addr, 0x5a, area.len);
	huge_free(&area);
	assert_null(area.addr);
	assert_int_equal(area.len, 0);
	assert_nothing_mapped();
	huge_free(&area);
	huge_free(NULL);
	assert_nothing_mapped();
}

static void
test_uses_huge_pages(void **state)
{
	size_t before = free_2m_pages();
	struct huge_area area;
	struct huge_stats stats;

	(void)state;
	if (before < 8) {
		print_message("skip: test_uses_huge_pages: needs 8 free 2 MiB pages, has %zu\n",
			      before);
		skip();
	}
	assert_int_equal(huge_alloc(6 * MIB, -1, &area), 0);
	assert_int_equal(area.page_size, 2 * MIB);
	assert_int_equal(area.len, 6 * MIB);
	huge_get_stats(&stats);
	assert_int_equal(stats.huge_bytes, 6 * MIB);
	assert_int_equal(stats.normal_bytes, 0);
	huge_free(&area);
}

static void
test_no_huge(void **state)
{
	struct huge_config config = { true, 0, "/nonexistent" };
	struct huge_area area;
	struct huge_stats stats;

	(void)state;
	assert_int_equal(huge_init(&config), 0);
	assert_int_equal(huge_alloc(MIB + 1, -1, &area), 0);
	assert_int_equal(area.page_size, 4096);
	assert_int_equal(area.len, MIB + 4096);
	assert_true(all_zero(area.addr, area.len));
	huge_get_stats(&stats);
	assert_int_equal(stats.huge_bytes, 0);
	assert_int_equal(stats.normal_bytes, area.len);
	huge_free(&area);
	assert_nothing_mapped();
}

/* Asks for more huge pages than there are: all of it must come as normal pages. */
static void
test_falls_back(void **state)
{
	size_t want = (meminfo("HugePages_Total") + 4) * meminfo("Hugepagesize") * 1024;
	struct huge_area area;
	struct huge_stats stats;

	(void)state;
	if (want > 4 * GIB || want + GIB > meminfo("MemAvailable") * 1024) {
		print_message("skip: test_falls_back: %zu MiB, which is more than all huge pages, "
			      "is too much to ask for\n", want / MIB);
		skip();
	}
	assert_int_equal(huge_alloc(want, -1, &area), 0);
	huge_get_stats(&stats);
	if (area.page_size == 4096) {
		assert_true(stats.fell_back);
		assert_int_equal(stats.normal_bytes, want);
	} else {
		assert_int_equal(area.page_size, GIB); /* there were 1 GiB pages */
	}
	huge_free(&area);
	assert_nothing_mapped();
}

static void
test_refuses_the_impossible(void **state)
{
	struct huge_area area = { (void *)&area, 1, 2, 3 };
	struct huge_config normal = { true, 0, NULL };

	(void)state;
	assert_int_equal(huge_alloc((size_t)8 << 40, -1, &area), -ENOMEM);
	assert_int_equal(huge_alloc(SIZE_MAX, -1, &area), -ENOMEM);
	assert_int_equal(huge_alloc(SIZE_MAX - 4096, -1, &area), -ENOMEM);
	assert_int_equal(huge_alloc((size_t)1 << 63, -1, &area), -ENOMEM);
	assert_int_equal(huge_alloc(0, -1, &area), -EINVAL);
	assert_int_equal(huge_alloc(MIB, -2, &area), -EINVAL);
	assert_int_equal(huge_alloc(MIB, 1023, &area), -EINVAL);
	assert_int_equal(huge_alloc(MIB, 1 << 20, &area), -EINVAL);
	assert_int_equal(huge_init(&normal), 0);
	assert_int_equal(huge_alloc((size_t)8 << 40, -1, &area), -ENOMEM);
	assert_int_equal(huge_alloc(SIZE_MAX, -1, &area), -ENOMEM);
	assert_ptr_equal(area.addr, &area);
	assert_int_equal(area.node, 3);
	assert_nothing_mapped();
}

static void
test_limit(void **state)
{
	struct huge_config config = { false, 8 * MIB, NULL };
	struct huge_area a, b;
	struct huge_stats stats;

	(void)state;
	assert_int_equal(huge_init(&config), 0);
	assert_int_equal(huge_alloc(6 * MIB, -1, &a), 0);
	assert_int_equal(huge_alloc(4 * MIB, -1, &b), -ENOMEM);
	assert_int_equal(huge_alloc(2 * MIB, -1, &b), 0);
	assert_int_equal(huge_alloc(1, -1, &(struct huge_area){ 0 }), -ENOMEM);
	huge_get_stats(&stats);
	assert_int_equal(stats.limit, 8 * MIB);
	huge_free(&a);
	huge_free(&b);
	assert_int_equal(huge_alloc(8 * MIB, -1, &a), 0);
	huge_free(&a);
	assert_nothing_mapped();
}

static void
test_nodes(void **state)
{
	struct huge_area area;

	(void)state;
	assert_int_equal(huge_node_of_cpu(-1), 0);
	assert_int_equal(huge_node_of_cpu(1 << 24), 0);
	assert_true(huge_node_of_cpu(0) >= 0);
	assert_int_equal(huge_alloc(2 * MIB, huge_node_of_cpu(0), &area), 0);
	/* -1 where the kernel or a container's seccomp filter does not tell. */
	assert_true(area.node == -1 || area.node == huge_node_of_cpu(0));
	huge_free(&area);
}

/* Two mappings of one memory, and a third after both are gone. */
static void
shared_area(size_t len)
{
	struct huge_area a, b;
	struct huge_stats stats;
	int fd = -1;

	assert_int_equal(huge_alloc_shared(len, 0, &a, &fd), 0);
	assert_true(fd >= 0);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_true(a.len >= len);
	assert_int_equal((uintptr_t)a.addr % (len >= 2 * MIB ? 2 * MIB : a.page_size), 0);
	assert_true(all_zero(a.addr, a.len));
	memset(a.addr, 0x5a, len);
	assert_int_equal(huge_adopt(fd, len, &b), 0);
	assert_int_equal(b.len, a.len);
	assert_int_equal(b.page_size, a.page_size);
	assert_int_equal(b.node, a.node);
	assert_int_equal((uintptr_t)b.addr % (len >= 2 * MIB ? 2 * MIB : a.page_size), 0);
	assert_memory_equal(a.addr, b.addr, a.len);
	((char *)b.addr)[len - 1] = 1;
	assert_int_equal(((char *)a.addr)[len - 1], 1);
	huge_get_stats(&stats);
	assert_int_equal(stats.huge_bytes + stats.normal_bytes, 2 * a.len);
	huge_free(&a);
	huge_free(&b);
	assert_nothing_mapped();
	assert_int_equal(huge_adopt(fd, len, &b), 0);
	assert_int_equal(((char *)b.addr)[0], 0x5a);
	assert_int_equal(((char *)b.addr)[len - 1], 1);
	huge_free(&b);
	assert_int_equal(huge_adopt(fd, len + 2 * MIB, &b), -EINVAL);
	close(fd);
	assert_nothing_mapped();
}

static void
test_shared(void **state)
{
	struct huge_config normal = { true, 0, NULL };
	struct huge_config dir = { false, 0, "/dev/hugepages" };
	size_t free_before;

	(void)state;
	free_before = free_2m_pages();
	shared_area(5 * MIB + 3);
	shared_area(3);
	if (free_before >= 4 && huge_init(&dir) == 0)
		shared_area(5 * MIB + 3);
	assert_int_equal(huge_init(&normal), 0);
	shared_area(5 * MIB + 3);
	shared_area(3);
}

static void
test_shared_refusals(void **state)
{
	struct huge_config limit = { true, 3 * MIB, NULL };
	struct huge_area a, b = { &a, 1, 2, 3 };
	struct rlimit old, few;
	int fd = -7, pipes[2];

	(void)state;
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(huge_adopt(-1, MIB, &b), -EBADF);
	assert_int_equal(huge_adopt(pipes[0], MIB, &b), -EINVAL);
	assert_int_equal(huge_init(&limit), 0);
	assert_int_equal(huge_alloc_shared(0, -1, &b, &fd), -EINVAL);
	assert_int_equal(huge_alloc_shared(4 * MIB, -1, &b, &fd), -ENOMEM);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	few = (struct rlimit){ 3, old.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
	/* The look at /proc/meminfo needs one, too. */
	assert_true(huge_alloc_shared(MIB, -1, &b, &fd) < 0);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(fd, -7);
	assert_nothing_mapped();
	/* Each mapping counts. */
	assert_int_equal(huge_alloc_shared(2 * MIB, -1, &a, &fd), 0);
	assert_int_equal(huge_adopt(fd, 2 * MIB, &b), -ENOMEM);
	huge_free(&a);
	assert_int_equal(huge_adopt(fd, 2 * MIB, &a), 0);
	huge_free(&a);
	assert_int_equal(huge_adopt(fd, 0, &b), -EINVAL);
	assert_int_equal(b.node, 3);
	close(fd);
	close(pipes[0]);
	close(pipes[1]);
	assert_nothing_mapped();
}

static void
test_huge_dir(void **state)
{
	struct huge_config config = { false, 0, "/tmp" };
	struct huge_area area;
	char name[5000];
	FILE *f;

	(void)state;
	assert_int_equal(huge_init(&config), -EINVAL);
	config.huge_dir = "/nonexistent/hugepages";
	assert_int_equal(huge_init(&config), -ENOENT);
	memset(name, 'a', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	config.huge_dir = name;
	assert_int_equal(huge_init(&config), -ENAMETOOLONG);
	config.huge_dir = "/dev/hugepages";
	if (free_2m_pages() < 4 || huge_init(&config)) {
		print_message("skip: test_huge_dir: needs free 2 MiB pages and a hugetlbfs mounted "
			      "at /dev/hugepages\n");
		skip();
	}
	assert_int_equal(huge_alloc(3 * MIB, 0, &area), 0);
	assert_true(area.page_size >= 2 * MIB);
	assert_true(all_zero(area.addr, area.len));
	huge_free(&area);
	assert_nothing_mapped();
	f = popen("ls /dev/hugepages/spindle.* 2>/dev/null", "r");
	assert_non_null(f);
	assert_null(fgets(name, sizeof(name), f));
	pclose(f);
}

static void
test_pool_sizes(void **state)
{
	static const size_t sizes[] = { 1, 64, 255, 256, 257, 4096, 5000, 65536, MIB - 1, MIB };
	unsigned char *p[sizeof(sizes) / sizeof(sizes[0])];
	size_t i, n = sizeof(sizes) / sizeof(sizes[0]);

	(void)state;
	for (i = 0; i < n; i++) {
		p[i] = huge_pool_alloc(sizes[i], -1);
		assert_non_null(p[i]);
		assert_int_equal((uintptr_t)p[i] % 256, 0);
		assert_true(all_zero(p[i], sizes[i]));
		memset(p[i], (int)i + 1, sizes[i]);
	}
	for (i = 0; i < n; i++) {
		assert_int_equal(p[i][0], i + 1);
		assert_int_equal(memcmp(p[i], p[i] + 1, sizes[i] - 1), 0);
		huge_pool_free(p[i], sizes[i], -1);
	}
	huge_pool_free(NULL, 64, -1);
	assert_null(huge_pool_alloc(0, -1));
	assert_null(huge_pool_alloc(MIB + 1, -1));
	assert_null(huge_pool_alloc(SIZE_MAX, -1));
	assert_null(huge_pool_alloc(64, 1023));
	assert_nothing_mapped();
}

/* Dirty objects come back zeroed, and the last free gives the page back. */
static void
test_pool_reuse(void **state)
{
	struct huge_stats stats;
	void *keep, *p, *q;

	(void)state;
	keep = huge_pool_alloc(256, -1);
	p = huge_pool_alloc(4096, -1);
	assert_non_null(keep);
	assert_non_null(p);
	memset(p, 0xff, 4096);
	huge_pool_free(p, 4096, -1);
	q = huge_pool_alloc(4096, -1);
	assert_ptr_equal(p, q);
	assert_true(all_zero(q, 4096));
	huge_get_stats(&stats);
	assert_true(stats.huge_bytes + stats.normal_bytes > 0);
	huge_pool_free(q, 4096, -1);
	huge_pool_free(keep, 256, -1);
	assert_nothing_mapped();
}

/* A chunk holds exactly what it has room for, and buddies merge again. */
static void
test_pool_fills_and_merges(void **state)
{
	void *small[4097], *big[2];
	struct huge_config config = { true, 2 * MIB, NULL };
	size_t i;

	(void)state;
	assert_int_equal(huge_init(&config), 0);
	for (i = 0; i < 4096; i++) {
		small[i] = huge_pool_alloc(512, -1);
		assert_non_null(small[i]);
		*(size_t *)small[i] = i;
	}
	assert_null(huge_pool_alloc(1, -1));
	for (i = 0; i < 4096; i++)
		assert_int_equal(*(size_t *)small[i], i);
	for (i = 1; i < 4096; i += 2)
		huge_pool_free(small[i], 512, -1);
	assert_null(huge_pool_alloc(513, -1));
	small[1] = huge_pool_alloc(512, -1);
	assert_non_null(small[1]);
	huge_pool_free(small[1], 512, -1);
	for (i = 2; i < 4096; i += 2)
		huge_pool_free(small[i], 512, -1);
	big[0] = huge_pool_alloc(MIB, -1);
	assert_non_null(big[0]);
	assert_null(huge_pool_alloc(MIB, -1));
	huge_pool_free(small[0], 512, -1);
	big[1] = huge_pool_alloc(MIB, -1);
	assert_non_null(big[1]);
	huge_pool_free(big[0], MIB, -1);
	huge_pool_free(big[1], MIB, -1);
	assert_nothing_mapped();
}

/* Random sizes against a shadow list: no two objects overlap, nothing is lost. */
static void
test_pool_random(void **state)
{
	struct { unsigned char *p; size_t size; unsigned char tag; } slot[200] = { 0 };
	unsigned seed = 1;
	size_t i, round;

	(void)state;
	for (round = 0; round < 20000; round++) {
		i = (size_t)rand_r(&seed) % 200;
		if (slot[i].p) {
			assert_int_equal(slot[i].p[0], slot[i].tag);
			assert_int_equal(slot[i].p[slot[i].size - 1], slot[i].tag);
			huge_pool_free(slot[i].p, slot[i].size, 0);
			slot[i].p = NULL;
			continue;
		}
		slot[i].size = (size_t)rand_r(&seed) % (round % 50 ? 3000 : 200000) + 1;
		slot[i].tag = (unsigned char)(rand_r(&seed) | 1);
		slot[i].p = huge_pool_alloc(slot[i].size, 0);
		assert_non_null(slot[i].p);
		assert_int_equal(slot[i].p[0], 0);
		assert_int_equal(slot[i].p[slot[i].size - 1], 0);
		memset(slot[i].p, slot[i].tag, slot[i].size);
	}
	for (i = 0; i < 200; i++)
		huge_pool_free(slot[i].p, slot[i].size, 0);
	assert_nothing_mapped();
}

static void *
pool_worker(void *arg)
{
	void *p[32];
	size_t i, round, *failed = arg;

	for (round = 0; round < 200; round++) {
		for (i = 0; i < 32; i++) {
			p[i] = huge_pool_alloc(64 << (i % 8), -1);
			if (!p[i] || *(size_t *)p[i])
				(*failed)++;
			else
				*(size_t *)p[i] = i + 1;
		}
		for (i = 0; i < 32; i++) {
			if (p[i] && *(size_t *)p[i] != i + 1)
				(*failed)++;
			huge_pool_free(p[i], (size_t)64 << (i % 8), -1);
		}
	}
	return NULL;
}

static void
test_pool_threads(void **state)
{
	pthread_t thread[4];
	size_t failed[4] = { 0 };
	int i;

	(void)state;
	for (i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, pool_worker, &failed[i]), 0);
	for (i = 0; i < 4; i++) {
		pthread_join(thread[i], NULL);
		assert_int_equal(failed[i], 0);
	}
	assert_nothing_mapped();
}

static void
test_where_memory_is(void **state)
{
	static const int same[] = { 1, 1, 1 }, mixed[] = { 1, 1, 0 };
	size_t len = MIB;
	unsigned char there[1];
	char *p;

	(void)state;
	assert_int_equal(huge_common_node(same, 3), 1);
	assert_int_equal(huge_common_node(same, 1), 1);
	assert_int_equal(huge_common_node(same, 0), -1);
	assert_int_equal(huge_common_node(mixed, 3), -1);
	assert_int_equal(huge_common_node(mixed, 2), 1);
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	madvise(p, len, MADV_NOHUGEPAGE);
	/* To ask is not to touch. */
	assert_int_equal(huge_node_of_memory(p + 100), -1);
	assert_int_equal(mincore(p, 4096, there), 0);
	assert_int_equal(there[0] & 1, 0);
	p[100] = 1;
	assert_true(huge_node_of_memory(p + 100) >= -1);
	munmap(p, len);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_alloc_and_free, reset_config),
		cmocka_unit_test_teardown(test_uses_huge_pages, reset_config),
		cmocka_unit_test_teardown(test_no_huge, reset_config),
		cmocka_unit_test_teardown(test_falls_back, reset_config),
		cmocka_unit_test_teardown(test_refuses_the_impossible, reset_config),
		cmocka_unit_test_teardown(test_limit, reset_config),
		cmocka_unit_test_teardown(test_nodes, reset_config),
		cmocka_unit_test_teardown(test_shared, reset_config),
		cmocka_unit_test_teardown(test_shared_refusals, reset_config),
		cmocka_unit_test_teardown(test_huge_dir, reset_config),
		cmocka_unit_test(test_where_memory_is),
		cmocka_unit_test_teardown(test_pool_sizes, reset_config),
		cmocka_unit_test_teardown(test_pool_reuse, reset_config),
		cmocka_unit_test_teardown(test_pool_fills_and_merges, reset_config),
		cmocka_unit_test_teardown(test_pool_random, reset_config),
		cmocka_unit_test_teardown(test_pool_threads, reset_config),
	};

	return harness_main("hugepages", tests, ARRAY_SIZE(tests), NULL, NULL);
}
