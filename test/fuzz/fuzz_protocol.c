/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A front end that sends anything: messages with wrong sizes, wrong fds, in any
 * order, onto a real session with a null bdev and a reactor behind it. The back
 * end must not crash; what it answers must be whole answers; and when the front
 * end stops talking the session must end, its virtqueues with it.
 *
 * Input, repeated: request, control byte, length of the payload, payload.
 *   control: bits 0-2 number of fds, 3-4 what they are, 5 NEED_REPLY,
 *   6 wrong version or REPLY, 7 another byte follows and is added to the size
 * A request with bit 7 set stands for bare bytes without a header.
 */
#include "fuzz.h"

#include "vhost/vhost_internal.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define MEM_SIZE 0x10000
#define FDS_MAX 7

static struct {
	struct control_fd cf;	/* our end */
	uint8_t in[65536];
	size_t have;
	bool eof;
} fe;

static struct vhost_controller *controller;
static uint8_t memory_image[0x2000];

/* ------- guest memory with a ring that has something to do ------- */

/* Rings of 8 entries at 0, 0x400, 0x800; a read, a write and a flush. */
static void make_image(void)
{
	struct vring_desc_split *desc = (void *)memory_image;
	uint16_t *avail = (void *)(memory_image + 0x400);
	uint32_t *header = (void *)(memory_image + 0x1000);

	desc[0] = (struct vring_desc_split){ 0x1000, 16, 1, 1 };
	desc[1] = (struct vring_desc_split){ 0x3000, 4096, 3, 2 };
	desc[2] = (struct vring_desc_split){ 0x1100, 1, 2, 0 };
	desc[3] = (struct vring_desc_split){ 0x1010, 16, 1, 4 };
	desc[4] = (struct vring_desc_split){ 0x4000, 512, 1, 2 };
	desc[5] = (struct vring_desc_split){ 0x1020, 16, 1, 2 };
	header[4] = 1;
	header[8] = 4;
	avail[1] = 3;
	avail[2] = 0;
	avail[3] = 3;
	avail[4] = 5;
}

static int memory_fd(void)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	CHECK(fd >= 0);
	CHECK(ftruncate(fd, MEM_SIZE) == 0);
	CHECK(pwrite(fd, memory_image, sizeof(memory_image), 0) == sizeof(memory_image));
	return fd;
}

/* ------- our end of the connection ------- */

/* Whole answers only, and marked as such. */
static void check_answers(void)
{
	struct vu_header h;

	while (fe.have >= sizeof(h)) {
		memcpy(&h, fe.in, sizeof(h));
		CHECK(h.flags == (VU_FLAG_VERSION | VU_FLAG_REPLY));
		CHECK(vhost_msg_row(h.request) && h.size <= sizeof(struct vu_config));
		if (fe.have < sizeof(h) + h.size)
			return;
		fe.have -= sizeof(h) + h.size;
		memmove(fe.in, fe.in + sizeof(h) + h.size, fe.have);
	}
}

static void fe_event(struct control_fd *cf, uint32_t events)
{
	ssize_t n = recv(cf->fd, fe.in + fe.have, sizeof(fe.in) - fe.have, MSG_DONTWAIT);

	(void)events;
	if (n > 0) {
		fe.have += (size_t)n;
		check_answers();
		return;
	}
	if (n < 0 && errno == EAGAIN)
		return;
	/* A close over messages that nobody read shows as a reset. */
	CHECK(n == 0 || errno == ECONNRESET);
	fe.eof = true;
	control_fd_del(cf);
	control_stop();
}

static int make_fd(unsigned int kind, int *other)
{
	int ends[2];

	switch (kind) {
	case 0: return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	case 1: return memory_fd();
	case 2:
		CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
		*other = ends[1];
		return ends[0];
	default: return eventfd(1, EFD_CLOEXEC);
	}
}

static bool send_all(const void *buf, size_t len, const int *fds, unsigned int fd_count)
{
	union {
		char buf[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { (void *)(uintptr_t)buf, len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

	memset(&control, 0, sizeof(control));
	if (fd_count) {
		struct cmsghdr *c;

		mh.msg_control = control.buf;
		mh.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
		memcpy(CMSG_DATA(c), fds, fd_count * sizeof(int));
	}
	return sendmsg(fe.cf.fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)len;
}

static bool send_record(struct bytes *in)
{
	uint8_t request = take_u8(in), control = take_u8(in), len = take_u8(in);
	unsigned int fd_count = control & 7;
	int fds[FDS_MAX], others[FDS_MAX];
	uint8_t buf[sizeof(struct vu_header) + 256];
	struct vu_header h = { request & 0x7f, VU_FLAG_VERSION, len };
	size_t n = 0;
	bool ok;

	if (control & 0x20)
		h.flags |= VU_FLAG_NEED_REPLY;
	if (control & 0x40)
		h.flags ^= len & 1 ? VU_FLAG_REPLY : 3;
	if (control & 0x80)
		h.size += (uint32_t)(int8_t)take_u8(in);
	if (!(request & 0x80)) {
		memcpy(buf, &h, sizeof(h));
		n = sizeof(h);
	}
	n += take(in, buf + n, len);
	if (n == 0)
		return true;
	for (unsigned int i = 0; i < fd_count; i++) {
		others[i] = -1;
		fds[i] = make_fd(control >> 3 & 3, &others[i]);
	}
	ok = send_all(buf, n, fds, fd_count);
	for (unsigned int i = 0; i < fd_count; i++) {
		close(fds[i]);
		if (others[i] >= 0)
			close(others[i]);
	}
	return ok;
}

/* ------- one input ------- */

static bool session_gone(void *arg)
{
	(void)arg;
	return fe.eof && list_empty(&controller->sessions);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct bytes in = { data, size };
	int ends[2];

	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
	fe.cf.fd = ends[0];
	fe.cf.fn = fe_event;
	fe.have = 0;
	fe.eof = false;
	CHECK(control_fd_add(&fe.cf, EPOLLIN) == 0);
	session_create(controller, ends[1]);
	while (in.left && send_record(&in))
		;
	shutdown(fe.cf.fd, SHUT_WR);
	CHECK(fuzz_wait(session_gone, NULL, 30000));
	CHECK(fe.have == 0);
	close(fe.cf.fd);
	return 0;
}

static bool made;

static void bdev_made(struct bdev_result *res)
{
	CHECK(res->status == 0);
	made = true;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static struct bdev_result res = { .fn = bdev_made };
	struct bdev_null_opts null = { .name = "n", .num_blocks = 2048, .block_size = 512 };
	struct vhost_controller_opts opts = { .name = "c", .dev_name = "n" };
	char reason[VHOST_REASON_MAX], path[128];

	(void)argc;
	(void)argv;
	fuzz_start(0);
	make_image();
	CHECK(vhost_init(fuzz_dir) == 0);
	bdev_null_create(&null, &res);
	CHECK(made);
	CHECK(vhost_controller_create(&opts, reason) == 0);
	controller = vhost_controller_find("c");
	/* Nobody connects by path; so that the directory can go at the end. */
	snprintf(path, sizeof(path), "%s/c", fuzz_dir);
	unlink(path);
	return 0;
}
