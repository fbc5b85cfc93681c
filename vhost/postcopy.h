/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Postcopy live migration (vhost-user, "Postcopy"): a guest runs here while part of its
 * memory is still at the source. The front end is told of each page that is missed, and
 * gets it over.
 *
 * Every region is mapped twice. The pager process (vhost/pager.h) has the mapping that the
 * front end hears the addresses of: a missing page that is touched there is fetched. Ours
 * is for I/O. There a missing page is neither waited for nor made up, but raises SIGBUS,
 * which ends the session (EFAULT in the kernel, which fails the request); so no guest and no
 * front end can stop a reactor. What queues and rings need they have fetched first: struct
 * page_fetch.
 *
 * Owned by the control thread.
 */
#ifndef SPINDLE_POSTCOPY_H
#define SPINDLE_POSTCOPY_H

#include "reactor/control.h"
#include "vhost/pages.h"

struct vhost_msg;
struct vhost_session;
struct vhost_vq;

/* Offer it from now on, if the system can. */
void postcopy_init(void) CONTROL_ONLY;
void postcopy_fini(void) CONTROL_ONLY;
bool postcopy_offered(void);

/* The messages of that name. */
void postcopy_advise(struct vhost_session *s, struct vhost_msg *msg) CONTROL_ONLY;
void postcopy_listen(struct vhost_session *s, struct vhost_msg *msg) CONTROL_ONLY;
void postcopy_end(struct vhost_session *s, struct vhost_msg *msg) CONTROL_ONLY;

/*
 * The front end's confirmation that it knows our addresses, which comes under the name of
 * the last message about memory, or of none (request 0). False: it is none.
 */
bool postcopy_ack(struct vhost_session *s, const struct vhost_msg *msg) CONTROL_ONLY;
void postcopy_acknowledged(struct vhost_session *s, struct vhost_msg *msg) CONTROL_ONLY;

/*
 * The session's memory has been changed. In postcopy, a front end that told us of new memory
 * (told) is answered our addresses of it, and rings stop until it has confirmed those.
 * Otherwise a migration that was announced has ended without postcopy.
 */
void postcopy_memory(struct vhost_session *s, bool told) CONTROL_ONLY;
/* A region that is about to join the session's memory: before anybody touches it. -errno. */
int postcopy_region(struct vhost_session *s, struct mem_region *region) CONTROL_ONLY;

/* Whether an answer waits for the pager. */
bool postcopy_is_busy(const struct vhost_session *s) CONTROL_ONLY;
/* False: our addresses have not been confirmed. */
bool postcopy_may_run(const struct vhost_session *s) CONTROL_ONLY;
/* Whether its ring is there; what is not is fetched, then the session reconciled. */
bool postcopy_ring_ready(struct vhost_vq *vvq) CONTROL_ONLY;
/* The session ends: every fetch comes back, lost. */
void postcopy_close(struct vhost_session *s) CONTROL_ONLY;

/* Ask for the pages of f, NULL: the session is in no postcopy. Ends in f->done(). */
void page_fetch_send(struct vhost_session *s, struct page_fetch *f) CONTROL_ONLY;
/* It comes back at once, now and always, but one that `must` not. NULL is allowed. */
void page_fetch_cancel(struct page_fetch *f) CONTROL_ONLY;

#endif
