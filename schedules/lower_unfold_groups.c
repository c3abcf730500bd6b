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

/* How many neighbours meet in a group's collectives; 0: none. */
static uint32_t neighbours_of(const plan *p, uint32_t g)
{
    for (uint32_t i = 0; i < p->n_colls; i++) {
        const plan_task *const t = &p->tasks[p->coll_tasks[p->colls[i].first_task]];
        if (p->colls[i].group == g && unfold_meeting_of(p, t) == MEET_NEAR)
            return (uint32_t)p->classes[t->cls].slice_len;
    }
    return 0;
}

/* Of a rank's shards each `n` that lie side by side. */
static void add_neighbours(unfold *u, uint32_t g, uint32_t n)
{
    plan *const out = u->out;
    const old_rank *const r = &u->ranks[u->in->group_members[u->in->groups[g].first_member]];
    u->near[g] = out->n_groups;
    for (uint32_t s = 0; n > 0 && s < r->shards; s += n) {
        const uint32_t first = out->n_group_members;
        for (uint32_t i = 0; i < n; i++)
            out->group_members[out->n_group_members++] = r->first + s + i;
        add_group(out, first, (int32_t)n);
    }
}

td_status unfold_groups(unfold *u, td_err *err)
{
    const plan *const p = u->in;
    plan *const out = u->out;
    uint64_t members = out->n_ranks, groups = p->n_ranks;
    for (uint32_t g = 0; g < p->n_groups; g++) {
        uint32_t all = 0;
        groups += shards_of(u, &p->groups[g], &all) + 1;
        groups += all;
        members += 3 * (uint64_t)all;
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
        add_neighbours(u, g, neighbours_of(p, g));
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
        const plan_task *const t = &p->tasks[p->coll_tasks[c->first_task]];
        const unfold_meeting meeting = unfold_meeting_of(p, t);
        const uint32_t near = (uint32_t)p->classes[t->cls].slice_len;
        u->coll[i] = out->n_colls;
        if (tp == 0 && meeting != MEET_ALL)
            return td_fail(err, TD_EUSAGE, "a collective of rows of unequal degrees");
        const uint32_t step = meeting == MEET_LIKE ? 1 : meeting == MEET_NEAR ? near : members;
        for (uint32_t s = 0; s < (meeting == MEET_ALL ? members : tp); s += step) {
            out->colls[out->n_colls++] = (plan_coll){.group = unfold_group_of(u, c->group, t, s),
                                                     .first_task = out->n_coll_tasks,
                                                     .root = c->root};
            out->n_coll_tasks += meeting == MEET_LIKE ? g->n_members : step;
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
