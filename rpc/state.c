/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The state file: the configuration, kept on disk as it changes. A call that has
 * changed something is answered when a file that contains the change is durable,
 * so what was answered survives a kill or a power cut.
 *
 * One write is under way at a time, on a worker: a new file beside the old one,
 * fsync, rename, fsync of the directory. Calls that come meanwhile share the next
 * one, also those of one client, which need not wait for one answer to have the next
 * call carried out. A text that is on disk already is not written again.
 *
 * When a write fails, the calls that wait for it are answered with its error; the
 * change itself stays, and the file is tried again until it is current.
 *
 * <path>.lock is locked as long as we may write. `calls` belong to the next
 * write, `riding` to the one under way.
 */
#include "rpc/config.h"
#include "rpc/rpc.h"

#include "reactor/log.h"
#include "reactor/worker.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RETRY_MS 2000u
/* Changes that guests can provoke are written this often at most. */
#define TOUCH_MS 500u

static struct {
	char path[PATH_MAX];
	int lock_fd;		/* -1: there is no state file */
	bool on;
	bool expected;		/* on, as soon as the predecessor has let go of the file */
	struct list calls, riding;	/* struct rpc_call.node */
	char *durable;		/* what the file holds; NULL: not known, or none */
	size_t durable_len;
	/* The write under way; the worker's but for `busy`. */
	bool busy;
	struct job job;
	struct json_out text;
	int status;
	const char *step;	/* that failed */
	bool failing;
	bool touched;
	struct control_timer timer;	/* a retry, or touches gathered */
} state = {
	.lock_fd = -1,
	.calls = LIST_INIT(state.calls),
	.riding = LIST_INIT(state.riding),
};

static void write_next(void) CONTROL_ONLY;

/* ------- on the worker ------- */

static bool failed(const char *step)
{
	state.status = -errno;
	state.step = step;
	return false;
}

static bool write_text(int fd)
{
	for (size_t done = 0; done < state.text.len;) {
		ssize_t n = write(fd, state.text.text + done, state.text.len - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return failed("writing");
		done += (size_t)n;
	}
	return fsync(fd) == 0 || failed("syncing");
}

static bool replace_file(int dir, const char *name, const char *temp)
{
	int fd = openat(dir, temp, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	bool ok;

	if (fd < 0)
		return failed("creating the new file");
	/* One that a crash has left may have another mode. */
	ok = fchmod(fd, 0600) == 0 || failed("setting the mode");
	ok = ok && write_text(fd);
	if (close(fd) < 0 && ok)
		ok = failed("closing");
	if (ok && renameat(dir, temp, dir, name) < 0)
		ok = failed("renaming");
	if (!ok) {
		unlinkat(dir, temp, 0);
		return false;
	}
	return fsync(dir) == 0 || failed("syncing the directory");
}

static void write_run(struct job *job)
{
	char dir_path[PATH_MAX], temp[NAME_MAX + 8];
	char *slash;
	int dir;

	(void)job;
	snprintf(dir_path, sizeof(dir_path), "%s", state.path);
	slash = strrchr(dir_path, '/');
	*slash = '\0';
	snprintf(temp, sizeof(temp), "%s.tmp", slash + 1);
	dir = open(slash == dir_path ? "/" : dir_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0) {
		failed("opening the directory");
		return;
	}
	replace_file(dir, slash + 1, temp);
	close(dir);
}

/* ------- on control ------- */

static void move_calls(struct list *from, struct list *to)
{
	while (!list_empty(from)) {
		struct list *node = from->next;

		list_del(node);
		list_add_tail(to, node);
	}
}

/* Those there are now: an answer may bring in the next call, which has yet to be saved. */
CONTROL_ONLY static void answer(struct list *calls, int status, const char *why)
{
	struct list now = LIST_INIT(now);

	move_calls(calls, &now);
	while (!list_empty(&now)) {
		struct rpc_call *call = list_first(&now, struct rpc_call, node);

		list_del(&call->node);
		rpc_release(call, status, why);
	}
}

static void unlock_file(void)
{
	close(state.lock_fd);
	state.lock_fd = -1;
	free(state.durable);
	state.durable = NULL;
}

static void timer_due(struct control_timer *t)
{
	(void)t;
	control_assert();
	write_next();
}

CONTROL_ONLY static void write_failed(void)
{
	char why[RPC_WHY_MAX];

	snprintf(why, sizeof(why), "done, but not saved: state file %.256s: %s: %s", state.path,
		 state.step, rpc_strerror(-state.status));
	if (!state.failing)
		log_error("state file %s: %s: %s; trying again", state.path, state.step,
			  rpc_strerror(-state.status));
	state.failing = true;
	/* Renamed, perhaps: what the file holds is not known any more. */
	free(state.durable);
	state.durable = NULL;
	if (state.on)
		control_timer_start(&state.timer, RETRY_MS);
	answer(&state.riding, state.status, why);
}

static void write_done(struct job *job)
{
	(void)job;
	control_assert();
	state.busy = false;
	if (state.status < 0) {
		json_out_fini(&state.text);
		write_failed();
	} else {
		if (state.failing)
			log_notice("state file %s: saved again", state.path);
		state.failing = false;
		free(state.durable);
		state.durable = state.text.text;
		state.durable_len = state.text.len;
		state.text = (struct json_out){ 0 };
		answer(&state.riding, 0, "");
	}
	if (!state.on && state.lock_fd >= 0)
		unlock_file();
	if (!state.failing || !list_empty(&state.calls))
		write_next();
}

static bool is_durable(const struct json_out *text)
{
	return state.durable && state.durable_len == text->len &&
	       !memcmp(state.durable, text->text, text->len);
}

static void write_next(void)
{
	struct json_out text = { 0 };

	if (!state.on || state.busy)
		return;
	rpc_config_write(&text, false);
	json_out_raw(&text, "\n", 1);
	if (text.failed || is_durable(&text)) {
		int status = text.failed ? -ENOMEM : 0;

		json_out_fini(&text);
		answer(&state.calls, status, "done, but not saved: out of memory");
		return;
	}
	/* An answer to one may have begun the next write. */
	state.busy = true;
	state.text = text;
	state.status = 0;
	move_calls(&state.calls, &state.riding);
	state.job.run = write_run;
	state.job.done = write_done;
	worker_submit(&state.job);
}

bool rpc_state_hold(struct rpc_call *call)
{
	if (!state.on && !state.expected)
		return false;
	call->cancel = NULL;
	rpc_client_hold(call);
	list_add_tail(&state.calls, &call->node);
	write_next();
	return true;
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

void rpc_state_touch(void)
{
	static uint64_t last;
	uint64_t now = now_ms();

	if (!state.on || state.failing)
		return;
	if (now - last < TOUCH_MS) {
		control_timer_start(&state.timer, TOUCH_MS - (now - last));
		return;
	}
	last = now;
	write_next();
}

/* ------- beginning and end ------- */

static int lock_file(bool quiet)
{
	char path[PATH_MAX + 8];
	int fd;

	snprintf(path, sizeof(path), "%s.lock", state.path);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0) {
		int rc = -errno;

		log_error("state file: cannot make its lock %s: %s", path, rpc_strerror(-rc));
		return rc;
	}
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		if (!quiet)
			log_error("state file %s is kept by another target, which holds %s",
				  state.path, path);
		close(fd);
		return -EBUSY;
	}
	state.lock_fd = fd;
	return 0;
}

/* The absolute path, links in it followed: the rename must not replace a link. */
static int resolve(const char *path)
{
	char dir[PATH_MAX], real[PATH_MAX];
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;

	if (strlen(path) >= sizeof(dir) - 8)
		return -ENAMETOOLONG;
	if (realpath(path, state.path))
		return 0;
	if (errno != ENOENT)
		return -errno;
	snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
	if (!*name || strlen(name) > NAME_MAX - 5)
		return -EINVAL;
	if (!realpath(dir, real))
		return -errno;
	if (snprintf(state.path, sizeof(state.path), "%s/%s", strcmp(real, "/") ? real : "",
		     name) >= (int)sizeof(state.path))
		return -ENAMETOOLONG;
	return 0;
}

int rpc_state_open(const char *path, bool quiet, char **text, size_t *len)
{
	int rc = resolve(path);

	*text = NULL;
	if (rc < 0) {
		log_error("state file %s: %s", path, rpc_strerror(-rc));
		return rc;
	}
	rc = lock_file(quiet);
	if (rc < 0)
		return rc;
	rc = rpc_file_read(state.path, text, len);
	if (rc == -ENOENT)
		return 0;
	if (rc < 0) {
		log_error("state file %s cannot be read: %s", path, rpc_strerror(-rc));
		unlock_file();
		return rc;
	}
	state.durable = malloc(*len + 1);
	if (state.durable)
		memcpy(state.durable, *text, *len);
	state.durable_len = *len;
	return 0;
}

void rpc_state_expect(void)
{
	state.expected = true;
}

void rpc_state_fail(int status)
{
	state.expected = false;
	answer(&state.calls, status, "done, but not saved: the state file cannot be kept");
}

void rpc_state_start(void)
{
	state.on = true;
	state.expected = false;
	state.timer.fn = timer_due;
	write_next();
}

void rpc_state_stop(void)
{
	static const char stopping[] = "done, but perhaps not saved: the target is shutting down";

	state.expected = false;
	if (state.lock_fd < 0) {
		answer(&state.calls, -ESHUTDOWN, stopping);
		return;
	}
	state.on = false;
	control_timer_stop(&state.timer);
	if (!state.busy)
		unlock_file();
	answer(&state.calls, -ESHUTDOWN, stopping);
}
