/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The RBD methods: images as bdevs, and registered clusters. Parameters are
 * SPDK's and a few of ours; an image may also be given as one string, by QEMU's
 * name for it (`uri`). Secrets stay out of answers: options whose name says that
 * they hold a key are shown and saved without their value.
 */
#include "rpc/rpc.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB_SHIFT 20

static char *plain(const char *s)
{
	/* The block layer copies what it is given and writes to none of it. */
	return (char *)(uintptr_t)s;
}

static void done(struct bdev_result *res)
{
	struct rpc_call *call = rpc_call_of_result(res);

	control_assert();
	if (res->status < 0)
		rpc_reply_errno(call, res->status, res->reason, false);
	else if (res->bdev)
		rpc_reply_string(call, res->bdev->name);
	else
		rpc_reply_true(call);
}

static struct bdev_result *result(struct rpc_call *call)
{
	call->res.fn = done;
	return &call->res;
}

/* ------- options ------- */

static bool add_option(const char *key, const char *value, void *arg)
{
	struct bdev_rbd_access *a = arg;
	struct bdev_rbd_option *more =
		realloc(a->options, (a->option_count + 1) * sizeof(a->options[0]));

	if (!more)
		return false;
	a->options = more;
	more[a->option_count++] = (struct bdev_rbd_option){ plain(key), plain(value) };
	return true;
}

static bool tells_secrets;

void rpc_rbd_tell_secrets(bool tell)
{
	tells_secrets = tell;
}

static bool is_secret(const char *key)
{
	return !strcmp(key, "key") || strstr(key, "secret") || strstr(key, "password");
}

/* ------- bdev_rbd_create ------- */

struct create_args {
	const char *name, *uuid, *pool_name, *rbd_name, *namespace, *snapshot;
	const char *user_id, *cluster_name, *config_file, *key_file, *uri;
	struct rpc_string_map config;
	struct rpc_word cache;
	uint32_t block_size, timeout, io_timeout;
	bool read_only, exclusive;
};
static const char *const cache_words[] = {
	"default", "none", "writeback", "writethrough", NULL
};
static const struct rpc_param create_params[] = {
	RPC_PARAM(struct create_args, pool_name, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, rbd_name, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, block_size, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, name, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, user_id, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, config, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, cluster_name, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, uuid, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, read_only, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, namespace, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, snapshot, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, config_file, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, key_file, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, uri, RPC_OPTIONAL),
	RPC_PARAM_WORD(struct create_args, cache, RPC_OPTIONAL, cache_words),
	RPC_PARAM(struct create_args, exclusive, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, timeout, RPC_OPTIONAL),
	RPC_PARAM(struct create_args, io_timeout, RPC_OPTIONAL),
};

static bool missing(struct rpc_call *call, const struct create_args *a) CONTROL_ONLY
{
	if (a->uri && (a->pool_name || a->rbd_name || a->namespace || a->snapshot)) {
		rpc_reply_error(call, RPC_INVALID_PARAMS, "Invalid parameters",
				"\"uri\" names pool and image already");
		return true;
	}
	if (!a->uri && (!a->pool_name || !a->rbd_name)) {
		rpc_reply_error(call, RPC_INVALID_PARAMS, "Invalid parameters",
				"missing parameter \"%s\"", a->pool_name ? "rbd_name" : "pool_name");
		return true;
	}
	if (!a->block_size && !a->uri) {
		rpc_reply_error(call, RPC_INVALID_PARAMS, "Invalid parameters",
				"missing parameter \"block_size\"");
		return true;
	}
	return false;
}

static void common_opts(const struct create_args *a, struct bdev_rbd_opts *o)
{
	o->name = plain(a->name);
	o->uuid = plain(a->uuid);
	o->cluster = plain(a->cluster_name);
	o->block_size = a->block_size;
	o->readonly = a->read_only;
	o->exclusive = a->exclusive;
	o->cache = (enum bdev_rbd_cache)a->cache.index;
	o->timeout_ms = a->timeout > UINT32_MAX / 1000 ? UINT32_MAX : a->timeout * 1000;
	o->io_timeout_ms = a->io_timeout > UINT32_MAX / 1000 ? UINT32_MAX : a->io_timeout * 1000;
}

static void create_from_uri(struct rpc_call *call, const struct create_args *a) CONTROL_ONLY
{
	struct bdev_rbd_opts parsed = { 0 }, o;
	char reason[BDEV_REASON_MAX] = "";
	int rc = bdev_rbd_parse(a->uri, &parsed, reason);

	if (rc < 0) {
		rpc_reply_errno(call, rc, reason, false);
		return;
	}
	o = parsed;
	common_opts(a, &o);
	if (a->user_id)
		o.access.user_id = plain(a->user_id);
	if (a->config_file)
		o.access.config_file = plain(a->config_file);
	o.access.key_file = plain(a->key_file);
	bdev_rbd_create(&o, result(call));
	bdev_rbd_opts_free(&parsed);
}

static void rbd_create(struct rpc_call *call) CONTROL_ONLY
{
	const struct create_args *a = (const void *)call->args;
	struct bdev_rbd_opts o = { 0 };

	if (missing(call, a))
		return;
	if (a->uri) {
		create_from_uri(call, a);
		return;
	}
	common_opts(a, &o);
	o.pool = plain(a->pool_name);
	o.image = plain(a->rbd_name);
	o.ns = plain(a->namespace);
	o.snapshot = plain(a->snapshot);
	o.access.user_id = plain(a->user_id);
	o.access.config_file = plain(a->config_file);
	o.access.key_file = plain(a->key_file);
	if (rpc_string_map_each(&a->config, add_option, &o.access))
		bdev_rbd_create(&o, result(call));
	else
		rpc_reply_errno(call, -ENOMEM, NULL, false);
	free(o.access.options);
}

struct name_args {
	const char *name;
};
static const struct rpc_param name_params[] = {
	RPC_PARAM(struct name_args, name, RPC_REQUIRED),
};
static const struct rpc_param maybe_name_params[] = {
	RPC_PARAM(struct name_args, name, RPC_OPTIONAL),
};

static void rbd_delete(struct rpc_call *call) CONTROL_ONLY
{
	const struct name_args *a = (const void *)call->args;

	bdev_delete(a->name, &bdev_rbd_ops, result(call));
}

struct resize_args {
	const char *name;
	uint64_t new_size;	/* MiB */
	bool allow_shrink;
};
static const struct rpc_param resize_params[] = {
	RPC_PARAM(struct resize_args, name, RPC_REQUIRED),
	RPC_PARAM(struct resize_args, new_size, RPC_REQUIRED),
	RPC_PARAM(struct resize_args, allow_shrink, RPC_OPTIONAL),
};

static void rbd_resize_method(struct rpc_call *call) CONTROL_ONLY
{
	const struct resize_args *a = (const void *)call->args;

	if (a->new_size > INT64_MAX >> MIB_SHIFT)
		rpc_reply_errno(call, -EINVAL, "parameter \"new_size\" is more than 2^63 bytes",
				false);
	else
		bdev_rbd_resize(a->name, a->new_size << MIB_SHIFT, a->allow_shrink, result(call));
}

/* ------- clusters ------- */

struct register_args {
	const char *name, *user_id, *config_file, *key_file, *core_mask;
	struct rpc_string_map config_param;
};
static const struct rpc_param register_params[] = {
	RPC_PARAM(struct register_args, name, RPC_REQUIRED),
	RPC_PARAM(struct register_args, user_id, RPC_OPTIONAL),
	RPC_PARAM(struct register_args, config_param, RPC_OPTIONAL),
	RPC_PARAM(struct register_args, config_file, RPC_OPTIONAL),
	RPC_PARAM(struct register_args, key_file, RPC_OPTIONAL),
	RPC_PARAM(struct register_args, core_mask, RPC_OPTIONAL),
};

static void registered(struct bdev_result *res)
{
	struct rpc_call *call = rpc_call_of_result(res);
	const struct register_args *a = (const void *)call->args;

	control_assert();
	if (res->status < 0)
		rpc_reply_errno(call, res->status, res->reason, false);
	else
		rpc_reply_string(call, a->name);
}

static void register_cluster(struct rpc_call *call) CONTROL_ONLY
{
	const struct register_args *a = (const void *)call->args;
	struct bdev_rbd_access access = {
		.user_id = plain(a->user_id),
		.config_file = plain(a->config_file),
		.key_file = plain(a->key_file),
	};

	call->res.fn = registered;
	if (rpc_string_map_each(&a->config_param, add_option, &access))
		bdev_rbd_register_cluster(a->name, &access, a->core_mask, &call->res);
	else
		rpc_reply_errno(call, -ENOMEM, NULL, false);
	free(access.options);
}

static void unregister_cluster(struct rpc_call *call) CONTROL_ONLY
{
	const struct name_args *a = (const void *)call->args;
	char reason[BDEV_REASON_MAX] = "";
	int rc = bdev_rbd_unregister_cluster(a->name, reason);

	if (rc < 0)
		rpc_reply_errno(call, rc, reason, false);
	else
		rpc_reply_true(call);
}

static void put_maybe(struct json_out *w, const char *key, const char *value)
{
	if (value)
		json_put_string(w, key, value);
}

/* Options as an object; those with a secret in them without it. */
static void put_options(struct json_out *w, const char *key, const struct bdev_rbd_access *a)
{
	if (!a->option_count)
		return;
	json_put_object(w, key);
	for (unsigned int i = 0; i < a->option_count; i++) {
		if (tells_secrets || !is_secret(a->options[i].key))
			json_put_string(w, a->options[i].key, a->options[i].value);
	}
	json_out_object_end(w);
}

static void put_cluster(struct json_out *w, const struct bdev_rbd_cluster_info *info)
{
	json_out_object(w);
	json_put_string(w, "cluster_name", info->name);
	put_maybe(w, "user_id", info->access->user_id);
	put_options(w, "config_param", info->access);
	put_maybe(w, "config_file", info->access->config_file);
	put_maybe(w, "key_file", info->access->key_file);
	put_maybe(w, "core_mask", info->core_mask);
	json_out_object_end(w);
}

static void get_clusters(struct rpc_call *call) CONTROL_ONLY
{
	const struct name_args *a = (const void *)call->args;
	struct bdev_rbd_cluster_info info;
	struct json_out *w;
	bool any = false;

	for (unsigned int i = 0; bdev_rbd_cluster_info(i, &info); i++)
		any |= !a->name || !strcmp(a->name, info.name);
	if (!any) {
		rpc_reply_errno(call, -ENOENT, a->name ? "no such cluster is registered" :
				"no cluster is registered", false);
		return;
	}
	w = rpc_result(call);
	if (!a->name)
		json_out_array(w);
	for (unsigned int i = 0; bdev_rbd_cluster_info(i, &info); i++) {
		if (!a->name || !strcmp(a->name, info.name))
			put_cluster(w, &info);
	}
	if (!a->name)
		json_out_array_end(w);
	rpc_reply(call);
}

/* ------- showing and saving ------- */

static void put_image(struct json_out *w, const struct bdev_rbd_opts *o)
{
	json_put_string(w, "pool_name", o->pool);
	put_maybe(w, "namespace", o->ns);
	json_put_string(w, "rbd_name", o->image);
	put_maybe(w, "snapshot", o->snapshot);
	put_maybe(w, "cluster_name", o->cluster);
	put_maybe(w, "user_id", o->access.user_id);
	put_maybe(w, "config_file", o->access.config_file);
	put_maybe(w, "key_file", o->access.key_file);
	put_options(w, "config", &o->access);
	if (o->cache)
		json_put_string(w, "cache", cache_words[o->cache]);
}

void rpc_rbd_show(struct json_out *w, const struct bdev *bdev)
{
	struct bdev_rbd_health health;

	bdev_rbd_get_health(bdev, &health);
	json_put_object(w, "rbd");
	put_image(w, bdev_rbd_get_opts(bdev));
	json_put_u64(w, "oldest_inflight_us", health.oldest_us);
	json_put_bool(w, "stalled", health.stalled);
	json_put_bool(w, "fenced", health.fenced);
	json_out_object_end(w);
}

void rpc_rbd_save(struct json_out *w, const struct bdev *bdev)
{
	const struct bdev_rbd_opts *o = bdev_rbd_get_opts(bdev);

	json_put_string(w, "name", bdev->name);
	put_image(w, o);
	json_put_u64(w, "block_size", bdev->block_size);
	if (o->readonly)
		json_put_bool(w, "read_only", true);
	if (o->exclusive)
		json_put_bool(w, "exclusive", true);
	if (o->timeout_ms != BDEV_RBD_TIMEOUT_MS)
		json_put_u64(w, "timeout", o->timeout_ms / 1000);
	if (o->io_timeout_ms)
		json_put_u64(w, "io_timeout", o->io_timeout_ms / 1000);
}

void rpc_rbd_save_clusters(struct json_out *w)
{
	struct bdev_rbd_cluster_info info;

	for (unsigned int i = 0; bdev_rbd_cluster_info(i, &info); i++) {
		json_out_object(w);
		json_put_string(w, "method", "bdev_rbd_register_cluster");
		json_put_object(w, "params");
		json_put_string(w, "name", info.name);
		put_maybe(w, "user_id", info.access->user_id);
		put_options(w, "config_param", info.access);
		put_maybe(w, "config_file", info.access->config_file);
		put_maybe(w, "key_file", info.access->key_file);
		put_maybe(w, "core_mask", info.core_mask);
		json_out_object_end(w);
		json_out_object_end(w);
	}
}

/* "pool/image:id=x:key=y" without the options that hold secrets. */
static void strip_uri(char *uri)
{
	char *out = uri, *p = uri;

	while (*p) {
		char *end = p + (*p == ':');
		char key[128];
		size_t n = strcspn(p + (*p == ':'), "=:");

		while (*end && *end != ':')
			end += end[0] == '\\' && end[1] ? 2 : 1;
		snprintf(key, sizeof(key), "%.*s", (int)n, p + (*p == ':'));
		/* A secret must not slip through for a backslash in its name. */
		if (*p != ':' || p[n + 1] != '=' || strchr(key, '/') ||
		    !(is_secret(key) || strchr(key, '\\'))) {
			memmove(out, p, (size_t)(end - p));
			out += end - p;
		}
		p = end;
	}
	*out = '\0';
}

static void strip_map(struct json_object *map)
{
	struct json_object *kept;

	if (!json_object_is_type(map, json_type_object))
		return;
	do {
		kept = NULL;
		json_object_object_foreach(map, key, value) {
			(void)value;
			if (!is_secret(key))
				continue;
			json_object_object_del(map, key);
			kept = map;
			break;
		}
	} while (kept);
}

void rpc_rbd_strip_secrets(struct json_object *params)
{
	struct json_object *v;
	char *uri;

	if (tells_secrets)
		return;
	if (json_object_object_get_ex(params, "config", &v))
		strip_map(v);
	if (json_object_object_get_ex(params, "config_param", &v))
		strip_map(v);
	if (!json_object_object_get_ex(params, "uri", &v))
		return;
	uri = strdup(json_object_get_string(v));
	if (uri)
		strip_uri(uri);
	json_object_object_add(params, "uri", json_object_new_string(uri ? uri : ""));
	free(uri);
}

#define METHOD(method, alias, fn, table, args)                                    \
	{ method, alias, RPC_RUNTIME, RPC_CHANGES, fn, RPC_PARAMS(table, args) }

const struct rpc_method rpc_rbd_methods[] = {
	METHOD("bdev_rbd_create", "construct_rbd_bdev", rbd_create, create_params,
	       struct create_args),
	METHOD("bdev_rbd_delete", "delete_rbd_bdev", rbd_delete, name_params, struct name_args),
	METHOD("bdev_rbd_resize", NULL, rbd_resize_method, resize_params, struct resize_args),
	METHOD("bdev_rbd_register_cluster", NULL, register_cluster, register_params,
	       struct register_args),
	METHOD("bdev_rbd_unregister_cluster", NULL, unregister_cluster, name_params,
	       struct name_args),
	{ "bdev_rbd_get_clusters_info", NULL, RPC_RUNTIME, 0, get_clusters,
	  RPC_PARAMS(maybe_name_params, struct name_args) },
	{ .name = NULL },
};
