/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The block layer, as a backend sees it. null is a complete example.
 *
 * A backend embeds struct bdev as `bdev` in its own struct, fills in the
 * geometry and registers it. Its per-reactor state follows struct bdev_channel:
 * ops->channel_size bytes, zeroed.
 */
#ifndef SPINDLE_BDEV_BACKEND_H
#define SPINDLE_BDEV_BACKEND_H

#include "bdev/bdev.h"
#include "reactor/control.h"
#include "reactor/reactor.h"

struct bdev_ops {
	const char *module;		/* "null", "aio", ... */
	const char *product_name;	/* as bdev_get_bdevs reports it */
	size_t channel_size;		/* bytes behind bdev_channel_ctx() */
	bool own_cache;			/* write_cache is memory of this process, not the system's */
	bool own_storage;		/* no other process gets at it */

	/*
	 * On control, before channel_open is posted: what channel_open may not do
	 * (a channel of another bdev). ch->bdev and ch->reactor are set. -errno:
	 * there is no channel; -EAGAIN: what it takes is under way, and ends in
	 * bdev_ready() if it succeeds. NULL: nothing.
	 */
	int (*channel_prepare)(struct bdev_channel *ch);
	/* On control, after channel_close has run on the reactor. NULL: nothing. */
	void (*channel_unprepare)(struct bdev_channel *ch);
	/* On the reactor. On an error every request of the channel gets it. NULL: nothing. */
	int (*channel_open)(struct bdev_channel *ch);
	/* On the reactor, nothing in flight. NULL: nothing. */
	void (*channel_close)(struct bdev_channel *ch);
	/*
	 * On the reactor: start io, which has been checked (range, alignment,
	 * read-only, type supported, length not 0 but for FLUSH). Ends in exactly
	 * one bdev_io_done() or bdev_io_done_later(), the former never from
	 * inside submit. Out of resources: bdev_io_wait(io).
	 */
	void (*submit)(struct bdev_io *io);
	/* On the reactor: end what is held back, with -ECANCELED. NULL: nothing is. */
	void (*cancel)(struct bdev_channel *ch);
	/* On control: as bdev_keeps_order() and bdev_settles(). NULL: own_storage; no. */
	bool (*keeps_order)(struct bdev *bdev);
	bool (*settles)(struct bdev *bdev);
	/* On control: as bdev_handover(). NULL: 0. */
	int (*handover)(struct bdev *bdev, int fds[BDEV_HANDOVER_FDS]);
	/* On control: as bdev_handover_busy(). NULL: never. */
	bool (*handover_busy)(struct bdev *bdev);
	/* On control: a handover is over, and the rings have started. NULL: nothing. */
	void (*handover_end)(struct bdev *bdev);
	/* On control: no channel is left. Ends in bdev_destroyed(), perhaps later. */
	void (*destroy)(struct bdev *bdev);
};

/* Per (bdev, reactor). Owned by the reactor between channel_open and _close. */
struct bdev_channel {
	struct bdev *bdev;
	const struct bdev_ops *ops;	/* copies of bdev's, for the I/O path */
	struct reactor *reactor;
	int error;			/* channel_open's */
	uint32_t align_mask;		/* block_size - 1 */
	uint32_t allowed;		/* 1 << enum bdev_io_type: supported and not read-only */
	counter64 inflight;
	struct defer complete;		/* runs the done_later list */
	struct bdev_io *done_first, **done_last;
	struct bdev_io *wait_first, **wait_last;
	struct defer retry;		/* resubmits the wait list in the next pass */
	/* control's */
	unsigned int refs;
	struct list closing;		/* in bdev's, once put */
	bool forget;			/* statistics were reset while it was closing */
	struct msg open_msg;		/* apart: a put may follow before it has arrived */
	struct msg msg;			/* close, then gone */
	struct msg cancel_msg;
	CACHE_ALIGNED struct bdev_stats stats;
	CACHE_ALIGNED unsigned char ctx[];
};

static inline void *bdev_channel_ctx(struct bdev_channel *ch)
{
	return ch->ctx;
}

/*
 * Name (default: prefix + number when name is NULL, e.g. "Malloc"), uuid
 * (random when NULL), checks of name, uuid, block_size and size. 0, -EEXIST,
 * -EINVAL; reason gets a sentence. Frees nothing.
 */
int bdev_register(struct bdev *bdev, const char *name, const char *prefix, const char *uuid,
		  char reason[BDEV_REASON_MAX]) CONTROL_ONLY;
/* Only the name part of it, for a backend that wants to fail before it works. */
int bdev_check_name(const char *name, char reason[BDEV_REASON_MAX]) CONTROL_ONLY;
/* destroy is over: call this, then free the struct the bdev is embedded in. */
void bdev_destroyed(struct bdev *bdev) CONTROL_ONLY;
/*
 * In create: the fds that a predecessor left for the bdev of this name (NULL:
 * none), the caller's from here on; 0: there are none, it is made anew. How many
 * and what they are is as the same backend's handover gave them, once checked.
 */
unsigned int bdev_adopt_take(const char *name, int fds[BDEV_HANDOVER_FDS]) CONTROL_ONLY;
/*
 * Any thread. Whether another process may go on with what this one has in fds
 * that were handed over: close them, but undo nothing that goes beyond the fd.
 */
bool bdev_is_shared(void);
/* Tell the users that channel_prepare will not say -EAGAIN now. */
void bdev_ready(struct bdev *bdev) CONTROL_ONLY;
/* Publish a new size, tell the users and note it. */
void bdev_resized(struct bdev *bdev, uint64_t size) CONTROL_ONLY;
/*
 * Note what happened to a registered bdev; nothing once it is being removed.
 * For backends: STALLED, RECOVERED, FENCED. The block layer notes the others.
 */
void bdev_note(const struct bdev *bdev, enum bdev_note_type type) CONTROL_ONLY;

/* Fill in *res and call its fn. fmt NULL: the reason is strerror's text. */
void bdev_result_done(struct bdev_result *res, int status, struct bdev *bdev, const char *fmt, ...)
	PRINTF_LIKE(4, 5) CONTROL_ONLY;

/* The end of a request: statistics, then the submitter's done. Home reactor only. */
void bdev_io_done(struct bdev_io *io, int status) REACTOR_ONLY;
/* The same, at the end of this pass: for use inside submit. */
void bdev_io_done_later(struct bdev_io *io, int status) REACTOR_ONLY;
/* From a foreign thread: sends io home by its msg, then bdev_io_done there. */
void bdev_io_done_foreign(struct bdev_io *io, int status);
/* Inside submit: no resources now; submit is called again with it in the next pass. */
void bdev_io_wait(struct bdev_io *io) REACTOR_ONLY;

#endif
