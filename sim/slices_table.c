/* psim slices --factorisations: every way to split devices into data, pipeline and tensor
 * parallelism, with the best slicing of each (TeraPipe's guideline). */
#include "base/text.h"
#include "sim/slices.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct entry {
    int64_t dp, pp, tp, batch; /* batch: sequences of a replica */
    int64_t bytes;             /* of the fullest device */
    bool fits;
    slicing best;
    double uncut_ns, sync_ns, optimizer_ns, step_ns;
} entry;

typedef struct entries {
    entry *items;
    size_t n, cap;
    int64_t limit;
} entries;

/* The stage of index `at` of e->pp; the first ones take the layers left over. */
static stage_desc stage_of(const slices_job *j, const entry *e, int64_t at)
{
    const int64_t n = j->model.n_layers;
    return (stage_desc){
        .n_layers = n / e->pp + (at < n % e->pp), .embedding = at == 0, .head = at == e->pp - 1};
}

/* Weights, gradients, optimizer and, since all forwards come first, the activations of every
 * sequence of the replica. */
static td_status stage_bytes(const slices_job *j, const entry *e, const sizes *z, int64_t *out,
                             td_err *err)
{
    static const size_kind fixed[] = {SIZE_WEIGHTS, SIZE_GRADS, SIZE_OPTIMIZER};
    static const size_kind kept[] = {SIZE_STASH, SIZE_BOUNDARY, SIZE_KV};
    const slicing *const s = &e->best;
    sizes one = *z;
    *out = 0;
    for (int i = 0; i < 3; i++) {
        int64_t n = 0;
        TD_TRY(sizes_bytes(&one, fixed[i], 0, j->seq_len, 0, &n, err));
        *out += n;
    }
    for (int32_t g = 0; g < s->n_groups; g++) {
        const bool whole = s->group_first[g + 1] - s->group_first[g] == 1; /* KV in the stash */
        one.run.micro_batch = s->group_batch[g];
        for (int32_t i = s->group_first[g]; i < s->group_first[g + 1]; i++)
            for (int k = 0; k < (whole ? 2 : 3); k++) {
                int64_t n = 0;
                TD_TRY(sizes_bytes(&one, kept[k], 0, s->length[i] * j->granularity, 0, &n, err));
                *out += n;
            }
    }
    return TD_OK;
}

/* Memory, gradient sync and optimizer: of the first, the second and the last stage, whichever takes
 * most. */
static td_status add_stages(const slices_job *j, entry *e, td_arena *a, td_err *err)
{
    int32_t *const replicas = TD_NEW_N(a, int32_t, e->dp);
    if (replicas == NULL) return td_fail(err, TD_ENOMEM, "out of memory for replicas");
    for (int64_t d = 0; d < e->dp; d++) replicas[d] = (int32_t)(d * e->tp);
    const int64_t at[] = {0, e->pp > 1 ? 1 : 0, e->pp - 1};
    for (int i = 0; i < 3; i++) {
        const stage_desc stage = stage_of(j, e, at[i]);
        sizes z = j->sizes;
        z.run.tp = e->tp;
        z.run.dp = e->dp;
        z.stages = &stage;
        cost_model cost = j->cost;
        cost.sizes = &z;
        int64_t bytes = 0, grads = 0, sync = 0, step = 0;
        TD_TRY(stage_bytes(j, e, &z, &bytes, err));
        TD_TRY(sizes_bytes(&z, SIZE_GRADS, 0, j->seq_len, 0, &grads, err));
        TD_TRY(cost_collective(&cost, COLL_ALL_REDUCE, replicas, (int32_t)e->dp, (int32_t)e->dp,
                               grads, &sync, err));
        TD_TRY(cost_optimizer(&cost, 0, &step, err));
        if (bytes > e->bytes) e->bytes = bytes;
        if ((double)sync > e->sync_ns) e->sync_ns = (double)sync;
        if ((double)step > e->optimizer_ns) e->optimizer_ns = (double)step;
    }
    return TD_OK;
}

/* `layer`: times of one layer with this tensor-parallel degree, for at least e->batch sequences. */
static td_status add_entry(const slices_job *j, const slicing_times *layer, entry e, td_arena *a,
                           entries *out, td_err *err)
{
    slicing_times t = {.batch = (int32_t)e.batch, .units = layer->units};
    slicing uncut;
    sizes z = j->sizes;
    z.run.tp = e.tp;
    z.run.dp = e.dp;
    z.stages = &j->layer;
    cost_model cost = j->cost;
    cost.sizes = &z;
    const int64_t layers = (j->model.n_layers + e.pp - 1) / e.pp;
    const int32_t next = e.pp > 1 ? (int32_t)(e.dp * e.tp) : 0;
    TD_TRY(latency_table(t.batch, t.units, a, &t, err));
    TD_TRY(latency_of_stage(&cost, layer, layers, next, j->granularity, &t, err));
    TD_TRY(slicing_best(&t, (int32_t)e.pp, a, &e.best, err));
    TD_TRY(slicing_uniform(&t, (int32_t)e.pp, 1, 1, a, &uncut, err));
    e.uncut_ns = uncut.latency_ns;
    TD_TRY(add_stages(j, &e, a, err));
    e.step_ns = e.best.latency_ns + e.sync_ns + e.optimizer_ns;
    e.fits = e.bytes <= out->limit;
    TD_TRY(TD_GROW(a, out->items, out->cap, out->n + 1, err));
    out->items[out->n++] = e;
    return TD_OK;
}

/* All factorisations with one tensor-parallel degree. */
static td_status add_tensor(slices_job *j, int64_t tp, td_arena *a, entries *out, td_err *err)
{
    const int64_t rest = j->o->gpus / tp;
    slicing_times layer = {0};
    j->sizes.run.tp = tp;
    for (int64_t dp = 1; dp <= rest; dp++) {
        const int64_t pp = rest / dp;
        if (rest % dp != 0 || j->batch % dp != 0 || pp > j->model.n_layers) continue;
        if (layer.ns == NULL) { /* the fewest replicas have the largest groups */
            TD_TRY(latency_table((int32_t)(j->batch / dp), j->seq_len / j->granularity, a, &layer,
                                 err));
            TD_TRY(latency_of_layer(&j->cost, j->granularity, &layer, err));
        }
        const entry e = {.dp = dp, .pp = pp, .tp = tp, .batch = j->batch / dp};
        TD_TRY(add_entry(j, &layer, e, a, out, err));
    }
    return TD_OK;
}

static int by_step(const void *a, const void *b)
{
    const entry *const x = a, *const y = b;
    if (x->fits != y->fits) return x->fits ? -1 : 1;
    return x->step_ns < y->step_ns ? -1 : x->step_ns > y->step_ns;
}

static void print_cut(const entry *e, int64_t granularity, char *out, size_t size)
{
    const slicing *const s = &e->best;
    const int32_t n = s->group_first[1];
    if (n == 1)
        (void)snprintf(out, size, "%d x 1 slice", s->n_groups);
    else
        (void)snprintf(out, size, "%d x %d slices, %lld..%lld", s->n_groups, n,
                       (long long)(s->length[0] * granularity),
                       (long long)(s->length[n - 1] * granularity));
}

static void table_text(const slices_job *j, const entries *all, td_text *out)
{
    char limit[32], bytes[32], cut[96];
    td_text_addf(out,
                 "%s on %s · %lld devices, %d x %lld tokens a step; times of the layers\n\n"
                 "  data  pipe  tensor  sequences  slices of a replica            memory    not "
                 "cut    slicing       sync  optimizer       step, ms\n",
                 j->model.name, j->cluster.name, (long long)j->o->gpus, j->batch,
                 (long long)j->seq_len);
    for (size_t i = 0; i < all->n; i++) {
        const entry *const e = &all->items[i];
        print_cut(e, j->granularity, cut, sizeof cut);
        td_text_addf(out, "  %4lld %5lld %7lld %10lld  %-28s %10s%s %9.5g %10.5g %10.4g %10.4g",
                     (long long)e->dp, (long long)e->pp, (long long)e->tp, (long long)e->batch, cut,
                     td_print_bytes(bytes, sizeof bytes, e->bytes), e->fits ? " " : "!",
                     e->uncut_ns / 1e6, e->best.latency_ns / 1e6, e->sync_ns / 1e6,
                     e->optimizer_ns / 1e6);
        td_text_addf(out, " %14.6g\n", e->step_ns / 1e6);
    }
    td_text_addf(out, "\n  ! does not fit %s\n", td_print_bytes(limit, sizeof limit, all->limit));
}

static void table_json(const slices_job *j, const entries *all, td_text *out)
{
    td_text_addf(out,
                 "{\"schema\":1,\"method\":\"factorisations\",\"devices\":%lld,\"batch\":%d,"
                 "\"seq_len\":%lld,\"granularity\":%lld,\"memory_limit_bytes\":%lld,\"entries\":[",
                 (long long)j->o->gpus, j->batch, (long long)j->seq_len, (long long)j->granularity,
                 (long long)all->limit);
    for (size_t i = 0; i < all->n; i++) {
        const entry *const e = &all->items[i];
        td_text_addf(out,
                     "%s{\"dp\":%lld,\"pp\":%lld,\"tp\":%lld,\"sequences\":%lld,\"bytes\":%lld,"
                     "\"fits\":%s,\"uncut_ms\":%.9g,\"latency_ms\":%.9g,\"sync_ms\":%.9g,"
                     "\"optimizer_ms\":%.9g,\"step_ms\":%.9g,\"groups\":[",
                     i > 0 ? "," : "", (long long)e->dp, (long long)e->pp, (long long)e->tp,
                     (long long)e->batch, (long long)e->bytes, e->fits ? "true" : "false",
                     e->uncut_ns / 1e6, e->best.latency_ns / 1e6, e->sync_ns / 1e6,
                     e->optimizer_ns / 1e6, e->step_ns / 1e6);
        for (int32_t g = 0; g < e->best.n_groups; g++) {
            td_text_addf(out, "%s{\"sequences\":%d,\"slices\":[", g > 0 ? "," : "",
                         e->best.group_batch[g]);
            for (int32_t k = e->best.group_first[g]; k < e->best.group_first[g + 1]; k++)
                td_text_addf(out, "%s%lld", k > e->best.group_first[g] ? "," : "",
                             (long long)(e->best.length[k] * j->granularity));
            td_text_add(out, "]}");
        }
        td_text_add(out, "]}");
    }
    td_text_add(out, "]}\n");
}

td_status slices_factorisations(slices_job *j, td_arena *a, td_text *out, td_err *err)
{
    entries all = {.limit = j->o->what.memory_limit};
    if (j->cost.cluster == NULL)
        return td_fail(err, TD_EUSAGE, "--factorisations: on what? give --cluster PRESET|FILE");
    if (j->o->gpus > cluster_size(&j->cluster))
        return td_fail(err, TD_EUSAGE,
                       "--factorisations %lld: %s has %d devices; NAME:N makes N nodes of it",
                       (long long)j->o->gpus, j->cluster.name, cluster_size(&j->cluster));
    if (all.limit == 0) all.limit = j->cluster.memory_bytes;
    /* tensor parallelism sums several times a layer: it stays inside a node */
    for (int64_t tp = 1; tp <= j->cluster.devices_per_node; tp++)
        if (j->o->gpus % tp == 0 && j->model.n_heads % tp == 0)
            TD_TRY(add_tensor(j, tp, a, &all, err));
    if (all.n == 0)
        return td_fail(err, TD_EUSAGE,
                       "--factorisations %lld: none has at most %lld stages and replicas that "
                       "divide the batch of %d; fewer devices, or another --batch",
                       (long long)j->o->gpus, (long long)j->model.n_layers, j->batch);
    qsort(all.items, all.n, sizeof *all.items, by_step);
    if (j->o->json)
        table_json(j, &all, out);
    else
        table_text(j, &all, out);
    return TD_OK;
}
