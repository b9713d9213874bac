/* Adds elements of the fallback list to a buffer; element.c makes them. Main thread. */
#ifndef KEYSPACE_AMQP_ELEMENT_H
#define KEYSPACE_AMQP_ELEMENT_H
#include "api.h"
#include "buffer.h"

/* Appends the element of an event; its message_id is the prefix and then the number. Returns the
 * bytes of the element. */
static inline size_t element_add(buffer_t *buffer, const record_t *head, const char *name,
                                 const char *payload, const char *prefix, size_t prefix_len,
                                 uint64_t number) {
    buffer_reserve(buffer, element_room(head, prefix_len));
    size_t len =
        element_write(buffer->data + buffer->len, head, name, payload, prefix, prefix_len, number);
    buffer->len += len;
    return len;
}

#endif
