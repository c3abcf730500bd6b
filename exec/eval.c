/* The loss by the current weights, without a plan. */
#include "exec/eval.h"

#include "exec/device_run.h"

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

/* Where the parts of the work lie, and its end. */
typedef struct eval_places {
    int64_t borders[2], scratch, stash, weights, tokens, result, bytes;
} eval_places;

static eval_places places_of(const executor *x)
{
    const int64_t border = boundary_bytes(x);
    eval_places p = {.borders = {0, border}, .scratch = 2 * border};
    p.stash = p.scratch + scratch_bytes(x);
    p.weights = own_bytes(x);
    p.tokens = p.weights + weights_bytes(x);
    p.result = p.tokens + token_bytes(x);
    p.bytes = p.result + PLAN_ALIGN;
    return p;
}

td_status exec_eval_room(const executor *x, td_arena *a, eval_room *out, td_err *err)
{
    void *at = NULL;
    TD_TRY(device_run_memory(x, a, places_of(x).bytes, &at, err));
    *out = (eval_room){.work = at,
                       .edges = td_alloc(a, 1, (size_t)eval_shards_bytes(x)),
                       .border = td_alloc(a, 1, (size_t)boundary_bytes(x))};
    return out->edges != NULL && out->border != NULL
               ? TD_OK
               : td_fail(err, TD_ENOMEM, "out of memory for evaluations");
}

/* Tokens where the cores or a device read them. */
static td_status take_tokens(const executor *x, char *to, const int32_t *ids,
                             const int32_t *targets, stage_args *a, td_err *err)
{
    const int64_t n = x->whole[0].rows, bytes = n * (int64_t)sizeof *ids;
    long counted = 0;
    for (int64_t i = 0; i < n; i++) counted += targets[i] >= 0;
    TD_TRY(device_run_write(x, to, ids, bytes, err));
    TD_TRY(device_run_write(x, to + bytes, targets, bytes, err));
    a->ids = (const int32_t *)(const void *)to;
    a->targets = a->ids + n;
    a->row_weight = 1.0 / (double)(counted > 0 ? counted : 1);
    return TD_OK;
}

/* One stage, by its owner's device or by the calling thread. */
static td_status eval_stage(const executor *x, uint32_t owner, int32_t stage, stage_args *a,
                            td_err *err)
{
    const exec_rank *const r = &x->ranks[owner];
    stage_forward(x->device == NULL ? x->ctx : r->ctx, &x->whole[stage], a);
    return device_run_wait(x, r, err);
}

td_status exec_eval(const executor *x, const eval_room *room, const int32_t *ids,
                    const int32_t *targets, double *loss, td_err *err)
{
    team *const t = x->options.team;
    const eval_places at = places_of(x);
    const int64_t border = boundary_bytes(x);
    char *const work = room->work;
    float *const weights = (float *)(void *)(work + at.weights);
    double *const result = (double *)(void *)(work + at.result);
    const bool sharded = x->z->vocab_shards > 0;
    stage_args a = {.grad_scale = 1.0f,
                    .loss_at = result,
                    .scratch = work + at.scratch,
                    .stash = work + at.stash};
    TD_TRY(take_tokens(x, work + at.tokens, ids, targets, &a, err));
    uint32_t owner = exec_rank_of(x, 0, 0);
    *loss = 0;
    if (sharded)
        TD_TRY(eval_embed(x, room->edges, owner, ids, (float *)(void *)(work + border), err));
    for (int32_t s = 0; s < x->p->n_stages; s++) {
        const uint32_t before = owner;
        owner = exec_rank_of(x, (uint32_t)s, 0);
        float *const input = (float *)(void *)(work + at.borders[(s + 1) % 2]);
        a.input = s == 0 && !sharded ? NULL : input;
        a.output = (float *)(void *)(work + at.borders[s % 2]);
        if (t != NULL && s > 0 && before != owner && exec_is_here(x, before)) {
            TD_TRY(device_run_read(x, room->border, input, border, err));
            TD_TRY(team_send(t, owner, room->border, border, err));
        }
        TD_TRY(exec_bring_weights(x, (uint32_t)s, weights, &a.weights, err));
        if (!exec_is_here(x, owner)) continue;
        if (t != NULL && s > 0 && before != owner) {
            TD_TRY(team_recv(t, before, room->border, border, err));
            TD_TRY(device_run_write(x, input, room->border, border, err));
        }
        TD_TRY(eval_stage(x, owner, s, &a, err));
    }
    if (sharded)
        TD_TRY(eval_loss(x, room->edges, owner, a.output, targets, loss, err));
    else if (exec_is_here(x, owner))
        TD_TRY(device_run_read(x, loss, result, sizeof *loss, err));
    return team_broadcast(t, owner, loss, sizeof *loss, err);
}
