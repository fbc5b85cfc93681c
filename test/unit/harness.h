/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What unit tests share: a process with reactors, workers and a control loop
 * around one cmocka group; bdev calls and requests made synchronous; private
 * files; allocations that fail on demand.
 *
 * The main thread is the control thread. A test that waits runs the control
 * loop meanwhile; after 30 s (120 under a sanitizer) of it the process gives up
 * with a message. It includes cmocka.
 */
#ifndef SPINDLE_TEST_HARNESS_H
#define SPINDLE_TEST_HARNESS_H

/* Test functions are the control thread's, but cmocka's pointers to them cannot say so. */
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wthread-safety-analysis"
#endif

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "bdev/bdev.h"
#include "reactor/control.h"
#include "reactor/reactor.h"

/*
 * Run the group; prints `N passed, N failed, N skipped` as the last line.
 * setup and teardown are the group's, or NULL. Returns main's value.
 */
int harness_main(const char *suite, const struct CMUnitTest *tests, size_t count,
		 CMFixtureFunction setup, CMFixtureFunction teardown);
/* Says why, and leaves the test as skipped. */
#define harness_skip(...)                          \
	do {                                       \
		harness_skip_reason(__VA_ARGS__);  \
		skip();                            \
	} while (0)
void harness_skip_reason(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* ------- the process ------- */

/*
 * Control, workers, and reactors on the first `cores` cores that we may use (or
 * fewer: see reactor_count()). poll_us as in struct reactor_config.
 */
void harness_start(unsigned int cores, uint64_t poll_us);
/* Everything of harness_start() ends, after all bdevs; the temporary files go. */
void harness_stop(void);
/* The same as fixtures of a group: one reactor that sleeps when idle. */
int harness_setup(void **state);
int harness_setup_two(void **state);	/* two, where there are two cores */
int harness_teardown(void **state);

/* Run the control loop until *flag, which a control callback sets before harness_wake(). */
void harness_wait(const bool *flag) CONTROL_ONLY;
void harness_wake(void) CONTROL_ONLY;
/* Run the control loop until cond(arg), looking each few milliseconds. */
void harness_wait_until(bool (*cond)(void *arg), void *arg) CONTROL_ONLY;
/* Run the control loop for so long. */
void harness_sleep(unsigned int ms) CONTROL_ONLY;
/* fn(arg) on reactor `index`; returns when it has returned. */
void harness_on_reactor(unsigned int index, void (*fn)(void *arg), void *arg) CONTROL_ONLY;

/* ------- bdevs ------- */

/* Passed to a slow call; harness_result() waits for its answer and returns the status. */
struct harness_result {
	struct bdev_result res;
	bool done;
};
struct bdev_result *harness_result_init(struct harness_result *hr);
int harness_result(struct harness_result *hr) CONTROL_ONLY;
/* bdev_delete() and wait. */
int harness_delete(const char *name) CONTROL_ONLY;

/* A user of a bdev with a channel on one reactor. On REMOVE it only counts. */
struct harness_user {
	struct bdev_desc desc;
	struct bdev_channel *ch;
	unsigned int resizes, removes;
	bool close_on_remove;
};
/* Fails the test when it cannot open. */
void harness_open(struct harness_user *user, const char *name, unsigned int reactor) CONTROL_ONLY;
/* Put and close, and wait until the channel is gone. */
void harness_close(struct harness_user *user) CONTROL_ONLY;

/* A request of the test's own. The caller fills in io but for done, or uses the helpers. */
struct harness_io {
	struct bdev_io io;
	struct msg msg;
	int status;
	bool done;
};
void harness_io_start(struct harness_io *hio, struct harness_user *user) CONTROL_ONLY;
int harness_io_wait(struct harness_io *hio) CONTROL_ONLY;
/* All in one: returns the request's status. */
int harness_iov(struct harness_user *user, enum bdev_io_type type, uint64_t offset,
		struct iovec *iov, uint32_t iovcnt) CONTROL_ONLY;
int harness_rw(struct harness_user *user, enum bdev_io_type type, uint64_t offset, void *buf,
	       size_t len) CONTROL_ONLY;
int harness_range(struct harness_user *user, enum bdev_io_type type, uint64_t offset,
		  uint64_t len, uint8_t flags) CONTROL_ONLY;
void harness_cancel(struct harness_user *user) CONTROL_ONLY;

/* ------- files and memory ------- */

/* A path in the private directory; valid until the 16th call after it. */
const char *harness_path(const char *name);
/* A sparse file of that size there; returns its path. */
const char *harness_file(const char *name, uint64_t size);
/* Bytes that depend on seed and position. */
void harness_fill(void *buf, size_t len, uint64_t seed);
/* Page-aligned memory; free(). */
void *harness_pages(size_t len);

/*
 * The n-th allocation from now on (1: the next), by any thread, fails; 0: none.
 * True from _reached when one has. Works for malloc, calloc, realloc and
 * aligned_alloc called from our own code.
 */
void harness_fail_alloc(unsigned int n);
bool harness_fail_reached(void);

#endif
