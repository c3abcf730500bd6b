/* What to run: the options that psim and pexec share, and the schedule, sizes and plan that they
 * describe. */
#ifndef SCHEDULES_REQUEST_H
#define SCHEDULES_REQUEST_H

#include "base/cli.h"
#include "costmodel/cost.h"
#include "schedules/plan.h"

/* Filled by request_options; zero fields were not given. */
typedef struct request {
    const char *schedule, *plan;
    int64_t pp, microbatches, chunks, slices;
    const char *slice_tokens;
    cli_many opts;
    double activation_limit;
    const char *times;
    const char *model;
    int64_t micro_batch, seq_len, vocab_size, tp, dp;
    int dtype, grad_dtype; /* data_type, -1: not given */
    int recompute;         /* recompute_mode */
    bool zero1, sequence_parallel;
    const char *layout, *layers;
    bool account_embedding, account_loss;
    bool post_validation;
    int mapping;   /* plan_mapping */
    int placement; /* plan_placement; no option of its own here: only who has a cluster asks */
    int64_t lookahead, send_window;
    bool fold, shards;
    int64_t memory_limit;
    double search_s;
    /* no options of their own here: only who simulates has them */
    uint64_t seed;
    const char *deltas;       /* F,I,W: what passes add to live activations; or NULL */
    const cost_model *prices; /* of a machine, without sizes; NULL: unit times alone */
} request;

enum { REQUEST_OPTION_COUNT = 36 };
extern const cli_option request_options[REQUEST_OPTION_COUNT];

/* Everything a run stands on. Pointers lead into the setup itself, so it must not be copied. */
typedef struct run_setup {
    schedule schedule;
    bool has_schedule; /* false: the plan came from a file */
    model_desc model;
    bool has_model;
    unit_times units;
    bool has_units;
    sizes sizes;
    lower_options lower;
    plan plan;
} run_setup;

/* Makes the schedule that the request names: from the registry, or read from a file ("-": stdin).
 * Fills schedule, units. Errors: TD_EUSAGE, TD_EPARSE, TD_EIO with one clear line. */
TD_MUST_USE td_status request_schedule(const request *q, td_arena *a, run_setup *out, td_err *err);

/* The same, then model, layers, sizes and the lowered plan; or reads --plan. `dtype` is what the
 * program takes when --dtype is not given. after: stop after this lowering pass, or NULL. */
TD_MUST_USE td_status request_plan(const request *q, data_type dtype, const char *after,
                                   td_arena *a, run_setup *out, td_err *err);

/* "a,b,c" as 32-bit numbers >= 0; `name` is for messages. */
TD_MUST_USE td_status request_list(td_arena *a, const char *text, const char *name, int32_t **out,
                                   size_t *n, td_err *err);

/* Layers of the model's n_stages stages as --layers, `given` (or NULL) or the split over `rows`
 * ranks says, with as many rows of the tables as z's shards have. */
TD_MUST_USE td_status request_layers(const request *q, const sizes *z, int32_t n_stages,
                                     int64_t rows, const int32_t *given, td_arena *a,
                                     stage_desc **out, td_err *err);

/* What prices a family's stages: a sched_price for these. */
typedef struct request_pricing {
    const request *q;
    const run_setup *setup; /* with units, and model and sizes where there is one */
    td_arena *a;
} request_pricing;
TD_MUST_USE td_status request_price(const void *pricing, int32_t n_stages, sched_stage_cost *out,
                                    td_err *err);

/* The machine that orders are searched for: its cluster (or NULL), its profile (or NULL) with what
 * moves tensors there (sample_link), and `pp` ranks at work. Both are read into the arena; what is
 * not given stays NULL. For `prices` of a request. */
TD_MUST_USE td_status request_machine(const char *cluster, const char *profile_path, int link,
                                      int64_t pp, td_arena *a, cost_model *out, td_err *err);

/* Whether the options that lowering takes say what `p`, read from `name`, is: TD_EUSAGE with one
 * line where they say otherwise. Values that are an option's default are not looked at. */
TD_MUST_USE td_status request_check_given(const request *q, const plan *p, const char *name,
                                          td_err *err);

/* "channel": as --mapping and the JSON say it. */
const char *plan_mapping_name(plan_mapping m);

#endif
