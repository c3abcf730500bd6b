/* Random sound schedules for the laws: any placement, split or whole backward, slices, twins. */
#ifndef TESTS_SCHEDULES_SCHEDULE_GEN_H
#define TESTS_SCHEDULES_SCHEDULE_GEN_H

#include "schedules/schedule.h"

/* A sound schedule of small random sizes: passes are taken in a random order that their data
 * allows, so that every such order can come up. Same seed, same schedule. */
schedule gen_schedule(td_arena *a, uint64_t seed);

#endif
