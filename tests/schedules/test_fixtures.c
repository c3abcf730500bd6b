/* Schedules of families that are yet to come, written by hand from their papers' worked examples:
 * they must read, check, lower under each mapping and simulate without a special case. Makespans
 * are those of the worked examples. */
#include "schedules/trace.h"
#include "sim/sim.h"
#include "t.h"

typedef struct fixture {
    const char *file;
    int64_t pass_ns[PASS_COUNT]; /* of one pass */
    int64_t coll_ns;
    int64_t makespan_ns; /* -1: the worked example does not say */
    int64_t messages;
} fixture;

static const fixture fixtures[] = {
    {"bitpipe_d4_n4.csv", {[PASS_F] = 1, [PASS_B] = 2}, 0, 28, 48},
    {"dualpipe_r4_n8.csv", {[PASS_F] = 1, [PASS_B] = 2, [PASS_I] = 1, [PASS_W] = 1}, 0, 26, 48},
    {"seq1f1b_zb_p4_m4_s2.csv", {[PASS_F] = 1, [PASS_I] = 1, [PASS_W] = 1}, 0, 27, 48},
    {"fbd_merged_p2_m8.csv", {[PASS_F] = 2, [PASS_B] = 2, [PASS_R] = 1}, 0, 28, 24},
    {"vocab2_p4_m8.csv", {[PASS_F] = 2, [PASS_B] = 4, [PASS_S] = 1, [PASS_T] = 1}, 0, -1, 48},
};

static schedule load(td_arena *a, const char *file)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", TD_FIXTURES, file);
    char *text = NULL;
    size_t len = 0;
    td_err err = {0};
    schedule s;
    T_OK(td_read_file(a, path, 1 << 20, &text, &len, &err), &err);
    T_OK(sched_parse(text, len, file, a, &s, &err), &err);
    T_OK(sched_check(&s, &err), &err);
    td_text t = {0};
    sched_print(&s, &t);
    schedule back;
    T_OK(sched_parse(t.s, t.len, "printed", a, &back, &err), &err);
    assert_true(sched_equal(&s, &back));
    td_text_free(&t);
    return s;
}

static void price(const plan *p, const fixture *f, int64_t *ns)
{
    for (uint32_t i = 0; i < p->n_classes; i++) {
        const plan_class *const c = &p->classes[i];
        ns[i] = 0;
        if (c->kind < PASS_COUNT) ns[i] = f->pass_ns[c->kind];
        if (c->kind == TASK_PAIR)
            ns[i] = f->pass_ns[p->classes[c->bytes].kind] + f->pass_ns[p->classes[c->second].kind];
        if (c->kind == TASK_COLL) ns[i] = f->coll_ns;
    }
}

static void run(td_arena *a, const fixture *f, plan_mapping mapping, bool first)
{
    const schedule s = load(a, f->file);
    const sizes z = {.n_stages = s.n_stages, .chunks = 1};
    const lower_options o = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1, .mapping = mapping};
    plan p;
    td_err err = {0};
    T_OK(plan_lower(&s, &o, a, &p, &err), &err);
    int64_t *const ns = TD_NEW_N(a, int64_t, p.n_classes);
    price(&p, f, ns);
    const sim_options so = {.protocol = first ? PROTOCOL_EAGER : PROTOCOL_RENDEZVOUS};
    task_times times;
    sim_stats stats;
    T_OK(sim_run(&p, ns, &so, a, &times, &stats, &err), &err);
    plan_metrics m;
    T_OK(metrics_of(&p, &times, (activation_deltas){1, 0, -1}, a, &m, &err), &err);
    assert_int_equal(m.messages, f->messages);
    if (first && f->makespan_ns >= 0 && m.step_ns != f->makespan_ns)
        fail_msg("%s: makespan %lld, the worked example has %lld", f->file, (long long)m.step_ns,
                 (long long)f->makespan_ns);
}

static void test_worked_examples(void **state)
{
    for (size_t i = 0; i < sizeof fixtures / sizeof *fixtures; i++)
        run(*state, &fixtures[i], MAPPING_CHANNEL, true);
}

static void test_every_mapping_finishes(void **state)
{
    for (size_t i = 0; i < sizeof fixtures / sizeof *fixtures; i++)
        for (int m = 0; m <= MAPPING_SINGLE; m++) run(*state, &fixtures[i], (plan_mapping)m, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {T_TEST(test_worked_examples),
                                       T_TEST(test_every_mapping_finishes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
