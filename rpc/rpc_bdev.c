/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The bdev methods that change something: creating, deleting, resizing bdevs of
 * each kind, injecting faults. Handlers hand the bdev_result inside their call to
 * the block layer and return; the reply is written when it comes back, at once
 * or after a worker's time, while other clients are served.
 *
 * Names and units are SPDK's: sizes in blocks or MiB, latencies in microseconds
 * or ticks. Refusals are the backend's errno and reason.
 */
#include "rpc/rpc.h"

#include <string.h>

#define MIB_SHIFT 20

/* ------- results ------- */

/* The result is a refusal; the call has ended. */
static bool refused(struct rpc_call *call) CONTROL_ONLY
{
	if (call->res.status == 0)
		return false;
	rpc_reply_errno(call, call->res.status, call->res.reason, false);
	return true;
}

static void done_true(struct bdev_result *res)
{
	struct rpc_call *call = rpc_call_of_result(res);

	control_assert();
	if (!refused(call))
		rpc_reply_true(call);
}

static void done_name(struct bdev_result *res)
{
	struct rpc_call *call = rpc_call_of_result(res);

	control_assert();
	if (!refused(call))
		rpc_reply_string(call, res->bdev->name);
}

static struct bdev_result *result(struct rpc_call *call, void (*fn)(struct bdev_result *res))
{
	call->res.fn = fn;
	return &call->res;
}

/* MiB to bytes; the call has ended when they do not fit. */
static bool mib_to_bytes(struct rpc_call *call, uint64_t mib, uint64_t *bytes) CONTROL_ONLY
{
	if (mib <= INT64_MAX >> MIB_SHIFT) {
		*bytes = mib << MIB_SHIFT;
		return true;
	}
	rpc_reply_errno(call, -EINVAL, "parameter \"new_size\" is more than 2^63 bytes", false);
	return false;
}

struct name_args {
	const char *name;
};
static const struct rpc_param name_params[] = {
	RPC_PARAM(struct name_args, name, RPC_REQUIRED),
};

static const char *name_arg(const struct rpc_call *call)
{
	return ((const struct name_args *)(const void *)call->args)->name;
}

static void delete_kind(struct rpc_call *call, const struct bdev_ops *ops) CONTROL_ONLY
{
	bdev_delete(name_arg(call), ops, result(call, done_true));
}

/* ------- null and malloc ------- */

/* What SPDK's disks can have and ours do not: accepted where it says "none". */
struct metadata_args {
	uint32_t md_size, dif_type, dif_pi_format;
	bool md_interleave, dif_is_head_of_md;
};

static bool metadata_refused(struct rpc_call *call, const struct metadata_args *md) CONTROL_ONLY
{
	if (md->md_size == 0 && md->dif_type == 0)
		return false;
	rpc_reply_errno(call, -EINVAL,
			"metadata and protection information are not supported: "
			"\"md_size\" and \"dif_type\" must be 0", false);
	return true;
}

struct null_args {
	const char *name, *uuid;
	uint64_t num_blocks;
	uint32_t block_size, physical_block_size;
	struct metadata_args md;
	/* Hints to users of SPDK's null bdev; taken and not used. */
	uint32_t preferred_write_alignment, preferred_write_granularity, optimal_write_size;
	uint32_t preferred_unmap_alignment, preferred_unmap_granularity;
};
#define MD_PARAM(s, field)                                                        \
	{ #field, RPC_TYPE_OF(struct metadata_args, field), RPC_OPTIONAL,         \
	  offsetof(s, md) + offsetof(struct metadata_args, field), NULL }
static const struct rpc_param null_params[] = {
	RPC_PARAM(struct null_args, name, RPC_REQUIRED),
	RPC_PARAM(struct null_args, num_blocks, RPC_REQUIRED),
	RPC_PARAM(struct null_args, block_size, RPC_REQUIRED),
	RPC_PARAM(struct null_args, uuid, RPC_OPTIONAL),
	RPC_PARAM(struct null_args, physical_block_size, RPC_OPTIONAL),
	RPC_PARAM(struct null_args, preferred_write_alignment, RPC_OPTIONAL),
	RPC_PARAM(struct null_args, preferred_write_granularity, RPC_OPTIONAL),
	RPC_PARAM(struct null_args, optimal_write_size, RPC_OPTIONAL),
	RPC_PARAM(struct null_args, preferred_unmap_alignment, RPC_OPTIONAL),
	RPC_PARAM(struct null_args, preferred_unmap_granularity, RPC_OPTIONAL),
	MD_PARAM(struct null_args, md_size),
	MD_PARAM(struct null_args, dif_type),
	MD_PARAM(struct null_args, dif_pi_format),
	MD_PARAM(struct null_args, dif_is_head_of_md),
};

static void null_create(struct rpc_call *call) CONTROL_ONLY
{
	const struct null_args *args = (const void *)call->args;
	const struct bdev_null_opts opts = {
		.name = args->name,
		.uuid = args->uuid,
		.num_blocks = args->num_blocks,
		.block_size = args->block_size,
		.physical_block_size = args->physical_block_size,
	};

	if (!metadata_refused(call, &args->md))
		bdev_null_create(&opts, result(call, done_name));
}

struct resize_args {
	const char *name;
	uint64_t new_size;	/* MiB */
};
static const struct rpc_param resize_params[] = {
	RPC_PARAM(struct resize_args, name, RPC_REQUIRED),
	RPC_PARAM(struct resize_args, new_size, RPC_REQUIRED),
};

static void null_resize(struct rpc_call *call) CONTROL_ONLY
{
	const struct resize_args *args = (const void *)call->args;
	uint64_t size;

	if (mib_to_bytes(call, args->new_size, &size))
		bdev_null_resize(args->name, size, result(call, done_true));
}

static void null_delete(struct rpc_call *call) CONTROL_ONLY
{
	delete_kind(call, &bdev_null_ops);
}

struct malloc_args {
	const char *name, *uuid;
	uint64_t num_blocks;
	uint32_t block_size, physical_block_size, optimal_io_boundary;
	int32_t numa_id;
	struct metadata_args md;
};
static const struct malloc_args malloc_defaults = { .numa_id = -1 };
static const struct rpc_param malloc_params[] = {
	RPC_PARAM(struct malloc_args, num_blocks, RPC_REQUIRED),
	RPC_PARAM(struct malloc_args, block_size, RPC_REQUIRED),
	RPC_PARAM(struct malloc_args, name, RPC_OPTIONAL),
	RPC_PARAM(struct malloc_args, uuid, RPC_OPTIONAL),
	RPC_PARAM(struct malloc_args, physical_block_size, RPC_OPTIONAL),
	RPC_PARAM(struct malloc_args, optimal_io_boundary, RPC_OPTIONAL),
	RPC_PARAM(struct malloc_args, numa_id, RPC_OPTIONAL),
	MD_PARAM(struct malloc_args, md_size),
	MD_PARAM(struct malloc_args, md_interleave),
	MD_PARAM(struct malloc_args, dif_type),
	MD_PARAM(struct malloc_args, dif_pi_format),
	MD_PARAM(struct malloc_args, dif_is_head_of_md),
};

static void malloc_create(struct rpc_call *call) CONTROL_ONLY
{
	const struct malloc_args *args = (const void *)call->args;
	const struct bdev_malloc_opts opts = {
		.name = args->name,
		.uuid = args->uuid,
		.num_blocks = args->num_blocks,
		.block_size = args->block_size,
		.physical_block_size = args->physical_block_size,
		.optimal_io_boundary = args->optimal_io_boundary,
		.numa_node = args->numa_id,
	};

	if (!metadata_refused(call, &args->md))
		bdev_malloc_create(&opts, result(call, done_name));
}

static void malloc_delete(struct rpc_call *call) CONTROL_ONLY
{
	delete_kind(call, &bdev_malloc_ops);
}

/* ------- aio and uring ------- */

struct file_args {
	const char *filename, *name, *uuid;
	uint32_t block_size;
	bool readonly, fallocate, nowait, no_lock, lock_in_use;
};
static const struct rpc_param aio_params[] = {
	RPC_PARAM(struct file_args, name, RPC_REQUIRED),
	RPC_PARAM(struct file_args, filename, RPC_REQUIRED),
	RPC_PARAM(struct file_args, block_size, RPC_OPTIONAL),
	RPC_PARAM(struct file_args, readonly, RPC_OPTIONAL),
	RPC_PARAM(struct file_args, fallocate, RPC_OPTIONAL),
	RPC_PARAM(struct file_args, uuid, RPC_OPTIONAL),
	RPC_PARAM(struct file_args, nowait, RPC_OPTIONAL),
	RPC_PARAM(struct file_args, no_lock, RPC_OPTIONAL),
	RPC_PARAM(struct file_args, lock_in_use, RPC_OPTIONAL),
};
static const struct rpc_param uring_params[] = {
	RPC_PARAM(struct file_args, filename, RPC_REQUIRED),
	RPC_PARAM(struct file_args, name, RPC_REQUIRED),
	RPC_PARAM(struct file_args, block_size, RPC_OPTIONAL),
	RPC_PARAM(struct file_args, uuid, RPC_OPTIONAL),
	RPC_PARAM(struct file_args, readonly, RPC_OPTIONAL),
	RPC_PARAM(struct file_args, no_lock, RPC_OPTIONAL),
	RPC_PARAM(struct file_args, lock_in_use, RPC_OPTIONAL),
};

static void file_create(struct rpc_call *call, enum bdev_file_kind kind) CONTROL_ONLY
{
	const struct file_args *args = (const void *)call->args;
	const struct bdev_file_opts opts = {
		.kind = kind,
		.name = args->name,
		.uuid = args->uuid,
		.filename = args->filename,
		.block_size = args->block_size,
		.readonly = args->readonly,
		.fallocate = args->fallocate,
		.nowait = args->nowait,
		.no_lock = args->no_lock,
		.lock_in_use = args->lock_in_use,
	};

	bdev_file_create(&opts, result(call, done_name));
}

static void aio_create(struct rpc_call *call) CONTROL_ONLY
{
	file_create(call, BDEV_FILE_AIO);
}

static void aio_rescan(struct rpc_call *call) CONTROL_ONLY
{
	bdev_file_rescan(name_arg(call), &bdev_aio_ops, result(call, done_true));
}

static void aio_delete(struct rpc_call *call) CONTROL_ONLY
{
	delete_kind(call, &bdev_aio_ops);
}

static void uring_create(struct rpc_call *call) CONTROL_ONLY
{
	file_create(call, BDEV_FILE_URING);
}

static void uring_rescan(struct rpc_call *call) CONTROL_ONLY
{
	bdev_file_rescan(name_arg(call), &bdev_uring_ops, result(call, done_true));
}

static void uring_delete(struct rpc_call *call) CONTROL_ONLY
{
	delete_kind(call, &bdev_uring_ops);
}

/* ------- error and delay ------- */

struct error_args {
	const char *base_name, *uuid;
};
static const struct rpc_param error_params[] = {
	RPC_PARAM(struct error_args, base_name, RPC_REQUIRED),
	RPC_PARAM(struct error_args, uuid, RPC_OPTIONAL),
};

static void error_create(struct rpc_call *call) CONTROL_ONLY
{
	const struct error_args *args = (const void *)call->args;
	const struct bdev_fault_opts opts = {
		.kind = BDEV_FAULT_ERROR,
		.base = args->base_name,
		.uuid = args->uuid,
	};

	bdev_fault_create(&opts, result(call, done_true));
}

static void error_delete(struct rpc_call *call) CONTROL_ONLY
{
	delete_kind(call, &bdev_error_ops);
}

struct inject_args {
	const char *name;
	struct rpc_word io_type, error_type;
	uint32_t num;
	uint64_t queue_depth, corrupt_offset;
	uint8_t corrupt_value;
};
static const struct inject_args inject_defaults = { .num = 1 };
/* Both lists in step with inject_types and inject_modes. */
static const char *const inject_type_words[] = {
	"read", "write", "flush", "unmap", "write_zeroes", "all", "clear", NULL
};
static const unsigned int inject_types[] = {
	BDEV_READ, BDEV_WRITE, BDEV_FLUSH, BDEV_DISCARD, BDEV_WRITE_ZEROES, BDEV_IO_TYPES,
	BDEV_IO_TYPES
};
static const char *const inject_mode_words[] = {
	"clear", "failure", "pending", "corrupt_data", "nomem", NULL
};
static const enum bdev_fault_mode inject_modes[] = {
	BDEV_FAULT_CLEAR, BDEV_FAULT_FAIL, BDEV_FAULT_PENDING, BDEV_FAULT_CORRUPT,
	BDEV_FAULT_NOMEM
};
static const struct rpc_param inject_params[] = {
	RPC_PARAM(struct inject_args, name, RPC_REQUIRED),
	RPC_PARAM_WORD(struct inject_args, io_type, RPC_REQUIRED, inject_type_words),
	RPC_PARAM_WORD(struct inject_args, error_type, RPC_REQUIRED, inject_mode_words),
	RPC_PARAM(struct inject_args, num, RPC_OPTIONAL),
	RPC_PARAM(struct inject_args, queue_depth, RPC_OPTIONAL),
	RPC_PARAM(struct inject_args, corrupt_offset, RPC_OPTIONAL),
	RPC_PARAM(struct inject_args, corrupt_value, RPC_OPTIONAL),
};

static void error_inject(struct rpc_call *call) CONTROL_ONLY
{
	const struct inject_args *args = (const void *)call->args;
	struct bdev_fault_injection inj = {
		.type = inject_types[args->io_type.index],
		.mode = inject_modes[args->error_type.index],
		.count = args->num,
		.queue_depth = args->queue_depth,
		.corrupt_offset = args->corrupt_offset,
		.corrupt_value = args->corrupt_value,
	};

	/* SPDK's io_type "clear" forgets everything, whatever the error type says. */
	if (strcmp(inject_type_words[args->io_type.index], "clear") == 0)
		inj.mode = BDEV_FAULT_CLEAR;
	bdev_fault_inject(args->name, &inj, result(call, done_true));
}

struct delay_args {
	const char *base_bdev_name, *name, *uuid;
	uint64_t avg_read_latency, p99_read_latency, avg_write_latency, p99_write_latency;
};
static const struct rpc_param delay_params[] = {
	RPC_PARAM(struct delay_args, base_bdev_name, RPC_REQUIRED),
	RPC_PARAM(struct delay_args, name, RPC_REQUIRED),
	RPC_PARAM(struct delay_args, avg_read_latency, RPC_REQUIRED),
	RPC_PARAM(struct delay_args, p99_read_latency, RPC_REQUIRED),
	RPC_PARAM(struct delay_args, avg_write_latency, RPC_REQUIRED),
	RPC_PARAM(struct delay_args, p99_write_latency, RPC_REQUIRED),
	RPC_PARAM(struct delay_args, uuid, RPC_OPTIONAL),
};

static void delay_create(struct rpc_call *call) CONTROL_ONLY
{
	const struct delay_args *args = (const void *)call->args;
	const struct bdev_fault_opts opts = {
		.kind = BDEV_FAULT_DELAY,
		.base = args->base_bdev_name,
		.name = args->name,
		.uuid = args->uuid,
		.avg_read_us = args->avg_read_latency,
		.p99_read_us = args->p99_read_latency,
		.avg_write_us = args->avg_write_latency,
		.p99_write_us = args->p99_write_latency,
	};

	bdev_fault_create(&opts, result(call, done_name));
}

struct latency_args {
	const char *delay_bdev_name;
	struct rpc_word latency_type;
	uint64_t latency_us;
};
static const char *const latency_words[] = {
	"avg_read", "p99_read", "avg_write", "p99_write", NULL
};
static const struct rpc_param latency_params[] = {
	RPC_PARAM(struct latency_args, delay_bdev_name, RPC_REQUIRED),
	RPC_PARAM_WORD(struct latency_args, latency_type, RPC_REQUIRED, latency_words),
	RPC_PARAM(struct latency_args, latency_us, RPC_REQUIRED),
};

static void delay_update_latency(struct rpc_call *call) CONTROL_ONLY
{
	const struct latency_args *args = (const void *)call->args;

	bdev_fault_set_latency(args->delay_bdev_name, latency_words[args->latency_type.index],
			       args->latency_us, result(call, done_true));
}

static void delay_delete(struct rpc_call *call) CONTROL_ONLY
{
	delete_kind(call, &bdev_delay_ops);
}

/* ------- the table ------- */

#define METHOD(method, alias, fn, params_table, args)                             \
	{ method, alias, RPC_RUNTIME, RPC_CHANGES, fn, RPC_PARAMS(params_table, args) }
#define METHOD_DEFAULTS(method, fn, params_table, args, values)                   \
	{ method, NULL, RPC_RUNTIME, RPC_CHANGES, fn, RPC_PARAMS(params_table, args),  \
	  .defaults = &(values) }
#define BY_NAME(method, alias, fn) METHOD(method, alias, fn, name_params, struct name_args)

const struct rpc_method rpc_bdev_methods[] = {
	METHOD("bdev_null_create", "construct_null_bdev", null_create, null_params,
	       struct null_args),
	METHOD("bdev_null_resize", NULL, null_resize, resize_params, struct resize_args),
	BY_NAME("bdev_null_delete", "delete_null_bdev", null_delete),
	{ "bdev_malloc_create", "construct_malloc_bdev", RPC_RUNTIME, RPC_CHANGES, malloc_create,
	  RPC_PARAMS(malloc_params, struct malloc_args), .defaults = &malloc_defaults },
	BY_NAME("bdev_malloc_delete", "delete_malloc_bdev", malloc_delete),
	METHOD("bdev_aio_create", "construct_aio_bdev", aio_create, aio_params, struct file_args),
	BY_NAME("bdev_aio_rescan", NULL, aio_rescan),
	BY_NAME("bdev_aio_delete", "delete_aio_bdev", aio_delete),
	METHOD("bdev_uring_create", NULL, uring_create, uring_params, struct file_args),
	BY_NAME("bdev_uring_rescan", NULL, uring_rescan),
	BY_NAME("bdev_uring_delete", "delete_uring_bdev", uring_delete),
	METHOD("bdev_error_create", "construct_error_bdev", error_create, error_params,
	       struct error_args),
	METHOD_DEFAULTS("bdev_error_inject_error", error_inject, inject_params,
			struct inject_args, inject_defaults),
	BY_NAME("bdev_error_delete", "delete_error_bdev", error_delete),
	METHOD("bdev_delay_create", NULL, delay_create, delay_params, struct delay_args),
	METHOD("bdev_delay_update_latency", NULL, delay_update_latency, latency_params,
	       struct latency_args),
	BY_NAME("bdev_delay_delete", NULL, delay_delete),
	{ .name = NULL },
};
