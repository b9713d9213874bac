/* The changes of fallback lists that were not made by jobs. The worker is told of them once in a
 * turn of the event loop, however many there are. Main thread, all of it. */
#ifndef KEYSPACE_AMQP_CHANGES_H
#define KEYSPACE_AMQP_CHANGES_H
#include <stddef.h>

/* Notes that a list was changed. `what`: the command or event that changed it. An empty key: any
 * of the lists. */
void changes_note(const char *what, const char *key, size_t len);
/* Tells the worker of the changes since the last call. To be called before each other request and
 * before the end of each job. So the worker hears of a change before it reads what a later request
 * or a job has found, but after it has read what earlier ones have found: each loss gets the
 * reason of its own change. */
void changes_send(void);
/* The same, unless the worker is far behind with its requests. To be called once in a turn. */
void changes_send_unless_behind(void);
/* Forgets all changes. */
void changes_forget(void);

#endif
