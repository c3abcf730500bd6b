/* GPipe (Huang et al. 2019) and 1F1B (PipeDream-flush; Narayanan et al. 2021): one stage a row, one
 * pipe. They differ only in how many forwards a row runs before its first backward. */
#include "schedules/families.h"
#include "schedules/schedule_build.h"

/* Forwards 0..warmup-1; then one forward, one backward; then the remaining backwards. */
static void add_row(td_arena *a, schedule *s, int32_t row, int32_t warmup, bool *failed)
{
    const int32_t n = s->n_microbatches;
    row_writer w = row_writer_of(a, s, row);
    for (int32_t m = 0; m < warmup; m++) row_add(&w, PASS_F, row, m, 0);
    for (int32_t k = 0; k < n; k++) {
        if (warmup + k < n) row_add(&w, PASS_F, row, warmup + k, 0);
        row_add(&w, PASS_B, row, k, 0);
    }
    *failed |= w.failed;
}

static td_status generate(const sched_request *q, bool all_forwards_first, td_arena *a,
                          schedule *out, td_err *err)
{
    if (q->chunks > 1)
        return td_fail(err, TD_EUSAGE,
                       "--chunks %d: this schedule has one stage a rank; legal: 1, or "
                       "--schedule interleaved-1f1b",
                       q->chunks);
    TD_TRY(sched_new(a, q->pp, q->pp, 1, q->microbatches, 1, out, err));
    bool failed = false;
    for (int32_t r = 0; r < out->n_rows; r++) {
        sched_place(out, 0, r, r);
        const int32_t behind = out->n_rows - 1 - r;
        const int32_t n = out->n_microbatches;
        add_row(a, out, r, all_forwards_first || behind > n ? n : behind, &failed);
    }
    return failed ? td_fail(err, TD_ENOMEM, "out of memory for a schedule") : TD_OK;
}

static td_status generate_gpipe(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    return generate(q, true, a, out, err);
}

static td_status generate_1f1b(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    return generate(q, false, a, out, err);
}

static const sched_option no_options[] = {{NULL, NULL, NULL}};

const sched_family family_gpipe = {
    .name = "gpipe",
    .summary = "all forwards, then all backwards; M microbatch activations on every rank",
    .constraints = "P >= 1, M >= 1, one chunk",
    .options = no_options,
    .generate = generate_gpipe,
};

const sched_family family_1f1b = {
    .name = "1f1b",
    .summary = "one forward, one backward; at most P - r microbatch activations on rank r",
    .constraints = "P >= 1, M >= 1, one chunk",
    .options = no_options,
    .generate = generate_1f1b,
};
