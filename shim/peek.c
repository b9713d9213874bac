/* See peek.h. In all versions that are known, an open key begins with {context, database, name,
 * object}, and an object with {type and encoding in four bits each, other bits, number or
 * something else}. A short string is in the memory of its object, but not always at the same
 * place: in Valkey 9, the key may stand before it. It is read by a function of the server. */
#include "peek.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum form { NO_FORM, NUMBER, SHORT_STRING, FORMS };
enum trust { UNTRIED, TRUSTED, REFUTED };

/* The place of a key's name and of its object among the words of an open key. */
enum { NAME_WORD = 2, OBJECT_WORD = 3 };
/* The first byte of an object: encoding and type. The type of strings is 0. */
enum { RAW_STRING_BYTE = 0x00, NUMBER_BYTE = 0x10, SHORT_STRING_BYTE = 0x80 };

/* Before a short string stand three bytes: its length, the length that there is room for, and
 * LENGTH_IN_A_BYTE, which says that each of these lengths has one byte. */
enum { LENGTH_IN_A_BYTE = 1, HEADER_BYTES = 3 };

typedef struct {
    unsigned char type_and_encoding;
    char more[7];
    long number;
} object_t;

/* Bytes of a form that have to be as the command says before the form is trusted. */
#define PROOF_BYTES 8
/* Guesses in one load, at most: each takes some microseconds, for nothing if this server keeps
 * all strings in forms that are not known. */
#define GUESSES 1000

static enum trust trust[FORMS];
static size_t proved[FORMS];
static int guesses; /* made so far */
static char number_text[32];

static void *object_of(RedisModuleKey *key) {
    void *words[OBJECT_WORD + 1];
    memcpy(words, (const void *)key, sizeof(words));
    return words[NAME_WORD] == RedisModule_GetKeyNameFromModuleKey(key) ? words[OBJECT_WORD] : NULL;
}

/* Copies memory that may not be there; returns 0 if it is. The kernel reads it, because the
 * kernel tells what cannot be read and does not end the process. */
static int copy_safely(void *to, const void *from, size_t len) {
    int ends[2];
    if (pipe(ends) != 0) return -1;
    int copied =
        write(ends[1], from, len) == (ssize_t)len && read(ends[0], to, len) == (ssize_t)len;
    close(ends[0]);
    close(ends[1]);
    return copied ? 0 : -1;
}

static int form_of(const object_t *object) {
    if (object->type_and_encoding == NUMBER_BYTE) return NUMBER;
    return object->type_and_encoding == SHORT_STRING_BYTE ? SHORT_STRING : NO_FORM;
}

/* Guesses what a key holds, if its form is untried. */
static void make_guess(RedisModuleKey *key, guess_t *guess) {
    object_t object;
    if (guesses == GUESSES) return;
    guesses++;
    if (copy_safely(&object, object_of(key), sizeof(object)) != 0) return;
    int form = form_of(&object);
    if (trust[form] != UNTRIED) return;
    guess->len = sizeof(guess->bytes);
    if (form == NUMBER)
        guess->len = (size_t)snprintf(guess->bytes, sizeof(guess->bytes), "%ld", object.number);
    else if (copy_safely(guess->bytes, object_of(key), guess->len) != 0)
        return; /* another object may be far enough from the end of readable memory */
    guess->form = form;
}

/* True if the memory of an object has the string, with its header before it and a NUL behind
 * it. */
static int has_string(const guess_t *guess, const char *data, size_t len) {
    size_t first = offsetof(object_t, number) + HEADER_BYTES;
    for (size_t at = first; at + len < guess->len; at++) {
        const char *text = guess->bytes + at;
        if ((unsigned char)text[-HEADER_BYTES] == len && text[-1] == LENGTH_IN_A_BYTE &&
            memcmp(text, data, len) == 0 && text[len] == '\0')
            return 1;
    }
    return 0;
}

void peek_prove(RedisModuleCtx *ctx, const guess_t *guess, const char *data, size_t len) {
    if (guess->form == NO_FORM || len == 0) return; /* an empty string proves nothing */
    int holds = guess->form == NUMBER ? guess->len == len && memcmp(guess->bytes, data, len) == 0
                                      : has_string(guess, data, len);
    if (holds) {
        proved[guess->form] += len;
        if (proved[guess->form] >= PROOF_BYTES) trust[guess->form] = TRUSTED;
        return;
    }
    trust[guess->form] = REFUTED;
    RedisModule_Log(ctx, "notice",
                    "this server keeps %s in a form that is not known: the values of keys are "
                    "read with the command GETEX",
                    guess->form == NUMBER ? "numbers" : "short strings");
}

const char *peek_string(RedisModuleKey *key, size_t len, guess_t *guess) {
    size_t found = 0;
    const char *data = NULL;
    guess->form = NO_FORM;
    if (len >= PEEK_BYTES) return RedisModule_StringDMA(key, &found, REDISMODULE_READ);
    if (trust[NUMBER] != TRUSTED && trust[SHORT_STRING] != TRUSTED) {
        make_guess(key, guess);
        return NULL;
    }
    /* One form is proved, so the words of the key and the first byte of its object are. */
    void *object = object_of(key);
    if (object == NULL) return NULL;
    object_t head;
    memcpy(&head, object, sizeof(head));
    int form = form_of(&head);
    if (head.type_and_encoding == RAW_STRING_BYTE) {
        data = RedisModule_StringDMA(key, &found, REDISMODULE_READ);
    } else if (trust[form] != TRUSTED) {
        make_guess(key, guess);
    } else if (form == NUMBER) {
        found = (size_t)snprintf(number_text, sizeof(number_text), "%ld", head.number);
        data = number_text;
    } else {
        data = RedisModule_StringPtrLen(object, &found);
    }
    return data != NULL && found == len ? data : NULL;
}

void peek_prepare(void) {
    trust[NO_FORM] = REFUTED;
    trust[NUMBER] = trust[SHORT_STRING] = UNTRIED;
    proved[NUMBER] = proved[SHORT_STRING] = 0;
    guesses = 0;
}
