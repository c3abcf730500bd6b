/* The law of the executor for merged forward ranks: one rank holds a stage whole and runs its
 * forwards, several hold it in shards and run its backwards. Loss, gradients and weights are those
 * of the one-rank reference, after every step the forward rank's weights are its shards' put
 * together, bit for bit, and memory is as predicted. */
#include "exec_law.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

static void hold(exec_law k, const char *option, int32_t pp)
{
    td_arena *const a = td_arena_new();
    plan p;
    k.steps = k.steps > 0 ? k.steps : 3;
    const check_result r = exec_law_named(&k, "fbd", option, pp, 0, 5, a, &p);
    assert_true(r.copies);
    assert_true(r.memory);
    assert_int_equal(p.n_ranks, pp * (k.dp < 1 ? 1 : k.dp) * (k.tp + 1));
    td_arena_free(a);
}

static const char *const options[] = {
    "merge-forward=1,topology=direct,weights=refresh",
    "merge-forward=1,topology=direct,weights=all-step",
    "merge-forward=1,topology=lagged,weights=refresh",
    "merge-forward=1,topology=lagged,weights=all-step",
};

static void test_degrees(void **state)
{
    (void)state;
    const model_desc gpt2 = law_four_heads(&law_gpt2, 4), llama = law_four_heads(&law_llama, 4);
    for (int32_t tp = 2; tp <= 4; tp *= 2)
        for (int32_t pp = 1; pp <= 4; pp *= 2)
            for (int32_t dp = 1; dp <= 2; dp++)
                for (int i = 0; i < 4; i++) {
                    if (tp * pp * dp > 8) continue;
                    hold((exec_law){.model = &gpt2, .tp = tp, .dp = dp}, options[i], pp);
                    hold((exec_law){.model = &llama, .tp = tp, .dp = dp}, options[i], pp);
                }
}

/* One table for both ends, on one stage and on two; two query heads to a head of keys. */
static void test_tied_and_grouped(void **state)
{
    (void)state;
    model_desc tied = law_llama;
    tied.tied = true;
    for (int32_t pp = 1; pp <= 2; pp++)
        for (int i = 0; i < 4; i++) hold((exec_law){.model = &tied, .tp = 2}, options[i], pp);
}

static void test_mappings_and_delays(void **state)
{
    (void)state;
    for (int mapping = MAPPING_CHANNEL; mapping <= MAPPING_SINGLE; mapping++)
        for (int i = 0; i < 4; i++)
            hold((exec_law){.model = &law_llama,
                            .tp = 2,
                            .mapping = (plan_mapping)mapping,
                            .jitter_ns = 50000},
                 options[i], 2);
}

static void test_recompute_and_shared_optimizer(void **state)
{
    (void)state;
    for (int mode = RECOMPUTE_SELECTIVE; mode <= RECOMPUTE_FULL; mode++)
        for (int i = 0; i < 4; i++)
            hold((exec_law){.model = &law_llama, .tp = 2, .recompute = (recompute_mode)mode},
                 options[i], 2);
    for (int i = 0; i < 4; i += 2)
        hold((exec_law){.model = &law_llama, .tp = 2, .dp = 2, .zero1 = true}, options[i], 2);
}

/* Shards arrive in a room of their own, which is there for them alone. */
static void test_room(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    for (int i = 0; i < 2; i++) {
        plan p;
        uint32_t rooms = 0;
        const exec_law k = {.model = &law_llama, .tp = 2, .steps = 1};
        (void)exec_law_named(&k, "fbd", options[i], 2, 0, 3, a, &p);
        for (uint32_t r = 0; r < p.n_ranks; r++)
            for (uint32_t j = 0; j < p.ranks[r].n_buffers; j++) {
                const plan_buffer *const b = &p.buffers[p.ranks[r].first_buffer + j];
                const plan_bclass *const c = &p.bclasses[b->bclass];
                if (c->what != (i == 0 ? SIZE_WEIGHT_PARTS : SIZE_GRAD_PARTS)) continue;
                rooms++;
                assert_int_equal(p.ranks[r].tp, 1);
                /* from behind the norm to the optimizer */
                const uint32_t end = plan_compute(&p, r)->n_tasks - 1;
                assert_int_equal(b->birth, end);
                assert_int_equal(b->death, end);
            }
        assert_int_equal(rooms, 2);
    }
    td_arena_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_degrees),
        cmocka_unit_test(test_tied_and_grouped),
        cmocka_unit_test(test_mappings_and_delays),
        cmocka_unit_test(test_recompute_and_shared_optimizer),
        cmocka_unit_test(test_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
