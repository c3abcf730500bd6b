/* Plans on a device, without one: a stand-in shows that what streams and events are given orders
 * all that the plan orders, and that the numbers are those of the cores. */
#include "t.h"

#include "exec/data.h"
#include "exec/device_run.h"
#include "tests/exec/exec_law.h"
#include "tests/exec/standin.h"

typedef struct shape {
    const char *name, *option;
    const model_desc *model;
    int32_t pp, chunks, microbatches, dp;
    bool zero1;
} shape;

static const shape shapes[] = {
    {"1f1b", NULL, &law_gpt2, 4, 1, 8, 1, false},
    {"gpipe", NULL, &law_llama, 2, 1, 4, 2, true},
    {"interleaved-1f1b", NULL, &law_gpt2, 2, 2, 4, 2, false},
    {"zb-h1", NULL, &law_llama, 4, 1, 8, 1, false},
    {"zb-v", NULL, &law_gpt2, 2, 2, 6, 1, false},
    {"chimera", NULL, &law_llama, 4, 1, 4, 1, false},
    {"dualpipe", NULL, &law_gpt2, 4, 1, 8, 1, false},
    {"seq1f1b", NULL, &law_llama, 2, 1, 4, 1, false},
    {"hanayo", NULL, &law_bert, 2, 2, 4, 1, false},
    {"fbd", NULL, &law_llama, 2, 1, 4, 1, false},
    {"vocab-1", NULL, &law_llama, 2, 1, 6, 1, false},
    {"vocab-2", NULL, &law_gpt2, 2, 1, 6, 1, false},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static exec_law law_of(const shape *s, device *d)
{
    return (exec_law){.model = s->model, .dp = s->dp, .zero1 = s->zero1, .steps = 2, .device = d};
}

static void numbers_are_those_of_the_cores(void **state)
{
    for (int i = 0; i < SHAPES; i++) {
        const shape *const s = &shapes[i];
        td_arena *const a = td_arena_new();
        device d;
        standin_open(a, 0, &d);
        const exec_law on_device = law_of(s, &d), on_cores = law_of(s, NULL);
        const check_result r = exec_law_named(&on_device, s->name, s->option, s->pp, s->chunks,
                                              s->microbatches, a, NULL);
        const check_result c = exec_law_named(&on_cores, s->name, s->option, s->pp, s->chunks,
                                              s->microbatches, a, NULL);
        assert_memory_equal(&r.loss, &c.loss, sizeof r.loss);
        T_CLOSE(r.gradients.max_rel_err, c.gradients.max_rel_err, 0, 0);
        T_CLOSE(r.weights.max_rel_err, c.weights.max_rel_err, 0, 0);
        assert_true(standin_moves(&d) > 0);
        d.methods->close(&d);
        td_arena_free(a);
    }
    (void)state;
}

static void run_step(executor *x)
{
    td_err err = {0};
    const plan *const p = x->p;
    const int64_t n = x->z->run.micro_batch * x->z->run.seq_len;
    int32_t *const ids = test_calloc((size_t)(2 * n), sizeof *ids);
    double loss = 0;
    exec_init(x, 5);
    for (int32_t m = 0; m < p->n_microbatches * p->dp; m++) {
        corpus_random(7 + (uint64_t)m, x->z->model->vocab, n, ids, ids + n);
        exec_tokens(x, m / p->n_microbatches, m % p->n_microbatches, ids, ids + n);
    }
    const exec_step s = {
        .lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .clip = 1, .number = 1};
    T_OK(exec_run_step(x, &s, &loss, &err), &err);
    test_free(ids);
}

/* What the plan orders and the events do not. */
static int unordered(const executor *x)
{
    const plan *const p = x->p;
    const device_run *const v = x->device;
    int bad = 0;
    for (uint32_t i = 0; i < p->n_streams; i++) {
        const plan_stream *const s = &p->streams[i];
        for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++) {
            const plan_task *const k = &p->tasks[t];
            bad += !standin_before(v->begins[t], v->ends[t]);
            if (s->kind == STREAM_COMPUTE) {
                bad += t > s->first_task && !standin_before(v->ends[t - 1], v->begins[t]);
                continue;
            }
            if (k->gate != PLAN_NONE) bad += !standin_before(v->ends[k->gate], v->begins[t]);
            if (k->join != PLAN_NONE && (k->flags & TASK_FLAG_JOIN_NEXT) == 0)
                bad += !standin_before(v->ends[t], v->begins[k->join]);
            if (k->kind == TASK_SEND || k->kind == TASK_RECV)
                bad += !standin_before(v->begins[k->link], v->ends[t]);
        }
    }
    return bad;
}

static int order_of(const shape *s, int forget, int *waits)
{
    td_arena *const a = td_arena_new();
    td_err err = {0};
    device d;
    plan p;
    sizes z;
    executor *x = NULL;
    const exec_law k = law_of(s, NULL);
    (void)exec_law_named(&k, s->name, s->option, s->pp, s->chunks, s->microbatches, a, &p);
    exec_law_sizes(&k, &p, &z);
    standin_open(a, forget, &d);
    const exec_options o = {.threads_per_rank = 1, .device = &d};
    T_OK(exec_open(&p, &z, &o, a, &x, &err), &err);
    run_step(x);
    const int bad = unordered(x);
    *waits = standin_waits(&d);
    exec_close(x);
    d.methods->close(&d);
    td_arena_free(a);
    return bad;
}

static void events_order_what_the_plan_orders(void **state)
{
    (void)state;
    int waits = 0;
    for (int i = 0; i < SHAPES - 2; i++)
        if (order_of(&shapes[i], 0, &waits) != 0)
            fail_msg("%s: some edges of the plan are not kept by events", shapes[i].name);
}

/* Without one of its waits a run is seen to lack order: the check can fail. */
static void a_missing_wait_is_seen(void **state)
{
    (void)state;
    int waits = 0, seen = 0;
    assert_int_equal(order_of(&shapes[0], 0, &waits), 0);
    for (int k = waits / 3; k < waits / 3 + 8; k++) {
        int again = 0;
        seen += order_of(&shapes[0], k, &again) > 0;
    }
    assert_true(seen >= 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_are_those_of_the_cores),
        cmocka_unit_test(events_order_what_the_plan_orders),
        cmocka_unit_test(a_missing_wait_is_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
