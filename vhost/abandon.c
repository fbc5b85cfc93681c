/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Rings that were stopped without waiting for their requests. A stalled backend must not
 * hold up the end of a live migration, so the front end may ask for a ring's position
 * at once (GET_VRING_BASE_SKIP_DRAIN). What is in flight then stays marked in the
 * in-flight region, and whoever serves the ring next does it again.
 *
 * No backend can take requests back. They go on, in a vq that has left its vhost_vq and
 * touches neither rings, status bytes, region nor log any more: only data may still move,
 * between the disk and buffers that belong to those very requests. So one thing counts:
 * what is done again must come after them. Within this process no ring starts on their
 * bdev before they have ended (abandoned_hold()); other processes are kept off by the
 * storage's lock, which stays ours as long as the vq has its channel. A bdev without such
 * a lock is drained as ever (vvq_may_abandon()).
 *
 * Everything here is control's. A session outlives its abandoned vqs.
 */
#include "vhost/vhost_internal.h"

static struct list abandoned = LIST_INIT(abandoned);	/* struct vq.abandoned */

bool vvq_may_abandon(const struct vhost_vq *vvq)
{
	/* While pages are missing, what is begun depends on the front end. */
	return vvq->abandon && vvq->vq->fl && vvq->vq->ch && !vvq->vq->mem->paged &&
	       bdev_keeps_order(bdev_channel_bdev(vvq->vq->ch));
}

void abandoned_add(struct vq *vq)
{
	list_add_tail(&abandoned, &vq->abandoned);
	vq->left = counter_read(&vq->inflight);
	/* 0: what is cached is being written back. */
	if (vq->left)
		log_limited(LOG_NOTICE, vq->limit, "%s: stopped with %llu requests in flight: they "
			    "go on in %s, and are left to whoever serves the guest next", vq->name,
			    (unsigned long long)vq->left, bdev_channel_bdev(vq->ch)->name);
}

void abandoned_ended(struct vq *vq)
{
	struct vhost_vq *vvq = vq->owner;
	struct vhost_controller *c = vvq->session->controller;

	if (vq->left)
		log_limited(LOG_NOTICE, vq->limit, "%s: the requests that were left in flight have "
			    "ended", vq->name);
	list_del(&vq->abandoned);
	vq_free(vq);
	controller_vq_gone(c);
	/* Which may be the end of the session and of its controller. */
	session_reconcile(vvq->session);
	controllers_memory_released();
}

bool abandoned_any(void)
{
	return !list_empty(&abandoned);
}

bool abandoned_of(const struct vhost_session *s, uint64_t *inflight)
{
	const struct vq *vq;
	bool any = false;

	list_for_each_aligned(vq, &abandoned, abandoned) {
		if (vq->owner->session != s)
			continue;
		any = true;
		if (inflight)
			*inflight += counter_read(&vq->inflight);
	}
	return any;
}

bool abandoned_in_bdev(const struct vhost_controller *c)
{
	const struct vq *vq;

	list_for_each_aligned(vq, &abandoned, abandoned) {
		if (vq->owner->session->controller == c)
			return true;
	}
	return false;
}

/*
 * Of the same bdev, or region: to be done again. Of a session that closes, and so has no
 * guest, also those in the same memory: its next guest may use it for anything.
 */
bool abandoned_hold(const struct vhost_session *s)
{
	const struct vhost_controller *c = s->controller;
	const struct vq *vq;

	list_for_each_aligned(vq, &abandoned, abandoned) {
		const struct vhost_session *of = vq->owner->session;

		if (of->controller == c || bdev_channel_bdev(vq->ch) == c->desc.bdev ||
		    guest_mem_shares_file(vq->inflight_mem, s->inflight_mem) ||
		    (of->closing && guest_mem_shares_file(vq->mem, s->mem)))
			return true;
	}
	return false;
}
