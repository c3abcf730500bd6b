/* Local search over orders: one pass moves within its row at a time, or neighbours of two kinds
 * change places all over a row, which changes the period that its microbatches repeat. What comes
 * out is kept unless it is worse than some steps ago (late acceptance; Burke and Bykov 2017). */
#include "schedules/zb_search.h"

#include <string.h>

enum { HISTORY = 64, REACH = 24, REPEATS = 4 /* one move of so many changes a whole row */ };
static const int64_t default_trials = 100000000; /* passes replayed */

typedef struct climber {
    const zb_problem *q;
    const zb_search_options *o;
    zb_order *now;
    uint8_t *saved; /* [room] the row as it was before a move */
    zb_replay replay;
    td_rng rng;
} climber;

/* A pass that left `from` for `to`, all between them by one place. */
static void shift(uint8_t *row, int32_t from, int32_t to)
{
    const uint8_t code = row[from];
    if (to > from)
        memmove(row + from, row + from + 1, (size_t)(to - from));
    else
        memmove(row + to + 1, row + to, (size_t)(from - to));
    row[to] = code;
}

/* Whether a row still runs each microbatch's passes in turn and within its limit. */
static bool row_is_legal(const zb_problem *q, const zb_order *o, int32_t r)
{
    const uint8_t *const row = zb_row(o, r);
    int32_t count[ZB_CODES] = {0};
    int64_t live = 0;
    for (int32_t i = 0; i < o->n[r]; i++) {
        const int kind = zb_kind_of(row[i]), chunk = zb_chunk_of(row[i]);
        count[row[i]]++;
        if (kind != ZB_F && count[row[i]] > count[zb_code(kind - 1, chunk)]) return false;
        live += q->delta[kind][zb_stage(o, r, chunk)];
        if (live > q->limit[r]) return false;
    }
    return true;
}

/* One number for the climb: the objective first, the sum of spans as a slope on its plateaus. */
static double height(const climber *c, const zb_score *s)
{
    const double p = c->q->p;
    const double first = c->o->objective == ZB_SPAN ? (double)s->span_ns : (double)s->makespan_ns;
    return first * 4 * p + (double)s->spans_ns + (double)s->makespan_ns * 0.25;
}

/* Moves one pass, by some places; false when it is the first one or meets its like. */
static bool move_one(climber *c, uint8_t *row, int32_t n)
{
    const int32_t from = (int32_t)td_rng_below(&c->rng, n);
    const int32_t step = 1 + (int32_t)td_rng_below(&c->rng, REACH);
    const int32_t to = td_rng_below(&c->rng, 2) == 0 ? from - step : from + step;
    if (to < 1 || to >= n || from == 0 || row[to] == row[from]) return false;
    shift(row, from, to);
    return true;
}

/* From some place on: wherever these two neighbours follow each other, they change places. */
static bool move_all(climber *c, uint8_t *row, int32_t n)
{
    if (n < 3) return false;
    const int32_t at = 1 + (int32_t)td_rng_below(&c->rng, n - 2);
    const uint8_t x = row[at], y = row[at + 1];
    if (x == y) return false;
    for (int32_t i = at; i + 1 < n; i++) {
        if (row[i] != x || row[i + 1] != y) continue;
        row[i++] = y;
        row[i] = x;
    }
    return true;
}

/* Picks a move that changes a row; false when it would not be legal. */
static bool try_move(climber *c, int32_t *rank)
{
    zb_order *const o = c->now;
    *rank = (int32_t)td_rng_below(&c->rng, o->p);
    uint8_t *const row = zb_row(o, *rank);
    const int32_t n = o->n[*rank];
    memcpy(c->saved, row, (size_t)n);
    const bool moved =
        td_rng_below(&c->rng, REPEATS) == 0 ? move_all(c, row, n) : move_one(c, row, n);
    if (moved && row_is_legal(c->q, o, *rank)) return true;
    memcpy(row, c->saved, (size_t)n);
    return false;
}

static td_status climb(climber *c, zb_order *best, zb_score *score, td_err *err)
{
    double history[HISTORY], at = 0;
    zb_score s;
    if (!zb_replay_run(c->q, c->now, &c->replay, &s))
        return td_fail(err, TD_EPLAN, "search: its first order waits in a circle");
    at = height(c, &s);
    for (int i = 0; i < HISTORY; i++) history[i] = at;
    const int64_t passes = (int64_t)c->now->room * c->now->p;
    const int64_t trials = (c->o->trials > 0 ? c->o->trials : default_trials) / passes + 1;
    const int64_t until = td_now_ns() + (int64_t)(c->o->search_s * 1e9);
    for (int64_t i = 0; c->o->search_s > 0 || i < trials; i++) {
        int32_t rank = 0;
        if (c->o->search_s > 0 && i % 64 == 0 && td_now_ns() > until) break;
        if (!try_move(c, &rank)) continue;
        const bool runs = zb_replay_run(c->q, c->now, &c->replay, &s);
        const double new = runs ? height(c, &s) : 0;
        if (!runs || (new > at &&new > history[i % HISTORY])) {
            memcpy(zb_row(c->now, rank), c->saved, (size_t)c->now->n[rank]);
            continue;
        }
        at = new;
        if (at < history[i % HISTORY]) history[i % HISTORY] = at;
        if (!zb_better(&s, score, c->o->objective)) continue;
        *score = s;
        zb_order_copy(best, c->now);
    }
    return TD_OK;
}

td_status zb_improve(const zb_problem *q, const zb_search_options *o, td_arena *a, zb_order *order,
                     zb_score *score, td_err *err)
{
    zb_order now;
    climber c = {.q = q, .o = o, .now = &now, .rng = td_rng_seed(o->seed)};
    TD_TRY(zb_order_new(a, q->p, q->m, q->chunks, &now, err));
    TD_TRY(zb_replay_new(a, q, &c.replay, err));
    c.saved = TD_NEW_N(a, uint8_t, now.room);
    if (c.saved == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a search");
    zb_order_copy(&now, order);
    return climb(&c, order, score, err);
}
