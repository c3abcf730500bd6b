/* Where the tensors lie that passes keep for each other, and those that they work with.
 *
 * A split backward writes gradients over what only I needs, as large as they are: that of
 * attention's sum over the sum, that before the activation over its input, those of q, k, v over
 * these, that of a layer's output over the residual stream there. So W finds, where F made room,
 * the inputs of the products and the gradients of their outputs: about as much as F keeps (Qi et
 * al. 2024, arXiv 2401.10241, table 1: M_W = 32 of M_B = 34 in units of s b h). */
#include "costmodel/sizes_inside.h"

#include <string.h>

enum { REGION_ALIGN = 64 };

/* Puts a region of `bytes` behind *end and returns where it starts. */
static int64_t region(int64_t *end, int64_t bytes)
{
    const int64_t at = *end;
    *end = plus(at, plus(bytes, REGION_ALIGN - 1) / REGION_ALIGN * REGION_ALIGN);
    return at;
}

td_status sizes_dims(const sizes *z, int32_t stage, int64_t slice_len, shard_dims *out, td_err *err)
{
    const model_desc *const m = z->model;
    if (m == NULL) return td_fail(err, TD_EUSAGE, "layouts: there is no model");
    if (stage < 0 || stage >= z->n_stages)
        return td_fail(err, TD_EUSAGE, "stage %d: there are %d stages", stage, z->n_stages);
    const int64_t tp = z->run.tp < 1 ? 1 : z->run.tp;
    const int64_t words = z->vocab_shards > 0 ? sizes_vocab_rows(z) : per(m->vocab, tp);
    shard_dims d = {.m = m, .stage = &z->stages[stage], .bert = m->family == MODEL_BERT};
    d.tp = tp;
    d.e = data_type_bytes(z->run.dtype);
    d.tp = tp;
    d.rows = mul(z->run.micro_batch, slice_len);
    d.shared_rows = z->run.sequence_parallel ? per(d.rows, tp) : d.rows;
    d.heads = per(m->n_heads, tp);
    d.attn = mul(d.heads, m->head_dim);
    d.qkv = plus(d.attn, mul(mul(2, per(m->n_kv_heads, tp)), m->head_dim));
    d.sliced = slice_len < z->run.seq_len;
    d.ffn = per(m->ffn, tp);
    d.up = mul(m->gated ? 2 : 1, d.ffn);
    d.vocab_ld = plus(words, 15) / 16 * 16;
    *out = d;
    return TD_OK;
}

static int64_t tensor(const shard_dims *d, int64_t *end, int64_t width)
{
    return region(end, mul(mul(d->rows, width), d->e));
}

static int64_t hidden_tensor(const shard_dims *d, int64_t *end)
{
    return region(end, mul(mul(d->shared_rows, d->m->hidden), d->e));
}

static int64_t row_stats(const shard_dims *d, int64_t *end)
{
    return region(end, mul(d->shared_rows, 4));
}

/* All tokens of what sequence parallelism divides. */
static int64_t gathered(const shard_dims *d, int64_t *end)
{
    return d->shared_rows < d->rows ? tensor(d, end, d->m->hidden) : -1;
}

/* --- which tensor where --- */

enum {
    T_Y1 = 1,
    T_STATS = 2,
    T_QKV = 4,
    T_O = 8,
    T_LSE = 16,
    T_SUM1 = 32,
    T_Y2 = 64,
    T_UP = 128,
    T_ACT = 256,
    T_SUM2 = 512,
    T_FORWARD = 1023, /* all that a layer's forward makes */
    T_DQKV = 1024
};

/* What backward has to make again. */
static unsigned recomputed(recompute_mode mode)
{
    if (mode == RECOMPUTE_NONE) return 0;
    return mode == RECOMPUTE_FULL ? T_FORWARD : T_O | T_LSE;
}

/* What W reads, or room for a gradient that it reads. A slice's q has no room for those of k and
 * v. */
static unsigned needed_by_w(const shard_dims *d)
{
    const unsigned all = T_Y1 | T_O | T_SUM1 | T_Y2 | T_UP | T_ACT | T_SUM2;
    return d->sliced ? all | T_DQKV : all | T_QKV;
}

static unsigned part_of_layer(const shard_dims *d, recompute_mode mode, stash_part part)
{
    const unsigned kept = T_FORWARD & ~recomputed(mode), w = needed_by_w(d);
    switch (part) {
    case STASH_F_TO_I: return kept & ~w;
    case STASH_F_TO_W: return kept & w;
    case STASH_I_TO_W: return w & ~kept;
    default: return kept;
    }
}

static layer_layout layer_block(const shard_dims *d, unsigned set)
{
    layer_layout l;
    memset(&l, 0xff, sizeof l); /* all -1 */
    l.bytes = 0;
    int64_t *const end = &l.bytes;
    const bool means = !d->m->rms_norm && (set & T_STATS) != 0;
    if ((set & T_Y1) && !d->bert) l.y1 = hidden_tensor(d, end);
    if (means) l.mean1 = row_stats(d, end);
    if (set & T_STATS) l.rstd1 = row_stats(d, end);
    if (set & T_QKV) l.qkv = tensor(d, end, d->sliced ? d->attn : d->qkv);
    if (set & T_O) l.o = tensor(d, end, d->attn);
    if (set & T_LSE) l.lse = region(end, mul(mul(d->rows, d->heads), 4));
    if (set & T_SUM1) l.sum1 = hidden_tensor(d, end);
    if (set & T_Y2) l.y2 = hidden_tensor(d, end);
    if (means) l.mean2 = row_stats(d, end);
    if (set & T_STATS) l.rstd2 = row_stats(d, end);
    if (set & T_UP) l.up = tensor(d, end, d->up);
    if (set & T_ACT) l.act = tensor(d, end, d->ffn);
    if ((set & T_SUM2) && d->bert) l.sum2 = hidden_tensor(d, end);
    if (set & T_DQKV) l.dqkv = tensor(d, end, d->qkv);
    return l;
}

/* The levels of the residual stream that a part keeps. Those behind layers give way to their own
 * gradients, which W needs; BERT's products read the levels themselves. */
static void keep_levels(const shard_dims *d, stash_part part, stash_layout *s)
{
    const int64_t first = d->stage->embedding ? 0 : 1;
    const int64_t end = d->stage->n_layers + (d->stage->head ? 1 : 0);
    const int64_t split = d->bert ? first : 1; /* levels from here on live until W */
    s->first_level = part == STASH_F_TO_W ? split : first;
    int64_t stop = part == STASH_F_TO_I ? split : end;
    if (part == STASH_I_TO_W) stop = 0;
    if (stop > end) stop = end;
    s->n_levels = stop > s->first_level ? stop - s->first_level : 0;
    int64_t stride = 0;
    (void)hidden_tensor(d, &stride);
    s->inputs = s->bytes;
    s->input_stride = stride;
    s->bytes = plus(s->bytes, mul(s->n_levels, stride));
}

/* Under full recomputation the logits come back in pieces, each used at once: W of the head is part
 * of I. */
static void keep_head(const shard_dims *d, bool full, stash_part part, stash_layout *s)
{
    int64_t *const end = &s->bytes;
    const bool for_i = part == STASH_F_TO_B || part == STASH_F_TO_I;
    const bool for_w = part == STASH_F_TO_B || part == (full ? STASH_F_TO_I : STASH_F_TO_W);
    if (d->bert && for_w) s->head_dense = hidden_tensor(d, end);
    if (d->bert && for_i) s->head_act = hidden_tensor(d, end);
    const bool whole = d->stage->vocab_rows == 0; /* else final_out is the stage's OUTPUT */
    if (for_i && whole && d->tp > 1)
        s->softmax = region(end, plus(SOFTMAX_HEAD_BYTES, mul(d->rows, 3 * 4)));
    if (for_w && whole) s->final_out = hidden_tensor(d, end);
    if (for_i && !d->m->rms_norm) s->final_mean = row_stats(d, end);
    if (for_i) s->final_rstd = row_stats(d, end);
    if (for_w && !full && whole) s->dlogits = tensor(d, end, d->vocab_ld);
}

td_status stash_layout_of(const sizes *z, int32_t stage, int64_t slice_len, stash_part part,
                          stash_layout *out, td_err *err)
{
    shard_dims d;
    TD_TRY(sizes_dims(z, stage, slice_len, &d, err));
    const recompute_mode mode = z->run.recompute;
    stash_layout s;
    memset(&s, 0xff, sizeof s);
    s.bytes = 0;
    if (d.stage->embedding && d.bert && (part == STASH_F_TO_B || part == STASH_F_TO_I)) {
        s.embed_sum = hidden_tensor(&d, &s.bytes);
        s.embed_mean = row_stats(&d, &s.bytes);
        s.embed_rstd = row_stats(&d, &s.bytes);
    }
    keep_levels(&d, part, &s);
    s.layers = s.bytes;
    s.kept = layer_block(&d, part_of_layer(&d, mode, part));
    s.layer_stride = s.kept.bytes;
    s.bytes = plus(s.bytes, mul(d.stage->n_layers, s.layer_stride));
    s.logits_ld = d.vocab_ld;
    if (d.stage->head) keep_head(&d, mode == RECOMPUTE_FULL, part, &s);
    if (s.bytes >= HUGE_BYTES) return td_fail(err, TD_EUSAGE, "stash: does not fit 63 bits");
    *out = s;
    return TD_OK;
}

bool weight_pass_reads_input(const model_desc *m, const stage_desc *stage)
{
    return m->family == MODEL_BERT && !stage->embedding && (stage->n_layers > 0 || stage->head);
}

bool weight_pass_reads_doutput(const model_desc *m, const stage_desc *stage)
{
    return m->family != MODEL_BERT && stage->n_layers > 0 && !stage->head;
}

enum { LOGITS_ROWS = 256 }; /* enough rows that a product runs at full speed */

/* What the head and a slice's ends work with. */
static void work_of_ends(const shard_dims *d, bool logits, scratch_layout *s)
{
    if (d->stage->head && d->stage->vocab_rows == 0) {
        s->logits_rows = d->rows < LOGITS_ROWS ? d->rows : LOGITS_ROWS;
        if (logits) s->logits = region(&s->bytes, mul(mul(s->logits_rows, d->vocab_ld), d->e));
        s->losses = region(&s->bytes, mul(d->rows, 8));
        if (d->tp > 1) s->statistics = region(&s->bytes, mul(3 * 4, s->logits_rows));
    }
    if (d->sliced && (d->stage->embedding || d->stage->head))
        s->tokens = region(&s->bytes, mul(d->rows, 2 * (int64_t)sizeof(int32_t)));
}

td_status forward_layout_of(const sizes *z, int32_t stage, int64_t slice_len, stash_layout *kept,
                            scratch_layout *work, td_err *err)
{
    shard_dims d;
    TD_TRY(sizes_dims(z, stage, slice_len, &d, err));
    stash_layout s;
    scratch_layout w;
    memset(&s, 0xff, sizeof s);
    memset(&w, 0xff, sizeof w);
    s.bytes = 0;
    if (d.stage->embedding && d.bert) {
        s.embed_sum = hidden_tensor(&d, &s.bytes);
        s.embed_mean = row_stats(&d, &s.bytes);
        s.embed_rstd = row_stats(&d, &s.bytes);
    }
    s.first_level = d.stage->embedding ? 0 : 1;
    const int64_t end = d.stage->n_layers + (d.stage->head ? 1 : 0);
    s.n_levels = end > s.first_level ? end - s.first_level : 0;
    s.inputs = s.bytes;
    s.input_stride = 0;
    if (s.n_levels > 0) (void)hidden_tensor(&d, &s.bytes);
    s.layers = s.bytes;
    s.layer_stride = 0;
    s.kept = layer_block(&d, T_FORWARD);
    if (d.stage->n_layers > 0) s.bytes = plus(s.bytes, s.kept.bytes);
    s.logits_ld = d.vocab_ld;
    if (d.stage->head) keep_head(&d, true, STASH_F_TO_B, &s);
    w.bytes = s.bytes;
    w.gathered = gathered(&d, &w.bytes);
    work_of_ends(&d, true, &w);
    s.bytes = w.bytes;
    if (s.bytes >= HUGE_BYTES) return td_fail(err, TD_EUSAGE, "forward: does not fit 63 bits");
    *kept = s;
    *work = w;
    return TD_OK;
}

td_status scratch_layout_of(const sizes *z, int32_t stage, int64_t slice_len, scratch_layout *out,
                            td_err *err)
{
    shard_dims d;
    TD_TRY(sizes_dims(z, stage, slice_len, &d, err));
    const recompute_mode mode = z->run.recompute;
    scratch_layout s;
    memset(&s, 0xff, sizeof s);
    s.bytes = 0;
    s.grad = hidden_tensor(&d, &s.bytes);
    s.gathered = gathered(&d, &s.bytes);
    s.wide = tensor(&d, &s.bytes, d.up > d.qkv ? d.up : d.qkv);
    s.narrow = tensor(&d, &s.bytes, d.attn > d.m->hidden ? d.attn : d.m->hidden);
    if (d.m->gated) s.act = tensor(&d, &s.bytes, d.ffn);
    s.delta = region(&s.bytes, mul(mul(d.rows, d.heads), 4));
    s.layer = layer_block(&d, recomputed(mode));
    if (mode != RECOMPUTE_NONE) s.recomputed = region(&s.bytes, s.layer.bytes);
    work_of_ends(&d, mode == RECOMPUTE_FULL, &s);
    if (s.bytes >= HUGE_BYTES) return td_fail(err, TD_EUSAGE, "scratch: does not fit 63 bits");
    *out = s;
    return TD_OK;
}

td_status vocab_layout_of(const sizes *z, int64_t slice_len, vocab_layout *out, td_err *err)
{
    shard_dims d;
    TD_TRY(sizes_dims(z, 0, slice_len, &d, err));
    vocab_layout v = {.parts = -1, .ld = d.vocab_ld};
    (void)region(&v.bytes, 2 * (int64_t)sizeof(int64_t));
    v.stats = region(&v.bytes, mul(d.rows, 3 * 4));
    if (z->vocab_fused) v.parts = region(&v.bytes, mul(mul(mul(2, d.rows), d.m->hidden), d.e));
    *out = v;
    return TD_OK;
}
