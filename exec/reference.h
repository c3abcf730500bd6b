/* The law's other side: the same model trained by a plain loop over microbatches on one rank, with
 * memory of its own and no plan; and the comparison with an executor. */
#ifndef EXEC_REFERENCE_H
#define EXEC_REFERENCE_H

#include "exec/exec.h"

typedef struct reference {
    stage_code *code; /* one stage with the whole model */
    sizes sizes;
    stage_desc whole;
    int32_t microbatches; /* of all replicas together */
    float *weights, *grads, *moments;
    char *stash, *scratch;
    k_ctx *ctx;
    double *norms;
} reference;

TD_MUST_USE td_status reference_open(const sizes *z, int32_t microbatches, k_ctx *ctx, td_arena *a,
                                     reference *out, td_err *err);
void reference_init(reference *f, uint64_t seed);

/* Runs forward and backward of microbatches 0 .. n-1 in that order; ids and targets: [n][batch *
 * seq]. Gradients are left summed (a tied table's two uses added once at the end). */
double reference_gradients(reference *f, const int32_t *ids, const int32_t *targets);
/* Clips, updates and clears. */
void reference_update(reference *f, const exec_step *s);

typedef struct comparison {
    double max_rel_err; /* over tensors: ||a - b|| / ||b|| */
    char worst[64];     /* the tensor it is of */
    bool bitwise;
} comparison;

/* Compares the values of one tensor, whole, with those of an entry of the reference (behind its
 * last one: a tied head's copy of the table). Accumulates. */
void reference_compare_tensor(const reference *f, int64_t entry, const param_tensor *t,
                              const float *values, const float *reference_values, comparison *out);
/* Compares one instance's values (laid out as its stage's parameters) with the reference's. Starts
 * from {.bitwise = true} and accumulates. */
void reference_compare(const reference *f, const stage_code *c, const float *values,
                       const float *reference_values, comparison *out);

#endif
