/* The values of keys, for events that carry them. Main thread, all of it. */
#ifndef KEYSPACE_AMQP_VALUES_H
#define KEYSPACE_AMQP_VALUES_H
#include "api.h"
#include "buffer.h"
#include "redis_api.h"

/* Resets the state of an earlier load. */
void values_prepare(void);
/* Adds up to `bytes` bytes of its key's value to each event from now on; 0: none. */
void values_take(RedisModuleCtx *ctx, size_t bytes);
/* Returns the payload of a VALUED for an event, or NULL if it has no value. Valid until the next
 * event. `name` and `len`: the bytes of `key`. */
const buffer_t *values_find(RedisModuleCtx *ctx, const char *event, RedisModuleString *key,
                            const char *name, size_t len);
/* Pushes an event with the value of its key, or without one if the key has none. `name`
 * and `len`: the bytes of `key`. Returns 0, or -1 if the queue is full. */
int values_push(RedisModuleCtx *ctx, const record_t *head, const char *event,
                RedisModuleString *key, const char *name, size_t len);
/* Returns the payload of a VALUED for a key, outside of any event, or NULL if it does not exist.
 * A key whose time is over may be removed, with its event. Valid until the next event. */
const buffer_t *values_show(RedisModuleCtx *ctx, RedisModuleString *key, const char *name,
                            size_t len);
/* Pushes an event with this payload of a VALUED; NULL, or if it does not fit: without a value.
 * `name`: the bytes of the key. Returns 0, or -1 if the queue is full. */
int values_push_payload(RedisModuleCtx *ctx, const record_t *head, const char *event,
                        const buffer_t *payload, const char *name);

#endif
