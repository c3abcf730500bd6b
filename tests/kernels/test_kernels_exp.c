/* The exponential that every activation and softmax stands on. */
#include "kernel_check.h"

#include "kernels/body_math.h"

/* Under 2 ulp, and nothing odd at the ends. */
static void test_exp(void **state)
{
    bench_top *t = (bench_top *)*state;
    float x[LANES], y[LANES];
    for (long i = 0; i < 40000; i++) {
        for (int lane = 0; lane < LANES; lane++) {
            x[lane] = (float)(td_rng_unit(&t->rng) * 175.0 - 87.0);
            if (i % 2) x[lane] /= 64.0f;
        }
        vstore(y, vexp(vload(x)));
        for (int lane = 0; lane < LANES; lane++) {
            const double exact = exp((double)x[lane]);
            const double ulp = ldexp(1.0, ilogb(exact) - 23);
            if (fabs((double)y[lane] - exact) < 2.0 * ulp) continue;
            fail_msg("e^%.9g is %.9g, %.2f ulp off", (double)x[lane], (double)y[lane],
                     fabs((double)y[lane] - exact) / ulp);
        }
    }
    const float ends[LANES] = {0.0f, -0.0f, -INFINITY, -1e30f, -88.0f, INFINITY, 1e30f, NAN};
    vstore(y, vexp(vload(ends)));
    assert_true(y[0] == 1.0f && y[1] == 1.0f);
    assert_true(y[2] == 0.0f && y[3] == 0.0f && y[4] == 0.0f);
    assert_true(y[5] > 1.6e38f && y[6] > 1.6e38f);
    assert_true(isnan(y[7]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {KERNEL_TEST(test_exp)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
