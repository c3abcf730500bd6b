/* psim slices: from options to times of slices. */
#include "sim/slices.h"

#include <string.h>

static td_status open_model(slices_job *j, td_err *err)
{
    const request *const q = &j->o->what;
    j->seq_len = q->seq_len;
    if (q->model == NULL) {
        if (j->seq_len == 0)
            return td_fail(err, TD_EUSAGE, "--seq-len is missing: how many tokens to cut?");
        return TD_OK;
    }
    TD_TRY(model_load(q->model, &j->model, err));
    j->has_model = true;
    if (j->seq_len == 0) j->seq_len = j->model.max_positions;
    if (!j->model.causal)
        return td_fail(err, TD_EUSAGE,
                       "model %s: bidirectional attention cannot be cut into slices: every token "
                       "needs every other; legal: a causal model",
                       j->model.name);
    return TD_OK;
}

static td_status open_machine(slices_job *j, td_arena *a, td_err *err)
{
    const psim_options *const o = j->o;
    const request *const q = &o->what;
    if (j->has_model) TD_TRY(model_check_tp(&j->model, q->tp, err));
    j->sizes = (sizes){.model = j->has_model ? &j->model : NULL,
                       .run = {.micro_batch = 1,
                               .seq_len = j->seq_len,
                               .tp = q->tp,
                               .dp = q->dp,
                               .sequence_parallel = q->sequence_parallel,
                               .dtype = q->dtype < 0 ? TYPE_BF16 : (data_type)q->dtype,
                               .grad_dtype = TYPE_FP32,
                               .recompute = (recompute_mode)q->recompute},
                       .stages = &j->layer,
                       .n_stages = 1,
                       .chunks = 1};
    j->layer = (stage_desc){.n_layers = 1};
    j->cost = (cost_model){.sizes = &j->sizes, .chunks = 1};
    if (o->cluster != NULL) {
        TD_TRY(cluster_load(o->cluster, &j->cluster, err));
        j->cost.cluster = &j->cluster;
    }
    if (o->profile == NULL) return TD_OK;
    profile *const fitted = TD_NEW(a, profile);
    if (fitted == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the profile");
    TD_TRY(profile_read(o->profile, fitted, err));
    if (q->dtype < 0) j->sizes.run.dtype = fitted->dtype;
    if (j->has_model) TD_TRY(profile_check(fitted, &j->model, &j->sizes.run, err));
    j->cost.profile = fitted;
    if (o->cluster != NULL) return TD_OK;
    const int64_t ranks = (q->pp > 0 ? q->pp : 1) * q->tp * q->dp;
    TD_TRY(cluster_local(ranks < INT32_MAX ? (int32_t)ranks : INT32_MAX, &j->cluster, err));
    j->cost.cluster = &j->cluster;
    return TD_OK;
}

/* Eight tokens as TeraPipe has it, less where that does not divide the sequence; a table of many
 * configurations takes 32 steps. */
static int64_t default_granularity(const slices_job *j)
{
    const request *const q = &j->o->what;
    if (j->o->method == SLICES_EQUAL_FLOPS) return q->sequence_parallel ? q->tp : 1;
    int64_t g = 8;
    while (j->seq_len % g != 0) g /= 2;
    while (j->o->gpus > 0 && j->seq_len / g > 32 && j->seq_len % (2 * g) == 0) g *= 2;
    return g;
}

static td_status check_method(const slices_job *j, td_err *err)
{
    const psim_options *const o = j->o;
    if (o->gpus > 0 && (o->what.pp != 0 || o->what.tp > 1 || o->what.dp > 1))
        return td_fail(err, TD_EUSAGE,
                       "--factorisations tries all --pp, --tp and --dp; leave them out");
    if (o->gpus > 0 || o->method == SLICES_TERAPIPE) {
        if (o->what.slices > 0)
            return td_fail(err, TD_EUSAGE,
                           "--slices %lld: terapipe finds how many itself; legal: --method "
                           "equal-time or equal-flops",
                           (long long)o->what.slices);
        if (o->what.pp == 0 && o->gpus == 0)
            return td_fail(err, TD_EUSAGE, "--pp is missing: through how many stages; --pp 8");
    } else if (o->what.slices == 0) {
        return td_fail(err, TD_EUSAGE, "--slices is missing: into how many; --slices 4");
    }
    if (o->method == SLICES_EQUAL_FLOPS && !j->has_model)
        return td_fail(err, TD_EUSAGE, "equal-flops counts FLOPs of a model; give --model");
    if (o->gpus > 0 && (o->what.model == NULL || o->latency != NULL || o->method != 0))
        return td_fail(err, TD_EUSAGE,
                       "--factorisations prices a --model on a --cluster, with --method terapipe");
    return TD_OK;
}

td_status slices_open(slices_job *j, const psim_options *o, td_arena *a, td_err *err)
{
    j->o = o;
    j->stages = o->what.pp > 0 ? (int32_t)o->what.pp : 1;
    j->batch = (int32_t)o->batch;
    TD_TRY(open_model(j, err));
    TD_TRY(check_method(j, err));
    TD_TRY(open_machine(j, a, err));
    j->granularity = o->granularity > 0 ? o->granularity : default_granularity(j);
    if (o->method != SLICES_EQUAL_FLOPS && j->seq_len % j->granularity != 0)
        return td_fail(err, TD_EUSAGE,
                       "--granularity %lld: does not divide the sequence of %lld tokens",
                       (long long)j->granularity, (long long)j->seq_len);
    if (!j->has_model) return TD_OK;
    if (j->stages > j->model.n_layers)
        return td_fail(err, TD_EUSAGE, "--pp %d: %s has %lld layers; legal: at most so many",
                       j->stages, j->model.name, (long long)j->model.n_layers);
    j->layers = (j->model.n_layers + j->stages - 1) / j->stages;
    return TD_OK;
}

static td_status check_cluster(const slices_job *j, td_err *err)
{
    const request *const q = &j->o->what;
    const int64_t need = j->stages * q->tp * q->dp;
    if (need <= cluster_size(&j->cluster) || strcmp(j->cluster.name, "local") == 0) return TD_OK;
    return td_fail(err, TD_EUSAGE,
                   "--cluster %s has %d devices, --pp %d with --tp %lld and --dp %lld needs %lld",
                   j->cluster.name, cluster_size(&j->cluster), j->stages, (long long)q->tp,
                   (long long)q->dp, (long long)need);
}

static td_status times_from_text(slices_job *j, td_arena *a, td_err *err)
{
    const char *const text = j->o->latency;
    j->source = text;
    if (strchr(text, '=') == NULL)
        return latency_from_file(text, j->granularity, a, &j->times, err);
    latency_formula f;
    TD_TRY(latency_parse(text, &f, err));
    latency_from_formula(&f, j->granularity, &j->times);
    return TD_OK;
}

td_status slices_times(slices_job *j, td_arena *a, td_err *err)
{
    const int64_t units = j->seq_len / j->granularity;
    TD_TRY(latency_table(j->batch, units, a, &j->times, err));
    if (j->o->latency != NULL) return times_from_text(j, a, err);
    if (!j->has_model || (j->o->cluster == NULL && j->o->profile == NULL))
        return td_fail(err, TD_EUSAGE,
                       "how long do slices take? give --model with --cluster or --profile, or "
                       "--latency");
    TD_TRY(check_cluster(j, err));
    j->source = td_sprintf(a, "%s on %s", j->model.name,
                           j->o->profile != NULL ? j->o->profile : j->cluster.name);
    slicing_times layer;
    TD_TRY(latency_table(j->batch, units, a, &layer, err));
    TD_TRY(latency_of_layer(&j->cost, j->granularity, &layer, err));
    const int32_t next = j->stages > 1 ? (int32_t)(j->o->what.tp * j->o->what.dp) : 0;
    return latency_of_stage(&j->cost, &layer, j->layers, next, j->granularity, &j->times, err);
}
