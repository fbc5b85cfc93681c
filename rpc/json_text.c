/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * JSON text: the reply writer and the strict checker.
 *
 * The writer appends to one growing buffer; whether a value needs a comma is
 * read off the last byte written, so there is no nesting state to keep.
 *
 * The checker is a recursive descent over the raw text, at most JSON_DEPTH_MAX
 * calls deep. json-c has parsed the same text before, so what is found wrong
 * here is what json-c lets pass: comments, control characters, NaN, leading
 * zeros, broken UTF-8. Duplicate keys and integers beyond 64 bits are no syntax
 * errors: they are noted with their place, so that the answer can name them.
 * Keys are compared after their escapes are resolved, in a hash set per object:
 * a request of a million keys costs linear time.
 */
#include "rpc/json_text.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------- writing ------- */

void json_out_fini(struct json_out *w)
{
	free(w->text);
	*w = (struct json_out){ 0 };
}

void json_out_raw(struct json_out *w, const char *text, size_t len)
{
	if (w->failed)
		return;
	if (len > w->cap - w->len) {
		size_t cap = MAX(w->cap * 2, (size_t)256);
		char *p;

		while (cap - w->len < len)
			cap *= 2;
		p = realloc(w->text, cap);
		if (!p) {
			w->failed = true;
			return;
		}
		w->text = p;
		w->cap = cap;
	}
	memcpy(w->text + w->len, text, len);
	w->len += len;
}

static void put_char(struct json_out *w, char c)
{
	json_out_raw(w, &c, 1);
}

static void comma(struct json_out *w)
{
	if (w->len && !strchr("{[:", w->text[w->len - 1]))
		put_char(w, ',');
}

void json_out_value(struct json_out *w, const char *text, size_t len)
{
	comma(w);
	json_out_raw(w, text, len);
}

void json_out_object(struct json_out *w)
{
	json_out_value(w, "{", 1);
}

void json_out_object_end(struct json_out *w)
{
	put_char(w, '}');
}

void json_out_array(struct json_out *w)
{
	json_out_value(w, "[", 1);
}

void json_out_array_end(struct json_out *w)
{
	put_char(w, ']');
}

void json_out_key(struct json_out *w, const char *key)
{
	json_out_string(w, key);
	put_char(w, ':');
}

static void put_escaped(struct json_out *w, unsigned char c)
{
	static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";
	const char *hit = c ? strchr(from, c) : NULL;
	char buf[8];

	if (hit)
		json_out_raw(w, (char[]){ '\\', to[hit - from] }, 2);
	else
		json_out_raw(w, buf, (size_t)snprintf(buf, sizeof(buf), "\\u%04x", c));
}

void json_out_string(struct json_out *w, const char *s)
{
	const unsigned char *p, *end;

	if (!s) {
		json_out_null(w);
		return;
	}
	p = (const unsigned char *)s;
	end = p + strlen(s);
	json_out_value(w, "\"", 1);
	while (p < end) {
		unsigned int n = json_utf8_len(p, end);

		if (n == 0) {
			json_out_raw(w, "\xef\xbf\xbd", 3);
			n = 1;
		} else if (*p < 0x20 || *p == '"' || *p == '\\' || *p == 0x7f) {
			put_escaped(w, *p);
		} else {
			json_out_raw(w, (const char *)p, n);
		}
		p += n;
	}
	put_char(w, '"');
}

void json_out_u64(struct json_out *w, uint64_t v)
{
	char buf[24];

	json_out_value(w, buf, (size_t)snprintf(buf, sizeof(buf), "%" PRIu64, v));
}

void json_out_i64(struct json_out *w, int64_t v)
{
	char buf[24];

	json_out_value(w, buf, (size_t)snprintf(buf, sizeof(buf), "%" PRId64, v));
}

void json_out_bool(struct json_out *w, bool v)
{
	if (v)
		json_out_value(w, "true", 4);
	else
		json_out_value(w, "false", 5);
}

void json_out_null(struct json_out *w)
{
	json_out_value(w, "null", 4);
}

void json_put_string(struct json_out *w, const char *key, const char *s)
{
	json_out_key(w, key);
	json_out_string(w, s);
}

void json_put_u64(struct json_out *w, const char *key, uint64_t v)
{
	json_out_key(w, key);
	json_out_u64(w, v);
}

void json_put_i64(struct json_out *w, const char *key, int64_t v)
{
	json_out_key(w, key);
	json_out_i64(w, v);
}

void json_put_bool(struct json_out *w, const char *key, bool v)
{
	json_out_key(w, key);
	json_out_bool(w, v);
}

void json_put_object(struct json_out *w, const char *key)
{
	json_out_key(w, key);
	json_out_object(w);
}

void json_put_array(struct json_out *w, const char *key)
{
	json_out_key(w, key);
	json_out_array(w);
}

/* ------- checking ------- */

struct checker {
	const unsigned char *p, *end;
	unsigned int depth, objects, entry;
	const unsigned char *key;	/* of the innermost member, with its quotes */
	size_t key_len;
	struct json_faults faults;
};

static int check_value(struct checker *c);

unsigned int json_utf8_len(const unsigned char *p, const unsigned char *end)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	uint32_t v = *p;
	unsigned int n;

	if (v < 0x80)
		return 1;
	if (v >= 0xf0)
		n = 4;
	else if (v >= 0xe0)
		n = 3;
	else
		n = 2;
	if (v < 0xc2 || v > 0xf4 || end - p < (ptrdiff_t)n)
		return 0;
	v &= 0x7fu >> n;
	for (unsigned int i = 1; i < n; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		v = v << 6 | (p[i] & 0x3f);
	}
	if (v < least[n] || v > 0x10ffff || (v >= 0xd800 && v < 0xe000))
		return 0;
	return n;
}

static void skip_space(struct checker *c)
{
	while (c->p < c->end && (*c->p == ' ' || *c->p == '\t' || *c->p == '\n' || *c->p == '\r'))
		c->p++;
}

static bool take(struct checker *c, char ch)
{
	if (c->p == c->end || *c->p != (unsigned char)ch)
		return false;
	c->p++;
	return true;
}

static bool is_digit(const struct checker *c)
{
	return c->p < c->end && *c->p >= '0' && *c->p <= '9';
}

static bool is_hex(unsigned char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* The escapes' text behind a backslash. */
static int check_escape(struct checker *c)
{
	if (c->p == c->end)
		return -EINVAL;
	if (*c->p != 'u') {
		if (!*c->p || !strchr("\"\\/bfnrt", *c->p))
			return -EINVAL;
		c->p++;
		return 0;
	}
	if (c->end - c->p < 5)
		return -EINVAL;
	for (int i = 1; i <= 4; i++)
		if (!is_hex(c->p[i]))
			return -EINVAL;
	c->p += 5;
	return 0;
}

static int check_string(struct checker *c)
{
	if (!take(c, '"'))
		return -EINVAL;
	while (c->p < c->end) {
		unsigned int n;

		if (*c->p == '"') {
			c->p++;
			return 0;
		}
		if (*c->p == '\\') {
			c->p++;
			if (check_escape(c))
				return -EINVAL;
			continue;
		}
		n = json_utf8_len(c->p, c->end);
		if (n == 0 || *c->p < 0x20)
			return -EINVAL;
		c->p += n;
	}
	return -EINVAL;
}

/* The key in [text, text + len), quotes included, as the string it stands for. */
static struct json_object *decode_key(const unsigned char *text, size_t len)
{
	struct json_object *key;
	struct json_tokener *tok;

	if (!memchr(text, '\\', len))
		return json_object_new_string_len((const char *)text + 1, (int)len - 2);
	tok = json_tokener_new();
	if (!tok)
		return NULL;
	key = json_tokener_parse_ex(tok, (const char *)text, (int)len);
	json_tokener_free(tok);
	return key;
}

static int note(struct checker *c, enum json_fault_kind kind)
{
	struct json_faults *fs = &c->faults;
	struct json_object *key = NULL;
	struct json_fault *f;

	/* One per entry is enough for its answer. */
	if (fs->count && fs->list[fs->count - 1].entry == c->entry)
		return 0;
	f = realloc(fs->list, (fs->count + 1) * sizeof(*f));
	if (!f)
		return -ENOMEM;
	fs->list = f;
	f += fs->count;
	*f = (struct json_fault){ .kind = kind, .entry = c->entry, .depth = c->objects };
	if (c->key)
		key = decode_key(c->key, c->key_len);
	if (key)
		snprintf(f->key, sizeof(f->key), "%s", json_object_get_string(key));
	json_object_put(key);
	fs->count++;
	return 0;
}

static int check_number(struct checker *c)
{
	const unsigned char *start = c->p;
	bool negative = take(c, '-'), integer = true, big = false;
	uint64_t v = 0;

	if (!is_digit(c) || (*c->p == '0' && c->p + 1 < c->end && c->p[1] >= '0' && c->p[1] <= '9'))
		return -EINVAL;
	for (; is_digit(c); c->p++) {
		if (__builtin_mul_overflow(v, 10u, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(*c->p - '0'), &v))
			big = true;
	}
	if (take(c, '.')) {
		integer = false;
		if (!is_digit(c))
			return -EINVAL;
		while (is_digit(c))
			c->p++;
	}
	if (take(c, 'e') || take(c, 'E')) {
		integer = false;
		if (!take(c, '+'))
			take(c, '-');
		if (!is_digit(c))
			return -EINVAL;
		while (is_digit(c))
			c->p++;
	}
	if (negative && v > (uint64_t)INT64_MAX + 1)
		big = true;
	/* json-c reads a number into a C double or integer of its own: cap its text. */
	if (c->p - start > 1000)
		big = true;
	return big && (integer || c->p - start > 1000) ? note(c, JSON_BIG_NUMBER) : 0;
}

static int check_word(struct checker *c, const char *word)
{
	size_t len = strlen(word);

	if ((size_t)(c->end - c->p) < len || memcmp(c->p, word, len) != 0)
		return -EINVAL;
	c->p += len;
	return 0;
}

/* One key of an object: syntax, no NUL inside, not seen before. */
static int check_key(struct checker *c, struct json_object *seen)
{
	const unsigned char *start = c->p;
	struct json_object *key;
	int rc;

	rc = check_string(c);
	if (rc)
		return rc;
	c->key = start;
	c->key_len = (size_t)(c->p - start);
	key = decode_key(c->key, c->key_len);
	if (!key)
		return -ENOMEM;
	/* json-c would cut the key at the NUL and take it for another. */
	if (strlen(json_object_get_string(key)) != (size_t)json_object_get_string_len(key))
		rc = -EINVAL;
	else if (json_object_object_get_ex(seen, json_object_get_string(key), NULL))
		rc = note(c, JSON_DUPLICATE_KEY);
	else if (json_object_object_add(seen, json_object_get_string(key), NULL))
		rc = -ENOMEM;
	json_object_put(key);
	return rc;
}

static int check_members(struct checker *c, struct json_object *seen)
{
	skip_space(c);
	if (take(c, '}'))
		return 0;
	for (;;) {
		int rc;

		skip_space(c);
		rc = check_key(c, seen);
		if (rc)
			return rc;
		skip_space(c);
		if (!take(c, ':'))
			return -EINVAL;
		rc = check_value(c);
		if (rc)
			return rc;
		if (take(c, '}'))
			return 0;
		if (!take(c, ','))
			return -EINVAL;
	}
}

static int check_object(struct checker *c)
{
	const unsigned char *outer_key = c->key;
	size_t outer_len = c->key_len;
	struct json_object *seen = json_object_new_object();
	int rc;

	if (!seen)
		return -ENOMEM;
	c->p++;
	c->objects++;
	rc = check_members(c, seen);
	c->objects--;
	c->key = outer_key;
	c->key_len = outer_len;
	json_object_put(seen);
	return rc;
}

static int check_array(struct checker *c)
{
	bool top = c->depth == 1;

	c->p++;
	skip_space(c);
	if (take(c, ']'))
		return 0;
	for (;;) {
		int rc = check_value(c);

		if (rc)
			return rc;
		if (take(c, ']'))
			return 0;
		if (!take(c, ','))
			return -EINVAL;
		if (top)
			c->entry++;
	}
}

/* One value and the space around it. */
static int check_value(struct checker *c)
{
	int rc = -EINVAL;

	skip_space(c);
	if (c->p == c->end || c->depth >= JSON_DEPTH_MAX)
		return -EINVAL;
	c->depth++;
	switch (*c->p) {
	case '{':
		rc = check_object(c);
		break;
	case '[':
		rc = check_array(c);
		break;
	case '"':
		rc = check_string(c);
		break;
	case 't':
		rc = check_word(c, "true");
		break;
	case 'f':
		rc = check_word(c, "false");
		break;
	case 'n':
		rc = check_word(c, "null");
		break;
	default:
		rc = check_number(c);
		break;
	}
	c->depth--;
	skip_space(c);
	return rc;
}

int json_text_check(const char *text, size_t len, struct json_faults *faults)
{
	struct checker c = { .p = (const unsigned char *)text };
	int rc;

	c.end = c.p + len;
	rc = check_value(&c);
	if (rc == 0 && c.p != c.end)
		rc = -EINVAL;
	if (rc) {
		json_faults_fini(&c.faults);
		return rc;
	}
	*faults = c.faults;
	return 0;
}

void json_faults_fini(struct json_faults *faults)
{
	free(faults->list);
	*faults = (struct json_faults){ 0 };
}
