/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The worker pool: a queue under a mutex, threads made when a job finds none
 * idle, up to WORKERS_MAX. Threads are detached and all that hang in a call are
 * simply left at exit; the counters tell how many.
 *
 * A job in the queue or running belongs to the pool; its done runs on the
 * control thread by the message inside it.
 */
#include "reactor/worker.h"

#include "reactor/control.h"
#include "reactor/log.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct {
	pthread_mutex_t lock;
	pthread_cond_t more;	/* a job was queued, or stop */
	pthread_cond_t less;	/* a job or a thread has ended */
	struct job *first, **last;
	unsigned int threads, idle, queued, unfinished;
	bool stop;
} pool = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.more = PTHREAD_COND_INITIALIZER,
	.last = &pool.first,
};

static void job_finished(struct msg *msg)
{
	struct job *job = container_of(msg, struct job, msg);

	job->done(job);
}

static void *worker_main(void *arg)
{
	(void)arg;
	pthread_setname_np(pthread_self(), "worker");
	pthread_mutex_lock(&pool.lock);
	for (;;) {
		struct job *job = pool.first;

		if (!job) {
			if (pool.stop)
				break;
			pool.idle++;
			pthread_cond_wait(&pool.more, &pool.lock);
			pool.idle--;
			continue;
		}
		pool.first = job->next;
		if (!pool.first)
			pool.last = &pool.first;
		pool.queued--;
		pthread_mutex_unlock(&pool.lock);
		job->run(job);
		job->msg.fn = job_finished;
		control_post(&job->msg);
		pthread_mutex_lock(&pool.lock);
		pool.unfinished--;
		pthread_cond_broadcast(&pool.less);
	}
	pool.threads--;
	pthread_cond_broadcast(&pool.less);
	pthread_mutex_unlock(&pool.lock);
	return NULL;
}

static int thread_start(void)
{
	sigset_t all, old;
	pthread_attr_t attr;
	pthread_t thread;
	int rc;

	/* Signals are the control thread's. */
	sigfillset(&all);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGSEGV);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	rc = pthread_create(&thread, &attr, worker_main, NULL);
	pthread_attr_destroy(&attr);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -rc;
}

int workers_start(void)
{
	pthread_condattr_t attr;
	int rc;

	/* The deadline of workers_stop() must not move with the wall clock. */
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&pool.less, &attr);
	pthread_condattr_destroy(&attr);
	pthread_mutex_lock(&pool.lock);
	pool.stop = false;
	rc = thread_start();
	if (rc == 0)
		pool.threads++;
	pthread_mutex_unlock(&pool.lock);
	if (rc < 0)
		log_error("cannot start a worker thread: %s", strerror(-rc));
	return rc;
}

void worker_submit(struct job *job)
{
	job->next = NULL;
	pthread_mutex_lock(&pool.lock);
	*pool.last = job;
	pool.last = &job->next;
	pool.unfinished++;
	pool.queued++;
	/*
	 * Each waiting job finds an idle thread or gets a new one, so that a hung
	 * call delays no other. Failing to grow only means waiting.
	 */
	if (pool.queued > pool.idle && pool.threads < WORKERS_MAX && thread_start() == 0)
		pool.threads++;
	pthread_cond_signal(&pool.more);
	pthread_mutex_unlock(&pool.lock);
}

struct close_job {
	struct job job;
	int fd;
};

static void close_run(struct job *job)
{
	int fd = container_of(job, struct close_job, job)->fd;
	struct linger off = { 0 };

	/* Fails on what is no socket. */
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof(off));
	close(fd);
}

static void close_done(struct job *job)
{
	free(container_of(job, struct close_job, job));
}

/*
 * What the kernel alone answers for: eventfds and pipes, by the link's text, which
 * no file's path can imitate; memory files, since only those have seals. Neither
 * question is put to a file system.
 */
static bool closes_at_once(int fd)
{
	char path[32], kind[16];
	ssize_t len;

	if (fcntl(fd, F_GET_SEALS) >= 0)
		return true;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	len = readlink(path, kind, sizeof(kind));
	return (len >= 11 && !memcmp(kind, "anon_inode:", 11)) ||
	       (len >= 6 && !memcmp(kind, "pipe:[", 6));
}

void worker_close(int fd)
{
	struct close_job *cj = NULL;

	if (fd >= 0 && !closes_at_once(fd))
		cj = calloc(1, sizeof(*cj));
	if (!cj) {
		if (fd >= 0)
			close(fd);
		return;
	}
	cj->fd = fd;
	cj->job.run = close_run;
	cj->job.done = close_done;
	worker_submit(&cj->job);
}

unsigned int workers_left(void)
{
	unsigned int left;

	pthread_mutex_lock(&pool.lock);
	left = pool.unfinished;
	pthread_mutex_unlock(&pool.lock);
	return left;
}

unsigned int workers_stop(unsigned int ms)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += ms / 1000;
	until.tv_nsec += (long)(ms % 1000) * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	pthread_mutex_lock(&pool.lock);
	pool.stop = true;
	pthread_cond_broadcast(&pool.more);
	while (pool.threads > 0) {
		if (pthread_cond_timedwait(&pool.less, &pool.lock, &until) == ETIMEDOUT)
			break;
	}
	pthread_mutex_unlock(&pool.lock);
	return workers_left();
}
