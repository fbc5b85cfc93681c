/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the load generator builds before its clock starts: the connection, guest memory, rings, and
 * for each slot of each queue its header, buffer and descriptors. Nothing here is timed.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include <linux/virtio_blk.h>

#include "hist.h"
#include "load.h"
#include "packed.h"

/* --rewrite: what a driver would fill in each time. */
static void keep_copy(const struct bench *b, struct bench_queue *q, struct slot *s,
		      struct vring_desc *d)
{
	memcpy(s->copy, d, sizeof(s->copy));
	s->to = d;
	s->data_flags = &s->copy[1].flags;
	if (!b->indirect)
		return;
	s->head_to = &q->vq->desc[s->head];
	s->head_copy = *s->head_to;
}

static int build_slot(struct bench *b, struct bench_queue *q, uint16_t i, uint64_t lines)
{
	struct slot *s = &q->slots[i];
	uint64_t line = lines + i * sizeof(struct line);
	uint64_t table = FE_NO_GPA, data = fe_alloc(b->fe, 0, b->bs, 4096);
	const struct fe_seg segs[3] = {
		{ line, sizeof(s->line->hdr), 0 },
		{ data, b->bs, b->write_pct > 0 ? 0 : FE_SEG_WRITE },
		{ line + offsetof(struct line, status), 1, FE_SEG_WRITE },
	};
	struct vring_desc *d;

	if (b->indirect)
		table = fe_alloc(b->fe, 0, 64, 64);
	s->head = (uint16_t)(b->indirect || b->packed ? i : i * 3);
	s->line = fe_gpa(b->fe, line, sizeof(struct line));
	s->data = fe_gpa(b->fe, data, b->bs);
	if (!s->line || !s->data || (b->indirect && table == FE_NO_GPA))
		return -ENOSPC;
	s->write = b->write_pct > 0;
	s->line->hdr.type = s->write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
	memset(s->data, 0xa5, b->bs);
	q->slot_of[s->head] = i;
	if (b->packed) {
		packed_build(s, segs, fe_gpa(b->fe, table, 48), table);
		return 0;
	}
	d = b->indirect ? fe_gpa(b->fe, table, 48) : &q->vq->desc[s->head];
	if (b->indirect)
		fe_vq_set_desc(q->vq, s->head, table, 48, VRING_DESC_F_INDIRECT, 0);
	for (uint16_t k = 0; k < 3; k++)
		d[k] = (struct vring_desc){
			segs[k].gpa, segs[k].len,
			(uint16_t)((k < 2 ? VRING_DESC_F_NEXT : 0) |
				   (segs[k].flags ? VRING_DESC_F_WRITE : 0)),
			(uint16_t)(k < 2 ? (b->indirect ? 0 : s->head) + k + 1 : 0),
		};
	s->data_flags = &d[1].flags;
	if (b->rewrite)
		keep_copy(b, q, s, d);
	return 0;
}

static int build_queue(struct bench *b, uint32_t index)
{
	struct bench_queue *q = &b->q[index];
	uint64_t lines = fe_alloc(b->fe, 0, b->qd * sizeof(struct line), 64);

	q->vq = fe_queue(b->fe, index);
	q->mask = (uint16_t)(q->vq->size - 1);
	q->slots = calloc(b->qd, sizeof(*q->slots));
	q->slot_of = malloc(q->vq->size * sizeof(*q->slot_of));
	q->shadow = malloc(q->vq->size * sizeof(*q->shadow));
	if (!q->slots || !q->slot_of || !q->shadow || lines == FE_NO_GPA)
		return -ENOMEM;
	memset(q->slot_of, 0xff, q->vq->size * sizeof(*q->slot_of));
	memset(q->shadow, 0xff, q->vq->size * sizeof(*q->shadow));
	for (uint16_t i = 0; i < b->qd; i++) {
		int rc = build_slot(b, q, i, lines);

		if (rc < 0)
			return rc;
	}
	q->wrap = q->used_wrap = true;
	if (b->packed) {
		packed_want_calls(q, false);
		return 0;
	}
	fe_vq_set_avail_flags(q->vq, VRING_AVAIL_F_NO_INTERRUPT);
	if (q->vq->event_idx)
		fe_vq_set_used_event(q->vq, 0xffff);
	return 0;
}

static int set_range(struct bench *b)
{
	uint64_t size = fe_capacity(b->fe) * 512;

	if (b->size == 0 || b->size > size)
		b->size = size;
	b->blocks = b->size / b->bs;
	b->block_sectors = b->bs / 512;
	if (b->blocks == 0) {
		fprintf(stderr, "bench: the disk (%llu bytes) is smaller than one block\n",
			(unsigned long long)size);
		return -EINVAL;
	}
	if (b->write_pct > 0 && (b->fe->features & FE_BIT(VIRTIO_BLK_F_RO))) {
		fprintf(stderr, "bench: the disk is read-only\n");
		return -EROFS;
	}
	/* Without a bitmap every block counts as written: by an earlier run. */
	if (b->verify && (b->prefill || b->write_pct > 0)) {
		b->written = calloc(1, b->blocks / 8 + 1);
		if (!b->written)
			return -ENOMEM;
	}
	b->hist = calloc(1, sizeof(*b->hist));
	b->q = calloc(b->queues, sizeof(*b->q));
	return b->hist && b->q ? 0 : -ENOMEM;
}

/* Whose CPU time counts: of the process that listens on the socket. */
static void find_target(struct bench *b)
{
	struct ucred peer = { .pid = 0 };
	socklen_t len = sizeof(peer);

	if (getsockopt(b->fe->sock, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 && peer.pid > 0 &&
	    clock_getcpuclockid(peer.pid, &b->target_clock) == 0)
		b->target_pid = peer.pid;
}

double target_cpu(const struct bench *b)
{
	struct timespec t;

	if (b->target_pid == 0 || clock_gettime(b->target_clock, &t) < 0)
		return 0;
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int bench_connect(struct bench *b)
{
	uint32_t per = b->indirect ? b->qd : b->qd * 3, ring = 64;
	struct fe_opts o;
	int err = 0;

	while (ring < per)
		ring *= 2;
	if (ring > 32768) {
		fprintf(stderr, "bench: queue depth %u is too deep for a ring\n", b->qd);
		return -EINVAL;
	}
	fe_opts_init(&o);
	o.style = b->libblkio ? FE_STYLE_LIBBLKIO : FE_STYLE_QEMU;
	o.num_queues = (uint16_t)b->queues;
	o.queue_size = (uint16_t)ring;
	o.flags = (b->indirect ? FE_O_INDIRECT : 0) | (b->event_idx ? FE_O_EVENT_IDX : 0) |
		  (b->packed ? FE_O_PACKED : 0) | (b->no_inflight ? FE_O_NO_INFLIGHT : 0);
	o.backing = b->hugetlb ? FE_MEM_MEMFD_HUGE : FE_MEM_MEMFD;
	o.mem_size = (uint64_t)b->queues * (b->qd * ((uint64_t)b->bs + 8192) + ring * 128u + 65536);
	o.mem_size = (o.mem_size + (UINT64_C(2) << 20)) & ~((UINT64_C(2) << 20) - 1);
	b->fe = fe_connect(b->socket, &o, &err);
	if (!b->fe) {
		fprintf(stderr, "bench: %s: %s%s\n", b->socket, strerror(-err),
			err == -ENOMEM && b->hugetlb ? " (not enough huge pages?)" :
			err == -ENXIO ? " (the target has fewer queues)" : "");
		return err;
	}
	if (b->indirect && !(b->fe->features & FE_BIT(FE_F_INDIRECT))) {
		fprintf(stderr, "bench: the target offers no indirect descriptors\n");
		return -EOPNOTSUPP;
	}
	if (b->packed && !(b->fe->features & FE_BIT(FE_F_RING_PACKED))) {
		fprintf(stderr, "bench: the target offers no packed rings\n");
		return -EOPNOTSUPP;
	}
	find_target(b);
	err = set_range(b);
	for (uint32_t i = 0; i < b->queues && err == 0; i++)
		err = build_queue(b, i);
	return err;
}

void bench_release(struct bench *b)
{
	if (b->fe && !b->broken)
		fe_stop(b->fe);
	for (uint32_t i = 0; b->q && i < b->queues; i++) {
		free(b->q[i].slots);
		free(b->q[i].slot_of);
		free(b->q[i].shadow);
	}
	free(b->q);
	free(b->hist);
	free(b->written);
	fe_destroy(b->fe);
}

void bench_set_slots(struct bench *b, bool write)
{
	for (uint32_t i = 0; i < b->queues * b->qd; i++) {
		struct slot *s = &b->q[i / b->qd].slots[i % b->qd];

		s->write = write;
		*s->data_flags &= (uint16_t)~VRING_DESC_F_WRITE;
		*s->data_flags |= write ? 0 : VRING_DESC_F_WRITE;
		s->line->hdr.type = write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
	}
}
