/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Unit tests of rpc/json_text.c: what is JSON and what is not, duplicates and
 * big numbers with their places, the reply writer, memory running out.
 */
#include "harness.h"

#include "rpc/json_text.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

static int check(const char *text, size_t len, struct json_faults *faults)
{
	/* A copy of exactly that size, so that a sanitizer sees a read beyond it. */
	char *copy = malloc(len ? len : 1);
	int rc;

	assert_non_null(copy);
	memcpy(copy, text, len);
	rc = json_text_check(copy, len, faults);
	free(copy);
	return rc;
}

static void good(const char *text)
{
	struct json_faults faults = { 0 };

	if (check(text, strlen(text), &faults))
		fail_msg("refused: %s", text);
	if (faults.count)
		fail_msg("fault seen in: %s", text);
}

static void bad(const char *text, size_t len)
{
	struct json_faults faults = { 0 };

	if (check(text, len, &faults) != -EINVAL)
		fail_msg("taken: %.*s", (int)len, text);
	assert_null(faults.list);
}

static void test_good(void **state)
{
	static const char *const texts[] = {
		"{}", "[]", "\"\"", "0", "-0", "-1", "1.5", "1e5", "1E+5", "1e-5", "0.0e0", "true",
		"false", "null", " \t\r\n{ \"a\" : 1 , \"b\" : [ 1 , 2 ] } ", "[[],{},[[]]]",
		"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\uD83D\\uDE00\"", "\"\xc3\xbc\xe2\x82\xac\"",
		"\"\xf0\x9f\x98\x80\"", "\"\x7f\"", "18446744073709551615",
		"-9223372036854775808", "{\"a\":{\"a\":1},\"b\":{\"a\":2}}",
		"[{\"a\":1},{\"a\":1}]",
		"1e400", "{\"\":1}", "123456789012345678901234567890.5",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
		good(texts[i]);
}

static void test_bad(void **state)
{
	static const char *const texts[] = {
		"", " ", "{", "}", "[", "]", "{]", "[}", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{,}",
		"[1,]", "[,1]", "[1 2]", "{\"a\" 1}", "{a:1}", "{'a':1}", "{1:1}", "01", "-", "+1",
		"-01", "1.", ".5", "1e", "1e+", "0x10", "NaN", "Infinity", "-Infinity", "nul",
		"nulll",
		"True", "tru", "\"", "\"a", "\"\\\"", "\"\\x\"", "\"\\u12\"", "\"\\u123g\"", "\"\\",
		"\"a\nb\"", "\"\t\"", "\"\x1f\"", "{} {}", "{}x", "1 2", "/**/1", "1//", "\"\x80\"",
		"\"\xc0\x80\"", "\"\xc1\xbf\"", "\"\xe0\x80\x80\"", "\"\xed\xa0\x80\"",
		"\"\xf4\x90\x80\x80\"", "\"\xf5\x80\x80\x80\"", "\"\xc3\"", "\"\xe2\x82\"",
		"\"\xf0\x9f\x98\"", "\"\xff\"", "{\"a\\u0000b\":1}", "\xef\xbb\xbf{}",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
		bad(texts[i], strlen(texts[i]));
	bad("\"a\0b\"", 5);
	bad("{}\0", 3);
	bad("\0", 1);
}

/* Every prefix of a text is refused, and none is read beyond its end. */
static void test_cut(void **state)
{
	static const char text[] =
		"[{\"a\\u00fc\":[1.5e-3,true,false,null,\"\xe2\x82\xac\\n\"],\"b\":{\"c\":-0}}]";

	(void)state;
	good(text);
	for (size_t len = 0; len < strlen(text); len++)
		bad(text, len);
}

static void test_depth(void **state)
{
	char text[2 * JSON_DEPTH_MAX + 3];

	(void)state;
	for (size_t depth = 1; depth <= JSON_DEPTH_MAX + 1; depth++) {
		memset(text, '[', depth);
		memset(text + depth, ']', depth);
		text[2 * depth] = '\0';
		if (depth <= JSON_DEPTH_MAX)
			good(text);
		else
			bad(text, strlen(text));
	}
}

static void one_fault(const char *text, enum json_fault_kind kind, unsigned int entry,
		      unsigned int depth, const char *key)
{
	struct json_faults faults = { 0 };

	assert_int_equal(check(text, strlen(text), &faults), 0);
	if (faults.count != 1)
		fail_msg("%u faults in: %s", faults.count, text);
	assert_int_equal(faults.list[0].kind, kind);
	assert_int_equal(faults.list[0].entry, entry);
	assert_int_equal(faults.list[0].depth, depth);
	assert_string_equal(faults.list[0].key, key);
	json_faults_fini(&faults);
	assert_null(faults.list);
}

static void test_faults(void **state)
{
	struct json_faults faults = { 0 };
	static const char two[] = "[{\"a\":1,\"a\":2},{},{\"b\":1,\"b\":2,\"b\":3},5]";
	char big[1200];

	(void)state;
	one_fault("{\"a\":1,\"b\":2,\"a\":3}", JSON_DUPLICATE_KEY, 0, 1, "a");
	one_fault("{\"a\":1,\"\\u0061\":3}", JSON_DUPLICATE_KEY, 0, 1, "a");
	one_fault("{\"p\":{\"x\":1,\"x\":1}}", JSON_DUPLICATE_KEY, 0, 2, "x");
	one_fault("[1,{\"p\":[{\"x\":1,\"x\":1}]}]", JSON_DUPLICATE_KEY, 1, 2, "x");
	one_fault("{\"\":1,\"\":1}", JSON_DUPLICATE_KEY, 0, 1, "");
	one_fault("{\"p\":18446744073709551616}", JSON_BIG_NUMBER, 0, 1, "p");
	one_fault("{\"p\":{\"q\":-9223372036854775809}}", JSON_BIG_NUMBER, 0, 2, "q");
	one_fault("{\"p\":{\"q\":1},\"r\":99999999999999999999}", JSON_BIG_NUMBER, 0, 1, "r");
	one_fault("99999999999999999999", JSON_BIG_NUMBER, 0, 0, "");
	memset(big, '1', sizeof(big));
	memcpy(big, "{\"p\":0.", 7);
	strcpy(big + sizeof(big) - 2, "}");
	one_fault(big, JSON_BIG_NUMBER, 0, 1, "p");

	assert_int_equal(check(two, strlen(two), &faults), 0);
	assert_int_equal(faults.count, 2);
	assert_int_equal(faults.list[0].entry, 0);
	assert_int_equal(faults.list[1].entry, 2);
	assert_string_equal(faults.list[1].key, "b");
	json_faults_fini(&faults);
}

static void test_writer(void **state)
{
	struct json_out w = { 0 };
	static const char expected[] =
		"{\"s\":\"a\\\"\\\\\\n\\u0001\\u007f\xe2\x82\xac\xef\xbf\xbd\",\"n\":null,\"u\":"
		"18446744073709551615,\"i\":-9223372036854775808,\"t\":true,\"o\":{},\"l\":[1,"
		"\"x,\",[],{\"k\":false},null]}";

	(void)state;
	json_out_object(&w);
	json_put_string(&w, "s", "a\"\\\n\x01\x7f\xe2\x82\xac\xff");
	json_put_string(&w, "n", NULL);
	json_put_u64(&w, "u", UINT64_MAX);
	json_put_i64(&w, "i", INT64_MIN);
	json_put_bool(&w, "t", true);
	json_put_object(&w, "o");
	json_out_object_end(&w);
	json_put_array(&w, "l");
	json_out_u64(&w, 1);
	json_out_string(&w, "x,");
	json_out_array(&w);
	json_out_array_end(&w);
	json_out_object(&w);
	json_put_bool(&w, "k", false);
	json_out_object_end(&w);
	json_out_null(&w);
	json_out_array_end(&w);
	json_out_object_end(&w);
	assert_false(w.failed);
	assert_int_equal(w.len, strlen(expected));
	assert_memory_equal(w.text, expected, w.len);
	json_out_fini(&w);
	assert_null(w.text);
}

/* What the writer makes of any bytes, both the checker and json-c take. */
static void test_writer_makes_json(void **state)
{
	uint64_t seed = 1;

	(void)state;
	for (int round = 0; round < 2000; round++) {
		struct json_out w = { 0 };
		struct json_faults faults = { 0 };
		struct json_object *v;
		char bytes[24];

		for (size_t i = 0; i < sizeof(bytes); i++) {
			seed = seed * 6364136223846793005u + 1442695040888963407u;
			bytes[i] = (char)(seed >> 56);
		}
		bytes[seed >> 33 & 15] = '\0';
		json_out_object(&w);
		json_put_string(&w, "k", bytes);
		json_out_object_end(&w);
		assert_int_equal(check(w.text, w.len, &faults), 0);
		json_out_raw(&w, "", 1);
		v = json_tokener_parse(w.text);
		assert_non_null(v);
		json_object_put(v);
		json_out_fini(&w);
	}
}

static void test_no_memory(void **state)
{
	static const char text[] = "[{\"a\":1,\"a\":2},{\"b\":1,\"b\":2}]";
	struct json_faults faults = { 0 };
	struct json_out w = { 0 };

	(void)state;
	harness_fail_alloc(1);
	json_out_object(&w);
	harness_fail_alloc(0);
	json_put_u64(&w, "a", 1);
	assert_true(w.failed);
	assert_int_equal(w.len, 0);
	json_out_fini(&w);

	for (unsigned int n = 1; n <= 2; n++) {
		harness_fail_alloc(n);
		assert_int_equal(json_text_check(text, strlen(text), &faults), -ENOMEM);
		assert_true(harness_fail_reached());
		harness_fail_alloc(0);
		assert_null(faults.list);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),	cmocka_unit_test(test_bad),
		cmocka_unit_test(test_cut),	cmocka_unit_test(test_depth),
		cmocka_unit_test(test_faults),	cmocka_unit_test(test_writer),
		cmocka_unit_test(test_writer_makes_json), cmocka_unit_test(test_no_memory),
	};

	return harness_main("rpc_json", tests, ARRAY_SIZE(tests), NULL, NULL);
}
