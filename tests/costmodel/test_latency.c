/* Times of slices: the formula, the fit of what a context adds, the cost model. */
#include "costmodel/latency.h"
#include "t.h"

#include <unistd.h>

static void formula(void **state)
{
    slicing_times t;
    latency_formula f;
    td_err err = {0};
    T_OK(latency_table(2, 5, *state, &t, &err), &err);
    T_OK(latency_parse("c=3,i=2,ij=0.5,j=0.25,ii=0.125", &f, &err), &err);
    latency_from_formula(&f, 4, &t);
    /* 2 sequences, 8 tokens behind 12 */
    T_CLOSE(*slicing_time(&t, 2, 2, 5), 1e6 * (3 + 2 * (2 * 8 + 0.25 * 12 + 0.125 * 64 + 0.5 * 96)),
            1e-12, 0);
    T_CLOSE(*slicing_time(&t, 1, 5, 5), 1e6 * (3 + 2 * 20 + 0.125 * 400), 1e-12, 0);
    static const char *const wrong[] = {"c",   "c=",    "c=1,", "c=1x",
                                        "k=3", "i=nan", "=3",   "c=1,,i=2"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const bool trailing = strcmp(wrong[i], "c=1,") == 0;
        if (!trailing) T_FAILS(latency_parse(wrong[i], &f, &err), TD_EUSAGE, &err, "wants KEY=MS");
    }
    T_FAILS(latency_table(100, 1 << 20, *state, &t, &err), TD_EUSAGE, &err, "granularity");
}

/* Rows made of known coefficients give them back, with many rows and just enough. */
static void fit_recovers(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(13);
    for (int n = 0; n < 50; n++) {
        context_row rows[30];
        double a[4];
        const int count = n % 2 == 0 ? 30 : 4;
        for (int k = 0; k < 4; k++) a[k] = td_rng_unit(&rng) * (k == 0 ? 1e5 : k == 3 ? 0.1 : 100);
        for (int i = 0; i < count; i++) {
            const double x = 8 * (double)(1 + i / 2 + td_rng_below(&rng, 3)),
                         y = i % 2 == 0 ? 64 : 256;
            rows[i] = (context_row){{x, y, x * y}, a[0] + a[1] * x + a[2] * y + a[3] * x * y};
        }
        if (count == 4) /* two lengths, two contexts */
            for (int i = 0; i < 4; i++) {
                const double x = i < 2 ? 8 : 128, y = i % 2 == 0 ? 64 : 256;
                rows[i] = (context_row){{x, y, x * y}, a[0] + a[1] * x + a[2] * y + a[3] * x * y};
            }
        context_fit f;
        td_err err = {0};
        T_OK(context_fit_rows(rows, (size_t)count, &f, &err), &err);
        for (int k = 0; k < 4; k++) T_CLOSE(f.a[k], a[k], 1e-6, 1e-6 * (k == 0 ? 1e5 : 1));
        for (int i = 0; i < count; i++)
            rows[i].x[1] = 64,
            rows[i].x[2] = 64 * rows[i].x[0]; /* one context: j is not told apart */
        T_FAILS(context_fit_rows(rows, (size_t)count, &f, &err), TD_EUSAGE, &err, "four terms");
        T_FAILS(context_fit_rows(rows, 3, &f, &err), TD_EUSAGE, &err, "3 measurements");
    }
}

static const char *write_lines(td_arena *a, const char *text)
{
    const char *const path = td_sprintf(a, "latency-%ld.txt", (long)getpid());
    td_err err = {0};
    T_OK(td_write_file(path, text, strlen(text), &err), &err);
    return path;
}

/* t(b, i, 0) as measured and straight between; contexts by the fit; both sizes of batch. */
static void file(void **state)
{
    td_text text = {0};
    slicing_times t;
    td_err err = {0};
    td_text_add(&text, "# batch tokens context ms\n");
    for (int b = 1; b <= 2; b++) {
        td_text_addf(&text, "%d 8 0 %d\n%d 32 0 %d # behind\n%d 64 0 %d\n", b, 10 * b, b, 20 * b, b,
                     60 * b);
        for (int i = 8; i <= 32; i += 24)
            for (int j = 8; j <= 64; j += 56)
                td_text_addf(&text, "%d\t%d %d %.9f\n", b, i, j,
                             (i == 8 ? 10 : 20) * b + 0.5 +
                                 b * (0.1 * i + 0.02 * j + 0.003 * i * j));
    }
    const char *const path = write_lines(*state, text.s);
    T_OK(latency_table(2, 16, *state, &t, &err), &err);
    T_OK(latency_from_file(path, 8, *state, &t, &err), &err);
    (void)unlink(path);
    td_text_free(&text);
    for (int b = 1; b <= 2; b++) {
        T_CLOSE(*slicing_time(&t, b, 1, 1), 10e6 * b, 1e-9, 0);
        T_CLOSE(*slicing_time(&t, b, 2, 2), (10 + 10.0 / 3) * 1e6 * b, 1e-9, 0);
        T_CLOSE(*slicing_time(&t, b, 6, 6), 40e6 * b, 1e-9, 0); /* half way */
        T_CLOSE(*slicing_time(&t, b, 9, 9), 70e6 * b, 1e-9, 0); /* beyond, on the same slope */
        T_CLOSE(*slicing_time(&t, b, 8, 10),                    /* 64 tokens behind 16 */
                1e6 * (60 * b + 0.5 + b * (0.1 * 64 + 0.02 * 16 + 0.003 * 64 * 16)), 1e-6, 0);
    }
}

static void file_refused(void **state)
{
    static const struct {
        const char *text, *says;
        td_status status;
    } rows[] = {
        {"1 8 0\n", ":1:1: wants BATCH", TD_EPARSE},
        {"\n1 8 0 -3\n", ":2:1: wants BATCH", TD_EPARSE},
        {"1 8 0 3 4\n", ":1:1: wants BATCH", TD_EPARSE},
        {"1 8 0 3\n1 8 0 4\n", "given twice", TD_EPARSE},
        {"1 8 0 3\n2 8 8 4\n", "batch 2 has no line", TD_EPARSE},
        {"1 8 0 3\n1 8 8 4\n1 8 16 5\n1 8 24 6\n1 8 32 7\n", "four terms", TD_EUSAGE},
        {"", "four terms", TD_EUSAGE},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *const path = write_lines(*state, rows[i].text);
        slicing_times t;
        td_err err = {0};
        T_OK(latency_table(1, 4, *state, &t, &err), &err);
        const td_status st = latency_from_file(path, 8, *state, &t, &err);
        (void)unlink(path);
        if (st != rows[i].status || strstr(err.msg, rows[i].says) == NULL)
            fail_msg("file %zu: %s: %s", i, td_status_text(st), err.msg);
    }
}

/* A stage's time is that of its passes, and of one message each way. */
static void cost_of_stage(void **state)
{
    cluster_desc c;
    model_desc m;
    slicing_times layer, stage;
    td_err err = {0};
    T_OK(cluster_load("v100-dgx1:2", &c, &err), &err);
    T_OK(model_load("gpt2", &m, &err), &err);
    const stage_desc one = {.n_layers = 1}, three = {.n_layers = 3};
    sizes z = {.model = &m,
               .run = {.micro_batch = 1, .seq_len = 512, .tp = 2, .dp = 1, .dtype = TYPE_BF16},
               .stages = &one,
               .n_stages = 1,
               .chunks = 1};
    const cost_model cost = {.sizes = &z, .cluster = &c, .chunks = 1};
    T_OK(latency_table(2, 8, *state, &layer, &err), &err);
    T_OK(latency_table(2, 8, *state, &stage, &err), &err);
    T_OK(latency_of_layer(&cost, 64, &layer, &err), &err);
    T_OK(latency_of_stage(&cost, &layer, 3, 2, 64, &stage, &err), &err);
    z.stages = &three;
    for (int32_t b = 1; b <= 2; b++)
        for (int32_t end = 1; end <= 8; end++)
            for (int32_t len = 1; len <= end; len++) {
                pass_query q = {PASS_F, 0, 64 * len, 64 * (end - len), 512, false};
                int64_t f = 0, back = 0;
                message_cost msg;
                z.run.micro_batch = b;
                T_OK(cost_pass(&cost, &q, &f, &err), &err);
                q.pass = PASS_B;
                T_OK(cost_pass(&cost, &q, &back, &err), &err);
                T_OK(cost_message(&cost, 0, 2, b * 64 * len * m.hidden * 2, &msg, &err), &err);
                T_CLOSE(*slicing_time(&stage, b, len, end),
                        (double)(f + back + 2 * (msg.latency_ns + msg.transfer_ns)), 0, 6);
            }
    /* attention: behind more tokens a slice takes longer, by what its products take */
    assert_true(*slicing_time(&layer, 1, 2, 8) > *slicing_time(&layer, 1, 2, 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(formula),      T_TEST(fit_recovers),  T_TEST(file),
        T_TEST(file_refused), T_TEST(cost_of_stage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
