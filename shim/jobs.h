/* Jobs: commands that the main thread runs for the worker. The worker's side is in api.h.
 * Main thread, all of it. */
#ifndef KEYSPACE_AMQP_JOBS_H
#define KEYSPACE_AMQP_JOBS_H
#include <stdint.h>

#include "redis_api.h"

/* Allows writes again, which an earlier load may have refused. */
void jobs_prepare(void);
/* Runs the submitted jobs, oldest first. Needs a context that Redis made for a callback:
 * what a job writes is replicated when that context ends. (A one-shot callback of the
 * event loop has no such context. On Redis 7.0 its writes stay unreplicated until the
 * next command of some client.) */
void jobs_run(RedisModuleCtx *ctx);
/* Returns how many jobs were run since jobs_prepare. */
uint64_t jobs_count(void);
/* Returns whether writes of jobs are refused. */
int jobs_refuses_writes(void);
/* Refuses writes of jobs from now on: it is too late to change the data set. */
void jobs_refuse_writes(void);
/* Frees submitted jobs that were not run. The worker has ended. */
void jobs_release(void);

#endif
