/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * JSON as text: a writer for replies, and the strict check of requests that
 * json-c, which reads leniently and drops duplicate keys in silence, leaves to
 * us. No state, any thread.
 */
#ifndef SPINDLE_JSON_TEXT_H
#define SPINDLE_JSON_TEXT_H

#include "reactor/base.h"

/* ------- writing ------- */

/*
 * A growing text. Commas are set by the writer. Once memory ran out `failed`
 * stays set and nothing more is written; look at it at the end. Zeroed is empty.
 */
struct json_out {
	char *text;		/* not NUL-terminated */
	size_t len, cap;
	bool failed;
};

void json_out_fini(struct json_out *w);
/* Bytes as they are, without a comma. */
void json_out_raw(struct json_out *w, const char *text, size_t len);
/* One finished JSON value, with its comma. */
void json_out_value(struct json_out *w, const char *text, size_t len);
void json_out_object(struct json_out *w);
void json_out_object_end(struct json_out *w);
void json_out_array(struct json_out *w);
void json_out_array_end(struct json_out *w);
void json_out_key(struct json_out *w, const char *key);
/* NULL is written as null; bytes that are not UTF-8 as U+FFFD. */
void json_out_string(struct json_out *w, const char *s);
void json_out_u64(struct json_out *w, uint64_t v);
void json_out_i64(struct json_out *w, int64_t v);
void json_out_bool(struct json_out *w, bool v);
void json_out_null(struct json_out *w);
/* A member: key and value. */
void json_put_string(struct json_out *w, const char *key, const char *s);
void json_put_u64(struct json_out *w, const char *key, uint64_t v);
void json_put_i64(struct json_out *w, const char *key, int64_t v);
void json_put_bool(struct json_out *w, const char *key, bool v);
void json_put_object(struct json_out *w, const char *key);
void json_put_array(struct json_out *w, const char *key);

/* ------- checking ------- */

#define JSON_DEPTH_MAX 64

enum json_fault_kind {
	JSON_DUPLICATE_KEY,
	JSON_BIG_NUMBER,	/* an integer that does not fit 64 bits */
};

/* What is well formed but cannot be taken: the first such thing of an entry. */
struct json_fault {
	enum json_fault_kind kind;
	unsigned int entry;	/* index into the top-level array, 0 without one */
	unsigned int depth;	/* objects around it: 1 a member of the request itself */
	char key[64];		/* the member, cut to fit */
};

struct json_faults {
	struct json_fault *list;	/* by ascending entry */
	unsigned int count;
};

/*
 * Whether text is exactly one JSON value by RFC 8259, in valid UTF-8, nested at
 * most JSON_DEPTH_MAX deep. 0, -EINVAL, -ENOMEM. *faults is only set on 0, and
 * then freed by json_faults_fini().
 */
int json_text_check(const char *text, size_t len, struct json_faults *faults);
void json_faults_fini(struct json_faults *faults);
/* Length of the UTF-8 sequence at p, 0 when it is not one. */
unsigned int json_utf8_len(const unsigned char *p, const unsigned char *end);

#endif
