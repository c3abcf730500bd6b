/* The Plan: what every rank does, contract 1 between the schedules and the two backends. Flat
 * arrays of indices, so that a plan can be copied, compared, hashed and written; a plan of ten
 * million tasks is ordinary.
 *
 * Execution model (DESIGN section 5): every task belongs to one stream of one rank and a stream
 * runs its tasks in order. Ranks meet only in messages and collectives. A task off the compute
 * stream has a gate, the compute task of its rank after which it may start, and a join, the first
 * compute task that waits for it. */
#ifndef SCHEDULES_PLAN_H
#define SCHEDULES_PLAN_H

#include "base/base.h"
#include "base/pass.h"
#include "costmodel/cost.h"
#include "costmodel/sizes.h"
#include "schedules/schedule.h"

#define PLAN_NONE UINT32_MAX

/* Pass kinds first, equal to pass_kind. */
typedef enum task_kind {
    TASK_PAIR = PASS_COUNT, /* an overlapped cell: its members are passes */
    TASK_SEND,
    TASK_RECV,
    TASK_COLL,
    TASK_NORM, /* per-tensor partial sums of squares of the rank's gradients */
    TASK_OPTIMIZER,
    TASK_MERGE, /* post-validation: adds what the ranks before know of the norm to the rank's own */
    TASK_VERIFY, /* post-validation of the step before: with the whole norm known, that step is
                    kept, or taken back and done as it should have been, and then the prefix
                    repeated */
    TASK_MARK,   /* takes no time: a place in compute order that others gate on or join */
    TASK_KIND_COUNT
} task_kind;

typedef enum channel_class {
    CHANNEL_ACT,
    CHANNEL_GRAD,
    CHANNEL_HANDOFF,
    CHANNEL_WEIGHTS,
    CHANNEL_STATE /* post-validation: what is known of the norm */
} channel_class;
typedef enum coll_purpose {
    PURPOSE_GRAD_SYNC, /* a stage's gradients among its twins and replicas */
    PURPOSE_TIED,      /* tied embedding gradients between first and last stage */
    PURPOSE_NORM,      /* sum of the squared norms */
    PURPOSE_C0,
    PURPOSE_C1,
    PURPOSE_C2, /* vocabulary barriers */
    PURPOSE_EMBED_SUM,
    PURPOSE_EMBED_GRAD, /* sharded input layer */
    PURPOSE_LOSS,
    PURPOSE_WEIGHTS,     /* a sharded optimizer's new weights, to all copies of the stage */
    PURPOSE_SHARDS,      /* what tensor-parallel shards bring together inside a pass */
    PURPOSE_SHARD_GRADS, /* gradients of what several tensor-parallel shards hold, where each has
                            seen a part: its own tokens, or its own heads */
    PURPOSE_COUNT
} coll_purpose;

typedef enum plan_mapping { MAPPING_CHANNEL, MAPPING_DIRECTION, MAPPING_SINGLE } plan_mapping;
typedef enum stream_kind {
    STREAM_COMPUTE,
    STREAM_SEND,
    STREAM_RECV,
    STREAM_BOTH,
    STREAM_COLL
} stream_kind;

/* Tasks of one class have one shape and one price. Of collectives, prefix is where the payload
 * begins in its buffer, in units of SYNC_ALIGN elements (inside a pass: of PLAN_CUT_ALIGN bytes).
 *
 * A pass of one of several tensor-parallel shards is `segments` tasks in a row, cut where it waits
 * for the other shards; every segment names the whole pass, and which one of it it is. A message
 * with segments has one of so many equal pieces of its buffer as its payload; the other end's shard
 * has all of it. */
#define PLAN_CUT_ALIGN ((int64_t)64)

typedef struct plan_class {
    uint8_t kind;    /* task_kind */
    uint8_t detail;  /* messages: channel_class; collectives: coll_kind */
    uint8_t purpose; /* collectives: coll_purpose */
    uint8_t reserved;
    uint32_t inst;              /* stage instance, or PLAN_NONE */
    uint32_t second;            /* TASK_PAIR: class of the second member; else PLAN_NONE */
    int32_t slice_len, prefix;  /* tokens of each sequence; MARK, NORM, OPTIMIZER: slice_len is the
                                   row, whose price is the sum over the stages that train there;
                                   PURPOSE_SHARD_GRADS: how many neighbours meet, 0: all shards */
    uint16_t segment, segments; /* of a pass that is cut; else 0, 0 */
    int64_t bytes; /* messages and collectives: payload; TASK_PAIR: class of the first member */
} plan_class;

typedef struct plan_task {
    uint8_t kind;  /* task_kind */
    uint8_t flags; /* TASK_FLAG_* */
    uint16_t slice;
    uint32_t microbatch; /* PLAN_NONE where there is none */
    uint32_t cls;
    uint32_t link;      /* message: the task at the other end; collective: index in colls;
                           pair: index of its members in members (two consecutive); else NONE */
    uint32_t gate;      /* compute task, PLAN_NONE: the start of the period */
    uint32_t join;      /* compute task, PLAN_NONE: the end of the period */
    uint32_t first_use; /* its buffer uses are uses[first_use .. next task's first_use) */
} plan_task;

enum {
    TASK_FLAG_JOIN_NEXT = 1, /* the join lies in the next period */
    TASK_FLAG_PREFIX = 2,    /* belongs to the part that a failed VERIFY repeats */
    TASK_FLAG_MEET = 4       /* a broadcast or reduction that is a barrier under every protocol */
};

/* The two passes of an overlapped cell, in cell order. */
typedef struct plan_member {
    uint8_t kind;
    uint8_t reserved;
    uint16_t slice;
    uint32_t microbatch, cls, first_use, n_uses;
} plan_member;

/* A buffer lives from compute position birth to death, both inclusive, on its rank (positions count
 * the compute stream from 0; a buffer of the whole run has 0 and UINT32_MAX). */
typedef struct plan_buffer {
    uint32_t birth, death;
    uint32_t offset; /* in units of PLAN_ALIGN bytes from the start of the arena */
    uint32_t bclass;
} plan_buffer;

#define PLAN_ALIGN ((int64_t)256)

typedef struct plan_bclass {
    uint8_t what; /* size_kind */
    uint32_t inst;
    int32_t slice_len, prefix;
    int64_t bytes;
} plan_bclass;

/* A use packs mode, role and the buffer's index within its rank. */
typedef enum use_mode { USE_READ, USE_WRITE, USE_ADD } use_mode;
typedef enum use_role {
    ROLE_INPUT,   /* activation into the stage */
    ROLE_OUTPUT,  /* activation out of it */
    ROLE_STASH,   /* what F keeps for B, or for I alone */
    ROLE_STASH_W, /* what F keeps for W; I writes gradients over parts of it */
    ROLE_WSTASH,  /* what I adds for W */
    ROLE_DOUTPUT, /* gradient of the output, from the next stage */
    ROLE_DINPUT,  /* gradient of the input, to the previous stage */
    ROLE_WEIGHTS,
    ROLE_GRADS,
    ROLE_OPTIMIZER,
    ROLE_SCRATCH,
    ROLE_TOKENS,
    ROLE_MESSAGE, /* payload of a message or collective */
    ROLE_KV,
    ROLE_DKV,
    ROLE_VOCAB_STATS,
    ROLE_VOCAB_STASH,
    ROLE_NORM,
    ROLE_NORM_BEFORE, /* that of the ranks before */
    ROLE_SNAPSHOT,
    ROLE_PARTS, /* what shards sent, to be put together */
    ROLE_COUNT
} use_role;

static inline uint32_t use_pack(use_mode mode, use_role role, uint32_t buffer)
{
    return (uint32_t)mode << 30 | (uint32_t)role << 25 | buffer;
}
static inline use_mode use_mode_of(uint32_t use) { return (use_mode)(use >> 30); }
static inline use_role use_role_of(uint32_t use) { return (use_role)(use >> 25 & 31u); }
static inline uint32_t use_buffer_of(uint32_t use) { return use & 0x1ffffffu; }

typedef struct plan_stream {
    uint8_t kind; /* stream_kind */
    uint32_t rank;
    uint32_t first_task, n_tasks; /* consecutive tasks */
    uint32_t channel;             /* SEND, RECV: index in channels; COLL: index in groups */
} plan_stream;

/* Where rows stand in the order of the cluster's devices: as they are numbered, or row r beside row
 * P - 1 - r (even positions hold rows 0, 2, ..., odd ones P - 1, P - 3, ...). */
typedef enum plan_placement { PLACEMENT_STRAIGHT, PLACEMENT_FOLDED } plan_placement;

typedef struct plan_rank {
    int32_t row, replica, shard;
    int32_t tp;     /* tensor-parallel degree of its row */
    int32_t device; /* in the whole cluster, folded replicas and shards included: shards are
                       innermost, then replicas, then rows; a folded rank names its first */
    uint32_t first_stream, n_streams; /* the first one is the compute stream */
    uint32_t first_buffer, n_buffers;
    int64_t arena_bytes;      /* predicted peak: highest offset + size */
    int64_t persistent_bytes; /* of it weights, gradients, optimizer */
} plan_rank;

typedef struct plan_channel {
    uint32_t src, dst;
    uint8_t cls; /* channel_class */
} plan_channel;

typedef struct plan_group {
    uint32_t first_member, n_members; /* ranks, in group_members */
    int32_t true_size;                /* >= n_members when replicas are folded */
} plan_group;

typedef struct plan_coll {
    uint32_t group, first_task; /* coll_tasks[first_task + i]: the task of member i */
    uint32_t root;              /* member index, for broadcast and reduce */
} plan_coll;

/* A stage instance: one stage of one pipe. Instances of one stage are twins; those of "stage"
 * n_stages are the shards of the tables, one a row, where the vocabulary is sharded. */
typedef struct plan_inst {
    int32_t pipe, stage;
    int32_t forward_row, backward_row;
    bool all_step; /* the forward row, if it is another, holds gradients and steps as well */
} plan_inst;

typedef struct plan {
    const char *schedule_name;
    int32_t n_rows, n_stages, n_pipes, n_microbatches, n_slices;
    int64_t seq_len; /* tokens a sequence; slices sum to it (n_slices without a model) */
    int32_t chunks;  /* stage instances per row and pipe */
    int32_t dp, tp;  /* true degrees */
    bool folded_dp, folded_tp;
    plan_mapping mapping;
    int32_t lookahead, send_window;
    const char *stage_of_run; /* the pass this plan came out of: "place" ... "memory" */

    plan_rank *ranks;
    uint32_t n_ranks;
    plan_stream *streams;
    uint32_t n_streams;
    plan_task *tasks;
    uint32_t n_tasks; /* one more at the end, for first_use */
    plan_class *classes;
    uint32_t n_classes;
    plan_member *members;
    uint32_t n_members;
    plan_channel *channels;
    uint32_t n_channels;
    plan_group *groups;
    uint32_t n_groups;
    uint32_t *group_members;
    uint32_t n_group_members;
    plan_coll *colls;
    uint32_t n_colls;
    uint32_t *coll_tasks;
    uint32_t n_coll_tasks;
    plan_inst *insts;
    uint32_t n_insts;
    plan_buffer *buffers;
    uint32_t n_buffers;
    plan_bclass *bclasses;
    uint32_t n_bclasses;
    uint32_t *uses;
    uint32_t n_uses;
    stage_desc *stages; /* [n_stages]; NULL without a model */
} plan;

/* Devices of the whole cluster that the plan takes, folded replicas and shards included. */
static inline int64_t plan_devices(const plan *p)
{
    int64_t n = 0;
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        const plan_rank *const r = &p->ranks[i];
        const int64_t shards = p->folded_tp ? r->tp : 1;
        const int64_t end = r->device + shards + (p->folded_dp ? (p->dp - 1) * (int64_t)r->tp : 0);
        if (end > n) n = end;
    }
    return n;
}

/* The stream a task belongs to is found by rank and position; the rank of a stream is stored. */
static inline const plan_stream *plan_compute(const plan *p, uint32_t rank)
{
    return &p->streams[p->ranks[rank].first_stream];
}

/* Whether a row holds the gradients and the optimizer of an instance. */
static inline bool plan_trains(const plan_inst *i, int32_t row)
{
    return i->backward_row == row || (i->all_step && i->forward_row == row);
}

/* Whether a task is the first or the last segment of its pass, which most passes are both. */
static inline bool plan_begins_pass(const plan *p, const plan_task *t)
{
    return p->classes[t->cls].segment == 0;
}
static inline bool plan_ends_pass(const plan *p, const plan_task *t)
{
    const plan_class *const c = &p->classes[t->cls];
    return c->segments == 0 || c->segment + 1 == c->segments;
}

/* The row on which a pass of an instance runs. */
static inline int32_t plan_home(const plan_inst *i, uint8_t pass)
{
    return pass == PASS_F ? i->forward_row : i->backward_row;
}

typedef struct lower_options {
    const sizes *sizes;
    int32_t dp, tp;
    bool fold;   /* one replica stands for all */
    bool shards; /* every tensor-parallel shard is a rank; else one stands for all */
    plan_mapping mapping;
    plan_placement placement;
    int32_t lookahead, send_window; /* 0: defaults, 1 and "never blocks" */
    bool zero1;
    bool no_step;         /* leave gradient sync, norm and optimizer out (closed forms) */
    bool keep_sync;       /* with no_step: keep the gradient syncs */
    int64_t memory_limit; /* bytes a rank; 0: none */
    const char *after;    /* stop after this pass; NULL: all */
} lower_options;

/* Lowers a sound schedule: place, comm, collect, step, memory and, if asked for, shards; the
 * checker runs after every pass. */
TD_MUST_USE td_status plan_lower(const schedule *s, const lower_options *o, td_arena *a, plan *out,
                                 td_err *err);
/* The names of the passes, for --after; ends with NULL. */
const char *const *plan_pass_names(void);

/* The laws of a plan (DESIGN section 5, Checker). The error names rank, task and rule; a deadlock
 * is printed as its cycle of waits. `a` holds scratch. */
TD_MUST_USE td_status plan_check(const plan *p, td_arena *a, td_err *err);

/* Slices are of causal models, and cut one sequence length, the same in every microbatch; with a
 * model, the run's. */
TD_MUST_USE td_status plan_check_slices(const schedule *s, const sizes *z, td_err *err);
/* Bytes of a buffer on a rank of tensor-parallel degree `tp`, of sizes of the run's degree. */
TD_MUST_USE td_status plan_bytes(const sizes *z, int32_t tp, size_kind kind, int32_t stage,
                                 int64_t slice_len, int64_t prefix, int64_t *bytes, td_err *err);
/* A plan from a file may have been lowered for other sizes: its buffers must be as large as z has
 * them. */
TD_MUST_USE td_status plan_check_sizes(const plan *p, const sizes *z, td_err *err);

/* Whether steps are validated later, so that a rank begins the next period before others have ended
 * this one. */
bool plan_validates(const plan *p);

/* The most streams of a rank that may wait at once, posted and not yet joined; *position is the
 * first compute position at which they do. `change` holds [compute tasks + 2]. */
uint32_t plan_streams_waiting(const plan *p, uint32_t rank, int32_t *change, uint32_t *position);

/* Queues: streams that meet each other share one, and each rank has at most one stream in it; on
 * GPUs a queue is a NCCL communicator (plan_queues.c says what that is good for). */
typedef struct plan_queue {
    uint32_t first_member, n_members; /* ranks, in `members`: of messages ascending, of collectives
                                         as in their group */
    bool collective;
} plan_queue;
typedef struct plan_queues {
    uint32_t n_queues;
    plan_queue *queues;
    uint32_t *members;
    uint32_t *of_stream; /* [n_streams]; PLAN_NONE: compute, or no tasks */
} plan_queues;
/* Numbered by their first streams, the same in every process. TD_EPLAN where a rank has two streams
 * in one queue, which plan_check refuses too. */
TD_MUST_USE td_status plan_find_queues(const plan *p, td_arena *a, plan_queues *out, td_err *err);

/* Every rank's arena fits `limit` bytes (0: any does); the error names the one that needs most. */
TD_MUST_USE td_status plan_check_limit(const plan *p, int64_t limit, td_err *err);

/* "rank 3 F 7.1 of stage 2": how messages name a task. */
void plan_task_text(const plan *p, uint32_t task, td_text *out);
uint32_t plan_task_rank(const plan *p, uint32_t task);

/* --- plan_text.c: parse(print(p)) equals p --- */
void plan_print(const plan *p, td_text *out);
TD_MUST_USE td_status plan_parse(const char *text, size_t len, const char *name, td_arena *a,
                                 plan *out, td_err *err);
bool plan_equal(const plan *a, const plan *b);

/* A copy whose arrays come from `a`. */
TD_MUST_USE td_status plan_copy(const plan *p, td_arena *a, plan *out, td_err *err);

/* FNV-1a over everything but names: all processes of a run must agree on it. */
uint64_t plan_hash(const plan *p);

#endif
