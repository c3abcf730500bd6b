/* Aligns two traces by what their tasks are, not by when they ran. */
#include "sim/compare.h"

#include <stdlib.h>
#include <string.h>

typedef struct key {
    uint32_t rank;
    int32_t stage, pipe, microbatch, peer;
    uint16_t slice;
    uint8_t kind, detail;
    int64_t begin_ns;
    uint64_t record;
} key;

static int by_number(int64_t a, int64_t b) { return (a > b) - (a < b); }

/* The identity of a task, without its time. */
static int same_task(const key *a, const key *b)
{
    int c = by_number(a->rank, b->rank);
    if (c == 0) c = by_number(a->kind, b->kind);
    if (c == 0) c = by_number(a->stage, b->stage);
    if (c == 0) c = by_number(a->pipe, b->pipe);
    if (c == 0) c = by_number(a->microbatch, b->microbatch);
    if (c == 0) c = by_number(a->slice, b->slice);
    if (c == 0) c = by_number(a->peer, b->peer);
    if (c == 0) c = by_number(a->detail, b->detail);
    return c;
}

static int by_key(const void *x, const void *y)
{
    const key *const a = x, *const b = y;
    int c = same_task(a, b);
    if (c == 0) c = by_number(a->begin_ns, b->begin_ns);
    if (c == 0) c = by_number((int64_t)a->record, (int64_t)b->record);
    return c;
}

static int by_error(const void *x, const void *y)
{
    const compare_pair *const a = x, *const b = y;
    const int c = by_number(llabs(b->error_ns), llabs(a->error_ns));
    return c != 0 ? c : by_number((int64_t)a->predicted, (int64_t)b->predicted);
}

static key *keys_of(const trace *t, td_arena *a, td_err *err)
{
    key *const keys = TD_NEW_N(a, key, t->n_records);
    if (keys == NULL) {
        (void)td_fail(err, TD_ENOMEM, "out of memory to compare %llu tasks",
                      (unsigned long long)t->n_records);
        return NULL;
    }
    for (uint64_t i = 0; i < t->n_records; i++) {
        const trace_record *const r = &t->records[i];
        keys[i] = (key){.rank = t->streams[r->stream].rank,
                        .stage = r->stage,
                        .pipe = r->pipe,
                        .microbatch = r->microbatch,
                        .peer = r->peer,
                        .slice = r->slice,
                        .kind = r->kind,
                        .detail = r->detail,
                        .begin_ns = r->begin_ns,
                        .record = i};
    }
    qsort(keys, (size_t)t->n_records, sizeof *keys, by_key);
    return keys;
}

static void add(compare_sum *s, int64_t predicted, int64_t measured)
{
    s->n++;
    s->predicted_ns += predicted;
    s->measured_ns += measured;
    s->absolute_ns += llabs(measured - predicted);
}

static bool on_compute(const key *k)
{
    return k->kind != TASK_SEND && k->kind != TASK_RECV && k->kind != TASK_COLL;
}

static void match(const trace *p, const trace *m, const key *x, const key *y, compare_pair *pairs,
                  compare_report *out)
{
    const trace_record *const a = &p->records[x->record], *const b = &m->records[y->record];
    const int64_t predicted = a->end_ns - a->begin_ns, measured = b->end_ns - b->begin_ns;
    if (x->kind < TASK_KIND_COUNT) add(&out->kinds[x->kind], predicted, measured);
    if (x->rank < out->n_ranks && on_compute(x)) add(&out->ranks[x->rank].sum, predicted, measured);
    pairs[out->n_matched++] = (compare_pair){
        .predicted = x->record, .measured = y->record, .error_ns = measured - predicted};
}

static void align(const trace *p, const trace *m, const key *x, const key *y, compare_pair *pairs,
                  compare_report *out)
{
    uint64_t i = 0, j = 0;
    while (i < p->n_records && j < m->n_records) {
        const int c = same_task(&x[i], &y[j]);
        if (c == 0)
            match(p, m, &x[i++], &y[j++], pairs, out);
        else if (c < 0)
            i++;
        else
            j++;
    }
    out->n_only_predicted = p->n_records - out->n_matched;
    out->n_only_measured = m->n_records - out->n_matched;
}

static void fill_ranks(const trace *t, compare_report *out, bool predicted)
{
    for (uint32_t i = 0; i < t->n_ranks && i < out->n_ranks; i++) {
        const int64_t peak = t->peak_bytes == NULL ? -1 : t->peak_bytes[i];
        if (predicted)
            out->ranks[i].predicted_peak_bytes = peak;
        else
            out->ranks[i].measured_peak_bytes = peak;
    }
    for (uint64_t i = 0; i < t->n_records; i++) {
        const uint32_t rank = t->streams[t->records[i].stream].rank;
        if (rank >= out->n_ranks) continue;
        int64_t *const last =
            predicted ? &out->ranks[rank].predicted_last_ns : &out->ranks[rank].measured_last_ns;
        if (*last < t->records[i].end_ns) *last = t->records[i].end_ns;
    }
}

static int by_turn(const void *x, const void *y)
{
    const key *const a = x, *const b = y;
    int c = by_number(a->rank, b->rank);
    if (c == 0) c = by_number(a->begin_ns, b->begin_ns);
    if (c == 0) c = by_number((int64_t)a->record, (int64_t)b->record);
    return c;
}

/* The next of the rank on its compute stream, or NULL. */
static const key *next_turn(const key *keys, uint64_t n, uint64_t *i, uint32_t rank)
{
    while (*i < n && (keys[*i].rank < rank || (keys[*i].rank == rank && !on_compute(&keys[*i]))))
        (*i)++;
    return *i < n && keys[*i].rank == rank ? &keys[(*i)++] : NULL;
}

/* Where the ranks' orders part. Both lists are put into the order of their times. */
static void find_turns(key *x, uint64_t n, key *y, uint64_t m, compare_report *out)
{
    qsort(x, (size_t)n, sizeof *x, by_turn);
    qsort(y, (size_t)m, sizeof *y, by_turn);
    uint64_t i = 0, j = 0;
    for (uint32_t rank = 0; rank < out->n_ranks; rank++) {
        const key *a = NULL, *b = NULL;
        do {
            a = next_turn(x, n, &i, rank);
            b = next_turn(y, m, &j, rank);
        } while (a != NULL && b != NULL && same_task(a, b) == 0);
        out->ranks[rank].predicted_turn = a == NULL ? UINT64_MAX : a->record;
        out->ranks[rank].measured_turn = b == NULL ? UINT64_MAX : b->record;
    }
}

static td_status compare_with(const trace *p, const trace *m, uint32_t max_worst, td_arena *a,
                              td_arena *scratch, compare_report *out, td_err *err)
{
    out->n_ranks = p->n_ranks > m->n_ranks ? p->n_ranks : m->n_ranks;
    out->ranks = TD_NEW_N(a, compare_rank, out->n_ranks);
    const uint64_t most = p->n_records < m->n_records ? p->n_records : m->n_records;
    compare_pair *const pairs = TD_NEW_N(scratch, compare_pair, most);
    if (out->ranks == NULL || pairs == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory to compare");
    for (uint32_t i = 0; i < out->n_ranks; i++)
        out->ranks[i].predicted_peak_bytes = out->ranks[i].measured_peak_bytes = -1;
    key *const x = keys_of(p, scratch, err);
    if (x == NULL) return TD_ENOMEM;
    key *const y = keys_of(m, scratch, err);
    if (y == NULL) return TD_ENOMEM;
    align(p, m, x, y, pairs, out);
    if (out->n_matched == 0)
        return td_fail(err, TD_EUSAGE,
                       "the traces have no task in common: %llu and %llu records; "
                       "are they of the same plan?",
                       (unsigned long long)p->n_records, (unsigned long long)m->n_records);
    find_turns(x, p->n_records, y, m->n_records, out);
    fill_ranks(p, out, true);
    fill_ranks(m, out, false);
    qsort(pairs, (size_t)out->n_matched, sizeof *pairs, by_error);
    out->n_worst = out->n_matched < max_worst ? (uint32_t)out->n_matched : max_worst;
    out->worst = TD_NEW_N(a, compare_pair, out->n_worst);
    if (out->worst == NULL) return td_fail(err, TD_ENOMEM, "out of memory to compare");
    if (out->n_worst > 0) memcpy(out->worst, pairs, out->n_worst * sizeof *pairs);
    return TD_OK;
}

td_status compare_traces(const trace *predicted, const trace *measured, uint32_t max_worst,
                         td_arena *a, compare_report *out, td_err *err)
{
    *out = (compare_report){.predicted_step_ns = predicted->step_ns,
                            .measured_step_ns = measured->step_ns};
    if (measured->step_ns > 0)
        out->step_error_frac =
            (double)(predicted->step_ns - measured->step_ns) / (double)measured->step_ns;
    td_arena *const scratch = td_arena_new();
    if (scratch == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    const td_status st = compare_with(predicted, measured, max_worst, a, scratch, out, err);
    td_arena_free(scratch);
    return st;
}
