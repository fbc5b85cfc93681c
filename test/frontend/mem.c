/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Guest memory: regions at any guest address, over memfd, huge pages or files.
 *
 * Each region maps its file from offset 0 to mmap_offset + size, so mmap_offset may have any
 * value and alignment; `host` is the address of its first guest byte. Two regions that adjoin in
 * the guest are not neighbours here: fe_gpa refuses a range that crosses, fe_mem_read and
 * fe_mem_write walk over. A removed region keeps its number and answers no address.
 *
 * The allocator is a bump pointer in each region with mark and release: tests take memory in
 * stack order or throw the whole front end away.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "frontend.h"

static int open_file(const char *dir)
{
	char path[4096];
	int fd;

	if (!dir)
		return -EINVAL;
	if (snprintf(path, sizeof(path), "%s/fe-mem-XXXXXX", dir) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	unlink(path);
	return fd;
}

static int open_backing(struct fe *fe, const struct fe_region_spec *spec)
{
	int fd;

	switch (spec->backing) {
	case FE_MEM_MEMFD:
		fd = memfd_create("fe-mem", MFD_CLOEXEC);
		return fd < 0 ? -errno : fd;
	case FE_MEM_MEMFD_HUGE:
		fd = memfd_create("fe-mem", MFD_CLOEXEC | MFD_HUGETLB);
		return fd < 0 ? -errno : fd;
	case FE_MEM_FILE:
		return open_file(spec->dir);
	case FE_MEM_SHARE:
		if (spec->share < 0 || (uint32_t)spec->share >= fe->num_regions)
			return -EINVAL;
		fd = fcntl(fe->regions[spec->share].fd, F_DUPFD_CLOEXEC, 0);
		return fd < 0 ? -errno : fd;
	case FE_MEM_FD:
		fd = fcntl(spec->share, F_DUPFD_CLOEXEC, 0);
		return fd < 0 ? -errno : fd;
	default:
		return -EINVAL;
	}
}

/* Make the file long enough; on huge pages lengths are multiples of a page. */
static int size_file(int fd, uint64_t need, uint64_t *map_len)
{
	struct statfs fs;
	off_t have = lseek(fd, 0, SEEK_END);
	uint64_t page = 4096;

	if (have < 0)
		return -errno;
	if (fstatfs(fd, &fs) == 0 && fs.f_bsize > 4096 && fs.f_type == 0x958458f6)
		page = (uint64_t)fs.f_bsize;
	*map_len = (need + page - 1) / page * page;
	if ((uint64_t)have < *map_len && ftruncate(fd, (off_t)*map_len) < 0)
		return -errno;
	return 0;
}

int fe_mem_add(struct fe *fe, const struct fe_region_spec *spec)
{
	struct fe_region *r;
	uint64_t need, map_len = 0;
	void *map;
	int fd, rc;

	if (fe->num_regions == FE_MAX_REGIONS)
		return -ENOSPC;
	if (spec->size == 0 || __builtin_add_overflow(spec->size, spec->mmap_offset, &need))
		return -EINVAL;
	fd = open_backing(fe, spec);
	if (fd < 0)
		return fd;
	rc = size_file(fd, need, &map_len);
	if (rc < 0)
		goto fail;
	map = mmap(NULL, map_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED) {
		rc = -errno;
		goto fail;
	}
	r = &fe->regions[fe->num_regions];
	memset(r, 0, sizeof(*r));
	r->gpa = spec->gpa;
	r->size = spec->size;
	r->mmap_offset = spec->mmap_offset;
	r->map = map;
	r->map_len = map_len;
	r->host = r->map + spec->mmap_offset;
	r->uva = spec->uva ? spec->uva : (uint64_t)(uintptr_t)r->host;
	r->fd = fd;
	return (int)fe->num_regions++;
fail:
	close(fd);
	return rc;
}

void fe_mem_del(struct fe *fe, unsigned int region)
{
	struct fe_region *r;

	if (region >= fe->num_regions || fe->regions[region].gone)
		return;
	r = &fe->regions[region];
	munmap(r->map, r->map_len);
	close(r->fd);
	r->fd = -1;
	r->gone = true;
	r->host = NULL;
}

void fe_mem_destroy(struct fe *fe)
{
	for (uint32_t i = 0; i < fe->num_regions; i++)
		fe_mem_del(fe, i);
	fe->num_regions = 0;
}

static struct fe_region *find(const struct fe *fe, uint64_t gpa)
{
	for (uint32_t i = 0; i < fe->num_regions; i++) {
		struct fe_region *r = &fe->regions[i];

		if (!r->gone && gpa >= r->gpa && gpa - r->gpa < r->size)
			return r;
	}
	return NULL;
}

void *fe_gpa(const struct fe *fe, uint64_t gpa, uint64_t len)
{
	const struct fe_region *r = find(fe, gpa);

	if (!r || len > r->size - (gpa - r->gpa))
		return NULL;
	return r->host + (gpa - r->gpa);
}

uint64_t fe_gpa_to_uva(const struct fe *fe, uint64_t gpa)
{
	const struct fe_region *r = find(fe, gpa);

	return r ? r->uva + (gpa - r->gpa) : FE_NO_GPA;
}

/* One step of a copy: our address and how far it reaches. */
static uint8_t *step(const struct fe *fe, uint64_t gpa, uint64_t len, uint64_t *reach)
{
	const struct fe_region *r = find(fe, gpa);

	if (!r)
		return NULL;
	*reach = r->size - (gpa - r->gpa);
	if (*reach > len)
		*reach = len;
	return r->host + (gpa - r->gpa);
}

int fe_mem_write(struct fe *fe, uint64_t gpa, const void *buf, uint64_t len)
{
	const uint8_t *from = buf;

	while (len > 0) {
		uint64_t n = 0;
		uint8_t *to = step(fe, gpa, len, &n);

		if (!to)
			return -EFAULT;
		memcpy(to, from, n);
		from += n;
		gpa += n;
		len -= n;
	}
	return 0;
}

int fe_mem_read(const struct fe *fe, uint64_t gpa, void *buf, uint64_t len)
{
	uint8_t *to = buf;

	while (len > 0) {
		uint64_t n = 0;
		const uint8_t *from = step(fe, gpa, len, &n);

		if (!from)
			return -EFAULT;
		memcpy(to, from, n);
		to += n;
		gpa += n;
		len -= n;
	}
	return 0;
}

static uint64_t alloc_in(struct fe_region *r, uint64_t len, uint64_t align)
{
	uint64_t gpa;

	if (r->gone || r->next > r->size)
		return FE_NO_GPA;
	/* Aligned in the guest; region 0's first bytes stay free so that no buffer has gpa 0. */
	gpa = r->gpa + r->next;
	if (gpa == 0)
		gpa = 4096;
	gpa = (gpa + align - 1) / align * align;
	if (gpa - r->gpa > r->size || len > r->size - (gpa - r->gpa))
		return FE_NO_GPA;
	r->next = gpa - r->gpa + len;
	return gpa;
}

uint64_t fe_alloc(struct fe *fe, int region, uint64_t len, uint64_t align)
{
	if (align == 0)
		align = 1;
	if (region >= 0)
		return (uint32_t)region < fe->num_regions ?
		       alloc_in(&fe->regions[region], len, align) : FE_NO_GPA;
	for (uint32_t i = 0; i < fe->num_regions; i++) {
		uint64_t gpa = alloc_in(&fe->regions[i], len, align);

		if (gpa != FE_NO_GPA)
			return gpa;
	}
	return FE_NO_GPA;
}

uint64_t fe_mem_mark(const struct fe *fe, unsigned int region)
{
	return region < fe->num_regions ? fe->regions[region].next : 0;
}

void fe_mem_release(struct fe *fe, unsigned int region, uint64_t mark)
{
	if (region < fe->num_regions && mark <= fe->regions[region].next)
		fe->regions[region].next = mark;
}
