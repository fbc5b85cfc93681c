/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The block layer, as its users see it (vhost/ and rpc/): one kind of request,
 * bdevs by name, one channel per bdev and reactor.
 *
 * Life: a backend's create call makes the bdev on the control thread (slow
 * parts on a worker) and registers it. A user opens it with a descriptor, gets
 * a channel on each reactor it works on, and submits requests on it. A deleted
 * bdev leaves the name space at once, tells its users (BDEV_EVENT_REMOVE), and
 * is destroyed when the last of them has closed.
 *
 * Offsets and lengths are bytes throughout.
 */
#ifndef SPINDLE_BDEV_H
#define SPINDLE_BDEV_H

#include "reactor/base.h"
#include "reactor/control.h"
#include "reactor/inbox.h"

#include <sys/uio.h>

struct reactor;
struct bdev_channel;
struct bdev_ops;

#define BDEV_NAME_MAX 256	/* with the NUL */
#define BDEV_UUID_STR 37
#define BDEV_REASON_MAX 256

/* ------- requests ------- */

enum bdev_io_type {
	BDEV_READ,
	BDEV_WRITE,
	BDEV_FLUSH,		/* all writes completed so far become durable */
	BDEV_DISCARD,		/* contents undefined afterwards; space may be freed */
	BDEV_WRITE_ZEROES,
	BDEV_IO_TYPES
};

/* WRITE_ZEROES must leave the range allocated. */
#define BDEV_IO_NO_UNMAP 0x1

/*
 * One request. The submitter owns it until done() is called; done runs on the
 * reactor that submitted, in a later step than bdev_submit(), never inside it.
 * status is 0 or -errno.
 */
struct bdev_io {
	/* Filled in by the submitter; the backend changes none of it. */
	struct bdev_channel *ch;
	uint64_t offset;
	uint64_t length;	/* = the sum of iov for READ and WRITE; 0 for FLUSH */
	struct iovec *iov;
	uint32_t iovcnt;
	uint8_t type;		/* enum bdev_io_type */
	uint8_t flags;
	uint16_t resumed;	/* the backend's: this submit is not the first */
	void (*done)(struct bdev_io *io, int status);
	/* The block layer's. */
	uint64_t submit_tsc;
	struct bdev_io *next;
	/* The backend's. */
	CACHE_ALIGNED struct msg msg;	/* the way home from a foreign thread */
	int status;			/* carried by msg */
	uint32_t reserved2;
	uint64_t scratch[13];
};

/*
 * Hand over one request. Cannot refuse: out of range or misaligned completes
 * with -EINVAL, a change of a read-only bdev with -EROFS, an unsupported type
 * with -EOPNOTSUPP, and a full backend makes requests wait. done() is never
 * called from inside.
 */
void bdev_submit(struct bdev_io *io) REACTOR_ONLY;

/* Helpers on iovecs: copy `len` bytes starting at byte `skip` of the list. */
void bdev_iov_to_buf(const struct iovec *iov, uint32_t iovcnt, uint64_t skip, void *buf,
		     size_t len);
void bdev_buf_to_iov(const void *buf, const struct iovec *iov, uint32_t iovcnt, uint64_t skip,
		     size_t len);

/* ------- bdevs ------- */

struct bdev_latency {
	counter64 ticks, max, min;	/* tsc; min is UINT64_MAX when nothing was done */
};

/* Written by the channel's reactor alone, read by anyone. */
struct bdev_stats {
	counter64 ops[BDEV_IO_TYPES], bytes[BDEV_IO_TYPES], errors[BDEV_IO_TYPES];
	struct bdev_latency latency[BDEV_IO_TYPES];
};

/* Fields are written by the control thread alone; size also read by reactors. */
struct bdev {
	struct list node;		/* in creation order */
	char name[BDEV_NAME_MAX];
	char uuid[BDEV_UUID_STR];
	const struct bdev_ops *ops;
	_Atomic uint64_t size;		/* bytes, a multiple of block_size */
	uint32_t block_size;		/* 512 or 4096: alignment of every request */
	uint32_t physical_block_size;	/* >= block_size; a smaller write is read-modify-write */
	uint32_t optimal_io_size;	/* bytes, 0: not known */
	uint32_t discard_granularity;	/* bytes, 0: no discard */
	uint32_t supported;		/* 1 << enum bdev_io_type */
	bool readonly;
	bool write_cache;		/* writes are volatile until FLUSH */
	atomic_bool removing;		/* left the name space */
	bool claimed;			/* another bdev writes through it; nobody else may */
	struct list descs;		/* struct bdev_desc.node */
	struct bdev_channel **channels;	/* by reactor index */
	struct list closing;		/* channels that have left the table */
	unsigned int channel_count;	/* of both */
	struct bdev_stats closed_stats;	/* of channels that are gone */
	struct bdev_result *deleting;	/* who waits for the end */
	struct control_timer answer_timer;	/* ... but not for ever */
};

static inline uint64_t bdev_size(const struct bdev *bdev)
{
	return atomic_load_explicit(&bdev->size, memory_order_relaxed);
}

static inline bool bdev_supports(const struct bdev *bdev, enum bdev_io_type type)
{
	return bdev->supported & (1u << type);
}

struct bdev *bdev_find(const char *name_or_uuid) CONTROL_ONLY;
/* Default names ("Malloc0") keep clear of the names for which this is true. */
void bdev_reserve_names(bool (*reserved)(const char *name)) CONTROL_ONLY;
/* In creation order; NULL starts, NULL ends. */
struct bdev *bdev_next(struct bdev *after) CONTROL_ONLY;
/* Whether what was written may be in memory of this process alone until a FLUSH. */
bool bdev_has_own_cache(const struct bdev *bdev);

/*
 * Whether requests may still be under way when their guest has gone on elsewhere: no
 * other process gets at the storage before they have ended and their channel has been
 * put, if it keeps to our locks (or, where bdev_settles(), begins with a FLUSH). This
 * process has to keep itself in order. It may change; ask when it matters.
 */
bool bdev_keeps_order(struct bdev *bdev) CONTROL_ONLY;
/* Whether a FLUSH that has ended means that what other processes began has ended. */
bool bdev_settles(struct bdev *bdev) CONTROL_ONLY;

/* "Malloc disk" and the like, as bdev_get_bdevs reports it. */
const char *bdev_product_name(const struct bdev *bdev);

/* ------- using a bdev ------- */

enum bdev_event {
	BDEV_EVENT_RESIZE,	/* size changed; already visible */
	BDEV_EVENT_REMOVE,	/* end your I/O, put your channels, close */
	BDEV_EVENT_READY,	/* try again what bdev_channel_get() said EAGAIN to */
};

/* Embedded in the user; `event` is called on the control thread. */
struct bdev_desc {
	struct list node;
	struct bdev *bdev;
	void (*event)(struct bdev_desc *desc, enum bdev_event event);
};

/* 0; -ENODEV unknown; -EPERM claimed by another bdev (claim wants it alone). */
int bdev_open(const char *name, bool claim, struct bdev_desc *desc) CONTROL_ONLY;
/* All channels of this user must have been put. desc->bdev is NULL after. */
void bdev_close(struct bdev_desc *desc) CONTROL_ONLY;

/*
 * The channel of this bdev on r, counted. A message posted to r after this
 * call finds it open. NULL with errno: ENOMEM; EBUSY: another process uses the
 * storage just now; EAGAIN: not yet, BDEV_EVENT_READY or another errno follows at a
 * later try. The bdev must stay open.
 */
struct bdev_channel *bdev_channel_get(struct bdev_desc *desc, struct reactor *r) CONTROL_ONLY;
/* No request of the caller may be in flight. NULL is allowed. */
void bdev_channel_put(struct bdev_channel *ch) CONTROL_ONLY;
/*
 * Ask the backend to end what it holds back on purpose or without end (fault
 * injection). Those requests complete with -ECANCELED. Any other: no effect.
 */
void bdev_channel_cancel(struct bdev_channel *ch) REACTOR_ONLY;
struct bdev *bdev_channel_bdev(const struct bdev_channel *ch);
/* Requests submitted and not yet done; any thread, approximate. */
uint64_t bdev_channel_inflight(const struct bdev_channel *ch);

/* ------- results of slow calls ------- */

/*
 * How create, delete, rescan and resize answer. The caller owns it and keeps it
 * until fn has been called, on the control thread, perhaps before the call that
 * was given it returns. status 0 or -errno, reason "" or a sentence for people.
 */
struct bdev_result {
	void (*fn)(struct bdev_result *res);
	int status;
	char reason[BDEV_REASON_MAX];
	struct bdev *bdev;	/* create: the new bdev, on success */
};

/*
 * Delete by name. ops restricts it to bdevs of one backend (NULL: any), by
 * -ENODEV. The answer comes when the bdev is gone, which waits for its users'
 * requests to end, but after half a second at the latest: the rest then happens
 * in the background.
 */
void bdev_delete(const char *name, const struct bdev_ops *ops,
		 struct bdev_result *res) CONTROL_ONLY;
/* At exit: delete all of them, then call done on the control thread. */
void bdev_delete_all(void (*done)(void)) CONTROL_ONLY;

/* ------- statistics ------- */

/* Sums of all channels and of those gone, since the last reset. */
void bdev_get_stats(const struct bdev *bdev, struct bdev_stats *out) CONTROL_ONLY;
/* One channel's, by reactor index; false when there is none. */
bool bdev_get_channel_stats(const struct bdev *bdev, unsigned int reactor,
			    struct bdev_stats *out) CONTROL_ONLY;
enum bdev_reset {
	BDEV_RESET_ALL,
	BDEV_RESET_MAXMIN,	/* the extremes of latency only */
	BDEV_RESET_ERRORS,	/* the counts of errors only */
};
/* bdev NULL: every bdev. */
void bdev_reset_stats(struct bdev *bdev, enum bdev_reset what,
		      struct bdev_result *res) CONTROL_ONLY;

/* ------- handing over to a successor process ------- */

#define BDEV_HANDOVER_FDS 2

/*
 * The fds that the successor needs to go on with this bdev; they stay the
 * bdev's: duplicate them. Their count; 0 when the bdev is made anew from its
 * configuration alone; -EOPNOTSUPP when it cannot be handed over, which has been
 * logged, or -errno. Can be called again.
 *
 * From the first call on until bdev_handover_end(), closing a bdev leaves image
 * locks alone, since the successor goes on with the same ones.
 */
int bdev_handover(struct bdev *bdev, int fds[BDEV_HANDOVER_FDS]) CONTROL_ONLY;

/*
 * When all rings have stopped, before the successor's may start: write back what
 * backends cache inside this process (librbd), where the successor would not see
 * it, and where it might overwrite what the successor writes. status: of the first
 * that failed; the handover must not go on then. May take as long as the storage.
 */
void bdev_handover_flush(struct bdev_result *res) CONTROL_ONLY;

/*
 * A bdev with a call of its own under way that the successor must not meet, since it
 * is about what both have: wait for its end before the successor may start. NULL: none.
 */
const struct bdev *bdev_handover_busy(void) CONTROL_ONLY;

/*
 * The successor, before it makes its bdevs: fds for the bdev of this name, taken
 * over in any case. The create call of that name uses them. 0; -EINVAL name or
 * count; -EEXIST; -ENOMEM.
 */
int bdev_adopt_offer(const char *name, const int *fds, unsigned int count) CONTROL_ONLY;
/* Closes the fds that no bdev has taken, and returns of how many bdevs. May block. */
unsigned int bdev_adopt_clear(void) CONTROL_ONLY;

/*
 * The other process is out of it: called by the successor when it has taken over
 * for good, by the predecessor when the successor is gone and it goes on itself.
 * Whoever gives up does not call it, and just closes its bdevs or exits.
 */
void bdev_handover_end(void) CONTROL_ONLY;

/* ------- notes: what happened ------- */

enum bdev_note_type {
	BDEV_NOTE_REGISTER,
	BDEV_NOTE_UNREGISTER,	/* left the name space; the last note about it */
	BDEV_NOTE_RESIZE,
	BDEV_NOTE_STALLED,	/* requests have not ended for seconds; they wait */
	BDEV_NOTE_RECOVERED,	/* they end again */
	BDEV_NOTE_FENCED,	/* its storage refuses this client for good */
	BDEV_NOTE_TYPES
};
#define BDEV_NOTES_KEPT 1024u

struct bdev_note {
	enum bdev_note_type type;
	char name[BDEV_NAME_MAX];
};

/* Notes are numbered from 0 on; [first, end) are kept. */
uint64_t bdev_notes_first(void) CONTROL_ONLY;
uint64_t bdev_notes_end(void) CONTROL_ONLY;
/* NULL: not kept any more, or not there yet. Valid until the next note. */
const struct bdev_note *bdev_note_at(uint64_t id) CONTROL_ONLY;

/* ------- backends ------- */

/* All strings are copied. name NULL: the next free default name. uuid NULL: random. */
struct bdev_null_opts {
	const char *name;
	const char *uuid;
	uint64_t num_blocks;
	uint32_t block_size;
	uint32_t physical_block_size;	/* 0: block_size */
};
extern const struct bdev_ops bdev_null_ops;
void bdev_null_create(const struct bdev_null_opts *opts, struct bdev_result *res) CONTROL_ONLY;
/* -EINVAL for a shrink below what it is now. */
void bdev_null_resize(const char *name, uint64_t size, struct bdev_result *res) CONTROL_ONLY;

struct bdev_malloc_opts {
	const char *name;
	const char *uuid;
	uint64_t num_blocks;
	uint32_t block_size;
	uint32_t physical_block_size;	/* 0: block_size */
	uint32_t optimal_io_boundary;	/* blocks; only reported */
	int numa_node;			/* -1: any */
};
extern const struct bdev_ops bdev_malloc_ops;
void bdev_malloc_create(const struct bdev_malloc_opts *opts, struct bdev_result *res) CONTROL_ONLY;
const struct bdev_malloc_opts *bdev_malloc_get_opts(const struct bdev *bdev);

/* One backend under SPDK's two names: "aio" and "uring" differ in what they report. */
enum bdev_file_kind { BDEV_FILE_AIO, BDEV_FILE_URING };
struct bdev_file_opts {
	enum bdev_file_kind kind;
	const char *name;
	const char *uuid;
	const char *filename;
	uint32_t block_size;	/* 0: the device's own; 512 for a file */
	bool readonly;
	bool fallocate;		/* SPDK's flag; ours always can; only reported */
	bool nowait;		/* likewise */
	bool no_lock;		/* do not take or test the image's OFD locks */
	bool lock_in_use;	/* take them while a channel is open, for migrations */
};
extern const struct bdev_ops bdev_aio_ops, bdev_uring_ops;
void bdev_file_create(const struct bdev_file_opts *opts, struct bdev_result *res) CONTROL_ONLY;
/* Look at the file's size again. ops: bdev_aio_ops or bdev_uring_ops. */
void bdev_file_rescan(const char *name, const struct bdev_ops *ops,
		      struct bdev_result *res) CONTROL_ONLY;
const struct bdev_file_opts *bdev_file_get_opts(const struct bdev *bdev);

/*
 * Fault: a bdev over another, which it claims. Error injection as SPDK's
 * bdev_error, latencies as its bdev_delay; both kinds are this one backend.
 */
enum bdev_fault_kind { BDEV_FAULT_ERROR, BDEV_FAULT_DELAY };
enum bdev_fault_mode {
	BDEV_FAULT_CLEAR,
	BDEV_FAULT_FAIL,	/* complete with -EIO */
	BDEV_FAULT_NOMEM,	/* complete with -ENOMEM */
	BDEV_FAULT_PENDING,	/* never complete until deleted, cancelled or cleared */
	BDEV_FAULT_CORRUPT,	/* flip a byte of the data of READ, before WRITE of a copy */
};
struct bdev_fault_opts {
	enum bdev_fault_kind kind;
	const char *base;
	const char *name;	/* NULL: EE_<base> for BDEV_FAULT_ERROR */
	const char *uuid;
	/* BDEV_FAULT_DELAY, microseconds; p99 ones hit one request in a hundred */
	uint64_t avg_read_us, p99_read_us, avg_write_us, p99_write_us;
};
extern const struct bdev_ops bdev_error_ops, bdev_delay_ops;
void bdev_fault_create(const struct bdev_fault_opts *opts, struct bdev_result *res) CONTROL_ONLY;
const struct bdev_fault_opts *bdev_fault_get_opts(const struct bdev *bdev);
/* The next `count` requests of this type (BDEV_IO_TYPES: any type). */
struct bdev_fault_injection {
	unsigned int type;
	enum bdev_fault_mode mode;
	uint64_t count;
	uint64_t queue_depth;	/* fail only while more than this many are in flight */
	uint64_t corrupt_offset;
	uint8_t corrupt_value;	/* 0: flip all bits */
};
void bdev_fault_inject(const char *name, const struct bdev_fault_injection *inj,
		       struct bdev_result *res) CONTROL_ONLY;
/* which: "avg_read", "p99_read", "avg_write" or "p99_write". */
void bdev_fault_set_latency(const char *name, const char *which, uint64_t us,
			    struct bdev_result *res) CONTROL_ONLY;

/*
 * RBD: images of a Ceph cluster, by librbd. Present unless built with RBD=0.
 *
 * How to reach a cluster. Images whose access is equal share connections. NULL
 * strings mean Ceph's defaults: user "admin", /etc/ceph/ceph.conf, the keyring
 * that the configuration names.
 */
struct bdev_rbd_option {
	char *key, *value;
};
struct bdev_rbd_access {
	char *user_id;
	char *config_file;	/* "" or NULL with options given: none is read if missing */
	char *key_file;
	struct bdev_rbd_option *options;	/* any Ceph option */
	unsigned int option_count;
};
enum bdev_rbd_cache {
	BDEV_RBD_CACHE_DEFAULT,		/* as the configuration says; if nothing: none */
	BDEV_RBD_CACHE_NONE,
	BDEV_RBD_CACHE_WRITEBACK,
	BDEV_RBD_CACHE_WRITETHROUGH,
};
#define BDEV_RBD_TIMEOUT_MS 30000u
struct bdev_rbd_opts {
	char *name;		/* NULL: Ceph0, Ceph1, ... */
	char *uuid;
	char *pool, *ns, *image, *snapshot;
	char *cluster;		/* a registered one; access is then not used */
	struct bdev_rbd_access access;
	uint32_t block_size;	/* 0: 512 */
	bool readonly;
	bool exclusive;		/* hold the exclusive lock; refuse if another has it */
	enum bdev_rbd_cache cache;
	uint32_t timeout_ms;	/* for connecting and opening; 0: BDEV_RBD_TIMEOUT_MS */
	uint32_t io_timeout_ms;	/* fail requests after so long; 0: they wait */
};
extern const struct bdev_ops bdev_rbd_ops;
/* Connections of one access at the most; before the first image. */
void bdev_rbd_set_connections(unsigned int count) CONTROL_ONLY;
void bdev_rbd_create(const struct bdev_rbd_opts *opts, struct bdev_result *res) CONTROL_ONLY;
/* size in bytes. A shrink is -EINVAL unless allow_shrink. */
void bdev_rbd_resize(const char *name, uint64_t size, bool allow_shrink,
		     struct bdev_result *res) CONTROL_ONLY;
const struct bdev_rbd_opts *bdev_rbd_get_opts(const struct bdev *bdev);
/*
 * Parse QEMU's name "rbd:pool[/namespace]/image[@snapshot][:option=value...]"
 * (':', '@', '=' and '/' escaped by a backslash) into opts: the strings are
 * allocated, bdev_rbd_opts_free() frees them. Options id, conf and snapshot are
 * taken apart, others go to access.options. -EINVAL with a reason; -ENOMEM.
 */
int bdev_rbd_parse(const char *text, struct bdev_rbd_opts *opts, char reason[BDEV_REASON_MAX]);
int bdev_rbd_opts_copy(const struct bdev_rbd_opts *from, struct bdev_rbd_opts *to);
void bdev_rbd_opts_free(struct bdev_rbd_opts *opts);

struct bdev_rbd_health {
	uint64_t oldest_us;	/* age of the oldest request in flight, 0: none */
	bool stalled;		/* that has been over 5 s */
	bool fenced;		/* the cluster refuses this client */
};
void bdev_rbd_get_health(const struct bdev *bdev, struct bdev_rbd_health *health) CONTROL_ONLY;

/* Whether a request of any image, also a deleted one, has waited for longer than this. */
bool bdev_rbd_any_stuck(uint64_t us) CONTROL_ONLY;

/* Registered clusters, by name. The strings are copied. */
struct bdev_rbd_cluster_info {
	const char *name;
	const struct bdev_rbd_access *access;
	const char *core_mask;	/* only reported */
	unsigned int images;
};
void bdev_rbd_register_cluster(const char *name, const struct bdev_rbd_access *access,
			       const char *core_mask, struct bdev_result *res) CONTROL_ONLY;
/* -ENOENT; -EBUSY while images use it. */
int bdev_rbd_unregister_cluster(const char *name, char reason[BDEV_REASON_MAX]) CONTROL_ONLY;
/* At exit, when all bdevs are gone: unregister what is left. */
void bdev_rbd_fini(void) CONTROL_ONLY;
/* index 0 on; false: no more. */
bool bdev_rbd_cluster_info(unsigned int index, struct bdev_rbd_cluster_info *info) CONTROL_ONLY;

#endif
