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

	if (rc > 0)
		atomic_store(&shared, true);
	return rc;
}

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
	atomic_store(&shared, false);
}

bool bdev_is_shared(void)
{
	return atomic_load(&shared);
}
