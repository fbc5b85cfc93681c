/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The vhost-user protocol on the wire (QEMU's docs/interop/vhost-user.rst):
 * framing, file descriptors, and the table of messages with their shapes. What
 * the messages mean is messages.c's.
 */
#ifndef SPINDLE_PROTOCOL_H
#define SPINDLE_PROTOCOL_H

#include "reactor/base.h"
#include "reactor/control.h"

#define VHOST_NAME_MAX 256
#define VHOST_FDS_MAX 8
#define VHOST_PAYLOAD_MAX 4096

enum vhost_request {
	VU_NONE = 0,
	VU_GET_FEATURES = 1,
	VU_SET_FEATURES = 2,
	VU_SET_OWNER = 3,
	VU_RESET_OWNER = 4,
	VU_SET_MEM_TABLE = 5,
	VU_SET_LOG_BASE = 6,
	VU_SET_LOG_FD = 7,
	VU_SET_VRING_NUM = 8,
	VU_SET_VRING_ADDR = 9,
	VU_SET_VRING_BASE = 10,
	VU_GET_VRING_BASE = 11,
	VU_SET_VRING_KICK = 12,
	VU_SET_VRING_CALL = 13,
	VU_SET_VRING_ERR = 14,
	VU_GET_PROTOCOL_FEATURES = 15,
	VU_SET_PROTOCOL_FEATURES = 16,
	VU_GET_QUEUE_NUM = 17,
	VU_SET_VRING_ENABLE = 18,
	VU_SEND_RARP = 19,
	VU_NET_SET_MTU = 20,
	VU_SET_BACKEND_REQ_FD = 21,
	VU_IOTLB_MSG = 22,
	VU_SET_VRING_ENDIAN = 23,
	VU_GET_CONFIG = 24,
	VU_SET_CONFIG = 25,
	VU_CREATE_CRYPTO_SESSION = 26,
	VU_CLOSE_CRYPTO_SESSION = 27,
	VU_POSTCOPY_ADVISE = 28,
	VU_POSTCOPY_LISTEN = 29,
	VU_POSTCOPY_END = 30,
	VU_GET_INFLIGHT_FD = 31,
	VU_SET_INFLIGHT_FD = 32,
	VU_GPU_SET_SOCKET = 33,
	VU_RESET_DEVICE = 34,
	VU_VRING_KICK = 35,
	VU_GET_MAX_MEM_SLOTS = 36,
	VU_ADD_MEM_REG = 37,
	VU_REM_MEM_REG = 38,
	VU_SET_STATUS = 39,
	VU_GET_STATUS = 40,
	VU_GET_VRING_BASE_SKIP_DRAIN = 45,
	VU_REQUEST_MAX
};
/* On the back-end's channel. */
#define VU_BACKEND_CONFIG_CHANGE 2

/* Protocol feature bits. */
#define VU_F_MQ 0
#define VU_F_LOG_SHMFD 1
#define VU_F_REPLY_ACK 3
#define VU_F_BACKEND_REQ 5
#define VU_F_PAGEFAULT 8
#define VU_F_CONFIG 9
#define VU_F_BACKEND_SEND_FD 10
#define VU_F_INFLIGHT_SHMFD 12
#define VU_F_RESET_DEVICE 13
#define VU_F_CONFIGURE_MEM_SLOTS 15
#define VU_F_STATUS 16
#define VU_F_GET_VRING_BASE_INFLIGHT 20
#define VU_F_GET_VRING_BASE_SKIP_DRAIN 23

/* Virtio feature bits that vhost-user took for itself. */
#define VHOST_F_LOG_ALL 26
#define VHOST_F_PROTOCOL_FEATURES 30

#define VU_FLAG_VERSION 0x1
#define VU_FLAG_VERSION_MASK 0x3
#define VU_FLAG_REPLY 0x4
#define VU_FLAG_NEED_REPLY 0x8

struct vu_header {
	uint32_t request, flags, size;
} __attribute__((packed));

struct vu_vring_state {
	uint32_t index, num;
} __attribute__((packed));

struct vu_vring_addr {
	uint32_t index, flags;
	uint64_t desc, used, avail, log;
} __attribute__((packed));

struct vu_mem_region {
	uint64_t gpa, size, uva, offset;
} __attribute__((packed));

struct vu_mem_table {
	uint32_t count, padding;
	struct vu_mem_region regions[8];
} __attribute__((packed));

struct vu_mem_slot {
	uint64_t padding;
	struct vu_mem_region region;
} __attribute__((packed));

struct vu_config {
	uint32_t offset, size, flags;
	uint8_t data[256];
} __attribute__((packed));

struct vu_log {
	uint64_t size, offset;
} __attribute__((packed));

struct vu_inflight {
	uint64_t size, offset;
	uint16_t num_queues, queue_size;
} __attribute__((packed));

/* In the flags of a vring's address. */
#define VU_VRING_LOG 1u

#define VU_VRING_INDEX 0xff
#define VU_VRING_NOFD 0x100

struct vhost_msg {
	struct vu_header header;
	union {
		uint64_t u64;
		struct vu_vring_state state;
		struct vu_vring_addr addr;
		struct vu_mem_table table;
		struct vu_mem_slot slot;
		struct vu_config config;
		struct vu_log log;
		struct vu_inflight inflight;
		uint8_t bytes[VHOST_PAYLOAD_MAX];
	};
	int fds[VHOST_FDS_MAX];
	unsigned int fd_count;
};

struct vhost_session;

/* One row per message. */
struct vhost_msg_row {
	const char *name;
	/* NULL: known, but not offered by this back-end. */
	void (*handler)(struct vhost_session *s, struct vhost_msg *msg);
	uint16_t size_min, size_max;	/* of the payload */
	uint8_t fds_min, fds_max;
	bool replies;			/* has an answer of its own: never acknowledged */
	uint8_t feature;		/* protocol feature it belongs to, VU_NO_FEATURE */
};
#define VU_NO_FEATURE 0xff
/* messages.c's table; NULL for an unknown request. */
const struct vhost_msg_row *vhost_msg_row(uint32_t request);

/*
 * One connection, embedded in its session. Receives a message at a time: header,
 * then payload, so that nothing of the next message, nor its fds, is read early.
 */
struct vhost_conn {
	struct control_fd cf;
	struct vhost_session *session;
	struct vhost_msg msg;
	size_t received;
	bool waiting;	/* a message is being handled: nothing is read */
};

int conn_init(struct vhost_conn *conn, struct vhost_session *s, int fd) CONTROL_ONLY;
void conn_fini(struct vhost_conn *conn) CONTROL_ONLY;
/* Stop reading until conn_resume(): a message is being handled. */
void conn_wait(struct vhost_conn *conn) CONTROL_ONLY;
void conn_resume(struct vhost_conn *conn) CONTROL_ONLY;
/* Answer msg with `size` bytes of its payload. -errno: the connection is lost. */
int conn_reply(struct vhost_conn *conn, struct vhost_msg *msg, uint32_t size) CONTROL_ONLY;
/* The same, and fd with it (-1: none), which stays the caller's. */
int conn_reply_fd(struct vhost_conn *conn, struct vhost_msg *msg, uint32_t size,
		  int fd) CONTROL_ONLY;
/* Take msg->fds[i] away from the message: the caller owns it now. */
int msg_take_fd(struct vhost_msg *msg, unsigned int i);
/* Close what nobody took. */
void msg_close_fds(struct vhost_msg *msg);
/* A message without payload on the back-end's channel; never blocks. -errno. */
int backend_send(int fd, uint32_t request) CONTROL_ONLY;

#endif
