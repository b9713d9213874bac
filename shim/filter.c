/* The filter: which events the parameters `masks` and `databases` let through.
 *
 * keyspace_amqp/masks.py says what masks mean. All masks that include run as one automaton over
 * the key's bytes, and all masks that exclude as another. A position of the automaton stands for
 * a mask and the number of its items that have matched; a state is the set of positions that the
 * bytes so far have led to. States and the ways between them are made when a key first needs
 * them, and kept. So the time is linear in the key's length, and for keys like those before it is
 * one look into a table for each byte. If there are too many states, all are forgotten.
 *
 * Knows neither Redis nor Python; tests/shim/test_filter.py drives it.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"

/* States take at most this much memory: enough for all states of thousands of masks. */
#define STATES_BYTES ((size_t)8 * 1024 * 1024)
/* Buckets of the hash table of states: for a few short chains even with all states. */
#define BUCKETS 65536
#define WORD_BITS 64

/* ---- positions: masks, item by item ------------------------------------------------- */

/* The sets of positions that do not depend on a byte. */
enum { ANY_BYTE, STARRED, START, RESTART, ACCEPT, ACCEPT_AT_END, SETS };
#define NO_BYTE 256

typedef struct {
    uint16_t byte; /* that it takes; NO_BYTE: any one, or none */
    uint16_t sets; /* that it is in, as bits: 1 << STARRED and so on */
} position_t;

typedef struct {
    position_t *all;
    size_t count;
    int masks; /* 0: there are none */
} positions_t;

/* Adds a mask, without its `!`. */
static void add_mask(positions_t *to, const char *mask, size_t len) {
    position_t *first = to->all + to->count, *next = first;
    int anchored = len > 0 && mask[0] == '^', end = ACCEPT;
    for (size_t i = (size_t)anchored; i < len; i++) {
        int starred = i + 1 < len && mask[i + 1] == '*';
        if (mask[i] == '$' && i + 1 == len) {
            end = ACCEPT_AT_END;
            break;
        }
        int any = mask[i] == '.';
        next->byte = any ? NO_BYTE : (unsigned char)mask[i];
        next++->sets = (uint16_t)(any << ANY_BYTE | starred << STARRED);
        i += (size_t)starred;
    }
    next->byte = NO_BYTE; /* behind the last item: it takes nothing */
    next++->sets = (uint16_t)(1 << end);
    first->sets |= (uint16_t)(1 << START | !anchored << RESTART);
    to->count += (size_t)(next - first);
    to->masks++;
}

/* ---- the automaton ------------------------------------------------------------------ */

/* Where a symbol leads to: one of these, or the place of a state's row in `rows`. The first two
 * rows are not used, so no place is one of these. */
enum { UNKNOWN, NO, YES, FIRST_STATE = 2 };

/* A word of a set of positions. Of a state, only those are kept that have something, and without
 * the positions in RESTART, which are in all states: with a thousand masks, a state has a thousand
 * of these, and one or two others. */
typedef struct {
    uint64_t word, bits;
} part_t;

typedef struct {
    size_t words;            /* of a set of positions */
    uint64_t *sets[SETS];    /* see above */
    uint64_t *takes;         /* by symbol: the set of the positions that take it */
    uint16_t symbol_of[256]; /* bytes that all masks treat alike have one symbol */
    uint32_t row;            /* the length of a row: symbols, and the key's end as the last one */
    uint32_t start;          /* the place of the first state; UNKNOWN: not made yet */
    /* A step leads from one of these sets to the other; `new` has the parts of the other. */
    uint64_t *from, *to;
    part_t *new;
    size_t new_parts;
    /* The states. */
    size_t count, room;
    uint32_t *rows;  /* by state and symbol: where it leads to */
    uint32_t *chain; /* by state: the next one with the same hash, 0: none */
    size_t *begin;   /* by state: where its parts begin; they end where those of the next begin */
    part_t *parts;
    size_t parts_room;
    uint32_t buckets[BUCKETS];
} automaton_t;

/* Ends the process if there is no memory, as Redis does. */
static void *need(void *memory) {
    if (memory == NULL) abort();
    return memory;
}

static uint64_t *new_sets(size_t words, size_t count) {
    return need(calloc(words * count, sizeof(uint64_t)));
}

/* Adds to a set the positions behind items with a star: these may match nothing. */
static void skip_stars(const automaton_t *automaton, uint64_t *set) {
    uint64_t carry = 0;
    for (size_t i = 0; i < automaton->words; i++) {
        uint64_t starred = automaton->sets[STARRED][i], bits = set[i] | carry;
        uint64_t reached = starred << 1; /* the positions behind a star */
        /* Rounds of 1, 2, 4, … positions. `reached` has those behind so many stars in a row. */
        for (int by = 1; (bits & starred) && by < WORD_BITS; by *= 2) {
            bits |= reached & bits << by;
            reached &= reached << by;
        }
        set[i] = bits;
        carry = (bits & starred) >> (WORD_BITS - 1);
    }
}

/* Gives bytes that masks name a symbol each, and all others the symbol 0. */
static void find_symbols(automaton_t *automaton, const positions_t *positions) {
    uint16_t symbols = 1;
    for (size_t i = 0; i < positions->count; i++) {
        uint16_t byte = positions->all[i].byte;
        if (byte != NO_BYTE && automaton->symbol_of[byte] == 0)
            automaton->symbol_of[byte] = symbols++;
    }
    automaton->row = symbols + 1U;
}

static automaton_t *automaton_new(const positions_t *positions) {
    automaton_t *automaton = need(calloc(1, sizeof(*automaton)));
    size_t words = automaton->words = positions->count / WORD_BITS + 1;
    find_symbols(automaton, positions);
    for (int set = 0; set < SETS; set++)
        automaton->sets[set] = new_sets(words, 1);
    automaton->from = new_sets(words, 1);
    automaton->to = new_sets(words, 1);
    automaton->new = need(calloc(words, sizeof(part_t)));
    automaton->takes = new_sets(words, automaton->row);
    for (size_t i = 0; i < positions->count; i++) {
        const position_t *position = &positions->all[i];
        uint64_t bit = (uint64_t)1 << i % WORD_BITS;
        for (int set = 0; set < SETS; set++)
            if (position->sets >> set & 1) automaton->sets[set][i / WORD_BITS] |= bit;
        if (position->byte != NO_BYTE)
            automaton->takes[automaton->symbol_of[position->byte] * words + i / WORD_BITS] |= bit;
    }
    for (size_t i = 0; i < words * (automaton->row - 1); i++)
        automaton->takes[i] |= automaton->sets[ANY_BYTE][i % words];
    skip_stars(automaton, automaton->sets[START]);
    skip_stars(automaton, automaton->sets[RESTART]);
    automaton->count = FIRST_STATE;
    return automaton;
}

static void automaton_free(automaton_t *automaton) {
    if (automaton == NULL) return;
    for (int set = 0; set < SETS; set++)
        free(automaton->sets[set]);
    free(automaton->takes);
    free(automaton->from);
    free(automaton->to);
    free(automaton->new);
    free(automaton->rows);
    free(automaton->chain);
    free(automaton->begin);
    free(automaton->parts);
    free(automaton);
}

/* Finds what the set `to` means, and its parts. Returns YES or NO, or UNKNOWN for a state. */
static uint32_t find_parts(automaton_t *automaton) {
    uint64_t some = 0, accepted = 0;
    part_t *next = automaton->new;
    for (size_t i = 0; i < automaton->words; i++) {
        uint64_t set = automaton->to[i], bits = set & ~automaton->sets[RESTART][i];
        some |= set;
        accepted |= set & automaton->sets[ACCEPT][i];
        if (bits) *next++ = (part_t){i, bits};
    }
    automaton->new_parts = (size_t)(next - automaton->new);
    if (accepted) return YES;
    return some ? UNKNOWN : NO;
}

/* Returns the bucket of the new parts. */
static uint32_t *find_bucket(automaton_t *automaton) {
    uint64_t hash = 0;
    for (size_t i = 0; i < automaton->new_parts; i++) {
        hash = (hash ^ automaton->new[i].word ^ automaton->new[i].bits) * 0x9e3779b97f4a7c15;
        hash ^= hash >> 32;
    }
    return &automaton->buckets[hash % BUCKETS];
}

/* Returns the place of the state in this bucket that has the new parts, or UNKNOWN. */
static uint32_t find_state(const automaton_t *automaton, const uint32_t *bucket) {
    size_t bytes = automaton->new_parts * sizeof(part_t);
    for (uint32_t state = *bucket; state != 0; state = automaton->chain[state]) {
        size_t begin = automaton->begin[state], count = automaton->begin[state + 1] - begin;
        if (count == automaton->new_parts &&
            memcmp(automaton->parts + begin, automaton->new, bytes) == 0)
            return state * automaton->row;
    }
    return UNKNOWN;
}

/* True if another state with the new parts would take too much memory. */
static int is_full(const automaton_t *automaton) {
    size_t each = automaton->row * sizeof(uint32_t) + sizeof(uint32_t) + sizeof(size_t);
    size_t parts = automaton->count > FIRST_STATE ? automaton->begin[automaton->count] : 0;
    return automaton->count * each + (parts + automaton->new_parts) * sizeof(part_t) > STATES_BYTES;
}

static void forget_states(automaton_t *automaton) {
    automaton->count = FIRST_STATE;
    automaton->start = UNKNOWN;
    memset(automaton->buckets, 0, sizeof(automaton->buckets));
}

/* Makes room for one more state, with the new parts behind all others. */
static void make_room(automaton_t *automaton, size_t parts) {
    if (automaton->count == automaton->room || automaton->room == 0) {
        size_t room = automaton->room = automaton->room ? automaton->room * 2 : 16;
        size_t row_bytes = automaton->row * sizeof(uint32_t);
        automaton->rows = need(realloc(automaton->rows, room * row_bytes));
        automaton->chain = need(realloc(automaton->chain, room * sizeof(uint32_t)));
        automaton->begin = need(realloc(automaton->begin, (room + 1) * sizeof(size_t)));
    }
    if (parts + automaton->new_parts >= automaton->parts_room) { /* there is always some memory */
        automaton->parts_room = 2 * (parts + automaton->new_parts) + 16;
        automaton->parts = need(realloc(automaton->parts, automaton->parts_room * sizeof(part_t)));
    }
}

/* Makes a state of the set `to` and its parts. Returns its place. */
static uint32_t make_state(automaton_t *automaton, uint32_t *bucket) {
    size_t parts = automaton->count > FIRST_STATE ? automaton->begin[automaton->count] : 0;
    make_room(automaton, parts);
    uint32_t state = (uint32_t)automaton->count++, *row = automaton->rows + state * automaton->row;
    automaton->begin[state] = parts;
    automaton->begin[state + 1] = parts + automaton->new_parts;
    memcpy(automaton->parts + parts, automaton->new, automaton->new_parts * sizeof(part_t));
    automaton->chain[state] = *bucket;
    *bucket = state;
    uint64_t accepted = 0;
    for (size_t i = 0; i < automaton->words; i++)
        accepted |= automaton->to[i] & automaton->sets[ACCEPT_AT_END][i];
    memset(row, UNKNOWN, automaton->row * sizeof(uint32_t));
    row[automaton->row - 1] = accepted ? YES : NO;
    return state * automaton->row;
}

/* Returns where the state at a place goes with a symbol, and notes it in the state's row. Not
 * inlined: the loop in `matches` is the one that counts. */
static __attribute__((noinline)) uint32_t step(automaton_t *automaton, uint32_t place,
                                               uint32_t symbol) {
    size_t words = automaton->words, state = place / automaton->row;
    const uint64_t *takes = automaton->takes + symbol * words;
    memcpy(automaton->from, automaton->sets[RESTART], words * sizeof(uint64_t));
    for (size_t i = automaton->begin[state]; i < automaton->begin[state + 1]; i++)
        automaton->from[automaton->parts[i].word] |= automaton->parts[i].bits;
    uint64_t carry = 0;
    for (size_t i = 0; i < words; i++) {
        uint64_t taken = automaton->from[i] & takes[i], starred = automaton->sets[STARRED][i];
        uint64_t moved = taken & ~starred;
        automaton->to[i] = (taken & starred) | moved << 1 | carry | automaton->sets[RESTART][i];
        carry = moved >> (WORD_BITS - 1);
    }
    skip_stars(automaton, automaton->to);
    uint32_t next = find_parts(automaton);
    if (next == UNKNOWN) {
        uint32_t *bucket = find_bucket(automaton);
        next = find_state(automaton, bucket);
        if (next == UNKNOWN && is_full(automaton)) {
            forget_states(automaton); /* with them, the one at the place */
            return make_state(automaton, bucket);
        }
        if (next == UNKNOWN) next = make_state(automaton, bucket);
    }
    automaton->rows[place + symbol] = next;
    return next;
}

/* Finds the state before the first byte, or what its set means. */
static __attribute__((noinline)) void find_start(automaton_t *automaton) {
    memcpy(automaton->to, automaton->sets[START], automaton->words * sizeof(uint64_t));
    automaton->start = find_parts(automaton);
    if (automaton->start != UNKNOWN) return;
    uint32_t *bucket = find_bucket(automaton);
    automaton->start = find_state(automaton, bucket);
    if (automaton->start == UNKNOWN) automaton->start = make_state(automaton, bucket);
}

static int matches(automaton_t *automaton, const char *key, size_t len) {
    const unsigned char *at = (const unsigned char *)key, *end = at + len;
    if (automaton->start == UNKNOWN) find_start(automaton);
    uint32_t place = automaton->start;
    while (place > YES && at < end) {
        uint32_t symbol = automaton->symbol_of[*at++];
        uint32_t next = automaton->rows[place + symbol];
        place = __builtin_expect(next != UNKNOWN, 1) ? next : step(automaton, place, symbol);
    }
    if (place > YES) place = automaton->rows[place + automaton->row - 1];
    return place == YES;
}

/* ---- the filter --------------------------------------------------------------------- */

typedef struct {
    long first, last;
} range_t;

struct filter {
    range_t *databases; /* NULL: all */
    size_t ranges;
    automaton_t *including; /* NULL: every key is included */
    automaton_t *excluding; /* NULL: none is excluded */
};

/* Reads a checked value of `databases`. */
static void read_databases(filter_t *filter, const char *value) {
    if (strcmp(value, "ALL") == 0) return;
    filter->databases = need(malloc((strlen(value) / 2 + 1) * sizeof(range_t)));
    for (char *at = (char *)value;; at++) { /* behind a comma, or at the beginning */
        long one = strtol(at, &at, 10), other = one;
        if (*at == '-') other = strtol(at + 1, &at, 10);
        range_t range = {one < other ? one : other, one < other ? other : one};
        filter->databases[filter->ranges++] = range;
        if (*at != ',') return;
    }
}

static int is_blank(char c) { return memchr(" \t\r\n\v\f", c, 6) != NULL; }

static int hex_digit(char c) { return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10; }

/* Replaces the escapes of a mask by the bytes that they mean; returns how many there are. */
static size_t unescape(char *mask, size_t len) {
    size_t used = 0;
    for (size_t i = 0; i < len; i++) {
        char byte = mask[i];
        if (byte == '\\' && mask[i + 1] == 'x') {
            byte = (char)(hex_digit(mask[i + 2]) << 4 | hex_digit(mask[i + 3]));
            i += 3;
        } else if (byte == '\\') {
            i++;
        }
        mask[used++] = byte;
    }
    return used;
}

/* Reads a checked value of `masks`. */
static void read_masks(filter_t *filter, const char *value, size_t len) {
    char *text = memcpy(need(calloc(1, len + 4)), value, len);
    /* A mask and the blank behind it have at least as many bytes as the mask has positions. */
    positions_t including = {need(malloc((len + 1) * sizeof(position_t))), 0, 0};
    positions_t excluding = {need(malloc((len + 1) * sizeof(position_t))), 0, 0};
    int all = 0;
    for (size_t at = 0, end; at < len; at = end + 1) {
        for (end = at; end < len && !is_blank(text[end]);)
            end++;
        if (end == at) continue;
        char *mask = text + at;
        size_t mask_len = unescape(mask, end - at);
        int excludes = mask[0] == '!';
        mask += excludes;
        mask_len -= (size_t)excludes;
        if (mask_len == 3 && memcmp(mask, "ALL", 3) == 0) {
            mask_len = 0; /* the empty mask matches every key */
            all |= !excludes;
        }
        add_mask(excludes ? &excluding : &including, mask, mask_len);
    }
    if (!all && (including.masks || !excluding.masks))
        filter->including = automaton_new(&including);
    if (excluding.masks) filter->excluding = automaton_new(&excluding);
    free(including.all);
    free(excluding.all);
    free(text);
}

filter_t *filter_new(const char *masks, size_t len, const char *databases) {
    filter_t *filter = need(calloc(1, sizeof(*filter)));
    read_databases(filter, databases);
    read_masks(filter, masks, len);
    if (filter->databases || filter->including || filter->excluding) return filter;
    free(filter);
    return NULL;
}

void filter_free(filter_t *filter) {
    if (filter == NULL) return;
    automaton_free(filter->including);
    automaton_free(filter->excluding);
    free(filter->databases);
    free(filter);
}

int filter_has_database(const filter_t *filter, int db) {
    if (filter->databases == NULL) return 1;
    for (size_t i = 0; i < filter->ranges; i++)
        if (db >= filter->databases[i].first && db <= filter->databases[i].last) return 1;
    return 0;
}

int filter_passes(filter_t *filter, int db, const char *key, size_t len) {
    if (filter->databases != NULL && !filter_has_database(filter, db)) return 0;
    if (filter->including != NULL && !matches(filter->including, key, len)) return 0;
    return filter->excluding == NULL || !matches(filter->excluding, key, len);
}
