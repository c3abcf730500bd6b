/* Lists of measurements: what may be in one, how two become one, what repeats say. */
#include "costmodel/samples.h"

#include "base/text.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

samples samples_new(td_arena *a) { return (samples){.arena = a}; }

/* --- headers --- */

td_status samples_header(samples *s, const char *key, const char *value, td_err *err)
{
    if (key[0] == '\0' || strpbrk(key, " \t\r\n") != NULL || strpbrk(value, "\r\n") != NULL)
        return td_fail(err, TD_EUSAGE, "samples: header '%s': a key is one word, a value one line",
                       key);
    TD_TRY(TD_GROW(s->arena, s->headers, s->headers_cap, s->n_headers + 1, err));
    const sample_header h = {td_strdup(s->arena, key), td_strdup(s->arena, value)};
    if (h.key == NULL || h.value == NULL) return td_fail(err, TD_ENOMEM, "samples: out of memory");
    s->headers[s->n_headers++] = h;
    return TD_OK;
}

td_status samples_header_model(samples *s, const model_desc *m, const run_shape *run, td_err *err)
{
    const struct {
        const char *key;
        int64_t value;
    } numbers[] = {
        {"layers", m->n_layers},     {"hidden", m->hidden},     {"heads", m->n_heads},
        {"kv_heads", m->n_kv_heads}, {"head_dim", m->head_dim}, {"ffn", m->ffn},
        {"vocab", m->vocab},         {"causal", m->causal},
    };
    TD_TRY(samples_header(s, "model", m->name, err));
    TD_TRY(samples_header(s, "dtype", data_type_name(run->dtype), err));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        char *const text = td_sprintf(s->arena, "%" PRId64, numbers[i].value);
        if (text == NULL) return td_fail(err, TD_ENOMEM, "samples: out of memory");
        TD_TRY(samples_header(s, numbers[i].key, text, err));
    }
    return TD_OK;
}

const char *samples_header_value(const samples *s, const char *key)
{
    for (size_t i = 0; i < s->n_headers; i++)
        if (strcmp(s->headers[i].key, key) == 0) return s->headers[i].value;
    return NULL;
}

/* --- samples --- */

static bool is_shard_pass(pass_kind k)
{
    return k == PASS_S || k == PASS_T || k == PASS_E || k == PASS_G;
}

static const char *pass_flaw(const sample *x)
{
    if ((unsigned)x->pass >= PASS_COUNT) return "pass: not a pass";
    if ((unsigned)x->part >= PART_COUNT) return "part: not a part of a stage";
    if ((unsigned)x->recompute > RECOMPUTE_FULL) return "recompute: not a mode";
    if (is_shard_pass(x->pass) && x->words < 1) return "words: wants at least 1 for this pass";
    if (!is_shard_pass(x->pass) && x->words != 0) return "words: wants 0 for this pass";
    if (x->part == PART_LAYERS && x->layers < 1) return "layers: wants at least 1";
    if (x->part != PART_LAYERS && x->layers != 0) return "layers: wants 0 for this part";
    if (x->micro_batch < 1) return "micro_batch: wants at least 1";
    if (x->slice_len < 1) return "slice_len: wants at least 1";
    if (x->prefix < 0) return "prefix: wants at least 0";
    if (x->layers > INT32_MAX || x->micro_batch > INT32_MAX || x->slice_len > INT32_MAX ||
        x->prefix > INT32_MAX || x->words > INT32_MAX)
        return "sizes: too large";
    return NULL;
}

static const char *repeats_flaw(const sample *x)
{
    if (x->repeats < 0) return "repeats: wants at least 0";
    if (!isfinite(x->half_ns) || x->half_ns < 0) return "half_ns: wants at least 0";
    if (!isfinite(x->spread) || x->spread < 0) return "spread: wants at least 0";
    if (x->outliers < 0 || x->outliers > x->repeats) return "outliers: wants 0 to the repeats";
    if (!isfinite(x->worst_ns) || x->worst_ns < 0) return "worst_ns: wants at least 0";
    return NULL;
}

/* What is wrong with a sample, or NULL. */
static const char *sample_flaw(const sample *x)
{
    const int64_t amount_max = INT64_C(1) << 53;
    if ((unsigned)x->what >= SAMPLE_WHAT_COUNT) return "what: not a kind of sample";
    if (!isfinite(x->ns) || x->ns <= 0) return "ns: wants a number above 0";
    if (x->busy < 1) return "busy: wants at least 1";
    if (x->tp < 0) return "tp: wants at least 1";
    if (x->amount < 0 || x->amount > amount_max) return "amount: wants 0 to 2^53";
    if ((unsigned)x->link >= LINK_COUNT) return "link: not a link";
    if (x->what == SAMPLE_ALL_REDUCE && x->members < 2) return "members: wants at least 2";
    for (int i = 0; i < 3 && x->what == SAMPLE_PRODUCT; i++)
        if (x->shape[i] < 1 || x->shape[i] > INT32_MAX) return "m, n, k: want at least 1";
    const char *const flaw = x->what == SAMPLE_PASS ? pass_flaw(x) : NULL;
    return flaw != NULL ? flaw : repeats_flaw(x);
}

td_status samples_add(samples *s, const sample *one, td_err *err)
{
    const char *const flaw = sample_flaw(one);
    if (flaw != NULL) return td_fail(err, TD_EUSAGE, "sample: %s", flaw);
    TD_TRY(TD_GROW(s->arena, s->items, s->cap, s->n + 1, err));
    s->items[s->n] = *one;
    if (s->items[s->n].tp == 0) s->items[s->n].tp = 1;
    s->n++;
    return TD_OK;
}

/* --- two benches --- */

/* Of two benches the doubts of the worse one count. */
static td_status merge_load(samples *to, const samples *from, td_err *err)
{
    static const char key[] = "other_load";
    const char *const mine = samples_header_value(to, key);
    const char *const theirs = samples_header_value(from, key);
    double a = 0, b = 0;
    if (mine == NULL || theirs == NULL) return TD_OK;
    TD_TRY(td_parse_f64(mine, 0, 1e6, key, &a, err));
    TD_TRY(td_parse_f64(theirs, 0, 1e6, key, &b, err));
    for (size_t i = 0; b > a && i < to->n_headers; i++)
        if (strcmp(to->headers[i].key, key) == 0)
            to->headers[i].value = td_strdup(to->arena, theirs);
    return TD_OK;
}

static const char *const same[] = {"model", "dtype",    "hidden", "heads",  "kv_heads",
                                   "ffn",   "head_dim", "vocab",  "causal", "device"};

const char *samples_header_conflict(const samples *s, const char *key, const char *value)
{
    const char *const mine = samples_header_value(s, key);
    if (mine == NULL || strcmp(mine, value) == 0) return NULL;
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        if (strcmp(key, same[i]) == 0) return mine;
    return NULL;
}

td_status samples_merge(samples *to, const samples *from, td_err *err)
{
    for (size_t i = 0; i < from->n_headers; i++) {
        const sample_header *const h = &from->headers[i];
        const char *const mine = samples_header_conflict(to, h->key, h->value);
        if (mine != NULL)
            return td_fail(err, TD_EUSAGE,
                           "samples of two benches: %s is '%s' in one and '%s' in the other; "
                           "calibrate each by itself",
                           h->key, mine, h->value);
    }
    TD_TRY(merge_load(to, from, err));
    for (size_t i = 0; i < from->n_headers; i++)
        if (samples_header_value(to, from->headers[i].key) == NULL)
            TD_TRY(samples_header(to, from->headers[i].key, from->headers[i].value, err));
    for (size_t i = 0; i < from->n; i++) TD_TRY(samples_add(to, &from->items[i], err));
    return TD_OK;
}

/* --- repeats --- */

static double middle(const int64_t *sorted, size_t n)
{
    return n % 2 == 1 ? (double)sorted[n / 2]
                      : ((double)sorted[n / 2 - 1] + (double)sorted[n / 2]) / 2;
}

static int by_size(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* The largest r such that the median lies between the r-th smallest and the r-th largest of n with
 * a probability of 95 %: fewer than r of n fair coins show heads in 2.5 % of all cases at most. 0:
 * there is none. */
static size_t interval_rank(size_t n)
{
    double term = pow(0.5, (double)n), below = term;
    size_t r = 0;
    if (n > 1000) /* the binomial is a normal distribution by then, and its terms underflow */
        return (size_t)floor((double)n / 2 - 0.98 * sqrt((double)n));
    while (below <= 0.025 && r < n) {
        r++;
        term *= (double)(n - r + 1) / (double)r;
        below += term;
    }
    return r;
}

/* Median distance from the median: the sorted list is walked outwards from its middle. */
static double median_distance(const int64_t *sorted, size_t n, double median)
{
    size_t low = n / 2, high = n / 2;
    double last = 0, before = 0;
    for (size_t taken = 0; taken <= n / 2; taken++) {
        const double down = low > 0 ? median - (double)sorted[low - 1] : 9.3e18;
        const double up = high < n ? (double)sorted[high] - median : 9.3e18;
        before = last;
        last = down < up ? down : up;
        if (down < up)
            low--;
        else
            high++;
    }
    return n % 2 == 1 ? last : (last + before) / 2;
}

void samples_summarize(int64_t *ns, size_t n, sample *out)
{
    qsort(ns, n, sizeof *ns, by_size);
    const double median = middle(ns, n);
    const size_t r = interval_rank(n);
    const double sigma = 1.4826 * median_distance(ns, n, median);
    const double far = 5 * sigma > 0.05 * median ? 5 * sigma : 0.05 * median;
    out->ns = median < 1 ? 1 : median;
    out->repeats = (int32_t)n;
    out->worst_ns = (double)ns[n - 1];
    out->half_ns = r > 0 ? (double)(ns[n - r] - ns[r - 1]) / 2 : 0;
    out->spread = n > 1 ? sigma / out->ns : 0;
    out->outliers = 0;
    for (size_t i = 0; i < n; i++) out->outliers += fabs((double)ns[i] - median) > far;
}
