/* Errors, arenas, growable text, random numbers, files. */
#include "t.h"

#include <stdlib.h>
#include <unistd.h>

static void errors_gain_context(void **state)
{
    (void)state;
    td_err err = {0};
    assert_int_equal(td_fail(&err, TD_EPARSE, "bandwidth \"%d\"", 300), TD_EPARSE);
    assert_int_equal(td_wrap(&err, "%s:%d", "c.json", 14), TD_EPARSE);
    assert_string_equal(err.msg, "c.json:14: bandwidth \"300\"");
    assert_int_equal(td_fail(NULL, TD_EIO, "unseen"), TD_EIO);
    char much[2000];
    memset(much, 'x', sizeof much - 1);
    much[sizeof much - 1] = '\0';
    assert_int_equal(td_fail(&err, TD_EIO, "%s", much), TD_EIO);
    for (int i = 0; i < 5; i++) (void)td_wrap(&err, "context %d", i);
    assert_true(strlen(err.msg) < sizeof err.msg);
    assert_int_equal(strncmp(err.msg, "context 4: context 3: ", 22), 0);
}

static void messages_are_one_line(void **state)
{
    (void)state;
    td_err err = {0};
    (void)td_fail(&err, TD_EPARSE, "key \"%s\": unknown", "la\nch\t\x7f\x01us");
    assert_string_equal(err.msg, "key \"la?ch???us\": unknown");
    (void)td_wrap(&err, "%s:1", "a\rb.json");
    assert_string_equal(err.msg, "a?b.json:1: key \"la?ch???us\": unknown");
}

static void exit_codes(void **state)
{
    (void)state;
    static const struct {
        td_status status;
        int code;
    } want[] = {{TD_OK, 0},      {TD_EPLAN, 1},  {TD_EMISMATCH, 1}, {TD_EPARSE, 2}, {TD_EUSAGE, 2},
                {TD_EDEVICE, 3}, {TD_ENOMEM, 3}, {TD_EIO, 3},       {TD_EINTR, 130}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        assert_int_equal(td_exit_code(want[i].status), want[i].code);
}

static bool all_are(const unsigned char *p, size_t n, int value)
{
    size_t same = 0;
    for (size_t i = 0; i < n; i++) same += p[i] == value;
    return same == n;
}

/* Every allocation is zeroed, aligned and disjoint from the others, whatever the sizes; also of
 * memory that is handed out again. */
static void arena_law(void **state)
{
    enum { ITEMS = 400, ROUNDS = 4 };
    td_rng r = td_rng_seed(1);
    unsigned char *p[ITEMS];
    size_t n[ITEMS];
    for (int round = 0; round < ROUNDS; round++) {
        size_t sum = 0;
        td_arena_reset(*state);
        assert_int_equal(td_arena_used(*state), 0);
        for (int i = 0; i < ITEMS; i++) {
            n[i] = (size_t)td_rng_below(&r, i % 40 == 0 ? 3000000 : 5000);
            sum += n[i];
            p[i] = td_alloc(*state, n[i], 1);
            assert_non_null(p[i]);
            assert_int_equal((uintptr_t)p[i] % 64, 0);
            assert_true(all_are(p[i], n[i], 0));
            memset(p[i], i % 255 + 1, n[i]);
        }
        for (int i = 0; i < ITEMS; i++) assert_true(all_are(p[i], n[i], i % 255 + 1));
        assert_true(td_arena_used(*state) >= sum);
    }
}

/* What a reset took back is what is handed out next: no new memory of the system. */
static void reset_keeps_memory(void **state)
{
    enum { ITEMS = 50, BYTES = 100000 };
    unsigned char *first[ITEMS];
    size_t known = 0;
    for (int i = 0; i < ITEMS; i++) first[i] = td_alloc(*state, BYTES, 1);
    td_arena_reset(*state);
    for (int i = 0; i < ITEMS; i++) {
        const unsigned char *const p = td_alloc(*state, BYTES, 1);
        for (int k = 0; k < ITEMS; k++)
            if (p + BYTES > first[k] && p < first[k] + BYTES) {
                known++;
                break;
            }
    }
    assert_int_equal(known, ITEMS);
}

static void arena_refuses(void **state)
{
    td_arena *const a = *state;
    assert_null(td_alloc(a, SIZE_MAX, 2));
    assert_null(td_alloc(a, SIZE_MAX / 2, 1));
    assert_non_null(td_alloc(a, 0, 8));
    td_arena_fail_at(a, 3);
    assert_non_null(td_alloc(a, 1, 1));
    assert_non_null(td_alloc(a, 1, 1));
    assert_null(td_alloc(a, 1, 1));
    assert_non_null(td_alloc(a, 1, 1));
    td_arena_fail_at(a, 1);
    assert_null(td_strdup(a, "text"));
    td_arena_fail_at(a, 1);
    assert_null(td_sprintf(a, "%d", 1));
}

static void growing_keeps(void **state)
{
    int *items = NULL;
    size_t cap = 0;
    td_err err = {0};
    for (size_t i = 0; i < 10000; i++) {
        T_OK(TD_GROW(*state, items, cap, i + 1, &err), &err);
        items[i] = (int)i;
    }
    for (size_t i = 0; i < 10000; i++) assert_int_equal(items[i], (int)i);
    td_arena_fail_at(*state, 1);
    T_FAILS(TD_GROW(*state, items, cap, cap + 1, &err), TD_ENOMEM, &err, "memory");
    assert_int_equal(items[9999], 9999);
}

static void products(void **state)
{
    (void)state;
    td_err err = {0};
    int64_t v = 0;
    T_OK(td_mul_i64(1 << 30, 1 << 30, &v, &err), &err);
    assert_true(v == (int64_t)1 << 60);
    T_FAILS(td_mul_i64((int64_t)1 << 32, (int64_t)1 << 31, &v, &err), TD_EUSAGE, &err, "fit");
}

static void texts(void **state)
{
    (void)state;
    td_text t = {0};
    td_text_json(&t, "a\"b\\c\n");
    td_text_xml(&t, "<x & \"y\">");
    assert_string_equal(t.s, "\"a\\\"b\\\\c\\u000a\"&lt;x &amp; &quot;y&quot;&gt;");
    const size_t before = t.len;
    td_text_addf(&t, "%0700d", 7); /* longer than the buffer that addf tries first */
    assert_int_equal(t.len, before + 700);
    assert_int_equal(strlen(t.s), t.len);
    td_text_free(&t);
    assert_null(t.s);
}

/* Reference value: splitmix64 of seed 0 starts with 0xe220a8397b1dcdaf (Vigna's splitmix64.c). */
static void random_numbers(void **state)
{
    (void)state;
    td_rng a = td_rng_seed(0), b = td_rng_seed(0), c = td_rng_seed(1);
    assert_true(a.s[0] == 0xe220a8397b1dcdafu);
    assert_true(td_rng_u64(&a) == td_rng_u64(&b));
    assert_true(td_rng_u64(&a) != td_rng_u64(&c));
    enum { N = 200000 };
    double sum = 0, squares = 0, unit = 0;
    int64_t hits[7] = {0};
    for (int i = 0; i < N; i++) {
        const double x = td_rng_normal(&a), u = td_rng_unit(&a);
        assert_true(u >= 0 && u < 1);
        sum += x;
        squares += x * x;
        unit += u;
        hits[td_rng_below(&a, 7)]++;
    }
    T_CLOSE(sum / N, 0, 0, 5 / sqrt(N));
    T_CLOSE(squares / N, 1, 0, 5 * sqrt(2.0 / N));
    T_CLOSE(unit / N, 0.5, 0, 5 * sqrt(1.0 / 12 / N));
    for (int i = 0; i < 7; i++) T_CLOSE((double)hits[i], N / 7.0, 0, 5 * sqrt(N / 7.0));
}

static void files(void **state)
{
    td_err err = {0};
    char dir[] = "/tmp/td_test_XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    (void)snprintf(path, sizeof path, "%s/file", dir);
    static const char bytes[] = "one\0two";
    T_OK(td_write_file(path, bytes, sizeof bytes, &err), &err);
    char *text = NULL;
    size_t len = 0;
    T_OK(td_read_file(*state, path, 100, &text, &len, &err), &err);
    assert_int_equal(len, sizeof bytes);
    assert_memory_equal(text, bytes, sizeof bytes);
    assert_int_equal(text[len], 0);
    T_FAILS(td_read_file(*state, path, 4, &text, &len, &err), TD_EUSAGE, &err, "larger");
    assert_int_equal(unlink(path), 0);
    T_FAILS(td_read_file(*state, path, 100, &text, &len, &err), TD_EUSAGE, &err, "cannot open");
    T_FAILS(td_read_file(*state, dir, 100, &text, &len, &err), TD_EUSAGE, &err, "directory");
    (void)snprintf(path, sizeof path, "%s/no/file", dir);
    T_FAILS(td_write_file(path, bytes, 1, &err), TD_EIO, &err, "cannot write");
    assert_int_equal(rmdir(dir), 0); /* nothing half-written stays behind */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(errors_gain_context),
        T_TEST(messages_are_one_line),
        T_TEST(exit_codes),
        T_TEST(arena_law),
        T_TEST(reset_keeps_memory),
        T_TEST(arena_refuses),
        T_TEST(growing_keeps),
        T_TEST(products),
        T_TEST(texts),
        T_TEST(random_numbers),
        T_TEST(files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
