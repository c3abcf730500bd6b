/* The automatic order of ZB-V. */
#ifndef SCHEDULES_ZB_V_H
#define SCHEDULES_ZB_V_H

#include "schedules/zb_core.h"

/* The best of the heuristic's four settings on the V placement (arXiv 2401.10241v1, section 6).
 * Requires q->chunks == 2. *found is false when the limits are too small for it. */
TD_MUST_USE td_status zb_v_auto(const zb_problem *q, td_arena *a, zb_order *out, bool *found,
                                td_err *err);

#endif
