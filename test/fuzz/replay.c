/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A main for the fuzzers without libFuzzer: runs each file given, or each of
 * test/fuzz/corpus/<name> for a program called fuzz_<name>, once. An input that
 * fails ends the process, as it does under libFuzzer; its name is printed then.
 */
#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char current[4096];

static void on_abort(int sig)
{
	(void)sig;
	if (write(STDERR_FILENO, "while replaying ", 16) < 0 ||
	    write(STDERR_FILENO, current, strlen(current)) < 0 ||
	    write(STDERR_FILENO, "\n", 1) < 0)
		_exit(1);
}

static int replay(const char *path)
{
	FILE *f = fopen(path, "rbe");
	uint8_t *data = NULL;
	long size;

	snprintf(current, sizeof(current), "%s", path);
	if (!f || fseek(f, 0, SEEK_END) < 0 || (size = ftell(f)) < 0)
		goto fail;
	rewind(f);
	/* Of exactly its size, for the address sanitizer; never NULL. */
	data = malloc(size ? (size_t)size : 1);
	if (!data || fread(data, 1, (size_t)size, f) != (size_t)size)
		goto fail;
	LLVMFuzzerTestOneInput(data, (size_t)size);
	free(data);
	fclose(f);
	return 0;
fail:
	perror(path);
	free(data);
	if (f)
		fclose(f);
	return 1;
}

static int is_input(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

static void replay_corpus(const char *program, int *passed, int *failed)
{
	const char *name = strstr(program, "fuzz_");
	struct dirent **entries = NULL;
	char dir[512], path[1024];
	int n;

	/* The last one: build directories may be called anything. */
	for (const char *more = name; more; more = strstr(more + 1, "fuzz_"))
		name = more;
	snprintf(dir, sizeof(dir), "test/fuzz/corpus/%s", name ? name + strlen("fuzz_") : "");
	n = scandir(dir, &entries, is_input, alphasort);
	if (n <= 0) {
		fprintf(stderr, "%s: no inputs (run this in the top directory)\n", dir);
		*failed = 1;
	}
	for (int i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, entries[i]->d_name);
		if (replay(path))
			++*failed;
		else
			++*passed;
		free(entries[i]);
	}
	free(entries);
}

int main(int argc, char **argv)
{
	int passed = 0, failed = 0;

	signal(SIGABRT, on_abort);
	LLVMFuzzerInitialize(&argc, &argv);
	if (argc < 2)
		replay_corpus(argv[0], &passed, &failed);
	for (int i = 1; i < argc; i++) {
		if (replay(argv[i]))
			failed++;
		else
			passed++;
	}
	printf("%d passed, %d failed, 0 skipped\n", passed, failed);
	return failed > 0;
}
