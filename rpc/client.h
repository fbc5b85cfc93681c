/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What client.c (the clients of the RPC socket) and server.c (the socket) know of each
 * other. The control thread's.
 */
#ifndef SPINDLE_RPC_CLIENT_H
#define SPINDLE_RPC_CLIENT_H

#include "reactor/base.h"

/* One that was accepted; fd is taken unless it returns -errno. */
int rpc_client_new(int fd) CONTROL_ONLY;
unsigned int rpc_client_count(void) CONTROL_ONLY;
void rpc_clients_close(void) CONTROL_ONLY;
/* One is gone: there may be room for another. */
void rpc_server_accept_more(void) CONTROL_ONLY;

#endif
