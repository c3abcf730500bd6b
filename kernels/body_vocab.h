/* Arithmetic of vocabulary shards for one type: VOCAB_REAL, VOCAB_NAME(x) names a function, and
 * VOCAB_EXP is its exponential. Included by k_vocab.c once a type. Softmax and loss out of shards:
 * arXiv 2411.05288, section 4, algorithms 1 and 2. Every exponent is <= 0. */

/* Rows [from, to): logits to the local softmax and its three numbers. */
static void VOCAB_NAME(softmax_rows)(long from, long to, const k_vocab_shard *w, VOCAB_REAL *y,
                                     VOCAB_REAL *stats, long rows)
{
    for (long r = from; r < to; r++) {
        VOCAB_REAL *const x = y + r * w->ld, max = -(VOCAB_REAL)INFINITY, sum = 0;
        for (long c = 0; c < w->words.count; c++) max = x[c] > max ? x[c] : max;
        const long target = (long)w->target[r] - w->words.first;
        const bool here = w->target[r] >= 0 && target >= 0 && target < w->words.count;
        stats[2 * rows + r] = here ? x[target] - max : (VOCAB_REAL)K_VOCAB_ELSEWHERE;
        for (long c = 0; c < w->words.count; c++) {
            x[c] = VOCAB_EXP(x[c] - max);
            sum += x[c];
        }
        for (long c = 0; c < w->words.count; c++) x[c] /= sum;
        for (long c = w->words.count; c < w->ld; c++) x[c] = 0;
        stats[r] = max;
        stats[rows + r] = sum;
    }
}

static VOCAB_REAL *VOCAB_NAME(part_of)(void *const *data, long i, long at)
{
    return (VOCAB_REAL *)(void *)((char *)data[i] + at);
}

/* One row's numbers of n shards: each shard's share alpha of the softmax, the sum of all
 * exponentials over the largest logit, and the target's logit less that one. */
static void VOCAB_NAME(join_row)(const k_vocab_parts *p, long r)
{
    const long rows = p->rows;
    VOCAB_REAL max = -(VOCAB_REAL)INFINITY, sum = 0, predicted = 0;
    for (long i = 0; i < p->n; i++) {
        const VOCAB_REAL m = VOCAB_NAME(part_of)(p->data, i, p->stats_at)[r];
        max = m > max ? m : max;
    }
    for (long i = 0; i < p->n; i++) {
        VOCAB_REAL *const s = VOCAB_NAME(part_of)(p->data, i, p->stats_at);
        const VOCAB_REAL less = s[r] - max, z = s[2 * rows + r];
        s[r] = s[rows + r] * VOCAB_EXP(less);
        sum += s[r];
        if (z <= 0) predicted += z + less;
    }
    for (long i = 0; i < p->n; i++) {
        VOCAB_REAL *const s = VOCAB_NAME(part_of)(p->data, i, p->stats_at);
        s[r] /= sum;
        s[rows + r] = sum;
        s[2 * rows + r] = predicted;
    }
}

/* The input gradient out of the shards' parts, in all of them: sum over i of alpha_i a_i - g_i,
 * where g_i lies behind a_i. */
static void VOCAB_NAME(join_inputs)(const k_vocab_parts *p)
{
    VOCAB_REAL *const sum = VOCAB_NAME(part_of)(p->data, 0, p->inputs_at);
    const long all = p->rows * p->width;
    for (long i = 0; i < p->n; i++) {
        const VOCAB_REAL *const alpha = VOCAB_NAME(part_of)(p->data, i, p->stats_at);
        const VOCAB_REAL *const a = VOCAB_NAME(part_of)(p->data, i, p->inputs_at);
        for (long at = 0; at < all; at++) {
            const VOCAB_REAL x = alpha[at / p->width] * a[at] - a[all + at];
            sum[at] = i == 0 ? x : sum[at] + x;
        }
    }
    for (long i = 1; i < p->n; i++)
        memcpy(VOCAB_NAME(part_of)(p->data, i, p->inputs_at), sum, (size_t)all * sizeof *sum);
}

static void VOCAB_NAME(join)(const k_vocab_parts *p)
{
    for (long r = 0; r < p->rows; r++) VOCAB_NAME(join_row)(p, r);
    if (p->width > 0) VOCAB_NAME(join_inputs)(p);
}

/* The local softmax to the gradient of the logits. */
static void VOCAB_NAME(gradient_rows)(long from, long to, const k_vocab_shard *w, VOCAB_REAL weight,
                                      const VOCAB_REAL *alpha, VOCAB_REAL *q)
{
    for (long r = from; r < to; r++) {
        VOCAB_REAL *const x = q + r * w->ld;
        const VOCAB_REAL u = w->target[r] < 0 ? 0 : weight;
        const long target = (long)w->target[r] - w->words.first;
        for (long c = 0; c < w->words.count; c++) x[c] *= alpha[r] * u;
        if (w->target[r] >= 0 && target >= 0 && target < w->words.count) x[target] -= u;
    }
}

static double VOCAB_NAME(loss_rows)(long rows, const int32_t *target, const VOCAB_REAL *stats)
{
    double sum = 0;
    for (long r = 0; r < rows; r++)
        if (target[r] >= 0) sum += log((double)stats[rows + r]) - (double)stats[2 * rows + r];
    return sum;
}
