/* Matrix products against double precision, with the BLAS and with our own product. */
#include "kernel_check.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

typedef struct gemm_problem {
    bool trans_a, trans_b;
    long m, n, k, lda, ldb, ldc;
    float alpha, beta;
    const float *a, *b, *c;
} gemm_problem;

static void run_gemm(k_ctx *ctx, const void *p, float *out)
{
    const gemm_problem *g = (const gemm_problem *)p;
    if (g->beta != 0.0f) {
        memcpy(out, g->c, (size_t)(g->m * g->ldc) * sizeof *out);
    } else {
        for (long i = 0; i < g->m; i++) { /* the gap between rows is not the kernel's to write */
            for (long j = g->n; j < g->ldc; j++) out[i * g->ldc + j] = g->c[i * g->ldc + j];
        }
    }
    k_gemm_cpu(ctx, g->trans_a, g->trans_b, g->m, g->n, g->k, g->alpha, g->a, g->lda, g->b, g->ldb,
               g->beta, out, g->ldc);
}

static double *reference(bench_top *t, const gemm_problem *g)
{
    double *out = widen(t, g->c, g->m * g->ldc);
    for (long i = 0; i < g->m; i++) {
        for (long j = 0; j < g->n; j++) {
            double sum = 0.0;
            for (long q = 0; q < g->k; q++) {
                sum += (double)(g->trans_a ? g->a[q * g->lda + i] : g->a[i * g->lda + q]) *
                       (double)(g->trans_b ? g->b[j * g->ldb + q] : g->b[q * g->ldb + j]);
            }
            double *c = &out[i * g->ldc + j];
            *c = (double)g->alpha * sum + (g->beta != 0.0f ? (double)g->beta * *c : 0.0);
        }
    }
    return out;
}

static gemm_problem random_problem(bench_top *t, long largest)
{
    gemm_problem g = {
        .trans_a = pick(t, 0, 1) == 1,
        .trans_b = pick(t, 0, 1) == 1,
        .m = pick(t, 1, largest),
        .n = pick(t, 1, largest),
        .k = pick(t, 1, largest),
        .alpha = pick(t, 0, 1) ? 1.0f : -0.5f,
        .beta = pick(t, 0, 2) == 0 ? 0.0f : 1.0f,
    };
    g.lda = (g.trans_a ? g.m : g.k) + pick(t, 0, 3);
    g.ldb = (g.trans_b ? g.k : g.n) + pick(t, 0, 3);
    g.ldc = g.n + pick(t, 0, 3);
    g.a = normals(t, (g.trans_a ? g.k : g.m) * g.lda, 1.0);
    g.b = normals(t, (g.trans_b ? g.n : g.k) * g.ldb, 1.0);
    g.c = normals(t, g.m * g.ldc, 1.0);
    return g;
}

static void test_random_shapes(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 60; i++) {
        const gemm_problem g = random_problem(t, i < 50 ? 40 : 150);
        float *out = zeros(t, g.m * g.ldc);
        run_everywhere(t, run_gemm, &g, out, g.m * g.ldc);
        check_close("product", out, reference(t, &g), g.m * g.ldc, 2e-6);
    }
}

static void test_own_product(void **state)
{
    bench_top *t = (bench_top *)*state;
    k_blas none;
    assert_true(k_blas_open(&none, "own"));
    assert_non_null(strstr(k_blas_info(&none), "own product"));
    k_ctx *ctx = k_ctx_start(td_alloc(t->arena, 1, k_ctx_size(2)), &none, 2);
    for (int i = 0; i < 30; i++) {
        const gemm_problem g = random_problem(t, i < 20 ? 20 : 200);
        float *out = zeros(t, g.m * g.ldc);
        run_gemm(ctx, &g, out);
        check_close("own product", out, reference(t, &g), g.m * g.ldc, 5e-6);
    }
    k_ctx_stop(ctx);
}

/* Shapes that are cut into pieces, along rows and along columns. */
static void test_pieces(void **state)
{
    bench_top *t = (bench_top *)*state;
    static const long shapes[][3] = {{65, 2000, 601}, {2000, 65, 601}, {700, 699, 300}};
    for (int i = 0; i < 3 * 4; i++) {
        gemm_problem g = {.m = shapes[i / 4][0], .n = shapes[i / 4][1], .k = shapes[i / 4][2]};
        g.trans_a = i % 2 == 1;
        g.trans_b = i % 4 >= 2;
        g.lda = g.trans_a ? g.m : g.k;
        g.ldb = g.trans_b ? g.k : g.n;
        g.ldc = g.n;
        g.alpha = g.beta = 1.0f;
        g.a = normals(t, g.m * g.k, 1.0);
        g.b = normals(t, g.n * g.k, 1.0);
        g.c = normals(t, g.m * g.n, 1.0);
        float *out = zeros(t, g.m * g.n);
        run_everywhere(t, run_gemm, &g, out, g.m * g.n);
        for (int probe = 0; probe < 200; probe++) {
            const long r = pick(t, 0, g.m - 1), c = pick(t, 0, g.n - 1);
            double sum = (double)g.c[r * g.n + c];
            for (long q = 0; q < g.k; q++) {
                sum += (double)(g.trans_a ? g.a[q * g.m + r] : g.a[r * g.k + q]) *
                       (double)(g.trans_b ? g.b[c * g.k + q] : g.b[q * g.n + c]);
            }
            assert_true(fabs((double)out[r * g.n + c] - sum) < 2e-4);
        }
    }
}

/* Shapes that oneDNN takes, and some that it leaves, on any CPU. */
static void test_onednn(void **state)
{
    bench_top *t = (bench_top *)*state;
    k_blas both;
    if (!k_blas_open(&both, "onednn")) {
        k_blas_close(&both);
        print_message("skipped: oneDNN is not installed\n");
        skip();
    }
    assert_non_null(strstr(k_blas_info(&both), "oneDNN"));
    k_ctx *ctx = k_ctx_start(td_alloc(t->arena, 1, k_ctx_size(3)), &both, 3);
    for (int i = 0; i < 24; i++) {
        gemm_problem g = random_problem(t, 150);
        float *out = zeros(t, g.m * g.ldc), *again = zeros(t, g.m * g.ldc);
        run_gemm(ctx, &g, out);
        check_close("product by oneDNN", out, reference(t, &g), g.m * g.ldc, 5e-6);
        run_gemm(ctx, &g, again);
        assert_memory_equal(out, again, (size_t)(g.m * g.ldc) * sizeof *out);
    }
    k_ctx_stop(ctx);
    k_blas_close(&both);
}

/* Many short calls, so that threads are met asleep, spinning, and late. */
static void test_many_calls(void **state)
{
    bench_top *t = (bench_top *)*state;
    const long n = 40000;
    float *x = zeros(t, n), *y = zeros(t, n);
    k_fill_cpu(t->three, n, 1.0f, x);
    for (int i = 0; i < 3000; i++) k_axpy_cpu(t->three, n, 1.0f, x, y);
    for (long i = 0; i < n; i++) assert_true(y[i] == 3000.0f);
}

/* --- contexts at the same time, as ranks in threads use them --- */

typedef struct rank {
    k_ctx *ctx;
    const gemm_problem *g;
    float *out;
} rank;

static void *rank_main(void *p)
{
    const rank *r = (const rank *)p;
    for (int i = 0; i < 20; i++) run_gemm(r->ctx, r->g, r->out);
    return NULL;
}

static void test_contexts_at_once(void **state)
{
    bench_top *t = (bench_top *)*state;
    enum { RANKS = 4 };
    const gemm_problem g = random_problem(t, 300);
    const long n = g.m * g.ldc;
    float *alone = zeros(t, n);
    rank ranks[RANKS];
    pthread_t threads[RANKS];
    run_gemm(t->one, &g, alone);
    for (int i = 0; i < RANKS; i++) {
        const int width = 1 + i % 2;
        void *mem = td_alloc(t->arena, 1, k_ctx_size(width));
        ranks[i] = (rank){.ctx = k_ctx_start(mem, &t->blas, width), .g = &g, .out = zeros(t, n)};
        assert_non_null(ranks[i].ctx);
        assert_int_equal(pthread_create(&threads[i], NULL, rank_main, &ranks[i]), 0);
    }
    for (int i = 0; i < RANKS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_memory_equal(alone, ranks[i].out, (size_t)n * sizeof *alone);
        k_ctx_stop(ranks[i].ctx);
    }
}

static void test_empty(void **state)
{
    bench_top *t = (bench_top *)*state;
    float c = 5.0f;
    k_gemm_cpu(t->three, false, false, 0, 1, 1, 1.0f, &c, 1, &c, 1, 1.0f, &c, 1);
    k_gemm_cpu(t->three, false, false, 1, 0, 1, 1.0f, &c, 1, &c, 1, 1.0f, &c, 1);
    k_fill_cpu(t->three, 0, 1.0f, &c);
    k_colsum_cpu(t->three, 0, 1, &c, 1, &c);
    assert_true(c == 5.0f);
    assert_true(k_sumsq_cpu(t->three, 0, &c) <= 0.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KERNEL_TEST(test_random_shapes), KERNEL_TEST(test_own_product),
        KERNEL_TEST(test_onednn),        KERNEL_TEST(test_pieces),
        KERNEL_TEST(test_many_calls),    KERNEL_TEST(test_contexts_at_once),
        KERNEL_TEST(test_empty),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
