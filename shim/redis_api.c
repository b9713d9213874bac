/* See redis_api.h. */
#include "redis_api.h"

#define REDIS_API_DEFINE(version, name, result, parameters) result(*RedisModule_##name) parameters;
REDIS_API(REDIS_API_DEFINE)
int redis_api_of_valkey;

const char *redis_api_load(void *ctx) {
    const char *missing = NULL;
#define REDIS_API_LOOK_UP(since, name, result, parameters)                                         \
    if (redis_api_find(ctx, "RedisModule_" #name, (void *)&RedisModule_##name) !=                  \
        REDISMODULE_OK) {                                                                          \
        RedisModule_##name = NULL;                                                                 \
        if (since <= 700 && missing == NULL) missing = #name;                                      \
    }
    REDIS_API(REDIS_API_LOOK_UP)
    void *function;
    redis_api_of_valkey =
        redis_api_find(ctx, "ValkeyModule_SetModuleOptions", &function) == REDISMODULE_OK;
    return missing;
}
