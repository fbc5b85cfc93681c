/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Private to the RBD backend: bdev_rbd.c (disks), bdev_rbd_image.c (calls that
 * block: open, close, resize), bdev_rbd_cluster.c (connections) and
 * bdev_rbd_name.c (QEMU's image names).
 */
#ifndef SPINDLE_BDEV_RBD_H
#define SPINDLE_BDEV_RBD_H

#include "bdev/bdev_backend.h"
#include "bdev/bdev_rbd_lib.h"
#include "reactor/worker.h"

/* ------- connections ------- */

/*
 * One client of a Ceph cluster. Shared by images whose access is equal, and by
 * several of them while the pool of its cluster is full. Owned by control; the
 * handle is used from any thread once it is connected.
 */
struct rbd_conn {
	struct list node;		/* in its cluster */
	struct rbd_cluster *cluster;
	rados_t rados;
	unsigned int images;		/* that use or wait for it */
	bool connected;
	bool dead;			/* fenced or failed: no new images */
	int status;
	char reason[BDEV_REASON_MAX];
	char hosts[128];		/* the monitors; written before has_hosts */
	_Atomic bool has_hosts;
	struct list waiters;		/* struct rbd_wait.node */
	struct job job;
};

/* Waiting for a connection: done once it is connected or has failed. */
struct rbd_wait {
	struct list node;
	struct rbd_conn *conn;
	void (*done)(struct rbd_wait *w);
};

/*
 * A connection for one more image with this access (or of a registered cluster).
 * w->done is called later, never from inside, with w->conn set; its status and
 * reason say how it went. -ENOENT: no such registered cluster; -ENOMEM.
 */
int rbd_conn_get(const struct bdev_rbd_access *access, const char *cluster,
		 struct rbd_wait *w) CONTROL_ONLY;
/* Not interested any more; the conn still has to be put. */
void rbd_conn_cancel(struct rbd_wait *w) CONTROL_ONLY;
void rbd_conn_put(struct rbd_conn *conn) CONTROL_ONLY;
/* An image found this client fenced: new images get another one. */
void rbd_conn_died(struct rbd_conn *conn) CONTROL_ONLY;

/* Deep copies; -ENOMEM leaves nothing. free takes what a failed copy left. */
int rbd_access_copy(const struct bdev_rbd_access *from, struct bdev_rbd_access *to);
void rbd_access_free(struct bdev_rbd_access *access);
/* One more option, copied; -ENOMEM leaves what rbd_access_free() takes. */
int rbd_access_add_option(struct bdev_rbd_access *a, const char *key, const char *value);

/* ------- disks ------- */

struct rbd_bdev {
	struct bdev bdev;
	struct bdev_rbd_opts opts;	/* the strings are ours */
	/* Opening and closing. */
	struct rbd_wait wait;
	struct rbd_conn *conn;
	struct job job;
	struct control_timer timeout;
	struct bdev_result *res;	/* NULL: answered */
	int status;
	char reason[BDEV_REASON_MAX];
	rados_ioctx_t ioctx;
	rbd_image_t image;
	uint64_t watch;
	bool watching;
	/* Size: read by a worker, told by the cluster's notifications. */
	struct job size_job;
	struct msg notified;
	_Atomic bool notify_posted;
	bool size_running, size_again;
	uint64_t new_size;
	struct bdev_result *resize_res, *next_res;	/* of the job under way; of the next */
	uint64_t resize_to, next_to;
	bool live;			/* registered: notifications count */
	bool closing;
	/* What librbd caches for reading; see rbd_channel_unprepare(). */
	bool cached;
	unsigned int users;		/* channels */
	struct job forget_job;
	bool forgetting;
	/* Health. */
	struct list all;		/* every open rbd bdev */
	bool stalled;
	_Atomic bool fenced;
	bool locking;			/* the image has an exclusive lock, which we want to write */
	_Atomic bool had_lock;		/* a change has ended: the lock was ours */
	_Atomic bool throttled;		/* by rbd_qos_*: see rbd_keeps_order() */
	bool fence_noted;
};

static inline struct rbd_bdev *rbd_of(struct bdev *bdev)
{
	return container_of(bdev, struct rbd_bdev, bdev);
}

/* On a worker; on failure rb->status and rb->reason. */
void rbd_image_open(struct rbd_bdev *rb);
void rbd_image_close(struct rbd_bdev *rb);
/* What is cached is written back, and forgotten. */
void rbd_image_forget(struct rbd_bdev *rb);
/* rb->resize_to (0: only look); the size it has then in rb->new_size. And rb->throttled. */
void rbd_image_look(struct rbd_bdev *rb);
int rbd_fail(struct rbd_bdev *rb, int status, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* librbd's update notification: any thread. */
void rbd_image_changed(void *arg);

#endif
