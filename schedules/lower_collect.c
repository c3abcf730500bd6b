/* collect and step: the collectives, and what happens once a step.
 *
 * Each collective is placed right behind the last of its members' gates in the total order of
 * lower_when, and each group's stream keeps that order; so all members issue them in one order and
 * no edge points backwards (compare lower_comm.c). */
#include "schedules/lower.h"

#include <stdlib.h>
#include <string.h>

/* A collective before it becomes tasks; members are parallel to those of its group. */
typedef struct collective {
    uint64_t when; /* the last gate */
    uint32_t group, root, id;
    coll_kind kind;
    coll_purpose purpose;
    int64_t bytes;
    int32_t m, k; /* -1, 0: not of a microbatch */
    uint32_t first; /* gates[first + i], joins[first + i]: of member i; task ids */
} collective;

typedef struct collect {
    const lowering *l;
    const plan *in;
    plan *out;
    collective *items;
    size_t n, cap;
    uint32_t *gates, *joins, *insts; /* by member */
    size_t n_members, cap_gates, cap_joins, cap_insts;
    size_t cap_groups, cap_group_members;
    uint32_t first_group; /* groups of this pass: each pass has communicators of its own */
} collect;

/* The group of these ranks (ascending), made when it is new. */
static td_status collect_group(collect *c, const uint32_t *ranks, uint32_t n, int32_t true_size,
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
    p->groups[p->n_groups] = (plan_group){.first_member = p->n_group_members, .n_members = n,
                                          .true_size = true_size};
    p->n_group_members += n;
    *out = p->n_groups++;
    return TD_OK;
}

/* Starts a collective; collect_member then adds its members in group order. */
static td_status collect_begin(collect *c, collective item, td_err *err)
{
    TD_TRY(TD_GROW(c->l->a, c->items, c->cap, c->n + 1, err));
    item.id = (uint32_t)c->n;
    item.first = (uint32_t)c->n_members;
    c->items[c->n++] = item;
    return TD_OK;
}

static td_status collect_member(collect *c, uint32_t gate, uint32_t join, uint32_t inst,
                                td_err *err)
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
    *t = (plan_task){.kind = TASK_COLL, .slice = (uint16_t)item->k,
                     .microbatch = item->m < 0 ? PLAN_NONE : (uint32_t)item->m,
                     .gate = c->gates[item->first + i], .join = c->joins[item->first + i]};
    const plan_class pc = {.kind = TASK_COLL, .detail = (uint8_t)item->kind,
                           .purpose = (uint8_t)item->purpose, .inst = c->insts[item->first + i],
                           .second = PLAN_NONE, .bytes = item->bytes};
    return class_intern(classes, &pc, &t->cls, err);
}

/* Turns the collectives into streams, one per (group, member), and tasks. */
static td_status collect_emit(collect *c, td_err *err)
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
    if (p->n_coll_tasks > 0) memcpy(coll_tasks, p->coll_tasks, p->n_coll_tasks * sizeof *coll_tasks);
    class_table classes;
    TD_TRY(class_table_open(&classes, a, c->in, err));
    uint32_t n_streams = 0, n_tasks = 0;
    for (size_t first = 0, end = 0; first < c->n; first = end) {
        const uint32_t group = c->items[first].group;
        while (end < c->n && c->items[end].group == group) end++;
        const plan_group *const g = &p->groups[group];
        for (uint32_t i = 0; i < g->n_members; i++) {
            streams[n_streams++] = (new_stream){.rank = p->group_members[g->first_member + i],
                                                .kind = STREAM_COLL, .channel = group,
                                                .first = n_tasks, .n = (uint32_t)(end - first)};
            for (size_t j = first; j < end; j++) {
                TD_TRY(coll_task(c, &classes, &c->items[j], i, &tasks[n_tasks], err));
                const uint32_t coll = p->n_colls + (uint32_t)j;
                const uint32_t slot = p->n_coll_tasks + c->items[j].first;
                tasks[n_tasks].link = coll;
                colls[coll] = (plan_coll){.group = group, .first_task = slot,
                                          .root = c->items[j].root};
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

/* --- gradients --- */

/* The last pass of a row that adds to the gradients of a stage of a pipe. */
static uint32_t last_gradient(const lowering *l, int32_t pipe, int32_t stage)
{
    const schedule *const s = l->s;
    uint32_t last = NODE_NONE;
    for (int32_t m = 0; m < s->n_microbatches; m++)
        for (int32_t k = 0; s->microbatch_pipe[m] == pipe && k < s->n_slices; k++) {
            uint32_t node = index_find(l->ix, PASS_B, stage, m, k);
            if (node == NODE_NONE) node = index_find(l->ix, PASS_W, stage, m, k);
            if (node != NODE_NONE && (last == NODE_NONE || node > last)) last = node;
        }
    return last;
}

/* Where a stage's sync may start on a row: after its last gradient (eager), after the row's last
 * pass (end), or just before a given pass. */
static uint32_t sync_gate(const lowering *l, int32_t row, int32_t pipe, int32_t stage)
{
    const schedule *const s = l->s;
    const uint32_t eager = last_gradient(l, pipe, stage);
    const uint32_t end = l->ix->row_first[row + 1];
    uint32_t gate = s->sync == SYNC_END && end > l->ix->row_first[row] ? end - 1 : eager;
    for (int32_t i = 0; i < s->n_sync_at; i++) {
        const sched_sync_at *const at = &s->sync_at[i];
        if (at->row != row || at->stage != stage) continue;
        const uint32_t node = index_find(l->ix, (pass_kind)at->cell.kind, at->cell.stage,
                                         at->cell.microbatch, at->cell.slice);
        if (node != NODE_NONE && node > l->ix->row_first[row]) gate = node - 1;
    }
    return eager != NODE_NONE && gate < eager ? eager : gate;
}

typedef struct holder {
    uint32_t rank, gate, inst;
    uint64_t when;
} holder;

static int compare_holders(const void *a, const void *b)
{
    const holder *const x = a, *const y = b;
    return x->rank < y->rank ? -1 : x->rank > y->rank;
}

/* The ranks that hold `stage`, ascending, with the passes that end its gradients. */
static uint32_t stage_holders(const collect *c, int32_t stage, holder *out)
{
    const lowering *const l = c->l;
    uint32_t n = 0;
    for (int32_t pipe = 0; pipe < l->s->n_pipes; pipe++)
        for (int32_t d = 0; d < l->replicas; d++) {
            const int32_t row = l->s->pipes[pipe].backward_row[stage];
            const uint32_t node = sync_gate(l, row, pipe, stage);
            out[n++] = (holder){.rank = lower_rank(l, row, d),
                                .gate = lower_task(l, c->in, node, row, d),
                                .inst = (uint32_t)(pipe * l->s->n_stages + stage),
                                .when = node == NODE_NONE ? 0 : lower_when(l, node, row)};
        }
    qsort(out, n, sizeof *out, compare_holders);
    return n;
}

static td_status add_over(collect *c, collective item, const holder *h, uint32_t n,
                          int32_t true_size, td_err *err)
{
    uint32_t *const ranks = TD_NEW_N(c->l->a, uint32_t, n);
    if (ranks == NULL) return td_fail(err, TD_ENOMEM, "out of memory for collectives");
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0 && h[i].rank == h[i - 1].rank)
            return td_fail(err, TD_EPLAN, "rank %u holds two copies of one stage", h[i].rank);
        ranks[i] = h[i].rank;
        if (h[i].when > item.when) item.when = h[i].when;
    }
    TD_TRY(collect_group(c, ranks, n, true_size, &item.group, err));
    TD_TRY(collect_begin(c, item, err));
    for (uint32_t i = 0; i < n; i++)
        TD_TRY(collect_member(c, h[i].gate, PLAN_NONE, h[i].inst, err));
    return TD_OK;
}

static td_status collect_gradients(collect *c, td_err *err)
{
    const lowering *const l = c->l;
    const int32_t copies = l->s->n_pipes * l->o->dp;
    if (copies == 1) return TD_OK;
    holder *const h = TD_NEW_N(l->a, holder, l->s->n_pipes * l->replicas);
    if (h == NULL) return td_fail(err, TD_ENOMEM, "out of memory for collectives");
    for (int32_t stage = 0; stage < l->s->n_stages; stage++) {
        const uint32_t n = stage_holders(c, stage, h);
        collective item = {.kind = l->o->zero1 ? COLL_REDUCE_SCATTER : COLL_ALL_REDUCE,
                           .purpose = PURPOSE_GRAD_SYNC, .m = -1};
        TD_TRY(sizes_bytes(l->o->sizes, SIZE_GRADS, stage, 0, 0, &item.bytes, err));
        TD_TRY(add_over(c, item, h, n, copies, err));
    }
    return TD_OK;
}

td_status lower_collect(const lowering *l, const plan *in, plan *out, td_err *err)
{
    *out = *in;
    collect c = {.l = l, .in = in, .out = out};
    if (!l->o->no_step) TD_TRY(collect_gradients(&c, err));
    return collect_emit(&c, err);
}

/* --- step --- */

enum { TAIL_MARK, TAIL_NORM, TAIL_OPTIMIZER, TAIL_TASKS };

/* A compute task's id once every rank's compute stream has grown by the tail. */
static uint32_t moved(const plan *in, uint32_t task, uint32_t rank)
{
    const plan_stream *const last = plan_compute(in, in->n_ranks - 1);
    const uint32_t n_compute = last->first_task + last->n_tasks;
    if (task == PLAN_NONE) return PLAN_NONE;
    return task < n_compute ? task + rank * TAIL_TASKS : task + in->n_ranks * TAIL_TASKS;
}

static uint32_t tail_task(const plan *out, uint32_t rank, uint32_t which)
{
    const plan_stream *const s = plan_compute(out, rank);
    return s->first_task + s->n_tasks - TAIL_TASKS + which;
}

/* Every rank's compute stream ends with MARK (gradient syncs are done), NORM, OPTIMIZER. */
static td_status step_tails(const lowering *l, const plan *in, plan *out, td_err *err)
{
    *out = *in;
    const uint32_t more = in->n_ranks * TAIL_TASKS;
    if ((uint64_t)in->n_tasks + more >= PLAN_NONE)
        return td_fail(err, TD_EUSAGE, "more tasks than a plan can number");
    out->n_tasks = in->n_tasks + more;
    out->tasks = TD_NEW_N(l->a, plan_task, out->n_tasks + 1);
    out->streams = TD_NEW_N(l->a, plan_stream, in->n_streams);
    out->coll_tasks = TD_NEW_N(l->a, uint32_t, in->n_coll_tasks);
    if (out->tasks == NULL || out->streams == NULL || out->coll_tasks == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for %u tasks", out->n_tasks);
    class_table classes;
    TD_TRY(class_table_open(&classes, l->a, in, err));
    static const uint8_t kinds[TAIL_TASKS] = {TASK_MARK, TASK_NORM, TASK_OPTIMIZER};
    for (uint32_t i = 0; i < in->n_streams; i++) {
        const plan_stream *const s = &in->streams[i];
        plan_stream *const t = &out->streams[i];
        *t = *s;
        t->first_task = s->kind == STREAM_COMPUTE ? s->first_task + s->rank * TAIL_TASKS
                                                  : s->first_task + more;
        for (uint32_t j = 0; j < s->n_tasks; j++) {
            plan_task task = in->tasks[s->first_task + j];
            task.gate = moved(in, task.gate, s->rank);
            task.join = moved(in, task.join, s->rank);
            if (task.kind == TASK_SEND || task.kind == TASK_RECV)
                task.link += more; /* the other end is off the compute streams too */
            out->tasks[t->first_task + j] = task;
        }
        for (uint32_t j = 0; s->kind == STREAM_COMPUTE && j < TAIL_TASKS; j++) {
            plan_task *const task = &out->tasks[t->first_task + t->n_tasks++];
            *task = (plan_task){.kind = kinds[j], .microbatch = PLAN_NONE, .link = PLAN_NONE,
                                .gate = PLAN_NONE, .join = PLAN_NONE};
            const plan_class pc = {.kind = kinds[j], .inst = PLAN_NONE, .second = PLAN_NONE,
                                   .slice_len = (int32_t)out->ranks[s->rank].row};
            TD_TRY(class_intern(&classes, &pc, &task->cls, err));
        }
    }
    for (uint32_t i = 0; i < in->n_coll_tasks; i++) out->coll_tasks[i] = in->coll_tasks[i] + more;
    class_table_close(&classes, out);
    for (uint32_t i = 0; i < out->n_tasks; i++)
        if (out->tasks[i].kind == TASK_COLL &&
            out->classes[out->tasks[i].cls].purpose == PURPOSE_GRAD_SYNC)
            out->tasks[i].join = tail_task(out, plan_task_rank(out, i), TAIL_MARK);
    return TD_OK;
}

/* Tied tables: the first and the last stage of a pipe add their gradients of the one table. */
static td_status step_tied(collect *c, td_err *err)
{
    const lowering *const l = c->l;
    const model_desc *const model = l->o->sizes->model;
    const int32_t last = l->s->n_stages - 1;
    if (model == NULL || !model->tied || last == 0 || l->s->vocab != VOCAB_NONE) return TD_OK;
    for (int32_t pipe = 0; pipe < l->s->n_pipes; pipe++)
        for (int32_t d = 0; d < l->replicas; d++) {
            const int32_t rows[2] = {l->s->pipes[pipe].backward_row[0],
                                     l->s->pipes[pipe].backward_row[last]};
            if (rows[0] == rows[1]) continue; /* one rank adds its two accumulators itself */
            const int lo = rows[0] < rows[1] ? 0 : 1;
            uint32_t ranks[2];
            collective item = {.kind = COLL_ALL_REDUCE, .purpose = PURPOSE_TIED, .m = -1};
            for (int i = 0; i < 2; i++) ranks[i] = lower_rank(l, rows[i ^ lo], d);
            TD_TRY(sizes_bytes(l->o->sizes, SIZE_TIED_GRADS, 0, 0, 0, &item.bytes, err));
            TD_TRY(collect_group(c, ranks, 2, 2, &item.group, err));
            TD_TRY(collect_begin(c, item, err));
            for (int i = 0; i < 2; i++)
                TD_TRY(collect_member(c, tail_task(c->in, ranks[i], TAIL_MARK),
                                      tail_task(c->in, ranks[i], TAIL_NORM),
                                      (uint32_t)(pipe * l->s->n_stages + ((i ^ lo) ? last : 0)),
                                      err));
        }
    return TD_OK;
}

/* All ranks add up the squared norms. */
static td_status step_norm(collect *c, td_err *err)
{
    const lowering *const l = c->l;
    const uint32_t n = c->in->n_ranks;
    if (n == 1) return TD_OK;
    uint32_t *const ranks = TD_NEW_N(l->a, uint32_t, n);
    if (ranks == NULL) return td_fail(err, TD_ENOMEM, "out of memory for collectives");
    for (uint32_t r = 0; r < n; r++) ranks[r] = r;
    collective item = {.when = UINT64_MAX, .kind = COLL_ALL_REDUCE, .purpose = PURPOSE_NORM,
                       .m = -1};
    TD_TRY(sizes_bytes(l->o->sizes, SIZE_NORM, 0, 0, 0, &item.bytes, err));
    TD_TRY(collect_group(c, ranks, n, (int32_t)n, &item.group, err));
    TD_TRY(collect_begin(c, item, err));
    for (uint32_t r = 0; r < n; r++)
        TD_TRY(collect_member(c, tail_task(c->in, r, TAIL_NORM),
                              tail_task(c->in, r, TAIL_OPTIMIZER), PLAN_NONE, err));
    return TD_OK;
}

/* Groups of an earlier pass are shared with the input: the copies may grow. */
static td_status copy_groups(collect *c, td_err *err)
{
    plan *const p = c->out;
    const plan_group *const groups = p->groups;
    const uint32_t *const members = p->group_members;
    p->groups = NULL;
    p->group_members = NULL;
    TD_TRY(TD_GROW(c->l->a, p->groups, c->cap_groups, p->n_groups + 1, err));
    TD_TRY(TD_GROW(c->l->a, p->group_members, c->cap_group_members, p->n_group_members + 1, err));
    if (p->n_groups > 0) memcpy(p->groups, groups, p->n_groups * sizeof *groups);
    if (p->n_group_members > 0)
        memcpy(p->group_members, members, p->n_group_members * sizeof *members);
    return TD_OK;
}

td_status lower_step(const lowering *l, const plan *in, plan *out, td_err *err)
{
    *out = *in;
    if (l->o->no_step) return TD_OK;
    plan *const tailed = TD_NEW(l->a, plan);
    if (tailed == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    TD_TRY(step_tails(l, in, tailed, err));
    *out = *tailed;
    collect c = {.l = l, .in = tailed, .out = out, .first_group = in->n_groups};
    TD_TRY(copy_groups(&c, err));
    TD_TRY(step_tied(&c, err));
    TD_TRY(step_norm(&c, err));
    return collect_emit(&c, err);
}
