/* What stages of a request's model hold and cost, before there is a schedule. */
#include "base/text.h"
#include "costmodel/profile.h"
#include "schedules/request.h"

#include <string.h>

td_status request_list(td_arena *a, const char *text, const char *name, int32_t **out, size_t *n,
                       td_err *err)
{
    int64_t *wide = NULL;
    TD_TRY(td_parse_i64_list(a, text, name, &wide, n, err));
    *out = TD_NEW_N(a, int32_t, *n);
    if (*out == NULL) return td_fail(err, TD_ENOMEM, "out of memory for %s", name);
    for (size_t i = 0; i < *n; i++) {
        if (wide[i] < 0 || wide[i] > INT32_MAX)
            return td_fail(err, TD_EUSAGE, "%s: %lld is out of range; it is from 0 to %d", name,
                           (long long)wide[i], INT32_MAX);
        (*out)[i] = (int32_t)wide[i];
    }
    return TD_OK;
}

td_status request_layers(const request *q, const sizes *z, int32_t n_stages, int64_t rows,
                         const int32_t *given, td_arena *a, stage_desc **out, td_err *err)
{
    layer_request lr = {.n_stages = n_stages,
                        .pp = rows,
                        .layout = q->layout,
                        .explicit_layers = given,
                        .account_embedding = q->account_embedding,
                        .account_head = q->account_loss,
                        .redistribute =
                            q->layers != NULL && strcmp(q->layers, "redistributed") == 0,
                        .seq_len = z->run.seq_len};
    if (q->layers != NULL && !lr.redistribute) {
        int32_t *list = NULL;
        size_t n = 0;
        TD_TRY(request_list(a, q->layers, "--layers", &list, &n, err));
        if (n != (size_t)n_stages)
            return td_fail(err, TD_EUSAGE, "--layers: %zu numbers, but there are %d stages", n,
                           n_stages);
        lr.explicit_layers = list;
    }
    *out = TD_NEW_N(a, stage_desc, n_stages);
    if (*out == NULL) return td_fail(err, TD_ENOMEM, "out of memory for stages");
    TD_TRY(layers_assign(z->model, &lr, *out, err));
    for (int32_t i = 0; i < n_stages; i++) (*out)[i].vocab_rows = sizes_vocab_rows(z);
    return TD_OK;
}

/* What F, I and W add, with the input of a stage, and what does not depend on the order. */
static td_status stage_bytes(const sizes *z, int32_t stage, sched_stage_cost *out, td_err *err)
{
    enum { N_FIXED = 3, N_LIVE = 4 };
    static const size_kind fixed[N_FIXED] = {SIZE_WEIGHTS, SIZE_GRADS, SIZE_OPTIMIZER};
    static const size_kind live[N_LIVE] = {SIZE_STASH_I, SIZE_STASH_W, SIZE_WSTASH, SIZE_BOUNDARY};
    const int64_t tokens = z->run.seq_len;
    int64_t n[N_LIVE] = {0}, one = 0;
    for (int i = 0; i < N_FIXED; i++) {
        TD_TRY(sizes_bytes(z, fixed[i], stage, tokens, 0, &one, err));
        out->fixed_bytes += one;
    }
    for (int i = 0; i < N_LIVE; i++) TD_TRY(sizes_bytes(z, live[i], stage, tokens, 0, &n[i], err));
    TD_TRY(sizes_bytes(z, SIZE_SCRATCH, stage, tokens, 0, &out->workspace_bytes, err));
    const int64_t input = stage > 0 ? n[3] : 0;
    out->activation_bytes[PASS_F] = n[0] + n[1] + input;
    out->activation_bytes[PASS_I] = n[2] - n[0];
    out->activation_bytes[PASS_W] = -n[1] - n[2] - input;
    return TD_OK;
}

static td_status stage_cost(const cost_model *c, int32_t stage, sched_stage_cost *out, td_err *err)
{
    const int64_t tokens = c->sizes->run.seq_len;
    int64_t bytes = 0;
    message_cost m = {0};
    const bool priced = c->units != NULL || c->cluster != NULL || c->profile != NULL;
    for (int k = 0; k < PASS_COUNT; k++) {
        const pass_query q = {(pass_kind)k, stage, tokens, 0, tokens, false};
        if (!priced || cost_pass(c, &q, &out->pass_ns[k], NULL) != TD_OK) out->pass_ns[k] = -1;
    }
    if (c->sizes->model != NULL) {
        TD_TRY(stage_bytes(c->sizes, stage, out, err));
        TD_TRY(sizes_bytes(c->sizes, SIZE_BOUNDARY, stage, tokens, 0, &bytes, err));
    }
    if (priced && cost_message(c, 0, 1, bytes, &m, NULL) == TD_OK)
        out->send_ns = m.latency_ns + m.transfer_ns;
    return TD_OK;
}

td_status request_price(const void *pricing, int32_t n_stages, sched_stage_cost *out, td_err *err)
{
    const request_pricing *const from = pricing;
    const run_setup *const setup = from->setup;
    const unit_times *const units = setup->has_units ? &setup->units : NULL;
    sizes z = setup->sizes;
    stage_desc *stages = NULL;
    cost_model c = {0};
    if (from->q->prices != NULL) c = *from->q->prices;
    if (units != NULL && units->stage_pass_ms != NULL && units->n_stages != n_stages)
        return td_fail(err, TD_EUSAGE, "--times: the file has rows of %d stages, there are %d",
                       units->n_stages, n_stages);
    z.n_stages = n_stages;
    z.chunks = n_stages / (int32_t)from->q->pp;
    z.vocab_shards = 0;
    z.twins = 1;
    if (setup->has_model) {
        TD_TRY(request_layers(from->q, &z, n_stages, from->q->pp, NULL, from->a, &stages, err));
        z.stages = stages;
    } else {
        z.run.seq_len = 1;
    }
    c.sizes = &z;
    c.units = units;
    c.chunks = z.chunks;
    for (int32_t s = 0; s < n_stages; s++) {
        out[s] = (sched_stage_cost){0};
        TD_TRY(stage_cost(&c, s, &out[s], err));
    }
    return TD_OK;
}

td_status request_machine(const char *cluster, const char *profile_path, int link, int64_t pp,
                          td_arena *a, cost_model *out, td_err *err)
{
    if (cluster != NULL) {
        cluster_desc *const known = TD_NEW(a, cluster_desc);
        if (known == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the cluster");
        TD_TRY(cluster_load(cluster, known, err));
        out->cluster = known;
    }
    if (profile_path != NULL) {
        profile *const fitted = TD_NEW(a, profile);
        if (fitted == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the profile");
        TD_TRY(profile_read(profile_path, fitted, err));
        fitted->link = (sample_link)link;
        out->profile = fitted;
        out->busy = (int32_t)pp;
    }
    return TD_OK;
}
