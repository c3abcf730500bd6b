/* Every pass has an integer slot, as if forward and backward took equally long; a row runs its
 * passes in the order of their slots. Real durations play no part. */
#include "schedules/slot_rule.h"

#include "schedules/schedule_build.h"

/* The stage that a row holds of one pass through the rows. */
static int32_t stage_at(const slot_rule *r, int32_t pipe, int32_t chunk, int32_t row)
{
    const bool up = pipe >= r->down;
    const int32_t shift = (up ? pipe - r->down : pipe) * (r->pp / r->down);
    const int32_t across = (row + r->pp - shift) % r->pp;
    const bool mirrored = up != (!r->looping && chunk % 2 == 1);
    return chunk * r->pp + (mirrored ? r->pp - 1 - across : across);
}

/* A row at work: passes are counted by slot first, then put where the counts say. */
typedef struct slot_row {
    int64_t *at; /* [slots + 1] */
    sched_cell *cells;
} slot_row;

static void emit(slot_row *w, int64_t slot, pass_kind kind, int32_t stage, int32_t m)
{
    if (w->cells == NULL)
        w->at[slot + 1]++;
    else
        w->cells[w->at[slot]++] = sched_cell_of(kind, stage, m, 0);
}

/* One unit of one pipe through one stage. */
static void emit_unit(const slot_rule *r, slot_row *w, const schedule *s, int32_t pipe,
                      int32_t stage, int32_t unit)
{
    const int32_t n = r->unit / (r->down + r->up);
    const int64_t stages = s->n_stages, apart = 2 * stages + (r->doubling ? n : 0);
    const int64_t begin = apart * unit;
    const int32_t first = unit * r->unit + pipe * n;
    const bool is_last = (unit + 1) * (int64_t)r->unit >= s->n_microbatches;
    for (int32_t k = 0; k < n && first + k < s->n_microbatches; k++) {
        int64_t forward = begin + 2 * (r->doubling ? k / 2 : k) + stage;
        int64_t backward = begin + 2 * k + 2 * stages - 1 - stage;
        if (r->two_in_a_gap && stage == 0 && k == n - 1 && n > 1) {
            if (unit > 0) forward--;
            if (!is_last) backward++;
        }
        emit(w, forward, PASS_F, stage, first + k);
        emit(w, backward, PASS_B, stage, first + k);
    }
}

static void emit_row(const slot_rule *r, slot_row *w, const schedule *s, int32_t row)
{
    const int32_t units = (s->n_microbatches - 1) / r->unit + 1;
    for (int32_t unit = 0; unit < units; unit++)
        for (int32_t pipe = 0; pipe < s->n_pipes; pipe++)
            for (int32_t c = 0; c < r->chunks; c++)
                emit_unit(r, w, s, pipe, stage_at(r, pipe, c, row), unit);
}

static void place(const slot_rule *r, schedule *s)
{
    const int32_t n = r->unit / s->n_pipes;
    for (int32_t pipe = 0; pipe < s->n_pipes; pipe++)
        for (int32_t c = 0; c < r->chunks; c++)
            for (int32_t row = 0; row < r->pp; row++)
                sched_place(s, pipe, stage_at(r, pipe, c, row), row);
    for (int32_t m = 0; m < s->n_microbatches; m++) s->microbatch_pipe[m] = m % r->unit / n;
}

td_status slot_rule_generate(const slot_rule *r, int32_t microbatches, td_arena *a, schedule *out,
                             td_err *err)
{
    TD_TRY(sched_new(a, r->pp, (int64_t)r->pp * r->chunks, r->down + r->up, microbatches, 1, out,
                     err));
    place(r, out);
    const int64_t units = (microbatches - 1) / r->unit + 1;
    const int64_t slots = units * (2 * (int64_t)out->n_stages + r->unit) + 2 * out->n_stages;
    const int64_t passes = 2 * (int64_t)r->chunks * microbatches;
    int64_t *const at = TD_NEW_N(a, int64_t, slots + 2);
    if (at == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
    for (int32_t row = 0; row < r->pp; row++) {
        slot_row w = {.at = at};
        for (int64_t i = 0; i <= slots; i++) at[i] = 0;
        emit_row(r, &w, out, row);
        for (int64_t i = 0; i < slots; i++) at[i + 1] += at[i];
        w.cells = TD_NEW_N(a, sched_cell, passes);
        if (w.cells == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
        emit_row(r, &w, out, row);
        out->rows[row] = (sched_row){.cells = w.cells, .n_cells = passes};
    }
    return TD_OK;
}
