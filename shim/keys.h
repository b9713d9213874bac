/* The keys of our fallback lists. Any thread. */
#ifndef KEYSPACE_AMQP_KEYS_H
#define KEYSPACE_AMQP_KEYS_H
#include <string.h>

#include "tables.h"

/* True if the key has the form of our fallback lists. */
static inline int is_own_key(const char *key, size_t len) {
    const size_t prefix = sizeof(OWN_KEY_PREFIX) - 1, suffix = sizeof(OWN_KEY_SUFFIX) - 1;
    return len >= prefix + suffix && memcmp(key, OWN_KEY_PREFIX, prefix) == 0 &&
           memcmp(key + len - suffix, OWN_KEY_SUFFIX, suffix) == 0;
}

#endif
