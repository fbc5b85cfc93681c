/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Workers: threads for calls that block (open, close, rbd_open, munmap of a
 * large guest). The pool grows while all its threads are busy, up to a limit,
 * so one hung call does not hold up the next.
 */
#ifndef SPINDLE_WORKER_H
#define SPINDLE_WORKER_H

#include "reactor/base.h"
#include "reactor/inbox.h"

/*
 * run on a worker, then done on the control thread. The job belongs to the
 * pool from submit to done. Embedded in what it works on, so submitting cannot
 * fail.
 */
struct job {
	struct msg msg;
	struct job *next;
	void (*run)(struct job *job);
	void (*done)(struct job *job);
};

/*
 * Close a stranger's fd: what it is decides how long that takes (a socket that
 * lingers, a file of a file system in user space), so a worker does it, unless it
 * is of a kind that cannot wait. Control thread; negative is allowed.
 */
void worker_close(int fd);

#define WORKERS_MAX 64

int workers_start(void);
void worker_submit(struct job *job);
/*
 * Wait up to ms milliseconds for running jobs, then leave what hangs behind:
 * the number of those. A job submitted later is still run; wait again then.
 */
unsigned int workers_stop(unsigned int ms);
/* Jobs that have not ended. */
unsigned int workers_left(void);

#endif
