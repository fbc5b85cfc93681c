/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Upgrade in place: a new process takes everything over from the one that runs,
 * which goes on as before when that fails at any step.
 *
 *	successor                         predecessor
 *	framework_takeover  ------------>  freezes its configuration
 *	  <---- configuration, sockets, connections, memory: rings run on
 *	makes all of it
 *	PREPARED            ------------>  stops its rings
 *	  <---- where they stand
 *	STARTED             ------------>  leaves
 *	starts them
 *	hangs up            ------------>  exits
 *	  <---- the end of the connection
 *
 * STARTED is the one step that cannot be taken back, and it is sent before the
 * successor touches a ring: a predecessor that does not get it, and has closed the
 * connection, knows that nobody else serves its guests.
 *
 * Control thread, but for takeover_send() and takeover_receive(), which block.
 */
#ifndef SPINDLE_TAKEOVER_H
#define SPINDLE_TAKEOVER_H

#include "reactor/control.h"
#include "vhost/handover.h"

/* ------- for main.c ------- */

struct takeover_config {
	const char *rpc_path;	/* the predecessor's */
	uint32_t stop_ms;	/* its rings have so long to stop; 0: as it thinks best */
	/* Filled when done says 0: its rpc_server_fds(), and its process id. */
	int *rpc_fds;
	int *pid;
	/* After done has said 0: it has exited, or closed the connection before it does. */
	void (*gone)(void);
};
/*
 * Take over; done follows. 0: all is ours, and runs. Else nothing is, the reason
 * has been logged, and the predecessor goes on.
 */
int takeover_begin(const struct takeover_config *config, void (*done)(void *arg, int status),
		   void *arg) CONTROL_ONLY;
/* When a successor has taken over from us: leave, and touch nothing in the file system. */
void takeover_on_loss(void (*leave)(void)) CONTROL_ONLY;
/*
 * We are to stop: end a takeover that is under way. False: there is none. Else
 * ended follows, perhaps before this returns, unless the successor was faster.
 */
bool takeover_abort(void (*ended)(void)) CONTROL_ONLY;

/* ------- inside rpc/ ------- */

/* Nothing may be changed now. */
bool takeover_is_active(void);

/* Records beyond those of vhost/handover.h. */
enum takeover_type {
	TAKEOVER_HELLO = HANDOVER_VHOST_END,
	TAKEOVER_CONFIG,	/* JSON text */
	TAKEOVER_BDEV,		/* its name, NUL included, and the fds that go with it */
	TAKEOVER_RPC,		/* fds: listening socket, lock */
	TAKEOVER_END,		/* of a batch */
	TAKEOVER_PREPARED,
	TAKEOVER_STARTED,
	TAKEOVER_FAILED,	/* text, NUL included */
};

struct takeover_hello {
	uint32_t magic, version;
	int32_t pid;
};
#define TAKEOVER_MAGIC 0x53504454u

struct takeover_batch {
	struct handover_record *records;
	unsigned int count, cap;
};
/* A handover_emit_fn: arg is the batch. fds are duplicated. */
int takeover_put(void *arg, uint16_t type, const void *body, uint32_t len, const int *fds,
		 unsigned int fd_count);
/* Closes what fds are left, frees the records. */
void takeover_batch_free(struct takeover_batch *batch);

/* Blocking, at most timeout_ms for each record. -errno. */
int takeover_send(int fd, const struct takeover_batch *batch, int timeout_ms);
/*
 * Append records up to and with one that ends a batch (END, PREPARED, STARTED,
 * FAILED). -ECONNRESET: the other side is gone; -EPROTO: no record of ours.
 */
int takeover_receive(int fd, struct takeover_batch *batch, int timeout_ms);
/* Until there is something to receive. -ETIMEDOUT. */
int takeover_wait(int fd, int timeout_ms);

#endif
