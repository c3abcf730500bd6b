/* pexec bench: what passes, optimizer and messages take on this machine, alone and with every core
 * busy; a samples file for psim calibrate. */
#include "base/text.h"
#include "costmodel/samples.h"
#include "exec/bench_wire.h"
#include "exec/data.h"
#include "exec/pexec.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_BUSY = 64, PARTS = 4 };

typedef enum work {
    WORK_F,
    WORK_B,
    WORK_W, /* what is left of B is I */
    WORK_OPTIMIZER,
    WORK_NORM,
    WORK_COUNT
} work;

/* One worker with a stage and buffers of its own, as a rank has them. */
typedef struct bench_worker {
    const stage_code *code;
    k_ctx *ctx;
    stage_args args;
    float *moments;
    const stage_code *split; /* for weight gradients alone */
    work what;
    int64_t ns;
    pthread_barrier_t *start;
} bench_worker;

static void work_once(bench_worker *w)
{
    const int64_t n = w->code->elements;
    const k_adamw step = {
        .lr = 1e-6f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .grad_scale = 1.0f, .step = 1};
    volatile double sink = 0;
    float *const weights = (float *)(uintptr_t)w->args.weights;
    const int64_t begin = td_now_ns();
    switch (w->what) {
    case WORK_F: stage_forward(w->ctx, w->code, &w->args); break;
    case WORK_B: stage_backward(w->ctx, w->code, &w->args); break;
    case WORK_W: stage_weight_gradient(w->ctx, w->split, &w->args); break;
    case WORK_OPTIMIZER:
        k_adamw_cpu(w->ctx, &step, n, weights, w->args.grads, w->moments, w->moments + n);
        break;
    default: sink = k_sumsq_cpu(w->ctx, n, w->args.grads); break;
    }
    w->ns = td_now_ns() - begin;
    (void)sink;
}

static void *work_thread(void *arg)
{
    bench_worker *const w = arg;
    (void)pthread_barrier_wait(w->start);
    work_once(w);
    return NULL;
}

static int compare_ns(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Time of one piece of work while `busy` workers do it at the same time: the workers' mean. */
static td_status run_together(bench_worker *workers, int busy, work what, int64_t *ns, td_err *err)
{
    pthread_t threads[MAX_BUSY];
    pthread_barrier_t start;
    if (pthread_barrier_init(&start, NULL, (unsigned)busy) != 0)
        return td_fail(err, TD_EDEVICE, "the machine gives no barriers");
    int started = 1;
    workers[0].start = &start;
    workers[0].what = what;
    for (; started < busy; started++) {
        workers[started].start = &start;
        workers[started].what = what;
        if (pthread_create(&threads[started], NULL, work_thread, &workers[started]) != 0)
            return td_fail(err, TD_EDEVICE, "%d threads could not be started", busy);
    }
    (void)work_thread(&workers[0]);
    int64_t sum = workers[0].ns;
    for (int i = 1; i < busy; i++) {
        (void)pthread_join(threads[i], NULL);
        sum += workers[i].ns;
    }
    (void)pthread_barrier_destroy(&start);
    *ns = sum / busy;
    return TD_OK;
}

typedef struct bench {
    const pexec_options *o;
    const model_desc *m;
    run_shape run;
    samples out;
    k_blas blas;
    int cores;
    k_ctx *ctx[MAX_BUSY];
} bench;

/* A part of a model as a stage of its own. */
typedef struct bench_case {
    stage_part part;
    stage_desc stage;
    int64_t seq, prefix; /* prefix > 0: a slice behind so many tokens */
} bench_case;

static float *numbers(td_arena *a, int64_t n)
{
    float *const x = td_alloc(a, (size_t)n, sizeof *x);
    td_rng r = td_rng_seed(11);
    for (int64_t i = 0; x != NULL && i < n; i++) x[i] = (float)(0.1 * td_rng_unit(&r) - 0.05);
    return x;
}

/* Keys and values of the slice and of what is before it, in two pieces, and their gradients. */
static td_status open_cache(const sizes *z, const bench_case *k, td_arena *a, stage_args *out,
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
    out->dkv = numbers(a, dkv / 4);
    if (kv == NULL || out->keys == NULL || out->dkv == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    kv[0].len = k->prefix;
    kv[1].len = k->seq;
    for (int i = 0; i < 2; i++) {
        int64_t bytes = 0;
        TD_TRY(sizes_bytes(z, SIZE_KV, 0, kv[i].len, 0, &bytes, err));
        kv[i].at = numbers(a, bytes / 4);
        if (kv[i].at == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    }
    return TD_OK;
}

static td_status open_worker(const bench *b, const stage_code *c, const stage_code *split, int i,
                             td_arena *a, bench_worker *w, td_err *err)
{
    const int64_t border = c->rows * c->m->hidden, tokens = c->batch * c->whole;
    int32_t *const ids = td_alloc(a, (size_t)(2 * tokens), sizeof *ids);
    float *const weights = td_alloc(a, (size_t)c->elements, sizeof *weights);
    *w = (bench_worker){
        .code = c, .split = split, .ctx = b->ctx[i], .moments = numbers(a, 2 * c->elements)};
    w->args = (stage_args){.input = numbers(a, border),
                           .output = numbers(a, border),
                           .doutput = numbers(a, border),
                           .dinput = numbers(a, border),
                           .weights = weights,
                           .grads = numbers(a, c->grad_elements),
                           .stash = td_alloc(a, 1, (size_t)c->stash.bytes + 64),
                           .stash_w = (char *)numbers(a, split->stash_w.bytes / 4),
                           .wstash = (char *)numbers(a, split->wstash.bytes / 4),
                           .scratch = td_alloc(a, 1, (size_t)c->scratch.bytes),
                           .ids = ids,
                           .targets = ids + tokens,
                           .grad_scale = 1.0f};
    if (ids == NULL || weights == NULL || w->moments == NULL || w->args.input == NULL ||
        w->args.output == NULL || w->args.doutput == NULL || w->args.dinput == NULL ||
        w->args.grads == NULL || w->args.stash == NULL || w->args.stash_w == NULL ||
        w->args.wstash == NULL || w->args.scratch == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    params_init(c->m, c->params, c->n_params, 1, weights);
    for (int64_t k = 0; k < 2 * c->elements; k++) w->moments[k] *= w->moments[k];
    corpus_random(5, c->m->vocab, tokens, ids, ids + tokens);
    return TD_OK;
}

static td_status add_sample(bench *b, const bench_case *k, work what, int64_t elements, int busy,
                            int64_t ns, td_err *err)
{
    sample s = {.what = SAMPLE_PASS,
                .pass = what == WORK_F   ? PASS_F
                        : what == WORK_B ? PASS_B
                                         : PASS_W,
                .part = k->part,
                .recompute = b->run.recompute,
                .tp = (int32_t)b->run.tp,
                .layers = k->stage.n_layers,
                .micro_batch = b->run.micro_batch,
                .slice_len = k->seq,
                .prefix = k->prefix,
                .busy = busy,
                .ns = (double)(ns < 1 ? 1 : ns)};
    if (what > WORK_W)
        s = (sample){.what = what == WORK_OPTIMIZER ? SAMPLE_OPTIMIZER : SAMPLE_NORM,
                     .amount = elements,
                     .busy = busy,
                     .ns = s.ns};
    return samples_add(&b->out, &s, err);
}

/* The stage of a case, for whole sequences or for the last slice of one: out[0] with a whole
 * backward, out[1] with a split one. */
static td_status open_case(const bench *b, const sizes *z, const bench_case *k, td_arena *a,
                           stage_code **out, td_err *err)
{
    stage_code *whole = NULL, *const both = TD_NEW_N(a, stage_code, 2);
    if (both == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    *out = both;
    TD_TRY(stage_open(z, b->ctx[0], a, &whole, err));
    TD_TRY(stage_open_as(z, 0, whole, k->seq, false, &both[0], err));
    return stage_open_as(z, 0, whole, k->seq, true, &both[1], err);
}

/* Whether a kind of work is measured: the step once a model, weight gradients where they are a pass
 * and no matter what is before the slice. */
static bool is_wanted(const bench_case *k, const stage_code *split, bool step, work what)
{
    if (what == WORK_W) return k->prefix == 0 && split->stash_w.bytes + split->wstash.bytes > 0;
    return step || what < WORK_W;
}

/* All pieces of work of one case, alone and together, round by round so that drifts hit all alike.
 */
static td_status bench_one(bench *b, const bench_case *k, bool step, td_err *err)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    sizes z = {.model = b->m, .run = b->run, .stages = &k->stage, .n_stages = 1, .chunks = 1};
    z.run.seq_len = k->prefix + k->seq;
    stage_code *code = NULL;
    bench_worker *const workers = TD_NEW_N(a, bench_worker, b->cores);
    const int loads = b->cores > 1 ? 2 : 1;
    int64_t *const ns = TD_NEW_N(a, int64_t, WORK_COUNT * 2 * b->o->repeats);
    td_status st = workers == NULL || ns == NULL
                       ? td_fail(err, TD_ENOMEM, "out of memory for the bench")
                       : open_case(b, &z, k, a, &code, err);
    for (int i = 0; st == TD_OK && i < b->cores; i++) {
        st = open_worker(b, &code[0], &code[1], i, a, &workers[i], err);
        if (st == TD_OK) st = open_cache(&z, k, a, &workers[i].args, err);
    }
    for (int64_t r = -1; st == TD_OK && r < b->o->repeats; r++) /* the first round warms up */
        for (int load = 0; st == TD_OK && load < loads; load++)
            for (work what = WORK_F; st == TD_OK && what < WORK_COUNT; what++) {
                int64_t one = 0;
                if (!is_wanted(k, &code[1], step, what)) continue;
                st = run_together(workers, load == 0 ? 1 : b->cores, what, &one, err);
                if (r >= 0) ns[((int)what * 2 + load) * b->o->repeats + r] = one;
            }
    for (int load = 0; st == TD_OK && load < loads; load++)
        for (work what = WORK_F; st == TD_OK && what < WORK_COUNT; what++) {
            if (!is_wanted(k, &code[1], step, what)) continue;
            int64_t *const x = &ns[((int)what * 2 + load) * b->o->repeats];
            qsort(x, (size_t)b->o->repeats, sizeof *x, compare_ns);
            st = add_sample(b, k, what, code->elements, load == 0 ? 1 : b->cores,
                            x[b->o->repeats / 2], err);
        }
    td_arena_free(a);
    return st;
}

/* --- the whole bench --- */

static td_status headers(bench *b, td_err *err)
{
    char text[64];
    const time_t now = time(NULL);
    struct tm day;
    TD_TRY(samples_header_model(&b->out, b->m, &b->run, err));
    (void)snprintf(text, sizeof text, "%d", b->cores);
    TD_TRY(samples_header(&b->out, "cores", text, err));
    TD_TRY(samples_header(&b->out, "device", k_blas_info(&b->blas), err));
    TD_TRY(samples_header(&b->out, "source", "pexec bench", err));
    (void)strftime(text, sizeof text, "%Y-%m-%d", gmtime_r(&now, &day));
    return samples_header(&b->out, "date", text, err);
}

static td_status bench_all(bench *b, td_err *err)
{
    const int64_t full = b->run.seq_len;
    const int64_t lengths[3] = {full >= 4 ? full / 4 : full, full >= 2 ? full / 2 : full, full};
    /* slices: which length, behind how many eighths of a sequence; enough to tell the terms of what
     * a context adds apart, with some to spare for their intervals */
    static const int8_t behind[][2] = {{0, 1}, {0, 2}, {0, 4}, {0, 6}, {1, 1}, {1, 2}, {1, 4}};
    const int64_t two = b->m->n_layers < 2 ? b->m->n_layers : 2;
    cli_progress progress = cli_progress_begin(CLI_AUTO);
    td_status st = TD_OK;
    for (int i = full >= 4 ? 0 : 2; st == TD_OK && i < 3; i++) {
        const bench_case cases[PARTS] = {
            {PART_LAYERS, {.n_layers = 1}, lengths[i], 0},
            {PART_LAYERS, {.n_layers = two}, lengths[i], 0},
            {PART_EMBEDDING, {.embedding = true}, lengths[i], 0},
            {PART_HEAD, {.head = true, .first_layer = b->m->n_layers}, lengths[i], 0}};
        for (int k = 0; st == TD_OK && k < PARTS; k++) {
            if (k == 1 && two < 2) continue;
            (void)cli_progress_show(&progress, "%s of %lld tokens", stage_part_name(cases[k].part),
                                    (long long)lengths[i]);
            st = bench_one(b, &cases[k], i == 2 && k < 2, err);
        }
    }
    for (size_t i = 0; st == TD_OK && b->m->causal && full >= 8 && i < sizeof behind / 2; i++) {
        const bench_case slice = {
            PART_LAYERS, {.n_layers = 1}, lengths[behind[i][0]], full * behind[i][1] / 8};
        (void)cli_progress_show(&progress, "layers of %lld tokens behind %lld",
                                (long long)slice.seq, (long long)slice.prefix);
        st = bench_one(b, &slice, false, err);
    }
    for (int64_t bytes = 1024; st == TD_OK && bytes <= (int64_t)4 << 20; bytes *= 16)
        st = bench_message(&b->out, bytes, err);
    for (int64_t bytes = 64; st == TD_OK && bytes <= (int64_t)1 << 20; bytes *= 16)
        st = bench_sum(&b->out, bytes, err);
    cli_progress_end(&progress);
    return st;
}

td_status cmd_bench(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    const pexec_options *const o = options;
    (void)args;
    TD_TRY(pexec_cores_only(o, "pexec bench", err));
    run_setup setup;
    request q = o->what;
    if (q.schedule == NULL && q.plan == NULL) { /* parts are measured, not a plan */
        q.schedule = "1f1b";
        q.pp = 1;
        q.microbatches = 1;
    }
    TD_TRY(request_plan(&q, TYPE_FP32, NULL, a, &setup, err));
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    bench b = {.o = o,
               .m = &setup.model,
               .run = setup.sizes.run,
               .out = samples_new(a),
               .cores = (int)(online < 1          ? 1
                              : online > MAX_BUSY ? MAX_BUSY
                                                  : online)};
    if (!k_blas_open(&b.blas, pexec_blas(o)))
        return td_fail(err, TD_EDEVICE, "--blas %s: this machine has no such library",
                       pexec_blas(o));
    td_status st = headers(&b, err);
    for (int i = 0; st == TD_OK && i < b.cores; i++) {
        void *const mem = td_alloc(a, 1, k_ctx_size((int)o->threads_per_rank));
        b.ctx[i] = mem == NULL ? NULL : k_ctx_start(mem, &b.blas, (int)o->threads_per_rank);
        if (b.ctx[i] == NULL) st = td_fail(err, TD_EDEVICE, "kernel threads could not be started");
    }
    if (st == TD_OK) st = bench_all(&b, err);
    for (int i = 0; i < b.cores; i++) k_ctx_stop(b.ctx[i]);
    k_blas_close(&b.blas);
    if (st != TD_OK) return st;
    if (o->out != NULL) return samples_write(&b.out, o->out, err);
    td_text t = {0};
    samples_print(&b.out, &t);
    (void)fputs(t.s == NULL ? "" : t.s, stdout);
    td_text_free(&t);
    return TD_OK;
}
