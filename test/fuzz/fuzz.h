/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the fuzzers share: a byte reader that never runs out, a check that dies,
 * and for those that need them, control loop, workers, one reactor and a private
 * directory. The fuzzer's thread is the control thread; to wait it runs the loop.
 */
#ifndef SPINDLE_FUZZ_H
#define SPINDLE_FUZZ_H

/* Called by libFuzzer, which cannot say what thread it is. */
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wthread-safety-analysis"
#endif

#include "reactor/control.h"
#include "reactor/log.h"
#include "reactor/reactor.h"
#include "reactor/worker.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(cond)                                                                   \
	do {                                                                          \
		if (!(cond)) {                                                        \
			fprintf(stderr, "%s:%d: not %s\n", __FILE__, __LINE__, #cond); \
			abort();                                                      \
		}                                                                     \
	} while (0)

/* The input; zeroes behind its end. */
struct bytes {
	const uint8_t *p;
	size_t left;
};

static inline uint8_t take_u8(struct bytes *b)
{
	if (b->left == 0)
		return 0;
	b->left--;
	return *b->p++;
}

static inline uint16_t take_u16(struct bytes *b)
{
	uint16_t low = take_u8(b);

	return (uint16_t)(low | take_u8(b) << 8);
}

/* Up to n bytes; how many there were. */
static inline size_t take(struct bytes *b, void *to, size_t n)
{
	n = MIN(n, b->left);
	if (n)
		memcpy(to, b->p, n);
	b->p += n;
	b->left -= n;
	return n;
}

/* ------- a process of our kind ------- */

static char fuzz_dir[64];

static inline void fuzz_cleanup(void)
{
	rmdir(fuzz_dir);
}

static inline void fuzz_start(uint64_t poll_us)
{
	struct reactor_config config = { .poll_us = poll_us };
	unsigned int cpu = 0;
	cpu_set_t allowed;

	log_set_print_level(LOG_ERROR);
	/* As main() does: eventfds of a front end may be sockets. */
	signal(SIGPIPE, SIG_IGN);
	snprintf(fuzz_dir, sizeof(fuzz_dir), "/tmp/spf.XXXXXX");
	CHECK(mkdtemp(fuzz_dir));
	atexit(fuzz_cleanup);
	CHECK(sched_getaffinity(0, sizeof(allowed), &allowed) == 0);
	while (!CPU_ISSET(cpu, &allowed))
		cpu++;
	cpumask_set(&config.mask, cpu);
	CHECK(control_init() == 0);
	CHECK(workers_start() == 0);
	CHECK(reactors_start(&config) == 0);
}

static inline void fuzz_stop_timer(struct control_timer *t)
{
	(void)t;
	control_stop();
}

/* Run the loop until cond(arg) or for ms at most; whether cond came true. */
static inline bool fuzz_wait(bool (*cond)(void *arg), void *arg, unsigned int ms)
{
	struct control_timer over = { .fn = fuzz_stop_timer }, look = { .fn = fuzz_stop_timer };
	bool ok;

	control_timer_start(&over, ms);
	/* Most of it is there at once: a millisecond a look would be all the time we have. */
	for (int looks = 0; !(ok = cond(arg)) && over.node.next; looks++) {
		control_timer_start(&look, looks < 200 ? 0 : 1);
		control_run();
	}
	control_timer_stop(&look);
	control_timer_stop(&over);
	return ok;
}

struct fuzz_trip {
	struct msg msg;
	bool back;
};

static inline void fuzz_trip_home(struct msg *msg)
{
	container_of(msg, struct fuzz_trip, msg)->back = true;
	control_stop();
}

static inline void fuzz_trip_there(struct msg *msg)
{
	msg->fn = fuzz_trip_home;
	control_post(msg);
}

static inline bool fuzz_trip_back(void *arg)
{
	return ((struct fuzz_trip *)arg)->back;
}

/* The reactor has made a whole pass since. */
static inline void fuzz_pass(void)
{
	for (int i = 0; i < 2; i++) {
		struct fuzz_trip trip = { .msg.fn = fuzz_trip_there };

		reactor_post(reactor_by_index(0), &trip.msg);
		CHECK(fuzz_wait(fuzz_trip_back, &trip, 30000));
	}
}

#endif
