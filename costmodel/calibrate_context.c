/* What a context adds to a pass, fitted as TeraPipe does (arXiv 2102.07988, section 3.4). */
#include "costmodel/calibrate_parts.h"

#include <gsl/gsl_cdf.h>
#include <gsl/gsl_multifit.h>
#include <gsl/gsl_statistics_double.h>
#include <math.h>

/* The median time of the same slice without context, or 0. */
static double bare_ns(const samples *s, const sample *like, double *scratch)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++) {
        const sample *const x = &s->items[i];
        if (x->what == SAMPLE_PASS && x->busy == 1 && x->pass == like->pass &&
            x->part == like->part && x->recompute == like->recompute && x->layers == like->layers &&
            x->micro_batch == like->micro_batch && x->slice_len == like->slice_len &&
            x->tp == like->tp && x->prefix == 0)
            scratch[n++] = x->ns;
    }
    return n > 0 ? gsl_stats_median(scratch, 1, n) : 0;
}

/* The rows of one fit: X and what a context adds to a layer, relative residuals' scale in `whole`.
 */
typedef struct context_rows {
    gsl_matrix *x;
    gsl_vector *y;
    double *whole; /* time of the slice with its context */
    size_t n;
} context_rows;

static void gather(const samples *s, pass_kind pass, recompute_mode recompute, int64_t tp,
                   double *scratch, context_rows *out)
{
    for (size_t i = 0; i < s->n; i++) {
        const sample *const x = &s->items[i];
        if (x->what != SAMPLE_PASS || x->part != PART_LAYERS || x->pass != pass || x->busy != 1 ||
            x->recompute != recompute || x->tp != tp || x->prefix == 0)
            continue;
        const double bare = bare_ns(s, x, scratch), layers = (double)x->layers;
        if (bare <= 0) continue;
        double terms[CONTEXT_TERMS];
        profile_context_terms((double)x->micro_batch, x->slice_len, x->prefix, terms);
        for (size_t c = 0; c < CONTEXT_TERMS; c++) gsl_matrix_set(out->x, out->n, c, terms[c]);
        gsl_vector_set(out->y, out->n, (x->ns - bare) / layers);
        out->whole[out->n++] = x->ns / layers;
    }
}

/* Median size of the residuals relative to the whole time, as a spread. */
static double spread_of(const context_rows *r, const profile_context_fit *f, double *scratch)
{
    for (size_t i = 0; i < r->n; i++) {
        double fit = 0;
        for (size_t c = 0; c < CONTEXT_TERMS; c++)
            fit += f->c[c].value * gsl_matrix_get(r->x, i, c);
        scratch[i] = fabs(gsl_vector_get(r->y, i) - fit) / r->whole[i];
    }
    return 1.4826 * gsl_stats_median(scratch, 1, r->n);
}

static bool solve(const context_rows *r, double *scratch, profile_context_fit *out)
{
    gsl_multifit_linear_workspace *const work = gsl_multifit_linear_alloc(r->n, CONTEXT_TERMS);
    gsl_vector *const c = gsl_vector_alloc(CONTEXT_TERMS);
    gsl_matrix *const cov = gsl_matrix_alloc(CONTEXT_TERMS, CONTEXT_TERMS);
    const gsl_matrix_view x = gsl_matrix_submatrix(r->x, 0, 0, r->n, CONTEXT_TERMS);
    const gsl_vector_view y = gsl_vector_subvector(r->y, 0, r->n);
    double chisq = 0;
    size_t rank = 0;
    const bool ok =
        work != NULL && c != NULL && cov != NULL &&
        gsl_multifit_linear_tsvd(&x.matrix, &y.vector, 1e-9, c, cov, &chisq, &rank, work) == 0 &&
        rank == CONTEXT_TERMS;
    const double free_rows = (double)r->n - CONTEXT_TERMS;
    const double t = free_rows > 0 ? gsl_cdf_tdist_Pinv(0.975, free_rows) : (double)INFINITY;
    for (size_t k = 0; ok && k < CONTEXT_TERMS; k++) {
        const double half = t * sqrt(gsl_matrix_get(cov, k, k));
        out->c[k] = (estimate){gsl_vector_get(c, k), free_rows > 0 ? half : (double)INFINITY};
    }
    if (ok) {
        out->n = (int32_t)r->n;
        out->error = spread_of(r, out, scratch);
    }
    if (work != NULL) gsl_multifit_linear_free(work);
    if (c != NULL) gsl_vector_free(c);
    if (cov != NULL) gsl_matrix_free(cov);
    return ok;
}

td_status calibrate_context(const samples *s, pass_kind pass, recompute_mode recompute, int64_t tp,
                            td_arena *a, profile_context_fit *out, td_err *err)
{
    *out = (profile_context_fit){0};
    if (s->n == 0) return TD_OK;
    double *const scratch = TD_NEW_N(a, double, s->n);
    context_rows r = {.x = gsl_matrix_alloc(s->n, CONTEXT_TERMS),
                      .y = gsl_vector_alloc(s->n),
                      .whole = TD_NEW_N(a, double, s->n)};
    const bool ok = scratch != NULL && r.whole != NULL && r.x != NULL && r.y != NULL;
    if (ok) gather(s, pass, recompute, tp, scratch, &r);
    if (ok && r.n >= CONTEXT_TERMS && !solve(&r, scratch, out)) *out = (profile_context_fit){0};
    if (r.x != NULL) gsl_matrix_free(r.x);
    if (r.y != NULL) gsl_vector_free(r.y);
    return ok ? TD_OK : td_fail(err, TD_ENOMEM, "calibrate: out of memory");
}
