/* Where to cut sequences for a pipeline: TeraPipe's dynamic programme over tokens and batch, and
 * the partition into slices of equal cost of Seq1F1B. */
#ifndef COSTMODEL_SLICING_H
#define COSTMODEL_SLICING_H

#include "costmodel/model.h"

/* --- equal cost (Seq1F1B, arXiv 2406.03488; the rounding of its published code) --- */

/* Forward FLOPs of the first x tokens of a sequence through the whole model:
 * square x^2 + linear x. */
typedef struct slicing_flops {
    double square, linear;
} slicing_flops;

/* Causal attention has half of its scores, with 3 operations a score for the softmax:
 * square = layers heads (4 head_dim + 3) / 2. The products of the layers, and embedding and head as
 * one product with the table each: linear = layers (8 h^2 + 4 h ffn) + 4 h V for a GPT, V counting
 * `vocab` words. Grouped key-value heads and gated MLPs count what they multiply. */
slicing_flops slicing_flops_of(const model_desc *m, int64_t vocab);

/* FLOPs of tokens [from, to). */
double slicing_flops_between(const slicing_flops *f, int64_t from, int64_t to);

/* Cuts seq_len tokens into n slices of about equal cost: from the last slice to the second, each as
 * long as its share of the cost allows, cut down to a multiple of `multiple`; the first slice takes
 * the rest and is the longest. Errors: TD_EUSAGE when a slice would hold no token. */
TD_MUST_USE td_status slicing_equal(const slicing_flops *f, int64_t seq_len, int32_t n,
                                    int64_t multiple, int64_t *lengths, td_err *err);

/* --- the shortest latency (TeraPipe, arXiv 2102.07988, section 3.4) --- */

/* Time of one stage, forward and backward, for a slice of `len` units that ends with unit `end`, of
 * a group of b sequences; a unit is `granularity` tokens. Finite and >= 0. */
typedef struct slicing_times {
    int32_t batch, units;
    double *ns; /* [batch * units * units], see slicing_time */
} slicing_times;

/* b in [1, batch], 1 <= len <= end <= units */
static inline double *slicing_time(const slicing_times *t, int32_t b, int32_t len, int32_t end)
{
    const size_t units = (size_t)t->units;
    return &t->ns[((size_t)(b - 1) * units + (size_t)(end - 1)) * units + (size_t)(len - 1)];
}

/* Groups of sequences, the slices of each in order. Its latency through K equal stages is
 * sum + (K - 1) max: every slice passes the first stage, the longest sets the pace behind it. */
typedef struct slicing {
    double sum_ns, max_ns, latency_ns;
    int32_t n_groups, n_slices;
    int32_t *group_batch; /* [n_groups] sequences */
    int32_t *group_first; /* [n_groups + 1] in length */
    int32_t *length;      /* [n_slices] units */
} slicing;

/* The slicing of least latency, exact: for a cap on the slice time the least sum comes from a
 * programme over tokens for each group size and one over groups; caps go down from none, each time
 * below the longest slice that the programme used, until no cap can give less. */
TD_MUST_USE td_status slicing_best(const slicing_times *t, int32_t stages, td_arena *a,
                                   slicing *out, td_err *err);

/* Exactly n slices of a group of b sequences: the longest as short as can be, then the least sum.
 * What a schedule wants that alternates forwards and backwards, since each step of it waits for the
 * longest slice near by. */
TD_MUST_USE td_status slicing_balanced(const slicing_times *t, int32_t stages, int32_t b, int32_t n,
                                       td_arena *a, slicing *out, td_err *err);

/* One group after the other of `group` sequences (the last one may be smaller), each in n slices
 * that differ by one unit at most; n <= units. */
TD_MUST_USE td_status slicing_uniform(const slicing_times *t, int32_t stages, int32_t group,
                                      int32_t n, td_arena *a, slicing *out, td_err *err);

#endif
