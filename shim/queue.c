/* The queue between Redis' main thread and the worker.
 *
 * One thread pushes (Redis' main thread) and one takes (the worker); neither ever waits
 * for the other. Records are copied into chunks of memory. The pushing thread publishes
 * how far a chunk is filled with a release store, and the taking thread reads that with
 * an acquire load. Chunks that were read are not freed but kept as spares for the
 * pushing thread. So a steady flow allocates nothing, and neither do bursts of up to
 * SPARES chunks.
 *
 * Knows neither Redis nor Python; tests/shim/test_queue.py drives it.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"

/* About a thousand events: large enough that the change to another chunk, which may
 * allocate, is rare; small enough to stay in the cache of a core. */
#define CHUNK_BYTES (64 * 1024)
#define ALIGNMENT 8
/* Four megabytes, which the limit does not count: the events of 0.2 seconds at Redis' highest
 * speed. Fresh memory would cost the main thread page faults, about 20 ns for each event. */
#define SPARES 64

typedef struct chunk {
    _Atomic(struct chunk *) next; /* of a chunk in use: written once, by the pushing thread */
    _Atomic(size_t) filled;       /* written by the pushing thread */
    size_t capacity;
    char data[];
} chunk_t;

struct queue {
    /* the pushing thread's */
    chunk_t *tail;
    _Atomic(size_t) pushed_bytes;
    _Atomic(uint64_t) pushed_count;
    /* the taking thread's; on a cache line of its own, so that it does not move from core
     * to core with each write */
    _Alignas(64) chunk_t *head;
    size_t read; /* bytes of the head that were released */
    _Atomic(size_t) released_bytes;
    _Atomic(uint64_t) released_count;
    /* shared */
    _Alignas(64) _Atomic(chunk_t *) spares; /* a stack: the newest first */
    _Atomic(int) spares_count;
    _Atomic(size_t) limit;
};

/* Allocates a chunk for `capacity` bytes. Ends the process if there is no memory, as Redis
 * does. */
static chunk_t *chunk_new(size_t capacity) {
    chunk_t *chunk = malloc(sizeof(*chunk) + capacity);
    if (chunk == NULL) abort();
    atomic_init(&chunk->next, NULL);
    atomic_init(&chunk->filled, 0);
    chunk->capacity = capacity;
    return chunk;
}

queue_t *queue_new(size_t limit) {
    queue_t *queue = aligned_alloc(64, sizeof(*queue));
    if (queue == NULL) abort();
    memset(queue, 0, sizeof(*queue));
    queue->head = queue->tail = chunk_new(CHUNK_BYTES);
    atomic_init(&queue->limit, limit);
    return queue;
}

void queue_free(queue_t *queue) {
    if (queue == NULL) return;
    chunk_t *chunk = queue->head;
    while (chunk != NULL) {
        chunk_t *next = atomic_load(&chunk->next);
        free(chunk);
        chunk = next;
    }
    for (chunk_t *spare = atomic_load(&queue->spares); spare != NULL; spare = chunk) {
        chunk = atomic_load(&spare->next);
        free(spare);
    }
    free(queue);
}

size_t queue_bytes(const queue_t *queue) {
    size_t released = atomic_load_explicit(&queue->released_bytes, memory_order_acquire);
    return atomic_load_explicit(&queue->pushed_bytes, memory_order_relaxed) - released;
}

size_t queue_length(const queue_t *queue) {
    uint64_t released = atomic_load_explicit(&queue->released_count, memory_order_acquire);
    return atomic_load_explicit(&queue->pushed_count, memory_order_relaxed) - released;
}

uint64_t queue_pushed(const queue_t *queue) {
    return atomic_load_explicit(&queue->pushed_count, memory_order_acquire);
}

uint64_t queue_released(const queue_t *queue) {
    return atomic_load_explicit(&queue->released_count, memory_order_acquire);
}

void queue_set_limit(queue_t *queue, size_t limit) {
    atomic_store_explicit(&queue->limit, limit, memory_order_relaxed);
}

size_t queue_get_limit(const queue_t *queue) {
    return atomic_load_explicit(&queue->limit, memory_order_relaxed);
}

/* Pushing thread. Returns a spare chunk, or NULL. Only this thread pops from the stack of
 * spares, so the compare-and-swap cannot suffer ABA. */
static chunk_t *queue_take_spare(queue_t *queue) {
    chunk_t *spare = atomic_load_explicit(&queue->spares, memory_order_acquire);
    while (spare != NULL &&
           !atomic_compare_exchange_weak(&queue->spares, &spare, atomic_load(&spare->next))) {
    }
    if (spare == NULL) return NULL;
    atomic_fetch_sub(&queue->spares_count, 1);
    atomic_store_explicit(&spare->next, NULL, memory_order_relaxed);
    atomic_store_explicit(&spare->filled, 0, memory_order_relaxed);
    return spare;
}

/* Taking thread. Keeps a chunk that was read as a spare, or frees it. */
static void queue_give_spare(queue_t *queue, chunk_t *chunk) {
    if (chunk->capacity != CHUNK_BYTES || atomic_load(&queue->spares_count) >= SPARES) {
        free(chunk);
        return;
    }
    atomic_fetch_add(&queue->spares_count, 1);
    chunk_t *first = atomic_load(&queue->spares);
    do {
        atomic_store_explicit(&chunk->next, first, memory_order_relaxed);
    } while (!atomic_compare_exchange_weak(&queue->spares, &first, chunk));
}

/* Pushing thread. Appends a chunk with room for `size` bytes, and returns it. */
static chunk_t *queue_grow(queue_t *queue, size_t size) {
    chunk_t *chunk;
    if (size <= CHUNK_BYTES) {
        chunk = queue_take_spare(queue);
        if (chunk == NULL) chunk = chunk_new(CHUNK_BYTES);
    } else {
        chunk = chunk_new(size); /* for one record with a large key or value */
    }
    atomic_store_explicit(&queue->tail->next, chunk, memory_order_release);
    queue->tail = chunk;
    return chunk;
}

/* The most frequent kind is tested first: the others cost it no time. */
static inline int is_event(uint8_t kind) {
    if (__builtin_expect(kind == RECORD_EVENT, 1)) return 1;
    return kind == RECORD_VALUED || kind == RECORD_SUBKEYED;
}

int queue_push(queue_t *queue, const record_t *head, const char *name, const char *payload) {
    size_t size = sizeof(*head) + head->name_len + head->payload_len;
    size = (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
    if (is_event(head->kind)) {
        size_t limit = queue_get_limit(queue);
        if (limit != 0 && queue_bytes(queue) + size > limit) return -1;
    }
    chunk_t *chunk = queue->tail;
    size_t filled = atomic_load_explicit(&chunk->filled, memory_order_relaxed);
    if (chunk->capacity - filled < size) {
        chunk = queue_grow(queue, size);
        filled = 0;
    }
    char *at = chunk->data + filled;
    memcpy(at, head, sizeof(*head));
    uint32_t size32 = (uint32_t)size;
    memcpy(at + offsetof(record_t, size), &size32, sizeof(size32));
    if (head->name_len) memcpy(at + sizeof(*head), name, head->name_len);
    if (head->payload_len) memcpy(at + sizeof(*head) + head->name_len, payload, head->payload_len);
    /* Only this thread writes these two counters, so a load and a store replace an
     * atomic addition with its bus lock. They are stored before `filled`: a record that
     * another thread can see is counted. */
    atomic_store_explicit(&queue->pushed_bytes,
                          atomic_load_explicit(&queue->pushed_bytes, memory_order_relaxed) + size,
                          memory_order_relaxed);
    atomic_store_explicit(&queue->pushed_count,
                          atomic_load_explicit(&queue->pushed_count, memory_order_relaxed) + 1,
                          memory_order_release);
    atomic_store_explicit(&chunk->filled, filled + size, memory_order_release);
    /* A chunk can be given back once there is a next one. A large one gets
     * it now, so that its memory is freed without waiting for the next event. */
    if (chunk->capacity > CHUNK_BYTES) queue_grow(queue, 0);
    return 0;
}

/* Taking thread. Gives back the chunks that were read to their end. Returns how many bytes of
 * the first chunk are not released yet. */
static size_t queue_advance(queue_t *queue) {
    for (;;) {
        chunk_t *chunk = queue->head;
        chunk_t *next = atomic_load_explicit(&chunk->next, memory_order_acquire);
        /* Loaded after `next`: if there is a next chunk, this one is never filled further. */
        size_t filled = atomic_load_explicit(&chunk->filled, memory_order_acquire);
        if (queue->read < filled || next == NULL) return filled - queue->read;
        queue->head = next;
        queue->read = 0;
        queue_give_spare(queue, chunk);
    }
}

size_t queue_take(queue_t *queue, const char **records) {
    size_t size = queue_advance(queue);
    *records = queue->head->data + queue->read;
    return size;
}

void queue_release(queue_t *queue, size_t bytes, size_t count) {
    queue->read += bytes;
    queue_advance(queue);
    atomic_store_explicit(&queue->released_count,
                          atomic_load_explicit(&queue->released_count, memory_order_relaxed) +
                              count,
                          memory_order_release);
    atomic_store_explicit(&queue->released_bytes,
                          atomic_load_explicit(&queue->released_bytes, memory_order_relaxed) +
                              bytes,
                          memory_order_release);
}
