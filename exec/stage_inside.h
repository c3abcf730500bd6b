/* Shared by the forward and the backward of a stage. */
#ifndef EXEC_STAGE_INSIDE_H
#define EXEC_STAGE_INSIDE_H

#include "exec/stage.h"

#include <stddef.h>
#include <string.h>

/* The tensors of one layer, wherever they lie. */
typedef struct layer_view {
    float *y1, *mean1, *rstd1, *qkv, *o, *lse, *sum1, *y2, *mean2, *rstd2, *up, *act;
    float *sum2; /* BERT: input of the layer's second norm */
    float *dqkv; /* split backward: the gradient of qkv, which may lie over it */
} layer_view;

/* Widths of one stage's matrices. */
typedef struct stage_dims {
    long rows, hidden, attn, kv, qkv, ffn, up;
} stage_dims;

stage_dims stage_dims_of(const stage_code *c);
layer_view stage_layer_view(const stage_code *c, const stage_args *p, int64_t layer);
/* A tensor outside layers by its place in stash_layout; NULL where the model or the pass lacks it.
 */
float *stage_kept(const stage_code *c, const stage_args *p, size_t field);
#define STAGE_KEPT(c, p, name) stage_kept(c, p, offsetof(stash_layout, name))
/* The residual stream at the input of layer `level`, or behind the last one. */
float *stage_level(const stage_code *c, const stage_args *p, int64_t level);
/* Whether the stage has neither layers nor ends: its output is its input. */
bool stage_passes_on(const stage_code *c);
/* A tensor of the layer (layer >= 0) or of the stage (-1); NULL when the model has none. */
const float *stage_weight(const stage_code *c, const stage_args *p, int64_t layer, param_kind k);
float *stage_grad(const stage_code *c, const stage_args *p, int64_t layer, param_kind k);
/* One layer's keys of a slice; its values follow them. */
float *stage_keys(const stage_code *c, const stage_kv *kv, int64_t layer);
/* The layer's attention; of a slice with its keys and values, listed in p->keys. */
k_attn stage_attention(const stage_code *c, const stage_args *p, int64_t layer);
const float *stage_head_weight(const stage_code *c, const stage_args *p);

/* The element n places behind x. */
static inline float *stage_skip(const stage_code *c, const float *x, int64_t n)
{
    const char *const at = (const char *)x + n * c->element_bytes;
    return (float *)(uintptr_t)at;
}

static inline float *at_bytes(char *base, int64_t offset)
{
    return (float *)(void *)(base + offset);
}

/* Writes the gap that alignment may leave at a buffer's end, so that all of it is touched. */
static inline void stage_touch_end(k_ctx *ctx, char *buffer, int64_t bytes)
{
    enum { GAP_BYTES = 64 };
    if (bytes >= GAP_BYTES) k_ops_of(ctx)->zero(ctx, buffer + bytes - GAP_BYTES, GAP_BYTES);
}

/* Whether what comes next in the walk over a pass is in the segment to be done. */
static inline bool stage_now(const stage_args *p)
{
    return p->cut == NULL || p->cut->at == p->cut->segment;
}
/* The walk comes to a cut. */
static inline void stage_pass_cut(const stage_args *p)
{
    if (p->cut != NULL) p->cut->at++;
}

/* --- stage_tp.c: what one of several shards does otherwise --- */

/* The words of the vocabulary that this shard holds; all where there is one. */
k_words shard_words(const stage_code *c, const stage_args *p);
/* This shard's part of level 0, and the gradients of its tables: the rows of its own words. */
void shard_embed(k_ctx *ctx, const stage_code *c, const stage_args *p, float *x);
void shard_embed_backward(k_ctx *ctx, const stage_code *c, const stage_args *p, const float *dy);
/* The softmax over this shard's words, and the statistics that all shards join; then, with those,
 * the loss and the gradient of the shard's logits where it is kept. */
void shard_softmax(k_ctx *ctx, const stage_code *c, const stage_args *p);
void shard_loss(k_ctx *ctx, const stage_code *c, stage_args *p);
/* The gradient of the logits of a piece, made again. */
void shard_dlogits(k_ctx *ctx, const stage_code *c, const stage_args *p, long first, float *logits);

/* --- stage_sp.c: sequence parallelism, where a shard has its own rows of the residual stream ---
 */

static inline bool stage_is_shared(const stage_code *c) { return c->own_rows < c->rows; }
/* The shard's own rows of a tensor of all. */
float *stage_own(const stage_code *c, const stage_args *p, const float *all);
/* Comes to the cut at which all rows of a tensor come together, and returns where they then are; a
 * shard that has all rows has them already. */
const float *stage_gather(k_ctx *ctx, const stage_code *c, const stage_args *p, const float *own);
/* Where a product's output goes that the shards add up: `to`, unless each keeps its own rows only.
 */
float *stage_partial(const stage_code *c, const stage_args *p, float *to);
/* Comes to that cut; behind it `to` is there. */
void stage_scatter(k_ctx *ctx, const stage_code *c, const stage_args *p, float *to);
/* The final norm's output, of all rows. */
const float *stage_head_input(const stage_code *c, const stage_args *p);

/* Whether norms follow the sums (BERT) instead of preceding the products. */
static inline bool stage_post_norm(const stage_code *c) { return c->m->family == MODEL_BERT; }
static inline k_gelu stage_gelu(const stage_code *c)
{
    return stage_post_norm(c) ? K_GELU_ERF : K_GELU_TANH;
}

/* y = x W^T; W: [out, in]. */
void stage_project(k_ctx *ctx, long rows, long in, long out, const float *x, const float *w,
                   float *y, long ldy);
/* y = norm(s), s = x + bias + res written back to x when res is given. */
void stage_norm(k_ctx *ctx, const stage_code *c, float *x, const float *bias, const float *res,
                const float *gamma, const float *beta, float *y, float *mean, float *rstd);

/* Layer forward up to the activation (not its last product): what full recomputation repeats.
 * res != NULL: x still lacks + bias + res; it is completed in place. again: a slice's keys and
 * values are there already. */
void stage_layer_inner(k_ctx *ctx, const stage_code *c, const stage_args *p, int64_t layer,
                       const layer_view *v, float *x, const float *bias, const float *res,
                       bool again);
void stage_attend(k_ctx *ctx, const stage_code *c, const stage_args *p, int64_t layer,
                  const layer_view *v);
/* Finds the tokens of the pass's rows. */
void stage_find_rows(k_ctx *ctx, const stage_code *c, stage_args *p);
/* Rows of the head's piece that starts at row `first`: the head works in pieces. */
static inline long stage_piece(const stage_code *c, long first)
{
    const long left = c->rows - first;
    return left < c->scratch.logits_rows ? left : c->scratch.logits_rows;
}
/* Logits of rows [first, first + n) into out (ld = logits_ld). */
void stage_logits(k_ctx *ctx, const stage_code *c, const stage_args *p, long first, long n,
                  float *out);
/* What a counted row weighs in the mean loss of its microbatch, and in what is differentiated. */
double stage_row_weight(const stage_code *c, const stage_args *p);
static inline float stage_loss_scale(const stage_code *c, const stage_args *p)
{
    return (float)(stage_row_weight(c, p) * (double)p->grad_scale);
}

/* --- stage_bert.c: what only BERT has --- */

/* The sum of the token's, the position's and the first type's embedding, or a shard's part of it;
 * then level 0, its norm. */
void bert_embed(k_ctx *ctx, const stage_code *c, const stage_args *p);
void bert_embed_norm(k_ctx *ctx, const stage_code *c, const stage_args *p);
/* The layer's last product, sum and norm into out [N, hidden]. */
void bert_layer_end(k_ctx *ctx, const stage_code *c, const stage_args *p, int64_t layer,
                    const layer_view *v, float *out);
/* The head's transform of x: dense, activation; its norm is the final norm. Returns what that is
 * of. */
float *bert_transform(k_ctx *ctx, const stage_code *c, const stage_args *p, const float *x);
/* Backward of the transform and its norm, without the dense product's weights: ddense, the gradient
 * of that product's output, and dx [N, hidden] are assigned; ddense may be dy or the output. */
void bert_transform_backward(k_ctx *ctx, const stage_code *c, const stage_args *p, float *dy,
                             float *ddense, float *dx);
void bert_transform_weights(k_ctx *ctx, const stage_code *c, const stage_args *p, const float *x,
                            const float *ddense);
/* dy: gradient of level 0; dsum: workspace [N, hidden], may be dy. */
void bert_embed_backward(k_ctx *ctx, const stage_code *c, const stage_args *p, const float *dy,
                         float *dsum);

#endif
