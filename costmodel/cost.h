/* What things cost: durations of passes, messages, collectives and the optimizer step. Computed in
 * double, rounded once to integer nanoseconds here; integers from there on. */
#ifndef COSTMODEL_COST_H
#define COSTMODEL_COST_H

#include "base/pass.h"
#include "costmodel/cluster.h"
#include "costmodel/model.h"
#include "costmodel/sizes.h"

/* Unit times as the user gave them (--times), in ms of one microbatch through 1/P of the model. */
typedef struct unit_times {
    bool given[PASS_COUNT];
    double pass_ms[PASS_COUNT];
    bool pair_given;
    double pair_ms; /* an overlapped pair; default F + B */
    double comm_ms; /* latency of one message between ranks */
    double coll_ms; /* latency of one collective */
    /* From a file: one row a stage, taken unscaled; NULL with a plain list. */
    const double *stage_pass_ms; /* [n_stages * PASS_COUNT], < 0 where not given */
    int32_t n_stages;
} unit_times;

/* "F=1,B=2,comm=0.1" or a file of such rows ("stage 0: F=1,B=2"). Defaults: B = I + W, R = F,
 * I and W half of B when only B is given; what cannot be derived stays ungiven. */
TD_MUST_USE td_status unit_times_parse(const char *text_or_path, td_arena *a, unit_times *out,
                                       td_err *err);

typedef struct pass_query {
    pass_kind pass;
    int32_t stage;
    int64_t slice_len, prefix, seq_len; /* tokens; a unit-time slice costs slice_len / seq_len */
    bool keeps_nothing; /* F of a rank that runs no backward: a profile that measured it knows */
} pass_query;

typedef enum coll_kind {
    COLL_ALL_REDUCE,
    COLL_REDUCE_SCATTER,
    COLL_ALL_GATHER,
    COLL_BROADCAST,
    COLL_REDUCE,
    COLL_VOCAB_STATS /* max, rescale, sums: the vocabulary barrier C1, one composite task */
} coll_kind;

/* Where durations come from: unit times, first principles on a cluster, or a fitted profile on top
 * of it. Plain data; make it with one of the makers. */
typedef struct cost_model {
    const unit_times *units; /* not NULL: unit times rule */
    const sizes *sizes;
    const cluster_desc *cluster;
    const struct profile *profile; /* NULL: first principles */
    int32_t chunks;                /* chunks per rank and pipe: a chunk takes 1/chunks of a time */
    int32_t unit_tp; /* tensor-parallel degree that unit times mean; 0: that of the sizes */
    int32_t busy;    /* with a profile: ranks of the machine at work at once; 0: a node's devices */
    /* With a profile: passes are priced as if alone and optimizer and norm by as much as they slow
     * down more than passes, for whoever shares out the cores while ranks come and go (sim_run). */
    bool alone;
    /* An overlapped pair takes this part of its F + B, unless unit times give FB; 0: all of it. */
    double pair_frac;
    bool sums_apart; /* passes are priced without the sums of tensor parallelism inside them */
    bool recompute_placed; /* the schedule has R passes, so backward passes hold no recompute */
} cost_model;

/* Each returns nanoseconds >= 0 in *ns; TD_EUSAGE when a needed time was not given or when the
 * result does not fit. In unit times full recompute adds R to B, I and pairs, unless it is placed;
 * selective recompute adds nothing. */
TD_MUST_USE td_status cost_pass(const cost_model *c, const pass_query *q, int64_t *ns, td_err *err);
/* An overlapped forward and backward. */
TD_MUST_USE td_status cost_pair(const cost_model *c, const pass_query *f, const pass_query *b,
                                int64_t *ns, td_err *err);
/* Optimizer step of a stage; gradient-norm partials of a stage. */
TD_MUST_USE td_status cost_optimizer(const cost_model *c, int32_t stage, int64_t *ns, td_err *err);
/* A copy of its weights and optimizer state: as much longer or shorter than the step as it moves
 * more or fewer bytes, each read once and written once. */
TD_MUST_USE td_status cost_snapshot(const cost_model *c, int32_t stage, int64_t *ns, td_err *err);
/* Its weights or gradients, whole at the degree of the sizes, put together out of shards. */
TD_MUST_USE td_status cost_join(const cost_model *c, int32_t stage, bool weights, int64_t *ns,
                                td_err *err);
TD_MUST_USE td_status cost_norm(const cost_model *c, int32_t stage, int64_t *ns, td_err *err);

/* A message splits into a latency, which holds no link, and a transfer at the link's bandwidth. */
typedef struct message_cost {
    int64_t latency_ns, transfer_ns; /* transfer when alone on its path */
} message_cost;
TD_MUST_USE td_status cost_message(const cost_model *c, int32_t src_rank, int32_t dst_rank,
                                   int64_t bytes, message_cost *out, td_err *err);
/* A collective of `n` true members, of which `ranks` (n_ranks of them) are in the plan. */
TD_MUST_USE td_status cost_collective(const cost_model *c, coll_kind kind, const int32_t *ranks,
                                      int32_t n_ranks, int32_t n, int64_t bytes, int64_t *ns,
                                      td_err *err);

/* FLOPs and bytes moved of one pass on one tensor-parallel shard; the source of each term is
 * beside it in flops.c. */
typedef struct pass_work {
    double flops, bytes;
} pass_work;
TD_MUST_USE td_status pass_work_of(const sizes *z, const pass_query *q, pass_work *out,
                                   td_err *err);

#endif
