/* The arithmetic of training a transformer, fp32, on CPU cores.
 *
 * Conventions, for every function here:
 *  - Matrices are row-major. `ld` is the distance in elements between two rows (ld >= cols); where
 *    a function has no ld the rows are contiguous. Lengths, strides and counts are in elements.
 *  - Outputs are ASSIGNED, every element of them, unless the comment says "+=". Gradients of
 *    parameters are +=; activations and their gradients are assigned.
 *  - Pointers must not overlap, except where "may be" is said. No alignment is needed.
 *  - Nothing is allocated; nothing is global. Sizes of zero are legal and do nothing.
 *  - Deterministic: the same arguments give the same bits, for any number of threads (work is cut
 *    into pieces by shape alone, and no piece shares an output with another).
 *  - A context serves one call at a time; different contexts may be used at the same time. */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- matrix library and threads --- */

/* The matrix libraries in use. Fill it with k_blas_open; treat the members as private. */
typedef struct k_blas {
    void *handle;
    void (*sgemm)(void);  /* OpenBLAS's, or NULL */
    void (*onednn)(void); /* oneDNN's, or NULL */
    char info[200];
} k_blas;

/* Opens the libraries of matrix products, one thread per call. which: NULL or "auto": OpenBLAS
 * (libopenblas.so.0), and beside it oneDNN (libdnnl.so.3 or .2) on CPUs with AVX-512, which then
 * takes the products of the shapes where it is the faster one; "openblas": that alone; "onednn":
 * both, on any CPU; "own": our own slower product, which serves also where no library is found.
 * False when the library named is not there (blas can be used all the same).
 * On CPUs with AVX-512 whose core OpenBLAS would not recognise it sets OPENBLAS_CORETYPE
 * beforehand, unless that is already set; so call this once per process, before other threads
 * start. */
bool k_blas_open(k_blas *blas, const char *which);
void k_blas_close(k_blas *blas);

/* For a run's header: libraries, variant, core, e.g. "OpenBLAS 0.3.21 pthread, SkylakeX" or
 * "oneDNN 2.6.3; OpenBLAS 0.3.21 pthread, Haswell". */
const char *k_blas_info(const k_blas *blas);

/* A context: a BLAS, a pool of threads, and their scratch (272 KiB each). */
typedef struct k_ctx k_ctx;

/* Bytes that a context with that many threads needs (threads >= 1). */
size_t k_ctx_size(int threads);

/* Builds a context in mem (k_ctx_size(threads) bytes, 64-byte aligned) and starts threads - 1
 * threads; the caller's is the other one. blas must outlive it. NULL when a thread cannot start. */
k_ctx *k_ctx_start(void *mem, const k_blas *blas, int threads);

/* Ends the threads. The memory is the caller's again. NULL is fine. */
void k_ctx_stop(k_ctx *ctx);

int k_ctx_threads(const k_ctx *ctx);

/* The instruction set in use: "v4" (AVX-512), "v3" (AVX2), "v1" (any). All give the same bits. */
const char *k_ctx_isa(const k_ctx *ctx);
/* Chooses another; false when this CPU or build lacks it. */
bool k_ctx_set_isa(k_ctx *ctx, const char *isa);

/* --- matrix product --- */

/* C = alpha * op(A) op(B) + beta * C; op(A) is m x k, op(B) k x n, C m x n. A is stored m x k with
 * lda, or k x m when trans_a; B is stored k x n with ldb, or n x k when trans_b. beta 0 never reads
 * C. (y = x W^T of a [out,in] weight: trans_b; of a [in,out] weight: neither; dW += dy^T x:
 * trans_a, beta 1.) */
void k_gemm_cpu(k_ctx *ctx, bool trans_a, bool trans_b, long m, long n, long k, float alpha,
                const float *a, long lda, const float *b, long ldb, float beta, float *c, long ldc);

/* --- rows: norms --- */

/* s = x + bias + res; y = (s - mean(s)) * rstd(s) * gamma + beta, rstd = 1/sqrt(var(s) + eps) with
 * the biased variance. x, res, sum, y: [rows, cols]; bias, gamma, beta: [cols]; mean, rstd: [rows].
 * bias, res, sum may be NULL (left out); sum may be x or res. */
void k_layernorm_fwd_cpu(k_ctx *ctx, long rows, long cols, float eps, const float *x,
                         const float *bias, const float *res, float *sum, const float *gamma,
                         const float *beta, float *y, float *mean, float *rstd);

/* dx = dres + rstd * (g - mean(g) - xhat * mean(g * xhat)), g = dy * gamma, xhat = (s - mean) *
 * rstd; dgamma += sum over rows of dy * xhat; dbeta += of dy. s is the norm's input (x + bias +
 * res). dres may be NULL; dx NULL skips dx; dgamma and dbeta both NULL skip those (split backward).
 * dx may be dy, dres or s. */
void k_layernorm_bwd_cpu(k_ctx *ctx, long rows, long cols, const float *dy, const float *s,
                         const float *gamma, const float *mean, const float *rstd,
                         const float *dres, float *dx, float *dgamma, float *dbeta);

/* s = x + res; y = s * rstd * gamma, rstd = 1/sqrt(mean(s^2) + eps) (Zhang and Sennrich 2019).
 * res and sum may be NULL; sum may be x or res. */
void k_rmsnorm_fwd_cpu(k_ctx *ctx, long rows, long cols, float eps, const float *x,
                       const float *res, float *sum, const float *gamma, float *y, float *rstd);

/* dx = dres + rstd * (g - xhat * mean(g * xhat)), g = dy * gamma, xhat = s * rstd; dgamma += sum of
 * dy * xhat. dres, dx, dgamma may be NULL; dx may be dy, dres or s. */
void k_rmsnorm_bwd_cpu(k_ctx *ctx, long rows, long cols, const float *dy, const float *s,
                       const float *gamma, const float *rstd, const float *dres, float *dx,
                       float *dgamma);

/* --- rows: elementwise --- */

/* x[r][c] += bias[c], in place. */
void k_bias_add_cpu(k_ctx *ctx, long rows, long cols, float *x, long ld, const float *bias);

/* out[c] += sum over rows of x[r][c], rows in order. */
void k_colsum_cpu(k_ctx *ctx, long rows, long cols, const float *x, long ld, float *out);

typedef enum k_gelu { K_GELU_TANH, K_GELU_ERF } k_gelu; /* GPT-2's and BERT's */

/* y = gelu(x + bias); x, y: [rows, cols]; bias NULL is zero; y may be x.
 * TANH: u/2 (1 + tanh(sqrt(2/pi)(u + 0.044715 u^3))); ERF: u/2 (1 + erf(u / sqrt 2)). */
void k_gelu_fwd_cpu(k_ctx *ctx, k_gelu kind, long rows, long cols, const float *x,
                    const float *bias, float *y);

/* dx = dy * gelu'(x + bias); dx may be dy or x. The bias' gradient is k_colsum_cpu of dx. */
void k_gelu_bwd_cpu(k_ctx *ctx, k_gelu kind, long rows, long cols, const float *x,
                    const float *bias, const float *dy, float *dx);

/* y = silu(gate) * up, silu(u) = u / (1 + e^-u). gate and up: [rows, cols] with ld (the two halves
 * of a fused projection: ld = 2 cols, up = gate + cols); y: [rows, cols]. */
void k_swiglu_fwd_cpu(k_ctx *ctx, long rows, long cols, const float *gate, const float *up, long ld,
                      float *y);

/* dgate = dy * up * silu'(gate); dup = dy * silu(gate); both with ldd. dgate may be gate together
 * with dup being up (ldd = ld). */
void k_swiglu_bwd_cpu(k_ctx *ctx, long rows, long cols, const float *gate, const float *up, long ld,
                      const float *dy, float *dgate, float *dup, long ldd);

/* Rotary tables: table[p][i] = cos(p w_i), table[p][d/2 + i] = sin(p w_i), w_i = theta^(-2i/d),
 * i < d/2, p < positions. table: [positions, d], d even. (Su et al. 2021) */
void k_rope_table_cpu(k_ctx *ctx, long positions, long d, double theta, float *table);

/* Rotates, in place, each head's (x_i, x_{i + d/2}) by its position's angles (the half-rotation
 * form of Hugging Face models). x: row r holds `heads` heads of d, with ld; its position is
 * pos0 + r % seq. The table covers positions up to pos0 + seq. backward: rotates back. */
void k_rope_cpu(k_ctx *ctx, bool backward, long rows, long seq, long pos0, long heads, long d,
                const float *table, float *x, long ld);

/* --- embedding and loss --- */

/* The rows of a table that are here: those of words [first, first + count). */
typedef struct k_words {
    long first, count;
} k_words;

/* y[r] = tok[ids[r] - first] + pos[pos0 + r % seq] + extra, where a word that is not here has zeros
 * for its row. tok: [words.count, cols]; pos: [>= pos0 + seq, cols] or NULL; extra: [cols] or NULL
 * (BERT's token type). y: [rows, cols]. */
void k_embed_fwd_cpu(k_ctx *ctx, long rows, long seq, long pos0, long cols, const int32_t *ids,
                     k_words words, const float *tok, const float *pos, const float *extra,
                     float *y);

/* dtok[ids[r] - first] += dy[r] for words that are here, dpos[pos0 + r % seq] += dy[r], dextra +=
 * dy[r], rows in order. Each of dtok, dpos, dextra may be NULL; ids too where dtok is. */
void k_embed_bwd_cpu(k_ctx *ctx, long rows, long seq, long pos0, long cols, const int32_t *ids,
                     k_words words, const float *dy, float *dtok, float *dpos, float *dextra);

/* Cross-entropy of each row against its target: loss[r] = lse[r] - logits[r][target[r]], lse the
 * log of the sum of exponentials; rows with target -1 (ignored) have loss 0 and gradient 0.
 * dlogits = scale * (softmax - onehot). logits, dlogits: [rows, vocab] with ld. loss: [rows]
 * double. lse: [rows] or NULL. dlogits: NULL (loss only) or may be logits. Returns the sum of loss
 * in row order. */
double k_xent_cpu(k_ctx *ctx, long rows, long vocab, const float *logits, long ld,
                  const int32_t *target, float scale, double *loss, float *lse, float *dlogits);

/* The gradient alone, given lse from an earlier k_xent_cpu: the same bits as there. */
void k_xent_bwd_cpu(k_ctx *ctx, long rows, long vocab, const float *logits, long ld,
                    const int32_t *target, float scale, const float *lse, float *dlogits);

/* --- vocabulary shards ---
 *
 * The softmax over a table whose rows lie in shards, each with consecutive words. `_f64`: the same
 * arithmetic in double, in the calling thread. */

typedef struct k_vocab_shard {
    k_words words;
    long ld;               /* columns of the logits, those behind the words are padding */
    const int32_t *target; /* [rows]; -1 is not counted */
} k_vocab_shard;

/* The third statistic of a row whose target is another shard's; all others are <= 0. */
#define K_VOCAB_ELSEWHERE 1

/* y: [rows, words] with ld, logits, become the softmax over the shard's words, 0 behind them.
 * stats: [3, rows] the largest logit m, the sum of e^(y - m), the target's y - m. */
void k_vocab_softmax_cpu(k_ctx *ctx, long rows, const k_vocab_shard *w, float *y, float *stats);
void k_vocab_softmax_f64(long rows, const k_vocab_shard *w, double *y, double *stats);

/* What n shards bring together: data[i] + stats_at (bytes): [3, rows] statistics of shard i;
 * data[i] + inputs_at: [2, rows, width], its parts of the input's gradient, of the softmax and of
 * the target. width 0: no such parts. */
typedef struct k_vocab_parts {
    void *const *data; /* [n] */
    long n, rows, width, stats_at, inputs_at;
} k_vocab_parts;

/* What the words of a shard give to the gradient of the input, before the shards are joined, in two
 * parts: a: [rows, cols], the softmax' part, keeps its counted rows, the others become 0; g: [rows,
 * cols] = weight * table[target], 0 where that is not counted or another shard's. table: [words,
 * cols]. */
void k_vocab_inputs_cpu(k_ctx *ctx, long rows, long cols, const k_vocab_shard *w, float weight,
                        const float *table, float *a, float *g);

/* The statistics become each shard's share of the softmax, the sum of all exponentials S and the
 * target's logit, the last two less the largest logit; the first of the two parts the whole input
 * gradient, sum of share * first - second, in all shards. Sums are in shard order. */
void k_vocab_join(const k_vocab_parts *p);
void k_vocab_join_f64(const k_vocab_parts *p);

/* q, as left by softmax, becomes weight * (alpha q - onehot): the gradient of the logits. */
void k_vocab_gradient_cpu(k_ctx *ctx, long rows, const k_vocab_shard *w, float weight,
                          const float *alpha, float *q);
void k_vocab_gradient_f64(long rows, const k_vocab_shard *w, double weight, const double *alpha,
                          double *q);

/* Sum of the counted rows' losses, log S less the target's logit, from joined statistics ([3,
 * rows]). */
double k_vocab_loss(long rows, const int32_t *target, const float *stats);
double k_vocab_loss_f64(long rows, const int32_t *target, const double *stats);

/* --- attention --- */

/* Keys and values of some rows: row r of batch b, head h starts at base + b * batch + r * ld + h *
 * d. */
typedef struct k_keys {
    const float *k, *v;
    long rows, ld, batch;
} k_keys;

/* Queries of s_q rows against keys of s_kv rows. causal: query r sees keys c <= r + (s_kv - s_q)
 * (the mask is aligned to the bottom right, so a slice at offset o passes s_kv = o + s_q);
 * otherwise all. heads is a multiple of kv_heads; query head h reads key head h / (heads/kv_heads).
 * Row r of batch b, head h starts at base + b * batch + r * ld + h * d. K and V share strides,
 * so do dK and dV. */
typedef struct k_attn {
    long batch, heads, kv_heads, d;
    long s_q, s_kv;
    bool causal;
    float scale;            /* of the scores, normally 1/sqrt(d) */
    const int32_t *kv_len;  /* [batch] keys that count, 1..s_kv; NULL: all */
    long q_ld, q_batch;     /* q */
    long kv_ld, kv_batch;   /* k, v; unused with pieces */
    long o_ld, o_batch;     /* o, dout */
    long dq_ld, dq_batch;   /* dq */
    long dkv_ld, dkv_batch; /* dk, dv */
    const k_keys *pieces;   /* [n_pieces] the keys one after the other, s_kv rows in all, in place
                               of k and v; n_pieces 0: k and v hold them all */
    long n_pieces;
    bool float_dkv; /* devices: dk and dv are floats whatever the elements are */
} k_attn;

/* o = softmax(scale q k^T + mask) v; lse[b][h][r] = log of the sum of exponentials of the scaled
 * scores ([batch, heads, s_q]). The scores are never stored whole (Dao et al. 2022). */
void k_attn_fwd_cpu(k_ctx *ctx, const k_attn *a, const float *q, const float *k, const float *v,
                    float *o, float *lse);

/* dq is assigned. dk, dv ([s_kv] rows) are += when accumulate, else assigned: slices run last to
 * first and accumulate over the whole prefix. delta: workspace [batch, heads, s_q]. dq, dk, dv may
 * be views of one buffer. */
void k_attn_bwd_cpu(k_ctx *ctx, const k_attn *a, bool accumulate, const float *q, const float *k,
                    const float *v, const float *o, const float *dout, const float *lse,
                    float *delta, float *dq, float *dk, float *dv);

/* --- vectors and optimizer --- */

void k_fill_cpu(k_ctx *ctx, long n, float value, float *x);             /* x = value */
void k_scale_cpu(k_ctx *ctx, long n, float a, float *x);                /* x *= a */
void k_axpy_cpu(k_ctx *ctx, long n, float a, const float *x, float *y); /* y += a x */
void k_add_cpu(k_ctx *ctx, long n, const float *x, const float *y,
               float *z); /* z = x + y; z may be either */

/* Sum of squares in double, in a fixed order: exactly the same for any thread count. NaN and
 * infinity come through. */
double k_sumsq_cpu(k_ctx *ctx, long n, const float *x);

/* One AdamW step's numbers (Loshchilov and Hutter 2019). */
typedef struct k_adamw {
    float lr, beta1, beta2, eps, weight_decay;
    float grad_scale; /* the gradient is multiplied by this first (clipping); 1 for none */
    long step;        /* 1 for the first step: bias correction */
    bool clear_grad;  /* sets g to 0 afterwards */
} k_adamw;

/* g' = grad_scale g; m = b1 m + (1-b1) g'; v = b2 v + (1-b2) g'^2;
 * w -= lr (m/(1-b1^step) / (sqrt(v/(1-b2^step)) + eps) + weight_decay w). All [n]. */
void k_adamw_cpu(k_ctx *ctx, const k_adamw *p, long n, float *w, float *g, float *m, float *v);

#endif
