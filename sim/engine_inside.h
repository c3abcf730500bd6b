/* The engine's state, shared by its set-up and its run. */
#ifndef SIM_ENGINE_INSIDE_H
#define SIM_ENGINE_INSIDE_H

#include "sim/network.h"
#include "sim/sim.h"

#define LANE_STILL UINT32_MAX /* posted and waiting for a peer, or at its end */
#define STATE_POSTED 0x80000000u

/* A stream beside the compute stream. */
typedef struct lane {
    uint32_t next, end;    /* tasks, or places in `order` */
    const uint32_t *order; /* eager: its sends by gate, where the stream has another order */
    uint32_t needs;        /* its head may start once compute tasks below this id have ended */
    uint32_t rank;
    int64_t free_ns; /* end of the last task that held the stream */
} lane;

/* A rank, and its compute stream. */
typedef struct front {
    uint32_t next, end;
    uint32_t first_lane, end_lane;
    int64_t clock_ns;
    bool queued;
    bool at_work; /* on shared cores: its next task has begun */
} front;

typedef struct meeting {
    uint32_t missing;
    int64_t ready_ns;
} meeting;

enum { PRICE_SLOTS = 4096 };

typedef struct price {
    uint32_t src, dst, cls_plus_1;
    message_cost cost;
} price;

typedef struct engine {
    const plan *p;
    const plan_task *tasks;
    const int64_t *class_ns;
    const cost_model *pairs; /* NULL: messages are pure latencies */
    bool rendezvous;
    bool shared; /* ranks share cores: computing is a flow like a message */
    const sim_live *live;
    int64_t *begin, *end;
    uint32_t *state; /* compute: joins still missing, then its rank on shared cores; else: lane, and
                        whether it is posted */
    lane *lanes;     /* [n_streams]; those of compute streams stay empty */
    front *fronts;
    meeting *meetings;
    uint32_t *queue; /* ring of ranks that may be able to go on */
    uint32_t queue_head, queue_n;
    price *prices;
    network *net;
    int64_t longest_ns; /* no message may take longer, so that sums fit */
} engine;

/* Collectives of a microbatch are messages to and from many: in eager they hold no stream. Those of
 * a step queue on theirs. */
static inline bool engine_is_free(const engine *e, const plan_task *t)
{
    return t->kind == TASK_COLL && t->microbatch != PLAN_NONE && !e->rendezvous && e->live == NULL;
}

/* A member that gives and gets nothing: the root of a broadcast, the others of a reduction. */
static inline bool engine_gives_only(const engine *e, const plan_task *t)
{
    const plan_coll *const c = &e->p->colls[t->link];
    const uint8_t kind = e->p->classes[t->cls].detail;
    const bool root = &e->tasks[e->p->coll_tasks[c->first_task + c->root]] == t;
    return !(t->flags & TASK_FLAG_MEET) && (root ? kind == COLL_BROADCAST : kind == COLL_REDUCE);
}

/* A member that gets and gives nothing: it need not be there. */
static inline bool engine_gets_only(const engine *e, const plan_task *t)
{
    return !(t->flags & TASK_FLAG_MEET) && e->p->classes[t->cls].detail == COLL_BROADCAST &&
           !engine_gives_only(e, t);
}

/* Whether a compute task waits for this one: a send that holds nothing blocks nobody. */
static inline bool engine_joins(const engine *e, const plan_task *t)
{
    if (t->join == PLAN_NONE || (t->flags & TASK_FLAG_JOIN_NEXT)) return false;
    if (t->kind == TASK_SEND) return e->rendezvous;
    return !engine_is_free(e, t) || !engine_gives_only(e, t);
}

static inline uint32_t lane_head(const lane *l)
{
    return l->order == NULL ? l->next : l->order[l->next];
}

/* Says what the head of a stream needs before it may start. */
static inline void lane_load(const engine *e, lane *l)
{
    if (l->next == l->end) {
        l->needs = LANE_STILL;
        return;
    }
    const uint32_t gate = e->tasks[lane_head(l)].gate;
    l->needs = gate == PLAN_NONE ? 0 : gate + 1;
}

/* engine_load.c: state of a run that has not begun; refuses times that overflow. */
TD_MUST_USE td_status engine_load(engine *e, const sim_options *o, td_arena *scratch, td_err *err);
/* Did everything run? Else names the first waiting task of up to three ranks. */
TD_MUST_USE td_status engine_verdict(const engine *e, td_err *err);

#endif
