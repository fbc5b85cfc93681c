/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The file backend: regular files and block devices through the reactors'
 * io_urings, under SPDK's two names "aio" and "uring". This file is the
 * control thread's part: creation, rescan, destruction. Each hands the
 * file_bdev to a worker for what blocks and goes on when it comes back.
 *
 * A creation that fails closes its file (and drops its locks) before it
 * answers, so that the operator's next try meets a clean slate. A rescan may be
 * under way when the bdev is deleted: destruction then waits for it.
 */
#include "bdev/bdev_file.h"

#include "reactor/log.h"

#include <stdlib.h>
#include <string.h>

static void file_free(struct file_bdev *fb)
{
	if (!fb)
		return;
	free((char *)(uintptr_t)fb->opts.name);
	free((char *)(uintptr_t)fb->opts.uuid);
	free((char *)(uintptr_t)fb->opts.filename);
	free(fb);
}

/* NULL stays NULL; false: out of memory. */
static bool copy_string(const char **to, const char *from)
{
	*to = from ? strdup(from) : NULL;
	return *to || !from;
}

static struct file_bdev *file_new(const struct bdev_file_opts *opts, struct bdev_result *res)
{
	struct file_bdev *fb = calloc(1, sizeof(*fb));

	if (!fb)
		return NULL;
	fb->fd = -1;
	fb->res = res;
	fb->opts = *opts;
	fb->opts.name = fb->opts.uuid = fb->opts.filename = NULL;
	fb->bdev.ops = opts->kind == BDEV_FILE_AIO ? &bdev_aio_ops : &bdev_uring_ops;
	if (!copy_string(&fb->opts.name, opts->name) || !copy_string(&fb->opts.uuid, opts->uuid) ||
	    !copy_string(&fb->opts.filename, opts->filename)) {
		file_free(fb);
		return NULL;
	}
	return fb;
}

/* ------- creation ------- */

CONTROL_ONLY static void create_failed(struct file_bdev *fb)
{
	struct bdev_result *res = fb->res;
	int status = fb->status;
	char reason[BDEV_REASON_MAX];

	memcpy(reason, fb->reason, sizeof(reason));
	file_free(fb);
	bdev_result_done(res, status, NULL, "%s", reason);
}

static void close_run(struct job *job)
{
	file_close(container_of(job, struct file_bdev, job));
}

static void create_closed(struct job *job)
{
	control_assert();
	create_failed(container_of(job, struct file_bdev, job));
}

static void create_run(struct job *job)
{
	struct file_bdev *fb = container_of(job, struct file_bdev, job);

	fb->status = file_open(fb);
}

static void create_opened(struct job *job)
{
	struct file_bdev *fb = container_of(job, struct file_bdev, job);

	control_assert();
	if (fb->status < 0) {
		create_failed(fb);
		return;
	}
	fb->status = bdev_register(&fb->bdev, fb->opts.name, NULL, fb->opts.uuid, fb->reason);
	if (fb->status < 0) {
		job->run = close_run;
		job->done = create_closed;
		worker_submit(job);
		return;
	}
	bdev_result_done(fb->res, 0, &fb->bdev, NULL);
}

void bdev_file_create(const struct bdev_file_opts *opts, struct bdev_result *res)
{
	char reason[BDEV_REASON_MAX] = "";
	int rc, fds[BDEV_HANDOVER_FDS];
	struct file_bdev *fb;

	if (!opts->name || !opts->filename || !opts->filename[0]) {
		bdev_result_done(res, -EINVAL, NULL, "a file bdev needs a %s",
				 opts->name ? "filename" : "name");
		return;
	}
	if (opts->block_size && opts->block_size != 512 && opts->block_size != 4096) {
		bdev_result_done(res, -EINVAL, NULL, "block_size %u is not 512 or 4096",
				 opts->block_size);
		return;
	}
	rc = bdev_check_name(opts->name, reason);
	if (rc < 0) {
		bdev_result_done(res, rc, NULL, "%s", reason);
		return;
	}
	fb = file_new(opts, res);
	if (!fb) {
		bdev_result_done(res, -ENOMEM, NULL, NULL);
		return;
	}
	if (bdev_adopt_take(opts->name, fds))
		fb->fd = fds[0];
	fb->job.run = create_run;
	fb->job.done = create_opened;
	worker_submit(&fb->job);
}

const struct bdev_file_opts *bdev_file_get_opts(const struct bdev *bdev)
{
	return &file_of((struct bdev *)(uintptr_t)bdev)->opts;
}

/* ------- destruction ------- */

static void destroy_closed(struct job *job)
{
	struct file_bdev *fb = container_of(job, struct file_bdev, job);

	control_assert();
	bdev_destroyed(&fb->bdev);
	file_free(fb);
}

void file_destroy(struct bdev *bdev)
{
	struct file_bdev *fb = file_of(bdev);

	control_assert();
	fb->dying = true;
	if (fb->rescans || fb->lock_busy)
		return;
	fb->job.run = close_run;
	fb->job.done = destroy_closed;
	worker_submit(&fb->job);
}

/* The locks go with the fd: they belong to the open file that it stands for. */
static int file_handover(struct bdev *bdev, int fds[BDEV_HANDOVER_FDS])
{
	fds[0] = file_of(bdev)->fd;
	return 1;
}

/* ------- rescan ------- */

struct rescan {
	struct job job;
	struct file_bdev *fb;
	struct bdev_result *res;
	uint64_t size;
	int status;
};

static void rescan_run(struct job *job)
{
	struct rescan *rs = container_of(job, struct rescan, job);

	rs->status = file_read_size(rs->fb, &rs->size);
}

CONTROL_ONLY static void rescan_apply(struct file_bdev *fb, uint64_t size, struct bdev_result *res)
{
	struct bdev *bdev = &fb->bdev;

	if (size == 0) {
		bdev_result_done(res, -EINVAL, NULL,
				 "%.100s is now smaller than one block; the bdev stays as it is",
				 fb->opts.filename);
		return;
	}
	if (size < bdev_size(bdev))
		log_warning("%s: %s has shrunk; what lay behind its new end is lost", bdev->name,
			    fb->opts.filename);
	bdev_resized(bdev, size);
	bdev_result_done(res, 0, bdev, NULL);
}

static void rescan_done(struct job *job)
{
	struct rescan *rs = container_of(job, struct rescan, job);
	struct file_bdev *fb = rs->fb;

	control_assert();
	if (fb->bdev.removing)
		bdev_result_done(rs->res, -ENODEV, NULL, "the bdev was deleted meanwhile");
	else if (rs->status < 0)
		bdev_result_done(rs->res, rs->status, NULL, "%.100s: cannot read its size: %s",
				 fb->opts.filename, strerror(-rs->status));
	else
		rescan_apply(fb, rs->size, rs->res);
	free(rs);
	/* Last: who was answered may have deleted the bdev on the spot. */
	fb->rescans--;
	if (fb->dying)
		file_destroy(&fb->bdev);
}

void bdev_file_rescan(const char *name, const struct bdev_ops *ops, struct bdev_result *res)
{
	struct bdev *bdev = bdev_find(name);
	struct rescan *rs;

	if (!bdev || bdev->ops != ops) {
		bdev_result_done(res, -ENODEV, NULL, "there is no %s bdev named '%.100s'",
				 ops->module, name);
		return;
	}
	rs = calloc(1, sizeof(*rs));
	if (!rs) {
		bdev_result_done(res, -ENOMEM, NULL, NULL);
		return;
	}
	rs->fb = file_of(bdev);
	rs->fb->rescans++;
	rs->res = res;
	rs->job.run = rescan_run;
	rs->job.done = rescan_done;
	worker_submit(&rs->job);
}

const struct bdev_ops bdev_aio_ops = {
	.module = "aio",
	.product_name = "AIO disk",
	.channel_size = FILE_CHANNEL_SIZE,
	.channel_prepare = file_channel_prepare,
	.channel_unprepare = file_channel_unprepare,
	.channel_open = file_channel_open,
	.channel_close = file_channel_close,
	.submit = file_submit,
	.keeps_order = file_keeps_order,
	.handover = file_handover,
	.handover_busy = file_handover_busy,
	.handover_end = file_handover_end,
	.destroy = file_destroy,
};

const struct bdev_ops bdev_uring_ops = {
	.module = "uring",
	.product_name = "URING bdev",
	.channel_size = FILE_CHANNEL_SIZE,
	.channel_prepare = file_channel_prepare,
	.channel_unprepare = file_channel_unprepare,
	.channel_open = file_channel_open,
	.channel_close = file_channel_close,
	.submit = file_submit,
	.keeps_order = file_keeps_order,
	.handover = file_handover,
	.handover_busy = file_handover_busy,
	.handover_end = file_handover_end,
	.destroy = file_destroy,
};
