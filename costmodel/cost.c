/* Durations: from unit times, first principles or a profile; rounded once, here. */
#include "costmodel/cost.h"

#include "costmodel/model_params.h"
#include "costmodel/network_cost.h"
#include "costmodel/profile.h"
#include "costmodel/work.h"

#include <inttypes.h>
#include <math.h>

static td_status round_ns(double ns, const char *what, int64_t *out, td_err *err)
{
    if (!(ns >= 0 && ns < 9e18))
        return td_fail(err, TD_EUSAGE, "%s: %g ns does not fit; the longest is 292 years", what,
                       ns);
    *out = (int64_t)floor(ns + 0.5);
    return TD_OK;
}

static td_status need_cluster(const cost_model *c, const char *what, td_err *err)
{
    if (c->cluster != NULL && c->sizes != NULL) return TD_OK;
    return td_fail(err, TD_EUSAGE,
                   "%s: nothing to price it with; give --times F=1,B=2, or --model and --cluster",
                   what);
}

/* --- unit times --- */

/* The part of a microbatch through 1/P of the model that a pass is. */
static double unit_share(const cost_model *c, const pass_query *q)
{
    const double slice = q->seq_len > 0 ? (double)q->slice_len / (double)q->seq_len : 1;
    /* vocabulary passes are a rank's whole share whatever its number of chunks; rows of a file
     * are taken as they are */
    if (c->units->stage_pass_ms != NULL) return slice;
    const bool chunked = q->pass <= PASS_R && c->chunks > 1;
    const double shards =
        c->unit_tp > 0 && c->sizes != NULL ? (double)c->unit_tp / (double)c->sizes->run.tp : 1;
    return (chunked ? slice / c->chunks : slice) * shards;
}

/* Unrounded ns of a pass as unit times give it. */
static td_status given_pass_ns(const cost_model *c, const pass_query *q, double *ns, td_err *err)
{
    const unit_times *const u = c->units;
    const char letter = pass_letter(q->pass);
    double ms = u->given[q->pass] ? u->pass_ms[q->pass] : -1;
    if (u->stage_pass_ms != NULL) {
        if (q->stage < 0 || q->stage >= u->n_stages)
            return td_fail(err, TD_EUSAGE,
                           "--times: no row for stage %" PRId32 "; the file has %" PRId32
                           " rows, one a stage",
                           q->stage, u->n_stages);
        ms = u->stage_pass_ms[(size_t)q->stage * PASS_COUNT + q->pass];
    }
    if (ms < 0)
        return td_fail(err, TD_EUSAGE,
                       "--times: no time for %c (%s) of stage %" PRId32
                       ", which the schedule has; give %c=MS",
                       letter, pass_name(q->pass), q->stage, letter);
    *ns = ms * 1e6 * unit_share(c, q);
    return TD_OK;
}

/* Full recompute repeats the forward inside the backward: B, or I where it is split, takes R longer
 * (Korthikanti et al. 2022, arXiv 2205.05198). Selective recompute has no unit time. */
static td_status unit_recompute_ns(const cost_model *c, const pass_query *q, double *ns,
                                   td_err *err)
{
    *ns = 0;
    if ((q->pass != PASS_B && q->pass != PASS_I) || c->recompute_placed || c->sizes == NULL ||
        c->sizes->run.recompute != RECOMPUTE_FULL)
        return TD_OK;
    pass_query again = *q;
    again.pass = PASS_R;
    return given_pass_ns(c, &again, ns, err);
}

static td_status unit_pass_ns(const cost_model *c, const pass_query *q, double *ns, td_err *err)
{
    double again = 0;
    TD_TRY(given_pass_ns(c, q, ns, err));
    TD_TRY(unit_recompute_ns(c, q, &again, err));
    *ns += again;
    return TD_OK;
}

/* --- first principles --- */

static double kernel_ns(const cluster_desc *c, const work_item *k, bool fp32)
{
    const double peak = fp32 ? c->vector_flops_per_s : c->matrix_flops_per_s;
    const double compute =
        k->flops > 0 ? k->flops / (peak * efficiency_at(&c->matrix_efficiency, k->flops)) : 0;
    const double memory =
        k->bytes > 0
            ? k->bytes / (c->memory_bytes_per_s * efficiency_at(&c->memory_efficiency, k->bytes))
            : 0;
    return (compute > memory ? compute : memory) * 1e9 + c->launch_ns;
}

/* What tensor-parallel shards do together inside a pass. */
static double sums_ns(const cost_model *c, const work_list *list)
{
    const double tp = (double)c->sizes->run.tp, node = c->cluster->devices_per_node;
    if (c->sums_apart || tp <= 1) return 0;
    /* tensor-parallel ranks are neighbours and fill a node first */
    const group_shape g = tp <= node ? (group_shape){1, tp} : (group_shape){ceil(tp / node), node};
    double ns = 0;
    if (list->sums > 0)
        ns += list->sums * network_collective_ns(c->cluster, COLL_ALL_REDUCE, g, list->sum_bytes);
    if (list->gathers > 0)
        ns +=
            list->gathers * network_collective_ns(c->cluster, COLL_ALL_GATHER, g, list->sum_bytes);
    if (list->scatters > 0)
        ns += list->scatters *
              network_collective_ns(c->cluster, COLL_REDUCE_SCATTER, g, list->sum_bytes);
    if (list->softmax_bytes > 0)
        ns += network_collective_ns(c->cluster, COLL_VOCAB_STATS, g, list->softmax_bytes);
    return ns;
}

static td_status machine_pass_ns(const cost_model *c, const pass_query *q, double *ns, td_err *err)
{
    work_list list;
    TD_TRY(need_cluster(c, "pass", err));
    TD_TRY(work_of(c->sizes, q, !c->recompute_placed, &list, err));
    const bool fp32 = c->sizes->run.dtype == TYPE_FP32;
    *ns = sums_ns(c, &list);
    for (int32_t i = 0; i < list.n; i++)
        *ns += list.items[i].count * kernel_ns(c->cluster, &list.items[i], fp32);
    return TD_OK;
}

static double slowdown(const cost_model *c, bool memory)
{
    const int32_t busy = c->busy > 0          ? c->busy
                         : c->cluster != NULL ? c->cluster->devices_per_node
                                              : 1;
    const double factor = profile_contention(c->profile, busy, memory);
    return c->alone ? factor / profile_contention(c->profile, busy, false) : factor;
}

/* Passes are measured on one shard alone; what its sums take is measured as collectives. */
static td_status measured_sums_ns(const cost_model *c, const pass_query *q, double *ns, td_err *err)
{
    const int32_t tp = (int32_t)c->sizes->run.tp;
    int64_t one = 0, piece = 0, softmax = 0;
    work_list list;
    *ns = 0;
    if (tp <= 1 || c->sums_apart || (!profile_has_between(c->profile, false) && c->cluster == NULL))
        return TD_OK;
    TD_TRY(work_of(c->sizes, q, !c->recompute_placed, &list, err));
    TD_TRY(cost_collective(c, COLL_ALL_REDUCE, NULL, 0, tp, (int64_t)list.sum_bytes, &one, err));
    TD_TRY(cost_collective(c, COLL_ALL_GATHER, NULL, 0, tp, (int64_t)list.sum_bytes, &piece, err));
    if (list.softmax_bytes > 0)
        TD_TRY(cost_collective(c, COLL_VOCAB_STATS, NULL, 0, tp, (int64_t)list.softmax_bytes,
                               &softmax, err));
    *ns =
        list.sums * (double)one + (list.gathers + list.scatters) * (double)piece + (double)softmax;
    return TD_OK;
}

static td_status measured_pass_ns(const cost_model *c, const pass_query *q, double *ns, td_err *err)
{
    if (c->sizes == NULL) return td_fail(err, TD_EUSAGE, "profile: no model; give --model");
    sizes z = *c->sizes;
    if (c->recompute_placed) z.run.recompute = RECOMPUTE_NONE;
    TD_TRY(profile_pass_ns(c->profile, &z, q, ns, err));
    *ns *= slowdown(c, false);
    double sums = 0;
    TD_TRY(measured_sums_ns(c, q, &sums, err));
    *ns += sums;
    return TD_OK;
}

static td_status pass_ns(const cost_model *c, const pass_query *q, double *ns, td_err *err)
{
    if ((unsigned)q->pass >= PASS_COUNT)
        return td_fail(err, TD_EUSAGE, "pass %d: no such pass", (int)q->pass);
    if (c->units != NULL) return unit_pass_ns(c, q, ns, err);
    if (c->profile != NULL) return measured_pass_ns(c, q, ns, err);
    return machine_pass_ns(c, q, ns, err);
}

td_status cost_pass(const cost_model *c, const pass_query *q, int64_t *ns, td_err *err)
{
    double x = 0;
    TD_TRY(pass_ns(c, q, &x, err));
    return round_ns(x, pass_name(q->pass), ns, err);
}

td_status cost_pair(const cost_model *c, const pass_query *f, const pass_query *b, int64_t *ns,
                    td_err *err)
{
    double x = 0, y = 0;
    if (c->units != NULL && c->units->pair_given) {
        /* two passes of unequal slices overlap for the mean of their shares */
        const double share = (unit_share(c, f) + unit_share(c, b)) / 2;
        TD_TRY(unit_recompute_ns(c, b, &x, err));
        return round_ns(c->units->pair_ms * 1e6 * share + x, "overlapped pair", ns, err);
    }
    TD_TRY(pass_ns(c, f, &x, err));
    TD_TRY(pass_ns(c, b, &y, err));
    const double part = c->pair_frac > 0 ? c->pair_frac : 1;
    return round_ns((x + y) * part, "overlapped pair", ns, err);
}

/* --- the step --- */

static td_status stage_shard_params(const cost_model *c, int32_t stage, double *params, td_err *err)
{
    const sizes *const z = c->sizes;
    if (z == NULL || z->model == NULL || z->stages == NULL || stage < 0 ||
        stage >= z->n_stages + (z->vocab_shards > 0 ? 1 : 0))
        return td_fail(err, TD_EUSAGE, "optimizer: no stage %" PRId32 " of a model; give --model",
                       stage);
    const stage_desc desc = sizes_stage(z, stage), *const s = &desc;
    if (s->shard) {
        *params = (double)stage_param_elements(z->model, s);
        return TD_OK;
    }
    const double tp = z->run.tp > 1 ? (double)z->run.tp : 1;
    const double table = (double)z->model->vocab * (double)z->model->hidden;
    const double bias = z->model->family == MODEL_BERT ? (double)z->model->vocab : 0;
    const bool whole = z->vocab_shards < 1;
    double ends = 0;
    if (s->embedding) ends += (double)model_embedding_params(z->model) - (whole ? 0 : table);
    if (s->head) ends += (double)model_head_params(z->model) - (whole ? 0 : table + bias);
    if (z->model->tied && s->embedding && s->head && whole) ends -= table;
    *params = ((double)s->n_layers * (double)model_layer_params(z->model) + ends) / tp;
    return TD_OK;
}

/* One sweep over memory of so many bytes a parameter, or the measured speed of it. */
static td_status sweep_ns(const cost_model *c, const profile_fit *fit, double params,
                          double bytes_each, int64_t *ns, td_err *err)
{
    if (c->profile != NULL && fit->n > 0)
        return round_ns(profile_eval(fit, params, 0) * slowdown(c, true), "optimizer", ns, err);
    TD_TRY(need_cluster(c, "optimizer", err));
    const work_item sweep = {"sweep", 0, params * bytes_each, 1, false};
    return round_ns(params > 0 ? kernel_ns(c->cluster, &sweep, true) : 0, "optimizer", ns, err);
}

/* AdamW reads the gradient and clears it; reads and writes both moments and the fp32 weight; writes
 * the weight of the run's type where that is not fp32. Bytes of a parameter. */
static double step_bytes(const run_shape *run)
{
    const double grad = 2 * (double)data_type_bytes(run->grad_dtype);
    return grad + 24 + (run->dtype == TYPE_FP32 ? 0 : (double)data_type_bytes(run->dtype));
}

td_status cost_optimizer(const cost_model *c, int32_t stage, int64_t *ns, td_err *err)
{
    *ns = 0;
    if (c->units != NULL) return TD_OK;
    double params = 0;
    TD_TRY(stage_shard_params(c, stage, &params, err));
    params /= (double)sizes_optimizer_shards(c->sizes);
    return sweep_ns(c, c->profile != NULL ? &c->profile->optimizer : NULL, params,
                    step_bytes(&c->sizes->run), ns, err);
}

td_status cost_snapshot(const cost_model *c, int32_t stage, int64_t *ns, td_err *err)
{
    int64_t step = 0;
    *ns = 0;
    if (c->units != NULL) return TD_OK;
    TD_TRY(cost_optimizer(c, stage, &step, err));
    const run_shape *const run = &c->sizes->run;
    const double low = run->dtype == TYPE_FP32 ? 0 : (double)data_type_bytes(run->dtype);
    return round_ns((double)step * 2 * (12 + low) / step_bytes(run), "snapshot", ns, err);
}

td_status cost_join(const cost_model *c, int32_t stage, bool weights, int64_t *ns, td_err *err)
{
    int64_t step = 0;
    *ns = 0;
    if (c->units != NULL) return TD_OK;
    const run_shape *const run = &c->sizes->run;
    double params = 0;
    TD_TRY(stage_shard_params(c, stage, &params, err));
    const double bytes = 2 * (double)data_type_bytes(weights ? run->dtype : run->grad_dtype);
    if (c->profile == NULL) return sweep_ns(c, NULL, params, bytes, ns, err);
    TD_TRY(sweep_ns(c, &c->profile->optimizer, params, step_bytes(run), &step, err));
    return round_ns((double)step * bytes / step_bytes(run), "shards", ns, err);
}

td_status cost_norm(const cost_model *c, int32_t stage, int64_t *ns, td_err *err)
{
    *ns = 0;
    if (c->units != NULL) return TD_OK;
    double params = 0;
    TD_TRY(stage_shard_params(c, stage, &params, err));
    return sweep_ns(c, c->profile != NULL ? &c->profile->norm : NULL, params,
                    (double)data_type_bytes(c->sizes->run.grad_dtype), ns, err);
}

/* --- between ranks --- */

td_status cost_message(const cost_model *c, int32_t src_rank, int32_t dst_rank, int64_t bytes,
                       message_cost *out, td_err *err)
{
    *out = (message_cost){0};
    if (src_rank == dst_rank) return TD_OK;
    if (c->units != NULL)
        return round_ns(c->units->comm_ms * 1e6, "message", &out->latency_ns, err);
    const bool near = c->cluster == NULL || cluster_node_of(c->cluster, src_rank) ==
                                                cluster_node_of(c->cluster, dst_rank);
    if (c->profile != NULL && near && profile_has_between(c->profile, true)) {
        const double latency = profile_between_ns(c->profile, true, 0);
        const double whole = profile_between_ns(c->profile, true, (double)bytes);
        TD_TRY(round_ns(latency, "message", &out->latency_ns, err));
        return round_ns(whole > latency ? whole - latency : 0, "message", &out->transfer_ns, err);
    }
    if (c->cluster == NULL)
        return td_fail(err, TD_EUSAGE, "message: no cluster to price it with; give --cluster");
    const link_desc *const link = near ? &c->cluster->intra : &c->cluster->inter;
    TD_TRY(round_ns(link->latency_ns, "message", &out->latency_ns, err));
    return round_ns((double)bytes / link->bytes_per_s * 1e9, "message", &out->transfer_ns, err);
}

td_status cost_collective(const cost_model *c, coll_kind kind, const int32_t *ranks,
                          int32_t n_ranks, int32_t n, int64_t bytes, int64_t *ns, td_err *err)
{
    *ns = 0;
    if (n <= 1) return TD_OK;
    if (c->units != NULL) return round_ns(c->units->coll_ms * 1e6, "collective", ns, err);
    if (c->profile != NULL && profile_has_between(c->profile, false) &&
        (c->cluster == NULL || c->cluster->n_nodes == 1)) {
        /* one of the two halves of an all-reduce moves half of what that does */
        const bool half = kind == COLL_ALL_GATHER || kind == COLL_REDUCE_SCATTER;
        const double moved = (double)bytes * (n - 1) * (half ? 0.5 : 1);
        return round_ns(profile_between_ns(c->profile, false, moved), "collective", ns, err);
    }
    if (c->cluster == NULL)
        return td_fail(err, TD_EUSAGE, "collective: no cluster to price it with; give --cluster");
    const group_shape g = group_shape_of(c->cluster, ranks, n_ranks, n);
    return round_ns(network_collective_ns(c->cluster, kind, g, (double)bytes), "collective", ns,
                    err);
}
