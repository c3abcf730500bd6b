/* A calibration finds what made its samples for every kind there is: shards of the vocabulary, each
 * tensor-parallel degree and recompute mode by itself, products, copies, links; the spread that it
 * states is that of the repeats; and it says what speaks against its samples. */
#include "t.h"

#include "costmodel/calibrate.h"

static void add(samples *s, sample x)
{
    td_err err = {0};
    if (x.busy == 0) x.busy = 1;
    T_OK(samples_add(s, &x, &err), &err);
}

/* One per cent of noise, and one in ten two to five times too long. */
static double disturbed(td_rng *r, double ns)
{
    const double noisy = ns * (1 + 0.01 * td_rng_normal(r));
    return td_rng_below(r, 10) == 0 ? noisy * (2 + 3 * td_rng_unit(r)) : noisy;
}

static void fit(const samples *s, profile *p, td_text *report)
{
    td_err err = {0};
    T_OK(calibrate_fit(s, p, report, &err), &err);
}

static void holds(const profile_fit *f, int term, double want, double rel)
{
    T_CLOSE(f->c[term].value, want, rel, 0);
    if (fabs(f->c[term].value - want) > 4 * f->c[term].half)
        fail_msg("%g +- %g, made with %g", f->c[term].value, f->c[term].half, want);
}

static void add_products(samples *s, td_rng *rng)
{
    for (int64_t m = 32; m <= 1024; m *= 2)
        for (int64_t n = 64; n <= 512; n *= 2)
            for (int64_t k = 64; k <= 512; k *= 8) {
                const double flops = 2 * (double)(m * n * k);
                const double elements = (double)(m * k + k * n + m * n);
                add(s, (sample){.what = SAMPLE_PRODUCT,
                                .shape = {m, n, k},
                                .ns = disturbed(rng, 2000 + 0.02 * flops + 0.4 * elements)});
            }
    for (int64_t bytes = 1 << 10; bytes <= 1 << 26; bytes *= 2)
        add(s, (sample){.what = SAMPLE_COPY,
                        .amount = bytes,
                        .ns = disturbed(rng, 150 + 0.08 * (double)bytes)});
}

static void add_links(samples *s, td_rng *rng)
{
    for (int link = 0; link < LINK_COUNT; link++)
        for (int64_t bytes = 8; bytes <= 1 << 26; bytes *= 4) {
            const double x = (double)bytes, slow = 1 + link;
            add(s, (sample){.what = SAMPLE_MESSAGE,
                            .link = (sample_link)link,
                            .amount = bytes,
                            .ns = disturbed(rng, slow * (3000 + 0.1 * x))});
            for (int32_t n = 2; n <= 4; n += 2)
                add(s, (sample){.what = SAMPLE_ALL_REDUCE,
                                .link = (sample_link)link,
                                .amount = bytes,
                                .members = n,
                                .ns = disturbed(rng, slow * (9000 + 0.3 * x * (n - 1)))});
        }
}

static void finds_kernels_and_links(void **state)
{
    td_rng rng = td_rng_seed(31);
    for (int round = 0; round < 5; round++) {
        samples s = samples_new(*state);
        profile p;
        td_text report = {0};
        add_products(&s, &rng);
        add_links(&s, &rng);
        fit(&s, &p, &report);
        holds(&p.product, 1, 0.02, 0.03);
        holds(&p.product, 2, 0.4, 0.2);
        holds(&p.copy, 1, 0.08, 0.03);
        holds(&p.copy, 0, 150, 0.1);
        for (int link = 0; link < LINK_COUNT; link++) {
            holds(&p.message[link], 0, 3000 * (1 + link), 0.05);
            holds(&p.message[link], 1, 0.1 * (1 + link), 0.05);
            holds(&p.all_reduce[link], 1, 0.3 * (1 + link), 0.05);
        }
        assert_non_null(strstr(report.s, "message by tcp: "));
        td_text_free(&report);
    }
}

static void finds_shards_and_modes(void **state)
{
    td_rng rng = td_rng_seed(33);
    samples s = samples_new(*state);
    for (int again = 0; again < 3; again++)
        for (int64_t len = 32; len <= 512; len *= 2) {
            for (int64_t words = 1000; words <= 16000; words *= 2)
                for (int part = PART_HEAD; part <= PART_FUSED_HEAD; part++) {
                    const double slope = part == PART_HEAD ? 0.5 : 0.9;
                    add(&s, (sample){.what = SAMPLE_PASS,
                                     .pass = PASS_S,
                                     .part = (stage_part)part,
                                     .micro_batch = 2,
                                     .slice_len = len,
                                     .words = words,
                                     .ns = disturbed(&rng, 4e4 + 2 * (double)len * 70 +
                                                               2 * (double)(len * words) * slope)});
                }
            for (int32_t tp = 1; tp <= 4; tp *= 2)
                for (int mode = 0; mode < 3; mode++)
                    add(&s, (sample){.what = SAMPLE_PASS,
                                     .pass = PASS_B,
                                     .layers = 1 + again,
                                     .recompute = (recompute_mode)mode,
                                     .tp = tp,
                                     .micro_batch = 1 + again,
                                     .slice_len = len,
                                     .ns = (1 + again) * (1e4 + (1 + again) * (double)len * 900 *
                                                                    (1 + mode) / tp)});
        }
    profile p;
    td_text report = {0};
    fit(&s, &p, &report);
    td_text_free(&report);
    assert_int_equal(p.n_shards, 3);
    const profile_shard *const one = profile_shard_of(&p, 1);
    holds(&one->pass[0][PASS_S][PART_HEAD], 2, 0.5, 0.02);
    holds(&one->pass[0][PASS_S][PART_FUSED_HEAD], 2, 0.9, 0.02);
    for (int32_t tp = 1; tp <= 4; tp *= 2)
        for (int mode = 0; mode < 3; mode++)
            T_CLOSE(profile_shard_of(&p, tp)->pass[mode][PASS_B][PART_LAYERS].c[1].value,
                    900.0 * (1 + mode) / tp, 1e-6, 0);
    assert_int_equal(profile_shard_of(&p, 4)->pass[0][PASS_S][PART_HEAD].n, 0);
}

/* However crooked the times of different lengths are, the spread is that of one length's repeats.
 */
static void spread_is_of_repeats(void **state)
{
    for (int grouped = 0; grouped < 2; grouped++) {
        td_rng rng = td_rng_seed(35);
        samples s = samples_new(*state);
        for (int64_t len = 16; len <= 512; len *= 2) {
            const double crooked = (double)len * (len % 3 == 1 ? 100 : 190);
            int64_t ns[200];
            for (int i = 0; i < 200; i++) {
                ns[i] = (int64_t)(1000 * crooked * (1 + 0.04 * td_rng_normal(&rng)));
                if (i % 20 == 0) ns[i] *= 3;
            }
            sample x = {.what = SAMPLE_PASS, .part = PART_HEAD, .micro_batch = 1, .slice_len = len};
            for (int i = 0; i < 200 && grouped; i++) {
                x.ns = (double)ns[i];
                add(&s, x);
            }
            if (!grouped) samples_summarize(ns, 200, &x);
            if (!grouped) add(&s, x);
        }
        profile p;
        td_text report = {0};
        fit(&s, &p, &report);
        T_CLOSE(p.shard[0].pass[0][PASS_F][PART_HEAD].spread, 0.04, 0.15, 0);
        assert_true(p.shard[0].pass[0][PASS_F][PART_HEAD].error > 0.1);
        assert_non_null(strstr(report.s, "repeats within 4"));
        td_text_free(&report);
    }
}

static void says_its_doubts(void **state)
{
    samples s = samples_new(*state);
    td_err err = {0};
    profile p;
    td_text report = {0};
    T_OK(samples_header(&s, "other_load", "0.7", &err), &err);
    for (int64_t i = 1; i <= 12; i++)
        add(&s, (sample){.what = SAMPLE_PASS,
                         .pass = PASS_B,
                         .layers = 1,
                         .micro_batch = 1,
                         .slice_len = 8 * i,
                         .repeats = 6,
                         .half_ns = i == 3 ? 900 : 1,
                         .ns = 1000 * (double)(i * (i % 2 == 0 ? 4 : 1))});
    fit(&s, &p, &report);
    assert_non_null(strstr(report.s, "the machine did other work during the bench, 0.70 cores"));
    assert_non_null(strstr(report.s, "1 of 12 samples are known within more than 10 %"));
    assert_non_null(strstr(report.s, "pass B of layers: its measurements are"));
    assert_non_null(strstr(report.s, "copy: not measured"));
    td_text_free(&report);
}

/* Times that bend stay points; a size that took less than a smaller one is pooled with it. */
static void keeps_bent_times(void **state)
{
    static const double ns[] = {100, 110, 105, 400, 9000, 200000};
    samples s = samples_new(*state);
    profile p;
    td_text report = {0};
    for (int i = 0; i < 6; i++)
        add(&s, (sample){.what = SAMPLE_MESSAGE,
                         .link = LINK_MPI,
                         .amount = (int64_t)8 << (3 * i),
                         .repeats = 9,
                         .ns = ns[i]});
    fit(&s, &p, &report);
    assert_non_null(strstr(report.s, "message by mpi: no line"));
    td_text_free(&report);
    assert_int_equal(p.message_curve[LINK_MPI].n, 6);
    T_CLOSE(profile_between_ns(&p, true, 64), 107.5, 1e-12, 0);
    T_CLOSE(profile_between_ns(&p, true, 512), 107.5, 1e-12, 0);
    T_CLOSE(profile_between_ns(&p, true, 4096), 400, 1e-12, 0);
    T_CLOSE(profile_between_ns(&p, true, 18432), 4700, 1e-12, 0);
}

/* What was disturbed is no bend: of one size the median counts, and a size that took twice as long
 * as a larger one is left out. */
static void bends_survive_outliers(void **state)
{
    static const double ns[] = {100, 110, 9000, 400, 9000, 200000};
    samples s = samples_new(*state);
    profile p;
    td_text report = {0};
    for (int k = 0; k < 18; k++)
        add(&s, (sample){.what = SAMPLE_COPY,
                         .amount = (int64_t)8 << (3 * (k % 6)),
                         .repeats = 9,
                         .ns = ns[k % 6] * (k == 4 ? 50 : 1)});
    fit(&s, &p, &report);
    td_text_free(&report);
    assert_int_equal(p.copy_curve.n, 5);
    T_CLOSE(profile_curve_eval(&p.copy, &p.copy_curve, 64), 110, 1e-12, 0);
    T_CLOSE(profile_curve_eval(&p.copy, &p.copy_curve, 4096), 400, 1e-12, 0);
    T_CLOSE(profile_curve_eval(&p.copy, &p.copy_curve, 32768), 9000, 1e-12, 0);
}

static void too_many_degrees(void **state)
{
    samples s = samples_new(*state);
    td_err err = {0};
    profile p;
    td_text report = {0};
    for (int32_t tp = 1; tp <= PROFILE_TP_MAX + 1; tp++)
        add(&s, (sample){.what = SAMPLE_PASS,
                         .layers = 1,
                         .micro_batch = 1,
                         .slice_len = 8,
                         .tp = tp,
                         .ns = 5});
    T_FAILS(calibrate_fit(&s, &p, &report, &err), TD_EUSAGE, &err, "tensor-parallel degrees");
    td_text_free(&report);
}

#define WITH_ARENA(f) cmocka_unit_test_setup_teardown(f, t_arena_setup, t_arena_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_ARENA(finds_kernels_and_links), WITH_ARENA(finds_shards_and_modes),
        WITH_ARENA(spread_is_of_repeats),    WITH_ARENA(says_its_doubts),
        WITH_ARENA(too_many_degrees),        WITH_ARENA(keeps_bent_times),
        WITH_ARENA(bends_survive_outliers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
