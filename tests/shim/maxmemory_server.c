/* A server for shim/maxmemory.c: it says how much memory it has, and counts how often it is asked.
 * Driven by test_maxmemory.py. */
#include <stdio.h>
#include <string.h>

#include "../../shim/maxmemory.h"
#include "../../shim/redis_api.h"
#include "../../shim/state.h"

struct main_thread main_thread;
struct shared shared;

/* What the server says. */
double ratio;
long long maxmemory, keys, expires, list_bytes; /* list_bytes: -1 for a list that is missing, -2
                                                   for an error */
char policy[32];
/* How often it was asked. */
int asked_ratio, asked_info, asked_list;

static RedisModuleServerInfoData *const INFO = (RedisModuleServerInfoData *)"info";
static RedisModuleCallReply *const REPLY = (RedisModuleCallReply *)"reply";

static float used_memory_ratio(void) {
    asked_ratio++;
    return (float)ratio;
}

static RedisModuleServerInfoData *server_info(RedisModuleCtx *ctx, const char *section) {
    (void)ctx;
    asked_info += strcmp(section, "memory") == 0;
    return INFO;
}
static void free_info(RedisModuleCtx *ctx, RedisModuleServerInfoData *info) {
    (void)ctx;
    (void)info;
}
static const char *info_field(RedisModuleServerInfoData *info, const char *field) {
    static char text[100];
    (void)info;
    if (strcmp(field, "maxmemory_policy") == 0) return policy;
    if (strcmp(field, "db3") != 0) return NULL;
    snprintf(text, sizeof(text), "keys=%lld,expires=%lld,avg_ttl=0", keys, expires);
    return text;
}
static unsigned long long info_number(RedisModuleServerInfoData *info, const char *field,
                                      int *error) {
    (void)info;
    (void)field;
    (void)error;
    return (unsigned long long)maxmemory;
}

static RedisModuleCallReply *call(RedisModuleCtx *ctx, const char *command, const char *format,
                                  ...) {
    (void)ctx;
    (void)command;
    (void)format;
    asked_list++;
    return list_bytes == -2 ? NULL : REPLY;
}
static int reply_type(RedisModuleCallReply *reply) {
    (void)reply;
    return list_bytes == -1 ? REDISMODULE_REPLY_NULL : REDISMODULE_REPLY_INTEGER;
}
static long long reply_integer(RedisModuleCallReply *reply) {
    (void)reply;
    return list_bytes;
}
static void free_reply(RedisModuleCallReply *reply) { (void)reply; }

/* ---- what the test calls ---- */

/* Begins a turn of the event loop so many milliseconds after the last one. */
void server_turn(int ms) {
    main_thread.now_ms += ms;
    maxmemory_look();
}

/* Forgets what earlier tests have asked. `percent`: the parameter fallback-memory. */
void server_start(int percent) {
    RedisModule_GetUsedMemoryRatio = used_memory_ratio;
    RedisModule_GetServerInfo = server_info;
    RedisModule_FreeServerInfo = free_info;
    RedisModule_ServerInfoGetFieldC = info_field;
    RedisModule_ServerInfoGetFieldUnsigned = info_number;
    RedisModule_Call = call;
    RedisModule_CallReplyType = reply_type;
    RedisModule_CallReplyInteger = reply_integer;
    RedisModule_FreeCallReply = free_reply;
    main_thread.fallback_memory = percent;
    server_turn(1000);
    asked_ratio = asked_info = asked_list = 0;
}

/* Asks for so many bytes for a list, again and again; returns how often they were allowed. */
int server_push(const char *key, long long bytes, int times) {
    int allowed = 0;
    while (times-- > 0)
        allowed += maxmemory_allows(NULL, key, strlen(key), (size_t)bytes);
    return allowed;
}
