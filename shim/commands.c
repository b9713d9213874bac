/* The commands. STATS and HELP are answered here, all others by the worker. Only the client
 * waits for the worker's answer, not Redis (rule 4).
 *
 * Main thread, except for shim_command_done.
 */
#include "commands.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "config.h"
#include "state.h"
#include "stats.h"
#include "tables.h"
#include "worker.h"

/* An answer of the worker: a sequence of items. commands/replies.py defines their form. */
typedef struct {
    size_t len;
    char data[];
} reply_t;

/* ---- replies ------------------------------------------------------------------------ */

/* Gives the worker's answer to Redis, item by item. */
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
        default: /* a text: `number` bytes and a NUL follow */
            if (tag == '+') RedisModule_ReplyWithSimpleString(ctx, reply + at);
            if (tag == '-') RedisModule_ReplyWithError(ctx, reply + at);
            if (tag == '$') RedisModule_ReplyWithStringBuffer(ctx, reply + at, (size_t)number);
            at += (size_t)number + 1;
        }
    }
}

/* Worker thread. Redis calls free_reply for the copy, even if the client no longer waits. */
void shim_command_done(uint64_t handle, const char *data, size_t len) {
    reply_t *reply = malloc(sizeof(*reply) + len);
    if (reply == NULL) abort();
    reply->len = len;
    memcpy(reply->data, data, len);
    RedisModule_UnblockClient((RedisModuleBlockedClient *)(uintptr_t)handle, reply);
}

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

/* ---- hand over ------------------------------------------------------------------------- */

/* Keeps secrets out of the slow log (rule 20). MONITOR does not show commands with the
 * admin flag, which ours have. If a parameter's name is unknown, the client may have mistyped
 * the command, and the secret may be this argument or the next one. */
static void redact(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    for (int i = 1; i < argc; i++) { /* a URL with a password, as any argument */
        size_t len;
        const char *text = RedisModule_StringPtrLen(argv[i], &len);
        if (parameters_is_url(text, len)) RedisModule_RedactClientCommandArgument(ctx, i);
    }
    if (is_word(argv[0], MODULE_NAME ".connect")) {
        int password = PARAMETER_INDEX_PASSWORD; /* as the host, parameter 1, is argv[1] */
        if (argc > password) RedisModule_RedactClientCommandArgument(ctx, password);
        return;
    }
    if (!is_word(argv[0], MODULE_NAME ".config") || argc < 2 || is_word(argv[1], "GET")) return;
    for (int i = 2; i < argc; i += 2) {
        int index = config_index(argv[i]);
        if (index < 0) RedisModule_RedactClientCommandArgument(ctx, i);
        if (i + 1 < argc && (index < 0 || PARAMETERS[index].sensitive))
            RedisModule_RedactClientCommandArgument(ctx, i + 1);
    }
}

/* Returns the error for a command that cannot be handed over, or NULL. */
static const char *find_obstacle(RedisModuleCtx *ctx) {
    if (RedisModule_GetContextFlags(ctx) &
        (REDISMODULE_CTX_FLAGS_LUA | REDISMODULE_CTX_FLAGS_MULTI |
         REDISMODULE_CTX_FLAGS_DENY_BLOCKING))
        return "ERR this command waits for the handler and cannot run in a script or in MULTI";
    if (worker_has_ended()) return "ERR the handler has stopped; the log says why";
    if (worker_is_ending())
        return "ERR the handler is stopping: MODULE UNLOAD did not wait so long; when it has "
               "stopped, it starts again";
    if (!worker_is_open()) return "ERR the handler is starting; try again";
    if (worker_request_bytes() > REQUESTS_LIMIT)
        return "ERR the handler is far behind with requests; KEYSPACEAMQP.STATS shows its state";
    return NULL;
}

/* Hands a command over to the worker and blocks the client, or replies with an error. */
static int on_command(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    const char *error = find_obstacle(ctx);
    if (error != NULL) {
        RedisModule_ReplyWithError(ctx, error);
        redact(ctx, argv, argc);
        return REDISMODULE_OK;
    }
    RedisModuleBlockedClient *client =
        RedisModule_BlockClient(ctx, on_reply, on_reply_timeout, free_reply, COMMAND_MS);
    buffer_t buffer = {0};
    uint64_t handle = (uint64_t)(uintptr_t)client;
    buffer_add(&buffer, &handle, sizeof(handle));
    for (int i = 0; i < argc; i++)
        buffer_add_string(&buffer, argv[i]);
    redact(ctx, argv, argc); /* after the copy: Valkey redacts argv itself */
    worker_request_buffer(RECORD_COMMAND, &buffer);
    return REDISMODULE_OK;
}

/* ---- answered here ------------------------------------------------------------------------ */

static int on_stats(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    int local = is_word(argv[argc - 1], "LOCAL");
    if (argc - local == 1) {
        stats_reply(ctx);
        return REDISMODULE_OK;
    }
    if (argc - local > 2 || !(is_word(argv[1], "RESET") || is_word(argv[1], "CLUSTER")))
        return RedisModule_ReplyWithError(
            ctx, "ERR KEYSPACEAMQP.STATS takes nothing, CLUSTER for the sums over all nodes, or "
                 "RESET to start the counters again");
    return on_command(ctx, argv, argc);
}

static int on_help(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    (void)argv;
    (void)argc;
    RedisModule_ReplyWithArray(ctx, HELP_LINES_COUNT);
    for (int i = 0; i < HELP_LINES_COUNT; i++)
        RedisModule_ReplyWithSimpleString(ctx, HELP_LINES[i]);
    return REDISMODULE_OK;
}

/* ---- load ------------------------------------------------------------------------------------ */

static int register_command(RedisModuleCtx *ctx, const command_spec_t *spec) {
    static const RedisModuleCommandInfoVersion VERSION = {1, sizeof(RedisModuleCommandHistoryEntry),
                                                          sizeof(RedisModuleCommandKeySpec),
                                                          sizeof(RedisModuleCommandArg)};
    RedisModuleCmdFunc function = on_command;
    if (strcmp(spec->name, MODULE_NAME ".stats") == 0) function = on_stats;
    if (strcmp(spec->name, MODULE_NAME ".help") == 0) function = on_help;
    if (RedisModule_CreateCommand(ctx, spec->name, function, spec->flags, 0, 0, 0) !=
        REDISMODULE_OK)
        return REDISMODULE_ERR;
    RedisModuleCommand *command = RedisModule_GetCommand(ctx, spec->name);
    RedisModuleCommandInfo info = {.version = &VERSION,
                                   .summary = spec->summary,
                                   .complexity = spec->complexity,
                                   .since = MODULE_VERSION,
                                   .arity = -1,
                                   .args = spec->arguments};
    if (RedisModule_SetCommandInfo(command, &info) != REDISMODULE_OK) return REDISMODULE_ERR;
    if (RedisModule_SetCommandACLCategories != NULL)
        RedisModule_SetCommandACLCategories(command, spec->acl_categories);
    return REDISMODULE_OK;
}

int commands_register(RedisModuleCtx *ctx) {
    for (int i = 0; i < COMMANDS_COUNT; i++)
        if (register_command(ctx, &COMMANDS[i]) != REDISMODULE_OK) return REDISMODULE_ERR;
    return RedisModule_RegisterInfoFunc(ctx, stats_info);
}
