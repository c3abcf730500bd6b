/* First weights. */
#include "exec/exec.h"

#include "t.h"

#include <string.h>

/* Tensors of many pieces, by threads: the numbers of one stream drawn in order; shards hold rows of
 * it and then zeros. */
static void test_first_weights(void **state)
{
    (void)state;
    const model_desc m = {.n_layers = 1, .hidden = 64, .vocab = 70001};
    enum { ROWS = 70001, WORDS = 40000, FIRST = 35000 };
    const param_tensor table = {.name = "table",
                                .kind = PARAM_TOKEN_EMBEDDING,
                                .layer = -1,
                                .rows = ROWS,
                                .cols = 64,
                                .offset = 16};
    param_tensor part = table;
    part.rows = WORDS;
    const int64_t n = ROWS * 64;
    float *const whole = test_malloc((size_t)(n + 16) * sizeof *whole);
    float *const shard = test_malloc((size_t)(WORDS * 64 + 16) * sizeof *shard);
    params_init(&m, &table, 1, 9, whole);
    params_init_shard(&m, &part, 1, 9, FIRST, ROWS - FIRST, shard);
    uint64_t h = 0xcbf29ce484222325u ^ 9;
    for (const char *c = table.name; *c != '\0'; c++) h = (h ^ (uint8_t)*c) * 0x100000001b3u;
    td_rng r = td_rng_seed(h);
    int64_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        const float x = (float)(0.02 * td_rng_normal(&r));
        bad += memcmp(&x, &whole[16 + i], sizeof x) != 0;
    }
    assert_int_equal(bad, 0);
    assert_memory_equal(shard + 16, whole + 16 + FIRST * 64, (ROWS - FIRST) * 64 * sizeof *shard);
    for (int64_t i = (ROWS - FIRST) * 64; i < WORDS * 64; i++) bad += shard[16 + i] != 0;
    assert_int_equal(bad, 0);
    test_free(whole);
    test_free(shard);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_first_weights)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
