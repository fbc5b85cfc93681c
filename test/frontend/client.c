/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The vhost-user messages of the front end, one function each.
 *
 * Payloads are laid out here and nowhere else. Every function sends what it is asked to, sensible
 * or not: the order of messages and the values in them are start.c's business, or the test's.
 * NEED_REPLY and acknowledgements are handled below, in fe_send and fe_call.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/virtio_blk.h>

#include "frontend.h"

#define NO_FD 0x100u	/* in the u64 of KICK, CALL and ERR: no fd comes with it */

struct wire_region {
	uint64_t gpa, size, uva, mmap_offset;
};

struct wire_inflight {
	uint64_t mmap_size, mmap_offset;
	uint16_t num_queues, queue_size;
	uint32_t pad;
};

struct wire_state {
	uint32_t index, num;
};

int fe_get_u64(struct fe *fe, uint32_t request, uint64_t *value)
{
	struct fe_msg reply;
	int rc = fe_call(fe, request, NULL, 0, NULL, 0, &reply);

	if (rc < 0)
		return rc;
	fe_msg_close(&reply);
	if (reply.size != sizeof(*value))
		return -EPROTO;
	memcpy(value, reply.payload, sizeof(*value));
	return 0;
}

int fe_set_u64(struct fe *fe, uint32_t request, uint64_t value)
{
	return fe_send(fe, request, &value, sizeof(value), NULL, 0);
}

int fe_get_features(struct fe *fe, uint64_t *value)
{
	return fe_get_u64(fe, FE_GET_FEATURES, value);
}

int fe_set_features(struct fe *fe, uint64_t value)
{
	return fe_set_u64(fe, FE_SET_FEATURES, value);
}

int fe_get_protocol_features(struct fe *fe, uint64_t *value)
{
	return fe_get_u64(fe, FE_GET_PROTOCOL_FEATURES, value);
}

int fe_set_protocol_features(struct fe *fe, uint64_t value)
{
	int rc = fe_set_u64(fe, FE_SET_PROTOCOL_FEATURES, value);

	if (rc == 0)
		fe->protocol = value;
	return rc;
}

int fe_set_owner(struct fe *fe)
{
	return fe_send(fe, FE_SET_OWNER, NULL, 0, NULL, 0);
}

int fe_reset_owner(struct fe *fe)
{
	return fe_send(fe, FE_RESET_OWNER, NULL, 0, NULL, 0);
}

int fe_reset_device(struct fe *fe)
{
	return fe_send(fe, FE_RESET_DEVICE, NULL, 0, NULL, 0);
}

int fe_get_status(struct fe *fe, uint64_t *value)
{
	return fe_get_u64(fe, FE_GET_STATUS, value);
}

int fe_set_status(struct fe *fe, uint64_t value)
{
	return fe_set_u64(fe, FE_SET_STATUS, value);
}

int fe_get_config(struct fe *fe, uint32_t offset, uint32_t size, void *buf)
{
	struct {
		uint32_t offset, size, flags;
		uint8_t data[256];
	} ask = { .offset = offset, .size = size };
	struct fe_msg reply;
	uint32_t got[3];
	int rc;

	if (size > sizeof(ask.data))
		return -EINVAL;
	rc = fe_call(fe, FE_GET_CONFIG, &ask, 12 + size, NULL, 0, &reply);
	if (rc < 0)
		return rc;
	fe_msg_close(&reply);
	if (reply.size == 0)
		return -EREMOTEIO;	/* the back end's way to refuse */
	if (reply.size != 12 + size)
		return -EPROTO;
	memcpy(got, reply.payload, sizeof(got));
	if (got[0] != offset || got[1] != size)
		return -EPROTO;
	memcpy(buf, reply.payload + 12, size);
	return 0;
}

int fe_set_config(struct fe *fe, uint32_t offset, uint32_t size, uint32_t flags, const void *buf)
{
	struct {
		uint32_t offset, size, flags;
		uint8_t data[256];
	} msg = { .offset = offset, .size = size, .flags = flags };

	if (size > sizeof(msg.data))
		return -EINVAL;
	memcpy(msg.data, buf, size);
	return fe_send(fe, FE_SET_CONFIG, &msg, 12 + size, NULL, 0);
}

uint64_t fe_capacity(const struct fe *fe)
{
	uint64_t capacity;

	memcpy(&capacity, fe->config + offsetof(struct virtio_blk_config, capacity), 8);
	return capacity;
}

/* ---- memory ---- */

static void wire_of(const struct fe_region *r, struct wire_region *out)
{
	out->gpa = r->gpa;
	out->size = r->size;
	out->uva = r->uva;
	out->mmap_offset = r->mmap_offset;
}

int fe_set_mem_table(struct fe *fe)
{
	size_t max = 8 + fe->num_regions * sizeof(struct wire_region);
	uint8_t *buf = calloc(1, max);
	struct wire_region w;
	int fds[FE_MAX_FDS];
	uint32_t n = 0;
	int rc = -E2BIG;

	if (!buf)
		return -ENOMEM;
	for (uint32_t i = 0; i < fe->num_regions; i++) {
		if (fe->regions[i].gone)
			continue;
		if (n == FE_MAX_FDS)
			goto out;
		wire_of(&fe->regions[i], &w);
		memcpy(buf + 8 + n * sizeof(w), &w, sizeof(w));
		fds[n++] = fe->regions[i].fd;
	}
	memcpy(buf, &n, sizeof(n));
	rc = fe_send(fe, FE_SET_MEM_TABLE, buf, (uint32_t)(8 + n * sizeof(w)), fds, n);
	if (rc == 0)
		fe->memory_sent = true;
out:
	free(buf);
	return rc;
}

static int mem_reg(struct fe *fe, uint32_t request, unsigned int region, bool with_fd)
{
	struct {
		uint64_t pad;
		struct wire_region region;
	} msg = { .pad = 0 };

	if (region >= fe->num_regions || fe->regions[region].gone)
		return -EINVAL;
	wire_of(&fe->regions[region], &msg.region);
	return fe_send(fe, request, &msg, sizeof(msg), &fe->regions[region].fd, with_fd ? 1 : 0);
}

int fe_add_mem_reg(struct fe *fe, unsigned int region)
{
	return mem_reg(fe, FE_ADD_MEM_REG, region, true);
}

int fe_rem_mem_reg(struct fe *fe, unsigned int region, bool with_fd)
{
	return mem_reg(fe, FE_REM_MEM_REG, region, with_fd);
}

/* ---- rings ---- */

static int set_state(struct fe *fe, uint32_t request, uint32_t index, uint32_t num)
{
	struct wire_state s = { index, num };

	return fe_send(fe, request, &s, sizeof(s), NULL, 0);
}

int fe_set_vring_num(struct fe *fe, uint32_t index, uint32_t num)
{
	return set_state(fe, FE_SET_VRING_NUM, index, num);
}

int fe_set_vring_base(struct fe *fe, uint32_t index, uint32_t base)
{
	return set_state(fe, FE_SET_VRING_BASE, index, base);
}

int fe_set_vring_enable(struct fe *fe, uint32_t index, uint32_t on)
{
	return set_state(fe, FE_SET_VRING_ENABLE, index, on);
}

int fe_get_vring_base(struct fe *fe, uint32_t index, uint32_t *base)
{
	struct wire_state s = { index, 0 };
	struct fe_msg reply;
	int rc = fe_call(fe, FE_GET_VRING_BASE, &s, sizeof(s), NULL, 0, &reply);

	if (rc < 0)
		return rc;
	fe_msg_close(&reply);
	if (reply.size != sizeof(s))
		return -EPROTO;
	memcpy(&s, reply.payload, sizeof(s));
	if (s.index != index)
		return -EPROTO;
	*base = s.num;
	return 0;
}

int fe_set_vring_addr(struct fe *fe, uint32_t index, uint32_t flags, uint64_t desc, uint64_t used,
		      uint64_t avail, uint64_t log)
{
	struct {
		uint32_t index, flags;
		uint64_t desc, used, avail, log;
	} msg = { index, flags, desc, used, avail, log };

	return fe_send(fe, FE_SET_VRING_ADDR, &msg, sizeof(msg), NULL, 0);
}

int fe_set_vring_fd(struct fe *fe, uint32_t request, uint32_t index, int fd)
{
	uint64_t value = index | (fd < 0 ? NO_FD : 0);

	return fe_send(fe, request, &value, sizeof(value), &fd, fd < 0 ? 0 : 1);
}

/* ---- channels, log, in-flight region ---- */

int fe_set_backend_req_fd(struct fe *fe)
{
	int sv[2];
	int rc;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		return -errno;
	if (fe->backend_sock >= 0)
		close(fe->backend_sock);
	fe->backend_sock = sv[0];
	rc = fe_send(fe, FE_SET_BACKEND_REQ_FD, NULL, 0, &sv[1], 1);
	close(sv[1]);
	return rc;
}

int fe_set_log_base(struct fe *fe, uint64_t size, uint64_t offset, int fd)
{
	uint64_t msg[2] = { size, offset };
	struct fe_msg reply;
	int rc;

	if (!(fe->protocol & FE_BIT(FE_PF_LOG_SHMFD)))
		return fe_send(fe, FE_SET_LOG_BASE, msg, sizeof(msg), &fd, fd < 0 ? 0 : 1);
	rc = fe_call(fe, FE_SET_LOG_BASE, msg, sizeof(msg), &fd, fd < 0 ? 0 : 1, &reply);
	if (rc == 0)
		fe_msg_close(&reply);
	return rc;
}

int fe_set_log_fd(struct fe *fe, int fd)
{
	return fe_send(fe, FE_SET_LOG_FD, NULL, 0, &fd, fd < 0 ? 0 : 1);
}

int fe_get_inflight_fd(struct fe *fe, uint16_t queues, uint16_t size, uint64_t *mmap_size,
		       uint64_t *mmap_offset, int *fd)
{
	struct wire_inflight w = { .num_queues = queues, .queue_size = size };
	struct fe_msg reply;
	int rc = fe_call(fe, FE_GET_INFLIGHT_FD, &w, sizeof(w), NULL, 0, &reply);

	if (rc < 0)
		return rc;
	if (reply.size < 20 || reply.size > sizeof(w) || reply.num_fds != 1) {
		fe_msg_close(&reply);
		return -EPROTO;
	}
	memcpy(&w, reply.payload, reply.size);
	*mmap_size = w.mmap_size;
	*mmap_offset = w.mmap_offset;
	*fd = reply.fds[0];
	return 0;
}

int fe_set_inflight_fd(struct fe *fe, uint64_t mmap_size, uint64_t mmap_offset, uint16_t queues,
		       uint16_t size, int fd)
{
	struct wire_inflight w = { mmap_size, mmap_offset, queues, size, 0 };

	return fe_send(fe, FE_SET_INFLIGHT_FD, &w, sizeof(w), &fd, fd < 0 ? 0 : 1);
}
