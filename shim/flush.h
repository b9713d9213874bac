/* A flush: the main thread waits until the worker has delivered or stored all captured events.
 * Main thread, all of it. */
#ifndef KEYSPACE_AMQP_FLUSH_H
#define KEYSPACE_AMQP_FLUSH_H
#include "redis_api.h"

/* Asks for a flush (FLUSH_*) and waits until it is done, within the limits of
 * tables/times.py. Runs jobs meanwhile: the worker may wait for one. Returns 1 if the flush
 * is done or there is no worker that could do it, 0 if the limit has passed
 * or the worker has ended without it. */
int flush_worker(RedisModuleCtx *ctx, int mode);

#endif
