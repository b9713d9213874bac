/* SETs at a fixed rate, whatever Redis does: an open loop. Each is timed from the
 * moment when it should have been sent to its reply, so a server that stands still
 * is charged for all the commands that it kept waiting.
 *
 * Usage: load PORT RATE SECONDS KEY. SECONDS 0: until SIGTERM. KEY `number`: keys
 * with a running number; `clock`: with the Unix time of the sending in nanoseconds.
 * Each 100 ms a line: milliseconds since the start, replies, and of their times the
 * 50th and 99th percentile and the largest in microseconds. The last line is JSON,
 * with the same of the whole run and its histogram: [upper bound in us, count]. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LINKS 4
#define PENDING 65536 /* commands under way on a link; a power of two */
#define OUTPUT 65536
#define SECOND 1000000000ULL
#define INTERVAL (SECOND / 10)
/* Replies that are late at the end are waited for, so long. */
#define PATIENCE (10 * SECOND)

static const char REPLY[] = "+OK\r\n";
enum { REPLY_LEN = sizeof(REPLY) - 1 };

typedef struct {
    int fd;
    uint64_t due[PENDING]; /* when each should have been sent */
    uint64_t sent, answered;
    char output[OUTPUT];
    size_t output_len;
    int reply_at; /* how much of a reply has come */
} link_t;

/* Times in buckets with a width of 1/64 of their value. */
enum { STEPS = 64, BUCKETS = 40 * STEPS };
typedef struct {
    uint64_t count, largest, bucket[BUCKETS];
} histogram_t;

static link_t links[LINKS];
static histogram_t all, recent;
static volatile sig_atomic_t stopped;

static void on_signal(int number) { stopped = number; }

static uint64_t now(clockid_t id) {
    struct timespec time;
    clock_gettime(id, &time);
    return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int bucket_of(uint64_t value) {
    int shift = 0;
    while (value >> shift >= 2 * STEPS)
        shift++;
    int bucket = shift * STEPS + (int)(value >> shift);
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

/* The first value, in nanoseconds, that is above a bucket. */
static uint64_t bucket_end(int bucket) {
    int shift = bucket < 2 * STEPS ? 0 : bucket / STEPS - 1;
    return (uint64_t)(bucket - shift * STEPS + 1) << shift;
}

static void add(histogram_t *histogram, uint64_t value) {
    histogram->count++;
    histogram->bucket[bucket_of(value)]++;
    if (value > histogram->largest) histogram->largest = value;
}

/* In microseconds. */
static double percentile(const histogram_t *histogram, double part) {
    uint64_t wanted = (uint64_t)(part * (double)histogram->count), seen = 0;
    for (int i = 0; i < BUCKETS; i++) {
        seen += histogram->bucket[i];
        if (seen > wanted && bucket_end(i) < histogram->largest) return (double)bucket_end(i) / 1e3;
    }
    return (double)histogram->largest / 1e3;
}

static void report_interval(uint64_t since_start) {
    printf("%llu %llu %.1f %.1f %.1f\n", (unsigned long long)(since_start / 1000000),
           (unsigned long long)recent.count, percentile(&recent, 0.5), percentile(&recent, 0.99),
           (double)recent.largest / 1e3);
    fflush(stdout);
    memset(&recent, 0, sizeof(recent));
}

static void report_all(uint64_t sent) {
    printf("{\"sent\": %llu, \"count\": %llu, \"p50\": %.1f, \"p99\": %.1f, \"p999\": %.1f, "
           "\"max\": %.1f, \"histogram\": [",
           (unsigned long long)sent, (unsigned long long)all.count, percentile(&all, 0.5),
           percentile(&all, 0.99), percentile(&all, 0.999), (double)all.largest / 1e3);
    const char *comma = "";
    for (int i = 0; i < BUCKETS; i++) {
        if (all.bucket[i] == 0) continue;
        printf("%s[%.2f, %llu]", comma, (double)bucket_end(i) / 1e3,
               (unsigned long long)all.bucket[i]);
        comma = ", ";
    }
    printf("]}\n");
}

static void open_link(link_t *link, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int one = 1;
    link->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(link->fd, (void *)&address, sizeof(address)) < 0) fail("connect");
    setsockopt(link->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

/* Puts a command into a link's output; 0 if there is no room. */
static int put(link_t *link, uint64_t due, uint64_t number, int with_clock) {
    char *at = link->output + link->output_len;
    size_t room = OUTPUT - link->output_len;
    if (room < 128 || link->sent - link->answered == PENDING) return 0;
    unsigned long long name = with_clock ? now(CLOCK_REALTIME) : number;
    link->output_len +=
        (size_t)snprintf(at, room, "*3\r\n$3\r\nSET\r\n$24\r\nload:%019llu\r\n$1\r\n1\r\n", name);
    link->due[link->sent++ % PENDING] = due;
    return 1;
}

static void flush(link_t *link) {
    if (link->output_len == 0) return;
    ssize_t sent = send(link->fd, link->output, link->output_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) fail("send");
    if (sent <= 0) return;
    link->output_len -= (size_t)sent;
    memmove(link->output, link->output + sent, link->output_len);
}

static void receive(link_t *link) {
    char data[16384];
    ssize_t got = recv(link->fd, data, sizeof(data), MSG_DONTWAIT);
    if (got == 0) errno = ECONNRESET;
    if (got == 0 || (got < 0 && errno != EAGAIN)) fail("recv");
    uint64_t time = now(CLOCK_MONOTONIC);
    for (ssize_t i = 0; i < got; i++) {
        if (data[i] != REPLY[link->reply_at]) {
            fprintf(stderr, "load: the reply is %.*s\n", (int)(got - i), data + i);
            exit(1);
        }
        link->reply_at = (link->reply_at + 1) % REPLY_LEN;
        if (link->reply_at) continue;
        uint64_t due = link->due[link->answered++ % PENDING];
        add(&all, time - due);
        add(&recent, time - due);
    }
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: load PORT RATE SECONDS number|clock\n");
        return 2;
    }
    double rate = atof(argv[2]);
    uint64_t duration = (uint64_t)(atof(argv[3]) * (double)SECOND);
    int with_clock = strcmp(argv[4], "clock") == 0;
    signal(SIGTERM, on_signal);
    prctl(PR_SET_TIMERSLACK, 1UL); /* else the kernel is late by 50 us, to save power */
    struct pollfd ends[LINKS];
    for (int i = 0; i < LINKS; i++) {
        open_link(&links[i], atoi(argv[1]));
        ends[i].fd = links[i].fd;
    }
    uint64_t start = now(CLOCK_MONOTONIC), sent = 0, stop_at = UINT64_MAX;
    uint64_t report_at = start + INTERVAL;
    for (;;) {
        uint64_t time = now(CLOCK_MONOTONIC);
        if (stop_at == UINT64_MAX && (stopped || (duration && time >= start + duration)))
            stop_at = time;
        if (stop_at != UINT64_MAX && (all.count == sent || time > stop_at + PATIENCE)) break;
        uint64_t due = start + (uint64_t)((double)sent * (double)SECOND / rate);
        while (due <= time && stop_at == UINT64_MAX &&
               put(&links[sent % LINKS], due, sent, with_clock)) {
            sent++;
            due = start + (uint64_t)((double)sent * (double)SECOND / rate);
        }
        for (int i = 0; i < LINKS; i++) {
            flush(&links[i]);
            ends[i].events = POLLIN | (links[i].output_len ? POLLOUT : 0);
        }
        if (time >= report_at) {
            report_interval(time - start);
            report_at += INTERVAL;
        }
        uint64_t wake = due > time && stop_at == UINT64_MAX && due < report_at ? due : report_at;
        time = now(CLOCK_MONOTONIC);
        uint64_t left = wake > time ? wake - time : 0;
        struct timespec timeout = {(time_t)(left / SECOND), (long)(left % SECOND)};
        if (ppoll(ends, LINKS, &timeout, NULL) < 0 && errno != EINTR) fail("poll");
        for (int i = 0; i < LINKS; i++)
            if (ends[i].revents & ~POLLOUT) receive(&links[i]);
    }
    report_interval(now(CLOCK_MONOTONIC) - start);
    report_all(sent);
    return all.count == sent ? 0 : 1;
}
