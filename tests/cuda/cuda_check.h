/* A CUDA context beside one of the cores, and tensors that both of them see. */
#ifndef TESTS_CUDA_CUDA_CHECK_H
#define TESTS_CUDA_CUDA_CHECK_H

#include "base/base.h"
#include "kernels/kernels_cuda.h"

typedef struct cuda_pair {
    k_blas blas;
    k_ctx *cpu, *gpu;
    k_cuda_stream *stream;
    k_cuda_lane *lane;
    void *mem[3];
    bool bf16, failed;
    bool slow; /* a host stands in for the device */
    td_rng rng;
    void *held[64];
    int n_held;
    td_arena *arena;
} cuda_pair;

/* A tensor of n elements, or of n floats. The cores' side is floats that an element can hold; the
 * device's side is elements (or floats). */
typedef struct cuda_tensor {
    float *cpu;
    void *gpu;
    long n;
    bool wide;
} cuda_tensor;

/* False, having said why, where there is no device: the program then exits with 77. */
bool cuda_pair_open(cuda_pair *p, bool bf16, uint64_t seed);
void cuda_pair_close(cuda_pair *p);
/* Frees all tensors. */
void cuda_pair_clear(cuda_pair *p);

/* Random: normal numbers; out: poisoned on both sides. */
cuda_tensor cuda_random(cuda_pair *p, long n, bool wide);
cuda_tensor cuda_output(cuda_pair *p, long n, bool wide);
int32_t *cuda_ints(cuda_pair *p, long n, long below, bool with_none);
static inline float *cuda_at(const cuda_tensor *t) { return t->gpu; }
/* The place n elements behind the first. */
float *cuda_skip(const cuda_pair *p, const cuda_tensor *t, long n);

/* ||gpu - cpu|| / ||cpu|| after all work is done; infinite where poison is left or the device
 * failed. cols and ld: what of each row counts. */
double cuda_error(cuda_pair *p, const cuda_tensor *t);
double cuda_error_rows(cuda_pair *p, const cuda_tensor *t, long rows, long cols, long ld);
/* What the error may be. */
double cuda_limit(const cuda_pair *p);
/* A hash of the device's side. */
uint64_t cuda_bits(cuda_pair *p, const cuda_tensor *t);

/* Runs both kinds of elements, or says why not; the exit code. */
int cuda_main(void (*test)(cuda_pair *p), const char *name);
/* One line about a case; remembers failures for the exit code. */
void cuda_report(cuda_pair *p, const char *what, double error, bool repeats);

#endif
