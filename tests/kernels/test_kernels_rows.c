/* Norms, bias, activations: values against double precision, gradients against differences. */
#include "kernel_check.h"

#include <math.h>
#include <string.h>

typedef struct rows_problem {
    long rows, cols, n, ld;
    bool rms, with_bias, with_res, keep_sum;
    k_gelu kind;
    float *x, *bias, *res, *gamma, *beta, *dy, *old;
    double *x64, *bias64, *res64, *gamma64, *beta64, *dy64;
    float *sum, *mean, *rstd; /* of the forward, for the backward */
} rows_problem;

static const double eps = 1e-5;

static rows_problem make_problem(bench_top *t, long most_rows, long most_cols)
{
    rows_problem p = {.rows = pick(t, 1, most_rows), .cols = pick(t, 1, most_cols)};
    p.n = p.rows * p.cols;
    p.ld = p.cols;
    p.x = normals(t, p.n, 2.0);
    p.res = normals(t, p.n, 1.0);
    p.dy = normals(t, p.n, 1.0);
    p.old = normals(t, p.n > p.cols ? p.n : p.cols, 1.0);
    p.bias = normals(t, p.cols, 1.0);
    p.gamma = normals(t, p.cols, 1.0);
    p.beta = normals(t, p.cols, 1.0);
    p.x64 = widen(t, p.x, p.n);
    p.res64 = widen(t, p.res, p.n);
    p.dy64 = widen(t, p.dy, p.n);
    p.bias64 = widen(t, p.bias, p.cols);
    p.gamma64 = widen(t, p.gamma, p.cols);
    p.beta64 = widen(t, p.beta, p.cols);
    p.with_bias = pick(t, 0, 1) == 1;
    p.with_res = pick(t, 0, 1) == 1;
    p.keep_sum = pick(t, 0, 1) == 1;
    return p;
}

/* --- norms; the outputs are y, mean, rstd and, where kept, sum --- */

static void run_norm(k_ctx *ctx, const void *problem, float *out)
{
    const rows_problem *p = (const rows_problem *)problem;
    float *mean = out + p->n, *rstd = mean + p->rows;
    float *sum = p->keep_sum ? rstd + p->rows : NULL;
    const float *res = p->with_res ? p->res : NULL;
    if (p->rms) {
        memset(mean, 0, (size_t)p->rows * sizeof *mean);
        k_rmsnorm_fwd_cpu(ctx, p->rows, p->cols, (float)eps, p->x, res, sum, p->gamma, out, rstd);
    } else {
        k_layernorm_fwd_cpu(ctx, p->rows, p->cols, (float)eps, p->x, p->with_bias ? p->bias : NULL,
                            res, sum, p->gamma, p->beta, out, mean, rstd);
    }
}

static double ref_norm_row(const rows_problem *p, long r, double *y, double *s, double *mean)
{
    double total = 0.0, square = 0.0;
    for (long c = 0; c < p->cols; c++) {
        const long at = r * p->cols + c;
        s[c] = p->x64[at] + (p->with_res ? p->res64[at] : 0.0) +
               (p->with_bias && !p->rms ? p->bias64[c] : 0.0);
        total += s[c];
    }
    *mean = p->rms ? 0.0 : total / (double)p->cols;
    for (long c = 0; c < p->cols; c++) square += (s[c] - *mean) * (s[c] - *mean);
    const double rstd = 1.0 / sqrt(square / (double)p->cols + (double)(float)eps);
    for (long c = 0; c < p->cols; c++) {
        y[c] = (s[c] - *mean) * rstd * p->gamma64[c] + (p->rms ? 0.0 : p->beta64[c]);
    }
    return rstd;
}

static double norm_scalar(const void *problem)
{
    const rows_problem *p = (const rows_problem *)problem;
    double y[700], s[700], mean, sum = 0.0;
    for (long r = 0; r < p->rows; r++) {
        ref_norm_row(p, r, y, s, &mean);
        sum += dot(y, p->dy64 + r * p->cols, p->cols);
    }
    return sum;
}

static void check_norm_forward(bench_top *t, rows_problem *p)
{
    const long n = p->n + 2 * p->rows + (p->keep_sum ? p->n : 0);
    float *out = zeros(t, n);
    double *y = zeros_f64(t, p->n), *s = zeros_f64(t, p->n), *mean = zeros_f64(t, p->rows);
    double *rstd = zeros_f64(t, p->rows);
    run_everywhere(t, run_norm, p, out, n);
    for (long r = 0; r < p->rows; r++) {
        rstd[r] = ref_norm_row(p, r, y + r * p->cols, s + r * p->cols, &mean[r]);
    }
    check_close("y", out, y, p->n, 1e-5);
    check_close("mean", out + p->n, mean, p->rows, 1e-5);
    check_close("rstd", out + p->n + p->rows, rstd, p->rows, 1e-5);
    if (p->keep_sum) check_close("sum", out + p->n + 2 * p->rows, s, p->n, 1e-6);
    p->mean = out + p->n;
    p->rstd = p->mean + p->rows;
    p->sum = p->keep_sum ? p->rstd + p->rows : p->x;
}

static void test_norm_forward(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 60; i++) {
        rows_problem p = make_problem(t, 70, 700);
        p.rms = i % 2 == 1;
        if (p.cols == 1) continue;
        check_norm_forward(t, &p);
    }
}

/* dx (with dres), dgamma +=, dbeta +=. */
static void run_norm_backward(k_ctx *ctx, const void *problem, float *out)
{
    const rows_problem *p = (const rows_problem *)problem;
    float *dgamma = out + p->n, *dbeta = dgamma + p->cols;
    const float *dres = p->with_res ? p->res : NULL;
    memcpy(dgamma, p->old, (size_t)p->cols * sizeof *dgamma);
    memcpy(dbeta, p->old, (size_t)p->cols * sizeof *dbeta);
    if (p->rms) {
        k_rmsnorm_bwd_cpu(ctx, p->rows, p->cols, p->dy, p->sum, p->gamma, p->rstd, dres, out,
                          dgamma);
    } else {
        k_layernorm_bwd_cpu(ctx, p->rows, p->cols, p->dy, p->sum, p->gamma, p->mean, p->rstd, dres,
                            out, dgamma, dbeta);
    }
}

/* dx may be dy or s; gradients of parameters may be left out, and are the same beside such a dx. */
static void check_norm_aliases(bench_top *t, const rows_problem *p, const float *out)
{
    for (int of_dy = 0; of_dy < 2; of_dy++) {
        float *const x = zeros(t, p->n), *const old = zeros(t, 2 * p->cols);
        const float *const dy = of_dy ? x : p->dy, *const s = of_dy ? p->sum : x;
        float *const dgamma = of_dy ? NULL : old, *const dbeta = of_dy ? NULL : old + p->cols;
        memcpy(x, of_dy ? p->dy : p->sum, (size_t)p->n * sizeof *x);
        memcpy(old, p->old, (size_t)p->cols * sizeof *old);
        memcpy(old + p->cols, p->old, (size_t)p->cols * sizeof *old);
        const float *const dres = p->with_res ? p->res : NULL;
        if (p->rms)
            k_rmsnorm_bwd_cpu(t->one, p->rows, p->cols, dy, s, p->gamma, p->rstd, dres, x, dgamma);
        else
            k_layernorm_bwd_cpu(t->one, p->rows, p->cols, dy, s, p->gamma, p->mean, p->rstd, dres,
                                x, dgamma, dbeta);
        assert_memory_equal(x, out, (size_t)p->n * sizeof *x);
        if (!of_dy) assert_memory_equal(old, out + p->n, (size_t)p->cols * sizeof *old);
    }
}

static void test_norm_backward(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 30; i++) {
        rows_problem p = make_problem(t, 9, 40);
        if (p.cols < 3) continue;
        p.rms = i % 2 == 1;
        p.keep_sum = p.keep_sum || p.with_res || p.with_bias;
        check_norm_forward(t, &p);
        const long n = p.n + 2 * p.cols;
        float *out = zeros(t, n);
        run_everywhere(t, run_norm_backward, &p, out, n);
        double *dx = differences(t, norm_scalar, &p, p.x64, p.n);
        double *dgamma = differences(t, norm_scalar, &p, p.gamma64, p.cols);
        double *dbeta = differences(t, norm_scalar, &p, p.beta64, p.cols);
        for (long k = 0; p.with_res && k < p.n; k++) dx[k] += p.res64[k];
        for (long c = 0; c < p.cols; c++) {
            dgamma[c] += (double)p.old[c];
            dbeta[c] += (double)p.old[c];
        }
        check_close("dx", out, dx, p.n, 3e-5);
        check_close("dgamma", out + p.n, dgamma, p.cols, 3e-5);
        check_close("dbeta", out + p.n + p.cols, dbeta, p.cols, 3e-5);
        check_norm_aliases(t, &p, out);
    }
}

/* --- bias and column sums --- */

static void run_bias(k_ctx *ctx, const void *problem, float *out)
{
    const rows_problem *p = (const rows_problem *)problem;
    memcpy(out, p->x, (size_t)p->n * sizeof *out);
    k_bias_add_cpu(ctx, p->rows, p->cols, out, p->cols, p->bias);
    memcpy(out + p->n, p->old, (size_t)p->cols * sizeof *out);
    k_colsum_cpu(ctx, p->rows, p->cols, p->x, p->cols, out + p->n);
}

static void test_bias(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 30; i++) {
        rows_problem p = make_problem(t, 90, 300);
        float *out = zeros(t, p.n + p.cols);
        double *y = zeros_f64(t, p.n), *sums = widen(t, p.old, p.cols);
        run_everywhere(t, run_bias, &p, out, p.n + p.cols);
        for (long k = 0; k < p.n; k++) {
            y[k] = p.x64[k] + p.bias64[k % p.cols];
            sums[k % p.cols] += p.x64[k];
        }
        check_close("x + bias", out, y, p.n, 1e-6);
        check_close("column sums", out + p.n, sums, p.cols, 1e-5);
    }
}

/* --- activations --- */

static void run_gelu(k_ctx *ctx, const void *problem, float *out)
{
    const rows_problem *p = (const rows_problem *)problem;
    const float *bias = p->with_bias ? p->bias : NULL;
    k_gelu_fwd_cpu(ctx, p->kind, p->rows, p->cols, p->x, bias, out);
    k_gelu_bwd_cpu(ctx, p->kind, p->rows, p->cols, p->x, bias, p->dy, out + p->n);
}

static double gelu(k_gelu kind, double u)
{
    const double z = sqrt(2.0 / acos(-1.0)) * (u + 0.044715 * u * u * u);
    return kind == K_GELU_TANH ? 0.5 * u * (1.0 + tanh(z)) : 0.5 * u * (1.0 + erf(u / sqrt(2.0)));
}

static void test_gelu(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 40; i++) {
        rows_problem p = make_problem(t, 40, 500);
        p.kind = i % 2 ? K_GELU_ERF : K_GELU_TANH;
        const float edges[] = {0.0f, -0.0f, -100.0f, 100.0f, 1e4f, -1e4f, 1e-20f};
        memcpy(p.x, edges, (size_t)(p.n < 7 ? p.n : 7) * sizeof *edges);
        float *out = zeros(t, 2 * p.n);
        double *y = zeros_f64(t, p.n), *dx = zeros_f64(t, p.n);
        run_everywhere(t, run_gelu, &p, out, 2 * p.n);
        for (long k = 0; k < p.n; k++) {
            const double u = (double)p.x[k] + (p.with_bias ? p.bias64[k % p.cols] : 0.0);
            y[k] = gelu(p.kind, u);
            dx[k] = p.dy64[k] * (gelu(p.kind, u + 1e-5) - gelu(p.kind, u - 1e-5)) / 2e-5;
            assert_true(fabs((double)out[k] - y[k]) <= 4e-7 * fmax(1.0, fabs(u)));
        }
        check_close("gelu's gradient", out + p.n, dx, p.n, 2e-6);
        float *alias = zeros(t, p.n); /* dx may be x */
        memcpy(alias, p.x, (size_t)p.n * sizeof *alias);
        k_gelu_bwd_cpu(t->one, p.kind, p.rows, p.cols, alias, p.with_bias ? p.bias : NULL, p.dy,
                       alias);
        assert_memory_equal(alias, out + p.n, (size_t)p.n * sizeof *alias);
    }
}

static void run_swiglu(k_ctx *ctx, const void *problem, float *out)
{
    const rows_problem *p = (const rows_problem *)problem;
    const long half = p->cols / 2;
    float *both = out + p->rows * half;
    k_swiglu_fwd_cpu(ctx, p->rows, half, p->x, p->x + half, p->cols, out);
    memcpy(both, p->x, (size_t)p->n * sizeof *both); /* in place of the inputs */
    k_swiglu_bwd_cpu(ctx, p->rows, half, both, both + half, p->cols, p->dy, both, both + half,
                     p->cols);
}

static double swiglu_scalar(const void *problem)
{
    const rows_problem *p = (const rows_problem *)problem;
    const long half = p->cols / 2;
    double sum = 0.0;
    for (long r = 0; r < p->rows; r++) {
        for (long c = 0; c < half; c++) {
            const double gate = p->x64[r * p->cols + c], up = p->x64[r * p->cols + half + c];
            sum += p->dy64[r * half + c] * gate / (1.0 + exp(-gate)) * up;
        }
    }
    return sum;
}

static void test_swiglu(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 20; i++) {
        rows_problem p = make_problem(t, 10, 60);
        p.cols += p.cols % 2;
        p.n = p.rows * p.cols;
        p.x = normals(t, p.n, 3.0);
        p.x64 = widen(t, p.x, p.n);
        const long half = p.cols / 2, ny = p.rows * half;
        float *out = zeros(t, ny + p.n);
        double *y = zeros_f64(t, ny);
        run_everywhere(t, run_swiglu, &p, out, ny + p.n);
        for (long k = 0; k < ny; k++) {
            const double gate = p.x64[k / half * p.cols + k % half];
            y[k] = gate / (1.0 + exp(-gate)) * p.x64[k / half * p.cols + half + k % half];
        }
        check_close("swiglu", out, y, ny, 1e-6);
        check_close("swiglu's gradient", out + ny, differences(t, swiglu_scalar, &p, p.x64, p.n),
                    p.n, 1e-6);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KERNEL_TEST(test_norm_forward), KERNEL_TEST(test_norm_backward), KERNEL_TEST(test_bias),
        KERNEL_TEST(test_gelu),         KERNEL_TEST(test_swiglu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
