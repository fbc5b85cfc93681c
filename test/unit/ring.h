/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A hand-made guest with one virtqueue, for test_vring*.c. Its memory is four
 * blocks of our own heap, so that under a sanitizer one byte beside a block is
 * an error:
 *
 *   0x10000 - 0x1ffff  A  rings, tables, data
 *   0x20000 - 0x20fff  B  next to A for the guest, elsewhere for us
 *   0x21000 - 0x21fff  C  next to B
 *   0x30000 - 0x30fff  D  alone
 */
#ifndef SPINDLE_TEST_RING_H
#define SPINDLE_TEST_RING_H

#include "harness.h"

#include "vhost/vring.h"

#include <stdlib.h>
#include <string.h>

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

static inline uint8_t *at(uint64_t gpa)
{
	for (size_t i = 0; i < ARRAY_SIZE(blocks); i++) {
		if (gpa - blocks[i].gpa < blocks[i].size)
			return g.region[i].hva + (gpa - blocks[i].gpa);
	}
	fail_msg("no guest memory at %llx", (unsigned long long)gpa);
	return NULL;
}

static inline int setup(void **state)
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

static inline int teardown(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(blocks); i++)
		free(g.region[i].hva);
	free(g.mem->regions);
	free(g.mem);
	return 0;
}

static inline void ring_params(uint32_t num, uint16_t base, bool event_idx, bool indirect)
{
	g.params = (struct vring_params){
		.mem = g.mem, .num = num, .base = base,
		.desc_uva = UVA(A), .avail_uva = UVA(A + 0x4000), .used_uva = UVA(A + 0x5000),
		.event_idx = event_idx, .indirect = indirect,
	};
}

static inline void ring(uint32_t num, uint16_t base, bool event_idx)
{
	ring_params(num, base, event_idx, true);
	g.desc = (void *)at(A);
	g.avail = (void *)at(A + 0x4000);
	g.used = (void *)at(A + 0x5000);
	g.avail[1] = g.used[1] = base;
	assert_int_equal(vring_init(&g.vr, &g.params), 0);
}

static inline void put_desc(void *table, unsigned int i, uint64_t addr, uint32_t len,
			    uint16_t flags, uint16_t next)
{
	struct vring_desc_split d = { addr, len, flags, next };

	memcpy((uint8_t *)table + i * sizeof(d), &d, sizeof(d));
}

static inline void desc(unsigned int i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	put_desc(g.desc, i, addr, len, flags, next);
}

static inline void make_avail(uint16_t head)
{
	g.avail[2 + g.avail[1] % g.params.num] = head;
	__atomic_store_n(&g.avail[1], (uint16_t)(g.avail[1] + 1), __ATOMIC_RELEASE);
}

static inline bool publish(struct vring *vr)
{
	vring_show(vr);
	return vring_wants_call(vr);
}

static inline enum vring_fault map(uint16_t head, unsigned int cap)
{
	g.chain.iov = g.iov;
	g.chain.cap = cap;
	return vring_map(&g.vr, head, &g.chain);
}

static inline void check_iov(unsigned int i, uint64_t gpa, size_t len)
{
	assert_ptr_equal(g.iov[i].iov_base, at(gpa));
	assert_int_equal(g.iov[i].iov_len, len);
}

#endif
