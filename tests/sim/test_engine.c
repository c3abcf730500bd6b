/* The engine against a slow reference on random plans, against closed forms, and its refusals.
 * Does not pin prices, nor what lowering makes of a schedule. */
#include "sim_reference.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { RANDOM_PLANS = 300 };

/* What a live run was asked, held against the times of the reference. */
typedef struct witness {
    const task_times *t;
    uint8_t *asked; /* [n_tasks] */
    int64_t last_begin_ns;
    bool in_order;
} witness;

static td_status live_compute(void *self, uint32_t rank, uint32_t task, int64_t class_ns,
                              int64_t *ns, td_err *err)
{
    witness *const w = self;
    (void)err;
    (void)rank;
    w->asked[task]++;
    w->in_order = w->in_order && w->t->begin_ns[task] >= w->last_begin_ns;
    w->last_begin_ns = w->t->begin_ns[task];
    *ns = class_ns;
    return TD_OK;
}

static td_status live_post(void *self, uint32_t rank, uint32_t task, td_err *err)
{
    (void)err;
    (void)rank;
    ((witness *)self)->asked[task]++;
    return TD_OK;
}

static void same_times(const plan *p, const task_times *fast, const task_times *slow,
                       const char *what, int protocol)
{
    for (uint32_t t = 0; t < p->n_tasks; t++)
        if (fast->begin_ns[t] != slow->begin_ns[t] || fast->end_ns[t] != slow->end_ns[t])
            fail_msg("%s protocol %d task %u of kind %d: %lld..%lld, reference %lld..%lld", what,
                     protocol, t, (int)p->tasks[t].kind, (long long)fast->begin_ns[t],
                     (long long)fast->end_ns[t], (long long)slow->begin_ns[t],
                     (long long)slow->end_ns[t]);
}

/* Asked for each duration the engine gives the same times, and asks each task once, the compute
 * tasks in the order in which they begin. */
static void compare_live(const plan *p, const int64_t *ns, sim_options o, td_arena *a,
                         const char *what, const task_times *slow)
{
    witness w = {.t = slow, .asked = TD_NEW_N(a, uint8_t, p->n_tasks), .in_order = true};
    const sim_live live = {.self = &w, .compute = live_compute, .post = live_post};
    task_times times = {0};
    td_err err = {0};
    o.live = &live;
    if (sim_run(p, ns, &o, a, &times, NULL, &err) != TD_OK) fail_msg("%s: %s", what, err.msg);
    same_times(p, &times, slow, what, (int)o.protocol);
    for (uint32_t t = 0; t < p->n_tasks; t++)
        if (w.asked[t] != 1) fail_msg("%s: task %u was asked %d times", what, t, w.asked[t]);
    if (!w.in_order) fail_msg("%s: tasks do not begin in order of time", what);
}

/* The engine gives what the reference gives, task by task, under both protocols. */
static void compare(const plan *p, const int64_t *ns, const cost_model *pairs, td_arena *a,
                    const char *what, sim_stats *stats)
{
    for (int protocol = 0; protocol < 2; protocol++) {
        task_times slow = {0}, fast = {0};
        td_err err = {0};
        const sim_options o = {.protocol = (sim_protocol)protocol, .cost = pairs};
        if (!reference_run(p, ns, o.protocol, pairs, a, &slow))
            fail_msg("%s: the reference does not finish", what);
        if (sim_run(p, ns, &o, a, &fast, stats, &err) != TD_OK) fail_msg("%s: %s", what, err.msg);
        same_times(p, &fast, &slow, what, protocol);
        compare_live(p, ns, o, a, what, &slow);
    }
}

static void equals_reference(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(1);
    for (int i = 0; i < RANDOM_PLANS; i++) {
        td_arena *const a = td_arena_new();
        char what[160];
        plan p;
        sim_stats stats;
        random_plan(&rng, a, &p, what, sizeof what);
        compare(&p, random_times(&rng, &p, a), NULL, a, what, &stats);
        td_arena_free(a);
    }
}

/* Messages of random sizes between nodes of a few devices, with and without a node's own limit. */
static void equals_reference_on_shared_links(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(4);
    uint64_t shared = 0;
    for (int i = 0; i < RANDOM_PLANS / 2; i++) {
        td_arena *const a = td_arena_new();
        char what[160];
        plan p;
        sim_stats stats;
        random_plan(&rng, a, &p, what, sizeof what);
        const cluster_desc c = {
            .n_nodes = 16,
            .devices_per_node = 1 + (int32_t)td_rng_below(&rng, 8),
            .intra = {.latency_ns = (double)td_rng_below(&rng, 50), .bytes_per_s = 4e9},
            .inter = {.latency_ns = (double)td_rng_below(&rng, 90), .bytes_per_s = 1e9},
            .node_network_bytes_per_s = (double)td_rng_below(&rng, 4) * 7e8};
        const cost_model pairs = {.cluster = &c, .chunks = 1};
        for (uint32_t k = 0; k < p.n_classes; k++)
            if (p.classes[k].kind == TASK_SEND) p.classes[k].bytes = td_rng_below(&rng, 2000);
        compare(&p, random_times(&rng, &p, a), &pairs, a, what, &stats);
        shared += stats.shared_flows;
        td_arena_free(a);
    }
    assert_true(shared > 1000);
}

/* Lowers a schedule without step and runs it with times by kind. */
static int64_t step_of(const char *name, int32_t pp, int32_t m, int32_t v, int64_t f, int64_t b,
                       int64_t comm, td_arena *a)
{
    const sched_request q = {.pp = pp, .microbatches = m, .chunks = v};
    sizes z = {.n_stages = pp * v, .chunks = v};
    const lower_options o = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1, .no_step = true};
    schedule s = {0};
    plan p;
    td_err err = {0};
    if (sched_generate(name, &q, a, &s, &err) != TD_OK || plan_lower(&s, &o, a, &p, &err) != TD_OK)
        fail_msg("%s pp %d m %d v %d: %s", name, pp, m, v, err.msg);
    int64_t *const ns = TD_NEW_N(a, int64_t, p.n_classes);
    for (uint32_t i = 0; i < p.n_classes; i++)
        ns[i] = p.classes[i].kind == PASS_F ? f : p.classes[i].kind == PASS_B ? b : comm;
    task_times t = {0};
    sim_stats stats;
    const sim_options so = {.protocol = PROTOCOL_EAGER};
    if (sim_run(&p, ns, &so, a, &t, &stats, &err) != TD_OK) fail_msg("%s", err.msg);
    return stats.end_ns;
}

static void expect(const char *name, int32_t pp, int32_t m, int32_t v, int64_t f, int64_t b,
                   int64_t comm, int64_t want)
{
    td_arena *const a = td_arena_new();
    const int64_t got = step_of(name, pp, m, v, f, b, comm, a);
    if (got != want)
        fail_msg("%s pp %d m %d v %d F %lld B %lld comm %lld: %lld, closed form %lld", name, pp, m,
                 v, (long long)f, (long long)b, (long long)comm, (long long)got, (long long)want);
    td_arena_free(a);
}

/* (M + P - 1)(F + B) with F, B of a whole rank. */
static void flush_schedules(void **state)
{
    (void)state;
    for (int32_t pp = 2; pp <= 16; pp++)
        for (int32_t m = 1; m <= 64; m += m < 20 ? 1 : 11) {
            expect("gpipe", pp, m, 1, 1000, 2000, 0, (int64_t)(m + pp - 1) * 3000);
            expect("1f1b", pp, m, 1, 1000, 2000, 0, (int64_t)(m + pp - 1) * 3000);
        }
}

/* M(F + B) + (P - 1)(F + B)/V for P | M. */
static void interleaved(void **state)
{
    (void)state;
    for (int32_t pp = 2; pp <= 16; pp++)
        for (int32_t v = 2; v <= 4; v++)
            for (int32_t m = pp; m <= 64; m += pp)
                expect("interleaved-1f1b", pp, m, v, 1200 / v, 2400 / v, 0,
                       (int64_t)m * 3600 + (int64_t)(pp - 1) * 3600 / v);
}

/* (M + P - 1)(F + B) + c (2(P - 1)M/P + 2(P - 2)) for P | M and c <= F. */
static void latency(void **state)
{
    (void)state;
    for (int32_t pp = 2; pp <= 16; pp++)
        for (int32_t k = 1; k <= 4; k++)
            for (int64_t c = 10; c <= 1000; c += 330) {
                const int64_t m = (int64_t)k * pp;
                expect("1f1b", pp, (int32_t)m, 1, 1000, 2000, c,
                       (m + pp - 1) * 3000 + c * (2 * (pp - 1) * k + 2 * (pp - 2)));
            }
}

/* The ends of a stream that wait for each other: rank 0 sends first, rank 1 too. */
static void deadlock_is_reported(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    plan_task tasks[] = {
        {.kind = TASK_MARK, .link = PLAN_NONE, .gate = PLAN_NONE, .join = PLAN_NONE},
        {.kind = TASK_RECV, .cls = 1, .link = 4, .gate = 0, .join = PLAN_NONE},
        {.kind = TASK_SEND, .cls = 1, .link = 5, .gate = 0, .join = PLAN_NONE},
        {.kind = TASK_MARK, .link = PLAN_NONE, .gate = PLAN_NONE, .join = PLAN_NONE},
        {.kind = TASK_SEND, .cls = 1, .link = 1, .gate = 3, .join = PLAN_NONE},
        {.kind = TASK_RECV, .cls = 1, .link = 2, .gate = 3, .join = PLAN_NONE},
        {0},
    };
    plan_stream streams[] = {
        {.kind = STREAM_COMPUTE, .rank = 0, .first_task = 0, .n_tasks = 1},
        {.kind = STREAM_BOTH, .rank = 0, .first_task = 1, .n_tasks = 2},
        {.kind = STREAM_COMPUTE, .rank = 1, .first_task = 3, .n_tasks = 1},
        {.kind = STREAM_BOTH, .rank = 1, .first_task = 4, .n_tasks = 2},
    };
    plan_rank ranks[] = {{.first_stream = 0, .n_streams = 2},
                         {.row = 1, .device = 1, .first_stream = 2, .n_streams = 2}};
    plan_class classes[] = {{.kind = TASK_MARK, .inst = PLAN_NONE},
                            {.kind = TASK_SEND, .inst = PLAN_NONE}};
    const int64_t ns[] = {0, 7};
    const plan p = {.ranks = ranks,
                    .n_ranks = 2,
                    .streams = streams,
                    .n_streams = 4,
                    .tasks = tasks,
                    .n_tasks = 6,
                    .classes = classes,
                    .n_classes = 2,
                    .dp = 1,
                    .tp = 1};
    const sim_options meet = {.protocol = PROTOCOL_RENDEZVOUS};
    task_times t = {0};
    sim_stats stats;
    td_err err = {0};
    /* As it stands both orders agree. */
    assert_int_equal(sim_run(&p, ns, &meet, a, &t, &stats, &err), TD_OK);
    assert_int_equal(stats.end_ns, 14);
    /* Rank 1 in the other order: each waits for the other. */
    tasks[4] = (plan_task){.kind = TASK_RECV, .cls = 1, .link = 2, .gate = 3, .join = PLAN_NONE};
    tasks[5] = (plan_task){.kind = TASK_SEND, .cls = 1, .link = 1, .gate = 3, .join = PLAN_NONE};
    tasks[1].link = 5;
    tasks[2].link = 4;
    assert_int_equal(sim_run(&p, ns, &meet, a, &t, &stats, &err), TD_EPLAN);
    assert_non_null(strstr(err.msg, "deadlock: 2 of 2 ranks"));
    /* Messages that hold no stream do not mind. */
    const sim_options eager = {.protocol = PROTOCOL_EAGER};
    assert_int_equal(sim_run(&p, ns, &eager, a, &t, &stats, &err), TD_OK);
    assert_int_equal(stats.end_ns, 7);
    td_arena_free(a);
}

static void overflow_is_refused(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    td_rng rng = td_rng_seed(2);
    char what[160];
    plan p;
    random_plan(&rng, a, &p, what, sizeof what);
    int64_t *const ns = random_times(&rng, &p, a);
    ns[0] = INT64_MAX / 4;
    task_times t = {0};
    td_err err = {0};
    const sim_options o = {.protocol = PROTOCOL_EAGER};
    assert_int_equal(sim_run(&p, ns, &o, a, &t, NULL, &err), TD_EUSAGE);
    td_arena_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_reference),
        cmocka_unit_test(equals_reference_on_shared_links),
        cmocka_unit_test(flush_schedules),
        cmocka_unit_test(interleaved),
        cmocka_unit_test(latency),
        cmocka_unit_test(deadlock_is_reported),
        cmocka_unit_test(overflow_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
