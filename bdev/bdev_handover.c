/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What bdevs hand over to a successor process, and what a successor has been
 * offered and not taken yet: file descriptors by the bdev's name. The transport
 * is the caller's.
 *
 * Most bdevs are made anew from their configuration and hand over nothing. Those
 * that hold what a second process could not get while the first lives, or not at
 * all (image locks, the contents of memory), hand over the fds that carry it; the
 * create call that finds fds under its bdev's name uses them instead.
 *
 * While two processes share them, either may have to give up: the successor when
 * it cannot take over, the predecessor when it has been succeeded. So neither may
 * undo what the other goes on with: image locks belong to the open file, which is
 * one for both. bdev_is_shared() says that such things are to be left to the last
 * close.
 */
#include "bdev/bdev_backend.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Owned by the control thread, with its fds. */
struct offer {
	struct list node;
	char name[BDEV_NAME_MAX];
	unsigned int count;
	int fds[BDEV_HANDOVER_FDS];
};

static struct list offers = LIST_INIT(offers);
static atomic_bool shared;	/* read by workers, too */

static void close_fds(const int *fds, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++)
		close(fds[i]);
}

CONTROL_ONLY static struct offer *find_offer(const char *name)
{
	struct offer *offer;

	list_for_each(offer, &offers, node) {
		if (!strcmp(offer->name, name))
			return offer;
	}
	return NULL;
}

int bdev_handover(struct bdev *bdev, int fds[BDEV_HANDOVER_FDS])
{
	int rc = bdev->ops->handover ? bdev->ops->handover(bdev, fds) : 0;

	if (rc >= 0)
		atomic_store(&shared, true);
	return rc;
}

const struct bdev *bdev_handover_busy(void)
{
	struct bdev *bdev = NULL;

	while ((bdev = bdev_next(bdev))) {
		if (bdev->ops->handover_busy && bdev->ops->handover_busy(bdev))
			return bdev;
	}
	return NULL;
}

/* ------- caches ------- */

struct flush_all {
	struct bdev_result *res;
	unsigned int pending;
	int status;
	char name[BDEV_NAME_MAX];	/* of what failed */
};

/* One bdev's, a user of it meanwhile; on its reactor between the two messages. */
struct flush {
	struct bdev_io io;
	struct bdev_desc desc;
	struct msg start, end;
	struct flush_all *all;
	int status;
};

CONTROL_ONLY static void flush_all_put(struct flush_all *all)
{
	if (--all->pending)
		return;
	if (all->status < 0)
		bdev_result_done(all->res, all->status, NULL, "%.100s: cannot be flushed: %s",
				 all->name, strerror(-all->status));
	else
		bdev_result_done(all->res, 0, NULL, NULL);
	free(all);
}

CONTROL_ONLY static void flush_failed(struct flush_all *all, const struct bdev *bdev, int status)
{
	if (all->status < 0)
		return;
	all->status = status;
	memcpy(all->name, bdev->name, sizeof(all->name));
}

static void flush_end(struct msg *msg)
{
	struct flush *f = container_of(msg, struct flush, end);

	control_assert();
	if (f->status < 0)
		flush_failed(f->all, f->desc.bdev, f->status);
	bdev_channel_put(f->io.ch);
	bdev_close(&f->desc);
	flush_all_put(f->all);
	free(f);
}

static void flush_done(struct bdev_io *io, int status)
{
	struct flush *f = container_of(io, struct flush, io);

	f->status = status;
	f->end.fn = flush_end;
	control_post(&f->end);
}

static void flush_start(struct msg *msg)
{
	struct flush *f = container_of(msg, struct flush, start);

	reactor_assert();
	bdev_submit(&f->io);
}

/* It ends soon by itself; a bdev that is deleted waits for it. */
static void flush_event(struct bdev_desc *desc, enum bdev_event event)
{
	(void)desc;
	(void)event;
}

CONTROL_ONLY static int flush_bdev(struct flush_all *all, struct bdev *bdev)
{
	size_t size = (sizeof(struct flush) + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1);
	struct flush *f = aligned_alloc(CACHE_LINE, size);

	if (!f)
		return -ENOMEM;
	memset(f, 0, size);
	f->all = all;
	f->desc.event = flush_event;
	f->desc.bdev = bdev;
	/* Not bdev_open(): a claim is no obstacle, the data below a fault bdev count as well. */
	list_add_tail(&bdev->descs, &f->desc.node);
	f->io.ch = bdev_channel_get(&f->desc, reactor_by_index(0));
	if (!f->io.ch) {
		int rc = -errno;

		list_del(&f->desc.node);
		free(f);
		/* Nobody uses it, and what it does is to empty its cache: see bdev_handover_busy(). */
		return rc == -EAGAIN ? 0 : rc;
	}
	f->io.type = BDEV_FLUSH;
	f->io.done = flush_done;
	f->start.fn = flush_start;
	all->pending++;
	reactor_post(reactor_by_index(0), &f->start);
	return 0;
}

void bdev_handover_flush(struct bdev_result *res)
{
	struct flush_all *all = calloc(1, sizeof(*all));
	struct bdev *bdev = NULL;
	int rc;

	if (!all) {
		bdev_result_done(res, -ENOMEM, NULL, NULL);
		return;
	}
	all->res = res;
	all->pending = 1;
	while ((bdev = bdev_next(bdev))) {
		if (!bdev_has_own_cache(bdev))
			continue;
		rc = flush_bdev(all, bdev);
		if (rc < 0)
			flush_failed(all, bdev, rc);
	}
	flush_all_put(all);
}

/* ------- offers ------- */

int bdev_adopt_offer(const char *name, const int *fds, unsigned int count)
{
	size_t len = strlen(name);
	struct offer *offer = NULL;
	int rc = -EINVAL;

	if (len == 0 || len >= BDEV_NAME_MAX || count == 0 || count > BDEV_HANDOVER_FDS)
		goto fail;
	rc = -EEXIST;
	if (find_offer(name))
		goto fail;
	rc = -ENOMEM;
	offer = calloc(1, sizeof(*offer));
	if (!offer)
		goto fail;
	memcpy(offer->name, name, len + 1);
	memcpy(offer->fds, fds, count * sizeof(*fds));
	offer->count = count;
	list_add_tail(&offers, &offer->node);
	atomic_store(&shared, true);
	return 0;

fail:
	close_fds(fds, count);
	return rc;
}

unsigned int bdev_adopt_take(const char *name, int fds[BDEV_HANDOVER_FDS])
{
	struct offer *offer = name ? find_offer(name) : NULL;
	unsigned int count;

	if (!offer)
		return 0;
	count = offer->count;
	memcpy(fds, offer->fds, count * sizeof(*fds));
	list_del(&offer->node);
	free(offer);
	return count;
}

unsigned int bdev_adopt_clear(void)
{
	struct offer *offer, *tmp;
	unsigned int left = 0;

	list_for_each_safe(offer, tmp, &offers, node) {
		list_del(&offer->node);
		close_fds(offer->fds, offer->count);
		free(offer);
		left++;
	}
	return left;
}

void bdev_handover_end(void)
{
	struct bdev *bdev = NULL;

	atomic_store(&shared, false);
	while ((bdev = bdev_next(bdev))) {
		if (bdev->ops->handover_end)
			bdev->ops->handover_end(bdev);
	}
}

bool bdev_is_shared(void)
{
	return atomic_load(&shared);
}
