/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * In-flight tracking. A back end may be killed between any two stores, so their
 * order is all there is: each step leaves a region from which the next back end
 * can tell what the driver has been told. Stores are released in program order;
 * nothing here protects against a crash of the machine, which the guest shares.
 *
 * Split. A request's entry is marked when it is taken. At the end of a pass the
 * entries of the batch are linked from last_batch_head, the used index is made
 * visible, the marks are cleared, and the region's used_idx follows. Where the two
 * indices differ, the difference is the number of the batch's requests that the
 * driver has seen.
 *
 * Packed. Descriptors are overwritten by used entries, so a request's are copied
 * into entries of the region, which have a free list. At the end of a pass free list
 * and used place move on, the used entries are written, the first of them last, the
 * marks are cleared, and the old_ copies follow. Where copies differ, the ring's
 * descriptor at old_used_idx tells whether the driver can have seen the entries. If it
 * cannot, those behind the first may be marked used all the same, and what is done again
 * may end in another order: the driver would take them for answers once it comes to
 * them. So their marks are taken back, before the region forgets that there was a batch.
 */
#include "vhost/inflight.h"

#include <stdlib.h>
#include <string.h>

#define VERSION 1
#define ALIGNMENT 64u

_Static_assert(sizeof(struct inflight_split) == 16, "the specification's layout");
_Static_assert(sizeof(struct inflight_split_desc) == 16, "the specification's layout");
_Static_assert(offsetof(struct inflight_packed, padding) == 22, "the specification's layout");
_Static_assert(offsetof(struct inflight_packed, used_idx) == 16, "one aligned word");
_Static_assert(offsetof(struct inflight_packed, free_head) == 12, "one aligned word of both");
_Static_assert(sizeof(struct inflight_packed) == 32, "the specification's layout");
_Static_assert(sizeof(struct inflight_packed_desc) == 32, "the specification's layout");

/* Each store is done before the next, as far as this machine's other processes see. */
#define STORE(lvalue, value) __atomic_store_n(&(lvalue), (value), __ATOMIC_RELEASE)
/* Once: the front end may change it while we look. */
#define LOAD(lvalue) __atomic_load_n(&(lvalue), __ATOMIC_RELAXED)

uint64_t inflight_size(uint32_t queue_size, bool packed)
{
	uint64_t size = packed ?
		sizeof(struct inflight_packed) + queue_size * sizeof(struct inflight_packed_desc) :
		sizeof(struct inflight_split) + queue_size * sizeof(struct inflight_split_desc);

	return (size + ALIGNMENT - 1) & ~(uint64_t)(ALIGNMENT - 1);
}

static int by_counter(const void *a, const void *b)
{
	const struct inflight_head *x = a, *y = b;

	if (x->counter != y->counter)
		return x->counter < y->counter ? -1 : 1;
	/* Equal ones are a stranger's; any order will do, if it is one. */
	return (int)x->entry - (int)y->entry;
}

static void sort_again(struct inflight *fl)
{
	if (fl->again_count == 0)
		return;
	qsort(fl->again, fl->again_count, sizeof(fl->again[0]), by_counter);
	fl->counter = fl->again[fl->again_count - 1].counter + 1;
}

/* ------- split ------- */

/* The driver has seen the last batch: it is not in flight, whatever its marks say. */
static bool split_settle(struct inflight_split *r, uint16_t used, uint16_t num)
{
	uint16_t seen = (uint16_t)(used - LOAD(r->used_idx)), i = LOAD(r->last_batch_head);

	if (seen > num)
		return false;
	while (seen-- > 0) {
		if (i >= num)
			return false;
		STORE(r->desc[i].inflight, 0);
		i = LOAD(r->desc[i].next);
	}
	STORE(r->used_idx, used);
	return true;
}

static bool split_idle(const struct inflight_split *r, uint16_t num)
{
	for (uint16_t i = 0; i < num; i++) {
		if (r->desc[i].inflight)
			return false;
	}
	return true;
}

static int split_open(struct inflight *fl, struct vring *vr)
{
	struct inflight_split *r = fl->split;
	bool known = r->version == VERSION && r->desc_num == fl->num;

	/* A driver that was reset starts at 0 again, in a region that has nothing left to do. */
	if (r->version == 0 || (known && r->used_idx != vr->used_idx && split_idle(r, fl->num))) {
		memset(r->desc, 0, fl->num * sizeof(r->desc[0]));
		r->features = 0;
		r->desc_num = fl->num;
		r->last_batch_head = 0;
		/* Not 0: the ring may have been in use before. */
		r->used_idx = vr->used_idx;
		STORE(r->version, VERSION);
		fl->fresh = true;
		return 0;
	}
	if (!known || !split_settle(r, vr->used_idx, fl->num))
		return -EINVAL;
	for (uint16_t i = 0; i < fl->num; i++) {
		struct inflight_split_desc d = r->desc[i];

		if (!d.inflight)
			continue;
		if (i >= vr->num)
			return -EINVAL;
		fl->again[fl->again_count++] = (struct inflight_head){
			.head = { .id = i }, .counter = d.counter, .entry = i,
		};
	}
	/*
	 * Also with none in flight: a front end that has lost its connection tells the
	 * used index of a moment when the old session may still have published some.
	 */
	vr->last_avail = (uint16_t)(vr->used_idx + fl->again_count);
	sort_again(fl);
	return 0;
}

/* ------- packed ------- */

typedef uint64_t word __attribute__((may_alias));

/* The used place, its wrap counter and their old copies: in one store, as one step. */
static inline void store_used(struct inflight_packed *r, uint16_t idx, bool wrap,
			      uint16_t old_idx, bool old_wrap)
{
	word step = idx | (uint64_t)old_idx << 16 | (uint64_t)wrap << 32 | (uint64_t)old_wrap << 40;

	__atomic_store_n((word *)(void *)&r->used_idx, step, __ATOMIC_RELEASE);
}

/* Every entry is in use: where the free list is a ring, its head is one of them. */
static bool packed_is_full(const struct inflight_packed *r, uint16_t num)
{
	uint32_t sum = 0;

	for (uint16_t i = 0; i < num; i++) {
		if (LOAD(r->desc[i].inflight))
			sum += LOAD(r->desc[i].num);
	}
	return sum == num;
}

/* A batch may be half done: finish it, or take it back. */
static bool packed_settle(struct inflight_packed *r, const struct vring *vr, uint16_t num)
{
	uint16_t used = LOAD(r->used_idx), old_used = LOAD(r->old_used_idx);
	uint16_t free = LOAD(r->free_head), old_free = LOAD(r->old_free_head), i = free;
	bool wrap = LOAD(r->used_wrap) & 1, old_wrap = LOAD(r->old_used_wrap) & 1;

	if (used >= vr->num || old_used >= vr->num || free > num || old_free > num)
		return false;
	if ((used == old_used && wrap == old_wrap) ||
	    packed_is_avail(packed_flags(&vr->packed[old_used]), old_wrap)) {
		packed_take_back(vr, old_used, old_wrap, used, wrap);
		STORE(r->free_head, old_free);
		store_used(r, old_used, old_wrap, old_used, old_wrap);
		/* Free, or about to be taken: then the ring has it still. */
		if (old_free < num && !packed_is_full(r, num))
			STORE(r->desc[old_free].inflight, 0);
		return true;
	}
	/*
	 * Every request freed since, at least one, the driver has seen. It is at old_free
	 * itself where another back end's list is a ring and was empty.
	 */
	for (uint16_t n = 0; n == 0 || i != old_free; n++) {
		uint16_t last = i < num ? LOAD(r->desc[i].last) : num;

		if (n == num || last >= num)
			return false;
		STORE(r->desc[i].inflight, 0);
		i = LOAD(r->desc[last].next);
	}
	store_used(r, used, wrap, used, wrap);
	STORE(r->old_free_head, free);
	return true;
}

/* Link every entry that is in no request: what the free list was does not matter. */
static void packed_link_free(struct inflight *fl, const bool *taken)
{
	struct inflight_packed *r = fl->packed;
	uint16_t last = fl->num;

	/* The list ends in fl->num, which is no entry; so does an empty one. */
	fl->free_head = fl->num;
	for (uint16_t i = 0; i < fl->num; i++) {
		if (taken[i])
			continue;
		if (last == fl->num)
			fl->free_head = i;
		else
			fl->next[last] = i;
		fl->next[i] = fl->num;
		last = i;
	}
	for (uint16_t i = 0; i < fl->num; i++)
		STORE(r->desc[i].next, fl->next[i]);
	STORE(r->free_head, fl->free_head);
	STORE(r->old_free_head, fl->free_head);
}

/* The entries of the request at i; false when they cannot be that. */
static bool packed_collect(struct inflight *fl, uint16_t i, uint16_t ring, bool *taken)
{
	const struct inflight_packed_desc *d = fl->packed->desc;
	struct inflight_head h = { .counter = d[i].counter, .entry = i };
	uint16_t count = LOAD(d[i].num), last = i, at = i;

	if (count == 0 || count > ring)
		return false;
	for (uint16_t n = 0; n < count; n++) {
		if (at >= fl->num || taken[at])
			return false;
		taken[at] = true;
		if (n > 0)
			fl->next[last] = at;
		last = at;
		at = LOAD(d[at].next);
	}
	h.head.id = LOAD(d[last].id);
	h.head.count = count;
	if (h.head.id >= ring)
		return false;
	for (unsigned int k = 0; k < fl->again_count; k++) {
		if (fl->again[k].head.id == h.head.id)
			return false;
	}
	fl->of_id[h.head.id].first = i;
	fl->of_id[h.head.id].last = last;
	fl->again[fl->again_count++] = h;
	return true;
}

/* Whether the driver has begun anew: the ring of another life has its marks. */
static bool packed_is_new(const struct vring *vr)
{
	const struct vring_desc_packed *last = &vr->packed[vr->mask];

	if (vr->last_avail || !vr->avail_wrap || vr->used_idx || !vr->used_wrap)
		return false;
	/*
	 * A front end says this base as well when its back end has died and it does not
	 * know better. But the first used entry of all is at the first place, and who has
	 * been round once has written the last.
	 */
	return !(packed_flags(&vr->packed[0]) & PACKED_USED) &&
		!(LOAD(last->addr) | LOAD(last->len) | LOAD(last->id) | LOAD(last->flags));
}

static int packed_recover(struct inflight *fl, struct vring *vr, bool *taken)
{
	struct inflight_packed *r = fl->packed;
	uint32_t total = 0, at;

	if (r->version != VERSION || r->desc_num != fl->num || !packed_settle(r, vr, fl->num))
		return -EINVAL;
	for (uint16_t i = 0; i < fl->num; i++) {
		if (!r->desc[i].inflight)
			continue;
		if (!packed_collect(fl, i, vr->num, taken))
			return -EINVAL;
		total += fl->again[fl->again_count - 1].head.count;
	}
	if (total > vr->num)
		return -EINVAL;
	/* A driver that was reset, in a region that has nothing left to do. */
	if (total == 0 && packed_is_new(vr)) {
		store_used(r, 0, true, 0, true);
		return 0;
	}
	/* No front end knows where a packed ring stands when its back end is gone: we do. */
	vr->used_idx = LOAD(r->used_idx) & vr->mask;
	vr->used_wrap = LOAD(r->used_wrap) & 1;
	at = vr->used_idx + total;
	vr->last_avail = (uint16_t)(at & vr->mask);
	vr->avail_wrap = vr->used_wrap ^ (at >= vr->num);
	vr->room = (uint16_t)(vr->num - total);
	sort_again(fl);
	return 0;
}

static int packed_open(struct inflight *fl, struct vring *vr)
{
	struct inflight_packed *r = fl->packed;
	bool *taken = calloc(fl->num, sizeof(*taken));
	int rc = 0;

	if (!taken)
		return -ENOMEM;
	fl->fresh = r->version == 0;
	if (fl->fresh) {
		memset(r->desc, 0, fl->num * sizeof(r->desc[0]));
		r->features = 0;
		r->desc_num = fl->num;
		r->used_idx = r->old_used_idx = vr->used_idx;
		r->used_wrap = r->old_used_wrap = vr->used_wrap;
	} else {
		rc = packed_recover(fl, vr, taken);
	}
	if (rc == 0) {
		packed_link_free(fl, taken);
		STORE(r->version, VERSION);
	}
	free(taken);
	return rc;
}

typedef uint32_t two_u16 __attribute__((may_alias));

/* Where the free list starts, and its old_ copy: in one store. */
static inline void store_free(struct inflight_packed *r, uint16_t at)
{
	__atomic_store_n((two_u16 *)(void *)&r->free_head, at | (uint32_t)at << 16,
			 __ATOMIC_RELEASE);
}

void inflight_take_packed(struct inflight *fl, const struct vring_head *head)
{
	struct inflight_packed *r = fl->packed;
	uint16_t first = fl->free_head, last = first, at = first;
	struct inflight_packed_desc mark = { .inflight = 1, .next = fl->next[first],
					     .num = head->count, .counter = fl->counter++ };

	/* vr->room has seen to it that the entries suffice. */
	for (uint16_t n = 0; n < head->count; n++) {
		struct inflight_packed_desc *e = &r->desc[at];
		const struct vring_desc_packed *d = &head->descs[n];

		e->addr = d->addr;
		*(word *)(void *)&e->id = head->id | (uint64_t)d->flags << 16 |
					  (uint64_t)d->len << 32;
		last = at;
		at = fl->next[at];
	}
	mark.last = last;
	/* All of it at once; the descriptors come before. */
	atomic_signal_fence(memory_order_release);
	*(inflight_vec *)(void *)&r->desc[first] = *(inflight_vec *)(void *)&mark;
	fl->of_id[head->id].first = first;
	fl->of_id[head->id].last = last;
	fl->free_head = at;
	store_free(r, at);
}

/* A request's entries go to the head of the free list, whose start is stored later. */
static inline void link_entries(struct inflight *fl, uint16_t first, uint16_t last)
{
	fl->next[last] = fl->free_head;
	STORE(fl->packed->desc[last].next, fl->free_head);
	fl->free_head = first;
}

void inflight_push_packed(struct inflight *fl, struct vring *vr, const struct used_entry *entries,
			  unsigned int n)
{
	struct inflight_packed *r = fl->packed;
	uint32_t used = vr->used_idx;
	uint16_t idx;
	bool wrap;

	for (unsigned int i = 0; i < n; i++) {
		uint16_t id = entries[i].head;

		link_entries(fl, fl->of_id[id].first, fl->of_id[id].last);
		used += entries[i].count;
	}
	/* All requests of a ring take its places at most, so this is less than a lap or one. */
	idx = (uint16_t)(used & vr->mask);
	wrap = vr->used_wrap ^ (used >= vr->num);
	STORE(r->free_head, fl->free_head);
	store_used(r, idx, wrap, vr->used_idx, vr->used_wrap);
	packed_push(vr, entries, n);
	for (unsigned int i = 0; i < n; i++)
		STORE(r->desc[fl->of_id[entries[i].head].first].inflight, 0);
	/* In this order: equal used places are taken for nothing half done, and that is so. */
	store_used(r, idx, wrap, idx, wrap);
	STORE(r->old_free_head, fl->free_head);
}

void inflight_forget(struct inflight *fl, uint16_t id)
{
	struct inflight_packed *r = fl->packed;
	uint16_t first, last;

	if (!r) {
		STORE(fl->split->desc[id].inflight, 0);
		return;
	}
	first = fl->of_id[id].first;
	last = fl->of_id[id].last;
	STORE(r->desc[first].inflight, 0);
	link_entries(fl, first, last);
	store_free(r, first);
}

/* ------- life ------- */

bool inflight_has_any(const void *mem, uint32_t queue_size, bool packed)
{
	const struct inflight_packed *p = mem;
	const struct inflight_split *s = mem;

	for (uint32_t i = 0; i < queue_size; i++) {
		if (packed ? LOAD(p->desc[i].inflight) : LOAD(s->desc[i].inflight))
			return true;
	}
	return false;
}

void inflight_descs(const struct inflight *fl, struct inflight_head *head,
		    struct vring_desc_packed *table)
{
	uint16_t at = head->entry;

	for (uint16_t n = 0; n < head->head.count; n++) {
		const struct inflight_packed_desc *e = &fl->packed->desc[at];

		table[n] = (struct vring_desc_packed){ e->addr, e->len, e->id, e->flags };
		at = fl->next[at];
	}
	head->head.descs = table;
}

int inflight_create(void *mem, uint32_t queue_size, struct vring *vr, struct inflight **out)
{
	struct inflight *fl;
	int rc;

	if (vr->num > queue_size)
		return -EINVAL;
	fl = calloc(1, sizeof(*fl));
	if (!fl)
		return -ENOMEM;
	fl->num = (uint16_t)queue_size;
	fl->again = calloc(queue_size, sizeof(fl->again[0]));
	if (vr->packed) {
		fl->packed = mem;
		fl->next = calloc(queue_size, sizeof(fl->next[0]));
		fl->of_id = calloc(queue_size, sizeof(fl->of_id[0]));
	} else {
		fl->split = mem;
	}
	if (!fl->again || (vr->packed && (!fl->next || !fl->of_id)))
		rc = -ENOMEM;
	else
		rc = vr->packed ? packed_open(fl, vr) : split_open(fl, vr);
	if (rc < 0) {
		inflight_free(fl);
		return rc;
	}
	*out = fl;
	return 0;
}

void inflight_free(struct inflight *fl)
{
	if (!fl)
		return;
	free(fl->again);
	free(fl->next);
	free(fl->of_id);
	free(fl);
}
