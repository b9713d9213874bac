/* Time, and the samples for Redis' LATENCY command. */
#ifndef KEYSPACE_AMQP_LATENCY_H
#define KEYSPACE_AMQP_LATENCY_H
#include "redis_api.h"

/* Any thread. The monotonic clock, in microseconds and in milliseconds. */
long long clock_us(void);
long long clock_ms(void);
/* Main thread. Adds a sample of `event` to Redis' LATENCY, if its monitor is on: the main
 * thread was held from `began` (clock_us) until now. */
void latency_add(RedisModuleCtx *ctx, const char *event, long long began);
/* Main thread. Redis' parameters with these names have changed. */
void latency_config_changed(const RedisModuleConfigChangeV1 *change);

#endif
