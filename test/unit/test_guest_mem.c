/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Guest memory: what may be mapped and what not, translation at every border,
 * tables that share regions, and survival when the front end takes the memory
 * away. Mappings are counted in /proc/self/maps by the name of their memfd.
 */
#include "harness.h"

#include "vhost/guest_mem.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAGE 4096ull
#define NAME "spindle-guest-mem-test"

static unsigned int lost_calls;

static void lost(void)
{
	control_assert();
	lost_calls++;
	harness_wake();
}

static int setup(void **state)
{
	harness_setup(state);
	return guest_mem_init(lost);
}

static int teardown(void **state)
{
	guest_mem_fini();
	return harness_teardown(state);
}

static int memory_fd(uint64_t size)
{
	int fd = memfd_create(NAME, MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	return fd;
}

static unsigned int mappings(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned int n = 0;
	char line[512];

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, NAME) != NULL;
	fclose(f);
	return n;
}

/* Unmapping is a worker's job: it takes a moment. */
static bool nothing_mapped(void *arg)
{
	(void)arg;
	return mappings() == 0;
}

static struct mem_region *map(uint64_t gpa, uint64_t size, uint64_t uva, uint64_t offset, int fd)
{
	struct mem_region *region = NULL;

	assert_int_equal(mem_region_map(gpa, size, uva, offset, fd, &region), 0);
	assert_non_null(region);
	return region;
}

static struct guest_mem *table(struct mem_region *const *regions, unsigned int count)
{
	struct guest_mem *mem = NULL;

	assert_int_equal(guest_mem_create(regions, count, &mem), 0);
	assert_int_equal(mem->count, count);
	return mem;
}

/* ------- mapping ------- */

static void test_map_refused(void **state)
{
	struct mem_region *const untouched = (void *)&lost_calls;
	struct mem_region *region = untouched;
	int fd = memory_fd(16 * PAGE), ro = -1, ends[2];
	char path[32];

	(void)state;
#define REFUSED(gpa, size, uva, offset, fd, rc)                                              \
	do {                                                                                 \
		assert_int_equal(mem_region_map(gpa, size, uva, offset, fd, &region), rc);   \
		assert_ptr_equal(region, untouched);                                         \
	} while (0)
	REFUSED(0, 0, 0, 0, fd, -EINVAL);
	/* Beyond the end of the file, by one and by far. */
	REFUSED(0, 16 * PAGE + 1, 0, 0, fd, -EINVAL);
	REFUSED(0, PAGE, 0, 15 * PAGE + 1, fd, -EINVAL);
	REFUSED(0, PAGE, 0, 1ull << 40, fd, -EINVAL);
	REFUSED(0, 1ull << 62, 0, 0, fd, -EINVAL);
	/* Wrapping in each of the three address spaces. */
	REFUSED(UINT64_MAX - PAGE + 2, PAGE, 0, 0, fd, -EINVAL);
	REFUSED(0, PAGE, UINT64_MAX - PAGE + 2, 0, fd, -EINVAL);
	REFUSED(0, PAGE, 0, UINT64_MAX - PAGE + 2, fd, -EINVAL);
	REFUSED(0, UINT64_MAX, 0, 0, fd, -EINVAL);
	REFUSED(0, PAGE, 0, (uint64_t)INT64_MAX - 10, fd, -EINVAL);
	REFUSED(0, PAGE, 0, 0, -1, -EBADF);
	/* What is no memory at all. */
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	REFUSED(0, PAGE, 0, 0, ends[0], -EINVAL);
	close(ends[0]);
	close(ends[1]);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	REFUSED(0, PAGE, 0, 0, ro, -EACCES);
	close(ro);
	close(fd);
	assert_int_equal(mappings(), 0);
	mem_region_free(NULL);
}

/* Any offset and size: the bytes seen are those of the file at that offset. */
static void test_alignment(void **state)
{
	static const struct {
		uint64_t offset, size;
	} cases[] = {
		{ 0, PAGE }, { 0, 1 }, { 1, 1 }, { PAGE - 1, 2 }, { 4095, 3 * PAGE + 2 },
		{ 512, 15 * PAGE }, { 15 * PAGE, PAGE }, { 16 * PAGE - 1, 1 }, { 3, 7 },
	};
	int fd = memory_fd(16 * PAGE);
	uint8_t *all = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	(void)state;
	assert_ptr_not_equal(all, MAP_FAILED);
	harness_fill(all, 16 * PAGE, 5);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct mem_region *region = map(0x1001, cases[i].size, 0, cases[i].offset, fd);
		struct guest_mem *mem = table(&region, 1);
		const struct mem_span *hint = mem->spans;
		uint64_t n = 0;
		uint8_t *p = guest_mem_translate(mem, &hint, 0x1001, UINT64_MAX, &n);

		assert_non_null(p);
		assert_true(n == cases[i].size);
		assert_memory_equal(p, all + cases[i].offset, n);
		/* Shared, not a copy. */
		p[n - 1] ^= 0xff;
		assert_int_equal(p[n - 1], all[cases[i].offset + n - 1]);
		guest_mem_put(mem);
	}
	munmap(all, 16 * PAGE);
	close(fd);
	harness_wait_until(nothing_mapped, NULL);
}

static void test_hugetlb(void **state)
{
	const uint64_t huge = 2ull << 20;
	struct mem_region *region;
	struct guest_mem *mem;
	const struct mem_span *hint;
	uint64_t n = 0;
	uint8_t *p;
	int fd = memfd_create(NAME, MFD_CLOEXEC | MFD_HUGETLB | (21u << MAP_HUGE_SHIFT));
	void *probe;

	(void)state;
	if (fd < 0 || ftruncate(fd, (off_t)(2 * huge)) < 0)
		harness_skip("no hugetlb memfd: %s", strerror(errno));
	/* Reserving is what tells whether there are pages; ours does not reserve. */
	probe = mmap(NULL, 2 * huge, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (probe == MAP_FAILED) {
		close(fd);
		harness_skip("no two free 2 MiB pages");
	}
	memset(probe, 0x11, 2 * huge);
	/* A piece in the middle, across both pages, at offsets no huge page has. */
	region = map(0x100000, huge, 0, huge / 2 + 512, fd);
	mem = table(&region, 1);
	hint = mem->spans;
	p = guest_mem_translate(mem, &hint, 0x100000, huge, &n);
	assert_non_null(p);
	assert_true(n == huge);
	memset(p, 0x22, huge);
	assert_int_equal(((uint8_t *)probe)[huge / 2 + 511], 0x11);
	assert_int_equal(((uint8_t *)probe)[huge / 2 + 512], 0x22);
	assert_int_equal(((uint8_t *)probe)[huge / 2 + 512 + huge - 1], 0x22);
	assert_int_equal(((uint8_t *)probe)[huge / 2 + 512 + huge], 0x11);
	munmap(probe, 2 * huge);
	close(fd);
	guest_mem_put(mem);
	harness_wait_until(nothing_mapped, NULL);
}

/* ------- translation ------- */

static void check_at(const struct guest_mem *mem, uint64_t gpa, uint64_t len, const uint8_t *hva,
		     uint64_t contiguous)
{
	for (unsigned int i = 0; i < mem->count; i++) {
		/* Whatever span the last request was in. */
		const struct mem_span *hint = &mem->spans[i];
		uint64_t n = 12345;
		uint8_t *p = guest_mem_translate(mem, &hint, gpa, len, &n);

		assert_ptr_equal(p, hva);
		if (p)
			assert_true(n == contiguous);
		else
			assert_ptr_equal(hint, &mem->spans[i]);
	}
}

static void test_translate(void **state)
{
	int fd = memory_fd(16 * PAGE);
	/* Given in no order; b ends where c begins; a hole before and after a. */
	struct mem_region *c = map(0x5000, 2 * PAGE, 0x90000, 4 * PAGE, fd);
	struct mem_region *a = map(0x1000, PAGE, 0x70000, 0, fd);
	struct mem_region *top = map(UINT64_MAX - PAGE, PAGE, 0x100000, 8 * PAGE, fd);
	struct mem_region *b = map(0x4000, PAGE, 0x50000, 2 * PAGE, fd);
	struct mem_region *regions[] = { c, a, top, b };
	struct guest_mem *mem = table(regions, 4);

	(void)state;
	check_at(mem, 0x0, 1, NULL, 0);
	check_at(mem, 0xfff, 1, NULL, 0);
	check_at(mem, 0x1000, 1, a->hva, 1);
	check_at(mem, 0x1000, PAGE, a->hva, PAGE);
	check_at(mem, 0x1000, PAGE + 1, a->hva, PAGE);
	check_at(mem, 0x1fff, 100, a->hva + 0xfff, 1);
	check_at(mem, 0x2000, 1, NULL, 0);
	check_at(mem, 0x3fff, 1, NULL, 0);
	check_at(mem, 0x4800, PAGE, b->hva + 0x800, 0x800);
	check_at(mem, 0x4fff, 2, b->hva + 0xfff, 1);
	check_at(mem, 0x5000, UINT64_MAX, c->hva, 2 * PAGE);
	check_at(mem, 0x6fff, 1, c->hva + 0x1fff, 1);
	check_at(mem, 0x7000, 1, NULL, 0);
	check_at(mem, UINT64_MAX - PAGE - 1, 1, NULL, 0);
	check_at(mem, UINT64_MAX - PAGE, PAGE, top->hva, PAGE);
	check_at(mem, UINT64_MAX - 1, 100, top->hva + PAGE - 1, 1);
	check_at(mem, UINT64_MAX, 1, NULL, 0);
	/* The front end's own addresses: all in one region or not at all. */
	assert_ptr_equal(guest_mem_from_uva(mem, 0x90000, 2 * PAGE), c->hva);
	assert_ptr_equal(guest_mem_from_uva(mem, 0x90010, 2 * PAGE - 16), c->hva + 16);
	assert_null(guest_mem_from_uva(mem, 0x90010, 2 * PAGE));
	assert_null(guest_mem_from_uva(mem, 0x8ffff, 1));
	assert_null(guest_mem_from_uva(mem, 0x92000, 1));
	assert_null(guest_mem_from_uva(mem, 0x90010, UINT64_MAX));
	assert_null(guest_mem_from_uva(mem, UINT64_MAX, 2));
	assert_null(guest_mem_from_uva(NULL, 0x90000, 1));
	guest_mem_put(mem);
	close(fd);
	harness_wait_until(nothing_mapped, NULL);
}

static void test_many_regions(void **state)
{
	struct mem_region *regions[GUEST_MEM_REGIONS_MAX], *extra;
	struct guest_mem *mem, *more = NULL;
	int fd = memory_fd(PAGE);

	(void)state;
	for (unsigned int i = 0; i < GUEST_MEM_REGIONS_MAX; i++)
		regions[i] = map((GUEST_MEM_REGIONS_MAX - i) * 2 * PAGE, PAGE, i * PAGE, 0, fd);
	extra = map(0, PAGE, UINT64_MAX - 2 * PAGE, 0, fd);
	mem = table(regions, GUEST_MEM_REGIONS_MAX);
	assert_int_equal(guest_mem_add(mem, extra, &more), -EINVAL);
	assert_null(more);
	mem_region_free(extra);
	for (unsigned int i = 0; i < GUEST_MEM_REGIONS_MAX; i++) {
		check_at(mem, regions[i]->gpa + PAGE - 1, 2, regions[i]->hva + PAGE - 1, 1);
		assert_null(guest_mem_find(mem, regions[i]->gpa + PAGE));
		assert_null(guest_mem_find(mem, regions[i]->gpa - 1));
	}
	guest_mem_put(mem);
	close(fd);
	harness_wait_until(nothing_mapped, NULL);
}

/* ------- tables ------- */

static void test_overlap(void **state)
{
	static const struct {
		uint64_t gpa, uva;
		int rc;
	} cases[] = {
		{ 0x10000, 0x20000, -EINVAL },		/* the same place */
		{ 0x10000 + PAGE, 0x50000, -EINVAL },	/* the end */
		{ 0x10000 - PAGE, 0x50000, -EINVAL },	/* the beginning */
		{ 0x50000, 0x20000 + 2 * PAGE - 1, -EINVAL },	/* front-end addresses, one byte */
		{ 0x10000 + 2 * PAGE, 0x20000 + 2 * PAGE, 0 },	/* side by side */
		{ 0x10000 - 2 * PAGE, 0x20000 - 2 * PAGE, 0 },
	};
	int fd = memory_fd(4 * PAGE);

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct mem_region *regions[] = {
			map(0x10000, 2 * PAGE, 0x20000, 0, fd),
			map(cases[i].gpa, 2 * PAGE, cases[i].uva, 2 * PAGE, fd),
		};
		struct guest_mem *mem = NULL;

		assert_int_equal(guest_mem_create(regions, 2, &mem), cases[i].rc);
		if (mem) {
			guest_mem_put(mem);
			continue;
		}
		/* Still the caller's. */
		mem_region_free(regions[0]);
		mem_region_free(regions[1]);
	}
	close(fd);
	harness_wait_until(nothing_mapped, NULL);
}

static void test_create_refused(void **state)
{
	struct mem_region *regions[GUEST_MEM_REGIONS_MAX + 1] = { NULL };
	struct guest_mem *mem = NULL;

	(void)state;
	assert_int_equal(guest_mem_create(regions, 0, &mem), -EINVAL);
	assert_int_equal(guest_mem_create(regions, GUEST_MEM_REGIONS_MAX + 1, &mem), -EINVAL);
	assert_int_equal(guest_mem_remove(NULL, 0, 0, 0, &mem), -ENOENT);
	assert_null(mem);
	guest_mem_put(NULL);
	assert_false(guest_mem_lost(NULL));
}

/* Old and new table live side by side; a region goes with its last table. */
static void test_snapshots(void **state)
{
	int fd = memory_fd(4 * PAGE);
	struct mem_region *a = map(0x1000, PAGE, 0x1000, 0, fd);
	struct mem_region *b = map(0x2000, PAGE, 0x2000, PAGE, fd);
	struct guest_mem *one = NULL, *two = NULL, *only_b = NULL, *none = (void *)&lost_calls;

	(void)state;
	assert_int_equal(guest_mem_add(NULL, a, &one), 0);
	assert_int_equal(guest_mem_add(one, b, &two), 0);
	assert_int_equal(a->refs, 2);
	assert_int_equal(b->refs, 1);
	/* The old one is what it was. */
	check_at(one, 0x2000, 1, NULL, 0);
	check_at(two, 0x1fff, 2, a->hva + 0xfff, 1);
	check_at(two, 0x2000, 1, b->hva, 1);
	/* Removal asks for the whole place, not for a part. */
	assert_int_equal(guest_mem_remove(two, 0x1000, PAGE - 1, 0x1000, &only_b), -ENOENT);
	assert_int_equal(guest_mem_remove(two, 0x1000, PAGE, 0x1001, &only_b), -ENOENT);
	assert_int_equal(guest_mem_remove(two, 0x1001, PAGE, 0x1000, &only_b), -ENOENT);
	assert_null(only_b);
	assert_int_equal(guest_mem_remove(two, 0x1000, PAGE, 0x1000, &only_b), 0);
	assert_int_equal(only_b->count, 1);
	assert_int_equal(guest_mem_remove(only_b, 0x2000, PAGE, 0x2000, &none), 0);
	assert_null(none);
	assert_ptr_equal(guest_mem_get(two), two);
	guest_mem_put(two);
	guest_mem_put(one);
	guest_mem_put(two);
	/* a is gone, b lives. */
	assert_int_equal(b->refs, 1);
	b->hva[0] = 1;
	guest_mem_put(only_b);
	close(fd);
	harness_wait_until(nothing_mapped, NULL);
}

static void test_out_of_memory(void **state)
{
	int fd = memory_fd(PAGE);
	unsigned int n;

	(void)state;
	for (n = 1; n < 10; n++) {
		struct mem_region *region = NULL;
		struct guest_mem *mem = NULL;
		int rc;

		harness_fail_alloc(n);
		rc = mem_region_map(0, PAGE, 0, 0, fd, &region);
		if (rc == 0)
			rc = guest_mem_create(&region, 1, &mem);
		harness_fail_alloc(0);
		if (rc == 0) {
			guest_mem_put(mem);
			break;
		}
		assert_int_equal(rc, -ENOMEM);
		assert_null(mem);
		mem_region_free(region);
	}
	assert_in_range(n, 3, 9);
	close(fd);
	harness_wait_until(nothing_mapped, NULL);
}

/* ------- losing memory ------- */

/* cmocka takes SIGBUS for itself at the start of each test: take it back. */
static void survive(void)
{
	guest_mem_fini();
	assert_int_equal(guest_mem_init(lost), 0);
	lost_calls = 0;
}

static bool was_lost(void *arg)
{
	(void)arg;
	return lost_calls > 0;
}

static void test_truncated(void **state)
{
	int fd = memory_fd(4 * PAGE), kept_fd = memory_fd(PAGE);
	struct mem_region *gone = map(0x1000, 3 * PAGE, 0x10000, PAGE, fd);
	struct mem_region *kept = map(0x8000, PAGE, 0x20000, 0, kept_fd);
	struct guest_mem *mem = table((struct mem_region *[]){ gone, kept }, 2);
	struct mem_region *again;
	volatile uint8_t *p = gone->hva;

	(void)state;
	survive();
	p[0] = 1;
	p[3 * PAGE - 1] = 2;
	kept->hva[0] = 3;
	assert_int_equal(ftruncate(fd, (off_t)PAGE), 0);
	/* The access that faults goes through, to zeroes. */
	assert_int_equal(p[2 * PAGE], 0);
	p[2 * PAGE] = 7;
	assert_int_equal(p[2 * PAGE], 7);
	assert_int_equal(p[0], 0);
	assert_int_equal(kept->hva[0], 3);
	harness_wait_until(was_lost, NULL);
	assert_true(guest_mem_lost(mem));
	guest_mem_put(mem);
	/* A slot that is used again does not remember. */
	again = map(0x1000, PAGE, 0x10000, 0, kept_fd);
	mem = table(&again, 1);
	assert_false(guest_mem_lost(mem));
	guest_mem_put(mem);
	close(fd);
	close(kept_fd);
	harness_wait_until(nothing_mapped, NULL);
}

static void write_there(void *arg)
{
	((volatile uint8_t *)arg)[0] = 9;
}

/* The same on a reactor, where it happens in life. */
static void test_truncated_on_reactor(void **state)
{
	int fd = memory_fd(PAGE);
	struct mem_region *region = map(0, PAGE, 0, 0, fd);
	struct guest_mem *mem = table(&region, 1);

	(void)state;
	survive();
	assert_int_equal(ftruncate(fd, 0), 0);
	harness_on_reactor(0, write_there, region->hva);
	assert_int_equal(region->hva[0], 9);
	harness_wait_until(was_lost, NULL);
	assert_true(guest_mem_lost(mem));
	guest_mem_put(mem);
	close(fd);
	harness_wait_until(nothing_mapped, NULL);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_map_refused),
		cmocka_unit_test(test_alignment),
		cmocka_unit_test(test_hugetlb),
		cmocka_unit_test(test_translate),
		cmocka_unit_test(test_many_regions),
		cmocka_unit_test(test_overlap),
		cmocka_unit_test(test_create_refused),
		cmocka_unit_test(test_snapshots),
		cmocka_unit_test(test_out_of_memory),
		cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_truncated_on_reactor),
	};

	return harness_main("guest_mem", tests, ARRAY_SIZE(tests), setup, teardown);
}
