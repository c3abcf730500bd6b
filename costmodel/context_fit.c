/* The least-squares fit of what a context adds to the time of a slice. */
#include "costmodel/latency.h"

#include <math.h>

enum { N = 4 };

/* Solves m x = y in place with pivots; false when a pivot is lost in rounding. */
static bool solve(double m[N][N], double y[N])
{
    for (int c = 0; c < N; c++) {
        int pivot = c;
        for (int r = c + 1; r < N; r++)
            if (fabs(m[r][c]) > fabs(m[pivot][c])) pivot = r;
        if (!(fabs(m[pivot][c]) > 1e-10)) return false; /* columns are scaled to 1 */
        for (int k = 0; k < N; k++) {
            const double t = m[c][k];
            m[c][k] = m[pivot][k];
            m[pivot][k] = t;
        }
        const double t = y[c];
        y[c] = y[pivot];
        y[pivot] = t;
        for (int r = 0; r < N; r++) {
            const double f = m[r][c] / m[c][c];
            if (r == c) continue;
            for (int k = c; k < N; k++) m[r][k] -= f * m[c][k];
            y[r] -= f * y[c];
        }
    }
    for (int c = 0; c < N; c++) y[c] /= m[c][c];
    return true;
}

td_status context_fit_rows(const context_row *rows, size_t n, context_fit *out, td_err *err)
{
    double scale[N] = {0}, m[N][N] = {{0}}, y[N] = {0};
    for (size_t i = 0; i < n; i++) {
        const double x[N] = {1, rows[i].x[0], rows[i].x[1], rows[i].x[2]};
        for (int c = 0; c < N; c++) scale[c] += x[c] * x[c];
    }
    for (int c = 0; c < N; c++) scale[c] = scale[c] > 0 ? 1 / sqrt(scale[c]) : 0;
    for (size_t i = 0; i < n; i++) {
        const double x[N] = {scale[0], rows[i].x[0] * scale[1], rows[i].x[1] * scale[2],
                             rows[i].x[2] * scale[3]};
        for (int r = 0; r < N; r++) {
            for (int c = 0; c < N; c++) m[r][c] += x[r] * x[c];
            y[r] += x[r] * rows[i].ns;
        }
    }
    if (n < N || !solve(m, y))
        return td_fail(err, TD_EUSAGE,
                       "context: %zu measurements do not tell its four terms apart; measure at "
                       "least two lengths, each behind two contexts",
                       n);
    for (int c = 0; c < N; c++) out->a[c] = y[c] * scale[c];
    return TD_OK;
}

double context_eval(const context_fit *f, const double x[3])
{
    return f->a[0] + f->a[1] * x[0] + f->a[2] * x[1] + f->a[3] * x[2];
}
