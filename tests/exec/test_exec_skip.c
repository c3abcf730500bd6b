/* A step whose numbers are not finite leaves nothing behind: weights, moments and the next steps
 * are those of a run that never saw it. */
#include "exec/data.h"
#include "exec/exec.h"

#include "t.h"

static const model_desc model = {.name = "small",
                                 .family = MODEL_GPT2,
                                 .n_layers = 4,
                                 .hidden = 16,
                                 .n_heads = 2,
                                 .n_kv_heads = 2,
                                 .head_dim = 8,
                                 .ffn = 32,
                                 .vocab = 29,
                                 .max_positions = 16,
                                 .tied = true,
                                 .qkv_bias = true,
                                 .out_bias = true,
                                 .mlp_bias = true,
                                 .learned_positions = true,
                                 .causal = true,
                                 .norm_eps = 1e-5};

enum { STAGES = 2, MICROBATCHES = 4, ROWS = 2 * 8 };

typedef struct run {
    td_arena *a;
    schedule s;
    stage_desc stages[STAGES];
    sizes z;
    plan p;
    executor *x;
} run;

static void open_run(run *r)
{
    *r = (run){.a = td_arena_new(),
               .stages = {{.n_layers = 2, .embedding = true},
                          {.first_layer = 2, .n_layers = 2, .head = true}}};
    r->z = (sizes){.model = &model,
                   .stages = r->stages,
                   .n_stages = STAGES,
                   .chunks = 1,
                   .run = {.micro_batch = 2, .seq_len = 8, .tp = 1, .dp = 1}};
    const sched_request q = {.pp = STAGES, .microbatches = MICROBATCHES, .chunks = 1};
    td_err err = {0};
    T_OK(sched_generate("1f1b", &q, r->a, &r->s, &err), &err);
    const lower_options o = {.sizes = &r->z, .dp = 1, .tp = 1, .lookahead = 1};
    T_OK(plan_lower(&r->s, &o, r->a, &r->p, &err), &err);
    const exec_options e = {.threads_per_rank = 1};
    T_OK(exec_open(&r->p, &r->z, &e, r->a, &r->x, &err), &err);
    exec_init(r->x, 5);
}

static void close_run(run *r)
{
    exec_close(r->x);
    td_arena_free(r->a);
}

static td_status step(run *r, long number, uint64_t tokens, bool skip, td_err *err)
{
    int32_t ids[MICROBATCHES * ROWS], targets[MICROBATCHES * ROWS];
    corpus_random(tokens, model.vocab, MICROBATCHES * ROWS, ids, targets);
    for (int32_t m = 0; m < MICROBATCHES; m++)
        exec_tokens(r->x, 0, m, ids + m * ROWS, targets + m * ROWS);
    const exec_step s = {.lr = 1e-3f,
                         .beta1 = 0.9f,
                         .beta2 = 0.95f,
                         .eps = 1e-8f,
                         .weight_decay = 0.1f,
                         .clip = 1,
                         .number = number,
                         .skip = skip};
    double loss = 0;
    return exec_run_step(r->x, &s, &loss, err);
}

static void assert_same(const run *a, const run *b, size_kind what)
{
    for (uint32_t i = 0; i < STAGES; i++)
        assert_memory_equal(exec_buffer(a->x, i, what, i), exec_buffer(b->x, i, what, i),
                            (size_t)a->x->stages[i].elements * sizeof(float));
}

/* One weight of `inst` is `value` for a step. */
static void spoil_one(uint32_t inst, float value)
{
    run a, b;
    td_err err = {0};
    open_run(&a);
    open_run(&b);
    T_OK(step(&a, 1, 100, true, &err), &err);
    T_OK(step(&b, 1, 100, true, &err), &err);
    float *const w =
        exec_buffer(b.x, inst, SIZE_WEIGHTS, inst) + b.x->stages[inst].layer[0][PARAM_UP_WEIGHT];
    const float was = *w;
    *w = value;
    T_OK(step(&b, 2, 101, true, &err), &err);
    const bool skipped = !isfinite(b.x->grad_norm);
    assert_true(skipped);
    *w = was;
    assert_same(&a, &b, SIZE_WEIGHTS);
    assert_same(&a, &b, SIZE_OPTIMIZER);
    assert_same(&a, &b, SIZE_GRADS);
    T_OK(step(&a, 2, 102, false, &err), &err);
    T_OK(step(&b, 2, 102, false, &err), &err);
    assert_same(&a, &b, SIZE_WEIGHTS);
    *w = value;
    T_FAILS(step(&b, 3, 103, false, &err), TD_EMISMATCH, &err, "not finite");
    close_run(&a);
    close_run(&b);
}

static void test_skipped_step(void **state)
{
    (void)state;
    for (uint32_t inst = 0; inst < STAGES; inst++) {
        spoil_one(inst, NAN);
        spoil_one(inst, INFINITY);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_skipped_step)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
