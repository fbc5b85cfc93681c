/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * null: a disk that stores nothing. Every request succeeds at once; reads leave
 * the guest's buffers as they are. It measures everything but the backend, and
 * is the shortest complete example of one.
 */
#include "bdev/bdev_backend.h"

#include <stdlib.h>

static void null_submit(struct bdev_io *io)
{
	reactor_assert();
	bdev_io_done_later(io, 0);
}

static void null_destroy(struct bdev *bdev)
{
	control_assert();
	bdev_destroyed(bdev);
	free(bdev);
}

const struct bdev_ops bdev_null_ops = {
	.module = "null",
	.product_name = "Null disk",
	.own_storage = true,
	.submit = null_submit,
	.destroy = null_destroy,
};

void bdev_null_create(const struct bdev_null_opts *opts, struct bdev_result *res)
{
	struct bdev *bdev = calloc(1, sizeof(*bdev));
	uint64_t size;
	int rc;

	if (!bdev) {
		bdev_result_done(res, -ENOMEM, NULL, NULL);
		return;
	}
	if (__builtin_mul_overflow(opts->num_blocks, (uint64_t)opts->block_size, &size))
		size = 0;
	bdev->ops = &bdev_null_ops;
	bdev->size = size;
	bdev->block_size = opts->block_size;
	bdev->physical_block_size = opts->physical_block_size ?
		opts->physical_block_size : opts->block_size;
	bdev->supported = (1u << BDEV_IO_TYPES) - 1;
	bdev->discard_granularity = opts->block_size;
	rc = bdev_register(bdev, opts->name, "Null", opts->uuid, res->reason);
	if (rc < 0) {
		free(bdev);
		res->status = rc;
		res->bdev = NULL;
		res->fn(res);
		return;
	}
	bdev_result_done(res, 0, bdev, NULL);
}

void bdev_null_resize(const char *name, uint64_t size, struct bdev_result *res)
{
	struct bdev *bdev = bdev_find(name);

	if (!bdev || bdev->ops != &bdev_null_ops) {
		bdev_result_done(res, -ENODEV, NULL, "there is no null bdev named '%.100s'", name);
		return;
	}
	if (size < bdev_size(bdev) || size % bdev->block_size || size > INT64_MAX) {
		bdev_result_done(res, -EINVAL, NULL,
				 "%.100s: a new size of %llu bytes is not a growth by whole blocks",
				 name, (unsigned long long)size);
		return;
	}
	bdev_resized(bdev, size);
	bdev_result_done(res, 0, bdev, NULL);
}
