/* The law of the executor for slices of microbatches and for split backwards: gradients are those
 * of one rank, bit for bit where microbatches are whole and added in order, and memory is as
 * planned. */
#include "exec_law.h"

#include "schedule_gen.h"
#include "schedules/schedule_build.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static const model_desc *const models[] = {&law_gpt2, &law_llama, &law_bert};

/* --- random schedules --- */

static bool is_split(const schedule *s)
{
    for (int32_t r = 0; r < s->n_rows; r++)
        for (int64_t i = 0; i < s->rows[r].n_cells; i++)
            if (s->rows[r].cells[i].kind == PASS_W) return true;
    return false;
}

static void test_random_schedules(void **state)
{
    (void)state;
    int sliced = 0, split = 0, both = 0;
    for (uint64_t seed = 100; seed < 160; seed++) {
        td_arena *const a = td_arena_new();
        const schedule s = gen_schedule(a, seed);
        const exec_law k = {.model = models[seed % (s.n_slices > 1 ? 2 : 3)],
                            .recompute = (recompute_mode)(seed / 3 % 3),
                            .mapping = MAPPING_CHANNEL,
                            .dp = 1 + (seed % 7 == 0),
                            .steps = 2};
        (void)exec_law_holds(&k, &s, a, NULL);
        sliced += s.n_slices > 1;
        split += is_split(&s);
        both += s.n_slices > 1 && is_split(&s);
        td_arena_free(a);
    }
    assert_true(sliced > 20 && split > 20 && both > 10);
}

/* --- slices --- */

static void sliced_law(const exec_law *k, const char *name, int32_t pp, int32_t m, int32_t slices,
                       const int32_t *tokens)
{
    td_arena *const a = td_arena_new();
    td_err err = {0};
    const sched_request q = {.pp = pp, .microbatches = m, .slices = slices, .slice_tokens = tokens};
    schedule s;
    if (sched_generate(name, &q, a, &s, &err) != TD_OK) fail_msg("%s: %s", name, err.msg);
    const check_result r = exec_law_holds(k, &s, a, NULL);
    assert_false(r.exact && slices > 1);
    td_arena_free(a);
}

static void test_sliced_schedules(void **state)
{
    (void)state;
    static const char *const names[] = {"seq1f1b", "seq1f1b-i", "seq1f1b-zb", "terapipe"};
    static const int32_t uneven[3][4] = {{11, 1}, {3, 1, 8}, {1, 6, 3, 2}};
    for (int32_t pp = 2; pp <= 4; pp += 2)
        for (int32_t slices = 2; slices <= 4; slices++)
            for (int i = 0; i < 4; i++)
                for (int even = 0; even < 2; even++) {
                    const exec_law k = {.model = models[(i + slices) % 2],
                                        .recompute = (recompute_mode)((i + even) % 3),
                                        .steps = 2};
                    sliced_law(&k, names[i], pp, 2 + 2 * ((i + even) % 2), slices,
                               even ? NULL : uneven[slices - 2]);
                }
}

/* One token a slice. */
static void test_slices_of_one_token(void **state)
{
    (void)state;
    const exec_law k = {.model = &law_llama, .seq_len = 6, .steps = 2};
    sliced_law(&k, "seq1f1b-zb", 2, 2, 6, NULL);
}

/* --- split backwards --- */

/* 1F1B with every B cut in two: W runs `lag` units behind I. */
static schedule split_1f1b(td_arena *a, int32_t pp, int32_t m, int32_t lag)
{
    schedule s;
    if (sched_new(a, pp, pp, 1, m, 1, &s, NULL) != TD_OK) fail();
    s.name = "split 1f1b";
    for (int32_t r = 0; r < pp; r++) {
        sched_place(&s, 0, r, r);
        row_writer w = row_writer_of(a, &s, r);
        const int32_t ahead = pp - 1 - r < m ? pp - 1 - r : m;
        for (int32_t i = 0; i < ahead; i++) row_add(&w, PASS_F, r, i, 0);
        for (int32_t i = 0; i < m + lag; i++) {
            if (ahead + i < m) row_add(&w, PASS_F, r, ahead + i, 0);
            if (i < m) row_add(&w, PASS_I, r, i, 0);
            if (i >= lag) row_add(&w, PASS_W, r, i - lag, 0);
        }
    }
    return s;
}

static void test_split_is_exact(void **state)
{
    (void)state;
    for (int32_t pp = 1; pp <= 4; pp *= 2)
        for (int32_t m = 2; m <= 8; m += 3)
            for (int i = 0; i < 9; i++) {
                td_arena *const a = td_arena_new();
                const schedule s = split_1f1b(a, pp, m, i % 4);
                const exec_law k = {
                    .model = models[i % 3], .recompute = (recompute_mode)(i / 3), .steps = 2};
                assert_true(exec_law_holds(&k, &s, a, NULL).exact);
                td_arena_free(a);
            }
}

/* More stages than layers: the head stands alone on the last row, and others have nothing to do. */
static void test_stages_without_layers(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        td_arena *const a = td_arena_new();
        const schedule s = split_1f1b(a, 10, 3, 2);
        const exec_law k = {.model = models[i], .recompute = (recompute_mode)i, .steps = 2};
        const exec_law kept = {.model = models[i], .steps = 2};
        assert_true(exec_law_holds(&k, &s, a, NULL).exact);
        assert_true(exec_law_holds(&kept, &s, a, NULL).exact);
        td_arena_free(a);
    }
}

static void test_zero_bubble_schedules(void **state)
{
    (void)state;
    static const char *const names[] = {"zb-h1", "zb-h2",  "zb-v",          "v-half",
                                        "v-min", "1f1b-v", "interleaved-zb"};
    for (int32_t pp = 2; pp <= 4; pp += 2)
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            for (int32_t m = 8; m <= 12; m += 4) {
                td_arena *const a = td_arena_new();
                const exec_law k = {.model = models[(i + (size_t)(m / 4)) % 2],
                                    .recompute = (recompute_mode)((i + (size_t)pp / 2) % 3),
                                    .steps = 2};
                assert_true(exec_law_named(&k, names[i], NULL, pp, 0, m, a, NULL).exact);
                td_arena_free(a);
            }
}

/* Weight gradients out of order: right, but no longer the same bits. */
static void test_split_in_another_order(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    schedule s = split_1f1b(a, 2, 4, 2);
    sched_row *const row = &s.rows[1];
    sched_cell *const last = &row->cells[row->n_cells - 1], kept = *last;
    assert_true(last[0].kind == PASS_W && last[-1].kind == PASS_W);
    last[0] = last[-1];
    last[-1] = kept;
    const exec_law k = {.model = &law_gpt2, .steps = 2};
    assert_false(exec_law_holds(&k, &s, a, NULL).exact);
    td_arena_free(a);
}

/* More rows than the head has in one piece. */
static void test_long_sequences(void **state)
{
    (void)state;
    for (int mode = RECOMPUTE_NONE; mode <= RECOMPUTE_FULL; mode++) {
        td_arena *const a = td_arena_new();
        const schedule s = split_1f1b(a, 2, 2, 1);
        const exec_law k = {
            .model = &law_llama, .seq_len = 150, .recompute = (recompute_mode)mode, .steps = 2};
        assert_true(exec_law_holds(&k, &s, a, NULL).exact);
        assert_true(exec_law_named(&k, "1f1b", NULL, 2, 1, 2, a, NULL).exact);
        td_arena_free(a);
    }
}

/* --- overlapped pairs --- */

static bool is_forward(const sched_cell *c) { return c->kind == PASS_F; }

/* Joins neighbours, a forward and something else, wherever that leaves the schedule sound. */
static int overlap_some(schedule *s, td_rng *r)
{
    int n = 0;
    for (int32_t row = 0; row < s->n_rows; row++)
        for (int64_t i = 0; i + 1 < s->rows[row].n_cells; i++) {
            sched_cell *const c = &s->rows[row].cells[i];
            if (is_forward(&c[0]) == is_forward(&c[1]) || td_rng_below(r, 2) == 0) continue;
            td_err err = {0};
            c->overlaps = 1;
            if (sched_check(s, &err) == TD_OK) {
                n++;
                i++;
            } else {
                c->overlaps = 0;
            }
        }
    return n;
}

static void test_overlapped_members(void **state)
{
    (void)state;
    td_rng r = td_rng_seed(5);
    int pairs = 0;
    for (uint64_t seed = 200; seed < 225; seed++) {
        td_arena *const a = td_arena_new();
        schedule s = gen_schedule(a, seed);
        pairs += overlap_some(&s, &r);
        const exec_law k = {.model = models[seed % 2], .steps = 1};
        (void)exec_law_holds(&k, &s, a, NULL);
        td_arena_free(a);
    }
    assert_true(pairs > 40);
}

/* --- memory --- */

/* Sixteen layers, and tensors whose sizes divide by four and stay aligned. */
static model_desc deep_llama(void)
{
    model_desc m = law_llama;
    m.n_layers = 16;
    m.hidden = 32;
    m.n_heads = 4;
    m.n_kv_heads = 2;
    m.head_dim = 8;
    return m;
}

static int64_t activation_peak(const exec_law *k, const char *name, int32_t pp, int32_t chunks,
                               int32_t m)
{
    td_arena *const a = td_arena_new();
    plan p;
    (void)exec_law_named(k, name, NULL, pp, chunks, m, a, &p);
    int64_t most = 0;
    for (uint32_t r = 0; r < p.n_ranks; r++) {
        const int64_t n = p.ranks[r].arena_bytes - p.ranks[r].persistent_bytes;
        if (n > most) most = n;
    }
    td_arena_free(a);
    return most;
}

/* Measured, because exec_law_holds demands that what is touched is what is predicted. */
static void test_controllable_memory(void **state)
{
    (void)state;
    const model_desc model = deep_llama();
    const exec_law k = {.model = &model, .seq_len = 32, .steps = 1};
    for (int32_t pp = 4; pp <= 8; pp += 4) {
        const int64_t plain = activation_peak(&k, "1f1b", pp, 1, 2 * pp);
        const int64_t half = activation_peak(&k, "v-half", pp, 0, 2 * pp);
        const int64_t min = activation_peak(&k, "v-min", pp, 0, 2 * pp);
        assert_true(min < half);
        assert_true(half < plain);
    }
}

/* The most bytes of stashes, keys and values that live at once on a rank. */
static int64_t kept_peak(const plan *p, uint32_t rank)
{
    const plan_buffer *const b = &p->buffers[p->ranks[rank].first_buffer];
    int64_t most = 0;
    for (uint32_t at = 0; at < plan_compute(p, rank)->n_tasks; at++) {
        int64_t n = 0;
        for (uint32_t i = 0; i < p->ranks[rank].n_buffers; i++) {
            const plan_bclass *const c = &p->bclasses[b[i].bclass];
            if ((c->what == SIZE_STASH || c->what == SIZE_KV) && b[i].birth <= at &&
                at <= b[i].death)
                n += c->bytes;
        }
        if (n > most) most = n;
    }
    return most;
}

/* Rank r of Seq1F1B holds (P - r + S - 1)/S microbatches, of 1F1B P - r. */
static void test_slices_hold_less(void **state)
{
    (void)state;
    const model_desc model = deep_llama();
    const exec_law k = {.model = &model, .seq_len = 64, .steps = 1};
    const int32_t pp = 4;
    td_arena *const a = td_arena_new();
    plan whole;
    (void)exec_law_named(&k, "1f1b", NULL, pp, 1, 8, a, &whole);
    for (int32_t slices = 2; slices <= 4; slices += 2) {
        const sched_request q = {.pp = pp, .microbatches = 8, .slices = slices};
        schedule s;
        plan cut;
        td_err err = {0};
        assert_int_equal(sched_generate("seq1f1b", &q, a, &s, &err), TD_OK);
        (void)exec_law_holds(&k, &s, a, &cut);
        for (int32_t r = 0; r < pp; r++)
            assert_int_equal(kept_peak(&cut, (uint32_t)r) * slices * (pp - r),
                             kept_peak(&whole, (uint32_t)r) * (pp - r + slices - 1));
    }
    td_arena_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_schedules),       cmocka_unit_test(test_sliced_schedules),
        cmocka_unit_test(test_slices_of_one_token),    cmocka_unit_test(test_split_is_exact),
        cmocka_unit_test(test_stages_without_layers),  cmocka_unit_test(test_zero_bubble_schedules),
        cmocka_unit_test(test_split_in_another_order), cmocka_unit_test(test_long_sequences),
        cmocka_unit_test(test_overlapped_members),     cmocka_unit_test(test_controllable_memory),
        cmocka_unit_test(test_slices_hold_less),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
