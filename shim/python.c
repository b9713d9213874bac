/* Finds, starts and enters the embedded CPython. See python.h. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "python.h"

/* In the C file that cffi generates: calls the handler's entry point. */
int handler_enter(void);
/* In the same file: initialises the module `_keyspace_amqp`. */
PyMODINIT_FUNC PyInit__keyspace_amqp(void);

/* From CMakeLists.txt: the interpreter of the build; and the folder that holds the package,
 * if the module is used from the build folder. */
#ifndef BUILD_PYTHON
#define BUILD_PYTHON ""
#endif
#ifndef BUILD_PACKAGE_PARENT
#define BUILD_PACKAGE_PARENT ""
#endif

#define PYTHON_NAME "python" Py_STRINGIFY(PY_MAJOR_VERSION) "." Py_STRINGIFY(PY_MINOR_VERSION)

static int started;
static char program[PATH_MAX];        /* the interpreter whose environment is used */
static char package_parent[PATH_MAX]; /* the folder that holds keyspace_amqp/ */
static char
    outside[PATH_MAX]; /* the folder of an installed module without an interpreter near it */
static char description[PATH_MAX + 256];
static char version[32];

/* Writes a message and returns -1, so that the caller fails in one statement. */
static int fail(char *error, size_t capacity, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error, capacity, format, arguments);
    va_end(arguments);
    return -1;
}

static int is_file(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 && S_ISREG(status.st_mode);
}

/* Joins a path. Returns -1 if it is too long: a truncated path would name another file. */
static int join(char *out, const char *folder, const char *rest) {
    int len = snprintf(out, PATH_MAX, "%s%s", folder, rest);
    return len > 0 && len < PATH_MAX ? 0 : -1;
}

/* Appends the most likely reason to a message, if the module is outside of an environment. */
static void hint_at_copy(char *error, size_t capacity) {
    size_t used = strlen(error);
    if (outside[0] != '\0' && used < capacity)
        snprintf(error + used, capacity - used,
                 ". Was %s copied out of its virtual environment? Then load the file inside of the "
                 "environment, where pip installed it (keyspace-amqp path prints its place), "
                 "directly or by a symbolic link",
                 outside);
}

/* Finds the handler, and the interpreter whose environment has its packages.
 *
 * An installed module is in .../lib/pythonX.Y/site-packages/keyspace_amqp (or dist-packages),
 * beside the handler. The interpreter is found from there, so that nothing depends on where
 * the module was built. A module in a build folder has no handler beside it and uses the
 * paths of the build. */
static int find_environment(char *error, size_t capacity) {
    Dl_info info;
    char self[PATH_MAX], path[PATH_MAX], folder[PATH_MAX];
    if (dladdr((void *)find_environment, &info) == 0 || realpath(info.dli_fname, self) == NULL)
        return fail(error, capacity, "cannot find the path of this module's own file");
    snprintf(folder, sizeof(folder), "%s", dirname(self));

    int is_installed = join(path, folder, "/worker/loop.py") == 0 && is_file(path);
    outside[0] = '\0';
    if (is_installed) {
        snprintf(outside, sizeof(outside), "%s", folder);
        char *parent = dirname(folder); /* site-packages */
        snprintf(package_parent, sizeof(package_parent), "%s", parent);
        char prefix[PATH_MAX];
        if (join(prefix, parent, "/../../..") == 0 &&
            join(path, prefix, "/bin/" PYTHON_NAME) == 0 && is_file(path)) {
            char real_prefix[PATH_MAX];
            outside[0] = '\0';
            if (realpath(prefix, real_prefix) != NULL)
                return join(program, real_prefix, "/bin/" PYTHON_NAME);
        }
    } else if (BUILD_PACKAGE_PARENT[0] != '\0') {
        snprintf(package_parent, sizeof(package_parent), "%s", BUILD_PACKAGE_PARENT);
        if (join(path, package_parent, "/keyspace_amqp/worker/loop.py") != 0 || !is_file(path))
            return fail(
                error, capacity,
                "the handler is missing: there is no %s/keyspace_amqp/worker/loop.py. Was the "
                "source folder moved? Build again, or install with: pip install .",
                package_parent);
    } else {
        return fail(
            error, capacity,
            "the handler is missing: there is no worker/loop.py beside %s. Load the file where "
            "pip installed it (keyspace-amqp path prints its place)",
            info.dli_fname);
    }

    /* The interpreter of the build, or the system's. They are for a module in a build folder,
     * and for one without an interpreter near it: in a user's own site-packages, in a folder
     * of `pip install --target`, in Debian's dist-packages under /usr/local. */
    if (is_file(BUILD_PYTHON)) return join(program, BUILD_PYTHON, "");
    int reason = errno;
    if (is_file("/usr/bin/" PYTHON_NAME) && is_installed)
        return join(program, "/usr/bin/" PYTHON_NAME, "");
    fail(error, capacity,
         "the Python environment is missing: %s: %s. Was the virtual environment moved or "
         "deleted, or may the server's user not read it? Create it again, install "
         "keyspace-amqp into it, and load the file that keyspace-amqp path prints",
         BUILD_PYTHON, strerror(reason));
    hint_at_copy(error, capacity);
    return -1;
}

/* Makes the symbols of our libpython global. The core is opened with RTLD_LOCAL, but
 * extension modules of Python, like the C part of cffi, expect these symbols to be global. */
static int promote_libpython(char *error, size_t capacity) {
    Dl_info info;
    if (dladdr((void *)Py_InitializeFromConfig, &info) == 0)
        return fail(error, capacity, "cannot find the path of libpython");
    if (dlopen(info.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD) == NULL)
        return fail(error, capacity, "cannot make the symbols of %s global: %s", info.dli_fname,
                    dlerror());
    snprintf(version, sizeof(version), "%.*s", (int)strcspn(Py_GetVersion(), " "), Py_GetVersion());
    snprintf(description, sizeof(description), "Python %.32s, %s, %s", Py_GetVersion(), program,
             info.dli_fname);
    char *blank = strchr(description + strlen("Python "), ' ');
    if (blank != NULL) memmove(blank, strchr(blank, ','), strlen(strchr(blank, ',')) + 1);
    return 0;
}

/* Writes the text of the current exception, and clears it. Needs the GIL. */
static void exception_text(char *text, size_t capacity) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    PyObject *string = value != NULL ? PyObject_Str(value) : NULL;
    const char *utf8 = string != NULL ? PyUnicode_AsUTF8(string) : NULL;
    snprintf(text, capacity, "%s", utf8 != NULL ? utf8 : "unknown error");
    PyErr_Clear();
    Py_XDECREF(string);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
}

/* Takes a new reference; NULL: an exception was raised. Returns 0, or says how to install the
 * module that could not be imported. Needs the GIL. */
static int check_import(PyObject *result, const char *name, const char *package, char *error,
                        size_t capacity) {
    if (result != NULL) {
        Py_DECREF(result);
        return 0;
    }
    char text[512];
    exception_text(text, sizeof(text));
    fail(error, capacity,
         "%s cannot import %s: %s. Check with: %s -c 'import %s'; install with: %s -m pip install "
         "%s",
         program, name, text, program, name, program, package);
    hint_at_copy(error, capacity);
    return -1;
}

/* Imports a module. Needs the GIL. */
static int try_import(const char *name, const char *package, char *error, size_t capacity) {
    return check_import(PyImport_ImportModule(name), name, package, error, capacity);
}

/* Looks for a package without importing it. Needs the GIL. */
static int try_find(const char *name, char *error, size_t capacity) {
    PyObject *finder = PyImport_ImportModule("importlib.util");
    PyObject *found = finder ? PyObject_CallMethod(finder, "find_spec", "s", name) : NULL;
    if (found == Py_None) {
        Py_CLEAR(found);
        PyErr_Format(PyExc_ModuleNotFoundError, "No module named '%s'", name);
    }
    Py_XDECREF(finder);
    return check_import(found, name, name, error, capacity);
}

/* Starts the interpreter. Afterwards this thread holds the GIL. */
static int initialize(char *error, size_t capacity) {
    PyPreConfig preconfig;
    PyPreConfig_InitIsolatedConfig(&preconfig);
    preconfig.utf8_mode = 1; /* a daemon may run with any locale */
    PyStatus status = Py_PreInitialize(&preconfig);
    if (!PyStatus_Exception(status)) {
        PyConfig config;
        PyConfig_InitIsolatedConfig(&config);
        config.install_signal_handlers = 0; /* Redis' own stay */
        config.write_bytecode = 0;          /* the server writes nothing to source folders */
        status = PyConfig_SetBytesString(&config, &config.program_name, program);
        if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
        PyConfig_Clear(&config);
    }
    if (PyStatus_Exception(status)) /* true for a request to exit too */
        return fail(error, capacity, "Python did not start with %s: %s%s%s. Check with: %s -c pass",
                    program, status.func ? status.func : "", status.func ? ": " : "",
                    status.err_msg ? status.err_msg : "it asked to exit", program);
    return 0;
}

/* Finds and starts Python, once in a process. Afterwards no thread holds the GIL. */
static int start_interpreter(char *error, size_t capacity) {
    if (Py_IsInitialized())
        return fail(error, capacity,
                    "another build of this module, or another module, has already started Python "
                    "in this process. Restart the server to load this one");
    if (find_environment(error, capacity) != 0) return -1;
    if (promote_libpython(error, capacity) != 0) return -1;
    int major_minor = (int)strcspn(PY_VERSION, ".") + 3; /* "3.11" of "3.11.7" */
    if (strncmp(Py_GetVersion(), PY_VERSION, (size_t)major_minor) != 0)
        return fail(error, capacity, "built for Python %s, but the libpython found is %s",
                    PY_VERSION, Py_GetVersion());
    /* The shim becomes a built-in module of this interpreter, from which the handler imports
     * ffi and lib. */
    if (PyImport_AppendInittab("_keyspace_amqp", PyInit__keyspace_amqp) != 0)
        return fail(error, capacity, "no memory for Python");
    if (initialize(error, capacity) != 0) return -1;
    started = 1;
    PyEval_SaveThread();
    return 0;
}

/* Appends the handler's folder to sys.path. Needs the GIL. */
static int extend_path(char *error, size_t capacity) {
    PyObject *folder = PyUnicode_DecodeFSDefault(package_parent);
    PyObject *path = PySys_GetObject("path"); /* borrowed */
    int known = folder != NULL && path != NULL ? PySequence_Contains(path, folder) : -1;
    int result = known == 1 || (known == 0 && PyList_Append(path, folder) == 0) ? 0 : -1;
    if (result != 0) {
        PyErr_Clear();
        fail(error, capacity, "cannot add %s to sys.path", package_parent);
    }
    Py_XDECREF(folder);
    return result;
}

int python_start(char *error, size_t capacity) {
    if (!started && start_interpreter(error, capacity) != 0) return -1;
    /* At each load: a package that was missing may have been installed since. */
    PyGILState_STATE gil = PyGILState_Ensure();
    PyGC_Disable(); /* imports make many objects and no garbage */
    int result = extend_path(error, capacity);
    if (result == 0) result = try_import("_cffi_backend", "cffi", error, capacity);
    /* The worker imports pika after the load, which would else take twice as long: broker/late.py
     */
    if (result == 0) result = try_find("pika", error, capacity);
    if (result == 0)
        result = try_import("keyspace_amqp.worker.loop", "keyspace-amqp", error, capacity);
    PyGC_Enable();
    PyGILState_Release(gil);
    return result;
}

const char *python_describe(void) { return description; }

const char *python_version(void) { return version; }

int python_run_worker(void) { return handler_enter(); }
