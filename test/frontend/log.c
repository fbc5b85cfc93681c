/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The dirty log of a live migration: a bitmap over guest memory, a bit for each 4 KiB by guest
 * address, in a memfd that the back end writes as well.
 *
 * fe_log_start and fe_log_stop send what QEMU sends when a migration begins and ends, in its order.
 * Bits are taken out a word at a time by atomic exchange: a bit that the back end sets meanwhile is
 * either in what was taken or still in the log.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "frontend.h"

#define PAGE 4096u

static uint64_t enough(const struct fe *fe)
{
	uint64_t end = 0;

	for (uint32_t i = 0; i < fe->num_regions; i++) {
		const struct fe_region *r = &fe->regions[i];

		if (!r->gone && r->gpa + r->size > end)
			end = r->gpa + r->size;
	}
	return (end / PAGE / 64 + 1) * 8;
}

int fe_log_create(struct fe *fe, uint64_t size)
{
	void *map;
	int fd;

	fe_log_destroy(fe);
	if (size == 0)
		size = enough(fe);
	fd = memfd_create("dirty-log", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)size) < 0) {
		close(fd);
		return -errno;
	}
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED) {
		close(fd);
		return -ENOMEM;
	}
	fe->log_fd = fd;
	fe->log = map;
	fe->log_size = size;
	return 0;
}

void fe_log_destroy(struct fe *fe)
{
	if (fe->log)
		munmap(fe->log, fe->log_size);
	if (fe->log_fd >= 0)
		close(fe->log_fd);
	fe->log = NULL;
	fe->log_size = 0;
	fe->log_fd = -1;
}

int fe_log_send_base(struct fe *fe)
{
	return fe_set_log_base(fe, fe->log_size, 0, fe->log_fd);
}

int fe_log_set(struct fe *fe, bool on, bool rings)
{
	uint64_t features = fe->features & ~FE_BIT(FE_F_LOG_ALL);
	int rc;

	if (on)
		features |= FE_BIT(FE_F_LOG_ALL);
	rc = fe_set_features(fe, features);
	if (rc == 0)
		fe->features = features;
	for (uint16_t i = 0; rc == 0 && i < fe->num_vqs; i++) {
		fe->vqs[i].log = on && rings;
		rc = fe_vq_send_addr(&fe->vqs[i]);
	}
	return rc;
}

int fe_log_start(struct fe *fe)
{
	int rc = fe_log_create(fe, 0);

	if (rc == 0)
		rc = fe_log_send_base(fe);
	return rc < 0 ? rc : fe_log_set(fe, true, true);
}

int fe_log_stop(struct fe *fe)
{
	return fe_log_set(fe, false, false);
}

void fe_log_take(struct fe *fe, uint8_t *out)
{
	for (uint64_t at = 0; at + 8 <= fe->log_size; at += 8) {
		uint64_t *word = (uint64_t *)(void *)(fe->log + at);
		uint64_t bits = 0;

		if (__atomic_load_n(word, __ATOMIC_RELAXED))
			bits = __atomic_exchange_n(word, 0, __ATOMIC_SEQ_CST);
		memcpy(out + at, &bits, sizeof(bits));
	}
}
