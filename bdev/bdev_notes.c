/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Notes: what happened to bdevs, for whoever asks later. The block layer and
 * its backends write them, rpc/ reads them; nobody is called back, so a note
 * costs its writer a copy of a name and no reader can hold it up.
 *
 * They are numbered from 0 since the start, and the last BDEV_NOTES_KEPT of
 * them are here: note n lies in slot n % BDEV_NOTES_KEPT. A note copies the
 * bdev's name, since it outlives the bdev.
 *
 * Nothing about a bdev comes after its unregistration: it may live on while its
 * requests end, but its name may be another's by then.
 */
#include "bdev/bdev_backend.h"

#include <stdio.h>

/* Pages of it that were never written take no memory. */
static struct bdev_note notes[BDEV_NOTES_KEPT];
static uint64_t notes_end;

void bdev_note(const struct bdev *bdev, enum bdev_note_type type)
{
	struct bdev_note *note;

	if (atomic_load_explicit(&bdev->removing, memory_order_relaxed))
		return;
	note = &notes[notes_end++ % BDEV_NOTES_KEPT];
	note->type = type;
	snprintf(note->name, sizeof(note->name), "%s", bdev->name);
}

uint64_t bdev_notes_end(void)
{
	return notes_end;
}

uint64_t bdev_notes_first(void)
{
	return notes_end > BDEV_NOTES_KEPT ? notes_end - BDEV_NOTES_KEPT : 0;
}

const struct bdev_note *bdev_note_at(uint64_t id)
{
	if (id < bdev_notes_first() || id >= notes_end)
		return NULL;
	return &notes[id % BDEV_NOTES_KEPT];
}
