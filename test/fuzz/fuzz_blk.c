/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A guest whose memory is all input, with a live queue on a malloc bdev behind a
 * real session. After each input the queue must stop when asked, and the bytes
 * of the memory's file before and after the region that was shared, in its very
 * pages, must be what they were.
 *
 * Input: features, then the guest's memory: ring of 16 at 0 (descriptors), 0x100
 * (avail), 0x180 (used), and the rest as it comes.
 */
#include "fuzz.h"

#include "hugepages/hugepages.h"
#include "vhost/vhost_internal.h"

#include <linux/virtio_blk.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define GUARD 0x1230
#define SIZE 0x2000
#define FILE_SIZE 0x5000
#define CANARY 0xa5
#define GPA 0x10000
#define UVA 0x55550000ull
#define NUM 16

static struct vhost_controller *controller;
static uint8_t *file_map;
static int file_fd;

static struct {
	struct control_fd cf;
	uint8_t in[4096];
	size_t have;
	bool eof;
} fe;

static void fe_event(struct control_fd *cf, uint32_t events)
{
	ssize_t n = recv(cf->fd, fe.in + fe.have, sizeof(fe.in) - fe.have, MSG_DONTWAIT);

	(void)events;
	CHECK(n > 0);
	fe.have += (size_t)n;
	control_stop();
}

static void message(uint32_t request, const void *payload, uint32_t size, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct vu_header h = { request, VU_FLAG_VERSION, size };
	struct iovec iov[2] = { { &h, sizeof(h) }, { (void *)(uintptr_t)payload, size } };
	struct msghdr mh = { .msg_iov = iov, .msg_iovlen = 2 };

	memset(&control, 0, sizeof(control));
	if (fd >= 0) {
		struct cmsghdr *c;

		mh.msg_control = control.buf;
		mh.msg_controllen = sizeof(control.buf);
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	CHECK(sendmsg(fe.cf.fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT) ==
	      (ssize_t)(sizeof(h) + size));
}

static bool answered(void *arg)
{
	return fe.have >= *(size_t *)arg;
}

static void start_queue(uint8_t flags, int kick, int call)
{
	struct vu_mem_table table = { .count = 1, .regions = { { GPA, SIZE, UVA, GUARD } } };
	struct vu_vring_addr addr = { .desc = UVA, .avail = UVA + 0x100, .used = UVA + 0x180 };
	struct vu_vring_state num = { 0, NUM }, base = { 0, 0 };
	uint64_t features = 1ull << VIRTIO_BLK_F_FLUSH | 1ull << 32, zero = 0;

	if (flags & 1)
		features |= 1ull << VRING_F_EVENT_IDX;
	if (flags & 2)
		features |= 1ull << VRING_F_INDIRECT_DESC;
	if (flags & 4)
		features |= 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
	if (flags & 8)
		features |= 1ull << VIRTIO_BLK_F_CONFIG_WCE;
	message(VU_SET_FEATURES, &features, sizeof(features), -1);
	message(VU_SET_MEM_TABLE, &table, 8 + sizeof(struct vu_mem_region), file_fd);
	message(VU_SET_VRING_NUM, &num, sizeof(num), -1);
	message(VU_SET_VRING_BASE, &base, sizeof(base), -1);
	message(VU_SET_VRING_ADDR, &addr, sizeof(addr), -1);
	message(VU_SET_VRING_CALL, &zero, sizeof(zero), call);
	message(VU_SET_VRING_ERR, &zero, sizeof(zero), call);
	message(VU_SET_VRING_KICK, &zero, sizeof(zero), kick);
}

static void check_canaries(void)
{
	for (size_t i = 0; i < FILE_SIZE; i++) {
		if (i >= GUARD && i < GUARD + SIZE)
			continue;
		CHECK(file_map[i] == CANARY);
	}
}

static bool session_gone(void *arg)
{
	(void)arg;
	return list_empty(&controller->sessions);
}

static bool settled(void *arg)
{
	const struct vhost_session *s = arg;

	/* The kick has been read, so the queue runs, or never will. */
	return s->vqs[0] && (s->vqs[0]->vq || s->vqs[0]->failed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct bytes in = { data, size };
	uint8_t flags = take_u8(&in);
	struct vu_vring_state state = { 0, 0 };
	size_t want = sizeof(struct vu_header) + sizeof(state);
	int ends[2], kick = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
	int call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	memset(file_map, CANARY, FILE_SIZE);
	memset(file_map + GUARD, 0, SIZE);
	take(&in, file_map + GUARD, SIZE);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
	fe.cf.fd = ends[0];
	fe.cf.fn = fe_event;
	fe.have = 0;
	CHECK(control_fd_add(&fe.cf, EPOLLIN) == 0);
	session_create(controller, ends[1]);
	start_queue(flags, kick, call);
	CHECK(fuzz_wait(settled, list_first(&controller->sessions, struct vhost_session, node),
			30000));
	fuzz_pass();
	message(VU_GET_VRING_BASE, &state, sizeof(state), -1);
	CHECK(fuzz_wait(answered, &want, 30000));
	CHECK(fe.have == want);
	check_canaries();
	control_fd_del(&fe.cf);
	close(fe.cf.fd);
	CHECK(fuzz_wait(session_gone, NULL, 30000));
	check_canaries();
	close(kick);
	close(call);
	return 0;
}

static bool made;

static void bdev_made(struct bdev_result *res)
{
	CHECK(res->status == 0);
	made = true;
	control_stop();
}

static bool was_made(void *arg)
{
	(void)arg;
	return made;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static struct bdev_result res = { .fn = bdev_made };
	struct huge_config huge = { .no_huge = true };
	struct bdev_malloc_opts disk = { .name = "m", .num_blocks = 256, .block_size = 512,
					 .numa_node = -1 };
	struct vhost_controller_opts opts = { .name = "c", .dev_name = "m" };
	char reason[VHOST_REASON_MAX], path[128];

	(void)argc;
	(void)argv;
	CHECK(huge_init(&huge) == 0);
	fuzz_start(0);
	file_fd = memfd_create("fuzz", MFD_CLOEXEC);
	CHECK(file_fd >= 0 && ftruncate(file_fd, FILE_SIZE) == 0);
	file_map = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file_fd, 0);
	CHECK(file_map != MAP_FAILED);
	CHECK(vhost_init(fuzz_dir) == 0);
	bdev_malloc_create(&disk, &res);
	CHECK(fuzz_wait(was_made, NULL, 30000));
	CHECK(vhost_controller_create(&opts, reason) == 0);
	controller = vhost_controller_find("c");
	snprintf(path, sizeof(path), "%s/c", fuzz_dir);
	unlink(path);
	return 0;
}
