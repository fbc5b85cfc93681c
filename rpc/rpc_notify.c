/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The block layer's notes under SPDK's names, notify_get_types and
 * notify_get_notifications. A client asks for what it has not seen, from the id
 * after its last one; it can tell from a gap in the ids that it asked too
 * seldom. Types beyond SPDK's begin with bdev_ as well.
 */
#include "rpc/rpc.h"

static const char *const type_names[BDEV_NOTE_TYPES] = {
	[BDEV_NOTE_REGISTER] = "bdev_register",
	[BDEV_NOTE_UNREGISTER] = "bdev_unregister",
	[BDEV_NOTE_RESIZE] = "bdev_resize",
	[BDEV_NOTE_STALLED] = "bdev_stalled",
	[BDEV_NOTE_RECOVERED] = "bdev_recovered",
	[BDEV_NOTE_FENCED] = "bdev_fenced",
};

static void get_types(struct rpc_call *call) CONTROL_ONLY
{
	struct json_out *w = rpc_result(call);

	json_out_array(w);
	for (unsigned int i = 0; i < BDEV_NOTE_TYPES; i++)
		json_out_string(w, type_names[i]);
	json_out_array_end(w);
	rpc_reply(call);
}

struct notes_args {
	uint64_t id, max;
};
static const struct notes_args notes_defaults = { .max = UINT64_MAX };
static const struct rpc_param notes_params[] = {
	RPC_PARAM(struct notes_args, id, RPC_OPTIONAL),
	RPC_PARAM(struct notes_args, max, RPC_OPTIONAL),
};

static void get_notifications(struct rpc_call *call) CONTROL_ONLY
{
	const struct notes_args *args = (const void *)call->args;
	struct json_out *w = rpc_result(call);
	uint64_t id = MAX(args->id, bdev_notes_first());
	const struct bdev_note *note;

	json_out_array(w);
	for (uint64_t n = 0; n < args->max && (note = bdev_note_at(id)); n++, id++) {
		json_out_object(w);
		json_put_string(w, "type", type_names[note->type]);
		json_put_string(w, "ctx", note->name);
		json_put_u64(w, "id", id);
		json_out_object_end(w);
	}
	json_out_array_end(w);
	rpc_reply(call);
}

const struct rpc_method rpc_notify_methods[] = {
	{ "notify_get_types", "get_notification_types", RPC_RUNTIME, 0, get_types,
	  .params = NULL },
	{ "notify_get_notifications", "get_notifications", RPC_RUNTIME, 0, get_notifications,
	  RPC_PARAMS(notes_params, struct notes_args), .defaults = &notes_defaults },
	{ .name = NULL },
};
