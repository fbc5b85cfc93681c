/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Handing over and taking over: sessions as records and back. A session is handed
 * over whole, as what its front end wants, which is what session_reconcile() works
 * from anyway; what runs is made anew by the successor.
 *
 * The successor trusts its predecessor as far as it trusts itself: records are
 * checked for sense, so that a bug is an error and not a crash, but what they tell
 * has passed the checks of the predecessor's messages once.
 */
#include "vhost/handover.h"

#include "vhost/vhost_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>

/* A listening socket that waits for its controller. */
struct offered {
	struct list node;
	struct handover_controller record;
	int fd;
};

static struct list offers = LIST_INIT(offers);
static bool frozen, rings_held;
static unsigned int measuring;	/* rings that have not answered yet */

bool vhost_is_frozen(void)
{
	return frozen;
}

bool vhost_rings_held(void)
{
	return rings_held;
}

/* ------- standing still, and going on ------- */

static void wait_session(struct vhost_session *s, void *arg)
{
	(void)arg;
	control_assert();
	if (s->conn.received == 0)
		conn_wait(&s->conn);
}

void vhost_freeze(void)
{
	struct vhost_controller *c;

	frozen = true;
	for (c = vhost_controller_next(NULL); c; c = vhost_controller_next(c))
		controller_listen(c, false);
	controllers_each_session(wait_session, NULL);
}

static void look_settled(struct vhost_session *s, void *arg)
{
	/* A pager and what waits for it cannot be handed over: it will end. */
	if (s->settled || s->conn.received > 0 || s->postcopy)
		*(bool *)arg = false;
}

bool vhost_is_settled(void)
{
	bool settled = !sessions_ending() && !abandoned_any();

	controllers_each_session(look_settled, &settled);
	return settled;
}

static void drop_partial(struct vhost_session *s, void *arg)
{
	(void)arg;
	control_assert();
	if (s->conn.received == 0 || s->settled)
		return;
	log_limited(LOG_WARNING, &s->controller->limit, "%s: the front end has sent half a message "
		    "and stopped; closing the connection", s->name);
	session_close(s);
}

void vhost_drop_partial(void)
{
	controllers_each_session(drop_partial, NULL);
}

/* ------- how long stopping would take ------- */

static void measure_session(struct vhost_session *s, void *arg)
{
	(void)arg;
	control_assert();
	for (unsigned int i = 0; i < s->vq_count; i++) {
		struct vhost_vq *vvq = s->vqs[i];

		if (!vvq)
			continue;
		vvq->oldest_us = 0;
		/* Asked already, by a takeover that was given up: that answer will do. */
		if (!vvq->vq || vvq->stopping || vvq->measuring)
			continue;
		vvq->measuring = true;
		measuring++;
		vq_measure(vvq->vq);
	}
}

void vhost_measure(void)
{
	controllers_each_session(measure_session, NULL);
}

void session_vq_measured(struct vhost_vq *vvq)
{
	vvq->oldest_us = vvq->vq->oldest_us;
	vvq->measuring = false;
	measuring--;
}

static uint64_t session_oldest_us(const struct vhost_session *s)
{
	uint64_t oldest = 0;

	for (unsigned int i = 0; i < s->vq_count; i++) {
		if (s->vqs[i])
			oldest = MAX(oldest, s->vqs[i]->oldest_us);
	}
	return oldest;
}

struct found {
	const struct vhost_session *session;
	uint64_t oldest_us;
};

static void look_oldest(struct vhost_session *s, void *arg)
{
	struct found *f = arg;
	uint64_t oldest = session_oldest_us(s);

	if (f->session && oldest <= f->oldest_us)
		return;
	f->session = s;
	f->oldest_us = oldest;
}

/* What to call its disk. */
static const char *disk_name(const struct vhost_session *s)
{
	static char name[BDEV_NAME_MAX + 16];

	if (!s)
		snprintf(name, sizeof(name), "a front end that has gone");
	else if (s->controller->desc.bdev)
		snprintf(name, sizeof(name), "bdev %s", s->controller->desc.bdev->name);
	else
		snprintf(name, sizeof(name), "controller %s", s->controller->name);
	return name;
}

bool vhost_measured(uint64_t *oldest_us, const char **whose)
{
	struct found f = { 0 };

	if (measuring)
		return false;
	controllers_each_session(look_oldest, &f);
	*oldest_us = f.oldest_us;
	*whose = disk_name(f.session);
	return true;
}

/* ------- stopping the rings ------- */

static void rest_session(struct vhost_session *s, void *arg)
{
	control_assert();
	if (session_oldest_us(s) >= *(const uint64_t *)arg)
		s->resting = true;
	session_reconcile(s);
}

void vhost_rest(uint64_t oldest_us)
{
	/* What is left of this process shares its cores with the successor. */
	if (oldest_us == 0)
		reactors_yield(true);
	controllers_each_session(rest_session, &oldest_us);
}

static bool session_runs(const struct vhost_session *s)
{
	for (unsigned int i = 0; i < s->vq_count; i++) {
		if (s->vqs[i] && s->vqs[i]->vq)
			return true;
	}
	return false;
}

static void look_resting(struct vhost_session *s, void *arg)
{
	struct found *f = arg;

	if (s->resting && session_runs(s))
		f->session = s;
}

bool vhost_at_rest(const char **whose)
{
	struct found f = { 0 };

	controllers_each_session(look_resting, &f);
	if (!f.session && !sessions_ending())
		return true;
	*whose = disk_name(f.session);
	return false;
}

static void rest_less(struct vhost_session *s, void *arg)
{
	(void)arg;
	control_assert();
	s->resting = s->resting && session_runs(s);
	session_reconcile(s);
}

void vhost_rest_less(void)
{
	reactors_yield(false);
	controllers_each_session(rest_less, NULL);
}

static void go_on(struct vhost_session *s, void *arg)
{
	(void)arg;
	control_assert();
	s->resting = false;
	session_reconcile(s);
	/* One whose message is not through is resumed when it is. */
	if (!s->settled && !s->closing)
		conn_resume(&s->conn);
}

void vhost_thaw(void)
{
	struct vhost_controller *c;

	frozen = rings_held = false;
	reactors_yield(false);
	controllers_each_session(go_on, NULL);
	for (c = vhost_controller_next(NULL); c; c = vhost_controller_next(c))
		controller_listen(c, true);
}

void vhost_disown(void)
{
	struct vhost_controller *c;

	for (c = vhost_controller_next(NULL); c; c = vhost_controller_next(c))
		c->socket_ino = 0;
}

/* ------- out ------- */

struct out {
	handover_emit_fn *emit;
	void *arg;
	int rc;
};

static void put(struct out *o, uint16_t type, const void *body, size_t len, const int *fds,
		unsigned int fd_count)
{
	if (o->rc == 0)
		o->rc = o->emit(o->arg, type, body, (uint32_t)len, fds, fd_count);
}

static void put_memory(struct out *o, const struct vhost_session *s, const struct guest_mem *mem,
		       enum handover_region_kind kind)
{
	for (unsigned int i = 0; mem && i < mem->count; i++) {
		const struct mem_region *r = mem->regions[i];
		struct handover_region rec = {
			.gpa = r->gpa, .size = r->size, .uva = r->uva, .offset = r->offset,
			.vid = s->vid, .kind = kind,
		};

		put(o, HANDOVER_REGION, &rec, sizeof(rec), &r->fd, 1);
	}
}

static void put_vq(struct out *o, const struct vhost_vq *vvq)
{
	const int fds[3] = { vvq->kick_fd, vvq->call_fd, vvq->err_fd };
	struct handover_vq rec = {
		.desc_uva = vvq->desc_uva, .avail_uva = vvq->avail_uva, .used_uva = vvq->used_uva,
		.log_gpa = vvq->log_gpa, .vid = vvq->session->vid, .index = vvq->index,
		.num = vvq->num, .has_addr = vvq->has_addr, .kicked = vvq->kicked,
		.enabled = vvq->enabled, .disabled = vvq->disabled,
	};
	int there[3];
	unsigned int count = 0;

	for (unsigned int i = 0; i < ARRAY_SIZE(fds); i++) {
		if (fds[i] < 0)
			continue;
		rec.fds |= (uint8_t)(1u << i);
		there[count++] = fds[i];
	}
	put(o, HANDOVER_VQ, &rec, sizeof(rec), there, count);
}

static void put_session(struct vhost_session *s, void *arg)
{
	const int fds[2] = { s->conn.cf.fd, s->backend_fd };
	struct handover_session rec = {
		.features = s->features, .protocol_features = s->protocol_features,
		.offered = s->offered, .vid = s->vid, .id = s->id,
		.inflight_queues = s->inflight_queues, .inflight_num = s->inflight_num,
		.status = s->status, .writeback = s->writeback, .asked_config = s->asked_config,
		.told_config = s->told_config, .has_backend = s->backend_fd >= 0,
	};
	struct out *o = arg;

	snprintf(rec.controller, sizeof(rec.controller), "%s", s->controller->name);
	put(o, HANDOVER_SESSION, &rec, sizeof(rec), fds, rec.has_backend ? 2 : 1);
	put_memory(o, s, s->mem, HANDOVER_MEMORY);
	put_memory(o, s, s->log_mem, HANDOVER_LOG);
	put_memory(o, s, s->inflight_mem, HANDOVER_INFLIGHT);
	for (unsigned int i = 0; i < s->vq_count; i++) {
		if (s->vqs[i])
			put_vq(o, s->vqs[i]);
	}
}

/* Whether this very socket is what its path leads to. */
static bool socket_stands(const struct vhost_controller *c, dev_t dev, ino_t ino)
{
	struct stat st;

	return stat(c->socket, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

int vhost_export(handover_emit_fn *emit, void *arg)
{
	struct out o = { emit, arg, 0 };
	struct vhost_controller *c;

	for (c = vhost_controller_next(NULL); c; c = vhost_controller_next(c)) {
		struct handover_controller rec = {
			.next_session_id = c->next_session_id, .writeback = c->writeback,
			.block_size = c->block_size,
		};

		if (socket_stands(c, c->socket_dev, c->socket_ino)) {
			rec.socket_dev = c->socket_dev;
			rec.socket_ino = c->socket_ino;
		}
		snprintf(rec.name, sizeof(rec.name), "%s", c->name);
		put(&o, HANDOVER_CONTROLLER, &rec, sizeof(rec), &c->listen.fd, 1);
	}
	controllers_each_session(put_session, &o);
	return o.rc;
}

static void put_positions(struct vhost_session *s, void *arg)
{
	struct handover_alive alive = { s->vid };

	for (unsigned int i = 0; i < s->vq_count; i++) {
		const struct vhost_vq *vvq = s->vqs[i];

		if (vvq) {
			struct handover_position rec = { s->vid, i, vvq->base, vvq->broken,
							 vvq->waits, vvq->has_settled };

			put(arg, HANDOVER_POSITION, &rec, sizeof(rec), NULL, 0);
		}
	}
	put(arg, HANDOVER_ALIVE, &alive, sizeof(alive), NULL, 0);
}

int vhost_export_positions(handover_emit_fn *emit, void *arg)
{
	struct out o = { emit, arg, 0 };

	controllers_each_session(put_positions, &o);
	return o.rc;
}

/* ------- in ------- */

struct wanted {
	uint32_t vid;
	struct vhost_session *found;
};

static void look_vid(struct vhost_session *s, void *arg)
{
	struct wanted *w = arg;

	if (s->vid == w->vid)
		w->found = s;
}

CONTROL_ONLY static struct vhost_session *session_by_vid(uint32_t vid)
{
	struct wanted w = { vid, NULL };

	controllers_each_session(look_vid, &w);
	return w.found;
}

static int take_fd(struct handover_record *rec, unsigned int i)
{
	int fd = rec->fds[i];

	rec->fds[i] = -1;
	return fd;
}

CONTROL_ONLY static int take_controller(struct handover_record *rec)
{
	const struct handover_controller *body = rec->body;
	struct offered *offer;

	if (rec->fd_count != 1 || !memchr(body->name, '\0', sizeof(body->name)))
		return -EPROTO;
	offer = calloc(1, sizeof(*offer));
	if (!offer)
		return -ENOMEM;
	offer->record = *body;
	offer->fd = take_fd(rec, 0);
	list_add_tail(&offers, &offer->node);
	return 0;
}

int handover_take_socket(struct vhost_controller *c)
{
	struct offered *offer;

	list_for_each(offer, &offers, node) {
		if (strcmp(offer->record.name, c->name) != 0)
			continue;
		if (offer->record.socket_ino &&
		    !socket_stands(c, offer->record.socket_dev, offer->record.socket_ino))
			return -EADDRNOTAVAIL;
		c->listen.fd = offer->fd;
		c->socket_dev = offer->record.socket_dev;
		c->socket_ino = offer->record.socket_ino;
		c->next_session_id = offer->record.next_session_id;
		c->writeback = offer->record.writeback;
		c->block_size = offer->record.block_size;
		list_del(&offer->node);
		free(offer);
		return 1;
	}
	return 0;
}

CONTROL_ONLY static int take_session(struct handover_record *rec)
{
	const struct handover_session *body = rec->body;
	struct vhost_controller *c;
	struct vhost_session *s;

	if (rec->fd_count != 1u + body->has_backend ||
	    !memchr(body->controller, '\0', sizeof(body->controller)) || session_by_vid(body->vid))
		return -EPROTO;
	c = vhost_controller_find(body->controller);
	if (!c)
		return -EPROTO;
	s = session_adopt(c, take_fd(rec, 0), body->vid, body->id);
	if (!s)
		return -ENOMEM;
	s->features = body->features;
	s->protocol_features = body->protocol_features;
	s->offered = body->offered;
	s->inflight_queues = body->inflight_queues;
	s->inflight_num = body->inflight_num;
	s->status = body->status;
	s->writeback = body->writeback;
	s->asked_config = body->asked_config;
	s->told_config = body->told_config;
	if (body->has_backend)
		s->backend_fd = take_fd(rec, 1);
	return 0;
}

CONTROL_ONLY static int take_region(struct handover_record *rec)
{
	const struct handover_region *body = rec->body;
	struct vhost_session *s = session_by_vid(body->vid);
	struct guest_mem **slot, *mem = NULL;
	struct mem_region *region;
	int rc;

	if (!s || rec->fd_count != 1 || body->kind > HANDOVER_INFLIGHT)
		return -EPROTO;
	slot = body->kind == HANDOVER_MEMORY ? &s->mem :
		body->kind == HANDOVER_LOG ? &s->log_mem : &s->inflight_mem;
	rc = mem_region_map(body->gpa, body->size, body->uva, body->offset, rec->fds[0], &region);
	if (rc == 0) {
		rc = guest_mem_add(*slot, region, &mem);
		if (rc < 0)
			mem_region_free(region);
	}
	if (rc == -ENOMEM || rc == -EMFILE || rc == -ENFILE)
		return rc;
	/* A front end that has truncated what it shares loses its session, and no other does. */
	if (rc < 0) {
		log_error("%s: what the front end shares cannot be mapped any more: %s; closing the "
			  "connection", s->name, strerror(-rc));
		s->unfit = true;
		return 0;
	}
	guest_mem_put(*slot);
	*slot = mem;
	return 0;
}

CONTROL_ONLY static int take_vq(struct handover_record *rec)
{
	const struct handover_vq *body = rec->body;
	struct vhost_session *s = session_by_vid(body->vid);
	struct vhost_vq *vvq = s ? session_vq(s, body->index) : NULL;
	int *slots[3];
	unsigned int next = 0;

	if (!vvq || body->num > VRING_SIZE_MAX ||
	    rec->fd_count != (unsigned int)__builtin_popcount(body->fds & 7))
		return -EPROTO;
	vvq->num = body->num;
	vvq->desc_uva = body->desc_uva;
	vvq->avail_uva = body->avail_uva;
	vvq->used_uva = body->used_uva;
	vvq->log_gpa = body->log_gpa;
	vvq->has_addr = body->has_addr;
	vvq->kicked = body->kicked;
	vvq->enabled = body->enabled;
	vvq->disabled = body->disabled;
	slots[0] = &vvq->kick_fd;
	slots[1] = &vvq->call_fd;
	slots[2] = &vvq->err_fd;
	for (unsigned int i = 0; i < ARRAY_SIZE(slots); i++) {
		if (body->fds >> i & 1)
			*slots[i] = take_fd(rec, next++);
	}
	return 0;
}

CONTROL_ONLY static int take_position(struct handover_record *rec)
{
	const struct handover_position *body = rec->body;
	struct vhost_session *s = session_by_vid(body->vid);

	/* Its front end has hung up, as we have seen and the predecessor had not. */
	if (!s)
		return 0;
	if (body->index >= s->vq_count || !s->vqs[body->index])
		return -EPROTO;
	s->vqs[body->index]->base = body->base;
	s->vqs[body->index]->broken = body->broken;
	s->vqs[body->index]->waits = body->waits;
	s->vqs[body->index]->handed = s->vqs[body->index]->kicked && body->has_settled;
	return 0;
}

CONTROL_ONLY static int take_alive(struct handover_record *rec)
{
	const struct handover_alive *body = rec->body;
	struct vhost_session *s = session_by_vid(body->vid);

	if (s)
		s->alive = !s->unfit;
	return 0;
}

int vhost_import(struct handover_record *rec)
{
	static const struct {
		int (*take)(struct handover_record *rec);
		size_t len;
	} kinds[HANDOVER_VHOST_END] = {
		[HANDOVER_CONTROLLER] = { take_controller, sizeof(struct handover_controller) },
		[HANDOVER_SESSION] = { take_session, sizeof(struct handover_session) },
		[HANDOVER_REGION] = { take_region, sizeof(struct handover_region) },
		[HANDOVER_VQ] = { take_vq, sizeof(struct handover_vq) },
		[HANDOVER_POSITION] = { take_position, sizeof(struct handover_position) },
		[HANDOVER_ALIVE] = { take_alive, sizeof(struct handover_alive) },
	};
	int rc = -EPROTO;

	frozen = rings_held = true;
	/* Both of one version: a length that differs is a mistake. */
	if (rec->type < HANDOVER_VHOST_END && kinds[rec->type].take &&
	    rec->len == kinds[rec->type].len)
		rc = kinds[rec->type].take(rec);
	for (unsigned int i = 0; i < rec->fd_count; i++) {
		worker_close(rec->fds[i]);
		rec->fds[i] = -1;
	}
	return rc;
}

static void close_dead(struct vhost_session *s, void *arg)
{
	(void)arg;
	control_assert();
	if (!s->alive)
		session_close(s);
}

void vhost_import_end(void)
{
	controllers_each_session(close_dead, NULL);
	while (!list_empty(&offers)) {
		struct offered *offer = list_first(&offers, struct offered, node);

		log_warning("the socket of controller %s is not wanted any more", offer->record.name);
		close(offer->fd);
		list_del(&offer->node);
		free(offer);
	}
}
