/* A streaming JSON tokenizer for traces. Every complaint names line and column (TD_EPARSE). */
#ifndef SCHEDULES_TRACE_JSON_H
#define SCHEDULES_TRACE_JSON_H

#include "base/base.h"

#include <zlib.h>

enum { JSON_IN_BYTES = 1 << 16 };

/* Where the characters come from, and how far they are read. The caller sets name, err, line = 1,
 * and either file and buf (of JSON_IN_BYTES) or text and n; at the end it frees str. */
typedef struct json_in {
    const char *name;
    gzFile file;      /* NULL: all bytes are in text */
    const char *text; /* n bytes, of which `at` are read */
    size_t at, n;
    uint64_t before; /* bytes before text */
    uint64_t line, line_start;
    char *buf;
    td_text str; /* the last string or key that was read */
    td_err *err;
} json_in;

/* Fails with "name:line:column: what". */
td_status json_bad(json_in *r, const char *what);
/* The next character that is no white space, not yet read; -1 at the end. */
int json_next(json_in *r);
/* Reads that character, which must be `want`; `where` is what it belongs to. */
TD_MUST_USE td_status json_expect(json_in *r, char want, const char *where);
/* Reads a string into r->str. */
TD_MUST_USE td_status json_take_string(json_in *r);
/* An integer within [min, max]. */
TD_MUST_USE td_status json_int(json_in *r, int64_t min, int64_t max, int64_t *out);
/* A number of at most `decimals` decimals, times 10^decimals: exact. */
TD_MUST_USE td_status json_scaled(json_in *r, int decimals, int64_t *out);
/* Any value, unread. */
TD_MUST_USE td_status json_skip(json_in *r);

/* Called where a member's value or an array's item begins; a member's key is in r->str. */
typedef td_status (*json_member)(json_in *r, void *ctx);
TD_MUST_USE td_status json_members(json_in *r, const char *where, json_member fn, void *ctx);
TD_MUST_USE td_status json_items(json_in *r, const char *where, json_member fn, void *ctx);

#endif
