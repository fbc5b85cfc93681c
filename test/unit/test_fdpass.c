/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * File descriptors over a socket: they arrive as what they are, close-on-exec, with the bytes
 * they were sent with; what is more than the receiver has room for is told and not left open.
 */
#include "harness.h"

#include "reactor/fdpass.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int pair[2], files[FDPASS_MAX];

static int setup(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < FDPASS_MAX; i++)
		files[i] = memfd_create("fdpass", 0);
	return socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
}

static int teardown(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < FDPASS_MAX; i++)
		close(files[i]);
	close(pair[0]);
	close(pair[1]);
	return 0;
}

static unsigned int open_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned int n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static void send_some(const char *text, unsigned int count)
{
	struct iovec iov[2] = { { (void *)(uintptr_t)text, 1 },
				{ (void *)(uintptr_t)(text + 1), strlen(text) - 1 } };

	assert_int_equal(fdpass_send(pair[0], iov, 2, files, count, 0), strlen(text));
}

static void test_one_by_one(void **state)
{
	unsigned int before = open_files();

	(void)state;
	for (unsigned int sent = 0; sent <= FDPASS_MAX; sent++) {
		int fds[FDPASS_MAX];
		unsigned int count;
		char buf[8];

		send_some("hello", sent);
		assert_int_equal(fdpass_recv(pair[1], buf, sizeof(buf), fds, &count, FDPASS_MAX,
					     MSG_DONTWAIT), 5);
		assert_memory_equal(buf, "hello", 5);
		assert_int_equal(count, sent);
		for (unsigned int i = 0; i < count; i++) {
			/* The same file: what is written to one is read from the other. */
			unsigned int number = 0;

			assert_int_equal(pwrite(files[i], &i, sizeof(i), 0), sizeof(i));
			assert_int_equal(pread(fds[i], &number, sizeof(number), 0), sizeof(i));
			assert_int_equal(number, i);
			assert_int_equal(fcntl(fds[i], F_GETFD), FD_CLOEXEC);
			close(fds[i]);
		}
	}
	assert_int_equal(open_files(), before);
}

/* Also with an odd maximum, where the room for the descriptors is rounded up. */
static void test_more_than_there_is_room_for(void **state)
{
	unsigned int before = open_files();

	(void)state;
	for (unsigned int max = 0; max < 4; max++) {
		int fds[4] = { -1, -1, -1, -1 };
		unsigned int count;
		char c;

		send_some("xy", max + 1);
		assert_int_equal(fdpass_recv(pair[1], &c, 1, fds, &count, max, 0), -EMFILE);
		assert_int_equal(count, max);
		assert_int_equal(fds[max], -1);
		for (unsigned int i = 0; i < count; i++)
			close(fds[i]);
		assert_int_equal(open_files(), before);
		assert_int_equal(fdpass_recv(pair[1], &c, 1, fds, &count, max, 0), 1);
		assert_int_equal(count, 0);
	}
}

static void test_nothing_and_the_end(void **state)
{
	char c = 'x';
	struct iovec iov = { &c, 1 };
	unsigned int count;
	int fds[1];

	(void)state;
	assert_int_equal(fdpass_recv(pair[1], &c, 1, fds, &count, 1, MSG_DONTWAIT), -EAGAIN);
	assert_int_equal(count, 0);
	assert_int_equal(shutdown(pair[0], SHUT_WR), 0);
	assert_int_equal(fdpass_recv(pair[1], &c, 1, fds, &count, 1, 0), 0);
	assert_int_equal(count, 0);
	/* An error, not a signal. */
	assert_int_equal(fdpass_send(pair[0], &iov, 1, files, 1, 0), -EPIPE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_one_by_one, setup, teardown),
		cmocka_unit_test_setup_teardown(test_more_than_there_is_room_for, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nothing_and_the_end, setup, teardown),
	};

	return harness_main("fdpass", tests, ARRAY_SIZE(tests), NULL, NULL);
}
