/* Exact sizes in bytes: the layouts that the executor uses, summed up.
 *
 * Activations that F keeps, per layer and in elements of the run's dtype per token: input of the
 * layer 1h, of the QKV product 1h, q k v 3h, attention output 1h, residual after attention 1h,
 * input of the MLP 1h, before and after the activation 4h + 4h: 16h, in 2-byte types 32 s b h
 * bytes. That is the 34 s b h of Korthikanti et al. (arXiv 2205.05198, section 4.1) without the two
 * dropout masks (2 s b h), which are not used here; their 5 a s / h term (scores, softmax, its
 * mask) is absent because attention never stores scores: it keeps one fp32 number per head and
 * token. */
#include "costmodel/sizes_inside.h"

#define X(kind, name) name,
static const char *const kind_names[] = {SIZE_KINDS(X)};
#undef X

const char *size_kind_name(size_kind kind)
{
    return kind < SIZE_KIND_COUNT ? kind_names[kind] : "unknown";
}

int64_t sizes_vocab_rows(const sizes *z)
{
    if (z->vocab_shards < 1 || z->model == NULL) return 0;
    const int64_t shards = mul(z->vocab_shards, z->run.tp < 1 ? 1 : z->run.tp);
    return mul(2, per(z->model->vocab, mul(2, shards)));
}

stage_desc sizes_stage(const sizes *z, int32_t stage)
{
    if (stage < z->n_stages) return z->stages[stage];
    return (stage_desc){
        .embedding = true, .head = true, .vocab_rows = sizes_vocab_rows(z), .shard = true};
}

/* --- totals --- */

/* Parameters of one shard: tensor parallelism divides matrices and the biases of divided outputs;
 * norms and the biases added after a reduction are whole on every shard. */
static int64_t shard_elements(const sizes *z, const stage_desc *stage, bool grads)
{
    const model_desc m = model_shard(z->model, z->run.tp);
    return grads ? stage_grad_elements(&m, stage) : stage_param_elements(&m, stage);
}

int64_t sizes_optimizer_shards(const sizes *z)
{
    const int64_t twins = z->twins < 1 ? 1 : z->twins, dp = z->run.dp < 1 ? 1 : z->run.dp;
    return z->run.zero1 ? mul(twins, dp) : 1;
}

int32_t stage_sync_parts(const sizes *z, int32_t stage, sync_part *out)
{
    const stage_desc desc = sizes_stage(z, stage), *const s = &desc;
    const int64_t all = shard_elements(z, s, true), weights = shard_elements(z, s, false);
    const int64_t table =
        plus(mul(per(z->model->vocab, z->run.tp), z->model->hidden), SYNC_ALIGN - 1) / SYNC_ALIGN *
        SYNC_ALIGN;
    const bool sharded = sizes_optimizer_shards(z) > 1;
    const bool apart = sharded && z->model->tied && z->vocab_shards < 1;
    /* the table is the first tensor of the first stage, and the last one of the last stage */
    const int64_t begin = apart && s->embedding ? table : 0;
    const int64_t end = apart && s->head ? all - table : sharded ? weights : all;
    const sync_part parts[SYNC_PARTS_MAX] = {
        {0, begin, true}, {begin, end - begin, true}, {end, all - end, end < weights}};
    int32_t n = 0;
    for (int32_t i = 0; i < SYNC_PARTS_MAX; i++)
        if (parts[i].elements > 0) out[n++] = parts[i];
    return n;
}

static int64_t optimizer_bytes(const sizes *z, int32_t stage)
{
    const int64_t per_element = z->run.dtype == TYPE_FP32 ? 8 : 12; /* m, v; fp32 master weights */
    const int64_t shards = sizes_optimizer_shards(z);
    sync_part parts[SYNC_PARTS_MAX];
    int64_t n = 0;
    const stage_desc desc = sizes_stage(z, stage);
    if (shards == 1) return mul(shard_elements(z, &desc, false), per_element);
    for (int32_t i = 0, end = stage_sync_parts(z, stage, parts); i < end; i++)
        if (parts[i].weights) n = plus(n, per(parts[i].elements, shards));
    return mul(n, per_element);
}

static td_status unit_bytes(const sizes *z, size_kind kind, int64_t slice_len, int64_t *bytes)
{
    *bytes = 0;
    if (kind != SIZE_STASH && kind != SIZE_STASH_W) return TD_OK;
    const int64_t chunks = z->chunks < 1 ? 1 : z->chunks;
    const int64_t tokens = z->run.seq_len < 1 ? slice_len : z->run.seq_len;
    *bytes = tokens < 1 ? 0 : mul(UNIT_ACTIVATION_BYTES, slice_len) / (chunks * tokens);
    return TD_OK;
}

static td_status stash_bytes(const sizes *z, int32_t stage, int64_t slice_len, stash_part part,
                             int64_t *n, td_err *err)
{
    stash_layout s;
    TD_TRY(stash_layout_of(z, stage, slice_len, part, &s, err));
    *n = s.bytes;
    return TD_OK;
}

static td_status activation_bytes(const sizes *z, size_kind kind, int32_t stage, int64_t slice_len,
                                  int64_t prefix, int64_t *n, td_err *err)
{
    shard_dims d;
    TD_TRY(sizes_dims(z, stage, slice_len, &d, err));
    const int64_t kv = mul(d.qkv - d.attn, d.stage->n_layers);
    switch (kind) {
    case SIZE_BOUNDARY: *n = mul(mul(d.shared_rows, d.m->hidden), d.e); return TD_OK;
    case SIZE_STASH: return stash_bytes(z, stage, slice_len, STASH_F_TO_B, n, err);
    case SIZE_STASH_I: return stash_bytes(z, stage, slice_len, STASH_F_TO_I, n, err);
    case SIZE_STASH_W: return stash_bytes(z, stage, slice_len, STASH_F_TO_W, n, err);
    case SIZE_WSTASH: return stash_bytes(z, stage, slice_len, STASH_I_TO_W, n, err);
    case SIZE_SCRATCH: {
        scratch_layout s;
        TD_TRY(scratch_layout_of(z, stage, slice_len, &s, err));
        *n = s.bytes;
        return TD_OK;
    }
    case SIZE_FORWARD: {
        stash_layout kept;
        scratch_layout work;
        TD_TRY(forward_layout_of(z, stage, slice_len, &kept, &work, err));
        *n = work.bytes;
        return TD_OK;
    }
    case SIZE_KV: *n = mul(mul(d.rows, kv), d.e); return TD_OK;
    case SIZE_DKV:
        *n = mul(mul(mul(z->run.micro_batch, plus(prefix, slice_len)), kv), 4);
        return TD_OK;
    case SIZE_TOKENS: *n = mul(d.rows, 2 * (int64_t)sizeof(int32_t)); return TD_OK;
    case SIZE_VOCAB_STATS: {
        vocab_layout v;
        TD_TRY(vocab_layout_of(z, slice_len, &v, err));
        *n = v.bytes;
        return TD_OK;
    }
    case SIZE_VOCAB_STASH: *n = mul(mul(d.rows, d.vocab_ld), 4); return TD_OK; /* fp32 softmax */
    default: *n = 0; return TD_OK;
    }
}

td_status sizes_bytes(const sizes *z, size_kind kind, int32_t stage, int64_t slice_len,
                      int64_t prefix, int64_t *bytes, td_err *err)
{
    if (z->model == NULL) return unit_bytes(z, kind, slice_len, bytes);
    if (stage < 0 || stage >= z->n_stages + (z->vocab_shards > 0 ? 1 : 0))
        return td_fail(err, TD_EUSAGE, "stage %d: there are %d stages", stage, z->n_stages);
    const stage_desc desc = sizes_stage(z, stage), *const s = &desc;
    const int64_t shards = z->run.tp < 1 ? 1 : z->run.tp;
    int64_t n = 0;
    switch (kind) {
    case SIZE_WEIGHTS: n = mul(shard_elements(z, s, false), data_type_bytes(z->run.dtype)); break;
    case SIZE_GRADS: n = mul(shard_elements(z, s, true), data_type_bytes(z->run.grad_dtype)); break;
    case SIZE_WEIGHT_PARTS:
        n = mul(shard_elements(z, s, false), mul(shards, data_type_bytes(z->run.dtype)));
        break;
    case SIZE_GRAD_PARTS:
        n = mul(shard_elements(z, s, true), mul(shards, data_type_bytes(z->run.grad_dtype)));
        break;
    case SIZE_OPTIMIZER: n = optimizer_bytes(z, stage); break;
    case SIZE_SNAPSHOT:
        n = plus(mul(shard_elements(z, s, false), data_type_bytes(z->run.dtype)),
                 optimizer_bytes(z, stage));
        break;
    case SIZE_NORM:
    case SIZE_NORM_BEFORE: n = mul(model_tensor_count(z->model), (int64_t)sizeof(double)); break;
    case SIZE_TIED_GRADS:
        n = z->model->tied ? mul(mul(per(z->model->vocab, z->run.tp), z->model->hidden),
                                 data_type_bytes(z->run.grad_dtype))
                           : 0;
        break;
    default: TD_TRY(activation_bytes(z, kind, stage, slice_len, prefix, &n, err)); break;
    }
    if (n >= HUGE_BYTES)
        return td_fail(err, TD_EUSAGE,
                       "%s of stage %d: the size does not fit 63 bits; "
                       "check micro-batch, sequence length and the model's dimensions",
                       size_kind_name(kind), stage);
    *bytes = n;
    return TD_OK;
}
