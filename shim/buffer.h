/* A buffer: bytes that are put together piece by piece. Any thread; each buffer
 * belongs to one. */
#ifndef KEYSPACE_AMQP_BUFFER_H
#define KEYSPACE_AMQP_BUFFER_H
#include <stddef.h>

#include "redis_api.h"

/* {0} is an empty buffer. The owner frees `data`. */
typedef struct {
    char *data;
    size_t len, capacity;
} buffer_t;

/* Empties a buffer that is used again. */
void buffer_empty(buffer_t *buffer);
/* Makes room for so many bytes behind those that it has. */
void buffer_reserve(buffer_t *buffer, size_t len);
/* Appends bytes. */
void buffer_add(buffer_t *buffer, const void *data, size_t len);
/* Appends a u32 with the length, then the bytes: "counted" in api.h. */
void buffer_add_counted(buffer_t *buffer, const void *data, size_t len);
/* The same with the bytes of a string of Redis. Main thread. */
void buffer_add_string(buffer_t *buffer, RedisModuleString *string);

#endif
