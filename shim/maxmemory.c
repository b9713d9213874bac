/* See maxmemory.h. */
#include "maxmemory.h"

#include <stdatomic.h>
#include <string.h>

#include "state.h"

/* Memory is near maxmemory from this part of it on. The rest is for the clients: what they
 * write between two pushes must find room. */
#define NEAR 0.9
/* The limits of the server are read again after so long. */
#define LIMITS_EVERY_MS 1000
/* To measure the list, Redis looks at this many of its nodes, of about 8 kB each. */
#define SAMPLES "100"

/* The main thread's: what the server's configuration says. */
static struct {
    long long read_ms;
    double bytes;       /* maxmemory */
    int evicts_any_key; /* the policy is allkeys-* */
} limits;
/* Shared. */
static _Atomic int is_near;

void maxmemory_look(void) {
    atomic_store_explicit(&is_near, RedisModule_GetUsedMemoryRatio() >= NEAR, memory_order_relaxed);
}

int maxmemory_is_near(void) { return atomic_load_explicit(&is_near, memory_order_relaxed); }

static void read_limits(RedisModuleCtx *ctx) {
    if (main_thread.now_ms < limits.read_ms + LIMITS_EVERY_MS) return;
    limits.read_ms = main_thread.now_ms;
    RedisModuleServerInfoData *info = RedisModule_GetServerInfo(ctx, "memory");
    const char *policy = RedisModule_ServerInfoGetFieldC(info, "maxmemory_policy");
    limits.bytes = (double)RedisModule_ServerInfoGetFieldUnsigned(info, "maxmemory", NULL);
    limits.evicts_any_key = policy != NULL && strncmp(policy, "allkeys-", 8) == 0;
    RedisModule_FreeServerInfo(ctx, info);
}

/* Returns about how many bytes the list takes, or -1 if Redis does not say. */
static long long list_bytes(RedisModuleCtx *ctx, const char *key, size_t key_len) {
    RedisModuleCallReply *reply =
        RedisModule_Call(ctx, "MEMORY", "cbcc", "USAGE", key, key_len, "SAMPLES", SAMPLES);
    if (reply == NULL) return -1;
    int type = RedisModule_CallReplyType(reply);
    long long bytes = -1;
    if (type == REDISMODULE_REPLY_INTEGER) bytes = RedisModule_CallReplyInteger(reply);
    if (type == REDISMODULE_REPLY_NULL) bytes = 0; /* there is no list yet */
    RedisModule_FreeCallReply(reply);
    return bytes;
}

int maxmemory_allows(RedisModuleCtx *ctx, const char *key, size_t key_len, size_t bytes) {
    double ratio = RedisModule_GetUsedMemoryRatio(); /* 0 without a maxmemory */
    if (ratio <= 0) return 1;
    read_limits(ctx);
    if (ratio * limits.bytes + (double)bytes < NEAR * limits.bytes) return 1;
    if (!limits.evicts_any_key) return 0;
    long long taken = list_bytes(ctx, key, key_len);
    double share = limits.bytes * main_thread.fallback_memory / 100;
    return taken >= 0 && (double)taken + (double)bytes <= share;
}
