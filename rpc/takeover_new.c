/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The successor's side of a takeover: receive everything, make it, say PREPARED,
 * receive where the rings stand, say STARTED, start them. All of it is frozen
 * until that last step, and given up with the process when a step fails: then
 * nothing of ours has touched a guest, and the sockets in the file system stay.
 */
#include "rpc/config.h"
#include "rpc/rpc.h"
#include "rpc/takeover.h"

#include "reactor/log.h"
#include "reactor/worker.h"
#include "vhost/vhost.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define TICK_MS 5
#define RECEIVE_MS 10000
#define FREEZE_MS 60000		/* for caches to be written back, and then some */
#define OPEN_MS 50000		/* for bdevs that take their time */
#define WHY_MAX 300

static struct {
	struct takeover_config config;
	void (*done)(void *arg, int status);
	void *arg;
	int fd;
	struct job job;
	struct control_timer timer;
	uint64_t deadline_ns;
	struct takeover_batch in;
	struct control_fd end;		/* the connection, when all is ours */
	int status;
	char why[WHY_MAX];
} new = { .fd = -1 };

CONTROL_ONLY static void fail(int status, const char *why)
{
	struct takeover_batch out = { 0 };

	/* What the other side has said needs no errno. */
	if (status == -ECONNREFUSED || status == -ECANCELED)
		log_error("takeover: %s; the process there goes on", why);
	else
		log_error("takeover: %s: %s; the process there goes on", why,
			  rpc_strerror(-status));
	/* One that has refused us speaks JSON. */
	if (new.fd >= 0 && status != -ECONNREFUSED) {
		if (takeover_put(&out, TAKEOVER_FAILED, why, (uint32_t)strlen(why) + 1, NULL, 0) == 0)
			takeover_send(new.fd, &out, 0);
		takeover_batch_free(&out);
	}
	if (new.fd >= 0)
		close(new.fd);
	new.fd = -1;
	takeover_batch_free(&new.in);
	bdev_adopt_clear();
	vhost_disown();
	new.done(new.arg, status);
}

static const struct handover_record *record_of(uint16_t type)
{
	for (unsigned int i = 0; i < new.in.count; i++) {
		if (new.in.records[i].type == type)
			return &new.in.records[i];
	}
	return NULL;
}

/* On the worker: a whole batch, or why not. */
static int receive(int timeout_ms)
{
	const struct handover_record *last;
	int rc = takeover_receive(new.fd, &new.in, timeout_ms);

	if (rc < 0)
		return rc;
	last = &new.in.records[new.in.count - 1];
	if (last->type == TAKEOVER_END)
		return 0;
	if (last->type != TAKEOVER_FAILED)
		return -EPROTO;
	snprintf(new.why, sizeof(new.why), "the predecessor gives up: %.200s",
		 (const char *)last->body);
	return -ECANCELED;
}

/* What the predecessor has said, else at which step we were. */
static const char *why_or(const char *step, int rc)
{
	return rc == -ECANCELED ? new.why : step;
}

/* ------- positions, and the start ------- */

CONTROL_ONLY static int say(uint16_t type)
{
	struct takeover_batch out = { 0 };
	int rc = takeover_put(&out, type, NULL, 0, NULL, 0);

	/* A few bytes into an empty buffer: it does not wait. */
	if (rc == 0)
		rc = takeover_send(new.fd, &out, 0);
	takeover_batch_free(&out);
	/* One that has hung up may have said why. */
	if (rc < 0 && receive(0) == -ECANCELED)
		rc = -ECANCELED;
	return rc;
}

/*
 * Not its process id: that may mean nothing here, or somebody else, where we live in
 * another pid namespace.
 */
static void predecessor_gone(struct control_fd *cf, uint32_t events)
{
	char rest[256];
	ssize_t n = recv(cf->fd, rest, sizeof(rest), MSG_DONTWAIT);

	(void)events;
	control_assert();
	/* It has nothing more to say. */
	if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
		return;
	control_fd_del(cf);
	close(cf->fd);
	new.config.gone();
}

CONTROL_ONLY static void hang_up(void)
{
	/* Now it may exit: its end of the connection stays open until then. */
	shutdown(new.fd, SHUT_WR);
	new.end.fd = new.fd;
	new.end.fn = predecessor_gone;
	new.fd = -1;
	if (control_fd_add(&new.end, EPOLLIN) == 0)
		return;
	close(new.end.fd);
	new.config.gone();
}

static void frozen(struct job *job)
{
	int rc = new.status;

	(void)job;
	control_assert();
	for (unsigned int i = 0; rc == 0 && i < new.in.count; i++) {
		if (new.in.records[i].type < HANDOVER_VHOST_END)
			rc = vhost_import(&new.in.records[i]);
	}
	if (rc < 0) {
		fail(rc, why_or("the rings' positions", rc));
		return;
	}
	vhost_import_end();
	rc = say(TAKEOVER_STARTED);
	if (rc < 0) {
		fail(rc, why_or("starting", rc));
		return;
	}
	vhost_thaw();
	/* Then, not before: locks that no ring has come for are let go. */
	bdev_handover_end();
	takeover_batch_free(&new.in);
	log_notice("takeover: all is ours");
	new.done(new.arg, 0);
	hang_up();
}

static void freeze_run(struct job *job)
{
	(void)job;
	/* The rings' time counts twice: for what is left in caches as well. */
	new.status = receive(FREEZE_MS + 2 * (int)new.config.stop_ms);
}

/* ------- making what the predecessor has ------- */

/* The first bdev or controller that is not there yet; `why` says what it waits for. */
CONTROL_ONLY static bool missing(bool bdevs, int *status)
{
	const char *kind = bdevs ? "bdev" : "controller";

	for (unsigned int i = 0; i < new.in.count; i++) {
		const struct handover_record *rec = &new.in.records[i];
		const char *name = rec->body, *why;

		if (rec->type != (bdevs ? TAKEOVER_BDEV : HANDOVER_CONTROLLER) ||
		    (bdevs ? !!bdev_find(name) : !!vhost_controller_find(name)))
			continue;
		*status = pending_outcome(bdevs, name, &why);
		snprintf(new.why, sizeof(new.why), "%s %.100s: %.180s", kind, name, why);
		return true;
	}
	return false;
}

CONTROL_ONLY static int import_sessions(void)
{
	int rc = 0;

	for (unsigned int i = 0; rc == 0 && i < new.in.count; i++) {
		struct handover_record *rec = &new.in.records[i];

		if (rec->type < HANDOVER_VHOST_END && rec->type != HANDOVER_CONTROLLER)
			rc = vhost_import(rec);
	}
	return rc;
}

CONTROL_ONLY static int take_rpc(void)
{
	const struct handover_record *rpc = record_of(TAKEOVER_RPC);

	if (!rpc || rpc->fd_count != 2)
		return -EPROTO;
	for (unsigned int i = 0; i < 2; i++) {
		new.config.rpc_fds[i] = fcntl(rpc->fds[i], F_DUPFD_CLOEXEC, 0);
		if (new.config.rpc_fds[i] < 0)
			return -errno;
	}
	return 0;
}

static void look(struct control_timer *t)
{
	int rc = 0;

	control_assert();
	if (missing(true, &rc) || missing(false, &rc)) {
		if (rc == 0 && clock_ns() > new.deadline_ns)
			rc = -ETIMEDOUT;
		if (rc < 0)
			fail(rc, new.why);
		else
			control_timer_start(t, TICK_MS);
		return;
	}
	rc = bdev_adopt_clear() == 0 ? 0 : -EPROTO;
	if (rc == 0)
		rc = import_sessions();
	if (rc == 0)
		rc = take_rpc();
	takeover_batch_free(&new.in);
	if (rc == 0)
		rc = say(TAKEOVER_PREPARED);
	if (rc < 0) {
		fail(rc, why_or("sessions", rc));
		return;
	}
	new.job.run = freeze_run;
	new.job.done = frozen;
	worker_submit(&new.job);
}

static void configured(void *arg, int status)
{
	(void)arg;
	control_assert();
	if (status < 0) {
		fail(status, "the configuration");
		return;
	}
	new.deadline_ns = clock_ns() + OPEN_MS * 1000000ull;
	new.timer.fn = look;
	look(&new.timer);
}

/* What the configuration will ask for while it is made: sockets, and bdevs' fds. */
CONTROL_ONLY static int offer_fds(void)
{
	int rc = 0;

	for (unsigned int i = 0; rc == 0 && i < new.in.count; i++) {
		struct handover_record *rec = &new.in.records[i];

		if (rec->type == HANDOVER_CONTROLLER) {
			rc = vhost_import(rec);
		} else if (rec->type == TAKEOVER_BDEV && rec->fd_count > 0) {
			rc = bdev_adopt_offer(rec->body, rec->fds, rec->fd_count);
			rec->fd_count = 0;
		}
	}
	return rc;
}

static void received(struct job *job)
{
	const struct handover_record *config;
	const struct takeover_hello *hello;
	int rc = new.status;

	(void)job;
	control_assert();
	if (rc < 0) {
		fail(rc, new.why);
		return;
	}
	hello = new.in.records[0].body;
	config = record_of(TAKEOVER_CONFIG);
	if (new.in.records[0].type != TAKEOVER_HELLO ||
	    new.in.records[0].len < sizeof(*hello) || hello->magic != TAKEOVER_MAGIC ||
	    hello->version != HANDOVER_VERSION || !config) {
		fail(-EPROTO, "the predecessor speaks another version");
		return;
	}
	log_notice("takeover: from process %d", hello->pid);
	*new.config.pid = hello->pid;
	vhost_freeze();
	rc = offer_fds();
	if (rc == 0)
		rc = rpc_config_apply(config->body, config->len, "the predecessor's configuration",
				      RPC_ERRORS_PENDING, configured, NULL);
	if (rc < 0)
		fail(rc, "the configuration");
}

/* ------- the beginning ------- */

static int connect_to(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd;

	if (strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	memcpy(addr.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
		int rc = -errno;

		close(fd);
		return rc;
	}
	return fd;
}

static void begin_run(struct job *job)
{
	char text[160], stop[40] = "";
	ssize_t n;
	int len;

	(void)job;
	if (new.config.stop_ms)
		snprintf(stop, sizeof(stop), ", \"stop_ms\": %u", new.config.stop_ms);
	len = snprintf(text, sizeof(text), "{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": "
		       "\"framework_takeover\", \"params\": {\"version\": %d%s}}",
		       HANDOVER_VERSION, stop);
	new.status = connect_to(new.config.rpc_path);
	snprintf(new.why, sizeof(new.why), "no process to take over from at %.200s",
		 new.config.rpc_path);
	if (new.status < 0)
		return;
	new.fd = new.status;
	new.status = 0;
	n = send(new.fd, text, (size_t)len, MSG_NOSIGNAL);
	if (n != len) {
		new.status = n < 0 ? -errno : -EMSGSIZE;
		return;
	}
	/* Records begin with our magic; a refusal is JSON, for the log. */
	snprintf(new.why, sizeof(new.why), "the predecessor's records");
	new.status = takeover_wait(new.fd, RECEIVE_MS);
	if (new.status < 0)
		return;
	n = recv(new.fd, text, 1, MSG_PEEK);
	if (n == 1 && text[0] == '{') {
		n = recv(new.fd, new.why, sizeof(new.why) - 1, 0);
		if (n < 0) {
			new.status = -errno;
			return;
		}
		new.why[n] = '\0';
		new.why[strcspn(new.why, "\n")] = '\0';
		new.status = -ECONNREFUSED;
		return;
	}
	new.status = receive(RECEIVE_MS);
}

int takeover_begin(const struct takeover_config *config, void (*done)(void *arg, int status),
		   void *arg)
{
	new.config = *config;
	new.done = done;
	new.arg = arg;
	new.job.run = begin_run;
	new.job.done = received;
	worker_submit(&new.job);
	return 0;
}
