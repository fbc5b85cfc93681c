/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A guest's memory as the front end has described it: regions of shared files,
 * mapped into our address space, and tables of them. A table is an immutable,
 * counted snapshot: a changed memory makes a new table that shares the regions
 * both have. Tables and regions are made and counted on the control thread;
 * reactors only translate with a table that somebody holds for them.
 */
#ifndef SPINDLE_GUEST_MEM_H
#define SPINDLE_GUEST_MEM_H

#include "reactor/base.h"
#include "reactor/worker.h"

#define GUEST_MEM_REGIONS_MAX 512

struct mem_region {
	uint64_t gpa;		/* guest physical address */
	uint64_t size;
	uint64_t uva;		/* the front end's own address of it */
	uint8_t *hva;		/* ours */
	uint64_t dev, ino;	/* of its file */
	uint64_t offset;	/* in its file */
	int fd;			/* our own, for a successor */
	void *map;		/* what was mapped: whole pages around it */
	size_t map_len;
	uint64_t page_size;	/* of the file */
	/* Postcopy, see vhost/pages.h. */
	_Atomic uint64_t *present;	/* NULL: no page is missing */
	uint64_t pager_map;	/* its pager's address of map */
	uint32_t pager_id;
	unsigned int refs;	/* tables that have it */
	struct bus_slot *slot;	/* where the SIGBUS handler finds it */
	struct job unmap;
};

/* The part of a region that translation reads. */
struct mem_span {
	uint64_t gpa, size;
	uint8_t *hva;
};

struct guest_mem {
	unsigned int refs;
	unsigned int count;
	bool paged;			/* postcopy: pages may be missing */
	struct mem_region **regions;	/* in the order of spans */
	struct mem_span spans[];	/* by gpa, no two overlap */
};

/*
 * Install the SIGBUS handler: when a front end takes away memory it has shared
 * (by truncating its file), the region turns into zeroes instead of killing
 * us, and lost() is called on the control thread. -errno.
 */
int guest_mem_init(void (*lost)(void)) CONTROL_ONLY;
void guest_mem_fini(void) CONTROL_ONLY;

/*
 * Map `size` bytes at `offset` of fd; fd stays the caller's. No page is touched.
 * -EINVAL: empty, overflowing, or beyond the end of the file; -EREMOTE: a file whose pages
 * another process or machine may have to bring; -errno of mmap.
 */
int mem_region_map(uint64_t gpa, uint64_t size, uint64_t uva, uint64_t offset, int fd,
		   struct mem_region **out) CONTROL_ONLY;
/* For a region that never got into a table. NULL is allowed. */
void mem_region_free(struct mem_region *region) CONTROL_ONLY;

/*
 * A table of these regions, one reference held by the caller. It takes over
 * the regions; on failure they are still the caller's. -EINVAL: overlap in
 * guest physical or front-end addresses, or too many; -ENOMEM.
 */
int guest_mem_create(struct mem_region *const *regions, unsigned int count,
		     struct guest_mem **out) CONTROL_ONLY;
/* old (may be NULL) and one more. */
int guest_mem_add(const struct guest_mem *old, struct mem_region *region,
		  struct guest_mem **out) CONTROL_ONLY;
/* old without the region of exactly this place; -ENOENT. */
int guest_mem_remove(const struct guest_mem *old, uint64_t gpa, uint64_t size, uint64_t uva,
		     struct guest_mem **out) CONTROL_ONLY;
struct guest_mem *guest_mem_get(struct guest_mem *mem) CONTROL_ONLY;
/* The last put unmaps what no other table has, on a worker. NULL is allowed. */
void guest_mem_put(struct guest_mem *mem) CONTROL_ONLY;
/* Whether both have a file in common: descriptors differ, files do not. NULL: none. */
bool guest_mem_shares_file(const struct guest_mem *a, const struct guest_mem *b) CONTROL_ONLY;
/* Whether the SIGBUS handler has replaced one of its regions. */
bool guest_mem_lost(const struct guest_mem *mem) CONTROL_ONLY;

/* Our address of `len` bytes at front-end address uva, all in one region; or NULL. */
void *guest_mem_from_uva(const struct guest_mem *mem, uint64_t uva, uint64_t len);

/* Binary search; NULL when gpa lies in no region. */
const struct mem_span *guest_mem_find(const struct guest_mem *mem, uint64_t gpa);

/*
 * Our address of gpa and how many of the `len` bytes from there are contiguous
 * (the rest lies in another region, or nowhere). NULL when gpa is not mapped.
 * *hint remembers the last span: most requests stay in one.
 */
static inline void *guest_mem_translate(const struct guest_mem *mem, const struct mem_span **hint,
					uint64_t gpa, uint64_t len, uint64_t *contiguous)
{
	const struct mem_span *span = *hint;
	uint64_t offset = gpa - span->gpa;

	if (unlikely(offset >= span->size)) {
		span = guest_mem_find(mem, gpa);
		if (!span)
			return NULL;
		*hint = span;
		offset = gpa - span->gpa;
	}
	*contiguous = MIN(len, span->size - offset);
	return span->hva + offset;
}

#endif
