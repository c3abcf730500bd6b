/* The kernels that a context computes with: those of this machine's cores (kernels.h), or a
 * device's. The code of a stage calls them through this table alone, so it is the same on both.
 *
 * Shapes and meanings are those of the function of the same name in kernels.h. Weights, activations
 * and their gradients are *elements*: they are passed as float *, but hold the context's element
 * type (k_ctx_element_bytes: 4 for fp32, 2 for bf16) and are never read outside of kernels.
 * Gradients of parameters, statistics of norms and of the softmax, and losses are floats and
 * doubles everywhere. On a device the calls return before the work is done; what one context is
 * given is done in order. */
#ifndef KERNELS_K_OPS_H
#define KERNELS_K_OPS_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One run of elements that AdamW updates; offsets in elements. Pieces of one tensor follow each
 * other. */
typedef struct k_adamw_piece {
    int64_t first, count; /* in weights and gradients */
    int64_t moment;       /* of the first moments; the second ones lie `moments` behind them, fp32
                             weights of bf16 elements as far again */
    int64_t entry;        /* its tensor's place in the norm table; -1: it is counted elsewhere */
    int64_t first_block;  /* blocks of K_ADAMW_BLOCK elements that earlier pieces take */
    bool decays;
} k_adamw_piece;
enum { K_ADAMW_BLOCK = 16384 };

/* What a step of the optimizer works on; everything but `pieces` may be a device's memory. */
typedef struct k_adamw_stage {
    const k_adamw_piece *pieces; /* [n_pieces], readable by what computes */
    long n_pieces, n_blocks, moments;
    float *weights; /* elements */
    float *grads, *m;
} k_adamw_stage;

typedef struct k_ops {
    const char *name;
    void (*gemm)(k_ctx *ctx, bool trans_a, bool trans_b, long m, long n, long k, float alpha,
                 const float *a, long lda, const float *b, long ldb, float beta, float *c,
                 long ldc);
    /* the same, but c is floats: gradients of weights */
    void (*gemm_grad)(k_ctx *ctx, bool trans_a, bool trans_b, long m, long n, long k, float alpha,
                      const float *a, long lda, const float *b, long ldb, float beta, float *c,
                      long ldc);
    /* y = x w^T + bias, added before y is rounded to elements. x: [rows, in], w: [out, in],
     * bias: [out], y: [rows, out] with ldy; all are elements. */
    void (*gemm_bias)(k_ctx *ctx, long rows, long out, long in, const float *x, const float *w,
                      const float *bias, float *y, long ldy);
    void (*layernorm_fwd)(k_ctx *ctx, long rows, long cols, float eps, const float *x,
                          const float *bias, const float *res, float *sum, const float *gamma,
                          const float *beta, float *y, float *mean, float *rstd);
    void (*layernorm_bwd)(k_ctx *ctx, long rows, long cols, const float *dy, const float *s,
                          const float *gamma, const float *mean, const float *rstd,
                          const float *dres, float *dx, float *dgamma, float *dbeta);
    void (*rmsnorm_fwd)(k_ctx *ctx, long rows, long cols, float eps, const float *x,
                        const float *res, float *sum, const float *gamma, float *y, float *rstd);
    void (*rmsnorm_bwd)(k_ctx *ctx, long rows, long cols, const float *dy, const float *s,
                        const float *gamma, const float *rstd, const float *dres, float *dx,
                        float *dgamma);
    void (*bias_add)(k_ctx *ctx, long rows, long cols, float *x, long ld, const float *bias);
    void (*colsum)(k_ctx *ctx, long rows, long cols, const float *x, long ld, float *out);
    void (*gelu_fwd)(k_ctx *ctx, k_gelu kind, long rows, long cols, const float *x,
                     const float *bias, float *y);
    void (*gelu_bwd)(k_ctx *ctx, k_gelu kind, long rows, long cols, const float *x,
                     const float *bias, const float *dy, float *dx);
    void (*swiglu_fwd)(k_ctx *ctx, long rows, long cols, const float *gate, const float *up,
                       long ld, float *y);
    void (*swiglu_bwd)(k_ctx *ctx, long rows, long cols, const float *gate, const float *up,
                       long ld, const float *dy, float *dgate, float *dup, long ldd);
    void (*rope)(k_ctx *ctx, bool backward, long rows, long seq, long pos0, long heads, long d,
                 const float *table, float *x, long ld);
    void (*embed_fwd)(k_ctx *ctx, long rows, long seq, long pos0, long cols, const int32_t *ids,
                      k_words words, const float *tok, const float *pos, const float *extra,
                      float *y);
    void (*embed_bwd)(k_ctx *ctx, long rows, long seq, long pos0, long cols, const int32_t *ids,
                      k_words words, const float *dy, float *dtok, float *dpos, float *dextra);
    /* a device returns 0 */
    double (*xent)(k_ctx *ctx, long rows, long vocab, const float *logits, long ld,
                   const int32_t *target, float scale, double *loss, float *lse, float *dlogits);
    /* *out = factor * sum of x, in order */
    void (*loss_sum)(k_ctx *ctx, long n, const double *x, double factor, double *out);
    /* vocabulary shards: logits, softmax, parts and tables are elements, statistics floats */
    void (*vocab_softmax)(k_ctx *ctx, long rows, const k_vocab_shard *w, float *y, float *stats);
    void (*vocab_inputs)(k_ctx *ctx, long rows, long cols, const k_vocab_shard *w, float weight,
                         const float *table, float *a, float *g);
    void (*vocab_join)(k_ctx *ctx, const k_vocab_parts *p);
    void (*vocab_gradient)(k_ctx *ctx, long rows, const k_vocab_shard *w, float weight,
                           const float *alpha, float *q);
    /* *out = factor * sum of the counted rows' losses */
    void (*vocab_loss)(k_ctx *ctx, long rows, const int32_t *target, const float *stats,
                       double factor, double *out);
    void (*attn_fwd)(k_ctx *ctx, const k_attn *a, const float *q, const float *k, const float *v,
                     float *o, float *lse);
    /* dk and dv are floats if a->float_dkv, else elements */
    void (*attn_bwd)(k_ctx *ctx, const k_attn *a, bool accumulate, const float *q, const float *k,
                     const float *v, const float *o, const float *dout, const float *lse,
                     float *delta, float *dq, float *dk, float *dv);
    void (*add)(k_ctx *ctx, long n, const float *x, const float *y, float *z);
    /* y += a x, floats */
    void (*axpy)(k_ctx *ctx, long n, float a, const float *x, float *y);
    /* Rows of floats to rows of elements: y[r][c] = x[r][c]. */
    void (*take_rows)(k_ctx *ctx, long rows, long cols, const float *x, long ldx, float *y,
                      long ldy);
    /* Bytes. */
    void (*copy)(k_ctx *ctx, void *to, const void *from, size_t bytes);
    void (*copy_rows)(k_ctx *ctx, long rows, size_t row_bytes, void *to, size_t to_stride,
                      const void *from, size_t from_stride);
    void (*zero)(k_ctx *ctx, void *at, size_t bytes);
    /* Two words, given by value. */
    void (*put_pair)(k_ctx *ctx, int64_t *at, int64_t first, int64_t second);
    /* table[piece.entry] += sum of squares of the piece's gradients, in double */
    void (*norms)(k_ctx *ctx, const k_adamw_stage *s, double *table);
    /* out[0] = the norm, root of the table's sum in order; out[1] = clip / norm where that is less
     * than 1 and clip > 0, else 1. */
    void (*clip)(k_ctx *ctx, long n, const double *table, double clip, double *out);
    /* AdamW as k_adamw_cpu, with the gradient scaled by scale[1]; where scale[0] is not finite,
     * nothing but what p->clear_grad says. p->weight_decay applies to pieces that decay. */
    void (*adamw)(k_ctx *ctx, const k_adamw *p, const k_adamw_stage *s, const double *scale);
} k_ops;

const k_ops *k_ops_of(const k_ctx *ctx);
long k_ctx_element_bytes(const k_ctx *ctx);

/* Makes a context compute with another table and other elements; `device` is the table's. */
void k_ctx_set_device(k_ctx *ctx, const k_ops *ops, void *device, long element_bytes);
void *k_ctx_device(const k_ctx *ctx);

#ifdef __cplusplus
}
#endif

#endif
