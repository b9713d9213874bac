/* Atomic slot migrations: CLUSTER MIGRATESLOTS of Valkey 9, CLUSTER MIGRATION of Redis 8.4.
 *
 * Such a migration copies the keys of slots to another node while the old one goes on serving
 * them, and then hands all of the slots over at once. The commands that copy the keys, and those
 * that remove them where they are not served, have keyspace events. But these commands do not
 * change the data, so their events are not captured: the node that has answered the client has
 * captured the change. Main thread, all of it. */
#ifndef KEYSPACE_AMQP_MIGRATION_H
#define KEYSPACE_AMQP_MIGRATION_H
#include "redis_api.h"
#include "state.h"

/* At load, before the options of the module are set: finds the server's form of migrations. */
void migration_prepare(RedisModuleCtx *ctx);
/* Returns the option that says that the module supports these migrations, or 0 if the server has
 * no such option. */
int migration_option(void);
/* At load: subscribes to the server event, and reads which imports are under way. */
void migration_subscribe(RedisModuleCtx *ctx);
/* Before a data set is loaded, in place of the one into which the slots were imported. */
void migration_forget_imports(void);
/* After a data set was loaded: asks the server which imports are under way, because the data set
 * may have the start of an import. */
void migration_read(RedisModuleCtx *ctx);
/* Once in each turn of the event loop: forgets the slots that have left. */
void migration_turn_ends(void);
/* True if slots have left this node in this turn by such a migration. */
int migration_has_left(void);
/* See migration_hides. */
int migration_hides_slot_of(RedisModuleString *key);

/* True if an event of this key is part of a migration, and is not captured. */
static inline int migration_hides(RedisModuleString *key) {
    return __builtin_expect(main_thread.watches_slots, 0) && migration_hides_slot_of(key);
}

#endif
