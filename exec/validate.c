/* Post-validation: the step comes first, the norm of the whole gradient later. Taking a step back
 * is exact, because it restores a copy; the update's inverse would not be. */
#include "exec/exec.h"

#include <assert.h>
#include <math.h>

void validate_merge(executor *x, exec_rank *r, uint32_t task)
{
    double *const table = optimizer_table(x, r, task, ROLE_NORM);
    const double *const before = optimizer_table(x, r, task, ROLE_NORM_BEFORE);
    /* all but one of the ranks have 0 for a tensor, so that no sum is rounded */
    for (int64_t i = 0; table != NULL && before != NULL && i < x->n_tensors; i++)
        table[i] += before[i];
}

/* Whether a gradient of these partial sums is used as it is; scale: norm and factor. A part of a
 * norm is no larger than the whole: so a rank that does not step knows that the whole norm is too
 * large. */
static bool stands(const executor *x, exec_rank *r, const double *table, double clip,
                   double scale[2])
{
    scale[0] = 0;
    scale[1] = 1;
    if (table != NULL) k_ops_of(r->ctx)->clip(r->ctx, x->n_tensors, table, clip, scale);
    return isfinite(scale[0]) && scale[1] == 1.0;
}

td_status validate_step(executor *x, exec_rank *r, uint32_t task, td_err *err)
{
    const double *const table = optimizer_table(x, r, task, ROLE_NORM);
    exec_step s = r->now->step;
    double scale[2];
    s.number -= r->skipped;
    r->number = s.number;
    r->stepped = stands(x, r, table, s.clip, scale);
    const unsigned does = r->stepped ? OPTIMIZER_KEEP | OPTIMIZER_UPDATE : 0;
    return optimizer_apply(x, r, task, &s, OPTIMIZER_SHOW | does, scale, err);
}

td_status validate_last(executor *x, exec_rank *r, uint32_t task, bool *again, td_err *err)
{
    const double *const table = optimizer_table(x, r, task, ROLE_NORM);
    double scale[2];
    *again = false;
    if (r->before == NULL) return TD_OK;
    exec_step s = r->before->step;
    s.number = r->number;
    *again = !stands(x, r, table, s.clip, scale);
    const bool skipped = !isfinite(scale[0]);
    if (skipped && !s.skip) return optimizer_refuses(x, r, table, s.number, err);
    r->skipped += skipped;
    exec_note_norm(x, r, scale[0], *again);
    assert(*again || r->stepped);
    unsigned does = OPTIMIZER_CLEAR;
    if (*again) does |= OPTIMIZER_UPDATE | (r->stepped ? OPTIMIZER_RESTORE : 0);
    return optimizer_apply(x, r, task, &s, does, scale, err);
}
