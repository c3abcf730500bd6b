/* A calibration finds the speeds that made its samples, in spite of noise and outliers, and says
 * what samples cannot tell. */
#include "t.h"

#include "costmodel/calibrate.h"

/* Speeds drawn at random that samples are made of. */
typedef struct truth {
    double layer[3], head[2], message[2], optimizer[2], slow;
} truth;

static double draw(td_rng *r, double low, double high)
{
    return low + (high - low) * td_rng_unit(r);
}

static truth draw_truth(td_rng *r)
{
    return (truth){
        .layer = {draw(r, 1e4, 1e5), draw(r, 500, 5000), draw(r, 1, 10)},
        .head = {draw(r, 1e3, 1e5), draw(r, 1e3, 1e4)},
        .message = {draw(r, 1e3, 1e4), draw(r, 0.05, 0.5)},
        .optimizer = {draw(r, 1e3, 1e4), draw(r, 0.3, 3)},
        .slow = draw(r, 1.1, 1.9),
    };
}

/* One per cent of noise, and one sample in ten two to five times too long. */
static double disturbed(td_rng *r, double ns)
{
    const double noisy = ns * (1 + 0.01 * td_rng_normal(r));
    return td_rng_below(r, 10) == 0 ? noisy * draw(r, 2, 5) : noisy;
}

static void add(samples *s, sample x)
{
    td_err err = {0};
    T_OK(samples_add(s, &x, &err), &err);
}

static void add_passes(samples *s, const truth *t, td_rng *r, int32_t busy)
{
    const double slow = busy > 1 ? t->slow : 1;
    for (int64_t batch = 1; batch <= 4; batch *= 2)
        for (int64_t len = 32; len <= 512; len *= 2) {
            const double tokens = (double)(batch * len), context = ((double)len + 1) / 2;
            const double layer =
                t->layer[0] + t->layer[1] * tokens + t->layer[2] * tokens * context;
            add(s, (sample){.what = SAMPLE_PASS,
                            .pass = PASS_F,
                            .part = PART_LAYERS,
                            .layers = 2,
                            .micro_batch = batch,
                            .slice_len = len,
                            .busy = busy,
                            .ns = disturbed(r, 2 * layer * slow)});
            add(s, (sample){.what = SAMPLE_PASS,
                            .pass = PASS_F,
                            .part = PART_HEAD,
                            .micro_batch = batch,
                            .slice_len = len,
                            .busy = busy,
                            .ns = disturbed(r, (t->head[0] + t->head[1] * tokens) * slow)});
        }
}

static samples make_samples(td_arena *a, const truth *t, td_rng *r)
{
    samples s = samples_new(a);
    td_err err = {0};
    model_desc m;
    const run_shape run = {.micro_batch = 1, .seq_len = 64, .tp = 1, .dp = 1};
    T_OK(model_load("tiny-gpt2", &m, &err), &err);
    T_OK(samples_header_model(&s, &m, &run, &err), &err);
    T_OK(samples_header(&s, "cores", "2", &err), &err);
    for (int i = 0; i < 6; i++) {
        add_passes(&s, t, r, 1);
        add_passes(&s, t, r, 2);
        for (int64_t size = 1 << 8; size <= 1 << 24; size *= 4) {
            const double n = (double)size;
            add(&s, (sample){.what = SAMPLE_MESSAGE,
                             .amount = size,
                             .busy = 2,
                             .ns = disturbed(r, t->message[0] + t->message[1] * n)});
            add(&s, (sample){.what = SAMPLE_OPTIMIZER,
                             .amount = size,
                             .busy = 1,
                             .ns = disturbed(r, t->optimizer[0] + t->optimizer[1] * n)});
        }
    }
    return s;
}

static void recovers_speeds(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    td_rng rng = td_rng_seed(11);
    int inside = 0, all = 0;
    for (int round = 0; round < 12; round++) {
        const truth t = draw_truth(&rng);
        const samples s = make_samples(a, &t, &rng);
        profile p;
        td_text report = {0};
        T_OK(calibrate_fit(&s, &p, &report, &err), &err);
        td_text_free(&report);
        const profile_fit *const layers = &p.shard[0].pass[0][PASS_F][PART_LAYERS];
        const profile_fit *const head = &p.shard[0].pass[0][PASS_F][PART_HEAD];
        const struct {
            const estimate *got;
            double want;
        } terms[] = {
            {&layers->c[0], t.layer[0]},         {&layers->c[1], t.layer[1]},
            {&layers->c[2], t.layer[2]},         {&head->c[1], t.head[1]},
            {&p.message[0].c[0], t.message[0]},  {&p.message[0].c[1], t.message[1]},
            {&p.optimizer.c[1], t.optimizer[1]},
        };
        for (size_t i = 0; i < sizeof terms / sizeof *terms; i++) {
            const double off = fabs(terms[i].got->value - terms[i].want);
            all++;
            inside += off <= terms[i].got->half;
            if (off > 4 * terms[i].got->half)
                fail_msg("round %d term %zu: %g +- %g, made with %g", round, i, terms[i].got->value,
                         terms[i].got->half, terms[i].want);
        }
        T_CLOSE(layers->c[1].value, t.layer[1], 0.05, 0);
        T_CLOSE(p.message[0].c[1].value, t.message[1], 0.02, 0);
        assert_int_equal(p.n_busy, 1);
        T_CLOSE(p.busy[0].compute.value, t.slow, 0.02, 0);
        T_CLOSE(layers->error, 0.01, 0, 0.01); /* noise; outliers widen it a little */
        assert_string_equal(p.model.name, "tiny-gpt2");
        assert_int_equal(p.cores, 2);
    }
    /* 95 % intervals hold the truth most of the time */
    if (inside * 10 < all * 8) fail_msg("%d of %d intervals hold the truth", inside, all);
}

static void says_what_is_open(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    samples s = samples_new(a);
    profile p;
    td_text report = {0};
    const sample one = {.what = SAMPLE_PASS,
                        .pass = PASS_B,
                        .part = PART_LAYERS,
                        .layers = 3,
                        .micro_batch = 1,
                        .slice_len = 64,
                        .busy = 1,
                        .ns = 3000};
    T_FAILS(calibrate_fit(&s, &p, &report, &err), TD_EUSAGE, &err, "no samples");
    for (int i = 0; i < 5; i++) add(&s, one);
    T_OK(calibrate_fit(&s, &p, &report, &err), &err);
    /* one length: its time is known, nothing else */
    T_CLOSE(p.shard[0].pass[0][PASS_B][PART_LAYERS].c[0].value, 1000, 1e-9, 0);
    assert_non_null(strstr(report.s, "no change with tokens"));
    assert_non_null(strstr(report.s, "message: not measured"));
    assert_non_null(strstr(report.s, "contention: not determined"));
    sample busy = one;
    busy.busy = 2;
    busy.pass = PASS_F;
    add(&s, busy);
    T_FAILS(calibrate_fit(&s, &p, &report, &err), TD_EUSAGE, &err, "pass F of layers");
    td_text_free(&report);
}

/* Two samples for two terms leave none for an interval; what is written is read back. */
static void no_interval_is_read_back(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    samples s = samples_new(a);
    profile p, back;
    td_text report = {0}, text = {0};
    for (int i = 0; i < 2; i++)
        add(&s, (sample){.what = SAMPLE_MESSAGE,
                         .amount = 1000 << i,
                         .busy = 1,
                         .ns = 5000 + 2 * (1000 << i)});
    T_OK(calibrate_fit(&s, &p, &report, &err), &err);
    profile_print(&p, &text);
    assert_null(strstr(text.s, "nan"));
    T_OK(profile_parse(text.s, text.len, "p.json", &back, &err), &err);
    T_CLOSE(back.message[0].c[0].value, 5000, 1e-6, 0);
    T_CLOSE(back.message[0].c[1].value, 2, 1e-6, 0);
    td_text_free(&report);
    td_text_free(&text);
}

/* Times that fall as the work grows are no machine's. */
static void refuses_nonsense(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    samples s = samples_new(a);
    profile p;
    td_text report = {0};
    for (int i = 0; i < 8; i++)
        add(&s,
            (sample){.what = SAMPLE_MESSAGE, .amount = 1000 << i, .busy = 2, .ns = 1e6 / (1 + i)});
    T_OK(calibrate_fit(&s, &p, &report, &err), &err);
    T_CLOSE(p.message[0].c[1].value, 0, 0, 0);
    assert_non_null(strstr(report.s, "could not be told apart"));
    td_text_free(&report);
    T_OK(samples_header(&s, "dtype", "fp8", &err), &err);
    T_FAILS(calibrate_fit(&s, &p, &report, &err), TD_EUSAGE, &err, "fp8");
}

#define WITH_ARENA(f) cmocka_unit_test_setup_teardown(f, t_arena_setup, t_arena_teardown)

/* Slices behind contexts: what these add is found with an interval that holds it, survives the
 * profile's text, and is in the price of a slice; without enough samples it is left out. */
static void finds_contexts(void **state)
{
    static const double added[] = {4000, 3.5, 25, 0.75};
    td_rng rng = td_rng_seed(17);
    for (int few = 0; few < 2; few++) {
        samples s = samples_new(*state);
        td_err err = {0};
        model_desc m;
        const run_shape run = {.micro_batch = 2, .seq_len = 512, .tp = 1, .dp = 1};
        T_OK(model_load("tiny-gpt2", &m, &err), &err);
        T_OK(samples_header_model(&s, &m, &run, &err), &err);
        for (int64_t b = 1; b <= 2; b++)
            for (int64_t len = 64; len <= 256; len *= 2)
                for (int64_t prefix = 0; prefix <= (few ? 64 : 256); prefix += 64) {
                    const double i = (double)(b * len), j = (double)(b * prefix);
                    const double bare = 5e4 + 900 * i + 2 * i * ((double)len + 1) / 2;
                    double more =
                        added[0] + added[1] * i + added[2] * j + added[3] * i * (double)prefix;
                    more *= 1 + 0.01 * td_rng_normal(&rng);
                    add(&s, (sample){.what = SAMPLE_PASS,
                                     .pass = PASS_F,
                                     .part = PART_LAYERS,
                                     .layers = 3,
                                     .micro_batch = few ? 1 : b,
                                     .slice_len = len,
                                     .prefix = prefix,
                                     .busy = 1,
                                     .ns = 3 * (bare + (prefix > 0 ? more : 0))});
                }
        profile p, back;
        td_text report = {0}, text = {0};
        T_OK(calibrate_fit(&s, &p, &report, &err), &err);
        const profile_context_fit *const c = &p.shard[0].context[0][PASS_F];
        assert_true((strstr(report.s, "context of pass F") != NULL) == (few == 0));
        td_text_free(&report);
        assert_int_equal(c->n, few ? 0 : 24);
        profile_print(&p, &text);
        T_OK(profile_parse(text.s, text.len, "printed", &back, &err), &err);
        assert_memory_equal(&p.shard[0].context, &back.shard[0].context, sizeof p.shard[0].context);
        td_text_free(&text);
        if (few) continue;
        T_CLOSE(c->c[2].value, added[2], 0.2, 0);
        T_CLOSE(c->c[3].value, added[3], 0.03, 0);
        for (int k = 0; k < CONTEXT_TERMS; k++) /* twice the interval: hardly ever outside */
            assert_true(fabs(c->c[k].value - added[k]) <= 2 * c->c[k].half);
        const stage_desc stage = {.n_layers = 4};
        const sizes z = {.model = &m, .run = run, .stages = &stage, .n_stages = 1, .chunks = 1};
        double slice = 0, whole = 0;
        T_OK(profile_pass_ns(&p, &z, &(pass_query){PASS_F, 0, 128, 0, 512, false}, &whole, &err),
             &err);
        T_OK(profile_pass_ns(&p, &z, &(pass_query){PASS_F, 0, 128, 192, 512, false}, &slice, &err),
             &err);
        T_CLOSE(slice - whole,
                4 * (added[0] + added[1] * 256 + added[2] * 384 + added[3] * 256 * 192), 0.02, 0);
    }
}

/* One sample in ten 3 to 100 times too long, with a context or without: what a context adds is
 * found all the same, and its interval, which knows that the contexts of one slice share their
 * difference's other end, holds it. */
static void contexts_survive_outliers(void **state)
{
    static const double added[] = {3000, 20, 40, 0.8};
    int held[CONTEXT_TERMS] = {0};
    enum { SEEDS = 20 };
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        td_rng rng = td_rng_seed(seed);
        samples s = samples_new(*state);
        td_err err = {0};
        for (int64_t k = 0; k < 40; k++) {
            const int64_t b = 1 + k % 2, len = INT64_C(64) << k / 2 % 4, prefix = 128 * (k / 8);
            const double i = (double)(b * len), j = (double)(b * prefix);
            double ns = 8000 + 300 * i + 0.9 * i * ((double)len + 1) / 2;
            if (prefix > 0)
                ns += added[0] + added[1] * i + added[2] * j + added[3] * i * (double)prefix;
            ns *= 1 + 0.03 * td_rng_normal(&rng);
            add(&s, (sample){.what = SAMPLE_PASS,
                             .pass = PASS_F,
                             .part = PART_LAYERS,
                             .layers = 1,
                             .micro_batch = b,
                             .slice_len = len,
                             .prefix = prefix,
                             .busy = 1,
                             .ns = td_rng_below(&rng, 10) == 0 ? ns * draw(&rng, 3, 100) : ns});
        }
        profile p;
        td_text report = {0};
        T_OK(calibrate_fit(&s, &p, &report, &err), &err);
        td_text_free(&report);
        const profile_context_fit *const c = &p.shard[0].context[0][PASS_F];
        T_CLOSE(c->c[3].value, added[3], 0.35, 0);
        assert_true(c->error < 0.15);
        for (int k = 0; k < CONTEXT_TERMS; k++)
            held[k] += fabs(c->c[k].value - added[k]) <= c->c[k].half;
    }
    for (int k = 0; k < CONTEXT_TERMS; k++) assert_true(held[k] >= SEEDS * 17 / 20);
}

/* Sizes that were measured at one value only say so, and so does a header out of its range. */
static void says_one_size(void **state)
{
    static const sample_what kinds[] = {SAMPLE_OPTIMIZER, SAMPLE_NORM, SAMPLE_COPY,
                                        SAMPLE_ALL_REDUCE};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        samples s = samples_new(*state);
        td_err err = {0};
        profile p;
        td_text report = {0};
        for (int i = 0; i < 3; i++)
            add(&s,
                (sample){.what = kinds[k], .amount = 999, .members = 2, .busy = 1, .ns = 50 + i});
        T_OK(calibrate_fit(&s, &p, &report, &err), &err);
        assert_non_null(strstr(report.s, "no change with size could be determined"));
        T_OK(samples_header(&s, "causal", "7", &err), &err);
        T_FAILS(calibrate_fit(&s, &p, &report, &err), TD_EUSAGE, &err, "causal: 7 is out of range");
        td_text_free(&report);
    }
}

/* The gradients of weights are products of a slice's own rows: however their times bend, no
 * attention is read out of them. */
static void weights_see_no_others(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    td_rng rng = td_rng_seed(3);
    const truth t = draw_truth(&rng);
    samples s = make_samples(a, &t, &rng);
    const size_t n = s.n;
    for (size_t i = 0; i < n; i++) {
        sample x = s.items[i];
        if (x.what != SAMPLE_PASS || x.part != PART_LAYERS) continue;
        x.pass = PASS_W;
        add(&s, x);
    }
    profile p;
    td_text report = {0};
    T_OK(calibrate_fit(&s, &p, &report, &err), &err);
    assert_true(p.shard[0].pass[0][PASS_F][PART_LAYERS].c[2].value > 0);
    assert_true(p.shard[0].pass[0][PASS_W][PART_LAYERS].n > 0);
    assert_true(p.shard[0].pass[0][PASS_W][PART_LAYERS].c[2].value == 0);
    assert_null(strstr(report.s, "pass W of layers: attention"));
    td_text_free(&report);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_ARENA(finds_contexts),    WITH_ARENA(contexts_survive_outliers),
        WITH_ARENA(says_one_size),     WITH_ARENA(recovers_speeds),
        WITH_ARENA(says_what_is_open), WITH_ARENA(no_interval_is_read_back),
        WITH_ARENA(refuses_nonsense),  WITH_ARENA(weights_see_no_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
