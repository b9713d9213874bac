/* A broker that keeps nothing: it speaks as much AMQP 0-9-1 as a publisher with
 * confirms needs, and confirms with one basic.ack for all that a read has brought.
 * So it takes next to no CPU from those whose speed is measured.
 *
 * Usage: sink. Listens on a free port of loopback and prints it; one connection at
 * a time. Ends when its standard input does. */
#include <arpa/inet.h>
#include <endian.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { METHOD = 1, HEADER = 2, BODY = 3, FRAME_END = 0xCE, HEAD = 7 };
#define PROTOCOL_HEADER 8
#define FRAME_MAX 131072
/* Below what any client takes for silence. */
#define HEARTBEAT_MS 2000
#define INDEX(class, method) ((class) << 16 | (method))

static char input[8 * FRAME_MAX];
static int link_fd;
static uint64_t messages, body_left; /* of this connection; of the message that comes in */

static uint32_t u32(const char *at) {
    uint32_t value;
    memcpy(&value, at, sizeof(value));
    return be32toh(value);
}

static uint64_t u64(const char *at) { return (uint64_t)u32(at) << 32 | u32(at + 4); }

/* Sends a frame. A peer that is gone shows at the next read. */
static void frame(int type, int channel, const void *payload, uint32_t len) {
    char data[512] = {(char)type, (char)(channel >> 8), (char)channel};
    uint32_t size = htobe32(len);
    memcpy(data + 3, &size, sizeof(size));
    memcpy(data + HEAD, payload, len);
    data[HEAD + len] = (char)FRAME_END;
    if (send(link_fd, data, HEAD + len + 1, MSG_NOSIGNAL) < 0) return;
}

static void method(int channel, uint32_t index, const char *arguments, uint32_t len) {
    char payload[256];
    index = htobe32(index);
    memcpy(payload, &index, sizeof(index));
    memcpy(payload + sizeof(index), arguments, len);
    frame(METHOD, channel, payload, sizeof(index) + len);
}

#define TEXT(text) text, sizeof(text) - 1

/* What the client asks for, granted. */
static void on_method(int channel, uint32_t index) {
    switch (index) {
    case INDEX(10, 11): /* start-ok: tune, with any number of channels, no heartbeat */
        return method(0, INDEX(10, 30), TEXT("\0\0\0\2\0\0\0\0"));
    case INDEX(10, 40): /* open */
        return method(0, INDEX(10, 41), TEXT("\0"));
    case INDEX(10, 50): /* close */
        return method(0, INDEX(10, 51), "", 0);
    case INDEX(20, 10): /* channel.open */
        return method(channel, INDEX(20, 11), TEXT("\0\0\0\0"));
    case INDEX(20, 40): /* channel.close */
        return method(channel, INDEX(20, 41), "", 0);
    case INDEX(85, 10): /* confirm.select */
        return method(channel, INDEX(85, 11), "", 0);
    }
}

/* One frame; the channel of a message that is complete, else 0. */
static int on_frame(const char *at, uint32_t size) {
    int channel = (unsigned char)at[1] << 8 | (unsigned char)at[2];
    const char *payload = at + HEAD;
    if (at[0] == METHOD) {
        on_method(channel, u32(payload));
        return 0;
    }
    if (at[0] == HEADER)
        body_left = u64(payload + 4); /* behind class and weight */
    else if (at[0] == BODY)
        body_left -= size;
    else
        return 0; /* a heartbeat */
    if (body_left) return 0;
    messages++;
    return channel;
}

/* All whole frames of `len` bytes; how many bytes they are. */
static size_t on_input(size_t len) {
    size_t at = 0;
    int publishing = 0;
    if (messages == 0 && len >= PROTOCOL_HEADER && memcmp(input, "AMQP", 4) == 0) {
        at = PROTOCOL_HEADER;
        /* start: version 0-9; capabilities without which clients do not turn on confirms */
        method(0, INDEX(10, 10),
               TEXT("\0\x09"
                    "\0\0\0\x34"
                    "\x0c"
                    "capabilitiesF"
                    "\0\0\0\x22"
                    "\x12"
                    "publisher_confirmst\1"
                    "\x0a"
                    "basic.nackt\1"
                    "\0\0\0\5PLAIN"
                    "\0\0\0\5en_US"));
    }
    while (len - at > HEAD) {
        uint32_t size = u32(input + at + 3);
        if (len - at < HEAD + (size_t)size + 1) break;
        int channel = on_frame(input + at, size);
        if (channel) publishing = channel;
        at += HEAD + (size_t)size + 1;
    }
    if (publishing) { /* ack: the last tag, and all before it */
        uint64_t tag = htobe64(messages);
        char arguments[9];
        memcpy(arguments, &tag, sizeof(tag));
        arguments[8] = 1;
        method(publishing, INDEX(60, 80), arguments, sizeof(arguments));
    }
    return at;
}

/* A connection, until its end; 0 when it was standard input that ended. */
static int serve(void) {
    size_t len = 0;
    messages = 0;
    for (;;) {
        struct pollfd ends[] = {{link_fd, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
        if (poll(ends, 2, HEARTBEAT_MS) == 0) frame(8, 0, "", 0);
        if (ends[1].revents) return 0;
        if (!ends[0].revents) continue;
        ssize_t got = recv(link_fd, input + len, sizeof(input) - len, 0);
        if (got <= 0) return 1;
        len += (size_t)got;
        size_t used = on_input(len);
        len -= used;
        memmove(input, input + used, len);
    }
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&address, size) < 0 || listen(listener, 5) < 0 ||
        getsockname(listener, (void *)&address, &size) < 0) {
        perror("sink");
        return 1;
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        struct pollfd ends[] = {{listener, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
        poll(ends, 2, -1);
        if (ends[1].revents) return 0;
        link_fd = accept(listener, NULL, NULL);
        if (!serve()) return 0;
        close(link_fd);
    }
}
