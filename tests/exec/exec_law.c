#include "exec_law.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

const model_desc law_gpt2 = {.name = "law-gpt2",
                             .family = MODEL_GPT2,
                             .n_layers = 8,
                             .hidden = 24,
                             .n_heads = 3,
                             .n_kv_heads = 3,
                             .head_dim = 8,
                             .ffn = 96,
                             .vocab = 61,
                             .max_positions = 32,
                             .tied = true,
                             .qkv_bias = true,
                             .out_bias = true,
                             .mlp_bias = true,
                             .learned_positions = true,
                             .causal = true,
                             .norm_eps = 1e-5};

const model_desc law_llama = {.name = "law-llama",
                              .family = MODEL_LLAMA,
                              .n_layers = 8,
                              .hidden = 24,
                              .n_heads = 4,
                              .n_kv_heads = 2,
                              .head_dim = 6,
                              .ffn = 40,
                              .vocab = 61,
                              .max_positions = 32,
                              .gated = true,
                              .rms_norm = true,
                              .causal = true,
                              .rope_theta = 10000,
                              .norm_eps = 1e-5};

const model_desc law_bert = {.name = "law-bert",
                             .family = MODEL_BERT,
                             .n_layers = 8,
                             .hidden = 24,
                             .n_heads = 3,
                             .n_kv_heads = 3,
                             .head_dim = 8,
                             .ffn = 96,
                             .vocab = 61,
                             .max_positions = 32,
                             .tied = true,
                             .qkv_bias = true,
                             .out_bias = true,
                             .mlp_bias = true,
                             .learned_positions = true,
                             .norm_eps = 1e-12};

model_desc law_four_heads(const model_desc *m, int64_t kv_heads)
{
    model_desc n = *m;
    n.n_heads = 4;
    n.n_kv_heads = kv_heads;
    n.head_dim = 6;
    return n;
}

/* Even shares of the layers; the first stages take what is left over. */
static void share_layers(const model_desc *m, int32_t n, stage_desc *out)
{
    int64_t at = 0;
    for (int32_t i = 0; i < n; i++) {
        const int64_t layers = m->n_layers / n + (i < m->n_layers % n);
        out[i] = (stage_desc){
            .first_layer = at, .n_layers = layers, .embedding = i == 0, .head = i == n - 1};
        at += layers;
    }
}

static sizes sizes_of(const exec_law *k, const stage_desc *stages, int32_t n_stages, int32_t twins)
{
    return (sizes){.model = k->model,
                   .stages = stages,
                   .n_stages = n_stages,
                   .chunks = 1,
                   .twins = twins,
                   .run = {.micro_batch = 2,
                           .seq_len = k->seq_len > 0 ? k->seq_len : 12,
                           .tp = k->tp < 1 ? 1 : k->tp,
                           .dp = k->dp < 1 ? 1 : k->dp,
                           .zero1 = k->zero1,
                           .sequence_parallel = k->sequence_parallel,
                           .recompute = k->recompute}};
}

void exec_law_sizes(const exec_law *k, const plan *p, sizes *out)
{
    *out = sizes_of(k, p->stages, p->n_stages, p->n_pipes);
}

check_result exec_law_holds(const exec_law *k, const schedule *s, td_arena *a, plan *plan_out)
{
    td_err err = {0};
    const int32_t dp = k->dp < 1 ? 1 : k->dp;
    stage_desc *const stages = TD_NEW_N(a, stage_desc, s->n_stages);
    share_layers(k->model, s->n_stages, stages);
    sizes z = sizes_of(k, stages, s->n_stages, sched_copies(s));
    z.vocab_shards = s->vocab == VOCAB_NONE ? 0 : s->n_rows;
    z.vocab_fused = s->vocab == VOCAB_2;
    for (int32_t i = 0; i < s->n_stages; i++) stages[i].vocab_rows = sizes_vocab_rows(&z);
    const lower_options lo = {.sizes = &z,
                              .dp = dp,
                              .tp = (int32_t)z.run.tp,
                              .shards = true,
                              .mapping = k->mapping,
                              .lookahead = 1,
                              .zero1 = k->zero1};
    plan p;
    if (plan_lower(s, &lo, a, &p, &err) != TD_OK) fail_msg("%s: %s", s->name, err.msg);
    const check_options o = {.seed = 11,
                             .steps = k->steps > 0 ? k->steps : 5,
                             .clip = k->clip > 0 ? k->clip : 1,
                             .run = {.threads_per_rank = 1,
                                     .deadline_ns = 60000000000,
                                     .device = k->device,
                                     .jitter_ns = k->jitter_ns,
                                     .jitter_seed = 3}};
    check_result r;
    if (check_plan(&p, &z, &o, a, &r, &err) != TD_OK) fail_msg("%s: %s", s->name, err.msg);
    if (!r.pass)
        fail_msg("%s %s, %d rows, %d stages, %d microbatches, dp %d: loss %.9g, reference %.9g, "
                 "gradients off by %g (%s), weights by %g (%s), copies %s, memory %s",
                 k->model->name, s->name, s->n_rows, s->n_stages, s->n_microbatches, dp, r.loss,
                 r.loss_reference, r.gradients.max_rel_err, r.gradients.worst,
                 r.weights.max_rel_err, r.weights.worst, r.copies ? "equal" : "DIFFER",
                 r.memory ? "as predicted" : "NOT as predicted");
    if (plan_out != NULL) *plan_out = p;
    return r;
}

check_result exec_law_named(const exec_law *k, const char *name, const char *option, int32_t pp,
                            int32_t chunks, int32_t microbatches, td_arena *a, plan *plan_out)
{
    td_err err = {0};
    enum { OPTIONS = 4 };
    sched_option_value values[OPTIONS] = {{0}};
    sched_request q = {.pp = pp, .microbatches = microbatches, .chunks = chunks, .options = values};
    char *rest = td_strdup(a, option == NULL ? "" : option);
    for (char *at = strtok_r(rest, ",", &rest); at != NULL; at = strtok_r(NULL, ",", &rest)) {
        char *const is = strchr(at, '=');
        *is = '\0';
        values[q.n_options++] = (sched_option_value){.key = at, .value = is + 1};
    }
    schedule *const s = TD_NEW(a, schedule);
    if (sched_generate(name, &q, a, s, &err) != TD_OK) fail_msg("%s: %s", name, err.msg);
    return exec_law_holds(k, s, a, plan_out);
}
