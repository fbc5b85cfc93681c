/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Handing over all that vhost/ has to a successor process: listening sockets,
 * connections, guest memory, rings. The transport is the caller's: records go out
 * through `emit` and come in by vhost_import(), each with its file descriptors.
 *
 * Two steps. While the rings still run, everything but their positions is handed
 * over; then the rings are stopped, and their positions follow. At each point
 * before the successor starts, vhost_thaw() goes on as if nothing had been.
 *
 * Records are of HANDOVER_VERSION; a field is only ever added at the end of one,
 * where zero must mean what its absence did. Everything on the control thread.
 */
#ifndef SPINDLE_HANDOVER_H
#define SPINDLE_HANDOVER_H

#include "reactor/base.h"

#define HANDOVER_VERSION 1
#define HANDOVER_FDS_MAX 4
#define HANDOVER_NAME_MAX 256

enum handover_type {
	HANDOVER_CONTROLLER = 1,
	HANDOVER_SESSION,
	HANDOVER_REGION,
	HANDOVER_VQ,
	HANDOVER_POSITION,
	HANDOVER_ALIVE,
	HANDOVER_VHOST_END	/* types from here on are the caller's */
};

struct handover_record {
	uint16_t type, fd_count;
	uint32_t len;
	void *body;
	int fds[HANDOVER_FDS_MAX];
};

/* One listening socket: fds[0]. socket_ino 0: its file is gone, or another's. */
struct handover_controller {
	char name[HANDOVER_NAME_MAX];
	uint64_t socket_dev, socket_ino;
	uint32_t next_session_id, block_size;
	uint8_t writeback;
};

/* fds: the connection, and the channel to the front end where has_backend. */
struct handover_session {
	char controller[HANDOVER_NAME_MAX];
	uint64_t features, protocol_features, offered;
	uint32_t vid, id;
	uint16_t inflight_queues, inflight_num;
	uint8_t status, writeback, asked_config, told_config, has_backend;
};

enum handover_region_kind { HANDOVER_MEMORY, HANDOVER_LOG, HANDOVER_INFLIGHT };
/* fds[0]: its file. */
struct handover_region {
	uint64_t gpa, size, uva, offset;
	uint32_t vid, kind;
};

/* fds: those of kick, call and err that `fds` has a bit for, in this order. */
struct handover_vq {
	uint64_t desc_uva, avail_uva, used_uva, log_gpa;
	uint32_t vid, index, num;
	uint8_t has_addr, kicked, enabled, disabled, fds;
};

struct handover_position {
	uint32_t vid, index, base;
	uint8_t broken;
	uint8_t waits;		/* for the storage: its front end is to be told when it runs */
	uint8_t has_settled;	/* it has run: nobody else's requests are under way */
};

/* After all positions: this session's connection still stands. */
struct handover_alive {
	uint32_t vid;
};

/* -errno: the record could not be kept, and no more is emitted. fds stay the caller's. */
typedef int handover_emit_fn(void *arg, uint16_t type, const void *body, uint32_t len,
			     const int *fds, unsigned int fd_count);

/* ------- the one that hands over ------- */

/* Read no more messages, but for the rest of half a one, accept nobody. Rings go on. */
void vhost_freeze(void) CONTROL_ONLY;
/* Whether no message is half read or half done, and no session about to end. */
bool vhost_is_settled(void) CONTROL_ONLY;
/* End the sessions whose front end has sent half a message. */
void vhost_drop_partial(void) CONTROL_ONLY;
int vhost_export(handover_emit_fn *emit, void *arg) CONTROL_ONLY;
/* Look for how long requests have been in flight. Nothing is stopped for it. */
void vhost_measure(void) CONTROL_ONLY;
/*
 * True when that is known: the longest, in microseconds, and whose it is ("bdev x"),
 * valid until the next call of this or vhost_at_rest(). Not asked of anybody: 0.
 */
bool vhost_measured(uint64_t *oldest_us, const char **whose) CONTROL_ONLY;
/* Stop the rings of disks with requests that were measured to be as old; 0: all rings. */
void vhost_rest(uint64_t oldest_us) CONTROL_ONLY;
/* True when all that were told to have stopped; else *whose is one that has not. */
bool vhost_at_rest(const char **whose) CONTROL_ONLY;
/* Those that have stopped run again, for now; the others are still to stop. */
void vhost_rest_less(void) CONTROL_ONLY;
int vhost_export_positions(handover_emit_fn *emit, void *arg) CONTROL_ONLY;
/* Go on, from wherever this has got to. */
void vhost_thaw(void) CONTROL_ONLY;
/* The sockets in the file system are the successor's: do not remove them. */
void vhost_disown(void) CONTROL_ONLY;

/* ------- the successor ------- */

/*
 * Take one record over, and its fds in any case. Frozen from the first one on, to
 * be started by vhost_thaw(). HANDOVER_CONTROLLER comes before the controller is
 * created; that takes the socket. -EPROTO: it makes no sense; -ENOMEM, -errno.
 */
int vhost_import(struct handover_record *rec) CONTROL_ONLY;
/* Sessions that were not said to be alive are closed; sockets nobody wanted as well. */
void vhost_import_end(void) CONTROL_ONLY;

#endif
