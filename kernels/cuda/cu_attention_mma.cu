/* Attention of bf16 heads of 64 or 128 on tensor cores: tiles of 64 keys and of 128 or 64 queries,
 * sixteen rows a warp, sums in fp32 registers (Dao 2023, "FlashAttention-2"; backward split by
 * owner, as in cu_attention.cu). While a block computes with one tile the next one is on its way to
 * shared memory. A tile's probabilities go from one product's result to the next one's operand
 * without leaving registers: both have the same layout there. */
#include "kernels/cuda/cu_attention.cuh"

enum { TILE = 64, THREADS = 32 * TILE / 16, QUERIES = 128, FWD_THREADS = 32 * QUERIES / 16 };
enum { BLOCKS = TILE / 8 };

/* Rows of shared memory are padded by 16 bytes, so that eight of them meet different banks. */
template <int D> struct pitch {
    static constexpr int value = D + 8, tile = TILE * value;
};

/* --- operands of the products: sixteen rows, or two times eight columns, of a tile --- */

/* A: rows from `row`, columns from `col` of x. */
template <int P>
static __device__ __forceinline__ void load_a(uint32_t a[4], const bf16 *x, int row, int col)
{
    const int lane = threadIdx.x % 32;
    cu_ldmatrix_x4<false>(a, x + (row + lane % 16) * P + col + lane / 16 * 8);
}

/* c, d += A times the transpose of rows [n, n + 8) and of the next eight of y, at columns from k.
 */
template <int P>
static __device__ __forceinline__ void multiply_turned(float c[4], float d[4], const uint32_t a[4],
                                                       const bf16 *y, int n, int k)
{
    const int lane = threadIdx.x % 32;
    uint32_t b[4];
    cu_ldmatrix_x4<false>(b, y + (n + lane / 16 * 8 + lane % 8) * P + k + lane / 8 % 2 * 8);
    cu_mma(c, a, b[0], b[1]);
    cu_mma(d, a, b[2], b[3]);
}

/* c, d += A times rows [k, k + 16) of y, at columns [n, n + 8) and the next eight. */
template <int P>
static __device__ __forceinline__ void multiply_plain(float c[4], float d[4], const uint32_t a[4],
                                                      const bf16 *y, int k, int n)
{
    const int lane = threadIdx.x % 32;
    uint32_t b[4];
    cu_ldmatrix_x4<true>(b, y + (k + lane % 16) * P + n + lane / 16 * 8);
    cu_mma(c, a, b[0], b[1]);
    cu_mma(d, a, b[2], b[3]);
}

/* c[n] += a warp's rows of x times the transpose of 8 N rows of y. */
template <int D, int N>
static __device__ __forceinline__ void multiply_rows(float c[N][4], const bf16 *x, int row,
                                                     const bf16 *y)
{
    constexpr int P = pitch<D>::value;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[4];
        load_a<P>(a, x, row, 16 * k);
#pragma unroll
        for (int n = 0; n < N; n += 2) multiply_turned<P>(c[n], c[n + 1], a, y, 8 * n, 16 * k);
    }
}

static __device__ __forceinline__ uint32_t pack(float low, float high)
{
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&both);
}

/* acc += s times 8 N rows of y, where s is the result of a product. */
template <int D, int N>
static __device__ __forceinline__ void multiply_result(float acc[D / 8][4], const float s[N][4],
                                                       const bf16 *y)
{
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        const float *const left = s[2 * k], *const right = s[2 * k + 1];
        const uint32_t a[4] = {pack(left[0], left[1]), pack(left[2], left[3]),
                               pack(right[0], right[1]), pack(right[2], right[3])};
#pragma unroll
        for (int n = 0; n < D / 8; n += 2)
            multiply_plain<pitch<D>::value>(acc[n], acc[n + 1], a, y, 16 * k, 8 * n);
    }
}

/* --- tiles: copies are started, not waited for --- */

/* Rows [from, from + ROWS) below `end`, zeros behind them. */
template <int D, int ROWS>
static __device__ void load_rows(bf16 *to, const bf16 *base, long ld, long from, long end)
{
    for (int i = threadIdx.x; i < ROWS * D / 8; i += blockDim.x) {
        const int row = i / (D / 8), col = i % (D / 8) * 8;
        const bool there = from + row < end;
        cu_copy_async(to + row * pitch<D>::value + col,
                      there ? base + (from + row) * ld + col : base, there);
    }
}

template <int D>
static __device__ void load_keys(bf16 *ks, bf16 *vs, const cu_attn &a, long b, long h, long from,
                                 long end)
{
    for (int i = threadIdx.x; i < TILE * D / 8; i += blockDim.x) {
        const int row = i / (D / 8), col = i % (D / 8) * 8, to = row * pitch<D>::value + col;
        const bool there = from + row < end;
        const int piece = there ? cu_piece(a, from + row) : 0;
        const long at = there ? cu_key_at(a, piece, b, h, from + row) + col : 0;
        cu_copy_async(ks + to, (const bf16 *)(const void *)a.pieces[piece].k + at, there);
        cu_copy_async(vs + to, (const bf16 *)(const void *)a.pieces[piece].v + at, there);
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

/* Two rows of a thread: the largest score so far, in powers of two, and its share of the sum. */
struct soft_rows {
    float top[2], sum[2];
};

/* Scores to exponentials less the largest, and what was summed before to the new largest. seen: the
 * columns of the tile that each row sees. */
template <int D>
static __device__ __forceinline__ void fold(float s[BLOCKS][4], soft_rows &w, float acc[D / 8][4],
                                            float scale, bool whole, const int seen[2])
{
    float most[2] = {w.top[0], w.top[1]};
#pragma unroll
    for (int n = 0; n < BLOCKS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int c = 8 * n + threadIdx.x % 4 * 2 + i % 2;
            s[n][i] = whole || c < seen[i / 2] ? s[n][i] * scale : -INFINITY;
            most[i / 2] = fmaxf(most[i / 2], s[n][i]);
        }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        most[i] = quad_max(most[i]);
        const float shrink = most[i] == -INFINITY ? 1.0f : exp2f(w.top[i] - most[i]);
        w.top[i] = most[i];
        most[i] = most[i] == -INFINITY ? 0.0f : most[i];
        w.sum[i] *= shrink;
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
            w.sum[i / 2] += s[n][i];
        }
}

template <int D>
__global__ void __launch_bounds__(FWD_THREADS, D == 64 ? 2 : 1)
    mma_fwd_kernel(const __grid_constant__ cu_attn a, const bf16 *q, bf16 *o, float *lse)
{
    CU_DYNAMIC(bf16, room); /* two pairs of tiles, keys and values */
    constexpr int P = pitch<D>::value, N = pitch<D>::tile;
    const long q0 = (gridDim.x - 1 - blockIdx.x) * (long)QUERIES, h = blockIdx.y, b = blockIdx.z;
    const long kv_head = h / (a.heads / a.kv_heads);
    const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    const long r[2] = {q0 + row + lane / 4, q0 + row + lane / 4 + 8};
    const int all_see = (int)cu_seen(a, b, q0 + row), one_sees = (int)cu_seen(a, b, q0 + row + 15);
    uint32_t qa[D / 16][4];
    float acc[D / 8][4] = {};
    soft_rows w = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    load_rows<D, QUERIES>(room, q + b * a.q_batch + h * D, a.q_ld, q0, a.s_q);
    cu_copy_group();
    cu_copy_wait<0>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < D / 16; k++) load_a<P>(qa[k], room, row, 16 * k);
    __syncthreads();
    const int end = (int)cu_seen(a, b, min(q0 + QUERIES, a.s_q) - 1);
    load_keys<D>(room, room + N, a, b, kv_head, 0, end);
    cu_copy_group();
    for (int k0 = 0; k0 < end; k0 += TILE) {
        const bf16 *const ks = room + k0 / TILE % 2 * 2 * N, *const vs = ks + N;
        bf16 *const next = room + (k0 / TILE + 1) % 2 * 2 * N;
        if (k0 + TILE < end) load_keys<D>(next, next + N, a, b, kv_head, k0 + TILE, end);
        cu_copy_group();
        cu_copy_wait<1>();
        __syncthreads();
        if (k0 < one_sees) {
            float s[BLOCKS][4] = {};
            const int seen[2] = {(int)cu_seen(a, b, r[0]) - k0, (int)cu_seen(a, b, r[1]) - k0};
#pragma unroll
            for (int k = 0; k < D / 16; k++)
#pragma unroll
                for (int n = 0; n < BLOCKS; n += 2)
                    multiply_turned<P>(s[n], s[n + 1], qa[k], ks, 8 * n, 16 * k);
            fold<D>(s, w, acc, a.scale * LOG2E, k0 + TILE <= all_see, seen);
            multiply_result<D, BLOCKS>(acc, s, vs);
        }
        __syncthreads();
    }
    cu_copy_wait<0>();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float all = quad_sum(w.sum[i]), inv = 1.0f / all;
        if (r[i] >= a.s_q) continue;
        bf16 *const to = o + b * a.o_batch + r[i] * a.o_ld + h * D + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *reinterpret_cast<uint32_t *>(to + 8 * n) =
                pack(acc[n][2 * i] * inv, acc[n][2 * i + 1] * inv);
        if (lane % 4 == 0) lse[(b * a.heads + h) * a.s_q + r[i]] = (w.top[i] + log2f(all)) * LN2;
    }
}

/* --- backward --- */

template <typename O> static __device__ __forceinline__ void put(O *at, float x, float y, bool add)
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

/* A tile of queries, what their rows' gradients are, and two numbers of each row. */
template <int D> struct query_tile {
    bf16 rows[2][pitch<D>::tile];
    float lse[TILE], delta[TILE];
};

template <int D>
static __device__ void load_queries(query_tile<D> &to, const cu_attn &a, const cu_attn_bwd_args &w,
                                    long b, long h, long q0)
{
    load_rows<D, TILE>(to.rows[0], (const bf16 *)w.q + b * a.q_batch + h * D, a.q_ld, q0, a.s_q);
    load_rows<D, TILE>(to.rows[1], (const bf16 *)w.dout + b * a.o_batch + h * D, a.o_ld, q0, a.s_q);
    if (threadIdx.x >= TILE) return;
    const long r = q0 + threadIdx.x, at = (b * a.heads + h) * a.s_q + r;
    to.lse[threadIdx.x] = r < a.s_q ? w.lse[at] * LOG2E : 0.0f;
    to.delta[threadIdx.x] = r < a.s_q ? w.delta[at] : 0.0f;
}

/* What 8 N queries of a tile, from the `from`-th, give to a warp's keys. key0, q0: the warp's first
 * key and the tile's first query. */
template <int D, int N>
static __device__ __forceinline__ void
add_queries(float dk[D / 8][4], float dv[D / 8][4], const bf16 *ks, const bf16 *vs,
            const query_tile<D> &t, int from, const cu_attn &a, long b, bool whole, long key0,
            long q0)
{
    const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    const bf16 *const qs = t.rows[0] + from * pitch<D>::value;
    const bf16 *const dos = t.rows[1] + from * pitch<D>::value;
    float s[N][4] = {}, dp[N][4] = {};
    multiply_rows<D, N>(s, ks, row, qs);
    multiply_rows<D, N>(dp, vs, row, dos);
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int col = from + 8 * n + lane % 4 * 2 + j % 2;
            const long key = key0 + lane / 4 + j / 2 * 8, r = q0 + col;
            const bool sees_it = whole || (r < a.s_q && key < cu_seen(a, b, r));
            s[n][j] = sees_it ? exp2f(s[n][j] * (a.scale * LOG2E) - t.lse[col]) : 0.0f;
            dp[n][j] = s[n][j] * (dp[n][j] - t.delta[col]) * a.scale;
        }
    multiply_result<D, N>(dv, s, dos);
    multiply_result<D, N>(dk, dp, qs);
}

/* One block owns 64 keys of one key head and takes all queries that see them in order. */
template <typename O, int D>
__global__ void __launch_bounds__(THREADS)
    mma_dkv_kernel(const __grid_constant__ cu_attn a, const __grid_constant__ cu_attn_bwd_args w)
{
    CU_DYNAMIC(bf16, room);
    constexpr int N = pitch<D>::tile;
    bf16 *const ks = room, *const vs = ks + N;
    query_tile<D> *const tile = reinterpret_cast<query_tile<D> *>(vs + N); /* two of them */
    const long k0 = blockIdx.x * (long)TILE, kv_head = blockIdx.y, b = blockIdx.z;
    const long group = a.heads / a.kv_heads;
    constexpr int PART = D == 64 ? BLOCKS : BLOCKS / 2; /* all that registers hold */
    const int row = threadIdx.x / 32 * 16;
    const long last_key = min(k0 + row + 15, a.s_kv - 1);
    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    const long sees = a.causal ? max(0L, k0 - (a.s_kv - a.s_q)) : 0;
    const long first = sees / TILE, each = max(0L, (a.s_q + TILE - 1) / TILE - first);
    load_keys<D>(ks, vs, a, b, kv_head, k0, a.s_kv);
    if (each > 0) load_queries<D>(tile[0], a, w, b, kv_head * group, first * TILE);
    cu_copy_group();
    for (long i = 0; i < group * each; i++) {
        const query_tile<D> &now = tile[i % 2];
        const long q0 = (first + i % each) * TILE, next = i + 1;
        if (next < group * each)
            load_queries<D>(tile[next % 2], a, w, b, kv_head * group + next / each,
                            (first + next % each) * TILE);
        cu_copy_group();
        cu_copy_wait<1>();
        __syncthreads();
        const bool whole = q0 + TILE <= a.s_q && last_key < cu_seen(a, b, q0);
#pragma unroll 1
        for (int from = 0; from < TILE; from += 8 * PART)
            add_queries<D, PART>(dk, dv, ks, vs, now, from, a, b, whole, k0 + row, q0);
        __syncthreads();
    }
    cu_copy_wait<0>();
    const long at = b * a.dkv_batch + kv_head * D;
    put_rows<O, D>(dk, (O *)w.dk + at, a.dkv_ld, k0 + row, a.s_kv, w.accumulate);
    put_rows<O, D>(dv, (O *)w.dv + at, a.dkv_ld, k0 + row, a.s_kv, w.accumulate);
}

/* One block owns 64 queries of one head. */
template <int D>
__global__ void __launch_bounds__(THREADS, D == 64 ? 3 : 2)
    mma_dq_kernel(const __grid_constant__ cu_attn a, const __grid_constant__ cu_attn_bwd_args w)
{
    CU_DYNAMIC(bf16, room);
    constexpr int N = pitch<D>::tile;
    bf16 *const qs = room, *const dos = qs + N, *const keys = dos + N; /* two pairs of tiles */
    const long q0 = (gridDim.x - 1 - blockIdx.x) * (long)TILE, h = blockIdx.y, b = blockIdx.z;
    const long kv_head = h / (a.heads / a.kv_heads);
    const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    const long all_see = cu_seen(a, b, q0 + row);
    float dq[D / 8][4] = {}, lse[2], delta[2];
    long seen[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const long r = q0 + row + lane / 4 + 8 * i, at = (b * a.heads + h) * a.s_q + r;
        lse[i] = r < a.s_q ? w.lse[at] * LOG2E : 0.0f;
        delta[i] = r < a.s_q ? w.delta[at] : 0.0f;
        seen[i] = r < a.s_q ? cu_seen(a, b, r) : 0;
    }
    load_rows<D, TILE>(qs, (const bf16 *)w.q + b * a.q_batch + h * D, a.q_ld, q0, a.s_q);
    load_rows<D, TILE>(dos, (const bf16 *)w.dout + b * a.o_batch + h * D, a.o_ld, q0, a.s_q);
    const long end = cu_seen(a, b, min(q0 + TILE, a.s_q) - 1);
    load_keys<D>(keys, keys + N, a, b, kv_head, 0, end);
    cu_copy_group();
    for (long k0 = 0; k0 < end; k0 += TILE) {
        const bf16 *const ks = keys + k0 / TILE % 2 * 2 * N, *const vs = ks + N;
        bf16 *const next = keys + (k0 / TILE + 1) % 2 * 2 * N;
        if (k0 + TILE < end) load_keys<D>(next, next + N, a, b, kv_head, k0 + TILE, end);
        cu_copy_group();
        cu_copy_wait<1>();
        __syncthreads();
        float s[BLOCKS][4] = {}, dp[BLOCKS][4] = {};
        multiply_rows<D, BLOCKS>(s, qs, row, ks);
        multiply_rows<D, BLOCKS>(dp, dos, row, vs);
        const bool whole = q0 + TILE <= a.s_q && k0 + TILE <= all_see;
#pragma unroll
        for (int n = 0; n < BLOCKS; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const long c = k0 + 8 * n + lane % 4 * 2 + j % 2;
                const float p = whole || c < seen[j / 2]
                                    ? exp2f(s[n][j] * (a.scale * LOG2E) - lse[j / 2])
                                    : 0.0f;
                dp[n][j] = p * (dp[n][j] - delta[j / 2]) * a.scale;
            }
        multiply_result<D, BLOCKS>(dq, dp, ks);
        __syncthreads();
    }
    cu_copy_wait<0>();
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

static unsigned tiles_of(long n, long tile) { return (unsigned)cu_ceil(n, tile); }

template <int D>
static void fwd(k_cuda_lane *lane, const cu_attn &a, const bf16 *q, bf16 *o, float *lse)
{
    const size_t shared = 4 * pitch<D>::tile * sizeof(bf16);
    cu_shared(lane, mma_fwd_kernel<D>, shared);
    const dim3 grid(tiles_of(a.s_q, QUERIES), (unsigned)a.heads, (unsigned)a.batch);
    cu_launch(mma_fwd_kernel<D>, grid, FWD_THREADS, shared, lane->stream, a, q, o, lse);
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
    const dim3 keys(tiles_of(a.s_kv, TILE), (unsigned)a.kv_heads, (unsigned)a.batch);
    const dim3 queries(tiles_of(a.s_q, TILE), (unsigned)a.heads, (unsigned)a.batch);
    const size_t by_key = 2 * (pitch<D>::tile * sizeof(bf16) + sizeof(query_tile<D>));
    const size_t by_query = 6 * pitch<D>::tile * sizeof(bf16);
    cu_shared(lane, mma_dkv_kernel<O, D>, by_key);
    cu_shared(lane, mma_dq_kernel<D>, by_query);
    cu_launch(mma_dkv_kernel<O, D>, keys, THREADS, by_key, lane->stream, a, w);
    cu_launch(mma_dq_kernel<D>, queries, THREADS, by_query, lane->stream, a, w);
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
