/* Opening stages, and the forward pass. */
#include "exec/stage_inside.h"

#include <math.h>
#include <string.h>

enum {
    TAIL_BYTES = 64
}; /* alignment gap at a buffer's end, written so that all of it is touched */

/* --- opening --- */

static td_status refuse_unsupported(const sizes *z, td_err *err)
{
    const model_desc *const m = z->model;
    if (m == NULL) return td_fail(err, TD_EUSAGE, "executor: no model was given; use --model");
    if (z->run.tp > 1)
        return td_fail(err, TD_EUSAGE, "--tp %lld: tensor parallelism is not executed yet; use 1",
                       (long long)z->run.tp);
    if (z->run.zero1)
        return td_fail(err, TD_EUSAGE, "ZeRO-1: sharded optimizers are not executed yet");
    if (z->run.dtype != TYPE_FP32 || z->run.grad_dtype != TYPE_FP32)
        return td_fail(err, TD_EUSAGE, "--dtype %s: the CPU backend computes in fp32",
                       data_type_name(z->run.dtype));
    if (m->gated && m->mlp_bias)
        return td_fail(err, TD_EUSAGE, "model %s: biases in a gated MLP are not executed yet",
                       m->name);
    if (m->learned_positions && z->run.seq_len > m->max_positions)
        return td_fail(err, TD_EUSAGE, "--seq-len %lld: model %s has %lld positions",
                       (long long)z->run.seq_len, m->name, (long long)m->max_positions);
    if (m->head_dim > 256 || (!m->learned_positions && m->head_dim % 2 != 0))
        return td_fail(err, TD_EUSAGE, "model %s: heads of %lld are not executed", m->name,
                       (long long)m->head_dim);
    return TD_OK;
}

static td_status open_one(const sizes *z, int32_t stage, td_arena *a, stage_code *c, td_err *err)
{
    c->m = z->model;
    c->at = z->stages[stage];
    c->recompute = z->run.recompute;
    c->batch = z->run.micro_batch;
    c->seq = z->run.seq_len;
    c->rows = c->batch * c->seq;
    TD_TRY(stash_layout_of(z, stage, c->seq, &c->stash, err));
    TD_TRY(scratch_layout_of(z, stage, c->seq, &c->scratch, err));
    c->n_params = stage_params(c->m, &c->at, NULL, 0);
    c->params = TD_NEW_N(a, param_tensor, c->n_params);
    c->layer = td_alloc(a, (size_t)c->at.n_layers, sizeof *c->layer);
    if (c->params == NULL || c->layer == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the stages' tables");
    (void)stage_params(c->m, &c->at, c->params, c->n_params);
    c->elements = stage_param_elements(c->m, &c->at);
    c->grad_elements = stage_grad_elements(c->m, &c->at);
    c->first_tensor = stage_first_tensor(c->m, &c->at);
    for (int k = 0; k < PARAM_KIND_COUNT; k++) {
        c->own[k] = -1;
        for (int64_t l = 0; l < c->at.n_layers; l++) c->layer[l][k] = -1;
    }
    for (int64_t i = 0; i < c->n_params; i++) {
        const param_tensor *const t = &c->params[i];
        if (t->layer < 0)
            c->own[t->kind] = t->offset;
        else
            c->layer[t->layer - c->at.first_layer][t->kind] = t->offset;
    }
    return TD_OK;
}

td_status stage_open(const sizes *z, k_ctx *ctx, td_arena *a, stage_code **out, td_err *err)
{
    TD_TRY(refuse_unsupported(z, err));
    stage_code *const c = TD_NEW_N(a, stage_code, z->n_stages);
    if (c == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the stages' tables");
    float *rope = NULL;
    if (!z->model->learned_positions) {
        rope = td_alloc(a, (size_t)(z->run.seq_len * z->model->head_dim), sizeof *rope);
        if (rope == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the rotary table");
        k_rope_table_cpu(ctx, z->run.seq_len, z->model->head_dim, z->model->rope_theta, rope);
    }
    for (int32_t s = 0; s < z->n_stages; s++) {
        TD_TRY(open_one(z, s, a, &c[s], err));
        c[s].rope = rope;
    }
    *out = c;
    return TD_OK;
}

int64_t stage_head_grad(const stage_code *c)
{
    if (!c->at.head) return -1;
    return c->own[PARAM_HEAD_WEIGHT] >= 0 ? c->own[PARAM_HEAD_WEIGHT] : c->elements;
}

int64_t stage_tied_offset(const stage_code *c)
{
    if (!c->m->tied) return -1;
    if (c->at.embedding) return c->own[PARAM_TOKEN_EMBEDDING];
    return c->at.head ? c->own[PARAM_HEAD_WEIGHT] : -1;
}

/* --- where things lie --- */

stage_dims stage_dims_of(const stage_code *c)
{
    const model_desc *const m = c->m;
    return (stage_dims){.rows = c->rows,
                        .hidden = m->hidden,
                        .attn = m->n_heads * m->head_dim,
                        .kv = m->n_kv_heads * m->head_dim,
                        .qkv = (m->n_heads + 2 * m->n_kv_heads) * m->head_dim,
                        .ffn = m->ffn,
                        .up = (m->gated ? 2 : 1) * m->ffn};
}

/* A tensor that the stash keeps, or that is recomputed in the scratch. */
static float *kept_or_scratch(char *block, int64_t kept, char *again, int64_t offset)
{
    if (kept >= 0) return at_bytes(block, kept);
    return offset >= 0 ? at_bytes(again, offset) : NULL;
}

layer_view stage_layer_view(const stage_code *c, const stage_args *p, int64_t layer)
{
    const layer_layout *const k = &c->stash.kept, *const s = &c->scratch.layer;
    char *const b = p->stash + c->stash.layers + layer * k->bytes;
    char *const r = c->scratch.recomputed < 0 ? NULL : p->scratch + c->scratch.recomputed;
    return (layer_view){
        .y1 = stage_post_norm(c) ? stage_level(c, p, layer) : kept_or_scratch(b, k->y1, r, s->y1),
        .mean1 = kept_or_scratch(b, k->mean1, r, s->mean1),
        .rstd1 = kept_or_scratch(b, k->rstd1, r, s->rstd1),
        .qkv = kept_or_scratch(b, k->qkv, r, s->qkv),
        .o = kept_or_scratch(b, k->o, r, s->o),
        .lse = kept_or_scratch(b, k->lse, r, s->lse),
        .sum1 = kept_or_scratch(b, k->sum1, r, s->sum1),
        .y2 = kept_or_scratch(b, k->y2, r, s->y2),
        .mean2 = kept_or_scratch(b, k->mean2, r, s->mean2),
        .rstd2 = kept_or_scratch(b, k->rstd2, r, s->rstd2),
        .up = kept_or_scratch(b, k->up, r, s->up),
        .act = kept_or_scratch(b, k->act, r, s->act),
        .sum2 = kept_or_scratch(b, k->sum2, r, s->sum2),
    };
}

float *stage_level(const stage_code *c, const stage_args *p, int64_t level)
{
    if (level == c->at.n_layers && !c->at.head) return p->output;
    if (level < c->stash.first_level) return (float *)(uintptr_t)p->input; /* read only */
    return at_bytes(p->stash,
                    c->stash.inputs + (level - c->stash.first_level) * c->stash.input_stride);
}

bool stage_passes_on(const stage_code *c)
{
    return c->at.n_layers == 0 && !c->at.embedding && !c->at.head;
}

static int64_t param_offset(const stage_code *c, int64_t layer, param_kind k)
{
    return layer >= 0 ? c->layer[layer][k] : c->own[k];
}

const float *stage_weight(const stage_code *c, const stage_args *p, int64_t layer, param_kind k)
{
    const int64_t at = param_offset(c, layer, k);
    return at < 0 ? NULL : p->weights + at;
}

float *stage_grad(const stage_code *c, const stage_args *p, int64_t layer, param_kind k)
{
    const int64_t at = param_offset(c, layer, k);
    return at < 0 ? NULL : p->grads + at;
}

const float *stage_head_weight(const stage_code *c, const stage_args *p)
{
    const float *const own = stage_weight(c, p, -1, PARAM_HEAD_WEIGHT);
    return own != NULL ? own : stage_weight(c, p, -1, PARAM_TOKEN_EMBEDDING);
}

k_attn stage_attention(const stage_code *c)
{
    const stage_dims d = stage_dims_of(c);
    const long t = c->seq;
    return (k_attn){.batch = c->batch,
                    .heads = c->m->n_heads,
                    .kv_heads = c->m->n_kv_heads,
                    .d = c->m->head_dim,
                    .s_q = t,
                    .s_kv = t,
                    .causal = c->m->causal,
                    .scale = (float)(1.0 / sqrt((double)c->m->head_dim)),
                    .q_ld = d.qkv,
                    .q_batch = t * d.qkv,
                    .kv_ld = d.qkv,
                    .kv_batch = t * d.qkv,
                    .o_ld = d.attn,
                    .o_batch = t * d.attn,
                    .dq_ld = d.qkv,
                    .dq_batch = t * d.qkv,
                    .dkv_ld = d.qkv,
                    .dkv_batch = t * d.qkv};
}

/* --- forward --- */

void stage_norm(k_ctx *ctx, const stage_code *c, float *x, const float *bias, const float *res,
                const float *gamma, const float *beta, float *y, float *mean, float *rstd)
{
    const long rows = c->rows, cols = c->m->hidden;
    const float eps = (float)c->m->norm_eps;
    float *const sum = res != NULL ? x : NULL;
    if (!c->m->rms_norm) {
        k_layernorm_fwd_cpu(ctx, rows, cols, eps, x, bias, res, sum, gamma, beta, y, mean, rstd);
        return;
    }
    if (bias != NULL) k_bias_add_cpu(ctx, rows, cols, x, cols, bias);
    k_rmsnorm_fwd_cpu(ctx, rows, cols, eps, x, res, sum, gamma, y, rstd);
}

void stage_project(k_ctx *ctx, long rows, long in, long out, const float *x, const float *w,
                   float *y, long ldy)
{
    k_gemm_cpu(ctx, false, true, rows, out, in, 1.0f, x, in, w, in, 0.0f, y, ldy);
}

void stage_attend(k_ctx *ctx, const stage_code *c, const layer_view *v)
{
    const stage_dims d = stage_dims_of(c);
    const k_attn a = stage_attention(c);
    k_attn_fwd_cpu(ctx, &a, v->qkv, v->qkv + d.attn, v->qkv + d.attn + d.kv, v->o, v->lse);
}

void stage_layer_inner(k_ctx *ctx, const stage_code *c, const stage_args *p, int64_t l,
                       const layer_view *v, float *x, const float *bias, const float *res)
{
    const stage_dims d = stage_dims_of(c);
    const model_desc *const m = c->m;
    const bool post = stage_post_norm(c); /* then y1 is x */
    if (!post)
        stage_norm(ctx, c, x, bias, res, stage_weight(c, p, l, PARAM_NORM1_WEIGHT),
                   stage_weight(c, p, l, PARAM_NORM1_BIAS), v->y1, v->mean1, v->rstd1);
    stage_project(ctx, d.rows, d.hidden, d.qkv, v->y1, stage_weight(c, p, l, PARAM_QKV_WEIGHT),
                  v->qkv, d.qkv);
    const float *const qkv_bias = stage_weight(c, p, l, PARAM_QKV_BIAS);
    if (qkv_bias != NULL) k_bias_add_cpu(ctx, d.rows, d.qkv, v->qkv, d.qkv, qkv_bias);
    if (c->rope != NULL)
        k_rope_cpu(ctx, false, d.rows, c->seq, 0, m->n_heads + m->n_kv_heads, m->head_dim, c->rope,
                   v->qkv, d.qkv);
    stage_attend(ctx, c, v);
    stage_project(ctx, d.rows, d.attn, d.hidden, v->o, stage_weight(c, p, l, PARAM_OUT_WEIGHT),
                  v->sum1, d.hidden);
    const param_kind norm = post ? PARAM_NORM1_WEIGHT : PARAM_NORM2_WEIGHT;
    stage_norm(ctx, c, v->sum1, stage_weight(c, p, l, PARAM_OUT_BIAS), x,
               stage_weight(c, p, l, norm), stage_weight(c, p, l, norm + 1), v->y2,
               post ? v->mean1 : v->mean2, post ? v->rstd1 : v->rstd2);
    const float *const w_up = stage_weight(c, p, l, PARAM_UP_WEIGHT);
    if (m->gated) {
        stage_project(ctx, d.rows, d.hidden, d.ffn, v->y2, stage_weight(c, p, l, PARAM_GATE_WEIGHT),
                      v->up, d.up);
        stage_project(ctx, d.rows, d.hidden, d.ffn, v->y2, w_up, v->up + d.ffn, d.up);
        k_swiglu_fwd_cpu(ctx, d.rows, d.ffn, v->up, v->up + d.ffn, d.up, v->act);
    } else {
        stage_project(ctx, d.rows, d.hidden, d.ffn, v->y2, w_up, v->up, d.up);
        k_gelu_fwd_cpu(ctx, stage_gelu(c), d.rows, d.ffn, v->up,
                       stage_weight(c, p, l, PARAM_UP_BIAS), v->act);
    }
}

void stage_logits(k_ctx *ctx, const stage_code *c, const stage_args *p, long first, long n,
                  float *out)
{
    const long hidden = c->m->hidden;
    const float *const y = at_bytes(p->stash, c->stash.final_out) + first * hidden;
    const float *const bias = stage_weight(c, p, -1, PARAM_HEAD_BIAS);
    stage_project(ctx, n, hidden, c->m->vocab, y, stage_head_weight(c, p), out, c->stash.logits_ld);
    if (bias != NULL) k_bias_add_cpu(ctx, n, c->m->vocab, out, c->stash.logits_ld, bias);
}

long stage_targets(const stage_code *c, const stage_args *p)
{
    long n = 0;
    for (int64_t i = 0; i < c->rows; i++) n += p->targets[i] >= 0;
    return n;
}

/* Final norm, logits, loss; keeps the gradient of the logits where the stash has room for it. */
static void head_forward(k_ctx *ctx, const stage_code *c, stage_args *p, float *x,
                         const float *bias, const float *res)
{
    const long ld = c->stash.logits_ld, vocab = c->m->vocab, counted = stage_targets(c, p);
    float *const normed = stage_post_norm(c) ? bert_transform(ctx, c, p, x) : x;
    stage_norm(ctx, c, normed, bias, res, stage_weight(c, p, -1, PARAM_FINAL_NORM_WEIGHT),
               stage_weight(c, p, -1, PARAM_FINAL_NORM_BIAS),
               at_bytes(p->stash, c->stash.final_out),
               c->stash.final_mean < 0 ? NULL : at_bytes(p->stash, c->stash.final_mean),
               at_bytes(p->stash, c->stash.final_rstd));
    double *const losses = (double *)(void *)(p->scratch + c->scratch.losses);
    const double per_row = 1.0 / (double)(counted > 0 ? counted : 1);
    if (c->stash.dlogits >= 0) {
        float *const logits = at_bytes(p->stash, c->stash.dlogits);
        stage_logits(ctx, c, p, 0, c->rows, logits);
        (void)k_xent_cpu(ctx, c->rows, vocab, logits, ld, p->targets,
                         (float)(per_row * (double)p->grad_scale), losses, NULL, logits);
    } else {
        float *const logits = at_bytes(p->scratch, c->scratch.logits);
        for (long r = 0; r < c->rows; r += c->scratch.logits_rows) {
            const long left = c->rows - r;
            const long n = left < c->scratch.logits_rows ? left : c->scratch.logits_rows;
            stage_logits(ctx, c, p, r, n, logits);
            (void)k_xent_cpu(ctx, n, vocab, logits, ld, p->targets + r, 0.0f, losses + r, NULL,
                             NULL);
        }
    }
    double sum = 0;
    for (int64_t r = 0; r < c->rows; r++) sum += losses[r];
    p->loss = sum * per_row;
}

void stage_forward(k_ctx *ctx, const stage_code *c, stage_args *p)
{
    const stage_dims d = stage_dims_of(c);
    const float *bias = NULL, *res = NULL;
    if (c->stash.bytes >= TAIL_BYTES) memset(p->stash + c->stash.bytes - TAIL_BYTES, 0, TAIL_BYTES);
    memset(p->scratch + c->scratch.bytes - TAIL_BYTES, 0, TAIL_BYTES);
    if (stage_passes_on(c)) {
        memcpy(p->output, p->input, (size_t)(d.rows * d.hidden) * sizeof *p->output);
        return;
    }
    if (c->at.embedding && stage_post_norm(c))
        bert_embed(ctx, c, p);
    else if (c->at.embedding)
        k_embed_fwd_cpu(
            ctx, d.rows, c->seq, 0, d.hidden, p->ids, stage_weight(c, p, -1, PARAM_TOKEN_EMBEDDING),
            stage_weight(c, p, -1, PARAM_POSITION_EMBEDDING), NULL, stage_level(c, p, 0));
    for (int64_t l = 0; l < c->at.n_layers; l++) {
        const layer_view v = stage_layer_view(c, p, l);
        float *const x = stage_level(c, p, l), *const out = stage_level(c, p, l + 1);
        stage_layer_inner(ctx, c, p, l, &v, x, bias, res);
        if (stage_post_norm(c)) {
            bert_layer_end(ctx, c, p, l, &v, out);
            continue;
        }
        stage_project(ctx, d.rows, d.ffn, d.hidden, v.act, stage_weight(c, p, l, PARAM_DOWN_WEIGHT),
                      out, d.hidden);
        bias = stage_weight(c, p, l, PARAM_DOWN_BIAS);
        res = v.sum1;
    }
    float *const x = stage_level(c, p, c->at.n_layers);
    if (c->at.head) {
        head_forward(ctx, c, p, x, bias, res);
        return;
    }
    /* the same sum in the same order as the norm of a next layer would form it */
    if (bias != NULL) k_bias_add_cpu(ctx, d.rows, d.hidden, x, d.hidden, bias);
    if (res != NULL) k_add_cpu(ctx, d.rows * d.hidden, x, res, x);
}
