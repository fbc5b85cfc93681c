/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver's side of a virtqueue: split rings, and what is common with packed ones.
 *
 * The rings live in guest memory; everything the driver must be able to trust (the free list, how
 * many descriptors a head owns, where its status byte is) lives in struct fe_vq, so a back end
 * that scribbles over the rings is noticed (-EPROTO) and cannot lead us astray.
 *
 * Ordering: fe_publish releases avail->idx after the descriptors and the entries; the back end's
 * acquire of it is the partner. fe_poll acquires used->idx; its partner is the back end's release
 * after the used elements and data. Between publishing and reading the kick suppression, and
 * between asking for a call and looking once more at used->idx, stands a full fence: each side
 * writes its own word and then reads the other's, so one of them must see the other.
 *
 * Layers above (blk.c) use fe_submit_chain, fe_publish, fe_kick, fe_poll, fe_wait and fe_ask_call
 * only: behind those, vq_packed.c does its part. The fe_vq_set_* functions are the split ring
 * itself.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "vq.h"

#define SLOT_BYTES 64u
#define NO_DESC 0xffffu
#define SPIN_NS 20000u		/* look this long before sleeping on the call eventfd */
#define NAP_MS 50		/* sleep at most this long: a lost call must not look like a hang */

static uint16_t *used_event(const struct fe_vq *vq)
{
	return &vq->avail->ring[vq->size];
}

static uint16_t *avail_event(const struct fe_vq *vq)
{
	return (uint16_t *)(void *)&vq->used->ring[vq->size];
}

static int open_eventfd(void)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	return fd < 0 ? -errno : fd;
}

static int alloc_rings(struct fe *fe, struct fe_vq *vq)
{
	const int region = fe->opts.ring_region;
	uint64_t n = vq->size;
	uint64_t avail_len = 4 + 2 * n + 2, used_len = 4 + 8 * n + 2;

	vq->desc_gpa = fe_alloc(fe, region, 16 * n, 4096);
	vq->avail_gpa = fe_alloc(fe, region, avail_len, 64);
	vq->used_gpa = fe_alloc(fe, region, used_len, 4096);
	vq->scratch_gpa = fe_alloc(fe, region, SLOT_BYTES * n, 64);
	if (vq->desc_gpa == FE_NO_GPA || vq->avail_gpa == FE_NO_GPA ||
	    vq->used_gpa == FE_NO_GPA || vq->scratch_gpa == FE_NO_GPA)
		return -ENOSPC;
	vq->desc = fe_gpa(fe, vq->desc_gpa, 16 * n);
	vq->avail = fe_gpa(fe, vq->avail_gpa, avail_len);
	vq->used = fe_gpa(fe, vq->used_gpa, used_len);
	vq->scratch = fe_gpa(fe, vq->scratch_gpa, SLOT_BYTES * n);
	return vq->desc && vq->avail && vq->used && vq->scratch ? 0 : -EFAULT;
}

int fe_vq_init(struct fe *fe, struct fe_vq *vq, uint16_t index, uint16_t size)
{
	int rc;

	memset(vq, 0, sizeof(*vq));
	vq->fe = fe;
	vq->index = index;
	vq->size = size;
	vq->kick_fd = vq->call_fd = vq->err_fd = -1;
	if (size == 0 || size > 32768)
		return -EINVAL;
	rc = alloc_rings(fe, vq);
	if (rc < 0)
		return rc;
	vq->next_free = calloc(size, sizeof(*vq->next_free));
	vq->slots = calloc(size, sizeof(*vq->slots));
	if (!vq->next_free || !vq->slots)
		return -ENOMEM;
	vq->kick_fd = open_eventfd();
	vq->call_fd = open_eventfd();
	vq->err_fd = open_eventfd();
	if (vq->kick_fd < 0 || vq->call_fd < 0 || vq->err_fd < 0)
		return -EMFILE;
	vq->bounce_gpa = FE_NO_GPA;
	fe_vq_reset(vq);
	return 0;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void fe_vq_fini(struct fe_vq *vq)
{
	if (!vq->fe)
		return;
	close_fd(&vq->kick_fd);
	close_fd(&vq->call_fd);
	close_fd(&vq->err_fd);
	free(vq->next_free);
	free(vq->slots);
	vq->next_free = NULL;
	vq->slots = NULL;
}

void fe_vq_reset(struct fe_vq *vq)
{
	size_t n = vq->size;

	memset(vq->desc, 0, 16 * n);
	memset(vq->avail, 0, 4 + 2 * n + 2);
	memset(vq->used, 0, 4 + 8 * n + 2);
	for (uint16_t i = 0; i < vq->size; i++) {
		uint64_t table = vq->slots[i].table_gpa;
		uint32_t cap = vq->slots[i].table_cap;

		vq->slots[i] = (struct fe_slot){ .status_gpa = FE_NO_GPA, .table_gpa = table,
						 .table_cap = cap };
		vq->next_free[i] = (uint16_t)(i + 1);
	}
	vq->next_free[vq->size - 1] = NO_DESC;
	vq->free_head = 0;
	vq->num_free = vq->size;
	vq->avail_idx = vq->kicked_idx = vq->last_used = vq->in_flight = 0;
	vq->base = 0;
	if (vq->packed)
		fe_packed_reset(vq);
}

void fe_vq_use_packed(struct fe_vq *vq, bool on)
{
	/* Only a change: a reconnect finds the ring as the old back end left it. */
	if (vq->packed == on)
		return;
	vq->packed = on;
	fe_vq_reset(vq);
}

/* ---- messages for one ring ---- */

int fe_vq_send_addr(struct fe_vq *vq)
{
	struct fe *fe = vq->fe;

	return fe_set_vring_addr(fe, vq->index, vq->log ? FE_ADDR_LOG : 0,
				 fe_gpa_to_uva(fe, vq->desc_gpa), fe_gpa_to_uva(fe, vq->used_gpa),
				 fe_gpa_to_uva(fe, vq->avail_gpa), vq->used_gpa);
}

int fe_vq_start(struct fe_vq *vq, uint32_t base, bool with_call)
{
	struct fe *fe = vq->fe;
	bool no_kick = fe->opts.flags & FE_O_NO_KICK_FD;
	bool no_call = fe->opts.flags & FE_O_NO_CALL_FD;
	int rc;

	rc = fe_set_vring_num(fe, vq->index, vq->size);
	if (rc == 0)
		rc = fe_set_vring_base(fe, vq->index, base);
	if (rc == 0)
		rc = fe_vq_send_addr(vq);
	if (rc == 0)
		rc = fe_set_vring_fd(fe, FE_SET_VRING_KICK, vq->index, no_kick ? -1 : vq->kick_fd);
	if (rc == 0 && with_call)
		rc = fe_set_vring_fd(fe, FE_SET_VRING_CALL, vq->index, no_call ? -1 : vq->call_fd);
	if (rc == 0) {
		vq->started = true;
		vq->base = base;
	}
	return rc;
}

int fe_vq_enable(struct fe_vq *vq, bool on)
{
	int rc = fe_set_vring_enable(vq->fe, vq->index, on);

	if (rc == 0)
		vq->enabled = on;
	return rc;
}

int fe_vq_stop(struct fe_vq *vq, uint32_t *base)
{
	int rc = fe_get_vring_base(vq->fe, vq->index, base);

	if (rc == 0) {
		vq->started = false;
		vq->base = *base;
	}
	return rc;
}

static int swap_fd(struct fe_vq *vq, uint32_t request, int *fd)
{
	int fresh = open_eventfd();
	int rc;

	if (fresh < 0)
		return fresh;
	rc = fe_set_vring_fd(vq->fe, request, vq->index, fresh);
	if (rc < 0) {
		close(fresh);
		return rc;
	}
	close(*fd);
	*fd = fresh;
	return 0;
}

int fe_vq_swap_call(struct fe_vq *vq)
{
	return swap_fd(vq, FE_SET_VRING_CALL, &vq->call_fd);
}

int fe_vq_swap_kick(struct fe_vq *vq)
{
	return swap_fd(vq, FE_SET_VRING_KICK, &vq->kick_fd);
}

/* ---- raw fields ---- */

void fe_vq_set_desc(struct fe_vq *vq, uint32_t slot, uint64_t addr, uint32_t len, uint16_t flags,
		    uint16_t next)
{
	struct vring_desc *d = &vq->desc[slot % vq->size];

	d->addr = addr;
	d->len = len;
	d->flags = flags;
	d->next = next;
}

void fe_vq_set_avail(struct fe_vq *vq, uint32_t pos, uint16_t head)
{
	vq->avail->ring[pos % vq->size] = head;
}

void fe_vq_set_avail_idx(struct fe_vq *vq, uint16_t idx)
{
	vq->avail_idx = idx;
	fe_publish(vq);
}

void fe_vq_set_avail_flags(struct fe_vq *vq, uint16_t flags)
{
	__atomic_store_n(&vq->avail->flags, flags, __ATOMIC_RELEASE);
}

void fe_vq_set_used_event(struct fe_vq *vq, uint16_t idx)
{
	__atomic_store_n(used_event(vq), idx, __ATOMIC_RELEASE);
}

uint16_t fe_vq_avail_event(const struct fe_vq *vq)
{
	return __atomic_load_n(avail_event(vq), __ATOMIC_ACQUIRE);
}

uint16_t fe_vq_used_flags(const struct fe_vq *vq)
{
	return __atomic_load_n(&vq->used->flags, __ATOMIC_ACQUIRE);
}

uint16_t fe_vq_used_idx(const struct fe_vq *vq)
{
	return __atomic_load_n(&vq->used->idx, __ATOMIC_ACQUIRE);
}

void fe_vq_used_elem(const struct fe_vq *vq, uint32_t pos, uint32_t *id, uint32_t *len)
{
	const struct vring_used_elem *e = &vq->used->ring[pos % vq->size];

	*id = e->id;
	*len = e->len;
}

int fe_write_desc(struct fe *fe, uint64_t gpa, uint64_t addr, uint32_t len, uint16_t flags,
		  uint16_t next)
{
	struct vring_desc d = { addr, len, flags, next };

	return fe_mem_write(fe, gpa, &d, sizeof(d));
}

/* ---- submitting ---- */

void fe_publish(struct fe_vq *vq)
{
	if (vq->packed) {
		fe_packed_publish(vq);
		return;
	}
	__atomic_store_n(&vq->avail->idx, vq->avail_idx, __ATOMIC_RELEASE);
}

int fe_kick(struct fe_vq *vq, bool force)
{
	uint64_t one = 1;
	uint16_t old = vq->kicked_idx;
	bool wanted;

	fe_fence();
	vq->kicked_idx = vq->avail_idx;
	if (vq->packed)
		wanted = fe_packed_wants_kick(vq);
	else if (vq->event_idx)
		wanted = vring_need_event(fe_vq_avail_event(vq), vq->avail_idx, old);
	else
		wanted = !(fe_vq_used_flags(vq) & VRING_USED_F_NO_NOTIFY);
	if (!force && (!wanted || (vq->fe->opts.flags & FE_O_NO_KICK_FD)))
		return 0;
	vq->kicks++;
	return write(vq->kick_fd, &one, sizeof(one)) < 0 ? -errno : 1;
}

static void make_available(struct fe_vq *vq, uint16_t head, uint32_t how)
{
	if (!vq->packed) {
		vq->avail->ring[vq->avail_idx % vq->size] = head;
		vq->avail_idx++;
	}
	vq->in_flight++;
	if (how & FE_HOW_NO_PUBLISH)
		return;
	fe_publish(vq);
	if (!(how & FE_HOW_NO_KICK))
		fe_kick(vq, false);
}

int fe_vq_push_head(struct fe_vq *vq, uint16_t head, uint64_t status_gpa, uint32_t how)
{
	uint8_t poison = 0xff;

	if (head < vq->size) {
		vq->slots[head].busy = true;
		vq->slots[head].num_desc = 0;
		vq->slots[head].status_gpa = status_gpa;
		vq->slots[head].cookie = 0;
	}
	if (status_gpa != FE_NO_GPA)
		fe_mem_write(vq->fe, status_gpa, &poison, 1);
	make_available(vq, head, how);
	return head;
}

uint64_t fe_vq_table(struct fe_vq *vq, struct fe_slot *slot, unsigned int num)
{
	if (slot->table_cap < num) {
		uint32_t cap = num < 8 ? 8 : num;
		uint64_t gpa = fe_alloc(vq->fe, vq->fe->opts.ring_region, 16u * cap, 16);

		if (gpa == FE_NO_GPA)
			return FE_NO_GPA;
		slot->table_gpa = gpa;
		slot->table_cap = cap;
	}
	return slot->table_gpa;
}

static int write_indirect(struct fe_vq *vq, uint16_t head, const struct fe_seg *segs,
			  unsigned int num, uint64_t table_gpa)
{
	struct fe_slot *slot = &vq->slots[head];

	if (table_gpa == FE_NO_GPA)
		table_gpa = fe_vq_table(vq, slot, num);
	if (table_gpa == FE_NO_GPA)
		return -ENOSPC;
	for (unsigned int i = 0; i < num; i++) {
		bool last = i + 1 == num;
		uint16_t flags = (segs[i].flags & FE_SEG_WRITE) ? VRING_DESC_F_WRITE : 0;
		int rc = fe_write_desc(vq->fe, table_gpa + 16u * i, segs[i].gpa, segs[i].len,
				       (uint16_t)(flags | (last ? 0 : VRING_DESC_F_NEXT)),
				       (uint16_t)(last ? 0 : i + 1));

		if (rc < 0)
			return rc;
	}
	fe_vq_set_desc(vq, head, table_gpa, 16u * num, VRING_DESC_F_INDIRECT, 0);
	slot->num_desc = 1;
	return 0;
}

static void write_direct(struct fe_vq *vq, uint16_t head, const struct fe_seg *segs,
			 unsigned int num)
{
	uint16_t d = head;

	for (unsigned int i = 0; i < num; i++) {
		bool last = i + 1 == num;
		uint16_t flags = (segs[i].flags & FE_SEG_WRITE) ? VRING_DESC_F_WRITE : 0;
		uint16_t next = vq->next_free[d];

		fe_vq_set_desc(vq, d, segs[i].gpa, segs[i].len,
			       (uint16_t)(flags | (last ? 0 : VRING_DESC_F_NEXT)),
			       last ? 0 : next);
		d = last ? d : next;
	}
	vq->slots[head].num_desc = (uint16_t)num;
}

/* Take `num` descriptors, which hang together by next_free already, off the free list. */
static void take_free(struct fe_vq *vq, unsigned int num)
{
	uint16_t d = vq->free_head;

	for (unsigned int i = 1; i < num; i++)
		d = vq->next_free[d];
	vq->free_head = vq->next_free[d];
	vq->num_free = (uint16_t)(vq->num_free - num);
}

static void give_back(struct fe_vq *vq, uint16_t head)
{
	struct fe_slot *slot = &vq->slots[head];
	uint16_t d = head;

	if (vq->packed) {
		fe_packed_give_back(vq, head);
		return;
	}
	slot->busy = false;
	vq->in_flight--;
	if (slot->num_desc == 0)
		return;
	for (uint16_t i = 1; i < slot->num_desc; i++)
		d = vq->next_free[d];
	vq->next_free[d] = vq->free_head;
	vq->free_head = head;
	vq->num_free = (uint16_t)(vq->num_free + slot->num_desc);
}

int fe_submit_chain(struct fe_vq *vq, const struct fe_seg *segs, unsigned int num,
		    uint64_t table_gpa, uint64_t status_gpa, uint32_t how, uint64_t cookie)
{
	bool indirect = (how & FE_HOW_INDIRECT) || (vq->indirect && !(how & FE_HOW_DIRECT));
	uint16_t head = vq->free_head;
	uint8_t poison = 0xff;
	int rc = 0;

	if (num == 0)
		return -EINVAL;
	if (vq->num_free < (indirect ? 1u : num))
		return -ENOSPC;
	if (vq->packed)
		rc = fe_packed_add(vq, head, segs, num, indirect, table_gpa);
	else if (indirect)
		rc = write_indirect(vq, head, segs, num, table_gpa);
	else
		write_direct(vq, head, segs, num);
	if (rc < 0)
		return rc;
	if (!vq->packed)
		take_free(vq, vq->slots[head].num_desc);
	vq->slots[head].busy = true;
	vq->slots[head].cookie = cookie;
	vq->slots[head].status_gpa = status_gpa;
	if (status_gpa != FE_NO_GPA)
		fe_mem_write(vq->fe, status_gpa, &poison, 1);
	make_available(vq, head, how);
	return head;
}

/* ---- completions ---- */

static int reap_one(struct fe_vq *vq, struct fe_completion *out)
{
	struct fe_slot *slot;
	uint32_t id, len;
	uint8_t status;

	if (vq->packed)
		fe_packed_look(vq, &id, &len);
	else
		fe_vq_used_elem(vq, vq->last_used, &id, &len);
	if (id >= vq->size || !vq->slots[id].busy)
		return -EPROTO;
	slot = &vq->slots[id];
	out->head = id;
	out->len = len;
	out->cookie = slot->cookie;
	out->status = -1;
	if (slot->status_gpa != FE_NO_GPA &&
	    fe_mem_read(vq->fe, slot->status_gpa, &status, 1) == 0)
		out->status = status;
	if (vq->packed)
		fe_packed_seen(vq, slot->num_desc);
	else
		vq->last_used++;
	give_back(vq, (uint16_t)id);
	return 0;
}

/* How many completions there are; of a packed ring, whether there is one. */
static uint16_t ready(const struct fe_vq *vq)
{
	if (vq->packed)
		return fe_packed_ready(vq);
	return (uint16_t)(fe_vq_used_idx(vq) - vq->last_used);
}

int fe_poll(struct fe_vq *vq, struct fe_completion *out, unsigned int max)
{
	unsigned int n = 0;

	if (ready(vq) > vq->in_flight)
		return -EPROTO;
	while (n < max && ready(vq)) {
		int rc = reap_one(vq, &out[n]);

		if (rc < 0)
			return n > 0 ? (int)n : rc;
		n++;
	}
	return (int)n;
}

static uint64_t drain(int fd)
{
	uint64_t count = 0;

	return read(fd, &count, sizeof(count)) == (ssize_t)sizeof(count) ? count : 0;
}

/* Sleep until the call eventfd, the connection's end, or a short while. */
static int nap(struct fe_vq *vq, int ms)
{
	struct pollfd pfd[2] = {
		{ .fd = vq->call_fd, .events = POLLIN },
		{ .fd = vq->fe->sock, .events = 0 },
	};

	if (vq->fe->opts.flags & FE_O_NO_CALL_FD) {
		sched_yield();
		ms = 0;
	}
	if (poll(pfd, 2, ms > NAP_MS ? NAP_MS : ms) < 0)
		return errno == EINTR ? 0 : -errno;
	if (pfd[0].revents & POLLIN)
		vq->calls += drain(vq->call_fd);
	return (pfd[1].revents & (POLLHUP | POLLERR)) ? -EPIPE : 0;
}

bool fe_ask_call(struct fe_vq *vq)
{
	if (vq->packed)
		fe_packed_ask_call(vq);
	else if (vq->event_idx)
		fe_vq_set_used_event(vq, vq->last_used);
	fe_fence();
	return ready(vq) > 0;
}

int fe_wait(struct fe_vq *vq, struct fe_completion *out, unsigned int max, int timeout_ms)
{
	uint64_t start = fe_now_ns();
	uint64_t limit = (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * 1000000u;
	int gone = 0;

	for (;;) {
		uint64_t spent;
		int n = fe_poll(vq, out, max);

		if (n != 0)
			return n;
		if (gone < 0)
			return gone;
		spent = fe_now_ns() - start;
		if (spent >= limit)
			return -ETIMEDOUT;
		if (spent < SPIN_NS)
			continue;
		if (fe_ask_call(vq))
			continue;
		gone = nap(vq, (int)((limit - spent + 999999u) / 1000000u));
	}
}

static int eventfd_count(int fd, int timeout_ms)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	int n = poll(&pfd, 1, timeout_ms);

	if (n <= 0)
		return n < 0 ? -errno : 0;
	return (int)drain(fd);
}

int fe_vq_error(struct fe_vq *vq, int timeout_ms)
{
	return eventfd_count(vq->err_fd, timeout_ms);
}

int fe_vq_call_pending(struct fe_vq *vq, int timeout_ms)
{
	return eventfd_count(vq->call_fd, timeout_ms);
}
