/* A partial schedule of one stage a rank, and whether the rest of it fits its windows. */
#ifndef SCHEDULES_ZB_WINDOWS_H
#define SCHEDULES_ZB_WINDOWS_H

#include "schedules/zb_search.h"

/* Times are in units of unit_ns, the common divisor of all durations. */
typedef struct zb_windows {
    const zb_problem *q;
    int32_t p, m;
    int64_t unit_ns;
    int32_t *ns[3]; /* [p] durations */
    int32_t comm;
    int32_t *head, *deadline; /* [p] a rank's first start, and its last end */
    int32_t *need[2];         /* [p * m] passes of I, of W that must be done before F k */
    int32_t *latest[3];       /* [p * m] ends */
    int32_t *end[3];          /* [p * m] ends of what is done, earliest ends of what is left */
    int32_t (*count)[3];      /* [p] passes that are done */
    int32_t *clock;           /* [p] */
    int64_t *memory;          /* [p] */
} zb_windows;

static inline int32_t *zb_window(const zb_windows *w, int32_t *of, int32_t r, int32_t k)
{
    return of + (size_t)r * (size_t)w->m + (size_t)k;
}

/* Requires chunks == 1; longest_ns is a span that some order has. TD_EUSAGE when an input gradient
 * adds memory, which the search does not cover, or when there are too many units of time. */
TD_MUST_USE td_status zb_windows_new(const zb_problem *q, int64_t longest_ns, td_arena *a,
                                     zb_windows *out, td_err *err);
/* Nothing done, and every rank must end within `span` of its first start. */
void zb_windows_restart(zb_windows *w, int32_t span);
/* When the next pass of this kind could start; -1: its data or memory is not there yet. */
int32_t zb_next_start(const zb_windows *w, int32_t r, int kind);
void zb_windows_run(zb_windows *w, int32_t r, int kind, int32_t start);
void zb_windows_undo(zb_windows *w, int32_t r, int kind, int32_t clock); /* the last run of r */
/* False when what is left cannot fit. */
bool zb_windows_open(zb_windows *w);

#endif
