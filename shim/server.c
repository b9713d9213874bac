/* See server.h. Callbacks of the server's events, and the server's role, port and mode. */
#include "server.h"

#include "api.h"
#include "capture.h"
#include "changes.h"
#include "config.h"
#include "flush.h"
#include "jobs.h"
#include "latency.h"
#include "life.h"
#include "maxmemory.h"
#include "migration.h"
#include "outbox.h"
#include "snapshot.h"
#include "state.h"
#include "stats.h"
#include "tables.h"
#include "worker.h"

static int primary, loading;
/* FLUSHALL has emptied the databases; the save that comes next belongs to it. */
static int flush_saves;
/* Set at load, before the worker starts, because it reads them too. */
static int port, clustered;

/* ---- the event loop -------------------------------------------------------------- */

/* Called twice in each turn: before Redis sleeps, and after. */
static void on_event_loop(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent,
                          void *data) {
    (void)event;
    (void)data;
    if (subevent == REDISMODULE_SUBEVENT_EVENTLOOP_AFTER_SLEEP) {
        main_thread.now_ms = RedisModule_Milliseconds();
        outbox_begin_turn();
        return;
    }
    flush_saves = 0;
    migration_turn_ends();
    life_resume(ctx);
    capture_tidy(ctx);
    maxmemory_look();
    changes_send_unless_behind();
    outbox_end_turn(ctx);
    worker_announce_new(); /* once in a turn (rule 5) */
    jobs_run(ctx);
    stats_log_losses(ctx, 0);
}

/* ---- role ------------------------------------------------------------------------- */

void server_send_role(void) {
    main_thread.capturing = primary && !loading;
    if (!main_thread.capturing) {
        outbox_leave();
        snapshot_end("this server became a replica, or has loaded a data set");
    }
    /* Before a demotion to which it has agreed, a primary pauses writes. A primary whose
     * last slots were handed over may become a replica of the new owner at once. */
    int agreed = RedisModule_AvoidReplicaTraffic() || migration_has_left();
    char payload[3] = {(char)primary, (char)loading, (char)agreed};
    worker_request(RECORD_ROLE, payload, sizeof(payload));
}

static void on_role_changed(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent,
                            void *data) {
    (void)ctx;
    (void)event;
    (void)data;
    primary = subevent == REDISMODULE_SUBEVENT_NOW_MASTER;
    server_send_role();
}

/* Loading a data set repeats old changes: none of them is captured (rule 14). */
static void on_loading(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent, void *data) {
    (void)event;
    (void)data;
    loading = subevent != REDISMODULE_SUBEVENT_LOADING_ENDED &&
              subevent != REDISMODULE_SUBEVENT_LOADING_FAILED;
    flush_saves = 0; /* the databases were emptied for this load */
    if (subevent <= REDISMODULE_SUBEVENT_LOADING_REPL_START) migration_forget_imports();
    if (!loading) migration_read(ctx);
    server_send_role();
}

/* ---- saves and shutdown ------------------------------------------------------------ */

/* A save on the main thread is about to start; the last one of a shutdown is among these.
 * The worker puts the events in memory into the list, so that the file has them.
 *
 * Not with an append-only file: a restart reads that file instead of this save, and a
 * shutdown has closed it already. And not while writes are paused, as they are while a
 * shutdown waits for its replicas. In both cases on_shutdown has the worker put the events
 * into the file of leftovers.
 *
 * And not within FLUSHALL, which saves if there are save points. A push would be replicated
 * before the FLUSHALL, so replicas would remove it. Nor would it be in order in a transaction on
 * keys of one slot: a server with a table of keys for each slot would put the list into the
 * table of that slot. A SAVE or a shutdown after it, in the same turn of the event loop, is a
 * save like any other. */
static void on_persistence(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent,
                           void *data) {
    (void)event;
    (void)data;
    if (subevent != REDISMODULE_SUBEVENT_PERSISTENCE_SYNC_RDB_START) return;
    int within_flush = flush_saves;
    flush_saves = 0;
    if (within_flush || !main_thread.capturing || !config_has_list() ||
        (RedisModule_GetContextFlags(ctx) & REDISMODULE_CTX_FLAGS_AOF) ||
        RedisModule_AvoidReplicaTraffic())
        return;
    outbox_before_save(ctx);
    long long began = clock_us();
    if (!flush_worker(ctx, FLUSH_STORE))
        RedisModule_Log(ctx, "warning",
                        "the save starts with events still in memory: the handler %s",
                        worker_has_ended() ? "has ended" : "did not store them in time");
    latency_add(ctx, MODULE_NAME "-save", began);
}

static void on_shutdown(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent,
                        void *data) {
    (void)event;
    (void)subevent;
    (void)data;
    /* Redis has written its files before this event, so a push to the list would be lost.
     * The worker delivers what it can and puts the rest into the file of leftovers. A server
     * without persistence gets no such file. */
    outbox_shutdown();
    int has_files = (RedisModule_GetContextFlags(ctx) &
                     (REDISMODULE_CTX_FLAGS_AOF | REDISMODULE_CTX_FLAGS_RDB)) != 0;
    if (!life_stop(ctx, has_files ? FLUSH_LEAVE : FLUSH_DRAIN))
        RedisModule_Log(ctx, "warning", "the handler did not stop within %d ms", STOP_LIMIT_MS);
    stats_log_left(ctx);
}

/* ---- changes of the lists ------------------------------------------------------------- */

static void on_flush_db(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent,
                        void *data) {
    (void)event;
    RedisModuleFlushInfo *info = data;
    if (subevent != REDISMODULE_SUBEVENT_FLUSHDB_END) return;
    /* -1 stands for all databases. */
    if (info->dbnum == -1)
        flush_saves = (RedisModule_GetContextFlags(ctx) & REDISMODULE_CTX_FLAGS_RDB) != 0;
    /* The lists are in database 0. */
    if (main_thread.capturing && info->dbnum <= 0) changes_note("flushdb", "", 0);
}

static void on_swap_db(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent, void *data) {
    (void)ctx;
    (void)event;
    (void)subevent;
    RedisModuleSwapDbInfo *info = data;
    /* The keys behind the cursor are now those before it, or the other way round. */
    snapshot_end("databases were exchanged by SWAPDB");
    if (main_thread.capturing && (info->dbnum_first == 0 || info->dbnum_second == 0))
        changes_note("swapdb", "", 0);
}

/* ---- the server's own parameters --------------------------------------------------------- */

static void on_config_changed(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent,
                              void *data) {
    (void)ctx;
    (void)event;
    (void)subevent;
    latency_config_changed(data);
    outbox_ask_again();
}

/* ---- the cluster ------------------------------------------------------------------------ */

/* A message of another node. This receiver is never unregistered: Redis would keep a
 * dangling pointer in its list of receivers. So after another load, the context still
 * belongs to an earlier one, and must not be used. */
static void on_message(RedisModuleCtx *ctx, const char *sender, uint8_t type,
                       const unsigned char *text, uint32_t len) {
    (void)ctx;
    (void)type;
    if (!worker_is_open()) return;
    if (worker_request_bytes() + len > REQUESTS_LIMIT) {
        count(&shared.messages_refused);
        return;
    }
    buffer_t buffer = {0};
    buffer_add_counted(&buffer, sender, REDISMODULE_NODE_ID_LEN);
    buffer_add_counted(&buffer, text, len);
    worker_request_buffer(RECORD_MESSAGE, &buffer);
}

/* Worker thread, these two. */
int shim_port(void) { return port; }
int shim_clustered(void) { return clustered; }

/* ---- load --------------------------------------------------------------------------------- */

int server_is_starting(RedisModuleCtx *ctx) {
    if (RedisModule_GetContextFlags(ctx) & REDISMODULE_CTX_FLAGS_SERVER_STARTUP) return 1;
    /* Redis 7.0 does not have this flag. It measures this memory after it has loaded the modules
     * of its configuration. (It says nothing that no connection is open: a server does not count
     * those of its replicas, and other modules need none to have it load this one.) */
    RedisModuleServerInfoData *info = RedisModule_GetServerInfo(ctx, "memory");
    unsigned long long bytes =
        RedisModule_ServerInfoGetFieldUnsigned(info, "used_memory_startup", NULL);
    RedisModule_FreeServerInfo(ctx, info);
    return bytes == 0;
}

void server_prepare(RedisModuleCtx *ctx) {
    main_thread.now_ms = RedisModule_Milliseconds();
    RedisModuleServerInfoData *info = RedisModule_GetServerInfo(ctx, "server");
    port = (int)RedisModule_ServerInfoGetFieldUnsigned(info, "tcp_port", NULL);
    RedisModule_FreeServerInfo(ctx, info);
    int flags = RedisModule_GetContextFlags(ctx);
    primary = (flags & REDISMODULE_CTX_FLAGS_MASTER) != 0;
    loading = (flags & REDISMODULE_CTX_FLAGS_LOADING) != 0;
    clustered = (flags & REDISMODULE_CTX_FLAGS_CLUSTER) != 0;
}

void server_subscribe(RedisModuleCtx *ctx) {
    static const struct {
        RedisModuleEvent event;
        RedisModuleEventCallback callback;
    } SUBSCRIPTIONS[] = {
        {{REDISMODULE_EVENT_EVENTLOOP, 1}, on_event_loop},
        {{REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED, 1}, on_role_changed},
        {{REDISMODULE_EVENT_LOADING, 1}, on_loading},
        {{REDISMODULE_EVENT_PERSISTENCE, 1}, on_persistence},
        {{REDISMODULE_EVENT_FLUSHDB, 1}, on_flush_db},
        {{REDISMODULE_EVENT_SWAPDB, 1}, on_swap_db},
        {{REDISMODULE_EVENT_SHUTDOWN, 1}, on_shutdown},
        {{REDISMODULE_EVENT_CONFIG, 1}, on_config_changed},
    };
    for (size_t i = 0; i < sizeof(SUBSCRIPTIONS) / sizeof(SUBSCRIPTIONS[0]); i++)
        RedisModule_SubscribeToServerEvent(ctx, SUBSCRIPTIONS[i].event, SUBSCRIPTIONS[i].callback);
    migration_subscribe(ctx);
    if (clustered) RedisModule_RegisterClusterMessageReceiver(ctx, MESSAGE_TYPE, on_message);
}
