/* Shared by the kernel tests: random problems, runs on every instruction set and thread count, and
 * comparison with double-precision references and central differences. */
#ifndef TESTS_KERNELS_KERNEL_CHECK_H
#define TESTS_KERNELS_KERNEL_CHECK_H

#include "base/base.h"
#include "kernels/kernels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* What a test works with; fresh memory and a fixed seed for each test. */
typedef struct bench_top {
    td_arena *arena;
    td_rng rng;
    k_blas blas;
    k_ctx *one, *three; /* contexts with that many threads */
} bench_top;

int check_setup(void **state);
int check_teardown(void **state);

#define KERNEL_TEST(f) cmocka_unit_test_setup_teardown(f, check_setup, check_teardown)

long pick(bench_top *t, long from, long to); /* uniform, both ends included */
float *zeros(bench_top *t, long n);
double *zeros_f64(bench_top *t, long n);
float *normals(bench_top *t, long n, double spread);
double *widen(bench_top *t, const float *x, long n);

/* Runs a kernel whose outputs are all in out[n]. Outputs that are += must be initialised by run. */
typedef void (*kernel_run)(k_ctx *ctx, const void *problem, float *out);

/* Fills out with a signalling pattern, runs on one thread, and demands that all of out is written
 * and that a second run, runs on three threads and on every instruction set give the same bits. */
void run_everywhere(bench_top *t, kernel_run run, const void *problem, float *out, long n);

/* max |x - ref| <= tol * max(|ref|, 1e-3); on failure prints what, where and both values. */
void check_close(const char *what, const float *x, const double *ref, long n, double tol);
double max_error(const float *x, const double *ref, long n); /* the same measure */

/* A scalar of a problem in double precision; the gradient of it by central differences with
 * respect to x[0..n), which the scalar reads. */
typedef double (*scalar_of)(const void *problem);
double *differences(bench_top *t, scalar_of f, const void *problem, double *x, long n);

/* sum of a[i] * b[i]: turns outputs into a scalar whose gradient with respect to a is b. */
double dot(const double *a, const double *b, long n);

#endif
