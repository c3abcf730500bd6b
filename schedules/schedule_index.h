/* Where each pass of a schedule stands, what it needs, and in which order everything can happen.
 * The checker and every lowering pass read schedules through this index. */
#ifndef SCHEDULES_SCHEDULE_INDEX_H
#define SCHEDULES_SCHEDULE_INDEX_H

#include "schedules/schedule.h"

#define NODE_NONE UINT32_MAX

/* A node is one compute task of a row: node = row_first[row] + position, a pair being one, and a
 * mark (a moment in the row that is no pass's end, see index_arrival) being one. Behind the rows'
 * nodes come barrier nodes, one per (barrier kind, microbatch, slice): "this vocabulary pass is
 * done on every row"; BARRIER_READY: every row has come to its S, which interlaced pipelines run at
 * once. */
typedef enum barrier_kind {
    BARRIER_S,
    BARRIER_T,
    BARRIER_E,
    BARRIER_READY,
    BARRIER_COUNT
} barrier_kind;

/* Where an action of a communication trail stands: before a node, and where in its row. NODE_NONE:
 * it is not there. */
typedef struct trail_place {
    uint32_t node, at;
} trail_place;

typedef struct sched_index {
    const schedule *s;
    uint32_t *row_first;           /* [n_rows + 1] */
    uint32_t n_nodes, n_all_nodes; /* without and with barriers */
    const sched_cell **cell;       /* [n_nodes] the first cell of each node; a mark's is CELL_IDLE
                                      and names the forward behind it */
    uint32_t *pos[PASS_COUNT];     /* node of a pass, NODE_NONE where absent; NULL: kind unused */
    uint32_t *level;       /* [n_all_nodes] 1 + length of the longest path to it; see weight_of */
    trail_place *trail[4]; /* of SEND_F, RECV_F, SEND_B, RECV_B by (stage, microbatch, slice);
                              NULL: no such action */
    /* Of disaggregated schedules with hand-offs, else NULL (schedule_handoff.c). */
    uint32_t *pipe_first; /* [n_pipes + 1] microbatches of the pipes before */
    uint32_t *forwards;   /* of each stage and pipe, in the order of their row */
    uint32_t *ordinal;    /* of a forward among those, by (stage, microbatch, slice) */
    uint32_t *arrival;    /* the mark before a forward, NODE_NONE where there is none */
} sched_index;

/* Builds the index; fails with TD_EPLAN on a pass that is doubled, out of range, or on a row that
 * its stage does not live on. */
TD_MUST_USE td_status sched_index_build(const schedule *s, td_arena *a, sched_index *out,
                                        td_err *err);
/* Fills level; fails with TD_EPLAN and the cycle of waits when the order cannot finish. */
TD_MUST_USE td_status sched_index_levels(sched_index *ix, td_arena *a, td_err *err);
/* All that sched_check checks; leaves the index, with levels. */
TD_MUST_USE td_status sched_check_index(const schedule *s, td_arena *a, sched_index *out,
                                        td_err *err);

static inline bool pass_is_sharded(pass_kind k) /* runs on every row */
{
    return k == PASS_S || k == PASS_T || k == PASS_E || k == PASS_G;
}

/* Cell of (stage, microbatch, slice) in a table; sharded passes are found by row instead. */
static inline size_t index_slot(const schedule *s, int32_t stage_or_row, int32_t m, int32_t k)
{
    return ((size_t)stage_or_row * (size_t)s->n_microbatches + (size_t)m) * (size_t)s->n_slices +
           (size_t)k;
}

static inline uint32_t index_find(const sched_index *ix, pass_kind kind, int32_t stage_or_row,
                                  int32_t m, int32_t k)
{
    return ix->pos[kind] == NULL ? NODE_NONE : ix->pos[kind][index_slot(ix->s, stage_or_row, m, k)];
}

/* The node that yields the input gradient: B, or I where backward is split. */
uint32_t index_find_backward(const sched_index *ix, int32_t stage, int32_t m, int32_t k);
uint32_t index_barrier(const sched_index *ix, barrier_kind b, int32_t m, int32_t k);
int32_t index_row(const sched_index *ix, uint32_t node);

static inline bool index_in_range(const schedule *s, const sched_cell *c)
{
    return c->stage < s->n_stages && c->microbatch >= 0 && c->microbatch < s->n_microbatches &&
           c->slice < s->n_slices;
}

/* --- schedule_trail.c --- */

/* Notes an action of a row, which stands at `place`; requires that what it names is in range. Fails
 * with TD_EPLAN where the schedule has no such message, or has it from here twice. */
TD_MUST_USE td_status trail_record(sched_index *ix, td_arena *a, int32_t row, const sched_cell *c,
                                   trail_place place, td_err *err);
/* Where an action stands; its node is NODE_NONE where there is none. */
trail_place trail_find(const sched_index *ix, cell_kind action, int32_t stage, int32_t m,
                       int32_t k);
static inline bool trail_exists(const sched_index *ix)
{
    return ix->trail[0] != NULL || ix->trail[1] != NULL || ix->trail[2] != NULL ||
           ix->trail[3] != NULL;
}
/* Does the trail name each message between rows once at both ends, behind the pass that makes it
 * and before the pass that needs it, in one order at both ends of a channel? A schedule without
 * actions has no trail. Requires complete passes. Errors: TD_EPLAN with row, action and rule. */
TD_MUST_USE td_status trail_check(const sched_index *ix, td_arena *a, td_err *err);

/* --- schedule_handoff.c --- */

/* Fills what the other functions here read; called before nodes are numbered. */
TD_MUST_USE td_status handoff_build(sched_index *ix, td_arena *a, td_err *err);
/* Whether something leaves when the input of this cell has arrived, so that a mark precedes it. */
bool handoff_is_marked(const sched_index *ix, const sched_cell *c);
/* The mark at which the input of (stage, m, k) has arrived on its forward row, or NODE_NONE. */
uint32_t index_arrival(const sched_index *ix, int32_t stage, int32_t m, int32_t k);

/* The node after which the input of (stage, m, k) leaves for the stage's backward row, and the row
 * that sends it: direct, the previous stage's forward; lagged, on the stage's own forward row, the
 * arrival of the input `credits` microbatches later, or the last forward. Requires stage > 0. */
uint32_t index_handoff(const sched_index *ix, int32_t stage, int32_t m, int32_t k, int32_t *row);
/* Where the sender waits until that hand-off has been taken: false when credits do not bound it;
 * else *join is a forward of the sender, NODE_NONE: the end of its row. Requires stage > 0. */
bool index_handoff_bound(const sched_index *ix, int32_t stage, int32_t m, int32_t k,
                         uint32_t *join);
/* The recompute whose hand-off the forward of (stage, m, k) waits for, or NODE_NONE. */
uint32_t index_credit(const sched_index *ix, int32_t stage, int32_t m, int32_t k);

/* The nodes that a pass needs, in a fixed order; returns how many (at most 8). Entries may be
 * NODE_NONE where a needed pass does not exist, which sched_check reports. */
enum { NEEDS_MAX = 8 };
int index_needs(const sched_index *ix, const sched_cell *c, int32_t row, uint32_t needs[NEEDS_MAX]);

/* "row 2: 1F7.0" */
void index_node_text(const sched_index *ix, uint32_t node, td_text *out);

#endif
