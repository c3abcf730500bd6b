/* Can the plan finish when every message is a rendezvous that holds both streams? The same sweep as
 * for schedules, over tasks: a stream runs on until its next task has to wait, and whoever ends the
 * wait wakes it. What has not happened at the end is deadlocked, and the waits among it hold a
 * cycle. */
#include "schedules/plan_check.h"

#include <string.h>

typedef struct deadlock {
    const plan_map *m;
    const plan *p;
    uint32_t *done;      /* [n_streams] tasks of each stream that have happened */
    uint32_t *joins;     /* [n_tasks] tasks that a compute task still waits for */
    uint32_t *waiter;    /* [n_tasks] first stream that waits for this gate */
    uint32_t *next;      /* [n_streams] next waiter of the same gate */
    uint8_t *at_meeting; /* [n_streams] its head has passed its gate and waits for the others */
    uint8_t *queued;     /* [n_streams] */
    uint32_t *ready, n_ready; /* a stack of streams, each at most once */
} deadlock;

static bool happened(const deadlock *d, uint32_t task)
{
    const uint32_t s = d->m->stream_of[task];
    return task - d->p->streams[s].first_task < d->done[s];
}

static void push(deadlock *d, uint32_t stream)
{
    if (d->queued[stream]) return;
    d->queued[stream] = 1;
    d->ready[d->n_ready++] = stream;
}

static uint32_t pop(deadlock *d)
{
    const uint32_t stream = d->ready[--d->n_ready];
    d->queued[stream] = 0;
    return stream;
}

/* A task off the compute stream is over: its stream goes on and its join has one wait less. */
static void finish(deadlock *d, uint32_t task)
{
    const uint32_t s = d->m->stream_of[task];
    d->at_meeting[s] = 0;
    d->done[s]++;
    push(d, s);
    const uint32_t join = d->p->tasks[task].join;
    if (join == PLAN_NONE || (d->p->tasks[task].flags & TASK_FLAG_JOIN_NEXT)) return;
    const uint32_t c = d->m->stream_of[join];
    if (--d->joins[join] == 0 && join == d->p->streams[c].first_task + d->done[c]) push(d, c);
}

static bool is_there(const deadlock *d, uint32_t task)
{
    const uint32_t s = d->m->stream_of[task];
    return d->at_meeting[s] && d->p->streams[s].first_task + d->done[s] == task;
}

static void meet(deadlock *d, uint32_t task)
{
    const plan *const p = d->p;
    const plan_task *const t = &p->tasks[task];
    if (t->kind != TASK_COLL) {
        if (!is_there(d, t->link)) return;
        finish(d, task);
        finish(d, t->link);
        return;
    }
    const plan_coll *const c = &p->colls[t->link];
    const uint32_t n = p->groups[c->group].n_members;
    for (uint32_t i = 0; i < n; i++)
        if (!is_there(d, p->coll_tasks[c->first_task + i])) return;
    for (uint32_t i = 0; i < n; i++) finish(d, p->coll_tasks[c->first_task + i]);
}

static void advance_compute(deadlock *d, uint32_t stream)
{
    const plan_stream *const s = &d->p->streams[stream];
    while (d->done[stream] < s->n_tasks) {
        const uint32_t task = s->first_task + d->done[stream];
        if (d->joins[task] > 0) return;
        d->done[stream]++;
        for (uint32_t w = d->waiter[task]; w != PLAN_NONE; w = d->next[w]) push(d, w);
        d->waiter[task] = PLAN_NONE;
    }
}

static void advance(deadlock *d, uint32_t stream)
{
    const plan_stream *const s = &d->p->streams[stream];
    if (s->kind == STREAM_COMPUTE) {
        advance_compute(d, stream);
        return;
    }
    if (d->done[stream] == s->n_tasks || d->at_meeting[stream]) return;
    const uint32_t task = s->first_task + d->done[stream];
    const uint32_t gate = d->p->tasks[task].gate;
    if (gate != PLAN_NONE && !happened(d, gate)) {
        d->next[stream] = d->waiter[gate];
        d->waiter[gate] = stream;
        return;
    }
    d->at_meeting[stream] = 1;
    meet(d, task);
}

/* --- the report --- */

/* A task that `task`, which has not happened, waits for. */
static uint32_t waits_for(const deadlock *d, uint32_t task)
{
    const plan *const p = d->p;
    const uint32_t s = d->m->stream_of[task];
    const uint32_t head = p->streams[s].first_task + d->done[s];
    const plan_task *const t = &p->tasks[task];
    if (p->streams[s].kind == STREAM_COMPUTE) {
        if (head != task) return head;
        for (uint32_t i = 0; i < p->n_tasks; i++)
            if (p->tasks[i].join == task && p->tasks[i].kind >= TASK_SEND &&
                p->tasks[i].kind <= TASK_COLL && !happened(d, i))
                return i;
        return task;
    }
    if (head != task) return head;
    if (t->gate != PLAN_NONE && !happened(d, t->gate)) return t->gate;
    if (t->kind != TASK_COLL) return t->link;
    const plan_coll *const c = &p->colls[t->link];
    for (uint32_t i = 0; i < p->groups[c->group].n_members; i++)
        if (!is_there(d, p->coll_tasks[c->first_task + i])) return p->coll_tasks[c->first_task + i];
    return task;
}

/* Which options would take waits out. */
static void hint_room(const plan *p, td_text *t)
{
    if (p->send_window > 0)
        td_text_add(t, "; ranks wait for their sends here: --send-window 0 lets them go on");
    if (p->mapping != MAPPING_CHANNEL)
        td_text_add(t, "; messages share streams here: --mapping channel parts them");
}

static td_status report(const deadlock *d, uint32_t start, td_arena *a, td_err *err)
{
    uint8_t *const seen = TD_NEW_N(a, uint8_t, d->p->n_tasks);
    if (seen == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the checker");
    uint32_t task = start;
    while (!seen[task]) {
        seen[task] = 1;
        task = waits_for(d, task);
    }
    td_text t = {0};
    const uint32_t first = task;
    int n = 0;
    do {
        plan_task_text(d->p, task, &t);
        task = waits_for(d, task);
        td_text_add(&t, " waits for ");
    } while (task != first && ++n < 24);
    plan_task_text(d->p, task, &t);
    hint_room(d->p, &t);
    const td_status st = td_fail(err, TD_EPLAN, "deadlock: %s", t.s == NULL ? "" : t.s);
    td_text_free(&t);
    return st;
}

td_status check_deadlock(const plan_map *m, td_arena *a, td_err *err)
{
    const plan *const p = m->p;
    deadlock d = {.m = m,
                  .p = p,
                  .done = TD_NEW_N(a, uint32_t, p->n_streams),
                  .joins = TD_NEW_N(a, uint32_t, p->n_tasks),
                  .waiter = TD_NEW_N(a, uint32_t, p->n_tasks),
                  .next = TD_NEW_N(a, uint32_t, p->n_streams),
                  .at_meeting = TD_NEW_N(a, uint8_t, p->n_streams),
                  .queued = TD_NEW_N(a, uint8_t, p->n_streams),
                  .ready = TD_NEW_N(a, uint32_t, p->n_streams)};
    if (d.done == NULL || d.joins == NULL || d.waiter == NULL || d.next == NULL ||
        d.at_meeting == NULL || d.queued == NULL || d.ready == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the checker");
    memset(d.waiter, 0xff, p->n_tasks * sizeof *d.waiter);
    for (uint32_t t = 0; t < p->n_tasks; t++) {
        const plan_task *const k = &p->tasks[t];
        if (k->kind >= TASK_SEND && k->kind <= TASK_COLL && k->join != PLAN_NONE &&
            !(k->flags & TASK_FLAG_JOIN_NEXT))
            d.joins[k->join]++;
    }
    for (uint32_t i = p->n_streams; i > 0; i--) push(&d, i - 1);
    while (d.n_ready > 0) advance(&d, pop(&d));
    for (uint32_t i = 0; i < p->n_streams; i++)
        if (d.done[i] < p->streams[i].n_tasks)
            return report(&d, p->streams[i].first_task + d.done[i], a, err);
    return TD_OK;
}
