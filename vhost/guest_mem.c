/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Mapping guest memory. A front end hands us file descriptors of memory that it
 * keeps control of, so besides checking what it says about them we must survive
 * what it does to them later: shrinking the file makes our next access raise
 * SIGBUS. Every mapped region therefore has a slot in a list that the handler
 * can walk without locks; the handler maps zero pages over the whole region,
 * marks the slot, and wakes the control thread, which ends the session.
 *
 * Slots are never freed, only reused, so the handler never meets a dangling
 * one. A slot is written by the control thread: start last when it is filled,
 * first when it is emptied.
 *
 * Unmapping a large guest takes long; it is done by a worker, after the region's
 * slot was emptied: nobody translates to it any more, so it cannot fault.
 */
#include "vhost/guest_mem.h"

#include "reactor/control.h"
#include "reactor/log.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#define HUGETLBFS_MAGIC 0x958458f6

struct bus_slot {
	struct bus_slot *next;
	_Atomic uintptr_t start;	/* 0: free */
	_Atomic size_t len;
	_Atomic bool lost;
};

static _Atomic(struct bus_slot *) slots;
static struct control_fd lost_fd = { .fd = -1 };
static void (*lost_cb)(void);

/* ------- losing memory ------- */

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	uintptr_t addr = (uintptr_t)info->si_addr;
	struct bus_slot *slot = atomic_load(&slots);
	int saved = errno;
	uint64_t one = 1;

	(void)context;
	for (; slot; slot = slot->next) {
		uintptr_t start = atomic_load(&slot->start);

		if (!start || addr < start || addr - start >= atomic_load(&slot->len))
			continue;
		if (mmap((void *)start, atomic_load(&slot->len), PROT_READ | PROT_WRITE,
			 MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) ==
		    MAP_FAILED)
			break;
		atomic_store(&slot->lost, true);
		if (write(lost_fd.fd, &one, sizeof(one)) < 0)
			break;
		errno = saved;
		return;
	}
	/* Not a guest's memory: die of it, where it happened. */
	signal(sig, SIG_DFL);
	errno = saved;
}

static void lost_event(struct control_fd *cf, uint32_t events)
{
	uint64_t count;

	(void)events;
	control_assert();
	if (read(cf->fd, &count, sizeof(count)) < 0)
		return;
	lost_cb();
}

int guest_mem_init(void (*lost)(void))
{
	struct sigaction sa = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER };
	int rc;

	lost_cb = lost;
	lost_fd.fn = lost_event;
	lost_fd.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (lost_fd.fd < 0)
		return -errno;
	rc = control_fd_add(&lost_fd, EPOLLIN);
	if (rc == 0 && sigaction(SIGBUS, &sa, NULL) < 0)
		rc = -errno;
	return rc;
}

void guest_mem_fini(void)
{
	if (lost_fd.fd < 0)
		return;
	signal(SIGBUS, SIG_DFL);
	control_fd_del(&lost_fd);
	close(lost_fd.fd);
	lost_fd.fd = -1;
}

CONTROL_ONLY static struct bus_slot *slot_take(void *start, size_t len)
{
	struct bus_slot *slot = atomic_load(&slots);

	while (slot && atomic_load(&slot->start))
		slot = slot->next;
	if (!slot) {
		slot = calloc(1, sizeof(*slot));
		if (!slot)
			return NULL;
		slot->next = atomic_load(&slots);
		atomic_store(&slots, slot);
	}
	atomic_store(&slot->lost, false);
	atomic_store(&slot->len, len);
	atomic_store(&slot->start, (uintptr_t)start);
	return slot;
}

/* ------- regions ------- */

/*
 * What answers our page faults is memory, a disk of this machine or a device, never another
 * process or machine, which may keep a reactor waiting for ever. Nor is such a file system
 * asked here: only files in memory have seals, and what is known without asking will do.
 */
static int look_at(int fd, struct statx *st, bool *in_memory)
{
	*in_memory = fcntl(fd, F_GET_SEALS) >= 0;
	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, st) < 0)
		return -errno;
	if (S_ISREG(st->stx_mode) && !*in_memory && st->stx_dev_major == 0)
		return -EREMOTE;
	return 0;
}

static uint64_t fd_page_size(int fd, bool in_memory)
{
	struct statfs fs;

	if (in_memory && fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC)
		return (uint64_t)fs.f_bsize;
	return (uint64_t)sysconf(_SC_PAGESIZE);
}

static int check_extent(uint64_t gpa, uint64_t size, uint64_t uva, uint64_t offset,
			const struct statx *st)
{
	if (size == 0 || gpa + size < gpa || uva + size < uva || offset + size < offset ||
	    offset + size > INT64_MAX)
		return -EINVAL;
	if (S_ISREG(st->stx_mode))
		return offset + size <= st->stx_size ? 0 : -EINVAL;
	return S_ISCHR(st->stx_mode) ? 0 : -EINVAL;
}

int mem_region_map(uint64_t gpa, uint64_t size, uint64_t uva, uint64_t offset, int fd,
		   struct mem_region **out)
{
	uint64_t page, start, len;
	struct mem_region *region;
	struct statx st;
	bool in_memory;
	int rc = look_at(fd, &st, &in_memory);

	if (rc == 0)
		rc = check_extent(gpa, size, uva, offset, &st);
	if (rc < 0)
		return rc;
	/* Whole pages around it: the file's own page size, which may be 1 GiB. */
	page = fd_page_size(fd, in_memory);
	start = offset & ~(page - 1);
	len = (offset - start + size + page - 1) & ~(page - 1);
	if (len < size)
		return -EINVAL;
	region = calloc(1, sizeof(*region));
	if (!region)
		return -ENOMEM;
	region->map_len = len;
	region->page_size = page;
	region->map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd,
			   (off_t)start);
	if (region->map == MAP_FAILED) {
		rc = -errno;
		free(region);
		return rc;
	}
	region->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	rc = region->fd < 0 ? -errno : -ENOMEM;
	region->slot = region->fd < 0 ? NULL : slot_take(region->map, len);
	if (!region->slot) {
		if (region->fd >= 0)
			close(region->fd);
		munmap(region->map, len);
		free(region);
		return rc;
	}
	madvise(region->map, len, MADV_DONTDUMP);
	region->gpa = gpa;
	region->size = size;
	region->uva = uva;
	region->dev = makedev(st.stx_dev_major, st.stx_dev_minor);
	region->ino = st.stx_ino;
	region->offset = offset;
	region->hva = (uint8_t *)region->map + (offset - start);
	*out = region;
	return 0;
}

static void unmap_run(struct job *job)
{
	struct mem_region *region = container_of(job, struct mem_region, unmap);

	munmap(region->map, region->map_len);
	close(region->fd);
}

static void unmap_done(struct job *job)
{
	struct mem_region *region = container_of(job, struct mem_region, unmap);

	free(region->present);
	free(region);
}

void mem_region_free(struct mem_region *region)
{
	if (!region)
		return;
	/* Nobody translates to it any more, so it cannot fault: free the slot first. */
	atomic_store(&region->slot->start, 0);
	region->unmap.run = unmap_run;
	region->unmap.done = unmap_done;
	worker_submit(&region->unmap);
}

/* ------- tables ------- */

static int by_gpa(const void *a, const void *b)
{
	const struct mem_region *ra = *(struct mem_region *const *)a;
	const struct mem_region *rb = *(struct mem_region *const *)b;

	return ra->gpa < rb->gpa ? -1 : ra->gpa > rb->gpa;
}

static bool overlaps(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
	return a < b + b_size && b < a + a_size;
}

static bool any_overlap(struct mem_region *const *regions, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		for (unsigned int j = i + 1; j < count; j++) {
			if (overlaps(regions[i]->gpa, regions[i]->size, regions[j]->gpa,
				     regions[j]->size) ||
			    overlaps(regions[i]->uva, regions[i]->size, regions[j]->uva,
				     regions[j]->size))
				return true;
		}
	}
	return false;
}

int guest_mem_create(struct mem_region *const *regions, unsigned int count,
		     struct guest_mem **out)
{
	struct guest_mem *mem;

	if (count == 0 || count > GUEST_MEM_REGIONS_MAX || any_overlap(regions, count))
		return -EINVAL;
	mem = calloc(1, sizeof(*mem) + count * sizeof(mem->spans[0]));
	if (!mem)
		return -ENOMEM;
	mem->regions = calloc(count, sizeof(struct mem_region *));
	if (!mem->regions) {
		free(mem);
		return -ENOMEM;
	}
	memcpy(mem->regions, regions, count * sizeof(struct mem_region *));
	qsort(mem->regions, count, sizeof(struct mem_region *), by_gpa);
	for (unsigned int i = 0; i < count; i++) {
		mem->regions[i]->refs++;
		mem->spans[i] = (struct mem_span){ mem->regions[i]->gpa, mem->regions[i]->size,
						   mem->regions[i]->hva };
	}
	mem->refs = 1;
	mem->count = count;
	*out = mem;
	return 0;
}

int guest_mem_add(const struct guest_mem *old, struct mem_region *region, struct guest_mem **out)
{
	struct mem_region *regions[GUEST_MEM_REGIONS_MAX];
	unsigned int count = old ? old->count : 0;

	if (count == GUEST_MEM_REGIONS_MAX)
		return -EINVAL;
	if (old)
		memcpy(regions, old->regions, count * sizeof(struct mem_region *));
	regions[count] = region;
	return guest_mem_create(regions, count + 1, out);
}

int guest_mem_remove(const struct guest_mem *old, uint64_t gpa, uint64_t size, uint64_t uva,
		     struct guest_mem **out)
{
	struct mem_region *regions[GUEST_MEM_REGIONS_MAX];
	unsigned int count = 0;

	for (unsigned int i = 0; old && i < old->count; i++) {
		struct mem_region *r = old->regions[i];

		if (r->gpa != gpa || r->size != size || r->uva != uva)
			regions[count++] = r;
	}
	if (!old || count == old->count)
		return -ENOENT;
	if (count == 0) {
		*out = NULL;
		return 0;
	}
	return guest_mem_create(regions, count, out);
}

struct guest_mem *guest_mem_get(struct guest_mem *mem)
{
	mem->refs++;
	return mem;
}

void guest_mem_put(struct guest_mem *mem)
{
	if (!mem || --mem->refs > 0)
		return;
	for (unsigned int i = 0; i < mem->count; i++) {
		if (--mem->regions[i]->refs == 0)
			mem_region_free(mem->regions[i]);
	}
	free(mem->regions);
	free(mem);
}

bool guest_mem_shares_file(const struct guest_mem *a, const struct guest_mem *b)
{
	if (!a || !b)
		return false;
	for (unsigned int i = 0; i < a->count; i++) {
		for (unsigned int j = 0; j < b->count; j++) {
			if (a->regions[i]->dev == b->regions[j]->dev &&
			    a->regions[i]->ino == b->regions[j]->ino)
				return true;
		}
	}
	return false;
}

bool guest_mem_lost(const struct guest_mem *mem)
{
	for (unsigned int i = 0; mem && i < mem->count; i++) {
		if (atomic_load(&mem->regions[i]->slot->lost))
			return true;
	}
	return false;
}

void *guest_mem_from_uva(const struct guest_mem *mem, uint64_t uva, uint64_t len)
{
	for (unsigned int i = 0; mem && i < mem->count; i++) {
		const struct mem_region *r = mem->regions[i];

		if (uva >= r->uva && range_ok(uva - r->uva, len, r->size))
			return r->hva + (uva - r->uva);
	}
	return NULL;
}

const struct mem_span *guest_mem_find(const struct guest_mem *mem, uint64_t gpa)
{
	unsigned int low = 0, high = mem->count;

	while (low < high) {
		unsigned int mid = low + (high - low) / 2;
		const struct mem_span *span = &mem->spans[mid];

		if (gpa < span->gpa)
			high = mid;
		else if (gpa - span->gpa >= span->size)
			low = mid + 1;
		else
			return span;
	}
	return NULL;
}
