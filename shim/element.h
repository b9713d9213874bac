#ifndef E_H
#define E_H
#include <stdio.h>
#include "api.h"
#include "buffer.h"
static inline size_t element_add(buffer_t *b, const record_t *h, const char *name, const char *payload, const char *prefix, size_t pl, uint64_t n) {
    static const char L[] = "??g$lshzxet?md?n???";
    char t[200]; (void)pl;
    int k = snprintf(t, sizeof t, "1 %s%llu %llu %d %c %d ", prefix, (unsigned long long)n, (unsigned long long)h->time_ms, h->db, L[h->class_bit], h->name_len);
    buffer_add(b, t, k); buffer_add(b, name, h->name_len); buffer_add(b, " ", 1); buffer_add(b, payload, h->payload_len); return b->len;
}
#endif
