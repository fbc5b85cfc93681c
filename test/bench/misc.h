/* SPDX-License-Identifier: BSD-3-Clause */
/* The load generator's small helpers: a clock that costs nothing, and numbers as typed. */
#ifndef BENCH_MISC_H
#define BENCH_MISC_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../frontend/frontend.h"

static inline uint64_t ticks(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#else
	return fe_now_ns();
#endif
}

/* "4k" and the like; anything else ends the program. */
static inline uint64_t number(const char *text)
{
	static const char units[] = "kmg";
	char *end;
	uint64_t v = strtoull(text, &end, 0);
	const char *unit = *end ? strchr(units, *end | 0x20) : NULL;

	if (unit) {
		v <<= 10 * (unit - units + 1);
		end++;
	}
	if (*end != '\0' || end == text) {
		fprintf(stderr, "bench: not a number: %s\n", text);
		exit(2);
	}
	return v;
}

#endif
