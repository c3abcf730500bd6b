/* From psim's options to a simulated run. */
#include "base/text.h"
#include "costmodel/profile.h"
#include "sim/period.h"
#include "sim/psim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef TD_VERSION
#define TD_VERSION "0.1.0"
#endif

/* What --profile measured is this machine, whatever cores it has for the ranks. */
static td_status local_cluster(psim_result *r, td_err *err)
{
    const plan *const p = &r->setup.plan;
    const int64_t need = plan_devices(p);
    TD_TRY(cluster_local(need <= INT32_MAX ? (int32_t)need : INT32_MAX, &r->cluster, err));
    r->has_cluster = true;
    r->cost.cluster = &r->cluster;
    return TD_OK;
}

static int32_t ranks_of_node(const psim_result *r)
{
    const plan *const p = &r->setup.plan;
    const int64_t all = plan_devices(p);
    return r->cluster.devices_per_node < all ? r->cluster.devices_per_node : (int32_t)all;
}

/* The cluster must hold every device of the plan, folded replicas and shards included. */
static td_status check_cluster(const psim_options *o, psim_result *r, td_err *err)
{
    const plan *const p = &r->setup.plan;
    const int64_t need = plan_devices(p);
    if (need <= cluster_size(&r->cluster)) return TD_OK;
    if (strcmp(o->cluster, "local") == 0 && need <= INT32_MAX) /* ranks may share cores */
        return cluster_local((int32_t)need, &r->cluster, err);
    if (strcmp(r->cluster.name, "local") == 0)
        return td_fail(err, TD_EUSAGE,
                       "--cluster %s holds %d ranks, the plan needs %lld; give "
                       "--cluster local:%lld, or local alone for as many as it takes",
                       o->cluster, cluster_size(&r->cluster), (long long)need, (long long)need);
    const int64_t per_node = r->cluster.devices_per_node;
    return td_fail(err, TD_EUSAGE,
                   "--cluster %s has %d devices, the plan needs %lld; give it "
                   "%lld nodes (NAME:%lld)",
                   r->cluster.name, cluster_size(&r->cluster), (long long)need,
                   (long long)((need + per_node - 1) / per_node),
                   (long long)((need + per_node - 1) / per_node));
}

/* Cluster and profile, as far as they can be read before there is a plan. */
static td_status load_machine(td_arena *a, const psim_options *o, psim_result *r, td_err *err)
{
    TD_TRY(request_machine(o->cluster, o->profile, o->link, o->what.pp, a, &r->cost, err));
    if (r->cost.cluster == NULL) return TD_OK;
    r->cluster = *r->cost.cluster; /* local alone grows with the plan */
    r->has_cluster = true;
    r->cost.cluster = &r->cluster;
    return TD_OK;
}

static td_status load_cost(const psim_options *o, psim_result *r, td_err *err)
{
    run_setup *const s = &r->setup;
    r->cost.sizes = &s->sizes;
    r->cost.chunks = s->plan.chunks;
    r->protocol = o->protocol >= 0 ? (sim_protocol)o->protocol
                  : s->has_units   ? PROTOCOL_EAGER
                                   : PROTOCOL_RENDEZVOUS;
    if (r->has_cluster) TD_TRY(check_cluster(o, r, err));
    if (r->cost.profile != NULL) {
        if (s->has_model) TD_TRY(profile_check(r->cost.profile, &s->model, &s->sizes.run, err));
        r->cost.alone = true;
        if (o->cluster == NULL) TD_TRY(local_cluster(r, err));
        r->cost.busy = ranks_of_node(r);
    }
    if (s->has_units) r->cost.units = &s->units;
    if (o->pair_frac <= 0)
        return td_fail(err, TD_EUSAGE, "--pair-frac %g: a pair takes some time; legal: above 0",
                       o->pair_frac);
    r->cost.pair_frac = o->pair_frac;
    return TD_OK;
}

static td_status check_asked(const psim_options *o, td_err *err)
{
    if (o->what.times == NULL && o->what.model == NULL)
        return td_fail(err, TD_EUSAGE,
                       "how long do passes take? give --times F=1,B=2, or --model "
                       "with --cluster");
    if (o->what.times == NULL && o->cluster == NULL && o->profile == NULL)
        return td_fail(err, TD_EUSAGE,
                       "--model %s: on what? give --cluster PRESET|FILE (psim list "
                       "shows them), a --profile, or --times F=1,B=2",
                       o->what.model);
    return TD_OK;
}

/* What --noise takes a pass of each class to vary by. */
static td_status spreads(td_arena *a, const psim_options *o, psim_result *r, double **out,
                         td_err *err)
{
    const plan *const p = &r->setup.plan;
    if (o->spread > 10) return td_fail(err, TD_EUSAGE, "--spread %g: at most 10", o->spread);
    r->spread = o->spread;
    if (o->spread < 0 && r->cost.profile == NULL)
        return td_fail(err, TD_EUSAGE,
                       "--noise: how much do passes vary? give --spread 0.02, or a --profile that "
                       "measured it");
    if (o->spread < 0 && profile_spread(r->cost.profile, PASS_COUNT) <= 0)
        return td_fail(err, TD_EUSAGE,
                       "--noise: %s does not say how much passes vary: nothing was measured often "
                       "enough, or by an older bench; give --spread 0.02, or measure again",
                       o->profile);
    *out = TD_NEW_N(a, double, p->n_classes);
    if (*out == NULL) return td_fail(err, TD_ENOMEM, "out of memory for %u classes", p->n_classes);
    for (uint32_t i = 0; i < p->n_classes; i++)
        (*out)[i] = o->spread >= 0 ? o->spread
                                   : profile_spread(r->cost.profile, p->classes[i].kind < PASS_COUNT
                                                                         ? p->classes[i].kind
                                                                         : PASS_COUNT);
    return TD_OK;
}

/* One run as it is priced, and those that vary. */
static td_status run_plan(td_arena *a, const psim_options *o, psim_result *r, sim_options so,
                          td_err *err)
{
    const plan *const p = &r->setup.plan;
    sim_noise n = {.p = p, .seed = (uint64_t)o->seed};
    const sim_live live = {.self = &n, .compute = noise_compute};
    if (o->slow != NULL) {
        double *const slow = TD_NEW_N(a, double, p->n_ranks);
        if (slow == NULL) return td_fail(err, TD_ENOMEM, "out of memory for %u ranks", p->n_ranks);
        TD_TRY(noise_parse_slow(o->slow, p->n_ranks, slow, err));
        n.slow = slow;
        so.live = &live;
    }
    TD_TRY(sim_run(p, r->class_ns, &so, a, &r->times, &r->stats, err));
    if (plan_validates(p)) TD_TRY(sim_period(p, r->class_ns, &so, n.slow, &r->period_ns, err));
    TD_TRY(plan_check_periods(p, o->periods, err));
    if (o->periods > 1)
        TD_TRY(sim_periods(p, (uint32_t)o->periods, r->class_ns, &so, n.slow, a, &r->several,
                           &r->several_times, err));
    if (!o->noise) return TD_OK;
    double *spread = NULL;
    TD_TRY(spreads(a, o, r, &spread, err));
    n.spread = spread;
    return noise_distribution(p, r->class_ns, &so, n, o->runs, &r->noise, err);
}

static void add_meta(psim_result *r, const char *key, const char *value)
{
    if (value != NULL) r->meta[r->n_meta++] = (trace_meta){key, value};
}

/* What was asked of the schedule beyond its size: "slices=1,2,3,4 group=safe"; or "". */
static const char *options_line(const request *q, td_arena *a)
{
    const char *line = q->slice_tokens == NULL ? "" : td_sprintf(a, "slices=%s", q->slice_tokens);
    for (size_t i = 0; i < q->opts.n && line != NULL; i++)
        line = td_sprintf(a, "%s%s%s", line, line[0] == '\0' ? "" : " ", q->opts.item[i]);
    return line;
}

static td_status fill_meta(td_arena *a, const cli_args *args, const psim_options *o, psim_result *r,
                           td_err *err)
{
    const char *const command = cli_line(a, args);
    const char *const options = options_line(&o->what, a);
    if (command == NULL || options == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    add_meta(r, "producer", "psim");
    add_meta(r, "version", TD_VERSION);
    add_meta(r, "schedule", r->setup.plan.schedule_name);
    if (o->what.layers != NULL && strcmp(o->what.layers, "redistributed") == 0)
        add_meta(r, "caption",
                 td_sprintf(a, "%s, layers redistributed", r->setup.plan.schedule_name));
    add_meta(r, "options", options[0] == '\0' ? NULL : options);
    add_meta(r, "times", o->what.times);
    add_meta(r, "model", r->setup.has_model ? r->setup.model.name : NULL);
    if (!r->setup.has_model && o->what.plan == NULL)
        add_meta(r, "activation_bytes", td_sprintf(a, "%lld", (long long)UNIT_ACTIVATION_BYTES));
    add_meta(r, "cluster", r->has_cluster ? r->cluster.name : NULL);
    add_meta(r, "profile", o->profile);
    add_meta(r, "slow", o->slow);
    add_meta(r, "protocol", sim_protocol_name(r->protocol));
    add_meta(r, "mapping", plan_mapping_name(r->setup.plan.mapping));
    add_meta(r, "command", command);
    return TD_OK;
}

td_status psim_request(const cli_args *args, const psim_options *o, request *q, td_err *err)
{
    *q = o->what;
    q->seed = (uint64_t)o->seed;
    q->deltas = o->deltas;
    if (args->n_operands == 0) return TD_OK;
    if (q->schedule != NULL || q->plan != NULL)
        return td_fail(err, TD_EUSAGE, "%s: --schedule or --plan is already given",
                       args->operands[0]);
    q->schedule = args->operands[0];
    return TD_OK;
}

td_status psim_simulate(td_arena *a, const cli_args *args, const psim_options *o, psim_result *out,
                        td_err *err)
{
    *out = (psim_result){0};
    request q;
    TD_TRY(psim_request(args, o, &q, err));
    TD_TRY(check_asked(o, err));
    TD_TRY(activation_deltas_parse("--activation-deltas ", o->deltas, &out->deltas, err));
    TD_TRY(load_machine(a, o, out, err));
    q.prices = &out->cost;
    TD_TRY(request_plan(&q, TYPE_BF16, NULL, a, &out->setup, err));
    TD_TRY(load_cost(o, out, err));
    const plan *const p = &out->setup.plan;
    TD_TRY(sim_price(p, &out->cost, a, &out->class_ns, err));
    sim_options so = {.protocol = out->protocol, .cost = &out->cost};
    TD_TRY(sim_share_cores(p, &out->cost, a, &so, err));
    TD_TRY(run_plan(a, o, out, so, err));
    TD_TRY(metrics_of(p, &out->times, out->deltas, a, &out->metrics, err));
    if (!plan_validates(p)) out->period_ns = out->metrics.step_ns;
    return fill_meta(a, args, o, out, err);
}
