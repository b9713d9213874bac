/* The subkeys of events: the fields of a hash that an event is about. Main thread. */
#ifndef KEYSPACE_AMQP_SUBKEYS_H
#define KEYSPACE_AMQP_SUBKEYS_H
#include "api.h"
#include "redis_api.h"

/* Pushes an event with its `total` subkeys, and with the value of its key if that is wanted.
 * `name` and `len`: the bytes of `key`. Subkeys beyond the limits are left out. If the queue has
 * no room for them, the event is pushed without them. Returns 0, or -1 if the queue is full. */
int subkeys_push(RedisModuleCtx *ctx, const record_t *head, const char *event,
                 RedisModuleString *key, const char *name, size_t len, RedisModuleString **subkeys,
                 int total);

#endif
