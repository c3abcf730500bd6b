/* Gradient norm, clipping, AdamW, the learning rate's course. */
#include "exec/exec.h"

#include <math.h>
#include <string.h>

float optimizer_clip(double norm, double clip)
{
    return clip > 0 && norm > clip ? (float)(clip / norm) : 1.0f;
}

bool optimizer_decays(const param_tensor *t) { return t->cols > 1; }

double optimizer_rate(double peak, int64_t step, int64_t warmup, int64_t total)
{
    if (step <= warmup) return peak * (double)step / (double)(warmup < 1 ? 1 : warmup);
    if (step >= total || total <= warmup) return 0.1 * peak;
    const double done = (double)(step - warmup) / (double)(total - warmup);
    const double pi = 3.14159265358979323846;
    return peak * (0.1 + 0.45 * (1.0 + cos(pi * done)));
}

/* One use of a task's, looked up. */
typedef struct held {
    uint32_t inst;
    use_role role;
    char *at;
} held;

static held held_at(const executor *x, const exec_rank *r, uint32_t use)
{
    const plan *const p = x->p;
    const plan_buffer *const b =
        &p->buffers[p->ranks[r->index].first_buffer + use_buffer_of(p->uses[use])];
    return (held){.inst = p->bclasses[b->bclass].inst,
                  .role = use_role_of(p->uses[use]),
                  .at = r->arena.base + (int64_t)b->offset * PLAN_ALIGN};
}

/* Whether a collective adds the two uses' gradients of a tied table for this instance. */
static bool tied_by_message(const executor *x, const exec_rank *r, uint32_t inst)
{
    const plan *const p = x->p;
    for (uint32_t i = 0; i < r->n_posts; i++) {
        const plan_class *const c = &p->classes[p->tasks[r->posts[i].task].cls];
        if (c->kind == TASK_COLL && c->purpose == PURPOSE_TIED && c->inst == inst) return true;
    }
    return false;
}

/* Adds the gradients of the two uses of a tied table when this rank holds both and is to do so. */
static void add_tied(const executor *x, const exec_rank *r, uint32_t task)
{
    const plan *const p = x->p;
    const uint32_t end = p->tasks[task + 1].first_use;
    for (uint32_t i = p->tasks[task].first_use; i < end; i++) {
        const held first = held_at(x, r, i);
        if (first.role != ROLE_GRADS || p->insts[first.inst].stage != 0 ||
            tied_by_message(x, r, first.inst))
            continue;
        const stage_code *const c = &x->stages[0];
        const long n = c->m->vocab * c->m->hidden;
        float *const table = (float *)(void *)first.at + c->own[PARAM_TOKEN_EMBEDDING];
        if (c->at.head) {
            float *const head = (float *)(void *)first.at + c->elements;
            k_axpy_cpu(r->ctx, n, 1.0f, head, table);
            k_fill_cpu(r->ctx, n, 0.0f, head);
            continue;
        }
        for (uint32_t j = p->tasks[task].first_use; j < end; j++) {
            const held last = held_at(x, r, j);
            if (last.role != ROLE_GRADS || p->insts[last.inst].stage != p->n_stages - 1) continue;
            float *const head =
                (float *)(void *)last.at + stage_head_grad(&x->stages[p->n_stages - 1]);
            k_axpy_cpu(r->ctx, n, 1.0f, head, table);
            memcpy(head, table, (size_t)n * sizeof *head);
        }
    }
}

void optimizer_norm(executor *x, exec_rank *r, uint32_t task)
{
    const plan *const p = x->p;
    const uint32_t end = p->tasks[task + 1].first_use;
    if (x->z->model->tied) add_tied(x, r, task);
    double *table = NULL;
    for (uint32_t i = p->tasks[task].first_use; i < end; i++) {
        const held h = held_at(x, r, i);
        if (h.role == ROLE_NORM) table = (double *)(void *)h.at;
    }
    if (table == NULL) return;
    memset(table, 0, (size_t)x->n_tensors * sizeof *table);
    for (uint32_t i = p->tasks[task].first_use; i < end; i++) {
        const held h = held_at(x, r, i);
        if (h.role != ROLE_GRADS || p->insts[h.inst].pipe != 0 || p->ranks[r->index].replica != 0)
            continue;
        const stage_code *const c = &x->stages[p->insts[h.inst].stage];
        const float *const g = (const float *)(void *)h.at;
        for (int64_t t = 0; t < c->n_params && c->first_tensor + t < x->n_tensors; t++)
            table[c->first_tensor + t] =
                k_sumsq_cpu(r->ctx, c->params[t].rows * c->params[t].cols, g + c->params[t].offset);
    }
}

static td_status not_finite(const executor *x, const exec_rank *r, const double *table, td_err *err)
{
    for (int32_t s = 0; s < x->p->n_stages; s++)
        for (int64_t t = 0; t < x->stages[s].n_params; t++) {
            const int64_t entry = x->stages[s].first_tensor + t;
            if (entry < x->n_tensors && !isfinite(table[entry]))
                return td_fail(err, TD_EMISMATCH,
                               "step %ld: the gradient of %s (stage %d) is not "
                               "finite; seen on rank %u; a lower --lr or --clip may help",
                               x->step.number, x->stages[s].params[t].name, s, r->index);
        }
    return td_fail(err, TD_EMISMATCH, "step %ld: the gradient is not finite", x->step.number);
}

static void update(executor *x, exec_rank *r, uint32_t inst, float scale, float *w, float *g,
                   float *moments)
{
    const exec_step *const s = &x->step;
    const stage_code *const c = &x->stages[x->p->insts[inst].stage];
    if (s->grads_out != NULL && s->grads_out[inst] != NULL && x->p->ranks[r->index].replica == 0)
        memcpy(s->grads_out[inst], g, (size_t)c->elements * sizeof *g);
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
        k_adamw_cpu(r->ctx, &a, t->rows * t->cols, w + t->offset, g + t->offset,
                    moments + t->offset, moments + c->elements + t->offset);
    }
}

td_status optimizer_step(executor *x, exec_rank *r, uint32_t task, td_err *err)
{
    const plan *const p = x->p;
    const uint32_t first = p->tasks[task].first_use, end = p->tasks[task + 1].first_use;
    const double *table = NULL;
    for (uint32_t i = first; i < end; i++) {
        const held h = held_at(x, r, i);
        if (h.role == ROLE_NORM) table = (const double *)(void *)h.at;
    }
    double sum = 0;
    for (int64_t i = 0; table != NULL && i < x->n_tensors; i++) sum += table[i];
    if (!isfinite(sum)) return not_finite(x, r, table, err);
    const double norm = sqrt(sum);
    if (r->index == 0) x->grad_norm = norm;
    const float scale = optimizer_clip(norm, x->step.clip);
    for (uint32_t i = first; i < end; i++) {
        const held w = held_at(x, r, i);
        if (w.role != ROLE_WEIGHTS) continue;
        float *const g = exec_buffer(x, r->index, SIZE_GRADS, w.inst);
        float *const m = exec_buffer(x, r->index, SIZE_OPTIMIZER, w.inst);
        if (g != NULL && m != NULL) update(x, r, w.inst, scale, (float *)(void *)w.at, g, m);
    }
    return TD_OK;
}
