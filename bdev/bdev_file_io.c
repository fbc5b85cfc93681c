/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The I/O path of the file backend: each request is one operation on the
 * reactor's io_uring, or a chain of them where the kernel did less than was
 * asked, where the request is larger than one operation can be, where O_DIRECT
 * does not like its buffers, or where zeroes have to be written by hand.
 *
 * A request's state is a file_io in its scratch. `issue` prepares its next
 * operation and is false when the ring is full; `op.done` judges the result
 * and ends the request, issues again, or puts it on the channel's pause list
 * for a millisecond (full ring, EAGAIN). Everything belongs to the channel's
 * reactor, but for discards where io_uring has none (block devices before
 * Linux 6.12): those go to a worker, one at a time per channel, so that a trim
 * of a whole disk does not take all the workers.
 */
#include "bdev/bdev_file.h"

#include "reactor/log.h"

#include <liburing.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

/* What one read or write does at most: the kernel's MAX_RW_COUNT and UIO_MAXIOV. */
#define RW_BYTES_MAX 0x7ffff000u
#define RW_IOVS_MAX 1024u

#define BOUNCE_SIZE (256u << 10)
#define BOUNCE_ALIGN 4096u
#define BOUNCE_MAX 16u		/* per channel; more requests than that wait */

#define PAUSE_US 1000
#define RETRIES_MAX 1000u	/* without any progress: about a second */

/* By hand zeroes are written from ZERO_IOVS views of one buffer: 4 MiB at a time. */
#define ZERO_SIZE (64u << 10)
#define ZERO_IOVS 64u

#ifndef BLOCK_URING_CMD_DISCARD
#define BLOCK_URING_CMD_DISCARD _IO(0x12, 0)
#endif

#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
#define ZERO_RANGE (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE)

struct bounce {
	struct bounce *next;	/* in the free list; the rest of it is data */
};

struct file_channel {
	/* Every request. */
	uint64_t next;		/* where the newest read or write ends */
	int fd;			/* or the registered file's index */
	uint8_t sqe_flags;	/* IOSQE_FIXED_FILE then */
	uint32_t mem_mask, len_mask;
	struct file_bdev *fb;
	/* Seldom. */
	int registered;		/* index or -errno */
	struct bounce *bounces;
	unsigned int bounce_count;
	struct bdev_io *paused_first, **paused_last;
	struct timer pause;
	/* The discard that a worker has, then those behind it. */
	struct bdev_io *discard_first, **discard_last;
	struct job discard_job;
	int discard_status;
};

_Static_assert(sizeof(struct file_channel) <= FILE_CHANNEL_SIZE, "see bdev_file.h");

struct file_io {
	struct uring_op op;
	bool (*issue)(struct bdev_io *io);
	uint64_t done;		/* bytes of io->length dealt with */
	void *bounce;
	struct bdev_io *next;	/* in the pause or the discard list */
	uint32_t retries;
	int mode;		/* fallocate's */
};

_Static_assert(sizeof(struct file_io) <= sizeof(((struct bdev_io *)NULL)->scratch),
	       "struct file_io lives in the scratch of a request");

static unsigned char zeroes[ZERO_SIZE] __attribute__((aligned(BOUNCE_ALIGN)));
static const struct iovec zero_iov[ZERO_IOVS] = {
	[0 ... ZERO_IOVS - 1] = { .iov_base = zeroes, .iov_len = ZERO_SIZE },
};

static inline struct file_io *file_io(struct bdev_io *io)
{
	return (struct file_io *)(void *)io->scratch;
}

static inline struct bdev_io *io_of(struct uring_op *op)
{
	return container_of(container_of(op, struct file_io, op), struct bdev_io, scratch);
}

static inline struct file_channel *file_channel(struct bdev_io *io)
{
	return bdev_channel_ctx(io->ch);
}

static bool file_cannot(const struct file_channel *fc, uint32_t what)
{
	return atomic_load_explicit(&fc->fb->cannot, memory_order_relaxed) & what;
}

static void file_set_cannot(struct file_channel *fc, uint32_t what)
{
	atomic_fetch_or_explicit(&fc->fb->cannot, what, memory_order_relaxed);
}

/* ------- bounce buffers ------- */

static COLD void *bounce_get(struct file_channel *fc)
{
	struct bounce *b = fc->bounces;
	void *mem;

	if (b) {
		fc->bounces = b->next;
		return b;
	}
	if (fc->bounce_count == BOUNCE_MAX)
		return NULL;
	mem = aligned_alloc(BOUNCE_ALIGN, BOUNCE_SIZE);
	if (mem)
		fc->bounce_count++;
	return mem;
}

static COLD void bounce_put(struct file_channel *fc, void *mem)
{
	struct bounce *b = mem;

	b->next = fc->bounces;
	fc->bounces = b;
}

/* ------- ends, pauses ------- */

REACTOR_ONLY static void file_end(struct bdev_io *io, int status)
{
	struct file_io *f = file_io(io);

	if (unlikely(f->bounce)) {
		bounce_put(file_channel(io), f->bounce);
		f->bounce = NULL;
	}
	bdev_io_done(io, status);
}

COLD REACTOR_ONLY static void file_pause(struct bdev_io *io)
{
	struct file_channel *fc = file_channel(io);

	file_io(io)->next = NULL;
	if (!fc->paused_first)
		reactor_timer_start(&fc->pause, PAUSE_US);
	*fc->paused_last = io;
	fc->paused_last = &file_io(io)->next;
}

static void file_unpause(struct timer *t)
{
	struct file_channel *fc = container_of(t, struct file_channel, pause);
	struct bdev_io *io = fc->paused_first;

	reactor_assert();
	fc->paused_first = NULL;
	fc->paused_last = &fc->paused_first;
	while (io) {
		struct bdev_io *next = file_io(io)->next;

		if (!file_io(io)->issue(io))
			file_pause(io);
		io = next;
	}
}

/* The next operation of a request under way. */
REACTOR_ONLY static void file_go_on(struct bdev_io *io)
{
	if (unlikely(!file_io(io)->issue(io)))
		file_pause(io);
}

/* True when res only means "not now" and the request was put off. */
COLD REACTOR_ONLY static bool file_put_off(struct bdev_io *io, int res)
{
	if ((res != -EAGAIN && res != -EINTR) || ++file_io(io)->retries > RETRIES_MAX)
		return false;
	file_pause(io);
	return true;
}

/* The first operation of a request: the only place where it may be given back to wait. */
REACTOR_ONLY static inline void file_start(struct bdev_io *io, bool (*issue)(struct bdev_io *),
					   void (*done)(struct uring_op *, int, uint32_t))
{
	struct file_io *f = file_io(io);

	f->op.done = done;
	f->issue = issue;
	f->done = 0;
	f->retries = 0;
	if (likely(issue(io)))
		return;
	if (f->bounce)
		bounce_put(file_channel(io), f->bounce);
	f->bounce = NULL;
	bdev_io_wait(io);
}

static inline void file_sqe_finish(struct bdev_io *io, struct io_uring_sqe *sqe)
{
	sqe->flags |= file_channel(io)->sqe_flags;
	io_uring_sqe_set_data(sqe, &file_io(io)->op);
}

/* ------- read and write ------- */

/* Where byte f->done lies in the list: *skip bytes into the returned element. */
static const struct iovec *iov_at(const struct bdev_io *io, uint64_t at, uint32_t *count,
				  size_t *skip)
{
	const struct iovec *iov = io->iov;
	uint32_t left = io->iovcnt;

	while (left > 1 && at >= iov->iov_len) {
		at -= iov->iov_len;
		iov++;
		left--;
	}
	*count = left;
	*skip = (size_t)at;
	return iov;
}

static COLD void prep_bounced(struct bdev_io *io, struct io_uring_sqe *sqe)
{
	struct file_io *f = file_io(io);
	unsigned int step = (unsigned)MIN(io->length - f->done, (uint64_t)BOUNCE_SIZE);

	if (io->type == BDEV_READ) {
		io_uring_prep_read(sqe, file_channel(io)->fd, f->bounce, step,
				   io->offset + f->done);
		return;
	}
	bdev_iov_to_buf(io->iov, io->iovcnt, f->done, f->bounce, step);
	io_uring_prep_write(sqe, file_channel(io)->fd, f->bounce, step, io->offset + f->done);
}

REACTOR_ONLY static bool rw_issue(struct bdev_io *io)
{
	struct file_channel *fc = file_channel(io);
	struct file_io *f = file_io(io);
	struct io_uring_sqe *sqe = reactor_sqe(&f->op);
	const struct iovec *iov = io->iov;
	uint32_t count = io->iovcnt;
	size_t skip = 0;

	if (unlikely(!sqe))
		return false;
	if (unlikely(f->bounce)) {
		prep_bounced(io, sqe);
		file_sqe_finish(io, sqe);
		return true;
	}
	if (unlikely(f->done))
		iov = iov_at(io, f->done, &count, &skip);
	/* The rest of a buffer goes alone; a single buffer spares the kernel the list. */
	if (count == 1 || skip) {
		unsigned int len = (unsigned)MIN(iov->iov_len - skip, (size_t)RW_BYTES_MAX);
		char *base = (char *)iov->iov_base + skip;

		if (io->type == BDEV_READ)
			io_uring_prep_read(sqe, fc->fd, base, len, io->offset + f->done);
		else
			io_uring_prep_write(sqe, fc->fd, base, len, io->offset + f->done);
	} else {
		count = MIN(count, RW_IOVS_MAX);
		if (io->type == BDEV_READ)
			io_uring_prep_readv(sqe, fc->fd, iov, count, io->offset + f->done);
		else
			io_uring_prep_writev(sqe, fc->fd, iov, count, io->offset + f->done);
	}
	file_sqe_finish(io, sqe);
	return true;
}

/* Everything but a request that was done at one go. */
COLD REACTOR_ONLY static void rw_done_slow(struct bdev_io *io, int res)
{
	static struct log_limit limit;
	struct file_channel *fc = file_channel(io);
	struct file_io *f = file_io(io);
	uint32_t step;

	if (res < 0) {
		if (!file_put_off(io, res))
			file_end(io, res);
		return;
	}
	if (res == 0 && io->type == BDEV_READ) {
		log_limited(LOG_ERROR, &limit, "%s: ends at %llu, inside the bdev",
			    fc->fb->opts.filename, (unsigned long long)(io->offset + f->done));
		file_end(io, -EIO);
		return;
	}
	/* Where O_DIRECT stopped inside a block, that block is done again. */
	step = (uint32_t)res & ~fc->len_mask;
	if (step == 0) {
		if (file_put_off(io, -EAGAIN))
			return;
		file_end(io, -EIO);
		return;
	}
	if (f->bounce && io->type == BDEV_READ)
		bdev_buf_to_iov(f->bounce, io->iov, io->iovcnt, f->done, step);
	f->done += step;
	f->retries = 0;
	if (f->done >= io->length)
		file_end(io, 0);
	else
		file_go_on(io);
}

static void rw_done(struct uring_op *op, int res, uint32_t cqe_flags)
{
	struct bdev_io *io = io_of(op);

	(void)cqe_flags;
	reactor_assert();
	/* done is 0 here: after a first short operation the sum is never res alone. */
	if (likely(res >= 0 && (uint64_t)res == io->length && !file_io(io)->bounce))
		bdev_io_done(io, 0);
	else
		rw_done_slow(io, res);
}

static inline bool rw_aligned(const struct bdev_io *io, const struct file_channel *fc)
{
	uintptr_t bases = 0;
	size_t lens = 0;

	for (uint32_t i = 0; i < io->iovcnt; i++) {
		bases |= (uintptr_t)io->iov[i].iov_base;
		lens |= io->iov[i].iov_len;
	}
	return !((bases & fc->mem_mask) | (lens & fc->len_mask));
}

REACTOR_ONLY static void rw_start(struct bdev_io *io)
{
	struct file_channel *fc = file_channel(io);
	struct file_io *f = file_io(io);

	f->bounce = NULL;
	/* The kernel merges what is adjacent and comes in one batch: keep that together. */
	if (io->offset != fc->next)
		reactor_submit_early();
	fc->next = io->offset + io->length;
	if (unlikely(!rw_aligned(io, fc))) {
		f->bounce = bounce_get(fc);
		if (!f->bounce) {
			/* Without any buffer in use none would ever come back. */
			if (fc->bounce_count)
				bdev_io_wait(io);
			else
				bdev_io_done_later(io, -ENOMEM);
			return;
		}
	}
	file_start(io, rw_issue, rw_done);
}

/* ------- flush ------- */

REACTOR_ONLY static bool flush_issue(struct bdev_io *io)
{
	struct io_uring_sqe *sqe = reactor_sqe(&file_io(io)->op);

	if (!sqe)
		return false;
	io_uring_prep_fsync(sqe, file_channel(io)->fd, IORING_FSYNC_DATASYNC);
	file_sqe_finish(io, sqe);
	return true;
}

static void flush_done(struct uring_op *op, int res, uint32_t cqe_flags)
{
	struct bdev_io *io = io_of(op);

	(void)cqe_flags;
	reactor_assert();
	if (unlikely(res < 0) && file_put_off(io, res))
		return;
	file_end(io, MIN(res, 0));
}

/* ------- zeroes by hand ------- */

REACTOR_ONLY static bool zero_issue(struct bdev_io *io)
{
	struct file_channel *fc = file_channel(io);
	struct file_io *f = file_io(io);
	uint64_t left = io->length - f->done;
	struct io_uring_sqe *sqe = reactor_sqe(&f->op);

	if (!sqe)
		return false;
	if (left < ZERO_SIZE)
		io_uring_prep_write(sqe, fc->fd, zeroes, (unsigned)left, io->offset + f->done);
	else
		io_uring_prep_writev(sqe, fc->fd, zero_iov,
				     (unsigned)MIN(left / ZERO_SIZE, (uint64_t)ZERO_IOVS),
				     io->offset + f->done);
	file_sqe_finish(io, sqe);
	return true;
}

/* ------- fallocate: zeroes, and discards of regular files ------- */

REACTOR_ONLY static bool falloc_issue(struct bdev_io *io)
{
	struct file_io *f = file_io(io);
	struct io_uring_sqe *sqe = reactor_sqe(&f->op);

	if (!sqe)
		return false;
	io_uring_prep_fallocate(sqe, file_channel(io)->fd, f->mode, (off_t)io->offset,
				(off_t)io->length);
	file_sqe_finish(io, sqe);
	return true;
}

/* The best that is left for WRITE_ZEROES; 0: write them by hand. */
static int zero_mode(const struct bdev_io *io, const struct file_channel *fc)
{
	if (!(io->flags & BDEV_IO_NO_UNMAP) && !file_cannot(fc, FILE_NO_PUNCH))
		return PUNCH;
	return file_cannot(fc, FILE_NO_ZERO_RANGE) ? 0 : ZERO_RANGE;
}

static void falloc_done(struct uring_op *op, int res, uint32_t cqe_flags)
{
	struct bdev_io *io = io_of(op);
	struct file_io *f = file_io(io);
	struct file_channel *fc = file_channel(io);

	(void)cqe_flags;
	reactor_assert();
	if (likely(res >= 0)) {
		file_end(io, 0);
		return;
	}
	if (file_put_off(io, res))
		return;
	if (res != -EOPNOTSUPP && res != -ENOSYS) {
		file_end(io, res);
		return;
	}
	file_set_cannot(fc, f->mode == PUNCH ? FILE_NO_PUNCH : FILE_NO_ZERO_RANGE);
	if (io->type == BDEV_DISCARD) {
		/* Only a hint: the space stays in use. */
		file_end(io, 0);
		return;
	}
	f->mode = zero_mode(io, fc);
	if (f->mode == 0) {
		f->issue = zero_issue;
		f->op.done = rw_done;
	}
	file_go_on(io);
}

REACTOR_ONLY static void zeroes_start(struct bdev_io *io)
{
	struct file_io *f = file_io(io);

	f->mode = zero_mode(io, file_channel(io));
	if (f->mode)
		file_start(io, falloc_issue, falloc_done);
	else
		file_start(io, zero_issue, rw_done);
}

/* ------- discards of block devices ------- */

static void discard_run(struct job *job)
{
	struct file_channel *fc = container_of(job, struct file_channel, discard_job);
	const struct bdev_io *io = fc->discard_first;
	uint64_t range[2] = { io->offset, io->length };

	fc->discard_status = ioctl(fc->fb->fd, BLKDISCARD, range) < 0 ? -errno : 0;
}

/* Back on the reactor; the next one takes the job. */
static void discard_home(struct msg *msg)
{
	struct bdev_io *io = container_of(msg, struct bdev_io, msg);
	struct file_channel *fc = file_channel(io);
	int status = fc->discard_status;

	reactor_assert();
	if (status == -EOPNOTSUPP) {
		file_set_cannot(fc, FILE_NO_DISCARD);
		status = 0;
	}
	fc->discard_first = file_io(io)->next;
	if (fc->discard_first)
		worker_submit(&fc->discard_job);
	else
		fc->discard_last = &fc->discard_first;
	file_end(io, status);
}

static void discard_ran(struct job *job)
{
	struct file_channel *fc = container_of(job, struct file_channel, discard_job);
	struct bdev_io *io = fc->discard_first;

	io->msg.fn = discard_home;
	reactor_post(io->ch->reactor, &io->msg);
}

REACTOR_ONLY static void discard_by_worker(struct bdev_io *io)
{
	struct file_channel *fc = file_channel(io);
	bool first = !fc->discard_first;

	file_io(io)->next = NULL;
	*fc->discard_last = io;
	fc->discard_last = &file_io(io)->next;
	if (first)
		worker_submit(&fc->discard_job);
}

REACTOR_ONLY static bool discard_issue(struct bdev_io *io)
{
	struct io_uring_sqe *sqe = reactor_sqe(&file_io(io)->op);

	if (!sqe)
		return false;
	io_uring_prep_rw(IORING_OP_URING_CMD, sqe, file_channel(io)->fd, NULL, 0, 0);
	sqe->cmd_op = BLOCK_URING_CMD_DISCARD;
	sqe->addr = io->offset;
	sqe->addr3 = io->length;
	file_sqe_finish(io, sqe);
	return true;
}

static void discard_done(struct uring_op *op, int res, uint32_t cqe_flags)
{
	struct bdev_io *io = io_of(op);

	(void)cqe_flags;
	reactor_assert();
	if (res < 0 && file_put_off(io, res))
		return;
	/* An old kernel says one of these; a new one too, and then the ioctl agrees. */
	if (res == -EOPNOTSUPP || res == -EINVAL || res == -ENOSYS) {
		file_set_cannot(file_channel(io), FILE_NO_DISCARD_CMD);
		discard_by_worker(io);
		return;
	}
	file_end(io, MIN(res, 0));
}

REACTOR_ONLY static void discard_start(struct bdev_io *io)
{
	struct file_channel *fc = file_channel(io);

	if (file_cannot(fc, fc->fb->is_block ? FILE_NO_DISCARD : FILE_NO_PUNCH)) {
		bdev_io_done_later(io, 0);
	} else if (!fc->fb->is_block) {
		file_io(io)->mode = PUNCH;
		file_start(io, falloc_issue, falloc_done);
	} else if (file_cannot(fc, FILE_NO_DISCARD_CMD)) {
		discard_by_worker(io);
	} else {
		file_start(io, discard_issue, discard_done);
	}
}

/* ------- entries ------- */

void file_submit(struct bdev_io *io)
{
	reactor_assert();
	if (likely(io->type == BDEV_READ || io->type == BDEV_WRITE)) {
		rw_start(io);
		return;
	}
	file_io(io)->bounce = NULL;
	switch (io->type) {
	case BDEV_FLUSH:
		file_start(io, flush_issue, flush_done);
		break;
	case BDEV_DISCARD:
		discard_start(io);
		break;
	case BDEV_WRITE_ZEROES:
		zeroes_start(io);
		break;
	default:
		bdev_io_done_later(io, -EOPNOTSUPP);
	}
}

int file_channel_open(struct bdev_channel *ch)
{
	struct file_channel *fc = bdev_channel_ctx(ch);

	reactor_assert();
	fc->fb = file_of(ch->bdev);
	fc->mem_mask = fc->fb->mem_mask;
	fc->len_mask = fc->fb->len_mask;
	fc->paused_last = &fc->paused_first;
	fc->pause.fn = file_unpause;
	fc->discard_last = &fc->discard_first;
	fc->discard_job.run = discard_run;
	fc->discard_job.done = discard_ran;
	fc->registered = reactor_file_register(fc->fb->fd);
	fc->fd = fc->registered >= 0 ? fc->registered : fc->fb->fd;
	fc->sqe_flags = fc->registered >= 0 ? IOSQE_FIXED_FILE : 0;
	return 0;
}

void file_channel_close(struct bdev_channel *ch)
{
	struct file_channel *fc = bdev_channel_ctx(ch);

	reactor_assert();
	if (fc->registered >= 0)
		reactor_file_unregister(fc->registered);
	while (fc->bounces) {
		struct bounce *b = fc->bounces;

		fc->bounces = b->next;
		free(b);
	}
}
