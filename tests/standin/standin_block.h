/* One block of a kernel, run to its end. */
#ifndef TESTS_STANDIN_STANDIN_BLOCK_H
#define TESTS_STANDIN_STANDIN_BLOCK_H

#include "standin_gpu.h"

struct standin_kernel {
    const char *call; /* the launch's text */
    const void *kernel;
    dim3 grid, block;
    size_t shared;
    std::function<void()> thread;
};

/* Runs all blocks in an order drawn with `seed`; false: a rule was broken, and told. */
bool standin_run_kernel(const standin_kernel *k, uint64_t seed);

/* Whether a kernel runs just now; then `out` says which, where (for a signal handler). */
bool standin_where(char *out, size_t n);

/* The next number of a generator. */
static inline uint64_t standin_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* 16 bits that are a NaN as a float, as a bf16 and as a double. */
enum { STANDIN_POISON = 0x7ff7 };
void standin_poison(void *at, size_t bytes);

/* Memory of `bytes` that ends (rounded up to `align`) at an inaccessible page and begins after one;
 * NULL: none. `whole` and `whole_bytes` are for munmap. */
void *standin_guarded(size_t bytes, size_t align, void **whole, size_t *whole_bytes);

#endif
