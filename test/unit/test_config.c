/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Unit tests of the configuration as text: applied, written, applied again; with
 * every allocation failing once; the state file with a failing allocation. Files,
 * kills and restarts are tested from outside, in test/functional/test_restart.py.
 */
#include "harness.h"

#include "rpc/config.h"
#include "rpc/rpc.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char text[] =
	"{\"subsystems\": [{\"subsystem\": \"bdev\", \"config\": ["
	"{\"method\": \"bdev_null_create\", \"params\": {\"name\": \"Null0\","
	"\"num_blocks\": 64, \"block_size\": 512}},"
	"{\"method\": \"bdev_delay_create\", \"params\": {\"base_bdev_name\": \"Null0\","
	"\"name\": \"d0\", \"avg_read_latency\": 1, \"p99_read_latency\": 2,"
	"\"avg_write_latency\": 3, \"p99_write_latency\": 4}},"
	"{\"method\": \"bdev_error_create\", \"params\": {\"base_name\": \"d0\"}},"
	"{\"method\": \"bdev_malloc_create\", \"params\": {\"num_blocks\": 2048,"
	"\"block_size\": 512}}]}]}";

struct end {
	bool done;
	int status;
};

static void ended(void *arg, int status)
{
	struct end *end = arg;

	end->done = true;
	end->status = status;
	harness_wake();
}

static int apply(const char *config, size_t len, enum rpc_errors errors)
{
	struct end end = { 0 };
	int rc = rpc_config_apply(config, len, "test", errors, ended, &end);

	if (rc < 0)
		return rc;
	harness_wait(&end.done);
	return end.status;
}

/* Nothing is pending, and what was being made is there or gone. */
static bool idle(void *arg)
{
	static const char *const names[] = { "Null0", "d0", "EE_d0", "Malloc0", "n" };

	(void)arg;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (pending_bdev(names[i]))
			return false;
	}
	return true;
}

static void delete_all(void)
{
	while (bdev_next(NULL)) {
		struct bdev *b = bdev_next(NULL), *last = b;

		while ((b = bdev_next(b)))
			last = b;
		assert_int_equal(harness_delete(last->name), 0);
	}
}

static unsigned int count(void)
{
	unsigned int n = 0;

	for (struct bdev *b = bdev_next(NULL); b; b = bdev_next(b))
		n++;
	return n;
}

static void test_round_trip(void **state)
{
	struct json_out first = { 0 }, second = { 0 };

	(void)state;
	assert_int_equal(apply(text, strlen(text), RPC_ERRORS_FATAL), 0);
	assert_int_equal(count(), 4);
	assert_non_null(bdev_find("EE_d0"));
	assert_non_null(bdev_find("Malloc0"));
	rpc_config_write(&first, false);
	delete_all();
	assert_int_equal(apply(first.text, first.len, RPC_ERRORS_PENDING), 0);
	assert_true(idle(NULL));
	assert_int_equal(count(), 4);
	rpc_config_write(&second, false);
	/* Bdevs may change places, but the text has the same letters. */
	assert_int_equal(first.len, second.len);
	json_out_fini(&first);
	json_out_fini(&second);
	delete_all();
}

static void test_refused_makes_nothing(void **state)
{
	static const char *const bad[] = {
		"", "{", "null", "[]", "{\"subsystems\": {}}", "{\"subsystems\": [{}]}",
		"{\"subsystems\": [{\"subsystem\": \"bdev\", \"config\": [{\"method\": 5}]}]}",
		"{\"subsystems\": [{\"subsystem\": \"bdev\", \"config\": ["
		"{\"method\": \"bdev_null_create\", \"params\": {\"name\": \"n\", \"num_blocks\": 8,"
		"\"block_size\": 512}}, {\"method\": \"nope\"}]}]}",
		"/* never ended", "{\"subsystems\": []} // x\n5",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(apply(bad[i], strlen(bad[i]), RPC_ERRORS_FATAL), -EINVAL);
		assert_int_equal(count(), 0);
		assert_true(idle(NULL));
	}
}

static void test_one_at_a_time(void **state)
{
	struct end end = { 0 };

	(void)state;
	assert_int_equal(rpc_config_apply(text, strlen(text), "test", RPC_ERRORS_FATAL, ended,
					  &end), 0);
	assert_int_equal(apply(text, strlen(text), RPC_ERRORS_FATAL), -EBUSY);
	harness_wait(&end.done);
	assert_int_equal(end.status, 0);
	delete_all();
}

/* Fatal: all of it or an error. Pending: all of it, sooner or later. */
static void test_every_allocation(void **state)
{
	(void)state;
	for (int errors = RPC_ERRORS_FATAL; errors <= RPC_ERRORS_PENDING; errors++) {
		unsigned int n = 1;
		bool reached;

		do {
			int rc;

			assert_true(n < 1000);
			harness_fail_alloc(n++);
			rc = apply(text, strlen(text), (enum rpc_errors)errors);
			reached = harness_fail_reached();
			harness_fail_alloc(0);
			if (rc < 0)
				pending_clear();
			harness_wait_until(idle, NULL);
			/* Skipped is one, and what stands on it. */
			if (rc == 0 && errors != RPC_ERRORS_SKIP)
				assert_int_equal(count(), 4);
			delete_all();
		} while (reached);
	}
}

static bool file_has_it(void *arg)
{
	const char *name = arg;
	char *got;
	size_t len;
	bool has;

	if (rpc_file_read(harness_path("state.json"), &got, &len) < 0)
		return false;
	has = memmem(got, len, name, strlen(name));
	free(got);
	return has;
}

static void test_state_file(void **state)
{
	struct harness_result hr;
	char *got = NULL, name[16];
	struct stat st;
	size_t len;

	(void)state;
	assert_int_equal(rpc_state_open(harness_path("nowhere/state.json"), false, &got, &len), -ENOENT);
	assert_int_equal(rpc_state_open(harness_path("state.json"), false, &got, &len), 0);
	assert_null(got);
	rpc_state_start();
	harness_wait_until(file_has_it, (void *)(uintptr_t)"subsystems");
	/* Whatever fails, the next touch or its own retry brings the file up to date. */
	for (unsigned int n = 1; n <= 3; n++) {
		struct bdev_null_opts opts = { .name = name, .num_blocks = 8, .block_size = 512 };

		snprintf(name, sizeof(name), "state%u", n);
		bdev_null_create(&opts, harness_result_init(&hr));
		assert_int_equal(harness_result(&hr), 0);
		harness_fail_alloc(n);
		rpc_state_touch();
		harness_fail_alloc(0);
		harness_sleep(600);
		rpc_state_touch();
		harness_wait_until(file_has_it, name);
	}
	assert_int_equal(stat(harness_path("state.json"), &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	rpc_state_stop();
	delete_all();
	/* Frozen: what went after the stop is still in it. */
	rpc_state_touch();
	harness_sleep(50);
	assert_true(file_has_it(name));
	assert_int_equal(rpc_state_open(harness_path("state.json"), false, &got, &len), 0);
	assert_non_null(got);
	free(got);
	rpc_state_stop();
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_refused_makes_nothing),
		cmocka_unit_test(test_one_at_a_time),
		cmocka_unit_test(test_every_allocation),
		cmocka_unit_test(test_state_file),
	};

	return harness_main("config", tests, ARRAY_SIZE(tests), harness_setup, harness_teardown);
}
