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
#include "guest.h"

#define ROUNDS 8
#define BATCH 8

static void map_one(struct vring *vr, uint16_t head, bool may_grow)
{
	struct vring_chain c = chain_begin(may_grow);

	chain_check(&c, vring_map(vr, head, &c));
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
		vring_show(vr);
		vring_wants_call(vr);
		if (moves[round] & 1)
			vring_disable_kick(vr);
		else
			CHECK(vring_enable_kick(vr) == !vring_empty(vr));
		if (n < 0)
			return;
	}
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	guest_start();
	return 0;
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
	guest_fill(&in);
	if (vring_init(&vr, &params) == 0)
		serve(&vr, (uint16_t *)(void *)(regions[0].hva + 16 * params.num), moves,
		      flags & 4);
	return 0;
}
