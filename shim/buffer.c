/* See buffer.h. */
#include "buffer.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* A buffer with more memory than this frees it before its next use. */
#define LARGE ((size_t)4 * 1024 * 1024)

void buffer_reserve(buffer_t *buffer, size_t len) {
    if (buffer->len + len <= buffer->capacity) return;
    buffer->capacity = (buffer->len + len) * 2;
    buffer->data = realloc(buffer->data, buffer->capacity);
    if (buffer->data == NULL) abort();
}

void buffer_add(buffer_t *buffer, const void *data, size_t len) {
    buffer_reserve(buffer, len);
    if (len) memcpy(buffer->data + buffer->len, data, len);
    buffer->len += len;
}

void buffer_empty(buffer_t *buffer) {
    if (buffer->capacity > LARGE) {
        free(buffer->data);
        *buffer = (buffer_t){0};
    }
    buffer->len = 0;
}

void buffer_add_counted(buffer_t *buffer, const void *data, size_t len) {
    uint32_t len32 = (uint32_t)len;
    buffer_add(buffer, &len32, sizeof(len32));
    buffer_add(buffer, data, len);
}

void buffer_add_string(buffer_t *buffer, RedisModuleString *string) {
    size_t len;
    const char *data = RedisModule_StringPtrLen(string, &len);
    buffer_add_counted(buffer, data, len);
}
