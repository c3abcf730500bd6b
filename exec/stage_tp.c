/* What a stage does otherwise when it is one of several tensor-parallel shards: tables divided by
 * words, and the sums between shards. */
#include "exec/stage_inside.h"

#include <math.h>

void stage_sum(const stage_args *p, float *data, int64_t n)
{
    if (p->shards != NULL) p->shards->sum(p->shards->self, data, n);
}

/* Words of the vocabulary that this shard holds: [*first, *first + return). */
static int64_t words_of(const stage_code *c, const stage_args *p, int64_t *first)
{
    *first = p->shards->index * c->m->vocab;
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
        const float *const at = positions != NULL && p->shards->index == 0
                                    ? positions + (p->prefix + r % c->seq) * hidden
                                    : NULL;
        for (int64_t i = 0; i < hidden; i++)
            y[i] = (here ? table[word * hidden + i] : 0.0f) + (at != NULL ? at[i] : 0.0f);
    }
    stage_sum(p, x, c->rows * hidden);
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

/* Each shard's statistics of n rows: largest logit, sum of exponentials behind it, the target's
 * logit (0 where another shard has it). Gathered, they are the same everywhere. */
static float *gather_statistics(const stage_code *c, const stage_args *p, long n,
                                const float *logits, const int32_t *targets)
{
    int64_t first = 0;
    const int64_t words = words_of(c, p, &first);
    float *const all = at_bytes(p->scratch, c->scratch.statistics);
    float *const own = all + (int64_t)p->shards->index * 3 * n;
    for (long r = 0; r < n; r++) {
        const float *const x = logits + r * c->stash.logits_ld;
        float most = -HUGE_VALF;
        double sum = 0;
        for (int64_t w = 0; w < words; w++) most = x[w] > most ? x[w] : most;
        for (int64_t w = 0; w < words; w++) sum += exp((double)x[w] - (double)most);
        const int64_t word = targets[r] - first;
        own[r] = most;
        own[n + r] = (float)sum;
        own[2 * n + r] = word >= 0 && word < words ? x[word] : 0.0f;
    }
    p->shards->gather(p->shards->self, all, 3 * n);
    return all;
}

void shard_loss(const stage_code *c, const stage_args *p, long first_row, long n,
                const float *logits, double *losses, float *dlogits)
{
    const int32_t *const targets = p->row_targets + first_row;
    const float scale = stage_loss_scale(c, p);
    int64_t first = 0;
    const int64_t words = words_of(c, p, &first);
    const float *const all = gather_statistics(c, p, n, logits, targets);
    for (long r = 0; r < n; r++) {
        double most = -HUGE_VAL, sum = 0, target = 0;
        for (int32_t i = 0; i < p->shards->size; i++)
            if ((double)all[i * 3 * n + r] > most) most = (double)all[i * 3 * n + r];
        for (int32_t i = 0; i < p->shards->size; i++) {
            const float *const s = all + i * 3 * n + r;
            sum += (double)s[n] * exp((double)s[0] - most);
            target += (double)s[2 * n];
        }
        const bool counts = targets[r] >= 0;
        losses[r] = counts ? log(sum) + most - target : 0.0;
        if (dlogits == NULL) continue;
        const float *const x = logits + r * c->stash.logits_ld;
        float *const d = dlogits + r * c->stash.logits_ld;
        const int64_t word = counts ? targets[r] - first : -1;
        for (int64_t w = 0; w < c->m->vocab; w++) {
            const double share = w < words ? exp((double)x[w] - most) / sum : 0.0;
            d[w] = counts ? scale * (float)(share - (w == word ? 1.0 : 0.0)) : 0.0f;
        }
    }
}
