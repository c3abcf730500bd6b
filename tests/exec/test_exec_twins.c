/* Schedules with several copies of the weights: loss and gradients are those of one rank, copies
 * stay equal bit for bit, memory is as predicted. */
#include "exec/data.h"
#include "exec_law.h"
#include "schedule_gen.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const model_desc *const models[] = {&law_gpt2, &law_llama, &law_bert};

/* One case in an arena of its own; `exact`: whether bit-for-bit equality is to be demanded. */
static void hold(const exec_law *k, const char *name, const char *option, int32_t pp,
                 int32_t chunks, int32_t m, bool exact)
{
    td_arena *const a = td_arena_new();
    const check_result r = exec_law_named(k, name, option, pp, chunks, m, a, NULL);
    if (r.exact != exact)
        fail_msg("%s: order of sums is %s", name, r.exact ? "the reference's" : "another");
    assert_true(r.copies);
    td_arena_free(a);
}

static void test_two_directions(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        const exec_law k = {.model = models[i]};
        for (int32_t d = 2; d <= 4; d += 2)
            for (int32_t n = d; n <= (i == 0 ? 4 : 2) * d; n *= 2) {
                hold(&k, "bitpipe", NULL, d, 2, n, false);
                hold(&k, "chimera", NULL, d, 1, n, false);
            }
    }
    const exec_law k = {.model = &law_gpt2, .steps = 2};
    hold(&k, "bitpipe", NULL, 8, 2, 8, false);
    hold(&k, "chimera", NULL, 8, 1, 16, false);
}

/* One copy of the weights: each stage adds its microbatches in order. */
static void test_waves(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        const exec_law k = {.model = models[i]};
        for (int32_t d = 2; d <= 4; d += 2)
            for (int32_t n = d; n <= (i == 0 ? 4 : 2) * d; n *= 2)
                hold(&k, "hanayo", NULL, d, 2, n, true);
    }
    const exec_law k = {.model = &law_llama, .steps = 2};
    hold(&k, "hanayo", NULL, 2, 4, 4, true);
    hold(&k, "hanayo", NULL, 8, 2, 8, true);
}

static void test_options(void **state)
{
    (void)state;
    const exec_law k = {.model = &law_gpt2};
    static const char *const syncs[] = {"sync=eager", "sync=end", "sync=original"};
    for (size_t i = 0; i < 3; i++) {
        hold(&k, "bitpipe", syncs[i], 4, 2, 8, false);
        hold(&k, "chimera", syncs[i], 4, 1, 8, false);
    }
    hold(&k, "bitpipe", "vshape=0", 4, 2, 8, false); /* the ends' ranks hold one end each */
    hold(&k, "bitpipe", "gap=2", 4, 2, 8, false);
    hold(&k, "chimera", "doubling=1", 4, 1, 8, false);
    hold(&k, "chimera", "f=2", 4, 1, 8, false);
}

static void test_recomputation_and_mappings(void **state)
{
    (void)state;
    for (int mode = RECOMPUTE_SELECTIVE; mode <= RECOMPUTE_FULL; mode++)
        for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
            const exec_law k = {.model = models[i], .recompute = (recompute_mode)mode, .steps = 2};
            hold(&k, "bitpipe", NULL, 2, 2, 4, false);
        }
    for (int mapping = MAPPING_CHANNEL; mapping <= MAPPING_SINGLE; mapping++) {
        const exec_law k = {
            .model = &law_gpt2, .mapping = (plan_mapping)mapping, .jitter_ns = 200000, .steps = 2};
        hold(&k, "bitpipe", NULL, 4, 2, 8, false);
        hold(&k, "chimera", NULL, 4, 1, 4, false);
    }
}

static void test_replicas(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        const exec_law k = {.model = models[i], .dp = 2, .steps = 3};
        hold(&k, "bitpipe", NULL, 2, 2, 4, false);
        hold(&k, "bitpipe", "vshape=0", 4, 2, 4, false);
        hold(&k, "chimera", "f=2", 4, 1, 4, false);
        hold(&k, "hanayo", NULL, 2, 2, 4, false);
        hold(&k, "1f1b", NULL, 2, 1, 3, false);
        hold(&k, "interleaved-1f1b", NULL, 2, 2, 4, false);
    }
    const exec_law k = {.model = &law_gpt2, .dp = 3, .steps = 3};
    hold(&k, "gpipe", NULL, 2, 1, 2, false);
    hold(&k, "chimera", NULL, 2, 1, 2, false);
}

/* A forward and a backward in one cell, and split backwards. Folded in half there is one copy. */
static void test_overlapped_pairs(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        const exec_law k = {.model = models[i]};
        for (int32_t d = 2; d <= 4; d += 2)
            for (int32_t n = 2 * d; n <= (i == 0 ? 4 : 2) * d; n *= 2) {
                hold(&k, "dualpipe", NULL, d, 1, n, false);
                hold(&k, "dualpipev", NULL, d, 2, n, true);
            }
        const exec_law full = {.model = models[i], .recompute = RECOMPUTE_FULL, .steps = 2};
        hold(&full, "dualpipe", NULL, 4, 1, 8, false);
        hold(&full, "dualpipev", NULL, 2, 2, 4, true);
        const exec_law shared = {.model = models[i], .dp = 2, .zero1 = true, .steps = 3};
        hold(&shared, "dualpipe", "sync=end", 2, 1, 4, false);
        hold(&shared, "dualpipev", NULL, 2, 2, 4, false);
    }
    const exec_law k = {.model = &law_gpt2, .steps = 2, .jitter_ns = 200000};
    hold(&k, "dualpipe", "overlap=0", 4, 1, 8, false);
    hold(&k, "dualpipe", NULL, 8, 1, 16, false);
}

/* Bytes of a rank's optimizer state. */
static int64_t optimizer_bytes(const plan *p, uint32_t rank)
{
    int64_t n = 0;
    for (uint32_t i = 0; i < p->ranks[rank].n_buffers; i++) {
        const plan_bclass *const c =
            &p->bclasses[p->buffers[p->ranks[rank].first_buffer + i].bclass];
        if (c->what == SIZE_OPTIMIZER) n += c->bytes;
    }
    return n;
}

/* ZeRO-1: gradients in pieces, each copy updates its own, all get the weights; one optimizer state
 * a stage, however many copies it has. Copies that do not divide the pieces too. */
static void test_shared_optimizer(void **state)
{
    (void)state;
    static const struct {
        const char *name, *option;
        int32_t pp, chunks, m, dp;
    } cases[] = {
        {"1f1b", NULL, 2, 1, 4, 2},
        {"1f1b", NULL, 1, 1, 2, 3},
        {"interleaved-1f1b", NULL, 2, 2, 4, 2},
        {"bitpipe", NULL, 2, 2, 4, 1},
        {"bitpipe", "sync=end", 4, 2, 4, 2},
        {"bitpipe", "vshape=0", 4, 2, 4, 1},
        {"chimera", NULL, 4, 1, 4, 3},
        {"chimera", "f=2", 4, 1, 4, 1},
        {"hanayo", NULL, 2, 2, 2, 5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t j = 0; j < sizeof models / sizeof *models; j++) {
            td_arena *const a = td_arena_new();
            const exec_law k = {.model = models[j], .dp = cases[i].dp, .steps = 3, .zero1 = true};
            exec_law whole = k;
            whole.zero1 = false;
            plan p, q;
            (void)exec_law_named(&k, cases[i].name, cases[i].option, cases[i].pp, cases[i].chunks,
                                 cases[i].m, a, &p);
            (void)exec_law_named(&whole, cases[i].name, cases[i].option, cases[i].pp,
                                 cases[i].chunks, cases[i].m, a, &q);
            const int64_t copies = (int64_t)p.n_pipes * p.dp;
            for (uint32_t r = 0; r < p.n_ranks; r++) {
                const int64_t all = optimizer_bytes(&q, r), own = optimizer_bytes(&p, r);
                /* an element of each moment more where a part (three a stage) does not divide */
                assert_in_range(own, all / copies, all / copies + 3 * 8 * p.n_stages);
                assert_true(p.ranks[r].arena_bytes < q.ranks[r].arena_bytes);
            }
            td_arena_free(a);
        }
}

/* Who sends to whom for a tied table: nobody where a rank holds both ends, of whichever pipe. */
static void test_tied_tables_stay_local(void **state)
{
    (void)state;
    static const struct {
        const char *name, *option;
        int32_t pp, chunks, m;
        uint32_t ties; /* collectives */
    } cases[] = {
        {"bitpipe", NULL, 4, 2, 4, 0},       {"chimera", NULL, 4, 1, 4, 0},
        {"chimera", "f=2", 4, 1, 4, 0},      {"hanayo", NULL, 4, 2, 4, 0},
        {"bitpipe", "vshape=0", 4, 2, 4, 0}, {"1f1b", NULL, 4, 1, 4, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        td_arena *const a = td_arena_new();
        const exec_law k = {.model = &law_gpt2, .steps = 1};
        plan p;
        (void)exec_law_named(&k, cases[i].name, cases[i].option, cases[i].pp, cases[i].chunks,
                             cases[i].m, a, &p);
        uint32_t n = 0;
        for (uint32_t c = 0; c < p.n_colls; c++)
            n +=
                p.classes[p.tasks[p.coll_tasks[p.colls[c].first_task]].cls].purpose == PURPOSE_TIED;
        if (n != cases[i].ties) fail_msg("%s: %u ties", cases[i].name, n);
        td_arena_free(a);
    }
}

/* Three steps under delays of this seed; arenas[r]: what rank r keeps from step to step. */
static void run_three(const char *name, bool zero1, uint64_t delays, td_arena *a, const plan *p,
                      const sizes *z, char **arenas)
{
    td_err err = {0};
    executor *x = NULL;
    const exec_options o = {.threads_per_rank = 1 + (int)(delays % 2),
                            .deadline_ns = 60000000000,
                            .jitter_ns = 300000,
                            .jitter_seed = delays};
    if (exec_open(p, z, &o, a, &x, &err) != TD_OK) fail_msg("%s %d: %s", name, zero1, err.msg);
    exec_init(x, 4);
    int32_t ids[24], targets[24];
    for (long step = 1; step <= 3; step++) {
        for (int32_t i = 0; i < p->n_microbatches * p->dp; i++) {
            corpus_random((uint64_t)(step * 100 + i), 61, 24, ids, targets);
            exec_tokens(x, i / p->n_microbatches, i % p->n_microbatches, ids, targets);
        }
        const exec_step s = {
            .lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .clip = 1.0, .number = step};
        double loss = 0;
        if (exec_run_step(x, &s, &loss, &err) != TD_OK) fail_msg("%s: %s", name, err.msg);
    }
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        const size_t bytes = (size_t)p->ranks[r].persistent_bytes;
        arenas[r] = td_alloc(a, 1, bytes);
        memcpy(arenas[r], x->ranks[r].arena.base, bytes);
    }
    exec_close(x);
}

/* Whoever comes first, sums are in member order: weights and moments are the same bits again. */
static void test_same_bits_again(void **state)
{
    (void)state;
    static const char *const names[] = {"bitpipe", "chimera", "1f1b"};
    for (int i = 0; i < 6; i++) {
        td_arena *const a = td_arena_new();
        const exec_law k = {.model = &law_gpt2, .dp = 2, .steps = 1, .zero1 = i >= 3};
        plan p;
        sizes z;
        (void)exec_law_named(&k, names[i % 3], NULL, 2, 0, 4, a, &p);
        exec_law_sizes(&k, &p, &z);
        char *once[16], *again[16];
        run_three(names[i % 3], i >= 3, 1, a, &p, &z, once);
        run_three(names[i % 3], i >= 3, 2, a, &p, &z, again);
        for (uint32_t r = 0; r < p.n_ranks; r++)
            if (memcmp(once[r], again[r], (size_t)p.ranks[r].persistent_bytes) != 0)
                fail_msg("%s: rank %u has other bits", names[i % 3], r);
        td_arena_free(a);
    }
}

/* Any placement and order, ends on any ranks, microbatches on any pipe, slices, split backwards. */
static void test_random_schedules(void **state)
{
    (void)state;
    int twins = 0, sliced = 0;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        td_arena *const a = td_arena_new();
        const schedule s = gen_schedule(a, seed);
        const exec_law k = {.model = models[seed % (s.n_slices > 1 ? 2 : 3)], /* BERT is whole */
                            .dp = 1 + (int32_t)(seed % 2),
                            .zero1 = seed / 2 % 2 == 0,
                            .steps = 2};
        (void)exec_law_holds(&k, &s, a, NULL);
        twins += s.n_pipes > 1;
        sliced += s.n_pipes > 1 && s.n_slices > 1;
        td_arena_free(a);
    }
    assert_true(twins > 6 && sliced > 3);
}

/* The middle one of three ranks holds both ends, but adds each to that of another rank: it must not
 * add its own two to each other as well. */
static void test_ends_in_a_chain(void **state)
{
    (void)state;
    int held = 0;
    for (uint64_t seed = 1; held < 3; seed++) {
        td_arena *const a = td_arena_new();
        const schedule s = gen_schedule(a, seed);
        const int32_t first = s.pipes[0].backward_row[0];
        const bool chain = s.n_pipes == 2 && s.n_rows > 2 && first + 2 < s.n_rows &&
                           s.pipes[0].backward_row[s.n_stages - 1] == first + 1;
        if (chain) {
            const exec_law k = {.model = &law_gpt2, .steps = 2, .zero1 = held % 2 == 1};
            (void)exec_law_holds(&k, &s, a, NULL);
            held++;
        }
        td_arena_free(a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_directions),
        cmocka_unit_test(test_waves),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_recomputation_and_mappings),
        cmocka_unit_test(test_replicas),
        cmocka_unit_test(test_shared_optimizer),
        cmocka_unit_test(test_tied_tables_stay_local),
        cmocka_unit_test(test_random_schedules),
        cmocka_unit_test(test_ends_in_a_chain),
        cmocka_unit_test(test_same_bits_again),
        cmocka_unit_test(test_overlapped_pairs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
