/* The floor: a module that hears of each SET and does nothing. What it adds to Redis
 * is the price of having any subscriber at all. */
#include "../../shim/redis_api.h"

#define NOTIFY_STRING (1 << 3) /* class $ */

static int on_event(RedisModuleCtx *ctx, int type, const char *event, RedisModuleString *key) {
    (void)ctx, (void)type, (void)event, (void)key;
    return REDISMODULE_OK;
}

int RedisModule_OnLoad(void *ctx, RedisModuleString **argv, int argc) {
    (void)argv, (void)argc;
    if (redis_api_load(ctx) != NULL) return REDISMODULE_ERR;
    RedisModule_SetModuleAttribs(ctx, "empty", 1, REDISMODULE_APIVER_1);
    return RedisModule_SubscribeToKeyspaceEvents(ctx, NOTIFY_STRING, on_event);
}
