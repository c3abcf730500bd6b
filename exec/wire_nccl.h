/* The wire between processes with a GPU each: NCCL moves tensors, the team everything else. Its
 * sums are in NCCL's order, so they equal those of other wires within rounding only, unless
 * `ordered` asks for sums in member order: parts are then exchanged and added here, bit for bit as
 * elsewhere. */
#ifndef EXEC_WIRE_NCCL_H
#define EXEC_WIRE_NCCL_H

#include "exec/device.h"
#include "exec/team.h"

typedef struct nccl_options {
    bool ordered;
    int message_ctas, collective_ctas; /* multiprocessors that one operation may hold; 0: NCCL's */
} nccl_options;

/* As wire_open_team, and with a mover: operations are given to the mover's streams of device d and
 * done there later; wire_wait only says whether somebody gave up, wire_drain waits. All processes
 * call it alike, and leave with an error together. Errors: TD_EDEVICE with NCCL's reason, TD_EUSAGE
 * where this build has no NCCL. */
TD_MUST_USE td_status wire_open_nccl(const wire_shape *s, const nccl_options *o, team *t, device *d,
                                     td_arena *a, wire **out, td_err *err);

/* The memory that messages come from and go to. Pays where processes have GPUs of their own; all
 * processes call it, or none. */
void wire_nccl_memory(wire *w, void *at, int64_t bytes);

/* Before the first device is opened: what NCCL and CUDA read from the environment, where the user
 * has not set it. */
void nccl_prepare(void);
/* Tells NCCL that this process is on a host of its own, where processes share a device, since it
 * refuses two of them on one otherwise. All processes call it, with what names their device on this
 * machine. *sharing: processes on this one's device, itself included. Errors: TD_EUSAGE in all
 * processes where the user's NCCL_HOSTID puts two of one device on one host. */
TD_MUST_USE td_status nccl_share(team *t, const char *place, td_arena *a, uint32_t *sharing,
                                 td_err *err);

/* "2.28.9", or why there is none. */
void nccl_describe(td_text *out);

#endif
