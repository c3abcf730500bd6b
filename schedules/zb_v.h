/* The automatic order of ZB-V. */
#ifndef SCHEDULES_ZB_V_H
#define SCHEDULES_ZB_V_H

#include "schedules/zb_core.h"

/* The order by hand, for equal passes. */
TD_MUST_USE td_status zb_v_hand(int32_t p, int32_t m, td_arena *a, zb_order *out, td_err *err);

/* The automatic order; where stages differ so much that its warm-up runs out of memory, the best
 * of those for durations between theirs and their mean. Otherwise as zb_v_auto. */
TD_MUST_USE td_status zb_v_even(const zb_problem *q, td_arena *a, zb_order *out, bool *found,
                                td_err *err);

/* The best of the heuristic's four settings on the V placement (arXiv 2401.10241v1, section 6).
 * Requires q->chunks == 2. *found is false when the limits are too small for it. */
TD_MUST_USE td_status zb_v_auto(const zb_problem *q, td_arena *a, zb_order *out, bool *found,
                                td_err *err);

#endif
