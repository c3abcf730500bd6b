/* Forward-backward disaggregation: what each role holds, who sends weights to whom, what is
 * refused, and its text. */
#include "fbd_case.h"

/* --- memory --- */

static const model_desc llama = {.name = "llama",
                                 .family = MODEL_LLAMA,
                                 .n_layers = 8,
                                 .hidden = 64,
                                 .n_heads = 8,
                                 .n_kv_heads = 4,
                                 .head_dim = 8,
                                 .ffn = 128,
                                 .vocab = 512,
                                 .max_positions = 64,
                                 .gated = true,
                                 .rms_norm = true,
                                 .causal = true,
                                 .rope_theta = 10000,
                                 .norm_eps = 1e-5};

/* The most buffers of a role that live on a rank at one position. */
static int most_alive(const fbd_run *r, uint32_t rank, use_role role)
{
    const plan *const p = &r->p;
    const plan_stream *const s = plan_compute(p, rank);
    uint8_t seen[4096] = {0};
    int most = 0;
    for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++)
        for (uint32_t u = p->tasks[t].first_use; u < p->tasks[t + 1].first_use; u++)
            if (use_role_of(p->uses[u]) == role) seen[use_buffer_of(p->uses[u])] = 1;
    for (uint32_t at = 0; at < s->n_tasks; at++) {
        int n = 0;
        for (uint32_t i = 0; i < p->ranks[rank].n_buffers; i++) {
            const plan_buffer *const b = &p->buffers[p->ranks[rank].first_buffer + i];
            n += seen[i] && b->birth <= at && at <= b->death;
        }
        most = n > most ? n : most;
    }
    return most;
}

/* A lagged forward rank holds W + 1 inputs, one more for each pass of look-ahead; a backward rank
 * one graph and the input under it. */
static void test_held(void **state)
{
    for (int32_t p = 2; p <= 8; p *= 2)
        for (int32_t lookahead = 1; lookahead < 3; lookahead++) {
            fbd_case k = fbd_unit(p, 12, true);
            k.model = &llama;
            k.lookahead = lookahead;
            fbd_run r;
            fbd_lower(&k, *state, &r);
            for (int32_t s = 1; s < p; s++) {
                assert_int_equal(most_alive(&r, (uint32_t)s, ROLE_INPUT), p - s + lookahead - 1);
                assert_int_equal(most_alive(&r, (uint32_t)(p + s), ROLE_INPUT), lookahead);
                assert_int_equal(most_alive(&r, (uint32_t)(p + s), ROLE_STASH), 1);
                assert_int_equal(most_alive(&r, (uint32_t)s, ROLE_STASH), 0);
            }
        }
}

static int64_t bytes_of(const fbd_run *r, size_kind kind, int32_t stage, int64_t tp)
{
    sizes z = r->z;
    z.run.tp = tp;
    int64_t n = 0;
    td_err err = {0};
    T_OK(sizes_bytes(&z, kind, stage, 32, 0, &n, &err), &err);
    return (n + PLAN_ALIGN - 1) / PLAN_ALIGN * PLAN_ALIGN;
}

/* What a rank holds of a kind over the whole run. */
static int64_t held_of(const fbd_run *r, uint32_t rank, size_kind kind)
{
    const plan *const p = &r->p;
    int64_t n = 0;
    for (uint32_t i = 0; i < p->ranks[rank].n_buffers; i++) {
        const plan_buffer *const b = &p->buffers[p->ranks[rank].first_buffer + i];
        if (p->bclasses[b->bclass].what == kind)
            n += (p->bclasses[b->bclass].bytes + PLAN_ALIGN - 1) / PLAN_ALIGN * PLAN_ALIGN;
    }
    return n;
}

static void test_weights(void **state)
{
    for (int merged = 0; merged < 2; merged++)
        for (int all_step = 0; all_step < 2; all_step++) {
            fbd_case k = fbd_unit(4, 8, true);
            k.model = &llama;
            k.tp = 4;
            k.dp = 2;
            k.merged = merged;
            k.all_step = all_step;
            fbd_run r;
            fbd_lower(&k, *state, &r);
            assert_int_equal(plan_devices(&r.p), 4 * 2 * (merged ? 5 : 8));
            const int64_t tp = merged ? 1 : 4;
            for (int32_t s = 0; s < 4; s++)
                for (uint32_t d = 0; d < 2; d++) {
                    const uint32_t f = (uint32_t)(2 * s) + d, b = (uint32_t)(2 * (4 + s)) + d;
                    assert_int_equal(held_of(&r, f, SIZE_WEIGHTS),
                                     bytes_of(&r, SIZE_WEIGHTS, s, tp));
                    assert_int_equal(held_of(&r, b, SIZE_WEIGHTS),
                                     bytes_of(&r, SIZE_WEIGHTS, s, 4));
                    assert_int_equal(held_of(&r, f, SIZE_GRADS),
                                     all_step ? bytes_of(&r, SIZE_GRADS, s, tp) : 0);
                    assert_int_equal(held_of(&r, f, SIZE_OPTIMIZER),
                                     all_step ? bytes_of(&r, SIZE_OPTIMIZER, s, tp) : 0);
                    assert_int_equal(held_of(&r, b, SIZE_OPTIMIZER),
                                     bytes_of(&r, SIZE_OPTIMIZER, s, 4));
                }
        }
}

/* Refresh: one message of the stage's weights to each forward rank, behind the optimizer. All
 * step: the gradients are summed over both roles of all replicas. */
static void test_policies(void **state)
{
    fbd_case k = fbd_unit(4, 4, false);
    k.model = &llama;
    k.dp = 2;
    fbd_run r;
    fbd_lower(&k, *state, &r);
    int sends = 0, syncs = 0;
    for (uint32_t i = 0; i < r.p.n_tasks; i++) {
        const plan_task *const t = &r.p.tasks[i];
        const plan_class *const c = &r.p.classes[t->cls];
        if (t->kind != TASK_SEND || c->detail != CHANNEL_WEIGHTS) continue;
        sends++;
        const plan_inst *const inst = &r.p.insts[c->inst];
        const plan_rank *const src = &r.p.ranks[plan_task_rank(&r.p, i)];
        const plan_rank *const dst = &r.p.ranks[plan_task_rank(&r.p, t->link)];
        assert_int_equal(src->row, inst->backward_row);
        assert_int_equal(dst->row, inst->forward_row);
        assert_int_equal(src->replica, dst->replica);
        assert_int_equal(r.p.tasks[t->gate].kind, TASK_OPTIMIZER);
        int64_t n = 0;
        td_err err = {0};
        T_OK(sizes_bytes(&r.z, SIZE_WEIGHTS, inst->stage, 0, 0, &n, &err), &err);
        assert_int_equal(c->bytes, n);
    }
    assert_int_equal(sends, 8);
    k.all_step = true;
    fbd_lower(&k, *state, &r);
    for (uint32_t i = 0; i < r.p.n_colls; i++) {
        const plan_class *const c =
            &r.p.classes[r.p.tasks[r.p.coll_tasks[r.p.colls[i].first_task]].cls];
        assert_false(c->kind == TASK_SEND);
        if (c->purpose != PURPOSE_GRAD_SYNC) continue;
        syncs++;
        assert_int_equal(r.p.groups[r.p.colls[i].group].n_members, 4);
    }
    assert_int_equal(syncs, 4);
}

/* --- what is refused --- */

static void refuse(td_arena *a, const sched_request *q, const char *why)
{
    schedule s;
    td_err err = {0};
    T_FAILS(sched_generate("fbd", q, a, &s, &err), TD_EUSAGE, &err, why);
}

static void test_refusals(void **state)
{
    const sched_option_value topology = {"topology", "direkt"}, credits = {"credits", "0"},
                             weights = {"weights", "copy"}, merge = {"merge-forward", "2"};
    refuse(*state, &(sched_request){.pp = 2, .microbatches = 2, .chunks = 2}, "--chunks 2");
    refuse(*state, &(sched_request){.pp = 2, .microbatches = 2, .slices = 2}, "--slices 2");
    refuse(*state,
           &(sched_request){.pp = 2, .microbatches = 2, .options = &topology, .n_options = 1},
           "lagged");
    refuse(*state,
           &(sched_request){.pp = 2, .microbatches = 2, .options = &credits, .n_options = 1},
           "legal: 1 and more");
    refuse(*state,
           &(sched_request){.pp = 2, .microbatches = 2, .options = &weights, .n_options = 1},
           "all-step");
    refuse(*state, &(sched_request){.pp = 2, .microbatches = 2, .options = &merge, .n_options = 1},
           "merge-forward");
    /* degrees that do not go together */
    const fbd_case k = fbd_unit(2, 2, false);
    fbd_run r;
    fbd_lower(&k, *state, &r);
    const sizes z = {.n_stages = 2, .chunks = 1};
    const lower_options o = {.sizes = &z, .dp = 1, .tp = 3, .no_step = true};
    td_err err = {0};
    plan p;
    r.s.tp_forward = 2;
    T_FAILS(plan_lower(&r.s, &o, *state, &p, &err), TD_EUSAGE, &err, "must divide");
    r.s.tp_backward = 2;
    T_FAILS(plan_lower(&r.s, &o, *state, &p, &err), TD_EUSAGE, &err, "leave --tp out");
}

static void test_text(void **state)
{
    for (int i = 0; i < 16; i++) {
        fbd_case k = fbd_unit(3, 5, i & 1);
        k.merged = i & 2;
        k.all_step = i & 4;
        k.credits = i & 8 ? 2 : -1;
        schedule s, back;
        fbd_schedule(&k, *state, &s);
        td_text t = {0};
        td_err err = {0};
        sched_print(&s, &t);
        T_OK(sched_parse(t.s, t.len, "printed", *state, &back, &err), &err);
        assert_true(sched_equal(&s, &back));
        back.weights ^= 1u;
        assert_false(sched_equal(&s, &back));
        td_text_free(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(test_held),     T_TEST(test_weights), T_TEST(test_policies),
        T_TEST(test_refusals), T_TEST(test_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
