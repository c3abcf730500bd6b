/* Inside sizes: arithmetic that saturates, and the widths of one shard. */
#ifndef COSTMODEL_SIZES_INSIDE_H
#define COSTMODEL_SIZES_INSIDE_H

#include "costmodel/sizes.h"

/* What does not fit becomes HUGE_BYTES and is refused at the end. */
#define HUGE_BYTES (INT64_MAX / 4)

static inline int64_t mul(int64_t a, int64_t b)
{
    int64_t r = 0;
    return __builtin_mul_overflow(a, b, &r) || r > HUGE_BYTES ? HUGE_BYTES : r;
}

static inline int64_t plus(int64_t a, int64_t b)
{
    return a >= HUGE_BYTES || b >= HUGE_BYTES || a + b >= HUGE_BYTES ? HUGE_BYTES : a + b;
}

static inline int64_t per(int64_t n, int64_t parts)
{
    return parts <= 1 ? n : (n + parts - 1) / parts;
}

/* Row counts and widths of one tensor-parallel shard. */
typedef struct shard_dims {
    const model_desc *m;
    const stage_desc *stage;
    bool bert;
    int64_t e;                 /* bytes of an element */
    int64_t rows, shared_rows; /* shared_rows: of what sequence parallelism divides */
    int64_t tp;
    int64_t heads, qkv, attn, ffn, up, vocab_ld;
    bool sliced; /* of the tokens: keys and values are kept in SIZE_KV buffers */
} shard_dims;

/* Errors: TD_EUSAGE without a model or such a stage. */
TD_MUST_USE td_status sizes_dims(const sizes *z, int32_t stage, int64_t slice_len, shard_dims *out,
                                 td_err *err);

#endif
