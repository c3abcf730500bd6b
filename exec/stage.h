/* The passes of one stage, made out of kernels: plain functions on the buffers of a plan.
 * GPT-2-, Llama- and BERT-style layers, fp32, one tensor-parallel shard. */
#ifndef EXEC_STAGE_H
#define EXEC_STAGE_H

#include "base/base.h"
#include "costmodel/sizes.h"
#include "kernels/k_ops.h"

/* What one stage is, for passes over `seq` tokens of each sequence: read-only once opened, shared
 * by the ranks. N = micro_batch * seq rows; row b * seq + t is token prefix + t of sequence b. */
typedef struct stage_code {
    const model_desc *m;
    stage_desc at;
    recompute_mode recompute;
    int64_t batch, seq, rows;
    int64_t own_rows;      /* of the rows those of one shard's norms and residual stream: fewer with
                              sequence parallelism, where shard k has the k-th piece of them */
    int64_t element_bytes; /* of weights and activations; of type float * all the same: k_ops.h */
    int64_t vocab;         /* of the whole model: m is one shard's share of it */
    int64_t shards;        /* tensor-parallel degree */
    int64_t kv_copies;     /* of so many neighbouring shards each holds the same keys and values */
    int64_t whole; /* tokens of a sequence; more than seq where microbatches are cut in slices */
    bool split;    /* its backward is an input and a weight gradient */
    stash_layout stash, stash_w, wstash; /* split: F to I, F to W, I to W; else the first: F to B */
    scratch_layout scratch;
    int64_t (*layer)[PARAM_KIND_COUNT]; /* [n_layers] offset of each tensor in elements, or -1 */
    int64_t own[PARAM_KIND_COUNT];      /* tensors outside layers */
    param_tensor *params;               /* [n_params] in model order */
    int64_t n_params, elements, grad_elements;
    int64_t first_tensor;    /* entry of params[0] in the norm table */
    int64_t tensors_between; /* a shard of the tables: entries between those of its first two */
    const float *rope;       /* [whole, head_dim] or NULL; shared */
} stage_code;

/* Opens the stages of a model, [z->n_stages], for whole sequences of z->run.seq_len tokens.
 * TD_EUSAGE names what is not executed yet. */
TD_MUST_USE td_status stage_open(const sizes *z, k_ctx *ctx, td_arena *a, stage_code **out,
                                 td_err *err);

/* The same stage for slices of `seq` tokens, for whole or split backwards; shares the tables of
 * `whole`. */
TD_MUST_USE td_status stage_open_as(const sizes *z, int32_t stage, const stage_code *whole,
                                    int64_t seq, bool split, stage_code *out, td_err *err);

/* The same stage for forwards that keep nothing: `scratch` is their whole workspace, and the stash
 * lies in it. */
TD_MUST_USE td_status stage_open_forward(const sizes *z, int32_t stage, const stage_code *whole,
                                         int64_t seq, stage_code *out, td_err *err);

static inline bool stage_is_sliced(const stage_code *c) { return c->seq < c->whole; }

/* The keys and values of one slice: per layer K, then V, [batch, len, kv_heads * head_dim]. */
typedef struct stage_kv {
    float *at;
    int64_t len;
} stage_kv;

/* One segment of a pass that is cut where tensor-parallel shards wait for each other
 * (costmodel/segments.h): a pass walks over all of itself and does what lies between two cuts. */
typedef struct stage_cut {
    int32_t segment; /* to be done */
    int32_t at;      /* how many cuts the walk is behind */
} stage_cut;

/* The buffers of one pass; those that the stage's place leaves out are NULL. */
typedef struct stage_args {
    /* Of [N, hidden]. Where the tables lie in shards, the first stage's input is the tokens' rows
     * and the last one's output is what the head's table is applied to. */
    const float *input;   /* unless the stage embeds */
    float *output;        /* unless the stage has the head */
    const float *doutput; /* gradient of output */
    float *dinput;        /* gradient of input */
    const float *weights;
    float *grads; /* += */
    char *stash, *stash_w, *wstash, *scratch;
    const int32_t *ids, *targets; /* [batch, whole]; target -1 is not counted */
    int64_t prefix;               /* tokens before the slice */
    const stage_kv *kv;           /* [n_kv] of the slices up to the pass's own; none when whole */
    k_keys *keys;                 /* [n_kv] workspace */
    long n_kv;
    float *dkv; /* of the microbatch: per layer dK, then dV, [batch, whole, kv_heads * head_dim] */
    float grad_scale;  /* the loss that is differentiated is grad_scale * mean loss */
    double loss;       /* out: of the pass's rows, divided by the microbatch's counted targets */
    double *loss_at;   /* where it goes instead, if not NULL */
    double row_weight; /* 1 / the microbatch's counted targets; 0: the stage counts */
    int32_t shard;     /* of how many the stage's code says */
    stage_cut *cut;    /* NULL: the pass is not cut */
    const int32_t *row_ids, *row_targets; /* set by the stage: of the pass's rows [N] */
} stage_args;

void stage_forward(k_ctx *ctx, const stage_code *c, stage_args *p);
/* Input and weight gradients together: what the next two do, bit for bit. */
void stage_backward(k_ctx *ctx, const stage_code *c, stage_args *p);
/* Split backward: the input's gradient and those of norms and embeddings; then, any time later,
 * those of the products' weights. */
void stage_input_gradient(k_ctx *ctx, const stage_code *c, stage_args *p);
void stage_weight_gradient(k_ctx *ctx, const stage_code *c, const stage_args *p);

/* The entry of params[i] in the norm table. */
int64_t stage_tensor_entry(const stage_code *c, int64_t i);

/* Where the head's use of the token table accumulates: in a stage that holds both uses of a tied
 * table behind the parameters, else in the stage's own copy. Elements from the start of grads. */
int64_t stage_head_grad(const stage_code *c);
/* The offset of the table that first and last stage of a tied model share; -1 when there is none.
 */
int64_t stage_tied_offset(const stage_code *c);

#endif
