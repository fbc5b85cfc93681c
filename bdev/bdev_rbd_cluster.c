/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connections to Ceph clusters. Everything is owned by the control thread but
 * for a connection's handle while a worker connects it or shuts it down.
 *
 * A cluster here is one way of access: user, configuration and options. Images
 * with equal access share a cluster, registered or not, and it has up to
 * `pool_size` connections, each a RADOS client with threads of its own: one for
 * all limits throughput, one for each image makes thousands of threads. A new
 * image takes a new connection until the pool is full, then the one with the
 * fewest images.
 *
 * Connecting may take as long as the cluster likes. Who waits is queued in the
 * connection and may go away meanwhile. A connection without images is shut
 * down on a worker, as is one that failed.
 */
#include "bdev/bdev_rbd.h"

#include "reactor/log.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define DEFAULT_CONF "/etc/ceph/ceph.conf"
#define CEPH_LOG_LINE 512

struct rbd_cluster {
	struct list node;
	char *name;		/* registered; NULL: shared by equal access */
	char *core_mask;
	struct bdev_rbd_access access;
	struct list conns;
	unsigned int conn_count;
	struct bdev_result *registering;
	struct rbd_wait wait;
	struct rbd_conn *keep;	/* a registered cluster holds its first connection */
};

static struct list clusters = LIST_INIT(clusters);
/* docs/ceph.md has the figures: twice the threads, 1.4 times the reads. */
static unsigned int pool_size = 2;

void bdev_rbd_set_connections(unsigned int count)
{
	pool_size = MAX(count, 1u);
}

/* ------- Ceph's own log lines ------- */

/*
 * Ceph's libraries would print on stderr, at their own pace. They are told to
 * log into a pipe instead, and what comes out of it goes through our log.
 */
static struct {
	struct control_fd cf;
	int write_fd;
	char path[32];
	char line[CEPH_LOG_LINE];
	size_t len;
} ceph_log = { .cf.fd = -1, .write_fd = -1 };
static struct log_limit ceph_limit;

/* Ceph prints a key that it cannot decode. */
static void hide_secrets(char *line)
{
	static const char said[] = "failed to decode key";
	char *at = strstr(line, said);

	if (at)
		at[sizeof(said) - 1] = '\0';
}

static void ceph_log_event(struct control_fd *cf, uint32_t events)
{
	char buf[4096];
	ssize_t n = read(cf->fd, buf, sizeof(buf));

	(void)events;
	for (ssize_t i = 0; i < n; i++) {
		if (buf[i] != '\n') {
			if (ceph_log.len < sizeof(ceph_log.line) - 1)
				ceph_log.line[ceph_log.len++] = buf[i];
			continue;
		}
		ceph_log.line[ceph_log.len] = '\0';
		hide_secrets(ceph_log.line);
		if (ceph_log.len)
			log_limited(LOG_WARNING, &ceph_limit, "ceph: %s", ceph_log.line);
		ceph_log.len = 0;
	}
}

CONTROL_ONLY static void ceph_log_start(void)
{
	int fds[2];

	if (ceph_log.cf.fd >= 0 || pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
		return;
	ceph_log.cf.fd = fds[0];
	ceph_log.cf.fn = ceph_log_event;
	ceph_log.write_fd = fds[1];
	snprintf(ceph_log.path, sizeof(ceph_log.path), "/proc/self/fd/%d", fds[1]);
	control_fd_add(&ceph_log.cf, EPOLLIN);
}

/* ------- connecting: on a worker ------- */

static int conn_fail(struct rbd_conn *conn, int status, const char *what, const char *arg)
{
	char hosts[128] = "";

	if (conn->rados)
		rados_conf_get(conn->rados, "mon_host", hosts, sizeof(hosts));
	snprintf(conn->reason, sizeof(conn->reason), "%s%s%s%s: %s", what, arg ? arg : "",
		 hosts[0] ? " at " : "", hosts, strerror(-status));
	return status;
}

static int read_conf(struct rbd_conn *conn, const struct bdev_rbd_access *a)
{
	const char *file = a->config_file && a->config_file[0] ? a->config_file : NULL;
	int rc;

	/*
	 * Options may say everything; but a file that was named must be there. An
	 * empty file it must be: without any, librados' log ignores its options.
	 */
	if (!file && a->option_count && access(DEFAULT_CONF, F_OK) < 0)
		return rados_conf_read_file(conn->rados, "/dev/null");
	rc = rados_conf_read_file(conn->rados, file ? file : DEFAULT_CONF);
	if (rc < 0)
		return conn_fail(conn, rc, "cannot read Ceph's configuration ",
				 file ? file : DEFAULT_CONF);
	return 0;
}

static int set_option(struct rbd_conn *conn, const char *key, const char *value)
{
	int rc = rados_conf_set(conn->rados, key, value);

	return rc < 0 ? conn_fail(conn, rc, "Ceph refuses the option ", key) : 0;
}

static int configure(struct rbd_conn *conn, const struct bdev_rbd_access *a)
{
	int rc = read_conf(conn, a);

	if (rc == 0 && ceph_log.write_fd >= 0) {
		rc = set_option(conn, "log_to_stderr", "false");
		if (rc == 0)
			rc = set_option(conn, "err_to_stderr", "false");
		if (rc == 0)
			rc = set_option(conn, "log_file", ceph_log.path);
	}
	if (rc == 0 && a->key_file && a->key_file[0] && access(a->key_file, R_OK) < 0)
		rc = conn_fail(conn, -errno, "cannot read the key file ", a->key_file);
	if (rc == 0 && a->key_file && a->key_file[0])
		rc = set_option(conn, "keyring", a->key_file);
	for (unsigned int i = 0; rc == 0 && i < a->option_count; i++)
		rc = set_option(conn, a->options[i].key, a->options[i].value);
	return rc;
}

/*
 * Ceph's own default acknowledges writes that only this process has. A target may be
 * killed while its guests live on, and they would not know that those are lost. Any
 * word of the operator's (ceph.conf, the monitors' database, the pool's or image's
 * options, ours) overrides this one.
 */
static int set_defaults(struct rbd_conn *conn)
{
	static const char *args[] = { "vhost", "--default-rbd-cache=false" };
	int rc = rados_conf_parse_argv(conn->rados, ARRAY_SIZE(args), args);

	return rc < 0 ? conn_fail(conn, rc, "Ceph refuses a default", NULL) : 0;
}

static int connect_rados(struct rbd_conn *conn)
{
	const struct bdev_rbd_access *a = &conn->cluster->access;
	const char *user = a->user_id && a->user_id[0] ? a->user_id : NULL;
	int rc = rbd_lib_load(conn->reason, sizeof(conn->reason));

	if (rc < 0)
		return rc;
	rc = rados_create(&conn->rados, user);
	if (rc < 0) {
		conn->rados = NULL;
		return conn_fail(conn, rc, "cannot make a Ceph client", NULL);
	}
	rc = set_defaults(conn);
	if (rc == 0)
		rc = configure(conn, a);
	if (rc < 0)
		return rc;
	if (rados_conf_get(conn->rados, "mon_host", conn->hosts, sizeof(conn->hosts)) == 0)
		atomic_store_explicit(&conn->has_hosts, true, memory_order_release);
	rc = rados_connect(conn->rados);
	if (rc < 0)
		return conn_fail(conn, rc, "cannot connect to the cluster as client.",
				 user ? user : "admin");
	return 0;
}

static void connect_run(struct job *job)
{
	struct rbd_conn *conn = container_of(job, struct rbd_conn, job);

	conn->status = connect_rados(conn);
	if (conn->status < 0 && conn->rados) {
		rados_shutdown(conn->rados);
		conn->rados = NULL;
	}
}

static void shutdown_run(struct job *job)
{
	struct rbd_conn *conn = container_of(job, struct rbd_conn, job);

	rados_shutdown(conn->rados);
}

/* ------- life of connections and clusters ------- */

CONTROL_ONLY static void cluster_put(struct rbd_cluster *cl)
{
	if (cl->conn_count || cl->name)
		return;
	list_del(&cl->node);
	rbd_access_free(&cl->access);
	free(cl->core_mask);
	free(cl);
}

CONTROL_ONLY static void conn_free(struct rbd_conn *conn)
{
	struct rbd_cluster *cl = conn->cluster;

	list_del(&conn->node);
	cl->conn_count--;
	free(conn);
	cluster_put(cl);
}

static void shutdown_done(struct job *job)
{
	control_assert();
	conn_free(container_of(job, struct rbd_conn, job));
}

void rbd_conn_put(struct rbd_conn *conn)
{
	if (--conn->images > 0)
		return;
	/* Still connecting: connect_done() finds nobody waiting. */
	if (!conn->connected && !conn->dead)
		return;
	conn->dead = true;
	if (!conn->rados) {
		conn_free(conn);
		return;
	}
	conn->job.run = shutdown_run;
	conn->job.done = shutdown_done;
	worker_submit(&conn->job);
}

static void connect_done(struct job *job)
{
	struct rbd_conn *conn = container_of(job, struct rbd_conn, job);

	control_assert();
	if (conn->status < 0)
		conn->dead = true;
	else
		conn->connected = true;
	/* Nobody may put the last reference under this loop. */
	conn->images++;
	while (!list_empty(&conn->waiters)) {
		struct rbd_wait *w = list_first(&conn->waiters, struct rbd_wait, node);

		list_del(&w->node);
		w->done(w);
	}
	rbd_conn_put(conn);
}

CONTROL_ONLY static struct rbd_conn *conn_new(struct rbd_cluster *cl)
{
	struct rbd_conn *conn = calloc(1, sizeof(*conn));

	if (!conn)
		return NULL;
	ceph_log_start();
	conn->cluster = cl;
	list_init(&conn->waiters);
	list_add_tail(&cl->conns, &conn->node);
	cl->conn_count++;
	conn->job.run = connect_run;
	conn->job.done = connect_done;
	worker_submit(&conn->job);
	return conn;
}

static bool same_string(const char *a, const char *b)
{
	return !strcmp(a ? a : "", b ? b : "");
}

static bool same_access(const struct bdev_rbd_access *a, const struct bdev_rbd_access *b)
{
	if (!same_string(a->user_id, b->user_id) || !same_string(a->config_file, b->config_file) ||
	    !same_string(a->key_file, b->key_file) || a->option_count != b->option_count)
		return false;
	for (unsigned int i = 0; i < a->option_count; i++) {
		if (!same_string(a->options[i].key, b->options[i].key) ||
		    !same_string(a->options[i].value, b->options[i].value))
			return false;
	}
	return true;
}

CONTROL_ONLY static struct rbd_cluster *cluster_find(const char *name)
{
	struct rbd_cluster *cl;

	list_for_each(cl, &clusters, node) {
		if (cl->name && !strcmp(cl->name, name))
			return cl;
	}
	return NULL;
}

CONTROL_ONLY static struct rbd_cluster *cluster_new(const struct bdev_rbd_access *access)
{
	struct rbd_cluster *cl = calloc(1, sizeof(*cl));

	if (!cl)
		return NULL;
	if (rbd_access_copy(access, &cl->access) < 0) {
		free(cl);
		return NULL;
	}
	list_init(&cl->conns);
	list_add_tail(&clusters, &cl->node);
	return cl;
}

CONTROL_ONLY static struct rbd_cluster *cluster_shared(const struct bdev_rbd_access *access)
{
	struct rbd_cluster *cl;

	list_for_each(cl, &clusters, node) {
		if (!cl->name && same_access(&cl->access, access))
			return cl;
	}
	return cluster_new(access);
}

/* The usable connection with the fewest images; NULL: make one. */
static struct rbd_conn *conn_pick(struct rbd_cluster *cl)
{
	struct rbd_conn *conn, *best = NULL;
	unsigned int usable = 0;

	list_for_each(conn, &cl->conns, node) {
		if (conn->dead)
			continue;
		usable++;
		if (!best || conn->images < best->images)
			best = conn;
	}
	/* One that has nobody yet is as good as a new one. */
	return best && (usable >= pool_size || best->images == 0) ? best : NULL;
}

static void wait_home(struct rbd_conn *conn, struct rbd_wait *w)
{
	w->conn = conn;
	conn->images++;
	list_add_tail(&conn->waiters, &w->node);
}

struct conn_ready {
	struct msg msg;
	struct rbd_conn *conn;
};

int rbd_conn_get(const struct bdev_rbd_access *access, const char *cluster, struct rbd_wait *w)
{
	struct rbd_cluster *cl = cluster ? cluster_find(cluster) : cluster_shared(access);
	struct rbd_conn *conn;

	if (!cl)
		return cluster ? -ENOENT : -ENOMEM;
	conn = conn_pick(cl);
	if (!conn)
		conn = conn_new(cl);
	if (!conn) {
		cluster_put(cl);
		return -ENOMEM;
	}
	if (!conn->connected) {
		wait_home(conn, w);
		return 0;
	}
	w->conn = conn;
	conn->images++;
	list_init(&w->node);
	w->done(w);
	return 0;
}

void rbd_conn_cancel(struct rbd_wait *w)
{
	list_del(&w->node);
}

void rbd_conn_died(struct rbd_conn *conn)
{
	conn->dead = true;
}

/* ------- registered clusters ------- */

static void register_done(struct rbd_wait *w)
{
	struct rbd_cluster *cl = container_of(w, struct rbd_cluster, wait);
	struct bdev_result *res = cl->registering;
	struct rbd_conn *conn = w->conn;
	char reason[BDEV_REASON_MAX];
	int status = conn->status;

	control_assert();
	cl->registering = NULL;
	if (status == 0) {
		cl->keep = conn;
		bdev_result_done(res, 0, NULL, NULL);
		return;
	}
	snprintf(reason, sizeof(reason), "%s", conn->reason);
	free(cl->name);
	cl->name = NULL;
	rbd_conn_put(conn);
	bdev_result_done(res, status, NULL, "%s", reason);
}

void bdev_rbd_register_cluster(const char *name, const struct bdev_rbd_access *access,
			       const char *core_mask, struct bdev_result *res)
{
	struct rbd_cluster *cl;

	if (cluster_find(name)) {
		bdev_result_done(res, -EEXIST, NULL, "a cluster '%.100s' is registered already",
				 name);
		return;
	}
	cl = cluster_new(access);
	if (cl) {
		cl->name = strdup(name);
		cl->core_mask = core_mask ? strdup(core_mask) : NULL;
	}
	if (!cl || !cl->name || (core_mask && !cl->core_mask)) {
		if (cl) {
			free(cl->name);
			cl->name = NULL;
			cluster_put(cl);
		}
		bdev_result_done(res, -ENOMEM, NULL, NULL);
		return;
	}
	cl->registering = res;
	cl->wait.done = register_done;
	if (rbd_conn_get(&cl->access, name, &cl->wait) < 0) {
		free(cl->name);
		cl->name = NULL;
		cluster_put(cl);
		bdev_result_done(res, -ENOMEM, NULL, NULL);
	}
}

static unsigned int cluster_images(const struct rbd_cluster *cl)
{
	struct rbd_conn *conn;
	unsigned int images = 0;

	list_for_each(conn, &cl->conns, node)
		images += conn->images;
	return images - (cl->keep ? 1 : 0);
}

int bdev_rbd_unregister_cluster(const char *name, char reason[BDEV_REASON_MAX])
{
	struct rbd_cluster *cl = cluster_find(name);
	struct rbd_conn *conn;

	if (!cl) {
		snprintf(reason, BDEV_REASON_MAX, "there is no cluster '%.100s'", name);
		return -ENOENT;
	}
	if (cl->registering || cluster_images(cl)) {
		snprintf(reason, BDEV_REASON_MAX, "cluster '%.100s' is in use by %u images", name,
			 cluster_images(cl));
		return -EBUSY;
	}
	free(cl->name);
	cl->name = NULL;
	conn = cl->keep;
	cl->keep = NULL;
	if (conn)
		rbd_conn_put(conn);
	else
		cluster_put(cl);
	return 0;
}

void bdev_rbd_fini(void)
{
	struct rbd_cluster *cl, *tmp;

	list_for_each_safe(cl, tmp, &clusters, node) {
		struct rbd_conn *conn = cl->keep;

		free(cl->name);
		cl->name = NULL;
		cl->keep = NULL;
		if (conn)
			rbd_conn_put(conn);
	}
}

bool bdev_rbd_cluster_info(unsigned int index, struct bdev_rbd_cluster_info *info)
{
	struct rbd_cluster *cl;

	list_for_each(cl, &clusters, node) {
		if (!cl->name || cl->registering || index--)
			continue;
		info->name = cl->name;
		info->access = &cl->access;
		info->core_mask = cl->core_mask;
		info->images = cluster_images(cl);
		return true;
	}
	return false;
}
