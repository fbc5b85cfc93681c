/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * vhost-user-blk controllers, as main.c and rpc/ see them. A controller is a
 * listening socket and a bdev; each front end that connects gets a session with
 * virtqueues of its own, which are spread over the reactors of the controller's
 * cpumask. Everything here runs on the control thread.
 */
#ifndef SPINDLE_VHOST_H
#define SPINDLE_VHOST_H

#include "reactor/base.h"
#include "reactor/cpumask.h"

struct bdev;
struct vhost_controller;

#define VHOST_REASON_MAX 256
#define VHOST_COALESCING_DELAY_MAX_US 1000000u
#define VHOST_COALESCING_IOPS_MIN 100u

/* dir: where the controllers' sockets are made; copied. -errno. */
int vhost_init(const char *dir) CONTROL_ONLY;
/*
 * main() calls vhost_pager() first of all: it does not return in a process that was
 * started to fetch the pages of one guest. vhost_offer_postcopy() once that is so.
 */
void vhost_pager(const char *name);
void vhost_offer_postcopy(void) CONTROL_ONLY;
/* fn is called on control when a guest has changed what belongs to the configuration. */
void vhost_on_change(void (*fn)(void)) CONTROL_ONLY;
/* Delete all controllers, wait for their sessions' I/O, then call done. */
void vhost_fini(void (*done)(void)) CONTROL_ONLY;

struct vhost_controller_opts {
	const char *name;	/* also the socket's name in dir */
	const char *dev_name;	/* bdev; "": none for the time being */
	const char *cpumask;	/* NULL: all reactors */
	const char *transport;	/* NULL or "vhost_user_blk" */
	bool readonly;
	bool packed_ring;	/* offer packed rings */
	bool writethrough;	/* as a guest left it: no volatile writes until one asks */
};

/*
 * Open the bdev, then listen. On failure nothing is left behind and reason says
 * why: -EEXIST name taken, -ENODEV no such bdev, -EINVAL bad mask or transport,
 * -EIO no socket could be made at that path, -EPERM bdev claimed, -ENOMEM.
 */
int vhost_controller_create(const struct vhost_controller_opts *opts,
			    char reason[VHOST_REASON_MAX]) CONTROL_ONLY;
/*
 * Stop listening, remove the socket, end the sessions. Returns at once; the
 * sessions' in-flight I/O ends in the background. -ENODEV; -EBUSY: only_unused, and
 * a front end is connected.
 */
int vhost_controller_delete(const char *name, bool only_unused,
			    char reason[VHOST_REASON_MAX]) CONTROL_ONLY;
/*
 * Give a controller whose bdev was removed (or that has none yet) another one; its
 * guests are told the new size. -ENODEV, -EPERM as above; -EBUSY: it has one;
 * -EINVAL: larger blocks than the former's.
 */
int vhost_controller_attach(const char *name, const char *dev_name,
			    char reason[VHOST_REASON_MAX]) CONTROL_ONLY;
/* -ENODEV; -EINVAL: delay above the maximum or threshold below the minimum. */
int vhost_controller_set_coalescing(const char *name, uint32_t delay_base_us,
				    uint32_t iops_threshold,
				    char reason[VHOST_REASON_MAX]) CONTROL_ONLY;

/* ------- looking ------- */

struct vhost_controller *vhost_controller_find(const char *name) CONTROL_ONLY;
/* By name; NULL starts, NULL ends. */
struct vhost_controller *vhost_controller_next(struct vhost_controller *after) CONTROL_ONLY;

struct vhost_controller_info {
	const char *name;
	const char *socket;		/* path */
	struct bdev *bdev;		/* NULL once removed */
	struct cpumask cpumask;
	uint32_t delay_base_us, iops_threshold;
	bool readonly, packed_ring;
	bool writethrough;		/* a guest has switched its write cache off */
};
/* Strings are the controller's. */
void vhost_controller_get_info(const struct vhost_controller *c,
			       struct vhost_controller_info *info) CONTROL_ONLY;

struct vhost_session_info {
	uint32_t vid, id;	/* of all sessions; of this controller's */
	const char *name;	/* <controller>s<id> */
	bool started;		/* a virtqueue is running */
	uint32_t max_queues;	/* virtqueues set up */
	uint64_t inflight;	/* requests */
	uint32_t waiting;	/* virtqueues that wait for what others began on their storage */
	uint64_t abandoned;	/* requests of rings that were stopped without waiting for them */
};
void vhost_controller_each_session(const struct vhost_controller *c,
				   void (*fn)(const struct vhost_session_info *info, void *arg),
				   void *arg) CONTROL_ONLY;

#endif
