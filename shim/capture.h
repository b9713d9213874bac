/* The capture of keyspace events. Main thread, all of it. */
#ifndef KEYSPACE_AMQP_CAPTURE_H
#define KEYSPACE_AMQP_CAPTURE_H
#include <string.h>

#include "redis_api.h"
#include "tables.h"

/* Forgets the subscriptions of an earlier load. */
void capture_prepare(void);
/* From here on captures events of these classes (REDISMODULE_NOTIFY_*). */
void capture_classes(RedisModuleCtx *ctx, int classes);
/* True if events of one of these classes are captured. */
int capture_wants(int classes);

/* True if the key has the form of our fallback lists. */
static inline int is_own_key(const char *key, size_t len) {
    const size_t prefix = sizeof(OWN_KEY_PREFIX) - 1, suffix = sizeof(OWN_KEY_SUFFIX) - 1;
    return len >= prefix + suffix && memcmp(key, OWN_KEY_PREFIX, prefix) == 0 &&
           memcmp(key + len - suffix, OWN_KEY_SUFFIX, suffix) == 0;
}

#endif
