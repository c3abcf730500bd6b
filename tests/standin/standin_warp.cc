/* What the lanes of a warp do together. */
#include "cuda_bf16.h"
#include "standin_gpu.h"

#include <cstring>

/* --- shuffles and votes --- */

static void exchange(void *const brought[STANDIN_WARP], unsigned mask)
{
    for (unsigned i = 0; i < STANDIN_WARP; i++) {
        if ((mask >> i & 1u) == 0) continue;
        standin_word *const w = (standin_word *)brought[i];
        const unsigned from = w->from % STANDIN_WARP;
        /* of a lane that is not in the mask comes anything */
        w->got = mask >> from & 1u ? ((standin_word *)brought[from])->value : 0x7ff77ff77ff77ff7u;
    }
}

void standin_shuffle(standin_word *w, const char *what, int line, unsigned mask)
{
    standin_meet_warp(what, line, mask, w, exchange);
}

static void count_votes(void *const brought[STANDIN_WARP], unsigned mask)
{
    uint64_t votes = 0;
    for (unsigned i = 0; i < STANDIN_WARP; i++)
        if (mask >> i & 1u) votes |= (((standin_word *)brought[i])->value & 1u) << i;
    for (unsigned i = 0; i < STANDIN_WARP; i++)
        if (mask >> i & 1u) ((standin_word *)brought[i])->got = votes;
}

unsigned standin_ballot(const char *what, int line, unsigned mask, bool value)
{
    standin_word w = {value, 0, 0};
    standin_meet_warp(what, line, mask, &w, count_votes);
    return (unsigned)w.got;
}

/* --- tensor cores: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" --- */

struct mma_lane {
    float *c;
    const uint32_t *a;
    uint32_t b[2];
};

/* The low or the high half of a register. */
static float half_of(uint32_t word, unsigned high)
{
    return __bfloat162float({(uint16_t)(high ? word >> 16 : word)});
}

/* Lane i holds of A rows i/4 and i/4 + 8, columns 2 (i%4) and the next, and those 8 further; of B
 * rows like A's columns, of column i/4; of C rows like A's, columns 2 (i%4) and the next. */
static void multiply(void *const brought[STANDIN_WARP], unsigned)
{
    float a[16][16], b[16][8];
    for (unsigned i = 0; i < STANDIN_WARP; i++) {
        const mma_lane *const l = (const mma_lane *)brought[i];
        for (unsigned e = 0; e < 8; e++) {
            const unsigned row = i / 4 + (e / 2 % 2) * 8, col = i % 4 * 2 + e % 2 + e / 4 * 8;
            a[row][col] = half_of(l->a[e / 2], e % 2);
        }
        for (unsigned e = 0; e < 4; e++)
            b[i % 4 * 2 + e % 2 + e / 2 * 8][i / 4] = half_of(l->b[e / 2], e % 2);
    }
    for (unsigned i = 0; i < STANDIN_WARP; i++) {
        float *const c = ((mma_lane *)brought[i])->c;
        for (unsigned e = 0; e < 4; e++) {
            const unsigned row = i / 4 + e / 2 * 8, col = i % 4 * 2 + e % 2;
            float sum = 0;
            for (unsigned k = 0; k < 16; k++) sum += a[row][k] * b[k][col];
            c[e] += sum;
        }
    }
}

void standin_mma_m16n8k16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    mma_lane l = {c, a, {b0, b1}};
    standin_meet_warp("mma", 0, 0xffffffffu, &l, multiply);
}

/* --- ldmatrix: lane i gets of matrix m the elements 2 (i%4) and the next of row i/4 --- */

struct matrix_lane {
    uint32_t *r;
    const void *row;
    int n;
    bool turned;
};

static void load_matrices(void *const brought[STANDIN_WARP], unsigned)
{
    const matrix_lane *const first = (const matrix_lane *)brought[0];
    for (int m = 0; m < first->n; m++) {
        uint16_t x[8][8];
        for (unsigned row = 0; row < 8; row++)
            memcpy(x[row], ((const matrix_lane *)brought[8 * (unsigned)m + row])->row, 16);
        for (unsigned i = 0; i < STANDIN_WARP; i++) {
            const unsigned row = i / 4, col = i % 4 * 2;
            const uint32_t low = first->turned ? x[col][row] : x[row][col];
            const uint32_t high = first->turned ? x[col + 1][row] : x[row][col + 1];
            ((matrix_lane *)brought[i])->r[m] = low | high << 16;
        }
    }
}

void standin_ldmatrix(uint32_t *r, int n, bool turned, const void *row)
{
    matrix_lane l = {r, row, n, turned};
    if (standin_lane() < 8 * (unsigned)n && (uintptr_t)row % 16 != 0) __builtin_trap();
    standin_meet_warp(turned ? "ldmatrix.trans" : "ldmatrix", n, 0xffffffffu, &l, load_matrices);
}
