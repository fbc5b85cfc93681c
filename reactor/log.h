/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The log: one line per event on stderr, with time, level and the function
 * that speaks. A line is formatted on the caller's stack and written by one
 * write(2), so lines of different threads never mix. Any thread may log; no
 * thread logs per I/O.
 */
#ifndef SPINDLE_LOG_H
#define SPINDLE_LOG_H

#include "reactor/base.h"

enum log_level { LOG_ERROR, LOG_WARNING, LOG_NOTICE, LOG_INFO, LOG_DEBUG };

/*
 * What a guest or a client can trigger goes through one of these: at most
 * 20 lines a second, then one line that counts what was left out.
 */
struct log_limit {
	_Atomic uint64_t window;
	_Atomic uint32_t count;
};

/* Events above this level are not produced at all; default LOG_NOTICE. */
void log_set_level(enum log_level level);
enum log_level log_get_level(void);
/* Events above this level are not printed on stderr; default LOG_NOTICE. */
void log_set_print_level(enum log_level level);
enum log_level log_get_print_level(void);

/* "ERROR".."DEBUG" both ways, case ignored; -EINVAL for an unknown name. */
int log_level_parse(const char *name, enum log_level *level);
const char *log_level_name(enum log_level level);

/*
 * Flags switch on DEBUG lines of one component ("vhost", "bdev", "rpc",
 * "reactor", or "all"; "vhost_blk" and the like count as "vhost"). -ENOENT for
 * an unknown flag.
 */
enum log_flag { LOG_F_REACTOR, LOG_F_BDEV, LOG_F_VHOST, LOG_F_RPC, LOG_F_COUNT };
int log_set_flag(const char *name, bool on);
const char *log_flag_name(enum log_flag flag);
bool log_flag_on(enum log_flag flag);

void log_write(enum log_level level, const char *func, const char *fmt, ...) PRINTF_LIKE(3, 4);
bool log_limit_ok(struct log_limit *limit, const char *func);

#define log_at(level, ...)                                              \
	do {                                                            \
		if ((level) <= log_get_level())                         \
			log_write((level), __func__, __VA_ARGS__);      \
	} while (0)
#define log_error(...) log_at(LOG_ERROR, __VA_ARGS__)
#define log_warning(...) log_at(LOG_WARNING, __VA_ARGS__)
#define log_notice(...) log_at(LOG_NOTICE, __VA_ARGS__)
#define log_info(...) log_at(LOG_INFO, __VA_ARGS__)
#define log_debug(flag, ...)                                            \
	do {                                                            \
		if (log_flag_on(flag))                                  \
			log_write(LOG_DEBUG, __func__, __VA_ARGS__);    \
	} while (0)
#define log_limited(level, limit, ...)                                  \
	do {                                                            \
		if (log_limit_ok((limit), __func__))                    \
			log_at(level, __VA_ARGS__);                     \
	} while (0)

#endif
