/* SPDX-License-Identifier: BSD-3-Clause */
/* The load generator's result, as text or as one JSON object. */
#include <stdio.h>

#include "hist.h"
#include "load.h"

#define NUM_PCT 5

static const double percentile[NUM_PCT] = { 50, 90, 99, 99.9, 99.99 };

static double us(const struct bench *b, double v)
{
	return v * b->ns_per_tick / 1000;
}

static void print_text(const struct bench *b, double s)
{
	double iops = s > 0 ? (double)b->timed_ios / s : 0;
	double busy = s > 0 ? b->target_cpu_s / s : 0;

	printf("%.0f IOPS, %.1f MB/s, %llu I/Os in %.2f s, %llu errors, %llu kicks\n", iops,
	       iops * b->bs / 1e6, (unsigned long long)b->ios, s, (unsigned long long)b->errors,
	       (unsigned long long)b->kicks);
	if (busy > 0)
		printf("target (pid %d): %.2f cores' CPU time, %.0f IOPS a core\n",
		       (int)b->target_pid, busy, iops / busy);
	if (b->hist->samples == 0)
		return;
	printf("latency us: mean %.2f", us(b, hist_mean(b->hist)));
	for (int i = 0; i < NUM_PCT; i++)
		printf(", p%g %.2f", percentile[i], us(b, hist_percentile(b->hist, percentile[i])));
	printf(", max %.2f\n", us(b, (double)b->hist->max));
	if (b->verify)
		printf("verify: %llu blocks differ\n", (unsigned long long)b->verify_errors);
}

static void print_histogram(const struct bench *b)
{
	const char *comma = "";

	printf(", \"histogram_us\": [");
	for (unsigned int i = 0; i < HIST_BUCKETS; i++) {
		if (b->hist->count[i] == 0)
			continue;
		printf("%s[%.4g, %llu]", comma, us(b, hist_value(i)),
		       (unsigned long long)b->hist->count[i]);
		comma = ", ";
	}
	printf("]");
}

static void print_json(const struct bench *b, double s)
{
	double iops = s > 0 ? (double)b->timed_ios / s : 0;

	printf("{\"iops\": %.1f, \"bytes_per_s\": %.0f, \"ios\": %llu, \"reads\": %llu, "
	       "\"seconds\": %.4f, \"errors\": %llu, \"verify_errors\": %llu, \"kicks\": %llu, "
	       "\"qd\": %u, \"bs\": %u, \"queues\": %u, \"target_pid\": %d, "
	       "\"target_cpu_s\": %.6f, \"beside_iops\": %.1f, \"lat_us\": {\"mean\": %.3f",
	       iops, iops * b->bs, (unsigned long long)b->ios, (unsigned long long)b->read_ios, s,
	       (unsigned long long)b->errors, (unsigned long long)b->verify_errors,
	       (unsigned long long)b->kicks, b->qd, b->bs, b->queues, (int)b->target_pid,
	       b->target_cpu_s, b->beside && s > 0 ? (double)b->beside->timed_ios / s : 0,
	       us(b, hist_mean(b->hist)));
	for (int i = 0; i < NUM_PCT; i++)
		printf(", \"p%g\": %.3f", percentile[i],
		       us(b, hist_percentile(b->hist, percentile[i])));
	printf(", \"max\": %.3f}", us(b, (double)b->hist->max));
	if (b->histogram)
		print_histogram(b);
	printf("}\n");
}

void print_result(const struct bench *b, double s)
{
	b->json ? print_json(b, s) : print_text(b, s);
}
