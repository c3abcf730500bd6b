/* The zero-bubble family's worked examples: orders pass by pass, steps, longest spans, peaks. */
#include "t.h"
#include "zb_run.h"

#include <stdlib.h>

#ifndef TD_FIXTURES
#define TD_FIXTURES "fixtures"
#endif

/* --- orders --- */

/* "F3", "f3" (chunk 1), "B3" (input gradient), "BW3" (whole), of a row of the V or of a line. */
static void want_cell(const schedule *s, int32_t row, const char *word, sched_cell *out)
{
    const bool lower = word[0] >= 'a';
    const bool whole = word[1] == 'w' || word[1] == 'W';
    const char letter = (char)(lower ? word[0] - 32 : word[0]);
    const pass_kind kind = letter == 'F'   ? PASS_F
                           : letter == 'W' ? PASS_W
                           : whole         ? PASS_B
                                           : PASS_I;
    *out = (sched_cell){.kind = (uint8_t)kind,
                        .stage = (uint16_t)(lower ? 2 * s->n_rows - 1 - row : row),
                        .microbatch = atoi(word + (whole ? 2 : 1))};
}

static void check_row(const schedule *s, int32_t row, char *line, const char *title)
{
    int64_t i = 0;
    char *save = NULL;
    for (char *word = strtok_r(line, " \n", &save); word != NULL;
         word = strtok_r(NULL, " \n", &save), i++) {
        sched_cell want;
        want_cell(s, row, word, &want);
        if (i >= s->rows[row].n_cells || memcmp(&want, &s->rows[row].cells[i], sizeof want) != 0)
            fail_msg("%s: row %d, pass %lld is not %s", title, row, (long long)i, word);
    }
    if (i != s->rows[row].n_cells)
        fail_msg("%s: row %d has passes beyond %lld", title, row, (long long)i);
}

/* "> name key=value times=F/I/W/comm": what to generate. */
static zb_query read_title(td_arena *a, char *title)
{
    zb_query q = {.pp = 4, .m = 8, .f = 1, .i = 1, .w = 1};
    td_text options = {0};
    char *save = NULL;
    q.family = strtok_r(title + 2, " \n", &save);
    for (char *word = strtok_r(NULL, " \n", &save); word != NULL;
         word = strtok_r(NULL, " \n", &save)) {
        if (strncmp(word, "times=", 6) != 0)
            td_text_addf(&options, "%s ", word);
        else
            assert_int_equal(sscanf(word, "times=%d/%d/%d/%d", &q.f, &q.i, &q.w, &q.comm), 4);
    }
    q.options = td_strdup(a, options.s == NULL ? "" : options.s);
    td_text_free(&options);
    return q;
}

static void orders(void **state)
{
    td_arena *const a = *state;
    char *text = NULL, *save = NULL;
    size_t len = 0;
    td_err err = {0};
    schedule s = {0};
    const char *title = "";
    int32_t row = 0;
    int titles = 0;
    T_OK(td_read_file(a, TD_FIXTURES "/zb_orders.txt", 1 << 20, &text, &len, &err), &err);
    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        if (line[0] == '#') continue;
        if (line[0] == '>') {
            title = td_strdup(a, line);
            const zb_query q = read_title(a, line);
            T_OK(zb_generate(a, &q, &s, &err), &err);
            row = 0;
            titles++;
            continue;
        }
        check_row(&s, row++, line, title);
    }
    assert_int_equal(titles, 13);
}

/* --- figures --- */

typedef struct figures {
    const char *family, *options;
    int32_t pp, m;
    double unit_step, unit_span; /* with F = I = W = 1, no latency */
    double step, span;           /* with 10, 12, 9 and latency 1 */
    double peak[3];              /* chunk activations of the unit order for deltas 1,0,-1; 2,-1,-1
                                    in halves of F; 1,-1,0; 0: not known */
} figures;

static const figures rows[] = {
    {"1f1b", NULL, 4, 8, 33, 33, 357, 357, {4, 4, 4}},
    {"zb-h1", NULL, 4, 8, 27, 27, 299, 299, {4, 4, 4}},
    {"zb-h2", NULL, 4, 8, 27, 24, 281, 266, {7, 7, 7}},
    {"zb-auto", "search=heuristic deltas=2,-1,-1 limit=4", 4, 8, 27, 27, 299, 299, {4, 4, 4}},
    {"zb-auto", "search=heuristic deltas=2,-1,-1 limit=8", 4, 8, 27, 24, 281, 262, {8, 7.5, 7}},
    {"zb-v", NULL, 4, 8, 51, 48, 547, 523, {8, 8, 8}},
    {"zb-v", "form=hand", 4, 8, 51, 48, 545, 530, {8, 8, 8}},
    {"v-half", NULL, 4, 8, 53, 53, 587, 587, {6, 6, 6}},
    {"v-min", NULL, 4, 8, 59, 59, 729, 729, {4, 4, 4}},
    {"1f1b-v", NULL, 4, 8, 63, 63, 680, 680, {6, 6, 6}},
    {"1f1b", NULL, 8, 32, 117, 117, 1277, 1277, {8, 0, 0}},
    {"interleaved-1f1b", NULL, 8, 32, 213, 213, 2231, 2231, {23, 0, 0}},
    {"zb-h1", NULL, 8, 32, 103, 103, 1111, 1111, {8, 0, 0}},
    {"zb-h2", NULL, 8, 32, 103, 96, 1069, 1034, {15, 0, 0}},
    {"zb-auto", "search=heuristic deltas=2,-1,-1 limit=8", 8, 32, 103, 103, 1111, 1111, {8, 0, 0}},
    {"zb-auto", "search=heuristic deltas=2,-1,-1 limit=16", 8, 32, 103, 96, 1076, 1010, {0, 16, 0}},
    {"zb-auto", "search=heuristic limit=16", 8, 32, 103, 96, 1069, 1025, {16, 0, 0}},
    {"zb-v", NULL, 8, 32, 199, 192, 2103, 2059, {16, 0, 0}},
    {"zb-v", "form=hand", 8, 32, 199, 192, 2101, 2066, {16, 0, 0}},
    {"v-half", NULL, 8, 32, 209, 209, 2249, 2249, {10, 0, 0}},
    {"v-min", NULL, 8, 32, 219, 219, 2770, 2770, {8, 0, 0}},
    {"1f1b-v", NULL, 8, 32, 225, 225, 2425, 2425, {12, 0, 0}},
    {"interleaved-zb", NULL, 4, 8, 51, 51, 0, 0, {8, 0, 0}},
};

static void check(td_arena *a, const zb_query *q, const char *what, double got, double want)
{
    if (!(fabs(got - want) < 1e-6))
        fail_msg("%s: %s is %.9g, not %.9g", zb_text(a, q), what, got, want);
}

static void worked_examples(void **state)
{
    static const activation_deltas deltas[] = {{1, 0, -1}, {2, -1, -1}, {1, -1, 0}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const figures *const f = &rows[i];
        zb_query q = {f->family, f->pp, f->m, 1, 1, 1, 0, f->options, {0, 0, 0}};
        for (int d = 0; d < 3; d++) {
            q.deltas = deltas[d];
            const zb_result r = zb_run(*state, &q);
            check(*state, &q, "step", r.step, f->unit_step);
            check(*state, &q, "span", r.span, f->unit_span);
            const double work = r.span * (1 - r.m.span_bubble_frac);
            check(*state, &q, "work", work, 3.0 * r.s.n_stages / r.s.n_rows * q.m);
            if (f->peak[d] > 0) check(*state, &q, "peak", r.peak / deltas[d].f, f->peak[d]);
        }
        if (f->step == 0) continue;
        q = (zb_query){f->family, f->pp, f->m, 10, 12, 9, 1, f->options, {0, 0, 0}};
        const zb_result r = zb_run(*state, &q);
        check(*state, &q, "step", r.step, f->step);
        check(*state, &q, "span", r.span, f->span);
    }
}

/* A row of the tables of arXiv 2401.10241: profiled times in us, bubble rates of four digits. Each
 * was read in the paper's sources: the evaluation of its authors' repository
 * (sail-sg/zero-bubble-pipeline-parallelism, function iclr_bubble_rates, with its output), the
 * profiled times of ZB-V too, but not its printed rates: those of the first version's table are
 * given from memory. */
typedef struct printed {
    int32_t p, m;
    int f, i, w, comm;
    int hidden, heads; /* of the model: they say what a pass keeps */
    double rates[5];   /* 1F1B, ZB-H1, ZB-H2, ZB-1p and ZB-2p; with a V: 1F1B, ZB-H1, ZB-H2, ZB-V */
} printed;

/* Bytes of a layer that F keeps for I, and I for W, at a sequence of 1024 tokens. */
static const char *kept(td_arena *a, const printed *row)
{
    const int w = 32 * row->hidden, f = 34 * row->hidden + 5 * row->heads * 1024;
    return td_sprintf(a, "deltas=%d,%d,%d", f, w - f, -w);
}

static void check_rate(td_arena *a, const zb_query *q, double printed_rate, bool may_be_better)
{
    const double rate = zb_run(a, q).m.span_bubble_frac, off = rate - printed_rate;
    if (off > 0.5e-4 || (!may_be_better && off < -0.5e-4))
        fail_msg("%s: bubble rate %.6f, printed %.4f", zb_text(a, q), rate, printed_rate);
}

static void printed_bubble_rates(void **state)
{
    static const printed table[] = {
        {8, 24, 18522, 18086, 9337, 601, 2304, 24, {.2431, .1585, .1083, .1585, .0433}},
        {8, 32, 18513, 18086, 9331, 626, 2304, 24, {.1985, .1242, .0837, .1242, .0039}},
        {8, 64, 18546, 18097, 9321, 762, 2304, 24, {.1240, .0674, .0444, .0674, .0026}},
        {8, 24, 29718, 29444, 19927, 527, 4096, 32, {.2347, .1323, .0698, .1323, .0029}},
        {8, 32, 29802, 29428, 19530, 577, 4096, 32, {.1898, .1045, .0559, .1045, .0022}},
        {8, 64, 29935, 29621, 19388, 535, 4096, 32, {.1091, .0554, .0294, .0554, .0010}},
        {16, 48, 11347, 11248, 8132, 377, 5120, 40, {.2552, .1397, .0672, .1397, .0066}},
        {16, 64, 11307, 11254, 8101, 379, 5120, 40, {.2082, .1088, .0516, .1088, .0054}},
        {16, 128, 11325, 11308, 8109, 378, 5120, 40, {.1251, .0576, .0266, .0576, .0028}},
        {32, 96, 10419, 10207, 7715, 408, 6144, 48, {.2646, .1421, .0641, .1421, .0038}},
        {32, 128, 10408, 10204, 7703, 408, 6144, 48, {.2168, .1106, .0490, .1106, .0029}},
        {32, 256, 10402, 10248, 7698, 460, 6144, 48, {.1352, .0594, .0257, .0594, .0018}},
    };
    static const char *const names[] = {"1f1b", "zb-h1", "zb-h2", "zb-auto", "zb-auto"};
    for (size_t n = 0; n < sizeof table / sizeof *table; n++)
        for (int k = 0; k < 5; k++)
            for (int ours = 0; ours < (k < 3 || n % 3 > 0 ? 1 : 2); ours++) {
                const printed *const t = &table[n];
                zb_query q = {names[k], t->p, t->m, t->f, t->i, t->w, t->comm, NULL, {0, 0, 0}};
                if (k >= 3)
                    q.options =
                        td_sprintf(*state, "search=%s %s limit=%d", ours ? "local" : "heuristic",
                                   kept(*state, t), (k - 2) * q.pp);
                check_rate(*state, &q, t->rates[k], ours);
            }
}

static void printed_rates_of_zb_v(void **state)
{
    static const printed table[] = {
        {16, 48, 14407, 14380, 9676, 1610, 4096, 32, {.2668, .1536, .0823, .0697}},
        {16, 64, 14412, 14393, 9688, 1621, 4096, 32, {.2206, .1198, .0630, .0533}},
        {16, 128, 14316, 14306, 9639, 1619, 4096, 32, {.1390, .0637, .0325, .0274}},
        {24, 72, 6763, 6969, 5251, 755, 5120, 40, {.2699, .1439, .0628, .0638}},
        {24, 96, 6783, 6984, 5259, 758, 5120, 40, {.2229, .1121, .0480, .0483}},
        {24, 192, 6785, 6990, 5260, 770, 5120, 40, {.1403, .0595, .0247, .0250}},
        {32, 96, 9458, 9748, 7288, 879, 6144, 48, {.2676, .1429, .0629, .0593}},
        {32, 128, 9469, 9744, 7306, 892, 6144, 48, {.2204, .1111, .0478, .0451}},
        {32, 256, 9447, 9644, 7193, 887, 6144, 48, {.1362, .0593, .0251, .0236}},
    };
    static const char *const names[] = {"1f1b", "zb-h1", "zb-h2", "zb-v"};
    for (size_t n = 0; n < sizeof table / sizeof *table; n++)
        for (int k = 0; k < 4; k++) { /* times are of a chunk, of which a stage is two */
            const printed *const t = &table[n];
            const int x = k < 3 ? 2 : 1;
            const zb_query q = {names[k], t->p,     t->m,    x * t->f,
                                x * t->i, x * t->w, t->comm, k < 3 ? NULL : kept(*state, t),
                                {0, 0, 0}};
            check_rate(*state, &q, t->rates[k], false);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {T_TEST(orders), T_TEST(worked_examples),
                                       T_TEST(printed_bubble_rates), T_TEST(printed_rates_of_zb_v)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
