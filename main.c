/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The front door: flags, the order of starting and of stopping.
 *
 * Starting goes floor by floor upwards; then the saved configuration is loaded, by
 * the control loop, and the RPC socket opens last, so whoever can connect finds
 * everything in place but what is away. Stopping closes the RPC socket first,
 * then ends sessions and bdevs side by side (a backend that holds requests back
 * is told to let go), then the threads. What cannot be drained in DRAIN_MS is
 * left: the kernel ends it with us. A second signal does not wait at all.
 */
#include "bdev/bdev.h"
#include "hugepages/hugepages.h"
#include "reactor/control.h"
#include "reactor/log.h"
#include "reactor/reactor.h"
#include "reactor/worker.h"
#include "rpc/config.h"
#include "rpc/rpc.h"
#include "rpc/takeover.h"
#include "vhost/vhost.h"

#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define DRAIN_MS 2000
/* Where a request has waited for this long already, hardly any time is given. */
#define STUCK_US 500000
#define STUCK_DRAIN_MS 200
#define WORKERS_MS 1000
#define DRAIN_ROUNDS 4
/* How often to look whether a predecessor has let go, and when calls wait no longer. */
#define FOLLOW_MS 50u
#define FOLLOW_MAX_MS 2000u
#define FOLLOW_LATE_MS 10000u

struct options {
	const char *socket_dir;
	const char *rpc_path;
	const char *rpcs_allowed;
	const char *pidfile;
	const char *mask;
	const char *sqpoll_mask;
	struct rpc_files files;
	struct huge_config huge;
	uint64_t poll_us;
	uint64_t rbd_connections;	/* 0: the default */
	uint64_t stop_ms;		/* of a takeover; 0: the predecessor's default */
	bool no_rpc;
	bool wait_for_rpc;
	bool lock_cores;
	bool sqpoll;
	bool takeover;
};

static struct {
	struct control_fd signals;
	struct control_timer drain;
	struct options *options;
	/* Of a takeover. */
	int rpc_fds[2], predecessor;
	struct control_timer follow;
	unsigned int follow_ms, followed_ms;	/* to the next look, and all before */
	bool succeeded;		/* by another process: the files are its own now */
	bool stopping;		/* as soon as the takeover under way has been ended */
	unsigned int draining;	/* parts still to finish */
	bool left;		/* with requests in flight */
	int exit_code;
} app = { .signals.fd = -1 };

static const char usage[] =
"Usage: vhost [options]\n"
"A polled vhost-user-blk target: disks for virtual machines.\n"
"\n"
"  -S DIR                    where controllers' sockets are made (.)\n"
"  -m, --cpumask MASK        cores to run reactors on: 0x3, 3 or [0,1] (0x1)\n"
"  -c, --config, --json FILE make the bdevs and controllers of a saved configuration\n"
"      --json-ignore-init-errors  leave out what of it is refused\n"
"      --state FILE          keep the configuration there, and start with it\n"
"  -r, --rpc-socket PATH     RPC socket (/var/tmp/spdk.sock)\n"
"      --no-rpc-server       no RPC socket\n"
"      --rpcs-allowed A,B    only these RPC methods\n"
"      --wait-for-rpc        serve only start-up RPCs until framework_start_init\n"
"  -f, --pidfile FILE        write the process id there\n"
"  -s, --mem-size MB         use at most so much memory for pools and malloc bdevs\n"
"      --huge-dir DIR        the hugetlbfs to use\n"
"      --no-huge             normal pages instead of huge pages\n"
"      --interrupt-mode      sleep whenever there is nothing to do\n"
"      --rbd-connections N   connections to a Ceph cluster that disks share (2)\n"
"      --poll-us N           sleep after N microseconds without work (never)\n"
"      --sqpoll[=MASK]       a kernel thread submits each reactor's file I/O, on these cores\n"
"      --takeover[=MS]       take everything over from the process at the RPC socket,\n"
"                            whose rings have MS milliseconds to stop (1000)\n"
"      --disable-cpumask-locks  do not keep other targets off the cores\n"
"  -L, --logflag FLAG        debug lines of reactor, bdev, vhost, rpc or all\n"
"      --log-level LEVEL     ERROR, WARNING, NOTICE, INFO or DEBUG (NOTICE)\n"
"      --silence-noticelog   warnings and errors only\n"
"  -v, --version             print the version\n"
"  -h, --help                print this\n";

/* ------- flags ------- */

enum {
	OPT_NO_RPC = 256, OPT_ALLOWED, OPT_WAIT, OPT_HUGE_DIR, OPT_NO_HUGE, OPT_INTERRUPT,
	OPT_POLL_US, OPT_TAKEOVER, OPT_RBD_CONNECTIONS, OPT_NO_LOCKS, OPT_LEVEL, OPT_SILENCE, OPT_STATE,
	OPT_IGNORE_ERRORS, OPT_SQPOLL,
};

static const struct option long_options[] = {
	{ "cpumask", required_argument, NULL, 'm' },
	{ "config", required_argument, NULL, 'c' },
	{ "json", required_argument, NULL, 'c' },
	{ "json-ignore-init-errors", no_argument, NULL, OPT_IGNORE_ERRORS },
	{ "state", required_argument, NULL, OPT_STATE },
	{ "rpc-socket", required_argument, NULL, 'r' },
	{ "no-rpc-server", no_argument, NULL, OPT_NO_RPC },
	{ "rpcs-allowed", required_argument, NULL, OPT_ALLOWED },
	{ "wait-for-rpc", no_argument, NULL, OPT_WAIT },
	{ "pidfile", required_argument, NULL, 'f' },
	{ "mem-size", required_argument, NULL, 's' },
	{ "huge-dir", required_argument, NULL, OPT_HUGE_DIR },
	{ "no-huge", no_argument, NULL, OPT_NO_HUGE },
	{ "interrupt-mode", no_argument, NULL, OPT_INTERRUPT },
	{ "poll-us", required_argument, NULL, OPT_POLL_US },
	{ "sqpoll", optional_argument, NULL, OPT_SQPOLL },
	{ "rbd-connections", required_argument, NULL, OPT_RBD_CONNECTIONS },
	{ "takeover", optional_argument, NULL, OPT_TAKEOVER },
	{ "disable-cpumask-locks", no_argument, NULL, OPT_NO_LOCKS },
	{ "logflag", required_argument, NULL, 'L' },
	{ "log-level", required_argument, NULL, OPT_LEVEL },
	{ "silence-noticelog", no_argument, NULL, OPT_SILENCE },
	{ "version", no_argument, NULL, 'v' },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

static bool parse_number(const char *text, uint64_t max, uint64_t *value)
{
	unsigned long long v;
	char *end;

	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno || end == text || *end || text[0] == '-' || v > max)
		return false;
	*value = v;
	return true;
}

/* Levels and flags of the log; false when the argument is no such thing. */
static bool log_option(int opt, const char *arg)
{
	enum log_level level;

	if (opt == OPT_SILENCE) {
		log_set_print_level(LOG_WARNING);
		return true;
	}
	if (opt == 'L')
		return log_set_flag(arg, true) == 0;
	if (log_level_parse(arg, &level) < 0)
		return false;
	log_set_level(level);
	log_set_print_level(level);
	return true;
}

/* One option; false when its argument is wrong. */
static bool take_option(struct options *o, int opt, const char *arg)
{
	uint64_t mb;

	switch (opt) {
	case 'S': o->socket_dir = arg; break;
	case 'm': o->mask = arg; break;
	case 'r': o->rpc_path = arg; break;
	case 'f': o->pidfile = arg; break;
	case 'c': o->files.config = arg; break;
	case OPT_STATE: o->files.state = arg; break;
	case OPT_IGNORE_ERRORS: o->files.ignore_errors = true; break;
	case OPT_NO_RPC: o->no_rpc = true; break;
	case OPT_ALLOWED: o->rpcs_allowed = arg; break;
	case OPT_WAIT: o->wait_for_rpc = true; break;
	case OPT_HUGE_DIR: o->huge.huge_dir = arg; break;
	case OPT_NO_HUGE: o->huge.no_huge = true; break;
	case OPT_INTERRUPT: o->poll_us = 0; break;
	case OPT_SQPOLL: o->sqpoll = true; o->sqpoll_mask = arg; break;
	case OPT_NO_LOCKS: o->lock_cores = false; break;
	case OPT_RBD_CONNECTIONS:
		return parse_number(arg, 64, &o->rbd_connections) && o->rbd_connections > 0;
	case OPT_TAKEOVER:
		o->takeover = true;
		return !arg || (parse_number(arg, 60000, &o->stop_ms) && o->stop_ms > 0);
	case OPT_POLL_US:
		return parse_number(arg, 1000000000, &o->poll_us);
	case 's':
		if (!parse_number(arg, SIZE_MAX >> 20, &mb) || mb == 0)
			return false;
		o->huge.limit = (size_t)mb << 20;
		break;
	default:
		return log_option(opt, arg);
	}
	return true;
}

/* -1: go on; else the exit code. */
static int parse_options(struct options *o, int argc, char **argv)
{
	int opt;

	while ((opt = getopt_long(argc, argv, "S:m:c:r:f:s:L:vh", long_options, NULL)) != -1) {
		if (opt == 'h') {
			fputs(usage, stdout);
			return 0;
		}
		if (opt == 'v') {
			printf("Spindle %s\n", SPINDLE_VERSION);
			return 0;
		}
		if (opt == '?') {
			fputs("Try --help.\n", stderr);
			return 1;
		}
		if (!take_option(o, opt, optarg)) {
			fprintf(stderr, "vhost: bad argument '%s'; try --help\n", optarg);
			return 1;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "vhost: what is '%s'? Try --help.\n", argv[optind]);
		return 1;
	}
	if (o->takeover && (o->no_rpc || o->wait_for_rpc)) {
		fputs("vhost: --takeover goes by the RPC socket and starts at once; "
		      "--no-rpc-server and --wait-for-rpc do not go with it\n", stderr);
		return 1;
	}
	if (o->wait_for_rpc && (o->files.config || o->files.state)) {
		fputs("vhost: --wait-for-rpc leaves the start to RPC; -c and --state do not go "
		      "with it\n", stderr);
		return 1;
	}
	return -1;
}

/* ------- stopping ------- */

static void part_done(void) CONTROL_ONLY;
static void part_done(void)
{
	if (--app.draining > 0)
		return;
#if SPINDLE_RBD
	bdev_rbd_fini();
#endif
	control_stop();
}

static void drain_timeout(struct control_timer *t)
{
	(void)t;
	control_assert();
	/* Guests are a successor's by then, if there is one: it is a disk that does not close. */
	log_warning("%s: leaving without them", app.succeeded ? "disks do not close" :
		    "requests do not end");
	if (!app.succeeded)
		app.exit_code = 1;
	app.left = true;
	control_stop();
}

static void part_done_cb(void)
{
	control_assert();
	part_done();
}

CONTROL_ONLY static unsigned int drain_ms(void)
{
#if SPINDLE_RBD
	if (bdev_rbd_any_stuck(STUCK_US))
		return STUCK_DRAIN_MS;
#endif
	return DRAIN_MS;
}

CONTROL_ONLY static void shut_down(void)
{
	app.draining = 2;
	app.drain.fn = drain_timeout;
	control_timer_start(&app.drain, drain_ms());
	/* First: what goes from now on is not to go from the state. */
	rpc_files_stop();
	rpc_stop();
	vhost_fini(part_done_cb);
	bdev_delete_all(part_done_cb);
}

static void stop_now(void)
{
	control_assert();
	shut_down();
}

/* A successor has taken over. */
static void leave(void)
{
	control_assert();
	app.succeeded = true;
	rpc_disown();
	if (!app.draining)
		shut_down();
}

static void signal_event(struct control_fd *cf, uint32_t events)
{
	struct signalfd_siginfo info;

	(void)events;
	control_assert();
	if (read(cf->fd, &info, sizeof(info)) != sizeof(info))
		return;
	if (info.ssi_signo == SIGHUP || info.ssi_signo == SIGUSR1) {
		log_notice("%s: nothing to do", strsignal((int)info.ssi_signo));
		return;
	}
	if (app.draining || app.stopping) {
		log_warning("second signal: leaving at once");
		_exit(1);
	}
	/* Nothing is ours yet, and the predecessor goes on. */
	if (app.options->takeover) {
		log_notice("%s: no takeover", strsignal((int)info.ssi_signo));
		_exit(1);
	}
	log_notice("%s: shutting down", strsignal((int)info.ssi_signo));
	app.stopping = true;
	if (!takeover_abort(stop_now))
		shut_down();
}

/* ------- starting ------- */

CONTROL_ONLY static int signals_init(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	app.signals.fn = signal_event;
	app.signals.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (app.signals.fd < 0)
		return -errno;
	return control_fd_add(&app.signals, EPOLLIN);
}

/* Each disk of each guest costs a few: take all we are allowed. */
static void raise_fd_limit(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim) == 0 && lim.rlim_cur < lim.rlim_max) {
		lim.rlim_cur = lim.rlim_max;
		setrlimit(RLIMIT_NOFILE, &lim);
	}
}

static int write_pidfile(const char *path)
{
	FILE *f = fopen(path, "we");

	if (!f) {
		log_error("cannot write %s: %m", path);
		return -errno;
	}
	fprintf(f, "%d\n", (int)getpid());
	fclose(f);
	return 0;
}

static void remove_pidfile(const struct options *o)
{
	if (o->pidfile && !app.succeeded)
		unlink(o->pidfile);
}

/* Tell systemd, if it asked (Type=notify): what is ordered after us may start. */
static void notify_ready(void)
{
	char text[64];
	int text_len = app.predecessor ?
		snprintf(text, sizeof(text), "READY=1\nMAINPID=%d", (int)getpid()) :
		snprintf(text, sizeof(text), "READY=1");
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	size_t len = path ? strlen(path) : 0;
	int fd;

	if (len == 0 || len >= sizeof(addr.sun_path))
		return;
	memcpy(addr.sun_path, path, len);
	if (path[0] == '@')
		addr.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return;
	if (sendto(fd, text, (size_t)text_len, MSG_NOSIGNAL, (const struct sockaddr *)&addr,
		   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) < 0)
		log_warning("cannot tell %s that we are up: %m", path);
	close(fd);
}

static struct rpc_config rpc_config_of(const struct options *o)
{
	return (struct rpc_config){ o->rpc_path, o->rpcs_allowed, o->wait_for_rpc,
				    app.predecessor ? app.rpc_fds : NULL };
}

/* The configuration is there: now others may look at it. */
static void loaded(void *arg, int status)
{
	const struct options *o = arg;
	struct rpc_config rpc = rpc_config_of(o);
	char mask[CPUMASK_STR];

	control_assert();
	if (app.draining)
		return;
	if (status == 0 && !o->no_rpc)
		status = rpc_start(&rpc);
	if (status < 0) {
		app.exit_code = 1;
		shut_down();
		return;
	}
	log_notice("Spindle %s is up: core mask %s, sockets in %s", SPINDLE_VERSION,
		   cpumask_format(reactors_mask(), mask), o->socket_dir);
	notify_ready();
}

/* What only one process can have, as soon as the predecessor has let go of it. */
static void follow(struct control_timer *t)
{
	struct options *o = app.options;
	bool late = app.followed_ms < FOLLOW_LATE_MS &&
		app.followed_ms + app.follow_ms >= FOLLOW_LATE_MS;
	int rc;

	control_assert();
	if (app.draining)
		return;
	rc = rpc_files_follow(&o->files, late);
	if (rc == -EBUSY) {
		app.followed_ms += app.follow_ms;
		app.follow_ms = MIN(app.follow_ms * 2, FOLLOW_MAX_MS);
		control_timer_start(t, app.follow_ms);
		return;
	}
	if (rc < 0)
		log_error("going on without keeping the state");
	if (o->lock_cores && reactors_lock_cores() < 0)
		log_warning("going on without the core locks");
}

static void predecessor_gone(void)
{
	control_assert();
	app.follow_ms = FOLLOW_MS;
	app.follow.fn = follow;
	follow(&app.follow);
}

static void taken_over(void *arg, int status)
{
	struct options *o = arg;

	control_assert();
	app.succeeded = status < 0;
	if (status == 0 && o->pidfile)
		write_pidfile(o->pidfile);
	o->takeover = false;
	if (status == 0)
		rpc_files_expect(&o->files);
	loaded(arg, status);
}

CONTROL_ONLY static int start(struct options *o)
{
	struct reactor_config reactors = {
		.poll_us = o->poll_us, .lock_cores = o->lock_cores && !o->takeover,
		.sqpoll = o->sqpoll,
	};
	const struct takeover_config takeover = { o->rpc_path, (uint32_t)o->stop_ms, app.rpc_fds,
						  &app.predecessor, predecessor_gone };
	const struct rpc_config rpc = rpc_config_of(o);
	int rc;

	if (cpumask_parse(o->mask, &reactors.mask) < 0) {
		log_error("'%s' is not a core mask", o->mask);
		return -EINVAL;
	}
	if (o->sqpoll_mask && cpumask_parse(o->sqpoll_mask, &reactors.sqpoll_cpus) < 0) {
		log_error("'%s' is not a core mask", o->sqpoll_mask);
		return -EINVAL;
	}
#if SPINDLE_RBD
	if (o->rbd_connections)
		bdev_rbd_set_connections((unsigned int)o->rbd_connections);
#endif
	rc = huge_init(&o->huge);
	if (rc < 0) {
		log_error("cannot set up memory: %s", strerror(-rc));
		return rc;
	}
	/* Until the rings are ours the cores are the predecessor's. */
	reactors_yield(o->takeover);
	rc = signals_init();
	if (rc == 0)
		rc = workers_start();
	if (rc == 0)
		rc = reactors_start(&reactors);
	if (rc == 0)
		rc = vhost_init(o->socket_dir);
	if (rc == 0)
		vhost_offer_postcopy();
	app.options = o;
	takeover_on_loss(leave);
	/* What is wrong with it must be known while there is a predecessor. */
	if (rc == 0 && o->takeover)
		rc = rpc_prepare(&rpc);
	if (rc == 0 && o->takeover)
		return takeover_begin(&takeover, taken_over, o);
	if (rc == 0 && o->pidfile)
		rc = write_pidfile(o->pidfile);
	if (rc == 0)
		rc = rpc_files_load(&o->files, loaded, o);
	return rc;
}

int main(int argc, char **argv)
{
	struct options o = {
		.socket_dir = ".",
		.rpc_path = "/var/tmp/spdk.sock",
		.mask = "0x1",
		.poll_us = REACTOR_POLL_ALWAYS,
		.lock_cores = true,
	};
	unsigned int rounds = 0;
	int rc;

	vhost_pager(argv[0]);
	rc = parse_options(&o, argc, argv);
	if (rc >= 0)
		return rc;
	raise_fd_limit();
	if (control_init() < 0)
		return 1;
	control_assert();
	rc = start(&o);
	if (rc == 0) {
		control_run();
	} else {
		log_error("cannot start: %s", strerror(-rc));
		app.exit_code = 1;
	}
	/* With requests left behind, the threads may be anywhere: just go. */
	if (app.left) {
		remove_pidfile(&o);
		_exit(app.exit_code);
	}
	if (reactor_count() > 0)
		reactors_stop();
	/* Ending one thing may give a worker the next: a connection after its image. */
	do {
		workers_stop(WORKERS_MS);
	} while (control_drain() && rounds++ < DRAIN_ROUNDS);
	control_fini();
	remove_pidfile(&o);
	/* A thread that hangs in a library must not meet that library's destructors. */
	if (workers_left())
		_exit(app.exit_code);
	return app.exit_code;
}
