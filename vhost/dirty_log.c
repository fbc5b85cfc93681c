/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The dirty log. Only a migration pays for it, so nothing is kept for it while a
 * request runs: guest addresses are found again from ours when it ends.
 *
 * A page's bit is set after the write it stands for (the atomic OR orders both), so
 * that a front end which clears the bit and then reads the page has the write, or
 * finds the bit set once more.
 */
#include "vhost/dirty_log.h"

void dirty_log_range(const struct dirty_log *log, uint64_t gpa, uint64_t len)
{
	uint64_t page = gpa / DIRTY_LOG_PAGE, last;

	if (len == 0 || gpa + len - 1 < gpa)
		return;
	last = (gpa + len - 1) / DIRTY_LOG_PAGE;
	last = MIN(last, log->pages - 1);
	while (page <= last && page < log->pages) {
		/* Long ranges by the byte: eight pages at once. */
		if (page % 8 == 0 && last - page >= 7) {
			__atomic_fetch_or(&log->bits[page / 8], 0xff, __ATOMIC_SEQ_CST);
			page += 8;
			continue;
		}
		__atomic_fetch_or(&log->bits[page / 8], (uint8_t)(1u << page % 8),
				  __ATOMIC_SEQ_CST);
		page++;
	}
}

void dirty_log_hva(const struct dirty_log *log, const struct guest_mem *mem, const void *hva,
		   uint64_t len)
{
	for (unsigned int i = 0; i < mem->count; i++) {
		const struct mem_span *span = &mem->spans[i];
		uint64_t offset = (uint64_t)((uintptr_t)hva - (uintptr_t)span->hva);

		if (offset < span->size) {
			dirty_log_range(log, span->gpa + offset, MIN(len, span->size - offset));
			return;
		}
	}
}

void dirty_log_iov(const struct dirty_log *log, const struct guest_mem *mem,
		   const struct iovec *iov, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++)
		dirty_log_hva(log, mem, iov[i].iov_base, iov[i].iov_len);
}
