/* Load and unload of the module.
 *
 * Main thread. The library stays in the process when the module is unloaded, and so do its
 * variables: each load begins by setting them to what they were at first (prepare).
 */
#include <string.h>

#include "capture.h"
#include "commands.h"
#include "config.h"
#include "flush.h"
#include "jobs.h"
#include "latency.h"
#include "python.h"
#include "redis_api.h"
#include "server.h"
#include "state.h"
#include "stats.h"
#include "tables.h"
#include "values.h"
#include "worker.h"

struct main_thread main_thread;
struct shared shared;
/* The worker of an earlier load hangs, and still uses everything. */
static int wedged;

/* Returns 0, or -1 if no file descriptor is left. */
static int prepare(RedisModuleCtx *ctx) {
    stats_prepare();
    capture_prepare();
    values_prepare();
    server_prepare(ctx);
    jobs_prepare();
    return worker_prepare(ctx);
}

/* Frees all that this load has made, after the end of the worker. */
static void release(void) {
    worker_close();
    worker_release();
    jobs_release();
    config_release();
    stats_release();
}

/* Gives up a load. The reason is logged, unless it is empty because it was logged already. */
static int refuse_load(RedisModuleCtx *ctx, const char *reason) {
    if (reason[0] != '\0') RedisModule_Log(ctx, "warning", "not loaded: %s", reason);
    release();
    return REDISMODULE_ERR;
}

/* Returns 0 if this server can load the module now; else logs why not. */
static int check_server(RedisModuleCtx *ctx) {
    const char *missing = redis_api_load(ctx);
    if (missing != NULL) {
        if (RedisModule_Log != NULL)
            RedisModule_Log(ctx, "warning",
                            "keyspace-amqp not loaded: it needs Redis 7.0 or later, or Valkey 7.2 "
                            "or later; this server has no RedisModule_%s",
                            missing);
        return -1;
    }
    if (RedisModule_IsModuleNameBusy(MODULE_NAME)) {
        RedisModule_Log(ctx, "warning", "a module named " MODULE_NAME " is loaded already");
        return -1;
    }
    if (wedged) {
        RedisModule_Log(ctx, "warning",
                        "not loaded: an earlier load hangs in Python. Restart the server");
        return -1;
    }
    return 0;
}

/* Entry point: MODULE LOAD, MODULE LOADEX, and `loadmodule` in redis.conf. */
__attribute__((visibility("default"))) int RedisModule_OnLoad(RedisModuleCtx *ctx,
                                                              RedisModuleString **argv, int argc) {
    char error[4096];
    long long began = clock_us();
    if (check_server(ctx) != 0) return REDISMODULE_ERR;
    RedisModule_SetModuleAttribs(ctx, MODULE_NAME, MODULE_VERSION_NUMBER, REDISMODULE_APIVER_1);
    /* With repl-diskless-load swapdb a replica loads a new data set while it serves the old
     * one. Redis refuses that unless each module allows it; this one keeps nothing about
     * keys, so it can. */
    RedisModule_SetModuleOptions(ctx, REDISMODULE_OPTIONS_HANDLE_REPL_ASYNC_LOAD);
    if (prepare(ctx) != 0) return refuse_load(ctx, "no file descriptors left");
    if (config_register(ctx, argv, argc) != REDISMODULE_OK) return refuse_load(ctx, "");
    if (commands_register(ctx) != REDISMODULE_OK)
        return refuse_load(ctx, "another module has a command or an INFO section of this name");
    if (python_start(error, sizeof(error)) != 0) return refuse_load(ctx, error);
    worker_listen();
    worker_open();
    server_send_role();
    config_send();
    switch (worker_start()) {
    case WORKER_READY:
        break;
    case WORKER_FAILED:
        return refuse_load(ctx, "the handler did not start; the lines above say why");
    case WORKER_HANGS:
        /* It cannot be ended, so all that it uses stays. */
        RedisModule_Log(ctx, "warning", "not loaded: the handler did not start in time");
        worker_close();
        wedged = 1;
        return REDISMODULE_ERR;
    }
    /* Subscriptions come last: from a module that fails to load Redis 7.0 does not take
     * them back. The worker gets the parameters once more, and finds nothing new. */
    config_apply(ctx);
    server_subscribe(ctx);
    RedisModule_Log(ctx, "notice", "version %s, %s", MODULE_VERSION, python_describe());
    latency_add(ctx, MODULE_NAME "-load", began);
    return REDISMODULE_OK;
}

/* Entry point: MODULE UNLOAD. The worker delivers what was captured, or leaves it in a
 * file, and ends. If it does not end in time, the module stays. */
__attribute__((visibility("default"))) int RedisModule_OnUnload(RedisModuleCtx *ctx) {
    /* Nothing may be written to the list here. Redis replicates MODULE UNLOAD, as any
     * command, if it has changed the data set, and then replicas would lose the module. */
    jobs_refuse_writes();
    long long began = clock_us();
    flush_worker(ctx, FLUSH_LEAVE);
    latency_add(ctx, MODULE_NAME "-unload", began);
    worker_close();
    stats_log_losses(ctx, 1);
    if (!worker_has_ended()) {
        RedisModule_Log(ctx, "warning",
                        "not unloaded: the handler did not stop within %d ms. Try again",
                        STOP_LIMIT_MS);
        return REDISMODULE_ERR;
    }
    release();
    return REDISMODULE_OK;
}
