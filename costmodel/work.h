/* What one pass computes, kernel by kernel: the list behind pass_work_of and the durations. */
#ifndef COSTMODEL_WORK_H
#define COSTMODEL_WORK_H

#include "costmodel/cost.h"

enum { WORK_MAX = 48 };

/* `count` equal kernels. */
typedef struct work_item {
    const char *what;
    double flops, bytes, count;
    bool matrix; /* runs on the matrix units, at the efficiency of its FLOPs */
} work_item;

typedef struct work_list {
    work_item items[WORK_MAX];
    int32_t n;
    /* Where tensor-parallel shards meet inside the pass, on sum_bytes each time: all-reduces, and
     * with sequence parallelism all-gathers and reduce-scatters. */
    double sums, gathers, scatters, sum_bytes;
    double softmax_bytes; /* statistics that the shards of a head join; 0: none */
} work_list;

/* The kernels of a pass on one tensor-parallel shard. with_recompute: backward passes hold the
 * run's recompute. Requires a model in z and a stage in range. */
TD_MUST_USE td_status work_of(const sizes *z, const pass_query *q, bool with_recompute,
                              work_list *out, td_err *err);

#endif
