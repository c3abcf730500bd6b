/* collect: the collectives, as streams and tasks. */
#include "schedules/lower_collect.h"

#include <stdlib.h>
#include <string.h>

td_status collect_group(collect *c, const uint32_t *ranks, uint32_t n, int32_t true_size,
                        uint32_t *out, td_err *err)
{
    plan *const p = c->out;
    for (uint32_t g = c->first_group; g < p->n_groups; g++)
        if (p->groups[g].n_members == n && p->groups[g].true_size == true_size &&
            memcmp(&p->group_members[p->groups[g].first_member], ranks, n * sizeof *ranks) == 0) {
            *out = g;
            return TD_OK;
        }
    td_arena *const a = c->l->a;
    TD_TRY(TD_GROW(a, p->groups, c->cap_groups, p->n_groups + 1, err));
    TD_TRY(TD_GROW(a, p->group_members, c->cap_group_members, p->n_group_members + n, err));
    memcpy(&p->group_members[p->n_group_members], ranks, n * sizeof *ranks);
    p->groups[p->n_groups] =
        (plan_group){.first_member = p->n_group_members, .n_members = n, .true_size = true_size};
    p->n_group_members += n;
    *out = p->n_groups++;
    return TD_OK;
}

td_status collect_begin(collect *c, collective item, td_err *err)
{
    TD_TRY(TD_GROW(c->l->a, c->items, c->cap, c->n + 1, err));
    item.id = (uint32_t)c->n;
    item.first = (uint32_t)c->n_members;
    c->items[c->n++] = item;
    return TD_OK;
}

td_status collect_member(collect *c, uint32_t gate, uint32_t join, uint32_t inst, td_err *err)
{
    td_arena *const a = c->l->a;
    TD_TRY(TD_GROW(a, c->gates, c->cap_gates, c->n_members + 1, err));
    TD_TRY(TD_GROW(a, c->joins, c->cap_joins, c->n_members + 1, err));
    TD_TRY(TD_GROW(a, c->insts, c->cap_insts, c->n_members + 1, err));
    c->gates[c->n_members] = gate;
    c->joins[c->n_members] = join;
    c->insts[c->n_members++] = inst;
    return TD_OK;
}

static int compare_collectives(const void *a, const void *b)
{
    const collective *const x = a, *const y = b;
    if (x->group != y->group) return x->group < y->group ? -1 : 1;
    if (x->when != y->when) return x->when < y->when ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static td_status coll_task(const collect *c, class_table *classes, const collective *item,
                           uint32_t i, plan_task *t, td_err *err)
{
    *t = (plan_task){.kind = TASK_COLL,
                     .flags = item->meet ? TASK_FLAG_MEET : 0,
                     .slice = (uint16_t)item->k,
                     .microbatch = item->m < 0 ? PLAN_NONE : (uint32_t)item->m,
                     .gate = c->gates[item->first + i],
                     .join = c->joins[item->first + i]};
    const plan_class pc = {.kind = TASK_COLL,
                           .detail = (uint8_t)item->kind,
                           .purpose = (uint8_t)item->purpose,
                           .inst = c->insts[item->first + i],
                           .second = PLAN_NONE,
                           .slice_len = item->near,
                           .prefix = item->at,
                           .bytes = item->bytes};
    return class_intern(classes, &pc, &t->cls, err);
}

td_status collect_emit(collect *c, td_err *err)
{
    td_arena *const a = c->l->a;
    plan *const p = c->out;
    if (c->n == 0) return TD_OK;
    qsort(c->items, c->n, sizeof *c->items, compare_collectives);
    new_stream *const streams = TD_NEW_N(a, new_stream, p->n_group_members);
    plan_task *const tasks = TD_NEW_N(a, plan_task, c->n_members);
    plan_coll *const colls = TD_NEW_N(a, plan_coll, p->n_colls + c->n);
    uint32_t *const coll_tasks = TD_NEW_N(a, uint32_t, p->n_coll_tasks + c->n_members);
    if (streams == NULL || tasks == NULL || colls == NULL || coll_tasks == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for collectives");
    if (p->n_colls > 0) memcpy(colls, p->colls, p->n_colls * sizeof *colls);
    if (p->n_coll_tasks > 0)
        memcpy(coll_tasks, p->coll_tasks, p->n_coll_tasks * sizeof *coll_tasks);
    class_table classes;
    TD_TRY(class_table_open(&classes, a, c->in, err));
    uint32_t n_streams = 0, n_tasks = 0;
    for (size_t first = 0, end = 0; first < c->n; first = end) {
        const uint32_t group = c->items[first].group;
        while (end < c->n && c->items[end].group == group) end++;
        const plan_group *const g = &p->groups[group];
        for (uint32_t i = 0; i < g->n_members; i++) {
            streams[n_streams++] = (new_stream){.rank = p->group_members[g->first_member + i],
                                                .kind = STREAM_COLL,
                                                .channel = group,
                                                .first = n_tasks,
                                                .n = (uint32_t)(end - first)};
            for (size_t j = first; j < end; j++) {
                TD_TRY(coll_task(c, &classes, &c->items[j], i, &tasks[n_tasks], err));
                const uint32_t coll = p->n_colls + (uint32_t)j;
                const uint32_t slot = p->n_coll_tasks + c->items[j].first;
                tasks[n_tasks].link = coll;
                colls[coll] =
                    (plan_coll){.group = group, .first_task = slot, .root = c->items[j].root};
                coll_tasks[slot + i] = c->in->n_tasks + n_tasks++;
            }
        }
    }
    const plan grouped = *p;
    TD_TRY(lower_add_streams(a, &grouped, streams, n_streams, tasks, n_tasks, p, err));
    p->colls = colls;
    p->coll_tasks = coll_tasks;
    p->n_colls += (uint32_t)c->n;
    p->n_coll_tasks += (uint32_t)c->n_members;
    class_table_close(&classes, p);
    return TD_OK;
}

td_status lower_collect(const lowering *l, const plan *in, plan *out, td_err *err)
{
    *out = *in;
    collect c = {.l = l, .in = in, .out = out};
    TD_TRY(collect_vocab(&c, err));
    c.first_group = out->n_groups; /* barriers have communicators of their own */
    if (!l->o->no_step || l->o->keep_sync) TD_TRY(collect_gradients(&c, err));
    return collect_emit(&c, err);
}
