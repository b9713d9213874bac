/* The filter of the main thread: the databases and masks that are in force. Its functions are in
 * api.h. */
#ifndef KEYSPACE_AMQP_FILTER_H
#define KEYSPACE_AMQP_FILTER_H
#include "redis_api.h"
#include "state.h"

/* Main thread. True if `masks` and `databases` let events of this key, in the database of the
 * context, through. Inlined, so that ALL costs one test. */
static inline int filter_allows(RedisModuleCtx *ctx, const char *key, size_t len) {
    return main_thread.filter == NULL ||
           filter_passes(main_thread.filter, RedisModule_GetSelectedDb(ctx), key, len);
}

#endif
