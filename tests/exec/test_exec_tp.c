/* The law of the executor with tensor parallelism: products divided by columns and rows, attention
 * by heads, tables by words; loss, gradients and weights are those of the one-rank reference within
 * tolerance, what every shard holds whole is the same everywhere, and memory is as predicted. */
#include "exec/shard.h"
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
    const check_result r = exec_law_named(&k, name, option, pp, chunks, 4, a, NULL);
    assert_false(r.exact);
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
                if (tp * pp * dp > 16) continue;
                hold((exec_law){.model = &gpt2, .tp = tp, .dp = dp}, "1f1b", NULL, pp, 1);
                hold((exec_law){.model = &llama, .tp = tp, .dp = dp}, "1f1b", NULL, pp, 1);
            }
}

/* Two query heads share the keys and values of one. */
static void test_grouped_queries(void **state)
{
    (void)state;
    hold((exec_law){.model = &law_llama, .tp = 2}, "1f1b", NULL, 2, 1);
    model_desc tied = law_llama;
    tied.tied = true;
    hold((exec_law){.model = &tied, .tp = 2}, "gpipe", NULL, 2, 1);
    hold((exec_law){.model = &tied, .tp = 2}, "gpipe", NULL, 1, 1);
}

/* More shards than heads of keys and values: neighbours hold the same ones, and sum what each has
 * seen of their gradients. */
static void test_shared_keys(void **state)
{
    (void)state;
    model_desc biased = law_four_heads(&law_llama, 2);
    biased.hidden = 32;
    biased.head_dim = 16;
    biased.qkv_bias = true;
    hold((exec_law){.model = &law_llama, .tp = 4}, "1f1b", NULL, 1, 1);
    hold((exec_law){.model = &law_llama, .tp = 4}, "1f1b", NULL, 2, 1);
    hold((exec_law){.model = &biased, .tp = 4}, "1f1b", NULL, 2, 1);
    hold((exec_law){.model = &law_llama, .tp = 4, .dp = 2, .zero1 = true}, "1f1b", NULL, 1, 1);
    hold((exec_law){.model = &law_llama, .tp = 4}, "zb-h1", NULL, 2, 0);
    hold((exec_law){.model = &law_llama, .tp = 4}, "seq1f1b", NULL, 2, 0);
    hold((exec_law){.model = &law_llama, .tp = 4}, "fbd", "merge-forward=1", 2, 0);
    hold((exec_law){.model = &law_llama, .tp = 4}, "fbd", "weights=all-step", 2, 0);
    hold((exec_law){.model = &law_llama, .tp = 4, .sequence_parallel = true}, "1f1b", NULL, 2, 1);
    for (int64_t kv = 1; kv <= 4; kv *= 2) {
        const model_desc few = law_four_heads(&law_llama, kv);
        hold((exec_law){.model = &few, .tp = 2}, "gpipe", NULL, 1, 1);
        hold((exec_law){.model = &few, .tp = 4, .clip = 0.01}, "gpipe", NULL, 1, 1);
    }
}

static void test_schedules(void **state)
{
    (void)state;
    const model_desc gpt2 = law_four_heads(&law_gpt2, 4);
    hold((exec_law){.model = &gpt2, .tp = 2}, "interleaved-1f1b", NULL, 2, 2);
    hold((exec_law){.model = &gpt2, .tp = 2}, "zb-h1", NULL, 2, 0);
    hold((exec_law){.model = &law_llama, .tp = 2}, "zb-h1", NULL, 2, 0);
    hold((exec_law){.model = &gpt2, .tp = 2}, "chimera", NULL, 2, 0);
    hold((exec_law){.model = &gpt2, .tp = 2}, "seq1f1b", NULL, 2, 0);
    hold((exec_law){.model = &gpt2, .tp = 2}, "fbd", "topology=lagged", 2, 0);
    hold((exec_law){.model = &gpt2, .tp = 2}, "fbd", "weights=all-step", 2, 0);
}

/* Norms behind the sums, a sum of embeddings that is normed, a transform before the shared table.
 */
static void test_bert(void **state)
{
    (void)state;
    const model_desc four = law_four_heads(&law_bert, 4);
    hold((exec_law){.model = &law_bert, .tp = 3}, "1f1b", NULL, 2, 1);
    for (int32_t tp = 2; tp <= 4; tp *= 2)
        for (int32_t pp = 1; pp <= 4; pp *= 2)
            hold((exec_law){.model = &four, .tp = tp}, "1f1b", NULL, pp, 1);
    for (int mode = RECOMPUTE_NONE; mode <= RECOMPUTE_FULL; mode++)
        for (int32_t pp = 1; pp <= 2; pp++) {
            const exec_law k = {.model = &four, .tp = 2, .recompute = (recompute_mode)mode};
            hold(k, "zb-h1", NULL, pp, 0);
            hold(k, "1f1b", NULL, pp, 1);
            hold(k, "fbd", "merge-forward=1", pp, 0);
        }
    hold((exec_law){.model = &four, .tp = 2, .dp = 2, .zero1 = true}, "chimera", NULL, 2, 0);
}

static void test_shared_optimizer(void **state)
{
    (void)state;
    const model_desc gpt2 = law_four_heads(&law_gpt2, 4);
    hold((exec_law){.model = &gpt2, .tp = 2, .dp = 2, .zero1 = true}, "1f1b", NULL, 2, 1);
    hold((exec_law){.model = &law_llama, .tp = 2, .dp = 3, .zero1 = true}, "zb-h1", NULL, 2, 0);
    hold((exec_law){.model = &gpt2, .tp = 4, .zero1 = true}, "chimera", NULL, 2, 0);
}

static void test_recompute(void **state)
{
    (void)state;
    for (int mode = RECOMPUTE_SELECTIVE; mode <= RECOMPUTE_FULL; mode++)
        for (int split = 0; split < 2; split++)
            hold((exec_law){.model = &law_llama, .tp = 2, .recompute = (recompute_mode)mode},
                 split == 1 ? "zb-h1" : "1f1b", NULL, 2, 0);
}

static void test_mappings_and_delays(void **state)
{
    (void)state;
    for (int mapping = MAPPING_CHANNEL; mapping <= MAPPING_SINGLE; mapping++)
        hold(
            (exec_law){
                .model = &law_llama, .tp = 2, .mapping = (plan_mapping)mapping, .jitter_ns = 50000},
            "1f1b", NULL, 2, 1);
}

/* A stage cut into shards and put together again is the stage; nothing but rows behind the
 * vocabulary's end is left over. */
static void test_cut_and_join(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    td_err err = {0};
    const model_desc gpt2 = law_four_heads(&law_gpt2, 4);
    const stage_desc at = {.n_layers = 2, .embedding = true, .head = true};
    const model_desc *const models[] = {&gpt2, &law_llama};
    for (int m = 0; m < 2; m++) {
        const int32_t tp = m == 0 ? 4 : 2;
        sizes z = {.model = models[m],
                   .stages = &at,
                   .n_stages = 1,
                   .run = {.micro_batch = 1, .seq_len = 4, .tp = 1, .dp = 1}};
        stage_code *full = NULL, *part = NULL;
        k_blas blas;
        k_blas_open(&blas, NULL);
        k_ctx *const ctx = k_ctx_start(td_alloc(a, 1, k_ctx_size(1)), &blas, 1);
        assert_int_equal(stage_open(&z, ctx, a, &full, &err), TD_OK);
        z.run.tp = tp;
        assert_int_equal(stage_open(&z, ctx, a, &part, &err), TD_OK);
        float *const w = td_alloc(a, (size_t)full->elements, sizeof *w);
        float *const back = td_alloc(a, (size_t)full->elements, sizeof *w);
        float *const own = td_alloc(a, (size_t)part->elements, sizeof *w);
        int64_t n = 0, nonzero = 0;
        for (int64_t i = 0; i < full->n_params; i++)
            for (int64_t j = 0; j < full->params[i].rows * full->params[i].cols; j++)
                w[full->params[i].offset + j] = (float)++n;
        for (int32_t k = 0; k < tp; k++) {
            shard_take(full, part, k, w, own);
            shard_give(full, part, k, own, back);
            for (int64_t i = 0; i < part->n_params; i++) {
                const param_tensor *const t = &part->params[i];
                const bool counts = k == 0 || !shard_is_whole((param_kind)t->kind);
                for (int64_t j = 0; counts && j < t->rows * t->cols; j++)
                    nonzero += own[t->offset + j] > 0;
            }
        }
        assert_memory_equal(w, back, (size_t)full->elements * sizeof *w);
        assert_int_equal(nonzero, n);
        k_ctx_stop(ctx);
        k_blas_close(&blas);
    }
    td_arena_free(a);
}

static void test_refusals(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    const stage_desc at = {.n_layers = 8, .embedding = true, .head = true};
    const struct {
        const model_desc *m;
        int64_t tp;
        bool sequence_parallel;
        const char *why;
    } cases[] = {{&law_gpt2, 2, false, "3 heads"},
                 {&law_llama, 3, false, "2 of keys and values"},
                 {&law_bert, 3, true, "BERT"},
                 {&law_llama, 2, true, "5 tokens (1 sequences)"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const sizes z = {.model = cases[i].m,
                         .stages = &at,
                         .n_stages = 1,
                         .run = {.micro_batch = 1,
                                 .seq_len = 5,
                                 .tp = cases[i].tp,
                                 .dp = 1,
                                 .sequence_parallel = cases[i].sequence_parallel}};
        stage_code *c = NULL;
        td_err err = {0};
        assert_int_equal(stage_open(&z, NULL, a, &c, &err), TD_EUSAGE);
        if (strstr(err.msg, cases[i].why) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", err.msg, cases[i].why);
    }
    td_arena_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_degrees),      cmocka_unit_test(test_grouped_queries),
        cmocka_unit_test(test_shared_keys),  cmocka_unit_test(test_schedules),
        cmocka_unit_test(test_bert),         cmocka_unit_test(test_shared_optimizer),
        cmocka_unit_test(test_recompute),    cmocka_unit_test(test_mappings_and_delays),
        cmocka_unit_test(test_cut_and_join), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
