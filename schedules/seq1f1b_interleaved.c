/* Seq1F1B-I (arXiv 2406.03488): Seq1F1B with V chunks a rank, stage c*P + r is chunk c of rank r.
 * Units (a slice of a microbatch each) go through in groups: a group passes through chunk 0, then
 * chunk 1, ... before the next group starts; backwards the same from the last chunk to the first,
 * with the slices of each microbatch reversed. */
#include "schedules/families.h"
#include "schedules/schedule_build.h"

typedef enum group_rule { GROUP_SAFE, GROUP_NARROW, GROUP_WIDE } group_rule;

/* One entry of the order that all rows share. */
typedef struct unit {
    int32_t chunk, microbatch, slice;
} unit;

typedef struct interleave {
    int32_t pp, chunks, microbatches, slices;
    int32_t group;    /* microbatches of a whole group */
    int32_t n_groups; /* they share what is left over: their sizes differ by one at most */
    bool forwards_first;
} interleave;

/* Groups that cut a microbatch pair slices of different microbatches: the backward order then asks
 * for a slice whose later slices are still to come. So a group is of whole microbatches. */
static td_status choose_groups(group_rule rule, interleave *t, td_err *err)
{
    const int32_t p = t->pp, m = t->microbatches, s = t->slices;
    if (rule == GROUP_NARROW && (p % s != 0 || m % (p / s) != 0))
        return td_fail(err, TD_EUSAGE,
                       "--opt group=narrow with P=%d, M=%d, S=%d: a group of P units is whole only "
                       "where S divides P and P divides M*S; legal: --opt group=safe",
                       p, m, s);
    if (rule == GROUP_WIDE && m % p != 0)
        return td_fail(err, TD_EUSAGE,
                       "--opt group=wide with P=%d, M=%d: a group is P microbatches, so P must "
                       "divide M; legal: --opt group=safe, or --microbatches %d",
                       p, m, (m / p + 1) * p);
    t->group = rule == GROUP_WIDE ? p : (p + s - 1) / s;
    t->n_groups = m < t->group ? 1 : m / t->group;
    return TD_OK;
}

/* Microbatches of group g; the first one is the largest. */
static int32_t group_size(const interleave *t, int32_t g)
{
    return t->microbatches / t->n_groups + (g < t->microbatches % t->n_groups);
}

static void fill_units(const interleave *t, unit *forward, unit *backward)
{
    int32_t n = 0, first = 0;
    for (int32_t g = 0; g < t->n_groups; g++) {
        const int32_t size = group_size(t, g);
        for (int32_t c = 0; c < t->chunks; c++)
            for (int32_t u = 0; u < size * t->slices; u++, n++) {
                const int32_t m = first + u / t->slices, k = u % t->slices;
                forward[n] = (unit){c, m, k};
                backward[n] = (unit){t->chunks - 1 - c, m, t->slices - 1 - k};
            }
        first += size;
    }
}

static void add_unit(row_writer *w, pass_kind kind, int32_t pp, int32_t row, const unit *u)
{
    row_add(w, kind, u->chunk * pp + row, u->microbatch, u->slice);
}

static void add_row(td_arena *a, schedule *s, const interleave *t, const unit *forward,
                    const unit *backward, int32_t row, bool *failed)
{
    const int32_t n = t->microbatches * t->slices * t->chunks;
    const int64_t ahead = (int64_t)(t->chunks - 1) * group_size(t, 0) * t->slices +
                          2 * (t->pp - 1 - row) + t->slices - 1;
    const int32_t warmup = ahead < n && !t->forwards_first ? (int32_t)ahead : n;
    row_writer w = row_writer_of(a, s, row);
    for (int32_t i = 0; i < warmup; i++) add_unit(&w, PASS_F, t->pp, row, &forward[i]);
    for (int32_t i = 0; i < n; i++) {
        if (warmup + i < n) add_unit(&w, PASS_F, t->pp, row, &forward[warmup + i]);
        add_unit(&w, PASS_B, t->pp, row, &backward[i]);
    }
    *failed |= w.failed;
}

static td_status read_options(const sched_request *q, interleave *t, td_err *err)
{
    static const char *const rules[] = {"safe", "narrow", "wide", NULL};
    int64_t rule = 0, compat = 0;
    TD_TRY(sched_option_choice(q, "group", rules, &rule, err));
    TD_TRY(sched_option_i64(q, "compat", 0, 1, 0, &compat, err));
    t->forwards_first = compat == 1 && t->microbatches == t->pp;
    return choose_groups((group_rule)rule, t, err);
}

static td_status generate(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    interleave t = {
        .pp = q->pp, .chunks = q->chunks == 0 ? 2 : q->chunks, .microbatches = q->microbatches};
    if (t.chunks == 1) return family_seq1f1b.generate(q, a, out, err);
    TD_TRY(sched_new_sliced(a, q, (int64_t)q->pp * t.chunks, out, err));
    t.slices = out->n_slices;
    const double passes = (double)t.microbatches * t.slices * t.chunks;
    if (passes > INT32_MAX / 4)
        return td_fail(err, TD_EUSAGE, "%d chunks of %d microbatches in %d slices: too many passes",
                       t.chunks, t.microbatches, t.slices);
    TD_TRY(read_options(q, &t, err));
    unit *const forward = TD_NEW_N(a, unit, passes), *const backward = TD_NEW_N(a, unit, passes);
    bool failed = forward == NULL || backward == NULL;
    if (!failed) fill_units(&t, forward, backward);
    for (int32_t r = 0; r < out->n_rows && !failed; r++) {
        for (int32_t c = 0; c < t.chunks; c++) sched_place(out, 0, c * t.pp + r, r);
        add_row(a, out, &t, forward, backward, r, &failed);
    }
    return failed ? td_fail(err, TD_ENOMEM, "out of memory for a schedule") : TD_OK;
}

static const sched_option options[] = {
    {"group", "safe|narrow|wide",
     "units that pass through a chunk together: the fewest whole microbatches that hold P slices, "
     "exactly P slices (the published code), or P microbatches (the published figure)"},
    {"compat", "0|1", "1: with M = P run all forwards first, as the published code does"},
    {NULL, NULL, NULL},
};

const sched_family family_seq1f1b_i = {
    .name = "seq1f1b-i",
    .summary = "Seq1F1B with V chunks a rank: a bubble V times smaller again, V times the messages",
    .constraints = "P, M, S >= 1 (S, V: 2 when not given), causal models; narrow: S divides P, P "
                   "divides M*S; wide: P divides M",
    .options = options,
    .cuts = true,
    .generate = generate,
};
