/* The softmax over a table whose rows lie in shards: see kernels.h, vocabulary shards. One block a
 * row; arXiv 2411.05288, section 4, algorithms 1 and 2. Every exponent is <= 0. */
#include "kernels/cuda/cu_common.cuh"

enum { THREADS = 256, SOFTMAX_THREADS = 512, GRID = 1024 };

/* Whether the row's target is one of the shard's words. */
static __device__ __forceinline__ bool word_here(k_words words, int32_t target)
{
    return target >= 0 && target >= words.first && target < words.first + words.count;
}

template <typename T, int V>
__global__ void softmax_kernel(long rows, k_vocab_shard w, T *y, float *stats)
{
    CU_SHARED(float, room, [32]);
    T *const x = y + blockIdx.x * w.ld;
    const long words = w.words.count;
    const int32_t target = w.target[blockIdx.x];
    float all, sum;
    cu_row_softmax<T, V>(x, words, room, &all, &sum);
    if (threadIdx.x == 0) {
        const bool here = word_here(w.words, target);
        stats[blockIdx.x] = all;
        stats[rows + blockIdx.x] = sum;
        stats[2 * rows + blockIdx.x] =
            here ? cu_float(x[target - w.words.first]) - all : (float)K_VOCAB_ELSEWHERE;
    }
    __syncthreads(); /* the target's logit has been read */
    for (long c = (long)threadIdx.x * V; c < w.ld; c += (long)blockDim.x * V) {
        float v[V];
        cu_load_before<T, V>(x, c, words, -INFINITY, v);
#pragma unroll
        for (int i = 0; i < V; i++) v[i] = c + i < words ? expf(v[i] - all) / sum : 0.0f;
        cu_store<T, V>(x + c, v);
    }
}

template <typename T>
static void softmax(k_cuda_lane *lane, long rows, const k_vocab_shard &w, void *y, float *stats)
{
    constexpr int V = 16 / sizeof(T);
    const unsigned blocks = (unsigned)rows;
    if (cu_wide<T>(w.ld, y))
        cu_launch(softmax_kernel<T, V>, blocks, SOFTMAX_THREADS, 0, lane->stream, rows, w, (T *)y,
                  stats);
    else
        cu_launch(softmax_kernel<T, 1>, blocks, SOFTMAX_THREADS, 0, lane->stream, rows, w, (T *)y,
                  stats);
    cu_launched(lane, "softmax of a shard");
}

void cu_vocab_softmax(k_ctx *ctx, long rows, const k_vocab_shard *w, float *y, float *stats)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    if (rows <= 0) return;
    if (lane->bf16)
        softmax<bf16>(lane, rows, *w, y, stats);
    else
        softmax<float>(lane, rows, *w, y, stats);
}

/* --- parts of the input's gradient --- */

template <typename T, int V>
__global__ void inputs_kernel(long cols, k_vocab_shard w, float weight, const T *table, T *a, T *g)
{
    const int32_t target = w.target[blockIdx.x];
    const bool here = word_here(w.words, target);
    const T *const from = table + (here ? (target - w.words.first) * cols : 0);
    for (long c = (long)threadIdx.x * V; c < cols; c += (long)blockDim.x * V) {
        float v[V] = {};
        if (target < 0) cu_store<T, V>(a + blockIdx.x * cols + c, v);
        if (here) cu_load<T, V>(from + c, v);
#pragma unroll
        for (int i = 0; i < V; i++) v[i] *= weight;
        cu_store<T, V>(g + blockIdx.x * cols + c, v);
    }
}

template <typename T>
static void inputs(k_cuda_lane *lane, long rows, long cols, const k_vocab_shard &w, float weight,
                   const void *table, void *a, void *g)
{
    constexpr int V = 16 / sizeof(T);
    const T *const t = (const T *)table;
    const unsigned blocks = (unsigned)rows;
    if (cu_wide<T>(cols, table, a, g))
        cu_launch(inputs_kernel<T, V>, blocks, THREADS, 0, lane->stream, cols, w, weight, t, (T *)a,
                  (T *)g);
    else
        cu_launch(inputs_kernel<T, 1>, blocks, THREADS, 0, lane->stream, cols, w, weight, t, (T *)a,
                  (T *)g);
    cu_launched(lane, "parts of a shard");
}

void cu_vocab_inputs(k_ctx *ctx, long rows, long cols, const k_vocab_shard *w, float weight,
                     const float *table, float *a, float *g)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    if (rows <= 0 || cols <= 0) return;
    if (lane->bf16)
        inputs<bf16>(lane, rows, cols, *w, weight, table, a, g);
    else
        inputs<float>(lane, rows, cols, *w, weight, table, a, g);
}

/* --- the barrier --- */

/* Where rows and width are told by two words at the front of the data: what lies behind them begins
 * at multiples of this. */
enum { FRONT = 64 };

static __host__ __device__ constexpr long aligned(long bytes)
{
    return (bytes + FRONT - 1) / FRONT * FRONT;
}

struct parts {
    void *at[K_CUDA_MEMBERS_MAX];
    int n;
    bool told; /* rows, width and inputs_at follow from the front of the data */
    long rows, width, stats_at, inputs_at;
};

/* The same with nothing left to be told. */
static __device__ __forceinline__ void tell(const parts &p, long *rows, long *width,
                                            long *inputs_at)
{
    const int64_t *const front = (const int64_t *)p.at[0];
    *rows = p.told ? (long)front[0] : p.rows;
    *width = p.told ? (long)front[1] : p.width;
    *inputs_at = p.told ? p.stats_at + aligned(3 * *rows * (long)sizeof(float)) : p.inputs_at;
}

static __device__ __forceinline__ float *stats_of(const parts &p, int i)
{
    return (float *)((char *)p.at[i] + p.stats_at);
}

__global__ void join_rows_kernel(const __grid_constant__ parts p)
{
    long rows, width, inputs_at;
    tell(p, &rows, &width, &inputs_at);
    for (long r = blockIdx.x * (long)blockDim.x + threadIdx.x; r < rows;
         r += gridDim.x * (long)blockDim.x) {
        float top = -INFINITY, sum = 0, predicted = 0;
        for (int i = 0; i < p.n; i++) top = fmaxf(top, stats_of(p, i)[r]);
        for (int i = 0; i < p.n; i++) {
            float *const s = stats_of(p, i);
            const float less = s[r] - top, z = s[2 * rows + r];
            s[r] = s[rows + r] * expf(less);
            sum += s[r];
            if (z <= 0) predicted += z + less;
        }
        for (int i = 0; i < p.n; i++) {
            float *const s = stats_of(p, i);
            s[r] /= sum;
            s[rows + r] = sum;
            s[2 * rows + r] = predicted;
        }
    }
}

/* sum over i of share_i a_i - g_i, into all a_i; g_i lies behind a_i. */
template <typename T> __global__ void join_inputs_kernel(const __grid_constant__ parts p)
{
    long rows, width, inputs_at;
    tell(p, &rows, &width, &inputs_at);
    const long all = rows * width;
    for (long at = blockIdx.x * (long)blockDim.x + threadIdx.x; at < all;
         at += gridDim.x * (long)blockDim.x) {
        float sum = 0;
        for (int i = 0; i < p.n; i++) {
            const T *const a = (const T *)((const char *)p.at[i] + inputs_at);
            const float x = stats_of(p, i)[at / width] * cu_float(a[at]) - cu_float(a[all + at]);
            sum = i == 0 ? x : sum + x;
        }
        for (int i = 0; i < p.n; i++) ((T *)((char *)p.at[i] + inputs_at))[at] = cu_elem<T>(sum);
    }
}

static bool join(cudaStream_t stream, bool elements16, const parts &p)
{
    cu_launch(join_rows_kernel, GRID, THREADS, 0, stream, p);
    if (p.told || p.width > 0) {
        if (elements16)
            cu_launch(join_inputs_kernel<bf16>, GRID, THREADS, 0, stream, p);
        else
            cu_launch(join_inputs_kernel<float>, GRID, THREADS, 0, stream, p);
    }
    return cudaGetLastError() == cudaSuccess;
}

static bool take(parts *to, void *const *data, long n)
{
    if (n > K_CUDA_MEMBERS_MAX) return false;
    for (long i = 0; i < n; i++) to->at[i] = data[i];
    to->n = (int)n;
    return true;
}

bool k_cuda_vocab_join(k_cuda_stream *s, bool bf16, void *const *data, uint32_t n)
{
    parts p = {};
    p.told = true;
    p.stats_at = FRONT;
    return take(&p, data, n) && join(reinterpret_cast<cudaStream_t>(s), bf16, p);
}

void cu_vocab_join(k_ctx *ctx, const k_vocab_parts *from)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    parts p = {};
    p.rows = from->rows;
    p.width = from->width;
    p.stats_at = from->stats_at;
    p.inputs_at = from->inputs_at;
    if (!take(&p, from->data, from->n) || !join(lane->stream, lane->bf16, p))
        cu_fail(lane, "vocabulary barrier", "it could not be issued");
}

/* --- the gradient of the logits, and the loss --- */

template <typename T, int V>
__global__ void gradient_kernel(k_vocab_shard w, float weight, const float *alpha, T *q)
{
    T *const x = q + blockIdx.x * w.ld;
    const int32_t target = w.target[blockIdx.x];
    const float u = target < 0 ? 0.0f : weight, factor = alpha[blockIdx.x] * u;
    const long at = word_here(w.words, target) ? target - w.words.first : -1;
    for (long c = (long)threadIdx.x * V; c < w.words.count; c += (long)blockDim.x * V) {
        float v[V];
        cu_load_before<T, V>(x, c, w.words.count, 0.0f, v);
#pragma unroll
        for (int i = 0; i < V; i++) v[i] = v[i] * factor - (c + i == at ? u : 0.0f);
        cu_store<T, V>(x + c, v);
    }
}

template <typename T>
static void gradient(k_cuda_lane *lane, long rows, const k_vocab_shard &w, float weight,
                     const float *alpha, void *q)
{
    constexpr int V = 16 / sizeof(T);
    const unsigned blocks = (unsigned)rows;
    if (cu_wide<T>(w.ld, q))
        cu_launch(gradient_kernel<T, V>, blocks, SOFTMAX_THREADS, 0, lane->stream, w, weight, alpha,
                  (T *)q);
    else
        cu_launch(gradient_kernel<T, 1>, blocks, SOFTMAX_THREADS, 0, lane->stream, w, weight, alpha,
                  (T *)q);
    cu_launched(lane, "gradient of a shard");
}

void cu_vocab_gradient(k_ctx *ctx, long rows, const k_vocab_shard *w, float weight,
                       const float *alpha, float *q)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    if (rows <= 0) return;
    if (lane->bf16)
        gradient<bf16>(lane, rows, *w, weight, alpha, q);
    else
        gradient<float>(lane, rows, *w, weight, alpha, q);
}

__global__ void loss_kernel(long rows, const int32_t *target, const float *stats, double factor,
                            double *out)
{
    CU_SHARED(double, room, [32]);
    double sum = 0;
    for (long r = threadIdx.x; r < rows; r += blockDim.x)
        if (target[r] >= 0) sum += log((double)stats[rows + r]) - (double)stats[2 * rows + r];
    sum = cu_block_sum(sum, room);
    if (threadIdx.x == 0) *out = sum * factor;
}

void cu_vocab_loss(k_ctx *ctx, long rows, const int32_t *target, const float *stats, double factor,
                   double *out)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    cu_launch(loss_kernel, 1, THREADS, 0, lane->stream, rows, target, stats, factor, out);
    cu_launched(lane, "loss of shards");
}
