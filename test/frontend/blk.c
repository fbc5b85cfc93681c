/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * virtio-blk requests over a virtqueue.
 *
 * A request is header (16 bytes, to the device), data, status (1 byte, from the device). Each
 * head owns 64 bytes of scratch in guest memory for its header and status; data lies where the
 * caller says. FE_HOW_* bend the layout in the ways the specification allows: a header in pieces,
 * header and data in one descriptor, a status byte at the tail of a data descriptor.
 *
 * The one-call helpers copy through a bounce buffer of the queue, which grows as needed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <linux/virtio_blk.h>

#include "frontend.h"

#define SLOT_BYTES 64u
#define STATUS_AT 16u
#define HEADER_BYTES 16u

static bool device_writes(uint32_t type)
{
	return type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
}

static void write_header(void *at, uint32_t type, uint64_t sector)
{
	struct virtio_blk_outhdr hdr = { .type = type, .ioprio = 0, .sector = sector };

	memcpy(at, &hdr, sizeof(hdr));
}

static unsigned int lay_header(struct fe_seg *segs, uint64_t gpa, uint32_t how)
{
	static const uint32_t pieces[] = { 1, 7, 8 };

	if (!(how & FE_HOW_HDR_PIECES)) {
		segs[0] = (struct fe_seg){ gpa, HEADER_BYTES, 0 };
		return 1;
	}
	for (unsigned int i = 0; i < 3; i++) {
		segs[i] = (struct fe_seg){ gpa, pieces[i], 0 };
		gpa += pieces[i];
	}
	return 3;
}

/* The request with its data given as segments whose direction stands already. */
static int submit(struct fe_vq *vq, uint32_t type, uint64_t sector, const struct fe_seg *data,
		  unsigned int num, uint32_t how, uint64_t cookie)
{
	uint64_t scratch = vq->scratch_gpa + (uint64_t)SLOT_BYTES * vq->free_head;
	struct fe_seg small[8];
	struct fe_seg *segs = num + 4 > 8 ? calloc(num + 4, sizeof(*segs)) : small;
	uint64_t status = scratch + STATUS_AT;
	uint8_t header[HEADER_BYTES];
	unsigned int n = 0;
	int rc = -ENOSPC;

	if (!segs)
		return -ENOMEM;
	if (vq->num_free == 0)
		goto out;
	write_header(header, type, sector);
	if ((how & FE_HOW_HDR_JOINED) && num > 0) {
		rc = fe_mem_write(vq->fe, data[0].gpa - HEADER_BYTES, header, HEADER_BYTES);
	} else {
		rc = fe_mem_write(vq->fe, scratch, header, HEADER_BYTES);
		n = lay_header(segs, scratch, how);
	}
	if (rc < 0)
		goto out;
	if (num > 0)
		memcpy(&segs[n], data, num * sizeof(*segs));
	if ((how & FE_HOW_HDR_JOINED) && num > 0) {
		segs[0].gpa -= HEADER_BYTES;
		segs[0].len += HEADER_BYTES;
	}
	n += num;
	if ((how & FE_HOW_STATUS_TAIL) && num > 0) {
		status = segs[n - 1].gpa + segs[n - 1].len;
		segs[n - 1].len++;
	} else {
		segs[n++] = (struct fe_seg){ status, 1, FE_SEG_WRITE };
	}
	rc = fe_submit_chain(vq, segs, n, FE_NO_GPA, status, how, cookie);
out:
	if (segs != small)
		free(segs);
	return rc;
}

int fe_submit(struct fe_vq *vq, uint32_t type, uint64_t sector, const struct fe_seg *data,
	      unsigned int num, uint32_t how, uint64_t cookie)
{
	struct fe_seg small[8] = { { 0, 0, 0 } };
	struct fe_seg *segs = num > 8 ? calloc(num, sizeof(*segs)) : small;
	int rc;

	if (!segs)
		return -ENOMEM;
	for (unsigned int i = 0; i < num; i++)
		segs[i] = (struct fe_seg){ data[i].gpa, data[i].len,
					   device_writes(type) ? FE_SEG_WRITE : 0 };
	rc = submit(vq, type, sector, segs, num, how, cookie);
	if (segs != small)
		free(segs);
	return rc;
}

/* 16 bytes of room before the buffer and after it, for joined headers and status tails. */
static uint64_t bounce(struct fe_vq *vq, uint32_t len)
{
	uint64_t gpa;

	if (vq->bounce_gpa != FE_NO_GPA && vq->bounce_len >= len)
		return vq->bounce_gpa;
	gpa = fe_alloc(vq->fe, vq->fe->opts.data_region, (uint64_t)len + 4096 + HEADER_BYTES, 4096);
	if (gpa == FE_NO_GPA)
		return FE_NO_GPA;
	vq->bounce_gpa = gpa + 4096;
	vq->bounce_len = len;
	return vq->bounce_gpa;
}

/* Cut [gpa, gpa + len) into segments of opts.seg_size; returns how many were written. */
static unsigned int cut(const struct fe *fe, uint64_t gpa, uint32_t len, uint32_t flags,
			struct fe_seg *segs)
{
	uint32_t size = fe->opts.seg_size ? fe->opts.seg_size : len;
	unsigned int n = 0;

	while (len > 0) {
		uint32_t piece = len < size ? len : size;

		segs[n++] = (struct fe_seg){ gpa, piece, flags };
		gpa += piece;
		len -= piece;
	}
	return n;
}

static unsigned int pieces_of(const struct fe *fe, uint32_t len)
{
	uint32_t size = fe->opts.seg_size ? fe->opts.seg_size : (len ? len : 1);

	return len / size + (len % size != 0);
}

static int await(struct fe_vq *vq, int head, int timeout_ms)
{
	uint64_t deadline = fe_now_ns() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * 1000000u;
	struct fe_completion done;

	for (;;) {
		uint64_t now = fe_now_ns();
		int left = now < deadline ? (int)((deadline - now) / 1000000u) : 0;
		int rc = fe_wait(vq, &done, 1, left);

		if (rc < 0)
			return rc;
		/* One that an earlier call gave up on may come late: not ours. */
		if (done.head == (uint32_t)head)
			return done.status;
	}
}

int fe_request(struct fe_vq *vq, uint32_t type, uint64_t sector, const void *out, uint32_t out_len,
	       void *in, uint32_t in_len, uint32_t how, int timeout_ms)
{
	struct fe *fe = vq->fe;
	unsigned int num = pieces_of(fe, out_len) + pieces_of(fe, in_len);
	struct fe_seg *segs = calloc(num + 1, sizeof(*segs));
	uint64_t at = 0;
	int rc = 0;

	if (!segs)
		return -ENOMEM;
	if (out_len + in_len > 0) {
		at = bounce(vq, out_len + in_len);
		if (at == FE_NO_GPA)
			rc = -ENOSPC;
		else
			rc = fe_mem_write(fe, at, out, out_len);
	}
	if (rc < 0)
		goto done;
	num = cut(fe, at, out_len, 0, segs);
	num += cut(fe, at + out_len, in_len, FE_SEG_WRITE, segs + num);
	rc = submit(vq, type, sector, segs, num, how, 0);
	if (rc >= 0)
		rc = await(vq, rc, timeout_ms);
	if (rc == -ETIMEDOUT)
		vq->bounce_gpa = FE_NO_GPA;	/* the device may still use it */
	if (rc >= 0 && in_len > 0)
		fe_mem_read(fe, at + out_len, in, in_len);
done:
	free(segs);
	return rc;
}

int fe_rw(struct fe_vq *vq, bool write, uint64_t sector, void *buf, uint32_t len, int timeout_ms)
{
	if (write)
		return fe_request(vq, VIRTIO_BLK_T_OUT, sector, buf, len, NULL, 0, 0, timeout_ms);
	return fe_request(vq, VIRTIO_BLK_T_IN, sector, NULL, 0, buf, len, 0, timeout_ms);
}

int fe_flush(struct fe_vq *vq, int timeout_ms)
{
	return fe_request(vq, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, NULL, 0, 0, timeout_ms);
}

int fe_getid(struct fe_vq *vq, char id[21], int timeout_ms)
{
	memset(id, 0, 21);
	return fe_request(vq, VIRTIO_BLK_T_GET_ID, 0, NULL, 0, id, VIRTIO_BLK_ID_BYTES, 0,
			  timeout_ms);
}

int fe_discard(struct fe_vq *vq, const struct fe_range *ranges, unsigned int num, int timeout_ms)
{
	return fe_request(vq, VIRTIO_BLK_T_DISCARD, 0, ranges, (uint32_t)(num * sizeof(*ranges)),
			  NULL, 0, 0, timeout_ms);
}

int fe_write_zeroes(struct fe_vq *vq, const struct fe_range *ranges, unsigned int num,
		    int timeout_ms)
{
	return fe_request(vq, VIRTIO_BLK_T_WRITE_ZEROES, 0, ranges,
			  (uint32_t)(num * sizeof(*ranges)), NULL, 0, 0, timeout_ms);
}
