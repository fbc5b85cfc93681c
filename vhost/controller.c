/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Controllers: a listening socket in front of a bdev. The bdev is opened first
 * and the socket listens last, so that no front end ever meets a controller that
 * cannot serve it.
 *
 * A deleted controller leaves the name space at once, but lives on until its
 * last session is gone, because that session's requests still use the bdev. When
 * the bdev is removed the controller stays: its vqs are made anew without a
 * channel and answer every request with an error.
 */
#include "vhost/vhost_internal.h"

#include "vhost/pager.h"

#include "reactor/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 128
#define ACCEPT_RETRY_MS 100
/* A hostile front end must not use up the fds of all: further ones wait to be accepted. */
#define SESSIONS_MAX 64
#define DEFAULT_IOPS_THRESHOLD 60000

static char *socket_dir;
static struct list controllers = LIST_INIT(controllers);	/* by name */
static unsigned int controller_count;				/* with those going */
static unsigned int reactor_vqs[CPUMASK_MAX];			/* running, by index */
static void (*fini_done)(void);
static void (*on_change)(void);

/* ------- reactors ------- */

void controller_reactor_load(const struct reactor *r, int delta)
{
	reactor_vqs[reactor_index(r)] += (unsigned int)delta;
}

/* The reactor that serves fewest of this session's vqs; among equals, of all vqs. */
struct reactor *controller_pick_reactor(struct vhost_controller *c, const struct vhost_session *s)
{
	unsigned int own[CPUMASK_MAX] = { 0 };
	struct reactor *best = NULL;

	for (unsigned int i = 0; i < s->vq_count; i++) {
		if (s->vqs[i] && s->vqs[i]->vq)
			own[reactor_index(s->vqs[i]->vq->reactor)]++;
	}
	for (int cpu = cpumask_next(&c->cpumask, 0); cpu >= 0;
	     cpu = cpumask_next(&c->cpumask, (unsigned int)cpu + 1)) {
		struct reactor *r = reactor_by_cpu((unsigned int)cpu);
		unsigned int i = reactor_index(r), b;

		if (best) {
			b = reactor_index(best);
			if (own[i] > own[b] || (own[i] == own[b] && reactor_vqs[i] >= reactor_vqs[b]))
				continue;
		}
		best = r;
	}
	return best;
}

/* ------- the end of a controller ------- */

static void vhost_gone(void (*done)(void)) CONTROL_ONLY;

CONTROL_ONLY static void controller_free(struct vhost_controller *c)
{
	if (c->desc.bdev)
		bdev_close(&c->desc);
	free(c->socket);
	free(c);
	controller_count--;
	if (controller_count == 0 && fini_done) {
		void (*done)(void) = fini_done;

		fini_done = NULL;
		vhost_gone(done);
	}
}

void controller_session_gone(struct vhost_controller *c)
{
	if (c->session_count-- == SESSIONS_MAX)
		controller_listen(c, !vhost_is_frozen());
	if (c->deleting && list_empty(&c->sessions))
		controller_free(c);
}

/* Whether a vq still has a channel of the bdev. */
CONTROL_ONLY static bool bdev_in_use(const struct vhost_controller *c)
{
	const struct vhost_session *s;

	list_for_each(s, &c->sessions, node) {
		for (unsigned int i = 0; i < s->vq_count; i++) {
			if (s->vqs[i] && s->vqs[i]->vq && s->vqs[i]->vq->ch)
				return true;
		}
	}
	return abandoned_in_bdev(c);
}

void controller_vq_gone(struct vhost_controller *c)
{
	if (c->bdev_gone && c->desc.bdev && !bdev_in_use(c))
		bdev_close(&c->desc);
}

CONTROL_ONLY static void stop_listening(struct vhost_controller *c)
{
	struct stat st;

	control_timer_stop(&c->accept_timer);
	if (c->listen.fd < 0)
		return;
	control_fd_del(&c->listen);
	close(c->listen.fd);
	c->listen.fd = -1;
	/* Somebody else may have put theirs in its place meanwhile. */
	if (stat(c->socket, &st) == 0 && st.st_dev == c->socket_dev && st.st_ino == c->socket_ino)
		unlink(c->socket);
}

CONTROL_ONLY static void controller_remove(struct vhost_controller *c)
{
	struct vhost_session *s;

	stop_listening(c);
	list_del(&c->node);
	if (list_empty(&c->sessions)) {
		controller_free(c);
		return;
	}
	c->deleting = true;
	list_for_each(s, &c->sessions, node)
		session_close(s);
}

void controllers_each_session(void (*fn)(struct vhost_session *s, void *arg), void *arg)
{
	struct vhost_controller *c;

	for (c = vhost_controller_next(NULL); c; c = vhost_controller_next(c)) {
		struct vhost_session *s;

		list_for_each(s, &c->sessions, node) {
			if (!s->closing)
				fn(s, arg);
		}
	}
}

static void memory_released(struct vhost_session *s, void *arg)
{
	(void)arg;
	control_assert();
	if (session_is_held(s))
		session_reconcile(s);
}

void controllers_memory_released(void)
{
	controllers_each_session(memory_released, NULL);
}

void vhost_on_change(void (*fn)(void))
{
	on_change = fn;
}

void controller_set_writeback(struct vhost_controller *c, bool writeback)
{
	if (c->writeback == writeback)
		return;
	c->writeback = writeback;
	if (on_change)
		on_change();
}

/* ------- bdev events ------- */

static void bdev_event(struct bdev_desc *desc, enum bdev_event event)
{
	struct vhost_controller *c = container_of(desc, struct vhost_controller, desc);
	struct vhost_session *s;

	control_assert();
	if (event == BDEV_EVENT_REMOVE) {
		/* One that is being deleted, as all are at the end, takes no further requests. */
		if (!c->deleting)
			log_warning("%s: bdev %s is being removed: further requests will fail",
				    c->name, desc->bdev->name);
		c->bdev_gone = true;
	}
	list_for_each(s, &c->sessions, node) {
		if (event != BDEV_EVENT_RESIZE && !s->closing)
			session_reconcile(s);
		if (event != BDEV_EVENT_READY)
			session_config_changed(s);
	}
	if (event == BDEV_EVENT_REMOVE)
		controller_vq_gone(c);
}

/* ------- the socket ------- */

static void accept_again(struct control_timer *t)
{
	struct vhost_controller *c = container_of(t, struct vhost_controller, accept_timer);

	control_assert();
	controller_listen(c, !vhost_is_frozen());
}

static void accept_event(struct control_fd *cf, uint32_t events)
{
	struct vhost_controller *c = container_of(cf, struct vhost_controller, listen);
	int fd = accept4(cf->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)events;
	control_assert();
	if (fd >= 0) {
		session_create(c, fd);
		if (c->session_count < SESSIONS_MAX)
			return;
		log_limited(LOG_WARNING, &c->limit, "%s: %u front ends are connected, more must wait",
			    c->name, c->session_count);
		control_fd_mod(cf, 0);
		return;
	}
	if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
		return;
	/* Out of fds, say: leave them in the backlog for a while. */
	log_limited(LOG_ERROR, &c->limit, "%s: cannot accept a front end: %m", c->name);
	control_fd_mod(cf, 0);
	control_timer_start(&c->accept_timer, ACCEPT_RETRY_MS);
}

/* A socket file in our way: 0 when it was stale and is gone. */
static int clear_path(const struct sockaddr_un *addr, char reason[VHOST_REASON_MAX])
{
	struct stat st;
	int fd, rc;

	if (lstat(addr->sun_path, &st) < 0)
		return errno == ENOENT ? 0 : -EIO;
	if (!S_ISSOCK(st.st_mode)) {
		snprintf(reason, VHOST_REASON_MAX, "%s exists and is not a socket", addr->sun_path);
		return -EIO;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	rc = connect(fd, (const struct sockaddr *)addr, sizeof(*addr));
	rc = rc < 0 ? -errno : 0;
	close(fd);
	if (rc != -ECONNREFUSED) {
		snprintf(reason, VHOST_REASON_MAX, "%s is in use by another process",
			 addr->sun_path);
		return -EADDRINUSE;
	}
	log_notice("%s: replacing a stale socket", addr->sun_path);
	return unlink(addr->sun_path) < 0 ? -EIO : 0;
}

void controller_listen(struct vhost_controller *c, bool on)
{
	if (c->listen.fd >= 0)
		control_fd_mod(&c->listen, on && c->session_count < SESSIONS_MAX ? EPOLLIN : 0);
}

CONTROL_ONLY static int listen_adopted(struct vhost_controller *c)
{
	c->listen.fn = accept_event;
	c->accept_timer.fn = accept_again;
	return control_fd_add(&c->listen, 0);
}

CONTROL_ONLY static int listen_at(struct vhost_controller *c, char reason[VHOST_REASON_MAX])
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct stat st;
	int rc;

	if (strlen(c->socket) >= sizeof(addr.sun_path)) {
		snprintf(reason, VHOST_REASON_MAX, "a socket path has at most %zu characters",
			 sizeof(addr.sun_path) - 1);
		return -EIO;
	}
	memcpy(addr.sun_path, c->socket, strlen(c->socket) + 1);
	rc = clear_path(&addr, reason);
	if (rc < 0)
		return rc;
	c->listen.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->listen.fd < 0)
		return -errno;
	if (bind(c->listen.fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		snprintf(reason, VHOST_REASON_MAX, "cannot make the socket %s: %s", c->socket,
			 strerror(errno));
		close(c->listen.fd);
		c->listen.fd = -1;
		return -EIO;
	}
	if (stat(c->socket, &st) == 0) {
		c->socket_dev = st.st_dev;
		c->socket_ino = st.st_ino;
	}
	c->listen.fn = accept_event;
	c->accept_timer.fn = accept_again;
	if (listen(c->listen.fd, BACKLOG) == 0 && control_fd_add(&c->listen, EPOLLIN) == 0)
		return 0;
	rc = -errno;
	unlink(c->socket);
	close(c->listen.fd);
	c->listen.fd = -1;
	return rc;
}

/* ------- create and delete ------- */

static int parse_cpumask(const char *text, struct cpumask *mask)
{
	char core_mask[CPUMASK_STR];

	if (!text) {
		*mask = *reactors_mask();
		return 0;
	}
	if (cpumask_parse(text, mask) == 0 && !cpumask_empty(mask) &&
	    cpumask_subset(mask, reactors_mask()))
		return 0;
	log_error("cpumask %s is invalid (core mask is %s)", text,
		  cpumask_format(reactors_mask(), core_mask));
	return -EINVAL;
}

CONTROL_ONLY static int check_opts(const struct vhost_controller_opts *opts, struct cpumask *mask,
		      char reason[VHOST_REASON_MAX])
{
	char core_mask[CPUMASK_STR];

	if (parse_cpumask(opts->cpumask, mask) < 0) {
		snprintf(reason, VHOST_REASON_MAX, "cpumask %.100s is invalid (core mask is %.100s)",
			 opts->cpumask, cpumask_format(reactors_mask(), core_mask));
		return -EINVAL;
	}
	if (opts->transport && strcmp(opts->transport, "vhost_user_blk") != 0) {
		snprintf(reason, VHOST_REASON_MAX, "there is no transport '%.100s'",
			 opts->transport);
		return -EINVAL;
	}
	if (vhost_controller_find(opts->name)) {
		snprintf(reason, VHOST_REASON_MAX, "a controller '%.100s' exists already",
			 opts->name);
		return -EEXIST;
	}
	if (opts->name[0] == '\0' || strchr(opts->name, '/') ||
	    strlen(opts->name) >= VHOST_NAME_MAX) {
		snprintf(reason, VHOST_REASON_MAX,
			 "'%.100s' cannot be a controller: it names a socket in %.100s", opts->name,
			 socket_dir);
		return -EIO;
	}
	return 0;
}

CONTROL_ONLY static int open_bdev(struct vhost_controller *c, const char *name,
				  char reason[VHOST_REASON_MAX])
{
	int rc = bdev_open(name, false, &c->desc);

	if (rc < 0)
		snprintf(reason, VHOST_REASON_MAX, "could not open bdev '%.100s': %s", name,
			 rc == -EPERM ? "another bdev has claimed it" : strerror(-rc));
	else
		c->block_size = c->desc.bdev->block_size;
	return rc;
}

CONTROL_ONLY static void controller_insert(struct vhost_controller *c)
{
	struct vhost_controller *pos;

	list_for_each(pos, &controllers, node) {
		if (strcmp(pos->name, c->name) > 0)
			break;
	}
	list_add_tail(&pos->node, &c->node);
}

int vhost_controller_create(const struct vhost_controller_opts *opts, char reason[VHOST_REASON_MAX])
{
	struct vhost_controller *c;
	struct cpumask mask;
	int rc;

	reason[0] = '\0';
	rc = check_opts(opts, &mask, reason);
	if (rc < 0) {
		/* A bad mask has been logged in its own words. */
		if (rc != -EINVAL || opts->transport)
			log_error("%s: %s", opts->name, reason);
		return rc;
	}
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	controller_count++;
	snprintf(c->name, sizeof(c->name), "%s", opts->name);
	c->cpumask = mask;
	c->readonly = opts->readonly;
	c->packed_ring = opts->packed_ring;
	c->iops_threshold = DEFAULT_IOPS_THRESHOLD;
	c->listen.fd = -1;
	c->desc.event = bdev_event;
	list_init(&c->sessions);
	if (asprintf(&c->socket, "%s/%s", socket_dir, opts->name) < 0) {
		c->socket = NULL;
		rc = -ENOMEM;
		goto fail;
	}
	c->bdev_gone = opts->dev_name[0] == '\0';
	rc = c->bdev_gone ? 0 : open_bdev(c, opts->dev_name, reason);
	if (rc < 0)
		goto fail;
	c->writeback = blk_writeback_default(c) && !opts->writethrough;
	rc = handover_take_socket(c);
	if (rc < 0) {
		snprintf(reason, VHOST_REASON_MAX, "its socket is not in %.200s", socket_dir);
		goto fail;
	}
	rc = rc ? listen_adopted(c) : listen_at(c, reason);
	if (rc < 0)
		goto fail;
	controller_insert(c);
	log_info("%s: bdev %s, socket %s", c->name, c->bdev_gone ? "(none)" : opts->dev_name,
		 c->socket);
	return 0;
fail:
	if (!reason[0])
		snprintf(reason, VHOST_REASON_MAX, "%s", strerror(-rc));
	log_error("%s: %s", opts->name, reason);
	controller_free(c);
	return rc;
}

int vhost_controller_attach(const char *name, const char *dev_name, char reason[VHOST_REASON_MAX])
{
	struct vhost_controller *c = vhost_controller_find(name);
	const struct bdev *bdev = bdev_find(dev_name);
	struct vhost_session *s;
	int rc;

	if (!c) {
		snprintf(reason, VHOST_REASON_MAX, "there is no controller '%.100s'", name);
		return -ENODEV;
	}
	if (c->desc.bdev) {
		snprintf(reason, VHOST_REASON_MAX, c->bdev_gone ?
			 "%.100s: requests to its former bdev have not ended" :
			 "%.100s has a bdev: delete that first", name);
		return -EBUSY;
	}
	/* Guests do not expect blocks to change. */
	if (bdev && c->block_size && bdev->block_size > c->block_size) {
		snprintf(reason, VHOST_REASON_MAX, "%.100s has blocks of %u bytes, and its guest was "
			 "told %u", dev_name, bdev->block_size, c->block_size);
		return -EINVAL;
	}
	rc = open_bdev(c, dev_name, reason);
	if (rc < 0)
		return rc;
	c->bdev_gone = false;
	log_notice("%s: bdev %s is attached", c->name, dev_name);
	list_for_each(s, &c->sessions, node) {
		if (s->closing)
			continue;
		session_want_anew(s);
		s->tell_config = true;
		session_reconcile(s);
	}
	return 0;
}

int vhost_controller_delete(const char *name, bool only_unused, char reason[VHOST_REASON_MAX])
{
	struct vhost_controller *c = vhost_controller_find(name);
	const struct vhost_session *s;

	if (!c) {
		snprintf(reason, VHOST_REASON_MAX, "there is no controller '%.100s'", name);
		return -ENODEV;
	}
	list_for_each(s, &c->sessions, node) {
		if (only_unused && !s->closing) {
			snprintf(reason, VHOST_REASON_MAX, "%.100s: a front end is connected", name);
			return -EBUSY;
		}
	}
	controller_remove(c);
	return 0;
}

int vhost_controller_set_coalescing(const char *name, uint32_t delay_base_us,
				    uint32_t iops_threshold, char reason[VHOST_REASON_MAX])
{
	struct vhost_controller *c = vhost_controller_find(name);
	struct vhost_session *s;

	if (!c) {
		snprintf(reason, VHOST_REASON_MAX, "there is no controller '%.100s'", name);
		return -ENODEV;
	}
	if (delay_base_us > VHOST_COALESCING_DELAY_MAX_US ||
	    iops_threshold < VHOST_COALESCING_IOPS_MIN) {
		snprintf(reason, VHOST_REASON_MAX,
			 "delay_base_us %u must be at most %u and iops_threshold %u at least %u",
			 delay_base_us, VHOST_COALESCING_DELAY_MAX_US, iops_threshold,
			 VHOST_COALESCING_IOPS_MIN);
		log_error("%s: %s", c->name, reason);
		return -EINVAL;
	}
	c->delay_base_us = delay_base_us;
	c->iops_threshold = iops_threshold;
	list_for_each(s, &c->sessions, node) {
		if (!s->closing)
			session_update_vqs(s);
	}
	return 0;
}

/* ------- looking ------- */

struct vhost_controller *vhost_controller_find(const char *name)
{
	struct vhost_controller *c;

	list_for_each(c, &controllers, node) {
		if (!strcmp(c->name, name))
			return c;
	}
	return NULL;
}

struct vhost_controller *vhost_controller_next(struct vhost_controller *after)
{
	struct list *next = after ? after->node.next : controllers.next;

	return next == &controllers ? NULL : list_entry(next, struct vhost_controller, node);
}

void vhost_controller_get_info(const struct vhost_controller *c, struct vhost_controller_info *info)
{
	*info = (struct vhost_controller_info){
		.name = c->name,
		.socket = c->socket,
		.bdev = c->bdev_gone ? NULL : c->desc.bdev,
		.cpumask = c->cpumask,
		.delay_base_us = c->delay_base_us,
		.iops_threshold = c->iops_threshold,
		.readonly = c->readonly || (c->desc.bdev && c->desc.bdev->readonly),
		.packed_ring = c->packed_ring,
		.writethrough = blk_writeback_default(c) && !c->writeback,
	};
}

void vhost_controller_each_session(const struct vhost_controller *c,
				   void (*fn)(const struct vhost_session_info *info, void *arg),
				   void *arg)
{
	const struct vhost_session *s;

	list_for_each(s, &c->sessions, node) {
		struct vhost_session_info info = { .vid = s->vid, .id = s->id, .name = s->name };

		if (s->closing)
			continue;
		for (unsigned int i = 0; i < s->vq_count; i++) {
			if (!s->vqs[i] || !s->vqs[i]->num)
				continue;
			info.max_queues++;
			if (!s->vqs[i]->vq)
				continue;
			info.started = true;
			info.inflight += counter_read(&s->vqs[i]->vq->inflight);
		}
		info.waiting = session_waiting(s);
		abandoned_of(s, &info.abandoned);
		fn(&info, arg);
	}
}

/* ------- start and stop ------- */

static void look_lost(struct vhost_session *s, void *arg)
{
	(void)arg;
	control_assert();
	if (!guest_mem_lost(s->mem) && !guest_mem_lost(s->log_mem) && !guest_mem_lost(s->inflight_mem))
		return;
	log_limited(LOG_ERROR, &s->controller->limit, "%s: the front end took away memory it had "
		    "shared; closing the connection", s->name);
	session_close(s);
}

/* Some guest's memory was taken away: end the sessions that had it. */
static void memory_lost(void)
{
	control_assert();
	controllers_each_session(look_lost, NULL);
}

int vhost_init(const char *dir)
{
	struct stat st;

	if (stat(dir, &st) < 0 || !S_ISDIR(st.st_mode)) {
		log_error("the socket directory %s is not there", dir);
		return -ENOTDIR;
	}
	socket_dir = strdup(dir);
	if (!socket_dir)
		return -ENOMEM;
	/* "/var/tmp/" and "/var/tmp" name sockets alike. */
	for (size_t n = strlen(socket_dir); n > 1 && socket_dir[n - 1] == '/'; n--)
		socket_dir[n - 1] = '\0';
	return guest_mem_init(memory_lost);
}

void vhost_pager(const char *name)
{
	if (name && !strcmp(name, PAGER_NAME))
		pager_main();
}

void vhost_offer_postcopy(void)
{
	postcopy_init();
}

/* The last controller is gone, or there was none. */
CONTROL_ONLY static void vhost_gone(void (*done)(void))
{
	postcopy_fini();
	guest_mem_fini();
	free(socket_dir);
	socket_dir = NULL;
	done();
}

void vhost_fini(void (*done)(void))
{
	if (controller_count == 0) {
		vhost_gone(done);
		return;
	}
	fini_done = done;
	while (!list_empty(&controllers))
		controller_remove(list_first(&controllers, struct vhost_controller, node));
}
