/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Records on the wire between a predecessor and its successor: a header, which
 * the file descriptors come with, and a body. Both ends are this program; lengths
 * are checked so that a mismatch of versions is an error and no more.
 */
#include "rpc/takeover.h"

#include "reactor/fdpass.h"
#include "reactor/worker.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BODY_MAX (256u << 20)

struct wire_header {
	uint32_t magic;
	uint16_t type, fd_count;
	uint32_t len;
};

static struct handover_record *batch_add(struct takeover_batch *batch)
{
	struct handover_record *more;

	if (batch->count == batch->cap) {
		unsigned int cap = batch->cap ? batch->cap * 2 : 64;

		more = realloc(batch->records, cap * sizeof(*more));
		if (!more)
			return NULL;
		batch->records = more;
		batch->cap = cap;
	}
	more = &batch->records[batch->count++];
	memset(more, 0, sizeof(*more));
	return more;
}

int takeover_put(void *arg, uint16_t type, const void *body, uint32_t len, const int *fds,
		 unsigned int fd_count)
{
	struct takeover_batch *batch = arg;
	struct handover_record *rec = batch_add(batch);

	if (!rec)
		return -ENOMEM;
	rec->type = type;
	rec->body = malloc(len + 1u);
	if (!rec->body)
		return -ENOMEM;
	rec->len = len;
	if (len)
		memcpy(rec->body, body, len);
	for (unsigned int i = 0; i < fd_count; i++) {
		rec->fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
		if (rec->fds[i] < 0)
			return -errno;
		rec->fd_count++;
	}
	return 0;
}

void takeover_batch_free(struct takeover_batch *batch)
{
	for (unsigned int i = 0; i < batch->count; i++) {
		/* Strangers' files among them. */
		for (unsigned int k = 0; k < batch->records[i].fd_count; k++)
			worker_close(batch->records[i].fds[k]);
		free(batch->records[i].body);
	}
	free(batch->records);
	*batch = (struct takeover_batch){ 0 };
}

static int wait_for(int fd, short events, int timeout_ms)
{
	struct pollfd p = { fd, events, 0 };
	int rc;

	do {
		rc = poll(&p, 1, timeout_ms);
	} while (rc < 0 && errno == EINTR);
	return rc > 0 ? 0 : rc == 0 ? -ETIMEDOUT : -errno;
}

int takeover_wait(int fd, int timeout_ms)
{
	return wait_for(fd, POLLIN, timeout_ms);
}

/* All of it; fds with the first byte. */
static int send_all(int fd, const void *buf, size_t len, const int *fds, unsigned int fd_count,
		    int timeout_ms)
{
	const char *at = buf;

	while (len > 0) {
		struct iovec iov = { (void *)(uintptr_t)at, len };
		ssize_t n = fdpass_send(fd, &iov, 1, fds, fd_count, MSG_DONTWAIT);

		if (n == -EAGAIN) {
			int rc = wait_for(fd, POLLOUT, timeout_ms);

			if (rc < 0)
				return rc;
			continue;
		}
		if (n < 0)
			return (int)n;
		fd_count = 0;
		at += n;
		len -= (size_t)n;
	}
	return 0;
}

int takeover_send(int fd, const struct takeover_batch *batch, int timeout_ms)
{
	int rc = 0;

	for (unsigned int i = 0; rc == 0 && i < batch->count; i++) {
		const struct handover_record *rec = &batch->records[i];
		struct wire_header header = { TAKEOVER_MAGIC, rec->type, rec->fd_count, rec->len };

		rc = send_all(fd, &header, sizeof(header), rec->fds, rec->fd_count, timeout_ms);
		if (rc == 0)
			rc = send_all(fd, rec->body, rec->len, NULL, 0, timeout_ms);
	}
	return rc;
}

static int receive_all(int fd, void *buf, size_t len, struct handover_record *rec, int timeout_ms)
{
	char *at = buf;

	while (len > 0) {
		int rc = wait_for(fd, POLLIN, timeout_ms);
		unsigned int count;
		ssize_t n;

		if (rc < 0)
			return rc;
		n = fdpass_recv(fd, at, len, rec->fds + rec->fd_count, &count,
				HANDOVER_FDS_MAX - rec->fd_count, MSG_DONTWAIT);
		rec->fd_count = (uint16_t)(rec->fd_count + count);
		if (n == -EAGAIN || n == -EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? (int)n : -ECONNRESET;
		at += n;
		len -= (size_t)n;
	}
	return 0;
}

int takeover_receive(int fd, struct takeover_batch *batch, int timeout_ms)
{
	struct handover_record *rec;

	do {
		struct wire_header header;
		int rc;

		rec = batch_add(batch);
		if (!rec)
			return -ENOMEM;
		rc = receive_all(fd, &header, sizeof(header), rec, timeout_ms);
		if (rc < 0)
			return rc;
		if (header.magic != TAKEOVER_MAGIC || header.len > BODY_MAX ||
		    header.fd_count != rec->fd_count)
			return -EPROTO;
		rec->type = header.type;
		rec->len = header.len;
		rec->body = calloc(1, header.len + 1u);
		if (!rec->body)
			return -ENOMEM;
		rc = receive_all(fd, rec->body, header.len, rec, timeout_ms);
		if (rc < 0)
			return rc;
	} while (rec->type < TAKEOVER_END);
	return 0;
}
