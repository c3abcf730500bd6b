/* What the lowering passes share. Each pass takes a plan and gives a new one; arrays that a pass
 * does not change are shared with its input. */
#ifndef SCHEDULES_LOWER_H
#define SCHEDULES_LOWER_H

#include "schedules/plan.h"
#include "schedules/schedule_index.h"

typedef struct lowering {
    const schedule *s;
    const lower_options *o;
    const sched_index *ix; /* with levels */
    td_arena *a;
    td_arena *scratch;     /* whoever uses it resets it */
    int32_t replicas;      /* in the plan: 1 when folded */
    const int32_t *row_tp; /* [n_rows] tensor-parallel degree */
    int32_t tp;            /* of the run: that of the backward rows */
} lowering;

enum { CLASS_KINDS = 32 }; /* above all task kinds and kinds of sizes */

/* Interns classes, so that equal shapes share one. */
typedef struct class_table {
    td_arena *a;
    plan_class *items;
    size_t n, cap;
    uint32_t *slots; /* open addressing, index + 1 */
    size_t n_slots;
    uint32_t latest[CLASS_KINDS]; /* found last of each kind: the next task is often alike */
} class_table;

/* A table over the classes of `from`; interning gives the index of an equal class, or of a new one;
 * closing puts all of them into the plan. Errors: TD_ENOMEM. */
TD_MUST_USE td_status class_table_open(class_table *t, td_arena *a, const plan *from, td_err *err);
TD_MUST_USE td_status class_intern(class_table *t, const plan_class *c, uint32_t *out, td_err *err);
void class_table_close(const class_table *t, plan *p);

/* Tokens of a slice and before it, per sequence. */
void lower_slice(const lowering *l, int32_t m, int32_t k, int32_t *len, int32_t *prefix);

static inline uint32_t lower_rank(const lowering *l, int32_t row, int32_t replica)
{
    return (uint32_t)(row * l->replicas + replica);
}

static inline uint32_t lower_inst(const lowering *l, int32_t m, int32_t stage)
{
    return (uint32_t)(l->s->microbatch_pipe[m] * l->s->n_stages + stage);
}

/* Shards of the tables where the vocabulary is sharded: one a row, behind the stages' instances. */
static inline int32_t lower_shards(const lowering *l)
{
    return l->s->vocab == VOCAB_NONE ? 0 : l->s->n_rows;
}

static inline uint32_t lower_shard_inst(const lowering *l, int32_t row)
{
    return (uint32_t)(l->s->n_pipes * l->s->n_stages + row);
}

/* The total order in which everything can happen: levels first, rows break ties. A message or
 * collective that is placed right before its first consumer in this order, and streams that keep
 * this order, cannot deadlock (lower_comm.c says why). */
static inline uint64_t lower_when(const lowering *l, uint32_t node, int32_t row)
{
    return (uint64_t)l->ix->level[node] << 24 | (uint32_t)row;
}

/* The first node of `row` that is behind `when` in the total order, or NODE_NONE. */
uint32_t lower_first_behind(const lowering *l, int32_t row, uint64_t when);

/* The compute task of a node on the rank of a replica, or PLAN_NONE for NODE_NONE. */
static inline uint32_t lower_task(const lowering *l, const plan *p, uint32_t node, int32_t row,
                                  int32_t replica)
{
    if (node == NODE_NONE) return PLAN_NONE;
    return plan_compute(p, lower_rank(l, row, replica))->first_task + node - l->ix->row_first[row];
}

/* The degree of each row, and the degree that unit times and --tp mean, which is that of the
 * backward rows. Errors: TD_EUSAGE for degrees that do not fit each other or the rows. */
TD_MUST_USE td_status lower_roles(const schedule *s, int32_t tp, td_arena *a, int32_t **row_tp,
                                  int32_t *run_tp, td_err *err);
/* Bytes of `kind` for a stage on a row, at the row's tensor-parallel degree. */
TD_MUST_USE td_status lower_bytes(const lowering *l, size_kind kind, int32_t stage, int32_t row,
                                  int32_t slice_len, int32_t prefix, int64_t *bytes, td_err *err);

/* Whether the forward row of an instance is of another degree than its backward row, so that it
 * puts together what the backward row's shards send. */
bool lower_joins_shards(const lowering *l, const plan_inst *i);

/* Bytes of the tensor at the border before `stage` as a message between two rows. */
TD_MUST_USE td_status lower_message_bytes(const lowering *l, int32_t src_row, int32_t dst_row,
                                          int32_t stage, int32_t slice_len, int32_t prefix,
                                          int64_t *bytes, td_err *err);

/* A stream to be added, with its tasks in order. */
typedef struct new_stream {
    uint32_t rank;
    uint8_t kind;
    uint32_t channel;
    uint32_t first, n; /* of the array of new tasks */
} new_stream;

/* Appends streams and their tasks (new tasks get ids from in->n_tasks on, in the order given). */
TD_MUST_USE td_status lower_add_streams(td_arena *a, const plan *in, const new_stream *streams,
                                        uint32_t n_streams, const plan_task *tasks,
                                        uint32_t n_tasks, plan *out, td_err *err);

/* A compute task to be put before position `at` of a rank's compute stream; its place among the
 * positions of `in`. */
typedef struct insertion {
    uint32_t at;
    uint8_t kind; /* task_kind */
} insertion;

/* Puts n tasks into each rank's compute stream: items[rank * n ...], ascending by `at`. Their class
 * names the rank's row. Gates, joins and links are carried along (lower_insert.c). */
TD_MUST_USE td_status lower_insert(const lowering *l, const plan *in, const insertion *items,
                                   uint32_t n, plan *out, td_err *err);

/* Post-validation, behind step: where the last step is verified, what is repeated when that fails,
 * and the two chains of messages that carry the norm (lower_validate.c). */
TD_MUST_USE td_status lower_validate(const lowering *l, const plan *in, plan *out, td_err *err);
/* Refuses what cannot be validated later: TD_EUSAGE says what would be legal. */
TD_MUST_USE td_status lower_check_validate(const schedule *s, const lower_options *o, td_err *err);

/* The passes. Each ensures that plan_check holds of its result. */
TD_MUST_USE td_status lower_place(const lowering *l, plan *out, td_err *err);
TD_MUST_USE td_status lower_comm(const lowering *l, const plan *in, plan *out, td_err *err);
TD_MUST_USE td_status lower_collect(const lowering *l, const plan *in, plan *out, td_err *err);
TD_MUST_USE td_status lower_step(const lowering *l, const plan *in, plan *out, td_err *err);
TD_MUST_USE td_status lower_memory(const lowering *l, const plan *in, plan *out, td_err *err);
TD_MUST_USE td_status lower_unfold(const lowering *l, const plan *in, plan *out, td_err *err);

#endif
