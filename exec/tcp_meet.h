/* How the processes of a run find each other over TCP: rank 0 listens where the launcher says, the
 * others come to it, and it tells each where all others listen; then every two connect. */
#ifndef EXEC_TCP_MEET_H
#define EXEC_TCP_MEET_H

#include "exec/launch.h"

/* fds: [size] one connected socket for each other process, -1 for this one; names: [size] their
 * addresses, for messages. Errors within deadline_ns: TD_EUSAGE for a port in use, an unknown host,
 * or processes that do not fit; TD_EDEVICE for who did not come. */
TD_MUST_USE td_status tcp_meet(const launch *l, int64_t deadline_ns, td_arena *a, int *fds,
                               const char **names, td_err *err);

/* A socket that listens on a port of the system's choice, for launch.listener; -1: errno. */
int tcp_listen_here(uint16_t *port);

#endif
