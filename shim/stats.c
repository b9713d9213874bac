/* See stats.h. The counters are atomics, and texts are handed over by an exchange of
 * pointers, so that no thread ever waits for another. */
#include "stats.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "outbox.h"
#include "python.h"
#include "state.h"
#include "tables.h"
#include "worker.h"

#define LOG_EVERY_MS 10000

typedef struct {
    char text[TEXTS_COUNT][256];
} texts_t;

/* Shared. The worker writes these, in the order of the table; any thread reads. */
static _Atomic int64_t stats[STATS_COUNT];
/* The values of the counters in `shared` at the last reset. */
static _Atomic int64_t seen_before, matched_before, queue_full_before, messages_refused_before;
static _Atomic int64_t outbox_missed_before;
/* Of shared.matched, the events that earlier workers, also of earlier loads, have taken. */
static _Atomic int64_t taken_before;
static _Atomic(texts_t *) delivered; /* the worker's newest texts; NULL if they were taken */
/* The worker's. */
static texts_t draft;
/* The main thread's. */
static texts_t *shown;
static int64_t logged_losses;
static long long logged_ms;

/* ---- counters --------------------------------------------------------------------- */

static int64_t since_reset(_Atomic int64_t *counter, _Atomic int64_t *before) {
    return atomic_load_explicit(counter, memory_order_relaxed) -
           atomic_load_explicit(before, memory_order_relaxed);
}

/* Any thread; api.h says more. The worker's counters, and those of the shim. */
void shim_numbers(int64_t *numbers) {
    for (int i = 0; i < STATS_COUNT; i++)
        numbers[i] = atomic_load_explicit(&stats[i], memory_order_relaxed);
    /* Loaded in this order: `matched` includes all of `full`. */
    int64_t full = atomic_load(&shared.queue_full), matched = atomic_load(&shared.matched);
    /* The events in the queue, and those that the worker has taken in a turn whose numbers it has
     * not shown yet. So the books balance while it is in a turn, or hangs there. */
    numbers[STAT_QUEUE_LENGTH] +=
        matched - full - atomic_load(&taken_before) - numbers[STAT_EVENTS_MATCHED];
    numbers[STAT_EVENTS_SEEN] = since_reset(&shared.seen, &seen_before);
    numbers[STAT_EVENTS_MATCHED] = matched - atomic_load(&matched_before);
    numbers[STAT_MESSAGES_REJECTED] +=
        since_reset(&shared.messages_refused, &messages_refused_before);
    numbers[STAT_OUTBOX_MISSED] = since_reset(&shared.outbox_missed, &outbox_missed_before);
    /* Elements of which the worker has not heard yet. */
    int64_t unbooked = atomic_load(&shared.outbox_unbooked);
    if (unbooked > numbers[STAT_QUEUE_LENGTH]) unbooked = numbers[STAT_QUEUE_LENGTH];
    numbers[STAT_QUEUE_LENGTH] -= unbooked;
    numbers[STAT_FALLBACK_LENGTH] += unbooked;
    numbers[STAT_FALLBACK_PUSHED] += unbooked;
    numbers[STAT_DROPPED_QUEUE_FULL] += full - atomic_load(&queue_full_before);
    numbers[STAT_QUEUE_BYTES] += (int64_t)queue_bytes(shared.events);
    numbers[STAT_DROPPED] = 0;
    for (int i = STAT_FIRST_REASON; i < STATS_COUNT; i++)
        numbers[STAT_DROPPED] += numbers[i];
}

/* Worker thread, these two. */
int64_t *shim_stats(void) { return (int64_t *)stats; }

void shim_reset_numbers(int64_t forgotten) {
    int64_t full = atomic_load(&shared.queue_full);
    atomic_store(&seen_before, atomic_load(&shared.seen));
    atomic_store(&queue_full_before, full);
    /* What the worker has not taken yet counts as matched now, not before. */
    atomic_store(&matched_before, atomic_load(&taken_before) + forgotten + full);
    atomic_store(&messages_refused_before, atomic_load(&shared.messages_refused));
    atomic_store(&outbox_missed_before, atomic_load(&shared.outbox_missed));
}

static void log_lost(RedisModuleCtx *ctx, long long events, const char *why) {
    RedisModule_Log(ctx, "warning", "%lld event%s lost: %s", events, events == 1 ? "" : "s", why);
}

void stats_log_losses(RedisModuleCtx *ctx, int now) {
    if (!now && main_thread.now_ms < logged_ms + LOG_EVERY_MS) return;
    int64_t lost = atomic_load_explicit(&shared.queue_full, memory_order_relaxed);
    if (lost <= logged_losses) return;
    log_lost(ctx, (long long)(lost - logged_losses), "the queue in memory was full");
    logged_losses = lost;
    logged_ms = main_thread.now_ms;
}

void stats_log_left(RedisModuleCtx *ctx) {
    size_t left = shared.events != NULL ? queue_length(shared.events) : 0;
    left -= (size_t)atomic_load(&shared.outbox_in_queue); /* those are in the list */
    if (left > 0) log_lost(ctx, (long long)left, "the handler has not read them from the queue");
}

/* ---- texts -------------------------------------------------------------------------- */

/* Worker thread. */
void shim_set_text(int index, const char *text) {
    snprintf(draft.text[index], sizeof(draft.text[index]), "%s", text);
    texts_t *copy = malloc(sizeof(*copy));
    if (copy == NULL) abort();
    *copy = draft;
    free(atomic_exchange(&delivered, copy)); /* the copy before, if it was not taken */
}

/* Main thread. Returns the newest texts, which stay valid until the next call. */
static const texts_t *current_texts(void) {
    texts_t *newest = atomic_exchange(&delivered, NULL);
    if (newest != NULL) {
        free(shown);
        shown = newest;
    }
    return shown;
}

/* A worker that hangs cannot show this state itself. */
static const char *text_at(const texts_t *texts, int index) {
    if (index == TEXT_OUTBOX) return outbox_text();
    return index == TEXT_STATE && worker_is_ending() ? "stopping" : texts->text[index];
}

/* ---- STATS and INFO -------------------------------------------------------------------- */

static void reply_with_text(RedisModuleCtx *ctx, const char *text) {
    RedisModule_ReplyWithStringBuffer(ctx, text, strlen(text));
}

void stats_reply(RedisModuleCtx *ctx) {
    int64_t numbers[STATS_COUNT];
    shim_numbers(numbers);
    const texts_t *texts = current_texts();
    RedisModule_ReplyWithMap(ctx, TEXTS_COUNT + STATS_COUNT);
    for (int i = 0; i < TEXTS_COUNT; i++) {
        reply_with_text(ctx, TEXT_NAMES[i]);
        reply_with_text(ctx, text_at(texts, i));
    }
    for (int i = 0; i < STATS_COUNT; i++) {
        reply_with_text(ctx, STAT_NAMES[i]);
        RedisModule_ReplyWithLongLong(ctx, numbers[i]);
    }
}

void stats_info(RedisModuleInfoCtx *ctx, int for_crash_report) {
    if (for_crash_report) return; /* the process is about to end: touch nothing */
    int64_t numbers[STATS_COUNT];
    shim_numbers(numbers);
    const texts_t *texts = current_texts();
    RedisModule_InfoAddSection(ctx, "");
    RedisModule_InfoAddFieldCString(ctx, "version", MODULE_VERSION);
    RedisModule_InfoAddFieldCString(ctx, "python", python_version());
    for (int i = 0; i < TEXTS_COUNT; i++)
        RedisModule_InfoAddFieldCString(ctx, TEXT_NAMES[i], text_at(texts, i));
    for (int i = 0; i < STATS_COUNT; i++)
        RedisModule_InfoAddFieldLongLong(ctx, STAT_NAMES[i], numbers[i]);
}

/* ---- load and unload --------------------------------------------------------------------- */

void stats_renew(void) {
    for (int i = 0; i < STATS_COUNT; i++)
        atomic_store(&stats[i], 0);
    int64_t waiting = shared.events != NULL ? (int64_t)queue_length(shared.events) : 0;
    waiting -= atomic_load(&shared.outbox_in_queue); /* those are in the list */
    int64_t taken = atomic_load(&shared.matched) - atomic_load(&shared.queue_full) - waiting;
    atomic_store(&taken_before, taken);
    atomic_store(&matched_before, taken + atomic_load(&queue_full_before));
}

void stats_prepare(void) {
    shown = calloc(1, sizeof(*shown));
    if (shown == NULL) abort();
    memset(&draft, 0, sizeof(draft));
    stats_renew();
    shim_reset_numbers(0);
    logged_losses = atomic_load(&shared.queue_full);
}

void stats_release(void) {
    free(shown);
    shown = NULL;
    free(atomic_exchange(&delivered, NULL));
}
