/* Bias and activation functions, elementwise. */
#include "kernels/cuda/cu_common.cuh"

enum { THREADS = 256 };

/* One thread works on V elements of a row. */
struct act_args {
    long rows, cols, ld, ldd;
    const void *x, *up, *bias, *dy;
    void *y, *dup;
};

static __device__ __forceinline__ float gelu_tanh(float u)
{
    const float inner = 0.79788456080286536f * (u + 0.044715f * u * u * u);
    return 0.5f * u * (1.0f + tanhf(inner));
}

static __device__ __forceinline__ float gelu_tanh_slope(float u)
{
    const float t = tanhf(0.79788456080286536f * (u + 0.044715f * u * u * u));
    const float slope = 0.79788456080286536f * (1.0f + 3.0f * 0.044715f * u * u);
    return 0.5f * (1.0f + t) + 0.5f * u * (1.0f - t * t) * slope;
}

static __device__ __forceinline__ float gelu_erf(float u)
{
    return 0.5f * u * (1.0f + erff(u * 0.70710678118654752f));
}

static __device__ __forceinline__ float gelu_erf_slope(float u)
{
    return 0.5f * (1.0f + erff(u * 0.70710678118654752f)) +
           u * 0.39894228040143268f * expf(-0.5f * u * u);
}

struct bias_add_body {
    template <typename T, int V> static __device__ void at(const act_args &a, long r, long c)
    {
        T *const x = (T *)a.y + r * a.ld + c;
        float v[V], b[V];
        cu_load<T, V>(x, v);
        cu_load<T, V>((const T *)a.bias + c, b);
#pragma unroll
        for (int i = 0; i < V; i++) v[i] += b[i];
        cu_store<T, V>(x, v);
    }
};

template <bool TANH, bool BACK> struct gelu_body {
    template <typename T, int V> static __device__ void at(const act_args &a, long r, long c)
    {
        float v[V], b[V], dy[V];
        cu_load<T, V>((const T *)a.x + r * a.cols + c, v);
        if (a.bias) {
            cu_load<T, V>((const T *)a.bias + c, b);
#pragma unroll
            for (int i = 0; i < V; i++) v[i] += b[i];
        }
        if (BACK) cu_load<T, V>((const T *)a.dy + r * a.cols + c, dy);
#pragma unroll
        for (int i = 0; i < V; i++)
            if (BACK)
                v[i] = dy[i] * (TANH ? gelu_tanh_slope(v[i]) : gelu_erf_slope(v[i]));
            else
                v[i] = TANH ? gelu_tanh(v[i]) : gelu_erf(v[i]);
        cu_store<T, V>((T *)a.y + r * a.cols + c, v);
    }
};

struct swiglu_fwd_body {
    template <typename T, int V> static __device__ void at(const act_args &a, long r, long c)
    {
        float g[V], u[V];
        cu_load<T, V>((const T *)a.x + r * a.ld + c, g);
        cu_load<T, V>((const T *)a.up + r * a.ld + c, u);
#pragma unroll
        for (int i = 0; i < V; i++) g[i] = g[i] / (1.0f + expf(-g[i])) * u[i];
        cu_store<T, V>((T *)a.y + r * a.cols + c, g);
    }
};

struct swiglu_bwd_body {
    template <typename T, int V> static __device__ void at(const act_args &a, long r, long c)
    {
        float g[V], u[V], dy[V];
        cu_load<T, V>((const T *)a.x + r * a.ld + c, g);
        cu_load<T, V>((const T *)a.up + r * a.ld + c, u);
        cu_load<T, V>((const T *)a.dy + r * a.cols + c, dy);
#pragma unroll
        for (int i = 0; i < V; i++) {
            const float s = 1.0f / (1.0f + expf(-g[i])), silu = g[i] * s;
            const float slope = s * (1.0f + g[i] * (1.0f - s));
            g[i] = dy[i] * u[i] * slope;
            u[i] = dy[i] * silu;
        }
        cu_store<T, V>((T *)a.y + r * a.ldd + c, g);
        cu_store<T, V>((T *)a.dup + r * a.ldd + c, u);
    }
};

template <typename B, typename T, int V> __global__ void act_kernel(act_args a)
{
    const long per_row = a.cols / V, all = a.rows * per_row;
    for (long i = blockIdx.x * (long)THREADS + threadIdx.x; i < all; i += gridDim.x * (long)THREADS)
        B::template at<T, V>(a, i / per_row, i % per_row * V);
}

template <typename B, typename T> static void run_as(k_cuda_lane *lane, const act_args &a)
{
    constexpr int V = 16 / sizeof(T);
    const long most = 65535 * 16;
    const bool wide = cu_wide<T>(a.cols, a.x, a.up, a.bias, a.dy, a.y) && cu_wide<T>(a.ld, a.dup) &&
                      cu_wide<T>(a.ldd, nullptr);
    const long blocks = cu_ceil(a.rows * a.cols / (wide ? V : 1), THREADS);
    const unsigned grid = (unsigned)(blocks < most ? blocks : most);
    if (wide)
        cu_launch(act_kernel<B, T, V>, grid, THREADS, 0, lane->stream, a);
    else
        cu_launch(act_kernel<B, T, 1>, grid, THREADS, 0, lane->stream, a);
}

template <typename B> static void run(k_ctx *ctx, const char *name, const act_args &a)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    if (a.rows <= 0 || a.cols <= 0) return;
    if (lane->bf16)
        run_as<B, bf16>(lane, a);
    else
        run_as<B, float>(lane, a);
    cu_launched(lane, name);
}

void cu_bias_add(k_ctx *ctx, long rows, long cols, float *x, long ld, const float *bias)
{
    const act_args a = {rows, cols, ld, ld, nullptr, nullptr, bias, nullptr, x, nullptr};
    run<bias_add_body>(ctx, "bias_add", a);
}

void cu_gelu_fwd(k_ctx *ctx, k_gelu kind, long rows, long cols, const float *x, const float *bias,
                 float *y)
{
    const act_args a = {rows, cols, cols, cols, x, nullptr, bias, nullptr, y, nullptr};
    if (kind == K_GELU_TANH)
        run<gelu_body<true, false>>(ctx, "gelu", a);
    else
        run<gelu_body<false, false>>(ctx, "gelu", a);
}

void cu_gelu_bwd(k_ctx *ctx, k_gelu kind, long rows, long cols, const float *x, const float *bias,
                 const float *dy, float *dx)
{
    const act_args a = {rows, cols, cols, cols, x, nullptr, bias, dy, dx, nullptr};
    if (kind == K_GELU_TANH)
        run<gelu_body<true, true>>(ctx, "gelu backward", a);
    else
        run<gelu_body<false, true>>(ctx, "gelu backward", a);
}

void cu_swiglu_fwd(k_ctx *ctx, long rows, long cols, const float *gate, const float *up, long ld,
                   float *y)
{
    const act_args a = {rows, cols, ld, ld, gate, up, nullptr, nullptr, y, nullptr};
    run<swiglu_fwd_body>(ctx, "swiglu", a);
}

void cu_swiglu_bwd(k_ctx *ctx, long rows, long cols, const float *gate, const float *up, long ld,
                   const float *dy, float *dgate, float *dup, long ldd)
{
    const act_args a = {rows, cols, ld, ldd, gate, up, nullptr, dy, dgate, dup};
    run<swiglu_bwd_body>(ctx, "swiglu backward", a);
}
