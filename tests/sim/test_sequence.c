/* Sequence-level schedules: the orders of the worked examples, idle time and peaks against closed
 * forms, unequal slices, what is refused, random sizes. */
#include "costmodel/slicing.h"
#include "sim/sim.h"
#include "t.h"

typedef struct query {
    const char *name, *times, *group;
    int32_t pp, m, s, v;
    const int32_t *tokens; /* [s] or NULL */
    bool compat;
} query;

typedef struct outcome {
    schedule s;
    plan p;
    plan_metrics metrics;
    int64_t seq_len;
} outcome;

static td_status make(td_arena *a, const query *q, schedule *s, td_err *err)
{
    const sched_option_value options[] = {{"compat", q->compat ? "1" : "0"}, {"group", q->group}};
    const sched_request r = {.pp = q->pp,
                             .microbatches = q->m,
                             .chunks = q->v,
                             .slices = q->s,
                             .slice_tokens = q->tokens,
                             .options = options,
                             .n_options = strcmp(q->name, "seq1f1b-i") != 0 ? 0
                                          : q->group != NULL                ? 2
                                                                            : 1};
    return sched_generate(q->name, &r, a, s, err);
}

static outcome run(td_arena *a, const query *q)
{
    outcome out = {0};
    td_err err = {0};
    T_OK(make(a, q, &out.s, &err), &err);
    const int32_t v = q->v < 1 ? 1 : q->v;
    for (int32_t k = 0; k < q->s; k++) out.seq_len += q->tokens != NULL ? q->tokens[k] : 1;
    const sizes z = {.n_stages = out.s.n_stages, .chunks = v, .run = {.seq_len = out.seq_len}};
    const lower_options lower = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1, .no_step = true};
    unit_times units;
    const cost_model cost = {.units = &units, .sizes = &z, .chunks = v};
    const sim_options o = {.protocol = PROTOCOL_EAGER, .cost = &cost};
    int64_t *class_ns = NULL;
    task_times t = {0};
    T_OK(unit_times_parse(q->times, a, &units, &err), &err);
    T_OK(plan_lower(&out.s, &lower, a, &out.p, &err), &err);
    T_OK(sim_price(&out.p, &cost, a, &class_ns, &err), &err);
    T_OK(sim_run(&out.p, class_ns, &o, a, &t, NULL, &err), &err);
    T_OK(metrics_of(&out.p, &t, (activation_deltas){1, 0, -1}, a, &out.metrics, &err), &err);
    return out;
}

/* F and B (or I and W) of one slice in ms, as times of a whole microbatch on all chunks. */
static const char *times_of(td_arena *a, const query *q, double f, double i, double w)
{
    const double n = (double)q->s * (q->v < 1 ? 1 : q->v);
    return td_sprintf(a, "F=%.17g,I=%.17g,W=%.17g", f * n, i * n, w * n);
}

static const char *text_of(td_arena *a, const query *q)
{
    return td_sprintf(a, "%s P=%d M=%d S=%d V=%d group=%s %s", q->name, q->pp, q->m, q->s, q->v,
                      q->group == NULL ? "-" : q->group, q->times);
}

static void check_step(td_arena *a, const query *q, const outcome *o, double want_ms)
{
    if (fabs((double)o->metrics.step_ns / 1e6 - want_ms) > 1e-9)
        fail_msg("%s: step %.9g ms, not %.9g", text_of(a, q), (double)o->metrics.step_ns / 1e6,
                 want_ms);
}

/* Peaks in units: slices of a microbatch on one chunk. */
static void check_peak(td_arena *a, const query *q, const outcome *o, int32_t rank, double units)
{
    const double per = (double)q->s * (q->v < 1 ? 1 : q->v);
    const double got = o->metrics.ranks[rank].peak_activations * per;
    if (fabs(got - units) > 1e-6)
        fail_msg("%s: rank %d holds %.9g units, not %.9g", text_of(a, q), rank, got, units);
}

/* --- worked examples --- */

/* "r2: F0.0c1 ..." of a row; B stands for both kinds of backward. */
static void print_row(const schedule *s, int32_t row, int32_t v, td_text *out)
{
    td_text_addf(out, "r%d:", row);
    for (int64_t i = 0; i < s->rows[row].n_cells; i++) {
        const sched_cell *const c = &s->rows[row].cells[i];
        const char letter = c->kind == PASS_I ? 'B' : pass_letter((pass_kind)c->kind);
        assert_int_equal(c->stage % s->n_rows, row);
        td_text_addf(out, " %c%d.%d", letter, c->microbatch, c->slice);
        if (v > 1) td_text_addf(out, "c%d", c->stage / s->n_rows);
    }
}

static void check_example(td_arena *a, char *head, char **rows)
{
    char name[32];
    int32_t v = 0, s = 0, step = 0, peak[4];
    assert_int_equal(sscanf(head, "%31s v=%d s=%d makespan=%d peak=%d,%d,%d,%d", name, &v, &s,
                            &step, &peak[0], &peak[1], &peak[2], &peak[3]),
                     8);
    const bool split = strcmp(name, "seq1f1b-zb") == 0;
    query q = {.name = name, .pp = 4, .m = 4, .s = s, .v = v};
    q.times = times_of(a, &q, 1, 1, 1);
    if (v > 1) q.group = "narrow";
    const outcome o = run(a, &q);
    check_step(a, &q, &o, step);
    for (int32_t r = 0; r < 4; r++) {
        td_text t = {0};
        print_row(&o.s, r, v, &t);
        assert_string_equal(t.s, rows[r]);
        td_text_free(&t);
        check_peak(a, &q, &o, r, peak[r]);
    }
    assert_int_equal(split, o.s.rows[0].n_cells == 3 * 4 * s);
}

static void worked_examples(void **state)
{
    char *text = NULL, *save = NULL, *head = NULL, *rows[4];
    size_t len = 0;
    td_err err = {0};
    T_OK(td_read_file(*state, TD_FIXTURES "/seq_orders.txt", 1 << 20, &text, &len, &err), &err);
    int n_rows = 0, n = 0;
    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        if (line[0] == '#') continue;
        if (line[0] != 'r') {
            head = line;
            n_rows = 0;
            continue;
        }
        rows[n_rows++] = line;
        if (n_rows < 4) continue;
        check_example(*state, head, rows);
        n++;
    }
    assert_int_equal(n, 5);
}

/* The published code's special case: all forwards first where M = P. */
static void compat(void **state)
{
    for (int32_t s = 2; s <= 4; s += 2) {
        query q = {.name = "seq1f1b-i", .pp = 4, .m = 4, .s = s, .v = 2, .group = "narrow"};
        q.times = times_of(*state, &q, 1, 1, 1);
        q.compat = true;
        const outcome o = run(*state, &q);
        check_step(*state, &q, &o, s == 2 ? 57 : 105);
        for (int32_t r = 0; r < 4; r++) check_peak(*state, &q, &o, r, 8 * s);
        for (int64_t i = 0; i < 8 * s; i++) assert_int_equal(o.s.rows[0].cells[i].kind, PASS_F);
        q.m = 8; /* the general rule is what that code does */
        const outcome more = run(*state, &q);
        check_step(*state, &q, &more, s == 2 ? 105 : 201);
        for (int32_t r = 0; r < 4; r++)
            check_peak(*state, &q, &more, r, (s == 2 ? 12 : 14) - 2 * r);
    }
}

/* --- closed forms --- */

static double least(double a, double b) { return a < b ? a : b; }

static void check_forms(td_arena *a, query q, double f, double i, double w)
{
    const int32_t p = q.pp, s = q.s, v = q.v < 1 ? 1 : q.v, units = q.m * s * v;
    q.times = times_of(a, &q, f, i, w);
    const outcome o = run(a, &q);
    const double b = i + w, work = units * (f + b);
    const bool zb = strcmp(q.name, "seq1f1b-zb") == 0, tp = strcmp(q.name, "terapipe") == 0;
    /* rank 0 idles the same time in all of them, in slice times of one chunk */
    if (!zb)
        check_step(a, &q, &o, work + (p - 1) * (f + b));
    else if (w <= f && q.m >= 2)
        check_step(a, &q, &o, work + (p - 1) * (f + i - w));
    for (int32_t r = 0; r < p; r++) {
        double held = p - r + s - 1;
        if (tp) held = units;
        if (zb) held = p + s - 1;
        if (v > 1) {
            const bool wide = strcmp(q.group, "wide") == 0;
            held = (double)(v - 1) * p * (wide ? s : 1) + 2 * (p - 1 - r) + s;
        }
        check_peak(a, &q, &o, r, least(held, units));
    }
}

static void closed_forms(void **state)
{
    (void)state;
    for (int32_t p = 1; p <= 6; p++)
        for (int32_t m = 1; m <= 9; m++)
            for (int32_t s = 1; s <= 9; s += 1 + s / 5) {
                td_arena *const a = td_arena_new();
                query q = {.pp = p, .m = m, .s = s};
                q.name = "seq1f1b";
                if (m * s >= p) check_forms(a, q, 1, 1, 1);
                if (m * s >= p) check_forms(a, q, 3, 2, 5);
                q.name = "terapipe";
                check_forms(a, q, 2, 2, 1);
                q.name = "seq1f1b-zb";
                if (m * s >= 2 * p) check_forms(a, q, 1, 1, 1);
                if (m * s >= 2 * p) check_forms(a, q, 2, 3, 1);
                td_arena_free(a);
            }
}

static void closed_forms_of_chunks(void **state)
{
    (void)state;
    for (int32_t p = 1; p <= 6; p++)
        for (int32_t m = 1; m <= 12; m++)
            for (int32_t s = 1; s <= 6; s++)
                for (int32_t v = 2; v <= 3; v++) {
                    td_arena *const a = td_arena_new();
                    query q = {.name = "seq1f1b-i", .pp = p, .m = m, .s = s, .v = v};
                    q.group = "narrow";
                    if (p % s == 0 && m * s % p == 0) check_forms(a, q, 1, 1, 1);
                    q.group = "wide";
                    if (m % p == 0) check_forms(a, q, 2, 1, 2);
                    td_arena_free(a);
                }
}

/* Whole microbatches in unequal groups reach the same bubble, whatever divides what. */
static void safe_groups(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(5);
    for (int n = 0; n < 150; n++) {
        td_arena *const a = td_arena_new();
        query q = {.name = "seq1f1b-i",
                   .pp = 1 + (int32_t)td_rng_below(&rng, 7),
                   .m = 1 + (int32_t)td_rng_below(&rng, 12),
                   .s = 1 + (int32_t)td_rng_below(&rng, 9),
                   .v = 2 + (int32_t)td_rng_below(&rng, 3)};
        q.times = times_of(a, &q, 1, 1, 1);
        const outcome o = run(a, &q);
        if (q.m * q.s >= q.pp) check_step(a, &q, &o, 3.0 * (q.m * q.s * q.v + q.pp - 1));
        td_arena_free(a);
    }
}

/* --- unequal slices --- */

/* With the fixed alternation every step waits for the longest slice of its neighbourhood. */
static void unequal_slices(void **state)
{
    static const int32_t tokens[] = {1, 2, 3, 4};
    query q = {.name = "seq1f1b", .times = "F=10,B=20", .pp = 4, .m = 4, .s = 4};
    const double whole[] = {142.5, 262.5}, uneven[] = {210, 402}, flush[] = {210, 330};
    for (int i = 0; i < 2; i++) {
        q.m = 4 << i;
        q.tokens = NULL;
        outcome o = run(*state, &q);
        check_step(*state, &q, &o, whole[i]);
        q.tokens = tokens;
        o = run(*state, &q);
        check_step(*state, &q, &o, uneven[i]);
        const query base = {.name = "1f1b", .times = q.times, .pp = 4, .m = q.m, .s = 1};
        o = run(*state, &base);
        check_step(*state, &base, &o, flush[i]);
    }
}

/* Steps over the work of a 7B GPT at 131072 tokens, when slices cost what their FLOPs do: the even
 * cut loses all that slices win, the cut of equal cost keeps it. */
static double over_ideal(td_arena *a, const char *name, const slicing_flops *f, int32_t s,
                         const int32_t *tokens)
{
    const query q = {.name = name, .times = "F=1,B=2", .pp = 4, .m = 8, .s = s, .tokens = tokens};
    const outcome o = run(a, &q);
    const double scale = 1e9 / slicing_flops_between(f, 0, 131072);
    const double unit = 131072.0 / (double)o.seq_len;
    int64_t *const ns = TD_NEW_N(a, int64_t, o.p.n_classes);
    for (uint32_t i = 0; i < o.p.n_classes; i++) {
        const plan_class *const c = &o.p.classes[i];
        const int64_t from = (int64_t)(c->prefix * unit);
        const int64_t to = from + (int64_t)(c->slice_len * unit);
        const double cost = scale * slicing_flops_between(f, from, to);
        if (c->kind < PASS_COUNT) ns[i] = llround(c->kind == PASS_F ? cost : 2 * cost);
    }
    const sim_options so = {.protocol = PROTOCOL_EAGER};
    task_times t = {0};
    plan_metrics m;
    td_err err = {0};
    T_OK(sim_run(&o.p, ns, &so, a, &t, NULL, &err), &err);
    T_OK(metrics_of(&o.p, &t, (activation_deltas){1, 0, -1}, a, &m, &err), &err);
    return (double)m.step_ns / (8 * 3e9);
}

static void long_context(void **state)
{
    const model_desc m = {.n_layers = 32,
                          .hidden = 4096,
                          .n_heads = 32,
                          .n_kv_heads = 32,
                          .head_dim = 128,
                          .ffn = 16384};
    const slicing_flops f = slicing_flops_of(&m, 32768);
    int64_t length[4];
    int32_t tokens[4];
    td_err err = {0};
    T_OK(slicing_equal(&f, 131072, 4, 8, length, &err), &err);
    for (int k = 0; k < 4; k++) tokens[k] = (int32_t)length[k];
    T_CLOSE(over_ideal(*state, "1f1b", &f, 1, NULL), 1.375, 0, 5e-4);
    T_CLOSE(over_ideal(*state, "seq1f1b", &f, 4, NULL), 1.617, 0, 5e-4);
    T_CLOSE(over_ideal(*state, "seq1f1b", &f, 4, tokens), 1.094, 0, 5e-4);
}

/* Peaks weigh slices by their tokens: a first slice longer than the others is held longest. */
static void weighted_peaks(void **state)
{
    static const int32_t short_cut[] = {5271, 4232, 3639, 3242};
    static const int32_t long_cut[] = {55712, 30872, 24064, 20424};
    query q = {
        .name = "seq1f1b", .times = "F=1,B=2", .pp = 8, .m = 16, .s = 4, .tokens = short_cut};
    outcome o = run(*state, &q);
    T_CLOSE(o.metrics.ranks[0].peak_activations, 2.90, 0, 5e-3);
    q.pp = 4;
    q.tokens = long_cut;
    o = run(*state, &q);
    T_CLOSE(o.metrics.ranks[0].peak_activations, 2.09, 0, 5e-3);
    q.tokens = NULL;
    o = run(*state, &q);
    T_CLOSE(o.metrics.ranks[0].peak_activations, 1.75, 0, 1e-9);
}

/* All forwards, then all backwards, over a chain: sum + (P - 1) max of each half is exact
 * (TeraPipe, eq. 5), for any slice times. */
static void terapipe_latency(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(7);
    for (int n = 0; n < 60; n++) {
        td_arena *const a = td_arena_new();
        int32_t tokens[8];
        query q = {.name = "terapipe",
                   .pp = 1 + (int32_t)td_rng_below(&rng, 7),
                   .m = 1 + (int32_t)td_rng_below(&rng, 4),
                   .s = 1 + (int32_t)td_rng_below(&rng, 8),
                   .tokens = tokens};
        int32_t sum = 0, most = 0;
        for (int32_t k = 0; k < q.s; k++) {
            tokens[k] = 1 + (int32_t)td_rng_below(&rng, 30);
            sum += tokens[k];
            if (tokens[k] > most) most = tokens[k];
        }
        q.times = td_sprintf(a, "F=%d,B=%d", sum, 3 * sum); /* a token: F 1, B 3 */
        const outcome o = run(a, &q);
        check_step(a, &q, &o, 4.0 * (q.m * sum + (q.pp - 1) * most));
        for (int32_t r = 0; r < q.pp; r++) check_peak(a, &q, &o, r, q.m * q.s);
        td_arena_free(a);
    }
}

/* --- any sizes --- */

static void random_sizes(void **state)
{
    (void)state;
    static const char *const names[] = {"seq1f1b", "seq1f1b-zb", "seq1f1b-i", "terapipe"};
    td_rng rng = td_rng_seed(9);
    for (int n = 0; n < 200; n++) {
        td_arena *const a = td_arena_new();
        int32_t tokens[12];
        query q = {.name = names[n % 4],
                   .pp = 1 + (int32_t)td_rng_below(&rng, 9),
                   .m = 1 + (int32_t)td_rng_below(&rng, 9),
                   .s = 1 + (int32_t)td_rng_below(&rng, 12),
                   .tokens = td_rng_below(&rng, 2) == 0 ? NULL : tokens};
        if (n % 4 == 2) q.v = 2 + (int32_t)td_rng_below(&rng, 3);
        for (int32_t k = 0; k < q.s; k++) tokens[k] = 1 + (int32_t)td_rng_below(&rng, 99);
        q.times = times_of(a, &q, 1.3, 0.9, 0.7);
        const outcome o = run(a, &q);
        const double work = (double)q.m * q.s * (q.v < 1 ? 1 : q.v) * 2.9;
        assert_true((double)o.metrics.step_ns / 1e6 >= work - 1e-3);
        td_text t = {0};
        sched_print(&o.s, &t);
        schedule back;
        td_err err = {0};
        T_OK(sched_parse(t.s, t.len, "printed", a, &back, &err), &err);
        assert_true(sched_equal(&o.s, &back));
        td_text_free(&t);
        td_arena_free(a);
    }
}

static void refused(void **state)
{
    schedule s;
    td_err err = {0};
    query q = {.name = "seq1f1b-i", .pp = 4, .m = 4, .s = 3, .v = 2, .group = "narrow"};
    T_FAILS(make(*state, &q, &s, &err), TD_EUSAGE, &err, "legal: --opt group=safe");
    q.s = 8;
    T_FAILS(make(*state, &q, &s, &err), TD_EUSAGE, &err, "S divides P");
    q.s = 2;
    q.m = 5;
    T_FAILS(make(*state, &q, &s, &err), TD_EUSAGE, &err, "P divides M*S");
    q.group = "wide";
    T_FAILS(make(*state, &q, &s, &err), TD_EUSAGE, &err, "--microbatches 8");
    q.group = "broad";
    T_FAILS(make(*state, &q, &s, &err), TD_EUSAGE, &err, "--opt group=broad");
    q = (query){.name = "seq1f1b", .pp = 4, .m = 4, .s = 2, .v = 2};
    T_FAILS(make(*state, &q, &s, &err), TD_EUSAGE, &err, "seq1f1b-i");
    q.name = "terapipe";
    T_FAILS(make(*state, &q, &s, &err), TD_EUSAGE, &err, "--chunks 2");
    static const int32_t empty[] = {3, 0};
    q = (query){.name = "seq1f1b", .pp = 4, .m = 4, .s = 2, .tokens = empty};
    T_FAILS(make(*state, &q, &s, &err), TD_EUSAGE, &err, "slice 1 of 0 tokens");
    q.name = "1f1b";
    T_FAILS(make(*state, &q, &s, &err), TD_EUSAGE, &err, "1f1b does not cut microbatches");
    static const int32_t one[] = {7};
    q.s = 1;
    q.tokens = one;
    T_FAILS(make(*state, &q, &s, &err), TD_EUSAGE, &err, "--slice-tokens: 1f1b does not cut");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(worked_examples),        T_TEST(compat),         T_TEST(closed_forms),
        T_TEST(closed_forms_of_chunks), T_TEST(safe_groups),    T_TEST(unequal_slices),
        T_TEST(long_context),           T_TEST(weighted_peaks), T_TEST(terapipe_latency),
        T_TEST(random_sizes),           T_TEST(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
