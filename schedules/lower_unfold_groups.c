/* Channels, groups and collectives of shards: see lower_unfold.c. */
#include "schedules/lower_unfold.h"

td_status unfold_channels(unfold *u, td_err *err)
{
    const plan *const p = u->in;
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_channels; i++) {
        const old_rank *const src = &u->ranks[p->channels[i].src];
        const old_rank *const dst = &u->ranks[p->channels[i].dst];
        if (src->shards != dst->shards)
            return td_fail(
                err, TD_EUSAGE,
                "merged forward ranks are not executed: tensor-parallel degrees %u and %u of "
                "rows that talk must be equal",
                src->shards, dst->shards);
        u->channel[i] = n;
        n += src->shards;
    }
    u->out->n_channels = n;
    u->out->channels = TD_NEW_N(u->l->a, plan_channel, n);
    if (u->out->channels == NULL) return td_fail(err, TD_ENOMEM, "out of memory for channels");
    for (uint32_t i = 0; i < p->n_channels; i++)
        for (uint32_t s = 0; s < u->ranks[p->channels[i].src].shards; s++)
            u->out->channels[u->channel[i] + s] =
                (plan_channel){.src = u->ranks[p->channels[i].src].first + s,
                               .dst = u->ranks[p->channels[i].dst].first + s,
                               .cls = p->channels[i].cls};
    return TD_OK;
}

static void add_group(plan *p, uint32_t first_member, int32_t true_size)
{
    p->groups[p->n_groups++] = (plan_group){.first_member = first_member,
                                            .n_members = p->n_group_members - first_member,
                                            .true_size = true_size};
}

td_status unfold_groups(unfold *u, td_err *err)
{
    const plan *const p = u->in;
    plan *const out = u->out;
    uint64_t members = out->n_ranks, groups = p->n_ranks;
    for (uint32_t g = 0; g < p->n_groups; g++) {
        const uint32_t tp = u->ranks[p->group_members[p->groups[g].first_member]].shards;
        members += 2 * (uint64_t)tp * p->groups[g].n_members;
        groups += tp + 1;
    }
    out->groups = TD_NEW_N(u->l->a, plan_group, groups);
    out->group_members = TD_NEW_N(u->l->a, uint32_t, members);
    if (out->groups == NULL || out->group_members == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for groups");
    out->n_groups = out->n_group_members = 0;
    for (uint32_t g = 0; g < p->n_groups; g++) {
        const plan_group *const from = &p->groups[g];
        const uint32_t *const ranks = &p->group_members[from->first_member];
        const uint32_t tp = u->ranks[ranks[0]].shards;
        u->group[g] = out->n_groups;
        for (uint32_t s = 0; s < tp; s++) {
            const uint32_t first = out->n_group_members;
            for (uint32_t i = 0; i < from->n_members; i++) {
                if (u->ranks[ranks[i]].shards != tp)
                    return td_fail(err, TD_EUSAGE, "a collective of rows of unequal degrees");
                out->group_members[out->n_group_members++] = u->ranks[ranks[i]].first + s;
            }
            add_group(out, first, from->true_size);
        }
        u->apart[g] = out->n_groups;
        const uint32_t first = out->n_group_members;
        for (uint32_t i = 0; i < from->n_members; i++)
            for (uint32_t s = 0; s < tp; s++)
                out->group_members[out->n_group_members++] = u->ranks[ranks[i]].first + s;
        add_group(out, first, from->true_size * (int32_t)tp);
    }
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        const uint32_t first = out->n_group_members;
        u->ranks[r].cut_group = out->n_groups;
        for (uint32_t s = 0; s < u->ranks[r].shards; s++)
            out->group_members[out->n_group_members++] = u->ranks[r].first + s;
        add_group(out, first, (int32_t)u->ranks[r].shards);
    }
    return TD_OK;
}

td_status unfold_colls(unfold *u, td_err *err)
{
    const plan *const p = u->in;
    plan *const out = u->out;
    uint64_t colls = 0, tasks = 0;
    for (uint32_t i = 0; i < p->n_colls; i++) {
        const plan_group *const g = &p->groups[p->colls[i].group];
        const uint32_t tp = u->ranks[p->group_members[g->first_member]].shards;
        colls += tp;
        tasks += (uint64_t)tp * g->n_members;
    }
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        colls += u->ranks[r].n_cuts;
        tasks += (uint64_t)u->ranks[r].n_cuts * u->ranks[r].shards;
    }
    out->colls = TD_NEW_N(u->l->a, plan_coll, colls);
    out->coll_tasks = TD_NEW_N(u->l->a, uint32_t, tasks);
    if (out->colls == NULL || out->coll_tasks == NULL || tasks >= PLAN_NONE)
        return td_fail(err, TD_ENOMEM, "out of memory for collectives");
    out->n_colls = out->n_coll_tasks = 0;
    for (uint32_t i = 0; i < p->n_colls; i++) {
        const plan_coll *const c = &p->colls[i];
        const plan_group *const g = &p->groups[c->group];
        const uint32_t tp = u->ranks[p->group_members[g->first_member]].shards;
        const bool all = unfold_is_norm(p, &p->tasks[p->coll_tasks[c->first_task]]);
        u->coll[i] = out->n_colls;
        for (uint32_t s = 0; s < (all ? 1 : tp); s++) {
            out->colls[out->n_colls++] =
                (plan_coll){.group = all ? u->apart[c->group] : u->group[c->group] + s,
                            .first_task = out->n_coll_tasks,
                            .root = c->root};
            out->n_coll_tasks += g->n_members * (all ? tp : 1);
        }
    }
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        old_rank *const k = &u->ranks[r];
        k->first_cut = out->n_colls;
        for (uint32_t i = 0; i < k->n_cuts; i++, out->n_coll_tasks += k->shards)
            out->colls[out->n_colls++] =
                (plan_coll){.group = k->cut_group, .first_task = out->n_coll_tasks};
    }
    return TD_OK;
}
