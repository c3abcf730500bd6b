/* Chimera (Li and Hoefler, SC'21, arXiv 2107.06925): f pipes down and f up, one stage of each on
 * every row; units of P microbatches one after the other, or twice as many with forwards doubled.
 */
#include "schedules/families.h"
#include "schedules/schedule_build.h"
#include "schedules/slot_rule.h"

#include <stdio.h>

static const char *const sync_names[] = {"eager", "end", "original", NULL};
enum { SYNC_OF_CODE = 2 }; /* after the two policies of sched_sync */

/* Where the authors' code reduces ("eager-sync-opt"): a row's deeper stage before its drain, the
 * last backwards of its own direction; its other stage, and both of the middle rows, at the end. */
static td_status sync_as_in_code(td_arena *a, schedule *s, td_err *err)
{
    const int32_t half = s->n_rows / 2;
    s->sync = SYNC_END;
    s->sync_at = TD_NEW_N(a, sched_sync_at, s->n_rows);
    if (s->sync_at == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
    for (int32_t row = 0; row < s->n_rows; row++) {
        if (row == half - 1 || row == half) continue;
        const int32_t drain = row < half ? half - row : row - half + 1;
        const sched_row *const cells = &s->rows[row];
        s->sync_at[s->n_sync_at++] =
            (sched_sync_at){.row = row,
                            .stage = row < half ? s->n_rows - 1 - row : row,
                            .cell = cells->cells[cells->n_cells - drain]};
    }
    return TD_OK;
}

/* "1, 2, 4" of the divisors of n. */
static void print_divisors(int32_t n, char *buf, size_t size)
{
    td_text t = {0};
    for (int32_t d = 1; d <= n && t.len + 12 < size; d++)
        if (n % d == 0) td_text_addf(&t, "%s%d", d > 1 ? ", " : "", d);
    (void)snprintf(buf, size, "%s", t.s == NULL ? "1" : t.s);
    td_text_free(&t);
}

static td_status check(const sched_request *q, int64_t f, int32_t unit, td_err *err)
{
    const int32_t p = q->pp;
    TD_TRY(sched_need_even_ranks(q, "chimera", err));
    if (q->chunks > 1)
        return td_fail(err, TD_EUSAGE,
                       "--chunks %d: chimera has one stage a rank and pipe; legal: 1, or "
                       "--schedule bitpipe",
                       q->chunks);
    if (p / 2 % f != 0) {
        char legal[80];
        print_divisors(p / 2, legal, sizeof legal);
        return td_fail(err, TD_EUSAGE, "--opt f=%lld with P=%d: f must divide P/2 = %d; legal: %s",
                       (long long)f, p, p / 2, legal);
    }
    return unit == p ? sched_need_units(q, "chimera", unit, "P", err)
                     : sched_need_units(q, "chimera with doubled forwards", unit, "2P", err);
}

static td_status generate(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    int64_t f = 0, doubling = 0;
    int64_t sync = 0;
    TD_TRY(sched_option_i64(q, "f", 1, 65535, 1, &f, err));
    TD_TRY(sched_option_i64(q, "doubling", 0, 1, 0, &doubling, err));
    TD_TRY(sched_option_choice(q, "sync", sync_names, &sync, err));
    const int32_t unit = doubling ? 2 * q->pp : q->pp;
    TD_TRY(check(q, f, unit, err));
    if (sync == SYNC_OF_CODE && f > 1)
        return td_fail(err, TD_EUSAGE,
                       "--opt sync=original with f=%lld: the authors' code places it for one pipe "
                       "a direction; legal: eager, end",
                       (long long)f);
    const slot_rule r = {.pp = q->pp,
                         .chunks = 1,
                         .down = (int32_t)f,
                         .up = (int32_t)f,
                         .unit = unit,
                         .doubling = doubling != 0};
    TD_TRY(slot_rule_generate(&r, q->microbatches, a, out, err));
    if (sync == SYNC_OF_CODE) return sync_as_in_code(a, out, err);
    out->sync = (sched_sync)sync;
    return TD_OK;
}

static const sched_option options[] = {
    {"f", "1|integer", "pipes of each direction; must divide P/2; weights 2f times"},
    {"doubling", "0|1", "two forwards at a time, which takes the bubbles between units out"},
    {"sync", "eager|end|original",
     "a stage's gradients are summed once it is done, at the end, or where the authors' code does"},
    {NULL, NULL, NULL},
};

const sched_family family_chimera = {
    .name = "chimera",
    .summary = "f pipes in each direction over the same ranks; weights 2f times",
    .constraints = "P even, M a multiple of P (of 2P with doubling), f divides P/2, one chunk",
    .options = options,
    .generate = generate,
};
