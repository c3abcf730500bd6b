/* BitPipe (Wu et al. 2024, arXiv 2410.19367): two V-shaped pipes in opposite directions, v chunks a
 * rank and pipe. Row r and row P - 1 - r hold the same stages. */
#include "schedules/families.h"
#include "schedules/schedule_build.h"
#include "schedules/slot_rule.h"

static const char *const sync_names[] = {"eager", "end", "original", NULL};
enum { SYNC_OF_CODE = 2 }; /* after the two policies of sched_sync */

/* Where the authors' code reduces: the later chunks just before the row's last backward, save in
 * the middle pair of rows; the first chunk behind it. */
static td_status sync_as_in_code(td_arena *a, schedule *s, int32_t chunks, td_err *err)
{
    const int32_t half = s->n_rows / 2;
    s->sync = SYNC_END;
    s->sync_at = TD_NEW_N(a, sched_sync_at, (size_t)s->n_pipes * (size_t)s->n_stages);
    if (s->sync_at == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
    for (int32_t row = 0; row < s->n_rows; row++) {
        if (row == half - 1 || row == half) continue;
        for (int32_t stage = (chunks > 1 ? s->n_rows : 0); stage < s->n_stages; stage++)
            for (int32_t pipe = 0; pipe < 2; pipe++)
                if (s->pipes[pipe].backward_row[stage] == row)
                    s->sync_at[s->n_sync_at++] =
                        (sched_sync_at){.row = row,
                                        .stage = stage,
                                        .cell = s->rows[row].cells[s->rows[row].n_cells - 1]};
    }
    return TD_OK;
}

static td_status generate(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    int64_t v_shape = 0, gap = 0;
    int64_t sync = 0;
    TD_TRY(sched_need_even_ranks(q, "bitpipe", err));
    TD_TRY(sched_need_units(q, "bitpipe", q->pp, "P", err));
    TD_TRY(sched_option_i64(q, "vshape", 0, 1, 1, &v_shape, err));
    TD_TRY(sched_option_i64(q, "gap", 1, 2, 1, &gap, err));
    TD_TRY(sched_option_choice(q, "sync", sync_names, &sync, err));
    const slot_rule r = {.pp = q->pp,
                         .chunks = q->chunks == 0 ? 2 : q->chunks,
                         .down = 1,
                         .up = 1,
                         .unit = q->pp,
                         .looping = v_shape == 0,
                         .two_in_a_gap = gap == 2};
    TD_TRY(slot_rule_generate(&r, q->microbatches, a, out, err));
    if (sync == SYNC_OF_CODE) return sync_as_in_code(a, out, r.chunks, err);
    out->sync = (sched_sync)sync;
    return TD_OK;
}

static const sched_option options[] = {
    {"vshape", "1|0", "neighbouring chunks turn round on one rank; 0: they loop, for comparison"},
    {"sync", "eager|end|original",
     "a stage's gradients are summed once it is done, at the end, or where the authors' code does"},
    {"gap", "1|2",
     "forwards in the last gap of a drain on the end ranks: 1 as in the authors' code, 2 as in "
     "their figure"},
    {NULL, NULL, NULL},
};

const sched_family family_bitpipe = {
    .name = "bitpipe",
    .summary = "two V-shaped pipes in opposite directions, V chunks each; weights twice",
    .constraints = "P even, M a multiple of P, V >= 1 (default 2)",
    .options = options,
    .generate = generate,
};
