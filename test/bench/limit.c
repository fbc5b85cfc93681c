/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What memory alone can do: the same blocks copied by one thread that does nothing else. To be a
 * limit, not a straw man, it has the memory of what it is compared with: a disk of 256 MiB in
 * huge pages, as a malloc disk is, and qd buffers of bs in the kind of memory that --mem gives a
 * guest, side by side and used in turn. memcpy() is the C library's, as in the target.
 *
 * Nothing is asked for before its turn, but by the CPU itself. With --prefetch the first 4 KiB of
 * the next block are, as a target can do that sees several requests at once.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hist.h"
#include "load.h"

#define DISK_SIZE (UINT64_C(256) << 20)
#define HUGE_SIZE (UINT64_C(2) << 20)
#define LINE 64u

/* Shared memory of a file of its own, as both sides of vhost-user have it. */
static uint8_t *map_memory(uint64_t size, bool huge)
{
	int fd = memfd_create("bench", MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0));
	void *p = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, (off_t)size) == 0)
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (fd >= 0)
		close(fd);
	return p == MAP_FAILED ? NULL : p;
}

static inline uint64_t next_block(struct bench *b, uint64_t blocks)
{
	if (b->random)
		return (uint64_t)(((unsigned __int128)next_random(b) * blocks) >> 64);
	return b->cursor = b->cursor + 1 < blocks ? b->cursor + 1 : 0;
}

static inline bool is_write(struct bench *b)
{
	if (b->write_pct == 0 || b->write_pct == 100)
		return b->write_pct == 100;
	return (uint32_t)((next_random(b) >> 32) * 100 >> 32) < b->write_pct;
}

static double copy(struct bench *b, uint8_t *disk, uint8_t *bufs)
{
	const uint64_t blocks = DISK_SIZE / b->bs, ahead = b->bs < 4096 ? b->bs : 4096;
	uint64_t start = fe_now_ns(), slot = 0, at = next_block(b, blocks);
	double s;

	do {
		for (int i = 0; i < 256; i++, b->ios++) {
			uint8_t *block = disk + at * b->bs, *buf = bufs + slot * b->bs;

			slot = slot + 1 < b->qd ? slot + 1 : 0;
			at = next_block(b, blocks);
			for (uint64_t n = 0; b->prefetch && n < ahead; n += LINE)
				__builtin_prefetch(disk + at * b->bs + n);
			if (is_write(b))
				memcpy(block, buf, b->bs);
			else
				memcpy(buf, block, b->bs);
		}
		s = (double)(fe_now_ns() - start) / 1e9;
	} while (s * 1000 < b->runtime_ms && !interrupted);
	b->timed_ios = b->ios;
	return s;
}

int memcpy_limit(struct bench *b)
{
	uint64_t len = ((uint64_t)b->qd * b->bs + HUGE_SIZE - 1) & ~(HUGE_SIZE - 1);
	uint8_t *disk = map_memory(DISK_SIZE, true), *bufs = map_memory(len, b->hugetlb);
	int rc = -ENOMEM;

	if (!disk) {
		fprintf(stderr, "bench: no huge pages for the copied memory: normal ones\n");
		disk = map_memory(DISK_SIZE, false);
	}
	b->hist = calloc(1, sizeof(*b->hist));
	if (disk && bufs && b->hist && b->bs <= DISK_SIZE) {
		memset(disk, 1, DISK_SIZE);
		memset(bufs, 2, len);
		b->ns_per_tick = 1;
		print_result(b, copy(b, disk, bufs));
		rc = 0;
	} else {
		fprintf(stderr, "bench: not enough memory for copies\n");
	}
	free(b->hist);
	if (disk)
		munmap(disk, DISK_SIZE);
	if (bufs)
		munmap(bufs, len);
	return rc;
}
