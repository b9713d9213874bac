/* The worker thread. The main thread's side: start, wake, send requests, wait. The worker's
 * side: wait, log, report.
 *
 * The two threads never wait for each other, except for the start of the thread and
 * for a flush (flush.c), where the main thread waits for a limited time.
 */
#include "worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "api.h"
#include "bell.h"
#include "changes.h"
#include "latency.h"
#include "python.h"
#include "state.h"
#include "tables.h"

/* The main thread's. */
static enum { CLOSED, OPEN, ENDING } phase;
static pthread_t thread;
static int thread_started; /* and not joined yet */
static uint64_t announced; /* records pushed at the last worker_announce */
/* Shared. `log_ctx` belongs to the module, and so to the holder of `log_lock`. NULL: there is no
 * module any more. The next three are set at load. */
static RedisModuleCtx *log_ctx;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static queue_t *requests;
static int bell = -1;      /* rung by the main thread, watched by the worker */
static int main_bell = -1; /* rung by the worker, watched by Redis' event loop */
static _Atomic int waits;
enum { STARTING, READY, FAILED, ABANDONED };
static _Atomic int start; /* STARTING, then one of the others */
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

/* The main thread takes the lock only to free the context, so it never waits for more than one
 * line. Without a context Redis writes <module> as the name. */
void shim_log(const char *level, const char *text) {
    pthread_mutex_lock(&log_lock);
    RedisModule_Log(log_ctx, level, "%s", text);
    pthread_mutex_unlock(&log_lock);
}

int shim_slice_call(void) { return SYS_sched_setattr; }

/* glibc has had a function and a struct for this since 2.41 only. */
int shim_set_slice(int nice, uint64_t slice) {
    enum { KEEP_POLICY = 8 };
    const struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } attr = {.size = sizeof(attr), .flags = KEEP_POLICY, .nice = nice, .runtime = slice};
    return syscall(SYS_sched_setattr, 0, &attr, 0) == 0 ? 0 : errno;
}

int shim_ready(int ok) {
    int starting = STARTING;
    if (!atomic_compare_exchange_strong(&start, &starting, ok ? READY : FAILED)) return 0;
    worker_wake_main();
    return 1;
}

static void *worker_main(void *data) {
    (void)data;
    python_run_worker();
    atomic_store(&ended, 1);
    worker_wake_main();
    return NULL;
}

/* ---- start and stop ------------------------------------------------------------------ */

/* Makes the thread's state that of a thread which was not started yet. */
static void reset(void) {
    phase = CLOSED;
    announced = seen = 0;
    changes_forget();
    atomic_store(&waits, 0);
    atomic_store(&start, STARTING);
    atomic_store(&ended, 0);
}

int worker_prepare(RedisModuleCtx *ctx) {
    log_ctx = RedisModule_GetDetachedThreadSafeContext(ctx);
    shared.events = queue_new(0);
    requests = queue_new(0);
    bell = bell_new();
    main_bell = bell_new();
    reset();
    return bell >= 0 && main_bell >= 0 ? 0 : -1;
}

/* Signals are Redis'. But a crash of this thread is to be reported, and the kernel sends the
 * signal of a crash to the thread that crashes: if it is blocked, the process ends without a
 * word. Redis 7.2 and later then ask each thread for its stack, by SIGUSR2. */
static void block_signals(sigset_t *before) {
    static const int OPEN_SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGUSR2};
    sigset_t blocked;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof(OPEN_SIGNALS) / sizeof(OPEN_SIGNALS[0]); i++)
        sigdelset(&blocked, OPEN_SIGNALS[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, before);
}

int worker_start(void) {
    sigset_t before;
    block_signals(&before); /* the thread inherits this */
    int error = pthread_create(&thread, NULL, worker_main, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        RedisModule_Log(log_ctx, "warning", "cannot start a thread: %s", strerror(error));
        return -1;
    }
    thread_started = 1;
    phase = OPEN;
    pthread_setname_np(thread, "keyspace-amqp");
    return 0;
}

/* Waits for a step of the worker, or for the end of the time. Returns 0 if the time is over. */
static int await_step(long long deadline) {
    long long rest = deadline - clock_ms();
    if (rest > 0) worker_wait(rest);
    return rest > 0;
}

enum worker_start worker_await_start(long long ms) {
    long long deadline = clock_ms() + ms;
    while (atomic_load(&start) == STARTING && !worker_has_ended() && await_step(deadline)) {
    }
    int hangs = atomic_load(&start) == STARTING && !worker_has_ended();
    return hangs ? WORKER_HANGS : atomic_load(&start) == READY ? WORKER_READY : WORKER_FAILED;
}

void worker_await_end(long long ms) {
    long long deadline = clock_ms() + ms;
    while (!worker_has_ended() && await_step(deadline)) {
    }
}

/* Ends everything that would use the module after Redis has freed it. */
static void let_go(void) {
    phase = CLOSED;
    main_thread.capturing = 0;
    if (main_bell >= 0) RedisModule_EventLoopDel(main_bell, REDISMODULE_EVENTLOOP_READABLE);
    pthread_mutex_lock(&log_lock);
    if (log_ctx != NULL) RedisModule_FreeThreadSafeContext(log_ctx);
    log_ctx = NULL;
    pthread_mutex_unlock(&log_lock);
}

int worker_abandon(void) {
    int starting = STARTING;
    if (!atomic_compare_exchange_strong(&start, &starting, ABANDONED)) return 0;
    let_go();
    return 1;
}

void worker_end(void) { phase = ENDING; }

/* Waits for the end of the thread, which has ended its work: what libraries keep for it is freed
 * only then. If the process ends meanwhile, they free the same things on the main thread. */
static void join(void) {
    if (thread_started) pthread_join(thread, NULL);
    thread_started = 0;
}

void worker_renew(void) {
    join();
    queue_free(requests);
    requests = queue_new(0);
    reset();
}

void worker_close(void) {
    phase = CLOSED;
    main_thread.capturing = 0;
    if (worker_has_ended()) join();
}

int worker_is_open(void) { return phase == OPEN && atomic_load(&start) == READY; }
int worker_is_ending(void) { return phase == ENDING; }
int worker_has_ended(void) { return !thread_started || atomic_load(&ended); }

void worker_release(void) {
    join();
    let_go();
    if (main_bell >= 0) close(main_bell);
    if (bell >= 0) close(bell);
    bell = main_bell = -1;
    queue_free(shared.events);
    queue_free(requests);
    shared.events = requests = NULL;
}
