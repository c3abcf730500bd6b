/* Inside the calibration: what contexts add to a pass, what busy cores do to it, how it varies. */
#ifndef COSTMODEL_CALIBRATE_PARTS_H
#define COSTMODEL_CALIBRATE_PARTS_H

#include "costmodel/profile.h"
#include "costmodel/samples.h"

/* Robust least squares over measured t(i, j) - t(i, 0) of layers, for each sample behind a context
 * whose slice was measured without one too. out->n is 0 where the samples do not tell the terms
 * apart. */
TD_MUST_USE td_status calibrate_context(const samples *s, pass_kind pass, recompute_mode recompute,
                                        int64_t tp, td_arena *a, profile_context_fit *out,
                                        td_err *err);

/* Fills out->busy with the slowdowns of each number of ranks at work that was measured, and says so
 * in the report. */
TD_MUST_USE td_status calibrate_busy(const samples *s, td_arena *a, profile *out, td_text *report,
                                     td_err *err);

/* The relative standard deviation of one measurement of the same piece of work: the median over
 * samples that were repeated and over pieces that have several samples; 0: there is neither. */
TD_MUST_USE td_status calibrate_spread(const sample *const *of, size_t n, td_arena *a, double *out,
                                       td_err *err);

/* The times ns[i] of sizes x[i], of each size the median, as a curve that never falls: neighbours
 * that would are pooled (isotonic regression; Barlow et al. 1972, Statistical Inference under Order
 * Restrictions), and what takes twice as long as a larger size does is left out. No
 * points where there are fewer than 4 sizes. x and ns are put into another order. */
void calibrate_curve(double *x, double *ns, size_t n, profile_curve *out);

#endif
