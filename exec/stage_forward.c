/* The forward pass of a stage. */
#include "exec/stage_inside.h"

#include <string.h>

void stage_norm(k_ctx *ctx, const stage_code *c, float *x, const float *bias, const float *res,
                const float *gamma, const float *beta, float *y, float *mean, float *rstd)
{
    const long rows = c->own_rows, cols = c->m->hidden;
    const float eps = (float)c->m->norm_eps;
    float *const sum = res != NULL ? x : NULL;
    if (!c->m->rms_norm) {
        k_ops_of(ctx)->layernorm_fwd(ctx, rows, cols, eps, x, bias, res, sum, gamma, beta, y, mean,
                                     rstd);
        return;
    }
    if (bias != NULL) k_ops_of(ctx)->bias_add(ctx, rows, cols, x, cols, bias);
    k_ops_of(ctx)->rmsnorm_fwd(ctx, rows, cols, eps, x, res, sum, gamma, y, rstd);
}

void stage_project(k_ctx *ctx, long rows, long in, long out, const float *x, const float *w,
                   float *y, long ldy)
{
    k_ops_of(ctx)->gemm(ctx, false, true, rows, out, in, 1.0f, x, in, w, in, 0.0f, y, ldy);
}

/* The same with a bias, where there is one. */
static void project_biased(k_ctx *ctx, long rows, long in, long out, const float *x, const float *w,
                           const float *bias, float *y, long ldy)
{
    if (bias != NULL)
        k_ops_of(ctx)->gemm_bias(ctx, rows, out, in, x, w, bias, y, ldy);
    else
        stage_project(ctx, rows, in, out, x, w, y, ldy);
}

void stage_attend(k_ctx *ctx, const stage_code *c, const stage_args *p, int64_t l,
                  const layer_view *v)
{
    const stage_dims d = stage_dims_of(c);
    const k_attn a = stage_attention(c, p, l);
    const float *const k = stage_skip(c, v->qkv, d.attn);
    k_ops_of(ctx)->attn_fwd(ctx, &a, v->qkv, k, stage_skip(c, k, d.kv), v->o, v->lse);
}

/* q, k and v out of y1, with their bias and positions: side by side; a slice's k and v go where
 * later slices will read them, unless they are there from an earlier time. */
static void project_qkv(k_ctx *ctx, const stage_code *c, const stage_args *p, int64_t l,
                        const layer_view *v, const float *y1, bool again)
{
    const stage_dims d = stage_dims_of(c);
    const model_desc *const m = c->m;
    const bool sliced = stage_is_sliced(c);
    float *const k = sliced ? stage_keys(c, &p->kv[p->n_kv - 1], l) : NULL;
    const struct {
        float *out;
        long first, n, turned; /* columns; heads that positions turn */
    } parts[] = {
        {v->qkv, 0, sliced ? d.attn : d.qkv, m->n_heads + (sliced ? 0 : m->n_kv_heads)},
        {k, d.attn, d.kv, m->n_kv_heads},
        {sliced ? stage_skip(c, k, d.rows * d.kv) : NULL, d.attn + d.kv, d.kv, 0},
    };
    const float *const w = stage_weight(c, p, l, PARAM_QKV_WEIGHT);
    const float *const bias = stage_weight(c, p, l, PARAM_QKV_BIAS);
    for (int i = 0; i < (sliced && !again ? 3 : 1); i++) {
        float *const out = parts[i].out;
        const long first = parts[i].first, n = parts[i].n;
        project_biased(ctx, d.rows, d.hidden, n, y1, stage_skip(c, w, first * d.hidden),
                       bias != NULL ? stage_skip(c, bias, first) : NULL, out, n);
        if (c->rope != NULL && parts[i].turned > 0)
            k_ops_of(ctx)->rope(ctx, false, d.rows, c->seq, p->prefix, parts[i].turned, m->head_dim,
                                c->rope, out, n);
    }
}

/* The layer's attention: sum1 without its bias and the residual. */
static void attention_forward(k_ctx *ctx, const stage_code *c, const stage_args *p, int64_t l,
                              const layer_view *v, float *x, const float *bias, const float *res,
                              bool again)
{
    const stage_dims d = stage_dims_of(c);
    if (!stage_post_norm(c) && stage_now(p)) /* else y1 is x */
        stage_norm(ctx, c, x, bias, res, stage_weight(c, p, l, PARAM_NORM1_WEIGHT),
                   stage_weight(c, p, l, PARAM_NORM1_BIAS), v->y1, v->mean1, v->rstd1);
    const float *const y1 = stage_gather(ctx, c, p, v->y1);
    if (!stage_now(p)) return;
    project_qkv(ctx, c, p, l, v, y1, again);
    stage_attend(ctx, c, p, l, v);
    stage_project(ctx, d.rows, d.attn, d.hidden, v->o, stage_weight(c, p, l, PARAM_OUT_WEIGHT),
                  stage_partial(c, p, v->sum1), d.hidden);
}

/* The layer's MLP without its last product. */
static void mlp_forward(k_ctx *ctx, const stage_code *c, const stage_args *p, int64_t l,
                        const layer_view *v, const float *x)
{
    const stage_dims d = stage_dims_of(c);
    const model_desc *const m = c->m;
    const bool post = stage_post_norm(c);
    const param_kind norm = post ? PARAM_NORM1_WEIGHT : PARAM_NORM2_WEIGHT;
    if (stage_now(p))
        stage_norm(ctx, c, v->sum1, stage_weight(c, p, l, PARAM_OUT_BIAS), x,
                   stage_weight(c, p, l, norm), stage_weight(c, p, l, norm + 1), v->y2,
                   post ? v->mean1 : v->mean2, post ? v->rstd1 : v->rstd2);
    const float *const y2 = stage_gather(ctx, c, p, v->y2);
    if (!stage_now(p)) return;
    const float *const w_up = stage_weight(c, p, l, PARAM_UP_WEIGHT);
    if (m->gated) {
        stage_project(ctx, d.rows, d.hidden, d.ffn, y2, stage_weight(c, p, l, PARAM_GATE_WEIGHT),
                      v->up, d.up);
        stage_project(ctx, d.rows, d.hidden, d.ffn, y2, w_up, stage_skip(c, v->up, d.ffn), d.up);
        k_ops_of(ctx)->swiglu_fwd(ctx, d.rows, d.ffn, v->up, stage_skip(c, v->up, d.ffn), d.up,
                                  v->act);
    } else {
        stage_project(ctx, d.rows, d.hidden, d.ffn, y2, w_up, v->up, d.up);
        k_ops_of(ctx)->gelu_fwd(ctx, stage_gelu(c), d.rows, d.ffn, v->up,
                                stage_weight(c, p, l, PARAM_UP_BIAS), v->act);
    }
}

void stage_layer_inner(k_ctx *ctx, const stage_code *c, const stage_args *p, int64_t l,
                       const layer_view *v, float *x, const float *bias, const float *res,
                       bool again)
{
    attention_forward(ctx, c, p, l, v, x, bias, res, again);
    stage_scatter(ctx, c, p, v->sum1);
    mlp_forward(ctx, c, p, l, v, x);
}

void stage_logits(k_ctx *ctx, const stage_code *c, const stage_args *p, long first, long n,
                  float *out)
{
    const long hidden = c->m->hidden;
    const float *const y = stage_skip(c, stage_head_input(c, p), first * hidden);
    const float *const bias = stage_weight(c, p, -1, PARAM_HEAD_BIAS);
    project_biased(ctx, n, hidden, c->m->vocab, y, stage_head_weight(c, p), bias, out,
                   c->stash.logits_ld);
}

static void final_norm(k_ctx *ctx, const stage_code *c, const stage_args *p, float *x,
                       const float *bias, const float *res)
{
    float *const normed = stage_post_norm(c) ? bert_transform(ctx, c, p, x) : x;
    stage_norm(ctx, c, normed, bias, res, stage_weight(c, p, -1, PARAM_FINAL_NORM_WEIGHT),
               stage_weight(c, p, -1, PARAM_FINAL_NORM_BIAS),
               c->at.vocab_rows == 0 ? STAGE_KEPT(c, p, final_out) : p->output,
               STAGE_KEPT(c, p, final_mean), STAGE_KEPT(c, p, final_rstd));
}

/* Logits, loss; keeps the gradient of the logits where the stash has room for it. */
static void head_forward(k_ctx *ctx, const stage_code *c, stage_args *p)
{
    const long ld = c->stash.logits_ld, vocab = c->m->vocab;
    if (c->shards > 1) {
        shard_softmax(ctx, c, p);
        return;
    }
    double *const losses = (double *)(void *)(p->scratch + c->scratch.losses);
    const float scale = stage_loss_scale(c, p);
    float *const kept = STAGE_KEPT(c, p, dlogits);
    /* in the pieces of full recomputation, whose shapes give the same bits */
    for (long r = 0; r < c->rows; r += c->scratch.logits_rows) {
        const long n = stage_piece(c, r);
        float *const logits =
            kept != NULL ? stage_skip(c, kept, r * ld) : at_bytes(p->scratch, c->scratch.logits);
        stage_logits(ctx, c, p, r, n, logits);
        (void)k_ops_of(ctx)->xent(ctx, n, vocab, logits, ld, p->row_targets + r, scale, losses + r,
                                  NULL, kept != NULL ? logits : NULL);
    }
    k_ops_of(ctx)->loss_sum(ctx, c->rows, losses, stage_row_weight(c, p),
                            p->loss_at != NULL ? p->loss_at : &p->loss);
}

/* Level 0 out of the rows of tables that lie in shards: positions are still to come. */
static void embed_rest(k_ctx *ctx, const stage_code *c, const stage_args *p)
{
    const float *const positions = stage_weight(c, p, -1, PARAM_POSITION_EMBEDDING);
    float *const out = stage_level(c, p, 0);
    const long n = c->seq * c->m->hidden;
    for (int64_t b = 0; b < c->batch; b++)
        if (positions != NULL)
            k_ops_of(ctx)->add(ctx, n, stage_skip(c, p->input, b * n),
                               stage_skip(c, positions, p->prefix * c->m->hidden),
                               stage_skip(c, out, b * n));
        else
            k_ops_of(ctx)->copy(ctx, stage_skip(c, out, b * n), stage_skip(c, p->input, b * n),
                                (size_t)(n * c->element_bytes));
}

static void embed_forward(k_ctx *ctx, const stage_code *c, const stage_args *p)
{
    const stage_dims d = stage_dims_of(c);
    if (c->at.vocab_rows > 0)
        embed_rest(ctx, c, p);
    else if (stage_post_norm(c))
        bert_embed(ctx, c, p);
    else if (c->shards > 1)
        shard_embed(ctx, c, p, stage_partial(c, p, stage_level(c, p, 0)));
    else
        k_ops_of(ctx)->embed_fwd(
            ctx, d.rows, c->seq, p->prefix, d.hidden, p->row_ids, (k_words){0, c->m->vocab},
            stage_weight(c, p, -1, PARAM_TOKEN_EMBEDDING),
            stage_weight(c, p, -1, PARAM_POSITION_EMBEDDING), NULL, stage_level(c, p, 0));
}

/* Behind the layers: the head, or the stage's output. */
static void end_forward(k_ctx *ctx, const stage_code *c, stage_args *p, const float *bias,
                        const float *res)
{
    const stage_dims d = stage_dims_of(c);
    float *const x = stage_level(c, p, c->at.n_layers);
    if (c->at.head) {
        if (stage_now(p)) final_norm(ctx, c, p, x, bias, res);
        if (c->at.vocab_rows > 0) return;
        (void)stage_gather(ctx, c, p, STAGE_KEPT(c, p, final_out));
        if (stage_now(p)) head_forward(ctx, c, p);
        if (c->shards == 1) return;
        stage_pass_cut(p);
        if (stage_now(p)) shard_loss(ctx, c, p);
        return;
    }
    if (!stage_now(p)) return;
    /* the same sum in the same order as the norm of a next layer would form it */
    if (bias != NULL) k_ops_of(ctx)->bias_add(ctx, c->own_rows, d.hidden, x, d.hidden, bias);
    if (res != NULL) k_ops_of(ctx)->add(ctx, c->own_rows * d.hidden, x, res, x);
}

static void begin_forward(k_ctx *ctx, const stage_code *c, const stage_args *p)
{
    stage_touch_end(ctx, p->stash, c->stash.bytes);
    if (c->split) stage_touch_end(ctx, p->stash_w, c->stash_w.bytes);
    stage_touch_end(ctx, p->scratch, c->scratch.bytes);
}

void stage_forward(k_ctx *ctx, const stage_code *c, stage_args *p)
{
    const stage_dims d = stage_dims_of(c);
    const float *bias = NULL, *res = NULL;
    if (stage_now(p)) begin_forward(ctx, c, p);
    if (stage_passes_on(c)) {
        k_ops_of(ctx)->copy(ctx, p->output, p->input,
                            (size_t)(c->own_rows * d.hidden * c->element_bytes));
        return;
    }
    stage_find_rows(ctx, c, p);
    if (c->at.embedding && stage_now(p)) embed_forward(ctx, c, p);
    if (c->at.embedding) stage_scatter(ctx, c, p, stage_level(c, p, 0));
    if (c->at.embedding && stage_post_norm(c) && stage_now(p)) bert_embed_norm(ctx, c, p);
    for (int64_t l = 0; l < c->at.n_layers; l++) {
        const layer_view v = stage_layer_view(c, p, l);
        float *const x = stage_level(c, p, l), *const out = stage_level(c, p, l + 1);
        stage_layer_inner(ctx, c, p, l, &v, x, bias, res, false);
        if (stage_post_norm(c)) {
            bert_layer_end(ctx, c, p, l, &v, out);
            continue;
        }
        if (stage_now(p))
            stage_project(ctx, d.rows, d.ffn, d.hidden, v.act,
                          stage_weight(c, p, l, PARAM_DOWN_WEIGHT), stage_partial(c, p, out),
                          d.hidden);
        stage_scatter(ctx, c, p, out);
        bias = stage_weight(c, p, l, PARAM_DOWN_BIAS);
        res = v.sum1;
    }
    end_forward(ctx, c, p, bias, res);
}
