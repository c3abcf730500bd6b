/* One rule for the orders of 1F1B, Chimera, BitPipe and Hanayo's waves. */
#ifndef SCHEDULES_SLOT_RULE_H
#define SCHEDULES_SLOT_RULE_H

#include "schedules/schedule.h"

/* Pipes through the same rows. Each pipe cuts the model into chunks * pp stages; pass q of it
 * crosses the rows forwards for even q, backwards for odd q (the V shape), or always forwards when
 * looping. An up pipe is the mirror image of a down pipe; pipe i of f in one direction starts
 * i * pp / f rows later. Down pipes come first. */
typedef struct slot_rule {
    int32_t pp, chunks;
    int32_t down, up; /* pipes of each direction; up is 0 or equals down */
    int32_t unit;     /* microbatches that pass together; each pipe takes an equal run of them */
    bool looping;
    bool doubling;     /* two forwards count as one unit of work (Chimera, section 3.5) */
    bool two_in_a_gap; /* the last two forwards of a unit that fill the drain of the one before
                          stand in one gap of the rows where stage 0 lives */
} slot_rule;

/* Places the stages and orders every row by slots: with S stages, the k-th microbatch of a pipe in
 * unit j has its forward of stage s in slot 2 S j + 2 k + s and its backward in slot
 * 2 S j + 2 k + 2 S - 1 - s. Requires chunks, down and unit >= 1, unit a multiple of the pipes (of
 * twice as many when doubling) and, with several pipes, q->microbatches a multiple of unit.
 * Fails with TD_EUSAGE when a count does not fit. */
TD_MUST_USE td_status slot_rule_generate(const slot_rule *r, int32_t microbatches, td_arena *a,
                                         schedule *out, td_err *err);

#endif
