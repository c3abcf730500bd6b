/* Numbers with units, read and printed; names that were nearly right. */
#ifndef BASE_TEXT_H
#define BASE_TEXT_H

#include "base/base.h"

/* Each parser takes the whole string or fails with "NAME: ..." naming what it wanted. */
TD_MUST_USE td_status td_parse_i64(const char *s, int64_t min, int64_t max, const char *name,
                                   int64_t *out, td_err *err);
TD_MUST_USE td_status td_parse_f64(const char *s, double min, double max, const char *name,
                                   double *out, td_err *err);
/* "80GiB", "80GB" (1e9), "512KiB", "1024" (bytes). */
TD_MUST_USE td_status td_parse_bytes(const char *s, const char *name, int64_t *bytes, td_err *err);
/* "1,2,3" or "1 2 3"; also "0-3" for a run and "4*16" for sixteen fours. */
TD_MUST_USE td_status td_parse_i64_list(td_arena *a, const char *s, const char *name, int64_t **out,
                                        size_t *n, td_err *err);

/* All print into buf and return it. */
char *td_print_bytes(char *buf, size_t size, int64_t bytes); /* "18.2 GiB" */
char *td_print_ns(char *buf, size_t size, int64_t ns);       /* "41.8 ms" */
char *td_print_count(char *buf, size_t size, double count);  /* "12.4 M" */

/* The name nearest to `word` among n names, or NULL when none is near (edit distance over a third
 * of the length). */
const char *td_nearest(const char *word, const char *const *names, size_t n);

/* Bytes of the UTF-8 byte order mark that some editors put before a text: 3, or 0 without one. */
size_t td_byte_order_mark(const char *text, size_t len);

#endif
