/* What the passes of a stage take: F, B, I, W and R of layers, embedding and head. */
#include "exec/bench.h"
#include "exec/data.h"

typedef enum work { WORK_F, WORK_B, WORK_I, WORK_W, WORK_R, WORK_STEP, WORK_NORM, WORKS } work;

/* One worker with buffers of its own, as a rank has them. */
typedef struct worker {
    k_ctx *ctx;
    stage_args args;
    k_adamw_piece all;
    k_adamw_stage step;
    double *scale, *table; /* norm and factor; one partial sum */
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
    const k_adamw step = {
        .lr = 1e-6f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .grad_scale = 1.0f, .step = 1};
    const work what = s->works[piece];
    /* backwards work where the forward left what it kept, and leave other numbers there */
    if (what == WORK_B) stage_forward(w->ctx, s->whole, &w->args);
    if (what == WORK_I) stage_forward(w->ctx, s->split, &w->args);
    const int64_t begin = bench_begin(s->b);
    switch (what) {
    case WORK_F: run_forward(s, w, false); break;
    case WORK_R: run_forward(s, w, true); break;
    case WORK_B: stage_backward(w->ctx, s->whole, &w->args); break;
    case WORK_I: stage_input_gradient(w->ctx, s->split, &w->args); break;
    case WORK_W: stage_weight_gradient(w->ctx, s->split, &w->args); break;
    case WORK_STEP: k_ops_of(w->ctx)->adamw(w->ctx, &step, &w->step, w->scale); break;
    default: k_ops_of(w->ctx)->norms(w->ctx, &w->step, w->table); break;
    }
    return bench_end(s->b, begin);
}

/* --- opening --- */

/* Keys and values of the slice and of what is before it, in two pieces, and their gradients. */
static td_status open_cache(const stage_bench *s, td_arena *a, stage_args *out, td_err *err)
{
    const sizes *const z = &s->z;
    const bench_part *const k = s->part;
    if (k->prefix == 0) return TD_OK;
    stage_kv *const kv = TD_NEW_N(a, stage_kv, 2);
    int64_t dkv = 0;
    TD_TRY(sizes_bytes(z, SIZE_DKV, 0, k->prefix + k->seq, 0, &dkv, err));
    out->prefix = k->prefix;
    out->n_kv = 2;
    out->kv = kv;
    out->keys = TD_NEW_N(a, k_keys, 2);
    out->dkv = bench_numbers(s->b, a, dkv / 4);
    if (kv == NULL || out->keys == NULL || out->dkv == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    kv[0].len = k->prefix;
    kv[1].len = k->seq;
    for (int i = 0; i < 2; i++) {
        int64_t bytes = 0;
        TD_TRY(sizes_bytes(z, SIZE_KV, 0, kv[i].len, 0, &bytes, err));
        kv[i].at = bench_elements(s->b, a, bytes / bench_element_bytes(s->b));
        if (kv[i].at == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    }
    return TD_OK;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Weights, gradients, and what a step of the optimizer works on. */
static td_status open_step(const stage_bench *s, td_arena *a, worker *w, td_err *err)
{
    bench *const b = s->b;
    const stage_code *const c = s->whole;
    const int64_t n = c->elements, areas = bench_element_bytes(b) == (int64_t)sizeof(float) ? 2 : 3;
    static const double scale[] = {1, 1};
    w->all = (k_adamw_piece){.count = n, .decays = true};
    w->step = (k_adamw_stage){.pieces = bench_put(b, a, &w->all, sizeof w->all),
                              .n_pieces = 1,
                              .n_blocks = (n + K_ADAMW_BLOCK - 1) / K_ADAMW_BLOCK,
                              .moments = n,
                              .weights = bench_elements(b, a, n),
                              .grads = bench_numbers(b, a, c->grad_elements)};
    td_arena *const host = td_arena_new();
    float *const m = host == NULL ? NULL : td_alloc(host, (size_t)(areas * n), sizeof *m);
    td_rng r = td_rng_seed(12);
    for (int64_t i = 0; m != NULL && i < areas * n; i++) m[i] = (float)(1e-3 * td_rng_unit(&r));
    if (m != NULL) w->step.m = bench_put(b, a, m, areas * n * (int64_t)sizeof *m);
    td_arena_free(host);
    w->scale = bench_put(b, a, scale, sizeof scale);
    w->table = bench_put(b, a, scale, sizeof *scale);
    w->args.weights = w->step.weights;
    w->args.grads = w->step.grads;
    return w->step.pieces == NULL || w->step.weights == NULL || w->step.grads == NULL ||
                   w->step.m == NULL || w->scale == NULL || w->table == NULL
               ? td_fail(err, TD_ENOMEM, "out of memory for the bench")
               : TD_OK;
}

static td_status open_worker(const stage_bench *s, int i, td_arena *a, worker *w, td_err *err)
{
    bench *const b = s->b;
    const stage_code *const c = s->whole, *const d = s->split;
    const int64_t border = c->rows * c->m->hidden, tokens = c->batch * c->whole;
    const int64_t size = bench_element_bytes(b);
    int32_t *const ids = td_alloc(a, (size_t)(2 * tokens), sizeof *ids);
    if (ids == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    corpus_random(5, c->vocab, tokens, ids, ids + tokens);
    const int32_t *const there = bench_put(b, a, ids, 2 * tokens * (int64_t)sizeof *ids);
    *w = (worker){.ctx = b->ctx[i]};
    w->args = (stage_args){
        .input = bench_elements(b, a, border),
        .output = bench_elements(b, a, border),
        .doutput = bench_elements(b, a, border),
        .dinput = bench_elements(b, a, border),
        .stash = (char *)bench_elements(b, a, (larger(c->stash.bytes, d->stash.bytes) + 64) / size),
        .stash_w = (char *)bench_elements(b, a, d->stash_w.bytes / size),
        .wstash = (char *)bench_elements(b, a, d->wstash.bytes / size),
        .scratch = (char *)bench_elements(b, a, larger(c->scratch.bytes, d->scratch.bytes) / size),
        .ids = there,
        .targets = there + tokens,
        .shard = i % (int32_t)c->shards,
        .grad_scale = 1.0f,
        .row_weight = 1.0 / (double)tokens,
        .loss_at = bench_put(b, a, &(double){0}, sizeof(double))};
    const stage_args *const g = &w->args;
    if (there == NULL || g->input == NULL || g->output == NULL || g->doutput == NULL ||
        g->dinput == NULL || g->stash == NULL || g->stash_w == NULL || g->wstash == NULL ||
        g->scratch == NULL || g->loss_at == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    TD_TRY(open_step(s, a, w, err));
    return open_cache(s, a, &w->args, err);
}

/* The rotary table, where the bench computes. */
static td_status put_table(const stage_bench *s, stage_code *all, td_arena *a, td_err *err)
{
    const int64_t n = all->whole * all->m->head_dim;
    if (all->rope == NULL || s->b->device == NULL) return TD_OK;
    all->rope = bench_put(s->b, a, all->rope, n * (int64_t)sizeof *all->rope);
    return all->rope != NULL ? TD_OK : td_fail(err, TD_ENOMEM, "out of memory for the bench");
}

static td_status open_codes(stage_bench *s, td_arena *a, td_err *err)
{
    stage_code *all = NULL, *const both = TD_NEW_N(a, stage_code, 2);
    if (both == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    TD_TRY(stage_open(&s->z, s->b->ctx[0], a, &all, err));
    TD_TRY(put_table(s, all, a, err));
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
    bench_place_clear(b);
    td_arena_free(a);
    return st;
}
