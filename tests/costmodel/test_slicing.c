/* Slice lengths: the equal-cost partition against the published code's numbers, the programme
 * against published optima and, on small random cases, against trying everything. */
#include "costmodel/slicing.h"
#include "t.h"

/* --- equal cost --- */

static model_desc gpt(int64_t layers, int64_t hidden, int64_t heads)
{
    return (model_desc){.n_layers = layers,
                        .hidden = hidden,
                        .n_heads = heads,
                        .n_kv_heads = heads,
                        .head_dim = hidden / heads,
                        .ffn = 4 * hidden};
}

static void published_partitions(void **state)
{
    (void)state;
    static const struct {
        int64_t layers, hidden, heads, len, vocab, tp;
        int32_t n;
        int64_t want[4];
    } rows[] = {
        {24, 4096, 32, 16384, 32000, 2, 4, {4930, 4238, 3776, 3440}},
        {32, 2560, 32, 16384, 50304, 1, 2, {9502, 6882}},
        {32, 2560, 32, 16384, 50304, 1, 4, {5271, 4232, 3639, 3242}},
        {32, 2560, 32, 32768, 50304, 1, 2, {20211, 12557}},
        {32, 2560, 32, 32768, 50304, 1, 4, {11944, 8268, 6731, 5825}},
        {32, 4096, 32, 32768, 51200, 8, 2, {19440, 13328}},
        {32, 4096, 32, 32768, 51200, 8, 4, {11024, 8416, 7088, 6240}},
        {32, 4096, 32, 131072, 51200, 8, 2, {86576, 44496}},
        {32, 4096, 32, 131072, 51200, 8, 4, {55712, 30872, 24064, 20424}},
        {32, 4096, 32, 131072, 32768, 8, 4, {55880, 30816, 24008, 20368}},
        {40, 5120, 40, 65536, 51200, 8, 2, {40608, 24928}},
        {40, 5120, 40, 65536, 51200, 8, 4, {24136, 16480, 13368, 11552}},
        {64, 6144, 64, 65536, 51200, 8, 2, {40048, 25488}},
        {64, 6144, 64, 65536, 51200, 8, 4, {23424, 16624, 13640, 11848}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const model_desc m = gpt(rows[i].layers, rows[i].hidden, rows[i].heads);
        const slicing_flops f = slicing_flops_of(&m, rows[i].vocab);
        int64_t got[4] = {0};
        td_err err = {0};
        T_OK(slicing_equal(&f, rows[i].len, rows[i].n, rows[i].tp, got, &err), &err);
        for (int32_t k = 0; k < rows[i].n; k++)
            if (got[k] != rows[i].want[k])
                fail_msg("row %zu, slice %d: %lld, not %lld", i, k, (long long)got[k],
                         (long long)rows[i].want[k]);
    }
}

/* Even cuts are off by 1.25 to 1.54 where attention grows; equal-cost ones by a token's rounding.
 */
static void imbalance(void **state)
{
    (void)state;
    static const struct {
        int64_t layers, hidden, heads, len, vocab;
        double even;
    } rows[] = {{32, 2560, 32, 16384, 50304, 1.25},
                {32, 2560, 32, 32768, 50304, 1.37},
                {32, 4096, 32, 65536, 51200, 1.42},
                {32, 4096, 32, 131072, 51200, 1.54}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const model_desc m = gpt(rows[i].layers, rows[i].hidden, rows[i].heads);
        const slicing_flops f = slicing_flops_of(&m, rows[i].vocab);
        const int64_t n = rows[i].len, q = n / 4;
        const double mean = slicing_flops_between(&f, 0, n) / 4;
        T_CLOSE(slicing_flops_between(&f, 3 * q, n) / mean, rows[i].even, 0, 0.005);
        int64_t got[4], from = 0;
        td_err err = {0};
        T_OK(slicing_equal(&f, n, 4, 1, got, &err), &err);
        for (int32_t k = 0; k < 4; from += got[k++])
            T_CLOSE(slicing_flops_between(&f, from, from + got[k]) / mean, 1, 0, 1e-3);
    }
}

static void equal_random(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(3);
    for (int n = 0; n < 500; n++) {
        const slicing_flops f = {td_rng_unit(&rng), 1 + 1e3 * (double)td_rng_below(&rng, 3)};
        const int64_t len = 1 + td_rng_below(&rng, 5000), multiple = 1 + td_rng_below(&rng, 9);
        const int32_t s = 1 + (int32_t)td_rng_below(&rng, 12);
        int64_t got[12] = {0}, sum = 0;
        td_err err = {0};
        if (slicing_equal(&f, len, s, multiple, got, &err) != TD_OK) {
            assert_true(len < 12 * s * multiple);
            continue;
        }
        for (int32_t k = 0; k < s; k++) {
            sum += got[k];
            assert_true(k == 0 || got[k] % multiple == 0);
            assert_true(k < 2 || got[k] <= got[k - 1]);
        }
        assert_int_equal(sum, len);
    }
    const slicing_flops even = {0, 7};
    int64_t got[3];
    td_err err = {0};
    T_OK(slicing_equal(&even, 12, 3, 1, got, &err), &err);
    for (int32_t k = 0; k < 3; k++) assert_int_equal(got[k], 4);
    T_FAILS(slicing_equal(&even, 2, 3, 1, got, &err), TD_EUSAGE, &err, "fewer --slices");
}

/* --- the programme --- */

static slicing_times new_times(td_arena *a, int32_t batch, int32_t units)
{
    const size_t n = (size_t)batch * (size_t)units * (size_t)units;
    return (slicing_times){.batch = batch, .units = units, .ns = TD_NEW_N(a, double, n)};
}

/* c0 + b (8 i + i^2 + 2 i j) */
static slicing_times published_times(td_arena *a, int32_t batch, double c0)
{
    const slicing_times t = new_times(a, batch, 16);
    for (int32_t b = 1; b <= batch; b++)
        for (int32_t end = 1; end <= 16; end++)
            for (int32_t i = 1; i <= end; i++)
                *slicing_time(&t, b, i, end) = c0 + b * (8 * i + i * i + 2 * i * (end - i));
    return t;
}

static slicing best(td_arena *a, const slicing_times *t, int32_t stages)
{
    slicing s;
    td_err err = {0};
    T_OK(slicing_best(t, stages, a, &s, &err), &err);
    int32_t sequences = 0;
    double sum = 0, most = 0;
    for (int32_t g = 0; g < s.n_groups; g++) {
        int32_t end = 0;
        for (int32_t i = s.group_first[g]; i < s.group_first[g + 1]; i++) {
            end += s.length[i];
            const double x = *slicing_time(t, s.group_batch[g], s.length[i], end);
            sum += x;
            most = x > most ? x : most;
        }
        assert_int_equal(end, t->units);
        sequences += s.group_batch[g];
    }
    assert_int_equal(sequences, t->batch);
    T_CLOSE(s.latency_ns, sum + (stages - 1) * most, 1e-12, 0);
    return s;
}

static void published_optima(void **state)
{
    static const struct {
        int32_t batch, stages;
        double c0, want;
        int32_t groups, slices; /* 0: any */
    } rows[] = {
        {1, 1, 40, 424, 1, 1},   {1, 2, 40, 688, 1, 3},   {1, 4, 40, 965, 1, 5},
        {2, 4, 40, 1523, 0, 0},  {2, 8, 40, 2057, 0, 0},  {2, 16, 40, 2928, 0, 0},
        {4, 4, 40, 2568, 4, 0},  {4, 8, 40, 3191, 0, 0},  {4, 16, 40, 4236, 0, 0},
        {3, 2, 200, 2336, 0, 0}, {3, 4, 200, 3497, 1, 4}, {3, 8, 200, 5180, 3, 6},
        {4, 2, 200, 2904, 2, 2}, {4, 4, 200, 4088, 0, 0}, {4, 8, 200, 5964, 0, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const slicing_times t = published_times(*state, rows[i].batch, rows[i].c0);
        const slicing s = best(*state, &t, rows[i].stages);
        T_CLOSE(s.latency_ns, rows[i].want, 0, 1e-9);
        if (rows[i].groups > 0) assert_int_equal(s.n_groups, rows[i].groups);
        if (rows[i].slices > 0) assert_int_equal(s.n_slices, rows[i].slices);
    }
    static const double uniform[3][5] = {
        {424, 464, 544, 704, 1024}, {848, 760, 728, 820, 1103}, {1696, 1352, 1096, 1052, 1261}};
    const slicing_times t = published_times(*state, 1, 40);
    for (int k = 0; k < 3; k++)
        for (int n = 0; n < 5; n++) {
            slicing s;
            td_err err = {0};
            T_OK(slicing_uniform(&t, 1 << k, 1, 1 << n, *state, &s, &err), &err);
            T_CLOSE(s.latency_ns, uniform[k][n], 0, 1e-9);
        }
}

/* Every way to group the sequences and cut the groups. */
typedef struct attempt {
    const slicing_times *t;
    int32_t stages;
    double best;
} attempt;

static void try_slices(attempt *at, int32_t b, int32_t end, int32_t left, double sum, double most);

static void try_groups(attempt *at, int32_t left, double sum, double most)
{
    if (left == 0) {
        at->best = fmin(at->best, sum + (at->stages - 1) * most);
        return;
    }
    for (int32_t b = 1; b <= left; b++) try_slices(at, b, at->t->units, left - b, sum, most);
}

static void try_slices(attempt *at, int32_t b, int32_t end, int32_t left, double sum, double most)
{
    if (end == 0) {
        try_groups(at, left, sum, most);
        return;
    }
    for (int32_t k = 1; k <= end; k++) {
        const double x = *slicing_time(at->t, b, k, end);
        try_slices(at, b, end - k, left, sum + x, fmax(most, x));
    }
}

static void brute_force(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(21);
    for (int n = 0; n < 300; n++) {
        td_arena *const a = td_arena_new();
        const int32_t batch = 1 + (int32_t)td_rng_below(&rng, 3);
        const int32_t units = 1 + (int32_t)td_rng_below(&rng, batch == 1 ? 11 : batch == 2 ? 6 : 4);
        const slicing_times t = new_times(a, batch, units);
        for (int32_t b = 1; b <= batch; b++)
            for (int32_t end = 1; end <= units; end++)
                for (int32_t k = 1; k <= end; k++)
                    *slicing_time(&t, b, k, end) =
                        n % 2 == 0 ? (double)td_rng_below(&rng, 30)
                                   : 5 * td_rng_unit(&rng) + b * k * (1 + 0.1 * end);
        attempt at = {
            .t = &t, .stages = 1 + (int32_t)td_rng_below(&rng, 9), .best = (double)INFINITY};
        try_groups(&at, batch, 0, 0);
        const slicing s = best(a, &t, at.stages);
        T_CLOSE(s.latency_ns, at.best, 1e-12, 1e-12);
        td_arena_free(a);
    }
}

/* The least longest slice, then the least sum, of all ways to cut into n. */
static void try_exactly(const slicing_times *t, int32_t end, int32_t n, double most, double sum,
                        double best[2])
{
    if (end == 0 && n == 0 && (most < best[0] || (most == best[0] && sum < best[1]))) {
        best[0] = most;
        best[1] = sum;
    }
    for (int32_t k = 1; n > 0 && k <= end; k++) {
        const double x = *slicing_time(t, 1, k, end);
        try_exactly(t, end - k, n - 1, fmax(most, x), sum + x, best);
    }
}

static void balanced(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(23);
    for (int i = 0; i < 200; i++) {
        td_arena *const a = td_arena_new();
        const slicing_times t = new_times(a, 1, 1 + (int32_t)td_rng_below(&rng, 11));
        const int32_t n = 1 + (int32_t)td_rng_below(&rng, t.units);
        for (int32_t end = 1; end <= t.units; end++)
            for (int32_t k = 1; k <= end; k++)
                *slicing_time(&t, 1, k, end) = 1 + (double)td_rng_below(&rng, 40);
        double want[2] = {(double)INFINITY, (double)INFINITY};
        try_exactly(&t, t.units, n, 0, 0, want);
        slicing s;
        td_err err = {0};
        T_OK(slicing_balanced(&t, 3, 1, n, a, &s, &err), &err);
        assert_int_equal(s.n_slices, n);
        T_CLOSE(s.max_ns, want[0], 0, 0);
        T_CLOSE(s.sum_ns, want[1], 0, 1e-9);
        T_FAILS(slicing_balanced(&t, 3, 1, t.units + 1, a, &s, &err), TD_EUSAGE, &err, "at least");
        td_arena_free(a);
    }
}

/* 2048 tokens at granularity 8 through 48 stages, with an efficiency that falls for short slices:
 * well under a second. */
static void large_is_fast(void **state)
{
    const slicing_times t = new_times(*state, 2, 256);
    for (int32_t b = 1; b <= 2; b++)
        for (int32_t end = 1; end <= 256; end++)
            for (int32_t k = 1; k <= end; k++)
                *slicing_time(&t, b, k, end) =
                    0.3e6 + b * k * (3e4 + 40.0 * end) * (1 + 20.0 / (k + 3));
    const int64_t begin = td_now_ns();
    const slicing s = best(*state, &t, 48);
    const double ms = (double)(td_now_ns() - begin) / 1e6;
    print_message("%d slices, %.3f ms, found in %.1f ms\n", s.n_slices, s.latency_ns / 1e6, ms);
    assert_true(ms < 5000); /* under sanitizers and load too */
    assert_true(s.n_slices > 2);
}

static void refused(void **state)
{
    slicing s;
    td_err err = {0};
    const slicing_times t = new_times(*state, 1, 3);
    T_FAILS(slicing_best(&t, 0, *state, &s, &err), TD_EUSAGE, &err, "needs a stage");
    T_FAILS(slicing_uniform(&t, 2, 1, 4, *state, &s, &err), TD_EUSAGE, &err, "at most 3");
    *slicing_time(&t, 1, 2, 3) = (double)NAN;
    T_FAILS(slicing_best(&t, 2, *state, &s, &err), TD_EUSAGE, &err, "2 units behind 1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(published_partitions), T_TEST(imbalance),   T_TEST(equal_random),
        T_TEST(published_optima),     T_TEST(brute_force), T_TEST(balanced),
        T_TEST(large_is_fast),        T_TEST(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
