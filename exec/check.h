/* The law of the executor (DESIGN section 9), checked for one plan. */
#ifndef EXEC_CHECK_H
#define EXEC_CHECK_H

#include "exec/device.h"
#include "exec/reference.h"

typedef struct check_options {
    uint64_t seed;
    int64_t steps; /* optimizer steps; weights are compared after the last */
    double clip;   /* as in exec_step */
    /* called with a run that failed, before it is closed: where it stands; may be NULL */
    void (*failed)(const executor *x, td_status st);
    exec_options run;
} check_options;

typedef struct check_rank {
    int64_t peak_bytes;    /* predicted by the plan */
    int64_t touched_bytes; /* highest byte written */
} check_rank;

typedef struct check_result {
    double loss, loss_reference; /* of the first step */
    comparison gradients;        /* of every step */
    comparison weights;          /* after the last step */
    bool copies; /* after every step that is settled twins, replicas, forward and backward rows and
                    both ends' tied tables have equal weights, bit for bit */
    bool losses_equal;   /* every bit, every step */
    double loss_rel_err; /* largest of all steps */
    bool exact;     /* on the cores: accumulation order is the reference's: bitwise is demanded */
    bool memory;    /* touched equals predicted on every rank, and steps allocate nothing */
    int64_t undone; /* steps that post-validation found wrong and did again */
    bool pass;
    check_rank *ranks; /* [n_ranks] */
    int64_t rss_bytes;
    device_use device;
} check_result;

/* Tolerance where the order of sums differs (DESIGN section 9). */
#define CHECK_TOLERANCE 1e-5
/* The same for weights: biases start at 0, so that a few steps are all they are, and AdamW's
 * division makes small and uncertain gradients large. */
#define CHECK_WEIGHTS_TOLERANCE 1e-4
/* bf16 keeps 8 bits of a number: its errors pile up over the layers like those of a random walk. */
#define CHECK_BF16_LOSS_TOLERANCE 5e-3
#define CHECK_BF16_TOLERANCE 6e-2
#define CHECK_BF16_WEIGHTS_TOLERANCE 0.25
/* AdamW's epsilon. Where a true gradient is 0 (a key's bias) what comes out is the noise of the
 * sums' order; a tiny epsilon would make a whole step of it, and then the runs part. */
#define CHECK_EPSILON 1e-4f

/* The sharded tables of one replica, by instance, against the reference's; nothing to do where the
 * vocabulary is whole (check_shards.c). */
TD_MUST_USE td_status check_shards(const executor *x, const reference *f,
                                   const float *const *values, const float *reference_values,
                                   comparison *out, td_err *err);

/* The law of the executor for one plan: runs it, runs the same model on one rank without a
 * pipeline, and compares losses, gradients and weights after the steps that `o` asks for. A
 * difference is not an error, it stands in *out. Errors: TD_EUSAGE for what the executor refuses,
 * TD_EDEVICE. */
TD_MUST_USE td_status check_plan(const plan *p, const sizes *z, const check_options *o, td_arena *a,
                                 check_result *out, td_err *err);

#endif
