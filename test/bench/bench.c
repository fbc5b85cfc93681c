/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Load for any vhost-user-blk socket, at the least cost per I/O on this side, so that what is
 * measured is the target.
 *
 * Everything that can be is built before the clock starts: descriptors, indirect tables, avail
 * entries. A request then costs us: the sector and a poisoned status byte in one cache line of
 * its own (the target answers into that same line), an avail entry only where it differs from
 * what stands there, and its share of one release of avail->idx for each batch. We poll the used
 * index and tell the target never to call.
 *
 * Kicks: a full fence between publishing and reading the target's "no kick, please" would cost
 * more than the rest together. So it is read without one, and once more, behind a fence, after
 * IDLE_SPINS fruitless polls: a target that went to sleep between our two looks gets its kick
 * late by some hundred nanoseconds instead of never.
 *
 * With --wait we sleep on the call eventfds whenever nothing is ready, as a guest does: for a
 * target that sleeps too and shares our core.
 *
 * A driver writes its descriptors anew for each request, which we do only with --rewrite: then the
 * target finds their cache lines on our core, as it would on a guest's.
 *
 * One time stamp is taken for each batch: a latency ends when we see the completion and begins
 * when we publish. Data with --verify is a function of its block number alone, so overlapping
 * writes in flight do no harm and a later run can check what an earlier one wrote.
 */
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/virtio_blk.h>

#include "../frontend/frontend.h"
#include "hist.h"
#include "load.h"
#include "misc.h"
#include "packed.h"
#include "usage.h"

#define IDLE_SPINS 64u
#define MAX_BATCH 32u
#define STALL_NS UINT64_C(5000000000)

volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	(void)sig;
	interrupted = 1;
}

/* ---- data ---- */

static inline uint64_t word_of(uint64_t block, uint64_t i)
{
	return (block + 1) * UINT64_C(0x9e3779b97f4a7c15) + i;
}

static void fill(const struct bench *b, struct slot *s)
{
	for (uint64_t i = 0; i < b->bs / 8; i++) {
		uint64_t w = word_of(s->block, i);

		memcpy(s->data + i * 8, &w, 8);
	}
}

static void check(struct bench *b, const struct slot *s)
{
	uint64_t got = 0;

	if (b->written && !(b->written[s->block / 8] & (1u << (s->block % 8))))
		return;
	for (uint64_t i = 0; i < b->bs / 8; i++) {
		memcpy(&got, s->data + i * 8, 8);
		if (got == word_of(s->block, i))
			continue;
		if (b->verify_errors++ == 0)
			fprintf(stderr, "bench: verify: block %llu differs at byte %llu\n",
				(unsigned long long)s->block, (unsigned long long)i * 8);
		return;
	}
}

/* ---- the hot loop ---- */

static inline void prepare(struct bench *b, struct bench_queue *q, struct slot *s, uint64_t now)
{
	if (b->random)
		s->block = (uint64_t)(((unsigned __int128)next_random(b) * b->blocks) >> 64);
	else
		s->block = b->cursor = b->cursor + 1 < b->blocks ? b->cursor + 1 : 0;
	if (b->write_pct != 0 && b->write_pct != 100) {
		bool write = (uint32_t)((next_random(b) >> 32) * 100 >> 32) < b->write_pct;

		if (write != s->write) {
			s->write = write;
			*s->data_flags ^= VRING_DESC_F_WRITE;
			s->line->hdr.type = write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
		}
	}
	if (b->verify) {
		if (s->write)
			fill(b, s);
		else
			memset(s->data, 0, b->bs);
	}
	s->line->hdr.sector = s->block * b->block_sectors;
	s->line->status = 0xff;
	s->began = now;
	if (s->to)
		memcpy(s->to, s->copy, sizeof(s->copy));
	if (s->head_to)
		*s->head_to = s->head_copy;
	if (b->packed) {
		packed_put(q, s);
	} else if (q->shadow[q->avail_idx & q->mask] != s->head) {
		q->shadow[q->avail_idx & q->mask] = s->head;
		q->vq->avail->ring[q->avail_idx & q->mask] = s->head;
	}
	q->avail_idx++;
	q->in_flight++;
	b->issued++;
}

static void look(struct bench *b, struct bench_queue *q)
{
	struct fe_vq *vq = q->vq;
	bool wanted;

	if (b->packed)
		wanted = packed_wants_kick(q);
	else if (vq->event_idx)
		wanted = vring_need_event(fe_vq_avail_event(vq), q->published, q->kicked);
	else
		wanted = !(fe_vq_used_flags(vq) & VRING_USED_F_NO_NOTIFY);
	if (wanted) {
		fe_kick(vq, true);
		b->kicks++;
		q->look_again = false;
		q->kicked = q->published;
		q->added = 0;
	}
}

static inline void publish(struct bench *b, struct bench_queue *q)
{
	if (q->published == q->avail_idx)
		return;
	q->published = q->avail_idx;
	if (b->packed)
		packed_publish(q);
	else
		__atomic_store_n(&q->vq->avail->idx, q->published, __ATOMIC_RELEASE);
	q->look_again = true;
	q->idle = 0;
	look(b, q);
}

/* A second look, behind a fence: see the head of this file. */
static void look_slow(struct bench *b, struct bench_queue *q)
{
	fe_fence();
	look(b, q);
	q->look_again = false;
	q->kicked = q->published;
	q->added = 0;
}

static void count_slow(struct bench *b, struct slot *s)
{
	if (s->line->status != VIRTIO_BLK_S_OK) {
		if (b->errors++ == 0)
			fprintf(stderr, "bench: status %u for block %llu\n", s->line->status,
				(unsigned long long)s->block);
		return;
	}
	if (!s->write)
		check(b, s);
	else if (b->written)
		b->written[s->block / 8] |= (uint8_t)(1u << (s->block % 8));
}

static inline void account(struct bench *b, struct slot *s, uint64_t now)
{
	if (__builtin_expect(s->line->status != VIRTIO_BLK_S_OK || b->verify, 0))
		count_slow(b, s);
	hist_add(b->hist, now - s->began);
	b->ios++;
	b->read_ios += !s->write;
}

static void idle(struct bench *b, struct bench_queue *q)
{
	if (q->look_again && ++q->idle == IDLE_SPINS)
		look_slow(b, q);
}

static void poll_packed(struct bench *b, struct bench_queue *q)
{
	uint64_t now;

	if (!packed_ready(q)) {
		idle(b, q);
		return;
	}
	now = ticks();
	/* Not for ever: other queues and the clock want to be looked at as well. */
	for (uint32_t i = 0; i < b->qd && packed_ready(q); i++) {
		struct slot *s = packed_take(q, b->qd);

		if (!s || q->in_flight == 0) {
			fprintf(stderr, "bench: a used descriptor that was never ours\n");
			b->broken = true;
			return;
		}
		q->in_flight--;
		account(b, s, now);
		if (!b->stop)
			prepare(b, q, s, now);
		if ((uint16_t)(q->avail_idx - q->published) >= b->batch)
			publish(b, q);
	}
	publish(b, q);
}

static void poll_queue(struct bench *b, struct bench_queue *q)
{
	const struct vring_used *used = q->vq->used;
	uint16_t ready = (uint16_t)(__atomic_load_n(&used->idx, __ATOMIC_ACQUIRE) - q->last_used);
	uint64_t now;

	if (ready == 0) {
		idle(b, q);
		return;
	}
	if (ready > q->in_flight) {
		fprintf(stderr, "bench: the target's used index is ahead of us\n");
		b->broken = true;
		return;
	}
	now = ticks();
	for (uint16_t i = 0; i < ready; i++) {
		uint32_t id = used->ring[q->last_used & q->mask].id;
		struct slot *s;

		if (id > q->mask || q->slot_of[id] >= b->qd) {
			fprintf(stderr, "bench: used id %u was never ours\n", id);
			b->broken = true;
			return;
		}
		s = &q->slots[q->slot_of[id]];
		if (i + 4 < ready) {
			uint32_t ahead = used->ring[(q->last_used + 4) & q->mask].id & q->mask;

			if (q->slot_of[ahead] < b->qd)
				__builtin_prefetch(q->slots[q->slot_of[ahead]].line, 1);
		}
		q->last_used++;
		q->in_flight--;
		account(b, s, now);
		if (!b->stop)
			prepare(b, q, s, now);
		if ((uint16_t)(q->avail_idx - q->published) >= b->batch)
			publish(b, q);
	}
	publish(b, q);
	/* No calls: with the event index, keep used_event behind and out of reach. */
	if (q->vq->event_idx && (uint16_t)(q->last_used - q->event_set) > 16384) {
		q->event_set = q->last_used;
		fe_vq_set_used_event(q->vq, (uint16_t)(q->last_used - 1));
	}
}

/* Ask for a call after `count` completions, or with 0 for none. Only the event index of split
 * rings counts; all else calls after the first. */
static void want_calls(struct bench_queue *q, uint16_t count)
{
	bool on = count > 0;

	if (q->vq->packed)
		packed_want_calls(q, on);
	else if (q->vq->event_idx)
		fe_vq_set_used_event(q->vq, (uint16_t)(q->last_used + count - 1));
	else
		fe_vq_set_avail_flags(q->vq, on ? 0 : VRING_AVAIL_F_NO_INTERRUPT);
}

/* Until the target calls or 100 ms have passed, unless something is ready by now. */
static void wait_for_call(struct bench *b)
{
	struct pollfd fds[FE_MAX_QUEUES];
	bool ready = false;
	uint64_t calls;

	for (uint32_t i = 0; i < b->queues; i++) {
		struct bench_queue *q = &b->q[i];
		uint16_t count = (uint16_t)(b->calls < q->in_flight ? b->calls : q->in_flight);

		fds[i] = (struct pollfd){ .fd = q->vq->call_fd, .events = POLLIN };
		if (count == 0)
			continue;
		want_calls(q, count);
		/* Either way a fence between asking for calls and looking for completions. */
		if (q->look_again)
			look_slow(b, q);
		else
			fe_fence();
		ready |= b->packed ? packed_ready(q) :
			 (uint16_t)(__atomic_load_n(&q->vq->used->idx, __ATOMIC_ACQUIRE) -
				    q->last_used) >= count;
	}
	if (!ready)
		poll(fds, b->queues, 100);
	for (uint32_t i = 0; i < b->queues; i++) {
		if (!ready && (fds[i].revents & POLLIN) &&
		    read(fds[i].fd, &calls, sizeof(calls)) < 0 && errno != EAGAIN)
			b->broken = true;
		want_calls(&b->q[i], 0);
	}
}

static uint32_t in_flight(const struct bench *b)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < b->queues; i++)
		n += b->q[i].in_flight;
	return n;
}

/* The clock stops: what ends later is only drained. */
static double stop_clock(struct bench *b, uint64_t ns)
{
	b->timed_ios = b->ios;
	if (b->beside)
		b->beside->timed_ios = b->beside->ios;
	b->target_cpu_s = target_cpu(b) - b->target_cpu_s;
	return (double)ns / 1e9;
}

static void begin(struct bench *b, uint64_t max_ios)
{
	b->stop = false;
	b->target_cpu_s = target_cpu(b);
	for (uint32_t i = 0; i < b->queues; i++) {
		for (uint32_t s = 0; s < b->qd && b->issued < max_ios; s++)
			prepare(b, &b->q[i], &b->q[i].slots[s], ticks());
		publish(b, &b->q[i]);
	}
}

static inline void poll_all(struct bench *b)
{
	for (uint32_t i = 0; i < b->queues; i++)
		(b->packed ? poll_packed : poll_queue)(b, &b->q[i]);
}

/* Wait for what is in flight. */
static void finish(struct bench *b)
{
	uint64_t start = fe_now_ns();

	b->stop = true;
	while (!b->broken && in_flight(b) > 0) {
		poll_all(b);
		b->broken |= fe_now_ns() - start > STALL_NS;
	}
}

/* Until `ms` have passed or max_ios were done; then wait for what is in flight. */
static double run(struct bench *b, uint64_t ms, uint64_t max_ios)
{
	uint64_t start = fe_now_ns(), start_ticks = ticks(), seen = b->ios, seen_at = start;
	double elapsed = 0;

	begin(b, max_ios);
	while (!b->broken && in_flight(b) > 0) {
		uint64_t now;

		for (int n = 0; n < (b->wait ? 1 : 256) && !b->broken; n++) {
			poll_all(b);
			if (b->beside)
				poll_all(b->beside);
			b->stop |= b->issued + b->qd >= max_ios;
		}
		if (b->wait && !b->broken && in_flight(b) > 0)
			wait_for_call(b);
		now = fe_now_ns();
		if (now - start >= ms * 1000000u || interrupted) {
			if (elapsed == 0)
				elapsed = stop_clock(b, now - start);
			b->stop = true;
		}
		if (b->ios != seen) {
			seen = b->ios;
			seen_at = now;
		} else if (now - seen_at > STALL_NS) {
			fprintf(stderr, "bench: no completion for 5 s, %u in flight\n",
				in_flight(b));
			b->broken = true;
		}
	}
	if (elapsed == 0)
		elapsed = stop_clock(b, fe_now_ns() - start);
	b->ns_per_tick = (double)(fe_now_ns() - start) / (double)(ticks() - start_ticks);
	return elapsed;
}

/* Write every block once, in order, with its pattern; then forget the figures. */
static void prefill(struct bench *b)
{
	uint32_t pct = b->write_pct;
	bool random = b->random, verify = b->verify;

	b->verify = true;
	b->random = false;
	b->write_pct = 100;
	b->cursor = b->blocks - 1;
	bench_set_slots(b, true);
	/* run() stops issuing up to a queue depth early: go a little over instead of under. */
	run(b, 600000, b->blocks + 2 * (uint64_t)b->qd * b->queues);
	b->verify = verify;
	b->random = random;
	b->write_pct = pct;
	if (pct == 0)
		bench_set_slots(b, false);
	b->ios = b->read_ios = b->issued = b->kicks = 0;
	memset(b->hist, 0, sizeof(*b->hist));
}

/* ---- the command line ---- */

static int set_mode(struct bench *b, const char *mode)
{
	const char *colon = strchr(mode, ':');
	size_t len = colon ? (size_t)(colon - mode) : strlen(mode);
	const char *rest = mode;

	b->random = strncmp(mode, "rand", 4) == 0;
	if (b->random) {
		rest += 4;
		len -= 4;
	}
	if (len == 4 && strncmp(rest, "read", len) == 0)
		b->write_pct = 0;
	else if (len == 5 && strncmp(rest, "write", len) == 0)
		b->write_pct = 100;
	else if (len == 2 && strncmp(rest, "rw", len) == 0)
		b->write_pct = colon ? (uint32_t)number(colon + 1) : 50;
	else
		return -EINVAL;
	return b->write_pct <= 100 ? 0 : -EINVAL;
}

enum { O_SOCKET = 1, O_QD, O_BS, O_QUEUES, O_RW, O_RUNTIME, O_IOS, O_SIZE, O_CPU, O_MEM,
       O_INDIRECT, O_EVENT, O_VERIFY, O_PREFILL, O_LIBBLKIO, O_SEED, O_JSON, O_MEMCPY, O_WAIT,
       O_PACKED, O_NO_INFLIGHT, O_READ_PCT, O_REWRITE, O_CALLS, O_GAPS, O_PREFETCH, O_HISTOGRAM,
       O_PING, O_BESIDE, O_HELP };

static const struct option long_options[] = {
	{ "socket", 1, NULL, O_SOCKET }, { "qd", 1, NULL, O_QD }, { "bs", 1, NULL, O_BS },
	{ "queues", 1, NULL, O_QUEUES }, { "rw", 1, NULL, O_RW },
	{ "runtime", 1, NULL, O_RUNTIME }, { "ios", 1, NULL, O_IOS },
	{ "size", 1, NULL, O_SIZE }, { "cpu", 1, NULL, O_CPU }, { "mem", 1, NULL, O_MEM },
	{ "indirect", 0, NULL, O_INDIRECT }, { "event-idx", 0, NULL, O_EVENT },
	{ "verify", 0, NULL, O_VERIFY }, { "prefill", 0, NULL, O_PREFILL },
	{ "libblkio", 0, NULL, O_LIBBLKIO }, { "seed", 1, NULL, O_SEED },
	{ "json", 0, NULL, O_JSON }, { "memcpy", 0, NULL, O_MEMCPY },
	{ "packed", 0, NULL, O_PACKED }, { "no-inflight", 0, NULL, O_NO_INFLIGHT },
	{ "wait", 0, NULL, O_WAIT }, { "read-pct", 1, NULL, O_READ_PCT },
	{ "rewrite", 0, NULL, O_REWRITE }, { "calls", 1, NULL, O_CALLS },
	{ "gaps", 0, NULL, O_GAPS },
	{ "prefetch", 0, NULL, O_PREFETCH }, { "histogram", 0, NULL, O_HISTOGRAM },
	{ "ping", 1, NULL, O_PING }, { "beside", 1, NULL, O_BESIDE },
	{ "help", 0, NULL, O_HELP },
	{ NULL, 0, NULL, 0 },
};

static void set_option(struct bench *b, int opt, const char *arg, bool *memcpy_only)
{
	switch (opt) {
	case O_SOCKET: b->socket = arg; break;
	case O_QD: b->qd = (uint32_t)number(arg); break;
	case O_BS: b->bs = (uint32_t)number(arg); break;
	case O_QUEUES: b->queues = (uint32_t)number(arg); break;
	case O_RUNTIME: b->runtime_ms = (uint32_t)(strtod(arg, NULL) * 1000); break;
	case O_IOS: b->max_ios = number(arg); break;
	case O_SIZE: b->size = number(arg); break;
	case O_CPU: b->cpu = (int)number(arg); break;
	case O_MEM: b->hugetlb = strcmp(arg, "hugetlb") == 0; break;
	case O_INDIRECT: b->indirect = true; break;
	case O_EVENT: b->event_idx = true; break;
	case O_VERIFY: b->verify = true; break;
	case O_PREFILL: b->prefill = true; break;
	case O_LIBBLKIO: b->libblkio = true; break;
	case O_SEED: b->seed = (uint32_t)number(arg); break;
	case O_JSON: b->json = true; break;
	case O_MEMCPY: *memcpy_only = true; break;
	case O_GAPS: b->gaps = true; break;
	case O_WAIT: b->wait = true; break;
	case O_PACKED: b->packed = true; break;
	case O_NO_INFLIGHT: b->no_inflight = true; break;
	case O_READ_PCT: b->read_pct = (uint32_t)number(arg); break;
	case O_REWRITE: b->rewrite = true; break;
	case O_CALLS: b->calls = (uint32_t)number(arg); break;
	case O_PING: b->ping_cpu = (int)number(arg); break;
	case O_PREFETCH: b->prefetch = true; break;
	case O_HISTOGRAM: b->json = b->histogram = true; break;
	case O_BESIDE: b->beside_arg = arg; break;
	case O_RW:
		if (set_mode(b, arg) == 0)
			break;
		fprintf(stderr, "bench: unknown --rw %s\n", arg);
		exit(2);
	case O_HELP:
		fputs(usage, stdout);
		exit(0);
	default:
		fputs(usage, stderr);
		exit(2);
	}
}

static void parse(struct bench *b, int argc, char **argv, bool *memcpy_only)
{
	int opt;

	*b = (struct bench){ .qd = 1, .bs = 4096, .queues = 1, .runtime_ms = 2000, .cpu = -1,
			     .ping_cpu = -1, .calls = 1, .read_pct = UINT32_MAX, .random = true,
			     .max_ios = UINT64_MAX };
	while ((opt = getopt_long(argc, argv, "", long_options, NULL)) != -1)
		set_option(b, opt, optarg, memcpy_only);
	if (b->read_pct != UINT32_MAX)
		b->write_pct = 100 - b->read_pct;
	if ((!b->socket && !*memcpy_only && !b->gaps && b->ping_cpu < 0) || optind != argc ||
	    b->qd == 0 || b->qd > 32768 || b->queues == 0 || b->queues > FE_MAX_QUEUES ||
	    b->bs == 0 || b->bs % 512 != 0 || b->write_pct > 100 || b->calls == 0) {
		fputs(usage, stderr);
		exit(2);
	}
	/* A quarter of the depth keeps the target busy while we prepare the rest: at depth 32
	 * that gave a target without work of its own 1.35x of publishing all at once. */
	b->batch = b->qd / 4 < 1 ? 1 : b->qd / 4 > MAX_BATCH ? MAX_BATCH : b->qd / 4;
	b->rng = (b->seed + UINT64_C(1)) * UINT64_C(0x2545f4914f6cdd1d);
}

/* The second disk of --beside SOCKET,QD,BS: randomly read, without a clock of its own. */
static int start_beside(struct bench *b, struct bench *other)
{
	char *text = strdup(b->beside_arg), *qd = text ? strchr(text, ',') : NULL;
	char *bs = qd ? strchr(qd + 1, ',') : NULL;
	int rc;

	if (!bs) {
		fprintf(stderr, "bench: --beside wants SOCKET,QD,BS\n");
		free(text);
		return -EINVAL;
	}
	*qd++ = *bs++ = '\0';
	*other = (struct bench){ .socket = text, .qd = (uint32_t)number(qd), .queues = 1,
				 .bs = (uint32_t)number(bs), .random = true, .rng = b->rng + 1 };
	other->batch = other->qd / 4 < 1 ? 1 : other->qd / 4 > MAX_BATCH ? MAX_BATCH : other->qd / 4;
	rc = bench_connect(other);
	free(text);
	if (rc < 0) {
		other->broken = true;
		bench_release(other);
		return rc;
	}
	b->beside = other;
	begin(other, UINT64_MAX);
	return 0;
}

int main(int argc, char **argv)
{
	bool memcpy_only = false;
	struct bench b, other;
	double s;

	parse(&b, argc, argv, &memcpy_only);
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	if (b.cpu >= 0) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(b.cpu, &set);
		if (sched_setaffinity(0, sizeof(set), &set) < 0)
			fprintf(stderr, "bench: cannot pin to CPU %d: %s\n", b.cpu,
				strerror(errno));
	}
	if (b.ping_cpu >= 0)
		return ping_cores(&b) < 0;
	if (b.gaps) {
		watch_gaps(&b);
		return 0;
	}
	if (memcpy_only)
		return memcpy_limit(&b) < 0;
	if (bench_connect(&b) < 0) {
		b.broken = true;
		bench_release(&b);
		return 1;
	}
	if (b.prefill)
		prefill(&b);
	if (b.beside_arg && start_beside(&b, &other) < 0) {
		bench_release(&b);
		return 1;
	}
	s = run(&b, b.runtime_ms, b.max_ios);
	if (b.beside)
		finish(b.beside);
	print_result(&b, s);
	if (b.beside)
		bench_release(b.beside);
	bench_release(&b);
	return b.broken || b.errors > 0 || b.verify_errors > 0;
}
