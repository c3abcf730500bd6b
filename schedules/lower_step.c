/* step: what happens once a step, behind the passes: tied gradients, norm, optimizer. */
#include "schedules/lower_collect.h"

#include <string.h>

enum { TAIL_MARK, TAIL_NORM, TAIL_OPTIMIZER, TAIL_GATHERED, TAIL_MOST };

/* Gradients that shards sum among themselves: rows of keys and values, and norms. Before each there
 * is one more mark, for what comes before. */
static bool sums_keys(const lowering *l)
{
    const model_desc *const m = l->o->sizes->model;
    return l->tp > 1 && m != NULL && model_kv_copies(m, l->tp) > 1;
}

static bool sums_norms(const lowering *l)
{
    return l->tp > 1 && l->o->sizes->model != NULL && l->o->sizes->run.sequence_parallel;
}

static uint32_t marks_before(const lowering *l) { return sums_keys(l) + sums_norms(l); }

/* From TAIL_MARK on. The last mark is there for weights that are gathered and then sent on. */
static uint32_t tail_tasks(const lowering *l)
{
    const bool gathers = sizes_optimizer_shards(l->o->sizes) > 1 && l->o->sizes->model != NULL;
    const bool sends = l->s->weights == WEIGHTS_REFRESH && sched_is_disaggregated(l->s);
    return gathers && sends ? TAIL_MOST : TAIL_GATHERED;
}

static uint32_t tail_task(const lowering *l, const plan *out, uint32_t rank, uint32_t which)
{
    const plan_stream *const s = plan_compute(out, rank);
    return s->first_task + s->n_tasks - tail_tasks(l) + which;
}

/* Where the syncs are done. */
static uint32_t synced_task(const lowering *l, const plan *out, uint32_t rank)
{
    return tail_task(l, out, rank, TAIL_MARK) - marks_before(l);
}

/* Every rank's compute stream ends with MARK (gradients are summed; where shards sum some, one
 * more for the syncs alone), NORM, OPTIMIZER, and where shared-out weights travel on, MARK (they
 * are gathered). */
static td_status step_tails(const lowering *l, const plan *in, plan *out, td_err *err)
{
    static const uint8_t kinds[] = {TASK_MARK, TASK_MARK,      TASK_MARK,
                                    TASK_NORM, TASK_OPTIMIZER, TASK_MARK};
    const uint32_t more = marks_before(l), tail = tail_tasks(l) + more;
    insertion *const items = TD_NEW_N(l->a, insertion, (size_t)in->n_ranks * tail);
    if (items == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the step");
    for (uint32_t r = 0; r < in->n_ranks; r++)
        for (uint32_t j = 0; j < tail; j++)
            items[r * tail + j] =
                (insertion){.at = plan_compute(in, r)->n_tasks, .kind = kinds[2 - more + j]};
    TD_TRY(lower_insert(l, in, items, tail, out, err));
    for (uint32_t i = 0; i < out->n_tasks; i++)
        if (out->tasks[i].kind == TASK_COLL &&
            out->classes[out->tasks[i].cls].purpose == PURPOSE_GRAD_SYNC)
            out->tasks[i].join = synced_task(l, out, plan_task_rank(out, i));
    return TD_OK;
}

/* Two ranks add their gradients of the one table. */
static td_status tie(collect *c, const stage_holder *first, const stage_holder *last, td_err *err)
{
    const stage_holder *const pair[2] = {first->rank < last->rank ? first : last,
                                         first->rank < last->rank ? last : first};
    const uint32_t ranks[2] = {pair[0]->rank, pair[1]->rank};
    collective item = {.kind = COLL_ALL_REDUCE, .purpose = PURPOSE_TIED, .m = -1};
    TD_TRY(
        lower_bytes(c->l, SIZE_TIED_GRADS, 0, c->in->ranks[ranks[0]].row, 0, 0, &item.bytes, err));
    TD_TRY(collect_group(c, ranks, 2, 2, &item.group, err));
    TD_TRY(collect_begin(c, item, err));
    for (int i = 0; i < 2; i++)
        TD_TRY(collect_member(c, tail_task(c->l, c->in, ranks[i], TAIL_MARK),
                              tail_task(c->l, c->in, ranks[i], TAIL_NORM), pair[i]->inst, err));
    return TD_OK;
}

/* Tied tables: the i-th copy of the first stage and the i-th of the last one add their gradients,
 * which the syncs have made equal in all copies; where both are on one rank, it adds them itself.
 * Any such pairing leaves the same bits everywhere, because a + b is b + a. Forward rows are
 * numbered before backward rows, so that like meets like. */
static td_status step_tied(collect *c, td_err *err)
{
    const lowering *const l = c->l;
    const model_desc *const model = l->o->sizes->model;
    const int32_t last = l->s->n_stages - 1;
    if (model == NULL || !model->tied || last == 0 || l->s->vocab != VOCAB_NONE) return TD_OK;
    const int32_t most = 2 * l->s->n_pipes * l->replicas;
    stage_holder *const first = TD_NEW_N(l->a, stage_holder, most);
    stage_holder *const end = TD_NEW_N(l->a, stage_holder, most);
    if (first == NULL || end == NULL) return td_fail(err, TD_ENOMEM, "out of memory for copies");
    const uint32_t n = collect_holders(c, 0, first);
    (void)collect_holders(c, last, end);
    for (uint32_t i = 0; i < n; i++)
        if (first[i].rank != end[i].rank) TD_TRY(tie(c, &first[i], &end[i], err));
    return TD_OK;
}

static bool row_trains(const plan *p, int32_t row)
{
    for (uint32_t i = 0; i < p->n_insts; i++)
        if (plan_trains(&p->insts[i], row)) return true;
    return false;
}

/* All ranks that step add up the squared norms. */
static td_status step_norm(collect *c, td_err *err)
{
    const lowering *const l = c->l;
    uint32_t *const ranks = TD_NEW_N(l->a, uint32_t, c->in->n_ranks);
    if (ranks == NULL) return td_fail(err, TD_ENOMEM, "out of memory for collectives");
    uint32_t n = 0;
    for (int32_t row = 0; row < l->s->n_rows; row++)
        for (int32_t d = 0; row_trains(c->in, row) && d < l->replicas; d++)
            ranks[n++] = lower_rank(l, row, d);
    /* the shards of a single rank will have a norm to sum as well */
    const bool unfolds = l->o->shards && l->tp > 1;
    if (n <= 1 && !unfolds) return TD_OK;
    collective item = {
        .when = UINT64_MAX, .kind = COLL_ALL_REDUCE, .purpose = PURPOSE_NORM, .m = -1};
    TD_TRY(sizes_bytes(l->o->sizes, SIZE_NORM, 0, 0, 0, &item.bytes, err));
    TD_TRY(collect_group(c, ranks, n, (int32_t)n, &item.group, err));
    TD_TRY(collect_begin(c, item, err));
    for (uint32_t r = 0; r < n; r++)
        TD_TRY(collect_member(c, tail_task(l, c->in, ranks[r], TAIL_NORM),
                              tail_task(l, c->in, ranks[r], TAIL_OPTIMIZER), PLAN_NONE, err));
    return TD_OK;
}

/* The shards of a rank sum a run of a stage's gradients: all of them, or neighbours. A rank that
 * stands for its shards is a group alone. */
static td_status sum_shards(collect *c, uint32_t rank, uint32_t inst, int64_t first, int64_t n,
                            int32_t near, td_err *err)
{
    const lowering *const l = c->l;
    collective item = {.when = UINT64_MAX,
                       .kind = COLL_ALL_REDUCE,
                       .purpose = PURPOSE_SHARD_GRADS,
                       .m = -1,
                       .at = (int32_t)(first / SYNC_ALIGN),
                       .near = near};
    if (first / SYNC_ALIGN > INT32_MAX)
        return td_fail(err, TD_EUSAGE, "a stage of more weights than a plan can number");
    TD_TRY(td_mul_i64(n, data_type_bytes(l->o->sizes->run.grad_dtype), &item.bytes, err));
    TD_TRY(collect_group(c, &rank, 1, 1, &item.group, err));
    TD_TRY(collect_begin(c, item, err));
    /* keys and values come first */
    const uint32_t gate =
        near > 0 ? synced_task(l, c->in, rank) : tail_task(l, c->in, rank, TAIL_MARK) - 1;
    return collect_member(c, gate, gate + 1, inst, err);
}

/* The rows of keys and values, where several shards hold a head of them. */
static td_status sum_keys(collect *c, uint32_t rank, uint32_t inst, const model_desc *shard,
                          const stage_desc *at, td_err *err)
{
    const int32_t near = model_kv_copies(c->l->o->sizes->model, c->in->ranks[rank].tp);
    const int64_t n = stage_params(shard, at, NULL, 0);
    param_tensor *const t = TD_NEW_N(c->l->a, param_tensor, n);
    if (t == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the step");
    (void)stage_params(shard, at, t, n);
    for (int64_t i = 0; i < n; i++) {
        const int64_t queries = shard->n_heads * shard->head_dim * t[i].cols;
        if (t[i].kind != PARAM_QKV_WEIGHT && t[i].kind != PARAM_QKV_BIAS) continue;
        if (queries % SYNC_ALIGN != 0)
            return td_fail(err, TD_EUSAGE,
                           "--tp %d: %lld shards hold one head of keys and values, and a head's "
                           "width of %lld is no multiple of %d; legal: --tp up to %lld",
                           c->l->tp, (long long)near, (long long)shard->head_dim, SYNC_ALIGN,
                           (long long)c->l->o->sizes->model->n_kv_heads);
        TD_TRY(sum_shards(c, rank, inst, t[i].offset + queries, t[i].rows * t[i].cols - queries,
                          near, err));
    }
    return TD_OK;
}

/* Once each shard has the sums of its own over all copies of a stage, the shards sum what several
 * of them hold and each has seen a part of: with sequence parallelism norms, and keys and values
 * where there are more shards than heads of them. */
static td_status step_shards(collect *c, td_err *err)
{
    const lowering *const l = c->l;
    if (marks_before(l) == 0) return TD_OK;
    for (int norms = 0; norms < 2; norms++)
        for (uint32_t r = 0; r < c->in->n_ranks; r++) {
            const plan_rank *const rank = &c->in->ranks[r];
            const model_desc shard = model_shard(l->o->sizes->model, rank->tp);
            for (uint32_t i = 0; i < c->in->n_insts && rank->tp > 1; i++) {
                const stage_desc at = sizes_stage(l->o->sizes, c->in->insts[i].stage);
                int64_t first = 0;
                const int64_t n = stage_norm_elements(&shard, &at, &first);
                if (!plan_trains(&c->in->insts[i], rank->row)) continue;
                if (norms == 0 && sums_keys(l)) TD_TRY(sum_keys(c, r, i, &shard, &at, err));
                if (norms == 1 && sums_norms(l) && n > 0)
                    TD_TRY(sum_shards(c, r, i, first, n, 0, err));
            }
        }
    return TD_OK;
}

/* Each copy of a stage has updated its piece of the weights: all get all of them. */
static td_status step_weights(collect *c, td_err *err)
{
    const lowering *const l = c->l;
    const sizes *const z = l->o->sizes;
    if (sizes_optimizer_shards(z) == 1 || z->model == NULL) return TD_OK;
    stage_holder *const h = TD_NEW_N(l->a, stage_holder, 2 * l->s->n_pipes * l->replicas);
    if (h == NULL) return td_fail(err, TD_ENOMEM, "out of memory for copies");
    for (int32_t stage = 0; stage < l->s->n_stages + lower_shards(l); stage++) {
        const uint32_t n = collect_holders(c, stage, h);
        for (uint32_t i = 0; i < n; i++) h[i].gate = tail_task(l, c->in, h[i].rank, TAIL_OPTIMIZER);
        const collective item = {
            .when = UINT64_MAX, .kind = COLL_ALL_GATHER, .purpose = PURPOSE_WEIGHTS, .m = -1};
        TD_TRY(collect_parts(c, item, stage, h, n, data_type_bytes(z->run.dtype), err));
    }
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
    if (l->o->no_step) return lower_block(l, in, out, err);
    plan *const tailed = TD_NEW(l->a, plan);
    if (tailed == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    TD_TRY(step_tails(l, in, tailed, err));
    *out = *tailed;
    collect c = {.l = l, .in = tailed, .out = out, .first_group = in->n_groups};
    TD_TRY(copy_groups(&c, err));
    TD_TRY(step_shards(&c, err));
    TD_TRY(step_tied(&c, err));
    if (!l->s->validate) TD_TRY(step_norm(&c, err));
    TD_TRY(step_weights(&c, err));
    TD_TRY(collect_emit(&c, err));
    for (uint32_t i = tailed->n_tasks; tail_tasks(l) == TAIL_MOST && i < out->n_tasks; i++)
        if (out->classes[out->tasks[i].cls].purpose == PURPOSE_WEIGHTS)
            out->tasks[i].join = tail_task(l, out, plan_task_rank(out, i), TAIL_GATHERED);
    plan stepped = *out;
    if (l->s->validate) return lower_validate(l, &stepped, out, err);
    TD_TRY(lower_refresh(l, &stepped, out, err));
    stepped = *out;
    return lower_block(l, &stepped, out, err);
}
