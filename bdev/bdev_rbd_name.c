/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * QEMU's names for RBD images,
 *
 *   rbd:pool[/namespace]/image[@snapshot][:option=value[:option=value...]]
 *
 * in which a backslash takes its meaning from the character behind it; and
 * copies of options. Text is cut into tokens in a private copy: a token ends at
 * one of the given unescaped delimiters, which is remembered, and is unescaped
 * where it stands.
 */
#include "bdev/bdev_rbd.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *dup_or_null(const char *s, bool *failed)
{
	char *copy = s ? strdup(s) : NULL;

	if (s && !copy)
		*failed = true;
	return copy;
}

int rbd_access_copy(const struct bdev_rbd_access *from, struct bdev_rbd_access *to)
{
	bool failed = false;

	memset(to, 0, sizeof(*to));
	to->user_id = dup_or_null(from->user_id, &failed);
	to->config_file = dup_or_null(from->config_file, &failed);
	to->key_file = dup_or_null(from->key_file, &failed);
	if (from->option_count)
		to->options = calloc(from->option_count, sizeof(to->options[0]));
	if (from->option_count && !to->options)
		failed = true;
	for (unsigned int i = 0; to->options && i < from->option_count; i++) {
		to->options[i].key = dup_or_null(from->options[i].key, &failed);
		to->options[i].value = dup_or_null(from->options[i].value, &failed);
		to->option_count++;
	}
	if (!failed)
		return 0;
	rbd_access_free(to);
	return -ENOMEM;
}

void rbd_access_free(struct bdev_rbd_access *access)
{
	for (unsigned int i = 0; i < access->option_count; i++) {
		free(access->options[i].key);
		free(access->options[i].value);
	}
	free(access->options);
	free(access->user_id);
	free(access->config_file);
	free(access->key_file);
	memset(access, 0, sizeof(*access));
}

int bdev_rbd_opts_copy(const struct bdev_rbd_opts *from, struct bdev_rbd_opts *to)
{
	bool failed = false;

	*to = *from;
	to->name = dup_or_null(from->name, &failed);
	to->uuid = dup_or_null(from->uuid, &failed);
	to->pool = dup_or_null(from->pool, &failed);
	to->ns = dup_or_null(from->ns, &failed);
	to->image = dup_or_null(from->image, &failed);
	to->snapshot = dup_or_null(from->snapshot, &failed);
	to->cluster = dup_or_null(from->cluster, &failed);
	if (rbd_access_copy(&from->access, &to->access) < 0)
		failed = true;
	if (!failed)
		return 0;
	bdev_rbd_opts_free(to);
	return -ENOMEM;
}

void bdev_rbd_opts_free(struct bdev_rbd_opts *opts)
{
	free(opts->name);
	free(opts->uuid);
	free(opts->pool);
	free(opts->ns);
	free(opts->image);
	free(opts->snapshot);
	free(opts->cluster);
	rbd_access_free(&opts->access);
	memset(opts, 0, sizeof(*opts));
}

/*
 * The token at *text, unescaped in place. *delim is the unescaped character of
 * `delims` that ended it, NUL at the end; *text then stands behind it.
 */
static char *token(char **text, const char *delims, char *delim)
{
	char *start = *text, *to = start, *p = start;

	while (*p && !strchr(delims, *p)) {
		if (*p == '\\' && p[1])
			p++;
		*to++ = *p++;
	}
	*delim = *p;
	*text = *p ? p + 1 : p;
	*to = '\0';
	return start;
}

static int set_string(char **slot, const char *value)
{
	char *copy = strdup(value);

	if (!copy)
		return -ENOMEM;
	free(*slot);
	*slot = copy;
	return 0;
}

int rbd_access_add_option(struct bdev_rbd_access *a, const char *key, const char *value)
{
	struct bdev_rbd_option *more =
		realloc(a->options, (a->option_count + 1) * sizeof(a->options[0]));

	if (!more)
		return -ENOMEM;
	a->options = more;
	more[a->option_count] = (struct bdev_rbd_option){ strdup(key), strdup(value) };
	a->option_count++;
	return more[a->option_count - 1].key && more[a->option_count - 1].value ? 0 : -ENOMEM;
}

static int parse_options(char *text, struct bdev_rbd_opts *opts, char reason[BDEV_REASON_MAX])
{
	char delim = ':';
	int rc = 0;

	while (delim == ':' && rc == 0) {
		char *key = token(&text, "=:", &delim), *value;

		if (delim != '=' || !*key) {
			snprintf(reason, BDEV_REASON_MAX, "option '%.60s' has no value", key);
			return -EINVAL;
		}
		value = token(&text, ":", &delim);
		if (!strcmp(key, "id"))
			rc = set_string(&opts->access.user_id, value);
		else if (!strcmp(key, "conf"))
			rc = set_string(&opts->access.config_file, value);
		else
			rc = rbd_access_add_option(&opts->access, key, value);
	}
	return rc;
}

static int parse_place(char **text, struct bdev_rbd_opts *opts, char *delim)
{
	char *first = token(text, "/@:", delim), *second, *third;
	int rc;

	if (*delim != '/')
		return -EINVAL;
	second = token(text, "/@:", delim);
	if (*delim == '/') {
		third = token(text, "@:", delim);
		rc = set_string(&opts->ns, second);
		second = third;
		if (rc < 0)
			return rc;
	}
	if (!*first || !*second)
		return -EINVAL;
	rc = set_string(&opts->pool, first);
	if (rc == 0)
		rc = set_string(&opts->image, second);
	if (rc == 0 && *delim == '@')
		rc = set_string(&opts->snapshot, token(text, ":", delim));
	return rc;
}

int bdev_rbd_parse(const char *text, struct bdev_rbd_opts *opts, char reason[BDEV_REASON_MAX])
{
	char *copy, *rest, delim;
	int rc;

	if (strncmp(text, "rbd:", 4) != 0) {
		snprintf(reason, BDEV_REASON_MAX, "'%.60s' does not start with rbd:", text);
		return -EINVAL;
	}
	copy = rest = strdup(text + 4);
	if (!copy)
		return -ENOMEM;
	reason[0] = '\0';
	rc = parse_place(&rest, opts, &delim);
	if (rc == -EINVAL)
		snprintf(reason, BDEV_REASON_MAX, "'%.100s' is not rbd:pool[/namespace]/image"
			 "[@snapshot][:option=value...]", text);
	if (rc == 0 && delim == ':')
		rc = parse_options(rest, opts, reason);
	free(copy);
	if (rc < 0)
		bdev_rbd_opts_free(opts);
	return rc;
}
