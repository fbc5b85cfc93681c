/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bits of pages. A bit is set with release after the page's content was seen to be
 * there, and read with acquire before the page is touched.
 */
#include "vhost/pages.h"

#include <stdlib.h>

static uint64_t page_count(const struct mem_region *r)
{
	return r->map_len / r->page_size;
}

int pages_track(struct mem_region *r)
{
	if (page_count(r) > UINT32_MAX)
		return -ENOMEM;
	r->present = calloc(page_count(r) / 64 + 1, sizeof(r->present[0]));
	return r->present ? 0 : -ENOMEM;
}

void pages_arrived(struct mem_region *r, uint32_t first, uint32_t count)
{
	for (uint64_t i = first; i < (uint64_t)first + count && i < page_count(r); i++)
		atomic_fetch_or_explicit(&r->present[i / 64], 1ull << i % 64, memory_order_release);
}

static bool is_present(const struct mem_region *r, uint64_t page)
{
	return atomic_load_explicit(&r->present[page / 64], memory_order_acquire) >> page % 64 & 1;
}

bool page_run_present(const struct page_run *run)
{
	for (uint64_t i = 0; i < run->count; i++) {
		if (!is_present(run->region, run->first + i))
			return false;
	}
	return true;
}

/* False: enough for one fetch. */
static bool want(struct page_fetch *f, struct mem_region *r, uint32_t page)
{
	if (f->tries++ >= PAGE_TRIES_MAX)
		return false;
	for (unsigned int i = 0; i < f->count; i++) {
		struct page_run *run = &f->runs[i];

		if (run->region != r || page < run->first)
			continue;
		if (page - run->first < run->count)
			return true;
		if (page - run->first == run->count && run->count < PAGE_RUN_MAX) {
			run->count++;
			return true;
		}
	}
	if (f->count == PAGE_RUNS_MAX)
		return false;
	f->runs[f->count++] = (struct page_run){ r, page, 1 };
	return true;
}

/* The first missing page from `page` on, or some page beyond `last`. */
static uint64_t next_missing(const struct mem_region *r, uint64_t page, uint64_t last)
{
	while (page <= last) {
		uint64_t word = atomic_load_explicit(&r->present[page / 64], memory_order_acquire);
		uint64_t missing = ~word >> page % 64;

		if (missing)
			return page + (unsigned int)__builtin_ctzll(missing);
		page = (page | 63) + 1;
	}
	return page;
}

bool pages_present(const struct guest_mem *mem, const void *hva, uint64_t len,
		   struct page_fetch *fetch)
{
	bool all = true;

	for (unsigned int i = 0; len > 0 && i < mem->count; i++) {
		struct mem_region *r = mem->regions[i];
		uint64_t offset = (uint64_t)((uintptr_t)hva - (uintptr_t)r->map), last, page;

		if (offset >= r->map_len)
			continue;
		if (!r->present)
			return true;
		last = (MIN(offset + len, (uint64_t)r->map_len) - 1) / r->page_size;
		page = next_missing(r, offset / r->page_size, last);
		for (; page <= last; page = next_missing(r, page + 1, last)) {
			all = false;
			if (!want(fetch, r, (uint32_t)page))
				break;
		}
		break;
	}
	return all;
}

static bool is_full(const struct page_fetch *f)
{
	return f->tries > PAGE_TRIES_MAX || f->count == PAGE_RUNS_MAX;
}

bool pages_present_gpa(const struct guest_mem *mem, uint64_t gpa, uint64_t len,
		       struct page_fetch *fetch)
{
	const struct mem_span *hint = &mem->spans[0];
	bool all = true;

	while (len > 0 && (all || !is_full(fetch))) {
		uint64_t n;
		const void *hva = guest_mem_translate(mem, &hint, gpa, len, &n);

		if (!hva)
			break;
		all &= pages_present(mem, hva, n, fetch);
		gpa += n;
		len -= n;
	}
	return all;
}

bool pages_present_iov(const struct guest_mem *mem, const struct iovec *iov, unsigned int count,
		       struct page_fetch *fetch)
{
	bool all = true;

	for (unsigned int i = 0; i < count && (all || !is_full(fetch)); i++)
		all &= pages_present(mem, iov[i].iov_base, iov[i].iov_len, fetch);
	return all;
}
