/* Cases in processes of their own: each one has a fresh stand-in with a seed, and may break it. */
#ifndef TESTS_STANDIN_STANDIN_CASE_H
#define TESTS_STANDIN_STANDIN_CASE_H

#include "kernels/cuda/cu_ptx.cuh"

enum { CASE_SEEDS = 12 };

/* What a case says of itself: it went as CUDA does, a wrong result, an error of a call. */
enum { CASE_RIGHT = 0, CASE_WRONG = 10, CASE_ERROR = 20 };

struct standin_case {
    const char *name;
    int (*run)(void);
    /* What is expected: that all seeds are right, that some seed is wrong, or that every seed ends
     * with an error or a signal, and says this. */
    enum { ALL_RIGHT, SOME_WRONG, REFUSED } expected;
    const char *says;
};

/* Runs all cases with all seeds; the exit code. */
int standin_cases(const standin_case *all, int n);

/* Ends the case with CASE_ERROR when a call fails. */
void fine(cudaError_t e);
cudaStream_t new_stream(void);
cudaEvent_t new_event(void);
template <typename T> T *device_array(size_t n)
{
    T *at = nullptr;
    fine(cudaMalloc(&at, n * sizeof(T)));
    return at;
}
template <typename T> T *pinned_array(size_t n)
{
    T *at = nullptr;
    fine(cudaMallocHost(&at, n * sizeof(T)));
    return at;
}

#endif
