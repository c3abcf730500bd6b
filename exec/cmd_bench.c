/* pexec bench: what passes, optimizer, kernels, messages and sums take on this machine; a samples
 * file for psim calibrate. */
#include "base/text.h"
#include "exec/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef enum case_kind {
    CASE_PART,
    CASE_VOCAB,
    CASE_PRODUCTS,
    CASE_COPIES,
    CASE_MESSAGE,
    CASE_SUM
} case_kind;

/* One thing to measure. */
typedef struct bench_case {
    case_kind kind;
    bool extra; /* left out when the budget is spent */
    bench_part part;
    recompute_mode recompute;
    int64_t tp;
    int32_t shards, members;
    bool fused;
    int64_t amount; /* tokens, rows or bytes */
} bench_case;

enum { CASES_MAX = 400 };

typedef struct agenda {
    const bench *b;
    bench_case cases[CASES_MAX];
    int n;
} agenda;

static void plan_case(agenda *g, const bench_case *k)
{
    if (g->n < CASES_MAX) g->cases[g->n++] = *k;
}

/* --- what there is to measure --- */

/* Layers (one, and two, to tell what is per layer from what is per pass), embedding and head. */
static void plan_parts(agenda *g, bench_case k, int64_t seq, bool step)
{
    const model_desc *const m = g->b->m;
    const bench_part parts[] = {
        {PART_LAYERS, {.n_layers = 1}, seq, 0, step},
        {PART_LAYERS, {.n_layers = 2}, seq, 0, step},
        {PART_EMBEDDING, {.embedding = true}, seq, 0, step},
        {PART_HEAD, {.head = true, .first_layer = m->n_layers}, seq, 0, step},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (parts[i].stage.n_layers > m->n_layers) continue;
        k.part = parts[i];
        plan_case(g, &k);
    }
}

/* All passes of one tensor-parallel degree and recompute mode, by length and context. */
static void plan_passes(agenda *g, int64_t tp, recompute_mode mode, bool extra)
{
    const int64_t full = g->b->run.seq_len;
    bench_case k = {.kind = CASE_PART, .extra = extra, .recompute = mode, .tp = tp};
    for (int64_t cut = full >= 4 ? 4 : 1; cut >= 1; cut /= 2)
        plan_parts(g, k, full / cut, cut == 1 && !extra);
    /* slices: a fourth or a half of a sequence, behind how many eighths of one; enough to tell the
     * terms of what a context adds apart, with some to spare for their intervals */
    static const int8_t behind[][2] = {{4, 1}, {4, 2}, {4, 4}, {4, 6}, {2, 1}, {2, 2}, {2, 4}};
    for (size_t i = 0; g->b->m->causal && full >= 8 && i < sizeof behind / 2; i++) {
        k.part = (bench_part){
            PART_LAYERS, {.n_layers = 1}, full / behind[i][0], full * behind[i][1] / 8, false};
        plan_case(g, &k);
    }
}

static void plan_kernels(agenda *g)
{
    const int64_t rows = g->b->run.micro_batch * g->b->run.seq_len;
    plan_case(g, &(bench_case){.kind = CASE_COPIES});
    plan_case(g, &(bench_case){.kind = CASE_PRODUCTS, .amount = rows});
    if (rows >= 4) plan_case(g, &(bench_case){.kind = CASE_PRODUCTS, .amount = rows / 4});
}

/* 8 B to 64 MiB between ranks. */
static void plan_wires(agenda *g)
{
    const int32_t most = g->b->team == NULL ? g->b->cores : (int32_t)team_size(g->b->team);
    const int64_t largest = (int64_t)64 << 20;
    for (int64_t bytes = 8; bytes < largest; bytes *= 8)
        plan_case(g, &(bench_case){.kind = CASE_MESSAGE, .amount = bytes});
    plan_case(g, &(bench_case){.kind = CASE_MESSAGE, .amount = largest});
    for (int32_t members = 2; members <= 8 && (members == 2 || members <= most); members *= 2)
        for (int64_t bytes = 64; bytes <= (int64_t)16 << 20; bytes *= 8)
            plan_case(g, &(bench_case){.kind = CASE_SUM, .members = members, .amount = bytes});
}

/* The vocabulary layers of one of 2, 4 or 8 shards. */
static void plan_vocab(agenda *g)
{
    const int64_t full = g->b->run.seq_len;
    for (int64_t cut = full >= 4 ? 4 : 1; cut >= 1; cut /= 2)
        for (int32_t shards = 2; shards <= 8; shards *= 2)
            for (int fused = 0; fused < 2; fused++)
                plan_case(g, &(bench_case){.kind = CASE_VOCAB,
                                           .extra = true,
                                           .shards = shards,
                                           .fused = fused == 1,
                                           .amount = full / cut});
}

static bool divides(const model_desc *m, int64_t tp)
{
    return m->family != MODEL_BERT && m->n_heads % tp == 0 && m->n_kv_heads % tp == 0 &&
           m->ffn % tp == 0 && m->vocab >= tp;
}

/* What the command line does not choose is measured in all its forms, while there is time. */
static void plan_all(agenda *g, bool any_tp, bool any_mode)
{
    const bench *const b = g->b;
    const int64_t tp = b->run.tp > 1 ? b->run.tp : 1;
    if (b->team != NULL) { /* passes do not care what lies between processes */
        plan_wires(g);
        return;
    }
    plan_passes(g, tp, b->run.recompute, false);
    plan_kernels(g);
    if (b->device == NULL) plan_wires(g); /* one device has no links to itself */
    for (recompute_mode mode = RECOMPUTE_NONE; any_mode && mode <= RECOMPUTE_FULL; mode++)
        if (mode != b->run.recompute) plan_passes(g, tp, mode, true);
    if (b->m->family != MODEL_BERT && (any_tp || any_mode)) plan_vocab(g);
    for (int64_t degree = 2; any_tp && degree <= 4; degree *= 2)
        if (divides(b->m, degree)) plan_passes(g, degree, b->run.recompute, true);
}

/* --- the whole bench --- */

static td_status measure_case(bench *b, const bench_case *k, td_err *err)
{
    run_shape run = b->run;
    run.recompute = k->recompute;
    run.tp = k->tp;
    switch (k->kind) {
    case CASE_PART: return bench_stage(b, &run, &k->part, err);
    case CASE_VOCAB: return bench_vocab(b, k->shards, k->fused, k->amount, err);
    case CASE_PRODUCTS: return bench_products(b, k->amount, err);
    case CASE_COPIES: return bench_copies(b, err);
    case CASE_MESSAGE: return bench_message(b, k->amount, err);
    default: return bench_sum(b, k->members, k->amount, err);
    }
}

static void show_case(cli_progress *p, const bench_case *k, int i, int n)
{
    static const char *const names[] = {"",       "vocabulary shards", "matrix products",
                                        "copies", "messages",          "sums"};
    if (k->kind != CASE_PART)
        (void)cli_progress_show(p, "%d/%d  %s", i, n, names[k->kind]);
    else
        (void)cli_progress_show(p, "%d/%d  %s of %lld tokens behind %lld", i, n,
                                stage_part_name(k->part.part), (long long)k->part.seq,
                                (long long)k->part.prefix);
}

/* Each case may take its share of what is left of the budget. left_out: those that found none. */
static td_status measure_all(bench *b, const agenda *g, double budget_s, int *left_out, td_err *err)
{
    const int64_t end = td_now_ns() + (int64_t)(budget_s * 1e9);
    cli_progress progress = cli_progress_begin(team_index(b->team) == 0 ? CLI_AUTO : CLI_NEVER);
    td_status st = TD_OK;
    for (int i = 0; i < g->n && st == TD_OK; i++) {
        const int64_t now = td_now_ns(), left = end > now ? end - now : 0;
        if (left == 0 && g->cases[i].extra) {
            ++*left_out;
            continue;
        }
        b->limits.deadline_ns = now + left / (g->n - i);
        show_case(&progress, &g->cases[i], i + 1, g->n);
        st = measure_case(b, &g->cases[i], err);
        if (st == TD_OK && b->failed.code != TD_OK)
            st = td_fail(err, b->failed.code, "%s", b->failed.msg);
    }
    cli_progress_end(&progress);
    return st;
}

/* What to know before trusting the numbers, for people and in the file. */
static td_status note_doubts(bench *b, const bench_load *since, int left_out, td_err *err)
{
    static const double much = 0.1;
    char text[64];
    /* the processes of a team are the bench's own */
    const double others = b->team == NULL ? bench_other_load(since) : -1;
    if (others >= 0) {
        (void)snprintf(text, sizeof text, "%.3f", others);
        TD_TRY(samples_header(&b->out, "other_load", text, err));
    }
    (void)snprintf(text, sizeof text, "%lld", (long long)b->count.loose);
    TD_TRY(samples_header(&b->out, "loose_samples", text, err));
    (void)snprintf(text, sizeof text, "%d", left_out);
    TD_TRY(samples_header(&b->out, "left_out", text, err));
    if (others > much)
        (void)fprintf(stderr,
                      "pexec: bench: other work kept %.2f of %d cores busy meanwhile: these times "
                      "may be too long\n",
                      others, b->cores);
    if (b->count.loose > 0)
        (void)fprintf(stderr,
                      "pexec: bench: %lld of %lld samples are known less precisely than to "
                      "%g %%; a larger --budget, or a quiet machine, helps\n",
                      (long long)b->count.loose, (long long)b->count.samples,
                      100 * b->limits.precision);
    if (left_out > 0)
        (void)fprintf(stderr,
                      "pexec: bench: %d cases of other recompute modes, degrees and vocabulary "
                      "shards were left out for want of time; a larger --budget has them\n",
                      left_out);
    return TD_OK;
}

static td_status print_samples(const bench *b, const char *path, td_err *err)
{
    if (path != NULL) return samples_write(&b->out, path, err);
    td_text t = {0};
    samples_print(&b->out, &t);
    const bool ok = !t.failed && fputs(t.s, stdout) >= 0;
    td_text_free(&t);
    return ok ? TD_OK : td_fail(err, TD_EIO, "bench: the samples could not be written");
}

static td_status open_bench(bench *b, const pexec_options *o, const k_blas *blas, td_arena *a,
                            td_err *err)
{
    TD_TRY(samples_header_model(&b->out, b->m, &b->run, err));
    TD_TRY(bench_headers(b, k_blas_info(blas), err));
    for (int i = 0; i < LINK_COUNT && b->team != NULL; i++)
        if (strcmp(b->team->t.methods->name, sample_link_name((sample_link)i)) == 0)
            b->link = (sample_link)i;
    for (int i = 0; i < b->cores; i++) {
        void *const mem = td_alloc(a, 1, k_ctx_size((int)o->threads_per_rank));
        b->ctx[i] = mem == NULL ? NULL : k_ctx_start(mem, blas, (int)o->threads_per_rank);
        if (b->ctx[i] == NULL)
            return td_fail(err, TD_EDEVICE, "kernel threads could not be started");
    }
    return bench_place_open(b, err);
}

static td_status run_bench(bench *b, const cli_args *args, const pexec_options *o, td_arena *a,
                           td_err *err)
{
    agenda *const g = TD_NEW(a, agenda);
    const bench_load before = bench_load_now();
    int left_out = 0;
    if (g == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    g->b = b;
    plan_all(g, !cli_given(args, "tp"), !cli_given(args, "recompute"));
    TD_TRY(measure_all(b, g, o->budget, &left_out, err));
    if (team_index(b->team) > 0) return TD_OK;
    TD_TRY(note_doubts(b, &before, left_out, err));
    return print_samples(b, o->out, err);
}

static td_status check_options(const pexec_options *o, const team *t, td_err *err)
{
    if (t != NULL && o->backend != 0)
        return td_fail(err, TD_EUSAGE,
                       "--backend cuda: one process measures the device; leave out the launcher");
    if (!(o->precision >= 0 && o->precision < 1))
        return td_fail(err, TD_EUSAGE,
                       "--precision %g: a part of the median, from 0 (as many repeats as "
                       "--repeats says) to 1",
                       o->precision);
    if (!(o->budget >= 0 && o->budget <= 1e6))
        return td_fail(err, TD_EUSAGE, "--budget %g: seconds, 0 to 1000000", o->budget);
    if (t != NULL && team_size(t) < 2)
        return td_fail(err, TD_EUSAGE,
                       "one process was started: messages take two; or leave out the launcher");
    return TD_OK;
}

static td_status bench_with(team *t, const cli_args *args, const pexec_options *o, td_arena *a,
                            td_err *err)
{
    run_setup setup;
    request q = o->what;
    TD_TRY(cli_check_outputs(args, err));
    TD_TRY(check_options(o, t, err));
    if (q.model == NULL)
        return td_fail(err, TD_EUSAGE,
                       "--model is missing: whose passes to measure, such as --model tiny-gpt2");
    if (q.schedule == NULL && q.plan == NULL) { /* parts are measured, not a plan */
        q.schedule = "1f1b";
        q.pp = 1;
        q.microbatches = 1;
    }
    q.shards = true;
    TD_TRY(request_plan(&q, TYPE_FP32, NULL, a, &setup, err));
    const bool bf16 = setup.sizes.run.dtype == TYPE_BF16;
    if (setup.sizes.run.dtype != TYPE_FP32 && (o->backend == 0 || !bf16))
        return td_fail(err, TD_EUSAGE, "--dtype %s: %s", data_type_name(setup.sizes.run.dtype),
                       o->backend == 0 ? "the CPU backend computes in fp32"
                                       : "devices compute in fp32 and bf16");
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    bench *const b = TD_NEW(a, bench);
    if (b == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    *b = (bench){.m = &setup.model,
                 .run = setup.sizes.run,
                 .out = samples_new(a),
                 .limits = {.precision = o->precision, .repeats = o->repeats},
                 .cores = (int)(online < 1             ? 1
                                : online > BENCH_CORES ? BENCH_CORES
                                                       : online),
                 .team = t};
    TD_TRY(pexec_device(o, NULL, bf16, a, &b->device, err));
    if (b->device != NULL) b->cores = 1; /* one stream at a time */
    k_blas blas;
    if (!k_blas_open(&blas, pexec_blas(o)))
        return td_fail(err, TD_EDEVICE, "--blas %s: this machine has no such library",
                       pexec_blas(o));
    td_status st = open_bench(b, o, &blas, a, err);
    if (st == TD_OK) st = run_bench(b, args, o, a, err);
    for (int i = 0; i < b->cores; i++) k_ctx_stop(b->ctx[i]);
    k_blas_close(&blas);
    if (b->device != NULL) b->device->methods->close(b->device);
    return st;
}

td_status cmd_bench(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    const pexec_options *const o = options;
    team *t = NULL;
    launch who;
    TD_TRY(pexec_join(o, a, &who, &t, err));
    if (who.size == 0) return TD_OK;
    return pexec_leave(t, bench_with(t, args, o, a, err), err);
}
