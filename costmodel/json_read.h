/* Reading small JSON files with errors that name file, line, column and key. */
#ifndef COSTMODEL_JSON_READ_H
#define COSTMODEL_JSON_READ_H

#include "base/base.h"

#include <jansson.h>

enum { JSON_READ_MAX = 1 << 24 }; /* bytes of a description file */

/* An object of a document. jansson keeps no positions, so an error looks for its key in the text
 * from `at` on. */
typedef struct json_view {
    const char *file; /* for messages */
    const char *text; /* the whole document, `len` bytes */
    size_t len, at;   /* where this object's keys are looked for */
    json_t *object;
} json_view;

/* Parses a document whose top is an object; duplicate keys are refused. json_close frees it. */
TD_MUST_USE td_status json_open(const char *text, size_t len, const char *file, json_view *out,
                                td_err *err);
void json_close(json_view *v);

/* "file:line:col: key: what": the position is that of the key, or of the object without it. */
td_status json_fail(const json_view *v, const char *key, td_err *err, const char *fmt, ...)
    TD_PRINTF(4, 5);

/* The value of the first alias that is there and not null, else NULL; aliases are one string,
 * separated by spaces. *key is that alias, or the first one when none is there. */
json_t *json_find(const json_view *v, const char *aliases, char key[64]);

/* Each leaves *out alone when no alias is there and `needed` is false. */
TD_MUST_USE td_status json_i64(const json_view *v, const char *aliases, bool needed, int64_t min,
                               int64_t max, int64_t *out, td_err *err);
TD_MUST_USE td_status json_f64(const json_view *v, const char *aliases, bool needed, double min,
                               double max, double *out, td_err *err);
TD_MUST_USE td_status json_bool(const json_view *v, const char *aliases, bool *out, td_err *err);
/* Copies a string, which must fit. */
TD_MUST_USE td_status json_text(const json_view *v, const char *aliases, bool needed, char *out,
                                size_t size, td_err *err);
/* The object under a key; *found says whether it is there. */
TD_MUST_USE td_status json_object_in(const json_view *v, const char *key, bool needed,
                                     json_view *out, bool *found, td_err *err);
/* Refuses keys other than those in the list (separated by spaces), with a "did you mean". */
TD_MUST_USE td_status json_only(const json_view *v, const char *keys, td_err *err);

#endif
