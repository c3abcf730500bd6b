/* Layer norm and RMS norm: a block holds one row in shared memory, as floats, and reads it once. */
#include "kernels/cuda/cu_common.cuh"

enum { THREADS = 256, SUM_ROWS = 8 };
constexpr long CHUNKS = 128;

struct norm_args {
    long rows, cols;
    float eps;
    const void *x, *bias, *res, *gamma, *beta;
    void *sum, *y;
    float *mean, *rstd;
};

template <typename T, int V, bool RMS> __global__ void norm_fwd_kernel(norm_args a)
{
    CU_DYNAMIC(float, row);
    CU_SHARED(float, room, [32]);
    const long at = blockIdx.x * a.cols;
    const T *const x = (const T *)a.x + at, *const res = (const T *)a.res + at;
    const T *const bias = (const T *)a.bias;
    T *const kept = (T *)a.sum + at, *const y = (T *)a.y + at;
    float total = 0, mean = 0;
    for (long c = (long)threadIdx.x * V; c < a.cols; c += (long)blockDim.x * V) {
        float v[V], w[V];
        cu_load<T, V>(x + c, v);
        if (a.bias) {
            cu_load<T, V>(bias + c, w);
#pragma unroll
            for (int i = 0; i < V; i++) v[i] += w[i];
        }
        if (a.res) {
            cu_load<T, V>(res + c, w);
#pragma unroll
            for (int i = 0; i < V; i++) v[i] += w[i];
        }
        if (a.sum) cu_store<T, V>(kept + c, v);
#pragma unroll
        for (int i = 0; i < V; i++) {
            row[c + i] = v[i];
            total += v[i];
        }
    }
    if (!RMS) mean = cu_block_sum(total, room) / (float)a.cols;
    total = 0;
    for (long c = (long)threadIdx.x * V; c < a.cols; c += (long)blockDim.x * V)
#pragma unroll
        for (int i = 0; i < V; i++) total += (row[c + i] - mean) * (row[c + i] - mean);
    const float rstd = 1.0f / sqrtf(cu_block_sum(total, room) / (float)a.cols + a.eps);
    for (long c = (long)threadIdx.x * V; c < a.cols; c += (long)blockDim.x * V) {
        float g[V], b[V];
        cu_load<T, V>((const T *)a.gamma + c, g);
        if (!RMS) cu_load<T, V>((const T *)a.beta + c, b);
#pragma unroll
        for (int i = 0; i < V; i++) g[i] = (row[c + i] - mean) * rstd * g[i] + (RMS ? 0.0f : b[i]);
        cu_store<T, V>(y + c, g);
    }
    if (threadIdx.x != 0) return;
    if (!RMS) a.mean[blockIdx.x] = mean;
    a.rstd[blockIdx.x] = rstd;
}

/* A warp reads 32 elements at once. */
static unsigned threads_for(long vectors)
{
    const long n = cu_ceil(vectors, 32) * 32;
    return (unsigned)(n < THREADS ? n : (long)THREADS);
}

template <typename T, bool RMS> static void norm_fwd(k_cuda_lane *lane, const norm_args &a)
{
    constexpr int V = 16 / sizeof(T);
    const size_t shared = (size_t)a.cols * sizeof(float);
    const unsigned rows = (unsigned)a.rows;
    if (cu_wide<T>(a.cols, a.x, a.bias, a.res, a.sum, a.gamma, a.beta) && cu_wide<T>(V, a.y)) {
        cu_shared(lane, norm_fwd_kernel<T, V, RMS>, shared);
        cu_launch(norm_fwd_kernel<T, V, RMS>, rows, threads_for(a.cols / V), shared, lane->stream,
                  a);
    } else {
        cu_shared(lane, norm_fwd_kernel<T, 1, RMS>, shared);
        cu_launch(norm_fwd_kernel<T, 1, RMS>, rows, threads_for(a.cols), shared, lane->stream, a);
    }
    cu_launched(lane, "norm");
}

void cu_layernorm_fwd(k_ctx *ctx, long rows, long cols, float eps, const float *x,
                      const float *bias, const float *res, float *sum, const float *gamma,
                      const float *beta, float *y, float *mean, float *rstd)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    const norm_args a = {rows, cols, eps, x, bias, res, gamma, beta, sum, y, mean, rstd};
    if (rows <= 0 || cols <= 0) return;
    if (lane->bf16)
        norm_fwd<bf16, false>(lane, a);
    else
        norm_fwd<float, false>(lane, a);
}

void cu_rmsnorm_fwd(k_ctx *ctx, long rows, long cols, float eps, const float *x, const float *res,
                    float *sum, const float *gamma, float *y, float *rstd)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    const norm_args a = {rows, cols, eps, x, nullptr, res, gamma, nullptr, sum, y, nullptr, rstd};
    if (rows <= 0 || cols <= 0) return;
    if (lane->bf16)
        norm_fwd<bf16, true>(lane, a);
    else
        norm_fwd<float, true>(lane, a);
}

/* --- backward --- */

struct norm_bwd_args {
    long rows, cols;
    const void *dy, *s, *gamma, *dres;
    const float *mean, *rstd;
    void *dx;
    float *dgamma, *dbeta;
};

/* dx; g and xhat of the row wait in shared memory. */
template <typename T, int V, bool RMS> __global__ void norm_dx_kernel(norm_bwd_args a)
{
    CU_DYNAMIC(float, row);
    CU_SHARED(float, room, [32]);
    const long at = blockIdx.x * a.cols;
    float *const xhat = row + a.cols;
    const float mean = RMS ? 0.0f : a.mean[blockIdx.x], rstd = a.rstd[blockIdx.x];
    float sum = 0, dot = 0;
    for (long c = (long)threadIdx.x * V; c < a.cols; c += (long)blockDim.x * V) {
        float dy[V], s[V], g[V];
        cu_load<T, V>((const T *)a.dy + at + c, dy);
        cu_load<T, V>((const T *)a.s + at + c, s);
        cu_load<T, V>((const T *)a.gamma + c, g);
#pragma unroll
        for (int i = 0; i < V; i++) {
            row[c + i] = dy[i] * g[i];
            xhat[c + i] = (s[i] - mean) * rstd;
            sum += row[c + i];
            dot += row[c + i] * xhat[c + i];
        }
    }
    sum = RMS ? 0.0f : cu_block_sum(sum, room) / (float)a.cols;
    dot = cu_block_sum(dot, room) / (float)a.cols;
    for (long c = (long)threadIdx.x * V; c < a.cols; c += (long)blockDim.x * V) {
        float v[V], r[V];
        if (a.dres) cu_load<T, V>((const T *)a.dres + at + c, r);
#pragma unroll
        for (int i = 0; i < V; i++)
            v[i] = rstd * (row[c + i] - sum - xhat[c + i] * dot) + (a.dres ? r[i] : 0.0f);
        cu_store<T, V>((T *)a.dx + at + c, v);
    }
}

/* The sums of a block's SUM_ROWS threads of each column, in order, in those of the first row. */
template <int N>
static __device__ __forceinline__ void sum_rows(float x[N], float (&room)[SUM_ROWS][32 * N + 1])
{
#pragma unroll
    for (int k = 0; k < N; k++) room[threadIdx.y][threadIdx.x * N + k] = x[k];
    __syncthreads();
    for (int i = 1; threadIdx.y == 0 && i < SUM_ROWS; i++)
#pragma unroll
        for (int k = 0; k < N; k++) x[k] += room[i][threadIdx.x * N + k];
}

/* Sums over the rows of a chunk, for 32 N columns a block: of dy * xhat, and of dy. */
template <typename T, bool RMS, int N>
__global__ void norm_sums_kernel(norm_bwd_args a, long chunk, float *partial)
{
    CU_SHARED(float, gammas, [SUM_ROWS][32 * N + 1]);
    CU_SHARED(float, betas, [SUM_ROWS][32 * N + 1]);
    const long c = (blockIdx.x * 32L + threadIdx.x) * N, from = blockIdx.y * chunk;
    const long to = min(a.rows, from + chunk);
    float dgamma[N] = {}, dbeta[N] = {};
#pragma unroll 4
    for (long r = from + threadIdx.y; r < to && c < a.cols; r += SUM_ROWS) {
        float dy[N], s[N];
        cu_take<T, N>((const T *)a.dy + r * a.cols + c, dy);
        cu_take<T, N>((const T *)a.s + r * a.cols + c, s);
        const float mean = RMS ? 0.0f : a.mean[r], rstd = a.rstd[r];
#pragma unroll
        for (int k = 0; k < N; k++) {
            dgamma[k] += dy[k] * (s[k] - mean) * rstd;
            dbeta[k] += dy[k];
        }
    }
    sum_rows<N>(dgamma, gammas);
    if (!RMS) sum_rows<N>(dbeta, betas);
    if (threadIdx.y != 0 || c >= a.cols) return;
    cu_put<float, N>(partial + blockIdx.y * a.cols + c, dgamma);
    if (!RMS) cu_put<float, N>(partial + (gridDim.y + blockIdx.y) * a.cols + c, dbeta);
}

/* Whether rows of `cols` elements can be read four at a time. */
static bool by_four(long cols, long ld, const void *x, const void *y)
{
    return cols % 4 == 0 && ld % 4 == 0 && ((uintptr_t)x | (uintptr_t)y) % 16 == 0;
}

/* out[c] += the chunks' sums in order. */
__global__ void chunks_kernel(long cols, long chunks, const float *partial, float *out)
{
    const long c = blockIdx.x * (long)blockDim.x + threadIdx.x;
    float sum = 0;
    if (c >= cols) return;
    for (long i = 0; i < chunks; i++) sum += partial[i * cols + c];
    out[c] += sum;
}

static long chunks_of(long rows, long cols, long sums)
{
    const long room = (long)(CU_WORKSPACE / sizeof(float)) / (cols * sums);
    const long n = cu_ceil(rows, 4 * SUM_ROWS), most = room < CHUNKS ? room : CHUNKS;
    return n < most ? n : most;
}

static void add_chunks(k_cuda_lane *lane, long cols, long chunks, const float *partial, float *out)
{
    cu_launch(chunks_kernel, (unsigned)cu_ceil(cols, THREADS), THREADS, 0, lane->stream, cols,
              chunks, partial, out);
}

template <typename T, bool RMS> static void norm_bwd(k_cuda_lane *lane, const norm_bwd_args &a)
{
    constexpr int V = 16 / sizeof(T);
    const size_t shared = 2 * (size_t)a.cols * sizeof(float);
    const unsigned rows = (unsigned)a.rows;
    if (a.dgamma || a.dbeta) {
        float *const partial = (float *)lane->workspace;
        const long chunk = cu_ceil(a.rows, chunks_of(a.rows, a.cols, 2));
        const long chunks = cu_ceil(a.rows, chunk);
        const dim3 block(32, SUM_ROWS);
        if (by_four(a.cols, a.cols, a.dy, a.s))
            cu_launch(norm_sums_kernel<T, RMS, 4>,
                      dim3((unsigned)cu_ceil(a.cols, 128), (unsigned)chunks), block, 0,
                      lane->stream, a, chunk, partial);
        else
            cu_launch(norm_sums_kernel<T, RMS, 1>,
                      dim3((unsigned)cu_ceil(a.cols, 32), (unsigned)chunks), block, 0, lane->stream,
                      a, chunk, partial);
        if (a.dgamma) add_chunks(lane, a.cols, chunks, partial, a.dgamma);
        if (a.dbeta) add_chunks(lane, a.cols, chunks, partial + chunks * a.cols, a.dbeta);
    }
    if (a.dx && cu_wide<T>(a.cols, a.dy, a.s, a.gamma, a.dres, a.dx)) {
        cu_shared(lane, norm_dx_kernel<T, V, RMS>, shared);
        cu_launch(norm_dx_kernel<T, V, RMS>, rows, threads_for(a.cols / V), shared, lane->stream,
                  a);
    } else if (a.dx) {
        cu_shared(lane, norm_dx_kernel<T, 1, RMS>, shared);
        cu_launch(norm_dx_kernel<T, 1, RMS>, rows, threads_for(a.cols), shared, lane->stream, a);
    }
    cu_launched(lane, "norm backward");
}

void cu_layernorm_bwd(k_ctx *ctx, long rows, long cols, const float *dy, const float *s,
                      const float *gamma, const float *mean, const float *rstd, const float *dres,
                      float *dx, float *dgamma, float *dbeta)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    const norm_bwd_args a = {rows, cols, dy, s, gamma, dres, mean, rstd, dx, dgamma, dbeta};
    if (rows <= 0 || cols <= 0) return;
    if (lane->bf16)
        norm_bwd<bf16, false>(lane, a);
    else
        norm_bwd<float, false>(lane, a);
}

void cu_rmsnorm_bwd(k_ctx *ctx, long rows, long cols, const float *dy, const float *s,
                    const float *gamma, const float *rstd, const float *dres, float *dx,
                    float *dgamma)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    const norm_bwd_args a = {rows, cols, dy, s, gamma, dres, nullptr, rstd, dx, dgamma, nullptr};
    if (rows <= 0 || cols <= 0) return;
    if (lane->bf16)
        norm_bwd<bf16, true>(lane, a);
    else
        norm_bwd<float, true>(lane, a);
}

/* --- column sums --- */

template <typename T, int N>
__global__ void colsum_kernel(long rows, long cols, const T *x, long ld, long chunk, float *partial)
{
    CU_SHARED(float, sums, [SUM_ROWS][32 * N + 1]);
    const long c = (blockIdx.x * 32L + threadIdx.x) * N, from = blockIdx.y * chunk;
    const long to = min(rows, from + chunk);
    float sum[N] = {};
#pragma unroll 4
    for (long r = from + threadIdx.y; r < to && c < cols; r += SUM_ROWS) {
        float v[N];
        cu_take<T, N>(x + r * ld + c, v);
#pragma unroll
        for (int k = 0; k < N; k++) sum[k] += v[k];
    }
    sum_rows<N>(sum, sums);
    if (threadIdx.y == 0 && c < cols) cu_put<float, N>(partial + blockIdx.y * cols + c, sum);
}

template <typename T>
static void colsum(k_cuda_lane *lane, long rows, long cols, const T *x, long ld, float *out)
{
    float *const partial = (float *)lane->workspace;
    const long chunk = cu_ceil(rows, chunks_of(rows, cols, 1)), chunks = cu_ceil(rows, chunk);
    const dim3 block(32, SUM_ROWS);
    if (by_four(cols, ld, x, nullptr))
        cu_launch(colsum_kernel<T, 4>, dim3((unsigned)cu_ceil(cols, 128), (unsigned)chunks), block,
                  0, lane->stream, rows, cols, x, ld, chunk, partial);
    else
        cu_launch(colsum_kernel<T, 1>, dim3((unsigned)cu_ceil(cols, 32), (unsigned)chunks), block,
                  0, lane->stream, rows, cols, x, ld, chunk, partial);
    add_chunks(lane, cols, chunks, partial, out);
    cu_launched(lane, "colsum");
}

void cu_colsum(k_ctx *ctx, long rows, long cols, const float *x, long ld, float *out)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    if (rows <= 0 || cols <= 0) return;
    if (lane->bf16)
        colsum(lane, rows, cols, (const bf16 *)(const void *)x, ld, out);
    else
        colsum(lane, rows, cols, x, ld, out);
}
