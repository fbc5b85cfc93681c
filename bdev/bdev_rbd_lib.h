/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * librados and librbd, loaded when the first cluster is connected to: a target without
 * an RBD disk starts sooner, is smaller by what the two and their 25 libraries take, and
 * needs none of them to be installed. Their functions are called by their own names.
 * Any thread, once rbd_lib_load() has succeeded.
 */
#ifndef SPINDLE_BDEV_RBD_LIB_H
#define SPINDLE_BDEV_RBD_LIB_H

#include "reactor/base.h"

#include <rados/librados.h>
#include <rbd/librbd.h>

#define RADOS_FUNCTIONS(F) \
	F(rados_blocklist_add) \
	F(rados_buffer_free) \
	F(rados_conf_get) \
	F(rados_conf_parse_argv) \
	F(rados_conf_read_file) \
	F(rados_conf_set) \
	F(rados_connect) \
	F(rados_create) \
	F(rados_getaddrs) \
	F(rados_ioctx_create) \
	F(rados_ioctx_destroy) \
	F(rados_ioctx_set_namespace) \
	F(rados_shutdown) \
	F(rados_wait_for_latest_osdmap)

#define RBD_FUNCTIONS(F) \
	F(rbd_aio_create_completion) \
	F(rbd_aio_discard) \
	F(rbd_aio_flush) \
	F(rbd_aio_get_return_value) \
	F(rbd_aio_read) \
	F(rbd_aio_readv) \
	F(rbd_aio_release) \
	F(rbd_aio_write) \
	F(rbd_aio_write_zeroes) \
	F(rbd_aio_writev) \
	F(rbd_close) \
	F(rbd_config_image_list) \
	F(rbd_config_image_list_cleanup) \
	F(rbd_get_features) \
	F(rbd_get_size) \
	F(rbd_get_stripe_count) \
	F(rbd_get_stripe_unit) \
	F(rbd_invalidate_cache) \
	F(rbd_lock_acquire) \
	F(rbd_lock_break) \
	F(rbd_lock_get_owners) \
	F(rbd_lock_get_owners_cleanup) \
	F(rbd_metadata_get) \
	F(rbd_metadata_set) \
	F(rbd_open) \
	F(rbd_open_read_only) \
	F(rbd_resize2) \
	F(rbd_stat) \
	F(rbd_update_unwatch) \
	F(rbd_update_watch) \
	F(rbd_watchers_list) \
	F(rbd_watchers_list_cleanup)

struct rbd_lib {
#define RBD_LIB_POINTER(name) __typeof__(&name) name;
	RADOS_FUNCTIONS(RBD_LIB_POINTER)
	RBD_FUNCTIONS(RBD_LIB_POINTER)
};
extern struct rbd_lib rbd_lib;

/*
 * Any thread; may block (a worker's work). 0, also when it is loaded already, or
 * -ELIBACC with a sentence that says what is missing.
 */
int rbd_lib_load(char *reason, size_t size);

#ifndef RBD_LIB_ITSELF
#define rados_blocklist_add rbd_lib.rados_blocklist_add
#define rados_buffer_free rbd_lib.rados_buffer_free
#define rados_conf_get rbd_lib.rados_conf_get
#define rados_conf_parse_argv rbd_lib.rados_conf_parse_argv
#define rados_conf_read_file rbd_lib.rados_conf_read_file
#define rados_conf_set rbd_lib.rados_conf_set
#define rados_connect rbd_lib.rados_connect
#define rados_create rbd_lib.rados_create
#define rados_getaddrs rbd_lib.rados_getaddrs
#define rados_ioctx_create rbd_lib.rados_ioctx_create
#define rados_ioctx_destroy rbd_lib.rados_ioctx_destroy
#define rados_ioctx_set_namespace rbd_lib.rados_ioctx_set_namespace
#define rados_shutdown rbd_lib.rados_shutdown
#define rados_wait_for_latest_osdmap rbd_lib.rados_wait_for_latest_osdmap
#define rbd_aio_create_completion rbd_lib.rbd_aio_create_completion
#define rbd_aio_discard rbd_lib.rbd_aio_discard
#define rbd_aio_flush rbd_lib.rbd_aio_flush
#define rbd_aio_get_return_value rbd_lib.rbd_aio_get_return_value
#define rbd_aio_read rbd_lib.rbd_aio_read
#define rbd_aio_readv rbd_lib.rbd_aio_readv
#define rbd_aio_release rbd_lib.rbd_aio_release
#define rbd_aio_write rbd_lib.rbd_aio_write
#define rbd_aio_write_zeroes rbd_lib.rbd_aio_write_zeroes
#define rbd_aio_writev rbd_lib.rbd_aio_writev
#define rbd_close rbd_lib.rbd_close
#define rbd_config_image_list rbd_lib.rbd_config_image_list
#define rbd_config_image_list_cleanup rbd_lib.rbd_config_image_list_cleanup
#define rbd_get_features rbd_lib.rbd_get_features
#define rbd_get_size rbd_lib.rbd_get_size
#define rbd_get_stripe_count rbd_lib.rbd_get_stripe_count
#define rbd_get_stripe_unit rbd_lib.rbd_get_stripe_unit
#define rbd_invalidate_cache rbd_lib.rbd_invalidate_cache
#define rbd_lock_acquire rbd_lib.rbd_lock_acquire
#define rbd_lock_break rbd_lib.rbd_lock_break
#define rbd_lock_get_owners rbd_lib.rbd_lock_get_owners
#define rbd_lock_get_owners_cleanup rbd_lib.rbd_lock_get_owners_cleanup
#define rbd_metadata_get rbd_lib.rbd_metadata_get
#define rbd_metadata_set rbd_lib.rbd_metadata_set
#define rbd_open rbd_lib.rbd_open
#define rbd_open_read_only rbd_lib.rbd_open_read_only
#define rbd_resize2 rbd_lib.rbd_resize2
#define rbd_stat rbd_lib.rbd_stat
#define rbd_update_unwatch rbd_lib.rbd_update_unwatch
#define rbd_update_watch rbd_lib.rbd_update_watch
#define rbd_watchers_list rbd_lib.rbd_watchers_list
#define rbd_watchers_list_cleanup rbd_lib.rbd_watchers_list_cleanup
#endif

#endif
