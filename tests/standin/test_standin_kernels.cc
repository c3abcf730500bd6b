/* The stand-in's kernels: what is right stays right under every order of blocks, warps and lanes;
 * what CUDA leaves undefined is seen. */
#include "standin_case.h"
#include "standin_gpu.h"

#include <cstring>

enum { N = 96 };

/* --- barriers --- */

template <bool WAITS> static __global__ void turn_kernel(const int *x, int *y)
{
    CU_SHARED(int, room, [N]);
    room[threadIdx.x] = x[blockIdx.x * N + threadIdx.x];
    if (WAITS) __syncthreads();
    y[blockIdx.x * N + threadIdx.x] = room[N - 1 - threadIdx.x];
}

/* A second use of the room, before all have read the first. */
template <bool WAITS> static __global__ void turn_twice_kernel(const int *x, int *y)
{
    CU_SHARED(int, room, [N]);
    for (int i = 0; i < 2; i++) {
        room[threadIdx.x] = x[i * N + threadIdx.x];
        __syncthreads();
        y[i * N + threadIdx.x] = room[N - 1 - threadIdx.x];
        if (WAITS) __syncthreads();
    }
}

template <typename K> static int turned(K kernel, unsigned blocks)
{
    int *const x = pinned_array<int>(2 * N), *const y = pinned_array<int>(2 * N);
    for (int i = 0; i < 2 * N; i++) x[i] = i * i;
    cu_launch(kernel, blocks, N, 0, nullptr, x, y);
    fine(cudaDeviceSynchronize());
    for (int b = 0; b < 2; b++)
        for (int i = 0; i < N; i++)
            if (y[b * N + i] != x[b * N + N - 1 - i]) return CASE_WRONG;
    return CASE_RIGHT;
}

static int barrier(void) { return turned(turn_kernel<true>, 2); }
static int no_barrier(void) { return turned(turn_kernel<false>, 2); }
static int barrier_after(void) { return turned(turn_twice_kernel<true>, 1); }
static int no_barrier_after(void) { return turned(turn_twice_kernel<false>, 1); }

static __global__ void half_waits_kernel(int *y)
{
    if (threadIdx.x < N / 2) __syncthreads();
    y[threadIdx.x] = 1;
}

static __global__ void two_places_kernel(int *y)
{
    if (threadIdx.x % 2 == 0)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1;
}

static __global__ void votes_kernel(int *y)
{
    const int count = __syncthreads_count(threadIdx.x % 3 == 0);
    const int any = __syncthreads_or(threadIdx.x == N - 1), none = __syncthreads_or(0);
    const int all = __syncthreads_and(1), most = __syncthreads_and(threadIdx.x != 5);
    y[threadIdx.x] = count * 10000 + any * 1000 + none * 100 + all * 10 + most;
}

template <typename K> static int filled(K kernel, int value)
{
    int *const y = pinned_array<int>(N);
    cu_launch(kernel, 1, N, 0, nullptr, y);
    fine(cudaGetLastError());
    fine(cudaDeviceSynchronize());
    for (int i = 0; i < N; i++)
        if (y[i] != value) return CASE_WRONG;
    return CASE_RIGHT;
}

static int half_waits(void) { return filled(half_waits_kernel, 1); }
static int two_places(void) { return filled(two_places_kernel, 1); }
static int votes(void) { return filled(votes_kernel, (N + 2) / 3 * 10000 + 1010); }

/* --- warps --- */

static __global__ void shuffles_kernel(int *y)
{
    const int lane = threadIdx.x % 32, at = lane % 8;
    int good = __shfl_xor_sync(0xffffffffu, lane, 5) == (lane ^ 5);
    good &= __shfl_sync(0xffffffffu, lane, 7) == 7;
    good &= __shfl_sync(0xffffffffu, lane, 3, 8) == lane - at + 3;
    good &= __shfl_down_sync(0xffffffffu, lane, 3, 8) == (at + 3 < 8 ? lane + 3 : lane);
    good &= __shfl_up_sync(0xffffffffu, lane, 3) == (lane >= 3 ? lane - 3 : lane);
    good &= __shfl_xor_sync(0xffffffffu, (double)lane, 16) == (double)(lane ^ 16);
    good &= __ballot_sync(0xffffffffu, lane % 2) == 0xaaaaaaaau;
    good &= __any_sync(0xffffffffu, lane == 9) && !__any_sync(0xffffffffu, 0);
    good &= __all_sync(0xffffffffu, 1) && !__all_sync(0xffffffffu, lane != 31);
    if (lane < 16) good &= __shfl_xor_sync(0x0000ffffu, lane, 1) == (lane ^ 1);
    y[threadIdx.x] = good;
}

static __global__ void lanes_missing_kernel(int *y)
{
    const int lane = threadIdx.x % 32;
    y[threadIdx.x] = lane < 8 ? __shfl_xor_sync(0xffffffffu, lane, 1) == (lane ^ 1) : 1;
}

static __global__ void masks_differ_kernel(int *y)
{
    y[threadIdx.x] = 1;
    __syncwarp(threadIdx.x % 32 == 0 ? 0xffffffffu : 0xfffffffeu);
}

/* Lane i gives its neighbour a value through shared memory. */
template <bool WAITS> static __global__ void neighbour_kernel(int *y)
{
    CU_SHARED(int, room, [N]);
    room[threadIdx.x] = (int)threadIdx.x;
    if (WAITS) __syncwarp();
    y[threadIdx.x] = room[threadIdx.x ^ 1] == (int)(threadIdx.x ^ 1);
}

static int shuffles(void) { return filled(shuffles_kernel, 1); }
static int lanes_missing(void) { return filled(lanes_missing_kernel, 1); }
static int masks_differ(void) { return filled(masks_differ_kernel, 1); }
static int neighbours(void) { return filled(neighbour_kernel<true>, 1); }
static int no_neighbours(void) { return filled(neighbour_kernel<false>, 1); }

/* The corners of the layouts, by hand: which element of A, B and C a register's half is. */
static __global__ void fragments_kernel(int *y)
{
    const struct {
        unsigned lane, reg, high, row, k;
    } as[] = {{0, 0, 0, 0, 0},    {0, 0, 1, 0, 1},  {0, 1, 0, 8, 0},
              {0, 2, 0, 0, 8},    {0, 3, 1, 8, 9},  {31, 0, 0, 7, 6},
              {31, 3, 1, 15, 15}, {5, 2, 1, 1, 11}, {14, 1, 0, 11, 4}};
    const struct {
        unsigned lane, reg, high, k, col;
    } bs[] = {{0, 0, 0, 0, 0},   {0, 1, 1, 9, 0}, {31, 0, 0, 6, 7},
              {31, 1, 1, 15, 7}, {5, 0, 1, 3, 1}, {14, 1, 0, 12, 3}};
    const unsigned lane = threadIdx.x % 32;
    int good = 1;
    for (const auto &a : as)
        for (const auto &b : bs) {
            uint32_t ra[4] = {}, rb[2] = {};
            float c[4] = {};
            if (lane == a.lane) ra[a.reg] = a.high ? 0x3f800000u : 0x3f80u; /* one */
            if (lane == b.lane) rb[b.reg] = b.high ? 0x40000000u : 0x4000u; /* two */
            cu_mma(c, ra, rb[0], rb[1]);
            for (unsigned e = 0; e < 4; e++) {
                const unsigned row = lane / 4 + e / 2 * 8, col = lane % 4 * 2 + e % 2;
                const bool here = a.k == b.k && row == a.row && col == b.col;
                good &= c[e] == (here ? 2.0f : 0.0f);
            }
        }
    y[threadIdx.x] = good;
}

/* Matrix m holds 100 (8 m + row) + column. */
static __global__ void ldmatrix_kernel(int *y)
{
    CU_SHARED(uint4, rows, [N]); /* 32 rows of 8 elements for each warp */
    const unsigned lane = threadIdx.x % 32;
    uint16_t *const x = (uint16_t *)(rows + threadIdx.x / 32 * 32);
    for (unsigned i = lane; i < 256; i += 32) x[i] = (uint16_t)(i / 8 * 100 + i % 8);
    __syncwarp();
    int good = 1;
    for (unsigned n = 1; n <= 4; n *= 2)
        for (int turned = 0; turned < 2; turned++) {
            uint32_t r[4];
            standin_ldmatrix(r, (int)n, turned == 1, x + lane % (8 * n) * 8);
            for (unsigned i = 0; i < 2 * n; i++) {
                const unsigned m = i / 2, pair = lane % 4 * 2 + i % 2, single = lane / 4;
                const unsigned row = turned ? pair : single, col = turned ? single : pair;
                good &= (r[m] >> 16 * (i % 2) & 0xffffu) == (8 * m + row) * 100 + col;
            }
        }
    y[threadIdx.x] = good;
}

static int fragments(void) { return filled(fragments_kernel, 1); }
static int ldmatrix(void) { return filled(ldmatrix_kernel, 1); }

/* --- shared memory --- */

/* A block that finds what another one left would count on. */
static __global__ void poison_kernel(int *y)
{
    CU_SHARED(uint16_t, room, [N]);
    CU_DYNAMIC(uint16_t, more);
    y[threadIdx.x] = room[threadIdx.x] == 0x7ff7 && more[threadIdx.x] == 0x7ff7;
    room[threadIdx.x] = more[threadIdx.x] = 0;
}

static int poisoned(void)
{
    int *const y = pinned_array<int>(N);
    cu_launch(poison_kernel, 3, N, N * sizeof(uint16_t), nullptr, y);
    fine(cudaDeviceSynchronize());
    for (int i = 0; i < N; i++)
        if (y[i] != 1) return CASE_WRONG;
    return CASE_RIGHT;
}

static __global__ void behind_kernel(int *y)
{
    CU_DYNAMIC(int, room);
    room[threadIdx.x] = 1;
    y[threadIdx.x] = room[threadIdx.x];
}

static int behind_shared(void)
{
    int *const y = pinned_array<int>(N);
    cu_launch(behind_kernel, 1, N, (N - 4) * sizeof(int), nullptr, y);
    fine(cudaDeviceSynchronize());
    return CASE_RIGHT;
}

static __global__ void behind_array_kernel(int *y)
{
    CU_SHARED(int, room, [N - 4]);
    room[threadIdx.x] = 1;
    y[threadIdx.x] = room[threadIdx.x];
}
static int behind_array(void) { return filled(behind_array_kernel, 1); }

static __global__ void much_shared_kernel(int *y)
{
    CU_SHARED(char, room, [(48 << 10) + 16]);
    room[threadIdx.x] = 1;
    y[threadIdx.x] = room[threadIdx.x];
}
static int much_shared(void) { return filled(much_shared_kernel, 1); }

/* --- asynchronous copies --- */

template <bool WAITS> static __global__ void copies_kernel(const int *x, int *y)
{
    CU_SHARED(int, room, [2 * N]);
    for (int i = 0; i < 2; i++) {
        standin_cp_async(room + i * N + threadIdx.x, x + i * N + threadIdx.x, 4, 4);
        standin_cp_async_commit();
    }
    standin_cp_async_wait(WAITS ? 0 : 1);
    __syncthreads();
    for (int i = 0; i < 2; i++) y[i * N + threadIdx.x] = room[i * N + N - 1 - threadIdx.x];
}
static int copies(void) { return turned(copies_kernel<true>, 1); }
static int no_copies(void) { return turned(copies_kernel<false>, 1); }

/* --- launches --- */

static int launch(dim3 grid, dim3 block, size_t shared)
{
    int *const y = pinned_array<int>(2048);
    cu_launch(behind_kernel, grid, block, shared, nullptr, y);
    fine(cudaGetLastError());
    fine(cudaDeviceSynchronize());
    return CASE_RIGHT;
}

static int threads_over(void) { return launch(1, 1025, 40 << 10); }
static int grid_over(void) { return launch(dim3(1, 65536), 1, 4096); }
static int grid_empty(void) { return launch(0, 1, 4096); }
static int shared_unasked(void) { return launch(1, 32, (48 << 10) + 4); }
static int shared_asked(void)
{
    fine(cudaFuncSetAttribute(behind_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              227 << 10));
    return launch(1, 32, 227 << 10);
}
static int shared_over(void)
{
    fine(cudaFuncSetAttribute(behind_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              (227 << 10) + 1));
    return CASE_RIGHT;
}

int main(void)
{
    typedef standin_case c;
    const standin_case all[] = {
        {"a barrier between writing and reading", barrier, c::ALL_RIGHT, nullptr},
        {"  without it", no_barrier, c::SOME_WRONG, nullptr},
        {"a barrier between reading and writing again", barrier_after, c::ALL_RIGHT, nullptr},
        {"  without it", no_barrier_after, c::SOME_WRONG, nullptr},
        {"a barrier that half of the threads reach", half_waits, c::REFUSED, "__syncthreads"},
        {"two barriers at once", two_places, c::REFUSED, "while others wait at __syncthreads"},
        {"votes of a block", votes, c::ALL_RIGHT, nullptr},
        {"shuffles and votes of a warp", shuffles, c::ALL_RIGHT, nullptr},
        {"a shuffle that lanes of its mask do not reach", lanes_missing, c::REFUSED,
         "__shfl_xor_sync"},
        {"masks that differ", masks_differ, c::REFUSED, "__syncwarp"},
        {"a neighbour's value behind a barrier of the warp", neighbours, c::ALL_RIGHT, nullptr},
        {"  without it", no_neighbours, c::SOME_WRONG, nullptr},
        {"fragments of mma", fragments, c::ALL_RIGHT, nullptr},
        {"matrices read by ldmatrix", ldmatrix, c::ALL_RIGHT, nullptr},
        {"shared memory holds nothing at first", poisoned, c::ALL_RIGHT, nullptr},
        {"behind dynamic shared memory", behind_shared, c::REFUSED, "behind_kernel"},
        {"behind an array in shared memory", behind_array, c::REFUSED, "kernel"},
        {"arrays over 48 KiB", much_shared, c::REFUSED, "over 49152"},
        {"copies that are waited for", copies, c::ALL_RIGHT, nullptr},
        {"  one of them not", no_copies, c::SOME_WRONG, nullptr},
        {"1025 threads", threads_over, c::REFUSED, "invalid configuration"},
        {"65536 rows of blocks", grid_over, c::REFUSED, "invalid configuration"},
        {"no block", grid_empty, c::REFUSED, "invalid configuration"},
        {"over 48 KiB unasked", shared_unasked, c::REFUSED, "invalid argument"},
        {"227 KiB asked for", shared_asked, c::ALL_RIGHT, nullptr},
        {"over 227 KiB asked for", shared_over, c::REFUSED, "invalid argument"},
    };
    return standin_cases(all, sizeof all / sizeof *all);
}
