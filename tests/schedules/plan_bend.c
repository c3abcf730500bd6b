/* Body of plan_bend.h. */
#include "plan_bend.h"

static bool has_join(const plan_task *t)
{
    return t->join != PLAN_NONE && (t->flags & TASK_FLAG_JOIN_NEXT) == 0;
}

static uint32_t stream_of(const plan *p, uint32_t task)
{
    uint32_t s = 0;
    while (task < p->streams[s].first_task ||
           task >= p->streams[s].first_task + p->streams[s].n_tasks)
        s++;
    return s;
}

/* Two neighbours of a stream of messages change places. */
static void swap_messages(plan *p, uint32_t task)
{
    const plan_task one = p->tasks[task], other = p->tasks[task + 1];
    if (one.kind == TASK_COLL || other.kind == TASK_COLL) return;
    const uint32_t first_use = one.first_use;
    p->tasks[task] = other;
    p->tasks[task + 1] = one;
    p->tasks[task].first_use = p->tasks[task + 1].first_use = first_use;
    p->tasks[other.link].link = task;
    p->tasks[one.link].link = task + 1;
}

void plan_bend(plan *p, td_rng *r)
{
    for (int64_t i = 1 + td_rng_below(r, 3); i > 0; i--) {
        const uint32_t task = (uint32_t)td_rng_below(r, p->n_tasks);
        const uint32_t s = stream_of(p, task);
        plan_task *const t = &p->tasks[task];
        const plan_stream *const st = &p->streams[s];
        if (st->kind == STREAM_COMPUTE) continue;
        const plan_stream *const c = plan_compute(p, st->rank);
        const int64_t what = td_rng_below(r, 3);
        if (what == 0 && task + 1 < st->first_task + st->n_tasks) swap_messages(p, task);
        if (what == 1 && !has_join(t) && c->n_tasks > 0)
            t->gate = c->first_task + (uint32_t)td_rng_below(r, c->n_tasks);
        else if (what == 1 && t->gate != PLAN_NONE && t->join > t->gate + 1)
            t->gate += (uint32_t)td_rng_below(r, t->join - t->gate);
        if (what == 2 && has_join(t)) {
            const uint32_t first = t->gate == PLAN_NONE ? c->first_task : t->gate + 1;
            t->join = first + (uint32_t)td_rng_below(r, t->join - first + 1);
        }
    }
}
