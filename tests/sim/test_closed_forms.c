/* What a user's unit times give against the closed forms of the schedules: step, both bubbles,
 * peaks of activations, message latency. By the same road as psim: schedule, plan, prices from
 * --times, engine, metrics. Does not pin the orders themselves. */
#include "sim/sim.h"
#include "t.h"

/* What was asked, in ms as the user types it. */
typedef struct query {
    const char *name;
    int32_t pp, m, v, group;
    double f, b, comm;
} query;

static const char *text_of(td_arena *a, const query *q)
{
    return td_sprintf(a, "%s P=%d M=%d V=%d G=%d F=%.12g B=%.12g comm=%.12g", q->name, q->pp, q->m,
                      q->v, q->group, q->f, q->b, q->comm);
}

static plan_metrics run(td_arena *a, const query *q)
{
    const sched_option_value group = {"group", td_sprintf(a, "%d", q->group)};
    const sched_request r = {.pp = q->pp,
                             .microbatches = q->m,
                             .chunks = q->v,
                             .options = &group,
                             .n_options = q->group > 0};
    const char *const times = td_sprintf(a, "F=%.17g,B=%.17g,comm=%.17g", q->f, q->b, q->comm);
    const sizes z = {.n_stages = q->pp * q->v, .chunks = q->v};
    const lower_options lower = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1, .no_step = true};
    unit_times units;
    const cost_model cost = {.units = &units, .sizes = &z, .chunks = q->v};
    const sim_options o = {.protocol = PROTOCOL_EAGER, .cost = &cost};
    schedule s;
    plan p;
    int64_t *class_ns = NULL;
    task_times t = {0};
    plan_metrics out;
    td_err err = {0};
    T_OK(unit_times_parse(times, a, &units, &err), &err);
    T_OK(sched_generate(q->name, &r, a, &s, &err), &err);
    T_OK(plan_lower(&s, &lower, a, &p, &err), &err);
    T_OK(sim_price(&p, &cost, a, &class_ns, &err), &err);
    T_OK(sim_run(&p, class_ns, &o, a, &t, NULL, &err), &err);
    T_OK(metrics_of(&p, &t, (activation_deltas){1, 0, -1}, a, &out, &err), &err);
    return out;
}

/* The step is want_ms, give or take half a nanosecond for each of n_rounded times on the critical
 * path; 0: exactly. */
static void check_step(td_arena *a, const query *q, const plan_metrics *m, double want_ms,
                       double n_rounded)
{
    const double want = want_ms * 1e6, off = fabs((double)m->step_ns - want);
    if (!(off <= 0.5 * n_rounded + 1e-3)) /* double holds the closed form to that */
        fail_msg("%s: step %lld ns, closed form %.3f", text_of(a, q), (long long)m->step_ns, want);
}

static void check_close(td_arena *a, const query *q, const char *what, double got, double want)
{
    if (!(fabs(got - want) <= 1e-6))
        fail_msg("%s: %s %.9g, not %.9g", text_of(a, q), what, got, want);
}

static void check_peak(td_arena *a, const query *q, const plan_metrics *m, int32_t rank,
                       double chunks)
{
    const double got = m->ranks[rank].peak_activations, want = chunks / q->v;
    if (!(fabs(got - want) <= 1e-9))
        fail_msg("%s: rank %d peaks at %.9g, not %.9g", text_of(a, q), rank, got, want);
}

/* Pass times: whole nanoseconds in every chunk for V <= 4, then times that round. */
static const double ratios[][2] = {{12, 24}, {12, 12}, {1.2e-5, 3.6e-5}, {1.0 / 7, 2.0 / 3}};
enum { N_RATIOS = 4, WHOLE = 3 };

static void check_flush(const char *name, int32_t pp, int32_t m, int ratio)
{
    td_arena *const a = td_arena_new();
    const query q = {
        .name = name, .pp = pp, .m = m, .v = 1, .f = ratios[ratio][0], .b = ratios[ratio][1]};
    const plan_metrics got = run(a, &q);
    const double passes = ratio < WHOLE ? 0 : 2.0 * (m + pp - 1);
    check_step(a, &q, &got, (m + pp - 1) * (q.f + q.b), passes);
    const double bubble = (double)(pp - 1) / (m + pp - 1);
    check_close(a, &q, "bubble_frac", got.bubble_frac, bubble);
    /* rank 0 works from the first moment to the last */
    check_close(a, &q, "span_bubble_frac", got.span_bubble_frac, bubble);
    const bool all = strcmp(name, "gpipe") == 0;
    for (int32_t r = 0; r < pp; r++) {
        check_peak(a, &q, &got, r, all || m < pp - r ? m : pp - r);
        if (ratio >= WHOLE) continue;
        check_close(a, &q, "first F", (double)got.ranks[r].first_ns / 1e6, r * q.f);
        check_close(a, &q, "last B", (double)got.ranks[r].last_ns / 1e6,
                    (double)got.step_ns / 1e6 - r * q.b);
        assert_int_equal(got.ranks[r].busy_ns, llround(m * (q.f + q.b) * 1e6));
    }
    assert_int_equal(got.messages, (int64_t)2 * (pp - 1) * m);
    td_arena_free(a);
}

static void flush_schedules(void **state)
{
    (void)state;
    for (int32_t pp = 2; pp <= 16; pp++)
        for (int32_t m = 1; m <= 64; m++)
            for (int ratio = 0; ratio < N_RATIOS; ratio++) {
                if ((m + pp + ratio) % 3 != 0 && m > 2 * pp && m < 64) continue;
                check_flush("gpipe", pp, m, ratio);
                check_flush("1f1b", pp, m, ratio);
            }
}

static double chunk_peak(const query *q, int32_t g, int32_t rank)
{
    const int32_t all = q->m * q->v, flight = 2 * (q->pp - 1 - rank) + (q->v - 1) * g + 1;
    return flight < all ? flight : all;
}

static void interleaved(void **state)
{
    (void)state;
    for (int32_t pp = 2; pp <= 16; pp++)
        for (int32_t v = 2; v <= 4; v++)
            for (int32_t m = pp; m <= 64; m += pp)
                for (int ratio = 0; ratio < N_RATIOS; ratio++) {
                    td_arena *const a = td_arena_new();
                    const query q = {.name = "interleaved-1f1b",
                                     .pp = pp,
                                     .m = m,
                                     .v = v,
                                     .f = ratios[ratio][0],
                                     .b = ratios[ratio][1]};
                    const plan_metrics got = run(a, &q);
                    const double idle = (double)(pp - 1) / v;
                    const double passes = ratio < WHOLE ? 0 : 2.0 * (m * v + pp - 1);
                    check_step(a, &q, &got, (m + idle) * (q.f + q.b), passes);
                    check_close(a, &q, "bubble_frac", got.bubble_frac, idle / (m + idle));
                    check_close(a, &q, "span_bubble_frac", got.span_bubble_frac, idle / (m + idle));
                    for (int32_t r = 0; r < pp; r++)
                        check_peak(a, &q, &got, r, chunk_peak(&q, pp, r));
                    td_arena_free(a);
                }
}

/* Peaks follow the group size, wherever it is legal, also with a short last group. */
static void group_peaks(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(11);
    int tried = 0;
    while (tried < 300) {
        const int32_t pp = 2 + (int32_t)td_rng_below(&rng, 7),
                      m = pp + (int32_t)td_rng_below(&rng, 40);
        const int32_t g = pp + (int32_t)td_rng_below(&rng, m - pp + 1);
        if (m % g != 0 && m % g < pp) continue;
        tried++;
        td_arena *const a = td_arena_new();
        const query q = {.name = "interleaved-1f1b",
                         .pp = pp,
                         .m = m,
                         .group = g,
                         .f = 12,
                         .b = 24,
                         .v = 2 + (int32_t)td_rng_below(&rng, 3)};
        const plan_metrics got = run(a, &q);
        for (int32_t r = 0; r < pp; r++) check_peak(a, &q, &got, r, chunk_peak(&q, g, r));
        td_arena_free(a);
    }
}

/* The rows of the specification's table that these three schedules have, and its other examples. */
static void worked_examples(void **state)
{
    static const struct {
        query q;
        double step_ms;
        int32_t peaks[4]; /* chunks */
    } rows[] = {
        {{"gpipe", 4, 8, 1, 0, 1, 2, 0}, 33, {8, 8, 8, 8}},
        {{"1f1b", 4, 8, 1, 0, 1, 2, 0}, 33, {4, 3, 2, 1}},
        {{"interleaved-1f1b", 4, 8, 2, 0, 1, 2, 0}, 28.5, {11, 9, 7, 5}},
        {{"interleaved-1f1b", 4, 10, 2, 0, 1, 2, 0}, 34.5, {12, 10, 8, 6}},
        {{"interleaved-1f1b", 4, 8, 2, 8, 1, 2, 0}, 28.5, {15, 13, 11, 9}},
        {{"interleaved-1f1b", 2, 5, 2, 3, 1, 2, 0}, 16.5, {6, 4, 0, 0}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const query *const q = &rows[i].q;
        const plan_metrics got = run(*state, q);
        check_step(*state, q, &got, rows[i].step_ms, 0);
        check_close(*state, q, "bubble_frac", got.bubble_frac, 1 - 3 * q->m / rows[i].step_ms);
        for (int32_t r = 0; r < q->pp; r++) check_peak(*state, q, &got, r, rows[i].peaks[r]);
    }
}

/* (M + P - 1)(F + B) + c (2(P - 1)M/P + 2(P - 2)) for P | M and c <= F, all of 1F1B in eager. */
static void latency(void **state)
{
    static const double comms[] = {0.000001, 0.1, 1.0 / 3, 0.5, 0.999999, 1};
    (void)state;
    for (int32_t pp = 2; pp <= 16; pp++)
        for (int32_t k = 1; k <= 8; k += k < 4 ? 1 : 4)
            for (size_t i = 0; i < sizeof comms / sizeof *comms; i++)
                for (int b = 1; b <= 3; b++) {
                    td_arena *const a = td_arena_new();
                    const query q = {.name = "1f1b",
                                     .pp = pp,
                                     .m = k * pp,
                                     .v = 1,
                                     .f = 1,
                                     .b = b,
                                     .comm = comms[i]};
                    const plan_metrics got = run(a, &q);
                    const double hops = 2.0 * (pp - 1) * k + 2.0 * (pp - 2);
                    const bool rounds = i == 2;
                    check_step(a, &q, &got, (q.m + pp - 1) * (q.f + q.b) + q.comm * hops,
                               rounds ? hops : 0);
                    td_arena_free(a);
                }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flush_schedules), cmocka_unit_test(interleaved),
        cmocka_unit_test(group_peaks),     T_TEST(worked_examples),
        cmocka_unit_test(latency),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
