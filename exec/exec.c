/* Opening a plan for execution, and running its periods. */
#include "exec/device_run.h"

#include <string.h>

/* --- what can be executed --- */

/* A step is taken back with a copy of what it changes. */
static td_status refuse_snapshots(const plan *p, td_err *err)
{
    if (!plan_validates(p)) return TD_OK;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        int64_t left = 0; /* stages that step, less those that have a snapshot */
        for (uint32_t i = 0; i < p->ranks[r].n_buffers; i++) {
            const uint32_t c = p->buffers[p->ranks[r].first_buffer + i].bclass;
            left += p->bclasses[c].what == SIZE_OPTIMIZER;
            left -= p->bclasses[c].what == SIZE_SNAPSHOT;
        }
        if (left != 0)
            return td_fail(err, TD_EPLAN, "plan: rank %u validates steps without a snapshot", r);
    }
    return TD_OK;
}

static td_status refuse_plan(const plan *p, const sizes *z, td_err *err)
{
    if (p->tp != z->run.tp && (p->tp > 1 || z->run.tp > 1))
        return td_fail(err, TD_EUSAGE, "plan: tensor-parallel degree %d, but sizes of %lld", p->tp,
                       (long long)z->run.tp);
    if (p->folded_dp || p->folded_tp)
        return td_fail(err, TD_EUSAGE,
                       "plan: its replicas are folded, so ranks are missing; leave "
                       "out --fold");
    if (z->model == NULL)
        return td_fail(err, TD_EUSAGE, "plan: it was lowered without a model; use --model");
    if (p->n_stages != z->n_stages)
        return td_fail(err, TD_EUSAGE, "plan: %d stages, but sizes of %d", p->n_stages,
                       z->n_stages);
    TD_TRY(refuse_snapshots(p, err));
    if (z->vocab_shards > 0 && p->n_slices > 1)
        return td_fail(err, TD_EUSAGE, "plan: slices with a sharded vocabulary are not executed");
    return TD_OK;
}

/* Shards of another degree are put together on the cores. */
static td_status refuse_on_device(const plan *p, td_err *err)
{
    for (uint32_t r = 0; r < p->n_ranks; r++)
        if (p->ranks[r].tp != p->tp)
            return td_fail(err, TD_EUSAGE,
                           "rank %u of tensor-parallel degree %d takes weights from shards of "
                           "degree %d, which is not executed on a device; give all ranks one "
                           "degree, or use --backend cpu",
                           r, p->ranks[r].tp, p->tp);
    return TD_OK;
}

/* --- opening --- */

static uint32_t position_after(const plan_stream *compute, uint32_t gate)
{
    return gate == PLAN_NONE ? 0 : gate - compute->first_task + 1;
}

static uint32_t position_of_join(const plan_stream *compute, const plan_task *t)
{
    if (t->join == PLAN_NONE) return compute->n_tasks;
    return t->join - compute->first_task;
}

static uint32_t channel_of(const plan *p, const plan_stream *s, uint32_t rank, uint32_t task)
{
    const plan_task *const t = &p->tasks[task];
    if (t->kind == TASK_COLL) {
        const plan_coll *const c = &p->colls[t->link];
        uint32_t member = 0;
        while (p->coll_tasks[c->first_task + member] != task) member++;
        return member;
    }
    if (s->kind != STREAM_BOTH) return s->channel;
    const uint32_t peer = plan_task_rank(p, t->link);
    const uint32_t src = t->kind == TASK_SEND ? rank : peer;
    const uint32_t dst = t->kind == TASK_SEND ? peer : rank;
    for (uint32_t i = 0; i < p->n_channels; i++)
        if (p->channels[i].src == src && p->channels[i].dst == dst &&
            p->channels[i].cls == p->classes[t->cls].detail)
            return i;
    return PLAN_NONE;
}

/* Sorts the rank's posts by position (streams in plan order within one), and its joins. */
static td_status open_order(const plan *p, exec_rank *r, td_arena *a, td_err *err)
{
    const plan_rank *const pr = &p->ranks[r->index];
    const plan_stream *const compute = plan_compute(p, r->index);
    const uint32_t n = compute->n_tasks;
    for (uint32_t s = 1; s < pr->n_streams; s++)
        r->n_posts += p->streams[pr->first_stream + s].n_tasks;
    r->posts = TD_NEW_N(a, exec_post, r->n_posts);
    r->joins = TD_NEW_N(a, uint32_t, r->n_posts);
    r->first_join = TD_NEW_N(a, uint32_t, n + 3);
    uint32_t *const at = TD_NEW_N(a, uint32_t, n + 2);
    if (r->posts == NULL || r->joins == NULL || r->first_join == NULL || at == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for rank %u", r->index);
    for (int round = 0; round < 2; round++) { /* counts, then places */
        for (uint32_t s = 1; s < pr->n_streams; s++) {
            const plan_stream *const st = &p->streams[pr->first_stream + s];
            uint32_t when = 0;
            for (uint32_t i = st->first_task; i < st->first_task + st->n_tasks; i++) {
                const uint32_t gate = position_after(compute, p->tasks[i].gate);
                when = gate > when ? gate : when;
                if (round == 0)
                    at[when + 1]++;
                else
                    r->posts[at[when]++] = (exec_post){
                        .task = i, .post_at = when, .channel = channel_of(p, st, r->index, i)};
            }
        }
        for (uint32_t i = 0; round == 0 && i <= n; i++) at[i + 1] += at[i];
    }
    for (uint32_t i = 0; i < r->n_posts; i++)
        r->first_join[position_of_join(compute, &p->tasks[r->posts[i].task]) + 2]++;
    for (uint32_t i = 0; i <= n; i++) r->first_join[i + 2] += r->first_join[i + 1];
    for (uint32_t i = 0; i < r->n_posts; i++)
        r->joins[r->first_join[position_of_join(compute, &p->tasks[r->posts[i].task]) + 1]++] = i;
    return TD_OK;
}

static void note_tokens(const plan *p, exec_rank *r, uint32_t first, uint32_t end, uint32_t m)
{
    for (uint32_t i = first; i < end; i++)
        if (use_role_of(p->uses[i]) == ROLE_TOKENS) r->tokens[m] = use_buffer_of(p->uses[i]);
}

static td_status open_tokens(const plan *p, exec_rank *r, td_arena *a, td_err *err)
{
    const plan_stream *const s = plan_compute(p, r->index);
    r->tokens = TD_NEW_N(a, uint32_t, p->n_microbatches);
    r->row_weights = TD_NEW_N(a, double, p->n_microbatches);
    if (r->tokens == NULL || r->row_weights == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for rank %u", r->index);
    for (int32_t m = 0; m < p->n_microbatches; m++) r->tokens[m] = PLAN_NONE;
    for (uint32_t i = s->first_task; i < s->first_task + s->n_tasks; i++) {
        const plan_task *const t = &p->tasks[i];
        if (t->kind == TASK_PAIR)
            for (uint32_t j = t->link; j < t->link + 2; j++)
                note_tokens(p, r, p->members[j].first_use,
                            p->members[j].first_use + p->members[j].n_uses,
                            p->members[j].microbatch);
        else if (t->kind < PASS_COUNT)
            note_tokens(p, r, t->first_use, t[1].first_use, t->microbatch);
    }
    return TD_OK;
}

static td_status open_ctx(const k_blas *blas, int threads, td_arena *a, k_ctx **out, td_err *err)
{
    void *const mem = td_alloc(a, 1, k_ctx_size(threads));
    *out = mem == NULL ? NULL : k_ctx_start(mem, blas, threads);
    return *out != NULL ? TD_OK
                        : td_fail(err, TD_EDEVICE, "%d threads could not be started", threads);
}

bool exec_is_here(const executor *x, uint32_t rank)
{
    return x->options.team == NULL || team_index(x->options.team) == rank;
}

static td_status open_all(executor *x, td_arena *a, td_err *err)
{
    const plan *const p = x->p;
    TD_TRY(open_ctx(&x->blas, x->options.threads_per_rank, a, &x->ctx, err));
    TD_TRY(stage_open(x->z, x->ctx, a, &x->stages, err));
    x->whole = x->stages;
    if (x->z->run.tp > 1) {
        sizes alone = *x->z;
        alone.run.tp = 1;
        TD_TRY(stage_open(&alone, x->ctx, a, &x->whole, err));
    }
    TD_TRY(device_run_open(x, a, err));
    TD_TRY(device_run_tables(x, err));
    TD_TRY(pass_open(x, a, err));
    TD_TRY(exec_open_wire(x, a, err));
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        exec_rank *const r = &x->ranks[i];
        r->index = i;
        r->jitter = td_rng_seed(x->options.jitter_seed + i);
        TD_TRY(open_order(p, r, a, err));
        TD_TRY(open_tokens(p, r, a, err));
        if (!exec_is_here(x, i) && !x->options.room_for_all) continue;
        if (exec_is_here(x, i))
            TD_TRY(open_ctx(&x->blas, x->options.threads_per_rank, a, &r->ctx, err));
        if (x->options.offload != NULL) {
            TD_TRY(offload_arena(x->options.offload, p->ranks[i].arena_bytes, &r->arena, err));
            if (x->device != NULL) TD_TRY(device_run_arena(x, r, err));
            continue;
        }
        if (x->device == NULL || !exec_is_here(x, i)) {
            TD_TRY(rank_arena_open(p->ranks[i].arena_bytes, &r->arena, err));
            continue;
        }
        TD_TRY(device_run_arena(x, r, err));
    }
    exec_register_memory(x);
    TD_TRY(device_run_tokens(x, a, err));
    TD_TRY(optimizer_open(x, a, err));
    return exec_team_open(x, err);
}

td_status exec_open(const plan *p, const sizes *z, const exec_options *o, td_arena *a,
                    executor **out, td_err *err)
{
    *out = NULL;
    TD_TRY(refuse_plan(p, z, err));
    if (o->offload != NULL && (o->team != NULL || plan_validates(p)))
        return td_fail(err, TD_EUSAGE, "--offload: %s keep all ranks in memory; leave it out",
                       o->team != NULL ? "processes" : "steps that are validated afterwards");
    if (o->device != NULL && plan_validates(p))
        return td_fail(err, TD_EUSAGE,
                       "post-validation is not executed on a device: ranks decide on the cores; "
                       "leave out --post-validation or use --backend cpu");
    if (o->device != NULL) TD_TRY(refuse_on_device(p, err));
    TD_TRY(plan_check_sizes(p, z, err));
    if (z->run.dtype != TYPE_FP32 && (o->device == NULL || z->run.dtype != TYPE_BF16))
        return td_fail(err, TD_EUSAGE, "--dtype %s: %s", data_type_name(z->run.dtype),
                       o->device == NULL ? "the CPU backend computes in fp32"
                                         : "devices compute in fp32 and bf16");
    executor *const x = TD_NEW(a, executor);
    if (x == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the executor");
    *x = (executor){.p = p, .z = z, .options = *o};
    if (x->options.threads_per_rank < 1) x->options.threads_per_rank = 1;
    x->ranks = TD_NEW_N(a, exec_rank, p->n_ranks);
    x->n_tensors = model_tensor_count(z->model);
    x->validates = plan_validates(p);
    if (x->ranks == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the executor");
    TD_TRY(exec_periods_open(x, a, err));
    if (!k_blas_open(&x->blas, x->options.blas)) {
        k_blas_close(&x->blas);
        return td_fail(err, TD_EDEVICE, "blas %s: this machine has no such library",
                       x->options.blas);
    }
    if (open_all(x, a, err) != TD_OK) {
        exec_close(x);
        return err == NULL ? TD_EDEVICE : err->code;
    }
    *out = x;
    return TD_OK;
}

void exec_close(executor *x)
{
    if (x == NULL) return;
    wire_close(x->wire); /* first, because it may still write to the memory of ranks */
    for (uint32_t i = 0; i < x->p->n_ranks; i++) {
        k_ctx_stop(x->ranks[i].ctx);
        /* messages of a run that was given up may be under way until the process ends */
        if (team_error(x->options.team).code == TD_OK) rank_arena_close(&x->ranks[i].arena);
    }
    k_ctx_stop(x->ctx);
    k_blas_close(&x->blas);
    (void)pthread_mutex_destroy(&x->lock);
}

/* --- buffers --- */

char *exec_place(const executor *x, uint32_t rank, uint32_t buffer)
{
    const plan_buffer *const b = &x->p->buffers[x->p->ranks[rank].first_buffer + buffer];
    return x->ranks[rank].arena.base + (int64_t)b->offset * PLAN_ALIGN;
}

float *exec_buffer(const executor *x, uint32_t rank, size_kind what, uint32_t inst)
{
    const plan *const p = x->p;
    const plan_rank *const r = &p->ranks[rank];
    if (x->ranks[rank].arena.base == NULL) return NULL;
    offload_touch(x->options.offload, rank);
    for (uint32_t i = 0; i < r->n_buffers; i++) {
        const plan_buffer *const b = &p->buffers[r->first_buffer + i];
        const plan_bclass *const c = &p->bclasses[b->bclass];
        if (c->what == what && c->inst == inst) return (float *)(void *)exec_place(x, rank, i);
    }
    return NULL;
}

uint32_t exec_rank_of(const executor *x, uint32_t inst, int32_t replica)
{
    const plan *const p = x->p;
    for (uint32_t r = 0; r < p->n_ranks; r++)
        if (p->ranks[r].row == p->insts[inst].backward_row && p->ranks[r].replica == replica)
            return r;
    return PLAN_NONE;
}

static td_status init_here(executor *x, exec_rank *r, void *seed, td_err *err)
{
    (void)err; /* the wire's */
    /* with a device, what other processes have is seen after a step only */
    const bool made_here = x->device == NULL || exec_is_here(x, r->index);
    if (r->arena.base != NULL && made_here) exec_init_rank(x, r->index, *(const uint64_t *)seed);
    return TD_OK;
}

void exec_init(executor *x, uint64_t seed)
{
    td_err err = {0};
    /* without threads of their own the ranks are filled in turn: the weights are the same */
    if (x->options.offload != NULL || exec_each_rank(x, false, init_here, &seed, &err) != TD_OK)
        for (uint32_t i = 0; i < x->p->n_ranks; i++) (void)init_here(x, &x->ranks[i], &seed, &err);
}
