/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The disks of a fio process: connections to vhost-user-blk sockets and the memory shared with
 * them. Knows nothing of fio; engine.c knows nothing of vhost-user.
 *
 * One piece of memory for data serves all jobs of the process and is a region of every
 * connection: fio's buffers lie in it, so no byte is copied on its way. A connection serves one
 * job, or several that are threads: each takes queues of its own.
 *
 * Functions return 0 or -errno, with a sentence about the failure in `why`, and may be called by
 * any thread: they take one lock. Not so the queues: each belongs to who took it.
 */
#ifndef FIO_DEVICE_H
#define FIO_DEVICE_H

#include "../frontend/frontend.h"

#define DEVICE_DATA_GPA (UINT64_C(1) << 32)	/* where the data region is in the "guest" */
#define DEVICE_WHY 256				/* bytes of `why` */
#define DEVICE_SEGS_MAX 1022u			/* a request's segments, in a ring of 1024 */

enum device_memory { DEVICE_MEM_AUTO, DEVICE_MEM_HUGE, DEVICE_MEM_MEMFD };

/* What a socket offers. */
struct device_info {
	uint64_t features;
	uint64_t bytes;
	uint32_t block_size;
	uint32_t size_max;		/* bytes of one segment */
	uint32_t seg_max;		/* segments of one request */
	uint32_t discard_max;		/* sectors of one discard */
	uint32_t max_queues;
};

/* What its jobs need of a connection, all of them together. */
struct device_need {
	unsigned int queues;
	unsigned int depth;		/* requests in flight on one queue, at most */
	unsigned int queue_size;	/* 0: whatever that takes */
	uint64_t max_bs;
	bool packed, indirect, sleep, shared;
	enum device_memory memory;
};

struct device {
	struct device *next;
	struct fe *fe;
	struct device_info info;
	struct device_need need;	/* as it was opened */
	unsigned int users;
	bool *taken;			/* queues */
	bool dead;			/* atomic: no request will be answered any more */
	char path[108];
};

/* Asks the socket once and remembers the answer. */
int device_probe(const char *path, struct device_info *info, char *why);

/* The data memory: the first caller makes it, `bytes` long, and the last put frees it. */
int device_memory_get(uint64_t bytes, enum device_memory kind, char *why);
void device_memory_put(void);
/* A piece on a page of its own; NULL when there is no more. */
void *device_memory_alloc(uint64_t bytes);
/* Gives back the piece that was allocated last; others wait for the last put. */
void device_memory_free(void *piece);

/* The connection to `path`: one that is open already, if shared, or a new one. */
int device_get(const char *path, const struct device_need *need, struct device **out, char *why);
void device_put(struct device *dev);
/* A queue of its own; NULL when all are taken. */
struct fe_vq *device_take_queue(struct device *dev);
void device_give_queue(struct device *dev, struct fe_vq *vq);
/* The guest's address of a byte of the data memory. */
uint64_t device_gpa(const void *at);
/* Marks it dead; true for the first who does. */
bool device_kill(struct device *dev);

static inline bool device_dead(const struct device *dev)
{
	return __atomic_load_n(&dev->dead, __ATOMIC_RELAXED);
}

#endif
