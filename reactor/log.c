/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The log. State is a handful of atomics, so any thread may log while another
 * changes the levels. Lines look like
 *
 *   [2026-11-21 10:02:03.123456] NOTICE  vhost_controller_create: vhost.1: ...
 *
 * A line longer than the buffer is cut, never split. Control characters are
 * replaced, because names in a line may come from clients.
 */
#include "reactor/log.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_LEN 1024
#define LIMIT_BURST 20

static const char *const level_names[] = { "ERROR", "WARNING", "NOTICE", "INFO", "DEBUG" };
static const char *const flag_names[LOG_F_COUNT] = { "reactor", "bdev", "vhost", "rpc" };

static _Atomic int log_level = LOG_NOTICE;
static _Atomic int print_level = LOG_NOTICE;
static _Atomic unsigned int flags;

void log_set_level(enum log_level level)
{
	atomic_store_explicit(&log_level, (int)level, memory_order_relaxed);
}

enum log_level log_get_level(void)
{
	return (enum log_level)atomic_load_explicit(&log_level, memory_order_relaxed);
}

void log_set_print_level(enum log_level level)
{
	atomic_store_explicit(&print_level, (int)level, memory_order_relaxed);
}

enum log_level log_get_print_level(void)
{
	return (enum log_level)atomic_load_explicit(&print_level, memory_order_relaxed);
}

int log_level_parse(const char *name, enum log_level *level)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(level_names); i++) {
		if (!strcasecmp(name, level_names[i])) {
			*level = (enum log_level)i;
			return 0;
		}
	}
	return -EINVAL;
}

const char *log_level_name(enum log_level level)
{
	return level_names[level];
}

int log_set_flag(const char *name, bool on)
{
	unsigned int bits = 0;

	for (unsigned int i = 0; i < LOG_F_COUNT; i++) {
		size_t len = strlen(flag_names[i]);

		/* SPDK has finer ones: vhost_blk and vhost_ring are both ours of vhost. */
		if (!strcasecmp(name, "all") ||
		    (!strncasecmp(name, flag_names[i], len) && (!name[len] || name[len] == '_')))
			bits |= 1u << i;
	}
	if (!bits)
		return -ENOENT;
	if (on)
		atomic_fetch_or(&flags, bits);
	else
		atomic_fetch_and(&flags, ~bits);
	return 0;
}

const char *log_flag_name(enum log_flag flag)
{
	return flag_names[flag];
}

bool log_flag_on(enum log_flag flag)
{
	return atomic_load_explicit(&flags, memory_order_relaxed) & (1u << flag);
}

/*
 * A reader of our stderr that has stopped reading must not stop us: lines are
 * dropped then, and counted.
 */
static void put_line(const char *line, size_t len)
{
	static _Atomic unsigned int dropped;
	struct pollfd out = { .fd = STDERR_FILENO, .events = POLLOUT };
	char note[64];
	unsigned int n;

	if (poll(&out, 1, 0) == 0) {
		atomic_fetch_add(&dropped, 1);
		return;
	}
	n = atomic_exchange(&dropped, 0);
	if (n) {
		int note_len = snprintf(note, sizeof(note), "(%u lines were lost here)\n", n);

		if (write(STDERR_FILENO, note, (size_t)note_len) < 0)
			return;
	}
	/* Nothing sensible can be done when stderr is gone. */
	if (write(STDERR_FILENO, line, len) < 0)
		return;
}

void log_write(enum log_level level, const char *func, const char *fmt, ...)
{
	char line[LINE_MAX_LEN];
	struct timespec ts;
	struct tm tm;
	size_t len;
	va_list ap;
	int n;

	/* A debug flag asks for its lines on stderr whatever the print level. */
	if (level > log_get_print_level() && level != LOG_DEBUG)
		return;

	clock_gettime(CLOCK_REALTIME, &ts);
	localtime_r(&ts.tv_sec, &tm);
	len = strftime(line, sizeof(line), "[%Y-%m-%d %H:%M:%S", &tm);
	n = snprintf(line + len, sizeof(line) - len, ".%06ld] %-7s %s: ", ts.tv_nsec / 1000,
		     level_names[level], func);
	len += (size_t)n;

	va_start(ap, fmt);
	n = vsnprintf(line + len, sizeof(line) - len - 1, fmt, ap);
	va_end(ap);
	if (n > 0)
		len += MIN((size_t)n, sizeof(line) - len - 2);

	for (size_t i = 0; i < len; i++) {
		if ((unsigned char)line[i] < ' ' || line[i] == 127)
			line[i] = '?';
	}
	line[len++] = '\n';
	put_line(line, len);
}

bool log_limit_ok(struct log_limit *limit, const char *func)
{
	struct timespec ts;
	uint64_t second, window;
	uint32_t count;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	second = (uint64_t)ts.tv_sec + 1;
	window = atomic_load(&limit->window);
	if (window != second && atomic_compare_exchange_strong(&limit->window, &window, second)) {
		count = atomic_exchange(&limit->count, 0);
		if (count > LIMIT_BURST)
			log_write(LOG_WARNING, func, "%u more lines like the following were left out",
				  count - LIMIT_BURST);
	}
	return atomic_fetch_add(&limit->count, 1) < LIMIT_BURST;
}
