/* Does the plan compute the whole step? Each needed pass occurs exactly once, and what it needs is
 * there: produced earlier on its rank, or brought by a message that it waits for and that left
 * after the producer. */
#include "schedules/plan_check.h"

#include <string.h>

/* Tasks by (replica, stage, microbatch, slice). */
typedef enum flow_table {
    FLOW_F,
    FLOW_BACKWARD,
    FLOW_W,
    FLOW_R,
    FLOW_RECV_ACT,
    FLOW_RECV_GRAD,
    FLOW_RECV_HANDOFF,
    FLOW_TABLES
} flow_table;

typedef struct flow {
    const plan_map *m;
    const plan *p;
    size_t slots;
    uint32_t *task[FLOW_TABLES];
    uint8_t *whole; /* the backward of the slot is B, not I */
} flow;

static size_t slot_of(const flow *f, int32_t replica, int32_t stage, uint32_t m, uint32_t k)
{
    const plan *const p = f->p;
    return (((size_t)replica * (size_t)p->n_stages + (size_t)stage) * (size_t)p->n_microbatches +
            m) *
               (size_t)p->n_slices +
           k;
}

/* Each shard of each replica runs all passes; a rank of a lower degree runs those of several. */
static int32_t copy_of(const plan *p, uint32_t rank, int32_t *n)
{
    const int32_t shards = p->folded_tp ? 1 : p->tp;
    *n = p->folded_tp ? 1 : shards / p->ranks[rank].tp;
    return p->ranks[rank].replica * shards + p->ranks[rank].shard * *n;
}

/* A pass is known by its last segment. */
static uint32_t begin_of(const plan *p, uint32_t task)
{
    return task - p->classes[p->tasks[task].cls].segment;
}

/* Whether a task is the segment behind `before`. */
static bool goes_on(const plan *p, uint32_t before, uint32_t task)
{
    const plan_class *const a = &p->classes[p->tasks[before].cls];
    const plan_class *const b = &p->classes[p->tasks[task].cls];
    return task == before + 1 && b->segment == a->segment + 1 && b->segments == a->segments &&
           p->tasks[before].kind == p->tasks[task].kind;
}

static td_status enter(flow *f, flow_table table, size_t slot, uint32_t task, td_err *err)
{
    const uint32_t before = f->task[table][slot];
    const bool begins = f->p->classes[f->p->tasks[task].cls].segment == 0;
    if (before == PLAN_NONE && !begins)
        return check_fail(f->m, task, err, "its pass does not begin with its first segment");
    if (before != PLAN_NONE && !goes_on(f->p, before, task))
        return check_fail(f->m, task, err, begins ? "it occurs twice" : "a segment is missing");
    f->task[table][slot] = task;
    return TD_OK;
}

/* The same for all copies that the task's rank runs. */
static td_status enter_all(flow *f, flow_table table, int32_t stage, uint32_t m, uint32_t k,
                           uint32_t task, td_err *err)
{
    int32_t n = 0;
    const int32_t first = copy_of(f->p, map_rank(f->m, task), &n);
    for (int32_t i = first; i < first + n; i++)
        TD_TRY(enter(f, table, slot_of(f, i, stage, m, k), task, err));
    return TD_OK;
}

static td_status enter_pass(flow *f, uint32_t task, uint8_t kind, uint32_t cls, uint32_t m,
                            uint16_t k, td_err *err)
{
    const plan *const p = f->p;
    const plan_rank *const rank = &p->ranks[map_rank(f->m, task)];
    if (m >= (uint32_t)p->n_microbatches || k >= p->n_slices || p->classes[cls].inst >= p->n_insts)
        return check_fail(f->m, task, err, "no such microbatch, slice or stage");
    const plan_inst *const inst = &p->insts[p->classes[cls].inst];
    const int32_t home = kind == PASS_F ? inst->forward_row : inst->backward_row;
    if (kind <= PASS_R && home != rank->row)
        return check_fail(f->m, task, err, "its stage lives on another rank");
    int32_t n = 0;
    const int32_t first = copy_of(p, map_rank(f->m, task), &n);
    for (int32_t i = first; kind == PASS_B && i < first + n; i++)
        f->whole[slot_of(f, i, inst->stage, m, k)] = 1;
    switch ((pass_kind)kind) {
    case PASS_F: return enter_all(f, FLOW_F, inst->stage, m, k, task, err);
    case PASS_B:
    case PASS_I: return enter_all(f, FLOW_BACKWARD, inst->stage, m, k, task, err);
    case PASS_W: return enter_all(f, FLOW_W, inst->stage, m, k, task, err);
    case PASS_R: return enter_all(f, FLOW_R, inst->stage, m, k, task, err);
    default: return TD_OK;
    }
}

static td_status enter_task(flow *f, uint32_t task, td_err *err)
{
    const plan *const p = f->p;
    const plan_task *const t = &p->tasks[task];
    if (t->kind < PASS_COUNT)
        return enter_pass(f, task, t->kind, t->cls, t->microbatch, t->slice, err);
    if (t->kind == TASK_PAIR) {
        for (uint32_t i = t->link; i < t->link + 2; i++) {
            const plan_member *const m = &p->members[i];
            TD_TRY(enter_pass(f, task, m->kind, m->cls, m->microbatch, m->slice, err));
        }
        return TD_OK;
    }
    const plan_class *const c = &p->classes[t->cls];
    if (t->kind != TASK_RECV || c->detail == CHANNEL_WEIGHTS || t->microbatch == PLAN_NONE)
        return TD_OK;
    if (t->microbatch >= (uint32_t)p->n_microbatches || t->slice >= p->n_slices ||
        c->inst == PLAN_NONE)
        return check_fail(f->m, task, err, "no such microbatch, slice or stage");
    const flow_table table = c->detail == CHANNEL_ACT    ? FLOW_RECV_ACT
                             : c->detail == CHANNEL_GRAD ? FLOW_RECV_GRAD
                                                         : FLOW_RECV_HANDOFF;
    return enter_all(f, table, p->insts[c->inst].stage, t->microbatch, t->slice, task, err);
}

/* The tensor made by `producer` is there when `consumer` starts. */
static td_status check_arrival(const flow *f, uint32_t producer, uint32_t recv, uint32_t consumer,
                               td_err *err)
{
    const plan *const p = f->p;
    const uint32_t begin = begin_of(p, consumer);
    if (f->m->stream_of[producer] == f->m->stream_of[consumer])
        return producer < begin || producer == consumer
                   ? TD_OK
                   : check_fail(f->m, consumer, err,
                                "it comes before the pass whose result it needs");
    if (recv == PLAN_NONE)
        return check_fail(f->m, consumer, err, "no message brings the tensor it needs");
    const plan_task *const r = &p->tasks[recv];
    if (f->m->stream_of[recv] == f->m->stream_of[consumer] ||
        map_rank(f->m, recv) != map_rank(f->m, consumer) || r->join == PLAN_NONE ||
        r->join > begin || (r->flags & TASK_FLAG_JOIN_NEXT))
        return check_fail(f->m, consumer, err, "it does not wait for the tensor it needs");
    const uint32_t gate = p->tasks[r->link].gate;
    if (gate == PLAN_NONE || f->m->stream_of[gate] != f->m->stream_of[producer] || gate < producer)
        return check_fail(f->m, r->link, err, "it leaves before the pass that makes its tensor");
    return TD_OK;
}

/* A stage's input reaches its recompute on another row: from whoever made it, behind that pass, or
 * from a row that has received it, behind the task that waited for it. */
static td_status check_handoff(const flow *f, size_t slot, size_t before, td_err *err)
{
    const plan *const p = f->p;
    const uint32_t again = f->task[FLOW_R][slot], recv = f->task[FLOW_RECV_HANDOFF][slot];
    const uint32_t made = f->task[FLOW_F][before], got = f->task[FLOW_RECV_ACT][slot];
    if (f->m->stream_of[made] == f->m->stream_of[again]) /* the same row computes it */
        return check_arrival(f, made, PLAN_NONE, again, err);
    if (recv == PLAN_NONE)
        return check_fail(f->m, again, err, "no message brings the input it recomputes from");
    const plan_task *const r = &p->tasks[recv];
    if (map_rank(f->m, recv) != map_rank(f->m, again) || r->join == PLAN_NONE ||
        r->join > begin_of(p, again) || (r->flags & TASK_FLAG_JOIN_NEXT))
        return check_fail(f->m, again, err, "it does not wait for the input it recomputes from");
    const uint32_t from = map_rank(f->m, r->link), gate = p->tasks[r->link].gate;
    const uint32_t there = from == map_rank(f->m, made)                      ? made
                           : got != PLAN_NONE && from == map_rank(f->m, got) ? p->tasks[got].join
                                                                             : PLAN_NONE;
    if (there == PLAN_NONE || gate == PLAN_NONE || gate < there ||
        f->m->stream_of[gate] != f->m->stream_of[there])
        return check_fail(f->m, r->link, err, "it leaves before its tensor is there");
    return TD_OK;
}

static td_status missing(const flow *f, const char *what, int32_t stage, uint32_t m, uint32_t k,
                         td_err *err)
{
    return td_fail(err, TD_EPLAN, "%s of stage %d, microbatch %u, slice %u is missing (%d stages)",
                   what, stage, m, k, f->p->n_stages);
}

static td_status check_slot(const flow *f, int32_t replica, int32_t stage, uint32_t m, uint32_t k,
                            td_err *err)
{
    const plan *const p = f->p;
    const size_t s = slot_of(f, replica, stage, m, k);
    const size_t per_stage = (size_t)p->n_microbatches * (size_t)p->n_slices;
    const uint32_t fwd = f->task[FLOW_F][s], bwd = f->task[FLOW_BACKWARD][s];
    for (int t = FLOW_F; t <= FLOW_R; t++)
        if (f->task[t][s] != PLAN_NONE && !plan_ends_pass(p, &p->tasks[f->task[t][s]]))
            return check_fail(f->m, f->task[t][s], err, "its pass lacks its last segment");
    if (fwd == PLAN_NONE) return missing(f, "the forward", stage, m, k, err);
    if (bwd == PLAN_NONE) return missing(f, "the backward", stage, m, k, err);
    if (!f->whole[s] && f->task[FLOW_W][s] == PLAN_NONE)
        return missing(f, "the weight gradient", stage, m, k, err);
    if (f->whole[s] && f->task[FLOW_W][s] != PLAN_NONE)
        return check_fail(f->m, f->task[FLOW_W][s], err, "its backward is whole already");
    if (stage > 0)
        TD_TRY(
            check_arrival(f, f->task[FLOW_F][s - per_stage], f->task[FLOW_RECV_ACT][s], fwd, err));
    if (stage + 1 < p->n_stages)
        TD_TRY(check_arrival(f, f->task[FLOW_BACKWARD][s + per_stage], f->task[FLOW_RECV_GRAD][s],
                             bwd, err));
    const bool away = f->m->stream_of[fwd] != f->m->stream_of[bwd];
    const uint32_t again = f->task[FLOW_R][s];
    if (away && again == PLAN_NONE) return missing(f, "the recompute", stage, m, k, err);
    if (again != PLAN_NONE && again > bwd)
        return check_fail(f->m, bwd, err, "it comes before its recompute");
    if (away && stage > 0) TD_TRY(check_handoff(f, s, s - per_stage, err));
    if (!away && fwd >= bwd) return check_fail(f->m, bwd, err, "it comes before its forward");
    if (!f->whole[s] && f->task[FLOW_W][s] <= bwd)
        return check_fail(f->m, f->task[FLOW_W][s], err, "it comes before its input gradient");
    if (k > 0 && (f->task[FLOW_F][s - 1] >= fwd || f->task[FLOW_BACKWARD][s - 1] <= bwd))
        return check_fail(f->m, fwd, err,
                          "slices go forward in order and backward in reverse order");
    return TD_OK;
}

/* Between two segments of a pass its shards meet, and nowhere else. */
static td_status check_cuts(const flow *f, td_err *err)
{
    const plan *const p = f->p;
    int64_t cuts = 0;
    for (uint32_t t = 0; t < p->n_tasks; t++) {
        const plan_task *const k = &p->tasks[t];
        const plan_class *const c = &p->classes[k->cls];
        if (k->kind < PASS_COUNT && c->segment > 0) cuts++;
        if (k->kind != TASK_COLL || c->purpose != PURPOSE_SHARDS) continue;
        cuts--;
        if (k->gate == PLAN_NONE || k->join == PLAN_NONE || !goes_on(p, k->gate, k->join))
            return check_fail(f->m, t, err, "it is not between two segments of a pass");
    }
    return cuts == 0 ? TD_OK
                     : td_fail(err, TD_EPLAN, "%lld segments of passes do not wait for the shards",
                               (long long)cuts);
}

td_status check_flow(const plan_map *m, td_arena *a, td_err *err)
{
    const plan *const p = m->p;
    flow f = {.m = m, .p = p};
    int32_t replicas = 1;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        if (p->ranks[r].replica < 0 || p->ranks[r].replica >= p->dp)
            return td_fail(err, TD_EPLAN, "rank %u: no such replica", r);
        if (p->ranks[r].device < 0 || p->ranks[r].tp < 1)
            return td_fail(err, TD_EPLAN, "rank %u: device %d, tensor-parallel degree %d", r,
                           p->ranks[r].device, p->ranks[r].tp);
        if (p->ranks[r].shard < 0 || p->ranks[r].shard >= (p->folded_tp ? 1 : p->ranks[r].tp) ||
            p->tp % p->ranks[r].tp != 0)
            return td_fail(err, TD_EPLAN, "rank %u: no such shard", r);
        int32_t n = 0;
        const int32_t end = copy_of(p, r, &n) + n;
        if (end > replicas) replicas = end;
    }
    f.slots = slot_of(&f, replicas, 0, 0, 0);
    f.whole = TD_NEW_N(a, uint8_t, f.slots);
    bool ok = f.whole != NULL;
    for (int t = 0; t < FLOW_TABLES && ok; t++) {
        f.task[t] = TD_NEW_N(a, uint32_t, f.slots);
        ok = f.task[t] != NULL;
        if (ok) memset(f.task[t], 0xff, f.slots * sizeof(uint32_t));
    }
    if (!ok) return td_fail(err, TD_ENOMEM, "out of memory for the checker");
    for (uint32_t t = 0; t < p->n_tasks; t++) TD_TRY(enter_task(&f, t, err));
    TD_TRY(check_cuts(&f, err));
    for (int32_t d = 0; d < replicas; d++)
        for (int32_t s = 0; s < p->n_stages; s++)
            for (uint32_t mb = 0; mb < (uint32_t)p->n_microbatches; mb++)
                for (uint32_t k = 0; k < (uint32_t)p->n_slices; k++)
                    TD_TRY(check_slot(&f, d, s, mb, k, err));
    return TD_OK;
}
