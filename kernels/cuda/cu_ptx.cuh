/* What the kernels say to the hardware by name: launches, shared memory, and instructions that
 * CUDA C++ has no words for. Nothing else in this folder does, so that the same sources also run
 * where a program stands in for the GPU (TD_CUDA_STANDIN). */
#ifndef KERNELS_CUDA_CU_PTX_CUH
#define KERNELS_CUDA_CU_PTX_CUH

#include <chrono>
#include <cstddef>
#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_runtime.h>

/* CU_SHARED(type, name, [n]) is a block's array, CU_DYNAMIC(type, name) what the launch gave it
 * beside its arrays; the first statement to name either. Shared memory is not cleared. */
#ifndef TD_CUDA_STANDIN
#define CU_SHARED(type, name, size) __shared__ type name size
#define CU_DYNAMIC(type, name) extern __shared__ __align__(16) type name[]
#else
#define CU_SHARED(type, name, size)                                                                \
    static const char name##_key = 0;                                                              \
    typedef type name##_type size;                                                                 \
    name##_type &name = *(name##_type *)standin_shared(&name##_key, sizeof(name##_type))
#define CU_DYNAMIC(type, name) type *const name = (type *)standin_dynamic()
#endif

/* kernel<<<grid, block, shared, stream>>>(args...) */
#ifndef TD_CUDA_STANDIN
template <typename... P, typename... A>
static inline void cu_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                             cudaStream_t stream, A... args)
{
    kernel<<<grid, block, shared, stream>>>(args...);
}
#else
#define cu_launch(...) standin_launch(#__VA_ARGS__, __VA_ARGS__)
#endif

/* mma m16n8k16 of a warp, c += A B: bf16 operands, A by row and B by column, fp32 sums. */
static __device__ __forceinline__ void cu_mma(float c[4], const uint32_t a[4], uint32_t b0,
                                              uint32_t b1)
{
#ifndef TD_CUDA_STANDIN
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    standin_mma_m16n8k16(c, a, b0, b1);
#endif
}

/* Four 8 x 8 matrices of 16-bit elements in shared memory, transposed as they are read if TURNED;
 * lanes 8 m to 8 m + 7 give the addresses of the rows of matrix m, 16 bytes each. */
template <bool TURNED>
static __device__ __forceinline__ void cu_ldmatrix_x4(uint32_t r[4], const void *row)
{
#ifndef TD_CUDA_STANDIN
    const unsigned at = (unsigned)__cvta_generic_to_shared(row);
    if constexpr (TURNED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
#else
    standin_ldmatrix(r, 4, TURNED, row);
#endif
}

/* Starts a copy of 16 bytes to shared memory, or of zeros unless `there`; both ends aligned so. */
static __device__ __forceinline__ void cu_copy_async(void *shared, const void *from, bool there)
{
#ifndef TD_CUDA_STANDIN
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(
                     (unsigned)__cvta_generic_to_shared(shared)),
                 "l"(from), "r"(there ? 16 : 0)
                 : "memory");
#else
    standin_cp_async(shared, from, 16, there ? 16 : 0);
#endif
}

/* What the thread has started since the last call is a group. */
static __device__ __forceinline__ void cu_copy_group(void)
{
#ifndef TD_CUDA_STANDIN
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
    standin_cp_async_commit();
#endif
}

/* Waits for all of the thread's groups but the last LEFT. */
template <int LEFT> static __device__ __forceinline__ void cu_copy_wait(void)
{
#ifndef TD_CUDA_STANDIN
    asm volatile("cp.async.wait_group %0;\n" ::"n"(LEFT) : "memory");
#else
    standin_cp_async_wait(LEFT);
#endif
}

/* A clock of the device. */
static __device__ __forceinline__ uint64_t cu_clock_ns(void)
{
#ifndef TD_CUDA_STANDIN
    uint64_t ns;
    asm volatile("mov.u64 %0, %globaltimer;\n" : "=l"(ns));
    return ns;
#else
    return (uint64_t)std::chrono::steady_clock::now().time_since_epoch().count();
#endif
}

#endif
