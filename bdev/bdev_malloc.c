/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * malloc: a disk in memory, in huge pages of a NUMA node where there are any.
 * It forgets everything with the bdev, but is handed over with its contents: the
 * memory is that of a file, whose fd the successor maps. Requests are copied on the
 * reactor; two reactors may race on a block as two writers of a real disk do, and no
 * worse.
 *
 * Copying is the one work of a reactor that takes long, a microsecond for each 10
 * KiB or so. Therefore a channel copies a share a pass, small where others are busy
 * on the same core. What fits is copied once the pass has all its requests, each while
 * the next one's data come from memory; the rest waits, and is copied when all else of
 * the pass is done (DEFER_BULK).
 *
 * The memory is allocated (and so zeroed) and freed on a worker, to which the
 * malloc_bdev belongs meanwhile.
 */
#include "bdev/bdev_backend.h"
#include "bdev/stream.h"

#include "hugepages/hugepages.h"
#include "reactor/log.h"
#include "reactor/worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STREAM_MIN 4096u	/* bytes: smaller writes are read again soon, perhaps */
#define PREFETCH 512u

/* Bytes a pass: alone on the core, and with others. */
#define SHARE_ALONE (4u << 20)
#define SHARE_BESIDE (8u << 10)

/* Owned by the channel's reactor. */
struct malloc_channel {
	struct bdev_io *first, **last;	/* scratch[0]: bytes of it that are copied */
	struct defer more;
	uint64_t pass;			/* reactor_now() of the pass that `left` is of */
	uint64_t left;
};

/* Owned by the control thread; reactors read and write what `area` maps. */
struct malloc_bdev {
	struct bdev bdev;
	struct bdev_malloc_opts opts;	/* the strings are ours */
	struct huge_area area;
	int node;		/* where its memory should be, -1: anywhere */
	int fd;			/* of the area's memory; before that, a predecessor's or -1 */
	struct job job;
	struct bdev_result *res;
	int status;
	char reason[BDEV_REASON_MAX];
};

static struct malloc_bdev *malloc_of(struct bdev *bdev)
{
	return container_of(bdev, struct malloc_bdev, bdev);
}

static void malloc_free(struct malloc_bdev *mb)
{
	if (!mb)
		return;
	free((char *)(uintptr_t)mb->opts.name);
	free((char *)(uintptr_t)mb->opts.uuid);
	free(mb);
}

/* ------- requests ------- */

static void malloc_write(const struct bdev_io *io, uint64_t at, char *to, uint64_t len)
{
	bool streamed = false;

	for (uint32_t i = 0; i < io->iovcnt && len > 0; i++) {
		const char *from = io->iov[i].iov_base;
		uint64_t n = io->iov[i].iov_len;

		if (at >= n) {
			at -= n;
			continue;
		}
		from += at;
		n = MIN(n - at, len);
		at = 0;
		if (n >= STREAM_MIN && (((uintptr_t)to | n) & 63) == 0 && stream_pays()) {
			stream_copy(to, from, n);
			streamed = true;
		} else {
			memcpy(to, from, n);
		}
		to += n;
		len -= n;
	}
	if (streamed)
		stream_end();
}

static char *malloc_data(const struct bdev_io *io)
{
	return (char *)malloc_of(io->ch->bdev)->area.addr + io->offset;
}

/* One piece of a request: `len` bytes from `at` bytes into it. */
static void malloc_piece(const struct bdev_io *io, uint64_t at, uint64_t len)
{
	char *data = malloc_data(io) + at;

	switch (io->type) {
	case BDEV_READ:
		bdev_buf_to_iov(data, io->iov, io->iovcnt, at, len);
		break;
	case BDEV_WRITE:
		malloc_write(io, at, data, len);
		break;
	case BDEV_DISCARD:
	case BDEV_WRITE_ZEROES:
		memset(data, 0, len);
		break;
	default:
		break;
	}
}

/*
 * The next request's first lines come while this one is copied; the hardware sees to the
 * rest. Random 4 KiB reads go 1.15 times as fast.
 */
static inline void malloc_prefetch(const struct bdev_io *io)
{
	const char *from;

	if (io->type != BDEV_READ && io->type != BDEV_WRITE)
		return;
	from = io->type == BDEV_READ ? malloc_data(io) : io->iov[0].iov_base;
	for (unsigned int i = 0; i < PREFETCH; i += CACHE_LINE)
		__builtin_prefetch(from + i);
}

REACTOR_ONLY static uint64_t share_left(struct malloc_channel *mc)
{
	if (mc->pass != reactor_now()) {
		mc->pass = reactor_now();
		mc->left = reactor_is_shared() ? SHARE_BESIDE : SHARE_ALONE;
	}
	return mc->left;
}

static void malloc_more(struct defer *d)
{
	struct malloc_channel *mc = container_of(d, struct malloc_channel, more);
	uint64_t left;

	reactor_assert();
	for (left = share_left(mc); mc->first && left > 0; left = mc->left) {
		struct bdev_io *io = mc->first;
		uint64_t len = MIN(io->length - io->scratch[0], left);

		if (io->next)
			malloc_prefetch(io->next);
		malloc_piece(io, io->scratch[0], len);
		io->scratch[0] += len;
		mc->left -= len;
		if (io->scratch[0] < io->length)
			break;
		mc->first = io->next;
		if (!mc->first)
			mc->last = &mc->first;
		bdev_io_done(io, 0);
	}
	if (mc->first)
		reactor_defer(DEFER_BULK, d);
}

static void malloc_submit(struct bdev_io *io)
{
	struct malloc_channel *mc = bdev_channel_ctx(io->ch);

	reactor_assert();
	io->scratch[0] = 0;
	io->next = NULL;
	*mc->last = io;
	mc->last = &io->next;
	reactor_defer(DEFER_COMPLETE, &mc->more);
}

static int malloc_channel_open(struct bdev_channel *ch)
{
	struct malloc_channel *mc = bdev_channel_ctx(ch);

	mc->last = &mc->first;
	mc->more.fn = malloc_more;
	return 0;
}

/* ------- creation ------- */

CONTROL_ONLY static void create_failed(struct malloc_bdev *mb)
{
	struct bdev_result *res = mb->res;
	int status = mb->status;
	char reason[BDEV_REASON_MAX];

	memcpy(reason, mb->reason, sizeof(reason));
	malloc_free(mb);
	bdev_result_done(res, status, NULL, "%s", reason);
}

static void free_run(struct job *job)
{
	struct malloc_bdev *mb = container_of(job, struct malloc_bdev, job);

	huge_free(&mb->area);
	if (mb->fd >= 0)
		close(mb->fd);
	mb->fd = -1;
}

static void create_freed(struct job *job)
{
	control_assert();
	create_failed(container_of(job, struct malloc_bdev, job));
}

static void create_run(struct job *job)
{
	struct malloc_bdev *mb = container_of(job, struct malloc_bdev, job);

	if (mb->fd >= 0)
		mb->status = huge_adopt(mb->fd, bdev_size(&mb->bdev), &mb->area);
	else
		mb->status = huge_alloc_shared(bdev_size(&mb->bdev), mb->node, &mb->area, &mb->fd);
}

/* A sentence about mb->status, which is of create_run(). */
static void allocation_failed(struct malloc_bdev *mb)
{
	unsigned long long size = bdev_size(&mb->bdev);

	if (mb->fd >= 0)
		snprintf(mb->reason, sizeof(mb->reason),
			 "cannot take over its %llu bytes of memory: %s", size,
			 mb->status == -EINVAL ? "what was handed over is something else" :
			 strerror(-mb->status));
	else
		snprintf(mb->reason, sizeof(mb->reason), "cannot allocate %llu bytes%s: %s", size,
			 mb->opts.numa_node >= 0 ? " on that NUMA node" : "",
			 strerror(-mb->status));
}

/* Answers when its memory is free again. */
CONTROL_ONLY static void create_undo(struct malloc_bdev *mb)
{
	mb->job.run = free_run;
	mb->job.done = create_freed;
	worker_submit(&mb->job);
}

static void create_allocated(struct job *job)
{
	struct malloc_bdev *mb = container_of(job, struct malloc_bdev, job);
	struct huge_stats stats;

	control_assert();
	if (mb->status < 0) {
		allocation_failed(mb);
		create_undo(mb);
		return;
	}
	mb->status = bdev_register(&mb->bdev, mb->opts.name, "Malloc", mb->opts.uuid, mb->reason);
	if (mb->status < 0) {
		create_undo(mb);
		return;
	}
	huge_get_stats(&stats);
	if (stats.fell_back && mb->area.page_size == (size_t)sysconf(_SC_PAGESIZE))
		log_warning("%s: no huge pages are free, its memory is in normal pages",
			    mb->bdev.name);
	bdev_result_done(mb->res, 0, &mb->bdev, NULL);
}

CONTROL_ONLY static int check_opts(const struct bdev_malloc_opts *opts,
				   char reason[BDEV_REASON_MAX])
{
	uint64_t size;

	if (opts->block_size != 512 && opts->block_size != 4096) {
		snprintf(reason, BDEV_REASON_MAX, "block_size %u is not 512 or 4096",
			 opts->block_size);
		return -EINVAL;
	}
	if (opts->num_blocks == 0 ||
	    __builtin_mul_overflow(opts->num_blocks, (uint64_t)opts->block_size, &size) ||
	    size > INT64_MAX) {
		snprintf(reason, BDEV_REASON_MAX, "num_blocks %llu is not possible",
			 (unsigned long long)opts->num_blocks);
		return -EINVAL;
	}
	return bdev_check_name(opts->name, reason);
}

static struct malloc_bdev *malloc_new(const struct bdev_malloc_opts *opts, struct bdev_result *res)
{
	struct malloc_bdev *mb = calloc(1, sizeof(*mb));
	struct bdev *bdev;

	if (!mb)
		return NULL;
	bdev = &mb->bdev;
	mb->res = res;
	mb->fd = -1;
	mb->opts = *opts;
	/* Where all reactors are, the copying is. */
	mb->node = opts->numa_node >= 0 ? opts->numa_node : reactors_numa_node();
	mb->opts.name = opts->name ? strdup(opts->name) : NULL;
	mb->opts.uuid = opts->uuid ? strdup(opts->uuid) : NULL;
	if ((opts->name && !mb->opts.name) || (opts->uuid && !mb->opts.uuid)) {
		malloc_free(mb);
		return NULL;
	}
	bdev->ops = &bdev_malloc_ops;
	atomic_store(&bdev->size, opts->num_blocks * opts->block_size);
	bdev->block_size = opts->block_size;
	bdev->physical_block_size = opts->physical_block_size ?
		opts->physical_block_size : opts->block_size;
	bdev->optimal_io_size = opts->optimal_io_boundary <= UINT32_MAX / opts->block_size ?
		opts->optimal_io_boundary * opts->block_size : 0;
	bdev->discard_granularity = opts->block_size;
	bdev->supported = (1u << BDEV_IO_TYPES) - 1;
	return mb;
}

void bdev_malloc_create(const struct bdev_malloc_opts *opts, struct bdev_result *res)
{
	char reason[BDEV_REASON_MAX] = "";
	int rc = check_opts(opts, reason), fds[BDEV_HANDOVER_FDS];
	struct malloc_bdev *mb;

	if (rc < 0) {
		bdev_result_done(res, rc, NULL, "%s", reason);
		return;
	}
	mb = malloc_new(opts, res);
	if (!mb) {
		bdev_result_done(res, -ENOMEM, NULL, NULL);
		return;
	}
	if (bdev_adopt_take(opts->name, fds))
		mb->fd = fds[0];
	mb->job.run = create_run;
	mb->job.done = create_allocated;
	worker_submit(&mb->job);
}

const struct bdev_malloc_opts *bdev_malloc_get_opts(const struct bdev *bdev)
{
	return &malloc_of((struct bdev *)(uintptr_t)bdev)->opts;
}

/* ------- destruction ------- */

static void destroy_freed(struct job *job)
{
	struct malloc_bdev *mb = container_of(job, struct malloc_bdev, job);

	control_assert();
	bdev_destroyed(&mb->bdev);
	malloc_free(mb);
}

static void malloc_destroy(struct bdev *bdev)
{
	struct malloc_bdev *mb = malloc_of(bdev);

	control_assert();
	mb->job.run = free_run;
	mb->job.done = destroy_freed;
	worker_submit(&mb->job);
}

static int malloc_handover(struct bdev *bdev, int fds[BDEV_HANDOVER_FDS])
{
	fds[0] = malloc_of(bdev)->fd;
	return 1;
}

const struct bdev_ops bdev_malloc_ops = {
	.module = "malloc",
	.product_name = "Malloc disk",
	.own_storage = true,
	.channel_size = sizeof(struct malloc_channel),
	.channel_open = malloc_channel_open,
	.submit = malloc_submit,
	.handover = malloc_handover,
	.destroy = malloc_destroy,
};
