/* Orders and start times of the worked examples, places of gradient syncs and of ranks, refusals.
 */
#include "bidir_run.h"
#include "t.h"

#include <stdlib.h>

/* --- worked examples --- */

static char *read_orders(td_arena *a)
{
    char *text = NULL;
    size_t len = 0;
    td_err err = {0};
    T_OK(td_read_file(a, TD_FIXTURES "/bidirectional_orders.txt", 1 << 20, &text, &len, &err),
         &err);
    return text;
}

/* The line at *at, cut off its end; NULL behind the last. */
static char *next_line(char *text, size_t *at)
{
    char *const line = text + *at;
    if (*line == '\0') return NULL;
    const size_t n = strcspn(line, "\n");
    *at += n + (line[n] == '\n');
    line[n] = '\0';
    return line;
}

static void check_member(const char *what, uint8_t kind, uint32_t m, int32_t stage, const char *at,
                         int *used)
{
    char letter = 0;
    int want_m = 0, want_stage = 0;
    if (sscanf(at, "%c%d.%d%n", &letter, &want_m, &want_stage, used) != 3)
        fail_msg("%s: cannot read \"%s\"", what, at);
    if (pass_letter((pass_kind)kind) != letter || (int)m != want_m || stage != want_stage)
        fail_msg("%s: %c%u.%d in place of %c%d.%d", what, pass_letter((pass_kind)kind), m, stage,
                 letter, want_m, want_stage);
}

/* One line of the examples against the compute stream of a rank. */
static void check_rank(const char *name, const bidir_result *r, uint32_t rank, char *line)
{
    const plan *const p = &r->p;
    const plan_stream *const s = plan_compute(p, rank);
    uint32_t i = 0;
    for (char *at = strtok(line, " "); at != NULL; at = strtok(NULL, " "), i++) {
        char what[200];
        (void)snprintf(what, sizeof what, "%s, rank %u, pass %u", name, rank, i);
        if (i >= s->n_tasks) fail_msg("%s: missing", what);
        const uint32_t task = s->first_task + i;
        const plan_task *const t = &p->tasks[task];
        int used = 0;
        if (t->kind == TASK_PAIR) {
            for (int k = 0; k < 2; k++) {
                const plan_member *const m = &p->members[t->link + (uint32_t)k];
                check_member(what, m->kind, m->microbatch, p->insts[p->classes[m->cls].inst].stage,
                             at, &used);
                at += used;
                if (k == 0 && *at++ != '&') fail_msg("%s: a pair", what);
            }
        } else {
            check_member(what, t->kind, t->microbatch, p->insts[p->classes[t->cls].inst].stage, at,
                         &used);
            at += used;
        }
        const long long begin = r->t.begin_ns[task];
        if (*at != '@' || begin != 1000000 * strtoll(at + 1, NULL, 10))
            fail_msg("%s: starts at %lld ns, not %s", what, begin, at);
    }
    if (i != s->n_tasks) fail_msg("%s: rank %u has %u passes more", name, rank, s->n_tasks - i);
}

static void worked_examples(void **state)
{
    char *const text = read_orders(*state);
    size_t place = 0;
    int n = 0;
    for (char *line = next_line(text, &place); line != NULL; line = next_line(text, &place)) {
        if (*line == '#') continue;
        char family[32], options[64];
        int pp = 0, m = 0, v = 0, makespan = 0;
        assert_int_equal(
            sscanf(line, "%31s %d %d %d %63s %d", family, &pp, &m, &v, options, &makespan), 6);
        const bidir_query q = {.family = family,
                               .pp = pp,
                               .m = m,
                               .v = v,
                               .options = *options == '-' ? NULL : options,
                               .f = 1,
                               .b = 2,
                               .i = 1,
                               .w = 1};
        const bidir_result r = bidir_run(*state, &q);
        for (int rank = 0; rank < pp; rank++)
            check_rank(bidir_text(*state, &q), &r, (uint32_t)rank, next_line(text, &place));
        assert_int_equal(r.m.step_ns, makespan * INT64_C(1000000));
        n++;
    }
    assert_int_equal(n, 13);
}

/* The figure's order of BitPipe: B0.0 F4.0 F5.0 B1.0 on rank 0, B2.0 F6.0 F7.0 B3.0 on rank 3; one
 * chunk forward less for each border of units, and no higher peak. */
static void figure_variant(void **state)
{
    const bidir_query example = {
        .family = "bitpipe", .pp = 4, .m = 8, .v = 2, .options = "gap=2", .f = 1, .b = 2};
    schedule s;
    td_err err = {0};
    T_OK(bidir_generate(*state, &example, &s, &err), &err);
    static const int first[2] = {0, 2};
    for (int end = 0; end < 2; end++) {
        const sched_cell *c = s.rows[end == 0 ? 0 : 3].cells;
        while (c->kind != PASS_B || c->stage != 0) c++;
        const int m = first[end];
        const sched_cell want[] = {{.kind = PASS_B, .microbatch = m},
                                   {.kind = PASS_F, .microbatch = m + 4},
                                   {.kind = PASS_F, .microbatch = m + 5},
                                   {.kind = PASS_B, .microbatch = m + 1}};
        assert_memory_equal(c, want, sizeof want);
    }
    for (int32_t pp = 4; pp <= 16; pp *= 2)
        for (int32_t k = 1; k <= 4; k++) {
            bidir_query q = {.family = "bitpipe", .pp = pp, .m = k * pp, .v = 2, .f = 1, .b = 2};
            const bidir_result code = bidir_run(*state, &q);
            q.options = "gap=2";
            const bidir_result figure = bidir_run(*state, &q);
            assert_int_equal(figure.m.step_ns, code.m.step_ns - (k - 1) * INT64_C(1000000));
            for (int32_t r = 0; r < pp; r++)
                T_CLOSE(figure.m.ranks[r].peak_activations, code.m.ranks[r].peak_activations, 0,
                        1e-9);
        }
}

/* --- gradient sync --- */

/* When the sync of each stage starts, in ms; every member starts at once. */
static void sync_starts(const bidir_result *r, double *start_ms)
{
    for (int32_t s = 0; s < r->p.n_stages; s++) start_ms[s] = -1;
    for (uint32_t i = 0; i < r->p.n_tasks; i++) {
        const plan_task *const t = &r->p.tasks[i];
        if (t->kind != TASK_COLL) continue;
        assert_int_equal(r->p.classes[t->cls].purpose, PURPOSE_GRAD_SYNC);
        const int32_t stage = r->p.insts[r->p.classes[t->cls].inst].stage;
        const double at = (double)r->t.begin_ns[i] / 1e6;
        if (start_ms[stage] >= 0) T_CLOSE(at, start_ms[stage], 0, 1e-9);
        start_ms[stage] = at;
    }
}

/* What a rank still idles from a moment on. */
static double idle_after(const bidir_result *r, int32_t rank, double from_ms)
{
    double idle = (double)r->m.step_ns / 1e6 - from_ms;
    const plan_stream *const s = plan_compute(&r->p, (uint32_t)rank);
    for (uint32_t i = 0; i < s->n_tasks; i++) {
        const double end = (double)r->t.end_ns[s->first_task + i] / 1e6,
                     begin = fmax((double)r->t.begin_ns[s->first_task + i] / 1e6, from_ms);
        if (end > begin) idle -= end - begin;
    }
    return idle;
}

/* Eager: a stage's sync starts when all its holders are done, 2s before the end for stage s but
 * for the last one, and what the holders idle from then on. */
static void eager_windows(void **state)
{
    static const double early[8] = {28, 26, 24, 22, 20, 18, 16, 13};
    static const double spare[8] = {0, 2, 2, 2, 2, 2, 2, 3};
    static const double wide_spare[4] = {0, 2, 4, 6};
    double at[16];
    bidir_query q = {.family = "bitpipe", .pp = 4, .m = 4, .v = 2, .f = 1, .b = 2, .synced = true};
    const bidir_result small = bidir_run(*state, &q);
    sync_starts(&small, at);
    for (int32_t s = 0; s < 8; s++) {
        T_CLOSE(at[s], early[s], 0, 1e-9);
        for (int32_t p = 0; p < 2; p++)
            T_CLOSE(idle_after(&small, small.s.pipes[p].backward_row[s], at[s]), spare[s], 0, 1e-9);
    }
    for (int chimera = 0; chimera < 2; chimera++) {
        q.family = chimera ? "chimera" : "bitpipe";
        q.pp = q.m = 8;
        q.v = chimera ? 1 : 2;
        const bidir_result r = bidir_run(*state, &q);
        const int32_t last = r.p.n_stages - 1;
        sync_starts(&r, at);
        for (int32_t s = 0; s <= last; s++) {
            const double left = s < last ? 2 * s : chimera ? 17 : 33;
            T_CLOSE((double)r.m.step_ns / 1e6 - at[s], left, 0, 1e-9);
            const double want = s == last ? 9 : wide_spare[s < 3 ? s : 3];
            for (int32_t p = 0; p < 2; p++)
                T_CLOSE(idle_after(&r, r.s.pipes[p].backward_row[s], at[s]), want, 0, 1e-9);
        }
    }
}

/* The other placements: where the authors' code has them, and behind each row's last pass. */
static void other_placements(void **state)
{
    static const struct {
        const char *family, *options;
        int32_t v;
        double at[8];
    } cases[] = {
        {"bitpipe", "sync=original", 2, {28, 26, 26, 28, 24, 26, 26, 24}},
        {"bitpipe", "sync=end", 2, {28, 26, 26, 28, 28, 26, 26, 28}},
        {"chimera", "sync=original", 1, {16, 14, 14, 9}},
        {"chimera", "sync=end", 1, {16, 14, 14, 16}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const bidir_query q = {.family = cases[i].family,
                               .options = cases[i].options,
                               .pp = 4,
                               .m = 4,
                               .v = cases[i].v,
                               .f = 1,
                               .b = 2,
                               .synced = true};
        const bidir_result r = bidir_run(*state, &q);
        double at[8];
        sync_starts(&r, at);
        for (int32_t s = 0; s < r.p.n_stages; s++)
            if (fabs(at[s] - cases[i].at[s]) > 1e-9)
                fail_msg("%s: the sync of stage %d starts at %g, not %g", bidir_text(*state, &q), s,
                         at[s], cases[i].at[s]);
    }
}

/* The cells before which the authors' code reduces. */
static void places_of_code(void **state)
{
    static const struct {
        const char *family, *lines;
        int32_t v;
    } cases[] = {
        {"bitpipe",
         "# sync stage 4 row 0 at 0B1\n# sync stage 7 row 0 at 0B1\n"
         "# sync stage 4 row 3 at 0B3\n# sync stage 7 row 3 at 0B3\n0F0",
         2},
        {"chimera", "# sync stage 3 row 0 at 0B0\n# sync stage 3 row 3 at 0B2\n0F0", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const bidir_query q = {.family = cases[i].family,
                               .options = "sync=original",
                               .pp = 4,
                               .m = 4,
                               .v = cases[i].v};
        schedule s;
        td_err err = {0};
        td_text t = {0};
        T_OK(bidir_generate(*state, &q, &s, &err), &err);
        sched_print(&s, &t);
        const char *const at = strstr(t.s, "# sync end\n");
        assert_non_null(at);
        if (strncmp(at + 11, cases[i].lines, strlen(cases[i].lines)) != 0)
            fail_msg("%s: the syncs are %s", cases[i].family, at);
        td_text_free(&t);
    }
}

/* A sync that fits into the windows costs nothing; one at the end costs itself for the two stages
 * that are left over. */
static void hidden_syncs(void **state)
{
    bidir_query q = {
        .family = "bitpipe", .pp = 8, .m = 8, .v = 2, .f = 1, .b = 2, .coll = 1, .synced = true};
    const bidir_result eager = bidir_run(*state, &q);
    assert_int_equal(eager.m.step_ns, 61000000); /* stage 0 alone is left at the end */
    q.options = "sync=end";
    const bidir_result end = bidir_run(*state, &q);
    assert_int_equal(end.m.step_ns, 64000000); /* all four stages of ranks 0 and 7 */
}

/* --- placement --- */

/* Folded, the positions hold rows 0 7 2 5 4 3 6 1: twins are neighbours. */
static void folded_ranks(void **state)
{
    static const int32_t holds[8] = {0, 7, 2, 5, 4, 3, 6, 1};
    const bidir_query q = {.family = "bitpipe", .pp = 8, .m = 8, .v = 2};
    const sizes z = {.n_stages = 16, .chunks = 2};
    lower_options o = {.sizes = &z, .dp = 4, .tp = 1, .no_step = true};
    schedule s;
    plan p;
    td_err err = {0};
    T_OK(bidir_generate(*state, &q, &s, &err), &err);
    o.placement = PLACEMENT_FOLDED;
    T_OK(plan_lower(&s, &o, *state, &p, &err), &err);
    for (int32_t place = 0; place < 8; place++)
        for (int32_t d = 0; d < 4; d++)
            assert_int_equal(sim_device_of(&p, (uint32_t)(holds[place] * 4 + d)), place * 4 + d);
    o.placement = PLACEMENT_STRAIGHT;
    T_OK(plan_lower(&s, &o, *state, &p, &err), &err);
    for (uint32_t r = 0; r < p.n_ranks; r++) assert_int_equal(sim_device_of(&p, r), r);
    const sched_request odd = {.pp = 3, .microbatches = 3};
    const sizes three = {.n_stages = 3, .chunks = 1};
    o.sizes = &three;
    o.placement = PLACEMENT_FOLDED;
    T_OK(sched_generate("1f1b", &odd, *state, &s, &err), &err);
    T_FAILS(plan_lower(&s, &o, *state, &p, &err), TD_EUSAGE, &err, "even number of ranks");
}

/* --- requests that no schedule can meet --- */

static void refusals(void **state)
{
    static const struct {
        bidir_query q;
        const char *why;
    } cases[] = {
        {{.family = "bitpipe", .pp = 5, .m = 10}, "legal: 4 or 6"},
        {{.family = "bitpipe", .pp = 1, .m = 4}, "legal: 2 or 4"},
        {{.family = "bitpipe", .pp = 4, .m = 6}, "legal: 4 or 8"},
        {{.family = "bitpipe", .pp = 4, .m = 2}, "legal: 4 or 8"},
        {{.family = "bitpipe", .pp = 4, .m = 4, .options = "sync=late"}, "eager, end, original"},
        {{.family = "bitpipe", .pp = 4, .m = 4, .options = "vshape=2"}, "vshape"},
        {{.family = "chimera", .pp = 3, .m = 6}, "legal: 2 or 4"},
        {{.family = "chimera", .pp = 4, .m = 4, .v = 2}, "legal: 1"},
        {{.family = "chimera", .pp = 12, .m = 12, .options = "f=4"}, "legal: 1, 2, 3, 6"},
        {{.family = "chimera", .pp = 4, .m = 4, .options = "doubling=1"}, "legal: 8 or 16"},
        {{.family = "chimera", .pp = 4, .m = 10}, "legal: 8 or 12"},
        {{.family = "chimera", .pp = 4, .m = 8, .options = "f=2 sync=original"}, "eager, end"},
        {{.family = "dualpipe", .pp = 3, .m = 8}, "legal: 2 or 4"},
        {{.family = "dualpipe", .pp = 4, .m = 4}, "legal: 8 or more"},
        {{.family = "dualpipe", .pp = 4, .m = 9}, "legal: 8 or 10"},
        {{.family = "dualpipe", .pp = 4, .m = 8, .v = 2}, "legal: 1"},
        {{.family = "dualpipev", .pp = 4, .m = 7}, "legal: 8 or more"},
        {{.family = "dualpipev", .pp = 4, .m = 8, .v = 3}, "legal: 2"},
        {{.family = "hanayo", .pp = 1, .m = 4}, "legal: 2 or more"},
        {{.family = "hanayo", .pp = 4, .m = 4, .v = 3}, "legal: 2 or 4"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        schedule s;
        td_err err = {0};
        T_FAILS(bidir_generate(*state, &cases[i].q, &s, &err), TD_EUSAGE, &err, cases[i].why);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(worked_examples),  T_TEST(figure_variant), T_TEST(eager_windows),
        T_TEST(other_placements), T_TEST(places_of_code), T_TEST(hidden_syncs),
        T_TEST(folded_ranks),

        T_TEST(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
