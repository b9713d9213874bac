/* See life.h.
 *
 * A worker that was told to end cannot be told otherwise: it may already write its events to
 * the file of leftovers. If it takes too long, the unload is refused. The module then works as
 * before, as the operator was told: the capture goes on, into the queue, and when the worker
 * has ended at last, another one begins with what it has left, as after a load. If that one cannot
 * start, others are tried.
 */
#include "life.h"

#include "api.h"
#include "config.h"
#include "flush.h"
#include "jobs.h"
#include "latency.h"
#include "outbox.h"
#include "server.h"
#include "snapshot.h"
#include "stats.h"
#include "tables.h"

/* Milliseconds between attempts to start another worker. */
#define RESTART_EVERY_MS 3000

static int restarting;          /* another worker was started; how that ended is not known yet */
static long long next_start_ms; /* clock_ms before which no other worker is started */

/* Starts the thread. The first requests in its queue tell it the role and the parameters. */
static int start(void) {
    server_send_role();
    config_send();
    return worker_start();
}

enum worker_start life_start(void) {
    restarting = 0;
    next_start_ms = 0;
    if (start() != 0) return WORKER_FAILED;
    enum worker_start result = worker_await_start(READY_MS);
    /* If it cannot be abandoned, it has got ready in this very moment. */
    if (result == WORKER_HANGS && !worker_abandon()) result = worker_await_start(0);
    if (result == WORKER_READY) outbox_start();
    return result;
}

/* Starts another worker, after the end of the one before it. */
static void start_again(void) {
    jobs_release();
    jobs_prepare();
    outbox_renew();
    snapshot_end("the handler was started again");
    worker_renew();
    stats_renew();
    restarting = 1;
    start(); /* logs the reason of a failure; then worker_await_start says that it has failed */
}

void life_resume(RedisModuleCtx *ctx) {
    if (worker_is_ending()) {
        if (worker_has_ended() && clock_ms() >= next_start_ms) start_again();
        return;
    }
    if (!restarting) return;
    enum worker_start result = worker_await_start(0);
    if (result == WORKER_HANGS) return; /* not ready yet */
    restarting = 0;
    if (result == WORKER_READY) {
        next_start_ms = 0;
        RedisModule_Log(ctx, "notice", "the handler has ended late, and was started again");
        return;
    }
    RedisModule_Log(ctx, "warning",
                    "the handler has ended late, and could not be started again; the next attempt "
                    "follows in %d ms",
                    RESTART_EVERY_MS);
    next_start_ms = clock_ms() + RESTART_EVERY_MS;
    worker_end();
}

int life_stop(RedisModuleCtx *ctx, int mode) {
    if (worker_is_ending()) { /* a stop after an unload that was refused */
        worker_await_end(STOP_LIMIT_MS);
        if (worker_has_ended()) start_again();
    }
    if (worker_await_start(STOP_LIMIT_MS) == WORKER_FAILED) worker_await_end(STOP_LIMIT_MS);
    /* One that is ready only after this line is not told to end, and goes on. */
    const int told = worker_is_open();
    if (told) {
        outbox_close();
        if (mode == FLUSH_LEAVE) jobs_refuse_writes();
        flush_worker(ctx, mode);
    }
    stats_log_losses(ctx, 1);
    if (worker_has_ended()) {
        worker_close();
        return 1;
    }
    if (told) worker_end();
    return 0;
}
