/* The commands KEYSPACEAMQP.*. Main thread, all of it. */
#ifndef KEYSPACE_AMQP_COMMANDS_H
#define KEYSPACE_AMQP_COMMANDS_H
#include "redis_api.h"

/* Registers the commands with their documentation, and the section of INFO. Returns
 * REDISMODULE_ERR if another module uses one of these names. */
int commands_register(RedisModuleCtx *ctx);

#endif
