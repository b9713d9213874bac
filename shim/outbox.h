/* The outbox: puts events into the fallback list in the turn, or in the transaction, of the write
 * that caused them. Main thread, except for the functions in api.h. */
#ifndef KEYSPACE_AMQP_OUTBOX_H
#define KEYSPACE_AMQP_OUTBOX_H
#include "api.h"
#include "redis_api.h"
#include "state.h"
#include "worker.h"

/* During one long command, a script for example, the worker is woken after this many events. */
#define ANNOUNCE_EVERY 1024

/* Returns whether this server can do what a value of the parameter `outbox` asks for. */
int outbox_can(const char *value);
/* At load: forgets what an earlier one has left. */
void outbox_prepare(void);
/* At unload: frees what it holds. */
void outbox_release(void);
/* Takes the value of the parameter, and whether there is a list. */
void outbox_set_mode(const char *value, int has_list);
/* A parameter of the server was changed, perhaps the number of I/O threads. */
void outbox_ask_again(void);
/* Before another worker starts: events go to its queue, until it opens the outbox. */
void outbox_renew(void);
/* After the start of the worker of a load: opens the outbox if the worker has asked for it. */
void outbox_start(void);
/* When the event loop has slept. */
void outbox_begin_turn(void);
/* Before the stop of a shutdown: forgets the events of writes that end with the process. */
void outbox_shutdown(void);
/* Before the event loop sleeps: stores what is left of this turn, and tells the worker. */
void outbox_end_turn(RedisModuleCtx *ctx);
/* Returns whether the server is going to call the outbox after the present command, transaction or
 * script. */
int outbox_has_job(void);
/* Tells the worker what was stored, before one of its jobs runs. */
void outbox_tell(void);
/* Before a save within a turn: stores what was collected, or leaves it to the worker to do so. */
void outbox_before_save(RedisModuleCtx *ctx);
/* This server is no primary any more, or loads a data set: events that are still collected go to
 * the queue. */
void outbox_leave(void);
/* Gives what was collected to the worker; from now on events go to its queue. */
void outbox_close(void);
/* Jobs of the worker, see api.h. Return 0, or -1 with errno. */
int outbox_hold(RedisModuleCtx *ctx);
int outbox_open(RedisModuleCtx *ctx, const char *key, size_t len);
/* Returns the parameter's value, and whether the outbox waits, as STATS shows them. */
const char *outbox_text(void);

/* Collects an event; see outbox_push. */
int outbox_collect(RedisModuleCtx *ctx, const record_t *head, const char *name,
                   const char *payload);

/* Puts an event into the queue. Returns 0, or -1 if it is full. */
static inline int queue_event(const record_t *head, const char *name, const char *payload) {
    int full = queue_push(shared.events, head, name, payload);
    if (queue_pushed(shared.events) % ANNOUNCE_EVERY == 0) worker_announce();
    return full;
}

/* Takes an event on its way: into the outbox, or into the queue. Returns 0, or -1 if the queue is
 * full. */
static inline int outbox_push(RedisModuleCtx *ctx, const record_t *head, const char *name,
                              const char *payload) {
    if (__builtin_expect(!main_thread.outbox, 1)) return queue_event(head, name, payload);
    return outbox_collect(ctx, head, name, payload);
}

#endif
