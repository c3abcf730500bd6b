/* Attention in tiles: a tile's scores are made by the BLAS, turned into probabilities while they
 * are in cache, and used at once (Dao et al. 2022, "FlashAttention"; the backward's formulas are
 * those of its appendix B.2). */
#include "kernels/k_internal.h"

enum { TILE_KEYS = 256, TILE_QUERIES_MAX = 128 };

/* Two tiles of scores in backward; one, and two numbers a query, in forward. */
_Static_assert(2L * TILE_QUERIES_MAX * TILE_KEYS <= K_SCRATCH_FLOATS, "tiles fit the scratch");

typedef struct attn_args {
    const k_blas *blas;
    const k_isa *isa;
    k_attn s;
    long tile, tiles; /* queries of a tile; tiles of one head */
    bool accumulate;
    const k_keys *pieces;
    long n_pieces;
    const float *q, *o_in, *dout, *lse_in;
    float *o, *lse, *delta, *dq, *dk, *dv;
} attn_args;

/* Short sequences take short tiles: less of them is cut off by the causal mask. */
static long tile_of(long s_q) { return s_q > 512 ? TILE_QUERIES_MAX : 64; }

/* Keys that count for batch b. */
static long keys_of(const k_attn *s, long b)
{
    return s->kv_len ? k_min(s->s_kv, s->kv_len[b]) : s->s_kv;
}

/* Keys that query r sees, before the batch's own length. */
static long seen_by(const k_attn *s, long r)
{
    return s->causal ? r + 1 + s->s_kv - s->s_q : s->s_kv;
}

/* The tile of queries from q0 against at most `most` keys from k0 on; cols is what its last row
 * sees. */
static k_tile make_tile(const attn_args *a, long b, long q0, long k0, long most)
{
    const k_attn *s = &a->s;
    const long rows = k_min(a->tile, s->s_q - q0);
    const long seen = k_min(keys_of(s, b), seen_by(s, q0 + rows - 1)) - k0;
    return (k_tile){
        .rows = rows,
        .cols = k_min(seen, k_min(most, TILE_KEYS)),
        .visible0 = s->causal ? seen_by(s, q0) - k0 : TILE_KEYS,
        .d = s->d,
        .o_ld = s->o_ld,
        .scale = s->scale,
    };
}

/* One tile of queries of one head. */
static void forward_work(const void *p, long piece, float *scratch)
{
    const attn_args *a = (const attn_args *)p;
    const k_attn *s = &a->s;
    const long q0 = piece % a->tiles * a->tile, h = piece / a->tiles % s->heads;
    const long b = piece / a->tiles / s->heads, group = s->heads / s->kv_heads;
    const float *q = a->q + b * s->q_batch + q0 * s->q_ld + h * s->d;
    float *o = a->o + b * s->o_batch + q0 * s->o_ld + h * s->d;
    float *scores = scratch, *max = scores + TILE_QUERIES_MAX * TILE_KEYS;
    float *sum = max + TILE_QUERIES_MAX;
    k_tile t = {0};
    for (long i = 0, before = 0; i < a->n_pieces; before += a->pieces[i++].rows) {
        const k_keys *keys = &a->pieces[i];
        for (long r = 0; r < keys->rows; r += TILE_KEYS) {
            const long at = b * keys->batch + h / group * s->d + r * keys->ld, k0 = before + r;
            t = make_tile(a, b, q0, k0, keys->rows - r);
            if (t.cols <= 0) break;
            k_gemm_piece(a->blas, false, true, t.rows, t.cols, s->d, 1.0f, q, s->q_ld, keys->k + at,
                         keys->ld, 0.0f, scores, t.cols);
            a->isa->softmax_tile(&t, k0 == 0, scores, max, sum, o);
            k_gemm_piece(a->blas, false, false, t.rows, s->d, t.cols, 1.0f, scores, t.cols,
                         keys->v + at, keys->ld, k0 == 0 ? 0.0f : 1.0f, o, s->o_ld);
        }
    }
    a->isa->softmax_end(&t, sum, max, o, a->lse + (b * s->heads + h) * s->s_q + q0);
}

/* k and v as one piece. */
static k_keys all_keys(const k_attn *s, const float *k, const float *v)
{
    return (k_keys){.k = k, .v = v, .rows = s->s_kv, .ld = s->kv_ld, .batch = s->kv_batch};
}

void k_attn_fwd_cpu(k_ctx *ctx, const k_attn *s, const float *q, const float *k, const float *v,
                    float *o, float *lse)
{
    const long tile = tile_of(s->s_q);
    const k_keys all = all_keys(s, k, v);
    const attn_args a = {
        .blas = k_ctx_blas(ctx),
        .isa = k_ctx_bodies(ctx),
        .s = *s,
        .tile = tile,
        .tiles = k_pieces(s->s_q, tile),
        .pieces = s->n_pieces > 0 ? s->pieces : &all,
        .n_pieces = s->n_pieces > 0 ? s->n_pieces : 1,
        .q = q,
        .o = o,
        .lse = lse,
    };
    k_run(ctx, s->batch * s->heads * a.tiles, forward_work, &a);
}

/* --- backward --- */

/* One tile of queries of head h against the tile of keys from row r of a piece, of all keys the
 * k0-th: adds to dq (assigns where k0 is 0), dk and dv. */
static void backward_tile(const attn_args *a, long b, long h, long q0, const k_keys *keys, long r,
                          long k0, float *scratch)
{
    const k_attn *s = &a->s;
    const k_tile t = make_tile(a, b, q0, k0, keys->rows - r);
    if (t.cols <= 0) return;
    const long kv_head = h / (s->heads / s->kv_heads);
    const long kv = b * keys->batch + r * keys->ld + kv_head * s->d;
    const long dkv = b * s->dkv_batch + k0 * s->dkv_ld + kv_head * s->d;
    const long row = (b * s->heads + h) * s->s_q + q0;
    const float *q = a->q + b * s->q_batch + q0 * s->q_ld + h * s->d;
    const float *dout = a->dout + b * s->o_batch + q0 * s->o_ld + h * s->d;
    float *dq = a->dq + b * s->dq_batch + q0 * s->dq_ld + h * s->d;
    float *probs = scratch, *ds = scratch + TILE_QUERIES_MAX * TILE_KEYS;
    k_gemm_piece(a->blas, false, true, t.rows, t.cols, s->d, 1.0f, q, s->q_ld, keys->k + kv,
                 keys->ld, 0.0f, probs, t.cols);
    k_gemm_piece(a->blas, false, true, t.rows, t.cols, s->d, 1.0f, dout, s->o_ld, keys->v + kv,
                 keys->ld, 0.0f, ds, t.cols);
    a->isa->softmax_bwd(&t, a->lse_in + row, a->delta + row, probs, ds);
    k_gemm_piece(a->blas, true, false, t.cols, s->d, t.rows, 1.0f, probs, t.cols, dout, s->o_ld,
                 1.0f, a->dv + dkv, s->dkv_ld);
    k_gemm_piece(a->blas, true, false, t.cols, s->d, t.rows, 1.0f, ds, t.cols, q, s->q_ld, 1.0f,
                 a->dk + dkv, s->dkv_ld);
    k_gemm_piece(a->blas, false, false, t.rows, s->d, t.cols, 1.0f, ds, t.cols, keys->k + kv,
                 keys->ld, k0 == 0 ? 0.0f : 1.0f, dq, s->dq_ld);
}

static void clear_head(float *x, long rows, long ld, long d)
{
    for (long r = 0; r < rows; r++) {
        for (long c = 0; c < d; c++) x[r * ld + c] = 0.0f;
    }
}

/* One key head of one batch, with all query heads that read it. */
static void backward_work(const void *p, long piece, float *scratch)
{
    const attn_args *a = (const attn_args *)p;
    const k_attn *s = &a->s;
    const long b = piece / s->kv_heads, kv_head = piece % s->kv_heads;
    const long group = s->heads / s->kv_heads, at = b * s->dkv_batch + kv_head * s->d;
    const k_tile rows = {.rows = s->s_q, .d = s->d, .o_ld = s->o_ld};
    if (!a->accumulate) {
        clear_head(a->dk + at, s->s_kv, s->dkv_ld, s->d);
        clear_head(a->dv + at, s->s_kv, s->dkv_ld, s->d);
    }
    for (long h = kv_head * group; h < (kv_head + 1) * group; h++) {
        const long o_at = b * s->o_batch + h * s->d;
        a->isa->row_dots(&rows, a->o_in + o_at, a->dout + o_at,
                         a->delta + (b * s->heads + h) * s->s_q);
        for (long i = 0, before = 0; i < a->n_pieces; before += a->pieces[i++].rows)
            for (long r = 0; r < a->pieces[i].rows; r += TILE_KEYS)
                for (long q0 = 0; q0 < s->s_q; q0 += a->tile)
                    backward_tile(a, b, h, q0, &a->pieces[i], r, before + r, scratch);
    }
}

void k_attn_bwd_cpu(k_ctx *ctx, const k_attn *s, bool accumulate, const float *q, const float *k,
                    const float *v, const float *o, const float *dout, const float *lse,
                    float *delta, float *dq, float *dk, float *dv)
{
    const long tile = tile_of(s->s_q);
    const k_keys all = all_keys(s, k, v);
    const attn_args a = {
        .blas = k_ctx_blas(ctx),
        .isa = k_ctx_bodies(ctx),
        .s = *s,
        .tile = tile,
        .tiles = k_pieces(s->s_q, tile),
        .accumulate = accumulate,
        .pieces = s->n_pieces > 0 ? s->pieces : &all,
        .n_pieces = s->n_pieces > 0 ? s->n_pieces : 1,
        .q = q,
        .o_in = o,
        .dout = dout,
        .lse_in = lse,
        .delta = delta,
        .dq = dq,
        .dk = dk,
        .dv = dv,
    };
    k_run(ctx, s->batch * s->kv_heads, backward_work, &a);
}
