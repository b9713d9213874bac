/* See maxmemory.h. */
#include "maxmemory.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

/* Memory is near maxmemory from this part of it on. The rest is for the clients: what they
 * write between two pushes must find room. */
#define NEAR 0.9
/* Redis' default; keys that may be evicted in databases above these are not counted. */
#define DATABASES 16
/* The eviction of a key frees at least this many bytes: its name, its value, and its places in
 * the tables. */
#define KEY_BYTES 50
/* To measure the list, Redis looks at this many of its nodes, of about 8 kB each. */
#define SAMPLES "1000"

/* What the server says about itself now. */
typedef struct {
    double maxmemory;
    double evictable; /* bytes that evictions can free, at least */
} facts_t;

/* Shared. */
static _Atomic int is_near;

void maxmemory_look(void) {
    atomic_store_explicit(&is_near, RedisModule_GetUsedMemoryRatio() >= NEAR, memory_order_relaxed);
}

int maxmemory_is_near(void) { return atomic_load_explicit(&is_near, memory_order_relaxed); }

/* Returns the number of keys in all databases. `field`: which of them, as INFO names them. */
static double count_keys(RedisModuleCtx *ctx, const char *field) {
    double keys = 0;
    RedisModuleServerInfoData *info = RedisModule_GetServerInfo(ctx, "keyspace");
    for (int db = 0; db < DATABASES; db++) {
        char name[16];
        snprintf(name, sizeof(name), "db%d", db);
        const char *text = RedisModule_ServerInfoGetFieldC(info, name); /* keys=1,expires=0,... */
        const char *found = text == NULL ? NULL : strstr(text, field);
        if (found != NULL) keys += strtod(found + strlen(field), NULL);
    }
    RedisModule_FreeServerInfo(ctx, info);
    return keys;
}

static facts_t read_facts(RedisModuleCtx *ctx) {
    RedisModuleServerInfoData *info = RedisModule_GetServerInfo(ctx, "memory");
    const char *policy = RedisModule_ServerInfoGetFieldC(info, "maxmemory_policy");
    double keys = 0;
    if (policy != NULL && strncmp(policy, "allkeys-", 8) == 0)
        keys = count_keys(ctx, "keys=");
    else if (policy != NULL && strncmp(policy, "volatile-", 9) == 0)
        keys = count_keys(ctx, "expires=");
    facts_t facts = {(double)RedisModule_ServerInfoGetFieldUnsigned(info, "maxmemory", NULL),
                     keys * KEY_BYTES};
    RedisModule_FreeServerInfo(ctx, info);
    return facts;
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
    /* The ratio is 0 without a maxmemory. What is pushed is in it already: as strings. */
    if (RedisModule_GetUsedMemoryRatio() < NEAR) return 1;
    facts_t facts = read_facts(ctx);
    double more = (double)bytes;
    /* Evictions must be able to make room for the push at once, and for as much again. */
    if (facts.evictable < 2 * more) return 0;
    long long taken = list_bytes(ctx, key, key_len);
    double share = facts.maxmemory * main_thread.fallback_memory / 100;
    return taken >= 0 && (double)taken + more <= share;
}
