/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The RPC socket: clients, framing, batches, buffers. It knows where a request
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
 * leaves unread (OUT_MAX, and then no further request is started). Clients do
 * not wait for each other: a slow request occupies nobody but its own client.
 *
 * A client struct is counted: the list of clients holds one reference, a
 * request under way one, a posted turn one. After hang-up it is off the list
 * with fd -1, and what the last request answers is dropped. All that a client
 * had sent in full before it left is still executed.
 */
#include "rpc/rpc.h"

#include "reactor/control.h"
#include "reactor/log.h"

#include <assert.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define CLIENTS_MAX 1024u
#define RPC_REQUEST_MAX ((size_t)1 << 20)
#define RPC_BATCH_MAX 1024u
#define OUT_MAX ((size_t)1 << 20)	/* unread replies that stop a client's next request */
#define IN_AHEAD ((size_t)64 << 10)	/* read ahead of the request under way */
#define READ_CHUNK ((size_t)64 << 10)
#define READ_FIRST ((size_t)4 << 10)
#define TURN_BUDGET 16u			/* requests before others get their turn */
#define LINGER_MS 1000u
#define ACCEPT_PAUSE_MS 100u

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

static struct {
	struct control_fd listener;
	struct control_timer accept_again;
	bool accepting;			/* the listener is watched */
	bool held;			/* ... and must not be */
	int lock_fd;
	bool disowned;			/* the files are another process's by now */
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	char lock_path[sizeof(((struct sockaddr_un *)0)->sun_path) + 8];
	struct list clients;
	unsigned int client_count;
} server = { .listener.fd = -1, .lock_fd = -1, .clients = LIST_INIT(server.clients) };

static struct log_limit client_limit;

static void client_run(struct rpc_client *c) CONTROL_ONLY;
static void server_accept_more(void) CONTROL_ONLY;

/* ------- life of a client ------- */

static void client_get(struct rpc_client *c)
{
	assert(c->refs > 0 && c->refs < 16);
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
	server.client_count--;
	if (c->call && c->call->cancel)
		c->call->cancel(c->call);
	client_put(c);
	server_accept_more();
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

	list_for_each(c, &server.clients, node) {
		if (c->busy)
			return true;
	}
	return false;
}

void rpc_server_fds(int fds[2])
{
	fds[0] = server.listener.fd;
	fds[1] = server.lock_fd;
}

void rpc_disown(void)
{
	server.disowned = true;
}

void rpc_client_answer(struct rpc_client *c, const char *text, size_t len)
{
	c->call = NULL;
	c->busy = false;
	if (text && c->batch)
		json_out_value(&c->batch_out, text, len);
	else if (text)
		client_send(c, text, len);
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

	if (c->cf.fd < 0 || c->busy || c->batch || c->posted)
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
	while (!c->busy && c->cf.fd >= 0 && client_unsent(c) <= OUT_MAX) {
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

/* ------- accepting ------- */

static int client_new(int fd) CONTROL_ONLY
{
	struct rpc_client *c = calloc(1, sizeof(*c));
	int rc = -ENOMEM;

	if (!c)
		return rc;
	c->refs = 1;
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
	list_add_tail(&server.clients, &c->node);
	server.client_count++;
	return 0;
}

static void server_accept_stop(void) CONTROL_ONLY
{
	if (server.accepting)
		control_fd_del(&server.listener);
	server.accepting = false;
}

static void server_accept_more(void)
{
	if (server.accepting || server.held || server.listener.fd < 0 ||
	    server.client_count >= CLIENTS_MAX)
		return;
	if (control_fd_add(&server.listener, EPOLLIN) == 0)
		server.accepting = true;
}

void rpc_hold(bool on)
{
	server.held = on;
	on ? server_accept_stop() : server_accept_more();
}

static void server_accept_again(struct control_timer *t)
{
	(void)t;
	control_assert();
	server_accept_more();
}

static void server_event(struct control_fd *cf, uint32_t events)
{
	(void)events;
	control_assert();
	while (server.client_count < CLIENTS_MAX) {
		int fd = accept4(cf->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		int rc = fd < 0 ? -errno : client_new(fd);

		if (rc == 0 || rc == -EINTR || rc == -ECONNABORTED)
			continue;
		if (rc == -EAGAIN)
			return;
		/* Out of fds or memory: the connection waits in the backlog. */
		log_limited(LOG_ERROR, &client_limit, "cannot accept an RPC client: %s",
			    rpc_strerror(-rc));
		if (fd >= 0)
			close(fd);
		server_accept_stop();
		server.accept_again.fn = server_accept_again;
		control_timer_start(&server.accept_again, ACCEPT_PAUSE_MS);
		return;
	}
	server_accept_stop();
}

/* ------- the socket ------- */

/*
 * The lock file stays locked while we live, so a socket file without a lock
 * holder is a crashed target's. It is removed at the end, hence the look
 * whether the file locked is still the one of that name.
 */
static int server_lock(void)
{
	for (;;) {
		struct stat mine, named;
		int fd = open(server.lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

		if (fd < 0) {
			int rc = -errno;

			log_error("RPC lock file %s: %s", server.lock_path, rpc_strerror(-rc));
			return rc;
		}
		if (flock(fd, LOCK_EX | LOCK_NB)) {
			log_error("RPC Unix domain socket path %s in use by a live process. "
				  "Specify another.", server.path);
			close(fd);
			return -EADDRINUSE;
		}
		if (fstat(fd, &mine) == 0 && stat(server.lock_path, &named) == 0 &&
		    mine.st_ino == named.st_ino && mine.st_dev == named.st_dev) {
			server.lock_fd = fd;
			return 0;
		}
		close(fd);
	}
}

/* A socket nobody listens on is removed; anything else stays and is refused. */
static int server_remove_stale(const struct sockaddr_un *addr)
{
	struct stat st;
	int fd, rc;

	if (lstat(addr->sun_path, &st))
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode)) {
		log_error("RPC socket path %s exists and is not a socket", addr->sun_path);
		return -EEXIST;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	rc = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) ? errno : 0;
	close(fd);
	if (rc != ECONNREFUSED && rc != ENOENT) {
		log_error("RPC Unix domain socket path %s in use. Specify another.",
			  addr->sun_path);
		return -EADDRINUSE;
	}
	if (unlink(addr->sun_path) && errno != ENOENT)
		return -errno;
	return 0;
}

static int server_listen(void) CONTROL_ONLY
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd, rc;

	memcpy(addr.sun_path, server.path, sizeof(addr.sun_path));
	rc = server_remove_stale(&addr);
	if (rc)
		return rc;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	/* The mode of the socket's inode is the mode bind() gives the file. */
	if (fchmod(fd, 0600) || bind(fd, (const struct sockaddr *)&addr, sizeof(addr)))
		goto fail;
	if (listen(fd, 1024)) {
		int saved = errno;

		unlink(server.path);
		errno = saved;
		goto fail;
	}
	server.listener.fd = fd;
	server.listener.fn = server_event;
	server_accept_more();
	return server.accepting ? 0 : -ENOMEM;
fail:
	rc = -errno;
	close(fd);
	return rc;
}

/* Handed over: those who have connected meanwhile wait in the backlog. */
static int server_adopt(const struct rpc_config *config) CONTROL_ONLY
{
	server.listener.fd = config->adopted[0];
	server.lock_fd = config->adopted[1];
	server.listener.fn = server_event;
	server_accept_more();
	return server.accepting ? 0 : -ENOMEM;
}

int rpc_prepare(const struct rpc_config *config)
{
	if (strlen(config->path) >= sizeof(server.path)) {
		log_error("RPC socket path %s is longer than %zu bytes", config->path,
			  sizeof(server.path) - 1);
		return -ENAMETOOLONG;
	}
	memset(server.path, 0, sizeof(server.path));
	memcpy(server.path, config->path, strlen(config->path));
	snprintf(server.lock_path, sizeof(server.lock_path), "%s.lock", server.path);
	return rpc_dispatch_init(config);
}

int rpc_start(const struct rpc_config *config)
{
	int rc = rpc_prepare(config);

	if (rc)
		return rc;
	rc = config->adopted ? server_adopt(config) : server_lock();
	if (rc)
		goto fail;
	if (server.listener.fd < 0)
		rc = server_listen();
	if (rc == 0)
		return 0;
	log_error("RPC socket %s: %s", server.path, rpc_strerror(-rc));
fail:
	rpc_stop();
	return rc;
}

void rpc_stop(void)
{
	struct rpc_client *c, *tmp;

	server_accept_stop();
	control_timer_stop(&server.accept_again);
	if (server.listener.fd >= 0) {
		close(server.listener.fd);
		server.listener.fd = -1;
		if (!server.disowned)
			unlink(server.path);
	}
	list_for_each_safe(c, tmp, &server.clients, node)
		client_close(c);
	if (server.lock_fd >= 0) {
		if (!server.disowned)
			unlink(server.lock_path);
		close(server.lock_fd);
		server.lock_fd = -1;
	}
	rpc_dispatch_fini();
}
