/* What holds of every bidirectional schedule: sound, the same text both ways, the same makespan
 * under zero-latency rendezvous; with a model, plans that the checker takes. */
#include "bidir_run.h"
#include "costmodel/model_presets.h"
#include "t.h"

/* A random legal case of a family. */
static bidir_query random_query(td_arena *a, td_rng *rng)
{
    static const char *const families[] = {"bitpipe", "chimera", "dualpipe", "dualpipev", "hanayo"};
    static const char *const syncs[] = {"eager", "end", "original"};
    const int which = (int)td_rng_below(rng, 5);
    const int32_t even = 2 + 2 * (int32_t)td_rng_below(rng, 4),
                  units = 1 + (int32_t)td_rng_below(rng, 4);
    const char *const sync = syncs[td_rng_below(rng, 3)];
    const char *const two = syncs[td_rng_below(rng, 2)];
    bidir_query q = {.family = families[which], .pp = even, .m = even * units, .f = 1, .b = 2};
    q.mapping = (plan_mapping)td_rng_below(rng, 3);
    switch (which) {
    case 0:
        q.v = 1 + (int32_t)td_rng_below(rng, 5);
        q.options = td_sprintf(a, "vshape=%d gap=%d sync=%s", (int)td_rng_below(rng, 2),
                               1 + (int)td_rng_below(rng, 2), sync);
        break;
    case 1: {
        const bool doubling = td_rng_below(rng, 2) == 1;
        int32_t f = 1 + (int32_t)td_rng_below(rng, even / 2);
        while (even / 2 % f != 0) f--;
        if (doubling) q.m *= 2;
        q.options = td_sprintf(a, "f=%d doubling=%d sync=%s", f, doubling, f > 1 ? two : sync);
        break;
    }
    case 2:
        q.m = 2 * even + 2 * (int32_t)td_rng_below(rng, 6);
        q.options = td_sprintf(a, "overlap=%d sync=%s", (int)td_rng_below(rng, 2), two);
        break;
    case 3:
        q.pp = 1 + (int32_t)td_rng_below(rng, 6);
        q.m = 2 * q.pp + (int32_t)td_rng_below(rng, 7);
        q.options = td_sprintf(a, "overlap=%d sync=%s", (int)td_rng_below(rng, 2), two);
        break;
    default:
        q.pp = 2 + (int32_t)td_rng_below(rng, 6);
        q.v = 2 + 2 * (int32_t)td_rng_below(rng, 3);
        q.m = 1 + (int32_t)td_rng_below(rng, 4 * q.pp);
        break;
    }
    return q;
}

static void same_text_both_ways(const bidir_query *q, const schedule *s, td_arena *a)
{
    td_text once = {0}, again = {0};
    td_err err = {0};
    schedule back;
    sched_print(s, &once);
    T_OK(sched_parse(once.s, once.len, "printed", a, &back, &err), &err);
    if (!sched_equal(s, &back)) fail_msg("%s: reads back otherwise", bidir_text(a, q));
    sched_print(&back, &again);
    assert_string_equal(once.s, again.s);
    td_text_free(&once);
    td_text_free(&again);
}

/* Lowering runs the checker after every pass, deadlock under pure rendezvous included. */
static void random_cases(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(2410);
    for (int i = 0; i < 250; i++) {
        td_arena *const a = td_arena_new();
        bidir_query q = random_query(a, &rng);
        q.i = q.w = 1;
        q.synced = i % 2 == 0;
        const bidir_result eager = bidir_run(a, &q);
        same_text_both_ways(&q, &eager.s, a);
        q.rendezvous = true;
        const bidir_result strict = bidir_run(a, &q);
        if (q.mapping == MAPPING_CHANNEL && strict.m.step_ns != eager.m.step_ns)
            fail_msg("%s: %lld ns under rendezvous, %lld eager", bidir_text(a, &q),
                     (long long)strict.m.step_ns, (long long)eager.m.step_ns);
        td_arena_free(a);
    }
}

/* Eight layers dropped at random on the stages. */
static stage_desc *random_layers(td_arena *a, const model_desc *m, int32_t n_stages, td_rng *rng)
{
    int32_t *const layers = TD_NEW_N(a, int32_t, n_stages);
    stage_desc *const out = TD_NEW_N(a, stage_desc, n_stages);
    td_err err = {0};
    for (int64_t i = 0; i < m->n_layers; i++) layers[td_rng_below(rng, n_stages)]++;
    const layer_request q = {.n_stages = n_stages, .pp = n_stages, .explicit_layers = layers};
    T_OK(layers_assign(m, &q, out, &err), &err);
    return out;
}

/* With a model, replicas, a sharded optimizer or not: every plan is sound to the checker, each rank
 * holds the weights of its stages, and what is summed over the copies of a stage is summed over
 * all of them. */
static void random_training(void **state)
{
    (void)state;
    static const char *const models[] = {"tiny-gpt2", "tiny-llama", "tiny-bert"};
    td_rng rng = td_rng_seed(1966);
    for (int i = 0; i < 120; i++) {
        td_arena *const a = td_arena_new();
        const bidir_query q = random_query(a, &rng);
        const model_desc *const model = model_preset(models[td_rng_below(&rng, 3)]);
        schedule s;
        plan p;
        td_err err = {0};
        T_OK(bidir_generate(a, &q, &s, &err), &err);
        const int32_t dp = 1 + (int32_t)td_rng_below(&rng, 3);
        const sizes z = {.model = model,
                         .stages = random_layers(a, model, s.n_stages, &rng),
                         .n_stages = s.n_stages,
                         .chunks = s.n_stages / s.n_rows,
                         .run = {.micro_batch = 1, .seq_len = 32, .tp = 1, .dp = dp}};
        const lower_options o = {.sizes = &z,
                                 .dp = dp,
                                 .tp = 1,
                                 .fold = td_rng_below(&rng, 2) == 0,
                                 .mapping = q.mapping,
                                 .zero1 = td_rng_below(&rng, 2) == 0};
        if (plan_lower(&s, &o, a, &p, &err) != TD_OK)
            fail_msg("%s dp=%d: %s", bidir_text(a, &q), dp, err.msg);
        const int32_t copies = s.n_pipes * dp;
        int syncs = 0;
        for (uint32_t c = 0; c < p.n_colls; c++) {
            const plan_class *const k =
                &p.classes[p.tasks[p.coll_tasks[p.colls[c].first_task]].cls];
            if (k->purpose != PURPOSE_GRAD_SYNC) continue;
            assert_int_equal(p.groups[p.colls[c].group].true_size, copies);
            syncs++;
        }
        int full = 0; /* stages without parameters have nothing to sum */
        for (int32_t st = 0; st < s.n_stages; st++)
            full += z.stages[st].n_layers > 0 || z.stages[st].embedding || z.stages[st].head;
        if (copies == 1 ? syncs != 0 : syncs < full)
            fail_msg("%s dp=%d: %d syncs", bidir_text(a, &q), dp, syncs);
        td_arena_free(a);
    }
}

/* --- the orders as their authors' loops give them --- */

/* A row as loops over a unit: a count, then the passes of one turn. F G home and P Q other pipe,
 * first and second half of the model; lower case: their backwards. a: rows to the middle, b = D/2 -
 * a, e = b + D/2. Before them come a turns of the drain of the unit before ("f") and `forward`. */
typedef struct loops {
    const char *family, *options;
    int32_t v, n_units; /* n_units: microbatches of a unit over D */
    const char *forward;
    const char *rest;
} loops;

static const loops all_loops[] = {
    {"bitpipe", NULL, 2, 1, "F", "bPF aPQ bGQ aGg bqg aqp bfp"},
    {"chimera", NULL, 1, 1, "F", "bPF aPp bfp"},
    {"chimera", "doubling=1", 1, 2, "FF", "bPPFF aPPp efp"},
};

typedef struct walk {
    const schedule *s;
    const loops *l;
    int32_t row, d, unit, at;
    int32_t next[2][2][2][2]; /* home or other, half, forward or backward, parity of the unit */
} walk;

static void step(walk *w, char letter, int32_t unit)
{
    const char *const letters = "FGPQfgpq";
    const int i = (int)(strchr(letters, letter) - letters);
    const int back = i / 4, other = i / 2 % 2, half = i % 2;
    const bool down = (w->row < w->d / 2) != (other == 1);
    const int32_t pass = down ? w->row : w->d - 1 - w->row;
    const int32_t stage = half == 0 ? pass : 2 * w->d - 1 - pass;
    const int32_t n = w->d * w->l->n_units / 2;
    const int32_t m = (2 * unit + (down ? 0 : 1)) * n + w->next[other][half][back][unit % 2]++;
    const sched_cell *const c = &w->s->rows[w->row].cells[w->at];
    if (w->at >= w->s->rows[w->row].n_cells || c->kind != (back ? PASS_B : PASS_F) ||
        c->stage != stage || c->microbatch != m)
        fail_msg("%s D=%d row %d, pass %d: not %c%d.%d", w->l->family, w->d, w->row, w->at,
                 back ? 'B' : 'F', m, stage);
    w->at++;
}

static int32_t loop_count(const walk *w, char letter)
{
    const int32_t h = w->d / 2, a = w->row < h ? h - w->row : w->row - h + 1;
    return letter == 'a' ? a : letter == 'b' ? h - a : h - a + h;
}

static void check_loops(const loops *l, const schedule *s, int32_t d, int32_t row, int32_t units)
{
    walk w = {.s = s, .l = l, .row = row, .d = d};
    for (int32_t u = 0; u <= units; u++) {
        for (int32_t i = 0; i < loop_count(&w, 'a'); i++) {
            if (u > 0) step(&w, 'f', u - 1);
            for (const char *c = l->forward; *c != '\0' && u < units; c++) step(&w, *c, u);
        }
        for (const char *c = l->rest; *c != '\0' && u < units;) {
            const int32_t times = loop_count(&w, *c++);
            const size_t n = strcspn(c, " ");
            for (int32_t i = 0; i < times; i++)
                for (size_t k = 0; k < n; k++) step(&w, c[k], u);
            c += n + (c[n] == ' ');
        }
        for (int i = 0; i < 8; i++) /* the next unit counts from 0; only its drain goes on */
            w.next[i / 4][i / 2 % 2][i % 2][(u + 1) % 2] = 0;
    }
    assert_int_equal(w.at, s->rows[row].n_cells);
}

static void authors_loops(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof all_loops / sizeof *all_loops; i++)
        for (int32_t d = 2; d <= 16; d += 2)
            for (int32_t units = 1; units <= 4; units++) {
                td_arena *const a = td_arena_new();
                const loops *const l = &all_loops[i];
                const bidir_query q = {.family = l->family,
                                       .options = l->options,
                                       .pp = d,
                                       .m = units * d * l->n_units,
                                       .v = l->v};
                schedule s;
                td_err err = {0};
                T_OK(bidir_generate(a, &q, &s, &err), &err);
                for (int32_t row = 0; row < d; row++) check_loops(l, &s, d, row, units);
                td_arena_free(a);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(authors_loops),
        cmocka_unit_test(random_cases),
        cmocka_unit_test(random_training),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
