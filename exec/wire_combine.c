/* The arithmetic of collectives: sums in member order. */
#include "exec/wire.h"
#include "kernels/kernels.h"

#include <string.h>

enum { BLOCK = 1024 }; /* elements summed at a time */

static bool is_bf16(wire_kind kind) { return kind >= WIRE_SUM_BF16 && kind <= WIRE_GATHER_BF16; }

void wire_piece(wire_kind kind, int64_t bytes, uint32_t n, uint32_t i, int64_t *first,
                int64_t *count)
{
    const int64_t unit = is_bf16(kind) ? 2 : 4, all = bytes / unit;
    const int64_t even = all / n, rest = all % n;
    *first = (even * i + (i < rest ? (int64_t)i : rest)) * unit;
    *count = (even + (i < rest ? 1 : 0)) * unit;
}

bool wire_kind_in_pieces(wire_kind kind)
{
    return kind != WIRE_SUM_ROOT_FLOAT && kind != WIRE_SUM_ROOT_BF16 && kind != WIRE_BROADCAST &&
           kind != WIRE_SUM_DOUBLE && kind != WIRE_VOCAB;
}

bool wire_kind_combines(wire_kind kind)
{
    return kind != WIRE_GATHER_FLOAT && kind != WIRE_GATHER_BF16 && kind != WIRE_BROADCAST;
}

bool wire_kind_spreads(wire_kind kind)
{
    return kind != WIRE_SUM_PIECES_FLOAT && kind != WIRE_SUM_ROOT_FLOAT &&
           kind != WIRE_SUM_PIECES_BF16 && kind != WIRE_SUM_ROOT_BF16;
}

static void sum_floats(void *const *data, uint32_t n, int64_t bytes, uint32_t only)
{
    float sum[BLOCK];
    const int64_t all = bytes / (int64_t)sizeof *sum;
    for (int64_t first = 0; first < all; first += BLOCK) {
        const int64_t count = all - first < BLOCK ? all - first : BLOCK;
        const size_t block = (size_t)count * sizeof *sum;
        memcpy(sum, (const float *)data[0] + first, block);
        for (uint32_t m = 1; m < n; m++) {
            const float *const x = (const float *)data[m] + first;
            for (int64_t i = 0; i < count; i++) sum[i] += x[i];
        }
        for (uint32_t m = 0; m < n; m++)
            if (only == UINT32_MAX || only == m) memcpy((float *)data[m] + first, sum, block);
    }
}

static void sum_doubles(void *const *data, uint32_t n, int64_t bytes, uint32_t only)
{
    const int64_t all = bytes / (int64_t)sizeof(double);
    for (int64_t i = 0; i < all; i++) {
        double sum = ((const double *)data[0])[i];
        for (uint32_t m = 1; m < n; m++) sum += ((const double *)data[m])[i];
        for (uint32_t m = 0; m < n; m++)
            if (only == UINT32_MAX || only == m) ((double *)data[m])[i] = sum;
    }
}

static void sum_bf16(void *const *data, uint32_t n, int64_t bytes, uint32_t only)
{
    const int64_t all = bytes / (int64_t)sizeof(uint16_t);
    for (int64_t i = 0; i < all; i++) {
        float sum = td_float_of_bf16(((const uint16_t *)data[0])[i]);
        for (uint32_t m = 1; m < n; m++) sum += td_float_of_bf16(((const uint16_t *)data[m])[i]);
        for (uint32_t m = 0; m < n; m++)
            if (only == UINT32_MAX || only == m) ((uint16_t *)data[m])[i] = td_bf16_of_float(sum);
    }
}

static int64_t aligned(int64_t bytes)
{
    return (bytes + WIRE_VOCAB_ALIGN - 1) / WIRE_VOCAB_ALIGN * WIRE_VOCAB_ALIGN;
}

static void join_vocab(void *const *data, uint32_t n)
{
    wire_vocab head;
    memcpy(&head, data[0], sizeof head);
    const int64_t stats = aligned(sizeof head);
    const k_vocab_parts p = {.data = data,
                             .n = n,
                             .rows = head.rows,
                             .width = head.width,
                             .stats_at = stats,
                             .inputs_at = stats + aligned(3 * head.rows * (int64_t)sizeof(float))};
    k_vocab_join(&p);
}

void wire_combine(wire_kind kind, void *const *data, uint32_t n, int64_t bytes, uint32_t only)
{
    switch (kind) {
    case WIRE_SUM_FLOAT:
    case WIRE_SUM_PIECES_FLOAT:
    case WIRE_SUM_ROOT_FLOAT: sum_floats(data, n, bytes, only); return;
    case WIRE_SUM_BF16:
    case WIRE_SUM_PIECES_BF16:
    case WIRE_SUM_ROOT_BF16: sum_bf16(data, n, bytes, only); return;
    case WIRE_VOCAB: join_vocab(data, n); return;
    case WIRE_SUM_DOUBLE: sum_doubles(data, n, bytes, only); return;
    default: return; /* nothing is combined */
    }
}
