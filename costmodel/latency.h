/* Where the times t(b, i, j) of slicing come from: a formula, a table of measurements, or the cost
 * model. b sequences, i tokens of each, j tokens before them; one pipeline stage, forward and
 * backward together. */
#ifndef COSTMODEL_LATENCY_H
#define COSTMODEL_LATENCY_H

#include "costmodel/cost.h"
#include "costmodel/slicing.h"

/* An empty table for groups of up to `batch` sequences of `units` units. Errors: TD_EUSAGE when it
 * would not fit a gigabyte. */
TD_MUST_USE td_status latency_table(int32_t batch, int64_t units, td_arena *a, slicing_times *out,
                                    td_err *err);

/* t = c + b (i I + j J + ii I^2 + ij I J) ms, in tokens. */
typedef struct latency_formula {
    double c, i, j, ii, ij;
} latency_formula;

/* "c=0.3,i=0.01,ij=0.00002": those left out are 0. */
TD_MUST_USE td_status latency_parse(const char *text, latency_formula *out, td_err *err);
void latency_from_formula(const latency_formula *f, int64_t granularity, slicing_times *out);

/* What j > 0 tokens of context add: t(b, i, j) - t(b, i, 0) = a[0] + a[1] b i + a[2] b j +
 * a[3] b i j (TeraPipe, section 3.4). */
typedef struct context_fit {
    double a[4];
} context_fit;
typedef struct context_row {
    double x[3], ns; /* b i, b j, b i j */
} context_row;

/* Least squares. Errors: TD_EUSAGE when the rows do not tell the four terms apart. */
TD_MUST_USE td_status context_fit_rows(const context_row *rows, size_t n, context_fit *out,
                                       td_err *err);
double context_eval(const context_fit *f, const double x[3]);

/* Reads measurements, lines "BATCH TOKENS CONTEXT MS" ('#' begins a comment), and fills the table:
 * t(b, i, 0) linear between measured i of that b, beyond them along the last two; what a context
 * adds from a fit of all lines that have one. Errors name line and what is missing. */
TD_MUST_USE td_status latency_from_file(const char *path, int64_t granularity, td_arena *a,
                                        slicing_times *out, td_err *err);

/* One layer of a model as the cost model prices it. Requires c->sizes to hold one stage of one
 * layer, with the run's seq_len, and no unit times. */
TD_MUST_USE td_status latency_of_layer(const cost_model *c, int64_t granularity, slicing_times *out,
                                       td_err *err);

/* A stage of `layers` such layers, with the message that it sends and the one that comes back
 * (device 0 to `next`). */
TD_MUST_USE td_status latency_of_stage(const cost_model *c, const slicing_times *layer,
                                       int64_t layers, int32_t next, int64_t granularity,
                                       slicing_times *out, td_err *err);

#endif
