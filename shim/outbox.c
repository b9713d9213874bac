/* See outbox.h.
 *
 * The events of a turn of the event loop are collected as records. They become elements of the list
 * by one RPUSH: at the end of the turn (mode `reply`, unless replies may leave before), or in the
 * job that the server runs after each command, transaction or script and before it propagates this
 * unit (mode `atomic`). At the end of the turn the worker hears of them. If it is up to date it
 * gets their records too, and need not read them from the list.
 *
 * If the list cannot take them, they go to the queue as if there were no outbox, and so do all
 * later events: memory holds what is older than they are. The worker opens the outbox again when
 * memory is empty. For that it asks for a hold: events are collected and neither go to the
 * queue nor to the list, for a short time.
 */
#include "outbox.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "buffer.h"
#include "element.h"
#include "jobs.h"
#include "latency.h"
#include "list_push.h"
#include "maxmemory.h"
#include "redis_api.h"
#include "tables.h"
#include "worker.h"

/* Elements of one RPUSH, at most, and their bytes, unless a single one has more. The strings for
 * it count towards maxmemory. */
#define PUSH_ELEMENTS 1024
#define PUSH_BYTES ((size_t)256 * 1024)
/* The worker takes all records of a turn at once, so it gets no more than these; others it reads.
 */
#define HANDED_MOST 4096
/* A hold ends by itself after so many milliseconds, or when the collected events take this part of
 * the queue's limit. */
#define HOLD_MS 1000
#define HOLD_PART 4
#define ID_BYTES 40
/* While so many bytes of requests wait, the worker is behind. */
#define BEHIND ((size_t)1024 * 1024)
/* Pushes for events that the pushes before them have caused. Another module may write whenever the
 * list changes; what is left then goes to the list at the end of the next turn. */
#define MORE_PUSHES 10

enum mode { OFF, REPLY, ATOMIC };
static const char *const MODES[] = {"off", "reply", "atomic"};
enum { CLOSED = OUTBOX_CLOSED, HELD = OUTBOX_HELD, OPEN = OUTBOX_OPEN };

/* The main thread's. `main_thread.outbox` is true unless events go to the queue without a count
 * of the missed ones. */
static enum mode mode;
static long long held_ms; /* clock_ms at the start of the hold */
static int by_unit;       /* events are stored after each command, not at the end of the turn */
static int unsure;        /* if that is necessary; a command says so */
static int post_job;      /* the server will run on_unit_end */
static int turn_is_over;  /* the event loop is about to sleep, or sleeps */
static int storing;       /* callbacks of other modules may run meanwhile, and may write */
static int close_wanted;  /* when that has ended */
static int can_push;      /* list_push works here */
static RedisModuleString *key_string; /* of the list */
/* The events of this turn. The first `listed` of them are in the list. */
static buffer_t pending;
static size_t listed_bytes;
static uint32_t listed, count_pending;
static long long length;           /* of the list, after the last push */
static uint64_t next_id, first_id; /* numbers of the next element, and of this turn's first one */
static uint32_t untold;            /* elements of which the worker was not told */
static uint64_t untold_id;         /* the number of the first of these */
static buffer_t element;           /* the one that is being made */
/* Written by the main thread, read by any. */
static _Atomic int state;
/* Written by the worker, read by the main thread. */
static _Atomic int wants_records;
static _Atomic(char *) start_key; /* counted; taken by outbox_start */
static _Atomic int starting;      /* a load has begun, and outbox_start is still to come */
static char id_prefix[ID_BYTES];  /* written while the main thread waits for the start, or before */

/* ---- states ------------------------------------------------------------------------ */

static int state_now(void) { return atomic_load_explicit(&state, memory_order_relaxed); }

static void set_state(int new) {
    atomic_store(&state, new);
    can_push = 0;
    main_thread.outbox = mode != OFF;
}

int outbox_can(const char *value) {
    return strcmp(value, MODES[ATOMIC]) != 0 || RedisModule_AddPostNotificationJob != NULL;
}

/* Returns whether the server may send a reply before the turn of its command ends. With I/O threads
 * it may, if it has post-notification jobs; Redis 7.0 sends all replies at the end. If CONFIG has
 * another name here, nobody knows, so it may. */
static int replies_early(RedisModuleCtx *ctx) {
    RedisModuleCallReply *reply = RedisModule_Call(ctx, "CONFIG", "cc", "GET", "io-threads");
    if (reply == NULL) return 1;
    size_t len = 0;
    const char *value = NULL;
    if (RedisModule_CallReplyType(reply) == REDISMODULE_REPLY_ARRAY &&
        RedisModule_CallReplyLength(reply) == 2)
        value = RedisModule_CallReplyStringPtr(RedisModule_CallReplyArrayElement(reply, 1), &len);
    int early = !(value != NULL && len == 1 && value[0] == '1');
    RedisModule_FreeCallReply(reply);
    return early;
}

void outbox_set_mode(const char *value, int has_list) {
    mode = ATOMIC;
    while (mode > OFF && strcmp(value, MODES[mode]) != 0)
        mode--;
    outbox_ask_again();
    if (mode == OFF || !has_list) outbox_close();
    main_thread.outbox = mode != OFF || storing;
}

void outbox_ask_again(void) {
    by_unit = RedisModule_AddPostNotificationJob != NULL;
    unsure = by_unit && mode == REPLY;
}

const char *outbox_text(void) {
    static const char *const WAITING[] = {"off", "reply (waits)", "atomic (waits)"};
    return state_now() == OPEN ? MODES[mode] : WAITING[mode];
}

static void set_key(const char *bytes, size_t len) {
    outbox_tell(); /* of the list before */
    if (key_string != NULL) RedisModule_FreeString(NULL, key_string);
    key_string = bytes == NULL ? NULL : RedisModule_CreateString(NULL, bytes, len);
}

static void forget(void) {
    buffer_empty(&pending);
    listed_bytes = listed = count_pending = 0;
}

void outbox_prepare(void) {
    forget();
    mode = OFF;
    by_unit = post_job = storing = close_wanted = 0;
    next_id = 1;
    untold = 0;
    set_state(CLOSED);
    free(atomic_exchange(&start_key, NULL));
    atomic_store(&shared.outbox_in_queue, 0);
    outbox_renew();
    atomic_store(&starting, 1);
}

void outbox_release(void) {
    forget();
    set_key(NULL, 0);
}

void outbox_renew(void) {
    outbox_close();
    untold = 0;
    atomic_store(&starting, 0);
    atomic_store(&wants_records, 0);
    atomic_store(&shared.outbox_unbooked, 0);
}

void outbox_start(void) {
    char *text = atomic_exchange(&start_key, NULL);
    if (text != NULL) {
        set_key(text, strlen(text));
        free(text);
        set_state(OPEN);
    }
    atomic_store(&starting, 0);
}

/* ---- to the worker ------------------------------------------------------------------- */

typedef struct {
    record_t head;
    const char *name, *payload;
} event_t;

static event_t event_at(size_t at) {
    event_t event;
    memcpy(&event.head, pending.data + at, sizeof(event.head));
    event.name = pending.data + at + sizeof(event.head);
    event.payload = event.name + event.head.name_len;
    return event;
}

static size_t size_of(const event_t *event) {
    return sizeof(event->head) + event->head.name_len + event->head.payload_len;
}

/* Sends the request about what was put into the list, and the records of these events, if the
 * worker wants them, there is room, and they are all of this turn. */
static void send(void) {
    int wanted = atomic_load(&wants_records) && untold == listed && listed <= HANDED_MOST &&
                 queue_bytes(shared.events) + listed_bytes < queue_get_limit(shared.events) / 2;
    listed_t told = {.jobs = jobs_count(),
                     .number = queue_pushed(shared.events) + 1,
                     .id = untold_id,
                     .length = length,
                     .count = untold,
                     .handed = wanted ? listed : 0};
    untold = 0;
    buffer_t request = {0};
    size_t key_len;
    const char *key = RedisModule_StringPtrLen(key_string, &key_len);
    buffer_add(&request, &told, sizeof(told));
    buffer_add(&request, key, key_len);
    if (wanted) atomic_fetch_add(&shared.outbox_in_queue, listed);
    /* Before the records: who sees one of them has to find this. */
    worker_request_buffer(RECORD_LISTED, &request);
    for (size_t at = 0; wanted && at < listed_bytes;) {
        event_t event = event_at(at);
        event.head.class_bit |= LISTED_BIT;
        queue_push(shared.events, &event.head, event.name, event.payload);
        at += size_of(&event);
    }
}

/* Tells the worker which events were put into the list. While it is behind, it is told later. */
static void tell(int at_once) {
    if (listed > 0) {
        if (untold == 0) untold_id = first_id;
        untold += listed;
        atomic_fetch_add(&shared.outbox_unbooked, listed);
    }
    if (untold > 0 && (at_once || worker_request_bytes() <= BEHIND)) send();
    if (listed == 0) return;
    /* What is not in the list remains. */
    pending.len -= listed_bytes;
    memmove(pending.data, pending.data + listed_bytes, pending.len);
    count_pending -= listed;
    listed = 0;
    listed_bytes = 0;
    if (pending.len == 0) buffer_empty(&pending); /* frees it if it is large */
}

/* Puts an event into the queue, and counts it as missed. Returns 0, or -1 if the queue is full. */
static int miss(const event_t *event) {
    if (queue_event(&event->head, event->name, event->payload) != 0) return -1;
    count(&shared.outbox_missed);
    return 0;
}

/* Puts the events that are not in the list into the queue; those that are too large for it without
 * their values and subkeys. */
static void spill(void) {
    for (size_t at = listed_bytes; at < pending.len;) {
        event_t event = event_at(at);
        at += size_of(&event);
        if (miss(&event) == 0) continue;
        element_strip(&event.head, &event.payload);
        if (miss(&event) != 0) count(&shared.queue_full);
    }
}

void outbox_close(void) {
    close_wanted = storing;
    if (storing) return;
    tell(1); /* before newer events come into the queue */
    spill();
    forget();
    set_state(CLOSED);
}

void outbox_leave(void) {
    if (count_pending > 0) outbox_close();
}

/* ---- storing --------------------------------------------------------------------------- */

/* Returns whether the list may be written now. */
static int may_store(RedisModuleCtx *ctx) {
    if (!can_push) can_push = list_push_works(ctx);
    return can_push && main_thread.capturing && !jobs_refuses_writes() &&
           !RedisModule_AvoidReplicaTraffic();
}

/* Makes the strings of the next elements, and returns their number. `end`: becomes the offset in
 * `pending` behind their events; `size`: the bytes that the list needs for them. */
static size_t make_elements(RedisModuleString **strings, size_t *end, size_t *size) {
    size_t made = 0, prefix_len = strlen(id_prefix);
    *size = 0;
    for (*end = listed_bytes; *end < pending.len && made < PUSH_ELEMENTS && *size < PUSH_BYTES;
         made++) {
        event_t event = event_at(*end);
        buffer_empty(&element);
        element_add(&element, &event.head, event.name, event.payload, id_prefix, prefix_len,
                    next_id + made);
        strings[made] = RedisModule_CreateString(NULL, element.data, element.len);
        *end += size_of(&event);
        *size += element.len + ELEMENT_BYTES;
    }
    return made;
}

/* Pushes the next elements, and returns whether that has worked. */
static int push(RedisModuleCtx *ctx) {
    static RedisModuleString *strings[PUSH_ELEMENTS];
    size_t end, size, key_len, count = make_elements(strings, &end, &size);
    const char *key = RedisModule_StringPtrLen(key_string, &key_len);
    long long result = -1;
    /* Asked for each push: all events of one long command may be put into the list at once. */
    if (maxmemory_allows(ctx, key, key_len, size))
        result = list_push(ctx, key_string, strings, count);
    for (size_t i = 0; i < count; i++)
        RedisModule_FreeString(NULL, strings[i]);
    if (result < 0) return 0;
    if (listed == 0) first_id = next_id;
    length = result;
    listed += (uint32_t)count;
    listed_bytes = end;
    next_id += count;
    return 1;
}

/* Stores what was collected, if the outbox is open. */
static void store(RedisModuleCtx *ctx) {
    if (state_now() != OPEN || listed == count_pending || storing) return;
    int stored = may_store(ctx), more = MORE_PUSHES;
    if (stored) {
        const int job_runs = main_thread.job_running;
        const uint32_t count_before = count_pending;
        RedisModule_SelectDb(ctx, 0); /* a post-notification job runs in the event's database */
        main_thread.job_running = 1;  /* the event of this push is our own */
        storing = 1;
        while (stored && !close_wanted && listed < count_pending &&
               (listed < count_before || more-- > 0))
            stored = push(ctx);
        storing = 0;
        main_thread.job_running = job_runs;
    }
    if (!stored || close_wanted) outbox_close();
}

void outbox_before_save(RedisModuleCtx *ctx) {
    store(ctx);
    if (state_now() == HELD) outbox_close(); /* the worker stores them */
}

/* The server's callback after the command, transaction or script that has caused events. */
static void on_unit_end(RedisModuleCtx *ctx, void *data) {
    (void)data;
    post_job = 0;
    store(ctx);
}

int outbox_has_job(void) { return post_job; }

int outbox_collect(RedisModuleCtx *ctx, const record_t *head, const char *name,
                   const char *payload) {
    if (state_now() == CLOSED) return miss(&(event_t){*head, name, payload});
    if (pending.len - listed_bytes > queue_get_limit(shared.events) &&
        !storing) { /* one long script, for example */
        outbox_close();
        return outbox_collect(ctx, head, name, payload);
    }
    buffer_add(&pending, head, sizeof(*head));
    buffer_add(&pending, name, head->name_len);
    buffer_add(&pending, payload, head->payload_len);
    count_pending++;
    /* Redis 7.0 resumes clients that were blocked when the turn of the outbox is over, and sends
     * their replies before the next one: that has to come at once. */
    if (turn_is_over && count_pending == 1) worker_wake_main();
    if (storing) return 0; /* it goes on with this event */
    if (by_unit && !post_job && state_now() == OPEN)
        post_job =
            RedisModule_AddPostNotificationJob(ctx, on_unit_end, NULL, NULL) == REDISMODULE_OK;
    if (mode == ATOMIC && !post_job && state_now() == OPEN)
        count(&shared.outbox_missed); /* stored as with `reply` */
    return 0;
}

void outbox_tell(void) { tell(1); }

void outbox_end_turn(RedisModuleCtx *ctx) {
    /* The context in which parameters are set has no client, which a command needs. */
    if (unsure) by_unit = replies_early(ctx);
    unsure = 0;
    if (state_now() == HELD && count_pending > 0 &&
        (clock_ms() - held_ms > HOLD_MS ||
         pending.len > queue_get_limit(shared.events) / HOLD_PART))
        outbox_close();
    store(ctx);
    if (state_now() == OPEN) tell(0);
    turn_is_over = 1;
}

void outbox_begin_turn(void) { turn_is_over = 0; }

void outbox_shutdown(void) {
    /* SHUTDOWN NOSAVE during a script: the writes of its unit are not in the append-only file, nor
     * on replicas, so their events must not be in the file of leftovers. */
    if (!post_job || state_now() != OPEN) return;
    tell(1); /* of those that are in the list */
    forget();
}

/* ---- the worker's jobs -------------------------------------------------------------------- */

int outbox_hold(RedisModuleCtx *ctx) {
    if (mode == OFF) return -1;
    store(ctx);
    tell(1); /* the next job sees them in the list */
    held_ms = clock_ms();
    set_state(HELD);
    return 0;
}

int outbox_open(RedisModuleCtx *ctx, const char *bytes, size_t len) {
    if (mode == OFF || state_now() != HELD) return -1;
    if (len == 0) {
        outbox_close();
        return 0;
    }
    const uint32_t held = count_pending;
    set_key(bytes, len);
    set_state(OPEN);
    store(ctx);
    /* Even if there was nothing to store. A replica cannot say yet. */
    if (main_thread.capturing && !may_store(ctx)) outbox_close();
    if (state_now() != OPEN) return -1;
    for (uint32_t i = 0; i < held; i++)
        count(&shared.outbox_missed); /* clients may have had the replies long ago */
    tell(1);                          /* the next job sees them in the list */
    return 0;
}

/* ---- worker thread: api.h says what each function does --------------------------------------- */

int shim_outbox_state(void) { return atomic_load(&starting) ? OPEN : atomic_load(&state); }
void shim_outbox_wants(int wanted) { atomic_store(&wants_records, wanted); }
void shim_outbox_booked(int64_t count) { atomic_fetch_sub(&shared.outbox_unbooked, count); }
void shim_outbox_taken(int64_t count) { atomic_fetch_sub(&shared.outbox_in_queue, count); }

void shim_outbox_start(const char *prefix, const char *start) {
    snprintf(id_prefix, sizeof(id_prefix), "%s-", prefix);
    free(atomic_exchange(&start_key, start[0] == '\0' ? NULL : strdup(start)));
}
