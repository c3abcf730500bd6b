/* What the verbs of psim share: their options, and a simulated run. */
#ifndef SIM_PSIM_H
#define SIM_PSIM_H

#include "base/cli.h"
#include "schedules/request.h"
#include "schedules/trace.h"
#include "sim/noise.h"
#include "sim/sim.h"

typedef struct psim_options {
    request what;
    const char *cluster, *profile;
    int link;         /* sample_link, of a profile */
    int protocol;     /* sim_protocol, -1: by kind of times */
    double pair_frac; /* of F + B, what an overlapped pair takes */
    int64_t seed;
    bool noise;
    double spread; /* of passes, relative; below 0: what the profile measured */
    int64_t runs;
    const char *slow;
    const char *deltas;
    bool json, memory, quiet, no_timeline;
    const char *trace, *output;
    int64_t periods;
    /* schedule, plan */
    int format;
    const char *after;
    /* draw */
    int style, label, index;
    const char *width, *title;
    bool comms;
    /* compare, calibrate */
    int64_t worst;
    /* slices */
    int method; /* slices_method */
    int64_t batch, granularity, pad_vocab, gpus;
    const char *latency;
    bool explain;
} psim_options;

enum { SLICES_OPTION_COUNT = 23 };
extern const cli_option slices_options[SLICES_OPTION_COUNT]; /* cmd_slices.c */

/* A plan that ran. */
typedef struct psim_result {
    run_setup setup;
    cluster_desc cluster;
    bool has_cluster;
    cost_model cost;
    sim_protocol protocol;
    int64_t *class_ns;
    task_times times;
    plan several; /* --periods: as many, and their times; else not used */
    task_times several_times;
    sim_stats stats;
    plan_metrics metrics;
    int64_t period_ns; /* from step to step in the long run: see sim/period.h */
    activation_deltas deltas;
    double spread;           /* of --noise, where one number serves all passes; else below 0 */
    step_distribution noise; /* runs 0 without --noise */
    trace_meta meta[16];
    uint32_t n_meta;
} psim_result;

/* What to run: the shared options, and the operand, which may name the schedule. */
TD_MUST_USE td_status psim_request(const cli_args *args, const psim_options *o, request *q,
                                   td_err *err);
/* Lowers, prices and runs what the options say. Pointers lead into the result. */
TD_MUST_USE td_status psim_simulate(td_arena *a, const cli_args *args, const psim_options *o,
                                    psim_result *out, td_err *err);
/* One JSON object with units in its keys; a summary for people. */
void psim_report_json(const psim_options *o, const psim_result *r, td_text *out);
void psim_report_text(const psim_options *o, const psim_result *r, td_text *out);
/* What to try next, a line each. */
void psim_report_advice(const psim_options *o, const psim_result *r, td_text *out);

/* Of the whole run, all replicas together; 0 without a model. */
double psim_tokens_per_s(const psim_result *r);

/* Writes text to stdout; fails when stdout cannot take it. */
TD_MUST_USE td_status psim_print(td_text *t, td_err *err);

td_status cmd_list(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_schedule(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_check(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_plan(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_run_sim(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_sweep(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_compare(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_draw(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_slices(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_calibrate(td_arena *a, const cli_args *args, const void *options, td_err *err);

#endif
