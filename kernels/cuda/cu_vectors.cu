/* Vectors, copies, sums in member order, the optimizer. */
#include "kernels/cuda/cu_common.cuh"

#include <cmath>

enum { THREADS = 256 };

static unsigned blocks_for(long n)
{
    const long all = cu_ceil(n, THREADS);
    return (unsigned)(all < 65535 * 8 ? all : 65535 * 8);
}

#define FOR_ALL(i, n)                                                                              \
    for (long i = blockIdx.x * (long)blockDim.x + threadIdx.x; i < (n);                            \
         i += gridDim.x * (long)blockDim.x)

template <typename T, int V> __global__ void add_kernel(long n, const T *x, const T *y, T *z)
{
    FOR_ALL(i, n / V)
    {
        float a[V], b[V];
        cu_load<T, V>(x + i * V, a);
        cu_load<T, V>(y + i * V, b);
#pragma unroll
        for (int j = 0; j < V; j++) a[j] += b[j];
        cu_store<T, V>(z + i * V, a);
    }
}

template <typename T>
static void add_of(k_cuda_lane *lane, long n, const void *x, const void *y, void *z)
{
    constexpr int V = 16 / sizeof(T);
    const T *const a = (const T *)x, *const b = (const T *)y;
    if (cu_wide<T>(n, x, y, z))
        cu_launch(add_kernel<T, V>, blocks_for(n / V), THREADS, 0, lane->stream, n, a, b, (T *)z);
    else
        cu_launch(add_kernel<T, 1>, blocks_for(n), THREADS, 0, lane->stream, n, a, b, (T *)z);
}

void cu_add(k_ctx *ctx, long n, const float *x, const float *y, float *z)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    if (n <= 0) return;
    if (lane->bf16)
        add_of<bf16>(lane, n, x, y, z);
    else
        add_of<float>(lane, n, x, y, z);
    cu_launched(lane, "add");
}

__global__ void axpy_kernel(long n, float a, const float *x, float *y)
{
    FOR_ALL(i, n) y[i] += a * x[i];
}

void cu_axpy(k_ctx *ctx, long n, float a, const float *x, float *y)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    if (n <= 0) return;
    cu_launch(axpy_kernel, blocks_for(n), THREADS, 0, lane->stream, n, a, x, y);
    cu_launched(lane, "axpy");
}

template <typename T>
__global__ void take_rows_kernel(long rows, long cols, const float *x, long ldx, T *y, long ldy)
{
    FOR_ALL(i, rows * cols) y[i / cols * ldy + i % cols] = cu_elem<T>(x[i / cols * ldx + i % cols]);
}

void cu_take_rows(k_ctx *ctx, long rows, long cols, const float *x, long ldx, float *y, long ldy)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    if (rows * cols <= 0) return;
    const unsigned blocks = blocks_for(rows * cols);
    if (lane->bf16)
        cu_launch(take_rows_kernel<bf16>, blocks, THREADS, 0, lane->stream, rows, cols, x, ldx,
                  (bf16 *)(void *)y, ldy);
    else
        cu_launch(take_rows_kernel<float>, blocks, THREADS, 0, lane->stream, rows, cols, x, ldx, y,
                  ldy);
    cu_launched(lane, "take_rows");
}

void k_cuda_narrow(k_cuda_lane *lane, long n, const float *x, void *y)
{
    if (n <= 0) return;
    if (lane->bf16)
        cu_launch(take_rows_kernel<bf16>, blocks_for(n), THREADS, 0, lane->stream, 1, n, x, n,
                  (bf16 *)y, n);
    else
        cu_launch(take_rows_kernel<float>, blocks_for(n), THREADS, 0, lane->stream, 1, n, x, n,
                  (float *)y, n);
    cu_launched(lane, "narrow");
}

/* --- bytes --- */

template <typename W> __global__ void copy_kernel(long n, const W *from, W *to)
{
    FOR_ALL(i, n) to[i] = from[i];
}

/* A kernel rather than the copy engine, which is slow on managed memory. */
static void copy_bytes(cudaStream_t s, void *to, const void *from, size_t bytes)
{
    const uintptr_t both = (uintptr_t)to | (uintptr_t)from | bytes;
    if (bytes == 0) return;
    if (both % 16 == 0)
        cu_launch(copy_kernel<uint4>, blocks_for((long)bytes / 16), THREADS, 0, s, (long)bytes / 16,
                  (const uint4 *)from, (uint4 *)to);
    else if (both % 4 == 0)
        cu_launch(copy_kernel<uint32_t>, blocks_for((long)bytes / 4), THREADS, 0, s,
                  (long)bytes / 4, (const uint32_t *)from, (uint32_t *)to);
    else
        cu_launch(copy_kernel<char>, blocks_for((long)bytes), THREADS, 0, s, (long)bytes,
                  (const char *)from, (char *)to);
}

void cu_copy(k_ctx *ctx, void *to, const void *from, size_t bytes)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    copy_bytes(lane->stream, to, from, bytes);
    cu_launched(lane, "copy");
}

bool k_cuda_copy(k_cuda_stream *s, void *to, const void *from, int64_t bytes)
{
    copy_bytes(reinterpret_cast<cudaStream_t>(s), to, from, (size_t)bytes);
    return cudaGetLastError() == cudaSuccess;
}

/* Strides and rows in words W. */
template <typename W>
__global__ void copy_rows_kernel(long rows, long words, W *to, long to_stride, const W *from,
                                 long from_stride)
{
    FOR_ALL(i, rows * words)
    to[i / words * to_stride + i % words] = from[i / words * from_stride + i % words];
}

template <typename W>
static void copy_rows_of(cudaStream_t stream, long rows, size_t row_bytes, void *to,
                         size_t to_stride, const void *from, size_t from_stride)
{
    const long words = (long)(row_bytes / sizeof(W));
    cu_launch(copy_rows_kernel<W>, blocks_for(rows * words), THREADS, 0, stream, rows, words,
              (W *)to, (long)(to_stride / sizeof(W)), (const W *)from,
              (long)(from_stride / sizeof(W)));
}

void cu_copy_rows(k_ctx *ctx, long rows, size_t row_bytes, void *to, size_t to_stride,
                  const void *from, size_t from_stride)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    const uintptr_t all = (uintptr_t)to | (uintptr_t)from | row_bytes | to_stride | from_stride;
    if (rows <= 0 || row_bytes == 0) return;
    if (all % 16 == 0)
        copy_rows_of<uint4>(lane->stream, rows, row_bytes, to, to_stride, from, from_stride);
    else if (all % 4 == 0)
        copy_rows_of<uint32_t>(lane->stream, rows, row_bytes, to, to_stride, from, from_stride);
    else
        copy_rows_of<char>(lane->stream, rows, row_bytes, to, to_stride, from, from_stride);
    cu_launched(lane, "copy_rows");
}

void cu_zero(k_ctx *ctx, void *at, size_t bytes)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    if (bytes == 0) return;
    const cudaError_t e = cudaMemsetAsync(at, 0, bytes, lane->stream);
    if (e != cudaSuccess) cu_fail(lane, "zero", cudaGetErrorString(e));
}

__global__ void put_pair_kernel(int64_t *at, int64_t first, int64_t second)
{
    at[0] = first;
    at[1] = second;
}

void cu_put_pair(k_ctx *ctx, int64_t *at, int64_t first, int64_t second)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    cu_launch(put_pair_kernel, 1, 1, 0, lane->stream, at, first, second);
    cu_launched(lane, "two words");
}

/* --- sums of members --- */

struct members {
    void *at[K_CUDA_MEMBERS_MAX];
    unsigned n, only;
};

static __device__ __forceinline__ double widen(double x) { return x; }
static __device__ __forceinline__ float widen(float x) { return x; }
static __device__ __forceinline__ float widen(bf16 x) { return cu_float(x); }
static __device__ __forceinline__ void put(double *to, double x) { *to = x; }
static __device__ __forceinline__ void put(float *to, float x) { *to = x; }
static __device__ __forceinline__ void put(bf16 *to, float x) { *to = cu_elem<bf16>(x); }

template <typename T> __global__ void sum_kernel(members m, long n)
{
    FOR_ALL(i, n)
    {
        auto sum = widen(((const T *)m.at[0])[i]);
        for (unsigned k = 1; k < m.n; k++) sum += widen(((const T *)m.at[k])[i]);
        for (unsigned k = 0; k < m.n; k++)
            if (m.only == UINT32_MAX || m.only == k) put((T *)m.at[k] + i, sum);
    }
}

template <typename T> static void sum_of(cudaStream_t s, const members &m, int64_t bytes)
{
    const long n = (long)bytes / (long)sizeof(T);
    cu_launch(sum_kernel<T>, blocks_for(n), THREADS, 0, s, m, n);
}

bool k_cuda_sum(k_cuda_stream *s, k_cuda_number of, void *const *data, uint32_t n, int64_t bytes,
                uint32_t only)
{
    members m;
    const cudaStream_t stream = reinterpret_cast<cudaStream_t>(s);
    if (n > K_CUDA_MEMBERS_MAX) return false;
    if (bytes == 0) return true;
    for (uint32_t i = 0; i < n; i++) m.at[i] = data[i];
    m.n = n;
    m.only = only;
    if (of == K_CUDA_DOUBLE)
        sum_of<double>(stream, m, bytes);
    else if (of == K_CUDA_BF16)
        sum_of<bf16>(stream, m, bytes);
    else
        sum_of<float>(stream, m, bytes);
    return cudaGetLastError() == cudaSuccess;
}

/* --- the optimizer: one block for each K_ADAMW_BLOCK elements of all pieces --- */

/* The piece that a block works on. */
static __device__ const k_adamw_piece *piece_of(const k_adamw_piece *pieces, long n, long block)
{
    long low = 0, high = n;
    while (high - low > 1) {
        const long middle = (low + high) / 2;
        if (pieces[middle].first_block <= block)
            low = middle;
        else
            high = middle;
    }
    return pieces + low;
}

__global__ void squares_kernel(const k_adamw_piece *pieces, long n, const float *grads,
                               double *partial)
{
    CU_SHARED(double, room, [32]);
    const k_adamw_piece *const p = piece_of(pieces, n, blockIdx.x);
    const long from = (blockIdx.x - p->first_block) * K_ADAMW_BLOCK;
    const long to = min((long)p->count, from + K_ADAMW_BLOCK);
    const float *const g = grads + p->first;
    const long whole = (uintptr_t)g % 16 == 0 ? from + (to - from) / 4 * 4 : from;
    double sum = 0;
    for (long i = from + 4 * threadIdx.x; i < whole; i += 4 * blockDim.x) {
        float x[4];
        cu_take<float, 4>(g + i, x);
#pragma unroll
        for (int k = 0; k < 4; k++) sum += (double)x[k] * (double)x[k];
    }
    for (long i = whole + threadIdx.x; i < to; i += blockDim.x) sum += (double)g[i] * (double)g[i];
    sum = cu_block_sum(sum, room);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/* One warp for each tensor: that of the first of its pieces, which follow each other. */
__global__ void table_kernel(const k_adamw_piece *pieces, long n, long n_blocks,
                             const double *partial, double *table)
{
    const long first = blockIdx.x * (long)(blockDim.x / 32) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (first >= n || pieces[first].entry < 0) return;
    if (first > 0 && pieces[first - 1].entry == pieces[first].entry) return;
    double all = 0;
    for (long p = first; p < n && pieces[p].entry == pieces[first].entry; p++) {
        const long end = p + 1 < n ? pieces[p + 1].first_block : n_blocks;
        double sum = 0;
        for (long i = pieces[p].first_block + lane; i < end; i += 32) sum += partial[i];
        all += cu_warp_sum(sum);
    }
    if (lane == 0) table[pieces[first].entry] += all;
}

void cu_norms(k_ctx *ctx, const k_adamw_stage *s, double *table)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    double *const partial = (double *)lane->workspace;
    if (s->n_pieces == 0 || s->n_blocks == 0) return;
    if ((size_t)s->n_blocks * sizeof *partial > CU_WORKSPACE) {
        cu_fail(lane, "norms", "too many parameters for the workspace");
        return;
    }
    cu_launch(squares_kernel, (unsigned)s->n_blocks, THREADS, 0, lane->stream, s->pieces,
              s->n_pieces, s->grads, partial);
    cu_launch(table_kernel, (unsigned)cu_ceil(s->n_pieces, THREADS / 32), THREADS, 0, lane->stream,
              s->pieces, s->n_pieces, s->n_blocks, partial, table);
    cu_launched(lane, "norms");
}

__global__ void clip_kernel(long n, const double *table, double clip, double *out)
{
    double sum = 0;
    for (long i = threadIdx.x; i < n; i += 32) sum += table[i];
    sum = cu_warp_sum(sum);
    if (threadIdx.x != 0) return;
    const double norm = sqrt(sum);
    out[0] = norm;
    out[1] = clip > 0 && norm > clip ? (double)(float)(clip / norm) : 1.0;
}

void cu_clip(k_ctx *ctx, long n, const double *table, double clip, double *out)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    cu_launch(clip_kernel, 1, 32, 0, lane->stream, n, table, clip, out);
    cu_launched(lane, "clip");
}

/* The numbers of a step, as floats. */
struct step_numbers {
    float lr, beta1, beta2, eps, decay, scale1, scale2;
    bool clear;
};

/* Where a piece's numbers lie. */
template <typename T> struct piece_numbers {
    T *weights;
    float *grads, *m, *v, *master;
    float grad_scale, decay;
    bool fine;
};

/* N numbers from the i-th. */
template <typename T, int N>
static __device__ __forceinline__ void update(const piece_numbers<T> &p, const step_numbers &a,
                                              long i)
{
    float g[N], m[N], v[N], w[N];
    const float none[N] = {};
    cu_take<float, N>(p.grads + i, g);
    if (a.clear) cu_put<float, N>(p.grads + i, none);
    if (!p.fine) return;
    cu_take<float, N>(p.m + i, m);
    cu_take<float, N>(p.v + i, v);
    cu_take<float, N>(p.master + i, w);
#pragma unroll
    for (int k = 0; k < N; k++) {
        const float x = g[k] * p.grad_scale;
        m[k] = a.beta1 * m[k] + (1.0f - a.beta1) * x;
        v[k] = a.beta2 * v[k] + (1.0f - a.beta2) * x * x;
        w[k] -= a.lr * (m[k] * a.scale1 / (sqrtf(v[k] * a.scale2) + a.eps) + p.decay * w[k]);
    }
    cu_put<float, N>(p.m + i, m);
    cu_put<float, N>(p.v + i, v);
    cu_put<float, N>(p.master + i, w);
    if constexpr (sizeof(T) != sizeof(float)) cu_put<T, N>(p.weights + i, w);
}

template <typename T>
__global__ void adamw_kernel(k_adamw_stage s, step_numbers a, const double *scale)
{
    const k_adamw_piece *const p = piece_of(s.pieces, s.n_pieces, blockIdx.x);
    const long from = (blockIdx.x - p->first_block) * K_ADAMW_BLOCK;
    const long to = min((long)p->count, from + K_ADAMW_BLOCK);
    piece_numbers<T> n;
    n.fine = isfinite(scale[0]);
    n.grad_scale = (float)scale[1];
    n.decay = p->decays ? a.decay : 0.0f;
    n.weights = (T *)(void *)s.weights + p->first;
    n.grads = s.grads + p->first;
    n.m = s.m + p->moment;
    n.v = n.m + s.moments;
    n.master = sizeof(T) == sizeof(float) ? (float *)(void *)n.weights : n.v + s.moments;
    const uintptr_t floats =
        (uintptr_t)n.grads | (uintptr_t)n.m | (uintptr_t)n.v | (uintptr_t)n.master;
    const bool wide = floats % 16 == 0 && (uintptr_t)n.weights % (4 * sizeof(T)) == 0;
    const long whole = wide ? from + (to - from) / 4 * 4 : from;
    for (long i = from + 4 * threadIdx.x; i < whole; i += 4 * blockDim.x) update<T, 4>(n, a, i);
    for (long i = whole + threadIdx.x; i < to; i += blockDim.x) update<T, 1>(n, a, i);
}

void cu_adamw(k_ctx *ctx, const k_adamw *p, const k_adamw_stage *s, const double *scale)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    const step_numbers a = {
        p->lr,
        p->beta1,
        p->beta2,
        p->eps,
        p->weight_decay,
        (float)(1.0 / (1.0 - pow((double)p->beta1, (double)p->step))),
        (float)(1.0 / (1.0 - pow((double)p->beta2, (double)p->step))),
        p->clear_grad,
    };
    if (s->n_blocks == 0) return;
    const unsigned blocks = (unsigned)s->n_blocks;
    if (lane->bf16)
        cu_launch(adamw_kernel<bf16>, blocks, THREADS, 0, lane->stream, *s, a, scale);
    else
        cu_launch(adamw_kernel<float>, blocks, THREADS, 0, lane->stream, *s, a, scale);
    cu_launched(lane, "adamw");
}
