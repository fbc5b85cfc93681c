/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * virtio-blk through a real session: a front end on a thread of its own, over a
 * socketpair, against a malloc bdev. Layouts, lengths and statuses that the
 * functional tests cannot see into, and the ends of sessions and controllers
 * that the sanitizers should watch. The thread says what it found wrong; the
 * main thread runs the control loop meanwhile and judges.
 */
#include "harness.h"

#include "bdev/bdev_backend.h"
#include "reactor/log.h"
#include "vhost/handover.h"
#include "vhost/vhost_internal.h"

/* <linux/virtio_ring.h> has a struct vring and a vring_init() of its own. */
#define vring linux_vring
#define vring_init linux_vring_init
#include "test/frontend/frontend.h"
#undef vring
#undef vring_init

#include <linux/virtio_blk.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define DISK (1u << 20)
#define MS 10000

/* The front end's side fails by returning what it was that failed. */
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define WANT(cond)                                              \
	do {                                                    \
		if (!(cond))                                    \
			return __FILE__ ":" TEXT(__LINE__) ": " #cond; \
	} while (0)

typedef const char *(*body_fn)(struct fe *fe);

struct talk {
	struct msg msg;
	struct fe *fe;
	body_fn body;
	bool start, done;
	const char *wrong;
};

/* ------- the disk and its controller ------- */

static void make_disk(bool readonly)
{
	struct bdev_malloc_opts opts = { .name = "m0", .num_blocks = DISK / 512, .block_size = 512,
					 .numa_node = -1 };
	struct vhost_controller_opts ctrl = { .name = "v", .dev_name = "m0",
					      .readonly = readonly };
	struct harness_result hr;
	char reason[VHOST_REASON_MAX];

	bdev_malloc_create(&opts, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), 0);
	assert_int_equal(vhost_controller_create(&ctrl, reason), 0);
}

static bool vhost_gone;

static void vhost_done(void)
{
	vhost_gone = true;
	harness_wake();
}

static int setup(void **state)
{
	harness_setup_two(state);
	log_set_print_level(LOG_ERROR);
	assert_int_equal(vhost_init(harness_path(".")), 0);
	make_disk(false);
	return 0;
}

static int setup_readonly(void **state)
{
	harness_setup_two(state);
	log_set_print_level(LOG_ERROR);
	assert_int_equal(vhost_init(harness_path(".")), 0);
	make_disk(true);
	return 0;
}

static int teardown(void **state)
{
	vhost_gone = false;
	vhost_fini(vhost_done);
	harness_wait(&vhost_gone);
	guest_mem_fini();
	return harness_teardown(state);
}

/* ------- the front end's thread ------- */

static void talk_over(struct msg *msg)
{
	container_of(msg, struct talk, msg)->done = true;
	harness_wake();
}

static void *talk_main(void *arg)
{
	struct talk *t = arg;

	if (t->start && fe_start(t->fe) < 0)
		t->wrong = "fe_start";
	else
		t->wrong = t->body(t->fe);
	t->msg.fn = talk_over;
	control_post(&t->msg);
	return NULL;
}

static bool sessions_gone(void *arg)
{
	struct vhost_controller *c = vhost_controller_find("v");

	(void)arg;
	return !c || list_empty(&c->sessions);
}

static void talk(const struct fe_opts *opts, bool start, body_fn body)
{
	struct talk t = { .body = body, .start = start };
	pthread_t thread;
	int ends[2], err = 0;

	t.fe = fe_create(opts, &err);
	assert_non_null(t.fe);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends),
			 0);
	fe_adopt(t.fe, ends[0]);
	session_create(vhost_controller_find("v"), ends[1]);
	assert_int_equal(pthread_create(&thread, NULL, talk_main, &t), 0);
	harness_wait(&t.done);
	pthread_join(thread, NULL);
	fe_destroy(t.fe);
	if (t.wrong)
		fail_msg("%s", t.wrong);
	harness_wait_until(sessions_gone, NULL);
}

static void run(uint32_t flags, body_fn body)
{
	struct fe_opts opts;

	fe_opts_init(&opts);
	opts.flags = flags;
	opts.mem_size = 8u << 20;
	opts.queue_size = 128;
	talk(&opts, true, body);
}

/* Submit, wait, and the used length; the status or -errno. */
static int request(struct fe_vq *vq, uint32_t type, uint64_t sector, const struct fe_seg *segs,
		   unsigned int num, uint32_t how, uint32_t *used)
{
	struct fe_completion c = { .len = 0 };
	int rc = fe_submit(vq, type, sector, segs, num, how, 7);

	if (rc < 0)
		return rc;
	rc = fe_wait(vq, &c, 1, MS);
	if (rc < 0)
		return rc;
	*used = c.len;
	return c.cookie == 7 ? c.status : -EPROTO;
}

/* ------- layouts ------- */

static const char *layouts(struct fe *fe)
{
	static const uint32_t hows[] = {
		0, FE_HOW_HDR_PIECES, FE_HOW_HDR_JOINED, FE_HOW_DIRECT | FE_HOW_HDR_PIECES,
		FE_HOW_INDIRECT | FE_HOW_HDR_JOINED,
	};
	struct fe_vq *vq = fe_queue(fe, 0);
	uint64_t gpa = fe_alloc(fe, 0, 16384, 4096) + 512;
	struct fe_seg pieces[] = { { gpa, 1, 0 }, { gpa + 1, 1000, 0 }, { gpa + 1001, 3095, 0 } };
	uint8_t out[4096], in[4096];
	uint32_t used;

	for (size_t i = 0; i < ARRAY_SIZE(hows); i++) {
		if ((hows[i] & FE_HOW_INDIRECT) && !vq->indirect)
			continue;
		/* A header joined to the data can only be one to the device. */
		uint32_t read_how = hows[i] & ~FE_HOW_HDR_JOINED;

		harness_fill(out, sizeof(out), i);
		WANT(fe_mem_write(fe, gpa, out, sizeof(out)) == 0);
		WANT(request(vq, VIRTIO_BLK_T_OUT, 8 * i, pieces, 3, hows[i], &used) == 0);
		WANT(used == 1);
		memset(in, 0, sizeof(in));
		WANT(fe_mem_write(fe, gpa, in, sizeof(in)) == 0);
		WANT(request(vq, VIRTIO_BLK_T_IN, 8 * i, pieces, 3,
			     read_how | FE_HOW_STATUS_TAIL, &used) == 0);
		WANT(used == 4097);
		WANT(fe_mem_read(fe, gpa, in, sizeof(in)) == 0);
		WANT(!memcmp(in, out, sizeof(in)));
	}
	return NULL;
}

static void test_layouts(void **state)
{
	(void)state;
	run(FE_O_INDIRECT | FE_O_EVENT_IDX, layouts);
	run(0, layouts);
}

/* 1024 segments and a header in three pieces; then one buffer too many. */
static const char *long_chain(struct fe *fe)
{
	struct fe_vq *vq = fe_queue(fe, 0);
	uint64_t gpa = fe_alloc(fe, 0, DISK, 4096);
	static struct fe_seg segs[1100];
	uint32_t used;

	for (unsigned int i = 0; i < 1100; i++)
		segs[i] = (struct fe_seg){ gpa + 512 * (uint64_t)i, 512, 0 };
	for (int round = 0; round < 3; round++) {
		WANT(request(vq, VIRTIO_BLK_T_OUT, 0, segs, 1024,
			     FE_HOW_INDIRECT | FE_HOW_HDR_PIECES, &used) == 0);
		WANT(request(vq, VIRTIO_BLK_T_IN, 0, segs, 1024, FE_HOW_INDIRECT, &used) == 0);
		WANT(used == 1024 * 512 + 1);
	}
	WANT(fe_submit(vq, VIRTIO_BLK_T_IN, 0, segs, 1100, FE_HOW_INDIRECT, 1) >= 0);
	WANT(fe_vq_error(vq, MS) > 0);
	return NULL;
}

static void test_long_chain(void **state)
{
	(void)state;
	run(FE_O_INDIRECT, long_chain);
}

static const char *crossing(struct fe *fe)
{
	struct fe_vq *vq = fe_queue(fe, 0);
	/* Regions 1 and 2 are neighbours for the guest. */
	uint64_t border = fe->regions[2].gpa, gpa = border - 1000;
	struct fe_seg seg = { gpa, 2048, 0 };
	uint8_t out[2048], in[2048];
	uint32_t used;

	harness_fill(out, sizeof(out), 99);
	WANT(fe_mem_write(fe, gpa, out, sizeof(out)) == 0);
	WANT(request(vq, VIRTIO_BLK_T_OUT, 100, &seg, 1, 0, &used) == 0);
	memset(in, 0, sizeof(in));
	WANT(fe_mem_write(fe, gpa, in, sizeof(in)) == 0);
	WANT(request(vq, VIRTIO_BLK_T_IN, 100, &seg, 1, 0, &used) == 0);
	WANT(fe_mem_read(fe, gpa, in, sizeof(in)) == 0);
	WANT(!memcmp(in, out, sizeof(in)));
	return NULL;
}

static void test_crossing(void **state)
{
	static const struct fe_region_spec regions[] = {
		{ .gpa = 0, .size = 4u << 20 },
		{ .gpa = 16u << 20, .size = 1u << 20, .mmap_offset = 512 },
		{ .gpa = 17u << 20, .size = 1u << 20 },
	};
	struct fe_opts opts;

	(void)state;
	fe_opts_init(&opts);
	opts.regions = regions;
	opts.num_regions = 3;
	opts.ring_region = 0;
	talk(&opts, true, crossing);
}

/* ------- statuses ------- */

static const char *statuses(struct fe *fe)
{
	struct fe_vq *vq = fe_queue(fe, 0);
	uint64_t gpa = fe_alloc(fe, 0, 8192, 4096);
	struct fe_seg block = { gpa, 512, 0 }, odd = { gpa, 511, 0 }, two = { gpa, 1024, 0 };
	char id[21], text[8] = { 0 };
	uint32_t used;

#define ST(type, sector, seg, num) request(vq, type, sector, seg, num, 0, &used)
	WANT(ST(VIRTIO_BLK_T_IN, 2048, &block, 1) == VIRTIO_BLK_S_IOERR && used == 1);
	WANT(ST(VIRTIO_BLK_T_IN, 2047, &two, 1) == VIRTIO_BLK_S_IOERR);
	WANT(ST(VIRTIO_BLK_T_OUT, 2047, &block, 1) == VIRTIO_BLK_S_OK && used == 1);
	WANT(ST(VIRTIO_BLK_T_IN, 1ull << 55, &block, 1) == VIRTIO_BLK_S_IOERR);
	WANT(ST(VIRTIO_BLK_T_OUT, UINT64_MAX, &block, 1) == VIRTIO_BLK_S_IOERR);
	WANT(ST(VIRTIO_BLK_T_OUT, UINT64_MAX >> 9, &block, 1) == VIRTIO_BLK_S_IOERR);
	WANT(ST(VIRTIO_BLK_T_IN, 0, &odd, 1) == VIRTIO_BLK_S_IOERR);
	WANT(ST(VIRTIO_BLK_T_IN, 0, NULL, 0) == VIRTIO_BLK_S_IOERR);
	WANT(ST(VIRTIO_BLK_T_OUT, 0, NULL, 0) == VIRTIO_BLK_S_IOERR);
	WANT(ST(3, 0, &block, 1) == VIRTIO_BLK_S_UNSUPP && used == 1);
	WANT(ST(UINT32_MAX, 0, NULL, 0) == VIRTIO_BLK_S_UNSUPP);
	WANT(ST(VIRTIO_BLK_T_FLUSH, 5, NULL, 0) == VIRTIO_BLK_S_OK && used == 1);
	WANT(fe_getid(vq, id, MS) == 0 && !strcmp(id, "m0"));
	/* Less room than the 20 bytes: what fits. */
	WANT(fe_request(vq, VIRTIO_BLK_T_GET_ID, 0, NULL, 0, text, 1, 0, MS) == 0);
	WANT(!strcmp(text, "m"));
	WANT(ST(VIRTIO_BLK_T_GET_ID, 0, NULL, 0) == VIRTIO_BLK_S_IOERR);
	/* The queue has survived all of it. */
	WANT(ST(VIRTIO_BLK_T_IN, 0, &block, 1) == VIRTIO_BLK_S_OK && used == 513);
	return NULL;
}

static void test_statuses(void **state)
{
	(void)state;
	run(0, statuses);
	run(FE_O_INDIRECT, statuses);
}

/* Fifteen bytes of header: an answer, not a broken queue. */
static const char *short_header(struct fe *fe)
{
	struct fe_vq *vq = fe_queue(fe, 0);
	uint64_t gpa = fe_alloc(fe, 0, 64, 16);
	struct fe_seg segs[] = { { gpa, 15, 0 }, { gpa + 32, 1, FE_SEG_WRITE } };
	struct fe_completion c;

	WANT(fe_submit_chain(vq, segs, 2, FE_NO_GPA, gpa + 32, 0, 1) >= 0);
	WANT(fe_wait(vq, &c, 1, MS) == 1);
	WANT(c.status == VIRTIO_BLK_S_IOERR && c.len == 1);
	/* No status byte: nothing to answer in. */
	WANT(fe_submit_chain(vq, segs, 1, FE_NO_GPA, FE_NO_GPA, 0, 1) >= 0);
	WANT(fe_vq_error(vq, MS) > 0);
	WANT(fe_submit_chain(vq, segs, 2, FE_NO_GPA, gpa + 32, 0, 1) >= 0);
	WANT(fe_wait(vq, &c, 1, 50) == -ETIMEDOUT);
	/* A broken queue still stops. */
	WANT(fe_vq_enable(vq, false) == 0);
	WANT(fe_vq_stop(vq, &(uint32_t){ 0 }) == 0);
	return NULL;
}

static void test_short_header(void **state)
{
	(void)state;
	run(0, short_header);
}

/* ------- discard and write zeroes ------- */

static const char *ranges(struct fe *fe)
{
	struct fe_vq *vq = fe_queue(fe, 0);
	struct fe_range r[9] = { { 0, 8, 0 }, { 100, 0, 0 }, { 16, 8, 0 } };
	uint8_t buf[8192], zero[4096] = { 0 };

	memset(buf, 0x77, sizeof(buf));
	for (uint64_t s = 0; s < 32; s += 16)
		WANT(fe_rw(vq, true, s, buf, sizeof(buf), MS) == 0);
	WANT(fe_write_zeroes(vq, r, 3, MS) == VIRTIO_BLK_S_OK);
	for (uint64_t s = 0; s < 32; s += 16) {
		WANT(fe_rw(vq, false, s, buf, sizeof(buf), MS) == 0);
		WANT(!memcmp(buf, zero, 4096));
		WANT(buf[4096] == 0x77 && buf[8191] == 0x77);
	}
	WANT(fe_discard(vq, r, 3, MS) == VIRTIO_BLK_S_OK);
	/* One bad among good: none is carried out. */
	memset(buf, 0x77, sizeof(buf));
	WANT(fe_rw(vq, true, 0, buf, sizeof(buf), MS) == 0);
	r[1] = (struct fe_range){ 2047, 2, 0 };
	WANT(fe_write_zeroes(vq, r, 3, MS) == VIRTIO_BLK_S_IOERR);
	r[1] = (struct fe_range){ UINT64_MAX, 1, 0 };
	WANT(fe_discard(vq, r, 3, MS) == VIRTIO_BLK_S_IOERR);
	r[1] = (struct fe_range){ 0, UINT32_MAX, 0 };
	WANT(fe_write_zeroes(vq, r, 3, MS) == VIRTIO_BLK_S_IOERR);
	r[1] = (struct fe_range){ 0, 1, 2 };
	WANT(fe_write_zeroes(vq, r, 3, MS) == VIRTIO_BLK_S_UNSUPP);
	r[1] = (struct fe_range){ 0, 1, 1 };
	WANT(fe_discard(vq, r, 3, MS) == VIRTIO_BLK_S_UNSUPP);
	WANT(fe_rw(vq, false, 0, buf, sizeof(buf), MS) == 0);
	WANT(buf[0] == 0x77);
	/* The flag is one for all. */
	r[0].flags = r[1].flags = r[2].flags = 1;
	WANT(fe_write_zeroes(vq, r, 3, MS) == VIRTIO_BLK_S_OK);
	memset(r, 0, sizeof(r));
	WANT(fe_discard(vq, r, 8, MS) == VIRTIO_BLK_S_OK);	/* nothing, eight times */
	WANT(fe_discard(vq, r, 9, MS) == VIRTIO_BLK_S_IOERR);
	WANT(fe_discard(vq, r, 0, MS) == VIRTIO_BLK_S_IOERR);
	WANT(fe_request(vq, VIRTIO_BLK_T_DISCARD, 0, r, 17, NULL, 0, 0, MS) ==
	     VIRTIO_BLK_S_IOERR);
	return NULL;
}

static void test_ranges(void **state)
{
	(void)state;
	run(0, ranges);
}

/* ------- the age of what is under way ------- */

static const struct bdev_ops *disk_ops;
static struct bdev_ops stuck_ops;
static _Atomic(struct bdev_io *) stuck_flush;
static atomic_bool stuck;

static bool always(struct bdev *bdev)
{
	(void)bdev;
	return true;
}

static void stuck_submit(struct bdev_io *io)
{
	reactor_assert();
	if (io->type == BDEV_FLUSH && stuck)
		stuck_flush = io;
	else
		disk_ops->submit(io);
}

struct ask {
	struct msg msg;
	uint64_t oldest_us;
	atomic_bool done;
};

static void ask_again(struct msg *msg)
{
	struct ask *ask = container_of(msg, struct ask, msg);
	const char *whose;

	control_assert();
	if (vhost_measured(&ask->oldest_us, &whose))
		ask->done = true;
	else
		control_post(&ask->msg);
}

static void ask_msg(struct msg *msg)
{
	control_assert();
	vhost_measure();
	msg->fn = ask_again;
	control_post(msg);
}

/* As a takeover asks before it stops any ring. */
static uint64_t oldest_us(void)
{
	struct ask ask = { .msg = { .fn = ask_msg } };

	control_post(&ask.msg);
	while (!ask.done)
		usleep(100);
	return ask.oldest_us;
}

/* A ring that goes on where it was first waits for what may be under way on the storage. */
static const char *settling_age(struct fe *fe)
{
	struct fe_vq *vq = fe_queue(fe, 0);
	uint8_t buf[512];
	uint64_t age;

	WANT(oldest_us() == 0);
	WANT(fe_vq_stop(vq, &(uint32_t){ 0 }) == 0);
	stuck = true;
	WANT(fe_start_rings(fe) == 0);
	while (!stuck_flush)
		usleep(100);
	usleep(20000);
	age = oldest_us();
	stuck = false;
	bdev_io_done_foreign(stuck_flush, 0);
	WANT(age >= 20000);
	WANT(fe_rw(vq, false, 0, buf, 512, MS) == 0);
	WANT(oldest_us() == 0);
	return NULL;
}

static void test_settling_age(void **state)
{
	struct bdev *bdev = vhost_controller_find("v")->desc.bdev;

	(void)state;
	disk_ops = bdev->ops;
	stuck_ops = *disk_ops;
	stuck_ops.settles = always;
	stuck_ops.submit = stuck_submit;
	bdev->ops = &stuck_ops;
	run(0, settling_age);
}

static const char *readonly(struct fe *fe)
{
	struct fe_vq *vq = fe_queue(fe, 0);
	struct fe_range r = { 0, 8, 0 };
	uint8_t buf[512];

	WANT(fe->offered & FE_BIT(VIRTIO_BLK_F_RO));
	WANT(fe_rw(vq, false, 0, buf, 512, MS) == 0);
	WANT(fe_rw(vq, true, 0, buf, 512, MS) == VIRTIO_BLK_S_IOERR);
	WANT(fe_flush(vq, MS) == 0);
	/* Not offered to anybody who cannot write. */
	WANT(fe_discard(vq, &r, 1, MS) != VIRTIO_BLK_S_OK);
	WANT(fe_write_zeroes(vq, &r, 1, MS) != VIRTIO_BLK_S_OK);
	return NULL;
}

static void test_readonly(void **state)
{
	(void)state;
	run(0, readonly);
}

/* ------- ends ------- */

/* Messages that are answered, and nobody there to hear it. */
static const char *ask_and_go(struct fe *fe)
{
	static const uint8_t state[8];

	WANT(fe_set_protocol_features(fe, FE_BIT(FE_PF_REPLY_ACK)) == 0);
	WANT(fe_send_raw(fe, FE_GET_VRING_BASE, FE_VERSION, 8, state, 8, NULL, 0) == 0);
	fe_close(fe);
	return NULL;
}

static const char *ask_ack_and_go(struct fe *fe)
{
	static const uint8_t none[8];

	WANT(fe_set_protocol_features(fe, FE_BIT(FE_PF_REPLY_ACK)) == 0);
	WANT(fe_send_raw(fe, FE_SET_OWNER, FE_VERSION | FE_NEED_REPLY, 0, none, 0, NULL, 0) == 0);
	fe_close(fe);
	return NULL;
}

static const char *just_go(struct fe *fe)
{
	uint8_t buf[512];

	WANT(fe_rw(fe_queue(fe, 0), false, 0, buf, 512, MS) == 0);
	fe_close(fe);
	return NULL;
}

static void test_leaving(void **state)
{
	struct fe_opts opts;

	(void)state;
	fe_opts_init(&opts);
	opts.mem_size = 2u << 20;
	for (int i = 0; i < 20; i++) {
		talk(&opts, false, ask_and_go);
		talk(&opts, false, ask_ack_and_go);
		talk(&opts, true, just_go);
	}
}

static struct msg delete_msg;

static void delete_controller(struct msg *msg)
{
	char reason[VHOST_REASON_MAX];

	(void)msg;
	vhost_controller_delete("v", false, reason);
}

static const char *deleted_under(struct fe *fe)
{
	uint8_t buf[512];

	WANT(fe_rw(fe_queue(fe, 0), false, 0, buf, 512, MS) == 0);
	delete_msg.fn = delete_controller;
	control_post(&delete_msg);
	WANT(fe_closed(fe, MS) == 1);
	return NULL;
}

static void test_controller_deleted(void **state)
{
	(void)state;
	run(0, deleted_under);
	assert_null(vhost_controller_find("v"));
}

static struct bdev_result removal;

static void bdev_removed(struct bdev_result *res)
{
	(void)res;
}

static void remove_bdev(struct msg *msg)
{
	(void)msg;
	removal.fn = bdev_removed;
	bdev_delete("m0", NULL, &removal);
}

static const char *bdev_removed_under(struct fe *fe)
{
	struct fe_vq *vq = fe_queue(fe, 0);
	uint8_t buf[512], config[60];
	char id[21];
	int st;

	WANT(fe_rw(vq, true, 0, buf, 512, MS) == 0);
	delete_msg.fn = remove_bdev;
	control_post(&delete_msg);
	do
		st = fe_rw(vq, false, 0, buf, 512, MS);
	while (st == VIRTIO_BLK_S_OK);
	WANT(st == VIRTIO_BLK_S_IOERR);
	WANT(fe_rw(vq, true, 0, buf, 512, MS) == VIRTIO_BLK_S_IOERR);
	WANT(fe_flush(vq, MS) == VIRTIO_BLK_S_IOERR);
	WANT(fe_getid(vq, id, MS) == VIRTIO_BLK_S_IOERR);
	WANT(fe_get_config(fe, 0, sizeof(config), config) == 0);
	WANT(!memcmp(config, "\0\0\0\0\0\0\0\0", 8));
	return NULL;
}

static void test_bdev_removed(void **state)
{
	(void)state;
	run(FE_O_EVENT_IDX, bdev_removed_under);
}

/* Each allocation of a start-up fails once: refused or closed, never worse. */
static const char *start_somehow(struct fe *fe)
{
	uint8_t buf[512];

	if (fe_start(fe) == 0)
		fe_rw(fe_queue(fe, 0), false, 0, buf, 512, 100);
	return NULL;
}

static void test_out_of_memory(void **state)
{
	struct fe_opts opts;
	unsigned int n;

	(void)state;
	fe_opts_init(&opts);
	opts.mem_size = 2u << 20;
	opts.timeout_ms = 500;
	for (n = 1; n < 100; n++) {
		struct talk t = { .body = start_somehow };
		int ends[2], err = 0;
		pthread_t thread;
		bool reached;

		t.fe = fe_create(&opts, &err);
		assert_non_null(t.fe);
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
					    ends), 0);
		fe_adopt(t.fe, ends[0]);
		harness_fail_alloc(n);
		session_create(vhost_controller_find("v"), ends[1]);
		assert_int_equal(pthread_create(&thread, NULL, talk_main, &t), 0);
		harness_wait(&t.done);
		pthread_join(thread, NULL);
		reached = harness_fail_reached();
		harness_fail_alloc(0);
		fe_destroy(t.fe);
		harness_wait_until(sessions_gone, NULL);
		if (!reached)
			break;
	}
	assert_in_range(n, 5, 99);
	run(0, just_go);
}

int main(void)
{
#define WITH_DISK(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
	static const struct CMUnitTest tests[] = {
		WITH_DISK(test_layouts),
		WITH_DISK(test_long_chain),
		WITH_DISK(test_crossing),
		WITH_DISK(test_statuses),
		WITH_DISK(test_short_header),
		WITH_DISK(test_ranges),
		WITH_DISK(test_settling_age),
		cmocka_unit_test_setup_teardown(test_readonly, setup_readonly, teardown),
		WITH_DISK(test_leaving),
		WITH_DISK(test_controller_deleted),
		WITH_DISK(test_bdev_removed),
		WITH_DISK(test_out_of_memory),
	};

	return harness_main("blk", tests, ARRAY_SIZE(tests), NULL, NULL);
}
