/* See snapshot.h.
 *
 * The keys are found with Scan of the module API. Like the command SCAN it finds each key that
 * exists all the time, and it may find one twice; unlike the command it touches no key, and an
 * expired one stays. Its callback only copies the names, because Redis does not allow changes
 * meanwhile, and on some servers a look at a value is one. Then the keys are looked at one by one.
 */
#include "snapshot.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "config.h"
#include "filter.h"
#include "keys.h"
#include "latency.h"
#include "look.h"
#include "maxmemory.h"
#include "migration.h"
#include "outbox.h"
#include "state.h"
#include "tables.h"
#include "values.h"

/* Microseconds after which a step ends (rule 3). A single key may take longer: Redis copies up to
 * `value` bytes. */
#define STEP_US 500
/* A step ends when more of the queue's limit is in use than one part in so many. */
#define QUEUE_PART 2
#define EVENT "snapshot"
#define DONE "it is done"

static int running;
static const char *ended = "no snapshot is under way";
static filter_t *filter; /* its own masks; NULL: every key */
static RedisModuleScanCursor *cursor;
static int db;
/* Keys of this database that the cursor has passed and that are not looked at yet, counted; the
 * next one is at `next`. */
static buffer_t names;
static size_t next;

/* What a step has done. */
typedef struct {
    long long looked, events, bytes;
} done_t;

static void finish(const char *why) {
    if (!running) return;
    running = 0;
    ended = why;
    filter_free(filter);
    filter = NULL;
    RedisModule_ScanCursorDestroy(cursor);
    cursor = NULL;
    free(names.data);
    names = (buffer_t){0};
    next = 0;
}

void snapshot_end(const char *why) { finish(why); }

/* ---- the keys ------------------------------------------------------------------------------ */

static void on_key(RedisModuleCtx *ctx, RedisModuleString *name, RedisModuleKey *key, void *data) {
    (void)ctx;
    (void)key;
    (void)data;
    buffer_add_string(&names, name);
}

/* Goes to the first database from `db` on whose events are captured. Returns 0, or -1 behind the
 * last database of the server. */
static int find_database(RedisModuleCtx *ctx) {
    for (;; db++) {
        if (RedisModule_SelectDb(ctx, db) != REDISMODULE_OK) return -1;
        if (main_thread.filter == NULL || filter_has_database(main_thread.filter, db)) return 0;
    }
}

/* Finds more names, which may be none. Returns 0, or -1 if there is nothing left to scan. */
static int find_names(RedisModuleCtx *ctx) {
    buffer_empty(&names);
    next = 0;
    if (RedisModule_Scan(ctx, cursor, on_key, NULL)) return 0;
    if (names.len > 0) return 0; /* the cursor says once more that it is at its end */
    RedisModule_ScanCursorRestart(cursor);
    db++;
    return find_database(ctx);
}

/* True if the key is there, and not past its time. */
static int exists(RedisModuleCtx *ctx, RedisModuleString *key) {
    RedisModuleKey *open =
        look_at(ctx, key, REDISMODULE_OPEN_KEY_NOEXPIRE | REDISMODULE_OPEN_KEY_NOEFFECTS);
    RedisModule_CloseKey(open);
    return open != NULL;
}

/* Emits the event of a key, if it is to have one. */
static void show(RedisModuleCtx *ctx, const char *name, size_t len, done_t *done) {
    if (is_own_key(name, len) || (filter != NULL && !filter_passes(filter, db, name, len))) return;
    if (!filter_allows(ctx, name, len)) return;
    RedisModuleString *key = RedisModule_CreateString(NULL, name, len);
    /* A callback of another module, for the event of an expired key, may end the snapshot. */
    name = RedisModule_StringPtrLen(key, &len);
    if (!migration_hides(key) && exists(ctx, key)) {
        record_t head = {.payload_len = (uint32_t)len,
                         .time_ms = (uint64_t)main_thread.now_ms,
                         .db = db,
                         .name_len = sizeof(EVENT) - 1,
                         .kind = RECORD_EVENT,
                         .class_bit = SNAPSHOT_BIT};
        const buffer_t *payload = NULL;
        int gone = main_thread.value_bytes && (payload = values_show(ctx, key, name, len)) == NULL;
        if (!gone) {
            count(&shared.seen);
            count(&shared.matched);
            if (values_push_payload(ctx, &head, EVENT, payload, name)) count(&shared.queue_full);
            done->events++;
            done->bytes += (long long)(sizeof(head) + (payload ? payload->len : len));
        }
    }
    RedisModule_FreeString(NULL, key);
}

/* ---- the worker's words -------------------------------------------------------------------- */

/* A line: "-" and an error, "+" and a text. */
static void reply_line(buffer_t *reply, const char *kind, const char *text) {
    buffer_add(reply, kind, 1);
    buffer_add(reply, text, strlen(text));
    buffer_add(reply, "\r\n", 2);
}

static void reply_number(buffer_t *reply, long long number) {
    char text[32];
    buffer_add(reply, text, (size_t)snprintf(text, sizeof(text), ":%lld\r\n", number));
}

/* Begins a snapshot of the keys that these masks match. */
static void start(RedisModuleCtx *ctx, RedisModuleString *masks, buffer_t *reply) {
    char error[ERROR_BYTES];
    size_t len;
    const char *text = RedisModule_StringPtrLen(masks, &len);
    if (parameters_check(PARAMETER_INDEX_MASKS, text, len, 0, error, sizeof(error)) != 0) {
        reply_line(reply, "-", error);
        return;
    }
    if (!main_thread.capturing) {
        reply_line(reply, "-", "READONLY this server is a replica or is loading its data set");
        return;
    }
    finish("another snapshot was started");
    running = 1;
    filter = filter_new(text, len, "ALL");
    cursor = RedisModule_ScanCursorCreate();
    long long total = 0;
    for (db = 0; find_database(ctx) == 0; db++)
        total += (long long)RedisModule_DbSize(ctx);
    db = 0;
    if (find_database(ctx) != 0) finish(DONE); /* there is none of those in `databases` */
    reply_number(reply, total);
}

/* Returns why the outbox could not store events now, or an empty text. It would close, and events
 * of clients would miss it, too. */
static const char *find_obstacle(void) {
    if (!main_thread.outbox) return "";
    if (maxmemory_is_near()) return "Redis is near its maxmemory";
    return RedisModule_AvoidReplicaTraffic() ? "writes are paused" : "";
}

/* True while there is room for more events. */
static int has_room(void) {
    size_t limit = queue_get_limit(shared.events);
    return limit == 0 || queue_bytes(shared.events) < limit / QUEUE_PART;
}

/* Makes the next events: at most so many, and up to the one that reaches so many bytes. */
static void step(RedisModuleCtx *ctx, long long events, long long bytes, buffer_t *reply) {
    const long long began = clock_us();
    const char *obstacle = find_obstacle();
    done_t done = {0};
    RedisModule_SelectDb(ctx, db);
    if (*obstacle != '\0') events = 0;
    while (running && done.events < events && done.bytes < bytes && has_room() &&
           clock_us() - began < STEP_US) {
        if (next == names.len) {
            if (find_names(ctx) != 0) finish(DONE);
            continue;
        }
        uint32_t len;
        memcpy(&len, names.data + next, sizeof(len));
        const char *name = names.data + next + sizeof(len);
        next += sizeof(len) + len;
        done.looked++;
        show(ctx, name, len, &done);
    }
    buffer_add(reply, "*5\r\n", 4);
    reply_number(reply, !running);
    reply_line(reply, "+", obstacle);
    reply_number(reply, done.looked);
    reply_number(reply, done.events);
    reply_number(reply, done.bytes);
}

void snapshot_run(RedisModuleCtx *ctx, RedisModuleString **words, size_t count, buffer_t *reply) {
    long long events, bytes;
    if (count == 2 && is_word(words[0], "START")) {
        start(ctx, words[1], reply);
    } else if (count == 3 && is_word(words[0], "STEP") && (running || strcmp(ended, DONE) == 0)) {
        RedisModule_StringToLongLong(words[1], &events);
        RedisModule_StringToLongLong(words[2], &bytes);
        step(ctx, events, bytes, reply);
    } else if (count == 1 && is_word(words[0], "STOP")) {
        finish("it was stopped");
        reply_line(reply, "+", "OK");
    } else {
        reply_line(reply, "-", ended);
    }
    RedisModule_SelectDb(ctx, 0); /* where jobs run */
}
