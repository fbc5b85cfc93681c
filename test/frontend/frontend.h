/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A vhost-user-blk FRONT END: the side of the virtual machine, without the virtual machine.
 *
 * Layers, each usable without the one above it:
 *   sock.c    bytes, messages and file descriptors on the socket; anything may be sent
 *   mem.c     guest memory: regions at any guest address over memfd, hugetlbfs or files
 *   client.c  the protocol: one function per message
 *   start.c   connect, whole start-up sequences, stop, reconnect
 *   vq.c      the driver's side of a virtqueue, with raw access to every ring field;
 *             vq_packed.c where it is a packed one
 *   log.c     the dirty log of a migration
 *   blk.c     virtio-blk requests
 *
 * In short:
 *	struct fe_opts o; fe_opts_init(&o); o.num_queues = 4; o.flags |= FE_O_INDIRECT;
 *	struct fe *fe = fe_connect("/var/tmp/vhost.1", &o, &err);
 *	status = fe_rw(fe_queue(fe, 0), false, sector, buf, len, 1000);
 *	fe_destroy(fe);
 *
 * Contract of all functions: 0 (or a count, a status byte, a head) on success, -errno on failure.
 * Nothing waits longer than its timeout (opts.timeout_ms where none is passed). A struct fe and
 * its queues belong to one thread at a time; different queues of one struct fe may be driven by
 * different threads as long as none of them sends messages or allocates guest memory meanwhile.
 * "gpa" is an address in the guest, "uva" the address of the same byte as told to the back end.
 */
#ifndef FE_FRONTEND_H
#define FE_FRONTEND_H

#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FE_MAX_QUEUES 256
#define FE_MAX_REGIONS 2048
#define FE_MAX_FDS 253		/* the kernel's limit for one SCM_RIGHTS message */
#define FE_MAX_PAYLOAD 4096	/* of a message received */
#define FE_NO_GPA UINT64_MAX

/* Requests from the front end. */
enum fe_request {
	FE_GET_FEATURES = 1,
	FE_SET_FEATURES = 2,
	FE_SET_OWNER = 3,
	FE_RESET_OWNER = 4,
	FE_SET_MEM_TABLE = 5,
	FE_SET_LOG_BASE = 6,
	FE_SET_LOG_FD = 7,
	FE_SET_VRING_NUM = 8,
	FE_SET_VRING_ADDR = 9,
	FE_SET_VRING_BASE = 10,
	FE_GET_VRING_BASE = 11,
	FE_SET_VRING_KICK = 12,
	FE_SET_VRING_CALL = 13,
	FE_SET_VRING_ERR = 14,
	FE_GET_PROTOCOL_FEATURES = 15,
	FE_SET_PROTOCOL_FEATURES = 16,
	FE_GET_QUEUE_NUM = 17,
	FE_SET_VRING_ENABLE = 18,
	FE_SET_BACKEND_REQ_FD = 21,
	FE_GET_CONFIG = 24,
	FE_SET_CONFIG = 25,
	FE_GET_INFLIGHT_FD = 31,
	FE_SET_INFLIGHT_FD = 32,
	FE_RESET_DEVICE = 34,
	FE_GET_MAX_MEM_SLOTS = 36,
	FE_ADD_MEM_REG = 37,
	FE_REM_MEM_REG = 38,
	FE_SET_STATUS = 39,
	FE_GET_STATUS = 40,
};

/* Requests from the back end, on its own channel. */
enum fe_backend_request {
	FE_BACKEND_CONFIG_CHANGE = 2,
	FE_BACKEND_VRING_CALL = 4,
	FE_BACKEND_VRING_ERR = 5,
};

/* The flags word of a message. */
#define FE_VERSION 0x1u
#define FE_REPLY 0x4u
#define FE_NEED_REPLY 0x8u

/* Protocol feature bits. */
enum fe_protocol_feature {
	FE_PF_MQ = 0,
	FE_PF_LOG_SHMFD = 1,
	FE_PF_REPLY_ACK = 3,
	FE_PF_BACKEND_REQ = 5,
	FE_PF_CONFIG = 9,
	FE_PF_BACKEND_SEND_FD = 10,
	FE_PF_INFLIGHT_SHMFD = 12,
	FE_PF_RESET_DEVICE = 13,
	FE_PF_INBAND_NOTIFICATIONS = 14,
	FE_PF_CONFIGURE_MEM_SLOTS = 15,
	FE_PF_STATUS = 16,
	FE_PF_GET_VRING_BASE_INFLIGHT = 20,
	FE_PF_GET_VRING_BASE_SKIP_DRAIN = 23,
};

/* Virtio feature bits beside those of <linux/virtio_blk.h>. */
#define FE_F_NOTIFY_ON_EMPTY 24
#define FE_F_LOG_ALL 26
#define FE_F_ANY_LAYOUT 27
#define FE_F_INDIRECT 28
#define FE_F_EVENT_IDX 29
#define FE_F_PROTOCOL_FEATURES 30
#define FE_F_VERSION_1 32
#define FE_F_RING_PACKED 34
#define FE_BIT(n) (UINT64_C(1) << (n))

/* ---- guest memory ---- */

enum fe_backing {
	FE_MEM_MEMFD = 0,
	FE_MEM_MEMFD_HUGE = 1,	/* memfd on 2 MiB pages */
	FE_MEM_FILE = 2,	/* a new file made in the directory `dir`: disk, /dev/shm, hugetlbfs */
	FE_MEM_SHARE = 3,	/* the file of region number `share`, at another offset */
	FE_MEM_FD = 4,		/* the file open as `share`, which stays the caller's */
};

struct fe_region_spec {
	uint64_t gpa;
	uint64_t size;
	uint64_t mmap_offset;	/* where in the file the region starts; any alignment */
	uint64_t uva;		/* what to tell the back end; 0: our own mapping's address */
	const char *dir;	/* FE_MEM_FILE */
	int32_t backing;	/* enum fe_backing */
	int32_t share;		/* FE_MEM_SHARE, FE_MEM_FD */
};

struct fe_region {
	uint64_t gpa, size, mmap_offset, uva;
	uint8_t *host;		/* our address of gpa */
	uint8_t *map;		/* what was mapped, of map_len bytes */
	size_t map_len;
	uint64_t next;		/* the allocator's next free offset */
	int fd;
	bool gone;		/* removed: its slot number stays used */
};

/* ---- options ---- */

enum fe_style {
	FE_STYLE_QEMU = 0,	/* QEMU 7.2's start: NEED_REPLY on memory messages only */
	FE_STYLE_QEMU11 = 1,	/* the same with NEED_REPLY on CALL, ERR, KICK and ENABLE */
	FE_STYLE_LIBBLKIO = 2,	/* SET_FEATURES first, NEED_REPLY on everything after REPLY_ACK */
};

#define FE_O_INDIRECT 0x1u		/* use indirect descriptors when the device offers them */
#define FE_O_EVENT_IDX 0x2u		/* use the event index when the device offers it */
#define FE_O_LEGACY 0x4u		/* do not take VERSION_1 */
#define FE_O_MEM_TABLE 0x8u		/* SET_MEM_TABLE even where ADD_MEM_REG is offered */
#define FE_O_NO_KICK_FD 0x10u		/* SET_VRING_KICK with bit 8: the device polls */
#define FE_O_NO_CALL_FD 0x20u		/* SET_VRING_CALL with bit 8: we poll */
#define FE_O_NO_BACKEND_CHANNEL 0x40u	/* do not take BACKEND_REQ */
#define FE_O_NO_INFLIGHT 0x80u		/* do not take INFLIGHT_SHMFD */
#define FE_O_NO_START 0x100u		/* fe_connect: memory and socket, but no message yet */
#define FE_O_PF_NEED_REPLY 0x200u	/* SET_PROTOCOL_FEATURES itself asks for a reply */
#define FE_O_NO_ENABLE 0x400u		/* fe_start leaves out SET_VRING_ENABLE */
#define FE_O_STATUS 0x800u		/* take STATUS if offered and walk through the status bits */
#define FE_O_NO_PROTOCOL_FEATURES 0x1000u	/* a client of before bit 30: rings run at the kick */
#define FE_O_PACKED 0x2000u		/* packed rings when the device offers them */
#define FE_O_BASE_INFLIGHT 0x4000u	/* take GET_VRING_BASE_INFLIGHT, as QEMU 11.0 may */
#define FE_O_SKIP_DRAIN 0x8000u		/* and GET_VRING_BASE_SKIP_DRAIN, as later ones may */

struct fe_opts {
	uint32_t style;			/* enum fe_style */
	uint32_t flags;			/* FE_O_* */
	uint16_t num_queues;
	uint16_t queue_size;
	uint32_t timeout_ms;		/* for each answer of the back end */
	uint32_t config_size;		/* asked of GET_CONFIG at start; 0: none */
	uint32_t seg_size;		/* fe_rw cuts its data into segments of this; 0: one */
	uint64_t features_off;		/* virtio feature bits never taken */
	uint64_t features_force;	/* bits set although not offered */
	uint64_t protocol_off;		/* protocol feature bits never taken */
	uint64_t mem_size;		/* the default region: at gpa 0, of this size */
	int32_t backing;		/* and on this */
	int32_t ring_region;		/* rings go into this region; -1: wherever there is room */
	int32_t data_region;		/* fe_rw's buffers; -1 likewise */
	uint32_t num_regions;
	const char *dir;		/* for FE_MEM_FILE */
	const struct fe_region_spec *regions;	/* in place of the default region */
};

/* ---- virtqueues ---- */

#define FE_SEG_WRITE 1u		/* the device writes this piece */
#define FE_PACKED_START 0x80008000u	/* the base of a packed ring never used */
#define FE_ADDR_LOG 1u			/* a flag of SET_VRING_ADDR */

struct fe_seg {
	uint64_t gpa;
	uint32_t len;
	uint32_t flags;
};

struct fe_completion {
	uint32_t head;
	uint32_t len;		/* as written in the used ring */
	uint64_t cookie;
	int32_t status;		/* the status byte, -1 where the chain had no known one */
	uint32_t pad;
};

struct fe_slot {		/* the driver's memory of one head */
	uint64_t cookie;
	uint64_t status_gpa;
	uint64_t table_gpa;	/* its indirect table, kept for reuse */
	uint32_t table_cap;
	uint16_t num_desc;	/* descriptors to give back; 0 for a raw push */
	bool busy;
};

struct fe_vq {
	struct fe *fe;
	uint16_t index;
	uint16_t size;		/* a power of two unless a test says otherwise */
	uint16_t avail_idx;	/* what we wrote last; packed: the next place to write */
	uint16_t kicked_idx;	/* avail_idx at the last kick decision */
	uint16_t last_used;	/* packed: the next place to look at */
	uint16_t free_head;	/* packed: of the free buffer ids */
	uint16_t num_free;	/* descriptors */
	uint16_t in_flight;
	uint32_t base;		/* where to start from: the last GET_VRING_BASE */
	bool event_idx;
	bool indirect;
	bool started;		/* KICK was sent and GET_VRING_BASE was not */
	bool enabled;
	bool log;		/* SET_VRING_ADDR asks for its writes to be logged */
	/* Packed rings. */
	bool packed;
	bool avail_wrap, used_wrap;
	bool held;		/* descriptors are written but for the flags of the first */
	uint16_t held_at, held_flags;
	uint16_t added;		/* descriptors since the last kick decision */
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	uint64_t desc_gpa, avail_gpa, used_gpa;
	uint64_t scratch_gpa;	/* 64 bytes a head: the header, the status byte at 16 */
	uint8_t *scratch;
	uint16_t *next_free;	/* our own list: the device cannot touch it */
	struct fe_slot *slots;
	int kick_fd, call_fd, err_fd;
	uint64_t kicks, calls;	/* eventfd writes and wake-ups seen */
	uint64_t bounce_gpa, bounce_len;
};

struct fe_msg {
	uint32_t request, flags, size;
	uint32_t num_fds;
	int fds[FE_MAX_FDS];
	uint8_t payload[FE_MAX_PAYLOAD];
};

struct fe {
	struct fe_opts opts;
	int sock;
	int backend_sock;	/* our end of the back end's own channel */
	uint64_t offered, features;
	uint64_t offered_protocol, protocol;
	uint64_t max_queues, max_mem_slots;
	uint64_t config_changes;	/* CONFIG_CHANGE messages seen */
	uint64_t backend_messages;	/* all messages seen on that channel */
	struct fe_region *regions;
	uint32_t num_regions;
	bool memory_sent;
	struct fe_vq *vqs;
	uint16_t num_vqs;
	uint32_t config_len;
	uint8_t config[256];
	int inflight_fd;
	uint64_t inflight_size, inflight_offset;
	int log_fd;
	uint64_t log_size;	/* bytes; 0: none */
	uint8_t *log;
	char path[108];
};

/* ---- life (start.c) ---- */

void fe_opts_init(struct fe_opts *opts);
/* Sizes of fe_opts, fe_region_spec, fe_region, fe_vq, fe_msg, fe (0..5): for bindings to check. */
size_t fe_sizeof(unsigned int which);
/* Guest memory and rings, no socket. NULL with *err set to -errno on failure. */
struct fe *fe_create(const struct fe_opts *opts, int *err);
/* fe_create, fe_open and (unless FE_O_NO_START) fe_start. */
struct fe *fe_connect(const char *path, const struct fe_opts *opts, int *err);
int fe_open(struct fe *fe, const char *path);
/* Take over a connected socket, such as one end of a socketpair. */
void fe_adopt(struct fe *fe, int sock);
/* The whole start sequence of opts.style, rings running at its end. */
int fe_start(struct fe *fe);
int fe_start_negotiate(struct fe *fe);	/* its first half: up to the features */
int fe_start_rings(struct fe *fe);	/* its second: memory, rings, enable */
/* As QEMU stops a device: ENABLE 0 and GET_VRING_BASE for each ring. */
int fe_stop(struct fe *fe);
/* Close and open again as QEMU does, no GET_CONFIG. The bases are the used indices; of packed rings
 * nobody knows them then, so it is what they were when the ring was started. */
int fe_reconnect(struct fe *fe);
void fe_close(struct fe *fe);	/* the socket only: as if the VM were killed */
void fe_destroy(struct fe *fe);
struct fe_vq *fe_queue(struct fe *fe, unsigned int index);

/* ---- bytes and messages (sock.c) ---- */

/* Exactly these bytes, with these fds on the first: half messages, garbage. */
int fe_send_bytes(struct fe *fe, const void *buf, size_t len, const int *fds, unsigned int num_fds);
/* A header with any `size`, followed by `len` bytes of payload whatever `size` says. */
int fe_send_raw(struct fe *fe, uint32_t request, uint32_t flags, uint32_t size,
		const void *payload, size_t len, const int *fds, unsigned int num_fds);
/* One message; its fds are the caller's to close (fe_msg_close). -EPIPE: peer closed. */
int fe_recv_msg(struct fe *fe, struct fe_msg *msg, int timeout_ms);
void fe_msg_close(struct fe_msg *msg);
/* 1 when the peer has closed the connection, 0 when it has not within the time.
 * Bytes still unread are thrown away. */
int fe_closed(struct fe *fe, int timeout_ms);
/* 1 when nothing arrives for that long, 0 when something did: finds answers sent twice. */
int fe_quiet(struct fe *fe, int ms);
/* One message of the back end's channel: counted, acknowledged if it asks. */
int fe_backend_recv(struct fe *fe, struct fe_msg *msg, int timeout_ms);
/* Wait until config_changes reaches `count`. */
int fe_wait_config_change(struct fe *fe, uint64_t count, int timeout_ms);
/* A well-formed message; NEED_REPLY and the wait for the ack as the style has it. A back end's
 * refusal is -EREMOTEIO. */
int fe_send(struct fe *fe, uint32_t request, const void *payload, uint32_t len, const int *fds,
	    unsigned int num_fds);
/* The same for a message with an answer of its own. */
int fe_call(struct fe *fe, uint32_t request, const void *payload, uint32_t len, const int *fds,
	    unsigned int num_fds, struct fe_msg *reply);
uint64_t fe_now_ns(void);

/* ---- one function per message (client.c) ---- */

int fe_get_u64(struct fe *fe, uint32_t request, uint64_t *value);
int fe_set_u64(struct fe *fe, uint32_t request, uint64_t value);
int fe_get_features(struct fe *fe, uint64_t *value);
int fe_set_features(struct fe *fe, uint64_t value);
int fe_get_protocol_features(struct fe *fe, uint64_t *value);
int fe_set_protocol_features(struct fe *fe, uint64_t value);
int fe_set_owner(struct fe *fe);
int fe_reset_owner(struct fe *fe);
int fe_reset_device(struct fe *fe);
int fe_get_status(struct fe *fe, uint64_t *value);
int fe_set_status(struct fe *fe, uint64_t value);
int fe_get_config(struct fe *fe, uint32_t offset, uint32_t size, void *buf);
int fe_set_config(struct fe *fe, uint32_t offset, uint32_t size, uint32_t flags, const void *buf);
int fe_set_mem_table(struct fe *fe);
int fe_add_mem_reg(struct fe *fe, unsigned int region);
int fe_rem_mem_reg(struct fe *fe, unsigned int region, bool with_fd);
int fe_set_vring_num(struct fe *fe, uint32_t index, uint32_t num);
int fe_set_vring_base(struct fe *fe, uint32_t index, uint32_t base);
int fe_get_vring_base(struct fe *fe, uint32_t index, uint32_t *base);
/* Addresses as the back end sees them (uva), log a gpa. */
int fe_set_vring_addr(struct fe *fe, uint32_t index, uint32_t flags, uint64_t desc, uint64_t used,
		      uint64_t avail, uint64_t log);
int fe_set_vring_enable(struct fe *fe, uint32_t index, uint32_t on);
/* KICK, CALL or ERR: fd < 0 sends bit 8 and no fd. */
int fe_set_vring_fd(struct fe *fe, uint32_t request, uint32_t index, int fd);
int fe_set_backend_req_fd(struct fe *fe);
int fe_set_log_base(struct fe *fe, uint64_t size, uint64_t offset, int fd);
int fe_set_log_fd(struct fe *fe, int fd);
int fe_get_inflight_fd(struct fe *fe, uint16_t queues, uint16_t size, uint64_t *mmap_size,
		       uint64_t *mmap_offset, int *fd);
int fe_set_inflight_fd(struct fe *fe, uint64_t mmap_size, uint64_t mmap_offset, uint16_t queues,
		       uint16_t size, int fd);
uint64_t fe_capacity(const struct fe *fe);	/* sectors, of the config read last */

/* ---- guest memory (mem.c) ---- */

/* Add a region (its number is returned); the back end is told by fe_add_mem_reg. */
int fe_mem_add(struct fe *fe, const struct fe_region_spec *spec);
/* Unmap it here; the back end is told by fe_rem_mem_reg, before. */
void fe_mem_del(struct fe *fe, unsigned int region);
void fe_mem_destroy(struct fe *fe);
/* Our address of a guest range that lies in one region; NULL if it does not. */
void *fe_gpa(const struct fe *fe, uint64_t gpa, uint64_t len);
uint64_t fe_gpa_to_uva(const struct fe *fe, uint64_t gpa);
/* Copies that may cross from region to region. */
int fe_mem_write(struct fe *fe, uint64_t gpa, const void *buf, uint64_t len);
int fe_mem_read(const struct fe *fe, uint64_t gpa, void *buf, uint64_t len);
/* A piece of guest memory (region < 0: any); FE_NO_GPA when full. Freed by fe_mem_release. */
uint64_t fe_alloc(struct fe *fe, int region, uint64_t len, uint64_t align);
uint64_t fe_mem_mark(const struct fe *fe, unsigned int region);
void fe_mem_release(struct fe *fe, unsigned int region, uint64_t mark);

/* ---- virtqueues (vq.c) ---- */

/* A full fence. gcc cannot instrument one for TSan and says so; there a locked exchange orders
 * as much on x86. */
static inline void fe_fence(void)
{
#ifdef __SANITIZE_THREAD__
	static int word;

	__atomic_exchange_n(&word, 0, __ATOMIC_SEQ_CST);
#else
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

int fe_vq_init(struct fe *fe, struct fe_vq *vq, uint16_t index, uint16_t size);
void fe_vq_fini(struct fe_vq *vq);
/* Empty rings, all heads free, as after a device reset. */
void fe_vq_reset(struct fe_vq *vq);
/* Packed or split, from an empty ring; nothing when it is that already. */
void fe_vq_use_packed(struct fe_vq *vq, bool on);
/* NUM, BASE, ADDR, KICK (and CALL when with_call). */
int fe_vq_start(struct fe_vq *vq, uint32_t base, bool with_call);
int fe_vq_send_addr(struct fe_vq *vq);	/* SET_VRING_ADDR, as vq->log has it */
int fe_vq_enable(struct fe_vq *vq, bool on);
int fe_vq_stop(struct fe_vq *vq, uint32_t *base);	/* GET_VRING_BASE */
int fe_vq_swap_call(struct fe_vq *vq);			/* a new call eventfd */
int fe_vq_swap_kick(struct fe_vq *vq);

#define FE_HOW_DIRECT 0x1u	/* never an indirect table */
#define FE_HOW_INDIRECT 0x2u	/* always one */
#define FE_HOW_NO_PUBLISH 0x4u	/* avail->idx stays: fe_publish does a batch */
#define FE_HOW_NO_KICK 0x8u
#define FE_HOW_HDR_PIECES 0x10u	/* fe_submit: the header in pieces of 1, 7 and 8 bytes */
#define FE_HOW_STATUS_TAIL 0x20u	/* the status byte follows the last byte of the data */
#define FE_HOW_HDR_JOINED 0x40u	/* the header is the 16 bytes before the data's first */

/* Queue a chain as it stands. table_gpa: FE_NO_GPA, or where to put the indirect table.
 * Returns the head; -ENOSPC when descriptors are short. Kicks unless told not to. */
int fe_submit_chain(struct fe_vq *vq, const struct fe_seg *segs, unsigned int num,
		    uint64_t table_gpa, uint64_t status_gpa, uint32_t how, uint64_t cookie);
void fe_publish(struct fe_vq *vq);
/* Signals the eventfd if the device wants it (1), or always when `force`. */
int fe_kick(struct fe_vq *vq, bool force);
/* Completions so far: a count, or -EPROTO when the device's used ring makes no sense. */
int fe_poll(struct fe_vq *vq, struct fe_completion *out, unsigned int max);
/* At least one, or -ETIMEDOUT, -EPIPE (connection closed), -EPROTO. */
int fe_wait(struct fe_vq *vq, struct fe_completion *out, unsigned int max, int timeout_ms);
/* Before sleeping on the call eventfd. True: there are completions already. */
bool fe_ask_call(struct fe_vq *vq);
/* The error eventfd: how often signalled since last asked; 0 none within the time. */
int fe_vq_error(struct fe_vq *vq, int timeout_ms);
int fe_vq_call_pending(struct fe_vq *vq, int timeout_ms);	/* the same for the call eventfd */

/* Raw ring fields. Slots and positions wrap at the queue's size. */
void fe_vq_set_desc(struct fe_vq *vq, uint32_t slot, uint64_t addr, uint32_t len, uint16_t flags,
		    uint16_t next);
void fe_vq_set_avail(struct fe_vq *vq, uint32_t pos, uint16_t head);
void fe_vq_set_avail_idx(struct fe_vq *vq, uint16_t idx);
void fe_vq_set_avail_flags(struct fe_vq *vq, uint16_t flags);
void fe_vq_set_used_event(struct fe_vq *vq, uint16_t idx);
uint16_t fe_vq_avail_event(const struct fe_vq *vq);
uint16_t fe_vq_used_flags(const struct fe_vq *vq);
uint16_t fe_vq_used_idx(const struct fe_vq *vq);
void fe_vq_used_elem(const struct fe_vq *vq, uint32_t pos, uint32_t *id, uint32_t *len);
/* The same of a packed ring. Flags are stored last. */
void fe_vq_set_packed(struct fe_vq *vq, uint32_t pos, uint64_t addr, uint32_t len, uint16_t id,
		      uint16_t flags);
void fe_vq_get_packed(const struct fe_vq *vq, uint32_t pos, struct vring_packed_desc *out);
/* The two flags of a descriptor available in the lap of this wrap counter. */
uint16_t fe_vq_avail_bits(bool wrap);
void fe_vq_set_driver_event(struct fe_vq *vq, uint16_t off_wrap, uint16_t flags);
uint32_t fe_vq_device_event(const struct fe_vq *vq);	/* flags << 16 | off_wrap */
/* Make a chain built with fe_vq_set_desc available: next avail entry, index, kick. */
int fe_vq_push_head(struct fe_vq *vq, uint16_t head, uint64_t status_gpa, uint32_t how);
/* One entry of an indirect table anywhere in guest memory. */
int fe_write_desc(struct fe *fe, uint64_t gpa, uint64_t addr, uint32_t len, uint16_t flags,
		  uint16_t next);

/* ---- the dirty log (log.c) ---- */

/* As QEMU begins a migration: a log over all of guest memory, SET_LOG_BASE, then LOG_ALL, then
 * SET_VRING_ADDR with the log flag for each ring. Rings may be running. */
int fe_log_start(struct fe *fe);
int fe_log_stop(struct fe *fe);		/* LOG_ALL and the flags off again; the log stays */
/* Parts of that: the memory alone, of `size` bytes (0: enough), and the messages alone. */
int fe_log_create(struct fe *fe, uint64_t size);
int fe_log_send_base(struct fe *fe);
int fe_log_set(struct fe *fe, bool on, bool rings);
/* Move log_size bytes of bits out, each word atomically: what is set meanwhile is not lost. */
void fe_log_take(struct fe *fe, uint8_t *out);
void fe_log_destroy(struct fe *fe);

/* ---- virtio-blk (blk.c) ---- */

struct fe_range {	/* DISCARD and WRITE_ZEROES, as on the wire */
	uint64_t sector;
	uint32_t num_sectors;
	uint32_t flags;
};

/* Queue one request: header and status byte are the head's own, data as given (its direction is
 * set from the type). Returns the head. */
int fe_submit(struct fe_vq *vq, uint32_t type, uint64_t sector, const struct fe_seg *data,
	      unsigned int num, uint32_t how, uint64_t cookie);
/* One call each: submit, wait, the status byte (0 is OK) or -errno. Nothing else may be in
 * flight on the queue. */
int fe_rw(struct fe_vq *vq, bool write, uint64_t sector, void *buf, uint32_t len, int timeout_ms);
int fe_flush(struct fe_vq *vq, int timeout_ms);
int fe_getid(struct fe_vq *vq, char id[21], int timeout_ms);
int fe_discard(struct fe_vq *vq, const struct fe_range *ranges, unsigned int num, int timeout_ms);
int fe_write_zeroes(struct fe_vq *vq, const struct fe_range *ranges, unsigned int num,
		    int timeout_ms);
/* Any type, any payload: out_len bytes to the device, in_len from it. */
int fe_request(struct fe_vq *vq, uint32_t type, uint64_t sector, const void *out, uint32_t out_len,
	       void *in, uint32_t in_len, uint32_t how, int timeout_ms);

#endif
