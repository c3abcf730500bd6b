/* Numbers of the tasks of shards, before they are written: see lower_unfold.c. */
#include "schedules/lower_unfold.h"

td_status unfold_cuts_of(unfold *u, const plan_member *m, class_cuts **out, td_err *err)
{
    const plan *const p = u->in;
    const plan_class *const c = &p->classes[m->cls];
    const plan_inst *const inst = &p->insts[c->inst];
    const bool split =
        index_find(u->l->ix, PASS_W, inst->stage, (int32_t)m->microbatch, m->slice) != NODE_NONE;
    class_cuts *const k = &u->cuts[m->cls][split];
    *out = k;
    if (k->known) return TD_OK;
    sizes z = *u->l->o->sizes;
    z.run.tp = u->l->row_tp[plan_home(inst, m->kind)];
    const cut_query q = {.pass = (pass_kind)m->kind,
                         .stage = inst->stage,
                         .slice_len = c->slice_len,
                         .split = split,
                         .alone = m->kind == PASS_F && inst->forward_row != inst->backward_row};
    k->known = true;
    return pass_cuts_of(&z, &q, u->l->a, &k->cuts, &k->n, err);
}

int unfold_passes_of(const plan *p, uint32_t task, plan_member out[2])
{
    const plan_task *const t = &p->tasks[task];
    if (t->kind == TASK_PAIR) {
        out[0] = p->members[t->link];
        out[1] = p->members[t->link + 1];
        return 2;
    }
    out[0] = (plan_member){.kind = t->kind,
                           .slice = t->slice,
                           .microbatch = t->microbatch,
                           .cls = t->cls,
                           .first_use = t->first_use,
                           .n_uses = t[1].first_use - t->first_use};
    return t->kind < PASS_COUNT ? 1 : 0;
}

/* Numbers a stream of messages from `first` on: a stream of its own for each shard of the other
 * end, or messages to all shards one behind the other. Returns how many it becomes. */
static uint32_t number_messages(unfold *u, const plan_stream *s, uint32_t first, uint32_t *streams)
{
    const bool own = s->kind != STREAM_BOTH;
    uint32_t at = first, copies = 1;
    for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++) {
        copies = unfold_copies(u, s->rank, u->rank_of[u->in->tasks[t].link]);
        u->first[t] = u->last[t] = at;
        u->stride[t] = own ? s->n_tasks : 1;
        at += own ? 1 : copies;
    }
    *streams = own ? copies : 1;
    return own ? s->n_tasks * copies : at - first;
}

/* Numbers the tasks of a rank's shard: its streams in order, then its cuts. A stream of collectives
 * becomes one for each kind of meeting that is in it. */
static td_status number_rank(unfold *u, uint32_t rank, td_err *err)
{
    const plan *const p = u->in;
    const plan_rank *const r = &p->ranks[rank];
    old_rank *const k = &u->ranks[rank];
    uint32_t n = 0;
    for (uint32_t i = r->first_stream; i < r->first_stream + r->n_streams; i++) {
        const plan_stream *const s = &p->streams[i];
        uint32_t streams = 1, meetings[MEETINGS] = {0};
        if (s->kind != STREAM_COMPUTE && s->kind != STREAM_COLL) {
            n += number_messages(u, s, n, &streams);
            k->n_streams += streams;
            continue;
        }
        for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++) {
            plan_member m[2];
            uint32_t pieces = 0;
            for (int j = 0, end = unfold_passes_of(p, t, m); j < end; j++) {
                class_cuts *cuts = NULL;
                TD_TRY(unfold_cuts_of(u, &m[j], &cuts, err));
                pieces += (uint32_t)cuts->n + 1;
                k->n_cuts += (uint32_t)cuts->n;
            }
            if (pieces == 0) pieces = 1;
            meetings[unfold_meeting_of(p, &p->tasks[t])] = 1;
            u->first[t] = n;
            n += pieces;
            u->last[t] = n - 1;
        }
        const uint32_t kinds = meetings[MEET_LIKE] + meetings[MEET_ALL] + meetings[MEET_NEAR];
        k->n_streams += kinds > 1 ? kinds : 1;
    }
    k->n_streams += k->n_cuts > 0;
    k->n_tasks = n + k->n_cuts;
    return TD_OK;
}

/* Collectives of each kind of meeting come one behind the other in a stream of their own. */
static void order_meetings(unfold *u, const plan_stream *s)
{
    uint32_t at = s->n_tasks == 0 ? 0 : u->first[s->first_task];
    for (int meeting = 0; s->kind == STREAM_COLL && meeting < MEETINGS; meeting++)
        for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++)
            if (unfold_meeting_of(u->in, &u->in->tasks[t]) == (unfold_meeting)meeting)
                u->first[t] = u->last[t] = at++;
}

td_status unfold_number(unfold *u, td_err *err)
{
    const plan *const p = u->in;
    uint64_t ranks = 0, tasks = 0, streams = 0;
    for (uint32_t i = 0; i < p->n_streams; i++)
        for (uint32_t t = 0; t < p->streams[i].n_tasks; t++)
            u->rank_of[p->streams[i].first_task + t] = p->streams[i].rank;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        TD_TRY(number_rank(u, r, err));
        old_rank *const k = &u->ranks[r];
        k->first = (uint32_t)ranks;
        k->shards = (uint32_t)p->ranks[r].tp;
        k->tasks = (uint32_t)tasks;
        ranks += k->shards;
        tasks += (uint64_t)k->n_tasks * k->shards;
        streams += (uint64_t)k->n_streams * k->shards;
        if (tasks >= PLAN_NONE || ranks > 1 << 24)
            return td_fail(err, TD_EUSAGE, "more shards' tasks than a plan can number");
    }
    for (uint32_t i = 0; i < p->n_streams; i++) order_meetings(u, &p->streams[i]);
    u->out->n_ranks = (uint32_t)ranks;
    u->out->n_tasks = (uint32_t)tasks;
    u->out->n_streams = (uint32_t)streams;
    return TD_OK;
}
