/* Emulation computes what threads compute: losses and weights of an emulated run equal those of a
 * threaded one, bit for bit, whatever the emulated network is, and whether all ranks have room in
 * memory or take turns there. Does not pin durations. */
#include "exec/data.h"
#include "exec/emulate.h"
#include "schedules/request.h"
#include "sim/sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { STEPS = 3 };

typedef struct emulate_case {
    const char *schedule, *model;
    int64_t pp, microbatches, chunks, dp;
    sim_protocol protocol;
    double comm_ns;
    bool zero1;
    int64_t tp;       /* 0: 1 */
    int64_t together; /* ranks that fit into memory at once; 0: all */
} emulate_case;

static void fill(executor *x, int64_t step)
{
    const plan *const p = x->p;
    enum { ROWS = 2 * 12 };
    int32_t ids[ROWS], targets[ROWS];
    for (int32_t i = 0; i < p->n_microbatches * p->dp; i++) {
        corpus_random((uint64_t)(step * 1000 + i), x->z->model->vocab, ROWS, ids, targets);
        exec_tokens(x, i / p->n_microbatches, i % p->n_microbatches, ids, targets);
    }
}

static exec_step step_of(int64_t number)
{
    return (exec_step){.lr = 1e-3f,
                       .beta1 = 0.9f,
                       .beta2 = 0.95f,
                       .eps = 1e-8f,
                       .weight_decay = 0.1f,
                       .clip = 0.5,
                       .number = number};
}

/* Trains on threads. */
static void train(const run_setup *s, td_arena *a, double *loss, executor **x)
{
    td_err err = {0};
    const exec_options run = {.threads_per_rank = 1};
    if (exec_open(&s->plan, &s->sizes, &run, a, x, &err) != TD_OK) fail_msg("%s", err.msg);
    exec_init(*x, 7);
    for (int64_t i = 1; i <= STEPS; i++) {
        const exec_step step = step_of(i);
        fill(*x, i);
        if (exec_run_step(*x, &step, &loss[i - 1], &err) != TD_OK) fail_msg("%s", err.msg);
    }
}

typedef struct engine {
    const run_setup *s;
    const int64_t *ns;
    const sim_options *o;
    emulation *m;
    td_arena *a;
    task_times t;
} engine;

static td_status run_period(void *self, int64_t *step_ns, td_err *err)
{
    engine *const e = self;
    sim_stats stats = {0};
    emulation_begin(e->m);
    const td_status st = sim_run(&e->s->plan, e->ns, e->o, e->a, &e->t, &stats, err);
    *step_ns = stats.end_ns;
    return st;
}

/* Trains under the engine's clock. */
static void emulate(const run_setup *s, const emulate_case *k, offload *away, td_arena *a,
                    double *loss, executor **x)
{
    td_err err = {0};
    const exec_options run = {.threads_per_rank = 1, .offload = away};
    emulation *m = NULL;
    if (exec_open(&s->plan, &s->sizes, &run, a, x, &err) != TD_OK ||
        emulation_open(*x, a, &m, &err) != TD_OK)
        fail_msg("%s", err.msg);
    exec_init(*x, 7);
    int64_t *const ns = TD_NEW_N(a, int64_t, s->plan.n_classes);
    for (uint32_t c = 0; c < s->plan.n_classes; c++)
        ns[c] = s->plan.classes[c].kind < TASK_SEND ? 0 : (int64_t)k->comm_ns;
    const sim_live live = {.self = m, .compute = emulation_compute, .post = emulation_post};
    const sim_options o = {.protocol = k->protocol, .live = &live};
    engine *const e = TD_NEW(a, engine);
    *e = (engine){.s = s, .ns = ns, .o = &o, .m = m, .a = a};
    (*x)->period = run_period;
    (*x)->period_self = e;
    for (int64_t i = 1; i <= STEPS; i++) {
        const exec_step step = step_of(i);
        fill(*x, i);
        if (exec_run_step(*x, &step, &loss[i - 1], &err) != TD_OK) fail_msg("%s", err.msg);
        assert_true((*x)->now->step_ns > 0);
    }
    for (uint32_t i = 0; i < s->plan.n_tasks; i++)
        if (s->plan.tasks[i].kind < PASS_COUNT) assert_true(e->t.end_ns[i] > e->t.begin_ns[i]);
}

/* Room for so many of the largest ranks. */
static offload *open_offload(const run_setup *s, int64_t together, td_arena *a)
{
    td_err err = {0};
    offload *o = NULL;
    offload_place place;
    int64_t most = 0;
    for (uint32_t i = 0; i < s->plan.n_ranks; i++)
        if (s->plan.ranks[i].arena_bytes > most) most = s->plan.ranks[i].arena_bytes;
    if (together == 0) return NULL;
    if (offload_file("/var/tmp", a, &place, &err) != TD_OK ||
        offload_open(&place, together * rank_arena_room(most), a, &o, &err) != TD_OK)
        fail_msg("%s", err.msg);
    return o;
}

/* kB of a rank's map that are in memory. */
static long resident_kb(const rank_arena *r)
{
    char line[256], want[64];
    long kb = -1;
    bool mine = false;
    FILE *const f = fopen("/proc/self/smaps", "r");
    (void)snprintf(want, sizeof want, "%lx-", (unsigned long)(uintptr_t)r->map);
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (strchr(line, '-') != NULL && strchr("0123456789abcdef", line[0]) != NULL)
            mine = strncmp(line, want, strlen(want)) == 0;
        if (mine && sscanf(line, "Rss: %ld kB", &kb) == 1) break;
    }
    if (f != NULL) (void)fclose(f);
    return kb;
}

static void check_offload(const executor *x, const offload *o)
{
    const offload_stats s = offload_stats_of(o);
    assert_true(s.most_bytes <= s.limit_bytes && s.limit_bytes < s.all_bytes);
    assert_true(s.brought > x->p->n_ranks);
    td_err err = {0};
    assert_int_equal(offload_sweep(x->options.offload, &err), TD_OK);
    uint32_t away = 0;
    for (uint32_t i = 0; i < x->p->n_ranks; i++) {
        if (offload_is_here(o, i)) continue;
        away++;
        assert_true(resident_kb(&x->ranks[i].arena) <= 0);
    }
    assert_true(away > 0);
}

static void run_case(const emulate_case *k)
{
    td_arena *const a = td_arena_new();
    td_err err = {0};
    run_setup *const s = TD_NEW(a, run_setup);
    const request q = {.schedule = k->schedule,
                       .model = k->model,
                       .pp = k->pp,
                       .microbatches = k->microbatches,
                       .chunks = k->chunks,
                       .micro_batch = 2,
                       .seq_len = 12,
                       .tp = k->tp > 1 ? k->tp : 1,
                       .shards = true,
                       .dp = k->dp,
                       .zero1 = k->zero1,
                       .dtype = -1,
                       .grad_dtype = -1};
    if (request_plan(&q, TYPE_FP32, NULL, a, s, &err) != TD_OK)
        fail_msg("%s: %s", k->schedule, err.msg);
    double threads[STEPS], alone[STEPS];
    executor *x = NULL, *y = NULL;
    train(s, a, threads, &x);
    offload *const away = open_offload(s, k->together, a);
    emulate(s, k, away, a, alone, &y);
    if (away != NULL) check_offload(y, away);
    if (memcmp(threads, alone, sizeof threads) != 0)
        fail_msg("%s: loss %.17g, emulated %.17g", k->schedule, threads[STEPS - 1],
                 alone[STEPS - 1]);
    for (uint32_t i = 0; i < s->plan.n_insts; i++) {
        const uint32_t rank = exec_rank_of(x, i, 0);
        const size_t bytes = (size_t)x->stages[s->plan.insts[i].stage].elements * sizeof(float);
        assert_memory_equal(exec_buffer(x, rank, SIZE_WEIGHTS, i),
                            exec_buffer(y, rank, SIZE_WEIGHTS, i), bytes);
    }
    exec_close(x);
    exec_close(y);
    offload_close(away);
    td_arena_free(a);
}

static void equals_threads(void **state)
{
    (void)state;
    static const emulate_case cases[] = {
        {"1f1b", "tiny-gpt2", 4, 8, 0, 1, PROTOCOL_EAGER, 0, false, 0, 0},
        {"1f1b", "tiny-llama", 4, 8, 0, 1, PROTOCOL_EAGER, 4e7, false, 0, 0},
        {"1f1b", "tiny-gpt2", 4, 8, 0, 1, PROTOCOL_RENDEZVOUS, 1e6, false, 0, 0},
        {"gpipe", "tiny-llama", 2, 4, 0, 2, PROTOCOL_RENDEZVOUS, 0, false, 0, 0},
        {"interleaved-1f1b", "tiny-gpt2", 2, 6, 2, 1, PROTOCOL_EAGER, 1e6, false, 0, 0},
        {"bitpipe", "tiny-bert", 2, 4, 2, 1, PROTOCOL_EAGER, 1e6, false, 0, 0},
        {"bitpipe", "tiny-gpt2", 2, 4, 2, 2, PROTOCOL_RENDEZVOUS, 1e6, true, 0, 0},
        {"chimera", "tiny-llama", 4, 4, 0, 1, PROTOCOL_EAGER, 0, true, 0, 0},
        {"bitpipe", "tiny-gpt2", 4, 8, 2, 1, PROTOCOL_RENDEZVOUS, 1e5, false, 0, 0},
        {"dualpipe", "tiny-llama", 8, 16, 0, 1, PROTOCOL_EAGER, 1e5, false, 0, 0},
        {"1f1b", "tiny-gpt2", 8, 8, 0, 1, PROTOCOL_RENDEZVOUS, 1e6, false, 0, 0},
        {"zb-h1", "tiny-gpt2", 4, 8, 0, 1, PROTOCOL_RENDEZVOUS, 1e6, false, 0, 0},
        {"zb-h1", "tiny-gpt2", 2, 4, 0, 2, PROTOCOL_RENDEZVOUS, 1e6, true, 2, 0},
        {"1f1b", "tiny-llama", 2, 4, 0, 1, PROTOCOL_EAGER, 1e5, false, 2, 0},
        {"dualpipe", "tiny-gpt2", 2, 4, 0, 1, PROTOCOL_EAGER, 1e5, false, 2, 0},
        {"zb-h1", "tiny-llama", 8, 8, 0, 1, PROTOCOL_EAGER, 0, false, 0, 0},
        {"v-half", "tiny-gpt2", 4, 8, 0, 1, PROTOCOL_EAGER, 1e6, false, 0, 0},
        {"seq1f1b", "tiny-llama", 4, 4, 0, 1, PROTOCOL_EAGER, 1e6, false, 0, 0},
        {"seq1f1b", "tiny-gpt2", 8, 4, 0, 1, PROTOCOL_RENDEZVOUS, 0, false, 0, 0},
        {"seq1f1b-zb", "tiny-gpt2", 4, 4, 0, 1, PROTOCOL_RENDEZVOUS, 1e6, false, 0, 0},
        {"vocab-1", "tiny-gpt2", 4, 8, 0, 1, PROTOCOL_EAGER, 1e6, false, 0, 0},
        {"vocab-2", "tiny-llama", 4, 8, 0, 1, PROTOCOL_RENDEZVOUS, 1e6, false, 0, 0},
        {"vocab-2", "tiny-gpt2", 8, 9, 0, 1, PROTOCOL_EAGER, 0, false, 0, 0},
        {"fbd", "tiny-gpt2", 4, 4, 0, 1, PROTOCOL_EAGER, 1e6, false, 0, 0},
        {"fbd", "tiny-llama", 4, 8, 0, 1, PROTOCOL_RENDEZVOUS, 0, false, 0, 0},
        {"fbd", "tiny-gpt2", 2, 4, 0, 1, PROTOCOL_EAGER, 1e5, false, 0, 0},
        {"bitpipe", "tiny-gpt2", 4, 8, 2, 2, PROTOCOL_EAGER, 1e5, false, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_case(&cases[i]);
}

/* Ranks whose memory does not fit together take turns in it. */
static void takes_turns(void **state)
{
    (void)state;
    static const emulate_case cases[] = {
        {"1f1b", "tiny-gpt2", 4, 4, 0, 1, PROTOCOL_EAGER, 1e5, false, 0, 1},
        {"zb-h1", "tiny-llama", 4, 4, 0, 1, PROTOCOL_RENDEZVOUS, 0, false, 0, 2},
        {"bitpipe", "tiny-gpt2", 2, 4, 2, 2, PROTOCOL_EAGER, 1e6, true, 0, 1},
        {"vocab-2", "tiny-gpt2", 4, 6, 0, 1, PROTOCOL_RENDEZVOUS, 1e6, false, 0, 2},
        {"1f1b", "tiny-gpt2", 2, 2, 0, 1, PROTOCOL_EAGER, 0, false, 2, 1},
        {"fbd", "tiny-llama", 2, 4, 0, 1, PROTOCOL_RENDEZVOUS, 0, false, 0, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_case(&cases[i]);
}

/* What does not fit at all, or has nowhere to go, is said in one line. */
static void refuses_too_little(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    td_err err = {0};
    offload *o = NULL;
    offload_place place;
    rank_arena r;
    assert_int_equal(offload_file("/nowhere", a, &place, &err), TD_EIO);
    assert_non_null(strstr(err.msg, "--offload-dir /nowhere: no file can be made there"));
    assert_int_equal(offload_file("/var/tmp", a, &place, &err), TD_OK);
    assert_int_equal(offload_open(&place, 4096, a, &o, &err), TD_OK);
    assert_int_equal(offload_arena(o, 4000, &r, &err), TD_OK);
    rank_arena_close(&r);
    assert_int_equal(offload_arena(o, 5000, &r, &err), TD_EUSAGE);
    assert_non_null(strstr(err.msg, "rank 1 alone needs"));
    offload_close(o);
    td_arena_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(equals_threads),
                                       cmocka_unit_test(takes_turns),
                                       cmocka_unit_test(refuses_too_little)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
