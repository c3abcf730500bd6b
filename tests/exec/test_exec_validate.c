/* Post-validation executed: the numbers are those of a run that waits for its norms, bit for bit,
 * whether steps stand, are taken back, or are skipped. */
#include "exec/data.h"
#include "exec_law.h"

#include "t.h"

#include <assert.h>
#include <pthread.h>
#include <time.h>

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

static void open_run_with(run *r, const family *f, bool validate, const exec_options *e)
{
    td_err err = {0};
    *r = (run){.a = td_arena_new()};
    for (int i = 0; i < STAGES; i++)
        r->stages[i] = (stage_desc){
            .first_layer = 2 * i, .n_layers = 2, .embedding = i == 0, .head = i == STAGES - 1};
    r->z = (sizes){.model = &law_llama,
                   .stages = r->stages,
                   .n_stages = STAGES,
                   .chunks = f->chunks,
                   .run = {.micro_batch = 2, .seq_len = 12, .tp = 1, .dp = 1}};
    make(r->a, f, STAGES / f->chunks, MICROBATCHES, &r->s);
    r->s.validate = validate;
    const lower_options o = {.sizes = &r->z, .dp = 1, .tp = 1, .lookahead = 1};
    T_OK(plan_lower(&r->s, &o, r->a, &r->p, &err), &err);
    T_OK(exec_open(&r->p, &r->z, e, r->a, &r->x, &err), &err);
    exec_init(r->x, 5);
}

static const exec_options quiet = {.threads_per_rank = 1, .deadline_ns = 20000000000};

static void open_run(run *r, bool validate) { open_run_with(r, &families[2], validate, &quiet); }

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
            const uint32_t rank = exec_rank_of(a->x, i, 0);
            assert_memory_equal(exec_buffer(a->x, rank, kinds[k], i),
                                exec_buffer(b->x, rank, kinds[k], i), n * sizeof(float));
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

/* --- steps that overlap --- */

enum { STEPS = 7 };

typedef struct stream {
    double clip;
    bool skip;
    int64_t first, skipped; /* steps before those at hand, and how many of them were skipped */
    double losses[STEPS], norms[STEPS];
    int64_t n_settled, n_ended;
    int64_t stop_after; /* 0: never */
} stream;

static void stream_begin(void *self, int64_t i, exec_step *out)
{
    const stream *const s = self;
    *out = (exec_step){.lr = 1e-3f,
                       .beta1 = 0.9f,
                       .beta2 = 0.95f,
                       .eps = 1e-8f,
                       .weight_decay = 0.1f,
                       .clip = s->clip,
                       .skip = s->skip,
                       .number = s->first + i + 1 - s->skipped};
}

static void stream_tokens(void *self, int64_t i, int32_t index, int32_t *ids, int32_t *targets)
{
    const stream *const s = self;
    corpus_random((uint64_t)((s->first + i) * MICROBATCHES + index), law_llama.vocab, TOKENS, ids,
                  targets);
}

static void stream_settled(void *self, double norm)
{
    stream *const s = self;
    s->norms[s->n_settled++] = norm;
}

static void stream_ended(void *self, int64_t i, const exec_period *p)
{
    stream *const s = self;
    assert(s->n_ended == s->first + i && p->number == s->n_ended);
    for (int m = 0; m < MICROBATCHES; m++) s->losses[s->n_ended] += p->losses[m];
    s->n_ended++;
}

static bool stream_stops(void *self)
{
    const stream *const s = self;
    return s->stop_after > 0 && s->n_ended >= s->stop_after;
}

/* Runs `n` more steps of the stream, settled in the end. */
static void flow(run *r, stream *s, int64_t n)
{
    const exec_feed feed = {s, stream_begin, stream_tokens, stream_settled, stream_ended, NULL};
    td_err err = {0};
    for (const int64_t end = s->first + n; s->first < end;) {
        int64_t done = 0;
        s->skipped = 0;
        for (int64_t i = 0; i < s->n_settled; i++) s->skipped += !isfinite(s->norms[i]);
        T_OK(exec_run_steps(r->x, &feed, end - s->first, &done, &err), &err);
        assert_true(done == (r->x->validates ? end - s->first : 1));
        s->first += done;
    }
    T_OK(exec_settle(r->x, &err), &err);
    assert_int_equal(s->n_settled, s->first);
    assert_int_equal(s->n_ended, s->first);
}

/* The numbers of steps that overlap are those of steps that do not, whatever becomes of them. */
static int64_t overlap(const family *f, double clip, double *median)
{
    exec_options o = quiet;
    o.jitter_ns = 30000;
    run plain, late;
    stream a = {.clip = clip}, b = a;
    open_run_with(&plain, f, false, &quiet);
    open_run_with(&late, f, true, &o);
    flow(&plain, &a, STEPS);
    flow(&late, &b, 3);
    flow(&late, &b, STEPS - 3);
    assert_memory_equal(a.losses, b.losses, sizeof a.losses);
    assert_memory_equal(a.norms, b.norms, sizeof a.norms);
    assert_same(&plain, &late);
    const int64_t undone = late.x->n_undone;
    close_run(&plain);
    close_run(&late);
    double low = 0, high = (double)INFINITY; /* between them lies a clip that some steps pass */
    for (int i = 0; i < STEPS; i++) {
        low = fmax(low, i < STEPS / 2 ? a.norms[i] : 0);
        high = fmin(high, a.norms[i]);
    }
    *median = (low + high) / 2;
    return undone;
}

static void test_overlap(void **state)
{
    double median = 0;
    (void)state;
    for (int f = 0; f < FAMILIES; f++) {
        assert_int_equal(overlap(&families[f], (double)INFINITY, &median), 0);
        const int64_t some = overlap(&families[f], median, &median);
        assert_true(some > 0 && some < STEPS);
        assert_int_equal(overlap(&families[f], 1e-3, &median), STEPS);
    }
}

/* Makes a gradient of a step in the midst of others not finite. */
typedef struct poison {
    run *r;
    uint32_t rank;
    int64_t period;
} poison;

static void spoil_gradient(void *self, uint32_t rank, int64_t period, uint32_t task)
{
    const poison *const p = self;
    const executor *const x = p->r->x;
    if (rank == p->rank && period == p->period && x->p->tasks[task].kind == TASK_NORM)
        exec_buffer(x, rank, SIZE_GRADS, rank)[0] = NAN;
}

static void test_overlap_skips(void **state)
{
    (void)state;
    for (uint32_t rank = 0; rank < STAGES; rank++) {
        run plain, late;
        poison bad[2] = {{&plain, rank, 2}, {&late, rank, 2}};
        stream a = {.clip = 1.0, .skip = true}, b = a;
        exec_options o = quiet;
        o.before = spoil_gradient;
        o.before_self = &bad[0];
        open_run_with(&plain, &families[2], false, &o);
        o.before_self = &bad[1];
        o.jitter_ns = 30000;
        open_run_with(&late, &families[2], true, &o);
        flow(&plain, &a, STEPS);
        flow(&late, &b, STEPS);
        for (int i = 0; i < STEPS; i++) {
            const bool finite = isfinite(b.norms[i]);
            assert_true(finite == (i != 2));
        }
        assert_memory_equal(a.losses, b.losses, sizeof a.losses);
        assert_same(&plain, &late);
        close_run(&plain);
        close_run(&late);
    }
}

/* Each rank stops before its last pass of the first period until the rank before it has begun the
 * second one: they come past it only if nothing joins them. */
typedef struct staircase {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool begun[STAGES], late;
    const executor *x;
} staircase;

static void climb(void *self, uint32_t rank, int64_t period, uint32_t task)
{
    staircase *const s = self;
    (void)pthread_mutex_lock(&s->lock);
    if (period == 1 && !s->begun[rank]) {
        s->begun[rank] = true;
        (void)pthread_cond_broadcast(&s->changed);
    }
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    const plan_task *const t = &s->x->p->tasks[task];
    const bool last = t->kind == PASS_W && t->microbatch == MICROBATCHES - 1;
    while (period == 0 && last && rank > 0 && !s->begun[rank - 1] && !s->late)
        s->late = pthread_cond_timedwait(&s->changed, &s->lock, &until) != 0;
    (void)pthread_mutex_unlock(&s->lock);
}

static void test_staircase(void **state)
{
    run r;
    stream s = {.clip = (double)INFINITY};
    staircase gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    exec_options o = quiet;
    o.before = climb;
    o.before_self = &gate;
    (void)state;
    open_run_with(&r, &families[2], true, &o);
    gate.x = r.x;
    flow(&r, &s, 2);
    assert_false(gate.late);
    const exec_period *const first = exec_period_at(r.x, 0), *const second = exec_period_at(r.x, 1);
    assert_true(second->start_ns < first->end_ns);
    close_run(&r);
}

/* A wish to stop ends the run with the same step on all ranks. */
static void test_stop(void **state)
{
    run plain, late;
    stream a = {.clip = 1.0}, b = {.clip = 1.0, .stop_after = 2};
    const exec_feed feed = {&b,           stream_begin, stream_tokens, stream_settled,
                            stream_ended, stream_stops};
    td_err err = {0};
    int64_t done = 0;
    (void)state;
    open_run(&plain, false);
    open_run(&late, true);
    T_OK(exec_run_steps(late.x, &feed, STEPS, &done, &err), &err);
    assert_true(late.x->stop && done >= 2 && done <= 4);
    T_OK(exec_settle(late.x, &err), &err);
    flow(&plain, &a, done);
    assert_same(&plain, &late);
    close_run(&plain);
    close_run(&late);
}

int main(void)
{
    const struct CMUnitTest tests[] = {T_TEST(test_law),
                                       T_TEST(test_copies),
                                       cmocka_unit_test(test_some_step),
                                       cmocka_unit_test(test_skipped),
                                       cmocka_unit_test(test_overlap),
                                       cmocka_unit_test(test_overlap_skips),
                                       cmocka_unit_test(test_staircase),
                                       cmocka_unit_test(test_stop)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
