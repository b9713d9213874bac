/* The table of parameters, made by generate.py from keyspace_amqp/tables/parameters.py. */
#ifndef KEYSPACE_AMQP_PARAMETERS_H
#define KEYSPACE_AMQP_PARAMETERS_H

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
    const char *accepted; /* for people: what the parameter takes */
    const char *pattern;  /* of a whole text, POSIX extended; empty: any text */
} parameter_t;

/* Whether a value may be a URL with a password in it, wherever somebody has put it. */
int parameters_is_url(const char *value, size_t len);

#include "tables.h" /* PARAMETERS[], PARAMETERS_COUNT, STATS[], COMMANDS[] and so on */

#endif
