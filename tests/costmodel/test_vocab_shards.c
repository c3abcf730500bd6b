/* Shards of the vocabulary: rows with their padding, parameters, bytes, FLOPs; and the baseline
 * that gives the last stage fewer layers. */
#include "costmodel/cost.h"
#include "t.h"

static model_desc preset(const char *name)
{
    model_desc m;
    td_err err = {0};
    T_OK(model_load(name, &m, &err), &err);
    return m;
}

/* A sharded model on `pp` stages of equal layers. */
static sizes shard(td_arena *a, const model_desc *m, int32_t pp, int64_t tp, bool fused)
{
    stage_desc *const stages = TD_NEW_N(a, stage_desc, pp);
    sizes z = {.model = m,
               .run = {.micro_batch = 2, .seq_len = 64, .tp = tp, .dp = 1},
               .stages = stages,
               .n_stages = pp,
               .chunks = 1,
               .vocab_shards = pp,
               .vocab_fused = fused};
    for (int32_t s = 0; s < pp; s++)
        stages[s] = (stage_desc){.first_layer = s * (m->n_layers / pp),
                                 .n_layers = m->n_layers / pp,
                                 .embedding = s == 0,
                                 .head = s == pp - 1,
                                 .vocab_rows = sizes_vocab_rows(&z)};
    return z;
}

static void test_rows(void **state)
{
    static const struct {
        int64_t vocab, tp, rows;
        int32_t pp;
    } rows[] = {{50257, 1, 12566, 4}, {50257, 2, 6284, 4}, {256, 1, 32, 8},
                {32768, 1, 4096, 8},  {250, 1, 32, 8},     {3, 1, 2, 4}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        model_desc m = preset("tiny-gpt2");
        m.vocab = rows[i].vocab;
        const sizes z = {.model = &m, .run = {.tp = rows[i].tp}, .vocab_shards = rows[i].pp};
        assert_int_equal(sizes_vocab_rows(&z), rows[i].rows);
        /* a multiple of two for each shard, and no more than that calls for */
        assert_int_equal(rows[i].rows % 2, 0);
        assert_true(rows[i].rows * rows[i].pp * rows[i].tp - m.vocab < 2 * rows[i].pp * rows[i].tp);
    }
}

/* Stages and shards together hold the model's parameters, and the padding. */
static void test_parameters(void **state)
{
    static const char *const names[] = {"tiny-gpt2", "tiny-llama", "tiny-bert"};
    for (int n = 0; n < 3; n++)
        for (int32_t pp = 1; pp <= 8; pp *= 2) {
            model_desc m = preset(names[n]);
            m.vocab = 250;
            const sizes z = shard(*state, &m, pp, 1, false);
            const stage_desc part = sizes_stage(&z, pp);
            int64_t held = 0, whole = 0;
            param_tensor t[512];
            for (int32_t s = 0; s <= pp; s++) {
                const stage_desc stage = sizes_stage(&z, s);
                const int64_t k = stage_params(&m, &stage, t, 512);
                for (int64_t i = 0; i < k; i++) held += t[i].rows * t[i].cols * (s == pp ? pp : 1);
            }
            const stage_desc all = {.n_layers = m.n_layers, .embedding = true, .head = true};
            const int64_t k = stage_params(&m, &all, t, 512);
            for (int64_t i = 0; i < k; i++) whole += t[i].rows * t[i].cols;
            const int64_t columns = m.hidden * (m.tied ? 1 : 2) + (m.family == MODEL_BERT);
            assert_int_equal(held - whole, (part.vocab_rows * pp - m.vocab) * columns);
            /* the norm table's entries go on from stage to stage, tables apart */
            assert_int_equal(stage_first_tensor(&m, &z.stages[0]), 1);
        }
}

static int64_t bytes_of(const sizes *z, size_kind kind, int32_t stage)
{
    int64_t n = 0;
    td_err err = {0};
    T_OK(sizes_bytes(z, kind, stage, z->run.seq_len, 0, &n, &err), &err);
    return n;
}

static void test_bytes(void **state)
{
    model_desc m = preset("tiny-gpt2");
    sizes z = shard(*state, &m, 4, 1, false);
    const int64_t table = 64 * 64; /* 256 words on 4 ranks, 64 wide */
    assert_int_equal(bytes_of(&z, SIZE_WEIGHTS, 4), table * 4);
    assert_int_equal(bytes_of(&z, SIZE_GRADS, 4), 2 * table * 4); /* one for each use */
    assert_int_equal(bytes_of(&z, SIZE_OPTIMIZER, 4), table * 8);
    z.run.zero1 = true;
    z.run.dp = 4;
    assert_int_equal(bytes_of(&z, SIZE_OPTIMIZER, 4), table * 8 / 4);
    /* softmax in fp32, three statistics a token */
    assert_int_equal(bytes_of(&z, SIZE_VOCAB_STASH, 3), 2 * 64 * 64 * 4);
    assert_int_equal(bytes_of(&z, SIZE_VOCAB_STATS, 3), 64 + 2 * 64 * 3 * 4);
    z.vocab_fused = true; /* and two tensors as large as X */
    assert_int_equal(bytes_of(&z, SIZE_VOCAB_STATS, 3), 64 + 2 * 64 * (3 + 2 * 64) * 4);
    m = preset("tiny-llama");
    z = shard(*state, &m, 4, 1, false);
    assert_int_equal(bytes_of(&z, SIZE_WEIGHTS, 4), 2 * table * 4);
    assert_int_equal(bytes_of(&z, SIZE_GRADS, 4), 2 * table * 4);
    td_err err = {0};
    int64_t n = 0;
    T_FAILS(sizes_bytes(&z, SIZE_WEIGHTS, 5, 64, 0, &n, &err), TD_EUSAGE, &err, "stage 5");
    z.vocab_shards = 0;
    T_FAILS(sizes_bytes(&z, SIZE_WEIGHTS, 4, 64, 0, &n, &err), TD_EUSAGE, &err, "stage 4");
}

static double flops_of(const sizes *z, pass_kind pass, int32_t stage)
{
    const pass_query q = {pass, stage, z->run.seq_len, 0, z->run.seq_len, false};
    pass_work w;
    td_err err = {0};
    T_OK(pass_work_of(z, &q, &w, &err), &err);
    return w.flops;
}

/* 2 N h V/p for each product: logits and, in Vocab-2, the input gradient are S's; the others T's.
 * The last stage's passes lose what the passes of its head did. */
static void test_flops(void **state)
{
    const model_desc m = preset("tiny-llama");
    const double product = 2.0 * 128 * 64 * 64;
    for (int fused = 0; fused < 2; fused++) {
        sizes z = shard(*state, &m, 4, 1, fused == 1);
        T_CLOSE(flops_of(&z, PASS_S, 3), (1 + fused) * product, 1e-15, 0);
        T_CLOSE(flops_of(&z, PASS_T, 3), (2 - fused) * product, 1e-15, 0);
        T_CLOSE(flops_of(&z, PASS_E, 0), 0, 0, 0);
        T_CLOSE(flops_of(&z, PASS_F, 3), flops_of(&z, PASS_F, 1), 1e-15, 0);
        T_CLOSE(flops_of(&z, PASS_B, 3), flops_of(&z, PASS_B, 1), 1e-15, 0);
    }
}

/* --- layers --- */

static double largest(const model_desc *m, const stage_desc *s, int32_t n, double head)
{
    double most = 0;
    (void)m;
    for (int32_t i = 0; i < n; i++) {
        const double x = (double)s[i].n_layers + (s[i].head ? head : 0);
        if (x > most) most = x;
    }
    return most;
}

/* Against every other number of layers for the last stage. For GPT 72 h^2 + 12 s h and 6 h V. */
static void test_redistributed(void **state)
{
    static const char *const names[] = {"vp-4b-32k", "vp-4b-256k", "vp-10b-128k", "gpt3-175b",
                                        "gpt2"};
    (void)state;
    for (size_t n = 0; n < sizeof names / sizeof *names; n++)
        for (int32_t pp = 1; pp <= 32; pp++) {
            const model_desc m = preset(names[n]);
            const layer_request q = {
                .n_stages = pp, .pp = pp, .redistribute = true, .seq_len = 2048};
            stage_desc s[32];
            td_err err = {0};
            T_OK(layers_assign(&m, &q, s, &err), &err);
            const double h = (double)m.hidden;
            const double head = 6 * h * (double)m.vocab / (72 * h * h + 12 * 2048 * h);
            const double got = largest(&m, s, pp, head);
            int64_t sum = 0, before = 0;
            for (int32_t i = 0; i < pp; i++) {
                assert_int_equal(s[i].first_layer, sum);
                sum += s[i].n_layers;
                if (i > 0 && i < pp - 1) assert_in_range(s[i].n_layers - before, 0, 1);
                before = s[i].n_layers;
            }
            assert_int_equal(sum, m.n_layers);
            for (int64_t last = 0; last <= m.n_layers && pp > 1; last++) {
                const double most = ceil((double)(m.n_layers - last) / (pp - 1));
                if (fmax(most, (double)last + head) < got - 1e-9)
                    fail_msg("%s P=%d: the largest stage has %.3f layers, %lld on the last one "
                             "would be better",
                             names[n], pp, got, (long long)last);
            }
        }
    const model_desc m = preset("gpt2");
    const layer_request both = {
        .n_stages = 4, .pp = 4, .redistribute = true, .seq_len = 64, .layout = "Et|t|t|tL"};
    stage_desc s[4];
    td_err err = {0};
    T_FAILS(layers_assign(&m, &both, s, &err), TD_EUSAGE, &err, "give one");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(test_rows),  T_TEST(test_parameters),    T_TEST(test_bytes),
        T_TEST(test_flops), T_TEST(test_redistributed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
