/* What BERT has and GPT-2 lacks (Devlin et al. 2019): a norm behind the embeddings, norms behind
 * the sums of a layer, and a transform before the table of the masked-token head. */
#include "exec/stage_inside.h"

void bert_embed(k_ctx *ctx, const stage_code *c, const stage_args *p)
{
    const stage_dims d = stage_dims_of(c);
    const bool first = p->shard == 0; /* the first shard alone brings what all have */
    /* every token is of the first type: its row of the type table is the "extra" one */
    k_ops_of(ctx)->embed_fwd(ctx, d.rows, c->seq, 0, d.hidden, p->ids, shard_words(c, p),
                             stage_weight(c, p, -1, PARAM_TOKEN_EMBEDDING),
                             first ? stage_weight(c, p, -1, PARAM_POSITION_EMBEDDING) : NULL,
                             first ? stage_weight(c, p, -1, PARAM_TYPE_EMBEDDING) : NULL,
                             STAGE_KEPT(c, p, embed_sum));
}

void bert_embed_norm(k_ctx *ctx, const stage_code *c, const stage_args *p)
{
    stage_norm(ctx, c, STAGE_KEPT(c, p, embed_sum), NULL, NULL,
               stage_weight(c, p, -1, PARAM_EMBEDDING_NORM_WEIGHT),
               stage_weight(c, p, -1, PARAM_EMBEDDING_NORM_BIAS), stage_level(c, p, 0),
               STAGE_KEPT(c, p, embed_mean), STAGE_KEPT(c, p, embed_rstd));
}

void bert_embed_backward(k_ctx *ctx, const stage_code *c, const stage_args *p, const float *dy,
                         float *dsum)
{
    const stage_dims d = stage_dims_of(c);
    k_ops_of(ctx)->layernorm_bwd(ctx, d.rows, d.hidden, dy, STAGE_KEPT(c, p, embed_sum),
                                 stage_weight(c, p, -1, PARAM_EMBEDDING_NORM_WEIGHT),
                                 STAGE_KEPT(c, p, embed_mean), STAGE_KEPT(c, p, embed_rstd), NULL,
                                 dsum, stage_grad(c, p, -1, PARAM_EMBEDDING_NORM_WEIGHT),
                                 stage_grad(c, p, -1, PARAM_EMBEDDING_NORM_BIAS));
    k_ops_of(ctx)->embed_bwd(ctx, d.rows, c->seq, 0, d.hidden, p->ids, shard_words(c, p), dsum,
                             stage_grad(c, p, -1, PARAM_TOKEN_EMBEDDING),
                             stage_grad(c, p, -1, PARAM_POSITION_EMBEDDING),
                             stage_grad(c, p, -1, PARAM_TYPE_EMBEDDING));
}

void bert_layer_end(k_ctx *ctx, const stage_code *c, const stage_args *p, int64_t layer,
                    const layer_view *v, float *out)
{
    const stage_dims d = stage_dims_of(c);
    if (stage_now(p))
        stage_project(ctx, d.rows, d.ffn, d.hidden, v->act,
                      stage_weight(c, p, layer, PARAM_DOWN_WEIGHT), v->sum2, d.hidden);
    stage_pass_cut(p);
    if (!stage_now(p)) return;
    stage_norm(ctx, c, v->sum2, stage_weight(c, p, layer, PARAM_DOWN_BIAS), v->y2,
               stage_weight(c, p, layer, PARAM_NORM2_WEIGHT),
               stage_weight(c, p, layer, PARAM_NORM2_BIAS), out, v->mean2, v->rstd2);
}

float *bert_transform(k_ctx *ctx, const stage_code *c, const stage_args *p, const float *x)
{
    const stage_dims d = stage_dims_of(c);
    float *const dense = STAGE_KEPT(c, p, head_dense);
    float *const act = STAGE_KEPT(c, p, head_act);
    stage_project(ctx, d.rows, d.hidden, d.hidden, x,
                  stage_weight(c, p, -1, PARAM_HEAD_DENSE_WEIGHT), dense, d.hidden);
    k_ops_of(ctx)->gelu_fwd(ctx, stage_gelu(c), d.rows, d.hidden, dense,
                            stage_weight(c, p, -1, PARAM_HEAD_DENSE_BIAS), act);
    return act;
}

void bert_transform_backward(k_ctx *ctx, const stage_code *c, const stage_args *p, float *dy,
                             float *ddense, float *dx)
{
    const stage_dims d = stage_dims_of(c);
    k_ops_of(ctx)->layernorm_bwd(ctx, d.rows, d.hidden, dy, STAGE_KEPT(c, p, head_act),
                                 stage_weight(c, p, -1, PARAM_FINAL_NORM_WEIGHT),
                                 STAGE_KEPT(c, p, final_mean), STAGE_KEPT(c, p, final_rstd), NULL,
                                 dy, stage_grad(c, p, -1, PARAM_FINAL_NORM_WEIGHT),
                                 stage_grad(c, p, -1, PARAM_FINAL_NORM_BIAS));
    k_ops_of(ctx)->gelu_bwd(ctx, stage_gelu(c), d.rows, d.hidden, STAGE_KEPT(c, p, head_dense),
                            stage_weight(c, p, -1, PARAM_HEAD_DENSE_BIAS), dy, ddense);
    k_ops_of(ctx)->gemm(ctx, false, false, d.rows, d.hidden, d.hidden, 1.0f, ddense, d.hidden,
                        stage_weight(c, p, -1, PARAM_HEAD_DENSE_WEIGHT), d.hidden, 0.0f, dx,
                        d.hidden);
}

void bert_transform_weights(k_ctx *ctx, const stage_code *c, const stage_args *p, const float *x,
                            const float *ddense)
{
    const stage_dims d = stage_dims_of(c);
    k_ops_of(ctx)->colsum(ctx, d.rows, d.hidden, ddense, d.hidden,
                          stage_grad(c, p, -1, PARAM_HEAD_DENSE_BIAS));
    k_ops_of(ctx)->gemm_grad(ctx, true, false, d.hidden, d.hidden, d.rows, 1.0f, ddense, d.hidden,
                             x, d.hidden, 1.0f, stage_grad(c, p, -1, PARAM_HEAD_DENSE_WEIGHT),
                             d.hidden);
}
