/* Several periods of a plan as one: what a figure of steps that overlap shows. */
#include "schedules/trace.h"

/* Copies of a plan behind each other. Streams keep their order, so that a stream's tasks of copy c
 * follow those of copy c - 1, and ids follow from a task's stream and place. */
typedef struct unrolling {
    const plan *p;
    uint32_t n;
    uint32_t *stream_of; /* [n_tasks] */
} unrolling;

static uint32_t copy_of(const unrolling *u, uint32_t task, uint32_t c)
{
    const plan_stream *const s = &u->p->streams[u->stream_of[task]];
    return u->n * s->first_task + c * s->n_tasks + task - s->first_task;
}

/* What has no gate begins with its period: behind the rank's last task of the period before. */
static uint32_t gate_of(const unrolling *u, const plan_stream *compute, uint32_t gate, uint32_t c)
{
    if (gate != PLAN_NONE) return copy_of(u, gate, c);
    if (c == 0 || compute->n_tasks == 0) return PLAN_NONE;
    return copy_of(u, compute->first_task + compute->n_tasks - 1, c - 1);
}

/* What has no join ends with its period: before the rank's first task of the next one. */
static uint32_t join_of(const unrolling *u, const plan_stream *compute, const plan_task *t,
                        uint32_t c)
{
    const bool next = t->join == PLAN_NONE || (t->flags & TASK_FLAG_JOIN_NEXT) != 0;
    if (next && (c + 1 == u->n || compute->n_tasks == 0)) return PLAN_NONE;
    return copy_of(u, t->join == PLAN_NONE ? compute->first_task : t->join, next ? c + 1 : c);
}

static void copy_stream(const unrolling *u, const plan_stream *s, plan *out)
{
    const plan_stream *const compute = plan_compute(u->p, s->rank);
    for (uint32_t c = 0; c < u->n; c++)
        for (uint32_t i = s->first_task; i < s->first_task + s->n_tasks; i++) {
            plan_task t = u->p->tasks[i];
            const bool message = t.kind == TASK_SEND || t.kind == TASK_RECV;
            if (s->kind != STREAM_COMPUTE) {
                t.gate = gate_of(u, compute, t.gate, c);
                t.join = join_of(u, compute, &u->p->tasks[i], c);
            }
            if (message) t.link = copy_of(u, t.link, c);
            if (t.kind == TASK_COLL) t.link += c * u->p->n_colls;
            t.flags &= (uint8_t)~TASK_FLAG_JOIN_NEXT;
            out->tasks[copy_of(u, i, c)] = t;
        }
}

static void copy_collectives(const unrolling *u, plan *out)
{
    const plan *const p = u->p;
    for (uint32_t c = 0; c < u->n; c++) {
        for (uint32_t i = 0; i < p->n_colls; i++) {
            out->colls[c * p->n_colls + i] = p->colls[i];
            out->colls[c * p->n_colls + i].first_task += c * p->n_coll_tasks;
        }
        for (uint32_t i = 0; i < p->n_coll_tasks; i++)
            out->coll_tasks[c * p->n_coll_tasks + i] = copy_of(u, p->coll_tasks[i], c);
    }
}

td_status plan_repeat(const plan *p, uint32_t n, td_arena *a, plan *out, td_err *err)
{
    if ((uint64_t)p->n_tasks * n >= PLAN_NONE || (uint64_t)p->n_coll_tasks * n >= PLAN_NONE)
        return td_fail(err, TD_EUSAGE, "%u periods of %u tasks are more than a plan can number", n,
                       p->n_tasks);
    const unrolling u = {.p = p, .n = n, .stream_of = TD_NEW_N(a, uint32_t, p->n_tasks)};
    *out = *p;
    out->n_tasks = p->n_tasks * n;
    out->n_colls = p->n_colls * n;
    out->n_coll_tasks = p->n_coll_tasks * n;
    out->tasks = TD_NEW_N(a, plan_task, (size_t)out->n_tasks + 1);
    out->streams = TD_NEW_N(a, plan_stream, p->n_streams);
    out->colls = TD_NEW_N(a, plan_coll, out->n_colls);
    out->coll_tasks = TD_NEW_N(a, uint32_t, out->n_coll_tasks);
    if (u.stream_of == NULL || out->tasks == NULL || out->streams == NULL || out->colls == NULL ||
        out->coll_tasks == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for %u periods of %u tasks", n, p->n_tasks);
    for (uint32_t i = 0; i < p->n_streams; i++) {
        out->streams[i] = p->streams[i];
        out->streams[i].first_task *= n;
        out->streams[i].n_tasks *= n;
        for (uint32_t j = 0; j < p->streams[i].n_tasks; j++)
            u.stream_of[p->streams[i].first_task + j] = i;
    }
    for (uint32_t i = 0; i < p->n_streams; i++) copy_stream(&u, &p->streams[i], out);
    copy_collectives(&u, out);
    return TD_OK;
}

td_status plan_repeat_times(const plan *p, uint32_t n, const task_times *of,
                            const int64_t *begin_ns, td_arena *a, task_times *out, td_err *err)
{
    out->begin_ns = TD_NEW_N(a, int64_t, (size_t)p->n_tasks * n);
    out->end_ns = TD_NEW_N(a, int64_t, (size_t)p->n_tasks * n);
    if (out->begin_ns == NULL || out->end_ns == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for %u periods of %u tasks", n, p->n_tasks);
    for (uint32_t s = 0; s < p->n_streams; s++)
        for (uint32_t c = 0; c < n; c++)
            for (uint32_t i = 0; i < p->streams[s].n_tasks; i++) {
                const uint32_t from = p->streams[s].first_task + i;
                const size_t to =
                    (size_t)n * p->streams[s].first_task + (size_t)c * p->streams[s].n_tasks + i;
                out->begin_ns[to] = of[c].begin_ns[from] + begin_ns[c] - begin_ns[0];
                out->end_ns[to] = of[c].end_ns[from] + begin_ns[c] - begin_ns[0];
            }
    return TD_OK;
}

td_status plan_check_periods(const plan *p, int64_t n, td_err *err)
{
    if (n <= 1 || plan_validates(p)) return TD_OK;
    return td_fail(err, TD_EUSAGE,
                   "--periods %lld: all ranks end a step before the next one begins, unless it is "
                   "validated later; add --post-validation, or leave --periods out",
                   (long long)n);
}
