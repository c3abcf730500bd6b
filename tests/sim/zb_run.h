/* A schedule generated for given durations and simulated with them, by the road of psim. */
#ifndef TESTS_SIM_ZB_RUN_H
#define TESTS_SIM_ZB_RUN_H

#include "sim/sim.h"

/* What to run. Times are whole ms of one pass of one chunk. */
typedef struct zb_query {
    const char *family;
    int32_t pp, m;
    int f, i, w, comm;
    const char *options;      /* "key=value key=value", or NULL; limit=A is the activation limit,
                                 seed=N the seed, chunks=V the chunks */
    activation_deltas deltas; /* all zero: 1, 0, -1 */
} zb_query;

typedef struct zb_result {
    schedule s;
    plan_metrics m;
    double step, span; /* ms; span: the longest of a rank */
    double peak;       /* chunk activations, the most of all ranks */
} zb_result;

/* Fails the test when the road does. */
zb_result zb_run(td_arena *a, const zb_query *q);
/* The schedule alone: its status and message. */
td_status zb_generate(td_arena *a, const zb_query *q, schedule *out, td_err *err);
const char *zb_text(td_arena *a, const zb_query *q); /* for messages */

#endif
