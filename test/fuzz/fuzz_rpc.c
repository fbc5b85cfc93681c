/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Any bytes into the RPC socket, over real bdevs and controllers. The server
 * must not crash, each line it answers must be JSON, and it must close when the
 * client has: whatever was created is deleted again before the next input.
 *
 * Left out are the methods that reach beyond the process: those that kill it,
 * open files, lock cores, or write the log.
 *
 * Input: as it goes over the wire; a byte 0xff ends one piece of it, so that
 * requests arrive torn.
 */
#include "fuzz.h"

#include "hugepages/hugepages.h"
#include "rpc/rpc.h"
#include "vhost/vhost.h"

#include <json-c/json.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#define POLITE_MS 20	/* how long a half-closed client waits for answers */

static struct sockaddr_un addr = { .sun_family = AF_UNIX };

static struct {
	struct control_fd cf;
	char *line;		/* an answer, still without its end */
	size_t len, cap;
	bool eof;
} client;

static bool denied(const char *name)
{
	static const char *const names[] = {
		"spdk_kill_instance", "bdev_aio_create", "bdev_uring_create",
		"framework_enable_cpumask_locks", "framework_disable_cpumask_locks",
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (!strcmp(name, names[i]))
			return true;
	}
	return !strncmp(name, "log_set", 7);
}

/* "method,method,..." of all others; kept for ever. */
static const char *allowed_methods(void)
{
	const struct rpc_method *const tables[] = {
		rpc_app_methods, rpc_bdev_methods, rpc_bdev_show_methods, rpc_vhost_methods,
		rpc_pending_methods,
	};
	static char text[8192];
	size_t len = 0;

	for (size_t t = 0; t < ARRAY_SIZE(tables); t++) {
		for (const struct rpc_method *m = tables[t]; m->name; m++) {
			if (!denied(m->name))
				len += (size_t)snprintf(text + len, sizeof(text) - len, "%s%s",
							len ? "," : "", m->name);
		}
	}
	CHECK(len < sizeof(text));
	return text;
}

/* ------- the client ------- */

static void check_lines(void)
{
	char *end;

	while ((end = memchr(client.line, '\n', client.len)) != NULL) {
		struct json_tokener *tok = json_tokener_new();
		struct json_object *value;
		size_t n = (size_t)(end - client.line);

		value = json_tokener_parse_ex(tok, client.line, (int)n);
		CHECK(json_tokener_get_error(tok) == json_tokener_success);
		CHECK(json_tokener_get_parse_end(tok) == n);
		CHECK(json_object_is_type(value, json_type_object) ||
		      json_object_is_type(value, json_type_array));
		json_object_put(value);
		json_tokener_free(tok);
		client.len -= n + 1;
		memmove(client.line, end + 1, client.len);
	}
}

static void client_event(struct control_fd *cf, uint32_t events)
{
	ssize_t n;

	(void)events;
	if (client.cap - client.len < 65536) {
		client.cap += 65536;
		client.line = realloc(client.line, client.cap);
		CHECK(client.line);
	}
	n = recv(cf->fd, client.line + client.len, client.cap - client.len, MSG_DONTWAIT);
	if (n > 0) {
		client.len += (size_t)n;
		check_lines();
		return;
	}
	if (n < 0 && errno == EAGAIN)
		return;
	CHECK(n == 0 || errno == ECONNRESET);
	client.eof = true;
	control_fd_del(cf);
	control_stop();
}

static bool client_done(void *arg)
{
	(void)arg;
	return client.eof;
}

static void send_pieces(const uint8_t *data, size_t size)
{
	while (size > 0 && !client.eof) {
		const uint8_t *end = memchr(data, 0xff, size);
		size_t n = end ? (size_t)(end - data) : size;
		ssize_t sent = send(client.cf.fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT);

		/* Full, or closed by a server that has seen enough. */
		if (sent < (ssize_t)n)
			return;
		if (end) {
			fuzz_wait(client_done, NULL, 1);
			n++;
		}
		data += n;
		size -= n;
	}
}

/* ------- tidying up ------- */

static bool parts_gone[2];

static void vhost_gone(void)
{
	parts_gone[0] = true;
	control_stop();
}

static void bdevs_gone(void)
{
	parts_gone[1] = true;
	control_stop();
}

static bool all_gone(void *arg)
{
	(void)arg;
	return parts_gone[0] && parts_gone[1];
}

static void delete_all(void)
{
	parts_gone[0] = parts_gone[1] = false;
	vhost_fini(vhost_gone);
	bdev_delete_all(bdevs_gone);
	CHECK(fuzz_wait(all_gone, NULL, 30000));
	CHECK(vhost_init(fuzz_dir) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	client.eof = false;
	client.len = 0;
	client.cf.fn = client_event;
	client.cf.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(client.cf.fd >= 0);
	CHECK(connect(client.cf.fd, (struct sockaddr *)&addr, sizeof(addr)) == 0);
	CHECK(control_fd_add(&client.cf, EPOLLIN) == 0);
	send_pieces(data, size);
	shutdown(client.cf.fd, SHUT_WR);
	/* A call may be one that waits: then it is the hang-up that ends it. */
	if (fuzz_wait(client_done, NULL, POLITE_MS))
		CHECK(client.len == 0);
	else
		control_fd_del(&client.cf);
	close(client.cf.fd);
	fuzz_pass();
	delete_all();
	return 0;
}

static void stop_server(void)
{
	rpc_stop();
	fuzz_cleanup();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct rpc_config config = { .path = addr.sun_path, .allowed = allowed_methods() };
	struct huge_config huge = { .no_huge = true, .limit = 16u << 20 };

	(void)argc;
	(void)argv;
	CHECK(huge_init(&huge) == 0);
	fuzz_start(0);
	CHECK(vhost_init(fuzz_dir) == 0);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/r", fuzz_dir);
	CHECK(rpc_start(&config) == 0);
	atexit(stop_server);
	return 0;
}
