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
    uint32_t *near;          /* [in->n_groups] the first of neighbours, where there are some */
    uint32_t *coll;          /* [in->n_colls] of shard 0, or of all */
    class_table classes;
    uint32_t n_tasks, n_uses; /* written */
} unfold;

/* Which shards a collective of ranks that stand for theirs is of: those of one number, all of them,
 * or neighbours that hold the same. */
typedef enum unfold_meeting { MEET_LIKE, MEET_ALL, MEET_NEAR, MEETINGS } unfold_meeting;

static inline unfold_meeting unfold_meeting_of(const plan *p, const plan_task *t)
{
    const plan_class *const c = &p->classes[t->cls];
    if (t->kind != TASK_COLL) return MEET_LIKE;
    if (c->purpose == PURPOSE_SHARD_GRADS) return c->slice_len > 0 ? MEET_NEAR : MEET_ALL;
    return c->purpose == PURPOSE_NORM ? MEET_ALL : MEET_LIKE;
}

/* The group in which a shard does a collective of group g of before. */
static inline uint32_t unfold_group_of(const unfold *u, uint32_t g, const plan_task *t,
                                       uint32_t shard)
{
    switch (unfold_meeting_of(u->in, t)) {
    case MEET_ALL: return u->apart[g];
    case MEET_NEAR: return u->near[g] + shard / (uint32_t)u->in->classes[t->cls].slice_len;
    default: return u->group[g] + shard;
    }
}

/* The cuts of a pass. */
TD_MUST_USE td_status unfold_cuts_of(unfold *u, const plan_member *m, class_cuts **out,
                                     td_err *err);
/* The passes of a compute task: none, one, or the two of an overlapped cell, which shards run one
 * behind the other, in cell order. */
int unfold_passes_of(const plan *p, uint32_t task, plan_member out[2]);
/* Numbers all tasks: how many each rank's shards have, and where each one of before comes to be. */
TD_MUST_USE td_status unfold_number(unfold *u, td_err *err);

/* How many messages one message of a rank becomes on each of its shards: a rank of fewer shards
 * than the other end talks to several of them. */
static inline uint32_t unfold_copies(const unfold *u, uint32_t rank, uint32_t other)
{
    const uint32_t own = (uint32_t)u->in->ranks[rank].tp, its = (uint32_t)u->in->ranks[other].tp;
    return its > own ? its / own : 1;
}

/* Channels from shard to shard of one number; of rows of unequal degrees, of every shard. */
TD_MUST_USE td_status unfold_channels(unfold *u, td_err *err);
/* For each group one of each shard, where all its ranks have equally many, one of all (for the
 * norm), and those of neighbours where some meet; for each rank one of its shards. */
TD_MUST_USE td_status unfold_groups(unfold *u, td_err *err);
/* Numbers the collectives and makes room for their members, which come with the tasks. */
TD_MUST_USE td_status unfold_colls(unfold *u, td_err *err);

#endif
