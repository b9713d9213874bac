/* The memory that the fallback list may take, if the server has a `maxmemory` (rule 21).
 *
 * Near maxmemory, each byte of the list makes Redis evict a key, or refuse writes of clients if
 * there is nothing to evict. So there the list takes no more than a share of it, the parameter
 * `fallback-memory`, and nothing if Redis may not evict enough for it.
 */
#ifndef KEYSPACE_AMQP_MAXMEMORY_H
#define KEYSPACE_AMQP_MAXMEMORY_H
#include "redis_api.h"

/* A list needs up to this many bytes for an element, beside those of the element. */
#define ELEMENT_BYTES 16

/* Main thread. A new turn of the event loop: looks at the memory in use. */
void maxmemory_look(void);
/* Any thread. True if memory was near maxmemory at the last look. */
int maxmemory_is_near(void);
/* Main thread. True if the list under this key may grow by so many bytes now; they count as taken
 * then. What is pushed is there already, as strings of Redis: they are in the memory in use. Cheap:
 * it may be called for each event. */
int maxmemory_allows(RedisModuleCtx *ctx, const char *key, size_t key_len, size_t bytes);

#endif
