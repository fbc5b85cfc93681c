/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bytes, messages and file descriptors on the vhost-user socket.
 *
 * The socket is non-blocking and every wait has a deadline, so a target that is stuck, dead or
 * silent costs a test its timeout and never its life. While we wait for the back end's answer we
 * serve its own channel as well: it may ask us something (CONFIG_CHANGE with NEED_REPLY) before
 * it answers, and a front end that does not listen there would hang it.
 *
 * fe_send_bytes and fe_send_raw send whatever they are given. fe_send and fe_call are for polite
 * use: they add NEED_REPLY where the chosen style has it and check what comes back.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "frontend.h"

#define HEADER_LEN 12u

static int backend_serve(struct fe *fe, struct fe_msg *msg, uint64_t deadline);

uint64_t fe_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t deadline_of(int timeout_ms)
{
	return fe_now_ns() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * 1000000u;
}

static int ms_left(uint64_t deadline)
{
	uint64_t now = fe_now_ns();

	if (now >= deadline)
		return 0;
	return (int)((deadline - now + 999999u) / 1000000u);
}

static ssize_t send_some(int sock, const uint8_t *buf, size_t len, const int *fds,
			 unsigned int num_fds)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * FE_MAX_FDS)];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = (void *)(uintptr_t)buf, .iov_len = len };
	struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (num_fds > 0) {
		struct cmsghdr *cmsg;

		memset(&control, 0, sizeof(control));
		hdr.msg_control = control.buf;
		hdr.msg_controllen = CMSG_SPACE(sizeof(int) * num_fds);
		cmsg = CMSG_FIRSTHDR(&hdr);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int) * num_fds);
		memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * num_fds);
	}
	return sendmsg(sock, &hdr, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static int send_all(int sock, const void *buf, size_t len, const int *fds, unsigned int num_fds,
		    uint64_t deadline)
{
	const uint8_t *p = buf;

	if (num_fds > FE_MAX_FDS)
		return -EINVAL;
	while (len > 0) {
		ssize_t n = send_some(sock, p, len, fds, num_fds);

		if (n > 0) {
			p += n;
			len -= (size_t)n;
			num_fds = 0;
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			struct pollfd pfd = { .fd = sock, .events = POLLOUT };

			if (ms_left(deadline) == 0)
				return -ETIMEDOUT;
			poll(&pfd, 1, ms_left(deadline));
			continue;
		}
		return n < 0 ? -errno : -EPIPE;
	}
	return 0;
}

int fe_send_bytes(struct fe *fe, const void *buf, size_t len, const int *fds, unsigned int num_fds)
{
	return send_all(fe->sock, buf, len, fds, num_fds, deadline_of((int)fe->opts.timeout_ms));
}

int fe_send_raw(struct fe *fe, uint32_t request, uint32_t flags, uint32_t size,
		const void *payload, size_t len, const int *fds, unsigned int num_fds)
{
	uint32_t header[3] = { request, flags, size };
	uint8_t *buf = malloc(HEADER_LEN + len);
	int rc;

	if (!buf)
		return -ENOMEM;
	memcpy(buf, header, HEADER_LEN);
	if (len > 0)
		memcpy(buf + HEADER_LEN, payload, len);
	rc = fe_send_bytes(fe, buf, HEADER_LEN + len, fds, num_fds);
	free(buf);
	return rc;
}

static void take_fds(struct msghdr *hdr, struct fe_msg *msg)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(hdr); c; c = CMSG_NXTHDR(hdr, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (msg->num_fds < FE_MAX_FDS)
				msg->fds[msg->num_fds++] = fd;
			else
				close(fd);
		}
	}
}

/* Wait for `sock`; on the main socket, answer the back end's channel meanwhile. */
static int wait_readable(struct fe *fe, int sock, uint64_t deadline)
{
	struct pollfd pfd[2] = {
		{ .fd = sock, .events = POLLIN },
		{ .fd = sock == fe->backend_sock ? -1 : fe->backend_sock, .events = POLLIN },
	};

	for (;;) {
		int left = ms_left(deadline);
		int n = poll(pfd, 2, left);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && pfd[0].revents)
			return 0;
		if (n > 0 && pfd[1].revents && backend_serve(fe, NULL, deadline) < 0)
			pfd[1].fd = -1;
		if (left == 0)
			return -ETIMEDOUT;
	}
}

static int recv_all(struct fe *fe, int sock, void *buf, size_t len, struct fe_msg *msg,
		    uint64_t deadline)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * FE_MAX_FDS)];
		struct cmsghdr align;
	} control;
	uint8_t *p = buf;

	while (len > 0) {
		struct iovec iov = { .iov_base = p, .iov_len = len };
		struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf,
				      .msg_controllen = sizeof(control.buf) };
		ssize_t n = recvmsg(sock, &hdr, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

		if (n > 0) {
			take_fds(&hdr, msg);
			p += n;
			len -= (size_t)n;
			continue;
		}
		if (n == 0)
			return -EPIPE;
		if (errno == EAGAIN || errno == EWOULDBLOCK) {
			int rc = wait_readable(fe, sock, deadline);

			if (rc < 0)
				return rc;
			continue;
		}
		if (errno != EINTR)
			return errno == ECONNRESET ? -EPIPE : -errno;
	}
	return 0;
}

static int recv_from(struct fe *fe, int sock, struct fe_msg *msg, uint64_t deadline)
{
	uint32_t header[3];
	int rc;

	msg->num_fds = 0;
	rc = recv_all(fe, sock, header, sizeof(header), msg, deadline);
	if (rc < 0)
		goto fail;
	msg->request = header[0];
	msg->flags = header[1];
	msg->size = header[2];
	rc = -EMSGSIZE;
	if (msg->size > FE_MAX_PAYLOAD)
		goto fail;
	rc = recv_all(fe, sock, msg->payload, msg->size, msg, deadline);
	if (rc == 0)
		return 0;
fail:
	fe_msg_close(msg);
	return rc;
}

int fe_recv_msg(struct fe *fe, struct fe_msg *msg, int timeout_ms)
{
	return recv_from(fe, fe->sock, msg, deadline_of(timeout_ms));
}

void fe_msg_close(struct fe_msg *msg)
{
	for (uint32_t i = 0; i < msg->num_fds; i++)
		close(msg->fds[i]);
	msg->num_fds = 0;
}

int fe_closed(struct fe *fe, int timeout_ms)
{
	uint64_t deadline = deadline_of(timeout_ms);
	struct fe_msg junk = { .num_fds = 0 };
	int rc;

	if (fe->sock < 0)
		return 1;
	do {
		rc = recv_all(fe, fe->sock, junk.payload, 1, &junk, deadline);
		fe_msg_close(&junk);
	} while (rc == 0);
	return rc != -ETIMEDOUT;
}

int fe_quiet(struct fe *fe, int ms)
{
	struct pollfd pfd = { .fd = fe->sock, .events = POLLIN };

	return poll(&pfd, 1, ms) == 0;
}

/* ---- the back end's own channel ---- */

static int backend_serve(struct fe *fe, struct fe_msg *out, uint64_t deadline)
{
	struct fe_msg *msg = out;
	int rc;

	if (!msg)
		msg = malloc(sizeof(*msg));
	if (!msg)
		return -ENOMEM;
	rc = recv_from(fe, fe->backend_sock, msg, deadline);
	if (rc == 0) {
		fe->backend_messages++;
		if (msg->request == FE_BACKEND_CONFIG_CHANGE)
			fe->config_changes++;
		if (msg->flags & FE_NEED_REPLY) {
			struct {
				uint32_t header[3];
				uint8_t value[8];
			} ack = { { msg->request, FE_VERSION | FE_REPLY, 8 }, { 0 } };

			rc = send_all(fe->backend_sock, &ack, sizeof(ack), NULL, 0, deadline);
		}
	}
	if (!out) {
		if (rc == 0)
			fe_msg_close(msg);
		free(msg);
	}
	return rc;
}

int fe_backend_recv(struct fe *fe, struct fe_msg *msg, int timeout_ms)
{
	if (fe->backend_sock < 0)
		return -ENOTCONN;
	return backend_serve(fe, msg, deadline_of(timeout_ms));
}

int fe_wait_config_change(struct fe *fe, uint64_t count, int timeout_ms)
{
	uint64_t deadline = deadline_of(timeout_ms);

	while (fe->config_changes < count) {
		int rc;

		if (fe->backend_sock < 0)
			return -ENOTCONN;
		rc = backend_serve(fe, NULL, deadline);
		if (rc < 0)
			return rc;
	}
	return 0;
}

/* ---- polite messages ---- */

static bool wants_reply(const struct fe *fe, uint32_t request)
{
	if (request == FE_SET_PROTOCOL_FEATURES && (fe->opts.flags & FE_O_PF_NEED_REPLY))
		return true;
	if (!(fe->protocol & FE_BIT(FE_PF_REPLY_ACK)))
		return false;
	if (fe->opts.style == FE_STYLE_LIBBLKIO)
		return request != FE_SET_PROTOCOL_FEATURES;
	switch (request) {
	case FE_SET_MEM_TABLE:
	case FE_ADD_MEM_REG:
	case FE_REM_MEM_REG:
	case FE_SET_BACKEND_REQ_FD:
		return true;
	case FE_SET_VRING_CALL:
	case FE_SET_VRING_ERR:
	case FE_SET_VRING_KICK:
	case FE_SET_VRING_ENABLE:
		return fe->opts.style == FE_STYLE_QEMU11;
	default:
		return false;
	}
}

static int send_polite(struct fe *fe, uint32_t request, const void *payload, uint32_t len,
		       const int *fds, unsigned int num_fds, bool *ack)
{
	*ack = wants_reply(fe, request);
	return fe_send_raw(fe, request, FE_VERSION | (*ack ? FE_NEED_REPLY : 0), len, payload, len,
			   fds, num_fds);
}

static int recv_reply(struct fe *fe, uint32_t request, struct fe_msg *reply)
{
	int rc = fe_recv_msg(fe, reply, (int)fe->opts.timeout_ms);

	if (rc < 0)
		return rc;
	if (reply->request != request || (reply->flags & 7u) != (FE_VERSION | FE_REPLY)) {
		fe_msg_close(reply);
		return -EPROTO;
	}
	return 0;
}

int fe_send(struct fe *fe, uint32_t request, const void *payload, uint32_t len, const int *fds,
	    unsigned int num_fds)
{
	struct fe_msg reply;
	uint64_t value;
	bool ack;
	int rc = send_polite(fe, request, payload, len, fds, num_fds, &ack);

	if (rc < 0 || !ack)
		return rc;
	rc = recv_reply(fe, request, &reply);
	if (rc < 0)
		return rc;
	fe_msg_close(&reply);
	if (reply.size != sizeof(value))
		return -EPROTO;
	memcpy(&value, reply.payload, sizeof(value));
	return value == 0 ? 0 : -EREMOTEIO;
}

int fe_call(struct fe *fe, uint32_t request, const void *payload, uint32_t len, const int *fds,
	    unsigned int num_fds, struct fe_msg *reply)
{
	bool ack;
	int rc = send_polite(fe, request, payload, len, fds, num_fds, &ack);

	return rc < 0 ? rc : recv_reply(fe, request, reply);
}
