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
    const int64_t kv_at = shard / part->kv_copies * kv;
    shard_rows r = {.n_runs = 1, .n = {own->rows}};
    switch ((param_kind)t->kind) {
    case PARAM_QKV_WEIGHT:
    case PARAM_QKV_BIAS:
        return (shard_rows){.n_runs = 3,
                            .from = {shard * q, all_q + kv_at, all_q + all_kv + kv_at},
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

int64_t shard_counted(const stage_code *part, int32_t shard, int64_t i)
{
    const param_tensor *const t = &part->params[i];
    const param_kind kind = (param_kind)t->kind;
    if (shard_is_whole(kind)) return shard == 0 ? t->rows * t->cols : 0;
    const bool keys = kind == PARAM_QKV_WEIGHT || kind == PARAM_QKV_BIAS;
    if (!keys || shard % part->kv_copies == 0) return t->rows * t->cols;
    return part->m->n_heads * part->m->head_dim * t->cols;
}

bool shard_run_at(const stage_code *full, const stage_code *part, int32_t shard, int64_t i,
                  int64_t n, shard_run *out)
{
    const param_tensor *const t = &full->params[i], *const own = &part->params[i];
    const shard_rows r = rows_of(full, part, shard, t, own);
    const int64_t all = t->rows * t->cols;
    *out = (shard_run){.count = all};
    if (own->rows * own->cols == all) return n == 0;
    if (own->cols < t->cols) { /* a part of each row */
        *out = (shard_run){n * t->cols + r.col, n * own->cols, own->cols};
        return n < own->rows;
    }
    if (n >= r.n_runs) return false;
    *out = (shard_run){.whole = r.from[n] * t->cols, .count = r.n[n] * t->cols};
    for (int64_t k = 0; k < n; k++) out->part += r.n[k] * t->cols;
    return true;
}

void shard_take(const stage_code *full, const stage_code *part, int32_t shard, const float *from,
                float *to)
{
    shard_run run;
    for (int64_t i = 0; i < part->n_params; i++) {
        const param_tensor *const t = &full->params[i], *const own = &part->params[i];
        memset(to + own->offset, 0, (size_t)(own->rows * own->cols) * sizeof *to);
        for (int64_t n = 0; shard_run_at(full, part, shard, i, n, &run); n++)
            memcpy(to + own->offset + run.part, from + t->offset + run.whole,
                   (size_t)run.count * sizeof *to);
    }
}

void shard_give(const stage_code *full, const stage_code *part, int32_t shard, const float *from,
                float *to)
{
    shard_give_piece(full, part, shard, from, 0, part->elements, to);
}

void shard_give_piece(const stage_code *full, const stage_code *part, int32_t shard,
                      const float *from, int64_t begin, int64_t end, float *to)
{
    shard_run run;
    for (int64_t i = 0; i < part->n_params; i++) {
        const param_tensor *const t = &full->params[i];
        if (shard_counted(part, shard, i) == 0) continue;
        for (int64_t n = 0; shard_run_at(full, part, shard, i, n, &run); n++) {
            if (run.part >= shard_counted(part, shard, i)) continue;
            const int64_t at = part->params[i].offset + run.part;
            const int64_t first = at > begin ? at : begin;
            const int64_t last = at + run.count < end ? at + run.count : end;
            if (first < last)
                memcpy(to + t->offset + run.whole + first - at, from + first,
                       (size_t)(last - first) * sizeof *to);
        }
    }
}
