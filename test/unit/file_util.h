/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the tests of the file backend share: a bdev over a path, and data that
 * is zeroed in every way.
 */
#ifndef SPINDLE_TEST_FILE_UTIL_H
#define SPINDLE_TEST_FILE_UTIL_H

#include "harness.h"

#include "bdev/bdev_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KIB 1024u
#define MIB (1024u * 1024u)

static inline int create_opts(const struct bdev_file_opts *opts, struct harness_result *hr)
{
	bdev_file_create(opts, harness_result_init(hr));
	return harness_result(hr);
}

static inline int create(const char *name, const char *path, struct harness_result *hr)
{
	struct bdev_file_opts opts = { .kind = BDEV_FILE_URING, .name = name, .filename = path };

	return create_opts(&opts, hr);
}

static inline void finish(struct harness_user *user)
{
	char name[BDEV_NAME_MAX];

	strcpy(name, user->desc.bdev->name);
	harness_close(user);
	assert_int_equal(harness_delete(name), 0);
	unlink(harness_path(name));
}

static inline uint64_t file_allocated(const char *path)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static inline bool is_zero(const unsigned char *p, size_t len)
{
	return !p[0] && !memcmp(p, p + 1, len - 1);
}

/* Each kind of zeroing on the range [512, 6 MiB - 512) of data; what the file has afterwards. */
static inline void zero_kinds(struct harness_user *user)
{
	unsigned char *buf = harness_pages(6 * MIB);
	static const struct { enum bdev_io_type type; uint8_t flags; } kinds[] = {
		{ BDEV_WRITE_ZEROES, BDEV_IO_NO_UNMAP }, { BDEV_WRITE_ZEROES, 0 },
		{ BDEV_DISCARD, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		uint32_t edge = user->desc.bdev->block_size;

		memset(buf, 0x77, 6 * MIB);
		assert_int_equal(harness_rw(user, BDEV_WRITE, 0, buf, 6 * MIB), 0);
		assert_int_equal(harness_range(user, kinds[i].type, edge, 6 * MIB - 2 * edge,
					       kinds[i].flags), 0);
		assert_int_equal(harness_rw(user, BDEV_READ, 0, buf, 6 * MIB), 0);
		assert_int_equal(buf[edge - 1], 0x77);
		if (kinds[i].type != BDEV_DISCARD)
			assert_true(is_zero(buf + edge, 6 * MIB - 2 * edge));
		assert_int_equal(buf[6 * MIB - edge], 0x77);
	}
	free(buf);
}

#endif
