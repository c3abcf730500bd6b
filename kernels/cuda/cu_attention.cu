/* Attention forward and backward for any element and any head up to 256, in tiles of 32 queries and
 * 32 keys held as floats in shared memory (Dao et al. 2022, "FlashAttention"). Backward in two
 * kernels, by owner of keys and by owner of queries: nothing is added by two blocks, so every sum
 * has one order. */
#include "kernels/cuda/cu_attention.cuh"

enum { TILE = 32, THREADS = 128, ROWS = 4 }; /* rows of the tile that a thread works on */

bool cu_attn_of(k_cuda_lane *lane, const k_attn *s, const float *k, const float *v, cu_attn *out)
{
    if (s->d > 256 || s->n_pieces > K_CUDA_PIECES_MAX) {
        cu_fail(lane, "attention", s->d > 256 ? "heads over 256" : "over 64 slices");
        return false;
    }
    *out = cu_attn();
    out->batch = s->batch;
    out->heads = s->heads;
    out->kv_heads = s->kv_heads;
    out->d = s->d;
    out->s_q = s->s_q;
    out->s_kv = s->s_kv;
    out->causal = s->causal;
    out->scale = s->scale;
    out->kv_len = s->kv_len;
    out->q_ld = s->q_ld;
    out->q_batch = s->q_batch;
    out->o_ld = s->o_ld;
    out->o_batch = s->o_batch;
    out->dq_ld = s->dq_ld;
    out->dq_batch = s->dq_batch;
    out->dkv_ld = s->dkv_ld;
    out->dkv_batch = s->dkv_batch;
    out->n_pieces = s->n_pieces > 0 ? (int)s->n_pieces : 1;
    for (int i = 0; i < out->n_pieces; i++) {
        if (s->n_pieces > 0)
            out->pieces[i] = s->pieces[i];
        else
            out->pieces[i] = {k, v, s->s_kv, s->kv_ld, s->kv_batch};
        out->first[i] = i == 0 ? 0 : out->first[i - 1] + out->pieces[i - 1].rows;
    }
    return true;
}

/* Rows [from, from + TILE) below `end` of a matrix, as floats; zeros behind them. */
template <typename T, int D>
static __device__ void load_rows(float *to, const T *base, long ld, long from, long end, long d)
{
    for (int i = threadIdx.x; i < TILE * D; i += THREADS) {
        const long r = from + i / D, c = i % D;
        to[i / D * (D + 1) + c] = r < end && c < d ? cu_float(base[r * ld + c]) : 0.0f;
    }
}

template <typename T, int D>
static __device__ void load_keys(float *to, const cu_attn &a, bool values, long b, long h,
                                 long from, long end)
{
    for (int i = threadIdx.x; i < TILE * D; i += THREADS) {
        const long r = from + i / D, c = i % D;
        float x = 0.0f;
        if (r < end && c < a.d) {
            const int piece = cu_piece(a, r);
            const T *const p =
                (const T *)(const void *)(values ? a.pieces[piece].v : a.pieces[piece].k);
            x = cu_float(p[cu_key_at(a, piece, b, h, r) + c]);
        }
        to[i / D * (D + 1) + c] = x;
    }
}

/* s[i][j] = row ty * ROWS + i of x times row tx + 16 j of y. */
template <int D>
static __device__ __forceinline__ void scores(const float *x, const float *y, int ty, int tx,
                                              float s[ROWS][2])
{
#pragma unroll
    for (int i = 0; i < ROWS; i++) s[i][0] = s[i][1] = 0.0f;
#pragma unroll 8
    for (int c = 0; c < D; c++) {
        const float y0 = y[tx * (D + 1) + c], y1 = y[(tx + 16) * (D + 1) + c];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const float v = x[(ty * ROWS + i) * (D + 1) + c];
            s[i][0] += v * y0;
            s[i][1] += v * y1;
        }
    }
}

/* acc[i][j] += sum over k of p[ty * ROWS + i][k] * y[k][tx + 16 j]. */
template <int D>
static __device__ __forceinline__ void accumulate(const float *p, const float *y, int ty, int tx,
                                                  float acc[ROWS][D / 16])
{
    for (int k = 0; k < TILE; k++) {
        float w[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; i++) w[i] = p[(ty * ROWS + i) * (TILE + 1) + k];
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
            const float v = y[k * (D + 1) + tx + 16 * j];
#pragma unroll
            for (int i = 0; i < ROWS; i++) acc[i][j] += w[i] * v;
        }
    }
}

/* Over the sixteen threads that share rows. */
static __device__ __forceinline__ float half_warp(float x, bool max)
{
#pragma unroll
    for (int i = 8; i > 0; i >>= 1) {
        const float y = __shfl_xor_sync(0xffffffffu, x, i);
        x = max ? fmaxf(x, y) : x + y;
    }
    return x;
}

template <typename T, int D>
__global__ void __launch_bounds__(THREADS)
    fwd_kernel(const __grid_constant__ cu_attn a, const T *q, T *o, float *lse)
{
    CU_DYNAMIC(float, room);
    float *const qs = room, *const ks = qs + TILE * (D + 1), *const ps = ks + TILE * (D + 1);
    /* heavy tiles first */
    const long q0 = (gridDim.x - 1 - blockIdx.x) * (long)TILE, h = blockIdx.y, b = blockIdx.z;
    const long kv_head = h / (a.heads / a.kv_heads), last = min(q0 + TILE, a.s_q) - 1;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    float acc[ROWS][D / 16] = {}, top[ROWS], sum[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        top[i] = -INFINITY;
        sum[i] = 0.0f;
    }
    load_rows<T, D>(qs, q + b * a.q_batch + h * a.d, a.q_ld, q0, a.s_q, a.d);
    const long end = cu_seen(a, b, last);
    for (long k0 = 0; k0 < end; k0 += TILE) {
        __syncthreads();
        load_keys<T, D>(ks, a, false, b, kv_head, k0, end);
        __syncthreads();
        float s[ROWS][2];
        scores<D>(qs, ks, ty, tx, s);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const long seen = cu_seen(a, b, q0 + ty * ROWS + i) - k0;
            s[i][0] = tx < seen ? s[i][0] * a.scale : -INFINITY;
            s[i][1] = tx + 16 < seen ? s[i][1] * a.scale : -INFINITY;
            const float most = fmaxf(top[i], half_warp(fmaxf(s[i][0], s[i][1]), true));
            const float shrink = most == -INFINITY ? 1.0f : expf(top[i] - most);
            const float p0 = most == -INFINITY ? 0.0f : expf(s[i][0] - most);
            const float p1 = most == -INFINITY ? 0.0f : expf(s[i][1] - most);
            sum[i] = sum[i] * shrink + half_warp(p0 + p1, false);
            top[i] = most;
            ps[(ty * ROWS + i) * (TILE + 1) + tx] = p0;
            ps[(ty * ROWS + i) * (TILE + 1) + tx + 16] = p1;
#pragma unroll
            for (int j = 0; j < D / 16; j++) acc[i][j] *= shrink;
        }
        __syncthreads();
        load_keys<T, D>(ks, a, true, b, kv_head, k0, end);
        __syncthreads();
        accumulate<D>(ps, ks, ty, tx, acc);
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const long r = q0 + ty * ROWS + i;
        if (r >= a.s_q) continue;
        const float inv = 1.0f / sum[i];
        T *const to = o + b * a.o_batch + r * a.o_ld + h * a.d;
#pragma unroll
        for (int j = 0; j < D / 16; j++)
            if (tx + 16 * j < a.d) to[tx + 16 * j] = cu_elem<T>(acc[i][j] * inv);
        if (tx == 0) lse[(b * a.heads + h) * a.s_q + r] = top[i] + logf(sum[i]);
    }
}

/* --- backward --- */

/* delta = sum over a head of o * dout; a warp a row, N elements a lane. */
template <typename T, int N>
__global__ void delta_kernel(const __grid_constant__ cu_attn a, const T *o, const T *dout,
                             float *delta)
{
    const long i = blockIdx.x * (long)(THREADS / 32) + threadIdx.x / 32;
    if (i >= a.batch * a.heads * a.s_q) return;
    const long r = i % a.s_q, h = i / a.s_q % a.heads, b = i / a.s_q / a.heads;
    const long at = b * a.o_batch + r * a.o_ld + h * a.d;
    float sum = 0;
    for (long c = threadIdx.x % 32 * N; c < a.d; c += 32 * N) {
        float x[N], dx[N];
        cu_take<T, N>(o + at + c, x);
        cu_take<T, N>(dout + at + c, dx);
#pragma unroll
        for (int k = 0; k < N; k++) sum += x[k] * dx[k];
    }
    sum = cu_warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[i] = sum;
}

template <typename T>
static void find_delta(k_cuda_lane *lane, const cu_attn &a, const T *o, const T *dout, float *delta)
{
    const unsigned blocks = (unsigned)cu_ceil(a.batch * a.heads * a.s_q, THREADS / 32);
    const bool wide = a.d % 4 == 0 && a.o_ld % 4 == 0 && a.o_batch % 4 == 0 &&
                      ((uintptr_t)o | (uintptr_t)dout) % 16 == 0;
    if (wide)
        cu_launch(delta_kernel<T, 4>, blocks, THREADS, 0, lane->stream, a, o, dout, delta);
    else
        cu_launch(delta_kernel<T, 1>, blocks, THREADS, 0, lane->stream, a, o, dout, delta);
}

/* Probabilities and gradients of the scores of a tile, into shared memory; turned: by key. */
template <int D, bool TURNED>
static __device__ void tile_gradients(const cu_attn &a, const cu_attn_bwd_args &w, const float *qs,
                                      const float *ks, const float *dos, const float *vs, long b,
                                      long h, long q0, long k0, float *ps, float *ds)
{
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    float s[ROWS][2], dp[ROWS][2];
    scores<D>(qs, ks, ty, tx, s);
    scores<D>(dos, vs, ty, tx, dp);
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int row = ty * ROWS + i;
        const long r = q0 + row, at = (b * a.heads + h) * a.s_q + r;
        const bool there = r < a.s_q;
        const long seen = there ? cu_seen(a, b, r) - k0 : 0;
        const float lse = there ? w.lse[at] : 0.0f, delta = there ? w.delta[at] : 0.0f;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int col = tx + 16 * j;
            const float p = col < seen ? expf(s[i][j] * a.scale - lse) : 0.0f;
            const int to = TURNED ? col * (TILE + 1) + row : row * (TILE + 1) + col;
            if (ps) ps[to] = p;
            ds[to] = p * (dp[i][j] - delta) * a.scale;
        }
    }
}

template <typename O, int D>
static __device__ void put_rows(float acc[ROWS][D / 16], O *base, long ld, long from, long end,
                                long d, bool add)
{
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const long r = from + ty * ROWS + i;
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
            const int c = tx + 16 * j;
            if (r >= end || c >= d) continue;
            O *const to = base + r * ld + c;
            *to = cu_elem<O>(add ? cu_float(*to) + acc[i][j] : acc[i][j]);
        }
    }
}

/* One block owns a tile of one key head, and takes all queries that see it in order. */
template <typename T, typename O, int D>
__global__ void __launch_bounds__(THREADS, 1)
    dkv_kernel(const __grid_constant__ cu_attn a, const __grid_constant__ cu_attn_bwd_args w)
{
    CU_DYNAMIC(float, room);
    constexpr int N = TILE * (D + 1);
    float *const ks = room, *const vs = ks + N, *const qs = vs + N, *const dos = qs + N;
    float *const ps = dos + N, *const ds = ps + TILE * (TILE + 1);
    const long k0 = blockIdx.x * (long)TILE, kv_head = blockIdx.y, b = blockIdx.z;
    const long group = a.heads / a.kv_heads;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    float dk[ROWS][D / 16] = {}, dv[ROWS][D / 16] = {};
    load_keys<T, D>(ks, a, false, b, kv_head, k0, a.s_kv);
    load_keys<T, D>(vs, a, true, b, kv_head, k0, a.s_kv);
    const long sees = a.causal ? max(0L, k0 - (a.s_kv - a.s_q)) : 0; /* the first query */
    for (long h = kv_head * group; h < (kv_head + 1) * group; h++)
        for (long q0 = sees / TILE * TILE; q0 < a.s_q; q0 += TILE) {
            __syncthreads();
            load_rows<T, D>(qs, (const T *)w.q + b * a.q_batch + h * a.d, a.q_ld, q0, a.s_q, a.d);
            load_rows<T, D>(dos, (const T *)w.dout + b * a.o_batch + h * a.d, a.o_ld, q0, a.s_q,
                            a.d);
            __syncthreads();
            tile_gradients<D, true>(a, w, qs, ks, dos, vs, b, h, q0, k0, ps, ds);
            __syncthreads();
            accumulate<D>(ps, dos, ty, tx, dv);
            accumulate<D>(ds, qs, ty, tx, dk);
        }
    const long at = b * a.dkv_batch + kv_head * a.d;
    put_rows<O, D>(dk, (O *)w.dk + at, a.dkv_ld, k0, a.s_kv, a.d, w.accumulate);
    put_rows<O, D>(dv, (O *)w.dv + at, a.dkv_ld, k0, a.s_kv, a.d, w.accumulate);
}

/* One block owns a tile of queries of one head. */
template <typename T, int D>
__global__ void __launch_bounds__(THREADS)
    dq_kernel(const __grid_constant__ cu_attn a, const __grid_constant__ cu_attn_bwd_args w)
{
    CU_DYNAMIC(float, room);
    constexpr int N = TILE * (D + 1);
    float *const qs = room, *const dos = qs + N, *const ks = dos + N, *const vs = ks + N;
    float *const ds = vs + N;
    const long q0 = (gridDim.x - 1 - blockIdx.x) * (long)TILE, h = blockIdx.y, b = blockIdx.z;
    const long kv_head = h / (a.heads / a.kv_heads), last = min(q0 + TILE, a.s_q) - 1;
    const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    float dq[ROWS][D / 16] = {};
    load_rows<T, D>(qs, (const T *)w.q + b * a.q_batch + h * a.d, a.q_ld, q0, a.s_q, a.d);
    load_rows<T, D>(dos, (const T *)w.dout + b * a.o_batch + h * a.d, a.o_ld, q0, a.s_q, a.d);
    const long end = cu_seen(a, b, last);
    for (long k0 = 0; k0 < end; k0 += TILE) {
        __syncthreads();
        load_keys<T, D>(ks, a, false, b, kv_head, k0, end);
        load_keys<T, D>(vs, a, true, b, kv_head, k0, end);
        __syncthreads();
        tile_gradients<D, false>(a, w, qs, ks, dos, vs, b, h, q0, k0, nullptr, ds);
        __syncthreads();
        accumulate<D>(ds, ks, ty, tx, dq);
    }
    put_rows<T, D>(dq, (T *)w.dq + b * a.dq_batch + h * a.d, a.dq_ld, q0, a.s_q, a.d, false);
}

/* --- launches --- */

static unsigned tiles(long n) { return (unsigned)cu_ceil(n, TILE); }

template <typename T, int D>
static void fwd(k_cuda_lane *lane, const cu_attn &a, const T *q, T *o, float *lse)
{
    const size_t shared = (2 * TILE * (D + 1) + TILE * (TILE + 1)) * sizeof(float);
    cu_shared(lane, fwd_kernel<T, D>, shared);
    cu_launch(fwd_kernel<T, D>, dim3(tiles(a.s_q), (unsigned)a.heads, (unsigned)a.batch), THREADS,
              shared, lane->stream, a, q, o, lse);
}

template <typename T, typename O, int D>
static void bwd(k_cuda_lane *lane, const cu_attn &a, const cu_attn_bwd_args &w)
{
    const dim3 keys(tiles(a.s_kv), (unsigned)a.kv_heads, (unsigned)a.batch);
    const dim3 queries(tiles(a.s_q), (unsigned)a.heads, (unsigned)a.batch);
    const size_t four = 4 * TILE * (D + 1), square = TILE * (TILE + 1);
    const size_t by_key = (four + 2 * square) * sizeof(float);
    const size_t by_query = (four + square) * sizeof(float);
    cu_shared(lane, dkv_kernel<T, O, D>, by_key);
    cu_shared(lane, dq_kernel<T, D>, by_query);
    cu_launch(dkv_kernel<T, O, D>, keys, THREADS, by_key, lane->stream, a, w);
    cu_launch(dq_kernel<T, D>, queries, THREADS, by_query, lane->stream, a, w);
}

void cu_attn_fwd(k_ctx *ctx, const k_attn *s, const float *q, const float *k, const float *v,
                 float *o, float *lse)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    cu_attn a;
    if (s->batch * s->heads * s->s_q <= 0 || !cu_attn_of(lane, s, k, v, &a)) return;
    const bf16 *const qb = (const bf16 *)(const void *)q;
    bf16 *const ob = (bf16 *)(void *)o;
    if (lane->bf16 && cu_attn_fwd_mma(lane, a, qb, ob, lse)) return;
    if (lane->bf16 && a.d <= 64)
        fwd<bf16, 64>(lane, a, qb, ob, lse);
    else if (lane->bf16 && a.d <= 128)
        fwd<bf16, 128>(lane, a, qb, ob, lse);
    else if (lane->bf16)
        fwd<bf16, 256>(lane, a, qb, ob, lse);
    else if (a.d <= 64)
        fwd<float, 64>(lane, a, q, o, lse);
    else if (a.d <= 128)
        fwd<float, 128>(lane, a, q, o, lse);
    else
        fwd<float, 256>(lane, a, q, o, lse);
    cu_launched(lane, "attention");
}

template <typename T, typename O>
static void bwd_any(k_cuda_lane *lane, const cu_attn &a, const cu_attn_bwd_args &w)
{
    if (a.d <= 64)
        bwd<T, O, 64>(lane, a, w);
    else if (a.d <= 128)
        bwd<T, O, 128>(lane, a, w);
    else
        bwd<T, O, 256>(lane, a, w);
}

void cu_attn_bwd(k_ctx *ctx, const k_attn *s, bool accumulate, const float *q, const float *k,
                 const float *v, const float *o, const float *dout, const float *lse, float *delta,
                 float *dq, float *dk, float *dv)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    cu_attn a;
    if (s->batch * s->heads * s->s_q <= 0 || !cu_attn_of(lane, s, k, v, &a)) return;
    const cu_attn_bwd_args w = {q, dout, lse, delta, dq, dk, dv, accumulate};
    if (lane->bf16)
        find_delta(lane, a, (const bf16 *)(const void *)o, (const bf16 *)(const void *)dout, delta);
    else
        find_delta(lane, a, o, dout, delta);
    if (lane->bf16 && cu_attn_bwd_mma(lane, a, w, s->float_dkv)) return;
    if (!lane->bf16)
        bwd_any<float, float>(lane, a, w);
    else if (s->float_dkv)
        bwd_any<bf16, float>(lane, a, w);
    else
        bwd_any<bf16, bf16>(lane, a, w);
    cu_launched(lane, "attention backward");
}
