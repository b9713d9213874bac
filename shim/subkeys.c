/* See subkeys.h. Redis 8.8 and later tell the subkeys of an event to modules that ask for them. */
#include "subkeys.h"

#include <string.h>

#include "buffer.h"
#include "outbox.h"
#include "state.h"
#include "tables.h"
#include "values.h"

static buffer_t payload; /* of one event */

/* Appends subkeys, in the order of the event, until one does not fit. */
static void add_subkeys(RedisModuleString **subkeys, int total) {
    size_t len, begin = payload.len;
    for (int i = 0; i < total && i < main_thread.subkeys; i++) {
        const char *subkey = RedisModule_StringPtrLen(subkeys[i], &len);
        if (payload.len - begin + sizeof(uint32_t) + len > SUBKEYS_BYTES) return;
        buffer_add_counted(&payload, subkey, len);
    }
}

int subkeys_push(RedisModuleCtx *ctx, const record_t *head, const char *event,
                 RedisModuleString *key, const char *name, size_t len, RedisModuleString **subkeys,
                 int total) {
    subkeyed_t subkeyed = {.total = (uint32_t)total, .kind = RECORD_EVENT};
    buffer_empty(&payload);
    buffer_add(&payload, &subkeyed, sizeof(subkeyed));
    add_subkeys(subkeys, total);
    subkeyed.bytes = (uint32_t)(payload.len - sizeof(subkeyed));
    const buffer_t *valued =
        main_thread.value_bytes ? values_find(ctx, event, key, name, len) : NULL;
    if (valued != NULL) {
        subkeyed.kind = RECORD_VALUED;
        buffer_add(&payload, valued->data, valued->len);
    } else {
        buffer_add(&payload, name, len);
    }
    memcpy(payload.data, &subkeyed, sizeof(subkeyed));
    record_t record = *head;
    record.kind = RECORD_SUBKEYED;
    record.payload_len = (uint32_t)payload.len;
    if (outbox_push(ctx, &record, event, payload.data) == 0) return 0;
    return outbox_push(ctx, head, event, name);
}
