/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * See harness.h. Tests run on the main thread, which is the control thread, so
 * that they may call everything CONTROL_ONLY directly; to wait they re-enter
 * control_run(), and the callback they wait for calls control_stop().
 *
 * Results are counted from outside cmocka: every test is wrapped, and a test
 * that neither came to its end nor counts as failed was skipped.
 */
#include "harness.h"

#include "reactor/log.h"
#include "reactor/worker.h"

#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__has_feature)
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
	HAS_FEATURE(address_sanitizer) || HAS_FEATURE(thread_sanitizer)
#define PATIENCE_MS 120000
#else
#define PATIENCE_MS 30000
#endif

#define PATHS 16

/* ------- running a group ------- */

/* One test as given, and how far it came. */
struct wrapped {
	const struct CMUnitTest *test;
	void *state;
	bool finished, torn_down;
};

static struct {
	CMFixtureFunction setup, teardown;
	void *state;
	const char *running;
	char dir[32];
	char paths[PATHS][256];
	unsigned int next_path;
} group;

static void run_wrapped(void **state)
{
	struct wrapped *w = *state;

	group.running = w->test->name;
	w->test->test_func(&w->state);
	w->finished = true;
}

static int setup_wrapped(void **state)
{
	struct wrapped *w = *state;

	w->state = w->test->initial_state ? w->test->initial_state : group.state;
	return w->test->setup_func ? w->test->setup_func(&w->state) : 0;
}

static int teardown_wrapped(void **state)
{
	struct wrapped *w = *state;
	int rc = w->test->teardown_func ? w->test->teardown_func(&w->state) : 0;

	w->torn_down = rc == 0;
	return rc;
}

static int setup_group(void **state)
{
	int rc = group.setup ? group.setup(state) : 0;

	group.state = *state;
	return rc;
}

static int teardown_group(void **state)
{
	return group.teardown ? group.teardown(state) : 0;
}

int harness_main(const char *suite, const struct CMUnitTest *tests, size_t count,
		 CMFixtureFunction setup, CMFixtureFunction teardown)
{
	struct CMUnitTest *outer = calloc(count, sizeof(*outer));
	struct wrapped *inner = calloc(count, sizeof(*inner));
	unsigned int failed, unfinished = 0, late = 0, skipped;

	setvbuf(stdout, NULL, _IOLBF, 0);
	group.setup = setup;
	group.teardown = teardown;
	for (size_t i = 0; i < count; i++) {
		inner[i].test = &tests[i];
		outer[i] = (struct CMUnitTest){
			.name = tests[i].name, .test_func = run_wrapped,
			.setup_func = setup_wrapped, .teardown_func = teardown_wrapped,
			.initial_state = &inner[i],
		};
	}
	failed = (unsigned)_cmocka_run_group_tests(suite, outer, count, setup_group,
						   teardown_group);
	for (size_t i = 0; i < count; i++) {
		unfinished += !inner[i].finished;
		/* Its body passed and its end failed: among `failed`, not among `unfinished`. */
		late += inner[i].finished && !inner[i].torn_down;
	}
	failed = MIN(failed, (unsigned)count);
	skipped = unfinished + late > failed ? unfinished + late - failed : 0;
	free(outer);
	free(inner);
	fflush(stderr);
	printf("%u passed, %u failed, %u skipped\n", (unsigned)count - failed - skipped, failed,
	       skipped);
	return failed > 0;
}

void harness_skip_reason(const char *fmt, ...)
{
	va_list ap;

	printf("skip: %s: ", group.running);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
}

/* ------- the process ------- */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static void remove_dir(void)
{
	if (group.dir[0])
		nftw(group.dir, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
	group.dir[0] = '\0';
}

_Noreturn static void give_up(const char *what)
{
	fprintf(stderr, "%s: %s\n", group.running ? group.running : "harness", what);
	remove_dir();
	abort();
}

void harness_start(unsigned int cores, uint64_t poll_us)
{
	struct reactor_config config = { .poll_us = poll_us };
	cpu_set_t allowed;

	if (sched_getaffinity(0, sizeof(allowed), &allowed) < 0)
		give_up("no affinity");
	for (unsigned int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (CPU_ISSET(cpu, &allowed) && cpumask_count(&config.mask) < cores)
			cpumask_set(&config.mask, cpu);
	}
	snprintf(group.dir, sizeof(group.dir), "/tmp/spu.XXXXXX");
	if (!mkdtemp(group.dir))
		give_up("no temporary directory");
	if (control_init() < 0 || workers_start() < 0 || reactors_start(&config) < 0)
		give_up("cannot start control, workers or reactors");
}

static bool all_deleted;

static void deleted_all(void)
{
	all_deleted = true;
	harness_wake();
}

void harness_stop(void)
{
	all_deleted = false;
	bdev_delete_all(deleted_all);
	harness_wait(&all_deleted);
	reactors_stop();
	workers_stop(5000);
	control_fini();
	remove_dir();
}

int harness_setup(void **state)
{
	(void)state;
	harness_start(1, 20);
	return 0;
}

int harness_setup_two(void **state)
{
	(void)state;
	harness_start(2, 20);
	return 0;
}

int harness_teardown(void **state)
{
	(void)state;
	harness_stop();
	return 0;
}

/* ------- waiting ------- */

static void patience_over(struct control_timer *t)
{
	(void)t;
	give_up("waited too long");
}

void harness_wake(void)
{
	control_stop();
}

void harness_wait(const bool *flag)
{
	struct control_timer patience = { .fn = patience_over };
	unsigned int runs = 0;

	control_timer_start(&patience, PATIENCE_MS);
	while (!*flag) {
		/* Each return is somebody's wake; so many would be a loop that no longer runs. */
		if (++runs == 1000000)
			give_up("control_run() does not run again after control_stop()");
		control_run();
	}
	control_timer_stop(&patience);
}

static void just_wake(struct control_timer *t)
{
	(void)t;
	control_stop();
}

void harness_wait_until(bool (*cond)(void *arg), void *arg)
{
	struct control_timer patience = { .fn = patience_over }, look = { .fn = just_wake };

	control_timer_start(&patience, PATIENCE_MS);
	while (!cond(arg)) {
		control_timer_start(&look, 2);
		control_run();
	}
	control_timer_stop(&look);
	control_timer_stop(&patience);
}

struct sleeper {
	struct control_timer timer;
	bool over;
};

static void sleep_over(struct control_timer *t)
{
	container_of(t, struct sleeper, timer)->over = true;
	control_stop();
}

void harness_sleep(unsigned int ms)
{
	struct sleeper s = { .timer.fn = sleep_over };

	control_timer_start(&s.timer, ms);
	harness_wait(&s.over);
}

struct visit {
	struct msg msg;
	void (*fn)(void *arg);
	void *arg;
	bool done;
};

static void visit_home(struct msg *msg)
{
	container_of(msg, struct visit, msg)->done = true;
	control_stop();
}

static void visit_there(struct msg *msg)
{
	struct visit *v = container_of(msg, struct visit, msg);

	v->fn(v->arg);
	v->msg.fn = visit_home;
	control_post(&v->msg);
}

void harness_on_reactor(unsigned int index, void (*fn)(void *arg), void *arg)
{
	struct visit v = { .msg.fn = visit_there, .fn = fn, .arg = arg };

	reactor_post(reactor_by_index(index), &v.msg);
	harness_wait(&v.done);
}

/* ------- bdevs ------- */

static void result_done(struct bdev_result *res)
{
	control_assert();
	container_of(res, struct harness_result, res)->done = true;
	harness_wake();
}

struct bdev_result *harness_result_init(struct harness_result *hr)
{
	memset(hr, 0, sizeof(*hr));
	hr->res.fn = result_done;
	return &hr->res;
}

int harness_result(struct harness_result *hr)
{
	harness_wait(&hr->done);
	return hr->res.status;
}

int harness_delete(const char *name)
{
	struct harness_result hr;

	bdev_delete(name, NULL, harness_result_init(&hr));
	return harness_result(&hr);
}

static void user_event(struct bdev_desc *desc, enum bdev_event event)
{
	struct harness_user *user = container_of(desc, struct harness_user, desc);

	control_assert();
	if (event == BDEV_EVENT_RESIZE) {
		user->resizes++;
		return;
	}
	user->removes++;
	if (user->close_on_remove) {
		bdev_channel_put(user->ch);
		user->ch = NULL;
		bdev_close(desc);
	}
}

void harness_open(struct harness_user *user, const char *name, unsigned int reactor)
{
	memset(user, 0, sizeof(*user));
	user->desc.event = user_event;
	assert_int_equal(bdev_open(name, false, &user->desc), 0);
	user->ch = bdev_channel_get(&user->desc, reactor_by_index(reactor));
	assert_non_null(user->ch);
}

static void nothing(void *arg)
{
	(void)arg;
}

void harness_close(struct harness_user *user)
{
	unsigned int reactor = 0;

	if (user->ch) {
		struct bdev *bdev = bdev_channel_bdev(user->ch);

		for (unsigned int i = 0; i < reactor_count(); i++) {
			if (bdev->channels[i] == user->ch)
				reactor = i;
		}
	}
	bdev_channel_put(user->ch);
	user->ch = NULL;
	if (user->desc.bdev)
		bdev_close(&user->desc);
	/* Behind the close message, there and back: twice for a bdev over another. */
	harness_on_reactor(reactor, nothing, NULL);
	harness_on_reactor(reactor, nothing, NULL);
}

static void io_home(struct msg *msg)
{
	container_of(msg, struct harness_io, msg)->done = true;
	harness_wake();
}

static void io_done(struct bdev_io *io, int status)
{
	struct harness_io *hio = container_of(io, struct harness_io, io);

	reactor_assert();
	hio->status = status;
	hio->msg.fn = io_home;
	control_post(&hio->msg);
}

static void io_there(struct msg *msg)
{
	struct harness_io *hio = container_of(msg, struct harness_io, msg);

	reactor_assert();
	bdev_submit(&hio->io);
}


/* The reactor of the user's channel. */
static struct reactor *user_reactor(const struct harness_user *user)
{
	for (unsigned int i = 0; i < reactor_count(); i++) {
		if (user->desc.bdev->channels[i] == user->ch)
			return reactor_by_index(i);
	}
	give_up("a user without a channel");
}

void harness_io_start(struct harness_io *hio, struct harness_user *user)
{
	hio->io.ch = user->ch;
	hio->io.done = io_done;
	hio->done = false;
	hio->msg.fn = io_there;
	reactor_post(user_reactor(user), &hio->msg);
}

int harness_io_wait(struct harness_io *hio)
{
	harness_wait(&hio->done);
	return hio->status;
}

int harness_iov(struct harness_user *user, enum bdev_io_type type, uint64_t offset,
		struct iovec *iov, uint32_t iovcnt)
{
	struct harness_io hio = { .io = { .type = (uint8_t)type, .offset = offset, .iov = iov,
					  .iovcnt = iovcnt } };

	for (uint32_t i = 0; i < iovcnt; i++)
		hio.io.length += iov[i].iov_len;
	harness_io_start(&hio, user);
	return harness_io_wait(&hio);
}

int harness_rw(struct harness_user *user, enum bdev_io_type type, uint64_t offset, void *buf,
	       size_t len)
{
	struct iovec iov = { .iov_base = buf, .iov_len = len };

	return harness_iov(user, type, offset, &iov, 1);
}

int harness_range(struct harness_user *user, enum bdev_io_type type, uint64_t offset,
		  uint64_t len, uint8_t flags)
{
	struct harness_io hio = { .io = { .type = (uint8_t)type, .offset = offset, .length = len,
					  .flags = flags } };

	harness_io_start(&hio, user);
	return harness_io_wait(&hio);
}

static void cancel_there(void *arg)
{
	reactor_assert();
	bdev_channel_cancel(arg);
}

void harness_cancel(struct harness_user *user)
{
	harness_on_reactor(reactor_index(user_reactor(user)), cancel_there, user->ch);
}

/* ------- files and memory ------- */

const char *harness_path(const char *name)
{
	char *path = group.paths[group.next_path++ % PATHS];

	snprintf(path, sizeof(group.paths[0]), "%s/%s", group.dir, name);
	return path;
}

const char *harness_file(const char *name, uint64_t size)
{
	const char *path = harness_path(name);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	close(fd);
	return path;
}

void harness_fill(void *buf, size_t len, uint64_t seed)
{
	unsigned char *p = buf;
	uint64_t x = seed * 0x9e3779b97f4a7c15ull + 1;

	for (size_t i = 0; i < len; i++) {
		if (i % 8 == 0)
			x = (x ^ (x >> 27)) * 0x94d049bb133111ebull + i;
		p[i] = (unsigned char)(x >> (i % 8 * 8));
	}
}

void *harness_pages(size_t len)
{
	void *p = aligned_alloc(4096, (len + 4095) & ~(size_t)4095);

	assert_non_null(p);
	return p;
}

/* ------- allocations that fail; the linker sends our code's calls here ------- */

static _Atomic unsigned int fail_in;
static _Atomic bool fail_happened;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);

void harness_fail_alloc(unsigned int n)
{
	atomic_store(&fail_happened, false);
	atomic_store(&fail_in, n);
}

bool harness_fail_reached(void)
{
	return atomic_load(&fail_happened);
}

static bool fails_now(void)
{
	unsigned int n = atomic_load(&fail_in);

	do {
		if (n == 0)
			return false;
	} while (!atomic_compare_exchange_weak(&fail_in, &n, n - 1));
	if (n != 1)
		return false;
	atomic_store(&fail_happened, true);
	errno = ENOMEM;
	return true;
}

void *__wrap_malloc(size_t size)
{
	return fails_now() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	return fails_now() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size)
{
	return fails_now() ? NULL : __real_realloc(p, size);
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
	return fails_now() ? NULL : __real_aligned_alloc(align, size);
}
