/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * vhost-user framing. A message is a 12-byte header, a payload of the length the
 * header tells, and fds that come with the header's first byte. The front end is
 * not trusted: sizes, versions and fd counts are checked against the message's
 * row before anybody looks at the payload, and an fd that nobody wants is closed.
 *
 * Replies are written at once. A front end whose socket buffer is full has
 * stopped reading its answers; it loses the connection rather than our time.
 */
#include "vhost/vhost_internal.h"

#include "reactor/fdpass.h"
#include "reactor/log.h"
#include "reactor/worker.h"

#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

int msg_take_fd(struct vhost_msg *msg, unsigned int i)
{
	int fd;

	if (i >= msg->fd_count)
		return -1;
	fd = msg->fds[i];
	msg->fds[i] = -1;
	return fd;
}

void msg_close_fds(struct vhost_msg *msg)
{
	for (unsigned int i = 0; i < msg->fd_count; i++) {
		worker_close(msg->fds[i]);
		msg->fds[i] = -1;
	}
	msg->fd_count = 0;
}

/* Up to `want` bytes to `to`; 0: none now, -errno, -ECONNRESET at the end. */
static ssize_t receive(struct vhost_conn *conn, void *to, size_t want)
{
	/* More than any message carries, so that a surplus is seen and closed by a worker. */
	int fds[FDPASS_MAX];
	unsigned int count, had = conn->msg.fd_count;
	ssize_t n = fdpass_recv(conn->cf.fd, to, want, fds, &count, FDPASS_MAX, MSG_DONTWAIT);

	for (unsigned int i = 0; i < count; i++) {
		if (had + i < VHOST_FDS_MAX)
			conn->msg.fds[conn->msg.fd_count++] = fds[i];
		else
			worker_close(fds[i]);
	}
	if (had + count > VHOST_FDS_MAX)
		return -EMFILE;
	if (n == -EAGAIN || n == -EINTR)
		return 0;
	return n == 0 ? -ECONNRESET : n;
}

/* NULL, or what is wrong with the header. */
static const char *check_header(const struct vhost_msg *msg)
{
	const struct vhost_msg_row *row = vhost_msg_row(msg->header.request);

	if ((msg->header.flags & VU_FLAG_VERSION_MASK) != VU_FLAG_VERSION)
		return "has an unknown version";
	if (msg->header.flags & VU_FLAG_REPLY)
		return "is a reply to nothing";
	if (!row)
		return "is an unknown request";
	if (msg->header.size < row->size_min)
		return "is too short";
	if (msg->header.size > row->size_max)
		return "is too long";
	return NULL;
}

static const char *check_fds(const struct vhost_msg *msg)
{
	const struct vhost_msg_row *row = vhost_msg_row(msg->header.request);

	if (msg->fd_count < row->fds_min)
		return "lacks a file descriptor";
	if (msg->fd_count > row->fds_max)
		return "carries too many file descriptors";
	return NULL;
}

static const char *check_offered(const struct vhost_session *s, const struct vhost_msg *msg)
{
	const struct vhost_msg_row *row = vhost_msg_row(msg->header.request);

	if (!row->handler)
		return "was not offered";
	if (row->feature != VU_NO_FEATURE && !(s->protocol_features >> row->feature & 1))
		return "belongs to a protocol feature that was not negotiated";
	return NULL;
}

CONTROL_ONLY static void violation(struct vhost_conn *conn, const char *what)
{
	struct vhost_msg *msg = &conn->msg;
	const struct vhost_msg_row *row = vhost_msg_row(msg->header.request);

	log_limited(LOG_ERROR, &conn->session->controller->limit,
		    "%s: message %s (%u, %u bytes, %u fds) %s; closing the connection",
		    conn->session->name, row ? row->name : "?", msg->header.request,
		    msg->header.size, msg->fd_count, what);
	session_close(conn->session);
}

CONTROL_ONLY static void dispatch(struct vhost_conn *conn)
{
	struct vhost_msg *msg = &conn->msg;
	const char *wrong = check_fds(msg);

	if (!wrong)
		wrong = check_offered(conn->session, msg);
	if (wrong) {
		violation(conn, wrong);
		return;
	}
	log_debug(LOG_F_VHOST, "%s: %s, flags %x, %u bytes, %u fds", conn->session->name,
		  vhost_msg_row(msg->header.request)->name, msg->header.flags, msg->header.size,
		  msg->fd_count);
	conn->received = 0;
	session_message(conn->session, msg);
}

/* Read what is there, up to one whole message. True when to come again. */
CONTROL_ONLY static bool receive_some(struct vhost_conn *conn)
{
	struct vhost_msg *msg = &conn->msg;
	size_t have = conn->received, header = sizeof(msg->header);
	bool in_header = have < header;
	ssize_t n;

	if (in_header)
		n = receive(conn, (char *)&msg->header + have, header - have);
	else
		n = receive(conn, msg->bytes + (have - header), header + msg->header.size - have);
	if (n == 0)
		return false;
	if (n == -EMFILE) {
		violation(conn, "carries too many file descriptors");
		return false;
	}
	if (n < 0) {
		session_close(conn->session);
		return false;
	}
	conn->received += (size_t)n;
	if (conn->received < header)
		return true;
	if (in_header) {
		const char *wrong = check_header(msg);

		if (wrong) {
			violation(conn, wrong);
			return false;
		}
	}
	if (conn->received < header + msg->header.size)
		return true;
	dispatch(conn);
	return false;
}

static void conn_event(struct control_fd *cf, uint32_t events)
{
	struct vhost_conn *conn = container_of(cf, struct vhost_conn, cf);

	control_assert();
	if (conn->waiting) {
		/* Only HUP and ERR come now: nobody is left to be answered. */
		if (events & (EPOLLHUP | EPOLLERR))
			session_close(conn->session);
		return;
	}
	/* One message an event: the other sessions have theirs. */
	while (receive_some(conn))
		;
}

int conn_init(struct vhost_conn *conn, struct vhost_session *s, int fd)
{
	conn->cf.fd = fd;
	conn->cf.fn = conn_event;
	conn->session = s;
	return control_fd_add(&conn->cf, EPOLLIN);
}

void conn_fini(struct vhost_conn *conn)
{
	if (conn->cf.fd < 0)
		return;
	control_fd_del(&conn->cf);
	close(conn->cf.fd);
	conn->cf.fd = -1;
	msg_close_fds(&conn->msg);
}

void conn_wait(struct vhost_conn *conn)
{
	if (conn->cf.fd < 0 || conn->waiting)
		return;
	conn->waiting = true;
	control_fd_mod(&conn->cf, 0);
}

void conn_resume(struct vhost_conn *conn)
{
	if (conn->cf.fd < 0 || !conn->waiting || vhost_is_frozen())
		return;
	conn->waiting = false;
	control_fd_mod(&conn->cf, EPOLLIN);
}

int conn_reply(struct vhost_conn *conn, struct vhost_msg *msg, uint32_t size)
{
	return conn_reply_fd(conn, msg, size, -1);
}

int conn_reply_fd(struct vhost_conn *conn, struct vhost_msg *msg, uint32_t size, int fd)
{
	ssize_t n, len = (ssize_t)(sizeof(msg->header) + size);
	struct iovec iov[2] = { { &msg->header, sizeof(msg->header) }, { msg->bytes, size } };

	if (conn->cf.fd < 0)
		return -ENOTCONN;
	msg->header.flags = VU_FLAG_VERSION | VU_FLAG_REPLY;
	msg->header.size = size;
	n = fdpass_send(conn->cf.fd, iov, 2, &fd, fd >= 0, MSG_DONTWAIT);
	if (n == len)
		return 0;
	if (n < 0 && n != -EAGAIN)
		return (int)n;
	log_limited(LOG_ERROR, &conn->session->controller->limit,
		    "%s: the front end does not read its answers", conn->session->name);
	return -EAGAIN;
}

int backend_send(int fd, uint32_t request)
{
	struct vu_header header = { request, VU_FLAG_VERSION, 0 };
	ssize_t n = send(fd, &header, sizeof(header), MSG_DONTWAIT | MSG_NOSIGNAL);

	return n == sizeof(header) ? 0 : n < 0 ? -errno : -EIO;
}
