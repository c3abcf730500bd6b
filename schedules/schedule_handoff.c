/* Hand-offs: when the input of a stage whose backward lives on a row of its own leaves for that
 * row, and how far the forward row may run ahead of it.
 *
 * Lagged, a forward row hands over an input when the one `credits` microbatches later has arrived,
 * which is before the forward that consumes that one (specs: the loop of a forward rank). That
 * moment is no pass's end, so it gets a node of its own, a mark. Direct, the hand-off is the
 * output of the previous stage and leaves with it. Either way the row that hands over microbatch m
 * holds its forward of m + credits back until the hand-off has been taken: that bounds what it has
 * to keep. */
#include "schedules/schedule_index.h"

#include <string.h>

static const sched_pipe *pipe_of(const schedule *s, int32_t m)
{
    return &s->pipes[s->microbatch_pipe[m]];
}

static bool is_away(const schedule *s, int32_t stage, int32_t m)
{
    const sched_pipe *const p = pipe_of(s, m);
    return p->forward_row[stage] != p->backward_row[stage];
}

static uint32_t list_length(const sched_index *ix, int32_t pipe)
{
    return (ix->pipe_first[pipe + 1] - ix->pipe_first[pipe]) * (uint32_t)ix->s->n_slices;
}

/* The forwards of a stage of a pipe in the order of their row: each is m * n_slices + k. */
static uint32_t *list_of(const sched_index *ix, int32_t pipe, int32_t stage)
{
    const schedule *const s = ix->s;
    return &ix->forwards[((size_t)stage * (size_t)s->n_microbatches + ix->pipe_first[pipe]) *
                         (size_t)s->n_slices];
}

/* The node of the forward `ahead` forwards behind that of (stage, m, k); *m and *k become its. */
static uint32_t forward_behind(const sched_index *ix, int32_t stage, int32_t *m, int32_t *k,
                               int64_t ahead)
{
    const schedule *const s = ix->s;
    const int32_t pipe = s->microbatch_pipe[*m];
    const uint32_t at = ix->ordinal[index_slot(s, stage, *m, *k)];
    const int64_t to = (int64_t)at + ahead;
    if (at == NODE_NONE || to < 0 || to >= list_length(ix, pipe)) return NODE_NONE;
    const uint32_t found = list_of(ix, pipe, stage)[to];
    if (found == NODE_NONE) return NODE_NONE;
    *m = (int32_t)(found / (uint32_t)s->n_slices);
    *k = (int32_t)(found % (uint32_t)s->n_slices);
    return index_find(ix, PASS_F, stage, *m, *k);
}

/* Forwards between an input's own and the one at whose arrival it leaves. */
static int64_t lag_of(const schedule *s, int32_t stage)
{
    return s->credits == NULL ? 0 : (int64_t)s->credits[stage] * s->n_slices;
}

/* Forwards that a row may run ahead of the taking of a hand-off. What leaves behind a forward
 * cannot be waited for before the next one. */
static int64_t room_of(const schedule *s, int32_t stage)
{
    const int64_t lag = lag_of(s, stage);
    return s->handoff == HANDOFF_LAGGED || lag >= s->n_slices ? lag : s->n_slices;
}

td_status handoff_build(sched_index *ix, td_arena *a, td_err *err)
{
    const schedule *const s = ix->s;
    if (s->handoff == HANDOFF_NONE || !sched_is_disaggregated(s)) return TD_OK;
    const size_t n = index_slot(s, s->n_stages, 0, 0);
    ix->forwards = TD_NEW_N(a, uint32_t, n);
    ix->ordinal = TD_NEW_N(a, uint32_t, n);
    ix->arrival = TD_NEW_N(a, uint32_t, n);
    ix->pipe_first = TD_NEW_N(a, uint32_t, s->n_pipes + 1);
    uint32_t *const known = TD_NEW_N(a, uint32_t, (size_t)s->n_pipes * (size_t)s->n_stages);
    if (ix->forwards == NULL || ix->ordinal == NULL || ix->arrival == NULL ||
        ix->pipe_first == NULL || known == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for hand-offs");
    memset(ix->forwards, 0xff, n * sizeof *ix->forwards);
    memset(ix->ordinal, 0xff, n * sizeof *ix->ordinal);
    memset(ix->arrival, 0xff, n * sizeof *ix->arrival);
    for (int32_t m = 0; m < s->n_microbatches; m++) ix->pipe_first[s->microbatch_pipe[m] + 1]++;
    for (int32_t p = 0; p < s->n_pipes; p++) ix->pipe_first[p + 1] += ix->pipe_first[p];
    for (int32_t r = 0; r < s->n_rows; r++)
        for (int64_t i = 0; i < s->rows[r].n_cells; i++) {
            const sched_cell *const c = &s->rows[r].cells[i];
            if (c->kind != PASS_F || !index_in_range(s, c)) continue;
            const int32_t pipe = s->microbatch_pipe[c->microbatch];
            uint32_t *const at = &known[(size_t)pipe * (size_t)s->n_stages + c->stage];
            if (*at >= list_length(ix, pipe)) continue; /* one too many: the index will say so */
            list_of(ix, pipe, c->stage)[*at] = (uint32_t)(c->microbatch * s->n_slices + c->slice);
            ix->ordinal[index_slot(s, c->stage, c->microbatch, c->slice)] = (*at)++;
        }
    return TD_OK;
}

bool handoff_is_marked(const sched_index *ix, const sched_cell *c)
{
    const schedule *const s = ix->s;
    if (ix->ordinal == NULL || s->handoff != HANDOFF_LAGGED || c->kind != PASS_F || c->stage == 0 ||
        !index_in_range(s, c) || !is_away(s, c->stage, c->microbatch))
        return false;
    const uint32_t at = ix->ordinal[index_slot(s, c->stage, c->microbatch, c->slice)];
    return at != NODE_NONE && (int64_t)at >= lag_of(s, c->stage);
}

uint32_t index_arrival(const sched_index *ix, int32_t stage, int32_t m, int32_t k)
{
    return ix->arrival == NULL ? NODE_NONE : ix->arrival[index_slot(ix->s, stage, m, k)];
}

uint32_t index_handoff(const sched_index *ix, int32_t stage, int32_t m, int32_t k, int32_t *row)
{
    const schedule *const s = ix->s;
    if (s->handoff != HANDOFF_LAGGED) {
        *row = pipe_of(s, m)->forward_row[stage - 1];
        return index_find(ix, PASS_F, stage - 1, m, k);
    }
    const int32_t pipe = s->microbatch_pipe[m];
    *row = s->pipes[pipe].forward_row[stage];
    int32_t later = m, slice = k;
    if (forward_behind(ix, stage, &later, &slice, lag_of(s, stage)) != NODE_NONE)
        return index_arrival(ix, stage, later, slice);
    const uint32_t last = list_of(ix, pipe, stage)[list_length(ix, pipe) - 1];
    if (last == NODE_NONE) return NODE_NONE;
    return index_find(ix, PASS_F, stage, (int32_t)(last / (uint32_t)s->n_slices),
                      (int32_t)(last % (uint32_t)s->n_slices));
}

bool index_handoff_bound(const sched_index *ix, int32_t stage, int32_t m, int32_t k, uint32_t *join)
{
    if (ix->ordinal == NULL || ix->s->credits == NULL) return false;
    const int32_t from = ix->s->handoff == HANDOFF_LAGGED ? stage : stage - 1;
    *join = forward_behind(ix, from, &m, &k, room_of(ix->s, from));
    return true;
}

uint32_t index_credit(const sched_index *ix, int32_t stage, int32_t m, int32_t k)
{
    const schedule *const s = ix->s;
    if (ix->ordinal == NULL || s->credits == NULL) return NODE_NONE;
    const int32_t to = s->handoff == HANDOFF_LAGGED ? stage : stage + 1;
    const sched_pipe *const p = pipe_of(s, m);
    if (to == 0 || to == s->n_stages || !is_away(s, to, m) ||
        p->forward_row[stage] == p->backward_row[to])
        return NODE_NONE;
    if (forward_behind(ix, stage, &m, &k, -room_of(s, stage)) == NODE_NONE) return NODE_NONE;
    return index_find(ix, PASS_R, to, m, k);
}
