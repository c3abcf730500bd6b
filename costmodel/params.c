/* The parameters of a stage: names, shapes and where they lie. */
#include "costmodel/sizes.h"

#include <stdio.h>

enum { PARAM_ALIGN = 16 };

typedef struct param_list {
    param_tensor *out;
    int64_t max, n, elements;
} param_list;

static int64_t align_up(int64_t n)
{
    int64_t up = 0;
    if (__builtin_add_overflow(n, PARAM_ALIGN - 1, &up)) return INT64_MAX;
    return up / PARAM_ALIGN * PARAM_ALIGN;
}

/* Appends one tensor; a count that does not fit saturates, and sizes_bytes refuses it. */
static void add(param_list *l, const char *name, int64_t layer, param_kind kind, int64_t rows,
                int64_t cols)
{
    if (l->out != NULL && l->n < l->max) {
        param_tensor *const t = &l->out[l->n];
        *t = (param_tensor){.layer = layer,
                            .kind = (int32_t)kind,
                            .rows = rows,
                            .cols = cols,
                            .offset = l->elements};
        (void)snprintf(t->name, sizeof t->name, "%s", name);
    }
    l->n++;
    int64_t count = 0, end = 0;
    if (__builtin_mul_overflow(rows, cols, &count) ||
        __builtin_add_overflow(l->elements, count, &end))
        end = INT64_MAX;
    l->elements = end == INT64_MAX ? end : align_up(end);
}

/* Names of the parts of one family's layer, in the order of param_kind from PARAM_NORM1_WEIGHT. */
typedef struct family_names {
    const char *part[PARAM_DOWN_BIAS - PARAM_NORM1_WEIGHT + 1];
    const char *token, *position, *type, *embedding_norm;
    const char *final_norm, *head, *head_dense;
} family_names;

static const family_names names_gpt2 = {
    {"ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
     "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
     "mlp.c_gate.weight", "mlp.c_proj.weight", "mlp.c_proj.bias"},
    "wte.weight",
    "wpe.weight",
    "wtt.weight",
    "ln_e",
    "ln_f",
    "lm_head",
    "lm_dense"};

static const family_names names_llama = {
    {"input_layernorm.weight", "input_layernorm.bias", "self_attn.qkv_proj.weight",
     "self_attn.qkv_proj.bias", "self_attn.o_proj.weight", "self_attn.o_proj.bias",
     "post_attention_layernorm.weight", "post_attention_layernorm.bias", "mlp.up_proj.weight",
     "mlp.up_proj.bias", "mlp.gate_proj.weight", "mlp.down_proj.weight", "mlp.down_proj.bias"},
    "model.embed_tokens.weight",
    "model.embed_positions.weight",
    "model.embed_types.weight",
    "model.embed_norm",
    "model.norm",
    "lm_head",
    "lm_dense"};

static const family_names names_bert = {
    {"attention.output.LayerNorm.weight", "attention.output.LayerNorm.bias",
     "attention.self.qkv.weight", "attention.self.qkv.bias", "attention.output.dense.weight",
     "attention.output.dense.bias", "output.LayerNorm.weight", "output.LayerNorm.bias",
     "intermediate.dense.weight", "intermediate.dense.bias", "intermediate.gate.weight",
     "output.dense.weight", "output.dense.bias"},
    "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.position_embeddings.weight",
    "bert.embeddings.token_type_embeddings.weight",
    "bert.embeddings.LayerNorm",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.decoder",
    "cls.predictions.transform.dense"};

static const family_names *names_of(const model_desc *m)
{
    switch (m->family) {
    case MODEL_LLAMA: return &names_llama;
    case MODEL_BERT: return &names_bert;
    case MODEL_GPT2: break;
    }
    return &names_gpt2;
}

static void add_pair(param_list *l, const char *stem, bool bias, param_kind weight, int64_t rows,
                     int64_t cols)
{
    char name[64];
    (void)snprintf(name, sizeof name, "%.50s.weight", stem);
    add(l, name, -1, weight, rows, cols);
    if (!bias) return;
    (void)snprintf(name, sizeof name, "%.50s.bias", stem);
    add(l, name, -1, weight + 1, rows, 1);
}

/* Whether a stage holds rows of the tables, and how many. */
static bool has_tables(const stage_desc *s) { return s->vocab_rows == 0 || s->shard; }

static int64_t table_rows(const model_desc *m, const stage_desc *s)
{
    return s->shard ? s->vocab_rows : m->vocab;
}

static void add_embedding(param_list *l, const model_desc *m, const stage_desc *s)
{
    const family_names *const f = names_of(m);
    if (has_tables(s)) add(l, f->token, -1, PARAM_TOKEN_EMBEDDING, table_rows(m, s), m->hidden);
    if (s->shard) return;
    if (m->learned_positions)
        add(l, f->position, -1, PARAM_POSITION_EMBEDDING, m->max_positions, m->hidden);
    if (m->family != MODEL_BERT) return;
    add(l, f->type, -1, PARAM_TYPE_EMBEDDING, 2, m->hidden);
    add_pair(l, f->embedding_norm, true, PARAM_EMBEDDING_NORM_WEIGHT, m->hidden, 1);
}

static void add_layer(param_list *l, const model_desc *m, int64_t layer)
{
    const family_names *const f = names_of(m);
    const int64_t c = m->hidden, heads = m->n_heads * m->head_dim;
    const int64_t qkv = (m->n_heads + 2 * m->n_kv_heads) * m->head_dim;
    const struct {
        param_kind kind;
        bool there;
        int64_t rows, cols;
    } part[] = {
        {PARAM_NORM1_WEIGHT, true, c, 1},         {PARAM_NORM1_BIAS, !m->rms_norm, c, 1},
        {PARAM_QKV_WEIGHT, true, qkv, c},         {PARAM_QKV_BIAS, m->qkv_bias, qkv, 1},
        {PARAM_OUT_WEIGHT, true, c, heads},       {PARAM_OUT_BIAS, m->out_bias, c, 1},
        {PARAM_NORM2_WEIGHT, true, c, 1},         {PARAM_NORM2_BIAS, !m->rms_norm, c, 1},
        {PARAM_UP_WEIGHT, true, m->ffn, c},       {PARAM_UP_BIAS, m->mlp_bias, m->ffn, 1},
        {PARAM_GATE_WEIGHT, m->gated, m->ffn, c}, {PARAM_DOWN_WEIGHT, true, c, m->ffn},
        {PARAM_DOWN_BIAS, m->mlp_bias, c, 1},
    };
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        if (!part[i].there) continue;
        char stem[32], name[64];
        (void)snprintf(stem, sizeof stem,
                       m->family == MODEL_GPT2    ? "h.%lld."
                       : m->family == MODEL_LLAMA ? "model.layers.%lld."
                                                  : "bert.encoder.layer.%lld.",
                       (long long)layer);
        (void)snprintf(name, sizeof name, "%s%s", stem, f->part[part[i].kind - PARAM_NORM1_WEIGHT]);
        add(l, name, layer, part[i].kind, part[i].rows, part[i].cols);
    }
}

static void add_head(param_list *l, const model_desc *m, const stage_desc *s)
{
    const family_names *const f = names_of(m);
    if (!s->shard) {
        if (m->family == MODEL_BERT)
            add_pair(l, f->head_dense, true, PARAM_HEAD_DENSE_WEIGHT, m->hidden, m->hidden);
        add_pair(l, f->final_norm, !m->rms_norm, PARAM_FINAL_NORM_WEIGHT, m->hidden, 1);
    }
    if (!has_tables(s)) return;
    const int64_t rows = table_rows(m, s);
    if (m->family == MODEL_BERT) {
        char name[64];
        (void)snprintf(name, sizeof name, "%s.bias", f->head);
        add(l, name, -1, PARAM_HEAD_BIAS, rows, 1);
    }
    if (!(m->tied && s->embedding)) add_pair(l, f->head, false, PARAM_HEAD_WEIGHT, rows, m->hidden);
}

static param_list list_of(const model_desc *m, const stage_desc *s, param_tensor *out, int64_t max)
{
    param_list l = {.out = out, .max = max};
    if (s->embedding) add_embedding(&l, m, s);
    for (int64_t i = 0; i < s->n_layers; i++) add_layer(&l, m, s->first_layer + i);
    if (s->head) add_head(&l, m, s);
    return l;
}

/* Norms lie one behind the other, so that shards that have each seen a part of the tokens sum their
 * gradients at once; the head's table stays the last tensor. */
enum { PLACE_FIRST, PLACE_NORMS, PLACE_LAST, PLACES };

static int place_of(int32_t kind)
{
    switch ((param_kind)kind) {
    case PARAM_NORM1_WEIGHT:
    case PARAM_NORM1_BIAS:
    case PARAM_NORM2_WEIGHT:
    case PARAM_NORM2_BIAS:
    case PARAM_FINAL_NORM_WEIGHT:
    case PARAM_FINAL_NORM_BIAS: return PLACE_NORMS;
    case PARAM_HEAD_BIAS:
    case PARAM_HEAD_WEIGHT: return PLACE_LAST;
    default: return PLACE_FIRST;
    }
}

int64_t stage_params(const model_desc *m, const stage_desc *stage, param_tensor *out, int64_t max)
{
    const param_list l = list_of(m, stage, out, max);
    int64_t at = 0;
    if (out == NULL || l.n > max || l.elements == INT64_MAX) return l.n;
    for (int place = 0; place < PLACES; place++)
        for (int64_t i = 0; i < l.n; i++) {
            if (place_of(out[i].kind) != place) continue;
            out[i].offset = at;
            at += align_up(out[i].rows * out[i].cols);
        }
    return l.n;
}

int64_t stage_norm_elements(const model_desc *m, const stage_desc *stage, int64_t *first)
{
    const int64_t each = align_up(m->hidden) * (m->rms_norm ? 1 : 2);
    const bool head = stage->head && !stage->shard;
    const int64_t n = stage->shard ? 0 : each * (2 * stage->n_layers + (head ? 1 : 0));
    /* what lies behind them is the head's */
    int64_t last = 0;
    if (stage->head && has_tables(stage)) {
        if (m->family == MODEL_BERT) last += align_up(table_rows(m, stage));
        if (!(m->tied && stage->embedding)) last += align_up(table_rows(m, stage) * m->hidden);
    }
    *first = stage_param_elements(m, stage) - last - n;
    return n;
}

int64_t stage_param_elements(const model_desc *m, const stage_desc *stage)
{
    return list_of(m, stage, NULL, 0).elements;
}

int64_t stage_grad_elements(const model_desc *m, const stage_desc *stage)
{
    param_list l = list_of(m, stage, NULL, 0);
    if (m->tied && stage->embedding && stage->head && has_tables(stage))
        add(&l, "", -1, PARAM_HEAD_WEIGHT, table_rows(m, stage), m->hidden);
    return l.elements;
}

int64_t model_tensor_count(const model_desc *m)
{
    const stage_desc whole = {.n_layers = m->n_layers, .embedding = true, .head = true};
    return stage_params(m, &whole, NULL, 0);
}

int64_t stage_first_tensor(const model_desc *m, const stage_desc *stage)
{
    if (stage->embedding) return has_tables(stage) ? 0 : 1; /* the token table is the first */
    const stage_desc before = {.n_layers = stage->first_layer, .embedding = true};
    return stage_params(m, &before, NULL, 0);
}
