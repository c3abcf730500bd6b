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

enum {
    PROFILE_TERMS = 3,
    PROFILE_BUSY_MAX = 64,
    PROFILE_TP_MAX = 6,
    PROFILE_SOURCES_MAX = 16,
    PROFILE_PASSES_MAX = 3 * PASS_COUNT * PART_COUNT
};

/* ns = c[0] + c[1] * x1 + c[2] * x2; n 0: not known.
 *  - passes: x1 = tokens, x2 = tokens * context (mean number of tokens that one attends to), per
 *    layer for PART_LAYERS;
 *  - passes of vocabulary shards (S, T, E, G): x1 = tokens, x2 = tokens * words of the shard;
 *  - optimizer, norm: x1 = parameters;
 *  - message, copy: x1 = bytes;
 *  - all-reduce: x1 = bytes * (members - 1);
 *  - product of m x k and k x n: x1 = FLOPs (2 m n k), x2 = elements (m k + k n + m n). */
typedef struct profile_fit {
    int32_t n;     /* samples */
    double error;  /* spread of the relative residuals: median of their size x 1.48 */
    double spread; /* relative standard deviation of one measurement about its median, the median
                      over the samples; 0: nothing was measured often enough to tell */
    estimate c[PROFILE_TERMS];
} profile_fit;

/* What a line does not describe: times by size, ascending in both; linear between the points, level
 * before the first, as steep as the last piece behind it. n 0: the line is good enough. */
enum { PROFILE_POINTS_MAX = 16 };
typedef struct profile_curve {
    int32_t n;
    double x[PROFILE_POINTS_MAX], ns[PROFILE_POINTS_MAX];
} profile_curve;

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

/* The passes of one shard of so many. */
typedef struct profile_shard {
    int64_t tp;
    profile_fit pass[3][PASS_COUNT][PART_COUNT]; /* by recompute_mode first */
    profile_context_fit context[3][PASS_COUNT];  /* of layers, by recompute_mode first */
} profile_shard;

/* One bench that the profile stands on. */
typedef struct profile_source {
    char source[128], date[32], device[64];
    int32_t samples;
} profile_source;

typedef struct profile {
    profile_source sources[PROFILE_SOURCES_MAX];
    int32_t n_sources;
    model_desc model; /* that was measured; only its name and sizes are kept */
    data_type dtype;
    int32_t cores;                       /* of the machine; 0: unknown */
    profile_shard shard[PROFILE_TP_MAX]; /* ascending in tp */
    int32_t n_shards;
    profile_fit optimizer, norm, product, copy;
    profile_fit message[LINK_COUNT], all_reduce[LINK_COUNT];
    profile_curve copy_curve, message_curve[LINK_COUNT], all_reduce_curve[LINK_COUNT];
    sample_link link;                  /* that prices are of, where it was measured; not written */
    contention busy[PROFILE_BUSY_MAX]; /* ascending; without busy = 1, which is 1 */
    int32_t n_busy;
} profile;

/* Reads what profile_write wrote; from text in memory, `file` is for messages. Errors: TD_EPARSE
 * "file:line:col: key: why". */
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

/* Relative standard deviation of one pass of this kind about its median: of the parts that were
 * measured the largest; of kinds that were not, and of anything but a pass (PASS_COUNT), the
 * largest of all. 0: nothing was measured often enough to tell. */
double profile_spread(const profile *p, pass_kind kind);

/* Of the passes of this tensor-parallel degree, how far the measurements of the worst are off their
 * fit (relative), and its name in `what`. 0 where no fit has samples to spare. */
double profile_worst(const profile *p, int64_t tp, char *what, size_t size);

/* The passes of shards of this degree, or NULL; the second makes room, NULL when there is none. */
const profile_shard *profile_shard_of(const profile *p, int64_t tp);
profile_shard *profile_shard_at(profile *p, int64_t tp);

/* Whether messages (or else all-reduces) between ranks were measured; ns of one, by the profile's
 * link, or the first that was measured. x: as in their fits. */
bool profile_has_between(const profile *p, bool message);
double profile_between_ns(const profile *p, bool message, double x);

/* Adds what `from` knows; what both know is taken from it. Appends a line to `report` for each such
 * thing. TD_EUSAGE unless model, dtype and device are the same. */
TD_MUST_USE td_status profile_merge(profile *to, const profile *from, td_text *report, td_err *err);

/* What the terms of a context fit multiply. */
void profile_context_terms(double batch, int64_t slice_len, int64_t prefix,
                           double terms[CONTEXT_TERMS]);

/* ns of one fit; of its curve where that is not NULL and has points. */
double profile_eval(const profile_fit *f, double x1, double x2);
double profile_curve_eval(const profile_fit *f, const profile_curve *curve, double x);

/* The slowdown with `busy` ranks at work: measured, linear in between, and beyond the last one by
 * sharing the cores (k ranks on n cores take k / n as long). 1 for busy <= 1. */
double profile_contention(const profile *p, int32_t busy, bool memory);

/* ns of a pass of one stage. B falls back on I + W, I and W on halves of B, R on F of the layers;
 * recompute that was not measured adds F. TD_EUSAGE names what was not measured. */
TD_MUST_USE td_status profile_pass_ns(const profile *p, const sizes *z, const pass_query *q,
                                      double *ns, td_err *err);

#endif
