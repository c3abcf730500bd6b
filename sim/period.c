/* How far apart the periods of a plan follow each other once they overlap. */
#include "sim/period.h"

#include <string.h>

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

td_status sim_unroll(const plan *p, uint32_t n, td_arena *a, plan *out, td_err *err)
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

/* The end of the last compute task of the first n copies of each rank. */
static int64_t end_of(const plan *unrolled, const task_times *t, uint32_t n)
{
    int64_t end = 0;
    for (uint32_t r = 0; r < unrolled->n_ranks; r++) {
        const plan_stream *const s = plan_compute(unrolled, r);
        const uint32_t each = s->n_tasks / SIM_PERIODS;
        if (each > 0 && t->end_ns[s->first_task + n * each - 1] > end)
            end = t->end_ns[s->first_task + n * each - 1];
    }
    return end;
}

static td_status run_periods(const plan *p, const int64_t *class_ns, const sim_options *o,
                             const double *slow, td_arena *scratch, int64_t *period_ns, td_err *err)
{
    plan unrolled;
    task_times t = {0};
    sim_options so = *o;
    TD_TRY(sim_unroll(p, SIM_PERIODS, scratch, &unrolled, err));
    sim_noise n = {.p = &unrolled, .slow = slow};
    const sim_live live = {.self = &n, .compute = noise_compute};
    so.live = slow != NULL ? &live : NULL;
    TD_TRY(sim_run(&unrolled, class_ns, &so, scratch, &t, NULL, err));
    *period_ns = end_of(&unrolled, &t, SIM_PERIODS) - end_of(&unrolled, &t, SIM_PERIODS - 1);
    return TD_OK;
}

td_status sim_period(const plan *p, const int64_t *class_ns, const sim_options *o,
                     const double *slow, int64_t *period_ns, td_err *err)
{
    td_arena *const scratch = td_arena_new();
    if (scratch == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    const td_status st = run_periods(p, class_ns, o, slow, scratch, period_ns, err);
    td_arena_free(scratch);
    return st;
}
