/* The executor: an interpreter of plans on the cores of this machine, one thread a rank; with a
 * team, each rank in a process of its own. All processes then make the calls below alike, except
 * where the comment says otherwise. */
#ifndef EXEC_EXEC_H
#define EXEC_EXEC_H

#include "base/base.h"
#include "costmodel/sizes.h"
#include "exec/arena.h"
#include "exec/offload.h"
#include "exec/stage.h"
#include "exec/team.h"
#include "exec/wire.h"
#include "kernels/kernels.h"
#include "schedules/plan.h"
#include "schedules/trace.h"

#include <pthread.h>

typedef struct exec_options {
    int threads_per_rank;
    const char *blas;    /* which matrix library, as for k_blas_open; NULL: by CPU */
    int64_t deadline_ns; /* of one wait for another rank; 0: two minutes */
    int64_t jitter_ns;   /* tests: each task is preceded by a random delay of up to this */
    uint64_t jitter_seed;
    /* tests: called by the rank's thread before each task of its compute stream; or NULL */
    void (*before)(void *self, uint32_t rank, int64_t period, uint32_t task);
    void *before_self;
    uint32_t kept_periods; /* the last ones, whose times are kept; 0: as few as it takes */
    team *team;            /* the processes, one a rank; NULL: all ranks are threads of this one */
    struct device *device; /* what computes; NULL: the cores of this machine */
    bool room_for_all;     /* with a team: room for the memory of all ranks, see exec_mirror */
    offload *offload;      /* where ranks' memory is, of one thread's executor; NULL: here */
    bool device_is_shared; /* with a team: by several processes */
    bool ordered_sums;     /* with a team and a device: sums in member order, see wire_nccl.h */
} exec_options;

/* One task that runs beside compute, and when. */
typedef struct exec_post {
    uint32_t task;
    uint32_t post_at; /* just before this compute position; n_compute: at the end */
    uint32_t channel; /* messages */
    int64_t posted_ns;
    wire_op op;
} exec_post;

typedef struct exec_rank {
    uint32_t index;
    rank_arena arena;
    k_ctx *ctx;
    k_adamw_stage *updates; /* [n_insts] what the rank updates; no pieces where it does not */
    exec_post *posts;       /* [n_posts] in the order in which they are posted */
    uint32_t n_posts;
    uint32_t *joins;      /* posts (indices) by the position that waits for them */
    uint32_t *first_join; /* [n_compute + 2] */
    uint32_t *tokens;     /* [n_microbatches] buffer, or PLAN_NONE */
    stage_kv *kv;         /* [n_slices] of the pass at hand */
    k_keys *keys;         /* [n_slices] workspace of it */
    td_rng jitter;
    double *row_weights;              /* [n_microbatches] 1 / counted targets */
    struct exec_period *now, *before; /* at hand; the one to be verified in it, or NULL */
    /* of the step at hand; for others to read when the rank's thread has ended */
    uint32_t at, n_posted; /* compute position, and posts behind it */
    bool computes;         /* the task at that position has begun */
    bool spoilt;           /* a number was not finite, and step.skip is set */
    bool ahead;            /* the last step is not verified yet, and more may be wrong */
    /* of the step to be verified */
    bool stepped; /* the rank did it */
    long number;  /* its number, without steps that turned out to be skipped */
    long skipped; /* so many did, of those before the step at hand, since the run began */
    bool carries; /* messages of the period before are still to be joined */
} exec_rank;

/* The numbers of one optimizer step. */
typedef struct exec_step {
    float lr, beta1, beta2, eps, weight_decay; /* decay of matrices and tables only */
    double clip;             /* largest norm of the whole gradient; 0: no clipping */
    long number;             /* 1 for the first */
    float *const *grads_out; /* [n_insts of replica 0] copies of the summed gradients, or NULL */
    bool skip;               /* numbers that are not finite are no error: the weights stay as they
                                are, the gradients are cleared, and grad_norm is not finite */
} exec_step;

/* EXEC_STEP_WORDS: behind the losses, for exec_team_steps. EXEC_STRIDE: periods that processes run
 * between two meetings, at most. */
enum { EXEC_STEP_WORDS = 6, EXEC_STRIDE = 32 };

/* One period of the plan, which is a step. Where a step is validated in the next one, they overlap:
 * a rank goes on into the next period while others are in this one. */
typedef struct exec_period {
    int64_t number; /* of all since the executor was opened, from 0; -1: none yet */
    exec_step step;
    double *losses;   /* [dp * n_microbatches] mean loss of each microbatch */
    task_times times; /* from start_ns; of the last kept_periods */
    int64_t
        start_ns;   /* of the first rank of this process; after exec_team_steps by rank 0's clock */
    int64_t end_ns; /* of the last one */
    int64_t step_ns;  /* what it took; where periods overlap, from the end of the one before */
    uint32_t n_ended; /* ranks of this process */
} exec_period;

/* What a run of several steps asks for. i counts the steps of one exec_run_steps. */
typedef struct exec_feed {
    void *self;
    /* The numbers of step i, before the first rank of the process begins it; those of step.number
     * count without what was skipped before the run. */
    void (*begin)(void *self, int64_t i, exec_step *out);
    /* ids and targets [micro_batch * seq_len] of microbatch `index` of all replicas; called by
     * threads of several ranks at once. NULL: exec_tokens gave those of the one step. */
    void (*tokens)(void *self, int64_t i, int32_t index, int32_t *ids, int32_t *targets);
    /* The following are called in the order of steps, one call at a time, and may be NULL. */
    /* The norm of one more step is known. */
    void (*settled)(void *self, double norm);
    /* All ranks have ended step i: its losses are complete. */
    void (*ended)(void *self, int64_t i, const exec_period *p);
    /* Whether this process was asked to stop: no more steps are begun; processes meet first. */
    bool (*stops)(void *self);
} exec_feed;

typedef struct device_run device_run;

typedef struct executor {
    const plan *p;
    const sizes *z;
    stage_code *stages;           /* [n_stages] of whole microbatches, of one shard */
    stage_code *whole;            /* the same of all shards together */
    const stage_code *(*code)[2]; /* [n_classes] of the passes: whole and split backwards */
    exec_rank *ranks;             /* [n_ranks] */
    wire *wire;
    device_run *device; /* NULL: the cores of this machine */
    k_blas blas;
    k_ctx *ctx; /* of the calling thread */
    exec_options options;
    exec_period *periods;               /* [n_periods] a ring */
    uint32_t n_periods, n_kept, n_here; /* n_here: ranks in this process */
    exec_period *now;                   /* the last one that was begun */
    int64_t n_begun;                    /* periods */
    pthread_mutex_t lock; /* around what ranks of one process tell the run: the three above and */
    int64_t n_settled; /* steps whose norm has been seen: with validation one less, until settled */
    int64_t n_undone;  /* of them those that were taken back, or never taken at once */
    double grad_norm;  /* of the last step that is settled */
    const exec_feed *feed; /* of the run at hand, or of the last one; NULL: of exec_run_step */
    bool validates; /* the plan verifies a step in the next period: until then it is unsettled */
    bool unsettled; /* the last step */
    int64_t stride; /* steps until processes meet again */
    /* Runs a period in place of the ranks' threads and fills times; NULL: the threads do. */
    td_status (*period)(void *self, int64_t *step_ns, td_err *err);
    void *period_self;
    bool stop;         /* after the last step: some process was asked to */
    int64_t clock_ns;  /* this process's clock less that of rank 0 */
    int64_t n_tensors; /* entries of the norm table */
} executor;

/* Whether a rank runs in this process. */
bool exec_is_here(const executor *x, uint32_t rank);

/* Maps the memory of the ranks that run here, lays canaries, starts the kernel threads. The plan
 * must be lowered to its end, unfolded, with a model. Errors: TD_EUSAGE for what is not executed
 * yet, TD_EDEVICE. */
TD_MUST_USE td_status exec_open(const plan *p, const sizes *z, const exec_options *o, td_arena *a,
                                executor **out, td_err *err);
void exec_close(executor *x);

/* Weights by name and seed (the same for every plan); gradients and moments zero. */
void exec_init(executor *x, uint64_t seed);

/* Tokens of one microbatch: ids and targets [micro_batch * seq_len]. */
void exec_tokens(executor *x, int32_t replica, int32_t microbatch, const int32_t *ids,
                 const int32_t *targets);

/* One period of the plan. *loss: the mean over microbatches, summed in index order. Errors name
 * microbatch, stage and rank where a number stopped being finite. */
TD_MUST_USE td_status exec_run_step(executor *x, const exec_step *s, double *loss, td_err *err);

/* At most n steps, at least one: *done. They are as many calls of exec_run_step, but where the plan
 * validates steps later the ranks do not meet between them. The feed is to live until exec_settle
 * has been called, or another run. Errors: as exec_run_step. */
TD_MUST_USE td_status exec_run_steps(executor *x, const exec_feed *feed, int64_t n, int64_t *done,
                                     td_err *err);

/* Verifies the last step where the plan leaves that to the next period: weights, moments and
 * grad_norm are then those of the step. To be called before they are looked at or changed; nothing
 * to do otherwise. */
TD_MUST_USE td_status exec_settle(executor *x, td_err *err);

/* Mean loss over the microbatches of a period, summed in index order. */
double exec_loss(const executor *x, const exec_period *p);
/* The period of that number; one of the last kept_periods. */
exec_period *exec_period_at(const executor *x, int64_t number);
/* Of a step, by the rank that found it. again: it was not as the rank had taken it. */
void exec_note_norm(executor *x, const exec_rank *r, double norm, bool again);

/* Where a rank's buffer lies: in memory of the device where there is one. */
char *exec_place(const executor *x, uint32_t rank, uint32_t buffer);

/* A stage as a rank has it: a shard, or all of it where the rank's row is not divided. */
static inline const stage_code *exec_code(const executor *x, uint32_t rank, int32_t stage)
{
    return x->p->ranks[rank].tp == x->p->tp ? &x->stages[stage] : &x->whole[stage];
}

/* The buffer of the whole run that holds `what` of a stage instance on a rank, or NULL. */
float *exec_buffer(const executor *x, uint32_t rank, size_kind what, uint32_t inst);
/* The rank that trains an instance, in a replica. */
uint32_t exec_rank_of(const executor *x, uint32_t inst, int32_t replica);

/* Weights, gradients and moments of one rank: called on its own thread, so that memory lies near it
 * and large models start quickly. Errors abort the wire. (exec_init.c) */
void exec_init_rank(const executor *x, uint32_t rank, uint64_t seed);

/* The weights of an instance on a rank for the host to read: where they lie, or, from a device, as
 * floats from room. *out is NULL where the rank has none. */
TD_MUST_USE td_status exec_weights(const executor *x, uint32_t rank, uint32_t inst, td_arena *room,
                                   const float **out, td_err *err);

/* --- periods.c --- */

TD_MUST_USE td_status exec_periods_open(executor *x, td_arena *a, td_err *err);
/* A job of each rank in a thread of its own, of those in this process where `here`. The first error
 * ends the others' waits. */
typedef td_status exec_job(executor *x, exec_rank *r, void *arg, td_err *err);
TD_MUST_USE td_status exec_each_rank(executor *x, bool here, exec_job *job, void *arg, td_err *err);

/* --- exec_shards.c: tensor-parallel shards --- */

/* The weights of a stage by x->whole, for the host to read: put together in memory from room, or
 * where they lie when there is one shard. */
TD_MUST_USE td_status exec_whole_weights(const executor *x, uint32_t inst, int32_t replica,
                                         td_arena *room, const float **out, td_err *err);
/* The same on the process of the rank that trains the instance in the first replica, from wherever
 * its shards are, for what computes there; all processes call it. room: whole and part elements. */
TD_MUST_USE td_status exec_bring_weights(const executor *x, uint32_t inst, float *room,
                                         const float **out, td_err *err);
TD_MUST_USE td_status exec_shards_init(const executor *x, uint32_t rank, int32_t stage,
                                       uint64_t seed, float *weights, td_err *err);

/* What shards have sent a rank that holds their stages whole, in one of the buffers that the task
 * reads: puts it together, weights or gradients. */
void exec_join_shards(const executor *x, const exec_rank *r, uint32_t task);

/* --- eval.c --- */

/* Memory for evaluations. */
typedef struct eval_room {
    char *work;   /* of what computes */
    char *edges;  /* of the host: for the ends where tables lie in shards */
    char *border; /* of the host: what goes from process to process */
} eval_room;

/* Until the executor or the arena is closed. */
TD_MUST_USE td_status exec_eval_room(const executor *x, td_arena *a, eval_room *out, td_err *err);
/* Mean loss of one microbatch by the current weights, through the stages in order on the calling
 * thread, of each process for its own stages. */
TD_MUST_USE td_status exec_eval(const executor *x, const eval_room *room, const int32_t *ids,
                                const int32_t *targets, double *loss, td_err *err);

/* --- exec_team.c: what processes tell each other; nothing to do where there is one --- */

/* After opening: how far the clocks are apart. */
TD_MUST_USE td_status exec_team_open(executor *x, td_err *err);
/* After the last n steps: losses, gradients that were asked for, wishes to stop, how many steps
 * come next; and the times of this process's tasks from the start of rank 0's step. */
TD_MUST_USE td_status exec_team_steps(executor *x, int64_t n, td_err *err);
/* After settling: grad_norm and n_undone, which one process has. */
TD_MUST_USE td_status exec_team_norm(executor *x, td_err *err);
/* Brings the memory of all ranks here (whole), or of it the weights. Needs options.room_for_all. */
TD_MUST_USE td_status exec_mirror(executor *x, bool whole, td_err *err);
/* On rank 0: completes the times of its own tasks with those of all others. Between processes a
 * message begins when its later end was posted. room: as t. */
TD_MUST_USE td_status exec_gather_times(const executor *x, task_times *t, const task_times *room,
                                        td_err *err);

/* --- exec_report.c --- */

/* The last tasks of each stream of this process's ranks, a line each: for a run that waits. */
void exec_report(const executor *x, td_text *out);

/* --- exec_wire.c --- */

TD_MUST_USE td_status exec_open_wire(executor *x, td_arena *a, td_err *err);
/* Tells the wire where this process's rank has its memory. */
void exec_register_memory(executor *x);

/* --- worker.c --- */

/* One rank's period of the plan, r->now. */
TD_MUST_USE td_status worker_run(executor *x, exec_rank *r, td_err *err);
/* After the last period of a run: joins what it left for the next one. */
TD_MUST_USE td_status worker_leave(executor *x, exec_rank *r, td_err *err);
/* One rank's part of exec_settle. */
TD_MUST_USE td_status worker_settle(executor *x, exec_rank *r, td_err *err);

/* Puts the step and what a message or collective is in front of a message. */
td_status exec_name_wait(const executor *x, const exec_rank *r, uint32_t task, td_err *err);

/* One task of the compute stream. */
TD_MUST_USE td_status worker_compute(executor *x, exec_rank *r, uint32_t task, td_err *err);
/* One end of a message or collective, handed to the wire. */
void worker_post(executor *x, const exec_rank *r, exec_post *o);
/* What a message or collective moves; NULL for nothing. */
char *worker_payload(const executor *x, const exec_rank *r, uint32_t task);
/* Its bytes: those of the message, or of the whole buffer where a barrier computes on it. */
int64_t worker_bytes(const executor *x, uint32_t task);

/* --- pass_run.c --- */

TD_MUST_USE td_status pass_open(executor *x, td_arena *a, td_err *err);
TD_MUST_USE td_status pass_run(executor *x, exec_rank *r, const plan_member *m, td_err *err);
/* Where a buffer of the rank lies. */
char *pass_buffer(const executor *x, const exec_rank *r, uint32_t use);

/* --- vocab_pass.c --- */

/* S, T, E or G on the rank's shard of the tables. joined, softmax: its SIZE_VOCAB_STATS and
 * SIZE_VOCAB_STASH buffers, where it has them. */
TD_MUST_USE td_status vocab_pass_run(executor *x, exec_rank *r, const plan_member *m,
                                     const stage_args *a, char *joined, float *softmax,
                                     td_err *err);

/* One pass of a rank's shard, wherever its buffers are. */
typedef struct vocab_pass {
    k_ctx *ctx;
    const stage_code *c; /* of the shard */
    const stage_args *a;
    vocab_layout at;
    long rows, hidden;
    k_words words;  /* of this shard */
    char *joined;   /* the SIZE_VOCAB_STATS buffer */
    float *softmax; /* the SIZE_VOCAB_STASH buffer [rows, at.ld] */
} vocab_pass;
/* kind: S, T, E or G; *loss is set by T, where loss is not NULL. */
void vocab_pass_compute(const vocab_pass *v, pass_kind kind, double *loss);

/* Logits of a shard's words; rows of its table for ids that it has, 0 for others: [rows, hidden].
 */
void vocab_logits(k_ctx *ctx, const stage_code *shard, const float *weights, k_words words,
                  long rows, const float *x, float *logits, long ld);
void vocab_look_up(k_ctx *ctx, const stage_code *shard, const float *weights, k_words words,
                   long rows, const int32_t *ids, float *out);
/* The words of the shard of a row; the shard's other rows are padding. */
k_words vocab_words(const stage_code *shard, int32_t row);

/* --- optimizer.c --- */

/* What each rank updates. */
TD_MUST_USE td_status optimizer_open(executor *x, td_arena *a, td_err *err);

/* What of an instance's weights a rank updates: all of them, or its piece of each part that a
 * reduce-scatter sums (ZeRO-1). Elements; `moment` is where a piece's first moments begin in the
 * SIZE_OPTIMIZER buffer, its second moments lie `moments` behind them. */
typedef struct optimizer_share {
    struct {
        int64_t first, count, moment;
    } pieces[SYNC_PARTS_MAX];
    int32_t n;
    int64_t moments;
    bool whole;
} optimizer_share;

optimizer_share optimizer_share_of(const executor *x, uint32_t rank, uint32_t inst);
/* Whether the sums of an instance on a rank, which it has this share of, are what step->grads_out
 * shows for the instance `to`: replica 0 shows its own, pieces are shown for all copies. */
bool optimizer_hands_out(const executor *x, const exec_step *step, const optimizer_share *s,
                         uint32_t rank, uint32_t inst, uint32_t to);

/* Partial sums of squares of the rank's gradients, each weight counted once in the whole run;
 * before that a rank that holds both uses of a tied table adds their gradients. */
void optimizer_norm(executor *x, exec_rank *r, uint32_t task);
/* The table of that role among the uses of a task, or NULL. */
double *optimizer_table(const executor *x, const exec_rank *r, uint32_t task, use_role role);
/* Names a tensor whose partial sum is not finite. */
td_status optimizer_refuses(const executor *x, const exec_rank *r, const double *table, long number,
                            td_err *err);

/* What can be done to the stages whose weights a task writes, in this order: gradients are shown in
 * step.grads_out, weights and moments come from the snapshot or go into it, they are updated with
 * gradients times scale[1] unless the norm, scale[0], is not finite; gradients are cleared. */
enum {
    OPTIMIZER_SHOW = 1,
    OPTIMIZER_RESTORE = 2,
    OPTIMIZER_KEEP = 4,
    OPTIMIZER_UPDATE = 8,
    OPTIMIZER_CLEAR = 16
};
TD_MUST_USE td_status optimizer_apply(executor *x, exec_rank *r, uint32_t task, const exec_step *s,
                                      unsigned what, const double *scale, td_err *err);
/* Clips and updates. Errors: a gradient that is not finite, by the tensor's name. */
TD_MUST_USE td_status optimizer_step(executor *x, exec_rank *r, uint32_t task, td_err *err);
/* The factor for gradients of this norm. */
float optimizer_clip(double norm, double clip);
/* Whether weight decay applies to a tensor. */
bool optimizer_decays(const param_tensor *t);
/* Linear warm-up over `warmup` steps, then half a cosine down to a tenth of `peak` at step `total`.
 */
double optimizer_rate(double peak, int64_t step, int64_t warmup, int64_t total);

/* --- validate.c: post-validation --- */

/* Adds the norm so far to the rank's own. */
void validate_merge(executor *x, exec_rank *r, uint32_t task);
/* Steps when nothing known so far speaks against it, and keeps what it takes to undo that. */
TD_MUST_USE td_status validate_step(executor *x, exec_rank *r, uint32_t task, td_err *err);
/* With the norm of the step before known, finishes that step. *again: its weights were other than
 * those that the forwards since then saw. Errors: as optimizer_step, of the step before. */
TD_MUST_USE td_status validate_last(executor *x, exec_rank *r, uint32_t task, bool *again,
                                    td_err *err);

/* --- params_init.c --- */

/* Fills a stage's weights: normal(0, 0.02), projections into the residual stream scaled by
 * 1/sqrt(2 layers) (Radford et al. 2019), norms 1, biases 0. Seeded by each tensor's name. */
void params_init(const model_desc *m, const param_tensor *params, int64_t n, uint64_t seed,
                 float *weights);
/* The same numbers for rows [first, first + words) of tables; rows behind them are 0. */
void params_init_shard(const model_desc *m, const param_tensor *params, int64_t n, uint64_t seed,
                       int64_t first, int64_t words, float *weights);

#endif
