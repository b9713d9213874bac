/* The life of the worker within a load: start, stop, and start again after an unload that was
 * refused. Main thread, all of it. */
#ifndef KEYSPACE_AMQP_LIFE_H
#define KEYSPACE_AMQP_LIFE_H
#include "redis_api.h"
#include "worker.h"

/* Starts the worker at load, and waits until it is ready. A worker that is not ready in time is
 * abandoned (worker.h). */
enum worker_start life_start(void);
/* Stops the worker with a flush (FLUSH_LEAVE or FLUSH_DRAIN). Returns 1 if it has ended. If it
 * hangs, returns 0 when the time limit has passed; the capture then goes on, and
 * life_resume continues as soon as the worker has ended. */
int life_stop(RedisModuleCtx *ctx, int mode);
/* Once in each turn of the event loop. Starts another worker if the old one has ended too late
 * for an unload. */
void life_resume(RedisModuleCtx *ctx);

#endif
