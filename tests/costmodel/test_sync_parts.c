/* How a stage's gradients and its optimizer state are shared among the copies of the stage. */
#include "t.h"

#include "costmodel/sizes.h"

static const struct {
    model_family family;
    bool tied;
} kinds[] = {{MODEL_GPT2, true}, {MODEL_GPT2, false}, {MODEL_BERT, true}, {MODEL_LLAMA, true}};

static model_desc model_of(size_t kind, int64_t vocab)
{
    return (model_desc){.family = kinds[kind].family,
                        .n_layers = 4,
                        .hidden = 24,
                        .n_heads = 2,
                        .n_kv_heads = 2,
                        .head_dim = 12,
                        .ffn = 40,
                        .vocab = vocab,
                        .max_positions = 8,
                        .tied = kinds[kind].tied,
                        .learned_positions = true};
}

/* Parts lie one behind the other, cover the gradients, begin where they can be named; the tied
 * table is a part of its own, equally long on both ends. */
static void parts_cover(void **state)
{
    (void)state;
    for (size_t kind = 0; kind < 4; kind++)
        for (int64_t vocab = 29; vocab < 50; vocab += 7)
            for (int32_t n = 1; n <= 4; n++) {
                const model_desc m = model_of(kind, vocab);
                stage_desc stages[4];
                for (int32_t i = 0; i < n; i++)
                    stages[i] = (stage_desc){.first_layer = 4 / n * i,
                                             .n_layers = 4 / n,
                                             .embedding = i == 0,
                                             .head = i == n - 1};
                sizes z = {.model = &m, .stages = stages, .n_stages = n, .run = {.tp = 1, .dp = 3}};
                int64_t table[2] = {0};
                for (int sharded = 0; sharded < 2; sharded++)
                    for (int32_t i = 0; i < n; i++) {
                        z.run.zero1 = sharded == 1;
                        sync_part p[SYNC_PARTS_MAX];
                        const int32_t parts = stage_sync_parts(&z, i, p);
                        int64_t at = 0, weights = 0;
                        for (int32_t k = 0; k < parts; k++) {
                            assert_int_equal(p[k].first, at);
                            assert_int_equal(p[k].first % SYNC_ALIGN, 0);
                            assert_true(p[k].elements > 0);
                            at += p[k].elements;
                            weights += p[k].weights ? p[k].elements : 0;
                        }
                        assert_int_equal(at, stage_grad_elements(&m, &stages[i]));
                        if (!sharded) assert_int_equal(parts, 1);
                        if (sharded)
                            assert_int_equal(weights, stage_param_elements(&m, &stages[i]));
                        if (sharded && i == 0) table[0] = p[0].elements;
                        if (sharded && i == n - 1) table[1] = p[parts - 1].elements;
                    }
                if (!m.tied) continue;
                assert_int_equal(table[0], (vocab * 24 + 15) / 16 * 16);
                assert_int_equal(table[0], table[1]);
            }
}

/* One optimizer state for all copies: replicas, and twins where a schedule has them. */
static void one_state_for_all_copies(void **state)
{
    (void)state;
    td_err err = {0};
    const model_desc m = model_of(1, 32);
    const stage_desc stage = {.n_layers = 2, .first_layer = 1};
    sizes z = {.model = &m, .stages = &stage, .n_stages = 1, .run = {.tp = 1, .dp = 4}};
    int64_t whole = 0, part = 0;
    T_OK(sizes_bytes(&z, SIZE_OPTIMIZER, 0, 0, 0, &whole, &err), &err);
    assert_int_equal(whole, 8 * stage_param_elements(&m, &stage));
    assert_int_equal(sizes_optimizer_shards(&z), 1);
    z.run.zero1 = true;
    T_OK(sizes_bytes(&z, SIZE_OPTIMIZER, 0, 0, 0, &part, &err), &err);
    assert_int_equal(part, whole / 4);
    z.twins = 2;
    T_OK(sizes_bytes(&z, SIZE_OPTIMIZER, 0, 0, 0, &part, &err), &err);
    assert_int_equal(part, whole / 8);
    z.run.dp = 1;
    T_OK(sizes_bytes(&z, SIZE_OPTIMIZER, 0, 0, 0, &part, &err), &err);
    assert_int_equal(part, whole / 2);
    z.run.dtype = TYPE_BF16; /* and fp32 master weights */
    T_OK(sizes_bytes(&z, SIZE_OPTIMIZER, 0, 0, 0, &part, &err), &err);
    assert_int_equal(part, whole / 2 / 8 * 12);
    z.twins = 3; /* the first members own an element more */
    z.run.dtype = TYPE_FP32;
    T_OK(sizes_bytes(&z, SIZE_OPTIMIZER, 0, 0, 0, &part, &err), &err);
    assert_int_equal(part, (whole / 8 + 2) / 3 * 8);
}

static bool is_norm(int32_t kind)
{
    return kind == PARAM_NORM1_WEIGHT || kind == PARAM_NORM1_BIAS || kind == PARAM_NORM2_WEIGHT ||
           kind == PARAM_NORM2_BIAS || kind == PARAM_FINAL_NORM_WEIGHT ||
           kind == PARAM_FINAL_NORM_BIAS;
}

/* Norms lie together, nothing else among them, no tensors overlap, and the token table is the
 * first tensor and a head's the last. */
static void norms_lie_together(void **state)
{
    (void)state;
    for (size_t kind = 0; kind < 4; kind++)
        for (int rms = 0; rms < 2; rms++)
            for (int ends = 0; ends < 4; ends++)
                for (int64_t layers = 0; layers < 3; layers++) {
                    enum { MOST = 64 };
                    model_desc m = model_of(kind, 31);
                    m.rms_norm = rms == 1;
                    const stage_desc s = {
                        .n_layers = layers, .embedding = ends & 1, .head = ends & 2};
                    param_tensor t[MOST];
                    int64_t first = 0, inside = 0;
                    const int64_t norms = stage_norm_elements(&m, &s, &first);
                    const int64_t n = stage_params(&m, &s, t, MOST);
                    const int64_t all = stage_param_elements(&m, &s);
                    assert_true(n <= MOST);
                    for (int64_t i = 0; i < n; i++) {
                        const int64_t count = t[i].rows * t[i].cols, at = t[i].offset;
                        const bool in = at >= first && at + count <= first + norms;
                        assert_int_equal(in, is_norm(t[i].kind));
                        assert_int_equal(at % SYNC_ALIGN, 0);
                        assert_true(at + count <= all);
                        inside += in ? (count + SYNC_ALIGN - 1) / SYNC_ALIGN * SYNC_ALIGN : 0;
                        if (t[i].kind == PARAM_TOKEN_EMBEDDING) assert_int_equal(at, 0);
                        if (t[i].kind == PARAM_HEAD_WEIGHT) assert_true(at + count + 16 > all);
                        for (int64_t j = 0; j < i; j++)
                            assert_true(t[j].offset >= at + count ||
                                        at >= t[j].offset + t[j].rows * t[j].cols);
                    }
                    assert_int_equal(inside, norms);
                }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_cover),
        cmocka_unit_test(norms_lie_together),
        cmocka_unit_test(one_state_for_all_copies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
