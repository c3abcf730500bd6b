/* The part of CUDA's bf16 arithmetic that Tandem uses; see cuda_runtime.h of this folder. */
#ifndef TESTS_STANDIN_CUDA_BF16_H
#define TESTS_STANDIN_CUDA_BF16_H

#include "cuda_runtime.h"

struct __nv_bfloat16 {
    uint16_t bits;
};

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

static inline float __bfloat162float(__nv_bfloat16 x)
{
    const uint32_t word = (uint32_t)x.bits << 16;
    float f;
    __builtin_memcpy(&f, &word, sizeof f);
    return f;
}

/* To the nearest, halves to even; every NaN becomes the same one. */
static inline __nv_bfloat16 __float2bfloat16_rn(float x)
{
    uint32_t word;
    __builtin_memcpy(&word, &x, sizeof word);
    if (x != x) return {0x7fff};
    return {(uint16_t)((word + 0x7fffu + (word >> 16 & 1u)) >> 16)};
}

static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y)
{
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

#endif
