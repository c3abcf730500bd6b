/* One rank, one stage, one loop. */
#include "exec/reference.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

td_status reference_open(const sizes *z, int32_t microbatches, k_ctx *ctx, td_arena *a,
                         reference *f, td_err *err)
{
    *f = (reference){.sizes = *z, .microbatches = microbatches, .ctx = ctx};
    f->whole = (stage_desc){.n_layers = z->model->n_layers, .embedding = true, .head = true};
    f->sizes.stages = &f->whole;
    f->sizes.n_stages = 1;
    f->sizes.vocab_shards = 0;
    f->sizes.run.recompute = RECOMPUTE_NONE;
    f->sizes.run.tp = 1;
    f->sizes.run.dtype = TYPE_FP32;
    TD_TRY(stage_open(&f->sizes, ctx, a, &f->code, err));
    const stage_code *const c = f->code;
    f->weights = td_alloc(a, (size_t)c->elements, sizeof *f->weights);
    f->grads = td_alloc(a, (size_t)c->grad_elements, sizeof *f->grads);
    f->moments = td_alloc(a, 2 * (size_t)c->elements, sizeof *f->moments);
    f->stash = td_alloc(a, 1, (size_t)c->stash.bytes);
    f->scratch = td_alloc(a, 1, (size_t)c->scratch.bytes);
    f->norms = TD_NEW_N(a, double, c->n_params);
    if (f->weights == NULL || f->grads == NULL || f->moments == NULL || f->stash == NULL ||
        f->scratch == NULL || f->norms == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the one-rank reference");
    return TD_OK;
}

void reference_init(reference *f, uint64_t seed)
{
    params_init(f->code->m, f->code->params, f->code->n_params, seed, f->weights);
}

double reference_gradients(reference *f, const int32_t *ids, const int32_t *targets)
{
    const stage_code *const c = f->code;
    const long table = c->m->vocab * c->m->hidden;
    double sum = 0;
    for (int32_t m = 0; m < f->microbatches; m++) {
        stage_args a = {.weights = f->weights,
                        .grads = f->grads,
                        .stash = f->stash,
                        .scratch = f->scratch,
                        .ids = ids + m * c->rows,
                        .targets = targets + m * c->rows,
                        .grad_scale = (float)(1.0 / (double)f->microbatches)};
        stage_forward(f->ctx, c, &a);
        stage_backward(f->ctx, c, &a);
        sum += a.loss;
    }
    if (c->m->tied) {
        float *const head = f->grads + c->elements;
        k_axpy_cpu(f->ctx, table, 1.0f, head, f->grads + c->own[PARAM_TOKEN_EMBEDDING]);
        k_fill_cpu(f->ctx, table, 0.0f, head);
    }
    return sum / f->microbatches;
}

void reference_update(reference *f, const exec_step *s)
{
    const stage_code *const c = f->code;
    double sum = 0;
    for (int64_t i = 0; i < c->n_params; i++)
        sum += k_sumsq_cpu(f->ctx, c->params[i].rows * c->params[i].cols,
                           f->grads + c->params[i].offset);
    const float scale = optimizer_clip(sqrt(sum), s->clip);
    for (int64_t i = 0; i < c->n_params; i++) {
        const param_tensor *const t = &c->params[i];
        const k_adamw a = {.lr = s->lr,
                           .beta1 = s->beta1,
                           .beta2 = s->beta2,
                           .eps = s->eps,
                           .weight_decay = optimizer_decays(t) ? s->weight_decay : 0.0f,
                           .grad_scale = scale,
                           .step = s->number,
                           .clear_grad = true};
        k_adamw_cpu(f->ctx, &a, t->rows * t->cols, f->weights + t->offset, f->grads + t->offset,
                    f->moments + t->offset, f->moments + c->elements + t->offset);
    }
}

/* ||a - b|| / ||b||; 0 when nothing differs, infinite when a number is not finite. */
static double relative_error(const float *a, const float *b, int64_t n)
{
    double diff = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)a[i] - (double)b[i];
        diff += d * d;
        norm += (double)b[i] * (double)b[i];
    }
    if (!isfinite(diff) || !isfinite(norm)) return HUGE_VAL;
    if (diff <= 0) return 0;
    return norm > 0 ? sqrt(diff / norm) : HUGE_VAL;
}

void reference_compare_tensor(const reference *f, int64_t entry, const param_tensor *t,
                              const float *values, const float *reference_values, comparison *out)
{
    const stage_code *const whole = f->code;
    /* a tied head's own copy is the reference's token table */
    const bool own = entry < whole->n_params;
    const float *const b =
        reference_values + (own ? whole->params[entry].offset : whole->own[PARAM_TOKEN_EMBEDDING]);
    const int64_t n = t->rows * t->cols;
    if (memcmp(values, b, (size_t)n * sizeof *b) != 0) out->bitwise = false;
    const double e = relative_error(values, b, n);
    if (e <= out->max_rel_err) return;
    out->max_rel_err = e;
    (void)snprintf(out->worst, sizeof out->worst, "%s", t->name);
}

void reference_compare(const reference *f, const stage_code *c, const float *values,
                       const float *reference_values, comparison *out)
{
    for (int64_t i = 0; i < c->n_params; i++)
        reference_compare_tensor(f, stage_tensor_entry(c, i), &c->params[i],
                                 values + c->params[i].offset, reference_values, out);
}
