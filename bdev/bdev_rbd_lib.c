/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Loading librados and librbd. They are never unloaded: they leave threads and thread
 * destructors behind. The lock is for two workers that connect at once; what is loaded
 * does not change any more, and reaches other threads with the connection's messages.
 */
#define RBD_LIB_ITSELF
#include "bdev/bdev_rbd_lib.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct rbd_lib rbd_lib;

struct symbol {
	const char *name;
	size_t at;	/* in struct rbd_lib */
};

#define SYMBOL(name) { #name, offsetof(struct rbd_lib, name) },
static const struct symbol rados_symbols[] = { RADOS_FUNCTIONS(SYMBOL) };
static const struct symbol rbd_symbols[] = { RBD_FUNCTIONS(SYMBOL) };

static int load(const char *file, const struct symbol *symbols, size_t count, char *reason,
		size_t size)
{
	void *lib = dlopen(file, RTLD_NOW | RTLD_LOCAL);

	if (!lib) {
		snprintf(reason, size, "cannot load a library of Ceph: %s", dlerror());
		return -ELIBACC;
	}
	for (size_t i = 0; i < count; i++) {
		void *at = dlsym(lib, symbols[i].name);

		if (!at) {
			snprintf(reason, size, "%s is too old: it has no %s", file,
				 symbols[i].name);
			return -ELIBACC;
		}
		memcpy((char *)&rbd_lib + symbols[i].at, &at, sizeof(at));
	}
	return 0;
}

int rbd_lib_load(char *reason, size_t size)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static bool loaded;
	int rc = 0;

	pthread_mutex_lock(&lock);
	if (!loaded)
		rc = load("librados.so.2", rados_symbols, ARRAY_SIZE(rados_symbols), reason, size);
	if (!loaded && rc == 0)
		rc = load("librbd.so.1", rbd_symbols, ARRAY_SIZE(rbd_symbols), reason, size);
	loaded |= rc == 0;
	pthread_mutex_unlock(&lock);
	return rc;
}
