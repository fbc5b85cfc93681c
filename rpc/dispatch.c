/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * From a JSON value to a handler and back: the shape of a request, the method
 * tables, the decoding of parameters, the replies.
 *
 * Parameters are declared, not parsed: a method's table says name, type and
 * whether it is required, and everything else (wrong type, out of range,
 * unknown, missing, given twice) is refused here in one way, -32602 with the
 * parameter's name and value in error.data. A handler sees a filled-in struct.
 *
 * A call lives from rpc_dispatch() until its one reply and owns the request's
 * params, in which its strings lie. Every refusal is logged here, once and
 * rate-limited, unless the layer that found it has done so.
 */
#include "rpc/config.h"
#include "rpc/rpc.h"
#include "rpc/takeover.h"

#include "reactor/log.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WHY_MAX RPC_WHY_MAX
#define RPC_ERRNO_MIN (-4095)	/* codes below it are JSON-RPC's */

static const struct rpc_method *const method_tables[] = {
	rpc_app_methods, rpc_bdev_methods, rpc_bdev_show_methods, rpc_vhost_methods,
	rpc_notify_methods, rpc_pending_methods, rpc_takeover_methods,
#if SPINDLE_RBD
	rpc_rbd_methods,
#endif
};

static struct {
	char *allowed;		/* NULL: all */
	unsigned int state;	/* RPC_STARTUP or RPC_RUNTIME */
} dispatch;

static struct log_limit refusal_limit;

const char *rpc_strerror(int err)
{
	const char *text = strerrordesc_np(err);

	return text ? text : "Unknown error";
}

/* ------- the method table ------- */

static bool name_in_list(const char *list, const char *name, size_t len)
{
	while (*list) {
		size_t n = strcspn(list, ", ");

		if (n == len && memcmp(list, name, n) == 0)
			return true;
		list += n + (list[n] != '\0');
	}
	return false;
}

static bool method_allowed(const struct rpc_method *m)
{
	if (!dispatch.allowed)
		return true;
	if (name_in_list(dispatch.allowed, m->name, strlen(m->name)))
		return true;
	return m->alias && name_in_list(dispatch.allowed, m->alias, strlen(m->alias));
}

/* Whether name[0..len) is m's name or, *alias then, its old one. */
static bool method_is(const struct rpc_method *m, const char *name, size_t len, bool *alias)
{
	*alias = false;
	if (strlen(m->name) == len && memcmp(m->name, name, len) == 0)
		return true;
	*alias = m->alias && strlen(m->alias) == len && memcmp(m->alias, name, len) == 0;
	return *alias;
}

static const struct rpc_method *method_find(const char *name, size_t len, bool *alias)
{
	for (size_t t = 0; t < ARRAY_SIZE(method_tables); t++)
		for (const struct rpc_method *m = method_tables[t]; m->name; m++)
			if (method_is(m, name, len, alias))
				return m;
	return NULL;
}

const struct rpc_method *rpc_method_find(const char *name)
{
	bool alias;

	return method_find(name, strlen(name), &alias);
}

void rpc_write_methods(struct json_out *w, bool current, bool aliases)
{
	json_out_array(w);
	for (size_t t = 0; t < ARRAY_SIZE(method_tables); t++) {
		for (const struct rpc_method *m = method_tables[t]; m->name; m++) {
			if (!method_allowed(m) || (current && !(m->states & dispatch.state)))
				continue;
			json_out_string(w, m->name);
			if (aliases && m->alias)
				json_out_string(w, m->alias);
		}
	}
	json_out_array_end(w);
}

bool rpc_is_runtime(void)
{
	return dispatch.state == RPC_RUNTIME;
}

void rpc_enter_runtime(void)
{
	dispatch.state = RPC_RUNTIME;
}

/* ------- start ------- */

int rpc_dispatch_init(const struct rpc_config *config)
{
	const char *p = config->allowed;
	bool alias;

	while (p && *p) {
		size_t n = strcspn(p, ", ");

		if (n && !method_find(p, n, &alias)) {
			log_error("--rpcs-allowed names an unknown method: %.*s", (int)n, p);
			return -EINVAL;
		}
		p += n + (p[n] != '\0');
	}
	rpc_dispatch_fini();
	if (config->allowed) {
		dispatch.allowed = strdup(config->allowed);
		if (!dispatch.allowed) {
			log_error("no memory for the list of allowed methods");
			return -ENOMEM;
		}
	}
	dispatch.state = config->wait_for_rpc ? RPC_STARTUP : RPC_RUNTIME;
	return 0;
}

void rpc_dispatch_fini(void)
{
	free(dispatch.allowed);
	dispatch.allowed = NULL;
}

/* ------- replies ------- */

/* "{"jsonrpc":"2.0","id":1": every reply's beginning. */
static void write_head(struct json_out *w, struct json_object *id)
{
	size_t len = 4;
	const char *text = "null";

	if (id)
		text = json_object_to_json_string_length(
			id, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &len);
	json_out_object(w);
	json_put_string(w, "jsonrpc", "2.0");
	json_out_key(w, "id");
	json_out_value(w, text, len);
}

static void write_error(struct json_out *w, struct json_object *id, int code,
			const char *message, const char *data)
{
	write_head(w, id);
	json_put_object(w, "error");
	json_put_i64(w, "code", code);
	json_put_string(w, "message", message);
	if (data && *data)
		json_put_string(w, "data", data);
	json_out_object_end(w);
	json_out_object_end(w);
}

/* w NULL: silence. */
static void client_answer(struct rpc_client *client, struct rpc_answer *answer,
			  const struct json_out *w) CONTROL_ONLY
{
	static const char oom[] = "{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32603,"
				  "\"message\":\"Cannot allocate memory\"}}";
	const char *text = NULL;
	size_t len = 0;

	if (w && w->failed) {
		text = oom;
		len = sizeof(oom) - 1;
	} else if (w) {
		text = w->text;
		len = w->len;
	}
	if (answer)
		rpc_client_answer_held(client, answer, text, len);
	else
		rpc_client_answer(client, text, len);
}

static void call_free(struct rpc_call *call)
{
	json_object_put(call->id);
	json_object_put(call->params);
	json_out_fini(&call->out);
	free(call);
}

static void own_call_end(struct rpc_call *call, int status, const char *why) CONTROL_ONLY
{
	void (*done)(void *arg, int status, const char *why) = call->done;
	void *arg = call->done_arg;
	char text[WHY_MAX];

	/* What why points at may go with the call. */
	snprintf(text, sizeof(text), "%s", why);
	call_free(call);
	done(arg, status, text);
}

/* The call's one end. Without an id success is silent, an error is not. */
static void call_end(struct rpc_call *call, bool silent) CONTROL_ONLY
{
	struct rpc_client *client = call->client;
	struct rpc_answer *answer = call->answer;
	struct json_out out = call->out;

	if (!client) {
		own_call_end(call, 0, "");
		return;
	}
	call->out = (struct json_out){ 0 };
	call_free(call);
	client_answer(client, answer, silent ? NULL : &out);
	json_out_fini(&out);
}

struct json_out *rpc_result(struct rpc_call *call)
{
	write_head(&call->out, call->id);
	json_out_key(&call->out, "result");
	return &call->out;
}

void rpc_reply(struct rpc_call *call)
{
	json_out_object_end(&call->out);
	if (call->client && call->method->flags & RPC_CHANGES) {
		pending_wake();
		if (rpc_state_hold(call))
			return;
	}
	call_end(call, !call->has_id);
}

void rpc_reply_true(struct rpc_call *call)
{
	json_out_bool(rpc_result(call), true);
	rpc_reply(call);
}

void rpc_reply_string(struct rpc_call *call, const char *s)
{
	json_out_string(rpc_result(call), s);
	rpc_reply(call);
}

static void rpc_refused(const char *method, const char *message, const char *data)
{
	log_limited(LOG_ERROR, &refusal_limit, "%s: %s", method, data && *data ? data : message);
}

static void reply_error(struct rpc_call *call, int code, const char *message, const char *data,
			bool logged) CONTROL_ONLY
{
	if (!call->client) {
		own_call_end(call, code < RPC_ERRNO_MIN ? -EINVAL : code,
			     data && *data ? data : message);
		return;
	}
	if (!logged)
		rpc_refused(call->method->name, message, data);
	call->out.len = 0;
	write_error(&call->out, call->id, code, message, data);
	call_end(call, false);
}

void rpc_reply_error(struct rpc_call *call, int code, const char *message, const char *fmt, ...)
{
	char data[WHY_MAX] = "";
	va_list ap;

	if (fmt) {
		va_start(ap, fmt);
		vsnprintf(data, sizeof(data), fmt, ap);
		va_end(ap);
	}
	reply_error(call, code, message, data, false);
}

void rpc_reply_errno(struct rpc_call *call, int status, const char *reason, bool logged)
{
	int code = call->method->flags & RPC_VHOST_ERRORS ? RPC_INVALID_PARAMS : status;

	if (!call->client) {
		own_call_end(call, status, reason && *reason ? reason : rpc_strerror(-status));
		return;
	}
	reply_error(call, code, rpc_strerror(-status), reason, logged);
}

void rpc_release(struct rpc_call *call, int status, const char *why)
{
	if (status == 0)
		call_end(call, !call->has_id);
	else
		reply_error(call, status, rpc_strerror(-status), why, false);
}

void rpc_dispatch_error(struct rpc_client *client, int code, const char *message, const char *data)
{
	struct json_out out = { 0 };

	write_error(&out, NULL, code, message, data);
	client_answer(client, NULL, &out);
	json_out_fini(&out);
}

/* ------- parameters ------- */

unsigned int rpc_strings_count(const struct rpc_strings *s)
{
	return s->array ? (unsigned int)json_object_array_length(s->array) : 0;
}

const char *rpc_strings_at(const struct rpc_strings *s, unsigned int i)
{
	return json_object_get_string(json_object_array_get_idx(s->array, i));
}

bool rpc_string_map_each(const struct rpc_string_map *m,
			 bool (*fn)(const char *key, const char *value, void *arg), void *arg)
{
	if (!m->object)
		return true;
	json_object_object_foreach(m->object, key, value) {
		if (!fn(key, json_object_get_string(value), arg))
			return false;
	}
	return true;
}

/* A string usable in C: no NUL inside. */
static bool is_c_string(struct json_object *v)
{
	return json_object_is_type(v, json_type_string) &&
	       strlen(json_object_get_string(v)) == (size_t)json_object_get_string_len(v);
}

/* A whole number as sign and magnitude; 1.0 and 1e3 are whole, as SPDK has it. */
static bool get_whole(struct json_object *v, bool *negative, uint64_t *magnitude)
{
	double d;

	if (json_object_is_type(v, json_type_int)) {
		int64_t i = json_object_get_int64(v);

		*negative = i < 0;
		*magnitude = i < 0 ? -(uint64_t)i : json_object_get_uint64(v);
		return true;
	}
	if (!json_object_is_type(v, json_type_double))
		return false;
	d = json_object_get_double(v);
	/* Written so that a NaN is refused as well. */
	if (!(fabs(d) < 9007199254740992.0) || d != trunc(d))
		return false;
	*negative = d < 0;
	*magnitude = (uint64_t)(d < 0 ? -d : d);
	return true;
}

static bool get_unsigned(struct json_object *v, uint64_t max, uint64_t *out)
{
	bool negative;
	uint64_t magnitude;

	if (!get_whole(v, &negative, &magnitude) || (negative && magnitude) || magnitude > max)
		return false;
	*out = magnitude;
	return true;
}

static bool get_i32(struct json_object *v, int32_t *out)
{
	bool negative;
	uint64_t magnitude;

	if (!get_whole(v, &negative, &magnitude) || magnitude > (uint64_t)INT32_MAX + negative)
		return false;
	*out = (int32_t)(negative ? -(int64_t)magnitude : (int64_t)magnitude);
	return true;
}

static bool get_word(struct json_object *v, const char *const *words, struct rpc_word *out)
{
	if (!is_c_string(v))
		return false;
	for (unsigned int i = 0; words[i]; i++) {
		if (strcmp(words[i], json_object_get_string(v)) == 0) {
			out->index = i;
			return true;
		}
	}
	return false;
}

static bool get_strings(struct json_object *v, struct rpc_strings *out)
{
	if (!json_object_is_type(v, json_type_array))
		return false;
	for (size_t i = 0; i < json_object_array_length(v); i++)
		if (!is_c_string(json_object_array_get_idx(v, i)))
			return false;
	out->array = v;
	return true;
}

static bool get_string_map(struct json_object *v, struct rpc_string_map *out)
{
	if (!v)
		return true;
	if (!json_object_is_type(v, json_type_object))
		return false;
	json_object_object_foreach(v, key, value) {
		(void)key;
		if (!is_c_string(value))
			return false;
	}
	out->object = v;
	return true;
}

static bool decode_param(const struct rpc_param *p, struct json_object *v, void *field)
{
	uint64_t u;

	switch (p->type) {
	case RPC_STRING:
		if (!is_c_string(v))
			return false;
		*(const char **)field = json_object_get_string(v);
		return true;
	case RPC_BOOL:
		if (!json_object_is_type(v, json_type_boolean))
			return false;
		*(bool *)field = json_object_get_boolean(v);
		return true;
	case RPC_U8:
		if (!get_unsigned(v, UINT8_MAX, &u))
			return false;
		*(uint8_t *)field = (uint8_t)u;
		return true;
	case RPC_U32:
		if (!get_unsigned(v, UINT32_MAX, &u))
			return false;
		*(uint32_t *)field = (uint32_t)u;
		return true;
	case RPC_U64:
		return get_unsigned(v, UINT64_MAX, field);
	case RPC_I32:
		return get_i32(v, field);
	case RPC_WORD:
		return get_word(v, p->words, field);
	case RPC_STRINGS:
		return get_strings(v, field);
	case RPC_STRING_MAP:
		return get_string_map(v, field);
	}
	return false;
}

static const char *type_text(enum rpc_type type)
{
	static const char *const texts[] = {
		[RPC_STRING] = "a string without NUL",
		[RPC_BOOL] = "true or false",
		[RPC_U8] = "an integer from 0 to 255",
		[RPC_U32] = "an integer from 0 to 4294967295",
		[RPC_U64] = "an integer from 0 to 18446744073709551615",
		[RPC_I32] = "an integer from -2147483648 to 2147483647",
		[RPC_STRINGS] = "an array of strings",
		[RPC_STRING_MAP] = "an object of strings",
	};

	return texts[type];
}

/* What was wanted of p, and what came instead. */
static void explain(const struct rpc_param *p, struct json_object *v, char why[WHY_MAX])
{
	const char *got = json_object_to_json_string_ext(
		v, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
	char words[160];
	size_t len = 0;

	if (p->type == RPC_WORD) {
		len = (size_t)snprintf(words, sizeof(words), "one of");
		for (unsigned int i = 0; p->words[i] && len < sizeof(words); i++)
			len += (size_t)snprintf(words + len, sizeof(words) - len, " %s",
						p->words[i]);
	} else {
		snprintf(words, sizeof(words), "%s", type_text(p->type));
	}
	snprintf(why, WHY_MAX, "parameter \"%s\" must be %s, not %.100s", p->name, words,
		 got ? got : "null");
}

static bool decode_params(const struct rpc_method *m, struct json_object *params, void *args,
			  char why[WHY_MAX])
{
	uint64_t given = 0;

	if (m->defaults)
		memcpy(args, m->defaults, m->args_size);
	if (params) {
		json_object_object_foreach(params, key, value) {
			unsigned int i = 0;

			while (i < m->param_count && strcmp(m->params[i].name, key) != 0)
				i++;
			if (i == m->param_count) {
				snprintf(why, WHY_MAX, "unknown parameter \"%.64s\"", key);
				return false;
			}
			if (!decode_param(&m->params[i], value,
					  (char *)args + m->params[i].offset)) {
				explain(&m->params[i], value, why);
				return false;
			}
			given |= UINT64_C(1) << i;
		}
	}
	for (unsigned int i = 0; i < m->param_count; i++) {
		if (m->params[i].required && !(given & UINT64_C(1) << i)) {
			snprintf(why, WHY_MAX, "missing parameter \"%s\"", m->params[i].name);
			return false;
		}
	}
	return true;
}

/* ------- requests ------- */

struct request {
	struct json_object *id, *params;
	const char *method;
	size_t method_len;
	bool has_id;
};

/* The envelope, member by member; NULL, or what is wrong with it. */
static const char *parse_request(struct json_object *request, struct request *r)
{
	if (!json_object_is_type(request, json_type_object))
		return "a request must be an object";
	json_object_object_foreach(request, key, v) {
		if (strcmp(key, "jsonrpc") == 0) {
			if (!json_object_is_type(v, json_type_string) ||
			    strcmp(json_object_get_string(v), "2.0") != 0)
				return "\"jsonrpc\" must be \"2.0\"";
		} else if (strcmp(key, "id") == 0) {
			if (v && !json_object_is_type(v, json_type_string) &&
			    !json_object_is_type(v, json_type_int) &&
			    !json_object_is_type(v, json_type_double))
				return "\"id\" must be a string, a number or null";
			r->id = v;
			r->has_id = true;
		} else if (strcmp(key, "method") == 0) {
			if (!json_object_is_type(v, json_type_string))
				return "\"method\" must be a string";
			r->method = json_object_get_string(v);
			r->method_len = (size_t)json_object_get_string_len(v);
		} else if (strcmp(key, "params") == 0) {
			r->params = v;
		} else {
			return "a request has no members but jsonrpc, id, method and params";
		}
	}
	return r->method ? NULL : "\"method\" is missing";
}

static void fault_text(const struct json_fault *fault, const char *what, char why[WHY_MAX])
{
	if (fault->kind == JSON_DUPLICATE_KEY)
		snprintf(why, WHY_MAX, "%s \"%s\" given twice", what, fault->key);
	else
		snprintf(why, WHY_MAX, "%s \"%s\": a number does not fit 64 bits", what,
			 fault->key);
}

/* All that can be wrong with a call before its handler sees it. */
static bool call_refused(struct rpc_call *call, const struct json_fault *fault) CONTROL_ONLY
{
	const struct rpc_method *m = call->method;
	const char *message = m->flags & RPC_VHOST_ERRORS ? "Invalid argument" :
							     "Invalid parameters";
	char why[WHY_MAX] = "";

	if (!(m->states & dispatch.state)) {
		rpc_reply_error(call, RPC_INVALID_STATE,
				dispatch.state == RPC_STARTUP ?
				"Method may only be called after framework is initialized using "
				"framework_start_init RPC." :
				"Method may only be called before framework is initialized. Use "
				"--wait-for-rpc command line parameter and then issue this RPC "
				"before the framework_start_init RPC.", NULL);
		return true;
	}
	if (takeover_is_active() && (m->flags & RPC_CHANGES)) {
		rpc_reply_errno(call, -EBUSY, "a successor is taking over", false);
		return true;
	}
	if (call->params && !json_object_is_type(call->params, json_type_object))
		snprintf(why, sizeof(why), "\"params\" must be an object");
	else if (fault)
		fault_text(fault, "parameter", why);
	else if (m->flags & RPC_ANY_PARAMS ||
		 decode_params(m, call->params, call->args, why))
		return false;
	reply_error(call, RPC_INVALID_PARAMS, message, why, false);
	return true;
}

static struct rpc_call *call_new(const struct rpc_method *m, struct json_object *params)
{
	size_t size = (sizeof(struct rpc_call) + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1);
	struct rpc_call *call = aligned_alloc(CACHE_LINE, size);

	if (!call)
		return NULL;
	memset(call, 0, sizeof(*call));
	call->method = m;
	call->params = json_object_get(params);
	list_init(&call->node);
	return call;
}

static void call_start(struct rpc_client *client, const struct request *r,
		       const struct rpc_method *m, const struct json_fault *fault) CONTROL_ONLY
{
	struct rpc_call *call = call_new(m, r->params);

	if (!call) {
		rpc_dispatch_error(client, RPC_INTERNAL_ERROR, rpc_strerror(ENOMEM), NULL);
		return;
	}
	call->client = client;
	call->id = json_object_get(r->id);
	call->has_id = r->has_id;
	log_debug(LOG_F_RPC, "%s", m->name);
	rpc_client_began(client, call);
	if (!call_refused(call, fault) && !pending_answers(call))
		m->fn(call);
}

bool rpc_method_check(const struct rpc_method *m, struct json_object *params,
		      char why[RPC_WHY_MAX])
{
	CACHE_ALIGNED unsigned char args[RPC_ARGS_MAX] = { 0 };

	if (params && !json_object_is_type(params, json_type_object)) {
		snprintf(why, RPC_WHY_MAX, "\"params\" must be an object");
		return false;
	}
	return m->flags & RPC_ANY_PARAMS || decode_params(m, params, args, why);
}

void rpc_call_own(const struct rpc_method *m, struct json_object *params,
		  void (*done)(void *arg, int status, const char *why), void *arg)
{
	struct rpc_call *call = call_new(m, params);
	char why[WHY_MAX] = "";

	if (!call) {
		done(arg, -ENOMEM, rpc_strerror(ENOMEM));
		return;
	}
	call->done = done;
	call->done_arg = arg;
	log_debug(LOG_F_RPC, "%s (ours)", m->name);
	if (m->flags & RPC_ANY_PARAMS || decode_params(m, params, call->args, why))
		m->fn(call);
	else
		own_call_end(call, -EINVAL, why);
}

/* An answer outside any call; for the log the method's name as the client has it. */
static void refuse(struct rpc_client *client, struct json_object *id, int code,
		   const char *message, const char *why) CONTROL_ONLY
{
	struct json_out out = { 0 };

	rpc_refused("request", message, why);
	write_error(&out, id, code, message, why);
	client_answer(client, NULL, &out);
	json_out_fini(&out);
}

void rpc_dispatch(struct rpc_client *client, struct json_object *request,
		  const struct json_fault *fault)
{
	const struct rpc_method *m;
	struct request r = { 0 };
	char why[WHY_MAX];
	bool alias;
	const char *bad = parse_request(request, &r);

	if (bad) {
		refuse(client, NULL, RPC_INVALID_REQUEST, "Invalid request", bad);
		return;
	}
	if (fault && fault->depth <= 1) {
		fault_text(fault, "member", why);
		refuse(client, NULL, RPC_INVALID_REQUEST, "Invalid request", why);
		return;
	}
	m = method_find(r.method, r.method_len, &alias);
	if (!m || !method_allowed(m)) {
		snprintf(why, sizeof(why), "%s method \"%.100s\"",
			 m ? "--rpcs-allowed leaves out the" : "there is no", r.method);
		refuse(client, r.id, RPC_METHOD_NOT_FOUND, "Method not found", why);
		return;
	}
	if (alias)
		log_limited(LOG_WARNING, &refusal_limit, "RPC method %s is an old name of %s",
			    m->alias, m->name);
	call_start(client, &r, m, fault);
}
