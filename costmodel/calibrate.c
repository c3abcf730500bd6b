/* From samples to a profile: which rows make which fit. */
#include "costmodel/calibrate.h"

#include "base/text.h"
#include "costmodel/calibrate_parts.h"
#include "costmodel/robust_fit.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const recompute_names[] = {"none", "selective", "full"};

/* Beyond these a report says that something is wrong: residuals; cores with other work. A line
 * that is further from a size's median is none. */
static const double error_max = 0.25, load_max = 0.1, bent = 0.1;

typedef struct fitter {
    const samples *s;
    td_arena *a;
    profile *out;
    td_text *report;
    bool causal;
    int32_t fits;
    td_err *err;
} fitter;

/* --- headers --- */

static td_status header_i64(const samples *s, const char *key, int64_t max, int64_t *out,
                            td_err *err)
{
    const char *const text = samples_header_value(s, key);
    if (text == NULL || td_parse_i64(text, 0, max, key, out, err) == TD_OK) return TD_OK;
    return td_wrap(err, "samples: header");
}

static void header_text(const samples *s, const char *key, char *out, size_t size)
{
    const char *const text = samples_header_value(s, key);
    if (text != NULL) (void)snprintf(out, size, "%s", text);
}

void calibrate_source(const samples *s, profile_source *out)
{
    *out = (profile_source){.samples = (int32_t)s->n};
    header_text(s, "source", out->source, sizeof out->source);
    header_text(s, "date", out->date, sizeof out->date);
    header_text(s, "device", out->device, sizeof out->device);
}

static td_status read_headers(const samples *s, profile *p, td_err *err)
{
    int64_t causal = 1, cores = 0;
    char dtype[16] = "fp32";
    calibrate_source(s, &p->sources[p->n_sources++]);
    header_text(s, "model", p->model.name, sizeof p->model.name);
    header_text(s, "dtype", dtype, sizeof dtype);
    const struct {
        const char *key;
        int64_t *out;
    } numbers[] = {
        {"layers", &p->model.n_layers},   {"hidden", &p->model.hidden},
        {"heads", &p->model.n_heads},     {"kv_heads", &p->model.n_kv_heads},
        {"head_dim", &p->model.head_dim}, {"ffn", &p->model.ffn},
        {"vocab", &p->model.vocab},       {"cores", &cores},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        TD_TRY(header_i64(s, numbers[i].key, INT32_MAX, numbers[i].out, err));
    TD_TRY(header_i64(s, "causal", 1, &causal, err));
    p->model.causal = causal != 0;
    p->cores = (int32_t)cores;
    for (int t = TYPE_FP32; t <= TYPE_FP16; t++)
        if (strcmp(dtype, data_type_name((data_type)t)) == 0) {
            p->dtype = (data_type)t;
            return TD_OK;
        }
    return td_fail(err, TD_EUSAGE, "samples: dtype '%s'; it is fp32, bf16 or fp16", dtype);
}

/* --- rows --- */

/* What a fit is made of. */
typedef struct selection {
    sample_what what;
    pass_kind pass;
    stage_part part;
    recompute_mode recompute;
    int64_t tp;
    sample_link link;
} selection;

static bool selects(const selection *sel, const sample *x)
{
    if (x->what != sel->what) return false;
    if (x->what == SAMPLE_MESSAGE || x->what == SAMPLE_ALL_REDUCE) return x->link == sel->link;
    if (x->what != SAMPLE_PASS) return true;
    return x->pass == sel->pass && x->part == sel->part && x->recompute == sel->recompute &&
           x->tp == sel->tp;
}

/* Only layers look at other tokens, and not for their weights' gradients: those are products of the
 * slice's own rows. */
static bool sees_others(pass_kind pass, stage_part part)
{
    return part == PART_LAYERS && pass != PASS_W;
}

static fit_row row_of(const fitter *f, const sample *x)
{
    const double amount = (double)x->amount;
    if (x->what == SAMPLE_ALL_REDUCE) return (fit_row){{1, amount * (x->members - 1), 0}, x->ns};
    if (x->what == SAMPLE_PRODUCT) {
        const double m = (double)x->shape[0], n = (double)x->shape[1], k = (double)x->shape[2];
        return (fit_row){{1, 2 * m * n * k, m * k + k * n + m * n}, x->ns};
    }
    if (x->what != SAMPLE_PASS) return (fit_row){{1, amount, 0}, x->ns};
    const double tokens = (double)x->micro_batch * (double)x->slice_len;
    const double seen = tokens * profile_context(f->causal, x->slice_len, x->prefix);
    const double layers = x->part == PART_LAYERS ? (double)x->layers : 1;
    if (x->words > 0) return (fit_row){{1, tokens, tokens * (double)x->words}, x->ns};
    const double others = sees_others(x->pass, x->part) ? layers * seen : 0;
    return (fit_row){{layers, layers * tokens, others}, x->ns};
}

/* Where what contexts add has a fit of its own, the pass's fit is of slices without one. */
static bool is_counted(const fitter *f, const sample *x)
{
    if (x->what != SAMPLE_PASS || x->part != PART_LAYERS || x->prefix == 0) return true;
    const profile_shard *const shard = profile_shard_of(f->out, x->tp);
    return shard == NULL || shard->context[x->recompute][x->pass].n == 0;
}

static bool is_alone(const sample *x)
{
    /* messages and collectives take several ranks to happen at all */
    return x->busy == 1 || x->what == SAMPLE_MESSAGE || x->what == SAMPLE_ALL_REDUCE;
}

static void report_fit(fitter *f, const char *what, const profile_fit *fit, unsigned used)
{
    static const char *const terms[] = {"constant", "linear", "second"};
    td_text_addf(f->report, "%s: %" PRId32 " samples, residual %.1f %%", what, fit->n,
                 100 * fit->error);
    if (fit->spread > 0) td_text_addf(f->report, ", repeats within %.1f %%", 100 * fit->spread);
    td_text_add(f->report, ":");
    for (int t = 0; t < PROFILE_TERMS; t++) {
        if ((used >> t & 1u) == 0) continue;
        td_text_addf(f->report, " %s %.4g", terms[t], fit->c[t].value);
        if (isfinite(fit->c[t].half)) td_text_addf(f->report, " +- %.2g", fit->c[t].half);
        td_text_add(f->report, " ns");
    }
    td_text_add(f->report, "\n");
    if (fit->error > error_max)
        td_text_addf(f->report,
                     "%s: its measurements are %.0f %% off any such line: what rests on it is as "
                     "uncertain; measure again on a quiet machine, with more --budget\n",
                     what, 100 * fit->error);
}

/* What a fit leaves open, for the report. */
static void report_open(fitter *f, const char *what, const selection *sel, unsigned used)
{
    if (sel->what == SAMPLE_PASS && (used & 6u) == 0)
        td_text_addf(f->report,
                     "%s: no change with tokens could be determined; predictions hold "
                     "for the measured length alone\n",
                     what);
    if (sel->what == SAMPLE_PASS && sees_others(sel->pass, sel->part) && (used & 4u) == 0)
        td_text_addf(f->report,
                     "%s: attention's share could not be told apart; measure several "
                     "lengths and micro-batches\n",
                     what);
    if (sel->what == SAMPLE_PRODUCT && (used & 2u) == 0)
        td_text_addf(f->report, "%s: its rate could not be determined; measure larger ones\n",
                     what);
    if (sel->what != SAMPLE_PASS && sel->what != SAMPLE_PRODUCT && (used & 2u) == 0)
        td_text_addf(f->report,
                     "%s: no change with size could be determined; predictions hold for the "
                     "measured size alone\n",
                     what);
    if (sel->what == SAMPLE_MESSAGE && (used & 3u) != 3u)
        td_text_addf(f->report,
                     "%s: latency and bandwidth could not be told apart; measure small "
                     "and large messages\n",
                     what);
}

/* How single measurements of one piece of work vary. */
static td_status fit_spread(const fitter *f, const selection *sel, double *out)
{
    const sample **const of = td_alloc(f->a, f->s->n, sizeof *of);
    if (of == NULL) return td_fail(f->err, TD_ENOMEM, "calibrate: out of memory");
    size_t n = 0;
    for (size_t i = 0; i < f->s->n; i++)
        if (selects(sel, &f->s->items[i]) && is_alone(&f->s->items[i])) of[n++] = &f->s->items[i];
    return calibrate_spread(of, n, f->a, out, f->err);
}

static td_status fit_one(fitter *f, const selection *sel, const char *what, profile_fit *out)
{
    size_t n = 0;
    fit_row *const rows = TD_NEW_N(f->a, fit_row, f->s->n);
    if (rows == NULL) return td_fail(f->err, TD_ENOMEM, "calibrate: out of memory");
    bool any = false;
    for (size_t i = 0; i < f->s->n; i++) {
        if (!selects(sel, &f->s->items[i])) continue;
        any = true;
        if (is_alone(&f->s->items[i]) && is_counted(f, &f->s->items[i]))
            rows[n++] = row_of(f, &f->s->items[i]);
    }
    if (!any) return TD_OK;
    if (n == 0)
        return td_fail(f->err, TD_EUSAGE,
                       "%s: measured only with other ranks at work; measure it "
                       "alone too (busy 1)",
                       what);
    unsigned used = 0;
    if (robust_fit(rows, n, f->a, out, &used, f->err) != TD_OK) return td_wrap(f->err, "%s", what);
    TD_TRY(fit_spread(f, sel, &out->spread));
    report_fit(f, what, out, used);
    report_open(f, what, sel, used);
    f->fits++;
    return TD_OK;
}

static void report_context(fitter *f, const char *what, const profile_context_fit *c)
{
    static const char *const terms[] = {"constant", "tokens", "context", "product"};
    td_text_addf(f->report, "%s: %" PRId32 " samples, residual %.1f %%:", what, c->n,
                 100 * c->error);
    for (int t = 0; t < CONTEXT_TERMS; t++) {
        td_text_addf(f->report, " %s %.4g", terms[t], c->c[t].value);
        if (isfinite(c->c[t].half)) td_text_addf(f->report, " +- %.2g", c->c[t].half);
        td_text_add(f->report, " ns");
    }
    td_text_add(f->report, "\n");
}

static void name_pass(const selection *sel, char *out, size_t size)
{
    char degree[32] = "";
    if (sel->tp > 1) (void)snprintf(degree, sizeof degree, ", tp %" PRId64, sel->tp);
    (void)snprintf(out, size, "pass %c of %s%s%s%s", pass_letter(sel->pass),
                   stage_part_name(sel->part), sel->recompute > 0 ? ", recompute " : "",
                   sel->recompute > 0 ? recompute_names[sel->recompute] : "", degree);
}

static td_status fit_shard(fitter *f, profile_shard *shard)
{
    for (int r = 0; r < 3; r++)
        for (int k = 0; k < PASS_COUNT; k++) {
            selection sel = {.what = SAMPLE_PASS,
                             .pass = (pass_kind)k,
                             .recompute = (recompute_mode)r,
                             .tp = shard->tp};
            char what[96], behind[112];
            profile_context_fit *const c = &shard->context[r][k];
            TD_TRY(calibrate_context(f->s, sel.pass, sel.recompute, shard->tp, f->a, c, f->err));
            name_pass(&sel, what, sizeof what);
            (void)snprintf(behind, sizeof behind, "context of %s", what);
            if (c->n > 0) report_context(f, behind, c);
            for (int part = 0; part < PART_COUNT; part++) {
                sel.part = (stage_part)part;
                name_pass(&sel, what, sizeof what);
                TD_TRY(fit_one(f, &sel, what, &shard->pass[r][k][part]));
            }
        }
    return TD_OK;
}

static td_status fit_passes(fitter *f)
{
    for (size_t i = 0; i < f->s->n; i++)
        if (f->s->items[i].what == SAMPLE_PASS &&
            profile_shard_at(f->out, f->s->items[i].tp) == NULL)
            return td_fail(f->err, TD_EUSAGE,
                           "samples: more than %d tensor-parallel degrees; calibrate some of them",
                           (int)PROFILE_TP_MAX);
    for (int32_t i = 0; i < f->out->n_shards; i++) TD_TRY(fit_shard(f, &f->out->shard[i]));
    return TD_OK;
}

/* Caches bend what takes long by its size: where the line is off, the medians of the sizes stay. */
static td_status fit_curve(fitter *f, const selection *sel, const char *what,
                           const profile_fit *fit, profile_curve *out)
{
    double *const x = TD_NEW_N(f->a, double, f->s->n), *const ns = TD_NEW_N(f->a, double, f->s->n);
    size_t n = 0;
    if (x == NULL || ns == NULL) return td_fail(f->err, TD_ENOMEM, "calibrate: out of memory");
    if (fit->n == 0) return TD_OK;
    for (size_t i = 0; i < f->s->n; i++) {
        const sample *const one = &f->s->items[i];
        if (!selects(sel, one) || !is_alone(one) || one->repeats < 6) continue;
        x[n] = row_of(f, one).x[1];
        ns[n++] = one->ns;
    }
    calibrate_curve(x, ns, n, out);
    double off = 0;
    for (int32_t i = 0; i < out->n; i++)
        off = fmax(off, fabs(profile_eval(fit, out->x[i], 0) / out->ns[i] - 1));
    if (off <= bent) *out = (profile_curve){0};
    if (out->n > 0)
        td_text_addf(f->report, "%s: no line; prices go from point to point of %" PRId32 " sizes\n",
                     what, out->n);
    return TD_OK;
}

static td_status fit_between(fitter *f)
{
    for (int link = 0; link < LINK_COUNT; link++)
        for (int sum = 0; sum < 2; sum++) {
            const selection sel = {.what = sum ? SAMPLE_ALL_REDUCE : SAMPLE_MESSAGE,
                                   .link = (sample_link)link};
            char what[64];
            (void)snprintf(what, sizeof what, "%s by %s", sum ? "all-reduce" : "message",
                           sample_link_name(sel.link));
            profile_fit *const fit = sum ? &f->out->all_reduce[link] : &f->out->message[link];
            TD_TRY(fit_one(f, &sel, what, fit));
            TD_TRY(fit_curve(f, &sel, what, fit,
                             sum ? &f->out->all_reduce_curve[link] : &f->out->message_curve[link]));
        }
    for (int sum = 0; sum < 2; sum++)
        if (!profile_has_between(f->out, sum == 0))
            td_text_addf(f->report, "%s: not measured\n", sum ? "all-reduce" : "message");
    return TD_OK;
}

/* --- all of it --- */

/* What in the samples themselves speaks against trusting them. */
static void report_doubts(fitter *f)
{
    const char *const text = samples_header_value(f->s, "other_load");
    double load = 0;
    size_t loose = 0;
    for (size_t i = 0; i < f->s->n; i++) loose += f->s->items[i].half_ns > 0.1 * f->s->items[i].ns;
    if (text != NULL && td_parse_f64(text, 0, 1e6, "other_load", &load, NULL) == TD_OK &&
        load > load_max)
        td_text_addf(f->report,
                     "the machine did other work during the bench, %.2f cores of it: times may be "
                     "too long\n",
                     load);
    if (loose > 0)
        td_text_addf(f->report,
                     "%zu of %zu samples are known within more than 10 %% only; measure on a quiet "
                     "machine, or with more --budget\n",
                     loose, f->s->n);
}

static td_status fit_all(fitter *f)
{
    const struct {
        sample_what what;
        const char *name;
        profile_fit *out;
    } others[] = {
        {SAMPLE_OPTIMIZER, "optimizer", &f->out->optimizer},
        {SAMPLE_NORM, "norm", &f->out->norm},
        {SAMPLE_PRODUCT, "matrix product", &f->out->product},
        {SAMPLE_COPY, "copy", &f->out->copy},
    };
    report_doubts(f);
    TD_TRY(fit_passes(f));
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        const selection sel = {.what = others[i].what};
        TD_TRY(fit_one(f, &sel, others[i].name, others[i].out));
        if (others[i].out->n == 0) td_text_addf(f->report, "%s: not measured\n", others[i].name);
    }
    TD_TRY(fit_curve(f, &(selection){.what = SAMPLE_COPY}, "copy", &f->out->copy,
                     &f->out->copy_curve));
    TD_TRY(fit_between(f));
    if (f->fits == 0)
        return td_fail(f->err, TD_EUSAGE,
                       "calibrate: there are no samples to fit; run pexec bench");
    return calibrate_busy(f->s, f->a, f->out, f->report, f->err);
}

td_status calibrate_fit(const samples *s, profile *out, td_text *report, td_err *err)
{
    *out = (profile){0};
    TD_TRY(read_headers(s, out, err));
    fitter f = {.s = s, .a = td_arena_new(), .out = out, .report = report, .err = err};
    if (f.a == NULL) return td_fail(err, TD_ENOMEM, "calibrate: out of memory");
    f.causal = out->model.causal;
    const td_status status = fit_all(&f);
    td_arena_free(f.a);
    return status;
}
