/* A snapshot: the event `snapshot` for each key that exists. Main thread, all of it.
 *
 * The worker has it made step by step, by jobs (worker/snapshot.py). The events take the way of
 * captured ones, and nothing else runs between the look at a key and its event. So the event of a
 * change is behind that of the value before it, or the snapshot has the value after it. */
#ifndef KEYSPACE_AMQP_SNAPSHOT_H
#define KEYSPACE_AMQP_SNAPSHOT_H
#include "buffer.h"
#include "redis_api.h"

/* Carries out the words of a job (job_snapshot in api.h), and appends the reply. */
void snapshot_run(RedisModuleCtx *ctx, RedisModuleString **words, size_t count, buffer_t *reply);
/* Ends the snapshot that is under way, if any. `why`: for people; the next step replies with it. */
void snapshot_end(const char *why);

#endif
