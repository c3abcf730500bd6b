/* Setting an engine up, and its verdict. */
#include "sim/engine_inside.h"

#include <stdlib.h>

static int by_key(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Whether a task off the compute stream has to be there for what it belongs to. */
static bool takes_part(const engine *e, const plan_task *t)
{
    if (e->live != NULL || t->kind == TASK_SEND) return true;
    return t->kind == TASK_COLL && (!engine_is_free(e, t) || !engine_gets_only(e, t));
}

/* In eager a send leaves once its gate has ended, whatever is before it on its stream, and the
 * network must hear of it in time: so its stream's tasks go by gate. Receives do nothing there but
 * say that they are posted. What holds the stream stays in order. */
static td_status order_by_gate(const engine *e, const plan_stream *s, td_arena *scratch, lane *l,
                               td_err *err)
{
    bool sorted = s->kind == STREAM_SEND || s->kind == STREAM_RECV;
    for (uint32_t t = s->first_task + 1; t < s->first_task + s->n_tasks && sorted; t++)
        sorted = e->tasks[t - 1].gate + 1 <= e->tasks[t].gate + 1; /* PLAN_NONE comes first */
    if (sorted) return TD_OK;
    uint64_t *const keys = TD_NEW_N(scratch, uint64_t, s->n_tasks);
    uint32_t *const order = TD_NEW_N(scratch, uint32_t, s->n_tasks);
    if (keys == NULL || order == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory to simulate %u tasks", e->p->n_tasks);
    l->next = l->end = 0;
    uint32_t held = 0; /* the last gate of what holds the stream */
    for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++) {
        const uint32_t gate = e->tasks[t].gate + 1;
        const bool holds = e->tasks[t].kind == TASK_COLL && !engine_is_free(e, &e->tasks[t]);
        if (holds && gate > held) held = gate;
        if (takes_part(e, &e->tasks[t])) keys[l->end++] = (uint64_t)(holds ? held : gate) << 32 | t;
    }
    qsort(keys, l->end, sizeof *keys, by_key);
    for (uint32_t i = 0; i < l->end; i++) order[i] = (uint32_t)keys[i];
    l->order = order;
    return TD_OK;
}

static td_status load_rank(engine *e, uint32_t r, td_arena *scratch, td_err *err)
{
    const plan *const p = e->p;
    const plan_rank *const rank = &p->ranks[r];
    const plan_stream *const compute = plan_compute(p, r);
    e->fronts[r] = (front){.next = compute->first_task,
                           .end = compute->first_task + compute->n_tasks,
                           .first_lane = rank->first_stream + 1,
                           .end_lane = rank->first_stream + rank->n_streams};
    for (uint32_t i = e->fronts[r].first_lane; i < e->fronts[r].end_lane; i++) {
        const plan_stream *const s = &p->streams[i];
        e->lanes[i] = (lane){.next = s->first_task, .end = s->first_task + s->n_tasks, .rank = r};
        for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++) {
            e->state[t] = i;
            if (engine_joins(e, &p->tasks[t])) e->state[p->tasks[t].join]++;
        }
        if (s->kind == STREAM_RECV && !e->rendezvous && e->live == NULL)
            e->lanes[i].next = e->lanes[i].end;
        const bool free = s->n_tasks > 0 && engine_is_free(e, &p->tasks[s->first_task]);
        if ((s->kind != STREAM_COLL || free) && !e->rendezvous &&
            e->lanes[i].next < e->lanes[i].end)
            TD_TRY(order_by_gate(e, s, scratch, &e->lanes[i], err));
        lane_load(e, &e->lanes[i]);
    }
    return TD_OK;
}

static td_status check_range(engine *e, td_err *err)
{
    e->longest_ns = INT64_MAX / 8 / ((int64_t)e->p->n_tasks + 1);
    for (uint32_t i = 0; i < e->p->n_classes; i++)
        if (e->class_ns[i] < 0 || e->class_ns[i] > e->longest_ns)
            return td_fail(err, TD_EUSAGE,
                           "times overflow: a task of %lld ns, in a plan of %u "
                           "tasks; give smaller times",
                           (long long)e->class_ns[i], e->p->n_tasks);
    return TD_OK;
}

td_status engine_load(engine *e, const sim_options *o, td_arena *scratch, td_err *err)
{
    const plan *const p = e->p;
    TD_TRY(check_range(e, err));
    e->state = TD_NEW_N(scratch, uint32_t, p->n_tasks);
    e->lanes = TD_NEW_N(scratch, lane, p->n_streams);
    e->fronts = TD_NEW_N(scratch, front, p->n_ranks);
    e->meetings = TD_NEW_N(scratch, meeting, p->n_colls);
    e->queue = TD_NEW_N(scratch, uint32_t, p->n_ranks);
    if (e->pairs != NULL) e->prices = TD_NEW_N(scratch, price, PRICE_SLOTS);
    if (e->state == NULL || e->lanes == NULL || e->fronts == NULL || e->meetings == NULL ||
        e->queue == NULL || (e->pairs != NULL && e->prices == NULL))
        return td_fail(err, TD_ENOMEM, "out of memory to simulate %u tasks", p->n_tasks);
    for (uint32_t i = 0; i < p->n_colls; i++)
        for (uint32_t j = 0; j < p->groups[p->colls[i].group].n_members; j++)
            e->meetings[i].missing +=
                takes_part(e, &p->tasks[p->coll_tasks[p->colls[i].first_task + j]]);
    for (uint32_t r = 0; r < p->n_ranks; r++) TD_TRY(load_rank(e, r, scratch, err));
    if (e->pairs == NULL || e->pairs->cluster == NULL) return TD_OK;
    int32_t last = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++)
        if (sim_device_of(p, r) > last) last = sim_device_of(p, r);
    const int32_t copies = (p->folded_dp ? p->dp : 1) * (p->folded_tp ? p->tp : 1);
    TD_TRY(network_open(e->pairs->cluster, last + 1, copies, scratch, &e->net, err));
    e->shared = o->slowdown != NULL;
    return e->shared ? network_share_cores(e->net, o->slowdown, o->n_slowdown, err) : TD_OK;
}

td_status engine_verdict(const engine *e, td_err *err)
{
    const plan *const p = e->p;
    td_text waits = {0};
    int named = 0;
    uint32_t stuck = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        const front *const f = &e->fronts[r];
        uint32_t task = f->next < f->end ? f->next : PLAN_NONE;
        for (uint32_t i = f->first_lane; i < f->end_lane && task == PLAN_NONE; i++)
            if (e->lanes[i].next < e->lanes[i].end) task = lane_head(&e->lanes[i]);
        if (task == PLAN_NONE) continue;
        stuck++;
        if (named++ >= 3) continue;
        td_text_add(&waits, named > 1 ? ", " : "");
        plan_task_text(p, task, &waits);
    }
    const td_status st =
        stuck == 0 ? TD_OK
                   : td_fail(err, TD_EPLAN, "deadlock: %u of %u ranks wait for ever, first at %s",
                             stuck, p->n_ranks, waits.s == NULL ? "?" : waits.s);
    td_text_free(&waits);
    return st;
}
