/* Tensor-parallel degrees of the rows: forward and backward rows may have degrees of their own.
 *
 * A folded rank stands for all shards of its row. Where the two ends of a message have different
 * degrees, the end with fewer devices moves several shards over each of its links, and its bytes
 * are what the message costs. */
#include "schedules/lower.h"

static td_status set_row(const schedule *s, int32_t *row_tp, int32_t row, int32_t tp, td_err *err)
{
    if (row_tp[row] != 0 && row_tp[row] != tp)
        return td_fail(err, TD_EUSAGE,
                       "row %d runs forwards and backwards, but the schedule gives the roles "
                       "tensor-parallel degrees of %d and %d; rows of their own may differ",
                       row, s->tp_forward, s->tp_backward);
    row_tp[row] = tp;
    return TD_OK;
}

td_status lower_roles(const schedule *s, int32_t tp, td_arena *a, int32_t **row_tp, int32_t *run_tp,
                      td_err *err)
{
    if (s->tp_backward > 0 && tp > 1 && tp != s->tp_backward)
        return td_fail(err, TD_EUSAGE, "--tp %d: the schedule says %d; leave --tp out", tp,
                       s->tp_backward);
    const int32_t backward = s->tp_backward > 0 ? s->tp_backward : tp;
    const int32_t forward = s->tp_forward > 0 ? s->tp_forward : tp;
    *run_tp = backward;
    *row_tp = TD_NEW_N(a, int32_t, s->n_rows);
    if (*row_tp == NULL) return td_fail(err, TD_ENOMEM, "out of memory for %d rows", s->n_rows);
    if (backward % forward != 0)
        return td_fail(err, TD_EUSAGE,
                       "tensor-parallel degrees %d forward and %d backward: the forward one must "
                       "divide the backward one",
                       forward, backward);
    for (int32_t p = 0; p < s->n_pipes; p++)
        for (int32_t i = 0; i < s->n_stages; i++) {
            TD_TRY(set_row(s, *row_tp, s->pipes[p].forward_row[i], forward, err));
            TD_TRY(set_row(s, *row_tp, s->pipes[p].backward_row[i], backward, err));
        }
    for (int32_t r = 0; r < s->n_rows; r++)
        if ((*row_tp)[r] == 0) (*row_tp)[r] = backward;
    return TD_OK;
}

td_status lower_bytes(const lowering *l, size_kind kind, int32_t stage, int32_t row,
                      int32_t slice_len, int32_t prefix, int64_t *bytes, td_err *err)
{
    return plan_bytes(l->o->sizes, l->row_tp[row], kind, stage, slice_len, prefix, bytes, err);
}

bool lower_joins_shards(const lowering *l, const plan_inst *i)
{
    return l->row_tp[i->forward_row] != l->row_tp[i->backward_row];
}

td_status lower_message_bytes(const lowering *l, int32_t src_row, int32_t dst_row, int32_t stage,
                              int32_t slice_len, int32_t prefix, int64_t *bytes, td_err *err)
{
    const int32_t a = l->row_tp[src_row], b = l->row_tp[dst_row];
    const int32_t many = a > b ? a : b, few = a > b ? b : a;
    TD_TRY(lower_bytes(l, SIZE_BOUNDARY, stage, a > b ? src_row : dst_row, slice_len, prefix, bytes,
                       err));
    return td_mul_i64(*bytes, many / few, bytes, err);
}
