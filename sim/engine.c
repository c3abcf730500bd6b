/* The engine. Begin of a task is the maximum of ends: of its predecessor on the stream, of its
 * gate, of what joins on it, of its peer. Without shared links nothing else matters, so the engine
 * needs no event queue: it lets every rank run as far as it can and wakes a rank when something
 * that it waits for has an end, in any order, and the times are the same. Where flows share links,
 * order matters, and only there a queue keeps it (network.c): once no rank can go on, the next flow
 * to end is the next event, because everything still unknown waits for some flow. */
#include "sim/engine_inside.h"

#include <string.h>

static void wake(engine *e, uint32_t rank)
{
    front *const f = &e->fronts[rank];
    if (f->queued) return;
    f->queued = true;
    uint32_t at = e->queue_head + e->queue_n;
    if (at >= e->p->n_ranks) at -= e->p->n_ranks;
    e->queue[at] = rank;
    e->queue_n++;
}

static lane *lane_of(const engine *e, uint32_t task)
{
    return &e->lanes[e->state[task] & ~STATE_POSTED];
}

/* --- what a task does when it ends --- */

static void settle(engine *e, uint32_t task, int64_t begin, int64_t end)
{
    const plan_task *const t = &e->tasks[task];
    e->begin[task] = begin;
    e->end[task] = end;
    if (!engine_joins(e, t)) return;
    const uint32_t c = t->join;
    if (e->begin[c] < end) e->begin[c] = end;
    if (--e->state[c] > 0) return;
    const uint32_t rank = lane_of(e, task)->rank;
    if (e->fronts[rank].next == c) wake(e, rank);
}

static void lane_step(engine *e, lane *l)
{
    l->next++;
    lane_load(e, l);
}

static void release(engine *e, uint32_t task, int64_t end)
{
    lane *const l = lane_of(e, task);
    l->free_ns = end;
    lane_step(e, l);
    wake(e, l->rank);
}

/* --- messages --- */

static td_status price_of(engine *e, uint32_t send, message_cost *out, td_err *err)
{
    const plan_task *const t = &e->tasks[send];
    if (e->pairs == NULL) {
        *out = (message_cost){.latency_ns = e->class_ns[t->cls]};
        return TD_OK;
    }
    const uint32_t src = lane_of(e, send)->rank, dst = lane_of(e, t->link)->rank;
    const uint32_t hash = (src * 0x9e3779b1u ^ dst * 0x85ebca77u) + t->cls * 0xc2b2ae3du;
    price *const slot = &e->prices[hash >> 20 & (PRICE_SLOTS - 1)];
    if (slot->cls_plus_1 != t->cls + 1 || slot->src != src || slot->dst != dst) {
        TD_TRY(cost_message(e->pairs, sim_device_of(e->p, src), sim_device_of(e->p, dst),
                            e->p->classes[t->cls].bytes, &slot->cost, err));
        if (slot->cost.latency_ns > e->longest_ns || slot->cost.transfer_ns > e->longest_ns)
            return td_fail(err, TD_EUSAGE,
                           "a message of %lld bytes takes longer than the clock "
                           "can count",
                           (long long)e->p->classes[t->cls].bytes);
        slot->src = src;
        slot->dst = dst;
        slot->cls_plus_1 = t->cls + 1;
    }
    *out = slot->cost;
    return TD_OK;
}

static void message_done(engine *e, uint32_t send, int64_t begin, int64_t end)
{
    const uint32_t recv = e->tasks[send].link;
    settle(e, send, begin, end);
    settle(e, recv, begin, end);
    if (!e->rendezvous) return;
    release(e, send, end);
    release(e, recv, end);
}

static td_status message_start(engine *e, uint32_t send, int64_t begin, td_err *err)
{
    message_cost c = {0};
    TD_TRY(price_of(e, send, &c, err));
    if (e->net == NULL || c.transfer_ns == 0) {
        message_done(e, send, begin, begin + c.latency_ns + c.transfer_ns);
        return TD_OK;
    }
    e->begin[send] = begin;
    const int32_t src = sim_device_of(e->p, lane_of(e, send)->rank);
    const int32_t dst = sim_device_of(e->p, lane_of(e, e->tasks[send].link)->rank);
    return network_add(e->net, send, src, dst, begin, c.transfer_ns, err);
}

/* The last bytes leave the links at `left`; the latency is still to come. */
static td_status message_left(engine *e, uint32_t send, int64_t left, td_err *err)
{
    message_cost c = {0};
    TD_TRY(price_of(e, send, &c, err));
    message_done(e, send, e->begin[send], left + c.latency_ns);
    return TD_OK;
}

/* --- heads of streams --- */

static void meet(engine *e, uint32_t task, int64_t ready)
{
    const uint32_t index = e->tasks[task].link;
    const plan_coll *const coll = &e->p->colls[index];
    meeting *const m = &e->meetings[index];
    if (m->ready_ns < ready) m->ready_ns = ready;
    if (--m->missing > 0) return;
    const uint32_t *const members = &e->p->coll_tasks[coll->first_task];
    const uint32_t n = e->p->groups[coll->group].n_members;
    const int64_t end = m->ready_ns + e->class_ns[e->tasks[members[0]].cls];
    for (uint32_t i = 0; i < n; i++) {
        settle(e, members[i], m->ready_ns, end);
        if (!engine_is_free(e, &e->tasks[task])) release(e, members[i], end);
    }
}

static td_status post(engine *e, lane *l, td_err *err)
{
    const uint32_t task = lane_head(l);
    const plan_task *const t = &e->tasks[task];
    if (e->live != NULL && e->live->post != NULL)
        TD_TRY(e->live->post(e->live->self, l->rank, task, err));
    const int64_t gate_ns = t->gate == PLAN_NONE ? 0 : e->end[t->gate];
    const int64_t ready = gate_ns > l->free_ns ? gate_ns : l->free_ns;
    if (t->kind != TASK_COLL && !e->rendezvous) {
        lane_step(e, l);
        return t->kind == TASK_SEND ? message_start(e, task, gate_ns, err) : TD_OK;
    }
    if (engine_is_free(e, t)) {
        lane_step(e, l);
        meet(e, task, gate_ns);
        return TD_OK;
    }
    l->needs = LANE_STILL;
    if (t->kind == TASK_COLL) {
        meet(e, task, ready);
        return TD_OK;
    }
    e->begin[task] = ready;
    e->state[task] |= STATE_POSTED;
    if (!(e->state[t->link] & STATE_POSTED)) return TD_OK;
    const int64_t other = e->begin[t->link];
    return message_start(e, t->kind == TASK_SEND ? task : t->link, ready > other ? ready : other,
                         err);
}

/* --- ranks --- */

static void compute_ahead(engine *e, front *f)
{
    uint32_t c = f->next;
    int64_t clock = f->clock_ns;
    for (; c < f->end && e->state[c] == 0; c++) {
        if (e->begin[c] < clock) e->begin[c] = clock;
        clock = e->begin[c] + e->class_ns[e->tasks[c].cls];
        e->end[c] = clock;
    }
    f->next = c;
    f->clock_ns = clock;
}

/* What a compute task takes, measured now where tasks are live. */
static td_status duration(const engine *e, uint32_t rank, uint32_t task, int64_t *ns, td_err *err)
{
    *ns = e->class_ns[e->tasks[task].cls];
    if (e->live == NULL) return TD_OK;
    TD_TRY(e->live->compute(e->live->self, rank, task, *ns, ns, err));
    if (*ns >= 0 && *ns <= e->longest_ns) return TD_OK;
    return td_fail(err, TD_EUSAGE, "times overflow: a task of %lld ns", (long long)*ns);
}

/* On shared cores a task that takes time ends when the network says so. */
static td_status compute_shared(engine *e, front *f, uint32_t rank, td_err *err)
{
    for (; !f->at_work && f->next < f->end && e->state[f->next] == 0; f->next++) {
        const uint32_t c = f->next;
        int64_t ns = 0;
        TD_TRY(duration(e, rank, c, &ns, err));
        if (e->begin[c] < f->clock_ns) e->begin[c] = f->clock_ns;
        e->end[c] = f->clock_ns = e->begin[c];
        if (ns == 0) continue;
        f->at_work = true;
        e->state[c] = rank;
        return network_add_work(e->net, c, sim_device_of(e->p, rank), e->begin[c], ns, err);
    }
    return TD_OK;
}

static void compute_done(engine *e, uint32_t task, int64_t end)
{
    const uint32_t rank = e->state[task];
    front *const f = &e->fronts[rank];
    e->end[task] = f->clock_ns = end;
    f->at_work = false;
    f->next++;
    wake(e, rank);
}

/* The rank whose next compute task can begin, and does so first; false when there is none. */
static bool first_to_begin(const engine *e, uint32_t *rank, int64_t *begin_ns)
{
    bool found = false;
    for (uint32_t r = 0; r < e->p->n_ranks; r++) {
        const front *const f = &e->fronts[r];
        if (f->next == f->end || e->state[f->next] != 0) continue;
        const int64_t at = e->begin[f->next] > f->clock_ns ? e->begin[f->next] : f->clock_ns;
        if (found && at >= *begin_ns) continue;
        found = true;
        *rank = r;
        *begin_ns = at;
    }
    return found;
}

static td_status compute_live(engine *e, uint32_t rank, int64_t begin_ns, td_err *err)
{
    front *const f = &e->fronts[rank];
    int64_t ns = 0;
    TD_TRY(duration(e, rank, f->next, &ns, err));
    e->begin[f->next] = begin_ns;
    e->end[f->next++] = f->clock_ns = begin_ns + ns;
    wake(e, rank);
    return TD_OK;
}

static td_status run_rank(engine *e, uint32_t rank, td_err *err)
{
    front *const f = &e->fronts[rank];
    if (e->shared)
        TD_TRY(compute_shared(e, f, rank, err));
    else if (e->live == NULL)
        compute_ahead(e, f);
    for (uint32_t i = f->first_lane; i < f->end_lane; i++)
        while (e->lanes[i].needs <= f->next) TD_TRY(post(e, &e->lanes[i], err));
    return TD_OK;
}

static td_status run_all(engine *e, td_err *err)
{
    for (uint32_t r = 0; r < e->p->n_ranks; r++) wake(e, r);
    for (;;) {
        while (e->queue_n > 0) {
            const uint32_t rank = e->queue[e->queue_head];
            e->queue_head = e->queue_head + 1 == e->p->n_ranks ? 0 : e->queue_head + 1;
            e->queue_n--;
            e->fronts[rank].queued = false;
            TD_TRY(run_rank(e, rank, err));
        }
        uint32_t task = 0, rank = 0;
        int64_t now = 0, until = INT64_MAX;
        const bool live = e->live != NULL && !e->shared && first_to_begin(e, &rank, &until);
        if (e->net == NULL || !network_next(e->net, until, &task, &now)) {
            if (!live) return TD_OK;
            TD_TRY(compute_live(e, rank, until, err));
        } else if (e->tasks[task].kind == TASK_SEND) {
            TD_TRY(message_left(e, task, now, err));
        } else {
            compute_done(e, task, now);
        }
    }
}

td_status sim_run(const plan *p, const int64_t *class_ns, const sim_options *o, td_arena *a,
                  task_times *out, sim_stats *stats, td_err *err)
{
    td_arena *const scratch = td_arena_new();
    if (scratch == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    if (out->begin_ns == NULL)
        out->begin_ns = TD_NEW_N(a, int64_t, p->n_tasks);
    else
        memset(out->begin_ns, 0, p->n_tasks * sizeof *out->begin_ns);
    if (out->end_ns == NULL) out->end_ns = TD_NEW_N(a, int64_t, p->n_tasks);
    engine e = {.p = p,
                .tasks = p->tasks,
                .class_ns = class_ns,
                .begin = out->begin_ns,
                .end = out->end_ns,
                .rendezvous = o->protocol == PROTOCOL_RENDEZVOUS,
                .live = o->live};
    if (o->cost != NULL && o->cost->units == NULL) e.pairs = o->cost;
    td_status st = out->begin_ns == NULL || out->end_ns == NULL
                       ? td_fail(err, TD_ENOMEM, "out of memory for times of %u tasks", p->n_tasks)
                       : engine_load(&e, o, scratch, err);
    if (st == TD_OK) st = run_all(&e, err);
    if (st == TD_OK) st = engine_verdict(&e, err);
    if (st == TD_OK && stats != NULL) {
        *stats = (sim_stats){.scratch_bytes = td_arena_used(scratch)};
        if (e.net != NULL) stats->flows = network_flows(e.net);
        if (e.net != NULL) stats->shared_flows = network_shared_flows(e.net);
        for (uint32_t i = 0; i < p->n_tasks; i++)
            if (out->end_ns[i] > stats->end_ns) stats->end_ns = out->end_ns[i];
    }
    td_arena_free(scratch);
    return st;
}
