/* A machine's measured speeds, as fitted by a calibration; a JSON file. */
#ifndef COSTMODEL_PROFILE_H
#define COSTMODEL_PROFILE_H

#include "costmodel/cost.h"
#include "costmodel/samples.h"

/* A fitted number and half the width of its 95 % confidence interval; INFINITY where there were no
 * samples to spare for one. */
typedef struct estimate {
    double value, half;
} estimate;

enum { PROFILE_TERMS = 3, PROFILE_BUSY_MAX = 64 };

/* ns = c[0] + c[1] * x1 + c[2] * x2; n 0: not known.
 *  - passes: x1 = tokens, x2 = tokens * context (mean number of tokens that one attends to), per
 *    layer for PART_LAYERS;
 *  - optimizer, norm: x1 = parameters;
 *  - message: x1 = bytes;
 *  - all-reduce: x1 = bytes * (members - 1). */
typedef struct profile_fit {
    int32_t n;    /* samples */
    double error; /* spread of the relative residuals: median of their size x 1.48 */
    estimate c[PROFILE_TERMS];
} profile_fit;

/* What j > 0 tokens of context add to a pass of one layer over i tokens of b sequences, in ns:
 * c[0] + c[1] b i + c[2] b j + c[3] b i j (Li et al. 2021, arXiv 2102.07988, section 3.4). */
enum { CONTEXT_TERMS = 4 };
typedef struct profile_context_fit {
    int32_t n;    /* samples; 0: not known, the pass's own fit counts the context */
    double error; /* spread of the residuals relative to the whole pass */
    estimate c[CONTEXT_TERMS];
} profile_context_fit;

/* How many times longer a pass takes when k ranks of the machine are at work. */
typedef struct contention {
    int32_t busy;
    estimate compute, memory; /* passes; optimizer and norm (value 0: not known) */
} contention;

typedef struct profile {
    char source[128], date[32], device[64];
    model_desc model; /* that was measured; only its name and sizes are kept */
    data_type dtype;
    int64_t tp;
    int32_t cores;                               /* of the machine; 0: unknown */
    profile_fit pass[3][PASS_COUNT][PART_COUNT]; /* by recompute_mode first */
    profile_context_fit context[3][PASS_COUNT];  /* of layers, by recompute_mode first */
    profile_fit optimizer, norm, message, all_reduce;
    contention busy[PROFILE_BUSY_MAX]; /* ascending; without busy = 1, which is 1 */
    int32_t n_busy;
} profile;

TD_MUST_USE td_status profile_read(const char *path, profile *out, td_err *err);
TD_MUST_USE td_status profile_parse(const char *text, size_t len, const char *file, profile *out,
                                    td_err *err);
/* The JSON text; parse(print(p)) equals p. */
void profile_print(const profile *p, td_text *out);
TD_MUST_USE td_status profile_write(const profile *p, const char *path, td_err *err);

/* Does the profile fit a run? Fails naming the size that differs. */
TD_MUST_USE td_status profile_check(const profile *p, const model_desc *m, const run_shape *run,
                                    td_err *err);

/* Mean number of tokens that a slice's tokens attend to. */
double profile_context(bool causal, int64_t slice_len, int64_t prefix);

/* Relative standard deviation of a pass of this kind about its fit: of the parts that were measured
 * the largest; of kinds that were not, and of anything but a pass (PASS_COUNT), the largest of all.
 */
double profile_spread(const profile *p, pass_kind kind);

/* What the terms of a context fit multiply. */
void profile_context_terms(double batch, int64_t slice_len, int64_t prefix,
                           double terms[CONTEXT_TERMS]);

/* ns of one fit. */
double profile_eval(const profile_fit *f, double x1, double x2);

/* The slowdown with `busy` ranks at work: measured, linear in between, and beyond the last one by
 * sharing the cores (k ranks on n cores take k / n as long). 1 for busy <= 1. */
double profile_contention(const profile *p, int32_t busy, bool memory);

/* ns of a pass of one stage. B falls back on I + W, I and W on halves of B, R on F of the layers;
 * recompute that was not measured adds F. TD_EUSAGE names what was not measured. */
TD_MUST_USE td_status profile_pass_ns(const profile *p, const sizes *z, const pass_query *q,
                                      double *ns, td_err *err);

#endif
