/* Vocabulary shards: CUDA against the cores. Two shards of a table, one of which may be empty. */
#include "tests/cuda/cuda_check.h"

#include <stdio.h>
#include <string.h>

enum { SHARDS = 3 };

typedef struct problem {
    long rows, vocab, words, ld, width; /* words: of a shard */
    const int32_t *target;
    cuda_tensor y[SHARDS], stats[SHARDS], inputs[SHARDS], table[SHARDS];
} problem;

static k_vocab_shard shard_of(const problem *w, long i)
{
    const long first = i * w->words, left = w->vocab - first;
    return (k_vocab_shard){
        .words = {first, left < 0          ? 0
                         : left < w->words ? left
                                           : w->words},
        .ld = w->ld,
        .target = w->target,
    };
}

static void shards(cuda_pair *p, problem *w)
{
    const float weight = 0.31f;
    for (long i = 0; i < SHARDS; i++) {
        const k_vocab_shard s = shard_of(w, i);
        w->y[i] = cuda_random(p, w->rows * w->ld, false);
        w->stats[i] = cuda_output(p, 3 * w->rows, true);
        w->inputs[i] = cuda_random(p, 2 * w->rows * w->width, false);
        w->table[i] = cuda_random(p, (w->words > 0 ? w->words : 1) * w->width, false);
        k_ops_of(p->gpu)->vocab_softmax(p->gpu, w->rows, &s, cuda_at(&w->y[i]),
                                        cuda_at(&w->stats[i]));
        k_vocab_softmax_cpu(p->cpu, w->rows, &s, w->y[i].cpu, w->stats[i].cpu);
        cuda_report(p, "softmax", cuda_error(p, &w->y[i]), true);
        const long counted = s.words.count > 0 ? 3 * w->rows : 0; /* else the largest is -inf */
        cuda_report(p, "  statistics", cuda_error_rows(p, &w->stats[i], 1, counted, counted), true);
        const long n = w->rows * w->width;
        k_ops_of(p->gpu)->vocab_inputs(p->gpu, w->rows, w->width, &s, weight, cuda_at(&w->table[i]),
                                       cuda_at(&w->inputs[i]), cuda_skip(p, &w->inputs[i], n));
        k_vocab_inputs_cpu(p->cpu, w->rows, w->width, &s, weight, w->table[i].cpu, w->inputs[i].cpu,
                           w->inputs[i].cpu + n);
        cuda_report(p, "parts", cuda_error(p, &w->inputs[i]), true);
    }
}

/* Once with rows and width given, once with them told by the data. */
static void join(cuda_pair *p, problem *w, bool told)
{
    const long e = p->bf16 ? 2 : 4, n = w->rows * w->width, stats = 64;
    const long inputs = stats + (12 * w->rows + 63) / 64 * 64, all = inputs + 2 * n * e;
    cuda_tensor room[SHARDS];
    void *data[SHARDS], *cpu[SHARDS];
    for (long i = 0; i < SHARDS; i++) {
        room[i] = cuda_output(p, all / 4 + 1, true);
        data[i] = room[i].gpu;
        cpu[i] = td_alloc(p->arena, (size_t)(3 * w->rows + 2 * n), sizeof(float));
        k_ops_of(p->gpu)->put_pair(p->gpu, data[i], told ? w->rows : -1, told ? w->width : -1);
        k_ops_of(p->gpu)->copy(p->gpu, (char *)data[i] + stats, w->stats[i].gpu,
                               (size_t)(12 * w->rows));
        k_ops_of(p->gpu)->copy(p->gpu, (char *)data[i] + inputs, w->inputs[i].gpu,
                               (size_t)(2 * n * e));
        memcpy(cpu[i], w->stats[i].cpu, (size_t)(12 * w->rows));
        memcpy((float *)cpu[i] + 3 * w->rows, w->inputs[i].cpu, (size_t)(8 * n));
    }
    const k_vocab_parts parts = {data, SHARDS, w->rows, w->width, stats, inputs};
    const k_vocab_parts own = {cpu, SHARDS, w->rows, w->width, 0, 12 * w->rows};
    if (told && !k_cuda_vocab_join(p->stream, p->bf16, data, SHARDS)) p->failed = true;
    if (!told) k_ops_of(p->gpu)->vocab_join(p->gpu, &parts);
    k_vocab_join(&own);
    for (long i = 0; i < SHARDS; i++) {
        cuda_tensor s = {cpu[i], (char *)data[i] + stats, 3 * w->rows, true};
        cuda_tensor d = {(float *)cpu[i] + 3 * w->rows, (char *)data[i] + inputs, n, false};
        cuda_report(p, told ? "joined, told" : "joined", cuda_error(p, &s), true);
        cuda_report(p, "  input gradient", cuda_error(p, &d), true);
        if (told) continue;
        memcpy(w->stats[i].cpu, s.cpu, (size_t)(12 * w->rows));
        k_ops_of(p->gpu)->copy(p->gpu, w->stats[i].gpu, s.gpu, (size_t)(12 * w->rows));
    }
}

static void gradients(cuda_pair *p, const problem *w)
{
    for (long i = 0; i < SHARDS; i++) {
        const k_vocab_shard s = shard_of(w, i);
        k_ops_of(p->gpu)->vocab_gradient(p->gpu, w->rows, &s, 0.7f, cuda_at(&w->stats[i]),
                                         cuda_at(&w->y[i]));
        k_vocab_gradient_cpu(p->cpu, w->rows, &s, 0.7f, w->stats[i].cpu, w->y[i].cpu);
        cuda_report(p, "gradient", cuda_error_rows(p, &w->y[i], w->rows, s.words.count, w->ld),
                    true);
    }
    const cuda_tensor loss = cuda_output(p, 2, true);
    k_ops_of(p->gpu)->vocab_loss(p->gpu, w->rows, w->target, cuda_at(&w->stats[0]), 0.5, loss.gpu);
    char why[K_CUDA_WHY];
    if (!k_cuda_synchronize(0, why)) p->failed = true;
    const double want = 0.5 * k_vocab_loss(w->rows, w->target, w->stats[0].cpu);
    const double off = *(const double *)loss.gpu - want, size = want < 0 ? -want : want;
    cuda_report(p, "loss", size == 0 ? off : (off < 0 ? -off : off) / size, true);
}

static void vocabulary(cuda_pair *p, long rows, long vocab, long words, long width)
{
    problem w = {.rows = rows, .vocab = vocab, .words = words, .width = width};
    w.ld = (words + 15) / 16 * 16;
    w.target = cuda_ints(p, rows, vocab, rows > 1);
    shards(p, &w);
    join(p, &w, true);
    join(p, &w, false);
    gradients(p, &w);
    cuda_pair_clear(p);
}

static void test(cuda_pair *p)
{
    vocabulary(p, 1, 3, 1, 1);
    vocabulary(p, 37, 101, 40, 24);
    vocabulary(p, 64, 2000, 1000, 65); /* the last shard has no words */
    vocabulary(p, 130, 15001, 5008, 128);
}

int main(void) { return cuda_main(test, "vocabulary"); }
