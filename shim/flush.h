/* A flush: the main thread waits until the worker has dealt with all that was captured.
 * Main thread, all of it. */
#ifndef KEYSPACE_AMQP_FLUSH_H
#define KEYSPACE_AMQP_FLUSH_H
#include "redis_api.h"

/* Asks for a flush (FLUSH_*) and waits until it is done, at most for the time that
 * tables/times.py gives. Runs jobs meanwhile: the worker may wait for one. Returns 1 if the
 * flush is done or nobody is left to do it, 0 if the time was over. */
int flush_worker(RedisModuleCtx *ctx, int mode);

#endif
