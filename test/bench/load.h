/* SPDX-License-Identifier: BSD-3-Clause */
/* The load generator's state; see the head of bench.c. */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include <linux/virtio_blk.h>
#include <signal.h>
#include <time.h>

#include "../frontend/frontend.h"

struct line {			/* one request's header and status: a cache line */
	struct virtio_blk_outhdr hdr;
	uint8_t status;
	uint8_t pad[47];
};

struct slot {
	struct line *line;
	uint16_t *data_flags;	/* of the data's descriptor, wherever that is */
	uint8_t *data;
	uint64_t block;
	uint64_t began;
	uint16_t head;		/* packed: the buffer id */
	bool write;
	uint8_t num;		/* packed: descriptors, which are copied into the ring each time */
	struct vring_packed_desc d[3];
	/* --rewrite: what is copied to where each time, as a driver fills in its descriptors. */
	struct vring_desc *to, copy[3];
	struct vring_desc *head_to, head_copy;
};

struct bench_queue {
	struct fe_vq *vq;
	struct slot *slots;
	uint16_t *slot_of;	/* by head */
	uint16_t *shadow;	/* what stands in avail->ring */
	uint16_t mask;
	uint16_t avail_idx;	/* prepared */
	uint16_t published;
	uint16_t kicked;	/* avail index at the last look at the kick suppression */
	uint16_t last_used;
	uint16_t event_set;
	uint16_t in_flight;
	uint32_t idle;
	bool look_again;
	/* Packed: the next places of both sides; the first flags that are not yet published. */
	bool wrap, used_wrap, held;
	uint16_t at, used_at, held_at, held_flags;
	uint16_t added;		/* descriptors since the last kick, at most the ring's size */
};

struct bench {
	const char *socket;
	uint32_t qd, bs, queues, write_pct, read_pct, runtime_ms, seed;
	uint32_t batch;		/* publish after so many */
	uint64_t size, max_ios;
	bool random, indirect, event_idx, verify, prefill, json, hugetlb, libblkio, wait;
	bool packed, no_inflight, rewrite, prefetch, histogram, gaps;
	const char *beside_arg;
	struct bench *beside;	/* another disk, driven by the same thread */
	uint32_t calls;		/* with --wait: a call is wanted after so many completions */
	int cpu, ping_cpu;

	struct fe *fe;
	struct bench_queue *q;
	uint64_t blocks, cursor, rng, block_sectors;
	uint8_t *written;	/* bitmap of blocks with known content */
	uint64_t ios, read_ios, errors, verify_errors, kicks, issued;
	uint64_t timed_ios;	/* completed before the clock stopped; the rest only drained */
	struct hist *hist;	/* latencies in ticks */
	double ns_per_tick;
	bool stop, broken;
	pid_t target_pid;	/* 0: unknown */
	clockid_t target_clock;
	double target_cpu_s;	/* while our clock ran, all its threads */
};

extern volatile sig_atomic_t interrupted;

static inline uint64_t next_random(struct bench *b)
{
	b->rng ^= b->rng << 13;
	b->rng ^= b->rng >> 7;
	b->rng ^= b->rng << 17;
	return b->rng;
}

/* setup.c: -errno, said on stderr. */
int bench_connect(struct bench *b);
void bench_set_slots(struct bench *b, bool write);
void bench_release(struct bench *b);
/* Seconds of CPU time so far, 0 when nobody knows. */
double target_cpu(const struct bench *b);

/* result.c: as text or JSON; `s`: seconds that were timed. */
void print_result(const struct bench *b, double s);

/* ping.c: from b->cpu to b->ping_cpu and back; prints its result. 0, or -1 said on stderr. */
int ping_cores(const struct bench *b);

/* gaps.c: a loop on b->cpu for b->runtime_ms, and when it did not run; prints its result. */
void watch_gaps(const struct bench *b);

/* limit.c: copies without any target; prints its result. */
int memcpy_limit(struct bench *b);

#endif
