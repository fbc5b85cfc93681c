/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Notes about bdevs: which there are and in what order, what is kept of many,
 * and that none follows a bdev's end, though the bdev itself may live on.
 */
#include "harness.h"

#include "bdev/bdev_backend.h"

#include <string.h>

static struct bdev *create(const char *name)
{
	struct bdev_null_opts opts = { .name = name, .num_blocks = 8, .block_size = 512 };
	struct harness_result hr;

	bdev_null_create(&opts, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), 0);
	return hr.res.bdev;
}

static void check(uint64_t id, enum bdev_note_type type, const char *name)
{
	const struct bdev_note *note = bdev_note_at(id);

	assert_non_null(note);
	assert_int_equal(note->type, type);
	assert_string_equal(note->name, name);
}

/* The first test: it sees the numbers from 0 on. */
static void test_order(void **state)
{
	struct bdev *bdev;

	(void)state;
	assert_int_equal(bdev_notes_first(), 0);
	assert_int_equal(bdev_notes_end(), 0);
	assert_null(bdev_note_at(0));
	bdev = create("a");
	create(NULL);
	bdev_resized(bdev, 4096);	/* as it is */
	bdev_resized(bdev, 8192);
	bdev_note(bdev, BDEV_NOTE_STALLED);
	bdev_note(bdev, BDEV_NOTE_RECOVERED);
	assert_int_equal(harness_delete("a"), 0);
	assert_int_equal(harness_delete("a"), -ENODEV);
	assert_int_equal(harness_delete("Null0"), 0);
	check(0, BDEV_NOTE_REGISTER, "a");
	check(1, BDEV_NOTE_REGISTER, "Null0");
	check(2, BDEV_NOTE_RESIZE, "a");
	check(3, BDEV_NOTE_STALLED, "a");
	check(4, BDEV_NOTE_RECOVERED, "a");
	check(5, BDEV_NOTE_UNREGISTER, "a");
	check(6, BDEV_NOTE_UNREGISTER, "Null0");
	assert_int_equal(bdev_notes_end(), 7);
	assert_null(bdev_note_at(7));
	assert_null(bdev_note_at(UINT64_MAX));
}

static void test_refused(void **state)
{
	struct bdev_null_opts opts = { .name = "bad", .num_blocks = 8, .block_size = 100 };
	struct harness_result hr;
	uint64_t end = bdev_notes_end();

	(void)state;
	bdev_null_create(&opts, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), -EINVAL);
	create("a");
	opts = (struct bdev_null_opts){ .name = "a", .num_blocks = 8, .block_size = 512 };
	bdev_null_create(&opts, harness_result_init(&hr));
	assert_int_equal(harness_result(&hr), -EEXIST);
	assert_int_equal(bdev_notes_end(), end + 1);
	assert_int_equal(harness_delete("a"), 0);
}

/* A user keeps the bdev while its name is already another's. */
static void test_nothing_follows_the_end(void **state)
{
	struct bdev *old = create("a");
	struct harness_user user;
	struct harness_result hr;
	uint64_t end = bdev_notes_end();

	(void)state;
	harness_open(&user, "a", 0);
	bdev_delete("a", NULL, harness_result_init(&hr));
	create("a");
	bdev_note(old, BDEV_NOTE_STALLED);
	bdev_note(old, BDEV_NOTE_RECOVERED);
	bdev_resized(old, 8192);
	assert_int_equal(user.resizes, 1);
	check(end, BDEV_NOTE_UNREGISTER, "a");
	check(end + 1, BDEV_NOTE_REGISTER, "a");
	assert_int_equal(bdev_notes_end(), end + 2);
	harness_close(&user);
	assert_int_equal(harness_result(&hr), 0);
	assert_int_equal(harness_delete("a"), 0);
	assert_int_equal(bdev_notes_end(), end + 3);
}

static void test_overflow(void **state)
{
	char name[BDEV_NAME_MAX];
	struct bdev *bdev;
	uint64_t end;

	(void)state;
	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	bdev = create(name);
	for (unsigned int i = 0; i < BDEV_NOTES_KEPT - 1; i++)
		bdev_note(bdev, i % 2 ? BDEV_NOTE_RECOVERED : BDEV_NOTE_STALLED);
	/* The registration is the oldest that is kept; one more, and it is gone. */
	end = bdev_notes_end();
	assert_int_equal(bdev_notes_first(), end - BDEV_NOTES_KEPT);
	check(end - BDEV_NOTES_KEPT, BDEV_NOTE_REGISTER, name);
	assert_null(bdev_note_at(end - BDEV_NOTES_KEPT - 1));
	assert_int_equal(harness_delete(name), 0);
	assert_null(bdev_note_at(end - BDEV_NOTES_KEPT));
	check(end - BDEV_NOTES_KEPT + 1, BDEV_NOTE_STALLED, name);
	check(end, BDEV_NOTE_UNREGISTER, name);
	assert_int_equal(bdev_notes_end(), end + 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_nothing_follows_the_end),
		cmocka_unit_test(test_overflow),
	};

	return harness_main("bdev_notes", tests, ARRAY_SIZE(tests), harness_setup,
			    harness_teardown);
}
