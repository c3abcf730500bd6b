/* Pieces of the text form that its printers and parsers share. */
#ifndef SCHEDULES_SCHEDULE_TEXT_H
#define SCHEDULES_SCHEDULE_TEXT_H

#include "schedules/schedule.h"

/* The word of an action's kind, NULL for passes and idle. */
const char *sched_action_name(int kind);
bool sched_action_has_microbatch(int kind);

/* One row without its line end. */
void sched_print_row(const sched_row *row, int32_t n_slices, td_text *out);

#endif
