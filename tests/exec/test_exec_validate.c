/* Post-validation executed: the numbers are those of a run that waits for its norms, bit for bit,
 * whether steps stand, are taken back, or are skipped. */
#include "exec/data.h"
#include "exec_law.h"

#include "t.h"

typedef struct family {
    const char *name;
    int32_t chunks;
} family;

static const family families[] = {{"1f1b", 1}, {"zb-h1", 1},  {"zb-h2", 1},
                                  {"zb-v", 2}, {"v-half", 2}, {"gpipe", 1}};
enum { FAMILIES = sizeof families / sizeof *families };

static void make(td_arena *a, const family *f, int32_t pp, int32_t m, schedule *out)
{
    td_err err = {0};
    const sched_request q = {.pp = pp, .microbatches = m, .chunks = f->chunks};
    T_OK(sched_generate(f->name, &q, a, out, &err), &err);
    out->validate = true;
}

/* --- the law --- */

static void test_law(void **state)
{
    /* every norm is above the first, none above the last */
    const double clips[] = {1e-3, 0.7, (double)INFINITY};
    (void)state;
    for (int f = 0; f < FAMILIES; f++)
        for (int32_t pp = 2; pp <= 4; pp += 2)
            for (int c = 0; c < 3; c++) {
                td_arena *const a = td_arena_new();
                schedule s;
                make(a, &families[f], pp, 8, &s);
                const exec_law k = {.model = (f + c) % 2 == 0 ? &law_gpt2 : &law_llama,
                                    .steps = 3,
                                    .clip = clips[c],
                                    .mapping = (plan_mapping)((f + c) % 3),
                                    .jitter_ns = 20000};
                const check_result r = exec_law_holds(&k, &s, a, NULL);
                assert_true(r.exact && r.weights.bitwise && r.gradients.bitwise);
                if (c == 0) assert_int_equal(r.undone, 3);
                if (c == 2) assert_int_equal(r.undone, 0);
                td_arena_free(a);
            }
}

/* Replicas each have a chain of their own; twins step in both directions. */
static void test_copies(void **state)
{
    const family chimera = {"chimera", 1};
    for (int c = 0; c < 2; c++) {
        schedule s;
        exec_law k = {
            .model = &law_gpt2, .dp = 2, .steps = 3, .clip = c == 0 ? 1e-3 : (double)INFINITY};
        make(*state, &families[2], 2, 4, &s);
        assert_int_equal(exec_law_holds(&k, &s, *state, NULL).undone, c == 0 ? 3 : 0);
        k.dp = 1;
        make(*state, &chimera, 4, 8, &s);
        assert_int_equal(exec_law_holds(&k, &s, *state, NULL).undone, c == 0 ? 3 : 0);
    }
}

/* --- step by step --- */

enum { STAGES = 4, MICROBATCHES = 8, TOKENS = 2 * 12 };

typedef struct run {
    td_arena *a;
    schedule s;
    stage_desc stages[STAGES];
    sizes z;
    plan p;
    executor *x;
    double loss;
} run;

static void open_run(run *r, bool validate)
{
    td_err err = {0};
    *r = (run){.a = td_arena_new()};
    for (int i = 0; i < STAGES; i++)
        r->stages[i] = (stage_desc){
            .first_layer = 2 * i, .n_layers = 2, .embedding = i == 0, .head = i == STAGES - 1};
    r->z = (sizes){.model = &law_llama,
                   .stages = r->stages,
                   .n_stages = STAGES,
                   .chunks = 1,
                   .run = {.micro_batch = 2, .seq_len = 12, .tp = 1, .dp = 1}};
    make(r->a, &families[2], STAGES, MICROBATCHES, &r->s);
    r->s.validate = validate;
    const lower_options o = {.sizes = &r->z, .dp = 1, .tp = 1, .lookahead = 1};
    T_OK(plan_lower(&r->s, &o, r->a, &r->p, &err), &err);
    const exec_options e = {.threads_per_rank = 1, .deadline_ns = 20000000000};
    T_OK(exec_open(&r->p, &r->z, &e, r->a, &r->x, &err), &err);
    exec_init(r->x, 5);
}

static void close_run(run *r)
{
    exec_close(r->x);
    td_arena_free(r->a);
}

static td_status step(run *r, uint64_t tokens, exec_step s, td_err *err)
{
    int32_t ids[MICROBATCHES * TOKENS], targets[MICROBATCHES * TOKENS];
    corpus_random(tokens, law_llama.vocab, MICROBATCHES * TOKENS, ids, targets);
    for (int32_t m = 0; m < MICROBATCHES; m++)
        exec_tokens(r->x, 0, m, ids + m * TOKENS, targets + m * TOKENS);
    s.beta1 = 0.9f;
    s.beta2 = 0.95f;
    s.eps = 1e-8f;
    s.weight_decay = 0.1f;
    if (s.lr == 0) s.lr = 1e-3f;
    return exec_run_step(r->x, &s, &r->loss, err);
}

static void assert_same(const run *a, const run *b)
{
    static const size_kind kinds[] = {SIZE_WEIGHTS, SIZE_OPTIMIZER, SIZE_GRADS};
    for (int k = 0; k < 3; k++)
        for (uint32_t i = 0; i < STAGES; i++) {
            const size_t n = (size_t)a->x->stages[i].elements * (k == 1 ? 2 : 1);
            assert_memory_equal(exec_buffer(a->x, i, kinds[k], i),
                                exec_buffer(b->x, i, kinds[k], i), n * sizeof(float));
        }
}

/* Ranks that stepped at once. */
static int count_stepped(const run *r)
{
    int n = 0;
    for (uint32_t i = 0; i < STAGES; i++) n += r->x->ranks[i].stepped;
    return n;
}

/* Clipped just below the norm: the first ranks step, the last ones see that they must not. */
static void test_some_step(void **state)
{
    run plain, late;
    td_err err = {0};
    double norm = 0;
    bool mixed = false;
    (void)state;
    open_run(&plain, false);
    open_run(&late, true);
    for (long n = 1; n <= 6; n++) {
        const exec_step s = {.number = n, .clip = n == 1 ? 0 : 0.95 * norm};
        T_OK(step(&plain, (uint64_t)n, s, &err), &err);
        T_OK(step(&late, (uint64_t)n, s, &err), &err);
        assert_memory_equal(&plain.loss, &late.loss, sizeof plain.loss);
        norm = plain.x->grad_norm;
        mixed |= count_stepped(&late) > 0 && count_stepped(&late) < STAGES;
        if (n % 4 == 0) T_OK(exec_settle(late.x, &err), &err);
    }
    T_OK(exec_settle(late.x, &err), &err);
    assert_true(mixed);
    assert_true(late.x->n_undone > 0 && late.x->n_settled == 6);
    assert_memory_equal(&plain.x->grad_norm, &late.x->grad_norm, sizeof norm);
    assert_same(&plain, &late);
    close_run(&plain);
    close_run(&late);
}

/* A gradient of stage `at` is not finite in the second step, which leaves nothing behind: ranks
 * before it step, to weights that no forward survives, and take that back. */
static void skip_at(uint32_t at)
{
    run plain, late;
    td_err err = {0};
    open_run(&plain, false);
    open_run(&late, true);
    exec_step s = {.number = 1, .clip = (double)INFINITY};
    T_OK(step(&plain, 1, s, &err), &err);
    T_OK(step(&late, 1, s, &err), &err);
    T_OK(exec_settle(late.x, &err), &err);
    exec_buffer(late.x, at, SIZE_GRADS, at)[0] = NAN;
    T_OK(step(&late, 2, (exec_step){.number = 2, .skip = true, .lr = INFINITY}, &err), &err);
    assert_int_equal(count_stepped(&late), at);
    T_OK(step(&plain, 3, (exec_step){.number = 2}, &err), &err);
    T_OK(step(&late, 3, (exec_step){.number = 3}, &err), &err);
    const bool finite = isfinite(late.x->grad_norm);
    assert_false(finite);
    assert_memory_equal(&plain.loss, &late.loss, sizeof plain.loss);
    T_OK(exec_settle(late.x, &err), &err);
    assert_same(&plain, &late);
    exec_buffer(late.x, at, SIZE_GRADS, at)[0] = NAN;
    T_OK(step(&late, 4, (exec_step){.number = 3}, &err), &err);
    T_FAILS(exec_settle(late.x, &err), TD_EMISMATCH, &err, "step 3: the gradient of");
    close_run(&plain);
    close_run(&late);
}

static void test_skipped(void **state)
{
    (void)state;
    for (uint32_t at = 0; at < STAGES; at++) skip_at(at);
}

int main(void)
{
    const struct CMUnitTest tests[] = {T_TEST(test_law), T_TEST(test_copies),
                                       cmocka_unit_test(test_some_step),
                                       cmocka_unit_test(test_skipped)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
