/* What the files of this folder share: running pieces on the pool, the table of bodies that are
 * compiled once per instruction set, and their arguments. */
#ifndef KERNELS_K_INTERNAL_H
#define KERNELS_K_INTERNAL_H

#include "kernels/kernels.h"

/* --- pieces of work --- */

#define K_SCRATCH_FLOATS (68L * 1024) /* of each thread */

/* One piece of a call. Pieces run in any order on any thread and must not share outputs. */
typedef void (*k_work)(const void *args, long piece, float *scratch);

/* Runs fn for pieces 0..pieces-1 and returns when all are done. */
void k_run(k_ctx *ctx, long pieces, k_work fn, const void *args);

/* How many rows of that many columns make a piece: about `elements` elements, at least one row. */
static inline long k_block(long cols, long elements)
{
    const long rows = cols > 0 ? elements / cols : 1;
    return rows > 1 ? rows : 1;
}

static inline long k_pieces(long n, long block) { return (n + block - 1) / block; }

static inline long k_min(long a, long b) { return a < b ? a : b; }

/* --- matrix product of one piece --- */

/* As k_gemm_cpu, in the calling thread. */
void k_gemm_piece(const k_blas *blas, bool trans_a, bool trans_b, long m, long n, long k,
                  float alpha, const float *a, long lda, const float *b, long ldb, float beta,
                  float *c, long ldc);

/* Our own product for machines without BLAS: same contract. */
void k_gemm_plain(bool trans_a, bool trans_b, long m, long n, long k, float alpha, const float *a,
                  long lda, const float *b, long ldb, float beta, float *c, long ldc);

/* --- arguments of the bodies ---
 *
 * The members mean what they mean in kernels.h; in a backward, x is the input kept from the
 * forward, y the gradient that is assigned, and of the norms res is dres. block is the rows (of
 * vectors the elements, of embed_bwd the columns) of a piece. */

typedef struct k_norm_args {
    long rows, cols, block;
    float eps;
    const float *x, *bias, *res, *gamma, *beta, *dy;
    const float *mean_in, *rstd_in;
    float *sum, *y, *mean, *rstd, *dgamma, *dbeta;
} k_norm_args;

typedef struct k_row_args {
    long rows, cols, block, ld, ldd;
    const float *x, *up, *bias, *dy;
    float *y, *dup;
} k_row_args;

typedef struct k_rope_args {
    long rows, block, seq, pos0, heads, d, ld;
    float sign;
    const float *table;
    float *x;
} k_rope_args;

typedef struct k_embed_args {
    long rows, cols, block, seq, pos0;
    const int32_t *ids;
    k_words words;
    const float *tok, *pos, *extra, *dy;
    float *y, *dtok, *dpos, *dextra;
} k_embed_args;

typedef struct k_xent_args {
    long rows, vocab, ld, block;
    const float *logits, *lse_in;
    const int32_t *target;
    float scale;
    double *loss;
    float *lse, *dlogits;
} k_xent_args;

typedef struct k_vec_args {
    long n, block;
    float a;
    const float *x, *y;
    float *z;
    double *sums;
} k_vec_args;

typedef struct k_adamw_args {
    k_adamw p;
    float scale1, scale2; /* 1/(1-b1^step), 1/(1-b2^step) */
    long n, block;
    float *w, *g, *m, *v;
} k_adamw_args;

/* A tile of scores: rows x cols with ld cols; row r sees its first visible0 + r columns (all of
 * them where that is over cols). */
typedef struct k_tile {
    long rows, cols, visible0, d, o_ld;
    float scale;
} k_tile;

/* One instruction set's bodies. */
typedef struct k_isa {
    const char *name;
    k_work layernorm_fwd, layernorm_dx, layernorm_dgamma, rmsnorm_fwd, rmsnorm_dx, rmsnorm_dgamma;
    k_work bias_add, colsum, gelu_tanh_fwd, gelu_tanh_bwd, gelu_erf_fwd, gelu_erf_bwd;
    k_work swiglu_fwd, swiglu_bwd, rope, embed_fwd, embed_bwd, xent, xent_bwd;
    k_work fill, scale, axpy, add, sumsq, adamw;
    /* Scores to unnormalised probabilities; updates each row's maximum and sum and rescales what o
     * holds of it already (first: o holds nothing yet). */
    void (*softmax_tile)(const k_tile *t, bool first, float *s, float *max, float *sum, float *o);
    /* Divides each row of o by its sum and turns max into the log of the sum of exponentials. */
    void (*softmax_end)(const k_tile *t, const float *sum, const float *max, float *o, float *lse);
    /* s becomes the probabilities, dp the gradient of the scores. */
    void (*softmax_bwd)(const k_tile *t, const float *lse, const float *delta, float *s, float *dp);
    /* delta[r] = sum over d of o * dout. */
    void (*row_dots)(const k_tile *t, const float *o, const float *dout, float *delta);
} k_isa;

extern const k_isa k_isa_v1;
#if defined(__x86_64__)
extern const k_isa k_isa_v3;
extern const k_isa k_isa_v4;
#endif

/* The table of k_ops.h for this machine's cores. */
extern const struct k_ops k_ops_cpu;

const k_isa *k_ctx_bodies(const k_ctx *ctx);
const k_blas *k_ctx_blas(const k_ctx *ctx);
double *k_ctx_sums(k_ctx *ctx); /* K_SUMS doubles for the caller's thread */
#define K_SUMS 512L

#endif
