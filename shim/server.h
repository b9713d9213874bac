/* What the server tells: its role, loading, saves, flushes, messages of the cluster, and
 * each turn of the event loop. Main thread, all of it. */
#ifndef KEYSPACE_AMQP_SERVER_H
#define KEYSPACE_AMQP_SERVER_H
#include "redis_api.h"

/* Reads what the server is at the load: port, role, cluster mode. */
void server_prepare(RedisModuleCtx *ctx);
/* Tells the worker the role of this server, and starts or stops the capture with it. */
void server_send_role(void);
/* Subscribes to the server's events. */
void server_subscribe(RedisModuleCtx *ctx);

#endif
