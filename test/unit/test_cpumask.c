/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Core masks: the spellings that operators use, those that must be refused
 * without touching the caller's mask, and the way back to text.
 */
#include "harness.h"

#include "reactor/cpumask.h"

#include <string.h>

static void check_text(const char *text, const char *formatted)
{
	struct cpumask mask;
	char buf[CPUMASK_STR];

	memset(&mask, 0xff, sizeof(mask));
	assert_int_equal(cpumask_parse(text, &mask), 0);
	assert_string_equal(cpumask_format(&mask, buf), formatted);
}

static void check_refused(const char *text)
{
	struct cpumask mask, before;

	memset(&mask, 0x5a, sizeof(mask));
	before = mask;
	assert_int_equal(cpumask_parse(text, &mask), -EINVAL);
	assert_memory_equal(&mask, &before, sizeof(mask));
}

static void test_hex(void **state)
{
	(void)state;
	check_text("0x1", "0x1");
	check_text("3", "0x3");
	check_text("0XaF", "0xaf");
	check_text("Ff", "0xff");
	check_text("10", "0x10");	/* bare digits are hexadecimal as well */
	check_text("0x0", "0x0");
	check_text("0", "0x0");
	check_text("0x10000000000000000", "0x10000000000000000");
	check_text("0x000000000000000000000000000000000000000000000001", "0x1");
}

static void test_list(void **state)
{
	(void)state;
	check_text("[0]", "0x1");
	check_text("[0,1]", "0x3");
	check_text("[1,0,1]", "0x3");
	check_text("[0,2-3]", "0xd");
	check_text("[ 0 , 2 - 3 ]", "0xd");
	check_text("[5-5]", "0x20");
	check_text("[64]", "0x10000000000000000");
	check_text("[]", "0x0");
	check_text("[ ]", "0x0");
}

static void test_refused(void **state)
{
	static const char *const texts[] = {
		"", "0x", "x1", "0xg", "0x1 ", " 0x1", "-1", "1,2", "0x0x1", "[", "]", "[0", "0]",
		"[0,]", "[,0]", "[0,,1]", "[a]", "[0x1]", "[-1]", "[1-]", "[3-1]", "[0-1-2]",
		"[0]]", "[0] ", "[0;1]", "[1024]", "[0-1024]", "[4294967296]", "[4294967297]",
		"[18446744073709551616]", "[99999999999999999999999999]",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
		check_refused(texts[i]);
}

static void test_edges(void **state)
{
	char text[CPUMASK_MAX / 4 + 16], buf[CPUMASK_STR];
	struct cpumask mask = { 0 };

	(void)state;
	/* All cores, there and back. */
	memset(text, 'f', CPUMASK_MAX / 4);
	text[CPUMASK_MAX / 4] = '\0';
	assert_int_equal(cpumask_parse(text, &mask), 0);
	assert_int_equal(cpumask_count(&mask), CPUMASK_MAX);
	assert_int_equal(strlen(cpumask_format(&mask, buf)), CPUMASK_STR - 1);
	assert_string_equal(buf + 2, text);
	/* One digit more: zeroes may lead, a core 1024 does not exist. */
	memmove(text + 1, text, CPUMASK_MAX / 4 + 1);
	text[0] = '0';
	assert_int_equal(cpumask_parse(text, &mask), 0);
	text[0] = '1';
	check_refused(text);
	assert_int_equal(cpumask_parse("[1023]", &mask), 0);
	assert_true(cpumask_has(&mask, 1023));
	assert_false(cpumask_has(&mask, 1024));
	assert_false(cpumask_has(&mask, UINT32_MAX));
	assert_int_equal(cpumask_next(&mask, 0), 1023);
	assert_int_equal(cpumask_next(&mask, 1024), -1);
	assert_int_equal(cpumask_next(&mask, UINT32_MAX), -1);
}

static void test_sets(void **state)
{
	struct cpumask a = { 0 }, b = { 0 };

	(void)state;
	assert_true(cpumask_empty(&a));
	assert_true(cpumask_subset(&a, &b));
	assert_int_equal(cpumask_next(&a, 0), -1);
	cpumask_set(&a, 0);
	cpumask_set(&a, 63);
	cpumask_set(&a, 64);
	cpumask_set(&a, 200);
	assert_int_equal(cpumask_count(&a), 4);
	assert_false(cpumask_empty(&a));
	assert_false(cpumask_subset(&a, &b));
	assert_true(cpumask_subset(&b, &a));
	assert_true(cpumask_subset(&a, &a));
	assert_int_equal(cpumask_next(&a, 0), 0);
	assert_int_equal(cpumask_next(&a, 1), 63);
	assert_int_equal(cpumask_next(&a, 64), 64);
	assert_int_equal(cpumask_next(&a, 65), 200);
	assert_int_equal(cpumask_next(&a, 201), -1);
	b = a;
	cpumask_set(&b, 199);
	assert_true(cpumask_subset(&a, &b));
	assert_false(cpumask_subset(&b, &a));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_hex),
		cmocka_unit_test(test_list),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_edges),
		cmocka_unit_test(test_sets),
	};

	return harness_main("cpumask", tests, ARRAY_SIZE(tests), NULL, NULL);
}
