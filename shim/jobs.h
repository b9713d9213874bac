/* Jobs: what the worker has the main thread do. The worker's side is in api.h.
 * Main thread, but for jobs_wake. */
#ifndef KEYSPACE_AMQP_JOBS_H
#define KEYSPACE_AMQP_JOBS_H
#include "redis_api.h"

/* Makes what jobs need; -1 if no file descriptor is left. */
int jobs_prepare(void);
/* From here on a submitted job wakes Redis' event loop. */
void jobs_listen(void);
/* Runs the submitted jobs, oldest first. Needs a context that Redis made for a callback:
 * what a job writes is replicated when that context ends. (A one-shot callback of the
 * event loop has no such context. On Redis 7.0 its writes stay unreplicated until the
 * next command of some client.) */
void jobs_run(RedisModuleCtx *ctx);
/* True while jobs_run runs. */
int jobs_are_running(void);
/* From here on jobs that write are refused: it is too late for a change of the data set. */
void jobs_refuse_writes(void);
/* Waits until somebody calls jobs_wake or submits a job, for at most `ms` milliseconds. */
void jobs_wait(long long ms);
/* Any thread. Ends such a wait, or wakes Redis' event loop. */
void jobs_wake(void);
/* Frees everything. The worker has ended. */
void jobs_release(void);

#endif
