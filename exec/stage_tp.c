/* What a stage does otherwise when it is one of several tensor-parallel shards: tables divided by
 * words. Everything is in ordinary memory. */
#include "exec/stage_inside.h"

/* Words of the vocabulary that this shard holds: [*first, *first + return). */
static int64_t words_of(const stage_code *c, const stage_args *p, int64_t *first)
{
    *first = p->shard * c->m->vocab;
    const int64_t left = c->vocab - *first;
    return left < 0 ? 0 : left < c->m->vocab ? left : c->m->vocab;
}

void shard_embed(const stage_code *c, const stage_args *p, float *x)
{
    const int64_t hidden = c->m->hidden;
    int64_t first = 0;
    const int64_t words = words_of(c, p, &first);
    const float *const table = stage_weight(c, p, -1, PARAM_TOKEN_EMBEDDING);
    const float *const positions = stage_weight(c, p, -1, PARAM_POSITION_EMBEDDING);
    for (int64_t r = 0; r < c->rows; r++) {
        float *const y = x + r * hidden;
        const int64_t word = p->row_ids[r] - first;
        const bool here = word >= 0 && word < words;
        /* the first shard alone brings the positions */
        const float *const at = positions != NULL && p->shard == 0
                                    ? positions + (p->prefix + r % c->seq) * hidden
                                    : NULL;
        for (int64_t i = 0; i < hidden; i++)
            y[i] = (here ? table[word * hidden + i] : 0.0f) + (at != NULL ? at[i] : 0.0f);
    }
}

void shard_embed_backward(const stage_code *c, const stage_args *p, const float *dy)
{
    const int64_t hidden = c->m->hidden;
    int64_t first = 0;
    const int64_t words = words_of(c, p, &first);
    float *const dtable = stage_grad(c, p, -1, PARAM_TOKEN_EMBEDDING);
    float *const dpositions = stage_grad(c, p, -1, PARAM_POSITION_EMBEDDING);
    for (int64_t r = 0; r < c->rows; r++) {
        const float *const d = dy + r * hidden;
        const int64_t word = p->row_ids[r] - first;
        float *const at =
            dpositions == NULL ? NULL : dpositions + (p->prefix + r % c->seq) * hidden;
        for (int64_t i = 0; word >= 0 && word < words && i < hidden; i++)
            dtable[word * hidden + i] += d[i];
        for (int64_t i = 0; at != NULL && i < hidden; i++) at[i] += d[i];
    }
}

/* --- the head: see kernels.h, vocabulary shards --- */

static k_vocab_shard head_shard(const stage_code *c, const stage_args *p, long first_row)
{
    int64_t first = 0;
    const int64_t words = words_of(c, p, &first);
    return (k_vocab_shard){.first = first,
                           .words = words,
                           .ld = c->stash.logits_ld,
                           .target = p->row_targets + first_row};
}

/* The statistics [3, N] that the shards join. */
static float *joined(const stage_code *c, const stage_args *p)
{
    char *const at = (char *)STAGE_KEPT(c, p, softmax);
    return at_bytes(at, SOFTMAX_HEAD_BYTES);
}

void shard_softmax(k_ctx *ctx, const stage_code *c, const stage_args *p)
{
    float *const kept = STAGE_KEPT(c, p, dlogits), *const stats = joined(c, p);
    float *const own = at_bytes(p->scratch, c->scratch.statistics);
    const int64_t head[2] = {c->rows, 0};
    char *const begin = (char *)STAGE_KEPT(c, p, softmax);
    memset(begin, 0, SOFTMAX_HEAD_BYTES);
    memcpy(begin, head, sizeof head);
    for (long r = 0; r < c->rows; r += c->scratch.logits_rows) {
        const long n = stage_piece(c, r);
        const k_vocab_shard shard = head_shard(c, p, r);
        float *const logits = kept != NULL ? stage_skip(c, kept, r * c->stash.logits_ld)
                                           : at_bytes(p->scratch, c->scratch.logits);
        stage_logits(ctx, c, p, r, n, logits);
        k_vocab_softmax_cpu(ctx, n, &shard, logits, own);
        for (int i = 0; i < 3; i++)
            memcpy(stats + i * c->rows + r, own + i * n, (size_t)n * sizeof *own);
    }
}

void shard_loss(k_ctx *ctx, const stage_code *c, stage_args *p)
{
    float *const kept = STAGE_KEPT(c, p, dlogits);
    const float *const stats = joined(c, p);
    const k_vocab_shard shard = head_shard(c, p, 0);
    p->loss = k_vocab_loss(c->rows, p->row_targets, stats) * stage_row_weight(c, p);
    if (kept != NULL)
        k_vocab_gradient_cpu(ctx, c->rows, &shard, stage_loss_scale(c, p), stats, kept);
}

void shard_dlogits(k_ctx *ctx, const stage_code *c, const stage_args *p, long first, float *logits)
{
    const long n = stage_piece(c, first);
    const k_vocab_shard shard = head_shard(c, p, first);
    stage_logits(ctx, c, p, first, n, logits);
    k_vocab_softmax_cpu(ctx, n, &shard, logits, at_bytes(p->scratch, c->scratch.statistics));
    k_vocab_gradient_cpu(ctx, n, &shard, stage_loss_scale(c, p), joined(c, p) + first, logits);
}
