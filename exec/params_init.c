/* First weights, seeded by name so that every plan starts from the same ones. A number costs two
 * draws, so that what comes later in a tensor can be made without what comes before: threads share
 * the work in pieces. */
#include "exec/exec.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

enum { PIECE = 1 << 21, MAX_THREADS = 64 }; /* elements of a tensor that one thread makes */

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

typedef struct filling {
    const param_tensor *params;
    int64_t n;
    int64_t first, words; /* rows of tables; words < 0: all */
    uint64_t seed;
    const char *tied; /* the name of a tied head's table, or NULL */
    double residual;  /* the scale of projections into the residual stream */
    float *weights;
    atomic_long next; /* piece */
} filling;

/* The scale of a tensor's numbers; 0 where they are all *value. */
static double scale_of(const filling *f, const param_tensor *t, float *value)
{
    *value = 0;
    switch ((param_kind)t->kind) {
    case PARAM_NORM1_WEIGHT:
    case PARAM_NORM2_WEIGHT:
    case PARAM_FINAL_NORM_WEIGHT:
    case PARAM_EMBEDDING_NORM_WEIGHT: *value = 1; return 0;
    case PARAM_OUT_WEIGHT:
    case PARAM_DOWN_WEIGHT: return f->residual;
    case PARAM_TOKEN_EMBEDDING:
    case PARAM_POSITION_EMBEDDING:
    case PARAM_TYPE_EMBEDDING:
    case PARAM_QKV_WEIGHT:
    case PARAM_UP_WEIGHT:
    case PARAM_GATE_WEIGHT:
    case PARAM_HEAD_WEIGHT:
    case PARAM_HEAD_DENSE_WEIGHT: return 0.02;
    default: return 0;
    }
}

/* Elements [from, to) of a tensor. */
static void fill_piece(const filling *f, const param_tensor *t, int64_t from, int64_t to)
{
    float *const w = f->weights + t->offset, value = 0;
    const double scale = scale_of(f, t, &value);
    if (!(scale > 0)) {
        fill(w + from, to - from, value);
        return;
    }
    const bool tied = t->kind == PARAM_HEAD_WEIGHT && f->tied != NULL;
    const int64_t mine = f->words < 0 ? t->rows * t->cols : f->words * t->cols;
    const int64_t end = to < mine ? to : mine;
    td_rng r = td_rng_seed(name_seed(tied ? f->tied : t->name, f->seed));
    for (int64_t i = 0; i < 2 * (f->first * t->cols + from) && from < end; i++)
        (void)td_rng_u64(&r);
    for (int64_t i = from; i < end; i++) w[i] = (float)(scale * td_rng_normal(&r));
    fill(w + (from > end ? from : end), to - (from > end ? from : end), 0);
}

static int64_t pieces_of(const param_tensor *t) { return (t->rows * t->cols + PIECE - 1) / PIECE; }

static void *fill_pieces(void *arg)
{
    filling *const f = arg;
    int64_t before = 0, i = 0;
    for (int64_t k = atomic_fetch_add(&f->next, 1);; k = atomic_fetch_add(&f->next, 1)) {
        while (i < f->n && k >= before + pieces_of(&f->params[i]))
            before += pieces_of(&f->params[i++]);
        if (i == f->n) return NULL;
        const int64_t from = (k - before) * PIECE, all = f->params[i].rows * f->params[i].cols;
        fill_piece(f, &f->params[i], from, all - from < PIECE ? all : from + PIECE);
    }
}

static void init(const model_desc *m, const param_tensor *params, int64_t n, uint64_t seed,
                 int64_t first, int64_t words, float *weights)
{
    param_tensor table = {.name = ""};
    const stage_desc embedding = {.embedding = true};
    (void)stage_params(m, &embedding, &table, 1);
    filling f = {.params = params,
                 .n = n,
                 .first = first,
                 .words = words,
                 .seed = seed,
                 .tied = m->tied ? table.name : NULL,
                 .residual = 0.02 / sqrt(2.0 * (double)m->n_layers),
                 .weights = weights};
    pthread_t threads[MAX_THREADS];
    int64_t work = 0, started = 0;
    for (int64_t i = 0; i < n; i++) work += params[i].rows * params[i].cols / PIECE;
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    while (started < work && started + 1 < cores && started < MAX_THREADS &&
           pthread_create(&threads[started], NULL, fill_pieces, &f) == 0)
        started++;
    (void)fill_pieces(&f);
    for (int64_t i = 0; i < started; i++) (void)pthread_join(threads[i], NULL);
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
