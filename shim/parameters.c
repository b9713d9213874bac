/* The checks of parameters' values.
 *
 * Redis needs the result of CONFIG SET at once, on its main thread, where no Python may
 * run (rule 1). So the checks are in C. The limits of each parameter are in the table that
 * generate.py makes. Any thread may call; nothing here keeps state.
 * Knows neither Redis nor Python; tests/shim/test_parameters.py drives it.
 */
#include <errno.h>
#include <locale.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "parameters.h"
#include "tables.h"

/* An error shows at most this many characters of a refused value. Redis cuts the error of a
 * CONFIG SET at 255 characters, and the end of ours says which values are accepted. */
#define SHOWN_CHARACTERS 64

/* Returns the bits of an event class, 0 if no class has this letter. */
static int class_bits(char letter) {
    for (int i = 0; i < EVENT_CLASSES_COUNT; i++)
        if (EVENT_CLASSES[i].letter == letter) return EVENT_CLASSES[i].bits;
    return 0;
}

int parameters_classes(const char *value, size_t len) {
    int bits = 0;
    for (size_t i = 0; i < len; i++)
        bits |= class_bits(value[i]);
    return bits;
}

/* True if a server with these classes has the one with this letter. `A` is accepted by all servers,
 * though they may lack some of the classes that it stands for. */
static int is_accepted(char letter, int classes) {
    return letter == 'A' || (class_bits(letter) & classes) != 0;
}

int parameters_is_url(const char *value, size_t len) {
    return memmem(value, len, "://", 3) != NULL && memchr(value, '@', len) != NULL;
}

/* Writes the refusal of a value: which parameter, which value (unless it is a secret), what
 * is wrong with it, and what is accepted. `wrong` and `accepted` may be empty. Returns -1. */
static int refuse(const parameter_t *parameter, const char *value, size_t len, const char *wrong,
                  char *error, size_t capacity) {
    char shown[SHOWN_CHARACTERS + 8];
    size_t used = 0, i = 0;
    int hidden = parameter->sensitive || parameters_is_url(value, len);
    for (; i < len; i++) {
        unsigned char byte = (unsigned char)value[i];
        int is_plain = byte >= 32 && byte < 127;
        if (used + (is_plain ? 1 : 4) > SHOWN_CHARACTERS) break;
        if (is_plain)
            shown[used++] = (char)byte;
        else
            used += (size_t)snprintf(shown + used, 5, "\\x%02x", byte);
    }
    snprintf(shown + used, 4, "%s", i < len ? "..." : "");
    snprintf(error, capacity, "%s: %s%s%s is not accepted%s%s%s%s", parameter->name,
             hidden ? "this value" : "'", hidden ? "" : shown, hidden ? "" : "'",
             wrong[0] ? ": " : "", wrong, parameter->accepted[0] ? "; give " : "",
             parameter->accepted);
    return -1;
}

/* True if the text matches a pattern of the table. The pattern is compiled each time: parameters
 * are set rarely, and this takes 0.1 ms. In the locale C, a text is bytes. */
static int matches(const char *pattern, const char *value, size_t len) {
    regex_t regex;
    char *text = strndup(value, len);
    locale_t bytes = newlocale(LC_ALL_MASK, "C", 0), before = uselocale(bytes);
    if (text == NULL || regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB) != 0) abort();
    int found = regexec(&regex, text, 0, NULL, 0) == 0;
    regfree(&regex);
    uselocale(before);
    freelocale(bytes);
    free(text);
    return found;
}

/* Returns the advice for a refused value of a parameter, or NULL. */
static const char *advice_for(int index, const char *value, size_t len) {
    for (int i = 0; i < ADVICE_COUNT; i++)
        if (ADVICE[i].parameter == index &&
            matches(ADVICE[i].pattern, value, len) == ADVICE[i].found)
            return ADVICE[i].text;
    return NULL;
}

/* Refuses a text that does not match its pattern, with the advice that there is or with what is
 * accepted. */
static int refuse_text(int index, const char *value, size_t len, char *error, size_t capacity) {
    parameter_t parameter = PARAMETERS[index];
    const char *advice = advice_for(index, value, len);
    if (advice != NULL) parameter.accepted = "";
    return refuse(&parameter, value, len, advice != NULL ? advice : "", error, capacity);
}

/* Refuses a value of `events`, with the letters that are accepted on this server. */
static int refuse_events(const parameter_t *parameter, const char *value, size_t len, int classes,
                         const char *wrong, char *error, size_t capacity) {
    char accepted[64] = "letters of";
    parameter_t here = *parameter;
    for (int i = 0; i < EVENT_CLASSES_COUNT; i++)
        if (is_accepted(EVENT_CLASSES[i].letter, classes))
            snprintf(accepted + strlen(accepted), 3, " %c", EVENT_CLASSES[i].letter);
    here.accepted = accepted;
    return refuse(&here, value, len, wrong, error, capacity);
}

static int check_integer(const parameter_t *parameter, const char *value, size_t len) {
    char digits[24];
    if (len == 0 || len >= sizeof(digits)) return -1;
    memcpy(digits, value, len);
    digits[len] = '\0';
    if (strspn(digits, "-0123456789") != len) return -1; /* strtoll would skip blanks */
    char *end;
    errno = 0;
    long long number = strtoll(digits, &end, 10);
    return errno != 0 || *end != '\0' || number < parameter->minimum || number > parameter->maximum;
}

static int hex_digit(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* Returns what is wrong with a list of masks, or NULL. Blanks separate masks, a backslash is
 * the first character of \\ or \xHH, and a mask that begins with ! (or with \x21, its other
 * form) has more after that. */
static const char *check_masks(const char *value, size_t len) {
    size_t mask_len = 0;
    int excludes = 0; /* the mask begins with ! */
    for (size_t i = 0; i <= len; i++) {
        if (i == len || strchr(" \t\r\n\v\f", value[i]) != NULL) {
            if (excludes && mask_len == 1) return "nothing stands behind a !";
            mask_len = 0;
            continue;
        }
        if (++mask_len == 1)
            excludes = value[i] == '!' || (len - i >= 4 && memcmp(value + i, "\\x21", 4) == 0);
        if (value[i] != '\\')
            ;
        else if (i + 1 < len && value[i + 1] == '\\')
            i += 1;
        else if (i + 3 < len && value[i + 1] == 'x' && hex_digit(value[i + 2]) &&
                 hex_digit(value[i + 3]))
            i += 3;
        else
            return "a backslash stands alone";
        if (mask_len > MASK_BYTES) return "a mask is too long";
    }
    return NULL;
}

int parameters_check(int index, const char *value, size_t len, int classes, char *error,
                     size_t capacity) {
    const parameter_t *parameter = &PARAMETERS[index];
    char wrong[128];
    wrong[0] = '\0';
    if (memchr(value, '\0', len) != NULL)
        return refuse(parameter, value, len, "it has a NUL byte", error, capacity);
    switch (parameter->kind) {
    case PARAMETER_INTEGER:
        if (check_integer(parameter, value, len) != 0)
            return refuse(parameter, value, len, wrong, error, capacity);
        return 0;
    case PARAMETER_EVENTS:
        if (len == 0 || (long long)len > parameter->maximum)
            return refuse_events(parameter, value, len, classes, wrong, error, capacity);
        for (size_t i = 0; i < len; i++) {
            if (is_accepted(value[i], classes)) continue;
            const char *advice = advice_for(index, value, len);
            if (class_bits(value[i]) != 0)
                snprintf(wrong, sizeof(wrong), "this server has no class %c", value[i]);
            else if (advice != NULL)
                snprintf(wrong, sizeof(wrong), "%s", advice);
            else if (value[i] > 32 && value[i] < 127)
                snprintf(wrong, sizeof(wrong), "no event class has the letter %c", value[i]);
            else
                snprintf(wrong, sizeof(wrong), "it has a byte that is no letter");
            return refuse_events(parameter, value, len, classes, wrong, error, capacity);
        }
        return 0;
    case PARAMETER_MASKS:
        if (check_masks(value, len) != NULL)
            return refuse(parameter, value, len, check_masks(value, len), error, capacity);
        /* fall through */
    default: /* PARAMETER_TEXT */
        if ((long long)len < parameter->minimum || (long long)len > parameter->maximum) {
            if (len > 0) snprintf(wrong, sizeof(wrong), "it has %zu bytes", len);
            return refuse(parameter, value, len, wrong, error, capacity);
        }
        if (parameter->pattern[0] != '\0' && !matches(parameter->pattern, value, len))
            return refuse_text(index, value, len, error, capacity);
        return 0;
    }
}

size_t parameters_append_mask(char *list, size_t len, size_t capacity, const char *mask,
                              size_t mask_len) {
    if (len + 1 + mask_len * 4 + 1 > capacity) return 0;
    if (len > 0) list[len++] = ' ';
    for (size_t i = 0; i < mask_len; i++) {
        unsigned char byte = (unsigned char)mask[i];
        if (byte == '\\')
            len += (size_t)snprintf(list + len, 3, "\\\\");
        else if (byte > 32 && byte < 127)
            list[len++] = (char)byte;
        else
            len += (size_t)snprintf(list + len, 5, "\\x%02x", byte);
    }
    list[len] = '\0';
    return len;
}
