/* Bytes between the processes of one run: MPI, or TCP where there is none. On one lane from one
 * process to another the k-th send matches the k-th receive, of equal size; lanes are independent.
 * No call blocks but open and close, and calls come from one thread at a time. */
#ifndef EXEC_TRANSPORT_H
#define EXEC_TRANSPORT_H

#include "exec/launch.h"

/* A message under way; lives until it is done, as its data does. All but `done` is the
 * transport's. */
typedef struct transport_request {
    bool done;
    bool send;
    uint32_t peer, lane;
    char *data;
    int64_t bytes, moved;
    struct transport_request *next;
    uint64_t handle;
} transport_request;

typedef struct transport transport;
typedef struct transport_methods {
    const char *name;
    /* The send is done only when its receive has been posted. */
    td_status (*send)(transport *t, transport_request *r, td_err *err);
    td_status (*recv)(transport *t, transport_request *r, td_err *err);
    /* Moves what can be moved and sets r->done. The error of a peer that is gone names it. */
    td_status (*test)(transport *t, transport_request *r, td_err *err);
    /* broken: the run failed, others may be gone. */
    void (*close)(transport *t, bool broken);
} transport_methods;

struct transport {
    const transport_methods *methods;
    uint32_t index, size; /* this process, and how many there are */
    void *state;
};

/* Joins the processes that the launcher of MPI started. TD_EUSAGE where this build has no MPI. */
TD_MUST_USE td_status transport_open_mpi(td_arena *a, transport *out, td_err *err);
/* Joins the processes of a launch over TCP, at l->host and l->port. Errors as tcp_meet. */
TD_MUST_USE td_status transport_open_tcp(const launch *l, int64_t deadline_ns, td_arena *a,
                                         transport *out, td_err *err);

#endif
