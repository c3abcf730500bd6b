/* What a context adds to a pass, fitted as TeraPipe does (arXiv 2102.07988, section 3.4). */
#include "costmodel/calibrate_parts.h"
#include "costmodel/robust_fit.h"

#include <string.h>

/* Slices of one size and what they take without context, which is a term of its own: its error is
 * in the differences of all contexts of that size, and must not be counted as many. */
typedef struct groups {
    const sample **first; /* one of its samples without context */
    bool *behind;         /* some of its slices have a context */
    size_t n;
} groups;

static bool same_slice(const sample *x, const sample *y)
{
    return x->layers == y->layers && x->micro_batch == y->micro_batch &&
           x->slice_len == y->slice_len;
}

static size_t group_of(const groups *g, const sample *x)
{
    size_t k = 0;
    while (k < g->n && !same_slice(g->first[k], x)) k++;
    return k;
}

/* The groups that were measured both ways. */
static void find_groups(const sample *const *of, size_t n, groups *out)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (of[i]->prefix == 0 && group_of(out, of[i]) == out->n) out->first[out->n++] = of[i];
    for (size_t i = 0; i < n; i++)
        if (of[i]->prefix > 0 && group_of(out, of[i]) < out->n)
            out->behind[group_of(out, of[i])] = true;
    for (size_t k = 0; k < out->n; k++)
        if (out->behind[k]) out->first[kept++] = out->first[k];
    out->n = kept;
}

/* One row a sample, per layer: its group's term, and a context's four. Returns how many have a
 * context. */
static size_t fill(const sample *const *of, size_t n, const groups *g, fit_table *t)
{
    size_t behind = 0;
    for (size_t i = 0; i < n; i++) {
        const size_t k = group_of(g, of[i]);
        if (k == g->n) continue;
        double *const row = t->x + t->n * t->p;
        row[k] = 1;
        if (of[i]->prefix > 0)
            profile_context_terms((double)of[i]->micro_batch, of[i]->slice_len, of[i]->prefix,
                                  row + g->n);
        behind += of[i]->prefix > 0;
        t->y[t->n++] = of[i]->ns / (double)of[i]->layers;
    }
    return behind;
}

/* Do the rows tell the terms apart? */
static bool determined(const fit_table *t, double *columns, bool *kept)
{
    for (size_t k = 0; k < t->p; k++) {
        for (size_t i = 0; i < t->n; i++) columns[k * t->n + i] = t->x[i * t->p + k] / t->y[i];
        kept[k] = robust_share(columns, t->n, (int)k, kept) > 1e-3;
        if (!kept[k]) return false;
    }
    return true;
}

static td_status fit(const sample *const *of, size_t n, td_arena *a, profile_context_fit *out,
                     td_err *err)
{
    groups g = {TD_NEW_N(a, const sample *, n), TD_NEW_N(a, bool, n), 0};
    if (g.first == NULL || g.behind == NULL)
        return td_fail(err, TD_ENOMEM, "calibrate: out of memory");
    find_groups(of, n, &g);
    fit_table t = {.p = g.n + CONTEXT_TERMS};
    t.x = TD_NEW_N(a, double, n *t.p);
    t.y = TD_NEW_N(a, double, n);
    double *const columns = TD_NEW_N(a, double, n *t.p);
    bool *const kept = TD_NEW_N(a, bool, t.p);
    estimate *const c = TD_NEW_N(a, estimate, t.p);
    if (t.x == NULL || t.y == NULL || columns == NULL || kept == NULL || c == NULL)
        return td_fail(err, TD_ENOMEM, "calibrate: out of memory");
    const size_t behind = fill(of, n, &g, &t);
    if (t.n < t.p || !determined(&t, columns, kept)) return TD_OK;
    TD_TRY(robust_solve(&t, a, c, &out->error, err));
    memcpy(out->c, c + g.n, sizeof out->c);
    out->n = (int32_t)behind;
    return TD_OK;
}

td_status calibrate_context(const samples *s, pass_kind pass, recompute_mode recompute, int64_t tp,
                            td_arena *a, profile_context_fit *out, td_err *err)
{
    *out = (profile_context_fit){0};
    const sample **const of = TD_NEW_N(a, const sample *, s->n);
    size_t n = 0;
    if (s->n == 0) return TD_OK;
    if (of == NULL) return td_fail(err, TD_ENOMEM, "calibrate: out of memory");
    for (size_t i = 0; i < s->n; i++) {
        const sample *const x = &s->items[i];
        if (x->what == SAMPLE_PASS && x->part == PART_LAYERS && x->pass == pass && x->busy == 1 &&
            x->recompute == recompute && x->tp == tp)
            of[n++] = x;
    }
    return n > 0 ? fit(of, n, a, out, err) : TD_OK;
}
