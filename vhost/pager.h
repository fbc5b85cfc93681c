/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The pager: a process of its own for each guest that arrives by postcopy. Its address
 * space is what the front end gets power over with the userfaultfd, so nothing is in it
 * but that guest's memory; and it waits for missing pages, so that nobody else does. It
 * may be killed at any time, which touches no page.
 *
 * One message a packet; control asks, any of the pager's threads answers.
 */
#ifndef SPINDLE_PAGER_H
#define SPINDLE_PAGER_H

#include <stdint.h>
#include <sys/types.h>

enum pager_type {
	PAGER_READY = 1,	/* from the pager, first of all: the userfaultfd comes with it */
	PAGER_MAP,		/* offset, len; the file comes with it */
	PAGER_MAPPED,		/* addr, or 0 and error */
	PAGER_FETCH,		/* addr, page size in len, first and count of the pages */
	PAGER_PRESENT,		/* the same: they are there */
};

struct pager_msg {
	uint32_t type, id;	/* id: of the region */
	uint64_t addr, offset, len;
	uint32_t first, count;
	int32_t error;		/* -errno */
};

/* What a program that is called PAGER_NAME has to do; does not return. */
#define PAGER_NAME "vhost-pager"
void pager_main(void) __attribute__((noreturn));

/*
 * Blocks for as long as a program takes to start. Its process, the socket to it and its
 * userfaultfd; -errno.
 */
int pager_spawn(pid_t *pid, int *sock, int *uffd);
/* Kill it, wait for it. */
void pager_end(pid_t pid);

/* At most one fd, -1 for none; does not block when `flags` has MSG_DONTWAIT. -errno. */
int pager_send(int sock, const struct pager_msg *msg, int fd, int flags);
/* *fd is the caller's, -1: none. 1; 0: the other one is gone; -EPROTO, -errno. */
int pager_recv(int sock, struct pager_msg *msg, int *fd, int flags);

/* A userfaultfd with these features, for faults in user mode where the kernel can tell. -errno. */
int uffd_open(uint64_t features);
/* Missing pages of [addr, addr + len) are its business from now on. -errno. */
int uffd_register(int uffd, void *addr, uint64_t len);
void uffd_unregister(int uffd, void *addr, uint64_t len);

#endif
