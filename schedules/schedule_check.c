/* Is a schedule sound? Completeness first (every needed pass exactly once), then the order. */
#include "schedules/schedule_index.h"

/* Every slice has tokens, and every microbatch the same number of them. */
static td_status check_slices(const schedule *s, td_err *err)
{
    int64_t first = 0;
    for (int32_t m = 0; s->slice_tokens != NULL && m < s->n_microbatches; m++) {
        int64_t sum = 0;
        for (int32_t k = 0; k < s->n_slices; k++) {
            const int32_t n = s->slice_tokens[(size_t)m * (size_t)s->n_slices + (size_t)k];
            if (n < 1)
                return td_fail(err, TD_EPLAN, "microbatch %d: slice %d has %d tokens", m, k, n);
            sum += n;
        }
        if (m == 0) first = sum;
        if (sum != first || sum > INT32_MAX)
            return td_fail(err, TD_EPLAN,
                           "microbatch %d: its slices hold %lld tokens, those of microbatch 0 %lld",
                           m, (long long)sum, (long long)first);
    }
    return TD_OK;
}

static td_status check_shape(const schedule *s, td_err *err)
{
    if (s->n_rows < 1 || s->n_stages < 1 || s->n_pipes < 1 || s->n_microbatches < 1 ||
        s->n_slices < 1)
        return td_fail(err, TD_EPLAN, "a schedule needs rows, stages, pipes, microbatches, slices");
    for (int32_t p = 0; p < s->n_pipes; p++)
        for (int32_t st = 0; st < s->n_stages; st++) {
            const int32_t f = s->pipes[p].forward_row[st], b = s->pipes[p].backward_row[st];
            if (f < 0 || f >= s->n_rows || b < 0 || b >= s->n_rows)
                return td_fail(err, TD_EPLAN, "stage %d of pipe %d lives on no row", st, p);
        }
    for (int32_t m = 0; m < s->n_microbatches; m++)
        if (s->microbatch_pipe[m] < 0 || s->microbatch_pipe[m] >= s->n_pipes)
            return td_fail(err, TD_EPLAN, "microbatch %d belongs to no pipe", m);
    for (int32_t i = 0; s->credits != NULL && i < s->n_stages; i++)
        if (s->credits[i] < 0)
            return td_fail(err, TD_EPLAN, "stage %d: %d credits", i, s->credits[i]);
    if (s->tp_forward < 0 || s->tp_backward < 0)
        return td_fail(err, TD_EPLAN, "tensor-parallel degrees of %d and %d", s->tp_forward,
                       s->tp_backward);
    return check_slices(s, err);
}

static td_status missing(const schedule *s, pass_kind kind, int32_t row, int32_t stage, int32_t m,
                         int32_t k, td_err *err)
{
    const sched_cell c = {
        .kind = (uint8_t)kind, .slice = (uint16_t)k, .stage = (uint16_t)stage, .microbatch = m};
    td_text t = {0};
    sched_print_cell(&c, s->n_slices, &t);
    const td_status st =
        td_fail(err, TD_EPLAN, "row %d: %s is missing", row, t.s == NULL ? "?" : t.s);
    td_text_free(&t);
    return st;
}

/* F once; backward whole or as I and W; R wherever forward and backward live apart. */
static td_status check_stage_passes(const sched_index *ix, int32_t stage, int32_t m, int32_t k,
                                    td_err *err)
{
    const schedule *const s = ix->s;
    const sched_pipe *const p = &s->pipes[s->microbatch_pipe[m]];
    const int32_t frow = p->forward_row[stage], brow = p->backward_row[stage];
    if (index_find(ix, PASS_F, stage, m, k) == NODE_NONE)
        return missing(s, PASS_F, frow, stage, m, k, err);
    const bool b = index_find(ix, PASS_B, stage, m, k) != NODE_NONE;
    const bool i = index_find(ix, PASS_I, stage, m, k) != NODE_NONE;
    const bool w = index_find(ix, PASS_W, stage, m, k) != NODE_NONE;
    if (b && (i || w))
        return td_fail(err, TD_EPLAN,
                       "row %d: stage %d, microbatch %d has a whole backward B and a part (%s)",
                       brow, stage, m, i ? "I" : "W");
    if (!b && !i) return missing(s, w ? PASS_I : PASS_B, brow, stage, m, k, err);
    if (!b && !w) return missing(s, PASS_W, brow, stage, m, k, err);
    if (frow != brow && index_find(ix, PASS_R, stage, m, k) == NODE_NONE)
        return missing(s, PASS_R, brow, stage, m, k, err);
    return TD_OK;
}

static td_status check_sharded_passes(const sched_index *ix, td_err *err)
{
    const schedule *const s = ix->s;
    static const pass_kind kinds[] = {PASS_S, PASS_T, PASS_E, PASS_G};
    const bool input_sharded = ix->pos[PASS_E] != NULL || ix->pos[PASS_G] != NULL;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const pass_kind kind = kinds[i];
        const bool output = kind == PASS_S || kind == PASS_T;
        const bool needed = s->vocab != VOCAB_NONE && (output || input_sharded);
        if (!needed && ix->pos[kind] != NULL)
            return td_fail(err, TD_EPLAN, "%c passes without a vocab header", pass_letter(kind));
        if (!needed) continue;
        for (int32_t r = 0; r < s->n_rows; r++)
            for (int32_t m = 0; m < s->n_microbatches; m++)
                for (int32_t k = 0; k < s->n_slices; k++)
                    if (index_find(ix, kind, r, m, k) == NODE_NONE)
                        return missing(s, kind, r, output ? s->n_stages - 1 : 0, m, k, err);
    }
    return TD_OK;
}

td_status sched_check_index(const schedule *s, td_arena *a, sched_index *ix, td_err *err)
{
    TD_TRY(check_shape(s, err));
    TD_TRY(sched_index_build(s, a, ix, err));
    for (int32_t st = 0; st < s->n_stages; st++)
        for (int32_t m = 0; m < s->n_microbatches; m++)
            for (int32_t k = 0; k < s->n_slices; k++) TD_TRY(check_stage_passes(ix, st, m, k, err));
    TD_TRY(check_sharded_passes(ix, err));
    TD_TRY(trail_check(ix, a, err));
    return sched_index_levels(ix, a, err);
}

td_status sched_check(const schedule *s, td_err *err)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    sched_index ix;
    const td_status st = sched_check_index(s, a, &ix, err);
    td_arena_free(a);
    return st;
}
