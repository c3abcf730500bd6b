/* Vectors and the optimizer. */
#include "kernels/k_internal.h"

#include <math.h>

enum { PIECE = 32768 };

static void run_vec(k_ctx *ctx, k_work fn, k_vec_args a)
{
    a.block = PIECE;
    k_run(ctx, k_pieces(a.n, PIECE), fn, &a);
}

void k_fill_cpu(k_ctx *ctx, long n, float value, float *x)
{
    run_vec(ctx, k_ctx_bodies(ctx)->fill, (k_vec_args){.n = n, .a = value, .z = x});
}

void k_scale_cpu(k_ctx *ctx, long n, float a, float *x)
{
    run_vec(ctx, k_ctx_bodies(ctx)->scale, (k_vec_args){.n = n, .a = a, .z = x});
}

void k_axpy_cpu(k_ctx *ctx, long n, float a, const float *x, float *y)
{
    run_vec(ctx, k_ctx_bodies(ctx)->axpy, (k_vec_args){.n = n, .a = a, .x = x, .z = y});
}

void k_add_cpu(k_ctx *ctx, long n, const float *x, const float *y, float *z)
{
    run_vec(ctx, k_ctx_bodies(ctx)->add, (k_vec_args){.n = n, .x = x, .y = y, .z = z});
}

double k_sumsq_cpu(k_ctx *ctx, long n, const float *x)
{
    double total = 0.0, *sums = k_ctx_sums(ctx);
    for (long from = 0; from < n; from += K_SUMS * PIECE) {
        const long count = k_min(n - from, K_SUMS * PIECE);
        run_vec(ctx, k_ctx_bodies(ctx)->sumsq,
                (k_vec_args){.n = count, .x = x + from, .sums = sums});
        for (long i = 0; i < k_pieces(count, PIECE); i++) total += sums[i];
    }
    return total;
}

void k_adamw_cpu(k_ctx *ctx, const k_adamw *p, long n, float *w, float *g, float *m, float *v)
{
    const k_adamw_args a = {
        .p = *p,
        .scale1 = (float)(1.0 / (1.0 - pow((double)p->beta1, (double)p->step))),
        .scale2 = (float)(1.0 / (1.0 - pow((double)p->beta2, (double)p->step))),
        .n = n,
        .block = PIECE,
        .w = w,
        .g = g,
        .m = m,
        .v = v,
    };
    k_run(ctx, k_pieces(n, PIECE), k_ctx_bodies(ctx)->adamw, &a);
}
