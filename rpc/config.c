/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The configuration as calls: for each subsystem the list of {method, params}
 * that rebuilds what is there now, and behind them those that are pending. rpc.py's
 * save_config and load_config, and the files of -c and --state, are made of it.
 *
 * Bdevs come in the order of their creation, so a bdev stands behind the one it
 * wraps; uuids are written, so a rebuilt disk is the same disk to its guest.
 * Injected errors are not part of the configuration. A bdev or controller whose
 * bdev was removed cannot be rebuilt and is left out.
 */
#include "rpc/config.h"
#include "rpc/rpc.h"

#include "reactor/cpumask.h"
#include "vhost/vhost.h"

#include <stdio.h>
#include <string.h>

#define COALESCING_IOPS_DEFAULT 60000u

static void call_begin(struct json_out *w, const char *method)
{
	json_out_object(w);
	json_put_string(w, "method", method);
	json_put_object(w, "params");
}

static void call_end(struct json_out *w)
{
	json_out_object_end(w);
	json_out_object_end(w);
}

/* ------- bdevs ------- */

static void put_geometry(struct json_out *w, const struct bdev *b)
{
	json_put_u64(w, "num_blocks", bdev_size(b) / b->block_size);
	json_put_u64(w, "block_size", b->block_size);
	json_put_u64(w, "physical_block_size", b->physical_block_size);
}

static void put_null(struct json_out *w, const struct bdev *b)
{
	call_begin(w, "bdev_null_create");
	json_put_string(w, "name", b->name);
	put_geometry(w, b);
}

static void put_malloc(struct json_out *w, const struct bdev *b)
{
	const struct bdev_malloc_opts *o = bdev_malloc_get_opts(b);

	call_begin(w, "bdev_malloc_create");
	json_put_string(w, "name", b->name);
	put_geometry(w, b);
	json_put_u64(w, "optimal_io_boundary", o->optimal_io_boundary);
	if (o->numa_node >= 0)
		json_put_i64(w, "numa_id", o->numa_node);
}

static void put_file(struct json_out *w, const struct bdev *b)
{
	const struct bdev_file_opts *o = bdev_file_get_opts(b);
	bool aio = b->ops == &bdev_aio_ops;

	call_begin(w, aio ? "bdev_aio_create" : "bdev_uring_create");
	json_put_string(w, "name", b->name);
	json_put_string(w, "filename", o->filename);
	if (o->block_size)
		json_put_u64(w, "block_size", o->block_size);
	if (aio || o->readonly)
		json_put_bool(w, "readonly", o->readonly);
	if (aio) {
		json_put_bool(w, "fallocate", o->fallocate);
		json_put_bool(w, "nowait", o->nowait);
	}
	if (o->no_lock)
		json_put_bool(w, "no_lock", true);
	if (o->lock_in_use)
		json_put_bool(w, "lock_in_use", true);
}

static void put_fault(struct json_out *w, const struct bdev *b)
{
	const struct bdev_fault_opts *o = bdev_fault_get_opts(b);

	if (b->ops == &bdev_error_ops) {
		call_begin(w, "bdev_error_create");
		json_put_string(w, "base_name", o->base);
		return;
	}
	call_begin(w, "bdev_delay_create");
	json_put_string(w, "base_bdev_name", o->base);
	json_put_string(w, "name", b->name);
	json_put_u64(w, "avg_read_latency", o->avg_read_us);
	json_put_u64(w, "p99_read_latency", o->p99_read_us);
	json_put_u64(w, "avg_write_latency", o->avg_write_us);
	json_put_u64(w, "p99_write_latency", o->p99_write_us);
}

#if SPINDLE_RBD
static void put_rbd(struct json_out *w, const struct bdev *b)
{
	control_assert();
	call_begin(w, "bdev_rbd_create");
	rpc_rbd_save(w, b);
}
#endif

static void write_bdevs(struct json_out *w) CONTROL_ONLY
{
	static const struct {
		const struct bdev_ops *ops;
		void (*put)(struct json_out *w, const struct bdev *b);
	} kinds[] = {
		{ &bdev_null_ops, put_null },	{ &bdev_malloc_ops, put_malloc },
		{ &bdev_aio_ops, put_file },	{ &bdev_uring_ops, put_file },
		{ &bdev_error_ops, put_fault }, { &bdev_delay_ops, put_fault },
#if SPINDLE_RBD
		{ &bdev_rbd_ops, put_rbd },
#endif
	};

#if SPINDLE_RBD
	rpc_rbd_save_clusters(w);
#endif
	for (struct bdev *b = bdev_next(NULL); b; b = bdev_next(b)) {
		for (unsigned int i = 0; i < ARRAY_SIZE(kinds); i++) {
			if (b->ops != kinds[i].ops)
				continue;
			kinds[i].put(w, b);
			json_put_string(w, "uuid", b->uuid);
			call_end(w);
		}
	}
	pending_write(w, true);
}

/* ------- controllers ------- */

static void write_controller(struct json_out *w, const struct vhost_controller_info *info)
{
	char mask[CPUMASK_STR];

	call_begin(w, "vhost_create_blk_controller");
	json_put_string(w, "ctrlr", info->name);
	json_put_string(w, "dev_name", info->bdev ? info->bdev->name : "");
	json_put_string(w, "cpumask", cpumask_format(&info->cpumask, mask));
	json_put_bool(w, "readonly", info->readonly);
	if (info->packed_ring)
		json_put_bool(w, "packed_ring", true);
	if (info->writethrough)
		json_put_bool(w, "writeback", false);
	json_put_string(w, "transport", "vhost_user_blk");
	call_end(w);
	if (info->delay_base_us == 0 && info->iops_threshold == COALESCING_IOPS_DEFAULT)
		return;
	call_begin(w, "vhost_controller_set_coalescing");
	json_put_string(w, "ctrlr", info->name);
	json_put_u64(w, "delay_base_us", info->delay_base_us);
	json_put_u64(w, "iops_threshold", info->iops_threshold);
	call_end(w);
}

static void write_controllers(struct json_out *w) CONTROL_ONLY
{
	struct vhost_controller *c = NULL;

	while ((c = vhost_controller_next(c))) {
		struct vhost_controller_info info;

		vhost_controller_get_info(c, &info);
		write_controller(w, &info);
	}
	pending_write(w, false);
}

/* ------- subsystems ------- */

/* In start order: one stands behind what it depends on. */
static const struct {
	const char *name, *depends_on;
	void (*write)(struct json_out *w);
} subsystems[] = {
	{ "bdev", NULL, write_bdevs },
	{ "vhost_blk", "bdev", write_controllers },
};

void rpc_write_subsystems(struct json_out *w)
{
	json_out_array(w);
	for (unsigned int i = 0; i < ARRAY_SIZE(subsystems); i++) {
		json_out_object(w);
		json_put_string(w, "subsystem", subsystems[i].name);
		json_put_array(w, "depends_on");
		if (subsystems[i].depends_on)
			json_out_string(w, subsystems[i].depends_on);
		json_out_array_end(w);
		json_out_object_end(w);
	}
	json_out_array_end(w);
}

bool rpc_write_config(struct json_out *w, const char *subsystem)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(subsystems); i++) {
		if (strcmp(subsystems[i].name, subsystem) == 0) {
			json_out_array(w);
			subsystems[i].write(w);
			json_out_array_end(w);
			return true;
		}
	}
	return false;
}

void rpc_config_write(struct json_out *w, bool secrets)
{
#if SPINDLE_RBD
	rpc_rbd_tell_secrets(secrets);
#endif
	(void)secrets;
	json_out_object(w);
	json_put_array(w, "subsystems");
	for (unsigned int i = 0; i < ARRAY_SIZE(subsystems); i++) {
		json_out_object(w);
		json_put_string(w, "subsystem", subsystems[i].name);
		json_put_array(w, "config");
		subsystems[i].write(w);
		json_out_array_end(w);
		json_out_object_end(w);
	}
	json_out_array_end(w);
	json_out_object_end(w);
#if SPINDLE_RBD
	rpc_rbd_tell_secrets(false);
#endif
}
