/* The event callback: it puts each keyspace event of Redis into the queue.
 *
 * Main thread. Rule 1: the callback copies the event and returns. It takes no lock,
 * calls no Python, does no I/O and touches no key. Only if the parameter `value` asks
 * for values does it call values.c, which looks at the key.
 */
#include "capture.h"

#include <string.h>

#include "changes.h"
#include "keys.h"
#include "migration.h"
#include "state.h"
#include "tables.h"
#include "values.h"
#include "worker.h"

/* During one long command, a script for example, the worker is woken after this many events. */
#define ANNOUNCE_EVERY 1024
/* The classes of the events that say why a fallback list was removed: expired, evicted. */
#define OWN_CLASSES "xe"

static int available;   /* the classes that this server has */
static int own_classes; /* those of OWN_CLASSES */

/* The subscriptions: each has classes of its own, because one with a class of another would
 * get each of its events twice. */
static struct {
    int masks[32];
    int count;
    int all;  /* their classes together */
    int wish; /* the classes that are needed */
} subscribed;

static int on_event(RedisModuleCtx *ctx, int type, const char *event, RedisModuleString *key) {
    if (!main_thread.capturing || migration_hides(key)) return REDISMODULE_OK;
    size_t len;
    const char *name = RedisModule_StringPtrLen(key, &len);
    if (is_own_key(name, len)) { /* never captured (rule 15) */
        /* The worker knows the changes that its jobs make. But a job may be the first to
         * access a list that has expired, and Redis then emits `expired` during the job. */
        if (!main_thread.job_running || (type & own_classes)) changes_note(event, name, len);
        return REDISMODULE_OK;
    }
    if (!(type & main_thread.wanted_classes)) return REDISMODULE_OK;
    record_t head = {.payload_len = (uint32_t)len,
                     .time_ms = (uint64_t)main_thread.now_ms,
                     .db = RedisModule_GetSelectedDb(ctx),
                     .name_len = (uint16_t)strnlen(event, UINT16_MAX),
                     .kind = RECORD_EVENT,
                     .class_bit =
                         (uint8_t)__builtin_ctz((unsigned)(type & main_thread.wanted_classes))};
    count(&shared.seen);
    int full = main_thread.value_bytes ? values_push(ctx, &head, event, key, name, len)
                                       : queue_push(shared.events, &head, event, name);
    if (full) count(&shared.queue_full);
    if (queue_pushed(shared.events) % ANNOUNCE_EVERY == 0) worker_announce();
    return REDISMODULE_OK;
}

/* ---- classes ---------------------------------------------------------------------------- */

/* Returns the classes of this server that the module knows, and logs that there are others.
 *
 * What an unknown class means only its server knows: of the five classes that Redis has added
 * since 7.0, four are none of `A`, and the events of one are no changes of the data. So `A` leaves
 * unknown classes out. Valkey has none of the classes that Redis has added; if it has their bits,
 * they mean something else. */
static int find_available(RedisModuleCtx *ctx) {
    RedisModuleServerInfoData *info = RedisModule_GetServerInfo(ctx, "server");
    int is_valkey = RedisModule_ServerInfoGetFieldC(info, "valkey_version") != NULL;
    RedisModule_FreeServerInfo(ctx, info);
    int bits = RedisModule_GetKeyspaceNotificationFlagsAll();
    int known = is_valkey ? EVENT_BITS_EVERYWHERE : EVENT_BITS;
    int meaningless = is_valkey ? EVENT_BITS_OTHER & 0x7fff : EVENT_BITS_OTHER;
    if (bits & ~(known | meaningless))
        RedisModule_Log(ctx, "notice",
                        "this server has classes of events that version %s does not know, and "
                        "does not capture (0x%x in its mask)",
                        MODULE_VERSION, bits & ~(known | meaningless));
    return bits & known;
}

int capture_available(void) { return available; }

/* ---- subscriptions ------------------------------------------------------------------------ */

static void subscribe(RedisModuleCtx *ctx, int classes) {
    if (classes == 0) return;
    RedisModule_SubscribeToKeyspaceEvents(ctx, classes, on_event);
    subscribed.masks[subscribed.count++] = classes;
    subscribed.all |= classes;
}

static void unsubscribe(RedisModuleCtx *ctx) {
    /* The server finds a subscription by its exact classes. */
    while (subscribed.count > 0)
        RedisModule_UnsubscribeFromKeyspaceEvents(ctx, subscribed.masks[--subscribed.count],
                                                  on_event);
    subscribed.all = 0;
}

void capture_prepare(RedisModuleCtx *ctx) {
    available = find_available(ctx);
    own_classes = parameters_classes(OWN_CLASSES, strlen(OWN_CLASSES));
    main_thread.wanted_classes = 0;
    subscribed.count = subscribed.all = subscribed.wish = 0;
}

void capture_classes(RedisModuleCtx *ctx, int classes) {
    main_thread.wanted_classes = classes & available;
    subscribed.wish = main_thread.wanted_classes | own_classes;
    subscribe(ctx, subscribed.wish & ~subscribed.all);
}

/* A subscription is ended here and not in capture_classes: that may run in the callback of
 * another module, by CONFIG SET, while the server iterates over its list of subscriptions. */
void capture_tidy(RedisModuleCtx *ctx) {
    if (subscribed.all == subscribed.wish || RedisModule_UnsubscribeFromKeyspaceEvents == NULL)
        return;
    unsubscribe(ctx);
    subscribe(ctx, subscribed.wish);
}

void capture_end(RedisModuleCtx *ctx) {
    if (RedisModule_UnsubscribeFromKeyspaceEvents != NULL) unsubscribe(ctx);
}
