/* Rotary positions, embedding, cross-entropy: CUDA against the cores. */
#include "tests/cuda/cuda_check.h"

#include <math.h>
#include <stdio.h>

static void rope(cuda_pair *p, long rows, long seq, long heads, long d, long gap)
{
    const long ld = heads * d + gap;
    const cuda_tensor x = cuda_random(p, rows * ld, false), t = cuda_random(p, (seq + 5) * d, true);
    for (int back = 0; back < 2; back++) {
        k_ops_of(p->gpu)->rope(p->gpu, back == 1, rows, seq, 5, heads, d, cuda_at(&t), cuda_at(&x),
                               ld);
        k_rope_cpu(p->cpu, back == 1, rows, seq, 5, heads, d, t.cpu, x.cpu, ld);
        cuda_report(p, back == 1 ? "rope back" : "rope", cuda_error(p, &x), true);
    }
    cuda_pair_clear(p);
}

static void embed(cuda_pair *p, long rows, long seq, long cols, long vocab, bool all)
{
    const k_words words = {all ? 0 : vocab / 3, vocab}; /* not all ids have a row */
    const cuda_tensor tok = cuda_random(p, vocab * cols, false);
    const cuda_tensor pos = cuda_random(p, (seq + 2) * cols, false);
    const cuda_tensor extra = cuda_random(p, cols, false), y = cuda_output(p, rows * cols, false);
    const cuda_tensor dy = cuda_random(p, rows * cols, false);
    const cuda_tensor dtok = cuda_random(p, vocab * cols, true);
    const cuda_tensor dpos = cuda_random(p, (seq + 2) * cols, true);
    const cuda_tensor dextra = cuda_random(p, cols, true);
    const int32_t *const ids = cuda_ints(p, rows, vocab, false);
    k_ops_of(p->gpu)->embed_fwd(p->gpu, rows, seq, 2, cols, ids, words, cuda_at(&tok),
                                all ? cuda_at(&pos) : NULL, all ? cuda_at(&extra) : NULL,
                                cuda_at(&y));
    k_ops_of(p->gpu)->embed_bwd(p->gpu, rows, seq, 2, cols, ids, words, cuda_at(&dy),
                                cuda_at(&dtok), all ? cuda_at(&dpos) : NULL,
                                all ? cuda_at(&dextra) : NULL);
    k_embed_fwd_cpu(p->cpu, rows, seq, 2, cols, ids, words, tok.cpu, all ? pos.cpu : NULL,
                    all ? extra.cpu : NULL, y.cpu);
    k_embed_bwd_cpu(p->cpu, rows, seq, 2, cols, ids, words, dy.cpu, dtok.cpu, all ? dpos.cpu : NULL,
                    all ? dextra.cpu : NULL);
    cuda_report(p, "embedding", cuda_error(p, &y), true);
    cuda_report(p, "  dtok", cuda_error(p, &dtok), true);
    if (all) cuda_report(p, "  dpos", cuda_error(p, &dpos), true);
    if (all) cuda_report(p, "  dextra", cuda_error(p, &dextra), true);
    cuda_pair_clear(p);
}

static void xent(cuda_pair *p, long rows, long vocab, long ld, bool in_place)
{
    char name[100];
    const cuda_tensor x = cuda_random(p, rows * ld, false);
    const cuda_tensor lse = cuda_output(p, rows, true), other = cuda_output(p, rows * ld, false);
    const cuda_tensor *const d = in_place ? &x : &other;
    const cuda_tensor room = cuda_output(p, 2 * rows + 4, true);
    const int32_t *const target = cuda_ints(p, rows, vocab, true);
    double *const loss = room.gpu, sum[1] = {0};
    double *const cpu_loss = td_alloc(p->arena, (size_t)rows, sizeof *cpu_loss);
    const float scale = 0.37f;
    (void)k_ops_of(p->gpu)->xent(p->gpu, rows, vocab, cuda_at(&x), ld, target, scale, loss,
                                 cuda_at(&lse), cuda_at(d));
    k_ops_of(p->gpu)->loss_sum(p->gpu, rows, loss, 0.5, loss + rows);
    sum[0] =
        0.5 * k_xent_cpu(p->cpu, rows, vocab, x.cpu, ld, target, scale, cpu_loss, lse.cpu, d->cpu);
    (void)snprintf(name, sizeof name, "cross-entropy %ld x %ld", rows, vocab);
    cuda_report(p, name, cuda_error_rows(p, d, rows, vocab, ld), true);
    cuda_report(p, "  lse", cuda_error(p, &lse), true);
    /* without a target in any row the loss is zero */
    const double off = loss[rows] - sum[0], size = sum[0] != 0 ? sum[0] : 1;
    cuda_report(p, "  loss", fabs(off / size), true);
    cuda_pair_clear(p);
}

static void test(cuda_pair *p)
{
    rope(p, 1, 1, 1, 2, 3);
    rope(p, 34, 17, 3, 10, 3);
    rope(p, 256, 128, 8, 64, 3);
    rope(p, 60, 20, 3, 24, 4);
    rope(p, 256, 128, 8, 64, 0);
    embed(p, 1, 1, 1, 1, true);
    embed(p, 60, 20, 33, 7, true);
    embed(p, 700, 350, 64, 5000, true);
    embed(p, 600, 600, 129, 50, false);
    embed(p, 300, 100, 1500, 9, false);
    xent(p, 1, 2, 2, false);
    xent(p, 37, 101, 112, true);
    xent(p, 64, 50257, 50272, true);
    xent(p, 16, 32000, 32000, false);
}

int main(void) { return cuda_main(test, "tokens"); }
