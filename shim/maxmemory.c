/* See maxmemory.h. */
#include "maxmemory.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "buffer.h"
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

/* What is known about the server and the list holds for this long, unless it allows no more. Near
 * maxmemory it takes some 50 microseconds to ask. */
#define KNOWN_MS 100

/* What is known: as the server said it, less what was allowed since. It is asked at most once in
 * a turn. Main thread. */
static struct {
    int asked; /* in this turn */
    long long asked_ms;
    double maxmemory;
    double evictable; /* bytes that evictions can free, at least */
} server;
static struct {
    int asked;
    buffer_t key;
    double bytes; /* that it takes, about */
} list;

/* Shared. */
static _Atomic int is_near;

void maxmemory_look(void) {
    server.asked = list.asked = 0;
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

static void ask_server(RedisModuleCtx *ctx) {
    RedisModuleServerInfoData *info = RedisModule_GetServerInfo(ctx, "memory");
    const char *policy = RedisModule_ServerInfoGetFieldC(info, "maxmemory_policy");
    double keys = 0;
    if (policy != NULL && strncmp(policy, "allkeys-", 8) == 0)
        keys = count_keys(ctx, "keys=");
    else if (policy != NULL && strncmp(policy, "volatile-", 9) == 0)
        keys = count_keys(ctx, "expires=");
    server.maxmemory = (double)RedisModule_ServerInfoGetFieldUnsigned(info, "maxmemory", NULL);
    server.evictable = keys * KEY_BYTES;
    server.asked = 1;
    server.asked_ms = main_thread.now_ms;
    RedisModule_FreeServerInfo(ctx, info);
}

static void ask_list(RedisModuleCtx *ctx, const char *key, size_t key_len) {
    list.bytes = INFINITY; /* if Redis does not say it */
    RedisModuleCallReply *reply =
        RedisModule_Call(ctx, "MEMORY", "cbcc", "USAGE", key, key_len, "SAMPLES", SAMPLES);
    if (reply != NULL) {
        int type = RedisModule_CallReplyType(reply);
        if (type == REDISMODULE_REPLY_INTEGER)
            list.bytes = (double)RedisModule_CallReplyInteger(reply);
        if (type == REDISMODULE_REPLY_NULL) list.bytes = 0; /* there is no list yet */
        RedisModule_FreeCallReply(reply);
    }
    list.asked = 1;
    buffer_empty(&list.key);
    buffer_add(&list.key, key, key_len);
}

/* True if so many bytes more are within the list's share, and evictions are able to make room for
 * them at once, and for as much again. */
static int has_room(double more) {
    double share = server.maxmemory * main_thread.fallback_memory / 100;
    return server.evictable >= 2 * more && list.bytes + more <= share;
}

int maxmemory_allows(RedisModuleCtx *ctx, const char *key, size_t key_len, size_t bytes) {
    /* Read each time: it costs about 10 ns, and during one long command the memory in use may
     * grow beyond all bounds. The ratio is 0 without a maxmemory. */
    if (RedisModule_GetUsedMemoryRatio() < NEAR) return 1;
    double more = (double)bytes;
    int same = list.key.len == key_len && memcmp(list.key.data, key, key_len) == 0;
    /* Without a sign, so that a clock that was set back ends what is known too. */
    unsigned long long age = (unsigned long long)(main_thread.now_ms - server.asked_ms);
    int old = age >= KNOWN_MS || !has_room(more);
    if (old && !server.asked) ask_server(ctx);
    if (!same || (old && !list.asked)) ask_list(ctx, key, key_len);
    if (!has_room(more)) return 0;
    server.evictable -= 2 * more;
    list.bytes += more;
    return 1;
}
