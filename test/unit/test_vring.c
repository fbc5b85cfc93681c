/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Virtqueues against a hand-made guest: indices that wrap, chains of every
 * layout, every fault a driver can make, and the two questions "kick me?" and
 * "call you?" in all their arithmetic and under two racing threads.
 *
 * Guest memory is four blocks of our own heap, so that under a sanitizer one
 * byte beside a block is an error:
 *
 *   0x10000 - 0x1ffff  A  rings, tables, data
 *   0x20000 - 0x20fff  B  next to A for the guest, elsewhere for us
 *   0x21000 - 0x21fff  C  next to B
 *   0x30000 - 0x30fff  D  alone
 */
#include "harness.h"

#include "vhost/vring.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define NEXT 1
#define WRITE 2
#define INDIRECT 4

#define A 0x10000ull
#define B 0x20000ull
#define C 0x21000ull
#define D 0x30000ull
#define DATA (A + 0x8000)
#define TABLE (A + 0xc000)
#define UVA(gpa) ((gpa) + 0x700000000000ull)
#define NUM 8

static const struct {
	uint64_t gpa, size;
} blocks[] = { { A, 0x10000 }, { B, 0x1000 }, { C, 0x1000 }, { D, 0x1000 } };

static struct {
	struct guest_mem *mem;
	struct mem_region region[ARRAY_SIZE(blocks)];
	struct vring vr;
	struct vring_params params;
	struct vring_desc_split *desc;
	uint16_t *avail, *used;		/* flags, idx, ring */
	struct vring_chain chain;
	struct iovec iov[2000];
	unsigned int grows;
} g;

static uint8_t *at(uint64_t gpa)
{
	for (size_t i = 0; i < ARRAY_SIZE(blocks); i++) {
		if (gpa - blocks[i].gpa < blocks[i].size)
			return g.region[i].hva + (gpa - blocks[i].gpa);
	}
	fail_msg("no guest memory at %llx", (unsigned long long)gpa);
	return NULL;
}

static int setup(void **state)
{
	(void)state;
	memset(&g, 0, sizeof(g));
	g.mem = calloc(1, sizeof(*g.mem) + sizeof(g.mem->spans[0]) * ARRAY_SIZE(blocks));
	g.mem->regions = calloc(ARRAY_SIZE(blocks), sizeof(struct mem_region *));
	g.mem->count = ARRAY_SIZE(blocks);
	for (size_t i = 0; i < ARRAY_SIZE(blocks); i++) {
		g.region[i].gpa = blocks[i].gpa;
		g.region[i].size = blocks[i].size;
		g.region[i].uva = UVA(blocks[i].gpa);
		g.region[i].hva = aligned_alloc(64, blocks[i].size);
		memset(g.region[i].hva, 0, blocks[i].size);
		g.mem->regions[i] = &g.region[i];
		g.mem->spans[i] = (struct mem_span){ blocks[i].gpa, blocks[i].size,
						     g.region[i].hva };
	}
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(blocks); i++)
		free(g.region[i].hva);
	free(g.mem->regions);
	free(g.mem);
	return 0;
}

static void ring_params(uint32_t num, uint16_t base, bool event_idx, bool indirect)
{
	g.params = (struct vring_params){
		.mem = g.mem, .num = num, .base = base,
		.desc_uva = UVA(A), .avail_uva = UVA(A + 0x4000), .used_uva = UVA(A + 0x5000),
		.event_idx = event_idx, .indirect = indirect,
	};
}

static void ring(uint32_t num, uint16_t base, bool event_idx)
{
	ring_params(num, base, event_idx, true);
	g.desc = (void *)at(A);
	g.avail = (void *)at(A + 0x4000);
	g.used = (void *)at(A + 0x5000);
	g.avail[1] = g.used[1] = base;
	assert_int_equal(vring_init(&g.vr, &g.params), 0);
}

static void put_desc(void *table, unsigned int i, uint64_t addr, uint32_t len, uint16_t flags,
		     uint16_t next)
{
	struct vring_desc_split d = { addr, len, flags, next };

	memcpy((uint8_t *)table + i * sizeof(d), &d, sizeof(d));
}

static void desc(unsigned int i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	put_desc(g.desc, i, addr, len, flags, next);
}

static void make_avail(uint16_t head)
{
	g.avail[2 + g.avail[1] % g.params.num] = head;
	__atomic_store_n(&g.avail[1], (uint16_t)(g.avail[1] + 1), __ATOMIC_RELEASE);
}

static enum vring_fault map(uint16_t head, unsigned int cap)
{
	g.chain.iov = g.iov;
	g.chain.cap = cap;
	return vring_map(&g.vr, head, &g.chain);
}

static void check_iov(unsigned int i, uint64_t gpa, size_t len)
{
	assert_ptr_equal(g.iov[i].iov_base, at(gpa));
	assert_int_equal(g.iov[i].iov_len, len);
}

/* ------- making a ring ------- */

static void test_init_refused(void **state)
{
	static const uint32_t bad_nums[] = { 0, 3, 7, 1025, 2048, 65536, UINT32_MAX };
	struct vring vr;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad_nums); i++) {
		ring_params(bad_nums[i], 0, false, false);
		assert_int_equal(vring_init(&vr, &g.params), -EINVAL);
	}
#define REFUSED(field, value, rc)                                       \
	do {                                                            \
		ring_params(NUM, 0, false, false);                      \
		g.params.field = (value);                               \
		assert_int_equal(vring_init(&vr, &g.params), rc);       \
	} while (0)
	REFUSED(desc_uva, UVA(A) + 8, -EINVAL);
	REFUSED(avail_uva, UVA(A) + 0x4001, -EINVAL);
	REFUSED(used_uva, UVA(A) + 0x5002, -EINVAL);
	REFUSED(desc_uva, 0, -EFAULT);
	REFUSED(desc_uva, UINT64_MAX & ~15ull, -EFAULT);
	REFUSED(avail_uva, UVA(D + 0x1000), -EFAULT);
	REFUSED(used_uva, UVA(0x2f000), -EFAULT);
	/* One byte too far, the event words behind the rings included. */
	REFUSED(desc_uva, UVA(D + 0x1000 - 16 * NUM), 0);
	REFUSED(desc_uva, UVA(D + 0x1000 - 16 * NUM + 16), -EFAULT);
	REFUSED(avail_uva, UVA(D + 0x1000 - (6 + 2 * NUM)), 0);
	REFUSED(avail_uva, UVA(D + 0x1000 - (6 + 2 * NUM) + 2), -EFAULT);
	REFUSED(used_uva, UVA(D + 0x1000 - (6 + 8 * NUM) - 2), 0);
	REFUSED(used_uva, UVA(D + 0x1000 - (6 + 8 * NUM) + 2), -EFAULT);
	/* Contiguous for the guest is not enough: B is elsewhere. */
	REFUSED(desc_uva, UVA(B - 64), -EFAULT);
}

/* The front end's address is aligned, ours is not: no atomics on that. */
static void test_init_misaligned_mapping(void **state)
{
	struct vring vr;

	(void)state;
	g.region[3].uva = UVA(D) + 1;	/* what it says of the page's first byte */
	ring_params(NUM, 0, false, false);
	g.params.used_uva = UVA(D) + 0x100;
	assert_int_equal(vring_init(&vr, &g.params), -EINVAL);
	ring_params(NUM, 0, false, false);
	g.params.avail_uva = UVA(D) + 0x100;
	assert_int_equal(vring_init(&vr, &g.params), -EINVAL);
	ring_params(NUM, 0, false, false);
	g.params.desc_uva = UVA(D) + 0x100;
	assert_int_equal(vring_init(&vr, &g.params), -EINVAL);
}

static void test_largest(void **state)
{
	uint16_t heads[VRING_SIZE_MAX];

	(void)state;
	ring(VRING_SIZE_MAX, 0, true);
	for (unsigned int i = 0; i < VRING_SIZE_MAX; i++)
		make_avail((uint16_t)(VRING_SIZE_MAX - 1 - i));
	assert_int_equal(vring_pop(&g.vr, heads, VRING_SIZE_MAX), VRING_SIZE_MAX);
	for (unsigned int i = 0; i < VRING_SIZE_MAX; i++) {
		assert_int_equal(heads[i], VRING_SIZE_MAX - 1 - i);
		vring_push(&g.vr, heads[i], i);
	}
	vring_publish(&g.vr);
	assert_int_equal(g.used[1], VRING_SIZE_MAX);
}

static void test_size_one(void **state)
{
	uint16_t head;

	(void)state;
	ring(1, 65535, false);
	for (int i = 0; i < 5; i++) {
		make_avail(0);
		assert_int_equal(vring_pop(&g.vr, &head, 1), 1);
		assert_int_equal(head, 0);
		vring_push(&g.vr, head, 1);
		vring_publish(&g.vr);
	}
	assert_int_equal(g.used[1], 4);
}

/* ------- popping ------- */

static void test_wrap(void **state)
{
	uint16_t heads[NUM], next = 0;

	(void)state;
	ring(NUM, 65530, false);
	for (unsigned int round = 0; round < 40; round++) {
		unsigned int n = 1 + round % NUM;

		assert_true(vring_empty(&g.vr));
		assert_int_equal(vring_pop(&g.vr, heads, NUM), 0);
		for (unsigned int i = 0; i < n; i++)
			make_avail((uint16_t)((next + i) % NUM));
		assert_false(vring_empty(&g.vr));
		assert_int_equal(vring_pop(&g.vr, heads, NUM), n);
		for (unsigned int i = 0; i < n; i++) {
			uint16_t slot = g.vr.used_idx % NUM;
			const uint32_t *elem = (const void *)&g.used[2 + slot * 4];

			assert_int_equal(heads[i], (next + i) % NUM);
			vring_push(&g.vr, heads[i], 1000 + i);
			assert_int_equal(elem[0], heads[i]);
			assert_int_equal(elem[1], 1000 + i);
		}
		/* Not seen before it is published. */
		assert_int_equal(g.used[1], (uint16_t)(g.avail[1] - n));
		vring_publish(&g.vr);
		assert_int_equal(g.used[1], g.avail[1]);
		next = (uint16_t)(next + n);
	}
	assert_true(g.avail[1] < 1000);	/* it has wrapped */
}

static void test_batches(void **state)
{
	uint16_t heads[NUM];

	(void)state;
	ring(NUM, 0, false);
	for (uint16_t i = 0; i < NUM; i++)
		make_avail(i);
	assert_int_equal(vring_pop(&g.vr, heads, 3), 3);
	assert_int_equal(heads[2], 2);
	assert_int_equal(vring_pop(&g.vr, heads, 3), 3);
	assert_int_equal(heads[0], 3);
	assert_int_equal(vring_pop(&g.vr, heads, 3), 2);
	assert_int_equal(heads[1], 7);
	assert_int_equal(vring_pop(&g.vr, heads, 3), 0);
}

static void test_avail_jump(void **state)
{
	uint16_t heads[NUM];

	(void)state;
	ring(NUM, 65533, false);
	/* A full ring is no jump, one more is; backwards is a jump as well. */
	g.avail[1] = (uint16_t)(65533 + NUM);
	assert_int_equal(vring_pop(&g.vr, heads, NUM), NUM);
	g.avail[1] = (uint16_t)(g.vr.last_avail + NUM + 1);
	assert_int_equal(vring_pop(&g.vr, heads, NUM), -VRING_AVAIL_JUMP);
	g.avail[1] = (uint16_t)(g.vr.last_avail - 1);
	assert_int_equal(vring_pop(&g.vr, heads, NUM), -VRING_AVAIL_JUMP);
	g.avail[1] = (uint16_t)(g.vr.last_avail + 32768);
	assert_int_equal(vring_pop(&g.vr, heads, NUM), -VRING_AVAIL_JUMP);
}

static void test_head_range(void **state)
{
	uint16_t heads[NUM];

	(void)state;
	ring(NUM, 0, false);
	make_avail(5);
	make_avail(NUM);
	make_avail(6);
	/* Those before the bad one first. */
	assert_int_equal(vring_pop(&g.vr, heads, NUM), 1);
	assert_int_equal(heads[0], 5);
	assert_int_equal(vring_pop(&g.vr, heads, NUM), -VRING_HEAD_RANGE);
	assert_int_equal(vring_pop(&g.vr, heads, NUM), -VRING_HEAD_RANGE);
	g.avail[2 + 1] = 65535;
	assert_int_equal(vring_pop(&g.vr, heads, NUM), -VRING_HEAD_RANGE);
}

/* ------- mapping: what is allowed ------- */

static void test_map_layouts(void **state)
{
	(void)state;
	ring(NUM, 0, false);
	desc(3, DATA, 16, NEXT, 7);
	desc(7, DATA + 100, 512, NEXT | WRITE, 0);
	desc(0, DATA + 1000, 1, WRITE, 99);	/* next without NEXT means nothing */
	assert_int_equal(map(3, 8), VRING_OK);
	assert_int_equal(g.chain.out, 1);
	assert_int_equal(g.chain.in, 2);
	assert_true(g.chain.out_bytes == 16 && g.chain.in_bytes == 513);
	check_iov(0, DATA, 16);
	check_iov(1, DATA + 100, 512);
	check_iov(2, DATA + 1000, 1);
	/* Only readable, only writable. */
	desc(1, DATA, 5, 0, 0);
	assert_int_equal(map(1, 8), VRING_OK);
	assert_true(g.chain.out == 1 && g.chain.in == 0 && g.chain.in_bytes == 0);
	assert_int_equal(map(0, 8), VRING_OK);
	assert_true(g.chain.out == 0 && g.chain.in == 1 && g.chain.out_bytes == 0);
	/* The whole ring in one chain. */
	for (uint16_t i = 0; i < NUM; i++)
		desc(i, DATA + i, 1, i < NUM - 1 ? NEXT : 0, (uint16_t)(i + 1));
	assert_int_equal(map(0, 8), VRING_OK);
	assert_int_equal(g.chain.out, NUM);
	/* Unknown flag bits are ignored. */
	desc(1, DATA, 5, 0x8000 | WRITE, 0);
	assert_int_equal(map(1, 8), VRING_OK);
	assert_int_equal(g.chain.in, 1);
}

static void test_map_crossing(void **state)
{
	(void)state;
	ring(NUM, 0, false);
	/* From A through B into C: three pieces, one descriptor. */
	desc(0, B - 100, 100 + 0x1000 + 50, NEXT, 1);
	desc(1, C + 0x1000 - 1, 1, NEXT | WRITE, 2);
	desc(2, C - 1, 2, WRITE, 0);
	assert_int_equal(map(0, 8), VRING_OK);
	assert_int_equal(g.chain.out, 3);
	assert_int_equal(g.chain.in, 3);
	assert_true(g.chain.out_bytes == 0x1000 + 150 && g.chain.in_bytes == 3);
	check_iov(0, B - 100, 100);
	check_iov(1, B, 0x1000);
	check_iov(2, C, 50);
	check_iov(3, C + 0xfff, 1);
	check_iov(4, B + 0xfff, 1);
	check_iov(5, C, 1);
}

static void fill_table(void *table, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++)
		put_desc(table, i, DATA + i, 1, i < count - 1 ? NEXT : 0, (uint16_t)(i + 1));
}

static void test_indirect(void **state)
{
	(void)state;
	ring(NUM, 0, false);
	/* A table may be larger than the ring. */
	fill_table(at(TABLE), 20);
	desc(2, TABLE, 20 * 16, INDIRECT, 77);
	assert_int_equal(map(2, 20), VRING_OK);
	assert_int_equal(g.chain.out, 20);
	check_iov(19, DATA + 19, 1);
	/* WRITE on the descriptor of the table itself means nothing. */
	desc(2, TABLE, 20 * 16, INDIRECT | WRITE, 0);
	assert_int_equal(map(2, 20), VRING_OK);
	assert_int_equal(g.chain.out, 20);
	/* At the end of a chain: its buffers are appended. */
	desc(0, DATA + 500, 16, NEXT, 2);
	assert_int_equal(map(0, 21), VRING_OK);
	assert_int_equal(g.chain.out, 21);
	check_iov(0, DATA + 500, 16);
	check_iov(1, DATA, 1);
	/* A chain inside that skips entries. */
	put_desc(at(TABLE), 0, DATA, 1, NEXT, 19);
	assert_int_equal(map(2, 20), VRING_OK);
	assert_int_equal(g.chain.out, 2);
}

/* Tables that cannot be read where they are: in two regions, or askew. */
static void test_indirect_gathered(void **state)
{
	static const uint64_t places[] = { B - 16 * 3, B - 8, C - 1, TABLE + 1, TABLE + 15 };

	(void)state;
	ring(NUM, 0, false);
	for (size_t p = 0; p < ARRAY_SIZE(places); p++) {
		struct vring_desc_split table[6];
		const uint8_t *from = (const uint8_t *)table;

		fill_table(table, 6);
		for (unsigned int i = 0; i < sizeof(table); i++)
			*at(places[p] + i) = from[i];
		desc(0, places[p], sizeof(table), INDIRECT, 0);
		assert_int_equal(map(0, 8), VRING_OK);
		assert_int_equal(g.chain.out, 6);
		for (unsigned int i = 0; i < 6; i++)
			check_iov(i, DATA + i, 1);
	}
}

/* Aligned for the guest, not for us: a region that starts askew in its page. */
static void test_indirect_misaligned_mapping(void **state)
{
	(void)state;
	ring(NUM, 0, false);
	g.mem->spans[3].hva += 4;
	g.mem->spans[3].size -= 4;
	fill_table(g.mem->spans[3].hva, 6);
	desc(0, D, 6 * 16, INDIRECT, 0);
	assert_int_equal(map(0, 8), VRING_OK);
	assert_int_equal(g.chain.out, 6);
	check_iov(5, DATA + 5, 1);
}

static struct iovec more[VRING_CHAIN_MAX + 8];

static bool grow_once(struct vring_chain *chain, unsigned int used)
{
	g.grows++;
	if (chain->iov == more)
		return false;
	memcpy(more, chain->iov, used * sizeof(more[0]));
	chain->iov = more;
	chain->cap = ARRAY_SIZE(more);
	return true;
}

static bool grow_never(struct vring_chain *chain, unsigned int used)
{
	(void)chain;
	(void)used;
	g.grows++;
	return false;
}

static void test_grow(void **state)
{
	(void)state;
	ring(NUM, 0, false);
	fill_table(at(A), 1);
	for (unsigned int i = 0; i < 1026; i++)
		put_desc(at(DATA), i, TABLE + i, 1, i < 1025 ? NEXT : WRITE, (uint16_t)(i + 1));
	desc(0, DATA, 1026 * 16, INDIRECT, 0);
	/* Without help: no memory for it. */
	assert_int_equal(map(0, 8), VRING_NO_MEMORY);
	g.chain.grow = grow_never;
	assert_int_equal(map(0, 8), VRING_NO_MEMORY);
	assert_int_equal(g.grows, 1);
	g.chain.grow = grow_once;
	assert_int_equal(map(0, 8), VRING_OK);
	assert_int_equal(g.grows, 2);
	assert_int_equal(g.chain.out, 1025);
	assert_int_equal(g.chain.in, 1);
	for (unsigned int i = 0; i < 1026; i++)
		assert_ptr_equal(more[i].iov_base, at(TABLE + i));
	/* Just enough room asks for none. */
	assert_int_equal(map(0, 1026), VRING_OK);
	assert_int_equal(g.grows, 2);
}

/* Longer than we take, by descriptors and by pieces. */
static void test_too_long(void **state)
{
	(void)state;
	ring(NUM, 0, false);
	g.chain.grow = grow_once;
	desc(0, A, (VRING_CHAIN_MAX + 1) * 16, INDIRECT, 0);
	assert_int_equal(map(0, 8), VRING_LOOP);
	/* The longest table, each entry in two pieces: more than there is room for. */
	ring_params(NUM, 0, false, true);
	g.params.desc_uva = UVA(D);
	g.params.avail_uva = UVA(D + 0x400);
	g.params.used_uva = UVA(D + 0x800);
	assert_int_equal(vring_init(&g.vr, &g.params), 0);
	for (unsigned int i = 0; i < VRING_CHAIN_MAX; i++)
		put_desc(at(A), i, B - 1, 2, i < VRING_CHAIN_MAX - 1 ? NEXT : 0,
			 (uint16_t)(i + 1));
	put_desc(at(D), 0, A, VRING_CHAIN_MAX * 16, INDIRECT, 0);
	assert_int_equal(map(0, 8), VRING_LOOP);
	for (unsigned int i = 0; i < VRING_CHAIN_MAX; i++)
		put_desc(at(A), i, B, 2, i < VRING_CHAIN_MAX - 1 ? NEXT : 0, (uint16_t)(i + 1));
	assert_int_equal(map(0, 8), VRING_OK);
	assert_int_equal(g.chain.out, VRING_CHAIN_MAX);
}

/* Sums beyond 32 bits. Nothing is touched, so the region need not exist. */
static void test_large_sums(void **state)
{
	const uint64_t size = 5ull << 30;
	void *space = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	(void)state;
	assert_ptr_not_equal(space, MAP_FAILED);
	ring(NUM, 0, false);
	g.mem->spans[3] = (struct mem_span){ D, size, space };
	desc(0, D, UINT32_MAX, NEXT, 1);
	desc(1, D + 1, UINT32_MAX, NEXT, 2);
	desc(2, D, UINT32_MAX, NEXT | WRITE, 3);
	desc(3, D + (1ull << 30), UINT32_MAX, WRITE, 0);
	assert_int_equal(map(0, 8), VRING_OK);
	assert_true(g.chain.out_bytes == 2ull * UINT32_MAX);
	assert_true(g.chain.in_bytes == 2ull * UINT32_MAX);
	munmap(space, size);
}

/* ------- mapping: every fault ------- */

struct fault_case {
	const char *name;
	struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags, next;
	} d[3], t[3];	/* ring's descriptors 0..2; the table's, at TABLE */
	enum vring_fault fault;
	bool no_indirect;
};

static const struct fault_case fault_cases[] = {
	{ "next is num", { { DATA, 1, NEXT, NUM } }, {}, VRING_NEXT_RANGE, false },
	{ "next is 65535", { { DATA, 1, NEXT, 65535 } }, {}, VRING_NEXT_RANGE, false },
	{ "loop of one", { { DATA, 1, NEXT, 0 } }, {}, VRING_LOOP, false },
	{ "loop of two", { { DATA, 1, NEXT, 1 }, { DATA, 1, NEXT, 0 } }, {}, VRING_LOOP, false },
	{ "loop of writables", { { DATA, 1, NEXT | WRITE, 0 } }, {}, VRING_LOOP, false },
	{ "not negotiated", { { TABLE, 16, INDIRECT, 0 } }, { { DATA, 1, 0, 0 } }, VRING_INDIRECT,
	  true },
	{ "indirect and next", { { TABLE, 16, INDIRECT | NEXT, 1 }, { DATA, 1, 0, 0 } },
	  { { DATA, 1, 0, 0 } }, VRING_INDIRECT, false },
	{ "empty table", { { TABLE, 0, INDIRECT, 0 } }, {}, VRING_INDIRECT, false },
	{ "odd table", { { TABLE, 17, INDIRECT, 0 } }, { { DATA, 1, 0, 0 } }, VRING_INDIRECT,
	  false },
	{ "short table", { { TABLE, 15, INDIRECT, 0 } }, { { DATA, 1, 0, 0 } }, VRING_INDIRECT,
	  false },
	{ "huge table", { { TABLE, UINT32_MAX - 15, INDIRECT, 0 } }, { { DATA, 1, 0, 0 } },
	  VRING_LOOP, false },
	{ "nested", { { TABLE, 32, INDIRECT, 0 } }, { { TABLE, 16, INDIRECT, 0 } },
	  VRING_INDIRECT, false },
	{ "nested later", { { TABLE, 32, INDIRECT, 0 } },
	  { { DATA, 1, NEXT, 1 }, { TABLE, 16, INDIRECT, 0 } }, VRING_INDIRECT, false },
	{ "table nowhere", { { 0x40000, 16, INDIRECT, 0 } }, {}, VRING_ADDRESS, false },
	{ "table runs out", { { C + 0x1000 - 16, 32, INDIRECT, 0 } }, {}, VRING_ADDRESS, false },
	{ "table wraps", { { UINT64_MAX - 15, 32, INDIRECT, 0 } }, {}, VRING_ADDRESS, false },
	{ "next beyond table", { { TABLE, 32, INDIRECT, 0 } }, { { DATA, 1, NEXT, 2 } },
	  VRING_NEXT_RANGE, false },
	{ "loop in table", { { TABLE, 32, INDIRECT, 0 } },
	  { { DATA, 1, NEXT, 1 }, { DATA, 1, NEXT, 0 } }, VRING_LOOP, false },
	{ "zero length", { { DATA, 0, 0, 0 } }, {}, VRING_ZERO_LENGTH, false },
	{ "zero length later", { { DATA, 1, NEXT, 1 }, { DATA, 0, WRITE, 0 } }, {},
	  VRING_ZERO_LENGTH, false },
	{ "zero length in table", { { TABLE, 16, INDIRECT, 0 } }, { { DATA, 0, 0, 0 } },
	  VRING_ZERO_LENGTH, false },
	{ "address 0", { { 0, 1, 0, 0 } }, {}, VRING_ADDRESS, false },
	{ "before memory", { { A - 1, 1, 0, 0 } }, {}, VRING_ADDRESS, false },
	{ "into memory", { { A - 1, 2, 0, 0 } }, {}, VRING_ADDRESS, false },
	{ "behind memory", { { D + 0x1000, 1, 0, 0 } }, {}, VRING_ADDRESS, false },
	{ "out of memory", { { D + 0xfff, 2, WRITE, 0 } }, {}, VRING_ADDRESS, false },
	{ "over a hole", { { C, D - C + 1, WRITE, 0 } }, {}, VRING_ADDRESS, false },
	{ "4 GiB", { { A, UINT32_MAX, WRITE, 0 } }, {}, VRING_ADDRESS, false },
	{ "wraps", { { UINT64_MAX - 1, 3, 0, 0 } }, {}, VRING_ADDRESS, false },
	{ "wraps to 0", { { UINT64_MAX, 1, 0, 0 } }, {}, VRING_ADDRESS, false },
	{ "wraps into memory", { { UINT64_MAX - 0xffff, UINT32_MAX, 0, 0 } }, {}, VRING_ADDRESS,
	  false },
	{ "order", { { DATA, 1, WRITE | NEXT, 1 }, { DATA, 1, 0, 0 } }, {}, VRING_ORDER, false },
	{ "order in table", { { DATA, 1, WRITE | NEXT, 1 }, { TABLE, 16, INDIRECT, 0 } },
	  { { DATA, 1, 0, 0 } }, VRING_ORDER, false },
};

static void test_faults(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(fault_cases); i++) {
		const struct fault_case *f = &fault_cases[i];
		enum vring_fault fault;

		ring(NUM, 0, false);
		g.vr.indirect = !f->no_indirect;
		for (unsigned int k = 0; k < 3; k++) {
			desc(k, f->d[k].addr, f->d[k].len, f->d[k].flags, f->d[k].next);
			put_desc(at(TABLE), k, f->t[k].addr, f->t[k].len, f->t[k].flags,
				 f->t[k].next);
		}
		/* Whatever span the last request was in. */
		for (unsigned int s = 0; s < ARRAY_SIZE(blocks); s++) {
			g.vr.hint = &g.mem->spans[s];
			fault = map(0, 64);
			if (fault != f->fault)
				fail_msg("%s: got '%s'", f->name, vring_fault_text(fault));
		}
	}
	ring(NUM, 0, false);
	assert_int_equal(map(NUM, 8), VRING_NEXT_RANGE);
	assert_int_equal(map(65535, 8), VRING_NEXT_RANGE);
}

static void test_fault_texts(void **state)
{
	(void)state;
	for (int i = 0; i < VRING_FAULTS; i++) {
		assert_non_null(vring_fault_text((enum vring_fault)i));
		for (int k = 0; k < i; k++)
			assert_string_not_equal(vring_fault_text((enum vring_fault)i),
						vring_fault_text((enum vring_fault)k));
	}
}

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
				assert_true(vring_publish(&g.vr));
				*used_event() = wanted;
				for (unsigned int i = 0; i < n; i++)
					vring_push(&g.vr, 0, 1);
				assert_int_equal(vring_publish(&g.vr), crossed);
				assert_int_equal(g.used[1], new);
				/* Nothing new: no call. */
				assert_false(vring_publish(&g.vr));
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
		g.avail[0] = i % 2;
		vring_push(&g.vr, 0, 1);
		assert_int_equal(vring_publish(&g.vr), i % 2 == 0);
	}
	g.avail[0] = 0xfffe;	/* only bit 0 counts */
	assert_true(vring_publish(&g.vr));
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
			if (vring_publish(&g.vr)) {
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
		ON_MEMORY(test_init_refused),
		ON_MEMORY(test_init_misaligned_mapping),
		ON_MEMORY(test_largest),
		ON_MEMORY(test_size_one),
		ON_MEMORY(test_wrap),
		ON_MEMORY(test_batches),
		ON_MEMORY(test_avail_jump),
		ON_MEMORY(test_head_range),
		ON_MEMORY(test_map_layouts),
		ON_MEMORY(test_map_crossing),
		ON_MEMORY(test_indirect),
		ON_MEMORY(test_indirect_gathered),
		ON_MEMORY(test_indirect_misaligned_mapping),
		ON_MEMORY(test_grow),
		ON_MEMORY(test_too_long),
		ON_MEMORY(test_large_sums),
		ON_MEMORY(test_faults),
		ON_MEMORY(test_fault_texts),
		ON_MEMORY(test_call_event_idx),
		ON_MEMORY(test_call_flags),
		ON_MEMORY(test_kick_flags),
		ON_MEMORY(test_kick_event_idx),
		ON_MEMORY(test_race_event_idx),
		ON_MEMORY(test_race_flags),
	};

	return harness_main("vring", tests, ARRAY_SIZE(tests), NULL, NULL);
}
