/* The loss by the current weights, without a plan. */
#include "exec/eval.h"

static int64_t boundary_bytes(const executor *x)
{
    const int64_t n = x->whole[0].rows * x->z->model->hidden * (int64_t)sizeof(float);
    return (n + PLAN_ALIGN - 1) / PLAN_ALIGN * PLAN_ALIGN;
}

static int64_t scratch_bytes(const executor *x)
{
    int64_t most = 0;
    for (int32_t s = 0; s < x->p->n_stages; s++)
        if (x->whole[s].scratch.bytes > most) most = x->whole[s].scratch.bytes;
    return most;
}

/* Room to put the weights of a stage together, where tensor-parallel shards hold them, and for one
 * shard's. */
static int64_t weights_bytes(const executor *x)
{
    int64_t most = 0;
    for (int32_t s = 0; x->whole != x->stages && s < x->p->n_stages; s++)
        if (x->whole[s].elements + x->stages[s].elements > most)
            most = x->whole[s].elements + x->stages[s].elements;
    return (most * (int64_t)sizeof(float) + PLAN_ALIGN - 1) / PLAN_ALIGN * PLAN_ALIGN;
}

/* Two tensors at borders, scratch, stash. */
static int64_t own_bytes(const executor *x)
{
    int64_t stash = 0;
    for (int32_t s = 0; s < x->p->n_stages; s++)
        if (x->whole[s].stash.bytes > stash) stash = x->whole[s].stash.bytes;
    return (stash + scratch_bytes(x) + 2 * boundary_bytes(x) + PLAN_ALIGN - 1) / PLAN_ALIGN *
           PLAN_ALIGN;
}

int64_t exec_eval_bytes(const executor *x)
{
    return own_bytes(x) + eval_shards_bytes(x) + weights_bytes(x) + PLAN_ALIGN;
}

td_status exec_eval(const executor *x, char *work, const int32_t *ids, const int32_t *targets,
                    double *loss, td_err *err)
{
    team *const t = x->options.team;
    const int64_t border = boundary_bytes(x);
    double *const result = (double *)(void *)(work + exec_eval_bytes(x) - PLAN_ALIGN);
    stage_args a = {.ids = ids,
                    .targets = targets,
                    .grad_scale = 1.0f,
                    .scratch = work + 2 * border,
                    .stash = work + 2 * border + scratch_bytes(x)};
    const bool sharded = x->z->vocab_shards > 0;
    char *const shards_work = work + own_bytes(x);
    float *const room = (float *)(void *)(shards_work + eval_shards_bytes(x));
    uint32_t owner = exec_rank_of(x, 0, 0);
    if (sharded)
        TD_TRY(eval_embed(x, shards_work, owner, ids, (float *)(void *)(work + border), err));
    for (int32_t s = 0; s < x->p->n_stages; s++) {
        const uint32_t before = owner;
        owner = exec_rank_of(x, (uint32_t)s, 0);
        float *const input = (float *)(void *)(work + (s + 1) % 2 * border);
        a.input = s == 0 && !sharded ? NULL : input;
        a.output = (float *)(void *)(work + s % 2 * border);
        if (s > 0 && before != owner && exec_is_here(x, before))
            TD_TRY(team_send(t, owner, input, border, err));
        TD_TRY(exec_bring_weights(x, (uint32_t)s, room, &a.weights, err));
        if (!exec_is_here(x, owner)) continue;
        if (s > 0 && before != owner) TD_TRY(team_recv(t, before, input, border, err));
        stage_forward(x->ctx, &x->whole[s], &a);
    }
    *result = a.loss;
    if (sharded) TD_TRY(eval_loss(x, shards_work, owner, a.output, targets, result, err));
    TD_TRY(team_broadcast(t, owner, result, sizeof *result, err));
    *loss = *result;
    return TD_OK;
}
