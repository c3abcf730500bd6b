/* Channels, groups and collectives of shards: see lower_unfold.c. */
#include "schedules/lower_unfold.h"

td_status unfold_channels(unfold *u, td_err *err)
{
    const plan *const p = u->in;
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_channels; i++) {
        const old_rank *const src = &u->ranks[p->channels[i].src];
        const old_rank *const dst = &u->ranks[p->channels[i].dst];
        const uint32_t many = src->shards > dst->shards ? src->shards : dst->shards;
        const uint32_t few = src->shards > dst->shards ? dst->shards : src->shards;
        if (few != many && few != 1)
            return td_fail(err, TD_EUSAGE,
                           "tensor-parallel degrees %u and %u of rows that talk: shards of tables "
                           "do not fit each other; legal: one degree, or 1 on one of the sides",
                           few, many);
        u->channel[i] = n;
        n += many;
    }
    u->out->n_channels = n;
    u->out->channels = TD_NEW_N(u->l->a, plan_channel, n);
    if (u->out->channels == NULL) return td_fail(err, TD_ENOMEM, "out of memory for channels");
    for (uint32_t i = 0; i < p->n_channels; i++) {
        const uint32_t src = p->channels[i].src, dst = p->channels[i].dst;
        const uint32_t out = unfold_copies(u, src, dst), in = unfold_copies(u, dst, src);
        for (uint32_t s = 0; s < u->ranks[src].shards * out; s++)
            u->out->channels[u->channel[i] + s] =
                (plan_channel){.src = u->ranks[src].first + s / out,
                               .dst = u->ranks[dst].first + s / in,
                               .cls = p->channels[i].cls};
    }
    return TD_OK;
}

/* Shards of each rank of a group, 0 where they differ; *all of all of them. */
static uint32_t shards_of(const unfold *u, const plan_group *g, uint32_t *all)
{
    const uint32_t *const ranks = &u->in->group_members[g->first_member];
    uint32_t each = u->ranks[ranks[0]].shards;
    *all = 0;
    for (uint32_t i = 0; i < g->n_members; i++) {
        *all += u->ranks[ranks[i]].shards;
        if (u->ranks[ranks[i]].shards != u->ranks[ranks[0]].shards) each = 0;
    }
    return each;
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
        uint32_t all = 0;
        groups += shards_of(u, &p->groups[g], &all) + 1;
        members += 2 * (uint64_t)all;
    }
    out->groups = TD_NEW_N(u->l->a, plan_group, groups);
    out->group_members = TD_NEW_N(u->l->a, uint32_t, members);
    if (out->groups == NULL || out->group_members == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for groups");
    out->n_groups = out->n_group_members = 0;
    for (uint32_t g = 0; g < p->n_groups; g++) {
        const plan_group *const from = &p->groups[g];
        const uint32_t *const ranks = &p->group_members[from->first_member];
        uint32_t all = 0;
        const uint32_t tp = shards_of(u, from, &all);
        u->group[g] = out->n_groups;
        for (uint32_t s = 0; s < tp; s++) {
            const uint32_t first = out->n_group_members;
            for (uint32_t i = 0; i < from->n_members; i++)
                out->group_members[out->n_group_members++] = u->ranks[ranks[i]].first + s;
            add_group(out, first, from->true_size);
        }
        u->apart[g] = out->n_groups;
        const uint32_t first = out->n_group_members;
        for (uint32_t i = 0; i < from->n_members; i++)
            for (uint32_t s = 0; s < u->ranks[ranks[i]].shards; s++)
                out->group_members[out->n_group_members++] = u->ranks[ranks[i]].first + s;
        add_group(out, first, from->true_size / (int32_t)from->n_members * (int32_t)all);
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
        uint32_t all = 0;
        colls += shards_of(u, &p->groups[p->colls[i].group], &all) + 1;
        tasks += all;
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
        uint32_t members = 0;
        const uint32_t tp = shards_of(u, g, &members);
        const bool all = unfold_is_of_all(p, &p->tasks[p->coll_tasks[c->first_task]]);
        u->coll[i] = out->n_colls;
        if (tp == 0 && !all)
            return td_fail(err, TD_EUSAGE, "a collective of rows of unequal degrees");
        for (uint32_t s = 0; s < (all ? 1 : tp); s++) {
            out->colls[out->n_colls++] =
                (plan_coll){.group = all ? u->apart[c->group] : u->group[c->group] + s,
                            .first_task = out->n_coll_tasks,
                            .root = c->root};
            out->n_coll_tasks += all ? members : g->n_members;
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
