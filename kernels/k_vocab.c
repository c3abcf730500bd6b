/* Vocabulary shards: softmax, its barrier, gradients. */
#include "kernels/k_internal.h"

#include <math.h>
#include <string.h>

#define VOCAB_REAL float
#define VOCAB_NAME(x) x##_f32
#define VOCAB_EXP expf
#include "kernels/body_vocab.h"
#undef VOCAB_REAL
#undef VOCAB_NAME
#undef VOCAB_EXP

#define VOCAB_REAL double
#define VOCAB_NAME(x) x##_f64
#define VOCAB_EXP exp
#include "kernels/body_vocab.h"

enum { PIECE = 16384 };

typedef struct vocab_args {
    const k_vocab_shard *shard;
    long rows, block;
    long cols;
    float weight;
    const float *alpha, *table;
    float *y, *stats;
} vocab_args;

static void softmax_piece(const void *p, long piece, float *scratch)
{
    const vocab_args *const a = p;
    (void)scratch;
    softmax_rows_f32(piece * a->block, k_min(a->rows, (piece + 1) * a->block), a->shard, a->y,
                     a->stats, a->rows);
}

static void gradient_piece(const void *p, long piece, float *scratch)
{
    const vocab_args *const a = p;
    (void)scratch;
    gradient_rows_f32(piece * a->block, k_min(a->rows, (piece + 1) * a->block), a->shard, a->weight,
                      a->alpha, a->y);
}

void k_vocab_softmax_cpu(k_ctx *ctx, long rows, const k_vocab_shard *w, float *y, float *stats)
{
    const vocab_args a = {
        .shard = w, .rows = rows, .block = k_block(w->ld, PIECE), .y = y, .stats = stats};
    k_run(ctx, k_pieces(rows, a.block), softmax_piece, &a);
}

void k_vocab_softmax_f64(long rows, const k_vocab_shard *w, double *y, double *stats)
{
    softmax_rows_f64(0, rows, w, y, stats, rows);
}

/* y: the softmax' part; stats: the target's. */
static void inputs_piece(const void *p, long piece, float *scratch)
{
    const vocab_args *const a = p;
    (void)scratch;
    for (long r = piece * a->block; r < k_min(a->rows, (piece + 1) * a->block); r++) {
        const bool counted = a->shard->target[r] >= 0;
        const long word = (long)a->shard->target[r] - a->shard->words.first;
        const bool here = counted && word >= 0 && word < a->shard->words.count;
        float *const g = a->stats + r * a->cols;
        if (!counted) memset(a->y + r * a->cols, 0, (size_t)a->cols * sizeof *a->y);
        for (long c = 0; c < a->cols; c++)
            g[c] = here ? a->weight * a->table[word * a->cols + c] : 0.0f;
    }
}

void k_vocab_inputs_cpu(k_ctx *ctx, long rows, long cols, const k_vocab_shard *w, float weight,
                        const float *table, float *a, float *g)
{
    const vocab_args all = {.shard = w,
                            .rows = rows,
                            .block = k_block(cols, PIECE),
                            .cols = cols,
                            .weight = weight,
                            .table = table,
                            .y = a,
                            .stats = g};
    k_run(ctx, k_pieces(rows, all.block), inputs_piece, &all);
}

void k_vocab_join(const k_vocab_parts *p) { join_f32(p); }

void k_vocab_join_f64(const k_vocab_parts *p) { join_f64(p); }

void k_vocab_gradient_cpu(k_ctx *ctx, long rows, const k_vocab_shard *w, float weight,
                          const float *alpha, float *q)
{
    const vocab_args a = {.shard = w,
                          .rows = rows,
                          .block = k_block(w->ld, PIECE),
                          .weight = weight,
                          .alpha = alpha,
                          .y = q};
    k_run(ctx, k_pieces(rows, a.block), gradient_piece, &a);
}

void k_vocab_gradient_f64(long rows, const k_vocab_shard *w, double weight, const double *alpha,
                          double *q)
{
    gradient_rows_f64(0, rows, w, weight, alpha, q);
}

double k_vocab_loss(long rows, const int32_t *target, const float *stats)
{
    return loss_rows_f32(rows, target, stats);
}

double k_vocab_loss_f64(long rows, const int32_t *target, const double *stats)
{
    return loss_rows_f64(rows, target, stats);
}
