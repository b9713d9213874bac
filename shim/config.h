/* The parameters as configs of the server. Main thread, all of it. */
#ifndef KEYSPACE_AMQP_CONFIG_H
#define KEYSPACE_AMQP_CONFIG_H
#include <stddef.h>

#include "redis_api.h"

/* True if the argument is this word, in whatever case. */
int is_word(RedisModuleString *argument, const char *word);
/* Returns the index of the parameter with this name, or -1. */
int config_index(RedisModuleString *name);
/* Registers the parameters and gives them their first values: `argv` has the positional
 * arguments. Logs what is wrong and returns REDISMODULE_ERR if one is not accepted. */
int config_register(RedisModuleCtx *ctx, RedisModuleString **argv, int argc);
/* Gives the parameters to the queue and to the worker. */
void config_send(void);
/* Does the same, and has the events and values captured that the parameters name. */
void config_apply(RedisModuleCtx *ctx);
/* Sets parameters, all or none; `argv` has names, which exist, and values. Returns 0, or -1
 * with a message about the first value that is refused. */
int config_set_all(RedisModuleCtx *ctx, RedisModuleString **argv, int argc, char *error,
                   size_t capacity);
/* Frees the values. */
void config_release(void);

#endif
