/* A flush, before a save, at SHUTDOWN and at MODULE UNLOAD. */
#include "flush.h"

#include <stdatomic.h>

#include "api.h"
#include "jobs.h"
#include "latency.h"
#include "state.h"
#include "tables.h"
#include "worker.h"

static uint32_t last_id; /* the main thread's; not reset at a load, so that no id comes twice */
static _Atomic uint32_t done_id; /* shared: the flush that the worker has done last */

void shim_flush_done(uint32_t id) {
    atomic_store(&done_id, id);
    worker_wake_main();
}

int flush_worker(RedisModuleCtx *ctx, int mode) {
    /* While a job runs no flush is possible: the worker may wait for this very job. */
    if (!worker_is_open() || main_thread.job_running) return 1;
    const int stops = mode != FLUSH_STORE;
    struct {
        uint64_t began;
        uint32_t id, ms;
        uint8_t mode;
    } payload = {(uint64_t)clock_ms(), ++last_id, stops ? STOP_MS : SAVE_MS, (uint8_t)mode};
    worker_request(RECORD_FLUSH, (const char *)&payload, sizeof(payload));
    worker_wake();
    long long deadline = clock_ms() + (stops ? STOP_LIMIT_MS : SAVE_LIMIT_MS);
    for (;;) {
        jobs_run(ctx);
        const int ended = worker_has_ended(); /* before the look at what it has done */
        if (stops ? ended : atomic_load(&done_id) == last_id) return 1;
        if (ended) return 0;
        long long rest = deadline - clock_ms();
        if (rest <= 0) return 0;
        worker_wait(rest);
    }
}
