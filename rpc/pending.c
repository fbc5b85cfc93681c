/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Calls of a saved configuration that have not succeeded yet. Applying one means
 * to put all its calls here, in order, and to make each as soon as what it needs
 * is there; calls that do not need each other run side by side, so a cluster that
 * does not answer holds up only its own disks. What is refused because its file
 * or cluster is away stays and is tried again, less and less often.
 *
 * A call waits for the earlier one that makes what it stands on: a controller for
 * its bdev, a setting for its controller, a bdev for its base or cluster.
 * So no controller is made, and no socket listens, before its bdev is open.
 *
 * Pending calls belong to the configuration: they are saved with it, their names
 * are taken, and the methods that delete a bdev or controller delete them. An
 * entry lives in `entries` from pending_add() until its call has succeeded, or
 * was deleted; while its call is under way it is only marked (`dropped`), and
 * what the call makes is deleted again (`undo`). Its end is noted in the entry and handled
 * in a turn of its own (`work`), so nothing here is ever entered twice.
 */
#include "rpc/config.h"
#include "rpc/rpc.h"

#include "reactor/log.h"
#include "vhost/vhost.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_FIRST_MS 500u
#define RETRY_MAX_MS 10000u
#define SLOW_MAX 16u		/* calls to clusters at a time: each may occupy a worker */
#define PATIENCE_MS 1000u	/* a start goes on when so long no call has ended ... */
#define START_MAX_MS 10000u	/* ... or after so long, and the rest stays pending */
#define NS_PER_MS UINT64_C(1000000)

#define OPENS 0x1u	/* something outside of us, which may be away */
#define SLOW 0x2u	/* takes for as long as that does not answer */
#define SECRETS 0x4u	/* its parameters may hold some */

enum kind { KIND_OTHER, KIND_BDEV, KIND_CLUSTER, KIND_CONTROLLER, KIND_SETTING };

/* What is to be known of the methods that a saved configuration is made of. */
static const struct row {
	const char *create, *destroy;
	const char *name;	/* parameter: what it makes */
	const char *base;	/* parameter: what it stands on */
	enum kind kind, base_kind;
	unsigned int flags;
} rows[] = {
	{ "bdev_aio_create", "bdev_aio_delete", "name", NULL, KIND_BDEV, 0, OPENS },
	{ "bdev_uring_create", "bdev_uring_delete", "name", NULL, KIND_BDEV, 0, OPENS },
	{ "bdev_rbd_create", "bdev_rbd_delete", "name", "cluster_name", KIND_BDEV, KIND_CLUSTER,
	  OPENS | SLOW | SECRETS },
	{ "bdev_rbd_register_cluster", "bdev_rbd_unregister_cluster", "name", NULL, KIND_CLUSTER,
	  0, OPENS | SLOW | SECRETS },
	{ "bdev_malloc_create", "bdev_malloc_delete", "name", NULL, KIND_BDEV, 0, 0 },
	{ "bdev_null_create", "bdev_null_delete", "name", NULL, KIND_BDEV, 0, 0 },
	{ "bdev_error_create", "bdev_error_delete", NULL, "base_name", KIND_BDEV, KIND_BDEV, 0 },
	{ "bdev_delay_create", "bdev_delay_delete", "name", "base_bdev_name", KIND_BDEV,
	  KIND_BDEV, 0 },
	{ "vhost_create_blk_controller", "vhost_delete_controller", "ctrlr", "dev_name",
	  KIND_CONTROLLER, KIND_BDEV, 0 },
	{ "vhost_controller_set_coalescing", NULL, "ctrlr", "ctrlr", KIND_SETTING,
	  KIND_CONTROLLER, 0 },
};
static const struct row other = { .kind = KIND_OTHER };

struct entry {
	struct list node;
	const struct rpc_method *method;
	struct json_object *params;
	const struct row *row;
	char *name;		/* of what it makes or sets; NULL: KIND_OTHER */
	struct entry *waits_for;
	bool running;		/* until `finished` has been handled */
	bool finished, dropped;
	bool undo;		/* dropped, and what it made is to be deleted */
	int status;		/* of the last try */
	int logged;		/* status that the log has */
	char why[RPC_WHY_MAX];
	unsigned int tries;
	uint64_t retry_ns;	/* CLOCK_MONOTONIC */
};

static struct {
	struct list entries;
	struct msg msg;
	bool posted, stopped;
	bool paused;		/* no call is begun */
	struct control_timer retry;
	unsigned int slow;	/* under way */
	/* A start, from pending_start() to done. */
	bool starting;
	const char *source;
	enum rpc_errors errors;
	void (*done)(void *arg, int status);
	void *arg;
	uint64_t start_end_ns;
	struct control_timer patience;
} work = { .entries = LIST_INIT(work.entries), .errors = RPC_ERRORS_PENDING };

static struct log_limit limit;

/* ------- entries ------- */

static const struct row *row_of(const char *method)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(rows); i++) {
		if (!strcmp(rows[i].create, method))
			return &rows[i];
	}
	return &other;
}

static const char *string_param(struct json_object *params, const char *key)
{
	struct json_object *v;

	if (!key || !json_object_is_type(params, json_type_object) ||
	    !json_object_object_get_ex(params, key, &v) ||
	    !json_object_is_type(v, json_type_string))
		return NULL;
	return json_object_get_string(v);
}

/* The name of what a call makes, allocated; NULL: nothing, or no memory. */
static char *made_name(const struct row *row, struct json_object *params)
{
	const char *s = string_param(params, row->name ? row->name : row->base);
	char *name = NULL;

	if (!s)
		return NULL;
	if (row->name)
		return strdup(s);
	/* An error bdev is called after its base. */
	return asprintf(&name, "EE_%s", s) < 0 ? NULL : name;
}

static bool makes(const struct entry *e, enum kind kind, const char *name)
{
	return e->row->kind == kind && e->name && !strcmp(e->name, name);
}

/* Whether f makes the bdev, cluster or controller that e calls s. */
static bool is_meant(const struct entry *f, enum kind kind, const char *s)
{
	const char *uuid = kind == KIND_BDEV ? string_param(f->params, "uuid") : NULL;

	return makes(f, kind, s) || (f->row->kind == kind && uuid && !strcmp(uuid, s));
}

/* Some other call names what f makes: it is about that. */
static bool is_about(struct json_object *params, const struct entry *f)
{
	if (!json_object_is_type(params, json_type_object))
		return false;
	json_object_object_foreach(params, key, v) {
		(void)key;
		if (json_object_is_type(v, json_type_string) &&
		    is_meant(f, f->row->kind, json_object_get_string(v)))
			return true;
	}
	return false;
}

/* The earlier entry that e has to wait for. */
static struct entry *find_blocker(const struct entry *e)
{
	const char *base = string_param(e->params, e->row->base);
	struct entry *f;

	list_for_each(f, &work.entries, node) {
		if (f == e)
			return NULL;
		if (f->dropped || f->row->kind == KIND_OTHER || f->row->kind == KIND_SETTING)
			continue;
		if (base && is_meant(f, e->row->base_kind, base))
			return f;
		/* The second of a name is refused once the first is there. */
		if (e->row->kind == KIND_OTHER ? is_about(e->params, f) :
						 makes(f, e->row->kind, e->name))
			return f;
	}
	return NULL;
}

static struct entry *find(enum kind kind, const char *name)
{
	struct entry *e;

	list_for_each(e, &work.entries, node) {
		if (makes(e, kind, name))
			return e;
	}
	return NULL;
}

bool pending_bdev(const char *name)
{
	return find(KIND_BDEV, name);
}

/* Nobody waits for e any more. */
static void release_waiters(const struct entry *e)
{
	struct entry *f;

	list_for_each(f, &work.entries, node) {
		if (f->waits_for == e)
			f->waits_for = find_blocker(f);
	}
}

static void entry_free(struct entry *e)
{
	if (!e)
		return;
	json_object_put(e->params);
	free(e->name);
	free(e);
}

static void entry_remove(struct entry *e)
{
	list_del(&e->node);
	release_waiters(e);
	entry_free(e);
}

int pending_add(const struct rpc_method *m, struct json_object *params)
{
	struct entry *e = calloc(1, sizeof(*e));

	if (!e)
		return -ENOMEM;
	e->method = m;
	e->row = row_of(m->name);
	e->params = json_object_get(params);
	e->name = made_name(e->row, params);
	if (!e->name && e->row->kind != KIND_OTHER) {
		entry_free(e);
		return -ENOMEM;
	}
	list_add_tail(&work.entries, &e->node);
	e->waits_for = find_blocker(e);
	bdev_reserve_names(pending_bdev);
	return 0;
}

/* ------- the wheel ------- */

static void work_turn(struct msg *msg);

static void work_post(void)
{
	if (work.posted || work.stopped)
		return;
	work.posted = true;
	work.msg.fn = work_turn;
	control_post(&work.msg);
}

void pending_wake(void)
{
	if (!list_empty(&work.entries))
		work_post();
}

/* Its bdev is neither there nor on its way: it waits for somebody to make one. */
CONTROL_ONLY static bool is_orphan(const struct entry *e)
{
	const char *base = string_param(e->params, e->row->base);

	/* A controller may be made without one: "". */
	return base && *base && e->row->base_kind == KIND_BDEV && !e->waits_for &&
	       !bdev_find(base);
}

static void try_done(void *arg, int status, const char *why)
{
	struct entry *e = arg;

	e->finished = true;
	e->status = status;
	snprintf(e->why, sizeof(e->why), "%s", why);
	work_post();
}

/* It was deleted while it was being made: delete what came of it. */
CONTROL_ONLY static void undo_start(struct entry *e)
{
	const struct rpc_method *m = rpc_method_find(e->row->destroy);
	struct json_object *params = json_object_new_object();

	if (params)
		json_object_object_add(params, e->row->kind == KIND_CONTROLLER ? "ctrlr" : "name",
				       json_object_new_string(e->name));
	rpc_call_own(m, params, try_done, e);
	json_object_put(params);
}

CONTROL_ONLY static void try_start(struct entry *e)
{
	e->running = true;
	e->tries++;
	if (e->row->flags & SLOW)
		work.slow++;
	if (e->undo)
		undo_start(e);
	else
		rpc_call_own(e->method, e->params, try_done, e);
}

CONTROL_ONLY static void orphan_wait(struct entry *e)
{
	e->tries = 1;
	e->status = -ENODEV;
	snprintf(e->why, sizeof(e->why), "there is no bdev '%.200s'",
		 string_param(e->params, e->row->base));
}

CONTROL_ONLY static void start_what_can(void)
{
	uint64_t now = clock_ns(), next = UINT64_MAX;
	struct entry *e;

	if (work.paused)
		return;
	list_for_each(e, &work.entries, node) {
		if (e->running || (e->dropped && !e->undo) || e->waits_for)
			continue;
		if (!e->undo && is_orphan(e) && !(work.starting && work.errors != RPC_ERRORS_PENDING)) {
			orphan_wait(e);
			continue;
		}
		if (e->retry_ns > now)
			next = MIN(next, e->retry_ns);
		else if (!(e->row->flags & SLOW) || work.slow < SLOW_MAX)
			try_start(e);
	}
	if (next != UINT64_MAX)
		control_timer_start(&work.retry, (next - now) / NS_PER_MS + 1);
}

/* ------- the end of a try ------- */

/* Whether to expect another answer later, other things being equal. */
static bool may_come(const struct entry *e)
{
	switch (e->status) {
	case -EINVAL: case -EEXIST: case -EISDIR: case -ENAMETOOLONG: case -ENOTSUP:
		return false;
	case -EADDRINUSE:
		return true;
	default:
		return e->row->flags & OPENS;
	}
}

CONTROL_ONLY static void start_end(int status)
{
	work.starting = false;
	work.errors = RPC_ERRORS_PENDING;
	control_timer_stop(&work.patience);
	work.done(work.arg, status);
}

static void try_later(struct entry *e)
{
	unsigned int shift = MIN(e->tries - 1, 8u);

	e->retry_ns = clock_ns() + MIN(RETRY_FIRST_MS << shift, RETRY_MAX_MS) * NS_PER_MS;
	if (e->status == e->logged)
		return;
	e->logged = e->status;
	log_limited(LOG_WARNING, &limit, "%s of %s: %s; trying again", e->method->name, e->name,
		    e->why);
}

/* True when e stays. */
CONTROL_ONLY static bool stays(struct entry *e)
{
	const char *source = work.starting ? work.source : "configuration";

	if (e->row->kind == KIND_OTHER || e->row->kind == KIND_SETTING ||
	    (work.errors == RPC_ERRORS_SKIP && !may_come(e))) {
		log_error("%s: %s%s%s is left out: %s", source, e->method->name,
			  e->name ? " of " : "", e->name ? e->name : "", e->why);
		return false;
	}
	return true;
}

CONTROL_ONLY static void drop_end(struct entry *e)
{
	bool made = e->undo ? e->status && e->status != -ENODEV : !e->status && e->row->destroy;

	if (!made) {
		entry_remove(e);
		return;
	}
	if (e->undo)
		try_later(e);
	else
		e->retry_ns = 0;
	e->undo = true;
}

CONTROL_ONLY static void handle_end(struct entry *e)
{
	if (e->dropped) {
		drop_end(e);
		return;
	}
	if (e->status == 0) {
		if (e->tries > 1)
			log_notice("%s of %s: done after %u tries", e->method->name,
				   e->name, e->tries);
		entry_remove(e);
		if (!work.starting)
			rpc_state_touch();
		return;
	}
	if (work.starting && work.errors == RPC_ERRORS_FATAL && !may_come(e)) {
		log_error("%s: %s%s%s: %s", work.source, e->method->name, e->name ? " of " : "",
			  e->name ? e->name : "", e->why);
		start_end(e->status);
		return;
	}
	if (stays(e))
		try_later(e);
	else
		entry_remove(e);
}

/* False when the start has ended badly: the list has changed. */
CONTROL_ONLY static bool handle_ends(void)
{
	struct entry *e, *tmp;

	list_for_each_safe(e, tmp, &work.entries, node) {
		bool was_starting = work.starting;

		if (!e->finished)
			continue;
		e->running = e->finished = false;
		if (e->row->flags & SLOW)
			work.slow--;
		if (was_starting && clock_ns() < work.start_end_ns)
			control_timer_start(&work.patience, PATIENCE_MS);
		handle_end(e);
		if (was_starting && !work.starting) {
			work_post();
			return false;
		}
	}
	return true;
}

/* Every call has been answered once, or waits for one that was. */
static bool all_tried(void)
{
	struct entry *e;

	list_for_each(e, &work.entries, node) {
		const struct entry *f = e;

		while (f->waits_for)
			f = f->waits_for;
		if (!f->dropped && (f->running || f->tries == 0))
			return false;
	}
	return true;
}

static void work_turn(struct msg *msg)
{
	(void)msg;
	control_assert();
	work.posted = false;
	if (work.stopped || !handle_ends())
		return;
	start_what_can();
	if (work.starting && !work.posted && all_tried())
		start_end(0);
}

static void retry_due(struct control_timer *t)
{
	(void)t;
	work_post();
}

static void patience_over(struct control_timer *t)
{
	(void)t;
	control_assert();
	log_notice("%s: what has not answered yet goes on in the background", work.source);
	start_end(0);
}

void pending_start(const char *source, enum rpc_errors errors,
		   void (*done)(void *arg, int status), void *arg)
{
	work.starting = true;
	work.source = source;
	work.errors = errors;
	work.done = done;
	work.arg = arg;
	work.start_end_ns = clock_ns() + START_MAX_MS * NS_PER_MS;
	work.retry.fn = retry_due;
	work.patience.fn = patience_over;
	control_timer_start(&work.patience, PATIENCE_MS);
	work_post();
}

bool pending_starting(void)
{
	return work.starting;
}

void pending_clear(void)
{
	struct entry *e, *tmp;

	list_for_each_safe(e, tmp, &work.entries, node) {
		if (e->running)
			e->dropped = true;
		else
			entry_remove(e);
	}
}

void pending_pause(bool on)
{
	work.paused = on;
	pending_wake();
}

int pending_outcome(bool is_bdev, const char *name, const char **why)
{
	const struct entry *e = find(is_bdev ? KIND_BDEV : KIND_CONTROLLER, name);

	*why = "is not in the configuration";
	if (!e)
		return -ENOENT;
	*why = e->why[0] ? e->why : "takes too long";
	return e->running || e->waits_for || e->tries == 0 ? 0 : e->status;
}

void pending_stop(void)
{
	work.stopped = true;
	work.starting = false;
	control_timer_stop(&work.retry);
	control_timer_stop(&work.patience);
}

/* ------- clients' calls about pending things ------- */

CONTROL_ONLY static void drop(struct entry *e)
{
	struct entry *f, *tmp;

	if (e->row->kind == KIND_CONTROLLER) {
		list_for_each_safe(f, tmp, &work.entries, node) {
			if (!makes(f, KIND_SETTING, e->name))
				continue;
			if (f->running)
				f->dropped = true;
			else
				entry_remove(f);
		}
	}
	if (!e->running) {
		entry_remove(e);
		return;
	}
	e->dropped = true;
	release_waiters(e);
}

/* A bdev above it, or an image of the cluster; controllers do not count. */
static const struct entry *user_of(const struct entry *e)
{
	const struct entry *f;

	list_for_each(f, &work.entries, node) {
		if (f->waits_for == e && !f->dropped && f->row->kind == KIND_BDEV)
			return f;
	}
	return NULL;
}

static bool answer_delete(struct rpc_call *call, struct entry *e) CONTROL_ONLY
{
	const struct entry *user = user_of(e);
	char why[RPC_WHY_MAX];

	if (e->dropped)
		return false;
	if (user) {
		snprintf(why, sizeof(why), "'%.100s', which is pending, stands on '%.100s'",
			 user->name, e->name);
		rpc_reply_errno(call, -EBUSY, why, false);
		return true;
	}
	drop(e);
	rpc_reply_true(call);
	return true;
}

static bool answer_create(struct rpc_call *call, const struct entry *e) CONTROL_ONLY
{
	char why[RPC_WHY_MAX];

	if (e->dropped)
		snprintf(why, sizeof(why), "'%.100s' is still being deleted", e->name);
	else
		snprintf(why, sizeof(why), "'%.100s' is pending, delete it first: %.200s", e->name,
			 e->why[0] ? e->why : "it is being opened");
	rpc_reply_errno(call, -EEXIST, why, false);
	return true;
}

/* Whether there is such a thing already, beside the pending one. */
CONTROL_ONLY static bool is_there(enum kind kind, const char *name)
{
	if (kind == KIND_BDEV)
		return bdev_find(name);
	return kind == KIND_CONTROLLER && vhost_controller_find(name);
}

CONTROL_ONLY static bool answer_row(struct rpc_call *call, const struct row *row, bool create)
{
	const char *key = row->kind == KIND_CONTROLLER ? "ctrlr" : "name";
	char *name = create ? made_name(row, call->params) : NULL;
	const char *s = create ? name : string_param(call->params, key);
	struct entry *e = s ? find(row->kind, s) : NULL;
	bool answered = false;

	if (!e || is_there(row->kind, s)) {
		free(name);
		return false;
	}
	if (create)
		answered = answer_create(call, e);
	else if (e->row == row)
		answered = answer_delete(call, e);
	free(name);
	return answered;
}

bool pending_answers(struct rpc_call *call)
{
	const char *method = call->method->name, *ctrlr;

	if (list_empty(&work.entries) || !(call->method->flags & RPC_CHANGES))
		return false;
	for (unsigned int i = 0; i < ARRAY_SIZE(rows); i++) {
		if (!rows[i].destroy)
			continue;
		if (!strcmp(rows[i].create, method))
			return answer_row(call, &rows[i], true);
		if (!strcmp(rows[i].destroy, method))
			return answer_row(call, &rows[i], false);
	}
	ctrlr = string_param(call->params, "ctrlr");
	if (!ctrlr || !find(KIND_CONTROLLER, ctrlr) || vhost_controller_find(ctrlr))
		return false;
	rpc_reply_errno(call, -EAGAIN, "the controller is pending: its bdev is not open yet",
			false);
	return true;
}

/* ------- saving and showing ------- */

static void write_params(struct json_out *w, const struct entry *e)
{
	struct json_object *copy = NULL;
	const char *text;
	size_t len;

	if ((e->row->flags & SECRETS) && json_object_deep_copy(e->params, &copy, NULL) < 0) {
		w->failed = true;
		return;
	}
#if SPINDLE_RBD
	if (copy)
		rpc_rbd_strip_secrets(copy);
#endif
	text = json_object_to_json_string_length(copy ? copy : e->params, JSON_C_TO_STRING_PLAIN |
						 JSON_C_TO_STRING_NOSLASHESCAPE, &len);
	if (text)
		json_out_value(w, text, len);
	else
		w->failed = true;
	json_object_put(copy);
}

void pending_write(struct json_out *w, bool bdevs)
{
	struct entry *e;

	list_for_each(e, &work.entries, node) {
		bool is_bdev = e->row->kind == KIND_BDEV || e->row->kind == KIND_CLUSTER;

		/* As one whose bdev was deleted under it: there is nothing to rebuild. */
		if (e->dropped || (e->finished && e->status == 0) || is_bdev != bdevs ||
		    e->row->kind == KIND_OTHER || is_orphan(e))
			continue;
		json_out_object(w);
		json_put_string(w, "method", e->method->name);
		json_out_key(w, "params");
		write_params(w, e);
		json_out_object_end(w);
	}
}

static void write_entry(struct json_out *w, const struct entry *e, uint64_t now)
{
	json_out_object(w);
	json_put_string(w, "method", e->method->name);
	json_put_string(w, "name", e->name);
	json_put_bool(w, "running", e->running);
	json_put_u64(w, "tries", e->tries);
	json_put_string(w, "error", e->why[0] ? e->why : NULL);
	json_put_string(w, "waits_for", e->waits_for ? e->waits_for->name : NULL);
	json_put_u64(w, "retry_ms", e->running || e->waits_for || e->retry_ns < now ? 0 :
		     (e->retry_ns - now) / NS_PER_MS);
	json_out_object_end(w);
}

static void config_get_pending(struct rpc_call *call) CONTROL_ONLY
{
	struct json_out *w = rpc_result(call);
	uint64_t now = clock_ns();
	struct entry *e;

	json_out_array(w);
	list_for_each(e, &work.entries, node) {
		if (!e->dropped && !(e->finished && e->status == 0))
			write_entry(w, e, now);
	}
	json_out_array_end(w);
	rpc_reply(call);
}

const struct rpc_method rpc_pending_methods[] = {
	{ "config_get_pending", NULL, RPC_RUNTIME, 0, config_get_pending, .params = NULL },
	{ .name = NULL },
};
