/* The event callback: it puts each keyspace event of Redis into the queue.
 *
 * Main thread. Rule 1: the callback copies the event and returns. It takes no lock,
 * calls no Python, does no I/O and touches no key. Only if the parameter `value` asks
 * for values does it call values.c, which looks at the key. With the parameter `subkeys`,
 * another callback is used. Redis 8.8 and later give it the subkeys of an event; collecting them
 * costs the server time.
 */
#include "capture.h"

#include <string.h>

#include "changes.h"
#include "filter.h"
#include "keys.h"
#include "migration.h"
#include "outbox.h"
#include "state.h"
#include "subkeys.h"
#include "tables.h"
#include "values.h"
#include "worker.h"

/* The classes of the events that say why a fallback list was removed: expired, evicted. */
#define OWN_CLASSES "xe"

static int available;   /* the classes that this server has */
static int own_classes; /* those of OWN_CLASSES */

/* The two callbacks. */
enum { PLAIN, SUBKEYED, CALLBACKS };

/* The subscriptions of each callback. No two of them share a class: the callback would get each
 * event of this class twice. */
static struct {
    int masks[32];
    int count;
    int all;  /* their classes together */
    int wish; /* the classes that are needed */
} subscribed[CALLBACKS];

/* Captures an event if it is of a class in `*wanted`. Inlined, so that subkeys cost the
 * plain callback no time. */
static inline __attribute__((always_inline)) void capture(RedisModuleCtx *ctx, int type,
                                                          const char *event, RedisModuleString *key,
                                                          const int *wanted,
                                                          RedisModuleString **subkeys, int total) {
    if (!main_thread.capturing || migration_hides(key)) return;
    size_t len;
    const char *name = RedisModule_StringPtrLen(key, &len);
    if (is_own_key(name, len)) { /* never captured (rule 15) */
        /* The worker knows the changes that its jobs make. But a job may be the first to
         * access a list that has expired, and Redis then emits `expired` during the job. */
        if (!main_thread.job_running || (type & own_classes)) changes_note(event, name, len);
        return;
    }
    unsigned class = (unsigned)(type & *wanted);
    if (!class) return;
    count(&shared.seen);
    if (!filter_allows(ctx, name, len)) return;
    count(&shared.matched);
    record_t head = {.payload_len = (uint32_t)len,
                     .time_ms = (uint64_t)main_thread.now_ms,
                     .db = RedisModule_GetSelectedDb(ctx),
                     .name_len = (uint16_t)strnlen(event, UINT16_MAX),
                     .kind = RECORD_EVENT,
                     .class_bit = (uint8_t)__builtin_ctz(class)};
    int full;
    if (total)
        full = subkeys_push(ctx, &head, event, key, name, len, subkeys, total);
    else if (main_thread.value_bytes)
        full = values_push(ctx, &head, event, key, name, len);
    else
        full = outbox_push(ctx, &head, event, name);
    if (full) count(&shared.queue_full);
}

static int on_event(RedisModuleCtx *ctx, int type, const char *event, RedisModuleString *key) {
    capture(ctx, type, event, key, &main_thread.wanted_plain, NULL, 0);
    return REDISMODULE_OK;
}

static void on_event_with_subkeys(RedisModuleCtx *ctx, int type, const char *event,
                                  RedisModuleString *key, RedisModuleString **subkeys, int total) {
    capture(ctx, type, event, key, &main_thread.wanted_subkeyed, subkeys, total);
}

/* ---- classes ---------------------------------------------------------------------------- */

/* Returns the classes of this server that the module knows, and logs that there are others.
 *
 * Only the server knows the meaning of an unknown class. Most of the classes that Redis has added
 * since 7.0 are not in its `A`, and some events are no changes of the data. So `A` leaves unknown
 * classes out. Valkey has none of the classes that Redis has added; if it has their bits, they
 * mean something else. */
static int find_available(RedisModuleCtx *ctx) {
    int bits = RedisModule_GetKeyspaceNotificationFlagsAll();
    int known = redis_api_of_valkey ? EVENT_BITS_EVERYWHERE : EVENT_BITS;
    int meaningless = redis_api_of_valkey ? EVENT_BITS_OTHER & 0x7fff : EVENT_BITS_OTHER;
    if (bits & ~(known | meaningless))
        RedisModule_Log(ctx, "notice",
                        "this server has classes of events that version %s does not know, and "
                        "does not capture (0x%x in its mask)",
                        MODULE_VERSION, bits & ~(known | meaningless));
    return bits & known;
}

int capture_available(void) { return available; }

/* ---- subscriptions ------------------------------------------------------------------------ */

/* Subscribes a callback to classes. */
static void subscribe(RedisModuleCtx *ctx, int callback, int classes) {
    if (classes == 0) return;
    if (callback == PLAIN)
        RedisModule_SubscribeToKeyspaceEvents(ctx, classes, on_event);
    else
        RedisModule_SubscribeToKeyspaceEventsWithSubkeys(ctx, classes, REDISMODULE_NOTIFY_FLAG_NONE,
                                                         on_event_with_subkeys);
    subscribed[callback].masks[subscribed[callback].count++] = classes;
    subscribed[callback].all |= classes;
}

/* Ends the subscriptions of a callback. The server finds a subscription by its exact classes. */
static void unsubscribe(RedisModuleCtx *ctx, int callback) {
    while (subscribed[callback].count > 0) {
        int classes = subscribed[callback].masks[--subscribed[callback].count];
        if (callback == PLAIN)
            RedisModule_UnsubscribeFromKeyspaceEvents(ctx, classes, on_event);
        else
            RedisModule_UnsubscribeFromKeyspaceEventsWithSubkeys(
                ctx, classes, REDISMODULE_NOTIFY_FLAG_NONE, on_event_with_subkeys);
    }
    subscribed[callback].all = 0;
}

void capture_prepare(RedisModuleCtx *ctx) {
    available = find_available(ctx);
    own_classes = parameters_classes(OWN_CLASSES, strlen(OWN_CLASSES));
    main_thread.wanted_classes = main_thread.wanted_plain = main_thread.wanted_subkeyed = 0;
    main_thread.subkeys = 0;
    memset(subscribed, 0, sizeof(subscribed));
}

void capture_classes(RedisModuleCtx *ctx, int classes, int subkeys) {
    int has_subkeys = RedisModule_SubscribeToKeyspaceEventsWithSubkeys != NULL;
    if (subkeys && !main_thread.subkeys && !has_subkeys)
        RedisModule_Log(ctx, "notice",
                        "subkeys: messages have none, because this server does not tell them; "
                        "Redis 8.8 and later do");
    main_thread.subkeys = subkeys;
    int callback = subkeys && has_subkeys ? SUBKEYED : PLAIN;
    classes &= available;
    main_thread.wanted_classes = classes;
    main_thread.wanted_plain = callback == PLAIN ? classes : 0;
    main_thread.wanted_subkeyed = callback == SUBKEYED ? classes : 0;
    subscribed[PLAIN].wish = subscribed[SUBKEYED].wish = 0;
    subscribed[callback].wish = classes | own_classes;
    subscribe(ctx, callback, subscribed[callback].wish & ~subscribed[callback].all);
}

/* Subscriptions are ended here and not in capture_classes. CONFIG SET in the callback of another
 * module calls capture_classes while the server iterates over its list of subscriptions. */
void capture_tidy(RedisModuleCtx *ctx) {
    if (RedisModule_UnsubscribeFromKeyspaceEvents == NULL) return;
    for (int callback = 0; callback < CALLBACKS; callback++) {
        if (subscribed[callback].all == subscribed[callback].wish) continue;
        unsubscribe(ctx, callback);
        subscribe(ctx, callback, subscribed[callback].wish);
    }
}

void capture_end(RedisModuleCtx *ctx) {
    if (RedisModule_UnsubscribeFromKeyspaceEvents == NULL) return;
    unsubscribe(ctx, PLAIN);
    unsubscribe(ctx, SUBKEYED);
}
