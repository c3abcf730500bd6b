/* How far off a prediction was: two traces, task by task. */
#ifndef SIM_COMPARE_H
#define SIM_COMPARE_H

#include "schedules/trace.h"

/* Sums over the tasks that both traces have. */
typedef struct compare_sum {
    int64_t n;
    int64_t predicted_ns, measured_ns; /* durations */
    int64_t absolute_ns;               /* sum of |measured - predicted| */
} compare_sum;

typedef struct compare_rank {
    compare_sum sum;
    int64_t predicted_peak_bytes, measured_peak_bytes; /* -1 where a trace has none */
    int64_t predicted_last_ns, measured_last_ns;
    /* the first passes on which the orders of the two disagree: records, UINT64_MAX where one has
     * no more; the same order: both UINT64_MAX */
    uint64_t predicted_turn, measured_turn;
} compare_rank;

/* One task in both: indices of records. */
typedef struct compare_pair {
    uint64_t predicted, measured;
    int64_t error_ns; /* measured - predicted duration */
} compare_pair;

typedef struct compare_report {
    int64_t predicted_step_ns, measured_step_ns;
    double step_error_frac; /* (predicted - measured) / measured */
    uint64_t n_matched, n_only_predicted, n_only_measured;
    compare_sum kinds[TASK_KIND_COUNT];
    compare_rank *ranks;
    uint32_t n_ranks;
    compare_pair *worst; /* largest |error| first */
    uint32_t n_worst;
} compare_report;

/* Tasks are equal when rank, kind, stage, pipe, microbatch, slice, peer and detail are; where one
 * of these occurs more than once, in the order of their times. Fails with TD_EUSAGE when the two
 * have nothing in common. */
TD_MUST_USE td_status compare_traces(const trace *predicted, const trace *measured,
                                     uint32_t max_worst, td_arena *a, compare_report *out,
                                     td_err *err);

#endif
