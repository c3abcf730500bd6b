/* What a stage does otherwise when it is one of several tensor-parallel shards: tables divided by
 * words. */
#include "exec/stage_inside.h"

k_words shard_words(const stage_code *c, const stage_args *p)
{
    const int64_t first = p->shard * c->m->vocab, left = c->vocab - first;
    return (k_words){first, left < 0 ? 0 : left < c->m->vocab ? left : c->m->vocab};
}

void shard_embed(k_ctx *ctx, const stage_code *c, const stage_args *p, float *x)
{
    /* the first shard alone brings the positions */
    const float *const positions =
        p->shard == 0 ? stage_weight(c, p, -1, PARAM_POSITION_EMBEDDING) : NULL;
    k_ops_of(ctx)->embed_fwd(ctx, c->rows, c->seq, p->prefix, c->m->hidden, p->row_ids,
                             shard_words(c, p), stage_weight(c, p, -1, PARAM_TOKEN_EMBEDDING),
                             positions, NULL, x);
}

void shard_embed_backward(k_ctx *ctx, const stage_code *c, const stage_args *p, const float *dy)
{
    k_ops_of(ctx)->embed_bwd(ctx, c->rows, c->seq, p->prefix, c->m->hidden, p->row_ids,
                             shard_words(c, p), dy, stage_grad(c, p, -1, PARAM_TOKEN_EMBEDDING),
                             stage_grad(c, p, -1, PARAM_POSITION_EMBEDDING), NULL);
}

/* --- the head: see kernels.h, vocabulary shards --- */

static k_vocab_shard head_shard(const stage_code *c, const stage_args *p, long first_row)
{
    return (k_vocab_shard){
        .words = shard_words(c, p), .ld = c->stash.logits_ld, .target = p->row_targets + first_row};
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
    int64_t *const begin = (int64_t *)(void *)STAGE_KEPT(c, p, softmax);
    k_ops_of(ctx)->zero(ctx, begin, SOFTMAX_HEAD_BYTES);
    k_ops_of(ctx)->put_pair(ctx, begin, c->rows, 0);
    for (long r = 0; r < c->rows; r += c->scratch.logits_rows) {
        const long n = stage_piece(c, r);
        const k_vocab_shard shard = head_shard(c, p, r);
        float *const logits = kept != NULL ? stage_skip(c, kept, r * c->stash.logits_ld)
                                           : at_bytes(p->scratch, c->scratch.logits);
        stage_logits(ctx, c, p, r, n, logits);
        k_ops_of(ctx)->vocab_softmax(ctx, n, &shard, logits, own);
        for (int i = 0; i < 3; i++)
            k_ops_of(ctx)->copy(ctx, stats + i * c->rows + r, own + i * n, (size_t)n * sizeof *own);
    }
}

void shard_loss(k_ctx *ctx, const stage_code *c, stage_args *p)
{
    float *const kept = STAGE_KEPT(c, p, dlogits);
    const float *const stats = joined(c, p);
    const k_vocab_shard shard = head_shard(c, p, 0);
    k_ops_of(ctx)->vocab_loss(ctx, c->rows, p->row_targets, stats, stage_row_weight(c, p),
                              p->loss_at != NULL ? p->loss_at : &p->loss);
    if (kept != NULL)
        k_ops_of(ctx)->vocab_gradient(ctx, c->rows, &shard, stage_loss_scale(c, p), stats, kept);
}

void shard_dlogits(k_ctx *ctx, const stage_code *c, const stage_args *p, long first, float *logits)
{
    const long n = stage_piece(c, first);
    const k_vocab_shard shard = head_shard(c, p, first);
    stage_logits(ctx, c, p, first, n, logits);
    k_ops_of(ctx)->vocab_softmax(ctx, n, &shard, logits,
                                 at_bytes(p->scratch, c->scratch.statistics));
    k_ops_of(ctx)->vocab_gradient(ctx, n, &shard, stage_loss_scale(c, p), joined(c, p) + first,
                                  logits);
}
