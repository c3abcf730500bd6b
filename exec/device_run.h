/* How a plan runs on a device: the plan's streams are the device's, its edges events. */
#ifndef EXEC_DEVICE_RUN_H
#define EXEC_DEVICE_RUN_H

#include "exec/device.h"
#include "exec/exec.h"

/* Where a rank's compute stream was when the device was made to drop its work. */
typedef struct device_note {
    uint32_t at; /* position */
    bool computes;
} device_note;

/* The device's side of an executor; the functions below do nothing without a device. */
struct device_run {
    device *d;
    wire_mover mover;
    void **streams;        /* [all streams of the plan], PLAN order */
    void **gates;          /* [n_tasks] the compute stream when a post was issued */
    void **begins, **ends; /* [n_tasks] */
    void *start;           /* of the step */
    uint32_t *stream_of;   /* [n_tasks] */
    /* What a step leaves for the host, on the device and, once it has ended, in `seen`. */
    double *found, *seen;       /* [n_found] */
    int64_t n_found;            /* norm and factor of clipping of each rank, then losses */
    int64_t *losses;            /* [n_ranks] where a rank's begin in found, by microbatch and slice;
                                   behind them a place for those of recomputes; -1: it has none */
    uint32_t *loss_rank;        /* [dp * n_microbatches] whose loss counts */
    int32_t **tokens;           /* [n_ranks] of all microbatches, in memory of the host; or NULL */
    device_note *notes, *noted; /* [n_ranks]; NULL while nothing was dropped */
    int64_t arena_bytes;        /* of the ranks */
    int64_t first_allocs;       /* of memory before the first step; -1: there was none yet */
};

TD_MUST_USE td_status device_run_open(executor *x, td_arena *a, td_err *err);

/* --- device_room.c: memory. Without a device it is the host's own. --- */

/* Memory of one rank, canaries laid, unless it has some; lets it compute. */
TD_MUST_USE td_status device_run_arena(executor *x, exec_rank *r, td_err *err);
/* What stages share: tables in memory that the device reads. */
TD_MUST_USE td_status device_run_tables(executor *x, td_err *err);
/* A place for the tokens of each rank that reads some; after open_tokens of all. */
TD_MUST_USE td_status device_run_tokens(executor *x, td_arena *a, td_err *err);

/* Memory that the device computes on. */
TD_MUST_USE td_status device_run_memory(const executor *x, td_arena *a, int64_t bytes, void **out,
                                        td_err *err);
/* The same once steps have begun, for what is no part of a device's step: it is not counted. */
TD_MUST_USE td_status device_run_more(const executor *x, td_arena *a, int64_t bytes, void **out,
                                      td_err *err);
/* Bytes of such memory, to and from the host's. Nothing may be under way on it. */
TD_MUST_USE td_status device_run_read(const executor *x, void *to, const void *at, int64_t bytes,
                                      td_err *err);
TD_MUST_USE td_status device_run_write(const executor *x, void *at, const void *from, int64_t bytes,
                                       td_err *err);
/* Zeroes a buffer of a rank before a run. */
TD_MUST_USE td_status device_run_clear(const executor *x, char *at, int64_t bytes, td_err *err);
/* n elements at a place of a rank's memory, made from floats. */
TD_MUST_USE td_status device_run_narrow(const executor *x, void *at, const float *from, int64_t n,
                                        td_err *err);
/* The other way: floats, in `to`. */
TD_MUST_USE td_status device_run_widen(const executor *x, float *to, const void *at, int64_t n,
                                       td_err *err);
/* First weights of an instance, given as floats: its elements, and the floats beside the moments
 * that the rank updates them in, where elements are no floats. */
TD_MUST_USE td_status device_run_weights(const executor *x, uint32_t rank, uint32_t inst,
                                         const float *weights, void *at, td_err *err);
/* rank_arena_touched of a rank's memory. */
TD_MUST_USE td_status device_run_touched(const executor *x, uint32_t rank, int64_t *bytes,
                                         td_err *err);

/* What the run takes of the device. */
device_use device_run_use(const executor *x);

/* --- a step --- */

/* The calling thread computes for ranks. */
void device_run_enter(const executor *x);
void device_run_begin(executor *x);
void device_run_post(executor *x, const exec_rank *r, uint32_t task);
void device_run_join(executor *x, const exec_rank *r, uint32_t task);
void device_run_task(executor *x, const exec_rank *r, uint32_t task, bool begins);
/* Waits for the rank's work, or for all work (NULL). */
TD_MUST_USE td_status device_run_wait(const executor *x, const exec_rank *r, td_err *err);
/* Of tasks that are run one at a time: the rank's stream idles for so long; what a task took that
 * is done; a copy on the stream of a task. */
void device_run_idle(const executor *x, const exec_rank *r, int64_t ns);
int64_t device_run_took(const executor *x, uint32_t task);
void device_run_copy(const executor *x, uint32_t task, void *to, const void *from, int64_t bytes);
/* Where the loss of a pass goes; that of a recompute, which another rank has seen already, goes to
 * a place of its own. */
double *device_run_loss(const executor *x, const exec_rank *r, const plan_member *m);
/* Adds to the first entry of a norm table what is not a number if one of the rank's losses is not
 * finite: a loss can be infinite while its gradient is not. */
void device_run_spoil(const executor *x, const exec_rank *r, double *table);
/* Waits for the device; losses and norm of the step. Errors: a number is not finite. */
TD_MUST_USE td_status device_run_end(executor *x, td_err *err);
/* When each task of the step began and ended, if times are kept. */
void device_run_times(executor *x);

#endif
