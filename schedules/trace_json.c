/* The JSON tokenizer: one character of look-ahead, no tree. */
#include "schedules/trace_json.h"

#include <stdio.h>
#include <string.h>

enum { MAX_DEPTH = 32, MAX_STRING = 1 << 20 };

/* --- characters --- */

td_status json_bad(json_in *r, const char *what)
{
    return td_fail(r->err, TD_EPARSE, "%s:%llu:%llu: %s", r->name, (unsigned long long)r->line,
                   (unsigned long long)(r->before + r->at - r->line_start + 1), what);
}

static bool refill(json_in *r)
{
    if (r->file == NULL) return false;
    const int got = gzread(r->file, r->buf, JSON_IN_BYTES);
    if (got <= 0) return false;
    r->before += r->n;
    r->text = r->buf;
    r->at = 0;
    r->n = (size_t)got;
    return true;
}

static int peek(json_in *r)
{
    if (r->at == r->n && !refill(r)) return -1;
    return (unsigned char)r->text[r->at];
}

static int next(json_in *r)
{
    const int c = peek(r);
    if (c < 0) return c;
    r->at++;
    if (c == '\n') {
        r->line++;
        r->line_start = r->before + r->at;
    }
    return c;
}

int json_next(json_in *r)
{
    int c = peek(r);
    while (c == ' ' || c == '\n' || c == '\r' || c == '\t') {
        (void)next(r);
        c = peek(r);
    }
    return c;
}

/* Why the characters ended: the end of the file, or a broken compressed stream. */
static td_status json_cut(json_in *r, const char *where)
{
    int code = Z_OK;
    const char *const why = r->file != NULL ? gzerror(r->file, &code) : "";
    char text[200];
    if (code != Z_OK && code != Z_STREAM_END)
        (void)snprintf(text, sizeof text, "the compressed data is damaged: %.120s", why);
    else
        (void)snprintf(text, sizeof text, "the file ends within %s; was it cut?", where);
    return json_bad(r, text);
}

td_status json_expect(json_in *r, char want, const char *where)
{
    const int c = json_next(r);
    if (c == want) {
        (void)next(r);
        return TD_OK;
    }
    if (c < 0) return json_cut(r, where);
    char text[100];
    (void)snprintf(text, sizeof text, "expected '%c' in %s", want, where);
    return json_bad(r, text);
}

/* --- values --- */

static td_status read_hex4(json_in *r, unsigned *code)
{
    *code = 0;
    for (int i = 0; i < 4; i++) {
        const int c = peek(r);
        if (c < 0) return json_cut(r, "a string");
        int digit = -1;
        if (c >= '0' && c <= '9') digit = c - '0';
        if (c >= 'a' && c <= 'f') digit = c - 'a' + 10;
        if (c >= 'A' && c <= 'F') digit = c - 'A' + 10;
        if (digit < 0) return json_bad(r, "expected four hexadecimal digits after \\u");
        *code = *code * 16 + (unsigned)digit;
        (void)next(r);
    }
    return TD_OK;
}

static void add_utf8(td_text *t, unsigned code)
{
    char b[4];
    size_t n = 0;
    if (code < 0x80) {
        b[n++] = (char)code;
    } else if (code < 0x800) {
        b[n++] = (char)(0xc0 | code >> 6);
        b[n++] = (char)(0x80 | (code & 0x3f));
    } else {
        if (code >= 0x10000) {
            b[n++] = (char)(0xf0 | code >> 18);
            b[n++] = (char)(0x80 | (code >> 12 & 0x3f));
        } else {
            b[n++] = (char)(0xe0 | code >> 12);
        }
        b[n++] = (char)(0x80 | (code >> 6 & 0x3f));
        b[n++] = (char)(0x80 | (code & 0x3f));
    }
    td_text_addn(t, b, n);
}

static td_status read_escape(json_in *r)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const int c = peek(r);
    if (c < 0) return json_cut(r, "a string");
    if (c != 'u') {
        const char *const at = strchr(from, c);
        if (c == '\0' || at == NULL) return json_bad(r, "unknown escape in a string");
        (void)next(r);
        td_text_addn(&r->str, &to[at - from], 1);
        return TD_OK;
    }
    (void)next(r);
    unsigned code = 0;
    TD_TRY(read_hex4(r, &code));
    if (code >= 0xd800 && code < 0xdc00) {
        unsigned low = 0;
        if (next(r) != '\\' || next(r) != 'u')
            return json_bad(r, "half a surrogate pair in a string");
        TD_TRY(read_hex4(r, &low));
        if (low < 0xdc00 || low > 0xdfff) return json_bad(r, "half a surrogate pair in a string");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code == 0 || (code >= 0xdc00 && code <= 0xdfff)) {
        return json_bad(r, "a string holds no such character");
    }
    add_utf8(&r->str, code);
    return TD_OK;
}

/* Leaves the string in r->str. */
td_status json_take_string(json_in *r)
{
    TD_TRY(json_expect(r, '"', "a string"));
    r->str.len = 0;
    td_text_addn(&r->str, "", 0);
    for (;;) {
        const int c = peek(r);
        if (c < 0) return json_cut(r, "a string");
        if (c < 0x20) return json_bad(r, "a control character in a string");
        if (r->str.len > MAX_STRING) return json_bad(r, "a string longer than a megabyte");
        (void)next(r);
        if (c == '"') break;
        if (c == '\\') {
            TD_TRY(read_escape(r));
        } else {
            const char byte = (char)c;
            td_text_addn(&r->str, &byte, 1);
        }
    }
    return r->str.failed ? td_fail(r->err, TD_ENOMEM, "%s: out of memory", r->name) : TD_OK;
}

/* An integer; with `decimals` a number of so many decimals, scaled to an integer by them. */
td_status json_scaled(json_in *r, int decimals, int64_t *out)
{
    int c = json_next(r);
    const bool negative = c == '-';
    if (negative) {
        (void)next(r);
        c = peek(r);
    }
    if (c < 0) return json_cut(r, "a number");
    if (c < '0' || c > '9') return json_bad(r, "expected a number");
    int64_t v = 0;
    bool point = false;
    int left = decimals;
    for (;; c = peek(r)) {
        if (c == '.' && !point && decimals > 0) {
            point = true;
        } else if (c >= '0' && c <= '9' && !(point && left == 0)) {
            if (__builtin_mul_overflow(v, 10, &v) ||
                __builtin_sub_overflow(v, (int64_t)c - '0', &v))
                return json_bad(r, "a number that does not fit 64 bits");
            if (point) left--;
        } else {
            break;
        }
        (void)next(r);
    }
    if (c == '.' || c == 'e' || c == 'E' || (c >= '0' && c <= '9'))
        return json_bad(r,
                        decimals > 0 ? "expected at most three decimals" : "expected an integer");
    for (; left > 0; left--)
        if (__builtin_mul_overflow(v, 10, &v))
            return json_bad(r, "a number that does not fit 64 bits");
    /* digits were gathered below zero, where the range is one larger */
    if (!negative && __builtin_mul_overflow(v, -1, &v))
        return json_bad(r, "a number that does not fit 64 bits");
    *out = v;
    return TD_OK;
}

td_status json_int(json_in *r, int64_t min, int64_t max, int64_t *out)
{
    TD_TRY(json_scaled(r, 0, out));
    if (*out < min || *out > max) {
        char text[120];
        (void)snprintf(text, sizeof text, "%lld is out of range: expected %lld to %lld",
                       (long long)*out, (long long)min, (long long)max);
        return json_bad(r, text);
    }
    return TD_OK;
}

static td_status skip(json_in *r, int depth);

static td_status skip_members(json_in *r, char close, int depth)
{
    (void)next(r);
    if (json_next(r) == close) {
        (void)next(r);
        return TD_OK;
    }
    for (;;) {
        if (close == '}') {
            TD_TRY(json_take_string(r));
            TD_TRY(json_expect(r, ':', "an object"));
        }
        TD_TRY(skip(r, depth + 1));
        const int c = json_next(r);
        if (c == close) {
            (void)next(r);
            return TD_OK;
        }
        TD_TRY(json_expect(r, ',', close == '}' ? "an object" : "an array"));
    }
}

static td_status skip(json_in *r, int depth)
{
    if (depth > MAX_DEPTH) return json_bad(r, "nested too deeply");
    const int c = json_next(r);
    if (c < 0) return json_cut(r, "a value");
    if (c == '"') return json_take_string(r);
    if (c == '{') return skip_members(r, '}', depth);
    if (c == '[') return skip_members(r, ']', depth);
    size_t n = 0;
    for (int k = c; k >= 0 && strchr("+-.0123456789eEtrufalsn", k) != NULL && k != 0; k = peek(r)) {
        (void)next(r);
        n++;
    }
    return n > 0 ? TD_OK : json_bad(r, "expected a value");
}

td_status json_skip(json_in *r) { return skip(r, 0); }

td_status json_members(json_in *r, const char *where, json_member fn, void *ctx)
{
    TD_TRY(json_expect(r, '{', where));
    if (json_next(r) == '}') return json_expect(r, '}', where);
    for (;;) {
        TD_TRY(json_take_string(r));
        TD_TRY(json_expect(r, ':', where));
        TD_TRY(fn(r, ctx));
        if (json_next(r) == '}') return json_expect(r, '}', where);
        TD_TRY(json_expect(r, ',', where));
    }
}

td_status json_items(json_in *r, const char *where, json_member fn, void *ctx)
{
    TD_TRY(json_expect(r, '[', where));
    if (json_next(r) == ']') return json_expect(r, ']', where);
    for (;;) {
        TD_TRY(fn(r, ctx));
        if (json_next(r) == ']') return json_expect(r, ']', where);
        TD_TRY(json_expect(r, ',', where));
    }
}
