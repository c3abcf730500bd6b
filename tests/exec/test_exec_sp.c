/* The law of the executor with sequence parallelism: each tensor-parallel shard keeps its own rows
 * of the residual stream; loss, gradients and weights are those of the one-rank reference within
 * tolerance, norms have the same gradients on every shard, and memory shrinks as predicted. */
#include "exec_law.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void hold(exec_law k, const char *name, const char *option, int32_t pp, int32_t chunks)
{
    td_arena *const a = td_arena_new();
    k.steps = k.steps > 0 ? k.steps : 3;
    k.sequence_parallel = true;
    const check_result r = exec_law_named(&k, name, option, pp, chunks, 4, a, NULL);
    assert_true(r.copies);
    assert_true(r.memory);
    td_arena_free(a);
}

static void test_degrees(void **state)
{
    (void)state;
    const model_desc gpt2 = law_four_heads(&law_gpt2, 4), llama = law_four_heads(&law_llama, 4);
    for (int32_t tp = 2; tp <= 4; tp *= 2)
        for (int32_t pp = 1; pp <= 4; pp *= 2)
            for (int32_t dp = 1; dp <= 2; dp++) {
                if (tp * pp * dp > 8) continue;
                hold((exec_law){.model = &gpt2, .tp = tp, .dp = dp}, "1f1b", NULL, pp, 1);
                hold((exec_law){.model = &llama, .tp = tp, .dp = dp}, "1f1b", NULL, pp, 1);
            }
}

static void test_recompute(void **state)
{
    (void)state;
    for (int mode = RECOMPUTE_SELECTIVE; mode <= RECOMPUTE_FULL; mode++)
        for (int32_t pp = 1; pp <= 2; pp++)
            hold((exec_law){.model = &law_llama, .tp = 2, .recompute = (recompute_mode)mode},
                 "1f1b", NULL, pp, 1);
}

static void test_schedules(void **state)
{
    (void)state;
    const model_desc gpt2 = law_four_heads(&law_gpt2, 4);
    hold((exec_law){.model = &gpt2, .tp = 2}, "interleaved-1f1b", NULL, 2, 2);
    hold((exec_law){.model = &gpt2, .tp = 2}, "chimera", NULL, 2, 0);
    hold((exec_law){.model = &gpt2, .tp = 2}, "seq1f1b", NULL, 2, 0);
    hold((exec_law){.model = &law_llama, .tp = 4}, "zb-v", NULL, 2, 0);
    for (int mode = RECOMPUTE_NONE; mode <= RECOMPUTE_FULL; mode++)
        for (int32_t pp = 1; pp <= 2; pp++)
            hold((exec_law){.model = &gpt2, .tp = 2, .recompute = (recompute_mode)mode}, "zb-h1",
                 NULL, pp, 0);
    hold((exec_law){.model = &gpt2, .tp = 2, .dp = 2, .zero1 = true}, "1f1b", NULL, 2, 1);
    for (int mapping = MAPPING_CHANNEL; mapping <= MAPPING_SINGLE; mapping++)
        hold(
            (exec_law){
                .model = &gpt2, .tp = 2, .mapping = (plan_mapping)mapping, .jitter_ns = 50000},
            "1f1b", NULL, 2, 1);
}

/* Forward ranks that hold all rows hand each shard its own. */
static void test_disaggregation(void **state)
{
    (void)state;
    static const char *const options[] = {
        "topology=direct", "topology=lagged,weights=all-step", "merge-forward=1,topology=direct",
        "merge-forward=1,topology=lagged", "merge-forward=1,topology=lagged,weights=all-step"};
    const model_desc gpt2 = law_four_heads(&law_gpt2, 4);
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        hold((exec_law){.model = &gpt2, .tp = 2}, "fbd", options[i], 2, 0);
        hold((exec_law){.model = &law_llama, .tp = 2, .dp = 2}, "fbd", options[i], 2, 0);
    }
}

/* What a stage in the middle keeps for its backward, and the messages between stages, are a tp-th
 * of those of one rank alone (Korthikanti et al. 2022, arXiv 2205.05198, equation 4). */
static void test_memory_is_divided(void **state)
{
    (void)state;
    const model_desc gpt2 = law_four_heads(&law_gpt2, 4);
    const stage_desc stages[3] = {{.n_layers = 2, .embedding = true},
                                  {.first_layer = 2, .n_layers = 4},
                                  {.first_layer = 6, .n_layers = 2, .head = true}};
    static const size_kind kinds[] = {SIZE_STASH, SIZE_BOUNDARY};
    for (int64_t tp = 1; tp <= 4; tp *= 2)
        for (int k = 0; k < 2; k++) {
            int64_t got = 0, whole = 0;
            td_err err = {0};
            sizes z = {.model = &gpt2,
                       .stages = stages,
                       .n_stages = 3,
                       .run = {.micro_batch = 4, .seq_len = 32, .tp = 1, .dp = 1}};
            assert_int_equal(sizes_bytes(&z, kinds[k], 1, 32, 0, &whole, &err), TD_OK);
            z.run.tp = tp;
            z.run.sequence_parallel = true;
            assert_int_equal(sizes_bytes(&z, kinds[k], 1, 32, 0, &got, &err), TD_OK);
            assert_int_equal(got, whole / tp);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_degrees),           cmocka_unit_test(test_recompute),
        cmocka_unit_test(test_schedules),         cmocka_unit_test(test_disaggregation),
        cmocka_unit_test(test_memory_is_divided),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
