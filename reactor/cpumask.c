/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Core masks. Hexadecimal text is read from its last digit, four cores a
 * digit; a list is numbers and ranges between brackets. Parsing works on a
 * local mask, so that a bad text leaves the caller's untouched.
 */
#include "reactor/cpumask.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

void cpumask_set(struct cpumask *mask, unsigned int cpu)
{
	mask->bits[cpu / 64] |= 1ull << (cpu % 64);
}

bool cpumask_has(const struct cpumask *mask, unsigned int cpu)
{
	return cpu < CPUMASK_MAX && (mask->bits[cpu / 64] >> (cpu % 64) & 1);
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

static int parse_hex(const char *text, struct cpumask *mask)
{
	size_t len;

	if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X'))
		text += 2;
	len = strlen(text);
	if (len == 0)
		return -EINVAL;
	for (size_t i = 0; i < len; i++) {
		int digit = hex_digit(text[len - 1 - i]);

		if (digit < 0)
			return -EINVAL;
		if (digit == 0)
			continue;
		if (i >= CPUMASK_MAX / 4)
			return -EINVAL;
		mask->bits[i / 16] |= (uint64_t)digit << (i % 16 * 4);
	}
	return 0;
}

/* One decimal core number; the text after it, or NULL. */
static const char *parse_cpu(const char *text, unsigned int *cpu)
{
	unsigned int value = 0;

	while (*text == ' ')
		text++;
	if (!isdigit((unsigned char)*text))
		return NULL;
	for (; isdigit((unsigned char)*text); text++) {
		value = value * 10 + (unsigned int)(*text - '0');
		if (value >= CPUMASK_MAX)
			return NULL;
	}
	while (*text == ' ')
		text++;
	*cpu = value;
	return text;
}

static int parse_list(const char *text, struct cpumask *mask)
{
	unsigned int first, last;

	text++;
	while (*text == ' ')
		text++;
	if (!strcmp(text, "]"))
		return 0;
	for (;;) {
		text = parse_cpu(text, &first);
		if (!text)
			return -EINVAL;
		last = first;
		if (*text == '-') {
			text = parse_cpu(text + 1, &last);
			if (!text || last < first)
				return -EINVAL;
		}
		for (unsigned int cpu = first; cpu <= last; cpu++)
			cpumask_set(mask, cpu);
		if (!strcmp(text, "]"))
			return 0;
		if (*text++ != ',')
			return -EINVAL;
	}
}

int cpumask_parse(const char *text, struct cpumask *mask)
{
	struct cpumask local = { 0 };
	int rc;

	rc = text[0] == '[' ? parse_list(text, &local) : parse_hex(text, &local);
	if (rc == 0)
		*mask = local;
	return rc;
}

const char *cpumask_format(const struct cpumask *mask, char buf[CPUMASK_STR])
{
	int word = ARRAY_SIZE(mask->bits) - 1;
	int len;

	while (word > 0 && mask->bits[word] == 0)
		word--;
	len = snprintf(buf, CPUMASK_STR, "0x%llx", (unsigned long long)mask->bits[word]);
	while (--word >= 0)
		len += snprintf(buf + len, (size_t)(CPUMASK_STR - len), "%016llx",
				(unsigned long long)mask->bits[word]);
	return buf;
}

unsigned int cpumask_count(const struct cpumask *mask)
{
	unsigned int count = 0;

	for (size_t i = 0; i < ARRAY_SIZE(mask->bits); i++)
		count += (unsigned int)__builtin_popcountll(mask->bits[i]);
	return count;
}

bool cpumask_empty(const struct cpumask *mask)
{
	return cpumask_count(mask) == 0;
}

bool cpumask_subset(const struct cpumask *mask, const struct cpumask *of)
{
	for (size_t i = 0; i < ARRAY_SIZE(mask->bits); i++) {
		if (mask->bits[i] & ~of->bits[i])
			return false;
	}
	return true;
}

int cpumask_next(const struct cpumask *mask, unsigned int from)
{
	for (unsigned int cpu = from; cpu < CPUMASK_MAX; cpu++) {
		if (cpumask_has(mask, cpu))
			return (int)cpu;
	}
	return -1;
}
