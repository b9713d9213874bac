/* See changes.h. For each list only the last change is kept: it decides the reason of what is
 * missing at the next look, and the worker looks once, not once for each change. */
#include "changes.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "api.h"
#include "buffer.h"
#include "jobs.h"
#include "worker.h"

/* Lists that are told apart; with more of them the worker looks at all. A node has one list, or
 * a few while slots move. */
#define LISTS 16
/* Bytes of a key that are kept; with a longer one the worker looks at all lists. */
#define KEY_BYTES 128
/* Bytes of the name of a command or event; longer ones are cut. */
#define WHAT_BYTES 32
/* While this many bytes of requests wait, the worker is behind, and changes are collected over
 * several turns. */
#define BEHIND ((size_t)1024 * 1024)

typedef struct {
    char what[WHAT_BYTES];
    size_t len;
    char key[KEY_BYTES];
} change_t;

static change_t all; /* of any list, before `lists`; none if `what` is empty */
static change_t lists[LISTS];
static int count_lists;

static void set_what(change_t *change, const char *what) {
    snprintf(change->what, sizeof(change->what), "%s", what);
}

void changes_note(const char *what, const char *key, size_t len) {
    if (len == 0) { /* what was noted before makes no difference any more */
        changes_forget();
        set_what(&all, what);
        return;
    }
    for (int i = 0; i < count_lists; i++)
        if (lists[i].len == len && memcmp(lists[i].key, key, len) == 0) {
            set_what(&lists[i], what);
            return;
        }
    if (count_lists == LISTS || len > KEY_BYTES) {
        if (all.what[0] == '\0') set_what(&all, what);
        return;
    }
    change_t *change = &lists[count_lists++];
    set_what(change, what);
    change->len = len;
    memcpy(change->key, key, len);
}

static void send(const change_t *change) {
    const uint64_t jobs = jobs_count();
    buffer_t buffer = {0};
    buffer_add(&buffer, &jobs, sizeof(jobs));
    buffer_add_counted(&buffer, change->what, strlen(change->what));
    buffer_add_counted(&buffer, change->key, change->len);
    worker_request_buffer(RECORD_LIST_CHANGED, &buffer);
}

void changes_send(void) {
    if (all.what[0] == '\0' && count_lists == 0) return;
    const int count = count_lists;
    count_lists = 0; /* before the requests, which call this function too */
    if (all.what[0] != '\0') {
        change_t change = all;
        all.what[0] = '\0';
        send(&change);
    }
    for (int i = 0; i < count; i++)
        send(&lists[i]);
}

void changes_send_unless_behind(void) {
    if (worker_request_bytes() <= BEHIND) changes_send();
}

void changes_forget(void) {
    all.what[0] = '\0';
    count_lists = 0;
}
