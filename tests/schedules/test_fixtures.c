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
    {"vocab2_p4_m8.csv", {[PASS_F] = 2, [PASS_B] = 4, [PASS_S] = 1, [PASS_T] = 1}, 0, 82, 48},
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
    task_times times = {0};
    sim_stats stats;
    T_OK(sim_run(&p, ns, &so, a, &times, &stats, &err), &err);
    plan_metrics m;
    T_OK(metrics_of(&p, &times, (activation_deltas){1, 0, -1}, a, &m, &err), &err);
    assert_int_equal(m.messages, f->messages);
    if (first && f->makespan_ns >= 0 && m.step_ns != f->makespan_ns)
        fail_msg("%s: makespan %lld, the worked example has %lld", f->file, (long long)m.step_ns,
                 (long long)f->makespan_ns);
}

/* --- lowered plans, by hand --- */

static plan lower_file(td_arena *a, const char *file)
{
    const schedule s = load(a, file);
    const sizes z = {.n_stages = s.n_stages, .chunks = 1};
    const lower_options o = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1};
    plan p;
    td_err err = {0};
    T_OK(plan_lower(&s, &o, a, &p, &err), &err);
    return p;
}

static const plan_stream *stream_of(const plan *p, uint32_t rank, stream_kind kind, uint32_t peer,
                                    channel_class cls)
{
    for (uint32_t i = 0; i < p->n_streams; i++) {
        const plan_stream *const s = &p->streams[i];
        if (s->rank != rank || s->kind != kind) continue;
        const plan_channel *const c = &p->channels[s->channel];
        if (c->cls == cls && (kind == STREAM_SEND ? c->dst : c->src) == peer) return s;
    }
    fail_msg("rank %u has no such stream", rank);
    return NULL;
}

/* Position of a compute task on its rank; -1 for none. */
static int64_t position(const plan *p, uint32_t rank, uint32_t task)
{
    return task == PLAN_NONE ? -1 : (int64_t)task - plan_compute(p, rank)->first_task;
}

/* Rank 3 runs F0.0 F0.1 I0.1 F1.0 I0.0 F1.1 I1.1 F2.0 I1.0 W0.1 F2.1 ...: a receive joins the
 * forward that needs it, and its gate stands one pass before that: posted when that one has ended.
 * With unit times I0.1 starts at 5 there and at 6 on rank 2, where it consumes the gradient; the
 * first pass of rank 3 behind that in the order of (time, rank) is F1.0, at 6 as well. */
static void test_seq1f1b_zb_plan(void **state)
{
    const plan p = lower_file(*state, "seq1f1b_zb_p4_m4_s2.csv");
    const plan_stream *const recv = stream_of(&p, 3, STREAM_RECV, 2, CHANNEL_ACT);
    static const struct {
        uint32_t m, k;
        int64_t gate, join;
    } want[] = {{0, 0, -1, 0}, {0, 1, 0, 1}, {1, 0, 2, 3},
                {1, 1, 4, 5},  {2, 0, 6, 7}, {2, 1, 9, 10}};
    assert_int_equal(recv->n_tasks, 8);
    for (uint32_t i = 0; i < 6; i++) {
        const plan_task *const t = &p.tasks[recv->first_task + i];
        assert_int_equal(t->microbatch, want[i].m);
        assert_int_equal(t->slice, want[i].k);
        assert_int_equal(position(&p, 3, t->gate), want[i].gate);
        assert_int_equal(position(&p, 3, t->join), want[i].join);
        assert_int_equal(p.classes[t->cls].slice_len, want[i].k == 0 ? 5 : 3);
        assert_int_equal(p.classes[t->cls].prefix, want[i].k == 0 ? 0 : 5);
    }
    const plan_stream *const send = stream_of(&p, 3, STREAM_SEND, 2, CHANNEL_GRAD);
    const plan_task *const first = &p.tasks[send->first_task];
    assert_int_equal(first->microbatch, 0);
    assert_int_equal(first->slice, 1);
    assert_int_equal(position(&p, 3, first->gate), 2);
    assert_int_equal(position(&p, 3, first->join), 3);
}

/* Ranks 0 and 3 hold stages 0, 3, 4, 7; ranks 1 and 2 hold 1, 2, 5, 6. The original starts stages 7
 * and 4 just before the last backward of ranks 0 and 3; the others start when they are complete:
 * stage 3 after B3.3, the pass 13 of rank 0, stage 0 after its last pass. The turns of the V
 * (stages 3 and 4) are on one rank: 2 x 4 microbatches x 6 of 7 borders = 48 messages. */
static void test_bitpipe_plan(void **state)
{
    const plan p = lower_file(*state, "bitpipe_d4_n4.csv");
    int64_t gates[8];
    for (int i = 0; i < 8; i++) gates[i] = -2;
    for (uint32_t i = 0; i < p.n_streams; i++) {
        const plan_stream *const s = &p.streams[i];
        for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++) {
            const plan_class *const c = &p.classes[p.tasks[t].cls];
            if (p.tasks[t].kind != TASK_COLL || c->purpose != PURPOSE_GRAD_SYNC) continue;
            const plan_group *const g = &p.groups[p.colls[p.tasks[t].link].group];
            assert_int_equal(g->n_members, 2);
            assert_int_equal(
                p.group_members[g->first_member] + p.group_members[g->first_member + 1], 3);
            if (s->rank == 0) gates[p.insts[c->inst].stage] = position(&p, 0, p.tasks[t].gate);
        }
    }
    static const int64_t want[8] = {15, -2, -2, 13, 14, -2, -2, 14};
    for (int i = 0; i < 8; i++) assert_int_equal(gates[i], want[i]);
}

/* Direct hand-off: the forward row of stage 0 (rank 0) sends each output to the next forward row
 * (rank 1) and to the backward row of stage 1 (rank 3); rank 2 reads the data itself. */
static void test_merged_fbd_plan(void **state)
{
    const plan p = lower_file(*state, "fbd_merged_p2_m8.csv");
    assert_int_equal(p.n_channels, 3);
    assert_int_equal(stream_of(&p, 0, STREAM_SEND, 1, CHANNEL_ACT)->n_tasks, 8);
    assert_int_equal(stream_of(&p, 0, STREAM_SEND, 3, CHANNEL_HANDOFF)->n_tasks, 8);
    assert_int_equal(stream_of(&p, 3, STREAM_SEND, 2, CHANNEL_GRAD)->n_tasks, 8);
}

/* Per microbatch C0 (broadcast), C1 (one composite task), the embedding's sum and its gradient; T
 * waits for C1, and on the last rank so does B, which comes first there: row 3 runs
 * E0 E1 E2 E3 E4 F0 S0 F1 B0 T0, so C1 of microbatch 0 joins at 8. */
static void test_vocab2_plan(void **state)
{
    const plan p = lower_file(*state, "vocab2_p4_m8.csv");
    int n[PURPOSE_COUNT] = {0};
    for (uint32_t i = 0; i < p.n_colls; i++) {
        const uint32_t task = p.coll_tasks[p.colls[i].first_task + 3];
        const plan_class *const c = &p.classes[p.tasks[task].cls];
        n[c->purpose]++;
        if (c->purpose != PURPOSE_C1 || p.tasks[task].microbatch != 0) continue;
        assert_int_equal(c->detail, COLL_VOCAB_STATS);
        assert_int_equal(position(&p, 3, p.tasks[task].gate), 6);
        assert_int_equal(position(&p, 3, p.tasks[task].join), 8);
    }
    static const int want[PURPOSE_COUNT] = {[PURPOSE_C0] = 8,
                                            [PURPOSE_C1] = 8,
                                            [PURPOSE_EMBED_SUM] = 8,
                                            [PURPOSE_EMBED_GRAD] = 8,
                                            [PURPOSE_NORM] = 1};
    for (int i = 0; i < PURPOSE_COUNT; i++) assert_int_equal(n[i], want[i]);
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
    const struct CMUnitTest tests[] = {
        T_TEST(test_worked_examples), T_TEST(test_every_mapping_finishes),
        T_TEST(test_seq1f1b_zb_plan), T_TEST(test_bitpipe_plan),
        T_TEST(test_merged_fbd_plan), T_TEST(test_vocab2_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
