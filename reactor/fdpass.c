/* SPDX-License-Identifier: BSD-3-Clause */
/* The one place that builds and reads control messages. */
#include "reactor/fdpass.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

union control {
	char buf[CMSG_SPACE(FDPASS_MAX * sizeof(int))];
	struct cmsghdr align;
};

ssize_t fdpass_send(int sock, const struct iovec *iov, unsigned int iovcnt, const int *fds,
		    unsigned int count, int flags)
{
	struct msghdr mh = { .msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = iovcnt };
	union control control = { { 0 } };
	ssize_t n;

	assert(count <= FDPASS_MAX);
	if (count > 0) {
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(&control.align), fds, count * sizeof(int));
		mh.msg_control = control.buf;
		mh.msg_controllen = CMSG_SPACE(count * sizeof(int));
	}
	n = sendmsg(sock, &mh, flags | MSG_NOSIGNAL);
	return n < 0 ? -errno : n;
}

ssize_t fdpass_recv(int sock, void *buf, size_t len, int *fds, unsigned int *count,
		    unsigned int max, int flags)
{
	struct iovec iov = { buf, len };
	union control control;
	/* CMSG_LEN: CMSG_SPACE rounds up, and the kernel would fill that with one more. */
	struct msghdr mh = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control.buf, .msg_controllen = CMSG_LEN(max * sizeof(int)),
	};
	ssize_t n;

	assert(max <= FDPASS_MAX);
	*count = 0;
	n = recvmsg(sock, &mh, flags | MSG_CMSG_CLOEXEC);
	if (n < 0)
		return -errno;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&mh); c; c = CMSG_NXTHDR(&mh, c)) {
		unsigned int got = (unsigned int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		memcpy(fds + *count, CMSG_DATA(c), got * sizeof(int));
		*count += got;
	}
	return mh.msg_flags & MSG_CTRUNC ? -EMFILE : n;
}
