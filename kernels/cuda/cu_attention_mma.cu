/* Attention of bf16 heads of 64 or 128 on tensor cores: tiles of 64 queries and 64 keys, sixteen
 * rows a warp, sums in fp32 registers (Dao 2023, "FlashAttention-2"; backward split by owner, as in
 * cu_attention.cu). A tile's probabilities go from one product's result to the next one's operand
 * without leaving registers: both have the same layout there. */
#include "kernels/cuda/cu_attention.cuh"

enum { TILE = 64, WARPS = 4, THREADS = 32 * WARPS, BLOCKS = TILE / 8, STEPS = TILE / 16 };

/* Rows of shared memory are padded by 16 bytes, so that eight of them meet different banks. */
template <int D> struct pitch {
    static constexpr int value = D + 8;
};

/* --- tensor cores --- */

static __device__ __forceinline__ uint32_t word_at(const bf16 *p)
{
    return *reinterpret_cast<const uint32_t *>(p);
}

/* A: rows from `row`, columns from `col` of x. */
template <int P>
static __device__ __forceinline__ void load_a(uint32_t a[4], const bf16 *x, int row, int col)
{
    const int lane = threadIdx.x % 32;
    const bf16 *const at = x + (row + lane / 4) * P + col + lane % 4 * 2;
    a[0] = word_at(at);
    a[1] = word_at(at + 8 * P);
    a[2] = word_at(at + 8);
    a[3] = word_at(at + 8 * P + 8);
}

/* c += A times the transpose of rows [n, n + 8) of y, at columns from k. */
template <int P>
static __device__ __forceinline__ void multiply_turned(float c[4], const uint32_t a[4],
                                                       const bf16 *y, int n, int k)
{
    const int lane = threadIdx.x % 32;
    const bf16 *const at = y + (n + lane / 4) * P + k + lane % 4 * 2;
    cu_mma(c, a, word_at(at), word_at(at + 8));
}

/* c += A times rows [k, k + 16) of y, at columns [n, n + 8). */
template <int P>
static __device__ __forceinline__ void multiply_plain(float c[4], const uint32_t a[4],
                                                      const bf16 *y, int k, int n)
{
    uint32_t b[2];
    cu_ldmatrix_x2_trans(b, y + (k + threadIdx.x % 16) * P + n);
    cu_mma(c, a, b[0], b[1]);
}

static __device__ __forceinline__ uint32_t pack(float low, float high)
{
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&both);
}

/* Sixteen columns of results as an operand A. */
static __device__ __forceinline__ void take_a(uint32_t a[4], const float left[4],
                                              const float right[4])
{
    a[0] = pack(left[0], left[1]);
    a[1] = pack(left[2], left[3]);
    a[2] = pack(right[0], right[1]);
    a[3] = pack(right[2], right[3]);
}

/* --- tiles --- */

/* Rows [from, from + TILE) below `end`, zeros behind them; 16 bytes at a time. */
template <int D>
static __device__ void load_rows(bf16 *to, const bf16 *base, long ld, long from, long end)
{
    for (int i = threadIdx.x; i < TILE * D / 8; i += THREADS) {
        const int row = i / (D / 8), col = i % (D / 8) * 8;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (from + row < end)
            x = *reinterpret_cast<const uint4 *>(base + (from + row) * ld + col);
        *reinterpret_cast<uint4 *>(to + row * pitch<D>::value + col) = x;
    }
}

template <int D>
static __device__ void load_keys(bf16 *ks, bf16 *vs, const cu_attn &a, long b, long h, long from,
                                 long end)
{
    for (int i = threadIdx.x; i < TILE * D / 8; i += THREADS) {
        const int row = i / (D / 8), col = i % (D / 8) * 8;
        uint4 k = make_uint4(0, 0, 0, 0), v = k;
        if (from + row < end) {
            const int piece = cu_piece(a, from + row);
            const long at = cu_key_at(a, piece, b, h, from + row) + col;
            k = *reinterpret_cast<const uint4 *>((const bf16 *)(const void *)a.pieces[piece].k +
                                                 at);
            v = *reinterpret_cast<const uint4 *>((const bf16 *)(const void *)a.pieces[piece].v +
                                                 at);
        }
        *reinterpret_cast<uint4 *>(ks + row * pitch<D>::value + col) = k;
        *reinterpret_cast<uint4 *>(vs + row * pitch<D>::value + col) = v;
    }
}

static constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.69314718055994531f;

/* Over the four threads that share a row. */
static __device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

static __device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* --- forward --- */

template <int D>
__global__ void __launch_bounds__(THREADS)
    mma_fwd_kernel(const __grid_constant__ cu_attn a, const bf16 *q, bf16 *o, float *lse)
{
    CU_DYNAMIC(bf16, room);
    constexpr int P = pitch<D>::value;
    bf16 *const ks = room, *const vs = ks + TILE * P;
    const long q0 = (gridDim.x - 1 - blockIdx.x) * (long)TILE, h = blockIdx.y, b = blockIdx.z;
    const long kv_head = h / (a.heads / a.kv_heads);
    const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    const long r[2] = {q0 + row + lane / 4, q0 + row + lane / 4 + 8};
    const long seen[2] = {cu_seen(a, b, r[0]), cu_seen(a, b, r[1])};
    const float scale = a.scale * LOG2E;
    uint32_t qa[D / 16][4];
    float acc[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    load_rows<D>(ks, q + b * a.q_batch + h * D, a.q_ld, q0, a.s_q);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < D / 16; k++) load_a<P>(qa[k], ks, row, 16 * k);
    const long end = cu_seen(a, b, min(q0 + TILE, a.s_q) - 1);
    for (long k0 = 0; k0 < end; k0 += TILE) {
        __syncthreads();
        load_keys<D>(ks, vs, a, b, kv_head, k0, end);
        __syncthreads();
        float s[BLOCKS][4] = {}, most[2] = {top[0], top[1]};
#pragma unroll
        for (int k = 0; k < D / 16; k++)
#pragma unroll
            for (int n = 0; n < BLOCKS; n++) multiply_turned<P>(s[n], qa[k], ks, 8 * n, 16 * k);
#pragma unroll
        for (int n = 0; n < BLOCKS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const long c = k0 + 8 * n + lane % 4 * 2 + i % 2;
                s[n][i] = c < seen[i / 2] ? s[n][i] * scale : -INFINITY;
                most[i / 2] = fmaxf(most[i / 2], s[n][i]);
            }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            most[i] = quad_max(most[i]);
            const float shrink = most[i] == -INFINITY ? 1.0f : exp2f(top[i] - most[i]);
            top[i] = most[i];
            most[i] = most[i] == -INFINITY ? 0.0f : most[i];
            sum[i] *= shrink;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                acc[n][2 * i] *= shrink;
                acc[n][2 * i + 1] *= shrink;
            }
        }
#pragma unroll
        for (int n = 0; n < BLOCKS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[n][i] = exp2f(s[n][i] - most[i / 2]);
                sum[i / 2] += s[n][i];
            }
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            uint32_t pa[4];
            take_a(pa, s[2 * k], s[2 * k + 1]);
#pragma unroll
            for (int n = 0; n < D / 8; n++) multiply_plain<P>(acc[n], pa, vs, 16 * k, 8 * n);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float all = quad_sum(sum[i]), inv = 1.0f / all;
        if (r[i] >= a.s_q) continue;
        bf16 *const to = o + b * a.o_batch + r[i] * a.o_ld + h * D + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *reinterpret_cast<uint32_t *>(to + 8 * n) =
                pack(acc[n][2 * i] * inv, acc[n][2 * i + 1] * inv);
        if (lane % 4 == 0)
            lse[(b * a.heads + h) * a.s_q + r[i]] = (top[i] + log2f(all)) * LN2;
    }
}

/* --- backward --- */

template <typename O>
static __device__ __forceinline__ void put(O *at, float x, float y, bool add)
{
    if constexpr (sizeof(O) == sizeof(float)) {
        at[0] = add ? at[0] + x : x;
        at[1] = add ? at[1] + y : y;
    } else {
        if (add) {
            x += cu_float(at[0]);
            y += cu_float(at[1]);
        }
        *reinterpret_cast<uint32_t *>(at) = pack(x, y);
    }
}

/* A warp's sixteen rows from `from`, those below `end`. */
template <typename O, int D>
static __device__ void put_rows(const float acc[D / 8][4], O *base, long ld, long from, long end,
                                bool add)
{
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const long r = from + lane / 4 + 8 * i;
        if (r >= end) continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            put(base + r * ld + 8 * n + lane % 4 * 2, acc[n][2 * i], acc[n][2 * i + 1], add);
    }
}

/* One block owns 64 keys of one key head and takes all queries that see them in order. */
template <typename O, int D>
__global__ void __launch_bounds__(THREADS)
    mma_dkv_kernel(const __grid_constant__ cu_attn a, const __grid_constant__ cu_attn_bwd_args w)
{
    CU_DYNAMIC(bf16, room);
    constexpr int P = pitch<D>::value, N = TILE * P;
    bf16 *const ks = room, *const vs = ks + N, *const qs = vs + N, *const dos = qs + N;
    float *const lses = reinterpret_cast<float *>(dos + N), *const deltas = lses + TILE;
    const long k0 = blockIdx.x * (long)TILE, kv_head = blockIdx.y, b = blockIdx.z;
    const long group = a.heads / a.kv_heads;
    const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    const float scale = a.scale * LOG2E;
    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    load_keys<D>(ks, vs, a, b, kv_head, k0, a.s_kv);
    const long sees = a.causal ? max(0L, k0 - (a.s_kv - a.s_q)) : 0;
    const long tiles = (a.s_q + TILE - 1) / TILE, first = sees / TILE;
    for (long i = 0; first < tiles && i < group * (tiles - first); i++) {
        const long h = kv_head * group + i / (tiles - first);
        const long q0 = (first + i % (tiles - first)) * TILE;
        __syncthreads();
        load_rows<D>(qs, (const bf16 *)w.q + b * a.q_batch + h * D, a.q_ld, q0, a.s_q);
        load_rows<D>(dos, (const bf16 *)w.dout + b * a.o_batch + h * D, a.o_ld, q0, a.s_q);
        if (threadIdx.x < TILE) {
            const long r = q0 + threadIdx.x, at = (b * a.heads + h) * a.s_q + r;
            lses[threadIdx.x] = r < a.s_q ? w.lse[at] * LOG2E : 0.0f;
            deltas[threadIdx.x] = r < a.s_q ? w.delta[at] : 0.0f;
        }
        __syncthreads();
        float s[BLOCKS][4] = {}, dp[BLOCKS][4] = {};
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t xa[4];
            load_a<P>(xa, ks, row, 16 * k);
#pragma unroll
            for (int n = 0; n < BLOCKS; n++) multiply_turned<P>(s[n], xa, qs, 8 * n, 16 * k);
            load_a<P>(xa, vs, row, 16 * k);
#pragma unroll
            for (int n = 0; n < BLOCKS; n++) multiply_turned<P>(dp[n], xa, dos, 8 * n, 16 * k);
        }
#pragma unroll
        for (int n = 0; n < BLOCKS; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int col = 8 * n + lane % 4 * 2 + j % 2;
                const long key = k0 + row + lane / 4 + j / 2 * 8, r = q0 + col;
                const bool sees_it = r < a.s_q && key < cu_seen(a, b, r);
                s[n][j] = sees_it ? exp2f(s[n][j] * scale - lses[col]) : 0.0f;
                dp[n][j] = s[n][j] * (dp[n][j] - deltas[col]) * a.scale;
            }
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            uint32_t xa[4];
            take_a(xa, s[2 * k], s[2 * k + 1]);
#pragma unroll
            for (int n = 0; n < D / 8; n++) multiply_plain<P>(dv[n], xa, dos, 16 * k, 8 * n);
            take_a(xa, dp[2 * k], dp[2 * k + 1]);
#pragma unroll
            for (int n = 0; n < D / 8; n++) multiply_plain<P>(dk[n], xa, qs, 16 * k, 8 * n);
        }
    }
    const long at = b * a.dkv_batch + kv_head * D;
    put_rows<O, D>(dk, (O *)w.dk + at, a.dkv_ld, k0 + row, a.s_kv, w.accumulate);
    put_rows<O, D>(dv, (O *)w.dv + at, a.dkv_ld, k0 + row, a.s_kv, w.accumulate);
}

/* One block owns 64 queries of one head. */
template <int D>
__global__ void __launch_bounds__(THREADS)
    mma_dq_kernel(const __grid_constant__ cu_attn a, const __grid_constant__ cu_attn_bwd_args w)
{
    CU_DYNAMIC(bf16, room);
    constexpr int P = pitch<D>::value, N = TILE * P;
    bf16 *const qs = room, *const dos = qs + N, *const ks = dos + N, *const vs = ks + N;
    const long q0 = (gridDim.x - 1 - blockIdx.x) * (long)TILE, h = blockIdx.y, b = blockIdx.z;
    const long kv_head = h / (a.heads / a.kv_heads);
    const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    const float scale = a.scale * LOG2E;
    float dq[D / 8][4] = {}, lse[2], delta[2];
    long seen[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const long r = q0 + row + lane / 4 + 8 * i, at = (b * a.heads + h) * a.s_q + r;
        lse[i] = r < a.s_q ? w.lse[at] * LOG2E : 0.0f;
        delta[i] = r < a.s_q ? w.delta[at] : 0.0f;
        seen[i] = r < a.s_q ? cu_seen(a, b, r) : 0;
    }
    load_rows<D>(qs, (const bf16 *)w.q + b * a.q_batch + h * D, a.q_ld, q0, a.s_q);
    load_rows<D>(dos, (const bf16 *)w.dout + b * a.o_batch + h * D, a.o_ld, q0, a.s_q);
    const long end = cu_seen(a, b, min(q0 + TILE, a.s_q) - 1);
    for (long k0 = 0; k0 < end; k0 += TILE) {
        __syncthreads();
        load_keys<D>(ks, vs, a, b, kv_head, k0, end);
        __syncthreads();
        float s[BLOCKS][4] = {}, dp[BLOCKS][4] = {};
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t xa[4];
            load_a<P>(xa, qs, row, 16 * k);
#pragma unroll
            for (int n = 0; n < BLOCKS; n++) multiply_turned<P>(s[n], xa, ks, 8 * n, 16 * k);
            load_a<P>(xa, dos, row, 16 * k);
#pragma unroll
            for (int n = 0; n < BLOCKS; n++) multiply_turned<P>(dp[n], xa, vs, 8 * n, 16 * k);
        }
#pragma unroll
        for (int n = 0; n < BLOCKS; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const long c = k0 + 8 * n + lane % 4 * 2 + j % 2;
                const float p = c < seen[j / 2] ? exp2f(s[n][j] * scale - lse[j / 2]) : 0.0f;
                dp[n][j] = p * (dp[n][j] - delta[j / 2]) * a.scale;
            }
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            uint32_t xa[4];
            take_a(xa, dp[2 * k], dp[2 * k + 1]);
#pragma unroll
            for (int n = 0; n < D / 8; n++) multiply_plain<P>(dq[n], xa, ks, 16 * k, 8 * n);
        }
    }
    put_rows<bf16, D>(dq, (bf16 *)w.dq + b * a.dq_batch + h * D, a.dq_ld, q0 + row, a.s_q, false);
}

/* --- launches --- */

static bool aligned(const void *p, long ld, long batch)
{
    return (uintptr_t)p % 16 == 0 && ld % 8 == 0 && batch % 8 == 0;
}

/* Whether all rows can be read 16 bytes at a time. */
static bool fits(const cu_attn &a)
{
    bool fine = a.d == 64 || a.d == 128;
    for (int i = 0; i < a.n_pieces; i++)
        fine = fine && aligned(a.pieces[i].k, a.pieces[i].ld, a.pieces[i].batch) &&
               aligned(a.pieces[i].v, 0, 0);
    return fine;
}

static unsigned tiles_of(long n) { return (unsigned)cu_ceil(n, TILE); }

template <int D>
static void fwd(k_cuda_lane *lane, const cu_attn &a, const bf16 *q, bf16 *o, float *lse)
{
    const size_t shared = 2 * TILE * pitch<D>::value * sizeof(bf16);
    cu_shared(lane, mma_fwd_kernel<D>, shared);
    const dim3 grid(tiles_of(a.s_q), (unsigned)a.heads, (unsigned)a.batch);
    cu_launch(mma_fwd_kernel<D>, grid, THREADS, shared, lane->stream, a, q, o, lse);
    cu_launched(lane, "attention on tensor cores");
}

bool cu_attn_fwd_mma(k_cuda_lane *lane, const cu_attn &a, const bf16 *q, bf16 *o, float *lse)
{
    if (!fits(a) || !aligned(q, a.q_ld, a.q_batch) || !aligned(o, a.o_ld, a.o_batch)) return false;
    if (a.d == 64)
        fwd<64>(lane, a, q, o, lse);
    else
        fwd<128>(lane, a, q, o, lse);
    return true;
}

template <typename O, int D>
static void bwd(k_cuda_lane *lane, const cu_attn &a, const cu_attn_bwd_args &w)
{
    const dim3 keys(tiles_of(a.s_kv), (unsigned)a.kv_heads, (unsigned)a.batch);
    const dim3 queries(tiles_of(a.s_q), (unsigned)a.heads, (unsigned)a.batch);
    const size_t four = 4 * TILE * pitch<D>::value * sizeof(bf16);
    const size_t by_key = four + 2 * TILE * sizeof(float);
    cu_shared(lane, mma_dkv_kernel<O, D>, by_key);
    cu_shared(lane, mma_dq_kernel<D>, four);
    cu_launch(mma_dkv_kernel<O, D>, keys, THREADS, by_key, lane->stream, a, w);
    cu_launch(mma_dq_kernel<D>, queries, THREADS, four, lane->stream, a, w);
    cu_launched(lane, "attention backward on tensor cores");
}

bool cu_attn_bwd_mma(k_cuda_lane *lane, const cu_attn &a, const cu_attn_bwd_args &w, bool float_dkv)
{
    if (!fits(a) || !aligned(w.q, a.q_ld, a.q_batch) || !aligned(w.dout, a.o_ld, a.o_batch) ||
        !aligned(w.dq, a.dq_ld, a.dq_batch) || !aligned(w.dk, a.dkv_ld, a.dkv_batch) ||
        !aligned(w.dv, a.dkv_ld, a.dkv_batch))
        return false;
    if (a.d == 64 && float_dkv)
        bwd<float, 64>(lane, a, w);
    else if (a.d == 64)
        bwd<bf16, 64>(lane, a, w);
    else if (float_dkv)
        bwd<float, 128>(lane, a, w);
    else
        bwd<bf16, 128>(lane, a, w);
    return true;
}
