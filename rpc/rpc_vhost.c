/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The vhost methods: controllers and what is to be seen of them. vhost/ does
 * the work, decides what is refused and has logged the reason when it answers;
 * here it only becomes error.data.
 *
 * As SPDK has it, every refusal of a vhost_* method is -32602 with the errno's
 * text, but for vhost_get_controllers of an unknown name, which is -32603.
 */
#include "rpc/rpc.h"

#include "reactor/cpumask.h"
#include "vhost/vhost.h"

#include <stdio.h>
#include <string.h>

#define TRANSPORT "vhost_user_blk"

static void reply_rc(struct rpc_call *call, int rc, const char *reason) CONTROL_ONLY
{
	if (rc)
		rpc_reply_errno(call, rc, reason, true);
	else
		rpc_reply_true(call);
}

/* ------- creating, deleting, changing ------- */

struct create_args {
	const char *ctrlr, *dev_name, *cpumask, *transport;
	bool readonly, packed_ring, writeback;
};
static const struct create_args create_defaults = { .writeback = true };
static const struct rpc_param create_params[] = {
	RPC_PARAM(struct create_args, ctrlr, RPC_REQUIRED),
	RPC_PARAM(struct create_args, dev_name, RPC_REQUIRED),
	RPC_PARAM(struct create_args, cpumask, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, readonly, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, packed_ring, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, writeback, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, transport, RPC_OPTIONAL),
};

static void create_blk_controller(struct rpc_call *call) CONTROL_ONLY
{
	const struct create_args *args = (const void *)call->args;
	const struct vhost_controller_opts opts = {
		.name = args->ctrlr,
		.dev_name = args->dev_name,
		.cpumask = args->cpumask,
		.transport = args->transport,
		.readonly = args->readonly,
		.packed_ring = args->packed_ring,
		.writethrough = !args->writeback,
	};
	char reason[VHOST_REASON_MAX] = "";

	reply_rc(call, vhost_controller_create(&opts, reason), reason);
}

struct ctrlr_args {
	const char *ctrlr;
	bool only_unused;
};
static const struct rpc_param ctrlr_params[] = {
	RPC_PARAM(struct ctrlr_args, ctrlr, RPC_REQUIRED),
	RPC_PARAM(struct ctrlr_args, only_unused, RPC_OPTIONAL),
};

static void delete_controller(struct rpc_call *call) CONTROL_ONLY
{
	const struct ctrlr_args *args = (const void *)call->args;
	char reason[VHOST_REASON_MAX] = "";

	reply_rc(call, vhost_controller_delete(args->ctrlr, args->only_unused, reason), reason);
}

struct attach_args {
	const char *ctrlr, *dev_name;
};
static const struct rpc_param attach_params[] = {
	RPC_PARAM(struct attach_args, ctrlr, RPC_REQUIRED),
	RPC_PARAM(struct attach_args, dev_name, RPC_REQUIRED),
};

static void attach_bdev(struct rpc_call *call) CONTROL_ONLY
{
	const struct attach_args *args = (const void *)call->args;
	char reason[VHOST_REASON_MAX] = "";

	reply_rc(call, vhost_controller_attach(args->ctrlr, args->dev_name, reason), reason);
}

struct coalescing_args {
	const char *ctrlr;
	uint32_t delay_base_us, iops_threshold;
};
static const struct rpc_param coalescing_params[] = {
	RPC_PARAM(struct coalescing_args, ctrlr, RPC_REQUIRED),
	RPC_PARAM(struct coalescing_args, delay_base_us, RPC_REQUIRED),
	RPC_PARAM(struct coalescing_args, iops_threshold, RPC_REQUIRED),
};

static void set_coalescing(struct rpc_call *call) CONTROL_ONLY
{
	const struct coalescing_args *args = (const void *)call->args;
	char reason[VHOST_REASON_MAX] = "";

	reply_rc(call, vhost_controller_set_coalescing(args->ctrlr, args->delay_base_us,
						       args->iops_threshold, reason), reason);
}

/* ------- looking ------- */

static void write_session(const struct vhost_session_info *info, void *arg)
{
	struct json_out *w = arg;

	json_out_object(w);
	json_put_u64(w, "vid", info->vid);
	json_put_u64(w, "id", info->id);
	json_put_string(w, "name", info->name);
	json_put_bool(w, "started", info->started);
	json_put_u64(w, "max_queues", info->max_queues);
	json_put_u64(w, "inflight_task_cnt", info->inflight);
	json_put_u64(w, "waiting_queues", info->waiting);
	json_put_u64(w, "abandoned_task_cnt", info->abandoned);
	json_out_object_end(w);
}

static void write_controller(struct json_out *w, const struct vhost_controller *c) CONTROL_ONLY
{
	struct vhost_controller_info info;
	char mask[CPUMASK_STR];

	vhost_controller_get_info(c, &info);
	json_out_object(w);
	json_put_string(w, "ctrlr", info.name);
	json_put_string(w, "cpumask", cpumask_format(&info.cpumask, mask));
	json_put_u64(w, "delay_base_us", info.delay_base_us);
	json_put_u64(w, "iops_threshold", info.iops_threshold);
	json_put_string(w, "socket", info.socket);
	json_put_array(w, "sessions");
	vhost_controller_each_session(c, write_session, w);
	json_out_array_end(w);
	json_put_object(w, "backend_specific");
	json_put_object(w, "block");
	json_put_bool(w, "readonly", info.readonly);
	json_put_string(w, "bdev", info.bdev ? info.bdev->name : NULL);
	json_put_string(w, "transport", TRANSPORT);
	json_out_object_end(w);
	json_out_object_end(w);
	json_out_object_end(w);
}

struct name_args {
	const char *name;
};
static const struct rpc_param name_params[] = {
	RPC_PARAM(struct name_args, name, RPC_OPTIONAL),
};

static void get_controllers(struct rpc_call *call) CONTROL_ONLY
{
	const struct name_args *args = (const void *)call->args;
	struct vhost_controller *c = args->name ? vhost_controller_find(args->name) : NULL;
	struct json_out *w;

	if (args->name && !c) {
		rpc_reply_error(call, RPC_INTERNAL_ERROR, rpc_strerror(ENODEV),
				"there is no controller named \"%.100s\"", args->name);
		return;
	}
	w = rpc_result(call);
	json_out_array(w);
	if (c) {
		write_controller(w, c);
	} else {
		while ((c = vhost_controller_next(c)))
			write_controller(w, c);
	}
	json_out_array_end(w);
	rpc_reply(call);
}

/* ------- transports: there is one ------- */

static void get_transports(struct rpc_call *call) CONTROL_ONLY
{
	const struct name_args *args = (const void *)call->args;
	struct json_out *w;

	if (args->name && strcmp(args->name, TRANSPORT) != 0) {
		rpc_reply_error(call, -ENODEV, rpc_strerror(ENODEV),
				"there is no transport \"%.64s\", only " TRANSPORT, args->name);
		return;
	}
	w = rpc_result(call);
	json_out_array(w);
	json_out_object(w);
	json_put_string(w, "name", TRANSPORT);
	json_out_object_end(w);
	json_out_array_end(w);
	rpc_reply(call);
}

static const struct rpc_param transport_params[] = {
	RPC_PARAM(struct name_args, name, RPC_REQUIRED),
};

static void create_transport(struct rpc_call *call) CONTROL_ONLY
{
	const struct name_args *args = (const void *)call->args;

	if (strcmp(args->name, TRANSPORT) == 0)
		rpc_reply_error(call, -EEXIST, rpc_strerror(EEXIST),
				"transport \"" TRANSPORT "\" is there from the start");
	else
		rpc_reply_error(call, -ENODEV, rpc_strerror(ENODEV),
				"there is no transport \"%.64s\", only " TRANSPORT, args->name);
}

#define VHOST(method, alias, fn, params_table, args)                              \
	{ method, alias, RPC_RUNTIME, RPC_VHOST_ERRORS, fn, RPC_PARAMS(params_table, args) }
#define VHOST_CHANGES(method, alias, fn, params_table, args)                      \
	{ method, alias, RPC_RUNTIME, RPC_VHOST_ERRORS | RPC_CHANGES, fn,         \
	  RPC_PARAMS(params_table, args) }

const struct rpc_method rpc_vhost_methods[] = {
	{ "vhost_create_blk_controller", "construct_vhost_blk_controller", RPC_RUNTIME,
	  RPC_VHOST_ERRORS | RPC_CHANGES, create_blk_controller,
	  RPC_PARAMS(create_params, struct create_args), .defaults = &create_defaults },
	VHOST_CHANGES("vhost_delete_controller", "remove_vhost_controller", delete_controller,
		      ctrlr_params, struct ctrlr_args),
	VHOST_CHANGES("vhost_controller_attach_bdev", NULL, attach_bdev, attach_params,
		      struct attach_args),
	VHOST_CHANGES("vhost_controller_set_coalescing", "set_vhost_controller_coalescing",
		      set_coalescing, coalescing_params, struct coalescing_args),
	VHOST("vhost_get_controllers", "get_vhost_controllers", get_controllers, name_params,
	      struct name_args),
	{ "virtio_blk_get_transports", NULL, RPC_ALWAYS, 0, get_transports,
	  RPC_PARAMS(name_params, struct name_args) },
	{ "virtio_blk_create_transport", NULL, RPC_ALWAYS, 0, create_transport,
	  RPC_PARAMS(transport_params, struct name_args) },
	{ .name = NULL },
};
