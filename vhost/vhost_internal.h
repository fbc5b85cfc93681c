/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the files of vhost/ share. Who owns what:
 *
 *   controller, session, vhost_vq   the control thread
 *   vq (a running virtqueue)        its reactor, from vq_start() to the message
 *                                   that says it has stopped
 *
 * The front end's messages change what a session *wants*: the fields of
 * vhost_vq. session_reconcile() compares that with the vqs that run and starts,
 * stops or updates them; when all have settled, the message is answered. A vq is
 * immutable while it runs, but for what vq_update() carries.
 */
#ifndef SPINDLE_VHOST_INTERNAL_H
#define SPINDLE_VHOST_INTERNAL_H

#include "bdev/bdev.h"
#include "reactor/control.h"
#include "reactor/log.h"
#include "reactor/reactor.h"
#include "reactor/worker.h"
#include "vhost/dirty_log.h"
#include "vhost/guest_mem.h"
#include "vhost/inflight.h"
#include "vhost/postcopy.h"
#include "vhost/protocol.h"
#include "vhost/vhost.h"
#include "vhost/vring.h"

#include <unistd.h>

#define VHOST_VQS_MAX 256
#define VHOST_CONFIG_SIZE 256

/* ------- the running virtqueue: vq.c, reqs.c and blk.c ------- */

#define BLK_SEG_MAX 126	/* of a request; with header and status: the usual ring's 128 */
#define BLK_INLINE_IOVS 8
#define BLK_RANGES_MAX BLK_INLINE_IOVS	/* ranges in one DISCARD or WRITE_ZEROES */

struct blk_range {
	uint64_t offset, length;	/* bytes */
};

/* A request in flight; slot `head` of its vq. What it is made of is set when it begins. */
struct blk_req {
	struct bdev_io io;
	struct vq *vq;
	struct iovec *iov;		/* inline_iov or a long one of the vq */
	uint8_t *status;		/* in guest memory */
	uint32_t used_len;
	uint16_t head;			/* packed: buffer id */
	uint16_t count;			/* packed: ring places it takes */
	bool busy;
	bool data_in;			/* its buffers for the guest are written to */
	bool settling;			/* the write is done, its flush is under way */
	uint8_t range_next, range_count;
	struct vring_chain chain;
	union {
		struct iovec inline_iov[BLK_INLINE_IOVS];
		struct blk_range ranges[BLK_INLINE_IOVS];
	};
};

/* Slots of neighbouring heads: reqs.c. Free ones of it are all zeroes in `busy`. */
#define REQ_CHUNK 16u
struct req_chunk {
	struct req_chunk *next;		/* while nobody has it */
	bool heap;			/* of malloc, not of the huge pages */
	CACHE_ALIGNED struct blk_req reqs[REQ_CHUNK];
};

/* What may change while a vq runs, by a message. */
struct vq_update {
	struct guest_mem *mem;		/* a superset of what it has */
	struct guest_mem *log_mem;	/* of log; NULL: no log */
	struct dirty_log log;
	uint64_t log_used;		/* see struct vring */
	int call_fd, err_fd;
	bool writethrough;
	bool paused;			/* begins nothing new; what is in flight goes on */
	uint32_t coalescing_us, coalescing_iops;
};

enum vq_stop {
	VQ_DRAIN,	/* its requests end, and are told to the guest */
	VQ_DETACH,	/* they end, but untold: another session may be serving the rings */
	VQ_ABANDON,	/* they need not end */
};

struct vq {
	/* Owner only, each pass. */
	struct poller poller;
	struct vring vring;
	struct bdev_channel *ch;	/* NULL: the bdev is gone */
	struct req_chunk **chunks;	/* by head; NULL: none of its heads is in flight */
	uint32_t chunk_count;
	uint32_t inflight_now;
	bool readonly, writethrough, write_cache;
	bool broken, stopping, paused;
	bool reported;			/* that it has stopped */
	bool own_cache, flushed;	/* see vq_idle() */
	bool lock_writes_back;		/* the next owner settles, which empties the cache */
	bool detached;			/* the rings are not ours any more */
	bool settle;			/* begins with a flush; see bdev_settles() */
	uint64_t features;		/* virtio, as acknowledged */
	struct defer publish;
	struct inflight *fl;		/* NULL: requests are not tracked */
	struct used_entry *ended;	/* and not shown yet; room for all of the ring */
	unsigned int ended_count;
	struct vring_desc_packed *descs;	/* packed: copies for the batch */
	struct dirty_log log;
	struct fd_signal *call;
	struct long_iov *long_iovs;	/* free ones */
	struct fd_watch *kick_watch;
	bool no_kick;			/* cannot be notified: must be polled */
	/* Kicks that nobody asked for, since a time in tsc: see vq_kicked(). */
	unsigned int stray_kicks;
	uint64_t stray_since;
	/* Interrupt coalescing: see vq_notify(). */
	uint32_t coalescing_us, coalescing_iops;
	uint64_t interval_start, interval_count, call_delay, next_call;
	struct timer call_timer;
	struct bdev_io flush;
	struct timer settle_timer;
	uint64_t settle_since;		/* tsc */
	/* Postcopy: see vq_paged.c. */
	struct page_fetch *fetch;	/* NULL: its memory was never without pages */
	bool fetching;			/* control has fetch: nothing is begun */
	unsigned int again_done;	/* of fl->again */
	/* Read by anyone. */
	CACHE_ALIGNED counter64 inflight;
	counter64 requests;
	counter64 settling;		/* 1: nothing is served yet */
	/* Fixed while it runs. */
	CACHE_ALIGNED struct vhost_vq *owner;
	struct log_limit *limit;	/* the controller's, which outlives this */
	struct reactor *reactor;
	struct guest_mem *mem;		/* references held by control */
	struct guest_mem *inflight_mem, *log_mem;
	int kick_fd;
	int call_fd;			/* at the start */
	int err_fd;
	uint32_t num;
	uint32_t generation;		/* of the vhost_vq when it was made */
	char name[64];
	/*
	 * Messages between control and the reactor. start is not answered, so a
	 * stop or update may follow on its heels; those are one at a time. update
	 * belongs to whoever has msg.
	 */
	struct msg start;
	struct req_chunk *brought;	/* goes with the start */
	struct msg msg;
	struct msg measure;
	uint64_t oldest_us;		/* goes with measure */
	enum vq_stop stop_how;		/* goes with the stop */
	struct msg raise;
	enum vq_stop raise_how;		/* goes with raise; VQ_DRAIN: not asked for */
	bool raising, over;		/* control's: raise has not come back; it has stopped */
	struct msg left_msg;		/* abandoned: its ring is not served any more */
	struct list abandoned;		/* from then on; control's */
	uint64_t left;			/* requests in flight at that time */
	struct vq_update update;
};

struct vq_params {
	struct vhost_vq *owner;
	struct reactor *reactor;
	struct bdev_desc *desc;		/* NULL or bdev NULL: every request fails */
	struct vring_params ring;
	struct guest_mem *mem;
	struct vq_update update;	/* mem is ignored */
	struct guest_mem *inflight_mem;	/* NULL: not tracked */
	void *inflight;			/* this queue's part of it, inflight_size() long */
	bool settled;			/* nobody else can have requests under way */
	uint32_t inflight_num;		/* its entries */
	int kick_fd;			/* -1: none */
	uint64_t features;
	bool readonly;
	uint32_t generation;
	const char *name;
};

/*
 * Make it; nothing runs yet. -EFAULT, -EINVAL (ring), -EBADMSG (in-flight region),
 * -EBUSY (another process uses the bdev's storage: try again), -EAGAIN (the bdev will
 * say when), -ENOMEM, -errno.
 */
int vq_create(const struct vq_params *params, struct vq **out) CONTROL_ONLY;
/* It has stopped, or never ran. NULL is allowed. */
void vq_free(struct vq *vq) CONTROL_ONLY;
void vq_start(struct vq *vq) CONTROL_ONLY;
/*
 * Ends in session_vq_stopped(), when its requests have ended. VQ_ABANDON: if there are
 * any, in session_vq_abandoned() at once, and in abandoned_ended() when they have.
 */
void vq_stop(struct vq *vq, enum vq_stop how) CONTROL_ONLY;
/*
 * It stops already: if by draining, let it end as by vq_stop(how) now. Does nothing where
 * `how` asks for no more than what was asked for. Ends as the stop does.
 */
void vq_stop_raise(struct vq *vq, enum vq_stop how) CONTROL_ONLY;
/* Ends in session_vq_updated(); vq->update says what. Does not wait for I/O. */
void vq_update(struct vq *vq) CONTROL_ONLY;
/*
 * For how long its oldest request has been in flight, or it has settled. Ends in
 * session_vq_measured(), before session_vq_stopped() if it was asked for before the stop.
 */
void vq_measure(struct vq *vq) CONTROL_ONLY;

/* ------- between vq.c, which serves, and vq_life.c ------- */

unsigned int vq_poll(struct poller *p);
bool vq_arm(struct poller *p);
void vq_disarm(struct poller *p);
/* Its kick fd is readable; arg: the vq. */
void vq_kicked(void *arg);
/* Deferred to the end of a pass in which requests have ended. */
void vq_publish(struct defer *d);
void vq_call_timer_fired(struct timer *t);
void vq_call_now(struct vq *vq) REACTOR_ONLY;
/* Publish what has ended, and call if the guest wants it. */
void vq_show_now(struct vq *vq) REACTOR_ONLY;
/* What a back end before us had in flight, in the order in which it took them. */
void vq_resubmit(struct vq *vq) REACTOR_ONLY;
void vq_free_iovs(struct vq *vq);
/*
 * Stopping, and the last request has ended. The guest may go on at another target:
 * what is cached in this process must be on the storage before it does. Of an abandoned
 * ring the storage's lock sees to that.
 */
void vq_idle(struct vq *vq) REACTOR_ONLY;

/* The queue cannot go on: tell the front end, log once, serve nothing more. */
void vq_break(struct vq *vq, enum vring_fault fault, uint16_t head) REACTOR_ONLY;
/* Answer: used entry with `len` bytes written; the slot is free again. */
void vq_complete(struct vq *vq, struct blk_req *req) REACTOR_ONLY;
bool vq_grow_iov(struct vring_chain *chain, unsigned int used);
/* Begin a request, of the ring or to be done again. But for VRING_OK, nothing has begun. */
enum vring_fault vq_begin(struct vq *vq, const struct vring_head *head, bool again) REACTOR_ONLY;
/* The pages have come, or will not: go on. */
void vq_fetched(struct vq *vq) REACTOR_ONLY;

/* vq_paged.c: the poller's poll while pages may be missing. */
unsigned int vq_poll_paged(struct poller *p);
/* Have vq->fetch fetched; then vq_fetched(). must: not given up for a mere stop. */
void vq_fetch(struct vq *vq, bool must) REACTOR_ONLY;
void vq_release_iov(struct vq *vq, struct blk_req *req);

/* ------- its slots: reqs.c ------- */

/* For reqs_bring(). NULL: no memory, or over the limit. Control. */
struct req_chunk *req_chunk_new(const struct reactor *r);
/* NULL is allowed. */
void req_chunk_free(struct req_chunk *c, const struct reactor *r);
/* A vq starts on this reactor, and has ended. c is the reactor's then. */
void reqs_bring(struct req_chunk *c) REACTOR_ONLY;
void reqs_leave(void) REACTOR_ONLY;
/* Nothing is in flight: give all slots back. */
void vq_reqs_release(struct vq *vq) REACTOR_ONLY;
struct blk_req *vq_slot_slow(struct vq *vq, uint16_t head) REACTOR_ONLY;

/* The slot of a head that is in flight. */
static inline struct blk_req *vq_req(const struct vq *vq, uint16_t head)
{
	return &vq->chunks[head / REQ_CHUNK]->reqs[head % REQ_CHUNK];
}

/* The slot of any head; NULL: no memory. */
REACTOR_ONLY static inline struct blk_req *vq_slot(struct vq *vq, uint16_t head)
{
	struct req_chunk *c = vq->chunks[head / REQ_CHUNK];

	return likely(c) ? &c->reqs[head % REQ_CHUNK] : vq_slot_slow(vq, head);
}

/*
 * blk.c: find the buffers of a request, of the ring or to be done again; then start
 * it. A fault, which breaks the queue, can only come from the first.
 */
enum vring_fault blk_map(struct vq *vq, struct blk_req *req,
			 const struct vring_head *head) REACTOR_ONLY;
void blk_start(struct vq *vq, struct blk_req *req) REACTOR_ONLY;
uint64_t blk_features(const struct vhost_controller *c) CONTROL_ONLY;
/* The configuration space as the guest sees it, zero-padded. */
void blk_config(const struct vhost_controller *c, bool writeback,
		uint8_t config[VHOST_CONFIG_SIZE]) CONTROL_ONLY;
/* Whether writes may stay volatile before the guest has said what it wants. */
bool blk_writeback_default(const struct vhost_controller *c) CONTROL_ONLY;
/* Whether the guest, having acknowledged these features, has asked for write-through. */
bool blk_is_writethrough(uint64_t features, bool writeback);
/* Where a SET_CONFIG may write: the writeback byte alone. */
bool blk_config_write(uint32_t offset, uint32_t size, const uint8_t *data, bool *writeback);

/* ------- control's side: session.c and controller.c ------- */

/* What the front end wants of one virtqueue. */
struct vhost_vq {
	struct vhost_session *session;
	unsigned int index;
	uint32_t num;
	uint64_t desc_uva, avail_uva, used_uva;
	uint64_t log_gpa;		/* of the used ring in the dirty log, DIRTY_LOG_NONE */
	uint32_t base;			/* where it stands, while not running: vring_base() */
	bool has_addr, kicked, enabled;
	bool disabled;			/* said so, even where rings start enabled */
	int kick_fd, call_fd, err_fd;
	int old_fd;			/* replaced; a running vq may still use it */
	uint32_t generation;		/* raised to have the vq made anew */
	struct vq *vq;			/* NULL: not running */
	bool stopping;			/* told to stop, not yet stopped */
	bool updating;			/* vq_update() under way */
	bool measuring;			/* vq_measure() under way */
	uint64_t oldest_us;		/* what the last one said */
	bool dirty;			/* wants an update */
	bool broken;			/* by its driver, until that resets it */
	bool failed;			/* could not be made; logged; until something changes */
	bool held;			/* waits for a session that shares its memory; logged */
	bool waits;			/* for the storage */
	bool refused;			/* since another process uses it; logged */
	bool abandon;			/* asked to stop without waiting for requests */
	bool finish;			/* to stop once it has run: it owes the guest requests */
	bool handed;			/* a predecessor's that has settled its storage */
	bool has_settled;		/* since its kick: its last vq had */
	bool renewed;			/* by its driver, since its vq was made */
	struct page_fetch *ring_fetch;	/* postcopy: its ring; NULL: never needed */
};

struct vhost_session {
	struct list node;
	struct list ending;		/* while it closes; see session.c */
	struct vhost_controller *controller;
	struct vhost_conn conn;
	uint32_t vid, id;
	char name[VHOST_NAME_MAX];
	uint64_t features;		/* virtio and vhost bits acknowledged */
	uint64_t protocol_features;
	uint8_t status;
	bool closing;
	bool writeback;
	bool asked_config;		/* read the configuration in this connection */
	bool told_config;
	bool tell_config;		/* once its vqs have settled */
	bool listed;			/* started was logged */
	bool told_node;			/* that its memory is on another NUMA node */
	bool told_small;		/* that large requests do not fit into a ring */
	bool unfit;			/* handed over, but what it shares cannot be had */
	bool alive;			/* handed over, and still connected at the end of that */
	bool resting;			/* its rings may not run, since a successor is to have them */
	struct msg over;		/* closed, and settled: to be freed */
	struct control_timer retry;	/* while a vq waits */
	struct guest_mem *mem;
	struct guest_mem *log_mem;	/* one region: the dirty log */
	struct guest_mem *inflight_mem;	/* one region: the in-flight region */
	uint16_t inflight_queues;	/* it has room for, of inflight_num entries each */
	uint16_t inflight_num;
	int backend_fd;			/* our channel to the front end, -1: none */
	struct postcopy *postcopy;	/* NULL: none is announced or under way */
	uint64_t offered;		/* features at the time it connected */
	bool busy;			/* inside a handler */
	/*
	 * What follows once every vq has settled: settled is the step all
	 * messages share, after is the message's own, before it.
	 */
	void (*settled)(struct vhost_session *s);
	void (*after)(struct vhost_session *s);
	unsigned int settle_index;
	bool settle_nack;		/* the acknowledgement is a refusal */
	struct vhost_vq *vqs[VHOST_VQS_MAX];
	unsigned int vq_count;		/* highest index used + 1 */
};

struct vhost_controller {
	struct list node;
	char name[VHOST_NAME_MAX];
	char *socket;
	struct control_fd listen;
	struct control_timer accept_timer;
	dev_t socket_dev;
	ino_t socket_ino;
	struct bdev_desc desc;
	bool bdev_gone;			/* removed, or none yet: vqs with a channel must go */
	uint32_t block_size;		/* of its bdevs, 0: there was none yet */
	struct cpumask cpumask;
	bool readonly, packed_ring;
	/*
	 * What a new session starts with: what the guest chose last. QEMU does not
	 * say it again when it reconnects.
	 */
	bool writeback;
	bool deleting;
	uint32_t delay_base_us, iops_threshold;
	uint32_t next_session_id;
	/* Of lines that its front ends can provoke; one noisy guest hides no other's. */
	struct log_limit limit;
	struct list sessions;
	unsigned int session_count;
};

static inline bool session_has_feature(const struct vhost_session *s, unsigned int bit)
{
	return s->features >> bit & 1;
}

static inline bool session_has_protocol_feature(const struct vhost_session *s, unsigned int bit)
{
	return s->protocol_features >> bit & 1;
}

/* Whether the front end knows what to do with requests that were in flight at a stop. */
static inline bool session_may_leave_requests(const struct vhost_session *s)
{
	return session_has_protocol_feature(s, VU_F_INFLIGHT_SHMFD) &&
	       session_has_protocol_feature(s, VU_F_GET_VRING_BASE_INFLIGHT);
}

/* One that the front end gave us. */
static inline void close_fd(int *fd)
{
	worker_close(*fd);
	*fd = -1;
}

void session_create(struct vhost_controller *c, int fd) CONTROL_ONLY;
/* The same, handed over under these numbers; NULL: no memory. fd is taken. */
struct vhost_session *session_adopt(struct vhost_controller *c, int fd, uint32_t vid,
				    uint32_t id) CONTROL_ONLY;
/* Its virtqueue of this index, made where there was none; NULL: no such, or no memory. */
struct vhost_vq *session_vq(struct vhost_session *s, uint64_t index) CONTROL_ONLY;
/* End it; it frees itself when its requests have ended. */
void session_close(struct vhost_session *s) CONTROL_ONLY;
/* Have its vqs started, stopped and updated as wanted. */
void session_reconcile(struct vhost_session *s) CONTROL_ONLY;
/* Whether a vq of it waits for memory that another session may still use. */
bool session_is_held(const struct vhost_session *s) CONTROL_ONLY;
/* Tell the front end that the configuration has changed. */
void session_config_changed(struct vhost_session *s) CONTROL_ONLY;
/*
 * The same, once, to a front end that came back and did not ask: it never reads the
 * configuration again by itself. For when a vq has been started.
 */
void session_announce_config(struct vhost_session *s) CONTROL_ONLY;
/* Whether requests of sessions that have been closed may still be on their way. */
bool sessions_ending(void) CONTROL_ONLY;
/* Every vq wants an update (coalescing, cache mode). */
void session_update_vqs(struct vhost_session *s) CONTROL_ONLY;
void session_vq_stopped(struct vhost_vq *vvq) CONTROL_ONLY;
void session_vq_abandoned(struct vhost_vq *vvq) CONTROL_ONLY;
/* Whether it waits to run, and then has requests to do again. */
bool session_vq_is_owing(const struct vhost_vq *vvq) CONTROL_ONLY;
/* How many of its vqs wait for requests that others began on the same storage. */
unsigned int session_waiting(const struct vhost_session *s) CONTROL_ONLY;
void session_vq_updated(struct vhost_vq *vvq) CONTROL_ONLY;
/* handover.c: vq->oldest_us is current. */
void session_vq_measured(struct vhost_vq *vvq) CONTROL_ONLY;
/* Every running vq is to be stopped and made anew, with the settings of now. */
void session_want_anew(struct vhost_session *s) CONTROL_ONLY;
/* messages.c: a message has arrived whole and its shape has been checked. */
void session_message(struct vhost_session *s, struct vhost_msg *msg) CONTROL_ONLY;
/* For handlers elsewhere: answer with `size` bytes of conn.msg; refuse, and end the session. */
void session_reply(struct vhost_session *s, uint32_t size) CONTROL_ONLY;
void session_refuse(struct vhost_session *s, const char *why) CONTROL_ONLY;

/* ------- rings that were stopped without their requests: abandon.c ------- */

/* Whether its running vq may be stopped so, having been asked to. */
bool vvq_may_abandon(const struct vhost_vq *vvq) CONTROL_ONLY;
/* It has left its vhost_vq. */
void abandoned_add(struct vq *vq) CONTROL_ONLY;
/* Its requests have ended: frees it, and perhaps its session, if that closes. */
void abandoned_ended(struct vq *vq) CONTROL_ONLY;
bool abandoned_any(void) CONTROL_ONLY;
/* Whether the session has left any; their requests in flight are added to *inflight. */
bool abandoned_of(const struct vhost_session *s, uint64_t *inflight) CONTROL_ONLY;
/* Whether the controller's bdev, or its former one, has requests left of its sessions. */
bool abandoned_in_bdev(const struct vhost_controller *c) CONTROL_ONLY;
/* Whether a ring of this session has to wait for requests that were left. */
bool abandoned_hold(const struct vhost_session *s) CONTROL_ONLY;

/* ------- while everything is handed over: handover.c ------- */

/* No message is read and nobody accepted. */
bool vhost_is_frozen(void);
/* No ring may run. */
bool vhost_rings_held(void);
/*
 * Its listening socket: 1, it was handed over; 0, it was not; -EADDRNOTAVAIL, it
 * was, and is not in our directory.
 */
int handover_take_socket(struct vhost_controller *c) CONTROL_ONLY;
/* Accept front ends, or do not, as far as other reasons allow it. */
void controller_listen(struct vhost_controller *c, bool on) CONTROL_ONLY;

/* The reactor for one more vq of this session. */
struct reactor *controller_pick_reactor(struct vhost_controller *c,
					const struct vhost_session *s) CONTROL_ONLY;
void controller_reactor_load(const struct reactor *r, int delta) CONTROL_ONLY;
/* What its guest wants of the write cache, for this session and later ones. */
void controller_set_writeback(struct vhost_controller *c, bool writeback) CONTROL_ONLY;
void controller_session_gone(struct vhost_controller *c) CONTROL_ONLY;
/* fn for each session that is not closing; fn may close it. */
void controllers_each_session(void (*fn)(struct vhost_session *s, void *arg),
			      void *arg) CONTROL_ONLY;
/* A session is gone: others may have been waiting for the memory it shared. */
void controllers_memory_released(void) CONTROL_ONLY;
/* A vq of it has stopped: perhaps the bdev can be closed now. */
void controller_vq_gone(struct vhost_controller *c) CONTROL_ONLY;

#endif
