/* A simulated run as one JSON object, as a summary, and as advice. */
#include "base/text.h"
#include "costmodel/profile.h"
#include "sim/psim.h"

#include <stdio.h>
#include <string.h>

/* --- JSON --- */

static void json_text(td_text *t, const char *key, const char *value)
{
    td_text_addf(t, ",\"%s\":", key);
    if (value == NULL)
        td_text_add(t, "null");
    else
        td_text_json(t, value);
}

static void json_int(td_text *t, const char *key, int64_t value)
{
    td_text_addf(t, ",\"%s\":%lld", key, (long long)value);
}

static void json_real(td_text *t, const char *key, double value)
{
    td_text_addf(t, ",\"%s\":%.15g", key, value);
}

static void json_bool(td_text *t, const char *key, bool value)
{
    td_text_addf(t, ",\"%s\":%s", key, value ? "true" : "false");
}

double psim_tokens_per_s(const psim_result *r)
{
    const plan *const p = &r->setup.plan;
    if (!r->setup.has_model || r->period_ns <= 0) return 0;
    return (double)p->n_microbatches * (double)r->setup.sizes.run.micro_batch * (double)p->seq_len *
           p->dp / ((double)r->period_ns * 1e-9);
}

/* As bubble_frac, of a period in place of the step. */
static double period_bubble(const psim_result *r)
{
    const double step = (double)r->metrics.step_ns, period = (double)r->period_ns;
    return period > 0 ? 1 - (1 - r->metrics.bubble_frac) * step / period : 0;
}

static void json_ranks(const psim_result *r, td_text *t)
{
    td_text_add(t, ",\"per_rank\":[");
    for (uint32_t i = 0; i < r->setup.plan.n_ranks; i++) {
        const rank_metrics *const m = &r->metrics.ranks[i];
        td_text_addf(t, "%s{\"rank\":%u", i > 0 ? "," : "", i);
        json_int(t, "busy_ns", m->busy_ns);
        json_int(t, "first_ns", m->first_ns);
        json_int(t, "last_ns", m->last_ns);
        json_int(t, "peak_bytes", m->peak_bytes);
        json_int(t, "persistent_bytes", r->setup.plan.ranks[i].persistent_bytes);
        json_int(t, "activation_bytes", m->peak_bytes - r->setup.plan.ranks[i].persistent_bytes);
        json_real(t, "peak_activations", m->peak_activations);
        td_text_add(t, "}");
    }
    td_text_add(t, "]");
}

static void json_options(const psim_options *o, const psim_result *r, td_text *t)
{
    static const char *const recomputes[] = {"none", "selective", "full"};
    const run_shape *const run = &r->setup.sizes.run;
    td_text_add(t, ",\"options\":{\"activation_deltas\":");
    td_text_addf(t, "[%.15g,%.15g,%.15g]", r->deltas.f, r->deltas.i, r->deltas.w);
    json_text(t, "profile", o->profile);
    if (r->cost.profile != NULL) {
        char what[64];
        json_real(t, "profile_worst_residual_frac",
                  profile_worst(r->cost.profile, run->tp, what, sizeof what));
    }
    if (r->setup.has_model) {
        json_int(t, "micro_batch", run->micro_batch);
        json_int(t, "seq_len_tokens", run->seq_len);
        json_text(t, "dtype", data_type_name(run->dtype));
        json_text(t, "grad_dtype", data_type_name(run->grad_dtype));
        json_text(t, "recompute", recomputes[run->recompute]);
        json_bool(t, "zero1", run->zero1);
        json_bool(t, "sequence_parallel", run->sequence_parallel);
    }
    json_real(t, "pair_frac", r->cost.pair_frac);
    json_bool(t, "fold", r->setup.plan.folded_dp);
    td_text_add(t, ",\"schedule\":{");
    for (size_t i = 0; i < o->what.opts.n; i++) {
        const char *const item = o->what.opts.item[i];
        const char *const eq = strchr(item, '=');
        char key[64];
        (void)snprintf(key, sizeof key, "%.*s", eq == NULL ? 0 : (int)(eq - item), item);
        td_text_add(t, i > 0 ? "," : "");
        td_text_json(t, key);
        td_text_add(t, ":");
        td_text_json(t, eq == NULL ? "" : eq + 1);
    }
    td_text_add(t, "}}");
}

static void json_noise(const psim_result *r, td_text *t)
{
    const step_distribution *const n = &r->noise;
    if (n->runs == 0) return;
    td_text_addf(t, ",\"noise\":{\"runs\":%lld", (long long)n->runs);
    if (r->spread >= 0) json_real(t, "spread", r->spread);
    json_real(t, "mean_ns", n->mean_ns);
    json_real(t, "deviation_ns", n->deviation_ns);
    json_int(t, "min_ns", n->min_ns);
    json_int(t, "p5_ns", n->p5_ns);
    json_int(t, "p25_ns", n->p25_ns);
    json_int(t, "p50_ns", n->p50_ns);
    json_int(t, "p75_ns", n->p75_ns);
    json_int(t, "p95_ns", n->p95_ns);
    json_int(t, "p99_ns", n->p99_ns);
    json_int(t, "max_ns", n->max_ns);
    td_text_add(t, "}");
}

void psim_report_json(const psim_options *o, const psim_result *r, td_text *t)
{
    const plan *const p = &r->setup.plan;
    const plan_metrics *const m = &r->metrics;
    td_text_add(t, "{\"schema\":1");
    json_text(t, "schedule", p->schedule_name);
    json_int(t, "ranks", p->n_ranks);
    json_int(t, "devices", plan_devices(p));
    json_int(t, "stages", p->n_stages);
    json_int(t, "pipes", p->n_pipes);
    json_int(t, "microbatches", p->n_microbatches);
    json_int(t, "chunks", p->chunks);
    json_int(t, "slices", p->n_slices);
    json_int(t, "dp", p->dp);
    json_int(t, "tp", p->tp);
    json_int(t, "step_ns", m->step_ns);
    json_int(t, "period_ns", r->period_ns);
    json_real(t, "period_bubble_frac", period_bubble(r));
    json_real(t, "bubble_frac", m->bubble_frac);
    json_real(t, "span_bubble_frac", m->span_bubble_frac);
    if (r->setup.schedule.search.span_ns > 0) {
        json_int(t, "search_span_ns", r->setup.schedule.search.span_ns);
        json_int(t, "search_bound_ns", r->setup.schedule.search.bound_ns);
    }
    if (r->setup.has_model) json_real(t, "tokens_per_s", psim_tokens_per_s(r));
    json_int(t, "tasks", m->tasks);
    json_int(t, "messages", m->messages);
    json_int(t, "local_handovers", m->local_handovers);
    json_int(t, "message_bytes", m->message_bytes);
    json_int(t, "collectives", m->collectives);
    json_int(t, "collective_bytes", m->collective_bytes);
    json_int(t, "shared_flows", (int64_t)r->stats.shared_flows);
    json_text(t, "protocol", sim_protocol_name(r->protocol));
    json_text(t, "mapping", plan_mapping_name(p->mapping));
    json_text(t, "placement", o->what.placement == PLACEMENT_FOLDED ? "folded" : "straight");
    json_int(t, "lookahead", p->lookahead);
    json_int(t, "send_window", p->send_window);
    json_text(t, "times", o->what.times);
    json_text(t, "model", r->setup.has_model ? r->setup.model.name : NULL);
    json_text(t, "cluster", r->has_cluster ? r->cluster.name : NULL);
    json_int(t, "seed", o->seed);
    json_text(t, "slow", o->slow);
    json_options(o, r, t);
    json_noise(r, t);
    json_ranks(r, t);
    td_text_add(t, "}\n");
}

/* --- for people --- */

static uint32_t heaviest(const psim_result *r)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < r->setup.plan.n_ranks; i++)
        if (r->metrics.ranks[i].peak_bytes > r->metrics.ranks[best].peak_bytes) best = i;
    return best;
}

static double most_activations(const psim_result *r)
{
    double most = 0;
    for (uint32_t i = 0; i < r->setup.plan.n_ranks; i++)
        if (r->metrics.ranks[i].peak_activations > most)
            most = r->metrics.ranks[i].peak_activations;
    return most;
}

static void text_ranks(const psim_result *r, td_text *t)
{
    td_text_addf(t, "\n  %4s  %10s  %7s  %11s  %12s  %16s  %11s\n", "rank", "busy", "bubble",
                 "peak", "weights etc.", "activations etc.", "activations");
    for (uint32_t i = 0; i < r->setup.plan.n_ranks; i++) {
        const rank_metrics *const m = &r->metrics.ranks[i];
        char busy[32], peak[32], kept[32], rest[32];
        const int64_t fixed = r->setup.plan.ranks[i].persistent_bytes;
        const int64_t step = r->metrics.step_ns;
        td_text_addf(t, "  %4u  %10s  %5.1f %%  %11s  %12s  %16s  %11.4g\n", i,
                     td_print_ns(busy, sizeof busy, m->busy_ns),
                     step > 0 ? 100.0 * (1.0 - (double)m->busy_ns / (double)step) : 0.0,
                     r->setup.has_model ? td_print_bytes(peak, sizeof peak, m->peak_bytes) : "-",
                     r->setup.has_model ? td_print_bytes(kept, sizeof kept, fixed) : "-",
                     r->setup.has_model ? td_print_bytes(rest, sizeof rest, m->peak_bytes - fixed)
                                        : "-",
                     m->peak_activations);
    }
}

static void text_search(const sched_search *s, td_text *t)
{
    char span[32], bound[32];
    if (s->span_ns == 0) return;
    td_text_addf(t, "  search      %-12s  longest span of a rank; ",
                 td_print_ns(span, sizeof span, s->span_ns));
    if (s->bound_ns >= s->span_ns)
        td_text_add(t, "no order has a shorter one\n");
    else
        td_text_addf(t, "no order is below %s\n", td_print_ns(bound, sizeof bound, s->bound_ns));
}

/* A prediction is no better than what it stands on. */
static void text_doubt(const psim_result *r, td_text *t)
{
    static const double much = 0.25;
    char what[64];
    if (r->cost.profile == NULL) return;
    const double off = profile_worst(r->cost.profile, r->setup.sizes.run.tp, what, sizeof what);
    if (off > much)
        td_text_addf(t, "  profile     +- %-9.0f  %% for %s: measure again on a quiet machine\n",
                     100 * off, what);
}

void psim_report_text(const psim_options *o, const psim_result *r, td_text *t)
{
    const plan *const p = &r->setup.plan;
    const char *const dot = cli_utf8() ? "\xc2\xb7" : "-";
    char buf[40];
    td_text_add(t, p->schedule_name == NULL ? "plan" : p->schedule_name);
    if (r->setup.has_model) td_text_addf(t, " %s %s", dot, r->setup.model.name);
    if (r->has_cluster) td_text_addf(t, " on %s", r->cluster.name);
    td_text_addf(t, " %s %u ranks, %d stages, %d microbatches", dot, p->n_ranks, p->n_stages,
                 p->n_microbatches);
    if (p->tp > 1 || p->dp > 1) td_text_addf(t, ", tp %d, dp %d", p->tp, p->dp);
    td_text_addf(t, "\n\n  step        %-12s  bubble  %.1f %%  (widest rank's own span %.1f %%)\n",
                 td_print_ns(buf, sizeof buf, r->metrics.step_ns), 100 * r->metrics.bubble_frac,
                 100 * r->metrics.span_bubble_frac);
    if (plan_validates(p))
        td_text_addf(t, "  period      %-12s  bubble  %.1f %%  from step to step, as ranks go on\n",
                     td_print_ns(buf, sizeof buf, r->period_ns), 100 * period_bubble(r));
    if (r->noise.runs > 0) {
        char low[40], high[40];
        td_text_addf(t, "  with noise  %-12s  median of %lld runs; 5 %% below %s, 5 %% above %s\n",
                     td_print_ns(buf, sizeof buf, r->noise.p50_ns), (long long)r->noise.runs,
                     td_print_ns(low, sizeof low, r->noise.p5_ns),
                     td_print_ns(high, sizeof high, r->noise.p95_ns));
    }
    if (r->setup.has_model) {
        const uint32_t h = heaviest(r);
        td_text_addf(t, "  tokens/s    %-12s",
                     td_print_count(buf, sizeof buf, psim_tokens_per_s(r)));
        td_text_addf(t, "  peak    %s on rank %u",
                     td_print_bytes(buf, sizeof buf, r->metrics.ranks[h].peak_bytes), h);
        if (r->has_cluster)
            td_text_addf(t, " of %s", td_print_bytes(buf, sizeof buf, r->cluster.memory_bytes));
        td_text_add(t, "\n");
    }
    const profile *const fitted = r->cost.profile;
    if (fitted != NULL && r->setup.plan.n_ranks > 1 && fitted->cores > 0)
        td_text_addf(
            t, "  cores       %-12d  shared by %u ranks: passes slow down while others work\n",
            fitted->cores, r->setup.plan.n_ranks);
    text_doubt(r, t);
    td_text_addf(t, "  activations %-12.4g  of a microbatch on a rank's share, at most\n",
                 most_activations(r));
    td_text_addf(t, "  messages    %-12lld  protocol %s, mapping %s\n",
                 (long long)r->metrics.messages, sim_protocol_name(r->protocol),
                 plan_mapping_name(p->mapping));
    text_search(&r->setup.schedule.search, t);
    if (o->memory) text_ranks(r, t);
}

void psim_report_advice(const psim_options *o, const psim_result *r, td_text *t)
{
    const plan *const p = &r->setup.plan;
    const uint32_t h = heaviest(r);
    char a[40], b[40];
    if (r->setup.has_model && r->has_cluster &&
        r->metrics.ranks[h].peak_bytes > r->cluster.memory_bytes)
        td_text_addf(t,
                     "  memory: rank %u needs %s, a device has %s; try --recompute %s, more --tp, "
                     "or a smaller --micro-batch\n",
                     h, td_print_bytes(a, sizeof a, r->metrics.ranks[h].peak_bytes),
                     td_print_bytes(b, sizeof b, r->cluster.memory_bytes),
                     r->setup.sizes.run.recompute == RECOMPUTE_NONE ? "selective" : "full");
    if (r->metrics.bubble_frac > 0.25 && r->setup.has_schedule && o->what.pp > 1)
        td_text_addf(
            t, "  bubble is %.0f %%: %d microbatches on %d stages; try --microbatches %d\n",
            100 * r->metrics.bubble_frac, p->n_microbatches, p->n_stages, 2 * p->n_microbatches);
    if (o->trace != NULL && o->output == NULL)
        td_text_addf(t, "  next: psim draw %s -o timeline.svg\n", o->trace);
}
