/* The worker thread. The main thread's side: start, wake, send requests, wait. The worker's
 * side: wait, log, report.
 *
 * The two threads never wait for each other, except for the start of the thread and
 * for a flush (flush.c), where the main thread waits for a limited time.
 */
#include "worker.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "bell.h"
#include "changes.h"
#include "latency.h"
#include "python.h"
#include "state.h"
#include "tables.h"

/* The main thread's. */
static int open_for_requests;
static pthread_t thread;
static int thread_started; /* and not joined yet */
static uint64_t announced; /* records pushed at the last worker_announce */
/* Shared. The first three are set at load. */
static RedisModuleCtx *log_ctx;
static queue_t *requests;
static int bell = -1;      /* rung by the main thread, watched by the worker */
static int main_bell = -1; /* rung by the worker, watched by Redis' event loop */
static _Atomic int waits;
static _Atomic int ready; /* 0: not yet, 1: yes, -1: failed */
static _Atomic int ended;
/* The worker's. */
static uint64_t seen; /* records pushed when it woke up last */

static uint64_t pushed(void) { return queue_pushed(shared.events) + queue_pushed(requests); }

/* ---- to the worker -------------------------------------------------------------- */

void worker_wake(void) { bell_ring(bell); }

void worker_announce(void) {
    announced = pushed();
    /* Pairs with the fence in shim_before_wait: either this thread sees that the worker
     * waits, or the worker sees the new records. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_exchange(&waits, 0)) worker_wake();
}

void worker_announce_new(void) {
    if (pushed() != announced) worker_announce();
}

void worker_request(uint8_t kind, const char *payload, size_t len) {
    changes_send(); /* requests are in the order of what happened */
    record_t head = {
        .kind = kind, .payload_len = (uint32_t)len, .time_ms = (uint64_t)main_thread.now_ms};
    queue_push(requests, &head, NULL, payload);
    worker_announce();
}

void worker_request_buffer(uint8_t kind, buffer_t *buffer) {
    worker_request(kind, buffer->data, buffer->len);
    free(buffer->data);
}

size_t worker_request_bytes(void) { return queue_bytes(requests); }

/* ---- from the worker ------------------------------------------------------------- */

void worker_wake_main(void) { bell_ring(main_bell); }
void worker_wait(long long ms) { bell_wait(main_bell, ms); }

/* Callback of Redis' event loop. It only has to wake the loop: before Redis sleeps again,
 * server.c runs the jobs. */
static void on_main_bell(int fd, void *data, int mask) {
    (void)data;
    (void)mask;
    bell_silence(fd);
}

void worker_listen(void) {
    RedisModule_EventLoopAdd(main_bell, REDISMODULE_EVENTLOOP_READABLE, on_main_bell, NULL);
}

/* ---- worker thread: api.h says what each function does --------------------------- */

queue_t *shim_events(void) { return shared.events; }
queue_t *shim_requests(void) { return requests; }
int shim_wake_fd(void) { return bell; }

void shim_before_wait(void) {
    atomic_store(&waits, 1);
    atomic_thread_fence(memory_order_seq_cst);
    /* The records that came since the worker last looked were not announced. */
    if (pushed() != seen) bell_ring(bell);
}

void shim_after_wait(void) {
    atomic_store(&waits, 0);
    bell_silence(bell);
    seen = pushed();
}

void shim_log(const char *level, const char *text) { RedisModule_Log(log_ctx, level, "%s", text); }

void shim_ready(int ok) {
    atomic_store(&ready, ok ? 1 : -1);
    worker_wake_main();
}

static void *worker_main(void *data) {
    (void)data;
    python_run_worker();
    atomic_store(&ended, 1);
    worker_wake_main();
    return NULL;
}

/* ---- load and unload -------------------------------------------------------------- */

int worker_prepare(RedisModuleCtx *ctx) {
    log_ctx = RedisModule_GetDetachedThreadSafeContext(ctx);
    shared.events = queue_new(0);
    requests = queue_new(0);
    bell = bell_new();
    main_bell = bell_new();
    announced = seen = 0;
    changes_forget();
    atomic_store(&waits, 0);
    atomic_store(&ready, 0);
    atomic_store(&ended, 0);
    return bell >= 0 && main_bell >= 0 ? 0 : -1;
}

void worker_open(void) { open_for_requests = 1; }

enum worker_start worker_start(void) {
    /* The thread begins with all signals blocked: they are Redis'. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, NULL, worker_main, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        RedisModule_Log(log_ctx, "warning", "cannot start a thread: %s", strerror(error));
        return WORKER_FAILED;
    }
    thread_started = 1;
    pthread_setname_np(thread, "keyspace-amqp");
    long long deadline = clock_ms() + READY_MS, rest = READY_MS;
    while (atomic_load(&ready) == 0 && !atomic_load(&ended) && rest > 0) {
        worker_wait(rest);
        rest = deadline - clock_ms();
    }
    if (atomic_load(&ready) == 1) return WORKER_READY;
    return atomic_load(&ready) == 0 && !atomic_load(&ended) ? WORKER_HANGS : WORKER_FAILED;
}

void worker_close(void) { open_for_requests = main_thread.capturing = 0; }
int worker_is_open(void) { return open_for_requests; }
int worker_has_ended(void) { return !thread_started || atomic_load(&ended); }

void worker_release(void) {
    if (thread_started) pthread_join(thread, NULL);
    thread_started = 0;
    if (main_bell >= 0) {
        RedisModule_EventLoopDel(main_bell, REDISMODULE_EVENTLOOP_READABLE);
        close(main_bell);
    }
    if (bell >= 0) close(bell);
    bell = main_bell = -1;
    queue_free(shared.events);
    queue_free(requests);
    shared.events = requests = NULL;
    if (log_ctx != NULL) RedisModule_FreeThreadSafeContext(log_ctx);
    log_ctx = NULL;
}
