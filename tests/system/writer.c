/* A module that writes whenever a key expires, as some do to keep books: INCR audit. */
#include "../../shim/redis_api.h"

#define NOTIFY_EXPIRED (1 << 8) /* class x */

static int on_event(RedisModuleCtx *ctx, int type, const char *event, RedisModuleString *key) {
    (void)type, (void)event, (void)key;
    RedisModuleCallReply *reply = RedisModule_Call(ctx, "INCR", "!c", "audit");
    if (reply != NULL) RedisModule_FreeCallReply(reply);
    return REDISMODULE_OK;
}

int RedisModule_OnLoad(void *ctx, RedisModuleString **argv, int argc) {
    (void)argv, (void)argc;
    if (redis_api_load(ctx) != NULL) return REDISMODULE_ERR;
    RedisModule_SetModuleAttribs(ctx, "writer", 1, REDISMODULE_APIVER_1);
    return RedisModule_SubscribeToKeyspaceEvents(ctx, NOTIFY_EXPIRED, on_event);
}
