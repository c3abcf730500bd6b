/* A schedule family with unit times of one chunk, by the road of psim: generated, lowered, priced,
 * simulated. */
#ifndef TESTS_SIM_BIDIR_RUN_H
#define TESTS_SIM_BIDIR_RUN_H

#include "sim/sim.h"

/* What to run. Times are in ms of one pass of one chunk; pair 0: F + B. */
typedef struct bidir_query {
    const char *family;
    int32_t pp, m, v;    /* v: chunks per rank and pipe */
    const char *options; /* "key=value key=value" or NULL */
    double f, b, i, w;   /* i, w 0: half of b */
    double pair, comm, coll;
    bool rendezvous, synced;
    plan_mapping mapping;
} bidir_query;

typedef struct bidir_result {
    schedule s;
    plan p;
    task_times t;
    plan_metrics m;
} bidir_result;

/* Fails the test when the road does. */
bidir_result bidir_run(td_arena *a, const bidir_query *q);
/* The schedule alone: its status and message. */
td_status bidir_generate(td_arena *a, const bidir_query *q, schedule *out, td_err *err);
/* "bitpipe P=4 M=8 V=2 sync=end", for messages. */
const char *bidir_text(td_arena *a, const bidir_query *q);

#endif
