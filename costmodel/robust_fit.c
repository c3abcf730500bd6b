/* Bodies of robust_fit.h, on GSL's gsl_multifit_robust: iteratively reweighted least squares with
 * the bisquare function; covariance after Street, Carroll and Ruppert (1988), as GSL's manual has
 * it. */
#include "costmodel/robust_fit.h"

#include <gsl/gsl_cdf.h>
#include <gsl/gsl_errno.h>
#include <gsl/gsl_multifit.h>
#include <math.h>
#include <string.h>

enum { SCALE_ROUNDS = 4 };

double robust_share(double *columns, size_t n, int at, const bool *kept)
{
    double *const col = columns + (size_t)at * n;
    double before = 0, after = 0;
    for (size_t i = 0; i < n; i++) before += col[i] * col[i];
    for (int k = 0; k < at; k++) {
        const double *const old = columns + (size_t)k * n;
        double dot = 0, norm = 0;
        for (size_t i = 0; i < n && kept[k]; i++) {
            dot += old[i] * col[i];
            norm += old[i] * old[i];
        }
        for (size_t i = 0; i < n && norm > 0; i++) col[i] -= dot / norm * old[i];
    }
    for (size_t i = 0; i < n; i++) after += col[i] * col[i];
    return before > 0 ? sqrt(after / before) : 0;
}

/* Which terms the rows determine, of those allowed. */
static td_status determined(const fit_row *rows, size_t n, td_arena *a, unsigned allowed,
                            unsigned *used, td_err *err)
{
    double *const columns = TD_NEW_N(a, double, PROFILE_TERMS *n);
    bool kept[PROFILE_TERMS] = {0};
    *used = 0;
    if (columns == NULL) return td_fail(err, TD_ENOMEM, "calibrate: out of memory");
    for (int t = 0; t < PROFILE_TERMS; t++) {
        for (size_t i = 0; i < n; i++) columns[(size_t)t * n + i] = rows[i].x[t] / rows[i].y;
        kept[t] = (allowed >> t & 1u) != 0 && robust_share(columns, n, t, kept) > 1e-3;
        if (kept[t]) *used |= 1u << t;
    }
    return TD_OK;
}

typedef struct gsl_fit {
    gsl_matrix *x, *cov;
    gsl_vector *y, *c;
    gsl_multifit_robust_workspace *work;
} gsl_fit;

static void gsl_fit_free(gsl_fit *g)
{
    if (g->x != NULL) gsl_matrix_free(g->x);
    if (g->cov != NULL) gsl_matrix_free(g->cov);
    if (g->y != NULL) gsl_vector_free(g->y);
    if (g->c != NULL) gsl_vector_free(g->c);
    if (g->work != NULL) gsl_multifit_robust_free(g->work);
}

/* Too few rows to tell outliers from the rest are fitted by plain least squares. */
static gsl_fit gsl_fit_new(size_t n, size_t p)
{
    return (gsl_fit){
        .x = gsl_matrix_alloc(n, p),
        .cov = gsl_matrix_alloc(p, p),
        .y = gsl_vector_alloc(n),
        .c = gsl_vector_alloc(p),
        .work = gsl_multifit_robust_alloc(
            n > 2 * p ? gsl_multifit_robust_bisquare : gsl_multifit_robust_ols, n, p),
    };
}

/* Fits rows whose equations are divided by scale[i]. */
static int solve_scaled(gsl_fit *g, const fit_table *t, const double *scale)
{
    for (size_t i = 0; i < t->n; i++) {
        for (size_t k = 0; k < t->p; k++) gsl_matrix_set(g->x, i, k, t->x[i * t->p + k] / scale[i]);
        gsl_vector_set(g->y, i, t->y[i] / scale[i]);
    }
    (void)gsl_multifit_robust_maxiter(1000, g->work);
    const int rc = gsl_multifit_robust(g->x, g->y, g->c, g->cov, g->work);
    return rc == GSL_EMAXITER ? GSL_SUCCESS : rc;
}

static void take_result(const gsl_fit *g, const fit_table *t, estimate *c, double *error)
{
    const bool spare = t->n > t->p;
    const double t975 = spare ? gsl_cdf_tdist_Pinv(0.975, (double)(t->n - t->p)) : 0;
    for (size_t k = 0; k < t->p; k++) {
        const double variance = gsl_matrix_get(g->cov, k, k);
        c[k] = (estimate){gsl_vector_get(g->c, k),
                          spare && variance >= 0 ? t975 * sqrt(variance) : (double)INFINITY};
    }
    *error = spare ? gsl_multifit_robust_statistics(g->work).sigma_mad : 0;
}

static int solve(gsl_fit *g, const fit_table *t, double *scale, estimate *c, double *error)
{
    int rc = GSL_SUCCESS;
    for (size_t i = 0; i < t->n; i++) scale[i] = t->y[i];
    for (int round = 0; round < SCALE_ROUNDS && rc == GSL_SUCCESS; round++) {
        rc = solve_scaled(g, t, scale);
        if (rc == GSL_SUCCESS) take_result(g, t, c, error);
        /* divided by what was measured, an outlier would hide in its own scale; what was fitted is
         * a scale that outliers do not touch, but one far above it would pull at the first round */
        for (size_t i = 0; i < t->n; i++) {
            double fitted = 0;
            for (size_t k = 0; k < t->p; k++) fitted += c[k].value * t->x[i * t->p + k];
            if (fitted > 0) scale[i] = t->y[i] > 2 * fitted ? t->y[i] : fitted;
        }
    }
    return rc;
}

td_status robust_solve(const fit_table *t, td_arena *a, estimate *c, double *error, td_err *err)
{
    *error = 0;
    if (t->n < t->p) return td_fail(err, TD_EUSAGE, "%zu samples for %zu terms", t->n, t->p);
    if (t->n == 1) {
        /* one shape measured once: its time is all that is known */
        c[0] = (estimate){t->y[0] / t->x[0], (double)INFINITY};
        return TD_OK;
    }
    gsl_error_handler_t *const old = gsl_set_error_handler_off();
    double *const scale = TD_NEW_N(a, double, t->n);
    gsl_fit g = gsl_fit_new(t->n, t->p);
    const bool whole = g.x && g.cov && g.y && g.c && g.work && scale != NULL;
    const int rc = whole ? solve(&g, t, scale, c, error) : GSL_ENOMEM;
    gsl_fit_free(&g);
    (void)gsl_set_error_handler(old);
    if (rc == GSL_ENOMEM) return td_fail(err, TD_ENOMEM, "calibrate: out of memory");
    if (rc != GSL_SUCCESS) return td_fail(err, TD_EUSAGE, "the fit failed: %s", gsl_strerror(rc));
    return TD_OK;
}

static td_status fit_terms(const fit_row *rows, size_t n, td_arena *a, unsigned used,
                           profile_fit *out, td_err *err)
{
    estimate c[PROFILE_TERMS];
    size_t p = 0;
    for (int t = 0; t < PROFILE_TERMS; t++) p += used >> t & 1u;
    if (p == 0) return td_fail(err, TD_EUSAGE, "the samples determine no term of the fit");
    fit_table table = {TD_NEW_N(a, double, n *p), TD_NEW_N(a, double, n), n, p};
    if (table.x == NULL || table.y == NULL)
        return td_fail(err, TD_ENOMEM, "calibrate: out of memory");
    for (size_t i = 0; i < n; i++) {
        size_t k = i * p;
        for (int t = 0; t < PROFILE_TERMS; t++)
            if (used >> t & 1u) table.x[k++] = rows[i].x[t];
        table.y[i] = rows[i].y;
    }
    *out = (profile_fit){.n = (int32_t)n};
    TD_TRY(robust_solve(&table, a, c, &out->error, err));
    for (int t = 0, k = 0; t < PROFILE_TERMS; t++)
        if (used >> t & 1u) out->c[t] = c[k++];
    return TD_OK;
}

td_status robust_fit(const fit_row *rows, size_t n, td_arena *a, profile_fit *out, unsigned *used,
                     td_err *err)
{
    unsigned allowed = (1u << PROFILE_TERMS) - 1;
    for (;;) {
        TD_TRY(determined(rows, n, a, allowed, used, err));
        TD_TRY(fit_terms(rows, n, a, *used, out, err));
        unsigned bad = 0;
        for (int t = 0; t < PROFILE_TERMS; t++)
            if (out->c[t].value < 0) bad |= 1u << t;
        if (bad == 0) return TD_OK;
        /* the least certain of them goes first: dropping it may mend the others */
        unsigned worst = 0;
        for (int t = PROFILE_TERMS - 1; t >= 0 && worst == 0; t--) worst = bad & 1u << t;
        if ((*used & ~worst) == 0) return td_fail(err, TD_EUSAGE, "times fall as the work grows");
        allowed = *used & ~worst;
    }
}
