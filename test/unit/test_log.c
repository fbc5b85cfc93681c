/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The log: levels, flags, the shape of a line, lines that are too long or carry
 * control characters, lines of many threads, and the limit on what clients can
 * make us say. stderr is a file of ours meanwhile.
 */
#include "harness.h"

#include "reactor/log.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static int saved_stderr = -1, capture_fd = -1;

static int capture_start(void **state)
{
	(void)state;
	capture_fd = memfd_create("log", MFD_CLOEXEC);
	saved_stderr = dup(STDERR_FILENO);
	assert_true(capture_fd >= 0 && saved_stderr >= 0);
	/* Many write it: each line must land at the end, as on a terminal. */
	assert_int_equal(fcntl(capture_fd, F_SETFL, O_APPEND), 0);
	assert_true(dup2(capture_fd, STDERR_FILENO) >= 0);
	return 0;
}

static int capture_stop(void **state)
{
	(void)state;
	dup2(saved_stderr, STDERR_FILENO);
	close(saved_stderr);
	close(capture_fd);
	log_set_level(LOG_NOTICE);
	log_set_print_level(LOG_NOTICE);
	log_set_flag("all", false);
	return 0;
}

/* What was written since the last call; free(). */
static char *captured(void)
{
	off_t len = lseek(capture_fd, 0, SEEK_END);
	char *text = calloc(1, (size_t)len + 1);

	assert_non_null(text);
	assert_int_equal(pread(capture_fd, text, (size_t)len, 0), len);
	assert_int_equal(ftruncate(capture_fd, 0), 0);
	return text;
}

static unsigned int lines(void)
{
	char *text = captured();
	unsigned int n = 0;

	for (const char *p = text; *p; p++)
		n += *p == '\n';
	free(text);
	return n;
}

static void test_line(void **state)
{
	int year, month, day, hour, minute, second, usec, end = 0;
	char *text;

	(void)state;
	log_warning("disk %s has %d blocks", "m0", 7);
	text = captured();
	assert_int_equal(sscanf(text, "[%4d-%2d-%2d %2d:%2d:%2d.%6d] %n", &year, &month, &day,
				&hour, &minute, &second, &usec, &end), 7);
	assert_true(year >= 2024 && month >= 1 && month <= 12 && usec >= 0);
	assert_string_equal(text + end, "WARNING test_line: disk m0 has 7 blocks\n");
	free(text);
	errno = ENOENT;
	log_error("open: %m");
	text = captured();
	assert_non_null(strstr(text, "] ERROR   test_line: open: No such file or directory\n"));
	free(text);
}

static void test_levels(void **state)
{
	(void)state;
	log_notice("shown");
	log_info("not produced");
	assert_int_equal(lines(), 1);
	log_set_level(LOG_INFO);
	log_info("produced but not printed");
	assert_int_equal(lines(), 0);
	log_set_print_level(LOG_INFO);
	log_info("printed");
	assert_int_equal(lines(), 1);
	log_set_print_level(LOG_ERROR);
	log_warning("silenced");
	log_error("still heard");
	assert_int_equal(lines(), 1);
	assert_int_equal(log_get_level(), LOG_INFO);
	assert_int_equal(log_get_print_level(), LOG_ERROR);
}

static void test_names(void **state)
{
	enum log_level level = LOG_DEBUG;

	(void)state;
	for (int i = LOG_ERROR; i <= LOG_DEBUG; i++) {
		assert_int_equal(log_level_parse(log_level_name((enum log_level)i), &level), 0);
		assert_int_equal(level, i);
	}
	assert_int_equal(log_level_parse("notice", &level), 0);
	assert_int_equal(level, LOG_NOTICE);
	assert_int_equal(log_level_parse("", &level), -EINVAL);
	assert_int_equal(log_level_parse("NOTICES", &level), -EINVAL);
	assert_int_equal(level, LOG_NOTICE);
}

static void test_flags(void **state)
{
	(void)state;
	for (int i = 0; i < LOG_F_COUNT; i++)
		assert_false(log_flag_on((enum log_flag)i));
	log_debug(LOG_F_VHOST, "off");
	assert_int_equal(lines(), 0);
	assert_int_equal(log_set_flag("vhost", true), 0);
	assert_true(log_flag_on(LOG_F_VHOST));
	assert_false(log_flag_on(LOG_F_RPC));
	/* A flag's lines are printed whatever the levels say. */
	log_set_print_level(LOG_ERROR);
	log_debug(LOG_F_VHOST, "on");
	log_debug(LOG_F_RPC, "off");
	assert_int_equal(lines(), 1);
	assert_int_equal(log_set_flag("ALL", true), 0);
	assert_true(log_flag_on(LOG_F_RPC));
	assert_int_equal(log_set_flag("rpc", false), 0);
	assert_false(log_flag_on(LOG_F_RPC));
	assert_true(log_flag_on(LOG_F_BDEV));
	assert_int_equal(log_set_flag("nothing", true), -ENOENT);
	assert_int_equal(log_set_flag("", true), -ENOENT);
}

static void test_hostile_text(void **state)
{
	char *text, longest[5000];

	(void)state;
	log_error("name is %s", "a\nb\033[31mc\177\td");
	text = captured();
	assert_non_null(strstr(text, "name is a?b?[31mc??d\n"));
	assert_null(strchr(text, '\033'));
	free(text);
	/* Too long: cut, one line, still ended. */
	memset(longest, 'x', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	for (size_t len = 900; len < sizeof(longest); len += len < 1100 ? 1 : 777) {
		size_t n;

		log_error("%s", longest + sizeof(longest) - 1 - len);
		text = captured();
		n = strlen(text);
		assert_true(n <= 1024 && n >= MIN(len, (size_t)1000));
		assert_ptr_equal(strchr(text, '\n'), text + n - 1);
		free(text);
	}
}

static void *speaker(void *arg)
{
	char word[200];

	memset(word, *(char *)arg, sizeof(word) - 1);
	word[sizeof(word) - 1] = '\0';
	for (int i = 0; i < 200; i++)
		log_error("%s", word);
	return NULL;
}

static void test_threads(void **state)
{
	char names[] = "abcd";
	pthread_t threads[4];
	unsigned int n = 0;
	char *text, *save, *line;

	(void)state;
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, speaker, &names[i]), 0);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	text = captured();
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		const char *word = strstr(line, "speaker: ");

		assert_non_null(word);
		word += strlen("speaker: ");
		assert_int_equal(strlen(word), 199);
		for (int i = 1; i < 199; i++)
			assert_int_equal(word[i], word[0]);
		n++;
	}
	assert_int_equal(n, 800);
	free(text);
}

static void test_limit(void **state)
{
	struct log_limit limit = { 0 };
	struct timespec nap = { .tv_nsec = 20000000 };
	char *text;
	unsigned int n = 0;

	(void)state;
	/* 1000 events: 20 lines, 40 if a second's border lies between them. */
	for (int i = 0; i < 1000; i++)
		log_limited(LOG_ERROR, &limit, "again");
	text = captured();
	for (const char *p = text; (p = strstr(p, "again\n")); p++)
		n++;
	free(text);
	assert_in_range(n, 20, 40);
	/* The next second says how many were left out, then goes on. */
	for (n = 0; n < 110; n++) {
		log_limited(LOG_ERROR, &limit, "later");
		text = captured();
		if (strstr(text, "later\n"))
			break;
		free(text);
		nanosleep(&nap, NULL);
	}
	assert_true(n < 110);
	assert_non_null(strstr(text, "more lines like the following were left out\n"));
	free(text);
}

int main(void)
{
#define CAPTURED(test) cmocka_unit_test_setup_teardown(test, capture_start, capture_stop)
	static const struct CMUnitTest tests[] = {
		CAPTURED(test_line),
		CAPTURED(test_levels),
		CAPTURED(test_names),
		CAPTURED(test_flags),
		CAPTURED(test_hostile_text),
		CAPTURED(test_threads),
		CAPTURED(test_limit),
	};

	return harness_main("log", tests, ARRAY_SIZE(tests), NULL, NULL);
}
