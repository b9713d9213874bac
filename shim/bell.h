/* A bell: an eventfd that one thread rings to wake another. Once rung, it stays readable
 * until it is silenced, which takes all rings together. Any thread. */
#ifndef KEYSPACE_AMQP_BELL_H
#define KEYSPACE_AMQP_BELL_H
#include <poll.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Returns the descriptor of a new bell, which the caller closes; -1 if there is none left. */
static inline int bell_new(void) { return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }

static inline void bell_ring(int fd) {
    uint64_t one = 1;
    if (write(fd, &one, sizeof(one)) < 0) { /* its counter is full, so it is readable */
    }
}

static inline void bell_silence(int fd) {
    uint64_t count;
    if (read(fd, &count, sizeof(count)) < 0) { /* nobody has rung it */
    }
}

/* Waits until the bell rings, for at most `ms` milliseconds, and silences it. */
static inline void bell_wait(int fd, long long ms) {
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    poll(&poll_fd, 1, (int)ms);
    bell_silence(fd);
}

#endif
