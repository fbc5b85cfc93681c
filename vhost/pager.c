/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The pager process, and what its parent needs to start one. It is this program, started
 * anew under another name: a fork would copy the address space that it is to be kept from.
 *
 * Its threads all do the same: receive a packet, do what it says, answer. One that touches
 * a missing page sleeps until the front end has put it there. The main thread only waits
 * for the parent to go. What the front end can do to this process by the userfaultfd, it
 * does to one that has no privileges and nothing of anybody else's.
 */
#include "vhost/pager.h"

#include "reactor/fdpass.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SOCK 3			/* its number in the pager */
#define THREADS 16		/* faults that are waited for at a time */
#define READY_MS 10000
#define NOBODY 65534

/* ------- userfaultfd ------- */

int uffd_open(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = (int)syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	/* Before Linux 5.11 */
	if (fd < 0 && errno == EINVAL)
		fd = (int)syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	if (ioctl(fd, UFFDIO_API, &api) < 0) {
		int rc = -errno;

		close(fd);
		return rc;
	}
	return fd;
}

int uffd_register(int uffd, void *addr, uint64_t len)
{
	struct uffdio_register reg = {
		.range = { (uintptr_t)addr, len }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

void uffd_unregister(int uffd, void *addr, uint64_t len)
{
	struct uffdio_range range = { (uintptr_t)addr, len };

	ioctl(uffd, UFFDIO_UNREGISTER, &range);
}

/* ------- packets ------- */

int pager_send(int sock, const struct pager_msg *msg, int fd, int flags)
{
	struct pager_msg copy = *msg;
	struct iovec iov = { &copy, sizeof(copy) };

	return (int)MIN(fdpass_send(sock, &iov, 1, &fd, fd >= 0, flags), 0);
}

int pager_recv(int sock, struct pager_msg *msg, int *fd, int flags)
{
	unsigned int count;
	ssize_t n = fdpass_recv(sock, msg, sizeof(*msg), fd, &count, 1, flags);

	if (count == 0)
		*fd = -1;
	if (n <= 0)
		return (int)n;
	return n == sizeof(*msg) ? 1 : -EPROTO;
}

/* ------- the process ------- */

static int uffd;

static void map(struct pager_msg *msg, int fd)
{
	void *at = mmap(NULL, msg->len, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd,
			(off_t)msg->offset);

	msg->type = PAGER_MAPPED;
	msg->error = at == MAP_FAILED ? -errno : 0;
	if (msg->error == 0) {
		/* Of a larger page than the front end fills, all but one 4 KiB would be lost. */
		madvise(at, msg->len, MADV_NOHUGEPAGE);
		msg->error = uffd_register(uffd, at, msg->len);
	}
	msg->addr = (uintptr_t)at;
}

static void fetch(struct pager_msg *msg)
{
	for (uint64_t i = 0; i < msg->count; i++) {
		uintptr_t at = msg->addr + (msg->first + i) * msg->len;

		(void)*(const volatile char *)at;
	}
	msg->type = PAGER_PRESENT;
}

static void *serve(void *arg)
{
	struct pager_msg msg;

	for (;;) {
		int fd, rc = pager_recv(SOCK, &msg, &fd, 0);

		if (rc == -EINTR)
			continue;
		if (rc <= 0)
			_exit(0);
		if (msg.type == PAGER_MAP)
			map(&msg, fd);
		else if (msg.type == PAGER_FETCH)
			fetch(&msg);
		if (fd >= 0)
			close(fd);
		if (pager_send(SOCK, &msg, -1, 0) < 0)
			_exit(0);
	}
	return arg;
}

static void drop_privileges(void)
{
	prctl(PR_SET_NAME, PAGER_NAME);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (geteuid() == 0 &&
	    (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
	     setresuid(NOBODY, NOBODY, NOBODY) < 0))
		_exit(1);
	prctl(PR_SET_DUMPABLE, 0);
}

void pager_main(void)
{
	struct pager_msg ready = { .type = PAGER_READY };
	struct pollfd gone = { .fd = SOCK };

	close_range(SOCK + 1, ~0U, 0);
	uffd = uffd_open(0);
	drop_privileges();
	if (uffd < 0)
		ready.error = uffd;
	if (pager_send(SOCK, &ready, uffd, 0) < 0 || uffd < 0)
		_exit(1);
	for (unsigned int i = 0; i < THREADS; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, serve, NULL) != 0)
			_exit(1);
	}
	/* Without events, it waits for the other end to close. */
	while (poll(&gone, 1, -1) < 0 && errno == EINTR)
		;
	_exit(0);
}

/* ------- its parent ------- */

static int spawn(int sock, pid_t *pid)
{
	static char name[] = PAGER_NAME;
	char *argv[] = { name, NULL };
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	sigset_t none;
	int rc;

	sigemptyset(&none);
	posix_spawn_file_actions_init(&files);
	posix_spawnattr_init(&attr);
	/* A worker blocks all signals. */
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	rc = posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDWR, 0);
	for (int fd = 1; rc == 0 && fd < SOCK; fd++)
		rc = posix_spawn_file_actions_adddup2(&files, 0, fd);
	if (rc == 0)
		rc = posix_spawn_file_actions_adddup2(&files, sock, SOCK);
	/* The program that runs, even if its file has been replaced. */
	if (rc == 0)
		rc = posix_spawn(pid, "/proc/self/exe", &files, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&files);
	return -rc;
}

/* The first packet, if it comes in time. */
static int await_ready(int sock, int *fd)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };
	struct pager_msg msg;
	int rc;

	if (poll(&p, 1, READY_MS) <= 0)
		return -ETIMEDOUT;
	rc = pager_recv(sock, &msg, fd, MSG_DONTWAIT);
	if (rc <= 0)
		return rc < 0 ? rc : -ECHILD;
	if (msg.type != PAGER_READY || *fd < 0)
		return msg.error < 0 ? msg.error : -EPROTO;
	return 0;
}

int pager_spawn(pid_t *pid, int *sock, int *fd)
{
	int pair[2], rc;

	*fd = -1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	rc = spawn(pair[1], pid);
	close(pair[1]);
	if (rc == 0) {
		rc = await_ready(pair[0], fd);
		if (rc < 0)
			pager_end(*pid);
	}
	if (rc < 0)
		*pid = 0;
	if (rc < 0) {
		if (*fd >= 0)
			close(*fd);
		close(pair[0]);
		return rc;
	}
	*sock = pair[0];
	return 0;
}

void pager_end(pid_t pid)
{
	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}
