/* The gradient syncs of collect: each stage among its twins and replicas. */
#include "schedules/lower_collect.h"

#include <stdlib.h>

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

/* The last pass of a row that adds to its shard of the tables. */
static uint32_t last_shard_gradient(const lowering *l, int32_t row)
{
    uint32_t last = l->ix->row_first[row];
    for (uint32_t node = last; node < l->ix->row_first[row + 1]; node++)
        if (l->ix->cell[node]->kind == PASS_T || l->ix->cell[node]->kind == PASS_G) last = node;
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

static int compare_holders(const void *a, const void *b)
{
    const stage_holder *const x = a, *const y = b;
    return x->rank < y->rank ? -1 : x->rank > y->rank;
}

uint32_t collect_holders(const collect *c, int32_t stage, stage_holder *out)
{
    const lowering *const l = c->l;
    uint32_t n = 0;
    const int32_t row_of_shard = stage - l->s->n_stages;
    for (int32_t d = 0; row_of_shard >= 0 && d < l->replicas; d++) {
        const uint32_t node = l->s->sync == SYNC_END ? l->ix->row_first[row_of_shard + 1] - 1
                                                     : last_shard_gradient(l, row_of_shard);
        out[n++] = (stage_holder){.rank = lower_rank(l, row_of_shard, d),
                                  .gate = lower_task(l, c->in, node, row_of_shard, d),
                                  .inst = lower_shard_inst(l, row_of_shard),
                                  .when = lower_when(l, node, row_of_shard)};
    }
    if (row_of_shard >= 0) return n;
    for (int32_t pipe = 0; pipe < l->s->n_pipes; pipe++) {
        const uint32_t inst = (uint32_t)(pipe * l->s->n_stages + stage);
        const int32_t rows[2] = {l->s->pipes[pipe].backward_row[stage],
                                 l->s->pipes[pipe].forward_row[stage]};
        /* a forward row of another degree gets the sums in messages */
        const bool both =
            c->in->insts[inst].all_step && !lower_joins_shards(l, &c->in->insts[inst]);
        for (int role = 0; role < (both ? 2 : 1); role++)
            for (int32_t d = 0; d < l->replicas; d++) {
                const int32_t row = rows[role];
                /* a forward row makes no gradients: its zeros are ready behind its passes */
                const uint32_t node =
                    role == 0 ? sync_gate(l, row, pipe, stage) : l->ix->row_first[row + 1] - 1;
                out[n++] = (stage_holder){.rank = lower_rank(l, row, d),
                                          .gate = lower_task(l, c->in, node, row, d),
                                          .inst = inst,
                                          .when = node == NODE_NONE ? 0 : lower_when(l, node, row)};
            }
    }
    qsort(out, n, sizeof *out, compare_holders);
    return n;
}

static td_status add_over(collect *c, collective item, const stage_holder *h, uint32_t n,
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

td_status collect_parts(collect *c, collective item, int32_t stage, const stage_holder *h,
                        uint32_t n, int64_t element_bytes, td_err *err)
{
    const lowering *const l = c->l;
    const bool shard = stage >= l->s->n_stages;
    const int32_t copies = (int32_t)n / l->replicas * l->o->dp;
    const sizes z = *l->o->sizes;
    sync_part parts[SYNC_PARTS_MAX] = {{0}};
    const int32_t n_parts =
        z.model == NULL ? 1 : stage_sync_parts(&z, shard ? l->s->n_stages : stage, parts);
    for (int32_t i = 0; i < n_parts; i++) {
        if (item.purpose == PURPOSE_WEIGHTS && !parts[i].weights) continue;
        item.at = (int32_t)(parts[i].first / SYNC_ALIGN);
        item.bytes = parts[i].elements * element_bytes;
        TD_TRY(add_over(c, item, h, n, copies, err));
    }
    return TD_OK;
}

td_status collect_gradients(collect *c, td_err *err)
{
    const lowering *const l = c->l;
    stage_holder *const h = TD_NEW_N(l->a, stage_holder, 2 * l->s->n_pipes * l->replicas);
    if (h == NULL) return td_fail(err, TD_ENOMEM, "out of memory for collectives");
    for (int32_t stage = 0; stage < l->s->n_stages + lower_shards(l); stage++) {
        const uint32_t n = collect_holders(c, stage, h);
        if ((int32_t)n / l->replicas * l->o->dp == 1) continue;
        const collective item = {.kind = l->o->zero1 ? COLL_REDUCE_SCATTER : COLL_ALL_REDUCE,
                                 .purpose = PURPOSE_GRAD_SYNC,
                                 .m = -1};
        TD_TRY(
            collect_parts(c, item, stage, h, n, data_type_bytes(l->o->sizes->run.grad_dtype), err));
    }
    return TD_OK;
}
