/* The elements of the fallback list: the text that stands for an event in the list, made from
 * the event's record.
 *
 * fallback.py describes the forms; tests/shim/test_element.py compares both. This runs on Redis'
 * main thread for each event.
 *
 * Knows neither Redis nor Python.
 */
#include <string.h>

#include "api.h"
#include "digits.h"
#include "tables.h"

/* More than an element has beside the prefix, the name and the payload: ten numbers, the name of
 * a type, the words for form and class, and blanks. */
#define FIXED_ROOM (10 * (DIGITS + 1) + 30)

/* ---- parts: each is written at a place, and the place behind it is returned ----------------- */

/* With a blank behind it, these three. */
static inline char *put_unsigned(char *at, uint64_t number) {
    at = put_number(at, number);
    *at++ = ' ';
    return at;
}

static inline char *put_signed(char *at, int64_t number) {
    if (number < 0) *at++ = '-';
    return put_unsigned(at, number < 0 ? -(uint64_t)number : (uint64_t)number);
}

static inline char *put_word(char *at, const char *bytes, size_t len) {
    at = put_bytes(at, bytes, len);
    *at++ = ' ';
    return at;
}

/* ---- forms ---------------------------------------------------------------------------------- */

/* What forms 1 and 2 begin with. */
static inline char *put_head(char *at, char form, const record_t *head, const char *prefix,
                             size_t prefix_len, uint64_t number) {
    *at++ = form;
    *at++ = ' ';
    at = put_bytes(at, prefix, prefix_len);
    at = put_unsigned(at, number);
    at = put_unsigned(at, head->time_ms);
    at = put_signed(at, head->db);
    *at++ = head->class_bit < sizeof(CLASS_LETTERS) - 1 ? CLASS_LETTERS[head->class_bit]
                                                        : UNKNOWN_CLASS;
    *at++ = ' ';
    return put_unsigned(at, head->name_len);
}

/* The payload of a VALUED; `len`: its bytes. */
static char *put_valued(char *at, const record_t *head, const char *name, const char *payload,
                        size_t len) {
    valued_t value;
    memcpy(&value, payload, sizeof(value));
    const char *type = value.type < VALUE_TYPES_COUNT ? VALUE_TYPES[value.type] : UNKNOWN_TYPE;
    const char *key = payload + sizeof(value);
    size_t data_len = value.has_data ? len - sizeof(value) - value.key_len : 0;
    at = put_unsigned(at, value.key_len);
    at = put_word(at, type, strlen(type));
    at = put_unsigned(at, value.length);
    at = put_unsigned(at, value.before != 0);
    at = put_signed(at, value.has_data ? (int64_t)data_len : -1);
    at = put_word(at, name, head->name_len);
    at = put_word(at, key, value.key_len);
    return put_bytes(at, key + value.key_len, data_len);
}

/* What form 3 has before another form; `head` is that of the subkeys, `listed` are those that
 * follow. */
static char *put_subkeys(char *at, const subkeyed_t *head, const char *listed) {
    uint32_t len;
    size_t count = 0;
    for (size_t i = 0; i < head->bytes; i += sizeof(len) + len, count++)
        memcpy(&len, listed + i, sizeof(len));
    at = put_word(at, "3", 1);
    at = put_unsigned(at, head->total);
    at = put_unsigned(at, count);
    for (; count > 0; count--, listed += sizeof(len) + len) {
        memcpy(&len, listed, sizeof(len));
        at = put_number(at, len);
        *at++ = ':';
        at = put_word(at, listed + sizeof(len), len);
    }
    return at;
}

size_t element_write(char *out, const record_t *head, const char *name, const char *payload,
                     const char *prefix, size_t prefix_len, uint64_t number) {
    char *at = out;
    size_t len = head->payload_len;
    int kind = head->kind;
    if (kind == RECORD_SUBKEYED) {
        subkeyed_t subkeyed;
        memcpy(&subkeyed, payload, sizeof(subkeyed));
        at = put_subkeys(at, &subkeyed, payload + sizeof(subkeyed));
        payload += sizeof(subkeyed) + subkeyed.bytes;
        len -= sizeof(subkeyed) + subkeyed.bytes;
        kind = subkeyed.kind;
    }
    at = put_head(at, kind == RECORD_VALUED ? '2' : '1', head, prefix, prefix_len, number);
    if (kind == RECORD_VALUED) {
        at = put_valued(at, head, name, payload, len);
    } else {
        at = put_word(at, name, head->name_len);
        at = put_bytes(at, payload, len);
    }
    return (size_t)(at - out);
}

void element_strip(record_t *head, const char **payload) {
    if (head->kind == RECORD_SUBKEYED) {
        subkeyed_t subkeyed;
        memcpy(&subkeyed, *payload, sizeof(subkeyed));
        *payload += sizeof(subkeyed) + subkeyed.bytes;
        head->payload_len -= (uint32_t)sizeof(subkeyed) + subkeyed.bytes;
        head->kind = subkeyed.kind;
    }
    if (head->kind == RECORD_VALUED) {
        valued_t value;
        memcpy(&value, *payload, sizeof(value));
        *payload += sizeof(value);
        head->payload_len = value.key_len;
        head->kind = RECORD_EVENT;
    }
}

size_t element_room(const record_t *head, size_t prefix_len) {
    /* A subkey has four bytes for its length in the record, and two more than the length has
     * digits in the element. So only subkeys of 100 bytes and more take more room there, and not
     * even a hundredth more. */
    return FIXED_ROOM + prefix_len + head->name_len + head->payload_len + head->payload_len / 100;
}
