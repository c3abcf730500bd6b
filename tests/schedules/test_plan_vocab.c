/* Plans of sharded vocabulary layers: those that are lowered pass the checker, and each of their
 * rules is seen when a plan breaks it. */
#include "schedules/plan.h"
#include "t.h"

static plan lower(td_arena *a, const char *name, bool edge, int32_t dp)
{
    const sched_option_value option = {"repo-edge", "1"};
    const sched_request q = {.pp = 4, .microbatches = 8, .options = &option, .n_options = edge};
    schedule s;
    plan p;
    td_err err = {0};
    T_OK(sched_generate(name, &q, a, &s, &err), &err);
    const sizes z = {.n_stages = s.n_stages, .chunks = s.n_stages / 4};
    const lower_options o = {.sizes = &z, .dp = dp, .tp = 1, .lookahead = 1};
    T_OK(plan_lower(&s, &o, a, &p, &err), &err);
    return p;
}

/* A task of a rank; purpose: of a collective. */
static uint32_t find(const plan *p, uint32_t rank, uint8_t kind, coll_purpose purpose, uint32_t m)
{
    for (uint32_t t = 0; t < p->n_tasks; t++)
        if (p->tasks[t].kind == kind && p->tasks[t].microbatch == m &&
            plan_task_rank(p, t) == rank &&
            (kind != TASK_COLL || p->classes[p->tasks[t].cls].purpose == purpose))
            return t;
    fail_msg("rank %u has no such task", rank);
    return PLAN_NONE;
}

static uint32_t barrier(const plan *p, uint32_t rank, coll_purpose purpose, uint32_t m)
{
    return find(p, rank, TASK_COLL, purpose, m);
}

static void test_lowered_plans_pass(void **state)
{
    static const char *const names[] = {"vocab-1", "vocab-2", "interlaced", "v-half-vocab"};
    for (int i = 0; i < 4; i++)
        for (int edge = 0; edge < (i == 2 ? 1 : 2); edge++)
            (void)lower(*state, names[i], edge == 1, 1 + edge);
}

/* With the edge, T of 2 on ranks that do not own X waits for C0 of 3; without, S of 3 does. */
static void test_edge(void **state)
{
    for (int edge = 0; edge < 2; edge++) {
        const plan p = lower(*state, "vocab-1", edge == 1, 1);
        for (uint32_t r = 0; r < 3; r++)
            assert_int_equal(p.tasks[barrier(&p, r, PURPOSE_C0, 3)].join,
                             edge ? find(&p, r, PASS_T, 0, 2) : find(&p, r, PASS_S, 0, 3));
        /* its owner goes on: it has what it needs for S */
        assert_int_equal(p.tasks[barrier(&p, 3, PURPOSE_C0, 3)].join, find(&p, 3, PASS_T, 0, 3));
    }
}

/* Bytes a microbatch with N tokens of width h in 2-byte numbers (arXiv 2411.05288, table of
 * volumes): 2 N h for X, the sums and the gradients; 12 N for the statistics, in Vocab-2 with the
 * input gradient. */
static void test_volumes(void **state)
{
    static const char *const names[] = {"vocab-1", "vocab-2", "interlaced"};
    model_desc model;
    td_err err = {0};
    T_OK(model_load("tiny-llama", &model, &err), &err);
    for (int i = 0; i < 3; i++) {
        const sched_request q = {.pp = 4, .microbatches = 8};
        stage_desc stages[4];
        const int64_t tokens = 3 * 32, x = 2 * tokens * model.hidden;
        sizes z = {.model = &model,
                   .run = {.micro_batch = 3, .seq_len = 32, .tp = 1, .dp = 1, .dtype = TYPE_BF16},
                   .stages = stages,
                   .n_stages = 4,
                   .chunks = 1,
                   .vocab_shards = 4,
                   .vocab_fused = i == 1};
        for (int s = 0; s < 4; s++)
            stages[s] = (stage_desc){.first_layer = 2 * s,
                                     .n_layers = 2,
                                     .embedding = s == 0,
                                     .head = s == 3,
                                     .vocab_rows = sizes_vocab_rows(&z)};
        const lower_options o = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1};
        int64_t bytes[PURPOSE_COUNT] = {0};
        schedule s;
        plan p;
        T_OK(sched_generate(names[i], &q, *state, &s, &err), &err);
        T_OK(plan_lower(&s, &o, *state, &p, &err), &err);
        for (uint32_t c = 0; c < p.n_colls; c++) {
            const plan_class *const k =
                &p.classes[p.tasks[p.coll_tasks[p.colls[c].first_task]].cls];
            bytes[k->purpose] += k->bytes;
        }
        assert_int_equal(bytes[PURPOSE_C0], 8 * x);
        assert_int_equal(bytes[PURPOSE_C1], 8 * (12 * tokens + (i == 1 ? x : 0)));
        assert_int_equal(bytes[PURPOSE_C2], i == 1 ? 0 : 8 * x);
        assert_int_equal(bytes[PURPOSE_EMBED_SUM], 8 * x);
        assert_int_equal(bytes[PURPOSE_EMBED_GRAD], 8 * x);
    }
}

typedef struct change {
    coll_purpose purpose;
    uint32_t rank;
    int gate, join; /* moves by so many compute tasks; join 1000: to the end of the period */
    const char *name, *says;
} change;

static void test_broken_plans_are_refused(void **state)
{
    static const change changes[] = {
        {PURPOSE_C0, 1, 0, 1, "vocab-2", "does not wait for the barrier"},
        {PURPOSE_C0, 3, -1, 0, "vocab-2", "leaves before the pass"},
        {PURPOSE_C1, 2, 0, 1000, "vocab-2", "does not wait for the barrier"},
        {PURPOSE_C1, 0, -1, 0, "vocab-1", "leaves before the pass"},
        {PURPOSE_C1, 3, 0, 1, "vocab-2", "does not wait for the barrier"}, /* B there */
        {PURPOSE_C2, 3, 0, 1, "vocab-1", "does not wait for the barrier"},
        {PURPOSE_C2, 1, -1, 0, "vocab-1", "leaves before the pass"},
        {PURPOSE_EMBED_SUM, 0, 0, 1, "vocab-1", "does not wait for the barrier"},
        {PURPOSE_EMBED_SUM, 2, -1, 0, "vocab-1", "leaves before the pass"},
        {PURPOSE_EMBED_GRAD, 2, 0, 1, "vocab-1", "does not wait for the barrier"},
        {PURPOSE_EMBED_GRAD, 0, -1, 0, "vocab-1", "leaves before the pass"},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        const change *const c = &changes[i];
        plan p = lower(*state, c->name, false, 1);
        plan_task *const t = &p.tasks[barrier(&p, c->rank, c->purpose, 4)];
        td_err err = {0};
        t->gate += (uint32_t)c->gate;
        t->join = c->join == 1000 ? PLAN_NONE : t->join + (uint32_t)c->join;
        if (plan_check(&p, *state, &err) == TD_OK) fail_msg("change %zu was not seen", i);
        if (strstr(err.msg, c->says) == NULL)
            fail_msg("change %zu: \"%s\" does not say \"%s\"", i, err.msg, c->says);
    }
    /* a barrier of another microbatch, and a pass that is there twice */
    plan p = lower(*state, "vocab-1", false, 1);
    td_err err = {0};
    p.tasks[find(&p, 2, PASS_S, 0, 4)].microbatch = 5;
    T_FAILS(plan_check(&p, *state, &err), TD_EPLAN, &err, "occurs twice");
    p = lower(*state, "vocab-1", false, 1);
    p.classes[p.tasks[find(&p, 1, PASS_F, 0, 4)].cls].inst = p.n_insts - 1;
    T_FAILS(plan_check(&p, *state, &err), TD_EPLAN, &err, "a task class out of range");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(test_lowered_plans_pass),
        T_TEST(test_edge),
        T_TEST(test_volumes),
        T_TEST(test_broken_plans_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
