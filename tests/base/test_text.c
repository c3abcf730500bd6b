/* Numbers, units, lists and near names. Not pinned here: the exact wording of messages beyond the
 * words that a user needs. */
#include "t.h"

#include "base/text.h"

static void whole_numbers(void **state)
{
    (void)state;
    td_err err = {0};
    int64_t v = 0;
    T_OK(td_parse_i64("-42", -100, 100, "--x", &v, &err), &err);
    assert_int_equal(v, -42);
    T_OK(td_parse_i64("9223372036854775807", 0, INT64_MAX, "--x", &v, &err), &err);
    assert_true(v == INT64_MAX);
    v = 7;
    static const char *const bad[] = {"", " 1", "1 ", "1.5", "0x10", "1e3", "one", "--1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        T_FAILS(td_parse_i64(bad[i], 0, 99, "--x", &v, &err), TD_EUSAGE, &err, "--x");
    T_FAILS(td_parse_i64("9223372036854775808", 0, INT64_MAX, "--x", &v, &err), TD_EUSAGE, &err,
            "range");
    T_FAILS(td_parse_i64("100", 0, 99, "--x", &v, &err), TD_EUSAGE, &err, "from 0 to 99");
    assert_int_equal(v, 7);
}

static void real_numbers(void **state)
{
    (void)state;
    td_err err = {0};
    double v = 0;
    T_OK(td_parse_f64("2.5e-3", 0, 1, "--x", &v, &err), &err);
    T_CLOSE(v, 0.0025, 0, 0);
    T_OK(td_parse_f64(".5", 0, 1, "--x", &v, &err), &err);
    T_CLOSE(v, 0.5, 0, 0);
    static const char *const bad[] = {"", "nan", "inf", "0x1p3", "1,5", "1 ", "e5", "."};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        T_FAILS(td_parse_f64(bad[i], -1e9, 1e9, "--x", &v, &err), TD_EUSAGE, &err, "--x");
    T_FAILS(td_parse_f64("1e999", -1e300, 1e300, "--x", &v, &err), TD_EUSAGE, &err, "range");
    T_CLOSE(v, 0.5, 0, 0);
}

static void bytes_with_units(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t bytes;
    } good[] = {
        {"1024", 1024},
        {"80GiB", (int64_t)80 << 30},
        {"80GB", 80000000000},
        {"1.5 KiB", 1536},
        {"512kB", 512000},
        {"3tib", (int64_t)3 << 40},
        {"0", 0},
    };
    td_err err = {0};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        int64_t v = -1;
        T_OK(td_parse_bytes(good[i].text, "--m", &v, &err), &err);
        assert_true(v == good[i].bytes);
    }
    int64_t v = -1;
    static const char *const bad[] = {"", "80G", "GiB", "-1GiB", "80 GiB x", "99999999TiB"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        T_FAILS(td_parse_bytes(bad[i], "--m", &v, &err), TD_EUSAGE, &err, "--m");
    assert_int_equal(v, -1);
}

static void lists(void **state)
{
    td_err err = {0};
    int64_t *v = NULL;
    size_t n = 0;
    T_OK(td_parse_i64_list(*state, "5, 0-3 2*7,-1", "--l", &v, &n, &err), &err);
    static const int64_t all[] = {5, 0, 1, 2, 3, 2, 2, 2, 2, 2, 2, 2, -1};
    assert_int_equal(n, sizeof all / sizeof *all);
    for (size_t i = 0; i < n; i++) assert_int_equal(v[i], all[i]);
    static const char *const bad[] = {"",
                                      " ",
                                      "1,",
                                      "1;2",
                                      "3-1",
                                      "a",
                                      "1,,2",
                                      "1*99999999999",
                                      "0-9223372036854775807",
                                      "99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        T_FAILS(td_parse_i64_list(*state, bad[i], "--l", &v, &n, &err), TD_EUSAGE, &err, "--l");
}

/* Any list printed as commas is read back. */
static void lists_round_trip(void **state)
{
    td_rng r = td_rng_seed(11);
    td_err err = {0};
    for (int round = 0; round < 200; round++) {
        int64_t items[20];
        const size_t len = 1 + (size_t)td_rng_below(&r, 20);
        td_text t = {0};
        for (size_t i = 0; i < len; i++) {
            items[i] = td_rng_below(&r, 2000) - 1000;
            td_text_addf(&t, "%s%lld", i > 0 ? "," : "", (long long)items[i]);
        }
        int64_t *v = NULL;
        size_t n = 0;
        T_OK(td_parse_i64_list(*state, t.s, "--l", &v, &n, &err), &err);
        assert_int_equal(n, len);
        assert_memory_equal(v, items, len * sizeof *items);
        td_text_free(&t);
    }
}

static void printed(void **state)
{
    (void)state;
    char b[40];
    assert_string_equal(td_print_bytes(b, sizeof b, 1023), "1023 B");
    assert_string_equal(td_print_bytes(b, sizeof b, 1024), "1.00 KiB");
    assert_string_equal(td_print_bytes(b, sizeof b, 19541760000), "18.2 GiB");
    assert_string_equal(td_print_bytes(b, sizeof b, ((int64_t)1 << 20) - 1), "1.00 MiB");
    assert_string_equal(td_print_ns(b, sizeof b, 999), "999 ns");
    assert_string_equal(td_print_ns(b, sizeof b, 41800000), "41.8 ms");
    assert_string_equal(td_print_ns(b, sizeof b, 999999), "1.00 ms");
    assert_string_equal(td_print_ns(b, sizeof b, 7200000000000), "7200 s");
    assert_string_equal(td_print_count(b, sizeof b, 12), "12");
    assert_string_equal(td_print_count(b, sizeof b, 12.4e6), "12.4 M");
}

/* The printed value is within its last digit of the true one, whatever the size. */
static void printed_is_close(void **state)
{
    (void)state;
    td_rng r = td_rng_seed(3);
    td_err err = {0};
    for (int i = 0; i < 2000; i++) {
        const int64_t shift = 3 + td_rng_below(&r, 60);
        const int64_t v = (int64_t)(td_rng_u64(&r) >> shift);
        char b[40];
        int64_t back = 0;
        T_OK(td_parse_bytes(td_print_bytes(b, sizeof b, v), "printed", &back, &err), &err);
        T_CLOSE((double)back, (double)v, 0.0051, 0.5);
    }
}

static void nearest(void **state)
{
    (void)state;
    static const char *const names[] = {"gpipe", "1f1b", "interleaved-1f1b", "zb-h1"};
    assert_string_equal(td_nearest("gpip", names, 4), "gpipe");
    assert_string_equal(td_nearest("GPIPE", names, 4), "gpipe");
    assert_string_equal(td_nearest("1fb1", names, 4), "1f1b");
    assert_string_equal(td_nearest("interleaved", names, 4), "interleaved-1f1b");
    assert_null(td_nearest("dualpipe", names, 4));
    assert_null(td_nearest("", names, 4));
}

/* One edit away from a name of five or more letters always finds that name. */
static void nearest_undoes_one_edit(void **state)
{
    (void)state;
    static const char *const names[] = {"protocol", "schedule", "microbatches", "lookahead"};
    td_rng r = td_rng_seed(5);
    for (int i = 0; i < 500; i++) {
        const char *const name = names[td_rng_below(&r, 4)];
        const size_t n = strlen(name), at = (size_t)td_rng_below(&r, (int64_t)n);
        char word[40];
        memcpy(word, name, n + 1);
        switch (td_rng_below(&r, 3)) {
        case 0: word[at] = 'q'; break;
        case 1: memmove(word + at, word + at + 1, n - at); break;
        default: memmove(word + at + 1, word + at, n - at + 1); word[at] = 'q';
        }
        assert_string_equal(td_nearest(word, names, 4), name);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(whole_numbers),           T_TEST(real_numbers),
        T_TEST(bytes_with_units),        T_TEST(lists),
        T_TEST(lists_round_trip),        T_TEST(printed),
        T_TEST(printed_is_close),        T_TEST(nearest),
        T_TEST(nearest_undoes_one_edit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
