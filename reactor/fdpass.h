/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * File descriptors over UNIX sockets: SCM_RIGHTS, unix(7). Any thread; flags are those of
 * sendmsg() and recvmsg() and tell whether a call may wait.
 */
#ifndef SPINDLE_FDPASS_H
#define SPINDLE_FDPASS_H

#include "reactor/base.h"

#include <sys/socket.h>
#include <sys/uio.h>

#define FDPASS_MAX 32	/* of one message */

/* Bytes sent, with `count` fds, which stay the caller's; -errno. Never a SIGPIPE. */
ssize_t fdpass_send(int sock, const struct iovec *iov, unsigned int iovcnt, const int *fds,
		    unsigned int count, int flags);

/*
 * Bytes received, 0 at the end, -errno. In either case *count fds, close-on-exec and the
 * caller's to close, are in fds[max]. -EMFILE: there were more, or our table of files is
 * full, and the rest is closed.
 */
ssize_t fdpass_recv(int sock, void *buf, size_t len, int *fds, unsigned int *count,
		    unsigned int max, int flags);

#endif
