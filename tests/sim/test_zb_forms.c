/* Closed forms of the zero-bubble family on grids: bubbles within the longest span, peaks of live
 * activations, what latency adds, how bubbles grow with the number of microbatches. */
#include "t.h"
#include "zb_run.h"

static void check(td_arena *a, const zb_query *q, const char *what, double got, double want)
{
    if (!(fabs(got - want) < 1e-6))
        fail_msg("%s: %s is %.9g, not %.9g", zb_text(a, q), what, got, want);
}

/* Span less work; chunk times of the query. */
static double bubble(const zb_query *q, const zb_result *r)
{
    return r->span - (double)(q->f + q->i + q->w) * q->m * r->s.n_stages / r->s.n_rows;
}

/* (P-1)(F+I-W) + 4c(P-1) and (P-1)(F+I-2W) + 2c(P-1) while 2c <= W <= F <= I and M >= 2P-1. Rank r
 * keeps (P-r) F + r W and (2(P-r)-1) F + 2r W at most. */
static void handcrafted(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(3);
    for (int n = 0; n < 300; n++) {
        td_arena *const a = td_arena_new();
        const bool h2 = n % 2 == 1;
        const int32_t p = 2 + (int32_t)td_rng_below(&rng, 9);
        zb_query q = {.family = h2 ? "zb-h2" : "zb-h1",
                      .pp = p,
                      .m = 2 * p - 1 + (int32_t)td_rng_below(&rng, 20),
                      .w = 1 + (int)td_rng_below(&rng, 20),
                      .deltas = {2, -1, -1}};
        q.comm = (int)td_rng_below(&rng, q.w / 2 + 1);
        q.f = q.w + (int)td_rng_below(&rng, 10);
        q.i = q.f + (int)td_rng_below(&rng, 10);
        const zb_result r = zb_run(a, &q);
        const double form = h2 ? (p - 1) * (q.f + q.i - 2 * q.w) + 2 * q.comm * (p - 1)
                               : (p - 1) * (q.f + q.i - q.w) + 4 * q.comm * (p - 1);
        check(a, &q, "bubble", bubble(&q, &r), form);
        for (int32_t k = 0; k < p; k++)
            check(a, &q, "peak", r.m.ranks[k].peak_activations,
                  h2 ? 2 * (2 * (p - k) - 1) + 2 * k : 2 * (p - k) + k);
        td_arena_free(a);
    }
}

/* With unit passes and M >= 2P, in chunks. */
static void v_half_and_v_min(void **state)
{
    (void)state;
    for (int32_t p = 3; p <= 17; p++)
        for (int32_t m = 2 * p; m <= 3 * p; m += p) {
            td_arena *const a = td_arena_new();
            zb_query q = {.family = "v-half", .pp = p, .m = m, .f = 1, .i = 1, .w = 1};
            zb_result r = zb_run(a, &q);
            check(a, &q, "bubble", bubble(&q, &r), p % 2 == 0 ? 3 * p - 7 : 3 * p - 4);
            check(a, &q, "peak", r.peak, 2 * ((p + 2) / 2));
            q.family = "v-min";
            r = zb_run(a, &q);
            check(a, &q, "bubble", bubble(&q, &r), p % 3 == 0 ? 4 * p - 7 : 4 * p - 5);
            check(a, &q, "peak", r.peak, 2 * ((p + 4) / 3));
            td_arena_free(a);
        }
}

/* Equal passes: no bubble in any span, as much memory as 1F1B on every rank. */
static void zb_v(void **state)
{
    (void)state;
    for (int32_t p = 1; p <= 12; p++)
        for (int32_t m = 2 * p; m <= 4 * p; m += p)
            for (int hand = 0; hand < 2; hand++) {
                td_arena *const a = td_arena_new();
                const zb_query q = {.family = "zb-v",
                                    .pp = p,
                                    .m = m,
                                    .f = 2,
                                    .i = 2,
                                    .w = 2,
                                    .options = hand ? "form=hand" : NULL};
                const zb_result r = zb_run(a, &q);
                check(a, &q, "bubble", bubble(&q, &r), 0);
                for (int32_t k = 0; k < p; k++)
                    check(a, &q, "peak", r.m.ranks[k].peak_activations, p);
                td_arena_free(a);
            }
}

/* P = 8: bubbles that stay as M grows, and those that repeat with every microbatch. */
static void growth(void **state)
{
    static const struct {
        const char *family;
        int f, i, w, comm;
        double bubble[4]; /* M = 16, 32, 64, 96 */
    } rows[] = {
        {"v-half", 10, 12, 9, 0, {221, 221, 221, 221}},
        {"v-half", 10, 12, 9, 1, {265, 265, 265, 265}},
        {"v-half", 10, 20, 5, 0, {580, 820, 1300, 1780}},
        {"v-min", 10, 12, 9, 0, {444, 604, 924, 1244}},
        {"v-min", 10, 12, 9, 1, {546, 0, 0, 1746}},
        {"zb-v", 10, 12, 9, 0, {39, 39, 39, 39}},
        {"zb-v", 10, 12, 9, 1, {75, 75, 75, 75}},
        {"zb-v", 10, 20, 5, 0, {205, 205, 205, 205}},
    };
    static const int32_t ms[] = {16, 32, 64, 96};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int k = 0; k < 4; k++) {
            if (rows[i].bubble[k] == 0) continue;
            const zb_query q = {.family = rows[i].family,
                                .pp = 8,
                                .m = ms[k],
                                .f = rows[i].f,
                                .i = rows[i].i,
                                .w = rows[i].w,
                                .comm = rows[i].comm};
            const zb_result r = zb_run(*state, &q);
            check(*state, &q, "bubble", bubble(&q, &r), rows[i].bubble[k]);
        }
}

static void whole_backwards_in_a_v(void **state)
{
    static const int32_t rows[][3] = {{4, 6, 15},   {6, 10, 22},  {8, 12, 33},
                                      {12, 18, 52}, {16, 22, 75}, {32, 44, 153}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const zb_query q = {
            .family = "1f1b-v", .pp = rows[i][0], .m = 2 * rows[i][0], .f = 1, .i = 1, .w = 1};
        const zb_result r = zb_run(*state, &q);
        check(*state, &q, "peak", r.peak, rows[i][1]);
        check(*state, &q, "bubble", bubble(&q, &r), rows[i][2]);
    }
}

/* What less memory costs the heuristic, and what more gains ZB-V. */
static void limits(void **state)
{
    static const double less[] = {72, 51, 37, 27};
    for (int n = 0; n < 4; n++) {
        const zb_query q = {
            .family = "zb-auto",
            .pp = 4,
            .m = 8,
            .f = 1,
            .i = 1,
            .w = 1,
            .options = td_sprintf(*state, "search=heuristic deltas=2,-1,-1 limit=%d", n + 1)};
        const zb_result r = zb_run(*state, &q);
        check(*state, &q, "span", r.span, less[n]);
    }
    static const double more[][2] = {{8, 523}, {9, 516}, {10, 508}, {12, 508}};
    for (int n = 0; n < 4; n++) {
        const zb_query q = {.family = "zb-v",
                            .pp = 4,
                            .m = 8,
                            .f = 10,
                            .i = 12,
                            .w = 9,
                            .comm = 1,
                            .options =
                                td_sprintf(*state, "deltas=2,-1,-1 limit=%g", more[n][0] / 2)};
        const zb_result r = zb_run(*state, &q);
        check(*state, &q, "span", r.span, more[n][1]);
    }
}

/* Every size gives a sound order whose passes are all there. */
static void any_size(void **state)
{
    static const char *const names[] = {"interleaved-zb", "zb-h1", "zb-h2", "zb-v",
                                        "v-half",         "v-min", "1f1b-v"};
    (void)state;
    for (int32_t p = 1; p <= 9; p++)
        for (int32_t m = 1; m <= 20; m += m < 8 ? 1 : 3)
            for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
                const bool rounds = i == 0; /* as many in each */
                if (rounds && m > p && m % (m / p) != 0) continue;
                td_arena *const a = td_arena_new();
                const zb_query q = {.family = names[i], .pp = p, .m = m, .f = 3, .i = 4, .w = 2};
                schedule s;
                td_err err = {0};
                T_OK(zb_generate(a, &q, &s, &err), &err);
                assert_int_equal(s.n_microbatches, m);
                td_arena_free(a);
            }
}

static void bad_input(void **state)
{
    td_err err;
    schedule s;
    zb_query q = {
        .family = "zb-h1", .pp = 4, .m = 8, .f = 1, .i = 1, .w = 1, .options = "chunks=2"};
    T_FAILS(zb_generate(*state, &q, &s, &err), TD_EUSAGE, &err, "legal: --chunks 1");
    q.family = "v-half";
    q.options = "chunks=1";
    T_FAILS(zb_generate(*state, &q, &s, &err), TD_EUSAGE, &err, "legal: --chunks 2");
    q.family = "interleaved-zb";
    q.options = NULL;
    q.m = 10;
    q.pp = 3;
    T_FAILS(zb_generate(*state, &q, &s, &err), TD_EUSAGE, &err, "legal: --microbatches 12");
    q = (zb_query){.family = "zb-v", .pp = 4, .m = 8, .f = 1, .i = 1, .w = 1, .options = "limit=2"};
    T_FAILS(zb_generate(*state, &q, &s, &err), TD_EPLAN, &err, "--activation-limit 4 or more");
    q.options = "form=feet";
    T_FAILS(zb_generate(*state, &q, &s, &err), TD_EUSAGE, &err, "form");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(handcrafted),  cmocka_unit_test(v_half_and_v_min),
        cmocka_unit_test(zb_v),         T_TEST(growth),
        T_TEST(whole_backwards_in_a_v), T_TEST(limits),
        cmocka_unit_test(any_size),     T_TEST(bad_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
