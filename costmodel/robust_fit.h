/* Robust linear least squares over a few terms. */
#ifndef COSTMODEL_ROBUST_FIT_H
#define COSTMODEL_ROBUST_FIT_H

#include "costmodel/profile.h"

/* One equation: y = sum of c[i] * x[i], y > 0. */
typedef struct fit_row {
    double x[PROFILE_TERMS], y;
} fit_row;

/* n equations of p terms: y[i] = sum of c[k] * x[i * p + k], y > 0, p >= 1. */
typedef struct fit_table {
    double *x, *y;
    size_t n, p;
} fit_table;

/* Fits all p terms, whatever their sign; `error` is the spread of the relative residuals. Requires
 * columns that are independent. Errors: TD_EUSAGE when there are fewer rows than terms. */
TD_MUST_USE td_status robust_solve(const fit_table *t, td_arena *a, estimate *c, double *error,
                                   td_err *err);

/* Length of column `at` (columns of n numbers one after the other) after taking out its parts along
 * those columns before it that are kept (Gram and Schmidt), as a share of its own length. The
 * column is replaced by what remains of it. */
double robust_share(double *columns, size_t n, int at, const bool *kept);

/* Fits the terms that the rows determine and sets the others to 0: a column that is zero, or that
 * earlier columns already explain, is left out. `used` is a mask of what was fitted. Residuals
 * count relative to y. A negative slope, which no machine has, is left out as well.
 * Errors: TD_EUSAGE when there are fewer rows than terms, or nothing is determined. */
TD_MUST_USE td_status robust_fit(const fit_row *rows, size_t n, td_arena *a, profile_fit *out,
                                 unsigned *used, td_err *err);

#endif
