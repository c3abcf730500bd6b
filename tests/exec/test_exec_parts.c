/* The executor's parts one by one: gradients against differences of the loss, the wire, the arena,
 * text and its tokens. */
#include "exec/data.h"
#include "exec/exec.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const model_desc models[] = {{.name = "g",
                                     .family = MODEL_GPT2,
                                     .n_layers = 2,
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
                                     .norm_eps = 1e-5},
                                    {.name = "l",
                                     .family = MODEL_LLAMA,
                                     .n_layers = 2,
                                     .hidden = 16,
                                     .n_heads = 4,
                                     .n_kv_heads = 2,
                                     .head_dim = 4,
                                     .ffn = 24,
                                     .vocab = 29,
                                     .max_positions = 16,
                                     .gated = true,
                                     .rms_norm = true,
                                     .causal = true,
                                     .rope_theta = 10000,
                                     .norm_eps = 1e-5}};

typedef struct bench {
    td_arena *a;
    k_blas blas;
    k_ctx *ctx;
    stage_code *code;
    stage_desc whole;
    sizes z;
    stage_args args;
    float *weights;
} bench;

static void open_bench(bench *b, const model_desc *m)
{
    *b = (bench){.a = td_arena_new()};
    td_err err;
    k_blas_open(&b->blas, NULL);
    b->ctx = k_ctx_start(td_alloc(b->a, 1, k_ctx_size(1)), &b->blas, 1);
    b->whole = (stage_desc){.n_layers = m->n_layers, .embedding = true, .head = true};
    b->z = (sizes){.model = m,
                   .stages = &b->whole,
                   .n_stages = 1,
                   .chunks = 1,
                   .run = {.micro_batch = 2, .seq_len = 9, .tp = 1, .dp = 1}};
    assert_int_equal(stage_open(&b->z, b->ctx, b->a, &b->code, &err), TD_OK);
    const stage_code *const c = b->code;
    int32_t *const ids = td_alloc(b->a, (size_t)(2 * c->rows), sizeof *ids);
    b->weights = td_alloc(b->a, (size_t)c->elements, sizeof(float));
    b->args = (stage_args){.weights = b->weights,
                           .ids = ids,
                           .targets = ids + c->rows,
                           .grads = td_alloc(b->a, (size_t)c->grad_elements, sizeof(float)),
                           .stash = td_alloc(b->a, 1, (size_t)c->stash.bytes),
                           .scratch = td_alloc(b->a, 1, (size_t)c->scratch.bytes),
                           .grad_scale = 1.0f};
    corpus_random(3, m->vocab, c->rows, ids, ids + c->rows);
    td_rng r = td_rng_seed(5);
    for (int64_t i = 0; i < c->elements; i++) b->weights[i] = (float)(0.3 * td_rng_normal(&r));
}

static void close_bench(bench *b)
{
    k_ctx_stop(b->ctx);
    k_blas_close(&b->blas);
    td_arena_free(b->a);
}

/* Along random directions in each tensor: (loss(w + h d) - loss(w - h d)) / 2h = <gradient, d>. */
static void test_gradients_are_differences(void **state)
{
    (void)state;
    for (size_t which = 0; which < 2; which++) {
        bench b;
        open_bench(&b, &models[which]);
        const stage_code *const c = b.code;
        stage_forward(b.ctx, c, &b.args);
        stage_backward(b.ctx, c, &b.args);
        td_rng r = td_rng_seed(17);
        for (int64_t t = 0; t < c->n_params; t++) {
            const param_tensor *const p = &c->params[t];
            const int64_t n = p->rows * p->cols;
            const double h = 2e-3;
            double slope = 0, loss[2] = {0};
            float *const d = td_alloc(b.a, (size_t)n, sizeof *d);
            float *const kept = td_alloc(b.a, (size_t)n, sizeof *kept);
            float *const w = b.weights + p->offset;
            memcpy(kept, w, (size_t)n * sizeof *w);
            for (int64_t i = 0; i < n; i++) {
                d[i] = (float)td_rng_normal(&r) / (float)sqrt((double)n);
                double g = (double)b.args.grads[p->offset + i];
                if (c->m->tied && p->kind == PARAM_TOKEN_EMBEDDING)
                    g += (double)b.args.grads[c->elements + i];
                slope += g * (double)d[i];
            }
            for (int s = 0; s < 2; s++) {
                for (int64_t i = 0; i < n; i++) w[i] = kept[i] + (float)(s == 0 ? h : -h) * d[i];
                stage_forward(b.ctx, c, &b.args);
                loss[s] = b.args.loss;
            }
            memcpy(w, kept, (size_t)n * sizeof *w);
            const double measured = (loss[0] - loss[1]) / (2 * h);
            if (fabs(measured - slope) > 2e-3 * (1 + fabs(slope)))
                fail_msg("%s: slope %g, gradient says %g", p->name, measured, slope);
        }
        close_bench(&b);
    }
}

static void test_arena(void **state)
{
    (void)state;
    td_err err;
    rank_arena r;
    assert_int_equal(rank_arena_open(10000, &r, &err), TD_OK);
    assert_int_equal((uintptr_t)r.base % 256, 0);
    assert_int_equal(rank_arena_touched(&r), 0);
    r.base[5000] = 1;
    assert_int_equal(rank_arena_touched(&r), 5120);
    r.base[9999] = 0;
    assert_int_equal(rank_arena_touched(&r), 10240);
    assert_int_equal(rank_arena_canaries(&r, 0, 5000), 625);
    rank_arena_close(&r);
}

typedef struct pair {
    wire *w;
    int32_t got[3];
    td_status status;
} pair;

static void *receive_three(void *arg)
{
    pair *const p = arg;
    td_err err;
    wire_op op[3];
    for (int i = 0; i < 3; i++) {
        op[i] = (wire_op){.data = &p->got[i], .bytes = 4, .rank = 1};
        wire_recv(p->w, 0, &op[i]);
    }
    for (int i = 2; i >= 0 && p->status == TD_OK; i--) p->status = wire_wait(p->w, &op[i], &err);
    return NULL;
}

static void test_wire_keeps_order(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    td_err err;
    pair p = {0};
    const wire_channel channel = {.src = 0, .dst = 1};
    const wire_shape shape = {
        .n_ranks = 2, .n_channels = 1, .channels = &channel, .deadline_ns = 5000000000};
    assert_int_equal(wire_open_threads(&shape, a, &p.w, &err), TD_OK);
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, receive_three, &p), 0);
    int32_t sent[3] = {11, 22, 33};
    for (int i = 0; i < 3; i++) {
        wire_op op = {.data = &sent[i], .bytes = 4};
        wire_send(p.w, 0, &op);
        assert_int_equal(wire_wait(p.w, &op, &err), TD_OK);
    }
    (void)pthread_join(t, NULL);
    assert_int_equal(p.status, TD_OK);
    assert_memory_equal(p.got, sent, sizeof sent);
    wire_close(p.w);
    td_arena_free(a);
}

static void test_wire_deadline_and_size(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    td_err err;
    wire *w = NULL;
    const wire_channel channel = {.src = 0, .dst = 1};
    const wire_shape shape = {
        .n_ranks = 2, .n_channels = 1, .channels = &channel, .deadline_ns = 20000000};
    assert_int_equal(wire_open_threads(&shape, a, &w, &err), TD_OK);
    int32_t x = 1, y[2] = {0};
    wire_op send = {.data = &x, .bytes = 4};
    wire_send(w, 0, &send);
    assert_int_equal(wire_wait(w, &send, &err), TD_EDEVICE);
    wire_op recv = {.data = y, .bytes = 8, .rank = 1};
    wire_recv(w, 0, &recv);
    assert_true(wire_aborted(w));
    assert_int_equal(wire_wait(w, &recv, &err), TD_EINTR);
    assert_non_null(strstr(wire_error(w).msg, "4 bytes"));
    wire_close(w);
    td_arena_free(a);
}

/* What three members hold after each kind of collective, by hand; members join in any order. */
typedef struct member {
    wire *w;
    uint32_t rank;
    float data[8];
    int64_t size; /* of an element: 4, or 2 of a bf16 */
    td_status status;
} member;

static void put(member *m, uint32_t i, float x)
{
    const uint16_t half = td_bf16_of_float(x);
    memcpy((char *)m->data + i * m->size, m->size == 4 ? (const void *)&x : &half, (size_t)m->size);
}

static float get(const member *m, uint32_t i)
{
    uint16_t half;
    memcpy(&half, (const char *)m->data + 2 * i, sizeof half);
    return m->size == 4 ? m->data[i] : td_float_of_bf16(half);
}

static void *join_collective(void *arg)
{
    member *const m = arg;
    td_err err;
    wire_op op = {.data = m->data, .bytes = 7 * m->size, .rank = m->rank};
    wire_collective(m->w, 0, m->rank, &op);
    m->status = wire_wait(m->w, &op, &err);
    return NULL;
}

static void test_wire_collectives(void **state)
{
    (void)state;
    static const uint32_t ranks[3] = {0, 1, 2};
    static const wire_group all = {.members = ranks, .n_members = 3};
    /* member m starts with 10 m + i; pieces are of 3, 2 and 2 elements */
    static const float left[WIRE_KIND_COUNT][3][7] = {
        [WIRE_SUM_FLOAT] = {{30, 33, 36, 39, 42, 45, 48},
                            {30, 33, 36, 39, 42, 45, 48},
                            {30, 33, 36, 39, 42, 45, 48}},
        [WIRE_SUM_PIECES_FLOAT] = {{30, 33, 36, 3, 4, 5, 6},
                                   {10, 11, 12, 39, 42, 15, 16},
                                   {20, 21, 22, 23, 24, 45, 48}},
        [WIRE_SUM_ROOT_FLOAT] = {{0, 1, 2, 3, 4, 5, 6},
                                 {30, 33, 36, 39, 42, 45, 48},
                                 {20, 21, 22, 23, 24, 25, 26}},
        [WIRE_GATHER_FLOAT] = {{0, 1, 2, 13, 14, 25, 26},
                               {0, 1, 2, 13, 14, 25, 26},
                               {0, 1, 2, 13, 14, 25, 26}},
        [WIRE_BROADCAST] = {{10, 11, 12, 13, 14, 15, 16},
                            {10, 11, 12, 13, 14, 15, 16},
                            {10, 11, 12, 13, 14, 15, 16}},
    };
    static const wire_kind like[WIRE_KIND_COUNT] = {[WIRE_SUM_BF16] = WIRE_SUM_FLOAT,
                                                    [WIRE_SUM_PIECES_BF16] = WIRE_SUM_PIECES_FLOAT,
                                                    [WIRE_SUM_ROOT_BF16] = WIRE_SUM_ROOT_FLOAT,
                                                    [WIRE_GATHER_BF16] = WIRE_GATHER_FLOAT};
    for (int kind = 0; kind < WIRE_KIND_COUNT; kind++) {
        if (kind == WIRE_SUM_DOUBLE || kind == WIRE_VOCAB) continue; /* not of any floats */
        const bool halves = kind >= WIRE_SUM_BF16 && kind <= WIRE_GATHER_BF16;
        const int floats = halves ? (int)like[kind] : kind;
        const int64_t size = halves ? 2 : 4;
        td_arena *const a = td_arena_new();
        td_err err;
        const wire_coll coll = {.root = 1, .kind = (wire_kind)kind, .bytes = 7 * size};
        const wire_shape shape = {.n_ranks = 3,
                                  .n_groups = 1,
                                  .n_colls = 1,
                                  .groups = &all,
                                  .colls = &coll,
                                  .deadline_ns = 5000000000};
        wire *w = NULL;
        assert_int_equal(wire_open_threads(&shape, a, &w, &err), TD_OK);
        member m[3];
        pthread_t t[3];
        for (uint32_t r = 0; r < 3; r++) {
            m[r] = (member){.w = w, .rank = r, .size = size};
            for (uint32_t i = 0; i < 8; i++) put(&m[r], i, (float)(10 * r + i));
            assert_int_equal(pthread_create(&t[r], NULL, join_collective, &m[r]), 0);
        }
        for (uint32_t r = 0; r < 3; r++) (void)pthread_join(t[r], NULL);
        for (uint32_t r = 0; r < 3; r++) {
            assert_int_equal(m[r].status, TD_OK);
            for (uint32_t i = 0; i < 7; i++)
                assert_int_equal((int)get(&m[r], i), (int)left[floats][r][i]);
            assert_int_equal((int)get(&m[r], 7), (int)(10 * r + 7));
        }
        wire_close(w);
        td_arena_free(a);
    }
}

/* Both ends receive: nobody will ever send, and that is known without waiting for a deadline. */
static void *receive_one(void *arg)
{
    pair *const p = arg;
    td_err err;
    wire_op op = {.data = p->got, .bytes = 4, .rank = 1, .task = 7};
    wire_recv(p->w, 0, &op);
    p->status = wire_wait(p->w, &op, &err);
    return NULL;
}

static void test_wire_sees_a_stall(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    td_err err;
    pair p = {0};
    const wire_channel channels[2] = {{0, 1, 0}, {1, 0, 0}};
    const wire_shape shape = {
        .n_ranks = 2, .n_channels = 2, .channels = channels, .deadline_ns = INT64_C(1) << 40};
    assert_int_equal(wire_open_threads(&shape, a, &p.w, &err), TD_OK);
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, receive_one, &p), 0);
    int32_t got = 0;
    wire_op op = {.data = &got, .bytes = 4, .rank = 0, .task = 3};
    wire_recv(p.w, 1, &op);
    assert_int_equal(wire_wait(p.w, &op, &err), TD_EINTR);
    (void)pthread_join(t, NULL);
    assert_int_equal(p.status, TD_EINTR);
    assert_non_null(strstr(wire_error(p.w).msg, "stuck"));
    assert_non_null(strstr(wire_error(p.w).msg, "rank 0 in task 3, rank 1 in task 7"));
    wire_close(p.w);
    td_arena_free(a);
}

static void write_text(const char *path, const char *text)
{
    td_err err;
    assert_int_equal(td_write_file(path, text, strlen(text), &err), TD_OK);
}

static void test_bytes_and_batches(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    td_err err;
    char path[64];
    (void)snprintf(path, sizeof path, "/tmp/td_text_%ld", (long)getpid());
    write_text(path, "the quick brown fox jumps over the lazy dog, and then again and once more "
                     "until this text is long enough for two parts");
    corpus c;
    assert_int_equal(corpus_open(path, NULL, NULL, 256, false, 8, a, &c, &err), TD_OK);
    assert_int_equal(c.tokens[0], 't');
    int32_t ids[16], targets[16], again[16];
    corpus_batch(&c, 1, 2, 3, false, 2, 8, ids, targets);
    corpus_batch(&c, 1, 2, 3, false, 2, 8, again, targets);
    assert_memory_equal(ids, again, sizeof ids);
    assert_memory_equal(ids + 1, targets, 7 * sizeof *ids);
    corpus_batch(&c, 1, 2, 4, false, 2, 8, again, targets);
    assert_memory_not_equal(ids, again, sizeof ids);
    assert_int_equal(corpus_open(path, NULL, NULL, 256, false, 80, a, &c, &err), TD_EUSAGE);
    assert_int_equal(corpus_open(path, NULL, NULL, 100, false, 8, a, &c, &err), TD_EUSAGE);
    (void)unlink(path);
    assert_int_equal(corpus_open(path, NULL, NULL, 256, false, 8, a, &c, &err), TD_EUSAGE);
    td_arena_free(a);
}

/* A vocabulary small enough to merge by hand: "low" is one token, "lower" is low + er. */
static void test_byte_pairs(void **state)
{
    (void)state;
#if TD_HAVE_PCRE2
    td_arena *const a = td_arena_new();
    td_err err = {0};
    char vocab[64], merges[64];
    (void)snprintf(vocab, sizeof vocab, "/tmp/td_vocab_%ld", (long)getpid());
    (void)snprintf(merges, sizeof merges, "/tmp/td_merges_%ld", (long)getpid());
    write_text(vocab, "{\"l\":0,\"o\":1,\"w\":2,\"e\":3,\"r\":4,\"\\u0120\":5,\"lo\":6,\"low\":7,"
                      "\"er\":8,\"\\u0120low\":9}");
    write_text(merges, "#version: 0.2\nl o\nlo w\ne r\n\xc4\xa0 low\n");
    int32_t *t = NULL;
    int64_t n = 0, size = 0;
    const char text[] = "low lower roe";
    assert_int_equal(bpe_encode(vocab, merges, text, strlen(text), a, &t, &n, &size, &err), TD_OK);
    static const int32_t wanted[] = {7, 9, 8, 5, 4, 1, 3};
    assert_int_equal(size, 10);
    assert_int_equal(n, 7);
    assert_memory_equal(t, wanted, sizeof wanted);
    write_text(merges, "#version: 0.2\nl o\nbroken\n");
    assert_int_equal(bpe_encode(vocab, merges, text, 3, a, &t, &n, &size, &err), TD_EPARSE);
    assert_non_null(strstr(err.msg, ":3:"));
    (void)unlink(vocab);
    (void)unlink(merges);
    td_arena_free(a);
#endif
}

static void test_rate(void **state)
{
    (void)state;
    assert_true(fabs(optimizer_rate(1.0, 5, 10, 100) - 0.5) < 1e-12);
    assert_true(fabs(optimizer_rate(1.0, 10, 10, 100) - 1.0) < 1e-12);
    assert_true(fabs(optimizer_rate(1.0, 55, 10, 100) - 0.55) < 1e-12);
    assert_true(fabs(optimizer_rate(1.0, 100, 10, 100) - 0.1) < 1e-12);
    assert_true((double)optimizer_clip(4.0, 1.0) - 0.25 < 1e-7);
    assert_true(optimizer_clip(0.5, 1.0) >= 1.0f);
}

/* A plan that was lowered for other sizes is refused, not run into its neighbour's memory. */
static void test_plan_of_other_sizes(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    td_err err = {0};
    const sched_request q = {.pp = 2, .microbatches = 2};
    schedule s;
    assert_int_equal(sched_generate("1f1b", &q, a, &s, &err), TD_OK);
    const stage_desc stages[2] = {{.n_layers = 1, .embedding = true},
                                  {.first_layer = 1, .n_layers = 1, .head = true}};
    sizes z = {.model = &models[0],
               .stages = stages,
               .n_stages = 2,
               .chunks = 1,
               .run = {.micro_batch = 1, .seq_len = 8, .tp = 1, .dp = 1}};
    const lower_options o = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1};
    const exec_options run = {.threads_per_rank = 1};
    executor *x = NULL;
    plan p;
    assert_int_equal(plan_lower(&s, &o, a, &p, &err), TD_OK);
    assert_int_equal(exec_open(&p, &z, &run, a, &x, &err), TD_OK);
    exec_close(x);
    z.run.micro_batch = 2;
    assert_int_equal(exec_open(&p, &z, &run, a, &x, &err), TD_EUSAGE);
    assert_non_null(strstr(err.msg, "lower it with the options given here"));
    z.run.micro_batch = 1;
    z.run.recompute = RECOMPUTE_FULL;
    assert_int_equal(exec_open(&p, &z, &run, a, &x, &err), TD_EUSAGE);
    assert_non_null(strstr(err.msg, "stash"));
    td_arena_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_are_differences),
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_wire_keeps_order),
        cmocka_unit_test(test_wire_deadline_and_size),
        cmocka_unit_test(test_wire_collectives),
        cmocka_unit_test(test_wire_sees_a_stall),
        cmocka_unit_test(test_bytes_and_batches),
        cmocka_unit_test(test_byte_pairs),
        cmocka_unit_test(test_rate),
        cmocka_unit_test(test_plan_of_other_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
