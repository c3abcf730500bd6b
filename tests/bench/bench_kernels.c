/* Times each kernel at the shapes of GPT-2 124M (batch 1, 256 tokens) and the sum of a training
 * step. usage: bench_kernels [THREADS [REPEATS]] */
#include "base/base.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { T = 256, C = 768, HEADS = 12, LAYERS = 12, VOCAB = 50304 };
enum { PARAMS = 124475904 };

typedef struct bench {
    td_arena *arena;
    k_ctx *ctx;
    int repeats;
    float *x, *y, *w, *z, *logits, *head,
        *vec; /* [T,4C] thrice, weights, [T,VOCAB], [VOCAB,C], [4C] */
    double *loss;
    int32_t *ids;
    double step_s;
} bench;

typedef struct row {
    const char *name;
    int per_step; /* calls in a step of the whole model */
    double flop, bytes;
    void (*run)(bench *b);
} row;

static void linear(bench *b, long in, long out)
{
    k_gemm_cpu(b->ctx, false, true, T, out, in, 1.0f, b->x, in, b->w, in, 0.0f, b->y, out);
}

static void linear_dx(bench *b, long in, long out)
{
    k_gemm_cpu(b->ctx, false, false, T, in, out, 1.0f, b->y, out, b->w, in, 0.0f, b->x, in);
}

static void linear_dw(bench *b, long in, long out)
{
    k_gemm_cpu(b->ctx, true, false, out, in, T, 1.0f, b->y, out, b->x, in, 1.0f, b->w, in);
}

#define LINEAR(name, in, out)                                                                      \
    static void name##_fwd(bench *b) { linear(b, in, out); }                                       \
    static void name##_dx(bench *b) { linear_dx(b, in, out); }                                     \
    static void name##_dw(bench *b) { linear_dw(b, in, out); }

LINEAR(qkv, C, 3 * C)
LINEAR(proj, C, C)
LINEAR(fc, C, 4 * C)
LINEAR(fcproj, 4 * C, C)

static void head_fwd(bench *b)
{
    k_gemm_cpu(b->ctx, false, true, T, VOCAB, C, 1.0f, b->x, C, b->head, C, 0.0f, b->logits, VOCAB);
}

static void head_dx(bench *b)
{
    k_gemm_cpu(b->ctx, false, false, T, C, VOCAB, 1.0f, b->logits, VOCAB, b->head, C, 0.0f, b->x,
               C);
}

static void head_dw(bench *b)
{
    k_gemm_cpu(b->ctx, true, false, VOCAB, C, T, 1e-6f, b->logits, VOCAB, b->x, C, 1.0f, b->head,
               C);
}

static void norm_fwd(bench *b)
{
    k_layernorm_fwd_cpu(b->ctx, T, C, 1e-5f, b->x, b->vec, b->z, b->z, b->vec, b->vec, b->y,
                        b->vec + C, b->vec + 2 * C);
}

static void norm_bwd(bench *b)
{
    k_layernorm_bwd_cpu(b->ctx, T, C, b->x, b->z, b->vec, b->vec + C, b->vec + 2 * C, b->y, b->y,
                        b->vec + 3 * C, b->vec + 3 * C);
}

static void rms_fwd(bench *b)
{
    k_rmsnorm_fwd_cpu(b->ctx, T, C, 1e-5f, b->x, b->z, b->z, b->vec, b->y, b->vec + 2 * C);
}

static void rms_bwd(bench *b)
{
    k_rmsnorm_bwd_cpu(b->ctx, T, C, b->x, b->z, b->vec, b->vec + 2 * C, b->y, b->y, b->vec + 3 * C);
}

static void gelu_fwd(bench *b)
{
    k_gelu_fwd_cpu(b->ctx, K_GELU_TANH, T, 4 * C, b->x, b->vec, b->y);
}

static void gelu_bwd(bench *b)
{
    k_gelu_bwd_cpu(b->ctx, K_GELU_TANH, T, 4 * C, b->x, b->vec, b->z, b->y);
}

static void swiglu_fwd(bench *b)
{
    k_swiglu_fwd_cpu(b->ctx, T, 2 * C, b->x, b->x + 2 * C, 4 * C, b->y);
}

static void swiglu_bwd(bench *b)
{
    k_swiglu_bwd_cpu(b->ctx, T, 2 * C, b->x, b->x + 2 * C, 4 * C, b->z, b->y, b->y + 2 * C, 4 * C);
}

static void rope_both(bench *b)
{
    k_rope_cpu(b->ctx, false, T, T, 0, HEADS, C / HEADS, b->logits, b->x, 3 * C);
}

static void bias_qkv(bench *b) { k_bias_add_cpu(b->ctx, T, 3 * C, b->y, 3 * C, b->vec); }

static void colsum_4c(bench *b) { k_colsum_cpu(b->ctx, T, 4 * C, b->y, 4 * C, b->vec); }

static k_attn attn_shape(void)
{
    return (k_attn){.batch = 1,
                    .heads = HEADS,
                    .kv_heads = HEADS,
                    .d = C / HEADS,
                    .s_q = T,
                    .s_kv = T,
                    .causal = true,
                    .scale = 0.125f,
                    .q_ld = 3 * C,
                    .kv_ld = 3 * C,
                    .o_ld = C,
                    .dq_ld = 3 * C,
                    .dkv_ld = 3 * C};
}

static void attn_fwd(bench *b)
{
    const k_attn a = attn_shape();
    k_attn_fwd_cpu(b->ctx, &a, b->x, b->x + C, b->x + 2 * C, b->y, b->logits);
}

static void attn_bwd(bench *b)
{
    const k_attn a = attn_shape();
    k_attn_bwd_cpu(b->ctx, &a, false, b->x, b->x + C, b->x + 2 * C, b->y, b->z, b->logits,
                   b->logits + HEADS * T, b->head, b->head + C, b->head + 2 * C);
}

static void embed_fwd(bench *b)
{
    k_embed_fwd_cpu(b->ctx, T, T, 0, C, b->ids, (k_words){0, VOCAB}, b->head, b->logits, NULL,
                    b->y);
}

static void embed_bwd(bench *b)
{
    k_embed_bwd_cpu(b->ctx, T, T, 0, C, b->ids, (k_words){0, VOCAB}, b->y, b->head, b->logits,
                    NULL);
}

static void xent_fused(bench *b)
{
    (void)k_xent_cpu(b->ctx, T, VOCAB, b->logits, VOCAB, b->ids, 1e-3f, b->loss, NULL, b->logits);
}

static void optimizer(bench *b)
{
    const k_adamw p = {.lr = 1e-4f,
                       .beta1 = 0.9f,
                       .beta2 = 0.95f,
                       .eps = 1e-8f,
                       .weight_decay = 0.1f,
                       .grad_scale = 1.0f,
                       .step = 3,
                       .clear_grad = true};
    const long n = PARAMS / 16; /* of each of the four, in turn through 31 M floats */
    k_adamw_cpu(b->ctx, &p, n, b->head, b->head + n, b->head + 2 * n, b->head + 3 * n);
}

static void norm_of_gradients(bench *b) { (void)k_sumsq_cpu(b->ctx, PARAMS / 4, b->head); }

#define GEMM3(name, n, in, out)                                                                    \
    {#name " fwd", n, 2.0 * T * (in) * (out), 0, name##_fwd},                                      \
        {#name " dx", n, 2.0 * T * (in) * (out), 0, name##_dx},                                    \
    {                                                                                              \
#name " dw", n, 2.0 * T *(in) * (out), 0, name##_dw                                        \
    }

static const row rows[] = {
    GEMM3(qkv, LAYERS, C, 3 * C),
    GEMM3(proj, LAYERS, C, C),
    GEMM3(fc, LAYERS, C, 4 * C),
    GEMM3(fcproj, LAYERS, 4 * C, C),
    GEMM3(head, 1, C, VOCAB),
    {"layer norm + residual fwd", 2 * LAYERS + 1, 0, 16.0 * T *C, norm_fwd},
    {"layer norm + residual bwd", 2 * LAYERS + 1, 0, 24.0 * T *C, norm_bwd},
    {"rms norm + residual fwd", 0, 0, 16.0 * T *C, rms_fwd},
    {"rms norm + residual bwd", 0, 0, 24.0 * T *C, rms_bwd},
    {"bias + gelu fwd", LAYERS, 0, 8.0 * T * 4 * C, gelu_fwd},
    {"bias + gelu bwd", LAYERS, 0, 12.0 * T * 4 * C, gelu_bwd},
    {"swiglu fwd", 0, 0, 12.0 * T * 2 * C, swiglu_fwd},
    {"swiglu bwd", 0, 0, 20.0 * T * 2 * C, swiglu_bwd},
    {"rotary", 0, 0, 8.0 * T *C, rope_both},
    {"bias qkv", LAYERS, 0, 8.0 * T * 3 * C, bias_qkv},
    {"column sums 4C", 2 * LAYERS + LAYERS / 4, 0, 4.0 * T * 4 * C, colsum_4c},
    {"attention fwd", LAYERS, 2.0 * T *T *C, 0, attn_fwd}, /* the half that the mask leaves */
    {"attention bwd", LAYERS, 5.0 * T *T *C, 0, attn_bwd},
    {"embedding fwd", 1, 0, 12.0 * T *C, embed_fwd},
    {"embedding bwd", 1, 0, 20.0 * T *C, embed_bwd},
    {"cross-entropy fwd + bwd", 1, 0, 16.0 * T *VOCAB, xent_fused},
    {"adamw (1/16 of the model)", 16, 0, 28.0 * (PARAMS / 16), optimizer},
    {"sum of squares (1/4)", 4, 0, 4.0 * (PARAMS / 4), norm_of_gradients},
};

static void measure(bench *b, const row *r)
{
    double best = HUGE_VAL;
    for (int i = 0; i <= b->repeats; i++) { /* the first one warms up */
        const int64_t begin = td_now_ns();
        r->run(b);
        const double s = (double)(td_now_ns() - begin) * 1e-9;
        if (i > 0 && s < best) best = s;
    }
    b->step_s += best * r->per_step;
    printf("%-28s %9.3f ms  x%-3d %8.1f ms", r->name, best * 1e3, r->per_step,
           best * 1e3 * r->per_step);
    if (r->flop > 0) printf("  %7.1f GFLOP/s", r->flop / best * 1e-9);
    if (r->bytes > 0) printf("  %7.1f GB/s", r->bytes / best * 1e-9);
    printf("\n");
}

static float *filled(bench *b, long n)
{
    float *x = TD_NEW_N(b->arena, float, n);
    td_rng rng = td_rng_seed(7);
    for (long i = 0; x && i < n; i++) x[i] = (float)td_rng_unit(&rng) * 0.1f - 0.05f;
    return x;
}

int main(int argc, char **argv)
{
    const int threads = argc > 1 ? atoi(argv[1]) : 2;
    bench b = {.arena = td_arena_new(), .repeats = argc > 2 ? atoi(argv[2]) : 5};
    k_blas blas;
    if (threads < 1 || threads > 256 || b.repeats < 1 || !b.arena) {
        fprintf(stderr, "usage: bench_kernels [THREADS [REPEATS]]\n");
        return 2;
    }
    k_blas_open(&blas, NULL);
    b.ctx = k_ctx_start(td_alloc(b.arena, 1, k_ctx_size(threads)), &blas, threads);
    b.x = filled(&b, 4L * T * C);
    b.y = filled(&b, 4L * T * C);
    b.z = filled(&b, 4L * T * C);
    b.w = filled(&b, 4L * C * C);
    b.vec = filled(&b, 4L * C);
    b.logits = filled(&b, (long)T * VOCAB);
    b.head = filled(&b, (long)VOCAB * C);
    b.loss = TD_NEW_N(b.arena, double, T);
    b.ids = TD_NEW_N(b.arena, int32_t, T);
    if (!b.ctx || !b.head || !b.ids) return 3;
    for (int i = 0; i < T; i++) b.ids[i] = i * 190 % VOCAB;
    printf("%s; rows %s; %d threads\n", k_blas_info(&blas), k_ctx_isa(b.ctx), threads);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) measure(&b, &rows[i]);
    printf("GPT-2 124M step of these calls: %.1f ms, %.0f tokens/s\n", b.step_s * 1e3,
           T / b.step_s);
    k_ctx_stop(b.ctx);
    k_blas_close(&blas);
    td_arena_free(b.arena);
    return 0;
}
