/* The capture of keyspace events. Main thread, all of it. */
#ifndef KEYSPACE_AMQP_CAPTURE_H
#define KEYSPACE_AMQP_CAPTURE_H
#include "redis_api.h"

/* At load: forgets the subscriptions of an earlier one, and finds the classes that the server
 * has. */
void capture_prepare(RedisModuleCtx *ctx);
/* Returns the classes of events (REDISMODULE_NOTIFY_*) that can be captured here. */
int capture_available(void);
/* Captures events of these classes from now on, and no others, each with at most `subkeys` of its
 * subkeys. Classes that the server does not have are left out. */
void capture_classes(RedisModuleCtx *ctx, int classes, int subkeys);
/* Once in each turn of the event loop: ends the subscriptions that are not wanted any more. Valkey
 * and Redis before 8.2 cannot end any: there the callback ignores the events. */
void capture_tidy(RedisModuleCtx *ctx);
/* At unload: ends all subscriptions. */
void capture_end(RedisModuleCtx *ctx);

#endif
