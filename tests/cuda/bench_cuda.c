/* Rates of the CUDA kernels: bytes a second of what memory bounds, beside a measured copy; FLOP a
 * second of products and attention. One line each; random data, bf16 and fp32. */
#include "tests/cuda/cuda_check.h"

#include <math.h>
#include <stdio.h>

enum { ROUNDS = 10 };

typedef struct bench {
    cuda_pair *p;
    k_cuda_event *from, *to;
    double copy; /* bytes a second */
} bench;

/* Seconds of one of ROUNDS calls, after one that warms up. */
#define TIME(b, seconds, call)                                                                     \
    do {                                                                                           \
        char why_[K_CUDA_WHY];                                                                     \
        call;                                                                                      \
        (void)k_cuda_record((b)->from, (b)->p->stream);                                            \
        for (int i_ = 0; i_ < ROUNDS; i_++) call;                                                  \
        (void)k_cuda_record((b)->to, (b)->p->stream);                                              \
        (void)k_cuda_synchronize(0, why_);                                                         \
        (seconds) = (double)k_cuda_elapsed_ns((b)->from, (b)->to) / 1e9 / ROUNDS;                  \
    } while (0)

static void show_bytes(const bench *b, const char *what, double bytes, double seconds)
{
    (void)printf("%-5s %-28s %8.3f ms %8.1f GB/s %5.1f %% of copy\n", b->p->bf16 ? "bf16" : "fp32",
                 what, seconds * 1e3, bytes / seconds / 1e9, 100 * bytes / seconds / b->copy);
}

static void show_flops(const bench *b, const char *what, double flops, double seconds)
{
    (void)printf("%-5s %-28s %8.3f ms %8.1f TFLOP/s\n", b->p->bf16 ? "bf16" : "fp32", what,
                 seconds * 1e3, flops / seconds / 1e12);
}

/* A tensor that is large: only its first part is random, the rest repeats it on the device. */
static cuda_tensor large(bench *b, long n, bool wide)
{
    const long part = 1 << 18;
    cuda_tensor t = cuda_random(b->p, n < part ? n : part, wide);
    if (n <= part) return t;
    const size_t size = b->p->bf16 && !wide ? 2 : 4;
    char why[K_CUDA_WHY] = "";
    char *const at = k_cuda_alloc(0, (size_t)n * size, why);
    if (at == NULL) return t;
    for (long i = 0; i < n; i += part) {
        const long m = n - i < part ? n - i : part;
        (void)k_cuda_copy(b->p->stream, at + (size_t)i * size, t.gpu, (int64_t)((size_t)m * size));
    }
    b->p->held[b->p->n_held++] = at;
    t.gpu = at;
    t.n = n;
    return t;
}

static void bandwidth(bench *b)
{
    cuda_pair *const p = b->p;
    const k_ops *const ops = k_ops_of(p->gpu);
    const long rows = 16384, cols = 4096, n = rows * cols;
    const double e = p->bf16 ? 2 : 4, size = e * (double)n;
    double s = 0;
    const cuda_tensor x = large(b, n, false), y = large(b, n, false), z = large(b, n, false);
    const cuda_tensor w = large(b, 2 * n, false), gamma = cuda_random(p, cols, false);
    const cuda_tensor mean = cuda_random(p, rows, true), rstd = cuda_random(p, rows, true);
    const cuda_tensor dg = cuda_random(p, cols, true), db = cuda_random(p, cols, true);
    TIME(b, s, ops->copy(p->gpu, z.gpu, x.gpu, (size_t)size));
    b->copy = 2 * size / s;
    show_bytes(b, "copy", 2 * size, s);
    TIME(b, s, ops->add(p->gpu, n, cuda_at(&x), cuda_at(&y), cuda_at(&z)));
    show_bytes(b, "add", 3 * size, s);
    TIME(b, s,
         ops->layernorm_fwd(p->gpu, rows, cols, 1e-5f, cuda_at(&x), cuda_at(&gamma), cuda_at(&y),
                            cuda_at(&x), cuda_at(&gamma), cuda_at(&gamma), cuda_at(&z),
                            cuda_at(&mean), cuda_at(&rstd)));
    show_bytes(b, "layernorm + residual", 4 * size, s);
    TIME(b, s,
         ops->rmsnorm_fwd(p->gpu, rows, cols, 1e-5f, cuda_at(&x), NULL, NULL, cuda_at(&gamma),
                          cuda_at(&z), cuda_at(&rstd)));
    show_bytes(b, "rmsnorm", 2 * size, s);
    TIME(b, s,
         ops->layernorm_bwd(p->gpu, rows, cols, cuda_at(&x), cuda_at(&y), cuda_at(&gamma),
                            cuda_at(&mean), cuda_at(&rstd), NULL, cuda_at(&z), NULL, NULL));
    show_bytes(b, "layernorm backward, dx", 3 * size, s);
    TIME(b, s,
         ops->layernorm_bwd(p->gpu, rows, cols, cuda_at(&x), cuda_at(&y), cuda_at(&gamma),
                            cuda_at(&mean), cuda_at(&rstd), NULL, NULL, cuda_at(&dg),
                            cuda_at(&db)));
    show_bytes(b, "layernorm backward, sums", 2 * size, s);
    TIME(b, s, ops->colsum(p->gpu, rows, cols, cuda_at(&x), cols, cuda_at(&dg)));
    show_bytes(b, "colsum", size, s);
    TIME(b, s,
         ops->gelu_fwd(p->gpu, K_GELU_TANH, rows, cols, cuda_at(&x), cuda_at(&gamma), cuda_at(&z)));
    show_bytes(b, "gelu", 2 * size, s);
    TIME(b, s,
         ops->gelu_bwd(p->gpu, K_GELU_TANH, rows, cols, cuda_at(&x), cuda_at(&gamma), cuda_at(&y),
                       cuda_at(&z)));
    show_bytes(b, "gelu backward", 3 * size, s);
    TIME(b, s,
         ops->swiglu_fwd(p->gpu, rows, cols, cuda_at(&w), cuda_skip(p, &w, cols), 2 * cols,
                         cuda_at(&z)));
    show_bytes(b, "swiglu", 3 * size, s);
    cuda_pair_clear(p);
}

/* Rotary positions in place, gradients of a table, a shard of the vocabulary. */
static void tables(bench *b)
{
    cuda_pair *const p = b->p;
    const long rows = 8192, heads = 32, d = 128, cols = heads * d, vocab = 32000;
    const double size = (p->bf16 ? 2 : 4) * (double)(rows * cols);
    const k_ops *const ops = k_ops_of(p->gpu);
    const cuda_tensor x = large(b, rows * cols, false), turns = large(b, rows * d, true);
    const cuda_tensor dtok = large(b, vocab * cols, true);
    const int32_t *const ids = cuda_ints(p, rows, vocab, false);
    double s = 0;
    TIME(b, s,
         ops->rope(p->gpu, false, rows, rows, 0, heads, d, cuda_at(&turns), cuda_at(&x), cols));
    show_bytes(b, "rotary positions", 2 * size, s);
    TIME(b, s,
         ops->embed_bwd(p->gpu, rows, rows, 0, cols, ids, (k_words){0, vocab}, cuda_at(&x),
                        cuda_at(&dtok), NULL, NULL));
    show_bytes(b, "embedding backward", size + 8 * (double)(rows * cols), s);
    cuda_pair_clear(p);
    const cuda_tensor y = large(b, rows * vocab, false), stats = large(b, 3 * rows, true);
    const k_vocab_shard shard = {{0, vocab}, vocab, cuda_ints(p, rows, vocab, false)};
    const double logits = (p->bf16 ? 2 : 4) * (double)(rows * vocab);
    TIME(b, s, ops->vocab_softmax(p->gpu, rows, &shard, cuda_at(&y), cuda_at(&stats)));
    show_bytes(b, "softmax of a shard", 3 * logits, s);
    TIME(b, s, ops->vocab_gradient(p->gpu, rows, &shard, 1.0f, cuda_at(&stats), cuda_at(&y)));
    show_bytes(b, "  its gradient", 2 * logits, s);
    cuda_pair_clear(p);
}

static void losses(bench *b)
{
    cuda_pair *const p = b->p;
    const long rows = 4096, vocab = 50257, ld = 50272;
    const cuda_tensor x = large(b, rows * ld, false), loss = cuda_random(p, 2 * rows, true);
    const int32_t *const target = cuda_ints(p, rows, vocab, false);
    double s = 0;
    TIME(b, s,
         (void)k_ops_of(p->gpu)->xent(p->gpu, rows, vocab, cuda_at(&x), ld, target, 1.0f, loss.gpu,
                                      NULL, cuda_at(&x)));
    show_bytes(b, "cross-entropy", 3 * (double)(rows * vocab) * (p->bf16 ? 2 : 4), s);
    cuda_pair_clear(p);
}

static void optimizer(bench *b)
{
    cuda_pair *const p = b->p;
    const long n = 1L << 28;
    const cuda_tensor w = large(b, n, false), g = large(b, n, true), m = large(b, 3 * n, true);
    const cuda_tensor room = cuda_random(p, 64, true);
    k_adamw_piece *const piece = room.gpu;
    *piece = (k_adamw_piece){.count = n, .decays = true};
    double *const scale = (double *)room.gpu + 16, s = 0;
    scale[0] = scale[1] = 1.0;
    const k_adamw a = {.lr = 1e-4f,
                       .beta1 = 0.9f,
                       .beta2 = 0.95f,
                       .eps = 1e-8f,
                       .weight_decay = 0.1f,
                       .step = 3,
                       .clear_grad = true};
    const k_adamw_stage stage = {.pieces = piece,
                                 .n_pieces = 1,
                                 .n_blocks = n / K_ADAMW_BLOCK,
                                 .moments = n,
                                 .weights = cuda_at(&w),
                                 .grads = cuda_at(&g),
                                 .m = cuda_at(&m)};
    TIME(b, s, k_ops_of(p->gpu)->adamw(p->gpu, &a, &stage, scale));
    show_bytes(b, "adamw", (double)n * (p->bf16 ? 34 : 32), s);
    TIME(b, s, k_ops_of(p->gpu)->norms(p->gpu, &stage, scale + 4));
    show_bytes(b, "gradient norm", (double)n * 4, s);
    cuda_pair_clear(p);
}

static void product(bench *b, long m, long n, long k)
{
    cuda_pair *const p = b->p;
    char name[60];
    const cuda_tensor x = large(b, m * k, false), w = large(b, n * k, false);
    const cuda_tensor y = large(b, m * n, false), dw = large(b, n * k, true);
    const double flops = 2 * (double)m * (double)n * (double)k;
    double s = 0;
    TIME(b, s,
         k_ops_of(p->gpu)->gemm(p->gpu, false, true, m, n, k, 1.0f, cuda_at(&x), k, cuda_at(&w), k,
                                0.0f, cuda_at(&y), n));
    (void)snprintf(name, sizeof name, "y = x W^T %ld,%ld,%ld", m, n, k);
    show_flops(b, name, flops, s);
    TIME(b, s,
         k_ops_of(p->gpu)->gemm(p->gpu, false, false, m, k, n, 1.0f, cuda_at(&y), n, cuda_at(&w), k,
                                0.0f, cuda_at(&x), k));
    show_flops(b, "  dx = dy W", flops, s);
    TIME(b, s,
         k_ops_of(p->gpu)->gemm_grad(p->gpu, true, false, n, k, m, 1.0f, cuda_at(&y), n,
                                     cuda_at(&x), k, 1.0f, cuda_at(&dw), k));
    show_flops(b, "  dW += dy^T x", flops, s);
    cuda_pair_clear(p);
}

static void attention(bench *b, long batch, long heads, long kv_heads, long d, long t)
{
    cuda_pair *const p = b->p;
    char name[60];
    const long q = heads * d, kv = kv_heads * d, all = q + 2 * kv;
    const cuda_tensor x = large(b, batch * t * all, false), o = large(b, batch * t * q, false);
    const cuda_tensor dx = large(b, batch * t * all, false), dout = large(b, batch * t * q, false);
    const cuda_tensor lse = large(b, batch * heads * t, true);
    const cuda_tensor delta = large(b, batch * heads * t, true);
    const k_attn a = {.batch = batch,
                      .heads = heads,
                      .kv_heads = kv_heads,
                      .d = d,
                      .s_q = t,
                      .s_kv = t,
                      .causal = true,
                      .scale = (float)(1.0 / sqrt((double)d)),
                      .q_ld = all,
                      .q_batch = t * all,
                      .kv_ld = all,
                      .kv_batch = t * all,
                      .o_ld = q,
                      .o_batch = t * q,
                      .dq_ld = all,
                      .dq_batch = t * all,
                      .dkv_ld = all,
                      .dkv_batch = t * all};
    const double flops = 2 * (double)(batch * heads) * (double)(t * t) * (double)d;
    double s = 0;
    TIME(b, s,
         k_ops_of(p->gpu)->attn_fwd(p->gpu, &a, cuda_at(&x), cuda_skip(p, &x, q),
                                    cuda_skip(p, &x, q + kv), cuda_at(&o), cuda_at(&lse)));
    (void)snprintf(name, sizeof name, "attention d%ld %ld heads %ld", d, heads, t);
    show_flops(b, name, flops, s);
    TIME(b, s,
         k_ops_of(p->gpu)->attn_bwd(p->gpu, &a, false, cuda_at(&x), cuda_skip(p, &x, q),
                                    cuda_skip(p, &x, q + kv), cuda_at(&o), cuda_at(&dout),
                                    cuda_at(&lse), cuda_at(&delta), cuda_at(&dx),
                                    cuda_skip(p, &dx, q), cuda_skip(p, &dx, q + kv)));
    show_flops(b, "  backward", 2.5 * flops, s);
    cuda_pair_clear(p);
}

static void all(cuda_pair *p)
{
    char why[K_CUDA_WHY];
    bench b = {.p = p, .from = k_cuda_event_open(0, why), .to = k_cuda_event_open(0, why)};
    bandwidth(&b);
    tables(&b);
    losses(&b);
    optimizer(&b);
    product(&b, 8192, 4096, 4096);
    if (p->bf16) product(&b, 16384, 6400, 1600);
    if (p->bf16) product(&b, 8192, 14336, 4096);
    attention(&b, 4, 25, 25, 64, 1024);
    attention(&b, 1, 32, 8, 128, 4096);
    k_cuda_event_close(b.from);
    k_cuda_event_close(b.to);
}

int main(void) { return cuda_main(all, "bench"); }
