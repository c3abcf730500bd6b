/* Tensor-parallel shards: the weights of a stage, taken apart and put together. */
#include "exec/exec.h"
#include "exec/shard.h"

static int32_t shards_of(const plan *p) { return p->folded_tp ? 1 : p->tp; }

float *exec_whole_weights(const executor *x, uint32_t inst, int32_t replica, float *room)
{
    const plan *const p = x->p;
    const int32_t stage = p->insts[inst].stage;
    const uint32_t first = exec_rank_of(x, inst, replica);
    if (shards_of(p) == 1) return exec_buffer(x, first, SIZE_WEIGHTS, inst);
    for (int32_t k = 0; k < shards_of(p); k++)
        shard_give(&x->whole[stage], &x->stages[stage], k,
                   exec_buffer(x, first + (uint32_t)k, SIZE_WEIGHTS, inst), room);
    return room;
}

td_status exec_bring_weights(const executor *x, uint32_t inst, float *room, const float **out,
                             td_err *err)
{
    const plan *const p = x->p;
    team *const t = x->options.team;
    const stage_code *const whole = &x->whole[p->insts[inst].stage];
    const stage_code *const part = &x->stages[p->insts[inst].stage];
    const uint32_t first = exec_rank_of(x, inst, 0);
    const int64_t bytes = part->elements * (int64_t)sizeof *room;
    *out = shards_of(p) == 1 ? exec_buffer(x, first, SIZE_WEIGHTS, inst) : room;
    for (int32_t k = 0; shards_of(p) > 1 && k < shards_of(p); k++) {
        const uint32_t from = first + (uint32_t)k;
        const float *own = exec_buffer(x, from, SIZE_WEIGHTS, inst);
        if (k > 0 && exec_is_here(x, from) && !exec_is_here(x, first))
            TD_TRY(team_send(t, first, own, bytes, err));
        if (!exec_is_here(x, first)) continue;
        if (!exec_is_here(x, from)) {
            TD_TRY(team_recv(t, from, room + whole->elements, bytes, err));
            own = room + whole->elements;
        }
        shard_give(whole, part, k, own, room);
    }
    return TD_OK;
}

td_status exec_shards_init(const executor *x, uint32_t rank, int32_t stage, uint64_t seed,
                           float *weights, td_err *err)
{
    const stage_code *const whole = &x->whole[stage], *const part = &x->stages[stage];
    if (shards_of(x->p) == 1) {
        params_init(part->m, part->params, part->n_params, seed, weights);
        return TD_OK;
    }
    td_arena *const a = td_arena_new();
    float *const all = a == NULL ? NULL : td_alloc(a, (size_t)whole->elements, sizeof *all);
    if (all != NULL) {
        params_init(whole->m, whole->params, whole->n_params, seed, all);
        shard_take(whole, part, x->p->ranks[rank].shard, all, weights);
    }
    td_arena_free(a);
    return all != NULL ? TD_OK : td_fail(err, TD_ENOMEM, "out of memory for first weights");
}
