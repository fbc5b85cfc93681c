/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pollers: those that are polled, each pass, and those that are parked because they
 * have nothing to do. A thousand idle disks must not cost the busy one anything: to
 * look at each of them takes a cache line or two, every pass.
 *
 * A sweep every SWEEP_US parks who has done nothing since the one before; so does
 * the reactor with all, before it sleeps. A parked poller is back in the walk by
 * reactor_poller_unpark(), at its notification.
 *
 * Notifications are a front end's to send, and one that does not is polled slowly
 * all the same: a sweep also polls the LOOKS parked ones that were looked at longest
 * ago. It costs as little, whatever their number.
 */
#include "reactor/reactor_internal.h"

#define SWEEP_US 10000
#define LOOKS 16
/* A kick may be on its way when we look; so often in a row it is not. */
#define MISSED_MAX 8

void reactor_poller_add(struct poller *p)
{
	counter_set(&p->runs, 0);
	counter_set(&p->busy, 0);
	p->seen = UINT64_MAX;
	p->missed = 0;
	p->parked = false;
	list_add_tail(&reactor_current()->pollers, &p->node);
}

void reactor_poller_del(struct poller *p)
{
	struct reactor *r = reactor_current();

	/* Somebody may be walking the list: step its cursor over us. */
	if (r->cursor == &p->node)
		r->cursor = p->node.next;
	list_del(&p->node);
	p->parked = false;
}

void reactor_poller_each(void (*fn)(struct poller *p, void *arg), void *arg)
{
	struct reactor *r = reactor_current();
	struct poller *p;

	list_for_each(p, &r->pollers, node)
		fn(p, arg);
	list_for_each(p, &r->parked, node)
		fn(p, arg);
}

unsigned int pollers_run(struct reactor *r)
{
	unsigned int work = 0;

	r->cursor = r->pollers.next;
	while (r->cursor != &r->pollers) {
		struct poller *p = list_entry(r->cursor, struct poller, node);
		unsigned int n;

		r->cursor = r->cursor->next;
		counter_add(&p->runs, 1);
		n = p->poll(p);
		/* A poller that ends itself returns 0 and is not touched again. */
		if (n) {
			counter_add(&p->busy, 1);
			work += n;
		}
	}
	return work;
}

/* ------- parking ------- */

bool reactor_is_shared(void)
{
	return reactor_current()->shared;
}

static void look_who_shares(struct reactor *r)
{
	const struct poller *p, *first = NULL;

	r->shared = false;
	list_for_each(p, &r->pollers, node) {
		first = first ? first : p;
		r->shared |= p->group != first->group;
	}
}

/* False: it must go on being polled. */
static bool poller_park(struct reactor *r, struct poller *p)
{
	if (p->arm(p)) {
		p->disarm(p);
		return false;
	}
	list_del(&p->node);
	list_add_tail(&r->parked, &p->node);
	p->parked = true;
	return true;
}

/* Back among those that are polled. */
static void poller_return(struct reactor *r, struct poller *p)
{
	list_del(&p->node);
	/* While it is not shared, one of them tells of all. */
	if (!list_empty(&r->pollers))
		r->shared |= list_first(&r->pollers, struct poller, node)->group != p->group;
	list_add_tail(&r->pollers, &p->node);
	p->parked = false;
	p->seen = UINT64_MAX;
	p->disarm(p);
}

void reactor_poller_unpark(struct poller *p)
{
	p->missed = 0;
	if (p->parked)
		poller_return(reactor_current(), p);
}

bool pollers_park(struct reactor *r)
{
	struct poller *p, *tmp;

	list_for_each_safe(p, tmp, &r->pollers, node) {
		if (p->arm && !poller_park(r, p))
			return false;
	}
	if (list_empty(&r->pollers))
		r->shared = false;
	return true;
}

/* Look at some who should be notified, but perhaps were not. */
REACTOR_ONLY static unsigned int look_at_parked(struct reactor *r)
{
	const struct list *last = r->parked.prev;
	unsigned int work = 0;

	for (int i = 0; i < LOOKS && !list_empty(&r->parked); i++) {
		struct poller *p = list_first(&r->parked, struct poller, node);
		bool all = &p->node == last;
		unsigned int n;

		list_del(&p->node);
		list_add_tail(&r->parked, &p->node);
		n = p->poll(p);
		/* It may have ended itself. */
		if (n && p->parked) {
			p->missed++;
			poller_return(r, p);
		}
		work += n;
		if (all)
			break;
	}
	return work;
}

unsigned int pollers_sweep(struct reactor *r)
{
	unsigned int work = look_at_parked(r);
	struct poller *p, *tmp;

	r->sweep_at = r->now + tsc_hz() / 1000000 * SWEEP_US;
	list_for_each_safe(p, tmp, &r->pollers, node) {
		uint64_t busy = counter_read(&p->busy);

		if (busy == p->seen && p->arm && p->missed < MISSED_MAX)
			poller_park(r, p);
		p->seen = busy;
	}
	look_who_shares(r);
	return work;
}
