/* TeraPipe (Li et al. 2021, arXiv 2102.07988): token slices one behind the other through the whole
 * pipeline, all forwards of the step, then all backwards in exactly the reverse order. */
#include "schedules/families.h"
#include "schedules/schedule_build.h"

static td_status generate(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    if (q->chunks > 1)
        return td_fail(err, TD_EUSAGE,
                       "--chunks %d: this schedule has one stage a rank; legal: 1, or "
                       "--schedule seq1f1b-i",
                       q->chunks);
    TD_TRY(sched_new_sliced(a, q, q->pp, out, err));
    const int32_t slices = out->n_slices, units = out->n_microbatches * slices;
    bool failed = false;
    for (int32_t r = 0; r < out->n_rows; r++) {
        sched_place(out, 0, r, r);
        row_writer w = row_writer_of(a, out, r);
        for (int32_t n = 0; n < units; n++) row_add(&w, PASS_F, r, n / slices, n % slices);
        for (int32_t n = units - 1; n >= 0; n--) row_add(&w, PASS_B, r, n / slices, n % slices);
        failed |= w.failed;
    }
    return failed ? td_fail(err, TD_ENOMEM, "out of memory for a schedule") : TD_OK;
}

static const sched_option no_options[] = {{NULL, NULL, NULL}};

const sched_family family_terapipe = {
    .name = "terapipe",
    .summary = "GPipe on slices of the tokens: fill and drain of one slice, all activations kept",
    .constraints = "P, M, S >= 1 (S: 2 when not given), one chunk, causal models",
    .options = no_options,
    .cuts = true,
    .generate = generate,
};
