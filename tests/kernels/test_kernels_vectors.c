/* Vectors and the optimizer. */
#include "kernel_check.h"

#include <math.h>
#include <string.h>

typedef struct vec_problem {
    long n;
    const float *x, *y, *m, *v;
    k_adamw p;
} vec_problem;

static void run_simple(k_ctx *ctx, const void *problem, float *out)
{
    const vec_problem *p = (const vec_problem *)problem;
    const size_t size = (size_t)p->n * sizeof *out;
    k_fill_cpu(ctx, p->n, 2.5f, out);
    memcpy(out + p->n, p->x, size);
    k_scale_cpu(ctx, p->n, -3.0f, out + p->n);
    memcpy(out + 2 * p->n, p->y, size);
    k_axpy_cpu(ctx, p->n, 0.5f, p->x, out + 2 * p->n);
    k_add_cpu(ctx, p->n, p->x, p->y, out + 3 * p->n);
    memcpy(out + 4 * p->n, p->x, size);
    k_add_cpu(ctx, p->n, out + 4 * p->n, p->y, out + 4 * p->n);
}

static void test_simple(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 12; i++) {
        const long n = i < 8 ? pick(t, 1, 100) : pick(t, 1, 150000);
        const vec_problem p = {.n = n, .x = normals(t, n, 1.0), .y = normals(t, n, 1.0)};
        float *out = zeros(t, 5 * n);
        double *ref = zeros_f64(t, 5 * n);
        run_everywhere(t, run_simple, &p, out, 5 * n);
        for (long k = 0; k < n; k++) {
            const double x = (double)p.x[k], y = (double)p.y[k];
            ref[k] = 2.5;
            ref[n + k] = -3.0 * x;
            ref[2 * n + k] = y + 0.5 * x;
            ref[3 * n + k] = ref[4 * n + k] = x + y;
        }
        check_close("vectors", out, ref, 5 * n, 2e-7);
    }
}

static void run_sumsq(k_ctx *ctx, const void *problem, float *out)
{
    const vec_problem *p = (const vec_problem *)problem;
    const double sum = k_sumsq_cpu(ctx, p->n, p->x);
    memcpy(out, &sum, sizeof sum); /* as bits: the same everywhere */
}

static void test_sumsq(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 12; i++) {
        const long n = i < 8 ? pick(t, 1, 100) : pick(t, 1, 300000);
        float *x = normals(t, n, 1.0);
        const vec_problem p = {.n = n, .x = x};
        float bits[2];
        double sum = 0.0, got;
        run_everywhere(t, run_sumsq, &p, bits, 2);
        memcpy(&got, bits, sizeof got);
        for (long k = 0; k < n; k++) sum += (double)x[k] * (double)x[k];
        assert_true(fabs(got - sum) <= 1e-12 * sum);
        x[pick(t, 0, n - 1)] = NAN;
        assert_true(isnan(k_sumsq_cpu(t->three, n, x)));
    }
}

/* More elements than one round of partial sums holds. */
static void test_sumsq_long(void **state)
{
    bench_top *t = (bench_top *)*state;
    const long n = 17 * 1000 * 1000;
    float *x = zeros(t, n);
    k_fill_cpu(t->three, n, 0.5f, x);
    x[n - 1] = 1.0f;
    assert_true(fabs(k_sumsq_cpu(t->three, n, x) - ((double)(n - 1) * 0.25 + 1.0)) < 1e-6);
}

/* w, g, m, v after one step. */
static void run_adamw(k_ctx *ctx, const void *problem, float *out)
{
    const vec_problem *p = (const vec_problem *)problem;
    const float *const in[] = {p->x, p->y, p->m, p->v};
    for (int i = 0; i < 4; i++) memcpy(out + i * p->n, in[i], (size_t)p->n * sizeof *out);
    k_adamw_cpu(ctx, &p->p, p->n, out, out + p->n, out + 2 * p->n, out + 3 * p->n);
}

static void test_adamw(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 20; i++) {
        const long n = i < 12 ? pick(t, 1, 100) : pick(t, 1, 100000);
        float *v = normals(t, n, 1.0);
        for (long k = 0; k < n; k++) v[k] *= v[k];
        const vec_problem p = {.n = n,
                               .x = normals(t, n, 1.0),
                               .y = normals(t, n, 1.0),
                               .m = normals(t, n, 0.3),
                               .v = v,
                               .p = {.lr = 0.01f,
                                     .beta1 = 0.9f,
                                     .beta2 = 0.95f,
                                     .eps = 1e-8f,
                                     .weight_decay = 0.1f,
                                     .grad_scale = i % 2 ? 0.5f : 1.0f,
                                     .step = 1 + i,
                                     .clear_grad = i % 3 == 0}};
        float *out = zeros(t, 4 * n);
        double *ref = zeros_f64(t, 4 * n);
        const double b1 = (double)p.p.beta1, b2 = (double)p.p.beta2;
        run_everywhere(t, run_adamw, &p, out, 4 * n);
        for (long k = 0; k < n; k++) {
            const double w = (double)p.x[k], g = (double)p.p.grad_scale * (double)p.y[k];
            const double m = b1 * (double)p.m[k] + (1.0 - b1) * g;
            const double s = b2 * (double)v[k] + (1.0 - b2) * g * g;
            const double mh = m / (1.0 - pow(b1, 1 + i)), vh = s / (1.0 - pow(b2, 1 + i));
            ref[k] = w - (double)p.p.lr * (mh / (sqrt(vh) + 1e-8) + (double)p.p.weight_decay * w);
            ref[n + k] = p.p.clear_grad ? 0.0 : (double)p.y[k];
            ref[2 * n + k] = m;
            ref[3 * n + k] = s;
        }
        check_close("w", out, ref, n, 1e-6);
        check_close("g", out + n, ref + n, n, 0.0);
        check_close("m, v", out + 2 * n, ref + 2 * n, 2 * n, 1e-6);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KERNEL_TEST(test_simple),
        KERNEL_TEST(test_sumsq),
        KERNEL_TEST(test_sumsq_long),
        KERNEL_TEST(test_adamw),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
