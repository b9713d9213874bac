/* The worker thread, as the main thread sees it: start, wake, send requests,
 * stop. The functions that the worker itself calls are in api.h. Main thread, except for
 * worker_wake_main. */
#ifndef KEYSPACE_AMQP_WORKER_H
#define KEYSPACE_AMQP_WORKER_H
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "redis_api.h"

/* ---- start and stop; life.c says when ---- */

/* Makes the queues, eventfds and log context. Returns 0, or -1 if no file descriptor is
 * left. */
int worker_prepare(RedisModuleCtx *ctx);
/* Starts the thread. The requests in the queue are its first ones. Returns 0, or -1 and logs
 * the reason. */
int worker_start(void);
/* Waits until the thread is ready, for at most `ms` milliseconds. */
enum worker_start { WORKER_READY, WORKER_FAILED, WORKER_HANGS };
enum worker_start worker_await_start(long long ms);
/* Leaves a thread that hangs at its start to itself, because Redis will free the module: the
 * thread ends as soon as it would be ready. Everything else that it may use stays until
 * worker_release, after its end. Returns 0, and does nothing, if the thread is not at its start
 * any more. */
int worker_abandon(void);
/* Notes that the thread was told to end, but hangs. */
void worker_end(void);
/* Waits until the thread has ended, for at most `ms` milliseconds. */
void worker_await_end(long long ms);
/* Prepares another start, after the end of the thread: events that wait stay in their queue. */
void worker_renew(void);
/* Stops the capture, and allows no more requests. Waits for the thread if it has ended its work. */
void worker_close(void);
/* True if the worker is there for requests: it is ready, and was not told to end. */
int worker_is_open(void);
/* True from worker_end to worker_renew. */
int worker_is_ending(void);
/* True if the thread has ended, or was never started. */
int worker_has_ended(void);
/* Joins the thread and frees everything that worker_prepare has made; once more, does
 * nothing. */
void worker_release(void);

/* ---- to the worker ---- */

/* Wakes the worker, whether it waits or not. */
void worker_wake(void);
/* Wakes the worker if it waits. */
void worker_announce(void);
/* Calls worker_announce if records were pushed since it was called last. */
void worker_announce_new(void);
/* Sends a request (RECORD_*). The payload is copied. */
void worker_request(uint8_t kind, const char *payload, size_t len);
/* The same with what is in the buffer, which is freed. */
void worker_request_buffer(uint8_t kind, buffer_t *buffer);
/* Other nodes' messages and clients' commands are refused while more bytes of requests wait. */
#define REQUESTS_LIMIT ((size_t)64 * 1024 * 1024)
/* Bytes of the requests that the worker has not taken yet. */
size_t worker_request_bytes(void);

/* ---- from the worker ---- */

/* Adds the eventfd of worker_wake_main to Redis' event loop, so that it wakes the loop. */
void worker_listen(void);
/* Waits for a call of worker_wake_main, for at most `ms` milliseconds. */
void worker_wait(long long ms);
/* Any thread. Ends the main thread's worker_wait, or wakes Redis' event loop. */
void worker_wake_main(void);

#endif
