/* The table of this machine's cores. */
#include "kernels/k_ops.h"
#include "kernels/k_internal.h"

#include <math.h>
#include <string.h>

static void loss_sum(k_ctx *ctx, long n, const double *x, double factor, double *out)
{
    double sum = 0.0;
    (void)ctx;
    for (long i = 0; i < n; i++) sum += x[i];
    *out = sum * factor;
}

static void copy(k_ctx *ctx, void *to, const void *from, size_t bytes)
{
    (void)ctx;
    memcpy(to, from, bytes);
}

static void copy_rows(k_ctx *ctx, long rows, size_t row_bytes, void *to, size_t to_stride,
                      const void *from, size_t from_stride)
{
    (void)ctx;
    for (long r = 0; r < rows; r++)
        memcpy((char *)to + (size_t)r * to_stride, (const char *)from + (size_t)r * from_stride,
               row_bytes);
}

static void take_rows(k_ctx *ctx, long rows, long cols, const float *x, long ldx, float *y,
                      long ldy)
{
    copy_rows(ctx, rows, (size_t)cols * sizeof *x, y, (size_t)ldy * sizeof *y, x,
              (size_t)ldx * sizeof *x);
}

static void zero(k_ctx *ctx, void *at, size_t bytes)
{
    (void)ctx;
    memset(at, 0, bytes);
}

static void put_pair(k_ctx *ctx, int64_t *at, int64_t first, int64_t second)
{
    (void)ctx;
    at[0] = first;
    at[1] = second;
}

static void vocab_join(k_ctx *ctx, const k_vocab_parts *p)
{
    (void)ctx;
    k_vocab_join(p);
}

static void vocab_loss(k_ctx *ctx, long rows, const int32_t *target, const float *stats,
                       double factor, double *out)
{
    (void)ctx;
    *out = k_vocab_loss(rows, target, stats) * factor;
}

static void gemm_bias(k_ctx *ctx, long rows, long out, long in, const float *x, const float *w,
                      const float *bias, float *y, long ldy)
{
    k_gemm_cpu(ctx, false, true, rows, out, in, 1.0f, x, in, w, in, 0.0f, y, ldy);
    k_bias_add_cpu(ctx, rows, out, y, ldy, bias);
}

static void norms(k_ctx *ctx, const k_adamw_stage *s, double *table)
{
    for (long i = 0; i < s->n_pieces; i++)
        if (s->pieces[i].entry >= 0)
            table[s->pieces[i].entry] +=
                k_sumsq_cpu(ctx, s->pieces[i].count, s->grads + s->pieces[i].first);
}

static void clip(k_ctx *ctx, long n, const double *table, double most, double *out)
{
    double sum = 0.0;
    (void)ctx;
    for (long i = 0; i < n; i++) sum += table[i];
    out[0] = sqrt(sum);
    out[1] = most > 0.0 && out[0] > most ? (double)(float)(most / out[0]) : 1.0;
}

static void adamw(k_ctx *ctx, const k_adamw *p, const k_adamw_stage *s, const double *scale)
{
    for (long i = 0; i < s->n_pieces; i++) {
        const k_adamw_piece *const piece = &s->pieces[i];
        float *const g = s->grads + piece->first, *const m = s->m + piece->moment;
        k_adamw one = *p;
        if (!isfinite(scale[0])) {
            if (p->clear_grad) k_fill_cpu(ctx, piece->count, 0.0f, g);
            continue;
        }
        one.grad_scale = (float)scale[1];
        if (!piece->decays) one.weight_decay = 0.0f;
        k_adamw_cpu(ctx, &one, piece->count, s->weights + piece->first, g, m, m + s->moments);
    }
}

const k_ops k_ops_cpu = {
    .name = "cpu",
    .gemm = k_gemm_cpu,
    .gemm_grad = k_gemm_cpu,
    .gemm_bias = gemm_bias,
    .layernorm_fwd = k_layernorm_fwd_cpu,
    .layernorm_bwd = k_layernorm_bwd_cpu,
    .rmsnorm_fwd = k_rmsnorm_fwd_cpu,
    .rmsnorm_bwd = k_rmsnorm_bwd_cpu,
    .bias_add = k_bias_add_cpu,
    .colsum = k_colsum_cpu,
    .gelu_fwd = k_gelu_fwd_cpu,
    .gelu_bwd = k_gelu_bwd_cpu,
    .swiglu_fwd = k_swiglu_fwd_cpu,
    .swiglu_bwd = k_swiglu_bwd_cpu,
    .rope = k_rope_cpu,
    .embed_fwd = k_embed_fwd_cpu,
    .embed_bwd = k_embed_bwd_cpu,
    .xent = k_xent_cpu,
    .loss_sum = loss_sum,
    .vocab_softmax = k_vocab_softmax_cpu,
    .vocab_inputs = k_vocab_inputs_cpu,
    .vocab_join = vocab_join,
    .vocab_gradient = k_vocab_gradient_cpu,
    .vocab_loss = vocab_loss,
    .attn_fwd = k_attn_fwd_cpu,
    .attn_bwd = k_attn_bwd_cpu,
    .add = k_add_cpu,
    .axpy = k_axpy_cpu,
    .take_rows = take_rows,
    .copy = copy,
    .copy_rows = copy_rows,
    .zero = zero,
    .put_pair = put_pair,
    .norms = norms,
    .clip = clip,
    .adamw = adamw,
};
