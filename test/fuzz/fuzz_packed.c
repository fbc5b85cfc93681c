/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A packed virtqueue over guest memory that is all input, with the dirty log on: whatever the
 * driver wrote and goes on writing, no more descriptors are taken than the ring has, every buffer
 * handed out lies inside the guest's memory, and the log is not left.
 *
 * Input: log2 of the ring's size, flags, base, the memory's bytes, then for each round: how many
 * used entries to write, where in the ring the driver writes next, and two descriptors.
 */
#include "guest.h"

#define ROUNDS 12
#define BATCH 8
#define LOG_BYTES 3	/* pages 0 to 23: some of the memory is beyond */

static struct vring_head out[128];
static unsigned int out_count;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	guest_start();
	return 0;
}

static void map_one(struct vring *vr, const struct vring_head *head, bool may_grow)
{
	struct vring_chain c = chain_begin(may_grow);
	enum vring_fault fault = packed_map(vr, head, &c);

	chain_check(&c, fault);
	if (!fault)
		dirty_log_iov(vr->log, mem, c.iov + c.out, c.in);
}

static void check_place(const struct vring *vr)
{
	unsigned int held = 0;

	for (unsigned int i = 0; i < out_count; i++)
		held += out[i].count;
	CHECK(vr->room + held == vr->num);
	CHECK(vr->last_avail < vr->num && vr->used_idx < vr->num);
	CHECK((vr->used_idx + held) % vr->num == vr->last_avail);
	CHECK((vr->avail_wrap != vr->used_wrap) == (vr->used_idx + held >= vr->num));
}

static void end_some(struct vring *vr, unsigned int count, unsigned int which)
{
	struct used_entry ended[8];
	unsigned int n = 0;

	while (n < count && out_count > 0) {
		unsigned int i = which++ % out_count;

		ended[n++] = (struct used_entry){ 1, out[i].id, out[i].count };
		out[i] = out[--out_count];
	}
	if (n > 0)
		packed_push(vr, ended, n);
	packed_wants_call(vr);
}

static void serve(struct vring *vr, struct bytes *in, bool may_grow)
{
	/* Of its exact size, for the sanitizer to see what goes beyond. */
	struct vring_desc_packed *descs = calloc(vr->num + 1u, sizeof(*descs));
	int n = 0;

	for (int round = 0; round < ROUNDS && n >= 0; round++) {
		uint8_t how = take_u8(in), at = take_u8(in);

		n = packed_pop(vr, &out[out_count], BATCH, descs);
		CHECK(n <= BATCH && n > -VRING_FAULTS);
		for (int i = 0; i < n; i++) {
			CHECK(out[out_count].id < vr->num);
			CHECK(out[out_count].count > 0);
			map_one(vr, &out[out_count], may_grow);
			out_count++;
		}
		check_place(vr);
		end_some(vr, how & 7, at);
		check_place(vr);
		if (how & 8)
			vring_disable_kick(vr);
		else
			CHECK(vring_enable_kick(vr) == !vring_empty(vr));
		take(in, &vr->packed[at & vr->mask], 16);
		take(in, &vr->packed[(at + 1) & vr->mask], 16);
	}
	free(descs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct bytes in = { data, size };
	struct vring_params params = { .mem = mem, .packed = true };
	uint8_t *bits = calloc(1, LOG_BYTES);
	struct dirty_log log = { .bits = bits, .pages = 8 * LOG_BYTES };
	struct vring vr;
	uint8_t flags;

	params.num = 1u << (take_u8(&in) & 7);
	flags = take_u8(&in);
	params.base = take_u16(&in);
	params.base |= (flags & 8 ? take_u16(&in) : params.base) << 16;
	params.event_idx = flags & 1;
	params.indirect = flags & 2;
	params.desc_uva = UVA + blocks[0].gpa;
	params.avail_uva = params.desc_uva + (flags & 16 ? 16 * params.num : 2040);
	params.used_uva = params.avail_uva + 4;
	guest_fill(&in);
	out_count = 0;
	if (vring_init(&vr, &params) == 0) {
		vr.log = &log;
		vr.log_used = flags & 32 ? blocks[0].gpa : UINT64_MAX - 5;
		/* A ring may be started with its places apart; it never runs like that. */
		if (vr.last_avail == vr.used_idx && vr.avail_wrap == vr.used_wrap)
			serve(&vr, &in, flags & 4);
	}
	free(bits);
	return 0;
}
