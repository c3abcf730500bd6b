/* psim slices: what was asked, and the slicings that answer it. */
#ifndef SIM_SLICES_H
#define SIM_SLICES_H

#include "costmodel/latency.h"
#include "costmodel/profile.h"
#include "sim/psim.h"

typedef enum slices_method { SLICES_TERAPIPE, SLICES_EQUAL_FLOPS, SLICES_EQUAL_TIME } slices_method;

/* Pointers lead into the job itself, so it must not be copied. */
typedef struct slices_job {
    const psim_options *o;
    model_desc model;
    bool has_model;
    cluster_desc cluster;
    cost_model cost;
    sizes sizes; /* of one stage that holds one layer */
    stage_desc layer;
    int64_t seq_len, granularity, layers; /* layers: of a stage */
    int32_t stages, batch;
    slicing_times times; /* of a stage */
    const char *source;  /* of the times */
} slices_job;

/* Reads model, cluster and profile; fixes the granularity. Errors: TD_EUSAGE with one clear line.
 */
TD_MUST_USE td_status slices_open(slices_job *j, const psim_options *o, td_arena *a, td_err *err);
/* The times of a stage of the job. */
TD_MUST_USE td_status slices_times(slices_job *j, td_arena *a, td_err *err);

/* Reports; json: one object. */
TD_MUST_USE td_status slices_report_flops(const slices_job *j, td_arena *a, td_text *out,
                                          td_err *err);
TD_MUST_USE td_status slices_report_times(const slices_job *j, td_arena *a, td_text *out,
                                          td_err *err);

/* The table of (data, pipeline, tensor) factorisations of o->gpus devices (slices_table.c). */
TD_MUST_USE td_status slices_factorisations(slices_job *j, td_arena *a, td_text *out, td_err *err);

#endif
