/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The bdev methods that look: bdev_get_bdevs and the I/O statistics, with
 * SPDK's members in SPDK's order, and zeroes or false for what there is not
 * here. Counters are written by reactors while we read them: each number is
 * right, two of them need not be of the same moment.
 */
#include "rpc/rpc.h"

#include "reactor/reactor.h"

#include <stdio.h>

#define DAY_MS UINT64_C(86400000)
/* How often bdev_get_bdevs looks for a bdev it waits for. */
#define APPEAR_POLL_MS 10u

/* ------- bdev_get_bdevs ------- */

static void write_io_types(struct json_out *w, const struct bdev *b)
{
	static const char *const never_a[] = { "reset", "nvme_admin", "nvme_io", "nvme_io_md" };
	static const char *const never_b[] = {
		"zcopy", "get_zone_info", "zone_management", "zone_append", "compare",
		"compare_and_write", "abort", "seek_hole", "seek_data", "copy", "nvme_iov_md",
		"nvme_nssr", "write_uncorrectable",
	};

	json_put_object(w, "supported_io_types");
	json_put_bool(w, "read", bdev_supports(b, BDEV_READ));
	json_put_bool(w, "write", bdev_supports(b, BDEV_WRITE) && !b->readonly);
	json_put_bool(w, "unmap", bdev_supports(b, BDEV_DISCARD) && !b->readonly);
	json_put_bool(w, "flush", bdev_supports(b, BDEV_FLUSH));
	for (unsigned int i = 0; i < ARRAY_SIZE(never_a); i++)
		json_put_bool(w, never_a[i], false);
	json_put_bool(w, "write_zeroes", bdev_supports(b, BDEV_WRITE_ZEROES) && !b->readonly);
	for (unsigned int i = 0; i < ARRAY_SIZE(never_b); i++)
		json_put_bool(w, never_b[i], false);
	json_out_object_end(w);
}

static void write_driver_specific(struct json_out *w, const struct bdev *b) CONTROL_ONLY
{
	json_put_object(w, "driver_specific");
	if (b->ops == &bdev_aio_ops) {
		const struct bdev_file_opts *o = bdev_file_get_opts(b);

		json_put_object(w, "aio");
		json_put_string(w, "filename", o->filename);
		json_put_bool(w, "block_size_override", o->block_size != 0);
		json_put_bool(w, "readonly", o->readonly);
		json_put_bool(w, "fallocate", o->fallocate);
		json_put_bool(w, "nowait", o->nowait);
		json_out_object_end(w);
	} else if (b->ops == &bdev_uring_ops) {
		json_put_object(w, "uring");
		json_put_string(w, "filename", bdev_file_get_opts(b)->filename);
		json_out_object_end(w);
	} else if (b->ops == &bdev_error_ops) {
		json_put_string(w, "error_disk", bdev_fault_get_opts(b)->base);
	} else if (b->ops == &bdev_delay_ops) {
		const struct bdev_fault_opts *o = bdev_fault_get_opts(b);

		json_put_object(w, "delay");
		json_put_string(w, "name", b->name);
		json_put_string(w, "base_bdev_name", o->base);
		json_put_u64(w, "avg_read_latency", o->avg_read_us);
		json_put_u64(w, "p99_read_latency", o->p99_read_us);
		json_put_u64(w, "avg_write_latency", o->avg_write_us);
		json_put_u64(w, "p99_write_latency", o->p99_write_us);
		json_out_object_end(w);
	}
#if SPINDLE_RBD
	else if (b->ops == &bdev_rbd_ops)
		rpc_rbd_show(w, b);
#endif
	json_out_object_end(w);
}

static void write_bdev(struct json_out *w, const struct bdev *b) CONTROL_ONLY
{
	static const char *const limits[] = {
		"rw_ios_per_sec", "rw_mbytes_per_sec", "r_mbytes_per_sec", "w_mbytes_per_sec",
	};

	json_out_object(w);
	json_put_string(w, "name", b->name);
	json_put_array(w, "aliases");
	json_out_string(w, b->uuid);
	json_out_array_end(w);
	json_put_string(w, "product_name", bdev_product_name(b));
	json_put_u64(w, "block_size", b->block_size);
	json_put_u64(w, "num_blocks", bdev_size(b) / b->block_size);
	json_put_u64(w, "preferred_write_alignment", 0);
	json_put_u64(w, "preferred_write_granularity", 0);
	json_put_u64(w, "optimal_write_size", b->optimal_io_size / b->block_size);
	json_put_u64(w, "preferred_unmap_alignment", 0);
	json_put_u64(w, "preferred_unmap_granularity", b->discard_granularity / b->block_size);
	json_put_string(w, "uuid", b->uuid);
	json_put_object(w, "assigned_rate_limits");
	for (unsigned int i = 0; i < ARRAY_SIZE(limits); i++)
		json_put_u64(w, limits[i], 0);
	json_out_object_end(w);
	json_put_bool(w, "claimed", b->claimed);
	json_put_bool(w, "zoned", false);
	write_io_types(w, b);
	write_driver_specific(w, b);
	json_out_object_end(w);
}

static void reply_no_bdev(struct rpc_call *call, const char *name) CONTROL_ONLY
{
	char reason[BDEV_REASON_MAX];

	snprintf(reason, sizeof(reason), "there is no bdev named \"%.100s\"", name);
	rpc_reply_errno(call, -ENODEV, reason, false);
}

struct get_bdevs_args {
	const char *name;
	uint64_t timeout;	/* milliseconds to wait for `name` to appear */
};
static const struct rpc_param get_bdevs_params[] = {
	RPC_PARAM(struct get_bdevs_args, name, RPC_OPTIONAL),
	RPC_PARAM(struct get_bdevs_args, timeout, RPC_OPTIONAL),
};

static void reply_bdevs(struct rpc_call *call, struct bdev *b) CONTROL_ONLY
{
	struct json_out *w = rpc_result(call);

	json_out_array(w);
	if (b) {
		write_bdev(w, b);
	} else {
		while ((b = bdev_next(b)))
			write_bdev(w, b);
	}
	json_out_array_end(w);
	rpc_reply(call);
}

static void wait_for_bdev(struct rpc_call *call) CONTROL_ONLY;

static void bdev_appear_timer(struct control_timer *t)
{
	control_assert();
	wait_for_bdev(container_of(t, struct rpc_call, timer));
}

static void bdev_appear_cancel(struct rpc_call *call)
{
	control_assert();
	control_timer_stop(&call->timer);
	reply_no_bdev(call, ((const struct get_bdevs_args *)(const void *)call->args)->name);
}

/* Reply when the bdev is there or time is up; else look again a little later. */
static void wait_for_bdev(struct rpc_call *call)
{
	const struct get_bdevs_args *args = (const void *)call->args;
	struct bdev *b = bdev_find(args->name);

	if (b) {
		reply_bdevs(call, b);
	} else if (clock_ns() >= call->deadline_ns || rpc_client_gone(call->client)) {
		reply_no_bdev(call, args->name);
	} else {
		call->cancel = bdev_appear_cancel;
		call->timer.fn = bdev_appear_timer;
		control_timer_start(&call->timer, APPEAR_POLL_MS);
	}
}

static void get_bdevs(struct rpc_call *call) CONTROL_ONLY
{
	const struct get_bdevs_args *args = (const void *)call->args;

	if (!args->name) {
		reply_bdevs(call, NULL);
		return;
	}
	call->deadline_ns = clock_ns() + MIN(args->timeout, DAY_MS) * 1000000;
	wait_for_bdev(call);
}

/* ------- statistics ------- */

static struct bdev_result *result(struct rpc_call *call, void (*fn)(struct bdev_result *res))
{
	call->res.fn = fn;
	return &call->res;
}

/* In the order of enum bdev_reset. */
static const char *const reset_words[] = { "all", "maxmin", "error", "none", NULL };
#define RESET_NONE 3

static uint64_t or_zero(const counter64 *min)
{
	uint64_t v = counter_read(min);

	return v == UINT64_MAX ? 0 : v;
}

static void write_latency(struct json_out *w, const char *what, const struct bdev_latency *l)
{
	static const struct bdev_latency none;
	char key[64];

	if (!l)
		l = &none;
	snprintf(key, sizeof(key), "%s_latency_ticks", what);
	json_put_u64(w, key, counter_read(&l->ticks));
	snprintf(key, sizeof(key), "max_%s_latency_ticks", what);
	json_put_u64(w, key, counter_read(&l->max));
	snprintf(key, sizeof(key), "min_%s_latency_ticks", what);
	json_put_u64(w, key, or_zero(&l->min));
}

/* SPDK's members, in its order; it has no place for flushes and write-zeroes. */
static void write_stats(struct json_out *w, const struct bdev_stats *s)
{
	static const struct {
		enum bdev_io_type type;
		const char *bytes, *ops;
	} counts[] = {
		{ BDEV_READ, "bytes_read", "num_read_ops" },
		{ BDEV_WRITE, "bytes_written", "num_write_ops" },
		{ BDEV_DISCARD, "bytes_unmapped", "num_unmap_ops" },
	};
	uint64_t failed = 0;

	for (unsigned int i = 0; i < ARRAY_SIZE(counts); i++) {
		json_put_u64(w, counts[i].bytes, counter_read(&s->bytes[counts[i].type]));
		json_put_u64(w, counts[i].ops, counter_read(&s->ops[counts[i].type]));
	}
	json_put_u64(w, "bytes_copied", 0);
	json_put_u64(w, "num_copy_ops", 0);
	write_latency(w, "read", &s->latency[BDEV_READ]);
	write_latency(w, "write", &s->latency[BDEV_WRITE]);
	write_latency(w, "unmap", &s->latency[BDEV_DISCARD]);
	write_latency(w, "copy", NULL);
	for (unsigned int i = 0; i < BDEV_IO_TYPES; i++)
		failed += counter_read(&s->errors[i]);
	json_put_object(w, "io_error");
	if (failed)
		json_put_u64(w, "failed", failed);
	json_out_object_end(w);
}

struct iostat_args {
	const char *name;
	struct rpc_strings names;
	bool per_channel;
	struct rpc_word reset_mode;
};
static const struct iostat_args iostat_defaults = { .reset_mode = { RESET_NONE } };
static const struct rpc_param iostat_params[] = {
	RPC_PARAM(struct iostat_args, name, RPC_OPTIONAL),
	RPC_PARAM(struct iostat_args, names, RPC_OPTIONAL),
	RPC_PARAM(struct iostat_args, per_channel, RPC_OPTIONAL),
	RPC_PARAM_WORD(struct iostat_args, reset_mode, RPC_OPTIONAL, reset_words),
};

static const struct iostat_args *iostat_args_of(const struct rpc_call *call)
{
	return (const void *)call->args;
}

/* The i-th bdev named, by either parameter; NULL behind the last. */
static const char *iostat_name(const struct iostat_args *args, unsigned int i)
{
	if (args->name && i-- == 0)
		return args->name;
	return i < rpc_strings_count(&args->names) ? rpc_strings_at(&args->names, i) : NULL;
}

static void write_bdev_stats(struct json_out *w, const struct bdev *b) CONTROL_ONLY
{
	struct bdev_stats stats;

	bdev_get_stats(b, &stats);
	json_out_object(w);
	json_put_string(w, "name", b->name);
	write_stats(w, &stats);
	json_out_object_end(w);
}

static void write_channel_stats(struct json_out *w, const struct bdev *b) CONTROL_ONLY
{
	struct bdev_stats stats;

	json_put_string(w, "name", b->name);
	json_put_array(w, "channels");
	for (unsigned int i = 0; i < reactor_count(); i++) {
		if (!bdev_get_channel_stats(b, i, &stats))
			continue;
		json_out_object(w);
		/* As thread_get_stats numbers them: 1 is the control thread. */
		json_put_u64(w, "thread_id", i + 2);
		write_stats(w, &stats);
		json_out_object_end(w);
	}
	json_out_array_end(w);
}

static void write_iostat(struct rpc_call *call) CONTROL_ONLY
{
	const struct iostat_args *args = iostat_args_of(call);
	struct json_out *w = rpc_result(call);
	const char *name;

	json_out_object(w);
	json_put_u64(w, "tick_rate", tsc_hz());
	json_put_u64(w, "ticks", tsc_now());
	if (args->per_channel) {
		write_channel_stats(w, bdev_find(iostat_name(args, 0)));
	} else {
		json_put_array(w, "bdevs");
		if (!iostat_name(args, 0)) {
			for (struct bdev *b = bdev_next(NULL); b; b = bdev_next(b))
				write_bdev_stats(w, b);
		}
		for (unsigned int i = 0; (name = iostat_name(args, i)); i++)
			write_bdev_stats(w, bdev_find(name));
		json_out_array_end(w);
	}
	json_out_object_end(w);
}

/* The answer is written; reset what was read, one bdev after the other. */
static void iostat_reset_next(struct bdev_result *res)
{
	struct rpc_call *call = rpc_call_of_result(res);
	const struct iostat_args *args = iostat_args_of(call);
	const char *name;

	control_assert();
	while ((name = iostat_name(args, call->step))) {
		struct bdev *b = bdev_find(name);

		call->step++;
		if (b) {
			bdev_reset_stats(b, (enum bdev_reset)args->reset_mode.index, res);
			return;
		}
	}
	rpc_reply(call);
}

static void reset_all_done(struct bdev_result *res)
{
	control_assert();
	rpc_reply(rpc_call_of_result(res));
}

static void get_iostat(struct rpc_call *call) CONTROL_ONLY
{
	const struct iostat_args *args = iostat_args_of(call);
	const char *name;
	unsigned int count;

	for (count = 0; (name = iostat_name(args, count)); count++) {
		if (!bdev_find(name)) {
			reply_no_bdev(call, name);
			return;
		}
	}
	if (args->per_channel && count != 1) {
		rpc_reply_errno(call, -EINVAL, "\"per_channel\" needs the name of one bdev", false);
		return;
	}
	write_iostat(call);
	if (args->reset_mode.index == RESET_NONE)
		rpc_reply(call);
	else if (count == 0)
		bdev_reset_stats(NULL, (enum bdev_reset)args->reset_mode.index,
				 result(call, reset_all_done));
	else
		iostat_reset_next(result(call, iostat_reset_next));
}

static void reset_done(struct bdev_result *res)
{
	control_assert();
	rpc_reply_true(rpc_call_of_result(res));
}

struct reset_args {
	const char *name;
	struct rpc_word mode;
};
static const struct rpc_param reset_params[] = {
	RPC_PARAM(struct reset_args, name, RPC_OPTIONAL),
	RPC_PARAM_WORD(struct reset_args, mode, RPC_OPTIONAL, reset_words),
};

static void reset_iostat(struct rpc_call *call) CONTROL_ONLY
{
	const struct reset_args *args = (const void *)call->args;
	struct bdev *b = args->name ? bdev_find(args->name) : NULL;

	if (args->name && !b)
		reply_no_bdev(call, args->name);
	else if (args->mode.index == RESET_NONE)
		rpc_reply_true(call);
	else
		bdev_reset_stats(b, (enum bdev_reset)args->mode.index, result(call, reset_done));
}

/* ------- the table ------- */

const struct rpc_method rpc_bdev_show_methods[] = {
	{ "bdev_get_bdevs", "get_bdevs", RPC_RUNTIME, 0, get_bdevs,
	  RPC_PARAMS(get_bdevs_params, struct get_bdevs_args) },
	{ "bdev_get_iostat", "get_bdevs_iostat", RPC_RUNTIME, 0, get_iostat,
	  RPC_PARAMS(iostat_params, struct iostat_args), .defaults = &iostat_defaults },
	{ "bdev_reset_iostat", NULL, RPC_RUNTIME, 0, reset_iostat,
	  RPC_PARAMS(reset_params, struct reset_args) },
	{ .name = NULL },
};
