/* The embedded interpreter: python.c is the only file that knows CPython.
 *
 * Started once in the life of the process and never finalized: the interpreter
 * outlives MODULE UNLOAD (the library is linked with -z nodelete) and serves
 * the next load. Its most likely failure is an environment that has moved or
 * lacks a package; python_start then says what it looked for and where.
 */
#ifndef KEYSPACE_AMQP_PYTHON_H
#define KEYSPACE_AMQP_PYTHON_H
#include <stddef.h>

/* Redis' main thread, at load. Starts the interpreter unless it runs already,
 * checks that the handler's packages can be imported, and lets go of the GIL.
 * Returns 0, or -1 with a message for people in `error`. */
int python_start(char *error, size_t capacity);
/* The interpreter's version and path, for the log; valid after python_start. */
const char *python_describe(void);
/* The interpreter's version alone; valid after python_start. */
const char *python_version(void);
/* Worker thread. Runs the handler until it is told to stop; takes the GIL while
 * it runs Python. Returns 0, or -1 if it could not start. */
int python_run_worker(void);

#endif
