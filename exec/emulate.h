/* Emulation: the arithmetic of all ranks of a plan, one task at a time on the device at hand, in
 * the order that an event engine asks for. The engine says when a task begins in the time of the
 * emulated devices; the task is run now, and how long that took is its duration there. Messages and
 * collectives are copies and sums here; what they take is the engine's business. */
#ifndef EXEC_EMULATE_H
#define EXEC_EMULATE_H

#include "exec/exec.h"

typedef struct emulation emulation;

/* Ranks of an open executor whose threads do not run. Lives in the arena; the executor stays the
 * caller's. */
TD_MUST_USE td_status emulation_open(executor *x, td_arena *a, emulation **out, td_err *err);

/* Before each period: no message is under way. */
void emulation_begin(emulation *m);

/* Hooks of an engine (sim_live); self is the emulation. compute runs a task that all it waits for
 * precedes and measures it; marks take no time. post moves the data of a message once both its ends
 * are posted, of a collective once all are. */
TD_MUST_USE td_status emulation_compute(void *self, uint32_t rank, uint32_t task, int64_t class_ns,
                                        int64_t *ns, td_err *err);
TD_MUST_USE td_status emulation_post(void *self, uint32_t rank, uint32_t task, td_err *err);

#endif
