/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reactor threads: the pass, sleeping and waking, deferred work and timers. The
 * pollers are in poller.c, the io_uring part in uring.c, the core locks in corelock.c.
 *
 * A pass is: inbox, pollers, ring completions, timers, DEFER_COMPLETE,
 * DEFER_PUBLISH, one ring submission, DEFER_BULK. Everything a pass has started is
 * thus in the kernel when it ends, by one system call, or none when nothing came up, or
 * a few where the disk had too little to do to wait for it (reactor_submit_early()).
 *
 * Sleeping. The reactor says so (`asleep`), then looks at the inbox and has
 * every poller parked, which looks at its queue; only if all are empty does it
 * wait in the ring. A sender pushes its message and then looks at `asleep`.
 * Both sides store before they load, sequentially consistent, so at least one
 * of them sees the other: no wake-up is lost.
 */
#include "reactor/reactor_internal.h"

#include "hugepages/hugepages.h"
#include "reactor/log.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>


static struct {
	struct reactor_config config;
	struct reactor **all;
	unsigned int count;
	struct reactor *by_cpu[CPUMASK_MAX];
	_Atomic bool yield;	/* sleep rather than poll for nothing */
} reactors;

static _Thread_local struct reactor *current;

struct reactor *reactor_current(void)
{
	return current;
}

void reactor_assert(void)
{
	assert(current);
}

unsigned int reactor_count(void)
{
	return reactors.count;
}

struct reactor *reactor_by_index(unsigned int index)
{
	return index < reactors.count ? reactors.all[index] : NULL;
}

struct reactor *reactor_by_cpu(unsigned int cpu)
{
	return cpu < CPUMASK_MAX ? reactors.by_cpu[cpu] : NULL;
}

const struct cpumask *reactors_mask(void)
{
	return &reactors.config.mask;
}

uint64_t reactors_poll_us(void)
{
	return reactors.config.poll_us;
}

unsigned int reactor_index(const struct reactor *r)
{
	return r->index;
}

unsigned int reactor_cpu(const struct reactor *r)
{
	return r->cpu;
}

int reactor_numa_node(const struct reactor *r)
{
	return r->node;
}

int reactors_numa_node(void)
{
	int nodes[CPUMASK_MAX];

	for (unsigned int i = 0; i < reactors.count; i++)
		nodes[i] = reactors.all[i]->node;
	return huge_common_node(nodes, reactors.count);
}

pid_t reactor_tid(const struct reactor *r)
{
	return r->tid;
}

uint64_t reactor_now(void)
{
	return current->now;
}

void reactor_get_times(const struct reactor *r, struct reactor_times *times)
{
	uint64_t since, now;

	times->busy = counter_read(&r->busy);
	times->idle = counter_read(&r->idle);
	times->asleep = atomic_load_explicit(&r->asleep, memory_order_relaxed);
	/* The sleep under way is added to idle when it ends: do not stand still till then. */
	since = counter_read(&r->asleep_since);
	now = tsc_now();
	if (since && now > since)
		times->idle += now - since;
}

/* ------- messages ------- */

void reactor_post(struct reactor *r, struct msg *msg)
{
	uint64_t one = 1;

	/* Pairs with the store of asleep and the look at the inbox in reactor_sleep(). */
	if (inbox_push(&r->inbox, msg) &&
	    atomic_load_explicit(&r->asleep, memory_order_seq_cst) &&
	    write(r->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		log_error("cannot wake reactor %u: %m", r->cpu);
}

static unsigned int run_inbox(struct reactor *r)
{
	struct msg *m = inbox_take(&r->inbox);
	unsigned int n = 0;

	while (m) {
		struct msg *next = m->next;

		m->fn(m);
		m = next;
		n++;
	}
	return n;
}

/* ------- deferred work ------- */

void reactor_defer(enum defer_stage stage, struct defer *d)
{
	struct reactor *r = current;

	if (d->queued)
		return;
	d->queued = true;
	d->next = NULL;
	*r->defer_last[stage] = d;
	r->defer_last[stage] = &d->next;
}

static unsigned int run_deferred(struct reactor *r, enum defer_stage stage)
{
	struct defer *d = r->defer_first[stage];
	unsigned int n = 0;

	/* What is deferred from here on belongs to the next round. */
	r->defer_first[stage] = NULL;
	r->defer_last[stage] = &r->defer_first[stage];
	while (d) {
		struct defer *next = d->next;

		d->queued = false;
		d->fn(d);
		d = next;
		n++;
	}
	return n;
}

/* ------- timers ------- */

void reactor_timer_start(struct timer *t, uint64_t us)
{
	struct list *pos;

	reactor_timer_stop(t);
	/* Never due in this very pass, or a timer that restarts itself would hold it up. */
	t->deadline = current->now + MAX(us * (tsc_hz() / 1000) / 1000, (uint64_t)1);
	/* From the end: equal delays, the common case, then cost one look. */
	for (pos = current->timers.prev; pos != &current->timers; pos = pos->prev) {
		if (list_entry(pos, struct timer, node)->deadline <= t->deadline)
			break;
	}
	list_add_head(pos, &t->node);
}

void reactor_timer_stop(struct timer *t)
{
	if (t->node.next)
		list_del(&t->node);
	t->node.next = t->node.prev = NULL;
}

unsigned int reactor_run_timers(struct reactor *r)
{
	unsigned int n = 0;

	while (!list_empty(&r->timers)) {
		struct timer *t = list_first(&r->timers, struct timer, node);

		if (t->deadline > r->now)
			break;
		reactor_timer_stop(t);
		t->fn(t);
		n++;
	}
	return n;
}

/* ------- the loop ------- */

REACTOR_ONLY static unsigned int reactor_pass(struct reactor *r)
{
	unsigned int work = 0;

	if (!inbox_empty(&r->inbox))
		work += run_inbox(r);
	work += pollers_run(r);
	work += uring_reap(r);
	/* Notifications at hand have been seen. */
	if (unlikely(r->now >= r->sweep_at))
		work += pollers_sweep(r);
	if (!list_empty(&r->timers))
		work += reactor_run_timers(r);
	if (r->defer_first[DEFER_COMPLETE])
		work += run_deferred(r, DEFER_COMPLETE);
	if (r->defer_first[DEFER_PUBLISH])
		work += run_deferred(r, DEFER_PUBLISH);
	uring_submit(r);
	if (r->defer_first[DEFER_BULK])
		work += run_deferred(r, DEFER_BULK);
	return work;
}

REACTOR_ONLY static void reactor_sleep(struct reactor *r)
{
	uint64_t wait_ns = UINT64_MAX;

	/* Without its alarm clock it had better stay awake. */
	if (!uring_can_wake(r))
		return;
	atomic_store_explicit(&r->asleep, true, memory_order_seq_cst);
	/* Pairs with reactor_post(): see the top of this file. */
	if (atomic_load_explicit(&r->inbox.head, memory_order_seq_cst) == NULL &&
	    !r->defer_first[DEFER_COMPLETE] && !r->defer_first[DEFER_PUBLISH] &&
	    !r->defer_first[DEFER_BULK] && pollers_park(r)) {
		if (!list_empty(&r->timers)) {
			uint64_t deadline = list_first(&r->timers, struct timer, node)->deadline;
			uint64_t now = tsc_now();

			wait_ns = deadline > now ?
				(uint64_t)((double)(deadline - now) * 1e9 / (double)tsc_hz()) : 0;
		}
		uring_sleep(r, wait_ns);
	}
	atomic_store_explicit(&r->asleep, false, memory_order_seq_cst);
}

static bool may_yield(const struct reactor *r)
{
	return atomic_load_explicit(&reactors.yield, memory_order_relaxed) &&
	       list_empty(&r->pollers);
}

REACTOR_ONLY static void reactor_loop(struct reactor *r)
{
	uint64_t last_work = tsc_now();
	unsigned int work;
	uint64_t now;

	r->now = last_work;
	while (!atomic_load_explicit(&r->stop, memory_order_relaxed)) {
		work = reactor_pass(r);
		now = tsc_now();
		counter_add(work ? &r->busy : &r->idle, now - r->now);
		r->now = now;
		if (work) {
			last_work = now;
		} else if (now - last_work >= r->poll_ticks || may_yield(r)) {
			counter_set(&r->asleep_since, now);
			reactor_sleep(r);
			now = tsc_now();
			counter_set(&r->asleep_since, 0);
			counter_add(&r->idle, now - r->now);
			r->now = now;
			last_work = r->poll_ticks ? now : last_work;
		}
	}
}

/* ------- start and stop ------- */

struct start {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned int cpu;
	struct reactor *r;	/* NULL: it could not be made */
	bool done;
	int status;
};

static void reactor_free(struct reactor *r)
{
	if (!r)
		return;
	if (r->wake_fd >= 0)
		close(r->wake_fd);
	free(r);
}

/* Of the n-th reactor's kernel thread; -1: any. */
static int sqpoll_cpu(unsigned int n)
{
	const struct cpumask *cpus = &reactors.config.sqpoll_cpus;
	int cpu = cpumask_next(cpus, 0);

	if (cpu >= 0) {
		for (n %= cpumask_count(cpus); n > 0; n--)
			cpu = cpumask_next(cpus, (unsigned int)cpu + 1);
	}
	return cpu;
}

static struct reactor *reactor_new(unsigned int cpu)
{
	struct reactor *r = aligned_alloc(CACHE_LINE, sizeof(*r));

	if (!r)
		return NULL;
	memset(r, 0, sizeof(*r));
	r->cpu = cpu;
	r->thread = pthread_self();
	r->tid = (pid_t)syscall(SYS_gettid);
	r->index = reactors.count;
	r->node = huge_node_of_cpu((int)cpu);
	list_init(&r->pollers);
	list_init(&r->parked);
	list_init(&r->timers);
	for (int i = 0; i < DEFER_STAGES; i++)
		r->defer_last[i] = &r->defer_first[i];
	r->poll_ticks = UINT64_MAX;
	if (reactors.config.poll_us != REACTOR_POLL_ALWAYS)
		r->poll_ticks = reactors.config.poll_us * (tsc_hz() / 1000) / 1000;
	r->sqpoll = reactors.config.sqpoll;
	r->sqpoll_cpu = sqpoll_cpu(r->index);
	r->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->wake_fd < 0) {
		reactor_free(r);
		return NULL;
	}
	return r;
}

static int reactor_pin(unsigned int cpu)
{
	char name[16];
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set) < 0) {
		log_error("cannot pin a reactor to core %u: %m", cpu);
		return -errno;
	}
	snprintf(name, sizeof(name), "reactor_%u", cpu);
	pthread_setname_np(pthread_self(), name);
	return 0;
}

static void *reactor_main(void *arg)
{
	struct start *start = arg;
	int status = reactor_pin(start->cpu);
	struct reactor *r = NULL;

	/* By the pinned thread, so that its memory is on its node. */
	if (status == 0)
		r = start->r = current = reactor_new(start->cpu);
	if (status == 0)
		status = r ? uring_init(r) : -ENOMEM;
	pthread_mutex_lock(&start->lock);
	start->status = status;
	start->done = true;
	pthread_cond_signal(&start->cond);
	pthread_mutex_unlock(&start->lock);
	if (status == 0) {
		reactor_assert();
		reactor_loop(r);
		uring_fini(r);
	}
	current = NULL;
	return NULL;
}

static int reactor_start(unsigned int cpu)
{
	struct start start = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, cpu, NULL,
			       false, 0 };
	pthread_t thread;
	sigset_t all, old;
	int rc;

	/* Signals are the control thread's; faults must reach their own thread. */
	sigfillset(&all);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGSEGV);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = -pthread_create(&thread, NULL, reactor_main, &start);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc < 0) {
		log_error("cannot start the reactor of core %u: %s", cpu, strerror(-rc));
		return rc;
	}
	pthread_mutex_lock(&start.lock);
	while (!start.done)
		pthread_cond_wait(&start.cond, &start.lock);
	pthread_mutex_unlock(&start.lock);
	if (start.status < 0) {
		pthread_join(thread, NULL);
		reactor_free(start.r);
		return start.status;
	}
	reactors.all[reactors.count++] = start.r;
	reactors.by_cpu[cpu] = start.r;
	return 0;
}

/* Every core of the mask must exist and be ours to use. */
static int check_cores(const struct cpumask *mask)
{
	long present = sysconf(_SC_NPROCESSORS_CONF);
	cpu_set_t allowed;
	int rc = 0;

	if (cpumask_empty(mask)) {
		log_error("the core mask is empty");
		return -EINVAL;
	}
	if (sched_getaffinity(0, sizeof(allowed), &allowed) < 0)
		return -errno;
	for (int cpu = cpumask_next(mask, 0); cpu >= 0; cpu = cpumask_next(mask, (unsigned)cpu + 1)) {
		if (cpu >= present)
			log_error("core %d does not exist: this machine has cores 0 to %ld", cpu,
				  present - 1);
		else if (!CPU_ISSET(cpu, &allowed))
			log_error("core %d is not allowed to this process (affinity or cpuset)",
				  cpu);
		else
			continue;
		rc = -ENODEV;
	}
	return rc;
}

int reactors_start(const struct reactor_config *config)
{
	int rc = check_cores(&config->mask);

	if (rc < 0)
		return rc;
	reactors.config = *config;
	reactors.all = calloc(cpumask_count(&config->mask), sizeof(struct reactor *));
	if (!reactors.all)
		return -ENOMEM;
	if (config->lock_cores) {
		rc = reactors_lock_cores();
		if (rc < 0)
			goto fail;
	}
	for (int cpu = cpumask_next(&config->mask, 0); cpu >= 0;
	     cpu = cpumask_next(&config->mask, (unsigned)cpu + 1)) {
		rc = reactor_start((unsigned)cpu);
		if (rc < 0)
			goto fail;
	}
	return 0;
fail:
	reactors_stop();
	return rc;
}

static void wake(struct reactor *r)
{
	uint64_t one = 1;

	if (write(r->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		log_error("cannot wake reactor %u: %m", r->cpu);
}

void reactors_yield(bool on)
{
	if (atomic_exchange(&reactors.yield, on) == on)
		return;
	for (unsigned int i = 0; i < reactors.count && !on; i++)
		wake(reactors.all[i]);
}

void reactors_stop(void)
{
	for (unsigned int i = 0; i < reactors.count; i++) {
		atomic_store(&reactors.all[i]->stop, true);
		wake(reactors.all[i]);
	}
	for (unsigned int i = 0; i < reactors.count; i++) {
		pthread_join(reactors.all[i]->thread, NULL);
		reactors.by_cpu[reactors.all[i]->cpu] = NULL;
		reactor_free(reactors.all[i]);
	}
	free(reactors.all);
	reactors.all = NULL;
	reactors.count = 0;
	reactors_unlock_cores();
}

/* ------- visits ------- */

static void visit_done(struct msg *msg)
{
	struct reactor_visit *v = container_of(msg, struct reactor_visit, msg);

	v->done(v);
}

static void visit_one(struct msg *msg)
{
	struct reactor_visit *v = container_of(msg, struct reactor_visit, msg);

	v->fn(v);
	v->index++;
	if (v->index < reactors.count) {
		reactor_post(reactors.all[v->index], &v->msg);
		return;
	}
	v->msg.fn = visit_done;
	control_post(&v->msg);
}

void reactor_visit_all(struct reactor_visit *v)
{
	v->index = 0;
	v->msg.fn = visit_one;
	reactor_post(reactors.all[0], &v->msg);
}
