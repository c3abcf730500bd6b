/* Random spread and slow ranks: against what probability says of a sum of passes. */
#include "sim/noise.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct noisy_case {
    plan p;
    int64_t *ns;
    double *spread;
    td_arena *a;
} noisy_case;

static void make_case(noisy_case *k, int32_t pp, int32_t m, double spread)
{
    k->a = td_arena_new();
    const sched_request q = {.pp = pp, .microbatches = m};
    sizes *const z = TD_NEW(k->a, sizes);
    *z = (sizes){.n_stages = pp, .chunks = 1};
    const lower_options o = {.sizes = z, .dp = 1, .tp = 1, .lookahead = 1, .no_step = true};
    schedule s = {0};
    td_err err = {0};
    if (sched_generate("1f1b", &q, k->a, &s, &err) != TD_OK ||
        plan_lower(&s, &o, k->a, &k->p, &err) != TD_OK)
        fail_msg("%s", err.msg);
    k->ns = TD_NEW_N(k->a, int64_t, k->p.n_classes);
    k->spread = TD_NEW_N(k->a, double, k->p.n_classes);
    for (uint32_t i = 0; i < k->p.n_classes; i++) {
        k->ns[i] = k->p.classes[i].kind == PASS_F   ? 1000000
                   : k->p.classes[i].kind == PASS_B ? 2000000
                                                    : 0;
        k->spread[i] = spread;
    }
}

static step_distribution run(const noisy_case *k, const double *slow, uint64_t seed, int64_t n)
{
    const sim_options o = {.protocol = PROTOCOL_EAGER};
    const sim_noise noise = {.p = &k->p, .slow = slow, .spread = k->spread, .seed = seed};
    step_distribution d;
    td_err err = {0};
    if (noise_distribution(&k->p, k->ns, &o, noise, n, &d, &err) != TD_OK) fail_msg("%s", err.msg);
    return d;
}

/* One rank: the step is a sum of independent passes, so its mean is the sum of their means and its
 * variance the sum of their variances. */
static void sum_of_passes(void **state)
{
    (void)state;
    enum { RUNS = 4000, M = 16 };
    noisy_case k;
    make_case(&k, 1, M, 0.1);
    const step_distribution d = run(&k, NULL, 3, RUNS);
    const double mean = M * 3e6, deviation = 0.1 * sqrt(M * (1e12 + 4e12));
    assert_true(fabs(d.mean_ns - mean) < 5 * deviation / sqrt(RUNS));
    assert_true(fabs(d.deviation_ns / deviation - 1) < 5 / sqrt(2.0 * RUNS));
    /* a sum of many is near normal: its quantiles are 1.645 deviations away */
    assert_true(fabs((double)(d.p95_ns - d.p5_ns) / (2 * 1.645 * deviation) - 1) < 0.1);
    assert_true(d.min_ns < d.p5_ns && d.p5_ns < d.p25_ns && d.p25_ns < d.p50_ns &&
                d.p50_ns < d.p75_ns && d.p75_ns < d.p95_ns && d.p95_ns < d.p99_ns &&
                d.p99_ns < d.max_ns);
    td_arena_free(k.a);
}

/* Waiting for the latest of several makes noise cost time: the mean lies above the quiet step. */
static void noise_costs_time(void **state)
{
    (void)state;
    noisy_case k;
    make_case(&k, 8, 16, 0.1);
    const step_distribution d = run(&k, NULL, 1, 200);
    assert_true(d.mean_ns > (16 + 7) * 3e6);
    const step_distribution again = run(&k, NULL, 1, 200), other = run(&k, NULL, 2, 200);
    assert_memory_equal(&d, &again, sizeof d);
    assert_true(d.p50_ns != other.p50_ns);
    td_arena_free(k.a);
}

/* Without spread a slow rank paces all: (M - 1) of its own rounds, and one of everybody's. */
static void slow_rank_paces(void **state)
{
    (void)state;
    enum { P = 4, M = 8 };
    noisy_case k;
    make_case(&k, P, M, 0);
    const double even[P] = {1, 1, 1, 1}, slow[P] = {1, 1, 1, 1.5};
    assert_int_equal(run(&k, even, 1, 2).p50_ns, (M + P - 1) * 3000000);
    assert_int_equal(run(&k, slow, 1, 2).max_ns, (int64_t)(M * 4.5e6 + (P - 1) * 3e6));
    td_arena_free(k.a);
}

static void refuses_bad_ranks(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "", "x", "4=1", "-1=2", "1", "1=", "1=0", "1=2,", "1=nan", "1=1e9", "0=1;2=3", "0=1,0=2"};
    double slow[4];
    td_err err = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (noise_parse_slow(bad[i], 4, slow, &err) != TD_EUSAGE) fail_msg("took \"%s\"", bad[i]);
    assert_int_equal(noise_parse_slow("0=1.25,3=2", 4, slow, &err), TD_OK);
    assert_true(slow[0] == 1.25 && slow[1] == 1 && slow[2] == 1 && slow[3] == 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sum_of_passes),
        cmocka_unit_test(noise_costs_time),
        cmocka_unit_test(slow_rank_paces),
        cmocka_unit_test(refuses_bad_ranks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
