/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A guest's memory for the fuzzers of rings: five regions that are heap blocks of their own, for
 * the address sanitizer to watch, and checks of what was mapped from a chain.
 */
#ifndef SPINDLE_FUZZ_GUEST_H
#define SPINDLE_FUZZ_GUEST_H

#include "fuzz.h"

#include "vhost/vring.h"

#define UVA 0x7f0000000000ull
#define SMALL_CAP 4

/* The first holds the rings; the second and third follow it for the guest. */
static const struct {
	uint64_t gpa, size;
} blocks[] = {
	{ 0x1000, 2048 }, { 0x1800, 256 }, { 0x1900, 512 }, { 0x8004, 100 },
	{ UINT64_MAX - 256, 256 },
};

static struct guest_mem *mem;
static struct mem_region regions[ARRAY_SIZE(blocks)];
static struct iovec small_iov[SMALL_CAP], large_iov[VRING_CHAIN_MAX + 64];

static inline void guest_start(void)
{
	mem = calloc(1, sizeof(*mem) + ARRAY_SIZE(blocks) * sizeof(mem->spans[0]));
	mem->regions = calloc(ARRAY_SIZE(blocks), sizeof(struct mem_region *));
	mem->count = ARRAY_SIZE(blocks);
	for (size_t i = 0; i < ARRAY_SIZE(blocks); i++) {
		/* The fourth starts askew, as a region may in its file. */
		size_t skew = blocks[i].gpa & 4 ? 2 : 0;
		uint8_t *block = aligned_alloc(64, (blocks[i].size + skew + 63) & ~63ull);

		regions[i] = (struct mem_region){
			.gpa = blocks[i].gpa, .size = blocks[i].size, .uva = UVA + blocks[i].gpa,
			.hva = block + skew,
		};
		mem->regions[i] = &regions[i];
		mem->spans[i] = (struct mem_span){ blocks[i].gpa, blocks[i].size, regions[i].hva };
	}
}

static inline bool grow(struct vring_chain *chain, unsigned int used)
{
	if (chain->iov == large_iov)
		return false;
	memcpy(large_iov, chain->iov, used * sizeof(large_iov[0]));
	chain->iov = large_iov;
	chain->cap = ARRAY_SIZE(large_iov);
	return true;
}

static inline bool inside(const struct iovec *iov)
{
	const uint8_t *p = iov->iov_base;

	for (size_t i = 0; i < ARRAY_SIZE(blocks); i++) {
		if (p >= regions[i].hva && p < regions[i].hva + regions[i].size)
			return iov->iov_len <= (size_t)(regions[i].hva + regions[i].size - p);
	}
	return false;
}

static inline uint64_t check_iovs(const struct iovec *iov, unsigned int count)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < count; i++) {
		CHECK(iov[i].iov_len > 0 && inside(&iov[i]));
		sum += iov[i].iov_len;
	}
	return sum;
}

/* The memory's bytes from the input, region after region. */
static inline void guest_fill(struct bytes *in)
{
	for (size_t i = 0; i < ARRAY_SIZE(blocks); i++) {
		memset(regions[i].hva, 0, regions[i].size);
		take(in, regions[i].hva, regions[i].size);
	}
}

static inline struct vring_chain chain_begin(bool may_grow)
{
	return (struct vring_chain){ .iov = small_iov, .cap = SMALL_CAP,
				     .grow = may_grow ? grow : NULL };
}

static inline void chain_check(const struct vring_chain *c, enum vring_fault fault)
{
	CHECK(fault < VRING_FAULTS);
	if (fault)
		return;
	CHECK(c->out + c->in > 0 && c->out + c->in <= c->cap);
	CHECK(check_iovs(c->iov, c->out) == c->out_bytes);
	CHECK(check_iovs(c->iov + c->out, c->in) == c->in_bytes);
}

#endif
