/* Preloaded into a server, this tells whether its process ends while a thread is ending: the end of
 * each thread but the first takes until the process begins to end, or a second. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define SAY(text) (write(2, text, sizeof(text) - 1) < 0 ? abort() : (void)0)

typedef void *(*thread_main)(void *);
typedef struct {
    thread_main run;
    void *data;
} thread_t;

static pthread_key_t key;
static sem_t process_ends;

static void thread_ends(void *thread) {
    free(thread);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec++;
    if (sem_timedwait(&process_ends, &until) == 0)
        SAY("a thread ends with the process\n");
    else
        SAY("a thread ends before the process\n");
}

__attribute__((constructor)) static void start(void) {
    sem_init(&process_ends, 0, 0);
    pthread_key_create(&key, thread_ends);
}

static void *run(void *data) {
    thread_t *thread = data;
    pthread_setspecific(key, thread);
    return thread->run(thread->data);
}

int pthread_create(pthread_t *id, const pthread_attr_t *attributes, thread_main run_, void *data) {
    int (*create)(pthread_t *, const pthread_attr_t *, thread_main, void *) =
        dlsym(RTLD_NEXT, "pthread_create");
    thread_t *thread = malloc(sizeof(*thread));
    *thread = (thread_t){.run = run_, .data = data};
    return create(id, attributes, run, thread);
}

void exit(int code) {
    void (*leave)(int) = dlsym(RTLD_NEXT, "exit");
    sem_post(&process_ends);
    usleep(100000); /* so that a thread that is ending says so */
    leave(code);
    abort();
}
