/* SPDX-License-Identifier: BSD-3-Clause */
/* What engine.c and plan.c share: the engine's options, and what jobs need together. */
#ifndef FIO_PLAN_H
#define FIO_PLAN_H

#include "fio.h"

#include "device.h"

struct options {
	void *pad;		/* offset 0 means "none" to fio */
	unsigned int queues, queue_size, packed, indirect, wait, shared, memory;
};

extern __attribute__((visibility("default"))) struct ioengine_ops ioengine;

/* Called by a job's init(), in its thread or process. -ENOMEM or 0. */
int plan_of(struct thread_data *td, const char *path, struct device_need *need);
/* Bytes for the buffers of all jobs that share this process's memory. */
uint64_t plan_memory(struct thread_data *td);

#endif
