/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the messages of vhost-user mean: one handler each, and the table that
 * names them, with the shape that protocol.c has checked when a handler runs.
 *
 * A handler changes what the session wants and returns; it starts and stops
 * nothing itself. session_message() has the running vqs reconciled and, when all
 * have settled, lets the message's own last step run (the answer of
 * GET_VRING_BASE, say), acknowledges it if that was asked, and reads on.
 *
 * What a well-formed message asks in vain, such as memory that cannot be mapped,
 * is refused: acknowledged with an error where the front end wanted to know, and
 * the session closed.
 */
#include "vhost/vhost_internal.h"

#include "reactor/log.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BIT(n) (1ull << (n))

#define PROTOCOL_FEATURES (BIT(VU_F_MQ) | BIT(VU_F_LOG_SHMFD) | BIT(VU_F_REPLY_ACK) |              \
	BIT(VU_F_BACKEND_REQ) | BIT(VU_F_INFLIGHT_SHMFD) | BIT(VU_F_CONFIG) |                      \
	BIT(VU_F_BACKEND_SEND_FD) | BIT(VU_F_RESET_DEVICE) |                                       \
	BIT(VU_F_CONFIGURE_MEM_SLOTS) | BIT(VU_F_STATUS) |                                         \
	BIT(VU_F_GET_VRING_BASE_INFLIGHT) | BIT(VU_F_GET_VRING_BASE_SKIP_DRAIN))

/* ------- answering ------- */

CONTROL_ONLY static void reply(struct vhost_session *s, uint32_t size)
{
	if (conn_reply(&s->conn, &s->conn.msg, size) < 0)
		session_close(s);
}

/* The message is done with: acknowledge it if that was asked. */
CONTROL_ONLY static void acknowledge(struct vhost_session *s)
{
	struct vhost_msg *msg = &s->conn.msg;
	bool nack = s->settle_nack;

	s->settle_nack = false;
	if (vhost_msg_row(msg->header.request)->replies ||
	    !(msg->header.flags & VU_FLAG_NEED_REPLY) || !session_has_protocol_feature(s, VU_F_REPLY_ACK))
		return;
	msg->u64 = nack;
	reply(s, sizeof(msg->u64));
}

/* The front end asked for something impossible: refuse it, or end the session. */
CONTROL_ONLY static void refuse(struct vhost_session *s, const char *why)
{
	log_limited(LOG_ERROR, &s->controller->limit, "%s: %s: %s", s->name,
		    vhost_msg_row(s->conn.msg.header.request)->name, why);
	s->settle_nack = true;
	acknowledge(s);
	session_close(s);
}

void session_reply(struct vhost_session *s, uint32_t size)
{
	reply(s, size);
}

void session_refuse(struct vhost_session *s, const char *why)
{
	refuse(s, why);
}

/* ------- finding a virtqueue ------- */

CONTROL_ONLY static struct vhost_vq *vvq_get(struct vhost_session *s, uint64_t index)
{
	struct vhost_vq *vvq = session_vq(s, index);

	if (!vvq)
		refuse(s, index >= VHOST_VQS_MAX ? "there is no such virtqueue" : "out of memory");
	return vvq;
}

/* A running vq may still use the old one: it is closed when all has settled. */
static void replace_fd(struct vhost_vq *vvq, int *slot, int fd)
{
	close_fd(&vvq->old_fd);
	if (vvq->vq)
		vvq->old_fd = *slot;
	else
		close_fd(slot);
	*slot = fd;
}

/* ------- messages: features and the like ------- */

CONTROL_ONLY static void get_features(struct vhost_session *s, struct vhost_msg *msg)
{
	msg->u64 = blk_features(s->controller) | BIT(VHOST_F_PROTOCOL_FEATURES);
	reply(s, sizeof(msg->u64));
}

CONTROL_ONLY static void set_features(struct vhost_session *s, struct vhost_msg *msg)
{
	uint64_t offered = blk_features(s->controller) | BIT(VHOST_F_PROTOCOL_FEATURES), changed;

	/* A bdev that went read-only or away meanwhile takes back bits: not their fault. */
	if (msg->u64 & ~offered & ~s->offered) {
		refuse(s, "features that were not offered");
		return;
	}
	changed = msg->u64 ^ s->features;
	s->features = msg->u64;
	/* A migration starts or ends: no reason to stop a ring. */
	if (changed == BIT(VHOST_F_LOG_ALL))
		session_update_vqs(s);
	else if (changed)
		session_want_anew(s);
}

static uint64_t protocol_features(void)
{
	return PROTOCOL_FEATURES | (postcopy_offered() ? BIT(VU_F_PAGEFAULT) : 0);
}

CONTROL_ONLY static void get_protocol_features(struct vhost_session *s, struct vhost_msg *msg)
{
	msg->u64 = protocol_features();
	reply(s, sizeof(msg->u64));
}

CONTROL_ONLY static void set_protocol_features(struct vhost_session *s, struct vhost_msg *msg)
{
	if (msg->u64 & ~protocol_features()) {
		refuse(s, "protocol features that were not offered");
		return;
	}
	/* Acknowledged already by the rules it sets: see acknowledge(). */
	s->protocol_features = msg->u64;
}

CONTROL_ONLY static void set_owner(struct vhost_session *s, struct vhost_msg *msg)
{
	(void)s;
	(void)msg;
}

CONTROL_ONLY static void get_queue_num(struct vhost_session *s, struct vhost_msg *msg)
{
	msg->u64 = VHOST_VQS_MAX;
	reply(s, sizeof(msg->u64));
}

/* Every ring stops; what the front end set up for it is forgotten. */
CONTROL_ONLY static void stop_rings(struct vhost_session *s)
{
	for (unsigned int i = 0; i < s->vq_count; i++) {
		if (!s->vqs[i])
			continue;
		s->vqs[i]->kicked = false;
		s->vqs[i]->enabled = s->vqs[i]->disabled = false;
		s->vqs[i]->failed = s->vqs[i]->broken = false;
		s->vqs[i]->held = s->vqs[i]->waits = s->vqs[i]->refused = false;
	}
}

CONTROL_ONLY static void reset_device(struct vhost_session *s, struct vhost_msg *msg)
{
	(void)msg;
	stop_rings(s);
	s->status = 0;
	/*
	 * writeback stays: QEMU shows the guest its own copy of it across resets,
	 * and stops and continues a guest by a reset. Going back to the default
	 * would silently make a write-through guest's writes volatile.
	 */
}

CONTROL_ONLY static void set_status(struct vhost_session *s, struct vhost_msg *msg)
{
	s->status = (uint8_t)msg->u64;
	if (s->status == 0)
		reset_device(s, msg);
}

CONTROL_ONLY static void get_status(struct vhost_session *s, struct vhost_msg *msg)
{
	msg->u64 = s->status;
	reply(s, sizeof(msg->u64));
}

CONTROL_ONLY static void set_backend_req_fd(struct vhost_session *s, struct vhost_msg *msg)
{
	close_fd(&s->backend_fd);
	s->backend_fd = msg_take_fd(msg, 0);
}

/* ------- messages: configuration space ------- */

CONTROL_ONLY static void get_config(struct vhost_session *s, struct vhost_msg *msg)
{
	uint8_t config[VHOST_CONFIG_SIZE];
	struct vu_config *cfg = &msg->config;

	/* An empty payload says no; the size asked for is the size answered. */
	if (msg->header.size != offsetof(struct vu_config, data) + cfg->size ||
	    !range_ok(cfg->offset, cfg->size, VHOST_CONFIG_SIZE)) {
		reply(s, 0);
		return;
	}
	blk_config(s->controller, s->writeback, config);
	memcpy(cfg->data, config + cfg->offset, cfg->size);
	s->asked_config = true;
	reply(s, msg->header.size);
}

CONTROL_ONLY static void set_config(struct vhost_session *s, struct vhost_msg *msg)
{
	struct vu_config *cfg = &msg->config;

	if (msg->header.size != offsetof(struct vu_config, data) + cfg->size ||
	    !blk_config_write(cfg->offset, cfg->size, cfg->data, &s->writeback)) {
		s->settle_nack = true;
		log_limited(LOG_WARNING, &s->controller->limit,
			    "%s: SET_CONFIG of %u bytes at %u refused: only writeback can be set",
			    s->name, cfg->size, cfg->offset);
		return;
	}
	controller_set_writeback(s->controller, s->writeback);
	session_update_vqs(s);
}

/* ------- messages: memory ------- */

/* Why mem_region_map() refused. */
static const char *map_error(int rc, const char *einval)
{
	return rc == -EINVAL ? einval :
		rc == -EREMOTE ? "its file is neither in memory nor on a disk of this machine" :
		strerror(-rc);
}

/* Map regions[0..count) of a message; all or none. */
CONTROL_ONLY static int map_regions(struct vhost_session *s, const struct vu_mem_region *from,
				    unsigned int count, const struct vhost_msg *msg,
				    struct mem_region **regions)
{
	for (unsigned int i = 0; i < count; i++) {
		int rc = mem_region_map(from[i].gpa, from[i].size, from[i].uva, from[i].offset,
					msg->fds[i], &regions[i]);

		if (rc == 0) {
			rc = postcopy_region(s, regions[i]);
			if (rc < 0)
				i++;
		}
		if (rc < 0) {
			while (i-- > 0)
				mem_region_free(regions[i]);
			return rc;
		}
	}
	return 0;
}

CONTROL_ONLY static void set_memory(struct vhost_session *s, struct guest_mem *mem)
{
	guest_mem_put(s->mem);
	s->mem = mem;
}

CONTROL_ONLY static void set_mem_table(struct vhost_session *s, struct vhost_msg *msg)
{
	struct mem_region *regions[VHOST_FDS_MAX];
	unsigned int count = msg->table.count;
	struct guest_mem *mem;
	int rc;

	if (postcopy_ack(s, msg)) {
		postcopy_acknowledged(s, msg);
		return;
	}
	if (count == 0 || count > VHOST_FDS_MAX || count != msg->fd_count ||
	    msg->header.size < offsetof(struct vu_mem_table, regions) +
	    count * sizeof(struct vu_mem_region)) {
		refuse(s, "number of regions");
		return;
	}
	rc = map_regions(s, msg->table.regions, count, msg, regions);
	if (rc < 0) {
		refuse(s, map_error(rc, "a region lies outside its file"));
		return;
	}
	rc = guest_mem_create(regions, count, &mem);
	if (rc < 0) {
		for (unsigned int i = 0; i < count; i++)
			mem_region_free(regions[i]);
		refuse(s, rc == -EINVAL ? "regions overlap" : strerror(-rc));
		return;
	}
	set_memory(s, mem);
	postcopy_memory(s, true);
	session_want_anew(s);
}

CONTROL_ONLY static void get_max_mem_slots(struct vhost_session *s, struct vhost_msg *msg)
{
	msg->u64 = GUEST_MEM_REGIONS_MAX;
	reply(s, sizeof(msg->u64));
}

/* Whether a message about one region is about one; if not, it has been dealt with. */
CONTROL_ONLY static bool is_region(struct vhost_session *s, struct vhost_msg *msg,
				   unsigned int fds_min)
{
	if (postcopy_ack(s, msg)) {
		postcopy_acknowledged(s, msg);
		return false;
	}
	if (msg->header.size == sizeof(struct vu_mem_slot) && msg->fd_count >= fds_min)
		return true;
	refuse(s, "no region, or no file descriptor with it");
	return false;
}

CONTROL_ONLY static void add_mem_reg(struct vhost_session *s, struct vhost_msg *msg)
{
	struct mem_region *region;
	struct guest_mem *mem;
	int rc;

	if (!is_region(s, msg, 1))
		return;
	rc = map_regions(s, &msg->slot.region, 1, msg, &region);

	if (rc < 0) {
		refuse(s, map_error(rc, "the region lies outside its file"));
		return;
	}
	rc = guest_mem_add(s->mem, region, &mem);
	if (rc < 0) {
		mem_region_free(region);
		refuse(s, rc == -EINVAL ? "the region overlaps another, or there are too many" :
		       strerror(-rc));
		return;
	}
	set_memory(s, mem);
	postcopy_memory(s, true);
	/* All old regions are in the new table: running vqs just take it over. */
	for (unsigned int i = 0; i < s->vq_count; i++) {
		if (s->vqs[i])
			s->vqs[i]->failed = false;
	}
	session_update_vqs(s);
}

CONTROL_ONLY static void rem_mem_reg(struct vhost_session *s, struct vhost_msg *msg)
{
	const struct vu_mem_region *r = &msg->slot.region;
	struct guest_mem *mem;
	int rc;

	if (!is_region(s, msg, 0))
		return;
	rc = guest_mem_remove(s->mem, r->gpa, r->size, r->uva, &mem);

	if (rc < 0) {
		refuse(s, rc == -ENOENT ? "there is no such region" : strerror(-rc));
		return;
	}
	set_memory(s, mem);
	postcopy_memory(s, false);
	session_want_anew(s);
}

/* ------- messages: the dirty log and the in-flight region ------- */

/* A file that is shared with us, as a table of one region. */
CONTROL_ONLY static int map_shared(uint64_t size, uint64_t offset, int fd, struct guest_mem **out)
{
	struct mem_region *region;
	int rc = mem_region_map(0, size, 0, offset, fd, &region);

	if (rc < 0)
		return rc;
	rc = guest_mem_create(&region, 1, out);
	if (rc < 0)
		mem_region_free(region);
	return rc;
}

/* The old log may be unmapped by the front end as soon as this is answered. */
CONTROL_ONLY static void log_base_settled(struct vhost_session *s)
{
	s->conn.msg.u64 = 0;
	reply(s, sizeof(s->conn.msg.u64));
}

CONTROL_ONLY static void set_log_base(struct vhost_session *s, struct vhost_msg *msg)
{
	struct guest_mem *mem;
	int rc = map_shared(msg->log.size, msg->log.offset, msg->fds[0], &mem);

	if (rc < 0) {
		refuse(s, map_error(rc, "the log lies outside its file"));
		return;
	}
	guest_mem_put(s->log_mem);
	s->log_mem = mem;
	session_update_vqs(s);
	s->after = log_base_settled;
}

CONTROL_ONLY static bool inflight_sane(struct vhost_session *s, const struct vu_inflight *in)
{
	if (in->num_queues > 0 && in->num_queues <= VHOST_VQS_MAX && in->queue_size > 0 &&
	    in->queue_size <= VRING_SIZE_MAX)
		return true;
	refuse(s, "number or size of the queues");
	return false;
}

CONTROL_ONLY static void get_inflight_fd(struct vhost_session *s, struct vhost_msg *msg)
{
	const unsigned int seals = F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;
	uint64_t size;
	int fd;

	if (!inflight_sane(s, &msg->inflight))
		return;
	size = msg->inflight.num_queues *
		inflight_size(msg->inflight.queue_size, session_has_feature(s, VRING_F_PACKED));
	fd = memfd_create("spindle-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0 || ftruncate(fd, (off_t)size) < 0 || fcntl(fd, F_ADD_SEALS, seals) < 0) {
		refuse(s, strerror(errno));
		if (fd >= 0)
			close(fd);
		return;
	}
	msg->inflight.size = size;
	msg->inflight.offset = 0;
	if (conn_reply_fd(&s->conn, msg, msg->header.size, fd) < 0)
		session_close(s);
	close(fd);
}

CONTROL_ONLY static void set_inflight_fd(struct vhost_session *s, struct vhost_msg *msg)
{
	const struct vu_inflight *in = &msg->inflight;
	struct guest_mem *mem;
	int rc;

	if (!inflight_sane(s, in))
		return;
	if (in->size < in->num_queues * inflight_size(in->queue_size,
						      session_has_feature(s, VRING_F_PACKED)) ||
	    in->offset % sizeof(uint64_t)) {
		refuse(s, "the region is too small for its queues, or misaligned");
		return;
	}
	rc = map_shared(in->size, in->offset, msg->fds[0], &mem);
	if (rc < 0) {
		refuse(s, map_error(rc, "the region lies outside its file"));
		return;
	}
	guest_mem_put(s->inflight_mem);
	s->inflight_mem = mem;
	s->inflight_queues = in->num_queues;
	s->inflight_num = in->queue_size;
	session_want_anew(s);
}

/* ------- messages: virtqueues ------- */

CONTROL_ONLY static void set_vring_num(struct vhost_session *s, struct vhost_msg *msg)
{
	struct vhost_vq *vvq = vvq_get(s, msg->state.index);
	uint32_t num = msg->state.num;

	if (!vvq)
		return;
	if (num == 0 || num > VRING_SIZE_MAX || (num & (num - 1))) {
		refuse(s, "the size is not a power of two up to 1024");
		return;
	}
	if (vvq->vq && num != vvq->num) {
		refuse(s, "the virtqueue is running");
		return;
	}
	vvq->num = num;
	vvq->failed = false;
}

CONTROL_ONLY static void set_vring_addr(struct vhost_session *s, struct vhost_msg *msg)
{
	struct vhost_vq *vvq = vvq_get(s, msg->addr.index);

	if (!vvq)
		return;
	vvq->log_gpa = msg->addr.flags & VU_VRING_LOG ? msg->addr.log : DIRTY_LOG_NONE;
	vvq->dirty = vvq->vq != NULL;
	/* The log of a running ring is switched by saying the same addresses again. */
	if (vvq->has_addr && vvq->desc_uva == msg->addr.desc && vvq->avail_uva == msg->addr.avail &&
	    vvq->used_uva == msg->addr.used && vvq->vq && !vvq->broken)
		return;
	vvq->desc_uva = msg->addr.desc;
	vvq->avail_uva = msg->addr.avail;
	vvq->used_uva = msg->addr.used;
	vvq->has_addr = vvq->renewed = true;
	vvq->failed = false;
	vvq->generation++;
}

CONTROL_ONLY static void set_vring_base(struct vhost_session *s, struct vhost_msg *msg)
{
	struct vhost_vq *vvq = vvq_get(s, msg->state.index);

	if (!vvq)
		return;
	if (vvq->vq) {
		refuse(s, "the virtqueue is running");
		return;
	}
	if (msg->state.num > UINT16_MAX && !session_has_feature(s, VRING_F_PACKED)) {
		refuse(s, "the index is beyond 16 bits");
		return;
	}
	vvq->base = msg->state.num;
}

CONTROL_ONLY static void vring_base_settled(struct vhost_session *s)
{
	struct vhost_msg *msg = &s->conn.msg;

	s->vqs[s->settle_index]->broken = false;
	s->vqs[s->settle_index]->abandon = false;
	msg->state.index = s->settle_index;
	msg->state.num = s->vqs[s->settle_index]->base;
	reply(s, sizeof(msg->state));
}

CONTROL_ONLY static void stop_ring(struct vhost_session *s, uint64_t index, bool abandon)
{
	struct vhost_vq *vvq = vvq_get(s, index);

	if (!vvq)
		return;
	vvq->abandon = abandon;
	/* What it has to do again is done before it stops: nobody need know of it then. */
	vvq->finish = !abandon && session_vq_is_owing(vvq);
	if (!vvq->finish)
		vvq->kicked = false;
	vvq->failed = false;
	s->settle_index = vvq->index;
	s->after = vring_base_settled;
}

/*
 * QEMU 11.0 and 11.1 have no message of their own for leaving requests in flight, but a
 * protocol feature that allows it for every stop. They reset a device by the same message;
 * and then a read that ends later would write to what the next kernel has in that place. So
 * that feature alone counts while a migration's log is on, which is when it is needed.
 */
CONTROL_ONLY static void get_vring_base(struct vhost_session *s, struct vhost_msg *msg)
{
	stop_ring(s, msg->state.index,
		  session_may_leave_requests(s) &&
		  !session_has_protocol_feature(s, VU_F_GET_VRING_BASE_SKIP_DRAIN) &&
		  s->log_mem && session_has_feature(s, VHOST_F_LOG_ALL));
}

CONTROL_ONLY static void get_vring_base_skip_drain(struct vhost_session *s, struct vhost_msg *msg)
{
	stop_ring(s, msg->state.index, session_may_leave_requests(s));
}

/*
 * Reactors wait for and write to these fds: they must be of a kind that the kernel
 * alone answers for. The link's text tells, without asking any file system.
 */
static bool is_event_fd(int fd)
{
	static const char *const kinds[] = { "anon_inode:[eventfd]", "pipe:[", "socket:[" };
	char path[32], kind[32];
	ssize_t len;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	len = readlink(path, kind, sizeof(kind) - 1);
	if (len < 0)
		return false;
	kind[len] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (!strncmp(kind, kinds[i], strlen(kinds[i])))
			return true;
	}
	return false;
}

/* The fd of a KICK, CALL or ERR message, -1 for none; false: refused. */
CONTROL_ONLY static bool vring_fd(struct vhost_session *s, struct vhost_msg *msg,
				  struct vhost_vq **vvq, int *fd)
{
	bool none = msg->u64 & VU_VRING_NOFD;

	if (msg->fd_count != !none) {
		refuse(s, none ? "a file descriptor where none was announced" :
				 "a file descriptor is missing");
		return false;
	}
	if (!none && !is_event_fd(msg->fds[0])) {
		refuse(s, "the file descriptor is no eventfd, pipe or socket");
		return false;
	}
	*vvq = vvq_get(s, msg->u64 & VU_VRING_INDEX);
	if (!*vvq)
		return false;
	*fd = msg_take_fd(msg, 0);
	return true;
}

CONTROL_ONLY static void set_vring_kick(struct vhost_session *s, struct vhost_msg *msg)
{
	struct vhost_vq *vvq;
	int fd;

	if (!vring_fd(s, msg, &vvq, &fd))
		return;
	replace_fd(vvq, &vvq->kick_fd, fd);
	vvq->kicked = true;
	vvq->failed = vvq->broken = vvq->has_settled = false;
	vvq->renewed = true;
	vvq->generation++;
}

CONTROL_ONLY static void set_vring_call(struct vhost_session *s, struct vhost_msg *msg)
{
	struct vhost_vq *vvq;
	int fd;

	if (!vring_fd(s, msg, &vvq, &fd))
		return;
	replace_fd(vvq, &vvq->call_fd, fd);
	vvq->dirty = vvq->vq != NULL;
}

CONTROL_ONLY static void set_vring_err(struct vhost_session *s, struct vhost_msg *msg)
{
	struct vhost_vq *vvq;
	int fd;

	if (!vring_fd(s, msg, &vvq, &fd))
		return;
	replace_fd(vvq, &vvq->err_fd, fd);
	vvq->dirty = vvq->vq != NULL;
}

CONTROL_ONLY static void enable_settled(struct vhost_session *s)
{
	if (s->vqs[s->settle_index]->enabled && s->vqs[s->settle_index]->vq)
		session_announce_config(s);
}

CONTROL_ONLY static void set_vring_enable(struct vhost_session *s, struct vhost_msg *msg)
{
	struct vhost_vq *vvq = vvq_get(s, msg->state.index);

	if (!vvq)
		return;
	vvq->enabled = msg->state.num != 0;
	vvq->dirty |= vvq->vq && vvq->disabled == vvq->enabled;
	vvq->disabled = !vvq->enabled;
	s->settle_index = vvq->index;
	s->after = enable_settled;
}

/* ------- the table ------- */

#define STATE sizeof(struct vu_vring_state)
#define U64 sizeof(uint64_t)
#define ANY VU_NO_FEATURE
/* QEMU's is padded to 24. */
#define INFLIGHT sizeof(struct vu_inflight)
#define TABLE_MIN (offsetof(struct vu_mem_table, regions))
#define CONFIG_MIN (offsetof(struct vu_config, data))

/* name, handler, payload min, max, fds min, max, replies, protocol feature */
static const struct vhost_msg_row rows[VU_REQUEST_MAX] = {
	/* QEMU's confirmation in postcopy when its memory has not changed. */
	[VU_NONE] = { "NONE", postcopy_acknowledged, U64, U64, 0, 0, false, VU_F_PAGEFAULT },
	[VU_GET_FEATURES] = { "GET_FEATURES", get_features, 0, 0, 0, 0, true, ANY },
	[VU_SET_FEATURES] = { "SET_FEATURES", set_features, U64, U64, 0, 0, false, ANY },
	[VU_SET_OWNER] = { "SET_OWNER", set_owner, 0, 0, 0, 0, false, ANY },
	[VU_RESET_OWNER] = { "RESET_OWNER", reset_device, 0, 0, 0, 0, false, ANY },
	[VU_SET_MEM_TABLE] = { "SET_MEM_TABLE", set_mem_table, TABLE_MIN,
			       sizeof(struct vu_mem_table), 0, 8, false, ANY },
	[VU_SET_LOG_BASE] = { "SET_LOG_BASE", set_log_base, sizeof(struct vu_log),
			      sizeof(struct vu_log), 1, 1, true, VU_F_LOG_SHMFD },
	[VU_SET_LOG_FD] = { "SET_LOG_FD", NULL, 0, U64, 0, 1, false, VU_F_LOG_SHMFD },
	[VU_SET_VRING_NUM] = { "SET_VRING_NUM", set_vring_num, STATE, STATE, 0, 0, false, ANY },
	[VU_SET_VRING_ADDR] = { "SET_VRING_ADDR", set_vring_addr, sizeof(struct vu_vring_addr),
				sizeof(struct vu_vring_addr), 0, 0, false, ANY },
	[VU_SET_VRING_BASE] = { "SET_VRING_BASE", set_vring_base, STATE, STATE, 0, 0, false, ANY },
	[VU_GET_VRING_BASE] = { "GET_VRING_BASE", get_vring_base, STATE, STATE, 0, 0, true, ANY },
	[VU_SET_VRING_KICK] = { "SET_VRING_KICK", set_vring_kick, U64, U64, 0, 1, false, ANY },
	[VU_SET_VRING_CALL] = { "SET_VRING_CALL", set_vring_call, U64, U64, 0, 1, false, ANY },
	[VU_SET_VRING_ERR] = { "SET_VRING_ERR", set_vring_err, U64, U64, 0, 1, false, ANY },
	[VU_GET_PROTOCOL_FEATURES] = { "GET_PROTOCOL_FEATURES", get_protocol_features, 0, 0, 0, 0,
				       true, ANY },
	[VU_SET_PROTOCOL_FEATURES] = { "SET_PROTOCOL_FEATURES", set_protocol_features, U64, U64, 0,
				       0, false, ANY },
	[VU_GET_QUEUE_NUM] = { "GET_QUEUE_NUM", get_queue_num, 0, 0, 0, 0, true, VU_F_MQ },
	[VU_SET_VRING_ENABLE] = { "SET_VRING_ENABLE", set_vring_enable, STATE, STATE, 0, 0, false,
				  ANY },
	[VU_SEND_RARP] = { "SEND_RARP", NULL, 0, U64, 0, 0, false, ANY },
	[VU_NET_SET_MTU] = { "NET_SET_MTU", NULL, 0, U64, 0, 0, false, ANY },
	[VU_SET_BACKEND_REQ_FD] = { "SET_BACKEND_REQ_FD", set_backend_req_fd, 0, U64, 1, 1, false,
				    VU_F_BACKEND_REQ },
	[VU_IOTLB_MSG] = { "IOTLB_MSG", NULL, 0, 40, 0, 0, false, ANY },
	[VU_SET_VRING_ENDIAN] = { "SET_VRING_ENDIAN", NULL, 0, STATE, 0, 0, false, ANY },
	[VU_GET_CONFIG] = { "GET_CONFIG", get_config, CONFIG_MIN, sizeof(struct vu_config), 0, 0,
			    true, VU_F_CONFIG },
	[VU_SET_CONFIG] = { "SET_CONFIG", set_config, CONFIG_MIN, sizeof(struct vu_config), 0, 0,
			    false, VU_F_CONFIG },
	[VU_POSTCOPY_ADVISE] = { "POSTCOPY_ADVISE", postcopy_advise, 0, U64, 0, 0, true,
				 VU_F_PAGEFAULT },
	[VU_POSTCOPY_LISTEN] = { "POSTCOPY_LISTEN", postcopy_listen, 0, U64, 0, 0, false,
				 VU_F_PAGEFAULT },
	[VU_POSTCOPY_END] = { "POSTCOPY_END", postcopy_end, 0, U64, 0, 0, true, VU_F_PAGEFAULT },
	[VU_GET_INFLIGHT_FD] = { "GET_INFLIGHT_FD", get_inflight_fd, INFLIGHT, 24, 0, 0, true,
				 VU_F_INFLIGHT_SHMFD },
	[VU_SET_INFLIGHT_FD] = { "SET_INFLIGHT_FD", set_inflight_fd, INFLIGHT, 24, 1, 1, false,
				 VU_F_INFLIGHT_SHMFD },
	[VU_RESET_DEVICE] = { "RESET_DEVICE", reset_device, 0, 0, 0, 0, false,
			      VU_F_RESET_DEVICE },
	[VU_GET_MAX_MEM_SLOTS] = { "GET_MAX_MEM_SLOTS", get_max_mem_slots, 0, 0, 0, 0, true,
				   VU_F_CONFIGURE_MEM_SLOTS },
	[VU_ADD_MEM_REG] = { "ADD_MEM_REG", add_mem_reg, U64,
			     sizeof(struct vu_mem_slot), 0, 1, false, VU_F_CONFIGURE_MEM_SLOTS },
	[VU_REM_MEM_REG] = { "REM_MEM_REG", rem_mem_reg, U64,
			     sizeof(struct vu_mem_slot), 0, 1, false, VU_F_CONFIGURE_MEM_SLOTS },
	[VU_SET_STATUS] = { "SET_STATUS", set_status, U64, U64, 0, 0, false, VU_F_STATUS },
	[VU_GET_STATUS] = { "GET_STATUS", get_status, 0, U64, 0, 0, true, VU_F_STATUS },
	[VU_GET_VRING_BASE_SKIP_DRAIN] = { "GET_VRING_BASE_SKIP_DRAIN", get_vring_base_skip_drain,
					   STATE, STATE, 0, 0, true,
					   VU_F_GET_VRING_BASE_SKIP_DRAIN },
};

const struct vhost_msg_row *vhost_msg_row(uint32_t request)
{
	return request < VU_REQUEST_MAX && rows[request].name ? &rows[request] : NULL;
}

/* ------- handling one ------- */

CONTROL_ONLY static void message_settled(struct vhost_session *s)
{
	void (*then)(struct vhost_session *s) = s->after;

	s->after = NULL;
	/* A reply that fails closes the session: not under our feet. */
	s->busy = true;
	if (then)
		then(s);
	if (!s->closing)
		acknowledge(s);
	s->busy = false;
	if (s->closing)
		session_reconcile(s);
	else
		conn_resume(&s->conn);
}

void session_message(struct vhost_session *s, struct vhost_msg *msg)
{
	s->busy = true;
	vhost_msg_row(msg->header.request)->handler(s, msg);
	s->busy = false;
	msg_close_fds(msg);
	/* The handler may have found reason to end the session. */
	if (s->closing) {
		session_reconcile(s);
		return;
	}
	s->settled = message_settled;
	conn_wait(&s->conn);
	session_reconcile(s);
}
