/* Random spread and slow ranks. */
#ifndef SIM_NOISE_H
#define SIM_NOISE_H

#include "sim/sim.h"

/* Each compute task takes the price of its class, times its rank's slowness, times a lognormal
 * factor of mean 1 and relative standard deviation spread[class]. The factor depends on seed, run
 * and task alone, so that two schedules of one engine can be compared run by run. */
typedef struct sim_noise {
    const plan *p;
    const double *slow;   /* [n_ranks], or NULL */
    const double *spread; /* [n_classes], or NULL */
    uint64_t seed, run;
} sim_noise;

/* A sim_live hook; self is a sim_noise. */
TD_MUST_USE td_status noise_compute(void *self, uint32_t rank, uint32_t task, int64_t class_ns,
                                    int64_t *ns, td_err *err);

/* "3=1.2,0=1.05": rank 3 takes 1.2 times as long. slow is [n_ranks]. TD_EUSAGE says what is wrong.
 */
TD_MUST_USE td_status noise_parse_slow(const char *text, uint32_t n_ranks, double *slow,
                                       td_err *err);

/* Steps of many runs. Quantiles are those of the sorted sample, linear between its members. */
typedef struct step_distribution {
    int64_t runs;
    double mean_ns, deviation_ns;
    int64_t min_ns, p5_ns, p25_ns, p50_ns, p75_ns, p95_ns, p99_ns, max_ns;
} step_distribution;

/* Runs the plan n times under o, with noise of its own each time. */
TD_MUST_USE td_status noise_distribution(const plan *p, const int64_t *class_ns,
                                         const sim_options *o, sim_noise noise, int64_t n,
                                         step_distribution *out, td_err *err);

#endif
