/* Interleaved 1F1B (Narayanan et al. 2021, section 2.2; the order of Megatron-core): V chunks a
 * rank, stage c*P + r is chunk c of rank r. Microbatches go through in groups of G: a group passes
 * through chunk 0, then chunk 1, ... on every rank before the next group starts. */
#include "schedules/families.h"
#include "schedules/schedule_build.h"

typedef struct interleave {
    int32_t pp, chunks, microbatches, group;
    bool forwards_first;
} interleave;

/* The k-th forward of the table: groups, in them chunks, in them microbatches. */
static void forward_at(const interleave *t, int32_t k, int32_t *chunk, int32_t *microbatch)
{
    const int32_t per_group = t->group * t->chunks;
    const int32_t first = k / per_group * t->group;
    const int32_t left = t->microbatches - first;
    const int32_t size = left < t->group ? left : t->group;
    const int32_t in_group = k % per_group;
    *chunk = in_group / size;
    *microbatch = first + in_group % size;
}

static bool group_is_legal(int32_t pp, int32_t m, int32_t g)
{
    return g >= pp && g <= m && (m % g == 0 || m % g >= pp);
}

/* The group size: the option's, else P, else the smallest legal one above P. */
static td_status choose_group(const sched_request *q, int32_t *group, td_err *err)
{
    int64_t g = 0;
    TD_TRY(sched_option_i64(q, "group", 1, INT32_MAX, 0, &g, err));
    if (g != 0 && group_is_legal(q->pp, q->microbatches, (int32_t)g)) {
        *group = (int32_t)g;
        return TD_OK;
    }
    for (int32_t legal = q->pp; legal <= q->microbatches; legal++) {
        if (!group_is_legal(q->pp, q->microbatches, legal)) continue;
        if (g != 0)
            return td_fail(err, TD_EUSAGE,
                           "--opt group=%lld with P=%d, M=%d: a group must hold P to M "
                           "microbatches and leave a last group of none or at least P; legal: %d",
                           (long long)g, q->pp, q->microbatches, legal);
        *group = legal;
        return TD_OK;
    }
    return td_fail(err, TD_EUSAGE,
                   "interleaved-1f1b with P=%d needs M >= %d microbatches (got %d); legal: "
                   "--microbatches %d or more, or --schedule 1f1b",
                   q->pp, q->pp, q->microbatches, q->pp);
}

static void add_row(td_arena *a, schedule *s, const interleave *t, int32_t row, bool *failed)
{
    const int32_t total = t->microbatches * t->chunks;
    int32_t warmup = 2 * (t->pp - 1 - row) + (t->chunks - 1) * t->group;
    if (warmup > total || t->forwards_first) warmup = total;
    row_writer w = row_writer_of(a, s, row);
    int32_t *const next = TD_NEW_N(a, int32_t, t->chunks); /* backward microbatch of each chunk */
    if (next == NULL) {
        *failed = true;
        return;
    }
    for (int32_t k = 0; k < warmup + total; k++) {
        int32_t chunk = 0, m = 0;
        if (k < total) {
            forward_at(t, k, &chunk, &m);
            row_add(&w, PASS_F, chunk * t->pp + row, m, 0);
        }
        if (k >= warmup) {
            forward_at(t, k - warmup, &chunk, &m);
            chunk = t->chunks - 1 - chunk;
            row_add(&w, PASS_B, chunk * t->pp + row, next[chunk]++, 0);
        }
    }
    *failed |= w.failed;
}

static td_status generate(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    interleave t = {
        .pp = q->pp, .chunks = q->chunks == 0 ? 2 : q->chunks, .microbatches = q->microbatches};
    if (t.chunks == 1) /* as in Megatron: one chunk a rank is not interleaved */
        return family_1f1b.generate(q, a, out, err);
    if ((int64_t)t.chunks * q->microbatches > INT32_MAX / 4)
        return td_fail(err, TD_EUSAGE, "%d chunks of %d microbatches: too many passes to count",
                       t.chunks, q->microbatches);
    if (q->pp >= 1 && q->microbatches >= 1) TD_TRY(choose_group(q, &t.group, err));
    int64_t compat = 0;
    TD_TRY(sched_option_i64(q, "compat", 0, 1, 0, &compat, err));
    t.forwards_first = compat == 1 && t.microbatches == t.pp;
    TD_TRY(sched_new(a, q->pp, (int64_t)q->pp * t.chunks, 1, q->microbatches, 1, out, err));
    bool failed = false;
    for (int32_t r = 0; r < out->n_rows; r++) {
        for (int32_t c = 0; c < t.chunks; c++) sched_place(out, 0, c * t.pp + r, r);
        add_row(a, out, &t, r, &failed);
    }
    return failed ? td_fail(err, TD_ENOMEM, "out of memory for a schedule") : TD_OK;
}

static const sched_option options[] = {
    {"group", "P|integer",
     "microbatches that pass through a chunk together (Megatron's microbatch group size)"},
    {"compat", "0|1", "1: with M = P run all forwards first, as older Megatron does"},
    {NULL, NULL, NULL},
};

const sched_family family_interleaved_1f1b = {
    .name = "interleaved-1f1b",
    .summary = "1F1B with V chunks a rank: a bubble V times smaller, V times the messages",
    .constraints = "M >= P, V >= 1; a group G in [P, M] leaves a last group of 0 or >= P",
    .options = options,
    .generate = generate,
};
