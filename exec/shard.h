/* Tensor parallelism: which part of a stage's tensors a shard holds. */
#ifndef EXEC_SHARD_H
#define EXEC_SHARD_H

#include "exec/stage.h"

/* Whether every shard holds the whole tensor: norms, positions, biases added to sums. */
bool shard_is_whole(param_kind kind);

/* A run of elements that lie one behind the other in a tensor and in a shard's part of it, from the
 * start of each. */
typedef struct shard_run {
    int64_t whole, part, count;
} shard_run;

/* Of a tensor that a shard has a part of, or all, its leading elements that no shard before has
 * too: what counts once in the whole model. */
int64_t shard_counted(const stage_code *part, int32_t shard, int64_t i);

/* The n-th run of tensor i of a stage; false behind the last. */
bool shard_run_at(const stage_code *full, const stage_code *part, int32_t shard, int64_t i,
                  int64_t n, shard_run *out);

/* Copies the shard's part of every tensor of a stage. `full`: the stage of the whole model, `part`:
 * of a shard (z->run.tp of them); each with its own layout of elements. Rows of the tables behind
 * the vocabulary's end are zero. */
void shard_take(const stage_code *full, const stage_code *part, int32_t shard, const float *from,
                float *to);
/* The way back. Whole tensors are given by shard 0 alone. */
void shard_give(const stage_code *full, const stage_code *part, int32_t shard, const float *from,
                float *to);
/* The same of elements [begin, end) of the part. */
void shard_give_piece(const stage_code *full, const stage_code *part, int32_t shard,
                      const float *from, int64_t begin, int64_t end, float *to);

#endif
