/* Orders of split passes as schedules, and their replay. */
#include "schedules/zb_core.h"

#include "schedules/schedule_build.h"

#include <string.h>

td_status zb_order_new(td_arena *a, int32_t p, int32_t m, int32_t chunks, zb_order *out,
                       td_err *err)
{
    const int64_t room = (int64_t)3 * m * chunks;
    if (room > INT32_MAX / 4)
        return td_fail(err, TD_EUSAGE, "%d microbatches: more passes than a rank can count", m);
    *out = (zb_order){.p = p, .m = m, .chunks = chunks, .room = (int32_t)room};
    out->n = TD_NEW_N(a, int32_t, p);
    out->codes = TD_NEW_N(a, uint8_t, (size_t)p * (size_t)room);
    if (out->n == NULL || out->codes == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for %d rows of %lld passes", p,
                       (long long)room);
    return TD_OK;
}

void zb_order_copy(zb_order *to, const zb_order *from)
{
    memcpy(to->n, from->n, (size_t)from->p * sizeof *to->n);
    memcpy(to->codes, from->codes, (size_t)from->p * (size_t)from->room);
}

td_status zb_order_schedule(const zb_order *o, td_arena *a, schedule *out, td_err *err)
{
    static const pass_kind kinds[ZB_KINDS] = {PASS_F, PASS_I, PASS_W, PASS_B};
    TD_TRY(sched_new(a, o->p, (int64_t)o->p * o->chunks, 1, o->m, 1, out, err));
    bool failed = false;
    for (int32_t r = 0; r < o->p; r++) {
        int32_t count[ZB_CODES] = {0};
        for (int c = 0; c < o->chunks; c++) sched_place(out, 0, zb_stage(o, r, c), r);
        row_writer w = row_writer_of(a, out, r);
        for (int32_t i = 0; i < o->n[r]; i++) {
            const uint8_t code = zb_row(o, r)[i];
            row_add(&w, kinds[zb_kind_of(code)], zb_stage(o, r, zb_chunk_of(code)), count[code]++,
                    0);
        }
        failed |= w.failed;
    }
    return failed ? td_fail(err, TD_ENOMEM, "out of memory for a schedule") : TD_OK;
}

/* --- replay --- */

td_status zb_replay_new(td_arena *a, const zb_problem *q, zb_replay *out, td_err *err)
{
    const size_t n = (size_t)q->p * (size_t)q->chunks * (size_t)q->m;
    *out = (zb_replay){.end = {TD_NEW_N(a, int64_t, n), TD_NEW_N(a, int64_t, n)},
                       .clock = TD_NEW_N(a, int64_t, q->p),
                       .first = TD_NEW_N(a, int64_t, q->p),
                       .at = TD_NEW_N(a, int32_t, q->p),
                       .count = TD_NEW_N(a, int32_t, (size_t)q->p * ZB_CODES),
                       .waiting = TD_NEW_N(a, int32_t, q->p),
                       .queued = TD_NEW_N(a, bool, q->p)};
    if (out->end[0] == NULL || out->end[1] == NULL || out->clock == NULL || out->first == NULL ||
        out->at == NULL || out->count == NULL || out->waiting == NULL || out->queued == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for a replay");
    return TD_OK;
}

/* When the data of a pass is there; -1: not yet known. F of the first stage needs nothing; I of
 * the last stage and W need only what stands before them on their rank. */
static int64_t data_at(const zb_problem *q, const zb_replay *w, int kind, int32_t stage,
                       int32_t rank, int32_t k)
{
    const int32_t last = q->p * q->chunks - 1;
    const int32_t from = kind == ZB_F ? stage - 1 : stage + 1;
    if (kind == ZB_W || from < 0 || from > last) return 0;
    const int64_t end = w->end[kind][(size_t)from * (size_t)q->m + (size_t)k];
    if (end < 0) return -1;
    const int32_t home = from < q->p ? from : 2 * q->p - 1 - from;
    return home == rank ? end : end + q->comm_ns;
}

/* Runs one rank until it must wait. */
static void advance(const zb_problem *q, const zb_order *o, zb_replay *w, int32_t r)
{
    const uint8_t *const row = zb_row(o, r);
    int32_t *const count = &w->count[r * ZB_CODES];
    int64_t t = w->clock[r];
    int32_t i = w->at[r];
    for (; i < o->n[r]; i++) {
        const int kind = zb_kind_of(row[i]);
        const int32_t stage = zb_stage(o, r, zb_chunk_of(row[i])), k = count[row[i]];
        const int64_t data = data_at(q, w, kind, stage, r, k);
        if (data < 0) break;
        if (data > t) t = data;
        if (i == 0) w->first[r] = t;
        t += q->pass_ns[kind][stage];
        count[row[i]]++;
        if (kind != ZB_W) w->end[kind][(size_t)stage * (size_t)q->m + (size_t)k] = t;
    }
    w->clock[r] = t;
    w->at[r] = i;
}

static void restart(const zb_problem *q, zb_replay *w)
{
    const size_t p = (size_t)q->p, n = p * (size_t)q->chunks * (size_t)q->m;
    memset(w->end[0], 0xff, n * sizeof *w->end[0]);
    memset(w->end[1], 0xff, n * sizeof *w->end[1]);
    memset(w->clock, 0, p * sizeof *w->clock);
    memset(w->at, 0, p * sizeof *w->at);
    memset(w->count, 0, p * ZB_CODES * sizeof *w->count);
}

bool zb_replay_run(const zb_problem *q, const zb_order *o, zb_replay *w, zb_score *out)
{
    const int32_t p = q->p;
    int32_t stack = 0;
    restart(q, w);
    for (int32_t r = p - 1; r >= 0; r--) {
        w->waiting[stack++] = r;
        w->queued[r] = true;
    }
    while (stack > 0) {
        const int32_t r = w->waiting[--stack], before = w->at[r];
        w->queued[r] = false;
        advance(q, o, w, r);
        for (int32_t near = r - 1; w->at[r] > before && near <= r + 1; near += 2)
            if (near >= 0 && near < p && !w->queued[near]) {
                w->waiting[stack++] = near;
                w->queued[near] = true;
            }
    }
    *out = (zb_score){0};
    for (int32_t r = 0; r < p; r++) {
        if (w->at[r] < o->n[r]) return false;
        const int64_t span = w->clock[r] - w->first[r];
        if (span > out->span_ns) out->span_ns = span;
        if (w->clock[r] > out->makespan_ns) out->makespan_ns = w->clock[r];
        out->spans_ns += span;
    }
    return true;
}

int64_t zb_peak(const zb_problem *q, const zb_order *o, int32_t rank)
{
    int64_t live = 0, peak = 0;
    for (int32_t i = 0; i < o->n[rank]; i++) {
        const uint8_t code = zb_row(o, rank)[i];
        live += q->delta[zb_kind_of(code)][zb_stage(o, rank, zb_chunk_of(code))];
        if (live > peak) peak = live;
    }
    return peak;
}
