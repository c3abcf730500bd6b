/* What the samples say beside the fits: slowdown by busy cores, spread, and curves. */
#include "base/text.h"
#include "costmodel/calibrate_parts.h"

#include <gsl/gsl_sort.h>
#include <gsl/gsl_statistics_double.h>
#include <inttypes.h>
#include <math.h>

/* --- slowdown --- */

static bool same_work(const sample *a, const sample *b)
{
    return a->what == b->what && a->pass == b->pass && a->part == b->part &&
           a->recompute == b->recompute && a->layers == b->layers &&
           a->micro_batch == b->micro_batch && a->slice_len == b->slice_len &&
           a->prefix == b->prefix && a->amount == b->amount && a->tp == b->tp &&
           a->words == b->words && a->members == b->members && a->link == b->link &&
           a->shape[0] == b->shape[0] && a->shape[1] == b->shape[1] && a->shape[2] == b->shape[2];
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

td_status calibrate_busy(const samples *s, td_arena *a, profile *out, td_text *report, td_err *err)
{
    double *const ratios = TD_NEW_N(a, double, s->n);
    double *const scratch = TD_NEW_N(a, double, s->n);
    if (ratios == NULL || scratch == NULL)
        return td_fail(err, TD_ENOMEM, "calibrate: out of memory");
    for (int32_t k = next_busy(s, 1); k != 0 && out->n_busy < PROFILE_BUSY_MAX;
         k = next_busy(s, k)) {
        const contention c = {k, slowdown(s, k, false, ratios, scratch),
                              slowdown(s, k, true, ratios, scratch)};
        if (c.compute.value <= 0) {
            td_text_addf(report,
                         "%" PRId32 " ranks at work: no pass was measured both so and alone\n", k);
            continue;
        }
        td_text_addf(report, "%" PRId32 " ranks at work: passes take %.3f +- %.2g times as long\n",
                     k, c.compute.value, c.compute.half);
        out->busy[out->n_busy++] = c;
    }
    if (out->n_busy == 0)
        td_text_add(report, "contention: not determined; measure with all cores busy too\n");
    return TD_OK;
}

/* --- spread --- */

td_status calibrate_spread(const sample *const *of, size_t n, td_arena *a, double *out, td_err *err)
{
    enum { ENOUGH = 4 }; /* measurements to tell a spread from */
    double *const spreads = TD_NEW_N(a, double, n), *const group = TD_NEW_N(a, double, n);
    double *const scratch = TD_NEW_N(a, double, n);
    bool *const done = TD_NEW_N(a, bool, n);
    size_t m = 0;
    *out = 0;
    if (spreads == NULL || group == NULL || scratch == NULL || done == NULL)
        return td_fail(err, TD_ENOMEM, "calibrate: out of memory");
    for (size_t i = 0; i < n; i++) {
        if (done[i]) continue;
        size_t k = 0;
        for (size_t j = i; j < n; j++) {
            if (!same_work(of[i], of[j])) continue;
            done[j] = true;
            if (of[j]->repeats >= ENOUGH)
                spreads[m++] = of[j]->spread;
            else
                group[k++] = of[j]->ns;
        }
        if (k >= ENOUGH)
            spreads[m++] = gsl_stats_mad(group, 1, k, scratch) / gsl_stats_median(group, 1, k);
    }
    if (m > 0) *out = gsl_stats_median(spreads, 1, m);
    return TD_OK;
}

/* --- curves --- */

void calibrate_curve(double *x, double *ns, size_t n, profile_curve *out)
{
    double weight[PROFILE_POINTS_MAX] = {0}; /* samples of a size */
    double level[PROFILE_POINTS_MAX] = {0}, pooled[PROFILE_POINTS_MAX] = {0};
    const double beyond = 2; /* times what a larger size takes: that was disturbed */
    int32_t count = 0, pools = 0, of[PROFILE_POINTS_MAX] = {0};
    *out = (profile_curve){0};
    gsl_sort2(x, 1, ns, 1, n);
    for (size_t i = 0, end = 0; i < n; i = end) {
        for (end = i; end < n && x[end] <= x[i]; end++) continue;
        const double median = gsl_stats_median(ns + i, 1, end - i);
        while (count > 0 && out->ns[count - 1] > beyond * median) count--;
        if (count == PROFILE_POINTS_MAX) return; /* more than a curve holds: the line has them */
        out->x[count] = x[i];
        weight[count] = (double)(end - i);
        out->ns[count++] = median;
    }
    for (int32_t i = 0; i < count; i++) {
        level[pools] = out->ns[i];
        pooled[pools] = weight[i];
        of[pools++] = i;
        while (pools > 1 && level[pools - 2] > level[pools - 1]) {
            const int32_t a = pools - 2, b = pools - 1;
            level[a] = (level[a] * pooled[a] + level[b] * pooled[b]) / (pooled[a] + pooled[b]);
            pooled[a] += pooled[b];
            of[a] = of[b];
            pools--;
        }
    }
    for (int32_t pool = 0, i = 0; pool < pools; pool++)
        for (; i <= of[pool]; i++) out->ns[i] = level[pool];
    out->n = count < 4 ? 0 : count;
}
