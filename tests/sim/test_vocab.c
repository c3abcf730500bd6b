/* Vocabulary parallelism: orders, makespans and activations of the worked examples (arXiv
 * 2411.05288 and its code), closed forms on grids, and random times against a plain evaluation of
 * the dependencies. */
#include "schedules/schedule.h"
#include "sim/sim.h"
#include "t.h"

/* Times in ms, as the user types them. */
typedef struct setting {
    double f, b, s, t, e, g, comm, coll;
} setting;

typedef struct query {
    const char *name, *key, *value;
    int32_t pp, m;
    bool edge;
    setting in;
} query;

static const char *times_of(td_arena *a, const setting *x)
{
    return td_sprintf(a,
                      "F=%.17g,I=%.17g,W=%.17g,B=%.17g,S=%.17g,T=%.17g,E=%.17g,G=%.17g,comm=%.17g,"
                      "coll=%.17g",
                      x->f, x->b / 2, x->b / 2, x->b, x->s, x->t, x->e, x->g, x->comm, x->coll);
}

static schedule make(td_arena *a, const query *q)
{
    const sched_option_value options[2] = {{"repo-edge", q->edge ? "1" : "0"}, {q->key, q->value}};
    sched_request r = {
        .pp = q->pp, .microbatches = q->m, .options = options, .n_options = 1 + (q->key != NULL)};
    r.times.pass_ns[PASS_F] = (int64_t)(q->in.f * 1e6);
    r.times.pass_ns[PASS_B] = (int64_t)(q->in.b * 1e6);
    schedule s;
    td_err err = {0};
    T_OK(sched_generate(q->name, &r, a, &s, &err), &err);
    return s;
}

static plan_metrics simulate(td_arena *a, const schedule *s, const char *times, bool eager)
{
    const int32_t chunks = s->n_stages / s->n_rows;
    const sizes z = {.n_stages = s->n_stages, .chunks = chunks};
    const lower_options lower = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1, .no_step = true};
    unit_times units;
    const cost_model cost = {.units = &units, .sizes = &z, .chunks = chunks};
    const sim_options o = {.protocol = eager ? PROTOCOL_EAGER : PROTOCOL_RENDEZVOUS, .cost = &cost};
    plan p;
    int64_t *class_ns = NULL;
    task_times t = {0};
    plan_metrics out;
    td_err err = {0};
    T_OK(unit_times_parse(times, a, &units, &err), &err);
    T_OK(plan_lower(s, &lower, a, &p, &err), &err);
    T_OK(sim_price(&p, &cost, a, &class_ns, &err), &err);
    T_OK(sim_run(&p, class_ns, &o, a, &t, NULL, &err), &err);
    T_OK(metrics_of(&p, &t, (activation_deltas){1, 0, -1}, a, &out, &err), &err);
    return out;
}

/* --- worked examples --- */

static void test_orders(void **state)
{
    static const struct {
        const char *file, *name, *key, *value;
    } rows[] = {{"vocab1_p4_m8.csv", "vocab-1", NULL, NULL},
                {"vocab2_p4_m8.csv", "vocab-2", NULL, NULL},
                {"interlaced_p4_m8.csv", "interlaced", NULL, NULL},
                {"v_half_vocab1_p4_m8.csv", "v-half-vocab", "algorithm", "1"},
                {"v_half_vocab2_p4_m8.csv", "v-half-vocab", "algorithm", "2"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *const path = td_sprintf(*state, "%s/%s", TD_FIXTURES, rows[i].file);
        char *text = NULL;
        size_t len = 0;
        schedule want;
        td_err err = {0};
        T_OK(td_read_file(*state, path, 1 << 20, &text, &len, &err), &err);
        T_OK(sched_parse(text, len, rows[i].file, *state, &want, &err), &err);
        const query q = {rows[i].name, rows[i].key, rows[i].value, 4, 8, false, {.f = 1, .b = 2}};
        const schedule got = make(*state, &q);
        if (!sched_equal(&got, &want)) fail_msg("%s: another order than %s", q.name, rows[i].file);
    }
}

#define UNIT(coll)                                                                                 \
    {                                                                                              \
        1, 2, .5, .5, 0, 0, 0, coll                                                                \
    }
#define PAPER(coll)                                                                                \
    {                                                                                              \
        10, 21, 3, 3, .5, .5, 1, coll                                                              \
    }

static void test_makespans(void **state)
{
    static const struct {
        query q;
        double want_ms;
    } rows[] = {
        {{"vocab-1", NULL, NULL, 4, 8, true, UNIT(0)}, 41},
        {{"vocab-2", NULL, NULL, 4, 8, true, UNIT(0)}, 41},
        {{"interlaced", NULL, NULL, 4, 8, true, UNIT(0)}, 41},
        {{"vocab-1", NULL, NULL, 4, 8, true, UNIT(.5)}, 44},
        {{"vocab-2", NULL, NULL, 4, 8, true, UNIT(.5)}, 44.5},
        {{"interlaced", NULL, NULL, 4, 8, true, UNIT(.5)}, 54},
        {{"vocab-1", NULL, NULL, 4, 8, true, PAPER(1)}, 407.5},
        {{"vocab-2", NULL, NULL, 4, 8, true, PAPER(1)}, 409.5},
        {{"interlaced", NULL, NULL, 4, 8, true, PAPER(1)}, 425},
        {{"vocab-1", NULL, NULL, 4, 8, true, PAPER(5)}, 433},
        {{"vocab-2", NULL, NULL, 4, 8, true, PAPER(5)}, 437.5},
        {{"interlaced", NULL, NULL, 4, 8, true, PAPER(5)}, 529},
        {{"vocab-1", NULL, NULL, 8, 32, true, UNIT(0)}, 149},
        {{"vocab-2", NULL, NULL, 8, 32, true, UNIT(0)}, 149},
        {{"interlaced", NULL, NULL, 8, 32, true, UNIT(0)}, 149},
        {{"vocab-1", NULL, NULL, 8, 32, true, PAPER(1)}, 1498.5},
        {{"vocab-2", NULL, NULL, 8, 32, true, PAPER(1)}, 1498.5},
        {{"interlaced", NULL, NULL, 8, 32, true, PAPER(1)}, 1537},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const query *const q = &rows[i].q;
        const schedule s = make(*state, q);
        const plan_metrics m = simulate(*state, &s, times_of(*state, &q->in), true);
        T_CLOSE((double)m.step_ns / 1e6, rows[i].want_ms, 0, 0);
    }
}

/* Chunk times 1 and 10/12/9: twice that through 1/P of the model. */
static void test_v_half_makespans(void **state)
{
    static const char unit[] = "F=2,I=2,W=2,S=.5,T=.5,E=0,G=0";
    static const char paper[] = "F=20,I=24,W=18,S=3,T=3,E=.5,G=.5,comm=1,coll=1";
    static const struct {
        const char *algorithm, *times;
        double want_ms, peak;
    } rows[] = {
        {"1", unit, 252, 7}, {"2", unit, 250, 6}, {"1", paper, 2600, 7}, {"2", paper, 2565.5, 6}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const query q = {"v-half-vocab", "algorithm", rows[i].algorithm, 8, 32, true, {.f = 1}};
        const schedule s = make(*state, &q);
        const plan_metrics m = simulate(*state, &s, rows[i].times, true);
        T_CLOSE((double)m.step_ns / 1e6, rows[i].want_ms, 0, 0);
        for (int r = 0; r < 8; r++) T_CLOSE(m.ranks[r].peak_activations, rows[i].peak, 0, 1e-9);
    }
}

/* --- closed forms --- */

/* Without latencies every rank works but for the staircases at both ends; in flight are as many
 * microbatches as under 1F1B and one for each barrier, interlaced half of P more. */
static void test_closed_forms(void **state)
{
    static const setting settings[] = {UNIT(0),
                                       {2, 4, .5, 1, 0, 0, 0, 0},
                                       {1, 1, .5, .5, 0, 0, 0, 0},
                                       {1, 3, .25, .75, 0, 0, 0, 0}};
    static const char *const names[] = {"vocab-1", "vocab-2", "interlaced"};
    (void)state;
    for (int i = 0; i < 3; i++)
        for (int32_t pp = 1; pp <= 10; pp++)
            for (int32_t m = pp + 1; m <= 4 * pp + 3; m++) {
                const int32_t more = i == 2 ? pp / 2 : 2 - i;
                if (m < pp + more || (i == 2 && pp % 2 != 0)) continue;
                td_arena *const a = td_arena_new();
                const setting *const x = &settings[(m + pp) % 4];
                const query q = {names[i], NULL, NULL, pp, m, m % 2 == 0, *x};
                const schedule s = make(a, &q);
                const plan_metrics got = simulate(a, &s, times_of(a, x), true);
                const double want = m * (x->f + x->b + x->s + x->t) + (pp - 1) * (x->f + x->b);
                T_CLOSE((double)got.step_ns / 1e6, want, 0, 1e-9);
                for (int32_t r = 0; r < pp; r++)
                    T_CLOSE(got.ranks[r].peak_activations, pp - r + more, 0, 1e-9);
                td_arena_free(a);
            }
}

/* V-Half's peak and one stage more for each barrier, the same on all ranks. */
static void test_v_half_peaks(void **state)
{
    (void)state;
    for (int32_t pp = 2; pp <= 12; pp++)
        for (int32_t barriers = 1; barriers <= 2; barriers++) {
            td_arena *const a = td_arena_new();
            const query q = {"v-half-vocab", "algorithm", barriers == 2 ? "1" : "2", pp, 4 * pp,
                             false,          UNIT(0)};
            const schedule s = make(a, &q);
            const plan_metrics got = simulate(a, &s, times_of(a, &q.in), true);
            for (int32_t r = 0; r < pp; r++)
                T_CLOSE(got.ranks[r].peak_activations, (pp + 2) / 2 + barriers, 0, 1e-9);
            td_arena_free(a);
        }
}

/* --- against the dependencies themselves --- */

typedef struct replay {
    const schedule *s;
    const setting *x;
    double *end; /* [kind][row][microbatch], < 0: not yet */
} replay;

static double *at(const replay *y, pass_kind kind, int32_t row, int32_t m)
{
    return &y->end[((int64_t)kind * y->s->n_rows + row) * y->s->n_microbatches + m];
}

static void need(double *ready, double end, double delay)
{
    if (end < 0) *ready = -1;
    if (*ready >= 0 && end + delay > *ready) *ready = end + delay;
}

static void need_all(const replay *y, double *ready, pass_kind kind, int32_t m)
{
    for (int32_t r = 0; r < y->s->n_rows; r++) need(ready, *at(y, kind, r, m), y->x->coll);
}

/* When a pass may start, or -1: as the paper states it for Vocab-1 and Vocab-2 on one stage a row.
 */
static double ready_at(const replay *y, const sched_cell *c, int32_t row)
{
    const schedule *const s = y->s;
    const int32_t last = s->n_rows - 1, m = c->microbatch;
    const double coll = y->x->coll;
    double ready = 0;
    switch ((pass_kind)c->kind) {
    case PASS_F:
        if (row == 0)
            need_all(y, &ready, PASS_E, m);
        else
            need(&ready, *at(y, PASS_F, row - 1, m), y->x->comm);
        break;
    case PASS_B:
        if (row == last)
            need_all(y, &ready, s->vocab == VOCAB_2 ? PASS_S : PASS_T, m);
        else
            need(&ready, *at(y, PASS_B, row + 1, m), y->x->comm);
        break;
    case PASS_S: need(&ready, *at(y, PASS_F, last, m), row == last ? 0 : coll); break;
    case PASS_T:
        need_all(y, &ready, PASS_S, m);
        if (s->vocab_edge && row != last && m + 1 < s->n_microbatches)
            need(&ready, *at(y, PASS_F, last, m + 1), coll);
        break;
    case PASS_G: need(&ready, *at(y, PASS_B, 0, m), row == 0 ? 0 : coll); break;
    default: break;
    }
    return ready;
}

static double replay_schedule(td_arena *a, const schedule *s, const setting *x)
{
    const double took[PASS_COUNT] = {[PASS_F] = x->f, [PASS_B] = x->b, [PASS_S] = x->s,
                                     [PASS_T] = x->t, [PASS_E] = x->e, [PASS_G] = x->g};
    const int64_t n = (int64_t)PASS_COUNT * s->n_rows * s->n_microbatches;
    replay y = {s, x, TD_NEW_N(a, double, n)};
    double *const clock = TD_NEW_N(a, double, s->n_rows), step = 0;
    int64_t *const next = TD_NEW_N(a, int64_t, s->n_rows);
    for (int64_t i = 0; i < n; i++) y.end[i] = -1;
    for (bool moved = true; moved;) {
        moved = false;
        for (int32_t r = 0; r < s->n_rows; r++)
            while (next[r] < s->rows[r].n_cells) {
                const sched_cell *const c = &s->rows[r].cells[next[r]];
                const double ready = ready_at(&y, c, r);
                if (ready < 0) break;
                clock[r] = (ready > clock[r] ? ready : clock[r]) + took[c->kind];
                *at(&y, (pass_kind)c->kind, r, c->microbatch) = clock[r];
                if (clock[r] > step) step = clock[r];
                next[r]++;
                moved = true;
            }
    }
    return step;
}

static void test_random_times(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(2411);
    for (int i = 0; i < 300; i++) {
        td_arena *const a = td_arena_new();
        double v[8];
        for (int j = 0; j < 8; j++) v[j] = (double)td_rng_below(&rng, 41) / 8;
        const setting x = {v[0], v[0] + v[1], v[2], v[3], v[4] / 8, v[5] / 8, v[6], v[7]};
        const int32_t pp = 2 + (int32_t)td_rng_below(&rng, 7);
        const query q = {i % 2 == 0 ? "vocab-1" : "vocab-2",
                         NULL,
                         NULL,
                         pp,
                         pp + 2 + (int32_t)td_rng_below(&rng, 12),
                         td_rng_below(&rng, 2) == 1,
                         x};
        const schedule s = make(a, &q);
        const plan_metrics got = simulate(a, &s, times_of(a, &x), true);
        /* a time of a 64th ms is whole ns */
        T_CLOSE((double)got.step_ns / 1e6, replay_schedule(a, &s, &x), 1e-12, 1e-9);
        td_arena_free(a);
    }
}

/* Streams that are held, and receivers that have to be there: later, but it ends. */
static void test_rendezvous(void **state)
{
    static const char *const names[] = {"vocab-1", "vocab-2", "interlaced", "v-half-vocab"};
    (void)state;
    for (int i = 0; i < 4; i++)
        for (int32_t pp = 2; pp <= 8; pp += 2)
            for (int32_t m = 2 * pp; m <= 3 * pp; m += pp) {
                td_arena *const a = td_arena_new();
                const query q = {names[i], NULL, NULL, pp, m, pp % 4 == 0, PAPER(1)};
                const schedule s = make(a, &q);
                const plan_metrics eager = simulate(a, &s, times_of(a, &q.in), true);
                const plan_metrics held = simulate(a, &s, times_of(a, &q.in), false);
                if (held.step_ns < eager.step_ns || held.step_ns > 5 * eager.step_ns / 4)
                    fail_msg("%s P=%d M=%d: rendezvous %lld ns, eager %lld ns", q.name, pp, m,
                             (long long)held.step_ns, (long long)eager.step_ns);
                td_arena_free(a);
            }
}

/* Where nothing takes time on the wires, one stream for all barriers and receivers that are posted
 * one pass ahead cost nothing either. */
static void test_rendezvous_is_hidden(void **state)
{
    static const char *const names[] = {"vocab-1", "vocab-2", "interlaced"};
    (void)state;
    for (int i = 0; i < 3; i++)
        for (int32_t pp = 2; pp <= 8; pp += 2)
            for (int32_t m = 2 * pp; m <= 6 * pp; m += pp) {
                td_arena *const a = td_arena_new();
                const query q = {names[i], NULL, NULL, pp, m, false, {1, 2, .1, .1, 0, 0, 0, 0}};
                const schedule s = make(a, &q);
                const plan_metrics held = simulate(a, &s, times_of(a, &q.in), false);
                T_CLOSE((double)held.step_ns / 1e6, m * 3.2 + (pp - 1) * 3, 0, 1e-9);
                td_arena_free(a);
            }
}

/* --- bad input --- */

static void test_refusals(void **state)
{
    static const struct {
        const char *name;
        int32_t pp, m, chunks, slices;
        const char *says;
    } rows[] = {{"vocab-1", 4, 5, 0, 0, "legal: --microbatches 6 or more"},
                {"vocab-2", 4, 4, 0, 0, "legal: --microbatches 5 or more"},
                {"vocab-2", 4, 8, 2, 0, "one stage a rank"},
                {"vocab-1", 4, 8, 0, 2, "does not cut microbatches"},
                {"interlaced", 3, 8, 0, 0, "legal: --pp 2 or 4"},
                {"interlaced", 4, 5, 0, 0, "legal: --microbatches 6 or more"},
                {"v-half-vocab", 4, 2, 0, 0, "legal: --pp 4 --microbatches 3"},
                {"v-half-vocab", 1, 2, 0, 0, "legal: --pp 2"},
                {"v-half-vocab", 4, 8, 3, 0, "legal: 2"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const sched_request r = {.pp = rows[i].pp,
                                 .microbatches = rows[i].m,
                                 .chunks = rows[i].chunks,
                                 .slices = rows[i].slices};
        schedule s;
        td_err err = {0};
        T_FAILS(sched_generate(rows[i].name, &r, *state, &s, &err), TD_EUSAGE, &err, rows[i].says);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(test_orders),           T_TEST(test_makespans),
        T_TEST(test_v_half_makespans), T_TEST(test_closed_forms),
        T_TEST(test_v_half_peaks),     T_TEST(test_random_times),
        T_TEST(test_rendezvous),       T_TEST(test_rendezvous_is_hidden),
        T_TEST(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
