/* One pass of a plan: its buffers bound to a stage's code. */
#include "exec/device_run.h"

#include <math.h>

/* --- the code of each class --- */

/* A forward on a row that does not run the backward. */
static bool keeps_nothing(const plan *p, const plan_class *k)
{
    const plan_inst *const i = &p->insts[k->inst];
    return k->kind == PASS_F && i->forward_row != i->backward_row;
}

/* out[0]: with a whole backward, out[1]: with a split one; both the same where nothing is kept. */
static td_status open_code(executor *x, const plan_class *k, td_arena *a, const stage_code **out,
                           td_err *err)
{
    const int32_t stage = x->p->insts[k->inst].stage;
    const int32_t row = plan_home(&x->p->insts[k->inst], k->kind);
    uint32_t rank = 0;
    while (x->p->ranks[rank].row != row) rank++;
    const stage_code *const whole = exec_code(x, rank, stage);
    sizes z = *x->z;
    z.run.tp = whole->shards;
    stage_code *const c = TD_NEW_N(a, stage_code, 2);
    if (c == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the passes");
    for (int split = 0; split < 2; split++) {
        if (keeps_nothing(x->p, k)) {
            TD_TRY(stage_open_forward(&z, stage, whole, k->slice_len, &c[0], err));
            out[split] = &c[0];
            continue;
        }
        TD_TRY(stage_open_as(&z, stage, whole, k->slice_len, split == 1, &c[split], err));
        out[split] = &c[split];
    }
    return TD_OK;
}

/* An earlier class with the same code, or `cls` itself. */
static uint32_t same_code(const plan *p, uint32_t cls)
{
    const plan_class *const k = &p->classes[cls];
    for (uint32_t i = 0; i < cls; i++) {
        const plan_class *const o = &p->classes[i];
        if (o->kind < PASS_COUNT && o->slice_len == k->slice_len &&
            p->insts[o->inst].stage == p->insts[k->inst].stage &&
            keeps_nothing(p, o) == keeps_nothing(p, k))
            return i;
    }
    return cls;
}

td_status pass_open(executor *x, td_arena *a, td_err *err)
{
    const plan *const p = x->p;
    x->code = td_alloc(a, p->n_classes, sizeof *x->code);
    if (x->code == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the passes");
    for (uint32_t i = 0; i < p->n_classes; i++) {
        if (p->classes[i].kind >= PASS_COUNT) continue;
        const uint32_t known = same_code(p, i);
        if (known == i) TD_TRY(open_code(x, &p->classes[i], a, x->code[i], err));
        for (int split = 0; split < 2; split++) x->code[i][split] = x->code[known][split];
    }
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        exec_rank *const r = &x->ranks[i];
        r->kv = TD_NEW_N(a, stage_kv, p->n_slices);
        r->keys = TD_NEW_N(a, k_keys, p->n_slices);
        if (r->kv == NULL || r->keys == NULL)
            return td_fail(err, TD_ENOMEM, "out of memory for the slices");
    }
    return TD_OK;
}

/* --- running --- */

char *pass_buffer(const executor *x, const exec_rank *r, uint32_t use)
{
    return exec_place(x, r->index, use_buffer_of(use));
}

/* Slices come in ascending order. */
static void bind_kv(const executor *x, const exec_rank *r, uint32_t use, float *at, stage_args *a)
{
    const plan *const p = x->p;
    const plan_buffer *const b = &p->buffers[p->ranks[r->index].first_buffer + use_buffer_of(use)];
    r->kv[a->n_kv++] = (stage_kv){.at = at, .len = p->bclasses[b->bclass].slice_len};
}

/* Whether the pass belongs to a split backward; a forward is told by what it keeps, and without
 * anything kept both forms are one. */
static bool is_split(const executor *x, const exec_rank *r, const plan_member *m)
{
    const plan *const p = x->p;
    if (m->kind == PASS_I || m->kind == PASS_W) return true;
    for (uint32_t i = m->first_use; i < m->first_use + m->n_uses; i++) {
        const uint32_t use = p->uses[i];
        const plan_buffer *const b =
            &p->buffers[p->ranks[r->index].first_buffer + use_buffer_of(use)];
        if (use_role_of(use) == ROLE_STASH_W ||
            (use_role_of(use) == ROLE_STASH && p->bclasses[b->bclass].what == SIZE_STASH_I))
            return true;
    }
    return false;
}

/* The buffers of a pass: a stage's, and those that only vocabulary shards have. */
typedef struct bound {
    stage_args a;
    char *joined;
    float *softmax;
} bound;

/* The last stage's gradient, which C1 left behind the statistics. */
static td_status bind_joined(const executor *x, bound *b, td_err *err)
{
    vocab_layout v;
    if (b->joined == NULL || b->a.doutput != NULL) return TD_OK;
    TD_TRY(vocab_layout_of(x->z, x->z->run.seq_len, &v, err));
    if (v.parts >= 0) b->a.doutput = (const float *)(const void *)(b->joined + v.parts);
    return TD_OK;
}

static void bind(const executor *x, const exec_rank *r, const plan_member *m, bound *b)
{
    stage_args *const a = &b->a;
    for (uint32_t i = m->first_use; i < m->first_use + m->n_uses; i++) {
        const uint32_t use = x->p->uses[i];
        char *const at = pass_buffer(x, r, use);
        float *const f = (float *)(void *)at;
        switch (use_role_of(use)) {
        case ROLE_INPUT: a->input = f; break;
        case ROLE_OUTPUT: a->output = f; break;
        case ROLE_DOUTPUT: a->doutput = f; break;
        case ROLE_DINPUT: a->dinput = f; break;
        case ROLE_WEIGHTS: a->weights = f; break;
        case ROLE_GRADS: a->grads = f; break;
        case ROLE_STASH: a->stash = at; break;
        case ROLE_STASH_W: a->stash_w = at; break;
        case ROLE_WSTASH: a->wstash = at; break;
        case ROLE_SCRATCH: a->scratch = at; break;
        case ROLE_KV: bind_kv(x, r, use, f, a); break;
        case ROLE_DKV: a->dkv = f; break;
        case ROLE_VOCAB_STATS: b->joined = at; break;
        case ROLE_VOCAB_STASH: b->softmax = f; break;
        case ROLE_TOKENS:
            a->ids = (const int32_t *)(void *)at;
            a->targets = a->ids + x->z->run.micro_batch * x->z->run.seq_len;
            break;
        default: break;
        }
    }
}

/* The norm will tell all ranks. */
static td_status spoil(exec_rank *r)
{
    r->spoilt = true;
    return TD_OK;
}

static td_status check_finite(exec_rank *r, const stage_code *c, int32_t stage, uint32_t m,
                              const stage_args *a, td_err *err)
{
    if (c->at.head && c->at.vocab_rows == 0) {
        if (isfinite(a->loss)) return TD_OK;
        if (r->now->step.skip || r->ahead) return spoil(r);
        return td_fail(err, TD_EMISMATCH,
                       "step %ld: the loss of microbatch %u is not finite (stage "
                       "%d, rank %u); a lower --lr or --clip may help",
                       r->now->step.number, m, stage, r->index);
    }
    if (isfinite(k_sumsq_cpu(r->ctx, c->own_rows * c->m->hidden, a->output))) return TD_OK;
    if (r->now->step.skip || r->ahead) return spoil(r);
    return td_fail(err, TD_EMISMATCH,
                   "step %ld: the output of stage %d for microbatch %u is not "
                   "finite (rank %u); a lower --lr or --clip may help",
                   r->now->step.number, stage, m, r->index);
}

td_status pass_run(executor *x, exec_rank *r, const plan_member *m, td_err *err)
{
    const plan *const p = x->p;
    const plan_class *const k = &p->classes[m->cls];
    const stage_code *const c = x->code[m->cls][is_split(x, r, m)];
    const int32_t microbatches = p->n_microbatches * p->dp;
    stage_cut cut = {.segment = k->segment};
    bound b = {.a = {.shard = p->ranks[r->index].shard,
                     .cut = k->segments > 0 ? &cut : NULL,
                     .grad_scale = (float)(1.0 / (double)microbatches),
                     .prefix = k->prefix,
                     .kv = r->kv,
                     .keys = r->keys,
                     .row_weight = r->row_weights[m->microbatch],
                     .loss_at = device_run_loss(x, r, m)}};
    stage_args *const a = &b.a;
    bind(x, r, m, &b);
    switch (m->kind) {
    case PASS_S:
    case PASS_T:
    case PASS_E:
    case PASS_G: return vocab_pass_run(x, r, m, a, b.joined, b.softmax, err);
    case PASS_F: break;
    default: TD_TRY(bind_joined(x, &b, err)); break;
    }
    switch (m->kind) {
    case PASS_B: stage_backward(r->ctx, c, a); return TD_OK;
    case PASS_I: stage_input_gradient(r->ctx, c, a); return TD_OK;
    case PASS_W: stage_weight_gradient(r->ctx, c, a); return TD_OK;
    default: break;
    }
    if (keeps_nothing(p, k)) a->stash = a->scratch;
    /* a recompute's output has been sent already: it goes where nobody looks */
    if (m->kind == PASS_R && !c->at.head)
        a->output = (float *)(void *)(a->scratch + c->scratch.narrow);
    stage_forward(r->ctx, c, a);
    const bool ends = k->segments == 0 || k->segment + 1 == k->segments;
    if (m->kind == PASS_R || !ends) return TD_OK; /* a recompute's forward was looked at */
    if (x->device != NULL) return TD_OK;          /* nobody knows yet */
    double *const loss =
        &r->now->losses[p->ranks[r->index].replica * p->n_microbatches + (int32_t)m->microbatch];
    if (c->at.head && c->at.vocab_rows == 0 && p->ranks[r->index].shard == 0)
        *loss = m->slice == 0 ? a->loss : *loss + a->loss;
    return check_finite(r, c, p->insts[k->inst].stage, m->microbatch, a, err);
}
