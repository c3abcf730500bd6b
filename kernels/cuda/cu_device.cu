/* Devices, memory, streams, events, lanes. */
#include "kernels/cuda/cu_common.cuh"

#include <cstdio>
#include <cstring>
#include <new>

static bool say(char *why, const char *what, cudaError_t e)
{
    if (e == cudaSuccess) return true;
    snprintf(why, K_CUDA_WHY, "%s: %s", what, cudaGetErrorString(e));
    (void)cudaGetLastError();
    return false;
}

int k_cuda_devices(char *why)
{
    int n = 0, driver = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) {
        snprintf(why, K_CUDA_WHY, "CUDA: this machine has no NVIDIA driver");
        return 0;
    }
    if (!say(why, "CUDA", cudaGetDeviceCount(&n))) return 0;
    if (n == 0) snprintf(why, K_CUDA_WHY, "CUDA: no device");
    return n;
}

bool k_cuda_device_info(int device, k_cuda_info *out, char *why)
{
    cudaDeviceProp p;
    memset(out, 0, sizeof *out);
    if (!say(why, "CUDA properties", cudaGetDeviceProperties(&p, device)) ||
        !say(why, "CUDA device", cudaSetDevice(device)) ||
        !say(why, "CUDA memory", cudaMemGetInfo(&out->free_bytes, &out->memory_bytes)))
        return false;
    snprintf(out->name, sizeof out->name, "%s", p.name);
    out->major = p.major;
    out->minor = p.minor;
    out->multiprocessors = p.multiProcessorCount;
    (void)cudaDeviceGetPCIBusId(out->place, (int)sizeof out->place, device);
    (void)cudaDriverGetVersion(&out->driver);
    (void)cudaRuntimeGetVersion(&out->runtime);
    return true;
}

void *k_cuda_alloc(int device, size_t bytes, char *why)
{
    void *at = nullptr;
    if (!say(why, "device", cudaSetDevice(device)) ||
        !say(why, "device memory", cudaMalloc(&at, bytes > 0 ? bytes : 1)))
        return nullptr;
    return at;
}

void *k_cuda_alloc_shared(int device, size_t bytes, char *why)
{
    void *at = nullptr;
    if (!say(why, "device", cudaSetDevice(device)) ||
        !say(why, "shared memory", cudaMallocManaged(&at, bytes > 0 ? bytes : 1)))
        return nullptr;
    return at;
}

void *k_cuda_alloc_host(size_t bytes, char *why)
{
    void *at = nullptr;
    if (!say(why, "pinned memory", cudaMallocHost(&at, bytes > 0 ? bytes : 1))) return nullptr;
    memset(at, 0, bytes);
    return at;
}

void k_cuda_free(void *at)
{
    if (at != nullptr) (void)cudaFree(at);
}

void k_cuda_free_host(void *at)
{
    if (at != nullptr) (void)cudaFreeHost(at);
}

static __global__ void fill_kernel(uint64_t *at, uint64_t word, long n)
{
    for (long i = blockIdx.x * (long)blockDim.x + threadIdx.x; i < n;
         i += gridDim.x * (long)blockDim.x)
        at[i] = word;
}

bool k_cuda_fill(int device, void *at, uint64_t word, int64_t n, char *why)
{
    if (!say(why, "device", cudaSetDevice(device))) return false;
    cu_launch(fill_kernel, 1024, 256, 0, nullptr, (uint64_t *)at, word, (long)n);
    return say(why, "fill", cudaGetLastError()) && say(why, "fill", cudaDeviceSynchronize());
}

/* --- streams and events --- */

static cudaStream_t stream_of(k_cuda_stream *s) { return reinterpret_cast<cudaStream_t>(s); }
static cudaEvent_t event_of(k_cuda_event *e) { return reinterpret_cast<cudaEvent_t>(e); }

bool k_cuda_prefetch(int device, k_cuda_stream *s, void *at, size_t bytes, bool to_device,
                     char *why)
{
#if CUDART_VERSION >= 13000
    cudaMemLocation to;
    to.type = to_device ? cudaMemLocationTypeDevice : cudaMemLocationTypeHost;
    to.id = to_device ? device : 0;
    const cudaError_t e = cudaMemPrefetchAsync(at, bytes, to, 0, stream_of(s));
#else
    const cudaError_t e =
        cudaMemPrefetchAsync(at, bytes, to_device ? device : cudaCpuDeviceId, stream_of(s));
#endif
    return say(why, "memory", e) && say(why, "memory", cudaStreamSynchronize(stream_of(s)));
}

bool k_cuda_move(k_cuda_stream *s, void *to, const void *from, size_t bytes, char *why)
{
    return say(why, "copy", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(s))) &&
           say(why, "copy", cudaStreamSynchronize(stream_of(s)));
}

void k_cuda_enter(int device) { (void)cudaSetDevice(device); }

k_cuda_stream *k_cuda_stream_open(int device, bool urgent, char *why)
{
    cudaStream_t s = nullptr;
    int least = 0, greatest = 0;
    if (!say(why, "device", cudaSetDevice(device)) ||
        !say(why, "priorities", cudaDeviceGetStreamPriorityRange(&least, &greatest)) ||
        !say(why, "stream",
             cudaStreamCreateWithPriority(&s, cudaStreamNonBlocking, urgent ? greatest : least)))
        return nullptr;
    return reinterpret_cast<k_cuda_stream *>(s);
}

void k_cuda_stream_close(k_cuda_stream *s)
{
    if (s != nullptr) (void)cudaStreamDestroy(stream_of(s));
}

k_cuda_event *k_cuda_event_open(int device, char *why)
{
    cudaEvent_t e = nullptr;
    if (!say(why, "device", cudaSetDevice(device)) || !say(why, "event", cudaEventCreate(&e)))
        return nullptr;
    return reinterpret_cast<k_cuda_event *>(e);
}

void k_cuda_event_close(k_cuda_event *e)
{
    if (e != nullptr) (void)cudaEventDestroy(event_of(e));
}

bool k_cuda_record(k_cuda_event *e, k_cuda_stream *s)
{
    return cudaEventRecord(event_of(e), stream_of(s)) == cudaSuccess;
}

bool k_cuda_wait(k_cuda_stream *s, k_cuda_event *e)
{
    return cudaStreamWaitEvent(stream_of(s), event_of(e), 0) == cudaSuccess;
}

bool k_cuda_happened(k_cuda_event *e, bool *out, char *why)
{
    const cudaError_t r = cudaEventQuery(event_of(e));
    *out = r == cudaSuccess;
    return r == cudaErrorNotReady || say(why, "event", r);
}

int64_t k_cuda_elapsed_ns(k_cuda_event *from, k_cuda_event *to)
{
    float ms = 0;
    if (cudaEventElapsedTime(&ms, event_of(from), event_of(to)) != cudaSuccess) return 0;
    return (int64_t)((double)ms * 1e6);
}

static __global__ void idle_kernel(uint64_t ns)
{
    const uint64_t begin = cu_clock_ns();
    while (cu_clock_ns() - begin < ns) {
    }
}

bool k_cuda_idle(k_cuda_stream *s, int64_t ns)
{
    if (ns <= 0) return true;
    cu_launch(idle_kernel, 1, 1, 0, stream_of(s), (uint64_t)ns);
    return cudaGetLastError() == cudaSuccess;
}

bool k_cuda_synchronize(int device, char *why)
{
    return say(why, "device", cudaSetDevice(device)) && say(why, "device", cudaDeviceSynchronize());
}

bool k_cuda_stream_synchronize(k_cuda_stream *s, char *why)
{
    return say(why, "stream", cudaStreamSynchronize(stream_of(s)));
}

/* --- lanes --- */

void cu_fail(k_cuda_lane *lane, const char *what, const char *why)
{
    if (lane->error[0] == '\0') snprintf(lane->error, sizeof lane->error, "%s: %s", what, why);
}

void cu_launched(k_cuda_lane *lane, const char *what)
{
    const cudaError_t e = cudaGetLastError();
    if (e != cudaSuccess) cu_fail(lane, what, cudaGetErrorString(e));
}

size_t k_cuda_lane_size(void) { return sizeof(k_cuda_lane); }
size_t k_cuda_lane_device_bytes(void) { return CU_WORKSPACE; }

k_cuda_lane *k_cuda_lane_open(void *mem, int device, k_cuda_stream *s, bool bf16, char *why)
{
    k_cuda_lane *const lane = new (mem) k_cuda_lane();
    lane->device = device;
    lane->bf16 = bf16;
    lane->stream = stream_of(s);
    if (!say(why, "device", cudaSetDevice(device)) ||
        !say(why, "workspace", cudaMalloc(&lane->workspace, CU_WORKSPACE)))
        return nullptr;
    const cublasStatus_t st = cublasLtCreate(&lane->lt);
    if (st == CUBLAS_STATUS_SUCCESS) return lane;
    snprintf(why, K_CUDA_WHY, "cuBLASLt: %s", cublasLtGetStatusString(st));
    lane->lt = nullptr;
    k_cuda_lane_close(lane);
    return nullptr;
}

void k_cuda_lane_close(k_cuda_lane *lane)
{
    if (lane == nullptr) return;
    if (lane->lt != nullptr) (void)cublasLtDestroy(lane->lt);
    (void)cudaFree(lane->workspace);
    lane->~k_cuda_lane();
}

const char *k_cuda_lane_error(const k_cuda_lane *lane)
{
    return lane->error[0] == '\0' ? nullptr : lane->error;
}

void k_cuda_use(k_ctx *ctx, k_cuda_lane *lane)
{
    k_ctx_set_device(ctx, &k_ops_cuda, lane, lane->bf16 ? 2 : 4);
}

const k_ops k_ops_cuda = {
    "cuda",           cu_gemm,        cu_gemm_grad,      cu_gemm_bias,  cu_layernorm_fwd,
    cu_layernorm_bwd, cu_rmsnorm_fwd, cu_rmsnorm_bwd,    cu_bias_add,   cu_colsum,
    cu_gelu_fwd,      cu_gelu_bwd,    cu_swiglu_fwd,     cu_swiglu_bwd, cu_rope,
    cu_embed_fwd,     cu_embed_bwd,   cu_xent,           cu_loss_sum,   cu_vocab_softmax,
    cu_vocab_inputs,  cu_vocab_join,  cu_vocab_gradient, cu_vocab_loss, cu_attn_fwd,
    cu_attn_bwd,      cu_add,         cu_axpy,           cu_take_rows,  cu_copy,
    cu_copy_rows,     cu_zero,        cu_put_pair,       cu_norms,      cu_clip,
    cu_adamw,
};
