/* Rotary positions, embedding, cross-entropy. */
#include "kernels/cuda/cu_common.cuh"

/* OWNED: columns of a table's row that a block adds to */
enum { THREADS = 256, XENT_THREADS = 512, OWNED = 4 * THREADS };

/* --- rotary positions --- */

/* One thread turns N pairs of a head. */
template <typename T, int N>
__global__ void rope_kernel(long rows, long seq, long pos0, long heads, long d, float sign,
                            const float *table, T *x, long ld)
{
    const long half = d / 2, each = half / N, all = rows * heads * each;
    for (long i = blockIdx.x * (long)THREADS + threadIdx.x; i < all;
         i += gridDim.x * (long)THREADS) {
        const long at = i % each * N, h = i / each % heads, r = i / each / heads;
        const float *const turn = table + (pos0 + r % seq) * d + at;
        T *const lo = x + r * ld + h * d + at, *const hi = lo + half;
        float c[N], s[N], a[N], b[N], y[N], z[N];
        cu_take<float, N>(turn, c);
        cu_take<float, N>(turn + half, s);
        cu_take<T, N>(lo, a);
        cu_take<T, N>(hi, b);
#pragma unroll
        for (int k = 0; k < N; k++) {
            y[k] = a[k] * c[k] - b[k] * (s[k] * sign);
            z[k] = b[k] * c[k] + a[k] * (s[k] * sign);
        }
        cu_put<T, N>(lo, y);
        cu_put<T, N>(hi, z);
    }
}

static unsigned grid_for(long n)
{
    const long blocks = cu_ceil(n, THREADS), most = 65535 * 16;
    return (unsigned)(blocks < most ? blocks : most);
}

template <typename T>
static void rope(k_cuda_lane *lane, long rows, long seq, long pos0, long heads, long d, float sign,
                 const float *table, T *x, long ld)
{
    const bool wide =
        d % 8 == 0 && ld % 4 == 0 && (uintptr_t)x % 16 == 0 && (uintptr_t)table % 16 == 0;
    const unsigned grid = grid_for(rows * heads * d / (wide ? 8 : 2));
    if (wide)
        cu_launch(rope_kernel<T, 4>, grid, THREADS, 0, lane->stream, rows, seq, pos0, heads, d,
                  sign, table, x, ld);
    else
        cu_launch(rope_kernel<T, 1>, grid, THREADS, 0, lane->stream, rows, seq, pos0, heads, d,
                  sign, table, x, ld);
    cu_launched(lane, "rope");
}

void cu_rope(k_ctx *ctx, bool backward, long rows, long seq, long pos0, long heads, long d,
             const float *table, float *x, long ld)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    const float sign = backward ? -1.0f : 1.0f;
    if (rows * heads * d <= 0) return;
    if (lane->bf16)
        rope(lane, rows, seq, pos0, heads, d, sign, table, (bf16 *)(void *)x, ld);
    else
        rope(lane, rows, seq, pos0, heads, d, sign, table, x, ld);
}

/* --- embedding --- */

template <typename T, int V>
__global__ void embed_fwd_kernel(long rows, long seq, long pos0, long cols, const int32_t *ids,
                                 k_words words, const T *tok, const T *pos, const T *extra, T *y)
{
    const long per_row = cols / V, all = rows * per_row;
    for (long i = blockIdx.x * (long)THREADS + threadIdx.x; i < all;
         i += gridDim.x * (long)THREADS) {
        const long r = i / per_row, c = i % per_row * V, word = ids[r] - words.first;
        float v[V] = {}, w[V];
        if (word >= 0 && word < words.count) cu_load<T, V>(tok + word * cols + c, v);
        if (pos) {
            cu_load<T, V>(pos + (pos0 + r % seq) * cols + c, w);
#pragma unroll
            for (int k = 0; k < V; k++) v[k] += w[k];
        }
        if (extra) {
            cu_load<T, V>(extra + c, w);
#pragma unroll
            for (int k = 0; k < V; k++) v[k] += w[k];
        }
        cu_store<T, V>(y + r * cols + c, v);
    }
}

template <typename T>
static void embed_fwd(k_cuda_lane *lane, long rows, long seq, long pos0, long cols,
                      const int32_t *ids, k_words words, const void *tok, const void *pos,
                      const void *extra, void *y)
{
    constexpr int V = 16 / sizeof(T);
    if (cu_wide<T>(cols, tok, pos, extra, y))
        cu_launch(embed_fwd_kernel<T, V>, grid_for(rows * cols / V), THREADS, 0, lane->stream, rows,
                  seq, pos0, cols, ids, words, (const T *)tok, (const T *)pos, (const T *)extra,
                  (T *)y);
    else
        cu_launch(embed_fwd_kernel<T, 1>, grid_for(rows * cols), THREADS, 0, lane->stream, rows,
                  seq, pos0, cols, ids, words, (const T *)tok, (const T *)pos, (const T *)extra,
                  (T *)y);
    cu_launched(lane, "embedding");
}

void cu_embed_fwd(k_ctx *ctx, long rows, long seq, long pos0, long cols, const int32_t *ids,
                  k_words words, const float *tok, const float *pos, const float *extra, float *y)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    if (rows <= 0 || cols <= 0) return;
    if (lane->bf16)
        embed_fwd<bf16>(lane, rows, seq, pos0, cols, ids, words, tok, pos, extra, y);
    else
        embed_fwd<float>(lane, rows, seq, pos0, cols, ids, words, tok, pos, extra, y);
}

/* The rows among [from, from + THREADS) that have an id, in order: how many, and where. */
static __device__ int rows_with(const int32_t *ids, long rows, long from, int32_t id, int *list,
                                int *counts)
{
    const long r = from + threadIdx.x;
    const bool same = r < rows && ids[r] == id;
    if (!__syncthreads_or(same)) return 0;
    const unsigned mask = __ballot_sync(0xffffffffu, same);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) counts[warp] = __popc(mask);
    __syncthreads();
    int n = 0, before = 0;
    for (int w = 0; w < THREADS / 32; w++) {
        before += w < warp ? counts[w] : 0;
        n += counts[w];
    }
    if (same) list[before + __popc(mask & ((1u << lane) - 1))] = threadIdx.x;
    __syncthreads();
    return n;
}

/* The blocks of the first row with an id add all rows with that id, in order, each its columns; the
 * others find an earlier one and leave. */
template <typename T>
__global__ void embed_rows_kernel(long rows, long cols, const int32_t *ids, k_words words,
                                  const T *dy, float *dtok)
{
    CU_SHARED(int, list, [THREADS]);
    CU_SHARED(int, counts, [THREADS / 32]);
    const long mine = blockIdx.x, first = blockIdx.y * (long)OWNED + threadIdx.x;
    const int32_t id = ids[mine];
    const long word = id - words.first;
    int earlier = 0;
    if (word < 0 || word >= words.count) return;
    for (long r = threadIdx.x; r < mine && !earlier; r += THREADS) earlier = ids[r] == id;
    if (__syncthreads_or(earlier)) return;
    float sum[OWNED / THREADS];
#pragma unroll
    for (int j = 0; j < OWNED / THREADS; j++)
        sum[j] = first + j * THREADS < cols ? dtok[word * cols + first + j * THREADS] : 0.0f;
    for (long from = mine; from < rows; from += THREADS) {
        const int n = rows_with(ids, rows, from, id, list, counts);
#pragma unroll 4
        for (int k = 0; k < n; k++) {
            const T *const row = dy + (from + list[k]) * cols + first;
#pragma unroll
            for (int j = 0; j < OWNED / THREADS; j++)
                sum[j] += first + j * THREADS < cols ? cu_float(row[j * THREADS]) : 0.0f;
        }
    }
#pragma unroll
    for (int j = 0; j < OWNED / THREADS; j++)
        if (first + j * THREADS < cols) dtok[word * cols + first + j * THREADS] = sum[j];
}

/* One block for each position. */
template <typename T>
__global__ void embed_positions_kernel(long rows, long seq, long pos0, long cols, const T *dy,
                                       float *dpos)
{
    for (long c = threadIdx.x; c < cols; c += THREADS) {
        float sum = dpos[(pos0 + blockIdx.x) * cols + c];
        for (long r = blockIdx.x; r < rows; r += seq) sum += cu_float(dy[r * cols + c]);
        dpos[(pos0 + blockIdx.x) * cols + c] = sum;
    }
}

template <typename T>
static void embed_bwd(k_cuda_lane *lane, long rows, long seq, long pos0, long cols,
                      const int32_t *ids, k_words words, const void *dy, float *dtok, float *dpos)
{
    const T *const d = (const T *)dy;
    const long positions = rows < seq ? rows : seq;
    if (dtok)
        cu_launch(embed_rows_kernel<T>, dim3((unsigned)rows, (unsigned)cu_ceil(cols, OWNED)),
                  THREADS, 0, lane->stream, rows, cols, ids, words, d, dtok);
    if (dpos)
        cu_launch(embed_positions_kernel<T>, (unsigned)positions, THREADS, 0, lane->stream, rows,
                  seq, pos0, cols, d, dpos);
    cu_launched(lane, "embedding backward");
}

void cu_embed_bwd(k_ctx *ctx, long rows, long seq, long pos0, long cols, const int32_t *ids,
                  k_words words, const float *dy, float *dtok, float *dpos, float *dextra)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    if (rows <= 0 || cols <= 0) return;
    if (lane->bf16)
        embed_bwd<bf16>(lane, rows, seq, pos0, cols, ids, words, dy, dtok, dpos);
    else
        embed_bwd<float>(lane, rows, seq, pos0, cols, ids, words, dy, dtok, dpos);
    if (dextra) cu_colsum(ctx, rows, cols, dy, cols, dextra);
}

/* --- cross-entropy --- */

struct xent_args {
    long vocab, ld;
    const int32_t *target;
    float scale;
    double *loss;
    float *lse;
};

/* One block a row: its largest logit and sum in one reading, then the gradient. */
template <typename T, int V> __global__ void xent_kernel(xent_args a, const T *logits, T *dlogits)
{
    CU_SHARED(float, room, [32]);
    const T *const x = logits + blockIdx.x * a.ld;
    const int32_t target = a.target[blockIdx.x];
    float all, sum;
    cu_row_softmax<T, V>(x, a.vocab, room, &all, &sum);
    const double lse = (double)all + log((double)sum);
    if (threadIdx.x == 0) {
        a.loss[blockIdx.x] = target < 0 ? 0.0 : lse - (double)cu_float(x[target]);
        if (a.lse) a.lse[blockIdx.x] = (float)lse;
    }
    if (dlogits == nullptr) return;
    __syncthreads(); /* the target's logit has been read */
    T *const dx = dlogits + blockIdx.x * a.ld;
    for (long c = (long)threadIdx.x * V; c < a.vocab; c += (long)blockDim.x * V) {
        float v[V];
        cu_load_before<T, V>(x, c, a.vocab, -INFINITY, v);
#pragma unroll
        for (int i = 0; i < V; i++) {
            v[i] = target < 0 ? 0.0f : expf(v[i] - (float)lse) * a.scale;
            if (c + i == target) v[i] -= a.scale;
        }
        cu_store_before<T, V>(dx, c, a.vocab, v);
    }
}

template <typename T>
static void xent(k_cuda_lane *lane, long rows, const xent_args &a, const void *logits,
                 void *dlogits)
{
    constexpr int V = 16 / sizeof(T);
    const bool wide = cu_wide<T>(a.ld, logits, dlogits);
    if (wide)
        cu_launch(xent_kernel<T, V>, (unsigned)rows, XENT_THREADS, 0, lane->stream, a,
                  (const T *)logits, (T *)dlogits);
    else
        cu_launch(xent_kernel<T, 1>, (unsigned)rows, XENT_THREADS, 0, lane->stream, a,
                  (const T *)logits, (T *)dlogits);
    cu_launched(lane, "cross-entropy");
}

double cu_xent(k_ctx *ctx, long rows, long vocab, const float *logits, long ld,
               const int32_t *target, float scale, double *loss, float *lse, float *dlogits)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    const xent_args a = {vocab, ld, target, scale, loss, lse};
    if (rows <= 0 || vocab <= 0) return 0;
    if (lane->bf16)
        xent<bf16>(lane, rows, a, logits, dlogits);
    else
        xent<float>(lane, rows, a, logits, dlogits);
    return 0;
}

__global__ void loss_sum_kernel(long n, const double *x, double factor, double *out)
{
    CU_SHARED(double, room, [32]);
    double sum = 0;
    for (long i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    sum = cu_block_sum(sum, room);
    if (threadIdx.x == 0) *out = sum * factor;
}

void cu_loss_sum(k_ctx *ctx, long n, const double *x, double factor, double *out)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    cu_launch(loss_sum_kernel, 1, THREADS, 0, lane->stream, n, x, factor, out);
    cu_launched(lane, "loss");
}
