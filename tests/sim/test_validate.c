/* Post-validation: what it lowers to, what the checker refuses, and the period that it brings. */
#include "sim/period.h"
#include "zb_run.h"

#include "t.h"

/* A schedule of the registry in unit times, validated later; ms as in zb_query. */
typedef struct validated {
    schedule s;
    plan p;
    unit_times units;
    sizes z;
    cost_model cost;
    int64_t *class_ns;
} validated;

static void lower_validated(td_arena *a, const zb_query *q, plan_mapping mapping, validated *v)
{
    td_err err = {0};
    T_OK(zb_generate(a, q, &v->s, &err), &err);
    v->s.validate = true;
    const int32_t chunks = v->s.n_stages / v->s.n_rows;
    const char *const times = td_sprintf(a, "F=%d,I=%d,W=%d,comm=%d", q->f * chunks, q->i * chunks,
                                         q->w * chunks, q->comm);
    v->z = (sizes){.n_stages = v->s.n_stages, .chunks = chunks};
    v->cost = (cost_model){.units = &v->units, .sizes = &v->z, .chunks = chunks};
    const lower_options o = {.sizes = &v->z, .dp = 1, .tp = 1, .lookahead = 1, .mapping = mapping};
    T_OK(unit_times_parse(times, a, &v->units, &err), &err);
    if (plan_lower(&v->s, &o, a, &v->p, &err) != TD_OK) fail_msg("%s: %s", zb_text(a, q), err.msg);
    T_OK(sim_price(&v->p, &v->cost, a, &v->class_ns, &err), &err);
}

static double period_of(const validated *v, sim_protocol protocol)
{
    const sim_options o = {.protocol = protocol, .cost = &v->cost};
    td_err err = {0};
    int64_t ns = 0;
    T_OK(sim_period(&v->p, v->class_ns, &o, NULL, &ns, &err), &err);
    return (double)ns / 1e6;
}

/* --- the period --- */

/* Without latencies a period is the longest span of a rank, whatever the step's makespan. */
static void test_parallelogram(void **state)
{
    static const char *const families[] = {"zb-h1", "zb-h2", "zb-v", "v-half",
                                           "v-min", "1f1b",  "gpipe"};
    static const int32_t grid[][2] = {{1, 3}, {2, 6}, {3, 12}, {4, 8}, {4, 20}, {6, 24}, {8, 32}};
    for (size_t f = 0; f < sizeof families / sizeof *families; f++)
        for (size_t i = 0; i < sizeof grid / sizeof *grid; i++) {
            td_arena *const a = td_arena_new();
            const zb_query q = {
                .family = families[f], .pp = grid[i][0], .m = grid[i][1], .f = 1, .i = 1, .w = 1};
            const zb_result plain = zb_run(a, &q);
            validated v;
            lower_validated(a, &q, MAPPING_CHANNEL, &v);
            const double period = period_of(&v, PROTOCOL_EAGER);
            if (fabs(period - plain.span) > 1e-9)
                fail_msg("%s: period %g, longest span %g", zb_text(a, &q), period, plain.span);
            td_arena_free(a);
        }
    (void)state;
}

/* The paper's point, in its unit times: what is left of the step's bubble is nothing. */
static void test_worked(void **state)
{
    const zb_query h2 = {.family = "zb-h2", .pp = 4, .m = 8, .f = 1, .i = 1, .w = 1};
    const zb_query v8 = {.family = "zb-v", .pp = 8, .m = 32, .f = 1, .i = 1, .w = 1};
    validated v;
    T_CLOSE(zb_run(*state, &h2).step, 27, 0, 0);
    lower_validated(*state, &h2, MAPPING_CHANNEL, &v);
    T_CLOSE(period_of(&v, PROTOCOL_EAGER), 24, 0, 0);
    T_CLOSE(period_of(&v, PROTOCOL_RENDEZVOUS), 24, 0, 0); /* nobody waits for the rank behind */
    T_CLOSE(zb_run(*state, &v8).step, 199, 0, 0);
    lower_validated(*state, &v8, MAPPING_CHANNEL, &v);
    T_CLOSE(period_of(&v, PROTOCOL_EAGER), 192, 0, 0);
}

/* The same periods by another road: passes of many periods and the two chains, as a set of
 * inequalities that is relaxed until nothing moves. Linear placement only. */
enum { PERIODS = 6, ROWS_MAX = 8, CELLS_MAX = 3 * 40 };

typedef struct relaxed {
    const schedule *s;
    const zb_query *q;
    double end[PERIODS][ROWS_MAX][CELLS_MAX];
    double verified[PERIODS][ROWS_MAX], stepped[PERIODS][ROWS_MAX];
    bool moved;
} relaxed;

static void lift(relaxed *x, double *to, double at)
{
    if (*to >= at) return;
    *to = at;
    x->moved = true;
}

static double duration_of(const zb_query *q, uint8_t kind)
{
    return kind == PASS_F ? q->f : kind == PASS_I ? q->i : kind == PASS_W ? q->w : q->i + q->w;
}

static double end_of_pass(const relaxed *x, int n, int32_t row, bool forward, int32_t m)
{
    for (int64_t i = 0; i < x->s->rows[row].n_cells; i++) {
        const sched_cell *const c = &x->s->rows[row].cells[i];
        const bool is = forward ? c->kind == PASS_F : c->kind == PASS_I || c->kind == PASS_B;
        if (is && c->microbatch == m) return x->end[n][row][i];
    }
    fail_msg("no such pass");
    return 0;
}

/* Forwards of a row before it verifies. */
static int64_t lead_of(const schedule *s, int32_t row)
{
    int64_t n = 0;
    while (n < s->n_rows - 1 - row && s->rows[row].cells[n].kind == PASS_F) n++;
    return n;
}

static void relax_row(relaxed *x, int n, int32_t row)
{
    const schedule *const s = x->s;
    const double comm = x->q->comm;
    const int64_t lead = lead_of(s, row), cells = s->rows[row].n_cells;
    double at = n > 0 ? x->stepped[n - 1][row] : 0;
    for (int64_t i = 0; i <= cells; i++) {
        if (i == lead) {
            const bool last = row == s->n_rows - 1;
            lift(x, &x->verified[n][row], at);
            if (!last) lift(x, &x->verified[n][row], x->verified[n][row + 1] + comm);
            at = x->verified[n][row];
        }
        if (i == cells) break;
        const sched_cell *const c = &s->rows[row].cells[i];
        const bool forward = c->kind == PASS_F;
        const int32_t from = forward ? row - 1 : row + 1;
        double ready = at;
        if (c->kind != PASS_W && from >= 0 && from < s->n_rows) {
            double there = end_of_pass(x, n, from, forward, c->microbatch);
            /* what is for a pass behind VERIFY leaves behind VERIFY */
            if (i >= lead && x->verified[n][from] > there) there = x->verified[n][from];
            if (there + comm > ready) ready = there + comm;
        }
        lift(x, &x->end[n][row][i], ready + duration_of(x->q, c->kind));
        at = x->end[n][row][i];
    }
    lift(x, &x->stepped[n][row], at);
    if (row > 0) lift(x, &x->stepped[n][row], x->stepped[n][row - 1] + comm);
}

static double relaxed_period(td_arena *a, const schedule *s, const zb_query *q)
{
    relaxed *const x = TD_NEW(a, relaxed);
    x->s = s;
    x->q = q;
    do {
        x->moved = false;
        for (int n = 0; n < PERIODS; n++)
            for (int32_t row = 0; row < s->n_rows; row++) relax_row(x, n, row);
    } while (x->moved);
    double last[2] = {0, 0};
    for (int32_t row = 0; row < s->n_rows; row++)
        for (int k = 0; k < 2; k++)
            if (x->stepped[SIM_PERIODS - 2 + k][row] > last[k])
                last[k] = x->stepped[SIM_PERIODS - 2 + k][row];
    return last[1] - last[0];
}

static void test_against_inequalities(void **state)
{
    static const char *const families[] = {"zb-h1", "zb-h2", "1f1b", "gpipe", "zb-auto"};
    td_rng rng = td_rng_seed(17);
    (void)state;
    for (int i = 0; i < 120; i++) {
        td_arena *const a = td_arena_new();
        const zb_query q = {.family = families[i % 5],
                            .pp = 1 + (int32_t)td_rng_below(&rng, 6),
                            .m = 1 + (int32_t)td_rng_below(&rng, 20),
                            .f = 1 + (int)td_rng_below(&rng, 12),
                            .i = 1 + (int)td_rng_below(&rng, 12),
                            .w = 1 + (int)td_rng_below(&rng, 12),
                            .comm = (int)td_rng_below(&rng, 4)};
        validated v;
        lower_validated(a, &q, (plan_mapping)(i % 3), &v);
        const double want = relaxed_period(a, &v.s, &q);
        const double got = period_of(&v, PROTOCOL_EAGER);
        if (fabs(got - want) > 1e-9)
            fail_msg("%s: period %g, the inequalities say %g", zb_text(a, &q), got, want);
        td_arena_free(a);
    }
}

/* Rendezvous holds streams; in unit times it can only be slower, and it ends under all mappings. */
static void test_rendezvous(void **state)
{
    static const char *const families[] = {"zb-h2", "zb-v", "v-half", "interleaved-zb"};
    for (size_t f = 0; f < 4; f++)
        for (int m = 0; m < 3; m++) {
            const zb_query q = {.family = families[f],
                                .pp = 4,
                                .m = 12,
                                .f = 10,
                                .i = 12,
                                .w = 9,
                                .comm = 1,
                                .options = f == 3 ? "chunks=2" : NULL};
            validated v;
            lower_validated(*state, &q, (plan_mapping)m, &v);
            const double eager = period_of(&v, PROTOCOL_EAGER);
            assert_true(period_of(&v, PROTOCOL_RENDEZVOUS) >= eager);
            assert_true(eager >= zb_run(*state, &q).span);
        }
}

/* One copy is the plan itself. */
static void test_unrolled_once(void **state)
{
    const zb_query q = {.family = "zb-h2", .pp = 4, .m = 8, .f = 10, .i = 12, .w = 9, .comm = 1};
    validated v;
    plan one;
    task_times t = {0}, u = {0};
    td_err err = {0};
    lower_validated(*state, &q, MAPPING_CHANNEL, &v);
    const sim_options o = {.cost = &v.cost};
    T_OK(plan_repeat(&v.p, 1, *state, &one, &err), &err);
    T_OK(sim_run(&v.p, v.class_ns, &o, *state, &t, NULL, &err), &err);
    T_OK(sim_run(&one, v.class_ns, &o, *state, &u, NULL, &err), &err);
    assert_int_equal(one.n_tasks, v.p.n_tasks);
    assert_memory_equal(t.end_ns, u.end_ns, v.p.n_tasks * sizeof *t.end_ns);
}

/* Times of periods that were measured one by one, as those of the plan that repeats them. */
static void test_times_of_several(void **state)
{
    const zb_query q = {.family = "zb-v", .pp = 3, .m = 5, .f = 10, .i = 12, .w = 9, .comm = 1};
    validated v;
    plan two;
    task_times both, of[2] = {{0}, {0}};
    td_err err = {0};
    const int64_t begins[2] = {5, 105};
    lower_validated(*state, &q, MAPPING_CHANNEL, &v);
    const sim_options o = {.cost = &v.cost};
    T_OK(sim_run(&v.p, v.class_ns, &o, *state, &of[0], NULL, &err), &err);
    of[1] = of[0];
    T_OK(plan_repeat(&v.p, 2, *state, &two, &err), &err);
    T_OK(plan_repeat_times(&v.p, 2, of, begins, *state, &both, &err), &err);
    uint32_t seen = 0;
    for (uint32_t s = 0; s < two.n_streams; s++)
        for (uint32_t i = 0; i < two.streams[s].n_tasks; i++) {
            const uint32_t n = v.p.streams[s].n_tasks, late = i >= n ? 100 : 0;
            const uint32_t to = two.streams[s].first_task + i;
            const uint32_t from = v.p.streams[s].first_task + i % n;
            assert_int_equal(two.tasks[to].kind, v.p.tasks[from].kind);
            assert_int_equal(two.tasks[to].microbatch, v.p.tasks[from].microbatch);
            assert_int_equal(both.begin_ns[to], of[0].begin_ns[from] + late);
            assert_int_equal(both.end_ns[to], of[0].end_ns[from] + late);
            seen++;
        }
    assert_int_equal(seen, 2 * v.p.n_tasks);
}

/* --- the plan --- */

static uint32_t task_of(const plan *p, uint32_t rank, uint8_t kind)
{
    const plan_stream *const s = plan_compute(p, rank);
    for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++)
        if (p->tasks[t].kind == kind) return t;
    fail_msg("rank %u has no task of kind %u", rank, kind);
    return 0;
}

/* A first message of the prefix, or of the rest, that arrives on a rank. */
static uint32_t message_of(const plan *p, bool prefix)
{
    for (uint32_t t = 0; t < p->n_tasks; t++)
        if (p->tasks[t].kind == TASK_RECV && p->classes[p->tasks[t].cls].detail != CHANNEL_STATE &&
            ((p->tasks[t].flags & TASK_FLAG_PREFIX) != 0) == prefix)
            return t;
    fail_msg("no such message");
    return 0;
}

static void test_positions(void **state)
{
    const zb_query q = {.family = "zb-h2", .pp = 4, .m = 8, .f = 1, .i = 1, .w = 1};
    validated v;
    lower_validated(*state, &q, MAPPING_CHANNEL, &v);
    uint32_t prefix = 0, chain = 0, norms = 0;
    for (uint32_t r = 0; r < 4; r++)
        assert_int_equal(task_of(&v.p, r, TASK_VERIFY) - plan_compute(&v.p, r)->first_task,
                         3 - r + 1);
    for (uint32_t t = 0; t < v.p.n_tasks; t++) {
        const plan_class *const c = &v.p.classes[v.p.tasks[t].cls];
        const bool recv = v.p.tasks[t].kind == TASK_RECV;
        prefix += recv && (v.p.tasks[t].flags & TASK_FLAG_PREFIX) != 0;
        chain += recv && c->detail == CHANNEL_STATE;
        norms += v.p.tasks[t].kind == TASK_COLL && c->purpose == PURPOSE_NORM;
    }
    assert_int_equal(prefix, 2 + 1); /* into rank 1 and rank 2; what rank 3 gets comes behind */
    assert_int_equal(chain, 2 * 3);
    assert_int_equal(norms, 0);
    assert_true(plan_validates(&v.p));
}

static void refuse(const validated *v, td_arena *a, uint32_t task, plan_task with, const char *why)
{
    td_err err = {0};
    plan broken;
    T_OK(plan_copy(&v->p, a, &broken, &err), &err);
    broken.tasks[task] = with;
    T_FAILS(plan_check(&broken, a, &err), TD_EPLAN, &err, why);
}

static void test_checker(void **state)
{
    const zb_query q = {.family = "zb-h2", .pp = 4, .m = 8, .f = 1, .i = 1, .w = 1};
    validated v;
    lower_validated(*state, &q, MAPPING_CHANNEL, &v);
    const uint32_t in = message_of(&v.p, true), out = message_of(&v.p, false);
    const uint32_t send = v.p.tasks[in].link, first = plan_compute(&v.p, 0)->first_task;
    const uint32_t mark = task_of(&v.p, 0, TASK_VERIFY) - 1, i = task_of(&v.p, 0, PASS_I);
    plan_task t = v.p.tasks[in];
    t.flags = 0;
    refuse(&v, *state, in, t, "its other end is not");
    t = v.p.tasks[send];
    t.join = PLAN_NONE;
    refuse(&v, *state, send, t, "VERIFY does not wait for it");
    t = v.p.tasks[out];
    t.gate = PLAN_NONE;
    refuse(&v, *state, out, t, "it may run before VERIFY");
    t = v.p.tasks[first];
    t.flags = 0;
    refuse(&v, *state, first, t, "not to be repeated");
    t = v.p.tasks[i];
    t.flags |= TASK_FLAG_PREFIX;
    refuse(&v, *state, i, t, "no VERIFY follows");
    t = v.p.tasks[mark + 1];
    refuse(&v, *state, mark, t, "twice");
}

static void test_refusals(void **state)
{
    td_err err = {0};
    const sizes z = {.n_stages = 4, .chunks = 1};
    lower_options o = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1};
    schedule s;
    plan p;
    const zb_query h1 = {.family = "zb-h1", .pp = 4, .m = 8, .f = 1, .i = 1, .w = 1};
    T_OK(zb_generate(*state, &h1, &s, &err), &err);
    s.validate = true;
    o.zero1 = true;
    T_FAILS(plan_lower(&s, &o, *state, &p, &err), TD_EUSAGE, &err, "--zero1");
    o.zero1 = false;
    o.send_window = 1;
    o.lookahead = 0;
    T_FAILS(plan_lower(&s, &o, *state, &p, &err), TD_EUSAGE, &err, "--lookahead 0");
    o.send_window = 0;
    const zb_query vocab = {.family = "vocab-1", .pp = 4, .m = 16, .f = 1, .i = 1, .w = 1};
    T_OK(zb_generate(*state, &vocab, &s, &err), &err);
    s.validate = true;
    T_FAILS(plan_lower(&s, &o, *state, &p, &err), TD_EUSAGE, &err, "vocabulary");
    const zb_query fbd = {.family = "fbd", .pp = 4, .m = 8, .f = 1, .i = 1, .w = 1};
    T_OK(zb_generate(*state, &fbd, &s, &err), &err);
    s.validate = true;
    T_FAILS(plan_lower(&s, &o, *state, &p, &err), TD_EUSAGE, &err, "forward rows");
}

/* A copy of weights and moments is what it costs in memory, and a second norm table. */
static void test_memory(void **state)
{
    static const model_desc model = {.name = "m",
                                     .family = MODEL_LLAMA,
                                     .n_layers = 4,
                                     .hidden = 32,
                                     .n_heads = 2,
                                     .n_kv_heads = 2,
                                     .head_dim = 16,
                                     .ffn = 64,
                                     .vocab = 64,
                                     .max_positions = 16,
                                     .gated = true,
                                     .rms_norm = true,
                                     .causal = true,
                                     .norm_eps = 1e-5};
    stage_desc stages[4] = {{.n_layers = 1, .embedding = true},
                            {.first_layer = 1, .n_layers = 1},
                            {.first_layer = 2, .n_layers = 1},
                            {.first_layer = 3, .n_layers = 1, .head = true}};
    const sizes z = {.model = &model,
                     .stages = stages,
                     .n_stages = 4,
                     .chunks = 1,
                     .run = {.micro_batch = 1, .seq_len = 16, .tp = 1, .dp = 1}};
    const lower_options o = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1};
    const zb_query q = {.family = "zb-h1", .pp = 4, .m = 8, .f = 1, .i = 1, .w = 1};
    td_err err = {0};
    schedule s;
    plan plain, validates;
    T_OK(zb_generate(*state, &q, &s, &err), &err);
    T_OK(plan_lower(&s, &o, *state, &plain, &err), &err);
    s.validate = true;
    T_OK(plan_lower(&s, &o, *state, &validates, &err), &err);
    for (uint32_t r = 0; r < 4; r++) {
        int64_t weights = 0, optimizer = 0, norm = 0;
        T_OK(sizes_bytes(&z, SIZE_WEIGHTS, (int32_t)r, 0, 0, &weights, &err), &err);
        T_OK(sizes_bytes(&z, SIZE_OPTIMIZER, (int32_t)r, 0, 0, &optimizer, &err), &err);
        T_OK(sizes_bytes(&z, SIZE_NORM, (int32_t)r, 0, 0, &norm, &err), &err);
        const int64_t more = validates.ranks[r].persistent_bytes - plain.ranks[r].persistent_bytes;
        const int64_t want = weights + optimizer + (r > 0 ? norm : 0);
        assert_true(more >= want && more < want + 4 * PLAN_ALIGN);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(test_parallelogram), T_TEST(test_worked),        T_TEST(test_against_inequalities),
        T_TEST(test_rendezvous),    T_TEST(test_unrolled_once), T_TEST(test_times_of_several),
        T_TEST(test_positions),     T_TEST(test_checker),       T_TEST(test_refusals),
        T_TEST(test_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
