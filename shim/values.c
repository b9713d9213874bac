/* The value of a key, or its value before a deletion: the payloads of RECORD_VALUED.
 *
 * Main thread. Nothing here is called unless the parameter `value` asks for values: reading
 * the key costs more than the rest of the capture.
 */
#include "values.h"

#include <stdlib.h>
#include <string.h>

#include "buffer.h"
#include "filter.h"
#include "keys.h"
#include "look.h"
#include "migration.h"
#include "outbox.h"
#include "peek.h"
#include "state.h"

/* Flags for look_at: an expired key is not deleted. */
#define NO_EFFECTS (REDISMODULE_OPEN_KEY_NOEXPIRE | REDISMODULE_OPEN_KEY_NOEFFECTS)

/* The value of the key that was deleted, expired or evicted last. Redis 7.2 and later call
 * on_key before they remove the key, and emit the event afterwards. */
static struct {
    int db;
    size_t key_len;
    buffer_t payload; /* valued_t, key, data; empty: none */
} removed;
static buffer_t present; /* the same for a key that exists; for one event */
static int subscribed;   /* to on_key */

/* True for the events after which the key does not exist. Opening it would count as a
 * miss. */
static int removes_key(const char *event) {
    static const char *const REMOVALS[] = {"del", "expired", "evicted", "rename_from", "move_from"};
    for (size_t i = 0; i < sizeof(REMOVALS) / sizeof(REMOVALS[0]); i++)
        if (strcmp(event, REMOVALS[i]) == 0) return 1;
    return 0;
}

static valued_t make_head(RedisModuleKey *open, size_t key_len, int before) {
    return (valued_t){.length = RedisModule_ValueLength(open),
                      .key_len = (uint32_t)key_len,
                      .type = (uint8_t)RedisModule_KeyType(open),
                      .before = (uint8_t)before};
}

/* Replaces the payload in the buffer. `data` is NULL for a key that is no string. */
static void write_payload(buffer_t *payload, valued_t head, const char *key, const char *data,
                          size_t data_len) {
    head.has_data = data != NULL;
    buffer_empty(payload);
    buffer_add(payload, &head, sizeof(head));
    buffer_add(payload, key, head.key_len);
    buffer_add(payload, data, data_len);
}

/* Returns how many bytes of a string of this length are shown. */
static size_t shown_bytes(size_t len) {
    return len < main_thread.value_bytes ? len : main_thread.value_bytes;
}

/* Server event: a key is about to be removed. Keeps its value in `removed`. */
static void on_key(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent, void *data) {
    static const char *const CLASSES[] = {"g", "gx", "e"}; /* deleted, expired, evicted */
    (void)event;
    if (!main_thread.capturing || !main_thread.value_bytes ||
        subevent > REDISMODULE_SUBEVENT_KEY_EVICTED)
        return;
    int classes = parameters_classes(CLASSES[subevent], strlen(CLASSES[subevent]));
    if (!(classes & main_thread.wanted_classes)) return;
    RedisModuleKey *open = ((RedisModuleKeyInfo *)data)->key;
    size_t len, size = 0;
    RedisModuleString *name = (RedisModuleString *)RedisModule_GetKeyNameFromModuleKey(open);
    const char *key = RedisModule_StringPtrLen(name, &len);
    if (is_own_key(key, len) || migration_hides(name)) return;
    if (!filter_allows(ctx, key, len)) return;
    const char *bytes = NULL;
    /* StringDMA may change how Redis keeps the string; this one is removed anyway. */
    if (RedisModule_KeyType(open) == REDISMODULE_KEYTYPE_STRING)
        bytes = RedisModule_StringDMA(open, &size, REDISMODULE_READ);
    write_payload(&removed.payload, make_head(open, len, 1), key, bytes, shown_bytes(size));
    removed.db = RedisModule_GetSelectedDb(ctx);
    removed.key_len = len;
}

/* Returns the key's value, or NULL if it is not the key that was removed last. */
static buffer_t *find_removed(RedisModuleCtx *ctx, const char *name, size_t len) {
    if (removed.payload.len && removed.db == RedisModule_GetSelectedDb(ctx) &&
        removed.key_len == len && memcmp(removed.payload.data + sizeof(valued_t), name, len) == 0)
        return &removed.payload;
    return NULL;
}

/* Adds the data of a string to the payload, by a command. Returns 0, or -1 if the key is gone. */
static int add_by_command(RedisModuleCtx *ctx, RedisModuleString *key, valued_t head,
                          const char *name, const guess_t *guess) {
    /* A reading command would make the client whose write has caused this event a reader of the
     * key: with client-side caching it would get an invalidation. GETEX counts as writing, but
     * changes nothing without options. */
    RedisModuleCallReply *reply = RedisModule_Call(ctx, "GETEX", "s", key);
    if (reply == NULL) return 0;
    const int gone = RedisModule_CallReplyType(reply) == REDISMODULE_REPLY_NULL;
    size_t size = 0;
    const char *bytes = RedisModule_CallReplyStringPtr(reply, &size);
    if (bytes != NULL && size == head.length) {
        peek_prove(ctx, guess, bytes, size);
        write_payload(&present, head, name, bytes, shown_bytes(size));
    }
    RedisModule_FreeCallReply(reply);
    return gone ? -1 : 0;
}

/* Returns the key's value, or NULL if it does not exist. For the event `expire` no command reads
 * it: the time may be in the past (SET … PXAT 1), and the command would delete the key. */
static buffer_t *find_present(RedisModuleCtx *ctx, const char *event, RedisModuleString *key,
                              const char *name, size_t len) {
    guess_t guess;
    RedisModuleKey *open = look_at(ctx, key, NO_EFFECTS);
    if (open == NULL) return NULL;
    valued_t head = make_head(open, len, 0);
    const char *bytes = NULL;
    if (head.type == REDISMODULE_KEYTYPE_STRING) bytes = peek_string(open, head.length, &guess);
    write_payload(&present, head, name, bytes, bytes ? shown_bytes(head.length) : 0);
    /* Closed before a command: that may delete an expired key, and an open handle must not
     * outlive its key. */
    RedisModule_CloseKey(open);
    if (head.type == REDISMODULE_KEYTYPE_STRING && bytes == NULL && strcmp(event, "expire") != 0 &&
        add_by_command(ctx, key, head, name, &guess) != 0)
        return NULL;
    return &present;
}

const buffer_t *values_find(RedisModuleCtx *ctx, const char *event, RedisModuleString *key,
                            const char *name, size_t len) {
    if (removes_key(event)) return find_removed(ctx, name, len);
    /* `expire` may set a time in the past (SET … PXAT 1). Opening such a key makes Redis 7.0
     * delete it without an event, and replicate the deletion before the command. */
    if (RedisModule_GetOpenKeyModesAll == NULL && strcmp(event, "expire") == 0) return NULL;
    main_thread.capturing = 0; /* reading the value may emit events */
    buffer_t *found = find_present(ctx, event, key, name, len);
    main_thread.capturing = 1;
    return found;
}

const buffer_t *values_show(RedisModuleCtx *ctx, RedisModuleString *key, const char *name,
                            size_t len) {
    /* Other events may be true ones: the key's time may end at this very moment. */
    const int plain = main_thread.wanted_plain, subkeyed = main_thread.wanted_subkeyed;
    const int misses = parameters_classes("m", 1);
    main_thread.wanted_plain &= ~misses;
    main_thread.wanted_subkeyed &= ~misses;
    const buffer_t *found = find_present(ctx, "", key, name, len);
    main_thread.wanted_plain = plain;
    main_thread.wanted_subkeyed = subkeyed;
    return found;
}

int values_push_payload(RedisModuleCtx *ctx, const record_t *head, const char *event,
                        const buffer_t *payload, const char *name) {
    if (payload != NULL) {
        record_t valued = *head;
        valued.kind = RECORD_VALUED;
        valued.payload_len = (uint32_t)payload->len;
        if (!outbox_push(ctx, &valued, event, payload->data)) return 0;
    }
    /* The event may still fit without its value. */
    return outbox_push(ctx, head, event, name);
}

int values_push(RedisModuleCtx *ctx, const record_t *head, const char *event,
                RedisModuleString *key, const char *name, size_t len) {
    const buffer_t *payload = values_find(ctx, event, key, name, len);
    int full = values_push_payload(ctx, head, event, payload, name);
    if (payload != NULL) removed.payload.len = 0;
    return full;
}

void values_prepare(void) {
    main_thread.value_bytes = 0;
    subscribed = 0;
    removed.payload.len = 0;
    peek_prepare();
}

void values_take(RedisModuleCtx *ctx, size_t bytes) {
    RedisModuleEvent event = {REDISMODULE_EVENT_KEY, 1};
    main_thread.value_bytes = bytes;
    if (bytes == 0 || subscribed) return;
    /* This subscription stays until the module is unloaded. It must not be ended here:
     * this may run in the callback of another server event, while the server iterates over
     * its list of subscribers. */
    RedisModule_SubscribeToServerEvent(ctx, event, on_key);
    subscribed = 1;
}
