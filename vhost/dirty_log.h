/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The dirty log of a live migration (vhost-user, "Migration"): a bitmap in memory
 * that the front end shares, one bit for each 4 KiB of guest physical memory. Each
 * write to guest memory is followed by setting the bits of its pages; the front end
 * clears them as it sends the pages, so both sides use atomic operations.
 *
 * Logging is only called from the reactor that made the write.
 */
#ifndef SPINDLE_DIRTY_LOG_H
#define SPINDLE_DIRTY_LOG_H

#include "reactor/base.h"
#include "vhost/guest_mem.h"

#include <sys/uio.h>

#define DIRTY_LOG_PAGE 4096u
#define DIRTY_LOG_NONE UINT64_MAX

struct dirty_log {
	uint8_t *bits;		/* a bit each; page 0 is the lowest of the first byte */
	uint64_t pages;		/* what lies beyond is not logged, as nobody could read it */
};

/* [gpa, gpa + len) has been written. */
void dirty_log_range(const struct dirty_log *log, uint64_t gpa, uint64_t len);
/* The same by our address, which lies in mem. */
void dirty_log_hva(const struct dirty_log *log, const struct guest_mem *mem, const void *hva,
		   uint64_t len);
void dirty_log_iov(const struct dirty_log *log, const struct guest_mem *mem,
		   const struct iovec *iov, unsigned int count);

#endif
