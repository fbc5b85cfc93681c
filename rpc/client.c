/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The clients of the RPC socket: framing, batches, buffers. It knows where a request
 * begins and ends; what a request means is dispatch.c's.
 *
 * A client sends bare JSON values, in whatever pieces; replies end in newlines.
 * Input goes through an incremental json-c tokener, and the raw bytes of the
 * value are kept until it is complete, for the strict check. What is no JSON
 * gets -32700; after it the connection takes no more requests: the reply is
 * flushed, our side shut down, and input thrown away for a moment, because a
 * close over unread input would destroy the reply on its way.
 *
 * One client has one request under way at a time, and the entries of a batch run
 * in order: pipelined requests may build on each other, and a client's demands
 * on memory are bounded by its input (a request, RPC_REQUEST_MAX) and what it
 * leaves unread (OUT_MAX, and then no further request is started). A request that
 * only waits for its change to be saved is not under way any more; up to HELD_MAX
 * answers wait for such a one, in order, each in its struct rpc_answer. Clients do
 * not wait for each other: a slow request occupies nobody but its own client.
 *
 * A client struct is counted: the list of clients holds one reference, a
 * request under way one, a posted turn one. After hang-up it is off the list
 * with fd -1, and what the last request answers is dropped. All that a client
 * had sent in full before it left is still executed.
 */
#include "rpc/client.h"
#include "rpc/rpc.h"

#include "reactor/control.h"
#include "reactor/log.h"

#include <assert.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define RPC_REQUEST_MAX ((size_t)1 << 20)
#define RPC_BATCH_MAX 1024u
#define OUT_MAX ((size_t)1 << 20)	/* unread replies that stop a client's next request */
#define IN_AHEAD ((size_t)64 << 10)	/* read ahead of the request under way */
#define READ_CHUNK ((size_t)64 << 10)
#define READ_FIRST ((size_t)4 << 10)
#define TURN_BUDGET 16u			/* requests before others get their turn */
#define HELD_MAX 256u
#define LINGER_MS 1000u

/* An answer that is not there yet, or comes behind one that is not. */
struct rpc_answer {
	struct list node;
	bool ready;
	struct json_out out;		/* len 0: silence */
};

struct rpc_client {
	struct control_fd cf;		/* fd -1: left */
	struct list node;
	unsigned int refs;
	struct json_tokener *tok;
	/* [start, fed) of the present value has gone into tok; [fed, len) waits. */
	char *in;
	size_t in_start, in_fed, in_len, in_cap;
	struct json_out out;		/* [out_pos, out.len) is not sent yet */
	size_t out_pos;
	/* The batch under way. */
	struct json_object *batch;
	size_t batch_next;
	struct json_faults faults;
	unsigned int fault_next;
	struct json_out batch_out;
	struct rpc_call *call;		/* under way, to be cancelled on hang-up */
	struct list answers;		/* struct rpc_answer; empty: the next is sent at once */
	unsigned int answer_count;
	size_t answer_bytes;		/* of those that are ready */
	bool busy;			/* a request has not been answered yet */
	bool running;			/* client_run is on the stack */
	bool posted;			/* msg is under way */
	bool watched;			/* cf is in the control loop */
	bool eof;			/* no more input */
	bool gone;			/* nobody reads replies */
	bool closing;			/* after -32700: flush, linger, close */
	uint32_t events;		/* as last given to the control loop */
	struct control_timer linger;
	struct msg msg;
};

static struct list clients = LIST_INIT(clients);
static unsigned int client_count;

static struct log_limit client_limit;

static void client_run(struct rpc_client *c) CONTROL_ONLY;
static void client_post(struct rpc_client *c) CONTROL_ONLY;

/* ------- life of a client ------- */

static void client_get(struct rpc_client *c)
{
	assert(c->refs > 0 && c->refs < HELD_MAX + 16);
	c->refs++;
}

static void client_put(struct rpc_client *c)
{
	assert(c->refs > 0);
	if (--c->refs)
		return;
	json_tokener_free(c->tok);
	json_object_put(c->batch);
	json_faults_fini(&c->faults);
	json_out_fini(&c->batch_out);
	json_out_fini(&c->out);
	free(c->in);
	free(c);
}

static void client_unwatch(struct rpc_client *c) CONTROL_ONLY
{
	if (c->watched)
		control_fd_del(&c->cf);
	c->watched = false;
}

/* Off the list and off the wire; the struct stays while somebody refers to it. */
static void client_close(struct rpc_client *c) CONTROL_ONLY
{
	if (c->cf.fd < 0)
		return;
	client_unwatch(c);
	control_timer_stop(&c->linger);
	close(c->cf.fd);
	c->cf.fd = -1;
	c->gone = c->eof = c->closing = true;
	list_del(&c->node);
	client_count--;
	if (c->call && c->call->cancel)
		c->call->cancel(c->call);
	client_put(c);
	rpc_server_accept_more();
}

/* Nobody will read what we have to say. */
static void client_lost(struct rpc_client *c) CONTROL_ONLY
{
	c->gone = c->eof = true;
	c->out_pos = c->out.len = 0;
	client_unwatch(c);
	if (c->call && c->call->cancel)
		c->call->cancel(c->call);
}

/* ------- output ------- */

static size_t client_unsent(const struct rpc_client *c)
{
	return c->out.len - c->out_pos;
}

static void client_flush(struct rpc_client *c) CONTROL_ONLY
{
	while (!c->gone && client_unsent(c)) {
		ssize_t n = send(c->cf.fd, c->out.text + c->out_pos, client_unsent(c),
				 MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			client_lost(c);
			return;
		}
		c->out_pos += (size_t)n;
	}
	c->out_pos = c->out.len = 0;
	if (c->out.cap > READ_CHUNK)
		json_out_fini(&c->out);
}

/* Queue bytes and send what the socket takes at once. */
static void client_send(struct rpc_client *c, const char *text, size_t len) CONTROL_ONLY
{
	if (c->gone)
		return;
	if (c->out_pos) {
		memmove(c->out.text, c->out.text + c->out_pos, client_unsent(c));
		c->out.len -= c->out_pos;
		c->out_pos = 0;
	}
	json_out_raw(&c->out, text, len);
	json_out_raw(&c->out, "\n", 1);
	if (c->out.failed) {
		log_limited(LOG_ERROR, &client_limit, "no memory for a reply, client dropped");
		client_lost(c);
		return;
	}
	client_flush(c);
}

void rpc_client_began(struct rpc_client *c, struct rpc_call *call)
{
	c->call = call;
}

bool rpc_client_gone(const struct rpc_client *c)
{
	return c && c->gone;
}

int rpc_client_detach(struct rpc_call *call)
{
	struct rpc_client *c = call->client;
	int fd;

	if (!c || c->gone)
		return -ENOTCONN;
	fd = fcntl(c->cf.fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	client_close(c);
	return fd;
}

bool rpc_is_busy(void)
{
	struct rpc_client *c;

	list_for_each(c, &clients, node) {
		if (c->busy || c->answer_count)
			return true;
	}
	return false;
}

/* ------- answers ------- */

static struct rpc_answer *answer_new(struct rpc_client *c)
{
	struct rpc_answer *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	list_add_tail(&c->answers, &a->node);
	c->answer_count++;
	return a;
}

static void answer_fill(struct rpc_client *c, struct rpc_answer *a, const char *text, size_t len)
{
	a->ready = true;
	if (text)
		json_out_raw(&a->out, text, len);
	c->answer_bytes += a->out.len;
}

/* Send those that are ready, up to the first that is not. */
static void answers_flush(struct rpc_client *c) CONTROL_ONLY
{
	while (!list_empty(&c->answers)) {
		struct rpc_answer *a = list_first(&c->answers, struct rpc_answer, node);

		/* It takes the one before, which has left the list, for this one. */
		if (!a->ready)	/* NOLINT(clang-analyzer-unix.Malloc) */
			return;
		list_del(&a->node);
		c->answer_count--;
		c->answer_bytes -= a->out.len;
		if (a->out.failed) {
			log_limited(LOG_ERROR, &client_limit, "no memory for a reply, client dropped");
			client_lost(c);
		} else if (a->out.len) {
			client_send(c, a->out.text, a->out.len);
		}
		json_out_fini(&a->out);
		free(a);
	}
}

/* It has to come behind those that wait. */
static void answer_behind(struct rpc_client *c, const char *text, size_t len) CONTROL_ONLY
{
	struct rpc_answer *a = answer_new(c);

	if (a) {
		answer_fill(c, a, text, len);
		return;
	}
	log_limited(LOG_ERROR, &client_limit, "no memory for a reply, client dropped");
	client_lost(c);
}

void rpc_client_answer(struct rpc_client *c, const char *text, size_t len)
{
	c->call = NULL;
	c->busy = false;
	if (text && c->batch)
		json_out_value(&c->batch_out, text, len);
	else if (text && c->answer_count)
		answer_behind(c, text, len);
	else if (text)
		client_send(c, text, len);
	client_run(c);
	client_put(c);
}

void rpc_client_hold(struct rpc_call *call)
{
	struct rpc_client *c = call->client;

	/* A batch is answered as one, so nothing waits behind it. */
	if (c->batch || c->gone)
		return;
	call->answer = answer_new(c);
	if (!call->answer)
		return;
	c->call = NULL;
	c->busy = false;
	client_post(c);
}

void rpc_client_answer_held(struct rpc_client *c, struct rpc_answer *a, const char *text,
			    size_t len)
{
	answer_fill(c, a, text, len);
	answers_flush(c);
	client_run(c);
	client_put(c);
}

/* ------- requests ------- */

/* One request's turn; it takes a reference until it is answered. */
static void client_dispatch(struct rpc_client *c, struct json_object *request,
			    const struct json_fault *fault) CONTROL_ONLY
{
	c->busy = true;
	client_get(c);
	rpc_dispatch(c, request, fault);
}

static void client_dispatch_error(struct rpc_client *c, int code, const char *message,
				  const char *data) CONTROL_ONLY
{
	log_limited(LOG_ERROR, &client_limit, "%s: %s", message, data);
	c->busy = true;
	client_get(c);
	rpc_dispatch_error(c, code, message, data);
}

/* The stream is no JSON: what follows cannot be told from garbage. */
static void client_fail(struct rpc_client *c, const char *why) CONTROL_ONLY
{
	c->closing = true;
	c->in_start = c->in_fed = c->in_len = 0;
	json_tokener_reset(c->tok);
	client_dispatch_error(c, RPC_PARSE_ERROR, "Parse error", why);
}

static const struct json_fault *fault_of(const struct json_faults *faults, unsigned int *next,
					 size_t entry)
{
	if (*next < faults->count && faults->list[*next].entry == entry)
		return &faults->list[(*next)++];
	return NULL;
}

/* The next entry of the batch, or its end. */
static void client_batch_step(struct rpc_client *c) CONTROL_ONLY
{
	struct json_out out;

	if (c->batch_next < json_object_array_length(c->batch)) {
		size_t i = c->batch_next++;

		client_dispatch(c, json_object_array_get_idx(c->batch, i),
				fault_of(&c->faults, &c->fault_next, i));
		return;
	}
	out = c->batch_out;
	c->batch_out = (struct json_out){ 0 };
	json_object_put(c->batch);
	c->batch = NULL;
	json_faults_fini(&c->faults);
	if (out.failed) {
		log_limited(LOG_ERROR, &client_limit, "no memory for a batch, client dropped");
		client_lost(c);
	} else if (out.len > 1) {
		json_out_raw(&out, "]", 1);
		if (c->answer_count)
			answer_behind(c, out.text, out.len);
		else
			client_send(c, out.text, out.len);
	}
	json_out_fini(&out);
}

/* A complete value has been read. */
static void client_value(struct rpc_client *c, struct json_object *value, const char *text,
			 size_t len) CONTROL_ONLY
{
	struct json_faults faults = { 0 };
	unsigned int next = 0;
	int rc = json_text_check(text, len, &faults);

	if (rc) {
		client_fail(c, rc == -ENOMEM ? "out of memory" : "not valid JSON");
	} else if (!json_object_is_type(value, json_type_array)) {
		client_dispatch(c, value, fault_of(&faults, &next, 0));
	} else if (json_object_array_length(value) == 0) {
		client_dispatch_error(c, RPC_INVALID_REQUEST, "Invalid request",
				      "the batch is empty");
	} else if (json_object_array_length(value) > RPC_BATCH_MAX) {
		client_dispatch_error(c, RPC_INVALID_REQUEST, "Invalid request",
				      "more than 1024 requests in a batch");
	} else {
		c->batch = json_object_get(value);
		c->batch_next = 0;
		c->faults = faults;
		c->fault_next = 0;
		json_out_array(&c->batch_out);
		return;
	}
	json_faults_fini(&faults);
}

static void client_skip_space(struct rpc_client *c)
{
	if (c->in_start != c->in_fed)
		return;
	while (c->in_fed < c->in_len && strchr(" \t\r\n", c->in[c->in_fed]) && c->in[c->in_fed])
		c->in_fed++;
	c->in_start = c->in_fed;
}

/* Feed the tokener. True when something came of it, false: it wants more input. */
static bool client_parse(struct rpc_client *c) CONTROL_ONLY
{
	struct json_object *value;
	enum json_tokener_error err;
	size_t used;

	client_skip_space(c);
	if (c->in_fed == c->in_len)
		return false;
	value = json_tokener_parse_ex(c->tok, c->in + c->in_fed, (int)(c->in_len - c->in_fed));
	err = json_tokener_get_error(c->tok);
	used = err == json_tokener_success ? json_tokener_get_parse_end(c->tok) :
					     c->in_len - c->in_fed;
	c->in_fed += used;
	if (c->in_fed - c->in_start > RPC_REQUEST_MAX) {
		client_fail(c, "request larger than 1 MiB");
	} else if (err == json_tokener_continue) {
		return false;
	} else if (err != json_tokener_success) {
		client_fail(c, err == json_tokener_error_depth ? "nested more than 64 deep" :
								 "not valid JSON");
	} else {
		size_t start = c->in_start;

		json_tokener_reset(c->tok);
		c->in_start = c->in_fed;
		client_value(c, value, c->in + start, c->in_fed - start);
	}
	json_object_put(value);
	return true;
}

/* ------- the wheel ------- */

static void client_turn(struct msg *msg)
{
	struct rpc_client *c = container_of(msg, struct rpc_client, msg);

	control_assert();
	c->posted = false;
	client_run(c);
	client_put(c);
}

/* Let others have a turn, then go on. */
static void client_post(struct rpc_client *c)
{
	if (c->posted)
		return;
	c->posted = true;
	client_get(c);
	c->msg.fn = client_turn;
	control_post(&c->msg);
}

static void client_linger_over(struct control_timer *t)
{
	control_assert();
	client_close(container_of(t, struct rpc_client, linger));
}

/* Watch for what can happen next, or close when nothing can. */
static void client_settle(struct rpc_client *c) CONTROL_ONLY
{
	uint32_t events = 0;

	if (c->cf.fd < 0 || c->busy || c->batch || c->posted || c->answer_count)
		goto watch;
	if (c->eof && client_unsent(c) == 0) {
		client_close(c);
		return;
	}
	if (c->closing && client_unsent(c) == 0 && !c->linger.fn) {
		shutdown(c->cf.fd, SHUT_WR);
		c->linger.fn = client_linger_over;
		control_timer_start(&c->linger, LINGER_MS);
	}
watch:
	if (!c->watched)
		return;
	if (!c->eof && (c->closing || c->in_len - c->in_fed < IN_AHEAD))
		events |= EPOLLIN;
	if (client_unsent(c))
		events |= EPOLLOUT;
	if (events != c->events && control_fd_mod(&c->cf, events) == 0)
		c->events = events;
}

/* Do all that can be done for this client now. */
static void client_run(struct rpc_client *c)
{
	unsigned int budget = TURN_BUDGET;

	if (c->running)
		return;
	c->running = true;
	client_get(c);
	while (!c->busy && c->cf.fd >= 0 && client_unsent(c) + c->answer_bytes <= OUT_MAX &&
	       c->answer_count < HELD_MAX) {
		if (budget-- == 0) {
			client_post(c);
			break;
		}
		if (c->batch)
			client_batch_step(c);
		else if (c->closing || !client_parse(c))
			break;
	}
	if (c->in_fed == c->in_len && c->in_start == c->in_fed) {
		c->in_start = c->in_fed = c->in_len = 0;
		if (c->in_cap > READ_FIRST) {
			free(c->in);
			c->in = NULL;
			c->in_cap = 0;
		}
	}
	client_settle(c);
	/* client_close() put the list's reference, not ours; the analyzer cannot count them. */
	c->running = false;	/* NOLINT(clang-analyzer-unix.Malloc) */
	client_put(c);
}

/* ------- input ------- */

/* Room for another chunk, what is done with moved out. */
static bool client_room(struct rpc_client *c)
{
	size_t cap = c->in_cap;
	char *p;

	if (c->in_start) {
		memmove(c->in, c->in + c->in_start, c->in_len - c->in_start);
		c->in_len -= c->in_start;
		c->in_fed -= c->in_start;
		c->in_start = 0;
	}
	if (c->in_len < cap)
		return true;
	cap = cap ? MIN(cap * 2, cap + (READ_CHUNK * 4)) : READ_FIRST;
	p = realloc(c->in, cap);
	if (!p)
		return false;
	c->in = p;
	c->in_cap = cap;
	return true;
}

/* One chunk; false when there is nothing more to read now. */
static bool client_read(struct rpc_client *c) CONTROL_ONLY
{
	static char discard[4096];
	ssize_t n;

	if (c->closing) {
		n = recv(c->cf.fd, discard, sizeof(discard), MSG_DONTWAIT);
	} else if (!client_room(c)) {
		log_limited(LOG_ERROR, &client_limit, "no memory for a request, client dropped");
		client_lost(c);
		return false;
	} else {
		n = recv(c->cf.fd, c->in + c->in_len, MIN(c->in_cap - c->in_len, READ_CHUNK),
			 MSG_DONTWAIT);
	}
	if (n < 0 && errno == EINTR)
		return true;
	if (n < 0 && errno == EAGAIN)
		return false;
	if (n <= 0) {
		c->eof = true;
		if (n < 0)
			client_lost(c);
		return false;
	}
	if (!c->closing)
		c->in_len += (size_t)n;
	return true;
}

static void client_event(struct control_fd *cf, uint32_t events)
{
	struct rpc_client *c = container_of(cf, struct rpc_client, cf);

	control_assert();
	client_get(c);
	if (events & EPOLLOUT)
		client_flush(c);
	if (events & (EPOLLHUP | EPOLLERR)) {
		/* What it sent before it left still counts, up to one request's size. */
		while (!c->eof && c->in_len - c->in_fed < RPC_REQUEST_MAX && client_read(c))
			;
		client_lost(c);
	} else if (events & EPOLLIN) {
		client_read(c);
	}
	client_run(c);
	client_put(c);	/* NOLINT(clang-analyzer-unix.Malloc): the reference taken above */
}

/* ------- all of them ------- */

int rpc_client_new(int fd)
{
	struct rpc_client *c = calloc(1, sizeof(*c));
	int rc = -ENOMEM;

	if (!c)
		return rc;
	c->refs = 1;
	list_init(&c->answers);
	c->cf.fd = fd;
	c->cf.fn = client_event;
	c->events = EPOLLIN;
	c->tok = json_tokener_new_ex(JSON_DEPTH_MAX);
	if (c->tok)
		rc = control_fd_add(&c->cf, c->events);
	if (rc) {
		c->cf.fd = -1;
		client_put(c);
		return rc;
	}
	c->watched = true;
	list_add_tail(&clients, &c->node);
	client_count++;
	return 0;
}

unsigned int rpc_client_count(void)
{
	return client_count;
}

void rpc_clients_close(void)
{
	struct rpc_client *c, *tmp;

	list_for_each_safe(c, tmp, &clients, node)
		client_close(c);
}
