/* Plan and reference side by side: the same weights, the same tokens, the same optimizer. */
#include "exec/check.h"
#include "exec/data.h"
#include "exec/device_run.h"
#include "exec/shard.h"

#include <math.h>
#include <string.h>

/* Which accumulators of a stage a pass adds to: those that I and those that W adds to. */
static unsigned adds_to(uint8_t kind)
{
    return kind == PASS_B ? 3 : kind == PASS_I ? 1 : kind == PASS_W ? 2 : 0;
}

/* Whether every stage adds the gradients of its microbatches in the order 0, 1, 2 ... and in one
 * accumulator for each tensor. */
static bool order_is_plain(const plan *p, td_arena *a)
{
    const bool sharded = p->n_insts > (uint32_t)(p->n_pipes * p->n_stages) || p->tp > 1;
    if (p->dp > 1 || p->n_pipes > 1 || p->n_slices > 1 || sharded) return false;
    uint32_t *const next = TD_NEW_N(a, uint32_t, 2 * p->n_insts);
    if (next == NULL) return false;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        const plan_stream *const s = plan_compute(p, r);
        for (uint32_t i = s->first_task; i < s->first_task + s->n_tasks; i++) {
            const plan_task *const t = &p->tasks[i];
            const uint32_t n = t->kind == TASK_PAIR ? 2 : adds_to(t->kind) != 0 ? 1 : 0;
            for (uint32_t j = 0; j < n; j++) {
                const plan_member one = {
                    .kind = t->kind, .microbatch = t->microbatch, .cls = t->cls};
                const plan_member m = n == 2 ? p->members[t->link + j] : one;
                for (unsigned k = 0; k < 2; k++)
                    if ((adds_to(m.kind) >> k & 1) != 0 &&
                        m.microbatch != next[2 * p->classes[m.cls].inst + k]++)
                        return false;
            }
        }
    }
    return true;
}

typedef struct check_run {
    executor *x;
    reference f;
    int32_t *ids, *targets;
    float **grads; /* [n_insts] */
    int64_t rows;
} check_run;

static td_status open_run(const plan *p, const sizes *z, const check_options *o, td_arena *a,
                          check_run *c, td_err *err)
{
    const int32_t n = p->n_microbatches * p->dp;
    c->rows = z->run.micro_batch * z->run.seq_len;
    TD_TRY(reference_open(z, n, c->x->ctx, a, &c->f, err));
    reference_init(&c->f, o->seed);
    exec_init(c->x, o->seed);
    c->ids = td_alloc(a, (size_t)(n * c->rows), sizeof *c->ids);
    c->targets = td_alloc(a, (size_t)(n * c->rows), sizeof *c->targets);
    c->grads = TD_NEW_N(a, float *, p->n_insts);
    if (c->ids == NULL || c->targets == NULL || c->grads == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the check");
    for (uint32_t i = 0; i < p->n_insts; i++) {
        c->grads[i] = td_alloc(a, (size_t)c->x->whole[p->insts[i].stage].elements, sizeof(float));
        if (c->grads[i] == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the check");
    }
    return TD_OK;
}

/* Whether two shards hold the same bits where each holds a whole tensor. */
static bool whole_tensors_are_equal(const stage_code *c, const float *a, const float *b)
{
    for (int64_t i = 0; i < c->n_params; i++) {
        const param_tensor *const t = &c->params[i];
        const size_t bytes = (size_t)(t->rows * t->cols) * sizeof *a;
        if (shard_is_whole((param_kind)t->kind) && memcmp(a + t->offset, b + t->offset, bytes) != 0)
            return false;
    }
    return true;
}

/* Whether two shards that share heads of keys and values hold the same bits of them. */
static bool keys_are_equal(const stage_code *c, const float *a, const float *b)
{
    for (int64_t i = 0; c->kv_copies > 1 && i < c->n_params; i++) {
        const param_tensor *const t = &c->params[i];
        const int64_t queries = c->m->n_heads * c->m->head_dim * t->cols;
        const size_t bytes = (size_t)(t->rows * t->cols - queries) * sizeof *a;
        const bool keys = t->kind == PARAM_QKV_WEIGHT || t->kind == PARAM_QKV_BIAS;
        if (keys && memcmp(a + t->offset + queries, b + t->offset + queries, bytes) != 0)
            return false;
    }
    return true;
}

/* Whether a rank that holds a stage whole has what the shards that train it hold together. */
static td_status compare_joined(const executor *x, uint32_t inst, const float *copy, td_arena *room,
                                bool *equal, td_err *err)
{
    const stage_code *const c = &x->whole[x->p->insts[inst].stage];
    const float *whole = NULL;
    TD_TRY(exec_whole_weights(x, inst, 0, room, &whole, err));
    for (int64_t i = 0; i < c->n_params; i++) {
        const param_tensor *const t = &c->params[i];
        const size_t bytes = (size_t)(t->rows * t->cols) * sizeof *copy;
        *equal = *equal && memcmp(whole + t->offset, copy + t->offset, bytes) == 0;
    }
    return TD_OK;
}

/* Whether all copies of a stage, those of forward rows included, hold the same bits. room is
 * scratch.
 */
static td_status compare_copies(const executor *x, uint32_t inst, td_arena *room, bool *equal,
                                td_err *err)
{
    const plan *const p = x->p;
    const int32_t stage = p->insts[inst].stage;
    const stage_code *const c = &x->stages[stage];
    const uint32_t twin = stage < p->n_stages ? (uint32_t)stage : inst;
    const uint32_t shards = (uint32_t)(p->tp < 1 ? 1 : p->tp);
    const float **const first = TD_NEW_N(room, const float *, shards);
    if (first == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the check");
    for (uint32_t k = 0; k < shards; k++)
        TD_TRY(exec_weights(x, exec_rank_of(x, twin, 0) + k, twin, room, &first[k], err));
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        const float *copy = NULL;
        td_arena *const a = td_arena_new();
        td_status st = a == NULL ? td_fail(err, TD_ENOMEM, "out of memory for the check")
                                 : exec_weights(x, r, inst, a, &copy, err);
        if (st == TD_OK && copy != NULL && p->ranks[r].tp != p->tp)
            st = compare_joined(x, inst, copy, a, equal, err);
        else if (st == TD_OK && copy != NULL)
            *equal =
                *equal &&
                memcmp(first[p->ranks[r].shard], copy, (size_t)c->elements * sizeof *copy) == 0 &&
                whole_tensors_are_equal(c, copy, first[0]) &&
                keys_are_equal(c, copy, first[p->ranks[r].shard / c->kv_copies * c->kv_copies]);
        td_arena_free(a);
        TD_TRY(st);
    }
    return TD_OK;
}

/* Whether both copies of a tied table hold the same bits. */
static td_status compare_tables(const executor *x, td_arena *room, bool *equal, td_err *err)
{
    const stage_code *const a = &x->stages[0], *const b = &x->stages[x->p->n_stages - 1];
    const uint32_t last = (uint32_t)x->p->n_stages - 1;
    const float *first = NULL, *end = NULL;
    if (stage_tied_offset(a) < 0 || stage_tied_offset(b) < 0) return TD_OK;
    TD_TRY(exec_weights(x, exec_rank_of(x, 0, 0), 0, room, &first, err));
    TD_TRY(exec_weights(x, exec_rank_of(x, last, 0), last, room, &end, err));
    *equal = *equal && memcmp(first + stage_tied_offset(a), end + stage_tied_offset(b),
                              (size_t)(a->m->vocab * a->m->hidden) * sizeof *first) == 0;
    return TD_OK;
}

static td_status find_copies(const executor *x, bool *equal, td_err *err)
{
    td_status st = TD_OK;
    for (uint32_t i = 0; st == TD_OK && i <= x->p->n_insts; i++) {
        td_arena *const a = td_arena_new();
        if (a == NULL)
            st = td_fail(err, TD_ENOMEM, "out of memory for the check");
        else if (i < x->p->n_insts)
            st = compare_copies(x, i, a, equal, err);
        else
            st = compare_tables(x, a, equal, err);
        td_arena_free(a);
    }
    return st;
}

static td_status one_step(check_run *c, const check_options *o, int64_t step, check_result *out,
                          td_err *err)
{
    const plan *const p = c->x->p;
    const int32_t n = p->n_microbatches * p->dp;
    corpus_random(o->seed + (uint64_t)step, c->x->z->model->vocab, n * c->rows, c->ids, c->targets);
    if (!c->x->z->model->causal)
        corpus_mask(o->seed + (uint64_t)step, c->x->z->model->vocab, n * c->x->z->run.micro_batch,
                    c->x->z->run.seq_len, c->ids, c->targets);
    for (int32_t i = 0; i < n; i++)
        exec_tokens(c->x, i / p->n_microbatches, i % p->n_microbatches, c->ids + i * c->rows,
                    c->targets + i * c->rows);
    const exec_step s = {.lr = 1e-3f,
                         .beta1 = 0.9f,
                         .beta2 = 0.95f,
                         .eps = CHECK_EPSILON,
                         .weight_decay = 0.1f,
                         .clip = o->clip,
                         .number = step,
                         .grads_out = c->grads};
    double loss = 0;
    TD_TRY(exec_run_step(c->x, &s, &loss, err));
    TD_TRY(exec_mirror(c->x, false, err));
    const double reference_loss = reference_gradients(&c->f, c->ids, c->targets);
    if (step == 1) {
        out->loss = loss;
        out->loss_reference = reference_loss;
    }
    const bool equal = memcmp(&loss, &reference_loss, sizeof loss) == 0; /* both may be 0 */
    const double error = equal ? 0 : fabs(loss / reference_loss - 1);
    if (!equal) out->losses_equal = false;
    if (!(error <= out->loss_rel_err)) out->loss_rel_err = error;
    if (!c->x->unsettled) TD_TRY(find_copies(c->x, &out->copies, err));
    for (uint32_t i = 0; i < p->n_insts; i++)
        if (p->insts[i].stage < p->n_stages)
            reference_compare(&c->f, &c->x->whole[p->insts[i].stage], c->grads[i], c->f.grads,
                              &out->gradients);
    TD_TRY(check_shards(c->x, &c->f, (const float *const *)c->grads, c->f.grads, &out->gradients,
                        err));
    reference_update(&c->f, &s);
    return TD_OK;
}

static td_status compare_weights(check_run *c, td_arena *a, check_result *out, td_err *err)
{
    const plan *const p = c->x->p;
    const float **const weights = TD_NEW_N(a, const float *, p->n_insts);
    if (weights == NULL) return td_fail(err, TD_ENOMEM, "out of memory to check");
    for (int32_t d = 0; d < p->dp; d++) {
        for (uint32_t i = 0; i < p->n_insts; i++) {
            TD_TRY(exec_whole_weights(c->x, i, d, a, &weights[i], err));
            if (p->insts[i].stage < p->n_stages)
                reference_compare(&c->f, &c->x->whole[p->insts[i].stage], weights[i], c->f.weights,
                                  &out->weights);
        }
        TD_TRY(check_shards(c->x, &c->f, weights, c->f.weights, &out->weights, err));
    }
    return TD_OK;
}

static td_status run(check_run *c, const check_options *o, td_arena *a, check_result *out,
                     td_err *err)
{
    const plan *const p = c->x->p;
    TD_TRY(open_run(p, c->x->z, o, a, c, err));
    for (int64_t step = 1; step <= o->steps; step++) TD_TRY(one_step(c, o, step, out, err));
    TD_TRY(exec_settle(c->x, err));
    TD_TRY(exec_mirror(c->x, true, err));
    TD_TRY(find_copies(c->x, &out->copies, err));
    out->undone = c->x->n_undone;
    TD_TRY(compare_weights(c, a, out, err));
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        const int64_t bytes = p->ranks[r].arena_bytes;
        const int64_t peak = (bytes + PLAN_ALIGN - 1) / PLAN_ALIGN * PLAN_ALIGN;
        out->ranks[r] = (check_rank){.peak_bytes = bytes};
        TD_TRY(device_run_touched(c->x, r, &out->ranks[r].touched_bytes, err));
        out->memory = out->memory && out->ranks[r].touched_bytes == peak;
    }
    out->rss_bytes = process_rss_bytes();
    out->device = device_run_use(c->x);
    out->memory =
        out->memory && out->device.in_steps == 0 && out->device.arenas == out->device.predicted;
    return TD_OK;
}

td_status check_plan(const plan *p, const sizes *z, const check_options *o, td_arena *a,
                     check_result *out, td_err *err)
{
    *out = (check_result){.gradients = {.bitwise = true},
                          .weights = {.bitwise = true},
                          .losses_equal = true,
                          .copies = true,
                          .memory = true,
                          .exact = o->run.device == NULL && order_is_plain(p, a)};
    out->ranks = TD_NEW_N(a, check_rank, p->n_ranks);
    if (out->ranks == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the check");
    check_run c = {0};
    /* with a team every process compares everything */
    exec_options open = o->run;
    open.room_for_all = o->run.team != NULL;
    TD_TRY(exec_open(p, z, &open, a, &c.x, err));
    const td_status st = run(&c, o, a, out, err);
    if (st != TD_OK && o->failed != NULL) o->failed(c.x, st);
    exec_close(c.x);
    if (st != TD_OK) return st;
    const bool equal = out->losses_equal && out->gradients.bitwise && out->weights.bitwise;
    const bool bf16 = z->run.dtype == TYPE_BF16;
    const bool near =
        out->loss_rel_err <= (bf16 ? CHECK_BF16_LOSS_TOLERANCE : CHECK_TOLERANCE) &&
        out->gradients.max_rel_err <= (bf16 ? CHECK_BF16_TOLERANCE : CHECK_TOLERANCE) &&
        out->weights.max_rel_err <= (bf16 ? CHECK_BF16_WEIGHTS_TOLERANCE : CHECK_WEIGHTS_TOLERANCE);
    out->pass = out->memory && out->copies && (out->exact ? equal : near);
    return TD_OK;
}
