/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An I/O engine for fio that is a vhost-user-blk front end: fio drives a target without a virtual
 * machine. `make fio` builds it against the source of the fio that is installed; docs/fio.md tells
 * how to use it.
 *
 * A file of fio is a socket. A job (a thread or a process of fio) owns, for each of its files, as
 * many queues as queues= says and goes round them. Jobs that are threads share one connection to a
 * socket unless shared=0; processes have one each. fio's buffers lie in the memory shared with the
 * target (iomem_alloc), so a request costs its three descriptors and no copy.
 *
 * queue() fills descriptors, commit() publishes what came together and kicks where the target
 * wants it, getevents() reaps. With wait=poll (default) nothing sleeps; every IDLE_SPINS fruitless
 * looks it is checked whether the target still lives. When it does not, all requests in flight end
 * with EIO, and so does every later one.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/virtio_blk.h>

#include "fio.h"
#include "optgroup.h"

#include "device.h"
#include "plan.h"

#define IDLE_SPINS 4096u
#define NAP_MS 100	/* a lost call must not look like a hang */
#define REAP_MAX 64u
#define RANGE_AT 32u	/* of a discard, in the head's scratch behind header and status */
#define SCRATCH_BYTES 64u
#define SECTOR 512u

struct lane {		/* a queue of this job */
	struct fe_vq *vq;
	struct device *dev;
	bool unpublished;
};

struct disk {		/* a file of this job */
	struct device *dev;
	struct lane *lanes;
	unsigned int num, next;
};

/* Owned by its thread or process. */
struct job {
	struct disk *disks;
	struct lane *lanes;
	struct io_u **queued;	/* since the last commit */
	struct io_u **events;
	struct pollfd *pfds;	/* three a lane: socket, error, call */
	unsigned int num_disks, num_lanes, num_queued;
	bool sleep, has_memory;
};

#define FLAGS_OF_OPTION .category = FIO_OPT_C_ENGINE, .group = FIO_OPT_G_INVALID

static struct fio_option options[] = {
	{
		.name = "queues", .lname = "Queues", .type = FIO_OPT_INT,
		.off1 = offsetof(struct options, queues), .def = "1", .minval = 1, .maxval = 256,
		.help = "Queues of each job, used in turn", FLAGS_OF_OPTION,
	}, {
		.name = "queue_size", .lname = "Queue size", .type = FIO_OPT_INT,
		.off1 = offsetof(struct options, queue_size), .def = "0", .maxval = 1024,
		.help = "Entries of a ring, a power of two; 0: as many as iodepth needs", FLAGS_OF_OPTION,
	}, {
		.name = "packed", .lname = "Packed rings", .type = FIO_OPT_BOOL,
		.off1 = offsetof(struct options, packed), .def = "0",
		.help = "Packed rings instead of split ones", FLAGS_OF_OPTION,
	}, {
		.name = "indirect", .lname = "Indirect descriptors", .type = FIO_OPT_BOOL,
		.off1 = offsetof(struct options, indirect), .def = "0",
		.help = "Indirect descriptors always, not only where the ring is too small without",
		FLAGS_OF_OPTION,
	}, {
		.name = "wait", .lname = "Waiting", .type = FIO_OPT_STR,
		.off1 = offsetof(struct options, wait), .def = "poll",
		.help = "How to wait for completions",
		.posval = {
			{ .ival = "poll", .oval = 0, .help = "Look at the ring all the time" },
			{ .ival = "eventfd", .oval = 1, .help = "Sleep until the target calls" },
		},
		FLAGS_OF_OPTION,
	}, {
		.name = "shared", .lname = "Shared connection", .type = FIO_OPT_BOOL,
		.off1 = offsetof(struct options, shared), .def = "1",
		.help = "Jobs that are threads share one connection to a socket", FLAGS_OF_OPTION,
	}, {
		.name = "memory", .lname = "Memory", .type = FIO_OPT_STR,
		.off1 = offsetof(struct options, memory), .def = "auto",
		.help = "What the memory shared with the target is made of",
		.posval = {
			{ .ival = "auto", .oval = DEVICE_MEM_AUTO,
			  .help = "Huge pages if enough are free" },
			{ .ival = "hugepages", .oval = DEVICE_MEM_HUGE,
			  .help = "Huge pages or an error" },
			{ .ival = "memfd", .oval = DEVICE_MEM_MEMFD, .help = "Small pages" },
		},
		FLAGS_OF_OPTION,
	}, {
		.name = NULL,
	},
};

static int complain(struct thread_data *td, const char *path, int rc, const char *why)
{
	log_err("vhost_user_blk: %s: %s\n", path, why);
	td_verror(td, -rc, "vhost_user_blk");
	return 1;
}

/* ---- set-up: in the main process, before jobs start ---- */

static int setup(struct thread_data *td)
{
	struct fio_file *f;
	unsigned int i;

	/* fio checks the version of the interface, which stays the same while structures change. */
	if (strcmp(fio_version_string, ENGINE_FIO_VERSION) != 0) {
		log_err("vhost_user_blk: built for %s, but this is %s: run \"make fio\" again\n",
			ENGINE_FIO_VERSION, fio_version_string);
		td_verror(td, EINVAL, "vhost_user_blk");
		return 1;
	}
	if (!td->files_index || !td->o.filename) {
		log_err("vhost_user_blk: give the target's socket: --filename=/var/tmp/vhost.1\n");
		td_verror(td, EINVAL, "vhost_user_blk");
		return 1;
	}
	for_each_file(td, f, i) {
		struct device_info info;
		char why[DEVICE_WHY];
		int rc = device_probe(f->file_name, &info, why);

		if (rc < 0)
			return complain(td, f->file_name, rc, why);
		f->real_file_size = info.bytes;
		f->filetype = FIO_TYPE_BLOCK;
		fio_file_set_size_known(f);
	}
	return 0;
}

/* ---- a job's beginning and end ---- */

static int check_job(struct thread_data *td, const char *path, const struct device_info *info)
{
	bool writes = td_write(td) || td_trim(td);

	if (writes && (info->features & FE_BIT(VIRTIO_BLK_F_RO)))
		return complain(td, path, -EROFS, "the disk is read-only");
	if (td_trim(td) && !(info->features & FE_BIT(VIRTIO_BLK_F_DISCARD)))
		return complain(td, path, -EOPNOTSUPP, "the disk does not offer discard (trim)");
	if (td_trim(td) && td->o.max_bs[DDIR_TRIM] / SECTOR > info->discard_max)
		return complain(td, path, -EINVAL, "bs of trim is larger than the disk allows");
	for_each_rw_ddir(ddir) {
		if (td->o.min_bs[ddir] % info->block_size || td->o.bs_unaligned)
			return complain(td, path, -EINVAL,
					"bs must be a multiple of the disk's block size");
	}
	return 0;
}

static int open_disk(struct thread_data *td, struct job *job, struct fio_file *f)
{
	const struct options *o = td->eo;
	struct disk *disk = &job->disks[job->num_disks];
	struct device_need need;
	char why[DEVICE_WHY];
	int rc;

	rc = plan_of(td, f->file_name, &need);
	if (rc < 0)
		return complain(td, f->file_name, rc, "memory");
	rc = device_get(f->file_name, &need, &disk->dev, why);
	if (rc < 0)
		return complain(td, f->file_name, rc, why);
	job->num_disks++;
	if (check_job(td, f->file_name, &disk->dev->info))
		return 1;
	disk->lanes = &job->lanes[job->num_lanes];
	for (unsigned int i = 0; i < o->queues; i++) {
		struct lane *lane = &job->lanes[job->num_lanes];

		lane->dev = disk->dev;
		lane->vq = device_take_queue(disk->dev);
		if (!lane->vq)
			return complain(td, f->file_name, -EBUSY, "no queue is free");
		job->num_lanes++;
		disk->num++;
	}
	FILE_SET_ENG_DATA(f, disk);
	return 0;
}

static void watch(struct job *job)
{
	for (unsigned int i = 0; i < job->num_lanes; i++) {
		const struct lane *lane = &job->lanes[i];
		struct pollfd *pfd = &job->pfds[3 * i];

		pfd[0] = (struct pollfd){ .fd = lane->dev->fe->sock };
		pfd[1] = (struct pollfd){ .fd = lane->vq->err_fd, .events = POLLIN };
		pfd[2] = (struct pollfd){ .fd = job->sleep ? lane->vq->call_fd : -1,
					  .events = POLLIN };
	}
}

static void cleanup(struct thread_data *td)
{
	struct job *job = td->io_ops_data;

	if (!job)
		return;
	for (unsigned int i = 0; i < job->num_lanes; i++)
		device_give_queue(job->lanes[i].dev, job->lanes[i].vq);
	for (unsigned int i = 0; i < job->num_disks; i++)
		device_put(job->disks[i].dev);
	if (job->has_memory)
		device_memory_put();
	free(job->disks);
	free(job->lanes);
	free(job->queued);
	free(job->events);
	free(job->pfds);
	free(job);
	td->io_ops_data = NULL;
}

static struct job *create_job(struct thread_data *td)
{
	const struct options *o = td->eo;
	size_t lanes = (size_t)td->o.nr_files * o->queues;
	struct job *job = calloc(1, sizeof(*job));

	if (!job)
		return NULL;
	td->io_ops_data = job;
	job->sleep = o->wait;
	job->disks = calloc(td->o.nr_files, sizeof(*job->disks));
	job->lanes = calloc(lanes, sizeof(*job->lanes));
	job->pfds = calloc(3 * lanes, sizeof(*job->pfds));
	job->queued = calloc(td->o.iodepth, sizeof(*job->queued));
	job->events = calloc(td->o.iodepth, sizeof(*job->events));
	if (job->disks && job->lanes && job->pfds && job->queued && job->events)
		return job;
	cleanup(td);
	return NULL;
}

/* fio calls cleanup() after a failure as well. */
static int init(struct thread_data *td)
{
	const struct options *o = td->eo;
	struct job *job = create_job(td);
	struct fio_file *f;
	char why[DEVICE_WHY];
	unsigned int i;
	int rc;

	if (!job)
		return 1;
	rc = device_memory_get(plan_memory(td), (enum device_memory)o->memory, why);
	if (rc < 0)
		return complain(td, td->o.filename, rc, why);
	job->has_memory = true;
	for_each_file(td, f, i) {
		if (open_disk(td, job, f))
			return 1;
	}
	watch(job);
	return 0;
}

/* fio 3.33 goes on without buffers when it could not allocate them. */
static int post_init(struct thread_data *td)
{
	if ((td_read(td) || td_write(td)) && !td->orig_buffer)
		return 1;
	return 0;
}

static int iomem_alloc(struct thread_data *td, size_t bytes)
{
	td->orig_buffer = device_memory_alloc(bytes);
	if (!td->orig_buffer)
		log_err("vhost_user_blk: %zu bytes of buffers are more than were planned\n", bytes);
	return td->orig_buffer == NULL;
}

static void iomem_free(struct thread_data *td)
{
	device_memory_free(td->orig_buffer);
	td->orig_buffer = NULL;
}

/* ---- requests ---- */

static enum fio_q_status refuse(struct io_u *io_u, int error)
{
	io_u->error = (unsigned int)error;
	return FIO_Q_COMPLETED;
}

static int submit_discard(struct fe_vq *vq, const struct io_u *io_u)
{
	struct virtio_blk_discard_write_zeroes range = {
		.sector = io_u->offset / SECTOR,
		.num_sectors = (uint32_t)(io_u->xfer_buflen / SECTOR),
	};
	uint64_t at = (uint64_t)SCRATCH_BYTES * vq->free_head + RANGE_AT;
	struct fe_seg seg = { .gpa = vq->scratch_gpa + at, .len = sizeof(range) };

	if (vq->num_free == 0)
		return -ENOSPC;
	memcpy(vq->scratch + at, &range, sizeof(range));
	return fe_submit(vq, VIRTIO_BLK_T_DISCARD, 0, &seg, 1, FE_HOW_NO_PUBLISH,
			 (uint64_t)(uintptr_t)io_u);
}

static int submit_data_slow(struct fe_vq *vq, const struct io_u *io_u, uint32_t type,
			    uint32_t size_max)
{
	uint64_t gpa = device_gpa(io_u->xfer_buf), left = io_u->xfer_buflen;
	struct fe_seg segs[DEVICE_SEGS_MAX];
	unsigned int n = 0;

	while (left > 0) {
		uint32_t len = left < size_max ? (uint32_t)left : size_max;

		segs[n++] = (struct fe_seg){ .gpa = gpa, .len = len };
		gpa += len;
		left -= len;
	}
	return fe_submit(vq, type, io_u->offset / SECTOR, segs, n, FE_HOW_NO_PUBLISH,
			 (uint64_t)(uintptr_t)io_u);
}

static int submit_data(struct lane *lane, const struct io_u *io_u)
{
	uint32_t type = io_u->ddir == DDIR_READ ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_OUT;
	struct fe_seg seg;

	if (io_u->xfer_buflen > lane->dev->info.size_max)
		return submit_data_slow(lane->vq, io_u, type, lane->dev->info.size_max);
	seg = (struct fe_seg){ .gpa = device_gpa(io_u->xfer_buf),
			       .len = (uint32_t)io_u->xfer_buflen };
	return fe_submit(lane->vq, type, io_u->offset / SECTOR, &seg, 1, FE_HOW_NO_PUBLISH,
			 (uint64_t)(uintptr_t)io_u);
}

static int submit(struct lane *lane, const struct io_u *io_u)
{
	switch (io_u->ddir) {
	case DDIR_READ:
	case DDIR_WRITE:
		return submit_data(lane, io_u);
	case DDIR_TRIM:
		return submit_discard(lane->vq, io_u);
	default:
		return fe_submit(lane->vq, VIRTIO_BLK_T_FLUSH, 0, NULL, 0, FE_HOW_NO_PUBLISH,
				 (uint64_t)(uintptr_t)io_u);
	}
}

static enum fio_q_status queue(struct thread_data *td, struct io_u *io_u)
{
	struct job *job = td->io_ops_data;
	struct disk *disk = FILE_ENG_DATA(io_u->file);
	int rc = -ENOSPC;

	fio_ro_check(td, io_u);
	if (device_dead(disk->dev))
		return refuse(io_u, EIO);
	if ((io_u->offset | io_u->xfer_buflen) % SECTOR)
		return refuse(io_u, EINVAL);
	if (ddir_sync(io_u->ddir) && !(disk->dev->fe->features & FE_BIT(VIRTIO_BLK_F_FLUSH)))
		return FIO_Q_COMPLETED;
	for (unsigned int i = 0; i < disk->num && rc == -ENOSPC; i++) {
		struct lane *lane = &disk->lanes[disk->next];

		disk->next = disk->next + 1 < disk->num ? disk->next + 1 : 0;
		rc = submit(lane, io_u);
		lane->unpublished |= rc >= 0;
	}
	if (rc == -ENOSPC)
		return FIO_Q_BUSY;
	if (rc < 0)
		return refuse(io_u, -rc);
	job->queued[job->num_queued++] = io_u;
	return FIO_Q_QUEUED;
}

static void stamp(struct thread_data *td, const struct job *job)
{
	struct timespec now;

	fio_gettime(&now, NULL);
	for (unsigned int i = 0; i < job->num_queued; i++) {
		job->queued[i]->issue_time = now;
		io_u_queued(td, job->queued[i]);
	}
	if (td->o.read_iolog_file)
		td->last_issue = now;
}

static int commit(struct thread_data *td)
{
	struct job *job = td->io_ops_data;

	if (job->num_queued == 0)
		return 0;
	if (fio_fill_issue_time(td))
		stamp(td, job);
	for (unsigned int i = 0; i < job->num_lanes; i++) {
		struct lane *lane = &job->lanes[i];

		if (!lane->unpublished)
			continue;
		lane->unpublished = false;
		fe_publish(lane->vq);
		fe_kick(lane->vq, false);
	}
	io_u_mark_submit(td, job->num_queued);
	job->num_queued = 0;
	return 0;
}

/* ---- completions ---- */

static void bury(struct device *dev, const char *why)
{
	if (device_kill(dev))
		log_err("vhost_user_blk: %s: %s; its requests fail\n", dev->path, why);
}

static void finish(struct io_u *io_u, int status)
{
	if (status == VIRTIO_BLK_S_OK)
		return;
	io_u->error = status == VIRTIO_BLK_S_UNSUPP ? EOPNOTSUPP : EIO;
	io_u->resid = io_u->xfer_buflen;
}

/* Of a dead target: what it has not answered, it never will. */
static unsigned int reap_dead(struct lane *lane, struct io_u **events, unsigned int max)
{
	struct fe_vq *vq = lane->vq;
	unsigned int n = 0;

	for (unsigned int i = 0; i < vq->size && n < max && vq->in_flight > 0; i++) {
		if (!vq->slots[i].busy)
			continue;
		vq->slots[i].busy = false;
		vq->in_flight--;
		events[n] = (struct io_u *)(uintptr_t)vq->slots[i].cookie;
		finish(events[n++], VIRTIO_BLK_S_IOERR);
	}
	return n;
}

static unsigned int reap(struct lane *lane, struct io_u **events, unsigned int max)
{
	struct fe_completion done[REAP_MAX];
	bool dead;
	int n;

	if (lane->vq->in_flight == 0)
		return 0;
	/* Before the look at the ring: what was answered by then counts. */
	dead = device_dead(lane->dev);
	n = fe_poll(lane->vq, done, max < REAP_MAX ? max : REAP_MAX);
	if (n <= 0 && dead)
		return reap_dead(lane, events, max);
	if (n < 0) {
		bury(lane->dev, "the target's used ring makes no sense");
		return 0;
	}
	for (int i = 0; i < n; i++) {
		events[i] = (struct io_u *)(uintptr_t)done[i].cookie;
		finish(events[i], done[i].status);
	}
	return (unsigned int)n;
}

static bool waits(const struct job *job)
{
	for (unsigned int i = 0; i < job->num_lanes; i++) {
		if (job->lanes[i].vq->in_flight > 0)
			return true;
	}
	return false;
}

/* Nothing came for a while: does the target live? With wait=eventfd, sleep until it calls. */
static void rest(struct job *job)
{
	uint64_t count;
	int ms = job->sleep ? NAP_MS : 0;

	for (unsigned int i = 0; i < job->num_lanes && job->sleep; i++) {
		if (fe_ask_call(job->lanes[i].vq))
			return;
	}
	if (poll(job->pfds, 3 * job->num_lanes, ms) <= 0) {
		sched_yield();
		return;
	}
	for (unsigned int i = 0; i < job->num_lanes; i++) {
		const struct pollfd *pfd = &job->pfds[3 * i];

		if (pfd[0].revents & (POLLHUP | POLLERR))
			bury(job->lanes[i].dev, "the target closed the connection");
		else if (pfd[1].revents & POLLIN)
			bury(job->lanes[i].dev, "the target stopped the queue with an error");
		if (pfd[2].revents & POLLIN && read(pfd[2].fd, &count, sizeof(count)) < 0 &&
		    errno != EAGAIN)
			bury(job->lanes[i].dev, "the call eventfd is broken");
	}
}

static int getevents(struct thread_data *td, unsigned int min, unsigned int max,
		     const struct timespec *t)
{
	struct job *job = td->io_ops_data;
	unsigned int spins = job->sleep ? 1 : IDLE_SPINS;
	unsigned int got = 0, idle = 0;

	(void)t;	/* fio gives a timeout only with min == 0 */
	for (;;) {
		unsigned int before = got;

		for (unsigned int i = 0; i < job->num_lanes && got < max; i++)
			got += reap(&job->lanes[i], job->events + got, max - got);
		if (got >= min)
			return (int)got;
		if (got > before) {
			idle = 0;
		} else if (++idle >= spins) {
			/* fio never asks for more than is in flight; if it did, this would not end. */
			if (!waits(job))
				return (int)got;
			idle = 0;
			rest(job);
		}
	}
}

static struct io_u *event(struct thread_data *td, int n)
{
	const struct job *job = td->io_ops_data;

	return job->events[n];
}

/* ---- files that are none ---- */

static int nothing(struct thread_data *td, struct fio_file *f)
{
	(void)td;
	(void)f;
	return 0;
}

struct ioengine_ops ioengine = {
	.name = "vhost_user_blk",
	.version = FIO_IOOPS_VERSION,
	.flags = FIO_RAWIO | FIO_MEMALIGN | FIO_DISKLESSIO | FIO_NOEXTEND | FIO_NODISKUTIL |
		 FIO_NO_OFFLOAD | FIO_ASYNCIO_SETS_ISSUE_TIME,
	.setup = setup,
	.init = init,
	.post_init = post_init,
	.cleanup = cleanup,
	.queue = queue,
	.commit = commit,
	.getevents = getevents,
	.event = event,
	.iomem_alloc = iomem_alloc,
	.iomem_free = iomem_free,
	.open_file = nothing,
	.close_file = nothing,
	.invalidate = nothing,
	.unlink_file = nothing,
	.options = options,
	.option_struct_size = sizeof(struct options),
};
