/* Looking at a key without a trace. Main thread. */
#ifndef KEYSPACE_AMQP_LOOK_H
#define KEYSPACE_AMQP_LOOK_H
#include "redis_api.h"

/* Opens a key to look at it; returns NULL if it does not exist. The caller closes it, and
 * changes nothing. `more`: flags that Redis 7.0 does not have.
 *
 * No command runs, the key's LRU time stays, nothing is counted in keyspace_hits and
 * keyspace_misses, and no `keymiss` is emitted. Redis 7.0 has flags for the first two of these
 * alone. But it counts and emits nothing for a key that is opened for writing, and it tells
 * those who watch the key only if the module says so (see OnLoad in module.c). */
static inline RedisModuleKey *look_at(RedisModuleCtx *ctx, RedisModuleString *name, int more) {
    const int mode = RedisModule_GetOpenKeyModesAll == NULL
                         ? REDISMODULE_READ | REDISMODULE_WRITE
                         : REDISMODULE_READ | REDISMODULE_OPEN_KEY_NONOTIFY |
                               REDISMODULE_OPEN_KEY_NOSTATS | more;
    RedisModuleKey *key = RedisModule_OpenKey(ctx, name, mode | REDISMODULE_OPEN_KEY_NOTOUCH);
    if (key != NULL && RedisModule_KeyType(key) == REDISMODULE_KEYTYPE_EMPTY) {
        RedisModule_CloseKey(key);
        return NULL;
    }
    return key;
}

#endif
