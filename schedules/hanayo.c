/* Hanayo (Liu et al., SC'23, arXiv 2308.15762): one pipe in waves over the ranks and back, two
 * chunks a wave; units of P microbatches. */
#include "schedules/families.h"
#include "schedules/schedule_build.h"
#include "schedules/slot_rule.h"

static td_status generate(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    if (q->pp < 2)
        return td_fail(err, TD_EUSAGE, "--pp %d: a wave needs ranks to cross; legal: 2 or more",
                       q->pp);
    if (q->chunks % 2 != 0)
        return td_fail(
            err, TD_EUSAGE, "--chunks %d: a wave of hanayo is two chunks a rank; legal: %d or %d",
            q->chunks, q->chunks < 2 ? 2 : q->chunks - 1, q->chunks < 2 ? 4 : q->chunks + 1);
    const slot_rule r = {
        .pp = q->pp, .chunks = q->chunks == 0 ? 2 : q->chunks, .down = 1, .unit = q->pp};
    return slot_rule_generate(&r, q->microbatches, a, out, err);
}

static const sched_option options[] = {{NULL, NULL, NULL}};

const sched_family family_hanayo = {
    .name = "hanayo",
    .summary = "waves: one pipe runs over the ranks and back, V/2 times; weights once",
    .constraints = "P >= 2, M >= 1 (best a multiple of P), V even (default 2, one wave)",
    .options = options,
    .generate = generate,
};
