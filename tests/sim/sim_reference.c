#include "sim_reference.h"

#include "schedules/schedule.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define UNKNOWN ((int64_t)-1)
#define FULL ((int64_t)1 << 20)

/* --- the network --- */

enum { FLOWS = 64, LINKS = 256, PATH = 4 };

/* A flow and what becomes of it. */
typedef struct wire_flow {
    uint32_t send; /* task */
    int links[PATH], n_links;
    int64_t start_ns, latency_ns, left, rate, end_ns;
    bool active, done;
} wire_flow;

typedef struct wires {
    wire_flow *flows;
    int n, n_links;
    int64_t room[LINKS]; /* of each link: equal shares are handed out in their order */
    int64_t now;
} wires;

/* A device's links within its node out and in, to others out and in; then two of each node. */
static void wires_open(wires *w, const cluster_desc *c, int n_devices)
{
    const int n_nodes = (n_devices - 1) / c->devices_per_node + 1;
    w->n_links = 4 * n_devices + 2 * n_nodes;
    assert_true(w->n_links <= LINKS);
    for (int l = 0; l < w->n_links; l++) {
        w->room[l] = FULL;
        if (l < 4 * n_devices || c->inter.bytes_per_s <= 0) continue;
        const double flows = c->node_network_bytes_per_s / c->inter.bytes_per_s;
        if (flows > 1) w->room[l] = (int64_t)(flows * (double)FULL);
    }
}

static void wires_path(wires *w, const cluster_desc *c, int n_devices, int src, int dst,
                       wire_flow *f)
{
    const int from = src / c->devices_per_node, to = dst / c->devices_per_node;
    const int far = from == to ? 0 : 2;
    f->links[f->n_links++] = 4 * src + far;
    f->links[f->n_links++] = 4 * dst + far + 1;
    if (far == 0 || c->node_network_bytes_per_s <= 0) return;
    f->links[f->n_links++] = 4 * n_devices + 2 * from;
    f->links[f->n_links++] = 4 * n_devices + 2 * to + 1;
    assert_true(f->links[3] < w->n_links);
}

static bool uses_link(const wire_flow *f, int link)
{
    for (int i = 0; i < f->n_links; i++)
        if (f->links[i] == link) return true;
    return false;
}

/* Progressive filling over everything: the link with the least for each of its flows gives it. */
static void wires_fill(wires *w)
{
    int64_t room[LINKS];
    memcpy(room, w->room, sizeof room);
    for (int i = 0; i < w->n; i++) w->flows[i].rate = 0;
    for (;;) {
        int64_t least = INT64_MAX;
        int tight = -1;
        for (int l = 0; l < w->n_links; l++) {
            int64_t open = 0;
            for (int i = 0; i < w->n; i++)
                open += w->flows[i].active && w->flows[i].rate == 0 && uses_link(&w->flows[i], l);
            if (open == 0 || room[l] / open >= least) continue;
            least = room[l] / open;
            tight = l;
        }
        if (tight < 0) return;
        for (int i = 0; i < w->n; i++) {
            wire_flow *const f = &w->flows[i];
            if (!f->active || f->rate > 0 || !uses_link(f, tight)) continue;
            f->rate = least;
            for (int k = 0; k < f->n_links; k++) room[f->links[k]] -= least;
        }
    }
}

/* Goes on to the next moment at which some flow ends; false when none is left. */
static bool wires_step(wires *w)
{
    for (bool finished = false; !finished;) {
        wires_fill(w);
        int64_t next = INT64_MAX;
        for (int i = 0; i < w->n; i++) {
            const wire_flow *const f = &w->flows[i];
            if (f->done) continue;
            const int64_t at = f->active ? w->now + (f->left + f->rate - 1) / f->rate : f->start_ns;
            if (at < next) next = at;
        }
        if (next == INT64_MAX) return false;
        assert_true(next >= w->now);
        for (int i = 0; i < w->n; i++) {
            wire_flow *const f = &w->flows[i];
            if (f->active) f->left -= f->rate * (next - w->now);
            if (f->active && f->left <= 0) {
                f->active = false;
                f->done = finished = true;
                f->end_ns = next;
            } else if (!f->active && !f->done && f->start_ns == next) {
                f->active = true;
            }
        }
        w->now = next;
    }
    return true;
}

void reference_share(reference_flow *f, int n, int n_devices)
{
    const cluster_desc one_node = {.devices_per_node = n_devices};
    wire_flow flows[FLOWS];
    wires w = {.flows = flows, .n = n};
    assert_true(n <= FLOWS);
    wires_open(&w, &one_node, n_devices);
    for (int i = 0; i < n; i++) {
        flows[i] = (wire_flow){.start_ns = f[i].start_ns, .left = f[i].transfer_ns * FULL};
        wires_path(&w, &one_node, n_devices, f[i].src, f[i].dst, &flows[i]);
    }
    while (wires_step(&w)) continue;
    for (int i = 0; i < n; i++) f[i].end_ns = flows[i].end_ns;
}

/* --- plans --- */

typedef struct walk {
    const plan *p;
    const int64_t *class_ns;
    bool rendezvous;
    int64_t *begin, *end;
    uint32_t *before; /* the task before it on its stream, or PLAN_NONE */
    bool unknown;     /* something asked for is not known yet */
    wires wires;      /* without a cluster: empty */
    const cost_model *pairs;
} walk;

/* The end of a task that must be known; PLAN_NONE ended at 0. */
static int64_t end_of(walk *w, uint32_t task)
{
    if (task == PLAN_NONE) return 0;
    if (w->end[task] == UNKNOWN) w->unknown = true;
    return w->end[task];
}

static int64_t later(int64_t a, int64_t b) { return a > b ? a : b; }

/* In eager a collective of a microbatch is a message, which holds no stream. */
static bool is_free(const walk *w, const plan_task *x)
{
    return x->kind == TASK_COLL && x->microbatch != PLAN_NONE && !w->rendezvous;
}

/* What a member that only gives does not wait for: a broadcast's root, the others of a sum. */
static bool gives_only(const walk *w, uint32_t t)
{
    const plan_task *const x = &w->p->tasks[t];
    const plan_coll *const coll = &w->p->colls[x->link];
    const uint8_t kind = w->p->classes[x->cls].detail;
    if (x->flags & TASK_FLAG_MEET) return false;
    if (w->p->coll_tasks[coll->first_task + coll->root] == t) return kind == COLL_BROADCAST;
    return kind == COLL_REDUCE;
}

static int64_t begin_compute(walk *w, uint32_t c)
{
    int64_t at = end_of(w, w->before[c]);
    if (w->unknown) return at;
    for (uint32_t t = 0; t < w->p->n_tasks; t++) {
        const plan_task *const x = &w->p->tasks[t];
        const bool off = x->kind == TASK_SEND || x->kind == TASK_RECV || x->kind == TASK_COLL;
        if (!off || x->join != c || (x->flags & TASK_FLAG_JOIN_NEXT)) continue;
        if (x->kind == TASK_SEND && !w->rendezvous) continue;
        if (is_free(w, x) && gives_only(w, t)) continue;
        at = later(at, end_of(w, t));
    }
    return at;
}

static int64_t ready_at(walk *w, uint32_t t)
{
    const int64_t gate = end_of(w, w->p->tasks[t].gate);
    return later(gate, end_of(w, w->before[t]));
}

static int64_t begin_of(walk *w, uint32_t t)
{
    const plan_task *const x = &w->p->tasks[t];
    if (x->kind == TASK_SEND || x->kind == TASK_RECV) {
        const uint32_t send = x->kind == TASK_SEND ? t : x->link;
        if (!w->rendezvous) return end_of(w, w->p->tasks[send].gate);
        return later(ready_at(w, t), ready_at(w, x->link));
    }
    if (x->kind != TASK_COLL) return begin_compute(w, t);
    const plan_coll *const coll = &w->p->colls[x->link];
    const bool one_sided =
        w->p->classes[x->cls].detail == COLL_BROADCAST && !(x->flags & TASK_FLAG_MEET);
    int64_t at = 0;
    for (uint32_t i = 0; i < w->p->groups[coll->group].n_members; i++) {
        const uint32_t member = w->p->coll_tasks[coll->first_task + i];
        if (!is_free(w, x))
            at = later(at, ready_at(w, member));
        else if (!one_sided || i == coll->root)
            at = later(at, end_of(w, w->p->tasks[member].gate));
    }
    return at;
}

/* Both ends of a message take what its SEND says. */
static int64_t duration_of(const walk *w, uint32_t t)
{
    const plan_task *const x = &w->p->tasks[t];
    return w->class_ns[x->kind == TASK_RECV ? w->p->tasks[x->link].cls : x->cls];
}

static void put(walk *w, uint32_t t, int64_t begin, int64_t end)
{
    w->begin[t] = begin;
    w->end[t] = end;
}

static int n_devices_of(const plan *p)
{
    int last = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++)
        if (sim_device_of(p, r) > last) last = sim_device_of(p, r);
    return last + 1;
}

/* A message on a cluster: its bytes take a flow, whose end is known later. */
static void send_on_wires(walk *w, uint32_t send, int64_t at)
{
    const plan *const p = w->p;
    const uint32_t recv = p->tasks[send].link;
    const int src = sim_device_of(p, plan_task_rank(p, send));
    const int dst = sim_device_of(p, plan_task_rank(p, recv));
    message_cost c = {0};
    td_err err = {0};
    if (cost_message(w->pairs, src, dst, p->classes[p->tasks[send].cls].bytes, &c, &err) != TD_OK)
        fail_msg("%s", err.msg);
    w->begin[send] = w->begin[recv] = at;
    if (c.transfer_ns == 0) {
        w->end[send] = w->end[recv] = at + c.latency_ns;
        return;
    }
    wire_flow *const f = &w->wires.flows[w->wires.n++];
    *f = (wire_flow){
        .send = send, .start_ns = at, .latency_ns = c.latency_ns, .left = c.transfer_ns * FULL};
    wires_path(&w->wires, w->pairs->cluster, n_devices_of(p), src, dst, f);
}

/* Everything that can be said without another end of a flow. */
static void sweep(walk *w)
{
    for (bool moved = true; moved;) {
        moved = false;
        for (uint32_t t = 0; t < w->p->n_tasks; t++) {
            const uint8_t kind = w->p->tasks[t].kind;
            if (w->end[t] != UNKNOWN || w->begin[t] != UNKNOWN) continue;
            w->unknown = false;
            const int64_t at = begin_of(w, t);
            if (w->unknown) continue;
            moved = true;
            if (w->pairs != NULL && (kind == TASK_SEND || kind == TASK_RECV))
                send_on_wires(w, kind == TASK_SEND ? t : w->p->tasks[t].link, at);
            else
                put(w, t, at, at + duration_of(w, t));
        }
    }
}

bool reference_run(const plan *p, const int64_t *class_ns, sim_protocol protocol,
                   const cost_model *pairs, td_arena *a, task_times *out)
{
    out->begin_ns = TD_NEW_N(a, int64_t, p->n_tasks);
    out->end_ns = TD_NEW_N(a, int64_t, p->n_tasks);
    walk w = {.p = p,
              .class_ns = class_ns,
              .rendezvous = protocol == PROTOCOL_RENDEZVOUS,
              .begin = out->begin_ns,
              .end = out->end_ns,
              .pairs = pairs,
              .before = TD_NEW_N(a, uint32_t, p->n_tasks)};
    for (uint32_t i = 0; i < p->n_streams; i++)
        for (uint32_t k = 0; k < p->streams[i].n_tasks; k++)
            w.before[p->streams[i].first_task + k] =
                k == 0 ? PLAN_NONE : p->streams[i].first_task + k - 1;
    for (uint32_t t = 0; t < p->n_tasks; t++) put(&w, t, UNKNOWN, UNKNOWN);
    w.wires.flows = TD_NEW_N(a, wire_flow, p->n_tasks);
    if (pairs != NULL) wires_open(&w.wires, pairs->cluster, n_devices_of(p));
    sweep(&w);
    while (wires_step(&w.wires)) {
        for (int i = 0; i < w.wires.n; i++) {
            const wire_flow *const f = &w.wires.flows[i];
            if (!f->done) continue;
            w.end[f->send] = w.end[p->tasks[f->send].link] = f->end_ns + f->latency_ns;
        }
        sweep(&w);
    }
    for (uint32_t t = 0; t < p->n_tasks; t++)
        if (w.end[t] == UNKNOWN) return false;
    return true;
}

/* --- random plans --- */

void random_plan(td_rng *rng, td_arena *a, plan *out, char *what, size_t size)
{
    static const char *const names[] = {"gpipe", "1f1b", "interleaved-1f1b"};
    const char *const name = names[td_rng_below(rng, 3)];
    const bool interleaved = strcmp(name, "interleaved-1f1b") == 0;
    sched_request q = {.pp = (int32_t)(1 + td_rng_below(rng, 5)), .chunks = 1};
    if (interleaved) {
        q.pp = 2 + (int32_t)td_rng_below(rng, 3);
        q.chunks = 2 + (int32_t)td_rng_below(rng, 2);
    }
    q.microbatches = interleaved ? q.pp * (1 + (int32_t)td_rng_below(rng, 3))
                                 : 1 + (int32_t)td_rng_below(rng, 9);
    sizes *const z = TD_NEW(a, sizes);
    z->n_stages = q.pp * q.chunks;
    z->chunks = q.chunks;
    lower_options o = {.sizes = z,
                       .dp = 1 + (int32_t)td_rng_below(rng, 3),
                       .tp = 1,
                       .mapping = (plan_mapping)td_rng_below(rng, 3),
                       .lookahead = (int32_t)td_rng_below(rng, 4),
                       .send_window = (int32_t)td_rng_below(rng, 4)};
    (void)snprintf(what, size, "%s pp %d m %d v %d dp %d mapping %d lookahead %d window %d", name,
                   q.pp, q.microbatches, q.chunks, o.dp, (int)o.mapping, o.lookahead,
                   o.send_window);
    schedule s = {0};
    td_err err = {0};
    if (sched_generate(name, &q, a, &s, &err) != TD_OK) fail_msg("%s: %s", what, err.msg);
    /* A window of blocking sends can deadlock, which lowering refuses. */
    if (o.send_window > 0 && plan_lower(&s, &o, a, out, &err) == TD_OK) return;
    o.send_window = 0;
    if (plan_lower(&s, &o, a, out, &err) != TD_OK) fail_msg("%s: %s", what, err.msg);
}

int64_t *random_times(td_rng *rng, const plan *p, td_arena *a)
{
    int64_t *const ns = TD_NEW_N(a, int64_t, p->n_classes);
    for (uint32_t i = 0; i < p->n_classes; i++)
        ns[i] = td_rng_below(rng, 4) == 0 ? 0 : td_rng_below(rng, 1000);
    return ns;
}
