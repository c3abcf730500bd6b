#include "sim_reference.h"

#include "schedules/schedule.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define UNKNOWN ((int64_t)-1)
#define FULL ((int64_t)1 << 20)

typedef struct walk {
    const plan *p;
    const int64_t *class_ns;
    bool rendezvous;
    int64_t *begin, *end;
    uint32_t *before; /* the task before it on its stream, or PLAN_NONE */
    bool unknown;     /* something asked for is not known yet */
} walk;

/* The end of a task that must be known; PLAN_NONE ended at 0. */
static int64_t end_of(walk *w, uint32_t task)
{
    if (task == PLAN_NONE) return 0;
    if (w->end[task] == UNKNOWN) w->unknown = true;
    return w->end[task];
}

static int64_t later(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t begin_compute(walk *w, uint32_t c)
{
    int64_t at = end_of(w, w->before[c]);
    for (uint32_t t = 0; t < w->p->n_tasks; t++) {
        const plan_task *const x = &w->p->tasks[t];
        const bool off = x->kind == TASK_SEND || x->kind == TASK_RECV || x->kind == TASK_COLL;
        if (!off || x->join != c || (x->flags & TASK_FLAG_JOIN_NEXT)) continue;
        if (x->kind == TASK_SEND && !w->rendezvous) continue;
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
    int64_t at = 0;
    for (uint32_t i = 0; i < w->p->groups[coll->group].n_members; i++)
        at = later(at, ready_at(w, w->p->coll_tasks[coll->first_task + i]));
    return at;
}

/* Both ends of a message take what its SEND says. */
static int64_t duration_of(const walk *w, uint32_t t)
{
    const plan_task *const x = &w->p->tasks[t];
    return w->class_ns[x->kind == TASK_RECV ? w->p->tasks[x->link].cls : x->cls];
}

bool reference_run(const plan *p, const int64_t *class_ns, sim_protocol protocol, td_arena *a,
                   task_times *out)
{
    out->begin_ns = TD_NEW_N(a, int64_t, p->n_tasks);
    out->end_ns = TD_NEW_N(a, int64_t, p->n_tasks);
    walk w = {.p = p,
              .class_ns = class_ns,
              .rendezvous = protocol == PROTOCOL_RENDEZVOUS,
              .begin = out->begin_ns,
              .end = out->end_ns,
              .before = TD_NEW_N(a, uint32_t, p->n_tasks)};
    for (uint32_t i = 0; i < p->n_streams; i++)
        for (uint32_t k = 0; k < p->streams[i].n_tasks; k++)
            w.before[p->streams[i].first_task + k] =
                k == 0 ? PLAN_NONE : p->streams[i].first_task + k - 1;
    for (uint32_t t = 0; t < p->n_tasks; t++) w.end[t] = UNKNOWN;
    uint32_t missing = p->n_tasks;
    for (bool moved = true; moved && missing > 0;) {
        moved = false;
        for (uint32_t t = 0; t < p->n_tasks; t++) {
            if (w.end[t] != UNKNOWN) continue;
            w.unknown = false;
            const int64_t at = begin_of(&w, t);
            if (w.unknown) continue;
            w.begin[t] = at;
            w.end[t] = at + duration_of(&w, t);
            moved = true;
            missing--;
        }
    }
    return missing == 0;
}

/* --- the network --- */

enum { FLOWS = 64, LINKS = 64 };

/* A device's links out and in are 2d and 2d + 1: equal shares are handed out in this order. */
static bool on_link(const reference_flow *f, int link)
{
    return (link % 2 == 0 ? f->src : f->dst) == link / 2;
}

static void fill(const reference_flow *f, const bool *active, int n, int n_devices, int64_t *rate)
{
    int64_t room[LINKS];
    bool fixed[FLOWS] = {false};
    for (int l = 0; l < 2 * n_devices; l++) room[l] = FULL;
    for (;;) {
        int64_t least = INT64_MAX;
        int tight = -1;
        for (int l = 0; l < 2 * n_devices; l++) {
            int64_t open = 0;
            for (int i = 0; i < n; i++) open += active[i] && !fixed[i] && on_link(&f[i], l);
            if (open == 0 || room[l] / open >= least) continue;
            least = room[l] / open;
            tight = l;
        }
        if (tight < 0) return;
        for (int i = 0; i < n; i++) {
            if (!active[i] || fixed[i] || !on_link(&f[i], tight)) continue;
            fixed[i] = true;
            rate[i] = least;
            for (int l = 0; l < 2 * n_devices; l++)
                if (on_link(&f[i], l)) room[l] -= least;
        }
    }
}

void reference_share(reference_flow *f, int n, int n_devices)
{
    int64_t left[FLOWS], rate[FLOWS] = {0}, now = 0;
    bool active[FLOWS] = {false}, done[FLOWS] = {false};
    assert_true(n <= FLOWS && 2 * n_devices <= LINKS);
    for (int i = 0; i < n; i++) left[i] = f[i].transfer_ns * FULL;
    for (int finished = 0; finished < n;) {
        int64_t next = INT64_MAX;
        for (int i = 0; i < n; i++) {
            if (done[i]) continue;
            const int64_t at = !active[i] ? f[i].start_ns : now + (left[i] + rate[i] - 1) / rate[i];
            if (at < next) next = at;
        }
        for (int i = 0; i < n; i++)
            if (active[i]) left[i] -= rate[i] * (next - now);
        now = next;
        for (int i = 0; i < n; i++) {
            if (active[i] && left[i] <= 0) {
                active[i] = false;
                done[i] = true;
                f[i].end_ns = now;
                finished++;
            } else if (!active[i] && !done[i] && f[i].start_ns == now) {
                active[i] = true;
            }
        }
        fill(f, active, n, n_devices, rate);
    }
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
