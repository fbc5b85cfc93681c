/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The in-flight region as somebody else left it, over a ring that is all input: it is refused, or
 * what is found in flight makes sense. And our own: after any number of requests taken and ended,
 * the next back end finds exactly those that have not ended, in the order they were taken.
 *
 * Input: log2 of the ring's size, flags, base, what the region is larger than the ring, the
 * region's bytes, one byte per round of work, then the memory's bytes.
 */
#include "guest.h"

#include "vhost/inflight.h"

#define ROUNDS 8
#define ENTRIES 32		/* entries of a ring */

static struct vring_head out[ENTRIES];	/* taken and not ended, in order */
static unsigned int out_count;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	guest_start();
	return 0;
}

static bool is_out(uint16_t id)
{
	for (unsigned int i = 0; i < out_count; i++) {
		if (out[i].id == id)
			return true;
	}
	return false;
}

/* What has been found; it becomes what is in flight. */
static void adopt(struct vring *vr, struct inflight *fl)
{
	struct vring_desc_packed table[ENTRIES];
	unsigned int held = 0;

	out_count = 0;
	for (unsigned int i = 0; i < fl->again_count; i++) {
		struct inflight_head *h = &fl->again[i];
		struct vring_chain c = chain_begin(false);

		CHECK(h->head.id < vr->num && !is_out(h->head.id));
		CHECK(i == 0 || fl->again[i - 1].counter <= h->counter);
		if (vr->packed) {
			CHECK(h->head.count > 0 && held + h->head.count <= vr->num);
			held += h->head.count;
			inflight_descs(fl, h, table);
			chain_check(&c, packed_map(vr, &h->head, &c));
		} else {
			held++;
		}
		CHECK(out_count < vr->num);
		out[out_count++] = h->head;
	}
	if (vr->packed)
		CHECK(vr->room == vr->num - held && (vr->used_idx + held) % vr->num == vr->last_avail);
	else if (held)
		CHECK(vr->last_avail == (uint16_t)(vr->used_idx + held));
}

static bool take_some(struct vring *vr, struct inflight *fl, unsigned int max)
{
	struct vring_head heads[8] = { { 0 } };
	static struct vring_desc_packed descs[ENTRIES + 1];
	uint16_t split[8];
	int n = vr->packed ? packed_pop(vr, heads, max, descs) : vring_pop(vr, split, max);

	for (int i = 0; i < n; i++) {
		if (!vr->packed)
			heads[i].id = split[i];
		/* The queue is broken then: a request that is made available twice. */
		if (is_out(heads[i].id))
			return false;
		if (vr->packed)
			inflight_take_packed(fl, &heads[i]);
		else
			inflight_take(fl, heads[i].id, (uint16_t)i);
		CHECK(out_count < vr->num);
		out[out_count++] = heads[i];
	}
	if (!vr->packed && n > 0)
		inflight_taken(fl, (unsigned int)n);
	return n >= 0;
}

static void end_some(struct vring *vr, struct inflight *fl, unsigned int count, unsigned int which)
{
	struct used_entry ended[8];
	unsigned int n = 0;

	for (; n < count && out_count > 0; n++) {
		unsigned int i = which++ % out_count;

		ended[n] = (struct used_entry){ 1, out[i].id, out[i].count };
		out_count--;
		memmove(&out[i], &out[i + 1], (out_count - i) * sizeof(out[0]));
	}
	if (n == 0)
		return;
	if (vr->packed) {
		inflight_push_packed(fl, vr, ended, n);
		return;
	}
	inflight_show(fl, ended, n);
	for (unsigned int i = 0; i < n; i++)
		vring_push(vr, ended[i].head, ended[i].len);
	vring_show(vr);
	inflight_shown(fl, ended, n, vr->used_idx);
}

/*
 * The same of a packed ring, killed before the flags of the first used entry are stored:
 * nothing has ended. -> the ring places that the batch would have taken
 */
static unsigned int end_killed(struct vring *vr, struct inflight *fl, unsigned int count,
			       unsigned int which)
{
	struct inflight_packed *r = fl->packed, before = *r;
	struct vring_desc_packed *first = &vr->packed[vr->used_idx];
	struct vring_head all[ENTRIES];
	unsigned int n = out_count, places = vr->room;
	uint16_t flags = first->flags;

	memcpy(all, out, sizeof(all));
	end_some(vr, fl, count, which);
	places = vr->room - places;
	memcpy(out, all, sizeof(all));
	out_count = n;
	if (places == 0)
		return 0;
	first->flags = flags;
	for (unsigned int i = 0; i < n; i++)
		r->desc[fl->of_id[out[i].id].first].inflight = 1;
	r->old_free_head = before.old_free_head;
	r->old_used_idx = before.old_used_idx;
	r->old_used_wrap = before.old_used_wrap;
	return places;
}

/* The next back end's driver must not take what a killed one left there for used entries. */
static void check_unseen(const struct vring *vr, unsigned int places)
{
	for (unsigned int i = 0; i < places; i++) {
		unsigned int at = vr->used_idx + i;

		CHECK(packed_is_avail(vr->packed[at & vr->mask].flags,
				      vr->used_wrap ^ (at >= vr->num)));
	}
}

/* The same ring and region, by the next back end. */
static struct inflight *succeed(struct vring *vr, struct inflight *fl,
				const struct vring_params *params, void *region, uint32_t entries)
{
	struct vring_head want[ENTRIES];
	unsigned int count = out_count;
	struct vring_params again = *params;
	uint16_t last_avail = vr->last_avail;

	memcpy(want, out, sizeof(want));
	inflight_free(fl);
	if (!params->packed)
		again.base = (uint16_t)(vr->used_idx + (count ? 0 : last_avail - vr->used_idx));
	CHECK(vring_init(vr, &again) == 0);
	CHECK(inflight_create(region, entries, vr, &fl) == 0);
	adopt(vr, fl);
	CHECK(out_count == count);
	for (unsigned int i = 0; i < count; i++)
		CHECK(out[i].id == want[i].id && (!vr->packed || out[i].count == want[i].count));
	CHECK(vr->last_avail == last_avail);
	return fl;
}

static void serve(struct vring *vr, struct inflight *fl, const struct vring_params *params,
		  void *region, uint32_t entries, const uint8_t rounds[ROUNDS], uint16_t *avail)
{
	adopt(vr, fl);
	/* A base that is not where the used ring stands is a front end's lie: nothing follows. */
	for (int i = 0; i < ROUNDS && (vr->packed ||
	     vr->last_avail == (uint16_t)(vr->used_idx + out_count)); i++) {
		if (!vr->packed) {
			/* No more than a driver has: an index that jumps is another fuzzer's. */
			avail[1] = (uint16_t)(vr->last_avail +
					      (rounds[i] & 7) % (vr->num - out_count + 1));
		}
		if (!take_some(vr, fl, 8))
			break;
		if (vr->packed && rounds[i] & 128) {
			unsigned int places = end_killed(vr, fl, rounds[i] >> 3 & 7, rounds[i]);

			fl = succeed(vr, fl, params, region, entries);
			check_unseen(vr, places);
			continue;
		}
		end_some(vr, fl, rounds[i] >> 3 & 7, rounds[i]);
		if (rounds[i] & 64)
			fl = succeed(vr, fl, params, region, entries);
	}
	inflight_free(fl);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct bytes in = { data, size };
	struct vring_params params = { .mem = mem, .indirect = true };
	uint8_t flags, rounds[ROUNDS] = { 0 };
	struct inflight *fl;
	struct vring vr;
	uint32_t entries;
	size_t length;
	void *region;

	params.num = 1u << take_u8(&in) % 6;
	flags = take_u8(&in);
	params.packed = flags & 1;
	params.base = take_u16(&in);
	params.base |= params.packed ? params.base << 16 : 0;
	entries = params.num + (flags & 2 ? take_u8(&in) : 0);
	length = inflight_size(entries, params.packed);
	region = aligned_alloc(64, length);
	memset(region, 0, length);
	if (flags & 4)
		take(&in, region, length);
	/* A counter at its end would turn the order round, for the one who wrote it. */
	for (uint32_t i = 0; i < entries; i++)
		((uint8_t *)region)[params.packed ? 32 + 32 * i + 15 : 16 + 16 * i + 15] = 0;
	if (flags & 8)	/* a header that gets further */
		memcpy((uint8_t *)region + 8, (uint16_t[]){ 1, (uint16_t)entries }, 4);
	take(&in, rounds, sizeof(rounds));
	params.desc_uva = UVA + blocks[0].gpa;
	params.avail_uva = params.desc_uva + 16 * params.num;
	params.used_uva = (params.avail_uva + 6 + 2 * params.num + 3) & ~3ull;
	guest_fill(&in);
	if (flags & 16)
		memcpy(regions[0].hva + (params.used_uva - UVA - blocks[0].gpa) + 2, &params.base, 2);
	out_count = 0;
	if (vring_init(&vr, &params) == 0 && inflight_create(region, entries, &vr, &fl) == 0)
		serve(&vr, fl, &params, region, entries, rounds,
		      (uint16_t *)(void *)(regions[0].hva + 16 * params.num));
	free(region);
	return 0;
}
