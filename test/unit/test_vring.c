/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Virtqueues against a hand-made guest: making a ring, indices that wrap, chains
 * of every layout, and every fault that a driver can make. When to kick and to
 * call is test_vring_notify.c's.
 */
#include "ring.h"

#include <sys/mman.h>

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
	REFUSED(desc_uva, UVA(A) + 4, -EINVAL);
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
	publish(&g.vr);
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
		publish(&g.vr);
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
		publish(&g.vr);
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
	/* The guest may put it anywhere, so also onto the ring: once round and no end. */
	{ "table is the ring", { { A, 16, INDIRECT, 0 } }, {}, VRING_INDIRECT, false },
	{ "table in the ring", { { A + 16, 16, INDIRECT, 0 }, { A, 16, INDIRECT, 0 } }, {},
	  VRING_INDIRECT, false },
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

/* More than 4 GiB behind the address: a length of 0 must not pass for a long one. */
static void test_zero_length_in_large_region(void **state)
{
	(void)state;
	ring(NUM, 0, false);
	g.mem->spans[0].size = UINT64_C(6) << 30;
	desc(0, DATA, 16, NEXT, 1);
	desc(1, A, 0, WRITE, 0);
	assert_int_equal(map(0, 8), VRING_ZERO_LENGTH);
	g.mem->spans[0].size = blocks[0].size;
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
		ON_MEMORY(test_zero_length_in_large_region),
		ON_MEMORY(test_faults),
		ON_MEMORY(test_fault_texts),
	};

	return harness_main("vring", tests, ARRAY_SIZE(tests), NULL, NULL);
}
