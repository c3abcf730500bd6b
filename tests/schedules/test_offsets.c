/* Where buffers lie: no arena is smaller than what lives at once, and few are much larger. That no
 * two live buffers share bytes is plan_check's law, and lowering runs it. */
#include "schedule_gen.h"
#include "schedules/plan.h"
#include "t.h"

static int64_t rounded(int64_t bytes) { return (bytes + PLAN_ALIGN - 1) / PLAN_ALIGN * PLAN_ALIGN; }

/* The most bytes that come and go on a rank and live at one compute position. */
static int64_t most_alive(const plan *p, const plan_rank *r)
{
    const plan_buffer *const b = &p->buffers[r->first_buffer];
    int64_t most = 0;
    for (uint32_t i = 0; i < r->n_buffers; i++) { /* the peak is at some birth */
        int64_t n = 0;
        for (uint32_t j = 0; j < r->n_buffers; j++)
            if (b[j].death != UINT32_MAX && b[j].birth <= b[i].birth && b[i].birth <= b[j].death)
                n += rounded(p->bclasses[b[j].bclass].bytes);
        if (n > most) most = n;
    }
    return most;
}

static void lower(const schedule *s, const model_desc *m, int64_t seq_len, td_arena *a, plan *out)
{
    td_err err = {0};
    stage_desc *const stages = TD_NEW_N(a, stage_desc, s->n_stages);
    for (int32_t i = 0; i < s->n_stages; i++)
        stages[i] = (stage_desc){.first_layer = i,
                                 .n_layers = i < m->n_layers ? 1 : 0,
                                 .embedding = i == 0,
                                 .head = i == s->n_stages - 1};
    const sizes z = {.model = m,
                     .stages = stages,
                     .n_stages = s->n_stages,
                     .chunks = 1,
                     .run = {.micro_batch = 2, .seq_len = seq_len, .tp = 1, .dp = 1}};
    const lower_options o = {.sizes = &z, .dp = 1, .tp = 1};
    T_OK(plan_lower(s, &o, a, out, &err), &err);
}

static void test_arenas_are_tight(void **state)
{
    (void)state;
    td_err err = {0};
    model_desc m;
    T_OK(model_load("tiny-llama", &m, &err), &err);
    int64_t need = 0, have = 0;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        td_arena *const a = td_arena_new();
        const schedule s = gen_schedule(a, seed);
        plan p;
        lower(&s, &m, 12, a, &p);
        for (uint32_t r = 0; r < p.n_ranks; r++) {
            const int64_t alive = most_alive(&p, &p.ranks[r]);
            const int64_t room = p.ranks[r].arena_bytes - p.ranks[r].persistent_bytes;
            assert_true(room >= alive);
            need += alive;
            have += room;
        }
        td_arena_free(a);
    }
    assert_true(have * 100 <= need * 102);
}

/* Slices of many sizes leave holes behind when they come and go in order of birth: there the worst
 * rank would need 1.46 times what lives. */
static void test_uneven_slices(void **state)
{
    (void)state;
    static const int32_t tokens[] = {30, 16, 10, 8};
    td_err err = {0};
    td_arena *const a = td_arena_new();
    model_desc m;
    T_OK(model_load("tiny-llama", &m, &err), &err);
    const sched_request q = {.pp = 4, .microbatches = 12, .slices = 4, .slice_tokens = tokens};
    schedule s;
    plan p;
    T_OK(sched_generate("seq1f1b", &q, a, &s, &err), &err);
    lower(&s, &m, 64, a, &p);
    for (uint32_t r = 0; r < p.n_ranks; r++) {
        const int64_t room = p.ranks[r].arena_bytes - p.ranks[r].persistent_bytes;
        assert_true(room * 100 <= most_alive(&p, &p.ranks[r]) * 115);
    }
    td_arena_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_arenas_are_tight),
                                       cmocka_unit_test(test_uneven_slices)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
