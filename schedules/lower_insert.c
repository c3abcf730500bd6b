/* More tasks in the compute streams of a plan. */
#include "schedules/lower.h"

/* Every rank gets as many tasks, and compute streams come first, by rank: so a task's new id is
 * known from its rank and its place among the insertions. */
typedef struct inserting {
    const plan *in;
    const insertion *items;
    uint32_t n, n_compute; /* insertions a rank; compute tasks of all ranks before */
} inserting;

static uint32_t moved(const inserting *g, uint32_t rank, uint32_t task)
{
    if (task == PLAN_NONE) return PLAN_NONE;
    if (task >= g->n_compute) return task + g->in->n_ranks * g->n;
    const uint32_t position = task - plan_compute(g->in, rank)->first_task;
    uint32_t before = 0;
    while (before < g->n && g->items[rank * g->n + before].at <= position) before++;
    return task + rank * g->n + before;
}

static td_status put_new(const inserting *g, class_table *classes, uint32_t rank, uint8_t kind,
                         plan_task *out, td_err *err)
{
    *out = (plan_task){.kind = kind,
                       .microbatch = PLAN_NONE,
                       .link = PLAN_NONE,
                       .gate = PLAN_NONE,
                       .join = PLAN_NONE};
    const plan_class c = {
        .kind = kind, .inst = PLAN_NONE, .second = PLAN_NONE, .slice_len = g->in->ranks[rank].row};
    return class_intern(classes, &c, &out->cls, err);
}

static td_status fill_stream(const inserting *g, class_table *classes, const plan_stream *s,
                             plan_stream *to, plan_task *tasks, td_err *err)
{
    const bool computes = s->kind == STREAM_COMPUTE;
    const uint32_t more = g->in->n_ranks * g->n;
    *to = *s;
    to->first_task = computes ? s->first_task + s->rank * g->n : s->first_task + more;
    to->n_tasks += computes ? g->n : 0;
    uint32_t at = to->first_task, next = 0;
    for (uint32_t j = 0; j <= s->n_tasks; j++) {
        while (computes && next < g->n && g->items[s->rank * g->n + next].at == j)
            TD_TRY(put_new(g, classes, s->rank, g->items[s->rank * g->n + next++].kind,
                           &tasks[at++], err));
        if (j == s->n_tasks) break;
        plan_task t = g->in->tasks[s->first_task + j];
        t.gate = moved(g, s->rank, t.gate);
        t.join = moved(g, s->rank, t.join);
        if (t.kind == TASK_SEND || t.kind == TASK_RECV)
            t.link += more; /* the other end is off the compute streams too */
        tasks[at++] = t;
    }
    return TD_OK;
}

td_status lower_insert(const lowering *l, const plan *in, const insertion *items, uint32_t n,
                       plan *out, td_err *err)
{
    const plan_stream *const last = plan_compute(in, in->n_ranks - 1);
    const inserting g = {
        .in = in, .items = items, .n = n, .n_compute = last->first_task + last->n_tasks};
    const uint64_t more = (uint64_t)in->n_ranks * n;
    *out = *in;
    if (in->n_tasks + more >= PLAN_NONE)
        return td_fail(err, TD_EUSAGE, "more tasks than a plan can number");
    out->n_tasks = in->n_tasks + (uint32_t)more;
    out->tasks = TD_NEW_N(l->a, plan_task, out->n_tasks + 1);
    out->streams = TD_NEW_N(l->a, plan_stream, in->n_streams);
    out->coll_tasks = TD_NEW_N(l->a, uint32_t, in->n_coll_tasks);
    if (out->tasks == NULL || out->streams == NULL || out->coll_tasks == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for %u tasks", out->n_tasks);
    class_table classes;
    TD_TRY(class_table_open(&classes, l->a, in, err));
    for (uint32_t i = 0; i < in->n_streams; i++)
        TD_TRY(fill_stream(&g, &classes, &in->streams[i], &out->streams[i], out->tasks, err));
    for (uint32_t i = 0; i < in->n_coll_tasks; i++)
        out->coll_tasks[i] = in->coll_tasks[i] + (uint32_t)more;
    class_table_close(&classes, out);
    return TD_OK;
}
