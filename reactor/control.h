/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The control thread: one epoll loop for RPC clients, vhost-user sockets,
 * signals and timers; it owns bdevs, controllers, sessions and the
 * configuration. It never blocks: what takes time goes to a worker or a
 * reactor and comes back as a message.
 */
#ifndef SPINDLE_CONTROL_H
#define SPINDLE_CONTROL_H

#include "reactor/base.h"
#include "reactor/inbox.h"

/* -errno. The calling thread becomes the control thread. Once. */
int control_init(void);
/* Run until control_stop(). */
void control_run(void);
void control_stop(void) CONTROL_ONLY;
/* At exit: handle the messages that have come meanwhile; false when there were none. */
bool control_drain(void);
void control_fini(void);

bool control_is_current(void);
void control_assert(void) ASSERTS_ROLE(role_control);

/* msg's fn runs on the control thread. Any thread; never fails or blocks. */
void control_post(struct msg *msg);

/* ------- file descriptors ------- */

/*
 * A watched fd. The caller owns the struct and the fd; after control_fd_del()
 * its fn is not called again and both may be freed, also from inside fn.
 */
struct control_fd {
	int fd;
	void (*fn)(struct control_fd *cf, uint32_t events);	/* EPOLLIN ... */
};
int control_fd_add(struct control_fd *cf, uint32_t events) CONTROL_ONLY;
int control_fd_mod(struct control_fd *cf, uint32_t events) CONTROL_ONLY;
void control_fd_del(struct control_fd *cf) CONTROL_ONLY;

/* ------- timers ------- */

struct control_timer {
	struct list node;
	uint64_t deadline_ns;	/* CLOCK_MONOTONIC */
	void (*fn)(struct control_timer *t);
};
/* A zeroed or stopped timer fires once; a running one is moved. */
void control_timer_start(struct control_timer *t, uint64_t ms) CONTROL_ONLY;
void control_timer_stop(struct control_timer *t) CONTROL_ONLY;

/* Busy and idle time of the control thread, in tsc ticks; any thread. */
void control_get_times(uint64_t *busy, uint64_t *idle);

#endif
