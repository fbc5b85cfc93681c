/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Applying a saved configuration. All of it is read and checked before the first
 * call is made: a file with a fault changes nothing. Then its calls go to
 * pending.c, which makes them.
 *
 * What SPDK's own loader does is done here as well: comments are allowed, methods
 * that belong before framework_start_init are passed over, old names are taken.
 * A bdev without a name gets its default name here, by its place in the file,
 * because calls that run side by side would deal them out by chance.
 *
 * At start the state file, if it is there, comes before the file of -c: the
 * latter is how a target begins its life.
 */
#include "rpc/config.h"
#include "rpc/rpc.h"

#include "reactor/log.h"
#include "vhost/vhost.h"

#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_SIZE_MAX ((off_t)256 << 20)

struct apply {
	const char *source;
	enum rpc_errors errors;
	bool add;		/* the second pass: else only look */
	int status;		/* the first error that ends it */
};

/* Log what is wrong with entry i of a subsystem. */
static void complain(struct apply *a, int status, const char *subsystem, size_t i,
		     const char *why)
{
	log_error("%s: entry %zu of subsystem %s: %s", a->source, i, subsystem, why);
	if (!a->status)
		a->status = status;
}

/* ------- one call ------- */

static const char *default_prefix(const struct rpc_method *m)
{
	static const char *const methods[][2] = {
		{ "bdev_malloc_create", "Malloc" },
		{ "bdev_null_create", "Null" },
		{ "bdev_rbd_create", "Ceph" },
	};

	for (unsigned int i = 0; i < ARRAY_SIZE(methods); i++) {
		if (!strcmp(methods[i][0], m->name))
			return methods[i][1];
	}
	return NULL;
}

CONTROL_ONLY static void name_bdev(const struct rpc_method *m, struct json_object *params)
{
	const char *prefix = default_prefix(m);
	char name[BDEV_NAME_MAX];

	if (!prefix || json_object_object_get_ex(params, "name", NULL))
		return;
	for (unsigned int i = 0;; i++) {
		snprintf(name, sizeof(name), "%s%u", prefix, i);
		if (!bdev_find(name) && !pending_bdev(name))
			break;
	}
	json_object_object_add(params, "name", json_object_new_string(name));
}

CONTROL_ONLY static void add_call(struct apply *a, const struct rpc_method *m,
				  struct json_object *params)
{
	struct json_object *own = params ? json_object_get(params) : json_object_new_object();

	if (own)
		name_bdev(m, own);
	if (!own || pending_add(m, own) < 0)
		a->status = -ENOMEM;
	json_object_put(own);
}

CONTROL_ONLY static void take_call(struct apply *a, const char *subsystem, size_t i,
				   struct json_object *entry)
{
	struct json_object *method = NULL, *params = NULL;
	const struct rpc_method *m;
	char why[RPC_WHY_MAX];

	if (!json_object_is_type(entry, json_type_object) ||
	    !json_object_object_get_ex(entry, "method", &method) ||
	    !json_object_is_type(method, json_type_string)) {
		complain(a, -EINVAL, subsystem, i, "is not an object with a \"method\"");
		return;
	}
	json_object_object_get_ex(entry, "params", &params);
	m = rpc_method_find(json_object_get_string(method));
	if (!m) {
		snprintf(why, sizeof(why), "there is no method \"%.100s\"",
			 json_object_get_string(method));
	} else if (!(m->states & RPC_RUNTIME)) {
		return;
	} else if (rpc_method_check(m, params, why)) {
		if (a->add)
			add_call(a, m, params);
		return;
	}
	/* Once said; the second pass only leaves it out. */
	if (a->add)
		return;
	if (a->errors == RPC_ERRORS_SKIP) {
		log_error("%s: %s is left out: %s", a->source, json_object_get_string(method), why);
		return;
	}
	complain(a, -EINVAL, subsystem, i, why);
}

/* ------- the whole ------- */

CONTROL_ONLY static void take_list(struct apply *a, const char *subsystem,
				   struct json_object *config)
{
	for (size_t i = 0; i < json_object_array_length(config); i++) {
		struct json_object *entry = json_object_array_get_idx(config, i);

		/* SPDK writes what may run at a time as an array of calls. */
		if (!json_object_is_type(entry, json_type_array)) {
			take_call(a, subsystem, i, entry);
			continue;
		}
		for (size_t j = 0; j < json_object_array_length(entry); j++)
			take_call(a, subsystem, i, json_object_array_get_idx(entry, j));
	}
}

CONTROL_ONLY static void take_subsystems(struct apply *a, struct json_object *root)
{
	struct json_object *list = NULL, *name, *config;

	if (!json_object_is_type(root, json_type_object) ||
	    !json_object_object_get_ex(root, "subsystems", &list) ||
	    !json_object_is_type(list, json_type_array)) {
		log_error("%s is no saved configuration: an object with an array "
			  "\"subsystems\" was expected", a->source);
		a->status = -EINVAL;
		return;
	}
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		struct json_object *s = json_object_array_get_idx(list, i);

		config = name = NULL;
		if (json_object_is_type(s, json_type_object)) {
			json_object_object_get_ex(s, "subsystem", &name);
			json_object_object_get_ex(s, "config", &config);
		}
		if (!json_object_is_type(name, json_type_string) ||
		    (config && !json_object_is_type(config, json_type_array))) {
			log_error("%s: subsystem %zu is not an object with a name, "
				  "\"subsystem\", and an array, \"config\"", a->source, i);
			a->status = -EINVAL;
			return;
		}
		if (config)
			take_list(a, json_object_get_string(name), config);
	}
}

/* Comments become spaces, as they do in SPDK's loader. */
static void blank_comments(char *s, size_t len)
{
	bool string = false;

	for (size_t i = 0; i < len; i++) {
		size_t end = i;

		if (string) {
			if (s[i] == '\\')
				i++;
			else if (s[i] == '"')
				string = false;
		} else if (s[i] == '"') {
			string = true;
		} else if (s[i] == '/' && i + 1 < len && s[i + 1] == '/') {
			while (end < len && s[end] != '\n')
				s[end++] = ' ';
		} else if (s[i] == '/' && i + 1 < len && s[i + 1] == '*') {
			const char *stop = memmem(s + i + 2, len - i - 2, "*/", 2);

			if (!stop)
				return;
			end = (size_t)(stop + 2 - s);
			memset(s + i, ' ', end - i);
		}
		i = MAX(i, end);
	}
}

static struct json_object *parse(const char *source, char *text, size_t len)
{
	struct json_faults faults = { 0 };
	struct json_object *root = NULL;
	struct json_tokener *tok;
	int rc;

	blank_comments(text, len);
	rc = json_text_check(text, len, &faults);
	if (rc < 0) {
		log_error("%s is not JSON%s", source, rc == -ENOMEM ? ", or memory ran out" : "");
		return NULL;
	}
	if (faults.count) {
		log_error("%s: \"%s\" %s", source, faults.list[0].key,
			  faults.list[0].kind == JSON_DUPLICATE_KEY ? "given twice" :
			  "holds a number that does not fit 64 bits");
		json_faults_fini(&faults);
		return NULL;
	}
	tok = json_tokener_new_ex(JSON_DEPTH_MAX);
	if (tok)
		root = json_tokener_parse_ex(tok, text, (int)len);
	json_tokener_free(tok);
	if (!root)
		log_error("%s is not JSON", source);
	return root;
}

int rpc_config_apply(const char *text, size_t len, const char *source, enum rpc_errors errors,
		     void (*done)(void *arg, int status), void *arg)
{
	struct apply a = { .source = source, .errors = errors };
	struct json_object *root;
	char *copy;

	if (pending_starting())
		return -EBUSY;
	copy = malloc(len + 1);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, text, len);
	root = parse(source, copy, len);
	free(copy);
	if (!root)
		return -EINVAL;
	take_subsystems(&a, root);
	if (a.status == 0) {
		a.add = true;
		take_subsystems(&a, root);
		if (a.status)
			pending_clear();
	}
	json_object_put(root);
	if (a.status == 0)
		pending_start(source, errors, done, arg);
	return a.status;
}

/* ------- files ------- */

static struct {
	char source[PATH_MAX + 32];
	bool has_state;
	void (*done)(void *arg, int status);
	void *arg;
} load;

int rpc_file_read(const char *path, char **text, size_t *len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc = 0;
	struct stat st;

	*text = NULL;
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0)
		rc = -errno;
	else if (!S_ISREG(st.st_mode) || st.st_size > FILE_SIZE_MAX)
		rc = -EINVAL;
	else if (!(*text = malloc((size_t)st.st_size + 1)))
		rc = -ENOMEM;
	for (*len = 0; rc == 0 && *len < (size_t)st.st_size;) {
		ssize_t n = read(fd, *text + *len, (size_t)st.st_size - *len);

		if (n <= 0)
			rc = n < 0 ? -errno : -EIO;
		else
			*len += (size_t)n;
	}
	close(fd);
	if (rc < 0) {
		free(*text);
		*text = NULL;
	}
	return rc;
}

static void loaded(void *arg, int status)
{
	(void)arg;
	control_assert();
	if (status < 0)
		pending_clear();
	else if (load.has_state)
		rpc_state_start();
	load.done(load.arg, status);
}

int rpc_files_load(const struct rpc_files *files, void (*done)(void *arg, int status), void *arg)
{
	enum rpc_errors errors = RPC_ERRORS_PENDING;
	char *text = NULL;
	size_t len = 0;
	int rc = 0;

	load.has_state = files->state;
	load.done = done;
	load.arg = arg;
	if (files->state) {
		vhost_on_change(rpc_state_touch);
		rc = rpc_state_open(files->state, false, &text, &len);
		snprintf(load.source, sizeof(load.source), "state file %s", files->state);
	}
	if (rc == 0 && !text && files->config) {
		errors = files->ignore_errors ? RPC_ERRORS_SKIP : RPC_ERRORS_FATAL;
		snprintf(load.source, sizeof(load.source), "configuration %s", files->config);
		rc = rpc_file_read(files->config, &text, &len);
		if (rc < 0)
			log_error("%s: %s", load.source, rpc_strerror(-rc));
	}
	if (rc < 0)
		return rc;
	if (text)
		rc = rpc_config_apply(text, len, load.source, errors, loaded, NULL);
	else
		loaded(NULL, 0);
	free(text);
	return rc;
}

void rpc_files_expect(const struct rpc_files *files)
{
	if (files->state)
		rpc_state_expect();
}

int rpc_files_follow(const struct rpc_files *files, bool late)
{
	char *text;
	size_t len;
	int rc;

	if (!files->state)
		return 0;
	rc = rpc_state_open(files->state, !late, &text, &len);
	free(text);
	if (rc == -EBUSY && !late)
		return rc;
	if (rc < 0) {
		rpc_state_fail(rc);
		return rc;
	}
	vhost_on_change(rpc_state_touch);
	rpc_state_start();
	rpc_state_touch();
	return 0;
}

void rpc_files_stop(void)
{
	pending_stop();
	rpc_state_stop();
}
