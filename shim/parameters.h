/* The type of a parameter, and the checks that only the shim needs; the others are in api.h.
 * The table of parameters is in tables.h. */
#ifndef KEYSPACE_AMQP_PARAMETERS_H
#define KEYSPACE_AMQP_PARAMETERS_H
#include <stddef.h>

typedef enum {
    PARAMETER_TEXT,
    PARAMETER_INTEGER,
    PARAMETER_EVENTS,
    PARAMETER_MASKS
} parameter_kind_t;

typedef struct {
    const char *name;
    parameter_kind_t kind;
    const char *default_value;
    long long minimum, maximum; /* of an integer; of a text's length in bytes */
    int sensitive;
    const char *accepted; /* the end of the error about a refused value */
    const char *pattern;  /* of a whole text, POSIX extended; empty: any text */
} parameter_t;

/* Advice for refused values of a parameter: for those in which the pattern (POSIX extended) is
 * found or, if `found` is 0, is not found. */
typedef struct {
    int parameter;
    const char *pattern, *text;
    int found;
} advice_t;

/* A class of keyspace events: its letter, and its bits in REDISMODULE_NOTIFY_*. */
typedef struct {
    char letter;
    int bits;
} event_class_t;

/* Any thread. True if the value may be a URL with a password in it. */
int parameters_is_url(const char *value, size_t len);

#endif
