/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One polling target a core. /var/tmp/spdk_cpu_lock_NNN is locked for each core
 * of the mask, by the names and the kind of lock (POSIX record lock, pid inside)
 * that SPDK's targets use, so that the two keep clear of each other as well.
 *
 * A file is removed while its lock is still held; a process that then waits for
 * the removed file would lock nothing, so taking a lock checks that the name
 * still leads to the file it has locked.
 */
#include "reactor/reactor_internal.h"

#include "reactor/log.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOCK_PATH "/var/tmp/spdk_cpu_lock_%03u"
#define LOCK_PATH_MAX 64
#define LOCK_TRIES 100

/* fd + 1 of each core's lock; 0: not held. */
static int lock_fds[CPUMASK_MAX];

static bool same_file(int fd, const char *path)
{
	struct stat a, b;

	return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_dev == b.st_dev &&
	       a.st_ino == b.st_ino;
}

static int lock_one(unsigned int cpu)
{
	struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	char path[LOCK_PATH_MAX];
	int fd, pid = getpid();

	snprintf(path, sizeof(path), LOCK_PATH, cpu);
	for (int i = 0; i < LOCK_TRIES; i++) {
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0) {
			log_error("cannot open the core lock %s: %m", path);
			return -errno;
		}
		if (fcntl(fd, F_SETLK, &fl) < 0) {
			fl.l_pid = 0;
			fcntl(fd, F_GETLK, &fl);
			log_error("core %u is in use by process %d, which holds %s", cpu,
				  (int)fl.l_pid, path);
			close(fd);
			return -EBUSY;
		}
		if (same_file(fd, path))
			break;
		close(fd);
		fd = -1;
	}
	if (fd < 0)
		return -EBUSY;
	if (pwrite(fd, &pid, sizeof(pid), 0) < 0)
		log_warning("cannot write %s: %m", path);
	lock_fds[cpu] = fd + 1;
	return 0;
}

int reactors_lock_cores(void)
{
	const struct cpumask *mask = reactors_mask();

	for (int cpu = cpumask_next(mask, 0); cpu >= 0; cpu = cpumask_next(mask, (unsigned)cpu + 1)) {
		int rc = lock_fds[cpu] ? 0 : lock_one((unsigned)cpu);

		if (rc < 0) {
			reactors_unlock_cores();
			return rc;
		}
	}
	return 0;
}

void reactors_unlock_cores(void)
{
	char path[LOCK_PATH_MAX];

	for (unsigned int cpu = 0; cpu < CPUMASK_MAX; cpu++) {
		if (!lock_fds[cpu])
			continue;
		snprintf(path, sizeof(path), LOCK_PATH, cpu);
		unlink(path);
		close(lock_fds[cpu] - 1);
		lock_fds[cpu] = 0;
	}
}
