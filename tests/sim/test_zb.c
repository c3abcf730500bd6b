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

/* Bubble rates printed in arXiv 2401.10241 for its profiled times (here in us), four digits. */
static void printed_bubble_rates(void **state)
{
    static const struct {
        int32_t p, m;
        int f, i, w, comm;
        double rates[5]; /* 1F1B, ZB-H1, ZB-H2, ZB-1p, ZB-2p */
    } table[] = {
        {8, 24, 18522, 18086, 9337, 601, {0.2431, 0.1585, 0.1083, 0.1585, 0.0433}},
        {8, 24, 29718, 29444, 19927, 527, {0.2347, 0.1323, 0.0698, 0.1323, 0.0029}},
        {16, 48, 11347, 11248, 8132, 377, {0.2552, 0.1397, 0.0672, 0.1397, 0.0066}},
    };
    static const char *const names[] = {"1f1b", "zb-h1", "zb-h2", "zb-auto", "zb-auto"};
    for (size_t n = 0; n < sizeof table / sizeof *table; n++)
        for (int k = 0; k < 5; k++)
            for (int ours = 0; ours < (k < 3 ? 1 : 2); ours++) {
                zb_query q = {.family = names[k],
                              .pp = table[n].p,
                              .m = table[n].m,
                              .f = table[n].f,
                              .i = table[n].i,
                              .w = table[n].w,
                              .comm = table[n].comm};
                if (k >= 3)
                    q.options = td_sprintf(*state, "search=%s deltas=2,-1,-1 limit=%d",
                                           ours ? "local" : "heuristic", (k - 2) * q.pp);
                const double rate = zb_run(*state, &q).m.span_bubble_frac;
                const double off = rate - table[n].rates[k];
                if (off > 0.5e-4 || (!ours && off < -0.5e-4))
                    fail_msg("%s: bubble rate %.6f, printed %.4f", zb_text(*state, &q), rate,
                             table[n].rates[k]);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {T_TEST(orders), T_TEST(worked_examples),
                                       T_TEST(printed_bubble_rates)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
