/* Matrix products: cut into pieces by shape, each piece one call of the BLAS. */
#include "kernels/k_internal.h"

typedef void (*sgemm_fn)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                         const float *a, int lda, const float *b, int ldb, float beta, float *c,
                         int ldc);

typedef int (*onednn_fn)(char trans_a, char trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                         const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
                         float *c, int64_t ldc);

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 }; /* of the CBLAS interface */

typedef struct gemm_args {
    const k_blas *blas;
    bool trans_a, trans_b, by_rows;
    long m, n, k, width;
    float alpha, beta;
    const float *a, *b;
    float *c;
    long lda, ldb, ldc;
} gemm_args;

void k_gemm_piece(const k_blas *blas, bool trans_a, bool trans_b, long m, long n, long k,
                  float alpha, const float *a, long lda, const float *b, long ldb, float beta,
                  float *c, long ldc)
{
    if (!blas->sgemm) {
        k_gemm_plain(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    ((sgemm_fn)blas->sgemm)(ROW_MAJOR, trans_a ? TRANS : NO_TRANS, trans_b ? TRANS : NO_TRANS,
                            (int)m, (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb, beta, c,
                            (int)ldc);
}

/* Measured on Zen 4: oneDNN is ahead but for small products and for deep ones whose second operand
 * must be transposed. By shape alone, so that the same product gives the same bits everywhere. */
static bool suits_onednn(bool trans_b, long m, long n, long k)
{
    enum { DEEP = 2048 };
    return (double)m * (double)n * (double)k >= 1e6 && !(trans_b && k >= DEEP);
}

static void product(const k_blas *blas, bool trans_a, bool trans_b, long m, long n, long k,
                    float alpha, const float *a, long lda, const float *b, long ldb, float beta,
                    float *c, long ldc)
{
    if (blas->onednn && suits_onednn(trans_b, m, n, k)) {
        const int failed = ((onednn_fn)blas->onednn)(trans_a ? 'T' : 'N', trans_b ? 'T' : 'N', m, n,
                                                     k, alpha, a, lda, b, ldb, beta, c, ldc);
        if (!failed) return;
    }
    k_gemm_piece(blas, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

static void gemm_work(const void *p, long piece, float *scratch)
{
    const gemm_args *g = (const gemm_args *)p;
    const long at = piece * g->width;
    const float *a = g->a, *b = g->b;
    (void)scratch;
    if (g->by_rows) {
        a += g->trans_a ? at : at * g->lda;
        product(g->blas, g->trans_a, g->trans_b, k_min(g->width, g->m - at), g->n, g->k, g->alpha,
                a, g->lda, b, g->ldb, g->beta, g->c + at * g->ldc, g->ldc);
    } else {
        b += g->trans_b ? at * g->ldb : at;
        product(g->blas, g->trans_a, g->trans_b, g->m, k_min(g->width, g->n - at), g->k, g->alpha,
                a, g->lda, b, g->ldb, g->beta, g->c + at, g->ldc);
    }
}

/* The width of a piece along the longer side: a power of two of pieces. Each packs the other
 * operand again, which costs a product of width w about 15/w of its time; so pieces are wide, and
 * beyond ENOUGH of them much wider. */
static long piece_width(long m, long n, long k)
{
    enum { NARROWEST = 384, WIDE = 768, ENOUGH = 4, MOST = 16, ROUND = 64 };
    const double work = (double)m * (double)n * (double)k;
    const long side = m > n ? m : n;
    long pieces = 1;
    while (pieces < MOST && work / (double)(2 * pieces) >= 3.2e7 &&
           side / (2 * pieces) >= (2 * pieces > ENOUGH ? WIDE : NARROWEST)) {
        pieces *= 2;
    }
    return k_pieces(k_pieces(side, pieces), ROUND) * ROUND;
}

void k_gemm_cpu(k_ctx *ctx, bool trans_a, bool trans_b, long m, long n, long k, float alpha,
                const float *a, long lda, const float *b, long ldb, float beta, float *c, long ldc)
{
    if (m <= 0 || n <= 0) return;
    const gemm_args g = {
        .blas = k_ctx_blas(ctx),
        .trans_a = trans_a,
        .trans_b = trans_b,
        .by_rows = m > n,
        .m = m,
        .n = n,
        .k = k,
        .width = piece_width(m, n, k),
        .alpha = alpha,
        .beta = beta,
        .a = a,
        .b = b,
        .c = c,
        .lda = lda,
        .ldb = ldb,
        .ldc = ldc,
    };
    k_run(ctx, k_pieces(m > n ? m : n, g.width), gemm_work, &g);
}

/* --- our own product --- */

enum { PLAIN_COLS = 64, PLAIN_DEPTH = 128 };

/* A strip of op(B), depth x cols, with its columns side by side. */
static void pack_b(bool trans, const float *b, long ldb, long depth, long cols, float *packed)
{
    for (long p = 0; p < depth; p++) {
        for (long j = 0; j < cols; j++) {
            packed[p * PLAIN_COLS + j] = trans ? b[j * ldb + p] : b[p * ldb + j];
        }
        for (long j = cols; j < PLAIN_COLS; j++) packed[p * PLAIN_COLS + j] = 0.0f;
    }
}

static void multiply_row(bool trans, const float *a, long lda, long depth, const float *packed,
                         float *acc)
{
    for (long j = 0; j < PLAIN_COLS; j++) acc[j] = 0.0f;
    for (long p = 0; p < depth; p++) {
        const float x = trans ? a[p * lda] : a[p];
        for (long j = 0; j < PLAIN_COLS; j++) acc[j] += x * packed[p * PLAIN_COLS + j];
    }
}

static void scale_c(long m, long n, float beta, float *c, long ldc)
{
    for (long i = 0; i < m; i++) {
        for (long j = 0; j < n; j++) {
            c[i * ldc + j] = beta == 0.0f ? 0.0f : beta * c[i * ldc + j];
        }
    }
}

void k_gemm_plain(bool trans_a, bool trans_b, long m, long n, long k, float alpha, const float *a,
                  long lda, const float *b, long ldb, float beta, float *c, long ldc)
{
    float packed[PLAIN_DEPTH * PLAIN_COLS], acc[PLAIN_COLS];
    if (beta != 1.0f) scale_c(m, n, beta, c, ldc);
    for (long j = 0; j < n; j += PLAIN_COLS) {
        const long cols = k_min(PLAIN_COLS, n - j);
        for (long p = 0; p < k; p += PLAIN_DEPTH) {
            const long depth = k_min(PLAIN_DEPTH, k - p);
            pack_b(trans_b, trans_b ? b + j * ldb + p : b + p * ldb + j, ldb, depth, cols, packed);
            for (long i = 0; i < m; i++) {
                multiply_row(trans_a, trans_a ? a + p * lda + i : a + i * lda + p, lda, depth,
                             packed, acc);
                for (long q = 0; q < cols; q++) c[i * ldc + j + q] += alpha * acc[q];
            }
        }
    }
}
