/* The law of the executor for forward-backward disaggregation: loss, gradients and weights of the
 * one-rank reference, the forward rows' weights those of the backward rows after every step, and
 * the memory of both roles as predicted. */
#include "exec_law.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

typedef struct fbd_law {
    const char *topology, *weights, *credits;
    int32_t pp, microbatches;
} fbd_law;

/* Equal to the last bit where nothing is summed over copies. */
static check_result holds(exec_law k, fbd_law f, plan *p)
{
    td_arena *const a = td_arena_new();
    const sched_option_value options[] = {
        {"topology", f.topology}, {"weights", f.weights}, {"credits", f.credits}};
    const sched_request q = {.pp = f.pp,
                             .microbatches = f.microbatches,
                             .options = options,
                             .n_options = f.credits == NULL ? 2 : 3};
    schedule s;
    td_err err = {0};
    if (sched_generate("fbd", &q, a, &s, &err) != TD_OK) fail_msg("%s", err.msg);
    k.steps = k.steps > 0 ? k.steps : 3;
    const check_result r = exec_law_holds(&k, &s, a, p);
    assert_true(r.copies);
    assert_true(r.memory);
    assert_int_equal(r.exact, k.dp <= 1);
    td_arena_free(a);
    return r;
}

static const char *const topologies[] = {"direct", "lagged"};
static const char *const policies[] = {"refresh", "all-step"};

static void test_law(void **state)
{
    (void)state;
    static const model_desc *const models[] = {&law_gpt2, &law_llama, &law_bert};
    for (size_t m = 0; m < 3; m++)
        for (int32_t pp = 1; pp <= 4; pp *= 2)
            for (int t = 0; t < 2; t++)
                for (int w = 0; w < 2; w++)
                    (void)holds((exec_law){.model = models[m]},
                                (fbd_law){topologies[t], policies[w], NULL, pp, 5}, NULL);
}

static void test_recompute_inside(void **state)
{
    (void)state;
    for (int mode = RECOMPUTE_SELECTIVE; mode <= RECOMPUTE_FULL; mode++)
        for (int t = 0; t < 2; t++)
            (void)holds((exec_law){.model = &law_llama, .recompute = (recompute_mode)mode},
                        (fbd_law){topologies[t], "refresh", NULL, 2, 4}, NULL);
}

static void test_replicas(void **state)
{
    (void)state;
    for (int zero1 = 0; zero1 < 2; zero1++)
        for (int w = 0; w < 2; w++)
            (void)holds((exec_law){.model = &law_gpt2, .dp = 2, .zero1 = zero1},
                        (fbd_law){"lagged", policies[w], NULL, 2, 3}, NULL);
}

static void test_mappings_and_delays(void **state)
{
    (void)state;
    for (int mapping = MAPPING_CHANNEL; mapping <= MAPPING_SINGLE; mapping++)
        for (int t = 0; t < 2; t++)
            (void)holds((exec_law){.model = &law_gpt2,
                                   .mapping = (plan_mapping)mapping,
                                   .jitter_ns = 200000},
                        (fbd_law){topologies[t], "refresh", NULL, 4, 6}, NULL);
}

static void test_credits(void **state)
{
    (void)state;
    static const char *const credits[] = {"0", "1", "3", "6"};
    for (int t = 0; t < 2; t++)
        for (int i = t == 0 ? 1 : 0; i < 4; i++)
            (void)holds((exec_law){.model = &law_llama, .jitter_ns = 100000},
                        (fbd_law){topologies[t], "refresh", credits[i], 4, 6}, NULL);
}

/* Three layers over four stages: one of them only passes on. */
static void test_empty_stages(void **state)
{
    (void)state;
    model_desc few = law_gpt2;
    few.n_layers = 3;
    for (int t = 0; t < 2; t++)
        (void)holds((exec_law){.model = &few}, (fbd_law){topologies[t], "refresh", NULL, 4, 4},
                    NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_law),      cmocka_unit_test(test_recompute_inside),
        cmocka_unit_test(test_replicas), cmocka_unit_test(test_mappings_and_delays),
        cmocka_unit_test(test_credits),  cmocka_unit_test(test_empty_stages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
