/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The methods about the target itself: version, method list, start-up state,
 * reactors and threads, the log, signals; and the methods that SPDK's saved
 * configuration files carry and that mean nothing here, which are accepted.
 *
 * What SPDK calls a thread is here the control thread ("app_thread", id 1) and
 * one per reactor ("reactor_<core>", id 2 and up).
 *
 * Pollers belong to their reactors, so listing them visits each reactor. The
 * visit fills arrays allocated beforehand, since a reactor allocates nothing.
 */
#include "rpc/rpc.h"

#include "reactor/cpumask.h"
#include "reactor/log.h"
#include "reactor/reactor.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define POLLERS_MAX 256u
#define APP_THREAD_ID 1u
#define FIRST_REACTOR_ID 2u

struct scheduler {
	struct rpc_word name;
	uint64_t period, load_limit, core_limit, core_busy;
	const char *mappings;
};

struct enabled_args {
	bool enabled;
};

static struct {
	struct scheduler scheduler;
	struct enabled_args context_switch_monitor;
	struct list init_waiters;	/* rpc_call.node */
} app = {
	.scheduler = { .period = 1000000, .load_limit = 20, .core_limit = 80, .core_busy = 95 },
	.init_waiters = LIST_INIT(app.init_waiters),
};

/* ------- version, methods, start ------- */

static void spdk_get_version(struct rpc_call *call) CONTROL_ONLY
{
	struct json_out *w = rpc_result(call);

	json_out_object(w);
	json_put_string(w, "version", "Spindle v" SPINDLE_VERSION);
	json_put_object(w, "fields");
	json_put_u64(w, "major", SPINDLE_VERSION_MAJOR);
	json_put_u64(w, "minor", SPINDLE_VERSION_MINOR);
	json_put_u64(w, "patch", SPINDLE_VERSION_PATCH);
	json_put_string(w, "suffix", "");
	json_out_object_end(w);
	json_out_object_end(w);
	rpc_reply(call);
}

struct methods_args {
	bool current, include_aliases;
};
static const struct rpc_param methods_params[] = {
	RPC_PARAM(struct methods_args, current, RPC_OPTIONAL),
	RPC_PARAM(struct methods_args, include_aliases, RPC_OPTIONAL),
};

static void rpc_get_methods(struct rpc_call *call) CONTROL_ONLY
{
	const struct methods_args *args = (const void *)call->args;

	rpc_write_methods(rpc_result(call), args->current, args->include_aliases);
	rpc_reply(call);
}

static void framework_start_init(struct rpc_call *call) CONTROL_ONLY
{
	rpc_enter_runtime();
	rpc_reply_true(call);
	while (!list_empty(&app.init_waiters)) {
		struct rpc_call *waiter = list_first(&app.init_waiters, struct rpc_call, node);

		list_del(&waiter->node);
		rpc_reply_true(waiter);
	}
}

static void wait_init_cancel(struct rpc_call *call)
{
	control_assert();
	list_del(&call->node);
	rpc_reply_true(call);
}

static void framework_wait_init(struct rpc_call *call) CONTROL_ONLY
{
	if (rpc_is_runtime() || rpc_client_gone(call->client)) {
		rpc_reply_true(call);
		return;
	}
	call->cancel = wait_init_cancel;
	list_add_tail(&app.init_waiters, &call->node);
}

static void framework_get_subsystems(struct rpc_call *call) CONTROL_ONLY
{
	rpc_write_subsystems(rpc_result(call));
	rpc_reply(call);
}

struct config_args {
	const char *name;
	bool with_batches;	/* SPDK's, for its own huge configurations: no difference here */
};
static const struct rpc_param config_params[] = {
	RPC_PARAM(struct config_args, name, RPC_REQUIRED),
	RPC_PARAM(struct config_args, with_batches, RPC_OPTIONAL),
};

static void framework_get_config(struct rpc_call *call) CONTROL_ONLY
{
	const struct config_args *args = (const void *)call->args;
	char message[128];

	if (rpc_write_config(rpc_result(call), args->name)) {
		rpc_reply(call);
		return;
	}
	snprintf(message, sizeof(message), "Subsystem '%.80s' not found", args->name);
	rpc_reply_error(call, RPC_INVALID_PARAMS, message, NULL);
}

/* ------- reactors ------- */

/* "1" for core 0: the mask of one core without 0x, as SPDK writes it here. */
static void put_core_mask(struct json_out *w, const char *key, int cpu)
{
	char text[CPUMASK_STR];
	struct cpumask mask = { 0 };

	if (cpu >= 0)
		cpumask_set(&mask, (unsigned int)cpu);
	json_put_string(w, key, cpumask_format(&mask, text) + 2);
}

static const char *thread_name(unsigned int index, char name[32])
{
	snprintf(name, 32, "reactor_%u", reactor_cpu(reactor_by_index(index)));
	return name;
}

/* Time of one core in clock ticks; zeroes when /proc does not tell. */
struct core_times {
	unsigned long long usr, sys, irq;
};

static void read_core_times(FILE *stat, unsigned int cpu, struct core_times *t)
{
	char line[512];
	unsigned int core;

	*t = (struct core_times){ 0 };
	if (!stat)
		return;
	rewind(stat);
	while (fgets(line, sizeof(line), stat)) {
		struct core_times c;

		if (sscanf(line, "cpu%u %llu %*u %llu %*u %*u %llu", &core, &c.usr, &c.sys,
			   &c.irq) == 4 && core == cpu) {
			*t = c;
			return;
		}
	}
}

static void write_reactor(struct json_out *w, unsigned int index, FILE *stat)
{
	const struct reactor *r = reactor_by_index(index);
	struct reactor_times times;
	struct core_times core;
	char name[32];

	reactor_get_times(r, &times);
	read_core_times(stat, reactor_cpu(r), &core);
	json_out_object(w);
	json_put_u64(w, "lcore", reactor_cpu(r));
	json_put_i64(w, "numa_id", reactor_numa_node(r));
	json_put_i64(w, "tid", reactor_tid(r));
	json_put_u64(w, "busy", times.busy);
	json_put_u64(w, "idle", times.idle);
	json_put_bool(w, "in_interrupt", times.asleep || reactors_poll_us() == 0);
	json_put_u64(w, "irq", core.irq);
	json_put_u64(w, "sys", core.sys);
	json_put_u64(w, "usr", core.usr);
	json_put_array(w, "lw_threads");
	json_out_object(w);
	json_put_string(w, "name", thread_name(index, name));
	json_put_u64(w, "id", FIRST_REACTOR_ID + index);
	put_core_mask(w, "cpumask", (int)reactor_cpu(r));
	json_put_u64(w, "elapsed", times.busy + times.idle);
	json_out_object_end(w);
	json_out_array_end(w);
	json_out_object_end(w);
}

static void framework_get_reactors(struct rpc_call *call) CONTROL_ONLY
{
	struct json_out *w = rpc_result(call);
	FILE *stat = fopen("/proc/stat", "re");

	json_out_object(w);
	json_put_u64(w, "tick_rate", tsc_hz());
	json_put_i64(w, "pid", getpid());
	json_put_array(w, "reactors");
	for (unsigned int i = 0; i < reactor_count(); i++)
		write_reactor(w, i, stat);
	json_out_array_end(w);
	json_out_object_end(w);
	if (stat)
		fclose(stat);
	rpc_reply(call);
}

/* ------- threads ------- */

struct poller_info {
	char name[64];
	uint64_t runs, busy;
	bool parked;
};

/* What a visit of all reactors brings home. */
struct poller_survey {
	struct reactor_visit visit;
	struct rpc_call *call;
	unsigned int *counts;		/* by reactor; may exceed POLLERS_MAX */
	unsigned int *parked;		/* of these */
	struct poller_info *infos;	/* POLLERS_MAX each */
	unsigned int current;
};

static void survey_free(struct poller_survey *s)
{
	if (!s)
		return;
	free(s->counts);
	free(s->parked);
	free(s->infos);
	free(s);
}

static void survey_poller(struct poller *p, void *arg)
{
	struct poller_survey *s = arg;
	unsigned int n = s->counts[s->current]++;
	struct poller_info *info;

	s->parked[s->current] += p->parked;
	if (n >= POLLERS_MAX)
		return;
	info = &s->infos[s->current * POLLERS_MAX + n];
	snprintf(info->name, sizeof(info->name), "%s", p->name);
	info->runs = counter_read(&p->runs);
	info->busy = counter_read(&p->busy);
	info->parked = p->parked;
}

static void survey_reactor(struct reactor_visit *v)
{
	struct poller_survey *s = container_of(v, struct poller_survey, visit);

	reactor_assert();
	s->current = reactor_index(reactor_current());
	reactor_poller_each(survey_poller, s);
}

static void survey_start(struct rpc_call *call, void (*done)(struct reactor_visit *v)) CONTROL_ONLY
{
	struct poller_survey *s = calloc(1, sizeof(*s));

	if (s) {
		s->counts = calloc(reactor_count(), sizeof(*s->counts));
		s->parked = calloc(reactor_count(), sizeof(*s->parked));
		s->infos = calloc((size_t)reactor_count() * POLLERS_MAX, sizeof(*s->infos));
	}
	if (!s || !s->counts || !s->parked || !s->infos) {
		survey_free(s);
		rpc_reply_errno(call, -ENOMEM, NULL, false);
		return;
	}
	s->call = call;
	s->visit.fn = survey_reactor;
	s->visit.done = done;
	reactor_visit_all(&s->visit);
}

static void write_thread_stats(struct json_out *w, const char *name, unsigned int id, int cpu,
			       uint64_t busy, uint64_t idle, unsigned int pollers,
			       unsigned int parked)
{
	json_out_object(w);
	json_put_string(w, "name", name);
	json_put_u64(w, "id", id);
	put_core_mask(w, "cpumask", cpu);
	json_put_u64(w, "busy", busy);
	json_put_u64(w, "idle", idle);
	json_put_u64(w, "active_pollers_count", pollers - parked);
	json_put_u64(w, "timed_pollers_count", 0);
	json_put_u64(w, "paused_pollers_count", parked);
	json_out_object_end(w);
}

static struct json_out *threads_begin(struct rpc_call *call)
{
	struct json_out *w = rpc_result(call);

	json_out_object(w);
	json_put_u64(w, "tick_rate", tsc_hz());
	json_put_array(w, "threads");
	return w;
}

static void threads_end(struct rpc_call *call, struct json_out *w) CONTROL_ONLY
{
	json_out_array_end(w);
	json_out_object_end(w);
	rpc_reply(call);
}

static void stats_done(struct reactor_visit *v)
{
	struct poller_survey *s = container_of(v, struct poller_survey, visit);
	struct rpc_call *call = s->call;
	struct json_out *w = threads_begin(call);
	uint64_t busy, idle;
	char name[32];

	control_assert();
	control_get_times(&busy, &idle);
	write_thread_stats(w, "app_thread", APP_THREAD_ID, sched_getcpu(), busy, idle, 0, 0);
	for (unsigned int i = 0; i < reactor_count(); i++) {
		struct reactor_times t;

		reactor_get_times(reactor_by_index(i), &t);
		write_thread_stats(w, thread_name(i, name), FIRST_REACTOR_ID + i,
				   (int)reactor_cpu(reactor_by_index(i)), t.busy, t.idle,
				   s->counts[i], s->parked[i]);
	}
	survey_free(s);
	threads_end(call, w);
}

static void thread_get_stats(struct rpc_call *call) CONTROL_ONLY
{
	survey_start(call, stats_done);
}

/* Those of one reactor that are parked, or those that are not. */
static void put_pollers(struct json_out *w, const char *key, const struct poller_info *infos,
			unsigned int count, bool parked)
{
	json_put_array(w, key);
	for (unsigned int i = 0; i < count; i++) {
		if (infos[i].parked != parked)
			continue;
		json_out_object(w);
		json_put_string(w, "name", infos[i].name);
		json_put_u64(w, "id", i + 1);
		json_put_string(w, "state", parked ? "paused" : "waiting");
		json_put_u64(w, "run_count", infos[i].runs);
		json_put_u64(w, "busy_count", infos[i].busy);
		json_out_object_end(w);
	}
	json_out_array_end(w);
}

static void put_thread(struct json_out *w, const char *name, unsigned int id,
		       const struct poller_info *infos, unsigned int count)
{
	json_out_object(w);
	json_put_string(w, "name", name);
	json_put_u64(w, "id", id);
	put_pollers(w, "active_pollers", infos, count, false);
	put_pollers(w, "timed_pollers", NULL, 0, false);
	put_pollers(w, "paused_pollers", infos, count, true);
	json_out_object_end(w);
}

static void pollers_done(struct reactor_visit *v)
{
	struct poller_survey *s = container_of(v, struct poller_survey, visit);
	struct rpc_call *call = s->call;
	struct json_out *w = threads_begin(call);
	char name[32];

	control_assert();
	put_thread(w, "app_thread", APP_THREAD_ID, NULL, 0);
	for (unsigned int i = 0; i < reactor_count(); i++)
		put_thread(w, thread_name(i, name), FIRST_REACTOR_ID + i,
			   &s->infos[i * POLLERS_MAX], MIN(s->counts[i], POLLERS_MAX));
	survey_free(s);
	threads_end(call, w);
}

static void thread_get_pollers(struct rpc_call *call) CONTROL_ONLY
{
	survey_start(call, pollers_done);
}

static void write_channels(struct json_out *w, unsigned int index) CONTROL_ONLY
{
	struct bdev_stats stats;
	char name[BDEV_NAME_MAX + 8];

	for (struct bdev *b = bdev_next(NULL); b; b = bdev_next(b)) {
		if (!bdev_get_channel_stats(b, index, &stats))
			continue;
		snprintf(name, sizeof(name), "bdev_%s", b->name);
		json_out_object(w);
		json_put_string(w, "name", name);
		json_put_u64(w, "ref", 1);
		json_out_object_end(w);
	}
}

static void thread_get_io_channels(struct rpc_call *call) CONTROL_ONLY
{
	struct json_out *w = threads_begin(call);
	char name[32];

	json_out_object(w);
	json_put_string(w, "name", "app_thread");
	json_put_array(w, "io_channels");
	json_out_array_end(w);
	json_out_object_end(w);
	for (unsigned int i = 0; i < reactor_count(); i++) {
		json_out_object(w);
		json_put_string(w, "name", thread_name(i, name));
		json_put_array(w, "io_channels");
		write_channels(w, i);
		json_out_array_end(w);
		json_out_object_end(w);
	}
	threads_end(call, w);
}

/* ------- scheduler and the like: remembered, without effect ------- */

/* There is one thread per core and nothing to schedule: queues stay where they are. */
static const char *const scheduler_names[] = { "static", "dynamic", "gscheduler", NULL };
static const struct rpc_param scheduler_params[] = {
	RPC_PARAM_WORD(struct scheduler, name, RPC_REQUIRED, scheduler_names),
	RPC_PARAM(struct scheduler, period, RPC_OPTIONAL),
	RPC_PARAM(struct scheduler, load_limit, RPC_OPTIONAL),
	RPC_PARAM(struct scheduler, core_limit, RPC_OPTIONAL),
	RPC_PARAM(struct scheduler, core_busy, RPC_OPTIONAL),
	RPC_PARAM(struct scheduler, mappings, RPC_OPTIONAL),
};

static void framework_set_scheduler(struct rpc_call *call) CONTROL_ONLY
{
	const struct scheduler *args = (const void *)call->args;

	app.scheduler = *args;
	app.scheduler.mappings = NULL;	/* the string dies with the call */
	rpc_reply_true(call);
}

static void framework_get_scheduler(struct rpc_call *call) CONTROL_ONLY
{
	const struct scheduler *s = &app.scheduler;
	struct json_out *w = rpc_result(call);

	json_out_object(w);
	json_put_string(w, "scheduler_name", scheduler_names[s->name.index]);
	json_put_u64(w, "scheduler_period", s->period);
	json_put_string(w, "isolated_core_mask", "0");
	json_put_u64(w, "scheduling_core", reactor_cpu(reactor_by_index(0)));
	if (s->name.index) {
		json_put_u64(w, "load_limit", s->load_limit);
		json_put_u64(w, "core_limit", s->core_limit);
		json_put_u64(w, "core_busy", s->core_busy);
	}
	json_out_object_end(w);
	rpc_reply(call);
}

static void framework_get_governor(struct rpc_call *call) CONTROL_ONLY
{
	struct json_out *w = rpc_result(call);

	json_out_object(w);
	json_out_object_end(w);
	rpc_reply(call);
}

static const struct rpc_param enabled_params[] = {
	RPC_PARAM(struct enabled_args, enabled, RPC_OPTIONAL),
};

static void framework_monitor_context_switch(struct rpc_call *call) CONTROL_ONLY
{
	struct json_out *w = rpc_result(call);

	app.context_switch_monitor = *(const struct enabled_args *)(const void *)call->args;
	json_out_object(w);
	json_put_bool(w, "enabled", app.context_switch_monitor.enabled);
	json_out_object_end(w);
	rpc_reply(call);
}

static void framework_enable_cpumask_locks(struct rpc_call *call) CONTROL_ONLY
{
	int rc = reactors_lock_cores();

	if (rc)
		rpc_reply_error(call, RPC_INTERNAL_ERROR, "Failed to claim CPU cores",
				"cannot take the core lock files: %s", rpc_strerror(-rc));
	else
		rpc_reply_true(call);
}

static void framework_disable_cpumask_locks(struct rpc_call *call) CONTROL_ONLY
{
	reactors_unlock_cores();
	rpc_reply_true(call);
}

/* ------- log ------- */

struct level_args {
	const char *level;
};
static const struct rpc_param level_params[] = {
	RPC_PARAM(struct level_args, level, RPC_REQUIRED),
};

/* The level asked for; false when the call has been refused. */
static bool level_arg(struct rpc_call *call, enum log_level *level) CONTROL_ONLY
{
	const struct level_args *args = (const void *)call->args;

	if (log_level_parse(args->level, level) == 0)
		return true;
	rpc_reply_error(call, RPC_INVALID_PARAMS, "invalid log level",
			"parameter \"level\" must be one of ERROR WARNING NOTICE INFO DEBUG, "
			"not \"%.64s\"", args->level);
	return false;
}

static void log_set_level_rpc(struct rpc_call *call) CONTROL_ONLY
{
	enum log_level level;

	if (level_arg(call, &level)) {
		log_set_level(level);
		rpc_reply_true(call);
	}
}

static void log_set_print_level_rpc(struct rpc_call *call) CONTROL_ONLY
{
	enum log_level level;

	if (level_arg(call, &level)) {
		log_set_print_level(level);
		rpc_reply_true(call);
	}
}

static void log_get_level_rpc(struct rpc_call *call) CONTROL_ONLY
{
	rpc_reply_string(call, log_level_name(log_get_level()));
}

static void log_get_print_level_rpc(struct rpc_call *call) CONTROL_ONLY
{
	rpc_reply_string(call, log_level_name(log_get_print_level()));
}

struct flag_args {
	const char *flag;
};
static const struct rpc_param flag_params[] = {
	RPC_PARAM(struct flag_args, flag, RPC_REQUIRED),
};

static void log_flag(struct rpc_call *call, bool on) CONTROL_ONLY
{
	const struct flag_args *args = (const void *)call->args;

	if (log_set_flag(args->flag, on) == 0)
		rpc_reply_true(call);
	else
		rpc_reply_error(call, RPC_INVALID_PARAMS, "invalid log flag",
				"there is no log flag \"%.64s\"", args->flag);
}

static void log_set_flag_rpc(struct rpc_call *call) CONTROL_ONLY
{
	log_flag(call, true);
}

static void log_clear_flag_rpc(struct rpc_call *call) CONTROL_ONLY
{
	log_flag(call, false);
}

static void log_get_flags_rpc(struct rpc_call *call) CONTROL_ONLY
{
	struct json_out *w = rpc_result(call);

	json_out_object(w);
	for (unsigned int f = 0; f < LOG_F_COUNT; f++)
		json_put_bool(w, log_flag_name((enum log_flag)f), log_flag_on((enum log_flag)f));
	json_out_object_end(w);
	rpc_reply(call);
}

/* ------- signals ------- */

static const struct {
	const char *name;	/* its first three letters may be left out */
	int number;
} signals[] = {
	{ "SIGINT", SIGINT },	{ "SIGTERM", SIGTERM }, { "SIGQUIT", SIGQUIT },
	{ "SIGHUP", SIGHUP },	{ "SIGKILL", SIGKILL }, { "SIGUSR1", SIGUSR1 },
};

struct kill_args {
	const char *sig_name;
};
static const struct rpc_param kill_params[] = {
	RPC_PARAM(struct kill_args, sig_name, RPC_REQUIRED),
};

static int signal_number(const char *name)
{
	char digits[16];

	for (unsigned int i = 0; i < ARRAY_SIZE(signals); i++) {
		snprintf(digits, sizeof(digits), "%d", signals[i].number);
		if (strcmp(name, signals[i].name) == 0 || strcmp(name, signals[i].name + 3) == 0 ||
		    strcmp(name, digits) == 0)
			return signals[i].number;
	}
	return -1;
}

static void spdk_kill_instance(struct rpc_call *call) CONTROL_ONLY
{
	const struct kill_args *args = (const void *)call->args;
	int number = signal_number(args->sig_name);

	if (number < 0) {
		rpc_reply_error(call, RPC_INVALID_PARAMS, "Invalid parameters",
				"parameter \"sig_name\" must be SIGINT, SIGTERM, SIGQUIT, SIGHUP, "
				"SIGKILL or SIGUSR1, not \"%.64s\"", args->sig_name);
		return;
	}
	log_notice("sending %s to ourselves, as asked by an RPC client", args->sig_name);
	/* The reply first: after SIGKILL there is nobody to send it. */
	rpc_reply_true(call);
	kill(getpid(), number);
}

/* ------- for SPDK's configuration files ------- */

static void accept_and_ignore(struct rpc_call *call) CONTROL_ONLY
{
	rpc_reply_true(call);
}

#define IGNORED(method)                                                           \
	{ method, NULL, RPC_ALWAYS, RPC_ANY_PARAMS, accept_and_ignore, .params = NULL }
#define PLAIN(method, alias, states, fn) { method, alias, states, 0, fn, .params = NULL }
#define TAKES(method, states, fn, params_table, args)                             \
	{ method, NULL, states, 0, fn, RPC_PARAMS(params_table, args) }

const struct rpc_method rpc_app_methods[] = {
	PLAIN("spdk_get_version", "get_spdk_version", RPC_ALWAYS, spdk_get_version),
	{ "rpc_get_methods", "get_rpc_methods", RPC_ALWAYS, 0, rpc_get_methods,
	  RPC_PARAMS(methods_params, struct methods_args) },
	TAKES("spdk_kill_instance", RPC_ALWAYS, spdk_kill_instance, kill_params, struct kill_args),
	PLAIN("framework_start_init", "start_subsystem_init", RPC_STARTUP, framework_start_init),
	PLAIN("framework_wait_init", NULL, RPC_ALWAYS, framework_wait_init),
	PLAIN("framework_get_subsystems", "get_subsystems", RPC_RUNTIME, framework_get_subsystems),
	TAKES("framework_get_config", RPC_RUNTIME, framework_get_config, config_params,
	      struct config_args),
	PLAIN("framework_get_reactors", NULL, RPC_ALWAYS, framework_get_reactors),
	{ "framework_set_scheduler", NULL, RPC_ALWAYS, 0, framework_set_scheduler,
	  RPC_PARAMS(scheduler_params, struct scheduler), .defaults = &app.scheduler },
	PLAIN("framework_get_scheduler", NULL, RPC_ALWAYS, framework_get_scheduler),
	PLAIN("framework_get_governor", NULL, RPC_ALWAYS, framework_get_governor),
	{ "framework_monitor_context_switch", NULL, RPC_ALWAYS, 0, framework_monitor_context_switch,
	  RPC_PARAMS(enabled_params, struct enabled_args),
	  .defaults = &app.context_switch_monitor },
	PLAIN("framework_enable_cpumask_locks", NULL, RPC_ALWAYS, framework_enable_cpumask_locks),
	PLAIN("framework_disable_cpumask_locks", NULL, RPC_ALWAYS,
	      framework_disable_cpumask_locks),
	PLAIN("thread_get_stats", NULL, RPC_ALWAYS, thread_get_stats),
	PLAIN("thread_get_pollers", NULL, RPC_ALWAYS, thread_get_pollers),
	PLAIN("thread_get_io_channels", NULL, RPC_ALWAYS, thread_get_io_channels),
	TAKES("log_set_level", RPC_ALWAYS, log_set_level_rpc, level_params, struct level_args),
	PLAIN("log_get_level", NULL, RPC_ALWAYS, log_get_level_rpc),
	TAKES("log_set_print_level", RPC_ALWAYS, log_set_print_level_rpc, level_params,
	      struct level_args),
	PLAIN("log_get_print_level", NULL, RPC_ALWAYS, log_get_print_level_rpc),
	TAKES("log_set_flag", RPC_ALWAYS, log_set_flag_rpc, flag_params, struct flag_args),
	TAKES("log_clear_flag", RPC_ALWAYS, log_clear_flag_rpc, flag_params, struct flag_args),
	PLAIN("log_get_flags", NULL, RPC_ALWAYS, log_get_flags_rpc),
	IGNORED("log_enable_timestamps"),
	IGNORED("scheduler_set_options"),
	IGNORED("keyring_linux_set_options"),
	IGNORED("bdev_virtio_blk_set_hotplug"),
	IGNORED("iobuf_set_options"),
	IGNORED("sock_impl_set_options"),
	IGNORED("sock_set_default_impl"),
	IGNORED("accel_set_options"),
	IGNORED("accel_assign_opc"),
	IGNORED("fsdev_set_opts"),
	IGNORED("bdev_set_options"),
	IGNORED("bdev_raid_set_options"),
	IGNORED("bdev_iscsi_set_options"),
	IGNORED("bdev_nvme_set_options"),
	IGNORED("bdev_nvme_set_hotplug"),
	IGNORED("bdev_examine"),
	IGNORED("bdev_wait_for_examine"),
	{ .name = NULL },
};
