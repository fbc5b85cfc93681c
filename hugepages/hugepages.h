/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef SPINDLE_HUGEPAGES_H
#define SPINDLE_HUGEPAGES_H

#include <stdbool.h>
#include <stddef.h>

/* Largest object that huge_pool_alloc() hands out, in bytes. */
#define HUGE_POOL_MAX ((size_t)1 << 20)

/*
 * One mapping. All of its pages are present, so nobody meets a page fault or SIGBUS on it later.
 * page_size is 2 MiB or 1 GiB, or the base page size (4096) when no huge pages were to be had;
 * len is the length asked for, rounded up to page_size; node is the NUMA node on which the first
 * page really lies, -1 when the kernel does not tell.
 */
struct huge_area {
	void *addr;
	size_t len;
	size_t page_size;
	int node;
};

/*
 * no_huge: use normal pages only. limit: bytes that may be mapped in all, 0 for no limit.
 * huge_dir: a hugetlbfs mount whose pages to use; NULL for the kernel's anonymous huge pages,
 * which need no mount.
 */
struct huge_config {
	bool no_huge;
	size_t limit;
	const char *huge_dir;
};

/* Bytes mapped now, by kind. fell_back: normal pages were once given because none were free. */
struct huge_stats {
	size_t huge_bytes;
	size_t normal_bytes;
	size_t limit;
	bool fell_back;
};

/*
 * Once, before other threads exist and before any allocation; copies what it needs. Reserves
 * nothing. -ENAMETOOLONG, -EINVAL when huge_dir is no hugetlbfs, or -errno of looking at it.
 * Without this call the defaults hold: anonymous huge pages, no limit.
 */
int huge_init(const struct huge_config *config);

/*
 * Any thread. Zeroed memory of at least len bytes, preferably on NUMA node `node` (-1: anywhere);
 * the caller owns *out and gives it back with huge_free(). Falls back to normal pages when no huge
 * pages are free; out->page_size tells. Clearing takes 0.2 s per GiB, 1 s for normal pages, so
 * large areas belong on a worker. -EINVAL (len 0, no such node), -ENOMEM (neither kind is there, or
 * the limit would be passed); *out is untouched on failure.
 */
int huge_alloc(size_t len, int node, struct huge_area *out);

/*
 * Any thread. As huge_alloc(), but the memory is that of *fd, by which another process can have it,
 * too: huge_adopt(). It lives as long as fds and mappings of it do. The caller owns *fd, and frees
 * the area as any other. Also -EMFILE, -ENFILE.
 */
int huge_alloc_shared(size_t len, int node, struct huge_area *out, int *fd);

/*
 * Any thread. Maps what another process, or this one, allocated by huge_alloc_shared() with the
 * same len, contents and place as they are. fd remains the caller's. The area counts towards the
 * limit of each process that has it, though its pages exist once. Up to 0.2 s per GiB where the
 * pages are normal ones. -EINVAL: not such memory, or of another size; -ENOMEM (the limit would be
 * passed) or -errno.
 */
int huge_adopt(int fd, size_t len, struct huge_area *out);

/* Any thread. Unmaps and clears *area; NULL and an all-zero area are fine. */
void huge_free(struct huge_area *area);

/*
 * Any thread, takes a mutex: for set-up, not for the hot path. A zeroed object of size bytes (1 to
 * HUGE_POOL_MAX), aligned to at least 256 bytes and to its size rounded up to a power of two if
 * that is more. Objects of one node share huge pages; a page whose objects are all free is given
 * back. NULL when there is no memory or size or node is impossible.
 */
void *huge_pool_alloc(size_t size, int node);

/* Any thread. size and node as they were given to huge_pool_alloc(); p may be NULL. */
void huge_pool_free(void *p, size_t size, int node);

/* Any thread. The NUMA node of a core, 0 if unknown. */
int huge_node_of_cpu(int cpu);

/*
 * Any thread. The node on which the page at addr lies; -1 when it has none yet (it is not touched),
 * the kernel does not tell, or the machine has one node only.
 */
int huge_node_of_memory(const void *addr);

/* The node that all of these are, -1 when they differ or there are none. */
int huge_common_node(const int *nodes, size_t count);

/* Any thread. A consistent copy of the counters. */
void huge_get_stats(struct huge_stats *stats);

#endif
