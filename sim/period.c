/* How far apart the periods of a plan follow each other once they overlap. */
#include "sim/period.h"

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

td_status sim_periods(const plan *p, uint32_t n, const int64_t *class_ns, const sim_options *o,
                      const double *slow, td_arena *a, plan *several, task_times *times,
                      td_err *err)
{
    sim_options so = *o;
    TD_TRY(plan_repeat(p, n, a, several, err));
    sim_noise noise = {.p = several, .slow = slow};
    const sim_live live = {.self = &noise, .compute = noise_compute};
    so.live = slow != NULL ? &live : NULL;
    return sim_run(several, class_ns, &so, a, times, NULL, err);
}

td_status sim_period(const plan *p, const int64_t *class_ns, const sim_options *o,
                     const double *slow, int64_t *period_ns, td_err *err)
{
    plan several;
    task_times t = {0};
    td_arena *const scratch = td_arena_new();
    if (scratch == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    const td_status st = sim_periods(p, SIM_PERIODS, class_ns, o, slow, scratch, &several, &t, err);
    if (st == TD_OK)
        *period_ns = end_of(&several, &t, SIM_PERIODS) - end_of(&several, &t, SIM_PERIODS - 1);
    td_arena_free(scratch);
    return st;
}
