/* Where a pass of one tensor-parallel shard is cut: at the sums over the shards inside it. */
#ifndef COSTMODEL_SEGMENTS_H
#define COSTMODEL_SEGMENTS_H

#include "base/pass.h"
#include "costmodel/sizes.h"

/* Which of the pass's buffers holds the tensor that the shards bring together. */
typedef enum cut_buffer { CUT_STASH, CUT_STASH_W, CUT_WSTASH, CUT_SCRATCH, CUT_OUTPUT } cut_buffer;

/* What the shards do with it: add it up; join statistics of the softmax; put together pieces of
 * rows, or add up and keep one's own piece (sequence parallelism). */
typedef enum cut_kind { CUT_SUM, CUT_SOFTMAX, CUT_GATHER, CUT_SCATTER } cut_kind;

typedef struct pass_cut {
    cut_kind kind;
    cut_buffer in;
    int64_t at, bytes; /* within that buffer */
} pass_cut;

typedef struct cut_query {
    pass_kind pass;
    int32_t stage;
    int64_t slice_len;
    bool split; /* its backward is an input and a weight gradient */
    bool alone; /* a forward on a row that does not run the backward */
} cut_query;

/* The cuts of a pass in their order (Shoeybi et al. 2019, arXiv 1909.08053, section 3: each layer
 * sums twice forward and twice backward; the vocabulary's tables add the embedding, the softmax
 * statistics and the head's input gradient). With sequence parallelism a sum is a reduce-scatter,
 * and what follows from it for one's own rows is gathered before each product; backward gathers the
 * inputs of products once more for their weights (Korthikanti et al. 2022, arXiv 2205.05198,
 * section 4.2). Segment i of the pass ends at cut i, and the last one at its end; *n is 0 where
 * z->run.tp is 1. *cuts comes from `a`. Errors: TD_EUSAGE without a model or stage or for what
 * shards cannot do, TD_ENOMEM. */
TD_MUST_USE td_status pass_cuts_of(const sizes *z, const cut_query *q, td_arena *a, pass_cut **cuts,
                                   int32_t *n, td_err *err);

/* Whether the shards can share out the rows of so many tokens of each sequence evenly; also without
 * sequence parallelism. Errors: TD_EUSAGE. */
TD_MUST_USE td_status segments_check_rows(const sizes *z, int64_t slice_len, td_err *err);

#endif
