/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Unit tests of the RPC server inside the test's process: every allocation of a
 * conversation fails once, and the server neither falls nor falls silent; the
 * socket and its lock file. The wire itself is tested from outside, in
 * test/functional/test_rpc*.py.
 */
#include "harness.h"

#include "rpc/rpc.h"

#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static char socket_path[108];

static struct rpc_config config(void)
{
	snprintf(socket_path, sizeof(socket_path), "%s", harness_path("rpc.sock"));
	return (struct rpc_config){ .path = socket_path };
}

static int connect_client(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

	assert_true(fd >= 0);
	memcpy(addr.sun_path, socket_path, sizeof(addr.sun_path));
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

struct reader {
	int fd;
	char text[65536];
	size_t len;
	bool eof;
};

/* A whole line, or the end of the connection. */
static bool reader_line(void *arg)
{
	struct reader *r = arg;
	ssize_t n = recv(r->fd, r->text + r->len, sizeof(r->text) - 1 - r->len, MSG_DONTWAIT);

	if (n > 0)
		r->len += (size_t)n;
	if (n == 0 || (n < 0 && errno != EAGAIN))
		r->eof = true;
	r->text[r->len] = '\0';
	return r->eof || strchr(r->text, '\n');
}

/* Send text on a new connection; what came back, "" when it was closed instead. */
static const char *ask(const char *text)
{
	static struct reader r;

	memset(&r, 0, sizeof(r));
	r.fd = connect_client();
	assert_int_equal(send(r.fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
	harness_wait_until(reader_line, &r);
	close(r.fd);
	return r.text;
}

static void answers(const char *text, const char *part)
{
	const char *got = ask(text);

	if (!strstr(got, part))
		fail_msg("%s is answered %s", text, got);
}

/* The n-th allocation fails, for every n: an answer or a closed connection, and it goes on. */
static void test_every_allocation(void **state)
{
	static const char create_null[] =
		"{\"id\":1,\"method\":\"bdev_null_create\",\"params\":"
		"{\"name\":\"n\",\"num_blocks\":8,\"block_size\":512}}";
	static const char *const requests[] = {
		"{\"id\":1,\"method\":\"rpc_get_methods\",\"params\":{\"include_aliases\":true}}",
		create_null,
		"{\"id\":1,\"method\":\"bdev_get_bdevs\"}",
		"{\"id\":1,\"method\":\"bdev_get_iostat\",\"params\":{\"names\":[\"n\"]}}",
		"{\"id\":1,\"method\":\"thread_get_pollers\"}",
		"{\"id\":1,\"method\":\"framework_get_config\",\"params\":{\"name\":\"bdev\"}}",
		"[{\"id\":1,\"method\":\"log_get_level\"},{\"id\":2,\"method\":\"nope\"},5]",
		"{\"id\":1,\"id\":1,\"method\":\"log_get_level\"}",
		"nonsense",
		"[]",
	};
	struct rpc_config c = config();

	(void)state;
	assert_int_equal(rpc_start(&c), 0);
	for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
		unsigned int n = 1;
		bool reached;

		do {
			assert_true(n < 1000);
			harness_fail_alloc(n++);
			ask(requests[i]);
			reached = harness_fail_reached();
			harness_fail_alloc(0);
			answers("{\"id\":7,\"method\":\"log_get_level\"}",
				"{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":\"NOTICE\"}\n");
		} while (reached);
	}
	rpc_stop();
}

static void test_allowed(void **state)
{
	struct rpc_config c = config();

	(void)state;
	c.allowed = "log_get_level";
	assert_int_equal(rpc_start(&c), 0);
	answers("{\"id\":1,\"method\":\"spdk_get_version\"}", "-32601");
	answers("{\"id\":1,\"method\":\"log_get_level\"}", "NOTICE");
	rpc_stop();
}

static void test_lock(void **state)
{
	struct rpc_config c = config();
	char lock[128];
	struct stat st;
	int fd;

	(void)state;
	snprintf(lock, sizeof(lock), "%s.lock", socket_path);
	fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
	assert_int_equal(rpc_start(&c), -EADDRINUSE);
	/* What is the other's stays. */
	assert_int_equal(stat(lock, &st), 0);
	close(fd);
	assert_int_equal(rpc_start(&c), 0);
	assert_int_equal(stat(socket_path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	rpc_stop();
	assert_int_equal(stat(socket_path, &st), -1);
	assert_int_equal(stat(lock, &st), -1);
	/* Again, and stopping twice does no harm. */
	assert_int_equal(rpc_start(&c), 0);
	rpc_stop();
	rpc_stop();
}

static void test_refused_names(void **state)
{
	struct rpc_config c = config();

	(void)state;
	c.allowed = "log_get_level,,nope";
	assert_int_equal(rpc_start(&c), -EINVAL);
	c.allowed = NULL;
	c.path = "/nonexistent/dir/sock";
	assert_int_equal(rpc_start(&c), -ENOENT);
}

/* Clients that are there when the server stops see the end of the connection. */
static void test_stop_with_clients(void **state)
{
	static const char wait[] =
		"{\"id\":1,\"method\":\"bdev_get_bdevs\",\"params\":"
		"{\"name\":\"x\",\"timeout\":3600000}}{\"id\":2,\"method\":\"log_get_level\"}";
	struct rpc_config c = config();
	static struct reader r;

	(void)state;
	assert_int_equal(rpc_start(&c), 0);
	memset(&r, 0, sizeof(r));
	r.fd = connect_client();
	assert_true(send(r.fd, wait, sizeof(wait) - 1, MSG_NOSIGNAL) > 0);
	harness_sleep(50);
	rpc_stop();
	harness_wait_until(reader_line, &r);
	assert_true(r.eof);
	assert_int_equal(r.len, 0);
	close(r.fd);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_allocation),
		cmocka_unit_test(test_allowed),
		cmocka_unit_test(test_lock),
		cmocka_unit_test(test_refused_names),
		cmocka_unit_test(test_stop_with_clients),
	};

	return harness_main("rpc_server", tests, ARRAY_SIZE(tests), harness_setup,
			    harness_teardown);
}
