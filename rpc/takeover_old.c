/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The predecessor's side of a takeover. It is a chain of steps on the control
 * thread, with a worker between them for what blocks: freeze, send everything,
 * wait for PREPARED, write caches back, stop the rings, write back what is left,
 * send where the rings stand, wait for STARTED, leave. Whatever goes wrong on the
 * way ends in give_up(), which starts the rings again and lets the configuration
 * be changed again.
 *
 * No guest pays for another's slow disk. A request that has been in flight for
 * longer than rings are given to stop ends the takeover before any does; disks with
 * younger ones, but old, stop first, while the others run; and when all stop, those
 * that have run again after PAUSE_MS until the last has.
 *
 * The last step is delicate. Before we go on after all, the successor must have
 * lost the power to start: the connection is shut down first, so that its STARTED
 * cannot be sent any more, and then looked through for one that was sent before.
 */
#include "rpc/config.h"
#include "rpc/rpc.h"
#include "rpc/takeover.h"

#include "reactor/log.h"
#include "reactor/worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TICK_MS 1
#define PARTIAL_MS 1000		/* for the rest of half a message */
#define SETTLE_MS 5000		/* for messages and calls under way, and sessions that end */
#define PREPARE_MS 60000	/* for the successor to open every bdev */
#define FLUSH_MS 30000		/* for caches to be written back */
#define STOP_MS 1000		/* for requests to end, and what is left in caches */
#define STOP_MS_MAX 60000
#define SLOW_US 50000		/* disks with a request as old stop before the others */
#define PAUSE_MS 75		/* for one to wait for the rest to stop */
#define START_MS 5000
#define FAREWELL_MS 1000

static struct {
	bool active;
	int fd;
	struct control_timer timer;
	uint64_t deadline_ns;	/* of the present step */
	uint64_t partial_ns;
	uint64_t stopped_ns;	/* when the rings were told to stop */
	uint32_t stop_ms;
	bool all_stop;		/* not only the slow ones */
	struct takeover_batch out, in;
	struct job job;
	struct bdev_result flush;
	bool flushing;		/* perhaps for a takeover that was given up */
	void (*flushed)(void);	/* what follows */
	bool talking;		/* the job is under way */
	int timeout_ms;
	int status;
	void (*leave)(void);
	void (*aborted)(void);
} old = { .fd = -1 };

bool takeover_is_active(void)
{
	return old.active;
}

void takeover_on_loss(void (*leave)(void))
{
	old.leave = leave;
}

CONTROL_ONLY static void end(void)
{
	control_timer_stop(&old.timer);
	takeover_batch_free(&old.out);
	takeover_batch_free(&old.in);
	if (old.fd >= 0)
		close(old.fd);
	old.fd = -1;
	old.active = false;
}

/* For the successor's log; one that does not read is not waited for. */
CONTROL_ONLY static void tell(const char *step, const char *why)
{
	struct takeover_batch out = { 0 };
	char text[256];

	snprintf(text, sizeof(text), "%s: %s", step, why);
	if (takeover_put(&out, TAKEOVER_FAILED, text, (uint32_t)strlen(text) + 1, NULL, 0) == 0)
		takeover_send(old.fd, &out, 0);
	takeover_batch_free(&out);
}

CONTROL_ONLY static void give_up(const char *step, const char *why)
{
	void (*aborted)(void) = old.aborted;

	log_error("takeover: %s: %s; %s", step, why, aborted ? "no takeover" : "going on as before");
	tell(step, why);
	old.aborted = NULL;
	end();
	vhost_thaw();
	bdev_handover_end();
	rpc_hold(false);
	pending_pause(false);
	if (aborted)
		aborted();
}

CONTROL_ONLY static void give_up_errno(const char *step, int status)
{
	give_up(step, status == -ECONNRESET ? "the successor is gone" : rpc_strerror(-status));
}

/* ------- on a worker: send a batch, wait for the answer ------- */

static void talk_run(struct job *job)
{
	(void)job;
	old.status = takeover_send(old.fd, &old.out, old.timeout_ms);
	if (old.status == 0)
		old.status = takeover_receive(old.fd, &old.in, old.timeout_ms);
}

CONTROL_ONLY static void talk(int timeout_ms, void (*done)(struct job *job))
{
	old.timeout_ms = timeout_ms;
	old.talking = true;
	old.job.run = talk_run;
	old.job.done = done;
	worker_submit(&old.job);
}

/* The answer's type; what came is forgotten. -errno. */
CONTROL_ONLY static int answer(const char *step)
{
	int type = old.status;

	old.talking = false;
	if (type == 0) {
		const struct handover_record *rec = &old.in.records[old.in.count - 1];

		type = rec->type;
		if (type == TAKEOVER_FAILED)
			log_error("takeover: the successor says at %s: %.*s", step, (int)rec->len,
				  (const char *)rec->body);
	}
	takeover_batch_free(&old.out);
	takeover_batch_free(&old.in);
	return type;
}

/* ------- the steps ------- */

/* Whether STARTED has come after all; nothing can come after this. */
static bool cut_off(void)
{
	struct takeover_batch rest = { 0 };
	bool started;

	shutdown(old.fd, SHUT_RDWR);
	started = takeover_receive(old.fd, &rest, 0) == 0 &&
		rest.records[rest.count - 1].type == TAKEOVER_STARTED;
	takeover_batch_free(&rest);
	return started;
}

/* Until the successor has told systemd, say, that it is the one now, and hangs up. */
static void farewell_run(struct job *job)
{
	(void)job;
	takeover_wait(old.fd, FAREWELL_MS);
}

static void farewell(struct job *job)
{
	(void)job;
	control_assert();
	/* Left open: its end tells the successor that we have exited. */
	old.fd = -1;
	end();
	old.leave();
}

static void started(struct job *job)
{
	int type;

	(void)job;
	control_assert();
	type = answer("the start");
	if (type != TAKEOVER_STARTED && !cut_off()) {
		give_up_errno("starting", type < 0 ? type : -EPROTO);
		return;
	}
	log_notice("takeover: a successor serves our guests after %llu us without us",
		   (unsigned long long)(clock_ns() - old.stopped_ns) / 1000);
	vhost_disown();
	old.talking = true;
	old.job.run = farewell_run;
	old.job.done = farewell;
	worker_submit(&old.job);
}

CONTROL_ONLY static void send_positions(void)
{
	int rc = vhost_export_positions(takeover_put, &old.out);

	if (rc == 0)
		rc = takeover_put(&old.out, TAKEOVER_END, NULL, 0, NULL, 0);
	if (rc < 0) {
		give_up_errno("positions", rc);
		return;
	}
	talk(START_MS, started);
}

static void flush_late(struct control_timer *t)
{
	(void)t;
	control_assert();
	give_up("writing caches back", "takes too long");
}

static void flush_end(struct bdev_result *res)
{
	control_assert();
	old.flushing = false;
	/* Given up meanwhile. */
	if (!old.active)
		return;
	control_timer_stop(&old.timer);
	if (res->status < 0)
		give_up("writing caches back", res->reason);
	else
		old.flushed();
}

CONTROL_ONLY static void flush(void (*flushed)(void))
{
	uint64_t now = clock_ns();

	old.flushed = flushed;
	old.flushing = true;
	old.flush = (struct bdev_result){ .fn = flush_end };
	old.timer.fn = flush_late;
	control_timer_start(&old.timer, now < old.deadline_ns ?
			    (old.deadline_ns - now) / 1000000 + 1 : 1);
	bdev_handover_flush(&old.flush);
}

CONTROL_ONLY static void set_deadline(uint64_t ms)
{
	old.deadline_ns = clock_ns() + ms * 1000000;
}

CONTROL_ONLY static bool at_rest(const char **whose)
{
	const struct bdev *busy;

	if (!vhost_at_rest(whose))
		return false;
	busy = bdev_handover_busy();
	if (busy)
		*whose = busy->name;
	return !busy;
}

static void rest(struct control_timer *t)
{
	uint64_t now = clock_ns();
	const char *whose;
	char why[320];

	control_assert();
	if (at_rest(&whose)) {
		if (old.all_stop) {
			set_deadline(old.stop_ms);
			flush(send_positions);
			return;
		}
		old.all_stop = true;
		old.stopped_ns = now;
		vhost_rest(0);
	} else if (now > old.deadline_ns) {
		snprintf(why, sizeof(why), "%s: its requests do not end", whose);
		give_up("stopping the rings", why);
		return;
	} else if (old.all_stop && now - old.stopped_ns > PAUSE_MS * 1000000ull) {
		old.all_stop = false;
		vhost_rest_less();
	}
	control_timer_start(t, TICK_MS);
}

static void measured(struct control_timer *t)
{
	uint64_t oldest_us;
	const char *whose;
	char why[320];

	control_assert();
	if (!vhost_measured(&oldest_us, &whose)) {
		control_timer_start(t, TICK_MS);
		return;
	}
	if (oldest_us / 1000 >= old.stop_ms) {
		snprintf(why, sizeof(why), "%s: a request has been in flight for %llu ms", whose,
			 (unsigned long long)(oldest_us / 1000));
		give_up("before the rings are stopped", why);
		return;
	}
	/* Who connects now is answered by whoever goes on. */
	rpc_hold(true);
	set_deadline(old.stop_ms);
	old.all_stop = false;
	vhost_rest(SLOW_US);
	old.timer.fn = rest;
	rest(t);
}

CONTROL_ONLY static void stop_rings(void)
{
	vhost_measure();
	old.timer.fn = measured;
	control_timer_start(&old.timer, TICK_MS);
}

static void prepared(struct job *job)
{
	int type;

	(void)job;
	control_assert();
	type = answer("its preparations");
	if (type != TAKEOVER_PREPARED) {
		give_up_errno("the successor's preparations", type < 0 ? type : -EPROTO);
		return;
	}
	/* Most of what caches hold is written back while the rings still run. */
	old.deadline_ns = clock_ns() + FLUSH_MS * 1000000ull;
	flush(stop_rings);
}

CONTROL_ONLY static int put_bdevs(void)
{
	struct bdev *bdev = NULL;
	int rc = 0;

	while (rc == 0 && (bdev = bdev_next(bdev))) {
		int fds[BDEV_HANDOVER_FDS], count = bdev_handover(bdev, fds);

		if (count < 0) {
			log_error("takeover: bdev %s cannot be handed over: %s", bdev->name,
				  rpc_strerror(-count));
			return count;
		}
		rc = takeover_put(&old.out, TAKEOVER_BDEV, bdev->name,
				  (uint32_t)strlen(bdev->name) + 1, fds, (unsigned int)count);
	}
	return rc;
}

CONTROL_ONLY static int put_everything(void)
{
	struct takeover_hello hello = { TAKEOVER_MAGIC, HANDOVER_VERSION, getpid() };
	struct json_out config = { 0 };
	int fds[2], rc;

	rc = takeover_put(&old.out, TAKEOVER_HELLO, &hello, sizeof(hello), NULL, 0);
	rpc_config_write(&config, true);
	if (rc == 0)
		rc = config.failed ? -ENOMEM :
			takeover_put(&old.out, TAKEOVER_CONFIG, config.text, (uint32_t)config.len,
				     NULL, 0);
	json_out_fini(&config);
	if (rc == 0)
		rc = put_bdevs();
	if (rc == 0)
		rc = vhost_export(takeover_put, &old.out);
	rpc_server_fds(fds);
	if (rc == 0)
		rc = takeover_put(&old.out, TAKEOVER_RPC, NULL, 0, fds, 2);
	if (rc == 0)
		rc = takeover_put(&old.out, TAKEOVER_END, NULL, 0, NULL, 0);
	return rc;
}

static void settle(struct control_timer *t)
{
	uint64_t now = clock_ns();
	int rc;

	control_assert();
	/* Half a message for a second is no message: that front end is left behind. */
	if (now > old.partial_ns)
		vhost_drop_partial();
	if (!vhost_is_settled() || rpc_is_busy()) {
		if (now > old.deadline_ns)
			give_up("freezing", "messages, calls or requests under way do not end");
		else
			control_timer_start(t, TICK_MS);
		return;
	}
	rc = put_everything();
	if (rc < 0) {
		give_up_errno("collecting", rc);
		return;
	}
	talk(PREPARE_MS, prepared);
}

bool takeover_abort(void (*ended)(void))
{
	if (!old.active)
		return false;
	old.aborted = ended;
	/* The job comes back at once, perhaps with a STARTED that was there before. */
	if (old.talking)
		shutdown(old.fd, SHUT_RDWR);
	else
		give_up("asked to stop", "no time for a successor");
	return true;
}

/* ------- the method ------- */

struct takeover_args {
	uint32_t version, stop_ms;
};
static const struct rpc_param takeover_params[] = {
	RPC_PARAM(struct takeover_args, version, RPC_REQUIRED),
	RPC_PARAM(struct takeover_args, stop_ms, RPC_OPTIONAL),
};
static const struct takeover_args takeover_defaults = { .stop_ms = STOP_MS };

static void takeover(struct rpc_call *call) CONTROL_ONLY
{
	const struct takeover_args *args = (const void *)call->args;

	if (args->version != HANDOVER_VERSION) {
		rpc_reply_error(call, RPC_INVALID_PARAMS, "Invalid parameters",
				"we hand over by version %d, not %u", HANDOVER_VERSION,
				args->version);
		return;
	}
	if (args->stop_ms == 0 || args->stop_ms > STOP_MS_MAX) {
		rpc_reply_error(call, RPC_INVALID_PARAMS, "Invalid parameters",
				"stop_ms is from 1 to %d, not %u", STOP_MS_MAX, args->stop_ms);
		return;
	}
	if (old.active || old.flushing) {
		rpc_reply_errno(call, -EBUSY, "another successor is at it", false);
		return;
	}
	old.fd = rpc_client_detach(call);
	if (old.fd < 0) {
		rpc_reply_errno(call, old.fd, NULL, false);
		return;
	}
	log_notice("takeover: a successor has come");
	old.active = true;
	old.stop_ms = args->stop_ms;
	vhost_freeze();
	pending_pause(true);
	old.deadline_ns = clock_ns() + SETTLE_MS * 1000000ull;
	old.partial_ns = clock_ns() + PARTIAL_MS * 1000000ull;
	old.timer.fn = settle;
	control_timer_start(&old.timer, TICK_MS);
	/* Nobody hears it: the connection has left the server. */
	rpc_reply_true(call);
}

const struct rpc_method rpc_takeover_methods[] = {
	{ "framework_takeover", NULL, RPC_RUNTIME, 0, takeover,
	  RPC_PARAMS(takeover_params, struct takeover_args), .defaults = &takeover_defaults },
	{ .name = NULL },
};
