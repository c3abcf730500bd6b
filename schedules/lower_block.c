/* Calls that block: with --send-window 1 and --lookahead 0 a rank does nothing while it sends or
 * receives, so that what stands between two of its compute tasks happens one after the other: the
 * sends of the first, activations before hand-offs, then the receives of the second. Each of them
 * gets a mark that waits for it and lets the next one start. */
#include "schedules/lower_collect.h"

#include <stdlib.h>
#include <string.h>

/* A message between two neighbours on a compute stream. */
typedef struct call {
    uint32_t rank, before; /* the compute task that comes next, as a position */
    uint8_t is_recv, cls;
    uint32_t task;
} call;

static int compare_calls(const void *a, const void *b)
{
    const call *const x = a, *const y = b;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    if (x->before != y->before) return x->before < y->before ? -1 : 1;
    if (x->is_recv != y->is_recv) return (int)x->is_recv - (int)y->is_recv;
    if (x->cls != y->cls) return (int)x->cls - (int)y->cls;
    return x->task < y->task ? -1 : x->task > y->task;
}

static size_t find_calls(const plan *p, call *out)
{
    size_t n = 0;
    for (uint32_t i = 0; i < p->n_streams; i++) {
        const plan_stream *const s = &p->streams[i], *const c = plan_compute(p, s->rank);
        for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++) {
            const plan_task *const k = &p->tasks[t];
            if (k->kind != TASK_SEND && k->kind != TASK_RECV) continue;
            const uint32_t from = k->gate == PLAN_NONE ? 0 : k->gate - c->first_task + 1;
            const uint32_t to = k->join == PLAN_NONE ? c->n_tasks : k->join - c->first_task;
            if (from != to) continue;
            out[n++] = (call){.rank = s->rank,
                              .before = to,
                              .is_recv = k->kind == TASK_RECV,
                              .cls = p->classes[k->cls].detail,
                              .task = t};
        }
    }
    qsort(out, n, sizeof *out, compare_calls);
    return n;
}

static bool same_gap(const call *a, const call *b)
{
    return a->rank == b->rank && a->before == b->before;
}

typedef struct blocking {
    const plan *in;
    plan *out;
    uint32_t *moved;    /* [n_tasks] new ids */
    uint32_t *mark_cls; /* [n_ranks] */
    const call *at, *end;
    uint32_t n_done; /* tasks of out */
} blocking;

/* The calls of a gap one behind the other, with marks between them; the gates and joins at the ends
 * of the gap stay. New ids of calls are known already. */
static void chain_gap(blocking *b)
{
    const call *const first = b->at;
    while (b->at < b->end && same_gap(first, b->at)) {
        const call *const c = b->at++;
        if (b->at == b->end || !same_gap(c, b->at)) return;
        b->out->tasks[b->moved[c->task]].join = b->n_done;
        b->out->tasks[b->moved[b->at->task]].gate = b->n_done;
        b->out->tasks[b->n_done++] = (plan_task){.kind = TASK_MARK,
                                                 .microbatch = PLAN_NONE,
                                                 .cls = b->mark_cls[c->rank],
                                                 .link = PLAN_NONE,
                                                 .gate = PLAN_NONE,
                                                 .join = PLAN_NONE};
    }
}

static uint32_t moved_to(const blocking *b, uint32_t task)
{
    return task == PLAN_NONE ? PLAN_NONE : b->moved[task];
}

/* What is off the compute streams keeps its order behind them. */
static void copy_others(blocking *b, uint32_t more)
{
    const plan *const in = b->in;
    for (uint32_t i = 0; i < in->n_streams; i++) {
        const plan_stream *const s = &in->streams[i];
        if (s->kind == STREAM_COMPUTE) continue;
        b->out->streams[i].first_task = s->first_task + more;
        for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++) {
            plan_task *const k = &b->out->tasks[b->moved[t]];
            const plan_task chained = *k;
            *k = in->tasks[t];
            k->gate = chained.gate != PLAN_NONE ? chained.gate : moved_to(b, k->gate);
            k->join = chained.join != PLAN_NONE ? chained.join : moved_to(b, k->join);
            if (k->kind != TASK_COLL) k->link = b->moved[k->link];
        }
    }
}

static void copy_compute(blocking *b)
{
    const plan *const in = b->in;
    for (uint32_t r = 0; r < in->n_ranks; r++) {
        const plan_stream *const s = plan_compute(in, r);
        plan_stream *const t = &b->out->streams[in->ranks[r].first_stream];
        t->first_task = b->n_done;
        for (uint32_t i = 0; i <= s->n_tasks; i++) {
            if (b->at < b->end && b->at->rank == r && b->at->before == i) chain_gap(b);
            if (i == s->n_tasks) break;
            b->moved[s->first_task + i] = b->n_done;
            b->out->tasks[b->n_done++] = in->tasks[s->first_task + i];
        }
        t->n_tasks = b->n_done - t->first_task;
    }
}

static uint32_t count_marks(const call *calls, size_t n)
{
    uint32_t marks = 0;
    for (size_t i = 0; i + 1 < n; i++) marks += same_gap(&calls[i], &calls[i + 1]);
    return marks;
}

static td_status mark_classes(const lowering *l, const plan *in, blocking *b, td_err *err)
{
    class_table classes;
    TD_TRY(class_table_open(&classes, l->a, in, err));
    for (uint32_t r = 0; r < in->n_ranks; r++) {
        const plan_class c = {.kind = TASK_MARK,
                              .inst = PLAN_NONE,
                              .second = PLAN_NONE,
                              .slice_len = in->ranks[r].row};
        TD_TRY(class_intern(&classes, &c, &b->mark_cls[r], err));
    }
    class_table_close(&classes, b->out);
    return TD_OK;
}

td_status lower_block(const lowering *l, const plan *in, plan *out, td_err *err)
{
    *out = *in;
    if (l->o->send_window != 1 || l->o->lookahead != 0) return TD_OK;
    call *const calls = TD_NEW_N(l->a, call, in->n_tasks);
    blocking b = {.in = in,
                  .out = out,
                  .moved = TD_NEW_N(l->a, uint32_t, in->n_tasks),
                  .mark_cls = TD_NEW_N(l->a, uint32_t, in->n_ranks)};
    if (calls == NULL || b.moved == NULL || b.mark_cls == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for %u tasks", in->n_tasks);
    const size_t n = find_calls(in, calls);
    const uint32_t more = count_marks(calls, n);
    if ((uint64_t)in->n_tasks + more >= PLAN_NONE)
        return td_fail(err, TD_EUSAGE, "more tasks than a plan can number");
    out->n_tasks = in->n_tasks + more;
    out->tasks = TD_NEW_N(l->a, plan_task, out->n_tasks + 1);
    out->streams = TD_NEW_N(l->a, plan_stream, in->n_streams);
    out->coll_tasks = TD_NEW_N(l->a, uint32_t, in->n_coll_tasks);
    if (out->tasks == NULL || out->streams == NULL || out->coll_tasks == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for %u tasks", out->n_tasks);
    memcpy(out->streams, in->streams, in->n_streams * sizeof *out->streams);
    TD_TRY(mark_classes(l, in, &b, err));
    for (uint32_t i = 0; i < in->n_tasks; i++) b.moved[i] = i + more;
    for (uint32_t i = 0; i < out->n_tasks; i++) out->tasks[i].gate = out->tasks[i].join = PLAN_NONE;
    b.at = calls;
    b.end = calls + n;
    copy_compute(&b);
    copy_others(&b, more);
    for (uint32_t i = 0; i < in->n_coll_tasks; i++) out->coll_tasks[i] = in->coll_tasks[i] + more;
    return TD_OK;
}
