/* The backward pass of a stage: input and weight gradients together. */
#include "exec/stage_inside.h"

#include <string.h>

/* One stage's backward at hand: `cur` is the gradient of the residual stream behind the layer at
 * hand, first the DOUTPUT buffer, then `grad`. */
typedef struct back {
    k_ctx *ctx;
    const stage_code *c;
    const stage_args *p;
    stage_dims d;
    const float *cur;
    float *grad, *wide, *narrow, *act, *delta;
} back;

/* For y = x W^T: dW += dy^T x. dy: [rows, out] with ld; x: [rows, in]. */
static void weight_gradient(const back *b, long in, long out, const float *dy, long ld,
                            const float *x, float *dw)
{
    k_gemm_cpu(b->ctx, true, false, out, in, b->d.rows, 1.0f, dy, ld, x, in, 1.0f, dw, in);
}

/* dx = dy W, or += with beta 1. */
static void input_gradient(const back *b, long in, long out, const float *dy, long ld,
                           const float *w, float beta, float *dx)
{
    k_gemm_cpu(b->ctx, false, false, b->d.rows, in, out, 1.0f, dy, ld, w, in, beta, dx, in);
}

static void bias_gradient(const back *b, int64_t l, param_kind k, long cols, const float *dy)
{
    float *const db = stage_grad(b->c, b->p, l, k);
    if (db != NULL) k_colsum_cpu(b->ctx, b->d.rows, cols, dy, cols, db);
}

/* grad = dres + the norm's backward of dy. */
static void norm_backward(const back *b, int64_t l, param_kind gamma, const float *dy,
                          const float *s, const float *mean, const float *rstd, const float *dres)
{
    const stage_code *const c = b->c;
    const float *const w = stage_weight(c, b->p, l, gamma);
    float *const dw = stage_grad(c, b->p, l, gamma);
    if (c->m->rms_norm)
        k_rmsnorm_bwd_cpu(b->ctx, b->d.rows, b->d.hidden, dy, s, w, rstd, dres, b->grad, dw);
    else
        k_layernorm_bwd_cpu(b->ctx, b->d.rows, b->d.hidden, dy, s, w, mean, rstd, dres, b->grad, dw,
                            stage_grad(c, b->p, l, gamma + 1));
}

static void mlp_backward(const back *b, int64_t l, const layer_view *v)
{
    const stage_code *const c = b->c;
    const stage_dims d = b->d;
    const float *const w_up = stage_weight(c, b->p, l, PARAM_UP_WEIGHT);
    float *const dw_up = stage_grad(c, b->p, l, PARAM_UP_WEIGHT);
    bias_gradient(b, l, PARAM_DOWN_BIAS, d.hidden, b->cur);
    weight_gradient(b, d.ffn, d.hidden, b->cur, d.hidden, v->act,
                    stage_grad(c, b->p, l, PARAM_DOWN_WEIGHT));
    float *const dact = c->m->gated ? b->act : b->wide;
    input_gradient(b, d.ffn, d.hidden, b->cur, d.hidden,
                   stage_weight(c, b->p, l, PARAM_DOWN_WEIGHT), 0.0f, dact);
    if (!c->m->gated) {
        k_gelu_bwd_cpu(b->ctx, stage_gelu(c), d.rows, d.ffn, v->up,
                       stage_weight(c, b->p, l, PARAM_UP_BIAS), dact, b->wide);
        bias_gradient(b, l, PARAM_UP_BIAS, d.ffn, b->wide);
        weight_gradient(b, d.hidden, d.ffn, b->wide, d.up, v->y2, dw_up);
        input_gradient(b, d.hidden, d.ffn, b->wide, d.up, w_up, 0.0f, b->narrow);
        return;
    }
    float *const dgate = b->wide, *const dup = b->wide + d.ffn;
    k_swiglu_bwd_cpu(b->ctx, d.rows, d.ffn, v->up, v->up + d.ffn, d.up, dact, dgate, dup, d.up);
    weight_gradient(b, d.hidden, d.ffn, dgate, d.up, v->y2,
                    stage_grad(c, b->p, l, PARAM_GATE_WEIGHT));
    weight_gradient(b, d.hidden, d.ffn, dup, d.up, v->y2, dw_up);
    input_gradient(b, d.hidden, d.ffn, dgate, d.up, stage_weight(c, b->p, l, PARAM_GATE_WEIGHT),
                   0.0f, b->narrow);
    input_gradient(b, d.hidden, d.ffn, dup, d.up, w_up, 1.0f, b->narrow);
}

/* Where the gradients of a layer's keys are added up over the slices; those of its values follow.
 */
static float *prefix_gradients(const back *b, int64_t l)
{
    return b->p->dkv + 2 * l * b->c->batch * b->c->whole * b->d.kv;
}

/* The rows of the slice at hand are complete: all later slices are done. Puts them beside dq. */
static void take_own_gradients(const back *b, const float *dk, const float *dv)
{
    const stage_code *const c = b->c;
    const long kv = b->d.kv;
    for (int64_t i = 0; i < c->rows; i++) {
        const int64_t from = (i / c->seq * c->whole + b->p->prefix + i % c->seq) * kv;
        float *const to = b->wide + i * b->d.qkv + b->d.attn;
        memcpy(to, dk + from, (size_t)kv * sizeof *to);
        memcpy(to + kv, dv + from, (size_t)kv * sizeof *to);
    }
}

static void attention_backward(const back *b, int64_t l, const layer_view *v)
{
    const stage_code *const c = b->c;
    const model_desc *const m = c->m;
    const stage_dims d = b->d;
    bias_gradient(b, l, PARAM_OUT_BIAS, d.hidden, b->grad);
    weight_gradient(b, d.attn, d.hidden, b->grad, d.hidden, v->o,
                    stage_grad(c, b->p, l, PARAM_OUT_WEIGHT));
    input_gradient(b, d.attn, d.hidden, b->grad, d.hidden,
                   stage_weight(c, b->p, l, PARAM_OUT_WEIGHT), 0.0f, b->narrow);
    const k_attn a = stage_attention(c, b->p, l);
    const float *const k = v->qkv + d.attn;
    const bool sliced = stage_is_sliced(c);
    float *const dk = sliced ? prefix_gradients(b, l) : b->wide + d.attn;
    float *const dv = sliced ? dk + c->batch * c->whole * d.kv : dk + d.kv;
    k_attn_bwd_cpu(b->ctx, &a, sliced && b->p->prefix + c->seq < c->whole, v->qkv, k, k + d.kv,
                   v->o, b->narrow, v->lse, b->delta, b->wide, dk, dv);
    if (sliced) take_own_gradients(b, dk, dv);
    if (c->rope != NULL)
        k_rope_cpu(b->ctx, true, d.rows, c->seq, b->p->prefix, m->n_heads + m->n_kv_heads,
                   m->head_dim, c->rope, b->wide, d.qkv);
    bias_gradient(b, l, PARAM_QKV_BIAS, d.qkv, b->wide);
    weight_gradient(b, d.hidden, d.qkv, b->wide, d.qkv, v->y1,
                    stage_grad(c, b->p, l, PARAM_QKV_WEIGHT));
    input_gradient(b, d.hidden, d.qkv, b->wide, d.qkv, stage_weight(c, b->p, l, PARAM_QKV_WEIGHT),
                   0.0f, b->narrow);
}

/* Norms before the products; the residual stream passes them by. */
static void pre_norm_backward(back *b, int64_t l, const layer_view *v)
{
    const float *const x = stage_level(b->c, b->p, l);
    mlp_backward(b, l, v);
    norm_backward(b, l, PARAM_NORM2_WEIGHT, b->narrow, v->sum1, v->mean2, v->rstd2, b->cur);
    attention_backward(b, l, v);
    norm_backward(b, l, PARAM_NORM1_WEIGHT, b->narrow, x, v->mean1, v->rstd1, b->grad);
}

/* Norms behind the sums: the gradient of each sum goes to the product and past it. */
static void post_norm_backward(back *b, int64_t l, const layer_view *v)
{
    const long n = b->d.rows * b->d.hidden;
    norm_backward(b, l, PARAM_NORM2_WEIGHT, b->cur, v->sum2, v->mean2, v->rstd2, NULL);
    b->cur = b->grad;
    mlp_backward(b, l, v);
    k_add_cpu(b->ctx, n, b->narrow, b->grad, b->narrow);
    norm_backward(b, l, PARAM_NORM1_WEIGHT, b->narrow, v->sum1, v->mean1, v->rstd1, NULL);
    attention_backward(b, l, v);
    k_add_cpu(b->ctx, n, b->narrow, b->grad, b->grad);
}

static void layer_backward(back *b, int64_t l)
{
    const stage_code *const c = b->c;
    const layer_view v = stage_layer_view(c, b->p, l);
    if (c->recompute == RECOMPUTE_FULL) {
        stage_layer_inner(b->ctx, c, b->p, l, &v, stage_level(c, b->p, l), NULL, NULL, true);
        if (stage_post_norm(c)) bert_layer_end(b->ctx, c, b->p, l, &v, b->narrow);
    } else if (c->recompute == RECOMPUTE_SELECTIVE) {
        stage_attend(b->ctx, c, b->p, l, &v);
    }
    if (stage_post_norm(c))
        post_norm_backward(b, l, &v);
    else
        pre_norm_backward(b, l, &v);
    b->cur = b->grad;
}

/* Rows [first, first + n) of the head: b->narrow and += the table's gradient. */
static void head_rows(const back *b, long first, long n, const float *dlogits)
{
    const stage_code *const c = b->c;
    const long hidden = b->d.hidden, vocab = c->m->vocab, ld = c->stash.logits_ld;
    const float *const y = at_bytes(b->p->stash, c->stash.final_out) + first * hidden;
    k_gemm_cpu(b->ctx, false, false, n, hidden, vocab, 1.0f, dlogits, ld,
               stage_head_weight(c, b->p), hidden, 0.0f, b->narrow + first * hidden, hidden);
    k_gemm_cpu(b->ctx, true, false, vocab, hidden, n, 1.0f, dlogits, ld, y, hidden, 1.0f,
               b->p->grads + stage_head_grad(c), hidden);
    float *const dbias = stage_grad(c, b->p, -1, PARAM_HEAD_BIAS);
    if (dbias != NULL) k_colsum_cpu(b->ctx, n, vocab, dlogits, ld, dbias);
}

static void head_backward(back *b)
{
    const stage_code *const c = b->c;
    const stage_args *const p = b->p;
    if (c->stash.dlogits >= 0) {
        head_rows(b, 0, b->d.rows, at_bytes(p->stash, c->stash.dlogits));
    } else {
        const long counted = stage_targets(c, p);
        const double scale = (double)p->grad_scale / (double)(counted > 0 ? counted : 1);
        float *const logits = at_bytes(p->scratch, c->scratch.logits);
        double *const losses = (double *)(void *)(p->scratch + c->scratch.losses);
        for (long r = 0; r < b->d.rows; r += c->scratch.logits_rows) {
            const long left = b->d.rows - r;
            const long n = left < c->scratch.logits_rows ? left : c->scratch.logits_rows;
            stage_logits(b->ctx, c, p, r, n, logits);
            (void)k_xent_cpu(b->ctx, n, c->m->vocab, logits, c->stash.logits_ld, p->row_targets + r,
                             (float)scale, losses, NULL, logits);
            head_rows(b, r, n, logits);
        }
    }
    const float *const x = stage_level(c, p, c->at.n_layers);
    if (stage_post_norm(c))
        bert_transform_backward(b->ctx, c, p, x, b->narrow, b->grad);
    else
        norm_backward(b, -1, PARAM_FINAL_NORM_WEIGHT, b->narrow, x,
                      c->stash.final_mean < 0 ? NULL : at_bytes(p->stash, c->stash.final_mean),
                      at_bytes(p->stash, c->stash.final_rstd), NULL);
    b->cur = b->grad;
}

void stage_backward(k_ctx *ctx, const stage_code *c, stage_args *p)
{
    back b = {.ctx = ctx, .c = c, .p = p, .d = stage_dims_of(c), .cur = p->doutput};
    if (stage_passes_on(c)) {
        memcpy(p->dinput, p->doutput, (size_t)(b.d.rows * b.d.hidden) * sizeof *p->dinput);
        return;
    }
    stage_find_rows(c, p);
    b.grad = c->at.embedding ? at_bytes(p->scratch, c->scratch.grad) : p->dinput;
    b.wide = at_bytes(p->scratch, c->scratch.wide);
    b.narrow = at_bytes(p->scratch, c->scratch.narrow);
    b.act = c->scratch.act < 0 ? NULL : at_bytes(p->scratch, c->scratch.act);
    b.delta = at_bytes(p->scratch, c->scratch.delta);
    if (c->at.head) head_backward(&b);
    for (int64_t l = c->at.n_layers; l-- > 0;) layer_backward(&b, l);
    if (c->at.embedding && stage_post_norm(c))
        bert_embed_backward(ctx, c, p, b.cur, b.grad);
    else if (c->at.embedding)
        k_embed_bwd_cpu(ctx, b.d.rows, c->seq, p->prefix, b.d.hidden, p->row_ids, b.cur,
                        stage_grad(c, p, -1, PARAM_TOKEN_EMBEDDING),
                        stage_grad(c, p, -1, PARAM_POSITION_EMBEDDING), NULL);
}
