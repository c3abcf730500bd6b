/* From samples to a profile: which rows make which fit. */
#include "costmodel/calibrate.h"

#include "base/text.h"
#include "costmodel/calibrate_context.h"
#include "costmodel/robust_fit.h"

#include <gsl/gsl_statistics_double.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const recompute_names[] = {"none", "selective", "full"};

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
    if (text == NULL) return TD_OK;
    return td_parse_i64(text, 0, max, key, out, err);
}

static void header_text(const samples *s, const char *key, char *out, size_t size)
{
    const char *const text = samples_header_value(s, key);
    if (text != NULL) (void)snprintf(out, size, "%s", text);
}

static td_status read_headers(const samples *s, profile *p, td_err *err)
{
    int64_t causal = 1, cores = 0;
    char dtype[16] = "fp32";
    header_text(s, "source", p->source, sizeof p->source);
    header_text(s, "date", p->date, sizeof p->date);
    header_text(s, "device", p->device, sizeof p->device);
    header_text(s, "model", p->model.name, sizeof p->model.name);
    header_text(s, "dtype", dtype, sizeof dtype);
    p->tp = 1;
    const struct {
        const char *key;
        int64_t *out;
    } numbers[] = {
        {"layers", &p->model.n_layers},
        {"hidden", &p->model.hidden},
        {"heads", &p->model.n_heads},
        {"kv_heads", &p->model.n_kv_heads},
        {"head_dim", &p->model.head_dim},
        {"ffn", &p->model.ffn},
        {"vocab", &p->model.vocab},
        {"causal", &causal},
        {"cores", &cores},
        {"tp", &p->tp},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        TD_TRY(header_i64(s, numbers[i].key, INT32_MAX, numbers[i].out, err));
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
} selection;

static bool selects(const selection *sel, const sample *x)
{
    if (x->what != sel->what) return false;
    if (x->what != SAMPLE_PASS) return true;
    return x->pass == sel->pass && x->part == sel->part && x->recompute == sel->recompute;
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
    if (x->what != SAMPLE_PASS) return (fit_row){{1, amount, 0}, x->ns};
    const double tokens = (double)x->micro_batch * (double)x->slice_len;
    const double seen = tokens * profile_context(f->causal, x->slice_len, x->prefix);
    const double layers = x->part == PART_LAYERS ? (double)x->layers : 1;
    const double others = sees_others(x->pass, x->part) ? layers * seen : 0;
    return (fit_row){{layers, layers * tokens, others}, x->ns};
}

/* Where what contexts add has a fit of its own, the pass's fit is of slices without one. */
static bool is_counted(const fitter *f, const sample *x)
{
    if (x->what != SAMPLE_PASS || x->part != PART_LAYERS || x->prefix == 0) return true;
    return f->out->context[x->recompute][x->pass].n == 0;
}

static bool is_alone(const sample *x)
{
    /* messages and collectives take several ranks to happen at all */
    return x->busy == 1 || x->what == SAMPLE_MESSAGE || x->what == SAMPLE_ALL_REDUCE;
}

static void report_fit(fitter *f, const char *what, const profile_fit *fit, unsigned used)
{
    static const char *const terms[] = {"constant", "linear", "attention"};
    td_text_addf(f->report, "%s: %" PRId32 " samples, residual %.1f %%:", what, fit->n,
                 100 * fit->error);
    for (int t = 0; t < PROFILE_TERMS; t++) {
        if ((used >> t & 1u) == 0) continue;
        td_text_addf(f->report, " %s %.4g", terms[t], fit->c[t].value);
        if (isfinite(fit->c[t].half)) td_text_addf(f->report, " +- %.2g", fit->c[t].half);
        td_text_add(f->report, " ns");
    }
    td_text_add(f->report, "\n");
}

/* What a fit leaves open, for the report. */
static void report_open(fitter *f, const char *what, const selection *sel, unsigned used)
{
    if (sel->what == SAMPLE_PASS && (used & 2u) == 0)
        td_text_addf(f->report,
                     "%s: no change with tokens could be determined; predictions hold "
                     "for the measured length alone\n",
                     what);
    if (sel->what == SAMPLE_PASS && sees_others(sel->pass, sel->part) && (used & 4u) == 0)
        td_text_addf(f->report,
                     "%s: attention's share could not be told apart; measure several "
                     "lengths and micro-batches\n",
                     what);
    if (sel->what == SAMPLE_MESSAGE && (used & 3u) != 3u)
        td_text_addf(f->report,
                     "%s: latency and bandwidth could not be told apart; measure small "
                     "and large messages\n",
                     what);
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
    report_fit(f, what, out, used);
    report_open(f, what, sel, used);
    f->fits++;
    return TD_OK;
}

static td_status fit_contexts(fitter *f)
{
    for (int r = 0; r < 3; r++)
        for (int k = 0; k < PASS_COUNT; k++) {
            profile_context_fit *const c = &f->out->context[r][k];
            TD_TRY(calibrate_context(f->s, (pass_kind)k, (recompute_mode)r, f->a, c, f->err));
            if (c->n == 0) continue;
            td_text_addf(f->report,
                         "context of pass %c%s%s: %" PRId32 " samples, residual %.1f %%:",
                         pass_letter((pass_kind)k), r > 0 ? ", recompute " : "",
                         r > 0 ? recompute_names[r] : "", c->n, 100 * c->error);
            static const char *const terms[] = {"constant", "tokens", "context", "product"};
            for (int t = 0; t < CONTEXT_TERMS; t++) {
                td_text_addf(f->report, " %s %.4g", terms[t], c->c[t].value);
                if (isfinite(c->c[t].half)) td_text_addf(f->report, " +- %.2g", c->c[t].half);
                td_text_add(f->report, " ns");
            }
            td_text_add(f->report, "\n");
        }
    return TD_OK;
}

static td_status fit_passes(fitter *f)
{
    for (int r = 0; r < 3; r++)
        for (int k = 0; k < PASS_COUNT; k++)
            for (int part = 0; part < PART_COUNT; part++) {
                const selection sel = {SAMPLE_PASS, (pass_kind)k, (stage_part)part,
                                       (recompute_mode)r};
                char what[64];
                (void)snprintf(what, sizeof what, "pass %c of %s%s%s", pass_letter(sel.pass),
                               stage_part_name(sel.part), r > 0 ? ", recompute " : "",
                               r > 0 ? recompute_names[r] : "");
                TD_TRY(fit_one(f, &sel, what, &f->out->pass[r][k][part]));
            }
    return TD_OK;
}

/* --- contention --- */

static bool same_work(const sample *a, const sample *b)
{
    return a->what == b->what && a->pass == b->pass && a->part == b->part &&
           a->recompute == b->recompute && a->layers == b->layers &&
           a->micro_batch == b->micro_batch && a->slice_len == b->slice_len &&
           a->prefix == b->prefix && a->amount == b->amount;
}

/* Median time of the same work done alone, or 0. */
static double alone_ns(const samples *s, const sample *like, double *scratch)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++)
        if (s->items[i].busy == 1 && same_work(&s->items[i], like)) scratch[n++] = s->items[i].ns;
    return n > 0 ? gsl_stats_median(scratch, 1, n) : 0;
}

/* Median slowdown with `busy` ranks at work, its interval from the spread (1.2533 sigma / sqrt n,
 * the standard error of a median; sigma from the median absolute deviation). */
static estimate slowdown(const samples *s, int32_t busy, bool memory, double *ratios,
                         double *scratch)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++) {
        const sample *const x = &s->items[i];
        const bool sweep = x->what == SAMPLE_OPTIMIZER || x->what == SAMPLE_NORM;
        if (x->busy != busy || (memory ? !sweep : x->what != SAMPLE_PASS)) continue;
        const double alone = alone_ns(s, x, scratch);
        if (alone > 0) ratios[n++] = x->ns / alone;
    }
    if (n == 0) return (estimate){0, 0};
    const double median = gsl_stats_median(ratios, 1, n);
    const double sigma = gsl_stats_mad(ratios, 1, n, scratch);
    return (estimate){median, 1.96 * 1.2533 * sigma / sqrt((double)n)};
}

static int32_t next_busy(const samples *s, int32_t after)
{
    int32_t best = 0;
    for (size_t i = 0; i < s->n; i++) {
        const int32_t busy = s->items[i].busy;
        if (busy > after && (best == 0 || busy < best)) best = busy;
    }
    return best;
}

static td_status fit_contention(fitter *f)
{
    double *const ratios = TD_NEW_N(f->a, double, f->s->n);
    double *const scratch = TD_NEW_N(f->a, double, f->s->n);
    if (ratios == NULL || scratch == NULL)
        return td_fail(f->err, TD_ENOMEM, "calibrate: out of memory");
    profile *const p = f->out;
    for (int32_t k = next_busy(f->s, 1); k != 0 && p->n_busy < PROFILE_BUSY_MAX;
         k = next_busy(f->s, k)) {
        const contention c = {k, slowdown(f->s, k, false, ratios, scratch),
                              slowdown(f->s, k, true, ratios, scratch)};
        if (c.compute.value <= 0) {
            td_text_addf(f->report,
                         "%" PRId32 " ranks at work: no pass was measured both so and "
                         "alone\n",
                         k);
            continue;
        }
        td_text_addf(f->report,
                     "%" PRId32 " ranks at work: passes take %.3f +- %.2g times as long\n", k,
                     c.compute.value, c.compute.half);
        p->busy[p->n_busy++] = c;
    }
    if (p->n_busy == 0)
        td_text_add(f->report, "contention: not determined; measure with all cores busy too\n");
    return TD_OK;
}

/* --- all of it --- */

static td_status fit_all(fitter *f)
{
    const struct {
        sample_what what;
        const char *name;
        profile_fit *out;
    } others[] = {
        {SAMPLE_OPTIMIZER, "optimizer", &f->out->optimizer},
        {SAMPLE_NORM, "norm", &f->out->norm},
        {SAMPLE_MESSAGE, "message", &f->out->message},
        {SAMPLE_ALL_REDUCE, "all-reduce", &f->out->all_reduce},
    };
    TD_TRY(fit_contexts(f));
    TD_TRY(fit_passes(f));
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        const selection sel = {.what = others[i].what};
        TD_TRY(fit_one(f, &sel, others[i].name, others[i].out));
        if (others[i].out->n == 0) td_text_addf(f->report, "%s: not measured\n", others[i].name);
    }
    if (f->fits == 0)
        return td_fail(f->err, TD_EUSAGE,
                       "calibrate: there are no samples to fit; run pexec bench");
    return fit_contention(f);
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
