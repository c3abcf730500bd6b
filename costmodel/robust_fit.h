/* Robust linear least squares over a few terms. */
#ifndef COSTMODEL_ROBUST_FIT_H
#define COSTMODEL_ROBUST_FIT_H

#include "costmodel/profile.h"

/* One equation: y = sum of c[i] * x[i], y > 0. */
typedef struct fit_row {
    double x[PROFILE_TERMS], y;
} fit_row;

/* Fits the terms that the rows determine and sets the others to 0: a column that is zero, or that
 * earlier columns already explain, is left out. `used` is a mask of what was fitted. Residuals
 * count relative to y. A negative slope, which no machine has, is left out as well.
 * Errors: TD_EUSAGE when there are fewer rows than terms, or nothing is determined. */
TD_MUST_USE td_status robust_fit(const fit_row *rows, size_t n, td_arena *a, profile_fit *out,
                                 unsigned *used, td_err *err);

#endif
