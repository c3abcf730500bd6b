/* Shared by the CUDA kernels: lanes, launches, elements, reductions. */
#ifndef KERNELS_CUDA_CU_COMMON_CUH
#define KERNELS_CUDA_CU_COMMON_CUH

#include "kernels/cuda/cu_ptx.cuh"
#include "kernels/kernels_cuda.h"

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <type_traits>

typedef __nv_bfloat16 bf16;

/* --- host side --- */

enum { CU_ALGOS = 256 };
#define CU_WORKSPACE ((size_t)32 << 20)

/* A product that has been seen, and how it is computed, unless the library has no way. */
struct cu_algo {
    long key[10];
    cublasStatus_t found;
    cublasLtMatmulAlgo_t algo;
};

struct k_cuda_lane {
    int device;
    bool bf16;
    cudaStream_t stream;
    cublasLtHandle_t lt;
    void *workspace; /* CU_WORKSPACE bytes; whoever is next in the stream uses all of it */
    cu_algo algos[CU_ALGOS];
    int n_algos;
    char error[K_CUDA_WHY];
};

void cu_fail(k_cuda_lane *lane, const char *what, const char *why);
/* After a launch. */
void cu_launched(k_cuda_lane *lane, const char *what);
extern const k_ops k_ops_cuda;

static inline k_cuda_lane *cu_lane(const k_ctx *ctx) { return (k_cuda_lane *)k_ctx_device(ctx); }
static inline long cu_ceil(long n, long by) { return (n + by - 1) / by; }

/* Whether rows of `cols` elements at these places can be read 16 bytes at a time. */
template <typename T>
static inline bool cu_wide(long cols, const void *a, const void *b = nullptr,
                           const void *c = nullptr, const void *d = nullptr,
                           const void *e = nullptr, const void *f = nullptr)
{
    const uintptr_t all =
        (uintptr_t)a | (uintptr_t)b | (uintptr_t)c | (uintptr_t)d | (uintptr_t)e | (uintptr_t)f;
    return all % 16 == 0 && cols % (16 / (long)sizeof(T)) == 0;
}

/* Lets a kernel use `bytes` of dynamic shared memory. */
template <typename K> static void cu_shared(k_cuda_lane *lane, K *kernel, size_t bytes)
{
    if (bytes <= 48 * 1024) return;
    const cudaError_t e =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) cu_fail(lane, "shared memory", cudaGetErrorString(e));
}

/* --- elements --- */

static __device__ __forceinline__ float cu_float(float x) { return x; }
static __device__ __forceinline__ float cu_float(bf16 x) { return __bfloat162float(x); }
template <typename T> static __device__ __forceinline__ T cu_elem(float x);
template <> __device__ __forceinline__ float cu_elem<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 cu_elem<bf16>(float x)
{
    return __float2bfloat16_rn(x);
}

/* V elements between memory and registers: V = 1, or as many as 16 bytes hold. */
template <typename T, int V> static __device__ __forceinline__ void cu_load(const T *p, float *x)
{
    if constexpr (V == 1) {
        x[0] = cu_float(p[0]);
    } else {
        const uint4 raw = *reinterpret_cast<const uint4 *>(p);
        const T *const t = reinterpret_cast<const T *>(&raw);
#pragma unroll
        for (int i = 0; i < V; i++) x[i] = cu_float(t[i]);
    }
}

template <typename T, int V> static __device__ __forceinline__ void cu_store(T *p, const float *x)
{
    if constexpr (V == 1) {
        p[0] = cu_elem<T>(x[0]);
    } else {
        uint4 raw;
        T *const t = reinterpret_cast<T *>(&raw);
#pragma unroll
        for (int i = 0; i < V; i++) t[i] = cu_elem<T>(x[i]);
        *reinterpret_cast<uint4 *>(p) = raw;
    }
}

/* Four elements, or one, whatever their type: for kernels that read floats beside elements. */
template <typename T, int N> static __device__ __forceinline__ void cu_take(const T *p, float *x)
{
    if constexpr (N == 1 || sizeof(T) == 4) {
        cu_load<T, N>(p, x);
    } else {
        const uint2 raw = *reinterpret_cast<const uint2 *>(p);
        const T *const t = reinterpret_cast<const T *>(&raw);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = cu_float(t[i]);
    }
}

template <typename T, int N> static __device__ __forceinline__ void cu_put(T *p, const float *x)
{
    if constexpr (N == 1 || sizeof(T) == 4) {
        cu_store<T, N>(p, x);
    } else {
        uint2 raw;
        T *const t = reinterpret_cast<T *>(&raw);
#pragma unroll
        for (int i = 0; i < N; i++) t[i] = cu_elem<T>(x[i]);
        *reinterpret_cast<uint2 *>(p) = raw;
    }
}

/* The same at column c of a row whose `end` columns count: `other` in place of those behind it, and
 * nothing stored there. The row's room is a whole number of vectors. */
template <typename T, int V>
static __device__ __forceinline__ void cu_load_before(const T *row, long c, long end, float other,
                                                      float *x)
{
    cu_load<T, V>(row + c, x);
#pragma unroll
    for (int i = 0; i < V; i++) x[i] = c + i < end ? x[i] : other;
}

template <typename T, int V>
static __device__ __forceinline__ void cu_store_before(T *row, long c, long end, const float *x)
{
    if (c + V <= end) {
        cu_store<T, V>(row + c, x);
        return;
    }
    for (int i = 0; c + i < end; i++) row[c + i] = cu_elem<T>(x[i]);
}

/* --- reductions --- */

static __device__ __forceinline__ float cu_warp_sum(float x)
{
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}

static __device__ __forceinline__ float cu_warp_max(float x)
{
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
    return x;
}

static __device__ __forceinline__ double cu_warp_sum(double x)
{
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}

/* The sum over a block, in all of its threads; `room` is 32 shared elements. */
template <typename F> static __device__ F cu_block_sum(F x, F *room)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = (blockDim.x + 31) / 32;
    x = cu_warp_sum(x);
    __syncthreads();
    if (lane == 0) room[warp] = x;
    __syncthreads();
    F all = 0;
    for (int i = 0; i < warps; i++) all += room[i];
    return all;
}

static __device__ inline float cu_block_max(float x, float *room)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = (blockDim.x + 31) / 32;
    x = cu_warp_max(x);
    __syncthreads();
    if (lane == 0) room[warp] = x;
    __syncthreads();
    float all = room[0];
    for (int i = 1; i < warps; i++) all = fmaxf(all, room[i]);
    return all;
}

/* The largest element of a row and the sum of exp(element - largest), in one pass and in all
 * threads of the block; `room` is 32 shared floats. */
template <typename T, int V>
static __device__ void cu_row_softmax(const T *x, long count, float *room, float *largest,
                                      float *total)
{
    float top = -INFINITY, sum = 0;
    for (long c = (long)threadIdx.x * V; c < count; c += (long)blockDim.x * V) {
        float v[V], most = top;
        cu_load_before<T, V>(x, c, count, -INFINITY, v);
#pragma unroll
        for (int i = 0; i < V; i++) most = fmaxf(most, v[i]);
        if (most > top) {
            sum *= expf(top - most);
            top = most;
        }
#pragma unroll
        for (int i = 0; i < V; i++) sum += v[i] == -INFINITY ? 0.0f : expf(v[i] - top);
    }
    *largest = cu_block_max(top, room);
    *total = cu_block_sum(top == -INFINITY ? 0.0f : sum * expf(top - *largest), room);
}

/* --- the functions of the table --- */

#define CU_OP(name) std::remove_pointer_t<decltype(k_ops::name)> cu_##name
CU_OP(gemm);
CU_OP(gemm_grad);
CU_OP(gemm_bias);
CU_OP(layernorm_fwd);
CU_OP(layernorm_bwd);
CU_OP(rmsnorm_fwd);
CU_OP(rmsnorm_bwd);
CU_OP(bias_add);
CU_OP(colsum);
CU_OP(gelu_fwd);
CU_OP(gelu_bwd);
CU_OP(swiglu_fwd);
CU_OP(swiglu_bwd);
CU_OP(rope);
CU_OP(embed_fwd);
CU_OP(embed_bwd);
CU_OP(xent);
CU_OP(loss_sum);
CU_OP(vocab_softmax);
CU_OP(vocab_inputs);
CU_OP(vocab_join);
CU_OP(vocab_gradient);
CU_OP(vocab_loss);
CU_OP(attn_fwd);
CU_OP(attn_bwd);
CU_OP(add);
CU_OP(axpy);
CU_OP(take_rows);
CU_OP(copy);
CU_OP(copy_rows);
CU_OP(zero);
CU_OP(put_pair);
CU_OP(norms);
CU_OP(clip);
CU_OP(adamw);
#undef CU_OP

#endif
