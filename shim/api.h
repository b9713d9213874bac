/* The contract between the shim and the Python handler.
 *
 * Plain C declarations only: generate.py gives this file to cffi without the lines that
 * start with '#', and the C files include it. Python can call what is declared here, and
 * nothing else.
 *
 * "Counted" bytes have their length before them, as u32.
 */
#ifndef KEYSPACE_AMQP_API_H
#define KEYSPACE_AMQP_API_H
#include <stddef.h>
#include <stdint.h>

/* ---- queue.c: records from Redis' main thread to the worker --------------- */

/* The kinds of records. EVENT, VALUED and SUBKEYED are keyspace events; the others are requests
 * to the worker, whose arguments are in the payload. */
enum {
    RECORD_EVENT = 0,
    RECORD_COMMAND = 1, /* u64 handle, then counted arguments */
    RECORD_CONFIG = 2,  /* the counted values of all parameters */
    RECORD_ROLE = 3,    /* u8 primary, u8 loading, u8 another has all writes */
    RECORD_FLUSH = 4,   /* u64 clock_ms at its start, u32 id, u32 milliseconds, u8 mode (FLUSH_*) */
    /* A fallback list was changed, and not by a job: u64 how many jobs were run before, the
     * command or event, and the key (empty: any of the lists), both counted */
    RECORD_LIST_CHANGED = 5,
    RECORD_MESSAGE = 6, /* from another node: its id and the text, both counted */
    RECORD_VALUED = 7,  /* an event with its key's value: valued_t, the key, the data */
    /* Slots were handed over (migration.h): u8 (1: they came to this node, 0: they have left it),
     * then the first and the last slot of each range, u16 */
    RECORD_SLOTS_MOVED = 8,
    /* An event with its subkeys: subkeyed_t, the subkeys (counted), then the payload of an EVENT
     * or a VALUED */
    RECORD_SUBKEYED = 9,
    /* Events were put into a list by the outbox: listed_t, then the list's key */
    RECORD_LISTED = 10
};

/* The modes of a flush. STORE: a save follows, so the events go into the list. The others
 * end the worker. LEAVE: the list cannot be written any more, so undelivered events go into the
 * file of leftovers. DRAIN: the server keeps nothing on disk, so the list is delivered
 * too. */
enum { FLUSH_STORE = 0, FLUSH_LEAVE = 1, FLUSH_DRAIN = 2 };

/* The head of every record. Behind it are the event's name, the payload (of an EVENT: its
 * key), and padding to a multiple of eight. */
typedef struct {
    uint32_t size; /* of the record: head, name, payload, padding */
    uint32_t payload_len;
    uint64_t time_ms; /* Unix time at the start of the turn of Redis' event loop */
    int32_t db;
    uint16_t name_len;
    uint8_t kind;      /* RECORD_* */
    uint8_t class_bit; /* of an event: the position of its class in REDISMODULE_NOTIFY_* */
} record_t;

/* The head of a VALUED's payload; the key follows, then the data up to the end. */
typedef struct {
    uint64_t length; /* of the whole value: bytes of a string, elements of another type */
    uint32_t key_len;
    uint8_t type;     /* REDISMODULE_KEYTYPE_* */
    uint8_t before;   /* 1: the value that the key had before the event */
    uint8_t has_data; /* 1 for a string */
    uint8_t padding;
} valued_t;

/* The head of a SUBKEYED's payload. */
typedef struct {
    uint32_t total; /* subkeys of the event; not all of them may follow */
    uint32_t bytes; /* of the subkeys that follow, with their lengths */
    uint8_t kind;   /* of the payload behind them: RECORD_EVENT or RECORD_VALUED */
    uint8_t padding[7];
} subkeyed_t;

/* Set in the `class_bit` of an event that is in the list already. */
enum { LISTED_BIT = 0x80 };

/* The head of a LISTED's payload. */
typedef struct {
    uint64_t jobs;   /* so many jobs were run before */
    uint64_t number; /* of the first of these events in the queue */
    uint64_t id;     /* the number in the id of the first of these events */
    int64_t length;  /* of the list, with these events at its end */
    uint32_t count;  /* of the events */
    uint32_t handed; /* of these, how many follow in the queue: all or none */
} listed_t;

typedef struct queue queue_t;

/* Makes a queue that holds at most `limit` bytes of events (0: no limit); the caller frees it
 * with queue_free. One thread pushes and one thread takes; they never wait for each other. */
queue_t *queue_new(size_t limit);
void queue_free(queue_t *queue);
/* Pushing thread. Copies the name and the payload. Returns 0, or -1 if an event does not
 * fit under the limit; it is not in the queue then. Requests always fit. */
int queue_push(queue_t *queue, const record_t *head, const char *name, const char *payload);
/* Taking thread. Finds the oldest records that were not released; returns the number of
 * their bytes that are contiguous in memory, 0 if there are none. Valid until queue_release. */
size_t queue_take(queue_t *queue, const char **records);
/* Taking thread. Releases the first `count` records, which have `bytes` bytes together. */
void queue_release(queue_t *queue, size_t bytes, size_t count);
/* Any thread. Bytes and records that were pushed and not released. */
size_t queue_bytes(const queue_t *queue);
size_t queue_length(const queue_t *queue);
/* Any thread. Returns the number of records pushed so far. A thread that has got this number
 * sees everything that the pushing thread did before, requests in another queue too. */
uint64_t queue_pushed(const queue_t *queue);
/* Any thread. Returns the number of records released so far. */
uint64_t queue_released(const queue_t *queue);
/* Any thread. */
void queue_set_limit(queue_t *queue, size_t limit);
size_t queue_get_limit(const queue_t *queue);

/* ---- element.c: elements of the fallback list ----------------------------- */

/* Any thread, all of these. Writes the element that `to_element` in fallback.py makes of this
 * event: a record of kind EVENT, VALUED or SUBKEYED. Its message_id is the prefix and then the
 * number. Returns the bytes of the element. `out` has room for `element_room` bytes. */
size_t element_write(char *out, const record_t *head, const char *name, const char *payload,
                     const char *prefix, size_t prefix_len, uint64_t number);
/* Returns a number of bytes that an element of this record never exceeds. */
size_t element_room(const record_t *head, size_t prefix_len);
/* Leaves the value and the subkeys out of a record. */
void element_strip(record_t *head, const char **payload);

/* ---- messages.c: the messages of many events -------------------------------- */

typedef struct {
    /* A message: `first`, the size of the body (u64), `second`, the event's number in decimal
     * digits, its time in seconds (u64), `third`, the size of the body (u32), the body, 0xCE. */
    const char *first, *second, *third;
    size_t first_len, second_len, third_len;
    size_t body_max; /* the bytes of a body, at most */
    uint64_t number; /* of the first event */
    size_t most;     /* events, at most */
    char *out;       /* for the messages: it has `room` bytes */
    size_t room;
    /* For each run of events of the same time: the place behind the last of them, the time. It has
     * room for 2 * `most`. */
    uint64_t *times;
    /* Results: events and the bytes of their records; bytes of the messages; runs in `times`. */
    size_t count, size, len, runs;
} messages_t;
/* Any thread. Lays out the messages of the first events, whose records begin within `size` bytes.
 * It ends before an event that is not a RECORD_EVENT, is in the list already, is no UTF-8, or has
 * no room. */
void messages_write(messages_t *all, const char *records, size_t size);

/* ---- parameters.c: the values of parameters ------------------------------- */

/* Any thread. Returns 0 if the parameter at `index` of the table accepts the value, else -1
 * with a message in `error` (of `capacity` bytes, ends with NUL). `classes`: the bits of the
 * event classes that this server has. */
int parameters_check(int index, const char *value, size_t len, int classes, char *error,
                     size_t capacity);
/* Any thread. Appends a mask to a list of masks in the form that the parameter `masks` has.
 * Returns the new length, or 0 if `capacity` is too small. */
size_t parameters_append_mask(char *list, size_t len, size_t capacity, const char *mask,
                              size_t mask_len);
/* Any thread. Returns the bits of the event classes that a value of `events` names. */
int parameters_classes(const char *value, size_t len);

/* ---- filter.c: the events that `masks` and `databases` let through --------- */

typedef struct filter filter_t;
/* Makes a filter of values of these parameters that were checked. Returns NULL if it would let
 * every event through; else the caller frees it with filter_free. One thread uses it. */
filter_t *filter_new(const char *masks, size_t len, const char *databases);
void filter_free(filter_t *filter);
/* Returns 1 if the filter lets events of this key in this database through, else 0. */
int filter_passes(filter_t *filter, int db, const char *key, size_t len);
/* Returns 1 if the filter lets events of some keys in this database through, else 0. */
int filter_has_database(const filter_t *filter, int db);

/* ---- worker.c: queues, waiting, the log. Worker thread, all of these ------- */

/* The queues of events and of requests. */
queue_t *shim_events(void);
queue_t *shim_requests(void);
/* Returns a descriptor that becomes readable when the queues have something new or a job
 * is done. */
int shim_wake_fd(void);
/* Called before the worker waits for that descriptor: new records then make it readable. */
void shim_before_wait(void);
/* Called after the wait: resets the descriptor. */
void shim_after_wait(void);
/* Writes a line to Redis' log. Levels: debug, verbose, notice, warning. */
void shim_log(const char *level, const char *text);
/* Sets this thread's nice value and its time slice in nanoseconds; 0: the usual slice. Linux before
 * 6.12 has no slice for each thread, and ignores it. Returns 0 or an errno. */
int shim_set_slice(int nice, uint64_t slice);
/* Returns the number of the system call for this. */
int shim_slice_call(void);
/* Reports that the worker is ready (1), or that it cannot start (0). Returns 0 if it has to end,
 * because the load did not wait so long. */
int shim_ready(int ok);

/* ---- flush.c. Worker thread -------------------------------------------------- */

/* Reports that the flush with this id, from a RECORD_FLUSH, is done. */
void shim_flush_done(uint32_t id);

/* ---- server.c: the server. Worker thread ----------------------------------- */

/* Returns the server's port at the load, which names the file of leftovers. */
int shim_port(void);
/* True if the server runs in cluster mode. */
int shim_clustered(void);

/* ---- stats.c: counters and texts of STATS and INFO ------------------------- */

/* Worker thread. Returns the array of counters, in the order of the table; the worker writes
 * those that it owns. In the place of `events_matched` it writes how many events it has taken in
 * all, resets or not. */
int64_t *shim_stats(void);
/* Any thread. Writes all counters, with those of the shim, as STATS shows them. */
void shim_numbers(int64_t *numbers);
/* Worker thread. Resets the shim's own counters. `forgotten`: of the events that the worker has
 * taken in all, those that do not count as matched any more. */
void shim_reset_numbers(int64_t forgotten);
/* Worker thread. Shows a text; `index` is its place in the table. */
void shim_set_text(int index, const char *text);

/* ---- commands.c ------------------------------------------------------------ */

/* Worker thread. Answers a RECORD_COMMAND. The reply, which is copied, has the form that
 * commands/replies.py defines. */
void shim_command_done(uint64_t handle, const char *reply, size_t len);

/* ---- outbox.c. Worker thread, all of these ---------------------------------- */

/* The states of the outbox. CLOSED: events go to the queue. HELD: they are collected. OPEN: they
 * go into the list, or are about to: a load has just begun. */
enum { OUTBOX_CLOSED = 0, OUTBOX_HELD = 1, OUTBOX_OPEN = 2 };
int shim_outbox_state(void);
/* Called before shim_ready. `prefix`: the start of the ids of elements. `key`: the list that takes
 * events from the first one after the load on; empty: none, the outbox stays closed. */
void shim_outbox_start(const char *prefix, const char *key);
/* Says whether the worker wants the records of events that are in the list. */
void shim_outbox_wants(int wanted);
/* Reports that so many more elements are in the worker's own counts. */
void shim_outbox_booked(int64_t count);
/* Reports that so many more events with LISTED_BIT were released. */
void shim_outbox_taken(int64_t count);

/* ---- jobs.c. Worker thread, all of these ------------------------------------ */

/* A job: commands that Redis' main thread runs one after the other, in one turn, between the
 * commands of its clients. It ends at the first command that fails. */
typedef struct job job_t;
/* Makes a job without commands. The worker frees it with job_free when it is done, or
 * abandons it. */
job_t *job_new(void);
/* Adds a command of Redis. `write`: it is replicated, and it is refused unless this server is
 * a primary that is not loading. */
void job_command(job_t *job, const char *name, int write);
/* Marks the command that was added last, before it gets its arguments: the list in its first
 * argument grows. It is refused near maxmemory (maxmemory.h). */
void job_grows(job_t *job);
/* Adds a command that sets parameters, all or none; its arguments are names and values. Not
 * CONFIG SET: a secret would stay in the slow log, and a module cannot prevent that. */
void job_parameters(job_t *job);
/* Adds a command that looks at the keys in its arguments, without a trace. Its reply is an array:
 * the length of each list, 0 for a missing key, -1 for a key that holds something else. The node
 * need not serve their slots. */
void job_lengths(job_t *job);
/* Adds a command that sends a message to another node; its arguments are the node's id, empty
 * for all nodes, and the text. It fails if there is no connection to the node. */
void job_message(job_t *job);
/* Adds a command for the outbox. Without `open`: collect events for now, and keep them. With it:
 * put them and all later ones into the list whose key is the argument; an empty key: close the
 * outbox, and put them into the queue. It fails if the outbox is off, or was not held. */
void job_outbox(job_t *job, int open);
/* Adds a command for the snapshot, of which its words say what to do.
 *   START masks         Begins a snapshot of the keys that masks, in the form of the parameter
 *                       `masks`, match. Its reply is the number of keys that there are.
 *   STEP events bytes   Makes the next events, at most so many, and up to the one that reaches so
 *                       many bytes. Its reply is an array: 1 if the snapshot is done, else 0; why
 *                       it waits, or an empty text; and how many keys were looked at, how many
 *                       events they had, and the bytes of their records. It fails, with the reason,
 *                       if the snapshot has ended before it was done.
 *   STOP                Ends it. */
void job_snapshot(job_t *job);
/* Gives the command that was added last all its arguments: their bytes one after the other,
 * and their lengths. They are copied. */
void job_arguments(job_t *job, const char *arguments, const size_t *lengths, size_t count);
/* Ends the job after the command that was added last, unless its reply is this one (RESP2). */
void job_expect(job_t *job, const char *reply, size_t len);
/* Bounds the reply of the command that was added last, an LRANGE with offsets from 0 on: it
 * ends with the element that brings it to `bytes` bytes. A key that is no list has no
 * elements. */
void job_most(job_t *job, size_t bytes);
/* Hands the job over to the main thread. */
void job_submit(job_t *job);
/* True if the job was run: its replies can be read, and it can be freed. */
int job_done(const job_t *job);
/* Returns the RESP2 reply of a command, valid until job_free; NULL if it did not run. `error`:
 * errno after the command; valid only if there is no reply, or the reply is an error. */
const char *job_reply(const job_t *job, int command, size_t *len, int *error);
void job_free(job_t *job);
/* The worker ends and does not wait for this submitted job any more; it is freed when it was
 * run. */
void job_abandon(job_t *job);

#endif
