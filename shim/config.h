/* The parameters as configuration of the server. Main thread, all of it. */
#ifndef KEYSPACE_AMQP_CONFIG_H
#define KEYSPACE_AMQP_CONFIG_H
#include <stddef.h>

#include "redis_api.h"

/* True if the argument is this word, in upper or lower case. */
int is_word(RedisModuleString *argument, const char *word);
/* Returns the index of the parameter with this name, or -1. */
int config_index(RedisModuleString *name);
/* Registers the parameters and gives them their first values: `argv` has the positional
 * arguments. Returns REDISMODULE_ERR and logs the reason if one is not accepted. */
int config_register(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
/* Passes all parameters to the queue and to the worker. */
void config_send(void);
/* Does the same if one has changed, and sets which events and values are captured. */
void config_apply(RedisModuleCtx *ctx);
/* Sets parameters, all or none; `argv` has names of parameters that exist, and values. Returns 0,
 * or -1 with a message about the first value that is refused. */
int config_set_all(RedisModuleCtx *ctx, RedisModuleString **argv, int argc, char *error,
                   size_t capacity);
/* False if events are never put into a list: `fallback-size` is negative. */
int config_has_list(void);
/* Frees the values. */
void config_release(void);

#endif
