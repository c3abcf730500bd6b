/* Bodies of json_read.h. */
#include "costmodel/json_read.h"

#include "base/text.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

td_status json_open(const char *text, size_t len, const char *file, json_view *out, td_err *err)
{
    json_error_t at;
    const size_t mark = td_byte_order_mark(text, len);
    text += mark;
    len -= mark;
    *out = (json_view){.file = file, .text = text, .len = len};
    if (len > JSON_READ_MAX)
        return td_fail(err, TD_EPARSE, "%s: file of %zu bytes; a description has at most %d", file,
                       len, JSON_READ_MAX);
    json_t *const root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &at);
    if (root == NULL)
        return td_fail(err, TD_EPARSE, "%s:%d:%d: malformed JSON: %s", file, at.line,
                       at.column < 1 ? 1 : at.column, at.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return td_fail(err, TD_EPARSE, "%s:1:1: malformed: wants a JSON object", file);
    }
    out->object = root;
    return TD_OK;
}

void json_close(json_view *v)
{
    json_decref(v->object);
    v->object = NULL;
}

/* The offset of `"key" :` from v->at on, or v->at. Strings are skipped as wholes, so that a value
 * that looks like a key does not count. */
static size_t key_offset(const json_view *v, const char *key)
{
    const size_t n = key != NULL ? strlen(key) : 0;
    for (size_t i = v->at; n > 0 && i < v->len; i++) {
        if (v->text[i] != '"') continue;
        size_t end = i + 1;
        while (end < v->len && v->text[end] != '"') end += v->text[end] == '\\' ? 2 : 1;
        size_t next = end + 1;
        while (next < v->len && strchr(" \t\r\n", v->text[next]) != NULL) next++;
        const bool is_key = next < v->len && v->text[next] == ':';
        if (is_key && end - i - 1 == n && memcmp(v->text + i + 1, key, n) == 0) return i;
        i = end;
    }
    return v->at;
}

td_status json_fail(const json_view *v, const char *key, td_err *err, const char *fmt, ...)
{
    const size_t at = key_offset(v, key);
    int64_t line = 1, column = 1;
    for (size_t i = 0; i < at && i < v->len; i++) {
        column = v->text[i] == '\n' ? 1 : column + 1;
        line += v->text[i] == '\n';
    }
    char what[400];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return td_fail(err, TD_EPARSE, "%s:%" PRId64 ":%" PRId64 ": %s%s%s", v->file, line, column,
                   key != NULL ? key : "", key != NULL ? ": " : "", what);
}

/* Copies the next word of a list into key; returns what follows, or NULL at the end. */
static const char *next_word(const char *list, char key[64])
{
    list += strspn(list, " ");
    const size_t n = strcspn(list, " ");
    if (n == 0 || n >= 64) return NULL;
    memcpy(key, list, n);
    key[n] = '\0';
    return list + n;
}

json_t *json_find(const json_view *v, const char *aliases, char key[64])
{
    for (const char *list = next_word(aliases, key); list != NULL; list = next_word(list, key)) {
        json_t *const value = json_object_get(v->object, key);
        if (value != NULL && !json_is_null(value)) return value;
    }
    (void)next_word(aliases, key);
    return NULL;
}

static td_status missing(const json_view *v, const char *key, bool needed, td_err *err)
{
    return needed ? json_fail(v, NULL, err, "key \"%s\" is missing", key) : TD_OK;
}

td_status json_i64(const json_view *v, const char *aliases, bool needed, int64_t min, int64_t max,
                   int64_t *out, td_err *err)
{
    char key[64];
    const json_t *const value = json_find(v, aliases, key);
    if (value == NULL) return missing(v, key, needed, err);
    const int64_t x = json_integer_value(value);
    if (!json_is_integer(value) || x < min || x > max)
        return json_fail(v, key, err, "wants a whole number from %" PRId64 " to %" PRId64, min,
                         max);
    *out = x;
    return TD_OK;
}

td_status json_f64(const json_view *v, const char *aliases, bool needed, double min, double max,
                   double *out, td_err *err)
{
    char key[64];
    const json_t *const value = json_find(v, aliases, key);
    if (value == NULL) return missing(v, key, needed, err);
    const double x = json_number_value(value);
    if (!json_is_number(value) || !(x >= min && x <= max))
        return json_fail(v, key, err, "wants a number from %g to %g", min, max);
    *out = x;
    return TD_OK;
}

td_status json_bool(const json_view *v, const char *aliases, bool *out, td_err *err)
{
    char key[64];
    const json_t *const value = json_find(v, aliases, key);
    if (value == NULL) return TD_OK;
    if (!json_is_boolean(value)) return json_fail(v, key, err, "wants true or false");
    *out = json_is_true(value);
    return TD_OK;
}

td_status json_text(const json_view *v, const char *aliases, bool needed, char *out, size_t size,
                    td_err *err)
{
    char key[64];
    const json_t *const value = json_find(v, aliases, key);
    if (value == NULL) return missing(v, key, needed, err);
    if (!json_is_string(value)) return json_fail(v, key, err, "wants a string");
    const size_t n = strlen(json_string_value(value));
    if (n >= size) return json_fail(v, key, err, "wants at most %zu characters", size - 1);
    memcpy(out, json_string_value(value), n + 1);
    return TD_OK;
}

td_status json_object_in(const json_view *v, const char *key, bool needed, json_view *out,
                         bool *found, td_err *err)
{
    json_t *const value = json_object_get(v->object, key);
    *found = value != NULL && !json_is_null(value);
    if (!*found) return missing(v, key, needed, err);
    if (!json_is_object(value)) return json_fail(v, key, err, "wants an object");
    *out = *v;
    out->at = key_offset(v, key);
    out->object = value;
    return TD_OK;
}

/* The word of a list nearest to `name` in a message's form, or nothing. */
static const char *did_you_mean(const char *keys, const char *name, char *buf, size_t size)
{
    char words[40][64];
    const char *names[40];
    size_t n = 0;
    for (const char *list = next_word(keys, words[0]); list != NULL && n < 39;
         list = next_word(list, words[n])) {
        names[n] = words[n];
        n++;
    }
    const char *const near = td_nearest(name, names, n);
    buf[0] = '\0';
    if (near != NULL) (void)snprintf(buf, size, "; did you mean \"%s\"?", near);
    return buf;
}

td_status json_only(const json_view *v, const char *keys, td_err *err)
{
    const char *name = NULL;
    json_t *value = NULL;
    json_object_foreach(v->object, name, value)
    {
        bool known = false;
        char key[64], hint[100];
        for (const char *list = next_word(keys, key); list != NULL && !known;
             list = next_word(list, key))
            known = strcmp(key, name) == 0;
        if (!known)
            return json_fail(v, name, err, "unknown key%s",
                             did_you_mean(keys, name, hint, sizeof hint));
    }
    return TD_OK;
}
