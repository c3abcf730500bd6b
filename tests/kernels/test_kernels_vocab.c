/* Softmax, loss and gradients out of shards, in double against the table in one piece: both
 * algorithms, logits of +-1e4, targets in every shard, words that do not divide evenly. */
#include "kernels/kernels.h"
#include "t.h"

typedef struct problem {
    long rows, h, vocab, shard_rows, shards;
    double *x, *w; /* [rows, h], [vocab, h] */
    int32_t *target;
    double loss, *dx, *dw; /* of the mean over counted rows, from the table in one piece */
    double weight;
} problem;

static double *numbers(td_arena *a, td_rng *r, long n, double size)
{
    double *const x = TD_NEW_N(a, double, n);
    for (long i = 0; i < n; i++) x[i] = size * td_rng_normal(r);
    return x;
}

/* loss = mean of lse - y[target]; dY = (softmax - onehot) / counted; dX = dY W; dW = dY^T X. */
static void solve_whole(td_arena *a, problem *p)
{
    double *const y = TD_NEW_N(a, double, p->vocab);
    p->dx = TD_NEW_N(a, double, p->rows * p->h);
    p->dw = TD_NEW_N(a, double, p->vocab * p->h);
    long counted = 0;
    for (long r = 0; r < p->rows; r++) counted += p->target[r] >= 0;
    p->weight = 1.0 / (double)(counted > 0 ? counted : 1);
    for (long r = 0; r < p->rows; r++) {
        double max = -HUGE_VAL, sum = 0;
        for (long v = 0; v < p->vocab; v++) {
            y[v] = 0;
            for (long c = 0; c < p->h; c++) y[v] += p->x[r * p->h + c] * p->w[v * p->h + c];
            max = fmax(max, y[v]);
        }
        for (long v = 0; v < p->vocab; v++) sum += exp(y[v] - max);
        if (p->target[r] < 0) continue;
        p->loss += p->weight * (max + log(sum) - y[p->target[r]]);
        for (long v = 0; v < p->vocab; v++) {
            const double d = p->weight * (exp(y[v] - max) / sum - (v == p->target[r] ? 1.0 : 0.0));
            for (long c = 0; c < p->h; c++) {
                p->dx[r * p->h + c] += d * p->w[v * p->h + c];
                p->dw[v * p->h + c] += d * p->x[r * p->h + c];
            }
        }
    }
}

typedef struct shard {
    k_vocab_shard at;
    double *y, *stats, *a; /* [rows, ld], [3, rows], behind that [2, rows, h] */
} shard;

static void run_s(td_arena *a, const problem *p, long i, bool fused, shard *s)
{
    const long first = i * p->shard_rows, left = p->vocab - first;
    const long words = left < 0 ? 0 : left < p->shard_rows ? left : p->shard_rows;
    s->at = (k_vocab_shard){{first, words}, p->shard_rows + 3, p->target};
    s->y = TD_NEW_N(a, double, p->rows * s->at.ld);
    s->stats = TD_NEW_N(a, double, 3 * p->rows + 2 * p->rows * p->h);
    s->a = s->stats + 3 * p->rows;
    for (long r = 0; r < p->rows; r++)
        for (long v = 0; v < s->at.ld; v++) {
            double *const y = &s->y[r * s->at.ld + v];
            *y = v < words ? 0 : (double)NAN; /* padding must not matter */
            for (long c = 0; v < words && c < p->h; c++)
                *y += p->x[r * p->h + c] * p->w[(first + v) * p->h + c];
        }
    k_vocab_softmax_f64(p->rows, &s->at, s->y, s->stats);
    for (long r = 0; fused && r < p->rows; r++) {
        const double u = p->target[r] < 0 ? 0 : p->weight;
        const long target = p->target[r] - first;
        for (long c = 0; c < p->h; c++) {
            double *const q = &s->a[r * p->h + c];
            for (long v = 0; v < words; v++)
                *q += u * s->y[r * s->at.ld + v] * p->w[(first + v) * p->h + c];
            if (p->target[r] >= 0 && target >= 0 && target < words)
                q[p->rows * p->h] = u * p->w[p->target[r] * p->h + c];
        }
    }
}

static double difference(const double *a, const double *b, long n)
{
    double diff = 0, norm = 0;
    for (long i = 0; i < n; i++) {
        diff += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return norm > 0 ? sqrt(diff / norm) : sqrt(diff);
}

static void check(td_arena *a, const problem *p, bool fused)
{
    shard *const s = TD_NEW_N(a, shard, p->shards);
    void **const data = TD_NEW_N(a, void *, p->shards);
    double *const dw = TD_NEW_N(a, double, p->vocab * p->h);
    double *dx = TD_NEW_N(a, double, p->rows * p->h);
    for (long i = 0; i < p->shards; i++) {
        run_s(a, p, i, fused, &s[i]);
        data[i] = s[i].stats;
    }
    const k_vocab_parts join = {.data = data,
                                .n = p->shards,
                                .rows = p->rows,
                                .width = fused ? p->h : 0,
                                .inputs_at = 3 * p->rows * (long)sizeof(double)};
    k_vocab_join_f64(&join);
    for (long i = 0; i < p->shards; i++) {
        const k_vocab_shard *const w = &s[i].at;
        T_CLOSE(p->weight * k_vocab_loss_f64(p->rows, p->target, s[i].stats), p->loss, 1e-12,
                1e-12);
        k_vocab_gradient_f64(p->rows, w, p->weight, s[i].stats, s[i].y);
        for (long r = 0; r < p->rows; r++)
            for (long v = 0; v < w->words.count; v++)
                for (long c = 0; c < p->h; c++) {
                    const double d = s[i].y[r * w->ld + v];
                    dw[(w->words.first + v) * p->h + c] += d * p->x[r * p->h + c];
                    dx[r * p->h + c] += fused ? 0 : d * p->w[(w->words.first + v) * p->h + c];
                }
        if (fused) dx = s[i].a;
        if (fused) T_CLOSE(difference(dx, p->dx, p->rows * p->h), 0, 0, 1e-12);
    }
    T_CLOSE(difference(dx, p->dx, p->rows * p->h), 0, 0, 1e-12);
    T_CLOSE(difference(dw, p->dw, p->vocab * p->h), 0, 0, 1e-12);
}

static void test_against_the_whole(void **state)
{
    (void)state;
    td_rng r = td_rng_seed(7);
    for (int i = 0; i < 60; i++) {
        td_arena *const a = td_arena_new();
        problem p = {.rows = 1 + td_rng_below(&r, 12),
                     .h = 1 + td_rng_below(&r, 9),
                     .vocab = 1 + td_rng_below(&r, 70),
                     .shards = 1 + td_rng_below(&r, 8)};
        p.shard_rows = (p.vocab + 2 * p.shards - 1) / (2 * p.shards) * 2;
        /* every third time logits of about +-1e4 */
        p.x = numbers(a, &r, p.rows * p.h, i % 3 == 0 ? 1e4 / sqrt((double)p.h) : 1);
        p.w = numbers(a, &r, p.vocab * p.h, 1);
        p.target = td_alloc(a, (size_t)p.rows, sizeof *p.target);
        for (long k = 0; k < p.rows; k++)
            p.target[k] = td_rng_below(&r, 5) == 0 ? -1 : (int32_t)td_rng_below(&r, p.vocab);
        solve_whole(a, &p);
        check(a, &p, false);
        check(a, &p, true);
        td_arena_free(a);
    }
}

/* Each shard in turn has the target, and the largest logit is far above all others. */
static void test_targets_and_extremes(void **state)
{
    for (int fused = 0; fused < 2; fused++)
        for (int sign = -1; sign <= 1; sign += 2) {
            problem p = {.rows = 8, .h = 1, .vocab = 32, .shard_rows = 4, .shards = 8};
            p.x = TD_NEW_N(*state, double, p.rows);
            p.w = TD_NEW_N(*state, double, p.vocab);
            p.target = td_alloc(*state, 8, sizeof *p.target);
            for (long v = 0; v < p.vocab; v++) p.w[v] = v % 7 == 3 ? 1e4 : (double)v - 1e4;
            for (long r = 0; r < p.rows; r++) {
                p.x[r] = sign;
                p.target[r] = (int32_t)(4 * r + r % 4);
            }
            solve_whole(*state, &p);
            assert_true(isfinite(p.loss));
            check(*state, &p, fused == 1);
        }
}

/* In fp32, what the executor runs: finite for +-1e4 and near double. */
static void test_single_precision(void **state)
{
    enum { ROWS = 5, WORDS = 6, SHARDS = 3 };
    static const int32_t target[ROWS] = {0, 7, 17, -1, 12};
    td_rng r = td_rng_seed(3);
    float y[SHARDS][ROWS * WORDS], stats[SHARDS][3 * ROWS];
    double wide[SHARDS][ROWS * WORDS], wide_stats[SHARDS][3 * ROWS];
    void *all[SHARDS], *wide_all[SHARDS];
    k_blas blas;
    k_blas_open(&blas, NULL);
    k_ctx *const ctx = k_ctx_start(td_alloc(*state, 1, k_ctx_size(2)), &blas, 2);
    for (int i = 0; i < SHARDS; i++) {
        const k_vocab_shard w = {{i * WORDS, WORDS}, WORDS, target};
        for (int k = 0; k < ROWS * WORDS; k++) {
            y[i][k] = (float)(td_rng_below(&r, 2) == 0 ? 1e4 : -1e4) + (float)td_rng_normal(&r);
            wide[i][k] = (double)y[i][k];
        }
        k_vocab_softmax_cpu(ctx, ROWS, &w, y[i], stats[i]);
        k_vocab_softmax_f64(ROWS, &w, wide[i], wide_stats[i]);
        all[i] = stats[i];
        wide_all[i] = wide_stats[i];
    }
    k_vocab_join(&(k_vocab_parts){.data = all, .n = SHARDS, .rows = ROWS});
    k_vocab_join_f64(&(k_vocab_parts){.data = wide_all, .n = SHARDS, .rows = ROWS});
    T_CLOSE(k_vocab_loss(ROWS, target, stats[1]), k_vocab_loss_f64(ROWS, target, wide_stats[1]),
            1e-5, 1e-5);
    for (int i = 0; i < SHARDS; i++) {
        const k_vocab_shard w = {{i * WORDS, WORDS}, WORDS, target};
        k_vocab_gradient_cpu(ctx, ROWS, &w, 0.25f, stats[i], y[i]);
        k_vocab_gradient_f64(ROWS, &w, 0.25, wide_stats[i], wide[i]);
        for (int k = 0; k < ROWS * WORDS; k++) T_CLOSE((double)y[i][k], wide[i][k], 1e-4, 1e-6);
    }
    k_ctx_stop(ctx);
    k_blas_close(&blas);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(test_against_the_whole),
        T_TEST(test_targets_and_extremes),
        T_TEST(test_single_precision),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
