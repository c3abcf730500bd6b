/* Searched orders: never above their limits, never worse than the heuristic, proofs that hold
 * against every order there is. */
#include "schedules/v_slots.h"
#include "schedules/zb_search.h"
#include "schedules/zb_v.h"
#include "t.h"
#include "zb_run.h"

/* --- uneven stages --- */

typedef struct uneven {
    int64_t ns[64][3];
} uneven;

static td_status price(const void *from, int32_t n_stages, sched_stage_cost *out, td_err *err)
{
    const uneven *const u = from;
    (void)err;
    for (int32_t s = 0; s < n_stages; s++) {
        out[s] = (sched_stage_cost){.send_ns = 1};
        out[s].pass_ns[PASS_F] = u->ns[s][0];
        out[s].pass_ns[PASS_I] = u->ns[s][1];
        out[s].pass_ns[PASS_W] = u->ns[s][2];
    }
    return TD_OK;
}

static uneven random_stages(td_rng *rng, bool even)
{
    uneven u;
    for (int s = 0; s < 64; s++)
        for (int k = 0; k < 3; k++)
            u.ns[s][k] = even && s > 0 ? u.ns[0][k] : 1 + td_rng_below(rng, 20);
    return u;
}

static td_status search(td_arena *a, const uneven *u, int32_t p, int32_t m, double limit,
                        const char *how, const char *placement, schedule *out, td_err *err)
{
    const sched_option_value options[] = {{"search", how}, {"placement", placement}};
    const sched_request q = {.pp = p,
                             .microbatches = m,
                             .options = options,
                             .n_options = 2,
                             .price = price,
                             .price_from = u,
                             .activation_limit = limit,
                             .search_s = strcmp(how, "local") == 0 ? 0.004 : 0};
    return sched_generate("zb-auto", &q, a, out, err);
}

/* Live activations never pass the limit; counted here, from the rows. */
static void check_memory(const schedule *s, double limit)
{
    const int chunks = s->n_stages / s->n_rows;
    for (int32_t r = 0; r < s->n_rows; r++) {
        int live = 0;
        for (int64_t i = 0; i < s->rows[r].n_cells; i++) {
            live += s->rows[r].cells[i].kind == PASS_F;
            live -= s->rows[r].cells[i].kind == PASS_W;
            if (live > (int)(limit * chunks + 1e-9))
                fail_msg("row %d keeps %d chunks, over a limit of %g", r, live, limit);
        }
    }
}

static void within_limits(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(8);
    int better = 0;
    for (int n = 0; n < 60; n++) {
        td_arena *const a = td_arena_new();
        const int32_t p = 2 + (int32_t)td_rng_below(&rng, 5);
        const int32_t m = 1 + (int32_t)td_rng_below(&rng, 14);
        const double limit = 1 + (double)td_rng_below(&rng, 4 * p) / 2;
        const uneven u = random_stages(&rng, n % 2 == 0);
        schedule s, t;
        td_err err = {0};
        T_OK(search(a, &u, p, m, limit, "heuristic", "linear", &s, &err), &err);
        check_memory(&s, limit);
        T_OK(search(a, &u, p, m, limit, "local", "linear", &t, &err), &err);
        check_memory(&t, limit);
        assert_true(t.search.span_ns <= s.search.span_ns);
        assert_true(t.search.span_ns >= t.search.bound_ns);
        better += t.search.span_ns < s.search.span_ns;
        T_OK(search(a, &u, p, m, limit, "local", "v", &s, &err), &err);
        check_memory(&s, limit);
        td_arena_free(a);
    }
    if (better < 15) fail_msg("better than the heuristic in %d of 60 cases only", better);
}

/* --- fixed orders --- */

/* A problem whose activations are counted in chunks. */
typedef struct counted {
    int64_t ns[3][64], delta[3][64], limit[32];
    zb_problem q;
} counted;

static void count(counted *c, const uneven *u, int32_t p, int32_t m, int32_t chunks)
{
    for (int s = 0; s < 64; s++)
        for (int k = 0; k < 3; k++) {
            c->ns[k][s] = u->ns[s][k];
            c->delta[k][s] = 1 - k;
        }
    for (int r = 0; r < 32; r++) c->limit[r] = (int64_t)chunks * p;
    c->q = (zb_problem){.p = p,
                        .m = m,
                        .chunks = chunks,
                        .pass_ns = {c->ns[0], c->ns[1], c->ns[2]},
                        .comm_ns = 1,
                        .delta = {c->delta[0], c->delta[1], c->delta[2]},
                        .limit = c->limit};
}

/* The search keeps to what the order keeps, and is not worse. Returns whether it is better. */
static bool beats(td_arena *a, const counted *c, const uneven *u, const zb_order *o)
{
    zb_replay w;
    zb_score fixed;
    schedule s;
    td_err err = {0};
    int64_t peak = 0;
    T_OK(zb_replay_new(a, &c->q, &w, &err), &err);
    assert_true(zb_replay_run(&c->q, o, &w, &fixed));
    for (int32_t r = 0; r < o->p; r++)
        if (zb_peak(&c->q, o, r) > peak) peak = zb_peak(&c->q, o, r);
    const double limit = (double)peak / o->chunks;
    T_OK(search(a, u, o->p, o->m, limit, "local", o->chunks == 1 ? "linear" : "v", &s, &err), &err);
    check_memory(&s, limit);
    if (s.search.span_ns > fixed.span_ns)
        fail_msg("P=%d M=%d, %d chunks, limit %g: span %lld, of a fixed order %lld", o->p, o->m,
                 o->chunks, limit, (long long)s.search.span_ns, (long long)fixed.span_ns);
    return s.search.span_ns < fixed.span_ns;
}

static void never_worse(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(21);
    int better = 0, even = 0;
    for (int n = 0; n < 16; n++) {
        td_arena *const a = td_arena_new();
        const int32_t p = 2 + n % 8, m = 1 + (int32_t)td_rng_below(&rng, 3 * p);
        const uneven u = random_stages(&rng, n % 3 == 0);
        td_err err = {0};
        counted c;
        zb_order o;
        bool found = false;
        count(&c, &u, p, m, 1);
        for (int32_t lead = 1; lead <= 2; lead++) {
            T_OK(zb_slot_order(p, m, lead, a, &o, &err), &err);
            better += beats(a, &c, &u, &o);
        }
        count(&c, &u, p, m, 2);
        T_OK(v_block_order(p, m, v_half_block, a, &o, &err), &err);
        better += beats(a, &c, &u, &o);
        T_OK(v_block_order(p, m, v_min_block, a, &o, &err), &err);
        better += beats(a, &c, &u, &o);
        T_OK(zb_v_hand(p, m, a, &o, &err), &err);
        better += beats(a, &c, &u, &o);
        /* ZB-V has an order at its own limit for any stages */
        T_OK(zb_v_auto(&c.q, a, &o, &found, &err), &err);
        even += !found;
        T_OK(zb_v_even(&c.q, a, &o, &found, &err), &err);
        assert_true(found);
        for (int32_t r = 0; r < p; r++) assert_true(zb_peak(&c.q, &o, r) <= 2 * p);
        better += beats(a, &c, &u, &o);
        td_arena_free(a);
    }
    assert_true(better > 50 && even > 0);
}

/* Costs that the adaptive scheduler of arXiv 2405.15362 was measured to reach (times of chunks),
 * and what is below V-Min's memory, which it has no orders for: better with each chunk more, and
 * never more than as many times one microbatch's span as there are microbatches for one at a time.
 */
static void adaptive(void **state)
{
    static const struct {
        int32_t p, m, chunks;
        double cost;
    } rows[] = {{4, 8, 4, 705},    {4, 8, 6, 585},    {4, 8, 8, 530},   {8, 32, 8, 2643},
                {8, 32, 10, 2251}, {8, 32, 12, 2186}, {8, 32, 16, 2066}};
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        const zb_query q = {.family = "zb-auto",
                            .pp = rows[n].p,
                            .m = rows[n].m,
                            .f = 10,
                            .i = 12,
                            .w = 9,
                            .comm = 1,
                            .options =
                                td_sprintf(*state, "placement=v limit=%g", rows[n].chunks / 2.0)};
        const zb_result r = zb_run(*state, &q);
        if (r.span > rows[n].cost || r.peak > rows[n].chunks)
            fail_msg("%s: span %g, peak %g; measured %g", zb_text(*state, &q), r.span, r.peak,
                     rows[n].cost);
    }
    double last = (double)INFINITY;
    for (int32_t chunks = 2; chunks <= 8; chunks++) {
        const zb_query q = {
            .family = "zb-auto",
            .pp = 8,
            .m = 32,
            .f = 1,
            .i = 1,
            .w = 1,
            .options = td_sprintf(*state, "placement=v search=heuristic limit=%g", chunks / 2.0)};
        const zb_result r = zb_run(*state, &q);
        if (r.span >= last || r.peak > chunks || r.span > 32 * 34 * 2.4 / chunks)
            fail_msg("%s: span %g, peak %g; %g with a chunk less", zb_text(*state, &q), r.span,
                     r.peak, last);
        last = r.span;
    }
}

/* --- proofs --- */

/* All rows of one rank: ballot sequences of F, I, W within the limit. */
typedef struct rows_of {
    uint8_t rows[512][16];
    int n;
} rows_of;

static void all_rows(rows_of *out, uint8_t *row, int at, int f, int i, int w, int m, int limit)
{
    if (at == 3 * m) {
        memcpy(out->rows[out->n++], row, (size_t)at);
        return;
    }
    const bool can[3] = {f < m && f - w < limit, i < f, w < i};
    for (int k = 0; k < 3; k++) {
        if (!can[k]) continue;
        row[at] = zb_code(k, 0);
        all_rows(out, row, at + 1, f + (k == 0), i + (k == 1), w + (k == 2), m, limit);
    }
}

static int64_t best_of_all(td_arena *a, const zb_problem *q, int limit)
{
    rows_of *const all = TD_NEW(a, rows_of);
    zb_replay w;
    zb_order o;
    td_err err = {0};
    uint8_t row[16];
    int64_t best = INT64_MAX, total = 1;
    all_rows(all, row, 0, 0, 0, 0, q->m, limit);
    T_OK(zb_replay_new(a, q, &w, &err), &err);
    T_OK(zb_order_new(a, q->p, q->m, 1, &o, &err), &err);
    for (int32_t r = 0; r < q->p; r++) {
        o.n[r] = o.room;
        total *= all->n;
    }
    for (int64_t n = 0; n < total; n++) {
        int64_t rest = n;
        zb_score s;
        for (int32_t r = 0; r < q->p; r++, rest /= all->n)
            memcpy(zb_row(&o, r), all->rows[rest % all->n], (size_t)o.room);
        if (zb_replay_run(q, &o, &w, &s) && s.span_ns < best) best = s.span_ns;
    }
    return best;
}

/* One microbatch at a time: as bad a start as a search can have. */
static void serial(td_arena *a, const zb_problem *q, zb_order *o, zb_score *score)
{
    zb_replay w;
    td_err err = {0};
    T_OK(zb_replay_new(a, q, &w, &err), &err);
    T_OK(zb_order_new(a, q->p, q->m, 1, o, &err), &err);
    for (int32_t r = 0; r < q->p; r++)
        for (int32_t k = 0; k < 3 * q->m; k++) zb_push(o, r, zb_code(k % 3, 0));
    assert_true(zb_replay_run(q, o, &w, score));
}

static void proofs(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(5);
    for (int n = 0; n < 60; n++) {
        td_arena *const a = td_arena_new();
        const int32_t p = 2 + n % 2, m = n % 3 == 0 && p == 2 ? 4 : 3;
        const int limit = 1 + (int)td_rng_below(&rng, m);
        const uneven u = random_stages(&rng, n % 4 < 2);
        int64_t ns[3][3];
        const int64_t delta[3][3] = {{1, 1, 1}, {0, 0, 0}, {-1, -1, -1}};
        const int64_t limits[3] = {limit, limit, limit};
        for (int k = 0; k < 3; k++)
            for (int s = 0; s < 3; s++) ns[k][s] = u.ns[s][k];
        const zb_problem q = {.p = p,
                              .m = m,
                              .chunks = 1,
                              .pass_ns = {ns[0], ns[1], ns[2]},
                              .comm_ns = 1,
                              .delta = {delta[0], delta[1], delta[2]},
                              .limit = limits};
        const zb_search_options o = {.objective = ZB_SPAN};
        int64_t bound = 0;
        zb_order order;
        zb_score score;
        td_err err = {0};
        serial(a, &q, &order, &score);
        T_OK(zb_exact(&q, &o, a, &order, &score, &bound, &err), &err);
        const int64_t best = best_of_all(a, &q, limit);
        if (score.span_ns != best || bound != best)
            fail_msg("P=%d M=%d limit %d: span %lld, bound %lld, the best of all orders %lld", p, m,
                     limit, (long long)score.span_ns, (long long)bound, (long long)best);
        for (int32_t r = 0; r < p; r++) assert_true(zb_peak(&q, &order, r) <= limit);
        td_arena_free(a);
    }
}

/* The adaptive scheduler's bubble for unit passes and a limit of `chunks`, from V-Min's memory to
 * ZB-V's: 3p - 1 - 3 chunks + max(3p, p + 1 + 2 ceil(chunks / 2)). */
static void memory_for_bubbles(void **state)
{
    (void)state;
    for (int32_t p = 4; p <= 10; p += 2)
        for (int32_t chunks = 2 * ((p + 4) / 3); chunks <= 2 * p; chunks++) {
            td_arena *const a = td_arena_new();
            const zb_query q = {
                .family = "zb-auto",
                .pp = p,
                .m = 4 * p,
                .f = 1,
                .i = 1,
                .w = 1,
                .options = td_sprintf(a, "placement=v search=heuristic limit=%g", chunks * 0.5)};
            const zb_result r = zb_run(a, &q);
            const int32_t even = chunks + chunks % 2;
            const int32_t least = 3 * p > p + 1 + even ? 3 * p : p + 1 + even;
            const double want = 3 * p - 1 - 3 * chunks + least;
            if (r.span - 6 * q.m > want + 1e-6 || r.peak > chunks)
                fail_msg("%s: bubble %g for %g chunks, not %g", zb_text(a, &q), r.span - 6 * q.m,
                         r.peak, want);
            td_arena_free(a);
        }
}

/* Optima that an integer programme proved. */
static void known_optima(void **state)
{
    static const struct {
        int32_t p, m;
        int f, i, w, comm, limit, heuristic, best;
    } rows[] = {{4, 8, 1, 1, 1, 0, 4, 27, 27},
                {4, 8, 10, 12, 9, 1, 4, 299, 299},
                {4, 8, 10, 12, 9, 1, 8, 262, 257},
                {4, 6, 10, 12, 9, 1, 8, 0, 213},
                {3, 8, 10, 12, 9, 1, 6, 0, 252}};
    for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
        static const char *const how[] = {"heuristic", "local", "exact"};
        for (int k = 0; k < 3; k++) {
            const zb_query q = {.family = "zb-auto",
                                .pp = rows[n].p,
                                .m = rows[n].m,
                                .f = rows[n].f,
                                .i = rows[n].i,
                                .w = rows[n].w,
                                .comm = rows[n].comm,
                                .options = td_sprintf(*state, "search=%s deltas=2,-1,-1 limit=%d",
                                                      how[k], rows[n].limit)};
            const zb_result r = zb_run(*state, &q);
            const double want = k == 0 ? rows[n].heuristic : rows[n].best;
            if (want > 0 && fabs(r.span - want) > 1e-6)
                fail_msg("%s: span %.9g, not %g", zb_text(*state, &q), r.span, want);
            /* what the search says is what the simulator finds */
            assert_int_equal(r.s.search.span_ns, llround(r.span * 1e6));
            if (k == 2) assert_int_equal(r.s.search.bound_ns, r.s.search.span_ns);
        }
    }
}

static void same_seed_same_order(void **state)
{
    zb_query q = {.family = "zb-auto",
                  .pp = 4,
                  .m = 10,
                  .f = 7,
                  .i = 9,
                  .w = 4,
                  .comm = 1,
                  .options = "limit=5 seed=1"};
    schedule s, t;
    td_err err = {0};
    T_OK(zb_generate(*state, &q, &s, &err), &err);
    T_OK(zb_generate(*state, &q, &t, &err), &err);
    assert_true(sched_equal(&s, &t));
}

static void bad_input(void **state)
{
    td_err err;
    schedule s;
    zb_query q = {.family = "zb-auto", .pp = 4, .m = 8, .options = ""};
    T_FAILS(zb_generate(*state, &q, &s, &err), TD_EUSAGE, &err, "--times F=MS,I=MS,W=MS");
    q = (zb_query){.family = "zb-auto", .pp = 4, .m = 8, .f = 1, .i = 1, .w = 1};
    q.options = "limit=0.5";
    T_FAILS(zb_generate(*state, &q, &s, &err), TD_EPLAN, &err,
            "legal: --activation-limit 1 or more");
    q.options = "deltas=1,1,-1";
    T_FAILS(zb_generate(*state, &q, &s, &err), TD_EUSAGE, &err, "sum is 0");
    q.options = "deltas=1,0";
    T_FAILS(zb_generate(*state, &q, &s, &err), TD_EUSAGE, &err, "2,-1,-1");
    q.options = "search=exact placement=v";
    T_FAILS(zb_generate(*state, &q, &s, &err), TD_EUSAGE, &err, "placement=linear");
    q.options = "chunks=2";
    T_FAILS(zb_generate(*state, &q, &s, &err), TD_EUSAGE, &err, "legal: --chunks 1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(within_limits),
        cmocka_unit_test(never_worse),
        T_TEST(adaptive),
        cmocka_unit_test(proofs),
        cmocka_unit_test(memory_for_bubbles),
        T_TEST(known_optima),
        T_TEST(same_seed_same_order),
        T_TEST(bad_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
