/* Norms, bias and activation functions: arguments checked for their optional parts and handed to
 * the pool in pieces. */
#include "kernels/k_internal.h"

enum { PIECE = 16384, COLS_PER_PIECE = 64 }; /* elements a piece; columns of a column piece */

void k_layernorm_fwd_cpu(k_ctx *ctx, long rows, long cols, float eps, const float *x,
                         const float *bias, const float *res, float *sum, const float *gamma,
                         const float *beta, float *y, float *mean, float *rstd)
{
    const k_norm_args a = {
        .rows = rows,
        .cols = cols,
        .block = k_block(cols, PIECE),
        .eps = eps,
        .x = x,
        .bias = bias,
        .res = res,
        .gamma = gamma,
        .beta = beta,
        .sum = sum,
        .y = y,
        .mean = mean,
        .rstd = rstd,
    };
    k_run(ctx, k_pieces(rows, a.block), k_ctx_bodies(ctx)->layernorm_fwd, &a);
}

void k_layernorm_bwd_cpu(k_ctx *ctx, long rows, long cols, const float *dy, const float *s,
                         const float *gamma, const float *mean, const float *rstd,
                         const float *dres, float *dx, float *dgamma, float *dbeta)
{
    const k_isa *isa = k_ctx_bodies(ctx);
    const k_norm_args a = {
        .rows = rows,
        .cols = cols,
        .block = k_block(cols, PIECE),
        .x = s,
        .res = dres,
        .gamma = gamma,
        .dy = dy,
        .mean_in = mean,
        .rstd_in = rstd,
        .y = dx,
        .dgamma = dgamma,
        .dbeta = dbeta,
    };
    if (dgamma || dbeta) k_run(ctx, k_pieces(cols, COLS_PER_PIECE), isa->layernorm_dgamma, &a);
    if (dx) k_run(ctx, k_pieces(rows, a.block), isa->layernorm_dx, &a); /* last: dx may be dy */
}

void k_rmsnorm_fwd_cpu(k_ctx *ctx, long rows, long cols, float eps, const float *x,
                       const float *res, float *sum, const float *gamma, float *y, float *rstd)
{
    const k_norm_args a = {
        .rows = rows,
        .cols = cols,
        .block = k_block(cols, PIECE),
        .eps = eps,
        .x = x,
        .res = res,
        .gamma = gamma,
        .sum = sum,
        .y = y,
        .rstd = rstd,
    };
    k_run(ctx, k_pieces(rows, a.block), k_ctx_bodies(ctx)->rmsnorm_fwd, &a);
}

void k_rmsnorm_bwd_cpu(k_ctx *ctx, long rows, long cols, const float *dy, const float *s,
                       const float *gamma, const float *rstd, const float *dres, float *dx,
                       float *dgamma)
{
    const k_isa *isa = k_ctx_bodies(ctx);
    const k_norm_args a = {
        .rows = rows,
        .cols = cols,
        .block = k_block(cols, PIECE),
        .x = s,
        .res = dres,
        .gamma = gamma,
        .dy = dy,
        .rstd_in = rstd,
        .y = dx,
        .dgamma = dgamma,
    };
    if (dgamma) k_run(ctx, k_pieces(cols, COLS_PER_PIECE), isa->rmsnorm_dgamma, &a);
    if (dx) k_run(ctx, k_pieces(rows, a.block), isa->rmsnorm_dx, &a);
}

void k_bias_add_cpu(k_ctx *ctx, long rows, long cols, float *x, long ld, const float *bias)
{
    const k_row_args a = {
        .rows = rows, .cols = cols, .block = k_block(cols, PIECE), .ld = ld, .bias = bias, .y = x};
    k_run(ctx, k_pieces(rows, a.block), k_ctx_bodies(ctx)->bias_add, &a);
}

void k_colsum_cpu(k_ctx *ctx, long rows, long cols, const float *x, long ld, float *out)
{
    const k_row_args a = {.rows = rows, .cols = cols, .ld = ld, .x = x, .y = out};
    k_run(ctx, k_pieces(cols, COLS_PER_PIECE), k_ctx_bodies(ctx)->colsum, &a);
}

void k_gelu_fwd_cpu(k_ctx *ctx, k_gelu kind, long rows, long cols, const float *x,
                    const float *bias, float *y)
{
    const k_isa *isa = k_ctx_bodies(ctx);
    const k_row_args a = {
        .rows = rows, .cols = cols, .block = k_block(cols, PIECE), .x = x, .bias = bias, .y = y};
    k_run(ctx, k_pieces(rows, a.block),
          kind == K_GELU_TANH ? isa->gelu_tanh_fwd : isa->gelu_erf_fwd, &a);
}

void k_gelu_bwd_cpu(k_ctx *ctx, k_gelu kind, long rows, long cols, const float *x,
                    const float *bias, const float *dy, float *dx)
{
    const k_isa *isa = k_ctx_bodies(ctx);
    const k_row_args a = {.rows = rows,
                          .cols = cols,
                          .block = k_block(cols, PIECE),
                          .x = x,
                          .bias = bias,
                          .dy = dy,
                          .y = dx};
    k_run(ctx, k_pieces(rows, a.block),
          kind == K_GELU_TANH ? isa->gelu_tanh_bwd : isa->gelu_erf_bwd, &a);
}

void k_swiglu_fwd_cpu(k_ctx *ctx, long rows, long cols, const float *gate, const float *up, long ld,
                      float *y)
{
    const k_row_args a = {.rows = rows,
                          .cols = cols,
                          .block = k_block(cols, PIECE),
                          .ld = ld,
                          .x = gate,
                          .up = up,
                          .y = y};
    k_run(ctx, k_pieces(rows, a.block), k_ctx_bodies(ctx)->swiglu_fwd, &a);
}

void k_swiglu_bwd_cpu(k_ctx *ctx, long rows, long cols, const float *gate, const float *up, long ld,
                      const float *dy, float *dgate, float *dup, long ldd)
{
    const k_row_args a = {.rows = rows,
                          .cols = cols,
                          .block = k_block(cols, PIECE),
                          .ld = ld,
                          .ldd = ldd,
                          .x = gate,
                          .up = up,
                          .dy = dy,
                          .y = dgate,
                          .dup = dup};
    k_run(ctx, k_pieces(rows, a.block), k_ctx_bodies(ctx)->swiglu_bwd, &a);
}
