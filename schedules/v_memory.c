/* V-Half and V-Min (arXiv 2405.15362): a half and a third of 1F1B's activations. A block of unit
 * slots repeats every six slots; warm-up and cool-down are then packed without raising the peak,
 * weight gradients take slots that are free, and the order of the slots is the schedule. */
#include "schedules/families.h"
#include "schedules/v_slots.h"

#include <string.h>

void v_half_block(int32_t p, int32_t r, int32_t at[4])
{
    const int32_t gap = p % 2 == 0 ? 3 : 0;
    at[V_FD] = 2 * r;
    at[V_FU] = 3 * p - 2 - r;
    at[V_ID] = 3 * p + gap - 1 + 2 * r;
    at[V_IU] = 6 * p + gap - 2 - r;
}

void v_min_block(int32_t p, int32_t r, int32_t at[4])
{
    const int32_t gap = p % 3 == 0 ? 2 : 0;
    at[V_FD] = r;
    at[V_FU] = 2 * p - 1 - r;
    at[V_ID] = 2 * p + gap + r;
    at[V_IU] = 4 * p + gap - 1 - r;
}

/* --- weight gradients in free slots --- */

/* A row as slots: what stands in each, kind + 1, or 0. */
typedef struct row_view {
    uint8_t *at;
    int32_t n;
} row_view;

static int32_t last_slot(const v_slots *v, int32_t r)
{
    int32_t last = 0;
    for (int kind = 0; kind < V_KINDS; kind++) {
        const int32_t n = v_count(v, kind);
        if (n > 0 && v_row(v, kind, r)[n - 1] > last) last = v_row(v, kind, r)[n - 1];
    }
    return last;
}

static void view_row(const v_slots *v, int32_t r, row_view *out)
{
    out->n = last_slot(v, r) + 1;
    memset(out->at, 0, (size_t)out->n);
    for (int kind = 0; kind < V_KINDS; kind++)
        for (int32_t k = 0; k < v_count(v, kind); k++)
            out->at[v_row(v, kind, r)[k]] = (uint8_t)(kind + 1);
}

/* Puts a W of each input gradient into the first free slot after it, the rest behind the row's
 * end. Split: those of chunk 1 go first and keep their own list. */
static void add_weights(v_slots *v, bool split, row_view *view)
{
    v->n_weights[0] = v->n_weights[1] = 0;
    for (int32_t r = 0; r < v->p; r++) {
        int32_t pending[2] = {0}, n[2] = {0};
        view_row(v, r, view);
        for (int32_t s = 0; s < view->n; s++) {
            const int kind = view->at[s] - 1;
            if (kind == V_ID || kind == V_IU) pending[split && kind == V_IU]++;
            for (int w = 0; kind < 0 && w < 2; w++)
                if (pending[w] > 0) {
                    v_row(v, V_WD + w, r)[n[w]++] = s;
                    pending[w]--;
                    break;
                }
        }
        for (int w = 0, s = view->n; w < 2; w++)
            while (pending[w]-- > 0) v_row(v, V_WD + w, r)[n[w]++] = s++;
    }
    v->n_weights[0] = split ? v->m : 2 * v->m;
    v->n_weights[1] = split ? v->m : 0;
}

/* Peak of live chunk activations in the first n slots of a row; without W in it, each W takes the
 * first free slot. */
static int32_t row_peak(const row_view *view, int32_t n, bool weights)
{
    int32_t live = 0, peak = 0, pending = 0;
    for (int32_t s = 0; s < n; s++) {
        const int kind = view->at[s] - 1;
        if (kind == V_FD || kind == V_FU) live++;
        if (kind >= V_WD) live--;
        if (kind == V_ID || kind == V_IU) pending++;
        if (kind < 0 && !weights && pending > 0) {
            pending--;
            live--;
        }
        if (live > peak) peak = live;
    }
    return peak;
}

/* --- packing --- */

typedef struct packer {
    v_slots *v;
    bool weights;  /* W has its slots: warm-up and cool-down move; else the cool-down alone */
    row_view *row; /* [p] */
    int32_t peak;  /* chunk activations that no row passes */
} packer;

/* The j-th input gradient of a row, of both chunks together. */
static int32_t input_slot(const v_slots *v, int32_t r, int32_t j)
{
    const int32_t *const x = v_row(v, V_ID, r), *const y = v_row(v, V_IU, r);
    int32_t i = 0, k = 0, slot = 0;
    for (; j >= 0; j--) slot = k >= v->m || (i < v->m && x[i] < y[k]) ? x[i++] : y[k++];
    return slot;
}

/* The first slot that data and order allow. */
static int32_t earliest(const v_slots *v, const v_pass *x)
{
    int32_t lo = -1;
    const int32_t near = x->kind == V_FD || x->kind == V_ID ? x->rank - 1 : x->rank + 1;
    if (x->kind < V_WD && near >= 0 && near < v->p) lo = v_row(v, x->kind, near)[x->k];
    if (x->kind > V_FD && x->kind < V_WD) {
        const int32_t s = v_row(v, x->kind - 1, x->rank)[x->k];
        if (s > lo) lo = s;
    }
    if (x->kind >= V_WD) lo = input_slot(v, x->rank, x->k);
    if (x->k > 0) {
        const int32_t s = v_row(v, x->kind, x->rank)[x->k - 1];
        if (s > lo) lo = s;
    }
    return lo + 1;
}

/* Whether a row keeps within the peak after a pass of it came from slot `from` to an earlier one.
 * With W in their slots only an earlier F keeps more, and only up to where it came from. */
static bool keeps_peak(const packer *t, const row_view *row, int kind, int32_t from)
{
    if (!t->weights) return row_peak(row, row->n, false) <= t->peak;
    return (kind != V_FD && kind != V_FU) || row_peak(row, from, true) <= t->peak;
}

/* Moves a pass to the first earlier free slot that keeps the peak. Slots before the pass's own
 * hold only passes that were visited, so what is free there stays free. */
static void move_pass(packer *t, const v_pass *x)
{
    row_view *const row = &t->row[x->rank];
    for (int32_t s = earliest(t->v, x); s < x->slot; s++) {
        if (row->at[s] != 0) continue;
        row->at[s] = row->at[x->slot];
        row->at[x->slot] = 0;
        if (keeps_peak(t, row, x->kind, x->slot)) {
            v_row(t->v, x->kind, x->rank)[x->k] = s;
            return;
        }
        row->at[x->slot] = row->at[s];
        row->at[s] = 0;
    }
}

static td_status pack(packer *t, td_arena *a, td_err *err)
{
    enum { WARM_UP, STEADY, COOL_DOWN } phase = WARM_UP;
    v_slots *const v = t->v;
    v_pass *all = NULL;
    size_t n = 0;
    t->peak = 0;
    if (t->weights) add_weights(v, false, &t->row[0]);
    for (int32_t r = 0; r < v->p; r++) {
        view_row(v, r, &t->row[r]);
        const int32_t peak = row_peak(&t->row[r], t->row[r].n, t->weights);
        if (peak > t->peak) t->peak = peak;
    }
    TD_TRY(v_visit(v, a, &all, &n, err));
    for (size_t i = 0; i < n; i++) {
        const v_pass *const x = &all[i];
        if (phase == WARM_UP && x->kind == V_IU && x->rank == 0) phase = STEADY;
        if (phase == STEADY) {
            if (x->kind == V_FD && x->rank == 0 && x->k == v->m - 1) phase = COOL_DOWN;
            continue;
        }
        if (phase == WARM_UP && !t->weights) continue;
        move_pass(t, x);
    }
    if (!t->weights) add_weights(v, false, &t->row[0]);
    return v_squeeze(v, a, err);
}

/* The order of the slots, of the first m microbatches. */
static td_status order_of(const v_slots *v, int32_t m, td_arena *a, zb_order *out, td_err *err)
{
    static const uint8_t codes[V_KINDS] = {ZB_F * 2, ZB_F * 2 + 1, ZB_I * 2 + 1,
                                           ZB_I * 2, ZB_W * 2 + 1, ZB_W * 2};
    v_pass *all = NULL;
    size_t n = 0;
    TD_TRY(zb_order_new(a, v->p, m, 2, out, err));
    TD_TRY(v_visit(v, a, &all, &n, err));
    for (size_t i = 0; i < n; i++)
        if (all[i].k < m) zb_push(out, all[i].rank, codes[all[i].kind]);
    return TD_OK;
}

td_status v_pack(int32_t p, int32_t m, int32_t least, int32_t period, const int32_t (*block)[4],
                 td_arena *a, zb_order *out, td_err *err)
{
    const int32_t n = m > least ? m : least;
    v_slots v;
    TD_TRY(v_slots_new(a, p, n, &v, err));
    row_view *const rows = TD_NEW_N(a, row_view, p);
    if (rows == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
    for (int32_t r = 0; r < p; r++) {
        const size_t width = (size_t)block[r][V_IU] + 16 + 2 * (size_t)period * (size_t)n;
        rows[r].at = TD_NEW_N(a, uint8_t, width);
        if (rows[r].at == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
        for (int kind = 0; kind < V_WD; kind++)
            for (int32_t k = 0; k < n; k++) v_row(&v, kind, r)[k] = block[r][kind] + period * k;
    }
    packer t = {.v = &v, .weights = true, .row = rows};
    TD_TRY(pack(&t, a, err));
    t.weights = false;
    v.n_weights[0] = v.n_weights[1] = 0;
    TD_TRY(pack(&t, a, err));
    add_weights(&v, true, &rows[0]);
    return order_of(&v, m, a, out, err);
}

/* --- the families --- */

td_status v_block_order(int32_t p, int32_t m, v_block *block, td_arena *a, zb_order *out,
                        td_err *err)
{
    int32_t(*const slots)[4] = td_alloc(a, (size_t)p, sizeof *slots);
    if (slots == NULL) return td_fail(err, TD_ENOMEM, "out of memory for %d ranks", p);
    for (int32_t r = 0; r < p; r++) block(p, r, slots[r]);
    return v_pack(p, m, 1, V_PERIOD, (const int32_t(*)[4])slots, a, out, err);
}

static td_status generate(const sched_request *q, const char *family, v_block *block, td_arena *a,
                          schedule *out, td_err *err)
{
    zb_order o;
    TD_TRY(zb_check_shape(q, family, 2, err));
    TD_TRY(v_block_order(q->pp, q->microbatches, block, a, &o, err));
    return zb_order_schedule(&o, a, out, err);
}

static td_status generate_half(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    return generate(q, "v-half", v_half_block, a, out, err);
}

static td_status generate_min(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    return generate(q, "v-min", v_min_block, a, out, err);
}

static const sched_option no_options[] = {{NULL, NULL, NULL}};

const sched_family family_v_half = {
    .name = "v-half",
    .summary = "split backward in a V at about half of 1F1B's memory and half its bubble",
    .constraints = "P >= 1, M >= 1, V = 2",
    .options = no_options,
    .generate = generate_half,
};

const sched_family family_v_min = {
    .name = "v-min",
    .summary = "split backward in a V at about a third of 1F1B's memory",
    .constraints = "P >= 1, M >= 1, V = 2; unequal F, I and W leave a bubble in each microbatch",
    .options = no_options,
    .generate = generate_min,
};
