/* What the passes of a stage take: F, B, I, W and R of layers, embedding and head. */
#include "exec/bench.h"
#include "exec/data.h"

typedef enum work { WORK_F, WORK_B, WORK_I, WORK_W, WORK_R, WORK_STEP, WORK_NORM, WORKS } work;

/* One worker with buffers of its own, as a rank has them. */
typedef struct worker {
    k_ctx *ctx;
    stage_args args;
    float *moments;
    double sink; /* what a norm gives, so that it is computed */
} worker;

typedef struct stage_bench {
    bench *b;
    sizes z;
    const bench_part *part;
    const stage_code *whole, *split; /* by their backward */
    worker *workers;
    work works[WORKS];
    sample what[WORKS];
} stage_bench;

float *bench_numbers(td_arena *a, int64_t n)
{
    float *const x = td_alloc(a, (size_t)(n < 1 ? 1 : n), sizeof *x);
    td_rng r = td_rng_seed(11);
    for (int64_t i = 0; x != NULL && i < n; i++) x[i] = (float)(0.1 * td_rng_unit(&r) - 0.05);
    return x;
}

static void run_forward(const stage_bench *s, worker *w, bool again)
{
    stage_args args = w->args;
    const stage_code *const c = s->whole;
    if (again && !c->at.head) args.output = (float *)(void *)(args.scratch + c->scratch.narrow);
    stage_forward(w->ctx, c, &args);
}

static int64_t run(void *self, int index, int piece)
{
    stage_bench *const s = self;
    worker *const w = &s->workers[index];
    const int64_t n = s->whole->elements;
    const k_adamw step = {
        .lr = 1e-6f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .grad_scale = 1.0f, .step = 1};
    const work what = s->works[piece];
    /* backwards work where the forward left what it kept, and leave other numbers there */
    if (what == WORK_B) stage_forward(w->ctx, s->whole, &w->args);
    if (what == WORK_I) stage_forward(w->ctx, s->split, &w->args);
    const int64_t begin = td_now_ns();
    switch (what) {
    case WORK_F: run_forward(s, w, false); break;
    case WORK_R: run_forward(s, w, true); break;
    case WORK_B: stage_backward(w->ctx, s->whole, &w->args); break;
    case WORK_I: stage_input_gradient(w->ctx, s->split, &w->args); break;
    case WORK_W: stage_weight_gradient(w->ctx, s->split, &w->args); break;
    case WORK_STEP:
        k_adamw_cpu(w->ctx, &step, n, (float *)(uintptr_t)w->args.weights, w->args.grads,
                    w->moments, w->moments + n);
        break;
    default: w->sink += k_sumsq_cpu(w->ctx, n, w->args.grads); break;
    }
    return td_now_ns() - begin;
}

/* --- opening --- */

/* Keys and values of the slice and of what is before it, in two pieces, and their gradients. */
static td_status open_cache(const sizes *z, const bench_part *k, td_arena *a, stage_args *out,
                            td_err *err)
{
    if (k->prefix == 0) return TD_OK;
    stage_kv *const kv = TD_NEW_N(a, stage_kv, 2);
    int64_t dkv = 0;
    TD_TRY(sizes_bytes(z, SIZE_DKV, 0, k->prefix + k->seq, 0, &dkv, err));
    out->prefix = k->prefix;
    out->n_kv = 2;
    out->kv = kv;
    out->keys = TD_NEW_N(a, k_keys, 2);
    out->dkv = bench_numbers(a, dkv / 4);
    if (kv == NULL || out->keys == NULL || out->dkv == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    kv[0].len = k->prefix;
    kv[1].len = k->seq;
    for (int i = 0; i < 2; i++) {
        int64_t bytes = 0;
        TD_TRY(sizes_bytes(z, SIZE_KV, 0, kv[i].len, 0, &bytes, err));
        kv[i].at = bench_numbers(a, bytes / 4);
        if (kv[i].at == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    }
    return TD_OK;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static td_status open_worker(const stage_bench *s, int i, td_arena *a, worker *w, td_err *err)
{
    const stage_code *const c = s->whole, *const d = s->split;
    const int64_t border = c->rows * c->m->hidden, tokens = c->batch * c->whole;
    int32_t *const ids = td_alloc(a, (size_t)(2 * tokens), sizeof *ids);
    float *const weights = td_alloc(a, (size_t)c->elements, sizeof *weights);
    *w = (worker){.ctx = s->b->ctx[i], .moments = bench_numbers(a, 2 * c->elements)};
    w->args =
        (stage_args){.input = bench_numbers(a, border),
                     .output = bench_numbers(a, border),
                     .doutput = bench_numbers(a, border),
                     .dinput = bench_numbers(a, border),
                     .weights = weights,
                     .grads = bench_numbers(a, c->grad_elements),
                     .stash = td_alloc(a, 1, (size_t)larger(c->stash.bytes, d->stash.bytes) + 64),
                     .stash_w = (char *)bench_numbers(a, d->stash_w.bytes / 4),
                     .wstash = (char *)bench_numbers(a, d->wstash.bytes / 4),
                     .scratch = td_alloc(a, 1, (size_t)larger(c->scratch.bytes, d->scratch.bytes)),
                     .ids = ids,
                     .targets = ids + tokens,
                     .shard = i % (int32_t)c->shards,
                     .grad_scale = 1.0f};
    if (ids == NULL || weights == NULL || w->moments == NULL || w->args.input == NULL ||
        w->args.output == NULL || w->args.doutput == NULL || w->args.dinput == NULL ||
        w->args.grads == NULL || w->args.stash == NULL || w->args.stash_w == NULL ||
        w->args.wstash == NULL || w->args.scratch == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    params_init(c->m, c->params, c->n_params, 1, weights);
    for (int64_t k = 0; k < 2 * c->elements; k++) w->moments[k] *= w->moments[k];
    corpus_random(5, c->vocab, tokens, ids, ids + tokens);
    return open_cache(&s->z, s->part, a, &w->args, err);
}

static td_status open_codes(stage_bench *s, td_arena *a, td_err *err)
{
    stage_code *all = NULL, *const both = TD_NEW_N(a, stage_code, 2);
    if (both == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    TD_TRY(stage_open(&s->z, s->b->ctx[0], a, &all, err));
    TD_TRY(stage_open_as(&s->z, 0, all, s->part->seq, false, &both[0], err));
    TD_TRY(stage_open_as(&s->z, 0, all, s->part->seq, true, &both[1], err));
    s->whole = &both[0];
    s->split = &both[1];
    return TD_OK;
}

/* Whether a kind of work is measured: R where there is something to repeat, I and W where a part of
 * the backward can be put off, W no matter what is before the slice. */
static bool is_wanted(const stage_bench *s, work what)
{
    const bool halves = s->split->stash_w.bytes + s->split->wstash.bytes > 0;
    switch (what) {
    case WORK_I: return halves;
    case WORK_W: return halves && s->part->prefix == 0;
    case WORK_R: return s->part->part == PART_LAYERS && s->z.run.recompute == RECOMPUTE_NONE;
    case WORK_STEP:
    case WORK_NORM: return s->part->step;
    default: return true;
    }
}

static sample sample_of(const stage_bench *s, work what)
{
    static const pass_kind kinds[] = {PASS_F, PASS_B, PASS_I, PASS_W, PASS_R};
    if (what == WORK_STEP || what == WORK_NORM)
        return (sample){.what = what == WORK_STEP ? SAMPLE_OPTIMIZER : SAMPLE_NORM,
                        .amount = s->whole->elements};
    return (sample){.what = SAMPLE_PASS,
                    .pass = kinds[what],
                    .part = s->part->part,
                    .recompute = s->z.run.recompute,
                    .layers = s->part->stage.n_layers,
                    .micro_batch = s->z.run.micro_batch,
                    .slice_len = s->part->seq,
                    .prefix = s->part->prefix,
                    .tp = (int32_t)s->z.run.tp};
}

static td_status measure(stage_bench *s, td_arena *a, td_err *err)
{
    bench *const b = s->b;
    bench_set set = {.what = s->what, .workers = b->cores, .run = run, .self = s};
    s->workers = TD_NEW_N(a, worker, b->cores);
    if (s->workers == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    TD_TRY(open_codes(s, a, err));
    for (int i = 0; i < b->cores; i++) TD_TRY(open_worker(s, i, a, &s->workers[i], err));
    for (work what = WORK_F; what < WORKS; what++) {
        if (!is_wanted(s, what)) continue;
        s->works[set.n] = what;
        s->what[set.n++] = sample_of(s, what);
    }
    return bench_measure(&set, &b->limits, &b->out, &b->count, err);
}

td_status bench_stage(bench *b, const run_shape *shape, const bench_part *part, td_err *err)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    stage_bench s = {
        .b = b,
        .part = part,
        .z = {.model = b->m, .run = *shape, .stages = &part->stage, .n_stages = 1, .chunks = 1}};
    s.z.run.seq_len = part->prefix + part->seq;
    const td_status st = measure(&s, a, err);
    td_arena_free(a);
    return st;
}
