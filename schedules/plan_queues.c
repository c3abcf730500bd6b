/* Which streams share a queue. NCCL does the operations of one communicator one after another, in
 * the order in which a rank gives them to it, whatever streams they were given to; so a queue
 * (communicator) is made of all streams that meet each other, and of no others.
 *
 * What the checker proves about a run over queues. check_deadlock lets every stream do its tasks in
 * order, each held until all its ends are there (capacity 0: a send never ends before its receive
 * is posted). If each rank has at most one stream in a queue, then the order that the communicator
 * keeps is the order of that stream, and nothing waits that the sweep did not let wait. Both ends
 * of a pair of ranks being at the head of their streams when they meet, the k-th send from one to
 * the other meets its k-th receive, as NCCL matches them: it knows no tags. Two ranks that exchange
 * messages need no group for that: where both streams had the send first, or both the receive, the
 * sweep stopped at them and the plan was refused, whether the streams have one direction or both
 * (mapping channel, direction, single), and what it accepts has one end sending when the other
 * receives. A plan where a rank has two streams in one queue is refused, since NCCL would put an
 * order between them that no stream has. */
#include "schedules/plan_check.h"

static uint32_t root_of(uint32_t *parent, uint32_t s)
{
    while (parent[s] != s) {
        parent[s] = parent[parent[s]];
        s = parent[s];
    }
    return s;
}

/* The smaller index is the root, so that queues are numbered by their first streams. */
static void join(uint32_t *parent, uint32_t a, uint32_t b)
{
    const uint32_t x = root_of(parent, a), y = root_of(parent, b);
    if (x < y)
        parent[y] = x;
    else
        parent[x] = y;
}

static void join_streams(const plan_map *m, uint32_t *parent)
{
    const plan *const p = m->p;
    for (uint32_t s = 0; s < p->n_streams; s++) {
        const plan_stream *const st = &p->streams[s];
        uint32_t with = PLAN_NONE; /* most streams meet few others, again and again */
        for (uint32_t i = st->first_task; i < st->first_task + st->n_tasks; i++) {
            if (p->tasks[i].kind != TASK_SEND) continue;
            const uint32_t other = m->stream_of[p->tasks[i].link];
            if (other != with) join(parent, s, other);
            with = other;
        }
    }
    for (uint32_t c = 0; c < p->n_colls; c++) {
        const uint32_t *const tasks = &p->coll_tasks[p->colls[c].first_task];
        const uint32_t n = p->groups[p->colls[c].group].n_members;
        for (uint32_t i = 1; i < n; i++)
            join(parent, m->stream_of[tasks[0]], m->stream_of[tasks[i]]);
    }
}

/* The members of collectives are numbered as their group numbers them. */
static void take_group_order(const plan_map *m, plan_queues *q)
{
    const plan *const p = m->p;
    for (uint32_t c = 0; c < p->n_colls; c++) {
        const plan_group *const g = &p->groups[p->colls[c].group];
        const uint32_t first = p->coll_tasks[p->colls[c].first_task];
        const plan_queue *const to = &q->queues[q->of_stream[m->stream_of[first]]];
        for (uint32_t i = 0; i < g->n_members && g->n_members == to->n_members; i++)
            q->members[to->first_member + i] = p->group_members[g->first_member + i];
    }
}

static td_status queues_of(const plan_map *m, td_arena *a, plan_queues *out, td_err *err)
{
    const plan *const p = m->p;
    uint32_t *const parent = TD_NEW_N(a, uint32_t, p->n_streams);
    uint32_t *const last = TD_NEW_N(a, uint32_t, p->n_streams); /* rank + 1 that a queue got last */
    *out = (plan_queues){.of_stream = TD_NEW_N(a, uint32_t, p->n_streams),
                         .queues = TD_NEW_N(a, plan_queue, p->n_streams),
                         .members = TD_NEW_N(a, uint32_t, p->n_streams)};
    if (parent == NULL || last == NULL || out->of_stream == NULL || out->queues == NULL ||
        out->members == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the queues of a plan");
    for (uint32_t s = 0; s < p->n_streams; s++) parent[s] = s;
    join_streams(m, parent);
    for (uint32_t s = 0; s < p->n_streams; s++) {
        const plan_stream *const st = &p->streams[s];
        out->of_stream[s] = PLAN_NONE;
        if (st->kind == STREAM_COMPUTE || st->n_tasks == 0) continue;
        const uint32_t root = root_of(parent, s);
        if (root == s) out->of_stream[s] = out->n_queues++;
        out->of_stream[s] = out->of_stream[root];
        if (last[root] == st->rank + 1)
            return check_fail(m, st->first_task, err,
                              "its rank has two streams in one queue; streams that meet each other "
                              "are one NCCL communicator, which keeps one order");
        last[root] = st->rank + 1;
        out->queues[out->of_stream[s]].n_members++;
    }
    uint32_t first = 0;
    for (uint32_t i = 0; i < out->n_queues; i++) {
        out->queues[i].first_member = first;
        first += out->queues[i].n_members;
        out->queues[i].n_members = 0;
    }
    for (uint32_t s = 0; s < p->n_streams; s++) {
        if (out->of_stream[s] == PLAN_NONE) continue;
        plan_queue *const q = &out->queues[out->of_stream[s]];
        out->members[q->first_member + q->n_members++] = p->streams[s].rank;
        q->collective = p->streams[s].kind == STREAM_COLL;
    }
    take_group_order(m, out);
    return TD_OK;
}

td_status check_queues(const plan_map *m, td_arena *a, td_err *err)
{
    plan_queues q;
    return queues_of(m, a, &q, err);
}

td_status plan_find_queues(const plan *p, td_arena *a, plan_queues *out, td_err *err)
{
    plan_map m;
    TD_TRY(check_structure(p, a, &m, err));
    return queues_of(&m, a, out, err);
}
