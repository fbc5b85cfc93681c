/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Postcopy, control's side: a pager for the session that is advised, its answers, and the
 * fetches that wait for them.
 *
 *   ADVISE      a worker starts a pager; its userfaultfd is the answer
 *   LISTEN      memory that comes from now on may have holes
 *   memory      mapped here, guarded, and in the pager, whose addresses are the answer
 *   (ack)       the front end can serve faults: rings may run
 *   END         queues go on unchecked, the guard is lifted, the pager killed
 *
 * The guard is a second userfaultfd, which never leaves this process and reports by SIGBUS.
 * A struct postcopy outlives its session while a worker has it.
 */
#include "vhost/postcopy.h"

#include "vhost/pager.h"
#include "vhost/vhost_internal.h"

#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

struct postcopy {
	struct vhost_session *session;	/* NULL: it has ended */
	struct job job;
	struct control_fd link;		/* to the pager, -1 while it starts */
	pid_t pid;
	int uffd;			/* until it has been sent */
	int error;			/* of the pager's start */
	bool starting;
	bool listening;
	bool unacked;			/* the front end does not know our addresses yet */
	unsigned int mapping;		/* regions that the pager has not answered for */
	uint32_t next_id;
	struct list fetches;
};

/* Answers at a time: the front end has power over the pager, and other guests their turn. */
#define ANSWERS_MAX 256

/* Guards our own mappings; -1: postcopy is not offered. */
static int guard = -1;

void postcopy_init(void)
{
	guard = uffd_open(UFFD_FEATURE_SIGBUS | UFFD_FEATURE_MISSING_SHMEM |
			  UFFD_FEATURE_MISSING_HUGETLBFS);
	if (guard < 0)
		log_info("postcopy is not offered: no userfaultfd: %s", strerror(-guard));
}

void postcopy_fini(void)
{
	if (guard >= 0)
		close(guard);
	guard = -1;
}

bool postcopy_offered(void)
{
	return guard >= 0;
}

/* ------- fetches ------- */

CONTROL_ONLY static void fetch_back(struct page_fetch *f)
{
	if (!f->busy)
		return;
	f->busy = false;
	list_del(&f->node);
	f->done(f);
}

/* Ask for what has not been asked for yet, as far as the socket takes it. */
CONTROL_ONLY static void pump(struct postcopy *pc)
{
	struct page_fetch *f;

	list_for_each(f, &pc->fetches, node) {
		while (f->sent < f->count) {
			const struct page_run *run = &f->runs[f->sent];
			struct pager_msg msg = {
				.type = PAGER_FETCH, .id = run->region->pager_id,
				.addr = run->region->pager_map, .len = run->region->page_size,
				.first = run->first, .count = run->count,
			};

			/* A pager that is gone is seen by its link. */
			if (pager_send(pc->link.fd, &msg, -1, MSG_DONTWAIT) < 0) {
				control_fd_mod(&pc->link, EPOLLIN | EPOLLOUT);
				return;
			}
			f->sent++;
		}
	}
	control_fd_mod(&pc->link, EPOLLIN);
}

void page_fetch_send(struct vhost_session *s, struct page_fetch *f)
{
	struct postcopy *pc = s->postcopy;

	f->busy = true;
	f->sent = f->have = 0;
	list_init(&f->node);
	f->lost |= s->closing;
	if (!pc || f->lost || (f->cancelled && !f->must)) {
		fetch_back(f);
		return;
	}
	list_add_tail(&pc->fetches, &f->node);
	pump(pc);
}

void page_fetch_cancel(struct page_fetch *f)
{
	if (!f)
		return;
	f->cancelled = true;
	/* must is the owner's to write, unless we have it. */
	if (f->busy && !f->must)
		fetch_back(f);
}

/* Give all of them back that have what they want. */
CONTROL_ONLY static void look_through(struct postcopy *pc)
{
	struct page_fetch *f;

again:
	list_for_each(f, &pc->fetches, node) {
		while (f->have < f->count && page_run_present(&f->runs[f->have]))
			f->have++;
		if (f->have < f->count)
			continue;
		/* Anything may come of this: other fetches, the end of the session. */
		fetch_back(f);
		goto again;
	}
}

/* ------- the pager ------- */

static void pager_ended(struct job *job)
{
	free(container_of(job, struct postcopy, job));
}

static void pager_end_run(struct job *job)
{
	pager_end(container_of(job, struct postcopy, job)->pid);
}

/* Let go of the session; its pager is killed by a worker. */
CONTROL_ONLY static void detach(struct postcopy *pc, bool lost)
{
	pc->session->postcopy = NULL;
	pc->session = NULL;
	while (!list_empty(&pc->fetches)) {
		struct page_fetch *f = list_first(&pc->fetches, struct page_fetch, node);

		f->lost = lost;
		fetch_back(f);
	}
	if (pc->starting)
		return;
	if (pc->uffd >= 0)
		close(pc->uffd);
	if (pc->link.fd >= 0) {
		control_fd_del(&pc->link);
		close(pc->link.fd);
	}
	pc->job.run = pager_end_run;
	pc->job.done = pager_ended;
	worker_submit(&pc->job);
}

CONTROL_ONLY static struct mem_region *region_by_id(const struct vhost_session *s, uint32_t id)
{
	for (unsigned int i = 0; s->mem && i < s->mem->count; i++) {
		if (s->mem->regions[i]->present && s->mem->regions[i]->pager_id == id)
			return s->mem->regions[i];
	}
	return NULL;
}

CONTROL_ONLY static int take_answer(struct postcopy *pc, const struct pager_msg *msg)
{
	struct mem_region *r = region_by_id(pc->session, msg->id);

	if (msg->type == PAGER_PRESENT) {
		if (r)
			pages_arrived(r, msg->first, msg->count);
		return 0;
	}
	if (msg->type != PAGER_MAPPED || pc->mapping == 0)
		return -EPROTO;
	pc->mapping--;
	if (r && msg->error == 0)
		r->pager_map = msg->addr;
	return MIN(msg->error, 0);
}

/* 0, or why this session is at an end. */
CONTROL_ONLY static int take_answers(struct postcopy *pc)
{
	struct pager_msg msg;

	for (unsigned int i = 0; i < ANSWERS_MAX; i++) {
		int fd, rc = pager_recv(pc->link.fd, &msg, &fd, MSG_DONTWAIT);

		if (fd >= 0)
			close(fd);
		if (rc == -EAGAIN || rc == -EINTR)
			return 0;
		if (rc == 0)
			return -ECHILD;
		if (rc > 0)
			rc = take_answer(pc, &msg);
		if (rc < 0)
			return rc;
	}
	return 0;
}

static void link_event(struct control_fd *cf, uint32_t events)
{
	struct postcopy *pc = container_of(cf, struct postcopy, link);
	struct vhost_session *s = pc->session;
	int rc;

	control_assert();
	rc = take_answers(pc);
	if (rc < 0) {
		log_limited(LOG_ERROR, &s->controller->limit, "%s: postcopy: %s; closing the "
			    "connection", s->name, rc == -ECHILD ? "its pager has ended" :
			    rc == -EPROTO ? "its pager makes no sense" : strerror(-rc));
		session_close(s);
		return;
	}
	look_through(pc);
	if (!pc->session)
		return;
	if (events & EPOLLOUT)
		pump(pc);
	if (pc->mapping == 0)
		session_reconcile(s);
}

/* ------- advise ------- */

static void pager_start_run(struct job *job)
{
	struct postcopy *pc = container_of(job, struct postcopy, job);

	pc->error = pager_spawn(&pc->pid, &pc->link.fd, &pc->uffd);
}

CONTROL_ONLY static void advise_settled(struct vhost_session *s)
{
	struct postcopy *pc = s->postcopy;

	if (conn_reply_fd(&s->conn, &s->conn.msg, 0, pc->uffd) < 0)
		session_close(s);
	else
		log_info("%s: postcopy was announced", s->name);
	/* session_close() may have taken it. */
	if (s->postcopy != pc)
		return;
	close(pc->uffd);
	pc->uffd = -1;
}

static void pager_started(struct job *job)
{
	struct postcopy *pc = container_of(job, struct postcopy, job);
	struct vhost_session *s = pc->session;

	control_assert();
	pc->starting = false;
	if (pc->error == 0 && s) {
		pc->link.fn = link_event;
		pc->error = control_fd_add(&pc->link, EPOLLIN);
	}
	if (pc->error == 0 && s) {
		session_reconcile(s);
		return;
	}
	if (s) {
		log_limited(LOG_ERROR, &s->controller->limit, "%s: POSTCOPY_ADVISE: cannot start a "
			    "pager: %s", s->name, strerror(-pc->error));
		s->postcopy = NULL;
		session_close(s);
	}
	if (pc->pid <= 0) {
		free(pc);
		return;
	}
	close(pc->link.fd);
	close(pc->uffd);
	pc->job.run = pager_end_run;
	pc->job.done = pager_ended;
	worker_submit(&pc->job);
}

void postcopy_advise(struct vhost_session *s, struct vhost_msg *msg)
{
	struct postcopy *pc;

	(void)msg;
	if (s->postcopy && s->postcopy->listening) {
		session_refuse(s, "postcopy is under way");
		return;
	}
	postcopy_close(s);
	pc = calloc(1, sizeof(*pc));
	if (!pc) {
		session_refuse(s, strerror(ENOMEM));
		return;
	}
	pc->session = s;
	pc->uffd = pc->link.fd = -1;
	list_init(&pc->fetches);
	pc->starting = true;
	pc->job.run = pager_start_run;
	pc->job.done = pager_started;
	s->postcopy = pc;
	s->after = advise_settled;
	worker_submit(&pc->job);
}

/* ------- listen, and memory ------- */

void postcopy_listen(struct vhost_session *s, struct vhost_msg *msg)
{
	(void)msg;
	if (!s->postcopy || s->mem) {
		session_refuse(s, s->mem ? "there is memory already" : "it was not announced");
		return;
	}
	s->postcopy->listening = true;
}

bool postcopy_ack(struct vhost_session *s, const struct vhost_msg *msg)
{
	return s->postcopy && s->postcopy->listening && msg->header.size == sizeof(msg->u64) &&
	       msg->fd_count == 0;
}

void postcopy_acknowledged(struct vhost_session *s, struct vhost_msg *msg)
{
	if (!postcopy_ack(s, msg) || msg->u64 != 0) {
		session_refuse(s, "no confirmation of the memory's addresses");
		return;
	}
	s->postcopy->unacked = false;
}

int postcopy_region(struct vhost_session *s, struct mem_region *r)
{
	struct postcopy *pc = s->postcopy;
	struct pager_msg msg = {
		.type = PAGER_MAP, .len = r->map_len,
		.offset = r->offset - (uint64_t)(r->hva - (uint8_t *)r->map),
	};
	int rc;

	if (!pc || !pc->listening)
		return 0;
	rc = uffd_register(guard, r->map, r->map_len);
	if (rc == 0)
		rc = pages_track(r);
	r->pager_id = msg.id = pc->next_id++;
	if (rc == 0)
		rc = pager_send(pc->link.fd, &msg, r->fd, MSG_DONTWAIT);
	if (rc == 0)
		pc->mapping++;
	return rc;
}

/* The front end's region of this place, with our pager's address in it. */
CONTROL_ONLY static void tell_address(const struct vhost_session *s, struct vu_mem_region *told)
{
	for (unsigned int i = 0; i < s->mem->count; i++) {
		const struct mem_region *r = s->mem->regions[i];

		if (r->gpa == told->gpa)
			told->uva = r->pager_map + (uint64_t)(r->hva - (uint8_t *)r->map);
	}
}

CONTROL_ONLY static void memory_settled(struct vhost_session *s)
{
	struct vhost_msg *msg = &s->conn.msg;

	if (msg->header.request == VU_ADD_MEM_REG) {
		tell_address(s, &msg->slot.region);
	} else {
		for (unsigned int i = 0; i < msg->table.count; i++)
			tell_address(s, &msg->table.regions[i]);
	}
	session_reply(s, msg->header.size);
}

void postcopy_memory(struct vhost_session *s, bool told)
{
	struct postcopy *pc = s->postcopy;

	if (!pc)
		return;
	if (!pc->listening) {
		postcopy_close(s);
		return;
	}
	/* Regions may be gone that rings were waiting for. */
	for (unsigned int i = 0; i < s->vq_count; i++) {
		if (s->vqs[i] && s->vqs[i]->ring_fetch)
			fetch_back(s->vqs[i]->ring_fetch);
	}
	if (s->mem)
		s->mem->paged = true;
	if (told) {
		pc->unacked = true;
		s->after = memory_settled;
	}
}

bool postcopy_is_busy(const struct vhost_session *s)
{
	return s->postcopy && (s->postcopy->starting || s->postcopy->mapping > 0);
}

bool postcopy_may_run(const struct vhost_session *s)
{
	return !s->postcopy || !s->postcopy->unacked;
}

/* ------- rings ------- */

static void ring_fetched(struct page_fetch *f)
{
	struct vhost_vq *vvq = f->owner;

	control_assert();
	page_fetch_clear(f);
	guest_mem_put(f->mem);
	f->mem = NULL;
	if (!vvq->session->closing)
		session_reconcile(vvq->session);
}

bool postcopy_ring_ready(struct vhost_vq *vvq)
{
	struct vhost_session *s = vvq->session;
	bool packed = session_has_feature(s, VRING_F_PACKED), ready = true;
	const struct {
		uint64_t uva, len;
	} parts[] = {
		{ vvq->desc_uva, 16ull * vvq->num },
		{ vvq->avail_uva, packed ? 4 : 6 + 2ull * vvq->num },
		{ vvq->used_uva, packed ? 4 : 6 + 8ull * vvq->num },
	};
	struct page_fetch *f = vvq->ring_fetch;

	if (!s->mem->paged)
		return true;
	if (!s->postcopy || (f && f->busy))
		return false;
	if (!f)
		f = vvq->ring_fetch = calloc(1, sizeof(*f));
	if (!f)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		const void *hva = guest_mem_from_uva(s->mem, parts[i].uva, parts[i].len);

		/* What lies outside is vq_create()'s to refuse. */
		if (hva)
			ready &= pages_present(s->mem, hva, parts[i].len, f);
	}
	if (ready)
		return true;
	f->owner = vvq;
	f->mem = guest_mem_get(s->mem);
	f->done = ring_fetched;
	page_fetch_send(s, f);
	return false;
}

/* ------- the end ------- */

CONTROL_ONLY static void end_settled(struct vhost_session *s)
{
	/* Every queue has a table without holes by now. */
	for (unsigned int i = 0; s->mem && i < s->mem->count; i++) {
		const struct mem_region *r = s->mem->regions[i];

		if (r->present)
			uffd_unregister(guard, r->map, r->map_len);
	}
	if (s->postcopy) {
		log_info("%s: postcopy has ended", s->name);
		detach(s->postcopy, false);
	}
	s->conn.msg.u64 = 0;
	session_reply(s, sizeof(s->conn.msg.u64));
}

void postcopy_end(struct vhost_session *s, struct vhost_msg *msg)
{
	struct guest_mem *whole;
	int rc;

	(void)msg;
	s->after = end_settled;
	if (!s->mem || !s->mem->paged)
		return;
	rc = guest_mem_create(s->mem->regions, s->mem->count, &whole);
	if (rc < 0) {
		session_refuse(s, strerror(-rc));
		return;
	}
	guest_mem_put(s->mem);
	s->mem = whole;
	session_update_vqs(s);
}

void postcopy_close(struct vhost_session *s)
{
	if (s->postcopy)
		detach(s->postcopy, true);
}
