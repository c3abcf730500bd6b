/* Comparison of traces: equal runs do not differ, a known change is found where it is, and prices
 * of a plan follow its unit times. Does not pin the texts that psim prints. */
#include "sim/compare.h"
#include "sim_reference.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void build(const plan *p, const int64_t *ns, td_arena *a, trace *out)
{
    task_times t = {0};
    td_err err = {0};
    const sim_options o = {.protocol = PROTOCOL_EAGER};
    assert_int_equal(sim_run(p, ns, &o, a, &t, NULL, &err), TD_OK);
    assert_int_equal(trace_build(p, &t, false, NULL, 0, a, out, &err), TD_OK);
}

static void finds_what_changed(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(7);
    for (int round = 0; round < 30; round++) {
        td_arena *const a = td_arena_new();
        char what[160];
        plan p;
        trace x, y;
        compare_report r;
        td_err err = {0};
        random_plan(&rng, a, &p, what, sizeof what);
        int64_t *const ns = random_times(&rng, &p, a);
        build(&p, ns, a, &x);
        assert_int_equal(compare_traces(&x, &x, 3, a, &r, &err), TD_OK);
        assert_int_equal(r.n_matched, x.n_records);
        assert_int_equal(r.n_only_predicted + r.n_only_measured, 0);
        assert_true(r.step_error_frac <= 0 && r.step_error_frac >= 0);
        for (int k = 0; k < TASK_KIND_COUNT; k++) assert_int_equal(r.kinds[k].absolute_ns, 0);
        /* All forwards take 50 ns more. */
        int64_t forwards = 0;
        for (uint32_t i = 0; i < p.n_classes; i++)
            if (p.classes[i].kind == PASS_F) ns[i] += 50;
        for (uint32_t i = 0; i < p.n_tasks; i++) forwards += p.tasks[i].kind == PASS_F;
        build(&p, ns, a, &y);
        assert_int_equal(compare_traces(&x, &y, 3, a, &r, &err), TD_OK);
        assert_int_equal(r.n_matched, x.n_records);
        assert_int_equal(r.kinds[PASS_F].n, forwards);
        assert_int_equal(r.kinds[PASS_F].absolute_ns, 50 * forwards);
        assert_int_equal(r.kinds[PASS_F].measured_ns - r.kinds[PASS_F].predicted_ns, 50 * forwards);
        assert_int_equal(r.kinds[PASS_B].absolute_ns, 0);
        assert_int_equal(llabs(r.worst[0].error_ns), 50);
        int64_t on_ranks = 0;
        for (uint32_t i = 0; i < r.n_ranks; i++) on_ranks += r.ranks[i].sum.absolute_ns;
        assert_int_equal(on_ranks, 50 * forwards);
        td_arena_free(a);
    }
}

/* Two ranks, one pass each, by hand: the step, each rank, its memory, and who carries the error. */
static void small_case(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    trace_stream streams[2] = {{.rank = 0, .n = 1}, {.rank = 1, .n = 1}};
    trace_record p[2] = {{.kind = PASS_F, .begin_ns = 0, .end_ns = 100, .stream = 0},
                         {.kind = PASS_B, .begin_ns = 100, .end_ns = 300, .stream = 1}};
    trace_record m[2] = {{.kind = PASS_F, .begin_ns = 10, .end_ns = 130, .stream = 0},
                         {.kind = PASS_B, .begin_ns = 140, .end_ns = 300, .stream = 1}};
    int64_t mine[2] = {1000, 2000}, theirs[2] = {1000, 2500};
    const trace x = {.n_ranks = 2,
                     .records = p,
                     .n_records = 2,
                     .streams = streams,
                     .n_streams = 2,
                     .step_ns = 300,
                     .peak_bytes = mine};
    trace y = x;
    y.records = m;
    y.peak_bytes = theirs;
    y.step_ns = 400;
    compare_report r;
    td_err err = {0};
    assert_int_equal(compare_traces(&x, &y, 2, a, &r, &err), TD_OK);
    assert_true(r.step_error_frac > -0.2501 && r.step_error_frac < -0.2499);
    assert_int_equal(r.kinds[PASS_F].measured_ns - r.kinds[PASS_F].predicted_ns, 20);
    assert_int_equal(r.kinds[PASS_B].absolute_ns, 40);
    assert_int_equal(r.ranks[0].sum.predicted_ns, 100);
    assert_int_equal(r.ranks[1].sum.measured_ns, 160);
    assert_int_equal(r.ranks[1].predicted_last_ns, 300);
    assert_int_equal(r.ranks[0].measured_last_ns, 130);
    assert_int_equal(r.ranks[0].measured_peak_bytes, 1000);
    assert_int_equal(r.ranks[1].predicted_peak_bytes, 2000);
    assert_int_equal(r.ranks[1].measured_peak_bytes, 2500);
    assert_int_equal(r.n_worst, 2);
    assert_int_equal(r.worst[0].error_ns, -40);
    assert_int_equal(r.worst[0].predicted, 1);
    for (int i = 0; i < 2; i++)
        assert_true(r.ranks[i].predicted_turn == UINT64_MAX &&
                    r.ranks[i].measured_turn == UINT64_MAX);
    td_arena_free(a);
}

/* The same passes in another order, messages between them apart: where they part is said. */
static void finds_other_order(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    trace_stream streams[3] = {{.rank = 0, .n = 3}, {.rank = 1, .n = 1}, {.rank = 0, .n = 1}};
    trace_record p[] = {{.kind = PASS_F, .begin_ns = 0, .end_ns = 1, .microbatch = 0},
                        {.kind = PASS_F, .begin_ns = 1, .end_ns = 2, .microbatch = 1},
                        {.kind = PASS_B, .begin_ns = 2, .end_ns = 3, .microbatch = 0},
                        {.kind = PASS_F, .begin_ns = 9, .end_ns = 10, .stream = 1},
                        {.kind = TASK_SEND, .begin_ns = 1, .end_ns = 2, .stream = 2}};
    trace_record m[5];
    memcpy(m, p, sizeof m);
    m[1].begin_ns = 4; /* after B */
    m[1].end_ns = 5;
    m[4].begin_ns = 8;
    const trace x = {.n_ranks = 2, .records = p, .n_records = 5, .streams = streams};
    trace y = x;
    y.records = m;
    compare_report r;
    td_err err = {0};
    assert_int_equal(compare_traces(&x, &y, 2, a, &r, &err), TD_OK);
    assert_int_equal(r.ranks[0].predicted_turn, 1);
    assert_int_equal(r.ranks[0].measured_turn, 2);
    assert_true(r.ranks[1].predicted_turn == UINT64_MAX && r.ranks[1].measured_turn == UINT64_MAX);
    y.n_records = 1; /* it ends early */
    assert_int_equal(compare_traces(&x, &y, 2, a, &r, &err), TD_OK);
    assert_int_equal(r.ranks[0].predicted_turn, 1);
    assert_true(r.ranks[0].measured_turn == UINT64_MAX);
    assert_int_equal(r.ranks[1].predicted_turn, 3);
    td_arena_free(a);
}

static void nothing_in_common_is_refused(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    trace_stream s = {.rank = 0, .n = 1};
    trace_record f = {.kind = PASS_F, .end_ns = 1}, b = {.kind = PASS_B, .end_ns = 1};
    const trace x = {.n_ranks = 1, .records = &f, .n_records = 1, .streams = &s, .n_streams = 1};
    const trace y = {.n_ranks = 1, .records = &b, .n_records = 1, .streams = &s, .n_streams = 1};
    compare_report r;
    td_err err = {0};
    assert_int_equal(compare_traces(&x, &y, 3, a, &r, &err), TD_EUSAGE);
    td_arena_free(a);
}

static void prices_follow_unit_times(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(8);
    for (int round = 0; round < 30; round++) {
        td_arena *const a = td_arena_new();
        char what[160];
        plan p;
        unit_times u;
        td_err err = {0};
        int64_t *ns = NULL;
        random_plan(&rng, a, &p, what, sizeof what);
        assert_int_equal(unit_times_parse("F=12,B=24,comm=0.5,coll=0.25", a, &u, &err), TD_OK);
        const sizes z = {.n_stages = p.n_stages, .chunks = p.chunks};
        const cost_model cost = {.units = &u, .sizes = &z, .chunks = p.chunks};
        assert_int_equal(sim_price(&p, &cost, a, &ns, &err), TD_OK);
        for (uint32_t i = 0; i < p.n_classes; i++) {
            const int64_t want = p.classes[i].kind == PASS_F      ? 12000000 / p.chunks
                                 : p.classes[i].kind == PASS_B    ? 24000000 / p.chunks
                                 : p.classes[i].kind == TASK_SEND ? 500000
                                 : p.classes[i].kind == TASK_COLL ? 250000
                                                                  : ns[i];
            assert_int_equal(ns[i], want);
        }
        td_arena_free(a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_what_changed), cmocka_unit_test(small_case),
        cmocka_unit_test(finds_other_order), cmocka_unit_test(nothing_in_common_is_refused),
        cmocka_unit_test(prices_follow_unit_times)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
