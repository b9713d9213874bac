/* Appends strings to a list of this server, as RPUSH does. Main thread. */
#ifndef KEYSPACE_AMQP_LIST_PUSH_H
#define KEYSPACE_AMQP_LIST_PUSH_H
#include <stddef.h>

#include "redis_api.h"

/* Returns whether pushes can be replicated. They cannot if the server knows RPUSH under another
 * name only. */
int list_push_works(RedisModuleCtx *ctx);
/* Appends the strings to the list with this key, in the context's database, and replicates it as
 * RPUSH. Returns the length of the list, or -1: the key is not a list, or is not served here. */
long long list_push(RedisModuleCtx *ctx, RedisModuleString *key, RedisModuleString **strings,
                    size_t count);

#endif
