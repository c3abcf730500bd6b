/* The law of the executor where the vocabulary layers lie in shards on all ranks: loss, gradients
 * and weights are those of one rank, memory is as planned, and the end ranks hold less. */
#include "exec_law.h"
#include "t.h"

static const model_desc *const models[] = {&law_gpt2, &law_llama};

typedef struct vocab_case {
    const char *name, *option;
} vocab_case;

static const vocab_case cases[] = {{"vocab-1", NULL},
                                   {"vocab-1", "repo-edge=1"},
                                   {"vocab-2", NULL},
                                   {"vocab-2", "repo-edge=1"},
                                   {"interlaced", NULL},
                                   {"v-half-vocab", "algorithm=1"},
                                   {"v-half-vocab", "algorithm=2"}};
enum { N_CASES = sizeof cases / sizeof *cases };

/* Tied and untied tables, a vocabulary that no 2P divides, so that there is padding. */
static void test_law(void **state)
{
    (void)state;
    for (int i = 0; i < N_CASES; i++)
        for (int32_t pp = 2; pp <= 8; pp *= 2)
            for (int32_t m = 2 * pp; m <= 3 * pp; m += pp) {
                td_arena *const a = td_arena_new();
                const exec_law k = {.model = models[(i + pp / 2 + m / pp) % 2], .steps = 2};
                const check_result r =
                    exec_law_named(&k, cases[i].name, cases[i].option, pp, 0, m, a, NULL);
                assert_false(r.exact); /* shards add in another order */
                td_arena_free(a);
            }
}

/* Some shards hold nothing but padding, others the last words; one word only. */
static void test_small_vocabularies(void **state)
{
    (void)state;
    static const int64_t words[] = {1, 2, 5, 9, 16, 17, 64};
    for (size_t w = 0; w < sizeof words / sizeof *words; w++)
        for (int i = 0; i < N_CASES; i += 2) {
            td_arena *const a = td_arena_new();
            model_desc m = *models[(w + (size_t)i / 2) % 2];
            m.vocab = words[w];
            const exec_law k = {.model = &m, .steps = 2};
            (void)exec_law_named(&k, cases[i].name, cases[i].option, 4, 0, 8, a, NULL);
            td_arena_free(a);
        }
}

static void test_compositions(void **state)
{
    (void)state;
    for (int i = 0; i < N_CASES; i++)
        for (int mode = 0; mode < 6; mode++) {
            td_arena *const a = td_arena_new();
            const exec_law k = {.model = models[(i + mode) % 2],
                                .steps = 2,
                                .dp = 1 + mode % 2,
                                .zero1 = mode == 3,
                                .recompute = (recompute_mode)(mode % 3),
                                .mapping = (plan_mapping)(mode / 2),
                                .jitter_ns = mode == 5 ? 200000 : 0};
            (void)exec_law_named(&k, cases[i].name, cases[i].option, 2, 0, 5, a, NULL);
            td_arena_free(a);
        }
}

static int64_t largest_end(const check_result *r, int32_t pp)
{
    const int64_t first = r->ranks[0].touched_bytes, last = r->ranks[pp - 1].touched_bytes;
    return first > last ? first : last;
}

/* A table that is most of the model: whole, the end ranks hold one each, with its gradient and
 * both moments; in shards every rank a quarter of both. */
static void test_end_ranks_hold_less(void **state)
{
    model_desc m = law_llama;
    m.vocab = 8192;
    const exec_law k = {.model = &m, .steps = 1};
    const int64_t table = m.vocab * m.hidden * (int64_t)sizeof(float);
    const check_result whole = exec_law_named(&k, "1f1b", NULL, 4, 0, 8, *state, NULL);
    for (int i = 0; i < N_CASES; i += 2) {
        const check_result r =
            exec_law_named(&k, cases[i].name, cases[i].option, 4, 0, 8, *state, NULL);
        /* 4 tables there, 4 * 2 / 4 of them here; logits and what is in flight are not small */
        if (largest_end(&r, 4) > largest_end(&whole, 4) - table)
            fail_msg("%s: the end ranks hold %lld bytes, with whole tables %lld", cases[i].name,
                     (long long)largest_end(&r, 4), (long long)largest_end(&whole, 4));
    }
}

static void test_refusals(void **state)
{
    const sched_request q = {.pp = 2, .microbatches = 4};
    schedule s;
    plan p;
    td_err err = {0};
    stage_desc stages[2];
    sizes z = {.model = &law_bert,
               .run = {.micro_batch = 1, .seq_len = 12, .tp = 1, .dp = 1},
               .stages = stages,
               .n_stages = 2,
               .chunks = 1,
               .vocab_shards = 2};
    for (int i = 0; i < 2; i++)
        stages[i] = (stage_desc){.first_layer = 4 * i,
                                 .n_layers = 4,
                                 .embedding = i == 0,
                                 .head = i == 1,
                                 .vocab_rows = sizes_vocab_rows(&z)};
    const lower_options o = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1};
    executor *x = NULL;
    T_OK(sched_generate("vocab-1", &q, *state, &s, &err), &err);
    T_OK(plan_lower(&s, &o, *state, &p, &err), &err);
    T_FAILS(exec_open(&p, &z, &(exec_options){.threads_per_rank = 1}, *state, &x, &err), TD_EUSAGE,
            &err, "not executed in shards");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(test_law),          T_TEST(test_small_vocabularies),
        T_TEST(test_compositions), T_TEST(test_end_ranks_hold_less),
        T_TEST(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
