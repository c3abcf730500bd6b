/* The loss by the current weights, without a plan. */
#include "exec/eval.h"

#include "exec/device_run.h"
#include <string.h>

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

static int64_t token_bytes(const executor *x)
{
    const int64_t n = 2 * x->whole[0].rows * (int64_t)sizeof(int32_t);
    return (n + PLAN_ALIGN - 1) / PLAN_ALIGN * PLAN_ALIGN;
}

td_status exec_eval_room(const executor *x, td_arena *a, char **out, td_err *err)
{
    void *at = NULL;
    TD_TRY(device_run_memory(x, a, exec_eval_bytes(x), &at, err));
    *out = at;
    return TD_OK;
}

/* Tokens where the cores and a device read them. */
static void take_tokens(const executor *x, char *work, const int32_t *ids, const int32_t *targets,
                        stage_args *a)
{
    const int64_t n = x->whole[0].rows;
    int32_t *const to =
        (int32_t *)(void *)(work + exec_eval_bytes(x) - PLAN_ALIGN - token_bytes(x));
    long counted = 0;
    for (int64_t i = 0; i < n; i++) counted += targets[i] >= 0;
    memcpy(to, ids, (size_t)n * sizeof *to);
    memcpy(to + n, targets, (size_t)n * sizeof *to);
    a->ids = to;
    a->targets = to + n;
    a->row_weight = 1.0 / (double)(counted > 0 ? counted : 1);
}

/* One stage, by its owner's device or by the calling thread. */
static td_status eval_stage(const executor *x, uint32_t owner, int32_t stage, stage_args *a,
                            td_err *err)
{
    const exec_rank *const r = &x->ranks[owner];
    stage_forward(x->device == NULL ? x->ctx : r->ctx, &x->whole[stage], a);
    return device_run_wait(x, r, err);
}

int64_t exec_eval_bytes(const executor *x)
{
    return token_bytes(x) + own_bytes(x) + eval_shards_bytes(x) + weights_bytes(x) + PLAN_ALIGN;
}

td_status exec_eval(const executor *x, char *work, const int32_t *ids, const int32_t *targets,
                    double *loss, td_err *err)
{
    team *const t = x->options.team;
    const int64_t border = boundary_bytes(x);
    double *const result = (double *)(void *)(work + exec_eval_bytes(x) - PLAN_ALIGN);
    stage_args a = {.grad_scale = 1.0f,
                    .loss_at = result,
                    .scratch = work + 2 * border,
                    .stash = work + 2 * border + scratch_bytes(x)};
    take_tokens(x, work, ids, targets, &a);
    *result = 0;
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
        TD_TRY(eval_stage(x, owner, s, &a, err));
    }
    if (sharded) TD_TRY(eval_loss(x, shards_work, owner, a.output, targets, result, err));
    TD_TRY(team_broadcast(t, owner, result, sizeof *result, err));
    *loss = *result;
    return TD_OK;
}
