/* Reading the string that a key holds without a command, and without changing how the server
 * keeps it. Main thread, all of it.
 *
 * The module API has one function that reads a string, StringDMA. It turns numbers and short
 * strings into larger objects. A command would do, but users see it, and the server counts it as
 * a read of the client whose write has caused the event. So numbers and short strings are read
 * from the server's own objects, as far as they prove to have the form that is known: each form
 * is compared with what the command says until that has told enough. If they differ, the command
 * is used from then on. */
#ifndef KEYSPACE_AMQP_PEEK_H
#define KEYSPACE_AMQP_PEEK_H
#include "redis_api.h"

/* Strings of this length and above are objects that StringDMA leaves as they are. Servers keep
 * shorter ones together with their object: up to 44 bytes in Redis and Valkey up to 8.1, and
 * objects of up to 128 bytes in later versions of Valkey. */
#define PEEK_BYTES 128

/* A guess at an object, before its form has proved to be known. */
typedef struct {
    int form;                   /* 0: none that is known */
    size_t len;                 /* of the bytes */
    char bytes[2 * PEEK_BYTES]; /* a number as text; or the memory of an object with a string */
} guess_t;

/* Returns the string of a key of type string that is open, or NULL if only a command can tell.
 * `len`: its length. The result is valid until the key is closed or the function is called again.
 * If it is NULL, `guess` is for peek_prove. */
const char *peek_string(RedisModuleKey *key, size_t len, guess_t *guess);
/* Compares a guess with what the command says. */
void peek_prove(RedisModuleCtx *ctx, const guess_t *guess, const char *data, size_t len);
/* Begins with no knowledge. */
void peek_prepare(void);

#endif
