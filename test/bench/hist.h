/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A latency histogram that costs a few instructions a sample: log-linear buckets, 32 in each
 * power of two, so a percentile is right within 3 %. Values are in the caller's unit; nothing
 * here allocates but hist_new.
 */
#ifndef BENCH_HIST_H
#define BENCH_HIST_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define HIST_SUB 5u
#define HIST_BUCKETS ((64u - HIST_SUB + 1) << HIST_SUB)

struct hist {
	uint64_t samples, sum, max;
	uint64_t count[HIST_BUCKETS];
};

static inline unsigned int hist_bucket(uint64_t v)
{
	unsigned int shift;

	if (v < (1u << HIST_SUB))
		return (unsigned int)v;
	shift = 63u - (unsigned int)__builtin_clzll(v) - HIST_SUB;
	return ((shift + 1) << HIST_SUB) + (unsigned int)((v >> shift) & ((1u << HIST_SUB) - 1));
}

static inline void hist_add(struct hist *h, uint64_t v)
{
	h->count[hist_bucket(v)]++;
	h->samples++;
	h->sum += v;
	if (v > h->max)
		h->max = v;
}

/* The middle of a bucket. */
static inline double hist_value(unsigned int i)
{
	unsigned int group = i >> HIST_SUB, sub = i & ((1u << HIST_SUB) - 1);

	if (group == 0)
		return sub;
	return ((double)(1u << HIST_SUB) + sub + 0.5) * (double)(UINT64_C(1) << (group - 1));
}

static inline double hist_percentile(const struct hist *h, double pct)
{
	double want = (double)h->samples * pct / 100, seen = 0;

	for (unsigned int i = 0; i < HIST_BUCKETS; i++) {
		seen += (double)h->count[i];
		if (h->count[i] > 0 && seen >= want)
			return hist_value(i) < (double)h->max ? hist_value(i) : (double)h->max;
	}
	return 0;
}

static inline double hist_mean(const struct hist *h)
{
	return h->samples ? (double)h->sum / (double)h->samples : 0;
}

#endif
