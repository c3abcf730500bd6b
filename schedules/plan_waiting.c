/* How many streams of a rank may wait at once. A message or collective that is posted and has not
 * met its other ends yet is, on a GPU, a kernel that sits on the device and spins. A device holds
 * only so many kernels at a time, and when waiting ones take all the places, the one that would end
 * the wait never starts. */
#include "schedules/plan_check.h"

/* Resident grids a device (CUDA C++ Programming Guide, technical specifications per compute
 * capability: 128 from 7.0 to 9.0), less one for what computes. */
enum { PLAN_WAITING_MAX = 127 };

/* From just after a task's gate until its join is over its stream may wait; a stream's windows may
 * overlap, and count once. Adds +1 and -1 to the half-steps between compute positions. */
static void add_stream(const plan *p, const plan_stream *s, const plan_stream *compute,
                       int32_t *change)
{
    uint32_t until = 0; /* first position at which the stream no longer waits */
    for (uint32_t i = s->first_task; i < s->first_task + s->n_tasks; i++) {
        const plan_task *const t = &p->tasks[i];
        uint32_t from = t->gate == PLAN_NONE ? 0 : t->gate - compute->first_task + 1;
        const uint32_t to = t->join == PLAN_NONE || (t->flags & TASK_FLAG_JOIN_NEXT) != 0
                                ? compute->n_tasks + 1
                                : t->join - compute->first_task + 1;
        if (from < until) from = until;
        if (to <= from) continue;
        change[from]++;
        change[to]--;
        until = to;
    }
}

uint32_t plan_streams_waiting(const plan *p, uint32_t rank, int32_t *change, uint32_t *position)
{
    const plan_rank *const r = &p->ranks[rank];
    const plan_stream *const compute = plan_compute(p, rank);
    for (uint32_t i = 0; i < compute->n_tasks + 2; i++) change[i] = 0;
    for (uint32_t i = 1; i < r->n_streams; i++)
        add_stream(p, &p->streams[r->first_stream + i], compute, change);
    int32_t now = 0, most = 0;
    for (uint32_t i = 0; i < compute->n_tasks + 2; i++) {
        now += change[i];
        if (now <= most) continue;
        most = now;
        *position = i;
    }
    return (uint32_t)most;
}

td_status check_waiting(const plan_map *m, td_arena *a, td_err *err)
{
    const plan *const p = m->p;
    uint32_t longest = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++)
        if (plan_compute(p, r)->n_tasks > longest) longest = plan_compute(p, r)->n_tasks;
    int32_t *const change = TD_NEW_N(a, int32_t, (size_t)longest + 2);
    if (change == NULL) return td_fail(err, TD_ENOMEM, "out of memory to check a plan");
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        if (p->ranks[r].n_streams <= PLAN_WAITING_MAX) continue;
        uint32_t at = 0;
        const uint32_t n = plan_streams_waiting(p, r, change, &at);
        if (n <= PLAN_WAITING_MAX) continue;
        return td_fail(err, TD_EPLAN,
                       "rank %u: %u streams may wait at once (before compute task %u); a device "
                       "holds %d; --mapping direction or single shares streams, a smaller "
                       "--lookahead posts fewer receives",
                       r, n, at, PLAN_WAITING_MAX);
    }
    return TD_OK;
}
