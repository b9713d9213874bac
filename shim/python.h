/* The embedded interpreter. python.c is the only hand-written file that uses CPython.
 *
 * The interpreter is started once in a process and never ended. It survives MODULE UNLOAD
 * (the core stays in the process) and serves the next load. The most likely
 * failure is a Python environment that was moved or lacks a package; python_start then
 * says what it has looked for, and where.
 */
#ifndef KEYSPACE_AMQP_PYTHON_H
#define KEYSPACE_AMQP_PYTHON_H
#include <stddef.h>

/* Main thread, at load. Starts the interpreter unless it runs already, checks that the
 * handler's packages can be imported, and releases the GIL. Returns 0, or -1 with a message
 * in `error`. */
int python_start(char *error, size_t capacity);
/* Main thread, after python_start. Returns the interpreter's version and paths, for the log. */
const char *python_describe(void);
/* Main thread, after python_start. Returns the interpreter's version alone. */
const char *python_version(void);
/* Worker thread. Runs the handler until it is told to stop; holds the GIL while it runs
 * Python. Returns 0, or -1 if it could not start. */
int python_run_worker(void);

#endif
