/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The RPC socket: its files, its lock, and accepting clients (client.c), up to
 * CLIENTS_MAX at a time.
 */
#include "rpc/client.h"
#include "rpc/rpc.h"

#include "reactor/control.h"
#include "reactor/log.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define CLIENTS_MAX 1024u
#define ACCEPT_PAUSE_MS 100u

static struct {
	struct control_fd listener;
	struct control_timer accept_again;
	bool accepting;			/* the listener is watched */
	bool held;			/* ... and must not be */
	int lock_fd;
	bool disowned;			/* the files are another process's by now */
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	char lock_path[sizeof(((struct sockaddr_un *)0)->sun_path) + 8];
} server = { .listener.fd = -1, .lock_fd = -1 };

static struct log_limit accept_limit;

void rpc_server_fds(int fds[2])
{
	fds[0] = server.listener.fd;
	fds[1] = server.lock_fd;
}

void rpc_disown(void)
{
	server.disowned = true;
}

/* ------- accepting ------- */

static void server_accept_stop(void) CONTROL_ONLY
{
	if (server.accepting)
		control_fd_del(&server.listener);
	server.accepting = false;
}

static void server_accept_again(struct control_timer *t)
{
	(void)t;
	control_assert();
	rpc_server_accept_more();
}

void rpc_server_accept_more(void)
{
	if (server.accepting || server.held || server.listener.fd < 0 ||
	    rpc_client_count() >= CLIENTS_MAX)
		return;
	if (control_fd_add(&server.listener, EPOLLIN) == 0) {
		server.accepting = true;
		return;
	}
	log_limited(LOG_ERROR, &accept_limit, "cannot wait for RPC clients: %m");
	server.accept_again.fn = server_accept_again;
	control_timer_start(&server.accept_again, ACCEPT_PAUSE_MS);
}

void rpc_hold(bool on)
{
	server.held = on;
	on ? server_accept_stop() : rpc_server_accept_more();
}

static void server_event(struct control_fd *cf, uint32_t events)
{
	(void)events;
	control_assert();
	while (rpc_client_count() < CLIENTS_MAX) {
		int fd = accept4(cf->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		int rc = fd < 0 ? -errno : rpc_client_new(fd);

		if (rc == 0 || rc == -EINTR || rc == -ECONNABORTED)
			continue;
		if (rc == -EAGAIN)
			return;
		/* Out of fds or memory: the connection waits in the backlog. */
		log_limited(LOG_ERROR, &accept_limit, "cannot accept an RPC client: %s",
			    rpc_strerror(-rc));
		if (fd >= 0)
			close(fd);
		server_accept_stop();
		server.accept_again.fn = server_accept_again;
		control_timer_start(&server.accept_again, ACCEPT_PAUSE_MS);
		return;
	}
	server_accept_stop();
}

/* ------- the socket ------- */

/*
 * The lock file stays locked while we live, so a socket file without a lock
 * holder is a crashed target's. It is removed at the end, hence the look
 * whether the file locked is still the one of that name.
 */
static int server_lock(void)
{
	for (;;) {
		struct stat mine, named;
		int fd = open(server.lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

		if (fd < 0) {
			int rc = -errno;

			log_error("RPC lock file %s: %s", server.lock_path, rpc_strerror(-rc));
			return rc;
		}
		if (flock(fd, LOCK_EX | LOCK_NB)) {
			log_error("RPC Unix domain socket path %s in use by a live process. "
				  "Specify another.", server.path);
			close(fd);
			return -EADDRINUSE;
		}
		if (fstat(fd, &mine) == 0 && stat(server.lock_path, &named) == 0 &&
		    mine.st_ino == named.st_ino && mine.st_dev == named.st_dev) {
			server.lock_fd = fd;
			return 0;
		}
		close(fd);
	}
}

/* A socket nobody listens on is removed; anything else stays and is refused. */
static int server_remove_stale(const struct sockaddr_un *addr)
{
	struct stat st;
	int fd, rc;

	if (lstat(addr->sun_path, &st))
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode)) {
		log_error("RPC socket path %s exists and is not a socket", addr->sun_path);
		return -EEXIST;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	rc = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) ? errno : 0;
	close(fd);
	if (rc != ECONNREFUSED && rc != ENOENT) {
		log_error("RPC Unix domain socket path %s in use. Specify another.",
			  addr->sun_path);
		return -EADDRINUSE;
	}
	if (unlink(addr->sun_path) && errno != ENOENT)
		return -errno;
	return 0;
}

static int server_listen(void) CONTROL_ONLY
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd, rc;

	memcpy(addr.sun_path, server.path, sizeof(addr.sun_path));
	rc = server_remove_stale(&addr);
	if (rc)
		return rc;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	/* The mode of the socket's inode is the mode bind() gives the file. */
	if (fchmod(fd, 0600) || bind(fd, (const struct sockaddr *)&addr, sizeof(addr)))
		goto fail;
	if (listen(fd, 1024)) {
		int saved = errno;

		unlink(server.path);
		errno = saved;
		goto fail;
	}
	server.listener.fd = fd;
	server.listener.fn = server_event;
	rpc_server_accept_more();
	return 0;
fail:
	rc = -errno;
	close(fd);
	return rc;
}

/* Handed over: those who have connected meanwhile wait in the backlog. */
static void server_adopt(const struct rpc_config *config) CONTROL_ONLY
{
	server.listener.fd = config->adopted[0];
	server.lock_fd = config->adopted[1];
	server.listener.fn = server_event;
	rpc_server_accept_more();
}

int rpc_prepare(const struct rpc_config *config)
{
	if (strlen(config->path) >= sizeof(server.path)) {
		log_error("RPC socket path %s is longer than %zu bytes", config->path,
			  sizeof(server.path) - 1);
		return -ENAMETOOLONG;
	}
	memset(server.path, 0, sizeof(server.path));
	memcpy(server.path, config->path, strlen(config->path));
	snprintf(server.lock_path, sizeof(server.lock_path), "%s.lock", server.path);
	return rpc_dispatch_init(config);
}

int rpc_start(const struct rpc_config *config)
{
	int rc = rpc_prepare(config);

	if (rc)
		return rc;
	/* Guests are served already: nothing from here on may end us. */
	if (config->adopted) {
		server_adopt(config);
		return 0;
	}
	rc = server_lock();
	if (rc)
		goto fail;
	rc = server_listen();
	if (rc == 0)
		return 0;
	log_error("RPC socket %s: %s", server.path, rpc_strerror(-rc));
fail:
	rpc_stop();
	return rc;
}

void rpc_stop(void)
{
	server_accept_stop();
	control_timer_stop(&server.accept_again);
	if (server.listener.fd >= 0) {
		close(server.listener.fd);
		server.listener.fd = -1;
		if (!server.disowned)
			unlink(server.path);
	}
	rpc_clients_close();
	if (server.lock_fd >= 0) {
		if (!server.disowned)
			unlink(server.lock_path);
		close(server.lock_fd);
		server.lock_fd = -1;
	}
	rpc_dispatch_fini();
}
