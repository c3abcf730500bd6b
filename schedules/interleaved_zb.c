/* Interleaved zero bubble as torch.distributed.pipelining orders it: interleaved 1F1B with split
 * backwards, where rank r runs its first W after its first r + 1 input gradients. */
#include "schedules/families.h"
#include "schedules/schedule_build.h"

typedef struct rounds {
    int32_t pp, chunks, microbatches, group;
} rounds;

/* The k-th pass of a direction: groups of microbatches, in them chunks. */
static sched_cell pass_at(const rounds *t, pass_kind kind, int32_t row, int32_t k)
{
    const int32_t per_group = t->group * t->chunks, in_group = k % per_group;
    const int32_t c = in_group / t->group;
    const int32_t chunk = kind == PASS_F ? c : t->chunks - 1 - c;
    return sched_cell_of(kind, chunk * t->pp + row, k / per_group * t->group + k % t->group, 0);
}

static void add_row(td_arena *a, schedule *s, const rounds *t, int32_t row, bool *failed)
{
    const int32_t total = t->microbatches * t->chunks, lag = row < total ? row : total;
    const int32_t lead = (t->chunks - 1) * t->group + t->pp - 1 - row;
    const int32_t warmup = lead < total ? lead : total;
    row_writer w = row_writer_of(a, s, row);
    for (int32_t k = 0; k < warmup; k++) row_add_cell(&w, pass_at(t, PASS_F, row, k));
    for (int32_t k = 0; k < total; k++) {
        if (warmup + k < total) row_add_cell(&w, pass_at(t, PASS_F, row, warmup + k));
        row_add_cell(&w, pass_at(t, PASS_I, row, k));
        if (k >= lag) row_add_cell(&w, pass_at(t, PASS_W, row, k - lag));
    }
    for (int32_t k = total - lag; k < total; k++) row_add_cell(&w, pass_at(t, PASS_W, row, k));
    *failed |= w.failed;
}

static td_status generate(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    const int32_t m = q->microbatches, n_rounds = m / q->pp > 1 ? m / q->pp : 1;
    rounds t = {.pp = q->pp, .chunks = q->chunks == 0 ? 2 : q->chunks, .microbatches = m};
    if (m % n_rounds != 0)
        return td_fail(err, TD_EUSAGE,
                       "interleaved-zb with P=%d, M=%d: M div P = %d rounds do not divide M; "
                       "legal: --microbatches %d, or fewer than %d",
                       q->pp, m, n_rounds, (m / q->pp + 1) * q->pp, 2 * q->pp);
    t.group = m / n_rounds;
    if ((int64_t)t.chunks * m > INT32_MAX / 4)
        return td_fail(err, TD_EUSAGE, "%d chunks of %d microbatches: too many passes to count",
                       t.chunks, m);
    TD_TRY(sched_new(a, q->pp, (int64_t)q->pp * t.chunks, 1, m, 1, out, err));
    bool failed = false;
    for (int32_t r = 0; r < out->n_rows; r++) {
        for (int32_t c = 0; c < t.chunks; c++) sched_place(out, 0, c * t.pp + r, r);
        add_row(a, out, &t, r, &failed);
    }
    return failed ? td_fail(err, TD_ENOMEM, "out of memory for a schedule") : TD_OK;
}

static const sched_option no_options[] = {{NULL, NULL, NULL}};

const sched_family family_interleaved_zb = {
    .name = "interleaved-zb",
    .summary = "interleaved 1F1B with split backwards: V chunks a rank, W fills what is left idle",
    .constraints = "M >= 1, V >= 1; M div P divides M where M >= P",
    .options = no_options,
    .generate = generate,
};
