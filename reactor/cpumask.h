/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sets of processor cores, as operators write them: "0x3", "3" (bare hex) or
 * "[0,2-3]". Plain values without an owner; any thread.
 */
#ifndef SPINDLE_CPUMASK_H
#define SPINDLE_CPUMASK_H

#include "reactor/base.h"

#define CPUMASK_MAX 1024
/* "0x", a hex digit for each four cores, NUL. */
#define CPUMASK_STR (2 + CPUMASK_MAX / 4 + 1)

struct cpumask {
	uint64_t bits[CPUMASK_MAX / 64];
};

/*
 * Parse text into *mask. 0, or -EINVAL for anything that is not a mask (an
 * empty text too) or names a core of CPUMASK_MAX or above; *mask is then
 * untouched. An empty set ("0x0", "[]") parses: the caller judges it.
 */
int cpumask_parse(const char *text, struct cpumask *mask);
/* "0x3" into buf; returns buf. */
const char *cpumask_format(const struct cpumask *mask, char buf[CPUMASK_STR]);

void cpumask_set(struct cpumask *mask, unsigned int cpu);
bool cpumask_has(const struct cpumask *mask, unsigned int cpu);
unsigned int cpumask_count(const struct cpumask *mask);
bool cpumask_empty(const struct cpumask *mask);
bool cpumask_subset(const struct cpumask *mask, const struct cpumask *of);
/* The first core at or after `from`, or -1. */
int cpumask_next(const struct cpumask *mask, unsigned int from);

#endif
