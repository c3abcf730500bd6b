/* Rotary positions, embedding, cross-entropy. */
#include "kernel_check.h"

#include <math.h>
#include <string.h>

typedef struct token_problem {
    long rows, seq, pos0, cols, heads, d, vocab, ld, n;
    k_words words; /* of the table, vocab of them */
    bool backward, with_pos, with_extra;
    float scale;
    const int32_t *ids;
    const float *x, *tok, *pos, *extra, *table;
} token_problem;

static int32_t *random_ids(bench_top *t, long n, long from, long to)
{
    int32_t *ids = TD_NEW_N(t->arena, int32_t, n);
    for (long i = 0; i < n; i++) ids[i] = (int32_t)pick(t, from, to);
    return ids;
}

/* --- rotary --- */

static void run_rope(k_ctx *ctx, const void *problem, float *out)
{
    const token_problem *p = (const token_problem *)problem;
    memmove(out, p->x, (size_t)p->n * sizeof *out);
    k_rope_cpu(ctx, p->backward, p->rows, p->seq, p->pos0, p->heads, p->d, p->table, out, p->ld);
}

static double *ref_rope(bench_top *t, const token_problem *p, double theta)
{
    double *y = widen(t, p->x, p->n);
    for (long r = 0; r < p->rows; r++) {
        for (long h = 0; h < p->heads; h++) {
            for (long i = 0; i < p->d / 2; i++) {
                double *lo = y + r * p->ld + h * p->d + i, *hi = lo + p->d / 2, kept = *lo;
                const double angle =
                    (double)(p->pos0 + r % p->seq) * pow(theta, -2.0 * (double)i / (double)p->d);
                const double s = p->backward ? -sin(angle) : sin(angle);
                *lo = kept * cos(angle) - *hi * s;
                *hi = *hi * cos(angle) + kept * s;
            }
        }
    }
    return y;
}

static void test_rope(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 30; i++) {
        token_problem p = {.seq = pick(t, 1, 40), .pos0 = pick(t, 0, 50), .heads = pick(t, 1, 4)};
        p.rows = p.seq * pick(t, 1, 3);
        p.d = 2 * pick(t, 1, 40);
        p.ld = p.heads * p.d + pick(t, 0, 5);
        p.n = p.rows * p.ld;
        p.x = normals(t, p.n, 1.0);
        p.backward = i % 2 == 1;
        float *table = zeros(t, (p.pos0 + p.seq) * p.d), *out = zeros(t, p.n),
              *back = zeros(t, p.n);
        k_rope_table_cpu(t->one, p.pos0 + p.seq, p.d, 10000.0, table);
        p.table = table;
        run_everywhere(t, run_rope, &p, out, p.n);
        check_close("rotated", out, ref_rope(t, &p, 10000.0), p.n, 1e-6);
        p.x = out;
        p.backward = !p.backward;
        run_rope(t->one, &p, back);
        p.x = back;
        p.backward = !p.backward;
        run_rope(t->one, &p, back);
        check_close("there, back, there", back, widen(t, out, p.n), p.n, 1e-6);
    }
}

/* --- embedding --- */

static void run_embed(k_ctx *ctx, const void *problem, float *out)
{
    const token_problem *p = (const token_problem *)problem;
    const long positions = p->pos0 + p->seq;
    float *dtok = out + p->n, *dpos = dtok + p->vocab * p->cols,
          *dextra = dpos + positions * p->cols;
    memcpy(dtok, p->tok, (size_t)(p->vocab * p->cols) * sizeof *dtok);
    memcpy(dpos, p->pos, (size_t)(positions * p->cols) * sizeof *dpos);
    memcpy(dextra, p->extra, (size_t)p->cols * sizeof *dextra);
    k_embed_fwd_cpu(ctx, p->rows, p->seq, p->pos0, p->cols, p->ids, p->words, p->tok,
                    p->with_pos ? p->pos : NULL, p->with_extra ? p->extra : NULL, out);
    k_embed_bwd_cpu(ctx, p->rows, p->seq, p->pos0, p->cols, p->ids, p->words, p->x, dtok,
                    p->with_pos ? dpos : NULL, p->with_extra ? dextra : NULL);
}

static void test_embed(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 30; i++) {
        token_problem p = {.seq = pick(t, 1, 40), .pos0 = pick(t, 0, 9), .cols = pick(t, 1, 300)};
        p.vocab = pick(t, 1, 12);
        p.rows = p.seq * pick(t, 1, 3);
        p.n = p.rows * p.cols;
        p.with_pos = i % 2 == 0;
        p.with_extra = i % 3 == 0;
        const long positions = p.pos0 + p.seq;
        p.words = (k_words){i % 4 == 0 ? 3 : 0, p.vocab}; /* words outside have no row */
        p.ids = random_ids(t, p.rows, 0, p.vocab - 1 + (i % 4 == 0 ? 5 : 0));
        p.x = normals(t, p.n, 1.0);
        p.tok = normals(t, p.vocab * p.cols, 1.0);
        p.pos = normals(t, positions * p.cols, 1.0);
        p.extra = normals(t, p.cols, 1.0);
        const long tables = (p.vocab + positions + 1) * p.cols;
        float *out = zeros(t, p.n + tables);
        double *y = zeros_f64(t, p.n), *dtok = widen(t, p.tok, p.vocab * p.cols);
        double *dpos = widen(t, p.pos, positions * p.cols), *dextra = widen(t, p.extra, p.cols);
        run_everywhere(t, run_embed, &p, out, p.n + tables);
        for (long k = 0; k < p.n; k++) {
            const long c = k % p.cols, word = p.ids[k / p.cols] - p.words.first;
            const bool here = word >= 0 && word < p.vocab;
            const long pos = (p.pos0 + k / p.cols % p.seq) * p.cols + c;
            y[k] = (here ? (double)p.tok[word * p.cols + c] : 0.0) +
                   (p.with_pos ? (double)p.pos[pos] : 0.0) +
                   (p.with_extra ? (double)p.extra[c] : 0.0);
            if (here) dtok[word * p.cols + c] += (double)p.x[k];
            dpos[pos] += p.with_pos ? (double)p.x[k] : 0.0;
            dextra[c] += p.with_extra ? (double)p.x[k] : 0.0;
        }
        check_close("embedding", out, y, p.n, 1e-6);
        check_close("dtok", out + p.n, dtok, p.vocab * p.cols, 2e-6);
        check_close("dpos", out + p.n + p.vocab * p.cols, dpos, positions * p.cols, 2e-6);
        check_close("dextra", out + p.n + tables - p.cols, dextra, p.cols, 3e-6);
    }
}

/* --- cross-entropy; outputs: dlogits, lse, loss as float --- */

static void run_xent(k_ctx *ctx, const void *problem, float *out)
{
    const token_problem *p = (const token_problem *)problem;
    double loss[64], total = 0.0;
    float again[64 * 16];
    float *lse = out + p->n;
    memcpy(out, p->x, (size_t)p->n * sizeof *out); /* in place */
    const double sum =
        k_xent_cpu(ctx, p->rows, p->vocab, out, p->ld, p->ids, p->scale, loss, lse, out);
    for (long r = 0; r < p->rows; r++) {
        total += loss[r];
        lse[p->rows + r] = (float)loss[r];
        if (p->vocab > 16) continue; /* the later gradient has the same bits */
        k_xent_bwd_cpu(ctx, 1, p->vocab, p->x + r * p->ld, p->ld, p->ids + r, p->scale, lse + r,
                       again);
        assert_memory_equal(again, out + r * p->ld, (size_t)p->vocab * sizeof *again);
    }
    assert_memory_equal(&sum, &total, sizeof sum);
    const double only =
        k_xent_cpu(ctx, p->rows, p->vocab, p->x, p->ld, p->ids, 1.0f, loss, NULL, NULL);
    assert_memory_equal(&sum, &only, sizeof sum);
}

static void test_xent(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 30; i++) {
        token_problem p = {.rows = pick(t, 1, 60), .vocab = pick(t, 1, i < 15 ? 16 : 6000)};
        p.ld = p.vocab + pick(t, 0, 4);
        p.n = p.rows * p.ld;
        p.ids = random_ids(t, p.rows, -1, p.vocab - 1);
        p.x = normals(t, p.n, i % 5 ? 4.0 : 60.0);
        p.scale = 0.25f;
        float *out = zeros(t, p.n + 2 * p.rows);
        double *dx = widen(t, p.x, p.n), *lse = zeros_f64(t, 2 * p.rows);
        run_everywhere(t, run_xent, &p, out, p.n + 2 * p.rows);
        for (long r = 0; r < p.rows; r++) {
            double *row = dx + r * p.ld, max = -HUGE_VAL, sum = 0.0;
            for (long c = 0; c < p.vocab; c++) max = fmax(max, row[c]);
            for (long c = 0; c < p.vocab; c++) sum += exp(row[c] - max);
            lse[r] = max + log(sum);
            lse[p.rows + r] = p.ids[r] < 0 ? 0.0 : lse[r] - row[p.ids[r]];
            for (long c = 0; c < p.vocab; c++) {
                const double soft = exp(row[c] - lse[r]) - (c == p.ids[r] ? 1.0 : 0.0);
                row[c] = p.ids[r] < 0 ? 0.0 : 0.25 * soft;
            }
        }
        check_close("lse", out + p.n, lse, p.rows, 1e-6);
        check_close("loss", out + p.n + p.rows, lse + p.rows, p.rows, 1e-6);
        check_close("dlogits", out, dx, p.n, i % 5 ? 3e-6 : 2e-5);
    }
}

/* A NaN anywhere must reach the loss. */
static void test_xent_nan(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (long at = 0; at < 40; at++) {
        float *x = normals(t, 40, 1.0);
        const int32_t id = 3;
        double loss;
        x[at] = NAN;
        assert_true(isnan(k_xent_cpu(t->one, 1, 40, x, 40, &id, 1.0f, &loss, NULL, NULL)));
        x[at] = INFINITY;
        const double sum = k_xent_cpu(t->one, 1, 40, x, 40, &id, 1.0f, &loss, NULL, NULL);
        assert_true(isnan(sum - sum)); /* not finite */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KERNEL_TEST(test_rope),
        KERNEL_TEST(test_embed),
        KERNEL_TEST(test_xent),
        KERNEL_TEST(test_xent_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
