/* Jobs: commands that the worker makes and the main thread runs (rule 3).
 *
 * The worker makes a job with all its strings and submits it. From then on the job belongs
 * to the main thread, which only has to run the commands. Once job_done is true, the job
 * belongs to the worker again, which reads the replies and frees it.
 */
#include "jobs.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "buffer.h"
#include "changes.h"
#include "config.h"
#include "latency.h"
#include "look.h"
#include "maxmemory.h"
#include "outbox.h"
#include "snapshot.h"
#include "state.h"
#include "worker.h"

typedef struct command {
    struct command *next;
    enum { CALL, SET_PARAMETERS, LENGTHS, MESSAGE, HOLD_OUTBOX, OPEN_OUTBOX, SNAPSHOT } kind;
    char *name;
    int write;
    int grows;
    RedisModuleString **argv;
    size_t argc;
    size_t size; /* bytes of the arguments, as elements of a list */
    /* Arguments of which no strings are made yet. */
    char *bytes;
    size_t *lengths;
    size_t count;
    char *expected;
    size_t expected_len;
    size_t most; /* bytes of an LRANGE's reply; 0: all elements */
    char *reply;
    size_t reply_len;
    int error;
} command_t;

enum job_state { JOB_WAITS, JOB_DONE, JOB_ABANDONED };

struct job {
    struct job *next;
    command_t *first, *last;
    _Atomic int state; /* enum job_state */
};

/* The main thread's. */
static int writes_refused;
static uint64_t count_run;
/* Shared. */
static _Atomic(job_t *) submitted; /* the newest first */

/* ---- the worker's side: api.h says what each function does -------------------- */

job_t *job_new(void) {
    job_t *job = calloc(1, sizeof(*job));
    if (job == NULL) abort();
    return job;
}

static void *copy(const void *bytes, size_t size) {
    void *copied = malloc(size + 1);
    if (copied == NULL) abort();
    return memcpy(copied, bytes, size);
}

static command_t *add_command(job_t *job, int kind) {
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

void job_command(job_t *job, const char *name, int write) {
    command_t *command = add_command(job, CALL);
    command->name = strdup(name);
    command->write = write;
}

void job_grows(job_t *job) { job->last->grows = 1; }
void job_parameters(job_t *job) { add_command(job, SET_PARAMETERS); }
void job_lengths(job_t *job) { add_command(job, LENGTHS); }
void job_message(job_t *job) { add_command(job, MESSAGE); }
void job_outbox(job_t *job, int open) { add_command(job, open ? OPEN_OUTBOX : HOLD_OUTBOX); }
void job_snapshot(job_t *job) { add_command(job, SNAPSHOT); }

static void make_strings(command_t *command, const char *bytes, const size_t *lengths,
                         size_t count) {
    command->argv = calloc(count, sizeof(*command->argv));
    if (command->argv == NULL && count > 0) abort();
    for (; command->argc < count; command->argc++) {
        size_t len = lengths[command->argc];
        command->argv[command->argc] = RedisModule_CreateString(NULL, bytes, len);
        bytes += len;
    }
}

void job_arguments(job_t *job, const char *arguments, const size_t *lengths, size_t count) {
    command_t *command = job->last;
    size_t size = 0;
    for (size_t i = 0; i < count; i++)
        size += lengths[i];
    command->size = size + count * ELEMENT_BYTES;
    if (!command->grows || !maxmemory_is_near()) {
        make_strings(command, arguments, lengths, count);
        return;
    }
    /* Strings count towards maxmemory. So here they are made only if the command is
     * allowed. */
    command->bytes = copy(arguments, size);
    command->lengths = copy(lengths, count * sizeof(*lengths));
    command->count = count;
}

void job_expect(job_t *job, const char *reply, size_t len) {
    command_t *command = job->last;
    command->expected = copy(reply, len);
    command->expected_len = len;
}

void job_most(job_t *job, size_t bytes) { job->last->most = bytes; }

void job_submit(job_t *job) {
    job->next = atomic_load(&submitted);
    while (!atomic_compare_exchange_weak(&submitted, &job->next, job)) {
    }
    worker_wake_main();
}

int job_done(const job_t *job) {
    return atomic_load_explicit(&job->state, memory_order_acquire) == JOB_DONE;
}

const char *job_reply(const job_t *job, int number, size_t *len, int *error) {
    command_t *command = job->first;
    while (number-- > 0 && command != NULL)
        command = command->next;
    if (command == NULL) return NULL;
    *len = command->reply_len;
    *error = command->error;
    return command->reply;
}

/* Frees the strings of a command. */
static void free_arguments(command_t *command) {
    for (size_t i = 0; i < command->argc; i++)
        RedisModule_FreeString(NULL, command->argv[i]);
    command->argc = 0;
}

void job_free(job_t *job) {
    for (command_t *command = job->first, *next; command != NULL; command = next) {
        next = command->next;
        free_arguments(command);
        free(command->argv);
        free(command->bytes);
        free(command->lengths);
        free(command->name);
        free(command->expected);
        free(command->reply);
        free(command);
    }
    free(job);
}

/* Of the two threads, the one that comes second frees the job. A job that is never run is
 * freed by jobs_release. */
void job_abandon(job_t *job) {
    if (atomic_exchange(&job->state, JOB_ABANDONED) == JOB_DONE) job_free(job);
}

/* ---- the main thread's side: one function for each kind of command ------------ */

/* Keeps a copy of the reply; job_free frees it. */
static void set_reply(command_t *command, const char *reply, size_t len) {
    command->reply = copy(reply, len);
    command->reply_len = len;
}

/* Makes the buffer the reply, without a copy. */
static void take_reply(command_t *command, buffer_t *buffer) {
    command->reply = buffer->data;
    command->reply_len = buffer->len;
}

/* LRANGE with a bound on bytes. The size of the elements is known only when they
 * are read, and all of them may be gigabytes. */
static void read_list(RedisModuleCtx *ctx, command_t *command) {
    enum { HEAD_LEN = 13 };
    buffer_t buffer = {0};
    long long at, stop;
    int count = 0;
    char head[HEAD_LEN + 8]; /* room for any int, or compilers warn of truncation */
    buffer_add(&buffer, "*0000000000\r\n", HEAD_LEN);
    RedisModule_StringToLongLong(command->argv[1], &at);
    RedisModule_StringToLongLong(command->argv[2], &stop);
    RedisModuleKey *key = look_at(ctx, command->argv[0], 0);
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
    take_reply(command, &buffer);
}

static void call(RedisModuleCtx *ctx, command_t *command) {
    errno = 0;
    RedisModuleCallReply *reply = RedisModule_Call(
        ctx, command->name, command->write ? "!Ev" : "Ev", command->argv, command->argc);
    command->error = errno; /* valid only without a reply, or with an error */
    if (reply == NULL) return;
    size_t len;
    const char *proto = RedisModule_CallReplyProto(reply, &len);
    set_reply(command, proto, len);
    RedisModule_FreeCallReply(reply);
}

/* Returns whether a list may grow by what the command appends, and makes the strings for it. */
static int may_grow(RedisModuleCtx *ctx, command_t *command) {
    const char *key = command->bytes;
    size_t key_len = key != NULL ? command->lengths[0] : 0;
    if (key == NULL) key = RedisModule_StringPtrLen(command->argv[0], &key_len);
    if (!maxmemory_allows(ctx, key, key_len, command->size)) return 0;
    if (command->bytes != NULL)
        make_strings(command, command->bytes, command->lengths, command->count);
    return 1;
}

static void run_call(RedisModuleCtx *ctx, command_t *command) {
    if (command->write && !main_thread.capturing)
        command->error = EROFS;
    else if (command->write && writes_refused)
        command->error = ESHUTDOWN;
    else if (command->write && RedisModule_AvoidReplicaTraffic())
        command->error = EBUSY; /* paused: Redis asserts that nothing is replicated now */
    else if (command->grows && !may_grow(ctx, command))
        command->error = ENOSPC; /* as Redis' own refusal of a command near maxmemory */
    else if (command->most != 0)
        read_list(ctx, command);
    else
        call(ctx, command);
}

static void run_set_parameters(RedisModuleCtx *ctx, command_t *command) {
    char text[ERROR_BYTES] = "-";
    int failed = config_set_all(ctx, command->argv, (int)command->argc, text + 1, sizeof(text) - 3);
    const char *reply = failed ? strcat(text, "\r\n") : "+OK\r\n";
    set_reply(command, reply, strlen(reply));
}

/* Reads the keys directly: that leaves no trace. And Redis refuses LLEN in a slot that another
 * node serves, and the slots of these keys move between nodes. */
static void run_lengths(RedisModuleCtx *ctx, command_t *command) {
    buffer_t buffer = {0};
    char text[32];
    buffer_add(&buffer, text, (size_t)snprintf(text, sizeof(text), "*%zu\r\n", command->argc));
    for (size_t i = 0; i < command->argc; i++) {
        RedisModuleKey *key = look_at(ctx, command->argv[i], 0);
        long long length = 0;
        if (key != NULL)
            length = RedisModule_KeyType(key) == REDISMODULE_KEYTYPE_LIST
                         ? (long long)RedisModule_ValueLength(key)
                         : -1;
        RedisModule_CloseKey(key);
        buffer_add(&buffer, text, (size_t)snprintf(text, sizeof(text), ":%lld\r\n", length));
    }
    take_reply(command, &buffer);
}

static void run_message(RedisModuleCtx *ctx, command_t *command) {
    size_t id_len, len;
    const char *id = RedisModule_StringPtrLen(command->argv[0], &id_len);
    const char *text = RedisModule_StringPtrLen(command->argv[1], &len);
    /* Redis 7.0 reads the id up to its NUL. */
    int result =
        RedisModule_SendClusterMessage(ctx, id_len ? id : NULL, MESSAGE_TYPE, text, (uint32_t)len);
    const char *reply = result == REDISMODULE_OK ? "+OK\r\n" : "-ERR not connected\r\n";
    set_reply(command, reply, strlen(reply));
}

static void reply_outbox(command_t *command, int failed) {
    const char *reply = failed ? "-ERR the outbox is off, or was closed meanwhile\r\n" : "+OK\r\n";
    set_reply(command, reply, strlen(reply));
}

static void run_hold_outbox(RedisModuleCtx *ctx, command_t *command) {
    reply_outbox(command, outbox_hold(ctx));
}

static void run_open_outbox(RedisModuleCtx *ctx, command_t *command) {
    size_t len;
    const char *key = RedisModule_StringPtrLen(command->argv[0], &len);
    reply_outbox(command, outbox_open(ctx, key, len));
}

static void run_snapshot(RedisModuleCtx *ctx, command_t *command) {
    buffer_t buffer = {0};
    snapshot_run(ctx, command->argv, command->argc, &buffer);
    take_reply(command, &buffer);
}

/* Runs one command of a job. Returns 0, or -1 if the job ends with it. */
static int run_command(RedisModuleCtx *ctx, command_t *command) {
    static void (*const RUN[])(RedisModuleCtx *, command_t *) = {
        [CALL] = run_call,
        [SET_PARAMETERS] = run_set_parameters,
        [LENGTHS] = run_lengths,
        [MESSAGE] = run_message,
        [HOLD_OUTBOX] = run_hold_outbox,
        [OPEN_OUTBOX] = run_open_outbox,
        [SNAPSHOT] = run_snapshot,
    };
    RUN[command->kind](ctx, command);
    /* Freed on this thread: Redis may hold the strings until it has replicated the
     * command, and its counts of references are not atomic. */
    free_arguments(command);
    if (command->reply == NULL || command->reply[0] == '-') return -1;
    if (command->expected == NULL) return 0;
    int as_expected = command->expected_len == command->reply_len &&
                      memcmp(command->expected, command->reply, command->reply_len) == 0;
    return as_expected ? 0 : -1;
}

/* Takes all submitted jobs; returns the oldest, the others are behind it. */
static job_t *take_submitted(void) {
    job_t *newest = atomic_exchange(&submitted, NULL);
    job_t *oldest = NULL;
    while (newest != NULL) {
        job_t *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    return oldest;
}

void jobs_run(RedisModuleCtx *ctx) {
    if (atomic_load(&submitted) == NULL) return;
    RedisModule_SelectDb(ctx, 0);
    outbox_tell();
    main_thread.job_running = 1;
    long long began = clock_us();
    for (job_t *job = take_submitted(), *next; job != NULL; job = next) {
        next = job->next; /* read now: the worker may free the job once it is done */
        for (command_t *command = job->first; command != NULL; command = command->next)
            if (run_command(ctx, command) != 0) break;
        changes_send(); /* of before this job, and by it: they explain what it has found */
        count_run++;
        if (atomic_exchange(&job->state, JOB_DONE) == JOB_ABANDONED) job_free(job);
    }
    main_thread.job_running = 0;
    worker_wake();
    latency_add(ctx, MODULE_NAME "-job", began);
}

void jobs_refuse_writes(void) { writes_refused = 1; }
int jobs_refuses_writes(void) { return writes_refused; }
uint64_t jobs_count(void) { return count_run; }

/* ---- load and unload ----------------------------------------------------------- */

void jobs_prepare(void) {
    writes_refused = 0;
    count_run = 0;
}

void jobs_release(void) {
    for (job_t *job = take_submitted(), *next; job != NULL; job = next) {
        next = job->next;
        job_free(job);
    }
}
