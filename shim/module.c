/* Load and unload of the module, for the loader.
 *
 * Main thread. The core stays in the process when the module is unloaded, and so do its
 * variables. So each load begins by resetting them (prepare).
 */
#include <string.h>

#include "capture.h"
#include "commands.h"
#include "config.h"
#include "jobs.h"
#include "latency.h"
#include "life.h"
#include "migration.h"
#include "module.h"
#include "outbox.h"
#include "python.h"
#include "redis_api.h"
#include "server.h"
#include "snapshot.h"
#include "state.h"
#include "stats.h"
#include "tables.h"
#include "values.h"
#include "worker.h"

struct main_thread main_thread;
struct shared shared;

static int loaded;                /* the module is loaded, and not unloaded */
static uint64_t loaded_arguments; /* then: the fingerprint of its arguments */

/* Returns 0, or -1 if no file descriptor is left. */
static int prepare(RedisModuleCtx *ctx) {
    stats_prepare();
    capture_prepare(ctx);
    values_prepare();
    server_prepare(ctx);
    migration_prepare(ctx);
    jobs_prepare();
    outbox_prepare();
    return worker_prepare(ctx);
}

/* Frees all that a load has made, after the end of the worker. */
static void release(RedisModuleCtx *ctx) {
    worker_close();
    stats_log_left(ctx);
    worker_release();
    jobs_release();
    config_release();
    outbox_release();
    snapshot_end("the module was unloaded");
    stats_release();
}

/* Gives up a load. The reason is logged, unless it is empty because it was logged already. */
static int refuse_load(RedisModuleCtx *ctx, const char *reason) {
    if (reason[0] != '\0') RedisModule_Log(ctx, "warning", "not loaded: %s", reason);
    release(ctx);
    return REDISMODULE_ERR;
}

/* Returns 0 if this server can load the module now; else logs the reason and returns -1. */
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
        RedisModule_Log(ctx, "warning",
                        "not loaded: a module named " MODULE_NAME " is loaded already, from "
                        "another file (MODULE LIST shows which). A server has one of them: name "
                        "one file in the loadmodule lines of redis.conf, of the files that it "
                        "includes, and of the command line. CONFIG REWRITE writes such a line "
                        "into redis.conf");
        return -1;
    }
    if (!worker_has_ended()) {
        RedisModule_Log(ctx, "warning",
                        "not loaded: the handler of an earlier load still hangs. Try again when "
                        "it has ended, or restart the server");
        return -1;
    }
    return 0;
}

/* Returns a number that differs if the arguments of a load do (FNV-1a). It keeps no secrets. */
static uint64_t fingerprint(RedisModuleString **argv, int argc) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (int i = 0; i < argc; i++) {
        size_t len;
        const char *bytes = RedisModule_StringPtrLen(argv[i], &len);
        for (size_t j = 0; j <= len; j++) /* with the NUL at the end, which no argument has */
            hash = (hash ^ (unsigned char)bytes[j]) * 0x100000001b3u;
    }
    return hash;
}

/* The server loads the module though it is loaded.
 *
 * CONFIG REWRITE, and so Sentinel, writes a `loadmodule` line into redis.conf, also if an included
 * file or the command line has one. The next start loads the module twice, and a server whose
 * module refuses to be loaded does not start. So this load succeeds, and does nothing: it has a
 * name, because the server needs one, but no commands, parameters or subscriptions. The
 * server enters modules into a table by their names. This name is there already, so the table
 * keeps the first load, and nothing ever finds the second one: neither MODULE LIST, nor MODULE
 * UNLOAD, nor CONFIG REWRITE. */
static int load_again(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    if (!server_is_starting(ctx)) {
        RedisModule_Log(ctx, "warning",
                        "not loaded: a module named " MODULE_NAME " is loaded already. To load it "
                        "again, give MODULE UNLOAD " MODULE_NAME " first");
        return REDISMODULE_ERR;
    }
    RedisModule_SetModuleAttribs(ctx, MODULE_NAME, MODULE_VERSION_NUMBER, REDISMODULE_APIVER_1);
    int differs = fingerprint(argv, argc) != loaded_arguments;
    RedisModule_Log(ctx, differs ? "warning" : "notice",
                    "loadmodule names this module again%s. The first line is in force, this one "
                    "has no effect. CONFIG REWRITE, and so Sentinel, writes such a line into "
                    "redis.conf: leave it there, and remove it from the included file or from the "
                    "command line",
                    differs ? ", with other arguments" : "");
    return REDISMODULE_OK;
}

/* Entry point: MODULE LOAD, MODULE LOADEX, and `loadmodule` in redis.conf. */
__attribute__((visibility("default"))) int keyspace_amqp_load(RedisModuleCtx *ctx,
                                                              RedisModuleString **argv, int argc) {
    char error[4096];
    long long began = clock_us();
    if (loaded) return load_again(ctx, argv, argc);
    if (check_server(ctx) != 0) return REDISMODULE_ERR;
    RedisModule_SetModuleAttribs(ctx, MODULE_NAME, MODULE_VERSION_NUMBER, REDISMODULE_APIVER_1);
    release(ctx); /* what a load that took too long had to keep */
    if (prepare(ctx) != 0) return refuse_load(ctx, "no file descriptors left");
    /* With repl-diskless-load swapdb a replica loads a new data set while it serves the old
     * one. Redis refuses that unless each module allows it; this one keeps nothing about
     * keys, so it can. And the module only looks at the keys that it opens (look.h), so closing
     * one is no change of which clients have to hear. */
    RedisModule_SetModuleOptions(ctx, REDISMODULE_OPTIONS_HANDLE_REPL_ASYNC_LOAD |
                                          REDISMODULE_OPTION_NO_IMPLICIT_SIGNAL_MODIFIED |
                                          migration_option());
    if (config_register(ctx, argv, argc) != REDISMODULE_OK) return refuse_load(ctx, "");
    if (commands_register(ctx) != REDISMODULE_OK)
        return refuse_load(ctx, "another module has a command or an INFO section of this name");
    if (python_start(error, sizeof(error)) != 0) return refuse_load(ctx, error);
    worker_listen();
    switch (life_start()) {
    case WORKER_READY:
        break;
    case WORKER_FAILED:
        return refuse_load(ctx, "the handler did not start; the lines above say why");
    case WORKER_HANGS:
        RedisModule_Log(ctx, "warning", "not loaded: the handler did not start within %d ms",
                        READY_MS);
        return REDISMODULE_ERR;
    }
    /* Subscriptions come last: Redis 7.0 keeps those of a module that fails to load. */
    config_apply(ctx);
    server_subscribe(ctx);
    RedisModule_Log(ctx, "notice", "version %s, %s", MODULE_VERSION, python_describe());
    latency_add(ctx, MODULE_NAME "-load", began);
    loaded = 1;
    loaded_arguments = fingerprint(argv, argc);
    return REDISMODULE_OK;
}

/* Entry point: MODULE UNLOAD. The worker delivers the captured events or writes them to
 * the file of leftovers, and ends. If it does not end in time, the module stays and goes on.
 * As long as it hangs, another unload is refused without a wait. */
__attribute__((visibility("default"))) int keyspace_amqp_unload(RedisModuleCtx *ctx) {
    if (worker_is_ending() && !worker_has_ended()) {
        RedisModule_Log(ctx, "warning", "not unloaded: the handler still hangs");
        return REDISMODULE_ERR;
    }
    if (outbox_has_job()) { /* the server would call it after it has freed the module */
        RedisModule_Log(ctx, "warning",
                        "not unloaded: unload the module outside of a transaction that writes");
        return REDISMODULE_ERR;
    }
    /* Nothing may be written to the list here, so the mode is FLUSH_LEAVE. Redis replicates any
     * command that has changed the data set. A replicated MODULE UNLOAD would unload the module
     * on the replicas too. */
    long long began = clock_us();
    int stopped = life_stop(ctx, FLUSH_LEAVE);
    latency_add(ctx, MODULE_NAME "-unload", began);
    if (!stopped) {
        RedisModule_Log(ctx, "warning",
                        "not unloaded: the handler did not stop within %d ms. The module goes on "
                        "as soon as it can",
                        STOP_LIMIT_MS);
        return REDISMODULE_ERR;
    }
    capture_end(ctx);
    release(ctx);
    loaded = 0;
    return REDISMODULE_OK;
}
