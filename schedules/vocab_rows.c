/* Bodies of vocab_rows.h. */
#include "schedules/vocab_rows.h"

vocab_row vocab_row_of(td_arena *a, schedule *s, int32_t row, int32_t stage)
{
    return (vocab_row){.w = row_writer_of(a, s, row),
                       .stage = stage,
                       .last_stage = s->n_stages - 1,
                       .n = s->n_microbatches};
}

void vocab_add(vocab_row *r, pass_kind kind)
{
    if (r->next[kind] >= r->n) return;
    int32_t stage = r->stage;
    if (kind == PASS_S || kind == PASS_T) stage = r->last_stage;
    if (kind == PASS_E || kind == PASS_G) stage = 0;
    row_add(&r->w, kind, stage, r->next[kind]++, 0);
}

td_status vocab_new(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    if (q->chunks > 1)
        return td_fail(err, TD_EUSAGE,
                       "--chunks %d: this schedule has one stage a rank; legal: 1, or "
                       "--schedule v-half-vocab",
                       q->chunks);
    TD_TRY(sched_new(a, q->pp, q->pp, 1, q->microbatches, 1, out, err));
    for (int32_t r = 0; r < out->n_rows; r++) sched_place(out, 0, r, r);
    return TD_OK;
}

td_status vocab_edge(const sched_request *q, schedule *s, td_err *err)
{
    int64_t edge = 0;
    TD_TRY(sched_option_i64(q, "repo-edge", 0, 1, 0, &edge, err));
    s->vocab_edge = edge == 1;
    return TD_OK;
}
