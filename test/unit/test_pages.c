/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bits of pages: which bytes count as there, at every border, and how what is missing is
 * gathered into runs.
 */
#include "harness.h"

#include "vhost/pages.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ull
#define GPA 0x100000ull
#define OTHER (GPA + 40 * PAGE)	/* next to the first for the guest, elsewhere for us */

static struct {
	struct guest_mem *mem;
	struct mem_region *first, *second;
	struct page_fetch fetch;
} g;

static struct mem_region *map_pages(uint64_t gpa, uint64_t offset, uint64_t size)
{
	int fd = memfd_create("spindle-pages-test", MFD_CLOEXEC);
	struct mem_region *r;

	assert_int_equal(ftruncate(fd, (off_t)(offset + size)), 0);
	assert_int_equal(mem_region_map(gpa, size, gpa, offset, fd, &r), 0);
	close(fd);
	return r;
}

static int setup(void **state)
{
	struct mem_region *regions[2];

	harness_setup(state);
	memset(&g, 0, sizeof(g));
	g.first = regions[0] = map_pages(GPA, 0, 40 * PAGE);
	/* Begins inside a page of its file. */
	g.second = regions[1] = map_pages(OTHER, 2 * PAGE + 512, 100 * PAGE);
	assert_int_equal(pages_track(g.first), 0);
	assert_int_equal(pages_track(g.second), 0);
	assert_int_equal(guest_mem_create(regions, 2, &g.mem), 0);
	return 0;
}

static int teardown(void **state)
{
	guest_mem_put(g.mem);
	return harness_teardown(state);
}

/* All missing. */
static void begin(void **state)
{
	(void)state;
	atomic_store(&g.first->present[0], 0);
	atomic_store(&g.second->present[0], 0);
	atomic_store(&g.second->present[1], 0);
	page_fetch_clear(&g.fetch);
}

static bool present(uint64_t gpa, uint64_t len)
{
	page_fetch_clear(&g.fetch);
	return pages_present_gpa(g.mem, gpa, len, &g.fetch);
}

static void expect_run(unsigned int i, const struct mem_region *r, uint32_t first, uint32_t count)
{
	assert_true(i < g.fetch.count);
	assert_ptr_equal(g.fetch.runs[i].region, r);
	assert_int_equal(g.fetch.runs[i].first, first);
	assert_int_equal(g.fetch.runs[i].count, count);
}

static void test_borders(void **state)
{
	begin(state);
	pages_arrived(g.first, 3, 2);
	assert_true(present(GPA + 3 * PAGE, 2 * PAGE));
	assert_true(present(GPA + 3 * PAGE, 1));
	assert_true(present(GPA + 5 * PAGE - 1, 1));
	assert_int_equal(g.fetch.count, 0);
	assert_false(present(GPA + 3 * PAGE - 1, 1));
	expect_run(0, g.first, 2, 1);
	assert_false(present(GPA + 3 * PAGE, 2 * PAGE + 1));
	expect_run(0, g.first, 5, 1);
	assert_true(present(GPA, 0));
	/* What is no memory is not missing. */
	assert_true(present(GPA - PAGE, PAGE));
	assert_true(present(UINT64_MAX - 1, 1));
}

static void test_across_regions(void **state)
{
	begin(state);
	assert_false(present(OTHER - PAGE, PAGE + 1));
	expect_run(0, g.first, 39, 1);
	expect_run(1, g.second, 0, 1);
	assert_int_equal(g.fetch.count, 2);
	pages_arrived(g.first, 39, 1);
	pages_arrived(g.second, 0, 1);
	assert_true(present(OTHER - PAGE, PAGE + PAGE - 512));
	assert_false(present(OTHER - PAGE, PAGE + PAGE - 511));
	expect_run(0, g.second, 1, 1);
	/* Its last byte lies on page 100 of the mapping, since it begins inside one. */
	assert_false(present(OTHER + 100 * PAGE - 1, 1));
	expect_run(0, g.second, 100, 1);
}

static void test_runs(void **state)
{
	begin(state);
	/* One page asked for again and again is one run; neighbours join it, up to a limit. */
	for (int i = 0; i < 3; i++)
		pages_present_gpa(g.mem, GPA + 4 * PAGE, PAGE, &g.fetch);
	assert_int_equal(g.fetch.count, 1);
	assert_false(present(GPA, 40 * PAGE));
	assert_int_equal(g.fetch.count, 3);
	expect_run(0, g.first, 0, PAGE_RUN_MAX);
	expect_run(1, g.first, PAGE_RUN_MAX, PAGE_RUN_MAX);
	expect_run(2, g.first, 2 * PAGE_RUN_MAX, 8);
	pages_arrived(g.first, 0, PAGE_RUN_MAX - 1);
	assert_false(page_run_present(&g.fetch.runs[0]));
	pages_arrived(g.first, PAGE_RUN_MAX - 1, 1);
	assert_true(page_run_present(&g.fetch.runs[0]));
}

/* What finds no room is missing still: it is asked for in the next round. */
static void test_full(void **state)
{
	begin(state);
	for (uint32_t i = 0; i < 40; i += 2)
		pages_arrived(g.first, i, 1);
	for (uint32_t i = 0; i < 101; i += 2)
		pages_arrived(g.second, i, 1);
	assert_false(present(GPA, 140 * PAGE));
	assert_int_equal(g.fetch.count, PAGE_RUNS_MAX);
	for (unsigned int i = 0; i < g.fetch.count; i++)
		pages_arrived(g.fetch.runs[i].region, g.fetch.runs[i].first, 1);
	assert_false(present(GPA, 140 * PAGE));
	assert_int_equal(g.fetch.count, 20 + 50 - PAGE_RUNS_MAX);
}

/* The same few pages named again and again cost no more than so many looks. */
static void test_tries(void **state)
{
	const struct iovec same = { g.first->map, 40 * PAGE };
	struct iovec iov[1000];

	begin(state);
	for (unsigned int i = 0; i < ARRAY_SIZE(iov); i++)
		iov[i] = same;
	page_fetch_clear(&g.fetch);
	assert_false(pages_present_iov(g.mem, iov, ARRAY_SIZE(iov), &g.fetch));
	assert_int_equal(g.fetch.count, 3);
	assert_int_equal(g.fetch.tries, PAGE_TRIES_MAX + 1);
	/* What is there has no part in that. */
	pages_arrived(g.first, 0, 40);
	page_fetch_clear(&g.fetch);
	assert_true(pages_present_iov(g.mem, iov, ARRAY_SIZE(iov), &g.fetch));
	assert_int_equal(g.fetch.tries, 0);
}

/* A pager that its front end has got hold of may say anything. */
static void test_nonsense_arrives(void **state)
{
	begin(state);
	pages_arrived(g.first, 39, UINT32_MAX);
	pages_arrived(g.first, UINT32_MAX, UINT32_MAX);
	assert_true(present(GPA + 39 * PAGE, PAGE));
	assert_false(present(GPA + 38 * PAGE, PAGE));
}

static void test_untracked(void **state)
{
	struct mem_region *r = map_pages(GPA, 0, PAGE);
	struct guest_mem *mem;

	(void)state;
	assert_int_equal(guest_mem_create(&r, 1, &mem), 0);
	assert_true(pages_present(mem, r->hva, PAGE, &g.fetch));
	guest_mem_put(mem);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_borders),
		cmocka_unit_test(test_across_regions),
		cmocka_unit_test(test_runs),
		cmocka_unit_test(test_full),
		cmocka_unit_test(test_tries),
		cmocka_unit_test(test_nonsense_arrives),
		cmocka_unit_test(test_untracked),
	};

	return harness_main("pages", tests, ARRAY_SIZE(tests), setup, teardown);
}
