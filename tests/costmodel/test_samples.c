/* Samples: what is printed is read back, files of version 1 are read, broken ones refused with
 * their place; what repeats say is what sorting and counting says. */
#include "t.h"

#include "costmodel/samples.h"

#include <math.h>
#include <stdlib.h>

static sample random_sample(td_rng *r)
{
    sample x = {.what = (sample_what)td_rng_below(r, SAMPLE_WHAT_COUNT),
                .busy = (int32_t)(1 + td_rng_below(r, 4)),
                .ns = 1 + 1e9 * td_rng_unit(r),
                .tp = (int32_t)(1 + td_rng_below(r, 4)),
                .repeats = (int32_t)(2 + td_rng_below(r, 90)),
                .half_ns = 1e6 * td_rng_unit(r),
                .spread = td_rng_unit(r),
                .outliers = (int32_t)td_rng_below(r, 2),
                .worst_ns = 2e9 * td_rng_unit(r)};
    if (x.what == SAMPLE_PASS) {
        x.pass = (pass_kind)td_rng_below(r, PASS_COUNT);
        x.part = (stage_part)td_rng_below(r, PART_COUNT);
        x.recompute = (recompute_mode)td_rng_below(r, 3);
        x.layers = x.part == PART_LAYERS ? 1 + td_rng_below(r, 9) : 0;
        x.micro_batch = 1 + td_rng_below(r, 9);
        x.slice_len = 1 + td_rng_below(r, 4096);
        x.prefix = td_rng_below(r, 4096);
        if (strchr("STEG", pass_letter(x.pass)) != NULL) x.words = 1 + td_rng_below(r, 4096);
    } else {
        x.amount = td_rng_below(r, 1 << 30);
        x.members = x.what == SAMPLE_ALL_REDUCE ? (int32_t)(2 + td_rng_below(r, 9)) : 0;
        if (x.what == SAMPLE_MESSAGE || x.what == SAMPLE_ALL_REDUCE)
            x.link = (sample_link)td_rng_below(r, LINK_COUNT);
        for (int i = 0; i < 3 && x.what == SAMPLE_PRODUCT; i++)
            x.shape[i] = 1 + td_rng_below(r, 4096);
    }
    return x;
}

static bool same_number(double a, double b) { return a >= b && a <= b; }

static bool same_sample(const sample *a, const sample *b)
{
    for (int i = 0; i < 3; i++)
        if (a->shape[i] != b->shape[i]) return false;
    return a->what == b->what && a->pass == b->pass && a->part == b->part &&
           a->recompute == b->recompute && a->layers == b->layers &&
           a->micro_batch == b->micro_batch && a->slice_len == b->slice_len &&
           a->prefix == b->prefix && a->amount == b->amount && a->members == b->members &&
           a->busy == b->busy && same_number(a->ns, b->ns) && a->tp == b->tp &&
           a->words == b->words && a->link == b->link && a->repeats == b->repeats &&
           same_number(a->half_ns, b->half_ns) && same_number(a->spread, b->spread) &&
           a->outliers == b->outliers && same_number(a->worst_ns, b->worst_ns);
}

static void samples_round_trip(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    td_rng rng = td_rng_seed(3);
    samples s = samples_new(a), back;
    T_OK(samples_header(&s, "device", "some core, 2 of them", &err), &err);
    for (int i = 0; i < 500; i++) {
        const sample x = random_sample(&rng);
        T_OK(samples_add(&s, &x, &err), &err);
    }
    td_text t = {0};
    samples_print(&s, &t);
    T_OK(samples_parse(t.s, t.len, "s", a, &back, &err), &err);
    assert_true(back.n == s.n);
    assert_string_equal(samples_header_value(&back, "device"), "some core, 2 of them");
    for (size_t i = 0; i < s.n; i++) assert_true(same_sample(&s.items[i], &back.items[i]));
    td_text_free(&t);
}

static void bad_samples(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    samples s = samples_new(a);
    static const struct {
        const char *text, *why;
    } bad[] = {
        {"pass\tF\tlayers\n", "s:1:1: has 3 columns"},
        {"# k v\npass F layers 1 1 x 0 none 0 0 1 5\n", "s:2:19: slice_len"},
        {"pass Q layers 1 1 8 0 none 0 0 1 5\n", "s:1:6: pass"},
        {"pass F wings 1 1 8 0 none 0 0 1 5\n", "layers, embedding, head"},
        {"pass F layers 0 1 8 0 none 0 0 1 5\n", "layers: wants at least 1"},
        {"message - - 0 0 0 0 - 9 0 1 -5\n", "ns"},
        {"all_reduce - - 0 0 0 0 - 9 1 1 5\n", "members"},
        {"# tandem-samples 9\n", "version"},
        {"# samples 2\nmessage - - 0 0 0 0 - 9 0 1 5\n", "1 of 2 samples; was it cut?"},
        {"# samples 1\nmessage - - 0 0 0 0 - 9 0 1 5", "no end; was it cut?"},
        {"# device x\n# device y\n", "s:2:1: device: was 'x' above, is 'y' here"},
        {"# samples many\n", "their number"},
        {"# tandem-samples 2\nmessage - - 0 0 0 0 - 9 0 1 5\n",
         "s:2:1: has 12 columns, a sample has 23"},
        {"pass S head 0 1 8 0 none 0 0 1 5\n", "words: wants at least 1"},
        {"# tp 0\n", "tp"},
        {"product - - 0 0 0 0 - 0 0 1 5 1 0 4 0 4 - 0 0 0 0 0\n", "m, n, k"},
        {"message - - 0 0 0 0 - 8 0 1 5 1 0 0 0 0 mail 0 0 0 0 0\n", "threads, mpi, tcp"},
        {"copy - - 0 0 0 0 - 8 0 1 5 1 0 0 0 0 - 3 0 0 4 0\n", "outliers"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        T_FAILS(samples_parse(bad[i].text, strlen(bad[i].text), "s", a, &s, &err), TD_EPARSE, &err,
                bad[i].why);
    T_FAILS(samples_add(&s, &(sample){.what = SAMPLE_MESSAGE, .busy = 1}, &err), TD_EUSAGE, &err,
            "ns");
    T_FAILS(samples_header(&s, "two words", "v", &err), TD_EUSAGE, &err, "one word");
}

/* Version 1: twelve columns, and one degree for all passes in the head. */
static void reads_version_1(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    samples s;
    static const char old[] = "# tandem-samples 1\n# samples 2\n# tp 2\n"
                              "pass\tF\tlayers\t1\t2\t8\t0\tnone\t0\t0\t1\t5\n"
                              "message\t-\t-\t0\t0\t0\t0\t-\t64\t0\t1\t7.5\n";
    T_OK(samples_parse(old, sizeof old - 1, "old", a, &s, &err), &err);
    assert_int_equal(s.n, 2);
    assert_true(s.items[0].tp == 2 && s.items[0].repeats == 0 && s.items[1].link == LINK_THREADS);
    T_CLOSE(s.items[1].ns, 7.5, 0, 0);
}

static int by_number(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_of(double *x, size_t n)
{
    qsort(x, n, sizeof *x, by_number);
    return (x[(n - 1) / 2] + x[n / 2]) / 2;
}

static void summarizes_repeats(void **state)
{
    (void)state;
    enum { MOST = 130 };
    td_rng rng = td_rng_seed(21);
    for (int round = 0; round < 400; round++) {
        int64_t ns[MOST];
        double x[MOST], far[MOST];
        const size_t n = 1 + (size_t)td_rng_below(&rng, MOST);
        for (size_t i = 0; i < n; i++) {
            ns[i] = 1000 + td_rng_below(&rng, round % 3 == 0 ? 4 : 500);
            x[i] = (double)ns[i];
        }
        sample s = {0};
        samples_summarize(ns, n, &s);
        const double median = median_of(x, n);
        T_CLOSE(s.ns, median, 0, 0);
        T_CLOSE(s.worst_ns, x[n - 1], 0, 0);
        for (size_t i = 0; i < n; i++) far[i] = fabs(x[i] - median);
        T_CLOSE(s.spread, n > 1 ? 1.4826 * median_of(far, n) / median : 0, 1e-12, 0);
    }
    /* ranks of the 95 % interval as tables of the sign test have them */
    static const struct {
        size_t n, r;
    } known[] = {{5, 0}, {6, 1}, {8, 1}, {9, 2}, {12, 3}, {20, 6}, {50, 18}, {100, 40}};
    for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
        int64_t ns[MOST];
        const size_t n = known[k].n, r = known[k].r;
        for (size_t i = 0; i < n; i++) ns[i] = 1000 + (int64_t)((i * 37) % n) * 2;
        sample s = {0};
        if (n % 37 != 0) samples_summarize(ns, n, &s);
        T_CLOSE(s.half_ns, r == 0 ? 0 : (double)(n + 1 - 2 * r), 0, 0);
    }
    int64_t odd[20];
    for (int i = 0; i < 20; i++) odd[i] = 1000 + i % 3;
    odd[4] = 4000;
    odd[9] = 1200;
    sample s = {0};
    samples_summarize(odd, 20, &s);
    assert_int_equal(s.outliers, 2);
    T_CLOSE(s.worst_ns, 4000, 0, 0);
}

static void two_benches(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    samples x = samples_new(a), y = samples_new(a);
    const sample one = {.what = SAMPLE_COPY, .amount = 64, .busy = 1, .ns = 9};
    T_OK(samples_header(&x, "device", "core", &err), &err);
    T_OK(samples_header(&x, "other_load", "0.02", &err), &err);
    T_OK(samples_header(&y, "other_load", "0.5", &err), &err);
    T_OK(samples_header(&y, "date", "2026-11-21", &err), &err);
    T_OK(samples_add(&x, &one, &err), &err);
    T_OK(samples_add(&y, &one, &err), &err);
    T_OK(samples_merge(&x, &y, &err), &err);
    assert_int_equal(x.n, 2);
    assert_string_equal(samples_header_value(&x, "date"), "2026-11-21");
    assert_string_equal(samples_header_value(&x, "other_load"), "0.5"); /* the worse */
    samples z = samples_new(a);
    T_OK(samples_header(&z, "device", "another", &err), &err);
    T_FAILS(samples_merge(&x, &z, &err), TD_EUSAGE, &err, "device is 'core' in one");
}

#define WITH_ARENA(f) cmocka_unit_test_setup_teardown(f, t_arena_setup, t_arena_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_ARENA(samples_round_trip),       WITH_ARENA(bad_samples), WITH_ARENA(reads_version_1),
        cmocka_unit_test(summarizes_repeats), WITH_ARENA(two_benches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
