/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The block layer between users and backends: names, descriptors, channels,
 * the checks and statistics of each request, and the end of a bdev.
 *
 * Ownership. The control thread owns bdevs, descriptors and the table of
 * channels; a reactor owns the inside of its channels between the open message
 * and the close message. Both travel through one inbox, so a user's own message
 * to the reactor, posted after bdev_channel_get(), finds the channel open, and
 * the close, posted after the user's last request came home, finds it idle.
 *
 * A channel that is being closed has left the table: getting the channel again
 * meanwhile makes a new one. A bdev is destroyed when it is deleted, has no
 * descriptor and its last channel is gone.
 */
#include "bdev/bdev_backend.h"

#include "reactor/control.h"
#include "reactor/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* How long the answer to a delete may wait for the bdev's requests. */
#define ANSWER_MS 500

static bool (*name_reserved)(const char *name);
static struct list bdevs = LIST_INIT(bdevs);
static unsigned int bdev_count;		/* with those being destroyed */
static void (*delete_all_done)(void);	/* set while all are being deleted */

/* ------- requests ------- */

COLD REACTOR_ONLY static void submit_refused(struct bdev_channel *ch, struct bdev_io *io)
{
	int status = -EINVAL;

	if (ch->error)
		status = ch->error;
	else if (!bdev_supports(ch->bdev, io->type))
		status = -EOPNOTSUPP;
	else if (!(ch->allowed & (1u << io->type)))
		status = -EROFS;
	bdev_io_done_later(io, status);
}

void bdev_submit(struct bdev_io *io)
{
	struct bdev_channel *ch = io->ch;

	io->submit_tsc = reactor_now();
	io->resumed = 0;
	counter_add(&ch->inflight, 1);
	if (unlikely(!(ch->allowed & (1u << io->type)) ||
		     !range_ok(io->offset, io->length, bdev_size(ch->bdev)) ||
		     ((io->offset | io->length) & ch->align_mask) ||
		     (io->length == 0 && io->type != BDEV_FLUSH))) {
		submit_refused(ch, io);
		return;
	}
	ch->ops->submit(io);
}

void bdev_io_done(struct bdev_io *io, int status)
{
	struct bdev_channel *ch = io->ch;
	struct bdev_stats *st = &ch->stats;
	unsigned int type = io->type;

	counter_add(&ch->inflight, (uint64_t)-1);
	if (likely(status == 0)) {
		struct bdev_latency *lat = &st->latency[type];
		uint64_t ticks = reactor_now() - io->submit_tsc;

		counter_add(&st->ops[type], 1);
		counter_add(&st->bytes[type], io->length);
		counter_add(&lat->ticks, ticks);
		if (unlikely(ticks > counter_read(&lat->max)))
			counter_set(&lat->max, ticks);
		if (unlikely(ticks < counter_read(&lat->min)))
			counter_set(&lat->min, ticks);
	} else {
		counter_add(&st->errors[type], 1);
	}
	io->done(io, status);
}

static void run_done_list(struct defer *d)
{
	struct bdev_channel *ch = container_of(d, struct bdev_channel, complete);
	struct bdev_io *io = ch->done_first;

	reactor_assert();
	ch->done_first = NULL;
	ch->done_last = &ch->done_first;
	while (io) {
		struct bdev_io *next = io->next;

		bdev_io_done(io, io->status);
		io = next;
	}
}

void bdev_io_done_later(struct bdev_io *io, int status)
{
	struct bdev_channel *ch = io->ch;

	io->status = status;
	io->next = NULL;
	*ch->done_last = io;
	ch->done_last = &io->next;
	reactor_defer(DEFER_COMPLETE, &ch->complete);
}

static void io_came_home(struct msg *msg)
{
	struct bdev_io *io = container_of(msg, struct bdev_io, msg);

	reactor_assert();
	bdev_io_done(io, io->status);
}

void bdev_io_done_foreign(struct bdev_io *io, int status)
{
	io->status = status;
	io->msg.fn = io_came_home;
	reactor_post(io->ch->reactor, &io->msg);
}

static void retry_waiting(struct defer *d)
{
	struct bdev_channel *ch = container_of(d, struct bdev_channel, retry);
	struct bdev_io *io = ch->wait_first;

	/* What has to wait again comes back in order, in the next pass. */
	ch->wait_first = NULL;
	ch->wait_last = &ch->wait_first;
	while (io) {
		struct bdev_io *next = io->next;

		ch->ops->submit(io);
		io = next;
	}
}

void bdev_io_wait(struct bdev_io *io)
{
	struct bdev_channel *ch = io->ch;

	io->next = NULL;
	*ch->wait_last = io;
	ch->wait_last = &io->next;
	reactor_defer(DEFER_PUBLISH, &ch->retry);
}

/* ------- names ------- */

static bool uuid_ok(const char *s)
{
	for (int i = 0; i < BDEV_UUID_STR - 1; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (dash ? s[i] != '-' : !strchr("0123456789abcdefABCDEF", s[i]) || !s[i])
			return false;
	}
	return s[BDEV_UUID_STR - 1] == '\0';
}

static int uuid_random(char out[BDEV_UUID_STR])
{
	unsigned char b[16];

	if (getrandom(b, sizeof(b), 0) != sizeof(b))
		return -EIO;
	b[6] = (unsigned char)((b[6] & 0x0f) | 0x40);
	b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
	snprintf(out, BDEV_UUID_STR,
		 "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
		 b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
		 b[15]);
	return 0;
}

struct bdev *bdev_find(const char *name_or_uuid)
{
	struct bdev *bdev;

	list_for_each(bdev, &bdevs, node) {
		if (!strcmp(bdev->name, name_or_uuid) || !strcasecmp(bdev->uuid, name_or_uuid))
			return bdev;
	}
	return NULL;
}

const char *bdev_product_name(const struct bdev *bdev)
{
	return bdev->ops->product_name;
}

struct bdev *bdev_next(struct bdev *after)
{
	struct list *next = after ? after->node.next : bdevs.next;

	return next == &bdevs ? NULL : list_entry(next, struct bdev, node);
}

bool bdev_has_own_cache(const struct bdev *bdev)
{
	return bdev->ops->own_cache && bdev->write_cache;
}

bool bdev_keeps_order(struct bdev *bdev)
{
	return bdev->ops->keeps_order ? bdev->ops->keeps_order(bdev) : bdev->ops->own_storage;
}

bool bdev_settles(struct bdev *bdev)
{
	return bdev->ops->settles && bdev->ops->settles(bdev);
}

void bdev_reserve_names(bool (*reserved)(const char *name))
{
	name_reserved = reserved;
}

int bdev_check_name(const char *name, char reason[BDEV_REASON_MAX])
{
	if (!name)
		return 0;
	if (name[0] == '\0' || strlen(name) >= BDEV_NAME_MAX) {
		snprintf(reason, BDEV_REASON_MAX, "a bdev name has 1 to %d characters",
			 BDEV_NAME_MAX - 1);
		return -EINVAL;
	}
	if (bdev_find(name)) {
		snprintf(reason, BDEV_REASON_MAX, "a bdev named '%.100s' exists already", name);
		return -EEXIST;
	}
	return 0;
}

static int check_geometry(const struct bdev *bdev, char reason[BDEV_REASON_MAX])
{
	if (bdev->block_size != 512 && bdev->block_size != 4096) {
		snprintf(reason, BDEV_REASON_MAX, "block_size %u is not 512 or 4096",
			 bdev->block_size);
		return -EINVAL;
	}
	if (bdev->physical_block_size < bdev->block_size ||
	    (bdev->physical_block_size & (bdev->physical_block_size - 1))) {
		snprintf(reason, BDEV_REASON_MAX,
			 "physical_block_size %u is not a power of two from block_size up",
			 bdev->physical_block_size);
		return -EINVAL;
	}
	if (bdev_size(bdev) == 0 || bdev_size(bdev) % bdev->block_size ||
	    bdev_size(bdev) > INT64_MAX) {
		snprintf(reason, BDEV_REASON_MAX,
			 "a size of %llu bytes is not a positive multiple of block_size %u",
			 (unsigned long long)bdev_size(bdev), bdev->block_size);
		return -EINVAL;
	}
	return 0;
}

static void stats_init(struct bdev_stats *st)
{
	memset(st, 0, sizeof(*st));
	for (int i = 0; i < BDEV_IO_TYPES; i++)
		counter_set(&st->latency[i].min, UINT64_MAX);
}

int bdev_register(struct bdev *bdev, const char *name, const char *prefix, const char *uuid,
		  char reason[BDEV_REASON_MAX])
{
	int rc = bdev_check_name(name, reason);

	if (delete_all_done) {
		snprintf(reason, BDEV_REASON_MAX, "the target is shutting down");
		return -ESHUTDOWN;
	}
	if (rc == 0)
		rc = check_geometry(bdev, reason);
	if (rc < 0)
		return rc;
	if (uuid && !uuid_ok(uuid)) {
		snprintf(reason, BDEV_REASON_MAX, "'%.40s' is not a UUID", uuid);
		return -EINVAL;
	}
	if (uuid && bdev_find(uuid)) {
		snprintf(reason, BDEV_REASON_MAX, "a bdev with UUID %s exists already", uuid);
		return -EEXIST;
	}
	if (uuid)
		snprintf(bdev->uuid, sizeof(bdev->uuid), "%s", uuid);
	else if (uuid_random(bdev->uuid) < 0)
		return -EIO;

	if (name)
		snprintf(bdev->name, sizeof(bdev->name), "%s", name);
	for (unsigned int i = 0; !name; i++) {
		snprintf(bdev->name, sizeof(bdev->name), "%s%u", prefix, i);
		if (!bdev_find(bdev->name) && !(name_reserved && name_reserved(bdev->name)))
			break;
	}
	bdev->channels = calloc(MAX(reactor_count(), 1u), sizeof(struct bdev_channel *));
	if (!bdev->channels) {
		snprintf(reason, BDEV_REASON_MAX, "out of memory");
		return -ENOMEM;
	}
	list_init(&bdev->descs);
	list_init(&bdev->closing);
	stats_init(&bdev->closed_stats);
	list_add_tail(&bdevs, &bdev->node);
	bdev_count++;
	bdev_note(bdev, BDEV_NOTE_REGISTER);
	log_info("%s: %s, %llu bytes in blocks of %u", bdev->name, bdev->ops->product_name,
		 (unsigned long long)bdev_size(bdev), bdev->block_size);
	return 0;
}

void bdev_result_done(struct bdev_result *res, int status, struct bdev *bdev, const char *fmt, ...)
{
	va_list ap;

	res->status = status;
	res->bdev = bdev;
	res->reason[0] = '\0';
	if (fmt) {
		va_start(ap, fmt);
		vsnprintf(res->reason, sizeof(res->reason), fmt, ap);
		va_end(ap);
	} else if (status < 0) {
		snprintf(res->reason, sizeof(res->reason), "%s", strerror(-status));
	}
	res->fn(res);
}

/* ------- descriptors ------- */

int bdev_open(const char *name, bool claim, struct bdev_desc *desc)
{
	struct bdev *bdev = bdev_find(name);

	if (!bdev)
		return -ENODEV;
	if (bdev->claimed || (claim && !list_empty(&bdev->descs)))
		return -EPERM;
	bdev->claimed = claim;
	desc->bdev = bdev;
	list_add_tail(&bdev->descs, &desc->node);
	return 0;
}

CONTROL_ONLY static void destroy_if_unused(struct bdev *bdev)
{
	if (bdev->removing && list_empty(&bdev->descs) && bdev->channel_count == 0)
		bdev->ops->destroy(bdev);
}

void bdev_close(struct bdev_desc *desc)
{
	struct bdev *bdev = desc->bdev;

	desc->bdev = NULL;
	list_del(&desc->node);
	if (list_empty(&bdev->descs))
		bdev->claimed = false;
	destroy_if_unused(bdev);
}

CONTROL_ONLY static void tell(struct bdev *bdev, enum bdev_event event)
{
	struct bdev_desc *desc, *tmp;

	list_for_each_safe(desc, tmp, &bdev->descs, node)
		desc->event(desc, event);
}

void bdev_ready(struct bdev *bdev)
{
	tell(bdev, BDEV_EVENT_READY);
}

void bdev_resized(struct bdev *bdev, uint64_t size)
{
	if (size == bdev_size(bdev))
		return;
	log_notice("%s: size changes from %llu to %llu bytes", bdev->name,
		   (unsigned long long)bdev_size(bdev), (unsigned long long)size);
	atomic_store_explicit(&bdev->size, size, memory_order_relaxed);
	bdev_note(bdev, BDEV_NOTE_RESIZE);
	tell(bdev, BDEV_EVENT_RESIZE);
}

/* ------- channels ------- */

static void channel_open(struct msg *msg)
{
	struct bdev_channel *ch = container_of(msg, struct bdev_channel, open_msg);

	reactor_assert();
	if (ch->ops->channel_open)
		ch->error = ch->ops->channel_open(ch);
	if (ch->error) {
		ch->allowed = 0;
		log_error("%s: cannot work on core %u: %s", ch->bdev->name,
			  reactor_cpu(ch->reactor), strerror(-ch->error));
	}
}

static void latency_fold(struct bdev_latency *to, const struct bdev_latency *from)
{
	counter_add(&to->ticks, counter_read(&from->ticks));
	if (counter_read(&from->max) > counter_read(&to->max))
		counter_set(&to->max, counter_read(&from->max));
	if (counter_read(&from->min) < counter_read(&to->min))
		counter_set(&to->min, counter_read(&from->min));
}

static void stats_fold(struct bdev_stats *to, const struct bdev_stats *from)
{
	for (int i = 0; i < BDEV_IO_TYPES; i++) {
		counter_add(&to->ops[i], counter_read(&from->ops[i]));
		counter_add(&to->bytes[i], counter_read(&from->bytes[i]));
		counter_add(&to->errors[i], counter_read(&from->errors[i]));
		latency_fold(&to->latency[i], &from->latency[i]);
	}
}

static void channel_gone(struct msg *msg)
{
	struct bdev_channel *ch = container_of(msg, struct bdev_channel, msg);
	struct bdev *bdev = ch->bdev;

	control_assert();
	if (ch->ops->channel_unprepare)
		ch->ops->channel_unprepare(ch);
	list_del(&ch->closing);
	if (!ch->forget)
		stats_fold(&bdev->closed_stats, &ch->stats);
	bdev->channel_count--;
	free(ch);
	destroy_if_unused(bdev);
}

static void channel_close(struct msg *msg)
{
	struct bdev_channel *ch = container_of(msg, struct bdev_channel, msg);

	reactor_assert();
	if (ch->ops->channel_close && !ch->error)
		ch->ops->channel_close(ch);
	ch->msg.fn = channel_gone;
	control_post(&ch->msg);
}

static struct bdev_channel *channel_new(struct bdev *bdev, struct reactor *r)
{
	size_t size = sizeof(struct bdev_channel) + bdev->ops->channel_size;
	struct bdev_channel *ch;

	size = (size + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1);
	ch = aligned_alloc(CACHE_LINE, size);
	if (!ch)
		return NULL;
	memset(ch, 0, size);
	ch->bdev = bdev;
	ch->ops = bdev->ops;
	ch->reactor = r;
	ch->align_mask = bdev->block_size - 1;
	ch->allowed = bdev->supported;
	if (bdev->readonly)
		ch->allowed &= 1u << BDEV_READ | 1u << BDEV_FLUSH;
	ch->complete.fn = run_done_list;
	ch->done_last = &ch->done_first;
	ch->retry.fn = retry_waiting;
	ch->wait_last = &ch->wait_first;
	stats_init(&ch->stats);
	return ch;
}

struct bdev_channel *bdev_channel_get(struct bdev_desc *desc, struct reactor *r)
{
	struct bdev *bdev = desc->bdev;
	struct bdev_channel **slot = &bdev->channels[reactor_index(r)];

	if (!*slot) {
		struct bdev_channel *ch = channel_new(bdev, r);

		int rc;

		if (!ch) {
			errno = ENOMEM;
			return NULL;
		}
		rc = bdev->ops->channel_prepare ? bdev->ops->channel_prepare(ch) : 0;
		if (rc < 0) {
			free(ch);
			errno = -rc;
			return NULL;
		}
		*slot = ch;
		bdev->channel_count++;
		ch->open_msg.fn = channel_open;
		reactor_post(r, &ch->open_msg);
	}
	(*slot)->refs++;
	return *slot;
}

void bdev_channel_put(struct bdev_channel *ch)
{
	if (!ch || --ch->refs > 0)
		return;
	ch->bdev->channels[reactor_index(ch->reactor)] = NULL;
	list_add_tail(&ch->bdev->closing, &ch->closing);
	ch->msg.fn = channel_close;
	reactor_post(ch->reactor, &ch->msg);
}

void bdev_channel_cancel(struct bdev_channel *ch)
{
	if (ch->ops->cancel && !ch->error)
		ch->ops->cancel(ch);
}

struct bdev *bdev_channel_bdev(const struct bdev_channel *ch)
{
	return ch->bdev;
}

uint64_t bdev_channel_inflight(const struct bdev_channel *ch)
{
	return counter_read(&ch->inflight);
}

/* ------- the end of a bdev ------- */

static void channel_cancelled(struct msg *msg)
{
	struct bdev_channel *ch = container_of(msg, struct bdev_channel, cancel_msg);

	control_assert();
	bdev_channel_put(ch);
}

static void channel_cancel(struct msg *msg)
{
	struct bdev_channel *ch = container_of(msg, struct bdev_channel, cancel_msg);

	reactor_assert();
	bdev_channel_cancel(ch);
	ch->cancel_msg.fn = channel_cancelled;
	control_post(&ch->cancel_msg);
}

/* Users' requests may take for ever: the caller has waited long enough. */
static void answer_late(struct control_timer *t)
{
	struct bdev *bdev = container_of(t, struct bdev, answer_timer);
	struct bdev_result *res = bdev->deleting;

	control_assert();
	log_notice("%s: deleted, but requests are still in flight; it is closed when they end",
		   bdev->name);
	bdev->deleting = NULL;
	bdev_result_done(res, 0, NULL, NULL);
}

CONTROL_ONLY static void bdev_remove(struct bdev *bdev, struct bdev_result *res)
{
	bdev_note(bdev, BDEV_NOTE_UNREGISTER);
	bdev->removing = true;
	bdev->deleting = res;
	bdev->answer_timer.fn = answer_late;
	if (res)
		control_timer_start(&bdev->answer_timer, ANSWER_MS);
	list_del(&bdev->node);
	/* Keeps it from being destroyed under this function. */
	bdev->channel_count++;
	/* What is held back without end must not keep its users from leaving. */
	for (unsigned int i = 0; i < reactor_count(); i++) {
		struct bdev_channel *ch = bdev->channels[i];

		if (!ch)
			continue;
		ch->refs++;
		ch->cancel_msg.fn = channel_cancel;
		reactor_post(ch->reactor, &ch->cancel_msg);
	}
	tell(bdev, BDEV_EVENT_REMOVE);
	bdev->channel_count--;
	destroy_if_unused(bdev);
}

void bdev_delete(const char *name, const struct bdev_ops *ops, struct bdev_result *res)
{
	struct bdev *bdev = bdev_find(name);

	if (!bdev || (ops && bdev->ops != ops)) {
		bdev_result_done(res, -ENODEV, NULL, "there is no %s%sbdev named '%.100s'",
				 ops ? ops->module : "", ops ? " " : "", name);
		return;
	}
	if (bdev->claimed) {
		bdev_result_done(res, -EBUSY, NULL, "'%.100s' is the base of another bdev", name);
		return;
	}
	bdev_remove(bdev, res);
}

void bdev_destroyed(struct bdev *bdev)
{
	struct bdev_result *res = bdev->deleting;

	control_timer_stop(&bdev->answer_timer);
	free(bdev->channels);
	bdev->channels = NULL;
	bdev_count--;
	if (res)
		bdev_result_done(res, 0, NULL, NULL);
	if (bdev_count == 0 && delete_all_done) {
		void (*done)(void) = delete_all_done;

		delete_all_done = NULL;
		done();
	}
}

void bdev_delete_all(void (*done)(void))
{
	if (bdev_count == 0) {
		done();
		return;
	}
	delete_all_done = done;
	/* Newest first: a bdev over another goes before its base. */
	while (!list_empty(&bdevs))
		bdev_remove(list_entry(bdevs.prev, struct bdev, node), NULL);
}

/* ------- statistics ------- */

void bdev_get_stats(const struct bdev *bdev, struct bdev_stats *out)
{
	const struct bdev_channel *ch;

	stats_init(out);
	stats_fold(out, &bdev->closed_stats);
	list_for_each_aligned(ch, &bdev->closing, closing) {
		if (!ch->forget)
			stats_fold(out, &ch->stats);
	}
	for (unsigned int i = 0; i < reactor_count(); i++) {
		if (bdev->channels[i])
			stats_fold(out, &bdev->channels[i]->stats);
	}
}

bool bdev_get_channel_stats(const struct bdev *bdev, unsigned int reactor, struct bdev_stats *out)
{
	if (!bdev->channels[reactor])
		return false;
	stats_init(out);
	stats_fold(out, &bdev->channels[reactor]->stats);
	return true;
}

static void stats_reset(struct bdev_stats *st, enum bdev_reset what)
{
	if (what == BDEV_RESET_ALL) {
		stats_init(st);
		return;
	}
	for (int i = 0; i < BDEV_IO_TYPES; i++) {
		if (what == BDEV_RESET_ERRORS) {
			counter_set(&st->errors[i], 0);
			continue;
		}
		counter_set(&st->latency[i].max, 0);
		counter_set(&st->latency[i].min, UINT64_MAX);
	}
}

/*
 * A channel's statistics have one writer, its reactor; so the reset travels
 * there, and holds the channels meanwhile.
 */
struct reset {
	struct reactor_visit visit;
	struct bdev_result *res;
	enum bdev_reset what;
	unsigned int count;
	struct bdev_channel *channels[];
};

static void reset_on_reactor(struct reactor_visit *v)
{
	struct reset *reset = container_of(v, struct reset, visit);

	for (unsigned int i = 0; i < reset->count; i++) {
		if (reset->channels[i]->reactor == reactor_current())
			stats_reset(&reset->channels[i]->stats, reset->what);
	}
}

static void reset_done(struct reactor_visit *v)
{
	struct reset *reset = container_of(v, struct reset, visit);

	control_assert();
	for (unsigned int i = 0; i < reset->count; i++)
		bdev_channel_put(reset->channels[i]);
	bdev_result_done(reset->res, 0, NULL, NULL);
	free(reset);
}

CONTROL_ONLY static void reset_collect(struct reset *reset, struct bdev *bdev, enum bdev_reset what)
{
	struct bdev_channel *ch;

	stats_reset(&bdev->closed_stats, what);
	/* A partial reset misses what is just being closed: not worth more. */
	list_for_each_aligned(ch, &bdev->closing, closing)
		ch->forget |= what == BDEV_RESET_ALL;
	for (unsigned int i = 0; i < reactor_count(); i++) {
		ch = bdev->channels[i];
		if (!ch)
			continue;
		ch->refs++;
		reset->channels[reset->count++] = ch;
	}
}

void bdev_reset_stats(struct bdev *only, enum bdev_reset what, struct bdev_result *res)
{
	unsigned int count = 0;
	struct reset *reset;
	struct bdev *bdev;

	list_for_each(bdev, &bdevs, node)
		count += bdev->channel_count;
	reset = calloc(1, sizeof(*reset) + count * sizeof(struct bdev_channel *));
	if (!reset) {
		bdev_result_done(res, -ENOMEM, NULL, NULL);
		return;
	}
	reset->res = res;
	reset->what = what;
	reset->visit.fn = reset_on_reactor;
	reset->visit.done = reset_done;
	list_for_each(bdev, &bdevs, node) {
		if (!only || bdev == only)
			reset_collect(reset, bdev, what);
	}
	reactor_visit_all(&reset->visit);
}

/* ------- iovecs ------- */

static void iov_copy(const struct iovec *iov, uint32_t iovcnt, uint64_t skip, char *buf, size_t len,
		     bool to_buf)
{
	for (uint32_t i = 0; i < iovcnt && len > 0; i++) {
		size_t n;

		if (skip >= iov[i].iov_len) {
			skip -= iov[i].iov_len;
			continue;
		}
		n = MIN(iov[i].iov_len - (size_t)skip, len);
		if (to_buf)
			memcpy(buf, (char *)iov[i].iov_base + skip, n);
		else
			memcpy((char *)iov[i].iov_base + skip, buf, n);
		skip = 0;
		buf += n;
		len -= n;
	}
}

void bdev_iov_to_buf(const struct iovec *iov, uint32_t iovcnt, uint64_t skip, void *buf, size_t len)
{
	iov_copy(iov, iovcnt, skip, buf, len, true);
}

void bdev_buf_to_iov(const void *buf, const struct iovec *iov, uint32_t iovcnt, uint64_t skip,
		     size_t len)
{
	/* Only read from: to_buf is false. */
	iov_copy(iov, iovcnt, skip, (char *)(uintptr_t)buf, len, false);
}
