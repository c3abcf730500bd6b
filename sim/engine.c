/* The engine. Begin of a task is the maximum of ends: of its predecessor on the stream, of its
 * gate, of what joins on it, of its peer. Without shared links nothing else matters, so the engine
 * needs no event queue: it lets every rank run as far as it can and wakes a rank when something
 * that it waits for has an end, in any order, and the times are the same. Where flows share links,
 * order matters, and only there a queue keeps it (network.c): once no rank can go on, the next flow
 * to end is the next event, because everything still unknown waits for some flow. */
#include "sim/network.h"
#include "sim/sim.h"

#include <stdlib.h>
#include <string.h>

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

/* Whether a compute task waits for this one: a send that holds nothing blocks nobody. */
static bool joins(const engine *e, const plan_task *t)
{
    return t->join != PLAN_NONE && !(t->flags & TASK_FLAG_JOIN_NEXT) &&
           (t->kind != TASK_SEND || e->rendezvous);
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
    if (!joins(e, t)) return;
    const uint32_t c = t->join;
    if (e->begin[c] < end) e->begin[c] = end;
    if (--e->state[c] > 0) return;
    const uint32_t rank = lane_of(e, task)->rank;
    if (e->fronts[rank].next == c) wake(e, rank);
}

static uint32_t head_of(const lane *l) { return l->order == NULL ? l->next : l->order[l->next]; }

static void lane_load(const engine *e, lane *l)
{
    if (l->next == l->end) {
        l->needs = LANE_STILL;
        return;
    }
    const uint32_t gate = e->tasks[head_of(l)].gate;
    l->needs = gate == PLAN_NONE ? 0 : gate + 1;
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
    message_cost c;
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
    message_cost c;
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
        release(e, members[i], end);
    }
}

static td_status post(engine *e, lane *l, td_err *err)
{
    const uint32_t task = head_of(l);
    const plan_task *const t = &e->tasks[task];
    const int64_t gate_ns = t->gate == PLAN_NONE ? 0 : e->end[t->gate];
    const int64_t ready = gate_ns > l->free_ns ? gate_ns : l->free_ns;
    if (t->kind != TASK_COLL && !e->rendezvous) {
        lane_step(e, l);
        return t->kind == TASK_SEND ? message_start(e, task, gate_ns, err) : TD_OK;
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

/* On shared cores a task that takes time ends when the network says so. */
static td_status compute_shared(engine *e, front *f, uint32_t rank, td_err *err)
{
    for (; !f->at_work && f->next < f->end && e->state[f->next] == 0; f->next++) {
        const uint32_t c = f->next;
        const int64_t ns = e->class_ns[e->tasks[c].cls];
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

static td_status run_rank(engine *e, uint32_t rank, td_err *err)
{
    front *const f = &e->fronts[rank];
    if (e->shared)
        TD_TRY(compute_shared(e, f, rank, err));
    else
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
        uint32_t task = 0;
        int64_t now = 0;
        if (e->net == NULL || !network_next(e->net, &task, &now)) return TD_OK;
        if (e->tasks[task].kind == TASK_SEND)
            TD_TRY(message_left(e, task, now, err));
        else
            compute_done(e, task, now);
    }
}

/* --- set-up and verdict --- */

static int by_key(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* In eager a send leaves once its gate has ended, whatever is before it on its stream, and the
 * network must hear of it in time: so its stream's sends go by gate. Receives do nothing there. */
static td_status order_sends(const engine *e, const plan_stream *s, td_arena *scratch, lane *l,
                             td_err *err)
{
    bool sorted = s->kind == STREAM_SEND;
    for (uint32_t t = s->first_task + 1; t < s->first_task + s->n_tasks && sorted; t++)
        sorted = e->tasks[t - 1].gate + 1 <= e->tasks[t].gate + 1; /* PLAN_NONE comes first */
    if (sorted) return TD_OK;
    uint64_t *const keys = TD_NEW_N(scratch, uint64_t, s->n_tasks);
    uint32_t *const order = TD_NEW_N(scratch, uint32_t, s->n_tasks);
    if (keys == NULL || order == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory to simulate %u tasks", e->p->n_tasks);
    l->next = l->end = 0;
    for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++)
        if (e->tasks[t].kind == TASK_SEND)
            keys[l->end++] = (uint64_t)(e->tasks[t].gate + 1) << 32 | t;
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
            if (joins(e, &p->tasks[t])) e->state[p->tasks[t].join]++;
        }
        if (s->kind == STREAM_RECV && !e->rendezvous) e->lanes[i].next = e->lanes[i].end;
        if ((s->kind == STREAM_SEND || s->kind == STREAM_BOTH) && !e->rendezvous)
            TD_TRY(order_sends(e, s, scratch, &e->lanes[i], err));
        lane_load(e, &e->lanes[i]);
    }
    return TD_OK;
}

static td_status load(engine *e, const sim_options *o, td_arena *scratch, td_err *err)
{
    const plan *const p = e->p;
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
        e->meetings[i].missing = p->groups[p->colls[i].group].n_members;
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

/* Names the first waiting task of up to three ranks. */
static td_status verdict(const engine *e, td_err *err)
{
    const plan *const p = e->p;
    td_text waits = {0};
    int named = 0;
    uint32_t stuck = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        const front *const f = &e->fronts[r];
        uint32_t task = f->next < f->end ? f->next : PLAN_NONE;
        for (uint32_t i = f->first_lane; i < f->end_lane && task == PLAN_NONE; i++)
            if (e->lanes[i].next < e->lanes[i].end) task = head_of(&e->lanes[i]);
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
                .rendezvous = o->protocol == PROTOCOL_RENDEZVOUS};
    if (o->cost != NULL && o->cost->units == NULL) e.pairs = o->cost;
    td_status st = out->begin_ns == NULL || out->end_ns == NULL
                       ? td_fail(err, TD_ENOMEM, "out of memory for times of %u tasks", p->n_tasks)
                       : check_range(&e, err);
    if (st == TD_OK) st = load(&e, o, scratch, err);
    if (st == TD_OK) st = run_all(&e, err);
    if (st == TD_OK) st = verdict(&e, err);
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
