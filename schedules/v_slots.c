/* Slots of V-shaped schedules: visiting them in order, and squeezing them. */
#include "schedules/v_slots.h"

#include <string.h>

td_status v_slots_new(td_arena *a, int32_t p, int32_t m, v_slots *out, td_err *err)
{
    if ((int64_t)m * p > INT32_MAX / 64)
        return td_fail(err, TD_EUSAGE, "%d microbatches on %d ranks: too many slots to count", m,
                       p);
    *out = (v_slots){.p = p, .m = m};
    for (int kind = 0; kind < V_KINDS; kind++) {
        out->slot[kind] =
            TD_NEW_N(a, int32_t, (size_t)p * (size_t)m * (size_t)(kind >= V_WD ? 2 : 1));
        if (out->slot[kind] == NULL) return td_fail(err, TD_ENOMEM, "out of memory for slots");
    }
    return TD_OK;
}

static int32_t slot_count(const v_slots *v)
{
    int32_t last = 0;
    for (int kind = 0; kind < V_KINDS; kind++)
        for (int32_t r = 0; r < v->p && v_count(v, kind) > 0; r++) {
            const int32_t s = v_row(v, kind, r)[v_count(v, kind) - 1];
            if (s > last) last = s;
        }
    return last + 1;
}

/* By counting: passes of equal slot come out in the order in which they go in. */
td_status v_visit(const v_slots *v, td_arena *a, v_pass **out, size_t *n, td_err *err)
{
    const int32_t slots = slot_count(v);
    size_t *const first = TD_NEW_N(a, size_t, (size_t)slots + 1);
    *n = 0;
    for (int kind = 0; kind < V_KINDS; kind++) *n += (size_t)v_count(v, kind) * (size_t)v->p;
    *out = TD_NEW_N(a, v_pass, *n);
    if (first == NULL || *out == NULL) return td_fail(err, TD_ENOMEM, "out of memory for slots");
    for (int kind = 0; kind < V_KINDS; kind++)
        for (int32_t r = 0; r < v->p; r++)
            for (int32_t k = 0; k < v_count(v, kind); k++) first[v_row(v, kind, r)[k] + 1]++;
    for (int32_t s = 0; s < slots; s++) first[s + 1] += first[s];
    for (int32_t r = 0; r < v->p; r++)
        for (int kind = 0; kind < V_KINDS; kind++)
            for (int32_t k = 0; k < v_count(v, kind); k++) {
                const int32_t s = v_row(v, kind, r)[k];
                (*out)[first[s]++] = (v_pass){s, r, kind, k};
            }
    return TD_OK;
}

td_status v_squeeze(v_slots *v, td_arena *a, td_err *err)
{
    v_pass *all = NULL;
    size_t n = 0;
    int32_t *const next = TD_NEW_N(a, int32_t, v->p);
    if (next == NULL) return td_fail(err, TD_ENOMEM, "out of memory for slots");
    TD_TRY(v_visit(v, a, &all, &n, err));
    for (size_t i = 0; i < n; i++) {
        const v_pass *const x = &all[i];
        const int32_t near = x->kind == V_FD || x->kind == V_ID ? x->rank - 1 : x->rank + 1;
        int32_t s = next[x->rank];
        if (x->kind < V_WD && near >= 0 && near < v->p && v_row(v, x->kind, near)[x->k] + 1 > s)
            s = v_row(v, x->kind, near)[x->k] + 1;
        v_row(v, x->kind, x->rank)[x->k] = s;
        next[x->rank] = s + 1;
    }
    return TD_OK;
}
