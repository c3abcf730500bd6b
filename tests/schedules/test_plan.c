/* Laws of plans over random schedules: every sound schedule lowers to a plan that its checker
 * accepts under each mapping; the text form is exact; what is broken is refused. */
#include "schedule_gen.h"
#include "schedules/plan.h"
#include "t.h"

static const model_desc tiny = {.name = "tiny",
                                .family = MODEL_GPT2,
                                .n_layers = 9,
                                .hidden = 8,
                                .n_heads = 2,
                                .n_kv_heads = 2,
                                .head_dim = 4,
                                .ffn = 32,
                                .vocab = 32,
                                .max_positions = 12,
                                .tied = true,
                                .qkv_bias = true,
                                .out_bias = true,
                                .mlp_bias = true,
                                .learned_positions = true,
                                .causal = true,
                                .norm_eps = 1e-5};

/* Half of the seeds have a model, so that tensors have sizes; the others count activations. */
static lower_options options_for(td_arena *a, const schedule *s, sizes *z, uint64_t seed)
{
    *z = (sizes){.n_stages = s->n_stages, .chunks = (s->n_stages + s->n_rows - 1) / s->n_rows};
    if (seed / 2 % 2 == 1) {
        stage_desc *const stages = TD_NEW_N(a, stage_desc, s->n_stages);
        for (int32_t i = 0; i < s->n_stages; i++)
            stages[i] = (stage_desc){
                .first_layer = i, .n_layers = 1, .embedding = i == 0, .head = i + 1 == s->n_stages};
        z->model = &tiny;
        z->stages = stages;
        z->run = (run_shape){.micro_batch = 1, .seq_len = 12, .tp = 1, .dp = 1};
    }
    const bool dp = seed % 3 == 0;
    return (lower_options){.sizes = z,
                           .dp = dp ? 2 : 1,
                           .tp = 1,
                           .fold = seed % 6 == 0,
                           .mapping = (plan_mapping)(seed / 2 % (MAPPING_SINGLE + 1)),
                           .lookahead = (int32_t)(seed / 7 % 4)};
}

static plan lower(td_arena *a, const schedule *s, uint64_t seed)
{
    sizes z;
    const lower_options o = options_for(a, s, &z, seed);
    plan p;
    td_err err = {0};
    T_OK(plan_lower(s, &o, a, &p, &err), &err);
    return p;
}

static void test_sound_schedules_lower(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 400; seed++) {
        td_arena *const a = td_arena_new();
        const schedule s = gen_schedule(a, seed);
        for (int mapping = 0; mapping <= MAPPING_SINGLE; mapping++) {
            sizes z;
            lower_options o = options_for(a, &s, &z, seed);
            o.mapping = (plan_mapping)mapping;
            plan p;
            td_err err = {0};
            T_OK(plan_lower(&s, &o, a, &p, &err), &err);
            assert_true(p.n_ranks == (uint32_t)(s.n_rows * (o.fold ? 1 : o.dp)));
        }
        td_arena_free(a);
    }
}

/* Each message of a schedule is counted by hand: one for each border between rows, both ways. */
static void test_message_count(void **state)
{
    for (uint64_t seed = 0; seed < 200; seed++) {
        const schedule s = gen_schedule(*state, seed);
        const plan p = lower(*state, &s, 1);
        int64_t want = 0, got = 0;
        for (int32_t m = 0; m < s.n_microbatches; m++)
            for (int32_t st = 1; st < s.n_stages; st++) {
                const int32_t *const row = s.pipes[s.microbatch_pipe[m]].forward_row;
                want += row[st] != row[st - 1] ? 2 * s.n_slices : 0;
            }
        for (uint32_t t = 0; t < p.n_tasks; t++) got += p.tasks[t].kind == TASK_SEND;
        assert_int_equal(got, want);
    }
}

static void test_plan_text_round_trip(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++) {
        td_arena *const a = td_arena_new();
        const schedule s = gen_schedule(a, seed);
        const plan p = lower(a, &s, seed);
        td_text t = {0};
        plan_print(&p, &t);
        plan back;
        td_err err = {0};
        T_OK(plan_parse(t.s, t.len, "printed", a, &back, &err), &err);
        assert_true(plan_equal(&p, &back));
        assert_true(plan_hash(&p) == plan_hash(&back));
        td_rng r = td_rng_seed(seed);
        const size_t cut = (size_t)td_rng_below(&r, (int64_t)t.len - 1);
        assert_true(plan_parse(t.s, cut, "cut", a, &back, &err) != TD_OK);
        /* one changed byte: refused, or a plan like any other; never a crash */
        t.s[cut] = (char)('0' + td_rng_below(&r, 10));
        const td_status changed = plan_parse(t.s, t.len, "changed", a, &back, &err);
        assert_true(changed == TD_OK || err.msg[0] != 0);
        td_text_free(&t);
        td_arena_free(a);
    }
}

/* Breaks one thing in a sound plan; says which part of the message is expected. */
static const char *break_plan(plan *p, td_rng *r, int what)
{
    uint32_t t = (uint32_t)td_rng_below(r, p->n_tasks);
    switch (what) {
    case 0: /* two passes of one rank change places against their data */
        for (uint32_t i = 0; i < p->n_ranks; i++) {
            const plan_stream *const s = plan_compute(p, i);
            for (uint32_t x = s->first_task; x < s->first_task + s->n_tasks; x++)
                if (p->tasks[x].kind == PASS_W || p->tasks[x].kind == PASS_B ||
                    p->tasks[x].kind == PASS_I) {
                    for (uint32_t f = s->first_task; f < x; f++)
                        if (p->tasks[f].kind == PASS_F &&
                            p->tasks[f].microbatch == p->tasks[x].microbatch &&
                            p->tasks[f].slice == p->tasks[x].slice &&
                            p->classes[p->tasks[f].cls].inst == p->classes[p->tasks[x].cls].inst) {
                            const plan_task swap = p->tasks[f];
                            p->tasks[f] = p->tasks[x];
                            p->tasks[x] = swap;
                            const uint32_t use = p->tasks[f].first_use;
                            p->tasks[f].first_use = p->tasks[x].first_use;
                            p->tasks[x].first_use = use;
                            return "";
                        }
                }
        }
        return NULL;
    case 1: /* a receive that nobody waits for in time */
        for (uint32_t i = 0; i < p->n_tasks; i++, t = (t + 1) % p->n_tasks)
            if (p->tasks[t].kind == TASK_RECV) {
                p->tasks[t].join = PLAN_NONE;
                return "";
            }
        return NULL;
    case 2: /* a message that leaves before it is made */
        for (uint32_t i = 0; i < p->n_tasks; i++, t = (t + 1) % p->n_tasks)
            if (p->tasks[t].kind == TASK_SEND) {
                p->tasks[t].gate = PLAN_NONE;
                return "";
            }
        return NULL;
    case 3: /* a pass less */
        for (uint32_t i = 0; i < p->n_tasks; i++, t = (t + 1) % p->n_tasks)
            if (p->tasks[t].kind == PASS_F) {
                p->tasks[t].microbatch = (p->tasks[t].microbatch + 1) % (uint32_t)p->n_microbatches;
                return p->n_microbatches > 1 ? "" : NULL;
            }
        return NULL;
    case 4: /* a buffer that dies while its send may still read it */
        for (uint32_t i = 0; i < p->n_tasks; i++) {
            const plan_task *const k = &p->tasks[i];
            if (k->kind != TASK_SEND || k->first_use == p->tasks[i + 1].first_use) continue;
            const plan_rank *const rank = &p->ranks[plan_task_rank(p, i)];
            p->buffers[rank->first_buffer + use_buffer_of(p->uses[k->first_use])].death--;
            return "outside its life";
        }
        return NULL;
    default: /* two live buffers in one place */
        if (p->n_buffers < 2) return NULL;
        for (uint32_t k = 0; k < p->n_ranks; k++)
            for (uint32_t i = 1; i < p->ranks[k].n_buffers; i++) {
                plan_buffer *const x = &p->buffers[p->ranks[k].first_buffer + i];
                if (x[-1].birth <= x->birth && x->birth <= x[-1].death) {
                    x->offset = x[-1].offset;
                    return "overlap";
                }
            }
        return NULL;
    }
}

static void test_broken_plans_are_refused(void **state)
{
    (void)state;
    int broken[6] = {0};
    for (uint64_t seed = 0; seed < 300; seed++) {
        td_arena *const a = td_arena_new();
        const schedule s = gen_schedule(a, seed);
        plan p = lower(a, &s, seed);
        td_rng r = td_rng_seed(seed);
        const int what = (int)(seed % 6);
        const char *const says = break_plan(&p, &r, what);
        td_err err = {0};
        if (says != NULL) {
            T_FAILS(plan_check(&p, a, &err), TD_EPLAN, &err, says);
            broken[what]++;
        }
        td_arena_free(a);
    }
    for (int i = 0; i < 6; i++) {
        if (broken[i] < 8) fail_msg("only %d plans were broken in way %d", broken[i], i);
    }
}

/* Two ranks that send to each other with blocking sends. */
static void test_blocking_sends_deadlock(void **state)
{
    static const char text[] = "# tandem schedule 1\n# stages 2\n# microbatches 4\n# pipes 2\n"
                               "# pipe 0 rows 0 1\n# pipe 0 microbatches 0 2\n"
                               "# pipe 1 rows 1 0\n# pipe 1 microbatches 1 3\n"
                               "0F0,0F2,1F1,1F3,1B1,1B3,0B0,0B2\n"
                               "0F1,0F3,1F0,1F2,1B0,1B2,0B1,0B3\n";
    td_err err = {0};
    schedule s;
    T_OK(sched_parse(text, sizeof text - 1, "x", *state, &s, &err), &err);
    sizes z = {.n_stages = 2, .chunks = 1};
    lower_options o = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 0};
    plan p;
    T_OK(plan_lower(&s, &o, *state, &p, &err), &err);
    o.send_window = 1; /* both post their receive only after their send is through */
    T_FAILS(plan_lower(&s, &o, *state, &p, &err), TD_EPLAN, &err, "deadlock");
    T_FAILS(plan_lower(&s, &o, *state, &p, &err), TD_EPLAN, &err, "waits for");
}

static void test_allocation_failures(void **state)
{
    const schedule s = gen_schedule(*state, 5);
    sizes z;
    const lower_options o = options_for(*state, &s, &z, 4);
    int failures = 0;
    for (long n = 1; n < 400; n++) {
        td_arena *const a = td_arena_new();
        td_arena_fail_at(a, n);
        plan p;
        td_err err = {0};
        const td_status st = plan_lower(&s, &o, a, &p, &err);
        td_arena_free(a);
        if (st == TD_OK) break;
        assert_int_equal(st, TD_ENOMEM);
        failures++;
    }
    assert_true(failures > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(test_sound_schedules_lower),   T_TEST(test_message_count),
        T_TEST(test_plan_text_round_trip),    T_TEST(test_broken_plans_are_refused),
        T_TEST(test_blocking_sends_deadlock), T_TEST(test_allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
