/* Tables of slice times: from a formula, a file, the cost model. */
#include "costmodel/latency.h"

#include "base/text.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

td_status latency_table(int32_t batch, int64_t units, td_arena *a, slicing_times *out, td_err *err)
{
    const double bytes = 8.0 * batch * (double)units * (double)units;
    if (batch < 1 || units < 1 || bytes > 1e9)
        return td_fail(err, TD_EUSAGE,
                       "times of %d batch sizes and %lld lengths: does not fit 1 GB; a larger "
                       "--granularity or a smaller --batch",
                       batch, (long long)units);
    *out = (slicing_times){.batch = batch, .units = (int32_t)units};
    out->ns = TD_NEW_N(a, double, (size_t)batch *(size_t)units *(size_t)units);
    return out->ns != NULL ? TD_OK : td_fail(err, TD_ENOMEM, "out of memory for slice times");
}

/* --- a formula --- */

td_status latency_parse(const char *text, latency_formula *out, td_err *err)
{
    *out = (latency_formula){0};
    const struct {
        const char *key;
        double *value;
    } keys[] = {{"c", &out->c}, {"i", &out->i}, {"j", &out->j}, {"ii", &out->ii}, {"ij", &out->ij}};
    for (const char *s = text; *s != '\0';) {
        size_t k = 0;
        const size_t n = strcspn(s, "=,");
        while (k < 5 && (strlen(keys[k].key) != n || strncmp(s, keys[k].key, n) != 0)) k++;
        char *end = NULL;
        const double x = k < 5 && s[n] == '=' ? strtod(s + n + 1, &end) : 0;
        if (end == NULL || end == s + n + 1 || (*end != ',' && *end != '\0') || !isfinite(x))
            return td_fail(err, TD_EUSAGE,
                           "--latency %s: wants KEY=MS with keys c, i, j, ii, ij, as in "
                           "c=0.3,i=0.01,ij=0.00002",
                           text);
        *keys[k].value = x;
        s = *end == ',' ? end + 1 : end;
    }
    return TD_OK;
}

void latency_from_formula(const latency_formula *f, int64_t granularity, slicing_times *out)
{
    for (int32_t b = 1; b <= out->batch; b++)
        for (int32_t end = 1; end <= out->units; end++)
            for (int32_t len = 1; len <= end; len++) {
                const double i = (double)(len * granularity),
                             j = (double)(end - len) * (double)granularity;
                const double each = i * (f->i + f->ii * i + f->ij * j) + f->j * j;
                *slicing_time(out, b, len, end) = 1e6 * (f->c + b * each);
            }
}

/* --- a file --- */

typedef struct measurement {
    int64_t batch, tokens, context;
    double ns;
} measurement;

typedef struct measurements {
    measurement *items;
    size_t n, cap;
} measurements;

static int by_size(const void *a, const void *b)
{
    const measurement *const x = a, *const y = b;
    if (x->batch != y->batch) return x->batch < y->batch ? -1 : 1;
    if (x->context != y->context) return x->context < y->context ? -1 : 1;
    return x->tokens < y->tokens ? -1 : x->tokens > y->tokens;
}

static td_status read_lines(const char *path, td_arena *a, measurements *out, td_err *err)
{
    char *text = NULL;
    size_t len = 0;
    int64_t number = 0;
    TD_TRY(td_read_file(a, path, (size_t)1 << 28, &text, &len, err));
    for (char *line = text, *next = NULL; line != NULL; line = next) {
        next = strchr(line, '\n');
        if (next != NULL) *next++ = '\0';
        number++;
        line[strcspn(line, "#\r")] = '\0';
        if (line[strspn(line, " \t")] == '\0') continue;
        measurement m;
        double ms = 0;
        char rest = 0;
        const int fields = sscanf(line, "%" SCNd64 " %" SCNd64 " %" SCNd64 " %lf %c", &m.batch,
                                  &m.tokens, &m.context, &ms, &rest);
        if (fields != 4 || m.batch < 1 || m.tokens < 1 || m.context < 0 || !(ms > 0 && ms < 1e12))
            return td_fail(err, TD_EPARSE,
                           "%s:%" PRId64 ":1: wants BATCH TOKENS CONTEXT MS, as in 1 64 0 2.5",
                           path, number);
        m.ns = ms * 1e6;
        TD_TRY(TD_GROW(a, out->items, out->cap, out->n + 1, err));
        out->items[out->n++] = m;
    }
    if (out->n > 0) qsort(out->items, out->n, sizeof *out->items, by_size);
    return TD_OK;
}

/* t(b, i, 0): the measurements of b without context are m[0 .. n), ascending. */
static double without_context(const measurement *m, size_t n, double tokens)
{
    size_t k = 1;
    while (k + 1 < n && (double)m[k].tokens < tokens) k++;
    if (n == 1) return m[0].ns * tokens / (double)m[0].tokens;
    const double x0 = (double)m[k - 1].tokens, x1 = (double)m[k].tokens;
    const double ns = m[k - 1].ns + (m[k].ns - m[k - 1].ns) * (tokens - x0) / (x1 - x0);
    return ns > 0 ? ns : 0;
}

/* Those of b without context; n 0: there are none. */
static const measurement *of_batch(const measurements *all, int64_t batch, size_t *n)
{
    size_t first = 0;
    while (first < all->n && all->items[first].batch < batch) first++;
    *n = 0;
    while (first + *n < all->n && all->items[first + *n].batch == batch &&
           all->items[first + *n].context == 0)
        ++*n;
    return &all->items[first];
}

static td_status check_lines(const char *path, const measurements *all, td_err *err)
{
    for (size_t i = 0; i < all->n; i++) {
        const measurement *const m = &all->items[i];
        size_t n = 0;
        (void)of_batch(all, m->batch, &n);
        if (n == 0)
            return td_fail(err, TD_EPARSE, "%s: batch %" PRId64 " has no line without context",
                           path, m->batch);
        if (i > 0 && by_size(m - 1, m) == 0)
            return td_fail(err, TD_EPARSE,
                           "%s: %" PRId64 " tokens of %" PRId64 " sequences behind %" PRId64
                           ": given twice",
                           path, m->tokens, m->batch, m->context);
    }
    return TD_OK;
}

static td_status fit_context(const char *path, const measurements *all, td_arena *a,
                             context_fit *out, td_err *err)
{
    size_t rows = 0;
    context_row *const r = TD_NEW_N(a, context_row, all->n);
    if (r == NULL) return td_fail(err, TD_ENOMEM, "out of memory for %s", path);
    for (size_t i = 0; i < all->n; i++) {
        const measurement *const m = &all->items[i];
        size_t n = 0;
        const measurement *const base = of_batch(all, m->batch, &n);
        if (m->context == 0) continue;
        const double b = (double)m->batch, len = (double)m->tokens, j = (double)m->context;
        r[rows++] = (context_row){.x = {b * len, b * j, b * len * j},
                                  .ns = m->ns - without_context(base, n, len)};
    }
    if (context_fit_rows(r, rows, out, err) != TD_OK) return td_wrap(err, "%s", path);
    return TD_OK;
}

td_status latency_from_file(const char *path, int64_t granularity, td_arena *a, slicing_times *out,
                            td_err *err)
{
    measurements all = {0};
    context_fit fit = {{0}};
    TD_TRY(read_lines(path, a, &all, err));
    TD_TRY(check_lines(path, &all, err));
    TD_TRY(fit_context(path, &all, a, &fit, err));
    for (int32_t b = 1; b <= out->batch; b++) {
        size_t n = 0;
        const measurement *const base = of_batch(&all, b, &n);
        if (n == 0)
            return td_fail(err, TD_EUSAGE,
                           "%s: no line for %d sequences; measure it, or --batch %d", path, b,
                           b > 1 ? b - 1 : 1);
        for (int32_t end = 1; end <= out->units; end++)
            for (int32_t len = 1; len <= end; len++) {
                const double i = (double)(len * granularity);
                const double j = (double)((end - len) * granularity);
                const double x[3] = {b * i, b * j, b * i * j};
                const double ns = without_context(base, n, i) + (j > 0 ? context_eval(&fit, x) : 0);
                *slicing_time(out, b, len, end) = ns > 0 ? ns : 0;
            }
    }
    return TD_OK;
}

/* --- the cost model --- */

td_status latency_of_layer(const cost_model *c, int64_t granularity, slicing_times *out,
                           td_err *err)
{
    sizes z = *c->sizes;
    cost_model one = *c;
    one.sizes = &z;
    for (int32_t b = 1; b <= out->batch; b++) {
        z.run.micro_batch = b;
        for (int32_t end = 1; end <= out->units; end++)
            for (int32_t len = 1; len <= end; len++) {
                pass_query q = {.pass = PASS_F,
                                .slice_len = len * granularity,
                                .prefix = (end - len) * granularity,
                                .seq_len = z.run.seq_len};
                int64_t f = 0, back = 0;
                TD_TRY(cost_pass(&one, &q, &f, err));
                q.pass = PASS_B;
                TD_TRY(cost_pass(&one, &q, &back, err));
                *slicing_time(out, b, len, end) = (double)(f + back);
            }
    }
    return TD_OK;
}

td_status latency_of_stage(const cost_model *c, const slicing_times *layer, int64_t layers,
                           int32_t next, int64_t granularity, slicing_times *out, td_err *err)
{
    sizes z = *c->sizes;
    for (int32_t b = 1; b <= out->batch; b++) {
        z.run.micro_batch = b;
        for (int32_t len = 1; len <= out->units; len++) {
            int64_t bytes = 0;
            message_cost m = {0};
            TD_TRY(sizes_bytes(&z, SIZE_BOUNDARY, 0, len * granularity, 0, &bytes, err));
            if (next > 0) TD_TRY(cost_message(c, 0, next, bytes, &m, err));
            const double both = 2.0 * (double)(m.latency_ns + m.transfer_ns);
            for (int32_t end = len; end <= out->units; end++)
                *slicing_time(out, b, len, end) =
                    (double)layers * *slicing_time(layer, b, len, end) + both;
        }
    }
    return TD_OK;
}
