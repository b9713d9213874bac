/* The counters and texts of STATS and INFO. Nothing here waits for the worker, so both
 * answer even when it is stuck (rule 4). Main thread; the worker's part is in api.h. */
#ifndef KEYSPACE_AMQP_STATS_H
#define KEYSPACE_AMQP_STATS_H
#include "redis_api.h"

/* Resets all counters and texts, for a load. */
void stats_prepare(void);
/* Resets the worker's counters, for another worker: it shows its own from 0 on. Those of the shim
 * go on: events that found the queue full stay counted. */
void stats_renew(void);
/* Replies with the map of KEYSPACEAMQP.STATS. */
void stats_reply(RedisModuleCtx *ctx);
/* Writes the section of INFO (a RedisModuleInfoFunc). */
void stats_info(RedisModuleInfoCtx *ctx, int for_crash_report);
/* Logs how many events have found the queue full since the last such line. Does so at most
 * once in ten seconds, unless `now` is not 0. */
void stats_log_losses(RedisModuleCtx *ctx, int now);
/* Logs how many events are still in the queue, if any: the queue is about to end. */
void stats_log_left(RedisModuleCtx *ctx);
/* Frees the texts. The worker has ended. */
void stats_release(void);

#endif
