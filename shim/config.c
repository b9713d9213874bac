/* See config.h. parameters.c knows which values are accepted; this file keeps them. */
#include "config.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api.h"
#include "buffer.h"
#include "capture.h"
#include "outbox.h"
#include "state.h"
#include "tables.h"
#include "values.h"
#include "worker.h"

static RedisModuleString *values[PARAMETERS_COUNT];
static int unsent;     /* a value has changed since config_send */
static int unfiltered; /* `masks` or `databases` have changed since set_filter */

int is_word(RedisModuleString *argument, const char *word) {
    size_t len;
    const char *text = RedisModule_StringPtrLen(argument, &len);
    return len == strlen(word) && strncasecmp(text, word, len) == 0;
}

int config_index(RedisModuleString *name) {
    for (int i = 0; i < PARAMETERS_COUNT; i++)
        if (is_word(name, PARAMETERS[i].name)) return i;
    return -1;
}

static const char *text_of(int index) { return RedisModule_StringPtrLen(values[index], NULL); }

static int check(int index, RedisModuleString *value, char *error, size_t capacity) {
    size_t len;
    const char *bytes = RedisModule_StringPtrLen(value, &len);
    if (index == PARAMETER_INDEX_OUTBOX && !outbox_can(bytes)) {
        snprintf(error, capacity,
                 "outbox: '%s' is not accepted: it needs Redis 7.2 or Valkey 7.2, or later; "
                 "give reply or off",
                 bytes);
        return -1;
    }
    return parameters_check(index, bytes, len, capture_available(), error, capacity);
}

/* Keeps a copy of a value that was checked. */
static void keep(int index, RedisModuleString *value) {
    size_t len, old_len;
    const char *bytes = RedisModule_StringPtrLen(value, &len);
    RedisModuleString *old = values[index];
    if (old != NULL) {
        const char *old_bytes = RedisModule_StringPtrLen(old, &old_len);
        if (old_len == len && memcmp(old_bytes, bytes, len) == 0) return;
    }
    unsent = 1;
    if (index == PARAMETER_INDEX_MASKS || index == PARAMETER_INDEX_DATABASES) unfiltered = 1;
    values[index] = RedisModule_CreateString(NULL, bytes, len);
    if (old != NULL) RedisModule_FreeString(NULL, old);
}

/* ---- passing the values on -------------------------------------------------------- */

void config_send(void) {
    unsent = 0;
    queue_set_limit(shared.events, strtoull(text_of(PARAMETER_INDEX_QUEUE_LIMIT), NULL, 10));
    buffer_t buffer = {0};
    for (int i = 0; i < PARAMETERS_COUNT; i++)
        buffer_add_string(&buffer, values[i]);
    worker_request_buffer(RECORD_CONFIG, &buffer);
}

/* Makes the filter anew, if its parameters have changed. */
static void set_filter(void) {
    if (!unfiltered) return;
    unfiltered = 0;
    size_t len;
    const char *masks = RedisModule_StringPtrLen(values[PARAMETER_INDEX_MASKS], &len);
    filter_free(main_thread.filter);
    main_thread.filter = filter_new(masks, len, text_of(PARAMETER_INDEX_DATABASES));
}

void config_apply(RedisModuleCtx *ctx) {
    set_filter();
    const char *classes = text_of(PARAMETER_INDEX_EVENTS);
    /* A message in the format `text` has no value and no subkeys. */
    int is_text = strcmp(text_of(PARAMETER_INDEX_FORMAT), "text") == 0;
    capture_classes(ctx, parameters_classes(classes, strlen(classes)),
                    is_text ? 0 : atoi(text_of(PARAMETER_INDEX_SUBKEYS)));
    values_take(ctx, is_text ? 0 : strtoul(text_of(PARAMETER_INDEX_VALUE), NULL, 10));
    outbox_set_mode(text_of(PARAMETER_INDEX_OUTBOX), config_has_list());
    main_thread.fallback_memory = atoi(text_of(PARAMETER_INDEX_FALLBACK_MEMORY));
    if (unsent) config_send(); /* on_apply is called for each parameter of a CONFIG SET */
}

int config_has_list(void) { return strtoll(text_of(PARAMETER_INDEX_FALLBACK_SIZE), NULL, 10) >= 0; }

/* ---- CONFIG GET and CONFIG SET ------------------------------------------------------ */

static RedisModuleString *on_get(const char *name, void *index) {
    (void)name;
    return values[(intptr_t)index];
}

static int on_set(const char *name, RedisModuleString *value, void *index,
                  RedisModuleString **error) {
    (void)name;
    char message[ERROR_BYTES];
    if (check((int)(intptr_t)index, value, message, sizeof(message)) != 0) {
        *error = RedisModule_CreateString(NULL, message, strlen(message));
        return REDISMODULE_ERR;
    }
    keep((int)(intptr_t)index, value);
    return REDISMODULE_OK;
}

/* Called for each parameter of a CONFIG SET, after the values of all of them were set. */
static int on_apply(RedisModuleCtx *ctx, void *index, RedisModuleString **error) {
    (void)index;
    (void)error;
    config_apply(ctx);
    return REDISMODULE_OK;
}

int config_set_all(RedisModuleCtx *ctx, RedisModuleString **argv, int argc, char *error,
                   size_t capacity) {
    for (int i = 0; i + 1 < argc; i += 2)
        if (check(config_index(argv[i]), argv[i + 1], error, capacity) != 0) return -1;
    for (int i = 0; i + 1 < argc; i += 2)
        keep(config_index(argv[i]), argv[i + 1]);
    config_apply(ctx);
    return 0;
}

/* ---- load and unload ------------------------------------------------------------------ */

/* Appends an argument of the load to the list of masks. Returns 0, or -1 with a message. */
static int add_mask(char *masks, size_t *used, size_t capacity, const char *mask, size_t len,
                    char *error, size_t error_capacity) {
    if (len == 0 || (len == 1 && mask[0] == '!')) {
        snprintf(error, error_capacity, "masks: '%s' is not accepted; give %s", mask,
                 len == 0 ? "ALL for every key" : "!^tmp: to exclude ^tmp:, say");
        return -1;
    }
    *used = parameters_append_mask(masks, *used, capacity, mask, len);
    return 0;
}

/* Checks the positional arguments and joins the masks among them into one value of `masks`;
 * the caller frees it. Returns NULL and logs if one is not accepted. */
static char *check_arguments(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    int classes = capture_available();
    char error[ERROR_BYTES];
    size_t capacity = 16, used = 0, len;
    for (int i = PARAMETER_INDEX_MASKS; i < argc; i++) {
        RedisModule_StringPtrLen(argv[i], &len);
        capacity += len * 4 + 2; /* each byte may become \xHH */
    }
    char *masks = calloc(1, capacity);
    if (masks == NULL) abort();
    for (int i = 0; i < argc; i++) {
        const char *value = RedisModule_StringPtrLen(argv[i], &len);
        int failed = i < PARAMETER_INDEX_MASKS
                         ? parameters_check(i, value, len, classes, error, sizeof(error))
                         : add_mask(masks, &used, capacity, value, len, error, sizeof(error));
        if (failed) {
            RedisModule_Log(ctx, "warning", "argument %d, %s", i + 1, error);
            free(masks);
            return NULL;
        }
    }
    if (parameters_check(PARAMETER_INDEX_MASKS, masks, used, classes, error, sizeof(error)) != 0) {
        RedisModule_Log(ctx, "warning", "argument %d and later, %s", PARAMETER_INDEX_MASKS + 1,
                        error);
        free(masks);
        return NULL;
    }
    return masks;
}

/* CONFIG REWRITE writes the arguments of a module without quotes. Returns true if this one would
 * not survive that: the next start would read other arguments, or not start. */
static int needs_quotes(RedisModuleString *argument) {
    size_t len;
    const char *bytes = RedisModule_StringPtrLen(argument, &len);
    return len == 0 || strpbrk(bytes, " \t\n\v\f\r\"'") != NULL;
}

/* Names the arguments that CONFIG REWRITE would spoil, and not their values. */
static void warn_of_rewrite(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    for (int i = 0; i < argc; i++) {
        if (!needs_quotes(argv[i])) continue;
        int index = i < PARAMETER_INDEX_MASKS ? i : PARAMETER_INDEX_MASKS;
        RedisModule_Log(ctx, "warning",
                        "argument %d, %s: it is empty or has blanks or quotes, and CONFIG REWRITE "
                        "would write it without quotes, so that the next start reads it wrongly. "
                        "Give the parameter by its name: " MODULE_NAME ".%s",
                        i + 1, PARAMETERS[index].name, PARAMETERS[index].name);
        if (index == PARAMETER_INDEX_MASKS) return; /* the name is for all masks */
    }
}

/* The positional arguments become the defaults. So a value that is given by name wins, and
 * CONFIG REWRITE leaves out values that the arguments set already. */
int config_register(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    char *masks = check_arguments(ctx, argv, argc);
    if (masks == NULL) return REDISMODULE_ERR;
    warn_of_rewrite(ctx, argv, argc);
    int result = REDISMODULE_OK;
    for (intptr_t i = 0; i < PARAMETERS_COUNT && result == REDISMODULE_OK; i++) {
        const char *value = PARAMETERS[i].default_value;
        if (i < argc && i < PARAMETER_INDEX_MASKS) value = RedisModule_StringPtrLen(argv[i], NULL);
        if (i == PARAMETER_INDEX_MASKS && masks[0] != '\0') value = masks;
        result = RedisModule_RegisterStringConfig(
            ctx, PARAMETERS[i].name, value,
            PARAMETERS[i].sensitive ? REDISMODULE_CONFIG_SENSITIVE : REDISMODULE_CONFIG_DEFAULT,
            on_get, on_set, on_apply, (void *)i);
    }
    free(masks);
    return result == REDISMODULE_OK ? RedisModule_LoadConfigs(ctx) : result;
}

void config_release(void) {
    for (int i = 0; i < PARAMETERS_COUNT; i++) {
        if (values[i] != NULL) RedisModule_FreeString(NULL, values[i]);
        values[i] = NULL;
    }
    filter_free(main_thread.filter);
    main_thread.filter = NULL;
}
