/* Searches for an order of split passes with a short span within limits of memory. */
#ifndef SCHEDULES_ZB_SEARCH_H
#define SCHEDULES_ZB_SEARCH_H

#include "schedules/zb_core.h"

typedef enum zb_objective { ZB_SPAN, ZB_MAKESPAN } zb_objective;

/* What is minimised first, and then. */
static inline bool zb_better(const zb_score *x, const zb_score *y, zb_objective o)
{
    const int64_t x1 = o == ZB_SPAN ? x->span_ns : x->makespan_ns;
    const int64_t y1 = o == ZB_SPAN ? y->span_ns : y->makespan_ns;
    const int64_t x2 = o == ZB_SPAN ? x->makespan_ns : x->span_ns;
    const int64_t y2 = o == ZB_SPAN ? y->makespan_ns : y->span_ns;
    if (x1 != y1) return x1 < y1;
    if (x2 != y2) return x2 < y2;
    return x->spans_ns < y->spans_ns;
}

/* The heuristic of ZB-1p and ZB-2p (arXiv 2401.10241, section 3.1 and appendix B) with all eight
 * settings of its switches: the best order by `objective`, the first of equal ones. O(p m) passes
 * a setting. Requires q->chunks == 1. *found is false when the limits are too small for it. */
TD_MUST_USE td_status zb_heuristic(const zb_problem *q, zb_objective objective, td_arena *a,
                                   zb_order *out, zb_score *score, bool *found, td_err *err);

/* ZB-H1 (lead 1) or ZB-H2 (lead 2). */
TD_MUST_USE td_status zb_slot_order(int32_t p, int32_t m, int32_t lead, td_arena *a, zb_order *out,
                                    td_err *err);

/* Takes an order that a search may start from; false when it does not fit the limits. */
typedef bool (*zb_taker)(void *to, const zb_order *o);

/* Offers orders on the V placement that keep about `limit` chunk activations. Requires
 * q->chunks == 2. */
TD_MUST_USE td_status zb_blocks(const zb_problem *q, int32_t limit, zb_taker take, void *to,
                                td_arena *a, td_err *err);

typedef struct zb_search_options {
    zb_objective objective;
    uint64_t seed;
    double search_s; /* > 0: stop by the clock in place of by trials */
    int64_t trials;  /* passes to replay at most; 0: the default */
} zb_search_options;

/* Moves passes within their rows while that makes the order better: never worse than what it
 * starts from. The same seed gives the same order unless search_s bounds it. */
TD_MUST_USE td_status zb_improve(const zb_problem *q, const zb_search_options *o, td_arena *a,
                                 zb_order *order, zb_score *score, td_err *err);

/* Branch and bound for the smallest span, starting from an order and its score, both of which it
 * improves. *bound_ns: no order has a smaller span; equal to the score's when that is proven. Stops
 * after a number of states, or o->search_s seconds. Requires chunks == 1. Errors: TD_EUSAGE where
 * it does not apply (zb_windows.h). */
TD_MUST_USE td_status zb_exact(const zb_problem *q, const zb_search_options *o, td_arena *a,
                               zb_order *order, zb_score *score, int64_t *bound_ns, td_err *err);

#endif
