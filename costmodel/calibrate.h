/* Fitting a profile to measurements; the one target that links GSL (target td_calibrate). */
#ifndef COSTMODEL_CALIBRATE_H
#define COSTMODEL_CALIBRATE_H

#include "costmodel/profile.h"
#include "costmodel/samples.h"

/* Fits every kind of sample that is there by robust least squares (bisquare weights, relative
 * residuals), with 95 % confidence intervals. Appends to `report` a line for each fit and for each
 * thing that could not be determined and why; the caller frees it.
 * Errors: TD_EUSAGE when the samples determine nothing at all, or a pass that was measured cannot
 * be fitted; the message says which samples are missing. */
TD_MUST_USE td_status calibrate_fit(const samples *s, profile *out, td_text *report, td_err *err);

/* What the headers of samples say about where they are from. */
void calibrate_source(const samples *s, profile_source *out);

#endif
