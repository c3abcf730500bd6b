/* Reading Hugging Face's config.json; counting parameters. */
#include "costmodel/model.h"

#include "base/text.h"
#include "costmodel/json_read.h"
#include "costmodel/model_params.h"
#include "costmodel/model_presets.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

int64_t data_type_bytes(data_type t) { return t == TYPE_FP32 ? 4 : 2; }

const char *data_type_name(data_type t)
{
    return t == TYPE_FP32 ? "fp32" : t == TYPE_BF16 ? "bf16" : "fp16";
}

/* --- parameters --- */

int64_t model_layer_params(const model_desc *m)
{
    const int64_t h = m->hidden, q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim;
    const int64_t attention =
        h * (q + 2 * kv) + q * h + (m->qkv_bias ? q + 2 * kv : 0) + (m->out_bias ? h : 0);
    const int64_t mlp = (m->gated ? 3 : 2) * h * m->ffn + (m->mlp_bias ? m->ffn + h : 0);
    return attention + mlp + 2 * (m->rms_norm ? h : 2 * h);
}

int64_t model_embedding_params(const model_desc *m)
{
    const int64_t positions = m->learned_positions ? m->max_positions * m->hidden : 0;
    /* BERT adds two token types and a norm of its own */
    const int64_t bert = m->family == MODEL_BERT ? 4 * m->hidden : 0;
    return m->vocab * m->hidden + positions + bert;
}

int64_t model_head_params(const model_desc *m)
{
    const int64_t h = m->hidden, norm = m->rms_norm ? h : 2 * h;
    /* BERT: dense, norm, then the table with a bias of its own */
    const int64_t bert = m->family == MODEL_BERT ? h * h + h + m->vocab : 0;
    return m->vocab * h + norm + bert;
}

int64_t model_params(const model_desc *m)
{
    const int64_t tied = m->tied ? m->vocab * m->hidden : 0;
    return m->n_layers * model_layer_params(m) + model_embedding_params(m) + model_head_params(m) -
           tied;
}

/* --- config.json --- */

enum { DIM_MAX = 1 << 24 };

typedef struct family_word {
    const char *word; /* model_type, or the start of an architecture's name */
    model_family family;
    bool qkv_bias;
} family_word;

static const family_word family_words[] = {
    {"gpt2", MODEL_GPT2, true},    {"llama", MODEL_LLAMA, false},   {"mistral", MODEL_LLAMA, false},
    {"qwen2", MODEL_LLAMA, true},  {"bert", MODEL_BERT, true},      {"GPT2", MODEL_GPT2, true},
    {"Llama", MODEL_LLAMA, false}, {"Mistral", MODEL_LLAMA, false}, {"Qwen2", MODEL_LLAMA, true},
    {"Bert", MODEL_BERT, true},
};
enum { N_MODEL_TYPES = 5, N_FAMILY_WORDS = sizeof family_words / sizeof *family_words };

/* Which family a file describes: its model_type, else its first architecture. */
static td_status find_family(const json_view *v, const family_word **out, td_err *err)
{
    char type[64] = "", key[64];
    TD_TRY(json_text(v, "model_type", false, type, sizeof type, err));
    const bool typed = type[0] != '\0';
    const char *word = type;
    if (!typed) {
        const json_t *const first = json_array_get(json_find(v, "architectures", key), 0);
        if (!json_is_string(first))
            return json_fail(v, NULL, err,
                             "key \"model_type\" is missing; it is gpt2, llama, "
                             "mistral, qwen2 or bert");
        word = json_string_value(first);
    }
    for (int i = typed ? 0 : N_MODEL_TYPES; i < (typed ? N_MODEL_TYPES : N_FAMILY_WORDS); i++) {
        const char *const known = family_words[i].word;
        const size_t n = strlen(known);
        const bool same = typed ? strcmp(word, known) == 0
                                : strncmp(word, known, n) == 0 && strstr(word, "Moe") == NULL;
        if (!same) continue;
        *out = &family_words[i];
        return TD_OK;
    }
    return json_fail(v, typed ? "model_type" : "architectures", err,
                     "'%.40s' is not a known kind of model; known are gpt2, llama, mistral, qwen2 "
                     "and bert",
                     word);
}

/* Sizes that all families have; the aliases are those of the families and of Megatron's options. */
static td_status read_sizes(const json_view *v, model_desc *m, td_err *err)
{
    TD_TRY(json_i64(v, "n_layer num_hidden_layers num_layers", true, 1, 65535, &m->n_layers, err));
    TD_TRY(json_i64(v, "n_embd hidden_size", true, 1, DIM_MAX, &m->hidden, err));
    TD_TRY(json_i64(v, "n_head num_attention_heads", true, 1, DIM_MAX, &m->n_heads, err));
    m->n_kv_heads = m->n_heads;
    m->ffn = 4 * m->hidden;
    TD_TRY(json_i64(v, "num_key_value_heads num_query_groups", false, 1, DIM_MAX, &m->n_kv_heads,
                    err));
    TD_TRY(json_i64(v, "head_dim kv_channels", false, 1, DIM_MAX, &m->head_dim, err));
    TD_TRY(json_i64(v, "n_inner intermediate_size ffn_hidden_size", m->family == MODEL_LLAMA, 1,
                    DIM_MAX, &m->ffn, err));
    TD_TRY(json_i64(v, "vocab_size padded_vocab_size", true, 1, INT32_MAX, &m->vocab, err));
    return json_i64(v, "n_positions n_ctx max_position_embeddings seq_length", m->learned_positions,
                    1, INT32_MAX, &m->max_positions, err);
}

static td_status read_rope(const json_view *v, model_desc *m, td_err *err)
{
    json_view rope;
    bool found = false;
    m->rope_theta = 10000;
    TD_TRY(json_object_in(v, "rope_parameters", false, &rope, &found, err));
    if (found) TD_TRY(json_f64(&rope, "rope_theta", false, 1, 1e12, &m->rope_theta, err));
    return json_f64(v, "rope_theta rotary_base", false, 1, 1e12, &m->rope_theta, err);
}

/* The one activation that a family is computed with. */
static td_status check_activation(const json_view *v, const model_desc *m, td_err *err)
{
    char key[64];
    const json_t *const value = json_find(v, "activation_function hidden_act", key);
    if (value == NULL) return TD_OK;
    const char *const word = json_string_value(value);
    if (word == NULL) return json_fail(v, key, err, "wants a string");
    const bool right = m->gated ? strcmp(word, "silu") == 0 || strcmp(word, "swish") == 0
                                : strncmp(word, "gelu", 4) == 0;
    if (right) return TD_OK;
    return json_fail(v, key, err, "'%.40s' is not known for this kind of model; it is %s", word,
                     m->gated ? "silu" : "gelu");
}

/* What is in the file and would change the arithmetic, but is not modelled. */
static td_status check_unmodelled(const json_view *v, const model_desc *m, td_err *err)
{
    char key[64];
    int64_t types = 2;
    if (json_find(v, "num_experts n_routed_experts num_routed_experts num_local_experts", key))
        return json_fail(v, key, err, "mixtures of experts are not supported");
    if (m->gated && m->mlp_bias)
        return json_fail(v, "mlp_bias", err, "gated MLPs with biases are not supported");
    TD_TRY(json_i64(v, "type_vocab_size", false, 1, DIM_MAX, &types, err));
    if (m->family == MODEL_BERT && types != 2)
        return json_fail(v, "type_vocab_size", err, "wants 2, as BERT has");
    return TD_OK;
}

static td_status check_sums(const json_view *v, model_desc *m, td_err *err)
{
    if (m->head_dim == 0 && m->hidden % m->n_heads != 0)
        return json_fail(v, NULL, err,
                         "hidden size %" PRId64 " is no multiple of %" PRId64 " heads", m->hidden,
                         m->n_heads);
    if (m->head_dim == 0) m->head_dim = m->hidden / m->n_heads;
    if (m->n_heads % m->n_kv_heads != 0)
        return json_fail(v, "num_key_value_heads", err,
                         "%" PRId64 " heads are no multiple of %" PRId64 " key-value heads",
                         m->n_heads, m->n_kv_heads);
    /* 20 bytes a parameter must fit 63 bits in every sum */
    const double h = (double)m->hidden, width = (double)m->n_heads * (double)m->head_dim;
    const double layer = 4 * h * width + 3 * h * (double)m->ffn + 16 * h;
    const double tables = h * (2 * (double)m->vocab + (double)m->max_positions + h);
    if ((double)m->n_layers * layer + tables > 1e17)
        return json_fail(v, NULL, err, "sizes overflow: the model has over 1e17 parameters");
    return TD_OK;
}

static td_status read_model(const json_view *v, model_desc *m, td_err *err)
{
    const family_word *kind = NULL;
    TD_TRY(find_family(v, &kind, err));
    const bool llama = kind->family == MODEL_LLAMA;
    m->family = kind->family;
    m->learned_positions = !llama;
    m->gated = m->rms_norm = llama;
    m->causal = kind->family != MODEL_BERT;
    m->tied = m->out_bias = m->mlp_bias = !llama;
    m->qkv_bias = kind->qkv_bias;
    m->norm_eps = llama ? 1e-6 : kind->family == MODEL_BERT ? 1e-12 : 1e-5;
    TD_TRY(read_sizes(v, m, err));
    if (llama) {
        bool bias = m->qkv_bias;
        TD_TRY(json_bool(v, "attention_bias", &bias, err));
        /* Qwen2 has biases on q, k, v alone and no key for it */
        m->out_bias = bias && !kind->qkv_bias;
        m->qkv_bias = bias;
        TD_TRY(json_bool(v, "mlp_bias", &m->mlp_bias, err));
        TD_TRY(read_rope(v, m, err));
    }
    TD_TRY(json_bool(v, "tie_word_embeddings", &m->tied, err));
    TD_TRY(json_f64(v, "layer_norm_epsilon layer_norm_eps rms_norm_eps", false, 0, 1, &m->norm_eps,
                    err));
    TD_TRY(check_activation(v, m, err));
    TD_TRY(check_unmodelled(v, m, err));
    return check_sums(v, m, err);
}

/* The last part of a path without ".json"; of "config.json" its folder. */
static void name_from_path(const char *path, char *out, size_t size)
{
    size_t end = strlen(path);
    for (int pass = 0; pass < 2; pass++) {
        if (end >= 5 && strncmp(path + end - 5, ".json", 5) == 0) end -= 5;
        size_t start = end;
        while (start > 0 && path[start - 1] != '/') start--;
        const bool generic = end - start == 6 && strncmp(path + start, "config", 6) == 0;
        if (!generic || start < 2 || pass == 1) {
            const size_t n = end - start < size - 1 ? end - start : size - 1;
            memcpy(out, path + start, n);
            out[n] = '\0';
            return;
        }
        end = start - 1;
    }
}

td_status model_parse(const char *text, size_t len, const char *file, model_desc *out, td_err *err)
{
    json_view v;
    TD_TRY(json_open(text, len, file, &v, err));
    *out = (model_desc){0};
    name_from_path(file, out->name, sizeof out->name);
    const td_status status = read_model(&v, out, err);
    json_close(&v);
    return status;
}

static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static td_status unknown_model(const char *name, td_err *err)
{
    size_t n = 0;
    const char *const *const names = model_preset_names(&n);
    const char *const near = td_nearest(name, names, n);
    if (near != NULL)
        return td_fail(err, TD_EUSAGE, "model '%s': no such preset or file; did you mean '%s'?",
                       name, near);
    return td_fail(err, TD_EUSAGE,
                   "model '%s': no such preset or file; give a config.json or a preset such as %s, "
                   "%s, %s",
                   name, names[0], names[n / 2], names[n - 1]);
}

td_status model_load(const char *name_or_path, model_desc *out, td_err *err)
{
    const model_desc *const preset = model_preset(name_or_path);
    if (preset != NULL) {
        *out = *preset;
        return TD_OK;
    }
    struct stat st;
    if (strcmp(name_or_path, "-") != 0 && strchr(name_or_path, '/') == NULL &&
        strstr(name_or_path, ".json") == NULL && stat(name_or_path, &st) != 0)
        return unknown_model(name_or_path, err);
    td_arena *const a = td_arena_new();
    if (a == NULL) return td_fail(err, TD_ENOMEM, "%s: out of memory", name_or_path);
    const char *path = name_or_path;
    if (is_folder(path)) path = td_sprintf(a, "%s/config.json", path);
    char *text = NULL;
    size_t len = 0;
    td_status status = path == NULL ? td_fail(err, TD_ENOMEM, "%s: out of memory", name_or_path)
                                    : td_read_file(a, path, JSON_READ_MAX, &text, &len, err);
    if (status == TD_OK) status = model_parse(text, len, path, out, err);
    td_arena_free(a);
    return status;
}

static int64_t share(int64_t n, int64_t parts) { return (n + parts - 1) / parts; }

model_desc model_shard(const model_desc *m, int64_t tp)
{
    model_desc s = *m;
    if (tp <= 1) return s;
    s.n_heads = share(m->n_heads, tp);
    s.n_kv_heads = share(m->n_kv_heads, tp);
    s.ffn = share(m->ffn, tp);
    s.vocab = share(m->vocab, tp);
    return s;
}

int32_t model_kv_copies(const model_desc *m, int64_t tp)
{
    if (tp <= 1 || m->n_kv_heads % tp == 0) return 1;
    return tp % m->n_kv_heads == 0 ? (int32_t)(tp / m->n_kv_heads) : 0;
}

td_status model_check_tp(const model_desc *m, int64_t tp, td_err *err)
{
    char legal[120] = "1";
    size_t n = 1;
    if (tp <= 1 || m->n_heads % tp == 0) return TD_OK;
    for (int64_t d = 2; d <= m->n_heads && n + 24 < sizeof legal; d++)
        if (m->n_heads % d == 0)
            n += (size_t)snprintf(legal + n, sizeof legal - n, ", %" PRId64, d);
    return td_fail(err, TD_EUSAGE,
                   "--tp %" PRId64 ": does not divide the %" PRId64 " heads of %s; legal: %s", tp,
                   m->n_heads, m->name, legal);
}
