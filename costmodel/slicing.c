/* Bodies of slicing.h. */
#include "costmodel/slicing.h"

#include <math.h>

/* --- equal cost --- */

slicing_flops slicing_flops_of(const model_desc *m, int64_t vocab)
{
    const double n = (double)m->n_layers, h = (double)m->hidden, f = (double)m->ffn;
    const double d = (double)m->head_dim, heads = (double)m->n_heads;
    const double q = heads * d, kv = (double)m->n_kv_heads * d;
    const double layer = 2 * h * (q + 2 * kv) + 2 * q * h + (m->gated ? 6 : 4) * h * f;
    return (slicing_flops){.square = n * heads * (4 * d + 3) / 2,
                           .linear = n * layer + 4 * h * (double)vocab};
}

double slicing_flops_between(const slicing_flops *f, int64_t from, int64_t to)
{
    const double x = (double)from, y = (double)to;
    return f->square * (y * y - x * x) + f->linear * (y - x);
}

td_status slicing_equal(const slicing_flops *f, int64_t seq_len, int32_t n, int64_t multiple,
                        int64_t *lengths, td_err *err)
{
    const double share = slicing_flops_between(f, 0, seq_len) / n;
    int64_t end = seq_len;
    for (int32_t k = n - 1; k > 0 && end > 0; k--) {
        /* square x^2 - (2 square end + linear) x + share = 0, in the form that does not cancel */
        const double b = 2 * f->square * (double)end + f->linear;
        const double root = b * b - 4 * f->square * share;
        const double x = root > 0 ? 2 * share / (b + sqrt(root)) : (double)end;
        lengths[k] = (int64_t)floor(x * (1 + 1e-12)) / multiple * multiple;
        end = lengths[k] > 0 ? end - lengths[k] : 0;
    }
    lengths[0] = end;
    if (end > 0) return TD_OK;
    return td_fail(err, TD_EUSAGE,
                   "%d slices of %lld tokens in steps of %lld: a slice would be empty; fewer "
                   "--slices",
                   n, (long long)seq_len, (long long)multiple);
}

/* --- the shortest latency --- */

/* Tables of one programme; reused for every cap. */
typedef struct programme {
    const slicing_times *t;
    double *sum;      /* [batch * (units + 1)] least sum of the first i units of a group of b */
    int32_t *last;    /* [batch * (units + 1)] length of the last slice of that */
    double *group;    /* [batch + 1] least sum of x sequences */
    int32_t *members; /* [batch + 1] size of the last group of that */
} programme;

static td_status programme_open(programme *p, const slicing_times *t, td_arena *a, td_err *err)
{
    const size_t slots = (size_t)t->batch * ((size_t)t->units + 1);
    *p = (programme){.t = t,
                     .sum = TD_NEW_N(a, double, slots),
                     .last = TD_NEW_N(a, int32_t, slots),
                     .group = TD_NEW_N(a, double, (size_t)t->batch + 1),
                     .members = TD_NEW_N(a, int32_t, (size_t)t->batch + 1)};
    if (p->sum == NULL || p->last == NULL || p->group == NULL || p->members == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the slicing programme");
    return TD_OK;
}

/* S(i) = min over k of S(i - k) + t(k, i - k), slices over the cap left out. */
static void slice_group(programme *p, int32_t b, double cap)
{
    const int32_t units = p->t->units;
    double *const sum = &p->sum[(size_t)(b - 1) * ((size_t)units + 1)];
    int32_t *const last = &p->last[(size_t)(b - 1) * ((size_t)units + 1)];
    sum[0] = 0;
    for (int32_t end = 1; end <= units; end++) {
        const double *const t = slicing_time(p->t, b, 1, end);
        double best = (double)INFINITY;
        int32_t at = 0;
        for (int32_t k = 1; k <= end; k++) {
            if (!(t[k - 1] <= cap)) continue;
            const double x = sum[end - k] + t[k - 1];
            if (x < best) {
                best = x;
                at = k;
            }
        }
        sum[end] = best;
        last[end] = at;
    }
}

static double sum_of_group(const programme *p, int32_t b)
{
    return p->sum[(size_t)b * ((size_t)p->t->units + 1) - 1];
}

/* The least sum of the whole batch under a cap; INFINITY when none fits. */
static double solve(programme *p, double cap)
{
    for (int32_t b = 1; b <= p->t->batch; b++) slice_group(p, b, cap);
    p->group[0] = 0;
    for (int32_t x = 1; x <= p->t->batch; x++) {
        p->group[x] = (double)INFINITY;
        for (int32_t b = 1; b <= x; b++) {
            const double sum = p->group[x - b] + sum_of_group(p, b);
            if (!(sum < p->group[x])) continue;
            p->group[x] = sum;
            p->members[x] = b;
        }
    }
    return p->group[p->t->batch];
}

/* The longest slice of a group's solution; adds its number of slices to *n. */
static double longest_of(const programme *p, int32_t b, int32_t *n)
{
    const int32_t units = p->t->units;
    const int32_t *const last = &p->last[(size_t)(b - 1) * ((size_t)units + 1)];
    double most = 0;
    for (int32_t end = units; end > 0; end -= last[end]) {
        const double t = *slicing_time(p->t, b, last[end], end);
        if (t > most) most = t;
        ++*n;
    }
    return most;
}

/* A lower bound of the longest slice: no group size can do with a shorter one. */
static double least_cap(const slicing_times *t, double *cap)
{
    double least = (double)INFINITY;
    for (int32_t b = 1; b <= t->batch; b++) {
        cap[0] = 0;
        for (int32_t end = 1; end <= t->units; end++) {
            cap[end] = (double)INFINITY;
            for (int32_t k = 1; k <= end; k++) {
                const double x = fmax(cap[end - k], *slicing_time(t, b, k, end));
                if (x < cap[end]) cap[end] = x;
            }
        }
        if (cap[t->units] < least) least = cap[t->units];
    }
    return least;
}

/* Counts of the solution at hand. */
static double longest(const programme *p, int32_t *n_groups, int32_t *n_slices)
{
    double most = 0;
    *n_groups = *n_slices = 0;
    for (int32_t x = p->t->batch; x > 0; x -= p->members[x]) {
        most = fmax(most, longest_of(p, p->members[x], n_slices));
        ++*n_groups;
    }
    return most;
}

static td_status new_slicing(td_arena *a, int32_t n_groups, int32_t n_slices, slicing *out,
                             td_err *err)
{
    *out = (slicing){.n_groups = n_groups,
                     .n_slices = n_slices,
                     .group_batch = TD_NEW_N(a, int32_t, n_groups),
                     .group_first = TD_NEW_N(a, int32_t, (size_t)n_groups + 1),
                     .length = TD_NEW_N(a, int32_t, n_slices)};
    if (out->group_batch == NULL || out->group_first == NULL || out->length == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the slices");
    return TD_OK;
}

static void finish(slicing *s, const slicing_times *t, int32_t stages)
{
    s->sum_ns = s->max_ns = 0;
    for (int32_t g = 0; g < s->n_groups; g++)
        for (int32_t i = s->group_first[g], end = 0; i < s->group_first[g + 1]; i++) {
            end += s->length[i];
            const double ns = *slicing_time(t, s->group_batch[g], s->length[i], end);
            s->sum_ns += ns;
            if (ns > s->max_ns) s->max_ns = ns;
        }
    s->latency_ns = s->sum_ns + (double)(stages - 1) * s->max_ns;
}

/* Copies the solution at hand; slices come out of the programme from the last to the first. */
static td_status take_solution(const programme *p, int32_t stages, td_arena *a, slicing *out,
                               td_err *err)
{
    const int32_t units = p->t->units;
    int32_t n_groups = 0, n_slices = 0;
    (void)longest(p, &n_groups, &n_slices);
    TD_TRY(new_slicing(a, n_groups, n_slices, out, err));
    int32_t g = 0, first = 0;
    for (int32_t x = p->t->batch; x > 0; x -= p->members[x]) {
        const int32_t b = p->members[x];
        const int32_t *const last = &p->last[(size_t)(b - 1) * ((size_t)units + 1)];
        int32_t n = 0;
        (void)longest_of(p, b, &n);
        out->group_batch[g] = b;
        out->group_first[g++] = first;
        for (int32_t end = units, i = first + n; end > 0; end -= last[end])
            out->length[--i] = last[end];
        first += n;
    }
    out->group_first[g] = first;
    finish(out, p->t, stages);
    return TD_OK;
}

static td_status check_times(const slicing_times *t, int32_t stages, td_err *err)
{
    if (t->batch < 1 || t->units < 1 || stages < 1)
        return td_fail(err, TD_EUSAGE, "slicing: needs a stage, a sequence and a unit of tokens");
    for (int32_t b = 1; b <= t->batch; b++)
        for (int32_t end = 1; end <= t->units; end++)
            for (int32_t k = 1; k <= end; k++) {
                const double ns = *slicing_time(t, b, k, end);
                if (!(ns >= 0 && ns < 1e300))
                    return td_fail(err, TD_EUSAGE,
                                   "slicing: a slice of %d units behind %d takes %g ns", k, end - k,
                                   ns);
            }
    return TD_OK;
}

static td_status search(const slicing_times *t, int32_t stages, td_arena *scratch, td_arena *a,
                        slicing *out, td_err *err)
{
    programme p;
    TD_TRY(programme_open(&p, t, scratch, err));
    double *const caps = TD_NEW_N(scratch, double, (size_t)t->units + 1);
    if (caps == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the slicing programme");
    const double fill = stages - 1, floor_ns = least_cap(t, caps);
    double best = (double)INFINITY, best_cap = (double)INFINITY;
    for (double cap = (double)INFINITY;;) {
        const double sum = solve(&p, cap);
        /* sums only grow from here on */
        if (!(sum + fill * floor_ns < best)) break;
        int32_t n_groups = 0, n_slices = 0;
        const double most = longest(&p, &n_groups, &n_slices);
        if (sum + fill * most < best) {
            best = sum + fill * most;
            best_cap = most;
        }
        if (stages == 1 || most <= floor_ns) break;
        cap = nextafter(most, 0);
    }
    (void)solve(&p, best_cap);
    return take_solution(&p, stages, a, out, err);
}

td_status slicing_best(const slicing_times *t, int32_t stages, td_arena *a, slicing *out,
                       td_err *err)
{
    TD_TRY(check_times(t, stages, err));
    td_arena *const scratch = td_arena_new();
    if (scratch == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the slicing programme");
    const td_status st = search(t, stages, scratch, a, out, err);
    td_arena_free(scratch);
    return st;
}

/* best[s * (units + 1) + i]: the first i units in s + 1 slices, none over the cap; the least
 * longest slice, or the least sum. */
static void slice_exactly(const slicing_times *t, int32_t b, int32_t n, double cap, bool sum,
                          double *best, int32_t *last)
{
    const int32_t units = t->units;
    for (int32_t s = 0; s < n; s++)
        for (int32_t end = 0; end <= units; end++) {
            const size_t at = (size_t)s * ((size_t)units + 1) + (size_t)end;
            best[at] = (double)INFINITY;
            for (int32_t k = 1; k <= end; k++) {
                const double x = *slicing_time(t, b, k, end);
                if (s == 0 && k < end) continue; /* the first slice begins at the first unit */
                const double before = s > 0 ? best[at - (size_t)units - 1 - (size_t)k] : 0;
                const double all = sum ? before + x : fmax(before, x);
                if (!(x <= cap) || !(all < best[at])) continue;
                best[at] = all;
                last[at] = k;
            }
        }
}

td_status slicing_balanced(const slicing_times *t, int32_t stages, int32_t b, int32_t n,
                           td_arena *a, slicing *out, td_err *err)
{
    const size_t row = (size_t)t->units + 1, slots = (size_t)n * row;
    if (b < 1 || b > t->batch || n < 1 || n > t->units)
        return td_fail(err, TD_EUSAGE, "%d slices: a slice holds at least one of the %d steps", n,
                       t->units);
    double *const best = TD_NEW_N(a, double, slots);
    int32_t *const last = TD_NEW_N(a, int32_t, slots);
    if (best == NULL || last == NULL) return td_fail(err, TD_ENOMEM, "out of memory for slices");
    slice_exactly(t, b, n, (double)INFINITY, false, best, last);
    slice_exactly(t, b, n, best[slots - 1], true, best, last);
    TD_TRY(new_slicing(a, 1, n, out, err));
    out->group_batch[0] = b;
    out->group_first[1] = n;
    for (int32_t s = n - 1, end = t->units; s >= 0; end -= out->length[s--])
        out->length[s] = last[(size_t)s * row + (size_t)end];
    finish(out, t, stages);
    return TD_OK;
}

td_status slicing_uniform(const slicing_times *t, int32_t stages, int32_t group, int32_t n,
                          td_arena *a, slicing *out, td_err *err)
{
    if (group < 1 || n < 1 || n > t->units)
        return td_fail(err, TD_EUSAGE, "%d slices of groups of %d: at least 1, at most %d slices",
                       n, group, t->units);
    const int32_t n_groups = (t->batch + group - 1) / group;
    TD_TRY(new_slicing(a, n_groups, n_groups * n, out, err));
    for (int32_t g = 0; g < n_groups; g++) {
        const int32_t left = t->batch - g * group;
        out->group_batch[g] = left < group ? left : group;
        out->group_first[g] = g * n;
        for (int32_t k = 0; k < n; k++)
            out->length[g * n + k] = t->units / n + (k < t->units % n ? 1 : 0);
    }
    out->group_first[n_groups] = n_groups * n;
    finish(out, t, stages);
    return TD_OK;
}
