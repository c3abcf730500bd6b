/* Opening stages; where the tensors of a pass lie. */
#include "exec/stage_inside.h"

#include "costmodel/segments.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

/* --- opening --- */

static td_status refuse_shards(const sizes *z, td_err *err)
{
    const model_desc *const m = z->model;
    const int64_t tp = z->run.tp;
    if (tp <= 1) return TD_OK;
    if (z->vocab_shards > 0)
        return td_fail(err, TD_EUSAGE,
                       "--tp %lld: not executed with sharded vocabulary layers yet; leave one of "
                       "them out",
                       (long long)tp);
    if (m->n_heads % tp != 0 || model_kv_copies(m, tp) == 0 || m->ffn % tp != 0 || m->vocab < tp)
        return td_fail(
            err, TD_EUSAGE,
            "--tp %lld: model %s has %lld heads, %lld of keys and values, and an MLP "
            "%lld wide; the degree must divide each, or be a multiple of the heads of keys and "
            "values",
            (long long)tp, m->name, (long long)m->n_heads, (long long)m->n_kv_heads,
            (long long)m->ffn);
    return TD_OK;
}

static td_status refuse_unsupported(const sizes *z, td_err *err)
{
    const model_desc *const m = z->model;
    if (m == NULL) return td_fail(err, TD_EUSAGE, "executor: no model was given; use --model");
    TD_TRY(refuse_shards(z, err));
    if (z->run.grad_dtype != TYPE_FP32)
        return td_fail(err, TD_EUSAGE, "gradients of type %s: they are summed in fp32",
                       data_type_name(z->run.grad_dtype));
    if (m->gated && m->mlp_bias)
        return td_fail(err, TD_EUSAGE, "model %s: biases in a gated MLP are not executed yet",
                       m->name);
    if (m->learned_positions && z->run.seq_len > m->max_positions)
        return td_fail(err, TD_EUSAGE, "--seq-len %lld: model %s has %lld positions",
                       (long long)z->run.seq_len, m->name, (long long)m->max_positions);
    if (m->head_dim > 256 || (!m->learned_positions && m->head_dim % 2 != 0))
        return td_fail(err, TD_EUSAGE, "model %s: heads of %lld are not executed", m->name,
                       (long long)m->head_dim);
    if (z->vocab_shards > 0 && m->family == MODEL_BERT)
        return td_fail(err, TD_EUSAGE,
                       "model %s: BERT's head is not executed in shards; use a schedule with whole "
                       "vocabulary layers, or a GPT-2 or Llama style model",
                       m->name);
    return TD_OK;
}

/* A pass over `seq` tokens of each sequence. */
static td_status set_rows(const sizes *z, int64_t seq, stage_code *c, td_err *err)
{
    TD_TRY(segments_check_rows(z, seq, err));
    c->seq = seq;
    c->rows = c->own_rows = c->batch * seq;
    if (z->run.sequence_parallel) c->own_rows /= c->shards;
    return TD_OK;
}

static td_status open_layouts(const sizes *z, int32_t stage, int64_t seq, bool split, stage_code *c,
                              td_err *err)
{
    TD_TRY(set_rows(z, seq, c, err));
    c->split = split;
    TD_TRY(scratch_layout_of(z, stage, seq, &c->scratch, err));
    TD_TRY(stash_layout_of(z, stage, seq, split ? STASH_F_TO_I : STASH_F_TO_B, &c->stash, err));
    TD_TRY(stash_layout_of(z, stage, seq, STASH_F_TO_W, &c->stash_w, err));
    return stash_layout_of(z, stage, seq, STASH_I_TO_W, &c->wstash, err);
}

static td_status open_one(const sizes *z, int32_t stage, td_arena *a, stage_code *c, td_err *err)
{
    model_desc *const m = TD_NEW(a, model_desc);
    if (m == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the stages' tables");
    *m = model_shard(z->model, z->run.tp);
    c->m = m;
    c->vocab = z->model->vocab;
    c->shards = z->run.tp < 1 ? 1 : z->run.tp;
    c->kv_copies = model_kv_copies(z->model, c->shards);
    c->at = sizes_stage(z, stage);
    c->recompute = z->run.recompute;
    c->batch = z->run.micro_batch;
    c->whole = z->run.seq_len;
    c->element_bytes = data_type_bytes(z->run.dtype);
    if (!c->at.shard) TD_TRY(open_layouts(z, stage, c->whole, false, c, err));
    c->n_params = stage_params(c->m, &c->at, NULL, 0);
    c->params = TD_NEW_N(a, param_tensor, c->n_params);
    c->layer = td_alloc(a, (size_t)c->at.n_layers, sizeof *c->layer);
    if (c->params == NULL || c->layer == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the stages' tables");
    (void)stage_params(c->m, &c->at, c->params, c->n_params);
    c->elements = stage_param_elements(c->m, &c->at);
    c->grad_elements = stage_grad_elements(c->m, &c->at);
    c->first_tensor = c->at.shard ? 0 : stage_first_tensor(c->m, &c->at);
    c->tensors_between = c->at.shard ? model_tensor_count(c->m) - c->n_params : 0;
    for (int k = 0; k < PARAM_KIND_COUNT; k++) {
        c->own[k] = -1;
        for (int64_t l = 0; l < c->at.n_layers; l++) c->layer[l][k] = -1;
    }
    for (int64_t i = 0; i < c->n_params; i++) {
        const param_tensor *const t = &c->params[i];
        if (t->layer < 0)
            c->own[t->kind] = t->offset;
        else
            c->layer[t->layer - c->at.first_layer][t->kind] = t->offset;
    }
    return TD_OK;
}

td_status stage_open(const sizes *z, k_ctx *ctx, td_arena *a, stage_code **out, td_err *err)
{
    TD_TRY(refuse_unsupported(z, err));
    const int32_t n_codes = z->n_stages + (z->vocab_shards > 0 ? 1 : 0);
    stage_code *const c = TD_NEW_N(a, stage_code, n_codes);
    if (c == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the stages' tables");
    float *rope = NULL;
    if (!z->model->learned_positions) {
        rope = td_alloc(a, (size_t)(z->run.seq_len * z->model->head_dim), sizeof *rope);
        if (rope == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the rotary table");
        k_rope_table_cpu(ctx, z->run.seq_len, z->model->head_dim, z->model->rope_theta, rope);
    }
    for (int32_t s = 0; s < n_codes; s++) {
        TD_TRY(open_one(z, s, a, &c[s], err));
        c[s].rope = rope;
    }
    *out = c;
    return TD_OK;
}

td_status stage_open_as(const sizes *z, int32_t stage, const stage_code *whole, int64_t seq,
                        bool split, stage_code *out, td_err *err)
{
    *out = *whole;
    return open_layouts(z, stage, seq, split, out, err);
}

td_status stage_open_forward(const sizes *z, int32_t stage, const stage_code *whole, int64_t seq,
                             stage_code *out, td_err *err)
{
    *out = *whole;
    TD_TRY(set_rows(z, seq, out, err));
    out->split = false;
    return forward_layout_of(z, stage, seq, &out->stash, &out->scratch, err);
}

int64_t stage_tensor_entry(const stage_code *c, int64_t i)
{
    return c->first_tensor + i + (i > 0 ? c->tensors_between : 0);
}

int64_t stage_head_grad(const stage_code *c)
{
    if (!c->at.head) return -1;
    return c->own[PARAM_HEAD_WEIGHT] >= 0 ? c->own[PARAM_HEAD_WEIGHT] : c->elements;
}

int64_t stage_tied_offset(const stage_code *c)
{
    if (!c->m->tied) return -1;
    if (c->at.embedding) return c->own[PARAM_TOKEN_EMBEDDING];
    return c->at.head ? c->own[PARAM_HEAD_WEIGHT] : -1;
}

/* --- where things lie --- */

stage_dims stage_dims_of(const stage_code *c)
{
    const model_desc *const m = c->m;
    return (stage_dims){.rows = c->rows,
                        .hidden = m->hidden,
                        .attn = m->n_heads * m->head_dim,
                        .kv = m->n_kv_heads * m->head_dim,
                        .qkv = (m->n_heads + 2 * m->n_kv_heads) * m->head_dim,
                        .ffn = m->ffn,
                        .up = (m->gated ? 2 : 1) * m->ffn};
}

/* A part of what is kept; without a base where the pass has no such buffer. */
typedef struct kept_part {
    const stash_layout *at;
    char *base;
} kept_part;

enum { KEPT_PARTS = 3 };

static void find_parts(const stage_code *c, const stage_args *p, kept_part out[KEPT_PARTS])
{
    out[0] = (kept_part){&c->stash, p->stash};
    out[1] = (kept_part){&c->stash_w, c->split ? p->stash_w : NULL};
    out[2] = (kept_part){&c->wstash, c->split ? p->wstash : NULL};
}

static int64_t field_of(const void *layout, size_t field)
{
    return *(const int64_t *)(const void *)((const char *)layout + field);
}

float *stage_kept(const stage_code *c, const stage_args *p, size_t field)
{
    kept_part parts[KEPT_PARTS];
    find_parts(c, p, parts);
    for (int i = 0; i < KEPT_PARTS; i++)
        if (parts[i].base != NULL && field_of(parts[i].at, field) >= 0)
            return at_bytes(parts[i].base, field_of(parts[i].at, field));
    return NULL;
}

/* A tensor of a layer: kept, or made again in the scratch. */
static float *layer_tensor(const stage_code *c, const stage_args *p, int64_t layer, size_t field)
{
    kept_part parts[KEPT_PARTS];
    find_parts(c, p, parts);
    for (int i = 0; i < KEPT_PARTS; i++) {
        const layer_layout *const k = &parts[i].at->kept;
        if (parts[i].base != NULL && field_of(k, field) >= 0)
            return at_bytes(parts[i].base, parts[i].at->layers + layer * parts[i].at->layer_stride +
                                               field_of(k, field));
    }
    const int64_t again = field_of(&c->scratch.layer, field);
    return p->scratch != NULL && again >= 0 ? at_bytes(p->scratch, c->scratch.recomputed + again)
                                            : NULL;
}

layer_view stage_layer_view(const stage_code *c, const stage_args *p, int64_t layer)
{
#define AT(name) .name = layer_tensor(c, p, layer, offsetof(layer_layout, name))
    layer_view v = {AT(y1), AT(mean1), AT(rstd1), AT(qkv), AT(o),   AT(lse),  AT(sum1),
                    AT(y2), AT(mean2), AT(rstd2), AT(up),  AT(act), AT(sum2), AT(dqkv)};
#undef AT
    if (stage_post_norm(c)) v.y1 = stage_level(c, p, layer);
    if (v.dqkv == NULL) v.dqkv = v.qkv;
    return v;
}

float *stage_level(const stage_code *c, const stage_args *p, int64_t level)
{
    if (level == c->at.n_layers && !c->at.head) return p->output;
    kept_part parts[KEPT_PARTS];
    find_parts(c, p, parts);
    for (int i = 0; i < KEPT_PARTS; i++) {
        const stash_layout *const k = parts[i].at;
        if (parts[i].base != NULL && level >= k->first_level &&
            level < k->first_level + k->n_levels)
            return at_bytes(parts[i].base, k->inputs + (level - k->first_level) * k->input_stride);
    }
    return (float *)(uintptr_t)p->input; /* read only */
}

bool stage_passes_on(const stage_code *c)
{
    return c->at.n_layers == 0 && !c->at.embedding && !c->at.head;
}

static int64_t param_offset(const stage_code *c, int64_t layer, param_kind k)
{
    return layer >= 0 ? c->layer[layer][k] : c->own[k];
}

const float *stage_weight(const stage_code *c, const stage_args *p, int64_t layer, param_kind k)
{
    const int64_t at = param_offset(c, layer, k);
    return at < 0 ? NULL : stage_skip(c, p->weights, at);
}

float *stage_grad(const stage_code *c, const stage_args *p, int64_t layer, param_kind k)
{
    const int64_t at = param_offset(c, layer, k);
    return at < 0 ? NULL : p->grads + at;
}

const float *stage_head_weight(const stage_code *c, const stage_args *p)
{
    const float *const own = stage_weight(c, p, -1, PARAM_HEAD_WEIGHT);
    return own != NULL ? own : stage_weight(c, p, -1, PARAM_TOKEN_EMBEDDING);
}

float *stage_keys(const stage_code *c, const stage_kv *kv, int64_t layer)
{
    return stage_skip(c, kv->at,
                      2 * layer * c->batch * kv->len * c->m->n_kv_heads * c->m->head_dim);
}

k_attn stage_attention(const stage_code *c, const stage_args *p, int64_t layer)
{
    const stage_dims d = stage_dims_of(c);
    const bool sliced = stage_is_sliced(c);
    const long t = c->seq, q_ld = sliced ? d.attn : d.qkv;
    for (long i = 0; i < p->n_kv; i++) {
        const long n = p->kv[i].len;
        float *const k = stage_keys(c, &p->kv[i], layer);
        p->keys[i] = (k_keys){.k = k,
                              .v = stage_skip(c, k, c->batch * n * d.kv),
                              .rows = n,
                              .ld = d.kv,
                              .batch = n * d.kv};
    }
    return (k_attn){.batch = c->batch,
                    .heads = c->m->n_heads,
                    .kv_heads = c->m->n_kv_heads,
                    .d = c->m->head_dim,
                    .s_q = t,
                    .s_kv = p->prefix + t,
                    .causal = c->m->causal,
                    .scale = (float)(1.0 / sqrt((double)c->m->head_dim)),
                    .q_ld = q_ld,
                    .q_batch = t * q_ld,
                    .kv_ld = d.qkv,
                    .kv_batch = t * d.qkv,
                    .o_ld = d.attn,
                    .o_batch = t * d.attn,
                    .dq_ld = d.qkv,
                    .dq_batch = t * d.qkv,
                    .dkv_ld = sliced ? d.kv : d.qkv,
                    .dkv_batch = sliced ? c->whole * d.kv : t * d.qkv,
                    .pieces = p->keys,
                    .n_pieces = p->n_kv,
                    .float_dkv = sliced};
}

/* --- tokens --- */

void stage_find_rows(k_ctx *ctx, const stage_code *c, stage_args *p)
{
    p->row_ids = p->ids;
    p->row_targets = p->targets;
    if (p->ids == NULL || !stage_is_sliced(c)) return;
    int32_t *const ids = (int32_t *)(void *)(p->scratch + c->scratch.tokens);
    const size_t row = (size_t)c->seq * sizeof *ids, whole = (size_t)c->whole * sizeof *ids;
    k_ops_of(ctx)->copy_rows(ctx, c->batch, row, ids, row, p->ids + p->prefix, whole);
    k_ops_of(ctx)->copy_rows(ctx, c->batch, row, ids + c->rows, row, p->targets + p->prefix, whole);
    p->row_ids = ids;
    p->row_targets = ids + c->rows;
}

double stage_row_weight(const stage_code *c, const stage_args *p)
{
    long n = 0;
    if (p->row_weight > 0) return p->row_weight;
    for (int64_t i = 0; i < c->batch * c->whole; i++) n += p->targets[i] >= 0;
    return 1.0 / (double)(n > 0 ? n : 1);
}
