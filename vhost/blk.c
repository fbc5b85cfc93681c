/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * virtio-blk, device side (VIRTIO 1.2, section 5.2): from a chain of buffers to
 * requests of the block layer and back to a status byte.
 *
 * Any layout is taken: the first 16 readable bytes are the header, the last
 * writable byte is the status, what is left in between is data, wherever the
 * driver drew its descriptors' borders. The header and the ranges of DISCARD and
 * WRITE_ZEROES are copied once and only the copies are looked at.
 *
 * A chain without a writable byte cannot be answered and breaks the queue. All
 * else that is wrong with a request is answered: UNSUPP for what we do not know,
 * IOERR for the rest.
 */
#include "vhost/vhost_internal.h"

#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <string.h>

#define HEADER_SIZE sizeof(struct virtio_blk_outhdr)
#define BIT(n) (1ull << (n))

/* ------- ending a request ------- */

static uint8_t status_of(int err)
{
	if (likely(err == 0))
		return VIRTIO_BLK_S_OK;
	return err == -EOPNOTSUPP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
}

/* For a migration: what this request has written to guest memory. */
COLD REACTOR_ONLY static void log_written(const struct blk_req *req)
{
	const struct vq *vq = req->vq;

	/* A read that failed may have written anything up to its end. */
	if (req->data_in)
		dirty_log_iov(&vq->log, vq->vring.mem, req->chain.iov + req->chain.out, req->chain.in);
	dirty_log_hva(&vq->log, vq->vring.mem, req->status, 1);
}

REACTOR_ONLY static void blk_finish(struct blk_req *req, uint8_t status)
{
	if (likely(!req->vq->detached)) {
		/* Atomic: nothing keeps a guest from naming one byte in two requests. */
		__atomic_store_n(req->status, status, __ATOMIC_RELAXED);
		if (unlikely(req->vq->vring.log))
			log_written(req);
	}
	vq_complete(req->vq, req);
}

REACTOR_ONLY static void range_submit(struct blk_req *req)
{
	const struct blk_range *range = &req->ranges[req->range_next++];

	req->io.offset = range->offset;
	req->io.length = range->length;
	bdev_submit(&req->io);
}

static void blk_done(struct bdev_io *io, int err)
{
	struct blk_req *req = container_of(io, struct blk_req, io);

	reactor_assert();
	if (likely(err == 0)) {
		if (io->type == BDEV_READ) {
			/* Counted in 32 bits, however much was read. */
			req->used_len = (uint32_t)MIN(io->length + 1, (uint64_t)UINT32_MAX);
		} else if (req->range_next < req->range_count && !req->vq->detached) {
			range_submit(req);
			return;
		} else if (req->settling && !req->vq->detached) {
			req->settling = false;
			io->type = BDEV_FLUSH;
			io->offset = io->length = 0;
			bdev_submit(io);
			return;
		}
	} else if (err == -EINVAL) {
		/* Refused, so nothing was read; its buffers may be of any size. */
		req->data_in = false;
	}
	blk_finish(req, status_of(err));
}

/* ------- starting one ------- */

/* A header that is not one whole buffer: cut it off the front of the readable ones. */
COLD static bool take_header_slow(struct vring_chain *c, struct virtio_blk_outhdr *hdr)
{
	struct iovec *iov = c->iov;
	uint8_t *to = (uint8_t *)hdr;
	size_t want = HEADER_SIZE;

	if (c->out_bytes < want)
		return false;
	for (;;) {
		size_t n = MIN(iov->iov_len, want);

		memcpy(to, iov->iov_base, n);
		to += n;
		want -= n;
		iov->iov_base = (uint8_t *)iov->iov_base + n;
		iov->iov_len -= n;
		if (iov->iov_len == 0) {
			iov++;
			c->out--;
		}
		if (want == 0)
			break;
	}
	c->out_bytes -= HEADER_SIZE;
	c->iov = iov;
	return true;
}

static inline bool take_header(struct vring_chain *c, struct virtio_blk_outhdr *hdr)
{
	if (unlikely(c->out == 0 || c->iov->iov_len != HEADER_SIZE))
		return take_header_slow(c, hdr);
	memcpy(hdr, c->iov->iov_base, HEADER_SIZE);
	c->out_bytes -= HEADER_SIZE;
	c->iov++;
	c->out--;
	return true;
}

/* Take the status byte off the end of the writable buffers. */
static uint8_t *take_status(struct vring_chain *c)
{
	struct iovec *last = &c->iov[c->out + c->in - 1];

	c->in_bytes--;
	last->iov_len--;
	if (last->iov_len == 0)
		c->in--;
	return (uint8_t *)last->iov_base + last->iov_len;
}

REACTOR_ONLY static void start_rw(struct vq *vq, struct blk_req *req, bool write, uint64_t sector)
{
	struct vring_chain *c = &req->chain;
	struct bdev_io *io = &req->io;

	if (unlikely(!sectors_to_bytes(sector, &io->offset) || !vq->ch || (write && vq->readonly))) {
		blk_finish(req, VIRTIO_BLK_S_IOERR);
		return;
	}
	if (write) {
		io->type = BDEV_WRITE;
		io->iov = c->iov;
		io->iovcnt = c->out;
		io->length = c->out_bytes;
		req->settling = vq->writethrough && vq->write_cache;
	} else {
		io->type = BDEV_READ;
		io->iov = c->iov + c->out;
		io->iovcnt = c->in;
		io->length = c->in_bytes;
		req->data_in = true;
	}
	io->flags = 0;
	bdev_submit(io);
}

/* 0 and one range, or the status to answer. */
static uint8_t check_range(const struct vq *vq, const struct virtio_blk_discard_write_zeroes *seg,
			   bool zeroes, struct blk_range *range)
{
	const struct bdev *bdev = bdev_channel_bdev(vq->ch);
	uint32_t known = zeroes ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;

	if (seg->flags & ~known)
		return VIRTIO_BLK_S_UNSUPP;
	if (!sectors_to_bytes(seg->sector, &range->offset) ||
	    !range_ok(range->offset, (uint64_t)seg->num_sectors << 9, bdev_size(bdev)))
		return VIRTIO_BLK_S_IOERR;
	range->length = (uint64_t)seg->num_sectors << 9;
	if ((range->offset | range->length) & (bdev->block_size - 1))
		return VIRTIO_BLK_S_IOERR;
	return VIRTIO_BLK_S_OK;
}

/*
 * All ranges are checked before the first is carried out; then one after
 * another. A WRITE_ZEROES carries one unmap flag for all: ranges that differ in
 * it are refused, as no driver sends them.
 */
REACTOR_ONLY static uint8_t start_ranges(struct vq *vq, struct blk_req *req, bool zeroes)
{
	struct virtio_blk_discard_write_zeroes segs[BLK_RANGES_MAX];
	struct blk_range ranges[BLK_RANGES_MAX];
	uint64_t bytes = req->chain.out_bytes;
	unsigned int count = 0, n = (unsigned int)(bytes / sizeof(segs[0]));

	if (vq->readonly || bytes == 0 || bytes > sizeof(segs) || bytes % sizeof(segs[0]))
		return VIRTIO_BLK_S_IOERR;
	bdev_iov_to_buf(req->chain.iov, req->chain.out, 0, segs, bytes);
	for (unsigned int i = 0; i < n; i++) {
		uint8_t status = check_range(vq, &segs[i], zeroes, &ranges[count]);

		if (status == VIRTIO_BLK_S_OK && segs[i].flags != segs[0].flags)
			status = VIRTIO_BLK_S_UNSUPP;
		if (status != VIRTIO_BLK_S_OK)
			return status;
		if (ranges[count].length > 0)
			count++;
	}
	/* The buffers have been read: their iovecs' room now holds the ranges. */
	vq_release_iov(vq, req);
	memcpy(req->ranges, ranges, count * sizeof(ranges[0]));
	req->range_count = (uint8_t)count;
	if (count == 0) {
		blk_finish(req, VIRTIO_BLK_S_OK);
		return VIRTIO_BLK_S_OK;
	}
	req->io.type = zeroes ? BDEV_WRITE_ZEROES : BDEV_DISCARD;
	req->io.flags = zeroes && !(segs[0].flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) ?
		BDEV_IO_NO_UNMAP : 0;
	req->settling = vq->writethrough && vq->write_cache;
	range_submit(req);
	return VIRTIO_BLK_S_OK;
}

COLD REACTOR_ONLY static void log_id(const struct blk_req *req, uint64_t len)
{
	const struct iovec *iov = req->chain.iov + req->chain.out;

	for (; len > 0; iov++) {
		uint64_t n = MIN(len, (uint64_t)iov->iov_len);

		dirty_log_hva(&req->vq->log, req->vq->vring.mem, iov->iov_base, n);
		len -= n;
	}
}

REACTOR_ONLY static void get_id(struct vq *vq, struct blk_req *req)
{
	char id[VIRTIO_BLK_ID_BYTES] = { 0 };
	size_t len = (size_t)MIN(req->chain.in_bytes, (uint64_t)sizeof(id));

	if (!vq->ch || len == 0) {
		blk_finish(req, VIRTIO_BLK_S_IOERR);
		return;
	}
	/* A longer name is cut; 20 bytes need no NUL. */
	memcpy(id, bdev_channel_bdev(vq->ch)->name,
	       strnlen(bdev_channel_bdev(vq->ch)->name, sizeof(id)));
	bdev_buf_to_iov(id, req->chain.iov + req->chain.out, req->chain.in, 0, len);
	req->used_len = (uint32_t)len + 1;
	if (unlikely(vq->vring.log))
		log_id(req, len);
	blk_finish(req, VIRTIO_BLK_S_OK);
}

REACTOR_ONLY static void start_flush(struct vq *vq, struct blk_req *req)
{
	if (!vq->ch) {
		blk_finish(req, VIRTIO_BLK_S_IOERR);
		return;
	}
	req->io.type = BDEV_FLUSH;
	req->io.flags = 0;
	req->io.offset = req->io.length = 0;
	bdev_submit(&req->io);
}

COLD REACTOR_ONLY static void start_other(struct vq *vq, struct blk_req *req, uint32_t type)
{
	bool zeroes = type == VIRTIO_BLK_T_WRITE_ZEROES;
	uint8_t status = VIRTIO_BLK_S_UNSUPP;

	switch (type) {
	case VIRTIO_BLK_T_FLUSH:
		start_flush(vq, req);
		return;
	case VIRTIO_BLK_T_GET_ID:
		get_id(vq, req);
		return;
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		if (!vq->ch)
			status = VIRTIO_BLK_S_IOERR;
		else if (vq->features & BIT(zeroes ? VIRTIO_BLK_F_WRITE_ZEROES :
						     VIRTIO_BLK_F_DISCARD))
			status = start_ranges(vq, req, zeroes);
		break;
	default:
		break;
	}
	if (status != VIRTIO_BLK_S_OK)
		blk_finish(req, status);
}

COLD REACTOR_ONLY static bool is_present(const struct vq *vq, const struct vring_chain *c)
{
	return pages_present_iov(vq->vring.mem, c->iov, c->out + c->in, vq->vring.fetch);
}

enum vring_fault blk_map(struct vq *vq, struct blk_req *req, const struct vring_head *head)
{
	struct vring_chain *c = &req->chain;
	enum vring_fault fault;

	c->iov = req->inline_iov;
	c->cap = BLK_INLINE_IOVS;
	if (vq->vring.packed)
		fault = packed_map(&vq->vring, head, c);
	else
		fault = vring_map(&vq->vring, head->id, c);
	if (unlikely(fault))
		return fault;
	if (unlikely(c->in == 0))
		return VRING_NO_STATUS;
	if (unlikely(vring_chain_too_long(c)))
		return VRING_LOOP;
	if (unlikely(vq->vring.fetch) && !is_present(vq, c))
		return VRING_MISSING;
	req->status = take_status(c);
	prefetch_write(req->status);
	return VRING_OK;
}

void blk_start(struct vq *vq, struct blk_req *req)
{
	struct virtio_blk_outhdr hdr;

	req->used_len = 1;
	req->settling = req->data_in = false;
	req->range_next = req->range_count = 0;
	req->io.done = blk_done;
	if (unlikely(!take_header(&req->chain, &hdr))) {
		blk_finish(req, VIRTIO_BLK_S_IOERR);
		return;
	}
	/* The barrier bit of long ago is not offered; its drivers are gone. */
	if (likely(hdr.type == VIRTIO_BLK_T_IN))
		start_rw(vq, req, false, hdr.sector);
	else if (likely(hdr.type == VIRTIO_BLK_T_OUT))
		start_rw(vq, req, true, hdr.sector);
	else
		start_other(vq, req, hdr.type);
}

/* ------- features and configuration ------- */

uint64_t blk_features(const struct vhost_controller *c)
{
	const struct bdev *bdev = c->desc.bdev;
	uint64_t features = BIT(VIRTIO_F_VERSION_1) | BIT(VRING_F_INDIRECT_DESC) |
		BIT(VRING_F_EVENT_IDX) | BIT(VHOST_F_LOG_ALL) |
		BIT(VIRTIO_F_ANY_LAYOUT) |
		BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_BLK_SIZE) |
		BIT(VIRTIO_BLK_F_TOPOLOGY) | BIT(VIRTIO_BLK_F_MQ) | BIT(VIRTIO_BLK_F_FLUSH) |
		BIT(VIRTIO_BLK_F_CONFIG_WCE);

	if (c->packed_ring)
		features |= BIT(VRING_F_PACKED);
	if (c->readonly || (bdev && bdev->readonly))
		return features | BIT(VIRTIO_BLK_F_RO);
	if (bdev && bdev_supports(bdev, BDEV_DISCARD))
		features |= BIT(VIRTIO_BLK_F_DISCARD);
	if (bdev && bdev_supports(bdev, BDEV_WRITE_ZEROES))
		features |= BIT(VIRTIO_BLK_F_WRITE_ZEROES);
	return features;
}

bool blk_writeback_default(const struct vhost_controller *c)
{
	return c->desc.bdev && c->desc.bdev->write_cache;
}

bool blk_is_writethrough(uint64_t features, bool writeback)
{
	if (features & BIT(VIRTIO_BLK_F_CONFIG_WCE))
		return !writeback;
	/* A driver that cannot flush must find its writes durable. */
	return !(features & BIT(VIRTIO_BLK_F_FLUSH));
}

bool blk_config_write(uint32_t offset, uint32_t size, const uint8_t *data, bool *writeback)
{
	if (offset != offsetof(struct virtio_blk_config, wce) || size != 1 || data[0] > 1)
		return false;
	*writeback = data[0];
	return true;
}

void blk_config(const struct vhost_controller *c, bool writeback, uint8_t config[VHOST_CONFIG_SIZE])
{
	const struct bdev *bdev = c->desc.bdev;
	struct virtio_blk_config cfg = {
		.seg_max = BLK_SEG_MAX,
		.blk_size = 512,
		.wce = writeback,
		.num_queues = VHOST_VQS_MAX,
		.max_discard_sectors = UINT32_MAX,
		.max_discard_seg = BLK_RANGES_MAX,
		.max_write_zeroes_sectors = UINT32_MAX,
		.max_write_zeroes_seg = BLK_RANGES_MAX,
		.write_zeroes_may_unmap = 1,
	};

	if (bdev && !c->bdev_gone) {
		uint32_t block = bdev->block_size;
		uint32_t physical = MAX(bdev->physical_block_size, block) / block;

		cfg.capacity = bdev_size(bdev) >> 9;
		cfg.blk_size = block;
		cfg.physical_block_exp = (uint8_t)__builtin_ctz(physical);
		cfg.min_io_size = (uint16_t)MIN(physical, (uint32_t)UINT16_MAX);
		cfg.opt_io_size = bdev->optimal_io_size / block;
		cfg.discard_sector_alignment = MAX(bdev->discard_granularity, block) >> 9;
	}
	memset(config, 0, VHOST_CONFIG_SIZE);
	memcpy(config, &cfg, sizeof(cfg));
}
