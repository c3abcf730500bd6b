/* Rotary positions, embedding, cross-entropy. */
#include "kernels/k_internal.h"

#include <math.h>

enum { PIECE = 16384 };

void k_rope_table_cpu(k_ctx *ctx, long positions, long d, double theta, float *table)
{
    const long half = d / 2;
    (void)ctx;
    for (long i = 0; i < half; i++) {
        const double w = pow(theta, -2.0 * (double)i / (double)d);
        for (long p = 0; p < positions; p++) {
            table[p * d + i] = (float)cos((double)p * w);
            table[p * d + half + i] = (float)sin((double)p * w);
        }
    }
}

void k_rope_cpu(k_ctx *ctx, bool backward, long rows, long seq, long pos0, long heads, long d,
                const float *table, float *x, long ld)
{
    const k_rope_args a = {
        .rows = rows,
        .block = k_block(heads * d, PIECE),
        .seq = seq,
        .pos0 = pos0,
        .heads = heads,
        .d = d,
        .ld = ld,
        .sign = backward ? -1.0f : 1.0f,
        .table = table,
        .x = x,
    };
    k_run(ctx, k_pieces(rows, a.block), k_ctx_bodies(ctx)->rope, &a);
}

void k_embed_fwd_cpu(k_ctx *ctx, long rows, long seq, long pos0, long cols, const int32_t *ids,
                     k_words words, const float *tok, const float *pos, const float *extra,
                     float *y)
{
    const k_embed_args a = {
        .rows = rows,
        .cols = cols,
        .block = k_block(cols, PIECE),
        .seq = seq,
        .pos0 = pos0,
        .ids = ids,
        .words = words,
        .tok = tok,
        .pos = pos,
        .extra = extra,
        .y = y,
    };
    k_run(ctx, k_pieces(rows, a.block), k_ctx_bodies(ctx)->embed_fwd, &a);
}

void k_embed_bwd_cpu(k_ctx *ctx, long rows, long seq, long pos0, long cols, const int32_t *ids,
                     k_words words, const float *dy, float *dtok, float *dpos, float *dextra)
{
    const k_embed_args a = {
        .rows = rows,
        .cols = cols,
        .block = 128,
        .seq = seq,
        .pos0 = pos0,
        .ids = ids,
        .words = words,
        .dy = dy,
        .dtok = dtok,
        .dpos = dpos,
        .dextra = dextra,
    };
    k_run(ctx, k_pieces(cols, a.block), k_ctx_bodies(ctx)->embed_bwd, &a);
}

double k_xent_cpu(k_ctx *ctx, long rows, long vocab, const float *logits, long ld,
                  const int32_t *target, float scale, double *loss, float *lse, float *dlogits)
{
    const k_xent_args a = {
        .rows = rows,
        .vocab = vocab,
        .ld = ld,
        .block = k_block(vocab, PIECE),
        .logits = logits,
        .target = target,
        .scale = scale,
        .loss = loss,
        .lse = lse,
        .dlogits = dlogits,
    };
    double total = 0.0;
    k_run(ctx, k_pieces(rows, a.block), k_ctx_bodies(ctx)->xent, &a);
    for (long r = 0; r < rows; r++) total += loss[r];
    return total;
}

void k_xent_bwd_cpu(k_ctx *ctx, long rows, long vocab, const float *logits, long ld,
                    const int32_t *target, float scale, const float *lse, float *dlogits)
{
    const k_xent_args a = {
        .rows = rows,
        .vocab = vocab,
        .ld = ld,
        .block = k_block(vocab, PIECE),
        .logits = logits,
        .lse_in = lse,
        .target = target,
        .scale = scale,
        .dlogits = dlogits,
    };
    k_run(ctx, k_pieces(rows, a.block), k_ctx_bodies(ctx)->xent_bwd, &a);
}
