/* See life.h.
 *
 * A worker that was told to end cannot be told otherwise: it may already write its events to
 * the file of leftovers. If it takes too long, the unload is refused. The module then works as
 * before, as the operator was told: the capture goes on, into the queue, and when the worker
 * has ended at last, another one begins with what it has left, as after a load.
 */
#include "life.h"

#include "api.h"
#include "config.h"
#include "flush.h"
#include "jobs.h"
#include "server.h"
#include "stats.h"
#include "tables.h"

/* Starts the thread. The first requests in its queue tell it the role and the parameters. */
static int start(void) {
    server_send_role();
    config_send();
    return worker_start();
}

enum worker_start life_start(void) {
    if (start() != 0) return WORKER_FAILED;
    enum worker_start result = worker_await_start(READY_MS);
    /* If it cannot be abandoned, it has got ready in this very moment. */
    return result == WORKER_HANGS && !worker_abandon() ? worker_await_start(0) : result;
}

void life_resume(RedisModuleCtx *ctx) {
    if (!worker_is_ending() || !worker_has_ended()) return;
    jobs_release();
    jobs_prepare();
    worker_renew();
    stats_renew();
    if (start() == 0)
        RedisModule_Log(ctx, "notice", "the handler has ended late, and was started again");
}

int life_stop(RedisModuleCtx *ctx, int mode) {
    if (worker_is_ending()) { /* a stop after an unload that was refused */
        worker_await_end(STOP_LIMIT_MS);
        life_resume(ctx);
        worker_await_start(STOP_LIMIT_MS);
    }
    if (mode == FLUSH_LEAVE) jobs_refuse_writes();
    flush_worker(ctx, mode);
    stats_log_losses(ctx, 1);
    if (!worker_has_ended()) {
        worker_end();
        return 0;
    }
    worker_close();
    return 1;
}
