/* Inside the calibration: what a context adds to a pass. */
#ifndef COSTMODEL_CALIBRATE_CONTEXT_H
#define COSTMODEL_CALIBRATE_CONTEXT_H

#include "costmodel/profile.h"
#include "costmodel/samples.h"

/* Least squares over measured t(i, j) - t(i, 0) of layers, for each sample behind a context whose
 * slice was measured without one too. out->n is 0 where the samples do not tell the terms apart. */
TD_MUST_USE td_status calibrate_context(const samples *s, pass_kind pass, recompute_mode recompute,
                                        td_arena *a, profile_context_fit *out, td_err *err);

#endif
