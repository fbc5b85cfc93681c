/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which pages of a guest's memory are there, while others may still be on their way
 * (vhost/postcopy.h). A region that came in postcopy has a bit for each page of its
 * mapping; a page that is known to be there stays so. Touching one that is not ends
 * the session, so a reactor asks here first.
 *
 * Bits are set by control and read by the reactors. A page_fetch is a list of pages that
 * are wanted: its owner fills it, control has it from page_fetch_send() until it comes back.
 */
#ifndef SPINDLE_PAGES_H
#define SPINDLE_PAGES_H

#include "reactor/base.h"
#include "reactor/inbox.h"
#include "vhost/guest_mem.h"

#include <sys/uio.h>

#define PAGE_RUNS_MAX 64
/* One touches them after another: long runs are cut, for others to help. */
#define PAGE_RUN_MAX 16
/* Missing pages that a fetch looks at: a driver may name the same ones again and again. */
#define PAGE_TRIES_MAX 4096

/* Neighbours, by their place in the region's mapping. */
struct page_run {
	struct mem_region *region;
	uint32_t first, count;
};

struct page_fetch {
	struct page_run runs[PAGE_RUNS_MAX];
	unsigned int count, tries;
	/* Control's, while it has it. */
	struct msg msg;
	struct list node;
	unsigned int sent, have;	/* runs asked for; runs known to be there, from the first */
	bool busy;			/* control has it */
	bool cancelled;			/* it comes back at once, whatever is missing */
	bool lost;			/* and the pages will never come */
	bool must;			/* only lost, not cancelled: the owner sets it */
	/* On control, when it comes back. */
	void (*done)(struct page_fetch *f);
	void *owner;
	struct guest_mem *mem;		/* a reference for the runs, if it needs one */
};

/* Every page of the region may be missing. -ENOMEM. Freed with the region. */
int pages_track(struct mem_region *region);
void pages_arrived(struct mem_region *region, uint32_t first, uint32_t count);
bool page_run_present(const struct page_run *run);

static inline void page_fetch_clear(struct page_fetch *f)
{
	f->count = f->tries = 0;
}

/*
 * Whether all of these bytes are there. What is not is added to `fetch`, as far as it has
 * room; nothing is looked at beyond that. Bytes outside of the memory count as there: whoever
 * translates them will see.
 */
bool pages_present(const struct guest_mem *mem, const void *hva, uint64_t len,
		   struct page_fetch *fetch);
bool pages_present_gpa(const struct guest_mem *mem, uint64_t gpa, uint64_t len,
		       struct page_fetch *fetch);
bool pages_present_iov(const struct guest_mem *mem, const struct iovec *iov, unsigned int count,
		       struct page_fetch *fetch);

#endif
