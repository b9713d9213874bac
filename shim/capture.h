/* The capture of keyspace events. Main thread, all of it. */
#ifndef KEYSPACE_AMQP_CAPTURE_H
#define KEYSPACE_AMQP_CAPTURE_H
#include "redis_api.h"

/* Forgets the subscriptions of an earlier load. */
void capture_prepare(void);
/* Captures events of these classes (REDISMODULE_NOTIFY_*) from now on, and no others. */
void capture_classes(RedisModuleCtx *ctx, int classes);

#endif
