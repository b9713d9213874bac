/* A server for shim/capture.c: it keeps subscriptions and emits events as Redis does, and counts
 * what the shim does with them. Driven by test_capture.py. */
#include <string.h>

#include "../../shim/api.h"
#include "../../shim/capture.h"
#include "../../shim/changes.h"
#include "../../shim/migration.h"
#include "../../shim/redis_api.h"
#include "../../shim/state.h"
#include "../../shim/subkeys.h"
#include "../../shim/values.h"
#include "../../shim/worker.h"

struct main_thread main_thread = {.capturing = 1};
struct shared shared;

static struct {
    int classes;
    RedisModuleNotificationFunc callback;
    RedisModuleNotificationWithSubkeysFunc with_subkeys;
} subscriptions[64];
static int count_subscriptions, flags, emitted_db;
int calls, captured, captured_bit, captured_subkeys, logged;

/* ---- the server's functions ---- */

static int subscribe(RedisModuleCtx *ctx, int classes, RedisModuleNotificationFunc callback) {
    (void)ctx;
    subscriptions[count_subscriptions].classes = classes;
    subscriptions[count_subscriptions].with_subkeys = NULL;
    subscriptions[count_subscriptions++].callback = callback;
    return REDISMODULE_OK;
}

static int subscribe_with_subkeys(RedisModuleCtx *ctx, int classes, int event_flags,
                                  RedisModuleNotificationWithSubkeysFunc callback) {
    subscribe(ctx, classes, NULL);
    subscriptions[count_subscriptions - 1].with_subkeys = callback;
    return event_flags == REDISMODULE_NOTIFY_FLAG_NONE ? REDISMODULE_OK : REDISMODULE_ERR;
}

/* Ends the subscriptions with exactly these classes, as Redis 8.2 and later do. */
static int end_subscription(int classes, RedisModuleNotificationFunc callback,
                            RedisModuleNotificationWithSubkeysFunc with_subkeys) {
    int kept = 0, before = count_subscriptions;
    for (int i = 0; i < before; i++)
        if (subscriptions[i].classes != classes || subscriptions[i].callback != callback ||
            subscriptions[i].with_subkeys != with_subkeys)
            subscriptions[kept++] = subscriptions[i];
    count_subscriptions = kept;
    return kept < before ? REDISMODULE_OK : REDISMODULE_ERR;
}

static int unsubscribe(RedisModuleCtx *ctx, int classes, RedisModuleNotificationFunc callback) {
    (void)ctx;
    return end_subscription(classes, callback, NULL);
}

static int unsubscribe_with_subkeys(RedisModuleCtx *ctx, int classes, int event_flags,
                                    RedisModuleNotificationWithSubkeysFunc callback) {
    (void)ctx;
    (void)event_flags;
    return end_subscription(classes, NULL, callback);
}

static int all_flags(void) { return flags; }
static void log_line(RedisModuleCtx *ctx, const char *level, const char *format, ...) {
    (void)ctx;
    (void)level;
    (void)format;
    logged++;
}
static const char *string_of(const RedisModuleString *string, size_t *len) {
    *len = strlen((const char *)string);
    return (const char *)string;
}
static int selected_db(RedisModuleCtx *ctx) {
    (void)ctx;
    return emitted_db;
}

/* ---- the rest of the shim ---- */

int queue_push(queue_t *queue, const record_t *head, const char *name, const char *payload) {
    (void)queue;
    (void)name;
    (void)payload;
    captured++;
    captured_bit = head->class_bit;
    return 0;
}
/* Not called: there is no outbox here. */
int outbox_collect(RedisModuleCtx *ctx, const record_t *head, const char *name,
                   const char *payload) {
    (void)ctx;
    return queue_push(NULL, head, name, payload);
}
uint64_t queue_pushed(const queue_t *queue) {
    (void)queue;
    return 1;
}
int values_push(RedisModuleCtx *ctx, const record_t *head, const char *event,
                RedisModuleString *key, const char *name, size_t len) {
    (void)ctx;
    (void)key;
    (void)len;
    return queue_push(NULL, head, event, name);
}
int subkeys_push(RedisModuleCtx *ctx, const record_t *head, const char *event,
                 RedisModuleString *key, const char *name, size_t len, RedisModuleString **subkeys,
                 int total) {
    (void)subkeys;
    captured_subkeys = total;
    return values_push(ctx, head, event, key, name, len);
}
void changes_note(const char *what, const char *key, size_t len) {
    (void)what;
    (void)key;
    (void)len;
}
void worker_announce(void) {}
int migration_hides_slot_of(RedisModuleString *key) {
    (void)key;
    return 0;
}

/* ---- what the test calls ---- */

/* Sets the masks and databases. */
void server_filter(const char *masks, const char *databases) {
    filter_free(main_thread.filter);
    main_thread.filter = filter_new(masks, strlen(masks), databases);
}

/* Starts a server with these bits, and loads the module. The server may be able to end
 * subscriptions, and to tell subkeys. */
void server_start(int bits, int can_unsubscribe, int has_subkeys, int valkey) {
    RedisModule_SubscribeToKeyspaceEvents = subscribe;
    RedisModule_UnsubscribeFromKeyspaceEvents = can_unsubscribe ? unsubscribe : NULL;
    RedisModule_SubscribeToKeyspaceEventsWithSubkeys = has_subkeys ? subscribe_with_subkeys : NULL;
    RedisModule_UnsubscribeFromKeyspaceEventsWithSubkeys =
        has_subkeys ? unsubscribe_with_subkeys : NULL;
    RedisModule_GetKeyspaceNotificationFlagsAll = all_flags;
    RedisModule_Log = log_line;
    RedisModule_StringPtrLen = string_of;
    RedisModule_GetSelectedDb = selected_db;
    flags = bits;
    redis_api_of_valkey = valkey;
    count_subscriptions = logged = 0;
    shared.seen = shared.matched = 0;
    server_filter("ALL", "ALL");
    capture_prepare(NULL);
}

/* Emits an event of a class; returns how often the module was called. */
int server_emit_key(int bit, char *key, int db) {
    RedisModuleString *subkeys[] = {(RedisModuleString *)key, (RedisModuleString *)key};
    emitted_db = db;
    calls = captured = captured_subkeys = 0;
    for (int i = 0; i < count_subscriptions; i++)
        if (subscriptions[i].classes & (1 << bit)) {
            calls++;
            if (subscriptions[i].callback)
                subscriptions[i].callback(NULL, 1 << bit, "event", subkeys[0]);
            else
                subscriptions[i].with_subkeys(NULL, 1 << bit, "event", subkeys[0], subkeys, 2);
        }
    return calls;
}

int server_emit(int bit) {
    static char key[] = "key";
    return server_emit_key(bit, key, 0);
}

/* Return the events that were counted. */
int server_seen(void) { return (int)shared.seen; }
int server_matched(void) { return (int)shared.matched; }

/* Return the classes of all subscriptions together, and the number of subscriptions. */
int server_classes(void) {
    int classes = 0;
    for (int i = 0; i < count_subscriptions; i++)
        classes |= subscriptions[i].classes;
    return classes;
}
int server_subscriptions(void) { return count_subscriptions; }
