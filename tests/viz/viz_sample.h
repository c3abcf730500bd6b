/* A trace of 1F1B, made by the recurrence of its dependencies, for tests and benches. */
#ifndef TESTS_VIZ_SAMPLE_H
#define TESTS_VIZ_SAMPLE_H

#include "schedules/trace.h"

/* p ranks, m microbatches, F = 1 ms, B = 2 ms, messages of comm_ns; with send and receive streams
 * and a memory curve. NULL arrays never; asserts on exhaustion. */
void viz_sample(int p, int m, int64_t comm_ns, td_arena *a, trace *out);
/* Whether all that trace_write keeps is equal. */
bool viz_trace_equal(const trace *a, const trace *b);
/* Random records on random streams: kinds, pairs, overlaps, absent fields, odd text. */
void viz_random(uint64_t seed, td_arena *a, trace *out);

#endif
