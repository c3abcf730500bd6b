/* The backward pass of a stage, whole or split. One walk over the layers makes the gradients of
 * inputs; a whole backward makes the weights' gradients of each product beside it, out of
 * workspace; a split one leaves the gradients of the products' outputs where the weights' pass
 * finds them. */
#include "exec/stage_inside.h"

/* One stage's backward at hand: `cur` is the gradient of the residual stream behind the layer at
 * hand, first the DOUTPUT buffer. */
typedef struct back {
    k_ctx *ctx;
    const stage_code *c;
    const stage_args *p;
    stage_dims d;
    const float *cur;
    float *grad, *wide, *narrow, *act, *delta;
} back;

/* Where the gradients inside one layer go: of its sums, before the activation, of q, k and v, of
 * its input. */
typedef struct layer_slots {
    float *sum1, *sum2, *up, *qkv, *in;
} layer_slots;

/* For y = x W^T: dW += dy^T x. dy: [rows, out] with ld; x: [rows, in]. */
static void weight_gradient(const back *b, long in, long out, const float *dy, long ld,
                            const float *x, float *dw)
{
    k_ops_of(b->ctx)->gemm_grad(b->ctx, true, false, out, in, b->d.rows, 1.0f, dy, ld, x, in, 1.0f,
                                dw, in);
}

/* dx = dy W, or += with beta 1. */
static void input_gradient(const back *b, long in, long out, const float *dy, long ld,
                           const float *w, float beta, float *dx)
{
    k_ops_of(b->ctx)->gemm(b->ctx, false, false, b->d.rows, in, out, 1.0f, dy, ld, w, in, beta, dx,
                           in);
}

static void bias_gradient(const back *b, int64_t l, param_kind k, long cols, const float *dy)
{
    float *const db = stage_grad(b->c, b->p, l, k);
    if (db != NULL) k_ops_of(b->ctx)->colsum(b->ctx, b->d.rows, cols, dy, cols, db);
}

/* --- weights of the products, given the gradients of their outputs --- */

static void down_weights(const back *b, int64_t l, const layer_view *v, const float *dy)
{
    bias_gradient(b, l, PARAM_DOWN_BIAS, b->d.hidden, dy);
    weight_gradient(b, b->d.ffn, b->d.hidden, dy, b->d.hidden, v->act,
                    stage_grad(b->c, b->p, l, PARAM_DOWN_WEIGHT));
}

/* dup: [rows, up], gated: columns of the gate first. */
static void up_weights(const back *b, int64_t l, const float *y2, const float *dup)
{
    const stage_dims d = b->d;
    const bool gated = b->c->m->gated;
    if (!gated) bias_gradient(b, l, PARAM_UP_BIAS, d.ffn, dup);
    if (gated)
        weight_gradient(b, d.hidden, d.ffn, dup, d.up, y2,
                        stage_grad(b->c, b->p, l, PARAM_GATE_WEIGHT));
    weight_gradient(b, d.hidden, d.ffn, gated ? stage_skip(b->c, dup, d.ffn) : dup, d.up, y2,
                    stage_grad(b->c, b->p, l, PARAM_UP_WEIGHT));
}

static void out_weights(const back *b, int64_t l, const layer_view *v, const float *dsum)
{
    bias_gradient(b, l, PARAM_OUT_BIAS, b->d.hidden, dsum);
    weight_gradient(b, b->d.attn, b->d.hidden, dsum, b->d.hidden, v->o,
                    stage_grad(b->c, b->p, l, PARAM_OUT_WEIGHT));
}

static void qkv_weights(const back *b, int64_t l, const float *y1, const float *dqkv)
{
    bias_gradient(b, l, PARAM_QKV_BIAS, b->d.qkv, dqkv);
    weight_gradient(b, b->d.hidden, b->d.qkv, dqkv, b->d.qkv, y1,
                    stage_grad(b->c, b->p, l, PARAM_QKV_WEIGHT));
}

/* The piece of the head's table from row `first`. */
static void head_weights(const back *b, long first, const float *dlogits)
{
    const stage_code *const c = b->c;
    const long hidden = b->d.hidden, vocab = c->m->vocab, ld = c->stash.logits_ld;
    const long n = stage_piece(c, first);
    const float *const y = stage_skip(c, stage_head_input(c, b->p), first * hidden);
    float *const dbias = stage_grad(c, b->p, -1, PARAM_HEAD_BIAS);
    k_ops_of(b->ctx)->gemm_grad(b->ctx, true, false, vocab, hidden, n, 1.0f, dlogits, ld, y, hidden,
                                1.0f, b->p->grads + stage_head_grad(c), hidden);
    if (dbias != NULL) k_ops_of(b->ctx)->colsum(b->ctx, n, vocab, dlogits, ld, dbias);
}

/* Whether the head's weights are left to a pass of their own: its logits are kept for it. */
static bool head_is_split(const stage_code *c)
{
    return c->split && c->recompute != RECOMPUTE_FULL && c->at.vocab_rows == 0;
}

/* --- inputs --- */

/* dx = dres + the norm's backward of dy. */
static void norm_backward(const back *b, int64_t l, param_kind gamma, const float *dy,
                          const float *s, const float *mean, const float *rstd, const float *dres,
                          float *dx)
{
    const stage_code *const c = b->c;
    const float *const w = stage_weight(c, b->p, l, gamma);
    float *const dw = stage_grad(c, b->p, l, gamma);
    if (c->m->rms_norm)
        k_ops_of(b->ctx)->rmsnorm_bwd(b->ctx, c->own_rows, b->d.hidden, dy, s, w, rstd, dres, dx,
                                      dw);
    else
        k_ops_of(b->ctx)->layernorm_bwd(b->ctx, c->own_rows, b->d.hidden, dy, s, w, mean, rstd,
                                        dres, dx, dw, stage_grad(c, b->p, l, gamma + 1));
}

/* All rows of a tensor that the shards have pieces of. */
static const float *gather(const back *b, const float *own)
{
    return stage_gather(b->ctx, b->c, b->p, own);
}

/* The same of a product's input, which only its weights need; a split backward leaves them. */
static const float *gather_input(const back *b, const float *own)
{
    return b->c->split ? own : gather(b, own);
}

/* Behind the cut at which the shards add up what is in narrow. */
static const float *add_up(const back *b)
{
    stage_pass_cut(b->p);
    return stage_own(b->c, b->p, b->narrow);
}

/* From dy, the gradient of the MLP's output, to that before the activation. */
static void mlp_backward(const back *b, int64_t l, const layer_view *v, const float *dy,
                         const layer_slots *s)
{
    const stage_code *const c = b->c;
    const stage_dims d = b->d;
    float *const dact = c->m->gated ? b->act : b->wide;
    if (!c->split) down_weights(b, l, v, dy);
    input_gradient(b, d.ffn, d.hidden, dy, d.hidden, stage_weight(c, b->p, l, PARAM_DOWN_WEIGHT),
                   0.0f, dact);
    if (c->m->gated)
        k_ops_of(b->ctx)->swiglu_bwd(b->ctx, d.rows, d.ffn, v->up, stage_skip(c, v->up, d.ffn),
                                     d.up, dact, s->up, stage_skip(c, s->up, d.ffn), d.up);
    else
        k_ops_of(b->ctx)->gelu_bwd(b->ctx, stage_gelu(c), d.rows, d.ffn, v->up,
                                   stage_weight(c, b->p, l, PARAM_UP_BIAS), dact, s->up);
}

/* On to narrow, the gradient of y2. */
static void up_backward(const back *b, int64_t l, const float *y2, const layer_slots *s)
{
    const stage_code *const c = b->c;
    const stage_dims d = b->d;
    const float *const w_up = stage_weight(c, b->p, l, PARAM_UP_WEIGHT);
    if (!c->split) up_weights(b, l, y2, s->up);
    if (!c->m->gated) {
        input_gradient(b, d.hidden, d.ffn, s->up, d.up, w_up, 0.0f, b->narrow);
    } else {
        input_gradient(b, d.hidden, d.ffn, s->up, d.up, stage_weight(c, b->p, l, PARAM_GATE_WEIGHT),
                       0.0f, b->narrow);
        input_gradient(b, d.hidden, d.ffn, stage_skip(c, s->up, d.ffn), d.up, w_up, 1.0f,
                       b->narrow);
    }
}

/* Where the gradients of a layer's keys are added up over the slices; those of its values follow.
 */
static float *prefix_gradients(const back *b, int64_t l)
{
    return b->p->dkv + 2 * l * b->c->batch * b->c->whole * b->d.kv;
}

/* The rows of the slice at hand are complete: all later slices are done. Puts them beside dq. */
static void take_own_gradients(const back *b, const float *dk, const float *dv, float *dqkv)
{
    const stage_code *const c = b->c;
    const long kv = b->d.kv;
    const k_ops *const ops = k_ops_of(b->ctx);
    for (int64_t i = 0; i < c->batch; i++) {
        const int64_t from = (i * c->whole + b->p->prefix) * kv;
        float *const to = stage_skip(c, dqkv, i * c->seq * b->d.qkv + b->d.attn);
        ops->take_rows(b->ctx, c->seq, kv, dk + from, kv, to, b->d.qkv);
        ops->take_rows(b->ctx, c->seq, kv, dv + from, kv, stage_skip(c, to, kv), b->d.qkv);
    }
}

/* dqkv, from the gradient of o in narrow. */
static void scores_backward(const back *b, int64_t l, const layer_view *v, float *dqkv)
{
    const stage_code *const c = b->c;
    const stage_dims d = b->d;
    const k_attn a = stage_attention(c, b->p, l);
    const bool sliced = stage_is_sliced(c);
    const float *const k = stage_skip(c, v->qkv, d.attn);
    float *const dk = sliced ? prefix_gradients(b, l) : stage_skip(c, dqkv, d.attn);
    float *const dv = sliced ? dk + c->batch * c->whole * d.kv : stage_skip(c, dk, d.kv);
    k_ops_of(b->ctx)->attn_bwd(b->ctx, &a, sliced && b->p->prefix + c->seq < c->whole, v->qkv, k,
                               stage_skip(c, k, d.kv), v->o, b->narrow, v->lse, b->delta, dqkv, dk,
                               dv);
    if (sliced) take_own_gradients(b, dk, dv, dqkv);
    if (c->rope != NULL)
        k_ops_of(b->ctx)->rope(b->ctx, true, d.rows, c->seq, b->p->prefix,
                               c->m->n_heads + c->m->n_kv_heads, c->m->head_dim, c->rope, dqkv,
                               d.qkv);
}

/* From dy, the gradient of attention's output, to those of q, k and v. */
static void attention_backward(const back *b, int64_t l, const layer_view *v, const float *dy,
                               const layer_slots *s)
{
    const stage_code *const c = b->c;
    const stage_dims d = b->d;
    if (!c->split) out_weights(b, l, v, dy);
    input_gradient(b, d.attn, d.hidden, dy, d.hidden, stage_weight(c, b->p, l, PARAM_OUT_WEIGHT),
                   0.0f, b->narrow);
    scores_backward(b, l, v, s->qkv);
}

/* On to narrow, the gradient of y1. */
static void qkv_backward(const back *b, int64_t l, const layer_view *v, const float *y1,
                         const layer_slots *s)
{
    const stage_code *const c = b->c;
    const stage_dims d = b->d;
    if (!c->split)
        qkv_weights(b, l, y1, s->qkv);
    else if (s->qkv != v->dqkv) /* q, k and v were needed until here */
        k_ops_of(b->ctx)->copy(b->ctx, v->dqkv, s->qkv,
                               (size_t)(d.rows * d.qkv * c->element_bytes));
    input_gradient(b, d.hidden, d.qkv, s->qkv, d.qkv, stage_weight(c, b->p, l, PARAM_QKV_WEIGHT),
                   0.0f, b->narrow);
}

/* Norms before the products; the residual stream passes them by. */
static void pre_norm_backward(const back *b, int64_t l, const layer_view *v, const layer_slots *s)
{
    const stage_args *const p = b->p;
    const float *const x = stage_level(b->c, p, l);
    const float *const dmlp = gather(b, b->cur);
    if (stage_now(p)) mlp_backward(b, l, v, dmlp, s);
    const float *const y2 = gather_input(b, v->y2);
    if (stage_now(p)) up_backward(b, l, y2, s);
    const float *const dy2 = add_up(b);
    if (stage_now(p))
        norm_backward(b, l, PARAM_NORM2_WEIGHT, dy2, v->sum1, v->mean2, v->rstd2, b->cur, s->sum1);
    const float *const dattention = gather(b, s->sum1);
    if (stage_now(p)) attention_backward(b, l, v, dattention, s);
    const float *const y1 = gather_input(b, v->y1);
    if (stage_now(p)) qkv_backward(b, l, v, y1, s);
    const float *const dy1 = add_up(b);
    if (stage_now(p))
        norm_backward(b, l, PARAM_NORM1_WEIGHT, dy1, x, v->mean1, v->rstd1, s->sum1, s->in);
}

/* Norms behind the sums: the gradient of each sum goes to the product and past it. */
static void post_norm_backward(const back *b, int64_t l, const layer_view *v, const layer_slots *s)
{
    const stage_args *const p = b->p;
    const long n = b->d.rows * b->d.hidden;
    if (stage_now(p)) {
        norm_backward(b, l, PARAM_NORM2_WEIGHT, b->cur, v->sum2, v->mean2, v->rstd2, NULL, s->sum2);
        mlp_backward(b, l, v, s->sum2, s);
        up_backward(b, l, v->y2, s);
    }
    stage_pass_cut(p);
    if (stage_now(p)) {
        k_ops_of(b->ctx)->add(b->ctx, n, b->narrow, s->sum2, b->narrow);
        norm_backward(b, l, PARAM_NORM1_WEIGHT, b->narrow, v->sum1, v->mean1, v->rstd1, NULL,
                      s->sum1);
        attention_backward(b, l, v, s->sum1, s);
        qkv_backward(b, l, v, v->y1, s);
    }
    stage_pass_cut(p);
    if (stage_now(p)) k_ops_of(b->ctx)->add(b->ctx, n, b->narrow, s->sum1, s->in);
}

/* The gradient of a level of the residual stream: over the level where W will need it. */
static float *level_slot(const back *b, int64_t level)
{
    const bool kept = b->c->split && !stage_post_norm(b->c) && level > 0;
    return kept ? stage_level(b->c, b->p, level) : b->grad;
}

static layer_slots slots_of(const back *b, int64_t l, const layer_view *v)
{
    float *const in = level_slot(b, l);
    if (!b->c->split)
        return (layer_slots){
            .sum1 = b->grad, .sum2 = b->grad, .up = b->wide, .qkv = b->wide, .in = in};
    return (layer_slots){.sum1 = v->sum1,
                         .sum2 = v->sum2,
                         .up = v->up,
                         .qkv = v->dqkv == v->qkv ? b->wide : v->dqkv,
                         .in = in};
}

static void layer_backward(back *b, int64_t l)
{
    const stage_code *const c = b->c;
    const layer_view v = stage_layer_view(c, b->p, l);
    const layer_slots s = slots_of(b, l, &v);
    if (c->recompute == RECOMPUTE_FULL) {
        stage_layer_inner(b->ctx, c, b->p, l, &v, stage_level(c, b->p, l), NULL, NULL, true);
        if (stage_post_norm(c)) bert_layer_end(b->ctx, c, b->p, l, &v, b->narrow);
    } else if (c->recompute == RECOMPUTE_SELECTIVE && stage_now(b->p)) {
        stage_attend(b->ctx, c, b->p, l, &v);
    }
    if (stage_post_norm(c))
        post_norm_backward(b, l, &v, &s);
    else
        pre_norm_backward(b, l, &v, &s);
    b->cur = s.in;
}

/* The gradient of the logits from row `first`: kept, or made again. */
static const float *logits_gradient(const back *b, long first)
{
    const stage_code *const c = b->c;
    const stage_args *const p = b->p;
    const float *const kept = STAGE_KEPT(c, p, dlogits);
    if (kept != NULL) return stage_skip(c, kept, first * c->stash.logits_ld);
    const long n = stage_piece(c, first);
    float *const logits = at_bytes(p->scratch, c->scratch.logits);
    double *const losses = (double *)(void *)(p->scratch + c->scratch.losses);
    if (c->shards > 1) {
        shard_dlogits(b->ctx, c, p, first, logits);
        return logits;
    }
    stage_logits(b->ctx, c, p, first, n, logits);
    (void)k_ops_of(b->ctx)->xent(b->ctx, n, c->m->vocab, logits, c->stash.logits_ld,
                                 p->row_targets + first, stage_loss_scale(c, p), losses, NULL,
                                 logits);
    return logits;
}

static void head_backward(back *b)
{
    const stage_code *const c = b->c;
    const stage_args *const p = b->p;
    const long hidden = b->d.hidden;
    float *const x = stage_level(c, p, c->at.n_layers), *const dx = level_slot(b, c->at.n_layers);
    if (c->at.vocab_rows > 0) {
        norm_backward(b, -1, PARAM_FINAL_NORM_WEIGHT, p->doutput, x, STAGE_KEPT(c, p, final_mean),
                      STAGE_KEPT(c, p, final_rstd), NULL, dx);
        b->cur = dx;
        return;
    }
    if (!head_is_split(c)) (void)gather(b, STAGE_KEPT(c, p, final_out));
    for (long r = 0; r < c->rows && stage_now(p); r += c->scratch.logits_rows) {
        const float *const dlogits = logits_gradient(b, r);
        k_ops_of(b->ctx)->gemm(b->ctx, false, false, stage_piece(c, r), hidden, c->m->vocab, 1.0f,
                               dlogits, c->stash.logits_ld, stage_head_weight(c, p), hidden, 0.0f,
                               stage_skip(c, b->narrow, r * hidden), hidden);
        if (!head_is_split(c)) head_weights(b, r, dlogits);
    }
    const float *const dnorm = add_up(b);
    b->cur = dx;
    if (!stage_now(p)) return;
    if (stage_post_norm(c)) {
        float *const ddense = head_is_split(c) ? STAGE_KEPT(c, p, head_dense) : b->narrow;
        bert_transform_backward(b->ctx, c, p, b->narrow, ddense, dx);
        if (!head_is_split(c)) bert_transform_weights(b->ctx, c, p, x, ddense);
    } else {
        norm_backward(b, -1, PARAM_FINAL_NORM_WEIGHT, dnorm, x, STAGE_KEPT(c, p, final_mean),
                      STAGE_KEPT(c, p, final_rstd), NULL, dx);
    }
}

/* All that is not left to the weights' pass. */
static void walk_back(k_ctx *ctx, const stage_code *c, stage_args *p)
{
    back b = {.ctx = ctx, .c = c, .p = p, .d = stage_dims_of(c), .cur = p->doutput};
    if (stage_passes_on(c)) {
        k_ops_of(ctx)->copy(ctx, p->dinput, p->doutput,
                            (size_t)(c->own_rows * b.d.hidden * c->element_bytes));
        return;
    }
    stage_find_rows(ctx, c, p);
    const bool whole = c->at.embedding && c->at.vocab_rows == 0;
    b.grad = whole ? at_bytes(p->scratch, c->scratch.grad) : p->dinput;
    b.wide = at_bytes(p->scratch, c->scratch.wide);
    b.narrow = at_bytes(p->scratch, c->scratch.narrow);
    b.act = c->scratch.act < 0 ? NULL : at_bytes(p->scratch, c->scratch.act);
    b.delta = at_bytes(p->scratch, c->scratch.delta);
    if (c->at.head) head_backward(&b);
    for (int64_t l = c->at.n_layers; l-- > 0;) layer_backward(&b, l);
    const float *const dlevel = c->at.embedding ? gather(&b, b.cur) : NULL;
    if (!stage_now(p)) return;
    if (c->at.embedding && !whole && b.cur != p->dinput)
        k_ops_of(ctx)->copy(ctx, p->dinput, b.cur,
                            (size_t)(b.d.rows * b.d.hidden * c->element_bytes));
    if (c->at.embedding && stage_post_norm(c))
        bert_embed_backward(ctx, c, p, b.cur, b.grad);
    else if (c->at.embedding && c->shards > 1)
        shard_embed_backward(ctx, c, p, dlevel);
    else if (c->at.embedding)
        k_ops_of(ctx)->embed_bwd(ctx, b.d.rows, c->seq, p->prefix, b.d.hidden, p->row_ids,
                                 (k_words){0, c->m->vocab}, b.cur,
                                 stage_grad(c, p, -1, PARAM_TOKEN_EMBEDDING),
                                 stage_grad(c, p, -1, PARAM_POSITION_EMBEDDING), NULL);
}

void stage_backward(k_ctx *ctx, const stage_code *c, stage_args *p) { walk_back(ctx, c, p); }

void stage_input_gradient(k_ctx *ctx, const stage_code *c, stage_args *p)
{
    if (stage_now(p)) stage_touch_end(ctx, p->wstash, c->wstash.bytes);
    walk_back(ctx, c, p);
}

void stage_weight_gradient(k_ctx *ctx, const stage_code *c, const stage_args *p)
{
    const back b = {.ctx = ctx, .c = c, .p = p, .d = stage_dims_of(c)};
    const bool post = stage_post_norm(c);
    if (c->at.head && head_is_split(c)) {
        (void)gather(&b, STAGE_KEPT(c, p, final_out));
        for (long r = 0; r < c->rows && stage_now(p); r += c->scratch.logits_rows)
            head_weights(&b, r, stage_skip(c, STAGE_KEPT(c, p, dlogits), r * c->stash.logits_ld));
        if (post)
            bert_transform_weights(ctx, c, p, stage_level(c, p, c->at.n_layers),
                                   STAGE_KEPT(c, p, head_dense));
    }
    for (int64_t l = c->at.n_layers; l-- > 0;) {
        const layer_view v = stage_layer_view(c, p, l);
        const bool ends = l + 1 == c->at.n_layers && !c->at.head;
        const float *const dmlp = gather(&b, post   ? v.sum2
                                             : ends ? p->doutput
                                                    : stage_level(c, p, l + 1));
        if (stage_now(p)) down_weights(&b, l, &v, dmlp);
        const float *const y2 = gather(&b, v.y2);
        if (stage_now(p)) up_weights(&b, l, y2, v.up);
        const float *const dattention = gather(&b, v.sum1);
        if (stage_now(p)) out_weights(&b, l, &v, dattention);
        const float *const y1 = gather(&b, v.y1);
        if (stage_now(p)) qkv_weights(&b, l, y1, v.dqkv);
    }
}
