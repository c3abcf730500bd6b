/* FLOPs and bytes of passes.
 *
 * A product of (t x k) and (k x n) takes 2tkn FLOPs, and each of them comes back twice in backward:
 * once for the input's gradient (I) and once for the weight's (W). Summed over a layer with T = b s
 * tokens of width h and full attention that is 24 T h^2 + 4 T s h forward and twice that backward
 * (Narayanan et al. 2021, arXiv 2104.04473, appendix). We count attention by the tokens that are
 * really attended to, so causal attention has about half of the 4 T s h, as fused kernels do.
 * Selective recompute repeats 4 T s h (Korthikanti et al. 2022, arXiv 2205.05198, appendix A), full
 * recompute the whole forward of the layers.
 *
 * These are FLOPs that are done, not a model's: attention keeps no scores, so its backward makes
 * them again from q, k and the softmax's sums (Dao et al. 2022, arXiv 2205.14135, section 3.1),
 * which is 10 T s h in place of 8: 2.5 times its forward, as our own kernels do it.
 *
 * Bytes: each kernel reads its inputs and writes its outputs once; fused attention keeps its
 * scores on chip (Dao et al. 2022, arXiv 2205.14135). */
#include "costmodel/work.h"

#include "costmodel/profile.h"

#include <inttypes.h>

/* The sizes that all terms are made of. */
typedef struct shape {
    const model_desc *m;
    const stage_desc *stage;
    double tokens, seen; /* seen: those whose keys and values are there, the slice's included */
    bool sliced;         /* gradients of keys and values are summed up over slices */
    double context, h, q_width, kv_width, ffn, vocab; /* widths on one shard */
    double bytes, grad_bytes;                         /* of one element */
    double layers, tp, shards,
        norm_tokens; /* norm_tokens: on one shard with sequence parallelism */
    bool sequence_parallel;
} shape;

enum { HALF_I = 1, HALF_W = 2 };

static void add(work_list *out, const char *what, double count, double flops, double bytes,
                bool matrix)
{
    if (out->n < WORK_MAX && count > 0 && (flops > 0 || bytes > 0))
        out->items[out->n++] = (work_item){what, flops, bytes, count, matrix};
}

/* y[t, n] = x[t, k] w: forward */
static void product(work_list *out, const shape *s, const char *what, double t, double k, double n,
                    double count)
{
    add(out, what, count, 2 * t * k * n, s->bytes * (t * k + k * n + t * n), true);
}

/* dx = dy w and dw += dy x of the same product */
static void product_back(work_list *out, const shape *s, const char *what, double t, double k,
                         double n, double count, int halves)
{
    if (halves & HALF_I) product(out, s, what, t, n, k, count);
    if (halves & HALF_W)
        add(out, what, count, 2 * t * k * n, s->bytes * (t * k + t * n) + 2 * s->grad_bytes * k * n,
            true);
}

/* Scores and their sums of values: 2 FLOPs for each of two products per token, attended token and
 * channel. */
static void attention(work_list *out, const shape *s, double count)
{
    add(out, "attention", count, 4 * s->tokens * s->context * s->q_width,
        s->bytes * 2 * (s->tokens * s->q_width + s->seen * s->kv_width), true);
}

static void layers_forward(work_list *out, const shape *s)
{
    const double n = s->layers, t = s->tokens, e = s->bytes;
    const double gates = s->m->gated ? 2 : 1;
    add(out, "norms", 2 * n, 0, e * 2 * s->norm_tokens * s->h, false);
    product(out, s, "qkv", t, s->h, s->q_width + 2 * s->kv_width, n);
    if (!s->m->learned_positions)
        add(out, "rotary", n, 0, e * 2 * t * (s->q_width + s->kv_width), false);
    attention(out, s, n);
    product(out, s, "attention output", t, s->q_width, s->h, n);
    product(out, s, "mlp up", t, s->h, gates * s->ffn, n);
    add(out, "activation", n, 0, e * (gates + 1) * t * s->ffn, false);
    product(out, s, "mlp down", t, s->ffn, s->h, n);
    add(out, "residual sums", 2 * n, 0, e * 3 * s->norm_tokens * s->h, false);
}

static void layers_backward(work_list *out, const shape *s, int halves)
{
    const double n = s->layers, t = s->tokens, e = s->bytes;
    const double gates = s->m->gated ? 2 : 1;
    product_back(out, s, "mlp down", t, s->ffn, s->h, n, halves);
    product_back(out, s, "mlp up", t, s->h, gates * s->ffn, n, halves);
    product_back(out, s, "attention output", t, s->q_width, s->h, n, halves);
    product_back(out, s, "qkv", t, s->h, s->q_width + 2 * s->kv_width, n, halves);
    if (!(halves & HALF_I)) return;
    /* a slice adds to fp32 sums, those of all tokens before it included */
    const double sums = s->sliced ? 16 * s->seen * s->kv_width : 0;
    /* each of the two products of attention comes back twice, all of it for inputs, and the scores,
     * which forward never stores, are made once more */
    add(out, "attention", n, 10 * t * s->context * s->q_width,
        e * (4 * t * s->q_width + 2 * (s->seen + t) * s->kv_width) + sums, true);
    if (!s->m->learned_positions)
        add(out, "rotary", n, 0, e * 2 * t * (s->q_width + s->kv_width), false);
    add(out, "activation", n, 0, e * (2 * gates + 1) * t * s->ffn, false);
    add(out, "norms", 2 * n, 0, e * 4 * s->norm_tokens * s->h, false);
    add(out, "residual sums", 2 * n, 0, e * 3 * s->norm_tokens * s->h, false);
}

/* Gathers rows of the tables; backward adds to them. */
static void embedding(work_list *out, const shape *s, bool forward)
{
    const double tables = s->m->learned_positions ? 2 : 1, row = s->tokens * s->h;
    add(out, "embedding", 1, 0,
        forward ? (tables + 1) * s->bytes * row : row * (s->bytes + 2 * tables * s->grad_bytes),
        false);
}

/* What the last stage keeps of the head where the tables are sharded. */
static void head_rest(work_list *out, const shape *s, bool forward, int halves)
{
    if (s->m->family == MODEL_BERT && forward)
        product(out, s, "head dense", s->tokens, s->h, s->h, 1);
    if (s->m->family == MODEL_BERT && !forward)
        product_back(out, s, "head dense", s->tokens, s->h, s->h, 1, halves);
    if (forward || (halves & HALF_I))
        add(out, "norms", 1, 0, s->bytes * (forward ? 2 : 4) * s->norm_tokens * s->h, false);
}

/* What the first stage keeps of the embedding: positions, added to the sum of the shards' rows. */
static void embedding_rest(work_list *out, const shape *s, bool forward)
{
    const double row = s->tokens * s->h;
    if (s->m->learned_positions)
        add(out, "positions", 1, 0,
            forward ? 3 * s->bytes * row : row * (s->bytes + 2 * s->grad_bytes), false);
}

/* S and T of a shard (arXiv 2411.05288, section 4): logits and softmax of its words in fp32; the
 * gradient of its rows; the product that gives the input's gradient is S's when fused, else T's. */
static void vocab_pass(work_list *out, const shape *s, bool is_s, bool fused)
{
    add(out, "softmax", 1, 0, 4 * 2 * s->tokens * s->vocab, false);
    if (is_s) product(out, s, "head", s->tokens, s->h, s->vocab, 1);
    const int halves = (is_s ? 0 : HALF_W) | (is_s == fused ? HALF_I : 0);
    product_back(out, s, "head", s->tokens, s->h, s->vocab, 1, halves);
}

/* E and G of a shard: all tokens' rows are written or read, but only its own looked up. */
static void embedding_shard(work_list *out, const shape *s, bool forward, double shards)
{
    const double row = s->tokens * s->h;
    add(out, "embedding", 1, 0,
        forward ? s->bytes * row * (1 + 1 / shards) : row * (s->bytes + 2 * s->grad_bytes / shards),
        false);
}

/* Final norm, products with the table, softmax and loss over `vocab` words of this shard. */
static void head_forward(work_list *out, const shape *s)
{
    if (s->m->family == MODEL_BERT) product(out, s, "head dense", s->tokens, s->h, s->h, 1);
    add(out, "norms", 1, 0, s->bytes * 2 * s->norm_tokens * s->h, false);
    product(out, s, "head", s->tokens, s->h, s->vocab, 1);
    add(out, "softmax", 1, 0, s->bytes * 2 * s->tokens * s->vocab, false);
}

static void head_backward(work_list *out, const shape *s, int halves)
{
    product_back(out, s, "head", s->tokens, s->h, s->vocab, 1, halves);
    if (s->m->family == MODEL_BERT)
        product_back(out, s, "head dense", s->tokens, s->h, s->h, 1, halves);
    if (!(halves & HALF_I)) return;
    add(out, "softmax", 1, 0, s->bytes * 2 * s->tokens * s->vocab, false);
    add(out, "norms", 1, 0, s->bytes * 4 * s->norm_tokens * s->h, false);
}

static shape shape_of(const sizes *z, const pass_query *q)
{
    const model_desc *const m = z->model;
    const double tp = z->run.tp > 1 ? (double)z->run.tp : 1;
    const double tokens = (double)z->run.micro_batch * (double)q->slice_len;
    const double kv = (double)(m->n_kv_heads * m->head_dim);
    const double seen = (double)z->run.micro_batch * (double)(q->prefix + q->slice_len);
    const bool sliced = q->slice_len < z->run.seq_len;
    return (shape){
        .m = m,
        .stage = &z->stages[q->stage],
        .tokens = tokens,
        .seen = seen,
        .sliced = sliced,
        .context = profile_context(m->causal, q->slice_len, q->prefix),
        .h = (double)m->hidden,
        .q_width = (double)(m->n_heads * m->head_dim) / tp,
        /* with more shards than key-value heads each shard keeps one */
        .kv_width = (double)m->n_kv_heads > tp ? kv / tp : (double)m->head_dim,
        .ffn = (double)m->ffn / tp,
        .vocab = z->vocab_shards > 0 ? (double)sizes_vocab_rows(z) : (double)m->vocab / tp,
        .bytes = (double)data_type_bytes(z->run.dtype),
        .grad_bytes = (double)data_type_bytes(z->run.grad_dtype),
        .layers = (double)z->stages[q->stage].n_layers,
        .tp = tp,
        .shards = z->vocab_shards > 1 ? z->vocab_shards * tp : tp,
        .norm_tokens = z->run.sequence_parallel ? tokens / tp : tokens,
        .sequence_parallel = z->run.sequence_parallel,
    };
}

/* Sums over the shards of products' outputs, all of them or of one's own rows, whose inputs are
 * then gathered (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2). */
static void sums(work_list *out, const shape *s, double n, double gathered)
{
    if (!s->sequence_parallel) {
        out->sums += n;
        return;
    }
    out->scatters += n;
    out->gathers += gathered;
}

/* Whether embedding and head are inside F and B of their stages, and not passes of their own. */
static bool ends_inside(const sizes *z) { return z->vocab_shards < 1; }

static void forward(work_list *out, const sizes *z, const shape *s)
{
    const bool ends = ends_inside(z);
    if (s->stage->embedding) (ends ? embedding : embedding_rest)(out, s, true);
    layers_forward(out, s);
    if (ends && s->stage->head) head_forward(out, s);
    if (!ends && s->stage->head) head_rest(out, s, true, 0);
    /* Megatron's g after attention and MLP; one after the split table's rows */
    sums(out, s, 2 * s->layers + (ends && s->stage->embedding ? 1 : 0),
         2 * s->layers + (ends && s->stage->head ? 1 : 0));
    if (ends && s->stage->head) out->softmax_bytes = SOFTMAX_HEAD_BYTES + s->tokens * 3 * 4;
}

static void recompute(work_list *out, const sizes *z, const shape *s)
{
    if (z->run.recompute == RECOMPUTE_SELECTIVE) attention(out, s, s->layers);
    if (z->run.recompute != RECOMPUTE_FULL) return;
    layers_forward(out, s);
    sums(out, s, 2 * s->layers, 2 * s->layers);
}

static void backward(work_list *out, const sizes *z, const shape *s, int halves, bool again)
{
    const bool ends = ends_inside(z);
    if (again && (halves & HALF_I)) recompute(out, z, s);
    /* full recomputation makes the logits in pieces, each used at once by both halves */
    const bool at_once = z->run.recompute == RECOMPUTE_FULL;
    const int of_head = !at_once ? halves : halves & HALF_I ? HALF_I | HALF_W : 0;
    if (ends && s->stage->head && of_head != 0) head_backward(out, s, of_head);
    layers_backward(out, s, halves);
    if (ends && s->stage->embedding && (halves & HALF_I)) embedding(out, s, false);
    /* Megatron's f before QKV and MLP up; one before the split head. The gradients of outputs are
     * gathered for both halves, the inputs once more for the weights' */
    const double heads = ends && s->stage->head ? 1 : 0;
    if (halves & HALF_I)
        sums(out, s, 2 * s->layers + heads, 2 * s->layers + (ends && s->stage->embedding ? 1 : 0));
    if (halves == HALF_W) sums(out, s, 0, 2 * s->layers);
    if (halves & HALF_W) sums(out, s, 0, 2 * s->layers + heads);
}

td_status work_of(const sizes *z, const pass_query *q, bool with_recompute, work_list *out,
                  td_err *err)
{
    *out = (work_list){0};
    if (z->model == NULL || z->stages == NULL)
        return td_fail(err, TD_EUSAGE,
                       "pass %c: no model to count FLOPs of; give --model or --times",
                       pass_letter(q->pass));
    if (q->stage < 0 || q->stage >= z->n_stages)
        return td_fail(err, TD_EUSAGE, "pass %c: stage %" PRId32 " of %" PRId32,
                       pass_letter(q->pass), q->stage, z->n_stages);
    const shape s = shape_of(z, q);
    switch (q->pass) {
    case PASS_F: forward(out, z, &s); break;
    case PASS_B: backward(out, z, &s, HALF_I | HALF_W, with_recompute); break;
    case PASS_I: backward(out, z, &s, HALF_I, with_recompute); break;
    case PASS_W: backward(out, z, &s, HALF_W, false); break;
    case PASS_R:
        layers_forward(out, &s);
        sums(out, &s, 2 * s.layers, 2 * s.layers);
        break;
    case PASS_S:
    case PASS_T: vocab_pass(out, &s, q->pass == PASS_S, z->vocab_fused); break;
    case PASS_E:
    case PASS_G: embedding_shard(out, &s, q->pass == PASS_E, s.shards); break;
    default: return td_fail(err, TD_EUSAGE, "pass %d: no such pass", (int)q->pass);
    }
    out->sum_bytes = s.bytes * s.tokens * s.h;
    if (s.tp <= 1) out->sums = out->gathers = out->scatters = out->softmax_bytes = 0;
    return TD_OK;
}

td_status pass_work_of(const sizes *z, const pass_query *q, pass_work *out, td_err *err)
{
    work_list list;
    TD_TRY(work_of(z, q, true, &list, err));
    *out = (pass_work){0};
    for (int32_t i = 0; i < list.n; i++) {
        out->flops += list.items[i].count * list.items[i].flops;
        out->bytes += list.items[i].count * list.items[i].bytes;
    }
    return TD_OK;
}
