/* BERT in the executor: loss and gradients against a plain implementation in double precision that
 * shares no code with it, every recomputation; the law under schedules; the masking of tokens. */
#include "exec/data.h"
#include "exec_law.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const model_desc bert = {.name = "small-bert",
                                .family = MODEL_BERT,
                                .n_layers = 2,
                                .hidden = 12,
                                .n_heads = 3,
                                .n_kv_heads = 3,
                                .head_dim = 4,
                                .ffn = 20,
                                .vocab = 31,
                                .max_positions = 16,
                                .tied = true,
                                .qkv_bias = true,
                                .out_bias = true,
                                .mlp_bias = true,
                                .learned_positions = true,
                                .norm_eps = 1e-12};

/* --- the same model in double, written down straight from its formulas --- */

enum { B = 2, S = 9, H = 12, HEADS = 3, HD = 4, FFN = 20, V = 31 };

typedef struct plain {
    const param_tensor *params;
    int64_t n_params;
    const double *w; /* laid out like the stage's weights */
} plain;

static const double *find(const plain *p, int64_t layer, param_kind kind)
{
    for (int64_t i = 0; i < p->n_params; i++)
        if (p->params[i].layer == layer && p->params[i].kind == (int32_t)kind)
            return p->w + p->params[i].offset;
    fail_msg("no tensor of kind %d in layer %lld", (int)kind, (long long)layer);
    return NULL;
}

/* y = W x + b, W: [out, in] */
static void affine(const plain *p, int64_t layer, param_kind weight, int in, int out,
                   const double *x, double *y)
{
    const double *const w = find(p, layer, weight), *const b = find(p, layer, weight + 1);
    for (int o = 0; o < out; o++) {
        y[o] = b[o];
        for (int i = 0; i < in; i++) y[o] += w[o * in + i] * x[i];
    }
}

static void norm(const plain *p, int64_t layer, param_kind weight, const double *x, double *y)
{
    const double *const g = find(p, layer, weight), *const b = find(p, layer, weight + 1);
    double mean = 0, var = 0;
    for (int i = 0; i < H; i++) mean += x[i] / H;
    for (int i = 0; i < H; i++) var += (x[i] - mean) * (x[i] - mean) / H;
    for (int i = 0; i < H; i++) y[i] = (x[i] - mean) / sqrt(var + 1e-12) * g[i] + b[i];
}

static double gelu(double u) { return 0.5 * u * (1 + erf(u / sqrt(2.0))); }

static void attend(double qkv[S][3 * H], double out[S][H])
{
    for (int h = 0; h < HEADS; h++)
        for (int t = 0; t < S; t++) {
            double score[S], sum = 0;
            for (int u = 0; u < S; u++) {
                score[u] = 0;
                for (int i = 0; i < HD; i++)
                    score[u] += qkv[t][h * HD + i] * qkv[u][H + h * HD + i] / sqrt((double)HD);
                sum += exp(score[u]);
            }
            for (int i = 0; i < HD; i++) {
                out[t][h * HD + i] = 0;
                for (int u = 0; u < S; u++)
                    out[t][h * HD + i] += exp(score[u]) / sum * qkv[u][2 * H + h * HD + i];
            }
        }
}

static void encoder_layer(const plain *p, int64_t l, double x[S][H])
{
    double qkv[S][3 * H], seen[S][H];
    for (int t = 0; t < S; t++) affine(p, l, PARAM_QKV_WEIGHT, H, 3 * H, x[t], qkv[t]);
    attend(qkv, seen);
    for (int t = 0; t < S; t++) {
        double sum[H], mid[H], up[FFN];
        affine(p, l, PARAM_OUT_WEIGHT, H, H, seen[t], sum);
        for (int i = 0; i < H; i++) sum[i] += x[t][i];
        norm(p, l, PARAM_NORM1_WEIGHT, sum, mid);
        affine(p, l, PARAM_UP_WEIGHT, H, FFN, mid, up);
        for (int i = 0; i < FFN; i++) up[i] = gelu(up[i]);
        affine(p, l, PARAM_DOWN_WEIGHT, FFN, H, up, sum);
        for (int i = 0; i < H; i++) sum[i] += mid[i];
        norm(p, l, PARAM_NORM2_WEIGHT, sum, x[t]);
    }
}

/* -log p of the target of one token behind the encoder. */
static double token_loss(const plain *p, const double *x, int32_t target)
{
    const double *const table = find(p, -1, PARAM_TOKEN_EMBEDDING);
    const double *const bias = find(p, -1, PARAM_HEAD_BIAS);
    double dense[H], y[H], sum = 0, at = 0;
    affine(p, -1, PARAM_HEAD_DENSE_WEIGHT, H, H, x, dense);
    for (int i = 0; i < H; i++) dense[i] = gelu(dense[i]);
    norm(p, -1, PARAM_FINAL_NORM_WEIGHT, dense, y);
    for (int v = 0; v < V; v++) {
        double logit = bias[v];
        for (int i = 0; i < H; i++) logit += table[v * H + i] * y[i];
        sum += exp(logit);
        if (v == target) at = logit;
    }
    return log(sum) - at;
}

static double plain_loss(const plain *p, const int32_t *ids, const int32_t *targets)
{
    const double *const token = find(p, -1, PARAM_TOKEN_EMBEDDING);
    const double *const position = find(p, -1, PARAM_POSITION_EMBEDDING);
    const double *const type = find(p, -1, PARAM_TYPE_EMBEDDING);
    double loss = 0;
    int counted = 0;
    for (int b = 0; b < B; b++) {
        double x[S][H];
        for (int t = 0; t < S; t++) {
            double sum[H];
            for (int i = 0; i < H; i++)
                sum[i] = token[ids[b * S + t] * H + i] + position[t * H + i] + type[i];
            norm(p, -1, PARAM_EMBEDDING_NORM_WEIGHT, sum, x[t]);
        }
        for (int64_t l = 0; l < bert.n_layers; l++) encoder_layer(p, l, x);
        for (int t = 0; t < S; t++) {
            if (targets[b * S + t] < 0) continue;
            counted++;
            loss += token_loss(p, x[t], targets[b * S + t]);
        }
    }
    return loss / counted;
}

/* --- the comparison --- */

typedef struct bench {
    td_arena *a;
    k_blas blas;
    k_ctx *ctx;
    stage_desc whole;
    sizes z;
    stage_code *code;
    stage_args args;
    float *weights;
    double *exact; /* the weights in double */
} bench;

static void open_bench(bench *b, recompute_mode mode)
{
    td_err err;
    *b = (bench){.a = td_arena_new(), .whole = {.n_layers = 2, .embedding = true, .head = true}};
    k_blas_open(&b->blas, NULL);
    b->ctx = k_ctx_start(td_alloc(b->a, 1, k_ctx_size(1)), &b->blas, 1);
    b->z = (sizes){.model = &bert,
                   .stages = &b->whole,
                   .n_stages = 1,
                   .chunks = 1,
                   .run = {.micro_batch = B, .seq_len = S, .tp = 1, .dp = 1, .recompute = mode}};
    assert_int_equal(stage_open(&b->z, b->ctx, b->a, &b->code, &err), TD_OK);
    const stage_code *const c = b->code;
    int32_t *const ids = td_alloc(b->a, (size_t)(2 * c->rows), sizeof *ids);
    b->weights = td_alloc(b->a, (size_t)c->elements, sizeof *b->weights);
    b->exact = td_alloc(b->a, (size_t)c->elements, sizeof *b->exact);
    b->args = (stage_args){.weights = b->weights,
                           .ids = ids,
                           .targets = ids + c->rows,
                           .grads = td_alloc(b->a, (size_t)c->grad_elements, sizeof(float)),
                           .stash = td_alloc(b->a, 1, (size_t)c->stash.bytes),
                           .scratch = td_alloc(b->a, 1, (size_t)c->scratch.bytes),
                           .grad_scale = 1.0f};
    corpus_random(3, V, c->rows, ids, ids + c->rows);
    corpus_mask(4, V, B, S, ids, ids + c->rows);
    td_rng r = td_rng_seed(5);
    for (int64_t i = 0; i < c->elements; i++) {
        b->weights[i] = (float)(0.4 * td_rng_normal(&r));
        b->exact[i] = (double)b->weights[i];
    }
}

static void close_bench(bench *b)
{
    k_ctx_stop(b->ctx);
    k_blas_close(&b->blas);
    td_arena_free(b->a);
}

/* (loss(w + h d) - loss(w - h d)) / 2h in double = <gradient, d>, for two random directions d in
 * each tensor; and once through the whole model. */
static void test_gradients(void **state)
{
    (void)state;
    for (int mode = RECOMPUTE_NONE; mode <= RECOMPUTE_FULL; mode++) {
        bench b;
        open_bench(&b, (recompute_mode)mode);
        const stage_code *const c = b.code;
        const plain p = {.params = c->params, .n_params = c->n_params, .w = b.exact};
        stage_forward(b.ctx, c, &b.args);
        stage_backward(b.ctx, c, &b.args);
        const double loss = plain_loss(&p, b.args.ids, b.args.targets);
        if (fabs(b.args.loss - loss) > 1e-6 * loss)
            fail_msg("loss %.9g, in double %.9g", b.args.loss, loss);
        td_rng r = td_rng_seed(17);
        for (int64_t t = 0; t < 2 * c->n_params; t++) {
            const param_tensor *const k = &c->params[t / 2];
            const int64_t n = k->rows * k->cols;
            const double h = 1e-5;
            double slope = 0, measured = 0, size = 0;
            double *const w = b.exact + k->offset;
            double *const d = TD_NEW_N(b.a, double, n), *const kept = TD_NEW_N(b.a, double, n);
            memcpy(kept, w, (size_t)n * sizeof *w);
            for (int64_t i = 0; i < n; i++) {
                d[i] = td_rng_normal(&r) / sqrt((double)n);
                double g = (double)b.args.grads[k->offset + i];
                if (k->kind == PARAM_TOKEN_EMBEDDING) g += (double)b.args.grads[c->elements + i];
                slope += g * d[i];
                size += g * g;
            }
            for (int s = -1; s <= 1; s += 2) {
                for (int64_t i = 0; i < n; i++) w[i] = kept[i] + s * h * d[i];
                measured += s * plain_loss(&p, b.args.ids, b.args.targets) / (2 * h);
            }
            memcpy(w, kept, (size_t)n * sizeof *w);
            if (fabs(measured - slope) > 1e-5 * (sqrt(size) + 0.01))
                fail_msg("recomputation %d: %s: slope %.9g, gradient says %.9g (norm %.3g)", mode,
                         k->name, measured, slope, sqrt(size));
        }
        close_bench(&b);
    }
}

/* --- under schedules --- */

static void hold(const char *name, int32_t pp, int32_t chunks, int32_t m, recompute_mode mode)
{
    td_arena *const a = td_arena_new();
    const exec_law k = {.model = &law_bert, .seq_len = 14, .steps = 3, .recompute = mode};
    const check_result r = exec_law_named(&k, name, NULL, pp, chunks, m, a, NULL);
    assert_true(r.exact); /* passed, so every bit is the reference's */
    td_arena_free(a);
}

static void test_law(void **state)
{
    (void)state;
    for (int mode = RECOMPUTE_NONE; mode <= RECOMPUTE_FULL; mode++) {
        hold("1f1b", 1, 1, 3, (recompute_mode)mode);
        hold("1f1b", 2, 1, 4, (recompute_mode)mode);
        hold("interleaved-1f1b", 2, 2, 4, (recompute_mode)mode);
    }
    hold("gpipe", 4, 1, 8, RECOMPUTE_NONE);
    hold("1f1b", 4, 1, 5, RECOMPUTE_FULL);
}

/* --- masks --- */

static void test_masks(void **state)
{
    (void)state;
    enum { SEQ = 100, BATCH = 400, WORDS = 256 };
    static int32_t before[SEQ * BATCH], ids[SEQ * BATCH], targets[SEQ * BATCH];
    static int32_t again[SEQ * BATCH], targets_again[SEQ * BATCH];
    corpus_random(9, WORDS - 1, SEQ * BATCH, before, targets);
    memcpy(ids, before, sizeof ids);
    memcpy(again, before, sizeof again);
    corpus_mask(1, WORDS, BATCH, SEQ, ids, targets);
    corpus_mask(1, WORDS, BATCH, SEQ, again, targets_again);
    assert_memory_equal(ids, again, sizeof ids);
    assert_memory_equal(targets, targets_again, sizeof targets);
    int hidden = 0, same = 0, other = 0;
    for (int b = 0; b < BATCH; b++) {
        int n = 0;
        for (int i = b * SEQ; i < (b + 1) * SEQ; i++) {
            if (targets[i] < 0) {
                assert_int_equal(targets[i], -1);
                assert_int_equal(ids[i], before[i]);
                continue;
            }
            assert_int_equal(targets[i], before[i]);
            n++;
            hidden += ids[i] == WORDS - 1;
            same += ids[i] == before[i];
            other += ids[i] != WORDS - 1 && ids[i] != before[i];
        }
        assert_int_equal(n, 15); /* of 100, in every sequence */
    }
    /* of 6000: 80, 10 and 10 %, within four standard deviations */
    assert_in_range(hidden, 4800 - 124, 4800 + 124);
    assert_in_range(same, 600 - 93, 600 + 93);
    assert_in_range(other, 600 - 93, 600 + 93);
    int32_t one = 7, wanted = 0;
    corpus_mask(2, WORDS, 1, 1, &one, &wanted);
    assert_int_equal(wanted, 7); /* at least one a sequence */
}

static void test_text_with_hidden_token(void **state)
{
    (void)state;
    td_arena *const a = td_arena_new();
    td_err err = {0};
    char path[64], text[120];
    (void)snprintf(path, sizeof path, "/tmp/td_masked_%ld", (long)getpid());
    memset(text, 'a', sizeof text);
    assert_int_equal(td_write_file(path, text, sizeof text, &err), TD_OK);
    corpus c;
    assert_int_equal(corpus_open(path, NULL, NULL, 256, true, 8, a, &c, &err), TD_OK);
    int32_t ids[16], targets[16];
    corpus_batch(&c, 1, 2, 3, false, 2, 8, ids, targets);
    int n = 0;
    for (int i = 0; i < 16; i++) n += targets[i] == 'a';
    assert_int_equal(n, 2); /* 15 % of 8, rounded, in each sequence */
    text[50] = (char)0xff;
    assert_int_equal(td_write_file(path, text, sizeof text, &err), TD_OK);
    assert_int_equal(corpus_open(path, NULL, NULL, 256, true, 8, a, &c, &err), TD_EUSAGE);
    assert_non_null(strstr(err.msg, "token 50"));
    assert_int_equal(corpus_open(path, NULL, NULL, 256, false, 8, a, &c, &err), TD_OK);
    (void)unlink(path);
    td_arena_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_law),
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_text_with_hidden_token),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
