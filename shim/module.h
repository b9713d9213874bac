/* The entry points of the core, which the loader finds by name and calls. Main thread. */
#ifndef KEYSPACE_AMQP_MODULE_H
#define KEYSPACE_AMQP_MODULE_H
#include "redis_api.h"

/* Does the work of RedisModule_OnLoad, and returns its result. */
int keyspace_amqp_load(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
/* Does the work of RedisModule_OnUnload, and returns its result. */
int keyspace_amqp_unload(RedisModuleCtx *ctx);

#endif
