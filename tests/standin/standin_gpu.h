/* The GPU that a host stands in for: what kernels/cuda asks of it beyond CUDA's names.
 *
 * Work. A call queues work on its stream; it runs later, when somebody waits (or, depending on the
 * seed, at any call before that), in an order drawn from the seed among all streams whose next
 * piece may run. So what events do not order is out of order under some seed.
 *
 * Kernels. Blocks run in an order drawn from the seed; a block's threads run one at a time, each
 * until it has to wait for others, warps in a drawn order. So a missing barrier leaves stale
 * values. Shared memory is poisoned before every block. Barriers and warp operations that not all
 * threads (lanes of the mask) reach at the same place in the source end the kernel with an error.
 *
 * Memory is poisoned when it is allocated and ends at an inaccessible page. What cudaMalloc gave is
 * inaccessible while no work runs. Shared memory ends at an inaccessible page too.
 *
 * TD_STANDIN_SEED: the seed (0). TD_STANDIN_DEVICES: how many devices there are (1).
 * What breaks a rule is told in one line on stderr. */
#ifndef TESTS_STANDIN_STANDIN_GPU_H
#define TESTS_STANDIN_STANDIN_GPU_H

#include "cuda_runtime.h"

#include <functional>
#include <tuple>

enum { STANDIN_THREADS_MAX = 1024, STANDIN_WARP = 32 };
enum { STANDIN_SHARED_STATIC_MAX = 48 << 10, STANDIN_SHARED_MAX = 227 << 10 };

/* --- for kernels --- */

/* A block's array by its key; all threads get the same one. */
void *standin_shared(const void *key, size_t bytes);
/* What the launch gave beside arrays. */
void *standin_dynamic(void);

/* Waits for all threads of the block; the number of them whose value is not 0. */
unsigned standin_meet(const char *what, int line, bool value);

/* All lanes of a mask meet; the last one to come runs `join` over what each lane brought. */
typedef void standin_join(void *const brought[STANDIN_WARP], unsigned mask);
void standin_meet_warp(const char *what, int line, unsigned mask, void *brings, standin_join *join);
unsigned standin_lane(void);

static inline void __syncthreads(int line = __builtin_LINE())
{
    (void)standin_meet("__syncthreads", line, false);
}
static inline int __syncthreads_or(int value, int line = __builtin_LINE())
{
    return standin_meet("__syncthreads_or", line, value != 0) != 0;
}
static inline int __syncthreads_and(int value, int line = __builtin_LINE())
{
    return standin_meet("__syncthreads_and", line, value == 0) == 0;
}
static inline int __syncthreads_count(int value, int line = __builtin_LINE())
{
    return (int)standin_meet("__syncthreads_count", line, value != 0);
}

/* A lane's word and the lane whose word it wants. */
struct standin_word {
    uint64_t value, got;
    unsigned from;
};
void standin_shuffle(standin_word *w, const char *what, int line, unsigned mask);
unsigned standin_ballot(const char *what, int line, unsigned mask, bool value);

template <typename T>
static inline T standin_shuffle_from(T x, unsigned from, const char *what, int line, unsigned mask)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "words of 32 or 64 bits are exchanged");
    standin_word w = {0, 0, from};
    __builtin_memcpy(&w.value, &x, sizeof x);
    standin_shuffle(&w, what, line, mask);
    __builtin_memcpy(&x, &w.got, sizeof x);
    return x;
}

template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T x, int turn, int width = STANDIN_WARP,
                                int line = __builtin_LINE())
{
    const unsigned lane = standin_lane(), to = lane ^ (unsigned)turn;
    const bool inside = to / (unsigned)width <= lane / (unsigned)width;
    return standin_shuffle_from(x, inside ? to : lane, "__shfl_xor_sync", line, mask);
}

template <typename T>
static inline T __shfl_sync(unsigned mask, T x, int from, int width = STANDIN_WARP,
                            int line = __builtin_LINE())
{
    const unsigned lane = standin_lane(), w = (unsigned)width;
    return standin_shuffle_from(x, lane / w * w + (unsigned)from % w, "__shfl_sync", line, mask);
}

template <typename T>
static inline T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = STANDIN_WARP,
                                 int line = __builtin_LINE())
{
    const unsigned lane = standin_lane(), w = (unsigned)width;
    return standin_shuffle_from(x, lane % w + by < w ? lane + by : lane, "__shfl_down_sync", line,
                                mask);
}

template <typename T>
static inline T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = STANDIN_WARP,
                               int line = __builtin_LINE())
{
    const unsigned lane = standin_lane(), w = (unsigned)width;
    return standin_shuffle_from(x, lane % w >= by ? lane - by : lane, "__shfl_up_sync", line, mask);
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE())
{
    (void)standin_ballot("__syncwarp", line, mask, false);
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline unsigned __ballot_sync(unsigned mask, int value, int line = __builtin_LINE())
{
    return standin_ballot("__ballot_sync", line, mask, value != 0);
}
static inline int __any_sync(unsigned mask, int value, int line = __builtin_LINE())
{
    return standin_ballot("__any_sync", line, mask, value != 0) != 0;
}
static inline int __all_sync(unsigned mask, int value, int line = __builtin_LINE())
{
    return standin_ballot("__all_sync", line, mask, value != 0) == mask;
}

/* mma.sync.m16n8k16 with bf16 operands (A by row, B by column) and fp32 sums, c += A B; of a whole
 * warp, fragments as the PTX manual lays them out. */
void standin_mma_m16n8k16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1);
/* ldmatrix.m8n8.b16 of n = 1, 2 or 4 matrices; the row's address counts in lanes below 8 n. */
void standin_ldmatrix(uint32_t *r, int n, bool turned, const void *row);
/* cp.async of 4, 8 or 16 bytes to shared memory, of which `there` are read and the others zeroed;
 * what was asked for arrives at the latest at the wait for its group (the last `left` groups may
 * still be on their way), and not before the thread's next call here. */
void standin_cp_async(void *shared, const void *from, unsigned bytes, unsigned there);
void standin_cp_async_commit(void);
void standin_cp_async_wait(unsigned left);

/* --- for launches and libraries --- */

/* Queues work on a stream; `ready` (optional) says whether it may run already. The work must not
 * wait for anything. */
void standin_queue(cudaStream_t s, std::function<void()> work,
                   std::function<bool()> ready = nullptr);
void standin_queue_kernel(const char *call, const void *kernel, dim3 grid, dim3 block,
                          size_t shared, cudaStream_t s, std::function<void()> thread);

/* A launch as the stand-in sees it: the call's text names the kernel. */
template <typename... P, typename... A>
static inline void standin_launch(const char *call, void (*kernel)(P...), dim3 grid, dim3 block,
                                  size_t shared, cudaStream_t s, A... args)
{
    const std::tuple<P...> kept(args...);
    standin_queue_kernel(call, (const void *)kernel, grid, block, shared, s,
                         [kernel, kept] { std::apply(kernel, kept); });
}

#endif
