/* Shared by the forward and the backward of a stage. */
#ifndef EXEC_STAGE_INSIDE_H
#define EXEC_STAGE_INSIDE_H

#include "exec/stage.h"

/* The tensors of one layer, wherever they lie. */
typedef struct layer_view {
    float *y1, *mean1, *rstd1, *qkv, *o, *lse, *sum1, *y2, *mean2, *rstd2, *up, *act;
} layer_view;

/* Widths of one stage's matrices. */
typedef struct stage_dims {
    long rows, hidden, attn, kv, qkv, ffn, up;
} stage_dims;

stage_dims stage_dims_of(const stage_code *c);
layer_view stage_layer_view(const stage_code *c, const stage_args *p, int64_t layer);
/* The residual stream at the input of layer `level`, or behind the last one. */
float *stage_level(const stage_code *c, const stage_args *p, int64_t level);
/* Whether the stage has neither layers nor ends: its output is its input. */
bool stage_passes_on(const stage_code *c);
/* A tensor of the layer (layer >= 0) or of the stage (-1); NULL when the model has none. */
const float *stage_weight(const stage_code *c, const stage_args *p, int64_t layer, param_kind k);
float *stage_grad(const stage_code *c, const stage_args *p, int64_t layer, param_kind k);
k_attn stage_attention(const stage_code *c);
const float *stage_head_weight(const stage_code *c, const stage_args *p);

static inline float *at_bytes(char *base, int64_t offset)
{
    return (float *)(void *)(base + offset);
}

/* Layer forward up to the activation (not its last product): what full recomputation repeats.
 * res != NULL: x still lacks + bias + res; it is completed in place. */
void stage_layer_inner(k_ctx *ctx, const stage_code *c, const stage_args *p, int64_t layer,
                       const layer_view *v, float *x, const float *bias, const float *res);
void stage_attend(k_ctx *ctx, const stage_code *c, const layer_view *v);
/* Logits of rows [first, first + n) into out (ld = logits_ld). */
void stage_logits(k_ctx *ctx, const stage_code *c, const stage_args *p, long first, long n,
                  float *out);
long stage_targets(const stage_code *c, const stage_args *p);

#endif
