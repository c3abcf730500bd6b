/* What passes keep for each other: the parts of a split backward hold, between them, what a whole
 * one keeps, and no more than W needs outlives I. */
#include "costmodel/sizes.h"

#include "t.h"

#include <stddef.h>
#include <string.h>

static model_desc load(const char *name)
{
    td_err err = {0};
    model_desc m;
    T_OK(model_load(name, &m, &err), &err);
    return m;
}

static int64_t bytes_of(const sizes *z, size_kind kind, int32_t stage, int64_t len)
{
    td_err err = {0};
    int64_t n = 0;
    T_OK(sizes_bytes(z, kind, stage, len, 0, &n, &err), &err);
    return n;
}

/* Three stages: with the embedding, with layers alone, with the head. */
static const stage_desc three[] = {{.first_layer = 0, .n_layers = 2, .embedding = true},
                                   {.first_layer = 2, .n_layers = 3},
                                   {.first_layer = 5, .n_layers = 3, .head = true}};

static sizes sizes_of(const model_desc *m, recompute_mode mode, data_type dtype)
{
    return (sizes){
        .model = m,
        .stages = three,
        .n_stages = 3,
        .chunks = 1,
        .run = {
            .micro_batch = 2, .seq_len = 64, .tp = 1, .dp = 1, .dtype = dtype, .recompute = mode}};
}

static void test_parts_make_the_whole(void **state)
{
    (void)state;
    static const char *const names[] = {"tiny-gpt2", "tiny-llama", "tiny-bert"};
    for (int i = 0; i < 3; i++)
        for (int mode = RECOMPUTE_NONE; mode <= RECOMPUTE_FULL; mode++) {
            const model_desc m = load(names[i]);
            const sizes z = sizes_of(&m, (recompute_mode)mode, TYPE_FP32);
            for (int32_t s = 0; s < 3; s++) {
                const int64_t whole = bytes_of(&z, SIZE_STASH, s, 64);
                const int64_t for_i = bytes_of(&z, SIZE_STASH_I, s, 64);
                const int64_t for_w = bytes_of(&z, SIZE_STASH_W, s, 64);
                const int64_t of_i = bytes_of(&z, SIZE_WSTASH, s, 64);
                assert_int_equal(for_i + for_w, whole);
                assert_int_equal(of_i == 0, mode == RECOMPUTE_NONE);
                /* of a slice q gives way to nothing: its gradient has k's and v's beside it */
                if (i < 2 && mode == RECOMPUTE_NONE)
                    assert_true(bytes_of(&z, SIZE_WSTASH, s, 32) > 0);
            }
        }
}

/* 32 s b h bytes a layer in 2-byte types, from F until W and no more after I (Qi et al. 2024, table
 * 1): inputs of the products h + h + h + 4h, gradients of their outputs 3h + h + 4h + h. */
static void test_weight_passes_need_32sbh(void **state)
{
    (void)state;
    const model_desc m = load("tiny-gpt2");
    td_err err = {0};
    for (int mode = RECOMPUTE_NONE; mode <= RECOMPUTE_FULL; mode++) {
        const sizes z = sizes_of(&m, (recompute_mode)mode, TYPE_BF16);
        stash_layout from_f, from_i;
        T_OK(stash_layout_of(&z, 1, 64, STASH_F_TO_W, &from_f, &err), &err);
        T_OK(stash_layout_of(&z, 1, 64, STASH_I_TO_W, &from_i, &err), &err);
        const int64_t sbh = 2 * 64 * m.hidden;
        assert_int_equal(from_f.kept.bytes + from_i.kept.bytes, 30 * sbh);
        assert_int_equal(from_f.input_stride, 2 * sbh); /* the gradient behind each layer */
    }
}

/* Every tensor of the whole lies in one part and only one. */
static void test_each_tensor_has_one_place(void **state)
{
    (void)state;
    static const char *const names[] = {"tiny-gpt2", "tiny-llama", "tiny-bert"};
    for (int i = 0; i < 3; i++)
        for (int32_t s = 0; s < 3; s++) {
            const model_desc m = load(names[i]);
            const sizes z = sizes_of(&m, RECOMPUTE_NONE, TYPE_FP32);
            td_err err = {0};
            stash_layout whole, for_i, for_w;
            T_OK(stash_layout_of(&z, s, 64, STASH_F_TO_B, &whole, &err), &err);
            T_OK(stash_layout_of(&z, s, 64, STASH_F_TO_I, &for_i, &err), &err);
            T_OK(stash_layout_of(&z, s, 64, STASH_F_TO_W, &for_w, &err), &err);
            enum { N = offsetof(layer_layout, bytes) / sizeof(int64_t) };
            int64_t a[N], b[N], c[N];
            memcpy(a, &whole.kept, sizeof a);
            memcpy(b, &for_i.kept, sizeof b);
            memcpy(c, &for_w.kept, sizeof c);
            for (size_t k = 0; k < N; k++) assert_int_equal((b[k] >= 0) + (c[k] >= 0), a[k] >= 0);
            assert_int_equal((for_i.final_out >= 0) + (for_w.final_out >= 0), whole.final_out >= 0);
            assert_int_equal((for_i.dlogits >= 0) + (for_w.dlogits >= 0), whole.dlogits >= 0);
            assert_int_equal(for_i.n_levels + for_w.n_levels, whole.n_levels);
        }
}

/* Without a model a split microbatch counts as one activation from F to W. */
static void test_unit_activations(void **state)
{
    (void)state;
    const sizes z = {.n_stages = 4, .chunks = 1, .run = {.seq_len = 8}};
    assert_int_equal(bytes_of(&z, SIZE_STASH, 0, 8), UNIT_ACTIVATION_BYTES);
    assert_int_equal(bytes_of(&z, SIZE_STASH_W, 0, 8), UNIT_ACTIVATION_BYTES);
    assert_int_equal(bytes_of(&z, SIZE_STASH_W, 0, 2), UNIT_ACTIVATION_BYTES / 4);
    assert_int_equal(bytes_of(&z, SIZE_STASH_I, 0, 8), 0);
    assert_int_equal(bytes_of(&z, SIZE_WSTASH, 0, 8), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts_make_the_whole),
        cmocka_unit_test(test_weight_passes_need_32sbh),
        cmocka_unit_test(test_each_tensor_has_one_place),
        cmocka_unit_test(test_unit_activations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
