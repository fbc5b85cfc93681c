/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A session: one front end's connection, and the vqs that run for it.
 *
 * The handlers of messages.c write down what the front end wants (features,
 * memory, addresses, fds, enabled or not). session_reconcile() makes the running
 * vqs agree: a vq that should run is made and started; one whose settings have
 * changed (its generation is old) is stopped and made anew; a changed call fd or
 * grown memory is handed over while it runs. While any vq is on its way the
 * session reads no further message; when all have settled, the message is
 * answered and the next one read. Only this front end waits.
 *
 * A session that closes stops its vqs, and frees itself when their requests
 * have ended, however long that takes; nobody else waits for it.
 */
#include "vhost/vhost_internal.h"

#include "hugepages/hugepages.h"
#include "reactor/log.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BIT(n) (1ull << (n))
#define RETRY_MS 5

static uint32_t next_vid;
/* Sessions that close, of all controllers: their requests may still be on their way. */
static struct list ending = LIST_INIT(ending);

/* ------- virtqueues: what is wanted ------- */

CONTROL_ONLY static void vvq_free(struct vhost_vq *vvq)
{
	if (!vvq)
		return;
	close_fd(&vvq->kick_fd);
	close_fd(&vvq->call_fd);
	close_fd(&vvq->err_fd);
	close_fd(&vvq->old_fd);
	free(vvq->ring_fetch);
	free(vvq);
}

struct vhost_vq *session_vq(struct vhost_session *s, uint64_t index)
{
	struct vhost_vq *vvq;

	if (index >= VHOST_VQS_MAX)
		return NULL;
	if (s->vqs[index])
		return s->vqs[index];
	vvq = calloc(1, sizeof(*vvq));
	if (!vvq)
		return NULL;
	vvq->session = s;
	vvq->index = (unsigned int)index;
	vvq->kick_fd = vvq->call_fd = vvq->err_fd = -1;
	vvq->old_fd = -1;
	vvq->log_gpa = DIRTY_LOG_NONE;
	s->vqs[index] = vvq;
	s->vq_count = MAX(s->vq_count, (unsigned int)index + 1);
	return vvq;
}

/* But for being enabled. */
CONTROL_ONLY static bool vvq_could_run(const struct vhost_vq *vvq)
{
	const struct vhost_session *s = vvq->session;

	return !s->closing && !s->resting && !vhost_rings_held() && s->mem && vvq->num &&
	       vvq->has_addr && vvq->kicked && !vvq->failed && !vvq->broken && postcopy_may_run(s);
}

/*
 * QEMU disables a ring before it stops it. Where that stop may leave requests behind, the
 * vq of a disabled ring is paused, not drained. One that owes requests does those.
 */
CONTROL_ONLY static bool vvq_should_run(const struct vhost_vq *vvq)
{
	const struct vhost_session *s = vvq->session;

	if (!vvq_could_run(vvq))
		return false;
	if (vvq->finish || (vvq->vq && session_may_leave_requests(s)))
		return true;
	return !vvq->disabled &&
	       (vvq->enabled || !session_has_feature(s, VHOST_F_PROTOCOL_FEATURES));
}

/* Whether the running vq is not the one that is wanted. */
static bool vq_is_stale(const struct vhost_vq *vvq)
{
	return vvq->vq->generation != vvq->generation ||
	       (vvq->vq->ch && vvq->session->controller->bdev_gone);
}

void session_want_anew(struct vhost_session *s)
{
	for (unsigned int i = 0; i < s->vq_count; i++) {
		if (s->vqs[i]) {
			s->vqs[i]->generation++;
			s->vqs[i]->failed = false;
		}
	}
}

static bool vvq_writethrough(const struct vhost_session *s)
{
	return blk_is_writethrough(s->features, s->writeback);
}

/* The dirty log, while the front end wants one: references are the caller's to take. */
static void vvq_log(const struct vhost_vq *vvq, struct vq_update *u)
{
	const struct vhost_session *s = vvq->session;

	u->log_used = DIRTY_LOG_NONE;
	if (!s->log_mem || !session_has_feature(s, VHOST_F_LOG_ALL))
		return;
	u->log_mem = s->log_mem;
	u->log.bits = s->log_mem->spans[0].hva;
	u->log.pages = s->log_mem->spans[0].size * 8;
	u->log_used = vvq->log_gpa;
}

static struct vq_update vvq_update(const struct vhost_vq *vvq)
{
	const struct vhost_session *s = vvq->session;
	struct vq_update u = {
		.call_fd = vvq->call_fd,
		.err_fd = vvq->err_fd,
		.writethrough = vvq_writethrough(s),
		/* One that is to stop does what it owes, and begins nothing. */
		.paused = vvq->disabled || vvq->finish,
		.coalescing_us = s->controller->delay_base_us,
		.coalescing_iops = s->controller->iops_threshold,
	};

	vvq_log(vvq, &u);
	return u;
}

/* ------- virtqueues: making it so ------- */

/* The error event of a vq that was not even made: a reactor writes it, as it may block. */
struct error_event {
	struct msg msg;
	int fd;
};

static void error_event_closed(struct msg *msg)
{
	struct error_event *ev = container_of(msg, struct error_event, msg);

	control_assert();
	worker_close(ev->fd);
	free(ev);
}

static void error_event_send(struct msg *msg)
{
	struct error_event *ev = container_of(msg, struct error_event, msg);
	struct fd_signal *s;

	reactor_assert();
	s = reactor_signal_create(ev->fd);
	if (s)
		reactor_signal_send(s);
	reactor_signal_free(s);
	ev->msg.fn = error_event_closed;
	control_post(&ev->msg);
}

CONTROL_ONLY static void vvq_signal_error(const struct vhost_vq *vvq, struct reactor *r)
{
	struct error_event *ev = vvq->err_fd >= 0 ? calloc(1, sizeof(*ev)) : NULL;

	if (!ev)
		return;
	ev->fd = fcntl(vvq->err_fd, F_DUPFD_CLOEXEC, 0);
	if (ev->fd < 0) {
		free(ev);
		return;
	}
	ev->msg.fn = error_event_send;
	reactor_post(r, &ev->msg);
}

/*
 * This queue's part of the in-flight region, if there is one. -EBADMSG: it does not
 * fit, since the features have changed after the region was checked.
 */
static int vvq_inflight(const struct vhost_vq *vvq, struct vq_params *params)
{
	const struct vhost_session *s = vvq->session;
	uint64_t size;

	if (!s->inflight_mem || vvq->index >= s->inflight_queues)
		return 0;
	size = inflight_size(s->inflight_num, session_has_feature(s, VRING_F_PACKED));
	if (s->inflight_queues * size > s->inflight_mem->spans[0].size)
		return -EBADMSG;
	params->inflight_mem = s->inflight_mem;
	params->inflight = s->inflight_mem->spans[0].hva + vvq->index * size;
	params->inflight_num = s->inflight_num;
	return 0;
}

static void retry(struct control_timer *t)
{
	struct vhost_session *s = container_of(t, struct vhost_session, retry);

	control_assert();
	session_reconcile(s);
}

/* The source of a migration lets go of the image when its rings have stopped. */
CONTROL_ONLY static void vvq_wait(struct vhost_vq *vvq, int why)
{
	struct vhost_session *s = vvq->session;

	if (why == -EBUSY && !vvq->refused)
		log_limited(LOG_NOTICE, &s->controller->limit, "%s: virtqueue %u waits until no other "
			    "process uses %s", s->name, vvq->index, s->controller->desc.bdev->name);
	vvq->waits = true;
	vvq->refused |= why == -EBUSY;
	s->retry.fn = retry;
	control_timer_start(&s->retry, RETRY_MS);
}

/* A guest on another node than its reactor is slow, and nobody sees why. */
CONTROL_ONLY static void look_at_node(struct vhost_session *s, const struct vq *vq)
{
	int memory = huge_node_of_memory(vq->vring.packed ? (const void *)vq->vring.packed :
					 vq->vring.desc);
	int reactor = reactor_numa_node(vq->reactor);

	if (s->told_node || memory < 0 || memory == reactor)
		return;
	s->told_node = true;
	log_limited(LOG_NOTICE, &s->controller->limit, "%s: the guest's memory is on NUMA node %d, "
		    "core %u, which serves it, on node %d", s->name, memory,
		    reactor_cpu(vq->reactor), reactor);
}

CONTROL_ONLY static void vvq_start(struct vhost_vq *vvq)
{
	struct vhost_session *s = vvq->session;
	struct vhost_controller *c = s->controller;
	struct vq_params params = {
		.owner = vvq,
		.reactor = controller_pick_reactor(c, s),
		.desc = c->bdev_gone ? NULL : &c->desc,
		.ring = {
			.mem = s->mem,
			.desc_uva = vvq->desc_uva,
			.avail_uva = vvq->avail_uva,
			.used_uva = vvq->used_uva,
			.num = vvq->num,
			.base = vvq->base,
			.event_idx = session_has_feature(s, VRING_F_EVENT_IDX),
			.packed = session_has_feature(s, VRING_F_PACKED),
			.indirect = session_has_feature(s, VRING_F_INDIRECT_DESC),
		},
		.mem = s->mem,
		.update = vvq_update(vvq),
		.kick_fd = vvq->kick_fd,
		.features = s->features,
		.readonly = c->readonly,
		.settled = vvq->handed,
		.generation = vvq->generation,
		.name = s->name,
	};
	int rc;

	rc = vvq_inflight(vvq, &params);
	if (rc == 0)
		rc = vq_create(&params, &vvq->vq);
	if (rc == -EBUSY || rc == -EAGAIN) {
		vvq_wait(vvq, rc);
		return;
	}
	vvq->waits = vvq->refused = false;
	if (rc < 0) {
		vvq->failed = true;
		log_limited(LOG_ERROR, &s->controller->limit, "%s: virtqueue %u cannot run: %s", s->name,
			    vvq->index, rc == -EFAULT ? "its rings lie outside the memory" :
			    rc == -EINVAL ? "its rings are misaligned" :
			    rc == -EBADMSG ? "its part of the in-flight region makes no sense" :
			    strerror(-rc));
		vvq_signal_error(vvq, params.reactor);
		return;
	}
	/*
	 * The configuration space promised more before we knew. Linux waits for room for such
	 * a request for ever, and its own warning is easily missed.
	 */
	if (!params.ring.indirect && vvq->num < BLK_SEG_MAX + 2 && !s->told_small) {
		s->told_small = true;
		log_limited(LOG_WARNING, &c->limit, "%s: virtqueue %u has %u descriptors and no "
			    "indirect ones: a request in more than %u pieces will never fit, and may "
			    "stall the guest's queue", s->name, vvq->index, vvq->num,
			    vvq->num - MIN(vvq->num, 2u));
	}
	vvq->dirty = vvq->handed = vvq->renewed = false;
	if (vvq->vq->settle && vvq->vq->fl->again_count > 0)
		log_limited(LOG_NOTICE, &s->controller->limit, "%s: virtqueue %u waits until what "
			    "others began on %s has ended", s->name, vvq->index, c->desc.bdev->name);
	look_at_node(s, vvq->vq);
	vq_start(vvq->vq);
	if (!s->listed) {
		s->listed = true;
		log_info("%s: started", s->name);
	}
}

bool sessions_ending(void)
{
	return !list_empty(&ending);
}

/* Its vqs may still run in memory that the front end has taken back. */
CONTROL_ONLY static bool session_uses(const struct vhost_session *s, const struct guest_mem *mem)
{
	if (guest_mem_shares_file(s->mem, mem))
		return true;
	for (unsigned int i = 0; i < s->vq_count; i++) {
		const struct vq *vq = s->vqs[i] ? s->vqs[i]->vq : NULL;

		if (vq && vq->mem != s->mem && guest_mem_shares_file(vq->mem, mem))
			return true;
	}
	return false;
}

CONTROL_ONLY static bool memory_busy(const struct vhost_session *s)
{
	const struct vhost_session *other;

	list_for_each(other, &ending, ending) {
		if (other == s)
			continue;
		if (session_uses(other, s->mem) ||
		    guest_mem_shares_file(other->inflight_mem, s->inflight_mem))
			return true;
	}
	return false;
}

enum busy { BUSY_UNKNOWN, BUSY_MEMORY, BUSY_BDEV, NOT_BUSY };

/*
 * A session that is gone, or a ring that was stopped without waiting, may have requests
 * on their way that will still read or write the guest's memory and the disk. Until
 * they have ended, the guest must not go on, or an old write may land after a newer one.
 */
CONTROL_ONLY static bool vvq_hold(struct vhost_vq *vvq, enum busy *busy)
{
	struct vhost_session *s = vvq->session;

	/* A front end with many regions makes the question dear: it is asked once. */
	if (*busy == BUSY_UNKNOWN)
		*busy = memory_busy(s) ? BUSY_MEMORY : abandoned_hold(s) ? BUSY_BDEV : NOT_BUSY;
	if (*busy != NOT_BUSY && !vvq->held)
		log_limited(LOG_NOTICE, &s->controller->limit, "%s: virtqueue %u waits for requests "
			    "that %s left behind", s->name, vvq->index,
			    *busy == BUSY_BDEV ? "a stopped virtqueue" : "the previous connection");
	vvq->held = *busy != NOT_BUSY;
	return vvq->held;
}

/* Or, where it stops already, let it wait for less if less is wanted now. */
CONTROL_ONLY static void vvq_stop(struct vhost_vq *vvq)
{
	enum vq_stop how = vvq->session->closing ? VQ_DETACH :
		vvq_may_abandon(vvq) ? VQ_ABANDON : VQ_DRAIN;

	if (vvq->stopping) {
		vq_stop_raise(vvq->vq, how);
		return;
	}
	vvq->stopping = true;
	vq_stop(vvq->vq, how);
}

/* It was to stop once it has run, and runs now, or never will. */
CONTROL_ONLY static void vvq_finish(struct vhost_vq *vvq, bool run)
{
	if (!vvq->finish || (run ? vvq->waits && !vvq->vq : vvq->held && vvq_should_run(vvq)))
		return;
	vvq->finish = vvq->kicked = false;
	if (vvq->vq)
		vvq_stop(vvq);
}

CONTROL_ONLY static void vvq_reconcile(struct vhost_vq *vvq, enum busy *busy)
{
	bool held = vvq->held, waited = vvq->waits || vvq->ring_fetch, run;

	run = vvq_should_run(vvq);
	if (run && !vvq->vq && vvq_hold(vvq, busy))
		run = false;
	if (run && !vvq->vq && !postcopy_ring_ready(vvq))
		run = false;
	if (vvq->updating)
		return;
	if (vvq->stopping) {
		vvq_stop(vvq);
		return;
	}
	if (!vvq->vq) {
		if (run) {
			vvq_start(vvq);
			/* Its ENABLE has been answered long ago. */
			if ((held || waited) && vvq->vq)
				session_announce_config(vvq->session);
		}
		vvq_finish(vvq, run);
		return;
	}
	if (!run || vq_is_stale(vvq)) {
		vvq_stop(vvq);
		return;
	}
	if (vvq->dirty) {
		vvq->dirty = false;
		vvq->updating = true;
		vvq->vq->update = vvq_update(vvq);
		vvq->vq->update.mem = vvq->vq->mem == vvq->session->mem ?
			vvq->vq->mem : guest_mem_get(vvq->session->mem);
		if (vvq->vq->update.log_mem)
			guest_mem_get(vvq->vq->update.log_mem);
		vq_update(vvq->vq);
	}
}

CONTROL_ONLY static bool session_is_settled(const struct vhost_session *s)
{
	if (postcopy_is_busy(s))
		return false;
	for (unsigned int i = 0; i < s->vq_count; i++) {
		if (s->vqs[i] && (s->vqs[i]->stopping || s->vqs[i]->updating || s->vqs[i]->finish))
			return false;
	}
	return !s->closing || !abandoned_of(s, NULL);
}

static void session_free(struct msg *msg)
{
	struct vhost_session *s = container_of(msg, struct vhost_session, over);
	struct vhost_controller *c = s->controller;

	control_assert();
	for (unsigned int i = 0; i < s->vq_count; i++)
		vvq_free(s->vqs[i]);
	guest_mem_put(s->mem);
	guest_mem_put(s->log_mem);
	guest_mem_put(s->inflight_mem);
	close_fd(&s->backend_fd);
	list_del(&s->node);
	list_del(&s->ending);
	control_timer_stop(&s->retry);
	log_info("%s: gone", s->name);
	free(s);
	controller_session_gone(c);
	controllers_memory_released();
}

CONTROL_ONLY static void session_settle(struct vhost_session *s)
{
	void (*settled)(struct vhost_session *s) = s->settled;

	if (!session_is_settled(s))
		return;
	for (unsigned int i = 0; i < s->vq_count; i++) {
		if (s->vqs[i])
			close_fd(&s->vqs[i]->old_fd);
	}
	if (s->closing) {
		/* Not under the feet of whoever has it, its controller or a list of them. */
		if (!s->over.fn) {
			s->over.fn = session_free;
			control_post(&s->over);
		}
		return;
	}
	if (s->tell_config) {
		s->tell_config = false;
		session_config_changed(s);
	}
	if (!settled)
		return;
	s->settled = NULL;
	settled(s);
}

bool session_is_held(const struct vhost_session *s)
{
	for (unsigned int i = 0; i < s->vq_count; i++) {
		if (s->vqs[i] && s->vqs[i]->held)
			return true;
	}
	return false;
}

unsigned int session_waiting(const struct vhost_session *s)
{
	unsigned int count = 0;

	for (unsigned int i = 0; i < s->vq_count; i++) {
		const struct vhost_vq *vvq = s->vqs[i];

		if (vvq && (vvq->vq ? counter_read(&vvq->vq->settling) :
			    vvq_should_run(vvq) && (vvq->held || vvq->waits)))
			count++;
	}
	return count;
}

bool session_vq_is_owing(const struct vhost_vq *vvq)
{
	struct vq_params p = { .inflight = NULL };

	return !vvq->vq && vvq_could_run(vvq) && (vvq->held || vvq->waits) &&
	       vvq_inflight(vvq, &p) == 0 && p.inflight &&
	       inflight_has_any(p.inflight, p.inflight_num,
				session_has_feature(vvq->session, VRING_F_PACKED));
}

void session_reconcile(struct vhost_session *s)
{
	enum busy busy = list_empty(&ending) && !abandoned_any() ? NOT_BUSY : BUSY_UNKNOWN;

	/* Inside a handler: session_message() does it when the handler is through. */
	if (s->busy)
		return;
	for (unsigned int i = 0; i < s->vq_count; i++) {
		if (s->vqs[i])
			vvq_reconcile(s->vqs[i], &busy);
	}
	session_settle(s);
}

/* What its vq knows comes back; that is not the vhost_vq's any more. */
CONTROL_ONLY static struct vq *vvq_take_vq(struct vhost_vq *vvq)
{
	struct vq *vq = vvq->vq;

	vvq->base = vring_base(&vq->vring);
	vvq->broken |= vq->broken && !vvq->renewed;
	vvq->has_settled = !vq->settle;
	controller_reactor_load(vq->reactor, -1);
	vvq->vq = NULL;
	vvq->stopping = false;
	return vq;
}

void session_vq_abandoned(struct vhost_vq *vvq)
{
	abandoned_add(vvq_take_vq(vvq));
	session_reconcile(vvq->session);
}

void session_vq_stopped(struct vhost_vq *vvq)
{
	struct vhost_session *s = vvq->session;

	vq_free(vvq_take_vq(vvq));
	controller_vq_gone(s->controller);
	session_reconcile(s);
}

void session_vq_updated(struct vhost_vq *vvq)
{
	vvq->updating = false;
	session_reconcile(vvq->session);
}

void session_update_vqs(struct vhost_session *s)
{
	for (unsigned int i = 0; i < s->vq_count; i++) {
		if (s->vqs[i] && s->vqs[i]->vq)
			s->vqs[i]->dirty = true;
	}
	session_reconcile(s);
}

void session_config_changed(struct vhost_session *s)
{
	int rc;

	if (s->closing || s->backend_fd < 0 || !session_has_protocol_feature(s, VU_F_BACKEND_REQ))
		return;
	rc = backend_send(s->backend_fd, VU_BACKEND_CONFIG_CHANGE);
	if (rc < 0)
		log_limited(LOG_WARNING, &s->controller->limit,
			    "%s: cannot announce the changed configuration: %s", s->name,
			    strerror(-rc));
}

void session_announce_config(struct vhost_session *s)
{
	if (s->asked_config || s->told_config)
		return;
	s->told_config = true;
	session_config_changed(s);
}

/* ------- the life of a session ------- */

struct vhost_session *session_adopt(struct vhost_controller *c, int fd, uint32_t vid, uint32_t id)
{
	struct vhost_session *s = calloc(1, sizeof(*s));

	if (!s) {
		log_error("%s: no memory for another front end", c->name);
		close(fd);
		return NULL;
	}
	s->controller = c;
	s->vid = vid;
	s->id = id;
	next_vid = MAX(next_vid, vid + 1);
	snprintf(s->name, sizeof(s->name), "%.*ss%u", VHOST_NAME_MAX - 16, c->name, s->id);
	s->backend_fd = -1;
	s->writeback = c->writeback;
	s->offered = blk_features(c) | BIT(VHOST_F_PROTOCOL_FEATURES);
	list_add_tail(&c->sessions, &s->node);
	c->session_count++;
	if (conn_init(&s->conn, s, fd) < 0) {
		log_error("%s: cannot watch the connection: %m", s->name);
		session_close(s);
		return NULL;
	}
	if (vhost_is_frozen())
		conn_wait(&s->conn);
	return s;
}

void session_create(struct vhost_controller *c, int fd)
{
	struct vhost_session *s = session_adopt(c, fd, next_vid, c->next_session_id++);

	if (s)
		log_info("%s: a front end has connected", s->name);
}

void session_close(struct vhost_session *s)
{
	if (s->closing)
		return;
	s->closing = true;
	list_add_tail(&ending, &s->ending);
	conn_fini(&s->conn);
	postcopy_close(s);
	/* Inside a handler, which still uses s: session_message() goes on from here. */
	if (!s->busy)
		session_reconcile(s);
}
