/* Cases of forward-backward disaggregation for its tests. */
#ifndef TESTS_SIM_FBD_CASE_H
#define TESTS_SIM_FBD_CASE_H

#include "sim/sim.h"
#include "t.h"

typedef struct fbd_case {
    int32_t p, m, tp, dp, credits; /* credits -1: the default */
    bool lagged, merged, all_step;
    double f, b, comm;
    sim_protocol protocol;
    int32_t lookahead, window;
    const model_desc *model;
    bool fold;
} fbd_case;

typedef struct fbd_run {
    schedule s;
    sizes z;
    plan p;
    task_times t;
    plan_metrics m;
} fbd_run;

/* f = 1, b = 2, one replica, no tensor parallelism, look-ahead 1, eager. */
fbd_case fbd_unit(int32_t p, int32_t m, bool lagged);
void fbd_schedule(const fbd_case *k, td_arena *a, schedule *s);
/* Lowers; with a model, the whole step. */
void fbd_lower(const fbd_case *k, td_arena *a, fbd_run *out);
/* Lowers, prices with the case's times and runs. */
void fbd_simulate(const fbd_case *k, td_arena *a, fbd_run *out);

#endif
