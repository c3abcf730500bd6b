/* Norms, sums over rows, activation functions: CUDA against the cores. */
#include "tests/cuda/cuda_check.h"

#include <stdio.h>

static const long shapes[][2] = {{1, 1}, {3, 7}, {33, 64}, {130, 257}, {64, 1024}, {257, 1600}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static char title[100];

static const char *name(const char *what, long rows, long cols)
{
    (void)snprintf(title, sizeof title, "%s %ld x %ld", what, rows, cols);
    return title;
}

static void norm_forward(cuda_pair *p, long rows, long cols, bool rms, bool with_res)
{
    const long n = rows * cols;
    const cuda_tensor x = cuda_random(p, n, false), res = cuda_random(p, n, false);
    const cuda_tensor bias = cuda_random(p, cols, false), gamma = cuda_random(p, cols, false);
    const cuda_tensor beta = cuda_random(p, cols, false), sum = cuda_output(p, n, false);
    const cuda_tensor y = cuda_output(p, n, false), mean = cuda_output(p, rows, true);
    const cuda_tensor rstd = cuda_output(p, rows, true);
    const k_ops *const ops = k_ops_of(p->gpu);
    uint64_t bits[2];
    for (int i = 0; i < 2; i++) {
        if (rms)
            ops->rmsnorm_fwd(p->gpu, rows, cols, 1e-5f, cuda_at(&x),
                             with_res ? cuda_at(&res) : NULL, with_res ? cuda_at(&sum) : NULL,
                             cuda_at(&gamma), cuda_at(&y), cuda_at(&rstd));
        else
            ops->layernorm_fwd(p->gpu, rows, cols, 1e-5f, cuda_at(&x), cuda_at(&bias),
                               with_res ? cuda_at(&res) : NULL, with_res ? cuda_at(&sum) : NULL,
                               cuda_at(&gamma), cuda_at(&beta), cuda_at(&y), cuda_at(&mean),
                               cuda_at(&rstd));
        bits[i] = cuda_bits(p, &y);
    }
    if (rms)
        k_rmsnorm_fwd_cpu(p->cpu, rows, cols, 1e-5f, x.cpu, with_res ? res.cpu : NULL,
                          with_res ? sum.cpu : NULL, gamma.cpu, y.cpu, rstd.cpu);
    else
        k_layernorm_fwd_cpu(p->cpu, rows, cols, 1e-5f, x.cpu, bias.cpu, with_res ? res.cpu : NULL,
                            with_res ? sum.cpu : NULL, gamma.cpu, beta.cpu, y.cpu, mean.cpu,
                            rstd.cpu);
    const bool same = bits[0] == bits[1];
    if (cols > 1)
        cuda_report(p, name(rms ? "rmsnorm y" : "layernorm y", rows, cols), cuda_error(p, &y),
                    same);
    if (cols > 1) cuda_report(p, name("  rstd", rows, cols), cuda_error(p, &rstd), same);
    if (with_res) cuda_report(p, name("  sum", rows, cols), cuda_error(p, &sum), same);
    if (!rms && cols > 1) cuda_report(p, name("  mean", rows, cols), cuda_error(p, &mean), same);
    cuda_pair_clear(p);
}

static void norm_backward(cuda_pair *p, long rows, long cols, bool rms)
{
    const long n = rows * cols;
    const cuda_tensor dy = cuda_random(p, n, false), s = cuda_random(p, n, false);
    const cuda_tensor gamma = cuda_random(p, cols, false), dres = cuda_random(p, n, false);
    const cuda_tensor mean = cuda_random(p, rows, true), rstd = cuda_random(p, rows, true);
    const cuda_tensor dx = cuda_output(p, n, false);
    const cuda_tensor dgamma = cuda_random(p, cols, true), dbeta = cuda_random(p, cols, true);
    const k_ops *const ops = k_ops_of(p->gpu);
    uint64_t bits[2];
    for (int i = 0; i < 2; i++) { /* the second time without the sums, which are added to */
        float *const dg = i == 0 ? cuda_at(&dgamma) : NULL, *const db =
                                                                i == 0 ? cuda_at(&dbeta) : NULL;
        if (rms)
            ops->rmsnorm_bwd(p->gpu, rows, cols, cuda_at(&dy), cuda_at(&s), cuda_at(&gamma),
                             cuda_at(&rstd), cuda_at(&dres), cuda_at(&dx), dg);
        else
            ops->layernorm_bwd(p->gpu, rows, cols, cuda_at(&dy), cuda_at(&s), cuda_at(&gamma),
                               cuda_at(&mean), cuda_at(&rstd), cuda_at(&dres), cuda_at(&dx), dg,
                               db);
        bits[i] = cuda_bits(p, &dx);
    }
    if (rms)
        k_rmsnorm_bwd_cpu(p->cpu, rows, cols, dy.cpu, s.cpu, gamma.cpu, rstd.cpu, dres.cpu, dx.cpu,
                          dgamma.cpu);
    else
        k_layernorm_bwd_cpu(p->cpu, rows, cols, dy.cpu, s.cpu, gamma.cpu, mean.cpu, rstd.cpu,
                            dres.cpu, dx.cpu, dgamma.cpu, dbeta.cpu);
    const bool same = bits[0] == bits[1];
    cuda_report(p, name(rms ? "rmsnorm dx" : "layernorm dx", rows, cols), cuda_error(p, &dx), same);
    cuda_report(p, name("  dgamma", rows, cols), cuda_error(p, &dgamma), same);
    if (!rms) cuda_report(p, name("  dbeta", rows, cols), cuda_error(p, &dbeta), same);
    cuda_pair_clear(p);
}

static void sums(cuda_pair *p, long rows, long cols, long gap)
{
    const long ld = cols + gap;
    const cuda_tensor x = cuda_random(p, rows * ld, false), bias = cuda_random(p, cols, false);
    const cuda_tensor out = cuda_random(p, cols, true);
    k_ops_of(p->gpu)->colsum(p->gpu, rows, cols, cuda_at(&x), ld, cuda_at(&out));
    k_colsum_cpu(p->cpu, rows, cols, x.cpu, ld, out.cpu);
    cuda_report(p, name("colsum", rows, cols), cuda_error(p, &out), true);
    k_ops_of(p->gpu)->bias_add(p->gpu, rows, cols, cuda_at(&x), ld, cuda_at(&bias));
    k_bias_add_cpu(p->cpu, rows, cols, x.cpu, ld, bias.cpu);
    cuda_report(p, name("bias_add", rows, cols), cuda_error(p, &x), true);
    cuda_pair_clear(p);
}

static void gelu(cuda_pair *p, k_gelu kind, long rows, long cols)
{
    const long n = rows * cols;
    const cuda_tensor x = cuda_random(p, n, false), bias = cuda_random(p, cols, false);
    const cuda_tensor dy = cuda_random(p, n, false), y = cuda_output(p, n, false);
    const cuda_tensor dx = cuda_output(p, n, false);
    k_ops_of(p->gpu)->gelu_fwd(p->gpu, kind, rows, cols, cuda_at(&x), cuda_at(&bias), cuda_at(&y));
    k_ops_of(p->gpu)->gelu_bwd(p->gpu, kind, rows, cols, cuda_at(&x), cuda_at(&bias), cuda_at(&dy),
                               cuda_at(&dx));
    k_gelu_fwd_cpu(p->cpu, kind, rows, cols, x.cpu, bias.cpu, y.cpu);
    k_gelu_bwd_cpu(p->cpu, kind, rows, cols, x.cpu, bias.cpu, dy.cpu, dx.cpu);
    cuda_report(p, name(kind == K_GELU_TANH ? "gelu tanh" : "gelu erf", rows, cols),
                cuda_error(p, &y), true);
    cuda_report(p, name("  backward", rows, cols), cuda_error(p, &dx), true);
    cuda_pair_clear(p);
}

static void swiglu(cuda_pair *p, long rows, long cols)
{
    const cuda_tensor x = cuda_random(p, 2 * rows * cols, false);
    const cuda_tensor dy = cuda_random(p, rows * cols, false);
    const cuda_tensor y = cuda_output(p, rows * cols, false);
    const cuda_tensor dx = cuda_output(p, 2 * rows * cols, false);
    k_ops_of(p->gpu)->swiglu_fwd(p->gpu, rows, cols, cuda_at(&x), cuda_skip(p, &x, cols), 2 * cols,
                                 cuda_at(&y));
    k_ops_of(p->gpu)->swiglu_bwd(p->gpu, rows, cols, cuda_at(&x), cuda_skip(p, &x, cols), 2 * cols,
                                 cuda_at(&dy), cuda_at(&dx), cuda_skip(p, &dx, cols), 2 * cols);
    k_swiglu_fwd_cpu(p->cpu, rows, cols, x.cpu, x.cpu + cols, 2 * cols, y.cpu);
    k_swiglu_bwd_cpu(p->cpu, rows, cols, x.cpu, x.cpu + cols, 2 * cols, dy.cpu, dx.cpu,
                     dx.cpu + cols, 2 * cols);
    cuda_report(p, name("swiglu", rows, cols), cuda_error(p, &y), true);
    cuda_report(p, name("  backward", rows, cols), cuda_error(p, &dx), true);
    cuda_pair_clear(p);
}

static void test(cuda_pair *p)
{
    for (int i = 0; i < SHAPES; i++) {
        const long rows = shapes[i][0], cols = shapes[i][1];
        for (int rms = 0; rms < 2; rms++) {
            norm_forward(p, rows, cols, rms == 1, false);
            norm_forward(p, rows, cols, rms == 1, true);
            norm_backward(p, rows, cols, rms == 1);
        }
        sums(p, rows, cols, 5);
        sums(p, rows, cols, 8);
        gelu(p, K_GELU_TANH, rows, cols);
        gelu(p, K_GELU_ERF, rows, cols);
        swiglu(p, rows, cols);
    }
}

int main(void) { return cuda_main(test, "rows"); }
