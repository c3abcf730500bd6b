/* Making schedules row by row: what generators and the parser share. */
#ifndef SCHEDULES_SCHEDULE_BUILD_H
#define SCHEDULES_SCHEDULE_BUILD_H

#include "schedules/schedule.h"

/* An empty schedule with one pipe that carries every microbatch and no stage placed yet (rows of
 * stages are -1). Fails with TD_EUSAGE on sizes < 1 or too large to count. */
TD_MUST_USE td_status sched_new(td_arena *a, int64_t n_rows, int64_t n_stages, int64_t n_pipes,
                                int64_t n_microbatches, int64_t n_slices, schedule *out,
                                td_err *err);

/* Appends cells to one row; `failed` stays set once memory is exhausted. */
typedef struct row_writer {
    td_arena *arena;
    sched_row *row;
    size_t cap;
    bool failed;
} row_writer;

/* A writer behind the cells that row `row` of the schedule has; then one cell, or one pass, at its
 * end. */
row_writer row_writer_of(td_arena *a, schedule *s, int32_t row);
void row_add_cell(row_writer *w, sched_cell c);
void row_add(row_writer *w, pass_kind kind, int32_t stage, int32_t microbatch, int32_t slice);
/* Two passes as one overlapped cell. */
void row_add_pair(row_writer *w, sched_cell first, sched_cell second);

/* A pass as a cell, for row_add_pair. */
sched_cell sched_cell_of(pass_kind kind, int32_t stage, int32_t microbatch, int32_t slice);

/* Places stage of pipe on one row, forward and backward. */
void sched_place(schedule *s, int32_t pipe, int32_t stage, int32_t row);

/* The value of an option, or `fallback`; fails on a value out of [min, max]. */
TD_MUST_USE td_status sched_option_i64(const sched_request *q, const char *key, int64_t min,
                                       int64_t max, int64_t fallback, int64_t *out, td_err *err);
/* The index among `names` (NULL-terminated, the default first) of an option's value; 0 when the
 * option was not given. */
TD_MUST_USE td_status sched_option_choice(const sched_request *q, const char *key,
                                          const char *const *names, int64_t *out, td_err *err);

/* sched_new with one row a rank, one pipe and the slices that q asks for (2 when it does not say),
 * their token lengths the same in every microbatch. */
TD_MUST_USE td_status sched_new_sliced(td_arena *a, const sched_request *q, int64_t n_stages,
                                       schedule *out, td_err *err);

/* Refusals that families share; each names the family and what would be legal: an odd number of
 * ranks for two directions, microbatches that are no multiple of `unit` (`text` says what that
 * is). */
TD_MUST_USE td_status sched_need_even_ranks(const sched_request *q, const char *family,
                                            td_err *err);
TD_MUST_USE td_status sched_need_units(const sched_request *q, const char *family, int32_t unit,
                                       const char *text, td_err *err);

#endif
