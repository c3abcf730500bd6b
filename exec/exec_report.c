/* Where every rank of this process stands, for a run that did not end by itself. */
#include "exec/device_run.h"

enum { LAST_TASKS = 3 }; /* of each stream */

static const char *state_of(const executor *x, const exec_rank *r, const plan_stream *s,
                            uint32_t task, const exec_post **post)
{
    const device_note *const noted =
        x->device == NULL || x->device->noted == NULL ? NULL : &x->device->noted[r->index];
    *post = NULL;
    if (s->kind == STREAM_COMPUTE) {
        const uint32_t i = task - s->first_task, at = noted == NULL ? r->at : noted->at;
        const bool computes = noted == NULL ? r->computes : noted->computes;
        return i < at ? "done" : i > at ? "to come" : computes ? "running" : "next";
    }
    for (uint32_t i = 0; i < r->n_posts; i++)
        if (r->posts[i].task == task) {
            if (i >= r->n_posted) return "to come";
            *post = &r->posts[i];
            return r->posts[i].op.done ? "done" : "waits";
        }
    return "to come";
}

static void add_task(const executor *x, const exec_rank *r, const plan_stream *s, uint32_t task,
                     int64_t now_ns, td_text *out)
{
    const plan *const p = x->p;
    const plan_task *const t = &p->tasks[task];
    const exec_post *post = NULL;
    const char *const state = state_of(x, r, s, task, &post);
    td_text_add(out, "  ");
    plan_task_text(p, task, out);
    if (s->kind != STREAM_COMPUTE)
        td_text_addf(out, ", %lld bytes", (long long)p->classes[t->cls].bytes);
    if (t->kind == TASK_SEND) td_text_addf(out, " to rank %u", plan_task_rank(p, t->link));
    if (t->kind == TASK_RECV) td_text_addf(out, " from rank %u", plan_task_rank(p, t->link));
    if (t->kind == TASK_COLL) {
        const plan_group *const g = &p->groups[p->colls[t->link].group];
        td_text_add(out, " among ranks");
        for (uint32_t i = 0; i < g->n_members; i++)
            td_text_addf(out, " %u", p->group_members[g->first_member + i]);
    }
    td_text_addf(out, ": %s", state);
    if (post != NULL && !post->op.done)
        td_text_addf(out, ", for %.3g s", (double)(now_ns - post->posted_ns) / 1e9);
    td_text_add(out, "\n");
}

/* The last task that is over, what stands behind it, and at most one that is to come. */
static void add_stream(const executor *x, const exec_rank *r, const plan_stream *s, int64_t now_ns,
                       td_text *out)
{
    const exec_post *post = NULL;
    uint32_t over = 0;
    while (over < s->n_tasks && state_of(x, r, s, s->first_task + over, &post)[0] == 'd') over++;
    const uint32_t first = over > 1 ? over - 1 : 0;
    for (uint32_t i = first; i < s->n_tasks && i < first + LAST_TASKS; i++)
        add_task(x, r, s, s->first_task + i, now_ns, out);
}

void exec_report(const executor *x, td_text *out)
{
    const plan *const p = x->p;
    const int64_t now = td_now_ns();
    for (uint32_t k = 0; k < p->n_ranks; k++) {
        const plan_rank *const r = &p->ranks[k];
        const exec_period *const here = x->ranks[k].now;
        if (!exec_is_here(x, k) || here == NULL) continue;
        td_text_addf(out, "rank %u, step %ld, %.3g s after its start:\n", k, here->step.number,
                     (double)(now - here->start_ns) / 1e9);
        for (uint32_t s = r->first_stream; s < r->first_stream + r->n_streams; s++)
            add_stream(x, &x->ranks[k], &p->streams[s], now, out);
    }
}
