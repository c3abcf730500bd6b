/* Seq1F1B and its zero-bubble form (arXiv 2406.03488): 1F1B whose unit is one slice of one
 * microbatch. Backwards take the microbatches first in, first out, and the slices of each last in,
 * first out, because the keys and values of a slice get gradients from all slices behind it. */
#include "schedules/families.h"
#include "schedules/schedule_build.h"

/* The n-th forward, and the n-th backward or weight gradient, of every row. */
static void add_forward(row_writer *w, int32_t stage, int32_t slices, int32_t n)
{
    row_add(w, PASS_F, stage, n / slices, n % slices);
}

static void add_backward(row_writer *w, pass_kind kind, int32_t stage, int32_t slices, int32_t n)
{
    row_add(w, kind, stage, n / slices, slices - 1 - n % slices);
}

/* The last row runs S - 1 forwards ahead, since the first backward is that of a last slice. With
 * split backwards row r runs W that many units behind I. */
static void add_row(td_arena *a, schedule *s, int32_t row, bool split, bool *failed)
{
    const int32_t slices = s->n_slices, units = s->n_microbatches * slices;
    const int32_t ahead = s->n_rows - 1 - row + slices - 1;
    const int32_t warmup = ahead < units ? ahead : units;
    row_writer w = row_writer_of(a, s, row);
    for (int32_t n = 0; n < warmup; n++) add_forward(&w, row, slices, n);
    for (int32_t i = 0; i < units; i++) {
        if (warmup + i < units) add_forward(&w, row, slices, warmup + i);
        add_backward(&w, split ? PASS_I : PASS_B, row, slices, i);
        if (split && i >= row) add_backward(&w, PASS_W, row, slices, i - row);
    }
    const int32_t done = units > row ? units - row : 0;
    for (int32_t i = done; split && i < units; i++) add_backward(&w, PASS_W, row, slices, i);
    *failed |= w.failed;
}

static td_status generate(const sched_request *q, bool split, td_arena *a, schedule *out,
                          td_err *err)
{
    if (q->chunks > 1)
        return td_fail(err, TD_EUSAGE,
                       "--chunks %d: this schedule has one stage a rank; legal: 1, or "
                       "--schedule seq1f1b-i",
                       q->chunks);
    TD_TRY(sched_new_sliced(a, q, q->pp, out, err));
    bool failed = false;
    for (int32_t r = 0; r < out->n_rows; r++) {
        sched_place(out, 0, r, r);
        add_row(a, out, r, split, &failed);
    }
    return failed ? td_fail(err, TD_ENOMEM, "out of memory for a schedule") : TD_OK;
}

static td_status generate_plain(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    return generate(q, false, a, out, err);
}

static td_status generate_zb(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    return generate(q, true, a, out, err);
}

static const sched_option no_options[] = {{NULL, NULL, NULL}};

const sched_family family_seq1f1b = {
    .name = "seq1f1b",
    .summary = "1F1B on slices of the tokens: S times smaller bubble, (P - r + S - 1)/S microbatch "
               "activations on rank r",
    .constraints = "P, M, S >= 1 (S: 2 when not given), one chunk, causal models",
    .options = no_options,
    .cuts = true,
    .generate = generate_plain,
};

const sched_family family_seq1f1b_zb = {
    .name = "seq1f1b-zb",
    .summary = "Seq1F1B with split backwards: W of rank r fills r units behind I; (P + S - 1)/S "
               "microbatch activations on every rank",
    .constraints = "P, M, S >= 1 (S: 2 when not given), one chunk, causal models",
    .options = no_options,
    .cuts = true,
    .generate = generate_zb,
};
