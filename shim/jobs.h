/* Jobs: what the worker has the main thread do. The worker's side is in api.h.
 * Main thread, all of it. */
#ifndef KEYSPACE_AMQP_JOBS_H
#define KEYSPACE_AMQP_JOBS_H
#include "redis_api.h"

/* Forgets what an earlier load has refused. */
void jobs_prepare(void);
/* Runs the submitted jobs, oldest first. Needs a context that Redis made for a callback:
 * what a job writes is replicated when that context ends. (A one-shot callback of the
 * event loop has no such context. On Redis 7.0 its writes stay unreplicated until the
 * next command of some client.) */
void jobs_run(RedisModuleCtx *ctx);
/* From here on jobs that write are refused: it is too late for a change of the data set. */
void jobs_refuse_writes(void);
/* Frees jobs that were submitted too late. The worker has ended. */
void jobs_release(void);

#endif
