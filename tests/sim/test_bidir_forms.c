/* Closed forms of the bidirectional schedules on grids, the validation matrix, latency, messages.
 * Times are of one chunk: with v chunks a rank's whole share takes v times as long. */
#include "bidir_run.h"
#include "t.h"

static void check_step(td_arena *a, const bidir_query *q, const bidir_result *r, double want_ms)
{
    if (!(fabs((double)r->m.step_ns - want_ms * 1e6) <= 0.5))
        fail_msg("%s: F=%g B=%g: step %.6f ms, closed form %.6f", bidir_text(a, q), q->f, q->b,
                 (double)r->m.step_ns / 1e6, want_ms);
}

static void check_peaks(td_arena *a, const bidir_query *q, const bidir_result *r, double least,
                        double most)
{
    double low = 1e9, high = 0;
    for (int32_t i = 0; i < q->pp; i++) {
        low = fmin(low, r->m.ranks[i].peak_activations);
        high = fmax(high, r->m.ranks[i].peak_activations);
    }
    if (fabs(low - least) > 1e-9 || fabs(high - most) > 1e-9)
        fail_msg("%s: peaks %g to %g, not %g to %g", bidir_text(a, q), low, high, least, most);
}

/* Weights of a rank in units of a plain pipeline's: stage instances on it over chunks. */
static void check_weights(td_arena *a, const bidir_query *q, const bidir_result *r, int32_t times)
{
    for (int32_t row = 0; row < q->pp; row++) {
        int32_t held = 0;
        for (uint32_t i = 0; i < r->p.n_insts; i++) held += r->p.insts[i].backward_row == row;
        if (held != times * q->v)
            fail_msg("%s: row %d holds %d stages, not %d", bidir_text(a, q), row, held,
                     times * q->v);
    }
}

static const double ratios[] = {1, 1.5, 2, 3};
enum { RATIOS = 4 };

/* T = Cf F + Cb B; bubbles 2vN + D - 2; messages 2Nv(D - 1), and 2N(vD - 1) without the V. */
static void two_pipes(void **state)
{
    (void)state;
    for (int32_t d = 2; d <= 12; d += 2)
        for (int32_t v = 1; v <= 4; v++)
            for (int32_t k = 1; k <= 4; k++)
                for (int i = 0; i < RATIOS; i++) {
                    td_arena *const a = td_arena_new();
                    bidir_query q = {.family = v == 1 && k % 2 == 0 ? "chimera" : "bitpipe",
                                     .pp = d,
                                     .m = k * d,
                                     .v = v,
                                     .f = 1,
                                     .b = ratios[i]};
                    const bidir_result r = bidir_run(a, &q);
                    const double cf = v * d + (k - 1) * ((v - 1) * d + 2);
                    const double cb = k * (v * d + d - 2);
                    check_step(a, &q, &r, cf + cb * q.b);
                    const double busy = v * q.m * (1 + q.b);
                    T_CLOSE(r.m.bubble_frac, 1 - busy / (cf + cb * q.b), 0, 1e-9);
                    check_peaks(a, &q, &r, d - (d / 2.0 - 1) / v, d);
                    for (int32_t row = 0; row < d; row++) {
                        const int32_t out = row < d / 2 ? d / 2 - 1 - row : row - d / 2;
                        T_CLOSE(r.m.ranks[row].peak_activations, d - (double)out / v, 0, 1e-9);
                    }
                    check_weights(a, &q, &r, 2);
                    assert_int_equal(r.m.messages, 2 * q.m * v * (d - 1));
                    assert_int_equal(r.m.local_handovers, 2 * q.m * (v - 1));
                    q.family = "bitpipe";
                    q.options = "vshape=0";
                    const bidir_result looping = bidir_run(a, &q);
                    assert_int_equal(looping.m.messages, 2 * q.m * (v * d - 1));
                    assert_int_equal(looping.m.local_handovers, 0);
                    assert_int_equal(looping.m.step_ns, r.m.step_ns);
                    td_arena_free(a);
                }
}

/* Idle D/f - 2 for B = F, (K + 1)(D/f - 2) for B = 2F; with forwards doubled 1.5 (D/f - 2). */
static void many_pipes(void **state)
{
    (void)state;
    for (int32_t d = 2; d <= 16; d += 2)
        for (int32_t f = 1; f <= d / 2; f++)
            for (int32_t k = 1; k <= 4 && d / 2 % f == 0; k++) {
                td_arena *const a = td_arena_new();
                bidir_query q = {.family = "chimera", .pp = d, .m = k * d, .v = 1, .f = 1};
                q.options = td_sprintf(a, "f=%d", f);
                const double idle = (double)d / f - 2;
                q.b = 1;
                const bidir_result even = bidir_run(a, &q);
                check_step(a, &q, &even, 2 * q.m + idle);
                q.b = 2;
                const bidir_result r = bidir_run(a, &q);
                check_step(a, &q, &r, 3 * q.m + (k + 1) * idle);
                check_peaks(a, &q, &r, d - (d / 2.0 / f - 1), d);
                check_weights(a, &q, &r, 2 * f);
                assert_int_equal(r.m.messages, 2 * q.m * (d - 1));
                q.m *= 2;
                q.options = td_sprintf(a, "f=%d doubling=1", f);
                const bidir_result doubled = bidir_run(a, &q);
                check_step(a, &q, &doubled, 3 * q.m + 1.5 * idle);
                if (f == 1) check_peaks(a, &q, &doubled, 2 * d - (d / 2.0 - 1), 2 * d);
                assert_int_equal(doubled.m.messages, 2 * q.m * (d - 1));
                td_arena_free(a);
            }
}

/* Idle 2(D - 1) for B = F, (K + 1) 2 (D - 1) for B = 2F; peaks 2WD - (D - 1) to 2WD chunks. */
static void waves(void **state)
{
    (void)state;
    for (int32_t d = 2; d <= 9; d++)
        for (int32_t w = 1; w <= 4; w++)
            for (int32_t k = 1; k <= 3; k++) {
                td_arena *const a = td_arena_new();
                bidir_query q = {
                    .family = "hanayo", .pp = d, .m = k * d, .v = 2 * w, .f = 1, .b = 1};
                const bidir_result even = bidir_run(a, &q);
                check_step(a, &q, &even, 4 * w * q.m + 2 * (d - 1));
                q.b = 2;
                const bidir_result r = bidir_run(a, &q);
                check_step(a, &q, &r, 6 * w * q.m + (k + 1) * 2 * (d - 1));
                check_peaks(a, &q, &r, d - (d - 1) / (2.0 * w), d);
                check_weights(a, &q, &r, 1);
                assert_int_equal(r.m.messages, 2 * q.m * 2 * w * (d - 1));
                assert_int_equal(r.m.local_handovers, 2 * q.m * (2 * w - 1));
                td_arena_free(a);
            }
}

/* The README's bubble in its exact form, for I = F and W <= F. DualPipe's row: half D/2 rows to the
 * turn, n = N/2; DualPipeV's: D and N. */
static void dual_steps(void **state)
{
    (void)state;
    static const double times[][4] = {/* F, B, W, FB */
                                      {1, 2, 1, 3},
                                      {2, 4, 2, 5},
                                      {2, 3, 1, 5},
                                      {4, 7, 3, 9}};
    for (int folded = 0; folded < 2; folded++)
        for (int32_t d = folded ? 1 : 2; d <= 8; d += folded ? 1 : 2)
            for (int32_t more = 0; more <= 6; more += 2)
                for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
                    td_arena *const a = td_arena_new();
                    const double f = times[i][0], b = times[i][1], w = times[i][2],
                                 fb = times[i][3];
                    const bidir_query q = {.family = folded ? "dualpipev" : "dualpipe",
                                           .pp = d,
                                           .m = 2 * d + more,
                                           .v = folded ? 2 : 1,
                                           .f = f,
                                           .b = b,
                                           .i = b - w,
                                           .w = w,
                                           .pair = fb};
                    const bidir_result r = bidir_run(a, &q);
                    const int32_t half = folded ? d : d / 2, n = folded ? q.m : q.m / 2;
                    check_step(a, &q, &r,
                               (2 * half + 1) * f + (2 * (n - half) - 1) * fb + (2 * half + 1) * b +
                                   (half - 1) * (fb + b - 3 * w));
                    const double peak = (2.0 * half + 1) / q.v;
                    check_peaks(a, &q, &r, peak, peak);
                    check_weights(a, &q, &r, folded ? 1 : 2);
                    assert_int_equal(r.m.messages, (folded ? 4 : 2) * q.m * (d - 1));
                    assert_int_equal(r.m.local_handovers, folded ? 2 * q.m : 0);
                    td_arena_free(a);
                }
}

/* DualPipeV on R ranks does what the first R of DualPipe's 2R ranks do with twice the microbatches,
 * chunk for direction, at the same times. */
static void dual_folds(void **state)
{
    (void)state;
    for (int32_t d = 1; d <= 6; d++)
        for (int32_t more = 0; more < 5; more++) {
            td_arena *const a = td_arena_new();
            bidir_query q = {
                .family = "dualpipe", .pp = 2 * d, .m = 4 * d + 2 * more, .v = 1, .f = 1, .b = 2};
            const bidir_result wide = bidir_run(a, &q);
            q.family = "dualpipev";
            q.pp = d;
            q.m = 2 * d + more;
            q.v = 2;
            const bidir_result v = bidir_run(a, &q);
            for (uint32_t r = 0; r < (uint32_t)d; r++) {
                const plan_stream *const x = plan_compute(&wide.p, r);
                const plan_stream *const y = plan_compute(&v.p, r);
                assert_int_equal(x->n_tasks, y->n_tasks);
                for (uint32_t i = 0; i < x->n_tasks; i++) {
                    assert_int_equal(wide.p.tasks[x->first_task + i].kind,
                                     v.p.tasks[y->first_task + i].kind);
                    assert_int_equal(wide.t.begin_ns[x->first_task + i],
                                     v.t.begin_ns[y->first_task + i]);
                }
            }
            td_arena_free(a);
        }
}

/* Where the form does not hold: the outer ranks idle less when a pair costs less than F + B; the
 * step is shorter for (F, B, W, FB) = (3, 7, 3, 8), longer for (2, 5, 3, 6). */
static void dual_beyond(void **state)
{
    const bidir_query q = {
        .family = "dualpipe", .pp = 8, .m = 16, .v = 1, .f = 2, .b = 4, .i = 2, .w = 2, .pair = 5};
    static const double idle[8] = {7, 8, 9, 9, 9, 9, 8, 7};
    const bidir_result r = bidir_run(*state, &q);
    for (int i = 0; i < 8; i++)
        T_CLOSE((double)(r.m.step_ns - r.m.ranks[i].busy_ns) / 1e6, idle[i], 0, 1e-9);
    static const double odd[2][4] = {{3, 7, 3, 8}, {2, 5, 3, 6}};
    for (int i = 0; i < 2; i++) {
        const double f = odd[i][0], b = odd[i][1], w = odd[i][2], fb = odd[i][3];
        const bidir_query o = {.family = "dualpipe",
                               .pp = 8,
                               .m = 16,
                               .v = 1,
                               .f = f,
                               .b = b,
                               .i = b - w,
                               .w = w,
                               .pair = fb};
        const bidir_result got = bidir_run(*state, &o);
        const double form = 9 * f + 7 * fb + 9 * b + 3 * (fb + b - 3 * w);
        const double off = (double)got.m.step_ns / 1e6 - form;
        if (!(i == 0 ? off < -1e-6 : off > 1e-6))
            fail_msg("F=%g B=%g W=%g FB=%g: off the form by %g", f, b, w, fb, off);
    }
}

/* The validation matrix: whole-stage F = 1, B = 2. */
static void matrix(void **state)
{
    static const struct {
        const char *family, *options;
        int32_t v, m;
        double t, least, most;
    } rows[] = {
        {"gpipe", NULL, 1, 4, 21, 4, 4},
        {"1f1b", NULL, 1, 4, 21, 1, 4},
        {"interleaved-1f1b", "compat=1", 2, 4, 16.5, 4, 4},
        {"chimera", NULL, 1, 4, 16, 3, 4},
        {"bitpipe", NULL, 2, 4, 14, 3.5, 4},
        {"hanayo", NULL, 2, 4, 18, 2.5, 4},
        {"hanayo", NULL, 4, 4, 15, 3.25, 4},
        {"interleaved-1f1b", NULL, 2, 8, 28.5, 2.5, 5.5},
        {"hanayo", NULL, 4, 8, 28.5, 3.25, 4},
        {"gpipe", NULL, 1, 16, 57, 16, 16},
        {"1f1b", NULL, 1, 16, 57, 1, 4},
        {"interleaved-1f1b", "compat=1", 2, 16, 52.5, 2.5, 5.5},
        {"chimera", NULL, 1, 16, 58, 3, 4},
        {"chimera", "doubling=1", 1, 16, 51, 7, 8},
        {"bitpipe", NULL, 2, 16, 53, 3.5, 4},
        {"hanayo", NULL, 2, 16, 63, 2.5, 4},
        {"hanayo", NULL, 4, 16, 55.5, 3.25, 4},
        {"dualpipe", NULL, 1, 16, 50, 5, 5},
        {"dualpipev", NULL, 2, 16, 51, 4.5, 4.5},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const bidir_query q = {.family = rows[i].family,
                               .options = rows[i].options,
                               .pp = 4,
                               .m = rows[i].m,
                               .v = rows[i].v,
                               .f = 1.0 / rows[i].v,
                               .b = 2.0 / rows[i].v,
                               .i = 1.0 / rows[i].v};
        const bidir_result r = bidir_run(*state, &q);
        check_step(*state, &q, &r, rows[i].t);
        check_peaks(*state, &q, &r, rows[i].least, rows[i].most);
    }
}

/* D = 8: BitPipe beats interleaved 1F1B for K = 1 and 2 and loses for K = 4; Chimera is then behind
 * plain 1F1B. In units of a whole stage. */
static void crossover(void **state)
{
    static const double bitpipe[] = {30, 57, 0, 111}, looping[] = {34.5, 58.5, 0, 106.5};
    for (int32_t k = 1; k <= 4; k += k < 2 ? 1 : 2) {
        bidir_query q = {.family = "bitpipe", .pp = 8, .m = 8 * k, .v = 2, .f = 0.5, .b = 1};
        const bidir_result r = bidir_run(*state, &q);
        check_step(*state, &q, &r, bitpipe[k - 1]);
        q.family = "interleaved-1f1b";
        const bidir_result l = bidir_run(*state, &q);
        check_step(*state, &q, &l, looping[k - 1]);
    }
    bidir_query q = {.family = "chimera", .pp = 8, .m = 32, .v = 1, .f = 1, .b = 2};
    const bidir_result c = bidir_run(*state, &q);
    check_step(*state, &q, &c, 126);
    q.family = "1f1b";
    const bidir_result one = bidir_run(*state, &q);
    check_step(*state, &q, &one, 117);
}

/* Messages on the critical path: 3D - 5 + (K - 1)(2D - 4) for one chunk, 5D - 7 + (K - 1)(4D - 5)
 * for two. */
static void latency(void **state)
{
    (void)state;
    static const double comms[] = {0.001, 0.01, 0.1};
    for (int32_t d = 4; d <= 16; d += 2)
        for (int32_t k = 1; k <= 4; k++)
            for (int32_t v = 1; v <= 2; v++)
                for (size_t i = 0; i < 3; i++) {
                    td_arena *const a = td_arena_new();
                    bidir_query q = {
                        .family = "bitpipe", .pp = d, .m = k * d, .v = v, .f = 1, .b = 2};
                    const bidir_result still = bidir_run(a, &q);
                    q.comm = comms[i];
                    const bidir_result r = bidir_run(a, &q);
                    const double hops = v == 1 ? 3 * d - 5 + (k - 1) * (2 * d - 4)
                                               : 5 * d - 7 + (k - 1) * (4 * d - 5);
                    check_step(a, &q, &r, (double)still.m.step_ns / 1e6 + hops * q.comm);
                    td_arena_free(a);
                }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_pipes),
        cmocka_unit_test(many_pipes),
        cmocka_unit_test(waves),
        cmocka_unit_test(dual_steps),
        cmocka_unit_test(dual_folds),
        T_TEST(dual_beyond),
        T_TEST(matrix),
        T_TEST(crossover),
        cmocka_unit_test(latency),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
