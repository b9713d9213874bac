/* See migration.h.
 *
 * The slot of its key says whether an event is captured, because the slot is known in all cases:
 * for commands that come from the other node, and for the removal of keys outside of any command.
 *
 * - While a slot is imported, it is another node's, and no client can change its keys here. So no
 *   event of them is captured, from the start of the import to its end. If an import fails, Valkey
 *   removes the keys before its end, and Redis removes them without events. (Valkey lets people
 *   give the slot to this node by hand meanwhile: docs/cluster.md advises against it.)
 * - Valkey empties a slot that was handed over directly after the server event about it, in the
 *   same turn of the event loop. Redis emits no events for that.
 * - When Redis starts, it removes the keys of slots that it does not serve, such as those of an
 *   import that was interrupted. It does so before the first turn of the event loop.
 *
 * Replicas get the same server events, so a promoted replica knows the imports of its primary. */
#include "migration.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api.h"
#include "buffer.h"
#include "server.h"
#include "snapshot.h"
#include "worker.h"

#define SLOTS 16384
#define WORD_BITS 64

typedef struct {
    uint64_t words[SLOTS / WORD_BITS];
    int count;
} slots_t;

/* The slots whose events are not captured: those of imports under way, and those that have left
 * this node in this turn of the event loop. With Redis only their counts matter: it can be asked
 * about each slot. */
static slots_t imported, left;
/* The server event that says how migrations go on, by the kind of server. NO_EVENT: it has none. */
static enum { NO_EVENT, REDIS_EVENT, VALKEY_EVENT } form;

/* The server starts, and the event loop has had no turn yet. */
static int starting;

/* The meaning of a server event. The numbers are those of Redis' sub-events. */
enum change {
    IMPORT_STARTED,
    IMPORT_FAILED,
    IMPORT_COMPLETED,
    EXPORT_STARTED,
    EXPORT_FAILED,
    EXPORT_COMPLETED,
    OTHER_CHANGE
};

static int has(const slots_t *slots, int slot) {
    return (slots->words[slot / WORD_BITS] >> (slot % WORD_BITS)) & 1;
}

static void add(slots_t *slots, int slot) {
    if (has(slots, slot)) return;
    slots->words[slot / WORD_BITS] |= 1ULL << (slot % WORD_BITS);
    slots->count++;
}

static void take_away(slots_t *slots, int slot) {
    if (!has(slots, slot)) return;
    slots->words[slot / WORD_BITS] &= ~(1ULL << (slot % WORD_BITS));
    slots->count--;
}

static void set_watched(void) {
    main_thread.watches_slots = starting || imported.count != 0 || left.count != 0;
}

int migration_hides_slot_of(RedisModuleString *key) {
    int slot = (int)RedisModule_ClusterKeySlot(key);
    if (form == REDIS_EVENT) return !RedisModule_ClusterCanAccessKeysInSlot(slot);
    return has(&imported, slot) || has(&left, slot);
}

/* Reads a range of slots from the server event's data. Returns 0, or -1 behind the last range. */
static int range(const void *data, size_t number, int *first, int *last) {
    if (form == REDIS_EVENT) {
        const RedisModuleSlotRangeArray *ranges =
            ((const RedisModuleClusterSlotMigrationInfo *)data)->slots;
        if (number >= (size_t)ranges->num_ranges) return -1;
        *first = ranges->ranges[number].start;
        *last = ranges->ranges[number].end;
    } else {
        const ValkeyModuleAtomicSlotMigrationInfo *info = data;
        if (number >= info->num_slot_ranges) return -1;
        *first = info->slot_ranges[number].start;
        *last = info->slot_ranges[number].end;
    }
    return 0;
}

/* Tells the worker that slots came to this node, or have left it. The worker reads the topology
 * only once a second, and slots that have left may be back by then. */
static void tell_worker(int came, const void *data) {
    buffer_t buffer = {0};
    int ends[2];
    buffer_add(&buffer, &(uint8_t){came != 0}, 1);
    for (size_t i = 0; range(data, i, &ends[0], &ends[1]) == 0; i++)
        for (size_t end = 0; end < 2; end++)
            buffer_add(&buffer, &(uint16_t){(uint16_t)ends[end]}, sizeof(uint16_t));
    worker_request_buffer(RECORD_SLOTS_MOVED, &buffer);
}

static void on_migration(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent,
                         void *data) {
    /* Valkey's sub-events in the order of their numbers. */
    static const enum change VALKEY_CHANGES[] = {IMPORT_STARTED,   EXPORT_STARTED,
                                                 IMPORT_FAILED,    EXPORT_FAILED,
                                                 IMPORT_COMPLETED, EXPORT_COMPLETED};
    (void)ctx;
    (void)event;
    enum change change = OTHER_CHANGE;
    if (form == REDIS_EVENT && subevent < OTHER_CHANGE) change = (enum change)subevent;
    if (form == VALKEY_EVENT && subevent < sizeof(VALKEY_CHANGES) / sizeof(VALKEY_CHANGES[0]))
        change = VALKEY_CHANGES[subevent];
    /* The others are ignored: Redis emits one of them in a child process, after a fork. */
    int ends = change == IMPORT_FAILED || change == IMPORT_COMPLETED;
    if (change != IMPORT_STARTED && change != EXPORT_COMPLETED && !ends) return;
    int first, last;
    for (size_t i = 0; range(data, i, &first, &last) == 0; i++)
        for (int slot = first; slot <= last; slot++)
            if (ends)
                take_away(&imported, slot);
            else
                add(change == IMPORT_STARTED ? &imported : &left, slot);
    set_watched();
    if (change == IMPORT_COMPLETED || change == EXPORT_COMPLETED) {
        tell_worker(change == IMPORT_COMPLETED, data);
        /* The keys may have gone from behind one cursor to before another. */
        snapshot_end("slots were handed over");
    }
}

void migration_turn_ends(void) {
    if (left.count == 0 && !starting) return;
    memset(&left, 0, sizeof(left));
    starting = 0;
    set_watched();
}

int migration_has_left(void) { return left.count != 0; }

/* ---- imports whose start the module has not seen ---- */

/* Returns the number at the start of the text, and moves the text behind it. The text does not end
 * with a digit. */
static int number(const char **text) {
    char *end;
    int value = (int)strtol(*text, &end, 10);
    *text = end;
    return value;
}

/* Adds the slots of "0-99 200-299" to those that are imported. */
static void add_ranges(const char *text, size_t len) {
    for (const char *at = text; at < text + len; at++) { /* behind each range is a space */
        int first = number(&at);
        int last = *at == '-' ? (at++, number(&at)) : first;
        for (int slot = first; slot <= last && slot >= 0 && slot < SLOTS; slot++)
            add(&imported, slot);
    }
}

/* Reads one migration of a reply of CLUSTER, in which names and values alternate. */
static void read_migration(RedisModuleCallReply *migration) {
    const char *slots = NULL, *value;
    size_t slots_len = 0, len;
    int imports = 0, ended = 0;
    for (size_t i = 0; i + 1 < RedisModule_CallReplyLength(migration); i += 2) {
        const char *name =
            RedisModule_CallReplyStringPtr(RedisModule_CallReplyArrayElement(migration, i), &len);
#define IS(text, word) (len >= sizeof(word) - 1 && strncasecmp(text, word, sizeof(word) - 1) == 0)
        if (name == NULL) continue;
        int operation = IS(name, "operation"), state = IS(name, "state");
        int ranges = IS(name, "slots") || IS(name, "slot_ranges");
        value = RedisModule_CallReplyStringPtr(RedisModule_CallReplyArrayElement(migration, i + 1),
                                               &len);
        if (value == NULL) continue;
        if (operation) imports = IS(value, "import");
        if (state)
            ended = IS(value, "success") || IS(value, "completed") || IS(value, "failed") ||
                    IS(value, "cancel");
#undef IS
        if (ranges) slots = value, slots_len = len;
    }
    if (imports && !ended && slots != NULL) add_ranges(slots, slots_len);
}

void migration_forget_imports(void) {
    memset(&imported, 0, sizeof(imported));
    set_watched();
}

void migration_read(RedisModuleCtx *ctx) {
    if (form == NO_EVENT) return;
    RedisModuleCallReply *reply =
        form == REDIS_EVENT ? RedisModule_Call(ctx, "CLUSTER", "ccc", "MIGRATION", "STATUS", "ALL")
                            : RedisModule_Call(ctx, "CLUSTER", "c", "GETSLOTMIGRATIONS");
    if (reply == NULL) return;
    if (RedisModule_CallReplyType(reply) == REDISMODULE_REPLY_ARRAY)
        for (size_t i = 0; i < RedisModule_CallReplyLength(reply); i++)
            read_migration(RedisModule_CallReplyArrayElement(reply, i));
    RedisModule_FreeCallReply(reply);
    set_watched();
}

/* ---- load ---- */

void migration_prepare(RedisModuleCtx *ctx) {
    memset(&imported, 0, sizeof(imported));
    memset(&left, 0, sizeof(left));
    starting = 0;
    set_watched();
    form = NO_EVENT;
    int flags = RedisModule_GetContextFlags(ctx);
    if (!(flags & REDISMODULE_CTX_FLAGS_CLUSTER) || RedisModule_ClusterKeySlot == NULL) return;
    /* The number of this event on one server is that of a different event on the other. */
    if (!redis_api_of_valkey && RedisModule_ClusterCanAccessKeysInSlot != NULL)
        form = REDIS_EVENT;
    else if (redis_api_of_valkey && RedisModule_GetModuleOptionsAll != NULL &&
             (RedisModule_GetModuleOptionsAll() &
              VALKEYMODULE_OPTIONS_HANDLE_ATOMIC_SLOT_MIGRATION))
        form = VALKEY_EVENT;
    starting = form != NO_EVENT && server_is_starting(ctx);
    set_watched();
}

int migration_option(void) {
    return form == VALKEY_EVENT ? VALKEYMODULE_OPTIONS_HANDLE_ATOMIC_SLOT_MIGRATION : 0;
}

void migration_subscribe(RedisModuleCtx *ctx) {
    static const RedisModuleEvent EVENTS[] = {
        [REDIS_EVENT] = {REDISMODULE_EVENT_CLUSTER_SLOT_MIGRATION, 1},
        [VALKEY_EVENT] = {VALKEYMODULE_EVENT_ATOMIC_SLOT_MIGRATION, 1},
    };
    if (form == NO_EVENT) return;
    RedisModule_SubscribeToServerEvent(ctx, EVENTS[form], on_migration);
    if (!starting) migration_read(ctx);
}
