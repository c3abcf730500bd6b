/* Orders of the catalogue, the text form, and what the checker of schedules refuses. */
#include "schedule_gen.h"
#include "schedules/schedule_build.h"
#include "t.h"

static schedule make(td_arena *a, const char *name, int32_t pp, int32_t m, int32_t chunks,
                     int32_t group)
{
    char value[16];
    (void)snprintf(value, sizeof value, "%d", group);
    const sched_option_value option = {"group", value};
    const sched_request q = {
        .pp = pp, .microbatches = m, .chunks = chunks, .options = &option, .n_options = group > 0};
    schedule s;
    td_err err = {0};
    T_OK(sched_generate(name, &q, a, &s, &err), &err);
    return s;
}

static void assert_row(const schedule *s, int32_t row, const char *want)
{
    td_text t = {0};
    for (int64_t i = 0; i < s->rows[row].n_cells; i++) {
        if (i > 0) td_text_add(&t, " ");
        sched_print_cell(&s->rows[row].cells[i], s->n_slices, &t);
    }
    assert_string_equal(t.s, want);
    td_text_free(&t);
}

static void test_1f1b_order(void **state)
{
    const schedule s = make(*state, "1f1b", 4, 8, 0, 0);
    assert_row(&s, 0, "0F0 0F1 0F2 0F3 0B0 0F4 0B1 0F5 0B2 0F6 0B3 0F7 0B4 0B5 0B6 0B7");
    assert_row(&s, 1, "1F0 1F1 1F2 1B0 1F3 1B1 1F4 1B2 1F5 1B3 1F6 1B4 1F7 1B5 1B6 1B7");
    assert_row(&s, 2, "2F0 2F1 2B0 2F2 2B1 2F3 2B2 2F4 2B3 2F5 2B4 2F6 2B5 2F7 2B6 2B7");
    assert_row(&s, 3, "3F0 3B0 3F1 3B1 3F2 3B2 3F3 3B3 3F4 3B4 3F5 3B5 3F6 3B6 3F7 3B7");
}

static void test_interleaved_order(void **state)
{
    const schedule s = make(*state, "interleaved-1f1b", 4, 8, 2, 0);
    assert_row(&s, 0,
               "0F0 0F1 0F2 0F3 4F0 4F1 4F2 4F3 0F4 0F5 0F6 4B0 0F7 4B1 4F4 4B2 4F5 4B3 4F6 0B0 "
               "4F7 0B1 0B2 0B3 4B4 4B5 4B6 4B7 0B4 0B5 0B6 0B7");
    assert_row(&s, 1,
               "1F0 1F1 1F2 1F3 5F0 5F1 5F2 5F3 1F4 5B0 1F5 5B1 1F6 5B2 1F7 5B3 5F4 1B0 5F5 1B1 "
               "5F6 1B2 5F7 1B3 5B4 5B5 5B6 5B7 1B4 1B5 1B6 1B7");
    assert_row(&s, 2,
               "2F0 2F1 2F2 2F3 6F0 6F1 6F2 6B0 6F3 6B1 2F4 6B2 2F5 6B3 2F6 2B0 2F7 2B1 6F4 2B2 "
               "6F5 2B3 6F6 6B4 6F7 6B5 6B6 6B7 2B4 2B5 2B6 2B7");
    assert_row(&s, 3,
               "3F0 3F1 3F2 3F3 7F0 7B0 7F1 7B1 7F2 7B2 7F3 7B3 3F4 3B0 3F5 3B1 3F6 3B2 3F7 3B3 "
               "7F4 7B4 7F5 7B5 7F6 7B6 7F7 7B7 3B4 3B5 3B6 3B7");
}

/* P=2, V=2, G=3, M=5: the table is m = 0 1 2 0 1 2 3 4 3 4, chunk = 0 0 0 1 1 1 0 0 1 1. */
static void test_interleaved_group(void **state)
{
    const schedule s = make(*state, "interleaved-1f1b", 2, 5, 2, 3);
    const char *const forwards[] = {"0F0", "0F1", "0F2", "2F0", "2F1",
                                    "2F2", "0F3", "0F4", "2F3", "2F4"};
    int n = 0;
    for (int64_t i = 0; i < s.rows[0].n_cells; i++) {
        if (s.rows[0].cells[i].kind != PASS_F) continue;
        td_text t = {0};
        sched_print_cell(&s.rows[0].cells[i], 1, &t);
        assert_string_equal(t.s, forwards[n++]);
        td_text_free(&t);
    }
    assert_int_equal(n, 10);
}

static void test_illegal_requests(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    schedule s;
    const sched_option_value group = {"group", "3"}, typo = {"grop", "4"};
    sched_request q = {.pp = 4, .microbatches = 3, .chunks = 2};
    T_FAILS(sched_generate("interleaved-1f1b", &q, a, &s, &err), TD_EUSAGE, &err, "M >= 4");
    q.microbatches = 8;
    q.options = &group;
    q.n_options = 1;
    T_FAILS(sched_generate("interleaved-1f1b", &q, a, &s, &err), TD_EUSAGE, &err, "legal: 4");
    q.options = &typo;
    T_FAILS(sched_generate("interleaved-1f1b", &q, a, &s, &err), TD_EUSAGE, &err, "group");
    q.n_options = 0;
    T_FAILS(sched_generate("1f1b", &q, a, &s, &err), TD_EUSAGE, &err, "interleaved-1f1b");
    T_FAILS(sched_generate("1f2b", &q, a, &s, &err), TD_EUSAGE, &err, "did you mean \"1f1b\"");
    q.pp = 0;
    T_FAILS(sched_generate("gpipe", &q, a, &s, &err), TD_EUSAGE, &err, "--pp 0");
}

static void test_round_trip(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    for (uint64_t seed = 0; seed < 300; seed++) {
        const schedule s = gen_schedule(a, seed);
        T_OK(sched_check(&s, &err), &err);
        td_text t = {0};
        sched_print(&s, &t);
        schedule back;
        T_OK(sched_parse(t.s, t.len, "printed", a, &back, &err), &err);
        assert_true(sched_equal(&s, &back));
        /* a schedule cut anywhere is refused or is another one, and never crashes */
        td_rng r = td_rng_seed(seed);
        const size_t cut = (size_t)td_rng_below(&r, (int64_t)t.len);
        if (sched_parse(t.s, cut, "cut", a, &back, &err) == TD_OK &&
            sched_check(&back, &err) == TD_OK)
            assert_false(sched_equal(&s, &back) && cut + 1 < t.len);
        td_text_free(&t);
    }
}

/* Each pass is needed: without it, or with it twice, the schedule is refused. */
static void test_missing_and_doubled(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    for (uint64_t seed = 0; seed < 200; seed++) {
        schedule s = gen_schedule(a, seed);
        td_rng r = td_rng_seed(seed + 1);
        int32_t row = (int32_t)td_rng_below(&r, s.n_rows);
        while (s.rows[row].n_cells == 0) row = (row + 1) % s.n_rows;
        sched_row *const cells = &s.rows[row];
        const int64_t i = td_rng_below(&r, cells->n_cells);
        const sched_cell c = cells->cells[i];
        row_writer w = row_writer_of(a, &s, row);
        row_add_cell(&w, c);
        T_FAILS(sched_check(&s, &err), TD_EPLAN, &err, "occurs twice");
        cells->n_cells--;
        T_OK(sched_check(&s, &err), &err);
        for (int64_t j = i; j + 1 < cells->n_cells; j++) cells->cells[j] = cells->cells[j + 1];
        cells->n_cells--;
        T_FAILS(sched_check(&s, &err), TD_EPLAN, &err, "missing");
    }
}

/* Two ranks that each want the other's result first. */
static void test_deadlock_names_the_cycle(void **state)
{
    static const char text[] = "0F0,0B0\n1B0,1F0\n";
    td_err err = {0};
    schedule s;
    T_OK(sched_parse(text, sizeof text - 1, "x", *state, &s, &err), &err);
    T_FAILS(sched_check(&s, &err), TD_EPLAN, &err, "deadlock");
    T_FAILS(sched_check(&s, &err), TD_EPLAN, &err, "1B0 waits for row 1 1F0");
}

/* A later stage's forward before the earlier one's, on one row and on two. */
static void test_order_against_the_data(void **state)
{
    static const char *const texts[] = {"1F0,0F0,1B0,0B0\n", "0F0,0F1,0B1,0B0\n2F0,1F0,1B0,2B0,"
                                                             "1F1,2F1,2B1,1B1\n"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        td_err err = {0};
        schedule s;
        T_OK(sched_parse(texts[i], strlen(texts[i]), "x", *state, &s, &err), &err);
        T_FAILS(sched_check(&s, &err), TD_EPLAN, &err, "waits for");
    }
}

static void test_malformed_text(void **state)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "no rows"},
        {"0F0,0X0\n", "x:1:6: unknown pass"},
        {"0F0,0F\n", "x:1:7: this pass needs a microbatch"},
        {"0F0\n1F0x\n", "x:2:4: unexpected text"},
        {"0F0,0F1.\n", "x:1:9: a slice number"},
        {"(0F0;0B0\n", "OVERLAP_F_B"},
        {"0F99999999999\n", "x:1:3"},
        {"0F0\n1F0,0B0\n", "stage 0 is also on row 0"},
        {"# tandem schedule 1\n# stages 2\n0F0\n", "come before"},
        {"# tandem schedule 1\n# stages 0\n", "out of range"},
        {"# tandem schedule 1\n# stages 2\n# microbatches 1\n# bogus\n", "x:4:1: unknown header"},
        {"# tandem schedule 1\n# stages 2\n# microbatches 1\n# pipe 3 rows 0 1\n", "no such pipe"},
        {"# tandem schedule 1\n# stages 2\n# microbatches 1\n# pipe 0 rows 0\n",
         "1 numbers where 2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        td_err err = {0};
        schedule s;
        T_FAILS(sched_parse(cases[i].text, strlen(cases[i].text), "x", *state, &s, &err), TD_EPARSE,
                &err, cases[i].says);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(test_1f1b_order),
        T_TEST(test_interleaved_order),
        T_TEST(test_interleaved_group),
        T_TEST(test_illegal_requests),
        T_TEST(test_round_trip),
        T_TEST(test_missing_and_doubled),
        T_TEST(test_deadlock_names_the_cycle),
        T_TEST(test_order_against_the_data),
        T_TEST(test_malformed_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
