/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The configuration as a whole: writing it, applying a saved one, what of it
 * cannot be had yet (pending.c), and the state file that follows it (state.c).
 * Its form is that of SPDK's saved files: {"subsystems": [{"subsystem": name,
 * "config": [{"method": m, "params": {...}}, ...]}, ...]}. Everything here runs
 * on the control thread.
 */
#ifndef SPINDLE_CONFIG_H
#define SPINDLE_CONFIG_H

#include "reactor/base.h"

struct json_object;
struct json_out;
struct rpc_call;
struct rpc_method;

/* ------- from and to memory ------- */

/*
 * All that is there and all that is pending; w->failed when memory ran out. Ceph
 * keys and the like only with `secrets`: for no eyes but our successor's.
 */
void rpc_config_write(struct json_out *w, bool secrets) CONTROL_ONLY;

/* How to take what a call of a configuration is refused with. */
enum rpc_errors {
	RPC_ERRORS_FATAL,	/* ends it, but for what may come later (a file, a cluster) */
	RPC_ERRORS_SKIP,	/* is logged and left out, but for what may come later */
	RPC_ERRORS_PENDING,	/* leaves the bdev or controller pending, whatever it is */
};
/*
 * Make a saved configuration's calls. source names it in the log. What is no
 * configuration (not JSON, another shape, an unknown method, bad parameters) is
 * refused with -EINVAL before anything is made; -EBUSY while another is applied;
 * -ENOMEM. On 0 done follows, perhaps before this returns: 0 when every call has
 * been answered once or takes longer than others should wait (it stays pending),
 * or the -errno that ended it, logged.
 */
int rpc_config_apply(const char *text, size_t len, const char *source, enum rpc_errors errors,
		     void (*done)(void *arg, int status), void *arg) CONTROL_ONLY;

/* ------- at start and at exit ------- */

struct rpc_files {
	const char *config;	/* -c; NULL: none. Not read once the state file is there */
	const char *state;	/* --state; NULL: none */
	bool ignore_errors;	/* of config */
};
/*
 * Load what the files say; from then on keep the state file current. A state
 * file that is not there is an empty configuration, one that cannot be read is
 * refused and left alone. As rpc_config_apply(), and the -errno of a file.
 */
int rpc_files_load(const struct rpc_files *files, void (*done)(void *arg, int status),
		   void *arg) CONTROL_ONLY;
/*
 * A takeover: from now on successful calls are answered when the state file, which
 * is still the predecessor's, has become ours, and holds what they changed.
 */
void rpc_files_expect(const struct rpc_files *files) CONTROL_ONLY;
/*
 * After a takeover: keep the state file current from here on. -EBUSY: the predecessor
 * has not let go of it, try again; with `late` calls are not held any longer, and that
 * has been logged. -errno: it cannot be kept, logged.
 */
int rpc_files_follow(const struct rpc_files *files, bool late) CONTROL_ONLY;
/* Before anything is taken down: the state stays as it is, pending calls rest. */
void rpc_files_stop(void) CONTROL_ONLY;

/* A regular file, whole; *text is the caller's to free. -errno: *text is NULL. Blocks. */
int rpc_file_read(const char *path, char **text, size_t *len);

/* ------- the state file: state.c ------- */

/*
 * Lock the file (by <path>.lock) and read it: *text is NULL when there is none,
 * else the caller frees it. -EBUSY: another target keeps it; -errno, logged, but for
 * -EBUSY with `quiet`.
 */
int rpc_state_open(const char *path, bool quiet, char **text, size_t *len) CONTROL_ONLY;
/* Calls are to be held from now on; rpc_state_start() or rpc_state_fail() follows. */
void rpc_state_expect(void) CONTROL_ONLY;
void rpc_state_fail(int status) CONTROL_ONLY;
/* Write it from now on. */
void rpc_state_start(void) CONTROL_ONLY;
/*
 * Write it no more. One write may still be under way: the lock is let go after
 * it, so whoever gets the lock writes last.
 */
void rpc_state_stop(void) CONTROL_ONLY;
/* The configuration has changed without a call. */
void rpc_state_touch(void) CONTROL_ONLY;
/*
 * A call has succeeded and its reply is written: true when it has to wait for
 * the state file; rpc_release() then ends it.
 */
bool rpc_state_hold(struct rpc_call *call) CONTROL_ONLY;

/* ------- what cannot be had yet: pending.c ------- */

/* One more call to make, behind those there are; takes a reference. -ENOMEM. */
int pending_add(const struct rpc_method *m, struct json_object *params) CONTROL_ONLY;
/* Make the calls; done as in rpc_config_apply(). */
void pending_start(const char *source, enum rpc_errors errors,
		   void (*done)(void *arg, int status), void *arg) CONTROL_ONLY;
bool pending_starting(void) CONTROL_ONLY;
/* Forget all that is pending and not under way. */
void pending_clear(void) CONTROL_ONLY;
/* Begin no further call, or go on. */
void pending_pause(bool on) CONTROL_ONLY;
/* How the last try of a bdev or controller ended, -errno; 0: it has not. -ENOENT: no such. */
int pending_outcome(bool is_bdev, const char *name, const char **why) CONTROL_ONLY;
/* Start no more. */
void pending_stop(void) CONTROL_ONLY;
/* Something was made that a pending call may have waited for. */
void pending_wake(void) CONTROL_ONLY;
/*
 * A client's call about something pending: deletes it, or is refused because its
 * name is taken. True when it has been answered.
 */
bool pending_answers(struct rpc_call *call) CONTROL_ONLY;
/* The pending calls of the subsystem "bdev" or, else, "vhost_blk". */
void pending_write(struct json_out *w, bool bdevs) CONTROL_ONLY;
/* Whether a bdev of that name is pending. */
bool pending_bdev(const char *name);

#endif
