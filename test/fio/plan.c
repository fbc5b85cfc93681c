/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How many queues a connection needs and how much memory the buffers: known before the first job
 * starts, since neither grows later.
 *
 * A job that is a process counts alone. Jobs that are threads share a process: all that can run at
 * the same time are counted, which are those between two stonewalls (a phase). The first job of a
 * phase to start counts for all, because a job that has ended has no options left to look at; what
 * it found holds as long as the process.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "plan.h"

struct plan {
	struct plan *next;
	unsigned int phase;
	char *path;		/* NULL: the plan for memory */
	uint64_t bytes;
	struct device_need need;	/* of connections that are shared */
};

static struct plan *plans;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static unsigned int phase_of(const struct thread_data *td)
{
	struct thread_data *other;
	unsigned int phase = 0;
	int i;

	for_each_td(other, i) {
		phase += other->o.stonewall != 0;
		if (other == td)
			break;
	}
	return phase;
}

static void add_need(struct thread_data *td, struct device_need *need)
{
	const struct options *o = td->eo;
	uint64_t bs = td_max_bs(td);

	need->queues += o->queues;
	if (td->o.iodepth > need->depth)
		need->depth = td->o.iodepth;
	if (o->queue_size > need->queue_size)
		need->queue_size = o->queue_size;
	if (bs > need->max_bs)
		need->max_bs = bs;
	need->indirect |= o->indirect != 0;
}

/* fio adds up to two pages and its iomem_align to what it will ask of iomem_alloc. */
static uint64_t buffers_of(struct thread_data *td)
{
	return td_max_bs(td) * td->o.iodepth + 2ull * td->o.mem_align + 4ull * 4096;
}

static struct plan *find(unsigned int phase, const char *path)
{
	for (struct plan *p = plans; p; p = p->next) {
		if (p->phase == phase && (path ? p->path && strcmp(p->path, path) == 0 : !p->path))
			return p;
	}
	return NULL;
}

static struct plan *find_or_add(unsigned int phase, const char *path)
{
	struct plan *p = find(phase, path);

	if (p)
		return p;
	p = calloc(1, sizeof(*p));
	if (!p)
		return NULL;
	p->phase = phase;
	if (path)
		p->path = strdup(path);
	p->next = plans;
	plans = p;
	return p;
}

static int count_job(struct thread_data *td, unsigned int phase)
{
	const struct options *o = td->eo;
	struct plan *p = find_or_add(phase, NULL);
	struct fio_file *f;
	unsigned int i;

	if (!p)
		return -ENOMEM;
	p->bytes += buffers_of(td);
	for_each_file(td, f, i) {
		if (!o->shared)
			continue;
		p = find_or_add(phase, f->file_name);
		if (!p || !p->path)
			return -ENOMEM;
		add_need(td, &p->need);
	}
	return 0;
}

static int count_phase(unsigned int phase)
{
	struct thread_data *td;
	int i;

	if (find(phase, NULL))
		return 0;
	for_each_td(td, i) {
		if (td->o.use_thread && td->io_ops == &ioengine && phase_of(td) == phase) {
			int rc = count_job(td, phase);

			if (rc < 0)
				return rc;
		}
	}
	return 0;
}

int plan_of(struct thread_data *td, const char *path, struct device_need *need)
{
	const struct options *o = td->eo;
	unsigned int phase = phase_of(td);
	int rc = 0;

	memset(need, 0, sizeof(*need));
	if (td->o.use_thread && o->shared) {
		pthread_mutex_lock(&lock);
		rc = count_phase(phase);
		if (rc == 0)
			*need = find(phase, path)->need;
		pthread_mutex_unlock(&lock);
		need->shared = true;
	} else {
		add_need(td, need);
	}
	need->packed = o->packed;
	need->sleep = o->wait;
	need->memory = (enum device_memory)o->memory;
	return rc;
}

uint64_t plan_memory(struct thread_data *td)
{
	unsigned int phase = phase_of(td);
	uint64_t bytes = 0;

	if (!td->o.use_thread)
		return buffers_of(td);
	pthread_mutex_lock(&lock);
	if (count_phase(phase) == 0)
		bytes = find(phase, NULL)->bytes;
	pthread_mutex_unlock(&lock);
	return bytes;
}
