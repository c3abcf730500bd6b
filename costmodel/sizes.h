/* Exact sizes in bytes. The executor allocates from these functions and the simulator predicts from
 * them, so the two cannot drift apart. */
#ifndef COSTMODEL_SIZES_H
#define COSTMODEL_SIZES_H

#include "costmodel/model.h"

/* What a buffer of the plan holds. */
#define SIZE_KINDS(X)                                                                              \
    X(SIZE_WEIGHTS, "weights")     /* of a stage, in the run's dtype */                            \
    X(SIZE_GRADS, "gradients")     /* accumulators of a stage */                                   \
    X(SIZE_OPTIMIZER, "optimizer") /* master weights where dtype is not fp32, m, v */              \
    X(SIZE_BOUNDARY, "boundary")   /* one activation or gradient tensor between stages */          \
    X(SIZE_STASH, "stash")         /* what F keeps for B */                                        \
    X(SIZE_STASH_I, "stash for I") /* split backward: what F keeps for I alone, */                 \
    X(SIZE_STASH_W, "stash for W") /* what it keeps for W, */                                      \
    X(SIZE_WSTASH, "weight stash") /* what I adds for W */                                         \
    X(SIZE_KV, "keys and values")  /* of a slice; per layer K, then V: [b, slice_len, kv width] */ \
    X(SIZE_DKV, "dK and dV")       /* fp32, of a microbatch; per layer dK, dV: [b, L, kv width] */ \
    X(SIZE_SCRATCH, "scratch")     /* workspace of one pass, reused by all */                      \
    X(SIZE_FORWARD, "forward workspace") /* of a forward that keeps nothing */                     \
    X(SIZE_TOKENS, "tokens")             /* input ids and targets of one microbatch */             \
    X(SIZE_VOCAB_STATS, "softmax statistics")                                                      \
    X(SIZE_VOCAB_STASH, "vocabulary stash") /* local softmax kept from S to T */                   \
    X(SIZE_NORM, "norm partials")           /* per-tensor sums of squares of a stage */            \
    X(SIZE_TIED_GRADS,                                                                             \
      "tied gradients") /* gradient of the tied table, exchanged by the end stages */              \
    X(SIZE_NORM_BEFORE, "norm partials before") /* the same table, as the ranks before know it */  \
    X(SIZE_SNAPSHOT, "snapshot") /* weights, then optimizer, as they were before a step */         \
    X(SIZE_WEIGHT_PARTS, "shards of weights") /* of all tensor-parallel shards of a stage, one */  \
    X(SIZE_GRAD_PARTS, "shards of gradients") /* behind the other, for who holds it whole */

#define X(kind, name) kind,
typedef enum size_kind { SIZE_KINDS(X) SIZE_KIND_COUNT } size_kind;
#undef X

/* What a buffer of the kind holds, for tables and plans: "stash for I". */
const char *size_kind_name(size_kind kind);

/* Everything sizes depend on. Without a model (model == NULL) sizes are unit activations: the stash
 * of one microbatch on 1/P of the model is UNIT_ACTIVATION_BYTES, a chunk's 1/chunks of it, a
 * slice's its share of the tokens; everything else is 0. */
#define UNIT_ACTIVATION_BYTES ((int64_t)1 << 20)

typedef struct sizes {
    const model_desc *model;
    run_shape run;
    const stage_desc *stages; /* [n_stages]; NULL without a model */
    int32_t n_stages, chunks; /* chunks per rank and pipe, for unit activations */
    int32_t vocab_shards;     /* > 0: vocabulary layers sharded over so many ranks */
    bool vocab_fused;         /* S makes the input gradient, not T (Vocab-2) */
    int32_t twins;            /* copies of a stage that step in one replica (sched_copies); 0: 1 */
} sizes;

/* Rows of the tables that one shard holds: the vocabulary padded to a multiple of two for each
 * shard (arXiv 2411.05288, section 6.1). 0 without shards. */
int64_t sizes_vocab_rows(const sizes *z);
/* A stage by its number; where the vocabulary is sharded, number n_stages is a rank's shard. */
stage_desc sizes_stage(const sizes *z, int32_t stage);

/* Bytes of one buffer of `kind` for `stage`, holding `slice_len` tokens of each of the micro_batch
 * sequences after a prefix of `prefix` tokens (both ignored by what does not depend on them).
 * Errors: TD_EUSAGE when the product does not fit 63 bits. */
TD_MUST_USE td_status sizes_bytes(const sizes *z, size_kind kind, int32_t stage, int64_t slice_len,
                                  int64_t prefix, int64_t *bytes, td_err *err);

/* How many ranks share one optimizer state of a stage: with ZeRO-1 all copies of the stage,
 * replicas and twins alike (Rajbhandari et al. 2020, section 5.1); else 1. */
int64_t sizes_optimizer_shards(const sizes *z);

/* A run of a stage's gradient accumulators that one collective sums. Its copies' members own equal
 * pieces of it, in member order, the first ones an element more where that does not come out. */
typedef struct sync_part {
    int64_t first, elements; /* first: a multiple of SYNC_ALIGN */
    bool weights;            /* has weights too (a head's second accumulator has none) */
} sync_part;
enum { SYNC_PARTS_MAX = 3, SYNC_ALIGN = 16 };

/* The parts of a stage's gradients, ascending; returns how many. There is one, unless the optimizer
 * is sharded and the stage holds a tied table: then that is apart, so that the i-th members of the
 * first stage's and of the last stage's group own the same piece of it. */
int32_t stage_sync_parts(const sizes *z, int32_t stage, sync_part *out);

/* One parameter tensor of a stage; offsets in elements from the start of the stage's weights. The
 * same offsets serve weights, gradients and each optimizer moment. */
typedef struct param_tensor {
    char name[64];              /* Hugging Face's name: "h.3.attn.c_attn.weight" */
    int64_t layer;              /* -1: not of a layer */
    int32_t kind;               /* param_kind */
    int64_t rows, cols, offset; /* cols 1 for vectors; rows are output features: y = x W^T */
} param_tensor;

typedef enum param_kind {
    PARAM_TOKEN_EMBEDDING,
    PARAM_POSITION_EMBEDDING,
    PARAM_TYPE_EMBEDDING,
    PARAM_EMBEDDING_NORM_WEIGHT,
    PARAM_EMBEDDING_NORM_BIAS,
    PARAM_NORM1_WEIGHT,
    PARAM_NORM1_BIAS,
    PARAM_QKV_WEIGHT,
    PARAM_QKV_BIAS,
    PARAM_OUT_WEIGHT,
    PARAM_OUT_BIAS,
    PARAM_NORM2_WEIGHT,
    PARAM_NORM2_BIAS,
    PARAM_UP_WEIGHT,
    PARAM_UP_BIAS,
    PARAM_GATE_WEIGHT,
    PARAM_DOWN_WEIGHT,
    PARAM_DOWN_BIAS,
    PARAM_FINAL_NORM_WEIGHT,
    PARAM_FINAL_NORM_BIAS,
    PARAM_HEAD_WEIGHT,
    PARAM_HEAD_BIAS,
    PARAM_HEAD_DENSE_WEIGHT,
    PARAM_HEAD_DENSE_BIAS,
    PARAM_KIND_COUNT
} param_kind;

/* The parameters of a stage in model order: writes up to max, returns how many there are. A stage
 * with the head of a tied model lists its own copy of the table as PARAM_HEAD_WEIGHT, unless the
 * same stage holds the embedding. */
int64_t stage_params(const model_desc *m, const stage_desc *stage, param_tensor *out, int64_t max);
/* Elements of the norms of its layers and head, which lie one behind the other from *first on. */
int64_t stage_norm_elements(const model_desc *m, const stage_desc *stage, int64_t *first);
/* Their total number of elements, with each tensor's start rounded up to 16 elements. */
int64_t stage_param_elements(const model_desc *m, const stage_desc *stage);

/* --- what the executor needs beyond totals --- */

/* Elements of a stage's gradient accumulators: those of its parameters and, where one stage holds
 * both uses of a tied table, a second table behind them for the head's use (at element
 * stage_param_elements), so that each use sums on its own and the two are added once. */
int64_t stage_grad_elements(const model_desc *m, const stage_desc *stage);
/* Tensors of the whole model, a tied table once: the entries of the norm table. */
int64_t model_tensor_count(const model_desc *m);
/* The entry of a stage's first tensor in the norm table; the others follow. A tied head's copy of
 * the table is the last one of its stage and would be entry model_tensor_count: it is not counted.
 */
int64_t stage_first_tensor(const model_desc *m, const stage_desc *stage);

/* Where one layer's tensors lie, in bytes from the start of the layer's block; -1: not there. With
 * N = micro_batch * slice_len rows; with sequence parallelism y1, sum1, y2, the norms' statistics
 * and the levels between layers have a shard's N / tp. Statistics of norms and of the softmax are
 * fp32. */
typedef struct layer_layout {
    int64_t y1, mean1,
        rstd1;      /* input of the QKV product and its norm's statistics; BERT: y1 is -1 */
    int64_t qkv;    /* [N, (heads + 2 kv_heads) * head_dim], columns q, k, v; of a slice (fewer
                       tokens than the run's seq_len) just q: its k and v are in SIZE_KV */
    int64_t o, lse; /* attention's output [N, heads * head_dim], softmax [b, heads, s] */
    int64_t sum1;   /* residual stream after attention [N, hidden] */
    int64_t y2, mean2, rstd2; /* input of the MLP and its norm's statistics */
    int64_t up;    /* before the activation [N, ffn], gated: [N, 2 ffn], columns gate, up */
    int64_t act;   /* after it [N, ffn] */
    int64_t sum2;  /* BERT: input of the layer's second norm [N, hidden]; else -1 */
    int64_t dqkv;  /* gradients of q, k, v, where they have no room in qkv */
    int64_t bytes; /* of the block */
} layer_layout;

/* The parts of what passes of a stage keep for each other, by their lives; one with a whole
 * backward, three with a split one, in which I overwrites what only it needs with what W needs:
 * sum1, sum2, up, qkv and the levels behind layers with the gradients there, and BERT's head_dense
 * with its own. */
typedef enum stash_part {
    STASH_F_TO_B, /* SIZE_STASH */
    STASH_F_TO_I, /* SIZE_STASH_I */
    STASH_F_TO_W, /* SIZE_STASH_W */
    STASH_I_TO_W  /* SIZE_WSTASH */
} stash_part;

enum { SOFTMAX_HEAD_BYTES = 64 };

/* One part, in bytes from the start of its buffer; -1: not in this part. */
typedef struct stash_layout {
    int64_t embed_sum, embed_mean, embed_rstd; /* BERT's embedding norm; else -1 */
    int64_t inputs; /* residual stream at the borders of layers, input_stride apart */
    int64_t input_stride;
    int64_t first_level, n_levels; /* level l is the input of the stage's layer l; level 0 is the
                            INPUT buffer unless the stage embeds, the last level (n_layers) is the
                            OUTPUT buffer unless the stage has the head */
    int64_t layers;                /* first layer's block */
    int64_t layer_stride;          /* blocks lie so far apart */
    layer_layout kept;             /* F keeps none under full recomputation; no o and lse under
                                      selective */
    int64_t final_out, final_mean, final_rstd; /* final norm; BERT: of the head's transform */
    int64_t head_dense, head_act;              /* BERT's transform; else -1 */
    /* with tensor parallelism, what the shards join: SOFTMAX_HEAD_BYTES that begin with N and 0 as
     * int64_t, then statistics [3, N] fp32; else -1 */
    int64_t softmax;
    int64_t dlogits;   /* gradient of the logits [N, logits_ld]; -1 under full recomputation */
    int64_t logits_ld; /* elements */
    int64_t bytes;
} stash_layout;

/* Workspace of one pass, in bytes from the start of the SIZE_SCRATCH buffer. Both F and B use it.
 */
typedef struct scratch_layout {
    int64_t grad;   /* [N, hidden] gradient of the residual stream */
    int64_t wide;   /* [N, max(ffn (gated: 2 ffn), qkv columns)] */
    int64_t narrow; /* [N, max(hidden, heads * head_dim)] */
    int64_t act;    /* gated: [N, ffn] gradient after the activation; else -1 */
    int64_t delta;  /* [b, heads, s] fp32 */
    int64_t
        recomputed; /* a layer_layout block that holds what the stash lacks; -1: it lacks nothing */
    layer_layout layer; /* its layout, offsets from `recomputed`; -1 for what the stash holds */
    int64_t logits;     /* [logits_rows, logits_ld] under full recomputation; else -1 */
    int64_t logits_rows;
    int64_t losses;     /* [N] fp64, stages with a head; else -1 */
    int64_t gathered;   /* with sequence parallelism: [N, hidden] of all tokens, what shards bring
                           together or add up; else -1 */
    int64_t statistics; /* with tensor parallelism, of the softmax of a piece [3, logits_rows] fp32;
                           else -1 */
    int64_t tokens;     /* of a slice, stages with an end: its ids, then its targets [N]; else -1 */
    int64_t bytes;
} scratch_layout;

/* What S of a vocabulary shard gives to the barrier C1, in bytes from the start of the
 * SIZE_VOCAB_STATS buffer. C1 works on it as it is, so it says what it holds: rows and width, two
 * int64_t at its start. N rows. */
typedef struct vocab_layout {
    int64_t stats; /* [3, N] fp32 */
    int64_t parts; /* fused: the input gradient's two parts [2, N, hidden]; else -1 */
    int64_t ld;    /* of the softmax in the SIZE_VOCAB_STASH buffer, [N, ld] fp32 */
    int64_t bytes;
} vocab_layout;

/* Of a rank's shard, for slice_len tokens of each sequence. Errors: TD_EUSAGE without a model or on
 * overflow. */
TD_MUST_USE td_status vocab_layout_of(const sizes *z, int64_t slice_len, vocab_layout *out,
                                      td_err *err);

/* Layouts for one tensor-parallel shard. Errors: TD_EUSAGE without a model or on overflow. */
TD_MUST_USE td_status stash_layout_of(const sizes *z, int32_t stage, int64_t slice_len,
                                      stash_part part, stash_layout *out, td_err *err);
TD_MUST_USE td_status scratch_layout_of(const sizes *z, int32_t stage, int64_t slice_len,
                                        scratch_layout *out, td_err *err);

/* Workspace of a forward that keeps nothing for a backward, in bytes from the start of the
 * SIZE_FORWARD buffer: the levels lie over each other, and so do the blocks of the layers; the head
 * works in pieces. `kept` and `work` share the buffer and its end. */
TD_MUST_USE td_status forward_layout_of(const sizes *z, int32_t stage, int64_t slice_len,
                                        stash_layout *kept, scratch_layout *work, td_err *err);

/* Boundary tensors that W reads beside the stash: the stage's input, the gradient of its output. */
bool weight_pass_reads_input(const model_desc *m, const stage_desc *stage);
bool weight_pass_reads_doutput(const model_desc *m, const stage_desc *stage);

#endif
