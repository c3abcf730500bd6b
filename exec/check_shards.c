/* Tables that lie in shards, put together and held against the reference's. */
#include "exec/check.h"

#include <string.h>

td_status check_shards(const executor *x, const reference *f, const float *const *values,
                       const float *reference_values, comparison *out, td_err *err)
{
    const plan *const p = x->p;
    if (x->z->vocab_shards < 1) return TD_OK;
    const stage_code *const c = &x->stages[p->n_stages];
    td_arena *const a = td_arena_new();
    float *const whole =
        a == NULL ? NULL : td_alloc(a, (size_t)(c->m->vocab * c->m->hidden), sizeof *whole);
    for (int64_t i = 0; whole != NULL && i < c->n_params; i++) {
        param_tensor t = c->params[i];
        for (uint32_t inst = 0; inst < p->n_insts; inst++) {
            if (p->insts[inst].stage != p->n_stages) continue;
            const k_words words = vocab_words(c, p->insts[inst].backward_row);
            if (words.count > 0)
                memcpy(whole + words.first * t.cols, values[inst] + t.offset,
                       (size_t)(words.count * t.cols) * sizeof *whole);
        }
        t.rows = c->m->vocab;
        reference_compare_tensor(f, stage_tensor_entry(c, i), &t, whole, reference_values, out);
    }
    td_arena_free(a);
    return whole != NULL ? TD_OK : td_fail(err, TD_ENOMEM, "out of memory for the check");
}
