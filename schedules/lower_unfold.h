/* Inside the pass shards: from ranks that stand for all their shards to the shards. */
#ifndef SCHEDULES_LOWER_UNFOLD_H
#define SCHEDULES_LOWER_UNFOLD_H

#include "costmodel/segments.h"
#include "schedules/lower.h"

/* The cuts of a class of passes. */
typedef struct class_cuts {
    pass_cut *cuts;
    int32_t n;
    bool known;
} class_cuts;

/* Of a rank before: its shards are ranks `first` and following, each with the tasks [0, n_tasks)
 * from `tasks` on, one shard behind the other. */
typedef struct old_rank {
    uint32_t first, shards, tasks, n_tasks, n_streams, n_cuts;
    uint32_t cut_group, first_cut; /* the group of its shards, the collective of its first cut */
} old_rank;

typedef struct unfold {
    const lowering *l;
    const plan *in;
    plan *out;
    class_cuts (*cuts)[2];   /* [n_classes] with whole and split backwards */
    old_rank *ranks;         /* [in->n_ranks] */
    uint32_t *rank_of;       /* [in->n_tasks] */
    uint32_t *first, *last;  /* [in->n_tasks] of a task's segments, among its rank's tasks */
    uint32_t *stride;        /* [in->n_tasks] from a message to its like with the next shard */
    uint32_t *channel;       /* [in->n_channels] of shard 0 */
    uint32_t *group, *apart; /* [in->n_groups] of shard 0; of all shards together */
    uint32_t *coll;          /* [in->n_colls] of shard 0, or of all */
    class_table classes;
    uint32_t n_tasks, n_uses; /* written */
} unfold;

/* Whether the shards of all members meet, not only those of one number. */
static inline bool unfold_is_of_all(const plan *p, const plan_task *t)
{
    const uint8_t purpose = p->classes[t->cls].purpose;
    return t->kind == TASK_COLL && (purpose == PURPOSE_NORM || purpose == PURPOSE_NORM_GRADS);
}

/* How many messages one message of a rank becomes on each of its shards: a rank of fewer shards
 * than the other end talks to several of them. */
static inline uint32_t unfold_copies(const unfold *u, uint32_t rank, uint32_t other)
{
    const uint32_t own = (uint32_t)u->in->ranks[rank].tp, its = (uint32_t)u->in->ranks[other].tp;
    return its > own ? its / own : 1;
}

/* Channels from shard to shard of one number; of rows of unequal degrees, of every shard. */
TD_MUST_USE td_status unfold_channels(unfold *u, td_err *err);
/* For each group one of each shard, where all its ranks have equally many, and one of all (for the
 * norm); for each rank one of its shards. */
TD_MUST_USE td_status unfold_groups(unfold *u, td_err *err);
/* Numbers the collectives and makes room for their members, which come with the tasks. */
TD_MUST_USE td_status unfold_colls(unfold *u, td_err *err);

#endif
