/* Numbers and bytes written at a place of a text. Each function returns the place behind what it
 * has written.
 *
 * This runs for each event, so numbers are not written with printf, which would cost more than all
 * the rest.
 */
#ifndef KEYSPACE_AMQP_DIGITS_H
#define KEYSPACE_AMQP_DIGITS_H
#include <stdint.h>
#include <string.h>

/* The most digits of a uint64_t. */
#define DIGITS 20

static const char PAIRS[] = "0001020304050607080910111213141516171819"
                            "2021222324252627282930313233343536373839"
                            "4041424344454647484950515253545556575859"
                            "6061626364656667686970717273747576777879"
                            "8081828384858687888990919293949596979899";
/* The powers of ten; the first is 0 because 0 has a digit too. */
static const uint64_t POWERS[DIGITS] = {0,    1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,
                                        1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19};

static inline char *put_bytes(char *at, const char *bytes, size_t len) {
    if (len) memcpy(at, bytes, len);
    return at + len;
}

static inline char *put_number(char *at, uint64_t number) {
    /* 1233 / 4096 is a little more than the logarithm of 2 to the base 10. */
    unsigned digits = (64 - (unsigned)__builtin_clzll(number | 1)) * 1233 >> 12;
    char *end = at + digits + (number >= POWERS[digits]);
    for (at = end; number >= 100; number /= 100)
        memcpy(at -= 2, PAIRS + number % 100 * 2, 2);
    if (number >= 10)
        memcpy(at - 2, PAIRS + number * 2, 2);
    else
        at[-1] = (char)('0' + number);
    return end;
}

#endif
