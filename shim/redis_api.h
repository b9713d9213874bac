/* Redis' module API: the part that this module uses, declared here.
 *
 * The server hands out its functions by name: the address of the function that does so
 * (RedisModule_GetApi) is at the start of the context. The table below lists each function
 * with the first server version that has it, and redis_api_load fills in the pointers. A
 * function of a version above 7.0 may be missing; its pointer is checked before use. The
 * numbers are part of the server's stable interface, and are the same in Redis >= 7.0 and
 * Valkey >= 7.2.
 */
#ifndef KEYSPACE_AMQP_REDIS_API_H
#define KEYSPACE_AMQP_REDIS_API_H
#include <stddef.h>
#include <stdint.h>

#define REDISMODULE_OK 0
#define REDISMODULE_ERR 1
#define REDISMODULE_APIVER_1 1

typedef struct RedisModuleCtx RedisModuleCtx;
typedef struct RedisModuleString RedisModuleString;
typedef struct RedisModuleCallReply RedisModuleCallReply;
typedef struct RedisModuleKey RedisModuleKey;
typedef struct RedisModuleBlockedClient RedisModuleBlockedClient;
typedef struct RedisModuleCommand RedisModuleCommand;
typedef struct RedisModuleInfoCtx RedisModuleInfoCtx;
typedef struct RedisModuleServerInfoData RedisModuleServerInfoData;
typedef struct RedisModuleScanCursor RedisModuleScanCursor;

/* Context flags */
#define REDISMODULE_CTX_FLAGS_LUA (1 << 0)
#define REDISMODULE_CTX_FLAGS_MULTI (1 << 1)
#define REDISMODULE_CTX_FLAGS_MASTER (1 << 2)
#define REDISMODULE_CTX_FLAGS_CLUSTER (1 << 5)
#define REDISMODULE_CTX_FLAGS_AOF (1 << 6)
#define REDISMODULE_CTX_FLAGS_RDB (1 << 7)
#define REDISMODULE_CTX_FLAGS_LOADING (1 << 13)
#define REDISMODULE_CTX_FLAGS_DENY_BLOCKING (1 << 21)
#define REDISMODULE_CTX_FLAGS_SERVER_STARTUP (1 << 24) /* since 7.2 */

/* Keys */
#define REDISMODULE_READ (1 << 0)
#define REDISMODULE_WRITE (1 << 1)
/* Flags to open a key without side effects: no change of its LRU time, no keymiss event, no
 * statistics, no deletion of an expired key, no other effect. Redis 7.0 has only the first
 * of these flags, and ignores the others. */
#define REDISMODULE_OPEN_KEY_NOTOUCH (1 << 16)
#define REDISMODULE_OPEN_KEY_NONOTIFY (1 << 17)
#define REDISMODULE_OPEN_KEY_NOSTATS (1 << 18)
#define REDISMODULE_OPEN_KEY_NOEXPIRE (1 << 19)
#define REDISMODULE_OPEN_KEY_NOEFFECTS (1 << 20)
#define REDISMODULE_KEYTYPE_EMPTY 0
#define REDISMODULE_KEYTYPE_STRING 1
#define REDISMODULE_KEYTYPE_LIST 2
#define REDISMODULE_LIST_TAIL 1

/* Types of replies */
#define REDISMODULE_REPLY_INTEGER 2
#define REDISMODULE_REPLY_ARRAY 3
#define REDISMODULE_REPLY_NULL 4

/* Cluster */
#define REDISMODULE_NODE_ID_LEN 40

/* Module options */
#define REDISMODULE_OPTION_NO_IMPLICIT_SIGNAL_MODIFIED (1 << 1)
#define REDISMODULE_OPTIONS_HANDLE_REPL_ASYNC_LOAD (1 << 2)
#define VALKEYMODULE_OPTIONS_HANDLE_ATOMIC_SLOT_MIGRATION (1 << 5) /* since Valkey 9.0 */

/* Parameters */
#define REDISMODULE_CONFIG_DEFAULT 0
#define REDISMODULE_CONFIG_SENSITIVE (1ULL << 1)

/* Event loop */
#define REDISMODULE_EVENTLOOP_READABLE 1

/* Events with subkeys: those without any come too. */
#define REDISMODULE_NOTIFY_FLAG_NONE 0

/* Server events: {id, version of its data} */
typedef struct {
    uint64_t id;
    uint64_t dataver;
} RedisModuleEvent;
#define REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED 0
#define REDISMODULE_SUBEVENT_NOW_MASTER 0
#define REDISMODULE_EVENT_PERSISTENCE 1
#define REDISMODULE_SUBEVENT_PERSISTENCE_SYNC_RDB_START 2
#define REDISMODULE_EVENT_FLUSHDB 2
#define REDISMODULE_SUBEVENT_FLUSHDB_END 1
#define REDISMODULE_EVENT_LOADING 3
#define REDISMODULE_SUBEVENT_LOADING_REPL_START 2 /* the last of the starts */
#define REDISMODULE_SUBEVENT_LOADING_ENDED 3
#define REDISMODULE_SUBEVENT_LOADING_FAILED 4
#define REDISMODULE_EVENT_SHUTDOWN 5
#define REDISMODULE_EVENT_SWAPDB 11
#define REDISMODULE_EVENT_EVENTLOOP 15
#define REDISMODULE_SUBEVENT_EVENTLOOP_BEFORE_SLEEP 0
#define REDISMODULE_SUBEVENT_EVENTLOOP_AFTER_SLEEP 1
#define REDISMODULE_EVENT_CONFIG 16
#define REDISMODULE_EVENT_KEY 17 /* since 7.2 */
#define REDISMODULE_SUBEVENT_KEY_DELETED 0
#define REDISMODULE_SUBEVENT_KEY_EXPIRED 1
#define REDISMODULE_SUBEVENT_KEY_EVICTED 2

/* Both servers have the events 18 and 19, but not for the same things. */
#define REDISMODULE_EVENT_CLUSTER_SLOT_MIGRATION 18 /* since Redis 8.4 */
#define VALKEYMODULE_EVENT_ATOMIC_SLOT_MIGRATION 19 /* since Valkey 9.0 */

typedef struct {
    uint64_t version;
    uint32_t num_changes;
    const char **config_names;
} RedisModuleConfigChangeV1;

typedef struct {
    uint64_t version;
    int32_t sync;
    int32_t dbnum; /* -1: all */
} RedisModuleFlushInfo;

typedef struct {
    uint64_t version;
    int32_t dbnum_first;
    int32_t dbnum_second;
} RedisModuleSwapDbInfo;

typedef struct {
    uint64_t version;
    RedisModuleKey *key; /* open for reading */
} RedisModuleKeyInfo;

typedef struct {
    int32_t num_ranges;
    struct {
        uint16_t start;
        uint16_t end; /* the last slot */
    } ranges[];
} RedisModuleSlotRangeArray;

typedef struct {
    uint64_t version;
    char source_node_id[REDISMODULE_NODE_ID_LEN + 1];
    char destination_node_id[REDISMODULE_NODE_ID_LEN + 1];
    const char *task_id;
    RedisModuleSlotRangeArray *slots;
} RedisModuleClusterSlotMigrationInfo;

typedef struct {
    uint64_t version;
    char job_name[REDISMODULE_NODE_ID_LEN + 1];
    struct {
        int start;
        int end; /* the last slot */
    } *slot_ranges;
    uint32_t num_slot_ranges;
} ValkeyModuleAtomicSlotMigrationInfo;

/* COMMAND DOCS */
typedef enum {
    REDISMODULE_ARG_TYPE_STRING,
    REDISMODULE_ARG_TYPE_INTEGER,
    REDISMODULE_ARG_TYPE_DOUBLE,
    REDISMODULE_ARG_TYPE_KEY,
    REDISMODULE_ARG_TYPE_PATTERN,
    REDISMODULE_ARG_TYPE_UNIX_TIME,
    REDISMODULE_ARG_TYPE_PURE_TOKEN,
    REDISMODULE_ARG_TYPE_ONEOF,
    REDISMODULE_ARG_TYPE_BLOCK
} RedisModuleCommandArgType;
#define REDISMODULE_CMD_ARG_NONE 0
#define REDISMODULE_CMD_ARG_OPTIONAL (1 << 0)
#define REDISMODULE_CMD_ARG_MULTIPLE (1 << 1)

typedef struct RedisModuleCommandArg {
    const char *name;
    RedisModuleCommandArgType type;
    int key_spec_index;
    const char *token;
    const char *summary;
    const char *since;
    int flags;
    const char *deprecated_since;
    struct RedisModuleCommandArg *subargs;
} RedisModuleCommandArg;

typedef struct {
    const char *since;
    const char *changes;
} RedisModuleCommandHistoryEntry;

/* Only its size matters here: no command of ours has keys. */
typedef struct {
    const char *notes;
    uint64_t flags;
    int begin_search_type;
    union {
        struct {
            int pos;
        } index;
        struct {
            const char *keyword;
            int startfrom;
        } keyword;
    } bs;
    int find_keys_type;
    union {
        struct {
            int lastkey, keystep, limit;
        } range;
        struct {
            int keynumidx, firstkey, keystep;
        } keynum;
    } fk;
} RedisModuleCommandKeySpec;

typedef struct {
    int version;
    size_t sizeof_historyentry;
    size_t sizeof_keyspec;
    size_t sizeof_arg;
} RedisModuleCommandInfoVersion;

typedef struct {
    const RedisModuleCommandInfoVersion *version;
    const char *summary;
    const char *complexity;
    const char *since;
    RedisModuleCommandHistoryEntry *history;
    const char *tips;
    int arity;
    RedisModuleCommandKeySpec *key_specs;
    RedisModuleCommandArg *args;
} RedisModuleCommandInfo;

/* Callbacks */
typedef int (*RedisModuleCmdFunc)(RedisModuleCtx *, RedisModuleString **, int);
typedef int (*RedisModuleNotificationFunc)(RedisModuleCtx *, int, const char *,
                                           RedisModuleString *);
/* The last two parameters: the subkeys and their number, which may be 0. */
typedef void (*RedisModuleNotificationWithSubkeysFunc)(RedisModuleCtx *, int, const char *,
                                                       RedisModuleString *, RedisModuleString **,
                                                       int);
typedef void (*RedisModuleEventCallback)(RedisModuleCtx *, RedisModuleEvent, uint64_t, void *);
typedef void (*RedisModuleEventLoopFunc)(int, void *, int);
typedef void (*RedisModuleInfoFunc)(RedisModuleInfoCtx *, int);
typedef void (*RedisModuleFreeFunc)(RedisModuleCtx *, void *);
typedef void (*RedisModuleScanFunc)(RedisModuleCtx *, RedisModuleString *, RedisModuleKey *,
                                    void *);
typedef void (*RedisModulePostNotificationJobFunc)(RedisModuleCtx *, void *);
typedef void (*RedisModuleClusterMessageReceiver)(RedisModuleCtx *, const char *, uint8_t,
                                                  const unsigned char *, uint32_t);
typedef RedisModuleString *(*RedisModuleConfigGetStringFunc)(const char *, void *);
typedef int (*RedisModuleConfigSetStringFunc)(const char *, RedisModuleString *, void *,
                                              RedisModuleString **);
typedef int (*RedisModuleConfigApplyFunc)(RedisModuleCtx *, void *, RedisModuleString **);

/* X(server version, name, type of result, parameters) */
#define REDIS_API(X)                                                                               \
    X(700, SetModuleAttribs, void, (RedisModuleCtx *, const char *, int, int))                     \
    X(700, SetModuleOptions, void, (RedisModuleCtx *, int))                                        \
    X(700, IsModuleNameBusy, int, (const char *))                                                  \
    X(700, GetContextFlags, int, (RedisModuleCtx *))                                               \
    X(700, GetKeyspaceNotificationFlagsAll, int, (void))                                           \
    X(700, AvoidReplicaTraffic, int, (void))                                                       \
    X(700, GetSelectedDb, int, (RedisModuleCtx *))                                                 \
    X(700, SelectDb, int, (RedisModuleCtx *, int))                                                 \
    X(700, GetUsedMemoryRatio, float, (void))                                                      \
    X(700, Milliseconds, long long, (void))                                                        \
    X(700, LatencyAddSample, void, (const char *, long long))                                      \
    X(700, Log, void, (RedisModuleCtx *, const char *, const char *, ...))                         \
    X(700, CreateString, RedisModuleString *, (RedisModuleCtx *, const char *, size_t))            \
    X(700, FreeString, void, (RedisModuleCtx *, RedisModuleString *))                              \
    X(700, StringPtrLen, const char *, (const RedisModuleString *, size_t *))                      \
    X(700, StringToLongLong, int, (const RedisModuleString *, long long *))                        \
    X(700, OpenKey, RedisModuleKey *, (RedisModuleCtx *, RedisModuleString *, int))                \
    X(700, CloseKey, void, (RedisModuleKey *))                                                     \
    X(700, KeyType, int, (RedisModuleKey *))                                                       \
    X(700, ValueLength, size_t, (RedisModuleKey *))                                                \
    X(700, ListGet, RedisModuleString *, (RedisModuleKey *, long))                                 \
    X(700, ListPush, int, (RedisModuleKey *, int, RedisModuleString *))                            \
    X(700, SignalModifiedKey, int, (RedisModuleCtx *, RedisModuleString *))                        \
    X(700, Replicate, int, (RedisModuleCtx *, const char *, const char *, ...))                    \
    X(700, StringDMA, char *, (RedisModuleKey *, size_t *, int))                                   \
    X(700, GetKeyNameFromModuleKey, const RedisModuleString *, (RedisModuleKey *))                 \
    X(700, CallReplyStringPtr, const char *, (RedisModuleCallReply *, size_t *))                   \
    X(700, CreateCommand, int,                                                                     \
      (RedisModuleCtx *, const char *, RedisModuleCmdFunc, const char *, int, int, int))           \
    X(700, GetCommand, RedisModuleCommand *, (RedisModuleCtx *, const char *))                     \
    X(700, SetCommandInfo, int, (RedisModuleCommand *, const RedisModuleCommandInfo *))            \
    X(702, GetModuleOptionsAll, int, (void))                                                       \
    X(800, ClusterKeySlot, unsigned int, (RedisModuleString *))                                    \
    X(804, ClusterCanAccessKeysInSlot, int, (int))                                                 \
    X(702, GetOpenKeyModesAll, int, (void))                                                        \
    X(702, SetCommandACLCategories, int, (RedisModuleCommand *, const char *))                     \
    X(700, RedactClientCommandArgument, int, (RedisModuleCtx *, int))                              \
    X(700, RegisterStringConfig, int,                                                              \
      (RedisModuleCtx *, const char *, const char *, unsigned int, RedisModuleConfigGetStringFunc, \
       RedisModuleConfigSetStringFunc, RedisModuleConfigApplyFunc, void *))                        \
    X(700, LoadConfigs, int, (RedisModuleCtx *))                                                   \
    X(700, RegisterInfoFunc, int, (RedisModuleCtx *, RedisModuleInfoFunc))                         \
    X(700, InfoAddSection, int, (RedisModuleInfoCtx *, const char *))                              \
    X(700, GetServerInfo, RedisModuleServerInfoData *, (RedisModuleCtx *, const char *))           \
    X(700, ServerInfoGetFieldUnsigned, unsigned long long,                                         \
      (RedisModuleServerInfoData *, const char *, int *))                                          \
    X(700, ServerInfoGetFieldC, const char *, (RedisModuleServerInfoData *, const char *))         \
    X(700, FreeServerInfo, void, (RedisModuleCtx *, RedisModuleServerInfoData *))                  \
    X(700, InfoAddFieldCString, int, (RedisModuleInfoCtx *, const char *, const char *))           \
    X(700, InfoAddFieldLongLong, int, (RedisModuleInfoCtx *, const char *, long long))             \
    X(700, SubscribeToKeyspaceEvents, int, (RedisModuleCtx *, int, RedisModuleNotificationFunc))   \
    X(702, AddPostNotificationJob, int,                                                            \
      (RedisModuleCtx *, RedisModulePostNotificationJobFunc, void *, void (*)(void *)))            \
    X(802, UnsubscribeFromKeyspaceEvents, int,                                                     \
      (RedisModuleCtx *, int, RedisModuleNotificationFunc))                                        \
    X(808, SubscribeToKeyspaceEventsWithSubkeys, int,                                              \
      (RedisModuleCtx *, int, int, RedisModuleNotificationWithSubkeysFunc))                        \
    X(808, UnsubscribeFromKeyspaceEventsWithSubkeys, int,                                          \
      (RedisModuleCtx *, int, int, RedisModuleNotificationWithSubkeysFunc))                        \
    X(700, SubscribeToServerEvent, int,                                                            \
      (RedisModuleCtx *, RedisModuleEvent, RedisModuleEventCallback))                              \
    X(700, RegisterClusterMessageReceiver, void,                                                   \
      (RedisModuleCtx *, uint8_t, RedisModuleClusterMessageReceiver))                              \
    X(700, SendClusterMessage, int,                                                                \
      (RedisModuleCtx *, const char *, unsigned char, const char *, uint32_t))                     \
    X(700, EventLoopAdd, int, (int, int, RedisModuleEventLoopFunc, void *))                        \
    X(700, EventLoopDel, int, (int, int))                                                          \
    X(700, GetDetachedThreadSafeContext, RedisModuleCtx *, (RedisModuleCtx *))                     \
    X(700, FreeThreadSafeContext, void, (RedisModuleCtx *))                                        \
    X(700, BlockClient, RedisModuleBlockedClient *,                                                \
      (RedisModuleCtx *, RedisModuleCmdFunc, RedisModuleCmdFunc, RedisModuleFreeFunc, long long))  \
    X(700, UnblockClient, int, (RedisModuleBlockedClient *, void *))                               \
    X(700, GetBlockedClientPrivateData, void *, (RedisModuleCtx *))                                \
    X(700, ReplyWithError, int, (RedisModuleCtx *, const char *))                                  \
    X(700, ReplyWithSimpleString, int, (RedisModuleCtx *, const char *))                           \
    X(700, ReplyWithStringBuffer, int, (RedisModuleCtx *, const char *, size_t))                   \
    X(700, ReplyWithLongLong, int, (RedisModuleCtx *, long long))                                  \
    X(700, ReplyWithArray, int, (RedisModuleCtx *, long))                                          \
    X(700, ReplyWithMap, int, (RedisModuleCtx *, long))                                            \
    X(700, ReplyWithNull, int, (RedisModuleCtx *))                                                 \
    X(700, Call, RedisModuleCallReply *, (RedisModuleCtx *, const char *, const char *, ...))      \
    X(700, CallReplyType, int, (RedisModuleCallReply *))                                           \
    X(700, CallReplyInteger, long long, (RedisModuleCallReply *))                                  \
    X(700, CallReplyLength, size_t, (RedisModuleCallReply *))                                      \
    X(700, CallReplyArrayElement, RedisModuleCallReply *, (RedisModuleCallReply *, size_t))        \
    X(700, CallReplyProto, const char *, (RedisModuleCallReply *, size_t *))                       \
    X(700, FreeCallReply, void, (RedisModuleCallReply *))                                          \
    X(700, DbSize, unsigned long long, (RedisModuleCtx *))                                         \
    X(700, Scan, int, (RedisModuleCtx *, RedisModuleScanCursor *, RedisModuleScanFunc, void *))    \
    X(700, ScanCursorCreate, RedisModuleScanCursor *, (void))                                      \
    X(700, ScanCursorRestart, void, (RedisModuleScanCursor *))                                     \
    X(700, ScanCursorDestroy, void, (RedisModuleScanCursor *))

/* Hidden, so that calls do not go through the global offset table. */
#define REDIS_API_DECLARE(version, name, result, parameters)                                       \
    extern __attribute__((visibility("hidden"))) result(*RedisModule_##name) parameters;
REDIS_API(REDIS_API_DECLARE)
#undef REDIS_API_DECLARE

/* Main thread, at load. Looks up one function by its whole name, and stores its address at
 * `function`. Returns REDISMODULE_OK, or REDISMODULE_ERR if the server has none. */
static inline int redis_api_find(void *ctx, const char *name, void **function) {
    int (*get_api)(const char *, void *) = *(int (**)(const char *, void *))ctx;
    return get_api(name, (void *)function);
}

/* True if the server is Valkey: only Valkey has its functions under its own name too. */
extern __attribute__((visibility("hidden"))) int redis_api_of_valkey;

/* Main thread, at load, before any other function of the server. Looks all functions up.
 * Returns NULL, or the name of the first missing one that each server of the supported
 * versions has. */
const char *redis_api_load(void *ctx);

#endif
