/* Measured messages and sums, for pexec bench. */
#ifndef EXEC_BENCH_WIRE_H
#define EXEC_BENCH_WIRE_H

#include "costmodel/samples.h"

/* One message of that many bytes between two ranks: half of a round trip, the median of many. */
TD_MUST_USE td_status bench_message(samples *out, int64_t bytes, td_err *err);
/* One sum over two ranks of that many bytes. */
TD_MUST_USE td_status bench_sum(samples *out, int64_t bytes, td_err *err);

#endif
