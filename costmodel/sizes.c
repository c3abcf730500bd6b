/* Exact sizes in bytes: the layouts that the executor uses, summed up.
 *
 * Activations that F keeps, per layer and in elements of the run's dtype per token: input of the
 * layer 1h, of the QKV product 1h, q k v 3h, attention output 1h, residual after attention 1h,
 * input of the MLP 1h, before and after the activation 4h + 4h: 16h, in 2-byte types 32 s b h
 * bytes. That is the 34 s b h of Korthikanti et al. (arXiv 2205.05198, section 4.1) without the two
 * dropout masks (2 s b h), which are not used here; their 5 a s / h term (scores, softmax, its
 * mask) is absent because attention never stores scores: it keeps one fp32 number per head and
 * token. */
#include "costmodel/sizes.h"

#include <string.h>

#define X(kind, name) name,
static const char *const kind_names[] = {SIZE_KINDS(X)};
#undef X

const char *size_kind_name(size_kind kind)
{
    return kind < SIZE_KIND_COUNT ? kind_names[kind] : "unknown";
}

/* --- saturating arithmetic: what does not fit becomes HUGE and is refused at the end --- */

enum { REGION_ALIGN = 64 };
#define HUGE_BYTES (INT64_MAX / 4)

static int64_t mul(int64_t a, int64_t b)
{
    int64_t r = 0;
    return __builtin_mul_overflow(a, b, &r) || r > HUGE_BYTES ? HUGE_BYTES : r;
}

static int64_t plus(int64_t a, int64_t b)
{
    return a >= HUGE_BYTES || b >= HUGE_BYTES || a + b >= HUGE_BYTES ? HUGE_BYTES : a + b;
}

static int64_t per(int64_t n, int64_t parts) { return parts <= 1 ? n : (n + parts - 1) / parts; }

/* Puts a region of `bytes` behind *end and returns where it starts. */
static int64_t region(int64_t *end, int64_t bytes)
{
    const int64_t at = *end;
    *end = plus(at, plus(bytes, REGION_ALIGN - 1) / REGION_ALIGN * REGION_ALIGN);
    return at;
}

/* --- layouts --- */

/* Row counts and widths of one tensor-parallel shard. */
typedef struct dims {
    const model_desc *m;
    const stage_desc *stage;
    bool bert;
    int64_t e;                 /* bytes of an element */
    int64_t rows, shared_rows; /* shared_rows: of what sequence parallelism divides */
    int64_t heads, qkv, attn, ffn, up, vocab_ld;
    int64_t kept_qkv; /* a slice keeps its keys and values in SIZE_KV buffers: of qkv, q is left */
} dims;

static td_status check_stage(const sizes *z, int32_t stage, td_err *err)
{
    if (z->model == NULL) return td_fail(err, TD_EUSAGE, "layouts: there is no model");
    if (stage < 0 || stage >= z->n_stages)
        return td_fail(err, TD_EUSAGE, "stage %d: there are %d stages", stage, z->n_stages);
    return TD_OK;
}

/* Requires what check_stage checks. */
static dims dims_of(const sizes *z, int32_t stage, int64_t slice_len)
{
    const model_desc *const m = z->model;
    const int64_t tp = z->run.tp < 1 ? 1 : z->run.tp;
    const int64_t shards = z->vocab_shards > 1 ? z->vocab_shards : tp;
    dims d = {.m = m, .stage = &z->stages[stage], .bert = m->family == MODEL_BERT};
    d.e = data_type_bytes(z->run.dtype);
    d.rows = mul(z->run.micro_batch, slice_len);
    d.shared_rows = z->run.sequence_parallel ? per(d.rows, tp) : d.rows;
    d.heads = per(m->n_heads, tp);
    d.attn = mul(d.heads, m->head_dim);
    d.qkv = plus(d.attn, mul(mul(2, per(m->n_kv_heads, tp)), m->head_dim));
    d.kept_qkv = slice_len < z->run.seq_len ? d.attn : d.qkv;
    d.ffn = per(m->ffn, tp);
    d.up = mul(m->gated ? 2 : 1, d.ffn);
    d.vocab_ld = plus(per(m->vocab, shards), 15) / 16 * 16;
    return d;
}

static int64_t tensor(const dims *d, int64_t *end, int64_t width)
{
    return region(end, mul(mul(d->rows, width), d->e));
}

static int64_t hidden_tensor(const dims *d, int64_t *end)
{
    return region(end, mul(mul(d->shared_rows, d->m->hidden), d->e));
}

static int64_t row_stats(const dims *d, int64_t *end) { return region(end, mul(d->rows, 4)); }

/* attention: o and lse are in the block; rest: everything else is. */
static layer_layout layer_block(const dims *d, bool attention, bool rest)
{
    layer_layout l;
    memset(&l, 0xff, sizeof l); /* all -1 */
    l.bytes = 0;
    int64_t *const end = &l.bytes;
    if (rest) {
        if (!d->bert) l.y1 = hidden_tensor(d, end);
        if (!d->m->rms_norm) l.mean1 = row_stats(d, end);
        l.rstd1 = row_stats(d, end);
        l.qkv = tensor(d, end, d->kept_qkv);
    }
    if (attention) {
        l.o = tensor(d, end, d->attn);
        l.lse = region(end, mul(mul(d->rows, d->heads), 4));
    }
    if (rest) {
        l.sum1 = hidden_tensor(d, end);
        l.y2 = hidden_tensor(d, end);
        if (!d->m->rms_norm) l.mean2 = row_stats(d, end);
        l.rstd2 = row_stats(d, end);
        l.up = tensor(d, end, d->up);
        l.act = tensor(d, end, d->ffn);
        if (d->bert) l.sum2 = hidden_tensor(d, end);
    }
    return l;
}

static void head_stash(const dims *d, bool keep_logits, stash_layout *s)
{
    int64_t *const end = &s->bytes;
    if (d->bert) {
        s->head_dense = hidden_tensor(d, end);
        s->head_act = hidden_tensor(d, end);
    }
    s->final_out = hidden_tensor(d, end);
    if (!d->m->rms_norm) s->final_mean = row_stats(d, end);
    s->final_rstd = row_stats(d, end);
    if (keep_logits) s->dlogits = tensor(d, end, d->vocab_ld);
}

td_status stash_layout_of(const sizes *z, int32_t stage, int64_t slice_len, stash_layout *out,
                          td_err *err)
{
    TD_TRY(check_stage(z, stage, err));
    const dims d = dims_of(z, stage, slice_len);
    const recompute_mode mode = z->run.recompute;
    stash_layout s;
    memset(&s, 0xff, sizeof s);
    s.bytes = 0;
    if (d.stage->embedding && d.bert) {
        s.embed_sum = hidden_tensor(&d, &s.bytes);
        s.embed_mean = row_stats(&d, &s.bytes);
        s.embed_rstd = row_stats(&d, &s.bytes);
    }
    s.first_level = d.stage->embedding ? 0 : 1;
    const int64_t end_level = d.stage->n_layers + (d.stage->head ? 1 : 0);
    s.n_levels = end_level > s.first_level ? end_level - s.first_level : 0;
    s.inputs = s.bytes;
    (void)hidden_tensor(&d, &s.bytes);
    s.input_stride = s.bytes - s.inputs;
    s.bytes = plus(s.inputs, mul(s.n_levels, s.input_stride));
    s.layers = s.bytes;
    s.kept = layer_block(&d, mode == RECOMPUTE_NONE, mode != RECOMPUTE_FULL);
    s.bytes = plus(s.bytes, mul(d.stage->n_layers, s.kept.bytes));
    s.logits_ld = d.vocab_ld;
    if (d.stage->head) head_stash(&d, mode != RECOMPUTE_FULL, &s);
    if (s.bytes >= HUGE_BYTES) return td_fail(err, TD_EUSAGE, "stash: does not fit 63 bits");
    *out = s;
    return TD_OK;
}

td_status scratch_layout_of(const sizes *z, int32_t stage, int64_t slice_len, scratch_layout *out,
                            td_err *err)
{
    enum { LOGITS_ROWS = 256 }; /* enough rows that a product runs at full speed */
    TD_TRY(check_stage(z, stage, err));
    const dims d = dims_of(z, stage, slice_len);
    const recompute_mode mode = z->run.recompute;
    scratch_layout s;
    memset(&s, 0xff, sizeof s);
    s.bytes = 0;
    s.grad = tensor(&d, &s.bytes, d.m->hidden);
    s.wide = tensor(&d, &s.bytes, d.up > d.qkv ? d.up : d.qkv);
    s.narrow = tensor(&d, &s.bytes, d.attn > d.m->hidden ? d.attn : d.m->hidden);
    if (d.m->gated) s.act = tensor(&d, &s.bytes, d.ffn);
    s.delta = region(&s.bytes, mul(mul(d.rows, d.heads), 4));
    s.layer = layer_block(&d, mode != RECOMPUTE_NONE, mode == RECOMPUTE_FULL);
    if (mode != RECOMPUTE_NONE) s.recomputed = region(&s.bytes, s.layer.bytes);
    if (d.stage->head) {
        s.logits_rows = d.rows < LOGITS_ROWS ? d.rows : LOGITS_ROWS;
        if (mode == RECOMPUTE_FULL)
            s.logits = region(&s.bytes, mul(mul(s.logits_rows, d.vocab_ld), d.e));
        s.losses = region(&s.bytes, mul(d.rows, 8));
    }
    if (slice_len < z->run.seq_len && (d.stage->embedding || d.stage->head))
        s.tokens = region(&s.bytes, mul(d.rows, 2 * (int64_t)sizeof(int32_t)));
    if (s.bytes >= HUGE_BYTES) return td_fail(err, TD_EUSAGE, "scratch: does not fit 63 bits");
    *out = s;
    return TD_OK;
}

/* --- totals --- */

/* Parameters of one shard: tensor parallelism divides matrices and the biases of divided outputs;
 * norms and the biases added after a reduction are whole on every shard. */
static int64_t shard_elements(const sizes *z, const stage_desc *stage, bool grads)
{
    const model_desc *const m = z->model;
    const int64_t tp = z->run.tp < 1 ? 1 : z->run.tp;
    const int64_t all = grads ? stage_grad_elements(m, stage) : stage_param_elements(m, stage);
    if (tp == 1 && z->vocab_shards <= 1) return all;
    const int64_t shards = z->vocab_shards > 1 ? z->vocab_shards : tp;
    const int64_t h = m->hidden, c = plus(h, 15) / 16 * 16;
    const int64_t table = mul(per(m->vocab, shards), h);
    const int64_t attn = mul(m->n_heads, m->head_dim);
    const int64_t qkv = plus(attn, mul(2 * m->n_kv_heads, m->head_dim));
    const int64_t norm = m->rms_norm ? c : 2 * c;
    int64_t layer = mul(2, norm);
    layer = plus(layer, per(mul(qkv, h + (m->qkv_bias ? 1 : 0)), tp));
    layer = plus(layer, plus(per(mul(attn, h), tp), m->out_bias ? c : 0));
    layer = plus(layer, per(mul(m->gated ? 3 : 2, mul(m->ffn, h)), tp));
    if (m->mlp_bias) layer = plus(layer, plus(per(m->ffn, tp), c));
    int64_t n = mul(stage->n_layers, layer);
    if (stage->embedding) {
        n = plus(n, table);
        if (m->learned_positions) n = plus(n, mul(m->max_positions, h));
        if (m->family == MODEL_BERT) n = plus(n, 2 * c + norm);
    }
    if (stage->head) {
        n = plus(n, norm);
        if (m->family == MODEL_BERT) n = plus(n, plus(mul(h, h) + c, per(m->vocab, shards)));
        if (!(m->tied && stage->embedding) || grads) n = plus(n, table);
    }
    return plus(n, 15) / 16 * 16;
}

int64_t sizes_optimizer_shards(const sizes *z)
{
    const int64_t twins = z->twins < 1 ? 1 : z->twins, dp = z->run.dp < 1 ? 1 : z->run.dp;
    return z->run.zero1 ? mul(twins, dp) : 1;
}

int32_t stage_sync_parts(const sizes *z, int32_t stage, sync_part *out)
{
    const stage_desc *const s = &z->stages[stage];
    const int64_t all = shard_elements(z, s, true), weights = shard_elements(z, s, false);
    const int64_t table =
        plus(per(mul(z->model->vocab, z->model->hidden), z->run.tp), SYNC_ALIGN - 1) / SYNC_ALIGN *
        SYNC_ALIGN;
    const bool sharded = sizes_optimizer_shards(z) > 1;
    const bool apart = sharded && z->model->tied && z->vocab_shards <= 1;
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

static int64_t optimizer_bytes(const sizes *z, const stage_desc *stage)
{
    const int64_t per_element = z->run.dtype == TYPE_FP32 ? 8 : 12; /* m, v; fp32 master weights */
    const int64_t shards = sizes_optimizer_shards(z);
    sync_part parts[SYNC_PARTS_MAX];
    int64_t n = 0;
    if (shards == 1) return mul(shard_elements(z, stage, false), per_element);
    for (int32_t i = 0, end = stage_sync_parts(z, (int32_t)(stage - z->stages), parts); i < end;
         i++)
        if (parts[i].weights) n = plus(n, per(parts[i].elements, shards));
    return mul(n, per_element);
}

/* What I keeps for W: the gradient of each matrix product's output. */
static int64_t wstash_bytes(const dims *d)
{
    int64_t layer = 0;
    (void)hidden_tensor(d, &layer);  /* of the MLP's output, */
    (void)tensor(d, &layer, d->up);  /* before its activation, */
    (void)hidden_tensor(d, &layer);  /* of attention's output projection, */
    (void)tensor(d, &layer, d->qkv); /* of q, k, v, */
    (void)hidden_tensor(d, &layer);  /* after each norm: their weights' gradients */
    (void)hidden_tensor(d, &layer);
    int64_t n = mul(d->stage->n_layers, layer);
    if (d->stage->embedding) (void)hidden_tensor(d, &n);
    if (d->stage->head) (void)hidden_tensor(d, &n);
    return n;
}

static td_status unit_bytes(const sizes *z, size_kind kind, int64_t slice_len, int64_t *bytes)
{
    *bytes = 0;
    if (kind != SIZE_STASH) return TD_OK;
    const int64_t chunks = z->chunks < 1 ? 1 : z->chunks;
    const int64_t tokens = z->run.seq_len < 1 ? slice_len : z->run.seq_len;
    *bytes = tokens < 1 ? 0 : mul(UNIT_ACTIVATION_BYTES, slice_len) / (chunks * tokens);
    return TD_OK;
}

static td_status activation_bytes(const sizes *z, size_kind kind, int32_t stage, int64_t slice_len,
                                  int64_t prefix, int64_t *n, td_err *err)
{
    TD_TRY(check_stage(z, stage, err));
    const dims d = dims_of(z, stage, slice_len);
    const int64_t kv = mul(d.qkv - d.attn, d.stage->n_layers);
    switch (kind) {
    case SIZE_BOUNDARY: *n = mul(mul(d.shared_rows, d.m->hidden), d.e); return TD_OK;
    case SIZE_STASH: {
        stash_layout s;
        TD_TRY(stash_layout_of(z, stage, slice_len, &s, err));
        *n = s.bytes;
        return TD_OK;
    }
    case SIZE_SCRATCH: {
        scratch_layout s;
        TD_TRY(scratch_layout_of(z, stage, slice_len, &s, err));
        *n = s.bytes;
        return TD_OK;
    }
    case SIZE_WSTASH: *n = wstash_bytes(&d); return TD_OK;
    case SIZE_KV: *n = mul(mul(d.rows, kv), d.e); return TD_OK;
    case SIZE_DKV:
        *n = mul(mul(mul(z->run.micro_batch, plus(prefix, slice_len)), kv), 4);
        return TD_OK;
    case SIZE_TOKENS: *n = mul(d.rows, 2 * (int64_t)sizeof(int32_t)); return TD_OK;
    case SIZE_VOCAB_STATS: *n = mul(d.rows, 3 * 4); return TD_OK; /* max, sum, target's logit */
    case SIZE_VOCAB_STASH: *n = mul(mul(d.rows, d.vocab_ld), d.e); return TD_OK;
    default: *n = 0; return TD_OK;
    }
}

td_status sizes_bytes(const sizes *z, size_kind kind, int32_t stage, int64_t slice_len,
                      int64_t prefix, int64_t *bytes, td_err *err)
{
    if (z->model == NULL) return unit_bytes(z, kind, slice_len, bytes);
    if (stage < 0 || stage >= z->n_stages)
        return td_fail(err, TD_EUSAGE, "stage %d: there are %d stages", stage, z->n_stages);
    const stage_desc *const s = &z->stages[stage];
    int64_t n = 0;
    switch (kind) {
    case SIZE_WEIGHTS: n = mul(shard_elements(z, s, false), data_type_bytes(z->run.dtype)); break;
    case SIZE_GRADS: n = mul(shard_elements(z, s, true), data_type_bytes(z->run.grad_dtype)); break;
    case SIZE_OPTIMIZER: n = optimizer_bytes(z, s); break;
    case SIZE_NORM: n = mul(model_tensor_count(z->model), (int64_t)sizeof(double)); break;
    case SIZE_TIED_GRADS:
        n = z->model->tied
                ? mul(mul(z->model->vocab, z->model->hidden), data_type_bytes(z->run.grad_dtype))
                : 0;
        n = per(n, z->run.tp);
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
