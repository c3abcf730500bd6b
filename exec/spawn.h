/* Processes of this program on this machine, started and watched by itself: they end as one. */
#ifndef EXEC_SPAWN_H
#define EXEC_SPAWN_H

#include "exec/launch.h"

/* Becomes n processes and one that watches them. In each of the n, *watched is true and *out says
 * who it is; its local rank is its rank. In the watcher *watched is false, and the call returns
 * when all are gone: when one fails, the others get a few seconds to say why and are then ended;
 * what interrupts the watcher interrupts them; they do not outlive it. The watcher's error has no
 * message where the process that failed said its own. To be called before anything that a fork does
 * not carry over: threads, devices, MPI. */
TD_MUST_USE td_status spawn_processes(uint32_t n, launch *out, bool *watched, td_err *err);

#endif
