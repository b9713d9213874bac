/* The worker thread, as the main thread sees it: start, wake, tell, stop. What the worker
 * itself calls is in api.h. Main thread, but for worker_wake_main. */
#ifndef KEYSPACE_AMQP_WORKER_H
#define KEYSPACE_AMQP_WORKER_H
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"
#include "redis_api.h"

/* ---- load and unload ---- */

/* Makes the queues and what else the thread needs; -1 if no file descriptor is left. */
int worker_prepare(RedisModuleCtx *ctx);
/* From here on requests are taken. They wait until the thread runs. */
void worker_open(void);
/* Starts the thread and waits until it is ready. A thread that hangs still uses all that
 * was made for it, so that nothing may be freed. */
enum worker_start { WORKER_READY, WORKER_FAILED, WORKER_HANGS };
enum worker_start worker_start(void);
/* From here on nothing is captured, and nothing is asked of the worker. */
void worker_close(void);
/* True between worker_open and worker_close. */
int worker_is_open(void);
/* True if the thread has ended, or was never started. */
int worker_has_ended(void);
/* Waits for the end of the thread and frees what worker_prepare has made. */
void worker_release(void);

/* ---- to the worker ---- */

/* Wakes the worker, whether it waits or not. */
void worker_wake(void);
/* Wakes the worker if it waits. */
void worker_announce(void);
/* Calls worker_announce if there is something that it was not called for yet. */
void worker_announce_new(void);
/* Sends a request (RECORD_*). The payload is copied. */
void worker_request(uint8_t kind, const char *payload, size_t len);
/* The same with what is in the buffer, which is freed. */
void worker_request_buffer(uint8_t kind, buffer_t *buffer);
/* Bytes of the requests that the worker has not taken yet. */
size_t worker_request_bytes(void);
/* A fallback list was changed by somebody else, by the command or event `what`. An empty
 * key: any of the lists. */
void worker_list_changed(const char *what, const char *key, size_t len);

/* ---- from the worker ---- */

/* From here on worker_wake_main wakes Redis' event loop. */
void worker_listen(void);
/* Waits until somebody calls worker_wake_main, for at most `ms` milliseconds. */
void worker_wait(long long ms);
/* Any thread. Ends such a wait, or wakes Redis' event loop. */
void worker_wake_main(void);

#endif
