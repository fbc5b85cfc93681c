/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What bdev_file.c (creation and rescan), bdev_file_io.c (the I/O path),
 * bdev_file_open.c (the path and what lies behind it) and bdev_file_lock.c
 * (image locks) share; nobody else includes it.
 */
#ifndef SPINDLE_BDEV_FILE_H
#define SPINDLE_BDEV_FILE_H

#include "bdev/bdev_backend.h"
#include "reactor/worker.h"

/* What the kernel turned out not to do for this file; bits of file_bdev.cannot. */
#define FILE_NO_PUNCH 0x1u	/* FALLOC_FL_PUNCH_HOLE */
#define FILE_NO_ZERO_RANGE 0x2u	/* FALLOC_FL_ZERO_RANGE */
#define FILE_NO_DISCARD_CMD 0x4u /* BLOCK_URING_CMD_DISCARD, which is of Linux 6.12 */
#define FILE_NO_DISCARD 0x8u	/* any discard */

/*
 * Owned by the control thread, lent to one worker at a time by `job`. What the
 * reactors read does not change between registration and destruction, but for
 * `cannot`, which any of them sets.
 */
struct file_bdev {
	struct bdev bdev;
	struct bdev_file_opts opts;	/* the strings are ours */
	int fd;				/* until file_open(): a predecessor's, or -1 */
	bool is_block;			/* a block device; else a regular file */
	bool local;			/* nobody but this host gets at it: locks keep all others off */
	bool direct;			/* O_DIRECT: the masks below hold */
	uint32_t mem_mask;		/* of buffer addresses */
	uint32_t len_mask;		/* of offsets and of each buffer's length */
	_Atomic uint32_t cannot;
	struct job job;
	struct bdev_result *res;	/* whom creation answers */
	int status;
	char reason[BDEV_REASON_MAX];
	bool quick;			/* do not look for who holds a lock */
	long lock_holder;	/* of a refused lock: process id, 0: nobody is seen to hold it */
	/* With lock_in_use: see bdev_file_lock.c. */
	unsigned int users;		/* channels */
	struct job lock_job;		/* takes the locks or drops them; one at a time */
	bool lock_busy, locked;
	int lock_status;		/* of the last time they were taken */
	unsigned int rescans;		/* under way; destruction waits for them */
	bool dying;
};

static inline struct file_bdev *file_of(struct bdev *bdev)
{
	return container_of(bdev, struct file_bdev, bdev);
}

/*
 * The path, or fb->fd if a predecessor left that, and the rest of the geometry;
 * worker only. 0 or -errno with fb->reason; fb->fd is -1 then.
 */
int file_open(struct file_bdev *fb);
/*
 * Drops the locks at once, whoever else still refers to the file, unless that is
 * another process that goes on with them (bdev_is_shared()). Blocks.
 */
void file_close(struct file_bdev *fb);
/* The size now, rounded down to whole blocks. Blocks. */
int file_read_size(const struct file_bdev *fb, uint64_t *size);
/* A sentence about this file into fb->reason; returns status. */
int file_fail(struct file_bdev *fb, int status, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Take and test the image locks on fb->fd. 0, -EBUSY or -errno, with fb->reason. Blocks. */
int file_lock(struct file_bdev *fb);
void file_unlock(int fd);
/* With lock_in_use: the locks while there is a channel. Control. -EAGAIN, -EBUSY, -errno. */
int file_channel_prepare(struct bdev_channel *ch);
void file_channel_unprepare(struct bdev_channel *ch);
bool file_handover_busy(struct bdev *bdev);
/* Whether those keep everybody off, or the ones that are held all the time do. */
bool file_keeps_order(struct bdev *bdev);
/* Locks that were kept for another process, and that nobody uses now. */
void file_handover_end(struct bdev *bdev);
/* The bdev is to go, and waited for the locks. */
void file_destroy(struct bdev *bdev);

/* The I/O path's entries of struct bdev_ops, and the room its channel takes. */
#define FILE_CHANNEL_SIZE 256
int file_channel_open(struct bdev_channel *ch);
void file_channel_close(struct bdev_channel *ch);
void file_submit(struct bdev_io *io);

#endif
