/* First weights, seeded by name so that every plan starts from the same ones. */
#include "exec/exec.h"

#include <math.h>
#include <string.h>

static uint64_t name_seed(const char *name, uint64_t seed)
{
    uint64_t h = 0xcbf29ce484222325u ^ seed; /* FNV-1a */
    for (; *name != '\0'; name++) h = (h ^ (uint8_t)*name) * 0x100000001b3u;
    return h;
}

static void fill(float *w, int64_t n, float value)
{
    for (int64_t i = 0; i < n; i++) w[i] = value;
}

/* Of each tensor rows [first, first + words); words < 0: all. */
static void init(const model_desc *m, const param_tensor *params, int64_t n, uint64_t seed,
                 int64_t first, int64_t words, float *weights)
{
    param_tensor table = {.name = ""};
    const stage_desc embedding = {.embedding = true};
    (void)stage_params(m, &embedding, &table, 1);
    const double residual = 0.02 / sqrt(2.0 * (double)m->n_layers);
    for (int64_t i = 0; i < n; i++) {
        const param_tensor *const t = &params[i];
        float *const w = weights + t->offset;
        const int64_t count = t->rows * t->cols;
        const bool tied = t->kind == PARAM_HEAD_WEIGHT && m->tied;
        td_rng r = td_rng_seed(name_seed(tied ? table.name : t->name, seed));
        double scale = 0.02;
        switch ((param_kind)t->kind) {
        case PARAM_NORM1_WEIGHT:
        case PARAM_NORM2_WEIGHT:
        case PARAM_FINAL_NORM_WEIGHT:
        case PARAM_EMBEDDING_NORM_WEIGHT: fill(w, count, 1.0f); continue;
        case PARAM_OUT_WEIGHT:
        case PARAM_DOWN_WEIGHT: scale = residual; break;
        case PARAM_TOKEN_EMBEDDING:
        case PARAM_POSITION_EMBEDDING:
        case PARAM_TYPE_EMBEDDING:
        case PARAM_QKV_WEIGHT:
        case PARAM_UP_WEIGHT:
        case PARAM_GATE_WEIGHT:
        case PARAM_HEAD_WEIGHT:
        case PARAM_HEAD_DENSE_WEIGHT: break;
        default: fill(w, count, 0.0f); continue;
        }
        const int64_t mine = words < 0 ? count : words * t->cols;
        for (int64_t j = 0; j < first * t->cols; j++) (void)td_rng_normal(&r);
        for (int64_t j = 0; j < mine; j++) w[j] = (float)(scale * td_rng_normal(&r));
        for (int64_t j = mine; j < count; j++) w[j] = 0;
    }
}

void params_init(const model_desc *m, const param_tensor *params, int64_t n, uint64_t seed,
                 float *weights)
{
    init(m, params, n, seed, 0, -1, weights);
}

void params_init_shard(const model_desc *m, const param_tensor *params, int64_t n, uint64_t seed,
                       int64_t first, int64_t words, float *weights)
{
    init(m, params, n, seed, first, words, weights);
}
