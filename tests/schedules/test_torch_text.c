/* torch.distributed.pipelining's text: worked examples of its schedules, compute-only and lowered,
 * come in and go out exactly. */
#include "t.h"
#include "schedule_gen.h"
#include "schedules/plan.h"

typedef struct example {
    const char *what, *compute, *comms;
} example;

static const example examples[] = {
    {"1F1B",
     "0F0,,,0F1,0B0,0F2,0B1,0F3,0B2,,0B3\n"
     ",1F0,1B0,1F1,1B1,1F2,1B2,1F3,1B3\n",
     "0UNSHARD,0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0F2,0SEND_F2,0RECV_B1,0B1,0F3,0SEND_"
     "F3,0RECV_B2,0B2,0RECV_B3,0B3,0REDUCE_GRAD,0RESHARD\n"
     "1UNSHARD,1RECV_F0,1F0,1RECV_F1,1B0,1SEND_B0,1F1,1RECV_F2,1B1,1SEND_B1,1F2,1RECV_F3,1"
     "B2,1SEND_B2,1F3,1B3,1SEND_B3,1REDUCE_GRAD,1RESHARD\n"},
    {"interleaved 1F1B",
     "0F0,0F1,2F0,2F1,,,0F2,2B0,0F3,2B1,2F2,0B0,2F3,0B1,,2B2,,2B3,,0B2,,0B3\n"
     ",1F0,1F1,,3F0,3B0,3F1,3B1,1F2,1B0,1F3,1B1,3F2,3B2,3F3,3B3,,1B2,,1B3\n",
     "0UNSHARD,2UNSHARD,0F0,0SEND_F0,2RECV_F0,0F1,0SEND_F1,2RECV_F1,2F0,2SEND_F0,2F1,2SEND"
     "_F1,2RECV_B0,0F2,0SEND_F2,2B0,2SEND_B0,2RECV_B1,0F3,0SEND_F3,2RECV_F2,2B1,2SEND_B1,0"
     "RECV_B0,2F2,2SEND_F2,2RECV_F3,0B0,0RECV_B1,2F3,2SEND_F3,0B1,2RECV_B2,2B2,2SEND_B2,2R"
     "ECV_B3,2B3,2SEND_B3,2REDUCE_GRAD,2RESHARD,0RECV_B2,0B2,0RECV_B3,0B3,0REDUCE_GRAD,0RE"
     "SHARD\n"
     "1UNSHARD,3UNSHARD,1RECV_F0,1F0,1SEND_F0,1RECV_F1,1F1,1SEND_F1,3RECV_F0,3F0,3RECV_F1,"
     "3B0,3SEND_B0,1RECV_F2,3F1,1RECV_B0,3B1,3SEND_B1,1RECV_F3,1F2,1SEND_F2,1RECV_B1,1B0,1"
     "SEND_B0,3RECV_F2,1F3,1SEND_F3,1B1,1SEND_B1,3RECV_F3,3F2,3B2,3SEND_B2,1RECV_B2,3F3,3B"
     "3,3SEND_B3,1RECV_B3,3REDUCE_GRAD,3RESHARD,1B2,1SEND_B2,1B3,1SEND_B3,1REDUCE_GRAD,1RE"
     "SHARD\n"},
    {"ZBV: a border of stages on one rank",
     "0F0,0F1,0F2,3F0,3I0,3W0,3F1,3I1,3W1,0F3,0I0,0W0,3F2,3I2,3W2,0I1,0W1,3F3,3I3,3W3,0I2,"
     "0W2,0I3,0W3\n"
     ",1F0,2F0,1F1,2F1,2I0,2W0,1F2,1I0,1W0,2F2,2I1,2W1,1F3,1I1,1W1,2F3,2I2,2W2,1I2,2I3,1I3"
     ",1W2,2W3,1W3\n",
     "0UNSHARD,3UNSHARD,0F0,0SEND_F0,0F1,0SEND_F1,3RECV_F0,0F2,0SEND_F2,3F0,3RECV_F1,3I0,3"
     "SEND_B0,3W0,3F1,3I1,3SEND_B1,0RECV_B0,3W1,0F3,0SEND_F3,3RECV_F2,0I0,0W0,3F2,3I2,3SEN"
     "D_B2,0RECV_B1,3W2,0I1,3RECV_F3,0W1,3F3,3I3,3SEND_B3,0RECV_B2,3W3,3REDUCE_GRAD,0RECV_"
     "B3,3RESHARD,0I2,0W2,0I3,0W3,0REDUCE_GRAD,0RESHARD\n"
     "1UNSHARD,2UNSHARD,1RECV_F0,1F0,1RECV_F1,2F0,2SEND_F0,1RECV_F2,1F1,2F1,2SEND_F1,2RECV"
     "_B0,2I0,2W0,1F2,2RECV_B1,1I0,1SEND_B0,1W0,1RECV_F3,2F2,2SEND_F2,2I1,2W1,1F3,2RECV_B2"
     ",1I1,1SEND_B1,1W1,2F3,2SEND_F3,2I2,2W2,2RECV_B3,1I2,1SEND_B2,2I3,1I3,1SEND_B3,1W2,2W"
     "3,2REDUCE_GRAD,2RESHARD,1W3,1REDUCE_GRAD,1RESHARD\n"},
    {"DualPipeV: overlapped cells",
     "0F0,0F1,0F2,3F0,3I0,3W0,3F1,(0F3;3B1)OVERLAP_F_B,(3F2;0B0)OVERLAP_F_B,3B2,(3F3;0B1)O"
     "VERLAP_F_B,3B3,0I2,0W2,0I3,0W3\n"
     "1F0,2F0,1F1,2F1,1F2,2B0,(2F2;1B0)OVERLAP_F_B,(1F3;2B1)OVERLAP_F_B,(2F3;1B1)OVERLAP_F"
     "_B,2B2,1B2,2I3,1I3,2W3,1W3\n",
     NULL},
    {"LoopedBFS: backward in reverse order",
     "0F0,0F1,2F0,2F1,,,2B1,2B0,0B1,0B0\n"
     ",1F0,1F1,3F0,3F1,3B1,3B0,1B1,1B0\n",
     NULL},
};

static const char dualpipev_row_1[] =
    "1UNSHARD,2UNSHARD,1RECV_F0,1F0,1RECV_F1,2F0,2SEND_F0,1RECV_F2,1F1,2F1,2SEND_F1,2RECV"
    "_B0,1F2,2B0,(2F2;1B0)OVERLAP_F_B,2SEND_F2,1SEND_B0,1RECV_F3,2RECV_B1,(1F3;2B1)OVERLA"
    "P_F_B,(2F3;1B1)OVERLAP_F_B,2SEND_F3,1SEND_B1,2RECV_B2,2B2,1B2,1SEND_B2,2RECV_B3,2I3,"
    "1I3,1SEND_B3,2W3,2REDUCE_GRAD,2RESHARD,1W3,1REDUCE_GRAD,1RESHARD\n";

/* Our examples have LF; torch writes CR LF. */
static void assert_lines(const td_text *got, const char *want)
{
    td_text t = {0};
    for (const char *c = want; *c != '\0'; c++)
        td_text_addn(&t, *c == '\n' ? "\r\n" : c, *c == '\n' ? 2 : 1);
    assert_string_equal(got->s, t.s);
    td_text_free(&t);
}

static void test_compute_only(void **state)
{
    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++) {
        td_err err = {0};
        schedule s;
        const char *const text = examples[i].compute;
        T_OK(sched_parse(text, strlen(text), examples[i].what, *state, &s, &err), &err);
        T_OK(sched_check(&s, &err), &err);
        td_text out = {0};
        T_OK(torch_print(&s, false, &out, &err), &err);
        assert_lines(&out, text);
        schedule back;
        T_OK(sched_parse(out.s, out.len, "crlf", *state, &back, &err), &err);
        assert_true(sched_equal(&s, &back));
        td_text_free(&out);
    }
}

static void test_with_comms(void **state)
{
    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++) {
        if (examples[i].comms == NULL) continue;
        td_err err = {0};
        schedule s, trail;
        T_OK(sched_parse(examples[i].compute, strlen(examples[i].compute), "x", *state, &s, &err),
             &err);
        td_text out = {0};
        T_OK(torch_print(&s, true, &out, &err), &err);
        assert_lines(&out, examples[i].comms);
        td_text_free(&out);
        /* a trail is kept as it is, and its passes alone come out again */
        T_OK(sched_parse(examples[i].comms, strlen(examples[i].comms), "x", *state, &trail, &err),
             &err);
        T_OK(sched_check(&trail, &err), &err);
        T_OK(torch_print(&trail, true, &out, &err), &err);
        assert_lines(&out, examples[i].comms);
        td_text_free(&out);
    }
}

static void test_overlapped_comms(void **state)
{
    td_err err = {0};
    schedule s;
    T_OK(sched_parse(examples[3].compute, strlen(examples[3].compute), "x", *state, &s, &err),
         &err);
    td_text out = {0}, want = {0};
    T_OK(torch_print(&s, true, &out, &err), &err);
    const char *const row_1 = strchr(out.s, '\n') + 1;
    td_text_addn(&want, dualpipev_row_1, strlen(dualpipev_row_1) - 1);
    td_text_add(&want, "\r\n");
    assert_string_equal(row_1, want.s);
    td_text_free(&out);
    td_text_free(&want);
}

/* In the lowered 1F1B, rank 1 runs F0 B0 F1 B1 F2 ... and has 1RECV_F2 before B1 (pass 3): its
 * receive is posted when pass 2 is over, although a look-ahead of 0 alone would wait for pass 3. */
static void test_trail_is_obeyed(void **state)
{
    td_err err = {0};
    schedule s;
    T_OK(sched_parse(examples[0].comms, strlen(examples[0].comms), "x", *state, &s, &err), &err);
    const sizes z = {.n_stages = 2, .chunks = 1};
    const lower_options o = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 0};
    plan p;
    T_OK(plan_lower(&s, &o, *state, &p, &err), &err);
    const uint32_t first = plan_compute(&p, 1)->first_task;
    int seen = 0;
    for (uint32_t t = 0; t < p.n_tasks; t++) {
        if (p.tasks[t].kind != TASK_RECV || plan_task_rank(&p, t) != 1) continue;
        if (p.tasks[t].microbatch != 2) continue;
        assert_int_equal(p.tasks[t].join - first, 4);
        assert_int_equal(p.tasks[t].gate - first, 2);
        seen++;
    }
    assert_int_equal(seen, 1);
}

/* The SENDs or RECVs of one class that a row's cells name, against the tasks of the rank's streams
 * towards (or from) each peer: the same, in the same order, gated where they stand. */
static void assert_stream_follows(const plan *p, const schedule *s, const plan_stream *st)
{
    const plan_channel *const ch = &p->channels[st->channel];
    const bool sends = st->kind == STREAM_SEND;
    const uint8_t kind = ch->cls == CHANNEL_ACT ? (sends ? CELL_SEND_F : CELL_RECV_F)
                                                : (sends ? CELL_SEND_B : CELL_RECV_B);
    const sched_row *const row = &s->rows[p->ranks[st->rank].row];
    const int step = (ch->cls == CHANNEL_ACT) == sends ? 1 : -1;
    uint32_t n = 0;
    int64_t passes = 0;
    for (int64_t i = 0; i < row->n_cells; i++) {
        const sched_cell *const c = &row->cells[i];
        if (sched_is_pass(c) && !c->overlaps) passes++;
        if (c->kind != kind) continue;
        const sched_pipe *const pipe = &s->pipes[0];
        const int32_t other = pipe->forward_row[c->stage + step];
        if (other != p->ranks[sends ? ch->dst : ch->src].row) continue;
        assert_true(n < st->n_tasks);
        const plan_task *const t = &p->tasks[st->first_task + n++];
        const plan_class *const cls = &p->classes[t->cls];
        assert_int_equal(t->microbatch, c->microbatch);
        assert_int_equal(p->insts[cls->inst].stage, sends ? c->stage + step : c->stage);
        const uint32_t first = plan_compute(p, st->rank)->first_task;
        assert_int_equal(t->gate, passes == 0 ? PLAN_NONE : first + (uint32_t)passes - 1);
    }
    assert_int_equal(n, st->n_tasks);
}

/* torch's text of random schedules comes back as it was, and lowers to streams in the trail's own
 * order, which is that of the producers, where plans without a trail have the consumers'. */
static void test_trails_of_random_schedules(void **state)
{
    int tried = 0, reordered = 0;
    for (uint64_t seed = 0; seed < 400; seed++) {
        const schedule s = gen_schedule(*state, seed);
        td_err err = {0};
        td_text text = {0}, again = {0};
        if (torch_print(&s, true, &text, &err) != TD_OK) continue;
        schedule trail;
        T_OK(sched_parse(text.s, text.len, "x", *state, &trail, &err), &err);
        if (trail.n_stages != s.n_stages) fail_msg("seed %d lost stages", (int)seed);
        T_OK(sched_check(&trail, &err), &err);
        T_OK(torch_print(&trail, true, &again, &err), &err);
        assert_string_equal(text.s, again.s);
        td_text_free(&again);
        td_text_free(&text);
        const sizes z = {.n_stages = s.n_stages, .chunks = 1};
        const lower_options o = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1};
        plan p, own;
        T_OK(plan_lower(&trail, &o, *state, &p, &err), &err);
        T_OK(plan_lower(&s, &o, *state, &own, &err), &err);
        assert_int_equal(p.n_tasks, own.n_tasks);
        tried++;
        for (uint32_t i = 0; i < p.n_streams; i++) {
            const plan_stream *const st = &p.streams[i];
            if (st->kind != STREAM_SEND && st->kind != STREAM_RECV) continue;
            assert_stream_follows(&p, &trail, st);
            for (uint32_t t = st->first_task; t < st->first_task + st->n_tasks; t++)
                reordered += p.tasks[t].microbatch != own.tasks[t].microbatch;
        }
    }
    assert_true(tried >= 50);
    assert_true(reordered >= 10);
}

/* Each of a trail's rules, broken once in the lowered 1F1B of two ranks. */
static void test_broken_trails(void **state)
{
    static const struct {
        const char *rows, *says;
    } cases[] = {
        {"0F0,0SEND_F0,0RECV_B0,0B0\n1RECV_F0,1F0,1B0\n", "row 1: 1SEND_B0: is missing"},
        {"0F0,0SEND_F0,0RECV_B0,0B0\n1F0,1B0,1SEND_B0\n", "row 1: 1RECV_F0: is missing"},
        {"0SEND_F0,0F0,0RECV_B0,0B0\n1RECV_F0,1F0,1B0,1SEND_B0\n",
         "row 0: 0SEND_F0: stands before the pass"},
        {"0F0,0SEND_F0,0RECV_B0,0B0\n1F0,1RECV_F0,1B0,1SEND_B0\n",
         "row 1: 1RECV_F0: stands behind the pass"},
        {"0F0,0SEND_F0,0SEND_F0,0RECV_B0,0B0\n1RECV_F0,1F0,1B0,1SEND_B0\n", "occurs twice"},
        {"0F0,0SEND_F0,0SEND_B0,0RECV_B0,0B0\n1RECV_F0,1F0,1B0,1SEND_B0\n",
         "row 0: 0SEND_B0: there is no stage before"},
        {"0F0,0SEND_F0,0RECV_B0,0B0\n1RECV_F0,1F0,1SEND_F0,1B0,1SEND_B0\n",
         "row 1: 1SEND_F0: there is no next stage"},
        {"0F0,0SEND_F0,1SEND_B0,0RECV_B0,0B0\n1RECV_F0,1F0,1B0\n",
         "row 0: 1SEND_B0: this stage lives on another row"},
        {"0F0,0SEND_F0,1F0,1B0,0B0\n", "row 0: 0SEND_F0: both stages are on one row"},
        {"0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n"
         "1RECV_F1,1RECV_F0,1F0,1B0,1SEND_B0,1F1,1B1,1SEND_B1\n",
         "row 1: 1RECV_F1 stands before 1RECV_F0, but row 0 has 0SEND_F0 first"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        td_err err = {0};
        schedule s;
        T_OK(sched_parse(cases[i].rows, strlen(cases[i].rows), "x", *state, &s, &err), &err);
        T_FAILS(sched_check(&s, &err), TD_EPLAN, &err, cases[i].says);
    }
}

/* A send may wait for a later place than its pass: it joins behind that place. */
static void test_late_send(void **state)
{
    static const char rows[] = "0F0,0F1,0SEND_F0,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n"
                               "1RECV_F0,1F0,1B0,1RECV_F1,1F1,1SEND_B0,1B1,1SEND_B1\n";
    td_err err = {0};
    schedule s;
    plan p;
    T_OK(sched_parse(rows, sizeof rows - 1, "x", *state, &s, &err), &err);
    const sizes z = {.n_stages = 2, .chunks = 1};
    const lower_options o = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1};
    T_OK(plan_lower(&s, &o, *state, &p, &err), &err);
    const uint32_t first = plan_compute(&p, 0)->first_task;
    for (uint32_t t = 0; t < p.n_tasks; t++) {
        if (p.tasks[t].kind != TASK_SEND || plan_task_rank(&p, t) != 0) continue;
        assert_int_equal(p.tasks[t].gate - first, 1);
        assert_true(p.tasks[t].join > p.tasks[t].gate);
    }
}

/* Before late 2024 torch wrote B for the input gradient and BW for the whole backward. */
static void test_legacy_letters(void **state)
{
    static const char text[] = "0F0,0BW0\n";
    td_err err = {0};
    schedule s;
    T_OK(sched_parse(text, sizeof text - 1, "x", *state, &s, &err), &err);
    assert_int_equal(s.rows[0].cells[1].kind, PASS_B);
}

static void test_refusals(void **state)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"# tandem schedule 1\n# stages 1\n# microbatches 1\n# slices 2\n# pipe 0 rows 0\n"
         "0F0.0,0F0.1,0B0.1,0B0.0\n",
         "slices"},
        {"# tandem schedule 1\n# stages 2\n# microbatches 2\n# pipes 2\n# pipe 0 rows 0 1\n"
         "# pipe 0 microbatches 0\n# pipe 1 rows 1 0\n# pipe 1 microbatches 1\n"
         "0F0,1F1,1B1,0B0\n0F1,1F0,1B0,0B1\n",
         "two pipes"},
        {"# tandem schedule 1\n# stages 1\n# microbatches 1\n# pipe 0 rows 0\n0F0,0R0,0B0\n",
         "other than F, B, I and W"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        td_err err = {0};
        schedule s;
        td_text out = {0};
        T_OK(sched_parse(cases[i].text, strlen(cases[i].text), "x", *state, &s, &err), &err);
        T_FAILS(torch_print(&s, false, &out, &err), TD_EUSAGE, &err, cases[i].says);
        td_text_free(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {T_TEST(test_compute_only),
                                       T_TEST(test_with_comms),
                                       T_TEST(test_overlapped_comms),
                                       T_TEST(test_trail_is_obeyed),
                                       T_TEST(test_trails_of_random_schedules),
                                       T_TEST(test_broken_trails),
                                       T_TEST(test_late_send),
                                       T_TEST(test_legacy_letters),
                                       T_TEST(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
