/* Forward-backward disaggregation: makespans and start times against the worked examples, closed
 * forms and a recursion of its own. */
#include "fbd_case.h"

static int64_t begin_of(const fbd_run *r, int32_t row, uint8_t kind, uint32_t m)
{
    const plan_stream *const s = plan_compute(&r->p, (uint32_t)row);
    for (uint32_t i = s->first_task; i < s->first_task + s->n_tasks; i++)
        if (r->p.tasks[i].kind == kind && r->p.tasks[i].microbatch == m) return r->t.begin_ns[i];
    fail_msg("row %d has no such pass of microbatch %u", row, m);
    return -1;
}

static void want_ms(td_arena *a, const fbd_case *k, double want)
{
    fbd_run r;
    fbd_simulate(k, a, &r);
    if (fabs((double)r.m.step_ns - want * 1e6) > 0.5)
        fail_msg("P=%d M=%d T=%d %s%s: %.6f ms, not %.6f", k->p, k->m, k->tp,
                 k->lagged ? "lagged" : "direct", k->merged ? " merged" : "",
                 (double)r.m.step_ns / 1e6, want);
}

enum { MAX_P = 6, MAX_M = 24 };

/* --- worked examples (f = 1, b = 2, R = 1) --- */

static void test_four_stages(void **state)
{
    for (int lagged = 0; lagged < 2; lagged++) {
        const fbd_case k = fbd_unit(4, 8, lagged);
        fbd_run r;
        fbd_simulate(&k, *state, &r);
        assert_int_equal(r.m.step_ns, 33000000);
        assert_int_equal(r.p.n_ranks, 8);
        for (int32_t s = 0; s < 4; s++) {
            const int64_t first = 4 + (3 - s) * 2; /* first backward */
            for (uint32_t m = 0; m < 8; m++) {
                assert_int_equal(begin_of(&r, s, PASS_F, m), (s + (int64_t)m) * 1000000);
                assert_int_equal(begin_of(&r, 4 + s, PASS_B, m), (first + 3 * m) * 1000000);
                if (m > 0)
                    assert_int_equal(begin_of(&r, 4 + s, PASS_R, m), (first + 3 * m - 1) * 1000000);
            }
            const int64_t early = s == 0 ? 0 : lagged ? 3 : s;
            assert_int_equal(begin_of(&r, 4 + s, PASS_R, 0), early * 1000000);
            T_CLOSE(r.m.ranks[s].peak_activations, 0, 0, 0);
            T_CLOSE(r.m.ranks[4 + s].peak_activations, 1, 0, 0);
        }
        assert_int_equal(r.m.messages, 3 * 8 * 3);
        T_CLOSE(r.m.bubble_frac, 1 - 4.0 * 8 * 4 / (8 * 33), 1e-12, 0);
    }
}

static void test_merged(void **state)
{
    fbd_case k = fbd_unit(2, 8, false);
    k.merged = true;
    k.tp = 2;
    fbd_run r;
    fbd_simulate(&k, *state, &r);
    assert_int_equal(r.m.step_ns, 28000000);
    assert_int_equal(plan_devices(&r.p), 6);
    for (uint32_t m = 0; m < 8; m++) {
        assert_int_equal(begin_of(&r, 0, PASS_F, m), 2000000 * m);
        assert_int_equal(begin_of(&r, 1, PASS_F, m), 2000000 * (m + 1));
        assert_int_equal(begin_of(&r, 3, PASS_B, m), 3000000 * (m + 1));
        assert_int_equal(begin_of(&r, 2, PASS_B, m), 3000000 * m + 5000000);
    }
    k.tp = 4;
    want_ms(*state, &k, 37);
    k.lagged = true;
    want_ms(*state, &k, 37);
}

/* Sends and receives that block, as a program of blocking calls has them. */
static void test_blocking_sends(void **state)
{
    static const int64_t starts[4][8] = {{0, 1, 2, 3, 4, 11, 14, 17},
                                         {1, 2, 3, 10, 13, 16, 19, 22},
                                         {2, 3, 8, 11, 14, 17, 20, 23},
                                         {3, 6, 9, 12, 15, 18, 21, 24}};
    fbd_case k = fbd_unit(4, 8, true);
    k.protocol = PROTOCOL_RENDEZVOUS;
    k.window = 1;
    k.lookahead = 0;
    fbd_run r;
    fbd_simulate(&k, *state, &r);
    assert_int_equal(r.m.step_ns, 33000000);
    for (int32_t s = 0; s < 4; s++)
        for (uint32_t m = 0; m < 8; m++)
            assert_int_equal(begin_of(&r, s, PASS_F, m), starts[s][m] * 1000000);
    k.lagged = false;
    want_ms(*state, &k, 45);
    /* without --send-window, credits keep the forwards going */
    k.window = 0;
    want_ms(*state, &k, 33);
    k.m = 32;
    want_ms(*state, &k, 105);
}

/* What a rank's program does next: computes for a time, or meets another rank. */
typedef struct blocking_call {
    int peer, kind; /* peer -1: computes; kind: 'a'ctivation, 'h'and-off, 'g'radient */
    bool sends;
    double ms;
} blocking_call;

enum { PROGRAM_MAX = 8 * MAX_M };

typedef struct blocking_program {
    blocking_call calls[PROGRAM_MAX];
    int n, at;
    double now;
} blocking_program;

static void add_call(blocking_program *b, int peer, int kind, bool sends, double ms)
{
    b->calls[b->n++] = (blocking_call){peer, kind, sends, ms};
}

/* The loops of a forward and of a backward rank (specs), as calls that block. */
static void write_programs(const fbd_case *k, blocking_program *b)
{
    for (int s = 0; s < k->p; s++) {
        blocking_program *const f = &b[s], *const r = &b[k->p + s];
        const int lag = k->p - 1 - s;
        for (int m = 0; m < k->m; m++) {
            if (s > 0) add_call(f, s - 1, 'a', false, 0);
            if (s > 0 && k->lagged && m >= lag) add_call(f, k->p + s, 'h', true, 0);
            add_call(f, -1, 0, false, k->f);
            if (s + 1 < k->p) add_call(f, s + 1, 'a', true, 0);
            if (s + 1 < k->p && !k->lagged) add_call(f, k->p + s + 1, 'h', true, 0);
            if (s > 0) add_call(r, k->lagged ? s : s - 1, 'h', false, 0);
            add_call(r, -1, 0, false, k->f);
            if (s + 1 < k->p) add_call(r, k->p + s + 1, 'g', false, 0);
            add_call(r, -1, 0, false, k->b);
            if (s > 0) add_call(r, k->p + s - 1, 'g', true, 0);
        }
        for (int m = k->m - lag < 0 ? 0 : k->m - lag; s > 0 && k->lagged && m < k->m; m++)
            add_call(f, k->p + s, 'h', true, 0);
    }
}

static bool step_program(const fbd_case *k, blocking_program *all, int rank)
{
    blocking_program *const b = &all[rank];
    if (b->at == b->n) return false;
    const blocking_call *const c = &b->calls[b->at];
    if (c->peer < 0) {
        b->now += c->ms;
        b->at++;
        return true;
    }
    blocking_program *const other = &all[c->peer];
    if (other->at == other->n) return false;
    const blocking_call *const d = &other->calls[other->at];
    if (d->peer != rank || d->kind != c->kind || d->sends == c->sends) return false;
    b->now = other->now = (b->now > other->now ? b->now : other->now) + k->comm;
    b->at++;
    other->at++;
    return true;
}

static double blocking_ms(const fbd_case *k, td_arena *a)
{
    blocking_program *const all = TD_NEW_N(a, blocking_program, 2 * k->p);
    double end = 0;
    write_programs(k, all);
    for (bool moves = true; moves;) {
        moves = false;
        for (int r = 0; r < 2 * k->p; r++)
            while (step_program(k, all, r)) moves = true;
    }
    for (int r = 0; r < 2 * k->p; r++) {
        assert_int_equal(all[r].at, all[r].n);
        if (all[r].now > end) end = all[r].now;
    }
    return end;
}

/* Published: 105, 115 and 155 lagged, 165, 178 and 230 direct; and the programs themselves. */
static void test_blocking_latency(void **state)
{
    static const double published[2][3] = {{165, 178, 230}, {105, 115, 155}};
    static const double comms[] = {0, 0.1, 0.5};
    fbd_case k = fbd_unit(4, 32, false);
    k.protocol = PROTOCOL_RENDEZVOUS;
    k.window = 1;
    k.lookahead = 0;
    for (int lagged = 0; lagged < 2; lagged++)
        for (int i = 0; i < 3; i++) {
            k.lagged = lagged;
            k.comm = comms[i];
            want_ms(*state, &k, published[lagged][i]);
        }
    td_rng rng = td_rng_seed(6);
    for (int i = 0; i < 100; i++) {
        td_arena *const a = td_arena_new();
        k.p = 1 + (int32_t)td_rng_below(&rng, MAX_P);
        k.m = 1 + (int32_t)td_rng_below(&rng, MAX_M);
        k.lagged = td_rng_below(&rng, 2) == 0;
        k.f = 1e-3 * (double)(1 + td_rng_below(&rng, 50));
        k.b = 1e-3 * (double)(1 + td_rng_below(&rng, 50));
        k.comm = 1e-3 * (double)td_rng_below(&rng, 20);
        want_ms(a, &k, blocking_ms(&k, a));
        td_arena_free(a);
    }
}

static void test_latency(void **state)
{
    static const double want[][2] = {{0, 105}, {0.1, 105.7}, {0.5, 108.5}};
    for (int i = 0; i < 3; i++) {
        fbd_case k = fbd_unit(4, 32, true);
        k.comm = want[i][0];
        want_ms(*state, &k, want[i][1]);
    }
}

/* A recompute inside the backward as well: 44 (the shipped script's double recompute). */
static void test_double_recompute(void **state)
{
    for (int lagged = 0; lagged < 2; lagged++) {
        fbd_case k = fbd_unit(4, 8, lagged);
        k.b = 3;
        want_ms(*state, &k, 44);
    }
}

/* --- closed form --- */

static void test_closed_form(void **state)
{
    (void)state;
    static const double times[][2] = {{1, 2}, {1, 1}, {3, 2}, {2, 7}, {0.000001, 0.000003}};
    for (int32_t p = 1; p <= 7; p += p < 4 ? 1 : 3)
        for (int32_t m = 1; m <= 13; m += m < 3 ? 1 : 5)
            for (int32_t tp = 1; tp <= 8; tp += tp < 2 ? 1 : 3)
                for (size_t i = 0; i < sizeof times / sizeof *times; i++)
                    for (int lagged = 0; lagged < 2; lagged++) {
                        td_arena *const a = td_arena_new();
                        fbd_case k = fbd_unit(p, m, lagged);
                        k.merged = true;
                        k.tp = tp;
                        k.f = times[i][0];
                        k.b = times[i][1];
                        const double f = tp * k.f, period = k.f + k.b;
                        double want = f <= period ? (p - 1) * (f + k.b) + m * period
                                                  : (p - 2 + m) * f + k.f + p * k.b;
                        /* one stage: its two rows have nothing to say to each other */
                        if (p == 1) want = m * period;
                        /* no backward waits for the last forward row, the step does */
                        if ((p - 1 + m) * f > want) want = (p - 1 + m) * f;
                        want_ms(a, &k, want);
                        td_arena_free(a);
                    }
}

/* --- random cases against a recursion --- */

static double later(double x, double y) { return x > y ? x : y; }

static double recursion(const fbd_case *k)
{
    static const double never = 0;
    double f[MAX_P][MAX_M], here[MAX_P][MAX_M], b[MAX_P][MAX_M], end = 0;
    for (int s = 0; s < k->p; s++)
        for (int m = 0; m < k->m; m++) {
            const double free = m > 0 ? f[s][m - 1] : never;
            here[s][m] = s > 0 ? later(free, f[s - 1][m] + k->comm) : free;
            f[s][m] = here[s][m] + k->f;
            end = later(end, f[s][m]);
        }
    for (int s = k->p - 1; s >= 0; s--)
        for (int m = 0; m < k->m; m++) {
            const int lag = k->credits < 0 ? k->p - 1 - s : k->credits;
            double start = m > 0 ? b[s][m - 1] : never;
            if (s > 0 && !k->lagged) start = later(start, f[s - 1][m] + k->comm);
            if (s > 0 && k->lagged)
                start =
                    later(start, (m + lag < k->m ? here[s][m + lag] : f[s][k->m - 1]) + k->comm);
            start += k->f;
            if (s + 1 < k->p) start = later(start, b[s + 1][m] + k->comm);
            b[s][m] = start + k->b;
            end = later(end, b[s][m]);
        }
    return end;
}

static void test_random(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(5);
    for (int i = 0; i < 200; i++) {
        td_arena *const a = td_arena_new();
        fbd_case k = fbd_unit(1 + (int32_t)td_rng_below(&rng, MAX_P),
                              1 + (int32_t)td_rng_below(&rng, MAX_M), td_rng_below(&rng, 2) == 0);
        k.credits = (int32_t)td_rng_below(&rng, 2) == 0
                        ? -1
                        : (k.lagged ? 0 : 1) + (int32_t)td_rng_below(&rng, k.m);
        k.f = 1e-3 * (double)(1 + td_rng_below(&rng, 50));
        k.b = 1e-3 * (double)(1 + td_rng_below(&rng, 50));
        k.comm = 1e-3 * (double)td_rng_below(&rng, 20);
        want_ms(a, &k, recursion(&k));
        /* whatever blocks, the plan finishes */
        fbd_run r;
        k.protocol = PROTOCOL_RENDEZVOUS;
        k.window = (int32_t)td_rng_below(&rng, 4);
        k.lookahead = (int32_t)td_rng_below(&rng, 3);
        fbd_simulate(&k, a, &r);
        td_arena_free(a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(test_four_stages), T_TEST(test_merged),           T_TEST(test_blocking_sends),
        T_TEST(test_latency),     T_TEST(test_blocking_latency), T_TEST(test_double_recompute),
        T_TEST(test_closed_form), T_TEST(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
