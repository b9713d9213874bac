/* See latency.h. */
#include "latency.h"

#include <string.h>
#include <strings.h>
#include <time.h>

static int is_known; /* if the latency monitor is on */
static int is_on;

long long clock_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

long long clock_ms(void) { return clock_us() / 1000; }

/* True if Redis' latency monitor is on. A threshold of 0 turns it off, but the server takes
 * the samples of modules even then, so the module has to read the threshold. It does so for the
 * first sample, and for the first after a change: each reading counts in the server's statistics of
 * commands. */
static int is_monitored(RedisModuleCtx *ctx) {
    if (is_known) return is_on;
    static const char OFF[] = "$1\r\n0\r\n";
    const size_t off_len = sizeof(OFF) - 1;
    RedisModuleCallReply *reply =
        RedisModule_Call(ctx, "CONFIG", "cc", "GET", "latency-monitor-threshold");
    if (reply == NULL) return 0;
    size_t len;
    const char *proto = RedisModule_CallReplyProto(reply, &len);
    is_on = proto[0] != '-' && len > off_len && memcmp(proto + len - off_len, OFF, off_len) != 0;
    is_known = 1;
    RedisModule_FreeCallReply(reply);
    return is_on;
}

void latency_config_changed(const RedisModuleConfigChangeV1 *change) {
    for (uint32_t i = 0; i < change->num_changes; i++)
        if (strcasecmp(change->config_names[i], "latency-monitor-threshold") == 0) is_known = 0;
}

void latency_add(RedisModuleCtx *ctx, const char *event, long long began) {
    long long ms = (clock_us() - began) / 1000;
    if (ms > 0 && is_monitored(ctx)) RedisModule_LatencyAddSample(event, ms);
}
