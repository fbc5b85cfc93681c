/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connections and memory: see device.h.
 *
 * Everything is set up before the rings start and is sent to the target once, as two regions: one
 * with this connection's rings, headers and indirect tables, one with the data of all jobs. So
 * targets that cannot add regions later, or that know eight at most, will do.
 *
 * The lists are the process's own. fio asks for sizes in its main process and forks jobs after
 * that: they inherit the answers of device_probe, but neither connections nor memory of jobs that
 * are threads of the main process.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/virtio_blk.h>

#include "device.h"

#define PAGE 4096u
#define HUGE_PAGE (UINT64_C(2) << 20)
#define QUEUE_SIZE_MIN 128u
#define QUEUE_SIZE_MAX 1024u	/* what QEMU and its kin take */
#define SLOT_BYTES 64u

struct probed {
	struct probed *next;
	struct device_info info;
	char path[108];
};

static struct {
	uint8_t *base;
	uint64_t bytes, used;
	uint8_t *last;		/* the newest piece */
	unsigned int users;
	int fd;
} memory = { .fd = -1 };

static struct probed *all_probed;
static struct device *devices;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void before_fork(void)
{
	pthread_mutex_lock(&lock);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&lock);
}

static void in_child(void)
{
	for (struct device *dev = devices; dev; dev = dev->next)
		fe_destroy(dev->fe);
	devices = NULL;
	if (memory.users > 0) {
		munmap(memory.base, memory.bytes);
		close(memory.fd);
	}
	memory.users = 0;
	memory.fd = -1;
	pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void loaded(void)
{
	pthread_atfork(before_fork, after_fork, in_child);
}

static int explain(char *why, int rc, const char *what)
{
	snprintf(why, DEVICE_WHY, "%s: %s", what, strerror(-rc));
	return rc;
}

static int explain_connect(char *why, int rc)
{
	switch (rc) {
	case -ENOENT:
		return explain(why, rc, "no such socket (is the target running, and the disk there?)");
	case -ECONNREFUSED:
		return explain(why, rc, "nobody listens at this socket (has the target ended?)");
	case -ETIMEDOUT:
		return explain(why, rc, "no answer from the target (one that serves one client at a "
			       "time may be busy with another: use thread=1, shared=1)");
	case -EPIPE:
	case -ECONNRESET:
		return explain(why, rc, "the target closed the connection");
	case -EREMOTEIO:
		return explain(why, rc, "the target refused a message");
	case -EPROTO:
		return explain(why, rc, "no vhost-user-blk target: its answer makes no sense");
	default:
		return explain(why, rc, "cannot connect");
	}
}

/* ---- what a socket offers ---- */

static uint32_t config32(const struct fe *fe, size_t at)
{
	uint32_t value = 0;

	if (at + sizeof(value) <= fe->config_len)
		memcpy(&value, fe->config + at, sizeof(value));
	return value;
}

static bool offers(const struct device_info *info, unsigned int bit)
{
	return info->features & FE_BIT(bit);
}

static void read_info(const struct fe *fe, struct device_info *info)
{
	info->features = fe->offered;
	info->bytes = fe_capacity(fe) * 512;
	info->max_queues = (uint32_t)(fe->max_queues > FE_MAX_QUEUES ? FE_MAX_QUEUES :
				      fe->max_queues);
	info->block_size = 512;
	info->size_max = info->seg_max = info->discard_max = UINT32_MAX;
	if (offers(info, VIRTIO_BLK_F_BLK_SIZE))
		info->block_size = config32(fe, offsetof(struct virtio_blk_config, blk_size));
	if (offers(info, VIRTIO_BLK_F_SIZE_MAX))
		info->size_max = config32(fe, offsetof(struct virtio_blk_config, size_max));
	if (offers(info, VIRTIO_BLK_F_SEG_MAX))
		info->seg_max = config32(fe, offsetof(struct virtio_blk_config, seg_max));
	/* qemu-storage-daemon 7.2 offers size_max and leaves it at 0. */
	if (info->size_max == 0)
		info->size_max = UINT32_MAX;
	if (info->seg_max == 0)
		info->seg_max = 1;
	if (offers(info, VIRTIO_BLK_F_DISCARD))
		info->discard_max = config32(fe, offsetof(struct virtio_blk_config,
							  max_discard_sectors));
}

static int ask(const char *path, struct device_info *info, char *why)
{
	struct fe_opts opts;
	struct fe *fe;
	int rc = 0;

	fe_opts_init(&opts);
	opts.num_queues = 1;
	opts.mem_size = UINT64_C(1) << 20;
	opts.flags = FE_O_NO_BACKEND_CHANNEL | FE_O_NO_INFLIGHT | FE_O_NO_START;
	fe = fe_connect(path, &opts, &rc);
	if (!fe)
		return explain_connect(why, rc);
	rc = fe_start_negotiate(fe);
	if (rc < 0) {
		rc = explain_connect(why, rc);
	} else {
		read_info(fe, info);
		if (info->bytes == 0 || info->block_size == 0)
			rc = explain(why, -EINVAL, "the disk's configuration makes no sense");
	}
	fe_destroy(fe);
	return rc;
}

static int probe_locked(const char *path, struct device_info *info, char *why)
{
	struct probed *p;
	int rc;

	for (p = all_probed; p; p = p->next) {
		if (strcmp(p->path, path) == 0) {
			*info = p->info;
			return 0;
		}
	}
	if (strlen(path) >= sizeof(p->path))
		return explain(why, -ENAMETOOLONG, "a socket's path has at most 107 characters");
	rc = ask(path, info, why);
	if (rc < 0)
		return rc;
	p = calloc(1, sizeof(*p));
	if (!p)
		return explain(why, -ENOMEM, "memory");
	memcpy(p->path, path, strlen(path) + 1);
	p->info = *info;
	p->next = all_probed;
	all_probed = p;
	return 0;
}

int device_probe(const char *path, struct device_info *info, char *why)
{
	int rc;

	pthread_mutex_lock(&lock);
	rc = probe_locked(path, info, why);
	pthread_mutex_unlock(&lock);
	return rc;
}

/* ---- the data ---- */

static int map_memory(uint64_t bytes, bool huge)
{
	uint64_t page = huge ? HUGE_PAGE : PAGE;
	uint64_t len = (bytes + page - 1) / page * page;
	int fd = memfd_create("fio-data", MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0));
	void *map;
	int rc;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)len) < 0)
		goto fail;
	map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		goto fail;
	memory.fd = fd;
	memory.base = map;
	memory.bytes = len;
	memory.used = 0;
	memory.last = NULL;
	return 0;
fail:
	rc = -errno;
	close(fd);
	return rc;
}

int device_memory_get(uint64_t bytes, enum device_memory kind, char *why)
{
	int rc = -ENOMEM;

	pthread_mutex_lock(&lock);
	if (memory.users == 0) {
		if (kind != DEVICE_MEM_MEMFD)
			rc = map_memory(bytes, true);
		if (rc < 0 && kind != DEVICE_MEM_HUGE)
			rc = map_memory(bytes, false);
		if (rc < 0)
			explain(why, rc, kind == DEVICE_MEM_HUGE ?
				"not enough free huge pages of 2 MiB (memory=auto does without)" :
				"no memory for the data");
	} else {
		rc = 0;
	}
	if (rc == 0)
		memory.users++;
	pthread_mutex_unlock(&lock);
	return rc;
}

void device_memory_put(void)
{
	pthread_mutex_lock(&lock);
	if (--memory.users == 0) {
		munmap(memory.base, memory.bytes);
		close(memory.fd);
		memory.base = NULL;
		memory.fd = -1;
	}
	pthread_mutex_unlock(&lock);
}

void *device_memory_alloc(uint64_t bytes)
{
	uint8_t *piece = NULL;

	bytes = (bytes + PAGE - 1) / PAGE * PAGE;
	pthread_mutex_lock(&lock);
	if (bytes <= memory.bytes - memory.used) {
		piece = memory.base + memory.used;
		memory.used += bytes;
		memory.last = piece;
	}
	pthread_mutex_unlock(&lock);
	return piece;
}

void device_memory_free(void *piece)
{
	pthread_mutex_lock(&lock);
	if (piece && piece == memory.last) {
		memory.used = (uint64_t)(memory.last - memory.base);
		memory.last = NULL;
	}
	pthread_mutex_unlock(&lock);
}

uint64_t device_gpa(const void *at)
{
	return DEVICE_DATA_GPA + (uint64_t)((const uint8_t *)at - memory.base);
}

/* ---- connections ---- */

static unsigned int up_to_power(uint64_t n)
{
	unsigned int size = QUEUE_SIZE_MIN;

	while (size < n && size < 32768)
		size *= 2;
	return size;
}

/* The ring's size, and whether a request takes one entry of it or all of its descriptors. */
static int size_ring(const struct device_info *info, struct device_need *need,
		     unsigned int descriptors, char *why)
{
	uint64_t direct = (uint64_t)need->depth * descriptors;
	bool can = offers(info, FE_F_INDIRECT);

	if (need->indirect && !can) {
		snprintf(why, DEVICE_WHY, "the target does not offer indirect descriptors");
		return -EOPNOTSUPP;
	}
	if (need->queue_size == 0) {
		if (!need->indirect && can && direct > QUEUE_SIZE_MAX)
			need->indirect = true;
		need->queue_size = up_to_power(need->indirect ? need->depth : direct);
	} else if (direct > need->queue_size && can) {
		need->indirect = true;
	}
	if ((need->indirect ? need->depth : direct) > need->queue_size) {
		snprintf(why, DEVICE_WHY, "iodepth=%u does not fit a ring of queue_size=%u%s",
			 need->depth, need->queue_size,
			 need->indirect ? "" : ", as the target offers no indirect descriptors");
		return -EINVAL;
	}
	if (need->queue_size > QUEUE_SIZE_MAX) {
		snprintf(why, DEVICE_WHY, "iodepth or queue_size is too large: rings have at most %u "
			 "entries", QUEUE_SIZE_MAX);
		return -EINVAL;
	}
	if (need->queue_size & (need->queue_size - 1)) {
		snprintf(why, DEVICE_WHY, "queue_size=%u is no power of two", need->queue_size);
		return -EINVAL;
	}
	return 0;
}

static int check_need(const struct device_info *info, struct device_need *need,
		      unsigned int *descriptors, char *why)
{
	uint64_t segments = need->max_bs / info->size_max + (need->max_bs % info->size_max != 0);

	if (segments == 0)
		segments = 1;
	if (need->max_bs > UINT32_MAX || segments > info->seg_max || segments > DEVICE_SEGS_MAX) {
		snprintf(why, DEVICE_WHY, "bs is too large for this disk: %u segments of %u bytes at most",
			 info->seg_max, info->size_max);
		return -EINVAL;
	}
	if (need->queues > info->max_queues) {
		snprintf(why, DEVICE_WHY, "%u queues are needed (%s) and the disk has %u: give it more, "
			 "use fewer%s", need->queues,
			 need->shared ? "queues= of all jobs that share the connection" : "queues=",
			 info->max_queues,
			 need->shared ? ", or shared=0 if it can serve several connections" : "");
		return -EINVAL;
	}
	if (need->packed && !offers(info, FE_F_RING_PACKED)) {
		snprintf(why, DEVICE_WHY, "the target does not offer packed rings");
		return -EOPNOTSUPP;
	}
	*descriptors = (unsigned int)segments + 2;
	return size_ring(info, need, *descriptors, why);
}

static uint64_t ring_bytes(const struct device_need *need, unsigned int descriptors)
{
	uint64_t n = need->queue_size;
	uint64_t queue = n * (16 + 2 + 8 + SLOT_BYTES) + 4 * PAGE;

	if (need->indirect)
		queue += n * 16 * descriptors + PAGE;
	return need->queues * queue + 2 * PAGE;
}

/* Indirect tables now, since allocating later would need a lock. */
static int lay_tables(struct fe *fe, unsigned int descriptors)
{
	for (uint16_t q = 0; q < fe->num_vqs; q++) {
		struct fe_vq *vq = &fe->vqs[q];
		uint64_t at = fe_alloc(fe, 0, UINT64_C(16) * descriptors * vq->size, 16);

		if (at == FE_NO_GPA)
			return -ENOSPC;
		for (unsigned int i = 0; i < vq->size; i++) {
			vq->slots[i].table_gpa = at + UINT64_C(16) * descriptors * i;
			vq->slots[i].table_cap = descriptors;
		}
	}
	return 0;
}

static void quiet(struct fe *fe)
{
	for (uint16_t i = 0; i < fe->num_vqs; i++) {
		if (fe->vqs[i].packed)
			fe_vq_set_driver_event(&fe->vqs[i], 0, VRING_PACKED_EVENT_FLAG_DISABLE);
		else
			fe_vq_set_avail_flags(&fe->vqs[i], VRING_AVAIL_F_NO_INTERRUPT);
	}
}

static struct fe *create(const struct device_need *need, unsigned int descriptors, int *rc)
{
	uint64_t len = ring_bytes(need, descriptors);
	struct fe_region_spec regions[2] = {
		{ .size = (len + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE, .backing = FE_MEM_MEMFD },
		{ .gpa = DEVICE_DATA_GPA, .size = memory.bytes, .backing = FE_MEM_FD,
		  .share = memory.fd },
	};
	struct fe *fe = NULL;
	struct fe_opts opts;

	fe_opts_init(&opts);
	opts.num_queues = (uint16_t)need->queues;
	opts.queue_size = (uint16_t)need->queue_size;
	opts.flags = FE_O_NO_BACKEND_CHANNEL | FE_O_NO_INFLIGHT |
		     (need->packed ? FE_O_PACKED : 0) | (need->indirect ? FE_O_INDIRECT : 0) |
		     (need->sleep ? FE_O_EVENT_IDX : 0);
	opts.regions = regions;
	opts.num_regions = 2;
	opts.ring_region = 0;
	if (need->memory != DEVICE_MEM_MEMFD) {
		regions[0].backing = FE_MEM_MEMFD_HUGE;
		fe = fe_create(&opts, rc);
	}
	if (!fe && need->memory != DEVICE_MEM_HUGE) {
		regions[0].backing = FE_MEM_MEMFD;
		fe = fe_create(&opts, rc);
	}
	return fe;
}

static int start(struct fe *fe, const char *path, const struct device_need *need,
		 unsigned int descriptors)
{
	uint64_t ignored;
	int rc = need->indirect ? lay_tables(fe, descriptors) : 0;

	if (rc == 0)
		rc = fe_open(fe, path);
	if (rc == 0)
		rc = fe_start_negotiate(fe);
	if (rc == 0 && !need->sleep)
		quiet(fe);
	if (rc == 0)
		rc = fe_start_rings(fe);
	/* Most messages have no answer; one that has shows that they were accepted. */
	if (rc == 0)
		rc = fe_get_features(fe, &ignored);
	return rc;
}

static int open_device(const char *path, const struct device_need *need, struct device **out,
		       char *why)
{
	struct device *dev = calloc(1, sizeof(*dev));
	unsigned int descriptors = 0;
	int rc;

	if (!dev)
		return explain(why, -ENOMEM, "memory");
	dev->need = *need;
	rc = probe_locked(path, &dev->info, why);
	if (rc == 0)
		rc = check_need(&dev->info, &dev->need, &descriptors, why);
	if (rc < 0)
		goto fail;
	memcpy(dev->path, path, strlen(path) + 1);
	dev->taken = calloc(need->queues, sizeof(*dev->taken));
	dev->fe = create(&dev->need, descriptors, &rc);
	if (!dev->fe || !dev->taken) {
		rc = explain(why, rc < 0 ? rc : -ENOMEM, "no memory for the rings");
		goto fail;
	}
	dev->fe->opts.seg_size = dev->info.size_max;
	rc = start(dev->fe, path, &dev->need, descriptors);
	if (rc < 0) {
		explain_connect(why, rc);
		goto fail;
	}
	*out = dev;
	return 0;
fail:
	fe_destroy(dev->fe);
	free(dev->taken);
	free(dev);
	return rc;
}

int device_get(const char *path, const struct device_need *need, struct device **out, char *why)
{
	struct device *dev = NULL;
	int rc = 0;

	pthread_mutex_lock(&lock);
	if (need->shared) {
		for (dev = devices; dev; dev = dev->next) {
			if (dev->need.shared && strcmp(dev->path, path) == 0)
				break;
		}
	}
	if (!dev) {
		rc = open_device(path, need, &dev, why);
		if (rc == 0) {
			dev->next = devices;
			devices = dev;
		}
	} else if (dev->need.packed != need->packed || dev->need.sleep != need->sleep) {
		snprintf(why, DEVICE_WHY, "jobs that share a connection must agree in packed= and wait=");
		rc = -EINVAL;
	}
	if (rc == 0) {
		dev->users++;
		*out = dev;
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

void device_put(struct device *dev)
{
	if (!dev)
		return;
	pthread_mutex_lock(&lock);
	if (--dev->users == 0) {
		struct device **at = &devices;

		while (*at != dev)
			at = &(*at)->next;
		*at = dev->next;
		if (!device_dead(dev))
			fe_stop(dev->fe);
		fe_destroy(dev->fe);
		free(dev->taken);
		free(dev);
	}
	pthread_mutex_unlock(&lock);
}

struct fe_vq *device_take_queue(struct device *dev)
{
	struct fe_vq *vq = NULL;

	pthread_mutex_lock(&lock);
	for (unsigned int i = 0; i < dev->need.queues && !vq; i++) {
		/* Not one whose last job gave up on its requests. */
		if (!dev->taken[i] && dev->fe->vqs[i].in_flight == 0) {
			dev->taken[i] = true;
			vq = &dev->fe->vqs[i];
		}
	}
	pthread_mutex_unlock(&lock);
	return vq;
}

void device_give_queue(struct device *dev, struct fe_vq *vq)
{
	pthread_mutex_lock(&lock);
	dev->taken[vq->index] = false;
	pthread_mutex_unlock(&lock);
}

bool device_kill(struct device *dev)
{
	return !__atomic_exchange_n(&dev->dead, true, __ATOMIC_RELAXED);
}
