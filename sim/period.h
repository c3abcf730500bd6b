/* Periods that overlap. A plan without post-validation is done on every rank before the next period
 * begins anywhere, so that its period is its step; with it a rank goes on as soon as its own work
 * is done, and what counts is how far apart the periods follow each other. */
#ifndef SIM_PERIOD_H
#define SIM_PERIOD_H

#include "sim/noise.h"

/* Periods that are simulated behind each other; the last two measure the distance. */
enum { SIM_PERIODS = 4 };

/* Runs the plan n times behind itself: *several is that, and *times what came out. o: as for
 * sim_run, without live tasks; slow: [n_ranks] as in sim_noise, or NULL. */
TD_MUST_USE td_status sim_periods(const plan *p, uint32_t n, const int64_t *class_ns,
                                  const sim_options *o, const double *slow, td_arena *a,
                                  plan *several, task_times *times, td_err *err);
/* From the end of the last but one period to the end of the last, over all ranks' compute streams.
 * o, slow: as for sim_periods. */
TD_MUST_USE td_status sim_period(const plan *p, const int64_t *class_ns, const sim_options *o,
                                 const double *slow, int64_t *period_ns, td_err *err);

#endif
