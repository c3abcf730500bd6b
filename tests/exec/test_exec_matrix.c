/* The law of the executor on the whole grid of degrees: tensor parallelism in {1, 2, 4}, pipeline
 * parallelism in {1, 2, 4}, data parallelism in {1, 2}, for 1F1B and for disaggregation with
 * forward ranks of their own and merged, in both topologies and with both ways to keep weights
 * equal. */
#include "exec_law.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

static const struct {
    const char *schedule, *option;
} plans[] = {
    {"1f1b", NULL},
    {"fbd", "topology=direct,weights=refresh"},
    {"fbd", "topology=direct,weights=all-step"},
    {"fbd", "topology=lagged,weights=refresh"},
    {"fbd", "topology=lagged,weights=all-step"},
    {"fbd", "topology=direct,weights=refresh,merge-forward=1"},
    {"fbd", "topology=direct,weights=all-step,merge-forward=1"},
    {"fbd", "topology=lagged,weights=refresh,merge-forward=1"},
    {"fbd", "topology=lagged,weights=all-step,merge-forward=1"},
};

static void hold_on_grid(const model_desc *model, bool sequence_parallel)
{
    for (size_t i = 0; i < sizeof plans / sizeof *plans; i++)
        for (int32_t tp = sequence_parallel ? 2 : 1; tp <= 4; tp *= 2)
            for (int32_t pp = 1; pp <= 4; pp *= 2)
                for (int32_t dp = 1; dp <= 2; dp++) {
                    td_arena *const a = td_arena_new();
                    const exec_law k = {.model = model,
                                        .tp = tp,
                                        .dp = dp,
                                        .steps = 2,
                                        .sequence_parallel = sequence_parallel};
                    const check_result r =
                        exec_law_named(&k, plans[i].schedule, plans[i].option, pp, 0, 4, a, NULL);
                    assert_true(r.copies);
                    assert_true(r.memory);
                    assert_int_equal(r.exact, tp == 1 && dp == 1);
                    td_arena_free(a);
                }
}

static model_desc gpt2(void)
{
    model_desc m = law_gpt2;
    m.n_heads = m.n_kv_heads = 4;
    m.head_dim = 6;
    return m;
}

static void test_gpt2(void **state)
{
    (void)state;
    const model_desc m = gpt2();
    hold_on_grid(&m, false);
}

/* Four query heads on two of keys and values. */
static void test_llama(void **state)
{
    (void)state;
    hold_on_grid(&law_llama, false);
}

static void test_sequence_parallelism(void **state)
{
    (void)state;
    const model_desc m = gpt2();
    hold_on_grid(&m, true);
    hold_on_grid(&law_llama, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt2),
        cmocka_unit_test(test_llama),
        cmocka_unit_test(test_sequence_parallelism),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
