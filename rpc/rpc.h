/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * JSON-RPC 2.0 over a Unix socket: the part main.c uses comes first, the part
 * the handler files use second. Everything runs on the control thread.
 */
#ifndef SPINDLE_RPC_H
#define SPINDLE_RPC_H

#include "reactor/base.h"

struct rpc_config {
	const char *path;	/* socket; <path>.lock guards it */
	const char *allowed;	/* NULL: all; else "method,method,..." */
	bool wait_for_rpc;	/* only start-up methods until framework_start_init */
	const int *adopted;	/* NULL, or a predecessor's rpc_server_fds(), which are taken */
};

/*
 * Listen, mode 0600. A stale socket is replaced. -EADDRINUSE when a live process
 * holds <path>.lock, -EINVAL for an unknown name in `allowed`, -errno; the reason
 * has been logged.
 */
int rpc_start(const struct rpc_config *config) CONTROL_ONLY;
/* Only look whether config makes sense, as rpc_start() will. */
int rpc_prepare(const struct rpc_config *config) CONTROL_ONLY;
/* Close all clients, remove socket and lock file. */
void rpc_stop(void) CONTROL_ONLY;
/* Socket and lock file are a successor's by now: rpc_stop() is to leave them. */
void rpc_disown(void) CONTROL_ONLY;

/* ------- handlers: one table of methods per module ------- */

#include "bdev/bdev.h"
#include "reactor/control.h"
#include "rpc/json_text.h"

struct json_object;
struct rpc_client;
struct rpc_call;

#define RPC_PARSE_ERROR (-32700)
#define RPC_INVALID_REQUEST (-32600)
#define RPC_METHOD_NOT_FOUND (-32601)
#define RPC_INVALID_PARAMS (-32602)
#define RPC_INTERNAL_ERROR (-32603)
#define RPC_INVALID_STATE (-1)

/*
 * One parameter. Its type follows from the type of the field it is decoded
 * into, so that the two cannot disagree; see RPC_PARAM.
 */
enum rpc_type {
	RPC_STRING,	/* const char *: lives as long as the call */
	RPC_BOOL,
	RPC_U8,
	RPC_U32,
	RPC_U64,
	RPC_I32,
	RPC_WORD,	/* struct rpc_word: index into `words` */
	RPC_STRINGS,	/* struct rpc_strings: an array of strings */
	RPC_STRING_MAP,	/* struct rpc_string_map: an object whose values are strings, or null */
};

struct rpc_word {
	unsigned int index;
};

struct rpc_strings {
	struct json_object *array;	/* NULL: not given */
};
unsigned int rpc_strings_count(const struct rpc_strings *s);
const char *rpc_strings_at(const struct rpc_strings *s, unsigned int i);

struct rpc_string_map {
	struct json_object *object;	/* NULL: not given, or null */
};
/* Calls fn for each pair until it is false; false then. */
bool rpc_string_map_each(const struct rpc_string_map *m,
			 bool (*fn)(const char *key, const char *value, void *arg), void *arg);

struct rpc_param {
	const char *name;
	enum rpc_type type;
	bool required;
	size_t offset;
	const char *const *words;	/* RPC_WORD: ends with NULL */
};

#define RPC_TYPE_OF(s, field)                                                     \
	_Generic(((s *)NULL)->field,                                              \
		const char *: RPC_STRING, bool: RPC_BOOL, uint8_t: RPC_U8,        \
		uint32_t: RPC_U32, uint64_t: RPC_U64, int32_t: RPC_I32,           \
		struct rpc_word: RPC_WORD, struct rpc_strings: RPC_STRINGS,       \
		struct rpc_string_map: RPC_STRING_MAP)
#define RPC_PARAM(s, field, required)                                             \
	{ #field, RPC_TYPE_OF(s, field), required, offsetof(s, field), NULL }
#define RPC_PARAM_WORD(s, field, required, words)                                 \
	{ #field, RPC_WORD, required, offsetof(s, field), words }
#define RPC_REQUIRED true
#define RPC_OPTIONAL false

/* states */
#define RPC_STARTUP 0x1		/* before framework_start_init */
#define RPC_RUNTIME 0x2
#define RPC_ALWAYS (RPC_STARTUP | RPC_RUNTIME)
/* flags */
#define RPC_ANY_PARAMS 0x1	/* takes any parameters and ignores them */
#define RPC_VHOST_ERRORS 0x2	/* every refusal is -32602 with the errno's text */
#define RPC_CHANGES 0x4		/* the configuration: success is answered once it is saved */

#define RPC_ARGS_MAX 256

struct rpc_method {
	const char *name;
	const char *alias;		/* an old name, NULL: none */
	unsigned int states, flags;
	void (*fn)(struct rpc_call *call);	/* ends, now or later, in one reply */
	const struct rpc_param *params;
	unsigned int param_count;
	size_t args_size;
	const void *defaults;		/* args_size bytes; NULL: zeroes */
};
#define RPC_PARAMS(table, s)                                                      \
	.params = (table), .param_count = ARRAY_SIZE(table),                      \
	.args_size = sizeof(s) + 0 * sizeof(char[sizeof(s) <= RPC_ARGS_MAX ? 1 : -1])

/* Each ends with a row whose name is NULL. */
extern const struct rpc_method rpc_app_methods[], rpc_bdev_methods[], rpc_bdev_show_methods[],
	rpc_vhost_methods[], rpc_rbd_methods[], rpc_notify_methods[], rpc_pending_methods[],
	rpc_takeover_methods[];

/*
 * One call from decoding to reply. A handler that answers later keeps the
 * pointer; the call outlives its client, whose reply is then dropped. A handler
 * that may wait for long sets `cancel`, which is called when the client left and
 * must end in a reply; and does not wait at all when rpc_client_gone().
 */
struct rpc_call {
	const struct rpc_method *method;
	void (*cancel)(struct rpc_call *call);
	/* For the handler's use. */
	struct bdev_result res;
	struct control_timer timer;
	struct list node;
	uint64_t deadline_ns;
	unsigned int step;
	/* dispatch.c's */
	struct rpc_answer *answer;	/* its place among its client's; see rpc_client_hold() */
	struct rpc_client *client;	/* NULL: the call is our own, and done gets its end */
	void (*done)(void *arg, int status, const char *why);
	void *done_arg;
	struct json_object *id;		/* NULL: null, or none when !has_id */
	bool has_id;
	struct json_object *params;
	struct json_out out;
	CACHE_ALIGNED unsigned char args[RPC_ARGS_MAX];
};

static inline struct rpc_call *rpc_call_of_result(struct bdev_result *res)
{
	return container_of(res, struct rpc_call, res);
}

/* Write the result here, then rpc_reply(). Once per call. */
struct json_out *rpc_result(struct rpc_call *call);
/* Each of these ends the call: it is gone afterwards. */
void rpc_reply(struct rpc_call *call) CONTROL_ONLY;
void rpc_reply_true(struct rpc_call *call) CONTROL_ONLY;
void rpc_reply_string(struct rpc_call *call, const char *s) CONTROL_ONLY;
/* fmt: a sentence for error.data and the log; NULL: none. */
void rpc_reply_error(struct rpc_call *call, int code, const char *message, const char *fmt, ...)
	PRINTF_LIKE(4, 5) CONTROL_ONLY;
/* The errno's standard text; reason "" or NULL: none. `logged`: the log has it already. */
void rpc_reply_errno(struct rpc_call *call, int status, const char *reason, bool logged)
	CONTROL_ONLY;

/* ------- calls of our own: saved configurations ------- */

/* By name or old name; NULL: there is none. */
const struct rpc_method *rpc_method_find(const char *name);
/* Whether params (NULL: none) are such as m takes; else `why` says what is wrong. */
#define RPC_WHY_MAX 512
bool rpc_method_check(const struct rpc_method *m, struct json_object *params,
		      char why[RPC_WHY_MAX]) CONTROL_ONLY;
/*
 * Call m as a client would. done gets 0 or -errno and the reason, perhaps before
 * this returns. --rpcs-allowed does not count. Takes a reference to params.
 */
void rpc_call_own(const struct rpc_method *m, struct json_object *params,
		  void (*done)(void *arg, int status, const char *why), void *arg) CONTROL_ONLY;
/* The end of a successful call that rpc_state_hold() took: status -errno when not saved. */
void rpc_release(struct rpc_call *call, int status, const char *why) CONTROL_ONLY;

/* The text of an errno, in English whatever the locale. */
const char *rpc_strerror(int err);
/* true after framework_start_init, or from the start without --wait-for-rpc. */
bool rpc_is_runtime(void) CONTROL_ONLY;
void rpc_enter_runtime(void) CONTROL_ONLY;
/* Names, for rpc_get_methods: those of the present state only; aliases too. */
void rpc_write_methods(struct json_out *w, bool current, bool aliases) CONTROL_ONLY;

/* rpc_rbd.c, where RBD is built in: driver_specific, and what rebuilds it. */
void rpc_rbd_show(struct json_out *w, const struct bdev *bdev) CONTROL_ONLY;
void rpc_rbd_save(struct json_out *w, const struct bdev *bdev) CONTROL_ONLY;
void rpc_rbd_save_clusters(struct json_out *w) CONTROL_ONLY;
/* Whether what is written from now on contains secrets; it does not at first. */
void rpc_rbd_tell_secrets(bool tell) CONTROL_ONLY;
/* Take secrets out of the params of a create or register call. */
void rpc_rbd_strip_secrets(struct json_object *params);

/* config.c: what rebuilds it. False for an unknown subsystem. */
bool rpc_write_config(struct json_out *w, const char *subsystem) CONTROL_ONLY;
void rpc_write_subsystems(struct json_out *w) CONTROL_ONLY;

/* ------- between server.c and dispatch.c ------- */

/* Check `allowed`, enter the first state. */
int rpc_dispatch_init(const struct rpc_config *config) CONTROL_ONLY;
void rpc_dispatch_fini(void) CONTROL_ONLY;
/*
 * Execute one request. Ends, now or later, in one rpc_client_answer(). `fault`
 * is what the text check found in it, NULL: nothing. Keeps what it needs of
 * request.
 */
void rpc_dispatch(struct rpc_client *client, struct json_object *request,
		  const struct json_fault *fault) CONTROL_ONLY;
/* Answer what is no request at all: the id is null. */
void rpc_dispatch_error(struct rpc_client *client, int code, const char *message,
			const char *data) CONTROL_ONLY;
/* A call is under way on behalf of client. */
void rpc_client_began(struct rpc_client *client, struct rpc_call *call) CONTROL_ONLY;
/*
 * The call has been carried out, but its answer will come later, for a reason that is
 * its client's no more: let that go on with its next request. Answers keep their order.
 */
void rpc_client_hold(struct rpc_call *call) CONTROL_ONLY;
/* The answer of a call that was held: as rpc_client_answer(). */
void rpc_client_answer_held(struct rpc_client *client, struct rpc_answer *answer,
			    const char *text, size_t len) CONTROL_ONLY;
bool rpc_client_gone(const struct rpc_client *client);
/*
 * Take a call's connection away from the server: the fd is the caller's, and what
 * the call replies is dropped. -errno.
 */
int rpc_client_detach(struct rpc_call *call) CONTROL_ONLY;
/* Whether any client's call is under way. */
bool rpc_is_busy(void) CONTROL_ONLY;
/* Accept no client, or go on; those there are, are served. */
void rpc_hold(bool on) CONTROL_ONLY;
/* Listening socket and lock, -1 without a server. Still the server's. */
void rpc_server_fds(int fds[2]) CONTROL_ONLY;
/* The answer, without newline; NULL: there is none to send. */
void rpc_client_answer(struct rpc_client *client, const char *text, size_t len) CONTROL_ONLY;

#endif
