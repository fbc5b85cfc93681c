/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How far two cores are from each other: the time one cache line takes to another core and back.
 * A request of depth 1 on a target that does nothing costs two or three such journeys, so figures
 * of machines (or of hours, where a hypervisor moves the cores about) can only be compared with
 * this beside them.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

#define WINDOWS 51
#define TRIPS 1000u

struct ping {
	_Alignas(64) _Atomic uint32_t count;	/* odd: the other side's turn */
	_Alignas(64) int cpu;
};

static int pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return sched_setaffinity(0, sizeof(set), &set);
}

static void *answer(void *arg)
{
	struct ping *p = arg;

	pin(p->cpu);
	for (uint32_t i = 0; i < WINDOWS * TRIPS; i++) {
		while (atomic_load_explicit(&p->count, memory_order_acquire) != 2 * i + 1)
			;
		atomic_store_explicit(&p->count, 2 * i + 2, memory_order_release);
	}
	return NULL;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int ping_cores(const struct bench *b)
{
	struct ping p = { .cpu = b->ping_cpu };
	double ns[WINDOWS];
	pthread_t other;

	if (b->cpu < 0 || b->cpu == b->ping_cpu) {
		fprintf(stderr, "bench: --ping needs --cpu, another one\n");
		return -1;
	}
	if (pthread_create(&other, NULL, answer, &p) != 0)
		return -1;
	for (uint32_t i = 0; i < WINDOWS * TRIPS; i++) {
		uint64_t start = i % TRIPS ? 0 : fe_now_ns();

		if (start)
			ns[i / TRIPS] = -(double)start;
		atomic_store_explicit(&p.count, 2 * i + 1, memory_order_release);
		while (atomic_load_explicit(&p.count, memory_order_acquire) != 2 * i + 2)
			;
		if (i % TRIPS == TRIPS - 1)
			ns[i / TRIPS] = (ns[i / TRIPS] + (double)fe_now_ns()) / TRIPS;
	}
	pthread_join(other, NULL);
	/* The median: a window in which one side lost its core says nothing. */
	qsort(ns, WINDOWS, sizeof(ns[0]), compare);
	printf("{\"round_trip_ns\": %.1f}\n", ns[WINDOWS / 2]);
	return 0;
}
