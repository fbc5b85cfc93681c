/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connecting, and the order in which real clients talk.
 *
 * QEMU (7.2 to 11) asks and sets the protocol features before the virtio features, sends CALL and
 * ERR for each ring at once, reads the config, and only when the guest's driver is ready sends the
 * features again, memory, NUM, BASE, ADDR, KICK for each ring and then ENABLE for each ring.
 * libblkio sets the virtio features first and wants an ack for everything that can have one.
 *
 * A struct fe outlives its connections: memory, rings and requests in flight stay when the socket
 * goes, as a guest stays when its back end dies. fe_reconnect goes on from the used index.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <linux/virtio_blk.h>

#include "frontend.h"

#define TRY(call)			\
	do {				\
		int rc_ = (call);	\
		if (rc_ < 0)		\
			return rc_;	\
	} while (0)

#define STATUS_ACKNOWLEDGE 1u
#define STATUS_DRIVER 2u
#define STATUS_DRIVER_OK 4u
#define STATUS_FEATURES_OK 8u

/* The block features QEMU's device passes to a guest. */
#define BLK_FEATURES                                                                        \
	(FE_BIT(VIRTIO_BLK_F_SIZE_MAX) | FE_BIT(VIRTIO_BLK_F_SEG_MAX) |                     \
	 FE_BIT(VIRTIO_BLK_F_GEOMETRY) | FE_BIT(VIRTIO_BLK_F_RO) |                          \
	 FE_BIT(VIRTIO_BLK_F_BLK_SIZE) | FE_BIT(VIRTIO_BLK_F_FLUSH) |                       \
	 FE_BIT(VIRTIO_BLK_F_TOPOLOGY) | FE_BIT(VIRTIO_BLK_F_CONFIG_WCE) |                  \
	 FE_BIT(VIRTIO_BLK_F_MQ) | FE_BIT(VIRTIO_BLK_F_DISCARD) |                           \
	 FE_BIT(VIRTIO_BLK_F_WRITE_ZEROES))

void fe_opts_init(struct fe_opts *opts)
{
	memset(opts, 0, sizeof(*opts));
	opts->num_queues = 1;
	opts->queue_size = 128;
	opts->timeout_ms = 5000;
	opts->config_size = 57;		/* what QEMU 7.2 asks */
	opts->mem_size = UINT64_C(64) << 20;
	opts->ring_region = -1;
	opts->data_region = -1;
}

size_t fe_sizeof(unsigned int which)
{
	static const size_t sizes[] = {
		sizeof(struct fe_opts), sizeof(struct fe_region_spec), sizeof(struct fe_region),
		sizeof(struct fe_vq), sizeof(struct fe_msg), sizeof(struct fe),
	};

	return which < sizeof(sizes) / sizeof(sizes[0]) ? sizes[which] : 0;
}

static int create_parts(struct fe *fe)
{
	const struct fe_opts *o = &fe->opts;
	struct fe_region_spec one = { .size = o->mem_size, .backing = o->backing, .dir = o->dir };

	if (o->num_regions == 0)
		TRY(fe_mem_add(fe, &one));
	for (uint32_t i = 0; i < o->num_regions; i++)
		TRY(fe_mem_add(fe, &o->regions[i]));
	fe->vqs = calloc(o->num_queues ? o->num_queues : 1, sizeof(*fe->vqs));
	if (!fe->vqs)
		return -ENOMEM;
	for (uint16_t i = 0; i < o->num_queues; i++) {
		fe->num_vqs++;
		TRY(fe_vq_init(fe, &fe->vqs[i], i, o->queue_size));
	}
	return 0;
}

struct fe *fe_create(const struct fe_opts *opts, int *err)
{
	struct fe *fe = calloc(1, sizeof(*fe));
	int rc = -ENOMEM;

	if (!fe)
		goto fail;
	fe->opts = *opts;
	fe->sock = fe->backend_sock = fe->inflight_fd = fe->log_fd = -1;
	fe->regions = calloc(FE_MAX_REGIONS, sizeof(*fe->regions));
	if (!fe->regions)
		goto fail;
	rc = -EINVAL;
	if (opts->num_queues > FE_MAX_QUEUES)
		goto fail;
	rc = create_parts(fe);
	/* What the caller's options point to need not outlive this call. */
	fe->opts.regions = NULL;
	fe->opts.dir = NULL;
	fe->opts.num_regions = 0;
	if (rc == 0)
		return fe;
fail:
	fe_destroy(fe);
	if (err)
		*err = rc;
	return NULL;
}

struct fe *fe_connect(const char *path, const struct fe_opts *opts, int *err)
{
	struct fe *fe = fe_create(opts, err);
	int rc;

	if (!fe)
		return NULL;
	rc = fe_open(fe, path);
	if (rc == 0 && !(opts->flags & FE_O_NO_START))
		rc = fe_start(fe);
	if (rc == 0)
		return fe;
	fe_destroy(fe);
	if (err)
		*err = rc;
	return NULL;
}

int fe_open(struct fe *fe, const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	uint64_t deadline = fe_now_ns() + fe->opts.timeout_ms * UINT64_C(1000000);
	const struct timespec nap = { .tv_nsec = 2000000 };
	size_t len = strlen(path);
	int sock;

	if (len >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	memcpy(addr.sun_path, path, len);
	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock < 0)
		return -errno;
	/* EAGAIN: the listener's backlog is full, as it is while it serves somebody else. */
	while (connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		int rc = -errno;

		if (rc == -EAGAIN && fe_now_ns() < deadline) {
			nanosleep(&nap, NULL);
			continue;
		}
		close(sock);
		return rc == -EAGAIN ? -ETIMEDOUT : rc;
	}
	memcpy(fe->path, addr.sun_path, sizeof(fe->path));
	fe_adopt(fe, sock);
	return 0;
}

void fe_adopt(struct fe *fe, int sock)
{
	fe_close(fe);
	fe->sock = sock;
}

void fe_close(struct fe *fe)
{
	if (fe->sock >= 0)
		close(fe->sock);
	if (fe->backend_sock >= 0)
		close(fe->backend_sock);
	fe->sock = fe->backend_sock = -1;
	fe->memory_sent = false;
	fe->protocol = 0;
	for (uint16_t i = 0; i < fe->num_vqs; i++)
		fe->vqs[i].started = fe->vqs[i].enabled = false;
}

void fe_destroy(struct fe *fe)
{
	if (!fe)
		return;
	fe_close(fe);
	for (uint16_t i = 0; i < fe->num_vqs; i++)
		fe_vq_fini(&fe->vqs[i]);
	free(fe->vqs);
	fe_log_destroy(fe);
	if (fe->regions)
		fe_mem_destroy(fe);
	free(fe->regions);
	if (fe->inflight_fd >= 0)
		close(fe->inflight_fd);
	free(fe);
}

struct fe_vq *fe_queue(struct fe *fe, unsigned int index)
{
	return index < fe->num_vqs ? &fe->vqs[index] : NULL;
}

/* ---- choosing features ---- */

static void choose_features(struct fe *fe)
{
	const struct fe_opts *o = &fe->opts;
	uint64_t take = BLK_FEATURES | FE_BIT(FE_F_ANY_LAYOUT);

	if (!(o->flags & FE_O_LEGACY))
		take |= FE_BIT(FE_F_VERSION_1);
	if (o->flags & FE_O_INDIRECT)
		take |= FE_BIT(FE_F_INDIRECT);
	if (o->flags & FE_O_EVENT_IDX)
		take |= FE_BIT(FE_F_EVENT_IDX);
	if (o->flags & FE_O_PACKED)
		take |= FE_BIT(FE_F_RING_PACKED);
	if (!(o->flags & FE_O_NO_PROTOCOL_FEATURES))
		take |= FE_BIT(FE_F_PROTOCOL_FEATURES);
	fe->features = (fe->offered & take & ~o->features_off) | o->features_force;
	for (uint16_t i = 0; i < fe->num_vqs; i++) {
		fe->vqs[i].event_idx = fe->features & FE_BIT(FE_F_EVENT_IDX);
		fe->vqs[i].indirect = fe->features & FE_BIT(FE_F_INDIRECT);
		fe_vq_use_packed(&fe->vqs[i], fe->features & FE_BIT(FE_F_RING_PACKED));
	}
}

static uint64_t choose_protocol(const struct fe *fe)
{
	const struct fe_opts *o = &fe->opts;
	uint64_t take = FE_BIT(FE_PF_MQ) | FE_BIT(FE_PF_LOG_SHMFD) | FE_BIT(FE_PF_REPLY_ACK) |
			FE_BIT(FE_PF_CONFIG) | FE_BIT(FE_PF_RESET_DEVICE);

	if (!(o->flags & FE_O_NO_BACKEND_CHANNEL))
		take |= FE_BIT(FE_PF_BACKEND_REQ) | FE_BIT(FE_PF_BACKEND_SEND_FD);
	if (!(o->flags & FE_O_NO_INFLIGHT))
		take |= FE_BIT(FE_PF_INFLIGHT_SHMFD);
	if (!(o->flags & FE_O_MEM_TABLE))
		take |= FE_BIT(FE_PF_CONFIGURE_MEM_SLOTS);
	if (o->flags & FE_O_STATUS)
		take |= FE_BIT(FE_PF_STATUS);
	if (o->flags & (FE_O_BASE_INFLIGHT | FE_O_SKIP_DRAIN))
		take |= FE_BIT(FE_PF_GET_VRING_BASE_INFLIGHT);
	if (o->flags & FE_O_SKIP_DRAIN)
		take |= FE_BIT(FE_PF_GET_VRING_BASE_SKIP_DRAIN);
	return fe->offered_protocol & take & ~o->protocol_off;
}

static bool has(const struct fe *fe, unsigned int bit)
{
	return fe->protocol & FE_BIT(bit);
}

static int add_status(struct fe *fe, uint64_t bits)
{
	uint64_t now;

	if (!has(fe, FE_PF_STATUS))
		return 0;
	TRY(fe_get_status(fe, &now));
	TRY(fe_set_status(fe, now | bits));
	TRY(fe_get_status(fe, &now));
	return (now & bits) == bits ? 0 : -EREMOTEIO;
}

/* ---- the sequences ---- */

static int get_limits(struct fe *fe)
{
	fe->max_queues = 1;
	if (has(fe, FE_PF_MQ))
		TRY(fe_get_u64(fe, FE_GET_QUEUE_NUM, &fe->max_queues));
	if (has(fe, FE_PF_CONFIGURE_MEM_SLOTS))
		TRY(fe_get_u64(fe, FE_GET_MAX_MEM_SLOTS, &fe->max_mem_slots));
	if (fe->num_vqs > fe->max_queues)
		return -ENXIO;
	return 0;
}

static int read_config(struct fe *fe)
{
	if (!has(fe, FE_PF_CONFIG) || fe->opts.config_size == 0)
		return 0;
	TRY(fe_get_config(fe, 0, fe->opts.config_size, fe->config));
	fe->config_len = fe->opts.config_size;
	return 0;
}

static int send_fds(struct fe *fe, const struct fe_vq *vq, bool err_too)
{
	bool poll = fe->opts.flags & FE_O_NO_CALL_FD;

	TRY(fe_set_vring_fd(fe, FE_SET_VRING_CALL, vq->index, poll ? -1 : vq->call_fd));
	if (err_too)
		TRY(fe_set_vring_fd(fe, FE_SET_VRING_ERR, vq->index, vq->err_fd));
	return 0;
}

static int negotiate_protocol(struct fe *fe)
{
	if (!(fe->offered & FE_BIT(FE_F_PROTOCOL_FEATURES)) ||
	    (fe->opts.flags & FE_O_NO_PROTOCOL_FEATURES))
		return 0;
	TRY(fe_get_protocol_features(fe, &fe->offered_protocol));
	return fe_set_protocol_features(fe, choose_protocol(fe));
}

static int negotiate_qemu(struct fe *fe)
{
	TRY(fe_get_features(fe, &fe->offered));
	TRY(negotiate_protocol(fe));
	TRY(get_limits(fe));
	if (has(fe, FE_PF_BACKEND_REQ))
		TRY(fe_set_backend_req_fd(fe));
	TRY(fe_set_owner(fe));
	TRY(fe_get_features(fe, &fe->offered));
	for (uint16_t i = 0; i < fe->num_vqs; i++)
		TRY(send_fds(fe, &fe->vqs[i], true));
	if (fe->config_len == 0)	/* not on a reconnect */
		TRY(read_config(fe));
	choose_features(fe);
	TRY(add_status(fe, STATUS_ACKNOWLEDGE | STATUS_DRIVER));
	TRY(fe_set_features(fe, fe->features));
	return add_status(fe, STATUS_FEATURES_OK);
}

static int negotiate_libblkio(struct fe *fe)
{
	const uint64_t must = FE_BIT(FE_PF_REPLY_ACK) | FE_BIT(FE_PF_CONFIG) |
			      FE_BIT(FE_PF_CONFIGURE_MEM_SLOTS);

	TRY(fe_get_features(fe, &fe->offered));
	choose_features(fe);
	TRY(fe_set_owner(fe));
	TRY(fe_set_features(fe, fe->features));
	TRY(negotiate_protocol(fe));
	if ((fe->protocol & must) != must)
		return -EOPNOTSUPP;
	TRY(get_limits(fe));
	if (has(fe, FE_PF_BACKEND_REQ))
		TRY(fe_set_backend_req_fd(fe));
	TRY(add_status(fe, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK));
	return read_config(fe);
}

int fe_start_negotiate(struct fe *fe)
{
	return fe->opts.style == FE_STYLE_LIBBLKIO ? negotiate_libblkio(fe) : negotiate_qemu(fe);
}

static int share_inflight(struct fe *fe)
{
	const struct fe_opts *o = &fe->opts;

	if (!has(fe, FE_PF_INFLIGHT_SHMFD) || o->style == FE_STYLE_LIBBLKIO)
		return 0;
	if (fe->inflight_fd < 0)
		TRY(fe_get_inflight_fd(fe, fe->num_vqs, o->queue_size, &fe->inflight_size,
				       &fe->inflight_offset, &fe->inflight_fd));
	return fe_set_inflight_fd(fe, fe->inflight_size, fe->inflight_offset, fe->num_vqs,
				  o->queue_size, fe->inflight_fd);
}

static int share_memory(struct fe *fe)
{
	if (!has(fe, FE_PF_CONFIGURE_MEM_SLOTS))
		return fe_set_mem_table(fe);
	if (fe->memory_sent)
		return 0;
	for (uint32_t i = 0; i < fe->num_regions; i++) {
		if (!fe->regions[i].gone)
			TRY(fe_add_mem_reg(fe, i));
	}
	fe->memory_sent = true;
	return 0;
}

int fe_start_rings(struct fe *fe)
{
	bool qemu = fe->opts.style != FE_STYLE_LIBBLKIO;

	TRY(share_inflight(fe));
	if (qemu) {
		for (uint16_t i = 0; i < fe->num_vqs; i++)
			TRY(send_fds(fe, &fe->vqs[i], false));
		TRY(fe_set_features(fe, fe->features));
	}
	TRY(share_memory(fe));
	for (uint16_t i = 0; i < fe->num_vqs; i++)
		TRY(fe_vq_start(&fe->vqs[i], fe->vqs[i].base, !qemu));
	if ((fe->features & FE_BIT(FE_F_PROTOCOL_FEATURES)) &&
	    !(fe->opts.flags & FE_O_NO_ENABLE)) {
		for (uint16_t i = 0; i < fe->num_vqs; i++)
			TRY(fe_vq_enable(&fe->vqs[i], true));
	}
	return add_status(fe, STATUS_DRIVER_OK);
}

int fe_start(struct fe *fe)
{
	TRY(fe_start_negotiate(fe));
	return fe_start_rings(fe);
}

int fe_stop(struct fe *fe)
{
	uint32_t base;

	if (fe->features & FE_BIT(FE_F_PROTOCOL_FEATURES)) {
		for (uint16_t i = 0; i < fe->num_vqs; i++)
			TRY(fe_vq_enable(&fe->vqs[i], false));
	}
	for (uint16_t i = 0; i < fe->num_vqs; i++)
		TRY(fe_vq_stop(&fe->vqs[i], &base));
	return 0;
}

int fe_reconnect(struct fe *fe)
{
	char path[sizeof(fe->path)];

	memcpy(path, fe->path, sizeof(path));
	fe_close(fe);
	TRY(fe_open(fe, path));
	for (uint16_t i = 0; i < fe->num_vqs; i++) {
		if (!fe->vqs[i].packed)
			fe->vqs[i].base = fe_vq_used_idx(&fe->vqs[i]);
	}
	return fe_start(fe);
}
