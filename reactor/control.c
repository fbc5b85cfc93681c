/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The control thread's loop: epoll over the watched fds, an inbox with its
 * eventfd, and a list of timers ordered by deadline.
 *
 * epoll hands out a batch of events; a handler may delete any fd of the batch
 * and free its struct. So control_fd_del() also strikes the fd from the rest of
 * the batch at hand, and a struct is never touched after it.
 */
#include "reactor/control.h"

#include "reactor/log.h"

#include <assert.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_MAX 64

struct thread_role role_reactor, role_control;

static struct {
	int epfd;
	int wake_fd;
	bool stop;
	struct inbox inbox;
	struct list timers;
	struct epoll_event events[EVENTS_MAX];
	int event_next, event_count;	/* the batch at hand */
	counter64 busy, idle;
} ctl = { .epfd = -1, .wake_fd = -1, .timers = LIST_INIT(ctl.timers) };

static _Thread_local bool is_control;

bool control_is_current(void)
{
	return is_control;
}

void control_assert(void)
{
	assert(is_control);
}

uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

uint64_t tsc_hz(void)
{
	static _Atomic uint64_t cached;
	uint64_t hz = atomic_load_explicit(&cached, memory_order_relaxed);

	if (hz)
		return hz;
	/* Two readings 5 ms apart are good to about 10 ppm: enough for statistics. */
	uint64_t ns0 = clock_ns(), t0 = tsc_now();
	struct timespec pause = { .tv_nsec = 5000000 };

	nanosleep(&pause, NULL);
	uint64_t ns = clock_ns() - ns0, ticks = tsc_now() - t0;

	hz = (uint64_t)((double)ticks * 1e9 / (double)ns);
	atomic_store_explicit(&cached, hz, memory_order_relaxed);
	return hz;
}

int control_init(void)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = NULL };
	int rc;

	ctl.epfd = epoll_create1(EPOLL_CLOEXEC);
	ctl.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ctl.epfd < 0 || ctl.wake_fd < 0 ||
	    epoll_ctl(ctl.epfd, EPOLL_CTL_ADD, ctl.wake_fd, &ev) < 0) {
		rc = -errno;
		log_error("cannot make the event loop: %m");
		control_fini();
		return rc;
	}
	ctl.stop = false;
	is_control = true;
	return 0;
}

static void run_inbox(void);

bool control_drain(void)
{
	if (inbox_empty(&ctl.inbox))
		return false;
	run_inbox();
	return true;
}

void control_fini(void)
{
	/* What workers sent last: mostly memory that wants to be freed. */
	control_drain();
	if (ctl.wake_fd >= 0)
		close(ctl.wake_fd);
	if (ctl.epfd >= 0)
		close(ctl.epfd);
	ctl.wake_fd = ctl.epfd = -1;
	is_control = false;
}

void control_stop(void)
{
	ctl.stop = true;
}

void control_post(struct msg *msg)
{
	uint64_t one = 1;

	/*
	 * Only the first message of a batch needs to wake the loop: it takes
	 * all of them, and the eventfd stays readable until it does.
	 */
	if (inbox_push(&ctl.inbox, msg) && write(ctl.wake_fd, &one, sizeof(one)) < 0 &&
	    errno != EAGAIN)
		log_error("cannot wake the control thread: %m");
}

int control_fd_add(struct control_fd *cf, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = cf };

	return epoll_ctl(ctl.epfd, EPOLL_CTL_ADD, cf->fd, &ev) < 0 ? -errno : 0;
}

int control_fd_mod(struct control_fd *cf, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = cf };

	return epoll_ctl(ctl.epfd, EPOLL_CTL_MOD, cf->fd, &ev) < 0 ? -errno : 0;
}

void control_fd_del(struct control_fd *cf)
{
	epoll_ctl(ctl.epfd, EPOLL_CTL_DEL, cf->fd, NULL);
	for (int i = ctl.event_next; i < ctl.event_count; i++) {
		if (ctl.events[i].data.ptr == cf)
			ctl.events[i].events = 0;
	}
}

void control_timer_start(struct control_timer *t, uint64_t ms)
{
	struct control_timer *pos;

	control_timer_stop(t);
	t->deadline_ns = clock_ns() + ms * 1000000ull;
	list_for_each(pos, &ctl.timers, node) {
		if (pos->deadline_ns > t->deadline_ns)
			break;
	}
	list_add_tail(&pos->node, &t->node);
}

void control_timer_stop(struct control_timer *t)
{
	if (t->node.next)
		list_del(&t->node);
	t->node.next = t->node.prev = NULL;
}

static void run_timers(void) CONTROL_ONLY;
static void run_timers(void)
{
	uint64_t now;

	if (list_empty(&ctl.timers))
		return;
	now = clock_ns();
	while (!list_empty(&ctl.timers)) {
		struct control_timer *t = list_first(&ctl.timers, struct control_timer, node);

		if (t->deadline_ns > now)
			break;
		control_timer_stop(t);
		t->fn(t);
	}
}

static int timeout_ms(void)
{
	struct control_timer *t;
	uint64_t now;

	if (!inbox_empty(&ctl.inbox))
		return 0;
	if (list_empty(&ctl.timers))
		return -1;
	t = list_first(&ctl.timers, struct control_timer, node);
	now = clock_ns();
	if (t->deadline_ns <= now)
		return 0;
	return (int)MIN((t->deadline_ns - now + 999999) / 1000000, (uint64_t)60000);
}

static void run_inbox(void)
{
	struct msg *m = inbox_take(&ctl.inbox);

	while (m) {
		struct msg *next = m->next;

		m->fn(m);
		m = next;
	}
}

static void run_events(void)
{
	for (ctl.event_next = 0; ctl.event_next < ctl.event_count;) {
		struct epoll_event ev = ctl.events[ctl.event_next++];
		struct control_fd *cf = ev.data.ptr;
		uint64_t drained;

		if (ev.events == 0)
			continue;
		if (cf) {
			cf->fn(cf, ev.events);
			continue;
		}
		/* Clear the eventfd before the inbox is taken: see control_post(). */
		if (read(ctl.wake_fd, &drained, sizeof(drained)) < 0 && errno != EAGAIN)
			log_error("cannot read the control thread's eventfd: %m");
	}
	ctl.event_count = 0;
}

void control_run(void)
{
	uint64_t t0 = tsc_now(), t1;

	control_assert();
	while (!ctl.stop) {
		int n;

		t1 = tsc_now();
		counter_add(&ctl.busy, t1 - t0);
		n = epoll_wait(ctl.epfd, ctl.events, EVENTS_MAX, timeout_ms());
		t0 = tsc_now();
		counter_add(&ctl.idle, t0 - t1);
		if (n < 0 && errno != EINTR) {
			log_error("epoll_wait: %m");
			return;
		}
		ctl.event_count = MAX(n, 0);
		run_events();
		run_inbox();
		run_timers();
	}
	ctl.stop = false;
}

void control_get_times(uint64_t *busy, uint64_t *idle)
{
	*busy = counter_read(&ctl.busy);
	*idle = counter_read(&ctl.idle);
}
