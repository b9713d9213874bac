/* The keys of our fallback lists. Any thread. */
#ifndef KEYSPACE_AMQP_KEYS_H
#define KEYSPACE_AMQP_KEYS_H
#include <string.h>

#include "tables.h"

/* True if `len` bytes end with this text. */
static inline int ends_with(const char *key, size_t len, const char *suffix, size_t suffix_len) {
    return len >= suffix_len && memcmp(key + len - suffix_len, suffix, suffix_len) == 0;
}

/* True if the key has the form of our fallback lists, or of our lists of refused events. */
static inline int is_own_key(const char *key, size_t len) {
    const size_t prefix = sizeof(OWN_KEY_PREFIX) - 1;
    if (len < prefix || memcmp(key, OWN_KEY_PREFIX, prefix) != 0) return 0;
    return ends_with(key + prefix, len - prefix, OWN_KEY_SUFFIX, sizeof(OWN_KEY_SUFFIX) - 1) ||
           ends_with(key + prefix, len - prefix, OWN_KEY_REFUSED_SUFFIX,
                     sizeof(OWN_KEY_REFUSED_SUFFIX) - 1);
}

#endif
