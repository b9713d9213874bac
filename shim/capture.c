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
#include "values.h"
#include "worker.h"

/* During one long command, a script for example, the worker is woken after this many events. */
#define ANNOUNCE_EVERY 1024
/* The classes of the events that say why a fallback list was removed: expired, evicted. */
#define OWN_CLASSES "xe"

static int own_classes, subscribed_classes;

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

void capture_prepare(void) { main_thread.wanted_classes = subscribed_classes = 0; }

/* Redis does not unsubscribe a module from a class before it is unloaded. So this
 * function only adds subscriptions; on_event ignores the classes that are not wanted. */
void capture_classes(RedisModuleCtx *ctx, int classes) {
    own_classes = parameters_classes(OWN_CLASSES, strlen(OWN_CLASSES));
    int missing = (classes | own_classes) & ~subscribed_classes;
    if (missing) RedisModule_SubscribeToKeyspaceEvents(ctx, missing, on_event);
    subscribed_classes |= missing;
    main_thread.wanted_classes = classes;
}
