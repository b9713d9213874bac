/* The contract between the shim and the Python handler.
 *
 * Plain C declarations only: cffi reads this file as its cdef (lines that
 * start with '#' are dropped), and the C files include it. Whatever Python
 * may call is declared here; whatever is not here, Python cannot reach.
 */
#ifndef KEYSPACE_AMQP_API_H
#define KEYSPACE_AMQP_API_H
#include <stddef.h>
#include <stdint.h>

/* ---- queue.c: records from Redis' main thread to the worker --------------- */

/* What a record is. EVENT carries a keyspace event, everything else is a
 * request to the worker with its arguments in the payload. */
enum {
    RECORD_EVENT = 0,
    RECORD_COMMAND = 1, /* payload: u64 handle, then counted arguments */
    RECORD_CONFIG = 2,  /* payload: u64 events pushed so far, then counted values */
    RECORD_ROLE = 3,    /* payload: u8 primary, u8 loading, u8 writes are paused */
    RECORD_FLUSH = 4,   /* payload: u32 id, u32 milliseconds, u8 mode (FLUSH_*) */
    RECORD_TOUCHED = 5, /* payload: what somebody else did, which list (empty: any), counted */
    RECORD_MESSAGE = 6, /* payload: the id of the node that sent it, counted, and its text */
    RECORD_VALUED = 7   /* an event with what its key holds; payload: valued_t, key, data */
};

/* What a flush is for. STORE: a save follows. The others end the worker: LEAVE,
 * when the list cannot be written any more, so that the rest needs a file of ours;
 * DRAIN, when nothing is kept on disk, so that the list has to be delivered too. */
enum { FLUSH_STORE = 0, FLUSH_LEAVE = 1, FLUSH_DRAIN = 2 };

/* The head of every record; the event's name and then the payload (the key of
 * an event) follow it, and padding to a multiple of eight. */
typedef struct {
    uint32_t size; /* of the record: head, name, payload, padding */
    uint32_t payload_len;
    uint64_t time_ms; /* Unix time of the turn of Redis' event loop */
    int32_t db;
    uint16_t name_len;
    uint8_t kind;      /* RECORD_* */
    uint8_t class_bit; /* position of the event's class in REDISMODULE_NOTIFY_* */
} record_t;

typedef struct {
    uint64_t length; /* bytes of a string, elements of others */
    uint32_t key_len;
    uint8_t type;     /* REDISMODULE_KEYTYPE_* */
    uint8_t before;   /* what was there before the event */
    uint8_t has_data; /* only strings do */
    uint8_t padding;
} valued_t;

typedef struct queue queue_t;

/* A queue that holds at most `limit` bytes of events (0: no limit). Free it
 * with queue_free. One thread pushes, one thread takes; they never wait for
 * each other. */
queue_t *queue_new(size_t limit);
void queue_free(queue_t *queue);
/* Pushing thread. Returns 0, or -1 when the limit is reached (the event is not
 * in the queue then). Copies the name and the payload. Requests are taken
 * whatever the limit. */
int queue_push(queue_t *queue, const record_t *head, const char *name, const char *payload);
/* Taking thread. The oldest unread records that lie together: their number of
 * bytes, 0 if there are none. They stay valid until queue_release. */
size_t queue_take(queue_t *queue, const char **records);
/* Taking thread. Gives `bytes` of the taken bytes back, `count` records. */
void queue_release(queue_t *queue, size_t bytes, size_t count);
/* Any thread. queue_pushed: who sees an event counted sees everything that the
 * pushing thread did before it, requests in another queue among them. */
size_t queue_bytes(const queue_t *queue);
size_t queue_length(const queue_t *queue);
uint64_t queue_pushed(const queue_t *queue);
void queue_set_limit(queue_t *queue, size_t limit);
size_t queue_get_limit(const queue_t *queue);

/* ---- parameters.c: the values of parameters --------------------------------- */

/* Any thread. 0 if `value` is accepted for the parameter at `index` of the
 * table, else -1 with a message for people in `error` (capacity bytes, ends
 * with NUL). `classes`: the event classes this server has. */
int parameters_check(int index, const char *value, size_t len, int classes, char *error,
                     size_t capacity);
/* Any thread. Appends a mask to a list of masks in the form that the parameter
 * `masks` has. Returns the new length, or 0 if `capacity` is too small. */
size_t parameters_append_mask(char *list, size_t len, size_t capacity, const char *mask,
                              size_t mask_len);
/* Any thread. The bits of the event classes in a checked `events` value. */
int parameters_classes(const char *value, size_t len);

/* ---- module.c: what the worker asks of the shim --------------------------- */

/* Worker thread, all of them. */
queue_t *shim_events(void);
queue_t *shim_requests(void);
/* The server's port: part of the name of the file that a LEAVE writes. */
int shim_port(void);
/* Whether the server runs in cluster mode. */
int shim_clustered(void);
/* A descriptor that becomes readable when there is something to look at. */
int shim_wake_fd(void);
/* To be called before the worker waits on that descriptor: from here on Redis
 * announces new records. */
void shim_before_wait(void);
/* To be called when the worker has woken up: empties the descriptor. */
void shim_after_wait(void);
/* level: debug, verbose, notice, warning. */
void shim_log(const char *level, const char *text);
/* The counters that STATS and INFO show, in the order of the table. */
int64_t *shim_stats(void);
/* The numbers as STATS shows them, with those that only the shim knows, and how many
 * messages of other nodes the shim had no room for. */
void shim_numbers(int64_t *numbers);
/* The shim's own counters start again. */
void shim_reset_numbers(void);
/* Shows a text in STATS and INFO: state, broker, last_error, in this order. */
void shim_set_text(int index, const char *text);
/* Ends a command with the reply in `reply` (see commands.py for its form). */
void shim_command_done(uint64_t handle, const char *reply, size_t len);
/* The worker has imported everything and runs (1), or cannot (0). */
void shim_ready(int ok);
/* The flush that RECORD_FLUSH asked for is done. */
void shim_flush_done(uint32_t id);
/* Sets the worker thread's own nice value; -1 and errno's text in `error`. */
int shim_set_nice(int nice, char *error, size_t capacity);

/* A job: commands that Redis' main thread runs one after the other, in one
 * turn, between the commands of its clients. */
typedef struct job job_t;
job_t *job_new(void);
/* Adds a command; `write`: replicate it, and refuse it unless this server is a
 * primary that is not loading. */
void job_command(job_t *job, const char *name, int write);
/* Adds the setting of parameters: names and values are its arguments, taken all
 * or none. Not by CONFIG SET, whose copy of a secret in the slow log a module
 * cannot prevent. */
void job_parameters(job_t *job);
/* Adds a look at keys, which are its arguments: an array of the lengths of those
 * that are lists, with 0 for others, whoever may serve the slots they are in. */
void job_lengths(job_t *job);
/* Adds the sending of a message to another node: its id, empty for all nodes, and
 * the text. An error if there is no connection to it just now. */
void job_message(job_t *job);
/* All arguments of the last command: one after the other in memory, and their lengths. */
void job_arguments(job_t *job, const char *arguments, const size_t *lengths, size_t count);
/* The last command's reply must be this (RESP2), or the job ends there. */
void job_expect(job_t *job, const char *reply, size_t len);
/* The last command is an LRANGE with offsets from 0 on; its reply ends with the
 * element that brings it to so many bytes. A key that is no list has no elements. */
void job_most(job_t *job, size_t bytes);
void job_submit(job_t *job);
/* 1 when the job was run: its replies can be read and it can be freed. */
int job_done(const job_t *job);
/* The RESP2 reply of a command of the job; NULL if it did not run. `error`: errno
 * after the command; it means something where there is no reply or an error. */
const char *job_reply(const job_t *job, int command, size_t *len, int *error);
void job_free(job_t *job);

#endif
