/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fault: a bdev over another, for tests and for operators' drills. As "error"
 * it fails, corrupts or never completes the next N requests of a type; as
 * "delay" it adds latency. Otherwise it hands each request on and changes
 * nothing. It claims its base, so nobody else writes there.
 *
 * Rules and latencies are set by the control thread while reactors read them:
 * each is a group of atomics whose `count` is stored last and read first. A
 * request that meets a rule being changed gets the old or the new one, or one
 * field of each, which for deliberate faults is good enough.
 *
 * What is held back (never-completing and delayed requests) belongs to the
 * channel and its reactor. Slots of fault_bdev.channels are written and read by
 * their own reactor alone; the visit of CLEAR finds the channels that way.
 * Forwarded requests need a bdev_io of their own, cached per channel.
 */
#include "bdev/bdev_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ANY_TYPE BDEV_IO_TYPES
#define P99_EVERY 100

enum latency { AVG_READ, P99_READ, AVG_WRITE, P99_WRITE, LATENCIES };

struct fault_rule {
	_Atomic uint64_t count;		/* requests still to hit */
	_Atomic uint64_t depth;
	_Atomic uint64_t corrupt_offset;
	_Atomic uint8_t corrupt_xor;
	_Atomic uint8_t mode;		/* enum bdev_fault_mode */
};

/* Owned by the control thread; reactors use `rules`, `latency_us` and their slot. */
struct fault_bdev {
	struct bdev bdev;
	struct bdev_fault_opts opts;	/* the strings are ours */
	struct bdev_desc base;
	struct fault_rule rules[ANY_TYPE + 1];
	_Atomic uint64_t latency_us[LATENCIES];
	struct fault_channel **channels;
	struct bdev_result *removal;	/* for the end of the base; allocated ahead */
	unsigned int clears;		/* under way; destruction waits for them */
	bool dying;
};

struct fault_channel {
	struct bdev_channel *base;	/* control's, between prepare and unprepare */
	struct fault_bdev *fb;
	struct list held, delayed;	/* struct fault_io.node */
	struct fault_io *free_list;
	unsigned int reads, writes;	/* up to P99_EVERY */
	bool cancelled;			/* the bdev is going: hold nothing back any more */
};

/* One request of ours, on its way through the base or held back. Its reactor's. */
struct fault_io {
	struct bdev_io child;
	struct bdev_io *parent;
	struct list node;
	struct timer timer;
	struct fault_io *next_free;
	struct iovec copy;		/* of the data of a corrupted WRITE */
	uint64_t corrupt_offset;
	uint8_t corrupt_xor;		/* 0: do not */
	int status;
};

static struct fault_bdev *fault_of(struct bdev *bdev)
{
	return container_of(bdev, struct fault_bdev, bdev);
}

/* ------- requests ------- */

static struct fault_io *fault_io_get(struct bdev_io *parent)
{
	struct fault_channel *fc = bdev_channel_ctx(parent->ch);
	struct fault_io *fi = fc->free_list;

	if (fi)
		fc->free_list = fi->next_free;
	else
		fi = aligned_alloc(CACHE_LINE, (sizeof(*fi) + CACHE_LINE - 1) &
				   ~(size_t)(CACHE_LINE - 1));
	if (!fi)
		return NULL;
	memset(fi, 0, sizeof(*fi));
	fi->parent = parent;
	list_init(&fi->node);
	return fi;
}

/* Ends the request, from outside submit (later: from anywhere). */
REACTOR_ONLY static void fault_finish(struct fault_io *fi, int status, bool later)
{
	struct bdev_io *parent = fi->parent;
	struct fault_channel *fc = bdev_channel_ctx(parent->ch);

	list_del(&fi->node);
	reactor_timer_stop(&fi->timer);
	free(fi->copy.iov_base);
	fi->next_free = fc->free_list;
	fc->free_list = fi;
	if (later)
		bdev_io_done_later(parent, status);
	else
		bdev_io_done(parent, status);
}

static void fault_delay_over(struct timer *t)
{
	struct fault_io *fi = container_of(t, struct fault_io, timer);

	reactor_assert();
	fault_finish(fi, fi->status, false);
}

/* What the delay kind adds to this request, in microseconds. */
static uint64_t fault_latency(struct fault_channel *fc, const struct bdev_io *io)
{
	bool read = io->type == BDEV_READ;
	unsigned int *counter = read ? &fc->reads : &fc->writes;
	enum latency which = read ? AVG_READ : AVG_WRITE;

	if (!read && io->type != BDEV_WRITE)
		return 0;
	if (++*counter == P99_EVERY) {
		*counter = 0;
		which = read ? P99_READ : P99_WRITE;
	}
	return atomic_load_explicit(&fc->fb->latency_us[which], memory_order_relaxed);
}

static void corrupt(const struct fault_io *fi, const struct iovec *iov, uint32_t iovcnt)
{
	uint64_t at = fi->corrupt_offset;

	for (uint32_t i = 0; i < iovcnt; i++) {
		if (at < iov[i].iov_len) {
			((uint8_t *)iov[i].iov_base)[at] ^= fi->corrupt_xor;
			return;
		}
		at -= iov[i].iov_len;
	}
}

static void fault_child_done(struct bdev_io *child, int status)
{
	struct fault_io *fi = container_of(child, struct fault_io, child);
	struct bdev_io *parent = fi->parent;
	struct fault_channel *fc = bdev_channel_ctx(parent->ch);
	uint64_t us = fault_latency(fc, parent);

	reactor_assert();
	if (fi->corrupt_xor && parent->type == BDEV_READ && status == 0)
		corrupt(fi, parent->iov, parent->iovcnt);
	if (us == 0 || fc->cancelled) {
		fault_finish(fi, status, false);
		return;
	}
	fi->status = status;
	fi->timer.fn = fault_delay_over;
	list_add_tail(&fc->delayed, &fi->node);
	reactor_timer_start(&fi->timer, us);
}

REACTOR_ONLY static void fault_forward(struct fault_io *fi)
{
	struct bdev_io *parent = fi->parent, *child = &fi->child;
	struct fault_channel *fc = bdev_channel_ctx(parent->ch);

	child->ch = fc->base;
	child->offset = parent->offset;
	child->length = parent->length;
	child->iov = parent->iov;
	child->iovcnt = parent->iovcnt;
	if (fi->copy.iov_base) {
		child->iov = &fi->copy;
		child->iovcnt = 1;
	}
	child->type = parent->type;
	child->flags = parent->flags;
	child->done = fault_child_done;
	bdev_submit(child);
}

/* Take one hit of the rule, if it has any left and the channel is busy enough. */
static bool rule_hits(struct fault_rule *rule, const struct bdev_channel *ch)
{
	uint64_t n = atomic_load_explicit(&rule->count, memory_order_acquire);

	do {
		if (n == 0 || bdev_channel_inflight(ch) <=
		    atomic_load_explicit(&rule->depth, memory_order_relaxed))
			return false;
	} while (!atomic_compare_exchange_weak_explicit(&rule->count, &n, n - 1,
							memory_order_acquire,
							memory_order_acquire));
	return true;
}

static struct fault_rule *find_rule(struct fault_bdev *fb, const struct bdev_io *io)
{
	if (rule_hits(&fb->rules[io->type], io->ch))
		return &fb->rules[io->type];
	if (rule_hits(&fb->rules[ANY_TYPE], io->ch))
		return &fb->rules[ANY_TYPE];
	return NULL;
}

/* Prepare the corruption: a READ's data come later, a WRITE's must not be the user's. */
static int corrupt_prepare(struct fault_io *fi, const struct fault_rule *rule)
{
	const struct bdev_io *io = fi->parent;
	void *copy;

	fi->corrupt_offset = atomic_load_explicit(&rule->corrupt_offset, memory_order_relaxed);
	fi->corrupt_xor = atomic_load_explicit(&rule->corrupt_xor, memory_order_relaxed);
	if (io->type != BDEV_WRITE)
		return 0;
	copy = aligned_alloc(4096, (io->length + 4095) & ~(uint64_t)4095);
	if (!copy)
		return -ENOMEM;
	bdev_iov_to_buf(io->iov, io->iovcnt, 0, copy, io->length);
	fi->copy = (struct iovec){ .iov_base = copy, .iov_len = io->length };
	corrupt(fi, &fi->copy, 1);
	return 0;
}

static void fault_submit(struct bdev_io *io)
{
	struct fault_channel *fc = bdev_channel_ctx(io->ch);
	struct fault_rule *rule = find_rule(fc->fb, io);
	struct fault_io *fi = fault_io_get(io);
	int mode = BDEV_FAULT_CLEAR;

	reactor_assert();
	if (!fi) {
		bdev_io_done_later(io, -ENOMEM);
		return;
	}
	if (rule)
		mode = atomic_load_explicit(&rule->mode, memory_order_relaxed);
	switch (mode) {
	case BDEV_FAULT_FAIL:
		fault_finish(fi, -EIO, true);
		return;
	case BDEV_FAULT_NOMEM:
		fault_finish(fi, -ENOMEM, true);
		return;
	case BDEV_FAULT_PENDING:
		if (fc->cancelled) {
			fault_finish(fi, -ECANCELED, true);
			return;
		}
		list_add_tail(&fc->held, &fi->node);
		return;
	case BDEV_FAULT_CORRUPT:
		if (corrupt_prepare(fi, rule) < 0) {
			fault_finish(fi, -ENOMEM, true);
			return;
		}
		break;
	default:
		break;
	}
	fault_forward(fi);
}

/* End the requests of a type (or any) on the list. */
REACTOR_ONLY static void fault_end_all(struct list *list, unsigned int type, int status)
{
	struct list *node, *next;

	/* Not list_for_each: the list's head is no place for an aligned struct fault_io. */
	for (node = list->next; node != list; node = next) {
		struct fault_io *fi = list_entry(node, struct fault_io, node);

		next = node->next;
		if (type == ANY_TYPE || fi->parent->type == type)
			fault_finish(fi, status, true);
	}
}

/* ------- channels ------- */

static int fault_channel_prepare(struct bdev_channel *ch)
{
	struct fault_channel *fc = bdev_channel_ctx(ch);

	control_assert();
	fc->fb = fault_of(ch->bdev);
	fc->base = bdev_channel_get(&fc->fb->base, ch->reactor);
	return fc->base ? 0 : -errno;
}

static void fault_channel_unprepare(struct bdev_channel *ch)
{
	struct fault_channel *fc = bdev_channel_ctx(ch);

	control_assert();
	bdev_channel_put(fc->base);
	fc->base = NULL;
}

static bool fault_keeps_order(struct bdev *bdev)
{
	control_assert();
	return fault_of(bdev)->base.bdev && bdev_keeps_order(fault_of(bdev)->base.bdev);
}

static bool fault_settles(struct bdev *bdev)
{
	control_assert();
	return fault_of(bdev)->base.bdev && bdev_settles(fault_of(bdev)->base.bdev);
}

static int fault_channel_open(struct bdev_channel *ch)
{
	struct fault_channel *fc = bdev_channel_ctx(ch);

	reactor_assert();
	list_init(&fc->held);
	list_init(&fc->delayed);
	fc->fb->channels[reactor_index(ch->reactor)] = fc;
	return 0;
}

static void fault_channel_close(struct bdev_channel *ch)
{
	struct fault_channel *fc = bdev_channel_ctx(ch);
	struct fault_channel **slot = &fc->fb->channels[reactor_index(ch->reactor)];

	reactor_assert();
	/* A channel that was got again may have opened before this one closed. */
	if (*slot == fc)
		*slot = NULL;
	while (fc->free_list) {
		struct fault_io *fi = fc->free_list;

		fc->free_list = fi->next_free;
		free(fi);
	}
}

static void fault_cancel(struct bdev_channel *ch)
{
	struct fault_channel *fc = bdev_channel_ctx(ch);

	reactor_assert();
	/* Its users may submit more before they hear of it: nobody would end that. */
	fc->cancelled = true;
	fault_end_all(&fc->held, ANY_TYPE, -ECANCELED);
	fault_end_all(&fc->delayed, ANY_TYPE, -ECANCELED);
	bdev_channel_cancel(fc->base);
}

/* ------- creation and destruction ------- */

static void fault_free(struct fault_bdev *fb)
{
	if (!fb)
		return;
	free((char *)(uintptr_t)fb->opts.base);
	free((char *)(uintptr_t)fb->opts.name);
	free((char *)(uintptr_t)fb->opts.uuid);
	free(fb->channels);
	free(fb->removal);
	free(fb);
}

static void fault_destroy(struct bdev *bdev)
{
	struct fault_bdev *fb = fault_of(bdev);

	control_assert();
	fb->dying = true;
	if (fb->clears)
		return;
	/* First, so that who hears of our end may delete the base. */
	bdev_close(&fb->base);
	bdev_destroyed(bdev);
	fault_free(fb);
}

static void removal_done(struct bdev_result *res)
{
	free(res);
}

static void fault_base_event(struct bdev_desc *desc, enum bdev_event event)
{
	struct fault_bdev *fb = container_of(desc, struct fault_bdev, base);
	struct bdev_result *removal = fb->removal;

	control_assert();
	if (event == BDEV_EVENT_RESIZE) {
		bdev_resized(&fb->bdev, bdev_size(desc->bdev));
		return;
	}
	if (event == BDEV_EVENT_READY) {
		bdev_ready(&fb->bdev);
		return;
	}
	/* -ENODEV when we are on our way out already. */
	fb->removal = NULL;
	if (removal)
		bdev_delete(fb->bdev.name, fb->bdev.ops, removal);
}

static struct fault_bdev *fault_new(const struct bdev_fault_opts *opts, const char *name)
{
	struct fault_bdev *fb = calloc(1, sizeof(*fb));

	if (!fb)
		return NULL;
	fb->opts = *opts;
	fb->opts.base = strdup(opts->base);
	fb->opts.name = strdup(name);
	fb->opts.uuid = opts->uuid ? strdup(opts->uuid) : NULL;
	fb->channels = calloc(MAX(reactor_count(), 1u), sizeof(struct fault_channel *));
	fb->removal = calloc(1, sizeof(*fb->removal));
	if (!fb->opts.base || !fb->opts.name || (opts->uuid && !fb->opts.uuid) || !fb->channels ||
	    !fb->removal) {
		fault_free(fb);
		return NULL;
	}
	fb->removal->fn = removal_done;
	fb->base.event = fault_base_event;
	fb->bdev.ops = opts->kind == BDEV_FAULT_ERROR ? &bdev_error_ops : &bdev_delay_ops;
	if (opts->kind == BDEV_FAULT_DELAY) {
		atomic_store(&fb->latency_us[AVG_READ], opts->avg_read_us);
		atomic_store(&fb->latency_us[P99_READ], opts->p99_read_us);
		atomic_store(&fb->latency_us[AVG_WRITE], opts->avg_write_us);
		atomic_store(&fb->latency_us[P99_WRITE], opts->p99_write_us);
	}
	return fb;
}

CONTROL_ONLY static int fault_attach(struct fault_bdev *fb, char reason[BDEV_REASON_MAX])
{
	const struct bdev *base;
	int rc = bdev_open(fb->opts.base, true, &fb->base);

	if (rc < 0) {
		snprintf(reason, BDEV_REASON_MAX, rc == -ENODEV ? "there is no bdev named '%.100s'" :
			 "'%.100s' is in use and cannot be put under another bdev", fb->opts.base);
		return rc;
	}
	base = fb->base.bdev;
	atomic_store(&fb->bdev.size, bdev_size(base));
	fb->bdev.block_size = base->block_size;
	fb->bdev.physical_block_size = base->physical_block_size;
	fb->bdev.optimal_io_size = base->optimal_io_size;
	fb->bdev.discard_granularity = base->discard_granularity;
	fb->bdev.supported = base->supported;
	fb->bdev.readonly = base->readonly;
	fb->bdev.write_cache = base->write_cache;
	rc = bdev_register(&fb->bdev, fb->opts.name, NULL, fb->opts.uuid, reason);
	if (rc < 0)
		bdev_close(&fb->base);
	return rc;
}

void bdev_fault_create(const struct bdev_fault_opts *opts, struct bdev_result *res)
{
	char reason[BDEV_REASON_MAX] = "out of memory", name[BDEV_NAME_MAX + 3];
	struct fault_bdev *fb;
	int rc;

	if (!opts->base || (!opts->name && opts->kind == BDEV_FAULT_DELAY)) {
		bdev_result_done(res, -EINVAL, NULL, "it needs a %s",
				 opts->base ? "name" : "base bdev");
		return;
	}
	snprintf(name, sizeof(name), "%s%s", opts->name ? "" : "EE_",
		 opts->name ? opts->name : opts->base);
	fb = fault_new(opts, name);
	rc = fb ? fault_attach(fb, reason) : -ENOMEM;
	if (rc < 0) {
		fault_free(fb);
		bdev_result_done(res, rc, NULL, "%s", reason);
		return;
	}
	bdev_result_done(res, 0, &fb->bdev, NULL);
}

const struct bdev_fault_opts *bdev_fault_get_opts(const struct bdev *bdev)
{
	return &fault_of((struct bdev *)(uintptr_t)bdev)->opts;
}

/* ------- changes at run time ------- */

/* By name and kind; answers res itself when there is none. */
CONTROL_ONLY static struct fault_bdev *fault_find(const char *name, const struct bdev_ops *ops,
						  struct bdev_result *res)
{
	struct bdev *bdev = bdev_find(name);

	if (bdev && bdev->ops == ops)
		return fault_of(bdev);
	bdev_result_done(res, -ENODEV, NULL, "there is no %s bdev named '%.100s'", ops->module,
			 name);
	return NULL;
}

/* CLEAR travels to every reactor and ends what its channel holds. */
struct clear {
	struct reactor_visit visit;
	struct fault_bdev *fb;
	struct bdev_result *res;
	unsigned int type;
};

static void clear_on_reactor(struct reactor_visit *v)
{
	struct clear *clear = container_of(v, struct clear, visit);
	struct fault_channel *fc = clear->fb->channels[reactor_index(reactor_current())];

	reactor_assert();
	if (fc)
		fault_end_all(&fc->held, clear->type, -EIO);
}

static void clear_done(struct reactor_visit *v)
{
	struct clear *clear = container_of(v, struct clear, visit);
	struct fault_bdev *fb = clear->fb;
	struct bdev_result *res = clear->res;

	control_assert();
	free(clear);
	bdev_result_done(res, 0, fb->bdev.removing ? NULL : &fb->bdev, NULL);
	/* Last: who was answered may have deleted the bdev on the spot. */
	fb->clears--;
	if (fb->dying)
		fault_destroy(&fb->bdev);
}

CONTROL_ONLY static void fault_clear(struct fault_bdev *fb, unsigned int type,
				     struct bdev_result *res)
{
	struct clear *clear = calloc(1, sizeof(*clear));

	if (!clear) {
		bdev_result_done(res, -ENOMEM, NULL, NULL);
		return;
	}
	for (unsigned int i = 0; i <= ANY_TYPE; i++) {
		if (i == type || type == ANY_TYPE)
			atomic_store(&fb->rules[i].count, 0);
	}
	clear->fb = fb;
	clear->res = res;
	clear->type = type;
	clear->visit.fn = clear_on_reactor;
	clear->visit.done = clear_done;
	fb->clears++;
	reactor_visit_all(&clear->visit);
}

void bdev_fault_inject(const char *name, const struct bdev_fault_injection *inj,
		       struct bdev_result *res)
{
	struct fault_bdev *fb = fault_find(name, &bdev_error_ops, res);
	struct fault_rule *rule;

	if (!fb)
		return;
	if (inj->type > ANY_TYPE || (unsigned)inj->mode > BDEV_FAULT_CORRUPT) {
		bdev_result_done(res, -EINVAL, NULL, "no such type of request or fault");
		return;
	}
	if (inj->mode == BDEV_FAULT_CLEAR) {
		fault_clear(fb, inj->type, res);
		return;
	}
	rule = &fb->rules[inj->type];
	atomic_store(&rule->count, 0);
	atomic_store(&rule->mode, (uint8_t)inj->mode);
	atomic_store(&rule->depth, inj->queue_depth);
	atomic_store(&rule->corrupt_offset, inj->corrupt_offset);
	atomic_store(&rule->corrupt_xor, inj->corrupt_value ? inj->corrupt_value : 0xff);
	/* Pairs with the acquire in rule_hits(). */
	atomic_store_explicit(&rule->count, inj->count, memory_order_release);
	bdev_result_done(res, 0, &fb->bdev, NULL);
}

void bdev_fault_set_latency(const char *name, const char *which, uint64_t us,
			    struct bdev_result *res)
{
	static const char *const names[LATENCIES] = {
		[AVG_READ] = "avg_read", [P99_READ] = "p99_read",
		[AVG_WRITE] = "avg_write", [P99_WRITE] = "p99_write",
	};
	struct fault_bdev *fb = fault_find(name, &bdev_delay_ops, res);
	uint64_t *reported[LATENCIES];

	if (!fb)
		return;
	reported[AVG_READ] = &fb->opts.avg_read_us;
	reported[P99_READ] = &fb->opts.p99_read_us;
	reported[AVG_WRITE] = &fb->opts.avg_write_us;
	reported[P99_WRITE] = &fb->opts.p99_write_us;
	for (int i = 0; i < LATENCIES; i++) {
		if (strcmp(which, names[i]) != 0)
			continue;
		*reported[i] = us;
		atomic_store(&fb->latency_us[i], us);
		bdev_result_done(res, 0, &fb->bdev, NULL);
		return;
	}
	bdev_result_done(res, -EINVAL, NULL, "'%.40s' is not avg_read, p99_read, avg_write or "
			 "p99_write", which);
}

const struct bdev_ops bdev_error_ops = {
	.module = "error",
	.product_name = "Error Injection Disk",
	.channel_size = sizeof(struct fault_channel),
	.channel_prepare = fault_channel_prepare,
	.channel_unprepare = fault_channel_unprepare,
	.channel_open = fault_channel_open,
	.channel_close = fault_channel_close,
	.submit = fault_submit,
	.cancel = fault_cancel,
	.keeps_order = fault_keeps_order,
	.settles = fault_settles,
	.destroy = fault_destroy,
};

const struct bdev_ops bdev_delay_ops = {
	.module = "delay",
	.product_name = "delay",
	.channel_size = sizeof(struct fault_channel),
	.channel_prepare = fault_channel_prepare,
	.channel_unprepare = fault_channel_unprepare,
	.channel_open = fault_channel_open,
	.channel_close = fault_channel_close,
	.submit = fault_submit,
	.cancel = fault_cancel,
	.keeps_order = fault_keeps_order,
	.settles = fault_settles,
	.destroy = fault_destroy,
};
