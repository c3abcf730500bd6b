/* What is trained: a model, how one run of it is shaped, and which layers a stage holds. */
#ifndef COSTMODEL_MODEL_H
#define COSTMODEL_MODEL_H

#include "base/base.h"

typedef enum model_family { MODEL_GPT2, MODEL_LLAMA, MODEL_BERT } model_family;
typedef enum data_type { TYPE_FP32, TYPE_BF16, TYPE_FP16 } data_type;
typedef enum recompute_mode { RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL } recompute_mode;

/* Bytes of one number of the type. */
int64_t data_type_bytes(data_type t);
const char *data_type_name(data_type t); /* "fp32" */

typedef struct model_desc {
    char name[64];
    model_family family;
    int64_t n_layers, hidden, n_heads, n_kv_heads, head_dim, ffn, vocab, max_positions;
    bool tied;               /* output head shares the token embedding */
    bool qkv_bias, out_bias; /* attention */
    bool mlp_bias;
    bool gated;             /* SwiGLU: three MLP matrices */
    bool rms_norm;          /* else layer norm with bias */
    bool learned_positions; /* else rotary */
    bool causal;            /* false: bidirectional attention, masked-token loss */
    double rope_theta, norm_eps;
} model_desc;

/* How a run cuts and stores it. */
typedef struct run_shape {
    int64_t micro_batch, seq_len; /* sequences per microbatch, tokens per sequence */
    int64_t tp, dp;
    bool sequence_parallel, zero1;
    data_type dtype, grad_dtype; /* activations and weights; gradient accumulation */
    recompute_mode recompute;
} run_shape;

/* One tensor-parallel shard as a model of its own: its share of the heads, of the MLP's width and
 * of the vocabulary's rows, rounded up. */
model_desc model_shard(const model_desc *m, int64_t tp);

/* How many of tp neighbouring shards hold the same head of keys and values, of which there are
 * fewer than shards: 1 where each has its own. Where neither divides the other, 0. */
int32_t model_kv_copies(const model_desc *m, int64_t tp);

/* A stage: a contiguous run of layers. */
typedef struct stage_desc {
    int64_t first_layer, n_layers;
    bool embedding, head; /* holds the input embedding; the final norm, output head and loss */
    /* > 0: the tables of embedding and head lie in shards of so many rows on all ranks, and the
     * stage holds the rest of its ends only */
    int64_t vocab_rows;
    bool shard; /* no stage of the pipeline but such a shard: rows of the tables, nothing else */
} stage_desc;

/* --- model.c, model_presets.c --- */

/* A preset by name, or a Hugging Face config.json by path. Aliases of keys in conventions.
 * Errors name file, line, key; unknown presets get a "did you mean". */
TD_MUST_USE td_status model_load(const char *name_or_path, model_desc *out, td_err *err);
/* The same from text in memory; `file` is for messages and gives the name. */
TD_MUST_USE td_status model_parse(const char *text, size_t len, const char *file, model_desc *out,
                                  td_err *err);
/* The preset names, for listings. */
const char *const *model_preset_names(size_t *n);
/* Parameters of the whole model (a tied table counted once). */
int64_t model_params(const model_desc *m);

/* --- layers.c --- */

typedef struct layer_request {
    int64_t n_stages, pp;           /* n_stages / pp chunks a rank */
    const char *layout;             /* Megatron's layout string ("Et*2|(tt|)*3,tL"), or NULL */
    const int32_t *explicit_layers; /* [n_stages] from the schedule or --layers, or NULL */
    bool account_embedding, account_head; /* each counts as one layer in an even split */
    bool redistribute;                    /* the last stage gets fewer layers, for its head */
    int64_t seq_len;                      /* for redistribute */
} layer_request;

/* Assigns all layers to stages; out has [n_stages]. Layers are never lost: a request that does not
 * add up fails and says what would. */
TD_MUST_USE td_status layers_assign(const model_desc *m, const layer_request *q, stage_desc *out,
                                    td_err *err);

/* A tensor-parallel shard holds whole attention heads; the error names the degrees that can be. */
TD_MUST_USE td_status model_check_tp(const model_desc *m, int64_t tp, td_err *err);

#endif
