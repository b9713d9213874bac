/* The values of keys, for events that are to have them. Main thread, all of it. */
#ifndef KEYSPACE_AMQP_VALUES_H
#define KEYSPACE_AMQP_VALUES_H
#include "api.h"
#include "redis_api.h"

/* Forgets what an earlier load was to do. */
void values_prepare(void);
/* From here on each event has up to so many bytes of its key's value; 0: none. */
void values_take(RedisModuleCtx *ctx, size_t bytes);
/* Pushes an event with the value of its key, or without it where there is none. `name`
 * and `len`: the bytes of `key`. Returns 0, or -1 if the queue is full. */
int values_push(RedisModuleCtx *ctx, const record_t *head, const char *event,
                RedisModuleString *key, const char *name, size_t len);

#endif
