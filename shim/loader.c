/* The file that the server loads. It opens the core, a second file beside it, which has everything
 * else and is linked with libpython. It calls the core at load and unload.
 *
 * Valkey opens modules with RTLD_DEEPBIND. A module, and the libraries that come into the
 * process with it, then look for a function in each other and in libc first, and only then in
 * the server and its libraries. But libc looks in the server first, as always. If the server has
 * a malloc from a shared library (Debian's Valkey has jemalloc, and LD_PRELOAD brings others),
 * libc's strdup would take memory from that malloc, and libpython and the shim would give it back
 * to libc's malloc. That ends the process. So the core is opened without the flag, and all code
 * in the process has one malloc. This file, for which the flag holds, links with libc alone and
 * neither allocates nor frees.
 *
 * Main thread. */
#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "module.h"
#include "redis_api.h"

/* From CMakeLists.txt: the name of the core's file; that of libpython, without its ending. */
#ifndef CORE_FILE
#define CORE_FILE ""
#endif
#ifndef LIBPYTHON
#define LIBPYTHON ""
#endif

static __typeof__(keyspace_amqp_unload) *core_unload;

/* Finds the core beside this file, or beside the one that a symbolic link leads to, and nowhere
 * else: never in a search path. `path` has PATH_MAX bytes. Returns 0, or -1. */
static int find_core(char *path) {
    Dl_info info;
    if (dladdr((void *)find_core, &info) == 0 || realpath(info.dli_fname, path) == NULL) return -1;
    char *name = strrchr(path, '/') + 1;
    if ((size_t)(name - path) + sizeof(CORE_FILE) > PATH_MAX) return -1;
    memcpy(name, CORE_FILE, sizeof(CORE_FILE));
    return 0;
}

__attribute__((visibility("default"))) int RedisModule_OnLoad(RedisModuleCtx *ctx,
                                                              RedisModuleString **argv, int argc) {
    void (*log)(RedisModuleCtx *, const char *, const char *, ...) = NULL;
    __typeof__(keyspace_amqp_load) *core_load = NULL;
    char path[PATH_MAX] = "";
    const char *error = "cannot find the path of this module's own file";
    redis_api_find(ctx, "RedisModule_Log", (void *)&log);
    if (find_core(path) == 0) {
        /* It stays in the process: the interpreter that it starts cannot be ended. */
        void *core = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (core != NULL) core_load = dlsym(core, "keyspace_amqp_load");
        if (core_load != NULL) core_unload = dlsym(core, "keyspace_amqp_unload");
        if (core_load == NULL || core_unload == NULL) error = dlerror();
    }
    if (core_load != NULL && core_unload != NULL) return core_load(ctx, argv, argc);
    if (log != NULL)
        log(ctx, "warning", "keyspace-amqp not loaded: %s. %s", error,
            path[0] == '\0' ? "Load it by its whole path, without links that lead nowhere"
            : access(path, R_OK) != 0
                ? "It has to be in the folder of the file that is loaded, and the server's user "
                  "must be "
                  "able to read it. Load the module where pip installed it (keyspace-amqp path "
                  "prints its place), or make a symbolic link to it"
                : "It needs the " LIBPYTHON " that it was built with, where the server's user can "
                  "use it: install that (Debian's package has this name), or install "
                  "keyspace-amqp again");
    return REDISMODULE_ERR;
}

__attribute__((visibility("default"))) int RedisModule_OnUnload(RedisModuleCtx *ctx) {
    return core_unload(ctx);
}
