/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Whether a core is ours while it looks busy: a loop that watches the clock, and how much of the
 * time it did not run, in pauses of a millisecond and more. On a machine with nobody else on the
 * core that is the hypervisor: one that counts its own I/O threads against the guest's share of
 * processor time stops all of the guest's cores once that is used up, and steal time in /proc/stat
 * need not tell.
 */
#include <stdio.h>

#include "load.h"

#define PAUSE_NS UINT64_C(1000000)

void watch_gaps(const struct bench *b)
{
	uint64_t start = fe_now_ns(), end = start + b->runtime_ms * UINT64_C(1000000);
	uint64_t last = start, lost = 0, longest = 0, count = 0;

	while (last < end && !interrupted) {
		uint64_t now = fe_now_ns(), gap = now - last;

		if (gap >= PAUSE_NS) {
			count++;
			lost += gap;
			longest = gap > longest ? gap : longest;
		}
		last = now;
	}
	if (last == start)
		last++;
	printf("{\"seconds\": %.3f, \"lost\": %.4f, \"gaps\": %llu, \"longest_ms\": %.2f}\n",
	       (double)(last - start) / 1e9, (double)lost / (double)(last - start),
	       (unsigned long long)count, (double)longest / 1e6);
}
