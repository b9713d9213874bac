/* The module's side that Redis sees: load, the event callback, commands,
 * parameters, INFO, server events, and the jobs that the worker hands over.
 *
 * The only file that calls RedisModule_*. Everything here runs on Redis' main
 * thread, except the functions that api.h gives to the worker; those are marked.
 * Who owns what: the main thread owns the parameters and the role, the worker
 * owns everything about events after queue_push. They share the two queues, the
 * list of jobs, the counters and the texts, each without a lock.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "redis_api.h"

#include "api.h"
#include "parameters.h"
#include "python.h"

#define MODULE_NAME "keyspaceamqp"
/* Every key of ours is <prefix>…<suffix>; cluster.py makes the names. */
#define OWN_KEY_PREFIX "keyspaceamqp:{"
#define OWN_KEY_SUFFIX "}:fallback"
/* Classes of events that say why the list is gone: expired, evicted. */
#define OWN_CLASSES "xe"
/* Bounds against a worker that hangs: nobody waits longer for it. */
#define READY_TIMEOUT_MS 30000
#define COMMAND_TIMEOUT_MS 5000
#define STORE_TIMEOUT_MS 2000
#define STOP_TIMEOUT_MS 5000
/* The worker ends in the time it is told; on a machine that starves it, later. */
#define PATIENCE_MS 5000
/* In one long command (a script, say) the worker hears of events this often. */
#define ANNOUNCE_EVERY 1024
#define ERROR_BYTES 1024
/* Our kind of message on the cluster bus. The server tells modules apart by names of
 * nine letters only, so others may use it too: spread.py looks at what it gets. */
#define MESSAGE_TYPE 0xA7
/* What may wait in the worker's queue of requests when a message comes. */
#define MESSAGES_LIMIT ((size_t)64 * 1024 * 1024)
/* The same complaint is logged once in this time. */
#define LOG_EVERY_MS 10000

/* The main thread's. */
static RedisModuleString *values[PARAMETERS_COUNT];
static int wanted_classes, subscribed_classes, own_classes;
static int primary, loading, capturing;
static long long now_ms;
static uint64_t announced;
static int job_running;
static size_t value_bytes; /* of a value go with its event; 0: off */
static int watching_keys;  /* for values that are about to go */
static int flushed;        /* all data, in this turn of the event loop */
static int accepting;      /* the worker runs and was not told to stop */
static pthread_t worker;
static int worker_started;
static uint32_t flush_id;
static int64_t refused_logged;
static long long refused_logged_ms;
static int closed; /* too late for jobs that write: see on_shutdown and OnUnload */
static int wedged; /* a worker never came up, and still has hold of everything */

/* Shared. */
static RedisModuleCtx *log_ctx; /* made at load, for the log only */
static int port;                /* the server's, as of the load */
static int clustered;
static queue_t *events, *requests;
static int wake_fd = -1; /* to the worker */
static int job_fd = -1;  /* to the main thread */
static _Atomic int worker_waits;
static _Atomic int worker_ready; /* 0 not yet, 1 runs, -1 failed */
static _Atomic int worker_exited;
static _Atomic uint32_t flush_done_id;
static _Atomic(job_t *) jobs; /* the newest first */
/* Written by one thread each: the worker, but for the three that count what the main
 * thread sees; of these STATS shows what has come since the last reset. */
static _Atomic int64_t stats[STATS_COUNT];
static _Atomic int64_t seen, refused, unheard;
static _Atomic int64_t seen_before, refused_before, unheard_before;

typedef struct {
    char text[TEXTS_COUNT][256];
} texts_t;
static texts_t *texts_shown;               /* the main thread's */
static _Atomic(texts_t *) texts_delivered; /* from the worker, unless NULL */
static texts_t texts_draft;                /* the worker's */

static void bell(int fd) {
    uint64_t one = 1;
    if (write(fd, &one, sizeof(one)) < 0) { /* full: it is readable, which is enough */
    }
}

static void silence(int fd) {
    uint64_t count;
    if (read(fd, &count, sizeof(count)) < 0) { /* empty already */
    }
}

static long long clock_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static long long clock_ms(void) { return clock_us() / 1000; }

/* Tells Redis' LATENCY what has held the main thread since `began` (microseconds), if it
 * is to watch that. The server compares a module's sample with its threshold, but not
 * whether that is 0, which turns the monitor off; so we ask, where there is something to
 * tell. */
static void add_latency(RedisModuleCtx *ctx, const char *event, long long began) {
    static const char OFF[] = "$1\r\n0\r\n";
    long long ms = (clock_us() - began) / 1000;
    if (ms == 0) return;
    RedisModuleCallReply *reply =
        RedisModule_Call(ctx, "CONFIG", "cc", "GET", "latency-monitor-threshold");
    if (reply == NULL) return;
    size_t len;
    const char *proto = RedisModule_CallReplyProto(reply, &len);
    size_t off_len = sizeof(OFF) - 1;
    if (proto[0] != '-' && len > off_len && memcmp(proto + len - off_len, OFF, off_len) != 0)
        RedisModule_LatencyAddSample(event, ms);
    RedisModule_FreeCallReply(reply);
}

static int is_word(RedisModuleString *argument, const char *word) {
    size_t len;
    const char *text = RedisModule_StringPtrLen(argument, &len);
    return len == strlen(word) && strncasecmp(text, word, len) == 0;
}

/* ---- to the worker -------------------------------------------------------- */

/* Wakes the worker if it waits. */
static void announce(void) {
    announced = queue_pushed(events) + queue_pushed(requests);
    /* With its twin in shim_before_wait: one of the two threads sees the other. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_exchange(&worker_waits, 0)) bell(wake_fd);
}

/* Sends a request. The payload is copied. */
static void request(uint8_t kind, const char *payload, size_t len) {
    record_t head = {.kind = kind, .payload_len = (uint32_t)len, .time_ms = (uint64_t)now_ms};
    queue_push(requests, &head, NULL, payload);
    announce();
}

/* A request's payload while it is put together. */
typedef struct {
    char *data;
    size_t len, capacity;
} buffer_t;

static void buffer_add(buffer_t *buffer, const void *data, size_t len) {
    if (buffer->len + len > buffer->capacity) {
        buffer->capacity = (buffer->len + len) * 2;
        buffer->data = realloc(buffer->data, buffer->capacity);
        if (buffer->data == NULL) abort();
    }
    if (len) memcpy(buffer->data + buffer->len, data, len);
    buffer->len += len;
}

/* Adds a text with its length before it. */
static void buffer_add_text(buffer_t *buffer, const void *data, size_t len) {
    uint32_t len32 = (uint32_t)len;
    buffer_add(buffer, &len32, sizeof(len32));
    buffer_add(buffer, data, len);
}

static void buffer_add_counted(buffer_t *buffer, RedisModuleString *string) {
    size_t len;
    const char *data = RedisModule_StringPtrLen(string, &len);
    buffer_add_text(buffer, data, len);
}

/* Sends a request whose payload is two counted texts. */
static void request_texts(uint8_t kind, const void *first, size_t first_len, const void *second,
                          size_t second_len) {
    buffer_t buffer = {0};
    buffer_add_text(&buffer, first, first_len);
    buffer_add_text(&buffer, second, second_len);
    request(kind, buffer.data, buffer.len);
    free(buffer.data);
}

/* Somebody else did this to a list of ours; to any of them if `key` is empty. */
static void send_touched(const char *what, const char *key, size_t len) {
    request_texts(RECORD_TOUCHED, what, strlen(what), key, len);
}

/* Sends all parameters. With them goes how many events came before, so that
 * masks apply to what is emitted from here on. */
static void send_config(void) {
    buffer_t buffer = {0};
    uint64_t pushed = queue_pushed(events);
    buffer_add(&buffer, &pushed, sizeof(pushed));
    for (int i = 0; i < PARAMETERS_COUNT; i++)
        buffer_add_counted(&buffer, values[i]);
    request(RECORD_CONFIG, buffer.data, buffer.len);
    free(buffer.data);
}

static void send_role(void) {
    capturing = primary && !loading;
    /* A primary that has agreed to be demoted has paused writes before. */
    char payload[3] = {(char)primary, (char)loading, (char)RedisModule_AvoidReplicaTraffic()};
    if (accepting) request(RECORD_ROLE, payload, sizeof(payload));
}

/* ---- jobs: what the worker asks of the main thread ------------------------ */

typedef struct command {
    struct command *next;
    enum { CALL, SET_PARAMETERS, LENGTHS, MESSAGE } kind;
    char *name;
    int write;
    RedisModuleString **argv;
    size_t argc;
    char *expected;
    size_t expected_len;
    size_t most; /* bytes of an LRANGE's reply; 0: all that it has */
    char *reply;
    size_t reply_len;
    int error;
} command_t;

struct job {
    struct job *next;
    command_t *first, *last;
    _Atomic int done;
};

/* Worker thread, all of the following until job_free. The worker makes the
 * strings, so that the main thread has only the command itself to do. */
job_t *job_new(void) {
    job_t *job = calloc(1, sizeof(*job));
    if (job == NULL) abort();
    return job;
}

static command_t *job_add(job_t *job, int kind) {
    command_t *command = calloc(1, sizeof(*command));
    if (command == NULL) abort();
    command->kind = kind;
    if (job->last != NULL)
        job->last->next = command;
    else
        job->first = command;
    job->last = command;
    return command;
}

void job_command(job_t *job, const char *name, int write_command) {
    command_t *command = job_add(job, CALL);
    command->name = strdup(name);
    command->write = write_command;
}

void job_parameters(job_t *job) { job_add(job, SET_PARAMETERS); }
void job_lengths(job_t *job) { job_add(job, LENGTHS); }
void job_message(job_t *job) { job_add(job, MESSAGE); }

void job_arguments(job_t *job, const char *arguments, const size_t *lengths, size_t count) {
    command_t *command = job->last;
    command->argv = calloc(count, sizeof(*command->argv));
    if (command->argv == NULL && count > 0) abort();
    for (; command->argc < count; command->argc++) {
        size_t len = lengths[command->argc];
        command->argv[command->argc] = RedisModule_CreateString(NULL, arguments, len);
        arguments += len;
    }
}

void job_expect(job_t *job, const char *reply, size_t len) {
    command_t *command = job->last;
    command->expected = malloc(len + 1);
    if (command->expected == NULL) abort();
    memcpy(command->expected, reply, len);
    command->expected_len = len;
}

void job_most(job_t *job, size_t bytes) { job->last->most = bytes; }

void job_submit(job_t *job) {
    job->next = atomic_load(&jobs);
    while (!atomic_compare_exchange_weak(&jobs, &job->next, job)) {
    }
    bell(job_fd);
}

int job_done(const job_t *job) { return atomic_load_explicit(&job->done, memory_order_acquire); }

const char *job_reply(const job_t *job, int number, size_t *len, int *error) {
    command_t *command = job->first;
    while (number-- > 0 && command != NULL)
        command = command->next;
    if (command == NULL) return NULL;
    *len = command->reply_len;
    *error = command->error;
    return command->reply;
}

void job_free(job_t *job) {
    for (command_t *command = job->first, *next; command != NULL; command = next) {
        next = command->next;
        for (size_t i = 0; i < command->argc; i++)
            RedisModule_FreeString(NULL, command->argv[i]);
        free(command->argv);
        free(command->name);
        free(command->expected);
        free(command->reply);
        free(command);
    }
    free(job);
}

static int set_parameters(RedisModuleCtx *ctx, RedisModuleString **argv, int argc, char *error,
                          size_t capacity);

/* Keeps a copy of a command's reply. */
static void command_set_reply(command_t *command, const char *reply, size_t len) {
    command->reply = malloc(len + 1);
    if (command->reply == NULL) abort();
    memcpy(command->reply, reply, len);
    command->reply_len = len;
}

/* LRANGE with a bound on bytes: only who reads the elements knows how large they
 * are, and all at once they may be gigabytes. */
static void command_read(RedisModuleCtx *ctx, command_t *command) {
    enum { HEAD_LEN = 13 };
    buffer_t buffer = {0};
    long long at, stop;
    int count = 0;
    char head[HEAD_LEN + 8]; /* ten digits, whatever a compiler may fear */
    buffer_add(&buffer, "*0000000000\r\n", HEAD_LEN);
    RedisModule_StringToLongLong(command->argv[1], &at);
    RedisModule_StringToLongLong(command->argv[2], &stop);
    RedisModuleKey *key = RedisModule_OpenKey(ctx, command->argv[0], REDISMODULE_READ);
    if (RedisModule_KeyType(key) == REDISMODULE_KEYTYPE_LIST) {
        RedisModuleString *element;
        while (at <= stop && buffer.len < command->most &&
               (element = RedisModule_ListGet(key, at++)) != NULL) {
            size_t len;
            const char *data = RedisModule_StringPtrLen(element, &len);
            char bulk[32];
            buffer_add(&buffer, bulk, (size_t)snprintf(bulk, sizeof(bulk), "$%zu\r\n", len));
            buffer_add(&buffer, data, len);
            buffer_add(&buffer, "\r\n", 2);
            RedisModule_FreeString(NULL, element);
            count++;
        }
    }
    RedisModule_CloseKey(key);
    snprintf(head, sizeof(head), "*%010d\r\n", count);
    memcpy(buffer.data, head, HEAD_LEN);
    command->reply = buffer.data;
    command->reply_len = buffer.len;
}

/* No command of Redis: that one would ask for the slot, and these lists are looked for
 * in slots that come and go. */
static void command_lengths(RedisModuleCtx *ctx, command_t *command) {
    buffer_t buffer = {0};
    char text[32];
    buffer_add(&buffer, text, (size_t)snprintf(text, sizeof(text), "*%zu\r\n", command->argc));
    for (size_t i = 0; i < command->argc; i++) {
        RedisModuleKey *key =
            RedisModule_OpenKey(ctx, command->argv[i],
                                REDISMODULE_READ | REDISMODULE_OPEN_KEY_NOTOUCH |
                                    REDISMODULE_OPEN_KEY_NONOTIFY | REDISMODULE_OPEN_KEY_NOSTATS);
        size_t length =
            RedisModule_KeyType(key) == REDISMODULE_KEYTYPE_LIST ? RedisModule_ValueLength(key) : 0;
        RedisModule_CloseKey(key);
        buffer_add(&buffer, text, (size_t)snprintf(text, sizeof(text), ":%zu\r\n", length));
    }
    command->reply = buffer.data;
    command->reply_len = buffer.len;
}

/* The id goes as a text that ends with NUL; Redis 7.0 takes its length from there. */
static void command_message(RedisModuleCtx *ctx, command_t *command) {
    size_t target_len, len;
    const char *target = RedisModule_StringPtrLen(command->argv[0], &target_len);
    const char *text = RedisModule_StringPtrLen(command->argv[1], &len);
    int result = RedisModule_SendClusterMessage(ctx, target_len ? target : NULL, MESSAGE_TYPE, text,
                                                (uint32_t)len);
    const char *answer = result == REDISMODULE_OK ? "+OK\r\n" : "-ERR not connected\r\n";
    command_set_reply(command, answer, strlen(answer));
}

/* Runs one command of a job. Its strings are freed here and not by the worker:
 * Redis may hold them until it has replicated the command, and counts
 * references without atomics. Returns 0 if the job may go on. */
static int command_run(RedisModuleCtx *ctx, command_t *command) {
    RedisModuleCallReply *reply = NULL;
    if (command->kind == LENGTHS) {
        command_lengths(ctx, command);
    } else if (command->kind == MESSAGE) {
        command_message(ctx, command);
    } else if (command->kind == SET_PARAMETERS) {
        char text[ERROR_BYTES] = "-";
        int failed =
            set_parameters(ctx, command->argv, (int)command->argc, text + 1, sizeof(text) - 3);
        const char *answer = failed ? strcat(text, "\r\n") : "+OK\r\n";
        command_set_reply(command, answer, strlen(answer));
    } else if (command->write && !capturing) {
        command->error = EROFS;
    } else if (command->write && closed) {
        command->error = ESHUTDOWN;
    } else if (command->write && RedisModule_AvoidReplicaTraffic()) {
        command->error = EBUSY; /* paused: Redis asserts that nothing is replicated now */
    } else if (command->most != 0) {
        command_read(ctx, command);
    } else {
        errno = 0;
        reply = RedisModule_Call(ctx, command->name, command->write ? "!Ev" : "Ev", command->argv,
                                 command->argc);
        command->error = errno; /* means something if there is no reply, or an error */
    }
    if (reply != NULL) {
        size_t len;
        const char *proto = RedisModule_CallReplyProto(reply, &len);
        command_set_reply(command, proto, len);
        RedisModule_FreeCallReply(reply);
    }
    for (size_t i = 0; i < command->argc; i++)
        RedisModule_FreeString(NULL, command->argv[i]);
    command->argc = 0;
    if (command->reply == NULL || command->reply[0] == '-') return -1;
    if (command->expected == NULL) return 0;
    return command->expected_len == command->reply_len &&
                   memcmp(command->expected, command->reply, command->reply_len) == 0
               ? 0
               : -1;
}

/* Runs what the worker has submitted, oldest first. Needs a context that Redis
 * made for a callback: what a job writes is replicated when that context ends.
 * (A one-shot callback of the event loop has none, and on Redis 7.0 its writes
 * stay unreplicated until some client's next command.) */
static void jobs_run(RedisModuleCtx *ctx) {
    job_t *newest = atomic_exchange(&jobs, NULL), *oldest = NULL;
    while (newest != NULL) {
        job_t *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    RedisModule_SelectDb(ctx, 0);
    job_running = 1;
    long long began = clock_us();
    while (oldest != NULL) {
        job_t *next = oldest->next; /* the worker may free the job once it is done */
        for (command_t *command = oldest->first; command != NULL; command = command->next)
            if (command_run(ctx, command) != 0) break;
        atomic_store_explicit(&oldest->done, 1, memory_order_release);
        oldest = next;
    }
    job_running = 0;
    bell(wake_fd);
    add_latency(ctx, MODULE_NAME "-job", began);
}

/* Event loop callback of job_fd: having woken the loop is all it has to do. The
 * jobs run in on_event_loop, before Redis sleeps again. */
static void on_job_fd(int fd, void *data, int mask) {
    (void)data;
    (void)mask;
    silence(fd);
}

/* Waits until the worker has dealt with all that was captured, for which it has
 * `ms`, and runs its jobs meanwhile: it may well wait for one. Returns 1 if done. */
static int flush_worker(RedisModuleCtx *ctx, int mode, int ms) {
    if (!accepting || job_running) return 1;
    struct {
        uint32_t id, ms;
        uint8_t mode;
    } payload = {++flush_id, (uint32_t)ms, (uint8_t)mode};
    request(RECORD_FLUSH, (const char *)&payload, sizeof(payload));
    bell(wake_fd);
    long long deadline = clock_ms() + ms + PATIENCE_MS;
    for (;;) {
        if (atomic_load(&jobs) != NULL) jobs_run(ctx);
        if (mode != FLUSH_STORE ? atomic_load(&worker_exited)
                                : atomic_load(&flush_done_id) == flush_id)
            return 1;
        long long left = deadline - clock_ms();
        if (left <= 0) return 0;
        struct pollfd poll_fd = {.fd = job_fd, .events = POLLIN};
        poll(&poll_fd, 1, (int)left);
        silence(job_fd);
    }
}

/* ---- keys ------------------------------------------------------------------ */

static int is_own_key(const char *key, size_t len) {
    const size_t prefix = sizeof(OWN_KEY_PREFIX) - 1, suffix = sizeof(OWN_KEY_SUFFIX) - 1;
    return len >= prefix + suffix && memcmp(key, OWN_KEY_PREFIX, prefix) == 0 &&
           memcmp(key + len - suffix, OWN_KEY_SUFFIX, suffix) == 0;
}

/* The main thread's: one writer, so no atomic addition. */
static void count(_Atomic int64_t *counter) {
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

/* ---- values: only if they were asked for ---------------------------------- */

/* Buffers that are larger are not kept. */
#define LARGE_BUFFER ((size_t)4 * 1024 * 1024)

/* What a key held that has just been deleted, expired or evicted (Redis 7.2 and later
 * say so before they do it, and send the event afterwards); payload.len 0: none. */
static struct {
    int db;
    size_t key_len;
    buffer_t payload; /* of a RECORD_VALUED: the key is behind its head */
} gone;

/* Events after which there is no key; to look for it would count as a miss. */
static int is_end(const char *event) {
    static const char *const ENDS[] = {"del", "expired", "evicted", "rename_from", "move_from"};
    for (size_t i = 0; i < sizeof(ENDS) / sizeof(ENDS[0]); i++)
        if (strcmp(event, ENDS[i]) == 0) return 1;
    return 0;
}

static valued_t value_head(RedisModuleKey *open, size_t key_len, int before) {
    return (valued_t){.length = RedisModule_ValueLength(open),
                      .key_len = (uint32_t)key_len,
                      .type = (uint8_t)RedisModule_KeyType(open),
                      .before = (uint8_t)before};
}

/* Writes the payload of a RECORD_VALUED over what was in the buffer. */
static void value_write(buffer_t *payload, valued_t head, const char *key, const char *data,
                        size_t data_len) {
    head.has_data = data != NULL;
    if (payload->capacity > LARGE_BUFFER) { /* of a key of megabytes, once */
        free(payload->data);
        *payload = (buffer_t){0};
    }
    payload->len = 0;
    buffer_add(payload, &head, sizeof(head));
    buffer_add(payload, key, head.key_len);
    buffer_add(payload, data, data_len);
}

/* A key is about to go. */
static void on_key(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent, void *data) {
    static const char *const CLASSES[] = {"g", "gx", "e"}; /* deleted, expired, evicted */
    (void)event;
    if (!capturing || !value_bytes || subevent > REDISMODULE_SUBEVENT_KEY_EVICTED) return;
    if (!(parameters_classes(CLASSES[subevent], strlen(CLASSES[subevent])) & wanted_classes))
        return;
    RedisModuleKey *open = ((RedisModuleKeyInfo *)data)->key;
    size_t len, size = 0;
    const char *key = RedisModule_StringPtrLen(RedisModule_GetKeyNameFromModuleKey(open), &len);
    if (is_own_key(key, len)) return;
    const char *bytes = NULL;
    /* This may decode the string in its place; but it goes anyway. */
    if (RedisModule_KeyType(open) == REDISMODULE_KEYTYPE_STRING)
        bytes = RedisModule_StringDMA(open, &size, REDISMODULE_READ);
    value_write(&gone.payload, value_head(open, len, 1), key, bytes,
                size < value_bytes ? size : value_bytes);
    gone.db = RedisModule_GetSelectedDb(ctx);
    gone.key_len = len;
}

/* What goes with the event, or NULL: what the key holds now, or what it held. */
static buffer_t *value_of(RedisModuleCtx *ctx, const char *event, RedisModuleString *key,
                          const char *name, size_t len) {
    static buffer_t now;
    buffer_t *found = NULL;
    if (is_end(event)) {
        if (gone.payload.len && gone.db == RedisModule_GetSelectedDb(ctx) && gone.key_len == len &&
            memcmp(gone.payload.data + sizeof(valued_t), name, len) == 0)
            found = &gone.payload;
        return found;
    }
    /* Redis 7.0 would delete a key whose time is over (SET … PXAT 1) when we look at it, tell
     * nobody of that, and replicate the deletion before the command. */
    if (RedisModule_GetOpenKeyModesAll == NULL && strcmp(event, "expire") == 0) return NULL;
    capturing = 0; /* what Redis says of our own look is no event */
    RedisModuleKey *open =
        RedisModule_OpenKey(ctx, key,
                            REDISMODULE_READ | REDISMODULE_OPEN_KEY_NOTOUCH |
                                REDISMODULE_OPEN_KEY_NONOTIFY | REDISMODULE_OPEN_KEY_NOSTATS |
                                REDISMODULE_OPEN_KEY_NOEXPIRE | REDISMODULE_OPEN_KEY_NOEFFECTS);
    if (open != NULL) {
        valued_t head = value_head(open, len, 0);
        /* Before anything else happens: it must not outlive the key. */
        RedisModule_CloseKey(open);
        RedisModuleCallReply *reply = NULL;
        const char *bytes = NULL;
        size_t size = 0;
        /* Not StringDMA: it would turn short strings and numbers into longer objects. */
        if (head.type == REDISMODULE_KEYTYPE_STRING)
            reply = RedisModule_Call(ctx, "GETRANGE", "sll", key, 0LL, (long long)value_bytes - 1);
        if (reply != NULL) bytes = RedisModule_CallReplyStringPtr(reply, &size);
        value_write(&now, head, name, bytes, bytes ? size : 0);
        if (reply != NULL) RedisModule_FreeCallReply(reply);
        found = &now;
    }
    capturing = 1;
    return found;
}

/* Sends an event with a value, if there is one. 0, or -1 if the queue is full. */
static int push_valued(RedisModuleCtx *ctx, const record_t *head, const char *event,
                       RedisModuleString *key, const char *name, size_t len) {
    buffer_t *payload = value_of(ctx, event, key, name, len);
    if (payload != NULL) {
        record_t valued = *head;
        valued.kind = RECORD_VALUED;
        valued.payload_len = (uint32_t)payload->len;
        int full = queue_push(events, &valued, event, payload->data);
        gone.payload.len = 0;
        if (!full) return 0;
    }
    return queue_push(events, head, event, name); /* rather without its value than not at all */
}

/* Takes the parameter over. */
static void watch_values(RedisModuleCtx *ctx) {
    RedisModuleEvent event = {REDISMODULE_EVENT_KEY, 1};
    const char *bytes = RedisModule_StringPtrLen(values[PARAMETER_INDEX_VALUE], NULL);
    const char *format = RedisModule_StringPtrLen(values[PARAMETER_INDEX_FORMAT], NULL);
    /* The form `text` has no place for it. */
    value_bytes = strcmp(format, "text") == 0 ? 0 : strtoul(bytes, NULL, 10);
    /* For good: this may run in a callback of another server event, and the server's list of
     * subscribers does not bear that one goes meanwhile. */
    if (value_bytes > 0 && !watching_keys) RedisModule_SubscribeToServerEvent(ctx, event, on_key);
    watching_keys = watching_keys || value_bytes > 0;
}

/* ---- the event callback ---------------------------------------------------- */

/* A key has changed: copy, and return (rule 1). */
static int on_event(RedisModuleCtx *ctx, int type, const char *event, RedisModuleString *key) {
    if (!capturing) return REDISMODULE_OK;
    size_t len;
    const char *name = RedisModule_StringPtrLen(key, &len);
    if (is_own_key(name, len)) {
        /* A job of ours may be what finds that the list has expired. */
        if (!job_running || (type & own_classes)) send_touched(event, name, len);
        return REDISMODULE_OK;
    }
    if (!(type & wanted_classes)) return REDISMODULE_OK;
    record_t head = {.payload_len = (uint32_t)len,
                     .time_ms = (uint64_t)now_ms,
                     .db = RedisModule_GetSelectedDb(ctx),
                     .name_len = (uint16_t)strnlen(event, UINT16_MAX),
                     .kind = RECORD_EVENT,
                     .class_bit = (uint8_t)__builtin_ctz((unsigned)(type & wanted_classes))};
    count(&seen);
    int full = value_bytes ? push_valued(ctx, &head, event, key, name, len)
                           : queue_push(events, &head, event, name);
    if (full) count(&refused);
    if (queue_pushed(events) % ANNOUNCE_EVERY == 0) announce();
    return REDISMODULE_OK;
}

/* Subscribes to those of `classes`, and of those that our list needs, that are
 * not subscribed to yet. Redis cannot unsubscribe a module from a class before
 * unload; on_event filters the rest. */
static void subscribe(RedisModuleCtx *ctx, int classes) {
    own_classes = parameters_classes(OWN_CLASSES, strlen(OWN_CLASSES));
    int missing = (classes | own_classes) & ~subscribed_classes;
    if (missing) RedisModule_SubscribeToKeyspaceEvents(ctx, missing, on_event);
    subscribed_classes |= missing;
    wanted_classes = classes;
}

/* ---- server events -------------------------------------------------------- */

/* Logs how many events have found the queue full since the last time. */
static void log_refused(RedisModuleCtx *ctx) {
    int64_t lost = atomic_load_explicit(&refused, memory_order_relaxed);
    if (lost <= refused_logged) return;
    RedisModule_Log(ctx, "warning", "%lld events lost: the queue in memory was full",
                    (long long)(lost - refused_logged));
    refused_logged = lost;
    refused_logged_ms = now_ms;
}

/* Twice in each turn of the event loop. */
static void on_event_loop(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent,
                          void *data) {
    (void)event;
    (void)data;
    if (subevent == REDISMODULE_SUBEVENT_EVENTLOOP_AFTER_SLEEP) {
        now_ms = RedisModule_Milliseconds();
        return;
    }
    flushed = 0;
    if (queue_pushed(events) + queue_pushed(requests) != announced) announce();
    if (atomic_load_explicit(&jobs, memory_order_relaxed) != NULL) jobs_run(ctx);
    if (now_ms >= refused_logged_ms + LOG_EVERY_MS) log_refused(ctx);
}

static void on_role_changed(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent,
                            void *data) {
    (void)ctx;
    (void)event;
    (void)data;
    primary = subevent == REDISMODULE_SUBEVENT_NOW_MASTER;
    send_role();
}

/* Loading replays history: nothing of it is captured (rule 14). */
static void on_loading(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent, void *data) {
    (void)ctx;
    (void)event;
    (void)data;
    loading = subevent != REDISMODULE_SUBEVENT_LOADING_ENDED &&
              subevent != REDISMODULE_SUBEVENT_LOADING_FAILED;
    send_role();
}

/* A save on the main thread is about to start, the last one of a shutdown among
 * them: what is in memory gets into the list, and so into the file. With an
 * append-only file this is not the file that a restart reads, and at a shutdown
 * that one is closed by now: on_shutdown has another place for the rest; as it has
 * when writes are paused, which they are while Redis waits for its replicas. */
static void on_persistence(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent,
                           void *data) {
    (void)event;
    (void)data;
    /* The save of a FLUSHALL may be within a transaction on keys of one slot, and servers
     * with a table per slot would put our list into that one's. */
    if (subevent != REDISMODULE_SUBEVENT_PERSISTENCE_SYNC_RDB_START || !capturing ||
        (clustered && flushed) || (RedisModule_GetContextFlags(ctx) & REDISMODULE_CTX_FLAGS_AOF) ||
        RedisModule_AvoidReplicaTraffic())
        return;
    long long began = clock_us();
    if (!flush_worker(ctx, FLUSH_STORE, STORE_TIMEOUT_MS))
        RedisModule_Log(ctx, "warning",
                        "the save starts with events still in memory: the handler did not store "
                        "them within %d ms",
                        STORE_TIMEOUT_MS + PATIENCE_MS);
    add_latency(ctx, MODULE_NAME "-save", began);
}

static void on_flush_db(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent,
                        void *data) {
    (void)ctx;
    (void)event;
    RedisModuleFlushInfo *info = data;
    flushed = 1;
    if (subevent == REDISMODULE_SUBEVENT_FLUSHDB_END && capturing && info->dbnum <= 0)
        send_touched("flushdb", "", 0);
}

static void on_swap_db(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent, void *data) {
    (void)ctx;
    (void)event;
    (void)subevent;
    RedisModuleSwapDbInfo *info = data;
    if (capturing && (info->dbnum_first == 0 || info->dbnum_second == 0))
        send_touched("swapdb", "", 0);
}

static void on_shutdown(RedisModuleCtx *ctx, RedisModuleEvent event, uint64_t subevent,
                        void *data) {
    (void)event;
    (void)subevent;
    (void)data;
    /* Redis has written all its files before this event. */
    closed = (RedisModule_GetContextFlags(ctx) &
              (REDISMODULE_CTX_FLAGS_AOF | REDISMODULE_CTX_FLAGS_RDB)) != 0;
    if (!flush_worker(ctx, closed ? FLUSH_LEAVE : FLUSH_DRAIN, STOP_TIMEOUT_MS))
        RedisModule_Log(ctx, "warning", "the handler did not stop within %d ms",
                        STOP_TIMEOUT_MS + PATIENCE_MS);
    accepting = capturing = 0;
    log_refused(ctx);
}

/* A message of another node. The context belongs to the module as it was when it was
 * first loaded, which may be gone: Redis keeps a receiver for good (to take one back
 * leaves a dangling pointer in its list of them). So nothing is done with the context. */
static void on_message(RedisModuleCtx *ctx, const char *sender, uint8_t type,
                       const unsigned char *text, uint32_t len) {
    (void)ctx;
    (void)type;
    if (!accepting) return;
    if (queue_bytes(requests) + len > MESSAGES_LIMIT)
        count(&unheard);
    else
        request_texts(RECORD_MESSAGE, sender, REDISMODULE_NODE_ID_LEN, text, len);
}

/* ---- parameters ----------------------------------------------------------- */

/* The parameter of this name, or -1. */
static int parameter_index(RedisModuleString *name) {
    for (int i = 0; i < PARAMETERS_COUNT; i++)
        if (is_word(name, PARAMETERS[i].name)) return i;
    return -1;
}

static int check_value(int index, RedisModuleString *value, char *error, size_t capacity) {
    size_t len;
    const char *bytes = RedisModule_StringPtrLen(value, &len);
    return parameters_check(index, bytes, len, RedisModule_GetKeyspaceNotificationFlagsAll(), error,
                            capacity);
}

static void keep_value(int index, RedisModuleString *value) {
    size_t len;
    const char *bytes = RedisModule_StringPtrLen(value, &len);
    RedisModuleString *old = values[index];
    values[index] = RedisModule_CreateString(NULL, bytes, len);
    if (old != NULL) RedisModule_FreeString(NULL, old);
}

static RedisModuleString *config_get(const char *name, void *data) {
    (void)name;
    return values[(intptr_t)data];
}

static int config_set(const char *name, RedisModuleString *value, void *data,
                      RedisModuleString **error) {
    (void)name;
    char message[ERROR_BYTES];
    if (check_value((int)(intptr_t)data, value, message, sizeof(message)) != 0) {
        *error = RedisModule_CreateString(NULL, message, strlen(message));
        return REDISMODULE_ERR;
    }
    keep_value((int)(intptr_t)data, value);
    return REDISMODULE_OK;
}

static void set_limit(void) {
    const char *limit = RedisModule_StringPtrLen(values[PARAMETER_INDEX_QUEUE_LIMIT], NULL);
    queue_set_limit(events, (size_t)strtoull(limit, NULL, 10));
}

/* After a CONFIG SET, all of its values being set. */
static int config_apply(RedisModuleCtx *ctx, void *data, RedisModuleString **error) {
    (void)data;
    (void)error;
    size_t len;
    const char *classes = RedisModule_StringPtrLen(values[PARAMETER_INDEX_EVENTS], &len);
    subscribe(ctx, parameters_classes(classes, len));
    watch_values(ctx);
    set_limit();
    send_config();
    return REDISMODULE_OK;
}

/* Sets parameters for the worker: argv has names and values. All or none; the
 * message of the first that is refused is in `error` then. */
static int set_parameters(RedisModuleCtx *ctx, RedisModuleString **argv, int argc, char *error,
                          size_t capacity) {
    for (int set = 0; set <= 1; set++) {
        for (int i = 0; i + 1 < argc; i += 2) {
            int index = parameter_index(argv[i]); /* the worker knows them */
            if (set)
                keep_value(index, argv[i + 1]);
            else if (check_value(index, argv[i + 1], error, capacity) != 0)
                return -1;
        }
    }
    config_apply(ctx, NULL, NULL);
    return 0;
}

/* Registers the parameters. Positional arguments become the defaults: so a
 * named value wins, and CONFIG REWRITE leaves out what the arguments say. */
static int register_parameters(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    int classes = RedisModule_GetKeyspaceNotificationFlagsAll();
    char message[ERROR_BYTES];
    size_t capacity = 16, used = 0, len;
    for (int i = PARAMETER_INDEX_MASKS; i < argc; i++) {
        RedisModule_StringPtrLen(argv[i], &len);
        capacity += len * 4 + 2;
    }
    char *masks = malloc(capacity);
    if (masks == NULL) abort();
    for (int i = 0; i < argc; i++) {
        const char *value = RedisModule_StringPtrLen(argv[i], &len);
        int failed;
        if (i < PARAMETER_INDEX_MASKS) {
            failed = parameters_check(i, value, len, classes, message, sizeof(message));
        } else {
            failed = len == 0 || (len == 1 && value[0] == '!');
            snprintf(message, sizeof(message), "masks: '%s' is not accepted; give %s",
                     failed ? value : "",
                     len == 0 ? "ALL for every key" : "!^tmp: to exclude ^tmp:, say");
            if (!failed) used = parameters_append_mask(masks, used, capacity, value, len);
        }
        if (failed) {
            RedisModule_Log(ctx, "warning", "argument %d, %s", i + 1, message);
            free(masks);
            return REDISMODULE_ERR;
        }
    }
    if (parameters_check(PARAMETER_INDEX_MASKS, masks, used, classes, message, sizeof(message)) !=
        0) {
        RedisModule_Log(ctx, "warning", "argument %d and later, %s", PARAMETER_INDEX_MASKS + 1,
                        message);
        free(masks);
        return REDISMODULE_ERR;
    }
    int result = REDISMODULE_OK;
    for (intptr_t i = 0; i < PARAMETERS_COUNT && result == REDISMODULE_OK; i++) {
        const char *value = PARAMETERS[i].default_value;
        if (i < argc && i < PARAMETER_INDEX_MASKS) value = RedisModule_StringPtrLen(argv[i], NULL);
        if (i == PARAMETER_INDEX_MASKS && used > 0) value = masks;
        result = RedisModule_RegisterStringConfig(
            ctx, PARAMETERS[i].name, value,
            PARAMETERS[i].sensitive ? REDISMODULE_CONFIG_SENSITIVE : REDISMODULE_CONFIG_DEFAULT,
            config_get, config_set, config_apply, (void *)i);
    }
    free(masks);
    return result == REDISMODULE_OK ? RedisModule_LoadConfigs(ctx) : result;
}

/* ---- STATS and INFO: never ask the worker --------------------------------- */

static int64_t since_reset(_Atomic int64_t *counter, _Atomic int64_t *before) {
    return atomic_load_explicit(counter, memory_order_relaxed) -
           atomic_load_explicit(before, memory_order_relaxed);
}

/* Any thread. The numbers to show: the worker's, and what only this side knows. */
static void collect_stats(int64_t *out) {
    for (int i = 0; i < STATS_COUNT; i++)
        out[i] = atomic_load_explicit(&stats[i], memory_order_relaxed);
    int64_t lost = since_reset(&refused, &refused_before);
    out[STAT_EVENTS_SEEN] = since_reset(&seen, &seen_before);
    out[STAT_MESSAGES_REJECTED] += since_reset(&unheard, &unheard_before);
    /* An event that found the queue full met no mask; it counts as matched, so
     * that the books balance. */
    out[STAT_EVENTS_MATCHED] += lost;
    out[STAT_DROPPED_QUEUE_FULL] += lost;
    out[STAT_QUEUE_LENGTH] += (int64_t)queue_length(events);
    out[STAT_QUEUE_BYTES] += (int64_t)queue_bytes(events);
    out[STAT_DROPPED] = 0;
    for (int i = STAT_FIRST_REASON; i < STATS_COUNT; i++)
        out[STAT_DROPPED] += out[i];
}

/* The newest texts that the worker has sent. Two pointers are exchanged, so
 * neither side ever waits for the other. */
static const texts_t *current_texts(void) {
    texts_t *newest = atomic_exchange(&texts_delivered, NULL);
    if (newest != NULL) {
        free(texts_shown);
        texts_shown = newest;
    }
    return texts_shown;
}

static void reply_stats(RedisModuleCtx *ctx) {
    int64_t numbers[STATS_COUNT];
    collect_stats(numbers);
    const texts_t *texts = current_texts();
    RedisModule_ReplyWithMap(ctx, TEXTS_COUNT + STATS_COUNT);
    for (int i = 0; i < TEXTS_COUNT; i++) {
        RedisModule_ReplyWithStringBuffer(ctx, TEXT_NAMES[i], strlen(TEXT_NAMES[i]));
        RedisModule_ReplyWithStringBuffer(ctx, texts->text[i], strlen(texts->text[i]));
    }
    for (int i = 0; i < STATS_COUNT; i++) {
        RedisModule_ReplyWithStringBuffer(ctx, STAT_NAMES[i], strlen(STAT_NAMES[i]));
        RedisModule_ReplyWithLongLong(ctx, numbers[i]);
    }
}

static void on_info(RedisModuleInfoCtx *ctx, int for_crash_report) {
    if (for_crash_report) return; /* touch nothing in a process that is going down */
    int64_t numbers[STATS_COUNT];
    collect_stats(numbers);
    const texts_t *texts = current_texts();
    RedisModule_InfoAddSection(ctx, "");
    RedisModule_InfoAddFieldCString(ctx, "version", MODULE_VERSION);
    RedisModule_InfoAddFieldCString(ctx, "python", python_version());
    for (int i = 0; i < TEXTS_COUNT; i++)
        RedisModule_InfoAddFieldCString(ctx, TEXT_NAMES[i], texts->text[i]);
    for (int i = 0; i < STATS_COUNT; i++)
        RedisModule_InfoAddFieldLongLong(ctx, STAT_NAMES[i], numbers[i]);
}

/* ---- commands ------------------------------------------------------------- */

/* Plays the reply that the worker has written; commands.py has its form. */
static void play_reply(RedisModuleCtx *ctx, const char *reply, size_t len) {
    size_t at = 0;
    while (at < len) {
        char tag = reply[at];
        int64_t number;
        memcpy(&number, reply + at + 1, sizeof(number));
        at += 1 + sizeof(number);
        switch (tag) {
        case ':':
            RedisModule_ReplyWithLongLong(ctx, number);
            break;
        case '*':
            RedisModule_ReplyWithArray(ctx, (long)number);
            break;
        case '%':
            RedisModule_ReplyWithMap(ctx, (long)number);
            break;
        case '_':
            RedisModule_ReplyWithNull(ctx);
            break;
        default: /* texts: `number` bytes and a NUL follow */
            if (tag == '+') RedisModule_ReplyWithSimpleString(ctx, reply + at);
            if (tag == '-') RedisModule_ReplyWithError(ctx, reply + at);
            if (tag == '$') RedisModule_ReplyWithStringBuffer(ctx, reply + at, (size_t)number);
            at += (size_t)number + 1;
        }
    }
}

typedef struct {
    size_t len;
    char data[];
} reply_t;

static int on_reply(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    (void)argv;
    (void)argc;
    reply_t *reply = RedisModule_GetBlockedClientPrivateData(ctx);
    play_reply(ctx, reply->data, reply->len);
    return REDISMODULE_OK;
}

static int on_reply_timeout(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    (void)argv;
    (void)argc;
    return RedisModule_ReplyWithError(
        ctx, "ERR the handler did not answer in time and may still carry the command out; "
             "KEYSPACEAMQP.STATS shows its state");
}

static void free_reply(RedisModuleCtx *ctx, void *reply) {
    (void)ctx;
    free(reply);
}

/* Keeps secrets out of the slow log (rule 20); MONITOR does not show commands
 * with the admin flag. What stands where a parameter's name should stand may be a
 * slip, and the secret be there or behind it. */
static void redact(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    for (int i = 1; i < argc; i++) { /* a URL in the wrong place */
        size_t len;
        const char *text = RedisModule_StringPtrLen(argv[i], &len);
        if (parameters_is_url(text, len)) RedisModule_RedactClientCommandArgument(ctx, i);
    }
    if (is_word(argv[0], MODULE_NAME ".connect")) {
        int password = PARAMETER_INDEX_PASSWORD; /* argv[1] is the host, parameter 1 */
        if (argc > password) RedisModule_RedactClientCommandArgument(ctx, password);
        return;
    }
    if (!is_word(argv[0], MODULE_NAME ".config") || argc < 2 || is_word(argv[1], "GET")) return;
    for (int i = 2; i < argc; i += 2) {
        int index = parameter_index(argv[i]);
        if (index < 0) RedisModule_RedactClientCommandArgument(ctx, i);
        if (i + 1 < argc && (index < 0 || PARAMETERS[index].sensitive))
            RedisModule_RedactClientCommandArgument(ctx, i + 1);
    }
}

/* Hands a command to the worker and blocks the client, not Redis (rule 4).
 * Returns 1, or 0 if it has answered with an error instead. */
static int forward(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    const char *error = NULL;
    if (RedisModule_GetContextFlags(ctx) &
        (REDISMODULE_CTX_FLAGS_LUA | REDISMODULE_CTX_FLAGS_MULTI |
         REDISMODULE_CTX_FLAGS_DENY_BLOCKING))
        error = "ERR this command waits for the handler and cannot run in a script or in MULTI";
    else if (!accepting || atomic_load(&worker_exited))
        error = "ERR the handler has stopped; the log says why";
    if (error != NULL) {
        RedisModule_ReplyWithError(ctx, error);
        redact(ctx, argv, argc);
        return 0;
    }
    RedisModuleBlockedClient *client =
        RedisModule_BlockClient(ctx, on_reply, on_reply_timeout, free_reply, COMMAND_TIMEOUT_MS);
    buffer_t buffer = {0};
    uint64_t handle = (uint64_t)(uintptr_t)client;
    buffer_add(&buffer, &handle, sizeof(handle));
    for (int i = 0; i < argc; i++)
        buffer_add_counted(&buffer, argv[i]);
    redact(ctx, argv, argc); /* after the copy: Valkey redacts argv itself */
    request(RECORD_COMMAND, buffer.data, buffer.len);
    free(buffer.data);
    return 1;
}

static int on_command(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    forward(ctx, argv, argc);
    return REDISMODULE_OK;
}

static int on_stats(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    int local = is_word(argv[argc - 1], "LOCAL");
    if (argc - local == 1) {
        reply_stats(ctx);
        return REDISMODULE_OK;
    }
    if (argc - local > 2 || !(is_word(argv[1], "RESET") || is_word(argv[1], "CLUSTER")))
        return RedisModule_ReplyWithError(
            ctx, "ERR KEYSPACEAMQP.STATS takes nothing, CLUSTER for the sums over all nodes, or "
                 "RESET to start the counters again");
    forward(ctx, argv, argc);
    return REDISMODULE_OK;
}

static int on_help(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    (void)argv;
    (void)argc;
    RedisModule_ReplyWithArray(ctx, HELP_LINES_COUNT);
    for (int i = 0; i < HELP_LINES_COUNT; i++)
        RedisModule_ReplyWithSimpleString(ctx, HELP_LINES[i]);
    return REDISMODULE_OK;
}

static int register_commands(RedisModuleCtx *ctx) {
    static const RedisModuleCommandInfoVersion version = {1, sizeof(RedisModuleCommandHistoryEntry),
                                                          sizeof(RedisModuleCommandKeySpec),
                                                          sizeof(RedisModuleCommandArg)};
    for (size_t i = 0; i < sizeof(COMMANDS) / sizeof(COMMANDS[0]); i++) {
        RedisModuleCmdFunc function = on_command;
        if (strcmp(COMMANDS[i].name, MODULE_NAME ".stats") == 0) function = on_stats;
        if (strcmp(COMMANDS[i].name, MODULE_NAME ".help") == 0) function = on_help;
        if (RedisModule_CreateCommand(ctx, COMMANDS[i].name, function, COMMANDS[i].flags, 0, 0,
                                      0) != REDISMODULE_OK)
            return REDISMODULE_ERR;
        RedisModuleCommand *command = RedisModule_GetCommand(ctx, COMMANDS[i].name);
        RedisModuleCommandInfo info = {.version = &version,
                                       .summary = COMMANDS[i].summary,
                                       .complexity = COMMANDS[i].complexity,
                                       .since = MODULE_VERSION,
                                       .arity = -1,
                                       .args = COMMANDS[i].args};
        if (RedisModule_SetCommandInfo(command, &info) != REDISMODULE_OK) return REDISMODULE_ERR;
        if (RedisModule_SetCommandACLCategories != NULL)
            RedisModule_SetCommandACLCategories(command, COMMANDS[i].acl_categories);
    }
    return RedisModule_RegisterInfoFunc(ctx, on_info);
}

/* ---- the worker's calls --------------------------------------------------- */

/* Worker thread, all of this section. */
queue_t *shim_events(void) { return events; }
queue_t *shim_requests(void) { return requests; }
int shim_port(void) { return port; }
int shim_clustered(void) { return clustered; }
int shim_wake_fd(void) { return wake_fd; }

static uint64_t seen_by_worker;

void shim_before_wait(void) {
    atomic_store(&worker_waits, 1);
    atomic_thread_fence(memory_order_seq_cst);
    /* What came after the worker's last look was announced to nobody. */
    if (queue_pushed(events) + queue_pushed(requests) != seen_by_worker) bell(wake_fd);
}

void shim_after_wait(void) {
    atomic_store(&worker_waits, 0);
    silence(wake_fd);
    seen_by_worker = queue_pushed(events) + queue_pushed(requests);
}

void shim_log(const char *level, const char *text) { RedisModule_Log(log_ctx, level, "%s", text); }

int64_t *shim_stats(void) { return (int64_t *)stats; }
void shim_numbers(int64_t *numbers) { collect_stats(numbers); }

void shim_reset_numbers(void) {
    atomic_store(&seen_before, atomic_load(&seen));
    atomic_store(&refused_before, atomic_load(&refused));
    atomic_store(&unheard_before, atomic_load(&unheard));
}

void shim_set_text(int index, const char *text) {
    snprintf(texts_draft.text[index], sizeof(texts_draft.text[index]), "%s", text);
    texts_t *copy = malloc(sizeof(*copy));
    if (copy == NULL) abort();
    *copy = texts_draft;
    free(atomic_exchange(&texts_delivered, copy));
}

void shim_command_done(uint64_t handle, const char *data, size_t len) {
    reply_t *reply = malloc(sizeof(*reply) + len);
    if (reply == NULL) abort();
    reply->len = len;
    memcpy(reply->data, data, len);
    RedisModule_UnblockClient((RedisModuleBlockedClient *)(uintptr_t)handle, reply);
}

void shim_ready(int ok) {
    atomic_store(&worker_ready, ok ? 1 : -1);
    bell(job_fd);
}

void shim_flush_done(uint32_t id) {
    atomic_store(&flush_done_id, id);
    bell(job_fd);
}

/* Whether setpriority is survived: under a seccomp filter (the unit of Debian's
 * redis-server has one) it may mean the end of the process, without an error. A
 * child that shares our memory and does nothing else tries it. */
static int may_set_priority(void) {
    pid_t child = vfork();
    if (child == 0) {
        setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0));
        _exit(0);
    }
    int status;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status);
}

int shim_set_nice(int nice_value, char *error, size_t capacity) {
    /* Linux keeps the nice value per thread. */
    id_t thread = (id_t)syscall(SYS_gettid);
    if (getpriority(PRIO_PROCESS, thread) == nice_value) return 0;
    if (!may_set_priority()) {
        snprintf(error, capacity, "a filter on system calls forbids it");
        return -1;
    }
    if (setpriority(PRIO_PROCESS, thread, nice_value) == 0) return 0;
    snprintf(error, capacity, "%s", strerror(errno));
    return -1;
}

static void *worker_main(void *data) {
    (void)data;
    python_run_worker();
    atomic_store(&worker_exited, 1);
    bell(job_fd);
    return NULL;
}

/* ---- load and unload ------------------------------------------------------ */

/* Starts the worker with all signals blocked (they are Redis') and waits until
 * it runs. It asks nothing of the main thread before that. */
static int start_worker(void) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = pthread_create(&worker, NULL, worker_main, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result != 0) return -1;
    worker_started = 1;
    pthread_setname_np(worker, "keyspace-amqp");
    long long deadline = clock_ms() + READY_TIMEOUT_MS, left = READY_TIMEOUT_MS;
    while (atomic_load(&worker_ready) == 0 && !atomic_load(&worker_exited) && left > 0) {
        struct pollfd poll_fd = {.fd = job_fd, .events = POLLIN};
        poll(&poll_fd, 1, (int)left);
        silence(job_fd);
        left = deadline - clock_ms();
    }
    return atomic_load(&worker_ready) == 1 ? 0 : -1;
}

/* Frees all that a load made. The worker must have ended. */
static void release_all(void) {
    if (worker_started) pthread_join(worker, NULL);
    worker_started = 0;
    accepting = capturing = 0;
    for (job_t *job = atomic_exchange(&jobs, NULL), *next; job != NULL; job = next) {
        next = job->next; /* handed over when it was too late */
        job_free(job);
    }
    if (job_fd >= 0) RedisModule_EventLoopDel(job_fd, REDISMODULE_EVENTLOOP_READABLE);
    if (job_fd >= 0) close(job_fd);
    if (wake_fd >= 0) close(wake_fd);
    job_fd = wake_fd = -1;
    queue_free(events);
    queue_free(requests);
    events = requests = NULL;
    for (int i = 0; i < PARAMETERS_COUNT; i++) {
        if (values[i] != NULL) RedisModule_FreeString(NULL, values[i]);
        values[i] = NULL;
    }
    free(texts_shown);
    texts_shown = NULL;
    free(atomic_exchange(&texts_delivered, NULL));
    if (log_ctx != NULL) RedisModule_FreeThreadSafeContext(log_ctx);
    log_ctx = NULL;
}

/* Sets everything to the state before a first load: the library stays in the
 * process when the module is unloaded. */
static int prepare(RedisModuleCtx *ctx) {
    log_ctx = RedisModule_GetDetachedThreadSafeContext(ctx);
    events = queue_new(0);
    requests = queue_new(0);
    wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    job_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    texts_shown = calloc(1, sizeof(*texts_shown));
    if (texts_shown == NULL) abort();
    memset(&texts_draft, 0, sizeof(texts_draft));
    memset(texts_shown, 0, sizeof(*texts_shown));
    subscribed_classes = wanted_classes = 0;
    value_bytes = 0;
    watching_keys = 0;
    gone.payload.len = 0;
    announced = seen_by_worker = 0;
    atomic_store(&worker_waits, 0);
    atomic_store(&worker_ready, 0);
    atomic_store(&worker_exited, 0);
    atomic_store(&flush_done_id, flush_id);
    for (int i = 0; i < STATS_COUNT; i++)
        atomic_store(&stats[i], 0);
    shim_reset_numbers();
    refused_logged = atomic_load(&refused);
    closed = 0;
    now_ms = RedisModule_Milliseconds();
    RedisModuleServerInfoData *info = RedisModule_GetServerInfo(ctx, "server");
    port = (int)RedisModule_ServerInfoGetFieldUnsigned(info, "tcp_port", NULL);
    RedisModule_FreeServerInfo(ctx, info);
    int flags = RedisModule_GetContextFlags(ctx);
    primary = (flags & REDISMODULE_CTX_FLAGS_MASTER) != 0;
    loading = (flags & REDISMODULE_CTX_FLAGS_LOADING) != 0;
    clustered = (flags & REDISMODULE_CTX_FLAGS_CLUSTER) != 0;
    return wake_fd >= 0 && job_fd >= 0 ? 0 : -1;
}

static void subscribe_to_server(RedisModuleCtx *ctx) {
    static const struct {
        RedisModuleEvent event;
        RedisModuleEventCallback callback;
    } SUBSCRIPTIONS[] = {
        {{REDISMODULE_EVENT_EVENTLOOP, 1}, on_event_loop},
        {{REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED, 1}, on_role_changed},
        {{REDISMODULE_EVENT_LOADING, 1}, on_loading},
        {{REDISMODULE_EVENT_PERSISTENCE, 1}, on_persistence},
        {{REDISMODULE_EVENT_FLUSHDB, 1}, on_flush_db},
        {{REDISMODULE_EVENT_SWAPDB, 1}, on_swap_db},
        {{REDISMODULE_EVENT_SHUTDOWN, 1}, on_shutdown},
    };
    for (size_t i = 0; i < sizeof(SUBSCRIPTIONS) / sizeof(SUBSCRIPTIONS[0]); i++)
        RedisModule_SubscribeToServerEvent(ctx, SUBSCRIPTIONS[i].event, SUBSCRIPTIONS[i].callback);
    if (clustered) RedisModule_RegisterClusterMessageReceiver(ctx, MESSAGE_TYPE, on_message);
}

static int refuse_load(RedisModuleCtx *ctx, const char *reason) {
    if (reason[0] != '\0') RedisModule_Log(ctx, "warning", "not loaded: %s", reason);
    release_all();
    return REDISMODULE_ERR;
}

/* Entry point: MODULE LOAD, LOADEX, loadmodule. Subscriptions come last: Redis
 * 7.0 does not take them back from a module that failed to load. */
__attribute__((visibility("default"))) int RedisModule_OnLoad(RedisModuleCtx *ctx,
                                                              RedisModuleString **argv, int argc) {
    char error[4096];
    long long began = clock_us();
    const char *missing = redis_api_load(ctx);
    if (missing != NULL) {
        if (RedisModule_Log != NULL)
            RedisModule_Log(ctx, "warning",
                            "keyspace-amqp not loaded: it needs Redis 7.0 or later, or Valkey 7.2 "
                            "or later; this server has no RedisModule_%s",
                            missing);
        return REDISMODULE_ERR;
    }
    if (RedisModule_IsModuleNameBusy(MODULE_NAME)) {
        RedisModule_Log(ctx, "warning", "a module named " MODULE_NAME " is loaded already");
        return REDISMODULE_ERR;
    }
    if (wedged) {
        RedisModule_Log(ctx, "warning",
                        "not loaded: an earlier load hangs in Python. Restart the server");
        return REDISMODULE_ERR;
    }
    RedisModule_SetModuleAttribs(ctx, MODULE_NAME, MODULE_VERSION_NUMBER, REDISMODULE_APIVER_1);
    /* A replica may swap in another data set while it serves the old one: we know
     * nothing of keys there. Without this no replica with the module could
     * (repl-diskless-load swapdb). */
    RedisModule_SetModuleOptions(ctx, REDISMODULE_OPTIONS_HANDLE_REPL_ASYNC_LOAD);
    if (prepare(ctx) != 0) return refuse_load(ctx, "no file descriptors left");
    if (register_parameters(ctx, argv, argc) != REDISMODULE_OK) return refuse_load(ctx, "");
    if (register_commands(ctx) != REDISMODULE_OK)
        return refuse_load(ctx, "the server took its commands or its INFO section from another "
                                "module");
    if (python_start(error, sizeof(error)) != 0) return refuse_load(ctx, error);
    RedisModule_EventLoopAdd(job_fd, REDISMODULE_EVENTLOOP_READABLE, on_job_fd, NULL);
    accepting = 1;
    set_limit();
    send_role();
    send_config();
    if (start_worker() != 0) {
        accepting = 0;
        if (atomic_load(&worker_ready) == 0 && !atomic_load(&worker_exited)) {
            /* It hangs while it starts; it cannot be ended, so its memory stays. */
            RedisModule_Log(ctx, "warning", "not loaded: the handler did not start in time");
            wedged = 1;
            return REDISMODULE_ERR;
        }
        return refuse_load(ctx, "the handler did not start; the lines above say why");
    }
    /* Subscribes to the classes, and sends the parameters once more; the worker
     * ignores what it knows. */
    config_apply(ctx, NULL, NULL);
    subscribe_to_server(ctx);
    RedisModule_Log(ctx, "notice", "version %s, %s", MODULE_VERSION, python_describe());
    add_latency(ctx, MODULE_NAME "-load", began);
    return REDISMODULE_OK;
}

/* Entry point: MODULE UNLOAD. The worker delivers what was captured, or leaves it
 * in a file, and ends. If it does not within the bound, the module stays. */
__attribute__((visibility("default"))) int RedisModule_OnUnload(RedisModuleCtx *ctx) {
    /* Nothing is written to the list here: Redis replicates the command MODULE
     * UNLOAD, as any other, if the data set has changed meanwhile, and replicas
     * would lose the module. */
    closed = 1;
    long long began = clock_us();
    if (accepting) flush_worker(ctx, FLUSH_LEAVE, STOP_TIMEOUT_MS);
    add_latency(ctx, MODULE_NAME "-unload", began);
    accepting = capturing = 0;
    log_refused(ctx);
    if (worker_started && !atomic_load(&worker_exited)) {
        RedisModule_Log(ctx, "warning",
                        "not unloaded: the handler did not stop within %d ms. Try again",
                        STOP_TIMEOUT_MS + PATIENCE_MS);
        return REDISMODULE_ERR;
    }
    release_all();
    return REDISMODULE_OK;
}
