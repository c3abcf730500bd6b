/* Random spread and slow ranks. */
#include "sim/noise.h"

#include <math.h>
#include <stdlib.h>

/* Standard deviation of the logarithm, for a relative one of the number itself. */
static double sigma_of(double spread) { return sqrt(log1p(spread * spread)); }

td_status noise_compute(void *self, uint32_t rank, uint32_t task, int64_t class_ns, int64_t *ns,
                        td_err *err)
{
    const sim_noise *const n = self;
    (void)err;
    double x = (double)class_ns;
    if (n->slow != NULL) x *= n->slow[rank];
    const double spread = n->spread == NULL ? 0 : n->spread[n->p->tasks[task].cls];
    if (spread > 0) {
        td_rng r = td_rng_seed((n->seed * 0x9e3779b97f4a7c15u + n->run) * 0xbf58476d1ce4e5b9u +
                               (uint64_t)task);
        const double sigma = sigma_of(spread);
        x *= exp(sigma * td_rng_normal(&r) - 0.5 * sigma * sigma);
    }
    *ns = x < 9e18 ? (int64_t)llround(x) : INT64_MAX;
    return TD_OK;
}

td_status noise_parse_slow(const char *text, uint32_t n_ranks, double *slow, td_err *err)
{
    for (uint32_t r = 0; r < n_ranks; r++) slow[r] = 0; /* not given yet */
    const char *s = text;
    for (;;) {
        char *end = NULL;
        const long rank = strtol(s, &end, 10);
        if (end == s || *end != '=')
            return td_fail(err, TD_EUSAGE,
                           "--slow %s: expected RANK=FACTOR, as in 3=1.2 or 0=1.1,3=1.2", text);
        if (rank < 0 || rank >= (long)n_ranks)
            return td_fail(err, TD_EUSAGE, "--slow %s: no rank %ld; legal: 0 to %u", text, rank,
                           n_ranks - 1);
        s = end + 1;
        const double factor = strtod(s, &end);
        if (end == s || !(factor > 0 && factor <= 1e6) || (*end != ',' && *end != '\0'))
            return td_fail(err, TD_EUSAGE,
                           "--slow %s: the factor of rank %ld must be above 0 and at most 1e6",
                           text, rank);
        if (slow[rank] > 0)
            return td_fail(err, TD_EUSAGE, "--slow %s: rank %ld is given twice", text, rank);
        slow[rank] = factor;
        if (*end == '\0') break;
        s = end + 1;
    }
    for (uint32_t r = 0; r < n_ranks; r++)
        if (!(slow[r] > 0)) slow[r] = 1;
    return TD_OK;
}

static int by_size(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int64_t quantile(const int64_t *sorted, int64_t n, double q)
{
    const double at = q * (double)(n - 1);
    const int64_t i = (int64_t)at;
    const int64_t next = i + 1 < n ? i + 1 : i;
    return sorted[i] + llround((at - (double)i) * (double)(sorted[next] - sorted[i]));
}

static td_status run_all(const plan *p, const int64_t *class_ns, const sim_options *o,
                         sim_noise *noise, int64_t n, int64_t *steps, td_arena *a, td_err *err)
{
    const sim_live live = {.self = noise, .compute = noise_compute};
    sim_options with = *o;
    with.live = &live;
    task_times times = {0};
    for (int64_t i = 0; i < n; i++) {
        sim_stats stats;
        noise->run = (uint64_t)i;
        TD_TRY(sim_run(p, class_ns, &with, a, &times, &stats, err));
        steps[i] = stats.end_ns;
    }
    return TD_OK;
}

static void summarize(int64_t *steps, int64_t n, step_distribution *out)
{
    qsort(steps, (size_t)n, sizeof *steps, by_size);
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)steps[i];
    const double mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++) squares += pow((double)steps[i] - mean, 2);
    *out = (step_distribution){.runs = n,
                               .mean_ns = mean,
                               .deviation_ns = n > 1 ? sqrt(squares / (double)(n - 1)) : 0,
                               .min_ns = steps[0],
                               .p5_ns = quantile(steps, n, 0.05),
                               .p25_ns = quantile(steps, n, 0.25),
                               .p50_ns = quantile(steps, n, 0.5),
                               .p75_ns = quantile(steps, n, 0.75),
                               .p95_ns = quantile(steps, n, 0.95),
                               .p99_ns = quantile(steps, n, 0.99),
                               .max_ns = steps[n - 1]};
}

td_status noise_distribution(const plan *p, const int64_t *class_ns, const sim_options *o,
                             sim_noise noise, int64_t n, step_distribution *out, td_err *err)
{
    td_arena *const a = td_arena_new();
    int64_t *const steps = a == NULL ? NULL : TD_NEW_N(a, int64_t, (size_t)n);
    td_status st = steps == NULL
                       ? td_fail(err, TD_ENOMEM, "out of memory for %lld runs", (long long)n)
                       : run_all(p, class_ns, o, &noise, n, steps, a, err);
    if (st == TD_OK) summarize(steps, n, out);
    td_arena_free(a);
    return st;
}
