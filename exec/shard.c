/* Bodies of shard.h: column-parallel products are divided by rows of their weights, row-parallel
 * ones by columns (Shoeybi et al. 2019, arXiv 1909.08053, section 3), tables by words. */
#include "exec/shard.h"

#include <string.h>

/* Runs of rows in the full tensor, one behind the other in the part; columns from `col` on. */
typedef struct shard_rows {
    int64_t from[3], n[3];
    int n_runs;
    int64_t col;
} shard_rows;

bool shard_is_whole(param_kind kind)
{
    switch (kind) {
    case PARAM_TOKEN_EMBEDDING:
    case PARAM_HEAD_WEIGHT:
    case PARAM_HEAD_BIAS:
    case PARAM_QKV_WEIGHT:
    case PARAM_QKV_BIAS:
    case PARAM_UP_WEIGHT:
    case PARAM_UP_BIAS:
    case PARAM_GATE_WEIGHT:
    case PARAM_OUT_WEIGHT:
    case PARAM_DOWN_WEIGHT: return false;
    default: return true;
    }
}

static shard_rows rows_of(const stage_code *full, const stage_code *part, int32_t shard,
                          const param_tensor *t, const param_tensor *own)
{
    const model_desc *const m = full->m, *const s = part->m;
    const int64_t q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
    const int64_t all_q = m->n_heads * m->head_dim, all_kv = m->n_kv_heads * m->head_dim;
    shard_rows r = {.n_runs = 1, .n = {own->rows}};
    switch ((param_kind)t->kind) {
    case PARAM_QKV_WEIGHT:
    case PARAM_QKV_BIAS:
        return (shard_rows){.n_runs = 3,
                            .from = {shard * q, all_q + shard * kv, all_q + all_kv + shard * kv},
                            .n = {q, kv, kv}};
    case PARAM_UP_WEIGHT:
    case PARAM_UP_BIAS:
    case PARAM_GATE_WEIGHT: r.from[0] = shard * own->rows; return r;
    case PARAM_OUT_WEIGHT:
    case PARAM_DOWN_WEIGHT: r.col = shard * own->cols; return r;
    case PARAM_TOKEN_EMBEDDING:
    case PARAM_HEAD_WEIGHT:
    case PARAM_HEAD_BIAS:
        r.from[0] = shard * own->rows;
        if (r.from[0] + r.n[0] > t->rows) r.n[0] = t->rows - r.from[0];
        if (r.n[0] < 0) r.n[0] = 0;
        return r;
    default: return r;
    }
}

void shard_take(const stage_code *full, const stage_code *part, int32_t shard, const float *from,
                float *to)
{
    for (int64_t i = 0; i < part->n_params; i++) {
        const param_tensor *const t = &full->params[i], *const own = &part->params[i];
        const shard_rows r = rows_of(full, part, shard, t, own);
        float *at = to + own->offset;
        memset(at, 0, (size_t)(own->rows * own->cols) * sizeof *at);
        for (int k = 0; k < r.n_runs; k++)
            for (int64_t j = 0; j < r.n[k]; j++, at += own->cols)
                memcpy(at, from + t->offset + (r.from[k] + j) * t->cols + r.col,
                       (size_t)own->cols * sizeof *at);
    }
}

void shard_give(const stage_code *full, const stage_code *part, int32_t shard, const float *from,
                float *to)
{
    for (int64_t i = 0; i < part->n_params; i++) {
        const param_tensor *const t = &full->params[i], *const own = &part->params[i];
        const shard_rows r = rows_of(full, part, shard, t, own);
        const float *at = from + own->offset;
        if (shard > 0 && shard_is_whole((param_kind)t->kind)) continue;
        for (int k = 0; k < r.n_runs; k++)
            for (int64_t j = 0; j < r.n[k]; j++, at += own->cols)
                memcpy(to + t->offset + (r.from[k] + j) * t->cols + r.col, at,
                       (size_t)own->cols * sizeof *at);
    }
}
