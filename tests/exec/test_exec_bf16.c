/* bf16 runs keep weights as floats beside the moments: those are what files hold. A stand-in gives
 * the memory; nothing is computed. */
#include "t.h"

#include "exec/checkpoint.h"
#include "schedules/request.h"
#include "tests/exec/standin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct shape {
    const char *schedule, *model;
    int64_t pp, chunks, tp, dp;
    bool zero1;
} shape;

static const shape shapes[] = {
    {"1f1b", "tiny-gpt2", 2, 1, 1, 1, false}, {"interleaved-1f1b", "tiny-llama", 2, 2, 1, 2, false},
    {"gpipe", "tiny-gpt2", 2, 1, 1, 2, true}, {"chimera", "tiny-llama", 4, 1, 1, 1, true},
    {"fbd", "tiny-gpt2", 2, 1, 1, 2, false},  {"vocab-2", "tiny-gpt2", 2, 1, 1, 1, false},
    {"1f1b", "tiny-gpt2", 2, 1, 2, 1, false}, {"gpipe", "tiny-gpt2", 1, 1, 2, 2, true},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

typedef struct run {
    td_arena *a;
    run_setup *setup;
    device d;
    executor *x;
} run;

static void open_run(const shape *s, bool bf16, run *r)
{
    td_err err = {0};
    const request q = {.schedule = s->schedule,
                       .model = s->model,
                       .pp = s->pp,
                       .microbatches = 8,
                       .chunks = s->chunks,
                       .tp = s->tp,
                       .dp = s->dp,
                       .zero1 = s->zero1,
                       .micro_batch = 1,
                       .seq_len = 8,
                       .dtype = bf16 ? TYPE_BF16 : TYPE_FP32,
                       .grad_dtype = TYPE_FP32,
                       .shards = true};
    *r = (run){.a = td_arena_new()};
    r->setup = TD_NEW(r->a, run_setup);
    T_OK(request_plan(&q, TYPE_FP32, NULL, r->a, r->setup, &err), &err);
    exec_options o = {.threads_per_rank = 1};
    if (bf16) {
        standin_open(r->a, 0, &r->d);
        r->d.element_bytes = 2;
        o.device = &r->d;
    }
    T_OK(exec_open(&r->setup->plan, &r->setup->sizes, &o, r->a, &r->x, &err), &err);
}

static void close_run(run *r)
{
    exec_close(r->x);
    if (r->d.methods != NULL) r->d.methods->close(&r->d);
    td_arena_free(r->a);
}

static void put(const run *r, const char *path, bool whole)
{
    td_err err = {0};
    const checkpoint_state state = {.step = 1, .microbatches = 8, .micro_batch = 1, .seq_len = 8};
    T_OK(checkpoint_write(r->x, whole ? &state : NULL, path, &err), &err);
}

static bool same(const char *a, const char *b)
{
    td_arena *const room = td_arena_new();
    td_err err = {0};
    char *x = NULL, *y = NULL;
    size_t n = 0, m = 0;
    T_OK(td_read_file(room, a, (size_t)1 << 30, &x, &n, &err), &err);
    T_OK(td_read_file(room, b, (size_t)1 << 30, &y, &m, &err), &err);
    const bool equal = n == m && n > 1000 && memcmp(x, y, n) == 0;
    td_arena_free(room);
    return equal;
}

/* First weights, as written by the cores and out of a device's bf16 run, and as read into one that
 * had others; then what passes read is the file's, rounded. */
static void files_hold_the_floats(void **state)
{
    const char *const folder = *state;
    char cores[64], narrow[64], again[64];
    (void)snprintf(cores, sizeof cores, "%s/cores", folder);
    (void)snprintf(narrow, sizeof narrow, "%s/narrow", folder);
    (void)snprintf(again, sizeof again, "%s/again", folder);
    for (int i = 0; i < SHAPES; i++) {
        run c, n;
        td_err err = {0};
        checkpoint_state was;
        open_run(&shapes[i], false, &c);
        open_run(&shapes[i], true, &n);
        exec_init(c.x, 5);
        exec_init(n.x, 5);
        for (int whole = 0; whole < 2; whole++) {
            put(&c, cores, whole);
            put(&n, narrow, whole);
            if (!same(cores, narrow)) fail_msg("%s: another file in bf16", shapes[i].schedule);
        }
        exec_init(n.x, 6);
        put(&n, again, true);
        assert_false(same(cores, again));
        T_OK(checkpoint_read(n.x, cores, &was, &err), &err);
        put(&n, again, true);
        if (!same(cores, again)) fail_msg("%s: another file after reading", shapes[i].schedule);
        run fresh;
        open_run(&shapes[i], true, &fresh);
        exec_init(fresh.x, 5);
        for (uint32_t k = 0; k < n.x->p->n_ranks; k++)
            for (uint32_t inst = 0; inst < n.x->p->n_insts; inst++) {
                const void *const a = exec_buffer(n.x, k, SIZE_WEIGHTS, inst);
                if (a == NULL) continue;
                const int64_t elements = n.x->stages[n.x->p->insts[inst].stage].elements;
                assert_memory_equal(a, exec_buffer(fresh.x, k, SIZE_WEIGHTS, inst),
                                    (size_t)elements * 2);
            }
        close_run(&fresh);
        close_run(&c);
        close_run(&n);
    }
    (void)unlink(cores);
    (void)unlink(narrow);
    (void)unlink(again);
}

static int make_folder(void **state)
{
    static char folder[] = "/tmp/tandem-bf16-XXXXXX";
    *state = mkdtemp(folder);
    return *state == NULL;
}

static int remove_folder(void **state) { return rmdir(*state); }

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(files_hold_the_floats)};
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
