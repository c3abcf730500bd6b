/* What the passes of a shard of the vocabulary layers take. */
#include "exec/bench.h"
#include "exec/data.h"

static const pass_kind kinds[] = {PASS_S, PASS_T, PASS_E, PASS_G};
enum { KINDS = sizeof kinds / sizeof *kinds };

typedef struct vocab_bench {
    vocab_pass *passes; /* [cores] */
    stage_args *args;   /* [cores] */
    bench *b;
} vocab_bench;

static int64_t run(void *self, int worker, int piece)
{
    vocab_bench *const v = self;
    double *const loss = v->args[worker].loss_at;
    /* T works where S left the softmax, and leaves other numbers there */
    if (kinds[piece] == PASS_T) vocab_pass_compute(&v->passes[worker], PASS_S, loss);
    const int64_t begin = bench_begin(v->b);
    vocab_pass_compute(&v->passes[worker], kinds[piece], loss);
    return bench_end(v->b, begin);
}

static td_status open_worker(bench *b, const sizes *z, const stage_code *c, int i, td_arena *a,
                             vocab_bench *v, td_err *err)
{
    vocab_pass *const p = &v->passes[i];
    stage_args *const args = &v->args[i];
    const int64_t rows = z->run.micro_batch * z->run.seq_len, border = rows * z->model->hidden;
    const int64_t size = bench_element_bytes(b);
    int32_t *const ids = td_alloc(a, (size_t)(2 * rows), sizeof *ids);
    if (ids == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    corpus_random(5, z->model->vocab, rows, ids, ids + rows);
    const int32_t *const there = bench_put(b, a, ids, 2 * rows * (int64_t)sizeof *ids);
    *p =
        (vocab_pass){.ctx = b->ctx[i], .c = c, .a = args, .rows = rows, .hidden = z->model->hidden};
    p->words = vocab_words(c, 0);
    TD_TRY(vocab_layout_of(z, z->run.seq_len, &p->at, err));
    p->joined = (char *)bench_elements(b, a, p->at.bytes / size);
    p->softmax = bench_elements(b, a, rows * p->at.ld);
    *args = (stage_args){.input = bench_elements(b, a, border),
                         .output = bench_elements(b, a, border),
                         .doutput = bench_elements(b, a, border),
                         .dinput = bench_elements(b, a, border),
                         .weights = bench_elements(b, a, c->elements),
                         .grads = bench_numbers(b, a, c->grad_elements),
                         .ids = there,
                         .targets = there + rows,
                         .loss_at = bench_put(b, a, &(double){0}, sizeof(double)),
                         .row_weight = 1.0 / (double)rows,
                         .grad_scale = 1.0f};
    if (there == NULL || args->loss_at == NULL || p->joined == NULL || p->softmax == NULL ||
        args->input == NULL || args->output == NULL || args->doutput == NULL ||
        args->dinput == NULL || args->weights == NULL || args->grads == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    return TD_OK;
}

static td_status measure(bench *b, const sizes *z, td_arena *a, td_err *err)
{
    vocab_bench v = {.passes = TD_NEW_N(a, vocab_pass, b->cores),
                     .args = TD_NEW_N(a, stage_args, b->cores),
                     .b = b};
    stage_code *codes = NULL;
    if (v.passes == NULL || v.args == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    TD_TRY(stage_open(z, b->ctx[0], a, &codes, err));
    const stage_code *const shard = &codes[z->n_stages];
    for (int i = 0; i < b->cores; i++) TD_TRY(open_worker(b, z, shard, i, a, &v, err));
    sample what[KINDS];
    for (int i = 0; i < KINDS; i++) {
        const bool head = kinds[i] == PASS_S || kinds[i] == PASS_T;
        what[i] = (sample){.what = SAMPLE_PASS,
                           .pass = kinds[i],
                           .part = !head            ? PART_EMBEDDING
                                   : z->vocab_fused ? PART_FUSED_HEAD
                                                    : PART_HEAD,
                           .micro_batch = z->run.micro_batch,
                           .slice_len = z->run.seq_len,
                           .words = sizes_vocab_rows(z)};
    }
    /* the input layer is the same either way */
    const bench_set set = {
        .what = what, .n = z->vocab_fused ? 2 : KINDS, .workers = b->cores, .run = run, .self = &v};
    return bench_measure(&set, &b->limits, &b->out, &b->count, err);
}

td_status bench_vocab(bench *b, int32_t shards, bool fused, int64_t seq, td_err *err)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    const stage_desc layer = {.n_layers = 1};
    sizes z = {.model = b->m,
               .run = b->run,
               .stages = &layer,
               .n_stages = 1,
               .chunks = 1,
               .vocab_shards = shards,
               .vocab_fused = fused};
    z.run.seq_len = seq;
    z.run.tp = 1;
    z.run.recompute = RECOMPUTE_NONE;
    const td_status st = measure(b, &z, a, err);
    bench_place_clear(b);
    td_arena_free(a);
    return st;
}
