/* Post-validation's law: what a failed VERIFY repeats is the same on both ends of every message,
 * ends before it, and leaves no trace that running it twice would double. */
#include "schedules/plan_check.h"

/* The rank's VERIFY, or PLAN_NONE. */
static td_status find_verify(const plan_map *m, uint32_t rank, uint32_t *verify, td_err *err)
{
    const plan_stream *const s = plan_compute(m->p, rank);
    *verify = PLAN_NONE;
    for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++) {
        if (m->p->tasks[t].kind != TASK_VERIFY) continue;
        if (*verify != PLAN_NONE)
            return check_fail(m, t, err, "its rank validates the last step twice");
        *verify = t;
    }
    return TD_OK;
}

/* The prefix is the run of forwards that the compute stream begins with; MARKs may lie between it
 * and VERIFY. */
static td_status check_compute(const plan_map *m, uint32_t rank, uint32_t verify, td_err *err)
{
    const plan_stream *const s = plan_compute(m->p, rank);
    bool in_prefix = true;
    for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++) {
        const plan_task *const k = &m->p->tasks[t];
        const bool flagged = (k->flags & TASK_FLAG_PREFIX) != 0;
        if (flagged && (!in_prefix || verify == PLAN_NONE || t > verify))
            return check_fail(m, t, err, "it is to be repeated, but no VERIFY follows the prefix");
        if (flagged && k->kind != PASS_F && k->kind != TASK_MARK)
            return check_fail(m, t, err, "it is to be repeated, but is no forward");
        in_prefix = in_prefix && flagged;
        if (verify != PLAN_NONE && t < verify && !flagged && k->kind != TASK_MARK)
            return check_fail(m, t, err, "it runs before VERIFY, but is not to be repeated");
    }
    return TD_OK;
}

static td_status check_off(const plan_map *m, uint32_t task, uint32_t verify, td_err *err)
{
    const plan *const p = m->p;
    const plan_task *const t = &p->tasks[task];
    const bool flagged = (t->flags & TASK_FLAG_PREFIX) != 0;
    const bool state = t->kind != TASK_COLL && p->classes[t->cls].detail == CHANNEL_STATE;
    if (verify == PLAN_NONE && flagged)
        return check_fail(m, task, err, "it is to be repeated, but its rank has no VERIFY");
    if (verify == PLAN_NONE || (state && !flagged)) return TD_OK;
    if (!flagged)
        return t->gate != PLAN_NONE && t->gate >= verify
                   ? TD_OK
                   : check_fail(m, task, err, "it may run before VERIFY, but is not repeated");
    if (t->kind == TASK_COLL || state || (p->tasks[t->link].flags & TASK_FLAG_PREFIX) == 0)
        return check_fail(m, task, err, "it is to be repeated, but its other end is not");
    if (t->join == PLAN_NONE || t->join > verify || (t->flags & TASK_FLAG_JOIN_NEXT) != 0)
        return check_fail(m, task, err, "it is to be repeated, but VERIFY does not wait for it");
    return TD_OK;
}

bool plan_validates(const plan *p)
{
    for (uint32_t i = 0; i < p->n_classes; i++)
        if (p->classes[i].kind == TASK_VERIFY) return true;
    return false;
}

td_status check_prefix(const plan_map *m, td_err *err)
{
    const plan *const p = m->p;
    uint32_t n_verify = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        uint32_t verify = PLAN_NONE;
        TD_TRY(find_verify(m, r, &verify, err));
        TD_TRY(check_compute(m, r, verify, err));
        n_verify += verify != PLAN_NONE;
        for (uint32_t i = 1; i < p->ranks[r].n_streams; i++) {
            const plan_stream *const s = &p->streams[p->ranks[r].first_stream + i];
            for (uint32_t j = 0; j < s->n_tasks; j++)
                TD_TRY(check_off(m, s->first_task + j, verify, err));
        }
    }
    if (n_verify == 0 || n_verify == p->n_ranks) return TD_OK;
    return td_fail(err, TD_EPLAN, "%u of %u ranks validate the last step; all must", n_verify,
                   p->n_ranks);
}
