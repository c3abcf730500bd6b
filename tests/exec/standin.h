/* A device that stands in for a GPU: it works at once, on the cores, and keeps for each stream and
 * event what a GPU would have done before it (vector clocks; Lamport 1978, Fidge 1988). */
#ifndef TESTS_EXEC_STANDIN_H
#define TESTS_EXEC_STANDIN_H

#include "exec/device.h"

enum { STANDIN_STREAMS = 256 };

typedef struct standin_clock {
    uint32_t at[STANDIN_STREAMS];
} standin_clock;

typedef struct standin_event {
    int stream; /* where it was recorded last; -1: never */
    standin_clock clock;
} standin_event;

/* forget: the k-th wait is left out (a test of the test); 0: none. */
void standin_open(td_arena *a, int forget, device *out);
/* Whether a is done when b is. */
bool standin_before(const void *a, const void *b);
/* Waits, copies and sums that the device was given. */
int standin_waits(const device *d);
int standin_moves(const device *d);

#endif
