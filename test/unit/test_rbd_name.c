/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * QEMU's names for RBD images, taken apart: every part, escapes, what must be
 * refused; and copies of options. No cluster is needed.
 */
#include "harness.h"

#if SPINDLE_RBD

#include <stdlib.h>
#include <string.h>

static struct bdev_rbd_opts parse(const char *text)
{
	struct bdev_rbd_opts opts = { 0 };
	char reason[BDEV_REASON_MAX] = "";

	if (bdev_rbd_parse(text, &opts, reason) != 0)
		fail_msg("%s: %s", text, reason);
	return opts;
}

static void check_string(const char *got, const char *want)
{
	if (want)
		assert_string_equal(got, want);
	else
		assert_null(got);
}

static void check_place(const char *text, const char *pool, const char *ns, const char *image,
			const char *snapshot)
{
	struct bdev_rbd_opts opts = parse(text);

	check_string(opts.pool, pool);
	check_string(opts.ns, ns);
	check_string(opts.image, image);
	check_string(opts.snapshot, snapshot);
	assert_int_equal(opts.access.option_count, 0);
	bdev_rbd_opts_free(&opts);
	assert_null(opts.pool);
}

static void test_places(void **state)
{
	(void)state;
	check_place("rbd:p/i", "p", NULL, "i", NULL);
	check_place("rbd:pool/image@snap", "pool", NULL, "image", "snap");
	check_place("rbd:pool/ns/image", "pool", "ns", "image", NULL);
	check_place("rbd:pool/ns/image@snap", "pool", "ns", "image", "snap");
	check_place("rbd:a b/c=d", "a b", NULL, "c=d", NULL);
	/* A slash behind the namespace belongs to the image. */
	check_place("rbd:p/n/i/j", "p", "n", "i/j", NULL);
	check_place("rbd:p/i@a@b", "p", NULL, "i", "a@b");
}

static void test_escapes(void **state)
{
	(void)state;
	check_place("rbd:p\\:q/i", "p:q", NULL, "i", NULL);
	check_place("rbd:p\\/q/i\\@j", "p/q", NULL, "i@j", NULL);
	check_place("rbd:p/i@s\\:t", "p", NULL, "i", "s:t");
	check_place("rbd:p/i\\\\j", "p", NULL, "i\\j", NULL);
	check_place("rbd:\\p/\\i", "p", NULL, "i", NULL);
	/* Nothing behind it: a backslash. */
	check_place("rbd:p/i\\", "p", NULL, "i\\", NULL);
}

static void test_options(void **state)
{
	struct bdev_rbd_opts opts = parse("rbd:p/i@s:id=me:conf=/etc/a\\:b.conf:rbd_cache=false:"
					  "mon_host=10.0.0.1\\:6789\\;x:k=a=b:e=:id=you");

	(void)state;
	assert_string_equal(opts.snapshot, "s");
	assert_string_equal(opts.access.user_id, "you");
	assert_string_equal(opts.access.config_file, "/etc/a:b.conf");
	assert_int_equal(opts.access.option_count, 4);
	assert_string_equal(opts.access.options[0].key, "rbd_cache");
	assert_string_equal(opts.access.options[0].value, "false");
	assert_string_equal(opts.access.options[1].value, "10.0.0.1:6789;x");
	assert_string_equal(opts.access.options[2].key, "k");
	assert_string_equal(opts.access.options[2].value, "a=b");
	assert_string_equal(opts.access.options[3].value, "");
	bdev_rbd_opts_free(&opts);
	/* An escaped delimiter is part of the key. */
	opts = parse("rbd:p/i:a\\=b=c");
	assert_string_equal(opts.access.options[0].key, "a=b");
	bdev_rbd_opts_free(&opts);
}

static void test_refused(void **state)
{
	static const char *const bad[] = {
		"", "rbd", "nbd:p/i", "RBD:p/i", "rbd:", "rbd:p", "rbd:/i", "rbd:p/", "rbd:p@s",
		"rbd:p/@s", "rbd:p:id=a", "rbd:p/n/", "rbd:p/n/@s", "rbd:p/i:", "rbd:p/i:key",
		"rbd:p/i:=v", "rbd:p/i:a=b:", "rbd:p/i::a=b", "rbd:p/i:a=b:c", "rbd:p\\/i",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct bdev_rbd_opts opts = { 0 };
		char reason[BDEV_REASON_MAX] = "";

		if (bdev_rbd_parse(bad[i], &opts, reason) != -EINVAL)
			fail_msg("'%s' was not refused", bad[i]);
		assert_true(reason[0]);
		assert_null(opts.pool);
		assert_null(opts.access.options);
	}
}

static void test_long(void **state)
{
	static char text[70000];
	struct bdev_rbd_opts opts;

	(void)state;
	strcpy(text, "rbd:p/");
	memset(text + 6, 'x', 60000);
	opts = parse(text);
	assert_int_equal(strlen(opts.image), 60000);
	bdev_rbd_opts_free(&opts);
	/* Reasons are cut, not overrun. */
	strcpy(text + 60000, ":k");
	char reason[BDEV_REASON_MAX];
	memset(&opts, 0, sizeof(opts));
	assert_int_equal(bdev_rbd_parse(text, &opts, reason), -EINVAL);
	assert_in_range(strlen(reason), 1, BDEV_REASON_MAX - 1);
}

static void test_copy(void **state)
{
	struct bdev_rbd_opts from = parse("rbd:p/n/i@s:id=u:conf=c:a=1:b=2"), to;

	(void)state;
	from.block_size = 4096;
	assert_int_equal(bdev_rbd_opts_copy(&from, &to), 0);
	bdev_rbd_opts_free(&from);
	assert_int_equal(to.block_size, 4096);
	assert_string_equal(to.pool, "p");
	assert_string_equal(to.ns, "n");
	assert_string_equal(to.image, "i");
	assert_string_equal(to.snapshot, "s");
	assert_string_equal(to.access.user_id, "u");
	assert_string_equal(to.access.config_file, "c");
	assert_int_equal(to.access.option_count, 2);
	assert_string_equal(to.access.options[1].key, "b");
	assert_string_equal(to.access.options[1].value, "2");
	bdev_rbd_opts_free(&to);
}

static void test_no_memory(void **state)
{
	struct bdev_rbd_opts opts = { 0 }, from, to;
	char reason[BDEV_REASON_MAX];
	unsigned int failures = 0;
	int rc;

	(void)state;
	for (unsigned int n = 1; ; n++) {
		harness_fail_alloc(n);
		rc = bdev_rbd_parse("rbd:p/i:a=1:b=2:c=3", &opts, reason);
		if (!harness_fail_reached())
			break;
		harness_fail_alloc(0);
		assert_int_equal(rc, -ENOMEM);
		assert_null(opts.pool);
		failures++;
	}
	harness_fail_alloc(0);
	assert_int_equal(rc, 0);
	assert_true(failures >= 3);
	from = opts;
	harness_fail_alloc(1);
	rc = bdev_rbd_opts_copy(&from, &to);
	harness_fail_alloc(0);
	assert_int_equal(rc, -ENOMEM);
	bdev_rbd_opts_free(&from);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_places),
		cmocka_unit_test(test_escapes),
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_long),
		cmocka_unit_test(test_copy),
		cmocka_unit_test(test_no_memory),
	};

	return harness_main("rbd_name", tests, ARRAY_SIZE(tests), NULL, NULL);
}

#else

int main(void)
{
	puts("skip: rbd_name: built with RBD=0");
	puts("0 passed, 0 failed, 1 skipped");
	return 0;
}

#endif
