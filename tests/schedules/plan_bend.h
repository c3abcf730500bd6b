/* Unsound plans out of sound ones. */
#ifndef TESTS_SCHEDULES_PLAN_BEND_H
#define TESTS_SCHEDULES_PLAN_BEND_H

#include "schedules/plan.h"

/* Bends a plan in up to three places, in ways that leave its data sound: messages of a stream
 * swapped, a gate later, a join earlier. Some are still sound, others get stuck. */
void plan_bend(plan *p, td_rng *r);

#endif
