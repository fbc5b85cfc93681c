/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A virtqueue over guest memory that is all input: whatever the driver wrote,
 * every buffer handed out lies inside the memory the guest has, sums are right,
 * and nothing is read or written beside it (each region is a heap block of its
 * own, for the address sanitizer to watch).
 *
 * Input: log2 of the ring's size, flags, base, one byte per round that moves the
 * avail index, then the memory's bytes, region after region.
 */
#include "fuzz.h"

#include "vhost/vring.h"

#define ROUNDS 8
#define BATCH 8
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

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
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
	return 0;
}

static bool grow(struct vring_chain *chain, unsigned int used)
{
	if (chain->iov == large_iov)
		return false;
	memcpy(large_iov, chain->iov, used * sizeof(large_iov[0]));
	chain->iov = large_iov;
	chain->cap = ARRAY_SIZE(large_iov);
	return true;
}

static bool inside(const struct iovec *iov)
{
	const uint8_t *p = iov->iov_base;

	for (size_t i = 0; i < ARRAY_SIZE(blocks); i++) {
		if (p >= regions[i].hva && p < regions[i].hva + regions[i].size)
			return iov->iov_len <= (size_t)(regions[i].hva + regions[i].size - p);
	}
	return false;
}

static uint64_t check_iovs(const struct iovec *iov, unsigned int count)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < count; i++) {
		CHECK(iov[i].iov_len > 0 && inside(&iov[i]));
		sum += iov[i].iov_len;
	}
	return sum;
}

static void map_one(struct vring *vr, uint16_t head, bool may_grow)
{
	struct vring_chain c = { .iov = small_iov, .cap = SMALL_CAP,
				 .grow = may_grow ? grow : NULL };
	enum vring_fault fault = vring_map(vr, head, &c);

	CHECK(fault < VRING_FAULTS);
	if (fault)
		return;
	CHECK(c.out + c.in > 0 && c.out + c.in <= c.cap);
	CHECK(check_iovs(c.iov, c.out) == c.out_bytes);
	CHECK(check_iovs(c.iov + c.out, c.in) == c.in_bytes);
}

static void serve(struct vring *vr, uint16_t *avail, const uint8_t moves[ROUNDS], bool may_grow)
{
	uint16_t heads[BATCH];

	for (int round = 0; round < ROUNDS; round++) {
		uint16_t before = vr->last_avail;
		int n;

		avail[1] = (uint16_t)(vr->last_avail + moves[round]);
		n = vring_pop(vr, heads, BATCH);
		CHECK(n <= BATCH && n > -VRING_FAULTS);
		CHECK(n < 0 || (uint16_t)(vr->last_avail - before) == n);
		CHECK(n >= 0 || vr->last_avail == before);
		for (int i = 0; i < n; i++) {
			CHECK(heads[i] < vr->num);
			map_one(vr, heads[i], may_grow);
			vring_push(vr, heads[i], 1);
		}
		vring_publish(vr);
		if (moves[round] & 1)
			vring_disable_kick(vr);
		else
			CHECK(vring_enable_kick(vr) == !vring_empty(vr));
		if (n < 0)
			return;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct bytes in = { data, size };
	uint8_t flags, moves[ROUNDS] = { 0 };
	struct vring vr;
	struct vring_params params = { .mem = mem };

	params.num = 1u << (take_u8(&in) & 7);
	flags = take_u8(&in);
	params.base = take_u16(&in);
	params.event_idx = flags & 1;
	params.indirect = flags & 2;
	params.desc_uva = UVA + blocks[0].gpa;
	params.avail_uva = params.desc_uva + 16 * params.num;
	params.used_uva = (params.avail_uva + 6 + 2 * params.num + 3) & ~3ull;
	if (flags & 8)
		params.used_uva += take_u16(&in);
	take(&in, moves, sizeof(moves));
	for (size_t i = 0; i < ARRAY_SIZE(blocks); i++) {
		memset(regions[i].hva, 0, regions[i].size);
		take(&in, regions[i].hva, regions[i].size);
	}
	if (vring_init(&vr, &params) == 0)
		serve(&vr, (uint16_t *)(void *)(regions[0].hva + 16 * params.num), moves,
		      flags & 4);
	return 0;
}
