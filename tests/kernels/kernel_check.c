#include "kernel_check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const uint32_t poison = 0x7fa0deadU;

static k_ctx *start(bench_top *t, int threads)
{
    k_ctx *ctx = k_ctx_start(td_alloc(t->arena, 1, k_ctx_size(threads)), &t->blas, threads);
    assert_non_null(ctx);
    return ctx;
}

int check_setup(void **state)
{
    td_arena *arena = td_arena_new();
    bench_top *t = arena ? TD_NEW(arena, bench_top) : NULL;
    if (!t) return -1;
    t->arena = arena;
    t->rng = td_rng_seed(20250);
    k_blas_open(&t->blas, NULL);
    t->one = start(t, 1);
    t->three = start(t, 3);
    *state = t;
    return 0;
}

int check_teardown(void **state)
{
    bench_top *t = (bench_top *)*state;
    k_ctx_stop(t->one);
    k_ctx_stop(t->three);
    k_blas_close(&t->blas);
    td_arena_free(t->arena);
    return 0;
}

long pick(bench_top *t, long from, long to)
{
    return from + (long)td_rng_below(&t->rng, to - from + 1);
}

float *zeros(bench_top *t, long n) { return TD_NEW_N(t->arena, float, n); }

double *zeros_f64(bench_top *t, long n) { return TD_NEW_N(t->arena, double, n); }

float *normals(bench_top *t, long n, double spread)
{
    float *x = zeros(t, n);
    for (long i = 0; i < n; i++) x[i] = (float)(spread * td_rng_normal(&t->rng));
    return x;
}

double *widen(bench_top *t, const float *x, long n)
{
    double *y = zeros_f64(t, n);
    for (long i = 0; i < n; i++) y[i] = (double)x[i];
    return y;
}

static void set_poison(float *x, long n)
{
    for (long i = 0; i < n; i++) memcpy(&x[i], &poison, sizeof poison);
}

static void check_written(const float *x, long n)
{
    for (long i = 0; i < n; i++) {
        if (memcmp(&x[i], &poison, sizeof poison) == 0) fail_msg("output %ld not written", i);
    }
}

void run_everywhere(bench_top *t, kernel_run run, const void *problem, float *out, long n)
{
    static const char *const sets[] = {"v1", "v3", "v4"};
    float *again = zeros(t, n);
    set_poison(out, n);
    run(t->one, problem, out);
    check_written(out, n);
    for (int i = 0; i < 2 * 3; i++) {
        k_ctx *ctx = i % 2 ? t->three : t->one;
        if (!k_ctx_set_isa(ctx, sets[i / 2])) continue;
        for (int repeat = 0; repeat < 2; repeat++) {
            set_poison(again, n);
            run(ctx, problem, again);
            for (long at = 0; at < n; at++) {
                if (memcmp(&out[at], &again[at], sizeof *out) == 0) continue;
                fail_msg("%s, %d threads: output %ld of %ld is %.9g, was %.9g", sets[i / 2],
                         k_ctx_threads(ctx), at, n, (double)again[at], (double)out[at]);
            }
        }
    }
}

static double ceiling(const double *ref, long n)
{
    double top = 1e-3;
    for (long i = 0; i < n; i++) top = fmax(top, fabs(ref[i]));
    return top;
}

double max_error(const float *x, const double *ref, long n)
{
    double error = 0.0;
    for (long i = 0; i < n; i++) {
        const double e = fabs((double)x[i] - ref[i]);
        if (!(e <= error)) error = e;
    }
    return error / ceiling(ref, n);
}

void check_close(const char *what, const float *x, const double *ref, long n, double tol)
{
    const double top = ceiling(ref, n);
    for (long i = 0; i < n; i++) {
        if (fabs((double)x[i] - ref[i]) <= tol * top) continue;
        fail_msg("%s[%ld] of %ld is %.9g, must be %.9g (largest %.3g)", what, i, n, (double)x[i],
                 ref[i], top);
    }
}

double *differences(bench_top *t, scalar_of f, const void *problem, double *x, long n)
{
    const double step = 1e-5;
    double *gradient = zeros_f64(t, n);
    for (long i = 0; i < n; i++) {
        const double kept = x[i];
        x[i] = kept + step;
        const double up = f(problem);
        x[i] = kept - step;
        const double down = f(problem);
        x[i] = kept;
        gradient[i] = (up - down) / (2.0 * step);
    }
    return gradient;
}

double dot(const double *a, const double *b, long n)
{
    double sum = 0.0;
    for (long i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}
