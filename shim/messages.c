/* The messages of many events, laid out from their records in one go.
 *
 * Only of events of the plain form, while all messages have the same form: broker/frames.py makes
 * the parts that are the same in all of them, and worker/parcels.py takes the other events. It is
 * three quarters of the worker's work for an event, if Python does it.
 *
 * Knows neither Redis nor Python.
 */
#include "api.h"
#include "digits.h"

/* More than a message has beside its constant parts, the name and the key: the sizes and the time,
 * the number in the id, the database, two line feeds, the end. */
#define FIXED_ROOM (3 * sizeof(uint64_t) + 2 * DIGITS + 3)
#define FRAME_END '\xce'

static inline char *put_be64(char *at, uint64_t number) {
    number = __builtin_bswap64(number);
    return put_bytes(at, (const char *)&number, sizeof(number));
}

static inline char *put_be32(char *at, uint32_t number) {
    number = __builtin_bswap32(number);
    return put_bytes(at, (const char *)&number, sizeof(number));
}

static int is_ascii(const char *text, size_t len) {
    uint64_t word, all = 0;
    for (; len >= sizeof(word); text += sizeof(word), len -= sizeof(word)) {
        memcpy(&word, text, sizeof(word));
        all |= word;
    }
    for (; len > 0; text++, len--)
        all |= (unsigned char)*text;
    return !(all & 0x8080808080808080u);
}

/* As Python's decoder: neither surrogates, nor longer forms than needed. */
static int is_utf8(const char *text, size_t len) {
    const unsigned char *at = (const unsigned char *)text, *end = at + len;
    while (at < end) {
        unsigned char first = *at++;
        if (first < 0x80) continue;
        int more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
        if (first < 0xc2 || first > 0xf4 || end - at < more) return 0;
        unsigned char least = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
        unsigned char most = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
        if (*at < least || *at > most) return 0;
        for (at++; --more > 0; at++)
            if ((*at & 0xc0) != 0x80) return 0;
    }
    return 1;
}

static int is_text(const char *text, size_t len) {
    return is_ascii(text, len) || is_utf8(text, len);
}

void messages_write(messages_t *all, const char *records, size_t size) {
    const size_t constant = all->first_len + all->second_len + all->third_len + FIXED_ROOM;
    char *out = all->out, *out_end = out + all->room;
    uint64_t last_ms = 0, seconds = 0;
    size_t at = 0;
    all->count = all->runs = 0;
    for (; at < size && all->count < all->most; all->count++) {
        record_t head;
        memcpy(&head, records + at, sizeof(head));
        const char *name = records + at + sizeof(head);
        const size_t text_len = head.name_len + (size_t)head.payload_len;
        if (head.kind != RECORD_EVENT || head.class_bit & LISTED_BIT || head.db < 0) break;
        if ((size_t)(out_end - out) < constant + text_len) break;
        char db[DIGITS];
        const size_t db_len = (size_t)(put_number(db, (uint64_t)head.db) - db);
        const size_t body_len = db_len + 2 + text_len;
        if (body_len > all->body_max) break;
        if (!is_text(name, head.name_len) || !is_text(name + head.name_len, head.payload_len))
            break;
        if (all->runs == 0 || head.time_ms != last_ms) {
            all->runs++;
            last_ms = head.time_ms;
            all->times[2 * all->runs - 1] = last_ms;
            seconds = last_ms / 1000;
        }
        all->times[2 * all->runs - 2] = all->count + 1;
        out = put_bytes(out, all->first, all->first_len);
        out = put_be64(out, body_len);
        out = put_bytes(out, all->second, all->second_len);
        out = put_number(out, all->number + all->count);
        out = put_be64(out, seconds);
        out = put_bytes(out, all->third, all->third_len);
        out = put_be32(out, (uint32_t)body_len);
        out = put_bytes(out, db, db_len);
        *out++ = '\n';
        out = put_bytes(out, name, head.name_len);
        *out++ = '\n';
        out = put_bytes(out, name + head.name_len, head.payload_len);
        *out++ = FRAME_END;
        at += head.size;
    }
    all->size = at;
    all->len = (size_t)(out - all->out);
}
