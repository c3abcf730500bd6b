/* psim slices: what it says. */
#include "base/text.h"
#include "sim/slices.h"

static void add_tokens(td_text *out, const slicing *s, int32_t group, int64_t granularity)
{
    for (int32_t i = s->group_first[group]; i < s->group_first[group + 1]; i++)
        td_text_addf(out, "%s%lld", i > s->group_first[group] ? "," : "",
                     (long long)(s->length[i] * granularity));
}

/* Whether group g is cut as the one before it and has as many sequences. */
static bool like_before(const slicing *s, int32_t g)
{
    if (g == 0 || s->group_batch[g] != s->group_batch[g - 1]) return false;
    const int32_t n = s->group_first[g + 1] - s->group_first[g];
    if (n != s->group_first[g] - s->group_first[g - 1]) return false;
    for (int32_t i = 0; i < n; i++)
        if (s->length[s->group_first[g] + i] != s->length[s->group_first[g - 1] + i]) return false;
    return true;
}

/* --- equal FLOPs --- */

typedef struct flops_cut {
    slicing_flops flops;
    int64_t vocab, *length; /* [slices] */
    int32_t n;
    double mean, worst, even; /* longest over mean: of the cut, of an even one */
} flops_cut;

static td_status cut_by_flops(const slices_job *j, td_arena *a, flops_cut *c, td_err *err)
{
    const request *const q = &j->o->what;
    const int64_t pad = j->o->pad_vocab * q->tp;
    c->n = (int32_t)q->slices;
    c->vocab = j->o->pad_vocab > 1 ? (j->model.vocab + pad - 1) / pad * pad : j->model.vocab;
    c->flops = slicing_flops_of(&j->model, c->vocab);
    c->length = TD_NEW_N(a, int64_t, c->n);
    if (c->length == NULL) return td_fail(err, TD_ENOMEM, "out of memory for slices");
    TD_TRY(slicing_equal(&c->flops, j->seq_len, c->n, j->granularity, c->length, err));
    c->mean = slicing_flops_between(&c->flops, 0, j->seq_len) / c->n;
    int64_t at = 0;
    for (int32_t k = 0; k < c->n; at += c->length[k++]) {
        const double x = slicing_flops_between(&c->flops, at, at + c->length[k]) / c->mean;
        if (x > c->worst) c->worst = x;
    }
    const int64_t last = j->seq_len - j->seq_len / c->n;
    c->even = slicing_flops_between(&c->flops, last, j->seq_len) / c->mean;
    return TD_OK;
}

static void flops_json(const slices_job *j, const flops_cut *c, td_text *out)
{
    td_text_addf(out,
                 "{\"schema\":1,\"method\":\"equal-flops\",\"seq_len\":%lld,\"granularity\":%lld,"
                 "\"vocab\":%lld,\"square_flops\":%.17g,\"linear_flops\":%.17g,\"slices\":[",
                 (long long)j->seq_len, (long long)j->granularity, (long long)c->vocab,
                 c->flops.square, c->flops.linear);
    for (int32_t k = 0; k < c->n; k++)
        td_text_addf(out, "%s%lld", k > 0 ? "," : "", (long long)c->length[k]);
    td_text_add(out, "],\"slice_flops\":[");
    int64_t at = 0;
    for (int32_t k = 0; k < c->n; at += c->length[k++])
        td_text_addf(out, "%s%.17g", k > 0 ? "," : "",
                     slicing_flops_between(&c->flops, at, at + c->length[k]));
    td_text_addf(out, "],\"max_over_mean\":%.9g,\"even_max_over_mean\":%.9g}\n", c->worst, c->even);
}

static void flops_explained(const flops_cut *c, td_text *out)
{
    char total[32], part[32];
    td_text_addf(out,
                 "\n  forward FLOPs of the first x tokens: %.6g x^2 + %.6g x  (attention; products "
                 "of layers,\n  and of embedding and head with %lld words)\n\n"
                 "  slice     from   tokens       FLOPs   attention   of the mean\n",
                 c->flops.square, c->flops.linear, (long long)c->vocab);
    int64_t at = 0;
    for (int32_t k = 0; k < c->n; at += c->length[k++]) {
        const double all = slicing_flops_between(&c->flops, at, at + c->length[k]);
        const double lin = c->flops.linear * (double)c->length[k];
        td_text_addf(out, "  %5d %8lld %8lld %11s %10.1f%% %13.4f\n", k, (long long)at,
                     (long long)c->length[k], td_print_count(total, sizeof total, all),
                     100 * (all - lin) / all, all / c->mean);
    }
    td_text_addf(out, "  mean %30s\n", td_print_count(part, sizeof part, c->mean));
}

td_status slices_report_flops(const slices_job *j, td_arena *a, td_text *out, td_err *err)
{
    flops_cut c = {.worst = 0};
    TD_TRY(cut_by_flops(j, a, &c, err));
    if (j->o->json) {
        flops_json(j, &c, out);
        return TD_OK;
    }
    td_text_addf(out, "equal FLOPs · %s · %lld tokens in %d slices\n\n  --slice-tokens ",
                 j->model.name, (long long)j->seq_len, c.n);
    for (int32_t k = 0; k < c.n; k++)
        td_text_addf(out, "%s%lld", k > 0 ? "," : "", (long long)c.length[k]);
    td_text_addf(out, "\n  longest over mean %.4f (even cut: %.4f)\n", c.worst, c.even);
    if (j->o->explain) flops_explained(&c, out);
    return TD_OK;
}

/* --- times --- */

enum { UNIFORM_MAX = 24 };

/* Even cuts to hold the answer against: 1, 2, 4, ... slices, sequences one by one. */
typedef struct evens {
    slicing s[UNIFORM_MAX];
    int32_t slices[UNIFORM_MAX], n, best;
} evens;

static td_status even_cuts(const slices_job *j, td_arena *a, evens *e, td_err *err)
{
    const bool together = j->o->method == SLICES_EQUAL_TIME; /* one microbatch */
    for (int32_t n = 1; n <= j->times.units && e->n < UNIFORM_MAX; n *= 2) {
        TD_TRY(
            slicing_uniform(&j->times, j->stages, together ? j->batch : 1, n, a, &e->s[e->n], err));
        e->slices[e->n] = n;
        if (e->s[e->n].latency_ns < e->s[e->best].latency_ns) e->best = e->n;
        e->n++;
    }
    return TD_OK;
}

static void times_json(const slices_job *j, const slicing *s, const evens *e, td_text *out)
{
    td_text_addf(out,
                 "{\"schema\":1,\"method\":\"%s\",\"stages\":%d,\"batch\":%d,\"seq_len\":%lld,"
                 "\"granularity\":%lld,\"latency_ms\":%.12g,\"sum_ms\":%.12g,\"max_ms\":%.12g,"
                 "\"fill_ms\":%.12g,\"groups\":[",
                 j->o->method == SLICES_TERAPIPE ? "terapipe" : "equal-time", j->stages, j->batch,
                 (long long)j->seq_len, (long long)j->granularity, s->latency_ns / 1e6,
                 s->sum_ns / 1e6, s->max_ns / 1e6, (j->stages - 1) * s->max_ns / 1e6);
    for (int32_t g = 0; g < s->n_groups; g++) {
        td_text_addf(out, "%s{\"sequences\":%d,\"slices\":[", g > 0 ? "," : "", s->group_batch[g]);
        add_tokens(out, s, g, j->granularity);
        td_text_add(out, "],\"slice_ms\":[");
        for (int32_t i = s->group_first[g], end = 0; i < s->group_first[g + 1]; i++) {
            end += s->length[i];
            td_text_addf(out, "%s%.12g", i > s->group_first[g] ? "," : "",
                         *slicing_time(&j->times, s->group_batch[g], s->length[i], end) / 1e6);
        }
        td_text_add(out, "]}");
    }
    td_text_add(out, "],\"even\":[");
    for (int32_t i = 0; i < e->n; i++)
        td_text_addf(out, "%s{\"slices\":%d,\"latency_ms\":%.12g}", i > 0 ? "," : "", e->slices[i],
                     e->s[i].latency_ns / 1e6);
    td_text_add(out, "]}\n");
}

static void times_explained(const slices_job *j, const slicing *s, const evens *e, td_text *out)
{
    td_text_addf(out,
                 "\n  latency = sum of t + (stages - 1) x longest t\n"
                 "          = %.6g + %d x %.6g = %.6g + %.6g = %.6g ms\n"
                 "  t(b, i, j): forward and backward of i tokens behind j, of b sequences, on one "
                 "stage\n  (%s)\n\n"
                 "  group  sequences  slice     from   tokens      t, ms   of longest\n",
                 s->sum_ns / 1e6, j->stages - 1, s->max_ns / 1e6, s->sum_ns / 1e6,
                 (j->stages - 1) * s->max_ns / 1e6, s->latency_ns / 1e6, j->source);
    for (int32_t g = 0; g < s->n_groups; g++)
        for (int32_t i = s->group_first[g], end = 0; i < s->group_first[g + 1]; i++) {
            end += s->length[i];
            const double t = *slicing_time(&j->times, s->group_batch[g], s->length[i], end);
            td_text_addf(out, "  %5d %10d %6d %8lld %8lld %10.6g %11.1f%%\n", g, s->group_batch[g],
                         i - s->group_first[g], (long long)((end - s->length[i]) * j->granularity),
                         (long long)(s->length[i] * j->granularity), t / 1e6,
                         s->max_ns > 0 ? 100 * t / s->max_ns : 100);
        }
    td_text_add(out, "\n  even slices   latency, ms\n");
    for (int32_t i = 0; i < e->n; i++)
        td_text_addf(out, "  %11d %13.6g\n", e->slices[i], e->s[i].latency_ns / 1e6);
}

static void times_text(const slices_job *j, const slicing *s, const evens *e, td_text *out)
{
    td_text_addf(out, "%s · %s · %d stages, %d x %lld tokens in steps of %lld\n\n",
                 j->o->method == SLICES_TERAPIPE ? "TeraPipe" : "equal time", j->source, j->stages,
                 j->batch, (long long)j->seq_len, (long long)j->granularity);
    for (int32_t g = 0, same = 1; g < s->n_groups; g += same) {
        for (same = 1; g + same < s->n_groups && like_before(s, g + same);) same++;
        if (s->n_groups > 1) td_text_addf(out, "  %d x %d sequences:", same, s->group_batch[g]);
        td_text_add(out, "  --slice-tokens ");
        add_tokens(out, s, g, j->granularity);
        td_text_add(out, "\n");
    }
    td_text_addf(out, "  latency    %.6g ms = %.6g of all slices + %d x %.6g of the longest\n",
                 s->latency_ns / 1e6, s->sum_ns / 1e6, j->stages - 1, s->max_ns / 1e6);
    td_text_addf(out, "  not cut    %.6g ms; best even cut, into %d: %.6g ms\n",
                 e->s[0].latency_ns / 1e6, e->slices[e->best], e->s[e->best].latency_ns / 1e6);
}

td_status slices_report_times(const slices_job *j, td_arena *a, td_text *out, td_err *err)
{
    slicing s;
    evens *const e = TD_NEW(a, evens);
    if (e == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    if (j->o->method == SLICES_TERAPIPE)
        TD_TRY(slicing_best(&j->times, j->stages, a, &s, err));
    else
        TD_TRY(slicing_balanced(&j->times, j->stages, j->batch, (int32_t)j->o->what.slices, a, &s,
                                err));
    TD_TRY(even_cuts(j, a, e, err));
    if (j->o->json) {
        times_json(j, &s, e, out);
        return TD_OK;
    }
    times_text(j, &s, e, out);
    if (j->o->explain) times_explained(j, &s, e, out);
    return TD_OK;
}
