/* The variables that several files of the shim share, by the thread that owns them.
 *
 * module.c defines them. All other state is static in the file that owns it, and other files
 * call its functions.
 *
 * Owned by the main thread alone: the parameters (config.c), the role (server.c) and
 * everything below in `main_thread`. Owned by the worker alone: everything about an event
 * after it was pushed; that is in Python. Shared without a lock: the two queues
 * (queue.c), the list of jobs (jobs.c), the counters and texts (stats.c) and the
 * flags of the worker thread (worker.c).
 */
#ifndef KEYSPACE_AMQP_STATE_H
#define KEYSPACE_AMQP_STATE_H
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"

#define MODULE_NAME "keyspaceamqp"
/* The type of our messages on the cluster bus. Other modules may use it too: the server
 * tells modules apart only if their names have nine letters. So cluster/wire.py checks
 * what comes. */
#define MESSAGE_TYPE 0xA7
/* Room for the error about a refused value. */
#define ERROR_BYTES 1024

/* Hidden, so that the event callback reads these directly and not through the global
 * offset table.
 * Each struct has cache lines of its own, so that nothing the worker writes slows the
 * callback down. */
#pragma GCC visibility push(hidden)

/* ---- the main thread's ---- */
extern struct main_thread {
    _Alignas(64) int capturing; /* this server is a primary and loads nothing (rule 14) */
    long long now_ms;           /* Unix time at the start of this turn of the event loop */
    int watches_slots;          /* events of some slots may be hidden now (migration.h) */
    int wanted_classes;         /* of keyspace events: bits of REDISMODULE_NOTIFY_* */
    /* By callback: wanted_classes for the one that is in use, 0 for the other. */
    int wanted_plain, wanted_subkeyed;
    filter_t *filter;    /* masks and databases; NULL: every event passes */
    int job_running;     /* a job of the worker runs now */
    int outbox;          /* the parameter `outbox` is not off */
    int fallback_memory; /* percent of maxmemory that the list may take near it */
    int subkeys;         /* most subkeys to add to an event; 0: none */
    size_t value_bytes;  /* most bytes of a key's value to add to its event; 0: none */
} main_thread;

/* ---- shared ---- */
extern struct shared {
    /* The main thread pushes, the worker takes. The pointer is set at load. */
    _Alignas(64) queue_t *events;
    /* The main thread counts, any thread reads. They only grow; stats.c keeps their
     * values at the last reset. */
    _Atomic int64_t seen;             /* events of the chosen classes */
    _Atomic int64_t matched;          /* of these, events that masks and databases let through */
    _Atomic int64_t queue_full;       /* of these, events that found the queue full */
    _Atomic int64_t messages_refused; /* messages of other nodes that found no room */
    _Atomic int64_t outbox_missed;    /* events that went to the queue although `outbox` is on */
    /* The main thread adds to these two, the worker takes from them. */
    _Atomic int64_t outbox_unbooked; /* elements of which the worker has not heard yet */
    _Atomic int64_t outbox_in_queue; /* events in the queue that are in the list, too */
} shared;

#pragma GCC visibility pop

/* Main thread. Adds one to a counter. Only this thread writes it, so no atomic
 * addition with a bus lock is needed. */
static inline void count(_Atomic int64_t *counter) {
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

#endif
