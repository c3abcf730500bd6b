/* Tensor-parallel shards: the weights of a stage, taken apart and put together. */
#include "exec/device_run.h"
#include "exec/shard.h"

static int32_t shards_of(const plan *p) { return p->folded_tp ? 1 : p->tp; }

td_status exec_weights(const executor *x, uint32_t rank, uint32_t inst, td_arena *room,
                       const float **out, td_err *err)
{
    const float *const at = exec_buffer(x, rank, SIZE_WEIGHTS, inst);
    *out = at;
    if (x->device == NULL || at == NULL) return TD_OK;
    const int64_t n = exec_code(x, rank, x->p->insts[inst].stage)->elements;
    float *const to = td_alloc(room, (size_t)n, sizeof *to);
    *out = to;
    if (to == NULL && n > 0) return td_fail(err, TD_ENOMEM, "out of memory for weights");
    return device_run_widen(x, to, at, n, err);
}

td_status exec_whole_weights(const executor *x, uint32_t inst, int32_t replica, td_arena *room,
                             const float **out, td_err *err)
{
    const plan *const p = x->p;
    const int32_t stage = p->insts[inst].stage;
    const uint32_t first = exec_rank_of(x, inst, replica);
    if (shards_of(p) == 1) return exec_weights(x, first, inst, room, out, err);
    float *const whole = td_alloc(room, (size_t)x->whole[stage].elements, sizeof *whole);
    *out = whole;
    if (whole == NULL) return td_fail(err, TD_ENOMEM, "out of memory for weights");
    for (int32_t k = 0; k < shards_of(p); k++) {
        const float *part = NULL;
        TD_TRY(exec_weights(x, first + (uint32_t)k, inst, room, &part, err));
        shard_give(&x->whole[stage], &x->stages[stage], k, part, whole);
    }
    return TD_OK;
}

/* Shards on a device, put together there. */
static td_status bring_to_device(const executor *x, uint32_t inst, float *room, td_err *err)
{
    td_arena *const a = td_arena_new();
    const float *whole = NULL;
    td_status st = a == NULL ? td_fail(err, TD_ENOMEM, "out of memory for weights")
                             : exec_whole_weights(x, inst, 0, a, &whole, err);
    if (st == TD_OK)
        st = device_run_narrow(x, room, whole, x->whole[x->p->insts[inst].stage].elements, err);
    td_arena_free(a);
    return st;
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
    if (x->device != NULL && shards_of(p) > 1) return bring_to_device(x, inst, room, err);
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

void exec_join_shards(const executor *x, const exec_rank *r, uint32_t task)
{
    const plan *const p = x->p;
    for (uint32_t i = p->tasks[task].first_use; i < p->tasks[task + 1].first_use; i++) {
        if (use_role_of(p->uses[i]) != ROLE_PARTS) continue;
        const uint32_t b = p->ranks[r->index].first_buffer + use_buffer_of(p->uses[i]);
        const plan_bclass *const c = &p->bclasses[p->buffers[b].bclass];
        const bool weights = c->what == SIZE_WEIGHT_PARTS;
        const stage_code *const part = &x->stages[p->insts[c->inst].stage];
        const int64_t each = weights ? part->elements : part->grad_elements;
        const float *const from = (const float *)(const void *)pass_buffer(x, r, p->uses[i]);
        float *const to = exec_buffer(x, r->index, weights ? SIZE_WEIGHTS : SIZE_GRADS, c->inst);
        for (int32_t k = 0; k < p->tp; k++)
            shard_give(&x->whole[p->insts[c->inst].stage], part, k, from + k * each, to);
    }
}

td_status exec_shards_init(const executor *x, uint32_t rank, int32_t stage, uint64_t seed,
                           float *weights, td_err *err)
{
    const stage_code *const whole = &x->whole[stage], *const part = exec_code(x, rank, stage);
    if (part->shards == 1) {
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
