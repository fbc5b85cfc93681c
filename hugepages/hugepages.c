/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Huge page memory with NUMA placement: whole areas (huge_alloc) and small objects carved out of
 * them (huge_pool_alloc). Nothing is taken before somebody asks for it.
 *
 * An area is tried as 2 MiB pages, then 1 GiB pages, then normal pages with transparent huge pages
 * advised. Every page is populated before the area is handed out. The reservation that mmap makes
 * is not enough for that: a hugetlb cgroup limit or a cpuset strikes at the first touch, as SIGBUS
 * on whichever thread comes by, while MADV_POPULATE_WRITE reports it here as an error. It also
 * keeps MemAvailable honest for the next request: the check against it would mean little if
 * areas that were granted had not been paid for yet. Placement is MPOL_PREFERRED, not MPOL_BIND,
 * because a bound node without free pages is again a SIGBUS (or the OOM killer).
 *
 * A shared area lies in a file without a name (memfd), or in one of the operator's hugetlbfs mount,
 * that another process can map by its descriptor: that is how a malloc disk outlives the process.
 * It is as fast as a private one: huge pages are the same either way, and normal pages, which
 * the kernel does not make huge by advice in a memfd (unless shmem_enabled says so), are collapsed
 * into huge ones at once. A 4 KiB copy at random from 1 GiB takes 450-490 ns without that, 380-410
 * with it and in private memory.
 *
 * The pool is a buddy allocator per chunk, a chunk being one huge page. Its state is a byte per
 * tree node, outside of the chunk: `loss`, how many orders the largest free block below the node
 * is smaller than the node itself. Zero means all free, so a fresh calloc() is a fresh tree and
 * the 8 MiB for a 1 GiB page are touched only where they are used.
 *
 * Nothing is logged, this being the lowest floor: callers get -errno and facts. g_account guards
 * the byte counters, g_pool the chunk list; g_pool is the outer one.
 */
#include "hugepages/hugepages.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <numa.h>
#include <numaif.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#include <sanitizer/lsan_interface.h>
#define POOL_POISON(p, len) __asan_poison_memory_region(p, len)
#define POOL_UNPOISON(p, len) __asan_unpoison_memory_region(p, len)
/* Objects hold pointers to the heap; without this the leak checker would not look into them. */
#define POOL_ROOT(p, len) __lsan_register_root_region(p, len)
#define POOL_UNROOT(p, len) __lsan_unregister_root_region(p, len)
#else
#define POOL_POISON(p, len) ((void)(p), (void)(len))
#define POOL_UNPOISON(p, len) ((void)(p), (void)(len))
#define POOL_ROOT(p, len) ((void)(p), (void)(len))
#define POOL_UNROOT(p, len) ((void)(p), (void)(len))
#endif

/* Linux UAPI values that headers before 5.14 (and 6.1: COLLAPSE) do not have. */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif

#define SHIFT_2M 21
#define SHIFT_1G 30
#define SIZE_2M ((size_t)1 << SHIFT_2M)
#define MAX_NODES 1024
#define BITS_PER_LONG ((int)(sizeof(unsigned long) * CHAR_BIT))

/* Smallest block of the pool: four cache lines, which makes the tree 1/128 of the memory. */
#define UNIT_SHIFT 8
#define UNIT ((size_t)1 << UNIT_SHIFT)

/* Memory that a fallback to normal pages leaves to the rest of the machine, at least. */
#define KEEP_FREE ((size_t)64 << 20)

struct pool_chunk {
	struct pool_chunk *next;
	struct huge_area area;
	int node;          /* as asked for; area.node may differ */
	int order;         /* the chunk is UNIT << order bytes */
	uint8_t loss[];    /* heap-shaped: children of i are 2i+1 and 2i+2 */
};

static bool g_no_huge;
static char g_dir[PATH_MAX - 32]; /* empty: anonymous; room is left for a file's name */
static size_t g_dir_page;

static pthread_mutex_t g_account = PTHREAD_MUTEX_INITIALIZER;
static struct huge_stats g_stats;

static pthread_mutex_t g_pool = PTHREAD_MUTEX_INITIALIZER;
static struct pool_chunk *g_chunks;

int
huge_init(const struct huge_config *config)
{
	struct statfs fs;
	const char *dir = config->huge_dir;

	if (dir && !config->no_huge) {
		if (strlen(dir) >= sizeof(g_dir))
			return -ENAMETOOLONG;
		if (statfs(dir, &fs) != 0)
			return -errno;
		if (fs.f_type != HUGETLBFS_MAGIC)
			return -EINVAL;
		memcpy(g_dir, dir, strlen(dir) + 1);
		g_dir_page = (size_t)fs.f_bsize;
	} else {
		g_dir[0] = '\0';
	}
	g_no_huge = config->no_huge;
	g_stats.limit = config->limit;
	/* libnuma builds its table of cores at the first question, without a lock. */
	huge_node_of_cpu(0);
	return 0;
}

int
huge_node_of_cpu(int cpu)
{
	int node;

	if (cpu < 0 || numa_available() < 0)
		return 0;
	node = numa_node_of_cpu(cpu);
	return node < 0 ? 0 : node;
}

int
huge_node_of_memory(const void *addr)
{
	void *page = (void *)((uintptr_t)addr & ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1));
	int node = -1;

	if (numa_available() < 0 || numa_max_node() == 0)
		return -1;
	/* Without nodes to move to it only asks, and touches nothing. */
	if (move_pages(0, 1, &page, NULL, &node, 0) != 0 || node < 0)
		return -1;
	return node;
}

int
huge_common_node(const int *nodes, size_t count)
{
	for (size_t i = 1; i < count; i++) {
		if (nodes[i] != nodes[0])
			return -1;
	}
	return count ? nodes[0] : -1;
}

static bool
round_up(size_t len, size_t page, size_t *out)
{
	if (len > SIZE_MAX - (page - 1))
		return false;
	*out = (len + page - 1) & ~(page - 1);
	return true;
}

/* Takes len bytes out of the limit before they are mapped, so that two threads cannot pass it. */
static bool
account_add(size_t len, bool huge)
{
	bool ok;

	pthread_mutex_lock(&g_account);
	ok = !g_stats.limit || (len <= g_stats.limit &&
				g_stats.huge_bytes + g_stats.normal_bytes <= g_stats.limit - len);
	if (ok && huge)
		g_stats.huge_bytes += len;
	else if (ok)
		g_stats.normal_bytes += len;
	pthread_mutex_unlock(&g_account);
	return ok;
}

static void
account_sub(size_t len, bool huge)
{
	pthread_mutex_lock(&g_account);
	if (huge)
		g_stats.huge_bytes -= len;
	else
		g_stats.normal_bytes -= len;
	pthread_mutex_unlock(&g_account);
}

/* A wish only: where mbind is forbidden (a container's seccomp), memory anywhere will do. */
static void
prefer_node(void *addr, size_t len, int node)
{
	unsigned long mask[MAX_NODES / BITS_PER_LONG] = { 0 };

	if (node < 0)
		return;
	mask[node / BITS_PER_LONG] = 1UL << (node % BITS_PER_LONG);
	(void)mbind(addr, len, MPOL_PREFERRED, mask, MAX_NODES, 0);
}

static int
node_of_page(void *addr)
{
	int node;

	if (get_mempolicy(&node, NULL, 0, addr, MPOL_F_NODE | MPOL_F_ADDR) != 0)
		return -1;
	return node;
}

/* Kernels before 5.14 say EINVAL; there the reservation made by mmap has to do. */
static bool
populate(void *addr, size_t len)
{
	int rc;

	do {
		rc = madvise(addr, len, MADV_POPULATE_WRITE);
	} while (rc != 0 && (errno == EAGAIN || errno == EINTR));
	return rc == 0 || errno == EINVAL;
}

/* An unlinked file of the operator's hugetlbfs mount; -1 with errno. */
static int
open_in_dir(void)
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s/spindle.XXXXXX", g_dir);
	fd = mkostemp(path, O_CLOEXEC);
	if (fd >= 0)
		unlink(path);
	return fd;
}

/* Makes the new file fd (-1: errno says why there is none) that long. fd or -errno. */
static int
file_of_size(int fd, size_t len)
{
	int rc;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)len) == 0)
		return fd;
	rc = -errno;
	close(fd);
	return rc;
}

/* A file of huge pages; page_shift 0 means the mount that was configured. fd or -errno. */
static int
huge_file(size_t len, int page_shift)
{
	unsigned int flags = MFD_CLOEXEC | MFD_HUGETLB |
			     ((unsigned int)page_shift << MFD_HUGE_SHIFT);

	return file_of_size(page_shift ? memfd_create("spindle", flags) : open_in_dir(), len);
}

/* page_shift 0 means the mount that was configured. fd NULL: private. */
static int
alloc_huge(size_t len, int page_shift, int node, struct huge_area *out, int *fd)
{
	size_t page = page_shift ? (size_t)1 << page_shift : g_dir_page;
	int flags = MAP_SHARED, file = -1;
	size_t mapped;
	void *addr;

	if (!round_up(len, page, &mapped) || mapped > (size_t)SSIZE_MAX)
		return -ENOMEM;
	if (!account_add(mapped, true))
		return -ENOMEM;
	if (fd || !page_shift) {
		file = huge_file(mapped, page_shift);
		if (file < 0)
			goto unaccount;
	} else {
		flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (page_shift << MAP_HUGE_SHIFT);
	}
	addr = mmap(NULL, mapped, PROT_READ | PROT_WRITE, flags, file, 0);
	if (addr == MAP_FAILED)
		goto close_file;
	prefer_node(addr, mapped, node);
	if (!populate(addr, mapped))
		goto unmap;
	*out = (struct huge_area){ addr, mapped, page, node_of_page(addr) };
	if (fd)
		*fd = file;
	else if (file >= 0)
		close(file);
	return 0;

unmap:
	munmap(addr, mapped);
close_file:
	if (file >= 0)
		close(file);
unaccount:
	account_sub(mapped, true);
	return -ENOMEM;
}

/* Bytes that can be had without pushing the machine into swap or the OOM killer. */
static size_t
available_memory(void)
{
	static const char key[] = "MemAvailable:";
	char text[1024];
	unsigned long kib = 0;
	const char *at;
	ssize_t n;
	int fd;

	fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	at = strstr(text, key);
	if (at)
		kib = strtoul(at + sizeof(key) - 1, NULL, 10);
	return kib * 1024 > KEEP_FREE ? kib * 1024 - KEEP_FREE : 0;
}

/* Maps len bytes of normal pages, fd's or, for -1, private ones; where huge ones could fit, so. */
static void *
map_normal(size_t len, int fd)
{
	size_t extra = len >= SIZE_2M ? SIZE_2M : 0;
	int flags = fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
	size_t head, tail;
	char *room, *addr;

	if (!extra)
		return mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);
	room = mmap(NULL, len + extra, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		    -1, 0);
	if (room == MAP_FAILED)
		return room;
	head = (SIZE_2M - ((uintptr_t)room & (SIZE_2M - 1))) & (SIZE_2M - 1);
	tail = extra - head;
	addr = mmap(room + head, len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
	if (addr == MAP_FAILED) {
		munmap(room, len + extra);
		return addr;
	}
	if (head)
		munmap(room, head);
	if (tail)
		munmap(room + head + len, tail);
	(void)madvise(addr, len, MADV_HUGEPAGE);
	return addr;
}

/*
 * A memfd's pages into huge ones, as many as it works for. After they were populated, since
 * they then lie on the right node and a collapse keeps them there.
 */
static bool
collapse(void *addr, size_t len)
{
	if (len < SIZE_2M || madvise(addr, len, MADV_COLLAPSE) != 0)
		return true;
	return populate(addr, len);
}

/* fd NULL: private. */
static int
alloc_normal(size_t len, int node, struct huge_area *out, int *fd)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	int file = -1, rc = -ENOMEM;
	size_t mapped;
	void *addr;

	if (!round_up(len, page, &mapped) || mapped > available_memory())
		return -ENOMEM;
	if (!account_add(mapped, false))
		return -ENOMEM;
	if (fd) {
		file = file_of_size(memfd_create("spindle", MFD_CLOEXEC), mapped);
		if (file < 0) {
			rc = file;
			goto unaccount;
		}
	}
	addr = map_normal(mapped, file);
	if (addr == MAP_FAILED)
		goto close_file;
	prefer_node(addr, mapped, node);
	if (!populate(addr, mapped) || (fd && !collapse(addr, mapped)))
		goto unmap;
	*out = (struct huge_area){ addr, mapped, page, node_of_page(addr) };
	if (fd)
		*fd = file;
	return 0;

unmap:
	munmap(addr, mapped);
close_file:
	if (file >= 0)
		close(file);
unaccount:
	account_sub(mapped, false);
	return rc;
}

static int
alloc_area(size_t len, int node, struct huge_area *out, int *fd)
{
	int rc;

	if (!len || node < -1 || node >= MAX_NODES)
		return -EINVAL;
	if (node > 0 && (numa_available() < 0 || node > numa_max_node()))
		return -EINVAL;
	if (g_no_huge)
		return alloc_normal(len, node, out, fd);
	if (g_dir[0]) {
		rc = alloc_huge(len, 0, node, out, fd);
	} else {
		rc = alloc_huge(len, SHIFT_2M, node, out, fd);
		if (rc)
			rc = alloc_huge(len, SHIFT_1G, node, out, fd);
	}
	if (!rc)
		return 0;
	rc = alloc_normal(len, node, out, fd);
	if (!rc) {
		pthread_mutex_lock(&g_account);
		g_stats.fell_back = true;
		pthread_mutex_unlock(&g_account);
	}
	return rc;
}

int
huge_alloc(size_t len, int node, struct huge_area *out)
{
	return alloc_area(len, node, out, NULL);
}

int
huge_alloc_shared(size_t len, int node, struct huge_area *out, int *fd)
{
	return alloc_area(len, node, out, fd);
}

int
huge_adopt(int fd, size_t len, struct huge_area *out)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), mapped;
	struct statfs fs;
	struct stat st;
	void *addr;
	bool huge;

	if (fstat(fd, &st) != 0 || fstatfs(fd, &fs) != 0)
		return -errno;
	huge = fs.f_type == HUGETLBFS_MAGIC;
	if (huge)
		page = (size_t)fs.f_bsize;
	else if (fs.f_type != TMPFS_MAGIC)
		return -EINVAL;
	if (!len || !round_up(len, page, &mapped) || (uint64_t)st.st_size != mapped)
		return -EINVAL;
	if (!account_add(mapped, huge))
		return -ENOMEM;
	addr = huge ? mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) :
		      map_normal(mapped, fd);
	if (addr == MAP_FAILED)
		goto unaccount;
	/* They are there; this is for the page tables. */
	if (!populate(addr, mapped))
		goto unmap;
	*out = (struct huge_area){ addr, mapped, page, node_of_page(addr) };
	return 0;

unmap:
	munmap(addr, mapped);
unaccount:
	account_sub(mapped, huge);
	return -ENOMEM;
}

void
huge_free(struct huge_area *area)
{
	if (!area || !area->addr)
		return;
	munmap(area->addr, area->len);
	account_sub(area->len, area->page_size > (size_t)sysconf(_SC_PAGESIZE));
	*area = (struct huge_area){ 0 };
}

void
huge_get_stats(struct huge_stats *stats)
{
	pthread_mutex_lock(&g_account);
	*stats = g_stats;
	pthread_mutex_unlock(&g_account);
}

/* The order of the smallest block that holds size bytes, in units. */
static int
order_of(size_t size)
{
	int order = 0;

	while ((UNIT << order) < size)
		order++;
	return order;
}

/* A whole, free node of order o has loss 0; one with nothing free below it has loss o + 1. */
static int
free_order(const struct pool_chunk *chunk, size_t i, int order)
{
	return order - chunk->loss[i];
}

static void
tree_set(struct pool_chunk *chunk, size_t i, int order, int best)
{
	chunk->loss[i] = (uint8_t)(order - best);
}

/* Recomputes the ancestors of node i, which has the given order. */
static void
tree_update(struct pool_chunk *chunk, size_t i, int order)
{
	int left, right, best;
	size_t child;

	while (i) {
		i = (i - 1) / 2;
		child = 2 * i + 1;
		left = free_order(chunk, child, order);
		right = free_order(chunk, child + 1, order);
		best = left > right ? left : right;
		/* Two buddies that are both wholly free are one block of the next order. */
		if (left == order && right == order)
			best = order + 1;
		order++;
		tree_set(chunk, i, order, best);
	}
}

static void *
chunk_take(struct pool_chunk *chunk, int order)
{
	size_t i = 0, first;
	int at = chunk->order;

	if (free_order(chunk, 0, at) < order)
		return NULL;
	while (at > order) {
		at--;
		i = 2 * i + 1;
		/* Best fit of the two sides keeps large blocks whole for later. */
		if (free_order(chunk, i, at) < order ||
		    (free_order(chunk, i + 1, at) >= order &&
		     free_order(chunk, i + 1, at) < free_order(chunk, i, at)))
			i++;
	}
	tree_set(chunk, i, order, -1);
	tree_update(chunk, i, order);
	first = ((size_t)1 << (chunk->order - order)) - 1;
	return (char *)chunk->area.addr + ((i - first) << order << UNIT_SHIFT);
}

static void
chunk_put(struct pool_chunk *chunk, void *p, int order)
{
	size_t offset = (size_t)((char *)p - (char *)chunk->area.addr);
	size_t first = ((size_t)1 << (chunk->order - order)) - 1;
	size_t i = first + (offset >> UNIT_SHIFT >> order);

	tree_set(chunk, i, order, order);
	tree_update(chunk, i, order);
}

static void
chunk_destroy(struct pool_chunk *chunk)
{
	POOL_UNROOT(chunk->area.addr, chunk->area.len);
	POOL_UNPOISON(chunk->area.addr, chunk->area.len);
	huge_free(&chunk->area);
	free(chunk);
}

static struct pool_chunk *
chunk_create(int node)
{
	struct huge_area area;
	struct pool_chunk *chunk;
	int order;

	if (huge_alloc(SIZE_2M, node, &area))
		return NULL;
	order = order_of(area.len);
	chunk = calloc(1, sizeof(*chunk) + ((size_t)2 << order));
	if (!chunk) {
		huge_free(&area);
		return NULL;
	}
	chunk->area = area;
	chunk->node = node;
	chunk->order = order;
	POOL_POISON(area.addr, area.len);
	POOL_ROOT(area.addr, area.len);
	return chunk;
}

void *
huge_pool_alloc(size_t size, int node)
{
	struct pool_chunk *chunk;
	void *p = NULL;
	int order;

	if (!size || size > HUGE_POOL_MAX)
		return NULL;
	order = order_of(size);
	pthread_mutex_lock(&g_pool);
	for (chunk = g_chunks; chunk && !p; chunk = chunk->next) {
		if (chunk->node == node)
			p = chunk_take(chunk, order);
	}
	if (!p) {
		chunk = chunk_create(node);
		if (chunk) {
			chunk->next = g_chunks;
			g_chunks = chunk;
			p = chunk_take(chunk, order);
		}
	}
	pthread_mutex_unlock(&g_pool);
	if (!p)
		return NULL;
	POOL_UNPOISON(p, size);
	return memset(p, 0, size);
}

void
huge_pool_free(void *p, size_t size, int node)
{
	struct pool_chunk **link, *chunk;
	uintptr_t at = (uintptr_t)p, base;

	if (!p)
		return;
	pthread_mutex_lock(&g_pool);
	for (link = &g_chunks; (chunk = *link); link = &chunk->next) {
		base = (uintptr_t)chunk->area.addr;
		if (chunk->node != node || at < base || at - base >= chunk->area.len)
			continue;
		POOL_POISON(p, UNIT << order_of(size));
		chunk_put(chunk, p, order_of(size));
		if (!chunk->loss[0]) {
			*link = chunk->next;
			chunk_destroy(chunk);
		}
		break;
	}
	pthread_mutex_unlock(&g_pool);
}
