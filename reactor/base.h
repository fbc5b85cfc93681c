/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The words every other file is written in: container_of, lists, checked
 * arithmetic, relaxed counters, the time-stamp counter, and the annotations
 * that say which thread may call a function.
 */
#ifndef SPINDLE_BASE_H
#define SPINDLE_BASE_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define SPINDLE_VERSION_MAJOR 0
#define SPINDLE_VERSION_MINOR 1
#define SPINDLE_VERSION_PATCH 0
#define SPINDLE_VERSION "0.1.0"

#define CACHE_LINE 64
#define CACHE_ALIGNED __attribute__((aligned(CACHE_LINE)))

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Fetch a line that will be written: at once for us alone. */
static inline void prefetch_write(const void *p)
{
#ifdef __x86_64__
	/* The compiler only emits it for CPUs that say so; on others it does nothing. */
	__asm__ volatile("prefetchw %0" : : "m"(*(const char *)p));
#else
	__builtin_prefetch(p, 1);
#endif
}
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define COLD __attribute__((cold, noinline))

#define container_of(ptr, type, member) \
	((type *)(void *)((char *)(ptr) - offsetof(type, member)))

#define MIN(a, b) \
	({ __typeof__(a) a_ = (a); __typeof__(b) b_ = (b); a_ < b_ ? a_ : b_; })
#define MAX(a, b) \
	({ __typeof__(a) a_ = (a); __typeof__(b) b_ = (b); a_ > b_ ? a_ : b_; })

/*
 * Which thread may call. clang checks it at compile time (-Wthread-safety);
 * callbacks, which clang cannot follow through a pointer, assert it in debug
 * builds with reactor_assert() and control_assert(). A function without a word
 * may be called from any thread.
 */
#if defined(__clang__)
#define THREAD_ROLE __attribute__((capability("role")))
#define REQUIRES_ROLE(r) __attribute__((requires_capability(r)))
#define ASSERTS_ROLE(r) __attribute__((assert_capability(r)))
#else
#define THREAD_ROLE
#define REQUIRES_ROLE(r)
#define ASSERTS_ROLE(r)
#endif
struct THREAD_ROLE thread_role {
	char unused;
};
extern struct thread_role role_reactor, role_control;
#define REACTOR_ONLY REQUIRES_ROLE(role_reactor)
#define CONTROL_ONLY REQUIRES_ROLE(role_control)

/* Doubly linked list with a head; an unlinked node points at itself. */
struct list {
	struct list *next, *prev;
};
#define LIST_INIT(l) { &(l), &(l) }

static inline void list_init(struct list *l)
{
	l->next = l->prev = l;
}

static inline bool list_empty(const struct list *l)
{
	return l->next == l;
}

static inline void list_add_tail(struct list *head, struct list *node)
{
	node->prev = head->prev;
	node->next = head;
	head->prev->next = node;
	head->prev = node;
}

static inline void list_add_head(struct list *head, struct list *node)
{
	list_add_tail(head->next, node);
}

static inline void list_del(struct list *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
	list_init(node);
}

#define list_entry(ptr, type, member) container_of(ptr, type, member)
#define list_entry_or_null(ptr, head, type, member) \
	((ptr) == (head) ? NULL : list_entry(ptr, type, member))
#define list_first(head, type, member) list_entry((head)->next, type, member)
#define list_for_each(pos, head, member)                                        \
	for (pos = list_entry((head)->next, __typeof__(*pos), member);          \
	     &pos->member != (head);                                            \
	     pos = list_entry(pos->member.next, __typeof__(*pos), member))
/*
 * For structs aligned to more than their members (CACHE_ALIGNED). The others take the
 * head for a struct around it, at an address where none can be. pos is NULL at the end.
 */
#define list_for_each_aligned(pos, head, member)                                      \
	for (pos = list_entry_or_null((head)->next, head, __typeof__(*pos), member);  \
	     pos;                                                                     \
	     pos = list_entry_or_null(pos->member.next, head, __typeof__(*pos), member))
/* Safe against removal of pos; not against removal of its successor. */
#define list_for_each_safe(pos, tmp, head, member)                              \
	for (pos = list_entry((head)->next, __typeof__(*pos), member),          \
	    tmp = list_entry(pos->member.next, __typeof__(*pos), member);       \
	     &pos->member != (head);                                            \
	     pos = tmp, tmp = list_entry(tmp->member.next, __typeof__(*tmp), member))

/*
 * A counter with one writing thread and any number of readers: the writer
 * pays for a plain add, a reader sees some recent value, never a torn one.
 */
typedef _Atomic uint64_t counter64;

static inline uint64_t counter_read(const counter64 *c)
{
	return atomic_load_explicit(c, memory_order_relaxed);
}

static inline void counter_set(counter64 *c, uint64_t v)
{
	atomic_store_explicit(c, v, memory_order_relaxed);
}

static inline void counter_add(counter64 *c, uint64_t v)
{
	counter_set(c, counter_read(c) + v);
}

/* The time-stamp counter: constant rate on everything we run on. */
static inline uint64_t tsc_now(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
	uint64_t v;
	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(v));
	return v;
#else
#error "no time-stamp counter known for this architecture"
#endif
}

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t clock_ns(void);
/* Ticks of tsc_now() a second; calibrated once at first use. */
uint64_t tsc_hz(void);

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/*
 * Sectors of 512 bytes, as the guest counts, to bytes. False when the result
 * does not fit 64 bits: *bytes is untouched then.
 */
static inline bool sectors_to_bytes(uint64_t sectors, uint64_t *bytes)
{
	if (sectors > UINT64_MAX >> 9)
		return false;
	*bytes = sectors << 9;
	return true;
}

/* Whether [off, off + len) lies inside [0, size), without overflow. */
static inline bool range_ok(uint64_t off, uint64_t len, uint64_t size)
{
	return off <= size && len <= size - off;
}

#endif
