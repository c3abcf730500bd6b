/* How a plan runs on a device: the plan's streams are the device's, its edges events. */
#ifndef EXEC_DEVICE_RUN_H
#define EXEC_DEVICE_RUN_H

#include "exec/device.h"
#include "exec/exec.h"

/* The device's side of an executor; the functions below do nothing without a device. */
struct device_run {
    device *d;
    wire_mover mover;
    void **streams;        /* [all streams of the plan], PLAN order */
    void **gates;          /* [n_tasks] the compute stream when a post was issued */
    void **begins, **ends; /* [n_tasks] */
    void *start;           /* of the step */
    uint32_t *stream_of;   /* [n_tasks] */
    double *losses; /* [dp * n_microbatches * n_slices], and one a rank for recomputed ones */
    double *scales; /* [n_ranks][2] norm and factor of clipping */
};

TD_MUST_USE td_status device_run_open(executor *x, td_arena *a, td_err *err);
/* Memory of one rank, canaries laid. */
TD_MUST_USE td_status device_run_arena(executor *x, exec_rank *r, td_err *err);
/* What stages share: tables in memory that the device reads. */
TD_MUST_USE td_status device_run_tables(executor *x, td_err *err);

/* Memory that both host and device read; of the arena where there is no device. */
TD_MUST_USE td_status device_run_memory(const executor *x, td_arena *a, int64_t bytes, void **out,
                                        td_err *err);

void device_run_begin(executor *x);
void device_run_post(executor *x, const exec_rank *r, uint32_t task);
void device_run_join(executor *x, const exec_rank *r, uint32_t task);
void device_run_task(executor *x, const exec_rank *r, uint32_t task, bool begins);
/* Waits for the rank's work, for what the host is to do in its place. */
TD_MUST_USE td_status device_run_wait(const executor *x, const exec_rank *r, td_err *err);
/* Zeroes a buffer of a rank before a run. */
TD_MUST_USE td_status device_run_clear(const executor *x, char *at, int64_t bytes, td_err *err);
/* The host has written the ranks' first weights. */
void device_run_settle(const executor *x);
/* First weights, made as floats, to elements, and to the floats beside the moments that the rank
 * updates them in. */
void device_run_narrow(const k_adamw_stage *updates, int64_t n, const float *weights, uint16_t *to);
/* Where the loss of a pass goes; that of a recompute, which another rank has seen already, goes to
 * a place of its own. */
double *device_run_loss(const executor *x, const exec_rank *r, const plan_member *m);
/* Waits for the device; losses, norm and times of the step. Errors: a number is not finite. */
TD_MUST_USE td_status device_run_end(executor *x, td_err *err);

#endif
