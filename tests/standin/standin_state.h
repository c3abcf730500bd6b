/* What the files of the stand-in share: one lock over all its state, and errors. */
#ifndef TESTS_STANDIN_STANDIN_STATE_H
#define TESTS_STANDIN_STANDIN_STATE_H

#include "cuda_runtime.h"

#include <mutex>

std::mutex &standin_mutex(void);

struct standin_lock {
    standin_lock() { standin_mutex().lock(); }
    ~standin_lock() { standin_mutex().unlock(); }
    standin_lock(const standin_lock &) = delete;
    standin_lock &operator=(const standin_lock &) = delete;
};

/* Keeps an error for cudaGetLastError, and gives it back. */
cudaError_t standin_fail(cudaError_t e);

/* Lets the processor touch what only the device may touch, while work runs. Under the lock. */
void standin_memory_open(bool open);

#endif
