/* The law of the executor: for every schedule, loss, gradients, and weights after three optimizer
 * steps are those of the same model trained on one rank without a pipeline, bit for bit; and the
 * highest byte touched is the predicted peak. */
#include "exec_law.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct law_case {
    const model_desc *model;
    const char *schedule;
    int32_t pp, microbatches, chunks, dp;
    plan_mapping mapping;
    recompute_mode recompute;
    bool uneven;
    int64_t jitter_ns;
    int threads;
} law_case;

/* Layers of each stage: even, or with the remainder moved to the last stage but one layer. */
static void give_layers(const model_desc *m, bool uneven, int32_t n, stage_desc *out)
{
    int64_t at = 0;
    for (int32_t s = 0; s < n; s++) {
        int64_t layers = m->n_layers / n;
        if (uneven && n > 1 && s == 0) layers -= layers > 1 ? 1 : 0;
        if (s == n - 1) layers = m->n_layers - at;
        out[s] = (stage_desc){
            .first_layer = at, .n_layers = layers, .embedding = s == 0, .head = s == n - 1};
        at += layers;
    }
}

static td_status lower_case(const law_case *k, td_arena *a, sizes *z, plan *p, td_err *err)
{
    const sched_request q = {.pp = k->pp, .microbatches = k->microbatches, .chunks = k->chunks};
    schedule *const s = TD_NEW(a, schedule);
    TD_TRY(sched_generate(k->schedule, &q, a, s, err));
    stage_desc *const stages = TD_NEW_N(a, stage_desc, s->n_stages);
    give_layers(k->model, k->uneven, s->n_stages, stages);
    *z = (sizes){
        .model = k->model,
        .stages = stages,
        .n_stages = s->n_stages,
        .chunks = k->chunks,
        .run = {.micro_batch = 2, .seq_len = 12, .tp = 1, .dp = k->dp, .recompute = k->recompute}};
    const lower_options o = {
        .sizes = z, .dp = k->dp, .tp = 1, .mapping = k->mapping, .lookahead = 1};
    return plan_lower(s, &o, a, p, err);
}

static check_result law(const law_case *k, td_arena *a)
{
    td_err err = {0};
    sizes *const z = TD_NEW(a, sizes);
    plan *const p = TD_NEW(a, plan);
    if (lower_case(k, a, z, p, &err) != TD_OK) fail_msg("%s", err.msg);
    const check_options o = {.seed = 7,
                             .steps = 3,
                             .clip = 1,
                             .run = {.threads_per_rank = k->threads,
                                     .jitter_ns = k->jitter_ns,
                                     .deadline_ns = 20000000000,
                                     .jitter_seed = 3}};
    check_result r;
    if (check_plan(p, z, &o, a, &r, &err) != TD_OK) fail_msg("%s", err.msg);
    if (!r.memory)
        for (uint32_t i = 0; i < p->n_ranks; i++)
            print_message("rank %u: peak %lld, touched %lld\n", i, (long long)r.ranks[i].peak_bytes,
                          (long long)r.ranks[i].touched_bytes);
    if (!r.pass)
        print_message("%s %s P=%d M=%d V=%d: loss %.9g, reference %.9g, gradients off by %g (%s), "
                      "weights by %g (%s)\n",
                      k->model->name, k->schedule, k->pp, k->microbatches, k->chunks, r.loss,
                      r.loss_reference, r.gradients.max_rel_err, r.gradients.worst,
                      r.weights.max_rel_err, r.weights.worst);
    return r;
}

static void hold(law_case k, bool exact)
{
    td_arena *const a = td_arena_new();
    const check_result r = law(&k, a);
    assert_int_equal(r.exact, exact);
    assert_true(r.pass);
    td_arena_free(a);
}

static void test_three_schedules(void **state)
{
    (void)state;
    static const model_desc *const models[] = {&law_gpt2, &law_llama};
    for (size_t m = 0; m < 2; m++)
        for (int32_t pp = 1; pp <= 4; pp *= 2)
            for (int32_t mb = 4; mb <= 8; mb += 4)
                for (int uneven = 0; uneven < 2; uneven++) {
                    law_case k = {.model = models[m],
                                  .schedule = "gpipe",
                                  .pp = pp,
                                  .microbatches = mb,
                                  .chunks = 1,
                                  .dp = 1,
                                  .uneven = uneven};
                    hold(k, true);
                    k.schedule = "1f1b";
                    hold(k, true);
                    if (pp == 1) continue;
                    k.schedule = "interleaved-1f1b";
                    k.chunks = 2;
                    hold(k, true);
                }
}

static void test_recompute(void **state)
{
    (void)state;
    for (int mode = RECOMPUTE_SELECTIVE; mode <= RECOMPUTE_FULL; mode++) {
        law_case k = {.model = &law_gpt2,
                      .schedule = "1f1b",
                      .pp = 2,
                      .microbatches = 4,
                      .chunks = 1,
                      .dp = 1,
                      .recompute = (recompute_mode)mode};
        hold(k, true);
        k.model = &law_llama;
        hold(k, true);
    }
}

static void test_mappings_and_delays(void **state)
{
    (void)state;
    for (int mapping = MAPPING_CHANNEL; mapping <= MAPPING_SINGLE; mapping++) {
        const law_case k = {.model = &law_gpt2,
                            .schedule = "1f1b",
                            .pp = 4,
                            .microbatches = 8,
                            .chunks = 1,
                            .dp = 1,
                            .mapping = (plan_mapping)mapping,
                            .jitter_ns = 300000};
        hold(k, true);
    }
}

static void test_threads_of_a_rank(void **state)
{
    (void)state;
    const law_case k = {.model = &law_llama,
                        .schedule = "1f1b",
                        .pp = 2,
                        .microbatches = 4,
                        .chunks = 1,
                        .dp = 1,
                        .threads = 2};
    hold(k, true);
}

/* Three layers on four ranks: the first embeds, the next two only pass on. */
static void test_empty_stages(void **state)
{
    (void)state;
    model_desc few = law_gpt2;
    few.n_layers = 3;
    law_case k = {
        .model = &few, .schedule = "1f1b", .pp = 4, .microbatches = 4, .chunks = 1, .dp = 1};
    hold(k, true);
    k.schedule = "interleaved-1f1b";
    k.pp = 2;
    k.chunks = 2;
    hold(k, true);
    k.recompute = RECOMPUTE_FULL;
    hold(k, true);
}

static void test_replicas(void **state)
{
    (void)state;
    const law_case k = {
        .model = &law_gpt2, .schedule = "1f1b", .pp = 2, .microbatches = 4, .chunks = 1, .dp = 2};
    hold(k, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_three_schedules),     cmocka_unit_test(test_recompute),
        cmocka_unit_test(test_mappings_and_delays), cmocka_unit_test(test_threads_of_a_rank),
        cmocka_unit_test(test_empty_stages),        cmocka_unit_test(test_replicas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
