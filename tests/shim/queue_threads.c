/* Drives shim/queue.c as the module does, with threads of its own and nothing of
 * Redis or Python: test_sanitizers.py builds it with a sanitizer and runs it.
 *
 *     queue_threads COUNT LIMIT
 *
 * One thread pushes COUNT events into a queue of LIMIT bytes, and a request into a
 * second queue before every REQUEST_EVERY-th of them. One takes them, checks every
 * byte, and gives them back, at times a part only; now and then it lets the queue get
 * full first. A third looks at the counters.
 * Ends with 0 and says how much it has seen, or with 1 and what was wrong.
 */
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api.h"

#define REQUEST_EVERY 7
/* Larger than a chunk of queue.c, so that now and then one is made and freed. */
#define HUGE_BYTES 100000
#define HUGE_EVERY 20011
#define PATTERN_BYTES (HUGE_BYTES + 256)
/* The number of times, in the first half of the events, that the taking thread waits for a
 * refusal: without these waits the queue might never be full. */
#define FILLS 10

static queue_t *events, *requests;
static uint64_t count, limit;
/* Relaxed wherever it is used: it must not order what the queue has to order. */
static _Atomic uint64_t refused;
static char pattern[PATTERN_BYTES];
/* Written before event n is pushed and read after it was seen in queue_pushed, with
 * nothing but the queue between the two threads: what api.h promises. */
static uint64_t *plain;
static _Atomic int done;

static void check(int fine, const char *what, uint64_t number) {
    if (fine) return;
    printf("%s is wrong at %" PRIu64 "\n", what, number);
    fflush(stdout);
    _exit(1);
}

/* A payload size: many sizes, and no two neighbours alike. */
static size_t payload_len(uint64_t number) {
    return number % HUGE_EVERY == HUGE_EVERY - 1 ? HUGE_BYTES : number * 7919 % 200;
}

static void make(uint64_t number, uint8_t kind, record_t *head, char *name) {
    memset(head, 0, sizeof(*head));
    head->name_len = (uint16_t)sprintf(name, "e%d", (int)(number % 10));
    head->payload_len = (uint32_t)payload_len(number);
    head->time_ms = number * 1000003;
    head->db = (int32_t)number;
    head->kind = kind;
    head->class_bit = (uint8_t)(number % 15);
}

static void *push_all(void *data) {
    char name[8];
    record_t head;
    for (uint64_t number = 0; number < count; number++) {
        if (number % REQUEST_EVERY == 0) {
            make(number, RECORD_COMMAND, &head, name);
            check(queue_push(requests, &head, name, pattern + number % 97) == 0, "a request",
                  number);
        }
        plain[number] = ~number;
        make(number, RECORD_EVENT, &head, name);
        while (queue_push(events, &head, name, pattern + number % 97) != 0) {
            atomic_fetch_add_explicit(&refused, 1, memory_order_relaxed);
            sched_yield();
        }
    }
    return data;
}

/* Takes the records that are contiguous in a queue. Returns the number of the next record. */
static uint64_t take(queue_t *queue, uint8_t kind, uint64_t number, uint64_t step, int half) {
    const char *records;
    size_t size = queue_take(queue, &records), at = 0, taken = 0;
    while (at < size && !(half && at > size / 2)) {
        char name[8];
        record_t head, expected;
        memcpy(&head, records + at, sizeof(head));
        make(number, kind, &expected, name);
        expected.size = head.size;
        check(memcmp(&head, &expected, sizeof(head)) == 0, "a head", number);
        size_t text = head.name_len + (size_t)head.payload_len;
        check(head.size == (sizeof(head) + text + 7) / 8 * 8, "a size", number);
        const char *at_name = records + at + sizeof(head);
        check(memcmp(at_name, name, head.name_len) == 0, "a name", number);
        check(memcmp(at_name + head.name_len, pattern + number % 97, head.payload_len) == 0,
              "a payload", number);
        at += head.size;
        number += step;
        taken++;
    }
    check(at <= size, "the end", number);
    if (taken > 0) queue_release(queue, at, taken);
    return number;
}

static void *take_all(void *data) {
    uint64_t event = 0, command = 0, fills = 0;
    for (int turn = 0; event < count; turn++) {
        if (limit > 0 && fills < FILLS && event >= count / 2 / FILLS * fills) {
            uint64_t before = atomic_load_explicit(&refused, memory_order_relaxed);
            while (atomic_load_explicit(&refused, memory_order_relaxed) == before)
                sched_yield();
            fills++;
        }
        uint64_t pushed = queue_pushed(events);
        if (pushed > 0) check(plain[pushed - 1] == ~(pushed - 1), "plain data", pushed - 1);
        for (uint64_t before = command + 1; before != command;) {
            before = command;
            command = take(requests, RECORD_COMMAND, command, REQUEST_EVERY, 0);
        }
        /* The requests before the last event that is counted are there. */
        check(command >= pushed, "the order of two queues", command);
        uint64_t before = event;
        event = take(events, RECORD_EVENT, event, 1, turn % 3 == 0);
        if (event == before) sched_yield();
    }
    return data;
}

static void *look(void *data) {
    while (!atomic_load(&done)) {
        /* A counter that is late would make a difference below zero. */
        check(queue_length(events) <= count, "the length", 0);
        check(queue_bytes(events) < SIZE_MAX / 2, "the number of bytes", 0);
        check(queue_pushed(events) <= count, "the number of events", 0);
        queue_set_limit(events, queue_get_limit(events));
        usleep(50);
    }
    return data;
}

int main(int argc, char **argv) {
    count = argc == 3 ? strtoull(argv[1], NULL, 10) : 0;
    if (count == 0) return 2;
    limit = strtoull(argv[2], NULL, 10);
    events = queue_new(limit);
    requests = queue_new(1);
    plain = calloc(count, sizeof(*plain));
    for (size_t i = 0; i < PATTERN_BYTES; i++)
        pattern[i] = (char)(i * i % 251);
    pthread_t pushing, taking, looking;
    pthread_create(&taking, NULL, take_all, NULL);
    pthread_create(&looking, NULL, look, NULL);
    pthread_create(&pushing, NULL, push_all, NULL);
    pthread_join(pushing, NULL);
    pthread_join(taking, NULL);
    atomic_store(&done, 1);
    pthread_join(looking, NULL);
    check(queue_length(events) == 0 && queue_bytes(events) == 0, "the rest", count);
    check(queue_pushed(events) == count, "the number of events", count);
    queue_free(events);
    queue_free(requests);
    free(plain);
    printf("%" PRIu64 " events, %" PRIu64 " times full\n", count, atomic_load(&refused));
    return 0;
}
