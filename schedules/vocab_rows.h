/* Rows of schedules with sharded vocabulary layers: every kind of pass goes through the
 * microbatches in order, so that a row is a sequence of kinds. */
#ifndef SCHEDULES_VOCAB_ROWS_H
#define SCHEDULES_VOCAB_ROWS_H

#include "schedules/schedule_build.h"

typedef struct vocab_row {
    row_writer w;
    int32_t stage, last_stage; /* of F and B; of S and T */
    int32_t n;                 /* microbatches */
    int32_t next[PASS_COUNT];  /* microbatch of the next pass of each kind */
} vocab_row;

/* Opens a row that runs F and B of `stage`. */
vocab_row vocab_row_of(td_arena *a, schedule *s, int32_t row, int32_t stage);
/* Appends the next pass of a kind; nothing when none is left. S and T name the last stage, E and G
 * stage 0. */
void vocab_add(vocab_row *r, pass_kind kind);

/* An empty schedule of one stage a rank for a request without chunks and slices. */
TD_MUST_USE td_status vocab_new(const sched_request *q, td_arena *a, schedule *out, td_err *err);

/* The option repo-edge (0 or 1), of the families that have it. */
#define VOCAB_EDGE_OPTION                                                                          \
    {                                                                                              \
        "repo-edge", "0|1",                                                                        \
            "1: the loss gradient of k leaves with the output of k+1, so T of k waits for it, as " \
            "in the authors' code"                                                                 \
    }
TD_MUST_USE td_status vocab_edge(const sched_request *q, schedule *s, td_err *err);

#endif
