/* The server's events: role, loading, saves, FLUSHALL and SWAPDB, shutdown, messages of the
 * cluster, and each turn of the event loop. Main thread, all of it. */
#ifndef KEYSPACE_AMQP_SERVER_H
#define KEYSPACE_AMQP_SERVER_H
#include "redis_api.h"

/* Reads the server's port, role and cluster mode, at the load. */
void server_prepare(RedisModuleCtx *ctx);
/* True while the server loads the modules of its configuration, before its first turn. */
int server_is_starting(RedisModuleCtx *ctx);
/* Tells the worker the role of this server, and starts or stops the capture with it. */
void server_send_role(void);
/* Subscribes to the server's events. */
void server_subscribe(RedisModuleCtx *ctx);

#endif
